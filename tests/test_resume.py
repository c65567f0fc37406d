"""What may happen to a run between its start and its end: another process in its folder, other
data, other hardware, damage, signals at any time, half-set variables, too little memory.
"""

import errno
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import analyze
import optim
import runs
import tiny
import train as training
from config import UserError
from runs import Lock, TrainingError, World, birth, holder_of, load, save, write_atomic
from tasks.sudoku import Sudoku
from train import main

LONG = 600  # seconds after which a process that does nothing is a failure


def refused(capsys, words: list, code: int = 2) -> str:
    """The one sentence that a command ends with."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


# ---------------------------------------------------------------- two processes, one folder


@pytest.mark.slow
def test_the_second_process_in_a_folder_says_who_holds_it(tmp_path):
    entry, folder = tiny.entry(tmp_path), tmp_path / "runs" / "tiny" / "seed0"
    found = []

    def second():
        command = [entry, f"--out={tmp_path}/runs"]
        process = tiny.spawn(*command)
        found.append((*process.communicate(timeout=LONG), process.returncode))

    before = tmp_path / "whole"
    tiny.run(before)
    tiny.command(entry, f"--out={tmp_path}/runs", before_step=tiny.at(6, second))
    (out, err, code) = found[0]
    assert code == 2 and out == "" and err.count("\n") == 1
    assert str(folder) in err and f"process {os.getpid()} on {socket.gethostname()}" in err
    tiny.assert_same_run(before, folder)
    assert not (folder / ".lock").exists()


def test_the_lock_of_a_dead_process_is_none(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    lock = Lock(tmp_path, process.pid)
    lock.take()
    while birth(process.pid):  # a zombie is dead
        time.sleep(0.01)
    assert holder_of(tmp_path) is None
    process.wait()
    with Lock(tmp_path):
        assert holder_of(tmp_path).pid == os.getpid()
    assert holder_of(tmp_path) is None and not list(tmp_path.iterdir())


def test_a_number_that_another_process_has_now_is_not_the_holder(tmp_path):
    lock = Lock(tmp_path)
    lock.me = replace(lock.me, birth="1")
    lock.take()
    assert holder_of(tmp_path) is None


def on_another_machine(folder: Path) -> Lock:
    """A lock that a process on another machine has taken."""
    lock = Lock(folder)
    lock.me = replace(lock.me, host="n12", machine="another", pid=4711)
    lock.take()
    return lock


def test_a_holder_on_another_machine_lives_while_it_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "STILL", 1.5)
    lock = on_another_machine(tmp_path)
    assert holder_of(tmp_path).host == "n12"
    slept = []

    def touch(seconds):
        slept.append(seconds)
        os.utime(lock.path, (time.time(), time.time() + 1))

    monkeypatch.setattr(runs.time, "sleep", touch)
    with pytest.raises(UserError, match=r"process 4711 on n12 works here since"):
        Lock(tmp_path).take()
    assert len(slept) == 1


def test_a_holder_on_another_machine_that_is_silent_is_dead(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "STILL", 0.1)
    monkeypatch.setattr(runs.time, "sleep", lambda seconds, sleep=time.sleep: sleep(0.02))
    on_another_machine(tmp_path)
    with Lock(tmp_path):
        assert holder_of(tmp_path).pid == os.getpid()
    assert "process 4711 on n12 may work here" in capsys.readouterr().err


def test_a_lock_that_is_long_silent_or_no_lock_at_all_is_dead_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "STILL", 60.0)
    monkeypatch.setattr(runs.time, "sleep", lambda seconds: pytest.fail("it waits"))
    for text in ("", "[]", "{", "not a lock\n"):
        (tmp_path / ".lock").write_text(text)
        os.utime(tmp_path / ".lock", (0, time.time() - 3600))
        with Lock(tmp_path):
            assert holder_of(tmp_path).pid == os.getpid()


def test_a_process_that_was_taken_for_dead_writes_nothing_more(tmp_path):
    entry, folder = tiny.entry(tmp_path), tmp_path / "runs" / "tiny" / "seed0"
    before = []

    def taken_over():
        (folder / ".lock").unlink()
        on_another_machine(folder)
        before.append((folder / "ckpt.pt").read_bytes())

    with pytest.raises(TrainingError, match="process 4711 on n12 works here now"):
        tiny.command(entry, f"--out={tmp_path}/runs", before_step=tiny.at(8, taken_over))
    assert (folder / "ckpt.pt").read_bytes() == before[0] and not (folder / "summary.json").exists()
    assert holder_of(folder).host == "n12"


def test_a_run_that_does_not_begin_leaves_no_folder(tmp_path, capsys):
    words = [tiny.entry(tmp_path), f"--out={tmp_path}/runs", f"--data.train_path={tmp_path}/gone"]
    assert "gone" in refused(capsys, words)
    assert not (tmp_path / "runs").exists()


def test_what_a_killed_writer_left_is_removed(tmp_path):
    tiny.interrupted(tmp_path)
    for name in (".ckpt.pt.n12-1.tmp", ".ckpt.pt.tmp", ".job.json.n12-2.tmp"):
        (tmp_path / name).write_bytes(b"half")
    tiny.run(tmp_path)
    assert [p.name for p in tmp_path.glob(".*")] == [".job.json.n12-2.tmp"]


WRITER = """
import sys, time
from pathlib import Path
import torch
from runs import save
path, number, end = Path(sys.argv[1]), int(sys.argv[2]), time.time() + 2
state = {"who": number, "x": torch.full((100_000 + 50_000 * number,), float(number))}
while time.time() < end:
    save(path, state)
