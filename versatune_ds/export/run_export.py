"""Write a run's model as a folder that transformers loads.

Parameter names never change while training, so exporting is copying the checkpoint's weights, one file at a time,
beside the config, the tokenizer with its chat template, and a model card.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from versatune_ds.config import RunConfig
from versatune_ds.distributed import World
from versatune_ds.engine.checkpoint import open_weights
from versatune_ds.export.base_model import frozen_weights
from versatune_ds.export.folder import check_output, export_folder
from versatune_ds.export.model_card import write_model_card
from versatune_ds.export.replaced import log_what_is_replaced
from versatune_ds.model.build import DTYPES, save_model_settings
from versatune_ds.model.trainable_parameters import add_adapters, merged_weights, save_adapters
from versatune_ds.model.weight_files import DEFAULT_MAX_SHARD_SIZE, Weight, write_weights
from versatune_ds.run_folder.checkpoint_files import (
    check_valid,
    complete_checkpoints,
    newest_valid_checkpoint,
    read_state,
)
from versatune_ds.run_folder.names import (
    EXPORT_FOLDER,
    MODEL_FOLDER,
    TOKENIZER_FOLDER,
    checkpoint_folder,
    step_of_checkpoint,
)
from versatune_ds.run_folder.recorded_config import recorded_config
from versatune_ds.training.end_tokens import recorded_endings, stop_at_ends

logger = logging.getLogger(__name__)

WRAPPER_PREFIX = "causal_lm."
"""What a checkpoint puts before the names of the model's weights."""


def export_run(
    run_dir: Path,
    *,
    output: Path,
    precision: str | None = None,
    step: int | None = None,
    lora: str = "merged",
    max_shard_size: str = DEFAULT_MAX_SHARD_SIZE,
    is_forced: bool = False,
    repo_id: str | None = None,
) -> Path:
    """Write a checkpoint's model, config, tokenizer and model card in Hugging Face form.

    The tokens that ended answers in training are added to `eos_token_id`, so that generation stops at them.
    Under ZeRO-3 no more than one file's weights are in memory at a time. Of a run with adapters, whose base model is
    loaded again to merge them (export/base_model.py), all are, in the precision of training.

    Args:
        run_dir: The run's folder.
        output: Folder to write; may exist if it is empty or has an earlier export of the run, which is replaced.
        precision: fp32, bf16 or fp16: the number format of the written weights; the run's own by default.
        step: The checkpoint's step; by default that of the best one where the run has `checkpoint.best`, else of the
            newest valid one.
        lora: `merged` adds a run's adapters into its weights, in fp32; `adapter` writes the adapters alone.
        max_shard_size: Size of a weights file, such as 500MB.
        is_forced: Whether files of another origin in the output may be replaced.
        repo_id: Name of the Hub repository that it will be uploaded to, for the model card.

    Raises:
        ValueError: If the folder is no run, has no such checkpoint or no adapters to write alone, or if the output
            contains something else.
        RuntimeError: If no usable checkpoint is valid, its weights are not those of the model, or the base model of
            its adapters has changed.
    """
    checkpoint = choose_checkpoint(run_dir, step=step)
    config = recorded_config(run_dir)
    base, name = config.model.name_or_path, config.run.name
    check_output(output, run_name=name, run_dir=run_dir, base_model=base, is_forced=is_forced)
    if (is_adapter := lora == "adapter") and config.model.lora is None:
        raise ValueError("--lora adapter: the run trained no adapters (model.lora); leave the option out")
    dtype = DTYPES[precision or config.train.precision]
    causal_lm = model_without_weights(run_dir, config, dtype=dtype)
    frozen = frozen_weights(checkpoint, causal_lm, config=config, is_adapter=is_adapter)
    weights = weights_of_model({**frozen, **open_weights(checkpoint)}, causal_lm, origin=checkpoint)
    tokenizer, end_token_ids = _tokenizer_of(run_dir, config)
    log_what_is_replaced(output)
    saved_at = read_state(checkpoint)["step"]
    with export_folder(output, run_name=name, step=saved_at) as folder:
        if is_adapter:
            write_adapters(causal_lm, weights, folder=folder, dtype=dtype, base_model=base)
            causal_lm.generation_config.save_pretrained(folder)
        else:
            weights = merged_weights(causal_lm, weights) if config.model.lora is not None else weights
            write_weights(weights, folder=folder, dtype=dtype, max_shard_size=max_shard_size)
            save_model_settings(causal_lm, folder)
        stop_at_ends(folder, end_token_ids, tokenizer=tokenizer)
        tokenizer.save_pretrained(folder)
        write_model_card(run_dir, folder=folder, step=saved_at, is_adapter=is_adapter, repo_id=repo_id)
    logger.info("exported %s to %s", checkpoint.name, output)
    return output


def _tokenizer_of(run_dir: Path, config: RunConfig) -> tuple[Any, list[int]]:
    """Return a run's tokenizer with the template that it trained on, and the tokens that ended answers."""
    trust = config.model.trust_remote_code
    tokenizer = AutoTokenizer.from_pretrained(run_dir / TOKENIZER_FOLDER, trust_remote_code=trust)
    endings = recorded_endings(run_dir, config, tokenizer)
    if endings["chat_template"] is not None:
        tokenizer.chat_template = endings["chat_template"]
    return tokenizer, endings["end_token_ids"]


