"""What data.py, tasks/puzzles.py and tasks/files.py promise, as claims.

Real files: folder SHARED_DATA (default ../shared/data). Their tests are skipped where it is absent.
"""

import dataclasses
import gzip
import http.server
import itertools
import lzma
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import submitit_launch
import tasks
import tiny
import train
from config import UserError, check_layer
from data import batches, draw, load
from tasks import files, puzzles
from tasks.base import Split, copying, rng
from tasks.classify import FeaturesConfig, ModularConfig
from tasks.control import ControlConfig
from tasks.maze import MazeConfig
from tasks.plants import PLANTS, generate
from tasks.puzzles import check, decode, encode, generate_mazes, generate_sudokus
from tasks.sudoku import SudokuConfig
from train import Config

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("SHARED_DATA", ROOT.parent / "shared" / "data"))
real = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"no real puzzle files in {SHARED} (set SHARED_DATA)"
)
FEW = {"train_rows": 90, "val_rows": 20, "test_rows": 30}
MAZES = MazeConfig(size=6, **FEW)
SUDOKU = SudokuConfig(size=4, **FEW)
PLANS = ControlConfig(plant="double_integrator", train_rows=12, val_rows=4, test_rows=5)
VECTORS = FeaturesConfig(features=8, classes=4)
SUMS = ModularConfig(modulus=5)


# ---------------------------------------------------------------- naive versions of the rules


def smallest_path(question: str, side: int) -> str:
    """All shortest paths by brute force, as words over D < L < R < U; the smallest one is drawn."""
    start, goal = question.index("S"), question.index("G")
    moves = {"D": (1, 0), "L": (0, -1), "R": (0, 1), "U": (-1, 0)}
    words = {start: ""}  # cell -> the smallest word that leads there in so many moves
    while goal not in words:
        further = {}
        for cell, word in words.items():
            for letter, (down, right) in moves.items():
                row, col = cell // side + down, cell % side + right
                if 0 <= row < side and 0 <= col < side and question[row * side + col] != "#":
                    there = row * side + col
                    further[there] = min(word + letter, further.get(there, "Z"))
        words = further
    cells, cell = list(question), start
    for letter in words[goal][:-1]:
        cell += moves[letter][0] * side + moves[letter][1]
        cells[cell] = "o"
    return "".join(cells)


