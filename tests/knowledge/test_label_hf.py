"""The local labeller: a label is how likely each domain's name is as the answer."""

import numpy as np
import pytest
import torch
from base_model import detect_config, save_base_model

from versatune_ds.config import LocalLabellerConfig, TrainConfig
from versatune_ds.domains import DomainSet
from versatune_ds.knowledge.detect import detect
from versatune_ds.knowledge.language_models import label_hf, option_scores
from versatune_ds.knowledge.language_models.label_hf import LocalLabeller
from versatune_ds.knowledge.language_models.questions import Question

DOMAINS = DomainSet(("law", "real estate and everything near it", "code"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_base_model(tmp_path_factory.mktemp("model"))


def labeller(model, folder, **settings):
    question = Question(domain_set=DOMAINS, descriptions={}, max_characters=200)
    settings = LocalLabellerConfig(name_or_path=str(model), precision="fp32", **settings)
    train = TrainConfig(rows_per_batch=1, steps=1)
    return LocalLabeller(settings, question=question, folder=folder, cache_dir=folder, train=train)


def test_a_label_is_the_normalised_likelihoods_of_the_names_each_computed_alone(model, tmp_path):
    found = labeller(model, tmp_path)
    label = found.label(["Who owns the house?"])[0]
    prompt = found._ids(found._prompt("Who owns the house?"))
    likelihoods = []
    for name in DOMAINS:
        ids = [*found._ids(name), found._tokenizer.eos_token_id]
        with torch.no_grad():
            log_p = found._pool._loaded.causal_lm(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        likelihoods.append(sum(float(log_p[len(prompt) - 1 + i, token_id]) for i, token_id in enumerate(ids)))
    assert len({len(found._ids(name)) for name in DOMAINS}) > 1
    assert label == pytest.approx(torch.tensor(likelihoods).double().softmax(0).numpy(), rel=1e-4)
    assert label.sum() == pytest.approx(1.0)


def test_the_prompt_ends_where_the_answer_begins(model, tmp_path):
    prompt = labeller(model, tmp_path)._prompt("a text")
    assert "- law\n- real estate" in prompt
    assert prompt.endswith("<|assistant|>\n")


def test_labels_are_stored_and_not_computed_again(model, tmp_path, monkeypatch):
    first = labeller(model, tmp_path).label(["a", "b"])
    second = labeller(model, tmp_path)
    monkeypatch.setattr(second, "_prompt", lambda text: pytest.fail(f"asked again: {text}"))
    assert second.label(["b", "a"]).tolist() == first[::-1].tolist()


def test_texts_labelled_together_get_the_labels_they_get_alone(model, tmp_path):
    texts = [f"{'Who owns the house? ' * i}{i}" for i in range(1, 6)]
    together = labeller(model, tmp_path / "together", texts_per_batch=3).label(texts)
    alone = labeller(model, tmp_path / "alone", texts_per_batch=1).label(texts)
    assert together == pytest.approx(alone, abs=1e-5)
    assert np.ptp(alone, axis=0).max() > 1e-3  # the texts have different labels


def test_a_stop_between_batches_keeps_the_labels_so_far_and_only_the_rest_is_computed(model, tmp_path, monkeypatch):
    texts = [f"text {'x' * i}" for i in range(7)]
    unbroken = labeller(model, tmp_path / "unbroken", texts_per_batch=2).label(texts)
    real, num_scored = label_hf.scores_of_batch, []

    def scores(causal_lm, *, prompts, options):
        if len(num_scored) == killed_after:
            raise KeyboardInterrupt
        num_scored.append(len(prompts))
        return real(causal_lm, prompts=prompts, options=options)

    monkeypatch.setattr(label_hf, "scores_of_batch", scores)
    killed_after = 2
    with pytest.raises(KeyboardInterrupt):
        labeller(model, tmp_path / "killed", texts_per_batch=2).label(texts)
    killed_after = None
    num_scored.clear()
    resumed = labeller(model, tmp_path / "killed", texts_per_batch=2).label(texts)
    assert num_scored == [2, 1]
    assert resumed.tolist() == unbroken.tolist()


def test_a_model_that_cannot_read_texts_together_reads_one_at_a_time_and_a_warning_says_so(
    model, tmp_path, monkeypatch, caplog
):
    expected = labeller(model, tmp_path / "before").label(["a text", "another text"])
    monkeypatch.setattr(
        "transformers.DynamicCache.batch_repeat_interleave", lambda *_: (_ for _ in ()).throw(AttributeError("no"))
    )
    found = labeller(model, tmp_path / "after").label(["a text", "another text"])
    assert "detect.hf.texts_per_batch: texts are labelled one at a time: this model does not read them" in caplog.text
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_model_that_gives_other_probabilities_to_texts_read_together_is_found_out(model, tmp_path, monkeypatch):
    found = labeller(model, tmp_path)
    prompts = [found._prompt_ids("a"), found._prompt_ids("a much longer text than the first one")]
    real = option_scores.scores_of_batch
    assert (
        option_scores.batch_problem(
            found._pool._loaded.causal_lm, prompts=prompts, options=found._pool._loaded.names_ids
        )
        is None
    )
    monkeypatch.setattr(option_scores, "scores_of_batch", lambda *_, **given: -5 * real(*_, **given))
    problem = option_scores.batch_problem(
        found._pool._loaded.causal_lm, prompts=prompts, options=found._pool._loaded.names_ids
    )
    assert "gives a probability that differs by" in problem


def test_detection_with_a_local_model_leaves_nothing_unparsed(model, tmp_path):
    config = detect_config(
        tmp_path, model, "detect.labeller=hf", f"detect.hf={{name_or_path: {model}, precision: fp32}}"
    )
    found = detect(config, num_processes=1)
    assert found.rates()["unparsed"] == found.rates()["empty"]
    assert found.labeller["name"] == "hf"


def test_a_missing_model_is_reported_with_its_own_key(tmp_path):
    with pytest.raises(ValueError, match=r"detect.hf.name_or_path: 'no/such' is no folder, nor found on the Hub"):
        labeller("no/such", tmp_path)
