"""Give a trained net one puzzle and watch its answer grow: `python solve.py runs/laptop/maze_perfect/seed0 [puzzle | file | -]`.

Prints the solved grid, whether the rules hold, and the halting probability after every supervision step; writes solved.png (the
answer y after each step, side by side) and solved.gif. Without a puzzle it draws a new one of the kind the run was trained on.
A maze is '#' wall, space free, S, G; a Sudoku is digits, '.' or 0 for blanks; both row by row, with or without line breaks.
Exit codes: 0 the net has answered (right or wrong), 2 bad input.
"""

import argparse
import json
import math
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.animation import PillowWriter
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

import data
import puzzles
from config import Parser
from layers import log_probabilities
from puzzles import FREE, GOAL, PATH, START, WALL, UserError
from train import Config, load_run


@dataclass
class Trace:
    """One puzzle on its way through a net."""

    task: str
    inputs: np.ndarray  # (L,) the question
    answers: np.ndarray  # (S, L) y, read out after every supervision step; the last one averaged as train.eval_average says
    halt: np.ndarray  # (S,) halting probability
    label: np.ndarray | None  # (L,) the right answer, where a solver knows it
    why: str = ""  # label is None: the solver's reason

    def wrong(self, step: int) -> np.ndarray:
        """(L,) cells that differ from the label after `step` steps; without a label, cells that the question forbids."""
        answer = self.answers[step - 1]
        if self.label is not None:
            return answer != self.label
        filled = (
            (self.inputs == FREE) & (answer == PATH)
            if self.task == "maze"
            else (self.inputs == 1) & (answer > 1)
        )
        return (answer != self.inputs) & ~filled


@torch.no_grad()
def solve(cfg: Config, net, inputs: np.ndarray, steps: int) -> Trace:
    """One question (L,) through `steps` supervision steps of the net, and what an exact solver says of it."""
    device = net.tokens.device
    row = torch.from_numpy(inputs.astype(np.int64)).to(device)[None]
    batch = {
        "inputs": row,
        "labels": row,
        "puzzle": torch.zeros(1, dtype=torch.long, device=device),
    }  # labels are never read
    states = net.first_states(1, len(inputs), torch.Generator(device).manual_seed(0))
    carry, probabilities, halt = net.refill(net.start(batch), batch, states), [], []
    for _ in range(steps):
        carry, out = net.step(carry)
        probabilities.append(log_probabilities(out.logits[0], cfg.model.loss).exp())
        halt.append(out.q_halt[0].sigmoid().item())
    last = torch.stack(probabilities[-cfg.train.eval_average :]).mean(0)
    answers = torch.stack([*probabilities[:-1], last]).argmax(-1).cpu().numpy().astype(np.uint8)
    task, label, why = cfg.data.task, None, ""
    try:
        text = (data.solve_maze if task == "maze" else data.solve_sudoku)(data.decode(task, inputs))
        label = np.array(
            [puzzles.MAZE.index(c) + 1 if task == "maze" else int(c) + 1 for c in text],
            dtype=np.uint8,
        )
    except UserError as e:  # no path, no solution, or several
        why = str(e)
    return Trace(task, inputs, answers, np.array(halt), label, why)


# ---------------------------------------------------------------- the puzzle


def read_puzzle(word: str) -> str:
    """The text of a puzzle: the word itself, the file that it names, or standard input for '-'."""
    try:
        if word == "-":
            return sys.stdin.read()
        if os.path.exists(word):
            return Path(word).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(
            f"{word}: not a readable text file ({getattr(e, 'strerror', None) or 'not UTF-8'})"
        ) from None
    if "/" in word or re.search(r"\.[A-Za-z]\w*$", word):
        raise UserError(f"{word}: no such file")
    return word


def check_size(cfg: Config, side: int) -> None:
    """Raises UserError where this net cannot take a grid of this side."""
    fixed = [
        f"{key} = '{value}'"
        for key in ("mixer", "positions")
        if (value := getattr(cfg.model, key)) in ("mlp", "learned")
    ]
    if side != cfg.data.size and (fixed or cfg.data.task == "sudoku"):
        raise UserError(
            f"the puzzle is {side}x{side}, this net solves {cfg.data.size}x{cfg.data.size}"
            + (f" only: with {fixed[0]} its weights belong to one size" if fixed else "")
        )
    if not 2 <= side <= puzzles.MAX_SIDE:
        raise UserError(
            f"the puzzle is {side}x{side}, expected 2 to {puzzles.MAX_SIDE} cells per side"
        )


