"""Loss signals of your own: what decides the mixture in the place of the held-out loss.

Run one from the folder above this one:

    versatune train recipes/quickstart.yaml mixture.signal=examples.own_signal:scaled_loss run.name=scaled
    CHOICES=choices versatune train recipes/quickstart.yaml mixture.signal=examples.own_signal:wrong_choices
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from versatune_ds import DomainLosses, SignalContext

SCALE = {"law": 2.0, "medicine": 1.5}
"""What a nat of these domains counts; 1 for the others."""


def scaled_loss(context: SignalContext) -> DomainLosses:
    """Return the held-out losses just measured times a factor for each domain. It costs nothing more."""

    def scaled(numbers: Mapping[str, float | None]) -> dict[str, float | None]:
        return {name: None if x is None else SCALE.get(name, 1.0) * x for name, x in numbers.items()}

    return DomainLosses(mean=scaled(context.held_out.mean), stderr=scaled(context.held_out.stderr or {}))


def wrong_choices(context: SignalContext) -> DomainLosses:
    """Return the share of multiple-choice questions answered wrongly, from 0 to 1, with its standard error.

    CHOICES/DOMAIN.jsonl has lines {"question": ..., "choices": [...], "answer": index from 0}; a domain without a file
    is not measured. Ranks share the questions, and all make the same number of forward passes, as ZeRO-3 needs.
    """
    mean: dict[str, float | None] = {}
    stderr: dict[str, float | None] = {}
    for name in context.domain_names:
        questions = _questions(name)
        num = len(questions)
        wrong = 0.0
        for place in range(context.rank, -(-num // context.world_size) * context.world_size, context.world_size):
            is_wrong = _chosen(context, questions[place % num]) != questions[place % num]["answer"]
            wrong += is_wrong and place < num  # what is beyond the end only keeps the ranks together
        share = float(context.sum_over_ranks([wrong])[0]) / max(num, 1)
        mean[name] = share if num else None
        stderr[name] = float(np.sqrt(share * (1 - share) / num)) if num else None
    return DomainLosses(mean=mean, stderr=stderr)


def _questions(name: str) -> list[dict[str, Any]]:
    """Return the questions of a domain."""
    path = Path(os.environ.get("CHOICES", "choices")) / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _chosen(context: SignalContext, question: dict[str, Any]) -> int:
    """Return which choice the model gives the highest mean log-probability per token."""
    scores = []
    for choice in question["choices"]:
        turns = [{"role": "user", "content": question["question"]}, {"role": "assistant", "content": choice}]
        start = context.tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=False)
        whole = context.tokenizer.apply_chat_template(turns, tokenize=False)
        num_start = len(context.tokenizer(start, add_special_tokens=False)["input_ids"])
        ids = torch.tensor([context.tokenizer(whole, add_special_tokens=False)["input_ids"]], device=context.device)
        log_probs_TV = context.model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        scores.append(float(log_probs_TV.gather(1, ids[0, 1:, None])[num_start - 1 :].mean()))
    return int(np.argmax(scores))
