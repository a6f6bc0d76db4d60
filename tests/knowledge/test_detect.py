"""Detection from recipe to prior.json: rounds, resuming, processes, and a file that training reads."""

import json
from functools import partial

import numpy as np
import pytest
from base_model import detect_config, save_base_model
from command_line import command_of, write_recipe
from safetensors.torch import load_file, save_file

from versatune_ds.config import ModelConfig, load_config
from versatune_ds.domains import DomainSet
from versatune_ds.knowledge import detect as detect_module
from versatune_ds.knowledge import rounds as rounds_module
from versatune_ds.knowledge.base_model import find_base_model
from versatune_ds.knowledge.detect import detect
from versatune_ds.knowledge.detect_recipe import prior_table, prior_values, write_prior
from versatune_ds.knowledge.generate import SequenceGenerator, load_generator
from versatune_ds.knowledge.reliability.source_error import LeftOutLabels
from versatune_ds.knowledge.sequences import DrawnSequence
from versatune_ds.launch.process_pool import ProcessPool
from versatune_ds.mixture.settings import prior_weights

DOMAINS = ("law", "code")
TEXTS = {"law": "the tenant shall pay", "code": "print(x)"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base_model(tmp_path_factory.mktemp("base"))


class FakeLabeller:
    """Label law and code by one word each; any other text is unparsed."""

    def label(self, texts):
        return np.array([[float("tenant" in text), float("print" in text)] for text in texts])

    def describe(self):
        return {"name": "fake"}


class FakePool:
    """Draw batches of four texts, law three times as often as code; record which batches were requested."""

    def __init__(self, texts=(*[TEXTS["law"]] * 3, TEXTS["code"])):
        self.texts, self.requested = texts, []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def map(self, work, batches):
        for batch in reversed(batches):
            self.requested.append(batch)
            yield batch, [drawn(text, batch=batch, place=i) for i, text in enumerate(self.texts)]


def drawn(text, *, batch, place):
    is_code = text == TEXTS["code"]
    text = text and f"{text} {batch}/{place}"
    return DrawnSequence(text=text, num_tokens=30 if is_code else 10, is_cut=is_code, repeated_share=0.0)


@pytest.fixture
def faked(monkeypatch, base, tmp_path):
    """Return a function that detects with the fakes, from pool and overrides to (detection, config)."""

    def run(pool, *overrides, labelled=None):
        monkeypatch.setattr(detect_module, "make_labeller", lambda config, **_: FakeLabeller())
        monkeypatch.setattr(detect_module, "domain_set_of", lambda data, **_: DomainSet(DOMAINS))
        monkeypatch.setattr(detect_module, "open_pool", lambda load, **_: pool)
        config = detect_config(tmp_path, base, *overrides)
        return detect(config, num_processes=1, labelled=labelled), config

    return run


def test_weights_are_shares_of_tokens_and_both_shares_are_written(faked, tmp_path):
    found, config = faked(FakePool())
    values = prior_values(found, config.detect)
    assert values["weights"] == pytest.approx({"law": 0.5, "code": 0.5})  # 9 x 10 and 3 x 30 tokens
    assert values["weight_unit"] == "tokens"
    # 9 and 3 of 12 sequences, and half a sequence of each beforehand.
    assert values["shares"]["sequences"]["shares"] == pytest.approx({"law": 9.5 / 13, "code": 3.5 / 13})
    assert values["rates"] == {"unparsed": 0.0, "empty": 0.0, "repetitive": 0.0, "duplicate": 0.0, "cut": 0.25}
    low, high = values["intervals"]["law"]
    assert low < 0.5 < high


def test_weights_are_shares_of_sequences_where_the_recipe_counts_examples(faked):
    found, config = faked(FakePool(), "mixture.weight_unit=examples")
    assert prior_values(found, config.detect)["weights"] == pytest.approx({"law": 9.5 / 13, "code": 3.5 / 13})


def test_unparsed_and_empty_sequences_are_counted(faked):
    found, config = faked(FakePool(texts=(TEXTS["law"], TEXTS["code"], "gibberish", "")))
    values = prior_values(found, config.detect)
    assert values["rates"]["unparsed"] == pytest.approx(0.5)
    assert values["rates"]["empty"] == pytest.approx(0.25)
    assert values["shares"]["sequences"]["shares"] == pytest.approx({"law": 0.5, "code": 0.5})
    low, high = values["shares"]["sequences"]["intervals"]["law"]
    assert low <= 0.25
    assert high >= 0.75
    assert "unparsed 50.0%, empty 25.0%" in prior_table(values)


def test_detection_ends_early_when_the_intervals_are_narrow_enough_and_otherwise_gives_a_warning(faked, caplog):
    # Three quarters of 40, 80 and 120 sequences are law: plus or minus .134, .095 and .077.
    wide = ("detect.num_sequences=120", "mixture.weight_unit=examples")
    found, config = faked(FakePool(), *wide, "detect.interval=0.11")
    assert (found.is_converged, len(found.rounds), len(found.sequences)) == (True, 2, 80)
    assert prior_values(found, config.detect)["is_converged"] is True
    assert "used up" not in caplog.text
    found, _ = faked(FakePool(), *wide, "detect.interval=0.02")
    assert (found.is_converged, len(found.rounds), len(found.sequences)) == (False, 3, 120)
    assert "detect.num_sequences: used up: after 120 sequences the interval of " in caplog.text
    assert "detect.interval is 0.02; about 1," in caplog.text


def test_detection_ends_early_when_a_round_changes_less_than_the_recipes_tolerance(faked):
    found, _ = faked(FakePool(), "detect.tol=0.01")
    assert (found.is_converged, len(found.rounds), len(found.sequences)) == (True, 2, 8)


def test_the_log_says_at_the_start_how_many_sequences_may_be_drawn_and_which_key_sets_fewer(faked, caplog):
    caplog.set_level("INFO")
    sets_fewer = "; for fewer, and wider intervals, set detect.num_sequences"
    for interval, until in (("0.11", "until every interval is +-0.11 or narrower, "), ("null", "")):
        caplog.clear()
        faked(FakePool(), "detect.num_sequences=1200", f"detect.interval={interval}")
        lines = [record.getMessage() for record in caplog.records if record.name == rounds_module.__name__]
        assert lines[0] == f"drawing sequences in rounds of 400 {until}at most 1,200{sets_fewer}"
    assert any(line.startswith("drew") and line.endswith(" left in this round") for line in lines)


def test_without_a_wanted_interval_all_sequences_are_drawn(faked, caplog):
    found, _ = faked(FakePool(), "detect.interval=null", "detect.tol=null")
    assert (found.is_converged, len(found.rounds), len(found.sequences)) == (False, 3, 12)
    assert "used up" not in caplog.text


def test_a_domain_that_the_model_never_wrote_about_keeps_a_weight_and_a_note_says_how_large_it_may_be(faked):
    found, config = faked(FakePool(texts=[TEXTS["law"]] * 4), "detect.num_sequences=400", "detect.rounds=2")
    values = prior_values(found, config.detect)
    assert len(found.sequences) == 200  # plus or minus .009
    assert values["weights"] == pytest.approx({"law": 200.5 / 201, "code": 0.5 / 201})
    assert values["intervals"]["code"][1] == pytest.approx(1 - 0.025 ** (1 / 200))
    assert list(values["low_weights"]) == ["code"]
    assert "weight 0.0025 is below a tenth of uniform (0.0500)" in prior_table(values)
    assert "the 95 % interval ends at 0.018" in prior_table(values)


def test_known_texts_calibrate_what_is_drawn_and_no_share_is_zero_or_outside_its_interval(faked, tmp_path):
    known = tmp_path / "known.jsonl"
    rows = [{"text": f"{TEXTS[name]} {i}", "domain": name} for name in DOMAINS for i in range(12)]
    known.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    plain, _ = faked(FakePool(texts=[TEXTS["law"]] * 4), "detect.num_sequences=200", "detect.rounds=2")
    found, config = faked(
        FakePool(texts=[TEXTS["law"]] * 4), "detect.num_sequences=200", "detect.rounds=2", labelled=known
    )
    values = prior_values(found, config.detect)
    assert values["labeller"]["labelled"]["accuracy"] == 1.0
    assert values["labeller"]["correction"]["black_box_shares"]["law"] > 0.9
    assert np.all(found.shares.shares_K > 0)
    assert np.all((found.shares.lower_K <= found.shares.shares_K) & (found.shares.shares_K <= found.shares.upper_K))
    assert np.all(found.shares.half_widths_K >= plain.shares.half_widths_K - 1e-3)


def test_known_texts_are_refused_where_nothing_is_labelled(faked, tmp_path):
    with pytest.raises(ValueError, match=r"^--labelled: .*: detect\.method=likelihood labels no text; leave "):
        faked(FakePool(), "detect.method=likelihood", labelled=tmp_path / "known.jsonl")


def test_a_resumed_or_longer_detection_draws_only_missing_batches(faked):
    class Killed(FakePool):
        def map(self, work, batches):
            for drawn_batch in super().map(work, batches):
                if len(self.requested) == 3:
                    raise KeyboardInterrupt
                yield drawn_batch

    with pytest.raises(KeyboardInterrupt):
        faked(Killed())
    pool = FakePool()
    found, _ = faked(pool)
    assert pool.requested == [2]
    assert [sequence.text.split()[-1] for sequence in found.sequences][:5] == ["0/0", "0/1", "0/2", "0/3", "1/0"]
    pool = FakePool()
    faked(pool, "detect.num_sequences=20", "detect.rounds=1")
    assert sorted(pool.requested) == [3, 4]


def test_the_progress_counts_the_sequences_drawn_and_not_those_of_the_last_batch_beyond_the_end(
    faked, monkeypatch, caplog
):
    caplog.set_level("INFO")
    monkeypatch.setattr(rounds_module, "_LOG_SECONDS", -1.0)
    faked(FakePool(), "detect.num_sequences=5", "detect.rounds=1")
    lines = [record.getMessage() for record in caplog.records if record.name == rounds_module.__name__]
    assert [line.partition("  ")[0] for line in lines if line.startswith("drew")] == [
        "drew 4 of 5 sequences",
        "drew 5 of 5 sequences",
    ]


@pytest.mark.parametrize("override", ["detect.sampling.seed=1", "detect.sampling.top_p=0.9", "train.precision=bf16"])
def test_sequences_drawn_with_other_settings_are_not_used(faked, override):
    first, _ = faked(FakePool())
    pool = FakePool()
    second, _ = faked(pool, override)
    assert first.folder != second.folder
    assert sorted(pool.requested) == [0, 1, 2]


def test_another_labeller_or_tolerance_reads_the_same_sequences(faked):
    first, _ = faked(FakePool())
    pool = FakePool()
    second, _ = faked(pool, "detect.prior_shift=false", "detect.num_sequences=8", "mixture.sigma=1")
    assert (first.folder, pool.requested) == (second.folder, [])


@pytest.fixture
def recipe(base, tmp_path):
    return write_recipe(detect_config(tmp_path / "runs", base), tmp_path / "recipe.yaml")


def test_the_command_writes_a_prior_that_training_reads_and_a_chart(recipe, tmp_path, capsys):
    called = command_of(capsys)("detect", recipe)
    assert called.code == 0, called.err
    path = tmp_path / "runs" / "tiny-prior.json"
    values = json.loads(path.read_text())
    assert values["num_sequences"] == 4  # random weights write noise: after the first round nothing is labelled
    assert values["rates"]["unclear"] == 1.0
    assert (tmp_path / "runs" / "tiny-prior.png").read_bytes()[:4] == b"\x89PNG"
    assert f"prior  {path}" in called.out
    assert "accuracy" in called.err
    config = load_config(recipe, [f"mixture.prior={path}"])
    domain_set = DomainSet(tuple(values["weights"]))
    weights = prior_weights(config.mixture, domain_set=domain_set, sizes_K=None)
    assert domain_set.to_dict(weights) == pytest.approx(values["weights"])
    assert len(values["model"]["digest"]) == len(values["tokenizer"]["digest"]) == 32


def test_without_output_the_prior_goes_where_the_recipe_will_look_for_it(recipe, tmp_path, capsys):
    path = tmp_path / "mine.json"
    assert command_of(capsys)("detect", recipe, f"mixture.prior={path}", "detect.num_sequences=3").code == 0
    assert path.is_file()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.name_or_path=null", "model.from_config={model_type: llama}"],
            "model.name_or_path: missing; detect asks",
        ),
        (
            ["model.name_or_path=runs/mine/export", "model.tokenizer=null"],
            "model.name_or_path: runs/mine/export: no such folder; `versatune export runs/mine` writes a run's model",
        ),
        (
            ["model.name_or_path=no/such-model", "model.tokenizer=null"],
            "model.name_or_path: 'no/such-model' is no folder",
        ),
        (["--processes", "0"], "--processes=0: expected 1 or more"),
        (["--output", "prior.txt"], "--output: prior.txt: expected a file that ends in .json"),
        (["detect.descriptions={lew: x}"], "detect.descriptions: unknown domain 'lew'; did you mean 'law'?"),
        (["detect.labeller=hf"], "detect.hf: labeller 'hf' needs it; give detect.hf.name_or_path"),
        (["detect.rounds=13"], "detect.rounds: 13 rounds of 12 sequences; give fewer rounds"),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_two_before_anything_is_drawn(
    recipe, tmp_path, capsys, overrides, message
):
    called = command_of(capsys)("detect", recipe, *overrides)
    assert (called.code, called.out) == (2, "")
    assert called.err.splitlines()[-1].startswith(f"versatune: {message}")
    assert not list(tmp_path.rglob("sequences.jsonl"))


