"""Make small models of every architecture from config, and packed rows of a few tokens for them."""

from __future__ import annotations

import torch

from versatune_ds.config import ModelConfig
from versatune_ds.model.build import build_causal_lm
from versatune_ds.model.domain_model import DomainModel

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
SPECIAL_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
VOCAB = 61


def build_arguments(model_type, *, attention="sdpa", **keys):
    torch.manual_seed(0)
    sizes = {key: value for key, value in {**SMALL, **keys}.items() if value is not None}
    config = ModelConfig(from_config={"model_type": model_type, **sizes}, attention=attention)
    return {"model": config, "precision": "fp32", "vocab_size": VOCAB, "special_ids": SPECIAL_IDS}


def make_model(model_type, **arguments):
    return DomainModel(build_causal_lm(**build_arguments(model_type, **arguments)), num_domains=2)


def pack(examples, *, row_tokens=24):
    """Return one row of examples (lists of token ids) in which all tokens bear loss; the padding is a segment."""
    ids, labels, positions = [], [], []
    for tokens in examples:
        ids += tokens
        labels += [*tokens[1:], -100]
        positions += range(len(tokens))
    rest = row_tokens - len(ids)
    tensors = ids + [0] * rest, labels + [-100] * rest, [*positions, *range(rest)]
    ids, labels, positions = (torch.tensor([values]) for values in tensors)
    return {"input_ids": ids, "labels": labels, "positions": positions, "domain_ids": torch.zeros_like(ids)}


def token_losses(model, examples):
    with torch.no_grad():
        return model.eval()(**pack(examples), per_token=True).token_losses_N


A, B, C = [5, 9, 13, 7, 22, 31], [40, 3, 8], [11, 12, 50, 51, 52, 53, 54]
