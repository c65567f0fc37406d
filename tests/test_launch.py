"""The launcher.

What it refuses, what it would submit, copies of the code, what is still to do, runs here,
and runs on a real SLURM.
"""

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import analyze
import runs
import submitit_launch as launcher
import tiny
from config import SlurmConfig, UserError, load_config, minutes, slurm_config
from submitit_launch import parameters
from test_train import LONG, wait_for_step
from train import Config, load_run

LONG_RUN = {
    "model": {"n_sup": 4, "explore": 0.5, "n": 2},
    "train": {"steps": 400, "eval_every": 100, "grokfast": "ema"},
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, with a folder for entries, where no SLURM is in reach."""
    monkeypatch.chdir(tmp_path)
    which = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name: None if name in ("sbatch", "squeue") else which(name)
    )
    (tmp_path / "sweeps" / "small").mkdir(parents=True)
    return tmp_path / "sweeps" / "small"


def lines_of(capsys) -> tuple[list[str], list[str]]:
    captured = capsys.readouterr()
    return captured.out.splitlines(), captured.err.splitlines()


def launch(*words) -> int:
    return launcher.main([str(word) for word in words])


# ---------------------------------------------------------------- the table [slurm]


def test_slurm_keys_of_the_command_line_beat_the_entry_its_base_and_slurm_toml(here):
    (here.parent / "slurm.toml").write_text(
        '[slurm]\npartition = "shared"\ntime = "1h"\ncpus = 3\nqos = "low"\n'
    )
    tiny.entry(here, "base.toml", slurm={"time": "2h", "cpus": 4, "gpus": 1})
    entry = here / "top.toml"
    entry.write_text('base = "base.toml"\n[slurm]\ncpus = 5\ngpus = 2\n')
    assert slurm_config(entry, {"slurm": {"gpus": 8}}) == SlurmConfig(
        partition="shared", qos="low", time="2h", cpus=5, gpus=8
    )


def test_durations_are_minutes():
    good = {
        "90m": 90,
        "12h": 720,
        "1d12h": 2160,
        "2d": 2880,
        "1h30m": 90,
        "01:30:00": 90,
        "1-00:00:01": 1441,
    }
    assert {text: minutes(text) for text in good} == good
    assert [minutes(text) for text in ("", "soon", "12", "h", "1.5h", "30m1h", "10:00")] == [0] * 7


def test_every_slurm_key_reaches_the_script_that_sbatch_gets(here):
    cfg = SlurmConfig(
        partition="gpu",
        account="lab",
        qos="low",
        constraint="a|b",
        time="2h",
        nodes=3,
        gpus=4,
        tasks=2,
        cpus=7,
        memory="16GB",
        max_parallel=1,
        signal_delay=77,
        requeue=0,
        setup="module load cuda",
        options="--exclude=n12 --exclusive",
    )
    entry = tiny.entry(here, train={"batch_size": 12})
    cfg_run = load_config(Config, entry, {})
    both = [launcher.Run(entry, cfg_run, cfg, runs.run_folder(cfg_run, entry))] * 2
    text = launcher.script(both, Path("runs/.launch/TIME"))
    for line in (
        "partition=gpu",
        "account=lab",
        "qos=low",
        "constraint='a|b'",
        "time=120",
        "nodes=3",
        "gpus-per-node=4",
        "ntasks-per-node=2",
        "cpus-per-task=7",
        "mem=16GB",
        "array=0-1%1",
        "signal=USR2@77",
        "no-requeue",
        "exclude=n12",
        "exclusive",
        f"chdir={here.parent.parent}/runs/.launch/TIME/code",
    ):
        assert f"#SBATCH --{line}\n" in text, line
    assert (
        "\nmodule load cuda\n" in text
        and "export OMP_NUM_THREADS=7\n" in text
        and " --cpus-per-task=7 " in text
    )
    for key, default in vars(SlurmConfig()).items():
        assert getattr(cfg, key) != default, f"{key} is not tested"


def test_defaults_ask_for_one_process_that_may_come_back():
    made = parameters(SlurmConfig(), "name", Path("/code"))
    assert not {"partition", "gpus_per_node", "mem"} & made.keys() and made["ntasks_per_node"] == 1
    assert made["additional_parameters"] == {"chdir": "/code", "requeue": True}
    assert (
        parameters(SlurmConfig(gpus=4), "name", Path("/code"))["ntasks_per_node"]
        == 4
        == SlurmConfig(gpus=4).processes
    )


@pytest.mark.parametrize(
    "table, sentence",
    [
        ('[slurm]\ntime = "soon"', r"{e} \[slurm\]: time = 'soon', expected a duration like .*"),
        ("[slurm]\nnodes = 0", r"{e} \[slurm\]: nodes = 0, expected at least 1"),
        ("[slurm]\ngpu = 1", r"{e} \[slurm\]: unknown key 'gpu', did you mean 'gpus'\?"),
        (
            "[slurm]\ncpus = 'two'",
            r"{e} \[slurm\]: cpus = 'two', expected an integer \(default 1\)",
        ),
        ('[slurm]\nmemory = "much"', r"{e} \[slurm\]: memory = 'much', expected a size like .*"),
        (
            '[slurm]\noptions = "-x n12"',
            r"{e} \[slurm\]: options = '-x n12', expected long options .*",
        ),
        (
            '[slurm]\ntime = "2m"',
            (
                r"{e} \[slurm\] \(default\): signal_delay = 120, "
                r"expected fewer seconds than time = '2m' has, .*"
            ),
        ),
        ("slurm = 3", r"{e}: slurm = 3, expected a table \[slurm\]"),
    ],
)
def test_a_wrong_slurm_table_is_refused_by_train_and_launcher_in_one_sentence(
    table, sentence, here, capsys
):
    import train

    path = tiny.entry(here)
    path.write_text(
        f"{table}\n{path.read_text()}" if "[" not in table else f"{path.read_text()}{table}\n"
    )
    for program in (train.main, launcher.main):
        assert program([str(path)]) == 2
        out, err = lines_of(capsys)
        assert (
            out == []
            and len(err) == 1
            and re.fullmatch("error: " + sentence.format(e=re.escape(str(path))), err[0])
        ), err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "key", ["partition", "account", "qos", "constraint", "time", "memory", "setup", "options"]
)
@pytest.mark.slow
def test_control_characters_in_the_slurm_table_are_refused(key, here, capsys):
    import train

    for text in ("a\nb", "a\rb", "a\x1bb", "a\x7fb"):
        entry = tiny.entry(here)
        with open(entry, "a") as file:
            file.write(f"[slurm]\n{key} = {json.dumps(text)}\n".replace("\x7f", "\\u007f"))
        for program in (train.main, launcher.main):
            assert program([str(entry)]) == 2
            out, err = lines_of(capsys)
            assert out == [] and len(err) == 1
            assert f"{entry} [slurm]: {key} = {text!r}, expected one line without" in err[0]


def test_the_slurm_table_of_an_entry_is_nothing_to_the_run(here):
    import train

    entry = tiny.entry(here)
    assert train.main([str(entry), "--train.steps=4"]) == 0
    (Path("runs/small/tiny/seed0/summary.json")).unlink()
    tiny.entry(here, slurm={"partition": "gpu", "gpus": 8})
    assert train.main([str(entry), "--train.steps=4"]) == 0, "it continues"
    assert "[slurm]" not in Path("runs/small/tiny/seed0/config.toml").read_text()


# ------------------------------------------------------ all is checked before anything is submitted


def test_one_wrong_key_in_the_seventh_entry_submits_nothing(here, capsys):
    for k in range(6):
        tiny.entry(here, f"e{k}.toml")
    tiny.entry(here, "e6.toml", model={"expansoin": 2})
    for words in ([], ["--dry-run"], ["--local"]):
        assert launch("sweeps/small", *words) == 2
        assert lines_of(capsys) == (
            [],
            [
                "error: sweeps/small/e6.toml [model]: unknown key 'expansoin', "
                "did you mean 'expansion'?"
            ],
        )
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "words, sentence",
    [
        (
            [],
            (
                r"command line: no entry, "
                r"expected .toml files or folders of them, like sweeps/ablation/"
            ),
        ),
        (
            ["sweeps/nothing.toml"],
            r"sweeps/nothing.toml: cannot read the entry \(No such file or directory\)",
        ),
        (["sweeps"], r"sweeps: no entry in this folder, expected .toml files"),
        (
            ["sweeps/small", "--seeds=0-3"],
            r"command line: --seeds=0-3, expected numbers with commas between, like 0,1,2",
        ),
        (
            ["sweeps/small", "--seeds=0,0"],
            (
                r"sweeps/small/tiny.toml and sweeps/small/tiny.toml "
                r"both belong in runs/small/tiny/seed0; .*"
            ),
        ),
        (
            ["sweeps/small", "--seed=1"],
            r"command line: unknown key '--seed=1', did you mean --seeds or --data.seed\?",
        ),
        (
            ["sweeps/small", "--slurm.prtition=x"],
            r"command line: unknown key '--slurm.prtition=x', did you mean 'slurm.partition'\?",
        ),
        (
            ["sweeps/small", "--slurm.nodes=many"],
            r"command line \[slurm\]: nodes = 'many', expected an integer \(default 1\)",
        ),
        (
            ["sweeps/small", "--train.steps=0"],
            r"command line \[train\]: steps = 0, expected at least 1",
        ),
        (
            ["sweeps/small", "--jobs=2"],
            (
                r"command line: --jobs=2, expected --local beside it; "
                r"on SLURM it is --slurm.max_parallel"
            ),
        ),
        (
            ["sweeps/small", "--slurm.tasks=3"],
            r"sweeps/small/tiny.toml: train.batch_size = 4, expected a multiple of 3 processes .*",
        ),
        (
            ["sweeps/small", "--data.train_path=none.csv"],
            r"sweeps/small/tiny.toml: data.train_path = 'none.csv', but there is no such file; .*",
        ),
        (
            ["sweeps/small", "--data.generate=false"],
            (
                r"sweeps/small/tiny.toml: data.train_path is empty and data.generate = false, "
                r"expected a file; .*"
            ),
        ),
        (
            ["sweeps/small"],
            r"no sbatch here, so nothing was submitted: .* or run the entries here with --local",
        ),
    ],
)
def test_what_cannot_be_launched_is_refused_in_one_sentence(words, sentence, here, capsys):
    tiny.entry(here)
    assert launch(*words) == 2
    _, err = lines_of(capsys)
    assert len(err) == 1 and re.fullmatch("error: " + sentence, err[0]), err
    assert not Path("runs").exists()


EVIL = "x\ntouch hacked #'\\\"$(touch hacked)"


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\x7fb", EVIL, os.fsdecode(b"a\xff")])
def test_a_name_that_could_be_a_line_of_a_script_is_refused(name, here, capsys):
    tiny.entry(here, f"{name.replace('/', '_')}.toml")
    for words in (["sweeps/small", "--dry-run"], ["sweeps/small", "--local"]):
        assert launch(*words) == 2
        out, err = lines_of(capsys)
        assert out == [] and len(err) == 1 and err[0].isprintable()
        assert err[0].startswith("error: ") and "without control characters" in err[0]
    assert launch(tiny.entry(here, "good.toml"), "--dry-run", "--out", "a\nb") == 2
    assert "without control characters" in lines_of(capsys)[1][0] and not Path("runs").exists()


@pytest.mark.slow
def test_what_is_shown_and_submitted_is_quoted_for_a_shell(here, capsys):
    odd = 'it\'s $(touch hacked); \\ "a|b"'
    tiny.entry(here, f"{odd}.toml")
    assert launch("sweeps/small", "--dry-run", "--out", "my runs") == 0
    out, _ = lines_of(capsys)
    (shown,) = [line for line in out if line.startswith("python train.py ")]
    words = ["python", "train.py", f"my runs/.launch/TIME/sweeps/small/{odd}.toml"]
    assert shlex.split(shown) == [*words, "--seed=0", "--out=my runs"]
    text = "\n".join(out).partition("#!/bin/bash")[2]
    name = re.search("^#SBATCH --job-name=(.*)$", text, re.MULTILINE)[1]
    assert re.fullmatch(r"[\w.-]+", name)
    command = next(line for line in text.splitlines() if "submitit.core._submit" in line)
    assert shlex.split(command)[-1] == f"{Path.cwd()}/my runs/.launch/TIME/logs"
    assert launch("sweeps/small", "--local", "--out", "my runs", "--train.steps=2") == 0
    out, _ = lines_of(capsys)
    assert shlex.split(out[-1])[-1] == "my runs/small" and not list(Path().glob("hacked"))


def test_the_script_of_a_dry_run_is_the_one_that_sbatch_gets(here, monkeypatch, capsys):
    """A stand-in for sbatch keeps the script. The folder has a space and a quote in its name."""
    monkeypatch.undo()
    work = here.parent.parent / "it's here"
    (work / "bin").mkdir(parents=True)
    monkeypatch.chdir(work)
    for name, lines in {
        "sbatch": 'cp "${@: -1}" kept.sh; echo "Submitted batch job 42"',
        "squeue": "true",
        "srun": "true",
    }.items():
        (work / "bin" / name).write_text(f"#!/bin/bash\n{lines}\n")
        (work / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{work}/bin:{os.environ['PATH']}")
    entry = tiny.entry(here, slurm={"partition": "a b", "options": "--comment='x y'"})
    assert launch(entry) == 0
    kept = Path("kept.sh").read_text()
    lines_of(capsys)
    Path("runs/small/tiny/seed0/job.json").unlink()
    assert launch(entry, "--dry-run") == 0
    (at,) = (path for path in Path("runs/.launch").iterdir() if path.is_dir())
    shown = capsys.readouterr().out.replace("/TIME/", f"/{at.name}/")
    assert kept in shown and "#SBATCH --partition='a b'" in kept
    assert subprocess.run(["bash", "-n", "kept.sh"]).returncode == 0


def test_a_folder_of_another_configuration_is_refused(here, capsys):
    tiny.run(Path("runs/small/tiny/seed0"))
    tiny.entry(here, train={"lr": 0.02})
    lines_of(capsys)
    assert launch("sweeps/small", "--dry-run") == 2
    assert (
        "runs/small/tiny/seed0 was made with train.lr = 0.01, this command says 0.02"
        in lines_of(capsys)[1][0]
    )


# ---------------------------------------------------------------- dry run


def test_a_dry_run_shows_scripts_and_commands_and_writes_nothing(here, capsys):
    tiny.entry(here, "a.toml")
    tiny.entry(here, "b.toml", slurm={"time": "3h"})
    (here.parent / "slurm.toml").write_text("[slurm]\nmax_parallel = 2\n")
    assert (
        launch(
            "sweeps/small/",
            "--seeds",
            "0,1,2",
            "--dry-run",
            "--slurm.partition=gpu",
            "--train.lr=0.5",
            "--out=else",
        )
        == 0
    )
    out, err = lines_of(capsys)
    assert err == [] and [line for line in out if line.startswith("new ")] == [
        f"new       small/{e} s{s} -> else/small/{e}/seed{s}" for e in "ab" for s in range(3)
    ]
    assert out.count("#SBATCH --array=0-2%2") == 2 == out.count("#SBATCH --partition=gpu")
    assert {"#SBATCH --time=720", "#SBATCH --time=180"} < set(out)
    assert out[-7:] == [
        "would submit 6 of 6 run(s), with a copy of the code in else/.launch/TIME/code:"
    ] + [
        f"python train.py else/.launch/TIME/sweeps/small/{e}.toml --seed={s} --out=else"
        for e in "ab"
        for s in range(3)
    ]
    assert not Path("else").exists() and not Path("runs").exists()


def test_a_dry_run_says_when_data_are_missing(here, capsys):
    tiny.entry(here, data={"test_path": "data/none.csv"})
    assert launch("sweeps/small", "--dry-run") == 0
    assert lines_of(capsys)[0][-1].startswith(
        "but not yet: sweeps/small/tiny.toml: data.test_path = 'data/none.csv', "
        "but there is no such file;"
    )


# ---------------------------------------------------------------- copies of the code


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A small git repository that takes the place of ours.

    One file is changed, one new, one ignored, one deleted.
    """
    root = tmp_path / "clone"
    (root / "results").mkdir(parents=True)
    for name, text in {
        "results/summary.json": "{}",
        "train.py": "old\n",
        "gone.py": "",
        ".gitignore": "*.log\nruns/\n",
    }.items():
        (root / name).write_text(text)
    for words in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=n", "-c", "user.email=e@example.org", "commit", "-qm", "m"],
    ):
        subprocess.run(["git", "-C", root, *words], check=True)
    (root / "train.py").write_text("new\n")
    (root / "fresh.py").write_text("fresh\n")
    (root / "noise.log").write_text("noise\n")
    (root / "gone.py").unlink()
    monkeypatch.setattr(launcher, "ROOT", root)
    return root


