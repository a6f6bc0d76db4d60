"""Train a Llama on the built-in corpus with our trainer or TRL's, and report speed and where time is spent.

Both run their own unchanged loop, with timers around the functions it calls. A step's time is the time between two ends
of optimizer steps, so no work goes uncounted. Tokens per second of processor time are comparable on a machine that
others use too. The settings may give a recipe with a larger model, for TRL on a GPU (`gpu_parts/trl.py`).
"""

from __future__ import annotations

import functools
import json
import logging
import os
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROW_TOKENS, ROWS_PER_BATCH, ROWS_PER_MICRO_BATCH = 256, 8, 4
WARM_UP_STEPS = 4
LEARNING_RATE = 1e-3
DOMAINS_ROWS = {"num_rows": 1500, "num_valid_rows": 20, "num_test_rows": 1}


class StepClock:
    """Collect, between two ends of optimizer steps, the time spent in named phases and the tokens trained on."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._phases: dict[str, float] = defaultdict(float)
        self._ended, self._ended_cpu = time.perf_counter(), time.process_time()
        self.num_tokens = 0
        self.paused_seconds = self.paused_cpu_seconds = 0.0
        self._is_paused = False

    def timed(self, owner: Any, attribute: str, phase: str, *, is_paused: bool = False) -> None:
        """Put a timer around a method; a paused one is no part of a step (validation)."""
        inner = getattr(owner, attribute)

        @functools.wraps(inner)
        def outer(*arguments: Any, **keywords: Any) -> Any:
            if self._is_paused:
                return inner(*arguments, **keywords)
            began, began_cpu, self._is_paused = time.perf_counter(), time.process_time(), is_paused
            result = inner(*arguments, **keywords)
            seconds, self._is_paused = time.perf_counter() - began, False
            if is_paused:
                self.paused_seconds += seconds
                self.paused_cpu_seconds += time.process_time() - began_cpu
            else:
                self._phases[phase] += seconds
            return result

        setattr(owner, attribute, outer)

    def end_step(self) -> None:
        """Close a step."""
        now, now_cpu = time.perf_counter(), time.process_time()
        seconds = now - self._ended - self.paused_seconds
        cpu_seconds = now_cpu - self._ended_cpu - self.paused_cpu_seconds
        self.steps.append(
            {"seconds": seconds, "cpu_seconds": cpu_seconds, "num_tokens": self.num_tokens, **self._phases}
        )
        self._phases.clear()
        self._ended, self._ended_cpu, self.num_tokens = now, now_cpu, 0
        self.paused_seconds = self.paused_cpu_seconds = 0.0

    def result(self) -> dict[str, Any]:
        """Return medians over the steps after the first ones."""
        steps = self.steps[WARM_UP_STEPS:]
        phases = {name for step in steps for name in step} - {"seconds", "cpu_seconds", "num_tokens"}
        seconds = sum(step["seconds"] for step in steps)
        shares = {name: sum(step.get(name, 0.0) for step in steps) / seconds for name in phases}
        return {
            "tokens_per_second": statistics.median(step["num_tokens"] / step["seconds"] for step in steps),
            "tokens_per_cpu_second": statistics.median(step["num_tokens"] / step["cpu_seconds"] for step in steps),
            "share_of_step": {**shares, "other": 1 - sum(shares.values())},
        }


def peak_mib() -> float:
    """Return the peak resident size of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def recipe(settings: dict[str, Any], *, policy: str) -> dict[str, Any]:
    """Return the recipe of our run; TRL's model and data are taken from it. The settings may bring one."""
    if "recipe" in settings:
        return settings["recipe"]
    workspace = Path(settings["workspace"])
    return {
        "run": {"name": f"{policy}_{settings['vocabulary']}", "output_dir": str(workspace / "runs")},
        "model": {
            "from_config": {
                "model_type": "llama", "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4,
                "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True,
                "vocab_size": settings["vocabulary"],
            },
            "tokenizer_vocab_size": min(settings["vocabulary"], 4096),
        },
        "data": {"synthetic": DOMAINS_ROWS, "row_tokens": ROW_TOKENS, "cache_dir": str(workspace / "cache")},
        "train": {
            "steps": settings["steps"], "rows_per_batch": ROWS_PER_BATCH, "rows_per_micro_batch": ROWS_PER_MICRO_BATCH,
            "learning_rate": LEARNING_RATE, "precision": "fp32",
            "deepspeed": f"ds_configs/zero{settings['stage']}.json",
        },
        "mixture": {
            "policy": policy, "prior": "proportional", "reference": {"start_fraction": 0.05}, "update_every": 5,
        },
        "validation": {"max_examples_per_domain": 20},
        "monitor": {"log_every": 5},
    }  # fmt: skip


