"""run_all.sh with a stand-in for Python.

What it calls, how it reports failures, what it exits with.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STUB = """#!/bin/bash
echo "$@" >> calls.txt
if [ "$2" = submitit_launch ]; then
  mkdir -p runs/laptop/maze_perfect/seed0
  touch runs/laptop/maze_perfect/seed0/summary.json
  exit ${LAUNCHER:-0}
fi
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


ENTRIES = ["sudoku_9x9", "maze_random", "maze_perfect", "sudoku_6x6"]
FILES = " ".join(f"sweeps/laptop/{entry}.toml" for entry in ENTRIES)
TRAIN = f"-m submitit_launch {FILES} --local --jobs 2"


def test_trains_the_four_laptop_entries_then_writes_tables_and_picture(clone):
    done, calls = bash(clone)
    assert done.returncode == 0, done.stderr
    assert calls == [
        TRAIN,
        "analyze.py runs/laptop --out runs/laptop/analysis",
        "solve.py runs/laptop/maze_perfect/seed0 --picture runs/laptop/analysis/hero.png",
        "solve.py runs/laptop/maze_perfect/seed0 --page runs/laptop/analysis/page.html",
    ]
    for entry in ENTRIES:
        assert (ROOT / f"sweeps/laptop/{entry}.toml").exists()
    assert "runs/laptop/analysis/table.md" in done.stdout


def test_a_failed_entry_stops_neither_tables_nor_pictures(clone):
    done, calls = bash(clone, LAUNCHER="1")
    assert done.returncode == 1 and "not every entry was trained" in done.stderr
    assert len(calls) == 4


@pytest.mark.parametrize("code", [2, 130])
def test_bad_input_or_an_interruption_ends_with_the_launcher_s_code(code, clone):
    done, calls = bash(clone, LAUNCHER=str(code))
    assert done.returncode == code and calls == [TRAIN]


def test_test_checks_the_style_and_runs_pytest_and_another_word_is_refused(clone):
    checks = ["-m ruff check -q .", "-m ruff format -q --check ."]
    tests = "-m pytest -q -rs -n auto --maxprocesses 8 --dist worksteal tests"
    assert bash(clone, "test")[1] == [*checks, tests]
    done, calls = bash(clone, "tset")
    assert done.returncode == 2 and len(calls) == 3
    assert done.stderr == "usage: bash run_all.sh [test]\n"


def test_ci_ends_in_exactly_the_readme_s_test_command():
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert lines[-1] == 'CI=1 exec bash "$(dirname "$0")/../run_all.sh" test'
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_an_old_python_is_refused_in_one_sentence(clone):
    (clone / ".venv/ok").unlink()
    done, _ = bash(clone, "test", PYTHON="false")
    assert (
        done.returncode == 1
        and done.stderr.startswith("error: false is not a Python >= 3.10")
        and done.stderr.count("\n") == 1
    )
