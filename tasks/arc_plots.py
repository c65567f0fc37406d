"""Plots of ARC runs: learning curves, the health of encoders, exact by number of demonstrations, answers beside the truth in ARC's colours."""

import json
import math
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from plots import GREY, height, legend, look, plain
from tasks.arc_rules import lines_of

ARC_COLOURS = (
    "#000000 #0074D9 #FF4136 #2ECC40 #FFDC00 #AAAAAA #F012BE #FF851B #7FDBFF #870C25".split()
)
TOKENS = ListedColormap(
    ["#ffffff", "#dddddd", *ARC_COLOURS]
)  # padding, end of the grid, colours 0..9
HEALTH = {
    "encoder_variance": "variance over rows / mean square",
    "encoder_diversity": "variance over positions / mean square",
    "encoder_gradient_share": "encoder's part of the gradient norm",
    "encoder_carry_change": "change of the carried state per step",
}


def smooth(lines: list[dict], key: str, bins: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Steps and means of a training figure in equal stretches of training; lines weigh by the rows that halted."""
    kept = [(line["step"], line[key], line.get("halted", 1) or 1) for line in lines if key in line]
    if not kept:
        return np.zeros(0), np.zeros(0)
    steps, values, weight = np.array(kept, dtype=float).T
    at = np.minimum((steps / steps.max() * bins).astype(int), bins - 1)
    some = np.unique(at)
    return np.array([steps[at == b].mean() for b in some]), np.array(
        [np.average(values[at == b], weights=weight[at == b]) for b in some]
    )


def by_entry(runs: list) -> dict[str, list]:
    found: dict[str, list] = {}
    for run in runs:
        if not run.problem and run.summary.get("task") == "arc":
            found.setdefault(run.entry.name.removeprefix("arc_"), []).append(run)
    return found


def curve(ax, seeds: list[list[dict]], key: str, k: int, text: str, scale: float = 1.0) -> None:
    """The mean over seeds (the training lines of each), and the seeds faint."""
    curves = [smooth(lines, key) for lines in seeds]
    curves = [c for c in curves if len(c[0])]
    if not curves:
        return
    style = look(k)
    for x, y in curves if len(curves) > 1 else ():
        ax.plot(x, scale * y, color=style["color"], lw=0.8, alpha=0.35)
    x = curves[0][0]
    mean = np.mean([np.interp(x, *c) for c in curves], axis=0)
    ax.plot(x, scale * mean, lw=2, ms=5, markevery=max(1, len(x) // 10), label=text, **style)


def plot_curves(entries: dict[str, list], lines: dict[Path, list]) -> Figure:
    """Exact and cells of the rows that halt in training; dashed: what copying the question gets."""
    fig = Figure(figsize=(12.5, height(len(entries))), layout="constrained", dpi=130)
    left, right = fig.subplots(1, 2)
    copies = set()
    for k, (name, members) in enumerate(entries.items()):
        text = f"{name} ({len(members)} seed{'s' * (len(members) > 1)})"
        for ax, key in ((left, "exact"), (right, "cells")):
            curve(ax, [lines[r.folder] for r in members], key, k, text, 100)
        copies |= {
            round(100 * r.summary["arc"]["train"]["copy_cells"], 1)
            for r in members
            if "arc" in r.summary
        }
    left.axhline(90, color=GREY, ls=":", lw=1.2, label="90 %")
    for copy in sorted(copies):
        right.axhline(
            copy, color=GREY, ls="--", lw=1.2, label=f"copying the question: {copy:.0f} %"
        )
    for ax, what in ((left, "exact, in training (%)"), (right, "cells, in training (%)")):
        ax.set(xlabel="training step", ylabel=what, ylim=(-3, 103))
        ax.set_xlim(left=0)
        plain(ax)
    legend(right, len(entries) + 1, loc="lower right")
    fig.supxlabel(
        "rows that halt, means over a sixtieth of training; thin: seeds", fontsize=8, color=GREY
    )
    return fig


def plot_health(entries: dict[str, list], lines: dict[Path, list]) -> Figure | None:
    """What the encoders are like while they learn; None without encoders."""
    entries = {
        name: members
        for name, members in entries.items()
        if members[0].config.get("encoder.kind", "none") != "none"
    }
    if not entries:
        return None
    fig = Figure(figsize=(13.5, 7.6), layout="constrained", dpi=130)
    axes = fig.subplots(2, 2, sharex=True).ravel()
    for ax, (key, what) in zip(axes, HEALTH.items()):
        for k, (name, members) in enumerate(entries.items()):
            curve(ax, [lines[r.folder] for r in members], key, k, f"{name} ({len(members)})")
        ax.set(ylabel=what, ylim=(0, None))
        plain(ax)
    for ax in axes[2:]:
        ax.set_xlabel("training step")
    handles = {text: h for ax in axes for h, text in zip(*ax.get_legend_handles_labels())}
    fig.legend(
        handles.values(),
        handles.keys(),
        loc="outside right upper",
        frameon=False,
        fontsize=9,
        title="entry (seeds)",
        title_fontsize=9,
    )
    return fig


def plot_demos(entries: dict[str, list]) -> Figure | None:
    """Exact on held-out tasks by the number of demonstrations shown, a row per entry; None where no probes.json is found."""
    rows = {}
    for name, members in entries.items():
        found = [
            json.loads(path.read_text())["demos"]
            for r in members
            if (path := r.folder / "probes.json").exists()
        ]
        found = [f["test"] for f in found if f]
        if found:
            rows[f"{name} ({len(found)} seed{'s' * (len(found) > 1)})"] = {
                k: np.mean([f[k]["exact"] for f in found if k in f]) for k in found[0]
            }
    if not rows:
        return None
    shown = sorted({int(k) for row in rows.values() for k in row})
    grid = np.array([[100 * row.get(str(k), math.nan) for k in shown] for row in rows.values()])
    fig = Figure(
        figsize=(3.2 + 0.9 * len(shown), 1.6 + 0.45 * len(rows)), layout="constrained", dpi=130
    )
    ax = fig.subplots()
    ax.imshow(grid, vmin=0, vmax=100, cmap="Blues", aspect="auto")
    for i, row in enumerate(grid):
        for j, value in enumerate(row):
            if np.isfinite(value):
                ax.text(
                    j,
                    i,
                    f"{value:.0f}",
                    ha="center",
                    va="center",
                    color="white" if value > 60 else "black",
                )
    ax.set_xticks(range(len(shown)), shown)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(xlabel="demonstrations shown", title="exact on held-out tasks (%)")
    return fig


def plot_grids(folder: Path, side: str = "test", count: int = 6) -> Figure | None:
    """Questions, truths and answers of a run, wrong cells crossed; half of them wrong ones where there are any. None without answers.npz."""
    path = Path(folder) / "answers.npz"
    if not path.exists():
        return None
    with np.load(path) as file:
        inputs, labels, answers = (
            file[f"{side}_{name}"] for name in ("inputs", "labels", "answers")
        )
    wrong = ((answers != labels) & (labels >= 0)).any(1)
    good = np.flatnonzero(~wrong)[: count - min(count // 2, wrong.sum())]
    rows = np.concatenate([good, np.flatnonzero(wrong)[: count - len(good)]])
    n = math.isqrt(inputs.shape[1])
    fig = Figure(figsize=(1.55 * len(rows) + 0.7, 5.1), layout="constrained", dpi=130)
    axes = fig.subplots(3, len(rows), squeeze=False)
    for column, row in enumerate(rows):
        there = labels[row] >= 0
        answer = np.where(there, answers[row], 0)
        grids = inputs[row], np.where(there, labels[row], 0), answer
        for ax, grid, title in zip(axes[:, column], grids, ("question", "truth", "answer")):
            ax.imshow(grid.reshape(n, n), cmap=TOKENS, vmin=0, vmax=11, interpolation="nearest")
            ax.set_xticks(np.arange(n + 1) - 0.5, [])
            ax.set_yticks(np.arange(n + 1) - 0.5, [])
            ax.grid(color="#888888", lw=0.5)
            ax.tick_params(length=0)
            if column == 0:
                ax.set_ylabel(title, fontsize=11)
        off = np.flatnonzero(there & (answers[row] != labels[row]))
        axes[2, column].plot(off % n, off // n, "x", color="white", mec="white", ms=5, mew=2.4)
        axes[2, column].plot(off % n, off // n, "x", color="black", ms=4, mew=1)
        axes[2, column].set_xlabel(
            "exact" if not len(off) else f"{len(off)} cell{'s' * (len(off) > 1)} wrong", fontsize=10
        )
    solved, total = int((~wrong).sum()), len(wrong)
    fig.suptitle(
        f"{'held-out' if side == 'test' else 'training'} tasks, {solved} of {total} exact; white: outside the grid, light grey: its end",
        fontsize=10,
    )
    return fig


def write(out: Path, runs: list) -> list[str]:
    """Every plot as PNG into `out`; the file names."""
    entries = by_entry(runs)
    lines = {r.folder: lines_of(r.folder) for members in entries.values() for r in members}
    figures = {
        "arc_curves": plot_curves(entries, lines),
        "arc_health": plot_health(entries, lines),
        "arc_demos": plot_demos(entries),
    }
    for name, members in entries.items():
        figures[f"arc_grids_{name}"] = plot_grids(
            members[0].folder, "train" if members[0].config.get("arc.mode") == "embed" else "test"
        )
    made = {name: figure for name, figure in figures.items() if figure is not None}
    for name, figure in made.items():
        figure.savefig(out / f"{name}.png")
    return [f"{name}.png" for name in made]
