"""Tiny tokenizers with the special tokens of known model families, and their small chat templates."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATES = Path(__file__).parents[1] / "templates"
_IM = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Family:
    """The special tokens of a model family."""

    start: str | None
    end: str
    """The tokenizer's eos_token."""
    others: tuple[str, ...] = ()
    adds_start: bool = False
    """Whether the tokenizer puts its start token before every text, as those of Llama 3, Gemma and Mistral do."""


FAMILIES = {
    "llama3": Family("<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>"), adds_start=True),
    "qwen2_5": Family(None, "<|im_end|>", (*_IM, "<|endoftext|>")),
    "qwen3": Family(None, "<|im_end|>", (*_IM, "<|endoftext|>")),
    "gemma2": Family("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"), adds_start=True),
    "gemma3": Family("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"), adds_start=True),
    "mistral": Family("<s>", "</s>", adds_start=True),
    "mistral_with_space": Family("<s>", "</s>", adds_start=True),
    "deepseek_r1": Family(
        "<|begin_of_sentence|>", "<|end_of_sentence|>", ("<|User|>", "<|Assistant|>"), adds_start=True
    ),
    "phi4": Family("<|endoftext|>", "<|im_end|>", (*_IM, "<|im_sep|>")),
    "smollm2": Family("<|im_start|>", "<|im_end|>", ("<|endoftext|>",)),
}


def template_of(name: str) -> str:
    """Return the text of a family's small template."""
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")


@functools.cache
def tokenizer_of(name: str) -> Any:
    """Return a byte-level tokenizer with a few merges, and the special tokens and template of a family."""
    family = FAMILIES[name]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = list(dict.fromkeys(filter(None, (family.start, family.end, *family.others))))
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(["the answer is seven", " the question is\n\nwhat", " user assistant"] * 9, trainer)
    if family.adds_start:
        start = (family.start, backend.token_to_id(family.start))
        backend.post_processor = processors.TemplateProcessing(single=f"{family.start} $A", special_tokens=[start])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=family.start,
        eos_token=family.end,
        pad_token=family.end,
        clean_up_tokenization_spaces=False,
        chat_template=template_of(name),
    )