"""


@pytest.mark.slow
def test_two_writers_of_one_file_leave_it_whole(tmp_path):
    path = tmp_path / "ckpt.pt"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(k)], cwd=tiny.ROOT)
        for k in (1, 2)
    ]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            state = load(path)
            assert (state["x"] == state["who"]).all()
            seen += 1
        time.sleep(0.01)
    assert seen and [writer.returncode for writer in writers] == [0, 0]


# ---------------------------------------------------------------- the same run


def data_files(folder: Path, seed: int = 0) -> dict:
    """Keys of [data] that name a training and a test file in a new folder."""
    cfg = tiny.config(data={"seed": seed})
    dataset = training.data.load(cfg)
    folder.mkdir()
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        rows = ["question,answer"]
        for question, answer in zip(split.inputs, split.labels):
            texts = (Sudoku().text(cfg.data, tokens) for tokens in (question, answer))
            rows.append(",".join(texts))
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")
    paths = {f"{name}_path": str(folder / f"{name}.csv") for name in ("train", "test")}
    return paths | {"train_rows": 0, "test_rows": 0, "val_rows": 8}


def test_data_that_was_replaced_under_its_name_is_refused(tmp_path):
    rows = data_files(tmp_path / "data")
    tiny.interrupted(tmp_path / "run", data=rows)
    before = (tmp_path / "run" / "ckpt.pt").read_bytes()
    shutil.rmtree(tmp_path / "data")
    data_files(tmp_path / "data", seed=1)
    with pytest.raises(UserError, match=r"data.train_path = '.*train.csv' has SHA-256 .*expected"):
        tiny.run(tmp_path / "run", data=rows)
    assert (tmp_path / "run" / "ckpt.pt").read_bytes() == before


def test_the_same_bytes_under_another_path_are_the_same_data(tmp_path):
    rows = data_files(tmp_path / "here")
    tiny.run(tmp_path / "whole", data=rows)
    tiny.interrupted(tmp_path / "run", data=rows)
    os.rename(tmp_path / "here", tmp_path / "there")
    moved = {key: str(v).replace("here", "there") for key, v in rows.items() if "path" in key}
    summary = tiny.run(tmp_path / "run", data=rows | moved)
    assert set(summary["files"]) == {"data.train_path", "data.test_path"}
    assert tiny.lines(tmp_path / "run") == tiny.lines(tmp_path / "whole")
    again = tiny.run(tmp_path / "run", data=rows | moved)
    assert again["files"] == summary["files"], "finished, and no other run"
    other = data_files(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="was made with data.train_path"):
        tiny.run(tmp_path / "run", data=other)


def test_seeds_on_the_same_bytes_at_different_places_are_averaged(tmp_path):
    rows = data_files(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    there = {key: str(v).replace("here", "there") for key, v in rows.items() if "path" in key}
    for seed, paths in (
        (0, rows),
        (1, rows | there),
        (2, rows | data_files(tmp_path / "other", 1)),
    ):
        cfg = tiny.config(seed=seed, data=paths)
        training.train(cfg, tmp_path / "runs" / "tiny" / f"seed{seed}")
    groups = analyze.group(analyze.load_runs([tmp_path / "runs"]))
    assert sorted([run.seed for run in g.runs] for g in groups) == [[0, 1], [2]]


def test_a_run_keeps_the_dtype_that_it_began_with(tmp_path, monkeypatch):
    auto = {"train": {"dtype": "auto"}}
    bf16 = World(0, 1, torch.device("cpu"), torch.bfloat16, False)  # as on another machine
    with monkeypatch.context() as patch:
        patch.setattr(training, "make_world", lambda cfg: bf16)
        tiny.run(tmp_path / "whole", **auto)
        tiny.interrupted(tmp_path / "run", **auto)
    summary = tiny.run(tmp_path / "run", **auto)
    assert "bfloat16" in summary["hardware"]
    tiny.assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_the_summary_lists_what_computed_which_steps(tmp_path, monkeypatch, capsys):
    whole = tiny.run(tmp_path / "whole")
    assert [(s["from"], s["to"]) for s in whole["stretches"]] == [(0, 10)]
    assert whole["stretches"][0]["commit"] == whole["commit"]
    tiny.interrupted(tmp_path / "run")
    capsys.readouterr()
    monkeypatch.setattr(runs, "hardware", lambda world: "1 x Abacus, float32")
    monkeypatch.setattr(runs, "commit", lambda: "abc1234")
    summary = tiny.run(tmp_path / "run")
    out = capsys.readouterr().out
    assert "other than before step 6: commit abc1234 (was " in out
    assert "hardware 1 x Abacus, float32 (was 1 x " in out
    steps = [(s["from"], s["to"], s["commit"]) for s in summary["stretches"]]
    assert steps == [(0, 5, whole["commit"]), (5, 10, "abc1234")]
    assert summary["commit"] == "abc1234"


def test_a_run_that_goes_on_with_the_same_code_and_hardware_is_one_stretch(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(runs, "code_digest", lambda: "01234567")
    monkeypatch.setattr(runs, "commit", lambda: "abc1234")
    tiny.interrupted(tmp_path)
    tiny.interrupted(tmp_path, 6)
    summary = tiny.run(tmp_path)
    assert [(s["from"], s["to"]) for s in summary["stretches"]] == [(0, 10)]
    assert "other than before" not in capsys.readouterr().out


def test_a_checkpoint_of_an_older_version_goes_on(tmp_path):
    """It has "state" in the carry, the keys of every task in its config, and no word of data,
    dtype or stretches.
    """
    tiny.interrupted(tmp_path / "run")
    tiny.run(tmp_path / "whole")
    path = tmp_path / "run" / "ckpt.pt"
    state = torch.load(path, weights_only=True)
    for name in ("stretches", "files", "dtype"):
        del state[name]
    carry = state["processes"][0]["carry"]
    assert carry.pop("more") == {}
    carry["state"] = None
    state["config"] |= {"data.plant": "pendulum", "arc.mode": "query", "plan.dt": 0.1}
    torch.save(state, path)
    summary = tiny.run(tmp_path / "run")
    assert tiny.lines(tmp_path / "run") == tiny.lines(tmp_path / "whole")
    one, two = (tiny.checkpoint(tmp_path / name)["net"] for name in ("run", "whole"))
    assert tiny.differences(one, two) == []
    steps = [(s["from"], s["to"]) for s in summary["stretches"]]
    assert steps == [(0, 5), (5, 10)] and summary["stretches"][0]["commit"] == ""


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("steps", [1, 10])
def test_weights_are_checked_before_they_are_saved(steps, tmp_path, monkeypatch, capsys):
    """An update can overflow after a good loss, as with lr = 1e37."""
    entry, folder = tiny.entry(tmp_path), tmp_path / "runs" / "tiny" / "seed0"

    def overflow(optimizers, share):
        optimizers[0].param_groups[0]["params"][0].data.fill_(math.inf)

    monkeypatch.setattr(training, "set_rates", overflow)
    words = [f"--train.steps={steps}", "--train.eval_every=1"]
    sentence = refused(capsys, [entry, f"--out={tmp_path}/runs", *words], 3)
    assert "weights are not finite after step 1; last good checkpoint: none yet" in sentence
    assert sorted(p.name for p in folder.iterdir()) == ["config.toml", "metrics.jsonl"]


def test_an_average_that_is_not_finite_is_not_saved(tmp_path, monkeypatch, capsys):
    update = optim.EMA.update_parameters

    def poison(average, net):
        update(average, net)
        if average.n_averaged == 8:
            next(average.module.parameters()).data.view(-1)[0] = math.nan

    monkeypatch.setattr(optim.EMA, "update_parameters", poison)
    sentence = refused(capsys, [tiny.entry(tmp_path), f"--out={tmp_path}/runs"], 3)
    assert "weights are not finite after step 10" in sentence and "seed0/ckpt.pt" in sentence
    assert tiny.checkpoint(tmp_path / "runs" / "tiny" / "seed0")["step"] == 5


# ---------------------------------------------------------------- signals


@pytest.fixture
def default(monkeypatch):
    """SIGTERM and SIGHUP do what they do to a program that knows no handlers."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    yield
    for number, handler in zip(numbers, before):
        signal.signal(number, handler)


