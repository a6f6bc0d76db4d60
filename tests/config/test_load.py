"""A recipe is read strictly, and every mistake is reported in one line with its key."""

from pathlib import Path

import pytest

from versatune_ds.config import load_config

RECIPE = """
run: {name: mine}
model: {from_config: {model_type: llama}}
data: {synthetic: {}}
train: {steps: 10}
mixture: {reference: {start_fraction: 0.85}}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return path


def test_a_minimal_recipe_is_enough(recipe):
    config = load_config(recipe)
    assert config.run_dir == Path("runs/mine")
    assert config.train.steps == 10
    assert config.mixture.policy == "steer"


def test_overrides_are_typed_and_applied_in_order(recipe):
    config = load_config(recipe, ["mixture.sigma=0.1", "mixture.sigma=0.3", "train.learning_rate=1e-4", "run.name=b"])
    assert (config.mixture.sigma, config.train.learning_rate, config.run.name) == (0.3, 1e-4, "b")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mixture.sigme=0.3", "mixture.sigme: unknown key; did you mean 'sigma'?"),
        ("trian.steps=3", "trian: unknown key; did you mean 'train'?"),
        ("steps=3", "steps: unknown key; did you mean train.steps or reference.steps?"),
        ("train.lr=1e-3", "train.lr: unknown key; here it is train.learning_rate, with the same value"),
        ("data.synthetic.num_rws=3", "data.synthetic.num_rws: unknown key; did you mean 'num_rows'?"),
        ("train.steps=0", "train.steps: expected 1 or more (got 0)"),
        ("train.steps=null", "train.steps: missing; give the length of the run in optimizer steps, or in passes over"),
        ("train.precision=int8", "train.precision: expected 'fp32', 'bf16' or 'fp16' (got 'int8')"),
        ("model.name_or_path=gpt2", "and model.from_config; found both; leave one out, as in model.from_config=null"),
        ("data.folder=rows", "both data.folder and data.synthetic; leave out all but one, as in data.synthetic=null"),
        ("data.synthetic=null", "give exactly one of data.folder, data.domains and data.synthetic; found none"),
        ("run.name=a/b", "run.name: expected a name of letters, digits, '.', '_' and '-', a letter"),
        ("steps", "'steps': expected key=value, for example train.learning_rate=1e-4"),
        ("run.name.x=1", "'run.name.x=1': 'name' is a value, not a section"),
        ("train.steps={", "'train.steps={': the value is not valid YAML; quote it"),
    ],
)  # fmt: skip
def test_a_mistake_is_reported_in_one_line_with_its_key(recipe, override, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole text is compared)
        load_config(recipe, [override])
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_what_a_message_about_two_origins_suggests_is_a_way_out(recipe):
    assert load_config(recipe, ["data.folder=rows", "data.synthetic=null"]).data.folder == Path("rows")


def test_each_of_several_mistakes_has_its_own_line(recipe):
    with pytest.raises(ValueError, match=r"train\.steps.*\n.*mixture\.sigma"):
        load_config(recipe, ["train.steps=-1", "mixture.sigma=-1"])


def test_a_missing_required_key_is_reported(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.replace("train: {steps: 10}", "train: {}"))
    with pytest.raises(ValueError, match=r"^train\.steps: missing; give the length of .*train\.epochs=3\)$"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: {name: a}\nrun: {name: b}\n", r"r\.yaml:2: key 'run' is given twice"),
        ("run: {name: a\n", r"r\.yaml:2: not valid YAML"),
        ("- a\n", r"r\.yaml: expected a mapping with sections"),
        ("run: {name: a\x00}\n", r"r\.yaml: not valid YAML: unacceptable character .*position 13$"),
        ("run: {name: \udcff}\n", r"r\.yaml: not a text file; expected YAML in UTF-8$"),
        ("run: !!python/object/apply:os.system [ls]\n", r"r\.yaml:1: not valid YAML"),
    ],
)
def test_an_invalid_file_is_reported_with_its_line(tmp_path, text, message):
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        load_config(path)


def test_a_missing_recipe_is_reported():
    with pytest.raises(ValueError, match=r"^nowhere\.yaml: no such recipe"):
        load_config("nowhere.yaml")


RECIPES = [
    path
    for path in sorted(Path(__file__).parents[2].glob("recipes/**/*.yaml"))
    if "\nruns:" not in path.read_text()  # a comparison, which tests/comparison reads
]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_of_the_project_is_valid(path):
    needed = ["data.folder=somewhere"] if "folder: null" in path.read_text() else []
    assert load_config(path, needed).train.steps > 0
