"""Check that a saved model's files are complete, and that its positions reach as far as the examples do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from versatune_ds.model.build import check_model_weights
from versatune_ds.model.named_model import check_saved_model
from versatune_ds.preflight.finding import Finding, fail, ok, warn
from versatune_ds.preflight.memory import estimates_of
from versatune_ds.preflight.memory_estimate import ModelSize
from versatune_ds.preflight.rows import encode_sample
from versatune_ds.preflight.subject import Subject


def check_model(subject: Subject) -> Iterator[Finding]:
    """Compare weights with config, and examples with positions; ValueError for a model that cannot be the one named."""
    model = subject.config.model
    check_saved_model(model)
    if check_model_weights(model):
        yield ok("model", "model.name_or_path", "names and shapes of its weights are those of its config")
    yield from _check_positions(subject, estimates_of(subject).size)


def _check_positions(subject: Subject, size: ModelSize) -> Iterator[Finding]:
    """Compare the longest sampled example with the positions: a failure where they are learned, else a warning."""
    row_tokens, room = subject.config.data.row_tokens, size.num_learned_positions or size.max_positions
    if room is None or row_tokens <= room:
        return
    names = subject.readable_domains()
    longest, is_whole = 0, True
    with contextlib.suppress(ValueError):  # what is wrong with rows or template is reported by their checks
        longest = max((encode_sample(subject, name).longest_tokens for name in names), default=0)
        is_whole = all(file.is_whole for name in names for file in subject.sound_files(name))
    todo = f"set data.row_tokens={room} or less"
    if size.num_learned_positions is None and longest > room:
        yield warn("model", "data.row_tokens", f"an example of {longest} tokens; the model was made for {room}", todo)
    elif longest > room:
        found = f"an example of {longest} tokens, but the model has learned {room} positions"
        yield fail("model", "data.row_tokens", found, todo)
    elif not (is_whole and longest):
        found = f"{row_tokens} tokens, but the model has {room} positions; no sampled example is longer"
        yield warn("model", "data.row_tokens", found, todo)
