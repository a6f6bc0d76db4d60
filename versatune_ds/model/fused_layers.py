"""Run a model's norms, rotary embeddings and SwiGLU as Liger's fused kernels, where they are installed.

Only the forward functions of this model's own modules are replaced: neither its modules nor its parameter names change,
so checkpoints and exports are the same, and transformers' classes stay as they are for other models. The loss stays
ours (kernels/). The same choices as Liger's own patches (liger-kernel 0.8.5, `monkey_patch.py`), for the model types
that need all three kernels in their plain form.
"""

from __future__ import annotations

import inspect
import logging
import types
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from versatune_ds.config import ModelConfig

logger = logging.getLogger(__name__)

FUSED_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Types whose RMSNorm has no offset, whose MLP is a SwiGLU, and which rotate all of a head."""

_ROTARY = "apply_rotary_pos_emb"


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedKernels:
    """Liger's functions; the same names and arguments in liger-kernel 0.6 to 0.8."""

    rms_norm: Callable[..., torch.Tensor]
    rope: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    swiglu: Callable[..., torch.Tensor]


def check_fused_layers(model: ModelConfig, *, device_type: str) -> None:
    """Check that layers can be fused where the recipe asks for it.

    Raises:
        ValueError: If `model.fused_layers` is liger without a GPU or without the library.
    """
    if model.fused_layers != "liger":
        return
    if device_type != "cuda":
        raise ValueError("model.fused_layers: liger needs a GPU; use auto, or leave it out")
    if find_spec("liger_kernel") is None:
        raise ValueError("model.fused_layers: liger needs the library liger-kernel; pip install -e '.[fused]'")


def fuse_layers(causal_lm: Any, model: ModelConfig, *, device: torch.device) -> None:
    """Replace the forward functions of a model's layers by fused ones, or log in one line why not.

    Call it after adapters are added: they copy modules, and a copy would keep its original's weights.

    Raises:
        ValueError: If `model.fused_layers` is liger and that is not possible.
    """
    check_fused_layers(model, device_type=device.type)
    reason = _reason_against(causal_lm, model, device=device)
    if reason is None:
        logger.info("layers: fused by Liger: %s", _fuse(causal_lm, _kernels()))
    elif model.fused_layers == "liger":
        raise ValueError(f"model.fused_layers: liger is not possible: {reason}; use auto, or leave it out")
    else:
        logger.info("layers: not fused: %s", reason)


def _reason_against(causal_lm: Any, model: ModelConfig, *, device: torch.device) -> str | None:
    """Return why layers are not fused; None where they are."""
    config = causal_lm.config
    reasons = {
        "model.fused_layers is none": model.fused_layers == "none",
        "the model runs on the CPU": device.type != "cuda",
        "model.compile fuses them": model.compile,
        f"model type {config.model_type} is none of {', '.join(FUSED_MODEL_TYPES)}": (
            config.model_type not in FUSED_MODEL_TYPES
        ),
        "liger-kernel is not installed; pip install -e '.[fused]'": find_spec("liger_kernel") is None,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _kernels() -> FusedKernels:
    """Import Liger's functions."""
    functional = import_module("liger_kernel.transformers.functional")
    return FusedKernels(rms_norm=functional.liger_rms_norm, rope=functional.liger_rope, swiglu=functional.liger_swiglu)


def _fuse(causal_lm: nn.Module, kernels: FusedKernels) -> str:
    """Replace the forward functions of all modules that have a fused form, and return how many of each there are."""
    counts = {"RMSNorm": 0, "rotary": 0, "SwiGLU": 0}
    for module in causal_lm.modules():
        name = type(module).__name__
        if name.endswith("RMSNorm"):
            _replace_forward(module, _norm_forward(kernels))
            counts["RMSNorm"] += 1
        elif name.endswith("MLP") and _is_swiglu(module):
            _replace_forward(module, _swiglu_forward(kernels))
            counts["SwiGLU"] += 1
        elif name.endswith("Attention") and (forward := _rotary_forward(module, kernels)) is not None:
            _replace_forward(module, forward)
            counts["rotary"] += 1
    return ", ".join(f"{count} x {kind}" for kind, count in counts.items())


def _replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Give one module another forward function; hooks, which surround it, still run."""
    module.forward = types.MethodType(forward, module)


def _norm_forward(kernels: FusedKernels) -> Callable[..., torch.Tensor]:
    """Return the forward function of an RMSNorm as Llama computes it."""

    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        # Liger may write the input's gradient over the output's (in_place); a residual that shares it would be wrong.
        return kernels.rms_norm(
            hidden_states, self.weight, self.variance_epsilon, offset=0.0, casting_mode="llama", in_place=False
        )

    return forward


def _is_swiglu(module: nn.Module) -> bool:
    """Return whether an MLP is down(silu(gate(x)) * up(x))."""
    has_parts = all(hasattr(module, part) for part in ("gate_proj", "up_proj", "down_proj", "act_fn"))
    return has_parts and type(module.act_fn).__name__ in ("SiLU", "SiLUActivation")


def _swiglu_forward(kernels: FusedKernels) -> Callable[..., torch.Tensor]:
    """Return the forward function of a SwiGLU; its projections may have adapters."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(kernels.swiglu(self.gate_proj(x), self.up_proj(x)))

    return forward


def _rotary_forward(module: nn.Module, kernels: FusedKernels) -> Callable[..., Any] | None:
    """Return transformers' forward function of an attention module with Liger's rotary embedding; None if it has none.

    The function finds its rotary embedding among the names of its file. Its copy here sees the same names with that one
    replaced, so that the file itself, and with it every other model of the process, stays as it is.
    """
    original = inspect.unwrap(type(module).forward)
    if _ROTARY not in original.__code__.co_names:
        return None
    names = {**original.__globals__, _ROTARY: kernels.rope}
    copy = types.FunctionType(original.__code__, names, original.__name__, original.__defaults__, original.__closure__)
    copy.__kwdefaults__ = original.__kwdefaults__
    return copy
