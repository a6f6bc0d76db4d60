"""Name metrics so that a chart service groups them: one section a quantity, the domains as its lines.

W&B, TensorBoard, Trackio and SwanLab make a section of what stands before the first `/`. `domain/law/loss` of the
record (`metrics.jsonl`) is therefore `loss/law` there. The record keeps its names: runs of earlier versions are read by
them.
"""

from __future__ import annotations

from collections.abc import Mapping

DOMAIN_PREFIX = "domain/"
_RENAMED = {"forgetting_from_best": "forgetting"}

HIDDEN_SECTIONS = (
    "loss_stderr", "change_stderr", "change_from_best_stderr", "change_from_start_stderr", "track_stderr",
)  # fmt: skip
"""Standard errors by domain. They are recorded, but no chart is made of them unless a person asks for one."""


def by_section(values: Mapping[str, float]) -> dict[str, float]:
    """Return metrics with `domain/NAME/QUANTITY` renamed to `QUANTITY/NAME`; others keep their names.

    `forgetting_from_best` is `forgetting` there.
    """
    return {section_name(name): value for name, value in values.items()}


def section_name(name: str) -> str:
    """Return a metric's name by section: `loss/law` for `domain/law/loss`. A domain's name may contain a slash."""
    if not name.startswith(DOMAIN_PREFIX):
        return name
    domain, _, quantity = name.removeprefix(DOMAIN_PREFIX).rpartition("/")
    return f"{_RENAMED.get(quantity, quantity)}/{domain}"


def is_hidden(name: str) -> bool:
    """Return whether a metric, named by section, is a standard error."""
    return name.partition("/")[0] in HIDDEN_SECTIONS
