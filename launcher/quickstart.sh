#!/usr/bin/env bash
# Train on the built-in corpus with two processes on this machine, with or without a GPU. Sets up once; then a few minutes.
# Arguments: key=value overrides, or --fresh to start over. With --pretrained, a pretrained model of 135 M parameters on one GPU:
# launcher/pretrained.py.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$ROOT/launcher/environment.sh"

usage() {
  echo "usage: bash launcher/quickstart.sh [--fresh] [key=value ...]   (keys as in recipes/quickstart.yaml)"
  echo "       bash launcher/quickstart.sh --pretrained [--rows FOLDER] [--model PATH] [--name NAME] [--cpu] [key=value ...]"
}

case "${1:-}" in
-h | --help) usage; exit 0 ;;
--pretrained)
  shift
  on_cpu=no
  for word in "$@"; do
    case "$word" in
    -h | --help) usage; exit 0 ;;
    --cpu) on_cpu=yes ;;
    esac
  done
  if [ "$on_cpu" = yes ]; then
    export DS_ACCELERATOR=cpu
  elif ! has_gpu || [ "${DS_ACCELERATOR:-}" = cpu ]; then
    fail "--pretrained needs a GPU, and there is none here; --cpu runs a few steps on the CPU (10 to 30 minutes on two cores)"
  fi
  setup_environment "[gguf,lora]"
  export PATH=$VENV/bin:$PATH PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
  exec "$PYTHON" "$ROOT/launcher/pretrained.py" "$@" ;;
esac
setup_environment ""
cd "$ROOT"
if [ "${VERSATUNE_TORCH:-}" = cpu ]; then export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu}; fi
processes=2
if has_gpu && [ "${DS_ACCELERATOR:-}" != cpu ] && [ "$(nvidia-smi -L | grep -c GPU)" = 1 ]; then processes=1; fi
export PATH=$VENV/bin:$PATH
exec "$VENV/bin/versatune" train recipes/quickstart.yaml --processes "$processes" "$@"
