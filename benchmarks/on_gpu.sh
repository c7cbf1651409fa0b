#!/usr/bin/env bash
# Runs the tests on a CUDA device within a number of seconds, from the root of the repository:
#
#     benchmarks/on_gpu.sh SECONDS [PROCESSES] [more arguments of pytest]
#
# First the suite with --device cuda, then tests/test_cuda.py, which gets a quarter of the time.
# What each of them found is in $OUT (default gpu_out): suite.txt and cuda.txt with the short
# tracebacks, suite.xml and cuda.xml with every test. Ends with 0 if all passed.
set -u
seconds=${1:?seconds}
processes=${2:-8}
shift $(($# < 2 ? $# : 2))
out=${OUT:-gpu_out}
mkdir -p "$out"
export PYTHONPATH="$PWD/src:$PWD/tests:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
# Only the plugins that are named: others that are installed may warn, and a warning is an error.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
# float32 means float32.
export NVIDIA_TF32_OVERRIDE=0
end=$((SECONDS + seconds))

run() { # NAME SECONDS ARGUMENTS: pytest is asked to end by then, and made to 20 seconds later.
    local name=$1 limit=$2
    shift 2
    timeout --signal=INT --kill-after=20 "$limit" python3 -m pytest \
        -p xdist.plugin -p _hypothesis_pytestplugin -o addopts= \
        --import-mode=importlib --device cuda --tb=short -rfE \
        --junitxml="$out/$name.xml" -o junit_logging=no "$@" >"$out/$name.txt" 2>&1
    local code=$?
    # 124: ended by the limit. A long log keeps its ends.
    if [ "$(wc -c <"$out/$name.txt")" -gt 12000000 ]; then
        { head -c 6000000 "$out/$name.txt"; tail -c 6000000 "$out/$name.txt"; } >"$out/$name.cut"
        mv "$out/$name.cut" "$out/$name.txt"
    fi
    echo "== $name: exit $code after $SECONDS s"
    grep -E '^(FAILED|ERROR)' "$out/$name.txt" | cut -c1-160 | tail -n 50
    tail -n 1 "$out/$name.txt"
    return $code
}

python3 -c 'import torch, pytest; print(torch.__version__, pytest.__version__, torch.cuda.get_device_name())'
failed=0
run suite $(((seconds * 3) / 4 - 25)) -n "$processes" --dist=worksteal --ignore=tests/test_cuda.py "$@" || failed=1
if [ -f tests/test_cuda.py ]; then
    run cuda $((end - SECONDS - 25)) -n "$((processes < 4 ? processes : 4))" tests/test_cuda.py || failed=1
fi
exit $failed
