"""Check before training that our way of computing a model's losses gives the model's own.

Tiny forward passes test what would otherwise take reading the model's code: whether its logits are its head applied to
its decoder's output (some models scale them in between), whether attention without a mask gives what it gives with one,
whether an example's output depends on its neighbours in a packed row or in another row of the micro-batch (some models
ignore the positions that separate examples), and whether its router loss is the one we add.
"""

from __future__ import annotations

from typing import Any

import torch

from versatune_ds.model.attention import attention_arguments, dense_attention
from versatune_ds.model.domain_model import softcap_of
from versatune_ds.model.router_loss import router_loss_of
from versatune_ds.model.sizes import sizes_of

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference of two logits, relative to the largest logit."""


@torch.no_grad()
def check_losses_are_the_models(causal_lm: Any) -> None:
    """Compare our way of computing logits with the model's own, on eight tokens.

    It works before and after the head is replaced, as the new head returns logits too. Under ZeRO-3 the model's hooks
    gather its weights, and every rank makes the same calls.

    Raises:
        ValueError: If the logits differ, or packed examples see each other.
    """
    was_training = causal_lm.training
    causal_lm.eval()
    # Logits and router loss: ours against the model's own.
    ids = torch.arange(8, device=causal_lm.device)[None] % sizes_of(causal_lm.config).vocabulary
    positions, half_positions = torch.arange(8, device=ids.device)[None], torch.arange(4, device=ids.device)
    router_loss = router_loss_of(causal_lm)
    extra = {} if router_loss is None else {"output_router_logits": True}
    with dense_attention(causal_lm):
        own = causal_lm(input_ids=ids, position_ids=positions, use_cache=False, **extra)
        with_mask = _our_logits(causal_lm, _run_decoder(causal_lm, ids, positions))
    _check_equal(own.logits, with_mask, problem="scales its logits outside its head")
    output = _run_decoder(causal_lm, ids, positions, **extra)
    problem = "computes its attention in another way with model.attention as it is than with sdpa or eager"
    _check_equal(with_mask, _our_logits(causal_lm, output), problem=problem)
    if router_loss is not None:
        theirs, ours = router_loss.coefficient * own.aux_loss, router_loss(output.router_logits)
        _check_equal(theirs, ours, problem="computes its router loss in another way than its config says")
    # Two examples of four tokens in the second row: the later one must see neither the other nor the first row.
    two_rows = torch.cat([ids.flip(1), ids]), torch.cat([half_positions, half_positions]).expand(2, 8)
    packed = _our_logits(causal_lm, _run_decoder(causal_lm, *two_rows))[1:, 4:]
    apart = _our_logits(causal_lm, _run_decoder(causal_lm, ids[:, 4:], half_positions[None]))
    _check_equal(apart, packed, problem="lets the examples of a packed row see each other")
    causal_lm.train(was_training)


def _run_decoder(causal_lm: Any, ids: torch.Tensor, positions: torch.Tensor, **extra: bool) -> Any:
    """Return the decoder's output for tokens, called as in training."""
    decoder, lengths = causal_lm.get_decoder(), attention_arguments(causal_lm, positions)
    return decoder(input_ids=ids, position_ids=positions, attention_mask=None, use_cache=False, **extra, **lengths)


def _our_logits(causal_lm: Any, output: Any) -> torch.Tensor:
    """Return the logits as training computes them: the decoder's output through the head, soft-capped."""
    hidden = output[0]
    logits = causal_lm.get_output_embeddings()(hidden)
    softcap = softcap_of(causal_lm)
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def _check_equal(expected: torch.Tensor, found: torch.Tensor, *, problem: str) -> None:
    """Raise ValueError if two results differ by more than their precision explains."""
    difference = (expected.float() - found.float()).abs().max() / expected.float().abs().max().clamp(min=1e-6)
    if not difference <= _TOLERANCE.get(expected.dtype, 0.1):
        raise ValueError(
            f"model: this model {problem} (results differ by {float(difference):.1%}), which is not supported; "
            "its losses would be wrong"
        )
