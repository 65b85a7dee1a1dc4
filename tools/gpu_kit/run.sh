#!/usr/bin/env bash
# Runs the kit in this script's folder, within the tree that it was built from: bash gpu-kit/run.sh OUT [quick|full]
set -euo pipefail
kit=$(cd "$(dirname "$0")" && pwd)
out=$(realpath -m -- "${1:?expected a folder for the results}")
shift
cd "$kit/.."
exec python3 tools/gpu_kit/steps.py "$kit" "$out" "$@"
