"""Read a run's directory and show what happened: table, plots."""
