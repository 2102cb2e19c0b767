#!/usr/bin/env bash
# Every measurement on a GPU in under ten minutes, from a bare checkout: torch, triton, transformers and numpy are all
# that is needed. Goes on where one fails; says so at the end, with exit 1.
#
#     benchmarks/gpu/all.sh [--smoke] [--out DIRECTORY]
#
# --smoke runs tiny sizes on the CPU and writes no record unless a directory is given.
set -uo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="src:benchmarks" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
python="${PYTHON:-python3}"

smoke=() out=benchmarks/results is_given=false
while (($#)); do
  case "$1" in
    --smoke) smoke=(--smoke) ;;
    --out) [[ $# -ge 2 ]] || { echo "error: --out needs a directory" >&2; exit 2; }; out="$2" is_given=true; shift ;;
    *) echo "error: unknown option $1; allowed are --smoke and --out DIRECTORY" >&2; exit 2 ;;
  esac
  shift
done
logs="$(mktemp -d)"
trap 'rm -rf "$logs"' EXIT
if ((${#smoke[@]})) && ! $is_given; then out="$logs/results"; fi

# Seconds after which a module begins nothing new; what it has begun gets a few more.
failed=() written=()
for task in scan:50 decode:75 throughput:130 prefill:60 training:165 loss_curve:60; do
  name="${task%:*}" seconds="${task#*:}"
  # What is tiny is there to be seen through, however slow the machine.
  ((${#smoke[@]})) && seconds=1800
  echo "== $name (at most $seconds s)"
  timeout --kill-after=5 "$((seconds + 15))" "$python" -m "gpu.$name" --budget-seconds "$seconds" \
    ${smoke[@]+"${smoke[@]}"} --out "$out" 2>&1 | tee "$logs/$name.log"
  status="${PIPESTATUS[0]}"
  written+=("$logs/$name.log")
  ((status == 0)) || failed+=("$name (exit $status)")
done

echo
"$python" -m gpu.summary "${written[@]}" || failed+=("summary")
if ((${#failed[@]})); then
  echo "failed: ${failed[*]}"
  exit 1
fi
