#!/usr/bin/env bash
# Set up as quickstart.sh does, then run the tests. Arguments go to pytest: bash launcher/test.sh -m "not slow"
#
# VERSATUNE_TEST_PROCESSES  processes that share the test files, each at most a few GB (default: 2); 0 for a debugger
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$ROOT/launcher/environment.sh"

setup_environment "[dev]"
cd "$ROOT"
export PATH=$VENV/bin:$PATH HF_HUB_OFFLINE=1 WANDB_MODE=offline
"$VENV/bin/ruff" check versatune_ds launcher tests benchmarks examples setup.py
exec "$VENV/bin/python" -m pytest -n "${VERSATUNE_TEST_PROCESSES:-2}" --dist loadfile --no-loadscope-reorder "$@"
