"""What a net makes of the ARC tasks it was trained on and of held-out ones.

Queries, votes, and what it owes to the context it is given. Every figure says of how many: n
queries, pass@k of so many tasks with an interval. Nothing is kept between two calls.
"""

from dataclasses import dataclass

import numpy as np
import torch

import data
from model import TRM
from stats import wilson
from tasks import episodes
from tasks.conditioned import Conditioned, change
from tasks.episodes import ArcData, Episodes


def report(net: TRM, ds: ArcData, cfg, world) -> tuple[dict, dict[str, np.ndarray]]:
    """({"train": figures, "test": figures}, the answers as arrays, for plots)."""
    found, kept = {}, {}
    for side, tasks in (("train", some_trained(ds)), ("test", ds.test)):
        found[side], arrays = report_side(net, ds, cfg, world, tasks)
        kept |= {f"{side}_{name}": values for name, values in arrays.items()}
    return found, kept


def report_side(
    net: TRM, ds: ArcData, cfg, world, tasks: np.ndarray
) -> tuple[dict, dict[str, np.ndarray]]:
    """Figures of these tasks, and the queries as they are with their answers.

    Of queries as they are: exact, cells, n, copy_cells (of copying the question), "context" (exact
    with the true and with wrong contexts). Of all augmentations: see context_figures and
    episodes.vote.
    """
    plan = episodes.queries(ds, cfg.arc, tasks)
    rows = episodes.examples(ds, cfg.arc, plan)
    solved = solve(net, cfg, rows, world)
    plain = plan.augmentation == 0
    first = {name: values[plain] for name, values in rows.items()}
    answers = solved.answers[plain]
    found = score(answers, first["labels"])
    found["copy_cells"] = score(first["inputs"], first["labels"])["cells"]
    wrong = ablation(net, cfg, first, world)
    if wrong:
        found["context"] = {"true": found["exact"]} | wrong
    found |= context_figures(solved, plan)
    found |= episodes.vote(ds, cfg.arc, plan, solved.answers, solved.confidence)
    kept = {name: first[name] for name in ("inputs", "labels", "task")}
    return found, kept | {"answers": answers}


def trained(ds: ArcData) -> np.ndarray:
    """The training tasks, less held-out ones whose demonstrations are trained on."""
    return ds.train[~np.isin(ds.train, np.concatenate([ds.val, ds.test]))]


def some_trained(ds: ArcData) -> np.ndarray:
    """As many training tasks as there are test tasks, but 64 at least."""
    return trained(ds)[: max(64, len(ds.test))]


