"""Everything that README.md, slurm/README.md and docs/ tell a reader to type exists and parses."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from versatune_ds.cli import parse
from versatune_ds.config import RunConfig, load_config
from versatune_ds.config.keys import recipe_keys
from versatune_ds.engine.ds_settings import deepspeed_config
from versatune_ds.engine.ds_unsupported import UNSUPPORTED
from versatune_ds.slurm.submit import submission_overrides

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "slurm/README.md", *sorted(ROOT.glob("docs/*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}


def blocks_of(language):
    """Return (page, code) of every block of code in a language."""
    fence = re.compile(rf"```{language}\n(.*?)```", re.DOTALL)
    return [(page, block) for page, text in TEXTS.items() for block in fence.findall(text)]


COMMANDS = [
    (page, line.split("  #")[0].strip())
    for page, block in blocks_of("bash")
    for line in block.splitlines()
    if line.strip() and not line.startswith(("#", ". "))
]
YAML_BLOCKS = blocks_of("yaml")
WRITTEN_RECIPES = {block.split()[1]: block for _, block in YAML_BLOCKS if block.startswith("# ")}
"""Recipes that a page writes out, by the file name in their first line: later commands use them."""
SECTIONS = "|".join(RunConfig.model_fields)
KEYS = {key.name for key in recipe_keys()}


@pytest.fixture
def read_recipe(tmp_path):
    """Return a recipe of the repository, or one that a page writes out, with overrides."""

    def read(recipe, overrides):
        path = ROOT / recipe
        if str(recipe) in WRITTEN_RECIPES:
            path = tmp_path / recipe
            path.write_text(WRITTEN_RECIPES[str(recipe)], encoding="utf-8")
        return load_config(path, [text for text in overrides if "=" in text and not text.startswith("-")])

    return read


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_in_the_documents_parses(page, command, read_recipe):
    words = shlex.split(command.partition(" > ")[0])
    if words[0] == "bash":
        assert subprocess.run(["bash", "-n", ROOT / words[1]], capture_output=True).returncode == 0
    elif words[0] == "versatune":
        check_versatune_command(words[1:], read_recipe=read_recipe)
    elif words[:2] == ["docker", "build"]:
        assert (ROOT / words[-1] / "Dockerfile").is_file()
    elif words[:2] == ["docker", "run"]:
        check_versatune_command(words[words.index("versatune") + 1 :], read_recipe=read_recipe)
    elif words[0] == "tail":
        assert words[2].startswith("runs/_slurm/")
    elif words[0] == "sbatch":
        template, recipe, *overrides = (word for word in words[1:] if not word.startswith("--"))
        assert (ROOT / template).is_file()
        read_recipe(recipe, overrides)
    elif "launcher/train.py" in words:
        _, recipe, *overrides = words[words.index("launcher/train.py") :]
        read_recipe(recipe, overrides)
    elif words[:3] == ["python", "-m", "pytest"]:
        assert (ROOT / words[3]).exists()
    else:
        pytest.fail(f"{page}: no check knows how to read {command!r}")


def check_versatune_command(words, *, read_recipe):
    parsed = parse(words)
    if hasattr(parsed, "recipe"):
        read_recipe(parsed.recipe, parsed.overrides)
    if words[0] == "keys":
        assert recipe_keys(parsed.pattern)
    if words[0] == "compare":
        assert (ROOT / parsed.comparison).is_file()
    if words[0] == "replay":
        keys = [override.split("=")[0] for override in parsed.overrides]
        assert set(keys) <= KEYS
    if words[0] == "submit":
        options = submission_overrides(nodes=parsed.nodes, array=parsed.array, after=parsed.after)
        config = load_config(ROOT / parsed.recipe, [*parsed.overrides, *options])
        # The rows of a batch must divide among the processes, or submit refuses.
        deepspeed_config(config.train, world_size=config.slurm.nodes * config.slurm.num_processes_per_node)


def test_the_readme_has_the_commands_a_newcomer_needs():
    of_readme = {command for page, command in COMMANDS if page == "README.md"}
    assert {"bash launcher/quickstart.sh", "bash launcher/test.sh"} <= of_readme


@pytest.mark.parametrize(("page", "block"), YAML_BLOCKS)
def test_every_piece_of_a_recipe_in_the_documents_is_valid(page, block):
    sections = yaml.safe_load(block)
    assert sections, page
    for name, values in sections.items():
        assert RunConfig.model_fields[name].annotation.model_validate(values)


@pytest.mark.parametrize("page", [page for page in TEXTS if page != "docs/keys.md"])
def test_every_key_that_a_page_mentions_exists(page):
    found = re.findall(rf"(?<![\w./])((?:{SECTIONS})\.[a-z_.]+[a-z])\b(?!\()", TEXTS[page])
    names = {key for key in found if not key.endswith((".py", ".yaml", ".json", ".jsonl", ".png", ".md"))}
    if page == "docs/deepspeed.md":
        names -= set(UNSUPPORTED)  # keys of DeepSpeed's config
    unknown = {name for name in names if not any(key == name or key.startswith(f"{name}.") for key in KEYS)}
    assert unknown == set()


@pytest.mark.parametrize("extra", sorted(set(re.findall(r"pip install -e '\.\[(.+?)\]'", "".join(TEXTS.values())))))
def test_every_extra_that_a_page_installs_exists(extra):
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert f'"{extra}": ' in setup
