"""Classification: generated and read feature vectors, modular addition, and training on them.

The task came with a list of 14 tests of a trainer. Each is here as behaviour, by these tests:

    loss, basic
        test_model.test_cross_entropy_is_the_mean_over_labelled_positions_of_a_row
        test_an_epoch_sees_every_row_once_and_lowers_the_loss
    complexity penalty
        test_model.test_the_complexity_penalty_is_a_constant_without_gradient
        test_the_complexity_penalty_is_reported_apart_and_moves_no_weight
    filter, initialization
        test_optim.test_the_ema_filter_adds_the_slow_part
        test_optim.test_the_loop_filters_with_the_configured_numbers_before_it_clips
    gradient filtering
        test_optim.test_the_highpass_filter_adds_the_fast_part
        test_optim.test_the_ma_filter_adds_the_mean_of_a_full_window
        test_optim.test_ema_amplifies_slow_gradients_and_highpass_fast_ones
    filter, state dict
        test_optim.test_a_filter_continues_from_its_state_dict_to_the_same_bits
    trainer, initialization
        test_a_new_run_is_at_step_0_with_the_configured_parts
    train epoch
        test_an_epoch_sees_every_row_once_and_lowers_the_loss
    validate
        test_top3_counts_the_label_among_the_three_most_probable_classes
        test_validation_leaves_the_net_as_it_was
    fit, basic
        test_fit_learns_keeps_the_best_and_stops_early
    early stopping
        test_fit_learns_keeps_the_best_and_stops_early
        test_optim.test_patience_counts_validations_without_a_better_one
    checkpoint, save, load
        test_a_saved_run_gives_the_figures_of_its_best_validation
        test_a_run_stopped_in_the_middle_of_an_epoch_continues_to_the_same_bits
        test_a_filter_of_another_history_would_not_continue_to_the_same_bits
    full pipeline
        test_readme.test_the_ten_lines_of_python_in_the_readme_run
    device handling
        test_optim.test_device_and_dtype_choose_where_and_in_what_to_compute
    recursion depths
        test_T_and_n_change_at_evaluation_without_retraining
        test_analyze.test_accuracy_at_other_depths_needs_no_retraining
"""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import data
import tiny
import train as training
from config import UserError, check_layer
from data import load
from evaluate import evaluate
from model import ModelConfig
from runs import make_world
from tasks import features
from tasks.base import rng
from tasks.classifier import Classifier, ClassShape
from tasks.classify import FeaturesConfig, ModularConfig

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


def row_sets(ds) -> list[set[bytes]]:
    """The different questions of train, val and test."""
    return [{row.tobytes() for row in split.inputs} for split in splits(ds)]


# ---------------------------------------------------------------- data


def test_generated_classes_are_what_was_asked_and_apart():
    ds = load(FeaturesConfig(**VECTORS))
    assert [len(split) for split in splits(ds)] == [200, 40, 60]
    assert ds.card["rows"] == {"train": 200, "val": 40, "test": 60}
    for split in splits(ds):
        assert split.inputs.shape == (len(split), 16)
        assert split.inputs.dtype == np.float32
        assert split.labels.shape == (len(split), 1)
    assert ds.shape == {"vocab_size": 0, "seq_len": 1, "features": 16, "classes": 4}
    assert len(set.union(*row_sets(ds))) == 300
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
    for other in nearest, root:
        assert (best == y).mean() > (other == y).mean(), "no other rule is better"
    clear, noisy = FeaturesConfig(**VECTORS), FeaturesConfig(**VECTORS | {"noise": 4.0})
    assert load(clear).card["ceiling"] > 0.95 > load(noisy).card["ceiling"]


def test_modular_addition_has_every_sum_once():
    ds = load(ModularConfig(modulus=11, train_share=0.4))
    assert [len(split) for split in splits(ds)] == [48, 36, 37]
    assert ds.shape == {"seq_len": 3, "vocab_size": 12, "classes": 11}
    every = np.concatenate([np.concatenate([s.inputs, s.labels], 1) for s in splits(ds)])
    assert len({tuple(row) for row in every.tolist()}) == 121
    assert ((every[:, 0] + every[:, 1]) % 11 == every[:, 3]).all()
    assert (every[:, 2] == 11).all()


def write(path, x, y) -> str:
    """Features and labels as an .npz or a .csv; the path."""
    if path.suffix == ".npz":
        np.savez(path, features=x, labels=y)
    else:
        header = [f"f{i}" for i in range(x.shape[1])] + ["label"]
        rows = [header, *np.column_stack([x, y]).tolist()]
        path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("kind", ["npz", "csv"])