@pytest.mark.slow
def test_the_folder_of_launches_is_private(here, monkeypatch, capsys):
    os.umask(before := os.umask(0))
    tiny.entry(here, train={"steps": 2})
    assert launch("sweeps/small", "--local") == 0
    folder = Path("runs/.launch")
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)  # of an older version
    assert launcher.make_private(Path("runs")).stat().st_mode & 0o777 == 0o700
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    with pytest.raises(UserError, match="runs/.launch belongs to another user, expected one of"):
        launcher.make_private(Path("runs"))
    os.umask(before)


def planned(entry: Path, **overrides) -> list:
    return launcher.plan_runs([entry], "0,1", [("", overrides)], local=False)


def test_the_copy_has_tracked_and_new_files_as_they_are_and_the_difference_to_the_commit(
    clone, here, tmp_path
):
    made = tmp_path / "clone" / "made"  # not ignored, but results are not code
    (made / "old").mkdir(parents=True)
    (made / "old" / "ckpt.pt").write_text("big")
    entry = tiny.entry(here)
    at = launcher.snapshot(planned(entry, out=str(made), model={"n": 2}))
    assert sorted(
        str(p.relative_to(at / "code")) for p in (at / "code").rglob("*") if p.is_file()
    ) == [".gitignore", "COMMIT", "fresh.py", "train.py"]
    assert (at / "code" / "train.py").read_text() == "new\n" and "-old\n+new\n" in (
        at / "diff.patch"
    ).read_text()
    assert "deleted file" in (at / "diff.patch").read_text()
    assert launcher.snapshot(planned(entry, out=str(made))) != at, "another launch, another copy"
    copy = load_config(Config, at / "sweeps" / "small" / "tiny.toml", {})
    assert copy == load_config(Config, entry, {"seed": 1, "out": str(made), "model": {"n": 2}}), (
        "with overrides"
    )
    assert (
        runs.run_folder(copy, at / "sweeps" / "small" / "tiny.toml")
        == made / "small" / "tiny" / "seed1"
    )


