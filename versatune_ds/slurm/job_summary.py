"""Describe in words the job that `versatune submit` would submit."""

from __future__ import annotations

from versatune_ds.config import RunConfig
from versatune_ds.run_folder.complete_run import complete_line
from versatune_ds.run_folder.names import newest_step
from versatune_ds.slurm.submit import log_pattern
from versatune_ds.text_table import counted


def job_in_words(config: RunConfig, *, is_fresh: bool) -> list[str]:
    """Return one line each for what a job asks for, when it stops and starts again, where it writes, when it starts.

    Args:
        config: The recipe with the options of the submission.
        is_fresh: Whether the run's folder is deleted at the job's first start.
    """
    slurm = config.slurm
    each = f"{slurm.gpus_per_node} GPUs each" if slurm.gpus_per_node else "no GPU asked for"
    num_processes = counted(slurm.nodes * slurm.num_processes_per_node, "process", plural="processes")
    limit = f"at most {slurm.time} (slurm.time)" if slurm.time else "slurm.time is not set: the partition's time limit"
    stops = (
        f"stops: saves {counted(slurm.seconds_to_save, 'second')} before the time limit and when it is preempted, then "
        f"requeues itself, at most {counted(slurm.max_requeues, 'time')}, until the run is complete"
    )
    lines = [
        f"job: {config.run.name}, {counted(slurm.nodes, 'node')}, {each}, {num_processes}; {limit}",
        stops,
        f"writes: {_run_folder(config, is_fresh=is_fresh)}; its log is {_log_name(config)}",
    ]
    if slurm.dependency is not None:
        lines.append(f"starts: after {slurm.dependency} (slurm.dependency), and is cancelled where that fails")
    return lines


def _run_folder(config: RunConfig, *, is_fresh: bool) -> str:
    """Return the run's folder, and what the job does with what is in it."""
    if config.slurm.array is not None:
        return (
            f"a run for each task of {config.slurm.array}, {config.run_dir}-TASK, seeds from {config.run.seed} + TASK"
        )
    if is_fresh:
        return f"{config.run_dir}, emptied at the job's first start (--fresh)"
    if complete_line(config) is not None:
        return f"{config.run_dir}, which is complete: the job would end at once"
    step = newest_step(config.run_dir)
    return f"{config.run_dir}, where it resumes after step {step:,}" if step else f"{config.run_dir}, from step 0 on"


def _log_name(config: RunConfig) -> str:
    """Return the path of the job's log, its numbers as words."""
    pattern = log_pattern(config).replace("%j", "JOBID").replace("%A", "JOBID").replace("%a", "TASK")
    return pattern.replace("%%", "%")