def test_files_are_read_cut_and_scaled(tmp_path, kind):
    x, y = features.generate_features(200, features.centres(5, 3, rng(0)), 1.0, rng(1))
    x[7] = x[3]  # twice in the file
    path = write(tmp_path / f"all.{kind}", 100 + 7 * x, y.ravel())
    ds = load(FeaturesConfig(train_path=path, train_rows=0))
    assert sum(map(len, splits(ds))) in (199, 200)
    assert len(ds.test) == 40
    assert (ds.shape["features"], ds.shape["classes"]) == (5, 3)
    np.testing.assert_allclose(ds.train.inputs.mean(0), 0, atol=1e-4)
    train, val, test = row_sets(ds)
    assert not (train & val or train & test or val & test)
    other = write(tmp_path / f"other.{kind}", 100 + 7 * x[:50], y[:50].ravel())
    ds = load(FeaturesConfig(train_path=path, test_path=other, train_rows=150))
    assert len(ds.test) == 50
    assert len(ds.train) + len(ds.val) < 150
    assert ds.card["test_source"] == f"other.{kind}"


X, Y = np.zeros((30, 4)) + np.arange(30)[:, None], np.arange(30) % 3
UNREADABLE = "cannot be read as features and labels"
BAD_ARRAYS = [  # what an .npz holds, and what is said of it
    ({"x": X, "y": Y}, "has arrays ['x', 'y'], expected features and labels"),
    ({"features": X[0], "labels": Y}, "features have shape (4,) and labels (30,)"),
    ({"features": X, "labels": Y[:9]}, "features have shape (30, 4) and labels (9,)"),
    ({"features": X, "labels": Y - 1}, "row 1: label -1, expected a whole number from 0 on"),
    ({"features": X, "labels": Y + 0.5}, "row 1: label 0.5, expected a whole number"),
    (
        {"features": np.where(X == 4, np.nan, X), "labels": Y},
        "row 5: feature 1 is nan, expected a finite number",
    ),
    ({"features": np.array([["a"]]), "labels": Y[:1]}, UNREADABLE),
]
BAD_FILES = [  # name, its bytes (None: no file), and what is said of it
    ("a.npz", b"PK\x03\x04 no zip", UNREADABLE),
    ("a.csv", b"a,b,label\n1,2,0\n1,2\n", "line 3: has 2 columns, expected 3"),
    ("a.csv", b"a,b,label\n1,x,0\n", UNREADABLE),
    ("a.csv", b"\xff\xfe,b\n", UNREADABLE),
    ("a.csv", b"", UNREADABLE),
    ("a.csv", None, "No such file"),
]


def refuses(path, sentence: str) -> None:
    """Loading this file is one sentence that begins with its name."""
    with pytest.raises(UserError) as error:
        load(FeaturesConfig(train_path=str(path), train_rows=0))
    assert str(error.value).startswith(str(path))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("arrays, sentence", BAD_ARRAYS)
def test_bad_arrays_end_in_one_sentence(tmp_path, arrays, sentence):
    np.savez(tmp_path / "a.npz", **arrays)
    refuses(tmp_path / "a.npz", sentence)


@pytest.mark.parametrize("name, content, sentence", BAD_FILES)
def test_bad_files_end_in_one_sentence(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    refuses(tmp_path / name, sentence)


IMPOSSIBLE = [
    (FeaturesConfig(**VECTORS | {"classes": 1}), "data.classes = 1, expected 2 or more"),
    (FeaturesConfig(**VECTORS | {"features": 1}), "data.features = 1, expected 2 or more"),
    (FeaturesConfig(**VECTORS | {"noise": 0.0}), "data.noise = 0.0, expected more than 0"),
    (FeaturesConfig(**VECTORS | {"val_rows": 240}), "data.val_rows = 240, expected fewer"),
    (FeaturesConfig(**VECTORS | {"feature_tokens": 0}), "data.feature_tokens = 0, expected 1"),
    (FeaturesConfig(**VECTORS | {"test_path": "x.csv"}), "data.test_path = 'x.csv', expected a"),
    (FeaturesConfig(**VECTORS | {"generate": False}), "data.generate = False, expected true"),
    (ModularConfig(modulus=1), "data.modulus = 1, expected 2 or more"),
    (ModularConfig(train_share=1.0), "data.train_share = 1.0, expected a share"),
    (ModularConfig(seed=-1), "data.seed = -1, expected 0 or more"),
]


@pytest.mark.parametrize("cfg, sentence", IMPOSSIBLE, ids=lambda v: v if isinstance(v, str) else "")
def test_impossible_values_end_in_one_sentence(cfg, sentence):
    with pytest.raises(UserError) as error:
        load(cfg)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "table, key, value", [(FeaturesConfig, "fresh", True), (ModularConfig, "train_path", "x.csv")]
)
def test_keys_of_other_tasks_are_unknown(table, key, value):
    with pytest.raises(UserError, match=f"a.toml .data.: unknown key '{key}'"):
        check_layer({key: value}, table, "a.toml [data]")