def score(answers: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """exact with its 95 % interval, cells, n.

    cells: the share of cells and ends of grids that are right, mean over rows.
    """
    labelled = labels >= 0
    right = (answers == labels) & labelled
    exact = float((right | ~labelled).all(1).mean())
    low, high = wilson(exact, len(labels))
    cells = float((right.sum(1) / labelled.sum(1)).mean())
    bounds = {"exact_low": low, "exact_high": high}
    return {"exact": exact} | bounds | {"cells": cells, "n": len(labels)}


# ---------------------------------------------------------------- wrong contexts


def ablation(net: TRM, cfg, rows: dict[str, np.ndarray], world) -> dict[str, float]:
    """Exact with wrong contexts; {} for a net without context.

    shuffled: another task's; mean: over the rows of a batch (of an encoder); zero: zeros.
    """
    has_encoder = isinstance(net, Conditioned)
    if not has_encoder and not (cfg.arc.mode == "embed" and cfg.model.prefix):
        return {}
    # As they come, the queries of a batch are of one task, or of few.
    mixed = np.random.default_rng(0).permutation(len(rows["task"]))
    rows = {name: values[mixed] for name, values in rows.items()}

    def exact(asked: dict[str, np.ndarray], wrong: str = "") -> float:
        return score(solve(net, cfg, asked, world, wrong).answers, rows["labels"])["exact"]

    result = {}
    other = another_task(rows["task"])
    if other is not None:
        read = [name for name in ("demos", "mask", "task", "puzzle") if name in rows]
        result["shuffled"] = exact(rows | {name: rows[name][other] for name in read})
    if has_encoder:
        result["mean"] = exact(rows, "mean")
    result["zero"] = exact(rows, "zero")
    return result


def another_task(task: np.ndarray) -> np.ndarray | None:
    """For every row the next row of another task, round about; None if all are of one task."""
    N = len(task)
    if len(np.unique(task)) < 2:
        return None
    found = []
    for row in range(N):
        other = (row + 1) % N
        while task[other] == task[row]:
            other = (other + 1) % N
        found.append(other)
    return np.array(found)


# ---------------------------------------------------------------- solving


@dataclass
class Solved:
    """What a net says of N rows after all supervision steps."""

    answers: np.ndarray  # (N, S) int64
    confidence: np.ndarray  # (N,) sigmoid(q_halt)
    context: np.ndarray | None = None  # (N, P * D) the last one, of an encoder
    # (N, n_sup - 1): how far the state of a recurrent encoder moved in each step after the first
    change: np.ndarray | None = None


@torch.no_grad()
def solve(net: TRM, cfg, rows: dict[str, np.ndarray], world, wrong: str = "") -> Solved:
    """Answers to rows, which are dealt out over the processes.

    wrong: "mean" or "zero", a context that is none, see `ablation`.
    """
    was_training, N = net.training, len(rows["task"])
    net.eval()
    mine = np.arange(N)[world.rank :: world.size]
    share = cfg.train.batch_size // cfg.train.accumulate // world.size
    size = max(1, min(share, len(mine)))
    parts: dict[str, list] = {"answers": [], "confidence": [], "context": [], "change": []}
    for first in range(0, len(mine), size):
        # One batch size: the last row may be there more than once.
        at = mine[np.minimum(np.arange(first, first + size), len(mine) - 1)]
        batch = {name: data.tensor(values[at]).to(world.device) for name, values in rows.items()}
        states = net.states_of(rows["inputs"][at], cfg.seed)
        solved = solve_batch(net, cfg, batch, states, wrong)
        real = min(size, len(mine) - first)
        for name, values in solved.items():
            parts[name].append(values[:real])
    net.train(was_training)
    every = {name: gather(found, mine, N, world) for name, found in parts.items() if found}
    answers, confidence = every.pop("answers"), every.pop("confidence")
    return Solved(answers.astype(np.int64), confidence[:, 0], **every)


def solve_batch(
    net: TRM,
    cfg,
    batch: dict[str, torch.Tensor],
    states: tuple[torch.Tensor, torch.Tensor],
    wrong: str,
) -> dict[str, torch.Tensor]:
    """The fields of `Solved` as tensors (B, ...). states: the first y and z."""
    B, P = len(batch["task"]), cfg.model.prefix
    device = batch["task"].device
    carry = net.refill(net.start(batch), batch, states)
    keys = {}
    if wrong == "mean":
        keys["average"] = True
    elif wrong == "zero":
        keys["context"] = torch.zeros(B, P, cfg.model.dim, device=device)
    changes = []
    for _ in range(cfg.eval_steps):
        before = carry.more.get("state")
        carry, out = net.step(carry, **keys)
        if before is not None:
            after = carry.more["state"]
            changes.append(change(after[:, :P].float(), before[:, :P].float()))
    found = {"answers": out.logits.argmax(-1), "confidence": out.q_halt.sigmoid()[:, None]}
    if "context" in out.aux:
        found["context"] = out.aux["context"].flatten(1)
    if changes:
        found["change"] = torch.stack(changes, 1)
    return found


def gather(parts: list[torch.Tensor], mine: np.ndarray, N: int, world) -> np.ndarray:
    """(N, ...) of all processes, of which this one has the rows `mine`, in parts."""
    kind = torch.float32 if world.device.type == "mps" else torch.float64
    full = torch.zeros(N, parts[0].shape[1], dtype=kind, device=world.device)
    full[torch.from_numpy(mine).to(world.device)] = torch.cat(parts).to(kind)
    return world.sum(full).cpu().numpy()


# ---------------------------------------------------------------- figures of contexts

SETTLED = 0.01  # relative change below which a recurrent encoder has converged


def context_figures(solved: Solved, plan: Episodes) -> dict:
    """Of the contexts of augmented queries, and of the carried states; {} without an encoder."""
    found = {}
    if solved.context is not None:
        found |= separation(solved.context, plan.task)
    if solved.change is not None:
        found |= convergence(solved.change)
    return found


def separation(context: np.ndarray, task: np.ndarray) -> dict[str, float]:
    """How contexts (N, P * D) tell tasks (N,) apart.

    norm_variance  variance over rows in units of the mean square
    between_task   its share between tasks
    retrieval      share of rows whose nearest other row, by cosine about the mean, is of the same
                   task

    The last two where every task has several rows.
    """
    variance = context.var(0).mean()
    found = {"norm_variance": float(variance / max((context**2).mean(), 1e-12))}
    tasks, which, count = np.unique(task, return_inverse=True, return_counts=True)
    if (count == 1).any() or len(tasks) == 1 or variance == 0:
        return found
    means = np.stack([context[which == t].mean(0) for t in range(len(tasks))])
    within = ((context - means[which]) ** 2).mean()
    found["between_task"] = float(1 - within / variance)
    u = context - context.mean(0)
    u /= np.linalg.norm(u, axis=1, keepdims=True) + 1e-12
    cosine = u @ u.T
    np.fill_diagonal(cosine, -2)  # not itself
    found["retrieval"] = float((which[cosine.argmax(1)] == which).mean())
    return found


def convergence(change: np.ndarray) -> dict:
    """When a recurrent encoder comes to rest. change (N, n_sup - 1): of steps 2, 3, ...

    carry_change       mean change of each step
    convergence_steps  first step after which it rests, mean over rows; n_sup + 1 where never
    never_converged    share of rows that still move in the last step
    """
    moving = change >= SETTLED
    n_sup = moving.shape[1] + 1
    last = n_sup - moving[:, ::-1].argmax(1)  # the last step that moved
    last[~moving.any(1)] = 1
    return {
        "carry_change": change.mean(0).tolist(),
        "convergence_steps": float((last + 1).mean()),
        "never_converged": float((last == n_sup).mean()),
    }
