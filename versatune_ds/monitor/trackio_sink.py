"""Record a run with Trackio: on this machine, or in a Space at Hugging Face.

Trackio records in its own folder (`TRACKIO_DIR`, by default in Hugging Face's cache), where `trackio show` finds all
projects. Tested with trackio 0.43.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from versatune_ds.config import RunConfig
from versatune_ds.monitor.decision_views import decision_metrics
from versatune_ds.monitor.section_names import by_section, is_hidden
from versatune_ds.monitor.uploads import uploaded_config

logger = logging.getLogger(__name__)


class Trackio:
    """A sink that logs metrics and decisions of one run; standard errors are in the record alone.

    A resumed run continues under its name. Trackio keeps one entry a call, so steps that a resumed run repeats are
    there twice, with the same values.

    Args:
        config: The run's config.
        resumed_step: Step the run resumed after, -1 for a new run.
    """

    def __init__(self, config: RunConfig, *, resumed_step: int) -> None:
        import trackio

        settings = config.monitor.trackio
        self._trackio = trackio
        start = partial(
            trackio.init,
            project=settings.project,
            name=config.run.name,
            group=settings.group,
            space_id=settings.space if settings.mode == "space" else None,
            private=settings.private,
            config=uploaded_config(config),
            resume="never" if resumed_step < 0 else "allow",
            embed=False,
        )
        with contextlib.redirect_stdout(io.StringIO()):  # a notice of several lines, some coloured
            # In a context of its own: trackio would otherwise finish the run once more when the process exits.
            self._run = contextvars.copy_context().run(start)
        where = f"the Space {settings.space}" if settings.mode == "space" else "this machine"
        logger.info("Trackio: recorded on %s; trackio show --project %s", where, settings.project)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log a step's metrics."""
        shown = {name: value for name, value in by_section(values).items() if not is_hidden(name)}
        self._run.log(shown, step=step)

    def decision(self, decision: Mapping[str, Any]) -> None:
        """Log a decision's signals and weights, and its reason as text."""
        step = decision["decided_at_step"]
        self.metrics(step, decision_metrics(decision))
        text = "\n".join([decision["reason"], *(f"- {acted}" for acted in decision["acted"])])
        self._run.log({"decision": self._trackio.Markdown(text)}, step=step)

    def alert(self, step: int, *, title: str, text: str) -> None:
        """Raise an alert, which Trackio shows and forwards to a webhook where one is set."""
        with contextlib.redirect_stdout(io.StringIO()):  # it was logged where the cause was found
            self._run.alert(title=title, text=f"step {step}: {text}", step=step)

    def finish(self, *, exit_code: int) -> None:
        """Send the rest and close."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()