def test_without_git_the_program_is_copied(clone, here):
    shutil.rmtree(clone / ".git")
    at = launcher.snapshot(planned(tiny.entry(here)))
    assert sorted(p.name for p in (at / "code").iterdir()) == ["COMMIT", "fresh.py", "train.py"]


@pytest.mark.slow
def test_a_run_of_a_copy_knows_the_commit_it_was_made_from(here, monkeypatch):
    tiny.entry(here, train={"steps": 2})
    monkeypatch.setattr(launcher, "commit", lambda: "c0ffee+")
    assert launch("sweeps/small", "--local") == 0
    (at,) = Path("runs/.launch").iterdir()
    summary = json.loads(Path("runs/small/tiny/seed0/summary.json").read_text())
    assert summary["commit"] == "c0ffee+" and summary["entry"] == str(at / "sweeps/small/tiny.toml")


# ---------------------------------------------------------------- what is still to do


def test_the_next_launch_takes_what_is_neither_finished_nor_running_nor_queued(
    here, monkeypatch, capsys
):
    for name in ("done", "computes", "waits", "broke", "killed", "halfway", "another", "fresh"):
        tiny.entry(here, f"{name}.toml")
    tiny.run(Path("runs/small/done/seed0"))
    plans = {
        run.entry.stem: run
        for run in launcher.plan_runs([here.relative_to(Path.cwd())], "", [("", {})], local=False)
    }
    for k, name in enumerate(("computes", "waits", "broke", "killed", "halfway", "another")):
        launcher.prepare(plans[name], {"job": f"7_{k}", "code": "/there", "log": f"{name}.log"})
    Path("broke.log").write_text(
        "Traceback (most recent call last):\nRuntimeError: boom\n"
        "srun: error: node: task 0: Exited with exit code 1\n"
    )
    Path("killed.log").write_text(
        "data  maze\n\rtiny s0:  46%|####      | 3/6\n"
        "slurmstepd: error: Detected 1 oom-kill event(s)\n"
    )
    Path("halfway.log").write_text(
        "stopped by SIGTERM after step 3; runs/x/ckpt.pt is complete, the same command continues\n"
        "slurmstepd: error: *** STEP 7.0 ON node CANCELLED AT 2026-11-21T10:00:00 ***\n"
    )
    launcher.note_stop(plans["halfway"].folder, signal.SIGTERM)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    # 7_5 is another cluster's job of this number
    lines_of(capsys)
    monkeypatch.setattr(
        launcher,
        "queue",
        lambda: {
            ("7_0", "/there"): "RUNNING",
            ("7_1", "/there"): "PENDING",
            ("7_5", "/elsewhere"): "RUNNING",
        },
    )
    assert launch("sweeps/small", "--dry-run") == 0
    out, _ = lines_of(capsys)
    states = {
        line.split()[1].removeprefix("small/"): line.partition("seed0")[2]
        for line in out
        if " s0 -> " in line
    }
    assert {
        name: line.split()[0]
        for line in out
        if " s0 -> " in line
        for name in [line.split()[1].removeprefix("small/")]
    } == {
        "another": "failed",
        "broke": "failed",
        "computes": "running",
        "done": "finished",
        "fresh": "new",
        "halfway": "stopped",
        "killed": "failed",
        "waits": "queued",
    }
    assert states["computes"] == ": job 7_0" and states["broke"] == ": RuntimeError: boom"
    assert (
        states["killed"] == ": slurmstepd: error: Detected 1 oom-kill event(s)"
        and "            Traceback (most recent call last):" in out
    )
    assert (
        states["halfway"].startswith(": at step 0 of 10: stopped by SIGTERM")
        and "% exact" in states["done"]
    )
    assert states["another"] == ": it left no log; cancelled before it began?"
    assert [
        line.split("/")[-1].split(".")[0] for line in out if line.startswith("python train.py")
    ] == ["another", "broke", "fresh", "halfway", "killed"]


