"""Training runs: accumulation, resuming to the same bits after every kind of death, refusals,
faults, ranks, evaluation, files.
"""

import errno
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import evaluate as evaluation
import runs
import tiny
import train as training
from config import FREE, UserError
from evaluate import evaluate
from model import TRM, Carry, Shape, net_flop
from runs import TrainingError, World
from tasks.sudoku import Sudoku
from train import Config, forward_backward, load_run, main

LONG = 600  # seconds after which a process that does nothing is a failure; busy machines are slow
HALTING = {
    "model": {"n_sup": 4, "explore": 0.3},
    "train": {"grokfast": "ema", "grokfast_lambda": 1.0},
}  # what the kill tests must cover
WORLD = World(0, 1, torch.device("cpu"), torch.float32, False)


@pytest.fixture
def early(monkeypatch):
    """Nets whose slots halt at different steps from the start.

    q_halt is spread around zero by a head that sees y.
    """
    init = TRM.__init__

    def spread(net, *args, **options):
        init(net, *args, **options)
        with torch.no_grad():
            net.q_head.weight.normal_(0, 1.0, generator=torch.Generator().manual_seed(0))
            net.q_head.bias.zero_()

    monkeypatch.setattr(TRM, "__init__", spread)


# ---------------------------------------------------------------- gradient accumulation


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mixer": "attention", "prefix": 1, "continue_loss": True},
        {"mixer": "mlp", "init": "random"},
    ],
    ids=["pool", "attention", "random init"],
)
def test_accumulation_equals_one_piece(settings, early):
    results = []
    for pieces in (1, 3):
        cfg = tiny.config(model=settings, train={"batch_size": 6, "accumulate": pieces})
        torch.manual_seed(0)
        net = TRM(cfg.model, Shape(16, 6, 1, 2, 2)).train()
        g = torch.Generator().manual_seed(1)
        batch = {
            "inputs": torch.randint(1, 6, (6, 16), generator=g),
            "labels": torch.randint(1, 6, (6, 16), generator=g),
            "puzzle": torch.zeros(6, dtype=torch.long),
        }
        carry = net.refill(net.start(batch), batch, net.first_states(6, 16, g))
        carry.steps = torch.tensor([0, 1, 2, 0, 1, 1])
        carry, sums = forward_backward(
            net, carry, {"min_steps": torch.tensor([0, 3, 0, 2, 0, 0])}, cfg
        )
        results.append((carry, sums, {k: p.grad for k, p in net.named_parameters()}))
    (one, sums, grads), (many, sums_many, grads_many) = results
    assert (
        isinstance(many, Carry)
        and torch.equal(one.halted, many.halted)
        and torch.equal(one.steps, many.steps)
    )
    assert 0 < one.halted.sum() < 6
    assert tiny.differences(one.batch, many.batch) == []
    torch.testing.assert_close((one.y, one.z), (many.y, many.z), rtol=1e-3, atol=1e-4)
    assert sums.keys() == sums_many.keys()
    for k in sums:
        torch.testing.assert_close(sums[k], sums_many[k], rtol=1e-4, atol=1e-5, msg=k)
    for k in grads:
        where = {"msg": lambda m, k=k: f"{k}: {m}"}
        torch.testing.assert_close(grads[k], grads_many[k], rtol=1e-3, atol=1e-5, **where)
    assert max(g.norm() for g in grads.values()) > 0.01


def test_an_accumulated_run_has_the_losses_of_one_in_one_piece(tmp_path, early):
    for pieces in (1, 2):
        tiny.run(tmp_path / str(pieces), train={"accumulate": pieces}, model=HALTING["model"])
    one, two = (tiny.lines(tmp_path / name, "train") for name in "12")
    assert len({line["halted"] for line in one}) > 1
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys() and a["halted"] == b["halted"]
        assert b["loss"] == pytest.approx(a["loss"], abs=2e-4)


# ---------------------------------------------------------------- death, in this process


@pytest.mark.parametrize(
    "settings",
    [
        HALTING,
        {
            "model": {"halting": False, "init": "learned"},
            "train": {"grokfast": "ema", "optimizer": "muon", "clip": 1.0, "schedule": "cosine"},
        },
        {"model": {"halting": False}, "train": {"stagger": True, "accumulate": 2}},
        {
            "model": {"init": "random", "continue_loss": True},
            "train": {"optimizer": "adam_atan2", "ema_warmup": True, "grokfast": "highpass"},
        },
        {
            "model": tiny.ATTENTION | {"two_nets": True},
            "train": {"grokfast": "ma", "grokfast_window": 3, "accumulate": 2, "ema": 0.0},
        },
    ],
    ids=["halting", "slots in step", "slots in turn", "random init", "attention"],
)
@pytest.mark.slow
def test_a_run_that_breaks_and_starts_again_ends_with_the_same_bits(settings, tmp_path, early):
    settings = {
        "model": settings["model"],
        "train": settings["train"]
        | {"log_every": 3, "steps": 14, "eval_every": 5, "ckpt_minutes": 0.0},
    }
    tiny.run(tmp_path / "whole", **settings)
    for step in (4, 8, 8):  # the third time at once
        tiny.interrupted(tmp_path / "broken", step, **settings)
    assert (
        tiny.checkpoint(tmp_path / "broken")["step"] == 7
    )  # three steps, then four, then none: it did go on each time
    tiny.run(tmp_path / "broken", **settings)
    tiny.assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_steps_after_the_last_checkpoint_are_done_again_and_logged_once(tmp_path, early):
    tiny.run(tmp_path / "whole", **HALTING)
    tiny.interrupted(tmp_path / "broken", 9, **HALTING)
    assert (
        tiny.checkpoint(tmp_path / "broken")["step"] == 5
        and tiny.lines(tmp_path / "broken")[-1]["step"] == 8
    )
    with open(tmp_path / "broken" / "metrics.jsonl", "a") as f:
        f.write('{"step": 9, "spl')  # a kill in the middle of a line
    tiny.run(tmp_path / "broken", **HALTING)
    tiny.assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_run_that_breaks_between_best_and_checkpoint_ends_with_the_same_bits(
    tmp_path, monkeypatch
):
    tiny.run(tmp_path / "whole")
    for name in ("ckpt.pt", "summary.json"):
        replace = os.replace

        def fail(source, target, name=name, replace=replace):
            if Path(target).name == name:
                raise tiny.Broken
            return replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fail)
            with pytest.raises(tiny.Broken):
                tiny.run(tmp_path / "broken")
        assert (tmp_path / "broken" / "best.pt").exists() and not (
            tmp_path / "broken" / "summary.json"
        ).exists()
    tiny.run(tmp_path / "broken")
    tiny.assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_patience_counts_on_over_a_break(tmp_path, monkeypatch):
    figures = iter([0.3, 0.2, 0.1, 0.9])

    def fake(self, net, split, cfg, world, rows=0, adaptive=False, progress=""):
        exact = next(figures) if progress == "validation" else 0.5
        half = {"exact": exact, "cells": 0.5, "valid": 0.0, "steps": 3.0, "n": 10}
        return half | {"curve": [exact] * 3, "halting": dict(half), "verdict": {}}

    monkeypatch.setattr(Sudoku, "evaluate", fake)
    settings = {"train": {"steps": 40, "eval_every": 2, "patience": 2}}
    tiny.interrupted(tmp_path, 6, **settings)
    summary = tiny.run(tmp_path, **settings)
    assert (summary["steps"], summary["best_step"], summary["val"]["exact"]) == (6, 2, 0.3)


