"""Make tokenizers, templates and small files of chat records for the tests of `data/`."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.data.encoding.encode import encode_rendered
from versatune_ds.data.encoding.loss_spans import RenderedExample
from versatune_ds.data.encoding.tokenizer import train_tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
COUNTING = (
    "{{ messages | length }}{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@functools.cache
def tiny_tokenizer() -> Any:
    """Return a byte-level BPE tokenizer with the built-in template, trained on a few words."""
    folder = Path(tempfile.mkdtemp()) / "tokenizer"
    words = ["the answer is seven", "what is the colour of the sky", "a short reply", "contract clause court"]
    return train_tokenizer(words * 20, vocab_size=400, folder=folder)


def encode_text(text: str, *, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of a plain text with the end-of-text token, and its loss mask."""
    (encoded,) = encode_rendered([RenderedExample(text=text, loss_spans=None, is_plain=True)], tokenizer=tokenizer)
    return encoded.input_ids, encoded.is_loss


def chat_row(question: str, answer: str) -> dict[str, Any]:
    """Return one record of chat messages."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def chat_rows(num_rows: int, *, topic: str = "sum") -> list[dict[str, Any]]:
    """Return different records about a topic."""
    return [chat_row(f"{topic}: what is {i} plus {i}?", f"It is {2 * i}.") for i in range(num_rows)]


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """Write records as JSON Lines (texts unchanged) and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def write_domains(folder: Path, *, num_rows: int = 60, domains: Iterable[str] = ("law", "code")) -> Path:
    """Write train/ and valid/ files of some domains, and return the folder."""
    for name in domains:
        write_jsonl(folder / "train" / f"{name}.jsonl", chat_rows(num_rows, topic=name))
        write_jsonl(folder / "valid" / f"{name}.jsonl", chat_rows(5, topic=f"held-out {name}"))
    return folder
