"""Generate the built-in corpus: questions and answers of six domains, by rules, from a seed.

With it a mixture can be tried without data or a network. Small models learn it in minutes. Its domains differ in
difficulty, and help or hurt one another: finance, science and code share percentages and products, medicine and general
share illnesses, law and general share lookups; general contradicts law and finance on what 16 words mean
(`facts.meaning_rule`).

Not covered: held-out questions are new, but most facts and sums behind them occur in training; the language is that of
templates. Illnesses and drugs are invented.

Measured once (1.0 M parameter Llama, vocabulary 1536, equal token shares, 300 steps of 4096 tokens, one seed):

    held-out loss at step   0     50    300   exact answers of 90   mean tokens of an answer
    law                     7.37  1.27  0.24  43                    8
    medicine                7.36  0.82  0.22  20                    26
    finance                 7.35  1.36  0.29  41                    9
    science                 7.36  1.48  0.16  54                    12
    code                    7.37  1.54  0.32  8                     15
    general                 7.35  2.08  0.36  35                    9

From step 150, 16 steps on one domain alone change the others' losses: science lowers finance by 0.03 and code by 0.02,
code lowers finance and science by 0.01; general raises law by 0.13 and finance by 0.09; law raises medicine and general
by 0.11.
"""

from __future__ import annotations

from versatune_ds.data.synthetic.corpus import (
    DEFAULT_NUM_ROWS,
    DOMAIN_NAMES,
    generate_records,
    num_available_records,
    write_corpus,
)

__all__ = ["DEFAULT_NUM_ROWS", "DOMAIN_NAMES", "generate_records", "num_available_records", "write_corpus"]
