"""Name what two losses must share before they can be compared.

The one idea: a loss per token means something only together with the tokens, the loss mask and the rows it was measured
on; each of them is one short digest, so that a reference file can be told from another data set's.
"""

from __future__ import annotations

from typing import Any

from versatune_ds.config import RunConfig
from versatune_ds.data.encoding.templates import choose_template, template_digest
from versatune_ds.data.encoding.tokenizer import tokenizer_digest
from versatune_ds.data.manifest import digest_of_texts
from versatune_ds.data.prepare.domains import PreparedData


def loss_digests(config: RunConfig, tokenizer: Any, data: PreparedData) -> dict[str, str]:
    """Return digests of tokenizer, template, loss mask and held-out rows; the order of the domains does not count."""
    held_out = sorted(f"{shards.name} {shards.digest}" for shards in data.valid)
    return {
        "tokenizer": tokenizer_digest(tokenizer),
        "template": template_digest(choose_template(tokenizer, path=config.data.chat_template)),
        "mask": config.data.loss_on,
        "held-out split": digest_of_texts(held_out),
    }
