"""What a net makes of the tasks it was trained on and of held-out ones: queries, votes, and what it owes to the context it is given.

Every figure says of how many: n queries, pass@k of so many tasks with an interval. Nothing is kept between two calls.
"""

import numpy as np
import torch

import data
from encoders import Conditioned, change
from model import TRM
from stats import wilson
from tasks import episodes
from tasks.episodes import ArcData, Episodes


def report(net: TRM, ds: ArcData, cfg, world) -> tuple[dict, dict[str, np.ndarray]]:
    """({"train": ..., "test": ...}, the answers as arrays, for plots). Of each side, of queries as they are: exact, cells, n, copy_cells (of
    copying the question), "context": exact with the true and with wrong contexts; of all augmentations: votes, see episodes.vote."""
    found, kept = {}, {}
    for side, tasks in (("train", trained(ds)[: max(64, len(ds.test))]), ("test", ds.test)):
        plan = episodes.queries(ds, cfg.arc, tasks)
        rows = episodes.examples(ds, cfg.arc, plan)
        answers, confidence, trace = solve(net, cfg, rows, world)
        plain = plan.augmentation == 0
        first = {k: v[plain] for k, v in rows.items()}
        result = score(answers[plain], first["labels"]) | {
            "copy_cells": score(first["inputs"], first["labels"])["cells"]
        }
        if wrong := ablation(net, cfg, first, world):
            result["context"] = {"true": result["exact"]} | wrong
        result |= context_figures(trace, plan)
        found[side] = result | episodes.vote(ds, cfg.arc, plan, answers, confidence)
        kept |= {
            f"{side}_{k}": v
            for k, v in {
                "inputs": first["inputs"],
                "labels": first["labels"],
                "answers": answers[plain],
                "task": first["task"],
            }.items()
        }
    return found, kept


def trained(ds: ArcData) -> np.ndarray:
    """The training tasks, less held-out ones whose demonstrations are trained on."""
    return ds.train[~np.isin(ds.train, np.concatenate([ds.val, ds.test]))]


