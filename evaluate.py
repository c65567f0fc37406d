"""Solve held-out puzzles and score them by the labels and by the rules."""

import numpy as np
import torch
from tqdm import tqdm

import data
from layers import log_probabilities
from model import TRM
from planner import evaluate_plans


@torch.no_grad()
def evaluate(net: TRM, split: data.Split, cfg, world, rows: int = 0, adaptive: bool = False,
             progress: str = "") -> dict:
    """Solve the first `rows` (0: all) puzzles of a split with all supervision steps.

    Returns {"exact", "cells", "valid" (puzzles) or "top3" (classes) ..., "steps", "n", "curve": exact after each step, "halting": {the same figures when each
    row's answer is read at its first q_halt > 0}, "verdict": {name: (n,) bool}}. The answer is that of the last step, or of the mean of the
    probabilities after the last cfg.train.eval_average steps; the curve shows each step's own answer. With `adaptive` finished rows leave the batch,
    so only the "halting" figures are defined, and the top level repeats them. Rows are dealt out over the processes.
    """
    if split.rows is not None:
        result = evaluate_plans(net, split.rows)
        return result | {"halting": {k: result[k] for k in ("exact", "cells", "steps", "n")}}
    was_training, n_sup, average = net.training, cfg.eval_steps, 1 if adaptive else cfg.train.eval_average
    net.eval()
    chosen = np.arange(len(split) if not rows else min(rows, len(split)))
    mine = chosen[world.rank::world.size]
    size = max(1, min(cfg.train.batch_size // cfg.train.accumulate // world.size, -(-len(chosen) // world.size)))
    L = net.shape.seq_len if net.shape.features else split.inputs.shape[1]
    labels = np.asarray(split.labels[mine], dtype=np.int64)
    unasked = labels < 0  # padding
    curve = np.zeros((len(mine), n_sup), dtype=bool)
    final, at_halt = np.zeros_like(labels), np.zeros_like(labels)
    among = np.zeros((len(mine), n_sup), dtype=bool)  # classes: the label is among the three most probable
    used = np.full(len(mine), n_sup)
    bar = tqdm(total=len(mine), desc=progress, leave=False, disable=not progress or world.rank > 0, unit="puzzle")
    for first in range(0, len(mine), size):
        slots = np.arange(first, min(first + size, len(mine)))
        padded = np.concatenate([slots, np.full(size - len(slots), slots[-1])])  # one batch size: no recompilation
        batch = {"inputs": data.tensor(split.inputs[mine[padded]]).to(world.device),
                 "labels": torch.from_numpy(labels[padded]).to(world.device),
                 "puzzle": torch.zeros(size, dtype=torch.long, device=world.device),
                 **{k: data.tensor(v[mine[padded]]).to(world.device) for k, v in split.more.items()}}
        g = torch.Generator(world.device).manual_seed(first)
        carry = net.refill(net.start(batch), batch, net.first_states(size, L, g))
        running = padded.copy()  # running[i]: the row of `mine` that slot i solves
        open_, summed = np.ones(len(mine), dtype=bool), 0
        for step in range(n_sup):
            carry, out = net.step(carry)
            answers, q = out.logits.argmax(-1).cpu().numpy(), out.q_halt.cpu().numpy()
            if net.shape.classes:
                top = out.logits[:, 0].topk(min(3, net.shape.classes)).indices.cpu().numpy()
                among[running, step] = (top == labels[running]).any(1)
            final[running] = answers
            if average > 1 and step >= n_sup - average:
                summed = summed + log_probabilities(out.logits, cfg.model.loss).exp()
            curve[running, step] = ((answers == labels[running]) | unasked[running]).all(-1)
            stop = open_[running] & ((q > 0) | (step == n_sup - 1))
            at_halt[running[stop]], used[running[stop]] = answers[stop], step + 1
            open_[running[stop]] = False
            if adaptive:
                keep = np.flatnonzero(open_[running])
                if not len(keep):
                    break
                sizes = [size // 2, size // 4, size // 8]  # few batch sizes, so that few nets are compiled
                smaller = [s for s in sizes if len(keep) <= s < len(running)]
                if smaller:
                    keep = np.resize(keep, smaller[-1])
                    running, index = running[keep], torch.from_numpy(keep).to(world.device)
                    carry = carry.map(lambda t: t[index])
        if average > 1:
            final[running] = summed.argmax(-1).cpu().numpy()
        bar.update(len(slots))
    bar.close()
    net.train(was_training)
    inputs = np.asarray(split.inputs[mine])

    def joined(own: np.ndarray) -> np.ndarray:
        every = np.zeros(len(chosen))
        every[world.rank::world.size] = own
        return world.sum(torch.from_numpy(every)).numpy().astype(bool)

    def figures(answers: np.ndarray, steps: np.ndarray) -> tuple[dict, dict]:
        right = answers == labels
        verdict = {"exact": (right | unasked).all(-1)}
        if net.shape.classes:
            verdict["top3"] = among[np.arange(len(mine)), steps - 1]
        elif cfg.data.task != "arc":
            verdict |= data.check(cfg.data.task, inputs, answers)
        columns = np.stack([*verdict.values(), right.sum(-1) / (~unasked).sum(-1), steps], 1)
        total = world.sum(torch.from_numpy(np.concatenate([columns.sum(0), [len(mine)]])))
        mean = dict(zip([*verdict, "cells", "steps"], (total[:-1] / total[-1]).tolist()))
        return mean | {"n": int(total[-1])}, {name: joined(v) for name, v in verdict.items()}

    halting, verdict = figures(at_halt, used)
    if adaptive:
        return halting | {"halting": halting, "verdict": verdict}
    mean, verdict = figures(final, np.full(len(mine), n_sup))
    exact = world.sum(torch.from_numpy(np.concatenate([curve.sum(0), [len(mine)]]).astype(np.float64)))
    return mean | {"curve": (exact[:-1] / exact[-1]).tolist(), "halting": halting, "verdict": verdict}


def rows_within_training(cfg) -> int:
    """How many puzzles an evaluation may take so that it costs no more than the training: it binds in smoke tests only."""
    m = cfg.model
    return max(2, int(cfg.train.steps * cfg.train.batch_size * (m.T + 2 * m.grad_cycles) / (m.T * cfg.eval_steps)))
