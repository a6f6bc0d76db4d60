"""Record and show what a run measures: JSON lines always, a terminal, W&B and TensorBoard where asked for.

The one idea: a metric is a flat name (`domain/law/loss`) and a number at a step; whoever takes such mappings is a sink.
Only `metrics.jsonl` and `decisions.jsonl` are the record; every other sink may fail, and training goes on.
"""

from versatune_ds.monitor.opening import open_monitor
from versatune_ds.monitor.sinks import Monitor, Sink

__all__ = ["Monitor", "Sink", "open_monitor"]
