"""The plots of analyze.py, and files that are whole or not there.

A plot takes Groups (the seeds of one configuration) and returns a figure.

Colours are Okabe and Ito's. Every entry has a marker or a dash of its own too, and every legend or
axis says how many seeds and puzzles. They are drawn with matplotlib's own settings, whatever
matplotlibrc or notebook the user works in; so whoever draws imports this file first.
"""

import csv
import io
import os
import sys
import warnings
from pathlib import Path

import numpy as np

os.environ["MPLBACKEND"] = "agg"  # a notebook's own backend is not installed everywhere
os.environ["MATPLOTLIBRC"] = os.devnull

import matplotlib  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402
from matplotlib.text import Text  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

from config import UserError  # noqa: E402
from stats import visible, wilson  # noqa: E402

matplotlib.rcdefaults()
warnings.filterwarnings("ignore", "Glyph .* missing")  # a name may have letters of any script
matplotlib.rcParams["svg.hashsalt"] = "analyze"  # the same runs give the same bytes

COLOURS = "#0072B2 #E69F00 #009E73 #D55E00 #CC79A7 #56B4E9".split()  # Okabe-Ito
MARKERS, DASHES = "osD^vP", ["-", "--", ":"]
GREY = "#777777"


# ---------------------------------------------------------------- what all plots share