def test_a_test_file_of_other_features_is_refused(tmp_path):
    one, two = write(tmp_path / "one.npz", X, Y), write(tmp_path / "two.npz", X[:, :3], Y)
    with pytest.raises(
        UserError, match=r"two\.npz: has 3 features and labels up to 2, expected the 4 features"
    ):
        load(FeaturesConfig(train_path=one, test_path=two, train_rows=0))


# ---------------------------------------------------------------- the net


def net_for(shape: dict, **changes) -> Classifier:
    torch.manual_seed(0)
    small = {"dim": 8, "heads": 2, "multiple": 4, "expansion": 2.0, "T": 2, "n": 1}
    return Classifier(ModelConfig(**small | NET | changes), ClassShape.of(shape))


def batch_of(split) -> dict[str, torch.Tensor]:
    """All rows of a split."""
    puzzle = torch.zeros(len(split), dtype=torch.long)
    inputs, labels = data.tensor(split.inputs), data.tensor(split.labels)
    return {"inputs": inputs, "labels": labels, "puzzle": puzzle}


def first_step(net, batch: dict) -> tuple:
    return net.step(net.refill(net.start(batch), batch))


@pytest.mark.parametrize("tokens, positions", [(1, "none"), (5, "rope"), (5, "learned")])
def test_a_vector_becomes_tokens_and_one_answer(tokens, positions):
    shape = {"vocab_size": 0, "seq_len": tokens, "features": 16, "classes": 4}
    net = net_for(shape, positions=positions, prefix=2)
    puzzle, labels = torch.zeros(3, dtype=torch.long), torch.zeros(3, 1, dtype=torch.long)
    batch = {"inputs": torch.randn(3, 16), "labels": labels, "puzzle": puzzle}
    carry, out = first_step(net, batch)
    assert out.logits.shape == (3, 1, 4)
    assert carry.y.shape == (3, 2 + tokens, 8)
    assert net.features.weight.shape == (8 * tokens, 16)
    torch.testing.assert_close(out.logits[:, 0], net.head(carry.y[:, 2:].mean(1)))
    x = net.embed({"inputs": torch.randn(2000, 16), "puzzle": torch.zeros(2000, dtype=torch.long)})
    assert 0.5 < x[:, 2:].std() < 2


def test_T_and_n_change_at_evaluation_without_retraining():
    cfg = tiny.config(**ENTRY)
    ds = load(cfg)
    net = cfg.task.make_net(cfg, ds.shape, torch.float32)
    logits = set()
    for T, n in (1, 1), (3, 1), (3, 4):
        net.cfg = replace(cfg.model, T=T, n=n)
        _, out = first_step(net, batch_of(ds.test))
        logits.add(tuple(out.logits.flatten()[:3].tolist()))
    assert len(logits) == 3


@pytest.mark.parametrize(
    "key, value", [("mixer", "conv"), ("mixer", "pool"), ("positions", "rope2d")]
)
def test_nets_that_need_a_grid_are_refused(key, value):
    cfg = tiny.config(**ENTRY)
    cfg = replace(cfg, model=replace(cfg.model, **{key: value}))
    assert ("model", key) in [(table, name) for table, name, _ in cfg.problems()]


# ---------------------------------------------------------------- training
# Loss, filter and trainer are tested in test_model, test_optim and test_train; here the task.


def test_the_tests_that_the_docstring_names_exist():
    headings = [line for line in __doc__.splitlines() if re.match(r"    \S", line)]
    assert len(headings) == 14
    names = re.findall(r"(?:(test_\w+)\.)?(test_\w+)", __doc__)
    assert len(names) > 14
    for file, name in names:
        text = (tiny.ROOT / "tests" / f"{file or 'test_features'}.py").read_text()
        assert re.search(rf"^def {name}\(", text, re.MULTILINE), name


