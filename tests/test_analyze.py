"""Run folders to tables and plots.

What is averaged, what is listed by name, what the interval of one seed is.
"""

import csv
import dataclasses
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import analyze
import made_up
import stats
import tiny
import train
from config import FREE, to_toml
from evaluate import evaluate
from stats import latex
from test_planner import CONTROL


def fake(
    folder,
    exact=0.9,
    n=512,
    task="maze",
    steps=100,
    sha="",
    summary=True,
    seed=0,
    expected=0.0,
    solved=None,
    puzzles="p",
    cpu=110.0,
    val=None,
    model=None,
    train=None,
    flop=None,
):
    """A run folder as train.py leaves it.

    solved: the verdict on each test puzzle, for test.npz.
    val: the validations, all in the last third.
    """
    folder.mkdir(parents=True)
    cfg = tiny.config(
        seed, data={"task": task}, model=model or {}, train={"steps": steps, **(train or {})}
    )
    (folder / "config.toml").write_text(
        to_toml(dataclasses.replace(cfg, expected=expected), "sweeps/x.toml")
    )
    if solved is not None:
        n, exact = len(solved), float(np.mean(solved))
        np.savez_compressed(folder / "test.npz", exact=np.asarray(solved, dtype=bool))
    lines = [
        {
            "step": s,
            "split": split,
            "exact": exact * s / steps,
            "loss": 0.5,
            "n": n,
            "halting_steps": 2.0,
            "seconds": s / 10,
        }
        for s in (steps // 2, steps)
        for split in ("train", "val")
    ]
    if val:
        lines = [
            {"step": steps - len(val) + k + 1, "split": "val", "exact": v, "n": n, "seconds": k}
            for k, v in enumerate(val)
        ]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in (lines if summary else lines[:2]))
    )
    rules = (
        {"top3": (1 + exact) / 2}
        if task in ("features", "modular")
        else {"valid": exact} | ({"optimal": exact} if task == "maze" else {})
    )
    figures = {"exact": exact, **rules, "cells": 0.99, "steps": 3.0, "n": n}
    if summary:
        (folder / "summary.json").write_text(
            json.dumps(
                {
                    "entry": "sweeps/x.toml",
                    "seed": seed,
                    "task": task,
                    "test": figures | {"curve": [exact / 2, exact]},
                    "test_halting": figures | {"steps": 1.7},
                    "baseline": {"exact": 0.0, "cells": 0.8},
                    "parameters": 35842,
                    "depth": cfg.model.T * (cfg.model.n + 1) * cfg.model.n_layers,
                    "steps": steps,
                    "flop": flop,
                    "test_puzzles": puzzles,
                    "commit": "abc1234",
                    "hardware": "1 x CPU, 1 thread(s)",
                    "seconds": {"train": 120.0, "train_cpu": cpu, "validation": 9.0, "test": 4.0},
                    "weights": "ema",
                    "chosen": "best by validation",
                    "data": {
                        "train_source": "generated",
                        "test_source": "generated",
                        "rows": {"train": 9, "val": 5, "test": n},
                    }
                    | ({"test_sha256": sha} if sha else {}),
                }
            )
        )
    return folder


