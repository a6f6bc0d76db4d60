"""Count which experts serve which domain, in a mixture of experts.

transformers calls the experts of a layer with the experts that the router chose for every token. A hook there counts
them by domain while the model trains: K * X numbers a layer are added on the device, and nothing is read from it.
Padding is not counted, nor the forward passes that gradient checkpointing repeats.

Not covered: models that call their experts without such an index (Llama 4), and compiled layers (`model.compile`),
inside which hooks do not run; these have no counts.

Shape legend: **K** domains, **L** layers with experts, **X** experts of a layer, **B** rows, **T** tokens a row,
**N** = B*T, **C** experts chosen for a token.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from versatune_ds.log import SHARED
from versatune_ds.mixture.expert_shares import specific_experts
from versatune_ds.model.sizes import sizes_of

logger = logging.getLogger(__name__)

_NUM_CALL_PARTS = 3
"""Hidden states [N, D], chosen experts [N, C], their weights [N, C]."""


class ExpertLoad:
    """Count tokens by domain, layer and expert during the forward passes inside `counting`.

    Args:
        causal_lm: The model.
        num_domains: K.

    Attributes:
        num_layers: L, 0 for a model whose experts cannot be counted.
        num_experts: X.
    """

    def __init__(self, causal_lm: Any, *, num_domains: int) -> None:
        modules = experts_of(causal_lm)
        self.num_layers = len(modules)
        self.num_experts = sizes_of(causal_lm.config).num_experts or 0
        self._num_domains = num_domains
        self._counts_KLX: torch.Tensor | None = None
        self._domain_ids_N: torch.Tensor | None = None
        self._weights_N: torch.Tensor | None = None
        for layer, module in enumerate(modules):
            module.register_forward_pre_hook(self._hook_of(layer))

    @contextmanager
    def counting(self, domain_ids_BT: torch.Tensor, *, is_token_BT: torch.Tensor) -> Iterator[torch.Tensor]:
        """Count one forward pass into the yielded tensor, int64 [K, L, X]; it is filled when the block ends."""
        shape = (self._num_domains, self.num_layers, self.num_experts)
        self._counts_KLX = torch.zeros(shape, dtype=torch.int64, device=domain_ids_BT.device)
        self._domain_ids_N, self._weights_N = domain_ids_BT.reshape(-1), is_token_BT.reshape(-1).long()
        try:
            yield self._counts_KLX
        finally:
            self._counts_KLX = self._domain_ids_N = self._weights_N = None

    def _hook_of(self, layer: int) -> Any:
        """Return the hook of a layer's experts."""

        @torch.no_grad()
        def count(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if self._counts_KLX is None or self._domain_ids_N is None or self._weights_N is None:
                return  # not training, or repeated by gradient checkpointing
            chosen_NC = arguments[1] if len(arguments) == _NUM_CALL_PARTS else None
            if not _is_index(chosen_NC, num_rows=len(self._domain_ids_N)):
                return
            # Token n of domain k sent to expert x: element k * X + x of the layer's counts.
            places_NC = self._domain_ids_N[:, None] * self.num_experts + chosen_NC
            counts = self._counts_KLX.new_zeros(self._num_domains * self.num_experts)
            counts.scatter_add_(0, places_NC.reshape(-1), self._weights_N[:, None].expand_as(places_NC).reshape(-1))
            self._counts_KLX[:, layer] += counts.view(self._num_domains, self.num_experts)

        return count


def expert_load_of(causal_lm: Any, *, num_domains: int) -> ExpertLoad | None:
    """Return the counter of a mixture of experts; None for another model, and where layers are compiled."""
    if sizes_of(causal_lm.config).num_experts is None or not experts_of(causal_lm):
        return None
    if any(getattr(module, "_compiled_call_impl", None) is not None for module in causal_lm.modules()):
        logger.info("model.compile: which experts serve which domain is not counted in compiled layers", extra=SHARED)
        return None
    return ExpertLoad(causal_lm, num_domains=num_domains)


def experts_of(causal_lm: Any) -> list[nn.Module]:
    """Return the modules that store the experts of a layer as one, from the first layer with experts to the last."""
    return [
        module
        for name, module in causal_lm.named_modules()
        if re.search(r"(^|\.)experts$", name) and not isinstance(module, nn.ModuleList)
    ]


def _is_index(value: Any, *, num_rows: int) -> bool:
    """Return whether a value is the experts chosen for every token, int [N, C]."""
    is_integer = isinstance(value, torch.Tensor) and not value.is_floating_point() and value.dtype != torch.bool
    return is_integer and value.dim() == 2 and len(value) == num_rows


def expert_load_metrics(counts_KLX: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Summarise the counts of an interval; a domain without tokens has no numbers.

    Entropy: of the shares of the experts, divided by log X and averaged over layers: 1 where all experts serve the
    domain equally, 0 where one serves it alone. Largest: the share of the busiest expert of a layer, averaged over
    layers; 1 / X at the least.

    Lift: of the expert that is most specific to the domain (`mixture/expert_shares.py`), with its layer and number.

    Example: of 4 experts two serve a domain equally: entropy log 2 / log 4 = 0.5, largest 0.5. Where no other domain
    uses them, and there are three domains, their lift is 3.
    """
    metrics: dict[str, float] = {}
    for name, experts in zip(names, specific_experts(counts_KLX, num_each=1), strict=True):
        for found in experts:
            metrics[f"domain/{name}/expert_lift"] = found.lift
            metrics[f"domain/{name}/expert_lift_layer"] = found.layer
            metrics[f"domain/{name}/expert_lift_expert"] = found.expert
    for name, counts_LX in zip(names, counts_KLX.astype(np.float64), strict=True):
        total_L = counts_LX.sum(axis=1)
        if not (total_L > 0).any():
            continue
        shares_LX = counts_LX[total_L > 0] / total_L[total_L > 0, None]
        logs_LX = np.log(shares_LX, where=shares_LX > 0, out=np.zeros_like(shares_LX))
        entropy_L = -(shares_LX * logs_LX).sum(axis=1) / math.log(shares_LX.shape[1])
        metrics[f"domain/{name}/expert_load_entropy"] = float(entropy_L.mean())
        metrics[f"domain/{name}/expert_load_largest"] = float(shares_LX.max(axis=1).mean())
    return metrics