def style(k: int) -> dict:
    """Colour, marker and dash of the k-th entry of a panel: no two alike among eighteen."""
    return {
        "color": COLOURS[k % 6],
        "marker": MARKERS[(k + k // 6) % 6],
        "ls": DASHES[k // 6 % 3],
    }


def seed_count(seeds: int) -> str:
    return f"{seeds} seed{'s' * (seeds > 1)}"


def rows_word(groups: list) -> str:
    """What one row of these tasks is called; "rows" where they differ."""
    names = {g.task.rows for g in groups}
    return names.pop() if len(names) == 1 else "rows"


def seeds_and_puzzles(groups: list) -> str:
    """ "3 seeds x 512 puzzles" of several groups."""
    seeds = sorted({len(g.runs) for g in groups})
    puzzles = sorted({run.summary["test"]["n"] for g in groups for run in g.runs})
    counts = "/".join(map(str, seeds)) + f" seed{'s' * (seeds[-1] > 1)}"
    return f"{counts} x {'/'.join(map(str, puzzles))} {rows_word(groups)}"


def label(g, puzzles) -> str:
    return f"{g.name} ({seed_count(len(g.runs))}, {puzzles} {g.task.rows})"


def plain(ax, grid: str = "y") -> None:
    """Light grid lines behind, no frame above and on the right."""
    ax.grid(axis=grid, color="#e5e5e5")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def legend(ax, entries: int, **where) -> None:
    """Inside the panel while there is room, else to its right."""
    place = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "fontsize": 8}
    if entries <= 6:
        place = where | {"fontsize": 9}
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, **place)


def height(entries: int) -> float:
    """Inches of a figure whose legend lists so many entries."""
    return max(4.6, 0.9 + 0.19 * entries)


def footnote(fig: Figure, text: str) -> None:
    fig.supxlabel(text, fontsize=8, color=GREY)


def panels(groups: list, xlabel: str, ylabel: str):
    """A figure with one panel per task, and (axes, groups of the task) pairs."""
    tasks: dict[str, list] = {}
    for g in sorted(groups, key=lambda g: g.first["task"]):
        tasks.setdefault(g.first["task"], []).append(g)
    most = max(map(len, tasks.values()))
    width = (6.2 if most <= 6 else 9.0) * len(tasks) + 0.4
    fig = Figure(figsize=(width, height(most)), layout="constrained", dpi=130)
    axes = fig.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for ax, members in zip(axes, tasks.values()):
        title = members[0].task.title
        ax.set(title=title, xlabel=xlabel, ylim=(-3, 103), yticks=range(0, 101, 20))
        plain(ax)
    axes[0].set_ylabel(ylabel)
    return fig, list(zip(axes, tasks.values()))


def common_steps(g) -> list[float]:
    """The steps at which all seeds have been validated."""
    return sorted(set.intersection(*(set(run.val["step"]) for run in g.runs)))


def at_steps(run, key: str, steps: list[float]) -> np.ndarray:
    """A validation column of a run at these steps, the first line of each."""
    first = [int(np.flatnonzero(run.val["step"] == step)[0]) for step in steps]
    return run.val[key][first]


def band(ax, g, k: int, x: str, y: str, scale: float, text: str) -> None:
    """The mean over seeds of a validation column against another.

    Behind it a band from the smallest to the largest seed.
    """
    steps = common_steps(g)
    steps = steps[:: max(1, -(-len(steps) // 400))]  # more points than that cannot be seen
    if not steps:
        return
    xs = np.array([at_steps(run, x, steps) for run in g.runs]).mean(0)
    ys = scale * np.array([at_steps(run, y, steps) for run in g.runs])  # (seeds, steps)
    own = style(k)
    if len(ys) > 1:
        ax.fill_between(xs, ys.min(0), ys.max(0), color=own["color"], alpha=0.15, lw=0)
    every = max(1, len(steps) // 12)
    ax.plot(xs, ys.mean(0), lw=2, ms=5, label=text, markevery=every, **own)


def in_training(ax, g) -> None:
    """Accuracy on the training slots, a line per seed, each point the mean of a fiftieth."""
    for run in g.runs:
        step, exact = run.learned("train")
        lines = max(1, -(-len(step) // 50))  # of metrics.jsonl in a point
        whole = len(step) // lines * lines  # those left over at the end are not drawn
        step, exact = (values[:whole].reshape(-1, lines).mean(1) for values in (step, exact))
        text = "in training, each seed" if run is g.runs[0] else ""
        ax.plot(step, 100 * exact, color=GREY, lw=0.9, zorder=1, label=text)


# ---------------------------------------------------------------- all entries together


def plot_learning(groups: list) -> Figure:
    """Validation accuracy: against steps where entries are compared, else against time.

    Entries that are compared have the same number of steps. One entry alone: against steps, and
    beside it the accuracy of every seed in training.
    """
    by_step = all(g.base for g in groups) or len(groups) == 1
    xlabel = "training step" if by_step else "seconds of training"
    fig, pairs = panels(groups, xlabel, "exact on validation (%)")
    for ax, members in pairs:
        for k, g in enumerate(members):
            x = "step" if by_step else "seconds"
            band(ax, g, k, x, "exact", 100, label(g, validation_rows(g)))
        if len(groups) == 1:
            in_training(ax, groups[0])
        ax.set_xlim(left=0)
        legend(ax, len(members), loc="best")
    if any(len(g.runs) > 1 for g in groups):
        where = {"xy": (0.01, 0.985), "xycoords": "axes fraction", "va": "top"}
        pairs[0][0].annotate("band: smallest to largest seed", fontsize=8, color=GREY, **where)
    return fig


def validation_rows(g) -> str:
    """How many rows a validation had."""
    counts = [run.val["n"][0] for run in g.runs if len(run.val["n"])]
    known = [int(count) for count in counts if np.isfinite(count)]
    return str(known[0]) if known else "?"


def plot_steps(groups: list) -> Figure:
    """Test accuracy after each supervision step.

    Bars: smallest to largest seed, or the 95 % interval of one.
    """
    fig, pairs = panels(groups, "supervision step", "exact on test (%)")
    for ax, members in pairs:
        longest = max(len(run.summary["test"]["curve"]) for g in members for run in g.runs)
        for k, g in enumerate(members):
            curves = np.array([run.summary["test"]["curve"] for run in g.runs])  # (seeds, steps)
            mean = curves.mean(0)
            low, high = curves.min(0), curves.max(0)
            if len(curves) == 1:
                low, high = np.array([wilson(share, g.first["test"]["n"]) for share in mean]).T
            puzzles = sorted({run.summary["test"]["n"] for run in g.runs})
            text = label(g, "/".join(map(str, puzzles)))
            x = np.arange(1, len(mean) + 1) + 0.04 * (k - (len(members) - 1) / 2)  # side by side
            bars = 100 * np.abs([low - mean, high - mean])
            look = {"lw": 2, "ms": 6, "elinewidth": 1, "capsize": 2} | style(k)
            ax.errorbar(x, 100 * mean, bars, label=text, **look)
        for share, name in sorted({(g.first["baseline"]["exact"], g.trivial) for g in members}):
            text = f"{name}: {100 * share:.0f} %"
            ax.axhline(100 * share, color=GREY, ls="--", lw=1.2, zorder=1, label=text)
        ax.set_xticks(range(1, longest + 1, -(-longest // 12)))
        legend(ax, len(members), loc="lower right", bbox_to_anchor=(1, 0.06))
    return fig


# ---------------------------------------------------------------- entries beside their baseline


def entry_rows(groups: list, columns: int, width: float = 3.6):
    """A figure with a row per entry and some panels side by side."""
    size = (2.2 + width * columns, 1.3 + 0.36 * len(groups))
    fig = Figure(figsize=size, layout="constrained", dpi=130)
    axes = fig.subplots(1, columns, sharey=True, squeeze=False)[0]
    axes[0].set_yticks(range(len(groups)), [g.name for g in groups])
    axes[0].set_ylim(len(groups) - 0.5, -0.5)
    for ax in axes:
        plain(ax, "x")
    return fig, axes


def dots(ax, k: int, values, low: float | None = None, high: float | None = None) -> None:
    """Row k: every seed faint, the mean strong, the 95 % interval as a bar."""
    values, own = np.asarray(values, dtype=float), style(k) | {"ls": ""}
    faint = own | {"marker": ".", "ms": 4, "alpha": 0.5}
    ax.plot(values, np.full(len(values), k + 0.22), **faint)
    if low is not None and np.isfinite([low, high]).all():
        ax.plot([low, high], [k, k], color=own["color"], lw=1.6, marker="|", ms=7)
    ax.plot(values.mean(), k, ms=7, **own)


def plot_accuracy(groups: list) -> Figure:
    """Test accuracy by entry, and its difference to the baseline, both with 95 % intervals."""
    fig, (left, right) = entry_rows(groups, 2, 4.0)
    for k, g in enumerate(groups):
        mean, low, high = g.accuracy
        values = 100 * np.array(g.each("exact"))
        dots(left, k, values, 100 * max(0, low), 100 * min(1, high))
        if g.base is g:
            left.axvline(100 * mean, color=GREY, ls="--", lw=1.2, zorder=1)
            continue
        base = {run.seed: run.figure("exact") for run in g.base.runs}
        paired = [run for run in g.runs if run.seed in base]
        changes = [100 * (run.figure("exact") - base[run.seed]) for run in paired]
        dots(right, k, changes, 100 * g.difference[1], 100 * g.difference[2])
        expected = g.runs[0].config.get("expected")
        if expected:
            right.plot(expected, k, marker="d", ms=8, mfc="none", mec="black", ls="")
    right.axvline(0, color=GREY, ls="--", lw=1.2, zorder=1)
    left.set_xlabel(f"exact on test (%), {seeds_and_puzzles(groups)}")
    right.set_xlabel("difference to the baseline (points)")
    footnote(fig, "mean with 95 % interval; small dots: seeds; hollow diamond: published change")
    return fig


def spread_out(values: np.ndarray) -> np.ndarray:
    """The values, equal ones moved side by side."""
    moved = values.copy()
    whole = np.nanmax(values) - np.nanmin(values) or 1
    for value in values[np.isfinite(values)]:
        same = np.flatnonzero(np.isclose(values, value))
        width = min(0.015, 0.06 / len(same)) * whole
        moved[same] = value + width * (np.arange(len(same)) - (len(same) - 1) / 2)
    return moved


def plot_cost(groups: list) -> Figure:
    """Test accuracy against effective depth and against the FLOP of the whole training."""
    few = len(groups) <= 6
    size = (11.5 if few else 13.0, height(len(groups)))
    fig = Figure(figsize=size, layout="constrained", dpi=130)
    left, right = fig.subplots(1, 2, sharey=True)
    depths = spread_out(np.array([g.first["depth"] for g in groups], dtype=float))
    flop = np.array([g.first.get("flop") or np.nan for g in groups], dtype=float)
    known = np.isfinite(flop).any()
    if known:
        flop = np.exp(spread_out(np.log(flop)))  # the axis is logarithmic
    for k, g in enumerate(groups):
        mean, low, high = (100 * value for value in g.accuracy)
        bars = None
        if np.isfinite(low):
            bars = np.abs([[max(0, low) - mean], [min(100, high) - mean]])
        for ax, x in ((left, depths[k]), (right, flop[k])):
            if np.isfinite(x):
                look = {"ms": 8, "lw": 0, "elinewidth": 1.2, "capsize": 3} | style(k)
                ax.errorbar(x, mean, bars, label=g.name, **look)
    left.set_xlabel("effective depth: T x (n + 1) x layers")
    left.set_ylabel(f"exact on test (%), {seeds_and_puzzles(groups)}")
    right.set_xlabel("FLOP of training" + ("" if known else ": not in these runs"))
    if known:
        right.set_xscale("log")
    for ax in (left, right):
        plain(ax)
    legend(left if few else right, len(groups), loc="best")
    footnote(fig, "mean with 95 % interval; equal depths and equal FLOP side by side")
    return fig


def plot_halting(groups: list) -> Figure:
    """Supervision steps until the net would stop: while it learns, and at the end on test."""
    size = (11.5, max(4.6, 1.3 + 0.36 * len(groups)))
    fig = Figure(figsize=size, layout="constrained", dpi=130)
    left, right = fig.subplots(1, 2)
    for k, g in enumerate(groups):
        band(left, g, k, "step", "halting_steps", 1, g.name)
        dots(right, k, g.each("halting_steps"))
    limit = max(g.first["test"]["steps"] for g in groups)
    right.axvline(limit, color=GREY, ls="--", lw=1.2, zorder=1)
    left.set(xlabel="training step", ylabel="steps until halting, validation")
    left.set_ylim(0, 1.05 * limit)
    right.set_xlabel(f"steps until halting, test, {seeds_and_puzzles(groups)}")
    right.set(xlim=(0, 1.05 * limit), ylim=(len(groups) - 0.5, -0.5))
    right.set_yticks(range(len(groups)), [g.name for g in groups])
    plain(left)
    plain(right, "x")
    footnote(
        fig,
        "colours and markers as on the right; mean over seeds; band: smallest to largest; "
        f"small dots: seeds; dashed: all {limit:.0f} steps",
    )
    return fig


def plot_stability(groups: list) -> Figure:
    """How much validation accuracy moves late in training, and how often the loss jumps."""
    fig, (left, right) = entry_rows(groups, 2)
    for k, g in enumerate(groups):
        dots(left, k, 100 * np.array(g.each("spread")))
        dots(right, k, g.each("spikes"))
    left.set_xlabel(
        "standard deviation of validation accuracy\nover the last third of training (points)"
    )
    right.set_xlabel("loss spikes per run: above 1.5 times\nthe median of the ten lines before")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_xlim(left=0)
    right.set_xlim(-0.1, max(1, right.get_xlim()[1]))  # spikes are counted, also where none is
    footnote(fig, f"mean over seeds; small dots: seeds; {seeds_and_puzzles(groups)}")
    return fig


# ---------------------------------------------------------------- depth


def plot_depth(
    exact: np.ndarray, Ts: list[int], ns: list[int], trained: tuple[int, int], title: str
) -> Figure:
    """Test accuracy (T, n) as a map with its figures; the T and n of the training are framed."""
    size = (0.62 * len(ns) + 2.2, 0.5 * len(Ts) + 1.6)
    fig = Figure(figsize=size, layout="constrained", dpi=130)
    ax, shares = fig.subplots(), 100 * exact
    image = ax.imshow(shares, cmap="cividis", aspect="auto", origin="lower")
    middle = (shares.min() + shares.max()) / 2
    for (i, j), share in np.ndenumerate(shares):
        colour = "white" if share < middle else "black"
        ax.text(j, i, f"{share:.1f}", ha="center", va="center", fontsize=8, color=colour)
    if trained[0] in Ts and trained[1] in ns:
        corner = ns.index(trained[1]) - 0.47, Ts.index(trained[0]) - 0.47
        ax.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, ec=COLOURS[3], lw=2.5))
    ax.set(xlabel="n, updates of z before each update of y", ylabel="T, recursions")
    ax.set_xticks(range(len(ns)), ns)
    ax.set_yticks(range(len(Ts)), Ts)
    framed = f"framed: as trained, T = {trained[0]}, n = {trained[1]}"
    ax.set_title(f"{title}\n{framed}", fontsize=10)
    fig.colorbar(image, label="exact on test (%)")
    return fig


# ---------------------------------------------------------------- values of keys


def write_values(out: Path, groups: list, keys: list[str]) -> list[str]:
    """Accuracy against the keys in which groups differ: a line for one, a map for two.

    Nothing where there are more, or values that are no numbers. The file names.
    """
    values = [g.runs[0].config.get(key) for g in groups for key in keys]
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    if len(keys) not in (1, 2) or not numbers:
        return []
    plot = plot_line if len(keys) == 1 else plot_map
    return attempt("values", lambda: save(out, {"values": plot(groups, *keys)}))


def plot_line(groups: list, key: str) -> Figure:
    """Test accuracy against a value: a dot per seed, a line through the means."""
    fig = Figure(figsize=(6.4, 4.2), layout="constrained", dpi=130)
    ax = fig.subplots()
    found = sorted((g.runs[0].config[key], g.each("exact")) for g in groups)
    x = [value for value, _ in found]
    for value, shares in found:
        ax.plot([value] * len(shares), 100 * np.array(shares), "o", color=COLOURS[0], alpha=0.5)
    ax.plot(x, [100 * np.mean(shares) for _, shares in found], color=COLOURS[0], lw=2)
    if min(x) > 0 and max(x) >= 10 * min(x):
        ax.set_xscale("log")
        ax.minorticks_off()
    ax.set_xticks(x, [str(value) for value in x])
    ax.set(xlabel=key, ylabel="exact on test (%)")
    ax.set_title("line: mean over seeds; dots: seeds", fontsize=10)
    plain(ax)
    return fig


def plot_map(groups: list, first: str, second: str) -> Figure:
    """Mean test accuracy at the points of two keys, as a map with its figures."""
    rows = sorted({g.runs[0].config[first] for g in groups})
    columns = sorted({g.runs[0].config[second] for g in groups})
    shares = np.full((len(rows), len(columns)), np.nan)
    for g in groups:
        config = g.runs[0].config
        at = rows.index(config[first]), columns.index(config[second])
        shares[at] = 100 * np.mean(g.each("exact"))
    fig = Figure(figsize=(0.8 * len(columns) + 3, 0.6 * len(rows) + 2), layout="constrained")
    ax = fig.subplots()
    image = ax.imshow(shares, cmap="cividis", aspect="auto", origin="lower")
    middle = (np.nanmin(shares) + np.nanmax(shares)) / 2
    for (i, j), share in np.ndenumerate(shares):
        colour = "white" if share < middle else "black"
        if not np.isnan(share):
            ax.text(j, i, f"{share:.1f}", ha="center", va="center", fontsize=9, color=colour)
    ax.set(xlabel=second, ylabel=first)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    seeds = sorted({len(g.runs) for g in groups})
    ax.set_title(f"mean over {'/'.join(map(str, seeds))} seed(s)", fontsize=10)
    fig.colorbar(image, label="exact on test (%)")
    return fig


# ---------------------------------------------------------------- files

PLOTS = {"learning": plot_learning, "steps": plot_steps}  # of all entries together
COMPARISONS = {  # of entries with a baseline
    "accuracy": plot_accuracy,
    "cost": plot_cost,
    "halting": plot_halting,
    "stability": plot_stability,
}


def write(out: Path, groups: list) -> list[str]:
    """Every plot that these groups have, as PNG and SVG into `out`; the file names."""
    files = draw(out, PLOTS, groups)
    bases = [g for g in groups if g.base is g]
    members = {base.name: [g for g in groups if g.base is base] for base in bases}
    bases = [base for base in bases if len(members[base.name]) > 1]
    for base in bases:
        suffix = f"_{base.runs[0].entry.parent.name}" if len(bases) > 1 else ""
        plots = {name + suffix: plot for name, plot in COMPARISONS.items()}
        files += draw(out, plots, members[base.name])
    for task in dict.fromkeys(g.task for g in groups):
        own = [g for g in groups if g.task is task]
        files += attempt(task.name, lambda task=task, own=own: save(out, task.extra_plots(own)))
    return files


def draw(out: Path, plots: dict, groups: list) -> list[str]:
    """Save what these functions draw of the groups; the file names."""
    files = []
    for name, plot in plots.items():
        files += attempt(name, lambda name=name, plot=plot: save(out, {name: plot(groups)}))
    return files


def attempt(name: str, make) -> list[str]:
    """The files that `make()` writes. A plot that cannot be drawn is named and costs no other."""
    try:
        return make()
    except UserError:
        raise
    except Exception as e:  # damaged figures fail in many ways
        print(f"no plot {name}: {type(e).__name__}: {visible(str(e))}", file=sys.stderr)
        return []


def save(out: Path, figures: dict[str, Figure]) -> list[str]:
    """Figures by name as PNG and SVG. The same runs give the same bytes."""
    for name, figure in figures.items():
        save_png(figure, out / f"{name}.png")
        figure.set_layout_engine("none")  # the layout is made
        write_whole(
            out / f"{name}.svg",
            lambda f, fig=figure: fig.savefig(f, format="svg", metadata={"Date": None}),
        )
    return [f"{name}.{kind}" for name in figures for kind in ("png", "svg")]


def save_png(figure: Figure, path: Path) -> None:
    """A figure as a PNG."""
    keep_dollars(figure)
    write_whole(path, lambda file: figure.savefig(file, format="png"))


def keep_dollars(figure: Figure) -> None:
    """Show the $ of a name as it is. Only the numbers of logarithmic axes are mathematics."""
    for text in figure.findobj(Text):
        if "$" in text.get_text() and r"$\mathdefault" not in text.get_text():
            text.set_parse_math(False)


def write_whole(path: Path, write) -> None:
    """`write(file)` to a temporary name beside it, then rename: a reader never sees half of it.

    Raises UserError where that is not possible.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
        os.replace(temporary, path)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path} ({e.strerror or e})") from None


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    write_whole(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def no_formula(value):
    """A cell of a CSV. A spreadsheet would compute a text that begins like a formula."""
    begins = isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r")
    return f"'{value}" if begins and value != "-" else value


def write_csv(path: Path, rows: list[dict]) -> None:
    """Rows, with every column that one of them has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: no_formula(value) for key, value in row.items()})
    write_text(path, text.getvalue())


if __name__ == "__main__":
    raise SystemExit("plots.py is a part to import; python train.py begins, README.md says more")
