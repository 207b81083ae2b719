#!/usr/bin/env bash
# benchmarks/precision.py side by side: each run on THREADS (2) threads, as many at once as
# the cores allow.
#
#     benchmarks/precision.sh [folder] [file of the runs] [runs at once]
#
# Prints the processor first and leaves bf16 out where it has no instructions for it. A finished run
# is a line of the file, so that a stopped script loses only what was under way. PYTHON names the
# interpreter; `taskset -c 4-15 benchmarks/precision.sh` keeps other cores free.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-.k400tiny/precision}
runs=${2:-$folder/runs.jsonl}
cores=$(env -u OMP_NUM_THREADS nproc) # nproc obeys it
threads=${THREADS:-2}
jobs=${3:-$(((cores + threads - 1) / threads))}
python=${PYTHON:-python3}

lscpu | grep "Model name" || true
flags=$(grep -m1 ^flags /proc/cpuinfo | grep -oE "\b(amx_bf16|amx_tile|avx512_bf16|avx512f)\b" || true)
echo "flags:" $flags "; $cores cores, $jobs runs at once"
sides="float32 bf16"
if ! grep -qE "amx_bf16|avx512_bf16" <<<"$flags"; then
  echo "bf16 is left out: this processor has no instructions for it"
  sides="float32"
fi
export OMP_NUM_THREADS=$threads OMP_WAIT_POLICY=PASSIVE
mkdir -p "$folder" "$(dirname "$runs")"
$python -m benchmarks.precision --output_dir "$folder" --only clips
for pair in "9 2" "9 3" "9 4" "4 0" "4 1" "4 2" "9 0" "9 1"; do
  for side in $sides; do echo "$pair $side"; done
done | xargs -P "$jobs" -L 1 bash -c '
  '"$python"' -m benchmarks.precision --output_dir "$0" --runs "$1" \
    --epochs "$2" --seeds "$3" --sides "$4" | grep "^Run(" || echo "failed: $2 $3 $4"' "$folder" "$runs"
$python -m benchmarks.precision --output_dir "$folder" --runs "$runs" --only report
