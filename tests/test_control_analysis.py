"""What analyze.py says about control runs: the document's table, references, the rule for verdicts, sentences, plots."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import control_analysis
import control_metrics
import tiny
from analyze import main
from test_planner import CONTROL


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A baseline and two entries, two seeds each, of a few steps."""
    root = tmp_path_factory.mktemp("runs") / "small"
    for name, model in (
        ("baseline", {}),
        ("rmsnorm_only", {"norm": "layer"}),
        ("full_trm", {"norm_place": "pre"}),
    ):
        for seed in (0, 1):
            tiny.run(
                root / name / f"seed{seed}",
                **{**CONTROL, "model": CONTROL["model"] | model},
                seed=seed,
            )
    return root


def test_a_folder_of_control_runs_becomes_tables_plots_and_sentences(runs, tmp_path, capsys):
    (runs / "swiglu_only" / "seed0").mkdir(parents=True, exist_ok=True)
    (runs / "swiglu_only" / "seed0" / "failed.txt").write_text("out of memory")
    assert main([str(runs), f"--out={tmp_path}"]) == 0
    said = capsys.readouterr().out
    names = {
        "table.md",
        "table.csv",
        "ablation_analysis.json",
        *(
            f"{plot}.{kind}"
            for plot in ("ablation_plots", "cycles", "plans")
            for kind in ("png", "svg")
        ),
    }
    assert {p.name for p in tmp_path.iterdir()} == names and all(
        p.stat().st_size > 100 for p in tmp_path.iterdir()
    )
    found = json.loads((tmp_path / "ablation_analysis.json").read_text())["double_integrator"]
    assert (
        set(found["configs"]) == {"baseline", "rmsnorm_only", "full_trm"}
        and found["configs"]["baseline"]["verdict"] == "reference"
    )
    assert (
        found["best_config"]
        == min(found["configs"].values(), key=lambda row: row["primary"])["entry"]
    )
    assert {"zero control", "least squares", "nearest neighbour"} <= {
        row["policy"] for row in found["references"]
    }
    least = next(row for row in found["references"] if row["policy"] == "least squares")
    assert least["mse"] < 1e-20 and least["open_success@0.02"] == 1
    assert [impact["config"] for impact in found["feature_impacts"]] == ["rmsnorm_only"]
    assert (
        "Q2: Does RMSNorm help?" in said
        and "Q3: Does post-norm help? Not run." in said
        and "Q6" in said
    )
    assert "swiglu_only/seed0: failed" in said and "out of memory" in said


def group(name, primaries, losses=(1.0, 0.5)):
    def run(seed, primary):
        found = {"success@0.2": 1.0, "to_optimum_median": 1.0}
        return SimpleNamespace(seed=seed, train={"step": np.arange(len(losses)), "loss": np.array(losses)}, summary={
            "test": {"primary": primary, "cells": 1 + 10**primary, "mse": 0.1}, "control": {"open": found, "wide": {"open": found}, "ms_per_plan": 1.0},
            "parameters": 10, "depth": 3, "steps": 2})  # fmt: skip

    members = [run(seed, primary) for seed, primary in enumerate(primaries)]
    return SimpleNamespace(name=name, runs=members, first=members[0].summary)


def test_a_verdict_needs_an_interval_without_zero_and_lower_is_better():
    base = group("baseline", [-2.0, -2.1, -1.9, -2.05, -1.95])
    seeds = np.array([0.0, -0.1, 0.1, -0.05, 0.05])
    for shift, noise, expected in (
        (-0.3, 0.02, "helps"),
        (0.3, 0.02, "hurts"),
        (-0.05, 0.5, "not shown"),
    ):
        row = control_analysis.describe(
            group("x", list(-2 + seeds + shift + noise * np.array([1, -1, 0.5, -0.5, 0]))), base
        )
        assert row["verdict"] == expected and row["difference"] == pytest.approx(shift, abs=1e-9)
        assert row["difference_low"] < shift < row["difference_high"]
    assert (
        control_analysis.describe(group("x", [-3.0]), base)["verdict"] == "not shown"
    )  # one seed shows nothing about others
    assert (
        control_analysis.describe(base, base)["verdict"] == "reference"
        and control_analysis.describe(base, None)["verdict"] == "no baseline"
    )


def test_improvement_is_the_documents():
    """100 (baseline - x) / baseline on the best training loss."""
    row = control_analysis.describe(
        group("x", [-2.0, -2.0], losses=(1.0, 0.4, 0.6)), group("baseline", [-2.0, -2.0])
    )
    assert (
        row["improvement_percent"] == pytest.approx(20)
        and row["best_loss"] == 0.4
        and row["final_loss"] == 0.6
    )


def test_json_has_no_infinity():
    assert control_metrics.finite({"a": [1.0, float("inf"), {"b": float("nan")}]}) == {
        "a": [1.0, None, {"b": None}]
    }
