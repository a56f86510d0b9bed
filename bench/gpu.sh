#!/bin/bash
# Build, test, benchmark and sanitise on a machine with a GPU, in 8 minutes, without a network; the most valuable first.
#
#   bench/gpu.sh OUT_DIR             logs and JSON results go to OUT_DIR, the short table to the end of the output
#   bench/gpu.sh --dry-run OUT_DIR   on any machine: no build, no sanitizer, the Python parts on the CPU at tiny sizes
#
# Binaries that were built elsewhere for this GPU (-DCMAKE_CUDA_ARCHITECTURES=90) and lie in python/warpup are taken as
# they are, which saves the build. What runs on a GPU alone, tests/test_bench_gpu.py runs with torch's CUDA played.
# GIT_HASH names the commit where the tree comes without its history. PYTHON chooses the interpreter.
# A step that fails or runs out of time is named at the end and makes the exit code 1; the others still run.
set -uo pipefail

dry=""
[ "${1:-}" = --dry-run ] && { dry=1; shift; }
out=${1:?usage: bench/gpu.sh [--dry-run] OUT_DIR}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
device=cuda quick=()
[ -n "$dry" ] && { device=cpu; quick=(--quick); }
limit=475
notes=() failed=()

has() { "$python" -c "import $1" 2>/dev/null; }

# step NAME SECONDS COMMAND...: runs it within SECONDS and within what is left in all; the log is OUT_DIR/NAME.log.
step() {
  local name=$1 seconds=$2 begin=$SECONDS rc
  shift 2
  [ $((limit - SECONDS)) -lt "$seconds" ] && seconds=$((limit - SECONDS))
  if [ "$seconds" -le 0 ]; then
    failed+=("$name (no time left)")
    return 1
  fi
  timeout --kill-after=5 "$seconds" "$@" >"$out/$name.log" 2>&1
  rc=$?
  printf '%-12s rc %-3d %4d s   %s\n' "$name" $rc $((SECONDS - begin)) "$(tail -n 1 "$out/$name.log" | cut -c 1-120)"
  if [ $rc -ne 0 ]; then
    failed+=("$name (rc $rc$([ $rc -eq 124 ] && echo ', out of time'))")
    tail -n 15 "$out/$name.log" | cut -c 1-200
  fi
  return $rc
}

# ---- build, for the GPU that is there; or take what was built elsewhere, beside the sources --------------------------
kernels='
import torch, warpup._native as native
print("torch", torch.__version__, "|", native.arrays.build_info())
assert native.has_cuda(), "no CUDA kernels in this build, or torch sees no GPU"'
[ -n "$dry" ] && kernels=${kernels/assert*/}
if [ -z "$dry" ]; then
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/gpu.txt"
  if PYTHONPATH=python "$python" -c "$kernels" >/dev/null 2>&1; then
    export PYTHONPATH=python
    notes+=("the binaries beside the sources were taken, nothing was built")
  else
    export MAX_JOBS="${MAX_JOBS:-$(nproc)}" CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}"
    step build 170 "$python" -m pip install --no-build-isolation --no-deps . -v
  fi
fi
step cuda 60 "$python" -c "$kernels"

# ---- every kernel on small shapes; streams, graphs, launches; the short table ----------------------------------------
small=(--sizes grad small)
[ -n "$dry" ] && small=(--sizes grad)
step small 90 "$python" -m bench.gpu.sanitize --device $device "${small[@]}"
step gpu_checks 60 "$python" -m bench.gpu.gpu_checks --device $device --json "$out/gpu_checks.json"
# The cases of docs/benchmarks.md in their order, the most telling first; of the other ops both ways at once only.
cases='^(token_logprob|((?! (forward|backward) (bf16|fp32) ).)*$)'
step bench 150 "$python" -m bench --device $device "${quick[@]}" -k "$cases" --budget 1 --limit 20 --stop-after 110 \
  --json "$out/bench.json"

# ---- compute-sanitizer on a chosen few, its tools side by side -------------------------------------------------------
chosen='^(token_logprob|group_advantage|moe_plan|moe_route|interval_softmax|sample_step)$'
few=(-m bench.gpu.sanitize --device "$device" -k "$chosen" --sizes grad)
if command -v compute-sanitizer >/dev/null && [ -z "$dry" ]; then
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  pids=() tools=(memcheck racecheck synccheck initcheck) begin=$SECONDS
  left=$((limit - SECONDS < 90 ? limit - SECONDS : 90))
  for tool in "${tools[@]}"; do
    timeout --kill-after=5 $left compute-sanitizer --tool "$tool" --error-exitcode 99 --print-limit 20 \
      "$python" "${few[@]}" >"$out/sanitize_$tool.log" 2>&1 &
    pids+=($!)
  done
  for i in "${!tools[@]}"; do
    wait "${pids[$i]}"
    rc=$?
    summary=$(grep -E "SUMMARY" "$out/sanitize_${tools[$i]}.log" | tail -n 1 | cut -c 1-120)
    printf '%-12s rc %-3d %4d s   %s\n' "${tools[$i]}" $rc $((SECONDS - begin)) "$summary"
    [ $rc -ne 0 ] && failed+=("${tools[$i]} (rc $rc)") && tail -n 12 "$out/sanitize_${tools[$i]}.log" | cut -c 1-200
  done
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
  [ -n "$dry" ] || notes+=("compute-sanitizer is missing: not run")
  step sanitize 60 "$python" "${few[@]}"
fi

# ---- the tests, in what time is left ---------------------------------------------------------------------------------
ignore=() parallel=()
if ! has hypothesis || ! has pytest; then
  notes+=("hypothesis or pytest is missing: the tests did not run")
else
  has xdist && parallel=(-n "$([ -n "$dry" ] && echo 0 || echo 8)") || notes+=("pytest-xdist is missing: tests ran one by one")
  for module in datasets reasoning_gym jax; do  # what only some tests import
    has $module && continue
    while read -r file; do
      ignore+=("--ignore=$file") && notes+=("$module is missing: left out $file")
    done < <(grep -lE "^(import|from) $module\b" tests/*/test_*.py tests/*/*/test_*.py)
  done
  tests=(tests/test_contract.py tests -k "cuda and not hostcuda")  # the other backends are CI's business
  [ -n "$dry" ] && tests=(tests/test_contract.py -k "test_deterministic and glu")
  step tests 240 "$python" -m pytest -q -p no:cacheprovider "${parallel[@]}" "${ignore[@]}" "${tests[@]}"
fi

# ---- the short table, last ------------------------------------------------------------------------------------------
echo
grep -v USDT "$out/gpu_checks.log"
"$python" -m bench --show "$out/bench.json" || true
for note in "${notes[@]}"; do echo "note: $note"; done
echo "all in $SECONDS s; logs and JSON in $out"
if [ ${#failed[@]} -gt 0 ]; then
  printf 'FAILED: %s\n' "${failed[@]}"
  exit 1
fi
