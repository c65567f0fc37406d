"""Faults that were found in the field, as claims: what is right now and must stay so."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import solve
import tiny
from config import UserError
from evaluate import evaluate
from optim import make_ema
from runs import World
from tasks import puzzles
from tasks.base import Split, rng
from tasks.maze import MazeConfig
from tasks.planner import all_plans
from tasks.puzzles import decode, generate_mazes
from train import Config, load_run

MAZES = MazeConfig(size=6, train_rows=90, val_rows=20, test_rows=30)
RANDOM = {**tiny.ATTENTION, "init": "random"}
CPU = World(0, 1, torch.device("cpu"), torch.float32, False)


def refused(call, *words: str) -> str:
    """The one sentence of a UserError, in which all these words stand."""
    with pytest.raises(UserError) as error:
        call()
    sentence = str(error.value)
    assert "\n" not in sentence and len(sentence) < 500, sentence
    for word in words:
        assert word in sentence, (word, sentence)
    return sentence


def write_csv(path: Path, rows: list) -> str:
    """A CSV with the columns question and answer."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("question", "answer"), *rows])
    return str(path)


# ---------------------------------------------------------------- puzzles that are none


def test_a_maze_whose_answer_is_no_path_is_refused_with_its_row(tmp_path):
    inputs, labels = generate_mazes(replace(MAZES, size=5), 40, rng(3), 5)
    good = [tuple(decode("maze", cells) for cells in pair) for pair in zip(inputs, labels)]
    question, answer = good[1]
    stray = answer[: answer.rindex(" ")] + "o" + answer[answer.rindex(" ") + 1 :]
    cut = answer.replace("o", " ", 1)
    for wrong in (question, stray, cut):
        rows = [good[0], (question, wrong), *good[2:]]
        path = write_csv(tmp_path / "test.csv", rows)
        cfg = replace(MAZES, size=5, test_path=path, test_rows=0)
        refused(lambda cfg=cfg: data.load(cfg), "test.csv, row 2", "one path from S to G")
    path = write_csv(tmp_path / "test.csv", good)
    assert len(data.load(replace(MAZES, size=5, test_path=path, test_rows=0)).test) == 40


def test_an_answer_may_be_a_longer_path_or_none_at_all_between_neighbours(tmp_path):
    longer = ("S    " + "#### " + "     " + " ####" + "    G", "Soooo" + "####o" + "ooooo"
              + "o####" + "ooooG")  # fmt: skip
    beside = ("SG   " + 20 * " ", "SG   " + 20 * " ")
    path = write_csv(tmp_path / "test.csv", [longer, beside])
    ds = data.load(replace(MAZES, size=5, test_path=path, test_rows=0))
    assert len(ds.test) == 2


def test_a_maze_of_more_rows_than_columns_is_refused_rather_than_made_square():
    tall = "S  \n   \n###\n   \n  G\n"  # no path; padded to 5x5 there would be one
    for call in (
        lambda: data.solve_maze(tall),
        lambda: puzzles.encode("maze", tall, 5),
        lambda: Config.of("maze")().task.parse(tiny.config(data={"task": "maze", "size": 5}), tall),
        lambda: puzzles.encode("maze", "S  \n   \n##\n   \n  G", 5),  # a row ends in a space
    ):
        refused(call, "5 rows of 3 cells", "as many rows as columns")
    cut_by_an_editor = "S\n\n###\n\n  # G\n"
    assert len(puzzles.encode("maze", cut_by_an_editor, 5)) == 25
    no_space_at_an_end = "S ##\n\n###\n\n  #G\n"  # its fifth column is free in every row
    assert decode("maze", puzzles.encode("maze", no_space_at_an_end, 5))[4::5] == 5 * " "


# ---------------------------------------------------------------- random first states


class Half(World):
    """One of two processes, whose sums are its own part alone."""

    def sum(self, values):
        return values


def test_noise_belongs_to_the_puzzle_whatever_the_batch_size_pieces_and_ranks(tmp_path):
    tiny.run(tmp_path / "run", model=RANDOM)
    cfg, net, _ = load_run(tmp_path / "run")
    with torch.no_grad():
        net.head.weight.normal_(0, 3.0)  # answers that depend on the first states
    split = data.load(cfg).test
    split = Split(split.inputs, split.labels)

    def answers(world=CPU, rows=0, split=split, **keys) -> dict:
        other = replace(cfg, train=replace(cfg.train, **keys))
        return evaluate(net, split, other, world, rows=rows)

    whole = answers(batch_size=10)
    for keys in ({"batch_size": 1}, {"batch_size": 3}, {"batch_size": 8, "accumulate": 4}):
        found = answers(**keys)
        assert found["curve"] == whole["curve"] and found["cells"] == whole["cells"]
    cells = [answers(split=Split(split.inputs[[i]], split.labels[[i]]))["cells"] for i in range(10)]
    assert np.mean(cells) == pytest.approx(whole["cells"])
    backwards = Split(split.inputs[::-1], split.labels[::-1])
    assert answers(split=backwards)["cells"] == pytest.approx(whole["cells"])
    halves = [answers(Half(rank, 2, CPU.device, CPU.dtype, False))["cells"] for rank in (0, 1)]
    assert np.mean(halves) == pytest.approx(whole["cells"])
    # And solve.py shows what evaluation scored.
    own = solve.solve(cfg.task, cfg, net, split.inputs[0], cfg.eval_steps).answers[-1]
    assert (own == split.labels[0]).mean() == pytest.approx(cells[0])


