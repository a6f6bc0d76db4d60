"""Everything that the documents mention exists: files, functions, tests, links, layers and the files of a run."""

import ast
import re
import runpy
from pathlib import Path

import pytest

from versatune_ds.run_folder import names

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "versatune_ds"
LAYERS = runpy.run_path(str(ROOT / "tests" / "test_layers.py"))["LAYERS"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "slurm/README.md", *sorted(ROOT.glob("docs/*.md"))]
PAGE_IDS = [str(page.relative_to(ROOT)) for page in PAGES]
FILE = re.compile(r"(?<![\w/.*<])([\w./-]+\.(?:py|sh|sbatch|yaml|cu|cpp|css|js))(?::([A-Za-z_][\w.]*))?(?![\w/*])")
ELSEWHERE = re.compile(r".*[A-Z]{3}|my_|runs/|config_until_step|config\.yaml$")
"""Placeholders, files that a page tells the reader to write, and those that a run writes."""


def text_of(page):
    return page.read_text(encoding="utf-8")


def prose_of(page):
    """Return a page without its code blocks, which show examples that need not exist."""
    return re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)


def named_files(page):
    """Return (file, name in it) of every file that a page mentions in code marks."""
    spans = re.findall(r"`([^`\n]+)`", prose_of(page))
    found = {match.groups() for span in spans for match in FILE.finditer(span)}
    return sorted((path, name or "") for path, name in found if not ELSEWHERE.match(path))


def places_of(path):
    """Return the files that a path may mean: from the repository, from the package, or by its name alone."""
    if "/" in path:
        return [place for place in (ROOT / path, PACKAGE / path) if place.is_file()]
    folders = [ROOT / folder for folder in ("versatune_ds", "tests", "recipes", "launcher", "benchmarks", "examples")]
    return [ROOT / path] if (ROOT / path).is_file() else [place for folder in folders for place in folder.rglob(path)]


def defined_in(path):
    """Return what a module defines: `function`, `Class`, `Class.method` and `VALUE`."""
    found = set()
    for node in ast.parse(text_of(path)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
            found |= {f"{node.name}.{entry.name}" for entry in node.body if isinstance(entry, ast.FunctionDef)}
            found |= {f"{node.name}.{entry.target.id}" for entry in node.body if isinstance(entry, ast.AnnAssign)}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_every_file_that_a_page_mentions_exists(page):
    missing = [path for path, _ in named_files(page) if not places_of(path)]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_every_function_that_a_page_places_in_a_file_is_defined_there(page):
    missing = [
        f"{path}:{name}"
        for path, name in named_files(page)
        if name and path.endswith(".py") and not any(name in defined_in(place) for place in places_of(path))
    ]
    assert missing == []


def test_every_value_of_the_architecture_is_defined_where_its_table_says():
    text = text_of(ROOT / "docs" / "architecture.md")
    table = re.search(r"## The values that travel\n(.*?)\n## ", text, re.DOTALL).group(1)
    rows = re.findall(r"^\| (`[^|]+) \|[^|]+\| `([\w/]+\.py)` \|$", table, re.MULTILINE)
    values = [(value, path) for cell, path in rows for value in re.findall(r"`([A-Z]\w+)`", cell)]
    assert len(values) > 10
    assert [(value, path) for value, path in values if value not in defined_in(PACKAGE / path)] == []


def test_every_name_in_the_guide_to_extending_exists():
    name_in_code = re.compile(r"`(?:\w+\.)?(_?[A-Z][A-Z_]{3,}|_[a-z]\w+|[A-Z][a-z]+[A-Z]\w+)`")
    named = set(name_in_code.findall(prose_of(ROOT / "docs" / "extend.md"))) - {"DOMAIN", "NAME_K"}  # placeholders
    sources = "".join(text_of(path) for folder in (PACKAGE, ROOT / "tests") for path in folder.rglob("*.py"))
    assert len(named) > 10
    assert {name for name in named if not re.search(rf"\b{name}\b", sources)} == set()


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_every_test_that_a_page_mentions_exists(page):
    mentioned = {name for name in re.findall(r"`(test_\w+)`", text_of(page)) if name != "test_NAME"}
    sources = "".join(text_of(path) for path in (ROOT / "tests").rglob("test_*.py"))
    assert {name for name in mentioned if f"def {name}(" not in sources} == set()


def anchors_of(page):
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_every_relative_link_has_a_target(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors_of(target)):
            broken.append(link)
    assert broken == []


def test_the_table_of_layers_has_every_room_in_its_layer():
    table = re.search(r"^\| layer \|.*?\n\n", text_of(ROOT / "docs" / "architecture.md"), re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", table.group(), re.MULTILINE)
    found = {room: int(layer) for layer, cell in rows for room in re.findall(r"`(.+?)(?:/|\.py)`", cell)}
    assert found == LAYERS


def test_the_list_of_layers_for_contributors_is_the_tested_one():
    block = re.search(r"### Layers\n.*?```\n(.*?)```", text_of(ROOT / "CONTRIBUTING.md"), re.DOTALL).group(1)
    by_layer = [sorted(room for room in LAYERS if LAYERS[room] == layer) for layer in sorted(set(LAYERS.values()))]
    assert [sorted(line.split()) for line in block.splitlines()] == by_layer


def test_the_table_of_a_runs_files_has_all_of_them():
    text = text_of(ROOT / "docs" / "architecture.md")
    files = [value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)]
    assert [name for name in files if f"`{name}" not in text and f"`{Path(name).stem}*" not in text] == []
