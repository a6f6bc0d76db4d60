"""Write the report of a run, or of several side by side, as one HTML file that works offline.

Whatever a domain's name or a reason contains is escaped, and the content policy in the head lets the browser load
nothing and run no script but the page's own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from versatune_ds import __version__
from versatune_ds.report.charts import Line
from versatune_ds.report.decision_list import COLUMNS, decision_rows
from versatune_ds.report.document import FOLDER, html_environment
from versatune_ds.report.domain_file import domain_file
from versatune_ds.report.experts import experts_view
from versatune_ds.report.planned import planned_view
from versatune_ds.report.run_charts import RunCharts
from versatune_ds.report.series import RunSeries
from versatune_ds.report.shapes import draw, sample
from versatune_ds.report.story import headline
from versatune_ds.report.summary import DOMAIN_COLUMNS, comparison, domain_table, facts, flat_items, state_of
from versatune_ds.run_folder.atomic import write_text
from versatune_ds.run_folder.names import EVALUATION_FILE, PLAN_FILE, PRIOR_FILE, REFERENCE_FILE


def write_page(runs: Sequence[RunSeries], path: Path) -> Path:
    """Write the page of the runs, at least one, to a file; return its path."""
    text = render_page(runs, now=time.time())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)  # a browser that reloads sees the old page or the new one
    return path


def render_page(runs: Sequence[RunSeries], *, now: float) -> str:
    """Return the page's HTML.

    Args:
        runs: At least one.
        now: Seconds since the epoch, shown as the time the page was made.
    """
    # Domains have the same colour, and steps the same axis, in all runs of the page.
    names = list(dict.fromkeys(name for run in runs for name in run.domain_names))
    slots = {name: number for number, name in enumerate(names)}
    x_end = max(run.last_step for run in runs)
    charts = [
        RunCharts(series=run, prefix=f"run{number}", slots=slots, x_end=x_end)
        for number, run in enumerate(runs, start=1)
    ]
    script = (FOLDER / "script.js").read_text(encoding="utf-8")
    script_data = {"last_step": x_end, "charts": {chart.key: chart.data() for of_run in charts for chart in of_run}}
    # Render.
    environment = html_environment()
    environment.filters |= {"draw": draw, "sample": sample}
    return environment.get_template("page.html").render(
        title=" · ".join(run.name for run in runs),
        runs=[_run_view(run, c, slots=slots, now=now) for run, c in zip(runs, charts, strict=True)],
        comparison=comparison(runs, names) if len(runs) > 1 else [],
        domain_keys=[Line(name=name, values=(), slot=slot) for name, slot in slots.items()],
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=Markup(_json_in_html(script_data)),
        made=datetime.fromtimestamp(now).astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        version=__version__,
    )


def _run_view(run: RunSeries, charts: RunCharts, *, slots: Mapping[str, int], now: float) -> dict[str, Any]:
    """Return the values of one run for the template."""
    decisions = decision_rows(run, slots=slots)
    return {
        "name": run.name,
        "folder": str(run.run_dir),
        "headline": headline(run),
        "last_step": run.last_step,
        "measured_step": run.measured_step,
        "state": state_of(run, now=now),
        "facts": facts(run),
        "domain_columns": DOMAIN_COLUMNS,
        "domain_rows": domain_table(run),
        "planned": planned_view(run),
        "experts": experts_view(run),
        "charts": charts,
        "domains": [Line(name=name, values=(), slot=slots[name]) for name in run.domain_names],
        "is_steered_by_training": any(line.is_sparse for chart in charts.losses for line in chart.lines),
        "has_forgetting": any(value for chart in charts.forgetting for line in chart.lines for value in line.known),
        "decision_columns": COLUMNS,
        "decisions": decisions,
        "num_decisions": len(run.decisions),
        "kinds": sorted({kind for decision in decisions for kind in decision.kinds}),
        "files": [
            (title, name, domain_file(values, run.domain_names))
            for title, name, values in (
                ("Detection: the prior mixture", PRIOR_FILE, run.prior),
                ("Plan", PLAN_FILE, {key: run.plan[key] for key in run.plan if key not in ("front", "effects")}),
                ("References", REFERENCE_FILE, run.reference),
                ("Evaluation", EVALUATION_FILE, run.evaluation),
            )
        ],
        "environment": flat_items(run.environment),
        "config": yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True) if run.config else "",
    }


def _json_in_html(values: Mapping[str, Any]) -> str:
    """Return JSON that is safe in a script element: nothing in it ends the element or opens a comment."""
    text = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
