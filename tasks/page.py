"""A page to play with a trained net: one HTML file that needs no server and no network.

page.html beside this file is the template. It holds the net once more, in plain JavaScript; here
its run is put into it: what the puzzles are, the model's configuration, and the weights.
"""

import base64
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch

from config import UserError
from runs import TrainingError, write_text
from tasks.maze import size_bound
from tasks.puzzles import givens_range

TEMPLATE = Path(__file__).with_name("page.html")
PLACE = '<script type="application/json" id="data">null</script>'
MOST_BYTES = 1_000_000
NAMES = {"maze": "a maze", "sudoku": "a Sudoku"}  # of the tasks that the page knows
MIXERS = ("conv", "pool", "mlp")
SIDES = (5, 31)  # of the mazes that a convolution net is offered


def write_page(path: Path, task, cfg, net, state: dict) -> None:
    """The page of a run: its config, its net and its checkpoint, as train.load_run gives them.

    The file is there whole or not at all. Raises UserError for a net that the page cannot run,
    one that is too large, and a path that cannot be written.
    """
    refuse(task, cfg)
    run = describe(task, cfg, net, state)
    data = json.dumps(run).replace("<", "\\u003c")  # nothing in it ends the script
    page = TEMPLATE.read_text(encoding="utf-8")
    page = page.replace(PLACE, PLACE.replace("null", data))
    size = len(page.encode())
    if size >= MOST_BYTES:
        raise UserError(
            f"{path}: model.dim = {cfg.model.dim} and the rest of the net make a page of "
            f"{size / 1e6:.1f} MB, expected less than {MOST_BYTES / 1e6:.0f} MB: a smaller net"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, page)
    except TrainingError as e:
        raise UserError(str(e)) from None


def refuse(task, cfg) -> None:
    """Raises UserError for what the page does not know."""
    for key, value, known in (
        ("data.task", task.name, NAMES),
        ("model.mixer", cfg.model.mixer, MIXERS),
    ):
        if value not in known:
            words = ", ".join(map(repr, known))
            raise UserError(f"{key} = {value!r}, but a page runs nets with one of {words} only")


def describe(task, cfg, net, state: dict) -> dict:
    """What the page has to know, as plain values."""
    weights = float_weights(cfg, net, state["shape"])
    floats = np.concatenate([values.ravel() for values in weights.values()])
    return {
        "title": f"A tiny recursive model and {NAMES[task.name]}",
        "about": about(cfg, net, state),
        "task": task.name,
        "cells": task.cells,
        "puzzles": puzzles(task, cfg.data),
        "side": cfg.data.size,
        "sides": sides(task, cfg),
        "steps": cfg.eval_steps,
        "model": dataclasses.asdict(cfg.model),
        "shape": state["shape"],
        "weights": [(name, values.size) for name, values in weights.items()],
        "floats": base64.b64encode(floats.astype("<f4").tobytes()).decode(),
    }


def float_weights(cfg, net, shape: dict) -> dict[str, np.ndarray]:
    """Every weight by name, float32. Only the first puzzle embedding is ever used.

    With init = "random" the first states y0 and z0 are one draw, a row for every position.
    """
    weights = {name: value.float().cpu() for name, value in net.state_dict().items()}
    if "puzzles" in weights:
        weights["puzzles"] = weights["puzzles"][:1]
    if cfg.model.init == "random":
        device = net.q_head.weight.device
        g = torch.Generator(device).manual_seed(0)
        y0, z0 = net.first_states(1, shape["seq_len"], g)
        weights |= {"y0": y0.float().cpu(), "z0": z0.float().cpu()}
    return {name: value.numpy() for name, value in weights.items()}


def puzzles(task, data) -> dict:
    """What new puzzles are like."""
    if task.name == "sudoku":
        return {"givens": givens_range(data)}
    names = ("size", "walls", "wall_min", "wall_max", "min_distance")
    return {name: getattr(data, name) for name in names}


def sides(task, cfg) -> tuple[int, int]:
    """The smallest and the largest side that the page offers."""
    side = cfg.data.size
    if task.name != "maze" or cfg.model.mixer != "conv" or size_bound(cfg.model):
        return side, side
    return min(SIDES[0], side), max(SIDES[1], side)


def about(cfg, net, state: dict) -> str:
    """Which net it is, in a few words."""
    parameters = sum(p.numel() for p in net.parameters())
    exact = 100 * state["val"]["exact"]
    text = (
        f"{parameters:,} parameters, trained on {cfg.data.size}x{cfg.data.size}, "
        f"{exact:.1f} % exact on validation. It runs in this page, without a server."
    )
    if cfg.model.init == "random":
        text += " Its first states are random: here one fixed draw."
    return text
