"""Run one process of `versatune evaluate --sharded` or `detect --sharded`; deepspeed, torchrun and srun start it."""

import sys

from versatune_ds.cli import main

if __name__ == "__main__":
    # The deepspeed launcher puts --local_rank=N first.
    words = sorted(sys.argv[1:], key=lambda word: word.startswith("--local_rank"))
    sys.exit(main([words[0], "--worker", *words[1:]]))
