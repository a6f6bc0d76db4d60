"""Train: model, engine, loop, checkpoints, evaluation, export, monitoring."""
