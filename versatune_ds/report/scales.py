"""Compute a chart's axes, ticks and labels, and choose the points to draw of a long run.

Positions are shares of the plot (0 to 1, from the left and from the top), so a chart takes any width while its text
keeps its size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Values = Sequence[float | None]

UNKNOWN = "–"  # noqa: RUF001 - a dash as wide as a digit
"""Shown for a number that was not recorded."""

FORMATS = {
    "weight": ".4f",
    "change": "+.4f",
    "loss": ".4f",
    "share": ".2%",
    "count": ",.0f",
    "seconds": ".4f",
    "epochs": ".2f",
    "rate": ".3g",
}


def format_value(value: float | None, kind: str) -> str:
    """Return a number as the page shows it, a dash for an unknown one."""
    return UNKNOWN if value is None else format(value, FORMATS[kind])


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Map values to shares of a plot's side.

    Attributes:
        low: Value at 0.
        high: Value at 1; larger than `low`.
        is_log: Whether equal distances are equal factors; both ends are positive then.
    """

    low: float
    high: float
    is_log: bool = False

    def place(self, value: float) -> float:
        """Return a value's share of the way from `low` to `high`, kept within 0 and 1."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = (math.log(max(v, 1e-300)) for v in (low, high, value))
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def ticks(self, num: int = 4) -> list[float]:
        """Return round values within the axis, about `num` of them."""
        if self.is_log:
            return _log_ticks(self.low, self.high, num)
        step = _round_step((self.high - self.low) / num)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def axis_for(values: Sequence[float], *, is_log: bool = False, is_from_zero: bool = False) -> Axis:
    """Return an axis that covers all values with a little room above, also for no values or equal ones."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if is_log and low > 0:
        return Axis(low=low / 1.15, high=high * 1.15, is_log=True)
    low = min(low, 0.0) if is_from_zero else low
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return Axis(low=low if is_from_zero else low - room, high=high + room)


def tick_text(value: float) -> str:
    """Return a short axis label, such as 0.25, 7, 1,200 or 1.2M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if suffix == 'k' else size):g}{suffix}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{round(value, 10):g}"


def kept_indices(values: Values, limit: int) -> list[int]:
    """Return at most `limit` + 2 positions: the lowest and highest of every stretch, and both ends.

    So a spike of a run of thousands of steps is still seen when only hundreds of points are drawn.
    """
    if len(values) <= limit:
        return list(range(len(values)))
    known = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    kept = {0, len(values) - 1}
    for stretch in np.array_split(np.arange(len(values)), max(limit // 2, 1)):
        filled = np.nan_to_num(known[stretch])
        kept |= {int(stretch[np.argmin(filled)]), int(stretch[np.argmax(filled)])}
    return sorted(kept)


def evenly(count: int, limit: int) -> list[int]:
    """Return at most `limit` of `count` positions, evenly spaced, first and last kept."""
    return sorted({int(index) for index in np.linspace(0, count - 1, min(count, limit)).round()})


def spread(places: Sequence[float], distance: float) -> list[float]:
    """Move labels apart until neighbours are `distance` away, all within 0 and 1 where there is room.

    Args:
        places: Position that each label should be near.
        distance: Smallest distance, in the same unit.
    """
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    for before, index in itertools.pairwise(order):
        moved[index] = max(moved[index], moved[before] + distance)
    limit = 1.0
    for index in reversed(order):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - distance
    return moved


def _round_step(rough: float) -> float:
    """Return the smallest of 1, 2, 2.5, 5 times a power of ten that is at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))


def _log_ticks(low: float, high: float, num: int) -> list[float]:
    """Return 1, 2, 5 times powers of ten within the axis, only the powers where these are too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    inside = [value for value in fine if low <= value <= high]
    coarse = [10.0**power for power in powers if low <= 10.0**power <= high]
    chosen = inside if len(inside) <= 2 * num or len(coarse) < 2 else coarse
    return chosen or [low, high]
