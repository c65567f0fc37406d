"""Faults that were found in the field, as claims: what is right now and must stay so."""

import contextlib
import csv
import dataclasses
import gzip
import io
import json
import lzma
import os
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import runs
import solve
import submitit_launch
import tiny
import train
from config import UserError, below_sweeps, load_config, read_toml, slurm_config, to_toml
from evaluate import evaluate
from optim import EMA
from runs import World
from tasks import arc_tasks, episodes, plants, puzzles
from tasks.arc_tasks import ArcConfig
from tasks.base import Split, rng
from tasks.classify import FeaturesConfig
from tasks.control import ControlConfig
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


def test_a_maze_of_more_rows_than_columns_is_refused_or_filled_with_walls():
    tall = "S  \n   \n###\n   \n  G\n"  # no path; padded to 5x5 there would be one
    for call in (
        lambda: data.solve_maze(tall),
        lambda: puzzles.encode("maze", tall, 5),
        lambda: puzzles.encode("maze", "S  \n   \n##\n   \n  G", 5),  # a row ends in a space
    ):
        refused(call, "5 rows of 3 cells", "as many rows as columns")
    cfg = tiny.config(data={"task": "maze", "size": 5}, model={"mixer": "conv"})
    ((question, words),) = cfg.task.readings(cfg, tall)  # solve.py says that it adds walls
    assert "3 columns, 5 rows: mazes are square, walls added" in words
    assert decode("maze", question) == "S  ##   #######   ##  G##"
    refused(lambda: data.solve_maze(decode("maze", question)), "no path")
    cut_by_an_editor = "S\n\n###\n\n  # G\n"
    assert len(puzzles.encode("maze", cut_by_an_editor, 5)) == 25
    no_space_at_an_end = "S ##\n\n###\n\n  #G\n"  # its fifth column is free in every row
    assert decode("maze", puzzles.encode("maze", no_space_at_an_end, 5))[4::5] == 5 * " "


def test_a_training_file_alone_is_tested_on_new_puzzles_and_says_so(tmp_path, capsys):
    inputs, labels = generate_mazes(replace(MAZES, size=5), 40, rng(3), 5)
    rows = [tuple(decode("maze", cells) for cells in pair) for pair in zip(inputs, labels)]
    path = write_csv(tmp_path / "own.csv", rows)
    files = {"data": {"train_path": path, "train_rows": 0, "val_rows": 5}}
    maze = {"data": {"task": "maze", "size": 5}, "model": {"mixer": "conv"}}
    for name, own, said in (
        ("alone", {}, True),
        ("both", {"test_path": write_csv(tmp_path / "test.csv", rows[:9]), "test_rows": 0}, False),
    ):
        tables = maze | {"data": maze["data"] | files["data"] | own, "train": {"steps": 1}}
        tiny.run(tmp_path / name, **tables)
        assert ("note   data.test_path is empty" in capsys.readouterr().out) == said
    own = {"data": maze["data"] | files["data"] | {"test_path": path, "test_rows": 0}}
    sentence = "0 different training rows (40 of 40 are test rows, left out)"
    refused(lambda: tiny.run(tmp_path / "same", **maze | own), sentence)


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
    ema = EMA(net, 0.999, warmup)
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


# ---------------------------------------------------------------- leaks: control rows


DI = plants.PLANTS["double_integrator"]


def save_rows(path: Path, rows: dict, which) -> str:
    np.savez(path, **{key: values[which] for key, values in rows.items()})
    return str(path)


