"""Classification: generated and read feature vectors, modular addition, and founding document 004's trainer as behaviours.

The document lists 14 tests. Each is here as behaviour, by these tests:

    loss, basic              test_model.test_cross_entropy_is_the_mean_over_labelled_positions_of_a_row, test_an_epoch_sees_every_row_once_and_lowers_the_loss
    complexity penalty       test_model.test_the_complexity_penalty_is_a_constant_without_gradient_with_the_value_of_document_004,
                             test_the_complexity_penalty_is_reported_apart_and_moves_no_weight
    filter, initialization   test_optim.test_the_ema_filter_adds_the_slow_part, test_optim.test_the_loop_filters_with_the_configured_numbers_before_it_clips
    gradient filtering       test_optim.test_the_highpass_filter_adds_the_fast_part, test_optim.test_the_ma_filter_adds_the_mean_of_a_full_window,
                             test_optim.test_ema_amplifies_slow_gradients_and_highpass_fast_ones
    filter, state dict       test_optim.test_a_filter_continues_from_its_state_dict_to_the_same_bits
    trainer, initialization  test_a_new_run_is_at_step_0_with_the_configured_parts
    train epoch              test_an_epoch_sees_every_row_once_and_lowers_the_loss
    validate                 test_top3_counts_the_label_among_the_three_most_probable_classes, test_validation_leaves_the_net_as_it_was
    fit, basic               test_fit_learns_keeps_the_best_and_stops_early
    early stopping           test_fit_learns_keeps_the_best_and_stops_early, test_optim.test_patience_counts_validations_without_a_better_one
    checkpoint, save, load   test_a_saved_run_gives_the_figures_of_its_best_validation, test_a_run_stopped_in_the_middle_of_an_epoch_continues_to_the_same_bits,
                             test_a_filter_of_another_history_would_not_continue_to_the_same_bits
    full pipeline            test_readme.test_the_ten_lines_of_python_in_the_readme_run
    device handling          test_optim.test_device_and_dtype_choose_where_and_in_what_to_compute
    recursion depths         test_T_and_n_change_at_evaluation_without_retraining, test_analyze.test_accuracy_at_other_depths_needs_no_retraining
"""

import dataclasses
import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

import data
import features
import train as training
from data import DataConfig, UserError, load, rng
from evaluate import evaluate
from model import TRM, ModelConfig, Shape

VECTORS = {
    "task": "features",
    "features": 16,
    "classes": 4,
    "noise": 0.5,
    "train_rows": 240,
    "val_rows": 40,
    "test_rows": 60,
}
NET = {
    "mixer": "attention",
    "positions": "none",
    "prefix": 0,
    "q_from": "mean",
    "n_sup": 1,
    "halting": False,
    "loss": "softmax",
    "n_layers": 1,
}
ENTRY = {
    "data": VECTORS,
    "model": NET,
    "train": {"steps": 40, "batch_size": 20, "lr": 0.01, "eval_every": 10, "ema": 0.0},
}


def splits(ds):
    return ds.train, ds.val, ds.test


# --- data -----------------------------------------------------------------------------------------------------------