def test_noise_differs_between_puzzles_and_seeds_and_is_none_for_fixed_states():
    cfg = tiny.config(model=RANDOM)
    net = cfg.task.make_net(cfg, cfg.task.shape(cfg), torch.float32)
    rows = np.arange(32, dtype=np.uint8).reshape(2, 16)
    y, z = net.states_of(rows, 0)
    assert y.shape == (2, 17, 16) and not torch.equal(y[0], y[1]) and not torch.equal(y, z)
    assert torch.equal(net.states_of(rows[[1, 0, 1]], 0)[0], y[[1, 0, 1]])
    assert not torch.equal(net.states_of(rows, 1)[0], y)
    torch.testing.assert_close(y.std(), torch.tensor(1.0), atol=0.1, rtol=0)
    fixed = tiny.config(model=tiny.ATTENTION)
    net = fixed.task.make_net(fixed, fixed.task.shape(fixed), torch.float32)
    assert net.states_of(rows, 0)[0].shape == (16,)


def planner(**model) -> torch.nn.Module:
    """A small control net for the double integrator."""
    base = {"dim": 8, "heads": 2, "multiple": 8, "prefix": 0, "T": 1, "n": 1, "n_layers": 1}
    cfg = tiny.config(
        data={"task": "control", "plant": "double_integrator"}, model={**base, **model}
    )
    torch.manual_seed(0)
    net = cfg.task.make_net(cfg, cfg.task.shape(cfg), torch.float32).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def test_a_plan_from_random_states_does_not_depend_on_the_rows_beside_it():
    net = planner(init="random", mixer="attention", positions="none")
    g = np.random.default_rng(0)
    x0, target = g.normal(size=(4, 2)), g.normal(size=(4, 2))
    plans = all_plans(net, x0, target)
    turned = all_plans(net, x0[::-1], target[::-1])[:, ::-1]
    np.testing.assert_allclose(turned, plans, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(
        all_plans(net, x0[2:3], target[2:3]), plans[:, 2:3], atol=1e-5, rtol=1e-5
    )


def test_plans_become_float64_on_the_host_alone(monkeypatch):
    def no_float64(self, *words, **keys):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    net = planner(mixer="attention", positions="none")
    monkeypatch.setattr(torch.Tensor, "double", no_float64)
    assert all_plans(net, np.zeros((1, 2)), np.ones((1, 2))).dtype == np.float64


# ---------------------------------------------------------------- averaged weights


class Table(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.puzzles = torch.nn.Parameter(torch.zeros(3, 2))
        self.encoder = torch.nn.Module()
        self.encoder.puzzles = torch.nn.Parameter(torch.zeros(2, 2))
        self.net = torch.nn.Linear(2, 2)


@pytest.mark.parametrize("warmup", [False, True])
def test_rows_of_puzzle_identifiers_are_evaluated_as_they_are(warmup):
    net = Table()
    ema = make_ema(net, 0.999, warmup)
    for _ in range(200):
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.01
        ema.update_parameters(net)
    for part in (ema.module, ema.module.encoder):
        assert torch.allclose(part.puzzles, torch.tensor(-2.0))
    assert not torch.allclose(ema.module.net.weight, net.net.weight)


def test_a_run_keeps_its_puzzle_rows_unaveraged(tmp_path):
    tiny.run(tmp_path / "run", model=tiny.ATTENTION, train={"puzzle_lr": 0.1})
    state = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    assert torch.equal(state["raw"]["puzzles"], state["ema"]["puzzles"])
    assert state["raw"]["puzzles"].abs().max() > 0
    assert not torch.equal(state["raw"]["head.weight"], state["ema"]["head.weight"])


# ---------------------------------------------------------------- redrawn mazes


@pytest.mark.parametrize("flip", [0.0, 0.02, 0.1])
def test_mazes_are_redrawn_until_it_works_and_the_card_says_what_came_of_it(flip):
    cfg = replace(MAZES, size=11, min_distance=22, wall_min=0.3, redraw=3, flip=flip)
    ds = data.load(cfg)
    copies = ds.variants.inputs[:, 8:].reshape(len(ds.train), 8, 3, 121)
    turned = ds.variants.inputs[:, :8, None]
    unchanged = int((copies == turned).all(-1).sum())
    changed = ((copies == puzzles.WALL) != (turned == puzzles.WALL)).mean()
    assert ds.card["redraw_unchanged"] == f"{unchanged} of {24 * len(ds.train)} copies"
    assert ds.card["redraw_cells_changed"] == pytest.approx(changed, abs=1e-5)
    assert f"chance {flip:g}" in ds.card["augmentation"]
    assert unchanged < 0.05 * 24 * len(ds.train)
    assert 0.6 * flip <= changed <= flip
    json.dumps(ds.card)
