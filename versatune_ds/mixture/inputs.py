"""Inputs of a decision besides losses: live control, remaining data, the cost of measuring.

Whatever can change a decision is recorded in it, so that resume and replay stay exact.

Shape legend: **K** domains.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.domains import DomainSet, by_domain_name, domain_name, nearest_name
from versatune_ds.json_file import is_finite_number
from versatune_ds.mixture.policies import Policy
from versatune_ds.mixture.statistics import DomainStatistics

logger = logging.getLogger(__name__)

_BY_DOMAIN = ("pins", "caps", "supply_caps", "train_losses", "train_loss_stderrs")
_SHARES = ("rate", "anchor")
_NUMBERS = ("sigma", "delta", "epsilon", *_SHARES)
CONTROL_KEYS = ("pins", "caps", "freeze", *_NUMBERS)
"""Keys of the control file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Inputs of one decision; empty by default."""

    pins: Mapping[str, float] = field(default_factory=dict)
    """Domain to the weight it must have."""
    caps: Mapping[str, float] = field(default_factory=dict)
    """Domain to its largest weight."""
    freeze: tuple[str, ...] = ()
    """Domains that keep the weight they have."""
    supply_caps: Mapping[str, float] = field(default_factory=dict)
    """Domain to the largest weight its remaining data can serve."""
    sigma: float | None = None
    """Replaces `mixture.sigma`."""
    delta: float | None = None
    """Replaces `mixture.delta`."""
    epsilon: float | None = None
    """Replaces `mixture.epsilon`."""
    rate: float | None = None
    """Replaces `mixture.steer.rate`."""
    anchor: float | None = None
    """Replaces `mixture.steer.anchor`."""
    interval_stretch: int = 1
    """The next losses are measured after this many times `mixture.update_every` steps."""
    signal: str | None = None
    """Is "train" where the losses are those of training batches, the name of a function of the user's own where that
    supplied them, None where they are held out."""
    train_losses: Mapping[str, float] = field(default_factory=dict)
    """Domain to its mean training loss since the last update, beside held-out losses; empty where over-fitting is not
    watched for, and without a domain that was not trained on."""
    train_loss_stderrs: Mapping[str, float] = field(default_factory=dict)
    """Their standard errors, as if tokens were independent: too small."""

    def to_dict(self) -> dict[str, Any]:
        """Return what is set, JSON-able."""
        by_domain = {key: dict(getattr(self, key)) for key in _BY_DOMAIN if getattr(self, key)}
        numbers = {key: getattr(self, key) for key in _NUMBERS if getattr(self, key) is not None}
        freeze = {"freeze": list(self.freeze)} if self.freeze else {}
        stretch = {"interval_stretch": self.interval_stretch} if self.interval_stretch > 1 else {}
        signal = {"signal": self.signal} if self.signal else {}
        return by_domain | freeze | numbers | stretch | signal

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Inputs:
        """Return the inputs of `to_dict`."""
        return cls(**{key: tuple(value) if key == "freeze" else value for key, value in values.items()})

    def control(self) -> Inputs:
        """Return the part of these inputs that a person set."""
        return replace(self, supply_caps={}, interval_stretch=1, signal=None, train_losses={}, train_loss_stderrs={})

    def rates(self) -> dict[str, float]:
        """Return the rates that are replaced."""
        return {key: getattr(self, key) for key in _NUMBERS if getattr(self, key) is not None}

    def unread_rates(self, policy: Policy) -> tuple[str, ...]:
        """Return the rates that are replaced although a policy does not read them."""
        return tuple(key for key in self.rates() if key not in policy.live_rates)

    def with_train_losses(self, statistics: DomainStatistics, *, domain_set: DomainSet) -> Inputs:
        """Return these inputs with training losses by domain; one that is not finite is omitted."""
        loss_K, stderr_K = statistics.mean(), statistics.standard_error()
        rows = zip(domain_set, loss_K.tolist(), stderr_K.tolist(), strict=True)
        known = [(name, loss, stderr) for name, loss, stderr in rows if math.isfinite(loss)]
        return replace(
            self,
            train_losses={name: loss for name, loss, _ in known},
            train_loss_stderrs={name: stderr for name, _, stderr in known},
        )

    def with_supply_caps(self, caps_K: np.ndarray | None, *, domain_set: DomainSet) -> Inputs:
        """Return these inputs with the caps [K] that the remaining data sets; caps of 1 and above are omitted."""
        if caps_K is None:
            return self
        caps = {name: cap for name, cap in domain_set.to_dict(caps_K).items() if cap < 1.0}
        return replace(self, supply_caps=caps)


def supply_caps(remaining_K: Sequence[float] | np.ndarray, *, units_left: float) -> np.ndarray:
    """Return the largest weight [K] that each domain's remaining data can serve to the end of the run.

    Args:
        remaining_K: Units (of `mixture.weight_unit`) each domain may still serve; infinite where it may repeat freely.
        units_left: Units that the rest of the run draws.
    """
    return np.clip(np.asarray(remaining_K, dtype=np.float64) / max(units_left, 1.0), 0.0, 1.0)


def read_control(path: Path, *, domain_set: DomainSet) -> Inputs:
    """Return the live control of a run, empty where there is no file.

    The file is JSON: {"pins": {"law": 0.2}, "caps": {"code": 0.4}, "freeze": ["general"], "delta": 0.02}.

    Raises:
        ValueError: If it is not JSON, or a key, a domain or a number is wrong; the run should continue without it.
    """
    if not path.is_file():
        return Inputs()
    try:
        values = json.loads(path.read_text(encoding="utf-8") or "{}")
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    return parse_control(values, what=str(path), domain_set=domain_set)


def read_control_or_keep(path: Path, *, kept: Inputs, domain_set: DomainSet) -> Inputs:
    """Return the live control of a run, or the previous one, with a warning, where the file is wrong."""
    try:
        return read_control(path, domain_set=domain_set)
    except ValueError as error:
        logger.warning("%s; the last control stays active until the file is corrected or removed", error)
        return kept.control()


def parse_control(values: Any, *, what: str, domain_set: DomainSet) -> Inputs:
    """Return checked inputs of a control mapping; errors open with `what`.

    Raises:
        ValueError: If a key, a domain or a number is wrong, or the pins sum to more than 1.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{what}: expected a mapping with keys among {', '.join(CONTROL_KEYS)}")
    for key in values:
        if key not in CONTROL_KEYS:
            raise ValueError(f"{what}: unknown key {key!r}; {nearest_name(str(key), CONTROL_KEYS)}")
    pins = _weights_by_domain(values.get("pins", {}), what=f"{what}: pins", domain_set=domain_set)
    if sum(pins.values()) > 1.0:
        raise ValueError(f"{what}: pins sum to {sum(pins.values()):.4g}, expected at most 1")
    return Inputs(
        pins=pins,
        caps=_weights_by_domain(values.get("caps", {}), what=f"{what}: caps", domain_set=domain_set),
        freeze=_known_domains(values.get("freeze", ()), what=f"{what}: freeze", domain_set=domain_set),
        **{key: _rate(values[key], key=key, what=what) for key in _NUMBERS if values.get(key) is not None},
    )


