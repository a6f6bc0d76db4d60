"""Compute the router loss (load balancing) of a mixture-of-experts model, as transformers does.

A model whose config says `output_router_logits` trains with loss + router_aux_loss_coef * L, where L is the model's own
`load_balancing_loss_func` of the router logits of one forward pass. Here that pass is a micro-batch, so

    loss of a step = sum of token losses / loss tokens of the global batch + coef * mean of L over all micro-batches

on every rank and in every micro-step. L is not a sum over tokens: unlike the token loss it depends a little on how rows
are divided into micro-batches. Padding is excluded. Losses by domain, held-out losses and `train/loss` are token losses
alone.

Differences from transformers' Trainer: it sums L over the micro-steps of a step instead of averaging it.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from versatune_ds.log import SHARED
from versatune_ds.model.sizes import sizes_of

logger = logging.getLogger(__name__)

_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterLoss:
    """The router loss of one model, with its coefficient."""

    function: Callable[..., torch.Tensor]
    """The model's own `load_balancing_loss_func(router_logits, num_experts, top_k, mask)`."""
    coefficient: float
    num_experts: int
    num_experts_per_token: int

    def __call__(self, router_logits: tuple[torch.Tensor, ...], is_token: torch.Tensor | None = None) -> torch.Tensor:
        """Return coefficient * L, fp32 scalar with gradient.

        Args:
            router_logits: [B*T, experts] of each layer.
            is_token: bool [B, T], False in the padding; None where there is none. A micro-batch of only padding has
                loss 0 instead of 0 / 0.
        """
        if is_token is None:
            return self.coefficient * self.function(router_logits, self.num_experts, self.num_experts_per_token, None)
        has_tokens = is_token.any()
        mask = (is_token | ~has_tokens).long()
        loss = self.function(router_logits, self.num_experts, self.num_experts_per_token, mask)
        return self.coefficient * loss * has_tokens


def describe_router_loss(causal_lm: Any) -> str | None:
    """Return a line for the log about a model's router loss; None for a model without experts."""
    sizes, loss = sizes_of(causal_lm.config), router_loss_of(causal_lm)
    if sizes.num_experts is None:
        return None
    if loss is None:
        return "router loss: none; output_router_logits: true in the model's config.json turns it on"
    return f"router loss: added with factor {loss.coefficient:g}; train/loss and losses by domain are token losses only"


def router_loss_of(causal_lm: Any) -> RouterLoss | None:
    """Return the router loss that a model's config asks for; None for none, or for one that is unknown here."""
    text = causal_lm.config.get_text_config(decoder=True)
    if not getattr(text, "output_router_logits", False):
        return None
    # Some models store the coefficient on themselves, some in their config.
    owners = (causal_lm, text)
    coefficients = (getattr(owner, name, None) for owner in owners for name in _COEFFICIENTS)
    coefficient = next((float(value) for value in coefficients if value is not None), 0.0)
    sizes = sizes_of(causal_lm.config)
    function = getattr(sys.modules[type(causal_lm).__module__], "load_balancing_loss_func", None)
    if coefficient == 0.0 or sizes.num_experts is None:
        return None
    if function is None or sizes.num_experts_per_token is None:
        logger.warning(
            "model: its config asks for a router loss (output_router_logits), but %s has no load_balancing_loss_func; "
            "it is trained without a router loss",
            type(causal_lm).__name__,
            extra=SHARED,
        )
        return None
    return RouterLoss(
        function=function,
        coefficient=coefficient,
        num_experts=sizes.num_experts,
        num_experts_per_token=sizes.num_experts_per_token,
    )


@contextlib.contextmanager
def without_router_logits(causal_lm: Any) -> Iterator[None]:
    """Let the model return no router logits inside the block, for generation; its config is restored afterwards."""
    text = causal_lm.config.get_text_config(decoder=True)
    has_logits = getattr(text, "output_router_logits", False)
    omit_router_logits(causal_lm)
    try:
        yield
    finally:
        if has_logits:
            text.output_router_logits = has_logits


def omit_router_logits(causal_lm: Any) -> None:
    """Let a model that is not trained return no router logits from now on.

    With them transformers 5.24 computes a router loss in every forward pass, also where nothing is learned. From the
    second token of a generation on it fails: the mask then covers all tokens, the logits those of this pass alone.
    """
    text = causal_lm.config.get_text_config(decoder=True)
    if getattr(text, "output_router_logits", False):
        text.output_router_logits = False