def test_the_seed_is_all_that_makes_two_runs_differ(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        training.train(tiny.config(seed=seed, **HALTING), tmp_path / name)
    tiny.assert_same_run(tmp_path / "a", tmp_path / "b")
    assert (
        tiny.lines(tmp_path / "a", "train")[0]["loss"]
        != tiny.lines(tmp_path / "c", "train")[0]["loss"]
    )


def test_learned_initial_states_train_where_all_slots_start_together(tmp_path):
    tiny.run(
        tmp_path,
        model={"halting": False, "init": "learned"},
        train={"steps": 7, "grokfast": "ma", "grokfast_window": 2, "weight_decay": 0.0},
    )
    net = tiny.checkpoint(tmp_path)["net"]
    torch.manual_seed(0)
    fresh = TRM(tiny.config(model={"init": "learned"}).model, Shape(16, 6, 1, 2, 2))
    for name in ("y0", "z0"):
        assert net[name].isfinite().all() and not torch.equal(net[name], getattr(fresh, name))


# ---------------------------------------------------------------- signals

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda s: s.name)
def test_a_signal_finishes_the_step_saves_and_exits_with_128_plus_its_number(
    number, tmp_path, monkeypatch, capsys, early
):
    monkeypatch.chdir(tmp_path)
    entry = tiny.entry(tmp_path, **HALTING)
    before = signal.getsignal(number)
    former = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    signal.signal(number, former)
    try:
        with pytest.raises(SystemExit) as end:
            tiny.command(entry, before_step=tiny.at(3, lambda: signal.raise_signal(number)))
        assert signal.getsignal(number) == former, "the former handler is back"
    finally:
        signal.signal(number, before)
    assert end.value.code == 128 + number
    assert f"stopped by {number.name} after step 3" in capsys.readouterr().out
    folder = tmp_path / "runs" / "tiny" / "seed0"
    assert tiny.checkpoint(folder)["step"] == 3 and not (folder / "summary.json").exists()
    assert main([str(entry)]) == 0
    assert "continues at step 3" in capsys.readouterr().out
    tiny.run(tmp_path / "whole", **HALTING)
    tiny.assert_same_run(tmp_path / "whole", folder)


def test_a_handler_that_was_there_before_is_called_after_the_checkpoint(tmp_path):
    """As submitit's, which requeues the job and exits."""
    called = []
    before = signal.signal(
        signal.SIGUSR2,
        lambda number, frame: called.append((number, tiny.checkpoint(tmp_path)["step"])),
    )
    try:
        with pytest.raises(SystemExit):
            tiny.run(tmp_path, tiny.at(2, lambda: signal.raise_signal(signal.SIGUSR2)))
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert called == [(signal.SIGUSR2, 2)]


# ---------------------------------------------------------------- real processes


def wait_for_step(folder: Path, step: int, *processes) -> None:
    """Until metrics.jsonl has a line of this step, while the processes live."""
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        try:
            seen = [
                json.loads(line)["step"]
                for line in (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
                if line.endswith("\n")
            ]
        except FileNotFoundError:
            seen = []
        if max(seen, default=0) >= step:
            return
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    raise AssertionError(f"step {step} was not reached")


def kill(*processes) -> None:
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
    for process in processes:
        process.communicate(timeout=LONG)


SLOW = {
    "model": {
        "n_sup": 4,
        "explore": 0.5,
        "T": 2,
        "n": 2,
        "ponder_weight": 3.0,
    },  # the ponder weight teaches to halt early, soon
    "train": {"steps": 160, "eval_every": 40, "ckpt_minutes": 0.0, "grokfast": "ema"},
}


def moments() -> list[int]:
    """Three random steps of 160 to kill at, other ones every time: assertion messages show them.

    None is late: on a busy machine a run goes on for a while before the kill arrives.
    """
    return [random.SystemRandom().randrange(first, first + 25) for first in (1, 26, 51)]


@pytest.mark.slow
def test_a_run_killed_three_times_ends_with_the_bits_of_one_that_was_not(tmp_path):
    entry = tiny.entry(tmp_path, **SLOW)
    folder, killed = tmp_path / "killed" / "tiny" / "seed0", moments()
    for step in killed:
        process = tiny.spawn(entry, f"--out={tmp_path}/killed")
        wait_for_step(folder, step, process)
        time.sleep(random.SystemRandom().random() * 0.01)
        kill(process)
        assert process.returncode == -signal.SIGKILL
        saved = (
            tiny.checkpoint(folder)["step"] if (folder / "ckpt.pt").exists() else 0
        )  # the kill may come before the first one
        assert not (folder / "summary.json").exists() and step - 1 <= saved < 160, killed
    process = tiny.spawn(entry, f"--out={tmp_path}/killed")
    stdout, stderr = process.communicate(timeout=LONG)
    assert process.returncode == 0 and "continues at step" in stdout, stderr
    tiny.run(tmp_path / "whole", **SLOW)
    assert 1 < len({line["halted"] for line in tiny.lines(folder, "train")[60:]}), (
        "slots must have halted at different times"
    )
    tiny.assert_same_run(tmp_path / "whole", folder)


@pytest.mark.slow
def test_a_real_process_stops_at_sigterm_and_continues_to_the_same_bits(tmp_path):
    entry = tiny.entry(tmp_path, **SLOW)
    process = tiny.spawn(entry, f"--out={tmp_path}/runs")
    folder = tmp_path / "runs" / "tiny" / "seed0"
    wait_for_step(folder, 5, process)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=LONG)
    assert process.returncode == 128 + signal.SIGTERM, stderr
    step = int(re.search(r"stopped by SIGTERM after step (\d+)", stdout)[1])
    assert 5 <= step < 160 and tiny.checkpoint(folder)["step"] == step
    tiny.run(folder, **SLOW)
    tiny.run(tmp_path / "whole", **SLOW)
    tiny.assert_same_run(tmp_path / "whole", folder)