def _weights_by_domain(values: Any, *, what: str, domain_set: DomainSet) -> dict[str, float]:
    """Return a mapping from domain to a number in [0, 1]."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{what}: expected a mapping from domain to weight, got {values!r}")
    _known_domains(tuple(values), what=what, domain_set=domain_set)
    for name, value in values.items():
        if not is_finite_number(value) or not 0 <= value <= 1:
            raise ValueError(f"{what}: {name}: expected a weight between 0 and 1, got {value!r}")
    return by_domain_name({name: float(value) for name, value in values.items()}, what=what)


def _known_domains(names: Any, *, what: str, domain_set: DomainSet) -> tuple[str, ...]:
    """Return names, each checked to be a domain."""
    if not isinstance(names, list | tuple):
        raise ValueError(f"{what}: expected a list of domains, got {names!r}")
    known = tuple(domain_name(name) if isinstance(name, str) else name for name in names)
    for name in known:
        if name not in domain_set.names:
            raise ValueError(f"{what}: unknown domain {name!r}; {nearest_name(str(name), domain_set.names)}")
    return known


def _rate(value: Any, *, key: str, what: str) -> float:
    """Return a non-negative finite number, at most 1 where it is a share."""
    most, wanted = (1.0, "between 0 and 1") if key in _SHARES else (math.inf, "of at least 0")
    if not is_finite_number(value) or not 0 <= value <= most:
        raise ValueError(f"{what}: {key}: expected a number {wanted}, got {value!r}")
    return float(value)
