"""Start a run's processes: launchers, signals, one pool for processes on this machine."""
