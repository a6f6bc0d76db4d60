"""TAB completes subcommands, options, files, recipe keys and their values, in the shells that are at hand."""

import ast
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time

import pytest
from command_line import command_of

from versatune_ds.cli import build_parser, parse
from versatune_ds.cli.completion.script import completion_script
from versatune_ds.cli.completion.table import completion_table
from versatune_ds.cli.parser import listed_commands
from versatune_ds.config.keys import recipe_keys
from versatune_ds.mixture.policies import POLICIES

SHELLS = ("bash", "zsh", "fish")
TABLE = completion_table(build_parser(), listed=listed_commands())

ASK_BASH = 'source "$1"; COMP_WORDBREAKS=$3 COMP_LINE=$2 COMP_POINT=${#2}; _versatune; printf "%s\\n" "${COMPREPLY[@]}"'
ASK_ZSH = """
compdef() { : }
compset() { PREFIX=${words[CURRENT]%%=*}= }
compadd() { while [[ $1 != -- ]] { shift }; shift; for word in $@; do
  [[ $word == ${words[CURRENT]#$PREFIX}* ]] && print -r -- $PREFIX$word; done }
_files() { print -rl -- $PREFIX*(N) }
source "$1"; words=(${(s: :)2}); [[ $2 == *' ' ]] && words+=(''); CURRENT=$#words PREFIX=; _versatune
"""
ASK_FISH = "source $argv[1]; complete -C $argv[2] | string split -f 1 \\t"


@pytest.fixture(params=SHELLS)
def complete(request, tmp_path, monkeypatch):
    """Return a function that returns what a shell suggests at the end of a line, in a folder with a few files."""
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    script.write_text(completion_script(shell, TABLE), encoding="utf-8")
    here = tmp_path / "work"
    (here / "runs").mkdir(parents=True)
    for name in ("mine.yaml", "notes.txt", "with blanks.yaml"):
        (here / name).touch()
    monkeypatch.setenv("HOME", str(tmp_path))

    def suggestions(line, breaks=" \n"):
        ask = {
            "bash": ["bash", "--norc", "-c", ASK_BASH, "bash", script, line, breaks],
            "zsh": ["zsh", "-f", "-c", ASK_ZSH, "zsh", script, line],
            "fish": ["fish", "--no-config", "-c", ASK_FISH, script, line],
        }[shell]
        done = subprocess.run(ask, cwd=here, capture_output=True, text=True, timeout=60)
        assert done.stderr == ""
        return [word.rstrip("/") for word in done.stdout.splitlines() if word]

    return suggestions


def test_a_subcommand_its_options_and_their_values_are_completed(complete):
    assert complete("versatune tra") == ["train"]
    assert {"check", "train", "report", "completion"} <= set(complete("versatune "))
    assert sorted(complete("versatune train --launcher ")) == ["deepspeed", "mpirun", "srun", "torchrun"]
    assert complete("versatune train --proc") == ["--processes"]
    assert complete("versatune train --processes ") == []


def test_the_first_argument_is_a_recipe_or_a_folder(complete):
    found = complete("versatune train ")
    assert {"mine.yaml", "with blanks.yaml", "runs"} <= set(found)
    assert "runs" in complete("versatune explain ")


def test_keys_are_completed_one_part_at_a_time(complete):
    assert complete("versatune train mine.yaml mix") == ["mixture."]
    assert complete("versatune train mine.yaml --quiet train.steps=3 mixture.ste") == ["mixture.steer."]
    found = complete("versatune train mine.yaml mixture.")
    assert {"mixture.policy=", "mixture.steer.", "mixture.safeguards."} <= set(found)
    assert len(found) == len(set(found))
    assert complete("versatune train --processes 2 mine.yaml train.prec") == ["train.precision="]


def test_values_of_enumerations_are_completed_after_the_equals_sign(complete):
    assert complete("versatune train mine.yaml train.precision=b") == ["train.precision=bf16"]
    assert complete("versatune train mine.yaml mixture.policy=ste") == ["mixture.policy=steer"]
    found = complete("versatune check mine.yaml model.compile=")
    assert sorted(found) == ["model.compile=false", "model.compile=true"]
    assert complete("versatune train mine.yaml train.steps=") == []


def test_bash_gets_only_what_follows_the_equals_sign_where_it_separates_words(tmp_path):
    script = tmp_path / "script"
    script.write_text(completion_script("bash", TABLE), encoding="utf-8")
    ask = ["bash", "--norc", "-c", ASK_BASH, "bash", script, "X=1 versatune train r.yaml train.precision=b", " \n=:"]
    assert subprocess.run(ask, capture_output=True, text=True, timeout=60).stdout == "bf16\n"


def test_tab_in_a_real_bash_completes_the_line(tmp_path):
    script = tmp_path / "script"
    script.write_text(completion_script("bash", TABLE), encoding="utf-8")
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(PS1="> ", HOME=str(tmp_path), TERM="dumb", INPUTRC="/dev/null")
        os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
    try:
        os.write(terminal, f"source {script}; complete -p versatune\n".encode())
        read_until(terminal, b"complete -F _versatune versatune\r\n")
        os.write(terminal, b"versatune tra\tr.yaml mixt\tpol\tste\t")
        seen = read_until(terminal, b"policy=steer")
        assert b"train r.yaml mixture.policy=steer" in re.sub(rb"[\x07\r]", b"", seen)
    finally:
        os.close(terminal)
        os.waitpid(child, 0)


def read_until(terminal, wanted):
    """Return what a terminal shows, up to a text."""
    seen, end = b"", time.monotonic() + 30
    while wanted not in seen:
        ready, _, _ = select.select([terminal], [], [], max(end - time.monotonic(), 0))
        assert ready, seen
        seen += os.read(terminal, 4096)
    return seen


@pytest.mark.parametrize("shell", SHELLS)
def test_the_scripts_have_every_command_and_key_and_are_valid(capsys, shell, tmp_path):
    called = command_of(capsys)("completion", shell)
    assert (called.code, called.err) == (0, "")
    assert set(listed_commands()) <= set(TABLE[""])
    assert {key.name for key in recipe_keys() if "DOMAIN" not in key.name and "NAME" not in key.name} == set(
        TABLE["@keys"]
    )
    assert called.out == completion_script(shell, TABLE) + "\n"
    if shutil.which(shell):
        (tmp_path / "script").write_text(called.out)
        assert subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, timeout=60).returncode == 0


def test_every_word_of_the_table_is_safe_in_quotes():
    words = {word for entry in TABLE.items() for word in (entry[0], *entry[1])}
    assert [word for word in words if not re.fullmatch(r"[\w@./ -]*", word)] == []
    assert set(TABLE["@key mixture.policy"]) == set(POLICIES)
    assert TABLE["@key mixture.signal"] == ("validation", "train")
    assert TABLE["@key checkpoint.best"] == ("validation/loss", "worst_domain")
    assert "zero3" in TABLE["@key train.deepspeed"]


def test_every_option_that_takes_a_value_is_known_to_do_so():
    takes_value = {entry for entry, words in TABLE.items() if " --" in entry and words}
    assert {"train --processes", "plan --for", "evaluate --split"} <= takes_value
    assert not takes_value & {"train --fresh", "train --quiet", "report --open"}
    assert parse(["completion", "bash"]).shell == "bash"


def test_writing_a_script_imports_neither_torch_nor_deepspeed():
    code = "import sys; from versatune_ds.cli import main; main(['completion', 'bash']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    modules = ast.literal_eval(done.stdout.splitlines()[-1])
    assert not {"torch", "deepspeed", "transformers"} & set(modules)