def test_a_closed_terminal_ends_in_a_checkpoint(tmp_path, default):
    hang_up = tiny.at(3, lambda: signal.raise_signal(signal.SIGHUP))
    with pytest.raises(SystemExit) as end:
        tiny.run(tmp_path, hang_up)
    assert end.value.code == 128 + signal.SIGHUP and tiny.checkpoint(tmp_path)["step"] == 3


def test_nohup_goes_on(tmp_path, default):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    hang_up = tiny.at(3, lambda: signal.raise_signal(signal.SIGHUP))
    assert tiny.run(tmp_path, hang_up)["steps"] == 10


def test_a_signal_before_the_first_step_is_said(tmp_path, monkeypatch, capsys, default):
    entry = tiny.entry(tmp_path)
    whole = Sudoku.load

    def stop(*args):
        signal.raise_signal(signal.SIGTERM)
        return whole(*args)

    monkeypatch.setattr(Sudoku, "load", stop)
    with pytest.raises(SystemExit) as end:
        main([str(entry), f"--out={tmp_path}/runs"])
    assert end.value.code == 128 + signal.SIGTERM and not (tmp_path / "runs").exists()
    assert "stopped by SIGTERM before the first step; there was nothing to save" in (
        capsys.readouterr().out
    )
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_in_the_last_test_is_said_and_the_test_is_done_again(
    tmp_path, monkeypatch, capsys, default
):
    tiny.run(tmp_path / "whole")
    whole = Sudoku.evaluate

    def stop(self, *args, **options):
        if options["progress"] == "test":
            signal.raise_signal(signal.SIGTERM)
        return whole(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Sudoku, "evaluate", stop)
        with pytest.raises(SystemExit) as end:
            tiny.run(tmp_path / "run")
    assert end.value.code == 128 + signal.SIGTERM
    out = capsys.readouterr().out
    assert "stopped by SIGTERM in the last test" in out and "ckpt.pt is complete" in out
    tiny.run(tmp_path / "run")
    tiny.assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_signal_while_the_net_is_compiled_does_not_wait(tmp_path, monkeypatch, capsys, default):
    world = World(0, 1, torch.device("cpu"), torch.float32, True)
    monkeypatch.setattr(training, "make_world", lambda cfg: world)
    monkeypatch.setattr(training, "compile_net", lambda *net: None)
    with pytest.raises(SystemExit):
        tiny.run(tmp_path, tiny.at(1, lambda: signal.raise_signal(signal.SIGTERM)))
    out = capsys.readouterr().out
    assert "the net is compiled in its first steps" in out
    assert "stopped by SIGTERM while the net was compiled" in out
    assert not (tmp_path / "ckpt.pt").exists()
    with pytest.raises(SystemExit):
        tiny.run(tmp_path, tiny.at(3, lambda: signal.raise_signal(signal.SIGTERM)))
    assert tiny.checkpoint(tmp_path)["step"] == 3, "later it finishes its step and saves"


