"""Send a run to SwanLab, or record it in the run's folder. Tested with swanlab 0.10.

Started in the main thread, SwanLab handles SIGINT itself and ends the process, so Ctrl-C would no longer save the run;
and a run started there cannot be finished in another thread. So it starts with the first call, in the thread of that
call (`Background`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from versatune_ds.config import RunConfig
from versatune_ds.exit_codes import REQUEUE_EXIT_CODE
from versatune_ds.monitor.decision_views import decision_metrics
from versatune_ds.monitor.run_id import kept_id
from versatune_ds.monitor.section_names import HIDDEN_SECTIONS, by_section
from versatune_ds.monitor.uploads import uploaded_config
from versatune_ds.run_folder.names import SWANLAB_FOLDER, SWANLAB_ID_FILE


class Swanlab:
    """A sink that logs metrics, decisions and alerts of one run.

    Online, a resumed run is one history. Offline and local, SwanLab keeps a record of its own for each part.

    Args:
        config: The run's config.
        resumed_step: Step the run resumed after, -1 for a new run.
    """

    def __init__(self, config: RunConfig, *, resumed_step: int) -> None:
        self._config = config
        self._is_new = resumed_step < 0

    @cached_property
    def _run(self) -> Any:
        """Start the run, and hide standard errors from automatic charts."""
        import swanlab

        config, settings = self._config, self._config.monitor.swanlab
        identity: dict[str, str] = {}
        if settings.mode == "online":
            identity = {"id": kept_id(config.run_dir / SWANLAB_ID_FILE, is_new=self._is_new), "resume": "allow"}
        run = swanlab.init(
            project=settings.project,
            workspace=settings.workspace,
            name=config.run.name,
            group=settings.group,
            tags=list(settings.tags),
            mode=settings.mode,
            log_dir=str(config.run_dir / SWANLAB_FOLDER),
            config=uploaded_config(config),
            # A question on the terminal would stop the run; the live view's control codes are no log.
            settings=swanlab.Settings(interactive=False, terminal={"proxy_type": "none"}),
            **identity,
        )
        for section in HIDDEN_SECTIONS:
            run.define_metric(f"{section}/*", hidden=True)
        return run

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log a step's metrics."""
        self._run.log(by_section(values), step=step)

    def decision(self, decision: Mapping[str, Any]) -> None:
        """Log a decision's signals and weights, and its reason as text."""
        step = decision["decided_at_step"]
        self.metrics(step, decision_metrics(decision))
        text = "\n".join([decision["reason"], *decision["acted"]])
        self._run.log_text(key="decision", data=text, step=step)

    def alert(self, step: int, *, title: str, text: str) -> None:
        """Log an alert as text."""
        self._run.log_text(key="alert", data=f"{title}: {text}", step=step)

    def finish(self, *, exit_code: int) -> None:
        """Send the rest and close as complete, stopped, or failed."""
        if exit_code == 0:
            self._run.finish(state="success")
        elif exit_code == REQUEUE_EXIT_CODE:
            self._run.finish(state="aborted")
        else:
            self._run.finish(state="crashed", error=f"exit code {exit_code}")


def has_kept_key() -> bool:
    """Return whether `swanlab login` has kept a key on this machine."""
    import swanlab

    return swanlab.Settings().api_key is not None
