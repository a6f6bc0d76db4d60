"""What README.md tells a reader to type exists, parses and means what it says."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from versatune_ds.cli import parse
from versatune_ds.config import RunConfig, load_config
from versatune_ds.engine.ds_settings import deepspeed_config
from versatune_ds.slurm.submit import submission_overrides

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLUSTER_README = (ROOT / "slurm" / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README + CLUSTER_README, flags=re.DOTALL)
    for line in block.splitlines()
    if line.strip() and not line.startswith(("#", ". "))
]


def check_recipe(recipe, overrides):
    assert load_config(ROOT / recipe, [text for text in overrides if "=" in text and not text.startswith("-")])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readmes_parses(command):
    words = shlex.split(command)
    if words[0] == "bash":
        assert subprocess.run(["bash", "-n", ROOT / words[1]], capture_output=True).returncode == 0
    elif words[0] == "versatune":
        parsed = parse(words[1:])
        if hasattr(parsed, "recipe"):
            check_recipe(parsed.recipe, parsed.overrides)
        if words[1] == "submit":
            options = submission_overrides(nodes=parsed.nodes, array=parsed.array, after=parsed.after)
            config = load_config(ROOT / parsed.recipe, [*parsed.overrides, *options])
            # The rows of a batch must divide among the processes, or submit refuses.
            deepspeed_config(config.train, world_size=config.slurm.nodes * config.slurm.num_processes_per_node)
    elif words[0] == "tail":
        assert words[2].startswith("runs/_slurm/")
    elif words[0] == "sbatch":
        template, recipe, *overrides = (word for word in words[1:] if not word.startswith("--"))
        assert (ROOT / template).is_file()
        check_recipe(recipe, overrides)
    elif "launcher/train.py" in words:
        _, recipe, *overrides = words[words.index("launcher/train.py") :]
        check_recipe(recipe, overrides)
    else:
        pytest.fail(f"README.md: no check knows how to read {command!r}")


def test_the_readme_has_the_commands_a_newcomer_needs():
    assert {"bash launcher/quickstart.sh", "bash launcher/test.sh"} <= set(COMMANDS)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_every_link_leads_to_a_file(path):
    assert (ROOT / path).exists()


SECTIONS = "|".join(RunConfig.model_fields)


@pytest.mark.parametrize("key", sorted(set(re.findall(rf"(?<![\w./])((?:{SECTIONS})\.[a-z_.]+[a-z])\b(?!\()", README))))
def test_every_key_named_in_the_readme_exists(key):
    if key.endswith((".py", ".yaml", ".json", ".jsonl", ".png", ".md")):
        return
    section = RunConfig
    for part in key.split("."):
        assert part in section.model_fields, f"README.md names {key}"
        section = section.model_fields[part].annotation
