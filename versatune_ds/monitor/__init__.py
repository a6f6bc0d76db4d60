"""Record and show what a run measures: JSON lines and the terminal always, W&B and TensorBoard on request.

A metric is a flat name (`domain/law/loss`) with a number at a step; a sink receives mappings of them. The record is
`metrics.jsonl` and `decisions.jsonl`; every other sink may fail, and training continues.
"""

from versatune_ds.monitor.sinks import Monitor, Sink, open_monitor

__all__ = ["Monitor", "Sink", "open_monitor"]
