"""Run the versatune command as `python -m versatune_ds.cli`."""

import sys

from versatune_ds.cli import main

sys.exit(main())
