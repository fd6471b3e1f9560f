#!/usr/bin/env bash
# Measure everything that needs a GPU, in one call of under nine minutes: bash bench/gpu.sh
#   OUT     folder of the results (bench/results/gpu)      LIMIT  seconds for all parts together (520)
#   PY      the Python to use (.venv/bin/python, made where it is missing)
#   TRAIN   key=value … for the training runs and steps, as data.corpus=sotu      BENCH  more options of bench.race.step
# A part that fails or runs out of time keeps its output, and the next part starts; parts.tsv lists how each ended.
set -u
cd "$(dirname "$0")/.." || exit 1
OUT=${OUT:-bench/results/gpu}
LIMIT=${LIMIT:-520}
PY=${PY:-.venv/bin/python}
TRAIN=${TRAIN:-}
BENCH=${BENCH:-}
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit 1
: > "$OUT/parts.tsv"
# Figures of an earlier run: no table may mix the two.
rm -rf "$OUT"/{step-tiny-diffusion,step-tiny-autoregressive,step-small-diffusion,kernels}.json "$OUT"/tiny-{diffusion,autoregressive}
failed=0

part() { # NAME SECONDS COMMAND…: run it for at most SECONDS, or for the time that is left
  local name=$1 limit=$2 begin=$SECONDS status
  shift 2
  local left=$((LIMIT - SECONDS))
  [ "$limit" -gt "$left" ] && limit=$left
  if [ "$limit" -lt 5 ]; then
    status="no time left"
  else
    timeout -k 5 "$limit" "$@" > "$OUT/$name.log" 2>&1
    case $? in
      0) status=ok ;;
      124 | 137) status="cut off after $limit s" ;;
      *) status="failed: $(tail -n 1 "$OUT/$name.log" | cut -c1-200 | tr '\t' ' ')" ;;
    esac
  fi
  [ "$status" = ok ] || failed=1
  printf '%s\t%s s\t%s\n' "$name" $((SECONDS - begin)) "$status" | tee -a "$OUT/parts.tsv"
}

install() { # csrc/cuda only for this GPU: each architecture costs nvcc half a minute
  local card
  card=$("$PY" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())' 2> /dev/null)
  export TDLM_CUDA_ARCHS=${TDLM_CUDA_ARCHS:-$card}
  if [ "$PY" = .venv/bin/python ]; then make .venv/ready; else "$PY" -m pip install -q --no-build-isolation --no-deps -e .; fi
}
export -f install
export PY

experiment() { # OBJECTIVE: the published experiment; its summary and curve go to OUT
  local run
  run=$(mktemp -d) || return 1
  # shellcheck disable=SC2086  # TRAIN holds words
  "$PY" -m tdlm_fast.train configs/tiny.yaml "objective=$1" "run.dir=$run/run" $TRAIN
  local status=$?
  mkdir -p "$OUT/tiny-$1" && cp "$run"/run/{summary.json,metrics.jsonl,config.yaml} "$OUT/tiny-$1/"
  rm -rf "$run"
  return $status
}
export -f experiment
export OUT TRAIN

part install 90 bash -c install
part doctor 15 "$PY" -m tdlm_fast.doctor
# Most of the tests' time is Triton's compiler, which takes one core a process.
parallel=$("$PY" -c 'import xdist' 2> /dev/null && echo "-n $(($(nproc) / 2 + 1))")
# shellcheck disable=SC2086
part tests 110 "$PY" -m pytest -q -p no:cacheprovider $parallel tests/kernels/triton tests/training/test_cuda_graph.py tests/kernels/ops/test_attention.py
part tests-native 25 env TDLM_CUDA_BACKEND=native "$PY" -m pytest -q -p no:cacheprovider tests/kernels/cuda/test_linear_cross_entropy.py -k "not emulated"
for objective in diffusion autoregressive; do
  # shellcheck disable=SC2086
  part "step-tiny-$objective" 65 "$PY" -m bench.race.step "objective=$objective" $TRAIN $BENCH --json "$OUT/step-tiny-$objective.json"
done
for objective in diffusion autoregressive; do
  part "experiment-$objective" 30 bash -c "experiment $objective"
done
part kernels 200 "$PY" -m pytest -q -p no:cacheprovider bench/race/ops.py --benchmark-disable-gc --figures "$OUT/kernels.json"
if command -v compute-sanitizer > /dev/null; then
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  part sanitizer 60 compute-sanitizer --tool memcheck --error-exitcode 9 "$PY" -m pytest -q -x -p no:cacheprovider tests/kernels/triton
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
  printf 'sanitizer\t0 s\tcompute-sanitizer is not on the PATH\n' | tee -a "$OUT/parts.tsv"
fi
# shellcheck disable=SC2086
part step-small-diffusion 60 "$PY" -m bench.race.step --config configs/small.yaml data.if_unreachable=sotu $TRAIN $BENCH --json "$OUT/step-small-diffusion.json"
echo "results in $OUT, $SECONDS s"
exit $failed