def test_generated_classes_are_what_was_asked_and_apart():
    ds = load(DataConfig(**VECTORS))
    assert [len(s) for s in splits(ds)] == [200, 40, 60] == list(ds.card["rows"].values())
    assert all(
        s.inputs.shape[1:] == (16,)
        and s.inputs.dtype == np.float32
        and s.labels.shape == (len(s), 1)
        for s in splits(ds)
    )
    assert ds.shape == {"vocab_size": 0, "seq_len": 1, "features": 16, "classes": 4}
    rows = [{row.tobytes() for row in s.inputs} for s in splits(ds)]
    assert len(set.union(*rows)) == 300
    np.testing.assert_allclose(ds.train.inputs.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(ds.train.inputs.std(0), 1, atol=1e-3)
    assert abs(ds.test.inputs.std() - 1) > 1e-4, "scaled by the training rows only"
    most = np.bincount(ds.train.labels.ravel()).argmax()
    assert ds.card["baseline"]["exact"] == (ds.test.labels == most).mean() < 0.5


def test_the_ceiling_is_the_accuracy_of_the_most_probable_class():
    leaves, noise = features.centres(6, 3, rng(0)), 1.5
    x, y = features.generate_features(4000, leaves, noise, rng(1))
    best = features.bayes(x, leaves, noise)
    for row in range(20):  # one by one, without cancelling anything
        density = np.exp(-((x[row].astype(float) - leaves) ** 2).sum(-1) / (2 * noise**2)).sum(1)
        assert best[row, 0] == density.argmax()
    nearest = ((x[:, None, None] - leaves) ** 2).sum(-1).min(2).argmin(1)[:, None]
    root = ((x[:, None] - leaves.mean(1)) ** 2).sum(-1).argmin(1)[:, None]
    assert (best == y).mean() > max((nearest == y).mean(), (root == y).mean()), (
        "no other rule is better"
    )
    assert (
        load(DataConfig(**VECTORS)).card["ceiling"]
        > 0.95
        > load(DataConfig(**VECTORS | {"noise": 4.0})).card["ceiling"]
    )


def test_modular_addition_has_every_sum_once():
    ds = load(DataConfig(task="modular", modulus=11, train_share=0.4))
    assert [len(s) for s in splits(ds)] == [48, 36, 37] and ds.shape == {
        "seq_len": 3,
        "vocab_size": 12,
        "classes": 11,
    }
    every = np.concatenate([np.concatenate([s.inputs, s.labels], 1) for s in splits(ds)])
    assert len({tuple(row) for row in every.tolist()}) == 121
    assert ((every[:, 0] + every[:, 1]) % 11 == every[:, 3]).all() and (every[:, 2] == 11).all()


def write(path, x, y):
    if path.suffix == ".npz":
        np.savez(path, features=x, labels=y)
    else:
        path.write_text(
            "".join(
                ",".join(map(str, row)) + "\n"
                for row in [
                    [f"f{i}" for i in range(x.shape[1])] + ["label"],
                    *np.column_stack([x, y]).tolist(),
                ]
            )
        )
    return str(path)


@pytest.mark.parametrize("kind", ["npz", "csv"])
def test_files_are_read_cut_and_scaled(tmp_path, kind):
    x, y = features.generate_features(200, features.centres(5, 3, rng(0)), 1.0, rng(1))
    x[7] = x[3]  # twice in the file
    path = write(tmp_path / f"all.{kind}", 100 + 7 * x, y.ravel())
    ds = load(DataConfig(task="features", train_path=path, train_rows=0))
    assert (
        sum(map(len, splits(ds))) in (199, 200)
        and len(ds.test) == 40
        and ds.shape["features"] == 5
        and ds.shape["classes"] == 3
    )
    np.testing.assert_allclose(ds.train.inputs.mean(0), 0, atol=1e-4)
    rows = [{row.tobytes() for row in s.inputs} for s in splits(ds)]
    assert not (rows[0] & rows[1] or rows[0] & rows[2] or rows[1] & rows[2])
    other = write(tmp_path / f"other.{kind}", 100 + 7 * x[:50], y[:50].ravel())
    ds = load(DataConfig(task="features", train_path=path, test_path=other, train_rows=150))
    assert (
        len(ds.test) == 50
        and len(ds.train) + len(ds.val) < 150
        and ds.card["test_source"] == f"other.{kind}"
    )


X, Y = np.zeros((30, 4)) + np.arange(30)[:, None], np.arange(30) % 3


@pytest.mark.parametrize("name, make, sentence", [
    ("a.npz", lambda p: np.savez(p, x=X, y=Y), "has arrays ['x', 'y'], expected features and labels"),
    ("a.npz", lambda p: np.savez(p, features=X[0], labels=Y), "features have shape (4,) and labels (30,)"),
    ("a.npz", lambda p: np.savez(p, features=X, labels=Y[:9]), "features have shape (30, 4) and labels (9,)"),
    ("a.npz", lambda p: np.savez(p, features=X, labels=Y - 1), "row 1: label -1, expected a whole number from 0 on"),
    ("a.npz", lambda p: np.savez(p, features=X, labels=Y + 0.5), "row 1: label 0.5, expected a whole number"),
    ("a.npz", lambda p: np.savez(p, features=np.where(X == 4, np.nan, X), labels=Y), "row 5: feature 1 is nan, expected a finite number"),
    ("a.npz", lambda p: np.savez(p, features=np.array([["a"]]), labels=Y[:1]), "cannot be read as features and labels"),
    ("a.npz", lambda p: p.write_bytes(b"PK\x03\x04 no zip"), "cannot be read as features and labels"),
    ("a.csv", lambda p: p.write_text("a,b,label\n1,2,0\n1,2\n"), "line 3: has 2 columns, expected 3"),
    ("a.csv", lambda p: p.write_text("a,b,label\n1,x,0\n"), "cannot be read as features and labels"),
    ("a.csv", lambda p: p.write_text(""), "cannot be read as features and labels"),
    ("a.csv", lambda p: None, "No such file"),
])  # fmt: skip
def test_bad_files_end_in_one_sentence(tmp_path, name, make, sentence):
    make(tmp_path / name)
    with pytest.raises(UserError) as error:
        load(DataConfig(task="features", train_path=str(tmp_path / name), train_rows=0))
    assert (
        str(error.value).startswith(str(tmp_path / name))
        and sentence in str(error.value)
        and "\n" not in str(error.value)
    )


@pytest.mark.parametrize("changes, sentence", [
    ({"classes": 1}, "data.classes = 1"), ({"noise": 0.0}, "data.noise = 0.0"), ({"task": "modular", "modulus": 1}, "data.modulus = 1"),
    ({"train_share": 1.0}, "data.train_share = 1.0"), ({"fresh": True}, "data.fresh"), ({"val_rows": 240}, "leave 0 to train"),
    ({"task": "modular", "train_path": "x.csv"}, "always generated"), ({"test_path": "x.csv"}, "needs a data.train_path"),
    ({"feature_tokens": 0}, "data.feature_tokens = 0"), ({"generate": False}, "data.train_path is empty"),
])  # fmt: skip
def test_impossible_values_end_in_one_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence.replace(".", r"\.")):
        load(DataConfig(**VECTORS | changes))


