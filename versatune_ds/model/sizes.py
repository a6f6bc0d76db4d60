"""Read the sizes of a model from its config, whatever their names there, and check that its positions suffice.

transformers' configs have several names for one thing: `n_positions`, `n_ctx` and `max_position_embeddings`;
`num_experts`, `num_local_experts` and `n_routed_experts`. All code reads sizes through this module.

Positions restart with every packed example, so a row may be longer than the model's positions; an example may not.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from versatune_ds.log import SHARED

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """Sizes of a language model; None where its config does not state one."""

    vocabulary: int
    head_dim: int | None
    """Size of a head of queries and keys, where all layers have the same."""
    max_positions: int | None
    """Longest text that the model was made for, in tokens."""
    num_experts: int | None
    """Routed experts of a layer; None for a model without any."""
    num_experts_per_token: int | None
    softcap: float
    """Bound c on the logits, as c * tanh(logits / c); 0 for none."""


_SPELLINGS = {
    "vocabulary": ("vocab_size", "n_vocab"),
    "head_dim": ("head_dim", "d_kv", "attention_head_dim"),
    "max_positions": (
        "max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx", "seq_length",
    ),
    "num_experts": (
        "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts",
        "ffn_config.moe_num_experts",
    ),
    "num_experts_per_token": (
        "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_top_k", "moe_k", "top_k_experts",
        "ffn_config.moe_top_k",
    ),
    "softcap": ("final_logit_softcapping",),
}  # fmt: skip
"""Size -> its names, the most common first."""

_HIDDEN = ("hidden_size", "n_embd", "d_model", "dim", "model_dim")
_NUM_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")


def sizes_of(config: Any) -> ModelSizes:
    """Return the sizes in a transformers config; of a model of several parts, those of the text model."""
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    found = {size: _first_number(text, names) for size, names in _SPELLINGS.items()}
    hidden, num_heads = _first_number(text, _HIDDEN), _first_number(text, _NUM_HEADS)
    if found["head_dim"] is None and hidden and num_heads:
        found["head_dim"] = hidden // num_heads
    if not found["num_experts"] or found["num_experts"] < 2:  # some dense models of a family with experts state 0 or 1
        found["num_experts"] = found["num_experts_per_token"] = None
    return ModelSizes(**{**found, "softcap": float(found["softcap"] or 0.0)})


def _first_number(config: Any, names: tuple[str, ...]) -> Any:
    """Return the first of a config's values that is a number; dots separate the keys of nested parts."""
    for name in names:
        value = config
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else getattr(value, part, None)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return value
    return None


def num_learned_positions(causal_lm: Any) -> int | None:
    """Return the size of a model's table of positions; None where it computes them, as rotary models do.

    Beyond the table a forward pass ends with an index error, on a GPU with one that leaves the process unusable. The
    table is an embedding, or a constant as in GPT-J, with as many rows as the config states positions; OPT and similar
    models have two rows more than they can use.
    """
    sizes = sizes_of(causal_lm.config)
    if sizes.max_positions is None:
        return None
    of_tokens = causal_lm.get_input_embeddings()
    for name, module in causal_lm.named_modules():
        if isinstance(module, nn.Embedding) and module is not of_tokens and _is_of_positions(name):
            return min(sizes.max_positions, module.num_embeddings)
        for table in ("embed_positions", "pos_encoding"):
            rows = getattr(module, table, None)
            if isinstance(rows, torch.Tensor) and rows.dim() == 2 and rows.shape[0] == sizes.max_positions:
                return sizes.max_positions
    return None


def _is_of_positions(name: str) -> bool:
    """Return whether a module's name looks like that of a table of positions."""
    last = name.rpartition(".")[2].lower()
    return last == "wpe" or "position" in last or last in ("pos_emb", "pos_embed", "pos_embedding")


def check_positions(causal_lm: Any, *, longest: int, what: str = "the longest example") -> None:
    """Check that a model has enough positions; warn where a text is longer than it was made for.

    Args:
        causal_lm: A transformers model.
        longest: Tokens of the longest text that goes through it; `data.row_tokens` limits them.
        what: Description of that text.

    Raises:
        ValueError: If the model learned its positions and has fewer.
    """
    num_learned = num_learned_positions(causal_lm)
    if num_learned is not None and longest > num_learned:
        raise ValueError(
            f"data.row_tokens: {what} has {longest} tokens, but the model has learned {num_learned} positions "
            f"(max_position_embeddings or n_positions of its config); set data.row_tokens={num_learned} or less"
        )
    made_for = sizes_of(causal_lm.config).max_positions
    if num_learned is None and made_for is not None and longest > made_for:
        logger.warning(
            "data.row_tokens: %s has %d tokens, but the model was made for %d", what, longest, made_for, extra=SHARED
        )
