"""The set-up of .venv installs the torch that VERSATUNE_TORCH selects, and replaces the other kind; pip is a fake."""

import platform
import subprocess
import sys

import pytest
from tiny_run import ROOT

PIP = """#!/bin/bash
echo "pip $*" >> "$ROOT/calls"
case "$*" in
  *uninstall*) rm -f "$VERSION" ;;
  *--no-index*) exit 1 ;;
  *"torch==2"*) echo 'cuda: Optional[str] = None' > "$VERSION" ;;
  *"torch>=2.8"*) echo "cuda: Optional[str] = ${GIVEN:-'13.0'}" > "$VERSION" ;;
esac
"""
PYTHON = """#!/bin/bash
[ "$2" != "import torch" ] || [ -f "$VERSION" ]
"""
CPU = "__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n"
CUDA = "__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n"

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="elsewhere there is one kind of torch wheel"
)


@pytest.fixture
def set_up(tmp_path):
    """Return a function that sets up .venv, with a torch in it or none: exit code, pip's calls, stderr."""
    site = tmp_path / ".venv" / "lib" / "python3.11" / "site-packages" / "torch"
    for folder in (tmp_path / "bin", tmp_path / ".venv" / "bin", site):
        folder.mkdir(parents=True)
    (tmp_path / "setup.py").write_text("")
    scripts = {".venv/bin/pip": PIP, ".venv/bin/python": PYTHON, "bin/curl": "#!/bin/sh\n"}
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(*, torch=None, gpu=False, **environ):
        if torch is not None:
            (site / "version.py").write_text(torch)
        if gpu:
            (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: H100'\n")
            (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
        (tmp_path / "calls").write_text("")
        base = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "ROOT": str(tmp_path), "VERSION": str(site / "version.py")}
        script = f'set -euo pipefail; . {ROOT}/launcher/environment.sh; setup_environment ""; has_gpu && echo GPU; true'
        command = ["bash", "-c", script]
        done = subprocess.run(command, env={**base, **environ}, capture_output=True, text=True, timeout=60)
        calls = [call for call in (tmp_path / "calls").read_text().splitlines() if " torch" in call]
        return done.returncode, calls, done.stderr

    return run


CPU_WHEEL = "pip install --quiet --index-url https://download.pytorch.org/whl/cpu torch==2.13.0"
CUDA_WHEEL = "pip install --quiet torch>=2.8,<3"
LOCAL_WHEEL = "pip install --quiet --no-index --no-deps torch==2.13.0"
UNINSTALL = "pip uninstall --quiet --yes torch"


@pytest.mark.parametrize(
    ("gpu", "choice", "calls"),
    [
        (False, {}, [LOCAL_WHEEL, CPU_WHEEL]),
        (True, {}, [CUDA_WHEEL]),
        (False, {"VERSATUNE_TORCH": "cuda"}, [CUDA_WHEEL]),
        (True, {"VERSATUNE_TORCH": "cpu"}, [LOCAL_WHEEL, CPU_WHEEL]),
    ],
)
def test_the_torch_wheel_fits_the_machine_unless_one_is_chosen(set_up, gpu, choice, calls):
    assert set_up(gpu=gpu, **choice)[:2] == (0, calls)
    assert set_up(gpu=gpu, **choice)[:2] == (0, [])


def test_choosing_another_kind_later_replaces_the_installed_torch(set_up):
    assert set_up(torch=CPU)[:2] == (0, [])
    code, calls, err = set_up(VERSATUNE_TORCH="cuda")
    assert (code, calls) == (0, [UNINSTALL, CUDA_WHEEL])
    assert "replacing the torch for cpu" in err
    assert set_up(VERSATUNE_TORCH="cuda")[:2] == (0, [])
    assert set_up(torch=CUDA)[:2] == (0, [])  # no choice: the installed one stays
    assert set_up(VERSATUNE_TORCH="cpu")[1] == [UNINSTALL, LOCAL_WHEEL, CPU_WHEEL]


def test_a_cpu_torch_on_a_machine_with_a_gpu_is_reported_with_a_remedy(set_up):
    code, calls, err = set_up(torch=CPU, gpu=True)
    assert (code, calls) == (0, [])
    assert err.count("this machine has a GPU, but the torch in") == 1
    assert "VERSATUNE_TORCH=cuda replaces it" in err


def test_an_unknown_kind_and_an_index_without_cuda_are_refused(set_up):
    code, calls, err = set_up(VERSATUNE_TORCH="gpu")
    assert (code, calls, err) == (2, [], "versatune: VERSATUNE_TORCH=gpu: expected cuda or cpu\n")
    code, _, err = set_up(VERSATUNE_TORCH="cuda", GIVEN="None")
    assert code == 2
    assert "pip's index gave a torch without CUDA" in err
