#!/usr/bin/env bash
# Runs the tests on a CUDA device within a number of seconds, from the root of the repository:
#
#     benchmarks/on_gpu.sh SECONDS [PROCESSES] [PART] [more arguments of pytest]
#
# PART is cuda (tests/test_cuda.py), suite (all others except CPU-only tests), or both: then cuda comes
# first and gets up to 40 % of the time. Results are in $OUT (default gpu_out): cuda.txt and suite.txt
# list every test with its outcome and short tracebacks; cuda.xml and suite.xml are for programs. Exits
# with 0 if all passed.
set -u
seconds=${1:?seconds}
processes=${2:-6}
part=${3:-both}
shift $(($# < 3 ? $# : 3))
out=${OUT:-gpu_out}
mkdir -p "$out"
export PYTHONPATH="$PWD/src:$PWD/tests:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
# Load only the named plugins: others may warn, and warnings are errors.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
# No TF32.
export NVIDIA_TF32_OVERRIDE=0
failed=0

run() { # NAME SECONDS ARGUMENTS: interrupts pytest at the limit, and kills it 15 seconds later.
    local name=$1 limit=$2
    shift 2
    timeout --signal=INT --kill-after=15 "$limit" python3 -m pytest \
        -p xdist.plugin -p _hypothesis_pytestplugin -o addopts= --import-mode=importlib \
        --device cuda --numprocesses="$processes" --dist=worksteal --tb=short -v -rfE \
        --junitxml="$out/$name.xml" "$@" >"$out/$name.txt" 2>&1
    local code=$?
    [ $code = 0 ] || failed=1
    # Keep both ends of a long log.
    if [ "$(wc -c <"$out/$name.txt")" -gt 12000000 ]; then
        { head -c 6000000 "$out/$name.txt"; tail -c 6000000 "$out/$name.txt"; } >"$out/$name.cut"
        mv "$out/$name.cut" "$out/$name.txt"
    fi
    echo "== $name: exit $code after $SECONDS s (124: its time was over)"
    grep -E '^(FAILED|ERROR)' "$out/$name.txt" | cut -c1-200 | tail -n 40
    tail -n 1 "$out/$name.txt"
}

python3 -c 'import torch, pytest; print(torch.__version__, pytest.__version__, torch.cuda.get_device_name())'
if [ "$part" = cuda ]; then
    run cuda $((seconds - 20)) tests/test_cuda.py "$@"
elif [ "$part" = suite ]; then
    run suite $((seconds - 20)) --ignore=tests/test_cuda.py "$@"
else
    run cuda $(((seconds * 2) / 5 - 20)) tests/test_cuda.py
    run suite $((seconds - SECONDS - 20)) --ignore=tests/test_cuda.py "$@"
fi
exit $failed
