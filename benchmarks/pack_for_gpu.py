r"""Carry what a GPU machine without a package index needs, in parts of at most 48 MB, with checked sums.

On a machine with an index (parts and a copy of this script go to my_pack/, which git ignores):

    python benchmarks/pack_for_gpu.py --output my_pack --model model.gguf --rows my_data --recipes my_recipe.yaml

On the GPU machine, with torch and transformers installed, from the checkout of this project:

    python my_pack/pack_for_gpu.py --unpack my_pack --to my_gpu
    . my_gpu/venv/bin/activate

It joins the parts, compares every sum, writes models/, rows/, recipes/ and wheels/ under my_gpu, makes a virtual
environment that sees the installed packages, installs the wheels with --no-index, and lists what is still missing (exit
code 1). A second call does nothing twice. `--model` and `--recipes` may be given several times; each is a file or a
folder. Wheels are fetched for `--python` (3.12); `--package NAME` adds one that was listed as missing; those of
`--wheels FOLDER` are packed as they are. Only Python's own library is needed, and all is in this one file, since a copy
of it goes with the parts.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

PART_BYTES = 48_000_000
MANIFEST = "manifest.json"
WITH_DEPENDENCIES = ("pydantic",)
"""pydantic asks for one exact pydantic_core, which is not always the newest."""
ALONE = ("datasets", "multiprocess", "dill", "hjson", "rich", "zstandard", "gguf")
"""What else a bare machine with torch, transformers, accelerate and peft lacks."""
ALSO_LOOKED_FOR = ("accelerate", "peft>=0.17")
"""Beside what setup.py requires: large models, and LoRA."""
DEEPSPEED = "deepspeed==0.19.8"
"""Built here, since there is no wheel of it."""
_BLOCK = 1 << 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack or unpack; a mistake is one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder of the parts, to write")
    parser.add_argument("--model", type=Path, action="append", default=[], help="GGUF file or model folder")
    parser.add_argument("--rows", type=Path, help="folder of rows: train/, valid/, test/")
    parser.add_argument("--recipes", type=Path, action="append", default=[], help="recipe, or folder of recipes")
    parser.add_argument("--python", default="3.12", help="Python of the GPU machine (default: 3.12)")
    parser.add_argument("--package", action="append", default=[], help="one more package that is missing there")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to pack instead of fetching them")
    parser.add_argument("--unpack", type=Path, help="folder of the parts, to read")
    parser.add_argument("--to", type=Path, help="folder to unpack into")
    parser.add_argument("--no-environment", action="store_true", help="unpack the files only")
    parsed = parser.parse_args(arguments)
    try:
        if parsed.unpack is not None:
            if parsed.to is None:
                raise ValueError("--to: missing; give the folder to unpack into")
            return unpack(parsed.unpack, parsed.to, has_environment=not parsed.no_environment)
        if parsed.output is None:
            raise ValueError("give --output FOLDER to pack, or --unpack FOLDER --to FOLDER")
        return _pack_command(parsed)
    except ValueError as error:
        print(f"pack_for_gpu: {error}", file=sys.stderr)
        return 2


def _pack_command(parsed: argparse.Namespace) -> int:
    """Collect what is to be packed, and pack it."""
    given = {"models": parsed.model, "rows": [parsed.rows] if parsed.rows else [], "recipes": parsed.recipes}
    with tempfile.TemporaryDirectory() as place:
        wheels = parsed.wheels or fetch_wheels(Path(place), python=parsed.python, more=parsed.package)
        files = dict(_named_files({**given, "wheels": [wheels]}))
        pack(files, parsed.output, python=parsed.python, requirements=[*requirements_of_project(), *ALSO_LOOKED_FOR])
    return 0


def _named_files(given: dict[str, list[Path]]) -> Iterator[tuple[str, Path]]:
    """Yield (name in the pack, file) for files and folders by kind; only models keep the name of their folder.

    Raises:
        ValueError: If a path does not exist or is empty.
    """
    for kind, paths in given.items():
        for path in paths:
            if path.is_file():
                yield f"{kind}/{path.name}", path
                continue
            found = sorted(file for file in path.rglob("*") if file.is_file())
            if not found:
                option = "--model" if kind == "models" else f"--{kind}"
                raise ValueError(f"{option}: {path}: no such file or folder, or nothing in it")
            prefix = f"{kind}/{path.name}" if kind == "models" else kind
            for file in found:
                yield f"{prefix}/{file.relative_to(path).as_posix()}", file


def fetch_wheels(folder: Path, *, python: str, more: Sequence[str] = ()) -> Path:
    """Fetch the wheels for a Python version, and build deepspeed's.

    Raises:
        ValueError: If pip cannot.
    """
    target = ["download", "--only-binary=:all:", "--python-version", python, "-d", str(folder)]
    for words in (
        [*target, *WITH_DEPENDENCIES],
        [*target, "--no-deps", *ALONE, *more],
        ["wheel", "--no-deps", "-w", str(folder), DEEPSPEED],
    ):
        _run_pip(sys.executable, words, advice="give --wheels FOLDER with wheels from elsewhere")
    return folder


def _run_pip(python: str | Path, words: Sequence[str], *, advice: str) -> None:
    """Run pip of a Python; raise ValueError with its last line and what to do if it fails."""
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    result = subprocess.run([*pip, *words], capture_output=True, text=True)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()] or ["no message"]
        raise ValueError(f"wheels: pip {words[0]} failed: {lines[-1]}; {advice}")


def requirements_of_project() -> list[str]:
    """Return `install_requires` of the setup.py of this checkout; empty without one."""
    path = Path(__file__).resolve().parents[1] / "setup.py"
    if not path.is_file():
        return []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    keywords = [word for node in ast.walk(tree) if isinstance(node, ast.Call) for word in node.keywords]
    return next((ast.literal_eval(word.value) for word in keywords if word.arg == "install_requires"), [])


def pack(
    files: dict[str, Path],
    output: Path,
    *,
    python: str = "3.12",
    requirements: Sequence[str] = (),
    part_bytes: int = PART_BYTES,
) -> list[Path]:
    """Write files as parts of one compressed archive, with a manifest; the same files give the same bytes.

    Args:
        files: Source by name in the pack.
        output: Folder to write; parts of an earlier pack in it are replaced.
        python: Version the wheels are for, such as 3.12.
        requirements: Packages that unpacking looks for, as in setup.py.
        part_bytes: Largest part.

    Returns:
        The parts, in order.

    Raises:
        ValueError: If the output contains something else, which is then left alone.
    """
    if output.is_dir() and any(output.iterdir()) and not (output / MANIFEST).is_file():
        raise ValueError(f"--output: {output} contains other files; give a new folder")
    output.mkdir(parents=True, exist_ok=True)
    for earlier in output.glob("part-*"):
        earlier.unlink()
    (output / ".gitignore").write_text("*\n")  # weights and rows belong into no repository
    parts = _PartWriter(output, part_bytes=part_bytes)
    with (
        gzip.GzipFile(filename="", fileobj=parts, mode="wb", compresslevel=6, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in sorted(files):
            _add(archive, name, files[name])
    parts.finish()
    manifest = {
        "python": python,
        "requirements": list(requirements),
        "parts": [_described(path.name, path) for path in parts.paths],
        "files": [_described(name, files[name]) for name in sorted(files)],
    }
    (output / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    (output / Path(__file__).name).write_bytes(Path(__file__).read_bytes())
    total, limit = sum(part["bytes"] for part in manifest["parts"]) / 1e6, part_bytes / 1e6
    print(f"{output}: {len(files)} files, {total:.1f} MB in {len(parts.paths)} parts of at most {limit:g} MB")
    return parts.paths


def _described(name: str, path: Path) -> dict[str, Any]:
    """Return name, size and sum of a file."""
    return {"name": name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _add(archive: tarfile.TarFile, name: str, path: Path) -> None:
    """Add a file without time, owner or links."""
    entry = tarfile.TarInfo(name)
    entry.size = path.stat().st_size
    with path.open("rb") as stream:
        archive.addfile(entry, stream)


class _PartWriter(io.RawIOBase):
    """A stream that writes files part-000, part-001, ... of a bounded size."""

    def __init__(self, folder: Path, *, part_bytes: int) -> None:
        self._folder, self._part_bytes = folder, part_bytes
        self._stream: BinaryIO | None = None
        self._room = 0
        self.paths: list[Path] = []

    def writable(self) -> bool:
        """Return True; gzip asks."""
        return True

    def write(self, data: Any) -> int:
        """Write all bytes, beginning further parts where one is full."""
        rest = memoryview(data).cast("B")
        while len(rest):
            if self._room == 0:
                self._begin()
            written = rest[: self._room]
            self._stream.write(written)
            self._room -= len(written)
            rest = rest[len(written) :]
        return len(memoryview(data).cast("B"))

    def finish(self) -> None:
        """Close the last part."""
        if self._stream is not None:
            self._stream.close()

    def _begin(self) -> None:
        self.finish()
        path = self._folder / f"part-{len(self.paths):03d}"
        self._stream, self._room = path.open("wb"), self._part_bytes
        self.paths.append(path)


class _PartReader(io.RawIOBase):
    """A stream that reads the parts one after the other."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._stream: BinaryIO | None = None

    def readable(self) -> bool:
        """Return True; gzip asks."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from the current part, or from the next one where it ends."""
        while True:
            if self._stream is None:
                if not self._paths:
                    return 0
                self._stream = self._paths.pop(0).open("rb")
            if count := self._stream.readinto(buffer):
                return count
            self._stream.close()
            self._stream = None


