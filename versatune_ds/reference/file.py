"""Combine the results of single domains: reference.json, a table, and notes on how far to trust it.

The file records how every loss was measured, so that a run can refuse one that is not comparable.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from versatune_ds.config import RunConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.reference import References, fatal_against_start, memorisation_warnings, weak_against_start
from versatune_ds.text_table import number_cell, text_table

Result = Mapping[str, Any]

_COLUMNS = {
    "losses": "loss",
    "stderrs": "stderr",
    "train_losses": "train_loss",
    "base_losses": "base_loss",
    "steps": "step",
    "num_loss_tokens": "num_loss_tokens",
}
"""Entry of reference.json to the key of a domain's result; unknown values are omitted."""


def reference_content(
    results: Sequence[Result],
    *,
    config: RunConfig,
    digests: Mapping[str, str],
    how: str,
    unmeasured: Sequence[str] = (),
) -> Result:
    """Return the content of a reference.json.

    Args:
        results: One result a domain, as `result_of_run` returns them, in the order of the domains.
        config: The recipe of the single-domain runs.
        digests: What `loss_digests` returned for all domains.
        how: How the losses were measured, in a few words.
        unmeasured: Domains without held-out rows; their loss is null.
    """
    columns = {
        name: {result["domain"]: result[key] for result in results if result.get(key) is not None}
        for name, key in _COLUMNS.items()
    }
    train_losses = columns["train_losses"]
    unknown = dict.fromkeys(unmeasured)
    return {
        **columns,
        "losses": {**columns["losses"], **unknown},
        "gaps": {name: columns["losses"][name] - loss for name, loss in train_losses.items()},
        "measured_on": "held-out",
        "how": how,
        **provenance(config, digests=digests),
    }


def provenance(config: RunConfig, *, digests: Mapping[str, str]) -> Result:
    """Return what references and transfer depend on, with the date.

    Args:
        config: The recipe of the single-domain runs.
        digests: What `loss_digests` returned for all domains.
    """
    return {
        "digests": dict(digests),
        "model": config.model.model_dump(mode="json", exclude_none=True),
        "settings": {
            "steps": config.train.steps,
            "evaluate_every": config.mixture.update_every,
            "patience": config.reference.patience,
            "learning_rate": config.train.learning_rate,
            "rows_per_batch": config.train.rows_per_batch,
            "row_tokens": config.data.row_tokens,
            "examples_per_domain": config.validation.max_examples_per_domain,
        },
        "seed": config.run.seed,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def reference_table(results: Sequence[Result]) -> str:
    """Return one line a domain: its first loss, its best one, and the gap to its training loss."""
    header = ("domain", "base loss", "reference", "+-", "potential", "train loss", "gap", "step", "of")
    legend = (
        "held-out losses in nats per loss token; reference: the lowest, after step of the steps trained; potential: "
        "what is left\nto learn of the base loss; gap: reference minus training loss, large where rows were memorised"
    )
    return f"{text_table(header, [_cells(result) for result in results])}\n{legend}"


def _cells(result: Result) -> tuple[str, ...]:
    base, loss, train = result.get("base_loss"), result["loss"], result.get("train_loss")
    return (
        result["domain"],
        number_cell(base, ".4f"),
        number_cell(loss, ".4f"),
        number_cell(result["stderr"], ".4f"),
        number_cell(None if base is None else max(1.0 - loss / base, 0.0)),
        number_cell(train, ".4f"),
        number_cell(None if train is None else loss - train, ".4f"),
        str(result.get("step", "-")),
        str(result.get("steps_done", "-")),
    )


def reference_notes(results: Sequence[Result], *, most_steps: int, origin: str) -> list[str]:
    """Return what to look at before training with these references, each with what to do about it."""
    names = DomainSet(tuple(result["domain"] for result in results))
    references = References(
        losses_K=np.array([result["loss"] for result in results]),
        origin=origin,
        provenance={"train_losses": {r["domain"]: r["train_loss"] for r in results if r.get("train_loss") is not None}},
    )
    notes = memorisation_warnings(references, domain_set=names)
    if all(result.get("base_loss") is not None for result in results):
        start_K = np.array([result["base_loss"] for result in results])
        fatal = fatal_against_start(references, start_K=start_K, domain_set=names)
        notes += [fatal] if fatal else weak_against_start(references, start_K=start_K, domain_set=names)
    notes += [
        f"{result['domain']}: its loss never fell below the base model's; lower reference.learning_rate"
        for result in results
        if result.get("step") == 0
    ]
    return notes + [
        f"{result['domain']}: its loss was still falling at the last step; a larger reference.steps gives a lower "
        "reference"
        for result in results
        if result.get("step") == most_steps
    ]
