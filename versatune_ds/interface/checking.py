"""Check a recipe without starting it, from Python."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from versatune_ds.config.load import Recipe, load_config_with_policy
from versatune_ds.log import shown_log
from versatune_ds.mixture.policies import Policy

if TYPE_CHECKING:
    import pandas as pd

    from versatune_ds.interface.training import Signal


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What `check` found about a recipe."""

    is_ok: bool
    """Whether nothing failed; warnings do not count."""
    text: str
    """The table that `versatune check` prints."""
    examples: Mapping[str, str]
    """Domain to one example as the model reads it."""
    _findings: tuple[tuple[str, str, str, str, str], ...]

    @property
    def findings(self) -> pd.DataFrame:
        """Return one row a finding: `level` (ok, warn, FAIL), `check`, `key` of the recipe, `found`, `todo`."""
        import pandas as pd

        return pd.DataFrame(list(self._findings), columns=["level", "check", "key", "found", "todo"])


def check(
    config: Recipe,
    *,
    overrides: Sequence[str] = (),
    policy: Policy | None = None,
    signal: Signal | None = None,
    nodes: int | None = None,
    gpus_per_node: int | None = None,
    gpu_memory: float | None = None,
    quiet: bool = False,
) -> CheckResult:
    """Check that a recipe would run, without starting it: files, examples, batches, memory, disk and more.

    Args:
        config: Recipe as a YAML file, a nested mapping, or a `RunConfig`.
        overrides: Texts `key=value` with dotted keys.
        policy: Rule that decides the weights, in the place of `mixture.policy`.
        signal: Function that supplies the losses of decisions, in the place of `mixture.signal`; it is not called.
        nodes: Machines; by default 1.
        gpus_per_node: Processes a machine; by default one per GPU here, or 1 without a GPU.
        gpu_memory: Memory of one GPU in GiB; by default this machine's.
        quiet: Whether only warnings are logged.

    Returns:
        All findings; a recipe that would not run is no exception, see `is_ok`.

    Raises:
        ValueError: If the recipe cannot be read at all, or an argument is wrong.
    """
    with shown_log(level=logging.WARNING if quiet else logging.INFO):
        resolved = load_config_with_policy(config, overrides, policy, signal)
        from versatune_ds.preflight import CheckRequest, check_recipe  # imports torch
        from versatune_ds.training.saved_model import with_saved_model

        request = CheckRequest(
            nodes=nodes, gpus_per_node=gpus_per_node, gpu_memory_gib=gpu_memory, environ=dict(os.environ)
        )
        report = check_recipe(with_saved_model(resolved), request)
    findings = ((item.level, item.check, item.key, item.found, item.todo) for item in report.findings)
    return CheckResult(report.exit_code == 0, report.as_text(is_coloured=False), dict(report.examples), tuple(findings))