def ranks(*words) -> list:
    """Two processes of one run, as a cluster starts them: killing them kills everything."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    return [
        tiny.spawn(
            *words,
            env={
                "RANK": str(r),
                "LOCAL_RANK": str(r),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for r in range(2)
    ]


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> Path:
    """An uninterrupted run of two gloo ranks, by torchrun."""
    folder = tmp_path_factory.mktemp("ranks")
    process = tiny.spawn(tiny.entry(folder, **SLOW), f"--out={folder}/runs", launcher=TORCHRUN)
    stdout, stderr = process.communicate(timeout=LONG)
    assert process.returncode == 0, stderr
    assert stdout.count("done ") == 1 and stdout.count("2 x ") == 1, "rank 0 alone talks"
    return folder / "runs" / "tiny" / "seed0"


@pytest.mark.slow
def test_two_ranks_have_the_losses_of_one_process_with_the_same_batch(two_ranks, tmp_path):
    tiny.run(tmp_path, **SLOW)
    one, two = tiny.lines(tmp_path), tiny.lines(two_ranks)
    assert [(line["step"], line["split"]) for line in one] == [
        (line["step"], line["split"]) for line in two
    ]
    for i, (a, b) in enumerate(zip(one[:40], two[:40], strict=True)):
        assert a.get("halted") == b.get("halted") and a.get("n") == b.get("n")
        to = 1e-5 if i < 5 else 2e-3  # rounding grows from step to step
        for key in (
            "loss",
            "answer_loss",
            "halt_loss",
            "cells",
            "exact",
            "q_accuracy",
            "steps_at_halt",
        ):
            if key in a:
                assert b[key] == pytest.approx(a[key], rel=to, abs=to), (a["step"], key)
    files = [sorted(p.name for p in folder.iterdir()) for folder in (tmp_path, two_ranks)]
    assert files[0] == files[1]
    verdict, summary = (
        np.load(two_ranks / "test.npz"),
        json.loads((two_ranks / "summary.json").read_text()),
    )
    assert verdict["exact"].shape == (summary["test"]["n"],) and verdict[
        "exact"
    ].mean() == pytest.approx(summary["test"]["exact"])
    assert (
        summary["test_puzzles"]
        == json.loads((tmp_path / "summary.json").read_text())["test_puzzles"]
    )


JOIN_AND_LEAVE = """
import os, runs, torch
import torch.distributed as dist
runs.join_group("cpu")
import torch.distributed.nn.functional  # as torch.compile does
dist.all_reduce(torch.ones(1))  # a thread that works has its name
names = lambda: [open(f"/proc/self/task/{t}/comm").read() for t in os.listdir("/proc/self/task")]
print(sum("gloo" in name for name in names()))
dist.destroy_process_group()
print(sum("gloo" in name for name in names()))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="names of threads are in /proc")
def test_no_thread_of_a_group_outlives_it(tmp_path):
    # One that does may abort a rank that has done its work and is about to leave.
    rendezvous = {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", JOIN_AND_LEAVE],
        env=os.environ | rendezvous,
        text=True,
        capture_output=True,
        timeout=LONG,
    )
    before, after = map(int, done.stdout.split())
    assert before > 0 and after == 0, done.stderr


def test_rank_1_writes_nothing_and_says_nothing(tmp_path, monkeypatch, capfd):
    tiny.run(tmp_path / "lead")
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "lead" / "best.pt", tmp_path / "other")  # what rank 0 will have written
    before = (tmp_path / "other" / "best.pt").stat().st_mtime_ns
    monkeypatch.setattr(
        training, "make_world", lambda cfg: World(1, 2, torch.device("cpu"), torch.float32, False)
    )
    for name in ("all_reduce", "gather_object", "barrier"):
        monkeypatch.setattr(runs.dist, name, lambda *a, **k: None)
    capfd.readouterr()
    tiny.run(tmp_path / "other")
    assert [p.name for p in (tmp_path / "other").iterdir()] == [
        "best.pt"
    ] and capfd.readouterr() == ("", "")
    assert (tmp_path / "other" / "best.pt").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_checkpoint_of_two_ranks_is_refused_by_one(two_ranks, tmp_path):
    shutil.copytree(two_ranks, tmp_path / "copy")
    (tmp_path / "copy" / "summary.json").unlink()
    with pytest.raises(
        UserError, match=r"ckpt.pt was written by 2 process\(es\), this run has 1; start as many"
    ):
        tiny.run(tmp_path / "copy", **SLOW)


@pytest.mark.slow
def test_two_ranks_killed_twice_end_with_the_bits_of_two_that_were_not(two_ranks, tmp_path):
    entry = tiny.entry(tmp_path, **SLOW)
    folder, killed = tmp_path / "killed" / "tiny" / "seed0", moments()[1:]
    for step in killed:
        both = ranks(entry, f"--out={tmp_path}/killed")
        wait_for_step(folder, step, *both)
        kill(*both)
        assert not (folder / "summary.json").exists(), killed
    assert tiny.checkpoint(folder)["step"] % 10 == 0  # ranks agree at every tenth step
    both = ranks(entry, f"--out={tmp_path}/killed")
    for process in both:
        _, stderr = process.communicate(timeout=LONG)
        assert process.returncode == 0, stderr
    tiny.assert_same_run(two_ranks, folder)


