"""Run `versatune detect`: check the recipe, detect, write prior.json where `mixture.prior` will look for it.

`weights` of prior.json is in the unit of the recipe's weights. The shares of sequences and of tokens are both in the
file, so that nobody has to guess which one was meant. A bar chart is written beside it.
"""

from __future__ import annotations

import datetime
import logging
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from versatune_ds.config import DetectConfig
from versatune_ds.config.load import Recipe
from versatune_ds.config.unread_settings import unread_detect_settings
from versatune_ds.knowledge.agreement import disagreements, low_weight_notes
from versatune_ds.knowledge.detect import detect
from versatune_ds.knowledge.detection import Detection
from versatune_ds.knowledge.labeller import FITTED_LABELLERS, with_chosen_labeller
from versatune_ds.knowledge.labeller_agreement import agreement_table
from versatune_ds.launch.rank_pool import led_world
from versatune_ds.launch.sharded_pool import check_sharded
from versatune_ds.launch.start import check_processes, num_visible_gpus
from versatune_ds.run_folder.atomic import write_json
from versatune_ds.text_table import text_table
from versatune_ds.training.saved_model import load_recipe
from versatune_ds.training.start_checks import StartCheckInput, check_start

logger = logging.getLogger(__name__)

_BAR_CHARACTERS = 30
_LIKELIHOOD_LEGEND = (
    "bits a byte of held-out rows, less is better; baseline: those of a model that knows only spelling and frequent "
    "words; saved:\nthe difference, what the model knows; likelihood: the weights that follow. Their intervals contain "
    "the choice of rows, not the\nerror of the formula."
)
_BOTH_LEGEND = (
    "The weights of prior.json are those of generation, what the model writes; likelihood is a second witness. Where "
    "they differ much,\nstart between them: set mixture.prior by hand, or choose detect.method."
)
_LIBRARIES = ("versatune_ds", "torch", "transformers", "scikit-learn")


def detect_recipe(
    recipe: Recipe,
    overrides: Sequence[str],
    *,
    processes: int | None,
    output: Path | None,
    labelled: Path | None = None,
    is_sharded: bool = False,
) -> str:
    """Detect what a recipe's base model knows and return what to show.

    Args:
        recipe: YAML file, or a recipe in another form.
        overrides: `key=value` texts.
        processes: Processes that draw; None means one per GPU, or 1 without a GPU.
        output: Where prior.json goes; None means `RunConfig.default_output`.
        labelled: JSON Lines of `text` and `domain` to measure the labeller on.
        is_sharded: Whether the model's weights are divided over the processes (ZeRO-3), for one that no GPU holds.

    Raises:
        ValueError: If the recipe, its model, data or labeller is not as expected.
    """
    config = load_recipe(recipe, overrides)
    is_led = led_world() is not None  # by then the launcher has started the processes on purpose
    if not is_led:
        check_start(StartCheckInput(config=config, stage="detect"))
    config = with_chosen_labeller(config)
    for line in unread_detect_settings(config):
        logger.warning("%s", line)
    num_processes = check_processes(processes, num_gpus=0 if is_led else num_visible_gpus())
    if is_sharded:
        check_sharded(num_processes)
    path = output or config.default_output("prior")
    if path.suffix != ".json":
        raise ValueError(f"--output: {path}: expected a file that ends in .json")
    found = detect(config, num_processes=num_processes, is_sharded=is_sharded, labelled=labelled)
    values = prior_values(found, config.detect)
    chart = write_prior(path, values)
    next_step = "versatune reference, then versatune train, with this recipe, which names the file"
    if path != config.mixture.prior:
        next_step = f"versatune reference, then versatune train, with mixture.prior={path}"
    return f"{prior_table(values)}\n\nprior  {path}\nchart  {chart}\nnext   {next_step}"


def prior_values(found: Detection, settings: DetectConfig) -> dict[str, Any]:
    """Return the content of prior.json."""
    names = found.domain_set
    is_written = found.estimate is not None
    reason = f"of {len(found.sequences):,} sequences hardly any is of it" if is_written else "it is predicted worst"
    return {
        "weights": names.to_dict(found.shares.shares_K),
        "weight_unit": found.weight_unit,
        "intervals": found.shares.intervals(names),
        "method": found.method,
        **_values_of_methods(found),
        "low_weights": low_weight_notes(found.shares, domain_set=names, reason=reason),
        **(_values_of_generation(found, settings) if is_written else {}),
        "model": {"name": found.base_model.name, "digest": found.base_model.digest},
        "tokenizer": {"digest": found.tokenizer_digest},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in _LIBRARIES}},
    }


def _values_of_methods(found: Detection) -> dict[str, Any]:
    """Return what each method found, and where two of them differ by more than their errors."""
    names = found.domain_set
    methods: dict[str, Any] = {}
    if found.estimate is not None:
        methods["generation"] = {
            "weights": names.to_dict(found.shares.shares_K),
            "intervals": found.shares.intervals(names),
        }
    if found.likelihood is not None:
        methods["likelihood"] = found.likelihood.to_dict()
    if found.estimate is None or found.likelihood is None:
        return {"methods": methods}
    return {
        "methods": methods,
        "disagreements": disagreements(found.shares, found.likelihood.shares, domain_set=names),
    }


