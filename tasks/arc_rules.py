"""The decision trees of founding documents 002 (R2.*, recurrent encoders) and 003 (R3.*, encoders at all) over finished runs.

`python analyze.py --rules runs/encoders_debug` reads summary.json, config.toml and metrics.jsonl of every run below, and prints which rule
fired, on which figures, and which entries to run next. Two figures decide, both means over the last tenth of training (50 steps at least)
of the rows that halted, then over seeds:
    exact    e: share of answers that are right as a whole. The trees are read on this one: half of all cells are right by copying.
    cells    a: share of cells, as the documents have it. Printed beside the trees, with what copying the question would get.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from config import SHARED
from stats import interval, student, wilson

PASS, NEAR, LATE = 0.90, 0.05, 0.1
SAME = {
    "E2b": "E0b",
    "E3a": "E0b",
    "E4b": "E0b",
}  # document 002 lists these cells under several names; they are run once
DEBUG = [
    "E0v2",
    "E1v2",
    "E_diag1",
    "E2_lpn",
    "E3_lpn_var",
    "E4_lower_lr",
    "E5_grad_clip",
    "E6_combined",
    "E7_attention",
]
RECURRENT = [
    "E0a",
    "E0b",
    "E1a",
    "E1b",
    "E2a",
    "E2c",
    "E2d",
    "E2e",
    "E3b",
    "E3c",
    "E3d",
    "E4a",
    "E4c",
]
PHASE3, PHASE2 = (
    ["E4_lower_lr", "E5_grad_clip", "E6_combined", "E7_attention"],
    ["E2_lpn", "E3_lpn_var"],
)


@dataclass
class Cell:
    """The finished seeds of one entry."""

    name: str
    seeds: list[int] = field(default_factory=list)
    late: dict[str, list[float]] = field(default_factory=dict)  # figure -> one value per seed
    summaries: list[dict] = field(default_factory=list)
    configs: list[dict] = field(default_factory=list)
    left_out: int = 0  # runs of another configuration, or of a seed that is there already

    def mean(self, key: str) -> float:
        values = [v for v in self.late.get(key, []) if math.isfinite(v)]
        return float(np.mean(values)) if values else math.nan

    @property
    def e(self) -> float:
        return self.mean("exact")

    @property
    def a(self) -> float:
        return self.mean("cells")


@dataclass
class Verdict:
    rule: str
    fired: bool | None  # None: cannot be decided yet
    figures: str
    then: str = ""  # what follows where it fired
    next: list[str] = field(default_factory=list)  # entries to run


# ---------------------------------------------------------------- reading


def lines_of(folder: Path) -> list[dict]:
    """The training lines of metrics.jsonl; damaged ones are left out."""
    found = []
    path = folder / "metrics.jsonl"
    for text in (
        path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ()
    ):
        try:
            line = json.loads(text)
            if line.get("split") == "train" and math.isfinite(line["loss"]):
                found.append(line)
        except (ValueError, TypeError, KeyError, AttributeError):
            pass
    return found


def average(lines: list[dict], key: str) -> float:
    """Of a training figure: rows that halted weigh alike for exact and cells, lines for the rest."""
    weighed = [
        (line[key], line.get("halted", 1) if key in ("exact", "cells") else 1)
        for line in lines
        if key in line
    ]
    weight = sum(w for _, w in weighed)
    return sum(v * w for v, w in weighed) / weight if weight else math.nan


def window(lines: list[dict], end: float, share: float = LATE) -> list[dict]:
    """The lines of the last `share` of training (50 steps at least) before step `end`."""
    begin = end - max(share * (lines[-1]["step"] if lines else 0), 50)
    return [line for line in lines if begin < line["step"] <= end]


KEPT = (
    "exact",
    "cells",
    "loss",
    "steps_at_halt",
    "encoder_variance",
    "encoder_gradient",
    "encoder_gradient_share",
    "encoder_coverage",
    "encoder_carry_rms",
    "encoder_carry_change",
    "encoder_diversity",
)


def figures_of(folder: Path) -> dict[str, float]:
    """Late means, and t80, t90 (first step from which exact over the tenth before is that high), half (exact at half of the steps),
    loss_spread (standard deviation of the loss over the last 100 steps, lines of several steps count as one)."""
    lines = lines_of(folder)
    end = lines[-1]["step"] if lines else 0
    found = {key: average(window(lines, end), key) for key in KEPT}
    found["half"] = average(window(lines, end / 2), "exact")
    found["loss_spread"] = (
        float(np.std([line["loss"] for line in lines if line["step"] > end - 100]))
        if lines
        else math.nan
    )
    for level in (0.8, 0.9):
        for key, name in (("exact", "t"), ("cells", "a_t")):
            reached = (
                line["step"] for line in lines if average(window(lines, line["step"]), key) >= level
            )
            found[f"{name}{round(100 * level)}"] = float(next(reached, math.inf))
    return found


def cells_of(runs: list) -> dict[str, Cell]:
    """Finished ARC runs (analyze.Run) by entry, a prefix arc_ taken off."""
    cells: dict[str, Cell] = {}
    for run in runs:
        if run.problem or run.summary.get("task") != "arc":
            continue
        name = run.entry.name.removeprefix("arc_")
        cell = cells.setdefault(name, Cell(name))
        if run.seed in cell.seeds or (
            cell.configs
            and any(run.config.get(k) != v for k, v in cell.configs[0].items() if k not in SHARED)
        ):
            cell.left_out += 1
            continue
        cell.seeds.append(run.seed)
        cell.summaries.append(run.summary)
        cell.configs.append(run.config)
        for key, value in figures_of(run.folder).items():
            cell.late.setdefault(key, []).append(value)
    return cells


def unmatched(cells: dict[str, Cell]) -> Iterator[str]:
    """What makes cells incomparable: other budgets of steps, warm-ups above a tenth of them, other ways to choose targets."""
    for what, keys in (
        ("steps", ("train.steps",)),
        ("target pairs", ("arc.targets", "arc.train_tasks", "arc.train", "arc.seed")),
    ):
        budgets = {}
        for cell in cells.values():
            cfg = dict(cell.configs[0])
            if cfg.get("arc.mode") == "loo":
                cfg["arc.targets"] = "all"  # any pair is asked
            budgets.setdefault(tuple(str(cfg.get(k)) for k in keys), []).append(cell.name)
        if len(budgets) > 1:
            yield f"unequal {what}: " + "; ".join(
                f"{', '.join(names)}: {'/'.join(k)}" for k, names in budgets.items()
            )
    for cell in cells.values():
        if cell.left_out:
            yield f"{cell.name}: {cell.left_out} run(s) of another configuration, or of a seed that is there already, are left out"
        if cell.configs[0].get("train.warmup", 0) > 0.1 * cell.configs[0].get(
            "train.steps", math.inf
        ):
            yield f"{cell.name}: its warm-up is more than a tenth of its steps"


# ---------------------------------------------------------------- the trees


def share(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else "?"


def says(cells: dict[str, Cell], *names: str, key: str = "e") -> str:
    return ", ".join(
        f"{key}({n}) = {share(getattr(cells[n], key))} ({len(cells[n].seeds)} seed{'s' * (len(cells[n].seeds) > 1)})"
        if n in cells
        else f"{n}: not run"
        for n in names
    )


def passes(cells: dict[str, Cell], name: str) -> bool | None:
    return None if name not in cells or not math.isfinite(cells[name].e) else cells[name].e >= PASS


def missing(cells: dict[str, Cell], names: list[str]) -> list[str]:
    return [n for n in names if n not in cells]


def both(*values: bool | None) -> bool | None:
    """And, where None is not known yet."""
    return (
        False
        if any(v is False for v in values)
        else None
        if any(v is None for v in values)
        else True
    )


def no(value: bool | None) -> bool | None:
    return None if value is None else not value


def some(values: list[bool | None]) -> bool | None:
    return True if any(values) else None if any(v is None for v in values) else False


def debug_rules(cells: dict[str, Cell]) -> list[Verdict]:
    """R3.*, on exact accuracy."""
    base, standard, frozen = (passes(cells, n) for n in ("E0v2", "E1v2", "E_diag1"))
    near = (
        None if {"E0v2", "E_diag1"} - cells.keys() else cells["E_diag1"].e >= cells["E0v2"].e - NEAR
    )
    first = missing(cells, ["E0v2", "E1v2", "E_diag1"])
    stuck = both(base, no(standard), near)
    three, two = some([passes(cells, n) for n in PHASE3]), some([passes(cells, n) for n in PHASE2])
    found = [
        Verdict(
            "R3.0",
            no(base),
            says(cells, "E0v2"),
            "the baseline does not remember its tasks: stop all, debug the net first",
            first,
        ),
        Verdict(
            "R3.1",
            both(base, standard),
            says(cells, "E0v2", "E1v2"),
            "success: phase 4, the full data",
        ),
        Verdict(
            "R3.2",
            both(base, no(standard), no(near)),
            says(cells, "E1v2", "E_diag1", "E0v2"),
            "mend the interface between encoder and net",
        ),
        Verdict(
            "R3.3",
            stuck,
            says(cells, "E1v2", "E_diag1", "E0v2"),
            "the net can use a context, the encoder does not learn: phase 3",
            missing(cells, PHASE3),
        ),
        Verdict(
            "R3.4", both(stuck, three), says(cells, *PHASE3), "success: phase 4 with what passed"
        ),
        Verdict(
            "R3.5",
            both(stuck, no(three)),
            says(cells, *PHASE2),
            "phase 4 with what passed"
            if two
            else "redesign the encoder"
            if two is False
            else "no change of training helps: phase 2, other encoders",
            missing(cells, PHASE2),
        ),
    ]
    encoders = {
        n: c.e
        for n, c in cells.items()
        if n in DEBUG and n not in ("E0v2", "E_diag1") and math.isfinite(c.e)
    }
    if encoders:
        best = max(encoders, key=encoders.get)
        grade = next(
            g
            for least, g in (
                (0.9, "minimal (matches the baseline)"),
                (0.8, "good"),
                (0.5, "partial"),
                (-1.0, "fail"),
            )
            if encoders[best] >= least
        )
        found.append(
            Verdict(
                "R3.6", True, f"best encoder {best}: e = {share(encoders[best])}", f"grade: {grade}"
            )
        )
    slow = [n for n, c in cells.items() if n in DEBUG and c.mean("half") < 0.2]
    found.append(
        Verdict(
            "R3.7",
            bool(slow),
            ", ".join(f"{n}: {share(cells[n].mean('half'))} at half of the steps" for n in slow)
            or "e >= 20 % at half of the steps",
            "could have been stopped at half time",
        )
    )
    alone = some([passes(cells, n) for n in PHASE3 if n != "E6_combined"])
    found.append(
        Verdict(
            "R3.8",
            both(passes(cells, "E6_combined"), no(alone)),
            says(cells, *PHASE3),
            "what helps is the combination, no single change",
        )
    )
    return found


def recurrent_rules(cells: dict[str, Cell], key: str = "e") -> list[Verdict]:
    """R2.*, on exact accuracy (key = "e"), or on cells as written (key = "a")."""
    value = {
        n: getattr(c, key)
        for n, c in cells.items()
        if n in RECURRENT and math.isfinite(getattr(c, key))
    }
    b, a = value.get("E0b"), value.get("E0a")
    known, pair = b is not None, None not in (a, b)
    t = "t90" if key == "e" else "a_t90"
    found = [
        Verdict(
            "R2.0",
            b > 0.90 if known else None,
            says(cells, "E0b", key=key),
            "recurrence works: run E1, E2, E3",
            missing(cells, RECURRENT[2:11]) or [],
        ),
        Verdict(
            "R2.1",
            b < 0.80 if known else None,
            says(cells, "E0b", key=key),
            "debug: reset of slots, gradient share (about 40 %), variance, compare with E0a",
            missing(cells, ["E0a"]),
        ),
        Verdict(
            "R2.2",
            0.80 <= b <= 0.90 if known else None,
            says(cells, "E0b", key=key),
            "not decided by the document: train E0a and E0b twice as long, apply again",
        ),
    ]
    if pair:
        ta, tb = cells["E0a"].mean(t), cells["E0b"].mean(t)
        ta, tb = (v if math.isfinite(v) else math.inf for v in (ta, tb))
        found.append(
            Verdict(
                "R2.3",
                b > 0.90 and tb > ta,
                f"first at 90 %: E0a at step {ta:.0f}, E0b at step {tb:.0f}",
                "overhead without benefit: go on with care",
            )
        )
        words = (
            "helps"
            if b > 0.92 and b - a > 0.01
            else "makes no difference"
            if abs(b - a) <= 0.01
            else "hurts, a bug is suspected"
            if b < 0.85 and a > 0.90
            else "helps slightly"
            if b > a
            else "is behind"
        )
        found.append(
            Verdict(
                "R2.4",
                True,
                says(cells, "E0a", "E0b", key=key),
                f"recurrence {words} (point values; the interval decides below)",
            )
        )
    if known:
        cell = cells["E0b"]
        variance, gradient, carry = (
            cell.mean(k) for k in ("encoder_variance", "encoder_gradient", "encoder_carry_rms")
        )
        red = [
            w
            for w, bad in (
                (f"{key} = {share(b)}", b < 0.5),
                (f"variance {variance:.3f}", variance < 0.1),
                (f"gradient {gradient:.2g}", not gradient > 0),
            )
            if bad
        ]
        found.append(
            Verdict(
                "R2.5",
                bool(red),
                ", ".join(red) or f"variance {variance:.3f}, gradient {gradient:.2g}",
                "red flag: debug carry, gradient, reset first",
            )
        )
        spread, other = (
            cell.mean("loss_spread"),
            cells["E0a"].mean("loss_spread") if "E0a" in cells else math.nan,
        )
        red = [
            w
            for w, bad in (
                (f"loss moves by {spread:.3g}, E0a's by {other:.3g}", spread > 3 * other),
                (f"carry {carry:.3g}", not 0.1 <= carry <= 10),
            )
            if bad
        ]
        found.append(
            Verdict(
                "R2.6",
                bool(red),
                ", ".join(red) or f"loss moves by {spread:.3g}, carry {carry:.3g}",
                "red flag: unstable; initial state, learning rate, clipping",
            )
        )
    if a is not None and len(value) > 1:
        best = max((n for n in value if n != "E0a"), key=value.get)
        found.append(
            Verdict(
                "R2.7",
                value[best] <= a,
                says(cells, "E0a", best, key=key),
                "no recurrent entry beats the static one: write down a null result",
            )
        )
        for rule, name, then, rest in (
            (
                "R2.8",
                "E0b",
                "recurrence helps: E1 to E4, then variant B",
                missing(cells, RECURRENT[2:]),
            ),
            ("R2.9", best, "full data, variant B", []),
        ):
            if name in cells:
                sure, words = better(cells["E0a"], cells[name], "exact" if key == "e" else "cells")
                found.append(Verdict(rule, sure, f"{name} - E0a: {words}", then, rest))
    return found


def better(one: Cell, two: Cell, key: str) -> tuple[bool | None, str]:
    """Is `two` above `one` by more than two standard errors over seeds? And the words: by seeds in common, with Student's interval."""
    seeds = sorted(set(one.seeds) & set(two.seeds))
    if len(seeds) < 2:
        return None, f"{len(seeds)} seed(s) in common, 2 or more are needed"
    x, y = (np.array([c.late[key][c.seeds.index(s)] for s in seeds]) for c in (one, two))
    d = y - x
    half = student(len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d))
    error = math.sqrt((x.var(ddof=1) + y.var(ddof=1)) / len(d))
    return bool(d.mean() > 2 * error), (
        f"{100 * d.mean():+.1f} points, 95 % interval {100 * (d.mean() - half):+.1f} to {100 * (d.mean() + half):+.1f} "
        f"({len(d)} seeds, paired), 2 standard errors = {200 * error:.1f}"
    )