@pytest.mark.slow
def test_torchrun_passes_sigterm_on_and_the_ranks_leave_at_one_step(two_ranks, tmp_path):
    entry = tiny.entry(
        tmp_path, **SLOW | {"train": SLOW["train"] | {"steps": 2000}}
    )  # the signal takes a moment to arrive
    folder = tmp_path / "runs" / "tiny" / "seed0"
    process = tiny.spawn(entry, f"--out={tmp_path}/runs", launcher=TORCHRUN)
    wait_for_step(folder, 5, process)
    process.send_signal(signal.SIGTERM)
    stdout, _ = process.communicate(timeout=LONG)
    step = int(re.search(r"stopped by SIGTERM after step (\d+)", stdout)[1])
    assert step % 10 == 0 and process.returncode != 0 and not (folder / "summary.json").exists()
    state = tiny.checkpoint(folder)
    assert state["step"] == step and len(state["processes"]) == 2
    mine, whole = tiny.lines(folder, "train"), tiny.lines(two_ranks, "train")
    assert len(mine) == step and mine[:160] == whole[:step]


def test_a_batch_that_does_not_divide_among_the_ranks_is_refused(monkeypatch):
    together = {"WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0"}
    for name, word in (together | {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, word)
    with pytest.raises(
        UserError,
        match=r"train.batch_size = 4, expected a multiple of 3 processes x accumulate = 1",
    ):
        runs.make_world(tiny.config().train)


# ---------------------------------------------------------------- finished, or somebody else's


def test_a_finished_run_says_so_and_does_nothing(tmp_path, capsys):
    entry = tiny.entry(tmp_path)
    assert main([str(entry), f"--out={tmp_path}/runs"]) == 0
    folder = tmp_path / "runs" / "tiny" / "seed0"
    assert capsys.readouterr().out.count("\n") == 5
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}
    assert before.keys() == {
        "ckpt.pt",
        "best.pt",
        "metrics.jsonl",
        "config.toml",
        "summary.json",
        "test.npz",
    }
    assert main([str(entry), f"--out={tmp_path}/runs"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{folder} is finished; nothing to do. test ") and out.count("\n") == 1
    assert before == {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    "word, difference, advice",
    [
        ("--train.lr=0.02", "train.lr = 0.01, this command says 0.02", "--train.lr=0.01"),
        ("--model.n=2", "model.n = 1, this command says 2", "--model.n=1"),
        (
            "--data.augment=false",
            "data.augment = true, this command says false",
            "--data.augment=true",
        ),
        (
            "--model.norm=layer",
            'model.norm = "rms", this command says "layer"',
            "--model.norm=rms",
        ),
    ],
)
def test_a_folder_of_another_configuration_is_refused_with_the_difference(
    finished, word, difference, advice, tmp_path, capsys
):
    entry, folder = tiny.entry(tmp_path), tmp_path / "runs" / "tiny" / "seed0"
    if not finished:
        tiny.interrupted(folder)
    else:
        main([str(entry), f"--out={tmp_path}/runs"])
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    capsys.readouterr()
    assert main([str(entry), f"--out={tmp_path}/runs", word]) == 2
    assert capsys.readouterr() == (
        "",
        f"error: {folder} was made with {difference}; "
        f"choose another --out, pass {advice}, or delete it\n",
    )
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}
    assert main([str(entry), f"--out={tmp_path}/runs", advice]) == 0, "the advice must work"


def test_keys_that_do_not_change_the_result_may_change_when_a_run_continues(tmp_path):
    tiny.interrupted(tmp_path / "a")
    assert FREE == {
        "hypothesis",
        "expected",
        "out",
        "train.log_every",
        "train.ckpt_minutes",
        "train.device",
        "train.threads",
        "train.wandb",
        "train.tensorboard",
    }
    cfg = tiny.config(
        out="elsewhere",
        hypothesis="Another sentence.",
        train={"log_every": 5, "ckpt_minutes": 1.0, "threads": 0, "device": "auto"},
    )
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        cfg = tiny.config(
            out="elsewhere",
            hypothesis="Another sentence.",
            train={"log_every": 5, "ckpt_minutes": 1.0, "threads": 0},
        )
    training.train(cfg, tmp_path / "a")
    tiny.run(tmp_path / "b")
    a, b = (tiny.checkpoint(tmp_path / name) for name in "ab")
    assert tiny.differences(a["net"], b["net"]) == [] and tiny.differences(a["ema"], b["ema"]) == []


def test_the_run_folder_is_the_entry_below_sweeps():
    def folder(entry, seed=0):
        return str(runs.run_folder(tiny.config(seed=seed), Path(entry)))

    assert (
        folder("sweeps/laptop/maze.toml", 3)
        == "runs/laptop/maze/seed3"
        == folder("/a/sweeps/b/sweeps/laptop/maze.toml", 3)
    )
    assert folder("somewhere/else.toml") == "runs/else/seed0"


# ---------------------------------------------------------------- faults


def test_a_loss_that_is_not_finite_stops_with_step_loss_and_last_good_checkpoint(
    tmp_path, monkeypatch, capsys
):
    entry, folder = (
        tiny.entry(tmp_path, train={"log_every": 2, "eval_every": 4}),
        tmp_path / "runs" / "tiny" / "seed0",
    )
    whole, calls = TRM.loss, itertools.count(1)

    def poisoned(*args):
        loss, parts = whole(*args)
        bad = next(calls) == 7
        return (
            (loss * math.nan, parts | {"loss": parts["loss"] * math.nan}) if bad else (loss, parts)
        )

    monkeypatch.setattr(TRM, "loss", poisoned)
    assert main([str(entry), f"--out={tmp_path}/runs"]) == 3
    err = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        rf"error: {folder}: loss or gradient is not finite \S+ step 7.*loss.*nan\); "
        rf"last good checkpoint: {folder}/ckpt.pt; .*",
        err,
    )
    state = tiny.checkpoint(folder)
    assert state["step"] == 4 and all(
        v.isfinite().all() for v in [*state["net"].values(), *state["ema"].values()]
    )
    assert not (folder / "summary.json").exists() and [
        line["step"] for line in tiny.lines(folder, "train")
    ] == [2, 4, 6]
    assert main([str(entry), f"--out={tmp_path}/runs"]) == 0, (
        "without the poison it goes on from there"
    )
    tiny.run(tmp_path / "whole", train={"log_every": 2, "eval_every": 4})
    tiny.assert_same_run(tmp_path / "whole", folder)


