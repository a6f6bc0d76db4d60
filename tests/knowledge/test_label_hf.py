"""The local labeller: a label is how likely each domain's name is as the answer."""

import pytest
import torch
from base_model import detect_config, save_base_model

from versatune_ds.config import LocalLabellerConfig
from versatune_ds.domains import DomainSet
from versatune_ds.knowledge.detect import detect
from versatune_ds.knowledge.language_models.label_hf import LocalLabeller
from versatune_ds.knowledge.language_models.questions import Question

DOMAINS = DomainSet(("law", "real estate and everything near it", "code"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_base_model(tmp_path_factory.mktemp("model"))


def labeller(model, folder):
    question = Question(domain_set=DOMAINS, descriptions={}, max_characters=200)
    settings = LocalLabellerConfig(name_or_path=str(model), precision="fp32")
    return LocalLabeller(settings, question=question, folder=folder, cache_dir=folder)


def test_a_label_is_the_normalised_likelihoods_of_the_names_each_computed_alone(model, tmp_path):
    found = labeller(model, tmp_path)
    label = found.label(["Who owns the house?"])[0]
    prompt = found._ids(found._prompt("Who owns the house?"))
    likelihoods = []
    for name in DOMAINS:
        ids = [*found._ids(name), found._tokenizer.eos_token_id]
        with torch.no_grad():
            log_p = found._causal_lm(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
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
    monkeypatch.setattr(second, "_label", lambda text: pytest.fail(f"asked again: {text}"))
    assert second.label(["b", "a"]).tolist() == first[::-1].tolist()


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
