"""Save a base model with random weights and a tokenizer of the built-in corpus, and make the recipe to detect on it."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_run import tiny_config

from versatune_ds.config import RunConfig
from versatune_ds.model.build import build_causal_lm
from versatune_ds.training.prepared_data import load_or_train_tokenizer


def save_base_model(folder: Path) -> Path:
    """Save a tiny Llama and its tokenizer; with random weights it generates noise and rarely ends a sequence."""
    config = tiny_config(folder)
    tokenizer = load_or_train_tokenizer(config)
    torch.manual_seed(0)
    special_ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = build_causal_lm(config.model, precision="fp32", vocab_size=len(tokenizer), special_ids=special_ids)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return folder / "base"


def detect_config(output_dir: Path, base: Path, *overrides: str) -> RunConfig:
    """Return a recipe that draws 12 short sequences in batches of 4 from a saved model."""
    return tiny_config(
        output_dir,
        "model.from_config=null",
        f"model.name_or_path={base}",
        "detect.num_sequences=12",
        "detect.rounds=3",
        "detect.tol=0",
        "detect.method=generation",
        "detect.rows_per_domain=40",
        "detect.sampling.max_new_tokens=8",
        "detect.sampling.sequences_per_batch=4",
        *overrides,
    )