def parse(cfg: Config, text: str) -> np.ndarray:
    """The tokens (L,) of a puzzle. Raises UserError for another task's puzzle, a malformed one, a size the net cannot take."""
    task, lines = cfg.data.task, text.strip("\r\n").splitlines()
    looks = (
        "maze" if set("#SGo") & set(text) else "sudoku" if set("123456789") & set(text) else task
    )
    if looks != task or not text.strip():
        raise UserError(
            f"the puzzle {'looks like a ' + looks if text.strip() else 'is empty'}, but this net was trained on {task} puzzles: expected "
            + {
                "maze": "'#' wall, space free, one S, one G",
                "sudoku": "digits, '.' or 0 for blanks",
            }[task]
        )
    cells = len("".join(text.split()) if task == "sudoku" else "".join(lines))
    if task == "maze" and len(lines) > 1:
        side = max(len(lines), *map(len, lines))  # trailing spaces may be lost
    else:
        side = math.isqrt(cells) if math.isqrt(cells) ** 2 == cells else cfg.data.size
    check_size(cfg, side)
    return data.encode(task, text, side)


def draw_puzzle(cfg: Config, seed: int, size: int = 0, count: int = 1) -> tuple[np.ndarray, str]:
    """A puzzle like those of the run's test split and a few words about it. Of `count` new ones: the one with most cells to find."""
    d = replace(cfg.data, size=size or cfg.data.size)
    if os.path.exists(d.test_path) and not size:
        rows = data.read_csv(d.test_path, d.task, d.size)[0]
        return rows[seed % len(rows)], f"row {seed % len(rows) + 1} of {Path(d.test_path).name}"
    check_size(cfg, d.size)
    if d.task == "maze" and d.walls == "perfect" and d.size % 2 == 0:
        raise UserError(f"--size {d.size}: a perfect maze has an odd number of cells per side")
    g = data.rng(seed, data.TEST, 1)  # no split draws from this stream
    inputs, labels = (data.generate_mazes if d.task == "maze" else data.generate_sudokus)(
        d, count, g, d.size
    )
    most = (inputs != labels).sum(1).argmax()
    kind = f"{d.walls} walls" if d.task == "maze" else f"{(inputs[most] > 1).sum()} givens"
    which = (
        "new"
        if count == 1
        else f"the {'longest path' if d.task == 'maze' else 'fewest givens'} of {count} new ones"
    )
    return inputs[most], f"{which} ({kind}, seed {seed})"


# ---------------------------------------------------------------- in the terminal


