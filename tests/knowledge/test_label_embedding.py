"""The labeller of embeddings: own rows and descriptions together, calibrated on files left out, unclear texts."""

import json
import random

import numpy as np
import pytest
from base_model import detect_config, save_base_model
from command_line import command_of, write_recipe
from fake_encoder import FakeEncoder, word_vectors

from versatune_ds.domains import DomainSet
from versatune_ds.knowledge import labeller as labeller_module
from versatune_ds.knowledge.domain_descriptions import Description
from versatune_ds.knowledge.label_embedding import EmbeddingLabeller, description_scores, fit_embedding_model
from versatune_ds.knowledge.label_texts import DividedTexts, LabelledTexts
from versatune_ds.knowledge.labeller import with_chosen_labeller
from versatune_ds.knowledge.reliability.text_screen import TextScreen
from versatune_ds.knowledge.text_encoder import NoEncoderError

DOMAINS = DomainSet(("law", "code"))
WORDS = {
    "law": ["court", "judge", "rent", "tenant", "contract"],
    "code": ["python", "loop", "array", "string", "function"],
}
FORMS = ("question answer", "table row cell")


def made_up(*, num_texts, files=(0, 1), seed=0):
    """Texts of two words of their domain and the form of their file, which says nothing of the domain."""
    rng = random.Random(seed)
    texts = LabelledTexts(texts=[], domain_ids=[], file_ids=[])
    for domain_id, name in enumerate(DOMAINS):
        for number in range(num_texts):
            file_id = files[number % len(files)]
            texts.texts.append(" ".join([*rng.sample(WORDS[name], 2), FORMS[file_id], str(number)]))
            texts.domain_ids.append(domain_id)
            texts.file_ids.append(file_id)
    return texts


def fitted(**changes):
    empty = LabelledTexts(texts=[], domain_ids=[], file_ids=[])
    texts = DividedTexts(fit=made_up(num_texts=60, **changes), calibrate=empty, test=empty)
    descriptions = [Description(text=" ".join(WORDS[name]), origin="recipe") for name in DOMAINS]
    return EmbeddingLabeller(texts, encoder=FakeEncoder(), descriptions=descriptions, domain_set=DOMAINS)


def test_the_nearest_part_of_a_description_decides():
    parts = (np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.6, 0.8]]))
    scores = np.exp(description_scores(np.array([[0.0, 1.0]]), parts))
    law, code = (np.exp(20) + 1) / 2, np.exp(16)
    assert scores == pytest.approx(np.array([[law, code]]) / (law + code))


def test_scores_are_the_geometric_mean_of_both_probabilities():
    texts = made_up(num_texts=30)
    vectors = word_vectors(texts.texts)
    parts = tuple(word_vectors([" ".join(WORDS[name])]) for name in DOMAINS)
    model = fit_embedding_model(vectors, np.array(texts.domain_ids), parts=parts)
    own, said = model.classifier.predict_proba(vectors), np.exp(description_scores(vectors, parts))
    assert np.exp(model.scores(vectors)) == pytest.approx(np.sqrt(own * said), rel=1e-6)


def test_texts_of_another_form_are_labelled_by_their_domain():
    labels = fitted().label(["the judge said the rent", "an array in python"])
    assert labels.argmax(axis=1).tolist() == [0, 1]
    assert labels.sum(axis=1) == pytest.approx(1.0)


def test_the_figures_are_of_files_left_out_and_say_so():
    values = fitted().describe()
    assert values["left_out"]["texts"] == "files left out of the fit"
    assert values["left_out"]["accuracy"] > 0.9
    assert values["descriptions"]["law"] == {"text": "court judge rent tenant contract", "origin": "recipe"}


def test_with_one_file_a_domain_the_figures_say_that_they_hold_for_the_same_source():
    assert "every domain is one file" in fitted(files=(0,)).describe()["left_out"]["texts"]


