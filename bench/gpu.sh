#!/usr/bin/env bash
# Test and measure everything that needs a GPU, in two halves of under ten minutes: bash bench/gpu.sh first|second|all
#   first   is the machine fit, do the kernels compute, our step, the head's tiles, the tests
#   second  the published experiment, all peers, every op, compute-sanitizer
#   all     both, one after the other (the default)
# Environment:
#   OUT     folder of the results (bench/results/gpu)      LIMIT  seconds of one half (560)
#   KEEP    an archive of OUT without checkpoints, written again after every part: FILE.tgz
#   PY      the Python to use (.venv/bin/python, made where it is missing)
#   TRAIN   key=value … for the training runs and steps, as data.corpus=sotu      BENCH  more options of bench.race.step
#   DRY     1: the same parts at small sizes on a CPU, to find errors before a GPU is at hand
# A part that fails or runs out of time keeps its output, and the next part starts; parts-HALF.tsv lists how each ended.
# The limits of a half's parts add up to LIMIT, so no part takes the time of a later one.
set -u -o pipefail
cd "$(dirname "$0")/.." || exit 1
HALVES=${1:-all}
case $HALVES in
  first | second) ;;
  all) HALVES="first second" ;;
  *)
    echo "usage: bash bench/gpu.sh [first|second|all]" >&2
    exit 2
    ;;
esac
OUT=${OUT:-bench/results/gpu}
LIMIT=${LIMIT:-560}
PY=${PY:-.venv/bin/python}
KEEP=${KEEP:-}
read -r -a train <<< "${TRAIN:-}"
read -r -a bench <<< "${BENCH:-}"
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit 1
# All parts share what Triton compiles, and what it tunes for peers. A killed part must not lose what it printed.
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-${TMPDIR:-/tmp}/tdlm-fast-triton} TRITON_CACHE_AUTOTUNING=1
export PYTHONUNBUFFERED=1 PY
pytest=("$PY" -m pytest -p no:cacheprovider -rfE --tb=short)
small=()                                 # options that make a module small
steps=(--rounds 5)                       # of bench.race.step
experiment=(eval.max_samples=8 eval.text=0) # the final evaluation of a run may otherwise take as long as its training
tests=(tests/kernels/triton tests/training/test_cuda_graph.py tests/kernels/ops/test_attention.py)
races=()
interpreter=()
native=(env TDLM_BACKEND=cuda)
if [ "${DRY:-0}" = 1 ]; then
  small=(--small)
  steps=(--rounds 1 --no-compile --no-memory)
  train=(device=cpu data.path=README.md data.tokenizer=bytes "data.cache=$OUT/tokens" model.width=32 model.heads=2
    model.layers=1 model.inner=32 model.seq_len=32 train.batch_size=8 train.accumulation=1 train.max_steps=6
    eval.every=3 eval.samples=2 eval.probe=2 "${train[@]}")
  experiment=(eval.max_samples=2 eval.text=0)
  tests=(tests/kernels/triton/test_tiles.py)
  races=(-k "corrupt and tiny" --rounds 1)
  interpreter=(env TRITON_INTERPRET=1)
  native=()
  export CUDA_VISIBLE_DEVICES=
