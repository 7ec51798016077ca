#!/usr/bin/env bash
# Trains, searches, samples and scores within minutes on a machine with an NVIDIA GPU; no network.
#
#   benchmarks/gpu_train.sh OUT_DIR --minutes 7 --data ARCHIVE_OR_FOLDER --features FILE
#   benchmarks/gpu_train.sh --help             options, what comes out, what a second call needs
set -euo pipefail
folder=$(cd "$(dirname "$0")" && pwd)
exec env PYTHONPATH="$folder${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1 \
    "${PYTHON:-python3}" -m gpu_train "$@"
