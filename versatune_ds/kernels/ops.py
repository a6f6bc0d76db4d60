"""Define the operators `torch.ops.versatune.*`: schemas, PyTorch fallback, fake kernels, autograd.

The schemas are defined here, once, because they must exist without a compiler. The compiled libraries only register
implementations for the dispatch keys CPU and CUDA, which then take precedence over the fallback. Importing this module
builds nothing; `prepare` does, on first use.

Shape legend: **N** tokens, **V** vocabulary, **K** domains.
"""

from __future__ import annotations

from typing import Any

import torch

from versatune_ds.kernels import build, fixed_point, torch_reference

_ROWS = "Tensor labels_N, Tensor domain_ids_N, Tensor loss_weights_K"
_SETTINGS = "int ignore_index, float z_loss, float softcap, float label_smoothing"
SCHEMAS = (
    f"domain_ce(Tensor logits_NV, {_ROWS}, {_SETTINGS}, int kernel_number=0) -> (Tensor, Tensor, Tensor, Tensor)",
    f"domain_ce_backward(Tensor logits_NV, {_ROWS}, Tensor normalizers_N2, Tensor grad_loss, {_SETTINGS}) -> Tensor",
    f"domain_ce_gradient_(Tensor(a!) logits_NV, {_ROWS}, {_SETTINGS}, int kernel_number=0) -> (Tensor, Tensor, Tensor)",
    "scale_(Tensor(a!) values, Tensor factor) -> ()",
)

_LIBRARY = torch.library.Library("versatune", "FRAGMENT")
for _schema in SCHEMAS:
    _name = _schema.split("(", 1)[0]
    _LIBRARY.define(_schema)
    _LIBRARY.impl(_name, getattr(torch_reference, _name), "CompositeExplicitAutograd")


@torch.compiler.assume_constant_result
def prepare(device_type: str) -> bool:
    """Return whether a device type has a compiled implementation, and build it on first use.

    Under torch.compile this runs while the graph is traced, so that the compiled kernels are loaded when it runs.
    """
    return device_type != "meta" and build.load_kernels(device_type).is_compiled


def scale_once_(gradient: torch.Tensor, factor: torch.Tensor) -> None:
    """Scale a saved gradient in place, so that autograd refuses a second backward pass instead of scaling twice."""
    torch.ops.versatune.scale_(gradient, factor)
    note_overwritten(gradient)


def note_overwritten(tensor: torch.Tensor) -> None:
    """Tell autograd that a tensor's values changed, which compiled operators do not do by themselves.

    Otherwise an earlier operation that saved the tensor would silently compute a wrong gradient. A compiled graph knows
    it from the schema.
    """
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(tensor)


@torch.library.register_fake("versatune::domain_ce", lib=_LIBRARY)
def _domain_ce_fake(
    logits_NV: torch.Tensor, labels_N: torch.Tensor, domain_ids_N: torch.Tensor, loss_weights_K: torch.Tensor, *_: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    num_rows, num_domains = logits_NV.shape[0], loss_weights_K.shape[0]
    return (
        logits_NV.new_empty((), dtype=torch.float32),
        logits_NV.new_empty((num_domains, fixed_point.NUM_COLUMNS), dtype=torch.int64),
        logits_NV.new_empty((num_rows, 2), dtype=torch.float32),
        logits_NV.new_empty(num_rows, dtype=torch.float32),
    )


@torch.library.register_fake("versatune::domain_ce_backward", lib=_LIBRARY)
def _domain_ce_backward_fake(logits_NV: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(logits_NV, memory_format=torch.contiguous_format)


@torch.library.register_fake("versatune::domain_ce_gradient_", lib=_LIBRARY)
def _domain_ce_gradient_fake(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    loss, bins_K5, _, token_losses_N = _domain_ce_fake(*arguments)
    return loss, bins_K5, token_losses_N


@torch.library.register_fake("versatune::scale_", lib=_LIBRARY)
def _scale_fake(values: torch.Tensor, factor: torch.Tensor) -> None:
    del values, factor


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    logits_NV, labels_N, domain_ids_N, loss_weights_K, *settings, _ = inputs
    _, _, normalizers_N2, token_losses_N = output
    ctx.save_for_backward(logits_NV, labels_N, domain_ids_N, loss_weights_K, normalizers_N2)
    ctx.settings = settings
    # Their gradient is not computed: if they were differentiable, a loss built from them would silently train nothing.
    ctx.mark_non_differentiable(normalizers_N2, token_losses_N)


def _domain_ce_gradient(ctx: Any, grad_loss: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
    grad_NV = torch.ops.versatune.domain_ce_backward(*ctx.saved_tensors, grad_loss, *ctx.settings)
    return grad_NV, *(None,) * 8


torch.library.register_autograd(
    "versatune::domain_ce", _domain_ce_gradient, setup_context=_save_for_backward, lib=_LIBRARY
)
