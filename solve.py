"""Give a trained net one puzzle and watch its answer grow.

    python solve.py runs/laptop/maze_perfect/seed0 [puzzle | file | -]

Prints how the puzzle was understood, the solved grid, whether the rules hold, and the halting
probability after every supervision step; writes solved.png (the answer y after each step, side by
side) and solved.gif. Without a puzzle it draws a new one of the kind the run was trained on.
A maze: space, '.' or 0 free; '#', X, 1 or a full block wall; S start, G or E goal. A Sudoku:
digits, and 0 . _ * x for blanks. Both row by row, with or without line breaks,
frames and commas.
Exit codes: 0 the net has answered (right or wrong), 2 bad input.
"""

import config as _config  # noqa: F401, I001  first: it says so where packages are missing

import plots  # first: it chooses matplotlib's settings

# isort: split

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.animation import PillowWriter
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from config import Parser, UserError, load_config, quiet_output
from evaluate import load_official, need_rules, other_states, refuse_official
from layers import log_probabilities
from runs import find_run
from stats import visible
from train import Config, load_run

BLUE, GREY = "#0072B2", "#444444"
BOM = "\ufeff"  # a mark that some editors put before a text


@dataclass
class Puzzle:
    inputs: np.ndarray  # (L,) the question
    source: str  # whose it is, in a few words
    understood: str = ""  # of a puzzle that was written by hand: how it was read


@dataclass
class Trace:
    """One puzzle on its way through a net."""

    task: object  # see tasks/base.py
    data: object  # the table [data] of its run
    inputs: np.ndarray  # (L,) the question
    # (S, L) y, read out after every supervision step; the last one averaged as train.eval_average
    answers: np.ndarray
    halt: np.ndarray  # (S,) halting probability
    label: np.ndarray | None  # (L,) the right answer, where a solver knows it
    why: str = ""  # label is None: the solver's reason
    number: int = 1  # of the try
    tries: str = ""  # what further tries came to; empty: nobody asked for them

    def kept(self) -> bool:
        """Whether the last answer keeps the rules. Without rules: whether it is the label."""
        rules = self.task.score(self.inputs[None], self.answers[-1:])
        if "valid" in rules:
            return bool(rules["valid"][0])
        return self.label is not None and bool((self.answers[-1] == self.label).all())

    def answer(self, step: int) -> np.ndarray:
        """(L,) the answer after `step` steps; the question for 0."""
        return self.answers[step - 1] if step else self.inputs

    def wrong(self, step: int) -> np.ndarray:
        """(L,) cells that differ from the label; without a label, cells the question forbids."""
        if not step:
            return np.zeros(len(self.inputs), bool)
        if self.label is not None:
            return self.answer(step) != self.label
        return self.task.forbidden(self.inputs, self.answer(step))

    def kinds(self, step: int) -> np.ndarray:
        """(L,) names of task.cells."""
        before = self.answer(max(0, step - 1))
        return self.task.kinds(self.inputs, self.answer(step), before, self.wrong(step))

    def sides(self) -> tuple[int, int]:
        return self.task.sides(self.data, len(self.inputs))


def solve(task, cfg: Config, net, inputs: np.ndarray, steps: int) -> Trace:
    """One question (L,) through `steps` supervision steps, and what an exact solver says of it."""
    answers, halt = think(cfg, net, inputs, steps, net.states_of(inputs[None], cfg.seed))
    label, why = task.solution(cfg.data, inputs)
    return Trace(task, cfg.data, inputs, answers, halt, label, why)


@torch.no_grad()
def think(cfg: Config, net, inputs: np.ndarray, steps: int, states) -> tuple:
    """Answers (S, L) and halting probabilities (S,) of a net that begins with these states."""
    device = net.q_head.weight.device
    row = torch.from_numpy(inputs.astype(np.int64)).to(device)[None]
    puzzle = torch.zeros(1, dtype=torch.long, device=device)
    batch = {"inputs": row, "labels": row, "puzzle": puzzle}  # labels are never read
    carry = net.refill(net.start(batch), batch, states)
    probabilities, halt = [], []
    for _ in range(steps):
        carry, out = net.step(carry)
        probabilities.append(log_probabilities(out.logits[0], cfg.model.loss).exp())
        halt.append(out.q_halt[0].sigmoid().item())
    last = torch.stack(probabilities[-cfg.train.eval_average :]).mean(0)
    answers = torch.stack([*probabilities[:-1], last]).argmax(-1).cpu().numpy().astype(np.uint8)
    return answers, np.array(halt)


# ---------------------------------------------------------------- further tries


