"""Likelihood detection: from bits to weights, by hand and on a tiny model; where both methods differ."""

import json

import numpy as np
import pytest
from base_model import detect_config, save_base_model
from chat_data import chat_rows, write_jsonl
from command_line import command_of, write_recipe
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.domains import DomainSet
from versatune_ds.knowledge import likelihood as likelihood_module
from versatune_ds.knowledge.agreement import disagreements, low_weight_notes
from versatune_ds.knowledge.estimate import Shares
from versatune_ds.knowledge.likelihood import detect_likelihood, likelihood_weights, weights_with_intervals
from versatune_ds.knowledge.likelihood_rows import (
    TextRows,
    TooFewRowsError,
    check_text_rows,
    common_beginning,
    cut_to,
    likelihood_rows,
)
from versatune_ds.mixture.statistics import ExampleLosses
from versatune_ds.training.prepared_data import load_or_train_tokenizer

DOMAINS = DomainSet(("law", "code"))
BITS = st.lists(st.floats(0.1, 8), min_size=3, max_size=3).map(np.array)


def weights(model, baseline):
    return likelihood_weights(np.array(model), np.array(baseline)).tolist()


def test_weights_are_the_squares_of_the_log_ratios_of_bits():
    assert weights([1.0, 1.0], [2.0, 4.0]) == pytest.approx([1 / 5, 4 / 5])  # log 2 and 2 log 2
    assert weights([1.0, 2.0], [2.0, 4.0]) == pytest.approx([1 / 2, 1 / 2])


def test_a_domain_in_which_nothing_is_saved_keeps_a_tenth_of_the_mean_saving():
    # Savings 0 and log 4: the mean is log 2, so the first counts as 0.1 log 2 against 2 log 2.
    assert weights([2.0, 1.0], [1.0, 4.0]) == pytest.approx([0.01 / 4.01, 4 / 4.01])
    assert weights([2.0, 3.0], [1.0, 1.0]) == [0.5, 0.5]


@given(BITS, BITS, st.floats(0.1, 10))
def test_weights_are_positive_sum_to_one_and_do_not_depend_on_the_unit(model, baseline, factor):
    found = likelihood_weights(model, baseline)
    assert found.min() > 0
    assert found.sum() == pytest.approx(1)
    assert likelihood_weights(model * factor, baseline * factor) == pytest.approx(found, rel=1e-6)


@given(BITS, BITS, st.floats(0.5, 0.99))
def test_a_domain_that_is_predicted_better_never_loses_weight(model, baseline, factor):
    better = model * np.array([factor, 1, 1])
    assert likelihood_weights(better, baseline)[0] >= likelihood_weights(model, baseline)[0] - 1e-12