def test_control_rows_of_both_files_leave_training_and_copies_count_once(tmp_path):
    rows = plants.generate(DI, 60, "train", 0)
    train_path = save_rows(tmp_path / "train.npz", rows, [*range(40), *[3] * 9])
    test_path = save_rows(tmp_path / "test.npz", rows, [35, 36, 36, *range(40, 60)])
    keys = {"plant": "double_integrator", "train_rows": 0, "val_rows": 5}
    cfg = ControlConfig(**keys, train_path=train_path, test_path=test_path)
    ds = data.load(cfg)
    asked = [{row.tobytes() for row in part.inputs} for part in (ds.train, ds.val, ds.test)]
    assert list(map(len, asked)) == [33, 5, 22] == list(ds.card["rows"].values())
    assert not (asked[0] & asked[1] or asked[0] & asked[2] or asked[1] & asked[2])
    names = ("dropped_repeated", "dropped_repeated_test", "dropped_in_test")
    assert [ds.card[name] for name in names] == [9, 1, 2]
    # Test rows that are not used may be trained on.
    ds = data.load(replace(cfg, test_rows=1))
    assert (len(ds.test), ds.card["dropped_in_test"]) == (1, 1)
    same = replace(cfg, test_path=train_path)
    refused(lambda: data.load(same), "5 validation rows leave nothing of 0 training rows")


def test_vectors_of_two_splits_are_dropped_and_counted(tmp_path):
    x = np.arange(90.0).reshape(30, 3)
    path = tmp_path / "a.npz"
    np.savez(path, features=np.concatenate([x] * 4), labels=np.arange(120) % 3)
    ds = data.load(FeaturesConfig(train_path=str(path), train_rows=0))
    sets = [{row.tobytes() for row in part.inputs} for part in (ds.train, ds.val, ds.test)]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    total = len(ds.train) + len(ds.val) + len(ds.test)
    assert ds.card["dropped_in_later_split"] == 120 - total > 0
    np.savez(path, features=np.ones((60, 3)), labels=np.arange(60) % 3)
    refused(lambda: data.load(FeaturesConfig(train_path=str(path), train_rows=0)), "0 training")


# ---------------------------------------------------------------- leaks: ARC


def pair(g: np.random.Generator) -> dict:
    """A 3x3 grid and its mirror image."""
    grid = g.integers(5, size=(3, 3))
    return {"input": grid.tolist(), "output": grid[:, ::-1].tolist()}


def arc_folder(folder: Path, name: str, count: int, repeat: int = 0) -> Path:
    """A folder of tasks; the last query of `repeat` of them is a demonstration too."""
    g = np.random.default_rng(len(name))
    folder = folder / name
    folder.mkdir()
    for k in range(count):
        task = {"train": [pair(g) for _ in range(3)], "test": [pair(g), pair(g)]}
        if k < repeat:
            task["test"][1] = task["train"][1]
        (folder / f"{name}{k}.json").write_text(json.dumps(task))
    return folder


def arc_config(train: Path, test: Path, **keys) -> ArcConfig:
    sizes = {"side": 3, "train_tasks": 0, "val_tasks": 0, "test_tasks": 0}
    return ArcConfig(train=str(train), test=str(test), **sizes, **keys)


def test_a_query_that_is_a_demonstration_of_its_task_is_dropped_and_counted(tmp_path):
    a, b = arc_folder(tmp_path, "train", 6, repeat=2), arc_folder(tmp_path, "test", 6, repeat=4)
    cfg = arc_config(a, b, mode="embed", transductive=True, targets="all")
    ds = episodes.load(cfg)
    assert (ds.card["train_pairs_repeated"], ds.card["test_pairs_repeated"]) == (2, 4)
    held_out = [ds.tasks[t] for t in ds.test]
    assert sorted(len(task.pairs) for task in held_out) == [4, 4, 4, 4, 5, 5]
    queries = {episodes.pair_hash(p) for task in held_out for p in task.pairs[task.demos :]}
    trained = set()
    for step in range(30):
        e = episodes.episodes(ds, cfg, 8, 0, step)
        trained |= {episodes.pair_hash(ds.tasks[t].pairs[p]) for t, p in zip(e.task, e.target)}
    assert not queries & trained
    plan = episodes.queries(ds, cfg, ds.test, 1)
    assert len(plan) == 8  # 4 of one query, 2 of two


