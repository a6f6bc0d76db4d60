"""Find before nodes are taken what would end a run on them: `versatune check`.

The one idea: each concern is a function from the recipe to findings; all of them run whatever the others find, and
they ask the code that trains wherever it can say by itself whether something is wrong.
"""

from versatune_ds.preflight.report import CheckReport, check_recipe
from versatune_ds.preflight.request import CheckRequest

__all__ = ["CheckReport", "CheckRequest", "check_recipe"]