def train_ours(settings: dict[str, Any], *, policy: str) -> dict[str, Any]:
    """Train with our loop: a mixture that moves, or fixed weights with the same measurements."""
    import torch

    from versatune_ds.config.load import parse_config
    from versatune_ds.distributed import World, join_world, leave_world
    from versatune_ds.training import loop
    from versatune_ds.training.assemble import assemble_run

    config, world = parse_config(recipe(settings, policy=policy)), World(launcher="benchmark")
    join_world(world, device=torch.device("cpu"))
    run = assemble_run(config, world=world, device=torch.device("cpu"), is_fresh=True)
    before = resident_mib()
    clock, engine = StepClock(), run.engine.deepspeed_engine
    clock.timed(run.loader, "take", "data wait")
    clock.timed(engine, "forward", "forward")
    clock.timed(engine, "backward", "backward")
    clock.timed(engine, "step", "optimizer")
    clock.timed(loop, "log_step", "logging, statistics")
    clock.timed(loop, "plan_data", "planning (hand-over)")
    clock.timed(loop, "measure_losses", "validation", is_paused=True)
    clock.timed(type(run), "decide", "decision")
    take, masked = run.loader.take, []

    def counted(step: int) -> Any:
        if clock.num_tokens:
            clock.end_step()
        data = take(step)
        clock.num_tokens = int(data.plan.num_tokens_K.sum())
        masked.append(1 - data.micro_batches[0].num_loss_tokens_global / clock.num_tokens)
        return data

    run.loader.take = counted
    loop.measure_before_training(run)
    loop.train(run)
    run.loader.close()
    run.monitor.finish(exit_code=0)
    leave_world()
    return {**clock.result(), "training_mib": peak_mib() - before, "masked": statistics.mean(masked)}


def _rows_for_trl(config: Any, settings: dict[str, Any]) -> Any:
    """Return the training rows of all domains as one dataset of the library that TRL reads."""
    import datasets

    from versatune_ds.data.sources.domain_files import domain_files
    from versatune_ds.training.prepared_data import cache_folder

    files = [name for part in domain_files(config.data, cache_dir=cache_folder(config)).values() for name in part.train]
    return datasets.load_dataset("json", data_files=files, split="train", cache_dir=f"{settings['workspace']}/hf")


def _model_for_trl(config: Any, *, vocab_size: int) -> Any:
    """Return the model with transformers' attention: TRL does not pass the bounds that ours needs."""
    import torch

    from versatune_ds.model.attention import use_dense_attention
    from versatune_ds.model.build import build_causal_lm

    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # random weights of 1B take a minute on a CPU
        causal_lm = build_causal_lm(
            config.model, precision=config.train.precision, vocab_size=vocab_size, special_ids={}
        )
    use_dense_attention(causal_lm)
    return causal_lm


