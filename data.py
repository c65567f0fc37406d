"""Puzzles as arrays: mazes and Sudoku from files or generated, their rules, symmetries, splits and batches.

A puzzle is a row of L = side * side tokens, read row by row; 0 is padding and never occurs in one.
    maze    '#' wall 1, ' ' free 2, 'S' start 3, 'G' goal 4, 'o' path 5 (answers only)            vocabulary 6
    sudoku  blank 1, digit d -> d + 1                                                             vocabulary side + 2

Everything random is a pure function of a key, rng(seed, stream, step, ...): a loader has no state, so nothing needs saving
to resume, and any number of ranks sees the batches that one process would see. numpy only; torch enters in `batches`.

    python data.py download maze_hard          fetch the real files into data/ (also: sudoku_extreme)
"""

import argparse
import contextlib
import csv
import gzip
import hashlib
import lzma
import math
import os
import sys
import urllib.request
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from http.client import HTTPException
from itertools import count as count_from
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np


class UserError(Exception):
    """Bad input: one clear sentence (where, what was found, what was expected). Programs print it and exit with code 2."""


@dataclass(frozen=True)
class DataConfig:
    task: Literal["maze", "sudoku"] = "maze"  # which puzzle
    size: int = 30  # side of the grid (Sudoku: 4, 6 or 9)
    train_path: str = ""  # CSV of training rows (.csv, .csv.gz, .csv.xz); empty: generated
    test_path: str = ""  # CSV of test rows; empty: generated
    generate: bool = True  # make puzzles offline where no path is given; false: insist on files
    walls: Literal["random", "perfect"] = "random"  # generated mazes: independent walls, or a random spanning tree (odd size)
    wall_min: float = 0.2  # random walls: least wall probability; each maze draws its own, uniformly
    wall_max: float = 0.5  # random walls: largest wall probability
    min_distance: int = 0  # least S-G distance of a generated maze in moves; 0 = size
    givens_min: int = 0  # fewest clues of a generated Sudoku; 0 = default (4x4: 6, 6x6: 14, 9x9: 36)
    givens_max: int = 0  # most clues of a generated Sudoku; 0 = default (4x4: 10, 6x6: 18, 9x9: 45)
    fresh: bool = False  # mazes: a new maze for every draw rather than train_rows fixed ones
    train_rows: int = 1000  # base puzzles before the validation split: generated, or drawn from the file; 0 = whole file
    val_rows: int = 0  # validation rows; 0 = 10 % of the training rows, at least 50, at most 512 (fresh: 512)
    test_rows: int = 0  # test rows; 0 = the whole file (generated: 512)
    test_size: int = 0  # side of the test mazes; 0 = size (a convolution transfers to other sizes)
    augment: bool = True  # mazes: turn and mirror the question, solve it again; Sudoku: the full symmetry group
    reveal: float = 0.0  # Sudoku: share of training draws that show a random part of their blanks' answers: easier puzzles beside the hard
    seed: int = 0  # of generation and split, not of training: all training seeds share validation and test


@dataclass
class Split:
    inputs: np.ndarray  # (N, L) uint8 questions
    labels: np.ndarray  # (N, L) uint8 answers
    side: int

    def __len__(self):
        return len(self.inputs)


@dataclass
class Dataset:
    train: Split | None  # None: a fresh maze for every draw
    val: Split
    test: Split
    card: dict  # what a run states about its data: sources, hashes, rows, augmentation, split, trivial baseline
    shape: dict  # what a model needs: seq_len, vocab_size, num_puzzles, box_rows, box_cols (0 for mazes)
    variants: Split | None = None  # (N, 8, L): turned and mirrored training mazes, each solved again
    held_out: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))  # fingerprints no fresh maze may have
    block: tuple = (None, None)  # the last block of fresh mazes, with its key: a cache, no state


WALL, FREE, START, GOAL, PATH = 1, 2, 3, 4, 5
MAZE = "# SGo"
BOX = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # side -> rows and columns of a box
GIVENS = {4: (6, 10), 6: (14, 18), 9: (36, 45)}  # default clues of generated ones
LEAST_GIVENS = {4: 4, 6: 8, 9: 17}  # no Sudoku with fewer has one solution
MAX_SIDE = 60  # a row of a maze, its rim and a shift must fit the bits of an int64
POPCOUNT = np.array([bin(mask).count("1") for mask in range(512)])  # digits in a mask of candidates
TEST, POOL, VAL, CUT, ORDER, AUGMENT, FRESH = range(7)  # streams: second number of every key


