"""Combine what the single-domain runs did to all domains: transfer.json, beside reference.json, and its table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.mixture.planning.transfer_table import MixedRun, Source, TransferTable
from versatune_ds.reference.file import Result
from versatune_ds.text_table import text_table

_NOISE = 2.0
"""Standard errors within which a change may be chance."""
_EQUAL = 1e-3
"""Difference of two shares that counts as none."""


def transfer_path(reference: Path) -> Path:
    """Return where the table is written, given the reference file.

    Example: runs/x-reference.json gives runs/x-transfer.json, and losses.json gives losses-transfer.json.
    """
    before, word, after = reference.stem.rpartition("reference")
    stem = f"{before}transfer{after}" if word else f"{reference.stem}-transfer"
    return reference.with_name(stem + reference.suffix)


def without_transfer(results: Sequence[Result], *, held_out: Mapping[str, str]) -> list[str]:
    """Return the domains whose run did not measure all domains on the present held-out rows.

    Args:
        results: Of the single-domain runs.
        held_out: What `held_out_digests` returns now.
    """
    return [result["domain"] for result in results if (result.get("transfer") or {}).get("held_out") != dict(held_out)]


def transfer_table(
    results: Sequence[Result],
    *,
    domain_set: DomainSet,
    unmeasured: Sequence[str],
    provenance: Mapping[str, Any],
    models: Mapping[str, Path | None],
    folder: Path,
    mixed: Mapping[str, Any] | None = None,
) -> TransferTable:
    """Return the table of all single-domain runs.

    The base model's losses are those of the first run; every run's changes are against its own measurement of them.

    Args:
        results: At least one, each with its `transfer`, in the order of the domains.
        domain_set: All domains.
        unmeasured: Domains without held-out rows.
        provenance: Entries of the file on its origin.
        models: Folder of each result's kept weights; None where there is none.
        folder: Folder of the file, to which those of the weights are relative.
        mixed: Result of the run on equal shares, with its `transfer`; None where there is none.
    """
    base = results[0]["transfer"]["base"]
    return TransferTable(
        domain_set=domain_set,
        base_losses_K=_columns(base["losses"], domain_set),
        base_stderrs_K=_columns(base["stderrs"], domain_set),
        sources={
            result["domain"]: _source(result["transfer"], domain_set, models[result["domain"]], folder=folder)
            for result in results
        },
        mixed=() if mixed is None else (_mixed_run(mixed, domain_set),),
        unmeasured=tuple(unmeasured),
        provenance=provenance,
    )


def _mixed_run(result: Mapping[str, Any], domain_set: DomainSet) -> MixedRun:
    weights_K = np.array([result["weights"][name] for name in domain_set])
    return MixedRun(weights_K=weights_K, **_measurements(result["transfer"], domain_set))


def _source(transfer: Mapping[str, Any], domain_set: DomainSet, model: Path | None, *, folder: Path) -> Source:
    return Source(
        **_measurements(transfer, domain_set),
        num_examples=transfer["rows"],
        tokens_per_epoch=transfer["tokens_per_epoch"],
        model=None if model is None else Path(os.path.relpath(model, folder)).as_posix(),
    )


def _measurements(transfer: Mapping[str, Any], domain_set: DomainSet) -> dict[str, np.ndarray]:
    """Return the arrays of a `MeasuredRun`."""
    return {
        "steps_S": np.array(transfer["steps"], dtype=np.int64),
        "tokens_S": np.array(transfer["tokens"], dtype=np.int64),
        "losses_SK": _columns(transfer["losses"], domain_set),
        "changes_SK": _columns(transfer["changes"], domain_set),
        "change_stderrs_SK": _columns(transfer["change_stderrs"], domain_set),
    }


def _columns(by_domain: Mapping[str, Any], domain_set: DomainSet) -> np.ndarray:
    """Return numbers, or lists of S numbers, as [K] or [S,K]; NaN for null and for an unmeasured domain."""
    unknown = np.full_like(np.array(next(iter(by_domain.values())), dtype=np.float64), np.nan)
    columns = [np.array(by_domain.get(name, unknown), dtype=np.float64) for name in domain_set]
    return np.stack(columns, axis=-1)


def transfer_text(table: TransferTable) -> str:
    """Return what training on each domain alone did to each loss, in percent of the base model's.

    All rows are of the last step that every run on one domain reached.
    """
    num_steps, changes_KK, stderrs_KK = table.common_changes()
    measured = [(k, name) for k, name in enumerate(table.domain_set) if name not in table.unmeasured]
    rows = []
    for name in table.sources:
        i = table.domain_set.id_of(name)
        rows.append((name, *(_change_cell(changes_KK[i, k], stderrs_KK[i, k]) for k, _ in measured)))
    for run in table.mixed:
        s = run.index_at(num_steps)
        changes_K, stderrs_K = (values[s] / table.base_losses_K for values in (run.changes_SK, run.change_stderrs_SK))
        label = "equal shares" if np.ptp(run.weights_K) < _EQUAL else "a mixture"
        rows.append((label, *(_change_cell(changes_K[k], stderrs_K[k]) for k, _ in measured)))
    title = f"change of each domain's loss in percent, after at most {num_steps:,} steps on one domain alone"
    legend = "! rises by more than two standard errors; in brackets: within two standard errors of no change"
    return f"{title}\n{text_table(('trained on', *(name for _, name in measured)), rows)}\n{legend}"


def _change_cell(change: float, stderr: float) -> str:
    if not np.isfinite(change):
        return "-"
    text = f"{100 * change:+.1f}"
    if abs(change) <= _NOISE * stderr:
        return f"({text})"
    return f"{text}!" if change > 0 else f"{text} "
