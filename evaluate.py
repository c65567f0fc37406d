"""Solve held-out rows and score them by the labels and by the rules."""

import numpy as np
import torch
from tqdm import tqdm

import data
from layers import log_probabilities


def evaluate(net, split: data.Split, cfg, world, **options) -> dict:
    """The figures of a net on a split, as its task measures them: see `evaluate_rows`."""
    return cfg.task.evaluate(net, split, cfg, world, **options)


class Answers:
    """What N rows answered: after the last step, and when the net would have stopped on each."""

    def __init__(self, labels: np.ndarray, steps: int):
        self.labels, self.steps = labels, steps
        self.unasked = labels < 0  # padding
        self.final, self.at_halt = np.zeros_like(labels), np.zeros_like(labels)  # (N, L)
        self.used = np.full(len(labels), steps)  # steps until the net would stop
        self.open = np.ones(len(labels), dtype=bool)  # has not stopped yet
        self.right = np.zeros((len(labels), steps), dtype=bool)  # exact after each step
        self.judged: dict[str, np.ndarray] = {}  # (N, steps) bool, what the task reads off logits

    def note(self, rows: np.ndarray, step: int, answers: np.ndarray, q: np.ndarray, judged: dict):
        """What some rows answered after a step, counted from 0. A row may occur more than once."""
        self.final[rows] = answers
        self.right[rows, step] = ((answers == self.labels[rows]) | self.unasked[rows]).all(-1)
        for name, values in judged.items():
            self.judged.setdefault(name, np.zeros_like(self.right))[rows, step] = values
        stop = self.open[rows] & ((q > 0) | (step == self.steps - 1))
        self.at_halt[rows[stop]] = answers[stop]
        self.used[rows[stop]] = step + 1
        self.open[rows[stop]] = False


