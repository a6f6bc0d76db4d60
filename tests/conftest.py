"""Settle what every test relies on: no network, one thread per process, helpers importable, quiet hypothesis."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.pop("COLUMNS", None)  # processes of pytest-xdist have it, and tables would fit it
sys.path.insert(0, str(Path(__file__).parent / "helpers"))

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # tests/gpu runs where there are PyTorch and pytest alone
    pass
else:
    settings.register_profile("project", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("project")

LONGEST = (
    "tests/slurm/test_real_cluster.py",
    "tests/launch/test_start.py",
    "tests/training/test_interrupted.py",
    "tests/training/test_circle.py",
    "tests/launch/test_two_hosts.py",
)
"""Files that take minutes."""


def pytest_collection_modifyitems(config, items):
    """Begin with the longest files where several processes share them, or one is left with them at the end."""
    if hasattr(config, "workerinput"):
        place = {name: number for number, name in enumerate(LONGEST)}
        items.sort(key=lambda item: place.get(item.location[0], len(LONGEST)))
