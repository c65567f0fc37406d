"""Run folders to tables and plots: `python analyze.py runs/laptop [more folders] [--out results/laptop]`.

Reads the small files of every run folder below (summary.json, config.toml, metrics.jsonl), never a checkpoint, so plots can be drawn
again years later. Seeds of one entry are averaged; runs of other configurations never are. Writes table.md, table.csv, table.json,
learning.png and steps.png (and .svg). Runs that are unfinished or broken are listed by name. Exit codes: 0 done, 2 bad input.
"""

import argparse
import csv
import json
import math
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib import rcParams
from matplotlib.figure import Figure

from config import read_toml
from data import UserError

SHARED = {"seed", "hypothesis", "expected", "out", "train.log_every", "train.ckpt_minutes", "train.device", "train.threads", "train.wandb"}  # may differ within an entry
FIGURES = {"exact": "test", "valid": "test", "optimal": "test", "cells": "test", "halting_exact": "test_halting", "halting_steps": "test_halting"}
CLOCKS = ("train", "train_cpu", "validation", "test")


@dataclass
class Run:
    folder: Path
    seed: int = -1
    config: dict = field(default_factory=dict)  # {"data.size": 15, ...} from config.toml
    lines: list = field(default_factory=list)  # metrics.jsonl
    summary: dict = field(default_factory=dict)  # empty: not finished
    problem: str = ""  # why its figures cannot be used

    @property
    def entry(self) -> Path:
        return self.folder.parent

    def figure(self, name: str) -> float:
        """One of FIGURES, NaN where this task has none."""
        return float(self.summary[FIGURES[name]].get(name.removeprefix("halting_"), math.nan))