def test_a_folder_without_weights_points_to_export(recipe, tmp_path, capsys):
    called = command_of(capsys)("detect", recipe, f"model.name_or_path={tmp_path}")
    assert called.code == 2
    assert "has no weights (*.safetensors); for a run's folder write `versatune export" in called.err


def test_writing_the_prior_leaves_no_temporary_files(faked, tmp_path):
    found, config = faked(FakePool())
    path = tmp_path / "new" / "prior.json"
    write_prior(path, prior_values(found, config.detect))
    assert sorted(file.name for file in path.parent.iterdir()) == ["prior.json", "prior.png"]


@pytest.mark.slow
def test_two_processes_draw_the_same_as_one(base, tmp_path):
    config = detect_config(tmp_path, base)
    drawn_by = []
    for num_processes in (1, 2):
        with ProcessPool(partial(load_generator, config), num_processes=num_processes) as pool:
            drawn_by.append(dict(pool.map(SequenceGenerator.draw, [0, 1, 2])))
    assert drawn_by[0] == drawn_by[1]


def test_a_model_with_missing_weights_is_refused_before_anything_is_drawn(tmp_path):
    base = save_base_model(tmp_path)
    weights = load_file(base / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if ".layers.1." not in name}
    save_file(kept, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"^model\.name_or_path: .* 9 missing \(model\.layers\.1\."):
        find_base_model(ModelConfig(name_or_path=str(base)), cache_dir=tmp_path / "cache")


