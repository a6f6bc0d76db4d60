"""Start a run's processes: launchers, signals, one pool for processes on this machine."""

LAUNCHERS = ("deepspeed", "torchrun", "mpirun", "srun")
"""What `versatune train --launcher` takes; here, so that the command line need not import what starts them."""