@pytest.mark.parametrize(
    "log, reason",
    [
        ("run    runs/x\nmodel  TRM\ndata   maze\n", "killed"),
        ("data   maze\nsrun: error: localhost: task 0: Killed\n", "killed"),
        ("srun: error: localhost: task 0: Killed\n", "killed"),
        ("data   maze\nsrun: error: n1: tasks 0-3: Out Of Memory\n", "killed: Out Of Memory"),
        (
            "data   maze\nsrun: error: n1: task 1: Segmentation fault\n",
            "killed: Segmentation fault",
        ),
        ("submitit INFO (2026-01-01) - Loading pickle\n", "killed"),
        ("encoder kind=standard\n\rx s0:  46%|####      | 3/6\n", "killed"),
        ("data   maze\nRuntimeError: boom\n", "RuntimeError: boom"),
        ("bash: line 7: module: command not found\n", "bash: line 7: module: command not found"),
        ("data   maze\nerror: no \x1b[2J\n", r"no \x1b[2J"),
        ("", "it left no log; cancelled before it began?"),
    ],
)
def test_a_job_that_could_not_say_why_it_ended_was_killed(log, reason, here):
    tiny.entry(here)
    (run,) = launcher.plan_runs([here], "", [("", {})], local=True)
    launcher.prepare(run, {"job": "7", "code": "/there", "log": "the.log"})
    Path("the.log").write_text(log)
    assert launcher.state_of(run, {}) == ("failed", reason)