def _trl_arguments(settings: dict[str, Any], config: Any, train: Any, *, with_liger: bool) -> Any:
    """Return TRL's settings that train as the recipe does; `train` is its train section."""
    import torch
    from trl import SFTConfig

    from versatune_ds.engine.ds_settings import deepspeed_config

    is_cuda, micro_rows = torch.cuda.is_available(), train.rows_per_micro_batch
    return SFTConfig(
        output_dir=f"{settings['workspace']}/trl", max_steps=settings["steps"], learning_rate=train.learning_rate,
        per_device_train_batch_size=micro_rows, gradient_accumulation_steps=train.rows_per_batch // micro_rows,
        max_length=config.data.row_tokens, packing=True, assistant_only_loss=True, gradient_checkpointing=False,
        bf16=train.precision == "bf16", use_cpu=not is_cuda, logging_steps=5, save_strategy="no", report_to="none",
        max_grad_norm=train.max_grad_norm, deepspeed=deepspeed_config(train, world_size=1),
        optim="adamw_torch_fused" if is_cuda else "adamw_torch", disable_tqdm=True, lr_scheduler_type="cosine",
        use_liger_kernel=with_liger, dataset_num_proc=8 if is_cuda else None,
    )  # fmt: skip


def train_trl(
    settings: dict[str, Any], *, rows_per_micro_batch: int | None = None, with_liger: bool = False
) -> dict[str, Any]:
    """Train with TRL's SFTTrainer: the same rows, tokenizer, template, initial weights and ZeRO stage.

    Args:
        settings: See `recipe`.
        rows_per_micro_batch: Another number than the recipe's.
        with_liger: Whether TRL uses Liger's kernels, its fused loss among them.
    """
    import torch
    from transformers import TrainerCallback
    from trl import SFTTrainer

    from versatune_ds.config.load import parse_config
    from versatune_ds.training.prepared_data import load_or_train_tokenizer

    config = parse_config(recipe(settings, policy="uniform"))
    micro_rows = rows_per_micro_batch or config.train.rows_per_micro_batch
    train, is_cuda = config.train.model_copy(update={"rows_per_micro_batch": micro_rows}), torch.cuda.is_available()
    tokenizer = load_or_train_tokenizer(config)
    causal_lm, rows = _model_for_trl(config, vocab_size=len(tokenizer)), _rows_for_trl(config, settings)
    clock = StepClock()

    class EndOfStep(TrainerCallback):
        """Close a step where the trainer does."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            """Close a step."""
            if is_cuda:
                torch.cuda.synchronize()
            clock.end_step()

    arguments = _trl_arguments(settings, config, train, with_liger=with_liger)
    trainer = SFTTrainer(
        model=causal_lm, args=arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[EndOfStep()]
    )
    before = resident_mib()
    train_step = trainer.training_step

    def counted(model: Any, inputs: dict[str, Any], *rest: Any, **keywords: Any) -> Any:
        clock.num_tokens += inputs["input_ids"].numel()
        if not clock.steps and not hasattr(model, "is_timed"):
            model.is_timed = True
            clock.timed(model, "backward", "backward")
            clock.timed(model, "step", "optimizer")
        return train_step(model, inputs, *rest, **keywords)

    trainer.training_step = counted
    clock.timed(trainer, "compute_loss", "forward")
    clock.timed(trainer, "get_batch_samples", "data wait")
    clock.timed(trainer, "log", "logging, statistics")
    trainer.train()
    return {**clock.result(), "training_mib": peak_mib() - before}


def peak_gib_on_gpu() -> float | None:
    """Return the highest memory that torch allocated on the GPU; None without one."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None


def resident_mib() -> float:
    """Return the resident size of this process now."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize() / 2**20


def main() -> None:
    """Run the trainer named on the command line and write what it measured."""
    trainer, settings, output = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
    logging.basicConfig(level=logging.WARNING)
    from versatune_ds.distributed import free_port

    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    trainers: dict[str, Callable[[], dict[str, Any]]] = {
        "ours": lambda: train_ours(settings, policy="versatune"),
        "ours_fixed": lambda: train_ours(settings, policy="uniform"),
        "trl": lambda: train_trl(settings),
        "trl_liger": lambda: train_trl(settings, with_liger=True),
        "trl_one_row": lambda: train_trl(settings, rows_per_micro_batch=1),
    }
    result = {**trainers[trainer](), "peak_mib": peak_mib(), "peak_gib_on_gpu": peak_gib_on_gpu()}
    output.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