class Ranks:
    """A stand-in for the run of two ranks: what the other one says is in `others`."""

    def __init__(self, others):
        self.step, self.others, self.asked = 0, others, []
        self.world = self
        self.size = 2

    def maxima(self, *values):
        self.asked.append(self.step)
        return [max(pair) for pair in zip(map(int, values), self.others)]


@pytest.mark.parametrize("seconds, expected", [(0.01, [1, 10, 20]), (4.0, list(range(1, 26)))])
def test_ranks_ask_each_other_often_enough_for_a_signal(seconds, expected, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(runs.time, "perf_counter", lambda: clock[0])
    run = Ranks((0, 0, 0))
    agree = runs.Agreement(run)
    for step in range(1, 26):
        clock[0] += seconds
        run.step = step
        agree(0, False)
    assert run.asked == expected
    run.step, run.others = 30, (signal.SIGTERM, 1, 0)
    assert agree(0, False) == (signal.SIGTERM, 1)


# ---------------------------------------------------------------- half-set variables


@pytest.mark.parametrize(
    "words",
    [
        {"WORLD_SIZE": "2"},
        {"RANK": "0"},
        {"LOCAL_RANK": "1"},
        {"RANK": "one", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": ""},
        {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"RANK": "-1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "0", "LOCAL_RANK": "0"},
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_PORT": ""},
    ],
    ids=str,
)
def test_half_set_variables_of_ranks_are_named(words, tmp_path, monkeypatch, capsys):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, word in words.items():
        monkeypatch.setenv(name, word)
    sentence = refused(capsys, [tiny.entry(tmp_path), f"--out={tmp_path}/runs"])
    assert all(name in sentence for name in runs.RANKS) and "torchrun" in sentence
    assert all(repr(word) in sentence for name, word in words.items() if name in runs.RANKS)
    assert not (tmp_path / "runs").exists()


def test_an_address_that_is_none_is_refused(tmp_path, monkeypatch, capsys):
    words = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}
    for name, word in (words | {"MASTER_PORT": "a word"}).items():
        monkeypatch.setenv(name, word)
    sentence = refused(capsys, [tiny.entry(tmp_path), f"--out={tmp_path}/runs"])
    assert "MASTER_PORT" in sentence and "a word" in sentence


# ---------------------------------------------------------------- advice that is taken


def test_a_run_that_died_before_its_first_checkpoint_may_change(tmp_path, capsys):
    entry, out = tiny.entry(tmp_path), f"--out={tmp_path}/runs"
    advice = refused(capsys, [entry, out, "--train.lr=1e30", "--train.warmup=0"], 3)
    assert "a smaller train.lr" in advice
    assert main([str(entry), out, "--train.warmup=0"]) == 0
    assert len(tiny.lines(tmp_path / "runs" / "tiny" / "seed0", "train")) == 10


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_too_little_memory_is_one_sentence_whose_advice_works(error, tmp_path):
    entry, out = tiny.entry(tmp_path), f"--out={tmp_path}/runs"
    with pytest.raises(TrainingError) as refusal:
        tiny.command(entry, out, before_step=tiny.at(2, tiny.throw(error)))
    sentence = str(refusal.value)
    assert "out of memory" in sentence and "--train.accumulate=2 " in sentence
    assert "another --out" not in sentence
    assert main([str(entry), out, "--train.accumulate=2"]) == 0


def test_another_runtime_error_is_no_question_of_memory(tmp_path):
    fail = tiny.throw(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        tiny.run(tmp_path, tiny.at(2, fail))


def test_without_a_compiler_the_net_runs_uncompiled_and_says_so(tmp_path, monkeypatch, capsys):
    def compile_nothing(*args, **options):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\n\nSet TORCH_LOGS")

    monkeypatch.setattr(torch, "compile", compile_nothing)
    summary = tiny.run(tmp_path, train={"compile": "on"})
    out = capsys.readouterr().out
    assert out.count("InvalidCxxCompiler") == 1 and "runs without it" in out
    assert "Set TORCH_LOGS" not in out and "compiled" not in summary["hardware"]


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["on", "off"])
def test_a_compiler_cache_that_cannot_be_written_is_no_end(compiled, tmp_path):
    """torch asks for it with any optimizer, whether anything is compiled or not."""
    (tmp_path / "wall").write_text("a file, not a folder")
    process = tiny.spawn(
        tiny.entry(tmp_path),
        f"--out={tmp_path}/runs",
        f"--train.compile={compiled}",
        "--train.steps=2",
        env={"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "wall" / "cache")},
    )
    out, err = process.communicate(timeout=LONG)
    assert process.returncode == 0, err
    assert out.count("torch.compile does not work here") == (compiled == "on")
    assert ("TORCHINDUCTOR_CACHE_DIR" in out) == (compiled == "on") and "Traceback" not in err


# ---------------------------------------------------------------- damage


def test_a_flipped_byte_of_a_checkpoint_is_found(tmp_path):
    path, g = tmp_path / "ckpt.pt", random.Random(0)
    state = {"step": 7, "net": {"w": torch.arange(5000.0)}, "config": {"lr": 0.1}}
    save(path, state)
    whole, found = path.read_bytes(), 0
    for _ in range(300):
        at = g.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << g.randrange(8)]) + whole[at + 1 :])
        try:
            assert tiny.differences(load(path), state) == []  # a byte that carries nothing
        except UserError as e:
            assert str(path) in str(e)
            found += 1
    assert found > 250


