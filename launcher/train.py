"""Run one process of training; deepspeed, torchrun, srun and mpirun start it."""

import sys

from versatune_ds.cli import main

if __name__ == "__main__":
    sys.exit(main(["worker", *sys.argv[1:]]))