@pytest.mark.parametrize("text", ["", "[]", "7", '{"log": 5}', '{"job": {}}', "[" * 5000, "\xff"])
def test_a_damaged_job_file_is_a_run_that_was_never_started(text, here):
    tiny.entry(here)
    (run,) = launcher.plan_runs([here], "", [("", {})], local=True)
    run.folder.mkdir(parents=True)
    (run.folder / "job.json").write_text(text)
    assert launcher.state_of(run, {}) == ("new", "")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"test": {"exact": "x"}}', "{" * 9])
def test_a_damaged_summary_is_said_so(text, here):
    tiny.entry(here)
    (run,) = launcher.plan_runs([here], "", [("", {})], local=True)
    run.folder.mkdir(parents=True)
    (run.folder / "summary.json").write_text(text)
    state, note = launcher.state_of(run, {})
    assert state == "finished" and "summary.json cannot be read" in note


def test_a_run_that_another_launch_has_taken_meanwhile_is_left_to_it(here, monkeypatch, capsys):
    """Between the first look, without a lock, and the second one."""
    for name in "ab":
        tiny.entry(here, f"{name}.toml")
    runs_ = launcher.plan_runs([here], "", [("", {})], local=True)
    looks = [[("new", "")] * 2, [("queued", "job 7_0"), ("new", "")]]
    monkeypatch.setattr(launcher, "states_of", lambda runs: looks.pop(0))
    submitted = []
    monkeypatch.setattr(launcher, "submit", lambda runs, launch: submitted.extend(runs) or [])
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert launch("sweeps/small") == 0
    assert [run.name for run in submitted] == [runs_[1].name]
    assert "queued    small/a s0: job 7_0, by another launch" in capsys.readouterr().out