fi
for folder in /usr/local/cuda/bin /opt/nvidia/nsight-compute/*; do # where ncu and compute-sanitizer often are
  if [ -d "$folder" ]; then PATH+=":$folder"; fi
done
failed=0

part() { # NAME SECONDS COMMAND…: run it for at most SECONDS, or for the time that is left
  local name=$1 limit=$2 begin=$SECONDS status
  shift 2
  [ "${DRY:-0}" = 1 ] && limit=$((10 * limit)) # a busy computer finds errors too
  local left=$((LIMIT - (SECONDS - began)))
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
    if [ "$status" = ok ]; then tail -n 8 "$OUT/$name.log" | cut -c1-160; else tail -n 30 "$OUT/$name.log" | cut -c1-200; fi
  fi
  [ "$status" = ok ] || failed=1
  ended "$name" $((SECONDS - begin)) "$status"
}

ended() { # NAME SECONDS STATUS: list the part, and save the results so far
  printf '%s\t%s s\t%s\n' "$1" "$2" "$3" | tee -a "$OUT/parts-$half.tsv"
  [ -z "$KEEP" ] && return
  tar -C "$(dirname "$OUT")" --exclude='*.safetensors' --exclude=tokens -czf "$KEEP.new" "$(basename "$OUT")" \
    && mv "$KEEP.new" "$KEEP"
}

with() { # TOOL NAME SECONDS COMMAND…: a part of a tool that may be missing
  local tool=$1
  shift
  if ! command -v "$tool" > /dev/null; then
    ended "$1" 0 "$tool is not on the PATH"
  elif [ "${DRY:-0}" = 1 ]; then
    ended "$1" 0 "$tool is left out of a dry run"
  else
    part "$@"
  fi
}

# shellcheck disable=SC2329  # it runs in a bash of its own, under timeout
install_project() { # csrc/cuda only for this GPU: each architecture costs nvcc half a minute
  local card
  card=$("$PY" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())' 2> /dev/null)
  export TDLM_CUDA_ARCHS=${TDLM_CUDA_ARCHS:-$card}
  if [ "$PY" = .venv/bin/python ]; then make .venv/ready; else "$PY" -m pip install -q --no-build-isolation --no-deps -e .; fi
}
export -f install_project

installed() { # without an installation the link gives everything but the compiled kernels of the CPU and csrc/cuda
  if [ "${DRY:-0}" = 1 ]; then part install 90 "$PY" -c 'import tdlm_fast.kernels'; else part install 90 bash -c install_project; fi
  "$PY" -c 'import tdlm_fast.kernels' 2> /dev/null && return
  ln -sfn ../kernels tdlm_fast/kernels
  ended install-by-link 0 "tdlm_fast/kernels links to kernels"
}

first() {
  rm -rf "$OUT"/{smoke,sweep,step-{ours,paragraphs}-{diffusion,autoregressive}}.json "$OUT/tests.xml"
  with nvidia-smi state 10 nvidia-smi -q -d CLOCK,POWER
  installed
  part doctor 20 "$PY" -m tdlm_fast.doctor
  part smoke 65 "$PY" -m bench.race.smoke "${small[@]}" "${train[@]}" --json "$OUT/smoke.json"
  for objective in diffusion autoregressive; do
    part "step-ours-$objective" 40 "$PY" -m bench.race.step "objective=$objective" data.layout=packed "${train[@]}" \
      "${steps[@]}" --sides ours --json "$OUT/step-ours-$objective.json"
  done
  part step-paragraphs-diffusion 30 "$PY" -m bench.race.step objective=diffusion data.layout=paragraphs "${train[@]}" \
    "${steps[@]}" --sides ours --no-profile --json "$OUT/step-paragraphs-diffusion.json"
  part sweep 80 "${interpreter[@]}" "$PY" -m bench.race.sweep "${small[@]}" --json "$OUT/sweep.json"
  with ncu ncu 40 ncu --set full --clock-control none -k 'regex:^(forward|weight)_kernel$' --launch-skip 2 -c 2 \
    --page details "$PY" -m bench.race.sweep --once
  local parallel=()
  "$PY" -c 'import xdist' 2> /dev/null && parallel=(-n "$(nproc)")
  part tests 145 env OMP_NUM_THREADS=1 TDLM_EXAMPLES=5 "${pytest[@]}" -q --maxfail=20 "--junitxml=$OUT/tests.xml" \
    "${parallel[@]}" "${tests[@]}"
}

second() {
  rm -rf "$OUT"/{step-tiny-diffusion,step-tiny-autoregressive,step-small-diffusion,kernels}.json \
    "$OUT"/tiny-{diffusion,autoregressive}
  installed
  for objective in diffusion autoregressive; do
    part "experiment-$objective" 60 "$PY" -m tdlm_fast.train configs/tiny.yaml "objective=$objective" \
      "run.dir=$OUT/tiny-$objective" "${experiment[@]}" "${train[@]}"
  done
  for objective in diffusion autoregressive; do
    part "step-tiny-$objective" 85 "$PY" -m bench.race.step "objective=$objective" data.layout=packed "${train[@]}" \
      "${steps[@]}" --seconds 0.3 --ready 20 "${bench[@]}" --json "$OUT/step-tiny-$objective.json"
  done
  part kernels 70 "${pytest[@]}" -q bench/race/ops.py --benchmark-disable-gc "${races[@]}" --figures "$OUT/kernels.json"
  # Each kernel once: the smoke part compiled them. Without its cache PyTorch asks CUDA for every tensor.
  for tool in memcheck initcheck; do
    with compute-sanitizer "$tool" 25 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" \
      --error-exitcode 9 "$PY" -m bench.race.smoke --each "${small[@]}"
  done
  part tests-native 20 "${native[@]}" "${pytest[@]}" -q tests/kernels/cuda/test_linear_cross_entropy.py \
    -k "not emulated and not emulator"
  part step-small-diffusion 40 "$PY" -m bench.race.step --config configs/small.yaml data.if_unreachable=sotu \
    "${train[@]}" "${steps[@]}" --ready 20 "${bench[@]}" --json "$OUT/step-small-diffusion.json"
}

for half in $HALVES; do
  began=$SECONDS
  : > "$OUT/parts-$half.tsv"
  if [ "$half" = first ]; then first; else second; fi
done
for half in $HALVES; do cat "$OUT/parts-$half.tsv"; done
echo "results in $OUT, $SECONDS s"
exit $failed
