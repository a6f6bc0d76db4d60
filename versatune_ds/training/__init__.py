"""Train: assemble a run, the loop, held-out losses, metrics, signals, and resuming from a checkpoint."""
