"""Draw charts as SVG shapes without text.

The SVG is stretched to any width while strokes keep theirs, and all text around it is HTML; so a chart fits a phone and
a sheet of paper, and needs no script. Only numbers come from a run's files into the SVG, no text.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from versatune_ds.report.charts import Chart, Line
from versatune_ds.report.scales import Axis, Values

_SIZE = 1000
"""Width and height of the SVG's own coordinates."""


def draw(chart: Chart) -> Markup:
    """Return a chart's grid and shapes."""
    axis = chart.axis
    shapes = _areas(chart) if chart.is_stacked else [_line_shape(chart, line, axis) for line in chart.lines]
    grid = "".join(_rule(axis.place(value)) for value in axis.ticks())
    return Markup(
        f'<svg viewBox="0 0 {_SIZE} {_SIZE}" preserveAspectRatio="none" aria-hidden="true">'
        f"{grid}{''.join(shapes)}</svg>"
    )


def sample(line: Line) -> Markup:
    """Return a short sample of a line, for the legend."""
    dash = escape(line.dash)
    return Markup('<svg class="sample" viewBox="0 0 26 8" aria-hidden="true"><path d="M0 4H26" {}/></svg>').format(
        Markup('stroke-dasharray="{}"').format(dash) if line.dash else ""
    )


def _rule(place: float) -> str:
    return f'<path class="grid" d="M0 {_y(place)}H{_SIZE}"/>'


def _y(place: float) -> str:
    """Return the SVG's y of a share from the bottom."""
    return f"{_SIZE * (1 - place):.1f}"


def _line_shape(chart: Chart, line: Line, axis: Axis) -> str:
    """Return a line with its standard errors and its points."""
    places = [None if value is None else axis.place(value) for value in line.values]
    xs = [_SIZE * chart.x_axis.place(step) for step in chart.steps]
    dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
    path = f'<path class="line" d="{_path(xs, places, is_step=chart.is_step, has_gaps=not line.is_sparse)}"{dash}/>'
    has_dots = line.is_sparse or (len(chart.steps) <= 40 and not line.is_reference)
    dots = "".join(f"M{x:.1f} {_y(p)}h0" for x, p in zip(xs, places, strict=True) if p is not None) if has_dots else ""
    kind = " reference" if line.is_reference else ""
    body = f'{_error_shape(line, xs, axis)}{path}<path class="dots" d="{dots}"/>'
    return f'<g class="series{kind}" data-slot="{line.slot}" style="{line.style}">{body}</g>'


def _error_shape(line: Line, xs: Sequence[float], axis: Axis) -> str:
    """Return one vertical bar a point, of one standard error to either side."""
    if line.errors is None:
        return ""
    bars = [
        f"M{x:.1f} {_y(axis.place(value - error))}V{_y(axis.place(value + error))}"
        for x, value, error in zip(xs, line.values, line.errors, strict=True)
        if value is not None and error is not None
    ]
    return f'<path class="error" d="{"".join(bars)}"/>'


def _path(xs: Sequence[float], places: Values, *, is_step: bool, has_gaps: bool = True) -> str:
    """Return a path through the known points; unknown ones leave a gap if `has_gaps`."""
    parts: list[str] = []
    is_drawing = False
    for x, place in zip(xs, places, strict=True):
        if place is None:
            is_drawing = is_drawing and not has_gaps
            continue
        begin = f"{'L' if is_drawing else 'M'}{x:.1f} {_y(place)}"
        parts.append(f"H{x:.1f}V{_y(place)}" if is_step and is_drawing else begin)
        is_drawing = True
    return "".join(parts)


def _areas(chart: Chart) -> list[str]:
    """Return one area a domain, the first on top."""
    xs = [_SIZE * chart.x_axis.place(step) for step in chart.steps]
    above = [1.0] * len(xs)
    shapes = []
    for line in chart.lines:
        below = [max(top - (value or 0.0), 0.0) for top, value in zip(above, line.values, strict=True)]
        there = _path(xs, above, is_step=True)
        back = "".join(f"V{_y(place)}H{x:.1f}" for x, place in reversed(list(zip(xs, below, strict=True))))
        area = f'<path class="area" d="{there}{back}Z"/>'
        shapes.append(f'<g class="series" data-slot="{line.slot}" style="{line.style}">{area}</g>')
        above = below
    return shapes