def test_a_test_file_of_other_features_is_refused(tmp_path):
    one, two = write(tmp_path / "one.npz", X, Y), write(tmp_path / "two.npz", X[:, :3], Y)
    with pytest.raises(
        UserError, match=r"two\.npz: has 3 features and labels up to 2, expected the 4 features"
    ):
        load(DataConfig(task="features", train_path=one, test_path=two, train_rows=0))


# --- the net --------------------------------------------------------------------------------------------------------


def net_for(shape: dict, **changes) -> TRM:
    torch.manual_seed(0)
    return TRM(
        ModelConfig(dim=8, heads=2, multiple=4, expansion=2.0, T=2, n=1, **{**NET, **changes}),
        Shape(**shape),
    )


@pytest.mark.parametrize("tokens, positions", [(1, "none"), (5, "rope"), (5, "learned")])
def test_a_vector_becomes_tokens_and_one_answer(tokens, positions):
    net = net_for(
        {"vocab_size": 0, "seq_len": tokens, "features": 16, "classes": 4},
        positions=positions,
        prefix=2,
    )
    batch = {
        "inputs": torch.randn(3, 16),
        "labels": torch.zeros(3, 1, dtype=torch.long),
        "puzzle": torch.zeros(3, dtype=torch.long),
    }
    carry, out = net.step(net.refill(net.start(batch), batch))
    assert (
        out.logits.shape == (3, 1, 4)
        and carry.y.shape == (3, 2 + tokens, 8)
        and net.features.weight.shape == (8 * tokens, 16)
    )
    torch.testing.assert_close(out.logits[:, 0], net.head(carry.y[:, 2:].mean(1)))
    x = net.embed({"inputs": torch.randn(2000, 16), "puzzle": torch.zeros(2000, dtype=torch.long)})
    assert 0.5 < x[:, 2:].std() < 2


