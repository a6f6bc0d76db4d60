# Make .venv with everything the project needs; sourced by quickstart.sh and test.sh. A second call does nothing.
#
# VERSATUNE_PYTHON       the Python that makes it (default: the newest python3.x >= 3.10 on the PATH)
# VERSATUNE_TORCH        cuda or cpu: which torch to install (default: cuda where nvidia-smi lists a GPU, else cpu); on a
#                        login node without a GPU, cuda for jobs that have some. Set later, it replaces the other one
# VERSATUNE_VENV         where the environment is made (default: .venv)
# VERSATUNE_TORCH_INDEX  index of torch wheels for machines without a GPU (default: PyTorch's own CPU index)

TORCH_VERSION=2.13.0
CPU_INDEX=${VERSATUNE_TORCH_INDEX:-https://download.pytorch.org/whl/cpu}

log() { printf '%s\n' "versatune: $*" >&2; }
fail() { log "$*"; exit 2; }

find_python() {
  local candidate
  for candidate in ${VERSATUNE_PYTHON:-} python3 python3.13 python3.12 python3.11 python3.10 python; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      echo "$candidate"; return
    fi
  done
  fail "no Python >= 3.10 found; install one, or set VERSATUNE_PYTHON=/path/to/python3"
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; }

# Print which torch to install: VERSATUNE_TORCH, else the one for this machine.
wanted_torch() {
  case "${VERSATUNE_TORCH:-}" in
    cuda | cpu) echo "$VERSATUNE_TORCH" ;;
    "") if has_gpu; then echo cuda; else echo cpu; fi ;;
    *) fail "VERSATUNE_TORCH=$VERSATUNE_TORCH: expected cuda or cpu" ;;
  esac
}

# Print which torch .venv has: cuda (or AMD's), cpu, or nothing. Reading its version file saves a second of importing it.
installed_torch() {
  local file
  for file in "$VENV"/lib/python3*/site-packages/torch/version.py; do
    [ -f "$file" ] || continue
    if grep -qE "^(cuda|hip)\b.*= *['\"]" "$file"; then echo cuda; else echo cpu; fi
    return
  done
}

# Without a GPU on Linux x86-64 the default torch wheel brings gigabytes of CUDA: install a CPU wheel that pip has locally,
# else one of the CPU index. Everywhere else the default wheel is right.
install_torch() {
  if [ "$(wanted_torch)" = cuda ] || [ "$(uname -sm)" != "Linux x86_64" ]; then
    "$PIP" install --quiet "torch>=2.8,<3"
  elif "$PIP" install --quiet --no-index --no-deps "torch==$TORCH_VERSION" 2>/dev/null; then
    log "installed the local CPU wheel of torch $TORCH_VERSION"
  elif curl --silent --fail --max-time 5 --output /dev/null "$CPU_INDEX/torch/" 2>/dev/null \
    || "$PYTHON" -c "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)" "$CPU_INDEX/torch/" 2>/dev/null; then
    "$PIP" install --quiet --index-url "$CPU_INDEX" "torch==$TORCH_VERSION"
  else
    fail "no CPU torch: $CPU_INDEX does not answer; install one into $VENV yourself, or set VERSATUNE_TORCH_INDEX"
  fi
  if [ "${VERSATUNE_TORCH:-}" = cuda ] && [ "$(installed_torch)" = cpu ]; then
    fail "VERSATUNE_TORCH=cuda: pip's index gave a torch without CUDA; install one into $VENV yourself (see pytorch.org)"
  fi
}

# Replace a torch of the other kind if VERSATUNE_TORCH asks for it; otherwise warn of one that leaves a GPU idle.
settle_torch() {
  local wanted installed
  wanted=$(wanted_torch) || exit 2
  installed=$(installed_torch)
  [ -n "$installed" ] && [ "$installed" != "$wanted" ] && [ "$(uname -sm)" = "Linux x86_64" ] || return 0
  if [ -n "${VERSATUNE_TORCH:-}" ]; then
    log "VERSATUNE_TORCH=$wanted: replacing the torch for $installed in $VENV"
    rm -f "$VENV/versatune_setup"  # incomplete until it is replaced
    "$PIP" uninstall --quiet --yes torch
    install_torch
  elif [ "$wanted" = cuda ]; then
    log "this machine has a GPU, but the torch in $VENV is built without CUDA; VERSATUNE_TORCH=cuda replaces it"
  fi
}

# The set-up is complete when the stamp file lists what it was made for; an interrupted one is repeated.
setup_environment() {
  local extras=$1 stamp wanted
  VENV=${VERSATUNE_VENV:-$ROOT/.venv}; PIP=$VENV/bin/pip; PYTHON=$VENV/bin/python
  stamp=$VENV/versatune_setup
  wanted="$extras $(cksum <"$ROOT/setup.py")"
  settle_torch
  if [ -f "$stamp" ] && grep -qxF "$wanted" "$stamp" && [ -x "$PYTHON" ]; then return; fi
  command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null \
    || log "no C++ compiler found; the loss runs in PyTorch instead of our own kernel"
  log "setting up $VENV (once; one to three minutes)"
  [ -x "$PYTHON" ] || "$(find_python)" -m venv "$VENV" || fail "could not make $VENV; on Debian: apt-get install python3-venv"
  "$PYTHON" -c 'import torch' 2>/dev/null || { log "installing torch"; install_torch; }
  log "installing deepspeed, transformers, datasets and the rest"
  "$PIP" install --quiet setuptools wheel
  "$PIP" install --quiet --editable "$ROOT$extras"
  echo "$wanted" >>"$stamp"
}
