"""Run folders to tables and plots: `python analyze.py runs/laptop [more folders] [--out results/laptop]`.

Reads the small files of every run folder below (summary.json, config.toml, metrics.jsonl, test.npz), never a checkpoint, so plots can be
drawn again years later. Seeds of one entry are averaged; runs of other configurations or other data never are. Writes table.md, table.csv,
table.json, learning.png and steps.png (and .svg). Where a folder has an entry called "baseline" (or as --baseline says), the others are
compared with it, seed by seed and puzzle by puzzle, and accuracy, cost, halting and stability are drawn too. Modular addition: the steps
until 95 % of the validation rows are right, and grokking.png. Runs that are missing, failed, unfinished or broken are listed by name.

`python analyze.py --depth runs/features/classify/seed0` evaluates a trained net (this needs torch and best.pt) on the test rows with other T and n
than it was trained with, and writes depth.md, depth.csv and depth.png (and .svg). Exit codes: 0 done, 2 bad input.
"""

import csv
import dataclasses
import json
import math
import os
import re
import sys
import zipfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

import arc_plots
import control_analysis
import plots
import rules
from config import SHARED, Parser, flatten, read_toml
from data import UserError
from stats import (
    GOAL,
    excludes_zero,
    first_reached,
    interval,
    last_third,
    paired,
    ratio,
    spikes,
    wilson,
)

FIGURES = {
    "exact": "test",
    "valid": "test",
    "optimal": "test",
    "cells": "test",
    "top3": "test",
    "halting_exact": "test_halting",
    "halting_steps": "test_halting",
}
CLOCKS = ("train", "train_cpu", "validation", "test")
COLUMNS = {
    "train": ("step", "loss"),
    "val": ("step", "seconds", "exact", "halting_steps", "n"),
}  # what is kept of metrics.jsonl


@dataclass
class Run:
    folder: Path
    seed: int = -1
    config: dict = field(default_factory=dict)  # {"data.size": 15, ...} from config.toml
    train: dict = field(
        default_factory=dict
    )  # {"step": (lines,), "loss": (lines,), ...} from metrics.jsonl
    val: dict = field(default_factory=dict)
    summary: dict = field(default_factory=dict)  # empty: not finished
    solved: np.ndarray | None = None  # (puzzles,) bool from test.npz
    problem: str = ""  # why its figures cannot be used
    notes: list = field(default_factory=list)  # what is odd about figures that can be used

    @property
    def entry(self) -> Path:
        return self.folder.parent

    def figure(self, name: str) -> float:
        """One of FIGURES, NaN where this task has none."""
        return float(self.summary[FIGURES[name]].get(name.removeprefix("halting_"), math.nan))

    @property
    def step_seconds(self) -> float:
        """A training step, on the clock that other work on the machine disturbs least: CPU time on a CPU, else the wall clock."""
        return (
            self.summary["seconds"][
                "train_cpu" if "thread(s)" in self.summary.get("hardware", "") else "train"
            ]
            / self.summary["steps"]
        )

    @property
    def spread(self) -> float:
        """Standard deviation of the validation accuracy over the last third of training."""
        return last_third(self.val["step"], self.val["exact"])

    @cached_property
    def learned(self) -> dict:
        """Accuracy against the step: {"train": (steps, exact), "val": (steps, exact)} from metrics.jsonl."""
        return read_learned(self.folder / "metrics.jsonl")

    @property
    def reached(self) -> dict[str, float]:
        """Modular addition: the steps until GOAL of the training rows, and of the validation rows, are right; infinity: never."""
        return {split: first_reached(*curve) for split, curve in self.learned.items()}

    @property
    def spikes(self) -> float:
        return spikes(self.train["loss"]) if len(self.train["loss"]) else math.nan


@dataclass
class Group:
    """The finished seeds of one configuration."""

    name: str
    runs: list[Run]
    base: "Group | None" = None  # the baseline it is compared with; a baseline is its own
    alone: str = ""  # why it is not compared, though there is a baseline
    accuracy: tuple = (
        math.nan,
    ) * 3  # where compared: exact test accuracy, with its 95 % interval for other seeds and puzzles
    difference: tuple = (math.nan,) * 3  # the same minus the baseline's, paired

    @property
    def first(self) -> dict:
        return self.runs[0].summary

    @property
    def trivial(self) -> str:
        """What the baseline of the data does."""
        return self.first["data"].get("baseline_is", "copying the question")

    def each(self, name: str) -> list[float]:
        """One value per seed: of FIGURES, or step_seconds, spread, spikes."""
        return [r.figure(name) if name in FIGURES else getattr(r, name) for r in self.runs]

    def mean(self, name: str) -> tuple[float, float, float]:
        """(mean, low, high): over seeds their smallest and largest; for one seed the 95 % interval of its share of puzzles."""
        values = self.each(name)
        if len(values) > 1 or name in (
            "cells",
            "halting_steps",
        ):  # cells of one puzzle are not independent: no interval
            return float(np.mean(values)), min(values), max(values)
        return values[0], *wilson(values[0], self.runs[0].summary["test"]["n"])

    @property
    def verdict(self) -> str:
        return (
            "reference"
            if self.base is self
            else verdict(len(shared(self.base, self)), *self.difference)
        )

    def per_puzzle(self, seeds: list[int]) -> np.ndarray:
        """(seeds, puzzles) solved exactly; (seeds, 1) shares if a run has no test.npz."""
        runs = [next(r for r in self.runs if r.seed == seed) for seed in seeds]
        if any(r.solved is None for r in runs):
            return np.array([[r.figure("exact")] for r in runs])
        return np.stack([r.solved for r in runs]).astype(float)


