"""Write the files of a run that the report reads, without training, with predictable numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HOSTILE = ('</script><script>document.title="broken"</script>', "<img src=x onerror=alert(1)>", "a & \"b\" / 'c'")
"""Names that break a page unless it escapes them."""


def write_run(
    folder: Path,
    *,
    names: Sequence[str] = ("law", "code", "general"),
    num_steps: int = 40,
    every: int = 10,
    best: int = 0,
    policy: str = "versatune",
) -> Path:
    """Write a complete run with an update every `every` steps; domain `best` gains weight and learns most.

    Under policy `steer` the weights already move at the measurement before training.

    After a share p of its steps, domain k's loss is 4 - p * (2 if k is best else 1) + k / 8; standard errors are
    0.0625. The floor acts only at the second update.
    """
    folder.mkdir(parents=True)
    weights = dict.fromkeys(names, 1 / len(names))
    decisions, metrics, num_tokens = [], [], dict.fromkeys(names, 0)
    for step in range(0, num_steps + 1, every):
        losses = {n: 4 - step / num_steps * (2 if k == best else 1) + k / 8 for k, n in enumerate(names)}
        after = weights if step == 0 and policy != "steer" else _moved(weights, names[best])
        if step:
            num_tokens = {n: count + round(8192 * weights[n]) for n, count in num_tokens.items()}
            metrics.append(_logged(step, weights, num_tokens))
        metrics.append({"step": step, **{f"domain/{n}/loss": loss for n, loss in losses.items()}})
        decisions.append(_decision(step // every, step, losses, weights, after))
        weights = after
    _write_lines(folder / "metrics.jsonl", metrics)
    _write_lines(folder / "decisions.jsonl", decisions)
    config = {"run": {"name": folder.name}, "mixture": {"policy": policy}, "train": {"steps": num_steps}}
    (folder / "config.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    (folder / "environment.json").write_text(json.dumps({"python": "3.11", "devices": ["cpu"]}), encoding="utf-8")
    (folder / "prior.json").write_text(
        json.dumps({"weights": decisions[0]["weights_before"], "labeller": names[1]}), encoding="utf-8"
    )
    return folder


def _moved(weights: dict[str, float], name: str) -> dict[str, float]:
    """Return weights with 1/16 of the others' moved to one domain."""
    moved = {n: weight * 15 / 16 for n, weight in weights.items()}
    return moved | {name: weights[name] + (1 - weights[name]) / 16}


def _logged(step: int, weights: dict[str, float], num_tokens: dict[str, int]) -> dict[str, Any]:
    """Return the metrics of a log line."""
    values: dict[str, Any] = {"step": step, "train/loss": 4 - min(step, 128) / 64}
    values |= {"perf/tokens_per_second": 1000.0 + step, "perf/step_seconds": 0.5, "perf/data_seconds": 0.001}
    values |= {f"domain/{n}/weight": weight for n, weight in weights.items()}
    return values | {f"domain/{n}/num_tokens": count for n, count in num_tokens.items()}


def _decision(
    update: int, step: int, losses: dict[str, float], before: dict[str, float], after: dict[str, float]
) -> dict[str, Any]:
    """Return one decision as in decisions.jsonl."""
    names = list(losses)
    return {
        "update": update,
        "decided_at_step": step,
        "effective_step": step + 3,
        "losses": {n: {"mean": loss, "stderr": 0.0625, "num_loss_tokens": 99} for n, loss in losses.items()},
        "signals": {
            n: {
                "learnable_potential": (loss - 1) / loss,
                "forgetting_degree": 0.03125 if update == 3 and n == names[-1] else 0.0,
                "forgetting_from_best": 0.0,
                "forgetting_from_start": 0.0,
                "reference_loss": 1.0,
            }
            for n, loss in losses.items()
        },
        "weights_before": before,
        "weights_after": after,
        "acted": [f"floor: {names[1]}"] if update == 2 else [],
        "reason": f"Update {update} because of {names[0]}.",
        "inputs": {},
        "digest": f"{update:064x}",
    }


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
