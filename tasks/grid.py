"""Task `grid`: any puzzle whose question and answer are strings of one length, from CSV files.

Alphabet and length come from the training file: tokens are the characters that occur in it, in
sorted order. The cells are a grid if the length is a square, or if `size` says rows x columns.
No rules are known and nothing is augmented. Without files it is 5x5 Lights Out: see `lights_out`.
"""

import copy
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from config import UserError
from tasks.base import TEST, Dataset, RowsConfig, Split, Task, fingerprint, rng
from tasks.files import read_rows


@dataclass(frozen=True)
class GridConfig(RowsConfig):
    task: str = "grid"  # the kind of problem
    size: str = ""  # rows x columns of the grid, like "5x7"; empty: a square, or a line of cells
    presses: int = 5  # generated Lights Out: most presses that made a question

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.size and not re.fullmatch(r"[1-9]\d{0,2}x[1-9]\d{0,2}", self.size):
            yield "size", 'rows x columns, like "5x7"'
        if bool(self.train_path) != bool(self.test_path):
            key = "test_path" if self.train_path else "train_path"
            yield key, "a file, as the other path names one"
        if not 1 <= self.presses <= LAMPS:
            yield "presses", f"1 to {LAMPS}"


class Grid(Task):
    name = "grid"
    title = "Grids"
    Config = GridConfig
    figures = ("exact", "cells")
    alphabet = ""  # of a run: see `bound`
    shape_of_run: dict = {}

    def bound(self, shape: dict) -> "Grid":
        """This task as a trained net knows it."""
        own = copy.copy(self)
        own.alphabet, own.shape_of_run = shape["alphabet"], shape
        return own

    # ------------------------------------------------------------ data

    def load(self, cfg) -> Dataset:
        return self.bound(self.checked_shape(cfg)).load_bound(cfg)

    def load_bound(self, cfg) -> Dataset:
        dataset = super().load(cfg)
        dataset.card["alphabet"] = self.alphabet
        return dataset

    def checked_shape(self, cfg) -> dict:
        """The shape. Raises UserError where the net needs a grid that the cells are not."""
        data, model = cfg.data, cfg.model
        alphabet, length = read_alphabet(data)
        rows, cols = sides(data.size, length)
        if data.size and rows * cols != length:
            where = data.train_path or "Lights Out"
            raise UserError(f"data.size = {data.size!r}, but {where} has {length} cells")
        square = rows == cols
        flat = "conv" in model.mixer or model.positions == "rope2d"
        needs_square = model.mixer in ("pool", "groups")
        if (flat and rows == 1) or (needs_square and not square):
            key = "positions" if model.positions == "rope2d" else "mixer"
            need = "a square" if needs_square else "a grid"
            raise UserError(
                f"model.{key} = {getattr(model, key)!r} needs {need}, but the puzzles have "
                f"{length} cells, {rows}x{cols}; expected another {key}, or another data.size"
            )
        shape = {"seq_len": length, "vocab_size": 1 + len(alphabet), "alphabet": alphabet}
        return shape | ({} if square else {"rows": rows, "cols": cols})

    def shape(self, cfg) -> dict:
        return self.shape_of_run or self.checked_shape(cfg)

    def tokens(self, data, split: str, texts: list[str], where, answer: bool) -> np.ndarray:
        length = self.shape_of_run["seq_len"]
        token = {char: at for at, char in enumerate(self.alphabet, 1)}
        for row, text in enumerate(texts):
            if len(text) != length:
                raise UserError(f"{where(row)} has {len(text)} cells, expected {length}")
            for at, char in enumerate(text, 1):
                if char not in token:
                    raise UserError(
                        f"{where(row)} has {char!r} at position {at}, "
                        f"expected one of {self.alphabet!r}"
                    )
        return np.array([[token[char] for char in text] for text in texts], np.uint8)

    def generate(self, data, split: str, rows: int, g, avoid) -> tuple[Split, str]:
        words = f"generated 5x5 Lights Out, at most {data.presses} presses"
        return lights_out(rows, data.presses, g, np.asarray(avoid, np.uint64)), words

    # ------------------------------------------------------------ one puzzle, for solve.py

    def sides(self, data, length: int) -> tuple[int, int]:
        return sides(data.size, length)

    def text(self, data, tokens: np.ndarray) -> str:
        return "".join(("?" + self.alphabet)[token] for token in tokens)

    def parse(self, cfg, text: str) -> np.ndarray:
        length = self.shape_of_run["seq_len"]
        cells = text if len(text) == length else "".join(text.splitlines())
        return self.tokens(cfg.data, "test", [cells], lambda row: "the puzzle", False)[0]

    def draw_puzzle(self, cfg, seed: int, size: int, count: int) -> tuple[np.ndarray, str]:
        if cfg.data.test_path or size:
            return super().draw_puzzle(cfg, seed, size, count)
        rows = lights_out(count, cfg.data.presses, rng(seed, TEST, 1))
        most = (rows.labels > 1).sum(1).argmax()
        return rows.inputs[most], f"new, {(rows.labels[most] > 1).sum()} presses, seed {seed}"


