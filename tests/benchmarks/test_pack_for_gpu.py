"""What is packed for a GPU machine comes out byte for byte, in small parts, and nothing corrupt is used."""

import json
import random
import sys

import pytest

from benchmarks.pack_for_gpu import ALSO_LOOKED_FOR, PART_BYTES, main, pack, requirements_of_project, unpack


@pytest.fixture
def files(tmp_path):
    """A model of random bytes, which do not compress, and rows."""
    source = tmp_path / "source"
    (source / "rows" / "train").mkdir(parents=True)
    (source / "model.gguf").write_bytes(random.Random(0).randbytes(5000))
    (source / "rows" / "train" / "law.jsonl").write_text('{"text": "a"}\n')
    (source / "empty.yaml").write_bytes(b"")
    return {
        "models/model.gguf": source / "model.gguf",
        "rows/train/law.jsonl": source / "rows" / "train" / "law.jsonl",
        "recipes/empty.yaml": source / "empty.yaml",
    }


def test_files_come_out_as_they_went_in_from_parts_of_a_bounded_size(tmp_path, files, capsys):
    parts = pack(files, tmp_path / "pack", part_bytes=1000)
    assert [part.stat().st_size for part in parts][:-1] == [1000] * (len(parts) - 1)
    assert len(parts) == 6
    assert 0 < parts[-1].stat().st_size <= 1000
    assert (tmp_path / "pack" / ".gitignore").read_text() == "*\n"
    assert unpack(tmp_path / "pack", tmp_path / "out", has_environment=False) == 0
    assert "3 files" in capsys.readouterr().out
    for name, source in files.items():
        assert (tmp_path / "out" / name).read_bytes() == source.read_bytes()


def test_the_same_files_give_the_same_bytes(tmp_path, files):
    first = [part.read_bytes() for part in pack(files, tmp_path / "a", part_bytes=1000)]
    files["models/model.gguf"].touch()
    assert [part.read_bytes() for part in pack(files, tmp_path / "b", part_bytes=1000)] == first


def test_unpacking_again_writes_only_what_is_missing_or_changed(tmp_path, files, capsys):
    pack(files, tmp_path / "pack", part_bytes=1000)
    out = tmp_path / "out"
    unpack(tmp_path / "pack", out, has_environment=False)
    kept = (out / "rows" / "train" / "law.jsonl").stat().st_mtime_ns
    (out / "models" / "model.gguf").write_bytes(b"cut")
    unpack(tmp_path / "pack", out, has_environment=False)
    assert "1 of them written now" in capsys.readouterr().out
    assert (out / "rows" / "train" / "law.jsonl").stat().st_mtime_ns == kept
    for part in (tmp_path / "pack").glob("part-*"):
        part.unlink()  # nothing more is read from them
    assert unpack(tmp_path / "pack", out, has_environment=False) == 0


def test_a_part_that_differs_from_its_sum_is_refused_before_anything_is_written(tmp_path, files, capsys):
    parts = pack(files, tmp_path / "pack", part_bytes=1000)
    parts[2].write_bytes(b"x" * 1000)
    words = ["--unpack", str(tmp_path / "pack"), "--to", str(tmp_path / "out")]
    assert main(words) == 2
    assert (
        capsys.readouterr().err
        == f"pack_for_gpu: --unpack: {parts[2]} is missing or differs from its sum; copy it again\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "rows/../../outside"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, files, name):
    pack({name: files["models/model.gguf"]}, tmp_path / "pack", part_bytes=10_000)
    with pytest.raises(ValueError, match="leads out of the folder"):
        unpack(tmp_path / "pack", tmp_path / "out", has_environment=False)
    assert not (tmp_path / "outside").exists()


def test_a_folder_with_other_files_is_not_written_into(tmp_path, files):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(ValueError, match="contains other files; give a new folder"):
        pack(files, tmp_path / "mine")


def test_the_command_names_files_by_their_kind_and_reports_what_does_not_exist(tmp_path, files, capsys):
    source = files["models/model.gguf"].parent
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "a-1-py3-none-any.whl").write_bytes(b"")
    words = ["--output", str(tmp_path / "pack"), "--wheels", str(tmp_path / "wheels"), "--rows", str(source / "rows")]
    assert main([*words, "--model", str(source / "model.gguf"), "--recipes", str(source / "empty.yaml")]) == 0
    manifest = json.loads((tmp_path / "pack" / "manifest.json").read_text())
    assert [file["name"] for file in manifest["files"]] == [
        "models/model.gguf", "recipes/empty.yaml", "rows/train/law.jsonl", "wheels/a-1-py3-none-any.whl",
    ]  # fmt: skip
    assert manifest["requirements"] == [*requirements_of_project(), *ALSO_LOOKED_FOR]
    assert any(text.startswith("deepspeed") for text in manifest["requirements"])
    assert main([*words, "--model", str(tmp_path / "gone")]) == 2
    expected = f"pack_for_gpu: --model: {tmp_path / 'gone'}: no such file or folder, or nothing in it\n"
    assert capsys.readouterr().err == expected


def test_what_the_environment_lacks_is_listed(tmp_path, files, capsys, monkeypatch):
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    pack(files, tmp_path / "pack", python=python, requirements=["pip>=1", "pip<1", "no-such-package-here>=2"])
    venv = tmp_path / "out" / "venv" / "bin"
    venv.mkdir(parents=True)
    (venv / "python").symlink_to(sys.executable)  # making one takes seconds
    assert unpack(tmp_path / "pack", tmp_path / "out") == 1
    shown = capsys.readouterr().out
    assert "missing: no-such-package-here>=2\n" in shown
    assert "missing: pip<1 (installed: " in shown
    assert "missing: pip>=1" not in shown
    pack(files, tmp_path / "pack", python="2.7")
    with pytest.raises(ValueError, match=r"the wheels are for Python 2\.7, this is 3"):
        unpack(tmp_path / "pack", tmp_path / "out")
    assert PART_BYTES == 48_000_000


def test_a_failed_installation_is_one_line_with_what_to_do(tmp_path, files):
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    pack({**files, "wheels/a-1-py3-none-any.whl": files["models/model.gguf"]}, tmp_path / "pack", python=python)
    failing = tmp_path / "out" / "venv" / "bin" / "python"
    failing.parent.mkdir(parents=True)
    failing.write_text("#!/bin/sh\necho 'ERROR: wheel a is invalid' >&2\nexit 1\n")
    failing.chmod(0o755)
    with pytest.raises(ValueError, match=r"^wheels: pip install failed: ERROR: wheel a is invalid; pack for"):
        unpack(tmp_path / "pack", tmp_path / "out")
