"""The decision trees of two plans of experiments with encoders, read on finished runs.

`python analyze.py --rules runs/encoders_debug` reads summary.json, config.toml and metrics.jsonl of
every run below, and prints which rule fired, on which figures, and which entries to run next.

    R3.*  the encoder debugging plan: does an encoder work at all?
    R2.*  the recurrent encoder plan: does recurrence in the encoder help?

Two figures decide. Both are means over the rows that halted in the last tenth of training (50 steps
at least), then over seeds:

    exact  e: share of answers that are right as a whole. The trees are read on this one: half of
           all cells are right by copying.
    cells  a: share of cells, as the recurrent encoder plan has it. Printed beside the trees, with
           what copying the question would get.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from config import SHARED
from stats import clean, interval, markdown, shown, student, wilson

LETTER = {"exact": "e", "cells": "a"}  # of the figures, in the plans
PASS = 0.90  # exact from which an entry passes
NEAR = 0.05  # points below the baseline that still count as near it
LATE = 0.1  # share of training that decides

DEBUG = ["E0v2", "E1v2", "E_diag1", "E2_lpn", "E3_lpn_var",
         "E4_lower_lr", "E5_grad_clip", "E6_combined", "E7_attention"]  # fmt: skip
RECURRENT = ["E0a", "E0b", "E1a", "E1b", "E2a", "E2c", "E2d", "E2e",
             "E3b", "E3c", "E3d", "E4a", "E4c"]  # fmt: skip
# The recurrent encoder plan lists these cells under several names. They are run once.
SAME = {"E2b": "E0b", "E3a": "E0b", "E4b": "E0b"}
PHASE2 = ["E2_lpn", "E3_lpn_var"]  # other encoders
PHASE3 = ["E4_lower_lr", "E5_grad_clip", "E6_combined", "E7_attention"]  # other training


@dataclass
class Cell:
    """The finished seeds of one entry."""

    name: str
    seeds: list[int] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=dict)  # one value per seed
    summaries: list[dict] = field(default_factory=list)
    configs: list[dict] = field(default_factory=list)
    left_out: int = 0  # runs of another configuration, or of a seed that is there already

    def mean(self, figure: str) -> float:
        """Over the seeds that have the figure; NaN if none has."""
        values = [value for value in self.figures.get(figure, []) if math.isfinite(value)]
        return float(np.mean(values)) if values else math.nan

    def same_as_before(self, config: dict) -> bool:
        """Whether a run has the configuration of those that are in the cell already."""
        if not self.configs:
            return True
        first = self.configs[0]
        return all(config.get(key) == first[key] for key in first if key not in SHARED)


Cells = dict[str, Cell]


# ---------------------------------------------------------------- figures of runs

AVERAGED = ("exact", "cells", "loss", "steps_at_halt", "encoder_variance", "encoder_gradient",
            "encoder_gradient_share", "encoder_coverage", "encoder_carry_rms",
            "encoder_carry_change", "encoder_diversity")  # fmt: skip


def lines_of(folder: Path) -> list[dict]:
    """The training lines of metrics.jsonl. Damaged ones are left out."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            if line.get("split") == "train" and math.isfinite(line["loss"]):
                found.append(line)
        except (ValueError, TypeError, KeyError, AttributeError):
            pass
    return found


def average(lines: list[dict], figure: str) -> float:
    """The mean over lines. exact and cells weigh by the rows that halted, the rest alike."""
    total = weights = 0.0
    for line in lines:
        if figure in line:
            weight = line.get("halted", 1) if figure in ("exact", "cells") else 1
            total += line[figure] * weight
            weights += weight
    return total / weights if weights else math.nan


def window(lines: list[dict], end: float) -> list[dict]:
    """The lines of a tenth of training (50 steps at least) up to step `end`."""
    length = LATE * lines[-1]["step"] if lines else 0
    begin = end - max(length, 50)
    return [line for line in lines if begin < line["step"] <= end]


def time_to_threshold(lines: list[dict], figure: str, level: float) -> float:
    """First step from which the mean over the tenth before is that high; infinite: never."""
    for line in lines:
        if average(window(lines, line["step"]), figure) >= level:
            return float(line["step"])
    return math.inf


