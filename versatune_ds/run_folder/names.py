"""Names of the files and folders in a run's folder; other modules import them from here."""

from __future__ import annotations

from pathlib import Path

CONFIG_FILE = "config.yaml"
"""The current resolved recipe."""
ENVIRONMENT_FILE = "environment.json"
"""Versions, commit, launcher, devices."""
PRIOR_FILE = "prior.json"
"""Weights of step 0, and where they came from."""
PLAN_FILE = "plan.json"
"""The plan that the weights of step 0 come from, where `mixture.prior` is one."""
REFERENCE_FILE = "reference.json"
"""The current reference losses, where they were given as losses."""
ENDINGS_FILE = "endings.json"
"""Tokens that ended the turns of the training data, and the chat template."""
METRICS_FILE = "metrics.jsonl"
"""One object of flat numbers a line."""
DECISIONS_FILE = "decisions.jsonl"
"""One decision of the controller a line."""
TRANSFER_FILE = "transfer.jsonl"
"""Of a run of `versatune reference` on one domain: one measurement of all domains a line."""
TRANSFER_BASE_FILE = "transfer_base.json"
"""Of such a run: the base model's losses by example, which every line of TRANSFER_FILE is paired with."""
EARLY_STOP_FILE = "early_stop.json"
"""After which step, and why, a run ended before its last step; only where `train.early_stopping` ended it."""
RESUMES_FILE = "resumes.jsonl"
"""One line a resume: from which checkpoint, and what had changed."""
CONTROL_FILE = "control.json"
"""Live control, written by the user while the run trains."""
EXPERTS_FILE = "experts.json"
"""Of a mixture of experts: tokens that each expert got, by domain and layer."""
EVALUATION_FILE = "evaluation.json"
"""Result of `versatune evaluate`."""
WANDB_ID_FILE = "wandb_id"
"""The run's id at W&B, so that its parts are one history there."""
SWANLAB_ID_FILE = "swanlab_id"
"""The same at SwanLab."""

TOKENIZER_FOLDER = "tokenizer"
MODEL_FOLDER = "model"
"""The model's config, without weights; those of a run of `versatune reference` on one domain are kept in it too."""
REPORT_FOLDER = "report"
EXPORT_FOLDER = "export"
EXPORT_FILE = "versatune_export.json"
"""In an export: which run, and after which step."""
TENSORBOARD_FOLDER = "tensorboard"
SWANLAB_FOLDER = "swanlab"
CHECKPOINTS_FOLDER = "checkpoints"

LATEST_FILE = "latest"
"""In the folder of checkpoints: the name of the newest one."""
STATE_FILE = "versatune.json"
"""In a checkpoint: this package's own state."""
MANIFEST_FILE = "MANIFEST"
"""In a checkpoint: every file with its size and checksum."""


def checkpoint_folder(run_dir: Path, *, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return run_dir / CHECKPOINTS_FOLDER / f"step_{step:08d}"


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """Return the folders of complete checkpoints, newest first; their files are not checked."""
    folders = (run_dir / CHECKPOINTS_FOLDER).glob("step_????????")
    return sorted((path for path in folders if (path / MANIFEST_FILE).is_file()), reverse=True)


def step_of_checkpoint(name: str) -> int:
    """Return the step of a checkpoint, given the name of its folder."""
    return int(name.removeprefix("step_"))


def newest_step(run_dir: Path) -> int:
    """Return the step of a run's newest checkpoint, 0 without one; its files are not checked."""
    latest = run_dir / CHECKPOINTS_FOLDER / LATEST_FILE
    return step_of_checkpoint(latest.read_text(encoding="utf-8").strip()) if latest.is_file() else 0
