#!/bin/bash
# Build, test, sanitise and benchmark on a machine with a GPU, in under 10 minutes, without a network.
#
#   bench/gpu.sh OUT_DIR             logs and JSON results go to OUT_DIR, the short table to the end of the output
#   bench/gpu.sh --dry-run OUT_DIR   on any machine: no build, no sanitizer, the Python parts on the CPU at tiny sizes
#
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
limit=585
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

# ---- build, for the GPU that is there -------------------------------------------------------------------------------
if [ -z "$dry" ]; then
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/gpu.txt"
  export MAX_JOBS="${MAX_JOBS:-$(nproc)}" CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}"
  step build 170 "$python" -m pip install --no-build-isolation --no-deps . -v
fi
step cuda 60 "$python" -c "
import torch, warpup._native as native
print('torch', torch.__version__, '|', native.arrays.build_info())
assert '$device' == 'cpu' or native.has_cuda(), 'no CUDA kernels in this build, or torch sees no GPU'"

# ---- tests ----------------------------------------------------------------------------------------------------------
ignore=() parallel=()
if ! has hypothesis; then
  notes+=("hypothesis is missing: the tests did not run, bench.gpu.sanitize checked the case table in their place")
elif has pytest; then
  has xdist && parallel=(-n "$([ -n "$dry" ] && echo 0 || echo 8)") || notes+=("pytest-xdist is missing: tests ran one by one")
  for module in datasets reasoning_gym jax; do  # what only some tests import
    has $module && continue
    while read -r file; do
      ignore+=("--ignore=$file") && notes+=("$module is missing: left out $file")
    done < <(grep -lE "^(import|from) $module\b" tests/*/test_*.py tests/*/*/test_*.py)
  done
  tests=(tests -k "cuda and not hostcuda")  # the other backends are CI's business
  [ -n "$dry" ] && tests=(tests/test_contract.py -k test_deterministic)
  step tests 150 "$python" -m pytest -q -p no:cacheprovider "${parallel[@]}" "${ignore[@]}" "${tests[@]}"
else
  notes+=("pytest is missing: the tests did not run")
fi

# ---- compute-sanitizer, four tools side by side ---------------------------------------------------------------------
if [ -n "$dry" ]; then
  step sanitize 60 "$python" -m bench.gpu.sanitize --device cpu --sizes grad
elif command -v compute-sanitizer >/dev/null; then
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  pids=() tools=(memcheck racecheck synccheck initcheck) begin=$SECONDS
  for tool in "${tools[@]}"; do
    timeout --kill-after=5 120 compute-sanitizer --tool "$tool" --error-exitcode 99 --print-limit 20 \
      "$python" -m bench.gpu.sanitize >"$out/sanitize_$tool.log" 2>&1 &
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
  notes+=("compute-sanitizer is missing: not run")
  step sanitize 60 "$python" -m bench.gpu.sanitize
fi

# ---- streams, graphs, launches; then speed --------------------------------------------------------------------------
step gpu_checks 120 "$python" -m bench.gpu.gpu_checks --device $device --json "$out/gpu_checks.json"
cases='^(token_logprob|((?! (forward|backward) (bf16|fp32) ).)*$)'  # of the other ops both ways at once only
step bench 240 "$python" -m bench --device $device "${quick[@]}" -k "$cases" --budget 1 --stop-after 150 \
  --json "$out/bench.json"

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