def fresh_run(folder, **tables) -> tuple[training.Run, data.Dataset]:
    cfg = tiny.config(**ENTRY | tables)
    dataset = load(cfg)
    return training.make_run(cfg, folder, make_world(cfg.train), dataset), dataset


def test_a_new_run_is_at_step_0_with_the_configured_parts(tmp_path):
    filtered = {"grokfast": "highpass", "grokfast_alpha": 0.98, "grokfast_lambda": 0.1}
    run, _ = fresh_run(tmp_path, train=ENTRY["train"] | filtered | {"weight_decay": 0.01})
    again, _ = fresh_run(tmp_path)
    assert (run.step, run.stale) == (0, 0)
    assert (run.best, run.carry, run.ema) == (None, None, None)
    assert again.grokfast is None
    f = run.grokfast
    assert (f.kind, f.alpha, f.lamb, f.mean) == ("highpass", 0.98, 0.1, [])
    (adam,) = run.optimizers
    assert isinstance(adam, torch.optim.AdamW)
    assert (adam.param_groups[0]["lr"], adam.param_groups[0]["weight_decay"]) == (0.01, 0.01)
    assert tiny.differences(run.net.state_dict(), again.net.state_dict()) == [], (
        "weights are a function of the seed"
    )
    assert run.net.training
    assert not list(tmp_path.iterdir())


def test_an_epoch_sees_every_row_once_and_lowers_the_loss(tmp_path):
    run, dataset = fresh_run(tmp_path)
    feed = data.batches(dataset, run.cfg, 20, 0, 0)
    seen, losses = [], []
    for _ in range(3):
        for _ in range(10):  # ten batches of 20 are the 200 rows
            training.train_step(run, feed)
            seen += [row.tobytes() for row in run.carry.batch["inputs"].numpy()]
        losses.append((run.sums["answer_loss"] / run.sums["rows"]).item())
        run.sums = {}
    feed.close()
    epochs = [seen[:200], seen[200:400], seen[400:]]
    for epoch in epochs:
        assert set(epoch) == row_sets(dataset)[0]
        assert len(set(epoch)) == 200
    assert epochs[0] != epochs[1], "another order in every epoch"
    assert losses[0] > losses[1] > losses[2] and losses[2] < 0.6 * losses[0], losses


def train_table(**changes) -> dict:
    """The tables of ENTRY with other training keys."""
    return ENTRY | {"train": ENTRY["train"] | changes}


def weights(*folders) -> list[dict]:
    return [tiny.checkpoint(folder)["net"] for folder in folders]


def test_the_complexity_penalty_is_reported_apart_and_moves_no_weight(tmp_path):
    for name, weight in (("free", 0.0), ("dear", 0.25)):
        model = NET | {"complexity_weight": weight}
        tiny.run(tmp_path / name, **train_table(steps=10) | {"model": model})
    free, dear = (tiny.lines(tmp_path / name, "train") for name in ("free", "dear"))
    m = tiny.config(**ENTRY).model
    for a, b in zip(free, dear, strict=True):
        assert b["complexity_loss"] == 0.25 * m.T * m.n  # one layer: phi^0
        assert "complexity_loss" not in a
        parts = b["answer_loss"] + m.q_weight * b["halt_loss"] + b["complexity_loss"]
        assert b["loss"] == pytest.approx(parts, abs=1e-5)
        assert (b["answer_loss"], b["exact"]) == (a["answer_loss"], a["exact"])
    assert tiny.differences(*weights(tmp_path / "free", tmp_path / "dear")) == []


