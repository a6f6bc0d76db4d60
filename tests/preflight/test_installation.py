"""`versatune env` has what a bug report needs, and nothing that is nobody's business."""

import json
import os
import platform
import re
from pathlib import Path

import pytest
import torch
from command_line import command_of

from versatune_ds import __version__
from versatune_ds.preflight.installation import describe_installation


@pytest.fixture(scope="module")
def installation():
    return describe_installation(os.environ)


def test_versions_devices_and_kernels_are_described(installation):
    assert installation["versatune_ds"].startswith(__version__)
    assert installation["python"] == platform.python_version()
    assert installation["torch"] == torch.__version__
    assert installation["loss kernels"].startswith(("compiled C++ implementation", "PyTorch implementation", "Triton"))
    assert installation["devices"]
    assert re.fullmatch(r"[\d.]+|not found", installation["nvcc"])


def test_a_library_that_is_missing_is_listed_as_such(monkeypatch):
    monkeypatch.setattr("versatune_ds.preflight.installation.LIBRARIES", ("torch", "no-such-library"))
    described = describe_installation({})
    assert described["no-such-library"] == "not installed"
    assert described["torch"] == torch.__version__


def test_no_secret_and_no_path_is_in_it(monkeypatch):
    environ = {"WANDB_API_KEY": "sesame", "HF_TOKEN": "sesame", "DS_ACCELERATOR": "cpu", "PATH": os.environ["PATH"]}
    described = describe_installation(environ)
    assert described["DS_ACCELERATOR"] == "cpu"
    text = json.dumps(described)
    assert "sesame" not in text
    assert str(Path.home()) not in text
    assert not re.search(r"(?<!\w)/\w+/", text)


def test_a_gpu_that_torch_does_not_see_is_named(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\n")
    program.chmod(0o755)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    described = describe_installation({"PATH": str(tmp_path)})
    assert described["devices"].startswith("cpu; nvidia-smi lists GPU 0: NVIDIA H100, but this torch")


def test_the_command_prints_it_as_text_or_json(capsys, installation):
    versatune = command_of(capsys)
    called = versatune("env")
    assert (called.code, called.err) == (0, "")
    assert re.search(rf"^torch +{re.escape(torch.__version__)}$", called.out, re.MULTILINE)
    assert json.loads(versatune("env", "--json").out) == installation
