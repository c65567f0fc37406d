"""Task grid: strings of one length from CSV, and Lights Out: data, training, analysis, solve.py."""

import numpy as np
import pytest
from PIL import Image

import analyze
import data
import solve
import tasks
import tiny
from config import UserError
from tasks import grid
from train import load_run, train

MODEL = {"mixer": "conv", "prefix": 0}
LETTERS = "abc"


def write(path, rows: int = 60, length: int = 9, seed: int = 0):
    """Questions of letters; the answer is each letter's successor."""
    g = np.random.default_rng(seed)
    lines = ["number,question,answer"]
    for row in range(rows):
        question = "".join(g.choice(list(LETTERS), length))
        answer = "".join(LETTERS[(LETTERS.index(c) + 1) % 3] for c in question)
        lines.append(f"{row},{question},{answer}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def config(tmp_path, length: int = 9, model: dict = MODEL, **keys):
    paths = {
        "train_path": write(tmp_path / "train.csv", 60, length),
        "test_path": write(tmp_path / "test.csv", 20, length, seed=1),
    }
    table = {"task": "grid", "size": "", "train_rows": 0, "val_rows": 10, "test_rows": 0}
    return tiny.config(data=table | paths | keys, model=model)


# ---------------------------------------------------------------- data


def test_alphabet_length_and_splits_come_from_the_files(tmp_path):
    cfg = config(tmp_path)
    dataset = data.load(cfg)
    assert dataset.shape["seq_len"] == 9 and dataset.shape["vocab_size"] == 4
    assert dataset.shape["alphabet"] == LETTERS and dataset.card["alphabet"] == LETTERS
    assert len(dataset.val) == 10 and len(dataset.test) == 20
    assert set(np.unique(dataset.train.inputs)) == {1, 2, 3}
    assert (dataset.train.labels == dataset.train.inputs % 3 + 1).all()
    task = tasks.get("grid").bound(dataset.shape)
    assert task.text(cfg.data, dataset.test.inputs[0]) in (tmp_path / "test.csv").read_text()
    assert dataset.card["baseline"] == {"exact": 0.0, "cells": 0.0}


def test_no_question_is_in_two_splits(tmp_path):
    dataset = data.load(config(tmp_path, length=4))  # 81 questions: many occur twice
    parts = [set(map(bytes, part.inputs)) for part in (dataset.train, dataset.val, dataset.test)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert dataset.card["dropped_in_test"] > 0


@pytest.mark.parametrize(
    "name, line, says",
    [
        ("train.csv", "0,abc,abcd", "has 3 cells, expected 9"),
        ("test.csv", "0,abcabcabx,abcabcabc", "'x' at position 9"),
        ("test.csv", "0,abcabcabcabc,abcabcabc", "has 12 cells, expected 9"),
    ],
)
def test_a_bad_row_is_named(name, line, says, tmp_path):
    cfg = config(tmp_path)
    with open(tmp_path / name, "a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=says) as error:
        data.load(cfg)
    assert name in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    cfg = config(tmp_path)
    (tmp_path / "train.csv").unlink()
    with pytest.raises(UserError, match="train.csv does not exist"):
        data.load(cfg)
    assert "train.csv" in cfg.task.missing(cfg)


@pytest.mark.parametrize(
    "length, size, model, says",
    [
        (10, "", MODEL, "model.mixer = 'conv' needs a grid"),
        (10, "", {"mixer": "pool"}, "model.mixer = 'pool' needs a square"),
        (10, "2x5", {"mixer": "pool"}, "model.mixer = 'pool' needs a square"),
        (10, "2x5", {"mixer": "groups"}, "model.mixer = 'groups' needs a square"),
        (10, "3x3", MODEL, "data.size = '3x3', but .* has 10 cells"),
        (10, "", {"mixer": "attention", "positions": "rope2d", "heads": 2}, "needs a grid"),
    ],
)
def test_a_mixer_that_does_not_fit_is_refused_before_training(length, size, model, says, tmp_path):
    with pytest.raises(UserError, match=says):
        data.load(config(tmp_path, length, model, size=size))


def test_lights_out_answers_are_the_fewest_presses_that_put_the_lamps_out():
    silent = grid.silent()
    assert len(silent) == 4 and not grid.lamps(silent.reshape(-1, 5, 5)).any()
    rows = grid.lights_out(200, 8, np.random.default_rng(0))
    presses = rows.labels == 2
    lit = grid.lamps(presses.reshape(-1, 5, 5)).reshape(-1, 25)
    assert (lit == (rows.inputs == 2)).all()
    for other in silent:
        assert (presses.sum(1) <= (presses ^ other).sum(1)).all()
    assert len(np.unique(rows.inputs, axis=0)) == 200
    corner = np.zeros((1, 5, 5), bool)
    corner[0, 0, 0] = True
    assert grid.lamps(corner).sum() == 3


def test_a_question_to_avoid_is_not_drawn():
    first = grid.lights_out(25, 1, np.random.default_rng(0))
    avoid = grid.fingerprint(first.inputs)
    with pytest.raises(UserError, match="no 10 different questions"):
        grid.lights_out(10, 1, np.random.default_rng(1), avoid)


# ---------------------------------------------------------------- a whole run


@pytest.mark.slow
@pytest.mark.parametrize(
    "length, size, model",
    [
        (9, "", MODEL),
        (10, "2x5", MODEL),
        (10, "2x5", {"mixer": "attention", "positions": "rope2d", "dim": 16, "heads": 2}),
        (10, "", {"mixer": "attention", "positions": "rope", "heads": 2}),
        (10, "", {"mixer": "mlp"}),
        (9, "", {"mixer": "pool"}),
    ],
    ids=["square", "2x5", "rope2d", "a line, attention", "a line, mlp", "pool"],
)
def test_train_evaluate_and_solve_work_with_every_mixer(length, size, model, tmp_path, capsys):
    cfg = config(tmp_path, length, model, size=size)
    summary = train(cfg, tmp_path / "run")
    assert summary["test"]["n"] == 20 and "valid" not in summary["test"]
    question = (tmp_path / "test.csv").read_text().splitlines()[1].split(",")[1]
    assert solve.main([str(tmp_path / "run"), question, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    rows, cols = grid.sides(size, length)
    assert f"puzzle  grid {rows}x{cols}, yours" in shown and " ".join(question[:cols]) in shown
    with Image.open(tmp_path / "solved.png") as png:
        assert png.size[0] > 500
    assert solve.main([str(tmp_path / "run"), "--seed=2", "--out", str(tmp_path)]) == 0
    assert "row 3 of test.csv" in capsys.readouterr().out


def test_a_run_is_loaded_without_its_files(tmp_path, capsys):
    train(config(tmp_path), tmp_path / "run")
    (tmp_path / "train.csv").unlink()
    (tmp_path / "test.csv").unlink()
    cfg, net, state = load_run(tmp_path / "run")
    assert cfg.task.bound(state["shape"]).alphabet == LETTERS
    assert solve.main([str(tmp_path / "run"), "abcabcabc", "--out", str(tmp_path)]) == 0
    assert solve.main([str(tmp_path / "run"), "abcabcab", "--out", str(tmp_path)]) == 2
    assert "has 8 cells, expected 9" in capsys.readouterr().err


def test_the_successor_of_a_letter_is_learned_and_analysed(tmp_path):
    cfg = config(tmp_path, length=4)
    longer = tiny.replace(cfg.train, steps=150, batch_size=16, eval_every=50, ema=0.9)
    summary = train(tiny.replace(cfg, train=longer), tmp_path / "runs" / "letters" / "seed0")
    assert summary["test"]["exact"] > 0.9
    text, _ = analyze.analyze([tmp_path / "runs"], tmp_path / "results")
    assert "| letters | " in text and "valid %" in text


@pytest.mark.slow
def test_the_entry_of_lights_out_trains(tmp_path):
    small = ["--data.train_rows=80", "--data.val_rows=20", "--data.test_rows=20"]
    small += ["--train.steps=4", "--train.batch_size=8", "--train.compile=off"]
    process = tiny.spawn(tiny.ROOT / "sweeps/grid/lights_out.toml", f"--out={tmp_path}", *small)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "% of cells (n = " in out and "alphabet 01" in out
