"""Submit a run to Slurm, and be the batch job that starts it, puts it back into the queue and stops doing so.

The one idea: the job's script reads the recipe and the environment only, needs neither torch nor a GPU, and lets srun
start the ranks; nothing of it is imported by them.
"""