# ---------------------------------------------------------------- words


def table(cells: dict[str, Cell]) -> list[str]:
    rows = [
        "| entry | seeds | steps | train exact, late | cells | copying gets | training tasks exact | held-out exact | with another task's context | first at 90 % |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells.values():
        sides = {
            side: [s["arc"][side] for s in cell.summaries if "arc" in s]
            for side in ("train", "test")
        }
        counted = {side: _pooled(found) for side, found in sides.items()}
        swapped = [
            f["context"]["shuffled"] for f in sides["test"] if "shuffled" in f.get("context", {})
        ]
        t90 = cell.mean("t90")
        late = cell.late.get("exact", [])
        spread = f" ({share(min(late))} to {share(max(late))})" if len(late) > 1 else ""
        rows.append(
            f"| {cell.name} | {len(cell.seeds)} | {cell.configs[0].get('train.steps', '?')} | {share(cell.e)}{spread} | {share(cell.a)} | "
            f"{share(float(np.mean([f['copy_cells'] for f in sides['train']])) if sides['train'] else math.nan)} | {counted['train']} | {counted['test']} | "
            f"{share(float(np.mean(swapped))) if swapped else '-'} | {f'step {t90:.0f}' if math.isfinite(t90) else 'never'} |"
        )
    return rows


def _pooled(found: list[dict]) -> str:
    """Mean of a side's exact over seeds, with n and its interval: of one seed over queries, of several over seeds."""
    if not found:
        return "?"
    values, n = np.array([[f["exact"]] for f in found]), found[0]["n"]
    mean, low, high = (
        interval(values) if len(found) > 1 else (values[0, 0], *wilson(values[0, 0], n))
    )
    return f"{share(mean)} ({share(max(low, 0))} to {share(min(high, 1))}; n = {len(found)} x {n})"


def words(verdicts: list[Verdict]) -> Iterator[str]:
    for v in verdicts:
        state = {True: "FIRED", False: "no", None: "open"}[v.fired]
        yield f"- {v.rule:5} {state:6} {v.figures}" + (
            f" -> {v.then}" if v.fired and v.then else ""
        )


def next_entries(verdicts: list[Verdict]) -> list[str]:
    """What rules that fired ask for, and what those that are open wait for."""
    return list(dict.fromkeys(name for v in verdicts if v.fired for name in v.next))


def read(runs: list) -> str:
    """The whole report on finished runs (of analyze.load_runs)."""
    cells = cells_of(runs)
    text = [*table(cells), ""]
    text += [
        f"- note   {name} is {SAME[name]} under another name: run once, its seeds are the cell's"
        for name in SAME
        if SAME[name] in cells
    ]
    text += [f"- WARNING  {line}" for line in unmatched(cells)]
    if any(n in cells for n in DEBUG):
        found = debug_rules(cells)
        wait = missing(cells, ["E0v2", "E1v2", "E_diag1"])
        text += [
            "",
            "Document 003, on exact accuracy:",
            "",
            *words(found),
            f"- next   {', '.join(dict.fromkeys(wait + next_entries(found))) or 'nothing'}",
        ]
    if any(n in cells for n in RECURRENT):
        found = recurrent_rules(cells)
        wait = missing(cells, ["E0a", "E0b"])
        text += [
            "",
            "Document 002, on exact accuracy:",
            "",
            *words(found),
            "",
            "on cells, as written (copying gets the share above):",
            "",
            *words(recurrent_rules(cells, "a")),
            f"- next   {', '.join(dict.fromkeys(wait + next_entries(found))) or 'nothing'}",
        ]
    return "\n".join(text)
