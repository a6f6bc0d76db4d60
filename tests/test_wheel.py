"""A wheel of the package works in an environment of its own, far from any checkout."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("versatune_ds", "launcher", "slurm", "ds_configs", "recipes"):
        ignored = ("__pycache__", ".cache")
        for path in sorted((ROOT / name).rglob("*")):
            if path.is_file() and not any(part in ignored for part in path.parts):
                place = source / path.relative_to(ROOT)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(path.read_bytes())
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, timeout=300)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_a_wheel_has_every_file_that_stands_beside_the_package(wheel):
    names = {name.partition("/share/versatune_ds/")[2] for name in zipfile.ZipFile(wheel).namelist()}
    wanted = [*ROOT.glob("launcher/*.py"), *ROOT.glob("ds_configs/*.json"), *ROOT.glob("recipes/**/*.yaml")]
    assert {str(path.relative_to(ROOT)) for path in [*wanted, ROOT / "slurm/train.sbatch"]} == names - {""}


@pytest.mark.slow
def test_a_wheel_has_every_file_of_the_package(wheel):
    suffixes = (".py", ".bash", ".zsh", ".fish", ".html", ".css", ".js", ".cpp", ".cu", ".cuh", ".h")
    files = [path for path in (ROOT / "versatune_ds").rglob("*") if path.suffix in suffixes]
    assert {str(path.relative_to(ROOT)) for path in files} <= set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
def test_a_run_starts_from_a_wheel_in_an_empty_folder(wheel, tmp_path):
    # An environment with the wheel alone; the libraries it needs are those of this environment.
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True, timeout=120)
    python = environment / "bin" / "python"
    install = ["--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, timeout=120)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    launcher = environment / "bin" / "deepspeed"  # the libraries' one, for this environment's Python
    text = (Path(sysconfig.get_path("scripts")) / "deepspeed").read_text()
    launcher.write_text(f"#!{python}\n" + text.partition("\n")[2])
    launcher.chmod(0o755)
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    here = tmp_path / "work"
    here.mkdir()
    words = [
        "train",
        "recipes/quickstart.yaml",
        "--processes",
        "1",
        "train.steps=2",
        "validation.max_examples_per_domain=2",
    ]
    small = [
        "data.row_tokens=64",
        "model.tokenizer_vocab_size=400",
        "checkpoint.every=2",
        "data.synthetic={num_rows: 12}",
    ]
    done = subprocess.run(
        [str(environment / "bin" / "versatune"), *words, *small],
        cwd=here, env=variables, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{environment}/share/versatune_ds/launcher/train.py" in done.stderr
    assert (here / "runs" / "quickstart" / "report" / "index.html").is_file()
    dry = [str(environment / "bin" / "versatune"), "submit", "recipes/quickstart.yaml", "--dry-run", "run.name=job"]
    shown = subprocess.run(dry, cwd=here, env=variables, capture_output=True, text=True, timeout=120)
    assert f"{environment}/share/versatune_ds/slurm/train.sbatch" in shown.stdout + shown.stderr
