#!/bin/sh
# Train what is compared, most important first, for SECONDS in JOBS processes, and keep it in OUT:
#
#     benchmarks/quality/sweep.sh SECONDS JOBS [OUT [more options of python -m benchmarks.quality]]
#
# The next call goes on where this one stopped. Needs Python with PyTorch and NumPy alone; the
# classical methods, which need scikit-learn, are left out where it is not installed.
set -eu
seconds=$1 jobs=$2 out=${3:-quality}
shift "$(($# < 3 ? $# : 3))"
cd "$(dirname "$0")/../.."
OMP_NUM_THREADS=1 PYTHONPATH=src exec "${PYTHON:-python3}" -m benchmarks.quality --run-only \
    --seconds "$seconds" --jobs "$jobs" --out "$out" "$@"
