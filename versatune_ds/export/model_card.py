"""Write the README.md of an exported model from what its run recorded.

A reader who finds only the folder learns what the model is made of: the base model and the domains, how the mixture
moved, what was gained and lost. The licence, which only the owner can state, is left open and marked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from versatune_ds.config import RunConfig
from versatune_ds.config.mixture_sections import StartFraction
from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.offline.recorded_losses import recorded_decisions
from versatune_ds.mixture.policies import POLICIES, Policy, fixed
from versatune_ds.report.scales import evenly
from versatune_ds.run_folder.json_lines import json_lines
from versatune_ds.run_folder.names import METRICS_FILE
from versatune_ds.run_folder.recorded_config import recorded_config

_NUM_DECISIONS_SHOWN = 8

_CARD = """\
---
# license: (yours to state; the licences of the base model and of the data set its limits)
library_name: {library}
pipeline_tag: text-generation
tags: [versatune, multi-domain]{base_line}
---
# {name}

{base}, fine-tuned on {num_domains} domains with {method}.
These are the weights after step {step} of {num_steps}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{place}")
model = AutoModelForCausalLM.from_pretrained("{place}")
messages = [{{"role": "user", "content": "..."}}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
written = model.generate(**prompt, max_new_tokens=100)
print(tokenizer.decode(written[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
```
{adapter_note}
## Domains and held-out losses

Nats per loss token on held-out rows, by the run's own measurements.

{losses}

## How the mixture moved

Policy `{policy}`; {num_updates} updates{shown}.{references}

{mixture}

## Training

{steps} steps of {rows} rows of {row_tokens} tokens, learning rate {learning_rate} ({schedule}), precision {precision},
loss on {loss_on} tokens. The run's complete recipe is in its `config.yaml`.

## Licence

Not stated yet. It is yours to choose within what the base model's and the data's licences allow; write it into the
first lines of this file.

## Citation

{cited}. Please cite it, and the base model and data sets, in what you build on this.
"""


def write_model_card(
    run_dir: Path, *, folder: Path, step: int, is_adapter: bool = False, repo_id: str | None = None
) -> None:
    """Write README.md into an exported model's folder.

    Args:
        run_dir: The run's folder.
        folder: The exported model.
        step: Step of the exported checkpoint; later decisions are omitted.
        is_adapter: Whether the folder contains adapters, which need their base model.
        repo_id: Name of the Hub repository that the folder will be uploaded to.
    """
    config = recorded_config(run_dir)
    decisions = [decision for decision in recorded_decisions(run_dir) if decision.decided_at_step <= step]
    measured = _last_measurement(run_dir / METRICS_FILE, step=step, domains=tuple(decisions[0].weights_after))
    text = _text(config, decisions, measured=measured, step=step, is_adapter=is_adapter, place=repo_id or "PATH")
    (folder / "README.md").write_text(text, encoding="utf-8")


def _last_measurement(path: Path, *, step: int, domains: Sequence[str]) -> tuple[int, dict[str, float | None]]:
    """Return the step and the held-out losses by domain of the last measurement at or before a step."""
    last: tuple[int, dict[str, float | None]] = (0, {})
    for line in json_lines(path):
        values = line.value or {}  # a line may be damaged, or still being written
        losses = {name: values.get(f"domain/{name}/loss") for name in domains}
        if values.get("step", math.inf) <= step and any(loss is not None for loss in losses.values()):
            last = values["step"], losses
    return last


def _text(
    config: RunConfig,
    decisions: Sequence[Decision],
    *,
    measured: tuple[int, Mapping[str, float | None]],
    step: int,
    is_adapter: bool,
    place: str,
) -> str:
    named = config.model.name_or_path
    is_hub_name = named is not None and not Path(named).exists()
    rule = _rule(config.mixture.policy)
    shown = [decisions[i] for i in evenly(len(decisions), _NUM_DECISIONS_SHOWN)]
    adapter_note = (
        "\nThe folder contains adapters only: `peft.AutoPeftModelForCausalLM` loads them with their base model.\n"
    )
    return _CARD.format(
        name=config.run.name,
        place=place,
        library="peft" if is_adapter else "transformers",
        base_line=f"\nbase_model: {named}" if is_hub_name else "",
        base=_base(config),
        num_domains=len(decisions[0].weights_after),
        method=rule.method,
        cited=rule.citation,
        step=step,
        num_steps=config.train.steps,
        adapter_note=adapter_note if is_adapter else "",
        losses=_losses(decisions[0], measured),
        policy=config.mixture.policy,
        num_updates=sum(decision.is_update for decision in decisions),
        shown="" if len(shown) == len(decisions) else f", of which {len(shown)} are shown",
        references=_references(config),
        mixture=_mixture(shown),
        steps=step,
        rows=config.train.rows_per_batch,
        row_tokens=config.data.row_tokens,
        learning_rate=f"{config.train.learning_rate:g}",
        schedule=config.train.learning_rate_schedule,
        precision=config.train.precision,
        loss_on=config.data.loss_on,
    )


def _references(config: RunConfig) -> str:
    """Return a sentence on where the reference losses are from; empty for a policy without."""
    reference = config.mixture.reference
    if reference is None or not _rule(config.mixture.policy).needs_references:
        return ""
    if isinstance(reference, StartFraction):
        return f" Its reference losses are stand-ins: {reference.start_fraction:.0%} of each domain's first loss."
    return f" Its reference losses are {'from a file' if isinstance(reference, Path) else 'given by the recipe'}."


def _base(config: RunConfig) -> str:
    """Return the base model's name, without a path of the machine it was trained on."""
    if config.model.name_or_path is None:
        return f"A {config.model.from_config['model_type']} model that began from random weights"
    named = config.model.gguf_file or config.model.name_or_path
    return f"`{Path(named).name if Path(named).exists() else named}`"


def _rule(policy: str) -> Policy:
    """Return the policy of a run; for a user's own, whose module may be missing here, a policy with default texts."""
    own_method = f"`versatune_ds`, whose data mixture moves while the model trains, by the policy `{policy}`"
    return POLICIES.get(policy) or Policy(name=policy, update=fixed.update, method=own_method)


def _losses(first: Decision, last: tuple[int, Mapping[str, float | None]]) -> str:
    """Return the losses before training and at the last measurement as a table."""
    step, after = last
    lines = [f"| domain | step {first.decided_at_step} | step {step} |", "|---|---:|---:|"]
    for name in first.weights_after:
        before = first.losses.get(name, {}).get("mean")
        lines.append(f"| {escaped(name)} | {_number(before)} | {_number(after.get(name))} |")
    return "\n".join(lines)


def _number(loss: float | None) -> str:
    return "not measured" if loss is None else f"{loss:.3f}"


def _mixture(decisions: Sequence[Decision]) -> str:
    """Return the weights after each of some decisions as a table."""
    names = list(decisions[0].weights_after)
    lines = [f"| after step | {' | '.join(map(escaped, names))} |", f"|---:|{'---:|' * len(names)}"]
    for decision in decisions:
        weights = " | ".join(f"{decision.weights_after[name]:.3f}" for name in names)
        lines.append(f"| {decision.decided_at_step} | {weights} |")
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Escape text for Markdown, also in a table; underscores within words need no escape."""
    return re.sub(r"[\\`*<>\[\]|~]|\b_|_\b", r"\\\g<0>", text)
