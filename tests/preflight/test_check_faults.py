"""`versatune check` passes a valid recipe, and reports every planted fault with its key and with what to do."""

import json
import os
import re
import shutil
import socket

import pytest
import yaml
from chat_data import chat_row, chat_rows, tiny_tokenizer, write_domains, write_jsonl
from command_line import command_of
from model_templates import LAST_REASONING

from versatune_ds.config import load_config
from versatune_ds.data.encoding.templates import template_digest
from versatune_ds.data.encoding.tokenizer import tokenizer_digest
from versatune_ds.preflight.checks import CheckReport
from versatune_ds.training.finding import fail, warn
from versatune_ds.training.start_checks import StartCheckInput, check_start

SECRET = "a-key-that-must-stay-secret"
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


@pytest.fixture
def versatune(capsys):
    return command_of(capsys)


@pytest.fixture
def server():
    """Listen at the address configured as W&B's server."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def recipe(tmp_path, monkeypatch, server):
    """Write a valid recipe that every check applies to, and fake a Slurm cluster with a partition `gpu`."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    write_domains(tmp_path / "data", num_rows=200)
    digests = {"tokenizer": tokenizer_digest(tokenizer), "template": template_digest(tokenizer.chat_template)}
    write_json(tmp_path / "prior.json", {"weights": {"code": 0.25, "law": 0.75}})
    write_json(tmp_path / "reference.json", {"losses": {"code": 1.0, "law": 2.0}, "digests": digests})
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, script in (("sbatch", "exit 0"), ("sinfo", "echo gpu; echo cpu")):
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SBATCH_PARTITION", "gpu")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_BASE_URL", server)
    monkeypatch.setenv("VERSATUNE_KERNELS", "torch")
    values = {
        "run": {"name": "mine", "output_dir": str(tmp_path / "runs")},
        "model": {"from_config": LLAMA, "tokenizer": str(tmp_path / "tokenizer")},
        "data": {"folder": str(tmp_path / "data"), "row_tokens": 128},
        "train": {"steps": 10, "rows_per_batch": 8, "precision": "bf16"},
        "mixture": {
            "prior": str(tmp_path / "prior.json"),
            "reference": str(tmp_path / "reference.json"),
            "update_every": 3,
        },
        "monitor": {"wandb": {"mode": "online"}},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def write_json(path, values):
    path.write_text(json.dumps(values))


def checked(versatune, recipe, *arguments):
    """Return the exit code and the findings that are not ok."""
    called = versatune("check", recipe, "--json", "--nodes=2", "--gpus-per-node=2", "--gpu-memory=80", *arguments)
    assert SECRET not in called.out + called.err
    return called.code, [found for found in json.loads(called.out)["findings"] if found["level"] != "ok"]


def test_a_valid_recipe_has_no_warnings_and_no_failures(versatune, recipe):
    code, findings = checked(versatune, recipe)
    assert findings == []
    assert code == 0


def unknown_kernels(folder):
    os.environ["VERSATUNE_KERNELS"] = "fast"  # the fixture restores it
    return []


def missing_file(folder):
    return [
        "data.folder=null",
        f"data.domains={{law: {{train: {folder}/data/train/law.jsonl}}, code: {{train: gone}}}}",
    ]


def invalid_rows(folder):
    rows = chat_rows(60, topic="law")
    write_jsonl(
        folder / "data" / "train" / "law.jsonl", ['{"messages": ' if i % 5 == 0 else rows[i] for i in range(60)]
    )
    return []


def prior_of_other_domains(folder):
    write_json(folder / "prior.json", {"weights": {"code": 0.25, "lore": 0.75}})
    return []


def reference_of_other_tokenizer(folder):
    values = json.loads((folder / "reference.json").read_text())
    write_json(folder / "reference.json", {**values, "digests": {"tokenizer": "another"}})
    return []


def reference_without_a_domain(folder):
    write_json(folder / "reference.json", {"losses": {"code": 1.0}})
    return []


def failing_template(folder):
    (folder / "template.jinja").write_text("{{ raise_exception('no') }}")
    return [f"data.chat_template={folder}/template.jinja"]


def unfinished_template(folder):
    (folder / "template.jinja").write_text("{% for message in messages %}{{ message.content }}")
    return [f"data.chat_template={folder}/template.jinja"]


def foreign_run_folder(folder):
    write_jsonl(folder / "runs" / "mine" / "thesis.txt", ["..."])
    return []


FAULTS = {
    "a missing file": (missing_file, "files", "data.domains.code.train", "no such file or folder: 'gone'"),
    "invalid rows": (invalid_rows, "rows", "data.max_bad_rows", "law: 12 of all 65 rows bad"),
    "a prior of other domains": (prior_of_other_domains, "prior", "mixture.prior", "lore"),
    "no reference": (["mixture.reference=gone.json"], "reference", "mixture.reference", "gone.json"),
    "a reference without a domain": (reference_without_a_domain, "reference", "mixture.reference", "law"),
    "a reference of another tokenizer": (
        reference_of_other_tokenizer, "reference", "mixture.reference", "measured with another tokenizer",
    ),
    "an unknown implementation of the kernels": (
        unknown_kernels, "kernels", "VERSATUNE_KERNELS", "unknown value 'fast'",
    ),
    "a batch that does not divide": (["train.rows_per_batch=6"], "batch", "train.rows_per_batch", "multiple of 4"),
    "processes that cannot share rows": (
        ["train.sequence_parallel=2", "model.compile=true"], "batch", "train.sequence_parallel", "model.compile=false",
    ),
    "ZeRO against the recipe": (
        ["train.deepspeed={zero_optimization: {stage: 2}, fp16: {enabled: true}}"],
        "deepspeed", "train.deepspeed", "contradicts train.precision",
    ),
    "bf16 without ZeRO": (
        ["train.deepspeed={zero_optimization: {stage: 0}}"], "deepspeed", "train.precision", "stage 0",
    ),
    "compiled under ZeRO-3": (
        ["train.deepspeed={zero_optimization: {stage: 3}}", "model.compile=true"], "deepspeed", "model.compile",
        "not supported under ZeRO stage 3",
    ),
    "too little memory": (["--gpu-memory=1.5"], "memory", "--gpu-memory", "model.gradient_checkpointing=true"),
    "too little disk": (["checkpoint.keep=100000000"], "disk", "checkpoint.keep", "free"),
    "a template that fails": (failing_template, "template", "data.chat_template", "the chat template refuses"),
    "a template that is unfinished": (unfinished_template, "template", "data.chat_template", "endfor"),
    "no tokenizer": (["model.tokenizer=gone"], "tokenizer", "model.tokenizer", "cannot load 'gone'"),
    "a misspelt key of the model": (
        ["model.from_config.hiden_size=32"], "model", "model.from_config.hiden_size", "did you mean 'hidden_size'?",
    ),
    "an unknown partition": (["slurm.partition=gpus"], "slurm", "slurm.partition", "did you mean 'gpu'?"),
    "a run folder with foreign files": (foreign_run_folder, "files", "runs/mine", "is no run's folder"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_the_only_failure_and_names_its_key(versatune, recipe, fault):
    plant, check, key, words = FAULTS[fault]
    arguments = plant(recipe.parent) if callable(plant) else plant
    code, findings = checked(versatune, recipe, *arguments)
    failures = [found for found in findings if found["level"] == "FAIL"]
    assert code == 1
    assert {found["check"] for found in failures} == {check}
    (failure,) = failures
    assert key in failure["key"] + ": " + failure["found"]
    assert words in failure["found"] + "; " + failure["todo"]
    assert failure["todo"]


@pytest.mark.parametrize(
    ("variable", "value", "check", "key"),
    [
        ("WANDB_API_KEY", None, "wandb", "monitor.wandb.mode=online"),
        ("WANDB_BASE_URL", "http://127.0.0.1:9", "wandb", "connection"),
        ("SBATCH_PARTITION", "gpus", "slurm", "SBATCH_PARTITION"),
        ("VERSATUNE_LOST_SECONDS", "59", "launcher", "VERSATUNE_LOST_SECONDS"),
    ],
)
def test_a_fault_of_the_environment_is_the_only_failure(versatune, recipe, monkeypatch, variable, value, check, key):
    monkeypatch.setenv("HOME", str(recipe.parent))  # no netrc
    monkeypatch.setenv(variable, value) if value else monkeypatch.delenv(variable)
    code, findings = checked(versatune, recipe)
    assert (code, [(found["level"], found["check"], found["key"]) for found in findings]) == (1, [("FAIL", check, key)])
    assert findings[0]["todo"]


def test_a_wandb_key_that_is_only_in_netrc_is_a_warning(versatune, recipe, monkeypatch):
    netrc = recipe.parent / "another_netrc"
    netrc.write_text(f"machine 127.0.0.1 login user password {SECRET}\n")
    netrc.chmod(0o600)
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(netrc))
    code, (warning,) = checked(versatune, recipe)
    assert (code, warning["level"], warning["key"]) == (0, "warn", "WANDB_API_KEY")


@pytest.mark.parametrize("stage", ["train", "submit", "every rank", "rank 0"])
def test_the_start_of_a_run_and_the_check_report_mistakes_with_the_same_messages(versatune, recipe, monkeypatch, stage):
    monkeypatch.setenv("HOME", str(recipe.parent))  # no netrc
    monkeypatch.delenv("WANDB_API_KEY")
    foreign_run_folder(recipe.parent)
    overrides = ["train.rows_per_batch=6", "mixture.reference=gone.json", "model.from_config.hiden_size=32"]
    start = StartCheckInput(config=load_config(recipe, overrides), stage=stage, num_processes=4, is_here=True)
    with pytest.raises(ValueError, match=r"\S") as caught:
        check_start(start)
    _, findings = checked(versatune, recipe, *overrides)
    messages = {" ".join(f"{found['key']}: {found['found']}; {found['todo']}".split()) for found in findings}
    lines = str(caught.value).splitlines()
    assert len(lines) == {"train": 5, "submit": 4, "every rank": 3, "rank 0": 2}[stage]
    assert messages >= {" ".join(line.split()) for line in lines}


def test_eight_faults_at_once_are_all_reported_and_the_check_they_prevent_too(versatune, recipe, monkeypatch):
    monkeypatch.setenv("SBATCH_PARTITION", "gpus")
    monkeypatch.setenv("HOME", str(recipe.parent))
    monkeypatch.delenv("WANDB_API_KEY")
    invalid_rows(recipe.parent)
    prior_of_other_domains(recipe.parent)
    reference_of_other_tokenizer(recipe.parent)
    foreign_run_folder(recipe.parent)
    few = ["train.rows_per_batch=6", "--gpu-memory=2", "checkpoint.keep=100000000"]
    code, findings = checked(
        versatune, recipe, *few, "train.deepspeed={bf16: {enabled: true}, optimizer: {type: Adam}}"
    )
    failed = {(found["check"], found["key"]) for found in findings if found["level"] == "FAIL"}
    assert code == 1
    assert failed >= {
        ("files", f"{recipe.parent}/runs/mine"), ("rows", "data.max_bad_rows"), ("prior", "mixture.prior"),
        ("reference", "mixture.reference"), ("batch", "train.rows_per_batch"), ("deepspeed", "train.deepspeed"),
        ("slurm", "SBATCH_PARTITION"), ("wandb", "monitor.wandb.mode=online"),
    }  # fmt: skip
    not_checked = {found["check"]: found for found in findings if found["key"] == "not checked"}
    assert not_checked["memory"]["found"] == "needs train.deepspeed, which failed"


def test_checks_that_one_failure_prevents_share_a_line_of_the_table():
    needs = "needs data.folder, which failed"
    findings = (
        fail("files", "data.folder", "no such folder", "name one"),
        *(warn(name, "not checked", needs) for name in ("rows", "rows", "memory")),
        warn("disk", "not checked", "needs model.name_or_path, which failed"),
    )  # fmt: skip
    table = CheckReport(findings=findings, examples={}).as_text(is_coloured=False)
    assert [line.split("  ", 1)[1].strip() for line in table.splitlines() if "not checked" in line] == [
        f"checks  not checked  rows, memory: {needs}",
        "checks  not checked  disk: needs model.name_or_path, which failed",
    ]
    assert "0 ok, 4 warn, 1 FAIL" in table


def test_a_memorised_reference_is_a_warning_with_advice(versatune, recipe):
    path = recipe.parent / "reference.json"
    write_json(path, {**json.loads(path.read_text()), "train_losses": {"code": 0.1, "law": 1.9}})
    code, findings = checked(versatune, recipe)
    (warning,) = [found for found in findings if "memorised" in found["found"]]
    assert (code, warning["level"], warning["key"]) == (0, "warn", "mixture.reference")
    assert warning["found"].startswith(f"{path}: code (training loss 0.1000, held-out loss")
    assert warning["todo"] == "stop it earlier (reference.patience) or give it more rows"


def no_held_out_rows(folder):
    (folder / "data" / "valid" / "law.jsonl").unlink()
    return []


def long_rows(folder):
    rows = [*chat_rows(200, topic="law"), chat_row("Why?", "because " * 300)]
    write_jsonl(folder / "data" / "train" / "law.jsonl", rows)
    return []


def lost_reasoning(folder):
    (folder / "template.jinja").write_text(LAST_REASONING)
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "<think>I add.</think>So."}] * 2
    write_jsonl(folder / "data" / "train" / "law.jsonl", [*chat_rows(30, topic="law"), {"messages": turns}])
    return [f"data.chat_template={folder}/template.jinja", "mixture.reference={start_fraction: 0.03}"]


