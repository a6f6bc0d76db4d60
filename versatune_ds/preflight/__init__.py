"""Find out before a run takes nodes whether it would fail there: `versatune check`; also `inspect` and `simulate`.

Each check is a function from the recipe to findings. All of them run, whatever the others find, and they call the code
that trains wherever that can decide whether something is wrong.
"""

from versatune_ds.preflight.checks import CheckReport, check_recipe
from versatune_ds.preflight.subject import CheckRequest

__all__ = ["CheckReport", "CheckRequest", "check_recipe"]
