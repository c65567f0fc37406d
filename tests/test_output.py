"""Where the output leads is no reason to stop: full, closed, a pipe to head, few letters."""

import os
import shlex
import subprocess
import sys

import pytest

import tiny
from test_analyze import fake

TRAIN = {"train": {"steps": 30, "eval_every": 10}}
# Neither the locale nor Python's UTF-8 mode gives this program more than ASCII.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with an entry, a trained run and runs to analyse, all below a name with letters."""
    folder = tmp_path_factory.mktemp("output") / "é文"
    folder.mkdir()
    tiny.entry(folder, "tiny.toml", **TRAIN)
    tiny.run(folder / "runs/maze/seed0", data={"task": "maze", "size": 5}, model={"mixer": "conv"})
    fake(folder / "runs/names\x1b[2J$ é文/seed0")
    return folder


def commands(work) -> dict[str, list]:
    """Every program, called so that it prints several lines."""
    return {
        "analyze": ["analyze.py", work / "runs", f"--out={work / 'tables'}"],
        "solve": ["solve.py", work / "runs/maze/seed0", "--steps=6", f"--out={work / 'solved'}"],
        "launcher": ["-m", "submitit_launch", work / "tiny.toml", "--dry-run", "--local"],
        "help": ["solve.py", "--help"],
        "data": ["data.py", "--help"],
        "bench": ["bench.py", "--help"],
        "probes": ["probes.py", "--help"],
    }


def run(work, name: str, shell: str, **variables) -> subprocess.CompletedProcess:
    """A program behind a line of bash, in which "$@" is the program."""
    words = [sys.executable, *commands(work)[name]]
    return subprocess.run(
        ["bash", "-c", shell, "bash", *map(str, words)],
        cwd=tiny.ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["analyze", "solve", "launcher"])
@pytest.mark.parametrize(
    "shell",
    [
        '"$@" > /dev/full',
        'set -o pipefail; "$@" | head -n 1',
        '"$@" >&-',
        '"$@" <&- >&- 2>&-',
        '"$@" > /dev/full 2>&1',
    ],
)
def test_an_output_that_takes_nothing_ends_no_program(name, shell, work):
    done = run(work, name, shell)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["help", "data", "bench", "probes"])
def test_an_output_that_takes_nothing_ends_no_help(name, work):
    done = run(work, name, '"$@" > /dev/full')
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["analyze", "solve", "launcher"])
def test_a_terminal_that_has_not_the_letters_of_a_path_shows_escapes(name, work):
    for variables in ({"PYTHONIOENCODING": "ascii"}, ASCII):
        done = run(work, name, '"$@"', **variables)
        # Names that the whole system has no letters for are no names for a job.
        refused = name == "launcher" and variables is ASCII
        assert done.returncode == 2 * refused and done.stdout.isascii(), done.stderr
        assert done.stderr.count("\n") == refused and "\x1b" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("shell", ['"$@" > /dev/full 2>&1', '"$@" 2>&1 | true', '"$@" >&- 2>&-'])
def test_training_goes_on_without_an_output(shell, work, tmp_path):
    words = [sys.executable, tiny.ROOT / "train.py", work / "tiny.toml", f"--out={tmp_path}"]
    subprocess.run(
        ["bash", "-c", shell, "bash", *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    (summary,) = tmp_path.rglob("summary.json")
    assert len(tiny.lines(summary.parent, "val")) == 3


@pytest.mark.slow
def test_runs_of_the_launcher_go_on_where_its_own_output_is_closed(work, tmp_path):
    words = ["-m", "submitit_launch", work / "tiny.toml", "--local", f"--out={tmp_path}"]
    done = subprocess.run(
        ["bash", "-c", '"$@" > /dev/full 2>&1', "bash", sys.executable, *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=tiny.ROOT,
        timeout=300,
    )
    assert done.returncode == 0 and list(tmp_path.rglob("summary.json"))


def test_without_standard_input_a_puzzle_is_empty(work):
    words = commands(work)["solve"][:2]
    done = subprocess.run(
        ["bash", "-c", '"$@" - <&-', "bash", sys.executable, *map(str, words)],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.startswith("error: the puzzle is empty")
    assert done.stderr.count("\n") == 1


def test_the_command_at_the_end_of_a_run_can_be_pasted(tmp_path, capsys):
    folder = tmp_path / "two words; $(touch pasted)"
    tiny.run(folder)
    (pasted,) = capsys.readouterr().out.partition("next: ")[2].splitlines()
    assert shlex.split(pasted) == ["python", "solve.py", str(folder)]
