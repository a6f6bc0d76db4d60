"""Compute the log-probabilities of some answers to some questions under a causal language model.

The questions are read once, several at a time, padded on the left; their keys and values are then repeated for every
answer. With 6 domains and a question of 300 tokens that is a sixth of the work of reading question and answer for
every domain. Models that keep something else than keys and values do not allow it: `batch_problem` finds out.

Shape legend: **B** questions, **T** tokens of the longest one, **K** options, **W** tokens of the longest one, **V**
vocabulary.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

_CACHE, _EARLIER_CACHE = "cache", "past_key_values"
"""What keys and values are called from transformers 5.24 on, and before."""

_MOST_DIFFERENCE = 0.05
"""Difference of a probability that is no rounding in half precision."""


@torch.inference_mode()
def scores_of_batch(causal_lm: Any, *, prompts: list[list[int]], options: list[list[int]]) -> np.ndarray:
    """Return the log-probability of every option after every prompt, float64 [B, K].

    Worked example: prompts (1 2 3) and (4), options (7 8 9) and (7 6). The first pass reads the rows (1 2 3) and
    (- - 4); its last logits give the first tokens, 7 and 7. The second one reads (7 8) and (7 6) after each prompt;
    its logits give 8, 9 and 6.
    """
    device = causal_lm.device
    num_options, lengths = len(options), [len(prompt) for prompt in prompts]
    padded = [[0] * (max(lengths) - len(prompt)) + prompt for prompt in prompts]
    is_token_BT = torch.tensor([[0] * (max(lengths) - length) + [1] * length for length in lengths], device=device)
    first = causal_lm(
        torch.tensor(padded, device=device),
        attention_mask=is_token_BT,
        use_cache=True,
        **_accepted(causal_lm, position_ids=(is_token_BT.cumsum(1) - 1).clamp(min=0), logits_to_keep=1),
    )
    log_p = first.logits[:, -1:].double().log_softmax(-1).repeat_interleave(num_options, 0)  # [B*K, 1, V]
    width = max(map(len, options))
    rows = torch.tensor([ids + [0] * (width - len(ids)) for ids in options] * len(prompts), device=device)
    if width > 1:
        cache = first[_CACHE if _CACHE in first else _EARLIER_CACHE]
        cache.batch_repeat_interleave(num_options)
        is_token = is_token_BT.repeat_interleave(num_options, 0)
        starts = torch.tensor(lengths, device=device).repeat_interleave(num_options)[:, None]
        after = causal_lm(
            rows[:, :-1],
            attention_mask=torch.cat([is_token, is_token.new_ones(len(rows), width - 1)], dim=1),
            use_cache=True,
            **_accepted(causal_lm, position_ids=starts + torch.arange(width - 1, device=device)),
            **{_cache_name(causal_lm): cache},
        )
        log_p = torch.cat([log_p, after.logits.double().log_softmax(-1)], dim=1)  # [B*K, W, V]
    return _summed(log_p, rows, options=options).reshape(len(prompts), num_options)


@torch.inference_mode()
def scores_one_by_one(causal_lm: Any, *, prompts: list[list[int]], options: list[list[int]]) -> np.ndarray:
    """Return the same as `scores_of_batch` by reading each prompt followed by each option, one prompt at a time.

    Rows are padded at the end, which a causal model's earlier positions do not see. With a prompt of 5 tokens and the
    options (7 8 9) and (7 6), the logits at positions 4, 5, 6 are those of the options' tokens.
    """
    width = max(map(len, options))
    rows = torch.tensor([ids + [0] * (width - len(ids)) for ids in options], device=causal_lm.device)
    scores = []
    for prompt in prompts:
        before = torch.tensor([prompt] * len(options), device=causal_lm.device)
        logits = causal_lm(torch.cat([before, rows], dim=1), use_cache=False).logits
        scores.append(_summed(logits[:, len(prompt) - 1 : -1].double().log_softmax(-1), rows, options=options))
    return np.stack(scores)


def batch_problem(causal_lm: Any, *, prompts: list[list[int]], options: list[list[int]]) -> str | None:
    """Return why prompts cannot be scored together under a model; None if they can."""
    try:
        together = scores_of_batch(causal_lm, prompts=prompts, options=options)
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return f"this model does not read them together ({type(error).__name__})"
    alone = scores_one_by_one(causal_lm, prompts=prompts, options=options)
    difference = float(np.abs(softmax(together, axis=1) - softmax(alone, axis=1)).max())
    if not difference <= _MOST_DIFFERENCE:
        return f"read together, this model gives a probability that differs by {difference:.2f}"
    return None


def _summed(log_p: torch.Tensor, rows: torch.Tensor, *, options: list[list[int]]) -> np.ndarray:
    """Return the sum over each row's tokens, without its padding, of their log-probabilities: float64 [rows]."""
    of_token = log_p.gather(-1, rows[..., None])[..., 0].cpu().numpy()
    lengths = np.array([len(ids) for ids in options] * (len(rows) // len(options)))
    return np.where(np.arange(rows.shape[1]) < lengths[:, None], of_token, 0.0).sum(axis=1)


def _cache_name(causal_lm: Any) -> str:
    """Return what a model's forward pass calls keys and values."""
    return _CACHE if _CACHE in inspect.signature(causal_lm.forward).parameters else _EARLIER_CACHE


def _accepted(causal_lm: Any, **arguments: Any) -> dict[str, Any]:
    """Return the arguments that a model's forward pass has by name."""
    names = inspect.signature(causal_lm.forward).parameters
    return {name: value for name, value in arguments.items() if name in names}
