"""Find the domains of a recipe, their order, and the files of each.

A folder, a mapping and the built-in corpus all become one ordered mapping from domain to files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from versatune_ds.config import DataConfig, DomainFiles, SyntheticCorpus
from versatune_ds.data.encoding.forms import parse_example
from versatune_ds.data.encoding.turns import BadRowError, is_unicode
from versatune_ds.data.manifest import digest_of_texts
from versatune_ds.data.remote.cache import RemoteSource, remote_files
from versatune_ds.data.remote.domain_folder import remote_domains
from versatune_ds.data.sources.find_files import (
    entries_of_folder,
    find_files,
    is_description,
    is_saved_dataset,
    warn_of_skipped,
)
from versatune_ds.data.sources.missing_data import MissingDataError
from versatune_ds.data.sources.readers import format_of, read_records
from versatune_ds.data.sources.records import Record
from versatune_ds.data.synthetic import DEFAULT_NUM_ROWS, DOMAIN_NAMES, write_corpus
from versatune_ds.domains import domain_name
from versatune_ds.log import silence, warn_once
from versatune_ds.paths import is_address, nearest_path
from versatune_ds.run_folder.file_lock import locked
from versatune_ds.text_table import listed


def domain_files(data: DataConfig, *, cache_dir: Path) -> dict[str, DomainFiles]:
    """Return every domain's files, in the order of the domains' ids.

    A folder's domains are the files and folders in its `train/`, sorted by name; a mapping keeps its own order.

    Args:
        data: The recipe's data section.
        cache_dir: Where the built-in corpus is written if the recipe uses it.

    Raises:
        ValueError: If the folder has no `train/`, or it is empty or has one domain twice.
    """
    if data.domains is not None:
        return dict(data.domains)
    if data.synthetic is not None:
        return _files_by_domain(_write_synthetic(data.synthetic, cache_dir=cache_dir), cache_dir=cache_dir)
    return _files_by_domain(data.folder, cache_dir=cache_dir)


def domain_names(data: DataConfig, *, cache_dir: Path | None = None) -> tuple[str, ...] | None:
    """Return the names of the domains, in order, without reading a data file; None if a folder is missing.

    Args:
        data: The recipe's data section.
        cache_dir: Where the list of a remote folder is recorded, for a start without a network; `data.cache_dir` by
            default.
    """
    if data.domains is not None:
        return tuple(data.domains)
    if data.folder is None:
        return DOMAIN_NAMES
    try:
        with silence():
            return tuple(_files_by_domain(data.folder, cache_dir=cache_dir or data.cache_dir))
    except ValueError:  # `check_data_files` reports it
        return None


def check_data_files(data: DataConfig, *, cache_dir: Path) -> None:
    """Check that every data file of a recipe exists, without reading or fetching any.

    Warnings are not logged here: the run looks again and logs them.

    Raises:
        ValueError: One line for each domain and split whose files are missing or of an unknown format.
    """
    if data.synthetic is not None:
        return
    with silence():
        problems = list(_missing_files(data, cache_dir=cache_dir))
    if problems:
        is_missing = any(isinstance(problem, MissingDataError) for problem in problems)
        error = MissingDataError if is_missing else ValueError
        raise error("\n".join(map(str, problems)))


def _missing_files(data: DataConfig, *, cache_dir: Path) -> Iterator[ValueError]:
    for name, files in domain_files(data, cache_dir=cache_dir).items():
        for split in ("train", "valid"):
            paths = [source for source in getattr(files, split) or () if isinstance(source, str)]
            key = key_of(data, domain=name, split=split)
            try:
                find_files([path for path in paths if not is_address(path)], key=key)
                for address in filter(is_address, paths):
                    remote_files(RemoteSource(address=address, key=key, cache_dir=cache_dir))
            except ValueError as error:
                yield error


def iter_texts(data: DataConfig, *, cache_dir: Path) -> Iterator[str]:
    """Yield all texts of all domains' training examples, for training a tokenizer; bad rows are skipped.

    Preparing the data counts and reports the bad rows.
    """
    for name, files in domain_files(data, cache_dir=cache_dir).items():
        for path in find_files(files.train, key=key_of(data, domain=name), cache_dir=cache_dir):
            for record in read_records(path):
                yield from texts_of_record(record, columns=files.columns)


def texts_of_record(record: Record, *, columns: Mapping[str, str] | None = None) -> list[str]:
    """Return the texts of a record that are valid Unicode; none if the record is bad."""
    try:
        texts = [] if record.problem else parse_example(record.json_text, columns=columns).texts()
    except BadRowError:
        return []
    return [text for text in texts if is_unicode(text)]


def key_of(data: DataConfig, *, domain: str, split: str = "train") -> str:
    """Return the recipe's key for a domain's files, for messages."""
    return f"data.domains.{domain}.{split}" if data.domains is not None else "data.folder"


def _files_by_domain(folder: Path | str, *, cache_dir: Path | None) -> dict[str, DomainFiles]:
    """Return the domains of a folder with `train/` and perhaps `valid/`."""
    train = _paths_of_split(folder, "train", cache_dir=cache_dir)
    if train is None:
        raise MissingDataError(f"data.folder: {_why_no_train(folder)}")
    if not train:
        raise ValueError(f"data.folder: {folder}/train has no data file; expected {folder}/train/DOMAIN.jsonl")
    valid = _paths_of_split(folder, "valid", cache_dir=cache_dir) or {}
    unknown = [valid[name] for name in valid if name not in train]
    if unknown:
        raise ValueError(f"data.folder: {unknown[0]} belongs to no domain of {folder}/train ({', '.join(train)})")
    missing = [name for name in train if valid and name not in valid]
    if missing:
        warn_once(
            f"data.folder: {folder}/valid has no file for {', '.join(missing)}: the loss there is not measured, "
            "and does not move the mixture"
        )
    held_out = {name: (valid[name],) if name in valid else () for name in train} if valid else {}
    return {name: DomainFiles(train=(path,), valid=held_out.get(name)) for name, path in train.items()}


def _paths_of_split(folder: Path | str, split: str, *, cache_dir: Path | None) -> dict[str, str] | None:
    """Return domain to file or folder of a split of `data.folder`, sorted by domain; None if there is no split."""
    if isinstance(folder, str):
        return remote_domains(folder, split=split, cache_dir=cache_dir) or None
    if not (folder / split).is_dir():
        return None
    return {name: str(path) for name, path in _paths_by_domain(folder / split).items()}


def _why_no_train(folder: Path | str) -> str:
    """Return that a folder has no `train/`, and what may be meant."""
    hint = f"expected {folder}/train/DOMAIN.jsonl"
    if isinstance(folder, Path):
        nearest = nearest_path(folder / "train")
        hint = hint if nearest is None else f"did you mean {str(nearest)!r}?"
        lying = sorted(path.name for path in folder.iterdir() if format_of(path)) if folder.is_dir() else []
        if lying:
            hint = f"move {listed(lying, most=6)} of {folder} there, or name them in data.domains"
    return f"{folder}/train is not a folder; {hint}"


def test_files(data: DataConfig, *, cache_dir: Path) -> dict[str, DomainFiles]:
    """Return every domain's test rows as if they were its training rows, held-out rows none.

    The built-in corpus has test rows; a folder has them in `test/`, for some of its domains at least.

    Raises:
        ValueError: If the recipe's data have no test rows.
    """
    if data.domains is not None:
        raise ValueError("--split test: data.domains has no test rows; use data.folder with test/, or --split valid")
    folder = data.folder if data.synthetic is None else _write_synthetic(data.synthetic, cache_dir=cache_dir)
    paths = _paths_of_split(folder, "test", cache_dir=cache_dir)
    if not paths:
        what = "is not a folder" if paths is None else "has no data file"
        raise ValueError(f"--split test: {folder}/test {what}; expected {folder}/test/DOMAIN.jsonl")
    return {name: DomainFiles(train=(path,), valid=()) for name, path in paths.items()}


def has_test_rows(data: DataConfig, *, cache_dir: Path | None = None) -> bool:
    """Return whether there are test rows: in the built-in corpus, or in a folder with data files in `test/`.

    Args:
        data: The recipe's data section.
        cache_dir: As for `domain_names`.
    """
    if data.folder is None:
        return data.synthetic is not None
    return bool(_paths_of_split(data.folder, "test", cache_dir=cache_dir or data.cache_dir))


def _paths_by_domain(folder: Path) -> dict[str, Path]:
    """Return the data files and folders in a folder by domain name (the name without suffixes), sorted by it."""
    if is_saved_dataset(folder):
        raise ValueError(
            f"data.folder: {folder} is one saved data set, not a folder of domains; name it in data.domains"
        )
    paths: dict[str, Path] = {}
    entries = entries_of_folder(folder, key="data.folder")
    skipped = [path for path in entries if is_description(path) or not (path.is_dir() or format_of(path))]
    warn_of_skipped(skipped, (), key="data.folder")
    for path in entries:
        if path in skipped:
            continue
        name = path.name
        if path.is_file():
            name = name[: name.lower().rindex(format_of(path))]
        name = domain_name(name)
        if name in paths:
            both = f"{paths[name].name} and {path.name} in {folder}"
            raise ValueError(f"data.folder: {both} are the same domain {name!r}; put them into one folder {name}/")
        paths[name] = path
    return dict(sorted(paths.items()))


def _write_synthetic(corpus: SyntheticCorpus, *, cache_dir: Path) -> Path:
    """Write the built-in corpus, unless it exists, and return its folder."""
    num_rows = DEFAULT_NUM_ROWS if corpus.num_rows is None else corpus.num_rows
    folder = cache_dir / f"synthetic-{digest_of_texts([corpus.model_dump_json()])[:12]}"
    with locked(cache_dir / "locks" / folder.name, what="the built-in corpus"):
        write_corpus(
            folder,
            num_rows=num_rows,
            num_valid_rows=corpus.num_valid_rows,
            num_test_rows=corpus.num_test_rows,
            seed=corpus.seed,
        )
    return folder