@pytest.mark.parametrize(
    "words",
    [["--train.log_every=1"], ["--train.log_every=50"]],
    ids=["at a log line", "at a validation"],
)
def test_a_rate_that_blows_up_the_weights_is_told_before_anything_is_saved(words, tmp_path, capsys):
    entry = tiny.entry(tmp_path)
    assert (
        main([str(entry), f"--out={tmp_path}/runs", "--train.lr=1e30", "--train.warmup=0", *words])
        == 3
    )
    err = capsys.readouterr().err.splitlines()[-1]
    assert re.search(
        r"loss or gradient is not finite \S+ step \d+.*\(loss.*\); "
        r"last good checkpoint: none yet; a smaller train.lr",
        err,
    )
    assert (
        not (tmp_path / "runs" / "tiny" / "seed0" / "ckpt.pt").exists()
        and not (tmp_path / "runs" / "tiny" / "seed0" / "best.pt").exists()
    )


def test_an_out_that_cannot_be_written_is_refused(tmp_path, capsys):
    entry, wall = tiny.entry(tmp_path), tmp_path / "a_file"
    wall.write_text("not a folder")
    assert main([str(entry), f"--out={wall}/runs"]) == 2
    captured = capsys.readouterr()
    assert captured == (
        "",
        f"error: --out {wall}/runs: cannot write to {wall}/runs/tiny/seed0 (Not a directory)\n",
    )


def test_an_out_without_permission_is_refused(capsys):
    import torch._dynamo  # noqa: F401, nobody may be unable to read the standard library later

    with (
        tempfile.TemporaryDirectory() as folder
    ):  # not below pytest's own, which others may not enter
        os.chmod(folder, 0o755)
        entry, locked = tiny.entry(Path(folder)), Path(folder, "locked")
        locked.mkdir(mode=0)
        root = os.geteuid() == 0
        if root:  # may write everywhere: be nobody for a moment
            os.seteuid(65534)
        try:
            assert main([str(entry), f"--out={locked}"]) == 2
        finally:
            if root:
                os.seteuid(0)
            os.chmod(locked, 0o700)
        assert capsys.readouterr() == (
            "",
            f"error: --out {locked}: cannot write to {locked}/tiny/seed0 (Permission denied)\n",
        )


