"""What several test files share: a net so small that a whole run takes a fraction of a second."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace  # noqa: F401, for tests
from pathlib import Path

import pytest
import torch

from config import build, command_line, known_only, load_config, merge
from runs import run_folder
from train import Config, Run, train

ROOT = Path(__file__).resolve().parent.parent
ENTRY = {  # 4x4 Sudoku, 3298 parameters, 10 steps
    "hypothesis": "A tiny net runs.",
    "data": {"task": "sudoku", "size": 4, "train_rows": 40, "val_rows": 10, "test_rows": 10},
    "model": {
        "dim": 16,
        "mixer": "pool",
        "positions": "none",
        "prefix": 0,
        "n_layers": 1,
        "heads": 2,
        "multiple": 8,
        "expansion": 1.0,
        "T": 2,
        "n": 1,
        "n_sup": 3,
        "q_from": "mean",
    },
    "train": {
        "steps": 10,
        "batch_size": 4,
        "warmup": 2,
        "lr": 0.01,
        "log_every": 1,
        "eval_every": 5,
        "ckpt_minutes": 60.0,
        "threads": 1,
        "dtype": "float32",
        "compile": "off",
        "device": "cpu",
    },
}
ATTENTION = {
    "mixer": "attention",
    "positions": "rope",
    "prefix": 1,
    "q_from": "first",
}  # with a puzzle embedding


def config(seed: int = 0, out: str = "runs", **tables) -> Config:
    """The tiny config; tables override: config(train={"steps": 3}).

    With another data.task its own keys: what a Sudoku alone has is dropped.
    """
    values = merge(ENTRY, tables) | {"seed": seed, "out": out}
    cls = Config.of(values["data"]["task"])
    return build(cls, known_only(cls, values))


def entry(folder: Path, name: str = "tiny.toml", **tables) -> Path:
    """The tiny entry as a file."""
    values = merge(ENTRY, tables)
    lines = [f"{k} = {json.dumps(v)}" for k, v in values.items() if not isinstance(v, dict)]
    for table, keys in values.items():
        if isinstance(keys, dict):
            lines += [f"[{table}]", *(f"{k} = {json.dumps(v)}" for k, v in keys.items())]
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def run(folder: Path, before_step: Callable[[Run], None] | None = None, **tables) -> dict:
    """Trains in this process; the summary."""
    return train(config(**tables), folder, before_step=before_step)


def command(*words, before_step: Callable[[Run], None] | None = None) -> dict:
    """What `python train.py WORDS` does, in this process and without its exit codes."""
    entry, overrides = command_line(Config, [str(word) for word in words], "")
    cfg = load_config(Config, entry, overrides)
    return train(cfg, run_folder(cfg, entry), str(entry), before_step)


class Broken(Exception):
    """What ends a run in the middle."""


def at(step: int, action: Callable[[], None]) -> Callable[[Run], None]:
    """For train's before_step: before the n-th step of the run, `action` is called."""

    def before_step(run: Run) -> None:
        if run.step + 1 == step:
            action()

    return before_step


def throw(error: Exception) -> Callable[[], None]:
    """An action that raises."""

    def action() -> None:
        raise error

    return action


def interrupted(folder: Path, step: int = 7, **tables) -> None:
    """A run that dies before its n-th step; its last checkpoint is that of step 5."""
    with pytest.raises(Broken):
        run(folder, at(step, throw(Broken())), **tables)


def lines(folder: Path, split: str = "") -> list[dict]:
    """metrics.jsonl without the clock."""
    every = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k != "seconds"}
        for line in every
        if split in ("", line["split"])
    ]


def checkpoint(folder: Path, name: str = "ckpt.pt") -> dict:
    """A checkpoint without the clock, the place of its folder, and what computed it.

    Loaded as anybody would.
    """
    state = torch.load(folder / name, weights_only=True)
    del state["config"]["out"]
    return {k: v for k, v in state.items() if k not in ("seconds", "stretches")}


def differences(a, b, path: str = "") -> list[str]:
    """Where two nests of dicts, lists, tensors and values are not the same to the bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{path}: keys {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [d for k in a for d in differences(a[k], b[k], f"{path}/{k}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return (
            [f"{path}: {len(a)} and {len(b)} items"]
            if len(a) != len(b)
            else [d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f"{path}/{i}")]
        )
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [path]
    return [] if type(a) is type(b) and a == b else [f"{path}: {a!r} and {b!r}"]


def assert_same_run(one: Path, two: Path) -> None:
    """Two finished runs ended with the same bits.

    Weights, EMA, optimizers, filter, carry, metrics, test figures.
    """
    for name in ("ckpt.pt", "best.pt"):
        found = differences(checkpoint(one, name), checkpoint(two, name))
        assert not found, (name, found)
    found = differences(lines(one), lines(two))
    assert not found, ("metrics.jsonl", found)
    a, b = (json.loads((folder / "summary.json").read_text()) for folder in (one, two))
    for key in ("test", "test_halting", "val", "best_step", "steps", "parameters"):
        assert a[key] == b[key], (key, a[key], b[key])


CHILDREN: list[subprocess.Popen] = []  # of all tests: conftest.py ends those that are left


def spawn(*words, **options) -> subprocess.Popen:
    """`python train.py WORDS` as a real process of its own group, one thread, output kept."""
    unset = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    environment |= {"OMP_NUM_THREADS": "1"} | options.pop("env", {})
    launcher = options.pop("launcher", ())
    command = [sys.executable, *launcher, str(ROOT / "train.py"), *map(str, words)]
    process = subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **options,
    )
    CHILDREN.append(process)
    return process