@torch.no_grad()
def evaluate_rows(
    net, split: data.Split, cfg, world, task, rows: int = 0, adaptive=False, progress: str = ""
) -> dict:
    """Solve the first `rows` (0: all) rows of a split with all supervision steps.

    Returns {"exact", what the task's rules and `judge` say, "cells", "steps", "n",
    "curve": exact after each step,
    "halting": the same figures when each row's answer is read at its first q_halt > 0,
    "verdict": {name: (n,) bool}}.

    The answer is that of the last step, or of the mean of the probabilities after the last
    cfg.train.eval_average steps; the curve shows each step's own answer. With `adaptive` finished
    rows leave the batch, so only the "halting" figures are defined, and the top level repeats
    them. Rows are dealt out over the processes.
    """
    was_training = net.training
    net.eval()
    count = min(rows, len(split)) if rows else len(split)
    mine = np.arange(count)[world.rank :: world.size]
    slots = cfg.train.batch_size // cfg.train.accumulate // world.size
    size = max(1, min(slots, -(-count // world.size)))
    answers = Answers(np.asarray(split.labels[mine], dtype=np.int64), cfg.eval_steps)
    hidden = not progress or world.rank > 0
    bar = tqdm(total=len(mine), desc=progress, leave=False, disable=hidden, unit="row")
    for first in range(0, len(mine), size):
        block = np.arange(first, min(first + size, len(mine)))
        padding = np.full(size - len(block), block[-1])  # one batch size: no recompilation
        block = np.concatenate([block, padding])
        solve_block(net, split, cfg, world, task, answers, mine, block, adaptive)
        bar.update(min(size, len(mine) - first))
    bar.close()
    net.train(was_training)
    return summarise(answers, split, world, task, mine, count, adaptive)


def solve_block(net, split, cfg, world, task, answers: Answers, mine, block, adaptive) -> None:
    """All supervision steps of a batch. block: rows of `answers`, of `mine` of the split."""
    batch = {
        "inputs": data.tensor(split.inputs[mine[block]]),
        "labels": torch.from_numpy(answers.labels[block]),
        "puzzle": torch.zeros(len(block), dtype=torch.long),
        **{name: data.tensor(values[mine[block]]) for name, values in split.more.items()},
    }
    batch = {name: value.to(world.device) for name, value in batch.items()}
    states = net.states_of(split.inputs[mine[block]], cfg.seed)
    carry = net.refill(net.start(batch), batch, states)
    average = 1 if adaptive else cfg.train.eval_average
    running, summed = block, 0.0  # running[i]: the row that slot i solves
    for step in range(cfg.eval_steps):
        carry, out = net.step(carry)
        judged = task.judge(out.logits, carry.batch["labels"])
        judged = {name: value.cpu().numpy() for name, value in judged.items()}
        found, q = out.logits.argmax(-1).cpu().numpy(), out.q_halt.cpu().numpy()
        answers.note(running, step, found, q, judged)
        if average > 1 and step >= cfg.eval_steps - average:
            summed = summed + log_probabilities(out.logits, cfg.model.loss).exp()
        if adaptive:
            keep = slots_to_keep(answers.open[running], len(block))
            if not len(keep):
                return
            if len(keep) < len(running):
                running, index = running[keep], torch.from_numpy(keep).to(world.device)
                carry = carry.map(lambda t, index=index: t[index])
    if average > 1:
        answers.final[running] = summed.argmax(-1).cpu().numpy()


def slots_to_keep(going: np.ndarray, size: int) -> np.ndarray:
    """Which slots go on, where `going` says which need to: all, or as many as a smaller batch has.

    Few batch sizes, size / 2, 4 and 8, so that few nets are compiled. Empty: none needs to.
    """
    keep = np.flatnonzero(going)
    if not len(keep):
        return keep
    smaller = [n for n in (size // 2, size // 4, size // 8) if len(keep) <= n < len(going)]
    if not smaller:
        return np.arange(len(going))
    return np.resize(keep, smaller[-1])  # some may stand there more than once


def summarise(answers: Answers, split, world, task, mine, count: int, adaptive: bool) -> dict:
    """The figures of `evaluate_rows`, over all processes."""
    labels, unasked = answers.labels, answers.unasked
    inputs = np.asarray(split.inputs[mine])

    def joined(own: np.ndarray) -> np.ndarray:
        every = np.zeros(count)
        every[world.rank :: world.size] = own
        return world.sum(torch.from_numpy(every)).numpy().astype(bool)

    def mean_over_rows(columns: list[np.ndarray]) -> list[float]:
        sums = np.stack(columns, 1).astype(np.float64).sum(0)
        total = world.sum(torch.from_numpy(np.concatenate([sums, [len(mine)]])))
        return (total[:-1] / total[-1]).tolist()

    def figures(found: np.ndarray, steps: np.ndarray) -> tuple[dict, dict]:
        right = found == labels
        verdict = {"exact": (right | unasked).all(-1)}
        at = np.arange(len(mine)), steps - 1
        verdict |= {name: values[at] for name, values in answers.judged.items()}
        verdict |= task.score(inputs, found)
        cells = right.sum(-1) / (~unasked).sum(-1)
        means = mean_over_rows([*verdict.values(), cells, steps])
        shares = dict(zip([*verdict, "cells", "steps"], means))
        return shares | {"n": count}, {name: joined(value) for name, value in verdict.items()}

    halting, verdict = figures(answers.at_halt, answers.used)
    if adaptive:
        return halting | {"halting": halting, "verdict": verdict}
    every_step = np.full(len(mine), answers.steps)
    mean, verdict = figures(answers.final, every_step)
    curve = mean_over_rows(list(answers.right.T))
    return mean | {"curve": curve, "halting": halting, "verdict": verdict}


def rows_within_training(cfg) -> int:
    """How many rows an evaluation may take so that it costs no more than the training.

    It binds in smoke tests only.
    """
    m, slots = cfg.model, cfg.train.steps * cfg.train.batch_size
    return max(2, int(slots * (m.T + 2 * m.grad_cycles) / (m.T * cfg.eval_steps)))
