"""Test a recipe's labeller on texts whose domains are known: mixtures put together from them, detected again.

    python benchmarks/detect_labels.py RECIPE LABELLED.jsonl [--mixtures 20] [--texts 400] [key=value ...]

Half of the labelled texts correct the labels (`versatune detect --labelled`), the other half is drawn from: shares from
a uniform Dirichlet distribution, then texts. Printed are the total variation between drawn-from and detected shares,
and how many intervals hold the truth, with and without the correction. No model is asked to write anything.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from versatune_ds.config import load_config
from versatune_ds.knowledge.estimate import Shares, estimate
from versatune_ds.knowledge.label_correction import (
    KnownLabels,
    RecalibratedLabeller,
    black_box_shares,
    corrected_estimate,
    recalibrated,
)
from versatune_ds.knowledge.label_quality import quality_of, read_labelled_texts
from versatune_ds.knowledge.label_texts import domain_set_of
from versatune_ds.knowledge.labeller import make_labeller
from versatune_ds.knowledge.reliability.source_error import TestedLabeller, with_source_error
from versatune_ds.training.prepared_data import cache_folder, load_or_train_tokenizer


def main() -> None:
    """Print one line a way to find the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("labelled", type=Path)
    parser.add_argument("--mixtures", type=int, default=20)
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    # Label every known text once.
    config = load_config(arguments.recipe, arguments.overrides)
    cache_dir = cache_folder(config)
    domain_set = domain_set_of(config.data, cache_dir=cache_dir)
    tokenizer = load_or_train_tokenizer(config)
    labeller = make_labeller(config, tokenizer=tokenizer, domain_set=domain_set, cache_dir=cache_dir, folder=cache_dir)
    known = read_labelled_texts(arguments.labelled, domain_set=domain_set)
    labels_NK, ids_N = labeller.label(known.texts), np.array(known.domain_ids)
    quality = quality_of(labels_NK, known.domain_ids, texts="")
    print(
        f"{labeller.describe()['name']}: accuracy {quality.accuracy:.3f}, probability of the right domain "
        f"{quality.mean_probability:.3f}, calibration error {quality.calibration_error:.3f}"
    )
    # Mixtures from one half, corrected by the other.
    assert isinstance(labeller, TestedLabeller), "a fitted labeller"
    found: dict[str, list[tuple[float, float, float]]] = {}
    for seed in range(arguments.mixtures):
        for name, *judgement in one_mixture(labels_NK, ids_N, labeller, num_texts=arguments.texts, seed=seed):
            found.setdefault(name, []).append(tuple(judgement))
    for name, judgements in found.items():
        distances, covered, half_widths = np.array(judgements).T
        print(
            f"{name}: total variation {distances.mean():.3f} (largest {distances.max():.3f}), held "
            f"{covered.mean():.2f}, half-width {half_widths.mean():.3f}"
        )


def one_mixture(
    labels_NK: np.ndarray, ids_N: np.ndarray, labeller: TestedLabeller, *, num_texts: int, seed: int
) -> list[tuple]:
    """Return (way, total variation, share of the intervals that hold the truth, half-width) of one mixture."""
    rng = np.random.default_rng(seed)
    num_domains = labels_NK.shape[1]
    is_known_N = rng.random(len(ids_N)) < 0.5
    truth_K = rng.dirichlet(np.ones(num_domains))
    pools = [np.flatnonzero((ids_N == k) & ~is_known_N) for k in range(num_domains)]
    drawn = np.array([rng.choice(pools[k]) for k in rng.choice(num_domains, num_texts, p=truth_K)])
    sizes_N = np.ones(num_texts)
    before_NK = labels_NK[drawn]
    known = KnownLabels(labels_NK=labels_NK[is_known_N], domain_ids=ids_N[is_known_N].tolist())
    again = RecalibratedLabeller(labeller, known, texts="")
    after_NK = recalibrated(before_NK, again.calibration)
    plain = estimate(before_NK, sizes_N, prior_shift=True, seed=seed, num_draws=300)
    corrected = estimate(after_NK, sizes_N, prior_shift=True, seed=seed, num_draws=300)
    with_error = corrected_estimate(corrected, again, after_NK, sizes_N, prior_shift=True, seed=seed)
    seeds = {"prior_shift": True, "seed": seed}
    between, *_ = with_source_error(plain, labeller.left_out, **seeds)
    complete, *_ = with_source_error(with_error, again.left_out, **seeds)
    mean_K = before_NK.sum(axis=0) / before_NK.sum()
    black_box_K = black_box_shares(after_NK.sum(axis=0), again.quality.confusion_KK)
    return [
        ("mean label", total_variation(mean_K, truth_K), np.nan, np.nan),
        ("EM", *judged(plain.sequences, truth_K)),
        ("EM, error between sources in the interval", *judged(between.sequences, truth_K)),
        ("EM, calibrated on labelled texts", *judged(corrected.sequences, truth_K)),
        ("the same, error of the correction in the interval", *judged(with_error.sequences, truth_K)),
        ("the same, error on the labelled texts in the interval too", *judged(complete.sequences, truth_K)),
        ("black-box shift estimation", total_variation(black_box_K, truth_K), np.nan, np.nan),
    ]


def judged(shares: Shares, truth_K: np.ndarray) -> tuple[float, float, float]:
    """Return the total variation, the share of the intervals that hold the truth, and their mean half-width."""
    is_held_K = (shares.lower_K <= truth_K) & (truth_K <= shares.upper_K)
    distance = total_variation(shares.shares_K, truth_K)
    return distance, float(is_held_K.mean()), float(shares.half_widths_K.mean())


def total_variation(shares_K: np.ndarray, truth_K: np.ndarray) -> float:
    """Return half the sum of absolute differences."""
    return float(0.5 * np.abs(shares_K - truth_K).sum())


if __name__ == "__main__":
    main()