def run(tmp_path, *words, draw=False):
    """analyze.py on tmp_path/runs, by default without plots.

    Returns the contents of table.json and table.md.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not draw:
            patch.setattr(analyze.plots, "write", lambda out, groups: [])
        assert (
            analyze.main([str(tmp_path / "runs"), "--out", str(tmp_path / "results"), *words]) == 0
        )
    return json.loads((tmp_path / "results/table.json").read_text()), (
        tmp_path / "results/table.md"
    ).read_text()


def test_seeds_are_averaged_with_their_smallest_and_largest(tmp_path):
    for seed, exact in enumerate([0.9, 0.96, 0.93]):
        fake(tmp_path / f"runs/laptop/maze/seed{seed}", exact, seed=seed)
    table, text = run(tmp_path)
    (row,) = table["entries"]
    assert (row["entry"], row["seeds"], row["exact"], row["exact_low"], row["exact_high"]) == (
        "maze",
        "0 1 2",
        0.93,
        0.9,
        0.96,
    )
    assert [r["exact"] for r in row["runs"]] == [0.9, 0.96, 0.93]
    assert (
        "| maze | 93.0 (90.0-96.0) |" in text and "| 3 x 512 |" in text and "| 120 | 110 |" in text
    )


def test_one_seed_gets_a_binomial_interval(tmp_path):
    fake(tmp_path / "runs/maze/seed0", 1.0)
    table, text = run(tmp_path)
    assert (
        table["entries"][0]["exact_low"] == pytest.approx(0.99255, abs=1e-4)
        and table["entries"][0]["exact_high"] == 1.0
    )
    assert "| maze | 100.0 (99.3-100.0) |" in text


def test_another_configuration_or_data_file_is_never_averaged_in(tmp_path):
    fake(tmp_path / "runs/maze/seed0", 0.9)
    fake(tmp_path / "runs/maze/seed1", 0.5, steps=50, seed=1)
    fake(tmp_path / "runs/real/seed0", 0.9, sha="aa")
    fake(tmp_path / "runs/real/seed1", 0.5, sha="bb", seed=1)
    table, _ = run(tmp_path)
    assert {row["entry"]: row["exact"] for row in table["entries"]} == {
        "maze (train.steps = 100)": 0.9,
        "maze (train.steps = 50)": 0.5,
        "real (sha256 of test = aa)": 0.9,
        "real (sha256 of test = bb)": 0.5,
    }


def test_a_key_that_an_older_version_did_not_have_keeps_no_runs_apart(tmp_path):
    for seed in (0, 1):
        folder = fake(tmp_path / f"runs/maze/seed{seed}", 0.9, seed=seed)
    config = (folder / "config.toml").read_text()
    assert "lr_floor = 0.05" in config
    (folder / "config.toml").write_text(config.replace("lr_floor = 0.05\n", ""))
    (folder.parent / "seed2").mkdir()
    (folder.parent / "seed2/failed.txt").write_text("no space left")  # without any config
    table, text = run(tmp_path)
    assert [(row["entry"], row["seeds"]) for row in table["entries"]] == [
        ("maze", "0 1")
    ] and "no space left" in text


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
    assert (
        "damaged" in problems["cut/seed0"]
        and "damaged" in problems["empty/seed0"]
        and "not finite" in problems["nan/seed0"]
    )
    assert "config.toml" in problems["noconfig/seed0"]
    for name, status in problems.items():
        assert f"- {name}: {status}" in text
    with open(tmp_path / "results/table.csv") as file:
        assert {row["entry"]: row["status"] for row in csv.DictReader(file)} == problems | {
            "good": "finished",
            "torn": "finished",
        }


def test_one_entry_alone_is_drawn_with_its_accuracy_in_training(tmp_path):
    for seed, exact in enumerate([0.4, 0.8]):
        fake(tmp_path / f"runs/a/seed{seed}", exact, seed=seed)
    fake(tmp_path / "runs/b/seed0", 0.5, model={"n": 2})
    one, two = (
        analyze.plots.plot_learning(analyze.group(analyze.load_runs([tmp_path / path]))).axes[0]
        for path in ("runs/a", "runs")
    )
    training = [
        line.get_ydata().tolist() for line in one.lines if line.get_color() == analyze.plots.GREY
    ]
    assert (
        training == [pytest.approx([20, 40]), pytest.approx([40, 80])]
        and one.get_xlabel() == "training step"
    )
    assert (
        not [line for line in two.lines if line.get_color() == analyze.plots.GREY]
        and two.get_xlabel() == "seconds of training"
    )


def test_plots_are_written_and_the_same_runs_give_the_same_bytes(tmp_path):
    for k in range(7):
        fake(tmp_path / f"runs/maze{k}/seed0", 0.1 * k)
    fake(tmp_path / "runs/sudoku/seed0", task="sudoku")
    fake(tmp_path / "runs/sudoku/seed1", task="sudoku", seed=1)
    table, text = run(tmp_path, draw=True)
    assert [row["entry"] for row in table["entries"]] == [f"maze{k}" for k in range(6, -1, -1)] + [
        "sudoku"
    ]  # best first within a task
    assert table["entries"][-1]["optimal"] is None and "| sudoku | 90.0 | 90.0 | - |" in text
    first = {p.name: p.read_bytes() for p in (tmp_path / "results").iterdir()}
    assert sorted(first) == [
        "learning.png",
        "learning.svg",
        "steps.png",
        "steps.svg",
        "table.csv",
        "table.json",
        "table.md",
    ]
    run(tmp_path, draw=True)
    assert first == {p.name: p.read_bytes() for p in (tmp_path / "results").iterdir()}


@pytest.mark.slow
def test_a_real_run_can_be_analysed(tmp_path):
    tiny.run(tmp_path / "runs/baseline/seed0")
    tiny.run(tmp_path / "runs/faster/seed0", train={"lr": 0.02})
    table, text = run(tmp_path, draw=True)
    row, other = sorted(table["entries"], key=lambda r: r["entry"])
    assert (other["switch"], other["paired_by"], other["verdict"]) == (
        "train.lr = 0.02",
        "puzzle",
        "not shown",
    ) and "One seed" in text
    assert (
        other["difference"] == pytest.approx(other["exact"] - row["exact"], abs=1e-6)
        and row["flop"] > 0
    )
    assert (
        row["parameters"] == 3298
        and row["test_puzzles"] == "10"
        and row["steps_per_second"] > 0
        and row["note"] == ""
    )


@pytest.mark.parametrize(
    "words, says",
    [
        (["nowhere"], "error: nowhere: no such folder"),
        ([], "error: command line: the following arguments are required"),
        (["."], "error: no run folder below ."),
        ([".", "--ot=x"], "error: command line: unrecognized arguments: --ot=x"),
    ],
)
def test_bad_input_ends_in_one_sentence(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert analyze.main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith(says) and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_the_table_of_other_entries_is_not_written_over(tmp_path, capsys):
    for name in ("mine", "theirs"):
        fake(tmp_path / "runs" / name / "seed0")
    out, runs = tmp_path / "results", tmp_path / "runs"
    assert analyze.main([str(runs / "theirs"), f"--out={out}"]) == 0
    before = (out / "table.md").read_text()
    assert analyze.main([str(runs / "mine"), f"--out={out}"]) == 2
    assert "holds the table of other entries (theirs)" in capsys.readouterr().err
    assert (out / "table.md").read_text() == before
    assert analyze.main([str(runs), f"--out={out}"]) == 0
    assert analyze.main([str(runs / "mine"), f"--out={out}"]) == 0


def test_keys_that_may_differ_between_seeds_are_those_that_may_differ_on_resume():
    assert analyze.SHARED == FREE | {"seed"}


def test_analyze_needs_no_torch():
    assert (
        subprocess.run(
            [sys.executable, "-c", "import sys, analyze; sys.exit('torch' in sys.modules)"],
            cwd=tiny.ROOT,
        ).returncode
        == 0
    )


# ---------------------------------------------------------------- entries against their baseline


def sweep(tmp_path, *entries, seeds=3, n=400, **common):
    """Writes runs/sweep/<name>/seed<k> for every entry.

    In every seed the first `share` of the puzzles is solved, one more or less by seed.
    """
    for name, share, keys in entries:
        for seed in range(seeds):
            fake(
                tmp_path / f"runs/sweep/{name}/seed{seed}",
                seed=seed,
                solved=np.arange(n) < share * n + seed - 1,
                **common | keys,
            )


def rows(table) -> dict:
    return {row["entry"]: row for row in table["entries"]}


def test_an_entry_helps_or_hurts_only_where_the_interval_excludes_zero(tmp_path):
    sweep(
        tmp_path,
        ("baseline", 0.6, {}),
        ("up", 0.7, {"expected": 12.5}),
        ("down", 0.45, {}),
        ("same", 0.6, {}),
    )
    for seed, share in enumerate((0.45, 0.6, 0.9)):  # five points better in the mean, but by chance
        fake(
            tmp_path / f"runs/sweep/luck/seed{seed}", seed=seed, solved=np.arange(400) < share * 400
        )
    table, text = run(tmp_path)
    found = rows(table)
    assert {name: row["verdict"] for name, row in found.items()} == {
        "baseline": "reference",
        "up": "helps",
        "down": "hurts",
        "same": "not shown",
        "luck": "not shown",
    }
    assert [found[name]["difference"] for name in ("up", "down", "same", "luck")] == pytest.approx(
        [0.1, -0.15, 0, 0.05], abs=1e-6
    )
    assert 0 < found["up"]["difference_low"] < 0.1 < found["up"]["difference_high"] < 0.15
    assert found["luck"]["difference_low"] < 0 < found["luck"]["difference_high"]
    assert found["up"]["expected_points"] == 12.5 and found["baseline"]["difference"] is None
    line = next(line for line in text.splitlines() if line.startswith("| up "))
    assert " +10.0 (" in line and "| +12.5 | helps |" in line and line.endswith("| 3 x 400 |")


def test_one_seed_shows_nothing(tmp_path):
    sweep(tmp_path, ("baseline", 0.3, {}), ("up", 0.9, {}), seeds=1)
    table, text = run(tmp_path)
    row = rows(table)["up"]
    assert (
        row["difference_low"] > 0.5
        and row["verdict"] == "not shown"
        and "One seed: the interval says nothing about other seeds." in text
    )


def test_seeds_without_partner_are_left_out_of_the_difference_and_named(tmp_path):
    sweep(tmp_path, ("baseline", 0.5, {}), ("two", 0.6, {}), seeds=2)
    fake(tmp_path / "runs/sweep/two/seed7", seed=7, solved=np.ones(400))
    table, text = run(tmp_path)
    assert rows(table)["two"]["paired_seeds"] == 2 and rows(table)["two"][
        "difference"
    ] == pytest.approx(0.1)
    assert table["unfinished"] == [
        {"entry": "baseline/seed7", "status": "missing: other entries have this seed"}
    ]
    assert "- baseline/seed7: missing: other entries have this seed" in text


def test_what_differs_from_the_baseline_is_named_the_budget_too(tmp_path):
    sweep(tmp_path, ("baseline", 0.5, {}), ("longer", 0.5, {"steps": 200, "train": {"ema": 0.0}}))
    assert rows(run(tmp_path)[0])["longer"]["switch"] == "train.steps = 200, train.ema = 0.0"


def test_other_test_puzzles_another_baseline_or_no_common_seed_are_not_compared(tmp_path):
    sweep(tmp_path, ("baseline", 0.5, {}), ("other", 0.9, {"puzzles": "q"}))
    fake(tmp_path / "runs/sweep/stranger/seed9", seed=9, solved=np.ones(400))
    table, text = run(tmp_path)
    assert (
        "verdict" not in rows(table)["other"]
        and "- other: not compared: its data are not those of baseline" in text
    )
    assert "- stranger: not compared: no seed in common with baseline" in text
    fake(tmp_path / "runs/sweep/baseline/seed3", seed=3, steps=50)
    table, text = run(tmp_path)
    assert (
        all("verdict" not in row for row in table["entries"])
        and "- other: not compared: baseline has runs of 2 configurations" in text
    )
    assert table["answers"] == {}


def test_a_baseline_can_be_named_and_must_exist(tmp_path, capsys):
    sweep(tmp_path, ("small", 0.5, {}), ("large", 0.7, {}))
    assert "verdict" not in rows(run(tmp_path)[0])["large"]
    assert rows(run(tmp_path, "--baseline=small")[0])["large"]["verdict"] == "helps"
    capsys.readouterr()
    assert (
        analyze.main([str(tmp_path / "runs"), "--out", str(tmp_path / "r"), "--baseline=smal"]) == 2
    )
    assert capsys.readouterr().err == (
        "error: command line: --baseline = 'smal', expected an entry with a finished run; "
        "there are large, small\n"
    )


def test_sweeps_are_compared_within_their_folder(tmp_path):
    for name, share in (("a", 0.2), ("b", 0.8)):
        for seed in (0, 1):
            fake(
                tmp_path / f"runs/{name}/baseline/seed{seed}",
                seed=seed,
                solved=np.arange(400) < share * 400 + seed,
            )
            fake(
                tmp_path / f"runs/{name}/x/seed{seed}",
                seed=seed,
                solved=np.arange(400) < 200 + seed,
            )
    table, text = run(tmp_path)
    assert rows(table)["a/x"]["difference"] == pytest.approx(0.3) and rows(table)["b/x"][
        "difference"
    ] == pytest.approx(-0.3)
    assert "**Which change hurts most (b/baseline)?** b/x: -30.0" in text


def test_without_verdicts_on_puzzles_the_interval_is_over_seeds(tmp_path):
    sweep(tmp_path, ("baseline", 0.5, {}), ("up", 0.6, {}))
    (tmp_path / "runs/sweep/up/seed1/test.npz").unlink()
    table, text = run(tmp_path)
    row = rows(table)["up"]
    assert (
        row["paired_by"] == "seed"
        and row["difference"] == pytest.approx(0.1)
        and "Without test.npz: up; intervals over seeds only." in text
    )
    assert (row["difference_low"], row["difference_high"]) == pytest.approx(
        (0.1, 0.1), abs=1e-6
    )  # all seeds differ alike


@pytest.mark.parametrize("content", ["few", "other", "rubbish"])
def test_verdicts_that_contradict_the_summary_are_not_used(content, tmp_path):
    folder = fake(tmp_path / "runs/x/seed0", solved=np.arange(100) < 50)
    if content == "rubbish":
        (folder / "test.npz").write_bytes(b"PK" + bytes(100))
    else:
        np.savez(folder / "test.npz", exact=np.arange(50 if content == "few" else 100) < 25)
    assert analyze.load_run(folder).solved is None


def test_runs_that_failed_or_never_started_or_appear_twice_are_named(tmp_path):
    fake(tmp_path / "runs/x/seed0", seed=0)
    fake(tmp_path / "runs/x/seed0_again", 0.1, seed=0)
    (fake(tmp_path / "runs/x/seed1", seed=1, summary=False) / "failed.txt").write_text(
        "loss or gradient is not finite\nfrom step 7 on\n"
    )
    (tmp_path / "runs/x/seed2").mkdir()
    (tmp_path / "runs/x/seed2/job.json").write_text("{}")
    (tmp_path / "runs/.launch/now").mkdir(parents=True)
    (tmp_path / "runs/.launch/now/config.toml").write_text("")
    table, text = run(tmp_path)
    assert [(r["entry"], r["status"]) for r in table["unfinished"]] == [
        ("x/seed0_again", "the same entry and seed as seed0, which is in the tables"),
        ("x/seed1", "failed at step 50 of 100: loss or gradient is not finite from step 7 on"),
        ("x/seed2", "not started"),
    ]
    assert rows(table)["x"]["exact"] == 0.9


@pytest.mark.parametrize(
    "tail, note",
    [
        (
            '{"step": 101, "split": "train", "loss": NaN}\n',
            (
                "metrics.jsonl has 1 train line(s) whose loss is not finite, "
                "the first at step 101, left out"
            ),
        ),
        (
            '{"step": 101, "split": "val", "exact": NaN}\n',
            (
                "metrics.jsonl has 1 val line(s) whose exact is not finite, "
                "the first at step 101, left out"
            ),
        ),
        (
            '{"step": 101, "split": "val", "exact": "high"}\n',
            (
                "metrics.jsonl has 1 val line(s) whose exact is not finite, "
                "the first at step 101, left out"
            ),
        ),
        ('{"step": 101, "spl', "metrics.jsonl has 1 damaged line(s), left out"),
        ("17\n[]\n{}\n", "metrics.jsonl has 3 damaged line(s), left out"),
        ("", ""),
    ],
)
def test_what_is_wrong_in_the_metrics_is_noted_and_left_out(tail, note, tmp_path):
    folder = fake(tmp_path / "runs/x/seed0")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(tail)
    table, text = run(tmp_path)
    assert rows(table)["x"]["note"] == note and (f"- x: {note}" in text) == bool(note)
    assert analyze.load_run(folder).val["exact"].tolist() == [0.45, 0.9]


def test_a_run_without_metrics_is_in_the_table_and_marked(tmp_path):
    sweep(tmp_path, ("baseline", 0.5, {}), ("x", 0.6, {}))
    for seed in range(3):
        (tmp_path / f"runs/sweep/x/seed{seed}/metrics.jsonl").unlink()
    table, text = run(tmp_path, draw=True)
    row = rows(table)["x"]
    assert (
        row["note"] == "metrics.jsonl has no validations: no learning curve, no stability"
        and row["spread_last_third"] is None
        and row["verdict"] == "helps"
    )


def test_stability_and_cost_are_measured(tmp_path):
    sweep(
        tmp_path,
        ("baseline", 0.5, {"val": [0.5, 0.52, 0.54], "cpu": 50.0}),
        ("wild", 0.5, {"val": [0.2, 0.5, 0.8], "cpu": 100.0}),
    )
    folder = tmp_path / "runs/sweep/wild/seed0"
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(
            "".join(
                json.dumps({"step": k, "split": "train", "loss": 2.0 if k in (30, 31, 60) else 1.0})
                + "\n"
                for k in range(1, 101)
            )
        )
    table, _ = run(tmp_path)
    one, two = rows(table)["baseline"], rows(table)["wild"]
    assert (one["spread_last_third"], two["spread_last_third"]) == pytest.approx((0.02, 0.3)) and [
        r["loss_spikes"] for r in two["runs"]
    ] == [2, None, None]
    assert (one["steps_per_second"], two["steps_per_second"], two["time_ratio"]) == pytest.approx(
        (2, 1, 2)
    )


def test_time_on_other_hardware_is_no_ratio(tmp_path):
    sweep(tmp_path, ("baseline", 0.5, {}), ("x", 0.5, {}))
    for path in tmp_path.glob("runs/sweep/x/*/summary.json"):
        path.write_text(path.read_text().replace("1 x CPU, 1 thread(s)", "1 x GPU"))
    table, _ = run(tmp_path)
    assert rows(table)["x"]["time_ratio"] is None and rows(table)["x"][
        "steps_per_second"
    ] == pytest.approx(100 / 120)  # a GPU: the wall clock
    assert "x on other hardware" in table["answers"]["How fast is a step?"]


QUESTIONS = (
    "Which change hurts most?",
    "How steady is training?",
    "How fast is a step?",
    "More layers or more recursion?",
)


def test_the_questions_are_answered_with_figures(tmp_path):
    val = [0.5, 0.52, 0.54]
    sweep(
        tmp_path,
        ("baseline", 0.7, {"model": {"T": 3, "n": 6, "n_layers": 2}, "flop": 100.0}),
        (
            "less",
            0.5,
            {
                "model": {"T": 2, "n": 2, "n_layers": 2},
                "expected": -13.7,
                "cpu": 55.0,
                "flop": 50.0,
            },
        ),
        ("layers", 0.6, {"model": {"T": 3, "n": 3, "n_layers": 4}}),
        ("wild", 0.7, {"train": {"ema": 0.0}, "val": [0.1, 0.5, 0.9]}),
        ("good", 0.8, {"cpu": 220.0}),
        val=val,
    )
    table, text = run(tmp_path)
    most, steady, speed, capacity = (table["answers"][q] for q in QUESTIONS)
    assert (
        most.startswith("less: -20.0 (")
        and "expected -13.7 points against 70.0 %" in most
        and "Also shown to hurt: layers -10.0 (" in most
    )
    assert (
        "Shown to help: good +10.0 (" in most
        and "Not shown either way: wild +0.0 (" in most
        and "That less hurts more" not in most
    )
    assert most.endswith("Seeds per comparison: 3; puzzles: 400.")
    assert (
        "deviation of 2.0 points" in steady
        and "Shown to be less steady: wild +38.0 (+38.0 to +38.0)." in steady
    )
    assert (
        "The baseline makes 0.91 steps/s (CPU time)" in speed
        and "good 2.00 (2.00-2.00); " in speed
        and "less 0.50 (0.50-0.50, 0.50 by FLOP)." in speed
    )
    assert (
        "More layers and less recursion: layers hurts: -10.0" in capacity
        and "at depth 48" in capacity
        and "Less recursion with the same layers: less hurts: -20.0" in capacity
    )
    assert capacity.endswith("So recursion is worth more than layers: as deep, yet worse.")
    for question in QUESTIONS:
        assert f"**{question}** {table['answers'][question]}" in text


def test_answers_do_not_claim_what_is_not_shown(tmp_path):
    sweep(
        tmp_path,
        ("baseline", 0.7, {"model": {"n": 6}}),
        ("a", 0.6975, {"model": {"n_layers": 2, "n": 5}}),
        val=[0.5, 0.6, 0.5],
    )
    most, steady, _, capacity = (run(tmp_path)[0]["answers"][q] for q in QUESTIONS)
    assert most.startswith("None is shown to hurt; the largest measured drop is a with -0.")
    assert "No difference shown: a +0.0" in steady and capacity.endswith(
        "Which of the two is worth more is not shown."
    )
    sweep(tmp_path / "two", ("baseline", 0.7, {}), ("a", 0.5, {}), ("b", 0.501, {}))
    assert (
        "That a hurts more than b is not shown ("
        in run(tmp_path / "two")[0]["answers"][QUESTIONS[0]]
    )


def test_comparisons_are_drawn(tmp_path):
    sweep(
        tmp_path, ("baseline", 0.6, {"flop": 1e15}), ("up", 0.7, {"expected": 12.5, "flop": 2e15})
    )
    run(tmp_path, draw=True)
    names = {p.name for p in (tmp_path / "results").iterdir()} - {
        "table.md",
        "table.csv",
        "table.json",
    }
    assert names == {
        f"{name}.{kind}"
        for name in ("learning", "steps", "accuracy", "cost", "halting", "stability")
        for kind in ("png", "svg")
    }
    assert "3 seeds x 400 puzzles" in (tmp_path / "results/accuracy.svg").read_text()


# ---------------------------------------------------------------- classes, grokking, other depths


def grok(folder, seed, train_at, val_at, every=100, steps=1000):
    """A run of modular addition.

    Its training and validation accuracy jump to 1 at these steps (0: never).
    """
    fake(folder, task="modular", steps=steps, seed=seed)
    lines = [
        {
            "step": step,
            "split": split,
            "loss": 0.5,
            "exact": float(0 < at <= step),
            "n": 50,
            "halting_steps": 1.0,
            "seconds": step / 10,
        }
        for step in range(every, steps + 1, every)
        for split, at in (("train", train_at), ("val", val_at))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_steps_until_generalising_are_compared_seed_by_seed(tmp_path):
    for seed, (a, b, c) in enumerate([(400, 200, 900), (600, 300, 500), (800, 400, 1000)]):
        for name, at in (("adamw", a), ("ema", b), ("wild", c)):
            grok(tmp_path / f"runs/g/{name}/seed{seed}", seed, 200, at)
    table, text = run(tmp_path)
    found = rows(table)
    assert [found["ema"][f"reach_val_seed{k}"] for k in range(3)] == [200, 300, 400] and found[
        "ema"
    ]["reach_train_seed1"] == 200
    assert [
        found["ema"][k] for k in ("reach_ratio", "reach_ratio_low", "reach_ratio_high")
    ] == pytest.approx([0.5] * 3)
    assert found["wild"]["reach_ratio"] == pytest.approx(
        (900 / 400 * 500 / 600 * 1000 / 800) ** (1 / 3), abs=1e-6
    )  # a geometric mean
    assert found["wild"]["reach_ratio_low"] < 1 < found["wild"]["reach_ratio_high"]
    assert {name: row["reach_verdict"] for name, row in found.items()} == {
        "adamw": "reference",
        "ema": "earlier",
        "wild": "not shown",
    }
    assert "| ema | 200, 200 | 200, 300 | 200, 400 | 0.50 (0.50 to 0.50) | earlier |" in text
    assert {
        name: row["reach_verdict"] for name, row in rows(run(tmp_path, "--baseline=ema")[0]).items()
    } == {"adamw": "later", "ema": "reference", "wild": "not shown"}


def test_a_run_that_never_generalises_is_said_so_and_averaged_nowhere(tmp_path):
    for seed in range(2):
        grok(tmp_path / f"runs/g/adamw/seed{seed}", seed, 200, 600)
        grok(tmp_path / f"runs/g/highpass/seed{seed}", seed, 300, 700 * seed)
    grok(tmp_path / "runs/g/other/seed5", 5, 300, 700)
    table, text = run(tmp_path)
    row = rows(table)["highpass"]
    assert row["reach_val_seed0"] == "not reached within 1000"
    assert row["reach_val_seed1"] == 700
    assert row["reach_ratio"] is None
    line = (
        "| highpass | 300, not reached within 1000 | 300, 700 | -, - | - "
        "| no ratio: never reached by 1 of 2 seeds, in the reference by 0 |"
    )
    assert line in text
    assert rows(table)["other"]["reach_verdict"] == "no seed in common"
    fake(tmp_path / "runs/maze/seed0")
    assert "reach_verdict" not in rows(run(tmp_path)[0])["maze"]


def test_the_first_time_counts_and_95_percent_is_enough():
    steps = np.arange(1, 7)
    assert stats.time_to_threshold(steps, np.array([0.1, 0.94, 0.95, 0.2, 1.0, 1.0])) == 3
    assert (
        stats.time_to_threshold(steps, np.full(6, 0.949))
        == stats.time_to_threshold(np.zeros(0), np.zeros(0))
        == np.inf
    )
    assert np.isnan(stats.ratio(np.array([2.0, np.inf]), np.array([1.0, 1.0]))).all()


def test_classes_have_a_table_of_their_own(tmp_path):
    path = fake(tmp_path / "runs/x/seed0", 0.8, task="features") / "summary.json"
    summary = json.loads(path.read_text())
    summary["data"] = {
        "ceiling": 0.876,
        "baseline_is": "always the most frequent class",
        "source": "ten trees",
    }
    path.write_text(
        json.dumps(summary | {"best_step": 75, "baseline": {"exact": 0.125, "cells": 0.125}})
    )
    _, text = run(tmp_path)
    line = (
        "| x | 80.0 (76.3-83.2) | 90.0 (87.1-92.3) | 87.6 "
        "| 12.5 (always the most frequent class) | 75 | 1 x 512 |"
    )
    assert line in text
    assert "valid %" not in text
    assert "| ten trees; ? / ? / ? train / val / test |" in text
    fake(tmp_path / "runs/maze/seed0")
    _, text = run(tmp_path)
    assert "| maze | 90.0" in text
    assert "valid %" in text
    assert "87.6" in text


def test_grokking_is_drawn(tmp_path):
    for name in ("adamw", "ema"):
        for seed in range(2):
            grok(tmp_path / f"runs/{name}/seed{seed}", seed, 200, 600)
    run(tmp_path, draw=True)
    drawn = (tmp_path / "results/grokking.svg").read_text()
    assert (
        (tmp_path / "results/grokking.png").exists()
        and "adamw (2 seeds)" in drawn
        and "always" not in drawn
    )
    assert drawn.count("stroke: #e69f00") + drawn.count("stroke: #E69F00") >= 4, (
        "a training line per entry and seed"
    )


FEATURES = {
    "data": {
        "task": "features",
        "features": 8,
        "classes": 4,
        "noise": 1.5,
        "train_rows": 120,
        "val_rows": 30,
        "test_rows": 50,
    },
    "model": {"mixer": "attention", "n_sup": 1, "halting": False, "T": 2, "n": 1},
    "train": {"steps": 30, "batch_size": 20, "eval_every": 30, "ema": 0.0},
}


def test_accuracy_at_other_depths_needs_no_retraining(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(analyze, "DEPTHS", ([1, 2, 3], [1, 4]))
    summaries = [
        train.train(tiny.config(seed, **FEATURES), tmp_path / f"runs/classify/seed{seed}")
        for seed in range(2)
    ]
    assert (
        analyze.main([str(tmp_path / "runs/classify"), "--depth", "--out", str(tmp_path / "out")])
        == 0
    )
    assert "mean of 2 seeds x 50 test rows" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "depth.csv",
        "depth.md",
        "depth.png",
        "depth.svg",
    ]
    with open(tmp_path / "out/depth.csv") as file:
        found = {
            (int(r["T"]), int(r["n"]), int(r["seed"])): float(r["exact"])
            for r in csv.DictReader(file)
        }
    assert len(found) == 12 and len({round(v, 6) for v in found.values()}) > 1
    for seed, summary in enumerate(summaries):
        assert found[2, 1, seed] == pytest.approx(summary["test"]["exact"], abs=1e-6), (
            "the trained depth gives the figure of the run"
        )
    cfg, net, _ = train.load_run(tmp_path / "runs/classify/seed1")
    net.cfg = dataclasses.replace(cfg.model, T=1, n=4)
    other = evaluate(net, train.data.load(cfg).test, cfg, train.make_world(cfg.train))
    assert (
        found[1, 4, 1] == pytest.approx(other["exact"], abs=1e-6)
        and found[1, 4, 1] != found[1, 1, 1] != found[2, 1, 1]
    )
    text = (tmp_path / "out/depth.md").read_text()
    assert (
        text.count("**") == 2
        and f"| 2 | **{50 * (found[2, 1, 0] + found[2, 1, 1]):.1f}** |" in text
        and "Best possible on these rows" in text
    )


def test_depths_of_nothing_or_of_several_configurations_are_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert analyze.main([str(tmp_path / "empty"), "--depth"]) == 2
    assert (
        capsys.readouterr().err
        == f"error: no best.pt below {tmp_path / 'empty'}, expected a run of train.py\n"
    )
    for lr in (0.01, 0.02):
        train.train(
            tiny.config(**FEATURES | {"train": FEATURES["train"] | {"lr": lr, "steps": 1}}),
            tmp_path / f"runs/{lr}/seed0",
        )
    assert analyze.main([str(tmp_path / "runs"), "--depth", "--out", str(tmp_path / "out")]) == 2
    assert (
        "differs from" in (err := capsys.readouterr().err)
        and "in train.lr, expected seeds of one configuration" in err
        and not (tmp_path / "out").exists()
    )


def test_made_up_runs_of_the_benchmark_are_read_whole(tmp_path):
    made_up.made_up_runs(tmp_path / "runs", 6, 300, puzzles=50)
    runs = analyze.load_runs([tmp_path / "runs"])
    assert len(runs) == 6 and all(
        len(r.train["step"]) == 297 and len(r.val["step"]) == 3 and not r.problem and not r.notes
        for r in runs
    )


# ------------------------------------------------------------ damaged folders, odd names, settings


def change(folder, **figures):
    """Other values in summary.json: change(folder, test__n=0)."""
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    for name, value in figures.items():
        place, _, key = name.rpartition("__")
        (summary[place] if place else summary)[key] = value
    path.write_text(json.dumps(summary))


@pytest.mark.parametrize(
    "figures, says",
    [
        ({"test__n": "many"}, "test.n = 'many', expected a number of rows"),
        ({"test__n": 0}, "test.n = 0, expected 1 to inf"),
        ({"test__exact": 1.5}, "test.exact = 1.5, expected 0 to 1"),
        ({"test__valid": "all"}, "test.valid = 'all', expected a number"),
        ({"test__curve": []}, "test.curve = [], expected a share for every supervision step"),
        ({"test__curve": [[0.5]]}, "test.curve = [0.5] is not finite"),
        ({"test_halting": None}, "test_halting.exact is missing"),
        ({"seconds__train_cpu": 0.0}, "seconds per step = 0.0, expected"),
        ({"parameters": 10**400}, "is not finite, expected a number"),
        ({"flop": "1e12"}, "flop = '1e12' is not finite, expected a number"),
        ({"hardware": ["CPU"]}, "hardware = ['CPU'], expected a text"),
        ({"data": []}, "data = [], expected an object"),
        ({"task": "chess"}, "task = 'chess', expected one of maze, "),
        ({"task": ["maze"]}, "task = ['maze'], expected one of maze, "),
    ],
)
def test_a_figure_that_is_none_is_named_and_the_other_runs_go_on(figures, says, tmp_path):
    fake(tmp_path / "runs/good/seed0")
    change(fake(tmp_path / "runs/bad/seed0"), **figures)
    table, text = run(tmp_path)
    assert [row["entry"] for row in table["entries"]] == ["good"]
    (found,) = table["unfinished"]
    assert found["entry"] == "bad/seed0" and says in found["status"]
    assert "summary.json is damaged (" in found["status"] and "- bad/seed0: summary" in text


@pytest.mark.parametrize("content", ["", "[1, 2]", '"text"', "null", "[" * 5000, "{" * 9])
def test_a_summary_that_is_none_is_named_and_the_other_runs_go_on(content, tmp_path):
    fake(tmp_path / "runs/good/seed0")
    (fake(tmp_path / "runs/bad/seed0") / "summary.json").write_text(content)
    table, _ = run(tmp_path)
    assert [row["entry"] for row in table["entries"]] == ["good"]
    assert "summary.json is damaged (" in table["unfinished"][0]["status"]


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\n",
        b"[1, 2]\n",
        b'{"split": "train", "loss": 1.0}\n',
        b'{"step": NaN, "split": "train", "loss": 1.0}\n',
        b'{"step": "7", "split": "val", "exact": 1.0}\n',
        b'{"step": 7, "split": ["val"]}\n',
        b"[" * 5000 + b"\n",
        b'{"step": 1' + b"0" * 5000 + b', "split": "train"}\n',
    ],
)
def test_a_damaged_line_of_the_metrics_is_counted(line, tmp_path):
    folder = fake(tmp_path / "runs/x/seed0")
    path = folder / "metrics.jsonl"
    path.write_bytes(line + path.read_bytes())
    table, _ = run(tmp_path)
    assert rows(table)["x"]["note"] == "metrics.jsonl has 1 damaged line(s), left out"
    assert analyze.load_run(folder).val["exact"].tolist() == [0.45, 0.9]


@pytest.mark.parametrize(
    "old, new, says",
    [
        ("seed = 0", 'seed = "0"', "seed = '0', expected an integer"),
        ("seed = 0", "seed = 2026-01-01", "expected an integer"),
        ("expected = 0.0", "expected = true", "expected = True is not finite, expected a number"),
        ("\nT = 2", "\nT = [2]", "model.T = [2], expected an integer"),
        ("\nT = 2", "", "model.T is missing"),
    ],
)
def test_a_key_of_another_type_is_named(old, new, says, tmp_path):
    fake(tmp_path / "runs/good/seed0")
    path = fake(tmp_path / "runs/bad/seed0") / "config.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    table, _ = run(tmp_path)
    assert [row["entry"] for row in table["entries"]] == ["good"]
    assert says in table["unfinished"][0]["status"]


def test_a_date_in_a_config_is_a_value_like_others(tmp_path):
    sweep(tmp_path, ("baseline", 0.5, {}), ("x", 0.6, {}), seeds=2)
    for path in tmp_path.glob("runs/sweep/x/*/config.toml"):
        path.write_text(path.read_text() + "day = 2026-01-01\n")
    table, text = run(tmp_path)
    assert "day = " in rows(table)["x"]["switch"] and "2026-01-01" in text


def test_flipped_bytes_in_the_verdicts_are_noted(tmp_path):
    solved = np.random.default_rng(0).random(4000) < 0.5
    folder = fake(tmp_path / "runs/x/seed0", solved=solved)
    data = bytearray((folder / "test.npz").read_bytes())
    for at in range(100, 130):
        data[at] ^= 0xFF
    (folder / "test.npz").write_bytes(data)
    table, _ = run(tmp_path)
    assert rows(table)["x"]["note"].startswith("test.npz is damaged or of another run")
    for solved in (np.array(["yes"] * 4000), np.ones(4000, complex), np.array([{}] * 4000)):
        np.savez(folder / "test.npz", exact=solved)
        assert analyze.load_run(folder).solved is None


def test_what_cannot_be_read_is_said_so(tmp_path):
    fake(tmp_path / "runs/good/seed0")
    for name in ("metrics.jsonl", "summary.json", "config.toml", "failed.txt"):
        folder = fake(tmp_path / f"runs/no_{name}/seed0", summary=name != "failed.txt")
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()
    os.mkfifo(fake(tmp_path / "runs/pipe/seed0", summary=False) / "failed.txt")
    table, _ = run(tmp_path)
    assert [row["entry"] for row in table["entries"]] == ["good"]
    problems = {row["entry"]: row["status"] for row in table["unfinished"]}
    assert len(problems) == 5
    for status in problems.values():
        assert status.startswith("cannot read ") and "(not a regular file)" in status


@pytest.mark.slow
def test_odd_names_are_shown_to_the_letter_in_tables_and_plots(tmp_path):
    odd = ["=cmd()|<b>", "a$b^{$ $", "esc\x1b[2J", os.fsdecode(b"\xff"), "baseline"]
    for k, name in enumerate(odd):
        for seed in (0, 1):
            solved = np.arange(40) < 20 + k + seed
            fake(tmp_path / f"runs/{name}/seed{seed}", seed=seed, solved=solved, flop=1e12)
    table, text = run(tmp_path, draw=True)
    assert r"| =cmd()\|&lt;b> |" in text and r"| esc\x1b[2J |" in text and r"| \udcff |" in text
    assert "\x1b" not in text and (tmp_path / "results/table.md").read_text() == text
    with open(tmp_path / "results/table.csv", newline="") as file:
        names = {row["entry"] for row in csv.DictReader(file)}
    assert names == {"'=cmd()|<b>", "a$b^{$ $", r"esc\x1b[2J", r"\udcff", "baseline"}
    drawn = {path.stem for path in (tmp_path / "results").glob("*.png")}
    assert drawn == {"learning", "steps", "accuracy", "cost", "halting", "stability"}
    assert "a$b^{$ $" in (tmp_path / "results/accuracy.svg").read_text()


@pytest.mark.slow
def test_plots_have_the_settings_of_the_library_whatever_the_users_are(tmp_path):
    for seed in (0, 1):
        fake(tmp_path / f"runs/maze/seed{seed}", seed=seed)
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: 40\nlines.linewidth: 9\n")
    bytes_of = []
    for name, settings in {
        "plain": {},
        "odd": {
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"),
        },
    }.items():
        words = [sys.executable, tiny.ROOT / "analyze.py", tmp_path / "runs", "--out"]
        done = subprocess.run(
            [*words, tmp_path / name], env=os.environ | settings, capture_output=True, text=True
        )
        assert done.returncode == 0 and done.stderr == ""
        bytes_of.append((tmp_path / name / "learning.svg").read_bytes())
    assert bytes_of[0] == bytes_of[1]


def test_a_plot_that_cannot_be_drawn_costs_no_table_and_no_other_plot(
    tmp_path, monkeypatch, capsys
):
    fake(tmp_path / "runs/maze/seed0")

    def broken(groups):
        raise ValueError("no ink")

    monkeypatch.setitem(analyze.plots.PLOTS, "learning", broken)
    run(tmp_path, draw=True)
    assert "no plot learning: ValueError: no ink" in capsys.readouterr().err
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert names == {"table.md", "table.csv", "table.json", "steps.png", "steps.svg"}


def test_figures_that_a_task_lacks_have_no_interval(tmp_path):
    fake(tmp_path / "runs/maze/seed0")
    fake(tmp_path / "runs/x/seed0", 0.8, task="features")
    row = rows(run(tmp_path)[0])["maze"]
    assert row["top3"] is None and row["top3_low"] is None and row["top3_high"] is None


@pytest.mark.slow
def test_a_control_run_that_lacks_a_figure_of_its_own_is_named(tmp_path):
    for name in ("good", "bad", "worse"):
        tiny.run(tmp_path / f"runs/{name}/seed0", **CONTROL)
    for name, key in (("bad", "wide"), ("worse", "cycles")):
        path = tmp_path / f"runs/{name}/seed0/summary.json"
        summary = json.loads(path.read_text())
        summary["control"][key] = "none"
        path.write_text(json.dumps(summary))
    assert analyze.main([str(tmp_path / "runs"), f"--out={tmp_path / 'out'}"]) == 0
    text = (tmp_path / "out/table.md").read_text()
    assert "- bad/seed0: summary.json is damaged (" in text and "| good |" in text
    assert "- worse/seed0: summary.json is damaged (" in text


def test_a_gain_is_not_called_a_drop(tmp_path):
    sweep(tmp_path, ("baseline", 0.6, {}), ("a", 0.643, {}), ("b", 0.66, {}), seeds=1)
    answer = run(tmp_path)[0]["answers"][QUESTIONS[0]]
    assert "drop" not in answer
    assert answer.startswith(
        "None is shown to hurt; none is below the baseline, nearest is a with +4."
    )


def test_tables_go_beside_the_runs_and_never_over_committed_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake(tmp_path / "runs/laptop/maze/seed0")
    assert analyze.main(["runs/laptop"]) == 0
    assert (tmp_path / "runs/laptop/analysis/table.md").exists()
    assert not (tmp_path / "results").exists()
    assert analyze.main(["runs/laptop"]) == 0, "a second time its own files are no runs"


# ---------------------------------------------------------------- grids of values


def grid_of_runs(root, **keys) -> None:
    """Two seeds of a run for every point of these keys, half of the puzzles solved or more."""
    points = list(itertools.product(*keys.values()))
    for k, point in enumerate(points):
        values = dict(zip(keys, point))
        name = ",".join(f"{key}={value}" for key, value in values.items())
        for seed in (0, 1):
            solved = [row < 20 + k + seed for row in range(40)]
            tables = {"model": {}, "train": {}}
            for key, value in values.items():
                table, _, last = key.partition(".")
                tables[table][last] = value
            fake(root / "x" / name / f"seed{seed}", seed=seed, solved=solved, **tables)


def test_every_key_that_differs_has_a_column(tmp_path):
    grid_of_runs(tmp_path / "runs", **{"train.lr": (0.001, 0.003), "model.dim": (32, 64)})
    text, files = analyze.analyze([tmp_path / "runs"], tmp_path / "out", tex=True)
    head = next(line for line in text.splitlines() if line.startswith("| entry | "))
    assert {"train.lr", "model.dim"} <= set(head.split(" | "))
    assert "| 0.003 |" in text and "train.steps" not in head
    rows = json.loads((tmp_path / "out/table.json").read_text())["entries"]
    found = {(row["train.lr"], row["model.dim"]) for row in rows}
    assert found == {(0.001, 32), (0.001, 64), (0.003, 32), (0.003, 64)}
    with open(tmp_path / "out/table.csv", newline="") as file:
        assert {row["train.lr"] for row in csv.DictReader(file)} == {"0.001", "0.003"}
    tex = (tmp_path / "out/table.tex").read_text()
    assert r"\toprule" in tex and r"\%" in tex and tex.count(r"\\") == 5
    assert "values.png" in files and "table.tex" in files
    assert Image.open(tmp_path / "out/values.png").size[0] > 200


@pytest.mark.parametrize(
    "keys, kind",
    [
        ({"train.lr": (0.001, 0.01, 0.1)}, "line"),
        ({"train.lr": (0.001, 0.01), "model.dim": (8, 16)}, "map"),
        ({"train.optimizer": ("adamw", "muon")}, ""),
        ({"train.lr": (0.1, 0.2), "model.dim": (8, 16), "model.n": (1, 2)}, ""),
    ],
)
def test_a_line_for_one_number_and_a_map_for_two(keys, kind, tmp_path, monkeypatch):
    grid_of_runs(tmp_path / "runs", **keys)
    drawn = []
    for name in ("line", "map"):
        plot = getattr(analyze.plots, f"plot_{name}")

        def note(groups, *keys, name=name, plot=plot):
            drawn.append((name, plot(groups, *keys)))
            return drawn[-1][1]

        monkeypatch.setattr(analyze.plots, f"plot_{name}", note)
    analyze.analyze([tmp_path / "runs"], tmp_path / "out")
    assert [name for name, _ in drawn] == [kind] * bool(kind)
    if kind == "line":
        (ax,) = drawn[0][1].axes
        assert ax.get_xscale() == "log" and ax.get_xlabel() == "train.lr"
        means = ax.lines[-1].get_ydata()
        assert list(means) == pytest.approx([51.25, 53.75, 56.25])
    if kind == "map":
        ax, _ = drawn[0][1].axes
        shown = [float(text.get_text()) for text in ax.texts]
        assert shown == pytest.approx([51.25, 56.25, 53.75, 58.75], abs=0.06)
        assert (ax.get_ylabel(), ax.get_xlabel()) == ("model.dim", "train.lr")


def test_letters_that_mean_something_to_latex_are_escaped():
    lines = latex(["a_b", "%"], [["x & y", "{50 %}"]])
    assert r"a\_b & \% \\" in lines and r"x \& y & \{50 \%\} \\" in lines
