"""Order the runs of a comparison, so that one that is interrupted has those that matter most: its key `order`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from versatune_ds.config.section import Section
from versatune_ds.domains import nearest_name

if TYPE_CHECKING:
    from versatune_ds.comparison.cells import Cell


class OrderEntry(Section):
    """Runs that come before those of later entries; a key that is left out means all."""

    runs: tuple[str, ...] | None = None
    """Labels, in the order in which they run; `static` stands for all drawn mixtures."""
    seeds: tuple[int, ...] | None = None
    """Seeds."""
    targets: tuple[str, ...] | None = None
    """Targets."""

    def check(self, *, labels: Sequence[str], seeds: Sequence[int], targets: Sequence[str]) -> None:
        """Check that a comparison has what the entry names.

        Raises:
            ValueError: With the first name that is unknown.
        """
        for what, asked, known in (("run", self.runs, labels), ("target", self.targets, targets)):
            for name in asked or ():
                if name not in known:
                    raise ValueError(f"order: no {what} {name!r}; {nearest_name(name, list(known))}")
        for seed in self.seeds or ():
            if seed not in seeds:
                raise ValueError(f"order: no seed {seed}; the comparison has {', '.join(map(str, seeds))}")

    def selects(self, cell: Cell) -> bool:
        """Return whether a run is one of the entry's."""
        return (
            (self.runs is None or _label(cell) in self.runs)
            and (self.seeds is None or cell.seed in self.seeds)
            and (self.targets is None or cell.target in self.targets)
        )


DRAWN = "static"
"""Stands for all drawn mixtures in an entry."""


def _label(cell: Cell) -> str:
    return cell.label if cell.mixture is None else DRAWN


def in_order(cells: Sequence[Cell], entries: Sequence[OrderEntry]) -> list[Cell]:
    """Return the runs as they are to be started: those of the first entry first, those of no entry last.

    Within an entry seeds change slowest, then targets, as without entries; its labels come in the order it gives.

    Worked example: uniform, a, b with seeds 1 and 2, and the entries {runs: [b, uniform]}, {seeds: [2]}: b1, uniform1,
    b2, uniform2, a2, a1.
    """
    waiting, ordered = list(cells), []
    for entry in entries:
        chosen = [cell for cell in waiting if entry.selects(cell)]
        if entry.runs is not None:
            blocks = list(dict.fromkeys((cell.seed, cell.target) for cell in chosen))
            labels = list(entry.runs)
            chosen.sort(key=lambda cell: (blocks.index((cell.seed, cell.target)), labels.index(_label(cell))))
        ordered += chosen
        waiting = [cell for cell in waiting if cell not in chosen]
    return [*ordered, *waiting]