def test_T_and_n_change_at_evaluation_without_retraining():
    cfg = tiny.config(**ENTRY)
    ds = load(cfg.data)
    net = TRM(cfg.model, Shape(**ds.shape))
    logits = {}
    for T, n in (1, 1), (3, 1), (3, 4):
        net.cfg = replace(cfg.model, T=T, n=n)
        batch = {
            "inputs": data.tensor(ds.test.inputs),
            "labels": data.tensor(ds.test.labels),
            "puzzle": torch.zeros(60, dtype=torch.long),
        }
        logits[T, n] = net.step(net.refill(net.start(batch), batch))[1].logits.detach()
    assert len({tuple(v.flatten()[:3].tolist()) for v in logits.values()}) == 3


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"mixer": "conv"}, "mixer"),
        ({"positions": "rope2d"}, "positions"),
        ({"mixer": "pool"}, "mixer"),
    ],
)
def test_nets_that_need_a_grid_are_refused(changes, key):
    cfg = tiny.config(**ENTRY)
    cfg = dataclasses.replace(cfg, model=replace(cfg.model, **changes))
    assert ("model", key) in [(table, k) for table, k, _ in cfg.problems()]


# --- founding document 004: loss, filter and trainer are tested in test_model, test_optim and test_train; here the task -----


def test_the_tests_that_the_docstring_names_exist():
    names = re.findall(r"(?:(test_\w+)\.)?(test_\w+)", __doc__)
    assert (
        len(names) > 14
        and sum(line.startswith("    ") and line[4] != " " for line in __doc__.splitlines()) == 14
    )
    for file, name in names:
        assert re.search(
            rf"^def {name}\(",
            (tiny.ROOT / "tests" / f"{file or 'test_features'}.py").read_text(),
            re.MULTILINE,
        ), name


def fresh_run(folder, **tables) -> tuple[training.Run, data.Dataset]:
    cfg = tiny.config(**{**ENTRY, **tables})
    dataset = load(cfg.data)
    return training.make_run(
        cfg, folder, training.make_world(cfg.train), Shape(**dataset.shape)
    ), dataset


def test_a_new_run_is_at_step_0_with_the_configured_parts(tmp_path):
    run, _ = fresh_run(
        tmp_path,
        train=ENTRY["train"]
        | {
            "grokfast": "highpass",
            "grokfast_alpha": 0.98,
            "grokfast_lambda": 0.1,
            "weight_decay": 0.01,
        },
    )
    again, _ = fresh_run(tmp_path)
    assert (run.step, run.best, run.stale, run.carry, run.ema) == (
        0,
        None,
        0,
        None,
        None,
    ) and again.grokfast is None
    assert (run.grokfast.kind, run.grokfast.alpha, run.grokfast.lamb, run.grokfast.mean) == (
        "highpass",
        0.98,
        0.1,
        [],
    )
    (adam,) = run.optimizers
    assert isinstance(adam, torch.optim.AdamW) and (
        adam.param_groups[0]["lr"],
        adam.param_groups[0]["weight_decay"],
    ) == (0.01, 0.01)
    assert tiny.differences(run.net.state_dict(), again.net.state_dict()) == [], (
        "weights are a function of the seed"
    )
    assert run.net.training and not list(tmp_path.iterdir())


