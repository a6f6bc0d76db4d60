"""List all checks of `versatune check`, make them in that order, and show what they found, as a table or as JSON.

The start checks come first (`training/start_checks/`): other commands and the processes of a run make them too. What
follows reads rows, builds the model without its weights or asks programs and servers, and is made by `check` alone. A
check that raises has found something, and no check stops another.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from versatune_ds.config import RunConfig
from versatune_ds.data.inspect import LEGEND
from versatune_ds.log import first_line
from versatune_ds.preflight.capacity import check_disk, check_memory, check_positions
from versatune_ds.preflight.data import (
    check_endings,
    check_files,
    check_rows,
    check_template,
    check_tokenizer,
    render_examples,
)
from versatune_ds.preflight.held_out import check_held_out
from versatune_ds.preflight.machine import check_kernels, check_launcher, check_slurm, check_wandb
from versatune_ds.preflight.mixture import check_mixture
from versatune_ds.preflight.pretrained import check_pretrained
from versatune_ds.preflight.prompts import check_prompts, render_prompts
from versatune_ds.preflight.subject import CheckRequest, Subject
from versatune_ds.text_table import fit_to, is_fitted, paragraph, text_table
from versatune_ds.training.finding import Check, Finding, Level, Stage, fail, failures_of, warn
from versatune_ds.training.start_checks import START_CHECKS, StartCheckInput

logger = logging.getLogger(__name__)

_COLOURS: dict[Level, str] = {"ok": "32", "warn": "33", "FAIL": "31"}
_MAX_KEY_LENGTH = 28
_MOST_INDENT = 20
_CHECK: frozenset[Stage] = frozenset({"check"})


def _of_subject(check: Check[StartCheckInput]) -> Check[Subject]:
    """Return a start check as one of the recipe that `versatune check` looks at."""
    return dataclasses.replace(check, find=lambda subject: check.find(subject.start))  # type: ignore[return-value, arg-type]


CHECKS: tuple[Check[Subject], ...] = (
    *(_of_subject(check) for check in START_CHECKS if "check" in check.stages),
    Check(name="files", needs="files", stages=_CHECK, find=check_files),
    Check(name="tokenizer", needs="tokenizer", stages=_CHECK, find=check_tokenizer),
    Check(name="template", needs="tokenizer", stages=_CHECK, find=check_template),
    Check(name="rows", needs="rows", stages=_CHECK, find=check_rows),
    Check(name="rows", needs="rows", stages=_CHECK, find=check_held_out),
    Check(name="prompt", needs="rows", stages=_CHECK, find=check_prompts),
    Check(name="endings", needs="rows", stages=_CHECK, find=check_endings),
    Check(name="mixture", needs="rows", stages=_CHECK, find=check_mixture),
    Check(name="model", needs="model config", stages=_CHECK, find=check_positions),
    Check(name="pretrained", needs="model config", stages=_CHECK, find=check_pretrained),
    Check(name="memory", needs="model config", stages=_CHECK, find=check_memory),
    Check(name="disk", needs="model config", stages=_CHECK, find=check_disk),
    Check(name="kernels", needs="GPU", stages=_CHECK, find=check_kernels),
    Check(name="launcher", needs="GPU", stages=_CHECK, find=check_launcher),
    Check(name="slurm", needs="Slurm", stages=_CHECK, find=check_slurm),
    Check(name="wandb", needs="network", stages=_CHECK, find=check_wandb),
)


_NOT_CHECKED = "not checked"
"""Key of a finding on a check that could not be made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """All findings, and one example a domain, with the prompt of generation where asked for."""

    findings: tuple[Finding, ...]
    examples: dict[str, str]

    @property
    def exit_code(self) -> int:
        """Return 1 if anything failed, else 0."""
        return int(any(finding.level == "FAIL" for finding in self.findings))

    def as_json(self) -> str:
        """Return the report as one JSON object."""
        findings = [dataclasses.asdict(finding) for finding in self.findings]
        return json.dumps({"ok": self.exit_code == 0, "findings": findings, "examples": self.examples}, indent=1)

    def as_text(self, *, is_coloured: bool) -> str:
        """Return examples, the table with what failed at its end, and how many failed."""
        examples = [f"--- {name}\n{text}" for name, text in self.examples.items()]
        if examples:
            examples.insert(0, LEGEND)
        counts = {level: sum(finding.level == level for finding in self.findings) for level in _COLOURS}
        total = ", ".join(f"{count} {level}" for level, count in counts.items())
        return "\n".join([*examples, "", *self._table(is_coloured=is_coloured), "", total])

    def _table(self, *, is_coloured: bool) -> Iterator[str]:
        """Yield one line a finding: level, check, key, what was found and what to do; warnings and failures last."""
        findings = sorted(_with_one_line_a_need(self.findings), key=lambda found: list(_COLOURS).index(found.level))
        cells = [_cells(finding) for finding in findings]
        with fit_to(None):  # a long text is wrapped below itself instead
            table = text_table((), [row[:-1] for row in cells], num_left=3).splitlines()
        column = max(map(len, table), default=0) + 2
        for finding, row, beginning in zip(findings, cells, table, strict=True):
            text_column = min(column, _MOST_INDENT) if is_fitted() and not row[2] else column
            line = paragraph(beginning.ljust(text_column) + row[-1], indent=min(column, _MOST_INDENT))
            level = f"\033[{_COLOURS[finding.level]}m{finding.level}\033[0m" if is_coloured else finding.level
            yield level + line.removeprefix(finding.level)