def sha256_of(path: Path) -> str:
    """Return the sha256 sum of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def unpack(folder: Path, target: Path, *, has_environment: bool = True) -> int:
    """Write the packed files under a folder, and make the environment; return 0, or 1 if packages are missing.

    Raises:
        ValueError: If a part is missing or differs from its sum; nothing is written then.
    """
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"--unpack: {folder}: no {MANIFEST}; give the folder with the parts")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    waiting = [file for file in manifest["files"] if not _is_written(target, file)]
    if waiting:
        for part in manifest["parts"]:
            path = folder / part["name"]
            if not path.is_file() or path.stat().st_size != part["bytes"] or sha256_of(path) != part["sha256"]:
                raise ValueError(f"--unpack: {path} is missing or differs from its sum; copy it again")
        _extract([folder / part["name"] for part in manifest["parts"]], target, waiting)
    print(f"{len(manifest['files'])} files under {target}, sums right; {len(waiting)} of them written now")
    return _make_environment(target, manifest) if has_environment else 0


def _is_written(target: Path, file: dict[str, Any]) -> bool:
    """Return whether a file is there already, byte for byte."""
    path = target / _checked(file["name"])
    return path.is_file() and path.stat().st_size == file["bytes"] and sha256_of(path) == file["sha256"]


def _checked(name: str) -> PurePosixPath:
    """Return a name of the pack; raise ValueError if it leads out of the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"--unpack: the pack contains {name!r}, which leads out of the folder; do not use it")
    return path