# ---------------------------------------------------------------- reading

# A training line as train.py writes it. Reading these, nearly all, only as far as they matter is five times as fast as parsing them.
TRAIN_LINE = re.compile(
    r'^\{"step": (\d+), "split": "train", "loss": (-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|NaN|-?Infinity)(?:, .*)?\}$\n?',
    re.MULTILINE,
)


def read_metrics(path: Path) -> tuple[dict, dict, int]:
    """The training and validation columns of a metrics.jsonl, and how many of its lines are damaged (they are left out)."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    pieces = TRAIN_LINE.split(
        text
    )  # what no training line matched, step, loss, what no training line matched, ...
    rows, damaged = {"train": [*zip(pieces[1::3], pieces[2::3])], "val": []}, 0
    for line in filter(None, "".join(pieces[::3]).split("\n")):
        try:
            record = json.loads(line)
            rows[record["split"]].append(
                [
                    float(record["step"]),
                    *(number(record.get(key)) for key in COLUMNS[record["split"]][1:]),
                ]
            )
        except (ValueError, TypeError, KeyError):
            damaged += 1
    train, val = (
        np.array(rows[split], dtype=float).reshape(-1, len(keys)) for split, keys in COLUMNS.items()
    )
    train = train[train[:, 0].argsort(kind="stable")]
    return dict(zip(COLUMNS["train"], train.T)), dict(zip(COLUMNS["val"], val.T)), damaged


def read_learned(path: Path) -> dict:
    """Accuracy against the step, on the training rows between two lines and in validation: {"train": (steps, exact), "val": ...}."""
    rows = {"train": [], "val": []}
    for line in (
        path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ()
    ):
        try:
            record = json.loads(line)
            rows[record["split"]].append((float(record["step"]), float(record["exact"])))
        except (ValueError, TypeError, KeyError):
            pass  # a damaged line: read_metrics has counted it
    return {
        split: tuple(np.array(sorted(pairs), dtype=float).reshape(-1, 2).T)
        for split, pairs in rows.items()
    }


def number(value) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def read_solved(path: Path, summary: dict) -> np.ndarray | None:
    """Which test puzzles were solved exactly; None unless this agrees with the summary."""
    try:
        with np.load(path) as file:
            solved = file["exact"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    fits = (
        solved.shape == (summary["test"]["n"],)
        and abs(solved.mean() - summary["test"]["exact"]) < 1e-6
    )
    return solved if fits else None


def load_run(folder: Path) -> Run:
    """One run folder, whatever state it is in; `problem` says what is missing."""
    run = Run(folder)
    try:
        tables = read_toml(folder / "config.toml")
        run.config = {k: v for k, v in tables.items() if not isinstance(v, dict)} | {
            f"{t}.{k}": v
            for t, keys in tables.items()
            if isinstance(keys, dict)
            for k, v in keys.items()
        }
    except UserError as e:
        run.problem = str(e)
    run.train, run.val, broken = read_metrics(folder / "metrics.jsonl")
    number = re.search(r"\d+$", folder.name)
    run.seed = run.config.get("seed", int(number[0]) if number else 0)
    if not (folder / "summary.json").exists():
        step = int(
            max(
                (split["step"].max() for split in (run.train, run.val) if len(split["step"])),
                default=0,
            )
        )
        state = f"step {step} of {run.config.get('train.steps', '?')}"
        if (folder / "failed.txt").exists():  # the launcher's
            run.problem = f"failed at {state}: " + " ".join(
                (folder / "failed.txt").read_text(encoding="utf-8", errors="replace").split()
            )
        elif not (folder / "config.toml").exists():
            run.problem = "not started"
        run.problem = run.problem or f"not finished: {state}; the same command continues it"
        return run
    try:
        run.summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        used = [
            *map(run.figure, ("exact", "cells", "halting_exact", "halting_steps")),
            *run.summary["test"]["curve"],
            run.summary["test"]["n"],
            *(run.summary["seconds"][k] for k in CLOCKS),
            *(run.summary[k] for k in ("parameters", "depth", "steps")),
            run.step_seconds,
            *run.summary["baseline"].values(),
        ]
        if not all(map(math.isfinite, used)):
            run.problem = run.problem or "summary.json holds a figure that is not finite"
        run.solved = read_solved(folder / "test.npz", run.summary)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as e:
        run.problem = f"summary.json is damaged ({type(e).__name__}: {e})"
        return run
    run.notes += [run.summary["note"]] if run.summary.get("note") else []
    run.notes += [f"metrics.jsonl has {broken} damaged line(s), left out"] if broken else []
    if not len(run.val["step"]):
        run.notes.append("metrics.jsonl has no validations: no learning curve, no stability")
    for split, key in (("train", "loss"), ("val", "exact")):
        bad = ~np.isfinite(getattr(run, split)[key])
        if bad.any():
            run.notes.append(
                f"metrics.jsonl has {bad.sum()} {split} line(s) whose {key} is not finite, the first at step "
                f"{getattr(run, split)['step'][bad][0]:.0f}, left out"
            )
            setattr(run, split, {k: v[~bad] for k, v in getattr(run, split).items()})
    return run


def load_runs(roots: list[Path]) -> list[Run]:
    """Every run folder below the roots, in order. Raises UserError where there is none."""
    found = set()
    for root in roots:
        if not root.is_dir():
            raise UserError(
                f"{root}: no such folder, expected one with run folders of train.py below"
            )
        for at, folders, files in os.walk(root):
            folders[:] = [
                name for name in folders if not name.startswith(".")
            ]  # the launcher's copies of the code
            if {"summary.json", "config.toml", "failed.txt", "job.json"} & set(files):
                found.add(Path(at))
    if not found:
        raise UserError(
            f"no run folder below {', '.join(map(str, roots))}; make one: python train.py sweeps/laptop/maze_perfect.toml"
        )
    return [load_run(folder) for folder in sorted(found)]


# ---------------------------------------------------------------- what belongs together


def names_of(runs: list[Run]) -> dict[Path, str]:
    """Entry folder -> its name: the path below what all have in common."""
    entries = sorted({run.entry.absolute() for run in runs})
    common = os.path.commonpath([entry.parent for entry in entries])
    return {
        run.entry: Path(os.path.relpath(run.entry.absolute(), common)).as_posix() for run in runs
    }


def data_of(run: Run) -> dict:
    """What makes test puzzles the same: the digest of their questions; for runs that have none, files and data keys."""
    hashes = {
        f"sha256 of {k.removesuffix('_sha256')}": v
        for k, v in run.summary["data"].items()
        if k.endswith("sha256")
    }
    return hashes | {"sha256 of the test questions": run.summary.get("test_puzzles", "unknown")}


def group(runs: list[Run]) -> list[Group]:
    """Finished runs by entry and configuration, best first within each task. Configurations that share an entry name their difference."""
    names, groups, known = names_of(runs), {}, {}
    for run in runs:  # a key that an older version did not have says nothing about its runs: the commits in the table do
        known[run.entry] = known.get(run.entry, run.config.keys()) & (
            run.config.keys() or known.get(run.entry, set())
        )
    for run in runs:
        if not run.problem:
            setup = {
                k: v for k, v in run.config.items() if k in known[run.entry] - SHARED
            } | data_of(run)
            members = groups.setdefault((names[run.entry], json.dumps(setup, sort_keys=True)), [])
            twin = next((r for r in members if r.seed == run.seed), None)
            if twin:
                run.problem = (
                    f"the same entry and seed as {twin.folder.name}, which is in the tables"
                )
            else:
                members.append(run)
    result = []
    for (name, setup), members in groups.items():
        others = [json.loads(s) for n, s in groups if n == name]
        mixed = [
            f"{k} = {v[:8] if k.startswith('sha256') else v}"
            for k, v in json.loads(setup).items()
            if any(o.get(k) != v for o in others)
        ]
        result.append(
            Group(
                name + (f" ({', '.join(mixed)})" if mixed else ""),
                sorted(members, key=lambda r: r.seed),
            )
        )
    return sorted(result, key=lambda g: (g.first["task"], -g.mean("exact")[0], g.name))


def compare(groups: list[Group], baseline: str) -> None:
    """Gives every group the baseline of its folder and what differs from it, or the reason why it has none."""
    for g in groups:
        sweep = g.runs[0].entry.parent
        found = [b for b in groups if b.runs[0].entry == sweep / baseline]
        if len(found) > 1:
            g.alone = f"not compared: {baseline} has runs of {len(found)} configurations"
        elif found and data_of(found[0].runs[0]) != data_of(g.runs[0]):
            g.alone = f"not compared: its data are not those of {found[0].name}"
        elif found and len(shared(found[0], g)) == 0:
            g.alone = f"not compared: no seed in common with {found[0].name}"
        elif found:
            g.base = found[0]
            g.accuracy = interval(g.per_puzzle([r.seed for r in g.runs]))
            g.difference = difference(g.base, g)


def missing(runs: list[Run], groups: list[Group]) -> list[tuple[str, str]]:
    """Seeds that an entry lacks and another entry of a compared sweep has."""
    names, sweeps = names_of(runs), {g.runs[0].entry.parent for g in groups if g.base}
    result = []
    for sweep in sorted(sweeps):
        have = {}
        for run in runs:
            if run.entry.parent == sweep:
                have.setdefault(run.entry, set()).add(run.seed)
        for entry, seeds in have.items():
            result += [
                (f"{names[entry]}/seed{seed}", "missing: other entries have this seed")
                for seed in sorted(set.union(*have.values()) - seeds)
            ]
    return result


def shared(a: Group, b: Group) -> list[int]:
    return sorted({r.seed for r in a.runs} & {r.seed for r in b.runs})


def difference(a: Group, b: Group) -> tuple[float, float, float]:
    """Exact test accuracy of b minus a over their common seeds, with its paired 95 % interval."""
    seeds = shared(a, b)
    one, two = a.per_puzzle(seeds), b.per_puzzle(seeds)
    if one.shape != two.shape:  # one of them has no test.npz
        one, two = one.mean(1, keepdims=True), two.mean(1, keepdims=True)
    return tuple(float(v) for v in np.clip(paired(one, two), -1, 1))  # shares differ by no more


def verdict(seeds: int, mean: float, low: float, high: float) -> str:
    """What a difference says: "helps" or "hurts" only where the interval excludes zero; one seed shows nothing about others."""
    return (
        ("helps" if mean > 0 else "hurts")
        if seeds > 1 and excludes_zero(low, high)
        else "not shown"
    )


def switch(g: Group) -> dict:
    """The keys in which a group differs from its baseline."""
    ours, theirs = g.runs[0].config, g.base.runs[0].config
    return {
        k: ours.get(k)
        for k in {**theirs, **ours}
        if k not in SHARED and ours.get(k) != theirs.get(k)
    }


def time_ratio(g: Group) -> tuple[float, float, float]:
    """Time per step in units of the baseline's, seed by seed: mean, smallest, largest. NaN on other hardware."""
    pairs = [
        (next(r for r in side.runs if r.seed == seed) for side in (g.base, g))
        for seed in shared(g.base, g)
    ]
    ratios = [
        b.step_seconds / a.step_seconds
        if a.summary["hardware"] == b.summary["hardware"]
        else math.nan
        for a, b in pairs
    ]
    return float(np.mean(ratios)), min(ratios), max(ratios)


