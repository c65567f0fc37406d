"""Tables and plots of control runs: founding document 000's analysis, and what that document lacks. Called by analyze.py.

The rule by which a feature "helps" or "hurts" was fixed before any run: the primary metric is log10(median J / J* - 1) on the test rows, in closed
loop re-planned every 10 steps (open loop where the target is to be met at step N), of the checkpoint that was best on validation; an entry differs
from the baseline only if the 95 % interval of the difference, paired by seed, excludes zero. Lower is better.
"""

import csv
import json
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import control_metrics as metrics
import data
from config import build
from control import PLANTS, Plant, rollout
from data import DataConfig
from plots import COLOURS, GREY, look, plain, save
from stats import excludes_zero, paired, student

QUESTIONS = {"swiglu_only": "Q1: Does SwiGLU help control tasks?", "rmsnorm_only": "Q2: Does RMSNorm help?", "postnorm_only": "Q3: Does post-norm help?",
             "expansion_only": "Q4: Does 4x expansion help?", "fixed_inits_only": "Q5: Do fixed initial states help?"}  # fmt: skip


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and the half-width of its 95 % interval over seeds (Student's t); NaN for one seed."""
    half = (
        student(len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
        if len(values) > 1
        else math.nan
    )
    return float(np.mean(values)), float(half)


def describe(g, base) -> dict:
    """One entry as a flat row."""
    test, report = [r.summary["test"] for r in g.runs], [r.summary["control"] for r in g.runs]
    best, final = (
        [float(r.train["loss"].min()) for r in g.runs],
        [float(r.train["loss"][-1]) for r in g.runs],
    )
    row = {
        "entry": g.name,
        "seeds": [r.seed for r in g.runs],
        "parameters": g.first["parameters"],
        "depth": g.first["depth"],
        "steps": g.first["steps"],
        "final_loss": float(np.mean(final)),
        "best_loss": float(np.mean(best)),
        "mse": float(np.mean([t["mse"] for t in test])),
        "ms_per_plan": float(np.median([r["ms_per_plan"] for r in report])),
    }
    row["primary"], row["primary_half"] = spread([t["primary"] for t in test])
    row["to_optimum"] = float(np.mean([t["cells"] for t in test]))
    for loop in (
        "open",
        "every_10",
        "every_10_noise",
        "every_10_less",
        "every_10_more",
        "every_25",
        "every_1",
    ):
        if all(loop in r for r in report):
            row |= {
                f"{loop}_{key}": float(np.mean([r[loop][key] for r in report]))
                for key in report[0][loop]
                if key.startswith("success@")
            }
            ratios = [r[loop].get("to_optimum_median") for r in report]
            row[f"{loop}_to_optimum"] = None if None in ratios else float(np.mean(ratios))
    row["wide_success"] = float(
        np.mean(
            [
                next(
                    v
                    for k, v in reversed(
                        r["wide"]["every_10" if "every_10" in r["wide"] else "open"].items()
                    )
                    if k.startswith("success@")
                )
                for r in report
            ]
        )
    )
    if base is g:
        return row | {"verdict": "reference"}
    if base is None:
        return row | {"verdict": "no baseline"}
    seeds = sorted({r.seed for r in g.runs} & {r.seed for r in base.runs})
    ours, theirs = (
        np.array(
            [
                next(r.summary["test"]["primary"] for r in side.runs if r.seed == seed)
                for seed in seeds
            ]
        )
        for side in (g, base)
    )
    mean, low, high = paired(theirs[:, None], ours[:, None]) if len(seeds) > 1 else (math.nan,) * 3
    reference = float(np.mean([r.train["loss"].min() for r in base.runs]))
    return row | {
        "improvement_percent": 100 * (reference - row["best_loss"]) / reference,
        "difference": mean,
        "difference_low": low,
        "difference_high": high,
        "verdict": ("helps" if mean < 0 else "hurts") if excludes_zero(low, high) else "not shown",
    }


def measured(plant: Plant, policy, test: dict) -> dict:
    """A policy as a flat row."""
    found = metrics.report(plant, policy, test, every=(10,), disturbed=10)
    loop = found.get("every_10", found["open"])
    return {
        "mse": found["open"]["mse"],
        "primary": loop["primary"],
        "to_optimum": loop["to_optimum_median"],
    } | {
        f"{kind}_{k}": v
        for kind in ("open", "every_10")
        if kind in found
        for k, v in found[kind].items()
        if k.startswith("success@")
    }


def references(
    plant: Plant, train: dict, test: dict, parameters: int, steps: int, seeds: list[int]
) -> list[dict]:
    """What policies without recursion reach on the same test rows; the MLP as the mean over `seeds`, trained as long as the entries."""
    width = metrics.mlp_width(plant, parameters)
    policies = {
        "zero control": metrics.zero(plant),
        "least squares": metrics.polynomial(plant, train, 1),
        "polynomial, degree 5": metrics.polynomial(plant, train, 5),
        "nearest neighbour": metrics.nearest(plant, train),
    }
    rows = [{"policy": name} | measured(plant, policy, test) for name, policy in policies.items()]
    mlps = [
        measured(plant, metrics.mlp(plant, train, width, steps=steps, seed=seed), test)
        for seed in tqdm(seeds, desc="MLPs to compare with", leave=False)
    ]
    rows.append(
        {
            "policy": f"MLP, 2 x {width}, {metrics.mlp_parameters(plant, width):,} parameters, {len(seeds)} seed(s)"
        }
        | {k: float(np.mean([mlp[k] for mlp in mlps])) for k in mlps[0]}
        | {"primary_half": spread([mlp["primary"] for mlp in mlps])[1]}
    )
    if plant.m == 1 and plant.rest:
        rows.append({"policy": "LQR"} | measured(plant, metrics.expert(plant, "lqr"), test))
    best = metrics.figures(
        plant,
        test,
        rollout(plant, test["initial_states"], test["control_sequences"]),
        test["control_sequences"],
    )
    rows.append(
        {
            "policy": f"expert's plan, open loop ({plant.expert})",
            "mse": 0.0,
            "primary": best["primary"],
            "to_optimum": best["to_optimum_median"],
        }
        | {f"open_{k}": v for k, v in best.items() if k.startswith("success@")}
    )
    return rows


def number(value, form: str = ".4g") -> str:
    return (
        "-"
        if value is None or (isinstance(value, float) and not math.isfinite(value))
        else format(value, form)
    )


def plus_minus(row: dict) -> str:
    return f"{row['primary']:.3f}" + (
        f" ± {row['primary_half']:.3f}" if math.isfinite(row.get("primary_half", math.nan)) else ""
    )


def percent(value) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
        *("| " + " | ".join(map(str, r)) + " |" for r in rows),
        "",
    ]


def answers(rows: list[dict]) -> list[str]:
    """The document's six questions, in sentences made of the figures."""
    by_name, text = {r["entry"].rsplit("/", 1)[-1]: r for r in rows}, []

    def said(row):
        if not math.isfinite(row["difference"]):
            return "not shown: fewer than two seeds in common with the baseline"
        return (
            f"{row['verdict']}: {row['difference']:+.3f} ({row['difference_low']:+.3f} to {row['difference_high']:+.3f}) in log10(J / J* - 1) over "
            f"{len(row['seeds'])} seeds, best training loss {row['improvement_percent']:+.1f} %, {row['parameters']:,} parameters"
        )

    for entry, question in QUESTIONS.items():
        row = by_name.get(entry)
        text.append(
            f"{question} "
            + (
                f"{said(row)[0].upper()}{said(row)[1:]}."
                if row and row["verdict"] in ("helps", "hurts", "not shown")
                else "Not run."
            )
        )
    ranked = sorted(
        (r for r in rows if r["verdict"] in ("helps", "hurts", "not shown")),
        key=lambda r: r["difference"],
    )
    if ranked:
        first, helpful = ranked[0], [r for r in ranked if r["verdict"] == "helps"]
        text.append(
            f"Q6: Which combination is best? Lowest: {first['entry']}, {said(first)}. "
            + (
                f"Entries that beat the baseline by the rule: {', '.join(r['entry'] for r in helpful)}."
                if helpful
                else "No entry beats the baseline by the rule, so there is no best combination to name."
            )
        )
    left_out = [r for r in rows if r["entry"].rsplit("/", 1)[-1].startswith("without_")]
    if left_out and "full_trm" in by_name:
        full = by_name["full_trm"]["primary"]
        text.append(
            "Leave one out, against full_trm: "
            + "; ".join(
                f"{r['entry'].rsplit('/', 1)[-1]} {r['primary'] - full:+.3f}" for r in left_out
            )
            + "."
        )
    return text


def analyze(
    groups: list, out: Path, absent: list[tuple[str, str]], baseline: str = "baseline"
) -> tuple[str, list[str]]:
    """Writes table.md, table.csv, ablation_analysis.json, ablation_plots, cycles and, where a best.pt is there, plans into `out`, per plant."""
    text, files = [], []
    plants = sorted({g.first["data"]["plant"] for g in groups})
    out.mkdir(parents=True, exist_ok=True)
    result = {}
    for plant in plants:
        members = [g for g in groups if g.first["data"]["plant"] == plant]
        base = next((g for g in members if g.runs[0].entry.name == baseline), None)
        rows = sorted((describe(g, base) for g in members), key=lambda r: r["primary"])
        cfg = build(
            DataConfig,
            {
                k.removeprefix("data."): v
                for k, v in members[0].runs[0].config.items()
                if k.startswith("data.")
            },
        )
        ds = data.load(cfg)
        one = base or members[0]
        others = references(
            PLANTS[plant],
            ds.train.rows,
            ds.test.rows,
            one.first["parameters"],
            one.first["steps"],
            [r.seed for r in one.runs][:3],
        )
        single = sorted(
            (r for r in rows if r["entry"].rsplit("/", 1)[-1] in QUESTIONS),
            key=lambda r: -r.get("improvement_percent", -math.inf),
        )
        result[plant] = {
            "configs": {r["entry"]: r for r in rows},
            "best_config": rows[0]["entry"],
            "references": others,
            "feature_impacts": [
                {
                    "config": r["entry"],
                    "improvement": r.get("improvement_percent"),
                    "verdict": r["verdict"],
                }
                for r in single
            ],
        }
        text += tables(plant, rows, others, answers(rows) if base else [])
        suffix = f"_{plant}" if len(plants) > 1 else ""
        files += save(
            out,
            {
                f"ablation_plots{suffix}": plot_ablation(members, rows, base),
                f"cycles{suffix}": plot_cycles(members),
                **(
                    {f"plans{suffix}": picture}
                    if (picture := plot_plans(one, PLANTS[plant], ds.test.rows))
                    else {}
                ),
            },
        )
        with open(out / f"table{suffix}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(k for r in rows for k in r)))
            writer.writeheader()
            writer.writerows(rows)
        files.append(f"table{suffix}.csv")
    text += (
        ["Runs without figures:", "", *(f"- {name}: {why}" for name, why in absent)]
        if absent
        else []
    )
    first = groups[0].first
    text += [
        f"{first['hardware']}; commit {', '.join(sorted({r.summary['commit'] for g in groups for r in g.runs}))}."
    ]
    (out / "ablation_analysis.json").write_text(json.dumps(metrics.finite(result), indent=1) + "\n")
    (out / "table.md").write_text("\n".join(text) + "\n")
    return "\n".join(text), ["table.md", "ablation_analysis.json", *files]


def tables(plant: str, rows: list[dict], others: list[dict], sentences: list[str]) -> list[str]:
    best = max(
        (k for k in rows[0] if k.startswith("open_success@")), key=lambda k: float(k.split("@")[1])
    )
    wide, narrow = (
        best.removeprefix("open_"),
        "success@0.1" if "open_success@0.1" in rows[0] else best.removeprefix("open_"),
    )
    text = [f"## {plant}", ""]
    text += markdown(
        [
            "configuration",
            "final loss",
            "best loss",
            "improvement %",
            "parameters",
            "log10(J/J* - 1)",
            "difference to baseline (95 %)",
            "verdict",
            "seeds",
        ],
        [
            [
                r["entry"],
                number(r["final_loss"]),
                number(r["best_loss"]),
                number(r.get("improvement_percent"), "+.1f"),
                f"{r['parameters']:,}",
                plus_minus(r),
                f"{r['difference']:+.3f} ({r['difference_low']:+.3f} to {r['difference_high']:+.3f})"
                if math.isfinite(r.get("difference", math.nan))
                else "-",
                r["verdict"],
                len(r["seeds"]),
            ]
            for r in rows
        ],
    )
    far, near = wide.split("@")[1], narrow.split("@")[1]
    text += markdown(
        [
            "policy",
            "mse",
            f"open loop: within {far} %",
            f"within {near} %",
            f"re-planned every 10: within {far} %",
            "median J/J*",
            "log10(J/J* - 1)",
            "every 25 %",
            "noise %",
            "parameter -20 % / +20 %",
            "starts out of range %",
            "ms per plan",
        ],
        [
            [
                r["entry"],
                number(r["mse"]),
                percent(r[f"open_{wide}"]),
                percent(r[f"open_{narrow}"]),
                percent(r.get(f"every_10_{wide}")),
                number(r["to_optimum"], ".5g"),
                plus_minus(r),
                percent(r.get(f"every_25_{wide}")),
                percent(r.get(f"every_10_noise_{wide}")),
                f"{percent(r.get(f'every_10_less_{wide}'))} / {percent(r.get(f'every_10_more_{wide}'))}",
                percent(r["wide_success"]),
                number(r["ms_per_plan"], ".1f"),
            ]
            for r in rows
        ]
        + [
            [
                o["policy"],
                number(o["mse"]),
                percent(o[f"open_{wide}"]),
                percent(o[f"open_{narrow}"]),
                percent(o.get(f"every_10_{wide}")),
                number(o["to_optimum"], ".5g"),
                plus_minus(o),
                "-",
                "-",
                "-",
                "-",
                "-",
            ]
            for o in others
        ],
    )
    text += [
        "Loss: mean over a log line's steps, on training rows; improvement of the best one, as in founding document 000. Everything else: test rows. J*: best plan "
        "known within the bound. log10(J/J* - 1): -2 is one per cent above it; ± half of the 95 % interval over seeds. The verdict is by the paired difference, lower is better.",
        "",
    ]
    return text + [s + "\n" for s in sentences]


# ---------------------------------------------------------------- plots


def short(g) -> str:
    return g.name.rsplit("/", 1)[-1]


def plot_ablation(groups: list, rows: list[dict], base) -> Figure:
    """The document's three panels (training loss, best loss, parameters), and the primary metric with its interval."""
    fig = Figure(figsize=(15, 9), layout="constrained", dpi=130)
    (curves, losses), (sizes, primary) = fig.subplots(2, 2)
    order = sorted(groups, key=lambda g: [r["entry"] for r in rows].index(g.name))
    for k, g in enumerate(order):
        steps = g.runs[0].train["step"]
        every = np.array([np.interp(steps, r.train["step"], r.train["loss"]) for r in g.runs])
        curves.plot(
            steps,
            every.mean(0),
            lw=1.5,
            label=short(g),
            markevery=max(1, len(steps) // 8),
            ms=4,
            **look(k),
        )
    curves.set(
        title=f"Training loss (mean of {len(order[0].runs)} seeds)",
        xlabel="training step",
        yscale="log",
    )
    curves.legend(frameon=False, fontsize=8, ncols=2)
    colours = [
        COLOURS[0] if g is base else COLOURS[1] if short(g) == "full_trm" else COLOURS[2]
        for g in order
    ]
    names, at = [short(g) for g in order], np.arange(len(order))
    by = {r["entry"]: r for r in rows}
    for ax, values, title, form in (
        (losses, [by[g.name]["best_loss"] for g in order], "Best training loss", ".3g"),
        (sizes, [g.first["parameters"] / 1e3 for g in order], "Parameters (thousands)", ".0f"),
    ):
        ax.bar(at, values, color=colours)
        ax.set(title=title, ylim=(0, 1.15 * max(values)))
        for x, v in zip(at, values):
            ax.text(x, v, format(v, form), ha="center", va="bottom", fontsize=8)
    primary.axhline(by[base.name]["primary"] if base else math.nan, color=GREY, lw=1, ls="--")
    for x, g in enumerate(order):
        row = by[g.name]
        primary.errorbar(
            x, row["primary"], row["primary_half"], color=colours[x], fmt="o", capsize=4, ms=7
        )
        primary.plot(
            x + 0.15 + 0 * np.arange(len(g.runs)),
            [r.summary["test"]["primary"] for r in g.runs],
            ".",
            color=GREY,
            ms=4,
        )
    primary.set(
        title="log10(median J/J* - 1) on test rows: mean, 95 % interval, each seed",
        ylabel="lower is better",
    )
    for ax in (losses, sizes, primary):
        ax.set_xticks(at, names, rotation=35, ha="right", fontsize=9)
    for ax in (curves, losses, sizes, primary):
        plain(ax)
    return fig


def plot_cycles(groups: list) -> Figure:
    """Open-loop quality of the plan of every cycle, and of cycles beyond the trained ones (shaded)."""
    fig = Figure(figsize=(13, 4.4), layout="constrained", dpi=130)
    for ax, key, title in zip(
        fig.subplots(1, 3),
        ("to_optimum_median", "error_median", "change"),
        ("median J/J* - 1 of the plan", "median error at the end", "mean |change| of the plan"),
    ):
        for k, g in enumerate(groups):
            cycles = g.first["control"]["cycles"]
            values = np.array(
                [
                    [np.nan if c[key] is None else c[key] for c in r.summary["control"]["cycles"]]
                    for r in g.runs
                ],
                float,
            )
            values = values - 1 if key == "to_optimum_median" else values
            known = np.isfinite(values).any(0)  # no plan came before the first
            ax.plot(
                np.array([c["cycle"] for c in cycles])[known],
                np.nanmedian(values[:, known], 0),
                ms=5,
                lw=1.5,
                label=short(g),
                **look(k),
            )
            trained = max(c["cycle"] for c in cycles if c["trained"])
        ax.axvspan(trained + 0.5, cycles[-1]["cycle"] + 0.5, color="#f2f2f2", zorder=0)
        ax.set(title=title, xlabel="cycle (shaded: beyond training)", yscale="log")
        plain(ax)
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return fig


def plot_plans(g, plant: Plant, test: dict) -> Figure | None:
    """Four test rows of the entry's first seed: plans u^0 .. u^K, and closed-loop rollouts in the phase plane with the expert's beside them."""
    if not (g.runs[0].folder / "best.pt").exists():
        return None
    from planner import REPLAN, all_plans, policy
    from train import load_run

    _, net, _ = load_run(g.runs[0].folder)
    hard = np.argsort(test["optimal_costs"])[
        [len(test["costs"]) // 5, len(test["costs"]) // 2, 4 * len(test["costs"]) // 5, -1]
    ]
    x0, target = test["initial_states"][hard], test["target_states"][hard]
    plans, t = all_plans(net, x0, target), np.arange(plant.N) * plant.dt
    if plant.rest:
        states, asked = metrics.closed_loop(plant, policy(net), x0, target, REPLAN)
    else:
        states, asked = rollout(plant, x0, plans[-1]), plans[-1]
    J = metrics.cost(plant, states, asked, target) / test["optimal_costs"][hard]
    fig = Figure(figsize=(15, 7), layout="constrained", dpi=130)
    axes = fig.subplots(2, 4)
    for i, (top, low) in enumerate(axes.T):
        for k, u in enumerate(plans):
            top.step(
                t,
                u[i, :, 0],
                where="post",
                color=COLOURS[0],
                alpha=0.25 + 0.75 * k / (len(plans) - 1 or 1),
                lw=1 + (k == len(plans) - 1),
                label=f"plan of cycle {k + 1 - net.plan.residual}",
            )
        top.step(
            t,
            test["control_sequences"][hard[i], :, 0],
            where="post",
            color="k",
            ls="--",
            lw=1.2,
            label="expert",
        )
        top.set_title(
            f"test row {hard[i]}, J/J* {J[i]:.4f} in {'closed' if plant.rest else 'open'} loop",
            fontsize=10,
        )
        top.set(xlabel="seconds", ylabel="control" if not i else "")
        path = rollout(plant, x0, plans[-1])
        low.plot(*test["state_trajectories"][hard[i], :, :2].T, "k--", lw=1.2, label="expert")
        low.plot(*path[i, :, :2].T, color=COLOURS[1], lw=1.3, label="open loop")
        if plant.rest:
            low.plot(*states[i, :, :2].T, color=COLOURS[0], lw=1.6, label="closed loop")
        low.plot(*x0[i, :2], "o", color=GREY, ms=7)
        low.plot(*target[i, :2], "*", color=COLOURS[3], ms=12)
        low.set(xlabel="first state", ylabel="second state" if not i else "")
        plain(top)
        plain(low)
    axes[0, 0].legend(frameon=False, fontsize=8)
    axes[1, 0].legend(frameon=False, fontsize=8)
    return fig