def figures_of(folder: Path) -> dict[str, float]:
    """Means over the end of training, and:

    half         exact at half of the steps
    loss_spread  standard deviation of the loss over the last 100 steps; lines of several steps
                 count as one
    exact_t80, exact_t90, cells_t80, cells_t90: see `time_to_threshold`
    converged    the same for exact, less a point, at the end of training
    """
    lines = lines_of(folder)
    end = lines[-1]["step"] if lines else 0
    found = {figure: average(window(lines, end), figure) for figure in AVERAGED}
    found["half"] = average(window(lines, end / 2), "exact")
    losses = [line["loss"] for line in lines if line["step"] > end - 100]
    found["loss_spread"] = float(np.std(losses)) if losses else math.nan
    for figure in ("exact", "cells"):
        for level in (80, 90):
            found[f"{figure}_t{level}"] = time_to_threshold(lines, figure, level / 100)
    found["converged"] = time_to_threshold(lines, "exact", found["exact"] - 0.01)
    return found


def cells_of(runs: list) -> Cells:
    """Finished ARC runs (analyze.Run) by entry, a prefix arc_ taken off."""
    cells: Cells = {}
    for run in runs:
        if run.problem or run.summary.get("task") != "arc":
            continue
        name = run.entry.name.removeprefix("arc_")
        cell = cells.setdefault(name, Cell(name))
        if run.seed in cell.seeds or not cell.same_as_before(run.config):
            cell.left_out += 1
            continue
        cell.seeds.append(run.seed)
        cell.summaries.append(run.summary)
        cell.configs.append(run.config)
        for figure, value in figures_of(run.folder).items():
            cell.figures.setdefault(figure, []).append(value)
    return cells


def warnings(cells: Cells) -> Iterator[str]:
    """What makes cells incomparable."""
    yield from unequal(cells, "steps", ["train.steps"])
    targets = ["arc.targets", "arc.train_tasks", "arc.train", "arc.seed"]
    yield from unequal(cells, "target pairs", targets)
    for name, cell in cells.items():
        config = cell.configs[0]
        if cell.left_out:
            yield (
                f"{name}: {cell.left_out} run(s) of another configuration, or of a seed that is "
                "there already, are left out"
            )
        if config.get("train.warmup", 0) > 0.1 * config.get("train.steps", math.inf):
            yield f"{name}: its warm-up is more than a tenth of its steps"


def unequal(cells: Cells, what: str, keys: list[str]) -> Iterator[str]:
    """A warning where cells differ in these keys."""
    names: dict[tuple, list[str]] = {}  # values of the keys -> cells
    for cell in cells.values():
        config = dict(cell.configs[0])
        if config.get("arc.mode") == "loo":
            config["arc.targets"] = "all"  # any pair is asked
        values = tuple(str(config.get(key)) for key in keys)
        names.setdefault(values, []).append(cell.name)
    if len(names) > 1:
        parts = [f"{', '.join(group)}: {'/'.join(values)}" for values, group in names.items()]
        yield f"unequal {what}: " + "; ".join(parts)


# ---------------------------------------------------------------- yes, no, not known yet (None)


@dataclass
class Verdict:
    rule: str
    fired: bool | None  # None: cannot be decided yet
    figures: str
    then: str = ""  # what follows where it fired
    next: list[str] = field(default_factory=list)  # entries to run


def all_of(*values: bool | None) -> bool | None:
    if False in values:
        return False
    return None if None in values else True


def any_of(*values: bool | None) -> bool | None:
    if True in values:
        return True
    return None if None in values else False


def opposite(value: bool | None) -> bool | None:
    return None if value is None else not value


def passes(cells: Cells, name: str) -> bool | None:
    """Whether the entry answers 90 % exactly."""
    if name not in cells or not math.isfinite(cells[name].mean("exact")):
        return None
    return cells[name].mean("exact") >= PASS


def missing(cells: Cells, names: list[str]) -> list[str]:
    """The entries that have not been run."""
    return [name for name in names if name not in cells]