def test_pairs_that_a_task_has_twice_count_once_and_keep_their_order(tmp_path):
    g = np.random.default_rng(0)
    pairs = [pair(g) for _ in range(4)]
    folder = tmp_path / "tasks"
    folder.mkdir()
    demos, queries = [pairs[k] for k in (0, 1, 0)], [pairs[k] for k in (2, 1, 3, 2)]
    (folder / "a.json").write_text(json.dumps({"train": demos, "test": queries}))
    kept, dropped = episodes.distinct(arc_tasks.read_tasks(str(folder)))
    assert dropped == 3 and kept[0].demos == 2
    assert [p[0].tolist() for p in kept[0].pairs] == [p["input"] for p in pairs]


def test_tasks_without_a_query_of_their_own_are_refused(tmp_path):
    folder = arc_folder(tmp_path, "all", 2)
    for file in folder.glob("*.json"):
        task = json.loads(file.read_text())
        file.write_text(json.dumps(task | {"test": task["train"][:1]}))
    cfg = arc_config(arc_folder(tmp_path, "train", 3), folder)
    refused(lambda: episodes.load(cfg), "2 tasks", "'all0'", "one of its own demonstrations")


def test_hidden_copies_are_no_tasks(tmp_path):
    folder = arc_folder(tmp_path, ".data", 2)  # what is above it may be hidden
    (folder / ".ipynb_checkpoints").mkdir()
    text = (folder / ".data0.json").read_text()
    for file in folder.glob(".data*.json"):
        file.rename(folder / file.name.removeprefix("."))
    (folder / ".ipynb_checkpoints" / "data0-checkpoint.json").write_text(text)
    (folder / "._data0.json").write_text("no JSON: a Mac wrote it")
    assert [task.id for task in arc_tasks.read_tasks(str(folder))] == ["data0", "data1"]


@pytest.mark.parametrize("source", ["A,", ",A", "A,,B", "A, ", ","])
def test_an_empty_word_is_not_this_folder(source):
    cfg = ArcConfig(train=source, test="B")
    assert [key for key, _ in cfg.problems()] == ["train"]
    refused(lambda: episodes.load(cfg), f"arc.train = {source!r}", "every comma")


# ---------------------------------------------------------------- odd values


def entry_refused(folder: Path, text: str, *words: str, name: str = "a.toml") -> str:
    """The sentence about an entry of this text."""
    (folder / name).write_text(text, encoding="utf-8")
    return refused(lambda: load_config(Config, folder / name, {}), name, *words)