# ---------------------------------------------------------------- how late a net generalises


def late(g: Group, groups: list[Group]) -> dict:
    """Flat columns for modular addition: steps until GOAL of the training and of the validation rows are right, by seed, and in units of the reference's.

    The reference is the baseline, else the first entry of the folder by name. A run that never gets there is said so and averaged nowhere.
    """
    if g.first["task"] != "modular":
        return {}
    sweep = [
        o
        for o in groups
        if o.first["task"] == "modular" and o.runs[0].entry.parent == g.runs[0].entry.parent
    ]
    base, flat = g.base or min(sweep, key=lambda o: o.name), {}
    for r in g.runs:
        flat |= {
            f"reach_{split}_seed{r.seed}": f"not reached within {r.summary['steps']}"
            if math.isinf(step)
            else int(step)
            for split, step in r.reached.items()
        }
    one, two = (
        np.array(
            [
                next(r.reached["val"] for r in side.runs if r.seed == seed)
                for seed in shared(base, g)
            ]
        )
        for side in (base, g)
    )
    mean, low, high = ratio(one, two) if base is not g and len(one) else (math.nan,) * 3
    word = ("earlier" if mean < 1 else "later") if excludes_zero(low - 1, high - 1) else "not shown"
    if np.isinf([one, two]).any():
        word = f"no ratio: never reached by {np.isinf(two).sum()} of {len(two)} seeds, in the reference by {np.isinf(one).sum()}"
    return flat | {
        "reach_reference": base.name,
        "reach_ratio": clean(mean),
        "reach_ratio_low": clean(low),
        "reach_ratio_high": clean(high),
        "reach_verdict": "reference" if base is g else word if len(one) else "no seed in common",
    }


