"""What analyze.py says about control runs: table, references, rule for verdicts, plots."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import tiny
from analyze import main
from tasks import control_tables
from tasks.control_report import finite
from test_planner import CONTROL

ENTRIES = {"baseline": {}, "rmsnorm_only": {"norm": "layer"}, "full_trm": {"norm_place": "pre"}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A baseline and two entries, two seeds each, of a few steps."""
    root = tmp_path_factory.mktemp("runs") / "small"
    for name, model in ENTRIES.items():
        tables = CONTROL | {"model": CONTROL["model"] | model}
        for seed in (0, 1):
            tiny.run(root / name / f"seed{seed}", **tables, seed=seed)
    return root


def plot_files(*plots):
    return {f"{plot}.{kind}" for plot in plots for kind in ("png", "svg")}


TABLES = {"table.md", "table.csv", "ablation_analysis.json"}


@pytest.mark.slow
def test_a_folder_of_control_runs_becomes_tables_plots_and_sentences(runs, tmp_path, capsys):
    failed = runs / "swiglu_only" / "seed0"
    failed.mkdir(parents=True)
    (failed / "failed.txt").write_text("out of memory")
    assert main([str(runs), f"--out={tmp_path}"]) == 0
    printed = capsys.readouterr().out

    files = list(tmp_path.iterdir())
    expected = TABLES | plot_files("ablation_plots", "cycles", "plans")
    assert {file.name for file in files} == expected
    assert all(file.stat().st_size > 100 for file in files)

    found = json.loads((tmp_path / "ablation_analysis.json").read_text())["double_integrator"]
    configs = found["configs"]
    assert set(configs) == set(ENTRIES)
    assert configs["baseline"]["verdict"] == "reference"
    best = min(configs.values(), key=lambda row: row["primary"])
    assert found["best_config"] == best["entry"]
    others = {row["policy"]: row for row in found["references"]}
    assert {"zero control", "least squares", "nearest neighbour"} <= set(others)
    assert any(name.startswith("MLP, 2 x ") for name in others)
    least = others["least squares"]
    assert least["mse"] < 1e-20 and least["open_success@0.02"] == 1
    assert [impact["config"] for impact in found["feature_impacts"]] == ["rmsnorm_only"]

    assert "Q2: Does RMSNorm help?" in printed
    assert "Q3: Does post-norm help? Not run." in printed
    assert "Q6" in printed
    assert "swiglu_only/seed0: failed" in printed and "out of memory" in printed
    assert "torch is not installed" not in printed


def test_without_torch_the_mlp_is_left_out_and_a_sentence_says_so(
    runs, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torch", None)  # what an import then raises: ImportError
    assert main([str(runs), f"--out={tmp_path}"]) == 0
    expected = TABLES | plot_files("ablation_plots", "cycles")
    assert {file.name for file in tmp_path.iterdir()} == expected
    printed = capsys.readouterr().out
    assert printed.count("torch is not installed: the MLP") == 1
    assert "| MLP" not in printed and "| least squares |" in printed


def group(name, primaries, losses=(1.0, 0.5), ratio="to_optimum"):
    """A Group of analyze.py in miniature: one run per primary figure."""

    def run(seed, primary):
        figures = {"success@0.2": 1.0, "to_optimum_median": 1.0}
        summary = {
            "test": {"primary": primary, ratio: 1 + 10**primary, "mse": 0.1},
            "control": {"open": figures, "wide": {"open": figures}, "ms_per_plan": 1.0},
            "parameters": 10,
            "depth": 3,
            "steps": 2,
        }
        train = {"step": np.arange(len(losses)), "loss": np.array(losses)}
        return SimpleNamespace(seed=seed, train=train, summary=summary)

    members = [run(seed, primary) for seed, primary in enumerate(primaries)]
    return SimpleNamespace(name=name, runs=members, first=members[0].summary)


BASE = group("baseline", [-2.0, -2.1, -1.9, -2.05, -1.95])


@pytest.mark.parametrize(
    "shift, noise, verdict",
    [(-0.3, 0.02, "helps"), (0.3, 0.02, "hurts"), (-0.05, 0.5, "not shown")],
)
def test_a_verdict_needs_an_interval_without_zero_and_lower_is_better(shift, noise, verdict):
    seeds = np.array([0.0, -0.1, 0.1, -0.05, 0.05])  # as in BASE
    errors = noise * np.array([1, -1, 0.5, -0.5, 0])
    row = control_tables.describe(group("x", list(-2 + seeds + shift + errors)), BASE)
    assert row["verdict"] == verdict
    assert row["difference"] == pytest.approx(shift, abs=1e-9)
    assert row["difference_low"] < shift < row["difference_high"]


def test_one_seed_shows_nothing_about_others():
    assert control_tables.describe(group("x", [-3.0]), BASE)["verdict"] == "not shown"


def test_a_baseline_is_the_reference_and_without_one_there_is_no_verdict():
    assert control_tables.describe(BASE, BASE)["verdict"] == "reference"
    assert control_tables.describe(BASE, None)["verdict"] == "no baseline"


def test_improvement_is_the_documents():
    """100 (baseline - x) / baseline on the best training loss."""
    changed = group("x", [-2.0, -2.0], losses=(1.0, 0.4, 0.6))
    row = control_tables.describe(changed, group("baseline", [-2.0, -2.0]))
    assert row["improvement_percent"] == pytest.approx(20)
    assert row["best_loss"] == 0.4
    assert row["final_loss"] == 0.6


def test_speed_steadiness_and_gap_are_columns():
    falling = [1.0] * 11 + [0.4, 3.0, 0.21, 0.2, 0.2]
    x = group("x", [-2.0, -2.1], losses=falling)
    for run, error in zip(x.runs, (0.04, 0.06)):
        run.summary["control"]["train_mse"] = error
    row = control_tables.describe(x, BASE)
    assert row["settled"] == 13  # the first within a tenth of 0.2
    assert row["jumps"] == 1  # to 3.0
    columns = {name: cell(row) for name, cell in control_tables.ENTRY_COLUMNS.items()}
    assert columns["settled at step"] == "13"
    assert columns["jumps of the loss"] == "1.0"
    assert columns["mse on test / training rows"] == "2.00"  # 0.1 over 0.05
    older = control_tables.describe(BASE, BASE)
    assert control_tables.ENTRY_COLUMNS["mse on test / training rows"](older) == "-"


def test_the_best_configuration_is_one_of_the_seven():
    named = [("single_pass", -3.0), ("swiglu_only", -2.5), ("full_trm", -2.2)]
    rows = [control_tables.describe(group(name, [p, p - 0.1]), BASE) for name, p in named]
    assert control_tables.best_of(rows).startswith("Lowest: swiglu_only")
    assert control_tables.best_of(rows[:1]).startswith("Lowest: single_pass")
    assert "single_pass" in control_tables.best_of(rows)  # it beats the baseline, all the same
    study = control_tables.Study(None, [], None, rows, [], {})
    assert study.result()["best_config"] == "swiglu_only"


@pytest.mark.parametrize("name", ["to_optimum", "cells"])
def test_older_folders_call_the_ratio_cells(name):
    row = control_tables.describe(group("x", [-1.0, -1.0], ratio=name), None)
    assert row["to_optimum"] == pytest.approx(1.1)


def test_json_has_no_infinity():
    figures = {"a": [1.0, float("inf"), {"b": float("nan")}]}
    assert finite(figures) == {"a": [1.0, None, {"b": None}]}
