"""Answer names of other fine-tuning tools with the key of a recipe here, and how the value converts.

Sources: transformers' `TrainingArguments` and `from_pretrained`, and TRL's `SFTConfig` and `ModelConfig`, which extend
them; LLaMA-Factory's arguments; Axolotl's config. `others` are names of PyTorch code, peft, DeepSpeed's JSON and the
command lines of many scripts. `tool_names/` has only what such a name is here; a misspelt name of ours is answered with
the nearest one (`error_messages.py`).
"""

from __future__ import annotations

import difflib

from versatune_ds.config.tool_names.data import DATA_NAMES
from versatune_ds.config.tool_names.known_name import KnownName
from versatune_ds.config.tool_names.model import MODEL_NAMES
from versatune_ds.config.tool_names.run import RUN_NAMES
from versatune_ds.config.tool_names.train import TRAIN_NAMES

KNOWN_NAMES = (*TRAIN_NAMES, *MODEL_NAMES, *DATA_NAMES, *RUN_NAMES)
"""Settings of other tools, in the order of a recipe's sections."""

_BY_NAME = {name: known for known in KNOWN_NAMES for name in known.names}


def known_name(dotted: str) -> KnownName | None:
    """Return what a foreign key is here: by its last parts, the longest that the table has; None if it has none.

    `-` counts as `_`, and letter case does not count: `Learning-Rate` is found.
    """
    parts = dotted.lower().replace("-", "_").split(".")
    suffixes = (".".join(parts[start:]) for start in range(len(parts)))
    return next((_BY_NAME[suffix] for suffix in suffixes if suffix in _BY_NAME), None)


def nearest_known_name(name: str) -> str | None:
    """Return the name of the table that a misspelt one is close to; None if there is none."""
    close = difflib.get_close_matches(name.lower().replace("-", "_"), _BY_NAME, n=1, cutoff=0.8)
    return close[0] if close else None