def test_validation_leaves_the_net_as_it_was(tmp_path):
    run, dataset = fresh_run(tmp_path)
    before = {name: value.clone() for name, value in run.net.state_dict().items()}
    state = torch.get_rng_state()
    line = training.validate(run, dataset.val)
    assert {"exact", "top3", "cells", "n"} <= line.keys()
    assert line["n"] == 40
    assert 0 <= line["exact"] <= line["top3"] <= 1
    assert run.net.training
    assert all(p.grad is None for p in run.net.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert tiny.differences(before, run.net.state_dict()) == []
    assert tiny.differences(before, tiny.checkpoint(tmp_path, "best.pt")["raw"]) == []


def test_fit_learns_keeps_the_best_and_stops_early(tmp_path):
    summary = tiny.run(tmp_path, **train_table(steps=200, patience=3))
    lines = tiny.lines(tmp_path, "val")
    best = max(lines, key=lambda line: (line["exact"], line["cells"]))
    assert summary["best_step"] == best["step"]
    assert summary["val"]["exact"] == best["exact"] > 0.9
    assert summary["steps"] == lines[-1]["step"] < 200
    assert lines[-4]["step"] == best["step"], "three validations without a better one"
    assert summary["test"]["exact"] > 0.85
    assert summary["test"]["top3"] >= summary["test"]["exact"]
    assert summary["data"]["ceiling"] > 0.95
    assert summary["baseline"]["exact"] < 0.5


def test_top3_counts_the_label_among_the_three_most_probable_classes():
    cfg = tiny.config(**ENTRY)
    ds = load(cfg)
    torch.manual_seed(3)
    net = cfg.task.make_net(cfg, ds.shape, torch.float32)
    result = evaluate(net, ds.test, cfg, make_world(cfg.train))
    batch = batch_of(ds.test)
    logits = first_step(net.eval(), batch)[1].logits[:, 0]
    better = (logits > logits.gather(1, batch["labels"])).sum(1)  # classes ahead of the label
    assert result["top3"] == (better < 3).double().mean().item()
    assert result["exact"] == (better == 0).double().mean().item()
    assert result["top3"] != result["exact"]


def interrupt_at(monkeypatch, at: int) -> list[int]:
    """Training raises KeyboardInterrupt before this step; where it did."""
    step, cut = training.train_step, []

    def stop(run, feed):
        if run.step == at:
            cut.append(at)
            raise KeyboardInterrupt
        step(run, feed)

    monkeypatch.setattr(training, "train_step", stop)
    return cut


def test_a_run_stopped_in_the_middle_of_an_epoch_continues_to_the_same_bits(tmp_path, monkeypatch):
    tables = train_table(steps=26, grokfast="ema", ckpt_minutes=0.0)  # ten steps are an epoch
    tiny.run(tmp_path / "whole", **tables)
    cut = interrupt_at(monkeypatch, 13)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path / "cut", **tables)
    monkeypatch.undo()
    tiny.run(tmp_path / "cut", **tables)
    assert cut == [13]
    tiny.assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_filter_of_another_history_would_not_continue_to_the_same_bits(tmp_path, monkeypatch):
    tables = train_table(steps=12, grokfast="highpass", ckpt_minutes=0.0, eval_every=12)
    tiny.run(tmp_path / "whole", **tables)
    interrupt_at(monkeypatch, 7)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path / "cut", **tables)
    monkeypatch.undo()
    state = torch.load(tmp_path / "cut/ckpt.pt", weights_only=True)
    assert state["step"] == 7
    assert state["grokfast"]["mean"]
    assert state["config"]["train.grokfast"] == "highpass"
    state["grokfast"]["mean"] = [2 * mean for mean in state["grokfast"]["mean"]]
    torch.save(state, tmp_path / "cut/ckpt.pt")
    tiny.run(tmp_path / "cut", **tables)
    assert tiny.differences(*weights(tmp_path / "whole", tmp_path / "cut")) != []


@pytest.mark.slow
def test_solve_says_that_it_draws_puzzles_only(tmp_path):
    tiny.run(tmp_path, **train_table(steps=2))
    command = [sys.executable, tiny.ROOT / "solve.py", tmp_path]
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 2
    assert out.stderr.startswith(f"error: {tmp_path}: ")
    assert "data.task = 'features', expected " in out.stderr
    assert out.stderr.count("\n") == 1


def test_a_saved_run_gives_the_figures_of_its_best_validation(tmp_path):
    summary = tiny.run(tmp_path, **ENTRY)
    cfg, net, state = training.load_run(tmp_path)
    again = evaluate(net, load(cfg).val, cfg, make_world(cfg.train))
    assert again["exact"] == summary["val"]["exact"]
    assert state["step"] == summary["best_step"]
    assert json.loads((tmp_path / "summary.json").read_text())["task"] == "features"


def test_modular_addition_trains_end_to_end(tmp_path):
    tables = train_table(steps=150, batch_size=15)
    tables["data"] = {"task": "modular", "modulus": 5, "train_share": 0.6}
    tables["model"] = NET | {"positions": "learned"}
    summary = tiny.run(tmp_path, **tables)
    train_exact = tiny.lines(tmp_path, "train")[-1]["exact"]
    assert train_exact > 0.9
    assert summary["test"]["n"] == 5
    assert summary["test"]["top3"] >= summary["test"]["exact"]
