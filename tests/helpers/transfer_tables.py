"""Small transfer tables with numbers that can be checked by hand."""

from __future__ import annotations

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.mixture.planning.transfer_table import Source, TransferTable

BASE_K = np.array([2.0, 3.0])


def two_domain_table() -> TransferTable:
    """Return the table of `law` and `code`: training on law lowers law by 1 nat and raises code by half a nat."""
    return TransferTable(
        domain_set=DomainSet(("law", "code")),
        base_losses_K=BASE_K,
        base_stderrs_K=np.array([0.2, 0.3]),
        sources={
            "law": source([[0.0, 0.0], [-0.75, 0.25], [-1.0, 0.5]], model="reference/tiny/law/model"),
            "code": source([[0.0, 0.0], [0.0625, -1.0], [0.125, -2.0]]),
        },
        provenance={"seed": 3, "digests": {"mask": "d"}},
    )


def source(changes_SK: list[list[float]], *, model: str | None = None) -> Source:
    """Return a source measured every 2 steps of 100 tokens, with errors of 0.1 nats."""
    changes = np.array(changes_SK)
    steps_S = 2 * np.arange(len(changes))
    return Source(
        steps_S=steps_S,
        tokens_S=100 * steps_S,
        losses_SK=BASE_K + changes,
        changes_SK=changes,
        change_stderrs_SK=np.where(steps_S[:, None] > 0, 0.1, 0.0) * np.ones_like(changes),
        num_examples=10,
        tokens_per_epoch=1000,
        model=model,
    )
