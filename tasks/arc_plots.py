"""Plots of ARC runs: learning curves, the health of encoders, demonstrations shown, answers.

An entry is its runs (analyze.Run), one per seed.
"""

import json
import math
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plots import GREY, height, legend, plain, save_png, seed_count, style
from tasks.arc_rules import lines_of

ARC_COLOURS = ["#000000", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00",
               "#AAAAAA", "#F012BE", "#FF851B", "#7FDBFF", "#870C25"]  # fmt: skip
TOKENS = ListedColormap(["#ffffff", "#dddddd", *ARC_COLOURS])  # padding, end, colours 0..9
HEALTH = {  # figures of metrics.jsonl and what they are
    "encoder_variance": "variance over rows / mean square",
    "encoder_diversity": "variance over positions / mean square",
    "encoder_gradient_share": "encoder's part of the gradient norm",
    "encoder_carry_change": "change of the carried state per step",
}

Entries = dict[str, list]  # name -> runs
Lines = dict[Path, list]  # run folder -> training lines


def write(out: Path, runs: list) -> list[str]:
    """Every plot as PNG into `out`; the file names."""
    entries = by_entry(runs)
    lines = {run.folder: lines_of(run.folder) for members in entries.values() for run in members}
    figures = {
        "arc_curves": plot_curves(entries, lines),
        "arc_health": plot_health(entries, lines),
        "arc_carry": plot_carry(entries),
        "arc_demos": plot_demos(entries),
    }
    for name, members in entries.items():
        remembers = members[0].config.get("arc.mode") == "embed"
        side = "train" if remembers else "test"
        figures[f"arc_grids_{name}"] = plot_grids(members[0].folder, side)
    made = {name: figure for name, figure in figures.items() if figure is not None}
    for name, figure in made.items():
        save_png(figure, out / f"{name}.png")
    return [f"{name}.png" for name in made]


def by_entry(runs: list) -> Entries:
    """Finished ARC runs by entry, a prefix arc_ taken off."""
    found: Entries = {}
    for run in runs:
        if not run.problem and run.summary.get("task") == "arc":
            found.setdefault(run.entry.name.removeprefix("arc_"), []).append(run)
    return found


# ---------------------------------------------------------------- curves