def reaching(rows: list[dict]) -> list[str]:
    """The table of `late`, in the order of the names."""
    rows = sorted((r for r in rows if "reach_verdict" in r), key=lambda r: r["entry"])
    if not rows:
        return []
    seeds = sorted(
        {
            int(key.removeprefix("reach_val_seed"))
            for r in rows
            for key in r
            if key.startswith("reach_val_seed")
        }
    )

    def units(r):
        interval_ = (
            ""
            if r["reach_ratio_low"] is None
            else f" ({r['reach_ratio_low']:.2f} to {r['reach_ratio_high']:.2f})"
        )
        return "-" if r["reach_ratio"] is None else f"{r['reach_ratio']:.2f}{interval_}"

    text = table(
        [
            "entry",
            *(f"seed {k}: training, validation" for k in seeds),
            "in units of the reference (95 %)",
            "verdict",
        ],
        [
            [
                r["entry"],
                *(
                    f"{r.get(f'reach_train_seed{k}', '-')}, {r.get(f'reach_val_seed{k}', '-')}"
                    for k in seeds
                ),
                units(r),
                r["reach_verdict"],
            ]
            for r in rows
        ],
    )
    return text + [
        f"Steps until {100 * GOAL:.0f} % of the training rows (mean since the line before) and {100 * GOAL:.0f} % of the validation rows are right for "
        "the first time, as fine as metrics.jsonl. In units: validation steps over those of the reference "
        f"({', '.join(sorted({r['reach_reference'] for r in rows}))}), geometric mean over the seeds that both have, with its 95 % interval for "
        "other seeds; only where all of them got there.",
        "",
    ]


# ---------------------------------------------------------------- tables


def source(card: dict) -> str:
    """The data of a run in one phrase."""

    def of(split):
        sha = card.get(f"{split}_sha256", "")
        return str(card.get(f"{split}_source", card.get("source", "?"))) + (
            f" (sha256 {sha[:6]})" if sha else ""
        )

    rows, train, test = card.get("rows", {}), of("train"), of("test")
    counts = " / ".join(str(rows.get(split, "?")) for split in ("train", "val", "test"))
    return f"{train if train == test else f'{train}, test: {test}'}; {counts} train / val / test"


def unique(group_: Group, key: str) -> str:
    return ", ".join(sorted({str(r.summary.get(key) or "-") for r in group_.runs}))


def unique_number(g: Group) -> str:
    return "/".join(str(n) for n in sorted({r.summary["test"]["n"] for r in g.runs}))


