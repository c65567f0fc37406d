"""Weights of another run to start from (train.init): which fit, what is written down, and that a
run that has begun needs the other one no more.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

import analyze
import runs
import submitit_launch as launcher
import tiny
import train as training
from config import UserError, read_toml
from train import main

MAZE = {
    "data": {"task": "maze", "size": 6, "walls": "random", "train_rows": 40},
    "model": {"mixer": "conv"},
}
ROPE = {"mixer": "attention", "positions": "rope"}


def maze(size: int = 6, init: str | Path = "", model: dict | None = None, **train) -> dict:
    """Tables of a small maze net."""
    tables = {
        "data": MAZE["data"] | {"size": size},
        "model": MAZE["model"] | (model or {}),
        "train": train | {"init": str(init)},
    }
    return tables


def first_weights(folder: Path, **tables) -> tuple[dict, dict]:
    """Weights and averaged weights before the first step of a run."""
    found = []

    def note(run) -> None:
        if run.step == 0:
            for net in (run.net, run.ema.module):
                found.append({name: t.clone() for name, t in net.state_dict().items()})

    tiny.run(folder, note, **tables)
    return tuple(found)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A finished run on 6x6 mazes."""
    folder = tmp_path_factory.mktemp("source") / "seed0"
    tiny.run(folder, **maze())
    return folder


def refused(folder: Path, capsys, **tables) -> str:
    """The sentence that a command ends with, before anything is written."""
    entry, out = tiny.entry(folder, "wrong.toml", **tables), folder / "wrong"
    capsys.readouterr()
    assert main([str(entry), f"--out={out}"]) == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == "" and stderr.startswith("error: ") and stderr.count("\n") == 1
    assert not out.exists()
    return stderr


# ---------------------------------------------------------------- the first weights


@pytest.mark.parametrize("kind, key", [("ema", "ema"), ("raw", "raw")])
def test_the_weights_before_the_first_step_are_those_of_the_run(source, tmp_path, kind, key):
    best = tiny.checkpoint(source, "best.pt")
    assert tiny.differences(best["ema"], best["raw"])
    net, ema = first_weights(tmp_path / "next", **maze(8, source, init_weights=kind))
    assert tiny.differences(net, best[key]) == [] == tiny.differences(ema, best[key])


def test_a_run_without_averaged_weights_hands_over_its_raw_ones(tmp_path):
    tiny.run(tmp_path / "raw", **maze(ema=0.0))
    summary = tiny.run(tmp_path / "next", **maze(8, tmp_path / "raw"))
    assert summary["init"]["weights"] == "raw"


def test_the_average_goes_on_from_the_loaded_weights(source, tmp_path):
    decay, found = 0.9, {}

    def note(run) -> None:
        if run.step == 0:
            found["loaded"] = run.net.head.weight.detach().clone()
        if run.step == 1:
            found["own"] = run.net.head.weight.detach().clone()
            found["average"] = run.ema.module.head.weight.detach().clone()

    tiny.run(tmp_path / "next", note, **maze(8, source, ema=decay))
    assert not torch.equal(found["own"], found["loaded"])
    expected = decay * found["loaded"] + (1 - decay) * found["own"]
    torch.testing.assert_close(found["average"], expected)


def test_the_optimizer_the_steps_and_the_data_are_those_of_a_fresh_run(source, tmp_path):
    noted = []

    def note(run) -> None:
        if run.step == 0:
            noted.append([len(optimizer.state) for optimizer in run.optimizers])

    summary = tiny.run(tmp_path / "next", note, **maze(8, source))
    tiny.run(tmp_path / "fresh", **maze(8))
    assert noted == [[0]] and summary["steps"] == 10
    first, other = (tiny.lines(tmp_path / name)[0] for name in ("next", "fresh"))
    assert first["step"] == other["step"] == 1 and first["lr"] == other["lr"]
    assert first["loss"] != other["loss"]


