"""Let `python -m versatune_ds.cli` be the versatune command."""

import sys

from versatune_ds.cli import main

sys.exit(main())
