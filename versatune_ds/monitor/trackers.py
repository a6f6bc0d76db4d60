"""Open the trackers that a recipe enables besides W&B: Trackio and SwanLab.

The libraries are optional, and imported only if the recipe enables them. One that does not start, or fails later, is
logged in one line, and training continues.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec

from versatune_ds.config import RunConfig
from versatune_ds.log import first_line
from versatune_ds.monitor.background import Background
from versatune_ds.monitor.sink import Sink
from versatune_ds.run_folder.names import SWANLAB_FOLDER

logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 180.0


def open_trackers(config: RunConfig, *, resumed_step: int) -> list[Sink]:
    """Return a sink for each tracker that is enabled; one that does not start is left out with a warning.

    Args:
        config: The run's config.
        resumed_step: Step the run resumed after, -1 for a new run.

    Raises:
        ValueError: If a package is missing.
    """
    check_tracker_packages(config)
    sinks: list[Sink] = []
    if config.monitor.trackio.mode != "off":

        def open_trackio() -> Sink:
            from versatune_ds.monitor.trackio_sink import Trackio

            return Trackio(config, resumed_step=resumed_step)

        sinks += _opened(open_trackio, name="Trackio", way_out="its project has what came before")
    if config.monitor.swanlab.mode != "off":

        def open_swanlab() -> Sink:
            from versatune_ds.monitor.swanlab_sink import Swanlab

            return Swanlab(config, resumed_step=resumed_step)

        way_out = f"swanlab sync {config.run_dir}/{SWANLAB_FOLDER}/run-* uploads what it recorded"
        sinks += _opened(open_swanlab, name="SwanLab", way_out=way_out)
    return sinks


def _opened(open_sink: Callable[[], Sink], *, name: str, way_out: str) -> Iterator[Sink]:
    """Yield a tracker's sink, called in a thread of its own; nothing but a warning if it does not start."""
    try:
        sink = open_sink()
    except Exception as error:  # an unreachable server, or a client that fails, must not end a run
        logger.warning("%s did not start (%s); training continues, metrics.jsonl is complete", name, first_line(error))
        return
    yield Background(sink, name=name, patience_seconds=_PATIENCE_SECONDS, way_out=way_out)


def check_tracker_packages(config: RunConfig) -> None:
    """Check that what the recipe's trackers import is installed.

    Raises:
        ValueError: One line for each missing package.
    """
    monitor = config.monitor
    needed = [
        ("monitor.tensorboard", "tensorboard", "'versatune_ds[tensorboard]'", monitor.tensorboard),
        ("monitor.trackio.mode", "trackio", "'versatune_ds[trackio]'", monitor.trackio.mode != "off"),
        ("monitor.swanlab.mode", "swanlab", "'versatune_ds[swanlab]'", monitor.swanlab.mode != "off"),
        ("monitor.swanlab.mode=local", "swanboard", "'swanlab[dashboard]'", monitor.swanlab.mode == "local"),
    ]
    lines = [
        f"{key}: the package {package} is missing; pip install {source}"
        for key, package, source, is_enabled in needed
        if is_enabled and find_spec(package) is None
    ]
    if lines:
        raise ValueError("\n".join(lines))


def check_tracker_keys(config: RunConfig) -> None:
    """Check that a tracker that sends the run somewhere has a key; a client would ask for it on the terminal.

    Raises:
        ValueError: If there is none.
    """
    if config.monitor.trackio.mode == "space":
        from huggingface_hub import get_token

        if not get_token():
            raise ValueError(
                "monitor.trackio.mode=space: no token of Hugging Face found; set HF_TOKEN in the environment, "
                "or use monitor.trackio.mode=local"
            )
    if config.monitor.swanlab.mode == "online" and not os.environ.get("SWANLAB_API_KEY"):
        from versatune_ds.monitor.swanlab_sink import has_kept_key

        if not has_kept_key():
            raise ValueError(
                "monitor.swanlab.mode=online: no key found; set SWANLAB_API_KEY in the environment, "
                "or use monitor.swanlab.mode=offline"
            )
