"""Read a run's folder and show what happened: table, HTML page, pictures."""
