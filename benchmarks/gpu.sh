#!/usr/bin/env bash
# Every benchmark of a GPU, in less than eight minutes; each is stopped at its share of them.
#
#     benchmarks/gpu.sh [--output_dir folder] [--seconds 460]
#
# The results are files named by the hardware, in benchmarks/results/ or in the folder. It needs
# torch, torchvision and the light packages of the library: neither MLflow nor PyAV nor pytorchvideo.
# PYTHON names the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
usage="usage: benchmarks/gpu.sh [--output_dir folder] [--seconds 460]"
seconds=460
while [[ $# -gt 0 ]]; do
  [[ $# -gt 1 ]] || { echo "$usage" >&2; exit 2; }
  case $1 in
    --output_dir)
      mkdir -p "$2"
      BENCHMARK_RESULTS=$(cd "$2" && pwd)
      export BENCHMARK_RESULTS
      ;;
    --seconds) seconds=$2 ;;
    *) echo "$usage" >&2; exit 2 ;;
  esac
  shift 2
done
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
  echo "there is no GPU that PyTorch can use" >&2
  exit 2
}
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm --format=csv,noheader
failed=0
measure() { # seconds, module, arguments
  local limit=$1 start=$SECONDS
  shift
  timeout --kill-after 10 "$limit" "$python" -u -m "$@" || {
    echo "failed or stopped after $((SECONDS - start)) s: $*" >&2
    failed=1
  }
  echo "$1: $((SECONDS - start)) s"
}
measure $((seconds / 2)) benchmarks.training_step --rounds 3 --steps 10
measure $((seconds / 2)) benchmarks.gpu_rates
exit $failed
