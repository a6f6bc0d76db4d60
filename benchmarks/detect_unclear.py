"""Test which texts a recipe's labeller calls unclear: made-up noise, and real texts that should not be.

    python benchmarks/detect_unclear.py RECIPE [LABELLED.jsonl ...] [--texts 100] [key=value ...]

Noise is made here, `--texts` of each kind, 8 to 800 characters long. The real texts of LABELLED files (lines of `text`)
show the false alarms, or, for a file of texts of no domain of the recipe, how many of those are recognised. Printed is
the share called unclear, and the mean probability of the likeliest domain of the others.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from versatune_ds.config import load_config
from versatune_ds.knowledge.label_texts import domain_set_of
from versatune_ds.knowledge.labeller import Labeller, make_labeller
from versatune_ds.training.prepared_data import cache_folder, load_or_train_tokenizer

WORDS = ("the", "of", "and", "to", "in", "is", "for", "that", "with", "on", "as", "are", "be", "this", "by", "from",
         "or", "at", "an", "it", "not", "have", "was", "can", "which")  # fmt: skip


def alphabet(first: int, last: int) -> str:
    """Return the letters of a range of Unicode."""
    return "".join(map(chr, range(first, last + 1)))


def letters_of(characters: str, *, spaces: float = 0.15) -> Callable[[random.Random, int], str]:
    """Return a function that writes words of random letters."""

    def write(rng: random.Random, length: int) -> str:
        return "".join(" " if rng.random() < spaces else rng.choice(characters) for _ in range(length))

    return write


def keyboard(rng: random.Random, length: int) -> str:
    """Return what fingers on neighbouring keys type."""
    rows, text = ("qwertyuiop", "asdfghjkl;", "zxcvbnm,./"), ""
    while len(text) < length:
        row, start = rng.choice(rows), rng.randrange(6)
        text += row[start : start + rng.randint(2, 5)] * rng.randint(1, 2) + (" " if rng.random() < 0.2 else "")
    return text[:length]


KINDS: dict[str, Callable[[random.Random, int], str]] = {
    "random characters": letters_of(alphabet(33, 126)),
    "random letters": letters_of("abcdefghijklmnopqrstuvwxyz"),
    "keyboard noise": keyboard,
    "base64": lambda rng, length: base64.b64encode(rng.randbytes(length)).decode()[:length],
    "hexadecimal": lambda rng, length: rng.randbytes(length).hex()[:length],
    "Cyrillic letters": letters_of(alphabet(0x430, 0x44F)),
    "Chinese characters": letters_of(alphabet(0x4E00, 0x57FF), spaces=0.02),
    "Arabic letters": letters_of(alphabet(0x621, 0x64A)),
    "one word repeated": lambda rng, length: (rng.choice(WORDS) + " ") * max(8, length // 4),
    "one phrase repeated": lambda rng, length: (" ".join(rng.sample(WORDS, 6)) + " ") * max(8, length // 30),
    "common words in any order": lambda rng, length: " ".join(rng.choice(WORDS) for _ in range(max(1, length // 4))),
}


def report(name: str, labeller: Labeller, texts: list[str]) -> None:
    """Print one row of the table."""
    labels_NK = labeller.label(texts)
    is_clear_N = labels_NK.sum(axis=1) > 0
    sure = f"{labels_NK[is_clear_N].max(axis=1).mean():.2f}" if is_clear_N.any() else "-"
    print(f"| {name} | {len(texts):,} | {np.mean(~is_clear_N):.3f} | {sure} |")


def main() -> None:
    """Print one row a kind of text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("others", nargs="*", help="LABELLED.jsonl files and key=value")
    arguments = parser.parse_args()
    overrides = [text for text in arguments.others if "=" in text]
    config = load_config(arguments.recipe, overrides)
    cache_dir = cache_folder(config)
    domain_set = domain_set_of(config.data, cache_dir=cache_dir)
    tokenizer = load_or_train_tokenizer(config)
    labeller = make_labeller(config, tokenizer=tokenizer, domain_set=domain_set, cache_dir=cache_dir, folder=cache_dir)
    print("| texts | number | called unclear | the others' likeliest domain |\n|---|---:|---:|---:|")
    rng = random.Random(0)
    for name, write in KINDS.items():
        report(name, labeller, [write(rng, rng.randint(8, 800)) for _ in range(arguments.texts)])
    for path in (Path(text) for text in arguments.others if "=" not in text):
        lines = path.read_text(encoding="utf-8").splitlines()
        report(path.name, labeller, [json.loads(line)["text"] for line in lines])


if __name__ == "__main__":
    main()
