"""Subcommand `convert`: write the model of a GGUF file as a folder."""

from __future__ import annotations

import argparse

from versatune_ds.cli.arguments import FOLDER, Commands, add_command, path_argument, write


def add_convert(commands: Commands) -> None:
    """Add `versatune convert`."""
    command = add_command(
        commands, "convert", _convert, example="versatune convert model.Q4_1.gguf --output runs/models/mine"
    )
    command.add_argument("file", type=path_argument, metavar="FILE", help="GGUF file of a model")
    command.add_argument("-o", "--output", **FOLDER, required=True, help="folder to write")
    command.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        help="precision of the weights (default: bf16 if the file's matrices are quantised or bf16, else fp32)",
    )


def _convert(parsed: argparse.Namespace) -> int:
    """Convert a GGUF file to a folder that a recipe's model.name_or_path takes."""
    from versatune_ds.model.gguf_file import (
        check_is_gguf,
        convert_gguf,
        converted_from,
        is_conversion_of,
        read_header,
    )

    check_is_gguf(parsed.file, key="FILE")
    if is_conversion_of(parsed.output, parsed.file, precision=parsed.precision):
        write(f"{parsed.output} ({converted_from(parsed.output)['precision']}, converted before)")
        return 0
    if parsed.output.exists():
        raise ValueError(
            f"--output: {parsed.output} exists and was not converted from {parsed.file.name}; give another"
        )
    file = read_header(parsed.file, key="FILE")
    convert_gguf(file, folder=parsed.output, precision=parsed.precision, key="FILE")
    write(str(parsed.output))
    return 0