def test_an_epoch_sees_every_row_once_and_lowers_the_loss(tmp_path):
    run, dataset = fresh_run(tmp_path)
    feed, seen, losses = data.batches(dataset, run.cfg.data, 20, 0, 0), [], []
    for _ in range(3):
        for _ in range(10):  # ten batches of 20 are the 200 rows
            training.train_step(run, feed)
            seen += [row.tobytes() for row in run.carry.batch["inputs"].numpy()]
        losses.append((run.sums["answer_loss"] / run.sums["rows"]).item())
        run.sums = {}
    feed.close()
    epochs = [seen[:200], seen[200:400], seen[400:]]
    assert all(
        set(epoch) == {row.tobytes() for row in dataset.train.inputs} and len(set(epoch)) == 200
        for epoch in epochs
    )
    assert epochs[0] != epochs[1], "another order in every epoch"
    assert losses[0] > losses[1] > losses[2] and losses[2] < 0.6 * losses[0], losses


def test_the_complexity_penalty_is_reported_apart_and_moves_no_weight(tmp_path):
    for name, weight in (("free", 0.0), ("dear", 0.25)):
        tiny.run(
            tmp_path / name,
            **{
                **ENTRY,
                "model": NET | {"complexity_weight": weight},
                "train": ENTRY["train"] | {"steps": 10},
            },
        )
    free, dear = (tiny.lines(tmp_path / name, "train") for name in ("free", "dear"))
    m = tiny.config(**ENTRY).model
    for a, b in zip(free, dear, strict=True):
        assert (
            b["complexity_loss"] == 0.25 * m.T * m.n and "complexity_loss" not in a
        )  # one layer: phi^0
        assert b["loss"] == pytest.approx(
            b["answer_loss"] + m.q_weight * b["halt_loss"] + b["complexity_loss"], abs=1e-5
        )
        assert (b["answer_loss"], b["exact"]) == (a["answer_loss"], a["exact"])
    assert (
        tiny.differences(*(tiny.checkpoint(tmp_path / name)["net"] for name in ("free", "dear")))
        == []
    )


def test_validation_leaves_the_net_as_it_was(tmp_path):
    run, dataset = fresh_run(tmp_path)
    before = {k: v.clone() for k, v in run.net.state_dict().items()}
    state, line = torch.get_rng_state(), training.validate(run, dataset.val)
    assert (
        {"exact", "top3", "cells", "n"} <= line.keys()
        and line["n"] == 40
        and 0 <= line["exact"] <= line["top3"] <= 1
    )
    assert (
        run.net.training
        and all(p.grad is None for p in run.net.parameters())
        and torch.equal(state, torch.get_rng_state())
    )
    assert (
        tiny.differences(before, run.net.state_dict())
        == []
        == tiny.differences(before, tiny.checkpoint(tmp_path, "best.pt")["raw"])
    )


def test_fit_learns_keeps_the_best_and_stops_early(tmp_path):
    summary = tiny.run(
        tmp_path, **{**ENTRY, "train": ENTRY["train"] | {"steps": 200, "patience": 3}}
    )
    lines = tiny.lines(tmp_path, "val")
    best = max(lines, key=lambda line: (line["exact"], line["cells"]))
    assert summary["best_step"] == best["step"] and summary["val"]["exact"] == best["exact"] > 0.9
    assert summary["steps"] == lines[-1]["step"] < 200 and lines[-4]["step"] == best["step"], (
        "three validations without a better one"
    )
    assert (
        summary["test"]["exact"] > 0.85
        and summary["test"]["top3"] >= summary["test"]["exact"]
        and summary["data"]["ceiling"] > 0.95
    )
    assert summary["baseline"]["exact"] < 0.5


def test_top3_counts_the_label_among_the_three_most_probable_classes():
    cfg = tiny.config(**ENTRY)
    ds = load(cfg.data)
    torch.manual_seed(3)
    net = TRM(cfg.model, Shape(**ds.shape))
    result = evaluate(net, ds.test, cfg, training.make_world(cfg.train))
    batch = {
        "inputs": data.tensor(ds.test.inputs),
        "labels": data.tensor(ds.test.labels),
        "puzzle": torch.zeros(60, dtype=torch.long),
    }
    logits = net.eval().step(net.refill(net.start(batch), batch))[1].logits[:, 0]
    ranks = (logits > logits.gather(1, batch["labels"])).sum(1)
    assert (
        result["top3"]
        == (ranks < 3).double().mean().item()
        != result["exact"]
        == (ranks == 0).double().mean().item()
    )


