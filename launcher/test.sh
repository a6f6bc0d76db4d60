#!/usr/bin/env bash
# Set up as quickstart.sh does, then run the tests. Arguments go to pytest: bash launcher/test.sh -m "not slow"
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$ROOT/launcher/environment.sh"

setup_environment "[dev]"
cd "$ROOT"
export PATH=$VENV/bin:$PATH HF_HUB_OFFLINE=1 WANDB_MODE=offline
"$VENV/bin/ruff" check versatune_ds launcher tests benchmarks examples setup.py
exec "$VENV/bin/python" -m pytest "$@"
