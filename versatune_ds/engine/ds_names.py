"""DeepSpeed settings that a recipe can name: `train.deepspeed: zero3`.

They are the files of ds_configs/ (a test compares) and part of the package, so that a name means the same in any
working folder, and where only the package is installed.
"""

from __future__ import annotations

import copy
import difflib
from pathlib import Path
from typing import Any

_STAGE_2: dict[str, Any] = {"stage": 2, "overlap_comm": True, "contiguous_gradients": True}
_STAGE_3: dict[str, Any] = {"stage": 3, "overlap_comm": True, "contiguous_gradients": True}
_CPU: dict[str, Any] = {"device": "cpu", "pin_memory": True}
_NVME: dict[str, Any] = {"device": "nvme", "nvme_path": "/local_nvme", "pin_memory": True}

NAMED_SETTINGS: dict[str, dict[str, Any]] = {
    name: {"zero_optimization": zero}
    for name, zero in {
        "zero0": {"stage": 0},
        "zero1": {"stage": 1},
        "zero2": _STAGE_2,
        "zero2_offload": {**_STAGE_2, "offload_optimizer": _CPU},
        "zero3": _STAGE_3,
        "zero3_offload": {**_STAGE_3, "offload_optimizer": _CPU, "offload_param": _CPU},
        "zero3_nvme": {**_STAGE_3, "offload_optimizer": _NVME, "offload_param": _NVME},
    }.items()
}
"""Name -> settings."""


def named_settings(source: Path) -> dict[str, Any] | None:
    """Return the settings of a name such as `zero3`; None for a path.

    A name comes before a file of that name in the working folder, which `./zero3` means.

    Args:
        source: As the recipe writes it. `zero3-offload` and `ZeRO3` are names too.
    """
    settings = NAMED_SETTINGS.get(_as_name(source))
    return None if settings is None else copy.deepcopy(settings)


def nearest_settings(source: Path) -> str:
    """Return a hint with the name that a missing file's path is close to, or with all names."""
    close = difflib.get_close_matches(_as_name(Path(source.stem)), NAMED_SETTINGS, n=1, cutoff=0.8)
    return f"did you mean {close[0]}?" if close else f"expected a JSON file or one of {', '.join(NAMED_SETTINGS)}"


def _as_name(source: Path) -> str:
    return str(source).lower().replace("-", "_")
