"""Get a recipe's tokenizer and its tokenised data, once for all processes.

The one idea: rank 0 does the work and leaves it on disk; the others open what lies there.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from versatune_ds.config import RunConfig
from versatune_ds.data.prepare import PreparedData, iter_texts, prepare_domains
from versatune_ds.data.tokenize import load_tokenizer, train_tokenizer
from versatune_ds.distributed import World, run_on_rank_zero

logger = logging.getLogger(__name__)


def prepare_on_rank_zero(config: RunConfig, world: World) -> tuple[Any, PreparedData]:
    """Return tokenizer and data on every rank; the work is done by rank 0 while the others wait.

    Communication: one broadcast when rank 0 is done.
    """
    run_on_rank_zero(lambda: _prepare_into_run(config), world)
    tokenizer = load_tokenizer(config.run_dir / "tokenizer", trust_remote_code=config.model.trust_remote_code)
    return tokenizer, _prepare(config, tokenizer)


def _prepare_into_run(config: RunConfig) -> None:
    """Prepare everything and keep the tokenizer in the run's folder."""
    tokenizer = load_or_train_tokenizer(config)
    tokenizer.save_pretrained(config.run_dir / "tokenizer")
    logger.info("data:\n%s", _prepare(config, tokenizer).table)


def prepare_recipe(config: RunConfig) -> PreparedData:
    """Tokenise a recipe's data outside a run; logs what is in them.

    Raises:
        ValueError: If a file, a row or the tokenizer is not as expected.
    """
    data = _prepare(config, load_or_train_tokenizer(config))
    logger.info("data:\n%s", data.table)
    return data


def _prepare(config: RunConfig, tokenizer: Any) -> PreparedData:
    return prepare_domains(config.data, tokenizer=tokenizer, cache_dir=cache_folder(config), seed=config.run.seed)


def cache_folder(config: RunConfig) -> Path:
    """Return the folder of prepared shards and trained tokenizers."""
    return config.data.cache_dir or config.run.output_dir / ".cache"


def load_or_train_tokenizer(config: RunConfig) -> Any:
    """Return the recipe's tokenizer, the model's, or one trained on the training data and kept in the cache."""
    name = config.model.tokenizer or config.model.name_or_path
    if name is not None:
        return load_tokenizer(name, trust_remote_code=config.model.trust_remote_code)
    vocab_size = config.model.tokenizer_vocab_size
    key = f"{config.data.model_dump_json(include={'folder', 'domains', 'synthetic'})} {vocab_size}"
    folder = cache_folder(config) / f"tokenizer-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}"
    if (folder / "tokenizer.json").is_file():
        return load_tokenizer(folder)
    logger.info("training a tokenizer of %d tokens on the training data", vocab_size)
    texts = iter_texts(config.data, cache_dir=cache_folder(config))
    return train_tokenizer(texts, vocab_size=vocab_size, folder=folder)
