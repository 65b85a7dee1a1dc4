#!/usr/bin/env bash
# Runs the kit that this script lies in, within the tree that it was made of: bash gpu-kit/run.sh OUT [quick|full]
set -euo pipefail
kit=$(cd "$(dirname "$0")" && pwd)
out=$(realpath -m -- "${1:?expected a folder for the results}")
shift
cd "$kit/.."
exec python3 tools/gpu_kit/steps.py "$kit" "$out" "$@"
