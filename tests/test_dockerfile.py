"""The Dockerfile copies what a wheel needs, installs extras that exist, runs as a user, and builds where docker is."""

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
from command_line import command_of

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LINES = [line for line in TEXT.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]


def arguments_of(instruction):
    """Return what follows an instruction, of every line that has it."""
    return [line.partition(" ")[2].strip() for line in LINES if line.split()[0] == instruction]


ARGS = dict(argument.split("=", 1) for argument in arguments_of("ARG"))
SOURCES = [source for copied in arguments_of("COPY") for source in copied.split()[:-1]]


@pytest.fixture
def setup_arguments(monkeypatch):
    """Return what setup.py gives to setuptools."""
    given = {}
    monkeypatch.setattr("setuptools.setup", lambda **arguments: given.update(arguments))
    monkeypatch.chdir(ROOT)
    return {**runpy.run_path(str(ROOT / "setup.py")), **given}


def test_everything_that_is_copied_exists_and_reaches_docker():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[1] == "*"
    admitted = {line[1:] for line in ignored if line.startswith("!")}
    assert [source for source in SOURCES if not (ROOT / source).exists()] == []
    assert set(SOURCES) == admitted  # and nothing else does: no rows, no runs


def test_what_setup_puts_into_a_wheel_is_copied(setup_arguments):
    folders = {folder.split("/")[0] for folder, _ in setup_arguments["DATA_FILES"]}
    assert folders | {"versatune_ds", "setup.py", "pyproject.toml", "README.md"} <= set(SOURCES)


def test_the_extras_that_are_installed_exist(setup_arguments):
    assert set(ARGS["EXTRAS"].split(",")) <= set(setup_arguments["extras_require"])
    assert any('"/opt/versatune[$EXTRAS]"' in line for line in arguments_of("RUN"))


def test_the_torch_that_is_installed_is_that_of_the_set_up_script():
    script = (ROOT / "launcher" / "environment.sh").read_text(encoding="utf-8")
    assert ARGS["TORCH_VERSION"] == re.search(r"^TORCH_VERSION=(.+)$", script, re.MULTILINE)[1]
    assert f":-{ARGS['CPU_INDEX']}}}" in script


def test_an_image_without_arguments_shows_the_help_and_not_as_root(capsys, setup_arguments):
    (words,) = [json.loads(entry) + json.loads(arguments_of("CMD")[0]) for entry in arguments_of("ENTRYPOINT")]
    scripts = [line.split(" = ")[0] for line in setup_arguments["entry_points"]["console_scripts"]]
    assert words[0] in scripts
    called = command_of(capsys)(*words[1:])
    assert (called.code, called.err) == (0, "")
    assert called.out.startswith("usage: versatune ")
    (user,) = arguments_of("USER")
    assert user not in ("root", "0")
    assert any(f'--uid "$UID" {user}' in line for line in arguments_of("RUN"))


@pytest.mark.parametrize("command", arguments_of("RUN"))
def test_every_command_of_the_build_is_valid_shell(command):
    checked = subprocess.run(["sh", "-n", "-c", command], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_every_build_argument_that_a_page_sets_exists():
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "Dockerfile"]
    given = re.findall(r"--build-arg (\w+)=", "".join(page.read_text(encoding="utf-8") for page in pages))
    assert set(given) >= {"BASE", "TORCH"}
    assert set(given) <= set(ARGS)


def why_no_docker():
    """Return why docker cannot build here, None where it can."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    asked = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=60)
    return (asked.stderr.strip().splitlines() or ["docker info fails"])[-1] if asked.returncode else None


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_docker_builds_the_image_for_the_cpu_and_it_shows_the_help():
    reason = why_no_docker()
    if reason:
        pytest.skip(reason)
    build = ["docker", "build", "--quiet", "--build-arg", "BASE=ubuntu:24.04", "--build-arg", "TORCH=cpu", "."]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert built.returncode == 0, built.stderr[-3000:]
    image = built.stdout.split()[-1]
    shown = subprocess.run(["docker", "run", "--rm", image], capture_output=True, text=True, timeout=300)
    assert shown.stdout.startswith("usage: versatune "), shown.stderr
    who = ["docker", "run", "--rm", "--entrypoint", "id", image, "--user"]
    assert subprocess.run(who, capture_output=True, text=True, timeout=300).stdout.strip() == ARGS["UID"]
