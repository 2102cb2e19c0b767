#!/usr/bin/env bash
# Every measurement on a GPU in under ten minutes, from a bare checkout: torch, triton, transformers and numpy are all
# that is needed. Goes on where one fails; says so at the end, with exit 1.
#
#     benchmarks/gpu/all.sh [--smoke] [--out DIRECTORY]
#
# --smoke runs tiny sizes on the CPU and writes no record unless a directory is given. Peers that PYTHONPATH leads to
# are measured too.
set -uo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="src:benchmarks${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
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

# Seconds after which nothing new begins, in all and in a module; what has begun gets the grace. The last one has the
# most to compile and gets what is left; a second run finds it compiled and gets further.
total=540 grace=35
tasks=(scan:65 decode:100 throughput:130 prefill:60 loss_curve:75 training:400)
# What is tiny is there to be seen through, however slow the machine.
((${#smoke[@]})) && total=10800 tasks=("${tasks[@]/%:*/:1800}")
failed=() written=()
for task in "${tasks[@]}"; do
  name="${task%:*}" seconds="${task#*:}" left="$((total - SECONDS))"
  if ((left <= 0)); then
    failed+=("$name (no time)")
    continue
  fi
  ((seconds < left)) || seconds="$left"
  echo "== $name (at most $seconds s)"
  timeout --kill-after=5 "$((seconds + grace))" "$python" -m "gpu.$name" --budget-seconds "$seconds" \
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