def sides(size: str, length: int) -> tuple[int, int]:
    """(rows, columns) of so many cells; (1, length) where they are no grid."""
    if size:
        rows, cols = map(int, size.split("x"))
        return rows, cols
    side = math.isqrt(length)
    return (side, side) if side * side == length else (1, length)


@lru_cache(maxsize=4)
def read_alphabet(data: GridConfig) -> tuple[str, int]:
    """The characters of the training file, sorted, and the length of its first question."""
    if not data.train_path:
        return "01", LAMPS
    seen, lengths = set(), []

    def collect(texts: list[str], where, answer: bool) -> np.ndarray:
        seen.update(*texts)
        lengths.append(len(texts[0]))
        return np.zeros(len(texts))

    read_rows(data.train_path, collect, "expected a CSV with the columns question and answer")
    if not lengths[0] or len(seen) > 254:
        raise UserError(
            f"{data.train_path}: {lengths[0]} cells of {len(seen)} characters, "
            "expected 1 cell or more and at most 254 characters"
        )
    return "".join(sorted(seen)), lengths[0]


# ---------------------------------------------------------------- Lights Out

SIDE, LAMPS = 5, 25


def effects() -> np.ndarray:
    """(25, 25) bool: row i says which lamps the button i toggles, itself and its neighbours."""
    row, col = np.divmod(np.arange(LAMPS), SIDE)
    return np.abs(row[:, None] - row) + np.abs(col[:, None] - col) <= 1


def silent() -> np.ndarray:
    """(4, 25) bool: the sets of buttons that together change nothing."""
    top = np.arange(2**SIDE)[:, None] >> np.arange(SIDE) & 1 > 0  # every way to press the first row
    presses = np.zeros((len(top), SIDE, SIDE), bool)
    presses[:, 0] = top
    for row in range(1, SIDE):  # the next row must put out what is still on above it
        presses[:, row] = lamps(presses)[:, row - 1]
    return presses[~lamps(presses).any((1, 2))].reshape(-1, LAMPS)


def lamps(presses: np.ndarray) -> np.ndarray:
    """(N, 5, 5) presses -> the lamps that they leave on, all being off before."""
    count = presses.reshape(len(presses), -1).astype(int) @ effects()
    return (count % 2 > 0).reshape(presses.shape)


def lights_out(count: int, most: int, g: np.random.Generator, avoid: np.ndarray = ()) -> Split:
    """Questions and answers (N, 25) of 5x5 Lights Out, tokens 1 for "0" and 2 for "1".

    A button toggles its lamp and the neighbours. The question is the lamps after 1 to `most`
    random presses; the answer is the fewest presses that put them out. Questions differ from
    one another. avoid: fingerprints of questions not to draw. Raises UserError where there are
    not so many.
    """
    inputs, labels = np.zeros((0, LAMPS), np.uint8), np.zeros((0, LAMPS), np.uint8)
    for _ in range(100):
        # The rank of each button in a random order: those below a random number are pressed.
        rank = g.random((2 * count + 16, LAMPS)).argsort(1).argsort(1)
        presses = rank < g.integers(1, most + 1, (len(rank), 1))
        same = presses[:, None] ^ silent()  # (N, 4, 25): all that put out the same lamps
        fewest = same.sum(2).argmin(1)  # the first one, where several are equal
        answers = same[np.arange(len(same)), fewest]
        lit = lamps(answers.reshape(-1, SIDE, SIDE)).reshape(-1, LAMPS)
        inputs = np.concatenate([inputs, 1 + lit.astype(np.uint8)])
        labels = np.concatenate([labels, 1 + answers.astype(np.uint8)])
        first = np.sort(np.unique(inputs, axis=0, return_index=True)[1])
        first = first[~np.isin(fingerprint(inputs[first]), avoid)]
        if len(first) >= count:
            return Split(inputs[first[:count]], labels[first[:count]])
        inputs, labels = inputs[first], labels[first]
    raise UserError(
        f"data.presses = {most}: there are no {count} different questions, ask for fewer"
    )
