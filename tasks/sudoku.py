"""Task `sudoku`: 4x4, 6x6 and 9x9, generated with one solution each, or from files.

The puzzles themselves, their solver and generator are in tasks/puzzles.py, a net with a state
for every cell and digit is in tasks/digits.py.
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from config import UserError
from tasks.base import (
    BLUE,
    MIDDLE,
    RED,
    REDRAW,
    TEST,
    Dataset,
    RowsConfig,
    Split,
    Task,
    hardest_first,
    rng,
)
from tasks.files import read_folder
from tasks.puzzles import (
    BOX,
    LEAST_GIVENS,
    check,
    decode,
    encode,
    generate_sudokus,
    givens_range,
    other_solutions,
    redraw_sudokus,
    shuffle_lines,
    shuffle_sudoku,
    solve_sudoku,
    sudoku_keys,
    to_tokens,
)
from tasks.text import sudokus as read_text


@dataclass(frozen=True)
class SudokuConfig(RowsConfig):
    task: str = "sudoku"  # the kind of problem
    size: int = 9  # side of the grid: 4, 6 or 9
    givens_min: int = 0  # fewest clues of a generated Sudoku; 0: 6 (4x4), 14 (6x6), 36 (9x9)
    givens_max: int = 0  # most clues of a generated Sudoku; 0: 10 (4x4), 18 (6x6), 45 (9x9)
    augment: bool = True  # every draw under a random element of the full symmetry group
    # with augment: further copies of every training row, with other clues of the same solution
    redraw: int = 0
    # the copies get solutions of their own: each has one digit of the copy before changed, and all
    # that follows from it
    redraw_solutions: bool = False
    # share of training draws that show a random part of their blanks' answers: easier puzzles
    reveal: float = 0.0

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        for key in ("givens_min", "givens_max", "redraw"):
            if getattr(self, key) < 0:
                yield key, "0 or more"
        if self.size not in BOX:
            yield "size", "4, 6 or 9 cells per side of a Sudoku"
        else:
            (low, high), least = givens_range(self), LEAST_GIVENS[self.size]
            if not (low <= high <= self.size**2 and high >= least):
                key = "givens_max" if self.givens_max else "givens_min"
                most = f"and the most from {least} to {self.size**2}"
                yield key, f"fewest clues ({low}) <= most clues ({high}), {most}"
        if self.redraw > 0 and not self.augment:
            yield "redraw", "0 with data.augment = false: it is an augmentation"
        if self.redraw_solutions and not self.redraw:
            yield "redraw_solutions", "false with data.redraw = 0: there are no copies"
        if not 0 <= self.reveal <= 1:
            yield "reveal", "a share, 0 to 1"

    def without_copies(self) -> "SudokuConfig":
        return replace(self, augment=False, redraw=0, redraw_solutions=False)


@dataclass
class SudokuData(Dataset):
    # (N, 1 + redraw, L): every training row and its redrawn copies
    variants: Split | None = None


class Sudoku(Task):
    name = "sudoku"
    title = "Sudoku"
    Config = SudokuConfig
    proves = True

    def model_config(self) -> type:
        from tasks.digits import SudokuModel

        return SudokuModel

    def advice(self) -> str:
        return "`python data.py download sudoku_extreme` fetches the real files"

    # ------------------------------------------------------------ data

    def card(self, data) -> dict:
        return {"task": self.name, "size": data.size, "augmentation": "none"}

    def finish(self, cfg, train, val: Split, test: Split, card: dict) -> SudokuData:
        data = cfg.data
        if data.augment:
            rows, cols = BOX[data.size]
            transpose = ", transpose" if rows == cols else ""
            card["augmentation"] = (
                f"permutations of digits, rows, columns, bands, stacks{transpose}"
            )
        if data.reveal:
            share = f"{data.reveal:.0%} of the training draws"
            card["reveal"] = f"{share} show a random part of their blanks"
        made = SudokuData(**vars(super().finish(cfg, train, val, test, card)))
        if data.redraw:
            held_out = np.union1d(self.keys(val), self.keys(test))
            made.variants = self.redraw(data, train, held_out, card)
        return made

    def redraw(self, data, train: Split, held_out: np.ndarray, card: dict) -> Split:
        """Every training row and its copies. A copy that is held out is the row itself."""
        copies, answers, refused = [train.inputs], [train.labels], 0
        inputs, labels = train.inputs, train.labels
        for copy in range(1, 1 + data.redraw):
            g = rng(data.seed, REDRAW, copy)
            if data.redraw_solutions:
                inputs, labels = other_solutions(inputs, labels, g)
            else:
                inputs = train.inputs
            inputs = redraw_sudokus(inputs, labels, g)
            known = np.isin(sudoku_keys(inputs, labels), held_out)
            copies.append(np.where(known[:, None], train.inputs, inputs))
            answers.append(np.where(known[:, None], train.labels, labels))
            refused += int(known.sum())
        made = Split(np.stack(copies, 1), np.stack(answers, 1))
        unchanged = int((made.inputs[:, 1:] == made.inputs[:, :1]).all(2).sum())
        of = f"of {data.redraw * len(train)} copies"
        kind = "other solutions" if data.redraw_solutions else "other clues of the same solution"
        card["augmentation"] += f"; of each {data.redraw} copies with {kind}"
        card["redraw_held_out"] = f"{refused} {of}"
        card["redraw_unchanged"] = f"{unchanged} {of}"
        return made

    def no_file(self, split: str) -> str:
        return (
            f"data.{split}_path is empty: `python data.py download sudoku_extreme` fetches "
            "data/sudoku_extreme_train.csv and data/sudoku_extreme_test.csv for --data.train_path "
            "and --data.test_path; or take generated puzzles with --data.generate=true"
        )

    def read(self, path: str, data, split: str) -> tuple[np.ndarray, np.ndarray]:
        if os.path.isdir(path):
            least, most = (1, 2), (data.size + 1, data.size + 1)  # 1 is a blank
            return read_folder(path, split, data.size, least, most)
        return super().read(path, data, split)

    def tokens(self, data, split: str, texts: list[str], where, answer: bool) -> np.ndarray:
        return to_tokens("sudoku", texts, data.size, where, answer)

    def check_rows(self, data, rows: Split, where) -> None:
        self.refuse_changed(data, rows, rows.inputs == 1, where)
        bad = np.flatnonzero(~check("sudoku", rows.inputs, rows.labels)["valid"])
        if bad.size:
            raise UserError(f"{where(bad[0])} the answer has a digit twice in a row, column or box")

    def generate(self, data, split: str, rows: int, g, avoid) -> tuple[Split, str]:
        inputs, labels = generate_sudokus(data, rows, g, data.size, avoid)
        return Split(inputs, labels), f"generated {data.size}x{data.size}, one solution each"

    def keys(self, rows: Split) -> np.ndarray:
        return sudoku_keys(rows.inputs, rows.labels)[:, None]

    def augment(self, dataset: SudokuData, data, row, g) -> tuple[np.ndarray, np.ndarray]:
        inputs, labels = super().augment(dataset, data, row, g)
        if dataset.variants is not None:
            pick = g.integers(1 + data.redraw, size=len(row))
            inputs, labels = dataset.variants.inputs[row, pick], dataset.variants.labels[row, pick]
        if data.augment:
            inputs, labels = shuffle_sudoku(inputs, labels, g)
        if data.reveal:
            part = g.random(inputs.shape)
            most = g.random(len(row)) * (g.random(len(row)) < data.reveal)  # (B,)
            inputs = np.where(part < most[:, None], labels, inputs)
        return inputs, labels

    # ------------------------------------------------------------ the net

    def shape(self, cfg) -> dict:
        side = cfg.data.size
        rows, cols = BOX[side]
        cells = {"seq_len": side**2, "vocab_size": side + 2}
        return cells | {"box_rows": rows, "box_cols": cols}

    def make_net(self, cfg, shape: dict, compute):
        from model import Shape
        from tasks.digits import DigitNet

        if cfg.model.per_digit:
            return DigitNet(cfg.model, Shape.of(shape), compute)
        return super().make_net(cfg, shape, compute)

    def score(self, inputs: np.ndarray, answers: np.ndarray) -> dict[str, np.ndarray]:
        return check("sudoku", inputs, answers)

    # ------------------------------------------------------------ one Sudoku, for solve.py

    def parse(self, cfg, text: str) -> np.ndarray:
        return self.readings(cfg, text)[0][0]

    def readings(self, cfg, text: str) -> list[tuple[np.ndarray, str]]:
        side = cfg.data.size
        found = read_text(text, side)
        cells = len(found[0].text)
        other = math.isqrt(cells)
        if other**2 == cells and other != side:
            raise UserError(f"the puzzle is {other}x{other}, this net solves {side}x{side}")
        return [(encode("sudoku", one.text, side), one.understood) for one in found]

    def text(self, data, tokens: np.ndarray) -> str:
        return decode("sudoku", tokens)

    def draw_puzzle(self, cfg, seed: int, size: int, count: int) -> tuple[np.ndarray, str]:
        return self.draw_puzzles(cfg, seed, size, count)[0]

    def draw_puzzles(self, cfg, seed: int, size: int, count: int) -> list[tuple[np.ndarray, str]]:
        data = cfg.data
        if size not in (0, data.size):
            raise UserError(f"the puzzle is {size}x{size}, this net solves {data.size}x{data.size}")
        if not size and data.test_path and os.path.exists(data.test_path):
            return [self.row_of_file(data, seed + at) for at in range(count)]
        g = rng(seed, TEST, 1)  # no split draws from this stream
        inputs, labels = generate_sudokus(data, count, g, data.size)
        drawn = []
        for puzzle, which in hardest_first(inputs, labels, "the fewest givens"):
            drawn.append((puzzle, f"{which} ({(puzzle > 1).sum()} givens, seed {seed})"))
        return drawn

    def solution(self, data, inputs: np.ndarray) -> tuple[np.ndarray | None, str]:
        try:
            solved = solve_sudoku(decode("sudoku", inputs))
        except UserError as e:  # no solution, or several
            return None, str(e)
        return np.array([1 + int(digit) for digit in solved], np.uint8), ""

    def other_view(self, inputs: np.ndarray, g) -> tuple[np.ndarray, Callable, str]:
        side = math.isqrt(len(inputs))
        (row,), (col,) = (shuffle_lines(1, side, lines, g) for lines in BOX[side])
        place = np.arange(len(inputs)).reshape(side, side)[row][:, col].ravel()
        digit = np.concatenate([[0, 1], 2 + g.permutation(side)]).astype(np.uint8)
        back, meant = place.argsort(), digit.argsort().astype(np.uint8)
        words = "digits, rows and columns permuted"
        return digit[inputs[place]], lambda answers: meant[answers[:, back]], words

    def forbidden(self, inputs: np.ndarray, answer: np.ndarray) -> np.ndarray:
        return (answer != inputs) & ~((inputs == 1) & (answer > 1))

    def verdict(self, inputs: np.ndarray, answer: np.ndarray) -> str:
        if check("sudoku", inputs[None], answer[None])["valid"][0]:
            return "kept: the givens stand, every row, column and box holds every digit"
        return "broken: a given was changed, or a row, column or box lacks a digit"

    def lines(self, data, tokens: np.ndarray) -> list[str]:
        side, _ = self.sides(data, len(tokens))
        height, width = BOX[side]
        lines = []
        for at, row in enumerate(tokens.reshape(side, side)):
            if at and at % height == 0:
                lines.append("+-".join("--" * width for _ in range(side // width)))
            digits = decode("sudoku", row)
            parts = [digits[k : k + width] for k in range(0, side, width)]
            lines.append("| ".join("".join(f"{digit} " for digit in part) for part in parts))
        return lines

    def kinds(self, inputs, answer, before, wrong) -> np.ndarray:
        cases = {
            "wrong": wrong,
            "given": inputs > 1,
            "new": answer != before,
            "blank": answer == 1,
        }
        return np.select(list(cases.values()), list(cases), "filled")

    def decorate(self, ax, data, inputs, answer, kinds, size: float) -> None:
        side, _ = self.sides(data, len(inputs))
        for at in np.flatnonzero(answer != 1):
            digit = decode("sudoku", answer[[at]])
            colour = {"given": "black", "wrong": RED}.get(kinds[at], BLUE)
            weight = "bold" if inputs[at] > 1 else "normal"
            style = {"fontsize": 0.6 * size, "color": colour, "weight": weight}
            ax.text(at % side, at // side, digit, **style, **MIDDLE)
        for draw, box in zip((ax.axhline, ax.axvline), BOX[side]):
            for k in range(side + 1):
                inner = k % box > 0
                width, colour = (0.02, "#aaaaaa") if inner else (0.05, "black")
                draw(k - 0.5, color=colour, lw=width * size, zorder=1 if inner else 2)