def grid_lines(task: str, tokens: np.ndarray) -> list[str]:
    """A grid as lines to read; cells are two characters wide, so that they look square."""
    side = math.isqrt(len(tokens))
    rows = [data.decode(task, row) for row in tokens.reshape(side, side)]
    if task == "maze":
        wall = "\u2588\u2588" if "utf" in (sys.stdout.encoding or "").lower() else "##"
        rows = [
            "|" + "".join({"#": wall, "o": "oo"}.get(c, c + " ") for c in row) + "|" for row in rows
        ]
        return ["+" + "--" * side + "+", *rows, "+" + "--" * side + "+"]
    height, width = data.BOX[side]
    lines = [
        "| ".join("".join(c + " " for c in row[k : k + width]) for k in range(0, side, width))
        for row in rows
    ]
    for k in range(side - height, 0, -height):
        lines.insert(k, "+-".join("--" * width for _ in range(side // width)))
    return lines


def report(t: Trace) -> str:
    """What one wants to know about the answers, in a few lines."""
    last, rules = (
        len(t.answers),
        {k: v[0] for k, v in data.check(t.task, t.inputs[None], t.answers[-1:]).items()},
    )
    if t.task == "sudoku":
        says = (
            "kept: the givens stand, every row, column and box holds every digit"
            if rules["valid"]
            else "broken: a given was changed, or a row, column or box lacks a digit"
        )
    else:
        says = (
            "broken: the cells marked o are not one path from S to G"
            if not rules["valid"]
            else "kept: one path from S to G, "
            + ("and none is shorter" if rules["optimal"] else "but a shorter one exists")
        )
    wrong = [t.wrong(k + 1).sum() for k in range(last)]
    label = (
        f"unknown: {t.why}"
        if t.label is None
        else f"right in all {len(t.inputs)} cells"
        if not wrong[-1]
        else f"wrong in {wrong[-1]} of {len(t.inputs)} cells"
    )
    stop = next((k + 1 for k in range(last) if t.halt[k] > 0.5), 0)
    halting = f"would stop after step {stop}, where the answer was {'the same' if (t.answers[stop - 1] == t.answers[-1]).all() else 'another one'}"
    rows = {
        "step": [f"{k + 1:6d}" for k in range(last)],
        "halt": [f"{p:6.2f}" for p in t.halt],
        "changed": [f"{(a != b).sum():6d}" for a, b in zip(t.answers, [t.inputs, *t.answers])],
    }
    if t.label is not None:
        rows["wrong"] = [f"{w:6d}" for w in wrong]
    question, answer = grid_lines(t.task, t.inputs), grid_lines(t.task, t.answers[-1])
    beside = len(question[0]) < 50
    return "\n".join(
        [
            "",
            *(f"        {q}    {a}" if beside else a for q, a in zip(question, answer)),
            "",
            f"rules   {says}",
            f"label   {label}",
            f"steps   {last} used; halting at a probability above 0.5 {halting if stop else 'would have used all of them'}",
            *(
                f"{name:8}" + "".join(row[at : at + 16])
                for at in range(0, last, 16)
                for name, row in rows.items()
            ),
        ]
    )


# ---------------------------------------------------------------- pictures

BLUE, GREEN, RED, PURPLE, SKY, GREY = (
    "#0072B2",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#444444",
)  # Okabe-Ito, and a grey
CELLS = {  # task -> what a cell can be -> its fill, and the legend's word where it needs one
    "maze": {
        "free": ("white", ""),
        "wall": (GREY, ""),
        "start": (GREEN, ""),
        "goal": (PURPLE, ""),
        "path": (BLUE, "path"),
        "new": (SKY, "path, new in this step"),
        "stray": (RED, "\u00d7 wrong"),
        "missing": ("white", "\u2022 path still missing"),
    },
    "sudoku": {
        "blank": ("white", ""),
        "given": ("white", ""),
        "digit": ("white", ""),
        "new": ("#d5ebf8", "new or changed in this step"),
        "wrong": ("#f8d5c2", "wrong"),
    },
}


def kinds(t: Trace, step: int) -> np.ndarray:
    """(side, side) names of CELLS: the answer after `step` supervision steps; the question for 0."""
    side, asked, answer = (
        math.isqrt(len(t.inputs)),
        t.inputs,
        t.answers[step - 1] if step else t.inputs,
    )
    new = answer != (t.answers[step - 2] if step > 1 else asked)
    wrong = t.wrong(step) if step else new
    if t.task == "maze":
        cases = {
            "stray": wrong & ((asked != FREE) | (answer != FREE)),
            "missing": wrong,
            "start": asked == START,
            "goal": asked == GOAL,
            "wall": asked == WALL,
            "new": new & (answer == PATH),
            "path": answer == PATH,
        }
    else:
        cases = {"wrong": wrong, "given": asked > 1, "new": new, "blank": answer == 1}
    return np.select(
        list(cases.values()), list(cases), "free" if t.task == "maze" else "digit"
    ).reshape(side, side)


def draw_grid(ax, t: Trace, step: int, inches: float) -> None:
    """The answer after `step` supervision steps (0: the question) into axes of about `inches` width."""
    kind = kinds(t, step)
    side, answer = len(kind), t.answers[step - 1] if step else t.inputs
    size = inches * 72 / side  # points per cell
    ax.imshow([[to_rgb(CELLS[t.task][k][0]) for k in row] for row in kind], interpolation="nearest")
    ax.set(xticks=[], yticks=[], xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5))
    middle = dict(ha="center", va="center_baseline")
    for (r, c), name in np.ndenumerate(kind):
        if name in ("start", "goal"):
            ax.text(
                c, r, name[0].upper(), color="white", weight="bold", fontsize=0.72 * size, **middle
            )
        elif name == "stray":
            ax.plot(c, r, "x", color="white", ms=0.42 * size, mew=0.1 * size)
        elif name == "missing":
            ax.plot(c, r, "o", color=BLUE, alpha=0.55, ms=0.26 * size, mew=0)
        elif t.task == "sudoku" and answer[r * side + c] != 1:
            ax.text(
                c,
                r,
                data.decode("sudoku", answer[[r * side + c]]),
                fontsize=0.6 * size,
                weight="bold" if t.inputs[r * side + c] > 1 else "normal",
                color={"given": "black", "wrong": RED}.get(name, BLUE),
                **middle,
            )
    for k in range(side + 1) if t.task == "sudoku" else ():
        for line, box in (ax.axhline, data.BOX[side][0]), (ax.axvline, data.BOX[side][1]):
            line(
                k - 0.5,
                color="#aaaaaa" if k % box else "black",
                lw=(0.02 if k % box else 0.05) * size,
                zorder=1 if k % box else 2,
            )
    ax.spines[:].set(color=GREY, linewidth=1.2)


def caption(t: Trace, step: int) -> str:
    if not step or t.label is None:
        return f"step {step}" if step else "question"
    wrong = int(t.wrong(step).sum())
    return f"step {step}: " + (f"{wrong} cell{'s' * (wrong > 1)} wrong" if wrong else "right")


def draw_steps(fig, t: Trace, steps, cols: int, inches: float, halting: bool) -> None:
    """Panels of the answer after each of `steps` into a figure, with a legend of what occurs in them."""
    axes = fig.subplots(-(-len(steps) // cols), cols, squeeze=False).ravel()
    for ax in axes[len(steps) :]:
        ax.set_axis_off()
    for ax, step in zip(axes, steps):
        draw_grid(ax, t, step, inches)
        ax.set_title(caption(t, step), fontsize=11)
        if step and halting:
            ax.set_xlabel(
                f"halting probability {t.halt[step - 1]:.2f}", fontsize=9, color="#555555"
            )
    seen = set(np.concatenate([kinds(t, step).ravel() for step in steps]))
    patches = [
        Patch(facecolor=c, edgecolor="#999999", label=word)
        for k, (c, word) in CELLS[t.task].items()
        if word and k in seen
    ]
    fig.legend(handles=patches, loc="outside lower center", ncols=4, frameon=False, fontsize=10)


def picture(t: Trace, path: Path) -> None:
    """The question and the answer after every supervision step, side by side."""
    panels = range(len(t.answers) + 1)
    cols, inches = min(len(panels), 6), 2.3
    fig = Figure(
        figsize=(cols * (inches + 0.15), -(-len(panels) // cols) * (inches + 0.6) + 0.4),
        layout="constrained",
        dpi=130,
    )
    draw_steps(fig, t, panels, cols, inches, halting=True)
    fig.savefig(path)


def animate(t: Trace, path: Path) -> None:
    """A frame per supervision step; the question and the last answer stay longer."""
    inches, last = 4.6, len(t.answers)
    fig = Figure(figsize=(inches + 0.2, inches + 0.55))
    ax = fig.add_axes((0.02, 0.02, 0.96, 0.96 * (inches + 0.2) / (inches + 0.55)))
    writer = PillowWriter(fps=2)
    with writer.saving(fig, str(path), dpi=100):
        for step in [0, 0, *range(1, last + 1), last, last, last]:
            ax.clear()
            draw_grid(ax, t, step, inches)
            ax.set_title(
                caption(t, step)
                + (f", halting probability {t.halt[step - 1]:.2f}" if step else ""),
                fontsize=12,
            )
            writer.grab_frame()


def hero(t: Trace, summary: dict, source: str, path: Path) -> None:
    """The picture for a README: one puzzle solved step by step, and beside it exact accuracy on the test split per step."""
    curve, copy = 100 * np.array(summary["test"]["curve"]), 100 * summary["baseline"]["exact"]
    cols, inches = 3, 2.35
    fig = Figure(
        figsize=(cols * (inches + 0.15) + 4.4, 2 * (inches + 0.35) + 0.75),
        layout="constrained",
        dpi=150,
    )
    left, right = fig.subfigures(1, 2, width_ratios=(cols * (inches + 0.15), 4.4))
    draw_steps(
        left,
        t,
        sorted({0, *range(1, min(len(t.answers), 4) + 1), len(t.answers)}),
        cols,
        inches,
        halting=False,
    )
    ax, x = right.subplots(), np.arange(1, len(curve) + 1)
    ax.plot(x, curve, color=BLUE, marker="o", lw=2, ms=7, label="the net")
    for k in sorted({0, min(1, len(curve) - 1), len(curve) - 1}):
        end = k == len(curve) - 1
        ax.annotate(
            f"{curve[k]:.1f} %",
            (x[k], curve[k]),
            xytext=(0, 9) if end else (9, -5),
            textcoords="offset points",
            ha="center" if end else "left",
            color=BLUE,
        )
    ax.axhline(copy, color="#777777", ls="--", lw=1.2, label=f"copying the question: {copy:.0f} %")
    ax.set(
        xlabel="supervision step",
        ylabel="test puzzles solved exactly (%)",
        ylim=(-4, 109),
        xticks=x[:: -(-len(x) // 8)],
        yticks=range(0, 101, 20),
    )
    ax.set_title(
        f"{summary['test']['n']:,} test puzzles, {summary['parameters']:,} parameters", fontsize=11
    )
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#e5e5e5")
    ax.legend(loc="lower right", bbox_to_anchor=(1, 0.06), frameon=False)
    side = math.isqrt(len(t.inputs))
    fig.suptitle(
        f"The answer y after each supervision step. {t.task.capitalize()} {side}x{side}: {source}",
        fontsize=12,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path)


# ---------------------------------------------------------------- the command


def command_line(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("solve.py", __doc__)
    parser.add_argument("run", type=Path, help="a run folder, or a best.pt")
    parser.add_argument(
        "puzzle",
        nargs="?",
        help="the puzzle in quotes, a file that holds it, or - for standard input; left out: a new one",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=0,
        help="supervision steps (default: as in the run's evaluation, more for larger mazes)",
    )
    parser.add_argument(
        "--out", type=Path, help="folder for solved.png and solved.gif (default: the run folder)"
    )
    parser.add_argument("--seed", type=int, default=0, help="which new puzzle (default: 0)")
    parser.add_argument(
        "--size", type=int, default=0, help="side of the new maze (default: as in training)"
    )
    parser.add_argument(
        "--picture",
        type=Path,
        help="write one PNG only: a puzzle step by step, beside it the test accuracy per step",
    )
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(
            f"unexpected {unknown[0]!r}"
            + ("" if unknown[0].startswith("-") else ", put the puzzle in quotes")
        )
    if min(args.steps, args.seed, args.size) < 0:
        parser.error("--steps, --seed and --size are 0 or more")
    return args


def run(args: argparse.Namespace) -> None:
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    cfg, net, state = load_run(args.run, device)
    if cfg.data.task not in ("maze", "sudoku"):
        raise UserError(
            f"{args.run}: a run of data.task = {cfg.data.task!r}, expected a puzzle to draw, 'maze' or 'sudoku'"
        )
    folder = args.run if args.run.is_dir() else args.run.parent
    if args.puzzle is None:
        inputs, source = draw_puzzle(cfg, args.seed, args.size, count=64 if args.picture else 1)
    else:
        inputs, source = parse(cfg, read_puzzle(args.puzzle)), "yours"
    side, steps = math.isqrt(len(inputs)), cfg.eval_steps
    t = solve(
        cfg, net, inputs, args.steps or max(steps, -(-steps * side // cfg.data.size))
    )  # farther to go, more steps
    if args.picture:
        try:
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserError(
                f"{folder}/summary.json: missing or unreadable; --picture needs a finished run"
            ) from None
        hero(t, summary, source, args.picture)
        print(f"wrote   {args.picture}")
        return
    print(
        f"run     {folder}: {sum(p.numel() for p in net.parameters()):,} parameters, {'EMA' if state['ema'] else 'raw'} weights of step "
        f"{state['step']}, {100 * state['val']['exact']:.1f} % exact on validation, computed on {device.type}"
    )
    print(f"puzzle  {t.task} {side}x{side}, {source}\n{report(t)}")
    out = args.out or folder
    out.mkdir(parents=True, exist_ok=True)
    picture(t, out / "solved.png")
    animate(t, out / "solved.gif")
    print(f"wrote   {out}/solved.png and {out}/solved.gif")


def main(argv: list[str] | None = None) -> int:
    try:
        run(command_line(argv))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
    except OSError as e:
        print(
            f"error: cannot write {e.filename or 'the pictures'} ({e.strerror or e})",
            file=sys.stderr,
        )
    else:
        return 0
    return 2


if __name__ == "__main__":
    sys.exit(main())