def test_rotary_attention_takes_weights_of_another_size(tmp_path):
    tiny.run(tmp_path / "small", **maze(6, model=ROPE))
    net, _ = first_weights(tmp_path / "large", **maze(7, tmp_path / "small", ROPE))
    best = tiny.checkpoint(tmp_path / "small", "best.pt")
    assert tiny.differences(net, best["ema"]) == []


# ---------------------------------------------------------------- what is written down


def test_the_run_says_where_its_weights_are_from(source, tmp_path, capsys):
    summary = tiny.run(tmp_path / "next", **maze(8, source))
    best = source / "best.pt"
    digest = runs.digest_of_files(str(best))
    step = tiny.checkpoint(source, "best.pt")["step"]
    init = {"file": str(best), "sha256": digest, "step": step, "weights": "ema"}
    assert summary["init"] == init and summary["files"]["train.init"] == digest
    text = (tmp_path / "next" / "config.toml").read_text()
    assert text.endswith(f"\n# train.init: ema weights of step {step}, SHA-256 {digest}\n")
    assert read_toml(tmp_path / "next" / "config.toml")["train"]["init"] == str(source)
    assert f"init   ema weights of step {step} of {best}\n" in capsys.readouterr().out
    assert "init" not in tiny.run(tmp_path / "fresh", **maze())


def test_seed_in_the_path_pairs_the_seeds_and_the_analysis_averages_them(tmp_path, capsys):
    tables = maze(8, tmp_path / "runs/small/seed{seed}")
    small, large = tiny.entry(tmp_path, "small.toml", **maze()), tmp_path / "large.toml"
    tiny.entry(tmp_path, "large.toml", **tables)
    for seed in (0, 1):
        for entry in (small, large):
            tiny.command(entry, f"--out={tmp_path}/runs", f"--seed={seed}")
    summaries = [
        json.loads((tmp_path / f"runs/large/seed{seed}/summary.json").read_text())
        for seed in (0, 1)
    ]
    for seed, summary in enumerate(summaries):
        assert summary["init"]["file"] == f"{tmp_path}/runs/small/seed{seed}/best.pt"
    groups = analyze.group(analyze.load_runs([tmp_path / "runs"]))
    assert sorted([run.seed for run in g.runs] for g in groups) == [[0, 1], [0, 1]]


# ---------------------------------------------------------------- continued


def test_a_run_that_has_begun_needs_the_other_one_no_more(source, tmp_path):
    shutil.copytree(source, tmp_path / "source")
    tables = maze(8, tmp_path / "source")
    whole = tiny.run(tmp_path / "whole", **tables)
    tiny.interrupted(tmp_path / "run", **tables)
    shutil.rmtree(tmp_path / "source")
    summary = tiny.run(tmp_path / "run", **tables)
    tiny.assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert summary["init"] == whole["init"] and summary["files"] == whole["files"]
    assert (tmp_path / "run/config.toml").read_text() == (
        tmp_path / "whole/config.toml"
    ).read_text()
    assert tiny.run(tmp_path / "run", **tables) == summary, "finished"


def test_other_weights_are_another_run_and_the_same_bytes_elsewhere_are_not(source, tmp_path):
    run = tmp_path / "run"
    tiny.interrupted(run, **maze(8, source))
    tiny.run(tmp_path / "other", **maze(6, steps=5))
    before = (run / "ckpt.pt").read_bytes()
    for init in ("", tmp_path / "other", tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"was made with train\.init = .*, this command says"):
            tiny.run(run, **maze(8, init))
    with pytest.raises(UserError, match=r"was made with train\.init_weights = \"ema\""):
        tiny.run(run, **maze(8, source, init_weights="raw"))
    assert (run / "ckpt.pt").read_bytes() == before
    shutil.copy(source / "best.pt", tmp_path / "copy.pt")
    tiny.run(run, **maze(8, tmp_path / "copy.pt"))
    tiny.run(tmp_path / "whole", **maze(8, source))
    assert tiny.lines(run) == tiny.lines(tmp_path / "whole")


# ---------------------------------------------------------------- what does not fit