def _extract(parts: Sequence[Path], target: Path, waiting: Sequence[dict[str, Any]]) -> None:
    """Write the files that are wanted."""
    wanted = {file["name"]: file for file in waiting}
    with (
        gzip.GzipFile(fileobj=io.BufferedReader(_PartReader(parts), _BLOCK), mode="rb") as stream,
        tarfile.open(fileobj=stream, mode="r|") as archive,
    ):
        for entry in archive:
            path, file = target / _checked(entry.name), wanted.pop(entry.name, None)
            if file is not None and entry.isfile():
                _write(archive.extractfile(entry), path, sha256=file["sha256"])
    if wanted:
        raise ValueError(f"--unpack: the parts lack {sorted(wanted)[0]}; pack it again")


def _write(source: Any, path: Path, *, sha256: str) -> None:
    """Write a file, under another name until its sum is known to be right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as stream:
        while block := source.read(_BLOCK):
            stream.write(block)
    if sha256_of(partial) != sha256:
        partial.unlink()
        raise ValueError(f"--unpack: {path.name} differs from its sum; pack it again")
    partial.replace(path)


def _make_environment(target: Path, manifest: dict[str, Any]) -> int:
    """Make the virtual environment, install the wheels that it lacks, and list what is missing."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if here != manifest["python"]:
        raise ValueError(
            f"the wheels are for Python {manifest['python']}, this is {here}; use that one, or pack for this"
        )
    python = target / "venv" / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(target / "venv")], check=True)
    wheels = sorted(str(path) for path in (target / "wheels").glob("*.whl"))
    if wheels:
        words = ["install", "--no-index", "--no-deps", *wheels]
        _run_pip(python, words, advice=f"pack for this machine, or delete {target / 'venv'} and unpack again")
    checked = subprocess.run([str(python), "-c", _LOOK, *manifest["requirements"]], capture_output=True, text=True)
    missing = json.loads(checked.stdout)
    for line in missing:
        print(f"missing: {line}")
    print(f"environment: {target / 'venv'}, {len(wheels)} wheels" + ("" if missing else "; nothing is missing"))
    return 1 if missing else 0


_LOOK = """
import json, sys
from importlib import metadata
from pip._vendor.packaging.requirements import Requirement
missing = []
for text in sys.argv[1:]:
    wanted = Requirement(text)
    try:
        found = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        missing.append(text)
        continue
    if not wanted.specifier.contains(found, prereleases=True):
        missing.append(f"{text} (installed: {found})")
print(json.dumps(missing))
"""

if __name__ == "__main__":
    sys.exit(main())
