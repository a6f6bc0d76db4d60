"""Run a notebook's code cells without Jupyter: in order, in one `__main__`, a cell's last expression shown.

    python tests/helpers/notebook.py NOTEBOOK

A cell that fails ends the process with 1; the message has the number and the text of the cell, and the traceback. Cell
magics (`%`, `!`) are not Python and fail too.
"""

from __future__ import annotations

import ast
import json
import sys
import traceback
from pathlib import Path
from typing import Any


def code_cells(path: Path) -> list[str]:
    """Return the text of every code cell."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run_cell(text: str, namespace: dict[str, Any], *, name: str) -> None:
    """Run a cell, and print its last expression as a notebook would show it, but as text."""
    tree = ast.parse(text, filename=name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), namespace)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
        if value is not None:
            print(repr(value))


def main(path: Path) -> int:
    """Run all cells in the namespace of `__main__`, where a notebook's variables live, and return the exit code."""
    namespace = vars(sys.modules["__main__"])
    for number, text in enumerate(code_cells(path), start=1):
        try:
            run_cell(text, namespace, name=f"<cell {number}>")
        except Exception:
            print(f"cell {number} of {path.name} failed:\n{text}\n\n{traceback.format_exc()}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
