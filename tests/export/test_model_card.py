"""The card of an exported model describes the policy, and is valid Markdown for every domain name."""

import re
from dataclasses import replace

import pytest
import yaml
from chat_data import write_jsonl
from tiny_run import tiny_config
from written_run import write_run

from versatune_ds.export.model_card import escaped, write_model_card
from versatune_ds.mixture.decision import Decision

NAMES = ("a|b", "real_estate", "*all* <b>of</b> [it](x)")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("real_estate", "real_estate"),
        ("a|b", r"a\|b"),
        ("_law_", r"\_law\_"),
        ("back\\slash `code`", r"back\\slash \`code\`"),
        ("*all* <b>of</b> [it](x) ~~no~~", r"\*all\* \<b\>of\</b\> \[it\](x) \~\~no\~\~"),
    ],
)
def test_what_markdown_would_read_as_markup_is_escaped(text, expected):
    assert escaped(text) == expected


def cells(line):
    """Return the cells of a table's row as Markdown renders them."""
    return [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def write_card(run_dir, folder, policy="versatune"):
    """Write the card of a written run under a policy; return its text."""
    values = tiny_config(folder, f"mixture.policy={policy}").model_dump(mode="json")
    (run_dir / "config.yaml").write_text(yaml.safe_dump(values))
    decisions = [Decision.from_json(line) for line in (run_dir / "decisions.jsonl").read_text().splitlines()]
    sealed = [replace(decision, digest=decision.computed_digest()).to_json() for decision in decisions]
    write_jsonl(run_dir / "decisions.jsonl", sealed)
    write_model_card(run_dir, folder=folder, step=40)
    return (folder / "README.md").read_text()


def test_the_card_describes_the_policy_of_the_run_and_what_to_cite(tmp_path):
    cards = {
        policy: write_card(write_run(tmp_path / policy, policy=policy), tmp_path, policy)
        for policy in ("versatune", "steer", "doremi", "uniform")
    }
    assert "with [VersaTune](https://arxiv.org/abs/2411.11266) (`versatune_ds`)" in cards["versatune"]
    assert "by a rule of its own, with the reference losses of [VersaTune]" in cards["steer"]
    assert "by the rule of [DoReMi](https://arxiv.org/abs/2305.10429)." in cards["doremi"]
    assert "with `versatune_ds` on a fixed data mixture." in cards["uniform"]
    cites_versatune = {policy: "The method: VersaTune" in text for policy, text in cards.items()}
    assert cites_versatune == {"versatune": True, "steer": False, "doremi": False, "uniform": False}
    counted = {policy: re.search(r"(\d) updates", text)[1] for policy, text in cards.items()}
    assert counted == {"versatune": "4", "steer": "5", "doremi": "4", "uniform": "4"}


def test_no_domain_name_breaks_a_table(tmp_path):
    run_dir = write_run(tmp_path / "run", names=NAMES)
    write_card(run_dir, tmp_path)
    rows = [cells(line) for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("|")]
    losses, mixture = rows[: 2 + len(NAMES)], rows[2 + len(NAMES) :]
    assert [row[0] for row in losses[2:]] == list(NAMES)
    assert {len(row) for row in losses} == {3}
    assert mixture[0] == ["after step", *NAMES]
    assert {len(row) for row in mixture} == {1 + len(NAMES)}


def test_the_card_of_a_pushed_model_loads_it_by_its_name_on_the_hub(tmp_path):
    run_dir = write_run(tmp_path / "run")
    assert 'AutoTokenizer.from_pretrained("PATH")' in write_card(run_dir, tmp_path)
    write_model_card(run_dir, folder=tmp_path, step=40, is_adapter=True, repo_id="me/law")
    card = (tmp_path / "README.md").read_text()
    assert 'AutoTokenizer.from_pretrained("me/law")' in card
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "peft"