def rng(*key: int) -> np.random.Generator:
    """The random numbers of a key of non-negative integers; other keys are independent. Same bits on every machine."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


# --- text -----------------------------------------------------------------------------------------------------------


@lru_cache
def _table(task: str, side: int, answer: bool) -> np.ndarray:
    """(256,) uint8: character code -> token, 0 where the character may not occur."""
    table = np.zeros(256, np.uint8)
    for token, char in enumerate(MAZE if task == "maze" else "0123456789"[: side + 1], 1):
        table[ord(char)] = token
    if task == "maze" and not answer:
        table[ord("o")] = 0
    if task == "sudoku":
        table[ord("0")] = table[ord(".")] = 0 if answer else 1
    return table


def _tokens(task: str, texts: list[str], side: int, where: Callable[[int], str], answer: bool = False) -> np.ndarray:
    """N strings -> (N, L) uint8. `where(row)` begins the sentence about a bad row."""
    for row, text in enumerate(texts):
        if len(text) != side * side:
            root = math.isqrt(len(text))
            grid = f" ({root}x{root})" if root and root * root == len(text) else ""
            raise UserError(f"{where(row)} has {len(text)} cells{grid}, expected {side * side} ({side}x{side})")
    table = _table(task, side, answer)
    codes = np.frombuffer("".join(texts).encode("latin-1", "replace"), np.uint8)  # one byte per character, always
    tokens = table[codes].reshape(len(texts), side * side)
    if not tokens.all():
        row, at = np.argwhere(tokens == 0)[0]
        known = "".join(chr(c) for c in np.flatnonzero(table))
        raise UserError(f"{where(row)} has {texts[row][at]!r} at position {at + 1}, expected one of {known!r}")
    return tokens


def _check_ends(questions: np.ndarray, where: Callable[[int], str]):
    """Every maze has one S and one G."""
    for token, name in (START, "S"), (GOAL, "G"):
        found = (questions == token).sum(1)
        if (found != 1).any():
            row = np.flatnonzero(found != 1)[0]
            raise UserError(f"{where(row)} has {found[row]} cells {name}, expected exactly one")


def _flat(task: str, text: str) -> str:
    """The cells of a text of one or many lines; a maze gets back trailing spaces that an editor has cut off."""
    if task == "sudoku":
        return "".join(text.split())
    lines = text.splitlines()
    if max(map(len, lines), default=0) != len(lines):  # not a square: empty lines around it may be to blame
        lines = text.strip("\r\n").splitlines()
    return "".join(line.ljust(len(lines)) for line in lines)


def encode(task: str, text: str, size: int) -> np.ndarray:
    """A question of one or many lines as (L,) uint8 tokens; '.' and '0' are the blanks of a Sudoku, white space is ignored there.

    Raises UserError for a wrong length or character, a maze without S, with two G.
    """
    tokens = _tokens(task, [_flat(task, text)], size, lambda _: "the puzzle")
    if task == "maze":
        _check_ends(tokens, lambda _: "the puzzle")
    return tokens[0]


def decode(task: str, tokens: np.ndarray) -> str:
    """(L,) tokens -> L characters, row by row; '?' for padding, '.' for the blank of a Sudoku."""
    chars = "?" + (MAZE if task == "maze" else ".123456789")
    return "".join(chars[t] for t in np.asarray(tokens).tolist())


# --- mazes: rules and solvers ---------------------------------------------------------------------------------------

STEPS = np.array([(1, 0), (0, -1), (0, 1), (-1, 0)])  # down, left, right, up: the order of the label rule


def solve_maze(question: str) -> str:
    """The question with its path as 'o': the label rule of Maze-Hard, for a square maze of any size.

    Breadth-first search from S with a FIFO queue and the neighbours down, left, right, up, first visit keeps its parent:
    the lexicographically smallest shortest path with D < L < R < U. Reproduces all 2000 labels of Maze-Hard.
    Raises UserError for a malformed maze or a G that cannot be reached. Line breaks are dropped.
    """
    side = math.isqrt(len(_flat("maze", question)))
    cells = list(decode("maze", encode("maze", question, side)))
    start, goal = cells.index("S"), cells.index("G")
    parent, queue = {start: start}, deque([start])
    while queue and goal not in parent:
        here = queue.popleft()
        row, col = divmod(here, side)
        for down, right in STEPS.tolist():
            there = here + down * side + right
            if 0 <= row + down < side and 0 <= col + right < side and cells[there] != "#" and there not in parent:
                parent[there] = here
                queue.append(there)
    if goal not in parent:
        raise UserError("the puzzle has no path from S to G")
    here = parent[goal]
    while here != start:
        cells[here] = "o"
        here = parent[here]
    return "".join(cells)


def _bits(mask: np.ndarray) -> np.ndarray:
    """(N, S, S) bool -> (S + 2, N) int64: a word per row of a maze, column c in bit c + 1, with a rim of zeros."""
    if mask.shape[1] > MAX_SIDE:
        raise UserError(f"a maze of {mask.shape[1]}x{mask.shape[1]} cells is too large, at most {MAX_SIDE}x{MAX_SIDE}")
    packed = np.zeros(mask.shape[:2] + (8,), np.uint8)
    packed[..., : (mask.shape[2] + 7) // 8] = np.packbits(mask, axis=2, bitorder="little")
    words = np.zeros((mask.shape[1] + 2, len(mask)), np.int64)
    words[1:-1] = packed.view("<i8")[..., 0].T << 1
    return words


def _flood(open_: np.ndarray, start: np.ndarray, goal: np.ndarray):
    """Breadth-first waves from G in N mazes at once, a row of cells per machine word.

    open_ (N, S, S) bool, start and goal (N,) cell numbers. Returns moves (N,), -1 where S is not reached, and planes
    (3, S + 2, N): planes[k] holds the cells whose distance is k modulo 3. That is all a walk to G needs, since
    neighbouring cells differ by exactly one.
    """
    side, live = open_.shape[1], np.arange(len(open_))
    todo = _bits(open_)  # cells no wave has reached
    front = np.zeros_like(todo)
    front[goal // side + 1, live] = 1 << (goal % side + 1)
    todo &= ~front
    moves = np.full(len(open_), -1)
    planes = np.zeros((3,) + todo.shape, np.int64)
    seen, row, col = planes.copy(), start // side + 1, start % side + 1
    for distance in count_from():
        seen[distance % 3] |= front
        there = front[row[live], np.arange(live.size)] >> col[live] & 1 > 0
        moves[live[there]] = distance
        if distance % 8 == 0 or live.size < 512:  # finished mazes leave
            going = (moves[live] < 0) & front.any(0)
            planes[:, :, live[~going]] = seen[:, :, ~going]
            live, seen, front, todo = live[going], seen[:, :, going], front[:, going], todo[:, going]
            if not live.size:
                return moves, planes
        wave = front << 1 | front >> 1
        wave[1:] |= front[:-1]
        wave[:-1] |= front[1:]
        front = wave & todo
        todo ^= front


def _solve_mazes(questions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, L) questions -> (N, L) labels by the rule of solve_maze, and (N,) moves from S to G, -1 (no 'o') if unreachable."""
    side = math.isqrt(questions.shape[1])
    start, goal = (questions == START).argmax(1), (questions == GOAL).argmax(1)
    moves, planes = _flood((questions != WALL).reshape(-1, side, side), start, goal)
    labels, left = questions.copy(), moves.copy()
    row, col = np.divmod(start, side)
    down, right = STEPS.T[:, :, None]  # each (4, 1)
    while (live := np.flatnonzero(left > 1)).size:
        rows, cols = row[live] + down, col[live] + right  # (4, live)
        nearer = planes[(left[live] - 1) % 3, rows + 1, live] >> (cols + 1) & 1
        first = nearer.argmax(0), np.arange(live.size)  # the first of D, L, R, U that comes closer to G
        row[live], col[live] = rows[first], cols[first]
        labels[live, row[live] * side + col[live]] = PATH
        left[live] -= 1
    return labels, moves


