#!/bin/sh
# Train the compared methods, most important first, for SECONDS in JOBS processes, into OUT:
#
#     benchmarks/quality/sweep.sh SECONDS JOBS [OUT [more options of python -m benchmarks.quality]]
#
# The next call continues where this one stopped. Needs only Python with PyTorch and NumPy; the
# classical methods are skipped if scikit-learn is not installed.
set -eu
seconds=$1 jobs=$2 out=${3:-quality}
shift "$(($# < 3 ? $# : 3))"
cd "$(dirname "$0")/../.."
OMP_NUM_THREADS=1 PYTHONPATH=src exec "${PYTHON:-python3}" -m benchmarks.quality --run-only \
    --seconds "$seconds" --jobs "$jobs" --out "$out" "$@"