def test_where_no_sequence_looks_like_a_domain_the_weights_are_equal_and_the_intervals_say_that_nothing_is_known(
    faked, caplog
):
    found, config = faked(FakePool(texts=["zzz", "qqq"] * 2), "detect.num_sequences=400", "detect.rounds=2")
    values = prior_values(found, config.detect)
    assert values["weights"] == {"law": 0.5, "code": 0.5}
    assert values["intervals"] == {"law": [0.0, 1.0], "code": [0.0, 1.0]}
    assert values["rates"]["unparsed"] == 1.0
    assert len(found.sequences) == 200  # more of them would not help
    assert "no sequence looks like any domain" in caplog.text


def test_the_labellers_errors_on_texts_left_out_widen_the_intervals_and_are_recorded(faked, monkeypatch, caplog):
    caplog.set_level("INFO")
    plain, _ = faked(FakePool(), "detect.num_sequences=400", "detect.rounds=1", "detect.prior_shift=false")
    labels = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.0, 1.0]])
    known = LeftOutLabels(
        labels_NK=labels,
        ids_N=np.array([0, 0, 1, 1]),
        source_ids_N=np.array([0, 1, 0, 1]),
        is_other_source_K=np.array([True, False]),
    )
    monkeypatch.setattr(FakeLabeller, "left_out", known, raising=False)
    found, config = faked(FakePool(), "detect.num_sequences=400", "detect.rounds=1", "detect.prior_shift=false")
    record = prior_values(found, config.detect)["labeller"]["source_error"]
    assert record["error"]["law"] == pytest.approx(record["error"]["code"])
    assert 0.15 < record["error"]["law"] < 0.2  # half of the mixtures lose a half of law's .5
    assert record["one_source"] == ["code"]
    assert np.all(found.shares.half_widths_K > 2 * plain.shares.half_widths_K)
    assert found.shares.shares_K.tolist() == plain.shares.shares_K.tolist()
    assert "more sequences narrow the first part alone" in caplog.text
    assert "rows of the same files of code, so the intervals hold for text of these sources only" in caplog.text