def damaged(state: dict, kind: str) -> dict:
    """A checkpoint with one fault."""
    changed = dict(state)
    if kind == "net of another size":
        changed["net"] = {k: v[:1] for k, v in state["net"].items()}
    elif kind == "no processes":
        changed["processes"] = None
    elif kind == "no carry":
        changed["processes"] = [{}]
    elif kind == "optimizers of another kind":
        changed["optimizers"] = []
    elif kind == "config is a list":
        changed["config"] = []
    elif kind == "another configuration":
        changed["config"] = state["config"] | {"train.lr": 0.5}
    else:
        del changed[kind]
    return changed


@pytest.mark.parametrize(
    "kind",
    [
        "net of another size",
        "no processes",
        "no carry",
        "optimizers of another kind",
        "config is a list",
        "another configuration",
        "step",
        "net",
        "config",
    ],
)
def test_a_foreign_or_partial_checkpoint_is_one_sentence(kind, tmp_path, capsys):
    folder = tmp_path / "runs" / "tiny" / "seed0"
    tiny.interrupted(folder)
    save(folder / "ckpt.pt", damaged(torch.load(folder / "ckpt.pt", weights_only=True), kind))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    sentence = refused(capsys, [tiny.entry(tmp_path), f"--out={tmp_path}/runs"])
    expected = "train.lr = 0.5" if kind == "another configuration" else str(folder / "ckpt.pt")
    assert expected in sentence
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_damaged_lines_of_metrics_do_not_block_a_resume(tmp_path, capsys):
    tiny.run(tmp_path / "whole")
    tiny.interrupted(tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    first, rest = path.read_bytes().split(b"\n", 1)
    bad = [b"\xff\xfe{}", b"[1, 2]", b"{}", b'{"step": "two"}', b"null", b"{" * 9, b"[" * 99_999]
    path.write_bytes(b"\n".join([first, *bad, rest]) + b'{"step": 8, "lo')
    tiny.run(tmp_path / "run")
    assert "metrics.jsonl: dropped 7 damaged line(s)" in capsys.readouterr().err
    assert tiny.lines(tmp_path / "run") == tiny.lines(tmp_path / "whole")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '"done"', "\xff"])
