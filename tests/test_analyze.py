"""Run folders to tables and plots: what is averaged, what is listed by name, what one seed's interval is."""

import csv
import json
import subprocess
import sys

import pytest
import tiny

import analyze
import train
from config import to_toml


def fake(folder, exact=0.9, n=512, task="maze", steps=100, sha="", summary=True, seed=0):
    """A run folder as train.py leaves it."""
    folder.mkdir(parents=True)
    cfg = tiny.config(seed, data={"task": task}, train={"steps": steps})
    (folder / "config.toml").write_text(to_toml(cfg, "sweeps/x.toml"))
    lines = [{"step": s, "split": split, "exact": exact * s / steps, "n": n, "seconds": s / 10} for s in (steps // 2, steps) for split in ("train", "val")]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (lines if summary else lines[:2])))
    rules = {"valid": exact} | ({"optimal": exact} if task == "maze" else {})
    figures = {"exact": exact, **rules, "cells": 0.99, "steps": 3.0, "n": n}
    if summary:
        (folder / "summary.json").write_text(json.dumps({
            "entry": "sweeps/x.toml", "seed": seed, "task": task, "test": figures | {"curve": [exact / 2, exact]}, "test_halting": figures | {"steps": 1.7},
            "baseline": {"exact": 0.0, "cells": 0.8}, "parameters": 35842, "depth": 20, "steps": steps, "commit": "abc1234", "hardware": "1 x CPU",
            "seconds": {"train": 120.0, "train_cpu": 110.0, "validation": 9.0, "test": 4.0}, "weights": "ema", "chosen": "best by validation",
            "data": {"train_source": "generated", "test_source": "generated", "rows": {"train": 9, "val": 5, "test": n}} | ({"test_sha256": sha} if sha else {})}))
    return folder


def run(tmp_path, *words):
    assert analyze.main([str(tmp_path / "runs"), "--out", str(tmp_path / "results"), *words]) == 0
    return json.loads((tmp_path / "results/table.json").read_text()), (tmp_path / "results/table.md").read_text()


def test_seeds_are_averaged_with_their_smallest_and_largest(tmp_path):
    for seed, exact in enumerate([0.9, 0.96, 0.93]):
        fake(tmp_path / f"runs/laptop/maze/seed{seed}", exact, seed=seed)
    table, text = run(tmp_path)
    row, = table["entries"]
    assert (row["entry"], row["seeds"], row["exact"], row["exact_low"], row["exact_high"]) == ("maze", "0 1 2", 0.93, 0.9, 0.96)
    assert [r["exact"] for r in row["runs"]] == [0.9, 0.96, 0.93]
    assert "| maze | 93.0 (90.0-96.0) |" in text and "| 3 x 512 |" in text and "| 120 | 110 |" in text


def test_one_seed_gets_a_binomial_interval(tmp_path):
    fake(tmp_path / "runs/maze/seed0", 1.0)
    table, text = run(tmp_path)
    assert table["entries"][0]["exact_low"] == pytest.approx(0.99255, abs=1e-4) and table["entries"][0]["exact_high"] == 1.0
    assert "| maze | 100.0 (99.3-100.0) |" in text


@pytest.mark.parametrize("share, n, low, high", [(0.5, 100, 0.4038, 0.5962), (0.0, 10, 0.0, 0.2775), (0.98, 512, 0.9639, 0.9890)])
def test_wilson_interval_agrees_with_published_values(share, n, low, high):
    assert analyze.wilson(share, n) == pytest.approx((low, high), abs=2e-4)


def test_another_configuration_or_data_file_is_never_averaged_in(tmp_path):
    fake(tmp_path / "runs/maze/seed0", 0.9)
    fake(tmp_path / "runs/maze/seed1", 0.5, steps=50, seed=1)
    fake(tmp_path / "runs/real/seed0", 0.9, sha="aa")
    fake(tmp_path / "runs/real/seed1", 0.5, sha="bb", seed=1)
    table, _ = run(tmp_path)
    assert {row["entry"]: row["exact"] for row in table["entries"]} == {
        "maze (train.steps = 100)": 0.9, "maze (train.steps = 50)": 0.5, "real (sha256 of test = aa)": 0.9, "real (sha256 of test = bb)": 0.5}


def test_unfinished_and_damaged_runs_are_named(tmp_path):
    fake(tmp_path / "runs/good/seed0")
    fake(tmp_path / "runs/half/seed0", summary=False)
    (fake(tmp_path / "runs/cut/seed0") / "summary.json").write_text('{"test": {"exact"')
    (fake(tmp_path / "runs/empty/seed0") / "summary.json").write_text("{}")
    fake(tmp_path / "runs/nan/seed0", float("nan"))
    (fake(tmp_path / "runs/noconfig/seed0") / "config.toml").unlink()
    with open(fake(tmp_path / "runs/torn/seed0", 0.8) / "metrics.jsonl", "a") as file:
        file.write('{"step": 101, "spl')
    table, text = run(tmp_path)
    assert [row["entry"] for row in table["entries"]] == ["good", "torn"]
    assert "- torn: metrics.jsonl has 1 damaged line(s), left out" in text
    problems = {row["entry"]: row["status"] for row in table["unfinished"]}
    assert problems["half/seed0"] == "not finished: step 50 of 100; the same command continues it"
    assert "damaged" in problems["cut/seed0"] and "damaged" in problems["empty/seed0"] and "not finite" in problems["nan/seed0"]
    assert "config.toml" in problems["noconfig/seed0"]
    for name, status in problems.items():
        assert f"- {name}: {status}" in text
    with open(tmp_path / "results/table.csv") as file:
        assert {row["entry"]: row["status"] for row in csv.DictReader(file)} == problems | {"good": "finished", "torn": "finished"}


def test_plots_are_written_and_the_same_runs_give_the_same_bytes(tmp_path):
    for k in range(7):
        fake(tmp_path / f"runs/maze{k}/seed0", 0.1 * k)
    fake(tmp_path / "runs/sudoku/seed0", task="sudoku")
    fake(tmp_path / "runs/sudoku/seed1", task="sudoku", seed=1)
    table, text = run(tmp_path)
    assert [row["entry"] for row in table["entries"]] == [f"maze{k}" for k in range(6, -1, -1)] + ["sudoku"]  # best first within a task
    assert table["entries"][-1]["optimal"] is None and "| sudoku | 90.0 | 90.0 | - |" in text
    first = {p.name: p.read_bytes() for p in (tmp_path / "results").iterdir()}
    assert sorted(first) == ["learning.png", "learning.svg", "steps.png", "steps.svg", "table.csv", "table.json", "table.md"]
    run(tmp_path)
    assert first == {p.name: p.read_bytes() for p in (tmp_path / "results").iterdir()}


def test_a_real_run_can_be_analysed(tmp_path):
    tiny.run(tmp_path / "runs/tiny/seed0")
    table, _ = run(tmp_path)
    row, = table["entries"]
    assert row["parameters"] == 3298 and row["test_puzzles"] == "10" and row["train_seconds"] > 0 and row["note"] == ""


@pytest.mark.parametrize("words, says", [
    (["nowhere"], "error: nowhere: no such folder"), ([], "error: command line: the following arguments are required"),
    (["."], "error: no run folder below ."), ([".", "--ot=x"], "error: command line: unrecognized arguments: --ot=x")])
def test_bad_input_ends_in_one_sentence(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert analyze.main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith(says) and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_keys_that_may_differ_between_seeds_are_those_that_may_differ_on_resume():
    assert analyze.SHARED == train.FREE | {"seed"}


def test_analyze_needs_no_torch():
    assert subprocess.run([sys.executable, "-c", "import sys, analyze; sys.exit('torch' in sys.modules)"], cwd=tiny.ROOT).returncode == 0
