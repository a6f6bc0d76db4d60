"""Write a run's model as a folder that transformers loads.

The one idea: parameter names never changed while training, so exporting is reading the checkpoint's weights and
letting transformers save them with its config and the tokenizer.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from versatune_ds.config import LoraConfig
from versatune_ds.training.checkpoint import check_sound, checkpoint_folder, read_weights, whole_checkpoints
from versatune_ds.training.model import DTYPES
from versatune_ds.training.run_folder import CONFIG_FILE
from versatune_ds.training.trained import add_adapters, merge_adapters

logger = logging.getLogger(__name__)

_WRAPPER_PREFIX = "causal_lm."


def export_run(run_dir: Path, *, output: Path, precision: str | None = None, step: int | None = None) -> Path:
    """Write a checkpoint's model, config and tokenizer in Hugging Face form.

    Args:
        run_dir: The run's folder.
        output: Folder to write; may exist, files of the same names are replaced.
        step: The checkpoint's step; the newest sound one by default.
        precision: fp32, bf16 or fp16: the number format of the written weights; the run's own by default.

    Raises:
        ValueError: If the folder is no run or has no such checkpoint.
        RuntimeError: If no checkpoint that may be taken is sound.
    """
    checkpoint = choose_checkpoint(run_dir, step=step)
    recipe = yaml.safe_load((run_dir / CONFIG_FILE).read_text(encoding="utf-8"))
    dtype = DTYPES[precision or recipe["train"]["precision"]]
    lora = LoraConfig(**recipe["model"]["lora"]) if recipe["model"].get("lora") else None
    config = AutoConfig.from_pretrained(run_dir / "model")
    # Adapters are merged in fp32, and the sum is rounded once.
    read_dtype = torch.float32 if lora else dtype
    with torch.device("meta"):
        causal_lm = AutoModelForCausalLM.from_config(config, dtype=read_dtype)
        if lora is not None:
            add_adapters(causal_lm, lora)
    weights = {name.removeprefix(_WRAPPER_PREFIX): tensor for name, tensor in read_weights(checkpoint).items()}
    weights = {name: tensor.to(read_dtype) for name, tensor in weights.items()}
    missing, unexpected = causal_lm.load_state_dict(weights, strict=False, assign=True)
    tied = set(getattr(causal_lm, "all_tied_weights_keys", None) or ())
    if unexpected or set(missing) - tied:
        raise RuntimeError(f"{checkpoint}: weights do not fit the model: missing {missing}, unknown {unexpected}")
    causal_lm.tie_weights()
    if lora is not None:
        merge_adapters(causal_lm)
        causal_lm.to(dtype)
    if (run_dir / "model" / "generation_config.json").is_file():
        causal_lm.generation_config = GenerationConfig.from_pretrained(run_dir / "model")
    causal_lm.save_pretrained(output)
    AutoTokenizer.from_pretrained(run_dir / "tokenizer").save_pretrained(output)
    logger.info("exported %s to %s", checkpoint.name, output)
    return output


def choose_checkpoint(run_dir: Path, *, step: int | None) -> Path:
    """Return the checkpoint of a step, or the newest one that is sound, naming each that is not.

    Raises:
        ValueError: If there is none, or none of that step.
        RuntimeError: If the one asked for is broken, or all are.
    """
    checkpoints = whole_checkpoints(run_dir)
    if not checkpoints:
        raise ValueError(f"{run_dir}: no whole checkpoint to export; is it a run's folder, and did the run save?")
    if step is not None:
        folder = checkpoint_folder(run_dir, step=step)
        if folder not in checkpoints:
            saved = ", ".join(str(int(path.name.removeprefix("step_"))) for path in reversed(checkpoints))
            raise ValueError(f"--step {step}: {run_dir} has no checkpoint of that step; there are those of {saved}")
        check_sound(folder)
        return folder
    for folder in checkpoints:
        try:
            check_sound(folder)
        except RuntimeError as error:
            logger.warning("%s", error)
        else:
            return folder
    raise RuntimeError(f"{run_dir}: every checkpoint is broken")
