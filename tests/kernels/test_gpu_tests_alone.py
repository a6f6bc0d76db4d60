"""The kernels and their GPU tests need PyTorch and pytest alone, so that they run on any machine with a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ABSENT = ("datasets", "deepspeed", "hypothesis", "numba", "pyarrow", "pydantic", "transformers", "wandb", "yaml")
WITHOUT_THEM = f"""
import functools, importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
def find_others(name, path=None, target=None):
    return None if name.split(".")[0] in {ABSENT} else find(name, path, target)
importlib.machinery.PathFinder.find_spec = functools.partial(find_others)  # pytest makes it a class attribute
import pytest
sys.exit(pytest.main(["tests/gpu", "-m", "gpu", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_the_gpu_tests_are_collected_without_deepspeed_and_the_other_dependencies():
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WITHOUT_THEM, "--collect-only"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("test_kernels_on_gpu.py::") > 100
