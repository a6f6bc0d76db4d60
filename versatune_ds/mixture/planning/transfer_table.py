"""The transfer table: held-out losses of all domains while the model trains on one domain alone.

`versatune reference` writes it as transfer.json, beside reference.json. A change of a loss is known far better than the
loss itself, because it is paired by example: both are measured on the same held-out examples. So changes have standard
errors of their own.

Shape legend: **K** domains, **S** measurements of one source, the first of them before its first step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.json_file import is_finite_number, read_json_mapping

_TODO = "write it again with versatune reference"

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

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], *, place: str) -> TransferTable:
        """Return the table in the content of a transfer.json.

        Args:
            content: As `to_dict` returns it.
            place: The file; every message begins with it.

        Raises:
            ValueError: For a key that is missing or has another form; one line.
        """
        return _Reader(place).table(content)


def read_transfer(path: Path) -> TransferTable:
    """Return the table in a transfer.json.

    Raises:
        ValueError: If the file is missing, no JSON, or has other content; one line.
    """
    if path.is_dir():
        raise ValueError(f"{path}: a folder; expected the transfer.json that versatune reference writes")
    if not path.is_file():
        raise ValueError(f"{path}: no such file; run versatune reference with this recipe, which writes it there")
    return TransferTable.from_dict(read_json_mapping(path, todo=_TODO), place=str(path))


class _Reader:
    """Check the entries of a transfer.json, and turn them into arrays."""

    def __init__(self, place: str) -> None:
        self._place = place

    def table(self, content: Mapping[str, Any]) -> TransferTable:
        """Return the table; raise ValueError for the first entry that is not as expected."""
        rest = dict(content)
        entries = {key: rest.pop(key, None) for key in ("domains", "base", "sources", "mixed", "unmeasured")}
        domain_set = self._domain_set(entries["domains"])
        unmeasured = [] if entries["unmeasured"] is None else entries["unmeasured"]
        self._check(_is_texts(unmeasured), "unmeasured", "a list of domains", unmeasured)
        self._check_names(unmeasured, "unmeasured", domain_set)
        measured = [name for name in domain_set if name not in unmeasured]
        self._check(bool(measured), "unmeasured", "at least one domain with held-out rows", unmeasured)

        def column(values: Any, key: str, *, num_steps: int | None = None) -> np.ndarray:
            """Return a mapping by measured domain as [K], or as [S,K]."""
            return self._column(values, key, domain_set=domain_set, measured=measured, num_steps=num_steps)

        base, sources = (self._mapping(entries[key], key) for key in ("base", "sources"))
        self._check_names(sources, "sources", domain_set)
        self._check(bool(sources), "sources", "at least one domain that was trained on", sources)
        mixed = [] if entries["mixed"] is None else entries["mixed"]
        self._check(isinstance(mixed, list), "mixed", "a list of runs", mixed)
        return TransferTable(
            domain_set=domain_set,
            base_losses_K=column(base.get("losses"), "base.losses"),
            base_stderrs_K=column(base.get("stderrs"), "base.stderrs"),
            sources={name: self._source(sources[name], name, column) for name in domain_set if name in sources},
            mixed=tuple(self._mixed_run(run, f"mixed.{n}", column, domain_set) for n, run in enumerate(mixed)),
            unmeasured=tuple(unmeasured),
            provenance=rest,
        )

    def _mixed_run(self, value: Any, place: str, column: Callable[..., np.ndarray], domain_set: DomainSet) -> MixedRun:
        values = self._mapping(value, place)
        weights = self._mapping(values.get("weights"), f"{place}.weights")
        is_mixture = set(weights) == set(domain_set) and all(is_finite_number(w) and w >= 0 for w in weights.values())
        is_mixture = is_mixture and abs(sum(weights.values()) - 1.0) < 1e-6
        self._check(is_mixture, f"{place}.weights", "a share of every domain, sum 1", weights)
        weights_K = np.array([float(weights[name]) for name in domain_set])
        return MixedRun(weights_K=weights_K, **self._run(values, place, column))

    def _source(self, value: Any, name: str, column: Callable[..., np.ndarray]) -> Source:
        place = f"sources.{name}"
        values = self._mapping(value, place)
        model = values.get("model")
        self._check(model is None or isinstance(model, str), f"{place}.model", "a folder or null", model)
        sizes = {key: values.get(key) for key in ("rows", "tokens_per_epoch")}
        for key, size in sizes.items():
            self._check(_is_counts([size]) and size > 0, f"{place}.{key}", "a positive whole number", size)
        return Source(
            **self._run(values, place, column),
            num_examples=sizes["rows"],
            tokens_per_epoch=sizes["tokens_per_epoch"],
            model=model,
        )

    def _run(self, values: Mapping[str, Any], place: str, column: Callable[..., np.ndarray]) -> dict[str, np.ndarray]:
        """Return the arrays of a `MeasuredRun`."""
        steps, tokens = values.get("steps"), values.get("tokens")
        for key, counts in (("steps", steps), ("tokens", tokens)):
            is_rising = _is_counts(counts) and counts[:1] == [0] and all(np.diff(counts) >= (key == "steps"))
            self._check(is_rising, f"{place}.{key}", "whole numbers that rise from 0", counts)
        self._check(len(steps) == len(tokens), f"{place}.tokens", f"{len(steps)} numbers, one a step", tokens)
        columns = {
            f"{key}_SK": column(values.get(key), f"{place}.{key}", num_steps=len(steps))
            for key in ("losses", "changes", "change_stderrs")
        }
        return {
            "steps_S": np.array(steps, dtype=np.int64),
            "tokens_S": np.array(tokens, dtype=np.int64),
            **columns,
        }

    def _domain_set(self, names: Any) -> DomainSet:
        self._check(_is_texts(names) and bool(names), "domains", "a list of names", names)
        try:
            return DomainSet(tuple(names))
        except ValueError as error:
            reason = str(error).removeprefix("data.domains: ")
            raise ValueError(f"{self._place}: domains: {reason}; {_TODO}") from None

    def _column(
        self, values: Any, key: str, *, domain_set: DomainSet, measured: Sequence[str], num_steps: int | None
    ) -> np.ndarray:
        """Return a mapping by measured domain as [K], or as [S,K] where each value is a list of S numbers."""
        values = self._mapping(values, key)
        self._check_names(values, key, domain_set)
        shape = (len(domain_set),) if num_steps is None else (num_steps, len(domain_set))
        column = np.full(shape, np.nan)
        for name in measured:
            value, place = values.get(name), f"{key}.{name}"
            if num_steps is None:
                self._check(name in values and _is_known_or_null(value), place, "a number or null", value)
                column[domain_set.id_of(name)] = math.nan if value is None else value
                continue
            is_valid = isinstance(value, list) and len(value) == num_steps and all(map(_is_known_or_null, value))
            self._check(is_valid, place, f"{num_steps} numbers or nulls, one a step", value)
            column[:, domain_set.id_of(name)] = [math.nan if number is None else number for number in value]
        return column

    def _mapping(self, value: Any, key: str) -> Mapping[str, Any]:
        self._check(isinstance(value, Mapping), key, "{domain: value}" if key != "base" else "{losses, stderrs}", value)
        return value

    def _check_names(self, names: Sequence[str] | Mapping[str, Any], key: str, domain_set: DomainSet) -> None:
        unknown = [name for name in names if name not in domain_set.names]
        self._check(not unknown, key, f"domains of {', '.join(domain_set)}", ", ".join(unknown))

    def _check(self, is_valid: bool, key: str, expected: str, found: Any) -> None:
        """Raise ValueError unless an entry is as expected."""
        if not is_valid:
            got = "nothing" if found is None else str(found)[:60]
            raise ValueError(f"{self._place}: {key}: expected {expected}, got {got}; {_TODO}")


def _is_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _is_counts(values: Any) -> bool:
    """Return whether values are whole numbers that fit int64."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _is_known_or_null(value: Any) -> bool:
    return value is None or is_finite_number(value)
