"""Two labellers on the same texts: how often they agree, where they differ, and the shares by each."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from base_model import detect_config, save_base_model
from chat_data import chat_rows, write_jsonl
from command_line import command_of, write_recipe

from versatune_ds.domains import DomainSet
from versatune_ds.knowledge import labeller_agreement as labeller_agreement_module
from versatune_ds.knowledge.labeller import with_chosen_labeller
from versatune_ds.knowledge.labeller_agreement import (
    agreement_table,
    compare_with_embedded,
    labeller_agreement,
    top_labels,
)

DOMAINS = DomainSet(("law", "code"))


def test_the_likeliest_domain_counts_unless_none_of_them_is_likelier():
    assert top_labels(np.array([[0.2, 0.5], [0.3, 0.3], [0, 0], [1, 0]])).tolist() == [1, 2, 2, 0]


def test_the_labeller_compared_with_is_not_logged_as_the_choice_of_auto(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    chosen = []

    def too_few_rows(config, **places):
        chosen.append(with_chosen_labeller(config).detect.labeller)
        raise ValueError("data: too few rows")

    monkeypatch.setattr(labeller_agreement_module, "make_labeller", too_few_rows)
    config = detect_config(tmp_path, tmp_path, "detect.labeller=openai", "detect.openai.model=m")
    found = SimpleNamespace(labels_NK=np.zeros((0, 2)), domain_set=DOMAINS, folder=tmp_path)
    compare_with_embedded(found, config, tokenizer=None, cache_dir=tmp_path)
    assert chosen in (["embedding"], ["classifier"])
    (message,) = caplog.messages
    assert message == "the labels are not compared with those of an embedded labeller: data: too few rows"


def test_agreement_pairs_and_shares_of_four_texts_by_hand():
    found = labeller_agreement(
        np.array([[1, 0], [1, 0], [0.1, 0.9], [0, 0]]),
        np.array([[1, 0], [0, 1], [0, 1], [0, 1]]),
        names=("openai", "embedding"),
        domain_set=DOMAINS,
        num_tokens_N=np.array([10, 10, 20, 10]),
    )
    assert found["agreement"] == 0.5
    assert found["num_texts"] == 4
    assert found["pairs"] == {
        "law": {"law": 1, "code": 1, "unclear": 0},
        "code": {"law": 0, "code": 1, "unclear": 0},
        "unclear": {"law": 0, "code": 1, "unclear": 0},
    }
    assert found["shares"]["openai"] == pytest.approx({"law": 22 / 40, "code": 18 / 40})
    assert found["shares"]["embedding"] == pytest.approx({"law": 0.2, "code": 0.8})
    table = agreement_table(found)
    assert table.splitlines()[0].startswith("openai and embedding agree about 50.0% of 4 texts; rows are by openai")
    assert [line.split() for line in table.splitlines()[3:]] == [
        ["law", "1", "1", ".", "0.550", "0.200"],
        ["code", ".", "1", ".", "0.450", "0.800"],
        ["unclear", ".", "1", ".", "-", "-"],
    ]


def test_a_labeller_that_labels_nothing_has_no_shares():
    found = labeller_agreement(
        np.zeros((2, 2)),
        np.array([[1.0, 0.0], [0.0, 1.0]]),
        names=("hf", "classifier"),
        domain_set=DOMAINS,
        num_tokens_N=np.ones(2),
    )
    assert found["shares"]["hf"] is None
    assert found["agreement"] == 0.0
    agreement_table(found)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base_model(tmp_path_factory.mktemp("base"))


def test_the_labels_of_a_language_model_are_compared_with_the_embedded_ones_and_printed(base, tmp_path, capsys):
    settings = ("detect.labeller=hf", f"detect.hf={{name_or_path: {base}, precision: fp32}}")
    recipe = write_recipe(detect_config(tmp_path / "runs", base, *settings), tmp_path / "recipe.yaml")
    called = command_of(capsys)("detect", recipe)
    assert called.code == 0, called.err
    prior = json.loads((tmp_path / "runs" / "tiny-prior.json").read_text())
    found = prior["labeller"]["compared"]
    assert found["labellers"] == ["hf", "classifier"]
    assert found["other"]["name"] == "classifier"
    assert sum(count for row in found["pairs"].values() for count in row.values()) == found["num_texts"] == 12
    # Random weights write noise, of which the one labels everything and the other nothing.
    assert sum(found["shares"]["hf"].values()) == pytest.approx(1, abs=1e-5)
    assert found["shares"]["classifier"] is None
    assert "hf and classifier agree about " in called.out
    assert prior["prior_shift"] is False


def test_where_the_rows_are_too_few_the_labels_stay_uncompared_and_a_warning_says_why(base, tmp_path, capsys):
    for name in ("code", "law"):
        write_jsonl(tmp_path / "data" / "train" / f"{name}.jsonl", chat_rows(5, topic=name))
        write_jsonl(tmp_path / "data" / "valid" / f"{name}.jsonl", chat_rows(3, topic=f"{name} held out"))
    config = detect_config(
        tmp_path / "runs",
        base,
        "data.synthetic=null",
        f"data.folder={tmp_path / 'data'}",
        "detect.labeller=hf",
        f"detect.hf={{name_or_path: {base}, precision: fp32}}",
    )
    called = command_of(capsys)("detect", write_recipe(config, tmp_path / "recipe.yaml"))
    assert called.code == 0, called.err
    assert "the labels are not compared with those of an embedded labeller: data." in called.err
    assert "compared" not in json.loads((tmp_path / "runs" / "tiny-prior.json").read_text())["labeller"]
