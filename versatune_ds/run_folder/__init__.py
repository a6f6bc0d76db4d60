"""Own what lies in a run's folder: names of files, history, checkpoints' files, complete-or-absent writing."""