BIG = 2**64
ODD_VALUES = [
    (f"seed = {BIG}", "seed = an integer of 65 bits", "at most 64 bits"),
    (f"seed = 0x{'f' * 5000}", "seed = an integer of 20000 bits", "an integer"),
    (f"seed = {'9' * 5000}", "not a TOML file"),
    (f"train.lr = {BIG}{'0' * 400}", "lr = an integer of 1393 bits", "a number of at most"),
    ("train.lr = 1e38", "lr = 1e+38", "at most 1e+37"),
    ("train.lr = -1e300", "lr = -1e+300", "at most 1e+37"),
    ("train.lr = inf", "lr = inf", "a number"),
    ("train.lr = 1e37\ntrain.weight_decay = 3.0", "lr = 1e+37", "weight_decay"),
    ("train.lr = 1e37\ntrain.beta1 = 0.99", "lr = 1e+37", "beta1"),
    ("train.threads = 1000000", "threads = 1000000", "at most 1024"),
    ("train.batch_size = 1000000000000", "batch_size = 1000000000000", "at most 1048576"),
    ("model.dim = 1000000000", "dim = 1000000000", "at most 16384"),
    ("model.expansion = 1e9", "expansion = 1000000000.0", "at most 1000"),
    ("model.n_sup = 1000000000", "n_sup = 1000000000", "at most 10000"),
    ('out = "a\\u0000b"', "out = 'a\\x00b'", "without NUL"),
    ('data.train_path = "\\u0000"', "train_path = '\\x00'", "without NUL"),
    ('base = "\\u0000"', "base = '\\x00'", "the path of another entry"),
    ('base = ""', "base = ''", "the path of another entry"),
    ("seed = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
    ("seed = " + "[" * 300 + "]" * 300, "seed = [[[", "an integer"),
    (f'seed = "{"x" * 9999}"', "(10001 characters)", "an integer"),
    (f"seed = [0x{'f' * 5000}]", "seed = a list too long to show", "an integer"),
    ('"a\\nb" = 1', "unknown key 'a\\nb'"),
    ('[data]\ntask = "modular"\nmodulus = 1000000', "modulus = 1000000", "at most 5000"),
    ('[data]\ntask = "arc"\n[arc]\ndemos = 1000000', "demos = 1000000", "at most 1000"),
    ('[data]\ntask = "arc"\n[encoder]\nlatent = 1000000', "latent = 1000000", "at most 16384"),
]


@pytest.mark.parametrize("text, words", [(row[0], row[1:]) for row in ODD_VALUES])
def test_an_odd_value_is_one_sentence(tmp_path, text, words):
    entry_refused(tmp_path, text, *words)


def test_odd_words_of_the_command_line_are_one_sentence(tmp_path, capsys):
    path = str(tiny.entry(tmp_path))
    for word, says in {
        f"--seed={BIG}": "seed = an integer of 65 bits",
        f"--seed={'9' * 5000}": "(5002 characters)",
        "--seed=" + "[" * 5000: "(5002 characters)",
        "--seed=1\n": "seed = '1\\n'",
        "--train.lr=1e39": "lr = 1e+39",
        "--hypothesis=\udcff": "unknown key '--hypothesis=\\udcff'",
        "--out=\udcff": "valid UTF-8",
    }.items():
        assert train.main([path, f"--out={tmp_path}/runs", word]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: command line") and err.count("\n") == 1, err
        assert says in err, (says, err)
    assert not (tmp_path / "runs").exists()


LARGE_BUT_FINE = {  # integers that only count something, or wait for something
    "seed",
    "train.steps",
    "train.warmup",
    "train.eval_every",
    "train.patience",
    "train.log_every",
    "encoder.freeze_steps",
    "encoder.freeze_decoder_steps",
}


@pytest.mark.parametrize("task", ["maze", "sudoku", "features", "modular", "arc"])
def test_every_integer_of_the_net_and_of_training_has_a_limit(tmp_path, task):
    cls = Config.of(task)
    for part in dataclasses.fields(cls):
        if part.name not in ("model", "train", "encoder"):
            continue
        for key in dataclasses.fields(part.type):
            if key.type is int and f"{part.name}.{key.name}" not in LARGE_BUT_FINE:
                text = f'data.task = "{task}"\n{part.name}.{key.name} = 1000000000\n'
                entry_refused(tmp_path, text, f"{key.name} = 1000000000, expected")


def test_more_rows_than_memory_are_one_sentence(monkeypatch):
    def too_large(*_):
        raise MemoryError("Unable to allocate 7.45 TiB")

    monkeypatch.setattr("tasks.maze.generate_mazes", too_large)
    refused(lambda: data.load(MAZES), "data", "memory", "7.45 TiB", "fewer")


TEXTS = ["a\x7fb", "one\ntwo", "tab\t", "\x1b[31m", "\u2028", "\x85", 'quote " and \\', "\r"]


@pytest.mark.parametrize("text", TEXTS)
def test_config_toml_gives_any_text_back(tmp_path, text):
    cfg = tiny.config(hypothesis=text)
    (tmp_path / "config.toml").write_text(to_toml(cfg, f"sweeps/{text}.toml"), encoding="utf-8")
    assert load_config(Config, tmp_path / "config.toml", {}) == cfg
    runs.check_same(tmp_path, cfg)


@pytest.mark.parametrize("name", ["a\x7fb.toml", "a\nb.toml", "a\x1b.toml", "a\x85.toml"])
def test_an_entry_s_name_has_no_control_characters(tmp_path, name):
    path = tmp_path / name
    path.write_text("")
    for call in (lambda: load_config(Config, path, {}), lambda: slurm_config(path)):
        refused(call, repr(str(path)), "without control characters")


@pytest.mark.parametrize("name", ["..toml", ".toml", "...toml", "....toml"])
def test_an_entry_has_a_name(tmp_path, name):
    (tmp_path / "sweeps").mkdir()
    path = tmp_path / "sweeps" / name
    path.write_text("")
    refused(lambda: load_config(Config, path, {}), str(path), "a name before .toml")


def test_an_entry_named_like_the_folder_of_entries_has_a_folder_of_its_own(tmp_path):
    for path, name in {
        "sweeps/sweeps.toml": "sweeps",
        "other/sweeps.toml": "sweeps",
        "sweeps/a.b.toml": "a.b",
        "sweeps/x/../y/a.toml": "y/a",
    }.items():
        assert below_sweeps(tmp_path / path)[1] == Path(name)


@pytest.mark.slow
def test_runs_of_names_that_are_alike_have_a_log_each(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweeps" / "n" / "a").mkdir(parents=True)
    entries = [tiny.entry(tmp_path / "sweeps" / "n", name) for name in ("a_b.toml", "a/b.toml")]
    words = [*map(str, entries), "--local", "--jobs=1", f"--out={tmp_path}/runs"]
    assert submitit_launch.main(words) == 0, capsys.readouterr().err
    jobs = [json.loads(path.read_text()) for path in (tmp_path / "runs").rglob("job.json")]
    logs = {job["log"] for job in jobs}
    assert len(logs) == 2 and all("done" in Path(log).read_text() for log in logs)


# ---------------------------------------------------------------- odd files


def bad_npz(arrays: dict, path: Path) -> str:
    np.savez(path, **arrays)
    return str(path)


X, Y = np.arange(120.0).reshape(30, 4), np.arange(30) % 3
ODD_ARRAYS = [
    ({"features": X + 1j, "labels": Y}, "features holds complex128"),
    ({"features": X.astype(object), "labels": Y}, "Object arrays"),
    ({"features": X.astype(str), "labels": Y}, "features holds <U"),
    ({"features": X, "labels": Y.astype("M8[s]")}, "labels holds datetime64"),
    ({"features": X * 1e300, "labels": Y}, "row 1: feature 2 is inf"),
    ({"features": X, "labels": np.where(Y == 2, 10**9, Y)}, "row 3: label 1e+09", "below 65536"),
]


@pytest.mark.parametrize("arrays, words", [(row[0], row[1:]) for row in ODD_ARRAYS])
def test_arrays_of_something_else_than_numbers_are_refused(tmp_path, arrays, words):
    path = bad_npz(arrays, tmp_path / "a.npz")
    refused(lambda: data.load(FeaturesConfig(train_path=path)), path, *words)


def test_complex_control_rows_are_refused(tmp_path):
    rows = plants.generate(DI, 4, "train", 0)
    path = bad_npz(rows | {"costs": rows["costs"] + 0j}, tmp_path / "a.npz")
    refused(lambda: plants.read_npz(path, DI), path, "control rows", "costs holds complex128")


def test_an_npy_that_is_called_npz_and_a_header_that_claims_16_gb_are_refused(tmp_path):
    npy = tmp_path / "a.npy"
    np.save(npy, X)
    npz = npy.rename(tmp_path / "a.npz")
    read_both = [
        lambda path: data.load(FeaturesConfig(train_path=path)),
        lambda path: plants.read_npz(path, DI),
    ]
    for read in read_both:
        refused(lambda read=read: read(str(npz)), "a.npz", "is an .npy", "expected an .npz")
    header = io.BytesIO()
    claims = {"descr": "<f8", "fortran_order": False, "shape": (2**31, 1)}
    np.lib.format.write_array_header_1_0(header, claims)
    huge = tmp_path / "huge.npz"
    with zipfile.ZipFile(huge, "w") as file:
        for name in ("features", "labels", *plants.ROWS):
            file.writestr(f"{name}.npy", header.getvalue() + b"12345678")
    for read in read_both:
        refused(lambda read=read: read(str(huge)), "huge.npz", "cannot be read as")


def test_deep_nesting_in_json_is_one_sentence(tmp_path):
    arc_folder(tmp_path, "a", 1)
    for depth in (900, 100_000):
        (tmp_path / "a" / "deep.json").write_text(
            '{"train": [{"input": ' + "[" * depth + "]" * depth + "}]}"
        )
        refused(lambda: arc_tasks.read_tasks(str(tmp_path / "a")), "deep.json")


@contextlib.contextmanager
def time_limit(seconds: float, path: Path):
    """Opens the other end of a pipe after some seconds, so that a test that hangs fails."""
    timer = threading.Timer(seconds, lambda: os.close(os.open(path, os.O_RDWR)))
    timer.start()
    yield
    assert timer.is_alive(), f"reading {path} waits for a writer"
    timer.cancel()


def test_pipes_and_devices_are_refused_rather_than_read(tmp_path):
    folder = arc_folder(tmp_path, "tasks", 1)
    for name in ("a.toml", "a.csv", "a.npz", "tasks/z.json"):
        os.mkfifo(tmp_path / name)
    rows = str(tmp_path / "a.csv")
    for path, call in {
        "a.toml": lambda: load_config(Config, tmp_path / "a.toml", {}),
        "a.csv": lambda: data.load(replace(MAZES, train_path=rows)),
        "a.csv ": lambda: data.load(FeaturesConfig(train_path=rows)),
        "a.npz": lambda: plants.read_npz(str(tmp_path / "a.npz"), DI),
        "tasks/z.json": lambda: arc_tasks.read_tasks(str(folder)),
    }.items():
        with time_limit(3, tmp_path / path.strip()):
            refused(call, path.strip(), "a pipe or a device")
    refused(lambda: data.load(replace(MAZES, test_path="/dev/zero")), "/dev/zero", "a device")


def test_paths_that_no_system_takes_are_one_sentence(tmp_path):
    long = "x" * 5000
    cfg = tiny.config(data={"task": "maze", "train_path": long})
    assert long[:99] in cfg.task.missing(cfg)
    for task, key in {"features": "train_path", "control": "train_path"}.items():
        cfg = tiny.config(data={"task": task, key: long})
        assert "no such file" in cfg.task.missing(cfg)
    with pytest.raises(UserError, match="cannot be read"):
        data.load(replace(MAZES, train_path=long))


# ---------------------------------------------------------------- files from other systems


BOM = "\ufeff"


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path, monkeypatch):
    text = f"{BOM}hypothesis = 'x'\r\n\r\n[model]\r\nn = 2\r\n"
    (tmp_path / "a.toml").write_bytes(text.encode())
    assert read_toml(tmp_path / "a.toml") == {"hypothesis": "x", "model": {"n": 2}}
    folder = arc_folder(tmp_path, "tasks", 1)
    file = folder / "tasks0.json"
    file.write_bytes((BOM + file.read_text()).encode())
    assert len(arc_tasks.read_tasks(str(folder))) == 1
    (tmp_path / "puzzle.txt").write_bytes(f"{BOM}S G\r\n   \r\n   ".encode())
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{BOM}S G"))
    assert solve.read_puzzle(str(tmp_path / "puzzle.txt")) == "S G\n   \n   "
    assert solve.read_puzzle(f"{BOM}S G") == "S G" == solve.read_puzzle("-")


def table(end: str) -> str:
    """Thirty vectors as a CSV that ends like this."""
    rows = [",".join([*map(str, x), str(y)]) for x, y in zip(X, Y)]
    return "\n".join(["a,b,c,d,label", *rows]) + end


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n\r\n", "\n  \n", "\n,,,,\n,,,,\n"])
def test_empty_lines_at_the_end_of_a_table_are_left_out(tmp_path, end):
    (tmp_path / "a.csv").write_bytes((BOM + table(end)).encode())
    ds = data.load(FeaturesConfig(train_path=str(tmp_path / "a.csv"), train_rows=0))
    assert ds.card["rows_in_file"] == 30
    (tmp_path / "a.csv").write_text(table("\n\n1,2\n"))
    refused(
        lambda: data.load(FeaturesConfig(train_path=str(tmp_path / "a.csv"))),
        "line 33: has 2 columns, expected 5",
    )


@pytest.mark.parametrize("text, words", [("", "it is empty"), ("a,b,label\n", "no rows")])
def test_an_empty_table_is_called_empty(tmp_path, text, words):
    path = tmp_path / "a.csv"
    path.write_text(text)
    refused(lambda: data.load(FeaturesConfig(train_path=str(path))), "a.csv", words)


def test_suffixes_may_be_written_in_capitals(tmp_path):
    inputs, labels = generate_mazes(MAZES, 40, rng(3), 6)
    rows = [tuple(decode("maze", cells) for cells in both) for both in zip(inputs, labels)]
    text = Path(write_csv(tmp_path / "a.csv", rows)).read_bytes()
    written = {"a.CSV": text, "a.CSV.GZ": gzip.compress(text), "a.csv.XZ": lzma.compress(text)}
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
        cfg = replace(MAZES, test_path=str(tmp_path / name), test_rows=0)
        assert len(data.load(cfg).test) == 40
    vectors = table("\n").encode()
    for name, content in {"v.CSV": vectors, "v.CSV.GZ": gzip.compress(vectors)}.items():
        (tmp_path / name).write_bytes(content)
        ds = data.load(FeaturesConfig(train_path=str(tmp_path / name), train_rows=0))
        assert ds.card["rows_in_file"] == 30
    path = Path(bad_npz({"features": X, "labels": Y}, tmp_path / "v.npz"))
    path = path.rename(tmp_path / "v.NPZ")
    assert len(data.load(FeaturesConfig(train_path=str(path), train_rows=0)).test) == 6
    entry = tiny.entry(tmp_path, "A.TOML", data={"task": "sudoku"})
    assert train.command_line(Config, [str(entry), "--data.givens_min=7"], "")[1] == {
        "data": {"givens_min": 7}
    }


def test_a_linked_entry_is_what_its_name_says(tmp_path):
    real, links = tmp_path / "sweeps" / "laptop", tmp_path / "elsewhere" / "sweeps" / "paper"
    real.mkdir(parents=True)
    links.mkdir(parents=True)
    tiny.entry(real, "base.toml")
    (real / "a.toml").write_text('base = "base.toml"\ntrain.steps = 3\n')
    (links / "fig2.toml").symlink_to(real / "a.toml")
    assert below_sweeps(links / "fig2.toml") == (links.parent, Path("paper/fig2"))
    cfg = load_config(Config, links / "fig2.toml", {})  # its base lies beside the file itself
    assert (cfg.train.steps, cfg.model.dim) == (3, 16)
    assert runs.run_folder(cfg, links / "fig2.toml") == Path("runs/paper/fig2/seed0")
    tiny.entry(links, "base.toml", model={"dim": 32})  # one beside the link comes first
    assert load_config(Config, links / "fig2.toml", {}).model.dim == 32


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 2, 1), (1, 2, 0)])
def test_solve_takes_its_words_in_any_order(order):
    words = ["RUN", "--out=x", "S G      "]
    if order.index(0) > order.index(2):
        words[0], words[2] = words[2], words[0]  # the run comes before the puzzle
    args = solve.command_line([words[at] for at in order])
    assert {str(args.run), args.puzzle} == {"RUN", "S G      "} and args.out == Path("x")
    assert args.puzzle == "S G      "
    args = solve.command_line(["--steps", "3", "RUN", "--seed=4", "-"])
    assert (args.steps, args.seed, args.puzzle) == (3, 4, "-")
    refused(lambda: solve.command_line(["RUN", "a", "--out=x", "b"]), "'b'", "in quotes")
