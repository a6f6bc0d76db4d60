"""Be one process of `versatune reference`: what deepspeed, torchrun, srun and mpirun start."""

import sys

from versatune_ds.cli import main

if __name__ == "__main__":
    sys.exit(main(["reference", "--worker", *sys.argv[1:]]))