def try_again(t: Trace, cfg: Config, net, tries: int) -> Trace:
    """The trace of the first of at most `tries` tries whose answer keeps the rules, else `t`.

    t: the first try. The others take turns: another view of the puzzle, other first states.
    Raises UserError for a task without rules.
    """
    need_rules(t.task, t.inputs[None], t.answers[-1:], tries)
    if t.kept():
        return replace(t, tries=f"the first one keeps the rules: {len(t.answers)} steps in all")
    first = f"the first one breaks the rules{where_wrong(t)}"
    g = np.random.default_rng(cfg.seed)
    for number in range(2, tries + 1):
        if number % 2:
            states, words = other_states(cfg, net, t.inputs[None], number)
            answers, halt = think(cfg, net, t.inputs, len(t.answers), states)
        else:
            view, undo, words = t.task.other_view(t.inputs, g)
            states = net.states_of(view[None], cfg.seed)
            answers, halt = think(cfg, net, view, len(t.answers), states)
            answers = undo(answers)
        found = replace(t, answers=answers, halt=halt, number=number)
        if found.kept():
            cost = number * len(t.answers)
            words = f"{first}; try {number} ({words}) keeps them: {cost} steps in all"
            return replace(found, tries=words)
    cost = tries * len(t.answers)
    return replace(t, tries=f"{first}, and so does each of {tries}: {cost} steps in all")


def where_wrong(t: Trace) -> str:
    """How much of the last answer is wrong, where a solver knows it."""
    if t.label is None:
        return ""
    return f" ({int(t.wrong(len(t.answers)).sum())} of {len(t.inputs)} cells wrong)"


def read_puzzle(word: str) -> str:
    """The text of a puzzle: the word itself, the file that it names, or standard input for '-'."""
    try:
        if word == "-":
            return sys.stdin.read().removeprefix(BOM)
        if os.path.exists(word):
            return Path(word).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or "not UTF-8"
        raise UserError(f"{word}: not a readable text file ({reason})") from None
    if "/" in word or re.search(r"\.[A-Za-z]\w*$", word):
        raise UserError(f"{word}: no such file")
    return word.removeprefix(BOM)


# ---------------------------------------------------------------- in the terminal


def report(t: Trace) -> str:
    """What one wants to know about the answers, in a few lines."""
    last, cells = len(t.answers), len(t.inputs)
    wrong = [int(t.wrong(step).sum()) for step in range(1, last + 1)]
    if t.label is None:
        label = f"unknown: {t.why}"
    elif wrong[-1]:
        label = f"wrong in {wrong[-1]} of {cells} cells"
    else:
        label = f"right in all {cells} cells"
    changed = [int((t.answer(k) != t.answer(k - 1)).sum()) for k in range(1, last + 1)]
    rows = {
        "step": [f"{step:6d}" for step in range(1, last + 1)],
        "halt": [f"{p:6.2f}" for p in t.halt],
        "changed": [f"{count:6d}" for count in changed],
    }
    if t.label is not None:
        rows["wrong"] = [f"{count:6d}" for count in wrong]
    lines = ["", *grids(t), ""]
    lines += [f"rules   {t.task.verdict(t.inputs, t.answers[-1])}", f"label   {label}"]
    if t.tries:
        lines.append(f"tries   {t.tries}")
    lines += [f"steps   {last} used; halting at a probability above 0.5 {halting(t)}"]
    for at in range(0, last, 16):
        lines += [f"{name:8}" + "".join(row[at : at + 16]) for name, row in rows.items()]
    return "\n".join(lines)


def grids(t: Trace) -> list[str]:
    """The answer; where there is room, the question beside it."""
    question, answer = t.task.lines(t.data, t.inputs), t.task.lines(t.data, t.answers[-1])
    if len(question[0]) >= 50:
        return answer
    return [f"        {q}    {a}" for q, a in zip(question, answer)]


def halting(t: Trace) -> str:
    """What the halting head would have done."""
    stops = np.flatnonzero(t.halt > 0.5)
    if not len(stops):
        return "would have used all of them"
    stop = int(stops[0]) + 1
    same = (t.answer(stop) == t.answers[-1]).all()
    answer = "the same" if same else "another one"
    return f"would stop after step {stop}, where the answer was {answer}"


# ---------------------------------------------------------------- pictures