def _values_of_generation(found: Detection, settings: DetectConfig) -> dict[str, Any]:
    """Return what was drawn and labelled, and how."""
    assert found.estimate is not None, "something was drawn"
    names = found.domain_set
    return {
        "shares": {
            unit: {"shares": names.to_dict(shares.shares_K), "intervals": shares.intervals(names)}
            for unit, shares in (("sequences", found.estimate.sequences), ("tokens", found.estimate.tokens))
        },
        "num_sequences": len(found.sequences),
        "rates": {name: round(rate, 6) for name, rate in found.rates().items()},
        "rounds": [names.to_dict(weights_K) for weights_K in found.rounds],
        "is_converged": found.is_converged,
        "interval": settings.interval,
        "tol": settings.tol,
        "sampling": settings.sampling.model_dump(mode="json"),
        "prior_shift": settings.prior_shift and settings.labeller in FITTED_LABELLERS,
        "labeller": found.labeller,
        "label_confidence": round(found.estimate.confidence, 4),
    }


def write_prior(path: Path, values: dict[str, Any]) -> Path:
    """Write prior.json, completely or not at all, and its bar chart; return the chart's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, values)
    return plot_prior(values, path.with_suffix(".png"))


def plot_prior(values: dict[str, Any], path: Path) -> Path:
    """Draw one bar a domain with its interval; return the picture's path."""
    names = list(values["weights"])
    weights = list(values["weights"].values())
    errors = [
        [weight - values["intervals"][name][0] for name, weight in values["weights"].items()],
        [values["intervals"][name][1] - weight for name, weight in values["weights"].items()],
    ]
    figure = Figure(figsize=(7, 1.2 + 0.4 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.barh(names, weights, xerr=errors, color="#0072B2", error_kw={"capsize": 3, "ecolor": "#444444"})
    axes.invert_yaxis()
    unit = f"share of {values['weight_unit']}" if "num_sequences" in values else "weight"
    axes.set_xlabel(f"{unit}, with 95 % interval")
    name = Path(values["model"]["name"]).name
    if "num_sequences" in values:
        axes.set_title(f"What {name} writes: {values['num_sequences']:,} sequences", loc="left")
    else:
        axes.set_title(f"What {name} predicts well", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    return path


def prior_table(values: dict[str, Any]) -> str:
    """Return the weights as a table with bars, and below it the other method and what was unusual."""
    largest = max(values["weights"].values())
    rows = []
    for name, weight in values["weights"].items():
        low, high = values["intervals"][name]
        bar = "#" * round(_BAR_CHARACTERS * weight / largest)
        rows.append((name, f"{weight:.3f}", f"{low:.3f} - {high:.3f}", bar))
    parts = [text_table(("domain", "weight", "95 % interval", ""), rows, num_left=4)]
    if "num_sequences" in values:
        rates = ", ".join(f"{name} {rate:.1%}" for name, rate in values["rates"].items())
        parts.append(f"shares of {values['weight_unit']} in {values['num_sequences']:,} sequences; of these: {rates}")
    if "likelihood" in values["methods"]:
        parts.append(likelihood_table(values))
    if "compared" in values.get("labeller", {}):
        parts.append(agreement_table(values["labeller"]["compared"]))
    notes = [(key, values.get(key, {})) for key in ("low_weights", "disagreements")]
    parts += ["\n".join(f"{name}: {text}" for name, text in texts.items()) for _, texts in notes if texts]
    return "\n\n".join(parts)


def likelihood_table(values: dict[str, Any]) -> str:
    """Return how well the model predicts each domain, and the weights that follow, beside those of generation."""
    found, written = values["methods"]["likelihood"], values["methods"].get("generation")
    header = ["domain", "bits a byte", "baseline", "saved", "likelihood", "95 % interval"]
    rows = []
    for name, weight in found["weights"].items():
        low, high = found["intervals"][name]
        saved, error = found["saved_bits_per_byte"][name], found["saved_bits_per_byte_error"][name]
        bits = (f"{found[key][name]:.3f}" for key in ("bits_per_byte", "baseline_bits_per_byte"))
        row = [name, *bits, f"{saved:.3f} +- {error:.3f}", f"{weight:.3f}", f"{low:.3f} - {high:.3f}"]
        rows.append(row if written is None else [*row, f"{written['weights'][name]:.3f}"])
    if written is None:
        return f"{text_table(tuple(header), [tuple(row) for row in rows])}\n{_LIKELIHOOD_LEGEND}"
    table = text_table((*header, "generation"), [tuple(row) for row in rows])
    return f"{table}\n{_LIKELIHOOD_LEGEND}\n{_BOTH_LEGEND}"
