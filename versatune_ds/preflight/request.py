"""Where the run that is checked is to take place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """What the command line and the environment state about that place.

    Attributes:
        nodes: Machines; None takes the recipe's or 1.
        gpus_per_node: Processes a machine; None takes the recipe's, or the GPUs of this machine, or 1.
        gpu_memory_gib: Memory of one GPU; None takes that of this machine's GPU, if it has one.
        environ: The environment's variables.
    """

    nodes: int | None = None
    gpus_per_node: int | None = None
    gpu_memory_gib: float | None = None
    environ: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError for a number that is not positive."""
        for option in ("nodes", "gpus_per_node", "gpu_memory_gib"):
            value = getattr(self, option)
            if value is not None and value <= 0:
                raise ValueError(f"--{option.replace('_', '-')}={value}: expected a positive number")
