"""The transfer table: held-out losses of all domains while the model trains on one domain alone.

`versatune reference` writes it as transfer.json, beside reference.json. A change of a loss is known far better than the
loss itself, because it is paired by example: both are measured on the same held-out examples. So changes have standard
errors of their own.

Shape legend: **K** domains, **S** measurements of one source, the first of them before its first step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from versatune_ds.domains import DomainSet

Run = TypeVar("Run", bound="MeasuredRun")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeasuredRun:
    """What a short run did to the held-out losses of all domains.

    NaN: a domain without held-out rows, or a loss that was not finite.
    """

    steps_S: np.ndarray
    """int64, optimizer steps done, rising from 0."""
    tokens_S: np.ndarray
    """int64, tokens trained on by then, padding not counted."""
    losses_SK: np.ndarray
    """float64, mean held-out loss in nats per loss token."""
    changes_SK: np.ndarray
    """float64, loss minus that of the base model, on the same examples; 0 at step 0."""
    change_stderrs_SK: np.ndarray
    """float64, standard error of the change, paired by example."""

    def index_at(self, step: int) -> int:
        """Return the index of the last measurement at or before a step."""
        return int(np.flatnonzero(self.steps_S <= step)[-1])

    def until(self: Run, fraction: float) -> Run:
        """Return the run as if it had been measured last after a fraction of its steps, above 0.

        Between two measurements values lie on a straight line. Example: changes 0 and -.4 after 0 and 10 steps, half:
        -.2 after 5 steps.
        """
        end = max(fraction * float(self.steps_S[-1]), 1.0)
        is_before_S = self.steps_S < end
        last = max(round(end), int(self.steps_S[is_before_S][-1]) + 1)

        def cut(values: np.ndarray) -> np.ndarray:
            columns = values.reshape(len(values), -1).T
            at_end = np.array([np.interp(end, self.steps_S, column) for column in columns])
            return np.concatenate([values[is_before_S], at_end.reshape(1, *values.shape[1:])])

        return replace(
            self,
            steps_S=np.append(self.steps_S[is_before_S], last),
            tokens_S=np.round(cut(self.tokens_S)).astype(np.int64),
            losses_SK=cut(self.losses_SK),
            changes_SK=cut(self.changes_SK),
            change_stderrs_SK=cut(self.change_stderrs_SK),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MixedRun(MeasuredRun):
    """What training on a fixed mixture did: it shows how far a prediction from single domains is off."""

    weights_K: np.ndarray
    """float64, the mixture: shares that sum to 1."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source(MeasuredRun):
    """What training on one domain alone did to the held-out losses of all domains."""

    num_examples: int
    """Training examples of the domain; `rows` in the file."""
    tokens_per_epoch: int
    """Tokens of one pass over them."""
    model: str | None = None
    """Folder of the weights after the last step, relative to the table's file; None if they were not kept."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TransferTable:
    """Held-out losses of the base model, and what each source did to them."""

    domain_set: DomainSet
    base_losses_K: np.ndarray
    """float64, held-out losses of the base model in nats per loss token; NaN for an unmeasured domain."""
    base_stderrs_K: np.ndarray
    """float64, their standard errors."""
    sources: Mapping[str, Source]
    """By domain trained on, in the order of the domains; not all domains need to be one."""
    mixed: tuple[MixedRun, ...] = ()
    """Runs on fixed mixtures, with the settings of the others."""
    unmeasured: tuple[str, ...] = ()
    """Domains without held-out rows, whose columns are NaN; each may still be a source."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """The file's other entries: `digests`, `model`, `settings`, `seed`, `date`."""

    def is_measured(self) -> np.ndarray:
        """Return which domains have held-out losses, bool [K]."""
        return np.array([name not in self.unmeasured for name in self.domain_set])

    def check_is_complete(self) -> None:
        """Check that every measured domain was trained on alone; raise ValueError in one line otherwise.

        A domain without held-out rows has no run of its own: what it does to the others counts as nothing.
        """
        missing = [name for name in self.domain_set if name not in self.sources and name not in self.unmeasured]
        if missing:
            raise ValueError(
                f"transfer table: no run on {', '.join(missing)} alone, so what its rows do to the others is unknown; "
                "measure it with versatune reference"
            )

    def until(self, fraction: float) -> TransferTable:
        """Return the table as if every run had been measured last after a fraction of its steps, above 0."""
        return replace(
            self,
            sources={name: source.until(fraction) for name, source in self.sources.items()},
            mixed=tuple(run.until(fraction) for run in self.mixed),
        )

    def common_changes(self) -> tuple[int, np.ndarray, np.ndarray]:
        """Return the last step that every source reached, and there the changes and their errors, each [K,K].

        Both are shares of the base model's losses. A source without a measurement at that step has its last one before
        it. Rows are domains trained on, NaN for one that is no source; columns are domains measured.
        """
        K = len(self.domain_set)
        last = min(int(source.steps_S[-1]) for source in self.sources.values())
        changes_KK, stderrs_KK = np.full((K, K), np.nan), np.full((K, K), np.nan)
        for name, source in self.sources.items():
            i, s = self.domain_set.id_of(name), source.index_at(last)
            changes_KK[i] = source.changes_SK[s] / self.base_losses_K
            stderrs_KK[i] = source.change_stderrs_SK[s] / self.base_losses_K
        return last, changes_KK, stderrs_KK

    def to_dict(self) -> dict[str, Any]:
        """Return the content of transfer.json; an unknown number is null, and an unmeasured domain has no entry."""
        return {
            "domains": list(self.domain_set),
            "base": {
                "losses": self._by_domain(self.base_losses_K),
                "stderrs": self._by_domain(self.base_stderrs_K),
            },
            "sources": {name: self._source_dict(source) for name, source in self.sources.items()},
            "mixed": [{"weights": self.domain_set.to_dict(run.weights_K), **self._run_dict(run)} for run in self.mixed],
            "unmeasured": list(self.unmeasured),
            **self.provenance,
        }

    def _run_dict(self, run: MeasuredRun) -> dict[str, Any]:
        return {
            "steps": run.steps_S.tolist(),
            "tokens": run.tokens_S.tolist(),
            "losses": self._by_domain(run.losses_SK),
            "changes": self._by_domain(run.changes_SK),
            "change_stderrs": self._by_domain(run.change_stderrs_SK),
        }

    def _source_dict(self, source: Source) -> dict[str, Any]:
        return {
            **self._run_dict(source),
            "model": source.model,
            "rows": source.num_examples,
            "tokens_per_epoch": source.tokens_per_epoch,
        }

    def _by_domain(self, values: np.ndarray) -> dict[str, Any]:
        """Return numbers [..., K] by measured domain, with null for an unknown one."""
        known = np.where(np.isfinite(values), values, None)
        names = [(k, name) for k, name in enumerate(self.domain_set) if name not in self.unmeasured]
        return {name: known[..., k].tolist() if values.ndim > 1 else known[k] for k, name in names}
