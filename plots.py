"""The plots of analyze.py. Each takes its Groups (the seeds of one configuration each) and returns a figure; `write` saves them all.

Colours are Okabe and Ito's; every entry has a marker or a dash of its own too, and every legend or axis says how many seeds and puzzles.
"""

from pathlib import Path

import numpy as np
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from stats import GOAL, wilson

COLOURS = "#0072B2 #E69F00 #009E73 #D55E00 #CC79A7 #56B4E9".split()  # Okabe-Ito
MARKERS, DASHES = "osD^vP", ["-", "--", ":"]
GREY = "#777777"
TASKS = {
    "maze": "Mazes",
    "sudoku": "Sudoku",
    "features": "Feature vectors",
    "modular": "Modular addition",
}


def look(k: int) -> dict:
    """Colour, marker and dash of the k-th entry of a panel: no two alike among eighteen."""
    return {"color": COLOURS[k % 6], "marker": MARKERS[(k + k // 6) % 6], "ls": DASHES[k // 6 % 3]}


def seeds_and_puzzles(groups: list) -> str:
    """ "3 seeds x 512 puzzles" of several groups."""
    seeds, puzzles = (
        sorted({len(g.runs) for g in groups}),
        sorted({r.summary["test"]["n"] for g in groups for r in g.runs}),
    )
    return f"{'/'.join(map(str, seeds))} seed{'s' * (seeds[-1] > 1)} x {'/'.join(map(str, puzzles))} puzzles"


def label(g, puzzles) -> str:
    return f"{g.name} ({len(g.runs)} seed{'s' * (len(g.runs) > 1)}, {puzzles} puzzles)"


def plain(ax, grid: str = "y") -> None:
    ax.grid(axis=grid, color="#e5e5e5")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def legend(ax, entries: int, **where) -> None:
    """Inside the panel while there is room, else to its right."""
    place = (
        where | {"fontsize": 9}
        if entries <= 6
        else {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "fontsize": 8}
    )
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, **place)


def height(entries: int) -> float:
    """Inches of a figure whose legend lists so many entries."""
    return max(4.6, 0.9 + 0.19 * entries)


def panels(groups: list, xlabel: str, ylabel: str):
    """A figure with one panel per task, and (axes, groups of the task) pairs."""
    tasks = sorted({g.first["task"] for g in groups})
    most = max(sum(g.first["task"] == task for g in groups) for task in tasks)
    fig = Figure(
        figsize=((6.2 if most <= 6 else 9.0) * len(tasks) + 0.4, height(most)),
        layout="constrained",
        dpi=130,
    )
    axes = fig.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for ax, task in zip(axes, tasks):
        ax.set(title=TASKS.get(task, task), xlabel=xlabel, ylim=(-3, 103), yticks=range(0, 101, 20))
        plain(ax)
    axes[0].set_ylabel(ylabel)
    return fig, [
        (ax, [g for g in groups if g.first["task"] == task]) for ax, task in zip(axes, tasks)
    ]


def band(ax, g, k: int, x: str, y: str, scale: float, text: str) -> None:
    """The mean over seeds of a validation column against another, and a band from the smallest to the largest seed."""
    steps = sorted(
        set.intersection(*({*r.val["step"]} for r in g.runs))
    )  # what all seeds have validated
    if not steps:
        return
    at = [np.isin(r.val["step"], steps) for r in g.runs]
    xs, ys = (
        np.array(
            [
                r.val[key][keep][np.unique(r.val["step"][keep], return_index=True)[1]]
                for r, keep in zip(g.runs, at)
            ]
        )
        for key in (x, y)
    )
    xs, ys, thin = xs.mean(0), scale * ys, slice(None, None, -(-len(steps) // 400))
    style = look(k) | {"markevery": max(1, len(steps[thin]) // 12)}
    if len(ys) > 1:
        ax.fill_between(
            xs[thin], ys.min(0)[thin], ys.max(0)[thin], color=style["color"], alpha=0.15, lw=0
        )
    ax.plot(xs[thin], ys.mean(0)[thin], lw=2, ms=5, label=text, **style)


def in_training(ax, g) -> None:
    """Accuracy on the training slots against the step, a line per seed, each point the mean of a fiftieth of the run."""
    for r in g.runs:
        step, exact = r.learned["train"]
        lines = max(
            1, -(-len(step) // 50)
        )  # of metrics.jsonl in a point; those left over at the end are not drawn
        step, exact = (
            v[: len(v) // lines * lines].reshape(-1, lines).mean(1) for v in (step, exact)
        )
        ax.plot(
            step,
            100 * exact,
            color=GREY,
            lw=0.9,
            zorder=1,
            label="in training, each seed" * (r is g.runs[0]),
        )


def plot_learning(groups: list) -> Figure:
    """Validation accuracy: against steps where entries are compared, which have the same number, else against time.

    One entry alone: against steps, and beside it the accuracy of every seed in training.
    """
    steps = all(g.base for g in groups) or len(groups) == 1
    fig, pairs = panels(
        groups, "training step" if steps else "seconds of training", "exact on validation (%)"
    )
    for ax, members in pairs:
        for k, g in enumerate(members):
            n = next(
                (
                    int(r.val["n"][0])
                    for r in g.runs
                    if len(r.val["n"]) and np.isfinite(r.val["n"][0])
                ),
                "?",
            )
            band(ax, g, k, "step" if steps else "seconds", "exact", 100, label(g, n))
        if len(groups) == 1:
            in_training(ax, groups[0])
        ax.set_xlim(left=0)
        legend(ax, len(members), loc="best")
    if any(len(g.runs) > 1 for g in groups):
        pairs[0][0].annotate(
            "band: smallest to largest seed",
            (0.01, 0.985),
            xycoords="axes fraction",
            va="top",
            fontsize=8,
            color=GREY,
        )
    return fig


def plot_steps(groups: list) -> Figure:
    """Test accuracy after each supervision step; bars: smallest to largest seed, or the 95 % interval of one."""
    fig, pairs = panels(groups, "supervision step", "exact on test (%)")
    for ax, members in pairs:
        longest = max(len(r.summary["test"]["curve"]) for g in members for r in g.runs)
        for k, g in enumerate(members):
            curves = np.array([r.summary["test"]["curve"] for r in g.runs])  # (seeds, steps)
            mean, n = curves.mean(0), g.first["test"]["n"]
            low, high = (
                (curves.min(0), curves.max(0))
                if len(curves) > 1
                else np.array([wilson(c, n) for c in mean]).T
            )
            x = np.arange(1, len(mean) + 1) + 0.04 * (
                k - (len(members) - 1) / 2
            )  # bars beside each other
            puzzles = "/".join(map(str, sorted({r.summary["test"]["n"] for r in g.runs})))
            ax.errorbar(
                x,
                100 * mean,
                100 * np.abs([low - mean, high - mean]),
                lw=2,
                ms=6,
                elinewidth=1,
                capsize=2,
                label=label(g, puzzles),
                **look(k),
            )
        for copy, name in sorted({(g.first["baseline"]["exact"], g.trivial) for g in members}):
            ax.axhline(
                100 * copy,
                color=GREY,
                ls="--",
                lw=1.2,
                zorder=1,
                label=f"{name}: {100 * copy:.0f} %",
            )
        ax.set_xticks(range(1, longest + 1, -(-longest // 12)))
        legend(ax, len(members), loc="lower right", bbox_to_anchor=(1, 0.06))
    return fig


# ---------------------------------------------------------------- entries beside their baseline


def rows(groups: list, columns: int, width: float = 3.6):
    """A figure with a row per entry and some panels side by side."""
    fig = Figure(
        figsize=(2.2 + width * columns, 1.3 + 0.36 * len(groups)), layout="constrained", dpi=130
    )
    axes = fig.subplots(1, columns, sharey=True, squeeze=False)[0]
    axes[0].set_yticks(range(len(groups)), [g.name for g in groups])
    axes[0].set_ylim(len(groups) - 0.5, -0.5)
    for ax in axes:
        plain(ax, "x")
    return fig, axes


def dots(ax, k: int, g, values, low: float | None = None, high: float | None = None) -> None:
    """Row k: every seed faint, the mean strong, the 95 % interval as a bar."""
    values, style = np.asarray(values, dtype=float), look(k) | {"ls": ""}
    ax.plot(values, np.full(len(values), k + 0.22), ms=4, alpha=0.5, **style | {"marker": "."})
    if low is not None and np.isfinite([low, high]).all():
        ax.plot([low, high], [k, k], color=style["color"], lw=1.6, marker="|", ms=7)
    ax.plot(values.mean(), k, ms=7, **style)


def plot_accuracy(groups: list) -> Figure:
    """Test accuracy by entry, and its difference to the baseline, both with 95 % intervals."""
    fig, (left, right) = rows(groups, 2, 4.0)
    for k, g in enumerate(groups):
        mean, low, high = g.accuracy
        dots(left, k, g, 100 * np.array(g.each("exact")), 100 * max(0, low), 100 * min(1, high))
        if g.base is g:
            left.axvline(100 * mean, color=GREY, ls="--", lw=1.2, zorder=1)
            continue
        base = {r.seed: r.figure("exact") for r in g.base.runs}
        seeds = [100 * (r.figure("exact") - base[r.seed]) for r in g.runs if r.seed in base]
        dots(right, k, g, seeds, 100 * g.difference[1], 100 * g.difference[2])
        if expected := g.runs[0].config.get("expected"):
            right.plot(expected, k, marker="d", ms=8, mfc="none", mec="black", ls="")
    right.axvline(0, color=GREY, ls="--", lw=1.2, zorder=1)
    left.set_xlabel(f"exact on test (%), {seeds_and_puzzles(groups)}")
    right.set_xlabel("difference to the baseline (points)")
    fig.supxlabel(
        "mean with 95 % interval; small dots: seeds; hollow diamond: published change",
        fontsize=8,
        color=GREY,
    )
    return fig


def plot_cost(groups: list) -> Figure:
    """Test accuracy against effective depth and against the FLOP of the whole training."""
    fig = Figure(
        figsize=(11.5 if len(groups) <= 6 else 13.0, height(len(groups))),
        layout="constrained",
        dpi=130,
    )
    left, right = fig.subplots(1, 2, sharey=True)
    depths, flop = (
        np.array([g.first["depth"] for g in groups], dtype=float),
        np.log([g.first.get("flop") or np.nan for g in groups]),
    )

    def beside(values, k: int) -> float:  # equal ones side by side
        same = np.flatnonzero(np.isclose(values, values[k]))
        width = min(0.015, 0.06 / len(same)) * ((np.nanmax(values) - np.nanmin(values)) or 1)
        return values[k] + width * (np.searchsorted(same, k) - (len(same) - 1) / 2)

    for k, g in enumerate(groups):
        mean, low, high = (100 * v for v in g.accuracy)
        bars = np.abs([[max(0, low) - mean], [min(100, high) - mean]]) if np.isfinite(low) else None
        for ax, values, back in ((left, depths, float), (right, flop, np.exp)):
            if np.isfinite(values[k]):
                ax.errorbar(
                    back(beside(values, k)),
                    mean,
                    bars,
                    ms=8,
                    lw=0,
                    elinewidth=1.2,
                    capsize=3,
                    label=g.name,
                    **look(k),
                )
    left.set(
        xlabel="effective depth: T x (n + 1) x layers",
        ylabel=f"exact on test (%), {seeds_and_puzzles(groups)}",
    )
    right.set(
        xlabel="FLOP of training"
        if np.isfinite(flop).any()
        else "FLOP of training: not in these runs"
    )
    if np.isfinite(flop).any():
        right.set_xscale("log")
    for ax in (left, right):
        plain(ax)
    legend(left if len(groups) <= 6 else right, len(groups), loc="best")
    fig.supxlabel(
        "mean with 95 % interval; equal depths and equal FLOP side by side", fontsize=8, color=GREY
    )
    return fig


def plot_halting(groups: list) -> Figure:
    """Supervision steps until the net would stop: while it learns, on validation, and at the end, on test."""
    fig = Figure(figsize=(11.5, max(4.6, 1.3 + 0.36 * len(groups))), layout="constrained", dpi=130)
    left, right = fig.subplots(1, 2)
    for k, g in enumerate(groups):
        band(left, g, k, "step", "halting_steps", 1, g.name)
        dots(right, k, g, g.each("halting_steps"))
    limit = max(g.first["test"]["steps"] for g in groups)
    right.axvline(limit, color=GREY, ls="--", lw=1.2, zorder=1)
    left.set(
        xlabel="training step", ylabel="steps until halting, validation", ylim=(0, 1.05 * limit)
    )
    right.set(
        xlabel=f"steps until halting, test, {seeds_and_puzzles(groups)}",
        xlim=(0, 1.05 * limit),
        ylim=(len(groups) - 0.5, -0.5),
    )
    right.set_yticks(range(len(groups)), [g.name for g in groups])
    plain(left)
    plain(right, "x")
    fig.supxlabel(
        f"colours and markers as on the right; mean over seeds; band: smallest to largest; small dots: seeds; dashed: all {limit:.0f} steps",
        fontsize=8,
        color=GREY,
    )
    return fig


def plot_stability(groups: list) -> Figure:
    """How much validation accuracy moves late in training, and how often the loss jumps."""
    fig, (left, right) = rows(groups, 2)
    for k, g in enumerate(groups):
        dots(left, k, g, 100 * np.array(g.each("spread")))
        dots(right, k, g, g.each("spikes"))
    left.set_xlabel(
        "standard deviation of validation accuracy\nover the last third of training (points)"
    )
    right.set_xlabel("loss spikes per run: above 1.5 times\nthe median of the ten lines before")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_xlim(left=0)
    right.set_xlim(
        -0.1, max(1, right.get_xlim()[1])
    )  # spikes are counted, also where there is none
    fig.supxlabel(
        f"mean over seeds; small dots: seeds; {seeds_and_puzzles(groups)}", fontsize=8, color=GREY
    )
    return fig


# ---------------------------------------------------------------- grokking, depth


def plot_grokking(groups: list) -> Figure:
    """Training and validation accuracy against the step (log), a panel per entry, a line per seed: memorised first, generalised later."""
    columns = min(4, len(groups))
    rows_ = -(-len(groups) // columns)
    fig = Figure(figsize=(3.4 * columns + 0.6, 3.4 * rows_ + 0.5), layout="constrained", dpi=130)
    axes = fig.subplots(rows_, columns, sharex=True, sharey=True, squeeze=False)
    for ax, g in zip(axes.flat, groups):
        for k, r in enumerate(g.runs):
            label_ = ("training", "validation") if k == 0 else (None, None)
            ax.plot(*r.learned["train"], color=COLOURS[1], ls="--", lw=1.3, label=label_[0])
            ax.plot(*r.learned["val"], color=COLOURS[0], ls="-", lw=1.3, label=label_[1])
            if np.isfinite(r.reached["val"]):
                ax.plot(
                    r.reached["val"],
                    GOAL,
                    color=COLOURS[0],
                    marker=MARKERS[k % len(MARKERS)],
                    ms=6,
                    ls="",
                )
        ax.axhline(GOAL, color=GREY, ls=":", lw=1.2, zorder=1)
        ax.set(
            title=f"{g.name} ({len(g.runs)} seed{'s' * (len(g.runs) > 1)})",
            xscale="log",
            ylim=(-0.03, 1.03),
        )
        ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
        plain(ax)
    for ax in axes.flat[len(groups) :]:
        ax.set_visible(False)
    axes[0, 0].legend(frameon=False, loc="best", fontsize=9)
    fig.supylabel("exact (%)", fontsize=10)
    fig.supxlabel(
        f"training step; a line per seed; dotted: {100 * GOAL:.0f} %, markers: where validation first reaches it",
        fontsize=9,
    )
    return fig


def plot_depth(
    exact: np.ndarray, Ts: list[int], ns: list[int], trained: tuple[int, int], title: str
) -> Figure:
    """Test accuracy (T, n) as a map with its figures; the T and n of the training are framed."""
    fig = Figure(figsize=(0.62 * len(ns) + 2.2, 0.5 * len(Ts) + 1.6), layout="constrained", dpi=130)
    ax, shares = fig.subplots(), 100 * exact
    image = ax.imshow(shares, cmap="cividis", aspect="auto", origin="lower")
    dark = shares < (shares.min() + shares.max()) / 2
    for (i, j), share in np.ndenumerate(shares):
        ax.text(
            j,
            i,
            f"{share:.1f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark[i, j] else "black",
        )
    if trained[0] in Ts and trained[1] in ns:
        corner = ns.index(trained[1]) - 0.47, Ts.index(trained[0]) - 0.47
        ax.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, ec=COLOURS[3], lw=2.5))
    ax.set(xlabel="n, updates of z before each update of y", ylabel="T, recursions")
    ax.set_xticks(range(len(ns)), ns)
    ax.set_yticks(range(len(Ts)), Ts)
    ax.set_title(f"{title}\nframed: as trained, T = {trained[0]}, n = {trained[1]}", fontsize=10)
    fig.colorbar(image, label="exact on test (%)")
    return fig


# ---------------------------------------------------------------- files

PLOTS = {"learning": plot_learning, "steps": plot_steps}  # of all entries together
COMPARISONS = {
    "accuracy": plot_accuracy,
    "cost": plot_cost,
    "halting": plot_halting,
    "stability": plot_stability,
}  # of entries with a baseline


def write(out: Path, groups: list) -> list[str]:
    """Every plot that these groups have, as PNG and SVG into `out`; the file names."""
    figures = {name: plot(groups) for name, plot in PLOTS.items()}
    bases = [g for g in groups if g.base is g and any(o.base is g for o in groups if o is not g)]
    for base in bases:
        suffix = f"_{base.runs[0].entry.parent.name}" if len(bases) > 1 else ""
        figures |= {
            name + suffix: plot([g for g in groups if g.base is base])
            for name, plot in COMPARISONS.items()
        }
    if late := sorted((g for g in groups if g.first["task"] == "modular"), key=lambda g: g.name):
        figures["grokking"] = plot_grokking(late)
    return save(out, figures)


def save(out: Path, figures: dict[str, Figure]) -> list[str]:
    """Figures by name as PNG and SVG. The same runs give the same bytes."""
    rcParams["svg.hashsalt"] = "analyze"
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png")
        figure.set_layout_engine("none")  # the layout is made
        figure.savefig(out / f"{name}.svg", metadata={"Date": None})
    return [f"{name}.{kind}" for name in figures for kind in ("png", "svg")]