@pytest.mark.slow
def test_a_second_launch_waits_until_the_first_has_submitted(here, capfd):
    tiny.entry(here, train={"steps": 2})
    program = (
        "import sys, time; from pathlib import Path; import submitit_launch as launcher\n"
        "with launcher.one_launch(Path('runs')): print('locked', flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(tiny.ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert first.stdout.readline() == b"locked\n"
    begun, waited = time.monotonic(), []
    until_it_ends = threading.Timer(2, lambda: waited.append(first.communicate()))
    until_it_ends.start()
    with launcher.one_launch(Path("runs")):
        assert time.monotonic() - begun >= 1.9
    until_it_ends.join()
    assert first.returncode == 0
    err = capfd.readouterr().err
    assert err.count("waiting for another launch") == 1 and str(first.pid) in err


def test_a_finished_sweep_submits_nothing(here, capsys):
    tiny.entry(here)
    tiny.run(Path("runs/small/tiny/seed0"))
    lines_of(capsys)
    assert launch("sweeps/small") == 0
    assert (
        lines_of(capsys)[0][-1] == "analyse   python analyze.py runs/small"
        and not Path("runs/.launch").exists()
    )


def test_a_queue_that_does_not_answer_is_an_error_not_an_empty_queue(monkeypatch, tmp_path):
    (tmp_path / "squeue").write_text(
        "#!/bin/sh\necho 'squeue: error: Unable to contact slurm controller' >&2; exit 1\n"
    )
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(
        UserError,
        match="squeue failed, so nobody knows which runs are queued: "
        "squeue: error: Unable to contact",
    ):
        launcher.queue()


def test_a_job_that_came_back_often_enough_does_not_come_back_again(monkeypatch):
    job = launcher.Job(["entry.toml"], "runs/tiny/seed0", "/cwd", 2)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert vars(job.checkpoint().function) == vars(job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    with pytest.raises(
        runs.TrainingError,
        match=r"not requeued, as \[slurm\] requeue = 2; launching again continues",
    ):
        job.checkpoint()


# ---------------------------------------------------------------- on this machine


@pytest.mark.slow
def test_local_runs_all_and_reports_the_failed_at_the_end_and_the_second_time_only_that_one(
    here, capfd
):
    for name in ("a", "c"):
        tiny.entry(here, f"{name}.toml")
    tiny.entry(here, "b.toml", train={"lr": 1e30, "warmup": 0})
    assert launch("sweeps/small", "--local", "--jobs=2") == 1
    out, err = lines_of(capfd)
    reason = r"runs/small/b/seed0: loss or gradient is not finite from step \d+ on .*"
    assert sum(line.startswith("finished  small/") for line in out) == 2
    assert any(re.fullmatch(f"failed    small/b s0: {reason}", line) for line in err), err
    assert (
        any(line.endswith("logs/small_b_seed0.log") for line in err)
        and out[-1] == "analyse   python analyze.py runs/small"
    )
    assert re.fullmatch(reason, Path("runs/small/b/seed0/failed.txt").read_text().strip())
    tiny.run(Path("alone"))
    tiny.assert_same_run(Path("alone"), Path("runs/small/a/seed0"))
    assert launch("sweeps/small", "--local", "--dry-run") == 0
    out, _ = lines_of(capfd)
    assert out[-2].startswith("would run here 1 of 3 run(s)") and out[-1].startswith(
        "python train.py runs/.launch/TIME/sweeps/small/b.toml"
    )


@pytest.mark.slow
def test_ctrl_c_lets_local_runs_save_and_the_same_command_continues_to_the_same_bits(here):
    tiny.entry(here, **LONG_RUN)
    command = [
        sys.executable,
        "-m",
        "submitit_launch",
        "sweeps/small",
        "--seeds=0,1",
        "--local",
        "--jobs=2",
    ]
    environment = os.environ | {"PYTHONPATH": str(tiny.ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # it may be ignored, where tests run in the background
    folders = [Path(f"runs/small/tiny/seed{k}") for k in (0, 1)]
    for folder in folders:
        wait_for_step(folder, 5, process)
    assert (
        launcher.states_of(
            launcher.plan_runs([Path("sweeps/small")], "0,1", [("", {})], local=True)
        )
        == [("running", "on this machine")] * 2
    )
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LONG)
    assert process.returncode == 130 and "every run finishes its step and saves" in err
    for folder in folders:
        assert 5 <= tiny.checkpoint(folder)["step"] < 400 and not (folder / "summary.json").exists()
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=LONG)
    assert done.returncode == 0 and done.stdout.count("stopped   small/tiny") == 2, (
        done.stdout + done.stderr
    )
    tiny.run(Path("whole"), **LONG_RUN)
    tiny.assert_same_run(Path("whole"), folders[0])


def test_each_local_run_has_a_gpu_of_its_own(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in launcher.make_slots(3)] == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in launcher.make_slots(2)] == ["5", "7"]
    with pytest.raises(UserError, match="--jobs=3, expected at most 2, the GPUs here"):
        launcher.make_slots(3)


# ---------------------------------------------------------------- on a real SLURM

START = Path(__file__).parent / "slurm" / "start.sh"
SWEEP = {
    "p1": {},
    "p2": {"model": {"n": 2}},
    "p3": {"model": {"T": 1}},
}
SLOW = {
    "model": {"n_sup": 4, "explore": 0.5, "T": 2, "n": 2, "ponder_weight": 3.0},
    "train": {"steps": 600, "eval_every": 150, "grokfast": "ema"},
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A folder to launch from, with a SLURM of one node behind it."""
    state, work = tmp_path_factory.mktemp("slurm"), tmp_path_factory.mktemp("work")
    started = subprocess.run(
        ["bash", START, state], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if started.returncode == 77 and not os.environ.get("CI"):
        pytest.skip(f"no SLURM: {started.stderr.strip()}")
    assert started.returncode == 0, started.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", f"{state}/slurm.conf")
        patch.setenv("PYTHONPATH", str(tiny.ROOT))
        patch.chdir(work)
        yield work
    subprocess.run(["bash", START, state, "stop"], check=True)


def submit(*words) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "submitit_launch", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=LONG,
    )


def job_of(folder: Path) -> str:
    return json.loads((folder / "job.json").read_text())["job"]


def until(what, message: str):
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.3)
    raise AssertionError(message)


@pytest.fixture(scope="module")
def fates(cluster):
    """Five runs side by side, and one of two ranks.

    One gets the preemption signal half-way, one a SIGTERM, one is cancelled, one crashes,
    one is let alone. The entries are spoilt as soon as they are submitted.
    """
    sweep = cluster / "sweeps" / "fates"
    sweep.mkdir(parents=True)
    for name in ("cancelled", "preempted", "terminated"):
        tiny.entry(sweep, f"{name}.toml", **SLOW)
    tiny.entry(sweep, "alone.toml")
    tiny.entry(sweep, "crash.toml", train={"lr": 1e30, "warmup": 0})
    tiny.entry(sweep, "ranks.toml", slurm={"tasks": 2})
    done = submit("sweeps/fates", "--slurm.time=1h")
    assert done.returncode == 0, done.stderr
    for path in sweep.iterdir():
        path.write_text("whoever reads this now is wrong")
    folder = {
        name: Path(f"runs/fates/{name}/seed0")
        for name in ("alone", "cancelled", "crash", "preempted", "ranks", "terminated")
    }
    for name in ("cancelled", "preempted", "terminated"):
        wait_for_step(folder[name], 20)
        words = {"cancelled": [], "preempted": ["--signal=USR2"], "terminated": ["--signal=TERM"]}[
            name
        ]
        subprocess.run(["scancel", *words, job_of(folder[name])], check=True)
    until(lambda: not launcher.queue(), "the queue does not become empty")
    return folder


def test_an_entry_is_known_by_its_name_with_the_keys_of_its_task(tmp_path, capsys):
    words = ["--data.givens_max=17", "--local", "--dry-run", f"--out={tmp_path}"]
    assert launch("sudoku_6x6", *words) == 0
    assert "sweeps/laptop/sudoku_6x6.toml" in capsys.readouterr().out


@pytest.mark.parametrize("finished", [True, False])
def test_a_finished_process_is_let_leave_and_another_is_stopped(finished, tmp_path):
    if finished:
        (tmp_path / "summary.json").write_text("{}")
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"])
    local = launcher.Local([], tmp_path, [])
    local.processes = [(SimpleNamespace(folder=tmp_path), process, {})]
    local.stop()
    assert process.returncode == (0 if finished else -signal.SIGTERM)
    assert (tmp_path / "failed.txt").exists() != finished


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    tiny.run(folder := tmp_path_factory.mktemp("undisturbed"), **SLOW)
    return folder


def log_of(folder: Path) -> str:
    return Path(json.loads((folder / "job.json").read_text())["log"]).read_text(errors="replace")


def starts_of(folder: Path) -> int:
    """How often its job has started. (A requeued job may be ended before it can say so.)"""
    return log_of(folder).count("Starting with JobEnvironment")


@pytest.mark.slow
@pytest.mark.parametrize("name, number", [("preempted", "SIGUSR2"), ("terminated", "SIGTERM")])
def test_a_job_that_is_preempted_is_requeued_and_ends_with_the_same_bits(
    name, number, fates, undisturbed
):
    log = log_of(fates[name])
    step = int(re.search(rf"stopped by {number} after step (\d+)", log)[1])
    assert 20 <= step < 600 and f"continues at step {step}" in log
    assert starts_of(fates[name]) == 2
    tiny.assert_same_run(undisturbed, fates[name])


def test_scancel_of_one_job_saves_it_and_leaves_the_others(fates):
    step = tiny.checkpoint(fates["cancelled"])["step"]
    assert (
        20 <= step < 600
        and not (fates["cancelled"] / "summary.json").exists()
        and not (fates["cancelled"] / "failed.txt").exists()
    )
    assert f"stopped by SIGTERM after step {step}" in log_of(fates["cancelled"])
    assert starts_of(fates["cancelled"]) == 1
    assert all(
        (fates[name] / "summary.json").exists()
        for name in ("alone", "preempted", "terminated", "ranks")
    )


def test_a_crash_stops_no_other_run_and_is_shown_with_its_reason_by_the_next_launch(
    fates, capsys, cluster
):
    sweep = cluster / "sweeps" / "fates"
    tiny.entry(sweep, "crash.toml", train={"lr": 1e30, "warmup": 0})
    tiny.entry(sweep, "cancelled.toml", **SLOW)
    assert launch(sweep / "crash.toml", sweep / "cancelled.toml", "--dry-run") == 0
    out, _ = lines_of(capsys)
    assert re.fullmatch(
        r"failed    fates/crash s0 -> \S+: runs/fates/crash/seed0: "
        r"loss or gradient is not finite from step \d+ on .*",
        out[0],
    ), out
    assert any(line.startswith("stopped   fates/cancelled s0 -> ") for line in out)
    assert "not finite" in (fates["crash"] / "failed.txt").read_text()


def test_the_tasks_of_a_job_are_one_group(fates, tmp_path):
    tiny.run(tmp_path)
    one, two = tiny.lines(tmp_path, "train"), tiny.lines(fates["ranks"], "train")
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-3)
    assert json.loads((fates["ranks"] / "summary.json").read_text())["hardware"].startswith("2 x ")
    assert (
        len(tiny.checkpoint(fates["ranks"])["processes"]) == 2
        and log_of(fates["ranks"]).count("done ") == 1
    )


@pytest.mark.slow
def test_three_entries_with_two_seeds_run_to_the_end_and_are_analysed(cluster):
    sweep = cluster / "sweeps" / "three"
    sweep.mkdir(parents=True)
    for name, tables in SWEEP.items():
        tiny.entry(sweep, f"{name}.toml", **tables)
    done = submit(
        "sweeps/three", "--seeds=0,1", "--wait", "--slurm.time=1h", "--slurm.max_parallel=4"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(
        f"finished  three/{name} s{seed}: test " in done.stdout for name in SWEEP for seed in (0, 1)
    )
    table = (cluster / "runs" / "three" / "analysis" / "table.md").read_text()
    assert all(re.search(rf"^\| {name} \|", table, re.MULTILINE) for name in SWEEP)
    again = submit("sweeps/three", "--seeds=0,1")
    assert (
        again.returncode == 0
        and again.stdout.count("finished ") == 6
        and "submitted" not in again.stdout
    )


def test_what_sbatch_refuses_is_told_in_one_sentence(cluster, capsys):
    (cluster / "sweeps").mkdir(exist_ok=True)
    assert launch(tiny.entry(cluster / "sweeps", "refused.toml"), "--slurm.partition=nowhere") == 2
    _, err = lines_of(capsys)
    assert (
        len(err) == 1
        and err[0].startswith("error: sbatch refused the array of refused s0: ")
        and "partition" in err[0]
    ), err


@pytest.mark.slow
def test_of_two_entries_the_one_that_sbatch_takes_is_submitted_and_the_exit_code_is_another(
    cluster, capsys
):
    sweep = cluster / "sweeps" / "half"
    sweep.mkdir(parents=True)
    tiny.entry(sweep, "a.toml", train={"steps": 2})
    tiny.entry(sweep, "b.toml", slurm={"partition": "nowhere"})
    tiny.entry(sweep, "c.toml", train={"steps": 2}, slurm={"time": "1h"})
    assert launch(sweep, "--slurm.cpus=1") == 1
    out, err = lines_of(capsys)
    assert [
        line.split(": ")[-1] for line in out if line.startswith("submitted 1 run(s) as job")
    ] == [
        "half/a s0",
        "half/c s0",
    ]
    assert err[0].startswith("error: sbatch refused the array of half/b s0: ")
    assert err[1:] == ["error: submitted 2 of 3 run(s), the others not"]
    jobs = [job_of(Path(f"runs/half/{name}/seed0")) for name in "ac"]
    assert len(set(jobs)) == 2 and not Path("runs/half/b/seed0/job.json").exists()
    until(lambda: not launcher.queue(), "the queue does not become empty")


@pytest.mark.slow
def test_two_launches_at_once_submit_each_run_once(cluster):
    sweep = cluster / "sweeps" / "twice"
    sweep.mkdir(parents=True)
    for name in "abc":
        tiny.entry(sweep, f"{name}.toml", train={"steps": 2})
    words = [sys.executable, "-m", "submitit_launch", "sweeps/twice", "--slurm.time=1h"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    launches = [subprocess.Popen(words, **pipes) for _ in range(3)]
    printed = [process.communicate(timeout=LONG) for process in launches]
    assert [process.returncode for process in launches] == [0, 0, 0], printed
    assert sum(out.count("submitted 3 run(s)") for out, _ in printed) == 1, printed
    assert sum(out.count("submitted") for out, _ in printed) == 1, printed
    until(lambda: not launcher.queue(), "the queue does not become empty")
    for name in "abc":
        assert log_of(Path(f"runs/twice/{name}/seed0")).count("done ") == 1


@pytest.mark.slow
def test_a_job_that_is_killed_is_said_to_be(cluster):
    sweep = cluster / "sweeps" / "kill"
    sweep.mkdir(parents=True)
    entry = tiny.entry(sweep, "victim.toml", **SLOW)
    assert launch(entry, "--slurm.time=1h") == 0
    folder = Path("runs/kill/victim/seed0")
    wait_for_step(folder, 5)
    os.kill(launcher.holder_of(folder).pid, signal.SIGKILL)
    until(lambda: not launcher.queue(), "the queue does not become empty")
    (run,) = launcher.plan_runs([entry], "", [("", {})], local=False)
    (found,) = launcher.states_of([run])
    assert found == ("failed", "killed")


# ---------------------------------------------------------------- grids


def commands_of(capsys, *words) -> list[str]:
    """The commands that --dry-run shows."""
    capsys.readouterr()
    assert launcher.main([*map(str, words), "--local", "--dry-run"]) == 0
    out = capsys.readouterr().out
    return [line for line in out.splitlines() if line.startswith("python train.py")]


@pytest.mark.slow
def test_several_values_of_keys_make_a_grid(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweeps").mkdir()
    entry = tiny.entry(tmp_path / "sweeps")
    words = [entry, "--train.lr=1e-2,3e-3", "--train.ema", "0.9", "--model.dim=16,32"]
    lines = commands_of(capsys, *words, "--seeds", "0,1")
    names = [f"lr={lr},dim={dim}" for lr in (0.01, 0.003) for dim in (16, 32)]
    assert len(lines) == 8
    for k, name in enumerate(names):
        assert all(f"sweeps/tiny/{name}.toml" in line for line in lines[2 * k : 2 * k + 2])
    assert launcher.main([str(word) for word in words] + ["--local"]) == 0
    for name, (lr, dim) in zip(names, itertools.product((0.01, 0.003), (16, 32))):
        cfg, _, _ = load_run(tmp_path / "runs/tiny" / name / "seed0")
        assert (cfg.train.lr, cfg.model.dim, cfg.train.ema) == (lr, dim, 0.9)
    more = commands_of(
        capsys, entry, "--train.lr=1e-2,3e-3,1e-3", "--train.ema=0.9", "--model.dim=16,32"
    )
    assert len(more) == 2 and all("lr=0.001," in line for line in more), "the rest is finished"
    assert analyze.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    table = (tmp_path / "out/table.md").read_text()
    assert all(name in table for name in names)


def test_a_value_of_a_grid_has_the_table_of_its_key_where_two_are_alike(tmp_path, capsys):
    (tmp_path / "sweeps").mkdir()
    entry = tiny.entry(tmp_path / "sweeps")
    words = ["--data.augment=true,false", "--train.lr=0.1,0.2", "--train.optimizer=adamw,muon"]
    assert "augment=true,lr=0.1,optimizer=adamw" in commands_of(capsys, entry, *words)[0]
    words = ["--model.init=fixed,random", "--train.init_weights=ema,raw"]
    assert "init=fixed,init_weights=ema" in commands_of(capsys, entry, *words)[0]
    first = commands_of(capsys, entry, "--data.seed=1,2")[0]
    assert "data.seed=1" in first and "--seed=0" in first, "every run has a seed of its own"
    assert launcher.name_of_value("model.n=2", ["n", "n"]) == "model.n=2"


@pytest.mark.parametrize(
    "word, words",
    [
        ("--train.lr=0.1,0.1", "a value stands there twice"),
        ("--train.lr=0.1,x", "lr = 'x'"),
        ("--model.dim=16,0", "dim = 0"),
        ("--data.train_path=a.csv,b.csv", "a.csv,b.csv"),
    ],
)
def test_every_point_of_a_grid_is_checked_first(word, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert launcher.main([str(tiny.entry(tmp_path)), word, "--local"]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "runs").exists()
