"""Turn what a run or a simulation recorded into pandas frames. Missing numbers are NaN.

pandas comes with `datasets`; it is imported when a frame is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from versatune_ds.report.series import RunSeries, held_out_losses, number_of, requested_weights, signal_of

if TYPE_CHECKING:
    import pandas as pd

_DECISION_COLUMNS = ("update", "decided_at_step", "effective_step", "reason", "acted", "num_acted", "signal", "digest")
_DOMAIN_COLUMNS = (
    "update", "decided_at_step", "effective_step", "domain", "loss", "loss_stderr", "num_loss_tokens", "weight_before",
    "weight_after",
)  # fmt: skip
_LOSS_COLUMNS = {"loss": "mean", "loss_stderr": "stderr", "num_loss_tokens": "num_loss_tokens"}
"""Column to its key in the losses of a decision."""


def metrics_frame(metrics: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row a step and one column a metric, by its recorded name; the last value of a step counts."""
    import pandas as pd

    by_step: dict[int, dict[str, Any]] = {}
    for line in metrics:
        values = {name: value for name, value in line.items() if name != "step" and value is not None}
        by_step.setdefault(line["step"], {}).update(values)
    columns = list(dict.fromkeys(name for values in by_step.values() for name in values))
    frame = pd.DataFrame(list(by_step.values()), columns=columns, index=pd.Index(list(by_step), name="step"))
    return frame.sort_index()


def decisions_frame(decisions: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row a decision: when, why, and which safeguards acted."""
    import pandas as pd

    rows = [
        {
            "update": decision.get("update"),
            "decided_at_step": decision["decided_at_step"],
            "effective_step": decision.get("effective_step"),
            "reason": decision.get("reason", ""),
            "acted": "; ".join(decision.get("acted") or ()),
            "num_acted": len(decision.get("acted") or ()),
            "signal": signal_of(decision),
            "digest": decision.get("digest", ""),
        }
        for decision in decisions
    ]
    return pd.DataFrame(rows, columns=list(_DECISION_COLUMNS))


def domains_frame(decisions: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row a decision and domain: its loss, its weight before and after, and the signals recorded."""
    import pandas as pd

    signals = dict.fromkeys(
        key for decision in decisions for values in (decision.get("signals") or {}).values() for key in values
    )
    rows = [
        {
            "update": decision.get("update"),
            "decided_at_step": decision["decided_at_step"],
            "effective_step": decision.get("effective_step"),
            "domain": name,
            **{column: number_of(decision, "losses", name, key) for column, key in _LOSS_COLUMNS.items()},
            "weight_before": decision["weights_before"].get(name),
            "weight_after": weight,
            **{key: number_of(decision, "signals", name, key) for key in signals},
        }
        for decision in decisions
        for name, weight in decision["weights_after"].items()
    ]
    columns = [*_DOMAIN_COLUMNS, *signals]
    numbers = dict.fromkeys(columns[4:], "float64")
    return pd.DataFrame(rows, columns=columns).astype(numbers)


def weights_frame(series: RunSeries) -> pd.DataFrame:
    """Return the weights from the step on at which they apply, one column a domain; the last step repeats the last."""
    import pandas as pd

    steps, weights = requested_weights(series)
    return pd.DataFrame(weights, index=pd.Index(steps, name="step"), columns=list(series.domain_names), dtype="float64")


def losses_frame(series: RunSeries) -> pd.DataFrame:
    """Return the held-out losses in nats per loss token by the step they were measured after, one column a domain."""
    import pandas as pd

    losses = {name: pd.Series(held_out_losses(series, name).values, dtype="float64") for name in series.domain_names}
    return pd.DataFrame(losses, columns=list(series.domain_names)).rename_axis("step").sort_index()
