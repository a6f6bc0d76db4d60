#!/usr/bin/env bash
# Train on the built-in corpus with two processes on this machine, with or without a GPU. Sets up once; then a few minutes.
# Arguments: key=value overrides, or --fresh to start over.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$ROOT/launcher/environment.sh"

case "${1:-}" in -h | --help)
  echo "usage: bash launcher/quickstart.sh [--fresh] [key=value ...]   (keys as in recipes/quickstart.yaml)"; exit 0 ;;
esac
setup_environment ""
cd "$ROOT"
if [ "${VERSATUNE_TORCH:-}" = cpu ]; then export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu}; fi
processes=2
if has_gpu && [ "${DS_ACCELERATOR:-}" != cpu ] && [ "$(nvidia-smi -L | grep -c GPU)" = 1 ]; then processes=1; fi
export PATH=$VENV/bin:$PATH
exec "$VENV/bin/versatune" train recipes/quickstart.yaml --processes "$processes" "$@"
