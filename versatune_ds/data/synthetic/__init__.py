"""Make the built-in corpus: six domains of question/answer rows, by rules, from a seed."""

from __future__ import annotations

from versatune_ds.data.synthetic.corpus import DEFAULT_NUM_ROWS, write_corpus
from versatune_ds.data.synthetic.rows import DOMAIN_NAMES, generate_rows, num_available_rows

__all__ = ["DEFAULT_NUM_ROWS", "DOMAIN_NAMES", "generate_rows", "num_available_rows", "write_corpus"]
