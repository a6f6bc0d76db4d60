"""Keep the weights that single-domain runs end with; their size is logged, and the disk checked, before training."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence

from versatune_ds.distributed import run_on_rank_zero
from versatune_ds.export.kept_model import keep_model, model_bytes
from versatune_ds.model.build import special_ids_of_tokenizer
from versatune_ds.reference.one_domain import domain_recipe
from versatune_ds.training.prepared_data import RunSetup
from versatune_ds.training.run import Run

logger = logging.getLogger(__name__)


def check_room_for_models(setup: RunSetup, names: Sequence[str]) -> None:
    """Log how large the kept models of some domains will be; on rank 0 only.

    Checkpoints need room too, which is not counted here: each is deleted when its domain is measured.

    Raises:
        ValueError: If the disk has no room for them.
    """
    if not names:
        return
    recipe = domain_recipe(setup.config, names[0])
    special_ids = special_ids_of_tokenizer(setup.tokenizer)
    one = model_bytes(recipe, vocab_size=len(setup.tokenizer), special_ids=special_ids)
    what = "model" if recipe.model.lora is None else "set of adapters"
    size = f"{len(names)} {what}{'s' if len(names) > 1 else ''} of {bytes_text(one)}: {bytes_text(len(names) * one)}"
    folder, way_out = recipe.run.output_dir, "reference.keep_models=false keeps none"
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < len(names) * one:
        raise ValueError(
            f"reference.keep_models: {size} in {folder}, but only {bytes_text(free)} are free there; {way_out}, or set "
            "run.output_dir to a larger disk"
        )
    logger.info("kept after training: %s in %s; %s", size, folder, way_out)


def bytes_text(num_bytes: int) -> str:
    """Return a size with a unit that a disk's size is given in.

    Example: 1,234,567,890 gives 1.2 GB.
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:,.1f} {name}"
    return f"{num_bytes / 1e3:,.1f} kB"


def keep_run_model(run: Run) -> None:
    """Write a run's present weights into its folder, its adapters alone where it trains adapters.

    Communication: that of `Engine.full_weights`, then a broadcast; every rank calls it.
    """
    weights = run.engine.full_weights(only_trained=run.config.model.lora is not None)
    run_on_rank_zero(lambda: keep_model(run.config.run_dir, weights), run.world)
