"""Show which experts of a mixture of experts serve which domain: a table, and a heat map of one layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from versatune_ds.mixture.expert_shares import (
    ExpertCounts,
    SpecificExpert,
    expert_shares,
    most_different_layer,
    specific_experts,
)
from versatune_ds.report.series import RunSeries

EXPERT_COLUMNS = ("domain", "tokens x experts", "most specific expert", "second", "third")

NO_SPECIFIC_EXPERT = "none: no lift above 1"
"""For a domain that uses no expert more than the mean of the domains does."""


def experts_view(series: RunSeries) -> dict[str, Any] | None:
    """Return what the page shows of a run's experts; None for a run without counts."""
    counts = ExpertCounts.from_dict(series.experts)
    if counts is None:
        return None
    layer = most_different_layer(counts.counts_KLX)
    shares_KX = expert_shares(counts.counts_KLX)[:, layer]
    num_layers, num_experts = counts.counts_KLX.shape[1:]
    return {
        "steps": f"steps {counts.first_step:,} to {counts.last_step:,}",
        "size": f"{num_experts} experts in each of {num_layers} layers",
        "equal": f"{1 / num_experts:.1%}",
        "columns": EXPERT_COLUMNS,
        "rows": expert_rows(counts),
        "layer": layer,
        "strips": [(name, strip(shares_X, largest=float(np.nanmax(shares_KX))), _range(shares_X))
                   for name, shares_X in zip(counts.domain_names, shares_KX, strict=True)
                   if np.isfinite(shares_X).all()],
    }  # fmt: skip


def expert_rows(counts: ExpertCounts) -> list[list[str]]:
    """Return one row of texts a domain, in the order of EXPERT_COLUMNS; a lift above 1 makes an expert specific."""
    rows = []
    found = specific_experts(counts.counts_KLX)
    for name, counts_LX, experts in zip(counts.domain_names, counts.counts_KLX, found, strict=True):
        texts = [_expert(expert) for expert in experts if round(expert.lift, 2) > 1]
        if experts and not texts:
            texts = [NO_SPECIFIC_EXPERT]
        rows.append([name, f"{int(counts_LX[0].sum()):,}", *texts, *[""] * (3 - len(texts))])
    return rows


def _expert(found: SpecificExpert) -> str:
    return f"layer {found.layer} expert {found.expert}: {found.share:.1%}, lift {found.lift:.2f}"


def strip(shares_X: Sequence[float], *, largest: float) -> Markup:
    """Return one row of a heat map: a rectangle an expert, the darker the larger its share; only numbers enter it."""
    cells = "".join(
        f'<rect x="{x}" width="1" height="1" fill-opacity="{share / largest:.3f}"><title>expert {x}: {share:.1%}'
        "</title></rect>"
        for x, share in enumerate(shares_X)
    )
    return Markup(
        f'<svg class="heat" viewBox="0 0 {len(shares_X)} 1" preserveAspectRatio="none" aria-hidden="true">{cells}</svg>'
    )


def _range(shares_X: Sequence[float]) -> str:
    """Describe a strip in words, for those who do not see it."""
    return f"expert {int(np.argmax(shares_X))} has the most, {max(shares_X):.1%}"
