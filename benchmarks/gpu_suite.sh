#!/usr/bin/env bash
# Tests and measures everything on a machine with an NVIDIA GPU; needs no network.
#
#   benchmarks/gpu_suite.sh OUT_DIR [STAGE ...]      all stages, within 560 seconds
#   benchmarks/gpu_suite.sh --list                   the stages
#   benchmarks/gpu_suite.sh --prebuild FOLDER        only builds, on a machine without a GPU; there:
#   benchmarks/gpu_suite.sh OUT_DIR --build FOLDER   uses it
set -euo pipefail
folder=$(cd "$(dirname "$0")" && pwd)
exec env PYTHONPATH="$folder" PYTHONSAFEPATH=1 "${PYTHON:-python3}" -m gpu_suite "$@"