def solutions(cells: list, side: int, limit: int = 2) -> int:
    """Counts the solutions of a Sudoku (0: blank) up to a limit by plain backtracking."""
    box_rows, box_cols = puzzles.BOX[side]
    place = [(i // side, i % side) for i in range(side * side)]
    box = [(row // box_rows, col // box_cols) for row, col in place]
    best = None
    for at in range(side * side):
        if cells[at]:
            continue
        row, col = place[at]
        seen = set()
        for i, (r, c) in enumerate(place):
            if r == row or c == col or box[i] == box[at]:
                seen.add(cells[i])
        free = [digit for digit in range(1, side + 1) if digit not in seen]
        if best is None or len(free) < len(best[1]):
            best = at, free
    if best is None:
        return 1
    at, free = best
    found = 0
    for digit in free:
        found += solutions(cells[:at] + [digit] + cells[at + 1 :], side, limit - found)
        if found >= limit:
            break
    return found


def rows_of(split) -> set[bytes]:
    return set_of(split.inputs)


def set_of(rows) -> set[bytes]:
    return {row.tobytes() for row in rows}


def read(path, task: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Questions and answers of a CSV, as tokens."""
    kind = tasks.get(task)
    return kind.read(str(path), kind.Config(size=side), "train")


def refuses(cfg, sentence: str) -> None:
    """Loading this is one sentence in which a pattern occurs."""
    with pytest.raises(UserError, match=sentence) as error:
        load(cfg)
    assert "\n" not in str(error.value)


def write(path: Path, rows, header="question,answer") -> str:
    text = "\n".join([header] + [",".join(row) for row in rows]) + "\n"
    {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)(path, "wt").write(text)
    return str(path)


def write_split(path: Path, inputs, labels, task="maze") -> str:
    return write(path, [(decode(task, q), decode(task, a)) for q, a in zip(inputs, labels)])


# ---------------------------------------------------------------- mazes


@real
@pytest.mark.parametrize("name", ["train", "test"])
def test_solve_maze_reproduces_every_real_label(name):
    inputs, labels = read(SHARED / f"maze_hard_{name}.csv.gz", "maze", 30)
    assert len(inputs) == 1000
    for question, answer in zip(inputs, labels):
        assert data.solve_maze(decode("maze", question)) == decode("maze", answer)
    solved, moves = puzzles.solve_mazes(inputs)
    assert (solved == labels).all() and moves.min() == 109
    assert check("maze", inputs, labels)["optimal"].all()
    known = dict(zip(("train", "test"), files.PUBLIC["maze_hard"].hashes))
    assert files.hash_puzzles(inputs, labels) == known[name]


@pytest.mark.parametrize(
    "size, walls",
    [(2, "random"), (5, "random"), (10, "random"), (60, "random"), (5, "perfect"), (15, "perfect")],
)
def test_generated_mazes_follow_the_label_rule_and_the_solvers_agree(size, walls):
    inputs, labels = generate_mazes(MazeConfig(walls=walls), 40, rng(1), size)
    assert inputs.shape == labels.shape == (40, size * size)
    assert inputs.dtype == labels.dtype == np.uint8
    assert check("maze", inputs, labels)["optimal"].all()
    for question, answer in zip(inputs, labels):
        assert data.solve_maze(decode("maze", question)) == decode("maze", answer)
        if size <= 10:
            assert smallest_path(decode("maze", question), size) == decode("maze", answer)
    assert ((labels == puzzles.PATH).sum(1) + 1 >= size).all()  # the default least distance


def test_a_perfect_maze_has_one_route_and_no_closed_rooms():
    inputs, _ = generate_mazes(MazeConfig(walls="perfect"), 20, rng(2), 11)
    free = (inputs != puzzles.WALL).reshape(-1, 11, 11)
    edges = (free[:, 1:] & free[:, :-1]).sum((1, 2))
    edges += (free[:, :, 1:] & free[:, :, :-1]).sum((1, 2))
    assert (edges == free.sum((1, 2)) - 1).all()  # a tree, if connected:
    goals = (inputs == puzzles.GOAL).argmax(1)
    for cell in np.flatnonzero(free[0]):
        moves, _ = puzzles.flood(free[:1], np.array([cell]), goals[:1])
        assert moves[0] >= 0


def test_start_and_goal_are_anywhere_and_walls_are_as_dense_as_asked():
    cfg = MazeConfig(wall_min=0.25, wall_max=0.25, min_distance=1)
    inputs, labels = generate_mazes(cfg, 4000, rng(3), 4)
    for token in puzzles.START, puzzles.GOAL:
        share = (inputs == token).mean(0)
        assert abs(share * 16 - 1).max() < 0.3
    assert 0.15 < (inputs == puzzles.WALL).mean() < 0.25  # few walls connect more often
    assert (labels == puzzles.PATH).sum(1).min() == 0


def test_check_sees_what_is_wrong_with_a_maze_answer():
    question = "S   " + " ## " + " ## " + "   G"
    answers = {
        "Sooo ##o ##o   G": (True, True),
        "Sooo ##o ##o  GG": (False, False),  # a second goal
        "Sooo ##o ##    G": (False, False),  # broken
        "Soooo##oo##oooo" + "G": (False, False),  # both ways: one could be spared
        "Sooo ##o ##o o G": (False, False),  # a stray o
        "Sooo o#o ##o   G": (False, False),  # through a wall
        "oooo ##o ##o   G": (False, False),  # S is gone
        question: (False, False),
    }
    assert data.solve_maze(question) == "S   " + "o## " + "o## " + "oooG"
    for answer, verdict in answers.items():
        inputs = encode("maze", question, 4)[None]
        outputs = puzzles.to_tokens("maze", [answer], 4, str, answer=True)
        got = check("maze", inputs, outputs)
        assert (got["valid"][0], got["optimal"][0]) == verdict, answer
    long_way = "S  #" + "   #" + "   G" + "    "
    inputs = encode("maze", long_way, 4)[None]
    outputs = puzzles.to_tokens("maze", ["S  #o  #o  Goooo"], 4, str, answer=True)
    assert check("maze", inputs, outputs)["valid"][0]
    assert not check("maze", inputs, outputs)["optimal"][0]
    outputs[0, 5] = 0  # padding is no answer; any integer type will do
    assert not check("maze", inputs.astype(np.int64), outputs.astype(np.int32))["valid"][0]
    beside = encode("maze", "SG  ", 2)[None]
    assert check("maze", beside, beside)["optimal"][0]


def test_text_goes_in_and_out():
    maze = "S #\n  #\n  G"
    assert decode("maze", encode("maze", maze, 3)) == "S #  #  G"
    cut_by_an_editor = "\nS\n\n  G\n"  # trailing spaces are gone
    assert decode("maze", encode("maze", cut_by_an_editor, 3)) == "S       G"
    assert decode("maze", encode("maze", "\n S#\n #\n  G", 3)) == "".join([" S#", " # ", "  G"])
    assert data.solve_maze(maze) == "S #o #ooG"
    sudoku = "1 . 3 4\n0 4 1 2\n2 1 4 3\n4 3 2 1"
    assert decode("sudoku", encode("sudoku", sudoku, 4)) == "1.34.41221434321"
    assert encode("sudoku", sudoku, 4)[:3].tolist() == [2, 1, 4]
    assert encode("maze", maze, 3).tolist() == [3, 2, 1, 2, 2, 1, 2, 2, 4]
    assert decode("maze", [0, 5]) == "?o"


def test_large_mazes_are_solved_from_text_too():
    side = 71
    question = ["S" + " " * (side - 1)] + [" " * side] * (side - 2) + [" " * (side - 1) + "G"]
    assert data.solve_maze("\n".join(question)).count("o") == 2 * (side - 1) - 1


# ---------------------------------------------------------------- Sudoku


@pytest.mark.parametrize("side, count, naive", [(4, 300, 300), (6, 200, 60), (9, 60, 12)])
def test_generated_sudokus_have_one_solution_and_as_many_clues_as_asked(side, count, naive):
    inputs, labels = generate_sudokus(SudokuConfig(size=side), count, rng(4), side)
    assert inputs.shape == labels.shape == (count, side * side) and inputs.dtype == np.uint8
    assert check("sudoku", inputs, labels)["valid"].all()
    clues = (inputs > 1).sum(1)
    assert (clues.min(), clues.max()) == puzzles.GIVENS[side]
    for question, answer in zip(inputs[:naive], labels):
        assert solutions((question.astype(int) - 1).tolist(), side) == 1
        assert data.solve_sudoku(decode("sudoku", question)) == decode("sudoku", answer)


def test_puzzles_that_singles_cannot_solve_are_generated_and_solved():
    cfg = SudokuConfig(size=9, givens_min=22, givens_max=25)
    inputs, labels = generate_sudokus(cfg, 20, rng(5), 9)
    clues = (inputs > 1).sum(1)
    assert clues.min() >= 22
    assert clues.max() <= 25
    assert check("sudoku", inputs, labels)["valid"].all()
    cand = np.where(inputs > 1, 1 << np.maximum(inputs.astype(int) - 2, 0), 511).astype(np.uint16).T
    assert puzzles.several(puzzles.propagate(cand, 9)).any(0).sum() >= 3  # not mere singles
    found, answer = puzzles.search(cand, 9, limit=2)
    assert (found == 1).all() and (np.log2(answer).T + 2 == labels).all()


@real
def test_solve_sudoku_reproduces_real_solutions():
    for name in "sudoku_extreme_train_1000", "sudoku_proxy_test_5000":
        inputs, labels = read(SHARED / f"{name}.csv.gz", "sudoku", 9)
        for question, answer in zip(inputs[:15], labels):
            assert data.solve_sudoku(decode("sudoku", question)) == decode("sudoku", answer)


def test_solve_sudoku_refuses_none_and_several():
    for puzzle, why in (
        ("." * 81, "more than one solution"),
        ("11" + "." * 79, "no solution: row 1 has 1 more than once"),
        ("1" + "." * 8 + "1" + "." * 71, "no solution: column 1 has 1 more than once"),
        ("1" + "." * 9 + "1" + "." * 70, "no solution: box 1 has 1 more than once"),
        ("123." + "...4" + "." * 8, "no solution"),
    ):
        with pytest.raises(UserError, match=why):
            data.solve_sudoku(puzzle)


def test_check_sees_what_is_wrong_with_a_sudoku_answer():
    inputs, labels = generate_sudokus(SUDOKU, 5, rng(6), 4)
    assert check("sudoku", inputs, labels)["valid"].all()
    wrong = labels.copy()
    for row in wrong:
        row[:2] = row[:2][::-1]  # two cells of a row swapped: both columns break
    assert not check("sudoku", inputs, wrong)["valid"].any()
    renamed = labels.copy()  # follows the rules, not the givens
    renamed[labels == 2], renamed[labels == 3] = 3, 2
    assert check("sudoku", np.ones_like(inputs), renamed)["valid"].all()
    assert not check("sudoku", labels, renamed)["valid"].any()
    assert not check("sudoku", inputs, inputs)["valid"].any()
    assert not check("sudoku", inputs, labels * 0 + 99)["valid"].any()
    row, col = np.divmod(np.arange(16), 4)
    square = (2 + (row + col) % 4)[None]  # rows and columns hold, boxes do not
    assert not check("sudoku", np.ones_like(square), square)["valid"][0]
    assert check("sudoku", np.ones_like(square), square, box=(1, 4))["valid"][0]


# ---------------------------------------------------------------- augmentation


def test_turned_mazes_are_solved_again_and_turned_labels_would_be_wrong():
    ds = load(replace(MAZES, size=10, train_rows=300))
    inputs, labels = ds.variants.inputs.reshape(-1, 100), ds.variants.labels.reshape(-1, 100)
    assert ds.variants.inputs.shape == (280, 8, 100)
    assert (ds.variants.inputs[:, 0] == ds.train.inputs).all()
    for i in range(0, len(inputs), 11):
        assert data.solve_maze(decode("maze", inputs[i])) == decode("maze", labels[i])
    grid = ds.train.inputs.reshape(-1, 10, 10)
    turned = set()
    for k in range(4):
        for side_up in grid, grid[:, :, ::-1]:
            turned |= set_of(np.rot90(side_up, k, (1, 2)).reshape(-1, 100))
    assert set_of(inputs) == turned
    # What the usual augmentation trains on:
    naive = puzzles.turned_mazes(ds.train.labels).reshape(-1, 100)
    assert check("maze", inputs, naive)["optimal"].all()
    assert 0.2 < (naive != labels).any(1).mean() < 0.8
    assert ds.card["labels_by_rule"] == "280 of 280"


def test_the_whole_symmetry_group_of_a_sudoku_is_drawn_and_labels_follow():
    _, labels = generate_sudokus(SUDOKU, 40, rng(7), 4)
    orbits = set()
    for answer in labels:
        many = np.tile(answer, (6000, 1))
        turned, also = puzzles.shuffle_sudoku(many, many, rng(8))
        assert (turned == also).all()
        assert check("sudoku", np.ones_like(turned), turned)["valid"].all()
        orbits.add(frozenset(row.tobytes() for row in turned))
    assert sorted(map(len, orbits)) == [96, 192]  # the two classes of the 288 grids, each complete


@pytest.mark.parametrize("side", [4, 6, 9])
def test_sudoku_augmentation_keeps_puzzles_right_and_transposes_only_square_boxes(side):
    inputs, labels = generate_sudokus(SudokuConfig(size=side), 60, rng(9), side)
    turned, solved = puzzles.shuffle_sudoku(inputs, labels, rng(10))
    assert check("sudoku", turned, solved)["valid"].all()
    assert ((turned > 1).sum(1) == (inputs > 1).sum(1)).all()
    assert (turned != inputs).any(1).mean() > 0.95
    assert (puzzles.sudoku_keys(turned, solved) == puzzles.sudoku_keys(inputs, labels)).all()
    one_row = np.where(np.arange(side * side) < side, labels, 1).astype(np.uint8)
    rows = (puzzles.shuffle_sudoku(one_row, labels, rng(11))[0] > 1).reshape(-1, side, side)
    flipped = rows.all(1).any(1).mean()  # a full column
    assert flipped == 0 if side == 6 else 0.2 < flipped < 0.8
    one_cell = np.tile(
        np.where(np.arange(side * side) == 0, labels[0], 1).astype(np.uint8), (100 * side * side, 1)
    )
    turned, _ = puzzles.shuffle_sudoku(one_cell, np.tile(labels[0], (len(one_cell), 1)), rng(12))
    assert abs((turned > 1).sum(0) / 100 - 1).max() < 0.5  # it goes everywhere


@pytest.mark.parametrize("size", [4, 6, 9])
def test_draws_of_sudokus_are_right_and_differ_from_the_base_rows(size):
    cfg = replace(SUDOKU, size=size)
    ds = load(cfg)
    plain, batch = draw(ds, replace(cfg, augment=False), 32, 0, 5), draw(ds, cfg, 32, 0, 5)
    assert check("sudoku", batch["inputs"], batch["labels"])["valid"].all()
    assert batch["puzzle"].shape == (32,) and not batch["puzzle"].any()
    assert (plain["inputs"] != batch["inputs"]).any(1).mean() > 0.9


def test_draws_of_mazes_are_right_and_differ_from_the_base_rows():
    ds = load(MAZES)
    batch = draw(ds, MAZES, 32, 0, 5)
    verdict = check("maze", batch["inputs"], batch["labels"])
    assert verdict["valid"].all() and verdict["optimal"].all()
    assert batch["puzzle"].shape == (32,) and not batch["puzzle"].any()
    own = rows_of(ds.train)
    assert np.mean([row.tobytes() not in own for row in batch["inputs"]]) > 0.5


def test_reveal_shows_right_digits_in_its_share_of_the_draws():
    ds = load(SUDOKU)
    hidden, half = (draw(ds, replace(SUDOKU, reveal=share), 2000, 0, 0) for share in (0.0, 0.5))
    more = (half["inputs"] != hidden["inputs"]).any(1)
    assert (half["labels"] == hidden["labels"]).all()
    assert 0.35 < more.mean() < 0.5  # a part may be none
    shown = (hidden["inputs"] == 1) & (half["inputs"] == half["labels"])
    assert ((half["inputs"] == hidden["inputs"]) | shown).all()


# ---------------------------------------------------------------- draws

DRAWS = [
    MAZES,
    replace(MAZES, fresh=True),
    replace(MAZES, fresh=True, walls="perfect", size=5),
    SUDOKU,
    replace(SUDOKU, augment=False),
    replace(SUDOKU, redraw=2),
]


def same(a: dict, b: dict) -> bool:
    return all((a[name] == b[name]).all() for name in a)


def name_of(cfg) -> str:
    """Of a parametrized test."""
    keys = [key for key in ("size", "walls", "fresh", "augment", "redraw") if hasattr(cfg, key)]
    return "-".join([cfg.task] + [f"{key}={getattr(cfg, key)}" for key in keys])


@pytest.mark.parametrize("cfg", DRAWS, ids=name_of)
def test_a_batch_is_a_function_of_seed_and_step_and_the_ranks_join(cfg):
    ds, again = load(cfg), load(cfg)
    steps = [3, 0, 40, 41, 3]
    got = [draw(ds, cfg, 32, 1, step) for step in steps]
    for step, batch in reversed(list(zip(steps, got))):  # another order, another process
        assert same(batch, draw(again, cfg, 32, 1, step))
    assert same(got[0], got[4])
    assert not any(same(a, b) for a, b in itertools.combinations(got[:4], 2))
    assert not same(got[0], draw(ds, cfg, 32, 2, 3))
    for world in 2, 4:
        parts = [draw(ds, cfg, 32, 1, 3, rank, world) for rank in range(world)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in got[0]}
        assert same(got[0], joined)
    with pytest.raises(UserError, match="does not divide"):
        draw(ds, cfg, 32, 1, 3, 0, 3)


@pytest.mark.parametrize("cfg", [MAZES, SUDOKU], ids=name_of)
def test_each_step_augments_anew(cfg):
    def first(split) -> Split:
        return Split(split.inputs[:1], split.labels[:1])

    ds = load(cfg)
    single = replace(ds, train=first(ds.train))  # every row of a batch shows the same puzzle
    if cfg.task == "maze":
        single = replace(single, variants=first(ds.variants))
    a, b = (draw(single, cfg, 32, 0, step) for step in (0, 1))
    assert len(set_of(a["inputs"])) > 4
    assert not same(a, b)


@pytest.mark.parametrize("size", [7, 70, 200])
def test_an_epoch_shows_every_row_once_and_the_next_in_another_order(size):
    cfg = replace(SUDOKU, augment=False)
    ds = load(cfg)
    n, steps = len(ds.train), 3 * len(ds.train) // size + 1
    index = {row.tobytes(): i for i, row in enumerate(ds.train.inputs)}
    assert len(index) == n
    seen = [
        index[row.tobytes()]
        for step in range(steps)
        for row in draw(ds, cfg, size, 0, step)["inputs"]
    ]
    epochs = [seen[e * n : (e + 1) * n] for e in range(3)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_batches_are_the_draws_as_tensors():
    ds = load(MAZES)
    feed = batches(ds, MAZES, 8, 0, 10, rank=1, world=2)
    for step, batch in zip(range(10, 14), feed):
        assert all(t.dtype == torch.int64 and t.device.type == "cpu" for t in batch.values())
        assert batch["inputs"].shape == (4, 36)
        assert same(
            {name: t.numpy() for name, t in batch.items()}, draw(ds, MAZES, 8, 0, step, 1, 2)
        )
    feed.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("draw")]


def test_an_error_of_the_thread_reaches_the_loop(monkeypatch):
    ds, honest = load(MAZES), data.draw

    def fail_at_step_2(ds, cfg, size, seed, step, *ranks):
        if step == 2:
            raise ZeroDivisionError
        return honest(ds, cfg, size, seed, step, *ranks)

    monkeypatch.setattr(data, "draw", fail_at_step_2)
    feed = batches(ds, MAZES, 8, 0, 0)
    next(feed), next(feed)
    with pytest.raises(ZeroDivisionError):
        next(feed)


# ---------------------------------------------------------------- splits

SPLITS = [
    MAZES,
    replace(MAZES, size=4),
    replace(MAZES, size=4, fresh=True),
    SUDOKU,
    replace(SUDOKU, size=6),
    replace(SUDOKU, size=9),
]


@pytest.mark.parametrize("cfg", SPLITS, ids=name_of)
def test_no_puzzle_is_in_two_splits_even_turned_mirrored_or_renamed(cfg):
    ds = load(cfg)
    train, fresh = ds.train, ds.train is None
    if fresh:
        draws = [draw(ds, cfg, 64, 0, step) for step in range(30)]
        columns = (np.concatenate([d[name] for d in draws]) for name in ("inputs", "labels"))
        train = Split(*columns)
    else:
        assert len(train) + 20 + ds.card["dropped_in_val"] == 90
    assert (len(ds.val), len(ds.test)) == (20, 30)
    splits = train, ds.val, ds.test
    keys = []
    for split in splits:
        own = puzzles.puzzle_keys(cfg.task, split.inputs, split.labels).min(1)
        keys.append(set(own.tolist()))
    for a, b in itertools.combinations(keys, 2):
        assert not a & b
    if cfg.task == "maze":  # without hashes
        turned = []
        for split in splits:
            turned.append(set_of(puzzles.turned_mazes(split.inputs).reshape(-1, cfg.size**2)))
        for a, b in itertools.combinations(turned, 2):
            assert not a & b
    again = load(cfg)
    for a, b in (ds.val, again.val), (ds.test, again.test):
        assert (a.inputs == b.inputs).all() and (a.labels == b.labels).all()
    assert ds.card["rows"] == {"train": "fresh" if fresh else len(train), "val": 20, "test": 30}


def test_default_sizes_of_the_splits():
    ds = load(MazeConfig(size=5))
    assert len(ds.train) + ds.card["dropped_in_val"] == 900
    assert (len(ds.val), len(ds.test)) == (100, 512)
    assert len(load(MazeConfig(size=5, train_rows=200)).val) == 50
    assert len(load(MazeConfig(size=8, train_rows=6000)).val) == 512
    assert len(load(MazeConfig(size=5, fresh=True)).val) == 512


@pytest.mark.parametrize("task, size", [("maze", 8), ("sudoku", 4), ("sudoku", 9)])
def test_training_rows_that_are_test_puzzles_in_disguise_are_dropped(tmp_path, task, size):
    make = generate_mazes if task == "maze" else generate_sudokus
    cfg = tasks.get(task).Config(size=size, val_rows=10)
    inputs, labels = make(cfg, 70, rng(12), size)
    if task == "maze":
        hidden = np.rot90(inputs[:5].reshape(-1, size, size)[:, :, ::-1], 1, (1, 2)).reshape(5, -1)
        hidden = hidden, puzzles.solve_mazes(hidden)[0]
    else:
        hidden = puzzles.shuffle_sudoku(inputs[:5], labels[:5], rng(13))
    test = write_split(tmp_path / "test.csv", inputs[:20], labels[:20], task)
    train = write_split(
        tmp_path / "train.csv", [*inputs[20:], *hidden[0]], [*labels[20:], *hidden[1]], task
    )
    ds = load(replace(cfg, train_path=train, test_path=test))
    assert ds.card["dropped_in_test"] >= 5 and len(ds.val) == 10 and len(ds.test) == 20
    keys = puzzles.puzzle_keys(task, hidden[0], hidden[1]).min(1)
    for split in ds.train, ds.val:
        assert not np.isin(puzzles.puzzle_keys(task, split.inputs, split.labels).min(1), keys).any()


def test_sudoku_keys_tell_different_puzzles_apart():
    inputs, labels = generate_sudokus(replace(SUDOKU, size=9), 400, rng(14), 9)
    assert len(np.unique(puzzles.sudoku_keys(inputs, labels))) == 400
    other = inputs.copy()
    for row in other:
        row[np.flatnonzero(row > 1)[0]] = 1  # a clue less
    assert not np.isin(
        puzzles.sudoku_keys(other, labels), puzzles.sudoku_keys(inputs, labels)
    ).any()


@real
def test_the_real_maze_set_loads_with_a_full_card():
    train, test = (str(SHARED / f"maze_hard_{split}.csv.gz") for split in ("train", "test"))
    ds = load(MazeConfig(train_path=train, test_path=test, generate=False))
    assert ds.card["rows"] == {"train": 900, "val": 100, "test": 1000}
    assert ds.card["dropped_in_test"] == 0
    assert ds.card["labels_by_rule"] == "900 of 900"
    assert 0.87 < ds.card["baseline"]["cells"] < 0.88
    assert ds.card["baseline"]["exact"] == 0
    assert ds.shape == {"seq_len": 900, "vocab_size": 6}
    batch = draw(ds, MazeConfig(), 16, 0, 0)
    verdict = check("maze", batch["inputs"], batch["labels"])
    assert verdict["valid"].all() and verdict["optimal"].all()


@real
def test_the_real_sudoku_set_loads_with_a_full_card():
    train = str(SHARED / "sudoku_extreme_train_1000.csv.gz")
    test = str(SHARED / "sudoku_proxy_test_5000.csv.gz")
    ds = load(SudokuConfig(size=9, train_path=train, test_path=test))
    assert ds.card["rows"] == {"train": 900, "val": 100, "test": 5000}
    assert ds.card["dropped_in_test"] == ds.card["dropped_in_val"] == 0
    assert ds.card["train_source"] == "sudoku_extreme_train_1000.csv.gz"
    assert len(ds.card["train_sha256"]) == 64
    assert ds.shape == {"seq_len": 81, "vocab_size": 11, "box_rows": 3, "box_cols": 3}


def test_redrawn_mazes_are_as_far_and_solved_by_the_rule():
    cfg = replace(MAZES, size=8, redraw=5, flip=0.05)
    ds = load(cfg)
    n, variants = len(ds.train), ds.variants
    assert variants.inputs.shape == (n, 48, 64)
    turned, copies = variants.inputs[:, :8], variants.inputs[:, 8:].reshape(n, 8, 5, 64)
    assert (turned == puzzles.turned_mazes(ds.train.inputs)).all()
    least = (ds.train.labels == puzzles.PATH).sum(1).min() + 1
    for question, label in zip(variants.inputs[3], variants.labels[3]):
        assert data.solve_maze(decode("maze", question)) == decode("maze", label)
        assert (label == puzzles.PATH).sum() + 1 >= least
    new = (copies != turned[:, :, None]).any(-1)
    assert new.mean() > 0.9
    changed = ((copies == puzzles.WALL) != (turned[:, :, None] == puzzles.WALL))[new].mean()
    assert 0.03 < changed < 0.06
    drawn = set_of(draw(ds, cfg, 400, 0, 0)["inputs"])
    assert drawn - set_of(turned.reshape(-1, 64)), "copies are drawn too"


def test_without_flips_the_walls_stay():
    inputs, _ = generate_mazes(MAZES, 30, rng(1), 8)
    out = puzzles.redraw_mazes(inputs, 0.0, rng(2))
    assert ((out == puzzles.WALL) == (inputs == puzzles.WALL)).all()
    assert (out != inputs).any(1).mean() > 0.8


def sudoku_keys_of(split) -> np.ndarray:
    return puzzles.sudoku_keys(split.inputs, split.labels)


def test_redrawn_sudokus_have_other_clues_of_the_same_only_solution():
    cfg = replace(SUDOKU, redraw=3)
    ds, plain = load(cfg), load(SUDOKU)
    inputs, labels = ds.variants.inputs, ds.variants.labels
    assert inputs.dtype == labels.dtype == np.uint8
    assert inputs.shape == labels.shape == (len(ds.train), 4, 16)
    assert (inputs[:, 0] == plain.train.inputs).all()
    assert (labels == plain.train.labels[:, None]).all()
    assert ((inputs == 1) | (inputs == labels)).all()
    for question, label in zip(inputs.reshape(-1, 16), labels.reshape(-1, 16)):
        assert solutions((question.astype(int) - 1).tolist(), 4) == 1
        assert data.solve_sudoku(decode("sudoku", question)) == decode("sudoku", label)
    copies, rows = inputs[:, 1:], inputs[:, :1]
    changed = (copies != rows).any(-1)
    assert changed.mean() > 0.8
    assert ((copies > 1) & (rows == 1)).sum(-1).max() <= 4  # new clues
    unchanged = (~changed).sum()
    assert ds.card["redraw_unchanged"] == f"{unchanged} of {changed.size} copies"
    assert "3 copies with other clues" in ds.card["augmentation"]
    again = load(cfg)
    assert (again.variants.inputs == inputs).all()


@pytest.mark.parametrize("side", [4, 6, pytest.param(9, marks=pytest.mark.slow)])
def test_of_a_redrawn_sudoku_no_old_clue_could_be_spared(side):
    before, labels = generate_sudokus(SudokuConfig(size=side), 3, rng(20), side)
    after = puzzles.redraw_sudokus(before, labels, rng(21))
    for old, new in zip(before, after):
        digits = (new.astype(int) - 1).tolist()
        assert solutions(digits, side) == 1
        for at in np.flatnonzero((old > 1) & (new > 1)):
            assert solutions(digits[:at] + [0] + digits[at + 1 :], side) == 2


@pytest.mark.parametrize("side", [4, 6, pytest.param(9, marks=pytest.mark.slow)])
def test_a_sudoku_nearby_has_another_solution_and_no_second_one(side):
    before, labels = generate_sudokus(SudokuConfig(size=side), 20, rng(23), side)
    before = puzzles.redraw_sudokus(before, labels, rng(23))  # with few clues too many
    after, answers = puzzles.other_solutions(before, labels, rng(24))
    assert after.dtype == answers.dtype == np.uint8
    assert ((after == 1) | (after == answers)).all()
    for question, answer in zip(after, answers):
        assert solutions((question.astype(int) - 1).tolist(), side) == 1
        assert data.solve_sudoku(decode("sudoku", question)) == decode("sudoku", answer)
    moved = (answers != labels).any(1)
    assert moved.mean() > 0.5
    assert (after[~moved] == before[~moved]).all()
    clues = before > 1
    assert (after > 1)[clues].all()  # clues stay clues, and one of them has another digit
    assert ((after != before) & clues)[moved].sum(1).tolist() == [1] * moved.sum()
    again, _ = puzzles.other_solutions(before, labels, rng(24))
    assert (again == after).all()


def test_copies_with_other_solutions_walk_away_from_their_row():
    cfg = replace(SUDOKU, redraw=3, redraw_solutions=True)
    ds = load(cfg)
    inputs, labels = ds.variants.inputs, ds.variants.labels
    assert (labels[:, 0] == ds.train.labels).all() and (inputs[:, 0] == ds.train.inputs).all()
    assert ((inputs == 1) | (inputs == labels)).all()
    differs = (labels[:, 1:] != labels[:, :-1]).any(-1)
    assert differs.mean() > 0.5
    assert "3 copies with other solutions" in ds.card["augmentation"]
    held_out = np.union1d(sudoku_keys_of(ds.val), sudoku_keys_of(ds.test))
    flat = Split(inputs.reshape(-1, 16), labels.reshape(-1, 16))
    assert not np.isin(sudoku_keys_of(flat), held_out).any()
    batch = draw(ds, cfg, 200, 0, 0)
    assert np.isin(
        puzzles.sudoku_keys(batch["inputs"], batch["labels"]), sudoku_keys_of(flat)
    ).all()


def test_no_redrawn_sudoku_is_held_out(monkeypatch):
    cfg = replace(SUDOKU, redraw=3)
    ds = load(cfg)
    held_out = np.union1d(sudoku_keys_of(ds.val), sudoku_keys_of(ds.test))
    inputs, labels = (t.reshape(-1, 16) for t in (ds.variants.inputs, ds.variants.labels))
    assert not np.isin(sudoku_keys_of(Split(inputs, labels)), held_out).any()

    # Half of the copies are made test puzzles: their rows stand in.
    first = puzzles.redraw_sudokus(ds.train.inputs, ds.train.labels, rng(22))
    half = len(first) // 2
    bad = puzzles.sudoku_keys(first[:half], ds.train.labels[:half])
    monkeypatch.setattr("tasks.sudoku.redraw_sudokus", lambda *args: first)
    card = {"augmentation": ""}
    made = tasks.get("sudoku").redraw(cfg, ds.train, bad, card)
    refused = np.isin(puzzles.sudoku_keys(first, ds.train.labels), bad)
    assert refused[:half].all() and not refused.all()
    expected = np.where(refused[:, None], ds.train.inputs, first)
    assert (made.inputs[:, 1:] == expected[:, None]).all()
    assert card["redraw_held_out"] == f"{3 * refused.sum()} of {3 * len(first)} copies"


def test_draws_take_redrawn_sudokus_too_and_move_them():
    cfg = replace(SUDOKU, redraw=3)
    ds = load(cfg)
    batch = draw(ds, cfg, 400, 0, 0)
    drawn = puzzles.sudoku_keys(batch["inputs"], batch["labels"])
    own = np.isin(drawn, sudoku_keys_of(ds.train))
    assert 0.1 < own.mean() < 0.5  # a quarter, and copies that are like a row
    known = puzzles.sudoku_keys(
        ds.variants.inputs.reshape(-1, 16), ds.variants.labels.reshape(-1, 16)
    )
    assert np.isin(drawn, known).all()
    assert not set_of(batch["inputs"]) <= set_of(ds.variants.inputs.reshape(-1, 16))


def test_test_mazes_may_have_another_size():
    ds = load(replace(MAZES, test_size=9))
    assert ds.test.inputs.shape == (30, 81)
    assert ds.val.inputs.shape == (20, 36)
    assert ds.shape["seq_len"] == 36
    assert (ds.card["size"], ds.card["test_size"]) == (6, 9)


def test_baseline_is_what_copying_scores():
    questions, answers = [[1, 2], [2, 2]], [[1, 2], [2, 5]]
    split = Split(np.array(questions, np.uint8), np.array(answers, np.uint8))
    assert copying(split) == {"exact": 0.5, "cells": 0.75}


# ---------------------------------------------------------------- liveness
# Every field of every table does something.

ROWS = [("train_path", "train"), ("test_path", "test"), ("generate", False), ("seed", 1)]
COUNTS = [("train_rows", 80), ("val_rows", 19), ("test_rows", 29)]
SWITCHES = {
    "maze": [(MAZES, *row) for row in ROWS + COUNTS]
    + [
        (MAZES, "size", 7),
        (MAZES, "test_size", 8),
        (replace(MAZES, size=5), "walls", "perfect"),
        (MAZES, "wall_min", 0.4),
        (MAZES, "wall_max", 0.3),
        (MAZES, "min_distance", 9),
        (MAZES, "fresh", True),
        (MAZES, "augment", False),
        (MAZES, "redraw", 2),
        (replace(MAZES, redraw=2), "flip", 0.1),
    ],
    "sudoku": [(SUDOKU, *row) for row in ROWS + COUNTS]
    + [
        (SUDOKU, "size", 6),
        (SUDOKU, "givens_min", 9),
        (SUDOKU, "givens_max", 7),
        (SUDOKU, "augment", False),
        (SUDOKU, "redraw", 2),
        (replace(SUDOKU, redraw=2), "redraw_solutions", True),
        (SUDOKU, "reveal", 1.0),
    ],
    "features": [(VECTORS, *row) for row in ROWS[:1] + ROWS[2:] + COUNTS]
    + [
        (replace(VECTORS, train_path="train"), "test_path", "test"),
        (VECTORS, "features", 9),
        (VECTORS, "classes", 3),
        (VECTORS, "noise", 0.2),
        (VECTORS, "feature_tokens", 2),
    ],
    "modular": [
        (SUMS, "modulus", 7),
        (SUMS, "operation", "multiply"),
        (SUMS, "train_share", 0.3),
        (SUMS, "seed", 1),
    ],
    "control": [(PLANS, *row) for row in ROWS[:1] + ROWS[2:]]
    + [
        (replace(PLANS, train_path="train"), "test_path", "test"),
        (PLANS, "plant", "van_der_pol"),
        (PLANS, "train_rows", 11),
        (PLANS, "val_rows", 3),
        (PLANS, "test_rows", 4),
    ],
}


def picture(cfg):
    """All that a table of [data] decides."""
    try:
        ds = load(cfg)
    except UserError:
        return "refused"
    batch = draw(ds, cfg, 16, 0, 0)["inputs"].tobytes()
    return [ds.shape, ds.val.inputs.tobytes(), ds.test.inputs.tobytes(), batch]


def file_for(folder: Path, name: str, cfg) -> str:
    """A file of rows that fits a table."""
    if cfg.task == "features":
        count = {"train": 900, "test": 50}[name]
        path = folder / f"{name}.npz"
        np.savez(path, features=rng(15).normal(size=(count, 8)), labels=np.arange(count) % 3)
        return str(path)
    if cfg.task == "control":
        np.savez(folder / f"{name}.npz", **generate(PLANTS[cfg.plant], 20, name, 15))
        return str(folder / f"{name}.npz")
    make = generate_mazes if cfg.task == "maze" else generate_sudokus
    return write_split(folder / f"{name}.csv", *make(cfg, 90, rng(15), cfg.size), cfg.task)


@pytest.mark.parametrize(
    "base, key, value",
    [row for rows in SWITCHES.values() for row in rows],
    ids=lambda v: getattr(v, "task", v),
)
def test_every_field_changes_the_data(tmp_path, base, key, value):
    for path in ("train_path", "test_path"):
        name = getattr(base, path, "")
        if name:
            base = replace(base, **{path: file_for(tmp_path, name, base)})
    if key.endswith("_path"):
        value = file_for(tmp_path, value, base)
    before = picture(base)
    assert before == picture(base) != "refused"
    assert picture(replace(base, **{key: value})) != before


@pytest.mark.parametrize("task", SWITCHES)
def test_no_field_is_missing_above(task):
    table = tasks.get(task).Config
    assert table().task == task
    fields = {field.name for field in dataclasses.fields(table)} - {"task"}
    assert {key for _, key, _ in SWITCHES[task]} == fields


def test_walls_distance_and_clues_are_what_was_asked():
    _, labels = generate_mazes(replace(MAZES, min_distance=12), 50, rng(0), 8)
    assert (labels == puzzles.PATH).sum(1).min() + 1 >= 12
    inputs, _ = generate_mazes(replace(MAZES, wall_min=0.0, wall_max=0.0), 5, rng(0), 8)
    assert (inputs != puzzles.WALL).all()
    inputs, _ = generate_sudokus(
        replace(SUDOKU, size=9, givens_min=30, givens_max=30), 10, rng(0), 9
    )
    assert ((inputs > 1).sum(1) == 30).all()
    assert puzzles.givens_range(replace(SUDOKU, size=9, givens_max=25)) == (25, 25)
    assert puzzles.givens_range(replace(SUDOKU, size=9, givens_min=50)) == (50, 50)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".csv.xz"])
def test_files_of_every_kind_read_the_same(tmp_path, suffix):
    inputs, labels = generate_mazes(MAZES, 60, rng(16), 6)
    rows = []
    for question, answer in zip(inputs, labels):
        rows.append(("elsewhere", decode("maze", question), "7", decode("maze", answer)))
    path = write(tmp_path / f"a{suffix}", rows, "\ufeffsource,question,rating,answer")
    got = read(path, "maze", 6)
    assert (got[0] == inputs).all() and (got[1] == labels).all()
    ds = load(replace(MAZES, train_path=path))
    assert ds.card["train_rows_in_file"] == 60
    dropped = ds.card["dropped_in_val"] + ds.card["dropped_in_test"]
    assert ds.card["rows"]["train"] + 20 + dropped == 60


def test_the_seed_decides_which_rows_of_a_file_are_used(tmp_path):
    inputs, labels = generate_mazes(replace(MAZES, size=8), 200, rng(20), 8)
    path = write_split(tmp_path / "a.csv", inputs, labels)
    cfg = replace(MAZES, size=8, train_path=path, train_rows=100, test_rows=30)
    first, other, whole = load(cfg), load(replace(cfg, seed=1)), load(replace(cfg, train_rows=0))
    assert len(first.train) == 80
    assert len(whole.train) == 180
    assert first.card["train_rows_in_file"] == 200
    assert not rows_of(first.train) <= set_of(inputs[:100])
    assert rows_of(first.train) != rows_of(other.train)
    recut = load(replace(cfg, train_rows=0, seed=1))  # the same pool, another cut
    assert rows_of(whole.val) != rows_of(recut.val)
    as_test = replace(MAZES, size=8, test_path=path)
    one, two = load(as_test), load(replace(as_test, seed=1))
    assert rows_of(one.test) != rows_of(two.test) <= set_of(inputs)
    assert len(load(replace(as_test, test_rows=0)).test) == 200


def test_zeros_are_blanks_too(tmp_path):
    path = write(tmp_path / "a.csv", [("0.34341221434321", "1234341221434321")])
    assert read(path, "sudoku", 4)[0][0, :4].tolist() == [1, 1, 4, 5]


def test_labels_that_follow_another_rule_are_reported_not_refused(tmp_path):
    inputs, labels = generate_mazes(replace(MAZES, size=8), 200, rng(17), 8)
    mirrored = [rows.reshape(-1, 8, 8)[:, ::-1].reshape(-1, 64) for rows in (inputs, labels)]
    ds = load(replace(MAZES, size=8, train_path=write_split(tmp_path / "a.csv", *mirrored)))
    agree, of = map(int, ds.card["labels_by_rule"].split(" of "))
    assert of == len(ds.train) and 0.2 * of < agree < 0.8 * of


MAZE = ("S # G" + 20 * " ", "S # G" + "ooooo" + 15 * " ")
GOOD4 = ("1.34341221434321", "1234341221434321")
BLOCKED = "S#  G" + "##   " + 15 * " "
BAD_MAZES = [  # the question and answer of row 2 of a file of 5x5, and what is said of it
    (MAZE[0][1:], MAZE[1], r"the question has 24 cells, expected 25 \(5x5\)"),
    (MAZE[0], MAZE[1] + " ", "the answer has 26 cells, expected 25"),
    (MAZE[0][:-1] + "x", MAZE[1], "the question has 'x' at position 25, expected one of ' #GS'"),
    (MAZE[0][:-1] + "\u263a", MAZE[1], "the question has '\u263a' at position 25"),
    (MAZE[1], MAZE[1], "the question has 'o' at position 6"),
    (MAZE[0].replace("S", " "), MAZE[1], "the question has 0 cells S, expected exactly one"),
    (MAZE[0][:-1] + "G", MAZE[1], "the question has 2 cells G, expected exactly one"),
    (
        MAZE[0],
        MAZE[1].replace("#", "o"),
        "the answer has 'o' at position 3, where the question gives '#'",
    ),
    (BLOCKED, BLOCKED, "G cannot be reached from S"),
]
BAD_SUDOKUS = [  # the same of 4x4
    (
        "5" + GOOD4[0][1:],
        GOOD4[1],
        "the question has '5' at position 1, expected one of '.01234'",
    ),
    (GOOD4[0], GOOD4[0], "the answer has '.' at position 2, expected one of '1234'"),
    (
        GOOD4[0],
        "4231" + GOOD4[1][4:],
        "the answer has '4' at position 1, where the question gives '1'",
    ),
    (GOOD4[0], "1134" + GOOD4[1][4:], "the answer has a digit twice"),
]


@pytest.mark.parametrize("question, answer, sentence", BAD_MAZES)
def test_a_bad_maze_ends_in_one_sentence_that_finds_it(tmp_path, question, answer, sentence):
    path = write(tmp_path / "bad.csv", [MAZE, (question, answer)])
    refuses(MazeConfig(size=5, test_path=path, train_rows=90), f"bad.csv, row 2: {sentence}")


@pytest.mark.parametrize("question, answer, sentence", BAD_SUDOKUS)
def test_a_bad_sudoku_ends_in_one_sentence_that_finds_it(tmp_path, question, answer, sentence):
    path = write(tmp_path / "bad.csv", [GOOD4, (question, answer)])
    refuses(SudokuConfig(size=4, test_path=path, train_rows=90), f"bad.csv, row 2: {sentence}")


def test_bad_files_end_in_one_sentence(tmp_path):
    good = write_split(tmp_path / "good.csv.gz", *generate_mazes(MAZES, 60, rng(18), 6))
    packed = Path(good).read_bytes()
    truncated = lzma.compress(b"question,answer\n" * 99)[:-20]
    cases = {  # name -> its bytes, and what is said of it
        "empty.csv": (b"", "empty.csv is empty"),
        "header.csv": (b"question,answer\n", "header but no rows"),
        "column.csv": (
            b"question,solution\na,b\n",
            "has no column 'answer', it has 'question, solution'",
        ),
        "short.csv": (b"source,question,answer\nx,y\n", "row 1: 2 columns, expected 3"),
        "truncated.csv.gz": (packed[:-40], "truncated.csv.gz cannot be read"),
        "plain.csv.gz": (b"question,answer\n", "plain.csv.gz cannot be read"),
        "broken.csv.gz": (packed[:40] + b"\0" * 30 + packed[70:], "broken.csv.gz cannot be read"),
        "truncated.csv.xz": (truncated, "truncated.csv.xz cannot be read"),
        "plain.csv.xz": (b"question,answer\n", "plain.csv.xz cannot be read"),
        "binary.csv": (b"\xff\xfe\x00\x01" * 50, "binary.csv cannot be read"),
    }
    for name, (content, sentence) in cases.items():
        (tmp_path / name).write_bytes(content)
        refuses(replace(MAZES, train_path=str(tmp_path / name)), sentence)
    (tmp_path / "folder.csv").mkdir()
    refuses(
        replace(MAZES, train_path=str(tmp_path / "folder.csv")),
        "folder.csv.*expected a data folder of the public code",
    )
    absent = "absent.csv does not exist; expected a CSV with the columns question and answer"
    refuses(replace(MAZES, train_path=str(tmp_path / "absent.csv")), absent)
    absent = "maze_hard_train.csv does not exist; `python data.py download maze_hard`"
    refuses(replace(MAZES, train_path=str(tmp_path / "maze_hard_train.csv")), absent)
    other_size = r"row 1: the question has 36 cells \(6x6\), expected 900 \(30x30\)"
    refuses(MazeConfig(train_path=good), other_size)
    too_many = "data.val_rows = 500, expected fewer than data.train_rows = 90"
    refuses(replace(MAZES, train_path=good, val_rows=500), too_many)
    too_many = "data.val_rows: 500 validation rows leave nothing of"
    refuses(replace(MAZES, train_path=good, train_rows=0, val_rows=500), too_many)
    too_few = "data.test_rows = 61, but .*good.csv.gz has 60 rows"
    refuses(replace(MAZES, test_path=good, test_rows=61), too_few)


IMPOSSIBLE_MAZES = [  # keys over those of MAZES, and what is said of them
    ({"size": 1}, "data.size = 1, expected 2 to 60"),
    ({"test_size": 61}, "data.test_size = 61, expected 2 to 60"),
    ({"walls": "perfect"}, "data.size = 6, expected an odd number .* perfect"),
    (
        {"walls": "perfect", "size": 5, "test_size": 8},
        "data.test_size = 8, expected an odd number .* perfect",
    ),
    ({"wall_min": 0.6}, "data.wall_min = 0.6, expected .*wall_max = 0.5"),
    ({"val_rows": -1}, "data.val_rows = -1, expected 0 or more"),
    ({"redraw": -1}, "data.redraw = -1, expected 0 or more"),
    ({"redraw": 1, "augment": False}, "data.redraw = 1, expected 0 with .*augment = false"),
    ({"redraw": 1, "fresh": True}, "data.redraw = 1, expected 0 with .*fresh = true"),
    ({"flip": 0.5}, "data.flip = 0.5, expected a share below 0.5"),
    ({"seed": -1}, "data.seed = -1, expected 0 or more"),
    ({"fresh": True, "train_path": "x.csv"}, "data.fresh = True, expected .*data.train_path"),
    ({"fresh": True, "generate": False}, "data.fresh = True, expected .*data.generate = false"),
    ({"train_rows": 0}, "data.train_rows = 0, expected .*data.train_path is empty"),
    ({"generate": False}, "data.test_path is empty: `python data.py download maze_hard` fetches"),
    ({"size": 3, "min_distance": 9}, "none of .* lower --data.min_distance=9"),
]
IMPOSSIBLE_SUDOKUS = [
    ({"size": 5}, "data.size = 5, expected 4, 6 or 9"),
    ({"givens_max": 3}, "data.givens_max = 3, expected"),
    (
        {"givens_min": 9, "givens_max": 8},
        "data.givens_max = 8, expected .*9.* <= ",
    ),
    ({"redraw": -1}, "data.redraw = -1, expected 0 or more"),
    ({"redraw": 1, "augment": False}, "data.redraw = 1, expected 0 with .*augment = false"),
    ({"redraw_solutions": True}, "data.redraw_solutions = True, expected false with .*redraw = 0"),
    ({"reveal": 1.5}, "data.reveal = 1.5, expected a share"),
    ({"size": 9, "generate": False}, "download sudoku_extreme"),
    (
        {"givens_min": 15, "givens_max": 15},
        "none of .* widen --data.givens_min=15 or --data.givens_max=15",
    ),
    (
        {"givens_max": 5, "val_rows": 60},
        "60 validation rows leave nothing of .* different training rows",
    ),
]


@pytest.mark.parametrize("change, sentence", IMPOSSIBLE_MAZES)
def test_impossible_mazes_are_refused_in_one_sentence(change, sentence):
    refuses(replace(MAZES, **change), sentence)


@pytest.mark.parametrize("change, sentence", IMPOSSIBLE_SUDOKUS)
def test_impossible_sudokus_are_refused_in_one_sentence(change, sentence):
    refuses(replace(SUDOKU, **change), sentence)


@pytest.mark.parametrize(
    "table, key, value, sentence",
    [
        (MazeConfig, "walls", "hedge", "walls = 'hedge', expected one of 'random', 'perfect'"),
        (MazeConfig, "reveal", 0.5, "unknown key 'reveal'"),
        (SudokuConfig, "test_size", 9, "unknown key 'test_size'"),
        (SudokuConfig, "fresh", True, "unknown key 'fresh'"),
    ],
)
def test_keys_and_words_of_another_task_are_refused(table, key, value, sentence):
    with pytest.raises(UserError, match=sentence):
        check_layer({key: value}, table, "a.toml [data]")


def test_an_unknown_task_is_refused():
    layers = [("a.toml", {"data": {"task": "chess"}})]
    expected = "a.toml .data.: task = 'chess', expected .*'maze', 'sudoku', .*'arc'"
    with pytest.raises(UserError, match=expected):
        Config.variant(layers)


@pytest.mark.parametrize(
    "task, text, size, sentence",
    [
        ("maze", "S  \n   \n  x", 3, "the puzzle has 'x' at position 9"),
        ("maze", "S  G", 3, r"4 cells \(2x2\), expected 9 \(3x3\)"),
        ("maze", "S   ", 2, "0 cells G"),
        ("maze", "SGG ", 2, "2 cells G"),
        ("maze", "", 3, "0 cells"),
        ("sudoku", "12345", 4, "has 5 cells, expected 16"),
        ("sudoku", "1234.5..........", 4, "has '5' at position 6"),
    ],
)
def test_encode_says_what_is_wrong(task, text, size, sentence):
    with pytest.raises(UserError, match=sentence):
        encode(task, text, size)


def test_a_goal_behind_walls_is_said():
    with pytest.raises(UserError, match="no path from S to G"):
        data.solve_maze("S# " + "## " + "  G")


# ---------------------------------------------------------------- downloads


@pytest.fixture
def server():
    """(http://127.0.0.1:port, files, hits).

    files: path -> (body, announced length or None, status). hits: the paths asked for.
    """
    files, hits = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            body, length, status = files.get("/" + self.path.rsplit("/", 1)[-1], (b"gone", 4, 404))
            self.send_response(status)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", files, hits
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def csv_body(tmp_path, monkeypatch):
    """A small file that passes for maze_hard."""
    inputs, labels = generate_mazes(MazeConfig(), 5, rng(19), 30)
    body = Path(write_split(tmp_path / "body.csv", inputs, labels)).read_bytes()
    known = 2 * (files.hash_puzzles(inputs, labels),)
    small = replace(files.PUBLIC["maze_hard"], rows=(5, 5), hashes=known)
    monkeypatch.setitem(files.PUBLIC, "maze_hard", small)
    for name in "http_proxy", "https_proxy", "all_proxy", "no_proxy":
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return body


def test_download_fetches_once_and_what_it_fetched_loads(server, csv_body, tmp_path, capsys):
    url, files, hits = server
    files |= {
        "/train.csv": (csv_body, len(csv_body), 200),
        "/test.csv": (csv_body, None, 200),
    }  # with and without a length
    to = tmp_path / "deep" / "data"
    paths = data.download("maze_hard", str(to), url)
    assert [p.name for p in paths] == ["maze_hard_train.csv", "maze_hard_test.csv"]
    assert paths[0].read_bytes() == csv_body
    assert "5 rows  sha256" in capsys.readouterr().out and len(list(to.iterdir())) == 2
    data.download("maze_hard", str(to), url + "/")
    assert hits == ["/train.csv", "/test.csv"]
    assert len(load(MazeConfig(test_path=str(paths[1]), fresh=True)).test) == 5


def test_a_bad_answer_leaves_nothing_behind_and_names_the_file_to_fetch(server, csv_body, tmp_path):
    url, files, _ = server
    rows = csv_body.split(b"\n")
    swapped = b"\n".join(
        [rows[0], b",".join(rows[1].split(b",")[:1] * 2), *rows[2:]]
    )  # well formed, but not the set
    for body, length, status, why in [
        (
            csv_body[:-500],
            len(csv_body),
            200,
            f"ended after {len(csv_body) - 500} of {len(csv_body)} bytes|IncompleteRead",
        ),
        (csv_body[:-500], None, 200, "row 5: the answer has"),
        (b"<html>please log in</html>", 26, 200, "has no column 'question'"),
        (b"\n".join(rows[:4]) + b"\n", None, 200, "it has 3 rows, expected 5"),
        (swapped, len(swapped), 200, "not those of the data set"),
        (b"", 0, 200, "is empty"),
        (b"gone", 4, 404, "404"),
        (b"later", 5, 503, "503"),
    ]:
        files["/train.csv"] = body, length, status
        to = tmp_path / "data"
        with pytest.raises(UserError, match=why) as error:
            data.download("maze_hard", str(to), url)
        assert str(error.value).endswith(
            f"fetch that address by hand and save it as {to / 'maze_hard_train.csv'}"
        )
        assert f"{url}/train.csv" in str(error.value)
        assert ".part" not in str(error.value)
        assert "\n" not in str(error.value)
        assert not list(to.iterdir())


def test_no_network_a_bad_address_and_an_unwritable_folder_are_said(tmp_path, csv_body):
    (tmp_path / "file").write_text("")
    for url, to in (
        ("http://127.0.0.1:9", "data"),
        ("nonsense", "data"),
        ("http://127.0.0.1:9", "file/data"),
    ):
        with pytest.raises(UserError, match="fetch that address by hand"):
            data.download("maze_hard", str(tmp_path / to), url)


@pytest.fixture
def test_body(csv_body, tmp_path, monkeypatch):
    """A small file that passes for the test rows of maze_hard."""
    small = replace(files.PUBLIC["maze_hard"], hashes=("", ""))
    monkeypatch.setitem(files.PUBLIC, "maze_hard", small)
    inputs, labels = generate_mazes(MazeConfig(), 5, rng(20), 30)
    return Path(write_split(tmp_path / "test_body.csv", inputs, labels)).read_bytes()


@pytest.fixture
def real_data(tmp_path, monkeypatch, server):
    """An entry that names data/maze_hard_train.csv, in an empty folder, and a mirror of the set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", server[0])
    rows = {"train_rows": 0, "val_rows": 1, "test_rows": 0, "generate": False}
    paths = {f"{split}_path": f"data/maze_hard_{split}.csv" for split in ("train", "test")}
    table = {"task": "maze", "size": 30, "augment": False} | rows | paths
    return tiny.entry(tmp_path, data=table, model={"mixer": "conv"}, train={"steps": 1})


def test_training_fetches_the_public_files_that_are_missing(
    real_data, server, csv_body, test_body, tmp_path, capsys
):
    _, files, hits = server
    whole = csv_body, len(csv_body), 200
    answers = [
        ((csv_body[:-500], len(csv_body), 200), "bytes"),  # interrupted
        ((b"<html>log in</html>", None, 200), "has no column 'question'"),
        (whole, ""),
    ]
    for answer, why in answers:
        files |= {"/train.csv": answer, "/test.csv": (test_body, None, 200)}
        code = train.main([str(real_data)])
        err = capsys.readouterr().err
        assert code == (2 if why else 0) and why in err
        assert (tmp_path / "data/maze_hard_train.csv").exists() == (not why)
        assert (tmp_path / "runs").exists() == (not why)
    assert hits[0] == "/datasets/sapientinc/maze-30x30-hard-1k/resolve/main/train.csv"
    asked = len(hits)
    assert train.main([str(real_data), "--seed=1"]) == 0 and len(hits) == asked


@pytest.mark.slow
def test_the_launcher_fetches_once_before_it_starts_anything(
    real_data, server, csv_body, test_body, tmp_path, capsys
):
    _, files, hits = server
    words = [str(real_data), "--seeds", "0,1", "--local"]
    assert submitit_launch.main([*words, "--dry-run"]) == 0 and not hits
    assert submitit_launch.main(words) == 2 and not (tmp_path / "runs").exists()
    assert "--data.generate=true" in capsys.readouterr().err
    hits.clear()
    files |= {"/train.csv": (csv_body, None, 200), "/test.csv": (test_body, None, 200)}
    assert submitit_launch.main(words) == 0
    assert len(hits) == 2 and len(list(tmp_path.glob("runs/tiny/seed*/summary.json"))) == 2


def test_a_missing_file_of_ones_own_is_not_fetched(real_data, server, capsys):
    assert train.main([str(real_data), "--data.test_path=data/mine_test.csv"]) == 2
    assert "data/mine_test.csv does not exist" in capsys.readouterr().err
    assert not server[2]


def test_proxy_variables_are_respected(server, csv_body, tmp_path, monkeypatch):
    url, files, hits = server
    files |= {"/train.csv": (csv_body, None, 200), "/test.csv": (csv_body, None, 200)}
    monkeypatch.setenv("http_proxy", url)
    data.download("maze_hard", str(tmp_path / "data"), "http://puzzles.invalid/main")
    assert hits == ["http://puzzles.invalid/main/train.csv", "http://puzzles.invalid/main/test.csv"]


def test_the_command_line_answers_help_and_fails_with_code_2(tmp_path):
    def run(*args):
        command = [sys.executable, "data.py", *args]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    out = run("--help")
    assert out.returncode == 0 and "download" in out.stdout
    out = run("download", "maze_hard", "--to", str(tmp_path), "--url", "http://127.0.0.1:9")
    assert out.returncode == 2
    assert out.stderr.startswith("error: no ")
    assert out.stderr.count("\n") == 1
    assert run("download", "chess").returncode == 2


def run_in(folder: Path, code: str) -> str:
    """What some code prints in a folder where torch cannot be imported."""
    code = f"import sys; sys.modules['torch'] = None; {code}"
    out = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert not out.returncode, out.stderr
    return out.stdout


def test_the_puzzle_library_can_be_copied_without_the_rest(tmp_path):
    for name in "config.py", "tasks/puzzles.py":
        (tmp_path / Path(name).name).write_bytes((ROOT / name).read_bytes())
    code = "import puzzles; print(puzzles.solve_maze('S  ##G   ').count('o'))"
    assert run_in(tmp_path, code) == "2\n"


def test_data_can_be_copied_with_the_tasks_and_needs_no_torch(tmp_path):
    (tmp_path / "tasks").mkdir()
    for path in ROOT.glob("tasks/*.py"):
        (tmp_path / "tasks" / path.name).write_bytes(path.read_bytes())
    for name in "config.py", "stats.py", "data.py":
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    code = "import data, tasks.maze as m; print(len(data.load(m.MazeConfig(size=5)).test))"
    assert run_in(tmp_path, code) == "512\n"
