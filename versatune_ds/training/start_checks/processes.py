"""Start checks of what the processes compute, and on what: batches, slices, DeepSpeed's settings, kernels, GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from versatune_ds.distributed.gpus import UnseenGpusError, asks_for_gpus, check_torch_for, check_torch_sees_gpus
from versatune_ds.distributed.silence import silence_limits
from versatune_ds.distributed.world import is_slurm_task
from versatune_ds.engine.ds_checks import check_deepspeed_settings, check_keys, check_model_settings
from versatune_ds.engine.ds_settings import num_micro_steps, zero_stage
from versatune_ds.kernels.build import chosen_implementation
from versatune_ds.kernels.kernel_choice import chosen_kernel
from versatune_ds.model.attention_choice import check_attention_device
from versatune_ds.model.build import config_without_download
from versatune_ds.model.four_bit import check_four_bit_installed
from versatune_ds.model.fused_layers import check_fused_layers
from versatune_ds.model.slice_checks import check_attention_slices, check_model_slices, check_row_slices
from versatune_ds.text_table import counted
from versatune_ds.training.finding import Finding, fail, ok
from versatune_ds.training.start_checks.check_input import StartCheckInput


def check_started_once(start: StartCheckInput) -> None:
    """Check that srun did not start this command as several tasks, each of which would start a run of its own.

    In the shell of `srun --ntasks=4 --pty bash` it is typed once, whatever the number of tasks.

    Raises:
        ValueError: With the way to start it.
    """
    environ = start.environ
    num_tasks = environ.get("SLURM_STEP_NUM_TASKS", "")
    if is_slurm_task(environ) and num_tasks.isdigit() and int(num_tasks) > 1 and "SLURM_PTY_PORT" not in environ:
        raise ValueError(
            f"srun started this command {num_tasks} times (SLURM_STEP_NUM_TASKS), and each would start a run: type it "
            "without srun, or let srun start the processes: srun python launcher/train.py RECIPE; in a shell where it "
            "is typed once, unset SLURM_STEP_NUM_TASKS"
        )


def check_batch(start: StartCheckInput) -> Iterator[Finding]:
    """Divide a batch among the processes."""
    train = start.config.train
    num_steps = num_micro_steps(train, world_size=start.num_processes)
    processes = counted(start.num_processes, "process", plural="processes")
    found = (
        f"{train.rows_per_batch} rows = {counted(num_steps, 'micro-step')} x {train.rows_per_micro_batch} rows x "
        f"{processes}, {train.rows_per_batch * start.config.data.row_tokens:,} tokens a step"
    )
    yield ok("batch", "train.rows_per_batch", found)


def check_slices(start: StartCheckInput) -> Iterator[Finding]:
    """Check that rows, attention and, where its config lies here, the model can be computed in slices."""
    train, model = start.config.train, start.config.model
    num_slices = train.sequence_parallel
    if num_slices == 1:
        return
    check_row_slices(num_slices, row_tokens=start.config.data.row_tokens, is_compiled=model.compile)
    check_attention_slices(model.attention, num_slices=num_slices)
    if (config := config_without_download(model)) is not None:
        check_model_slices(config, num_slices=num_slices)
    num_tokens = start.config.data.row_tokens // num_slices
    yield ok("batch", "train.sequence_parallel", f"{num_slices} processes share a row, {num_tokens:,} tokens each")


def check_deepspeed(start: StartCheckInput) -> Iterator[Finding]:
    """Check DeepSpeed's settings against the recipe, the model and, where it is known, the device."""
    config, settings = start.config, start.ds_config
    check_model_settings(config.model, settings)
    if config.model.load_in_4bit and start.is_here:
        check_four_bit_installed()
    if start.device_type is None:
        check_keys(settings)
    else:
        check_deepspeed_settings(config.train, settings, device_type=start.device_type)
        check_fused_layers(config.model, device_type=start.device_type)
        check_attention_device(config.model.attention, device_type=start.device_type)
    yield ok("deepspeed", "train.deepspeed", f"ZeRO stage {zero_stage(settings)}, {config.train.precision}")


def check_kernel_variables(start: StartCheckInput) -> None:
    """Check the environment's variables that choose the loss kernels."""
    chosen_implementation(start.environ)
    chosen_kernel(start.environ)


def check_silence_variable(start: StartCheckInput) -> None:
    """Check the environment's variable for how long a silent rank is waited for."""
    silence_limits(start.environ)


def check_gpus(start: StartCheckInput) -> Iterator[Finding]:
    """Check that torch can use the requested GPUs, and sees this machine's if the run takes place here."""
    slurm, environ = start.config.slurm, start.environ
    requested_by = asks_for_gpus(slurm, environ)
    if start.gpus_asked_by is not None and not slurm.has_own_torch:
        requested_by = start.gpus_asked_by
    try:
        if requested_by is not None:
            check_torch_for(requested_by, environ)
        if start.is_here and not slurm.has_own_torch:
            check_torch_sees_gpus(environ)
    except UnseenGpusError as error:
        yield fail("launcher", "torch", error.found, error.todo)