def forged_turns(folder):
    rows = [*chat_rows(30, topic="law"), chat_row("a<|end|><|assistant|>b", "c")]
    write_jsonl(folder / "data" / "train" / "law.jsonl", rows)
    return []


WARNINGS = {
    "long rows": (
        long_rows, "rows", "data.row_tokens", "of the tokens cut off",
        "raise data.row_tokens from 128, or set data.long_examples=split",
    ),
    "lost reasoning": (
        lost_reasoning, "rows", "data.chat_template",
        "law: 1 of 36 sampled rows: the chat template leaves the reasoning of earlier assistant turns out",
        "make a row of each assistant turn",
    ),
    "forged turns": (
        forged_turns, "rows", "model.tokenizer",
        "law: 1 of 36 sampled rows: messages contain control tokens of the chat template", "remove them",
    ),
    "a domain without held-out rows": (
        no_held_out_rows, "files", "data.folder", "law has no held-out rows", "data/valid/law.jsonl",
    ),
    "a domain repeated often": (
        ["train.steps=100"], "supply", "train.steps", "about: law goes beyond 4 epochs from step ", "more rows",
    ),
    "a domain that ends": (
        ["data.max_epochs_per_domain=0.5"], "supply", "train.steps", "about: law exhausts its 0.5 epochs from",
        "goes to the other domains",
    ),
    "no update at all": (
        ["mixture.update_every=10"], "policy", "mixture.update_every", "steer, 0 updates in 10 steps",
        "lower mixture.update_every (10) or train longer, or the weights move once, before training",
    ),
    "an update that takes effect after the end": (
        ["mixture.update_every=8"], "policy", "mixture.update_every",
        "steer, 1 update in 10 steps; the last one takes effect after the run's end: new weights hold 3 steps after",
        "lower mixture.update_every (8) or train longer",
    ),
    "no update at all of a policy that does not move before training": (
        ["mixture.update_every=10", "mixture.policy=versatune"], "policy", "mixture.update_every",
        "versatune, 0 updates in 10 steps", "or no weight ever moves",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WARNINGS)
def test_a_probable_mistake_is_a_warning_with_advice(versatune, recipe, name):
    plant, check, key, found, todo = WARNINGS[name]
    code, findings = checked(versatune, recipe, *(plant(recipe.parent) if callable(plant) else plant))
    assert code == 0
    (warning,) = [line for line in findings if found in line["found"]]
    assert (warning["level"], warning["check"], warning["key"]) == ("warn", check, key)
    assert todo in warning["todo"]


def test_columns_that_are_not_trained_on_are_listed_once(versatune, recipe):
    rows = [{**row, "hint": "think of it", "source": "web"} for row in chat_rows(200, topic="law")]
    path = write_jsonl(recipe.parent / "data" / "train" / "law.jsonl", rows)
    code, (warning,) = checked(versatune, recipe)
    assert (code, warning["level"], warning["check"], warning["key"]) == (0, "warn", "rows", "data.folder")
    assert warning["found"] == (
        f"law: columns with text that is not trained on: hint (200 rows, first {path}:1), of 205 sampled rows"
    )
    assert "columns not trained on: source" in versatune("check", recipe, "--nodes=2", "--gpus-per-node=2").out


def test_a_length_in_epochs_is_reported_in_steps_and_a_longer_warm_up_fails(versatune, recipe):
    lines = versatune("check", recipe, "--nodes=2", "--gpus-per-node=2", "train.epochs=3").out.splitlines()
    (found,) = [line for line in lines if "3 epochs of all data" in line]
    assert re.search(
        r"^ok +supply +train\.epochs +about: 3 epochs of all data = \d+ steps; one is \d+\.\d steps", found
    )
    code, findings = checked(versatune, recipe, "train.epochs=3", "train.warmup_steps=5000")
    assert code == 1
    (failure,) = [line for line in findings if line["level"] == "FAIL"]
    assert (failure["check"], failure["key"]) == ("mixture", "train.warmup_steps")


def test_an_export_says_of_which_run_it_is_and_cannot_be_trained_in_that_runs_folder(versatune, recipe):
    folder = recipe.parent / "runs" / "mine" / "export"
    folder.mkdir(parents=True)
    write_json(folder / "versatune_export.json", {"run": "law", "step": 200})
    settings = [f"model.name_or_path={folder}", "model.from_config=null"]
    shown = versatune("check", recipe, "--nodes=2", "--gpus-per-node=2", *settings).out
    assert "the export of the run law, after step 200; this is a new run, which starts at step 0" in shown
    with pytest.raises(
        ValueError, match=r"model\.name_or_path: .* lies in the folder of this run itself: .* run\.name"
    ):
        check_start(StartCheckInput(config=load_config(recipe, settings), stage="rank 0", is_fresh=True))


def test_a_policy_that_never_moves_weights_may_have_no_update(versatune, recipe):
    code, findings = checked(versatune, recipe, "mixture.policy=constant", "mixture.update_every=10")
    assert (code, findings) == (0, [])


def test_an_unreadable_recipe_ends_the_check_with_exit_code_two_and_one_message(versatune, recipe):
    called = versatune("check", recipe, "train.steps=many")
    assert (called.code, called.out) == (2, "")
    assert called.err.startswith("versatune: train.steps: ")


def test_a_number_of_nodes_must_be_positive(versatune, recipe):
    called = versatune("check", recipe, "--nodes=0")
    assert (called.code, called.err) == (2, "versatune: --nodes=0: expected a positive number\n")


def test_the_table_has_one_line_per_finding_below_an_example_of_each_domain_with_its_loss_marked(versatune, recipe):
    hostile = [{"messages": [{"role": "user", "content": "a\x1b[2Jb"}, {"role": "assistant", "content": "c"}]}]
    write_jsonl(recipe.parent / "data" / "train" / "code.jsonl", hostile)
    called = versatune("check", recipe, "train.rows_per_batch=7", "--gpus-per-node=2")
    assert called.code == 1
    assert "\x1b" not in called.out
    examples, table = called.out.split("\n\n")[0], called.out.split("\n\n")[1].splitlines()
    assert "--- code\n\u27e6<|begin|><|user|>\na\\x1b[2Jb\n<|assistant|>\n\u27e7c<|end|>" in examples
    assert "--- law\n" in examples
    assert all(line.split()[0] in ("ok", "warn", "FAIL") for line in table)
    (red,) = [line for line in table if line.startswith("FAIL")]
    assert red.split()[:3] == ["FAIL", "batch", "train.rows_per_batch"]
    assert called.out.endswith("1 FAIL\n")


def test_a_check_leaves_no_run_folder_and_no_prepared_data(versatune, recipe):
    before = sorted(recipe.parent.rglob("*"))
    checked(versatune, recipe)
    assert sorted(recipe.parent.rglob("*")) == before


def test_a_run_on_a_cluster_is_a_warning_where_slurm_is_not_installed(versatune, recipe, monkeypatch):
    shutil.rmtree(recipe.parent / "programs")
    monkeypatch.setenv("PATH", str(recipe.parent))
    code, findings = checked(versatune, recipe)
    assert (code, [(found["level"], found["check"]) for found in findings]) == (0, [("warn", "slurm")])


def test_a_valid_fraction_that_holds_out_no_row_of_a_domain_fails_and_a_larger_one_is_suggested(versatune, recipe):
    shutil.rmtree(recipe.parent / "data" / "valid")
    code, findings = checked(versatune, recipe, "data.valid_fraction=0.0001")
    held_out = next(finding for finding in findings if finding["key"] == "data.valid_fraction")
    assert (code, held_out["level"]) == (1, "FAIL")
    assert held_out["found"].startswith("0.0001 holds out no row of domain ")
    assert re.search(r"data\.valid_fraction=0\.\d+, one fraction for all .*, which holds out [1-9]", held_out["todo"])
