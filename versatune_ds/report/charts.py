"""Charts of the report page as values: lines with their styles, axes, labels, and the same in numbers and words.

Domains differ in colour, dash and a label at the line's end, so colour is never the only difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from versatune_ds.report.scales import Axis, Values, axis_for, evenly, format_value, kept_indices, spread, tick_text

NUM_COLOURS = 8
_DASHES = ("", "8 4", "2 4", "10 3 2 3")
_LABEL_PIXELS = 15
_LABELLED_HEIGHT = 150
"""Pixels from which a chart has labels at its lines' ends; a small one has the values above it."""
_MAX_ROWS = 40
"""Rows of a chart's table of numbers."""
_MAX_DESCRIBED = 12
"""Lines described in a chart's sentence."""
_MAX_NUMBERS = 9600
_POINTS = (150, 600)
"""Fewest and most points drawn of each line; between them, as many as keep a chart within _MAX_NUMBERS numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One series of a chart: a value, or None, for each of the chart's steps."""

    name: str
    values: Values
    slot: int = 0
    """Number of the domain; it chooses colour and dash."""
    errors: Values | None = None
    """Standard errors."""
    is_reference: bool = False
    is_sparse: bool = False
    """Whether few of the chart's steps have a value: these are connected, and each is marked with a dot."""

    def at(self, indices: Sequence[int]) -> Line:
        """Return the line at some of its points."""
        errors = None if self.errors is None else [self.errors[i] for i in indices]
        return replace(self, values=[self.values[i] for i in indices], errors=errors)

    @property
    def known(self) -> list[float]:
        """The values that are known."""
        return [value for value in self.values if value is not None]

    @property
    def style(self) -> str:
        """Colour as a CSS property; the second eight domains are lighter, and so on."""
        colour, round_number = f"var(--c{self.slot % NUM_COLOURS})", self.slot // NUM_COLOURS % 4
        if round_number:
            colour = f"color-mix(in oklab, {colour} {100 - 18 * round_number}%, var(--card))"
        return f"--c: {'var(--ink-2)' if self.is_reference else colour}"

    @property
    def dash(self) -> str:
        """Dash pattern, in pixels."""
        if self.is_sparse:
            return "1 5"
        return "5 4" if self.is_reference else _DASHES[(self.slot + self.slot // NUM_COLOURS) % len(_DASHES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart of the page; `key` is its id within the page."""

    key: str
    title: str
    kind: str
    """Of the values: a key of `scales.FORMATS`."""
    steps: Sequence[int]
    """Optimizer steps, ascending."""
    lines: Sequence[Line]
    last_step: int
    """Last step that the run recorded."""
    x_end: int
    """Right end of the axis of steps, which begins at 0: the last step of the longest run of the page."""
    note: str = ""
    """One sentence on what to look for."""
    height: int = 240
    """In pixels."""
    y_axis: Axis | None = None
    """None for one that fits the values."""
    is_stacked: bool = False
    """Whether the values are shares of 1 that apply until the next step, drawn as areas, the first on top."""
    is_step: bool = False
    """Whether a value applies until the next step."""
    num_steps_recorded: int = 0
    """Points that the run recorded; fewer may be drawn."""

    def thinned(self) -> Chart:
        """Return the chart with no more points than a reader can distinguish."""
        limit = min(max(_MAX_NUMBERS // len(self.lines), _POINTS[0]), _POINTS[1])
        weights = range(1, len(self.lines) + 1)  # a plain mean of shares is constant; this one moves when they do
        values_by_step = zip(*(line.values for line in self.lines), strict=True)
        weighted_sums = [
            sum(w * v for w, v in zip(weights, values, strict=True) if v is not None) for values in values_by_step
        ]
        kept = kept_indices(weighted_sums, limit)
        steps, lines = [self.steps[i] for i in kept], [line.at(kept) for line in self.lines]
        return replace(self, steps=steps, lines=lines, num_steps_recorded=len(self.steps))

    @property
    def name_characters(self) -> int:
        """Room that the longest name needs in a legend or at a line's end, in characters."""
        return max(len(line.name) for line in self.lines) + 1

    @property
    def x_axis(self) -> Axis:
        """The axis of steps."""
        return Axis(low=0, high=max(self.x_end, 1))

    @property
    def axis(self) -> Axis:
        """The axis of values."""
        if self.y_axis is not None:
            return self.y_axis
        if self.is_stacked:
            return Axis(low=0, high=1)
        values = [value for line in self.lines for value in line.known]
        return axis_for(values, is_from_zero=not values or min(values) >= 0)

    def x_ticks(self) -> list[tuple[float, str]]:
        """Return (percent from the left, text) of the steps' labels."""
        return [
            (100 * self.x_axis.place(value), tick_text(value)) for value in self.x_axis.ticks(4) if value == int(value)
        ]

    def y_ticks(self) -> list[tuple[float, str]]:
        """Return (percent from the top, text) of the values' labels."""
        is_percent, axis = self.kind == "share", self.axis
        return [
            (100 - 100 * axis.place(value), f"{100 * value:g}%" if is_percent else tick_text(value))
            for value in axis.ticks()
        ]

    def end_labels(self) -> list[tuple[float, Line]]:
        """Return (percent from the top, line) of the labels at the lines' ends; none where they have no room."""
        ends = [(line, place) for line, place in zip(self.lines, _end_places(self), strict=True) if place is not None]
        distance = _LABEL_PIXELS / self.height
        if self.height < _LABELLED_HEIGHT or len(self.lines) == 1 or len(ends) * distance > 1:
            return []
        moved = spread([place for _, place in ends], distance)
        return [(100 * place, line) for (line, _), place in zip(ends, moved, strict=True)]

    def table(self) -> list[tuple[int, list[str]]]:
        """Return the numbers as (step, texts), at most `_MAX_ROWS` of them, evenly spaced."""
        rows = evenly(len(self.steps), _MAX_ROWS)
        return [(self.steps[i], [format_value(line.values[i], self.kind) for line in self.lines]) for i in rows]

    def words(self) -> str:
        """Describe the chart in words: where each line begins and ends."""
        shown = [line for line in self.lines if line.known and not line.is_reference]
        if not shown:
            return "Nothing is recorded yet."
        most_moved = sorted(shown, key=lambda line: -abs(line.known[-1] - line.known[0]))[:_MAX_DESCRIBED]
        changes = [
            f"{line.name} from {format_value(line.known[0], self.kind)} to {format_value(line.known[-1], self.kind)}"
            for line in most_moved
        ]
        which = f" (the {_MAX_DESCRIBED} that moved most)" if len(shown) > _MAX_DESCRIBED else ""
        return f"Steps {self.steps[0]} to {self.last_step}{which}: {'; '.join(changes)}."

    def last_text(self, line: Line) -> str:
        """Return a line's last known value as text."""
        return format_value(line.known[-1] if line.known else None, self.kind)

    def data(self) -> dict[str, object]:
        """Return what the page's script needs."""
        lines = [{"name": line.name, "values": line.values, "errors": line.errors} for line in self.lines]
        return {"kind": self.kind, "steps": self.steps, "last": self.last_step, "end": self.x_end, "lines": lines}


def _end_places(chart: Chart) -> list[float | None]:
    """Return where each line ends, a share from the top; the middle of its area where areas are stacked."""
    if not chart.is_stacked:
        axis = chart.axis
        return [1 - axis.place(line.known[-1]) if line.known else None for line in chart.lines]
    places: list[float | None] = []
    top = 0.0
    for line in chart.lines:
        width = line.known[-1] if line.known else 0.0
        places.append(top + width / 2)
        top += width
    return places
