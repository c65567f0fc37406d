"""Tables and plots of control runs. Called by analyze.py, through tasks/control.py.

The rule by which a feature "helps" or "hurts" was fixed before any run. The primary figure is
log10(median J / J* - 1) on the test rows, of the checkpoint that was best on validation: in closed
loop, re-planned every 10 steps, or in open loop where the target is to be met at step N. Lower is
better. An entry differs from the baseline only if the 95 % interval of the difference, paired by
seed, excludes zero.

numpy and matplotlib only. Where torch is there too, an MLP is trained for comparison, and the
plans of a trained net are drawn.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from config import build
from plots import COLOURS, GREY, plain, save, style, write_csv, write_text
from stats import (
    excludes_zero,
    literal,
    markdown,
    paired,
    percent,
    spikes,
    student,
)
from tasks.control import ControlConfig, to_optimum
from tasks.control_report import (
    REPLAN,
    expert,
    figures,
    finite,
    mlp,
    mlp_parameters,
    mlp_width,
    nearest,
    polynomial,
    report,
    zero,
)
from tasks.plants import PLANTS, Plant, cost, rollout

# The questions of the ablation, by the entry that changes this feature alone.
QUESTIONS = {
    "swiglu_only": "Q1: Does SwiGLU help control tasks?",
    "rmsnorm_only": "Q2: Does RMSNorm help?",
    "postnorm_only": "Q3: Does post-norm help?",
    "expansion_only": "Q4: Does 4x expansion help?",
    "fixed_inits_only": "Q5: Do fixed initial states help?",
}
ALL_FEATURES = "full_trm"  # the entry that has all of them
THE_SEVEN = ("baseline", *QUESTIONS, ALL_FEATURES)  # the configurations of the plan
COMPARED = ("helps", "hurts", "not shown")  # verdicts on entries that have a baseline
# How a plan is carried out: see control_report.report.
LOOPS = (
    "open",
    "every_10",
    "every_10_noise",
    "every_10_less",
    "every_10_more",
    "every_25",
    "every_1",
)
UNKNOWN = (math.nan, math.nan, math.nan)


def has_torch() -> bool:
    return find_spec("torch") is not None


def mean(values) -> float:
    return float(np.mean(list(values)))


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and the half-width of its 95 % interval over seeds (Student's t); NaN for one seed."""
    if len(values) < 2:
        return mean(values), math.nan
    half = student(len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return mean(values), float(half)


def successes(found: dict) -> dict[str, float]:
    """{"success@0.02": share, ...} of the figures of one loop, the widest tolerance last."""
    return {key: value for key, value in found.items() if key.startswith("success@")}


def short(name: str) -> str:
    """An entry's name without its folders."""
    return name.rsplit("/", 1)[-1]


# ---------------------------------------------------------------- one row per entry


def describe(g, base) -> dict:
    """One entry as a flat row. g, base: Groups of analyze.py; base may be None, or g itself."""
    tests = [run.summary["test"] for run in g.runs]
    reports = [run.summary["control"] for run in g.runs]
    row = {
        "entry": g.name,
        "seeds": [run.seed for run in g.runs],
        "parameters": g.first["parameters"],
        "depth": g.first["depth"],
        "steps": g.first["steps"],
        "final_loss": mean(run.train["loss"][-1] for run in g.runs),
        "best_loss": best_loss(g),
        "mse": mean(test["mse"] for test in tests),
        "ms_per_plan": float(np.median([report["ms_per_plan"] for report in reports])),
    }
    known = all("train_mse" in report for report in reports)
    row["train_mse"] = mean(report["train_mse"] for report in reports) if known else math.nan
    row["settled"] = mean(settled(run.train["step"], run.train["loss"]) for run in g.runs)
    row["jumps"] = mean(spikes(run.train["loss"]) for run in g.runs)
    row["primary"], row["primary_half"] = spread([test["primary"] for test in tests])
    row["to_optimum"] = mean(to_optimum(test) for test in tests)
    for loop in LOOPS:
        if all(loop in report for report in reports):
            row |= loop_means(loop, [report[loop] for report in reports])
    row["wide_success"] = mean(wide_success(report["wide"]) for report in reports)
    if base is g:
        return row | {"verdict": "reference"}
    if base is None:
        return row | {"verdict": "no baseline"}
    return row | comparison(g, base)


def best_loss(g) -> float:
    """The lowest training loss of a log line, mean over seeds."""
    return mean(run.train["loss"].min() for run in g.runs)


def settled(steps: np.ndarray, loss: np.ndarray) -> float:
    """Convergence speed: the first step whose training loss is within a tenth of the lowest."""
    return float(steps[np.argmax(loss <= 1.1 * loss.min())])


def loop_means(loop: str, seeds: list[dict]) -> dict:
    """Means over seeds of the figures of one loop, named after it."""
    row = {f"{loop}_{key}": mean(found[key] for found in seeds) for key in successes(seeds[0])}
    ratios = [found.get("to_optimum_median") for found in seeds]
    row[f"{loop}_to_optimum"] = None if None in ratios else mean(ratios)
    return row


def wide_success(wide: dict) -> float:
    """Share of starts beyond the training range that succeed, by the widest tolerance."""
    found = wide.get("every_10", wide["open"])
    return list(successes(found).values())[-1]


def comparison(g, base) -> dict:
    """The columns of an entry that say how it differs from its baseline."""
    ours = {run.seed: run.summary["test"]["primary"] for run in g.runs}
    theirs = {run.seed: run.summary["test"]["primary"] for run in base.runs}
    seeds = sorted(ours.keys() & theirs.keys())
    difference, low, high = UNKNOWN
    if len(seeds) > 1:
        a = np.array([[theirs[seed]] for seed in seeds])
        b = np.array([[ours[seed]] for seed in seeds])
        difference, low, high = paired(a, b)
    verdict = "not shown"
    if excludes_zero(low, high):
        verdict = "helps" if difference < 0 else "hurts"
    reference = best_loss(base)
    return {
        "improvement_percent": 100 * (reference - best_loss(g)) / reference,
        "difference": difference,
        "difference_low": low,
        "difference_high": high,
        "verdict": verdict,
    }


# ---------------------------------------------------------------- one row per other policy


def references(
    plant: Plant, train: dict, test: dict, parameters: int, steps: int, seeds: list[int]
) -> list[dict]:
    """What policies without recursion reach on the same test rows.

    The MLP has as many parameters as the entries and is trained as long. Its figures are means
    over `seeds`. Without torch it is left out.
    """
    policies = {
        "zero control": zero(plant),
        "least squares": polynomial(plant, train, 1),
        "polynomial, degree 5": polynomial(plant, train, 5),
        "nearest neighbour": nearest(plant, train),
    }
    rows = [{"policy": name} | measured(plant, policy, test) for name, policy in policies.items()]
    if has_torch():
        rows.append(mlp_row(plant, train, test, parameters, steps, seeds))
    if plant.m == 1 and plant.rest:
        rows.append({"policy": "LQR"} | measured(plant, expert(plant, "lqr"), test))
    rows.append(expert_row(plant, test))
    return rows


def measured(plant: Plant, policy: Callable, test: dict) -> dict:
    """A policy as a flat row."""
    found = report(plant, policy, test, every=(REPLAN,))
    loop = found.get("every_10", found["open"])
    row = {
        "mse": found["open"]["mse"],
        "primary": loop["primary"],
        "to_optimum": loop["to_optimum_median"],
    }
    for name in "open", "every_10":
        row |= {f"{name}_{key}": value for key, value in successes(found.get(name, {})).items()}
    return row


def mlp_row(
    plant: Plant, train: dict, test: dict, parameters: int, steps: int, seeds: list[int]
) -> dict:
    """The MLP with the nearest number of parameters, mean over seeds."""
    width = mlp_width(plant, parameters)
    nets = []
    for seed in tqdm(seeds, desc="MLPs to compare with", leave=False):
        policy = mlp(plant, train, width, steps=steps, seed=seed)
        nets.append(measured(plant, policy, test))
    count = f"{mlp_parameters(plant, width):,} parameters"
    row = {"policy": f"MLP, 2 x {width}, {count}, {len(seeds)} seed(s)"}
    row |= {key: mean(net[key] for net in nets) for key in nets[0]}
    row["primary_half"] = spread([net["primary"] for net in nets])[1]
    return row


def expert_row(plant: Plant, test: dict) -> dict:
    """The labels themselves, carried out."""
    plan = test["control_sequences"]
    found = figures(plant, test, rollout(plant, test["initial_states"], plan), plan)
    row = {
        "policy": f"expert's plan, open loop ({plant.expert})",
        "mse": 0.0,
        "primary": found["primary"],
        "to_optimum": found["to_optimum_median"],
    }
    return row | {f"open_{key}": value for key, value in successes(found).items()}


# ---------------------------------------------------------------- sentences


def answers(rows: list[dict]) -> list[str]:
    """The six questions of the ablation, answered by the figures."""
    by_name = {short(row["entry"]): row for row in rows}
    compared = [row for row in rows if row["verdict"] in COMPARED]
    text = []
    for entry, question in QUESTIONS.items():
        row, answer = by_name.get(entry), "Not run"
        if row and row["verdict"] in COMPARED:
            answer = in_words(row)
            answer = answer[0].upper() + answer[1:]
        text.append(f"{question} {answer}.")
    if compared:
        text.append(f"Q6: Which combination is best? {best_of(compared)}")
    left_out = [row for row in rows if short(row["entry"]).startswith("without_")]
    if left_out and ALL_FEATURES in by_name:
        full = by_name[ALL_FEATURES]["primary"]
        changes = [f"{short(row['entry'])} {row['primary'] - full:+.3f}" for row in left_out]
        text.append(f"Leave one out, against {ALL_FEATURES}: {'; '.join(changes)}.")
    return text


def in_words(row: dict) -> str:
    """An entry that is compared with a baseline."""
    if not math.isfinite(row["difference"]):
        return "not shown: fewer than two seeds in common with the baseline"
    return (
        f"{row['verdict']}: {difference(row)} in log10(J / J* - 1) over "
        f"{len(row['seeds'])} seeds, best training loss {row['improvement_percent']:+.1f} %, "
        f"{row['parameters']:,} parameters"
    )


def best_of(compared: list[dict]) -> str:
    """The entry that is lowest, and which ones beat the baseline."""
    ranked = sorted(compared, key=lambda row: row["difference"])
    first = first_of_the_seven(ranked)
    helpful = [row["entry"] for row in ranked if row["verdict"] == "helps"]
    verdict = "No entry beats the baseline by the rule, so there is no best combination to name."
    if helpful:
        verdict = f"Entries that beat the baseline by the rule: {', '.join(helpful)}."
    return f"Lowest: {first['entry']}, {in_words(first)}. {verdict}"


def first_of_the_seven(ranked: list[dict]) -> dict:
    """The first row of a configuration of the plan; the first of all where there is none."""
    return next((row for row in ranked if short(row["entry"]) in THE_SEVEN), ranked[0])


# ---------------------------------------------------------------- tables


def number(value: float | None, form: str = ".4g") -> str:
    """A number in this format, or a dash where it is unknown."""
    return "-" if value is None or not math.isfinite(value) else format(value, form)


def difference(row: dict) -> str:
    """-0.3 (-0.4 to -0.2): the difference to the baseline, or a dash."""
    if not math.isfinite(row.get("difference", math.nan)):
        return "-"
    low, high = row["difference_low"], row["difference_high"]
    return f"{row['difference']:+.3f} ({low:+.3f} to {high:+.3f})"


def plus_minus(row: dict) -> str:
    """-1.2 ± 0.1: the primary figure, with half its interval where there are several seeds."""
    half = row.get("primary_half", math.nan)
    return f"{row['primary']:.3f}" + (f" ± {half:.3f}" if math.isfinite(half) else "")


ENTRY_COLUMNS = {
    "configuration": lambda row: row["entry"],
    "final loss": lambda row: number(row["final_loss"]),
    "best loss": lambda row: number(row["best_loss"]),
    "improvement %": lambda row: number(row.get("improvement_percent"), "+.1f"),
    "settled at step": lambda row: number(row["settled"], ".0f"),
    "jumps of the loss": lambda row: number(row["jumps"], ".1f"),
    "mse on test / training rows": lambda row: number(row["mse"] / row["train_mse"], ".2f"),
    "parameters": lambda row: f"{row['parameters']:,}",
    "log10(J/J* - 1)": plus_minus,
    "difference to baseline (95 %)": difference,
    "verdict": lambda row: row["verdict"],
    "seeds": lambda row: len(row["seeds"]),
}


def policy_columns(far: str, near: str) -> dict[str, Callable]:
    """Columns for entries and other policies. far, near: two tolerances, as in "success@0.1"."""

    def share(loop: str, tolerance: str = far) -> Callable:
        return lambda row: percent(row, f"{loop}_success@{tolerance}")

    def mismatch(row: dict) -> str:
        if "entry" not in row:
            return "-"  # not measured
        return f"{share('every_10_less')(row)} / {share('every_10_more')(row)}"

    return {
        "policy": lambda row: row.get("entry") or row["policy"],
        "mse": lambda row: number(row["mse"]),
        f"open loop: within {far} %": share("open"),
        f"within {near} %": share("open", near),
        f"re-planned every 10: within {far} %": share("every_10"),
        "median J/J*": lambda row: number(row["to_optimum"], ".5g"),
        "log10(J/J* - 1)": plus_minus,
        "every 25 %": share("every_25"),
        "noise %": share("every_10_noise"),
        "parameter -20 % / +20 %": mismatch,
        "starts out of range %": lambda row: percent(row, "wide_success"),
        "ms per plan": lambda row: number(row.get("ms_per_plan"), ".1f"),
    }


NOTES = (
    "Loss: mean over a log line's steps, on training rows; improvement of the best one over the "
    "baseline's. Settled: within a tenth of the best loss. Jumps: above 1.5 times the median of "
    "the ten lines before. Everything else: test rows. J*: best plan known within the bound. "
    "log10(J/J* - 1): -2 is one per cent above it; ± half of the 95 % interval over seeds. "
    "The verdict is by the paired difference, lower is better."
)
NO_TORCH = "torch is not installed: the MLP and the pictures of plans are left out."


def table(columns: dict[str, Callable], rows: list[dict]) -> list[str]:
    """Rows as a Markdown table."""
    return markdown(list(columns), [[cell(row) for cell in columns.values()] for row in rows])


def tables(plant: str, rows: list[dict], others: list[dict], sentences: list[str]) -> list[str]:
    """The Markdown of one plant."""
    loop = "open_success@"
    known = [key.removeprefix(loop) for key in rows[0] if key.startswith(loop)]
    far = max(known, key=float)
    near = "0.1" if "0.1" in known else far
    text = [f"## {plant}", ""]
    text += table(ENTRY_COLUMNS, rows)
    text += table(policy_columns(far, near), rows + others)
    text += [NOTES, ""]
    if not has_torch():
        text += [NO_TORCH, ""]
    return text + [f"{sentence}\n" for sentence in sentences]


# ---------------------------------------------------------------- the analysis


@dataclass
class Study:
    """The entries of one plant."""

    plant: Plant
    groups: list  # of analyze.py
    base: object  # the baseline among them, or None
    rows: list[dict]  # one per entry, best first
    others: list[dict]  # policies without recursion
    test: dict  # the test rows

    @property
    def example(self):
        """The group whose plans are drawn."""
        return self.base or self.groups[0]

    def result(self) -> dict:
        """For ablation_analysis.json."""
        single = [row for row in self.rows if short(row["entry"]) in QUESTIONS]
        single.sort(key=lambda row: -row.get("improvement_percent", -math.inf))
        impacts = [
            {
                "config": row["entry"],
                "improvement": row.get("improvement_percent"),
                "verdict": row["verdict"],
            }
            for row in single
        ]
        return {
            "configs": {row["entry"]: row for row in self.rows},
            "best_config": first_of_the_seven(self.rows)["entry"],
            "references": self.others,
            "feature_impacts": impacts,
        }

    def plots(self) -> dict[str, Figure]:
        found = {
            "ablation_plots": plot_ablation(self.groups, self.rows, self.base),
            "cycles": plot_cycles(self.groups),
        }
        if has_torch() and (self.example.runs[0].folder / "best.pt").exists():
            found["plans"] = plot_plans(self.example.runs[0].folder, self.plant, self.test)
        return found


def study(name: str, groups: list, baseline: str) -> Study:
    """The entries of the plant `name`, measured."""
    import data

    plant = PLANTS[name]
    base = next((g for g in groups if g.runs[0].entry.name == baseline), None)
    rows = sorted((describe(g, base) for g in groups), key=lambda row: row["primary"])
    dataset = data.load(data_config(groups[0].runs[0]))
    one = base or groups[0]
    seeds = [run.seed for run in one.runs][:3]
    size, steps = one.first["parameters"], one.first["steps"]
    others = references(plant, dataset.train.rows, dataset.test.rows, size, steps, seeds)
    return Study(plant, groups, base, rows, others, dataset.test.rows)


def data_config(run) -> ControlConfig:
    """The table [data] of a run. Keys that older folders have besides are left out."""
    keys = {key: value for key, value in run.config.items() if key.startswith("data.")}
    return build(ControlConfig, {key.removeprefix("data."): v for key, v in keys.items()})


def analyze(
    groups: list, out: Path, absent: list[tuple[str, str]], baseline: str = "baseline"
) -> tuple[str, list[str]]:
    """Tables and plots of groups of control runs into `out`, per plant.

    Writes table.md, table.csv, ablation_analysis.json, ablation_plots, cycles and, where a
    best.pt is there, plans. Returns the Markdown and the names of the files. absent: (run, why
    it has no figures).
    """
    out.mkdir(parents=True, exist_ok=True)
    text, files, result = [], [], {}
    plants = sorted({g.first["data"]["plant"] for g in groups})
    for name in plants:
        suffix = f"_{name}" if len(plants) > 1 else ""
        found = study(name, [g for g in groups if g.first["data"]["plant"] == name], baseline)
        result[name] = found.result()
        text += tables(name, found.rows, found.others, answers(found.rows) if found.base else [])
        files += save(out, {f"{plot}{suffix}": fig for plot, fig in found.plots().items()})
        write_csv(out / f"table{suffix}.csv", found.rows)
        files.append(f"table{suffix}.csv")
    if absent:
        text += ["Runs without figures:", ""]
        text += [f"- {literal(f'{run}: {why}')}" for run, why in absent]
    commits = sorted({run.summary["commit"] for g in groups for run in g.runs})
    text.append(f"{groups[0].first['hardware']}; commit {', '.join(commits)}.")
    write_text(out / "ablation_analysis.json", json.dumps(finite(result), indent=1) + "\n")
    write_text(out / "table.md", "\n".join(text) + "\n")
    return "\n".join(text), ["table.md", "ablation_analysis.json", *files]


# ---------------------------------------------------------------- plots


def plot_ablation(groups: list, rows: list[dict], base) -> Figure:
    """Training loss, best loss, parameters, and the primary figure with its interval."""
    fig = Figure(figsize=(15, 9), layout="constrained", dpi=130)
    (curves, losses), (sizes, primary) = fig.subplots(2, 2)
    by_name = {row["entry"]: row for row in rows}
    order = sorted(groups, key=lambda g: list(by_name).index(g.name))
    entries = [by_name[g.name] for g in order]
    colours = [COLOURS[2]] * len(order)
    for k, g in enumerate(order):
        if short(g.name) == ALL_FEATURES:
            colours[k] = COLOURS[1]
        if g is base:
            colours[k] = COLOURS[0]

    draw_curves(curves, order)
    title = "Best training loss"
    draw_bars(losses, [row["best_loss"] for row in entries], colours, title, ".3g")
    thousands = [g.first["parameters"] / 1e3 for g in order]
    draw_bars(sizes, thousands, colours, "Parameters (thousands)", ".0f")
    primary.axhline(by_name[base.name]["primary"] if base else math.nan, color=GREY, lw=1, ls="--")
    draw_primary(primary, order, entries, colours)
    for ax in (losses, sizes, primary):
        names = [short(g.name) for g in order]
        ax.set_xticks(np.arange(len(order)), names, rotation=35, ha="right", fontsize=9)
    for ax in (curves, losses, sizes, primary):
        plain(ax)
    return fig


def draw_curves(ax, groups: list) -> None:
    """The training loss of each entry, mean over seeds."""
    for k, g in enumerate(groups):
        steps = g.runs[0].train["step"]
        loss = [np.interp(steps, run.train["step"], run.train["loss"]) for run in g.runs]
        every = max(1, len(steps) // 8)
        line = style(k) | {"lw": 1.5, "ms": 4, "markevery": every}
        ax.plot(steps, np.mean(loss, 0), label=short(g.name), **line)
    seeds = sorted({len(g.runs) for g in groups})
    title = f"Training loss (mean of {'/'.join(map(str, seeds))} seeds)"
    ax.set(title=title, xlabel="training step", yscale="log")
    ax.legend(frameon=False, fontsize=8, ncols=2)


def draw_bars(ax, values: list[float], colours: list[str], title: str, form: str) -> None:
    """One bar per entry, its value above."""
    ax.bar(np.arange(len(values)), values, color=colours)
    ax.set(title=title, ylim=(0, 1.15 * max(values)))
    for x, value in enumerate(values):
        ax.text(x, value, format(value, form), ha="center", va="bottom", fontsize=8)


def draw_primary(ax, groups: list, rows: list[dict], colours: list[str]) -> None:
    """The primary figure of each entry: mean, interval, and each seed beside."""
    for x, (g, row) in enumerate(zip(groups, rows)):
        interval = {"fmt": "o", "capsize": 4, "ms": 7}
        ax.errorbar(x, row["primary"], row["primary_half"], color=colours[x], **interval)
        seeds = [run.summary["test"]["primary"] for run in g.runs]
        ax.plot([x + 0.15] * len(seeds), seeds, ".", color=GREY, ms=4)
    title = "log10(median J/J* - 1) on test rows: mean, 95 % interval, each seed"
    ax.set(title=title, ylabel="lower is better")


def plot_cycles(groups: list) -> Figure:
    """Open-loop figures of the plan of every cycle, median over seeds.

    Cycles beyond the trained ones are shaded.
    """
    fig = Figure(figsize=(13, 4.4), layout="constrained", dpi=130)
    panels = {
        "to_optimum_median": "median J/J* - 1 of the plan",
        "error_median": "median error at the end",
        "change": "mean |change| of the plan",
    }
    for ax, (key, title) in zip(fig.subplots(1, 3), panels.items()):
        for k, g in enumerate(groups):
            cycles = np.array([cycle["cycle"] for cycle in g.first["control"]["cycles"]])
            values = cycle_values(g, key)
            known = np.isfinite(values).any(0)  # no plan came before the first
            middle = np.nanmedian(values[:, known], 0)
            ax.plot(cycles[known], middle, ms=5, lw=1.5, label=short(g.name), **style(k))
        cycles = groups[-1].first["control"]["cycles"]
        trained = max(cycle["cycle"] for cycle in cycles if cycle["trained"])
        ax.axvspan(trained + 0.5, cycles[-1]["cycle"] + 0.5, color="#f2f2f2", zorder=0)
        ax.set(title=title, xlabel="cycle (shaded: beyond training)", yscale="log")
        plain(ax)
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return fig


def cycle_values(g, key: str) -> np.ndarray:
    """(seeds, cycles) of a figure of summary["control"]["cycles"]; NaN where there is none."""
    values = [[cycle[key] for cycle in run.summary["control"]["cycles"]] for run in g.runs]
    values = np.array(values, float)  # None becomes NaN
    return values - 1 if key == "to_optimum_median" else values


def plot_plans(folder: Path, plant: Plant, test: dict) -> Figure:
    """Four test rows, planned by the net of a run folder.

    Above the plans of all cycles, below the paths in the plane of the first two states, with the
    expert's beside them. Needs torch.
    """
    from tasks.planner import all_plans, drive
    from train import load_run

    _, net, _ = load_run(folder)
    S = len(test["costs"])
    chosen = np.argsort(test["optimal_costs"])[[S // 5, S // 2, 4 * S // 5, -1]]
    rows = {name: values[chosen] for name, values in test.items()}
    x0, target = rows["initial_states"], rows["target_states"]
    plans = all_plans(net, x0, target)
    states, asked = drive(net, x0, target, plans[-1])
    ratio = cost(plant, states, asked, target) / rows["optimal_costs"]
    open_loop = rollout(plant, x0, plans[-1])

    fig = Figure(figsize=(15, 7), layout="constrained", dpi=130)
    axes = fig.subplots(2, 4)
    first_cycle = 1 - net.plan.residual
    for i, (top, low) in enumerate(axes.T):
        draw_plans(top, plant, plans[:, i], rows["control_sequences"][i], first_cycle)
        loop = "closed" if plant.rest else "open"
        title = f"test row {chosen[i]}, J/J* {ratio[i]:.4f} in {loop} loop"
        top.set_title(title, fontsize=10)
        top.set(xlabel="seconds", ylabel="control" if i == 0 else "")

        low.plot(*rows["state_trajectories"][i, :, :2].T, "k--", lw=1.2, label="expert")
        low.plot(*open_loop[i, :, :2].T, color=COLOURS[1], lw=1.3, label="open loop")
        if plant.rest:
            low.plot(*states[i, :, :2].T, color=COLOURS[0], lw=1.6, label="closed loop")
        low.plot(*x0[i, :2], "o", color=GREY, ms=7)
        low.plot(*target[i, :2], "*", color=COLOURS[3], ms=12)
        low.set(xlabel="first state", ylabel="second state" if i == 0 else "")
        plain(top)
        plain(low)
    axes[0, 0].legend(frameon=False, fontsize=8)
    axes[1, 0].legend(frameon=False, fontsize=8)
    return fig


def draw_plans(ax, plant: Plant, plans: np.ndarray, label: np.ndarray, first_cycle: int) -> None:
    """The first control of the plans (K, N, m) of all cycles, later ones darker."""
    t = np.arange(plant.N) * plant.dt
    last = len(plans) - 1
    for k, u in enumerate(plans):
        alpha = 0.25 + 0.75 * k / (last or 1)
        width = 2 if k == last else 1
        line = {"color": COLOURS[0], "alpha": alpha, "lw": width, "where": "post"}
        ax.step(t, u[:, 0], label=f"plan of cycle {k + first_cycle}", **line)
    ax.step(t, label[:, 0], where="post", color="k", ls="--", lw=1.2, label="expert")