def test_a_text_like_no_domain_is_unclear_and_belongs_to_none():
    labels = fitted().label(["zzz qqq vvv www yyy", "judge court"])
    assert labels[0].tolist() == [0.0, 0.0]
    assert labels[1].sum() == pytest.approx(1.0)


def test_the_same_rows_give_the_same_labels():
    texts = ["judge loop", "tenant array"]
    assert fitted().label(texts).tolist() == fitted().label(texts).tolist()


def test_auto_is_the_classifier_where_no_encoder_is_found_and_the_log_says_why(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")

    def missing(settings):
        raise NoEncoderError("embedding needs a library", key="detect.labeller", todo="use detect.labeller=classifier")

    monkeypatch.setattr(labeller_module, "find_encoder", missing)
    config = with_chosen_labeller(detect_config(tmp_path, tmp_path))
    assert config.detect.labeller == "classifier"
    assert with_chosen_labeller(config) == config
    assert caplog.messages == ["detect.labeller: auto: classifier; embedding needs a library"]  # once, nothing to do
    with pytest.raises(ValueError, match="embedding needs"):
        with_chosen_labeller(detect_config(tmp_path, tmp_path, "detect.embedding.name_or_path=mine"))


def test_auto_is_embedding_where_an_encoder_is_found(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(labeller_module, "find_encoder", lambda settings: FakeEncoder())
    assert with_chosen_labeller(detect_config(tmp_path, tmp_path)).detect.labeller == "embedding"
    assert "the encoder fake is on this machine" in caplog.text


@pytest.fixture
def recipe(tmp_path):
    config = detect_config(tmp_path / "runs", save_base_model(tmp_path), "detect.labeller=embedding")
    return write_recipe(config, tmp_path / "recipe.yaml")


def test_the_command_measures_the_labeller_on_a_users_texts_and_writes_it_into_the_prior(
    recipe, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(labeller_module, "find_encoder", lambda settings: None)
    monkeypatch.setattr(labeller_module, "TextEncoder", lambda encoder, cache_dir: FakeEncoder())
    anything = TextScreen(
        fitted_on=(b"a",), most_bits=99.0, least_ratio=0.0
    )  # a model with random weights writes noise
    monkeypatch.setattr(labeller_module, "fit_text_screen", lambda texts: anything)
    known = tmp_path / "known.jsonl"
    names = ("law", "medicine", "finance", "science", "code", "general")
    lines = [json.dumps({"text": f"{name} text {i}", "domain": name}) for name in names for i in range(40)]
    known.write_text("\n".join(lines))
    called = command_of(capsys)("detect", recipe, "--labelled", known)
    assert called.code == 0, called.err
    prior = json.loads((tmp_path / "runs" / "tiny-prior.json").read_text())
    labelled = prior["labeller"]["labelled"]
    assert labelled["texts"] == str(known)
    assert 0 <= labelled["accuracy"] <= 1
    assert set(labelled["confusion"]) == set(names)
    assert set(prior["labeller"]["correction"]["black_box_shares"]) == set(names)
    assert sum(prior["labeller"]["correction"]["black_box_shares"].values()) == pytest.approx(1, abs=1e-3)
    assert isinstance(prior["labeller"]["confused"], list)
    assert prior["rates"]["unclear"] >= 0
    assert set(prior["labeller"]["source_error"]["error"]) == set(names)
    assert prior["labeller"]["source_error"]["one_source"] == []
    assert prior["labeller"]["screen"] == {"most_bits_per_byte": 99.0, "least_compression_ratio": 0.0}
    assert prior["prior_shift"] is True
    assert "what the domains are compared with" in called.err
    assert "true domain" in called.err


def test_a_mistake_in_the_users_texts_is_one_line_with_exit_code_two(recipe, tmp_path, capsys):
    known = tmp_path / "known.jsonl"
    known.write_text('{"text": "a", "domain": "lew"}\n')
    called = command_of(capsys)("detect", recipe, "--labelled", known)
    assert (called.code, called.out) == (2, "")
    assert called.err.splitlines()[-1] == f"versatune: --labelled: {known}:1: domain: 'lew'; did you mean 'law'?"