def draw_grid(ax, t: Trace, step: int, inches: float) -> None:
    """The answer after `step` steps (0: the question) into axes of about `inches` width."""
    kinds, (rows, cols) = t.kinds(step), t.sides()
    fills = [to_rgb(t.task.cells[kind][0]) for kind in kinds]
    ax.imshow(np.array(fills).reshape(rows, cols, 3), interpolation="nearest")
    ax.set(xticks=[], yticks=[], xlim=(-0.5, cols - 0.5), ylim=(rows - 0.5, -0.5))
    points = inches * 72 / max(rows, cols)  # per cell
    t.task.decorate(ax, t.data, t.inputs, t.answer(step), kinds, points)
    ax.spines[:].set(color=GREY, linewidth=1.2)


def caption(t: Trace, step: int) -> str:
    if not step:
        return "question"
    if t.label is None:
        return f"step {step}"
    wrong = int(t.wrong(step).sum())
    if not wrong:
        return f"step {step}: right"
    if step == len(t.answers) and t.kept():  # a path, say, that is longer or takes another way
        return f"step {step}: rules kept, not the label"
    return f"step {step}: {wrong} cell{'s' * (wrong > 1)} wrong"


def draw_steps(fig, t: Trace, steps, cols: int, inches: float, show_halting: bool) -> None:
    """Panels of the answer after each of `steps`, with a legend of what occurs in them."""
    axes = fig.subplots(-(-len(steps) // cols), cols, squeeze=False).ravel()
    for ax in axes[len(steps) :]:
        ax.set_axis_off()
    for ax, step in zip(axes, steps):
        draw_grid(ax, t, step, inches)
        ax.set_title(caption(t, step), fontsize=11)
        if step and show_halting:
            text = f"halting probability {t.halt[step - 1]:.2f}"
            ax.set_xlabel(text, fontsize=9, color="#555555")
    seen = set(np.concatenate([t.kinds(step) for step in steps]))
    words = {kind: cell for kind, cell in t.task.cells.items() if cell[1] and kind in seen}
    patches = [
        Patch(facecolor=colour, edgecolor="#999999", label=word) for colour, word in words.values()
    ]
    fig.legend(handles=patches, loc="outside lower center", ncols=4, frameon=False, fontsize=10)


def picture(t: Trace, path: Path) -> None:
    """The question and the answer after every supervision step, side by side."""
    panels = range(len(t.answers) + 1)
    cols, inches = min(len(panels), 6), 2.3
    rows = -(-len(panels) // cols)
    size = cols * (inches + 0.15), rows * (inches + 0.6) + 0.4
    fig = Figure(figsize=size, layout="constrained", dpi=130)
    draw_steps(fig, t, panels, cols, inches, show_halting=True)
    plots.save_png(fig, path)


def animate(t: Trace, path: Path) -> None:
    """A frame per supervision step; the question and the last answer stay longer."""
    inches, last = 4.6, len(t.answers)
    width, height = inches + 0.2, inches + 0.55
    fig = Figure(figsize=(width, height))
    ax = fig.add_axes((0.02, 0.02, 0.96, 0.96 * width / height))
    writer = PillowWriter(fps=2)
    with writer.saving(fig, str(path), dpi=100):
        for step in [0, 0, *range(1, last + 1), last, last, last]:
            ax.clear()
            draw_grid(ax, t, step, inches)
            text = f", halting probability {t.halt[step - 1]:.2f}" if step else ""
            ax.set_title(caption(t, step) + text, fontsize=12)
            writer.grab_frame()


def hero(t: Trace, summary: dict, source: str, path: Path) -> None:
    """The picture for a README: one puzzle step by step, beside it accuracy on test per step."""
    cols, inches = 3, 2.35
    width = cols * (inches + 0.15)
    size = width + 4.4, 2 * (inches + 0.35) + 0.75
    fig = Figure(figsize=size, layout="constrained", dpi=150)
    left, right = fig.subfigures(1, 2, width_ratios=(width, 4.4))
    last = len(t.answers)
    steps = sorted({0, *range(1, min(last, 4) + 1), last})
    draw_steps(left, t, steps, cols, inches, show_halting=False)
    draw_curve(right.subplots(), summary, t.task)
    rows, columns = t.sides()
    title = f"{t.task.name.capitalize()} {rows}x{columns}{reservation(t)}: {source}"
    fig.suptitle(f"The answer y after each supervision step. {title}", fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save_png(fig, path)


def reservation(t: Trace) -> str:
    """What a title adds where the net did not solve the puzzle, or not at once."""
    if not t.kept():
        return ", not solved"
    return f", try {t.number}" if t.number > 1 else ""


def first_solved(
    puzzles: list[Puzzle], attempt: Callable[[np.ndarray], Trace]
) -> tuple[Trace, str]:
    """The trace of the first puzzle that the net solves, else of the first; and its source."""
    first = None
    for puzzle in puzzles:
        t = attempt(puzzle.inputs)
        first = first or t
        if t.kept():
            return t, puzzle.source
    return first, puzzles[0].source


def draw_curve(ax, summary: dict, task) -> None:
    """Exact accuracy on the test split after each supervision step."""
    curve, copy = 100 * np.array(summary["test"]["curve"]), 100 * summary["baseline"]["exact"]
    last = len(curve) - 1
    x = np.arange(1, len(curve) + 1)
    ax.plot(x, curve, color=BLUE, marker="o", lw=2, ms=7, label="the net")
    for k in sorted({0, min(1, last), last}):
        place, side = ((0, 9), "center") if k == last else ((9, -5), "left")
        where = {"xytext": place, "textcoords": "offset points", "ha": side}
        ax.annotate(f"{curve[k]:.1f} %", (x[k], curve[k]), color=BLUE, **where)
    text = f"{task.trivial}: {copy:.0f} %"
    ax.axhline(copy, color="#777777", ls="--", lw=1.2, label=text)
    ax.set(xlabel="supervision step", ylabel=f"test {task.rows} solved exactly (%)")
    ax.set(ylim=(-4, 109), xticks=x[:: -(-len(x) // 8)], yticks=range(0, 101, 20))
    sizes = f"{summary['test']['n']:,} test {task.rows}, {summary['parameters']:,} parameters"
    ax.set_title(sizes, fontsize=11)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#e5e5e5")
    ax.legend(loc="lower right", bbox_to_anchor=(1, 0.06), frameon=False)


# ---------------------------------------------------------------- the command


def command_line(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("solve.py", __doc__)
    add = parser.add_argument
    add("run", type=Path, help="a run folder, or a best.pt")
    add(
        "puzzle", nargs="?", help="the puzzle in quotes, a file that holds it, or -; else a new one"
    )
    add(
        "--steps",
        type=int,
        default=0,
        help="supervision steps (default: as in the run's evaluation, more for larger puzzles)",
    )
    add(
        "--tries",
        type=int,
        default=1,
        metavar="K",
        help="while the answer breaks the rules, try again up to K times in all: the puzzle turned "
        "or permuted, other first states (default: 1)",
    )
    add("--all", action="store_true", help="answer every Sudoku of a file; pictures of the first")
    add("--out", type=Path, help="folder for solved.png and solved.gif (default: the run folder)")
    add("--seed", type=int, default=0, help="which new puzzle (default: 0)")
    add("--size", type=int, default=0, help="side of the new puzzle (default: as in training)")
    add(
        "--picture",
        type=Path,
        help="write one PNG only: a puzzle step by step, beside it the test accuracy per step",
    )
    add("--page", type=Path, help="write one HTML file only: the net itself, to play with")
    words = "an entry: RUN is a checkpoint of the official code (step_N), of this entry's net"
    add("--entry", type=Path, help=words)
    args, unknown = parser.parse_known_intermixed_args(argv)  # options anywhere
    if unknown:
        advice = "" if unknown[0].startswith("-") else ", put the puzzle in quotes"
        parser.error(f"unexpected {unknown[0]!r}{advice}")
    if min(args.steps, args.seed, args.size) < 0:
        parser.error("--steps, --seed and --size are 0 or more")
    for name, ending in (("page", ".html"), ("picture", ".png")):
        path = getattr(args, name)
        if path and path.suffix.lower() != ending:
            parser.error(f"--{name} {path}, expected the name of a {ending} file")
    if args.tries < 1:
        parser.error(f"--tries {args.tries}, expected 1 or more")
    if args.puzzle and os.path.exists(Path(args.puzzle, "best.pt")) and not args.run.exists():
        parser.error("the run comes first, then the puzzle")
    return args


def default_steps(trained: int, side: int, trained_side: int) -> int:
    """As many as in the run's evaluation; farther to go, more steps."""
    return max(trained, -(-trained * side // trained_side))


def read_summary(folder: Path) -> dict:
    """summary.json, with the figures that `draw_curve` needs. Raises UserError."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        test, used = summary["test"], [summary["baseline"]["exact"], summary["parameters"]]
        used += [test["n"], *test["curve"]]
        if not test["curve"] or not all(math.isfinite(value) for value in used):
            raise ValueError("a figure is missing or not finite")
    except (OSError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
        raise UserError(
            f"{folder}/summary.json: missing or damaged; --picture needs a finished run"
        ) from None
    return summary


def open_net(path: Path, entry: Path | None, device) -> tuple[Config, torch.nn.Module, dict]:
    """(config, net, checkpoint) of a run, or with its entry of an official checkpoint."""
    if not entry:
        refuse_official(path)
        return load_run(path, device)
    cfg = load_config(Config, entry, {})
    return cfg, *load_official(path, cfg, entry, device)


def run(args: argparse.Namespace) -> None:
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    path = find_run(args.run)
    cfg, net, state = open_net(path, args.entry, device)
    if cfg.train.threads:  # more threads than in training, on a busy machine, wait for each other
        torch.set_num_threads(cfg.train.threads)
    task = cfg.task.bound(state["shape"])
    if not task.solvable:
        raise UserError(
            f"{path}: a run of data.task = {task.name!r}, expected a puzzle that can be drawn"
        )
    if args.page:
        task.write_page(args.page, cfg, net, state)
        print(f"wrote   {args.page}")
        return
    folder = path if path.is_dir() else path.parent
    if args.puzzle is not None:
        puzzles = [
            Puzzle(inputs, "yours", words)
            for inputs, words in task.readings(cfg, read_puzzle(args.puzzle))
        ]
    else:
        drawn = task.draw_puzzles(cfg, args.seed, args.size, 64 if args.picture else 1)
        puzzles = [Puzzle(*each) for each in drawn]
    more = len(puzzles) - 1
    if not args.all and not (args.picture and args.puzzle is None):
        puzzles = puzzles[:1]

    def attempt(inputs: np.ndarray) -> Trace:
        steps = args.steps or steps_for(task, cfg, state, inputs)
        t = solve(task, cfg, net, inputs, steps)
        return t if args.tries == 1 else try_again(t, cfg, net, args.tries)

    if args.picture:
        summary = read_summary(folder)
        t, source = first_solved(puzzles, attempt)
        hero(t, summary, source, args.picture)
        if t.tries:
            print(f"tries   {t.tries}")
        print(f"wrote   {visible(str(args.picture))}")
        return
    print_run(cfg, net, state, folder, device)
    traces = print_answers(puzzles, attempt)
    if args.all:
        print(f"all     {sum(t.kept() for t in traces)} of {len(traces)} answers keep the rules")
    elif more:
        print(f"more    puzzles in this text: {more}; --all answers them too")
    out = args.out or folder
    out.mkdir(parents=True, exist_ok=True)
    picture(traces[0], out / "solved.png")
    animate(traces[0], out / "solved.gif")
    shown = visible(str(out))
    print(f"wrote   {shown}/solved.png and {shown}/solved.gif")


def print_answers(puzzles: list[Puzzle], attempt: Callable[[np.ndarray], Trace]) -> list[Trace]:
    """What was understood, and the answers."""
    traces = []
    for number, puzzle in enumerate(puzzles, 1):
        t = attempt(puzzle.inputs)
        traces.append(t)
        rows, columns = t.sides()
        which = f", number {number} of {len(puzzles)}" if len(puzzles) > 1 else ""
        print(f"puzzle  {t.task.name} {rows}x{columns}, {visible(puzzle.source)}{which}")
        if puzzle.understood:
            print(f"read    {puzzle.understood}")
        print(report(t))
    return traces


def steps_for(task, cfg: Config, state: dict, inputs: np.ndarray) -> int:
    """Supervision steps of a puzzle, by its size."""
    side = max(task.sides(cfg.data, len(inputs)))
    trained_side = max(task.sides(cfg.data, state["shape"]["seq_len"]))
    return default_steps(cfg.eval_steps, side, trained_side)


def print_run(cfg: Config, net, state: dict, folder: Path, device) -> None:
    """Which net it is."""
    parameters = sum(p.numel() for p in net.parameters())
    weights = "EMA" if state["ema"] else "raw"
    quality = "of the official code"
    if state["val"]:
        quality = f"{100 * state['val']['exact']:.1f} % exact on validation"
    print(
        f"run     {visible(str(folder))}: {parameters:,} parameters, "
        f"{weights} weights of step {state['step']}, "
        f"{quality}, computed on {device.type}"
    )


def main(argv: list[str] | None = None) -> int:
    try:
        run(command_line(argv))
    except UserError as e:
        print(f"error: {visible(str(e))}", file=sys.stderr)
    except OSError as e:
        where = visible(f"{e.filename or 'the pictures'} ({e.strerror or e})")
        print(f"error: cannot write {where}", file=sys.stderr)
    else:
        return 0
    return 2


if __name__ == "__main__":
    quiet_output()
    sys.exit(main())
