"""One setting of other tools: what they call it, and what it is here."""

from __future__ import annotations

from dataclasses import dataclass

SAME = "the same value"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownName:
    """What one setting of other tools is here, whatever they call it.

    A name is matched as the last part of a dotted key. With dots (`lora.r`) it matches only where those parts agree.
    """

    keys: tuple[str, ...] = ()
    """Our keys for it, the first one decisive; empty where there is none."""
    how: str = SAME
    """How the value converts; without keys, why there is none and what to do instead."""
    example: tuple[str, ...] = ()
    """Overrides that are what the other tool's setting would be here."""
    transformers: tuple[str, ...] = ()
    """Names in transformers and TRL."""
    llama_factory: tuple[str, ...] = ()
    """Names in LLaMA-Factory that are not transformers' own."""
    axolotl: tuple[str, ...] = ()
    """Names in Axolotl that are not transformers' own."""
    others: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Return all names of the setting."""
        return (*self.transformers, *self.llama_factory, *self.axolotl, *self.others)

    def answer(self, keys: tuple[str, ...] | None = None) -> str:
        """Return what to write instead, in one clause; `keys` replaces our keys where another section has them too."""
        keys = keys or self.keys
        if not keys:
            return f"there is none here: {self.how}"
        if self.how == SAME:
            return f"here it is {keys[0]}, with {SAME}"
        example = f"; for example {' '.join(self.example)}" if self.example else ""
        return f"here it is {' with '.join(keys)}: {self.how}{example}"
