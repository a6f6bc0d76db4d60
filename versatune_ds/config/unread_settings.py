"""Find keys of a recipe that have no effect, given its other keys.

A key set to its default is not listed: a recipe may spell out defaults. Sections of commands of their own (reference,
slurm) are not checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from versatune_ds.config.mixture import MixtureConfig
from versatune_ds.config.recipe import RunConfig
from versatune_ds.config.section import Section
from versatune_ds.mixture.policies import POLICIES

_OFF_IN_PAPER = ("sigma_interval_steps", "safeguards.")

_OTHERS: dict[str, tuple[Callable[[RunConfig], bool], str]] = {
    "train.decay_fraction": (
        lambda c: c.train.learning_rate_schedule != "wsd",
        "only train.learning_rate_schedule=wsd reads it",
    ),
    "train.min_learning_rate_fraction": (
        lambda c: c.train.learning_rate_schedule == "constant",
        "train.learning_rate_schedule=constant never falls",
    ),
    "model.tokenizer_vocab_size": (
        lambda c: bool(c.model.tokenizer or c.model.name_or_path),
        "only a tokenizer trained on the data has this size, and the recipe names one",
    ),
    "data.valid_fraction": (
        lambda c: (
            c.data.synthetic is not None
            or (c.data.domains is not None and all(files.valid is not None for files in c.data.domains.values()))
        ),
        "every domain has held-out examples of its own",
    ),
    "validation.min_examples_per_domain": (
        lambda c: c.validation.target_standard_error is None,
        "only validation.target_standard_error reads it",
    ),
}
"""Key -> (whether it has no effect, why)."""

_LABELLERS: dict[str, tuple[str, ...]] = {
    "detect.embedding.name_or_path": ("embedding", "openai", "hf"),  # the language models are compared with it
    "detect.prior_shift": ("embedding", "classifier"),
    "detect.descriptions": ("embedding", "openai", "hf"),
    "detect.label_characters": ("openai", "hf"),
    "detect.openai": ("openai",),
    "detect.hf": ("hf",),
}
"""Key -> the labellers that read it; all read a key that is not here."""

_LIKELIHOOD = ("detect.likelihood_rows",)
"""Keys that `detect.method=generation` does not read; `likelihood` reads no other."""


def unread_settings(config: RunConfig, *, named: Sequence[str] | None = None) -> list[str]:
    """Return one line for each reason why keys that a recipe sets have no effect.

    Args:
        config: The recipe.
        named: Keys or sections to check, such as those of overrides; by default all that differ from their default.
    """
    keys = list(_set_keys(config, with_defaults=named is not None))
    if named is not None:
        keys = [key for key in keys if any(f"{key}.".startswith(f"{name}.") for name in named)]
    others = [key for key in keys if key in _OTHERS and _OTHERS[key][0](config)]
    return [
        *_of_policy(keys, config.mixture),
        *(f"{key}: not read: {_OTHERS[key][1]}; leave it out" for key in others),
    ]


def unread_detect_settings(config: RunConfig) -> list[str]:
    """Return one line for each reason why keys of `detect` that a recipe sets have no effect."""
    keys = list(_set_keys(config, with_defaults=False))
    keys += [f"detect.{part}" for part in ("openai", "hf") if getattr(config.detect, part) is not None]
    # Keys of the other method.
    method = config.detect.method
    own = [key for key in keys if key.startswith("detect.") and key != "detect.method"]
    unread = [key for key in own if method != "both" and (key in _LIKELIHOOD) != (method == "likelihood")]
    lines = [f"{', '.join(unread)}: not read: detect.method={method} does not read {_it(unread)}"] if unread else []
    # Keys of other labellers.
    for key in keys:
        if key in unread:
            continue
        readers = _LABELLERS.get(key, (config.detect.labeller,))
        if config.detect.labeller not in readers:
            only = (
                f"detect.labeller={readers[0]} reads"
                if len(readers) == 1
                else f"the labellers {', '.join(readers)} read"
            )
            lines.append(f"{key}: not read: only {only} it; leave it out")
    return lines


def _set_keys(section: Section, *, with_defaults: bool, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys that were set; without `with_defaults`, only those that differ from their default."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if name not in section.model_fields_set:
            continue
        if isinstance(value, Section):
            yield from _set_keys(value, with_defaults=with_defaults, prefix=f"{prefix}{name}.")
        elif with_defaults or value != field.get_default(call_default_factory=True):
            yield f"{prefix}{name}"


def _of_policy(keys: Sequence[str], settings: MixtureConfig) -> list[str]:
    """Return lines for the keys of `mixture` that its policy, or the paper's rule, does not read."""
    rule, own = settings.rule, [key.removeprefix("mixture.") for key in keys if key.startswith("mixture.")]
    unread = [key for key in own if readers_of(key) and key not in rule.all_reads]
    if rule.target == "optional" and settings.target is None and "target_share" in own:
        unread.append("target_share")
    lines = []
    # Keys that other policies read.
    if unread:
        readers = "; ".join(f"{key}: {', '.join(readers_of(key))}" for key in unread)
        names = ", ".join(f"mixture.{key}" for key in unread)
        with_target = [f"{name} with a target" if name == rule.name else name for name in readers_of("target_share")]
        lines.append(
            f"{names}: policy {settings.policy!r} does not read {_it(unread)}; leave {_it(unread)} out, or choose a "
            f"policy that does ({readers if unread != ['target_share'] else ', or '.join(reversed(with_target))})"
        )
    is_reducing = "safeguards.overfit" in own and settings.safeguards.overfit == "reduce"
    if is_reducing and rule.is_fixed and not settings.paper:
        lines.append(
            f"mixture.safeguards.overfit: policy {settings.policy!r} is a fixed mixture, which no safeguard changes: "
            "over-fitting is only reported; set overfit: warn, or choose another policy"
        )
    # Keys that the paper's rule ignores.
    off = [key for key in own if settings.paper and key.startswith(_OFF_IN_PAPER) and key not in unread]
    if off:
        names = ", ".join(f"mixture.{key}" for key in off)
        lines.append(f"{names}: mixture.paper=true switches {_it(off)} off; leave {_it(off)} out, or paper")
    return lines


def readers_of(key: str) -> list[str]:
    """Return the policies that read a key of `mixture`; none for a key that every policy reads."""
    return sorted(name for name, policy in POLICIES.items() if key in policy.all_reads)


def _it(keys: Sequence[str]) -> str:
    return "it" if len(keys) == 1 else "them"
