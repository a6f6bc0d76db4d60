"""Bounds on the weight of each domain: floors, caps, pins, frozen domains and exhausted data, met by one projection.

Source: docs/method.md section 8.

Shape legend: **K** domains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.mixture.inputs import Inputs
from versatune_ds.mixture.policies.acted import Acted, Guarded
from versatune_ds.mixture.settings import SafeguardSettings
from versatune_ds.mixture.weights import project_to_bounds

_MAX_NAMES = 12
"""Domains listed for one bound that acted; the rest are counted."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bounds:
    """Smallest and largest weight of each domain, and what set it."""

    lower_K: np.ndarray
    """float64, sums to at most 1."""
    upper_K: np.ndarray
    """float64, sums to at least 1."""
    lower_by: tuple[str, ...]
    """What set each lower bound: "floor", "pin", "freeze"."""
    upper_by: tuple[str, ...]
    """What set each upper bound: "cap", "control cap", "supply cap", "pin", "freeze"."""


def bounds_from(settings: SafeguardSettings, *, inputs: Inputs, before_K: np.ndarray, domain_set: DomainSet) -> Bounds:
    """Return the bounds of all domains; pins override frozen domains, both override caps, caps the floor."""
    num_domains = len(domain_set)
    lower_K, upper_K = np.full(num_domains, settings.floor), np.full(num_domains, settings.cap)
    lower_by, upper_by = ["floor"] * num_domains, ["cap"] * num_domains
    for what, caps in (("control cap", inputs.caps), ("supply cap", inputs.supply_caps)):
        for name, cap in caps.items():
            domain_id = domain_set.id_of(name)
            if cap < upper_K[domain_id]:
                upper_K[domain_id], upper_by[domain_id] = cap, what
    lower_K = np.minimum(lower_K, upper_K)
    frozen = {name: float(before_K[domain_set.id_of(name)]) for name in inputs.freeze}
    for what, fixed in (("freeze", frozen), ("pin", inputs.pins)):
        for name, weight in fixed.items():
            domain_id = domain_set.id_of(name)
            lower_K[domain_id] = upper_K[domain_id] = weight
            lower_by[domain_id] = upper_by[domain_id] = what
    return Bounds(lower_K=lower_K, upper_K=upper_K, lower_by=tuple(lower_by), upper_by=tuple(upper_by))


def feasible_bounds(
    settings: SafeguardSettings, *, inputs: Inputs, before_K: np.ndarray, domain_set: DomainSet
) -> tuple[Bounds, tuple[Acted, ...]]:
    """Return bounds that some weights meet: without supply caps if needed, and at last without live control."""
    no_supply = "supply caps given up: too little data is left in all domains together"
    no_control = "control given up: no weights satisfy its pins, caps and frozen domains together"
    attempts: tuple[tuple[Inputs, tuple[Acted, ...]], ...] = (
        (inputs, ()),
        (
            Inputs(pins=inputs.pins, caps=inputs.caps, freeze=inputs.freeze),
            (Acted("supply caps given up", tuple(inputs.supply_caps), no_supply),),
        ),
        (Inputs(), (Acted("control given up", (), no_control),)),
    )
    for allowed, given_up in attempts:
        bounds = bounds_from(settings, inputs=allowed, before_K=before_K, domain_set=domain_set)
        if bounds.lower_K.sum() <= 1.0 + 1e-9 and bounds.upper_K.sum() >= 1.0 - 1e-9:
            return bounds, given_up
    raise AssertionError("safeguard_settings checks that floor and cap alone leave room")


def within_bounds(weights_K: np.ndarray, *, bounds: Bounds, domain_set: DomainSet) -> Guarded:
    """Project the weights onto the bounds; each bound that changed a weight acted, with its domains."""
    projected_K = project_to_bounds(weights_K, lower_K=bounds.lower_K, upper_K=bounds.upper_K)
    names_by: dict[str, list[str]] = {}
    for is_beyond_K, by in (
        (weights_K < bounds.lower_K, bounds.lower_by),
        (weights_K > bounds.upper_K, bounds.upper_by),
    ):
        for domain_id in np.flatnonzero(is_beyond_K):
            names_by.setdefault(by[domain_id], []).append(domain_set.names[domain_id])
    acted = tuple(
        Acted(by, tuple(names), f"{by}: {_listed(names)}", is_same_entry=number > 0)
        for number, (by, names) in enumerate(names_by.items())
    )
    return projected_K, acted


def _listed(names: list[str]) -> str:
    """Return names in one text, the first few of many."""
    more = len(names) - _MAX_NAMES
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:_MAX_NAMES])} and {more} more"