def losses(nats_E, *, num_bytes):
    return ExampleLosses(
        loss_sum_E=nats_E, num_loss_tokens_E=num_bytes, domain_ids_E=np.repeat([0, 1], len(nats_E) // 2), num_domains=2
    )


def test_intervals_hold_the_weights_of_new_rows_in_about_95_percent():
    rng, inside = np.random.default_rng(0), 0
    truth = likelihood_weights(np.array([1.0, 1.0]), np.array([2.0, 1.5]))[0]
    for seed in range(60):
        hardness = rng.gamma(4.0, size=200)
        noise = rng.normal(1, 0.1, size=200)
        baseline = losses(hardness * np.repeat([2.0, 1.5], 100), num_bytes=np.full(200, 100))
        model = losses(hardness * noise, num_bytes=np.full(200, 100))
        found = weights_with_intervals(model, baseline, seed=seed)
        inside += found.lower_K[0] <= truth <= found.upper_K[0]
        assert found.half_widths_K.max() < 0.05  # the rows' hardness cancels; alone it would give 0.1
    assert 51 <= inside <= 60


class FakeRows:
    """Rows of one domain, as the loaders read them."""

    name = "law"

    def __init__(self, *rows):
        self._rows = [np.array(row, dtype=np.int32) for row in rows]
        self.num_examples = len(rows)
        self.lengths = np.array([len(row) for row in rows], dtype=np.int32)

    def read(self, index):
        return self._rows[index], np.ones(len(self._rows[index]), dtype=bool)


def test_what_all_rows_begin_with_and_special_tokens_are_not_measured():
    law, code = FakeRows([9, 1, 2, 3, 0], [9, 1, 4, 0]), FakeRows([9, 1, 5])
    assert common_beginning([law, code]) == 2
    assert common_beginning([FakeRows([9, 1])]) == 0
    assert common_beginning([FakeRows([9, 1], [9, 1, 2])]) == 2
    rows = TextRows(law, special_ids=np.array([0, 9]), num_common=2)
    assert rows.read(0)[1].tolist() == [False, False, True, True, False]
    assert rows.loss_lengths.tolist() == [2, 1]


def test_a_domain_of_which_fewer_than_two_rows_have_text_is_refused():
    some, none = FakeRows([9, 1, 2], [9, 1, 3]), FakeRows([9, 1, 2], [9])
    check_text_rows([TextRows(some, special_ids=np.array([9]), num_common=1)])
    with pytest.raises(TooFewRowsError, match="law has fewer than 2 with text"):
        check_text_rows([TextRows(none, special_ids=np.array([9]), num_common=1)])


def test_rows_without_text_do_not_change_the_intervals():
    nats, num_bytes = np.array([3.0, 0.0, 2.0, 4.0, 0.0, 5.0]), np.array([9, 0, 9, 9, 0, 9])
    baseline = losses(2 * nats + (nats > 0), num_bytes=num_bytes)
    found = weights_with_intervals(losses(nats, num_bytes=num_bytes), baseline, seed=0)
    kept = num_bytes > 0
    model, baseline = (losses(values[kept], num_bytes=num_bytes[kept]) for values in (nats, baseline.loss_sum_E))
    assert found.upper_K.tolist() == weights_with_intervals(model, baseline, seed=0).upper_K.tolist()


def test_texts_are_cut_to_a_number_of_bytes():
    assert cut_to([b"abc", b"def", b"g"], num_bytes=4) == [b"abc", b"d"]
    assert cut_to([b"abc"], num_bytes=9) == [b"abc"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base_model(tmp_path_factory.mktemp("base"))


def test_the_baseline_gets_the_same_number_of_bytes_of_every_domain_and_no_held_out_row(base, tmp_path):
    config = detect_config(tmp_path, base, "detect.likelihood_rows=3")
    rows = likelihood_rows(config, tokenizer=load_or_train_tokenizer(config))
    assert len({sum(map(len, texts)) for texts in rows.baseline_texts}) == 1
    assert [part.num_examples for part in rows.held_out] == [3] * len(rows.domain_set)
    fitted_on = {text for texts in rows.baseline_texts for text in texts}
    assert not fitted_on & {text for texts in rows.texts for text in texts}


def test_the_bits_are_those_of_the_models_loss_and_an_untrained_model_saves_nothing(base, tmp_path):
    config = detect_config(tmp_path, base, "detect.likelihood_rows=3")
    tokenizer = load_or_train_tokenizer(config)
    found = detect_likelihood(config, tokenizer=tokenizer, num_processes=1)
    rows = likelihood_rows(config, tokenizer=tokenizer)
    # Random weights of this size predict every token about equally: log of the vocabulary, nats a token.
    nats = found.model.loss_sum_E.sum() / sum(part.loss_lengths.sum() for part in rows.held_out)
    assert nats == pytest.approx(np.log(len(tokenizer)), rel=0.05)
    num_bytes = [sum(map(len, texts)) for texts in rows.texts]
    assert found.model.num_loss_tokens().tolist() == num_bytes
    assert found.shares.shares_K == pytest.approx(1 / len(num_bytes))


@pytest.mark.slow
def test_two_processes_measure_the_same_as_one(base, tmp_path):
    found = []
    for number in (1, 2):
        config = detect_config(tmp_path / str(number), base, "detect.likelihood_rows=5")
        tokenizer = load_or_train_tokenizer(config)
        found.append(detect_likelihood(config, tokenizer=tokenizer, num_processes=number))
    one, two = found
    assert two.model.loss_sum_E == pytest.approx(one.model.loss_sum_E, rel=1e-5)


def test_losses_that_are_not_finite_end_the_measurement_in_one_line(base, tmp_path, monkeypatch):
    config = detect_config(tmp_path, base, "detect.likelihood_rows=3")
    monkeypatch.setattr(likelihood_module, "_nats_of_batch", lambda *_: np.array([np.nan, 1.0]))
    with pytest.raises(RuntimeError, match=r"detect.method: likelihood: .* not finite; set train.precision=fp32"):
        detect_likelihood(config, tokenizer=load_or_train_tokenizer(config), num_processes=1)


@pytest.fixture
def measured(monkeypatch):
    """Return the micro-batches that are measured, in their order; the n-th raises KeyboardInterrupt with `at=n`."""
    measured, real = MeasuredBatches(), likelihood_module._nats_of_batch

    def count(config, num_batches, opened, batch):
        if len(measured) == measured.killed_at:
            raise KeyboardInterrupt
        measured.append(batch)
        return real(config, num_batches, opened, batch)

    monkeypatch.setattr(likelihood_module, "_nats_of_batch", count)
    return measured


class MeasuredBatches(list):
    """Numbers of micro-batches, and after how many the measurement is killed."""

    killed_at = None


def test_after_a_kill_only_the_rows_that_were_not_measured_are(base, measured, tmp_path):
    config = detect_config(tmp_path, base, "detect.likelihood_rows=6", "data.row_tokens=128")
    tokenizer = load_or_train_tokenizer(config)
    unbroken = detect_likelihood(config, tokenizer=tokenizer, num_processes=1).model.loss_sum_E
    batches = list(measured)
    assert len(batches) > 3
    [path] = tmp_path.rglob("likelihood-*.jsonl")
    path.unlink()
    measured.clear()
    measured.killed_at = 2
    with pytest.raises(KeyboardInterrupt):
        detect_likelihood(config, tokenizer=tokenizer, num_processes=1)
    with path.open("ab") as file:  # what a kill while a line is written leaves
        file.write(b'{"batch": 2, "rows": [1')
    measured.clear()
    measured.killed_at = None
    resumed = detect_likelihood(config, tokenizer=tokenizer, num_processes=1)
    assert measured == batches[2:]
    assert resumed.model.loss_sum_E.tolist() == unbroken.tolist()


def test_what_was_measured_is_used_for_the_same_model_and_rows_only(base, measured, tmp_path, monkeypatch):
    config = detect_config(tmp_path, base, "detect.likelihood_rows=3")
    tokenizer = load_or_train_tokenizer(config)
    detect_likelihood(config, tokenizer=tokenizer, num_processes=1)
    measured.clear()
    for override in ("detect.likelihood_rows=4", "train.precision=bf16"):
        other = detect_config(tmp_path, base, "detect.likelihood_rows=3", override)
        detect_likelihood(other, tokenizer=tokenizer, num_processes=1)
        assert measured, override
        measured.clear()
    monkeypatch.setattr(likelihood_module, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    detect_likelihood(config, tokenizer=tokenizer, num_processes=1)
    assert measured == []


def test_the_command_shows_both_methods_and_writes_them_into_the_prior(base, tmp_path, capsys):
    config = detect_config(tmp_path / "runs", base, "detect.method=both", "detect.likelihood_rows=3")
    called = command_of(capsys)("detect", write_recipe(config, tmp_path / "recipe.yaml"))
    assert called.code == 0, called.err
    values = json.loads((tmp_path / "runs" / "tiny-prior.json").read_text())
    assert set(values["methods"]) == {"generation", "likelihood"}
    assert values["weights"] == values["methods"]["generation"]["weights"]
    assert values["methods"]["likelihood"]["saved_bits_per_byte_error"].keys() == values["weights"].keys()
    assert "likelihood" in called.out
    for name, text in values["disagreements"].items():
        assert f"{name}: {text}" in called.out


def test_likelihood_alone_draws_nothing_and_training_reads_its_weights(base, tmp_path, capsys):
    config = detect_config(tmp_path / "runs", base, "detect.method=likelihood", "detect.likelihood_rows=3")
    called = command_of(capsys)("detect", write_recipe(config, tmp_path / "recipe.yaml"))
    assert called.code == 0, called.err
    values = json.loads((tmp_path / "runs" / "tiny-prior.json").read_text())
    assert values["weights"] == values["methods"]["likelihood"]["weights"]
    assert "num_sequences" not in values
    assert not list(tmp_path.rglob("sequences.jsonl"))


@pytest.fixture
def few_rows(tmp_path):
    """Data of which one domain has a single held-out row, as overrides."""
    for split, counts in (("train", (30, 30)), ("valid", (5, 1))):
        for name, num_rows in zip(("code", "law"), counts, strict=True):
            write_jsonl(tmp_path / "data" / split / f"{name}.jsonl", chat_rows(num_rows, topic=f"{name} {split}"))
    return "data.synthetic=null", f"data.folder={tmp_path / 'data'}"


def test_a_domain_without_held_out_rows_is_refused_in_one_line(base, few_rows, tmp_path, capsys):
    config = detect_config(tmp_path, base, *few_rows, "detect.method=likelihood")
    called = command_of(capsys)("detect", write_recipe(config, tmp_path / "recipe.yaml"))
    assert called.code == 2
    assert called.err.splitlines()[-1].startswith(
        "versatune: detect.method: likelihood measures held-out rows, and law has fewer than 2; give held-out rows"
    )


def test_without_held_out_rows_generation_runs_alone_unless_likelihood_was_asked_for(base, few_rows, tmp_path, capsys):
    config = detect_config(tmp_path / "runs", base, *few_rows, "detect.method=both")
    called = command_of(capsys)("detect", write_recipe(config, tmp_path / "recipe.yaml"))
    assert called.code == 0, called.err
    assert "generation alone: detect.method: likelihood measures held-out rows, and law has fewer than 2" in called.err
    values = json.loads((tmp_path / "runs" / "tiny-prior.json").read_text())
    assert "likelihood" not in values.get("methods", {})


def shares(*triples):
    lower, middle, upper = np.array(triples).T
    return Shares(shares_K=middle, lower_K=lower, upper_K=upper)


def test_methods_disagree_where_their_distance_exceeds_the_error_of_the_difference():
    generation = shares((0.27, 0.30, 0.33), (0.67, 0.70, 0.73))
    # Half widths .03 and .04: the error of the difference is .05.
    assert disagreements(generation, shares((0.22, 0.26, 0.30), (0.70, 0.74, 0.78)), domain_set=DOMAINS) == {}
    found = disagreements(generation, shares((0.20, 0.24, 0.28), (0.72, 0.76, 0.80)), domain_set=DOMAINS)
    assert found["law"].startswith("generation 0.300, likelihood 0.240: the model writes more about it than")
    assert found["code"].startswith("generation 0.700, likelihood 0.760: the model predicts its rows better than")


def test_a_weight_below_a_tenth_of_uniform_is_explained():
    found = low_weight_notes(shares((0.0, 0.04, 0.09), (0.91, 0.96, 1.0)), domain_set=DOMAINS, reason="why")
    assert found == {
        "law": "weight 0.0400 is below a tenth of uniform (0.0500): why; the 95 % interval ends at 0.090; training "
        "starts at the floor where the policy has one"
    }
