"""Settings of the run, its measurements and its checkpoints in other tools."""

from __future__ import annotations

from versatune_ds.config.tool_names.known_name import SAME, KnownName

RUN_NAMES = (
    KnownName(
        keys=("run.output_dir", "run.name"),
        how="the run's folder is output_dir/name",
        example=("run.output_dir=runs", "run.name=law"),
        transformers=("output_dir",),
        others=("save_dir", "out_dir"),
    ),
    KnownName(
        keys=("run.name",),
        example=("run.name=law",),
        transformers=("run_name",),
        axolotl=("wandb_name", "wandb_run_id"),
        others=("experiment_name", "wandb.name", "wandb.run_name"),
    ),
    KnownName(keys=("run.seed",), example=("run.seed=42",), transformers=("seed",), others=("random_seed",)),
    KnownName(
        keys=("mixture.update_every",),
        how="held-out losses are measured, and the weights updated, every so many steps",
        example=("mixture.update_every=50",),
        transformers=("eval_steps", "eval_strategy", "evaluation_strategy"),
        axolotl=("evals_per_epoch",),
        others=("eval_every", "eval_interval", "val_check_interval", "do_eval"),
    ),
    KnownName(
        keys=("checkpoint.every",),
        how="optimizer steps between checkpoints; one is always saved at the end",
        example=("checkpoint.every=200",),
        transformers=("save_steps", "save_strategy"),
        axolotl=("saves_per_epoch",),
        others=("save_every", "save_interval", "checkpoint_interval"),
    ),
    KnownName(keys=("checkpoint.keep",), example=("checkpoint.keep=3",), transformers=("save_total_limit",)),
    KnownName(
        keys=("monitor.log_every",),
        how="optimizer steps between two lines",
        example=("monitor.log_every=10",),
        transformers=("logging_steps", "logging_strategy"),
        others=("log_interval", "log_steps"),
    ),
    KnownName(
        keys=("monitor.wandb.mode", "monitor.tensorboard", "monitor.trackio.mode", "monitor.swanlab.mode"),
        how="wandb is monitor.wandb.mode=online, tensorboard is monitor.tensorboard=true, trackio is "
        "monitor.trackio.mode=local, swanlab is monitor.swanlab.mode=online, none is the default",
        example=("monitor.wandb.mode=online",),
        transformers=("report_to",),
        axolotl=("use_wandb", "wandb_mode"),
        others=("wandb", "use_tensorboard", "tensorboard"),
    ),
    KnownName(
        keys=("monitor.wandb.project",),
        how=f"{SAME}, with monitor.wandb.mode=online",
        example=("monitor.wandb.project=law", "monitor.wandb.mode=online"),
        axolotl=("wandb_project",),
    ),
    KnownName(
        keys=("monitor.wandb.entity",),
        how=f"{SAME}, with monitor.wandb.mode=online",
        example=("monitor.wandb.entity=team",),
        axolotl=("wandb_entity",),
    ),
    KnownName(
        how="a run whose folder exists resumes from its newest complete checkpoint; --fresh starts over, and "
        "resume.allow says what may differ",
        transformers=("resume_from_checkpoint", "overwrite_output_dir", "ignore_data_skip"),
        axolotl=("auto_resume_from_checkpoints",),
        others=("resume_from",),
    ),
    KnownName(
        how="a run uploads nothing; `versatune export RUN --push REPO_ID [--private]` uploads its model",
        transformers=("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_token"),
        axolotl=("hf_use_auth_token",),
    ),
    KnownName(
        keys=("checkpoint.best",),
        how="validation/loss (eval_loss), worst_domain or domain/NAME/loss, lower is better; a new best measurement is "
        "saved, and export and evaluate take it",
        example=("checkpoint.best=validation/loss",),
        transformers=("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    ),
    KnownName(
        keys=("train.early_stopping",),
        how="patience in measurements (mixture.update_every steps), min_delta in nats",
        example=("train.early_stopping={patience: 3}",),
        axolotl=("early_stopping_patience",),
        others=("early_stopping", "early_stopping_threshold", "early_stop"),
    ),
    KnownName(
        keys=("slurm.gpus_per_node", "slurm.nodes"),
        how="for Slurm; elsewhere `versatune train --processes N` sets the processes of a machine",
        example=("slurm.gpus_per_node=8", "slurm.nodes=2"),
        others=("num_gpus", "n_gpus", "ngpus", "devices", "num_nodes", "nproc_per_node", "num_processes_per_node"),
    ),
    KnownName(
        keys=("detect.hf.texts_per_batch",),
        example=("detect.hf={name_or_path: m, texts_per_batch: 8}",),
        others=("detect.hf.batch_size",),
    ),
    KnownName(
        keys=("detect.sampling.sequences_per_batch",),
        example=("detect.sampling.sequences_per_batch=64",),
        others=("detect.sampling.batch_size", "detect.batch_size"),
    ),
    KnownName(
        keys=("detect.openai.url",),
        example=("detect.openai.url=http://localhost:8000/v1", "detect.openai.model=m"),
        others=("openai.base_url", "openai.api_base"),
    ),
)