def export_into_run(run_dir: Path) -> Path:
    """Export a run's model into its own folder, and return where; for a monitor that keeps it at the end."""
    return export_run(run_dir, output=run_dir / EXPORT_FOLDER)


def write_adapters(
    causal_lm: Any, weights: Mapping[str, Weight], *, folder: Path, dtype: torch.dtype, base_model: str | None
) -> None:
    """Write the adapters among a model's weights, and nothing else."""
    adapters = {name: weight.contiguous().to(dtype) for name, weight in weights.items() if "lora_" in name}
    causal_lm.load_state_dict(adapters, strict=False, assign=True)
    save_adapters(causal_lm, folder, base_model=base_model)


def model_without_weights(run_dir: Path, config: RunConfig, *, dtype: torch.dtype) -> Any:
    """Return a run's model, with its adapters, on the meta device; its config has the exported dtype and class."""
    folder, trust = run_dir / MODEL_FOLDER, {"trust_remote_code": config.model.trust_remote_code}
    with torch.device("meta"):
        causal_lm = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, **trust), dtype=dtype, **trust)
        if config.model.lora is not None:
            add_adapters(causal_lm, config.model.lora)
    causal_lm.config.architectures = [type(causal_lm).__name__]
    causal_lm.config.dtype = dtype
    has_generation = (folder / "generation_config.json").is_file()
    causal_lm.generation_config = (
        GenerationConfig.from_pretrained(folder)
        if has_generation
        else GenerationConfig.from_model_config(causal_lm.config)
    )
    return causal_lm


def weights_of_model(weights: Mapping[str, Weight], causal_lm: Any, *, origin: Path) -> dict[str, Weight]:
    """Return a run's weights, each under one name in the model: tied weights under the name of their source.

    Raises:
        RuntimeError: If they are not those of the model; the message begins with their origin.
    """
    found = {name.removeprefix(WRAPPER_PREFIX): weight for name, weight in weights.items()}
    expected = {name: weight.shape for name, weight in causal_lm.state_dict().items()}
    sources: Mapping[str, str] = getattr(causal_lm, "all_tied_weights_keys", None) or {}
    for target, source in sources.items():
        expected.pop(target, None)
        weight = found.pop(target, None)
        if source not in found and weight is not None:
            found[source] = weight
    wrong = {name for name in {*found, *expected} if name not in found or found[name].shape != expected.get(name)}
    if wrong:
        named = ", ".join(sorted(wrong)[:5])
        raise RuntimeError(f"{origin}: its weights are not those of {type(causal_lm).__name__}: {named}")
    return found


def choose_checkpoint(run_dir: Path, *, step: int | None) -> Path:
    """Return the checkpoint of a step, or the best one of a run with `checkpoint.best`, or the newest valid one.

    Which one it is, and why, is logged where the run kept a best one; and so is each one that is corrupt.

    Raises:
        ValueError: If there is none, or none of that step.
        RuntimeError: If the requested checkpoint is corrupt, or all are.
    """
    checkpoints = complete_checkpoints(run_dir)
    if not checkpoints:
        raise ValueError(f"{run_dir}: no complete checkpoint to export; is it a run's folder, and did the run save?")
    if step is not None:
        folder = checkpoint_folder(run_dir, step=step)
        if folder not in checkpoints:
            saved = ", ".join(str(step_of_checkpoint(path.name)) for path in reversed(checkpoints))
            raise ValueError(f"--step {step}: {run_dir} has no checkpoint of that step; there are those of {saved}")
        check_valid(folder)
        return folder
    best = _best_checkpoint(checkpoints)
    if best is not None:
        return best
    newest = newest_valid_checkpoint(run_dir, World())
    if newest is None:
        raise RuntimeError(f"{run_dir}: every checkpoint is corrupt; restore one from a backup, or train again")
    return newest


def _state_or_none(checkpoint: Path) -> dict[str, Any] | None:
    """Return this package's state in a checkpoint, None where it cannot be read."""
    try:
        return read_state(checkpoint)
    except (OSError, ValueError):
        return None


def _best_checkpoint(checkpoints: Sequence[Path]) -> Path | None:
    """Return the best checkpoint that the newest one records; None where the run keeps none, or it is lost or corrupt.

    Args:
        checkpoints: The complete ones, newest first.
    """
    best = next((state.get("best") for state in map(_state_or_none, checkpoints) if state is not None), None)
    if best is None or best["step"] is None:
        return None
    newest_step = step_of_checkpoint(checkpoints[0].name)
    about = f"step {best['step']}, the best by {best['metric']} ({best['value']:.4f})"
    folder = checkpoints[0].with_name(checkpoint_folder(Path(), step=best["step"]).name)
    try:
        if folder not in checkpoints:
            raise RuntimeError(f"{folder} is missing")
        check_valid(folder)
    except RuntimeError as error:
        logger.warning("%s cannot be used (%s): using the newest checkpoint instead", about, error)
        return None
    newest = "also the newest" if best["step"] == newest_step else f"the newest is of step {newest_step} (--step)"
    logger.info("using %s; %s", about, newest)
    return folder
