"""Settings of batch, length and optimisation in other tools."""

from __future__ import annotations

from versatune_ds.config.tool_names.known_name import SAME, KnownName

_BATCH = "rows_per_batch = per device x accumulation x GPUs (64 = 2 x 4 x 8), in packed rows of data.row_tokens tokens"

TRAIN_NAMES = (
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
        keys=("train.epochs",),
        how="passes over all data, or over the smallest domain (train.epochs_of=smallest), instead of train.steps",
        example=("train.epochs=3",),
        transformers=("num_train_epochs",),
        axolotl=("num_epochs",),
        others=("max_epochs", "n_epochs", "num_epoch"),
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
)
