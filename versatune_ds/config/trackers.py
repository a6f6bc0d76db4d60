"""Define the sections `monitor.trackio` and `monitor.swanlab` of a recipe: where else a run is shown."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, model_validator

from versatune_ds.config.error_messages import shown_value
from versatune_ds.config.section import Section, TextList

_SWANLAB_NAME = re.compile(r"[0-9a-zA-Z_\-+.]{1,100}")
"""Names of projects that SwanLab accepts (swanlab 0.10)."""


def _swanlab_name(name: str) -> str:
    """Check the name of a project as SwanLab does: it would look only after data and model are loaded."""
    if not _SWANLAB_NAME.fullmatch(name):
        raise ValueError(f"{shown_value(name)}: SwanLab allows 1 to 100 letters, digits and _ - + .")
    return name


class TrackioConfig(Section):
    """Trackio, the experiment tracker of Hugging Face. Needs the extra `trackio`."""

    mode: Literal["local", "space", "off"] = "off"
    """`local` records on this machine, for `trackio show`; `space` sends the run to a Hugging Face Space; `off` does
    neither."""
    project: str = "versatune"
    """Trackio project; it is created if it does not exist."""
    space: str | None = None
    """With `mode: space`: name of the Space, `owner/name`; it is created if it does not exist. The token comes from the
    environment (`HF_TOKEN`)."""
    private: bool = True
    """Whether a Space that is created is private."""
    group: str | None = None
    """Group of runs that are compared with each other."""

    @model_validator(mode="after")
    def _has_a_space_if_it_needs_one(self) -> TrackioConfig:
        """Check that the Space is named where the run is sent to one, and only there."""
        if self.mode == "space" and not self.space:
            raise ValueError("monitor.trackio.space: mode=space needs its name; set monitor.trackio.space=owner/name")
        if self.mode == "local" and self.space:
            raise ValueError("monitor.trackio.space: mode=local sends nothing; set monitor.trackio.mode=space")
        return self


class SwanlabConfig(Section):
    """SwanLab. Needs the extra `swanlab`. Its API key is read from the environment or from `swanlab login` only."""

    mode: Literal["online", "offline", "local", "off"] = "off"
    """`online` sends the run to the server while it trains; `offline` records it in the run's folder, for
    `swanlab sync`; `local` does so for `swanlab watch`, which needs `swanlab[dashboard]`; `off` does none of it."""
    project: Annotated[str, AfterValidator(_swanlab_name)] = "versatune"
    """SwanLab project; it is created if it does not exist."""
    workspace: str | None = None
    """User or organisation that owns the project; by default your own."""
    group: str | None = None
    """Group of runs that are compared with each other."""
    tags: TextList = ()
    """Labels to find the run by."""