def test_a_damaged_summary_is_one_sentence(text, tmp_path, capsys):
    folder = tmp_path / "runs" / "tiny" / "seed0"
    tiny.interrupted(folder)
    (folder / "summary.json").write_bytes(text.encode("latin-1"))
    words = [tiny.entry(tmp_path), f"--out={tmp_path}/runs"]
    sentence = refused(capsys, words)
    assert f"{folder}/summary.json: not a readable summary" in sentence and "delete it" in sentence
    (folder / "summary.json").unlink()
    assert main([str(word) for word in words]) == 0


def test_a_checkpoint_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    def forbidden(*args, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(runs.zipfile, "ZipFile", forbidden)
    with pytest.raises(UserError, match=r"ckpt.pt: cannot read the checkpoint \(Permission denied"):
        load(tmp_path / "ckpt.pt")


def test_a_write_that_is_broken_off_leaves_nothing(tmp_path):
    def write(file):
        file.write(b"half")
        raise tiny.Broken

    with pytest.raises(tiny.Broken):
        write_atomic(tmp_path / "a.json", write)
    assert not list(tmp_path.iterdir())
    with pytest.raises(TrainingError, match="cannot write"):
        write_atomic(tmp_path / "no" / "a.json", lambda file: None)


# ---------------------------------------------------------------- versions


@pytest.mark.slow
def test_torch_without_muon_concerns_only_who_uses_it(tmp_path):
    start = f"import sys, torch; del torch.optim.Muon; sys.path.insert(0, {str(tiny.ROOT)!r}); "
    start += "import train; sys.exit(train.main(sys.argv[1:]))"
    words = [str(tiny.entry(tmp_path)), "--train.steps=1"]
    for more, code in ([], 0), (["--train.optimizer=muon"], 2):
        done = subprocess.run(
            [sys.executable, "-c", start, *words, f"--out={tmp_path}/runs{code}", *more],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: train.optimizer = 'muon', but torch ")
    assert "2.9" in done.stderr and done.stderr.count("\n") == 1


def test_digests_of_folders_know_names_and_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "1.json").write_text("{}")
    one = runs.digest_of_files(str(tmp_path / "a"))
    assert one == runs.digest_of_files(str(tmp_path / "b"))
    assert one != runs.digest_of_files(f"{tmp_path / 'a'},{tmp_path / 'b'}")
    (tmp_path / "b" / "deep" / "1.json").rename(tmp_path / "b" / "deep" / "2.json")
    assert one != runs.digest_of_files(str(tmp_path / "b"))
    np.save(tmp_path / "x.npy", np.arange(3))
    assert len(runs.digest_of_files(str(tmp_path / "x.npy"))) == 64