WRONG = [  # (what differs in [model], words of the sentence)
    ({"dim": 32}, "model.dim = 32, expected 16: tokens has the shape (6, 32), expected (6, 16)"),
    ({"n_layers": 2}, "model.n_layers = 2, expected 1: the net has a tensor net.blocks.1"),
    ({"expansion": 2.0}, "model.expansion = 2.0, expected 1.0: net.blocks.0.mlp"),
    ({"two_nets": True}, "model.two_nets = True, expected False: the net has a tensor net_y."),
    ({"init": "random"}, "model.init = 'random', expected 'fixed': the net has no tensor y0"),
    (
        ROPE,
        "model.mixer = 'attention', expected 'conv'; model.positions = 'rope', expected 'none': ",
    ),
]


@pytest.mark.parametrize("model, words", WRONG, ids=lambda value: str(value)[:20])
def test_a_net_that_does_not_fit_is_refused_by_its_key(source, tmp_path, capsys, model, words):
    sentence = refused(tmp_path, capsys, **maze(8, source, model))
    assert words in sentence and sentence.endswith(f"of {source}/best.pt\n")


FIXED = [
    ({"positions": "learned"}, "places has the shape (49, 16), expected (36, 16)"),
    ({"mixer": "mlp"}, "net.blocks.0.mixers.0.mlp.up.weight has the shape"),
]


@pytest.mark.parametrize("model, words", FIXED, ids=["places", "mlp"])
def test_a_net_that_knows_one_size_is_refused_for_another(tmp_path, capsys, model, words):
    tiny.run(tmp_path / "small", **maze(6, model=model))
    sentence = refused(tmp_path, capsys, **maze(7, tmp_path / "small", model))
    why = "data.size = 7, expected 6"
    assert f"train.init = '{tmp_path}/small' does not fit: {why}: {words}" in sentence


def test_a_net_of_another_task_is_said_to_be_one(source, tmp_path, capsys):
    sentence = refused(tmp_path, capsys, model={"dim": 32}, train={"init": str(source)})
    why = "data.task = 'sudoku', expected 'maze'; model."
    assert f"train.init = '{source}' does not fit: {why}" in sentence


def test_a_table_of_puzzles_with_other_rows_is_refused():
    own = {"puzzles": torch.zeros(5, 8), "head.weight": torch.zeros(2, 8)}
    other = own | {"puzzles": torch.zeros(3, 8)}
    words = "puzzles has the shape (5, 8), expected (3, 8), that"
    assert training.misfit_of(own, other) == words
    assert training.misfit_of(own, dict(own)) == ""


def test_what_is_no_run_is_refused(source, tmp_path, capsys):
    sentence = refused(tmp_path, capsys, **maze(8, "nowhere"))
    assert "train.init: nowhere: no such run, expected a run folder such as" in sentence
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes((source / "best.pt").read_bytes()[:-100])
    sentence = refused(tmp_path, capsys, **maze(8, damaged))
    assert f"train.init: {damaged}: not a readable checkpoint" in sentence
    sentence = refused(tmp_path, capsys, **maze(8, source / "ckpt.pt"))
    assert f"train.init: {source}/ckpt.pt: no best.pt of train.py (it lacks" in sentence


def test_the_launcher_says_which_weights_are_missing(tmp_path, source, capsys):
    entry = tiny.entry(tmp_path, **maze(8, "nowhere/seed{seed}"))
    words = [str(entry), "--local", "--dry-run", f"--out={tmp_path}/runs"]
    missing = "but not yet: {}: train.init needs nowhere/seed0/best.pt, but there is no such file"
    assert launcher.main(words) == 0
    assert missing.format(entry) in capsys.readouterr().out
    assert launcher.main([*words, f"--train.init={source}"]) == 0
    assert "but not yet" not in capsys.readouterr().out


@pytest.mark.slow
def test_all_ranks_start_from_the_weights(source, tmp_path):
    entry = tiny.entry(tmp_path, **maze(8, source))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = tiny.spawn(entry, f"--out={tmp_path}/runs", launcher=torchrun)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    tiny.run(tmp_path / "one", **maze(8, source))
    one, two = (tiny.lines(tmp_path / name)[0] for name in ("one", "runs/tiny/seed0"))
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
