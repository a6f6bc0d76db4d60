"""`versatune simulate` runs the real controller on synthetic or recorded losses, from a recipe alone."""

import json

import pytest
from command_line import command_of, write_recipe
from tiny_run import tiny_config

from versatune_ds.mixture.decision import Decision

DOMAINS = ("code", "finance", "general", "law", "medicine", "science")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulate")
    return write_recipe(tiny_config(folder, "mixture.prior=uniform"), folder / "tiny.yaml")


@pytest.fixture
def versatune(capsys):
    return command_of(capsys)


@pytest.fixture
def simulate(versatune, recipe):
    """Return a function that runs `versatune simulate` on the tiny recipe and returns its output."""

    def text(*arguments):
        called = versatune("simulate", recipe, "--quiet", *arguments)
        assert called.code == 0, called.err
        return called.out

    return text


def write_losses(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def losses(step, law, others=2.0):
    values = dict.fromkeys(DOMAINS, others) | {"law": law}
    return {"update": step // 4, "step": step, "losses": values}


def test_recorded_losses_give_the_weights_computed_by_hand(simulate, tmp_path):
    # references: half the first losses; g = (2 - 1) / 2 = 0.5 for five domains, (1.25 - 1) / 1.25 = 0.2 for law
    file = write_losses(tmp_path / "losses.jsonl", [losses(0, 2.0), losses(4, 1.25)])
    simulate("--losses", file, "--output", tmp_path / "out.jsonl", "mixture.paper=true")
    last = Decision.from_json((tmp_path / "out.jsonl").read_text().splitlines()[-1])
    grown = (1 + 2.0 * 0.5) * 5 + (1 + 2.0 * 0.2)
    assert last.weights_after["law"] == pytest.approx(1.4 / grown, abs=1e-12)
    assert last.weights_after["code"] == pytest.approx(2.0 / grown, abs=1e-12)
    last.verify()


def test_a_synthetic_run_shows_weights_and_repeated_data_and_writes_its_decisions(simulate, tmp_path):
    text = simulate("--steps", "400", "--output", tmp_path / "out.jsonl")
    assert "Weights decided after each step:" in text
    assert "repeats its data from step" in text
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 101
    for line in (tmp_path / "out.jsonl").read_text().splitlines():
        Decision.from_json(line).verify()


def test_the_plot_contains_every_domain(simulate, tmp_path):
    assert f"plot  {tmp_path}/plots/weights.svg" in simulate("--plot", tmp_path / "plots" / "weights.svg")
    picture = (tmp_path / "plots" / "weights.svg").read_text()
    assert all(f"<!-- {name} -->" in picture for name in (*DOMAINS, "Learnable potential"))


def test_the_same_seed_gives_the_same_output_and_another_seed_a_different_one(simulate):
    first = simulate("--noise", "0.01", "--seed", "1")
    assert simulate("--noise", "0.01", "--seed", "1") == first
    assert simulate("--noise", "0.01", "--seed", "2") != first


def test_a_sweep_prints_one_line_for_every_combination(simulate):
    lines = simulate("--sweep", "mixture.sigma=0,0.5", "--sweep", "mixture.policy=versatune,steer").splitlines()
    assert [line.split("  ")[0] for line in lines[2:]] == [
        f"mixture.sigma={sigma} mixture.policy={policy}" for sigma in ("0", "0.5") for policy in ("versatune", "steer")
    ]


def test_a_recipe_of_epochs_is_simulated_over_their_steps(versatune, recipe, tmp_path):
    out = tmp_path / "out.jsonl"
    called = versatune("simulate", recipe, "train.epochs=1", "--output", out)  # 24.2 steps
    assert called.code == 0, called.err
    assert "train.epochs: 1 epoch of all data = 25 steps (one is 24.2 steps over all data)" in called.err
    decisions = [json.loads(line) for line in out.read_text().splitlines()]
    assert decisions[-1]["decided_at_step"] == 24


def test_twice_as_many_steps_are_twice_as_many_epochs(simulate):
    first, second = (simulate("mixture.policy=constant", "--steps", steps).splitlines() for steps in ("100", "200"))
    epochs = [float(next(line for line in text if line.startswith("law")).split()[-1]) for text in (first, second)]
    assert epochs[1] == pytest.approx(2 * epochs[0], abs=0.02)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([losses(0, 2.0), {"update": 1, "step": 4, "losses": {"lwa": 2.0}}], "losses.jsonl:2: losses: unknown domain"),
        ([losses(4, 2.0), losses(0, 2.0)], "losses.jsonl:2: step 0 after step 4"),
        ([{"step": 1, "losses": {}}], "losses.jsonl:1: update: expected a whole number"),
        ([], "losses.jsonl: no line"),
        ([{**losses(0, 2.0), "decided_at_step": 0, "signals": {}}], "losses.jsonl:1: not a complete decision"),
        (
            [{"update": 0, "decided_at_step": 0, "signals": {}, "losses": {"poetry": {"mean": 1.0}}}],
            "losses.jsonl:1: losses: unknown domain 'poetry'",
        ),
    ],
)
def test_an_invalid_line_of_losses_is_refused_with_its_file_and_number(versatune, recipe, tmp_path, rows, message):
    file = write_losses(tmp_path / "losses.jsonl", rows)
    called = versatune("simulate", recipe, "--quiet", "--losses", file)
    assert (called.code, called.out) == (2, "")
    assert message in called.err
    assert len(called.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--losses", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--sweep", "mixture.sigma"], "--sweep 'mixture.sigma': expected key=value,value"),
        (["--sweep", "train.steps=1,2"], "--sweep train.steps=1,2: expected a key of mixture"),
        (["--sweep", "mixture.sigme=1,2"], "mixture.sigme: unknown key; did you mean 'sigma'?"),
        (["--sweep", "mixture.sigma=1,2", "--output", "x"], "--output and --plot take the decisions of one setting"),
        (["--steps", "0"], "--steps 0: expected 1 or more"),
        (["--noise", "-1"], "--seed 0, --noise -1.0: expected neither below 0"),
    ],
)
def test_a_wrong_option_is_refused_with_a_message_of_one_line(versatune, recipe, arguments, message):
    called = versatune("simulate", recipe, "--quiet", *arguments)
    assert (called.code, called.out) == (2, "")
    assert called.err.startswith(f"versatune: {message}")
    assert len(called.err.splitlines()) == 1
