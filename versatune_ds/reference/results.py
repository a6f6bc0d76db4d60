"""Collect the results of the single-domain runs, and write what all domains make: reference.json and transfer.json."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from versatune_ds.reference.command import ReferenceTask
from versatune_ds.reference.file import Result, provenance, reference_content, reference_notes, reference_table
from versatune_ds.reference.one_domain import ALL_DOMAINS, domain_recipe, made_with, read_result
from versatune_ds.reference.score import scored_recipe
from versatune_ds.reference.transfer_file import transfer_path, transfer_table, transfer_text, without_transfer
from versatune_ds.reference.transfer_record import held_out_digests
from versatune_ds.run_folder.atomic import write_json
from versatune_ds.run_folder.names import MODEL_FOLDER
from versatune_ds.training.mixture_start import loss_digests
from versatune_ds.training.prepared_data import RunSetup

logger = logging.getLogger(__name__)


def unmeasured_domains(setup: RunSetup) -> tuple[str, ...]:
    """Return the domains without held-out rows."""
    return tuple(name for name, shards in zip(setup.domain_set, setup.data.valid, strict=True) if not len(shards))


def all_results(setup: RunSetup) -> list[Result]:
    """Return the results of all domains that are measured as the recipe asks, on rank 0; the other ranks write nothing.

    Domains that --domains excludes may have been measured before, or by another job.
    """
    if not setup.world.is_rank_zero:
        return []
    measured = [name for name in setup.domain_set if name not in unmeasured_domains(setup)]
    results = {name: read_result(setup.config, name) for name in measured}
    return [result for name, result in results.items() if result and result["made_with"] == made_with(setup, name)]


def write_files(setup: RunSetup, results: Sequence[Result], *, task: ReferenceTask) -> None:
    """Log the results; write reference.json, or log which domains are still missing."""
    output = task.output or setup.config.default_output("reference")
    recipe = domain_recipe(setup.config, setup.domain_set.names[0])
    if task.scored_model is not None:
        recipe = scored_recipe(recipe, task.scored_model)
    # Results and what to look at.
    logger.info("references\n%s", reference_table(results))
    for note in reference_notes(results, most_steps=recipe.train.steps, origin=str(output)):
        logger.warning("%s", note)
    # The file, where every domain has a result.
    known = {result["domain"] for result in results}
    unmeasured = unmeasured_domains(setup)
    missing = [name for name in setup.domain_set if name not in known and name not in unmeasured]
    if missing:
        logger.warning("still to be measured: %s; %s is written when all domains are", ", ".join(missing), output)
        return
    how = f"scored: {task.scored_model}" if task.scored_model else "fine-tuned on each domain alone, held-out minimum"
    digests = loss_digests(setup.config, setup.tokenizer, setup.data)
    content = reference_content(results, config=recipe, digests=digests, how=how, unmeasured=unmeasured)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, content)
    is_named = output == setup.config.mixture.reference
    use = "the recipe uses it" if is_named else f"train with mixture.reference={output}"
    logger.info("wrote %s; %s", output, use)
    if setup.config.reference.transfer and task.scored_model is None:
        # A device or a pipe, which --output may be, has nothing beside it.
        is_file = output.is_file()
        place = transfer_path(output if is_file else setup.config.default_output("reference"))
        _write_transfer(setup, results, output=place, origin=provenance(recipe, digests=digests))


def _write_transfer(setup: RunSetup, results: Sequence[Result], *, output: Path, origin: Mapping[str, Any]) -> None:
    """Write transfer.json and log its table, or log which domains have to be measured again for it."""
    unknown = without_transfer(results, held_out=held_out_digests(setup.data))
    if unknown:
        logger.warning(
            "%s is not written: %s measured without the losses of all domains; for it, measure again with --domains %s "
            "--fresh", output, f"{', '.join(unknown)} {'was' if len(unknown) == 1 else 'were'}", ",".join(unknown),
        )  # fmt: skip
        return
    table = transfer_table(
        results,
        domain_set=setup.domain_set,
        unmeasured=unmeasured_domains(setup),
        provenance=origin,
        models={result["domain"]: _kept_model(setup, result) for result in results},
        folder=output.parent,
        mixed=_mixed_result(setup),
    )
    write_json(output, table.to_dict())
    logger.info("%s", transfer_text(table))
    logger.info("wrote %s", output)


def _mixed_result(setup: RunSetup) -> Result | None:
    """Return the result of the run on equal shares, where it was measured as the recipe asks; None otherwise."""
    result = read_result(setup.config, ALL_DOMAINS)
    if result is None or result["made_with"] != made_with(setup, ALL_DOMAINS):
        return None
    return (
        None if without_transfer([{"domain": ALL_DOMAINS, **result}], held_out=held_out_digests(setup.data)) else result
    )


def _kept_model(setup: RunSetup, result: Result) -> Path | None:
    """Return the folder of a result's kept weights, None where there are none."""
    folder = domain_recipe(setup.config, result["domain"]).run_dir / result.get("model", MODEL_FOLDER)
    has_weights = "model" in result and any(folder.glob("*.safetensors"))
    return folder if has_weights else None
