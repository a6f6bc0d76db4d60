"""Subcommands about the installation: what is installed, and completion for a shell."""

from __future__ import annotations

import argparse
import json
import os

from versatune_ds.cli.arguments import Commands, add_command, write

SHELLS = ("bash", "zsh", "fish")


def add_env(commands: Commands) -> None:
    """Add `versatune env`."""
    command = add_command(commands, "env", _env, example="versatune env --json")
    command.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def _env(parsed: argparse.Namespace) -> int:
    """Print versions, GPUs and kernels for a bug report; no path and no secret is in it."""
    from versatune_ds.preflight.installation import describe_installation

    installation = describe_installation(os.environ)
    width = max(map(len, installation))
    lines = (f"{name.ljust(width)}  {text}" for name, text in installation.items())
    write(json.dumps(installation, indent=2) if parsed.json else "\n".join(lines))
    return 0


def add_completion(commands: Commands) -> None:
    """Add `versatune completion`."""
    command = add_command(commands, "completion", _completion, example="versatune completion bash")
    command.add_argument(
        "shell",
        choices=SHELLS,
        help="shell that the script is for; where to put it: ~/.local/share/bash-completion/completions/versatune, "
        "_versatune in a folder of zsh's fpath, ~/.config/fish/completions/versatune.fish",
    )


def _completion(parsed: argparse.Namespace) -> int:
    """Print a script that completes commands, options, files and recipe keys in bash, zsh or fish."""
    from versatune_ds.cli.completion.script import completion_script
    from versatune_ds.cli.completion.table import completion_table
    from versatune_ds.cli.parser import build_parser, listed_commands

    table = completion_table(build_parser(), listed=listed_commands())
    write(completion_script(parsed.shell, table))
    return 0
