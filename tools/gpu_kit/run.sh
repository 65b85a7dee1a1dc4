#!/usr/bin/env bash
# Runs the kit that this script lies in, from the root of the tree that it was made of: bash gpu-kit/run.sh OUT [quick|full]
set -euo pipefail
exec python3 tools/gpu_kit/steps.py "$(cd "$(dirname "$0")" && pwd)" "$@"
