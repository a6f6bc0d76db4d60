"""Submit a run to Slurm, and run the batch job that starts and requeues it.

The job reads only the recipe and the environment, needs neither torch nor a GPU, and lets srun start the ranks, which
import nothing of it.
"""
