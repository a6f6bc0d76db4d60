"""Time kernels side by side and return rows: each one's milliseconds, and how many times the floor's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.gpu_parts.place import Place
from benchmarks.gpu_parts.rows import Row, Value, failed_row, without_folders
from benchmarks.kernels_timing import Contestant, interleaved_medians, milliseconds_on_gpu, milliseconds_on_host


def timed_rows(
    place: Place,
    table: str,
    contestants: Sequence[Contestant],
    *,
    floor: str,
    floor_column: str,
    notes: Mapping[str, Mapping[str, Value]] | None = None,
) -> Iterator[Row]:
    """Yield a row a contestant, in their order.

    Args:
        place: Decides how often and with which clock.
        table: Title of the table.
        contestants: The ways to do the work; one that raises an error gives a row with its reason.
        floor: Name of the contestant that the others are divided by.
        floor_column: Title of that column.
        notes: More columns of some contestants.
    """
    failures: dict[str, str] = {}
    medians = interleaved_medians(
        contestants,
        repetitions=2 if place.is_small else 12,
        milliseconds_of=milliseconds_on_gpu if place.device == "cuda" else milliseconds_on_host,
        failures=failures,
    )
    for contestant in contestants:
        name = contestant.name
        if name not in medians:
            yield failed_row(table, name, failures[name])
            continue
        values: dict[str, Value] = {"ms": round(medians[name], 4)}
        if floor in medians:
            values[floor_column] = round(medians[name] / medians[floor], 3)
        shown = (notes or {}).get(name, {})
        values |= {key: without_folders(value) if isinstance(value, str) else value for key, value in shown.items()}
        yield Row(table=table, name=name, values=values)
