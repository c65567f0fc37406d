#!/usr/bin/env bash
# bash run_all.sh        makes .venv, trains the laptop entries (two at a time), writes tables and pictures to runs/laptop/analysis/
# bash run_all.sh test   makes .venv, checks the style of the code and runs the tests
# Needs Python 3.10 or newer. PYTHON=python3.12 bash run_all.sh chooses another one.
# Everything it does twice, it skips the second time.
set -euo pipefail
cd "$(dirname "$0")"
PY=.venv/bin/python
ENTRIES="sudoku_9x9 maze_random maze_perfect sudoku_6x6"  # the longest first
OUT=runs/laptop/analysis

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

case "${1:-all}" in
  test)
    setup
    $PY -m ruff check -q .
    $PY -m ruff format -q --check .
    # a process per core; -rs: which tests were skipped, and why
    exec $PY -m pytest -q -rs -n auto --maxprocesses 8 --dist worksteal tests ;;
  all)
    setup
    echo "train  two entries at a time, one thread each"
    export OMP_NUM_THREADS=1
    code=0
    $PY -m submitit_launch $(printf 'sweeps/laptop/%s.toml ' $ENTRIES) --local --jobs 2 || code=$?
    if [ $code -gt 1 ]; then exit $code; fi  # bad input, or interrupted: the same command continues
    $PY analyze.py runs/laptop --out $OUT > /dev/null
    if [ -f runs/laptop/maze_perfect/seed0/summary.json ]; then
      $PY solve.py runs/laptop/maze_perfect/seed0 --picture $OUT/hero.png > /dev/null
      $PY solve.py runs/laptop/maze_perfect/seed0 --page $OUT/page.html > /dev/null
    fi
    cat <<END

made   $OUT/table.md      accuracy on held-out puzzles, size and cost of each net (also .csv and .json)
       $OUT/hero.png      a maze solved step by step
       $OUT/learning.png  how fast they learned; steps.png: what every supervision step adds
       $OUT/page.html     the net to play with, in any browser
       runs/laptop/*/seed0/              the trained nets (best.pt), their settings and curves
       in $(((SECONDS + 30) / 60)) min

next   source .venv/bin/activate
       python solve.py runs/laptop/maze_perfect/seed0 --size 31      # four times the cells it was trained on
       python solve.py runs/laptop/sudoku_9x9/seed0 53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79
       python train.py sweeps/laptop/maze_perfect.toml --seed=1      # another seed; python analyze.py runs/laptop then shows the spread
END
    if [ $code -ne 0 ]; then
      echo "error: not every entry was trained; the reasons stand above, the same command tries again" >&2
      exit 1
    fi ;;
  *)
    echo "usage: bash run_all.sh [test]" >&2
    exit 2 ;;
esac
