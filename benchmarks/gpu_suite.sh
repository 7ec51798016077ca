#!/usr/bin/env bash
# Builds, tests and measures everything on a machine with an NVIDIA GPU; needs no network.
#
#   benchmarks/gpu_suite.sh OUT_DIR [STAGE ...]      all stages, within 9 minutes
#   benchmarks/gpu_suite.sh --list                   the stages
set -euo pipefail
folder=$(cd "$(dirname "$0")" && pwd)
exec env PYTHONPATH="$folder" PYTHONSAFEPATH=1 "${PYTHON:-python3}" -m gpu_suite "$@"