@dataclass
class Group:
    """The finished seeds of one configuration."""
    name: str
    runs: list[Run]

    @property
    def first(self) -> dict:
        return self.runs[0].summary

    def mean(self, name: str) -> tuple[float, float, float]:
        """(mean, low, high): over seeds their smallest and largest; for one seed the 95 % interval of its share of puzzles."""
        values = [r.figure(name) for r in self.runs]
        if len(values) > 1 or name in ("cells", "halting_steps"):  # cells of one puzzle are not independent: no interval
            return float(np.mean(values)), min(values), max(values)
        return values[0], *wilson(values[0], self.runs[0].summary["test"]["n"])


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a binomial share (Wilson), sound near 0 and 1."""
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


# ---------------------------------------------------------------- reading

def load_run(folder: Path) -> Run:
    """One run folder, whatever state it is in; `problem` says what is missing."""
    run = Run(folder)
    try:
        tables = read_toml(folder / "config.toml")
        run.config = {k: v for k, v in tables.items() if not isinstance(v, dict)} | {
            f"{t}.{k}": v for t, keys in tables.items() if isinstance(keys, dict) for k, v in keys.items()}
    except UserError as e:
        run.problem = str(e)
    broken = 0
    if (folder / "metrics.jsonl").exists():
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                run.lines.append({"step": 0, "split": "", "seconds": math.nan} | json.loads(line))
            except (ValueError, TypeError):
                broken += 1
    number = re.search(r"\d+$", folder.name)
    run.seed = run.config.get("seed", int(number[0]) if number else 0)
    if not (folder / "summary.json").exists():
        step = max((line["step"] for line in run.lines), default=0)
        run.problem = run.problem or f"not finished: step {step} of {run.config.get('train.steps', '?')}; the same command continues it"
        return run
    try:
        run.summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        used = [*map(run.figure, ("exact", "cells", "halting_exact", "halting_steps")), *run.summary["test"]["curve"], run.summary["test"]["n"],
                *(run.summary["seconds"][k] for k in CLOCKS), *(run.summary[k] for k in ("parameters", "depth")), *run.summary["baseline"].values()]
        if not all(map(math.isfinite, used)):
            run.problem = run.problem or "summary.json holds a figure that is not finite"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        run.problem = f"summary.json is damaged ({type(e).__name__}: {e})"
    if broken and not run.problem:
        run.summary["note"] = f"{run.summary.get('note', '')} metrics.jsonl has {broken} damaged line(s), left out".strip()
    return run


def load_runs(roots: list[Path]) -> list[Run]:
    """Every run folder below the roots, in order. Raises UserError where there is none."""
    found = set()
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root}: no such folder, expected one with run folders of train.py below")
        found |= {Path(at) for at, _, files in os.walk(root) if {"summary.json", "config.toml"} & set(files)}
    if not found:
        raise UserError(f"no run folder below {', '.join(map(str, roots))}; make one: python train.py sweeps/laptop/maze_perfect.toml")
    return [load_run(folder) for folder in sorted(found)]


def names_of(runs: list[Run]) -> dict[Path, str]:
    """Entry folder -> its name: the path below what all have in common."""
    entries = sorted({run.entry.absolute() for run in runs})
    common = os.path.commonpath([entry.parent for entry in entries])
    return {run.entry: Path(os.path.relpath(run.entry.absolute(), common)).as_posix() for run in runs}


def group(runs: list[Run]) -> list[Group]:
    """Finished runs by entry and configuration, best first within each task. Configurations that share an entry name their difference."""
    names, groups = names_of(runs), {}
    for run in runs:
        if not run.problem:
            data = {f"sha256 of {k.removesuffix('_sha256')}": v for k, v in run.summary["data"].items() if k.endswith("sha256")}
            setup = {k: v for k, v in run.config.items() if k not in SHARED} | data
            groups.setdefault((names[run.entry], json.dumps(setup, sort_keys=True)), []).append(run)
    result = []
    for (name, setup), members in groups.items():
        others = [json.loads(s) for n, s in groups if n == name]
        mixed = [f"{k} = {v}" for k, v in json.loads(setup).items() if any(o.get(k) != v for o in others)]
        result.append(Group(name + (f" ({', '.join(mixed)})" if mixed else ""), sorted(members, key=lambda r: r.seed)))
    return sorted(result, key=lambda g: (g.first["task"], -g.mean("exact")[0], g.name))


# ---------------------------------------------------------------- tables

def source(card: dict) -> str:
    """The data of a run in one phrase."""
    def of(split):
        sha = card.get(f"{split}_sha256", "")
        return str(card.get(f"{split}_source", "?")) + (f" (sha256 {sha[:6]})" if sha else "")
    rows, train, test = card.get("rows", {}), of("train"), of("test")
    counts = " / ".join(str(rows.get(split, "?")) for split in ("train", "val", "test"))
    return f"{train if train == test else f'{train}, test: {test}'}; {counts} train / val / test"


def unique(group_: Group, key: str) -> str:
    return ", ".join(sorted({str(r.summary.get(key) or "-") for r in group_.runs}))


def row(g: Group) -> dict:
    """A group as one flat row; shares lie between 0 and 1."""
    flat = {"entry": g.name, "task": g.first["task"], "seeds": " ".join(str(r.seed) for r in g.runs), "test_puzzles": unique_number(g),
            "parameters": g.first["parameters"], "depth": g.first["depth"]}
    for name in FIGURES:
        mean, low, high = g.mean(name)
        flat |= {name: clean(mean), f"{name}_low": clean(low), f"{name}_high": clean(high)}
    return flat | {
        "copy_exact": g.first["baseline"]["exact"], "copy_cells": g.first["baseline"]["cells"],
        "train_steps": unique(g, "steps"), **{f"{k}_seconds": round(float(np.mean([r.summary["seconds"][k] for r in g.runs])), 1) for k in CLOCKS},
        "hardware": unique(g, "hardware"), "commit": unique(g, "commit"), "data": source(g.first["data"]), "chosen": unique(g, "chosen"), "weights": unique(g, "weights"),
        "note": unique(g, "note").strip("-, ")}


def unique_number(g: Group) -> str:
    return "/".join(str(n) for n in sorted({r.summary["test"]["n"] for r in g.runs}))


def clean(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def percent(row_: dict, name: str) -> str:
    """99.4 (98.9-99.8), or a dash where the task has no such figure."""
    mean, low, high = (row_[name + end] for end in ("", "_low", "_high"))
    if mean is None:
        return "-"
    return f"{100 * mean:.1f}" + (f" ({100 * low:.1f}-{100 * high:.1f})" if low != high else "")


def markdown(groups: list[Group], unfinished: list[tuple[str, str]]) -> str:
    def table(head: list[str], lines: list[list]) -> list[str]:
        return ["| " + " | ".join(map(str, cells)).replace("\n", " ") + " |" for cells in [head, ["---"] * len(head), *lines]] + [""]

    rows, text = [row(g) for g in groups], []
    if rows:
        text += table(["entry", "exact %", "valid %", "optimal %", "cells %", "halting: exact %", "steps", "copying: exact %, cells %", "seeds x puzzles"],
                      [[r["entry"], percent(r, "exact"), percent(r, "valid"), percent(r, "optimal"), percent(r, "cells"), percent(r, "halting_exact"),
                        f"{r['halting_steps']:.1f}", f"{100 * r['copy_exact']:.1f}, {100 * r['copy_cells']:.1f}",
                        f"{len(r['seeds'].split())} x {r['test_puzzles']}"] for r in rows])
        text += ["Test split, read once per run with the checkpoint that was best on validation. Mean over seeds (smallest-largest); with one seed "
                 "(95 % binomial interval).", "exact: every cell as in the label. valid: the rules hold. optimal: a valid path, and none is shorter. "
                 "halting: each answer is read when the net would stop, after `steps` supervision steps on average.", ""]
        text += table(["entry", "parameters", "depth", "training steps", "training seconds", "CPU seconds", "hardware", "commit", "data"],
                      [[r["entry"], f"{r['parameters']:,}", r["depth"], r["train_steps"], f"{r['train_seconds']:.0f}", f"{r['train_cpu_seconds']:.0f}",
                        r["hardware"], r["commit"], r["data"]] for r in rows])
        text += ["depth: blocks applied per supervision step, T x (n + 1) x layers. training seconds: wall clock without evaluations, mean over seeds; "
                 "CPU seconds: the same in time of all cores. A + behind a commit: files differed from it.", ""]
    for note in sorted({f"{r['entry']}: {r['note']}" for r in rows if r["note"]}):
        text.append(f"- {note}")
    text += ["Not in the tables:", *(f"- {name}: {problem}" for name, problem in unfinished)] if unfinished else []
    return "\n".join(text).rstrip() + "\n"


def write_tables(out: Path, groups: list[Group], unfinished: list[tuple[str, str]]) -> str:
    text, rows = markdown(groups, unfinished), [row(g) for g in groups]
    (out / "table.md").write_text(text, encoding="utf-8")
    every = [{**r, "status": "finished"} for r in rows] + [{"entry": name, "status": problem} for name, problem in unfinished]
    columns = list(dict.fromkeys(key for r in every for key in r))
    with open(out / "table.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["status", *(c for c in columns if c != "status")], restval="")
        writer.writeheader()
        writer.writerows(every)
    runs = [[{"seed": r.seed, **{name: clean(r.figure(name)) for name in FIGURES}, "curve": r.summary["test"]["curve"]} for r in g.runs] for g in groups]
    whole = {"entries": [{**r, "runs": each} for r, each in zip(rows, runs)], "unfinished": [{"entry": n, "status": p} for n, p in unfinished]}
    (out / "table.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return text


# ---------------------------------------------------------------- plots

COLOURS = "#0072B2 #E69F00 #009E73 #D55E00 #CC79A7 #56B4E9".split()  # Okabe-Ito
MARKERS, DASHES = "osD^vP", ["-", "--", ":"]


def look(k: int) -> dict:
    """Colour, marker and dash of the k-th entry of a panel: no two alike among eighteen."""
    return {"color": COLOURS[k % 6], "marker": MARKERS[k % 6], "ls": DASHES[k // 6 % 3]}


def panels(groups: list[Group], xlabel: str, ylabel: str):
    """A figure with one panel per task, and (axes, groups of the task) pairs."""
    tasks = sorted({g.first["task"] for g in groups})
    fig = Figure(figsize=(6.2 * len(tasks) + 0.4, 4.6), layout="constrained", dpi=130)
    axes = fig.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for ax, task in zip(axes, tasks):
        ax.set(title={"maze": "Mazes", "sudoku": "Sudoku"}.get(task, task), xlabel=xlabel, ylim=(-3, 103), yticks=range(0, 101, 20))
        ax.grid(axis="y", color="#e5e5e5")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(ylabel)
    return fig, [(ax, [g for g in groups if g.first["task"] == task]) for ax, task in zip(axes, tasks)]


def label(g: Group, n: str) -> str:
    return f"{g.name} ({len(g.runs)} seed{'s' * (len(g.runs) > 1)}, {n} puzzles)"


def plot_learning(groups: list[Group]) -> Figure:
    """Validation accuracy against time: every seed faint, the mean over seeds strong."""
    fig, pairs = panels(groups, "seconds of training", "exact on validation (%)")
    for ax, members in pairs:
        for k, g in enumerate(members):
            curves = [[(line["step"], line["seconds"], 100 * line["exact"]) for line in r.lines if line["split"] == "val"] for r in g.runs]
            steps = sorted(set.intersection(*({s for s, *_ in c} for c in curves)))
            if not steps:
                continue
            points = np.array([[next(p[1:] for p in c if p[0] == s) for s in steps] for c in curves])  # (seeds, points, 2)
            for seed in points if len(points) > 1 else ():
                ax.plot(*seed.T, lw=0.8, alpha=0.4, **look(k) | {"marker": ""})
            n = next(line["n"] for line in g.runs[0].lines if line["split"] == "val")
            ax.plot(*points.mean(0).T, lw=2, ms=5, label=label(g, n), **look(k))
        ax.set_xlim(left=0)
        ax.legend(loc="lower right", frameon=False, fontsize=9)
    return fig


def plot_steps(groups: list[Group]) -> Figure:
    """Test accuracy after each supervision step; bars: smallest to largest seed, or the 95 % interval of one."""
    fig, pairs = panels(groups, "supervision step", "exact on test (%)")
    for ax, members in pairs:
        longest = max(len(r.summary["test"]["curve"]) for g in members for r in g.runs)
        for k, g in enumerate(members):
            curves = np.array([r.summary["test"]["curve"] for r in g.runs])  # (seeds, steps)
            mean, n = curves.mean(0), g.first["test"]["n"]
            low, high = (curves.min(0), curves.max(0)) if len(curves) > 1 else np.array([wilson(c, n) for c in mean]).T
            x = np.arange(1, len(mean) + 1) + 0.04 * (k - (len(members) - 1) / 2)  # bars beside each other
            ax.errorbar(x, 100 * mean, 100 * np.abs([low - mean, high - mean]), lw=2, ms=6, elinewidth=1, capsize=2, label=label(g, unique_number(g)), **look(k))
        for copy in sorted({g.first["baseline"]["exact"] for g in members}):
            ax.axhline(100 * copy, color="#777777", ls="--", lw=1.2, zorder=1, label=f"copying the question: {100 * copy:.0f} %")
        ax.set_xticks(range(1, longest + 1, -(-longest // 12)))
        ax.legend(loc="lower right", bbox_to_anchor=(1, 0.06), frameon=False, fontsize=9)
    return fig


# ---------------------------------------------------------------- the command

def analyze(roots: list[Path], out: Path) -> str:
    """Tables and plots of all runs below the roots into `out`; returns the Markdown table."""
    runs = load_runs(roots)
    groups, names = group(runs), names_of(runs)
    unfinished = [(f"{names[r.entry]}/{r.folder.name}", r.problem) for r in runs if r.problem]
    out.mkdir(parents=True, exist_ok=True)
    text = write_tables(out, groups, unfinished)
    rcParams["svg.hashsalt"] = "analyze"  # the same runs give the same bytes
    for name, plot in (("learning", plot_learning), ("steps", plot_steps)) if groups else ():
        fig = plot(groups)
        fig.savefig(out / f"{name}.png")
        fig.savefig(out / f"{name}.svg", metadata={"Date": None})
    return text


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("roots", nargs="+", type=Path, metavar="folder", help="folders with run folders below")
    parser.add_argument("--out", type=Path, help="where tables and plots go (default: results/<name of the first folder>)")

    def fail(message: str):
        raise UserError(f"command line: {message}; see python analyze.py --help")

    parser.error = fail
    try:
        args = parser.parse_args(argv)
        out = args.out or Path("results", args.roots[0].resolve().name)
        print(analyze(args.roots, out))
        print(f"wrote {out}/: " + ", ".join(sorted(p.name for p in out.iterdir() if p.stem in ("table", "learning", "steps"))))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except OSError as e:
        print(f"error: cannot write {e.filename} ({e.strerror})", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
