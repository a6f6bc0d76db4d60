"""TensorBoard receives the same numbers, read with its own reader; a resumed run replaces the later steps."""

import pytest
from monitor_data import decision, recipe, step_metrics

from versatune_ds.monitor import open_monitor


@pytest.mark.slow
def test_a_resumed_run_is_one_history_of_scalars_text_and_charts(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = recipe(tmp_path, tensorboard=True)
    config.run_dir.mkdir()
    for resumed_step, steps in ((-1, (1, 2, 3)), (2, (3, 4))):
        monitor = open_monitor(config, resumed_step=resumed_step)
        for step in steps:
            monitor.metrics(step, step_metrics(**{"train/loss": 1.0 / step}))
        monitor.decision(decision(1))
        monitor.finish(exit_code=0)
    events = accumulator.EventAccumulator(str(config.run_dir / "tensorboard"))
    events.Reload()
    assert [(event.step, round(event.value, 4)) for event in events.Scalars("train/loss")] == [
        (1, 1.0), (2, 0.5), (3, 0.3333), (4, 0.25)
    ]  # fmt: skip
    assert events.Scalars("weight_decided/law")[-1].value == 0.75
    assert not [name for name in events.Tags()["scalars"] if name.startswith("domain/")]
    assert {"charts/weights", "charts/losses"} <= set(events.Tags()["images"])
    assert "decision/text_summary" in events.Tags()["tensors"]
