"""Check that a model's positions reach as far as the examples do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from versatune_ds.preflight.memory import estimates_of
from versatune_ds.preflight.rows import encode_sample
from versatune_ds.preflight.subject import Subject
from versatune_ds.training.finding import Finding, fail, warn


def check_positions(subject: Subject) -> Iterator[Finding]:
    """Compare the longest sampled example with the positions: a failure where they are learned, else a warning."""
    size = estimates_of(subject).size
    row_tokens, room = subject.config.data.row_tokens, size.num_learned_positions or size.max_positions
    if room is None or row_tokens <= room:
        return
    names = subject.readable_domains()
    longest, is_whole = 0, True
    with contextlib.suppress(ValueError):  # what is wrong with rows or template is reported by their checks
        longest = max((encode_sample(subject, name).longest_tokens for name in names), default=0)
        is_whole = all(file.is_whole for name in names for file in subject.readable_files(name))
    todo = f"set data.row_tokens={room} or less"
    if size.num_learned_positions is None and longest > room:
        yield warn("model", "data.row_tokens", f"an example of {longest} tokens; the model was made for {room}", todo)
    elif longest > room:
        found = f"an example of {longest} tokens, but the model has learned {room} positions"
        yield fail("model", "data.row_tokens", found, todo)
    elif not (is_whole and longest):
        found = f"{row_tokens} tokens, but the model has {room} positions; no sampled example is longer"
        yield warn("model", "data.row_tokens", found, todo)