def no_space(*args, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["replace", "fsync", "save", "log"])
def test_a_full_disk_leaves_the_old_checkpoint_and_says_so(where, tmp_path, monkeypatch):
    entry, folder = tiny.entry(tmp_path), tmp_path / "runs" / "tiny" / "seed0"
    before = {}

    class Full:
        def __init__(self, file):
            self.file, self.name = file, file.name

        def write(self, text):
            if before:
                no_space()
            return self.file.write(text)

        def flush(self):
            return no_space() if before else self.file.flush()

        def close(self):
            self.file.close()
            no_space()

    def fill():
        before.update(
            {name: (folder / name).read_bytes() for name in ("ckpt.pt", "best.pt", "config.toml")}
        )
        if where in ("replace", "fsync"):
            monkeypatch.setattr(os, where, no_space)
        if where == "save":
            monkeypatch.setattr(
                torch,
                "save",
                lambda state, file: (
                    file.write(b"half"),
                    tiny.throw(RuntimeError("[enforce fail at inline_container.cc]"))(),
                ),
            )

    with monkeypatch.context() as patch:
        if where == "log":
            patch.setattr(
                runs,
                "open",
                lambda path, *a, **k: (Full if Path(path).name == "metrics.jsonl" else lambda f: f)(
                    open(path, *a, **k)
                ),
                raising=False,
            )
        with pytest.raises(TrainingError) as refusal:
            tiny.command(entry, f"--out={tmp_path}/runs", before_step=tiny.at(8, fill))
    sentence = str(refusal.value)
    if where == "log":
        full = f"cannot write {folder}/metrics.jsonl (No space left on device)"
        assert sentence == f"{full}; last good checkpoint: {folder}/ckpt.pt"
    else:
        reason = (
            "[enforce fail at inline_container.cc]"
            if where == "save"
            else "No space left on device"
        )
        assert sentence in {
            f"cannot write {folder}/{name} ({reason}); what was saved there before is untouched"
            for name in ("best.pt", "ckpt.pt")
        }
    assert {name: (folder / name).read_bytes() for name in before} == before and len(before) == 3
    assert (
        not [p for p in folder.iterdir() if p.name.endswith(".tmp")]
        and not (folder / "summary.json").exists()
    )
    monkeypatch.undo()
    assert main([str(entry), f"--out={tmp_path}/runs"]) == 0
    tiny.run(tmp_path / "whole")
    tiny.assert_same_run(tmp_path / "whole", folder)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="a limit on the size of files stands in for a full disk",
)
@pytest.mark.slow
def test_a_real_write_that_fails_half_way_ends_with_exit_code_3(tmp_path):
    import resource

    entry = tiny.entry(tmp_path)
    process = tiny.spawn(
        entry,
        f"--out={tmp_path}/runs",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    _, stderr = process.communicate(timeout=LONG)
    folder = tmp_path / "runs" / "tiny" / "seed0"
    assert process.returncode == 3, stderr
    assert re.fullmatch(
        rf"error: cannot write {folder}/best.pt \(.*\); what was saved there before is untouched",
        stderr.splitlines()[-1],
    )
    assert sorted(p.name for p in folder.iterdir()) == ["config.toml", "metrics.jsonl"]


@pytest.mark.parametrize("damage", ["half", "empty", "text", "best"])
def test_a_checkpoint_that_is_none_is_refused(damage, tmp_path, capsys):
    entry, folder = tiny.entry(tmp_path), tmp_path / "runs" / "tiny" / "seed0"
    tiny.interrupted(folder)
    path, metrics = folder / "ckpt.pt", (folder / "metrics.jsonl").read_bytes()
    whole = path.read_bytes()
    path.write_bytes(
        {
            "half": whole[: len(whole) // 2],
            "empty": b"",
            "text": b"hello\n",
            "best": (folder / "best.pt").read_bytes(),
        }[damage]
    )
    capsys.readouterr()
    assert main([str(entry), f"--out={tmp_path}/runs"]) == 2
    captured = capsys.readouterr()
    says = (
        "no ckpt.pt of train.py (it lacks"
        if damage == "best"
        else "not a readable checkpoint of train.py (truncated, or another kind of file)\n"
    )
    assert (
        captured.out == ""
        and captured.err.startswith(f"error: {path}: {says}")
        and captured.err.count("\n") == 1
    )
    assert (folder / "metrics.jsonl").read_bytes() == metrics


# ---------------------------------------------------------------- evaluation


def restless(bias: float = -9.4) -> tuple[TRM, data.Dataset, Config]:
    """A net whose rows halt at different steps, 2 to 5 with the default bias, and 30 puzzles."""
    cfg = tiny.config(
        model={"n_sup": 5, "T": 1, "q_from": "first"},
        data={"test_rows": 30},
        train={"batch_size": 8},
    )
    dataset = data.load(cfg)
    torch.manual_seed(0)
    net = TRM(cfg.model, Shape.of(dataset.shape)).train()
    with torch.no_grad():
        net.q_head.weight.normal_(0, 2.0)
        net.q_head.bias.fill_(bias)
    return net, dataset, cfg


@pytest.mark.parametrize("average, loss", [(1, "stablemax"), (3, "stablemax"), (3, "softmax")])
def test_evaluation_equals_a_naive_loop_over_single_rows(average, loss):
    net, dataset, cfg = restless()
    cfg = replace(
        cfg, train=replace(cfg.train, eval_average=average), model=replace(cfg.model, loss=loss)
    )
    result = evaluate(net, dataset.test, cfg, WORLD)
    net.eval()
    curve, last, halting, used = [], [], [], []
    for question, label in zip(
        dataset.test.inputs.astype(np.int64), dataset.test.labels.astype(np.int64)
    ):
        batch = {
            "inputs": torch.from_numpy(question)[None],
            "labels": torch.from_numpy(label)[None],
            "puzzle": torch.zeros(1, dtype=torch.long),
        }
        carry, answers, shares, q = net.refill(net.start(batch), batch), [], [], []
        with torch.no_grad():
            for _ in range(5):
                carry, out = net.step(carry)
                s = (
                    torch.where(out.logits[0] < 0, 1 / (1 - out.logits[0]), 1 + out.logits[0])
                    if loss == "stablemax"
                    else out.logits[0].exp()
                )
                shares.append((s / s.sum(-1, keepdim=True)).numpy())
                answers.append(out.logits.argmax(-1)[0].numpy())
                q.append(out.q_halt.item())
        stop = next((i for i in range(5) if q[i] > 0), 4)
        curve.append([(a == label).all() for a in answers])
        final = np.mean(shares[-average:], 0).argmax(-1)
        last.append((np.mean(final == label), np.mean(answers[-1] == label)))
        halting.append(np.mean(answers[stop] == label))
        used.append(stop + 1)
    assert len(set(used)) >= 3, "rows must halt at different steps for this test to say something"
    cells, without = np.mean(last, 0)
    assert result["curve"] == pytest.approx(np.mean(curve, 0)) and (
        average > 1 or result["exact"] == result["curve"][-1]
    )
    assert (
        result["cells"] == pytest.approx(cells)
        and (cells != without) == (average > 1)
        and (result["n"], result["steps"]) == (30, 5)
    )
    assert result["halting"]["cells"] == pytest.approx(np.mean(halting)) and result["halting"][
        "steps"
    ] == pytest.approx(np.mean(used))
    assert cells != np.mean(halting)


@pytest.mark.parametrize("bias", [-9.4, -11.0, 1000.0, -1000.0])
def test_rows_that_leave_the_batch_when_finished_change_nothing(bias, monkeypatch):
    net, dataset, cfg = restless(bias)
    worked, step = [], TRM.step
    monkeypatch.setattr(
        TRM,
        "step",
        lambda net, carry, **k: (worked.append(len(carry.steps)), step(net, carry, **k))[1],
    )
    full = evaluate(net, dataset.test, cfg, WORLD)
    cost = sum(worked)
    worked.clear()
    adaptive = evaluate(net, dataset.test, cfg, WORLD, adaptive=True)
    for key in full["halting"]:
        assert adaptive["halting"][key] == pytest.approx(full["halting"][key], abs=1e-9)
        assert adaptive[key] == adaptive["halting"][key]
    assert len(adaptive["verdict"]["exact"]) == 30
    assert sum(worked) == cost == 5 * 32 if bias == -1000 else sum(worked) < cost
    if bias == 1000:
        assert sum(worked) == 32 and adaptive["steps"] == 1  # four batches of eight


def test_evaluation_leaves_the_mode_of_the_net_and_the_random_numbers_alone():
    net, dataset, cfg = restless()
    before = torch.get_rng_state()
    evaluate(net, dataset.val, cfg, WORLD)
    assert net.training and torch.equal(before, torch.get_rng_state())
    assert evaluate(net.eval(), dataset.val, cfg, WORLD)["n"] == 10 and not net.training


def test_rows_bound_an_evaluation():
    net, dataset, cfg = restless()
    seven = evaluate(net, dataset.test, cfg, WORLD, rows=7)
    assert seven["n"] == 7 and len(seven["verdict"]["exact"]) == 7
    all_rows = evaluate(net, dataset.test, cfg, WORLD)
    assert (all_rows["verdict"]["exact"][:7] == seven["verdict"]["exact"]).all()
    assert evaluate(net, dataset.test, cfg, WORLD, rows=99)["n"] == 30


def test_rules_are_checked_beside_the_labels():
    net, dataset, cfg = restless()
    result = evaluate(net, dataset.test, cfg, WORLD)
    assert (
        result["valid"] == result["verdict"]["valid"].mean() and result["exact"] <= result["valid"]
    )
    maze = tiny.config(data={"task": "maze", "size": 5}, model={"mixer": "conv"})
    mazes = data.load(maze)
    result = evaluate(TRM(maze.model, Shape.of(mazes.shape)), mazes.test, maze, WORLD)
    assert {
        "exact",
        "valid",
        "optimal",
        "cells",
        "steps",
        "n",
        "curve",
        "halting",
        "verdict",
    } <= result.keys()


def test_smoke_runs_spend_no_more_on_evaluation_than_on_training():
    cfg = tiny.config(train={"steps": 1, "batch_size": 2}, model={"T": 3, "n_sup": 16})
    assert evaluation.rows_within_training(cfg) == 2
    cfg = tiny.config(train={"steps": 100, "batch_size": 64}, model={"T": 3, "n_sup": 4})
    assert evaluation.rows_within_training(cfg) == 100 * 64 * 5 // (3 * 4)


# ---------------------------------------------------------------- files


def test_the_test_set_is_not_touched_before_the_end(tmp_path, monkeypatch):
    load, evaluate_, seen = data.load, Sudoku.evaluate, []

    def watched(*args):
        dataset = load(*args)
        seen.append(dataset.test)
        return dataset

    def watch(self, net, split, *args, **options):
        assert (split is seen[0]) == options["progress"].startswith("test")
        if split is seen[0]:
            assert tiny.checkpoint(tmp_path)["step"] == 10
        seen.append(options["progress"])
        return evaluate_(self, net, split, *args, **options)

    monkeypatch.setattr(data, "load", watched)
    monkeypatch.setattr(Sudoku, "evaluate", watch)
    tiny.run(tmp_path)
    assert seen[1:] in (
        ["validation", "validation", "test"],
        ["validation", "validation", "test", "test, halting"],
    )


def test_what_halting_saves_is_timed_on_some_rows_and_its_figures_are_of_all(tmp_path, monkeypatch):
    evaluate_, asked = Sudoku.evaluate, {}

    def fake(self, net, split, cfg, world, rows=0, adaptive=False, progress=""):
        asked[progress] = rows
        result = evaluate_(self, net, split, cfg, world, rows=rows, adaptive=adaptive)
        result["halting"] |= {"exact": 0.0 if adaptive else 0.7, "steps": 1.5}
        return result

    monkeypatch.setattr(Sudoku, "evaluate", fake)
    monkeypatch.setattr(training, "TIMED_ROWS", 6)
    halting = tiny.run(tmp_path)["test_halting"]
    assert asked["test, halting"] == halting["timed_rows"] == 6
    assert (halting["n"], halting["exact"]) == (10, 0.7)


def test_the_test_meets_the_weights_that_validation_chose(tmp_path, monkeypatch):
    evaluate_, figures, weights = Sudoku.evaluate, iter([0.1, 0.9, 0.2]), {}

    def fake(self, net, split, cfg, world, rows=0, adaptive=False, progress=""):
        result = evaluate_(self, net, split, cfg, world, rows=rows, adaptive=adaptive)
        weights.setdefault(progress, []).append(net.tokens.detach().clone())
        return result | ({"exact": next(figures)} if progress == "validation" else {})

    monkeypatch.setattr(Sudoku, "evaluate", fake)
    summary = tiny.run(tmp_path, train={"steps": 9, "eval_every": 3})
    assert (
        summary["best_step"] == 6 and summary["val"]["exact"] == 0.9 and summary["weights"] == "ema"
    )
    assert torch.equal(weights["test"][0], weights["validation"][1]) and not torch.equal(
        weights["test"][0], weights["validation"][2]
    )
    best = tiny.checkpoint(tmp_path, "best.pt")
    assert torch.equal(best["ema"]["tokens"], weights["test"][0])


def test_best_pt_holds_the_averaged_and_the_raw_weights_by_name(tmp_path):
    summary = tiny.run(tmp_path / "a", train={"ema": 0.5, "steps": 5})
    best, last = tiny.checkpoint(tmp_path / "a", "best.pt"), tiny.checkpoint(tmp_path / "a")
    assert (
        best.keys() == {"step", "config", "shape", "val", "ema", "raw"}
        and best["step"] == summary["best_step"] == 5
    )
    assert tiny.differences(best["raw"], last["net"]) == []
    assert (
        tiny.differences(
            best["ema"],
            {k.removeprefix("module."): v for k, v in last["ema"].items() if k != "n_averaged"},
        )
        == []
    )
    assert not torch.equal(best["ema"]["tokens"], best["raw"]["tokens"])
    for weights in ("ema", "raw"):
        cfg, net, state = load_run(tmp_path / "a", weights=weights)
        assert cfg == tiny.config(train={"ema": 0.5, "steps": 5}) and not net.training
        assert tiny.differences(net.state_dict(), best[weights]) == []
    summary = tiny.run(tmp_path / "b", train={"ema": 0.0, "steps": 5})
    assert tiny.checkpoint(tmp_path / "b", "best.pt")["ema"] is None and summary["weights"] == "raw"
    assert (
        tiny.differences(
            load_run(tmp_path / "b" / "best.pt")[1].state_dict(),
            tiny.checkpoint(tmp_path / "b")["net"],
        )
        == []
    )


def test_load_run_refuses_what_is_no_best_pt(tmp_path):
    tiny.run(tmp_path, train={"steps": 1})
    with pytest.raises(
        UserError,
        match=r"ckpt.pt: no best.pt of train.py \(it lacks raw\)",
    ):
        load_run(tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match="no such file, expected a checkpoint"):
        load_run(tmp_path / "gone.pt")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_run(tmp_path / "metrics.jsonl")


def test_a_file_that_would_run_code_is_not_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    torch.save({"config": Evil(), "shape": {}, "ema": None, "raw": {}}, tmp_path / "best.pt")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_run(tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_metrics_are_flat_lines_of_the_training_and_the_validation(tmp_path, early):
    tiny.run(tmp_path, model=HALTING["model"], train={"log_every": 2, "steps": 8, "eval_every": 4})
    raw = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["split"]) for line in raw] == [
        (2, "train"),
        (4, "train"),
        (4, "val"),
        (6, "train"),
        (8, "train"),
        (8, "val"),
    ]
    for line in raw:
        assert not any(isinstance(v, dict) for v in line.values()) and line["seconds"] >= 0
        if line["split"] == "train":
            assert {"loss", "answer_loss", "halt_loss", "halted", "lr"} <= line.keys() and line[
                "loss"
            ] > 0
            assert line["loss"] == pytest.approx(
                line["answer_loss"] + 0.5 * line["halt_loss"], abs=1e-5
            )
            assert ("exact" in line) == (line["halted"] > 0) == ("steps_at_halt" in line)
        else:
            assert line.keys() == {
                "step",
                "split",
                "exact",
                "cells",
                "valid",
                "steps",
                "n",
                "curve",
                "halting_exact",
                "halting_steps",
                "seconds",
            }
            assert line["n"] == 10 and len(line["curve"]) == 4
    assert [line["seconds"] for line in raw] == sorted(line["seconds"] for line in raw)
    assert raw[0]["lr"] == pytest.approx(0.01)  # the second of two warm-up steps
    assert (
        max(line.get("steps_at_halt", 0) for line in raw) <= 4
        and sum(line["halted"] for line in raw if "halted" in line) > 4
    )


def test_optional_losses_have_their_columns(tmp_path):
    tiny.run(tmp_path, model={"continue_loss": True, "ponder_weight": 0.1}, train={"steps": 1})
    line = tiny.lines(tmp_path, "train")[0]
    assert {"continue_loss", "ponder"} <= line.keys()
    assert line["loss"] == pytest.approx(
        line["answer_loss"]
        + 0.5 * line["halt_loss"]
        + 0.5 * line["continue_loss"]
        + 0.1 * line["ponder"],
        abs=1e-5,
    )


def test_the_summary_says_what_was_run_and_what_came_out(tmp_path):
    summary = tiny.run(tmp_path / "seed0")
    stored = json.loads((tmp_path / "seed0" / "summary.json").read_text())
    assert stored == json.loads(json.dumps(summary))
    assert {
        "entry",
        "hypothesis",
        "seed",
        "task",
        "test",
        "test_halting",
        "val",
        "best_step",
        "weights",
        "chosen",
        "baseline",
        "parameters",
        "depth",
        "steps",
        "flop",
        "test_puzzles",
        "seconds",
        "hardware",
        "commit",
        "data",
    } <= stored.keys()
    assert (stored["parameters"], stored["depth"], stored["steps"], stored["task"]) == (
        3298,
        2 * 2 * 1,
        10,
        "sudoku",
    )
    assert {"exact", "valid", "cells", "steps", "n", "curve"} == stored["test"].keys() and stored[
        "test"
    ]["n"] == 10
    assert stored["flop"] == 10 * (2 + 2) * (1 + 1) * net_flop(
        tiny.config().model, Shape(16, 6, 1, 2, 2), 4
    )
    assert (
        len(stored["test"]["curve"]) == 3 and stored["test"]["curve"][-1] == stored["test"]["exact"]
    )
    assert stored["baseline"]["cells"] > 0 and stored["data"]["rows"] == {
        "train": 30,
        "val": 10,
        "test": 10,
    }
    verdict = np.load(tmp_path / "seed0" / "test.npz")
    assert verdict["exact"].shape == (10,) and verdict["exact"].mean() == stored["test"]["exact"]


def test_time_spent_before_a_break_is_counted(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])

    def ten_seconds(run, breaks=math.inf):
        if run.step + 1 == breaks:
            raise tiny.Broken
        clock[0] += 10

    with pytest.raises(tiny.Broken):
        tiny.run(tmp_path, lambda run: ten_seconds(run, breaks=7))
    tiny.run(tmp_path, ten_seconds)
    raw = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["seconds"] for line in raw if line["split"] == "train"] == pytest.approx(
        [10.0 * i for i in range(1, 11)]
    )


