"""run_all.sh with a stand-in for Python: what it calls, how it reports failures, what it exits with."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STUB = """#!/bin/bash
echo "$@" >> calls.txt
case "$1" in
  train.py)
    folder=runs/laptop/$(basename "$2" .toml)/seed0; mkdir -p "$folder"
    sleep 0.3
    if [ "$2" = "sweeps/laptop/$BROKEN.toml" ]; then echo "error: nothing works" >&2; exit 3; fi
    touch "$folder/summary.json"
    echo "done   test 98.4 % exact, 98.4 % valid (n = 512)" ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    shutil.copy(ROOT / "run_all.sh", tmp_path)
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(STUB)
    python.chmod(0o755)
    shutil.copy(ROOT / "requirements.txt", tmp_path / ".venv/ok")
    return tmp_path


def bash(clone, *words, **variables):
    done = subprocess.run(
        ["bash", "run_all.sh", *words],
        cwd=clone,
        capture_output=True,
        text=True,
        env=os.environ | variables,
        timeout=60,
    )
    calls = (clone / "calls.txt").read_text().splitlines() if (clone / "calls.txt").exists() else []
    return done, calls


def test_trains_the_four_laptop_entries_then_writes_tables_and_picture(clone):
    interrupted = clone / "runs/laptop/sudoku_9x9/seed0"
    interrupted.mkdir(parents=True)
    (interrupted / "config.toml").write_text("[train]\nsteps = 1500\n")
    (interrupted / "metrics.jsonl").write_text(
        '{"step": 140, "split": "train", "loss": 0.41234, "exact": 0.5}\n'
        '{"step": 150, "split": "val", "exact": 0.957, "halting_exact": 0.1}\n'
    )
    done, calls = bash(clone)
    assert done.returncode == 0, done.stderr
    assert (
        "0 s | sudoku_9x9 150/1500 loss 0.412, validation 95.7 % | maze_random starts\n"
        in done.stdout
    )
    entries = ["maze_perfect", "maze_random", "sudoku_6x6", "sudoku_9x9"]
    assert sorted(c for c in calls if c.startswith("train.py")) == [
        f"train.py sweeps/laptop/{e}.toml" for e in entries
    ]
    assert calls[4:] == [
        "analyze.py runs/laptop --out results/laptop",
        "solve.py runs/laptop/maze_perfect/seed0 --picture results/laptop/hero.png",
    ]
    for entry in entries:
        assert (ROOT / f"sweeps/laptop/{entry}.toml").exists()
        assert f"{entry}: test 98.4 % exact" in done.stdout
    assert "results/laptop/table.md" in done.stdout


def test_one_failed_entry_is_reported_with_its_reason_and_stops_no_other(clone):
    done, calls = bash(clone, BROKEN="maze_random")
    assert done.returncode == 1
    assert (
        "maze_random FAILED (exit code 3): error: nothing works" in done.stderr
        and "not trained: maze_random" in done.stderr
    )
    assert len(calls) == 6


def test_test_runs_pytest_and_another_word_is_refused(clone):
    assert bash(clone, "test")[1] == ["-m pytest -q -rs tests"]
    done, calls = bash(clone, "tset")
    assert (
        done.returncode == 2
        and done.stderr == "usage: bash run_all.sh [test]\n"
        and len(calls) == 1
    )


def test_ci_calls_exactly_run_all_test():
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert lines[1:] == ['CI=1 exec bash "$(dirname "$0")/../run_all.sh" test'] and os.access(
        ROOT / ".ci/run", os.X_OK
    )


def test_an_old_python_is_refused_in_one_sentence(clone):
    (clone / ".venv/ok").unlink()
    done, _ = bash(clone, "test", PYTHON="false")
    assert (
        done.returncode == 1
        and done.stderr.startswith("error: false is not a Python >= 3.10")
        and done.stderr.count("\n") == 1
    )
