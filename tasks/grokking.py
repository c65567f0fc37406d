"""How late a net generalises: tables and plot of modular addition, for analyze.py.

A net memorises the training rows first and generalises later (arXiv 2201.02177). Measured are the
steps until GOAL of the training rows, and of the validation rows, are right.
"""

import math

import numpy as np

from stats import GOAL, clean, excludes_zero, markdown, ratio, time_to_threshold


def reached(run) -> dict[str, float]:
    """{"train": steps until GOAL, "val": ...}; infinity: never."""
    return {split: time_to_threshold(*run.learned(split)) for split in ("train", "val")}


def reference_of(group, groups: list):
    """The baseline, else the first entry of the folder by name."""
    sweep = group.runs[0].entry.parent
    same = [g for g in groups if g.first["task"] == "modular" and g.runs[0].entry.parent == sweep]
    return group.base or min(same, key=lambda g: g.name)


def columns(group, groups: list) -> dict:
    """Flat columns: the steps by seed, and in units of the reference's.

    A run that never gets there is named and averaged nowhere.
    """
    base, flat = reference_of(group, groups), {}
    for run in group.runs:
        for split, step in reached(run).items():
            never = f"not reached within {run.summary['steps']}"
            flat[f"reach_{split}_seed{run.seed}"] = never if math.isinf(step) else int(step)
    seeds = sorted({run.seed for run in base.runs} & {run.seed for run in group.runs})
    theirs, ours = (
        np.array([reached(side.seed(seed))["val"] for seed in seeds]) for side in (base, group)
    )
    mean = low = high = math.nan
    if base is not group and seeds:
        mean, low, high = ratio(theirs, ours)
    return flat | {
        "reach_reference": base.name,
        "reach_ratio": clean(mean),
        "reach_ratio_low": clean(low),
        "reach_ratio_high": clean(high),
        "reach_verdict": "reference" if base is group else verdict(theirs, ours, mean, low, high),
    }


def verdict(theirs: np.ndarray, ours: np.ndarray, mean: float, low: float, high: float) -> str:
    """ "earlier", "later", "not shown", or why there is no ratio."""
    if not len(ours):
        return "no seed in common"
    if np.isinf([theirs, ours]).any():
        never = f"never reached by {np.isinf(ours).sum()} of {len(ours)} seeds"
        return f"no ratio: {never}, in the reference by {np.isinf(theirs).sum()}"
    if not excludes_zero(low - 1, high - 1):
        return "not shown"
    return "earlier" if mean < 1 else "later"


def reached_table(rows: list[dict]) -> list[str]:
    """The columns above as Markdown, in the order of the names."""
    rows = sorted(rows, key=lambda row: row["entry"])
    prefix = "reach_val_seed"
    seeds = sorted({int(key.removeprefix(prefix)) for row in rows for key in row if prefix in key})
    head = ["entry", *(f"seed {seed}: training, validation" for seed in seeds)]
    lines = []
    for row in rows:
        line = [row["entry"]]
        for seed in seeds:
            steps = [row.get(f"reach_{split}_seed{seed}", "-") for split in ("train", "val")]
            line.append(", ".join(map(str, steps)))
        lines.append([*line, units(row), row["reach_verdict"]])
    references = ", ".join(sorted({row["reach_reference"] for row in rows}))
    share = f"{100 * GOAL:.0f} %"
    return markdown([*head, "in units of the reference (95 %)", "verdict"], lines) + [
        f"Steps until {share} of the training rows (mean since the line before) and {share} of the "
        "validation rows are right for the first time, as fine as metrics.jsonl. In units: "
        f"validation steps over those of the reference ({references}), geometric mean over the "
        "seeds that both have, with its 95 % interval for other seeds; only where all of them got "
        "there.",
        "",
    ]


def units(row: dict) -> str:
    """0.91 (0.80 to 1.10)"""
    if row["reach_ratio"] is None:
        return "-"
    text = f"{row['reach_ratio']:.2f}"
    if row["reach_ratio_low"] is None:
        return text
    return f"{text} ({row['reach_ratio_low']:.2f} to {row['reach_ratio_high']:.2f})"


def plot_grokking(groups: list):
    """Training and validation accuracy against the step (log), a panel per entry."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    from plots import COLOURS, GREY, MARKERS, plain

    columns_ = min(4, len(groups))
    rows = -(-len(groups) // columns_)
    size = (3.4 * columns_ + 0.6, 3.4 * rows + 0.5)
    fig = Figure(figsize=size, layout="constrained", dpi=130)
    axes = fig.subplots(rows, columns_, sharex=True, sharey=True, squeeze=False)
    for ax, group in zip(axes.flat, groups):
        for k, run in enumerate(group.runs):
            labels = ("training", "validation") if k == 0 else (None, None)
            ax.plot(*run.learned("train"), color=COLOURS[1], ls="--", lw=1.3, label=labels[0])
            ax.plot(*run.learned("val"), color=COLOURS[0], ls="-", lw=1.3, label=labels[1])
            step = reached(run)["val"]
            if np.isfinite(step):
                marker = MARKERS[k % len(MARKERS)]
                ax.plot(step, GOAL, color=COLOURS[0], marker=marker, ms=6, ls="")
        ax.axhline(GOAL, color=GREY, ls=":", lw=1.2, zorder=1)
        seeds = f"{len(group.runs)} seed{'s' * (len(group.runs) > 1)}"
        ax.set(title=f"{group.name} ({seeds})", xscale="log", ylim=(-0.03, 1.03))
        ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
        plain(ax)
    for ax in axes.flat[len(groups) :]:
        ax.set_visible(False)
    axes[0, 0].legend(frameon=False, loc="best", fontsize=9)
    fig.supylabel("exact (%)", fontsize=10)
    fig.supxlabel(
        f"training step; a line per seed; dotted: {100 * GOAL:.0f} %, "
        "markers: where validation first reaches it",
        fontsize=9,
    )
    return fig
