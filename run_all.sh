#!/usr/bin/env bash
# bash run_all.sh        makes .venv, trains the laptop entries (two at a time), writes tables and pictures to results/laptop/
# bash run_all.sh test   makes .venv and runs the tests
# Needs Python 3.10 or newer. PYTHON=python3.12 bash run_all.sh chooses another one. Everything it does twice, it skips the second time.
set -euo pipefail
cd "$(dirname "$0")"
PY=.venv/bin/python
ENTRIES="sudoku_9x9 maze_random maze_perfect sudoku_6x6"  # the longest first

setup() {
  if [ -f .venv/ok ] && cmp -s requirements.txt .venv/ok; then return; fi
  local python=${PYTHON:-python3}
  if ! "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "error: $python is not a Python >= 3.10 with venv; install one, or name it: PYTHON=python3.12 bash run_all.sh" >&2
    exit 1
  fi
  echo "setup  .venv with the packages of requirements.txt (once, a few minutes)"
  "$python" -m venv .venv
  # PyPI's torch for Linux brings 2 GB of CUDA. Without a GPU take the CPU build: where pip already looks, else from PyTorch's index.
  if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then
    local torch; torch=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' requirements.txt)
    $PY -m pip install -q --retries 1 "torch==$torch+cpu" 2>/dev/null ||
      $PY -m pip install -q --retries 1 --timeout 20 "torch==$torch+cpu" --extra-index-url https://download.pytorch.org/whl/cpu 2>/dev/null ||
      echo "setup  no CPU build of torch $torch within reach; taking the default one"
  fi
  $PY -m pip install -q -r requirements.txt
  cp requirements.txt .venv/ok
}

# One phrase about a running entry, from the last lines of its metrics: "maze_perfect 320/600 loss 0.041, validation 95.7 %"
progress() {
  local metrics=runs/laptop/$1/seed0/metrics.jsonl config=runs/laptop/$1/seed0/config.toml text="starts"
  if [ -s "$metrics" ] && [ -s "$config" ]; then
    local of step loss val
    of=$(sed -n 's/^steps = //p' "$config")
    step=$(tail -n 1 "$metrics" | sed -n 's/^{"step": \([0-9]*\).*/\1/p')
    loss=$( (grep '"split": "train"' "$metrics" || true) | tail -n 1 | sed -n 's/.*"loss": \([0-9]*\.[0-9]\{0,3\}\).*/\1/p')
    val=$( (grep '"split": "val"' "$metrics" || true) | tail -n 1 | sed -n 's/.*"exact": \([0-9.]*\).*/\1/p')
    text="$step/$of"
    if [ -n "$loss" ]; then text="$text loss $loss"; fi
    if [ -n "$val" ]; then text="$text, validation $(awk "BEGIN { printf \"%.1f\", 100 * $val }") %"; fi
    if [ "$step" = "$of" ]; then text="$text, testing"; fi
  fi
  echo "$1 $text"
}

train_all() {
  local logs=runs/laptop/logs queue=$ENTRIES began=$SECONDS said=-100 failed="" slot line
  local pids names; pids=("" ""); names=("" "")
  mkdir -p $logs
  export OMP_NUM_THREADS=1
  trap 'for p in "${pids[@]}"; do [ -z "$p" ] || kill -TERM "$p" 2>/dev/null || true; done; wait
        printf "\nstopped; checkpoints are safe, the same command continues\n" >&2; exit 130' INT TERM
  echo "train  two entries at a time, one thread each; logs in $logs/"
  while [ -n "$queue" ] || [ -n "${pids[0]}${pids[1]}" ]; do
    line=""
    for slot in 0 1; do
      if [ -n "${pids[$slot]}" ] && ! kill -0 "${pids[$slot]}" 2>/dev/null; then  # this one has ended
        local name=${names[$slot]} rc=0
        wait "${pids[$slot]}" || rc=$?
        pids[$slot]=""
        if [ -t 1 ]; then printf '\r\033[K'; fi
        if [ $rc -eq 0 ]; then
          echo "       $name: $(tr '\r' '\n' < "$logs/$name.log" | grep -o 'test [0-9.]* % exact.*' | tail -n 1)"
        else
          failed="$failed $name"
          echo "       $name FAILED (exit code $rc): $(tr '\r' '\n' < "$logs/$name.log" | grep -v '^ *$' | tail -n 1)" >&2
        fi
      fi
      if [ -z "${pids[$slot]}" ] && [ -n "$queue" ]; then
        set -- $queue
        names[$slot]=$1; shift; queue=$*
        $PY train.py "sweeps/laptop/${names[$slot]}.toml" > "$logs/${names[$slot]}.log" 2>&1 &
        pids[$slot]=$!
      fi
      if [ -n "${pids[$slot]}" ]; then line="$line | $(progress "${names[$slot]}")"; fi
    done
    if [ -t 1 ]; then
      printf '\r\033[K%s' "$(printf '%4d s%s' $((SECONDS - began)) "$line" | cut -c "1-$(tput cols 2>/dev/null || echo 120)")"
    elif [ -n "$line" ] && [ $((SECONDS - said)) -ge 30 ]; then
      printf '%4d s%s\n' $((SECONDS - began)) "$line"
      said=$SECONDS
    fi
    sleep 1
  done
  trap - INT TERM
  if [ -t 1 ]; then printf '\r\033[K'; fi
  FAILED=$failed
}

case "${1:-all}" in
  test)
    setup
    exec $PY -m pytest -q -rs tests ;;  # -rs: which tests were skipped, and why
  all)
    setup
    train_all
    $PY analyze.py runs/laptop --out results/laptop > /dev/null
    if [ -f runs/laptop/maze_perfect/seed0/summary.json ]; then
      $PY solve.py runs/laptop/maze_perfect/seed0 --picture results/laptop/hero.png > /dev/null
    fi
    cat <<END

made   results/laptop/table.md      accuracy on held-out puzzles, size and cost of each net (also .csv and .json)
       results/laptop/hero.png      a maze solved step by step
       results/laptop/learning.png  how fast they learned; steps.png: what every supervision step adds
       runs/laptop/*/seed0/         the trained nets (best.pt), their settings and curves
       in $(((SECONDS + 30) / 60)) min

next   source .venv/bin/activate
       python solve.py runs/laptop/maze_perfect/seed0 --size 31      # four times the cells it was trained on
       python solve.py runs/laptop/sudoku_9x9/seed0 53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79
       python train.py sweeps/laptop/maze_perfect.toml --seed=1      # another seed; python analyze.py runs/laptop then shows the spread
END
    if [ -n "$FAILED" ]; then
      echo "error: not trained:$FAILED; the reasons stand above and in runs/laptop/logs/, the same command tries again" >&2
      exit 1
    fi ;;
  *)
    echo "usage: bash run_all.sh [test]" >&2
    exit 2 ;;
esac
