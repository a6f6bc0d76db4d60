"""Tiny models and adapters in the form in which `versatune reference` keeps them, and rows to run them on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tiny_models import A, B, C, build_arguments, pack

from versatune_ds.data.batch import Batch
from versatune_ds.model.build import build_causal_lm

ROW_TOKENS = 24


class TwoExamplesADomain:
    """Held-out rows of two domains, two examples each: the part of a ValidationLoader that measuring needs."""

    num_micro_batches = 2
    num_examples = 4
    example_domain_ids = np.array([0, 0, 1, 1])
    example_num_loss_tokens = np.array([len(A) - 1, len(B) - 1, len(C) - 1, len(A) - 1])

    def __iter__(self):
        for first, examples in ((0, (A, B)), (2, (C, A[::-1]))):
            ids = np.repeat([first, first + 1], [len(tokens) for tokens in examples])
            ids = np.concatenate([ids, np.full(ROW_TOKENS - len(ids), -1)])
            yield batch_of(examples), torch.from_numpy(ids)[None]


def batch_of(examples) -> Batch:
    """Return a batch of one row."""
    row = pack(examples, row_tokens=ROW_TOKENS)
    valid = torch.nonzero(row["labels"].reshape(-1) != -100).reshape(-1)
    starts = torch.nonzero(row["positions"].reshape(-1) == 0).reshape(-1)
    bounds = torch.cat([starts, torch.tensor([ROW_TOKENS])])
    return Batch(
        **row,
        segment_ids=torch.zeros_like(row["labels"]),
        valid_index=torch.cat([valid, torch.full((128 - len(valid),), ROW_TOKENS - 1)]),
        num_valid=len(valid),
        cu_seqlens=bounds.int(),
        longest_segment=int(bounds.diff().max()),
        num_loss_tokens_global=len(valid),
    )


def tiny_causal_lm(*, seed: int = 0, **keys):
    """Return a tiny Llama with tied embeddings and weights of a seed."""
    arguments = build_arguments("llama", tie_word_embeddings=True, **keys)
    torch.manual_seed(seed)
    return build_causal_lm(**arguments).eval()


def keep_full(causal_lm, folder: Path) -> Path:
    """Write a model's weights in two files, tied weights once."""
    folder.mkdir(parents=True)
    weights = dict(causal_lm.named_parameters())
    names = sorted(weights)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        tensors = {name: weights[name].detach().clone() for name in part}
        save_file(tensors, folder / f"model-0000{number}-of-00002.safetensors")
    return folder


def keep_adapter(folder: Path, *, layer: str, down: torch.Tensor, up: torch.Tensor, **config) -> Path:
    """Write one LoRA adapter in peft's format."""
    folder.mkdir(parents=True)
    values = {"r": down.shape[0], "lora_alpha": 2 * down.shape[0], "fan_in_fan_out": False, **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    prefix = f"base_model.model.{layer}.lora_"
    tensors = {f"{prefix}A.weight": down, f"{prefix}B.weight": up}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
