"""Made-up runs for the analysis: `python tests/made_up.py 200` times analyze.py on 200 of them."""

import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import analyze  # noqa: E402
from config import to_toml  # noqa: E402
from train import Config, TrainConfig  # noqa: E402

TRAIN = {
    "split": "train",
    "loss": 0.512345,
    "answer_loss": 0.412345,
    "halt_loss": 0.1,
    "exact": 0.71875,
    "cells": 0.987654,
    "q_accuracy": 0.91,
    "steps_at_halt": 3.125,
    "halted": 123,
    "lr": 0.0001,
    "seconds": 1.0,
}
VAL = {
    "split": "val",
    "exact": 0.7,
    "valid": 0.7,
    "optimal": 0.7,
    "cells": 0.98,
    "steps": 16.0,
    "n": 100,
    "curve": [0.123456] * 16,
    "halting_exact": 0.7,
    "halting_steps": 4.2,
    "seconds": 1.0,
}


def made_up_runs(root: Path, runs: int, lines: int, puzzles: int = 1000) -> None:
    """Finished runs of five seeds per entry, the first entry a baseline.

    Every hundredth metric line is a validation.
    """
    g = np.random.default_rng(0)
    records = [{"step": 20 * k} | (TRAIN if k % 100 else VAL) for k in range(1, lines + 1)]
    metrics = "".join(json.dumps(record) + "\n" for record in records)
    for i in range(runs):
        entry, seed = i // 5, i % 5
        train = dataclasses.replace(TrainConfig(), steps=20 * lines, warmup=entry)
        cfg = Config.of("maze")(seed=seed, train=train)
        folder = root / (f"entry{entry}" if entry else "baseline") / f"seed{seed}"
        folder.mkdir(parents=True)
        solved = g.random(puzzles) < 0.7
        exact = float(solved.mean())
        figures = {"exact": exact, "cells": 0.98, "steps": 16.0, "n": puzzles}
        (folder / "config.toml").write_text(to_toml(cfg, "made up"))
        (folder / "metrics.jsonl").write_text(metrics)
        np.savez_compressed(folder / "test.npz", exact=solved)
        summary = {
            "seed": seed,
            "task": "maze",
            "test": figures | {"curve": [0.1] * 15 + [exact]},
            "test_halting": figures,
            "baseline": {"exact": 0.0, "cells": 0.8},
            "parameters": 7_000_000,
            "depth": 42,
            "steps": 20 * lines,
            "flop": 1e18,
            "test_puzzles": "made up",
            "device": "cpu",
            "hardware": "made up",
            "commit": "made up",
            "seconds": {"train": 1.0, "train_cpu": 1.0, "validation": 1.0, "test": 1.0},
            "data": {},
        }
        (folder / "summary.json").write_text(json.dumps(summary))


def measure(runs: int, lines: int = 10_000) -> str:
    """How long the analysis of made-up runs takes, in a sentence."""
    with tempfile.TemporaryDirectory() as root:
        made_up_runs(Path(root, "runs"), runs, lines)
        size = sum(path.stat().st_size for path in Path(root).rglob("*.jsonl"))
        cpu, wall = time.process_time(), time.perf_counter()
        analyze.analyze([Path(root, "runs")], Path(root, "results"))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return (
        f"analyze.py, {runs} runs of {lines} metric lines ({size / 2**20:.0f} MiB): "
        f"{cpu:.1f} s of CPU, {wall:.1f} s by the wall clock"
    )


if __name__ == "__main__":
    print(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