def _turned(rows: np.ndarray) -> np.ndarray:
    """(N, L) -> (N, 8, L): every grid turned by 0, 90, 180, 270 degrees, then the same for its mirror image."""
    side = math.isqrt(rows.shape[1])
    grid = rows.reshape(-1, side, side)
    turns = [np.rot90(g, k, (1, 2)) for g in (grid, grid.swapaxes(1, 2)) for k in range(4)]
    return np.stack(turns, 1).reshape(len(rows), 8, -1)


# --- Sudoku: rules and solver ---------------------------------------------------------------------------------------
# Candidates are bit masks in arrays (L, N): a cell is a contiguous row over all puzzles, digit d is bit d - 1.


@lru_cache
def _units(side: int, box: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(3 side, side) cells of all rows, columns and boxes; (L, 3) the row, column and box of a cell, as unit numbers."""
    box_rows, box_cols = box or BOX[side]
    cell = np.arange(side * side).reshape(side, side)
    boxes = cell.reshape(side // box_rows, box_rows, side // box_cols, box_cols).swapaxes(1, 2).reshape(side, side)
    units = np.concatenate([cell, cell.T, boxes])
    return units, np.argsort(units.ravel(), kind="stable").reshape(-1, 3) // side


def _several(masks: np.ndarray) -> np.ndarray:
    """Where a mask has more than one bit."""
    return (masks & (masks - 1)) > 0


def _tighten(cand: np.ndarray, side: int) -> np.ndarray:
    """One round of naked and hidden singles over (L, N) candidates; a puzzle found contradictory becomes all zero."""
    units, (row, col, box) = _units(side)[0], _units(side)[1].T
    single = ~_several(cand)
    known = np.where(single, cand, 0).astype(cand.dtype)
    once, twice, fixed, clash = np.zeros((4, 3 * side, cand.shape[1]), cand.dtype)  # digits with >= 1, >= 2 cells ...
    for cells in units.T:  # ... and digits with >= 1, >= 2 known cells, in every unit
        twice |= once & cand[cells]
        once |= cand[cells]
        clash |= fixed & known[cells]
        fixed |= known[cells]
    anywhere = [u[row] | u[col] | u[box] for u in (clash, fixed, once & ~twice)]
    out = cand & ~np.where(single, anywhere[0], anywhere[1])
    must = out & anywhere[2]
    out = np.where(must > 0, must, out)
    dead = (out == 0).any(0) | (once != (1 << side) - 1).any(0) | _several(must).any(0)
    out[:, dead] = 0
    return out


def _propagate(cand: np.ndarray, side: int) -> np.ndarray:
    """Singles until nothing changes."""
    cand, live = cand.copy(), np.arange(cand.shape[1])
    while live.size:
        before = cand[:, live]
        after = _tighten(before, side)
        cand[:, live] = after
        live = live[(before != after).any(0)]
    return cand


def _fewest(cand: np.ndarray, noise: np.ndarray | float = 0.0) -> np.ndarray:
    """(N,) the undecided cell with the fewest candidates; noise below 1 breaks ties."""
    return np.where(_several(cand), POPCOUNT[cand] + noise, 99).argmin(0)


def _search(cand: np.ndarray, side: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact search for N puzzles at once: (N,) solutions found (counting stops at `limit`) and (L, N) one of them."""
    found, answer = np.zeros(cand.shape[1], int), np.zeros_like(cand)
    stack, owner = cand, np.arange(cand.shape[1])
    while owner.size:
        top, who = _propagate(stack[:, -1024:], side), owner[-1024:]  # a block keeps memory bounded and numpy busy
        stack, owner = stack[:, :-1024], owner[:-1024]
        alive, open_ = top[0] > 0, _several(top).any(0)
        solved = alive & ~open_
        np.add.at(found, who[solved], 1)
        answer[:, who[solved]] = top[:, solved]
        top, who = top[:, open_], who[open_]
        cell = _fewest(top)
        children, owners = [stack], [owner]
        for digit in range(side):
            has = np.flatnonzero(top[cell, np.arange(who.size)] >> digit & 1)
            child = top[:, has]
            child[cell[has], np.arange(has.size)] = 1 << digit
            children.append(child)
            owners.append(who[has])
        stack, owner = np.concatenate(children, 1), np.concatenate(owners)
        wanted = found[owner] < limit
        stack, owner = stack[:, wanted], owner[wanted]
    return found, answer


def solve_sudoku(question: str) -> str:
    """The only solution of a 4x4, 6x6 (boxes of 2 rows, 3 columns) or 9x9 Sudoku; '.' or '0' is a blank.

    Raises UserError for a malformed puzzle, and where there is no solution or more than one.
    """
    side = math.isqrt(len(_flat("sudoku", question)))
    tokens = encode("sudoku", question, side if side in BOX else 9).astype(int)
    cand = np.where(tokens > 1, 1 << np.maximum(tokens - 2, 0), (1 << side) - 1).astype(np.uint16)[:, None]
    found, answer = _search(cand, side, limit=2)
    if found[0] != 1:
        raise UserError(f"the puzzle has {'no solution' if found[0] == 0 else 'more than one solution'}")
    return decode("sudoku", np.log2(answer[:, 0]).astype(int) + 2)


# --- rules ----------------------------------------------------------------------------------------------------------


def check(task: str, inputs: np.ndarray, answer: np.ndarray, box: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
    """What the rules say of answers (N, L) to questions (N, L); no solution is needed. Returns (N,) bool per verdict.

    maze: "valid": only free cells became 'o', and they make one path from S to G on which no 'o' could be spared;
    "optimal": valid and no path is shorter. sudoku: "valid": the givens stand, and every row, column and box (box:
    its rows and columns, by default those of BOX) holds every digit.
    """
    inputs, answer = np.asarray(inputs), np.asarray(answer)
    side = math.isqrt(inputs.shape[1])
    if task == "sudoku":
        bit = np.array([0, 0] + [1 << d for d in range(side)] + [0], np.uint16)  # pad, blank, digits, anything above
        bits = bit.take(answer, mode="clip").T  # (L, N)
        valid = ((answer == inputs) | (inputs == 1)).all(1)
        for cells in _units(side, box)[0]:
            valid &= np.bitwise_or.reduce(bits[cells], 0) == (1 << side) - 1
        return {"valid": valid}
    kept = (answer == inputs) | ((inputs == FREE) & (answer == PATH))
    path = (answer == PATH) & (inputs == FREE)
    ends = (inputs == START) | (inputs == GOAL)
    start, goal = (inputs == START).argmax(1), (inputs == GOAL).argmax(1)
    along, _ = _flood((path | ends).reshape(-1, side, side), start, goal)  # shortest way over 'o' uses every 'o'
    least, _ = _flood((inputs != WALL).reshape(-1, side, side), start, goal)
    valid = kept.all(1) & (along == path.sum(1) + 1)
    return {"valid": valid, "optimal": valid & (along == least)}


def baseline(split: Split, task: str) -> dict[str, float]:
    """What copying the question scores: "exact", share of whole grids, and "cells", share of cells. The bar to clear."""
    same = split.inputs == split.labels
    return {"exact": float(same.all(1).mean()), "cells": float(same.mean())}


# --- generators -----------------------------------------------------------------------------------------------------


def _collect(make: Callable, count: int, avoid: np.ndarray, patience: int, rate: float, advice: str):
    """`count` rows of make(n) -> (inputs, labels, keys), which may return fewer than n, none with a key in `avoid`."""
    inputs, labels, have, tried, idle = [], [], 0, 0, 0
    while have < count:
        n = int(np.clip(1.2 * (count - have) / rate, 16, 4096))
        x, y, keys = make(n)
        new = ~np.isin(keys, np.asarray(avoid, np.uint64))
        inputs.append(x[new])
        labels.append(y[new])
        have, tried, idle = have + new.sum(), tried + n, 0 if new.any() else idle + n
        rate = max(have, 0.5) / tried
        if idle >= patience:
            raise UserError(f"none of {idle} generated puzzles met the wishes; {advice}")
    return np.concatenate(inputs)[:count], np.concatenate(labels)[:count]


def _tree_walls(n: int, side: int, g: np.random.Generator) -> np.ndarray:
    """(n, L) bool walls of perfect mazes: Kruskal's algorithm on all at once, rooms at even rows and columns."""
    room = np.arange(((side + 1) // 2) ** 2).reshape((side + 1) // 2, -1)
    a = np.concatenate([room[:, :-1].ravel(), room[:-1].ravel()])  # (E,) the two rooms of every inner wall
    b = np.concatenate([room[:, 1:].ravel(), room[1:].ravel()])
    cell = np.arange(side * side).reshape(side, side)[::2, ::2].ravel()  # (rooms,)
    walls = np.ones((n, side * side), bool)
    walls[:, cell] = False
    group = np.tile(room.ravel().astype(np.int16), (n, 1))  # (n, rooms) connected component
    every = np.arange(n)
    for edge in g.random((n, a.size)).argsort(1).T:
        one, two = group[every, a[edge]], group[every, b[edge]]
        walls[every, (cell[a[edge]] + cell[b[edge]]) // 2] &= one == two
        group = np.where(group == two[:, None], one[:, None], group)
    return walls


def generate_mazes(cfg: DataConfig, count: int, g: np.random.Generator, size: int, avoid: np.ndarray = ()):
    """`count` mazes with labels by the rule of solve_maze: two (count, L) uint8 arrays, a function of g's state alone.

    Walls as cfg.walls says, S and G uniform on free cells, kept if they are at least cfg.min_distance moves apart.
    `avoid`: fingerprints of mazes not to draw. Raises UserError if such mazes are too rare to be found.
    """

    def make(n: int):
        noise = g.random((n, size * size), np.float32)
        if cfg.walls == "perfect":
            walls = _tree_walls(n, size, g)
        else:
            walls = noise < g.uniform(cfg.wall_min, cfg.wall_max, (n, 1))
        noise[walls] = -1.0
        questions = np.where(walls, WALL, FREE).astype(np.uint8)
        every, ends = np.arange(n), []
        for token in START, GOAL:  # the largest and second largest noise on free cells: uniform on them
            ends.append(noise.argmax(1))
            questions[every, ends[-1]] = token
            noise[every, ends[-1]] = -1.0
        moves, _ = _flood(~walls.reshape(n, size, size), *ends)
        questions = questions[moves >= (cfg.min_distance or size)]
        return questions, _solve_mazes(questions)[0], _fingerprint(questions)

    advice = f"lower --data.min_distance={cfg.min_distance or size} or change the walls of the {size}x{size} mazes"
    return _collect(make, count, avoid, 1_000_000, 0.6 if cfg.walls == "perfect" else 0.2, advice)


def _fill(n: int, side: int, g: np.random.Generator) -> np.ndarray:
    """(L, n) masks of n random solved grids: random guesses in a tightest cell, singles; a dead end begins again."""
    cand = np.full((side * side, n), (1 << side) - 1, np.uint16)
    while (live := np.flatnonzero(_several(cand).any(0))).size:
        part, every = cand[:, live], np.arange(live.size)
        cell = _fewest(part, g.random(part.shape))
        digits = part[cell, every] >> np.arange(side, dtype=np.uint16)[:, None] & 1  # (side, live)
        part[cell, every] = 1 << (g.random(digits.shape) * digits).argmax(0)
        part = _propagate(part, side)
        part[:, part[0] == 0] = (1 << side) - 1
        cand[:, live] = part
    return cand


def _givens(cfg: DataConfig) -> tuple[int, int]:
    """Fewest and most clues; a bound that is not given is the default, but never on the wrong side of the other."""
    low, high = GIVENS[cfg.size]
    low, high = cfg.givens_min or min(low, cfg.givens_max or low), cfg.givens_max or max(high, cfg.givens_min)
    return low, high


def generate_sudokus(cfg: DataConfig, count: int, g: np.random.Generator, size: int, avoid: np.ndarray = ()):
    """`count` Sudokus with exactly one solution each: two (count, L) uint8 arrays, a function of g's state alone.

    From a random full grid clues go in random order while the solution stays the only one, down to a number drawn
    between cfg.givens_min and cfg.givens_max. `avoid`: symmetry keys not to draw. Raises UserError if none is found.
    """
    low, high = _givens(cfg)

    def make(n: int):
        solved, target = _fill(n, size, g), g.integers(low, high + 1, n)
        given = np.ones(solved.shape, bool)
        for cell in g.random((n, size * size)).argsort(1).T:
            live = np.flatnonzero(given.sum(0) > target)
            if not live.size:
                break
            cell, every = cell[live], np.arange(live.size)
            rival = np.where(given[:, live], solved[:, live], (1 << size) - 1).astype(np.uint16)
            rival[cell, every] = (1 << size) - 1 - solved[cell, live]  # is there a solution with another digit here?
            found, _ = _search(rival, size, limit=1)
            given[cell, live] = found > 0
        enough = given.sum(0) <= high
        labels = (np.log2(solved[:, enough]).astype(np.uint8) + 2).T
        inputs = np.where(given[:, enough].T, labels, 1).astype(np.uint8)
        return inputs, labels, _sudoku_keys(inputs, labels)

    advice = f"widen --data.givens_min={low} or --data.givens_max={high}, or ask for fewer rows"
    return _collect(make, count, avoid, 2000, 1.0, advice)


# --- identity of puzzles, up to symmetry ----------------------------------------------------------------------------


def _mix(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that scrambles all bits (the finaliser of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _fingerprint(rows: np.ndarray) -> np.ndarray:
    """(N, L) tokens -> (N,) uint64: a hash of each row."""
    place = _mix(np.arange(1, rows.shape[1] + 1, dtype=np.uint64))
    hashes = np.zeros(len(rows), np.uint64)
    for at in range(0, len(rows), 4096):  # blocks bound the memory
        hashes[at : at + 4096] = _mix(place * (rows[at : at + 4096] + np.uint64(1))).sum(1)
    return hashes


def _sudoku_keys(inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) uint64, equal for puzzles that differ by a symmetry only (digits, rows, columns, bands, stacks, transpose).

    Colour refinement: a cell's colour takes in the colours of its row, column, box and digit (of the solution), three
    times; the key is the sum of all colours. Equal keys of different puzzles are possible, and err on the safe side.
    """
    keys, side = np.zeros(len(inputs), np.uint64), math.isqrt(inputs.shape[1])
    boxes, box_of = _units(side)[0][2 * side :], _units(side)[1][:, 2] - 2 * side
    for at in range(0, len(inputs), 4096):  # blocks that stay in the cache
        digit = labels[at : at + 4096].astype(np.int64) - 2
        colour = _mix((inputs[at : at + 4096] > 1).astype(np.uint64) + np.uint64(1))
        same = digit.argsort(1, kind="stable")  # cells sorted by digit
        for _ in range(3):
            grid = colour.reshape(-1, side, side)
            lines = _mix(grid.sum(2))[:, :, None] + _mix(grid.sum(1))[:, None, :]
            box = _mix(colour[:, boxes].sum(2) + np.uint64(1))[:, box_of]
            value = _mix(np.take_along_axis(colour, same, 1).reshape(grid.shape).sum(2) + np.uint64(2))
            colour = _mix(colour + lines.reshape(colour.shape) + box + np.take_along_axis(value, digit, 1))
        keys[at : at + 4096] = colour.sum(1)
    return keys


def _keys(task: str, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What the symmetric copies of each puzzle are known by: (N, 8) fingerprints of a maze, (N, 1) Sudoku keys."""
    if task == "sudoku":
        return _sudoku_keys(inputs, labels)[:, None]
    return np.stack([_fingerprint(turned) for turned in _turned(inputs).swapaxes(0, 1)], 1)


# --- files ----------------------------------------------------------------------------------------------------------

BAD_FILE = (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError, csv.Error)


def read_csv(path: str, task: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The columns question and answer of a .csv, .csv.gz or .csv.xz as two (N, L) uint8 arrays; other columns are ignored.

    Raises UserError for a missing, empty or damaged file, a missing column, a row of another length, an unknown character.
    """
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(Path(path).suffix, open)
    inputs, labels, done = [], [], 0
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, None)
            if header is None:
                raise UserError(f"{path} is empty, expected a CSV with the columns question and answer")
            for name in "question", "answer":
                if name not in header:
                    raise UserError(f"{path} has no column {name!r}, it has {', '.join(header)[:80]!r}")
            q, a = header.index("question"), header.index("answer")
            while block := list(islice((row for row in reader if row), 65536)):  # blocks bound the memory
                for number, row in enumerate(block, done + 1):
                    if len(row) <= max(q, a):
                        raise UserError(f"{path}, row {number}: {len(row)} columns, expected {len(header)}")
                for into, column, name in (inputs, q, "question"), (labels, a, "answer"):
                    texts, where = [row[column] for row in block], lambda at: f"{path}, row {done + at + 1}: the {name}"
                    into.append(_tokens(task, texts, side, where, answer=into is labels))
                done += len(block)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; `python data.py download {REAL[task]}` fetches the real files") from None
    except BAD_FILE as error:
        raise UserError(f"{path} cannot be read ({error or type(error).__name__}); is it damaged?") from None
    if not done:
        raise UserError(f"{path} has a header but no rows")
    return np.concatenate(inputs), np.concatenate(labels)


def _check_rows(task: str, inputs: np.ndarray, labels: np.ndarray, where: Callable[[int], str]):
    """Questions are well formed and solvable, answers keep their givens and, for Sudoku, the rules."""
    if task == "maze":
        _check_ends(inputs, lambda row: where(row) + " the question")
    blank = (inputs == FREE) & (labels == PATH) if task == "maze" else inputs == 1
    kept = (inputs == labels) | blank
    if not kept.all():
        row, at = np.argwhere(~kept)[0]
        was, now = decode(task, [inputs[row, at]]), decode(task, [labels[row, at]])
        raise UserError(f"{where(row)} the answer has {now!r} at position {at + 1}, where the question gives {was!r}")
    if task == "maze":
        bad, why = _solve_mazes(inputs)[1] < 0, "G cannot be reached from S"
    else:
        bad, why = ~check(task, inputs, labels)["valid"], "the answer has a digit twice in a row, column or box"
    if bad.any():
        raise UserError(f"{where(np.flatnonzero(bad)[0])} {why}")


# --- data sets ------------------------------------------------------------------------------------------------------

REAL = {"maze": "maze_hard", "sudoku": "sudoku_extreme"}


def _validate(cfg: DataConfig):
    """Impossible values, one sentence each."""
    if cfg.task not in REAL:
        raise UserError(f"data.task = {cfg.task!r}, expected 'maze' or 'sudoku'")
    rules = [
        (getattr(cfg, name) < 0, f"data.{name} = {getattr(cfg, name)}, expected 0 or more")
        for name in ("min_distance", "givens_min", "givens_max", "train_rows", "val_rows", "test_rows", "test_size", "seed")
    ]
    if cfg.task == "maze":
        for key, side, path in ("size", cfg.size, cfg.train_path), ("test_size", cfg.test_size or cfg.size, cfg.test_path):
            even = cfg.walls == "perfect" and not path and side % 2 == 0
            rules += [(not 2 <= side <= MAX_SIDE, f"data.{key} = {side}, a maze has 2 to {MAX_SIDE} cells per side"),
                      (even, f"data.{key} = {side}, perfect mazes have an odd number of cells per side")]
        rules += [
            (cfg.walls not in ("random", "perfect"), f"data.walls = {cfg.walls!r}, expected 'random' or 'perfect'"),
            (not 0 <= cfg.wall_min <= cfg.wall_max < 1, f"data.wall_min = {cfg.wall_min} and data.wall_max = {cfg.wall_max}, "
             "expected 0 <= wall_min <= wall_max < 1"),
            (cfg.reveal != 0, f"data.reveal = {cfg.reveal}, but it shows digits of a Sudoku; for mazes expected 0"),
            (cfg.fresh and cfg.train_path, "data.fresh = true and data.train_path exclude each other; drop one"),
            (cfg.fresh and not cfg.generate, "data.fresh = true draws new mazes, which data.generate = false forbids"),
        ]
    elif cfg.size not in BOX:
        rules += [(True, f"data.size = {cfg.size}, a Sudoku has 4, 6 or 9 cells per side")]
    else:
        low, high, least, most = *_givens(cfg), LEAST_GIVENS[cfg.size], cfg.size**2
        rules += [
            (cfg.test_size not in (0, cfg.size), f"data.test_size = {cfg.test_size}, a Sudoku is tested at its own size {cfg.size}"),
            (not (low <= high <= most and high >= least), f"data.givens_min = {low} and data.givens_max = {high}, expected "
             f"givens_min <= givens_max, and givens_max from {least} to {most}"),
            (not 0 <= cfg.reveal <= 1, f"data.reveal = {cfg.reveal}, expected a share, 0 to 1"),
            (cfg.fresh, "data.fresh = true is for mazes; ask for more Sudokus with data.train_rows"),
        ]
    no_file = cfg.train_rows == 0 and not cfg.train_path and not cfg.fresh
    for broken, sentence in rules + [(no_file, "data.train_rows = 0 means a whole file, but data.train_path is empty")]:
        if broken:
            raise UserError(sentence)


def _source(cfg: DataConfig, name: str, rows: int, side: int, avoid: np.ndarray = ()) -> tuple[np.ndarray, np.ndarray, dict]:
    """Inputs, labels and card of the "train", "val" (only with fresh mazes) or "test" rows: of the file, or generated."""
    path, stream = {"train": (cfg.train_path, POOL), "val": ("", VAL), "test": (cfg.test_path, TEST)}[name]
    if not path and not cfg.generate:
        real = REAL[cfg.task]
        raise UserError(
            f"data.{name}_path is empty: `python data.py download {real}` fetches data/{real}_train.csv and data/{real}_test.csv "
            f"for --data.train_path and --data.test_path; or take generated puzzles with --data.generate=true"
        )
    if not path:
        make, kind = (generate_mazes, f"{cfg.walls} walls") if cfg.task == "maze" else (generate_sudokus, "one solution each")
        card = {"source": f"generated {side}x{side}, {kind}", "generator_seed": cfg.seed}
        return *make(cfg, rows, rng(cfg.seed, stream), side, avoid), card
    inputs, labels = read_csv(path, cfg.task, side)
    total = len(inputs)
    if rows > total and name == "test":
        raise UserError(f"data.test_rows = {rows}, but {path} has {total} rows")
    row = np.sort(rng(cfg.seed, stream).permutation(total)[: rows or total])
    inputs, labels = inputs[row], labels[row]
    _check_rows(cfg.task, inputs, labels, lambda at: f"{path}, row {row[at] + 1}:")
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return inputs, labels, {"source": Path(path).name, "sha256": digest.hexdigest(), "rows_in_file": total}


def load(cfg: DataConfig) -> Dataset:
    """The three splits of a configuration, with their card. Deterministic in cfg; no split shares a puzzle with another.

    Puzzles count as the same if a symmetry maps one to the other (mazes: 8 turns and mirror images of the question;
    Sudoku: digits, rows, columns, bands, stacks, transpose). Training rows that occur in the test set are dropped, and the
    validation rows are cut from the training rows before augmentation. Raises UserError for bad files and impossible values.
    """
    _validate(cfg)
    task, side, test_side = cfg.task, cfg.size, cfg.test_size or cfg.size
    inputs, labels, card_test = _source(cfg, "test", cfg.test_rows or (0 if cfg.test_path else 512), test_side)
    test, held_out = Split(inputs, labels, test_side), _keys(task, inputs, labels)
    card = {"task": task, "size": side, "test_size": test_side, "augmentation": "none"}
    train = variants = None
    if cfg.fresh:
        inputs, labels, card_train = _source(cfg, "val", cfg.val_rows or 512, side, held_out)
        val = Split(inputs, labels, side)
        held_out = np.union1d(held_out, _keys(task, inputs, labels))
        card["augmentation"] = "none: every training maze is new"
        card["split"] = "a fresh maze that is a validation or test maze, turned or mirrored, is drawn again"
    else:
        inputs, labels, card_train = _source(cfg, "train", cfg.train_rows, side, held_out)
        keys, in_test = _keys(task, inputs, labels).min(1), held_out.min(1)  # one key for all copies of a puzzle
        kinds = np.setdiff1d(keys, in_test)  # sorted, each once
        rows = cfg.val_rows or int(np.clip(len(inputs) // 10, 50, 512))
        if rows >= kinds.size:
            raise UserError(f"data.val_rows: {rows} validation rows leave nothing of {kinds.size} different training rows")
        cut = rng(cfg.seed, CUT).permutation(kinds)[:rows]
        first = np.sort(np.unique(keys, return_index=True)[1])  # one row of each kind
        in_val, in_train = first[np.isin(keys[first], cut)], np.isin(keys, np.setdiff1d(kinds, cut))
        val, train = Split(inputs[in_val], labels[in_val], side), Split(inputs[in_train], labels[in_train], side)
        card["split"] = f"validation cut from the training rows before augmentation, seed {cfg.seed}; disjoint up to symmetry"
        card["dropped_in_test"] = int(np.isin(keys, in_test).sum())
        card["dropped_in_val"] = len(inputs) - card["dropped_in_test"] - len(val) - len(train)
        if cfg.augment and task == "maze":
            turned = _turned(train.inputs)
            solved = _solve_mazes(turned.reshape(-1, side * side))[0].reshape(turned.shape)
            variants = Split(turned, solved, side)
            card["augmentation"] = "8 turns and mirror images, each solved again"
            card["labels_by_rule"] = f"{int((solved[:, 0] == train.labels).all(1).sum())} of {len(train)}"
        elif cfg.augment:
            square = len(set(BOX[side])) == 1
            card["augmentation"] = "permutations of digits, rows, columns, bands, stacks" + (", transpose" if square else "")
        if cfg.reveal:
            card["reveal"] = f"{cfg.reveal:.0%} of the training draws show a random part of their blanks"
    card |= {f"train_{k}": v for k, v in card_train.items()} | {f"test_{k}": v for k, v in card_test.items()}
    card["rows"] = {"train": "fresh" if train is None else len(train), "val": len(val), "test": len(test)}
    card["copy_baseline"] = baseline(test, task)
    vocab, box = (6, (0, 0)) if task == "maze" else (side + 2, BOX[side])
    shape = {"seq_len": side * side, "vocab_size": vocab, "num_puzzles": 1, "box_rows": box[0], "box_cols": box[1]}
    return Dataset(train, val, test, card, shape, variants, np.unique(held_out))


# --- batches --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _order(rows: int, seed: int, epoch: int) -> np.ndarray:
    return rng(seed, ORDER, epoch).permutation(rows)


def _shuffle_sudoku(inputs: np.ndarray, labels: np.ndarray, g: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Every puzzle and its solution (B, L) under its own random element of the symmetry group."""
    size, side = len(inputs), math.isqrt(inputs.shape[1])

    def lines(group: int) -> np.ndarray:  # (B, side): groups keep together; rank of the group, then chance within it
        return (g.random((size, side // group)).argsort(1).repeat(group, 1) + g.random((size, side))).argsort(1)

    box_rows, box_cols = BOX[side]
    row, col = lines(box_rows)[:, :, None], lines(box_cols)[:, None, :]
    digit = np.concatenate([np.tile([0, 1], (size, 1)), 2 + g.random((size, side)).argsort(1)], 1).astype(np.uint8)
    flip = (g.random(size) < 0.5) & (box_rows == box_cols)
    every = np.arange(size)[:, None, None]
    out = []
    for tokens in inputs, labels:
        grid = tokens.reshape(size, side, side)
        grid = np.where(flip[:, None, None], grid.swapaxes(1, 2), grid)[every, row, col]
        out.append(digit[every, grid].reshape(size, -1))
    return out[0], out[1]


def _fresh(ds: Dataset, cfg: DataConfig, size: int, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """The new mazes of a step. They are made for some steps at once: a maze costs numpy five times less among 512."""
    steps = max(1, 512 // size)
    key = (cfg, size, seed, step // steps)
    made, block = ds.block
    if made != key:
        block = generate_mazes(cfg, steps * size, rng(seed, FRESH, step // steps), cfg.size, ds.held_out)
        ds.block = key, block
    rows = slice(step % steps * size, (step % steps + 1) * size)
    return block[0][rows], block[1][rows]


def draw(ds: Dataset, cfg: DataConfig, size: int, seed: int, step: int, rank: int = 0, world: int = 1) -> dict[str, np.ndarray]:
    """Rows rank * size / world and following of the global batch of a step, which is a pure function of (seed, step).

    Returns {"inputs": (B, L) uint8, "labels": (B, L) uint8, "puzzle": (B,) int64 zeros} with B = size / world. Fixed rows
    come in epochs, each a new permutation, without replacement across steps; fresh mazes are drawn for the whole batch.
    """
    if size % world:
        raise UserError(f"a batch of {size} does not divide among {world} processes")
    if ds.train is None:
        inputs, labels = _fresh(ds, cfg, size, seed, step)
    else:
        at = step * size + np.arange(size)
        epochs = at // len(ds.train)
        row = np.concatenate([_order(len(ds.train), seed, e)[at[epochs == e] % len(ds.train)] for e in np.unique(epochs)])
        g = rng(seed, AUGMENT, step)
        inputs, labels = ds.train.inputs[row], ds.train.labels[row]
        if ds.variants is not None:
            pick = g.integers(8, size=size)
            inputs, labels = ds.variants.inputs[row, pick], ds.variants.labels[row, pick]
        elif cfg.augment:
            inputs, labels = _shuffle_sudoku(inputs, labels, g)
        if cfg.reveal:
            shown = g.random(inputs.shape) < (g.random(size) * (g.random(size) < cfg.reveal))[:, None]
            inputs = np.where(shown, labels, inputs)
    mine = slice(rank * size // world, (rank + 1) * size // world)
    return {"inputs": inputs[mine], "labels": labels[mine], "puzzle": np.zeros(size // world, np.int64)}


def batches(ds, cfg, size, seed, first_step, rank=0, world=1, device="cpu") -> Iterator[dict]:
    """Endless draws of steps first_step, first_step + 1, ... as int64 tensors on `device`.

    One thread works one batch ahead; close() the iterator (or let it go) and the thread ends. An error of a draw is raised here.
    """
    import torch

    cuda = torch.device(device).type == "cuda"

    def make(step: int) -> dict:
        batch = draw(ds, cfg, size, seed, step, rank, world)
        tensors = {name: torch.from_numpy(value.astype(np.int64)) for name, value in batch.items()}
        return {name: t.pin_memory() for name, t in tensors.items()} if cuda else tensors

    thread = ThreadPoolExecutor(1, "draw")
    try:
        ahead = thread.submit(make, first_step)
        for step in count_from(first_step + 1):
            batch, ahead = ahead.result(), thread.submit(make, step)
            yield {name: t.to(device, non_blocking=cuda) for name, t in batch.items()}
    finally:
        thread.shutdown(wait=True, cancel_futures=True)


# --- download -------------------------------------------------------------------------------------------------------

URL = {
    "maze_hard": "https://huggingface.co/datasets/sapientinc/maze-30x30-hard-1k/resolve/main",
    "sudoku_extreme": "https://huggingface.co/datasets/sapientinc/sudoku-extreme/resolve/main",
}
KNOWN = {  # rows, and where the set is at hand _content
    "maze_hard_train.csv": (1000, "6c336d012943a4f3a3cdc23df43cc1b23b1e57951b3488a25e67033e9d9dd3c1"),
    "maze_hard_test.csv": (1000, "574108df83a30578ae0d7ca211c3ffd2d0fdbe0ea7daf8be50eb3b9af365ff58"),
    "sudoku_extreme_train.csv": (3_831_994, ""),
    "sudoku_extreme_test.csv": (422_786, ""),
}


def _content(inputs: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 of the puzzles alone, sorted: the same for any compression, line ending, row order and further columns."""
    return hashlib.sha256(b"".join(sorted(row.tobytes() for row in np.concatenate([inputs, labels], 1)))).hexdigest()


def _fetch(source: str, path: Path) -> str:
    """Downloads to path with a progress bar; returns the SHA-256. Raises UserError if fewer bytes come than announced."""
    from tqdm import tqdm

    digest, got = hashlib.sha256(), 0
    opener = urllib.request.build_opener()  # reads the proxy variables now
    with opener.open(source, timeout=60) as answer, open(path, "wb") as file:
        total = int(answer.headers.get("Content-Length") or 0)
        with tqdm(total=total or None, unit="B", unit_scale=True, desc=source.rsplit("/", 1)[1]) as bar:
            while block := answer.read(1 << 16):
                file.write(block)
                digest.update(block)
                got += len(block)
                bar.update(len(block))
    if total and got != total:
        raise UserError(f"the connection ended after {got} of {total} bytes")
    return digest.hexdigest()


def download(name: str, to: str = "data", url: str = "") -> list[Path]:
    """Fetches the train and test file of "maze_hard" or "sudoku_extreme" into the folder `to`, unless they are there.

    A file gets its name only once its length is what the server announced, every row can be read, and their number (and
    content, where known) is right. Proxy variables are respected. Raises UserError with the file to fetch by hand.
    """
    paths = [Path(to) / f"{name}_{split}.csv" for split in ("train", "test")]
    for path in paths:
        if path.exists():
            print(f"{path} is there already")
            continue
        source = f"{(url or URL[name]).rstrip('/')}/{path.stem.rsplit('_', 1)[1]}.csv"
        part = path.with_suffix(f".part{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = _fetch(source, part)
            inputs, labels = read_csv(str(part), *(("maze", 30) if name == "maze_hard" else ("sudoku", 9)))
            rows, content = KNOWN[path.name]
            if len(inputs) != rows:
                raise UserError(f"it has {len(inputs)} rows, expected {rows}")
            if content and _content(inputs, labels) != content:
                raise UserError("its puzzles are not those of the data set")
            os.replace(part, path)
        except (UserError, OSError, ValueError, HTTPException) as error:  # a bad address is a ValueError
            why = str(error).replace(str(part), "the file") or type(error).__name__
            raise UserError(f"no {path} from {source} ({why}); fetch that address by hand and save it as {path}") from None
        finally:
            with contextlib.suppress(OSError):
                part.unlink()
        print(f"{path}  {rows} rows  sha256 {digest}")
    return paths


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(prog="data.py", description="Fetch the real puzzle files; everything else works without them.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("download", help="fetch train.csv and test.csv of a public data set")
    command.add_argument("name", choices=sorted(URL))
    command.add_argument("--to", default="data", help="folder (default: data)")
    command.add_argument("--url", default="", help="another address that holds train.csv and test.csv")
    args = parser.parse_args(argv)
    try:
        download(args.name, args.to, args.url)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