def _with_one_line_a_need(findings: Sequence[Finding]) -> Iterator[Finding]:
    """Yield findings, those on what was not checked for one reason as one: twelve such lines would hide the reason."""
    unmade: dict[str, dict[str, None]] = {}
    for finding in findings:
        if (finding.level, finding.key) == ("warn", _NOT_CHECKED):
            unmade.setdefault(finding.found, {})[finding.check] = None
    for finding in findings:
        if (finding.level, finding.key) != ("warn", _NOT_CHECKED):
            yield finding
        elif checks := unmade.pop(finding.found, None):
            yield dataclasses.replace(finding, check="checks", found=f"{', '.join(checks)}: {finding.found}")


def _cells(finding: Finding) -> tuple[str, ...]:
    """Return a finding's cells; a long key, such as a path, is put before the text so that the column stays narrow."""
    if len(finding.key) > _MAX_KEY_LENGTH:
        return finding.level, finding.check, "", f"{finding.key}  {finding.text}"
    return finding.level, finding.check, finding.key, finding.text


def check_recipe(config: RunConfig, request: CheckRequest) -> CheckReport:
    """Check everything about a recipe that can be known before nodes are taken."""
    subject = Subject(config, request, num_gpus_here=torch.cuda.device_count())
    findings: list[Finding] = []
    for check in CHECKS:
        findings += _run(check, subject, known={(finding.key, finding.text) for finding in findings})
    try:
        examples = render_examples(subject) | (render_prompts(subject) if request.renders_prompts else {})
    except Exception as error:  # whatever failed is reported above
        logger.debug("no examples: %s", error)
        examples = {}
    return CheckReport(findings=tuple(findings), examples=examples)


def _run(check: Check[Subject], subject: Subject, *, known: set[tuple[str, str]]) -> Iterator[Finding]:
    """Yield what a check finds, and what it raises as a finding; what is known already is not repeated."""
    try:
        for finding in check.find(subject) or ():
            if finding.level == "ok" or (finding.key, finding.text) not in known:
                yield finding
    except ValueError as error:
        failures = list(failures_of(error, check=check.name))
        new = [finding for finding in failures if (finding.key, finding.text) not in known]
        yield from new or [warn(check.name, _NOT_CHECKED, f"needs {failures[0].key}, which failed")]
    except Exception as error:  # a check that breaks must not hide what the others find
        reason = first_line(error)
        yield fail(check.name, _NOT_CHECKED, f"{type(error).__name__}: {reason}", "training may meet it too")
