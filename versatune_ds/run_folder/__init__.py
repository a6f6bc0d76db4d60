"""A run's folder: names of its files, locks, checkpoints' files, atomic writing of files and folders."""
