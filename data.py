"""Data sets: puzzles from files or generated, split into training, validation and test, augmented, in batches.

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
import os
import sys
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from itertools import count as count_from
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

import arc
from arc import ArcConfig, ArcData
from control import PLANTS, SOURCE_SEEDS, best_plan, plan_cost, read_npz, rollout, scaling, source_splits
from control import generate as generate_rows
from control import inputs as control_inputs
from control_metrics import figures
from features import additions, bayes, centres, generate_features, read_features
from puzzles import BOX, FREE, LEAST_GIVENS, MAX_SIDE, PATH, UserError, epoch_rows, rng
from puzzles import check, decode, encode, generate_mazes, generate_sudokus, solve_maze, solve_sudoku  # noqa: F401, also for users of data
from puzzles import (check_ends, givens_range, puzzle_keys, redraw_mazes, shuffle_sudoku, solve_mazes, to_tokens,
                     turned_mazes)


PlantName = Literal[tuple(PLANTS)]


@dataclass(frozen=True)
class DataConfig:
    task: Literal["maze", "sudoku", "features", "modular", "control", "arc"] = "maze"  # puzzle; vectors to classify; a + b modulo p; plans; demonstrations
    size: int = 30  # side of the grid (Sudoku: 4, 6 or 9)
    train_path: str = ""  # CSV of training rows (.csv, .csv.gz, .csv.xz; features: .csv, .npz; control: .npz); empty: generated
    test_path: str = ""  # CSV of test rows; empty: generated (features with a train_path: cut from that)
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
    redraw: int = 0  # mazes, with augment: further copies of every turned training maze, each with an S and G of its own as far apart
    flip: float = 0.02  # and with this share of its cells changed between wall and free
    features: int = 128  # features: length of a generated vector
    classes: int = 10  # features: classes of generated vectors
    feature_tokens: int = 1  # features: positions over which the net spreads a vector
    noise: float = 2.0  # features: standard deviation of the noise on every generated feature
    modulus: int = 97  # modular: p
    plant: PlantName = "van_der_pol"  # control: see control.py
    train_share: float = 0.5  # modular: share of the p * p sums to train on; the rest is halved into validation and test
    reveal: float = 0.0  # Sudoku: share of training draws that show a random part of their blanks' answers: easier puzzles beside the hard
    seed: int = 0  # of generation and split, not of training: all training seeds share validation and test


@dataclass
class Split:
    inputs: np.ndarray  # (N, L) uint8 questions; features, control: (N, F) float32
    labels: np.ndarray  # (N, L) uint8 answers; features, modular: (N, 1) int64 classes; control: (N, steps, m) float32 plans
    side: int = 0  # of the grid; 0: none
    rows: dict | None = None  # control: the rows as control.py makes them, float64
    more: dict = field(default_factory=dict)  # further columns of a batch; arc: see arc.examples; control: start and target (N, n) float32

    def __len__(self):
        return len(self.inputs)


@dataclass
class Dataset:
    train: Split | None  # None: a fresh maze for every draw
    val: Split
    test: Split
    card: dict  # what a run states about its data: sources, hashes, rows, augmentation, split, trivial baseline
    shape: dict  # what a model needs to know: the fields of model.Shape
    variants: Split | None = None  # (N, 8, L): turned and mirrored training mazes, each solved again
    held_out: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))  # fingerprints no fresh maze may have
    block: tuple = (None, None)  # the last block of fresh mazes, with its key: a cache, no state
    arc: tuple[ArcData, ArcConfig] | None = None  # arc: the tasks that episodes are made of

    def held_out_tasks(self) -> set[str]:
        """Ids of the ARC tasks that nothing may be trained on."""
        return {self.arc[0].tasks[t].id for part in (self.arc[0].val, self.arc[0].test) for t in part} if self.arc else set()


TEST, POOL, VAL, CUT, ORDER, AUGMENT, FRESH, NOISE, REDRAW = range(9)  # streams: second number of every key


def baseline(split: Split, task: str) -> dict[str, float]:
    """What copying the question scores: "exact", share of whole grids, and "cells", share of cells. The bar to clear."""
    same = split.inputs == split.labels
    return {"exact": float(same.all(1).mean()), "cells": float(same.mean())}


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
                    into.append(to_tokens(task, texts, side, where, answer=into is labels))
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
        check_ends(inputs, lambda row: where(row) + " the question")
    blank = (inputs == FREE) & (labels == PATH) if task == "maze" else inputs == 1
    kept = (inputs == labels) | blank
    if not kept.all():
        row, at = np.argwhere(~kept)[0]
        was, now = decode(task, [inputs[row, at]]), decode(task, [labels[row, at]])
        raise UserError(f"{where(row)} the answer has {now!r} at position {at + 1}, where the question gives {was!r}")
    if task == "maze":
        bad, why = solve_mazes(inputs)[1] < 0, "G cannot be reached from S"
    else:
        bad, why = ~check(task, inputs, labels)["valid"], "the answer has a digit twice in a row, column or box"
    if bad.any():
        raise UserError(f"{where(np.flatnonzero(bad)[0])} {why}")


# --- data sets ------------------------------------------------------------------------------------------------------

REAL = {"maze": "maze_hard", "sudoku": "sudoku_extreme"}


def _validate(cfg: DataConfig):
    """Impossible values, one sentence each."""
    if cfg.task not in (*REAL, "features", "modular", "control", "arc"):
        raise UserError(f"data.task = {cfg.task!r}, expected 'maze', 'sudoku', 'features', 'modular', 'control' or 'arc'")
    if cfg.task == "arc":  # described by ArcConfig
        return
    rules = [
        (getattr(cfg, name) < 0, f"data.{name} = {getattr(cfg, name)}, expected 0 or more")
        for name in ("min_distance", "givens_min", "givens_max", "train_rows", "val_rows", "test_rows", "test_size", "redraw", "seed")
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
            (cfg.redraw and (cfg.fresh or not cfg.augment), f"data.redraw = {cfg.redraw} copies fixed mazes when they are augmented, "
             "expected 0 with data.fresh = true or data.augment = false"),
            (not 0 <= cfg.flip < 0.5, f"data.flip = {cfg.flip}, expected a share below 0.5"),
            (cfg.fresh and cfg.train_path, "data.fresh = true and data.train_path exclude each other; drop one"),
            (cfg.fresh and not cfg.generate, "data.fresh = true draws new mazes, which data.generate = false forbids"),
        ]
    elif cfg.task in ("features", "modular"):
        rules += [
            (min(cfg.features, cfg.classes) < 2, f"data.features = {cfg.features} and data.classes = {cfg.classes}, expected 2 or more"),
            (cfg.feature_tokens < 1, f"data.feature_tokens = {cfg.feature_tokens}, expected 1 or more"),
            (not cfg.noise > 0, f"data.noise = {cfg.noise}, expected more than 0"),
            (cfg.modulus < 2, f"data.modulus = {cfg.modulus}, expected 2 or more"),
            (not 0 < cfg.train_share < 1, f"data.train_share = {cfg.train_share}, expected a share between 0 and 1"),
            (cfg.fresh, f"data.fresh = true is for mazes, not for data.task = {cfg.task!r}"),
            (cfg.task == "modular" and (cfg.train_path or cfg.test_path), "data.task = 'modular' is always generated; drop the path"),
            (cfg.test_path and not cfg.train_path, f"data.test_path = {cfg.test_path} needs a data.train_path with the same features"),
            (not cfg.generate and not cfg.train_path, "data.generate = false, but data.train_path is empty"),
        ]
    elif cfg.task == "control":
        rules += [
            (cfg.plant not in PLANTS, f"data.plant = {cfg.plant!r}, expected one of {', '.join(PLANTS)}"),
            (cfg.fresh, "data.fresh = true is for mazes, not for data.task = 'control'"),
            (cfg.test_path and not cfg.train_path, f"data.test_path = {cfg.test_path} needs a data.train_path of the same plant"),
            (not cfg.generate and not cfg.train_path, "data.generate = false, but data.train_path is empty"),
        ]
    elif cfg.size not in BOX:
        rules += [(True, f"data.size = {cfg.size}, a Sudoku has 4, 6 or 9 cells per side")]
    else:
        low, high, least, most = *givens_range(cfg), LEAST_GIVENS[cfg.size], cfg.size**2
        rules += [
            (cfg.test_size not in (0, cfg.size), f"data.test_size = {cfg.test_size}, a Sudoku is tested at its own size {cfg.size}"),
            (not (low <= high <= most and high >= least), f"data.givens_min = {low} and data.givens_max = {high}, expected "
             f"givens_min <= givens_max, and givens_max from {least} to {most}"),
            (not 0 <= cfg.reveal <= 1, f"data.reveal = {cfg.reveal}, expected a share, 0 to 1"),
            (cfg.redraw, f"data.redraw = {cfg.redraw} is for mazes; for Sudoku expected 0"),
            (cfg.fresh, "data.fresh = true is for mazes; ask for more Sudokus with data.train_rows"),
        ]
    no_file = cfg.train_rows == 0 and not cfg.train_path and not cfg.fresh and cfg.task != "modular"
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
    return inputs, labels, {"source": Path(path).name, "sha256": _digest(path), "rows_in_file": total}


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load(cfg: DataConfig, tasks: ArcConfig | None = None) -> Dataset:
    """The three splits of a configuration (`tasks`: of data.task = "arc"), with their card. Deterministic in cfg; no split shares a puzzle with another.

    Puzzles count as the same if a symmetry maps one to the other (mazes: 8 turns and mirror images of the question;
    Sudoku: digits, rows, columns, bands, stacks, transpose). Training rows that occur in the test set are dropped, and the
    validation rows are cut from the training rows before augmentation. Raises UserError for bad files and impossible values.
    """
    _validate(cfg)
    if cfg.task in ("features", "modular"):
        return _load_classes(cfg)
    if cfg.task == "control":
        return _load_control(cfg)
    if cfg.task == "arc":
        return _load_arc(tasks or ArcConfig())
    task, side, test_side = cfg.task, cfg.size, cfg.test_size or cfg.size
    inputs, labels, card_test = _source(cfg, "test", cfg.test_rows or (0 if cfg.test_path else 512), test_side)
    test, held_out = Split(inputs, labels, test_side), puzzle_keys(task, inputs, labels)
    card = {"task": task, "size": side, "test_size": test_side, "augmentation": "none"}
    train = variants = None
    if cfg.fresh:
        inputs, labels, card_train = _source(cfg, "val", cfg.val_rows or 512, side, held_out)
        val = Split(inputs, labels, side)
        held_out = np.union1d(held_out, puzzle_keys(task, inputs, labels))
        card["augmentation"] = "none: every training maze is new"
        card["split"] = "a fresh maze that is a validation or test maze, turned or mirrored, is drawn again"
    else:
        inputs, labels, card_train = _source(cfg, "train", cfg.train_rows, side, held_out)
        keys, in_test = puzzle_keys(task, inputs, labels).min(1), held_out.min(1)  # one key for all copies of a puzzle
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
            turned = turned_mazes(train.inputs)
            if cfg.redraw:
                copies = np.repeat(turned, cfg.redraw, 1).reshape(-1, side * side)
                copies = redraw_mazes(copies, cfg.flip, rng(cfg.seed, REDRAW)).reshape(len(train), -1, side * side)
                turned = np.concatenate([turned, copies], 1)
            solved = solve_mazes(turned.reshape(-1, side * side))[0].reshape(turned.shape)
            variants = Split(turned, solved, side)
            card["augmentation"] = "8 turns and mirror images, each solved again" + (
                f"; of each {cfg.redraw} copies with S and G redrawn, {cfg.flip:.0%} of cells changed" if cfg.redraw else "")
            card["labels_by_rule"] = f"{int((solved[:, 0] == train.labels).all(1).sum())} of {len(train)}"
        elif cfg.augment:
            square = len(set(BOX[side])) == 1
            card["augmentation"] = "permutations of digits, rows, columns, bands, stacks" + (", transpose" if square else "")
        if cfg.reveal:
            card["reveal"] = f"{cfg.reveal:.0%} of the training draws show a random part of their blanks"
    card |= {f"train_{k}": v for k, v in card_train.items()} | {f"test_{k}": v for k, v in card_test.items()}
    card["rows"] = {"train": "fresh" if train is None else len(train), "val": len(val), "test": len(test)}
    card["baseline"], card["baseline_is"] = baseline(test, task), "copying the question"
    return Dataset(train, val, test, card, shape_of(cfg), variants, np.unique(held_out))


def shape_of(cfg: DataConfig, tasks: ArcConfig | None = None) -> dict:
    """What a net has to know about the data, as the fields of model.Shape; features or tasks from a file may have others."""
    if cfg.task == "arc":
        return arc.shape_of(tasks or ArcConfig())
    if cfg.task == "modular":
        return {"seq_len": 3, "vocab_size": cfg.modulus + 1, "classes": cfg.modulus}
    if cfg.task == "control":
        plant = PLANTS[cfg.plant]
        return {"seq_len": plant.N, "vocab_size": 0, "controls": plant.m}
    if cfg.task == "features":
        return {"seq_len": cfg.feature_tokens, "vocab_size": 0, "features": cfg.features, "classes": cfg.classes}
    vocab, box = (6, (0, 0)) if cfg.task == "maze" else (cfg.size + 2, BOX[cfg.size])
    return {"seq_len": cfg.size**2, "vocab_size": vocab, "num_puzzles": 1, "box_rows": box[0], "box_cols": box[1]}


def _load_classes(cfg: DataConfig) -> Dataset:
    """Features or modular addition, one class per row. A row that occurs in two splits stays in the later one only."""
    card, g, ceiling = {"task": cfg.task, "augmentation": "none"}, rng(cfg.seed, CUT), None
    if cfg.task == "modular":
        inputs, labels = additions(cfg.modulus)
        tested = (len(inputs) - round(cfg.train_share * len(inputs)) + 1) // 2
        rows, held = len(inputs) - tested, len(inputs) - tested - round(cfg.train_share * len(inputs))
        card["source"] = f"all {len(inputs)} sums modulo {cfg.modulus}"
    else:
        if cfg.train_path:
            inputs, labels = read_features(cfg.train_path)
            card |= {"source": Path(cfg.train_path).name, "sha256": _digest(cfg.train_path), "rows_in_file": len(inputs)}
            tested = cfg.test_rows or len(inputs) // 5
            rows = min(cfg.train_rows or len(inputs), len(inputs) - (0 if cfg.test_path else tested))
        else:
            tested, rows = cfg.test_rows or 1000, cfg.train_rows
            leaves = centres(cfg.features, cfg.classes, rng(cfg.seed, POOL))
            inputs, labels = generate_features(rows + tested, leaves, cfg.noise, rng(cfg.seed, TEST))
            ceiling = bayes(inputs, leaves, cfg.noise) == labels
            card |= {"source": f"{cfg.classes} trees of {leaves.shape[1]} centres, noise {cfg.noise}", "generator_seed": cfg.seed}
        held = cfg.val_rows or rows // 10
    order = g.permutation(len(inputs))
    if cfg.test_path:
        more, answers = read_features(cfg.test_path)
        if more.shape[1] != inputs.shape[1] or answers.max() > labels.max():
            raise UserError(f"{cfg.test_path}: has {more.shape[1]} features and labels up to {answers.max()}, expected the "
                            f"{inputs.shape[1]} features and labels up to {labels.max()} of {cfg.train_path}")
        tested = min(cfg.test_rows or len(more), len(more))
        order = np.concatenate([order, len(inputs) + g.permutation(len(more))])
        inputs, labels = np.concatenate([inputs, more]), np.concatenate([labels, answers])
        card |= {"test_source": Path(cfg.test_path).name, "test_sha256": _digest(cfg.test_path)}
    if min(tested, held, rows - held) < 1:
        raise UserError(f"data: {len(inputs)} rows leave {rows - held} to train, {held} to validate, {tested} to test; expected 1 or more of each")
    kind = np.unique(inputs, axis=0, return_inverse=True)[1].ravel()
    test, val, train = order[len(order) - tested :], order[rows - held : rows], order[: rows - held]
    val = val[~np.isin(kind[val], kind[test])]
    train = train[~np.isin(kind[train], kind[np.concatenate([val, test])])]
    if cfg.task == "features":
        inputs = ((inputs - inputs[train].mean(0)) / (inputs[train].std(0) + 1e-6)).astype(np.float32)
        card["scaling"] = "every feature to mean 0 and variance 1 of the training rows"
    if ceiling is not None:
        card["ceiling"] = float(ceiling[test].mean())
    most = float((labels[test] == np.bincount(labels[train].ravel()).argmax()).mean())
    card |= {"split": f"at random, seed {cfg.seed}", "rows": {"train": len(train), "val": len(val), "test": len(test)},
             "baseline": {"exact": most, "cells": most}, "baseline_is": "always the most frequent class"}
    train, val, test = (Split(inputs[rows], labels[rows]) for rows in (train, val, test))
    of_file = {"features": train.inputs.shape[1], "classes": int(labels.max()) + 1} if cfg.train_path else {}
    return Dataset(train, val, test, card, shape_of(cfg) | of_file)


def _load_control(cfg: DataConfig) -> Dataset:
    """Rows of a plant, generated or from .npz files; J* is calculated where a file has none."""
    plant, held = PLANTS[cfg.plant], cfg.val_rows or int(np.clip(cfg.train_rows // 10, 50, 500))
    card = {"task": "control", "plant": plant.name, "expert": plant.expert, "augmentation": "none"}
    if cfg.train_path or plant.name in SOURCE_SEEDS:
        if cfg.train_path:
            train = read_npz(cfg.train_path, plant)
            test = read_npz(cfg.test_path, plant) if cfg.test_path else generate_rows(plant, cfg.test_rows or 1000, "test", cfg.seed)
            card |= {"source": Path(cfg.train_path).name, "sha256": _digest(cfg.train_path), "test_source": Path(cfg.test_path).name or "generated"}
        else:
            train, test = (source_splits(plant)[name] for name in ("train", "test"))
            card["source"] = "generated with the sizes and seeds of the source project, where test rows may be training rows"
        order = rng(cfg.seed, CUT).permutation(len(train["costs"]))
        order = order[: (cfg.train_rows or len(order)) + held] if cfg.train_path else order
        if len(order) <= held:
            raise UserError(f"data.val_rows: {held} validation rows leave nothing of {len(order)} training rows")
        val, train = ({k: v[rows] for k, v in train.items()} for rows in (order[:held], order[held:]))
        test = {k: v[: cfg.test_rows or None] for k, v in test.items()}
        card["split"] = f"validation cut from the training rows, seed {cfg.seed}"
        for rows in (val, test):
            if "optimal_costs" not in rows:
                rows["optimal_costs"] = plan_cost(plant, rows["initial_states"], best_plan(plant, rows["initial_states"], rows["target_states"]), rows["target_states"])
    else:
        sizes = {"train": cfg.train_rows, "val": held, "test": cfg.test_rows or 1000}
        train, val, test = (generate_rows(plant, count, name, cfg.seed) for name, count in sizes.items())
        card |= {"source": f"generated, {plant.expert} of {plant.name}", "generator_seed": cfg.seed, "split": "other random streams"}
    still = figures(plant, test, rollout(plant, test["initial_states"], 0 * test["control_sequences"]), 0 * test["control_sequences"])
    card |= {"rows": {name: len(rows["costs"]) for name, rows in (("train", train), ("val", val), ("test", test))},
             "baseline": {"exact": still[f"success@{plant.tolerances[-1]:g}"], "cells": still["to_optimum_median"]}, "baseline_is": "doing nothing"}
    shape = shape_of(cfg) | {"scale": tuple(tuple(map(float, part)) for pair in scaling(plant, train).values() for part in pair)}

    def split(rows: dict) -> Split:
        ends = rows["initial_states"], rows["target_states"]
        start, goal = (values.astype(np.float32) for values in ends)
        return Split(control_inputs(plant, *ends).astype(np.float32), rows["control_sequences"].astype(np.float32), rows=rows, more={"start": start, "target": goal})

    return Dataset(split(train), split(val), split(test), card, shape)


def _load_arc(cfg: ArcConfig) -> Dataset:
    """Tasks with demonstrations; validation and test ask every query of their tasks, or of the training tasks where none are held out to validate."""
    ds = arc.load(cfg)

    def split(tasks: np.ndarray) -> Split:
        rows = arc.examples(ds, cfg, arc.queries(ds, cfg, tasks, 1))
        return Split(rows.pop("inputs"), rows.pop("labels"), cfg.side, more=rows)

    if not len(ds.val):
        ds.card["validation"] = "queries of the training tasks: it chooses what is best remembered"
    return Dataset(None, split(ds.val if len(ds.val) else ds.train[~np.isin(ds.train, ds.test)]), split(ds.test), ds.card, ds.shape, arc=(ds, cfg))


# --- batches --------------------------------------------------------------------------------------------------------


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
    Episodes of ARC tasks have further columns: see arc.examples.
    """
    if ds.arc is not None:
        return arc.draw(*ds.arc, size, seed, step, rank, world)
    if size % world:
        raise UserError(f"a batch of {size} does not divide among {world} processes")
    if ds.train is None:
        (inputs, labels), more = _fresh(ds, cfg, size, seed, step), {}
    else:
        row = epoch_rows(len(ds.train), size, step, seed, ORDER)
        more = {name: values[row] for name, values in ds.train.more.items()}
        g = rng(seed, AUGMENT, step)
        inputs, labels = ds.train.inputs[row], ds.train.labels[row]
        if ds.variants is not None:
            pick = g.integers(ds.variants.inputs.shape[1], size=size)
            inputs, labels = ds.variants.inputs[row, pick], ds.variants.labels[row, pick]
        elif cfg.augment and cfg.task == "sudoku":
            inputs, labels = shuffle_sudoku(inputs, labels, g)
        if cfg.reveal:
            shown = g.random(inputs.shape) < (g.random(size) * (g.random(size) < cfg.reveal))[:, None]
            inputs = np.where(shown, labels, inputs)
    mine = slice(rank * size // world, (rank + 1) * size // world)
    return {"inputs": inputs[mine], "labels": labels[mine], "puzzle": np.zeros(size // world, np.int64)} | {k: v[mine] for k, v in more.items()}


def tensor(values: np.ndarray):
    """float32 and bool as they are, everything else as int64."""
    import torch

    return torch.from_numpy(values if values.dtype in (np.float32, bool) else values.astype(np.int64))


def batches(ds, cfg, size, seed, first_step, rank=0, world=1, device="cpu") -> Iterator[dict]:
    """Endless draws of steps first_step, first_step + 1, ... as tensors on `device`.

    One thread works one batch ahead; close() the iterator (or let it go) and the thread ends. An error of a draw is raised here.
    """
    import torch

    cuda = torch.device(device).type == "cuda"

    def make(step: int) -> dict:
        batch = draw(ds, cfg, size, seed, step, rank, world)
        tensors = {name: tensor(value) for name, value in batch.items()}
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
