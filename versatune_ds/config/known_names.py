"""Answer names of other fine-tuning tools with the key of a recipe here, and how the value converts.

Sources: transformers' `TrainingArguments` and `from_pretrained`, and TRL's `SFTConfig` and `ModelConfig`, which extend
them; LLaMA-Factory's arguments; Axolotl's config. `others` are names of PyTorch code, peft, DeepSpeed's JSON and the
command lines of many scripts. Only what such a name is here is written down; a misspelt name of ours is answered with
the nearest one (`error_messages.py`).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from versatune_ds.mixture.policies.fixed import CONSTANT, PROPORTIONAL

SAME = "the same value"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownName:
    """What one setting of other tools is here, whatever they call it.

    A name is matched as the last part of a dotted key. With dots (`lora.r`) it matches only where those parts agree.
    """

    keys: tuple[str, ...] = ()
    """Our keys for it, the first one decisive; empty where there is none."""
    how: str = SAME
    """How the value converts; without keys, why there is none and what to do instead."""
    example: tuple[str, ...] = ()
    """Overrides that are what the other tool's setting would be here."""
    transformers: tuple[str, ...] = ()
    """Names in transformers and TRL."""
    llama_factory: tuple[str, ...] = ()
    """Names in LLaMA-Factory that are not transformers' own."""
    axolotl: tuple[str, ...] = ()
    """Names in Axolotl that are not transformers' own."""
    others: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Return all names of the setting."""
        return (*self.transformers, *self.llama_factory, *self.axolotl, *self.others)

    def answer(self, keys: tuple[str, ...] | None = None) -> str:
        """Return what to write instead, in one clause; `keys` replaces our keys where another section has them too."""
        keys = keys or self.keys
        if not keys:
            return f"there is none here: {self.how}"
        if self.how == SAME:
            return f"here it is {keys[0]}, with {SAME}"
        example = f"; for example {' '.join(self.example)}" if self.example else ""
        return f"here it is {' with '.join(keys)}: {self.how}{example}"


_BATCH = "rows_per_batch = per device x accumulation x GPUs (64 = 2 x 4 x 8), in packed rows of data.row_tokens tokens"

KNOWN_NAMES = (
    # Batch size and length.
    KnownName(
        keys=("train.rows_per_micro_batch", "train.rows_per_batch"),
        how=f"rows_per_micro_batch is the batch of one device, and {_BATCH}",
        example=("train.rows_per_micro_batch=2", "train.rows_per_batch=64"),
        transformers=("per_device_train_batch_size", "per_gpu_train_batch_size"),
        axolotl=("micro_batch_size",),
        others=(
            "per_device_batch_size",
            "train_micro_batch_size_per_gpu",
            "batch_size_per_device",
            "device_batch_size",
        ),
    ),
    KnownName(
        keys=("train.rows_per_batch",),
        how=f"it follows from rows_per_batch: {_BATCH}",
        example=("train.rows_per_batch=64",),
        transformers=("gradient_accumulation_steps",),
        others=("grad_accum_steps", "accumulate_grad_batches", "accumulation_steps"),
    ),
    KnownName(
        keys=("train.rows_per_batch", "train.rows_per_micro_batch"),
        how=f"{_BATCH}; rows_per_micro_batch is the batch of one device",
        example=("train.rows_per_batch=64", "train.rows_per_micro_batch=2"),
        axolotl=("batch_size",),
        others=("global_batch_size", "train_batch_size", "effective_batch_size", "total_batch_size"),
    ),
    KnownName(
        keys=("validation.rows_per_micro_batch",),
        how="packed rows that one device evaluates at a time",
        example=("validation.rows_per_micro_batch=4",),
        transformers=("per_device_eval_batch_size", "per_gpu_eval_batch_size"),
        axolotl=("eval_batch_size",),
    ),
    KnownName(
        keys=("train.steps",),
        how="steps = epochs x the steps of one pass over all data, which `versatune check` reports (tokens of the data "
        "/ (train.rows_per_batch x data.row_tokens))",
        example=("train.steps=500",),
        transformers=("num_train_epochs",),
        axolotl=("num_epochs",),
        others=("epochs", "max_epochs", "n_epochs", "num_epoch"),
    ),
    KnownName(
        keys=("train.steps",),
        example=("train.steps=500",),
        transformers=("max_steps",),
        others=("num_steps", "num_train_steps", "max_train_steps", "total_steps", "train_steps"),
    ),
    KnownName(
        keys=("data.row_tokens",),
        how="tokens of a packed row, which holds as many examples as fit; data.long_examples says what happens to "
        "longer ones",
        example=("data.row_tokens=4096",),
        transformers=("max_seq_length", "max_length"),
        llama_factory=("cutoff_len",),
        axolotl=("sequence_len", "eval_sequence_len"),
        others=(
            "seq_length",
            "seq_len",
            "sequence_length",
            "block_size",
            "max_seq_len",
            "model_max_length",
            "context_length",
        ),
    ),
    # Optimisation.
    KnownName(
        keys=("train.learning_rate",),
        example=("train.learning_rate=1e-4",),
        transformers=("learning_rate",),
        others=("lr", "max_lr", "base_lr", "peak_lr"),
    ),
    KnownName(
        keys=("train.learning_rate_schedule",),
        how="cosine, linear, constant or wsd; constant_with_warmup is constant, warmup_stable_decay is wsd",
        example=("train.learning_rate_schedule=cosine",),
        transformers=("lr_scheduler_type",),
        axolotl=("lr_scheduler",),
        others=("scheduler", "lr_schedule"),
    ),
    KnownName(
        keys=("train.min_learning_rate_fraction",),
        how="the last learning rate as a fraction of the peak: 2e-6 of 2e-5 is 0.1",
        example=("train.min_learning_rate_fraction=0.1",),
        transformers=("lr_scheduler_kwargs",),
        axolotl=("cosine_min_lr_ratio",),
        others=("min_lr", "min_lr_rate", "min_lr_ratio", "end_lr"),
    ),
    KnownName(
        keys=("train.warmup_fraction",),
        example=("train.warmup_fraction=0.03",),
        transformers=("warmup_ratio",),
    ),
    KnownName(
        keys=("train.warmup_steps",),
        example=("train.warmup_steps=10", "train.steps=500"),
        transformers=("warmup_steps",),
        others=("num_warmup_steps", "lr_warmup_steps"),
    ),
    KnownName(
        keys=("train.optimizer",),
        how="adamw_torch and adamw_torch_fused are adamw, adamw_bnb_8bit is adamw_8bit",
        example=("train.optimizer=adamw_8bit",),
        transformers=("optim",),
        axolotl=("optimizer",),
    ),
    KnownName(
        keys=("train.beta1",), example=("train.beta1=0.9",), transformers=("adam_beta1",), others=("adam_beta_1",)
    ),
    KnownName(
        keys=("train.beta2",), example=("train.beta2=0.95",), transformers=("adam_beta2",), others=("adam_beta_2",)
    ),
    KnownName(how="it is PyTorch's default, 1e-8; leave the key out", transformers=("adam_epsilon",)),
    KnownName(keys=("train.weight_decay",), example=("train.weight_decay=0.1",), transformers=("weight_decay",)),
    KnownName(
        keys=("train.max_grad_norm",),
        how=f"{SAME}; 0 turns clipping off",
        example=("train.max_grad_norm=1.0",),
        transformers=("max_grad_norm",),
        others=("gradient_clipping", "grad_clip", "gradient_clip_val", "clip_grad_norm"),
    ),
    KnownName(
        keys=("train.precision",),
        how="`bf16: true` is precision: bf16, `fp16: true` is precision: fp16, both false is precision: fp32",
        example=("train.precision=bf16",),
        transformers=("bf16", "fp16", "torch_dtype", "dtype"),
        llama_factory=("pure_bf16",),
        axolotl=("float16", "bfloat16"),
        others=("mixed_precision", "fp32"),
    ),
    KnownName(
        how="PyTorch's own setting is used (torch.backends.cuda.matmul.allow_tf32); train.precision chooses bf16, "
        "fp16 or fp32",
        transformers=("tf32",),
    ),
    KnownName(
        keys=("train.deepspeed",),
        how="zero0, zero1, zero2, zero3, zero2_offload, ..., the same file or its content as a mapping, without batch "
        "sizes, precision and optimizer, which are keys of train",
        example=("train.deepspeed=zero3",),
        transformers=("deepspeed",),
        others=("deepspeed_config", "ds_config", "zero_optimization", "zero_stage"),
    ),
    KnownName(
        keys=("train.deepspeed",),
        how="only DeepSpeed shards models here; full_shard is ZeRO-3, shard_grad_op is ZeRO-2",
        example=("train.deepspeed=zero3",),
        transformers=("fsdp", "fsdp_config"),
        axolotl=("fsdp_version",),
    ),
    # Model and adapters.
    KnownName(
        keys=("model.name_or_path",),
        how="the same name or folder",
        example=("model.name_or_path=Qwen/Qwen2.5-7B",),
        transformers=("model_name_or_path", "pretrained_model_name_or_path"),
        axolotl=("base_model",),
        others=("model_name", "model_path", "model_id", "name_or_path"),
    ),
    KnownName(
        keys=("model.tokenizer",),
        how="the same name or folder; by default the model's own",
        example=("model.tokenizer=Qwen/Qwen2.5-7B",),
        transformers=("tokenizer_name", "tokenizer_name_or_path"),
        axolotl=("tokenizer_config",),
        others=("tokenizer_path",),
    ),
    KnownName(
        keys=("model.trust_remote_code",),
        example=("model.trust_remote_code=true",),
        transformers=("trust_remote_code",),
    ),
    KnownName(
        keys=("model.attention",),
        how="flash_attention_2, flash_attention_3, flex_attention, sdpa or eager; auto takes the fastest that works",
        example=("model.attention=flash_attention_2",),
        transformers=("attn_implementation",),
        llama_factory=("flash_attn",),
        axolotl=("flash_attention", "sdp_attention", "xformers_attention", "flex_attention", "eager_attention"),
        others=("use_flash_attn", "use_flash_attention", "use_flash_attention_2"),
    ),
    KnownName(
        keys=("model.gradient_checkpointing",),
        example=("model.gradient_checkpointing=true",),
        transformers=("gradient_checkpointing",),
        others=("activation_checkpointing",),
    ),
    KnownName(
        keys=("model.compile",), example=("model.compile=true",), transformers=("torch_compile",), others=("compile",)
    ),
    KnownName(
        keys=("model.fused_layers",),
        how="true is liger; auto uses it on a GPU where it is installed",
        example=("model.fused_layers=liger",),
        transformers=("use_liger_kernel", "use_liger"),
        llama_factory=("enable_liger_kernel",),
        axolotl=("liger_rope", "liger_rms_norm", "liger_glu_activation", "liger_swiglu"),
    ),
    KnownName(
        keys=("model.lora",),
        how="`model.lora=true` trains adapters with the defaults; without model.lora all weights are trained",
        example=("model.lora=true",),
        transformers=("use_peft", "peft_config"),
        llama_factory=("finetuning_type",),
        axolotl=("adapter",),
        others=("lora", "use_lora", "peft", "peft_type"),
    ),
    KnownName(
        keys=("model.lora.rank",),
        example=("model.lora.rank=16",),
        transformers=("lora_r",),
        llama_factory=("lora_rank",),
        others=("lora.r",),
    ),
    KnownName(
        keys=("model.lora.alpha",),
        example=("model.lora.alpha=32",),
        transformers=("lora_alpha",),
    ),
    KnownName(
        keys=("model.lora.dropout",),
        example=("model.lora.dropout=0.05",),
        transformers=("lora_dropout",),
    ),
    KnownName(
        keys=("model.lora.target_modules",),
        how="the same names as a list; all linear layers are the default",
        example=("model.lora.target_modules=[q_proj,v_proj]",),
        transformers=("lora_target_modules",),
        llama_factory=("lora_target",),
        axolotl=("lora_target_linear",),
        others=("target_modules",),
    ),
    KnownName(
        keys=("model.lora.use_dora",),
        example=("model.lora.use_dora=true",),
        transformers=("use_dora",),
        axolotl=("peft_use_dora",),
    ),
    KnownName(
        keys=("model.lora.use_rslora",),
        example=("model.lora.use_rslora=true",),
        transformers=("use_rslora",),
        axolotl=("peft_use_rslora",),
    ),
    KnownName(
        how="only adapters are trained beside frozen weights; without model.lora all but model.freeze is trained",
        transformers=("lora_modules_to_save", "modules_to_save"),
        llama_factory=("additional_target",),
    ),
    KnownName(
        how="base weights are loaded in train.precision, none are quantised; model.lora, ZeRO-3 and offload "
        "(train.deepspeed=zero3_offload) save memory",
        transformers=(
            "load_in_4bit",
            "load_in_8bit",
            "bnb_4bit_quant_type",
            "bnb_4bit_compute_dtype",
            "quantization_config",
            "use_bnb_nested_quant",
        ),
        llama_factory=("quantization_bit", "quantization_method"),
        others=("qlora",),
    ),
    KnownName(
        keys=("model.freeze",),
        how="the parameters that are not trained, by name with * and ?",
        example=("model.freeze=[model.embed_tokens.*]",),
        llama_factory=("freeze_trainable_layers", "freeze_trainable_modules"),
        axolotl=("unfrozen_parameters",),
        others=("freeze_layers",),
    ),
    KnownName(how="it has not been measured here, and there is no key for it", transformers=("neftune_noise_alpha",)),
    KnownName(
        how="the loss is plain cross entropy, so that losses compare with references",
        transformers=("label_smoothing_factor",),
    ),
    # Data.
    KnownName(
        keys=("data.domains",),
        how="each domain's files, paths or {hub: owner/name}; or data.folder with train/DOMAIN.jsonl",
        example=("data.domains={law: law.jsonl, code: code.jsonl}",),
        transformers=("dataset_name", "train_file", "dataset_train_split"),
        llama_factory=("dataset", "dataset_dir"),
        axolotl=("datasets",),
        others=("data_path", "train_files", "data_files", "train_data", "train_dataset"),
    ),
    KnownName(
        keys=("data.domains.DOMAIN.valid",),
        how="held-out files, by domain; without them data.valid_fraction of the training examples is held out",
        example=("data.domains.law.train=law.jsonl", "data.domains.law.valid=law_valid.jsonl"),
        transformers=("validation_file", "eval_dataset", "dataset_test_split"),
        axolotl=("test_datasets",),
        others=("valid_files", "val_data"),
    ),
    KnownName(
        keys=("data.valid_fraction",),
        how="a share of each domain; validation.max_examples_per_domain bounds how many are measured",
        example=("data.valid_fraction=0.02",),
        llama_factory=("val_size",),
        axolotl=("val_set_size",),
        others=("test_size", "validation_split"),
    ),
    KnownName(
        keys=("data.domains.DOMAIN.columns",),
        how="a mapping from parts of an example to columns; the usual column names are recognised without it",
        example=("data.domains.law.train=law.jsonl", "data.domains.law.columns={text: body}"),
        transformers=("dataset_text_field",),
        axolotl=("field_messages", "field_instruction", "field_output"),
        others=("text_column", "text_field"),
    ),
    KnownName(
        keys=("data.chat_template",),
        how="a Jinja file; names of templates such as chatml are unknown, and the tokenizer's own is the default",
        example=("data.chat_template=template.jinja",),
        transformers=("chat_template", "chat_template_path"),
        llama_factory=("template",),
        axolotl=("chat_template_jinja",),
    ),
    KnownName(
        keys=("data.loss_on",),
        how="true is all, false is assistant (the default)",
        example=("data.loss_on=all",),
        llama_factory=("train_on_prompt",),
        axolotl=("train_on_inputs",),
    ),
    KnownName(
        keys=("data.loss_on",),
        how="true is assistant (the default), false is all",
        example=("data.loss_on=assistant",),
        transformers=("assistant_only_loss", "completion_only_loss"),
    ),
    KnownName(
        how="rows are always packed, and neither attention nor positions cross from one example to the next",
        transformers=("packing", "eval_packing", "padding_free", "group_by_length"),
        llama_factory=("neat_packing",),
        axolotl=("sample_packing", "eval_sample_packing", "pad_to_sequence_len", "multipack_real_batches"),
    ),
    KnownName(
        keys=("mixture.prior",),
        how=f"a mapping from domain to weight, the weights of step 0; mixture.policy={CONSTANT.name} keeps them",
        example=("mixture.prior={arithmetic: 0.7, code: 0.3}", f"mixture.policy={CONSTANT.name}"),
        llama_factory=("interleave_probs",),
        others=("probabilities", "sampling_probabilities", "mixture_weights", "domain_weights", "dataset_weights"),
    ),
    KnownName(
        keys=("mixture.policy",),
        how=f"concat is {PROPORTIONAL.name}, interleave is {CONSTANT.name} with mixture.prior; the default policy "
        "adapts the weights, and a short domain is repeated (data.max_epochs_per_domain limits it)",
        example=(f"mixture.policy={PROPORTIONAL.name}",),
        llama_factory=("mix_strategy",),
        others=("stopping_strategy",),
    ),
    KnownName(
        keys=("data.num_processes",),
        example=("data.num_processes=8",),
        transformers=("dataset_num_proc",),
        llama_factory=("preprocessing_num_workers",),
        axolotl=("dataset_processes",),
        others=("num_proc",),
    ),
    KnownName(
        how="one thread of each process prepares batches ahead, without worker processes; data.num_processes is for "
        "tokenising",
        transformers=("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_pin_memory"),
        others=("num_workers",),
    ),
    KnownName(
        keys=("data.cache_dir",),
        how="folder of prepared data; changed files are prepared again by themselves",
        example=("data.cache_dir=cache",),
        llama_factory=("tokenized_path", "overwrite_cache"),
        axolotl=("dataset_prepared_path",),
    ),
    KnownName(
        how="data.domains.DOMAIN.train takes files, all of each; write a shorter file, or lower train.steps",
        llama_factory=("max_samples",),
        others=("max_train_samples",),
    ),
    KnownName(
        how="the order of the data follows from run.seed by a permutation; every pass has another one",
        transformers=("shuffle_dataset", "data_seed"),
        axolotl=("shuffle_merged_datasets",),
        others=("shuffle",),
    ),
    # The run, its measurements and its checkpoints.
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
        keys=("monitor.wandb.mode", "monitor.tensorboard"),
        how="wandb is monitor.wandb.mode=online, tensorboard is monitor.tensorboard=true, none is the default",
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
        how="nothing is uploaded to the Hub; `versatune export RUN` writes a folder that `hf upload` takes",
        transformers=("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_token"),
        axolotl=("hf_use_auth_token",),
    ),
    KnownName(
        how="checkpoints are kept by age (checkpoint.keep), none by its loss; `versatune export RUN --step N` exports "
        "a kept one",
        transformers=("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
        axolotl=("early_stopping_patience",),
        others=("early_stopping",),
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
"""Settings of other tools, in the order of a recipe's sections."""

_BY_NAME = {name: known for known in KNOWN_NAMES for name in known.names}


def known_name(dotted: str) -> KnownName | None:
    """Return what a foreign key is here: by its last parts, the longest that the table has; None if it has none.

    `-` counts as `_`, and letter case does not count: `Learning-Rate` is found.
    """
    parts = dotted.lower().replace("-", "_").split(".")
    suffixes = (".".join(parts[start:]) for start in range(len(parts)))
    return next((_BY_NAME[suffix] for suffix in suffixes if suffix in _BY_NAME), None)


def nearest_known_name(name: str) -> str | None:
    """Return the name of the table that a misspelt one is close to; None if there is none."""
    close = difflib.get_close_matches(name.lower().replace("-", "_"), _BY_NAME, n=1, cutoff=0.8)
    return close[0] if close else None
