"""Define the slurm section of a recipe: what a batch job asks for, and how it resumes when it is stopped.

Every key becomes one option of sbatch, or is read by the job itself. Options on sbatch's own command line take
precedence over the job's header; what is not set here is the cluster's default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from versatune_ds.config.error_messages import shown_value
from versatune_ds.config.section import ExpandedText, Section, TextList
from versatune_ds.paths import expand_path


class ContainerConfig(Section):
    """The container in which the processes run; the job's own script stays outside."""

    image: ExpandedText = Field(min_length=1)
    """Image file or registry address, as the container system expects it."""
    kind: Literal["pyxis", "apptainer"] = "pyxis"
    """Container system: `pyxis` (options of srun) or `apptainer` (a command before Python)."""
    mounts: tuple[str, ...] = ()
    """Folders to mount, as `OUTSIDE:INSIDE`. The working folder, this project and `run.output_dir` are always
    mounted."""
    python: str = "python3"
    """Python in the image; the project's dependencies must be installed there."""

    @field_validator("mounts")
    @classmethod
    def _are_pairs(cls, mounts: tuple[str, ...]) -> tuple[str, ...]:
        for mount in mounts:
            if mount.count(":") not in (1, 2) or not all(mount.split(":")):
                raise ValueError(f"{shown_value(mount)}: expected OUTSIDE:INSIDE, for example /data:/data")
        pairs = (mount.partition(":") for mount in mounts)
        return tuple(f"{expand_path(outside)}:{inside}" for outside, _, inside in pairs)


class SlurmConfig(Section):
    """What the job asks Slurm for, and how often it may requeue itself."""

    partition: str | None = None
    """Partition of the cluster (`sbatch --partition`)."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have, such as h100."""
    nodes: int = Field(default=1, ge=1)
    """Number of nodes."""
    gpus_per_node: int | None = Field(default=None, ge=1)
    """GPUs on each node; by default the job asks for none."""
    processes_per_node: int | None = Field(default=None, ge=1)
    """Processes on each node; by default one for each GPU, or 1 without GPUs."""
    cpus_per_task: int | None = Field(default=None, ge=1)
    """CPU cores for each process, including its threads. By default 4 beside each GPU (main thread, loader, backward
    pass, one to spare), or as many as `data.num_processes` needs; without GPUs the cluster's default."""
    memory: str | None = Field(default=None, pattern=r"^\d+[KMGT]?$")
    """Memory of each node (`sbatch --mem`), for example 200G; 0 asks for all of it."""
    memory_per_gpu: str | None = Field(default=None, pattern=r"^\d+[KMGT]?$")
    """Memory for each GPU, for example 64G, in place of `memory`: the job asks for `gpus_per_node` times that on each
    node."""
    time: str | None = Field(default=None, pattern=r"^(\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|UNLIMITED)$")
    """Time limit: minutes, H:M:S, or D-H:M:S."""
    seconds_to_save: int = Field(default=300, ge=1, le=65535)
    """Seconds before the time limit at which the processes are asked to save and exit. Two steps with their
    measurements and saves must fit; raise it if they take longer."""
    array: str | None = Field(default=None, pattern=r"^\d+([-,:]\d+)*(%\d+)?$")
    """Task ids such as 0-3. Task i is a run of its own, named NAME-i, with seed `run.seed` + i."""
    dependency: str | None = None
    """What must happen before the job starts, for example afterok:1234."""
    max_requeues: int = Field(default=100, ge=0)
    """How often the job may put itself back into the queue."""
    setup: TextList = ()
    """Shell lines to run on the first node before anything else, for example `module load cuda/12.8`."""
    python: ExpandedText | None = Field(default=None, min_length=1)
    """Python of the job, with the project's dependencies: a path, or a name that is looked up after `setup`. By default
    the one that runs `versatune submit`. If set, the torch of the login node is not checked for GPUs."""
    local_dir: Path | None = None
    """Folder on each node's own disk for compiled kernels; by default $SLURM_TMPDIR, $TMPDIR or /tmp. Variables are
    expanded in the job."""
    container: ContainerConfig | None = None
    """Container in which the processes run; by default they run on the node itself."""
    sbatch_options: TextList = ()
    """Further options of sbatch, for example `--exclusive`."""

    @field_validator("memory", "memory_per_gpu", "time", "array", mode="before")
    @classmethod
    def _number_as_text(cls, value: Any) -> Any:
        """Accept a plain number, such as 90 minutes."""
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("sbatch_options")
    @classmethod
    def _are_options(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        """Check that each begins like an option; sbatch would read anything else as the script."""
        for option in options:
            if not option.startswith("--"):
                raise ValueError(f"{shown_value(option)}: expected --option or --option=value")
        return options

    @model_validator(mode="after")
    def _has_one_memory(self) -> SlurmConfig:
        """Check that memory is asked for once, and per GPU only of GPUs."""
        if self.memory_per_gpu is not None and self.memory is not None:
            raise ValueError(
                f"slurm.memory_per_gpu: {self.memory_per_gpu}, and slurm.memory is {self.memory}: both are the "
                "memory of a node; leave one of the two out (slurm.memory=null)"
            )
        if self.memory_per_gpu is not None and self.gpus_per_node is None:
            raise ValueError(
                "slurm.memory_per_gpu: needs slurm.gpus_per_node, which is not set; set it, or give the memory of each "
                "node (slurm.memory)"
            )
        return self

    @property
    def has_own_torch(self) -> bool:
        """Return whether the job's torch is another than this process's."""
        return self.container is not None or self.python is not None

    @property
    def node_memory(self) -> str | None:
        """Return the memory of each node, as sbatch takes it; None leaves it to the cluster."""
        if self.memory_per_gpu is None or self.gpus_per_node is None:
            return self.memory
        number = self.memory_per_gpu.rstrip("KMGT")
        return f"{int(number) * self.gpus_per_node}{self.memory_per_gpu[len(number) :]}"

    @property
    def num_processes_per_node(self) -> int:
        """Return the number of processes on each node."""
        return self.processes_per_node or self.gpus_per_node or 1
