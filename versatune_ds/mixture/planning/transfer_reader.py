"""Read a transfer.json: check every entry, and turn the lists by domain into the arrays of a `TransferTable`.

Shape legend: **K** domains, **S** measurements of one run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.json_file import is_finite_number, read_json_mapping
from versatune_ds.mixture.planning.transfer_table import MixedRun, Source, TransferTable

_TODO = "write it again with versatune reference"


def read_transfer(path: Path) -> TransferTable:
    """Return the table in a transfer.json.

    Raises:
        ValueError: If the file is missing, no JSON, or has other content; one line.
    """
    if path.is_dir():
        raise ValueError(f"{path}: a folder; expected the transfer.json that versatune reference writes")
    if not path.is_file():
        raise ValueError(f"{path}: no such file; run versatune reference with this recipe, which writes it there")
    return table_of(read_json_mapping(path, todo=_TODO), place=str(path))


def table_of(content: Mapping[str, Any], *, place: str) -> TransferTable:
    """Return the table in the content of a transfer.json.

    Args:
        content: As `TransferTable.to_dict` returns it.
        place: The file; every message begins with it.

    Raises:
        ValueError: For a key that is missing or has another form; one line.
    """
    return _Reader(place).table(content)


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