def score(answers: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """exact with its 95 % interval, cells (the share of cells and ends of grids that are right, mean over rows), n."""
    there = labels >= 0
    right = (answers == labels) & there
    exact = float((right | ~there).all(1).mean())
    low, high = wilson(exact, len(labels))
    return {
        "exact": exact,
        "exact_low": low,
        "exact_high": high,
        "cells": float((right.sum(1) / there.sum(1)).mean()),
        "n": len(labels),
    }


def ablation(net: TRM, cfg, rows: dict[str, np.ndarray], world) -> dict[str, float]:
    """Exact with another task's context, with the mean over the rows of a batch (of an encoder), and with zeros; {} for a net without context."""
    if not isinstance(net, Conditioned) and not (cfg.arc.mode == "embed" and cfg.model.prefix):
        return {}
    result = {}
    mixed = np.random.default_rng(0).permutation(
        len(rows["task"])
    )  # as they come, the queries of a batch are of one task, or of few
    rows = {k: v[mixed] for k, v in rows.items()}
    if (other := another_task(rows["task"])) is not None:
        swapped = rows | {
            k: rows[k][other] for k in ("demos", "mask", "task", "puzzle") if k in rows
        }
        result["shuffled"] = score(solve(net, cfg, swapped, world)[0], rows["labels"])["exact"]
    for wrong in ("mean", "zero") if isinstance(net, Conditioned) else ("zero",):
        result[wrong] = score(solve(net, cfg, rows, world, wrong)[0], rows["labels"])["exact"]
    return result


def another_task(task: np.ndarray) -> np.ndarray | None:
    """For every row the next row of another task, round about; None if all are of one task."""
    if len(np.unique(task)) < 2:
        return None
    at = np.arange(len(task))
    return np.array(
        [
            next(
                (i + step) % len(task) for step in at[1:] if task[(i + step) % len(task)] != task[i]
            )
            for i in at
        ]
    )


@torch.no_grad()
def solve(
    net: TRM, cfg, rows: dict[str, np.ndarray], world, wrong: str = ""
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """(answers (N, S), confidence (N,) = sigmoid(q_halt), {"context": (N, P * D), "change": (N, n_sup - 1)}) after all supervision steps.

    Rows are dealt out over the processes. "context" is the last one, of an encoder; "change" how far a recurrent one moved in each step
    after the first.
    """
    was_training, n_sup, N = net.training, cfg.eval_steps, len(rows["task"])
    net.eval()
    mine = np.arange(N)[world.rank :: world.size]
    size = max(1, min(cfg.train.batch_size // cfg.train.accumulate // world.size, len(mine)))
    kind = torch.float32 if world.device.type == "mps" else torch.float64
    own: dict[str, list] = {"answers": [], "confidence": [], "context": [], "change": []}
    for first in range(0, len(mine), size):
        at = mine[
            np.minimum(np.arange(first, first + size), len(mine) - 1)
        ]  # one batch size; the last row may be there more than once
        real = min(size, len(mine) - first)
        batch = {k: data.tensor(v[at]).to(world.device) for k, v in rows.items()}
        g = torch.Generator(world.device).manual_seed(first)
        carry = net.refill(net.start(batch), batch, net.first_states(size, net.shape.seq_len, g))
        keys = {"average": True} if wrong == "mean" else {}
        if wrong == "zero":
            keys["context"] = torch.zeros(
                size, cfg.model.prefix, cfg.model.dim, device=world.device
            )
        changes = []
        for _ in range(n_sup):
            before = carry.more.get("state")
            carry, out = net.step(carry, **keys)
            if before is not None:
                now, P = carry.more["state"], cfg.model.prefix
                changes.append(change(now[:real, :P].float(), before[:real, :P].float()))
        own["answers"].append(out.logits[:real].argmax(-1).to(kind))
        own["confidence"].append(out.q_halt[:real].sigmoid()[:, None].to(kind))
        if "context" in out.aux:
            own["context"].append(out.aux["context"][:real].flatten(1).to(kind))
        if changes:
            own["change"].append(torch.stack(changes, 1).to(kind))
    net.train(was_training)
    every = {}
    for name, parts in own.items():
        if parts:
            full = torch.zeros(N, parts[0].shape[1], dtype=kind, device=world.device)
            full[torch.from_numpy(mine).to(world.device)] = torch.cat(parts)
            every[name] = world.sum(full).cpu().numpy()
    return every.pop("answers").astype(np.int64), every.pop("confidence")[:, 0], every


SETTLED = 0.01  # relative change below which a recurrent encoder has converged


def context_figures(trace: dict[str, np.ndarray], plan: Episodes) -> dict[str, float]:
    """Of the contexts of augmented queries: norm_variance (variance over rows in units of the mean square), between_task (its share between
    tasks, where tasks have several rows), retrieval (share of rows whose nearest other row, by cosine about the mean, is of the same task).
    Of a recurrent encoder: carry_change per step, convergence_steps (mean over rows; n_sup + 1 where never), never_converged."""
    found: dict[str, float] = {}
    if "context" in trace:
        c = trace["context"]
        total = c.var(0).mean()
        found["norm_variance"] = float(total / max((c**2).mean(), 1e-12))
        tasks, which, count = np.unique(plan.task, return_inverse=True, return_counts=True)
        if (count > 1).all() and len(tasks) > 1 and total > 0:
            means = np.stack([c[which == i].mean(0) for i in range(len(tasks))])
            found["between_task"] = float(1 - ((c - means[which]) ** 2).mean() / total)
            u = c - c.mean(0)
            u /= np.linalg.norm(u, axis=1, keepdims=True) + 1e-12
            likeness = u @ u.T
            np.fill_diagonal(likeness, -2)
            found["retrieval"] = float((which[likeness.argmax(1)] == which).mean())
    if "change" in trace:
        moving = trace["change"] >= SETTLED  # (N, n_sup - 1): steps 2, 3, ...
        steps = moving.shape[1] + 1
        last = np.where(
            moving.any(1), steps - moving[:, ::-1].argmax(1), 0
        )  # the last step that moved
        found |= {
            "carry_change": trace["change"].mean(0).tolist(),
            "convergence_steps": float((np.maximum(last, 1) + 1).mean()),
            "never_converged": float((last == steps).mean()),
        }
    return found
