"""Find the files that runs start from, and digest them: base model, prior, references, plans."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from versatune_ds.comparison.base_model import files_of_base_model
from versatune_ds.comparison.cells import Cell, plans_of_cell
from versatune_ds.comparison.plan import ComparisonPlan
from versatune_ds.reference.transfer_file import transfer_path
from versatune_ds.run_folder.names import PRIOR_FILE, REFERENCE_FILE


def transfer_file(plan: ComparisonPlan) -> Path:
    """Return the file of what each domain does to the others, which plans are made from."""
    return transfer_path(plan.start_folder / REFERENCE_FILE)


def digest_of_start(plan: ComparisonPlan, cell: Cell | None = None) -> str:
    """Return a digest of what runs start from: base model and, where the comparison has them, prior and references.

    With a run, the plans that its values name are part of it. One that names none is not bound to any, so that plans
    can be added to a comparison that has results.

    The files are where every comparison of this starting point finds them; made again, they have the same names.
    """
    folder, files = plan.start_folder, files_of_base_model(plan)
    if plan.detect:
        files.append(folder / PRIOR_FILE)
    if plan.reference:
        files.append(folder / REFERENCE_FILE)
    if cell is not None:
        files += plans_of_cell(plan, cell)
    return digest_of_files(tuple((path, path.stat().st_mtime_ns) for path in files))


@cache
def digest_of_files(files: tuple[tuple[Path, int], ...]) -> str:
    """Return a digest of files; they are read again only if one was rewritten, by its time in nanoseconds."""
    digest = hashlib.sha256()
    for path, _ in files:
        digest.update(path.name.encode())
        with path.open("rb") as stream:  # weights may be larger than memory
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def is_exported(model: Path) -> bool:
    """Return whether the base model was exported completely: the tokenizer is written last."""
    return (model / "tokenizer_config.json").is_file()
