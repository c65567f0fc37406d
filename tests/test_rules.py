"""The decision trees of the encoder plans over run folders, and the entries they are about."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

import analyze
import tiny
from config import flatten, load_config, merge, read_layers, to_toml
from tasks import arc_plots
from tasks import arc_rules as rules
from test_conditioned import ARC
from train import Config

SWEEPS = tiny.ROOT / "sweeps"


def fake(
    folder: Path,
    exact: float,
    seed: int = 0,
    cells: float = 0.95,
    steps: int = 1000,
    half: float | None = None,
    warmup: int = 100,
    **figures,
):
    """A finished ARC run: exact rises to `half` at half of the steps and on to `exact`."""
    folder.mkdir(parents=True)
    changes = merge(ARC, {"train": {"steps": steps, "warmup": warmup}})
    cfg = tiny.config(seed, **changes)
    (folder / "config.toml").write_text(to_toml(cfg, "sweeps/x.toml"))
    half = exact / 2 if half is None else half
    lines = []
    for step in range(10, steps + 1, 10):
        at = step / steps
        e = 2 * at * half if at <= 0.5 else half + (exact - half) * min(1, (at - 0.5) / 0.4)
        lines.append(
            {
                "step": step,
                "split": "train",
                "loss": figures.get("loss", 0.1)
                * (1 + figures.get("noise", 0) * (-1) ** (step // 10)),
                "exact": e,
                "cells": cells,
                "halted": 16,
                "encoder_variance": 0.4,
                "encoder_gradient": 0.3,
                "encoder_gradient_share": 0.4,
                "encoder_carry_rms": 1.0,
                "encoder_carry_change": 0.1,
                **{k: v for k, v in figures.items() if k.startswith("encoder")},
            }
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    side = {
        "exact": exact,
        "cells": cells,
        "n": 40,
        "copy_cells": 0.6,
        "context": {"true": exact, "shuffled": 0.1, "zero": 0.0},
    }
    test = {"exact": exact, "cells": cells, "steps": 2.0, "n": 40, "curve": [exact]}
    (folder / "summary.json").write_text(
        json.dumps(
            {
                "entry": "x",
                "seed": seed,
                "task": "arc",
                "test": test,
                "test_halting": test,
                "baseline": {"exact": 0.0, "cells": 0.6},
                "parameters": 5,
                "depth": 4,
                "steps": steps,
                "flop": 0,
                "test_puzzles": "p",
                "hardware": "1 x CPU, 1 thread(s)",
                "seconds": {"train": 9.0, "train_cpu": 9.0, "validation": 1.0, "test": 1.0},
                "data": {"rows": {}},
                "arc": {"train": side, "test": side},
            }
        )
    )
    return folder


def cells(tmp_path, figures: dict[str, float | list], **keys) -> dict[str, rules.Cell]:
    for name, values in figures.items():
        for seed, value in enumerate(values if isinstance(values, list) else [values]):
            fake(tmp_path / name / f"seed{seed}", value, seed, **keys)
    return rules.cells_of(analyze.load_runs([tmp_path]))


def fired(verdicts: list[rules.Verdict]) -> set[str]:
    return {v.rule for v in verdicts if v.fired}


# ---------------------------------------------------------------- the encoder debugging plan

FIXES = {"E4_lower_lr": 0.5, "E5_grad_clip": 0.5, "E6_combined": 0.5, "E7_attention": 0.5}
DEBUG = [  # figures, rules that fire, entries to run next
    ({"E0v2": 0.5, "E1v2": 0.95, "E_diag1": 0.5}, {"R3.0", "R3.6"}, []),
    ({"E0v2": 0.96, "E1v2": 0.93, "E_diag1": 0.5}, {"R3.1", "R3.6"}, []),
    ({"E0v2": 0.96, "E1v2": 0.6, "E_diag1": 0.5}, {"R3.2", "R3.6"}, []),
    ({"E0v2": 0.96, "E1v2": 0.6, "E_diag1": 0.92}, {"R3.3", "R3.6"}, rules.PHASE3),
    (
        {"E0v2": 0.96, "E1v2": 0.6, "E_diag1": 0.92, **FIXES, "E5_grad_clip": 0.97},
        {"R3.3", "R3.4", "R3.6"},
        [],
    ),
    (
        {"E0v2": 0.96, "E1v2": 0.6, "E_diag1": 0.92, **FIXES, "E6_combined": 0.97},
        {"R3.3", "R3.4", "R3.6", "R3.8"},
        [],
    ),
    ({"E0v2": 0.96, "E1v2": 0.6, "E_diag1": 0.92, **FIXES}, {"R3.3", "R3.5", "R3.6"}, rules.PHASE2),
    ({"E0v2": 0.96, "E1v2": 0.3, "E_diag1": 0.92}, {"R3.3", "R3.6", "R3.7"}, rules.PHASE3),
]


@pytest.mark.parametrize("figures, expected, then", DEBUG, ids=range(len(DEBUG)))
def test_the_tree_of_the_encoder_debugging_plan(figures, expected, then, tmp_path):
    found = rules.debug_rules(cells(tmp_path, figures))
    assert fired(found) == expected and rules.next_entries(found) == then


def test_what_is_not_known_is_open_and_asks_for_its_entries(tmp_path):
    found = rules.debug_rules(cells(tmp_path, {"E0v2": 0.96}))
    assert {v.rule for v in found if v.fired is None} >= {"R3.1", "R3.2", "R3.3"} and not fired(
        found
    )
    assert "next   E1v2, E_diag1" in rules.read(analyze.load_runs([tmp_path]))


def test_the_last_rule_of_the_debugging_plan_ends_in_a_redesign(tmp_path):
    found = rules.debug_rules(
        cells(
            tmp_path,
            {"E0v2": 0.96, "E1v2": 0.6, "E_diag1": 0.92, **FIXES, "E2_lpn": 0.6, "E3_lpn_var": 0.7},
        )
    )
    assert (
        next(v for v in found if v.rule == "R3.5").then == "redesign the encoder"
        and rules.next_entries(found) == []
    )
    assert next(v for v in found if v.rule == "R3.6").then == "grade: partial"


@pytest.mark.parametrize(
    "exact, grade", [(0.95, "minimal"), (0.85, "good"), (0.6, "partial"), (0.4, "fail")]
)
def test_grades(exact, grade, tmp_path):
    found = rules.debug_rules(cells(tmp_path, {"E0v2": 0.96, "E1v2": exact, "E_diag1": 0.99}))
    assert grade in next(v for v in found if v.rule == "R3.6").then


# ---------------------------------------------------------------- the recurrent encoder plan

THREE = [0.93, 0.95, 0.94]
RECURRENT = [
    ({"E0a": 0.90, "E0b": 0.95}, {}, {"R2.0", "R2.4"}, "helps"),
    ({"E0a": 0.905, "E0b": 0.91}, {}, {"R2.0", "R2.4"}, "no difference"),
    ({"E0a": 0.95, "E0b": 0.70}, {}, {"R2.1", "R2.4", "R2.7"}, "hurts"),
    ({"E0a": 0.95, "E0b": 0.86}, {}, {"R2.2", "R2.4", "R2.7"}, "behind"),
    ({"E0a": 0.95, "E0b": 0.40}, {}, {"R2.1", "R2.4", "R2.5", "R2.7"}, "hurts"),
    ({"E0a": 0.85, "E0b": 0.95}, {"encoder_gradient": 0.0}, {"R2.0", "R2.4", "R2.5"}, "helps"),
    ({"E0a": 0.85, "E0b": 0.95}, {"encoder_carry_rms": 20.0}, {"R2.0", "R2.4", "R2.6"}, "helps"),
]


@pytest.mark.parametrize("figures, keys, expected, word", RECURRENT, ids=range(len(RECURRENT)))
def test_the_tree_of_the_recurrent_encoder_plan(figures, keys, expected, word, tmp_path):
    found = rules.recurrent_rules(cells(tmp_path, figures, **keys))
    assert (
        fired(found) - {"R2.3"} == expected
        and word in next(v for v in found if v.rule == "R2.4").then
    )
    assert {v.rule for v in found if v.fired is None} == {
        "R2.8",
        "R2.9",
    }  # one seed says nothing about others


def test_recurrence_is_judged_by_its_interval_over_seeds(tmp_path):
    far = cells(tmp_path / "far", {"E0a": [0.80, 0.82, 0.81], "E0b": THREE})
    near = cells(tmp_path / "near", {"E0a": [0.90, 0.97, 0.93], "E0b": THREE})
    for found, sure in ((far, True), (near, False)):
        verdicts = {v.rule: v for v in rules.recurrent_rules(found)}
        assert verdicts["R2.8"].fired is sure and "3 seeds, paired" in verdicts["R2.8"].figures
    d = np.array([0.13, 0.13, 0.13])
    assert f"{100 * d.mean():+.1f} points" in rules.recurrent_rules(far)[-2].figures


def test_slower_recurrence_is_named(tmp_path):
    fake(tmp_path / "E0a/seed0", 0.95, half=0.95), fake(tmp_path / "E0b/seed0", 0.95)
    found = {
        v.rule: v for v in rules.recurrent_rules(rules.cells_of(analyze.load_runs([tmp_path])))
    }
    assert found["R2.3"].fired and "overhead" in found["R2.3"].then


def test_cells_are_judged_apart_from_exact_and_beside_what_copying_gets(tmp_path):
    cells(tmp_path, {"E0a": 0.5, "E0b": 0.4}, cells=0.95)
    text = rules.read(analyze.load_runs([tmp_path]))
    exact, written = text.split("on cells, as written")
    assert "R2.0  no" in exact and "R2.0  FIRED" in written and "| 60.0 % |" in exact
    assert all(f"{name} is E0b under another name" in text for name in ("E2b", "E3a", "E4b"))


def test_an_entry_of_any_name_is_one_cell_of_the_table(tmp_path):
    cells(tmp_path, {"a|b <i>": 0.5})
    line = rules.read(analyze.load_runs([tmp_path])).splitlines()[2]
    assert line.startswith(r"| a\|b &lt;i> | 1 |")
    assert line.replace(r"\|", "").count("|") == len(rules.HEADS) + 1


# ---------------------------------------------------------------- figures


def test_figures_are_means_over_late_lines_and_seeds(tmp_path):
    found = cells(tmp_path, {"E0v2": [0.8, 1.0]})["E0v2"]
    assert (
        found.mean("exact") == pytest.approx(0.9)
        and found.figures["exact"] == pytest.approx([0.8, 1.0])
        and found.mean("cells") == pytest.approx(0.95)
    )
    fake(tmp_path / "E1v2/seed0", 0.89)
    path = tmp_path / "E1v2/seed0/metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-1] |= {"exact": 0.0, "halted": 1}  # few rows, little weight
    del lines[-2]["exact"], lines[-2]["cells"]  # none halted
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{broken\n")
    late = rules.figures_of(tmp_path / "E1v2/seed0")
    assert late["exact"] == pytest.approx(0.89 * 8 * 16 / (8 * 16 + 1), rel=1e-3) and late[
        "half"
    ] == pytest.approx(0.41, abs=0.02)
    assert 800 < late["exact_t80"] < 1000 and late["exact_t90"] == math.inf
    text = rules.read(analyze.load_runs([tmp_path]))
    assert "(80.0 % to 100.0 %)" in text and "n = 2 x 40" in text and "n = 1 x 40" in text


def test_the_matrix_says_how_the_cells_came_to_be(tmp_path):
    found = cells(tmp_path, {"E0a": [0.95, 0.85], "E0b": [0.6, 0.5]}, encoder_variance=0.25)
    lines = rules.read(analyze.load_runs([tmp_path])).splitlines()
    head = "| " + " | ".join(rules.MATRIX) + " |"
    assert head in lines
    rows = {line.split(" | ")[0]: line.split(" | ") for line in lines[lines.index(head) :]}
    a, b = (dict(zip(rules.MATRIX, rows[f"| {name}"], strict=True)) for name in ("E0a", "E0b"))
    assert a["context variance"] == "0.25"
    assert a["steps per example"] == "-"  # these made-up runs do not tell
    assert a["first at 90 %"].endswith("(1 of 2 seeds)")
    assert b["first at 80 %"] == "never"
    assert found["E0a"].mean("converged") <= 1000
    assert rules.first_at(found["E0a"], "exact_t80").startswith("step ")


def test_other_budgets_and_configurations_are_pointed_out(tmp_path):
    (
        fake(tmp_path / "E0v2/seed0", 0.9),
        fake(tmp_path / "E1v2/seed0", 0.9, steps=500),
        fake(tmp_path / "E1v2/seed1", 0.2, seed=1, steps=600),
    )
    fake(tmp_path / "E_diag1/seed0", 0.9, warmup=200)
    text = rules.read(analyze.load_runs([tmp_path]))
    assert (
        "unequal steps" in text
        and "E1v2: 1 run(s) of another configuration" in text
        and "E_diag1: its warm-up is more than a tenth" in text
    )


def test_asking_any_pair_is_asking_all():
    def warnings(mode, targets):
        other = {"arc.mode": "embed", "arc.targets": "all"}
        return [
            *rules.warnings(
                {
                    "E1v2": rules.Cell(
                        "E1v2", configs=[{"arc.mode": mode, "arc.targets": targets}]
                    ),
                    "E0v2": rules.Cell("E0v2", configs=[other]),
                }
            )
        ]

    assert (
        warnings("loo", "queries") == []
        and "unequal target pairs" in warnings("fewshot", "queries")[0]
    )


def test_analyze_prints_the_rules_and_draws(tmp_path, capsys):
    fake(tmp_path / "runs/E1v2/seed0", 0.9), fake(tmp_path / "runs/E0v2/seed0", 0.96)
    g = np.random.default_rng(0)
    labels = g.integers(2, 12, (7, 9))
    np.savez(
        tmp_path / "runs/E1v2/seed0/answers.npz",
        test_inputs=labels,
        test_labels=np.where(labels > 10, -100, labels),
        test_answers=np.maximum(labels - (labels == 5), 2),
    )
    part = {"0": {"exact": 0.1}, "1": {"exact": 0.5}}
    (tmp_path / "runs/E1v2/seed0/probes.json").write_text(
        json.dumps({"demos": {"train": part, "test": part}})
    )
    assert analyze.main(["--rules", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert (
        "R3.1  FIRED" in text
        and "success" in text
        and (tmp_path / "out/rules.md").read_text() in text
    )
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "rules.md",
        "arc_curves.png",
        "arc_health.png",
        "arc_demos.png",
        "arc_grids_E1v2.png",
    }
    assert arc_plots.TOKENS.N == 12


def test_the_carry_of_recurrent_encoders_is_drawn_step_by_step(tmp_path):
    def carried(folder: Path, moves: list[float], rest: float, seed: int) -> None:
        path = fake(folder, 0.9, seed) / "summary.json"
        summary = json.loads(path.read_text())
        summary["arc"]["test"] |= {"carry_change": moves, "convergence_steps": rest}
        path.write_text(json.dumps(summary))

    carried(tmp_path / "E0b/seed0", [0.5, 0.2, 0.1], 5.0, 0)
    carried(tmp_path / "E0b/seed1", [0.7, 0.4, 0.0], 4.0, 1)
    fake(tmp_path / "E0a/seed0", 0.9)
    runs = analyze.load_runs([tmp_path])
    ax = arc_plots.plot_carry(arc_plots.by_entry(runs)).axes[0]
    mean = next(line for line in ax.lines if line.get_label() == "E0b (2 seeds)")
    assert mean.get_xdata().tolist() == [2, 3, 4]
    np.testing.assert_allclose(mean.get_ydata(), [0.6, 0.3, 0.05])
    assert len(ax.lines) == 3  # the seeds and their mean; E0a carries nothing
    found = rules.cells_of(runs)
    at = rules.MATRIX.index("at rest after steps")
    assert rules.matrix_row(found["E0b"])[at] == "4.5"
    assert rules.matrix_row(found["E0a"])[at] == "-"
    assert (
        arc_plots.plot_carry(arc_plots.by_entry([r for r in runs if "E0a" in str(r.folder)]))
        is None
    )


def test_rules_without_arc_runs_are_one_sentence(tmp_path, capsys):
    from test_analyze import fake as other

    other(tmp_path / "runs/maze/seed0")
    assert analyze.main(["--rules", str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_older_runs_hold_the_tables_of_other_tasks_and_are_seeds_of_the_same_entry(tmp_path):
    from test_analyze import fake as other

    every = to_toml(tiny.config(**ARC), "sweeps/x.toml")
    tables_of_arc = every[every.index("[arc]") :]  # and [encoder], as every older folder held them
    assert "[encoder]" in tables_of_arc and "[train]" not in tables_of_arc
    for seed in (0, 1):
        path = other(tmp_path / f"runs/maze/seed{seed}", 0.9, seed=seed) / "config.toml"
        text = path.read_text()
        assert "[arc]" not in text and "[encoder]" not in text
        if seed:
            path.write_text(f"{text}\n{tables_of_arc}")
    (group,) = analyze.group(analyze.load_runs([tmp_path / "runs"]))
    assert len(group.runs) == 2 and group.name == "maze"


def test_analyze_needs_no_torch_for_rules():
    import subprocess
    import sys

    code = "import analyze, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT).returncode == 0


# ---------------------------------------------------------------- entries


def load(path: str) -> Config:
    return load_config(Config, SWEEPS / path, {})


def test_every_entry_of_the_plans_is_there():
    for folders, names in (
        (("encoders_debug", "encoders_laptop"), rules.DEBUG),
        (("recurrent", "recurrent_laptop"), rules.RECURRENT),
    ):
        for folder in folders:
            there = {path.stem for path in (SWEEPS / folder).iterdir()}
            assert set(names) <= there, folder
            assert not there & set(rules.SAME), folder


def test_sweeps_have_equal_budgets_and_short_warm_ups():
    for folder, steps in (("encoders_debug", 12500), ("recurrent", 2500)):
        for path in (SWEEPS / folder).glob("*.toml"):
            cfg = load(f"{folder}/{path.name}")
            assert cfg.train.warmup <= 0.1 * cfg.train.steps
            if path.stem != "decoder":
                assert (
                    cfg.train.steps,
                    cfg.arc.train_tasks,
                    cfg.arc.test_tasks,
                    cfg.arc.val_tasks,
                    cfg.arc.targets,
                ) == (steps, 32, 32, 0, "queries"), path
    for folder, steps in (("encoders_laptop", 3000), ("recurrent_laptop", 4000)):
        for path in (SWEEPS / folder).glob("*.toml"):
            cfg = load(f"{folder}/{path.name}")
            assert cfg.train.steps == steps, path
            assert cfg.train.warmup <= 0.1 * cfg.train.steps, path
            assert cfg.arc == dataclasses.replace(
                load("encoders_laptop/E1v2.toml").arc,
                mode=cfg.arc.mode,
                targets=cfg.arc.targets,
                demos=cfg.arc.demos,
            ), path


OVERRIDES = {
    "E_diag1": {"encoder.frozen": True},
    "E2_lpn": {"encoder.kind": "lpn_standard", "encoder.layers": 4},
    "E4_lower_lr": {"train.lr": 3e-5},
    "E3_lpn_var": {"encoder.kind": "lpn_variational", "encoder.layers": 4},
    "E5_grad_clip": {"train.clip": 1.0},
    "E7_attention": {"encoder.pooling": "attention"},
    "E6_combined": {"encoder.pooling": "attention", "train.lr": 3e-5, "train.clip": 1.0},
    "E0v2": {"arc.mode": "embed", "encoder.kind": "none"},
}
RECURRENT_OVERRIDES = {
    "E0a": {"encoder.kind": "standard"},
    "E1a": {"encoder.layers": 4},
    "E1b": {"encoder.layers": 4, "encoder.norm_place": "pre", "train.batch_size": 128},
    "E2a": {"model.n_sup": 8},
    "E2c": {"model.n_sup": 32},
    "E2d": {"model.explore": 0.7},
    "E2e": {"model.explore": 0.0},
    "E3b": {"train.lr": 5e-5},
    "E3c": {"train.lr": 2e-4},
    "E3d": {"encoder.lr": 0.5},
    "E4a": {"train.batch_size": 128},
    "E4c": {"train.batch_size": 512},
}


@pytest.mark.parametrize(
    "folder, base, overrides",
    [("encoders_debug", "E1v2", OVERRIDES), ("recurrent", "E0b", RECURRENT_OVERRIDES)],
)
def test_entries_differ_from_their_base_by_what_the_plans_say(folder, base, overrides):
    of_base = flatten(load(f"{folder}/{base}.toml"))
    for name, expected in overrides.items():
        found = {
            k: v
            for k, v in flatten(load(f"{folder}/{name}.toml")).items()
            if of_base[k] != v and k != "hypothesis"
        }
        expected = expected | (
            {"encoder.decoder": of_base["encoder.decoder"]}
            if name == "E0v2" and of_base["encoder.decoder"]
            else {}
        )
        assert found == expected, name
        assert len(read_layers(SWEEPS / folder / f"{name}.toml")) == 2
    b = load("recurrent/E0b.toml")
    assert (
        b.encoder.kind,
        b.model.n_sup,
        b.model.explore,
        b.train.clip,
        b.train.batch_size,
        b.train.lr,
    ) == ("recurrent_standard", 16, 0.5, 1.0, 256, 1e-4)
    assert dataclasses.asdict(load("encoders_debug/E1v2.toml").encoder)["kind"] == "standard"


ELSEWHERE = {  # what the laptop twins have in their base, or the other way round
    "E0v2": {"encoder.layers", "encoder.heads", "encoder.positions", "encoder.norm_place",
             "encoder.multiple", "encoder.expansion", "train.puzzle_lr", "arc.targets"},
    "E1b": {"encoder.norm_place"},
}  # fmt: skip


@pytest.mark.parametrize(
    "full, small, base, names",
    [
        ("encoders_debug", "encoders_laptop", "E1v2", rules.DEBUG),
        ("recurrent", "recurrent_laptop", "E0b", rules.RECURRENT),
        ("recurrent", "recurrent_laptop", "E0b", ["trm_style"]),
    ],
)
def test_a_laptop_twin_changes_what_the_entry_of_full_size_changes(full, small, base, names):
    def changed(folder: str, name: str) -> set[str]:
        of_base = flatten(load(f"{folder}/{base}.toml"))
        of_entry = flatten(load(f"{folder}/{name}.toml"))
        return {key for key in of_base if of_base[key] != of_entry[key]} - {"hypothesis"}

    for name in names:
        differ = changed(full, name) ^ changed(small, name)
        assert differ <= ELSEWHERE.get(name, set()), (name, differ)


def test_an_interval_over_equal_seeds_is_that_of_their_queries():
    equal = [{"exact": 1.0, "n": 40}] * 3
    assert rules.pooled(equal) == "100.0 % (91.2 % to 100.0 %; n = 3 x 40)"
    spread = [{"exact": share, "n": 40} for share in (0.2, 0.5, 0.8)]
    low, high = (float(word) for word in re.findall(r"([\d.]+) %(?: to|;)", rules.pooled(spread)))
    assert low < 20 and high > 80