def percent(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else "?"


def count_seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def values_of(cells: Cells, names: list[str], figure: str = "exact") -> str:
    """e(E0a) = 90.0 % (1 seed), E0b: not run"""
    parts = []
    for name in names:
        if name in cells:
            value, seeds = cells[name].mean(figure), count_seeds(len(cells[name].seeds))
            parts.append(f"{LETTER[figure]}({name}) = {percent(value)} ({seeds})")
        else:
            parts.append(f"{name}: not run")
    return ", ".join(parts)


# ---------------------------------------------------------------- the encoder debugging plan

GRADES = (  # from which exact on
    (0.9, "minimal (matches the baseline)"),
    (0.8, "good"),
    (0.5, "partial"),
    (-1.0, "fail"),
)


def debug_rules(cells: Cells) -> list[Verdict]:
    """R3.0 to R3.8, on exact."""
    baseline, standard = passes(cells, "E0v2"), passes(cells, "E1v2")
    near = None  # a frozen encoder does about as well as the baseline
    if "E0v2" in cells and "E_diag1" in cells:
        near = cells["E_diag1"].mean("exact") >= cells["E0v2"].mean("exact") - NEAR
    other_training = any_of(*(passes(cells, name) for name in PHASE3))
    fails = all_of(baseline, opposite(standard))  # with an encoder, not without
    stuck = all_of(fails, near)
    three = values_of(cells, ["E1v2", "E_diag1", "E0v2"])
    found = [
        Verdict(
            "R3.0",
            opposite(baseline),
            values_of(cells, ["E0v2"]),
            "the baseline does not remember its tasks: stop all, debug the net first",
            missing(cells, ["E0v2", "E1v2", "E_diag1"]),
        ),
        Verdict(
            "R3.1",
            all_of(baseline, standard),
            values_of(cells, ["E0v2", "E1v2"]),
            "success: phase 4, the full data",
        ),
        Verdict(
            "R3.2",
            all_of(fails, opposite(near)),
            three,
            "mend the interface between encoder and net",
        ),
        Verdict(
            "R3.3",
            stuck,
            three,
            "the net can use a context, the encoder does not learn: phase 3",
            missing(cells, PHASE3),
        ),
        Verdict(
            "R3.4",
            all_of(stuck, other_training),
            values_of(cells, PHASE3),
            "success: phase 4 with what passed",
        ),
        Verdict(
            "R3.5",
            all_of(stuck, opposite(other_training)),
            values_of(cells, PHASE2),
            after_phase_2(cells),
            missing(cells, PHASE2),
        ),
    ]
    return [*found, *grade(cells), slow_entries(cells), combination(cells)]


def after_phase_2(cells: Cells) -> str:
    """What R3.5 says to do."""
    other_encoders = any_of(*(passes(cells, name) for name in PHASE2))
    if other_encoders is None:
        return "no change of training helps: phase 2, other encoders"
    return "phase 4 with what passed" if other_encoders else "redesign the encoder"


def grade(cells: Cells) -> list[Verdict]:
    """R3.6, once there is an encoder that learns."""
    learning = [name for name in cells if name in DEBUG and name not in ("E0v2", "E_diag1")]
    exact = {name: cells[name].mean("exact") for name in learning}
    exact = {name: value for name, value in exact.items() if math.isfinite(value)}
    if not exact:
        return []
    best = max(exact, key=exact.get)
    words = next(words for least, words in GRADES if exact[best] >= least)
    figures = f"best encoder {best}: e = {percent(exact[best])}"
    return [Verdict("R3.6", True, figures, f"grade: {words}")]


def slow_entries(cells: Cells) -> Verdict:
    """R3.7"""
    half = {name: cells[name].mean("half") for name in cells if name in DEBUG}
    slow = [name for name, value in half.items() if value < 0.2]
    figures = [f"{name}: {percent(half[name])} at half of the steps" for name in slow]
    words = ", ".join(figures) or "e >= 20 % at half of the steps"
    return Verdict("R3.7", bool(slow), words, "could have been stopped at half time")


def combination(cells: Cells) -> Verdict:
    """R3.8"""
    alone = any_of(*(passes(cells, name) for name in PHASE3 if name != "E6_combined"))
    return Verdict(
        "R3.8",
        all_of(passes(cells, "E6_combined"), opposite(alone)),
        values_of(cells, PHASE3),
        "what helps is the combination, no single change",
    )


# ---------------------------------------------------------------- the recurrent encoder plan


def recurrent_rules(cells: Cells, figure: str = "exact") -> list[Verdict]:
    """R2.0 to R2.9, on exact, or on cells as the plan has it."""
    value = {}
    for name, cell in cells.items():
        if name in RECURRENT and math.isfinite(cell.mean(figure)):
            value[name] = cell.mean(figure)
    found = first_look(cells, value, figure)
    if "E0a" in value and "E0b" in value:
        found += static_or_recurrent(cells, value, figure)
    if "E0b" in value:
        found += red_flags(cells, value, figure)
    if "E0a" in value and len(value) > 1:
        found += conclusions(cells, value, figure)
    return found


def first_look(cells: Cells, value: dict[str, float], figure: str) -> list[Verdict]:
    """R2.0 to R2.2: which of three ranges E0b is in."""
    high = middle = low = None
    if "E0b" in value:
        high, low = value["E0b"] > 0.90, value["E0b"] < 0.80
        middle = not high and not low
    words = values_of(cells, ["E0b"], figure)
    return [
        Verdict(
            "R2.0",
            high,
            words,
            "recurrence works: run E1, E2, E3",
            missing(cells, RECURRENT[2:11]),
        ),
        Verdict(
            "R2.1",
            low,
            words,
            "debug: reset of slots, gradient share (about 40 %), variance, compare with E0a",
            missing(cells, ["E0a"]),
        ),
        Verdict(
            "R2.2",
            middle,
            words,
            "not decided by the plan: train E0a and E0b twice as long, apply again",
        ),
    ]


def static_or_recurrent(cells: Cells, value: dict[str, float], figure: str) -> list[Verdict]:
    """R2.3 and R2.4: E0b beside E0a."""
    static, recurrent = value["E0a"], value["E0b"]
    time = {}
    for name in ("E0a", "E0b"):
        seen = cells[name].mean(f"{figure}_t90")
        time[name] = seen if math.isfinite(seen) else math.inf
    return [
        Verdict(
            "R2.3",
            recurrent > 0.90 and time["E0b"] > time["E0a"],
            f"first at 90 %: E0a at step {time['E0a']:.0f}, E0b at step {time['E0b']:.0f}",
            "overhead without benefit: go on with care",
        ),
        Verdict(
            "R2.4",
            True,
            values_of(cells, ["E0a", "E0b"], figure),
            f"recurrence {effect(static, recurrent)} (point values; the interval decides below)",
        ),
    ]


def effect(static: float, recurrent: float) -> str:
    """What recurrence does, in the words of R2.4."""
    gain = recurrent - static
    if recurrent > 0.92 and gain > 0.01:
        return "helps"
    if abs(gain) <= 0.01:
        return "makes no difference"
    if recurrent < 0.85 and static > 0.90:
        return "hurts, a bug is suspected"
    return "helps slightly" if gain > 0 else "is behind"


def red_flags(cells: Cells, value: dict[str, float], figure: str) -> list[Verdict]:
    """R2.5 and R2.6: figures of E0b that are out of bounds."""
    cell, exact = cells["E0b"], value["E0b"]
    variance, gradient = cell.mean("encoder_variance"), cell.mean("encoder_gradient")
    dead = [  # words, and whether the flag is red
        (f"{LETTER[figure]} = {percent(exact)}", exact < 0.5),
        (f"variance {variance:.3f}", variance < 0.1),
        (f"gradient {gradient:.2g}", not gradient > 0),
    ]
    spread, carry = cell.mean("loss_spread"), cell.mean("encoder_carry_rms")
    other = cells["E0a"].mean("loss_spread") if "E0a" in cells else math.nan
    unstable = [
        (f"loss moves by {spread:.3g}, E0a's by {other:.3g}", spread > 3 * other),
        (f"carry {carry:.3g}", not 0.1 <= carry <= 10),
    ]
    dead = [words for words, red in dead if red]
    unstable = [words for words, red in unstable if red]
    return [
        Verdict(
            "R2.5",
            bool(dead),
            ", ".join(dead) or f"variance {variance:.3f}, gradient {gradient:.2g}",
            "red flag: debug carry, gradient, reset first",
        ),
        Verdict(
            "R2.6",
            bool(unstable),
            ", ".join(unstable) or f"loss moves by {spread:.3g}, carry {carry:.3g}",
            "red flag: unstable; initial state, learning rate, clipping",
        ),
    ]


def conclusions(cells: Cells, value: dict[str, float], figure: str) -> list[Verdict]:
    """R2.7 to R2.9: recurrent entries beside the static one, by their intervals over seeds."""
    best = max((name for name in value if name != "E0a"), key=value.get)
    found = [
        Verdict(
            "R2.7",
            value[best] <= value["E0a"],
            values_of(cells, ["E0a", best], figure),
            "no recurrent entry beats the static one: write down a null result",
        )
    ]
    rest = missing(cells, RECURRENT[2:])
    for rule, name, then, entries in (
        ("R2.8", "E0b", "recurrence helps: E1 to E4, then variant B", rest),
        ("R2.9", best, "full data, variant B", []),
    ):
        if name in cells:
            sure, words = better(cells["E0a"], cells[name], figure)
            found.append(Verdict(rule, sure, f"{name} - E0a: {words}", then, entries))
    return found


def better(one: Cell, two: Cell, figure: str) -> tuple[bool | None, str]:
    """Whether `two` is above `one` by more than two standard errors, and the difference in words.

    Over seeds in common, with Student's interval.
    """
    seeds = sorted(set(one.seeds) & set(two.seeds))
    if len(seeds) < 2:
        return None, f"{len(seeds)} seed(s) in common, 2 or more are needed"
    x = np.array([one.figures[figure][one.seeds.index(seed)] for seed in seeds])
    y = np.array([two.figures[figure][two.seeds.index(seed)] for seed in seeds])
    n, difference = len(seeds), y - x
    mean = difference.mean()
    half = student(n - 1) * difference.std(ddof=1) / math.sqrt(n)
    error = math.sqrt((x.var(ddof=1) + y.var(ddof=1)) / n)
    words = (
        f"{100 * mean:+.1f} points, 95 % interval {100 * (mean - half):+.1f} to "
        f"{100 * (mean + half):+.1f} ({n} seeds, paired), 2 standard errors = {200 * error:.1f}"
    )
    return bool(mean > 2 * error), words


# ---------------------------------------------------------------- the report

HEADS = ("entry", "seeds", "steps", "train exact, late", "cells", "copying gets",
         "training tasks exact", "held-out exact", "with another task's context",
         "first at 90 %")  # fmt: skip
# The comparison matrix of the recurrent encoder plan: how the cells of the table came to be.
MATRIX = ("entry", "steps per example", "context variance", "encoder's share of the gradient",
          "context moves per step", "at rest after steps", "first at 80 %", "first at 90 %",
          "within a point of the end")  # fmt: skip


def read(runs: list) -> str:
    """The whole report on finished runs (of analyze.load_runs)."""
    cells = cells_of(runs)
    text = markdown(list(HEADS), [row(cell) for cell in cells.values()])
    text += markdown(list(MATRIX), [matrix_row(cell) for cell in cells.values()])
    for name, twin in SAME.items():
        if twin in cells:
            text.append(
                f"- note   {name} is {twin} under another name: run once, its seeds are the cell's"
            )
    text += [f"- WARNING  {line}" for line in warnings(cells)]
    if any(name in cells for name in DEBUG):
        found = debug_rules(cells)
        text += ["", "Encoder debugging plan, on exact accuracy:", "", *lines_in_words(found)]
        text.append(next_line(cells, ["E0v2", "E1v2", "E_diag1"], found))
    if any(name in cells for name in RECURRENT):
        found = recurrent_rules(cells)
        text += ["", "Recurrent encoder plan, on exact accuracy:", "", *lines_in_words(found)]
        text += ["", "on cells, as written (copying gets the share above):", ""]
        text += lines_in_words(recurrent_rules(cells, "cells"))
        text.append(next_line(cells, ["E0a", "E0b"], found))
    return "\n".join(text)


def lines_in_words(verdicts: list[Verdict]) -> list[str]:
    """A line per rule."""
    state = {True: "FIRED", False: "no", None: "open"}
    lines = []
    for v in verdicts:
        line = f"- {v.rule:5} {state[v.fired]:6} {v.figures}"
        if v.fired and v.then:
            line += f" -> {v.then}"
        lines.append(line)
    return lines


def next_line(cells: Cells, first: list[str], verdicts: list[Verdict]) -> str:
    """The entries to run: those that come first, then what the rules ask for."""
    names = dict.fromkeys(missing(cells, first) + next_entries(verdicts))
    return f"- next   {', '.join(names) or 'nothing'}"


def next_entries(verdicts: list[Verdict]) -> list[str]:
    """What the rules that fired ask for, each once."""
    names = [name for verdict in verdicts if verdict.fired for name in verdict.next]
    return list(dict.fromkeys(names))


def row(cell: Cell) -> list[str]:
    """The columns of HEADS."""
    reports = [summary["arc"] for summary in cell.summaries if "arc" in summary]
    train = [found["train"] for found in reports]
    held_out = [found["test"] for found in reports]
    late = cell.figures.get("exact", [])
    exact = percent(cell.mean("exact"))
    if len(late) > 1:
        exact += f" ({percent(min(late))} to {percent(max(late))})"
    copying = [found["copy_cells"] for found in train]
    contexts = [found.get("context", {}) for found in held_out]
    swapped = [context["shuffled"] for context in contexts if "shuffled" in context]
    return [
        cell.name,
        str(len(cell.seeds)),
        str(cell.configs[0].get("train.steps", "?")),
        exact,
        percent(cell.mean("cells")),
        percent(float(np.mean(copying))) if copying else "?",
        pooled(train),
        pooled(held_out),
        percent(float(np.mean(swapped))) if swapped else "-",
        first_at(cell, "exact_t90"),
    ]


def matrix_row(cell: Cell) -> list[str]:
    """The columns of MATRIX. Nets without an encoder, or without a carry, have no such figures."""
    figures = ["encoder_variance", "encoder_gradient_share", "encoder_carry_change"]
    middle = [cell.mean(figure) for figure in ("steps_at_halt", *figures)]
    held_out = [summary.get("arc", {}).get("test", {}) for summary in cell.summaries]
    rest = [found["convergence_steps"] for found in held_out if "convergence_steps" in found]
    middle.append(float(np.mean(rest)) if rest else math.nan)
    ends = [first_at(cell, figure) for figure in ("exact_t80", "exact_t90", "converged")]
    return [cell.name, *(shown(clean(value), ".3g") for value in middle), *ends]


def first_at(cell: Cell, figure: str) -> str:
    """step 2460 (2 of 3 seeds): the mean over the seeds that get there, or never."""
    steps = cell.figures.get(figure, [])
    reached = [step for step in steps if math.isfinite(step)]
    if not reached:
        return "never"
    part = "" if len(reached) == len(steps) else f" ({len(reached)} of {len(steps)} seeds)"
    return f"step {np.mean(reached):.0f}{part}"


def pooled(found: list[dict]) -> str:
    """The mean of exact over the seeds of a side, with n and its interval.

    Over seeds, and never narrower than over the n queries, which are the same for each seed.
    """
    if not found:
        return "?"
    values, n = np.array([[part["exact"]] for part in found]), found[0]["n"]
    mean = float(values.mean())
    low, high = wilson(mean, n)
    if len(found) > 1:
        _, least, most = interval(values)
        low, high = max(0, min(low, least)), min(1, max(high, most))
    return f"{percent(mean)} ({percent(low)} to {percent(high)}; n = {len(found)} x {n})"
