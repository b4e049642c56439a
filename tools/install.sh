#!/usr/bin/env bash
# Makes the virtual environment if it is missing and installs lanewise with its pinned dependencies.
#   tools/install.sh PYTHON VENV
# A torch that PYTHON already has is reused; else torch is installed with the pinned version and $TORCH_PIP_ARGS
# (for example an index of CPU builds).
set -euo pipefail
python=$1 venv=$2
cd "$(dirname "$0")/.."

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: $("$python" --version) found, lanewise needs Python 3.11 or newer; set PYTHON=python3.11" >&2
  exit 2
}
if [ ! -x "$venv/bin/python" ]; then
  if "$python" -c 'import torch' 2>/dev/null; then
    echo "reusing the torch of $python"
    "$python" -m venv --system-site-packages "$venv"
  else
    "$python" -m venv "$venv"
  fi
fi

constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1
if "$venv/bin/python" -c 'import torch' 2>/dev/null; then
  grep -v '^torch==' constraints/cpu-py311.txt >"$constraints"
else
  cp constraints/cpu-py311.txt "$constraints"
  torch=$(grep '^torch==' "$constraints")
  echo "installing $torch ${TORCH_PIP_ARGS:-}"
  # shellcheck disable=SC2086  # TORCH_PIP_ARGS is a list of arguments
  "$venv/bin/pip" install --quiet "$torch" ${TORCH_PIP_ARGS:-}
fi
echo "installing lanewise and its dependencies into $venv"
"$venv/bin/pip" install --quiet --constraint "$constraints" --editable '.[dev]'
touch "$venv/.installed"
