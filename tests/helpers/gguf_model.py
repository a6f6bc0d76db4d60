"""Write a tiny Llama with a tokenizer as a GGUF file; its weights are random and a function of the seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

HIDDEN, INTERMEDIATE, LAYERS, HEADS = 32, 64, 2, 4


def write_gguf(
    path: Path, tokenizer, *, weights: str = "Q8_0", architecture: str = "llama", kind: str = "model", omit: str = ""
) -> Path:
    """Write a model with the vocabulary of a byte-level tokenizer; None leaves the tokenizer out."""
    import gguf

    rng = np.random.default_rng(0)
    vocabulary = 320 if tokenizer is None else len(tokenizer)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(kind)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer)
    quantised = gguf.GGMLQuantizationType[weights]
    shapes = {"token_embd.weight": (vocabulary, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        shapes |= {f"blk.{i}.attn_{name}.weight": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "output")}
        shapes |= {f"blk.{i}.{name}_norm.weight": (HIDDEN,) for name in ("attn", "ffn")}
        shapes |= {f"blk.{i}.ffn_{name}.weight": (INTERMEDIATE, HIDDEN) for name in ("gate", "up")}
        shapes[f"blk.{i}.ffn_down.weight"] = (HIDDEN, INTERMEDIATE)
    for name, shape in shapes.items():
        values = rng.normal(0, 0.3, shape).astype(np.float32)
        if name == omit:
            continue
        if len(shape) == 1:
            writer.add_tensor(name, values + 1)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer, tokenizer) -> None:
    """Add a byte-level BPE as llama.cpp's converter does for GPT-2's."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