# ---------------------------------------------------------------- wandb


def test_wandb_without_the_package_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main([str(tiny.entry(tmp_path)), f"--out={tmp_path}/runs", "--train.wandb=mazes"]) == 2
    assert capsys.readouterr() == (
        "",
        "error: train.wandb = 'mazes', but wandb is not installed; pip install wandb, "
        "or leave the key out\n",
    )
    assert not (tmp_path / "runs").exists()


def test_wandb_offline_writes_a_run(tmp_path, monkeypatch):
    pytest.importorskip(
        "wandb", reason="wandb is not installed: its offline mode is not tested here"
    )
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tiny.run(tmp_path / "seed0", train={"wandb": "mazes"})
    assert list((tmp_path / "seed0" / "wandb").glob("offline-run-*/*.wandb"))


def test_tensorboard_without_the_package_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.delattr(torch.utils, "tensorboard", raising=False)
    words = [str(tiny.entry(tmp_path)), f"--out={tmp_path}/runs", "--train.tensorboard=true"]
    assert main(words) == 2
    assert capsys.readouterr() == (
        "",
        "error: train.tensorboard = true, but tensorboard is not installed; "
        "pip install tensorboard, or leave the key out\n",
    )
    assert not (tmp_path / "runs").exists()


def test_tensorboard_writes_a_file_of_events(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    tiny.run(tmp_path / "seed0", train={"tensorboard": True})
    assert list((tmp_path / "seed0" / "tensorboard").glob("events.*"))


# ---------------------------------------------------------------- the shape of a run


def test_weights_of_one_size_refuse_another_test_size():
    def problems(model, test_size):
        return [
            p[:2]
            for p in tiny.config(
                model=model, data={"task": "maze", "size": 5, "test_size": test_size}
            ).problems()
        ]

    assert problems({"mixer": "conv"}, 7) == [] == problems({"mixer": "mlp"}, 5)
    for model in ({"mixer": "mlp"}, {"positions": "learned"}):
        assert problems(model, 7) == [("data", "test_size")]


def test_a_net_trained_on_one_size_is_tested_on_another(tmp_path):
    summary = tiny.run(
        tmp_path,
        model={"mixer": "conv"},
        data={"task": "maze", "size": 5, "test_size": 7},
        train={"steps": 3},
    )
    assert (
        summary["test"]["n"] > 0
        and summary["data"]["test_size"] == 7
        and len(summary["test"]["curve"]) == 3
    )


def test_the_tiny_net_learns(tmp_path):
    """4x4 Sudoku in seconds: the whole chain does what it is for.

    Data, recursion, halting, optimizer and averaging.
    """
    summary = tiny.run(
        tmp_path,
        model={"dim": 32, "n": 2, "n_layers": 1, "n_sup": 4, "halting": False, "loss": "softmax"},
        data={"train_rows": 300, "val_rows": 50, "test_rows": 50},
        train={
            "steps": 250,
            "batch_size": 32,
            "optimizer": "muon",
            "warmup": 20,
            "schedule": "cosine",
            "weight_decay": 0.1,
            "ema": 0.95,
            "clip": 1.0,
            "eval_every": 250,
            "log_every": 50,
        },
    )
    losses = [line["loss"] for line in tiny.lines(tmp_path, "train")]
    assert losses[-1] < 0.3 * losses[0]
    assert (
        summary["test"]["exact"] > 0.7
        and summary["baseline"]["exact"] == 0
        and summary["test"]["valid"] >= summary["test"]["exact"]
    )