def smooth(lines: list[dict], key: str, bins: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Steps and means of a training figure in equal stretches of training.

    Lines weigh by the rows that halted.
    """
    lines = [line for line in lines if key in line]
    if not lines:
        return np.zeros(0), np.zeros(0)
    steps = np.array([line["step"] for line in lines], float)
    values = np.array([line[key] for line in lines], float)
    weights = np.array([line.get("halted", 1) or 1 for line in lines], float)
    bin_of = np.minimum((steps / steps.max() * bins).astype(int), bins - 1)
    used = np.unique(bin_of)
    at = [steps[bin_of == b].mean() for b in used]
    means = [np.average(values[bin_of == b], weights=weights[bin_of == b]) for b in used]
    return np.array(at), np.array(means)


def curve(ax, seeds: list[list[dict]], key: str, k: int, text: str, scale: float = 1.0) -> None:
    """The mean over seeds (the training lines of each) in the k-th style, and the seeds faint."""
    curves = [smooth(lines, key) for lines in seeds]
    curves = [(x, scale * y) for x, y in curves if len(x)]
    if not curves:
        return
    look = style(k)
    if len(curves) > 1:
        for x, y in curves:
            ax.plot(x, y, color=look["color"], lw=0.8, alpha=0.35)
    x = curves[0][0]
    mean = np.mean([np.interp(x, *own) for own in curves], axis=0)
    ax.plot(x, mean, lw=2, ms=5, markevery=max(1, len(x) // 10), label=text, **look)


def plot_curves(entries: Entries, lines: Lines) -> Figure:
    """Exact and cells of the rows that halt in training. Dashed: what copying the question gets."""
    fig = Figure(figsize=(12.5, height(len(entries))), layout="constrained", dpi=130)
    left, right = fig.subplots(1, 2)
    for k, (name, members) in enumerate(entries.items()):
        text = f"{name} ({seed_count(len(members))})"
        seeds = [lines[run.folder] for run in members]
        curve(left, seeds, "exact", k, text, 100)
        curve(right, seeds, "cells", k, text, 100)
    left.axhline(90, color=GREY, ls=":", lw=1.2, label="90 %")
    for share in copying(entries):
        text = f"copying the question: {share:.0f} %"
        right.axhline(share, color=GREY, ls="--", lw=1.2, label=text)
    for ax, figure in ((left, "exact"), (right, "cells")):
        ax.set(xlabel="training step", ylabel=f"{figure}, in training (%)", ylim=(-3, 103))
        ax.set_xlim(left=0)
        plain(ax)
    legend(right, len(entries) + 1, loc="lower right")
    note = "rows that halt, means over a sixtieth of training; thin: seeds"
    fig.supxlabel(note, fontsize=8, color=GREY)
    return fig


def copying(entries: Entries) -> list[float]:
    """Percent of cells that copying the question gets on training tasks, each once."""
    found = set()
    for members in entries.values():
        for run in members:
            if "arc" in run.summary:
                found.add(round(100 * run.summary["arc"]["train"]["copy_cells"], 1))
    return sorted(found)


def plot_health(entries: Entries, lines: Lines) -> Figure | None:
    """What the encoders are like while they learn; None without encoders."""
    with_encoder = {}
    for name, members in entries.items():
        if members[0].config.get("encoder.kind", "none") != "none":
            with_encoder[name] = members
    if not with_encoder:
        return None
    fig = Figure(figsize=(13.5, 7.6), layout="constrained", dpi=130)
    axes = fig.subplots(2, 2, sharex=True).ravel()
    handles = {}  # text -> line, each once for all panels
    for ax, (key, words) in zip(axes, HEALTH.items()):
        for k, (name, members) in enumerate(with_encoder.items()):
            seeds = [lines[run.folder] for run in members]
            curve(ax, seeds, key, k, f"{name} ({len(members)})")
        ax.set(ylabel=words, ylim=(0, None))
        plain(ax)
        drawn, texts = ax.get_legend_handles_labels()
        handles |= dict(zip(texts, drawn))
    for ax in axes[2:]:
        ax.set_xlabel("training step")
    keys = {"title": "entry (seeds)", "title_fontsize": 9, "fontsize": 9, "frameon": False}
    fig.legend(handles.values(), handles.keys(), loc="outside right upper", **keys)
    return fig


def plot_carry(entries: Entries) -> Figure | None:
    """How far recurrent encoders still move their state, step by step, on held-out tasks.

    None without a recurrent encoder.
    """
    moves = {}
    for name, members in entries.items():
        reports = [run.summary.get("arc", {}).get("test", {}) for run in members]
        seeds = [report["carry_change"] for report in reports if report.get("carry_change")]
        if seeds:
            moves[name] = [own for own in seeds if len(own) == len(seeds[0])]
    if not moves:
        return None
    fig = Figure(figsize=(7.5, height(len(moves))), layout="constrained", dpi=130)
    ax = fig.subplots()
    for k, (name, seeds) in enumerate(moves.items()):
        look = style(k)
        steps = np.arange(2, len(seeds[0]) + 2)
        for own in seeds:
            ax.plot(steps, own, color=look["color"], lw=0.8, alpha=0.35)
        text = f"{name} ({seed_count(len(seeds))})"
        ax.plot(steps, np.mean(seeds, axis=0), lw=2, ms=5, label=text, **look)
    ax.set(xlabel="supervision step", ylabel="relative change of the carried state", ylim=(0, None))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(ax)
    legend(ax, len(moves), loc="upper right")
    return fig


# ---------------------------------------------------------------- demonstrations shown


def demos_shown(members: list) -> list[dict]:
    """{"number of demonstrations": figures on held-out tasks} of each seed with a probes.json."""
    found = []
    for run in members:
        path = run.folder / "probes.json"
        if path.exists():
            demos = json.loads(path.read_text())["demos"]
            if demos:
                found.append(demos["test"])
    return found


def plot_demos(entries: Entries) -> Figure | None:
    """Exact on held-out tasks by the number of demonstrations shown, a row per entry.

    None without probes (python probes.py RUN).
    """
    rows = {}
    for name, members in entries.items():
        seeds = demos_shown(members)
        if seeds:
            rows[f"{name} ({seed_count(len(seeds))})"] = {
                count: np.mean([shown[count]["exact"] for shown in seeds if count in shown])
                for count in seeds[0]
            }
    if not rows:
        return None
    counts = sorted({int(k) for row in rows.values() for k in row})
    grid = np.array([[100 * row.get(str(k), math.nan) for k in counts] for row in rows.values()])
    size = (3.2 + 0.9 * len(counts), 1.6 + 0.45 * len(rows))
    fig = Figure(figsize=size, layout="constrained", dpi=130)
    ax = fig.subplots()
    ax.imshow(grid, vmin=0, vmax=100, cmap="Blues", aspect="auto")
    for (i, j), value in np.ndenumerate(grid):
        if np.isfinite(value):
            colour = "white" if value > 60 else "black"
            ax.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour)
    ax.set_xticks(range(len(counts)), counts)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(xlabel="demonstrations shown", title="exact on held-out tasks (%)")
    return fig


# ---------------------------------------------------------------- answers


def plot_grids(folder: Path, side: str = "test", count: int = 6) -> Figure | None:
    """Questions, truths and answers of a run, wrong cells crossed; None without answers.npz.

    Half of them are wrong ones where there are any.
    """
    path = Path(folder) / "answers.npz"
    if not path.exists():
        return None
    with np.load(path) as file:
        inputs, labels = file[f"{side}_inputs"], file[f"{side}_labels"]
        answers = file[f"{side}_answers"]
    labelled = labels >= 0
    wrong = ((answers != labels) & labelled).any(1)
    right = np.flatnonzero(~wrong)[: count - min(count // 2, wrong.sum())]
    rows = np.concatenate([right, np.flatnonzero(wrong)[: count - len(right)]])
    fig = Figure(figsize=(1.55 * len(rows) + 0.7, 5.1), layout="constrained", dpi=130)
    axes = fig.subplots(3, len(rows), squeeze=False)
    for column, row in zip(axes.T, rows):
        truth = np.where(labelled[row], labels[row], 0)
        answer = np.where(labelled[row], answers[row], 0)
        for ax, tokens in zip(column, (inputs[row], truth, answer)):
            draw_grid(ax, tokens)
        cross_out(column[2], np.flatnonzero(answer != truth), len(truth))
    for ax, title in zip(axes[:, 0], ("question", "truth", "answer")):
        ax.set_ylabel(title, fontsize=11)
    which = "held-out" if side == "test" else "training"
    fig.suptitle(
        f"{which} tasks, {(~wrong).sum()} of {len(wrong)} exact; "
        "white: outside the grid, light grey: its end",
        fontsize=10,
    )
    return fig


def draw_grid(ax, tokens: np.ndarray) -> None:
    """Tokens (S,) of a canvas in ARC's colours."""
    side = math.isqrt(len(tokens))
    ax.imshow(tokens.reshape(side, side), cmap=TOKENS, vmin=0, vmax=11, interpolation="nearest")
    ax.set_xticks(np.arange(side + 1) - 0.5, [])
    ax.set_yticks(np.arange(side + 1) - 0.5, [])
    ax.grid(color="#888888", lw=0.5)
    ax.tick_params(length=0)


def cross_out(ax, cells: np.ndarray, S: int) -> None:
    """Crosses on wrong cells of a canvas, and how many they are below it."""
    side = math.isqrt(S)
    x, y = cells % side, cells // side
    ax.plot(x, y, "x", color="white", ms=5, mew=2.4)  # a rim, for dark cells
    ax.plot(x, y, "x", color="black", ms=4, mew=1)
    words = "exact"
    if len(cells):
        words = f"{len(cells)} cell{'s' * (len(cells) > 1)} wrong"
    ax.set_xlabel(words, fontsize=10)
