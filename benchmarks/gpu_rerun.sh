#!/usr/bin/env bash
# After benchmarks/gpu_suite.sh: again what failed, and what matters most, within 200 seconds.
#
#   benchmarks/gpu_rerun.sh EARLIER OUT_DIR [STAGE ...]
#
# EARLIER is the folder of the first run, or its summary.json or all.tar.gz.
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "gpu_rerun.sh: $# arguments; need the earlier run and OUT_DIR" >&2
  exit 2
fi
earlier=$1
shift
exec "$(dirname "$0")/gpu_suite.sh" "$@" --after "$earlier"