def clean(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def row(g: Group) -> dict:
    """A group as one flat row; shares lie between 0 and 1, so do differences."""
    flat = {
        "entry": g.name,
        "task": g.first["task"],
        "seeds": " ".join(str(r.seed) for r in g.runs),
        "test_puzzles": unique_number(g),
        "parameters": g.first["parameters"],
        "depth": g.first["depth"],
    }
    for name in FIGURES:
        mean, low, high = g.mean(name)
        flat |= {name: clean(mean), f"{name}_low": clean(low), f"{name}_high": clean(high)}
    if g.base:
        names = (
            "difference",
            "difference_low",
            "difference_high",
            "time_ratio",
            "time_ratio_low",
            "time_ratio_high",
        )
        own = g.base is g
        flat |= {
            "baseline": g.base.name,
            "switch": ", ".join(f"{k} = {json.dumps(v)}" for k, v in switch(g).items()),
            **dict.fromkeys(names),
            **({} if own else dict(zip(names, map(clean, (*g.difference, *time_ratio(g)))))),
            "paired_seeds": len(shared(g.base, g)),
            "paired_by": "puzzle"
            if all(r.solved is not None for r in g.runs + g.base.runs)
            else "seed",
            "verdict": g.verdict,
            "expected_points": g.runs[0].config.get("expected") or None,
        }
    notes = [g.alone] * bool(g.alone) + sorted({note for r in g.runs for note in r.notes})
    return flat | {
        "copy_exact": g.first["baseline"]["exact"],
        "copy_cells": g.first["baseline"]["cells"],
        "trivial": g.trivial,
        "ceiling": g.first["data"].get("ceiling"),
        "best_step": unique(g, "best_step"),
        "train_steps": unique(g, "steps"),
        "steps_per_second": clean(float(np.mean([1 / s for s in g.each("step_seconds")]))),
        "flop": g.first.get("flop"),
        "spread_last_third": clean(float(np.mean(g.each("spread")))),
        "loss_spikes": clean(float(np.mean(g.each("spikes")))),
        **{
            f"{k}_seconds": round(float(np.mean([r.summary["seconds"][k] for r in g.runs])), 1)
            for k in CLOCKS
        },
        "hardware": unique(g, "hardware"),
        "commit": unique(g, "commit"),
        "data": source(g.first["data"]),
        "chosen": unique(g, "chosen"),
        "weights": unique(g, "weights"),
        "note": "; ".join(notes),
    }


def percent(row_: dict, name: str) -> str:
    """99.4 (98.9-99.8), or a dash where the task has no such figure."""
    mean, low, high = (row_[name + end] for end in ("", "_low", "_high"))
    if mean is None:
        return "-"
    return f"{100 * mean:.1f}" + (f" ({100 * low:.1f}-{100 * high:.1f})" if low != high else "")


def points(mean: float, low: float | None, high: float | None) -> str:
    """-7.5 (-9.1 to -5.8): a difference of shares in points."""
    mean, low, high = (
        None if v is None else round(100 * v, 1) + 0.0 for v in (mean, low, high)
    )  # + 0.0: no "-0.0"
    return f"{mean:+.1f}" + ("" if low is None else f" ({low:+.1f} to {high:+.1f})")


def shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def table(head: list[str], lines: list[list]) -> list[str]:
    return [
        "| " + " | ".join(map(str, cells)).replace("\n", " ") + " |"
        for cells in [head, ["---"] * len(head), *lines]
    ] + [""]


def compared(rows: list[dict]) -> list[str]:
    """The table of differences to the baseline, and what its columns mean."""

    def ratio(r):
        return (
            "-"
            if r["time_ratio"] is None
            else f"{r['time_ratio']:.2f} ({r['time_ratio_low']:.2f}-{r['time_ratio_high']:.2f})"
        )

    text = table(
        [
            "entry",
            "differs in",
            "depth",
            "exact %",
            "difference, points (95 %)",
            "expected",
            "verdict",
            "time per step",
            "steps used",
            "seeds x puzzles",
        ],
        [
            [
                r["entry"],
                r["switch"] or "-",
                r["depth"],
                percent(r, "exact"),
                "reference"
                if r["verdict"] == "reference"
                else points(*(r[k] for k in ("difference", "difference_low", "difference_high"))),
                shown(r["expected_points"], "+.1f"),
                r["verdict"],
                "1" if r["verdict"] == "reference" else ratio(r),
                f"{r['halting_steps']:.1f}",
                f"{r['paired_seeds']} x {r['test_puzzles']}",
            ]
            for r in rows
        ],
    )
    text += [
        "difference: exact accuracy minus the baseline's, over the same seeds and puzzles, with a 95 % interval for other seeds and puzzles. expected: the "
        "published change, often on another task. verdict: helps or hurts only if the interval excludes zero and there are two seeds or more. Among "
        "twenty entries that change nothing, one interval excludes zero by chance. time per step: in units of the baseline's, seed by seed "
        "(smallest-largest). steps used: supervision steps until the net would stop, on the test puzzles."
    ]
    if any(r["paired_seeds"] == 1 for r in rows):
        text += ["One seed: the interval says nothing about other seeds."]
    if any(r["paired_by"] == "seed" for r in rows):
        text += [
            "Without test.npz: "
            + ", ".join(r["entry"] for r in rows if r["paired_by"] == "seed")
            + "; intervals over seeds only."
        ]
    return text + [""]


def markdown(rows: list[dict], said: list[tuple[str, str]], absent: list[tuple[str, str]]) -> str:
    text = reaching(rows)
    text += (
        compared([r for r in rows if r.get("baseline")])
        if any(r.get("baseline") for r in rows)
        else []
    )
    for question, answer in said:
        text += [f"**{question}** {answer}", ""]
    if rows:
        classes = [r for r in rows if r["top3"] is not None]
        if puzzles := [r for r in rows if r["top3"] is None]:
            text += table(
                [
                    "entry",
                    "exact %",
                    "valid %",
                    "optimal %",
                    "cells %",
                    "halting: exact %",
                    "steps",
                    "copying: exact %, cells %",
                    "seeds x puzzles",
                ],
                [
                    [
                        r["entry"],
                        percent(r, "exact"),
                        percent(r, "valid"),
                        percent(r, "optimal"),
                        percent(r, "cells"),
                        percent(r, "halting_exact"),
                        f"{r['halting_steps']:.1f}",
                        f"{100 * r['copy_exact']:.1f}, {100 * r['copy_cells']:.1f}",
                        f"{len(r['seeds'].split())} x {r['test_puzzles']}",
                    ]
                    for r in puzzles
                ],
            )
        if classes:
            text += table(
                [
                    "entry",
                    "exact %",
                    "among the first three %",
                    "best possible %",
                    "trivial %",
                    "chosen at step",
                    "seeds x rows",
                ],
                [
                    [
                        r["entry"],
                        percent(r, "exact"),
                        percent(r, "top3"),
                        "-" if r["ceiling"] is None else f"{100 * r['ceiling']:.1f}",
                        f"{100 * r['copy_exact']:.1f} ({r['trivial']})",
                        r["best_step"],
                        f"{len(r['seeds'].split())} x {r['test_puzzles']}",
                    ]
                    for r in classes
                ],
            )
            text += [
                "best possible: what the most probable class by the rule itself scores on the same test rows; nothing is better on average.",
                "",
            ]
        text += [
            "Test split, read once per run with the checkpoint that was best on validation. Mean over seeds (smallest-largest); with one seed "
            "(95 % binomial interval).",
            *[
                "exact: every cell as in the label; the answer is the last supervision step's, or the mean of as many as "
                "train.eval_average says. valid: the rules hold. optimal: a valid path, and none is shorter. halting: "
                "each answer is read when the net would stop, after `steps` supervision steps on average."
            ]
            * bool(puzzles),
            "",
        ]
        text += table(
            [
                "entry",
                "parameters",
                "depth",
                "training steps",
                "training seconds",
                "CPU seconds",
                "steps/s",
                "spread",
                "spikes",
                "hardware",
                "commit",
                "data",
            ],
            [
                [
                    r["entry"],
                    f"{r['parameters']:,}",
                    r["depth"],
                    r["train_steps"],
                    f"{r['train_seconds']:.0f}",
                    f"{r['train_cpu_seconds']:.0f}",
                    f"{r['steps_per_second']:.2f}",
                    "-"
                    if r["spread_last_third"] is None
                    else f"{100 * r['spread_last_third']:.1f}",
                    shown(r["loss_spikes"], ".1f"),
                    r["hardware"],
                    r["commit"],
                    r["data"],
                ]
                for r in rows
            ],
        )
        text += [
            "depth: blocks applied per supervision step, T x (n + 1) x layers. training seconds: wall clock without evaluations, mean over seeds; "
            "CPU seconds: the same in time of all cores. steps/s: by CPU seconds on a CPU, else by the wall clock. spread: standard deviation of the "
            "validation accuracy over the last third of training, in points. spikes: jumps of the logged loss above 1.5 times the median of the ten lines "
            "before, per run. A + behind a commit: files differed from it.",
            "",
        ]
    for note in sorted({f"{r['entry']}: {r['note']}" for r in rows if r["note"]}):
        text.append(f"- {note}")
    text += (
        ["Not in the tables:", *(f"- {name}: {problem}" for name, problem in absent)]
        if absent
        else []
    )
    return "\n".join(text).rstrip() + "\n"


def write_tables(out: Path, groups: list[Group], absent: list[tuple[str, str]]) -> str:
    rows, said = [row(g) | late(g, groups) for g in groups], answers(groups)
    text = markdown(rows, said, absent)
    (out / "table.md").write_text(text, encoding="utf-8")
    every = [{**r, "status": "finished"} for r in rows] + [
        {"entry": name, "status": problem} for name, problem in absent
    ]
    columns = list(dict.fromkeys(key for r in every for key in r))
    with open(out / "table.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(
            file, ["status", *(c for c in columns if c != "status")], restval=""
        )
        writer.writeheader()
        writer.writerows(every)
    runs = [
        [
            {
                "seed": r.seed,
                **{name: clean(r.figure(name)) for name in FIGURES},
                "step_seconds": clean(r.step_seconds),
                "spread_last_third": clean(r.spread),
                "loss_spikes": clean(r.spikes),
                "curve": r.summary["test"]["curve"],
            }
            for r in g.runs
        ]
        for g in groups
    ]
    whole = {
        "entries": [{**r, "runs": each} for r, each in zip(rows, runs)],
        "answers": dict(said),
        "unfinished": [{"entry": n, "status": p} for n, p in absent],
    }
    (out / "table.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return text


# ---------------------------------------------------------------- what the comparison says


def listed(groups: list[Group], say) -> str:
    return "; ".join(f"{g.name} {say(g)}" for g in groups)


def answers(groups: list[Group]) -> list[tuple[str, str]]:
    """The four questions of an ablation, each with a sentence or two that the figures support: (question, answer) pairs."""
    result = []
    for base in (g for g in groups if g.base is g):
        others = sorted(
            (g for g in groups if g.base is base and g is not base), key=lambda g: g.difference[0]
        )
        where = f" ({base.name})" if sum(g.base is g for g in groups) > 1 else ""
        if others:
            result += [
                (f"Which change hurts most{where}?", hurts_most(base, others)),
                (f"How steady is training{where}?", steadiness(base, others)),
                (f"How fast is a step{where}?", speed(base, others)),
                (f"More layers or more recursion{where}?", capacity(base, others)),
            ]
    return result


def measured(g: Group) -> str:
    expected = g.runs[0].config.get("expected")
    return points(*map(clean, g.difference)) + (f", expected {expected:+.1f}" if expected else "")


def hurts_most(base: Group, others: list[Group]) -> str:
    kinds = {
        kind: [g for g in others if g.verdict == kind] for kind in ("hurts", "helps", "not shown")
    }
    hurt = kinds["hurts"]
    if hurt:
        text = f"{hurt[0].name}: {measured(hurt[0])} points against {100 * base.mean('exact')[0]:.1f} % (95 % interval in brackets)."
        if len(hurt) > 1:
            text += f" Also shown to hurt: {listed(hurt[1:], measured)}."
            seeds = len(shared(hurt[1], hurt[0]))
            if seeds and verdict(seeds, *(gap := difference(hurt[1], hurt[0]))) == "not shown":
                text += f" That {hurt[0].name} hurts more than {hurt[1].name} is not shown ({points(*map(clean, gap))})."
    else:
        text = f"None is shown to hurt; the largest measured drop is {others[0].name} with {measured(others[0])} points."
    text += f" Shown to help: {listed(kinds['helps'][::-1], measured)}." if kinds["helps"] else ""
    text += (
        f" Not shown either way: {listed(kinds['not shown'], measured)}."
        if hurt and kinds["not shown"]
        else ""
    )
    return (
        text + f" Seeds per comparison: {seeds_of(base, others)}; puzzles: {unique_number(base)}."
    )


def seeds_of(base: Group, others: list[Group]) -> str:
    return "/".join(map(str, sorted({len(shared(base, g)) for g in others})))


def steadiness(base: Group, others: list[Group]) -> str:
    """Spread of validation accuracy late in training, compared like accuracy: over the same seeds, with Student's t."""

    def change(g: Group) -> tuple[float, float, float]:
        spreads = [
            [next(r.spread for r in side.runs if r.seed == seed) for seed in shared(base, g)]
            for side in (base, g)
        ]
        return paired(*(np.array(s)[:, None] for s in spreads))

    known = [g for g in others if math.isfinite(change(g)[0])]
    spread = float(np.mean(base.each("spread")))
    if not known or math.isnan(spread):
        return "Too few validations in the last third of training to say."
    text = f"Over the last third of training the baseline's validation accuracy has a standard deviation of {100 * spread:.1f} points (mean over seeds)."
    less, more = (
        [g for g in known if excludes_zero(*change(g)[1:]) and sign * change(g)[0] > 0]
        for sign in (1, -1)
    )
    for phrase, members in (
        ("Shown to be less steady", less),
        ("Shown to be steadier", more),
        ("No difference shown", [g for g in known if g not in less + more]),
    ):
        text += (
            f" {phrase}: {listed(members, lambda g: points(*map(clean, change(g))))}."
            if members
            else ""
        )
    return (
        text
        + f" Loss spikes per run: {listed([base, *others], lambda g: shown(clean(float(np.mean(g.each('spikes')))), '.1f'))}."
    )


def speed(base: Group, others: list[Group]) -> str:
    clock = "CPU time" if "thread(s)" in base.first["hardware"] else "wall clock"

    def say(g: Group) -> str:
        mean, low, high = time_ratio(g)
        flop = (
            f", {g.first['flop'] / g.first['steps'] / (base.first['flop'] / base.first['steps']):.2f} by FLOP"
            if g.first.get("flop") and base.first.get("flop")
            else ""
        )
        return (
            "on other hardware" if math.isnan(mean) else f"{mean:.2f} ({low:.2f}-{high:.2f}{flop})"
        )

    ordered = sorted(others, key=lambda g: -np.nan_to_num(time_ratio(g)[0]))
    return (
        f"The baseline makes {np.mean([1 / s for s in base.each('step_seconds')]):.2f} steps/s ({clock}). Time per step in units of its own, "
        f"smallest to largest seed in brackets: {listed(ordered, say)}."
    )


def capacity(base: Group, others: list[Group]) -> str:
    """Entries that trade recursion against layers, and entries that only recurse less."""

    def shape(g: Group) -> tuple[int, int]:  # recursion, layers
        return g.runs[0].config["model.T"] * (g.runs[0].config["model.n"] + 1), g.runs[0].config[
            "model.n_layers"
        ]

    def say(g: Group) -> str:
        return f"{g.verdict}: {measured(g)} points at depth {g.first['depth']}, {g.first['parameters']:,} parameters"

    recursion, layers = shape(base)
    traded = [g for g in others if shape(g)[1] > layers and shape(g)[0] < recursion]
    less = [g for g in others if shape(g)[1] == layers and shape(g)[0] < recursion]
    text = f"Baseline: depth {base.first['depth']} from {recursion} calls of {layers} layer(s), {base.first['parameters']:,} parameters."
    text += (
        f" More layers and less recursion: {listed(traded, say)}."
        if traded
        else " No entry trades recursion for layers."
    )
    text += (
        f" Less recursion with the same layers: {listed(less, say)}."
        if less
        else " No entry only recurses less."
    )
    depth = base.first["depth"]
    if traded and all(g.verdict == "hurts" and g.first["depth"] >= depth for g in traded):
        return text + " So recursion is worth more than layers: as deep, yet worse."
    if traded and all(g.verdict == "helps" and g.first["depth"] <= depth for g in traded):
        return text + " So layers are worth more than recursion: no deeper, yet better."
    return text + (" Which of the two is worth more is not shown." if traded else "")


# ---------------------------------------------------------------- other depths than the trained one

DEPTHS = list(range(1, 7)), list(range(1, 13))  # T and n


def depth(roots: list[Path], out: Path) -> tuple[str, list[str]]:
    """Test accuracy of trained nets for every T and n of DEPTHS, without retraining; the seeds of one configuration."""
    import data  # train and evaluate need torch, nothing else here does
    import train
    from evaluate import evaluate
    from tqdm import tqdm

    folders = sorted({best.parent for root in roots for best in root.rglob("best.pt")})
    if not folders:
        raise UserError(
            f"no best.pt below {', '.join(map(str, roots))}, expected a run of train.py"
        )
    runs = [train.load_run(folder) for folder in folders]
    for folder, (cfg, _, _) in zip(folders, runs):
        other = [
            k for k, v in flatten(cfg).items() if k not in SHARED and flatten(runs[0][0])[k] != v
        ]
        if other:
            raise UserError(
                f"{folder} differs from {folders[0]} in {', '.join(other)}, expected seeds of one configuration"
            )
    first = runs[0][0]
    dataset, (Ts, ns) = data.load(first.data, first.arc), DEPTHS
    lines = []
    for folder, (cfg, net, _) in zip(folders, runs):
        cfg = dataclasses.replace(
            cfg, train=dataclasses.replace(cfg.train, batch_size=256, accumulate=1)
        )
        for T, n in tqdm(
            [(T, n) for T in Ts for n in ns],
            desc=folder.name,
            leave=False,
            mininterval=0.5 if sys.stderr.isatty() else 15,
        ):
            net.cfg = dataclasses.replace(cfg.model, T=T, n=n, grad_cycles=1)
            found = evaluate(net, dataset.test, cfg, train.make_world(cfg.train))
            lines.append(
                {"T": T, "n": n, "seed": cfg.seed}
                | {k: round(found[k], 6) for k in ("exact", "top3") if k in found}
            )
    exact = np.array([r["exact"] for r in lines]).reshape(len(folders), len(Ts), len(ns)).mean(0)
    trained, seeds = (
        (first.model.T, first.model.n),
        f"{len(runs)} seed{'s' * (len(runs) > 1)} x {len(dataset.test)} test rows",
    )
    ceiling = (
        f" Best possible on these rows: {100 * dataset.card['ceiling']:.1f} %."
        if "ceiling" in dataset.card
        else ""
    )
    cells = [
        [
            T,
            *(
                f"**{100 * e:.1f}**" if (T, n) == trained else f"{100 * e:.1f}"
                for n, e in zip(ns, row_)
            ),
        ]
        for T, row_ in zip(Ts, exact)
    ]
    text = "\n".join(table(["T / n", *ns], cells)) + (
        f"\nExact on test (%), mean of {seeds}, by T and n at evaluation; bold: T = {trained[0]}, n = {trained[1]}, as trained. Nothing was retrained, "
        f"nothing is chosen by this table.{ceiling}\n"
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "depth.md").write_text(text, encoding="utf-8")
    with open(out / "depth.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    figure = plots.plot_depth(exact, Ts, ns, trained, f"{folders[0].parent.name}, {seeds}")
    return text, ["depth.md", "depth.csv", *plots.save(out, {"depth": figure})]


# ---------------------------------------------------------------- the command


def analyze(roots: list[Path], out: Path, baseline: str = "") -> tuple[str, list[str]]:
    """Tables and plots of all runs below the roots into `out`; returns the Markdown table and the names of the files."""
    runs = load_runs(roots)
    groups, names = group(runs), names_of(runs)
    compare(groups, baseline or "baseline")
    if baseline and not any(g.base for g in groups):
        raise UserError(
            f"command line: --baseline = {baseline!r}, expected an entry with a finished run; there are "
            + (", ".join(dict.fromkeys(g.runs[0].entry.name for g in groups)) or "none")
        )
    absent = sorted(
        [(f"{names[r.entry]}/{r.folder.name}", r.problem) for r in runs if r.problem]
        + missing(runs, groups)
    )
    if groups and all(g.first["task"] == "control" for g in groups):
        return control_analysis.analyze(groups, out, absent, baseline or "baseline")
    out.mkdir(parents=True, exist_ok=True)
    text = write_tables(out, groups, absent)
    return text, [
        "table.md",
        "table.csv",
        "table.json",
        *(plots.write(out, groups) if groups else []),
    ]


def decide(roots: list[Path], out: Path) -> tuple[str, list[str]]:
    """What the decision trees say of the ARC runs below the roots, as text and into out/rules.md, with the plots of these runs."""
    runs = load_runs(roots)
    if not any(r.summary.get("task") == "arc" and not r.problem for r in runs):
        raise UserError(
            f"{', '.join(map(str, roots))}: no finished run with data.task = 'arc', expected entries such as sweeps/laptop/arc_E1v2.toml"
        )
    names = names_of(runs)
    absent = [f"not used: {names[r.entry]}/{r.folder.name}: {r.problem}" for r in runs if r.problem]
    text = "\n".join([rules.read(runs), *absent])
    out.mkdir(parents=True, exist_ok=True)
    (out / "rules.md").write_text(text + "\n", encoding="utf-8")
    return text, ["rules.md", *arc_plots.write(out, runs)]


def main(argv: list[str] | None = None) -> int:
    parser = Parser("analyze.py", __doc__)
    parser.add_argument(
        "roots", nargs="+", type=Path, metavar="folder", help="folders with run folders below"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="where tables and plots go (default: results/<name of the first folder>)",
    )
    parser.add_argument(
        "--depth",
        action="store_true",
        help="accuracy against T and n at evaluation, of the trained nets below the folders",
    )
    parser.add_argument(
        "--baseline",
        default="",
        metavar="entry",
        help="the entry that others of its folder are compared with (default: baseline)",
    )
    parser.add_argument(
        "--rules",
        action="store_true",
        help="ARC runs: the decision trees of documents 002 and 003, and their plots, instead of tables",
    )
    try:
        args = parser.parse_args(argv)
        first = args.roots[0].resolve()
        out = args.out or Path(
            "results",
            first.parent.name if args.depth and (first / "best.pt").exists() else first.name,
        )
        if args.rules:
            text, files = decide(args.roots, out)
        else:
            text, files = (
                depth(args.roots, out) if args.depth else analyze(args.roots, out, args.baseline)
            )
        print(f"{text}\nwrote {out}/: {', '.join(files)}")
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except OSError as e:
        print(f"error: cannot write {e.filename} ({e.strerror})", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