def test_a_run_stopped_in_the_middle_of_an_epoch_continues_to_the_same_bits(tmp_path, monkeypatch):
    tables = {
        **ENTRY,
        "train": ENTRY["train"] | {"steps": 26, "grokfast": "ema", "ckpt_minutes": 0.0},
    }  # ten steps are an epoch
    tiny.run(tmp_path / "whole", **tables)
    step, cut = training.train_step, {}

    def stop_after_13(run, feed):
        if run.step == 13:
            cut["at"] = run.step
            raise KeyboardInterrupt
        step(run, feed)

    monkeypatch.setattr(training, "train_step", stop_after_13)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path / "cut", **tables)
    monkeypatch.undo()
    tiny.run(tmp_path / "cut", **tables)
    assert cut == {"at": 13}
    tiny.assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_filter_of_another_history_would_not_continue_to_the_same_bits(tmp_path, monkeypatch):
    tables = {
        **ENTRY,
        "train": ENTRY["train"]
        | {"steps": 12, "grokfast": "highpass", "ckpt_minutes": 0.0, "eval_every": 12},
    }
    tiny.run(tmp_path / "whole", **tables)
    step = training.train_step
    monkeypatch.setattr(
        training,
        "train_step",
        lambda run, feed: (
            (_ for _ in ()).throw(KeyboardInterrupt) if run.step == 7 else step(run, feed)
        ),
    )
    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path / "cut", **tables)
    monkeypatch.undo()
    state = torch.load(tmp_path / "cut/ckpt.pt", weights_only=True)
    assert (
        state["step"] == 7
        and state["grokfast"]["mean"]
        and state["config"]["train.grokfast"] == "highpass"
    )
    state["grokfast"]["mean"] = [2 * m for m in state["grokfast"]["mean"]]
    torch.save(state, tmp_path / "cut/ckpt.pt")
    tiny.run(tmp_path / "cut", **tables)
    assert (
        tiny.differences(*(tiny.checkpoint(tmp_path / name)["net"] for name in ("whole", "cut")))
        != []
    )


def test_solve_says_that_it_draws_puzzles_only(tmp_path):
    tiny.run(tmp_path, **{**ENTRY, "train": ENTRY["train"] | {"steps": 2}})
    out = subprocess.run(
        [sys.executable, tiny.ROOT / "solve.py", tmp_path], capture_output=True, text=True
    )
    assert (
        out.returncode == 2
        and out.stderr
        == f"error: {tmp_path}: a run of data.task = 'features', expected a puzzle to draw, 'maze' or 'sudoku'\n"
    )


def test_a_saved_run_gives_the_figures_of_its_best_validation(tmp_path):
    summary = tiny.run(tmp_path, **ENTRY)
    cfg, net, state = training.load_run(tmp_path)
    again = evaluate(net, load(cfg.data).val, cfg, training.make_world(cfg.train))
    assert again["exact"] == summary["val"]["exact"] and state["step"] == summary["best_step"]
    assert json.loads((tmp_path / "summary.json").read_text())["task"] == "features"


def test_modular_addition_trains_end_to_end(tmp_path):
    summary = tiny.run(
        tmp_path,
        **{
            **ENTRY,
            "data": {"task": "modular", "modulus": 5, "train_share": 0.6},
            "model": NET | {"positions": "learned"},
            "train": ENTRY["train"] | {"steps": 150, "batch_size": 15},
        },
    )
    train_exact = tiny.lines(tmp_path, "train")[-1]["exact"]
    assert (
        train_exact > 0.9
        and summary["test"]["n"] == 5
        and summary["test"]["top3"] >= summary["test"]["exact"]
    )
