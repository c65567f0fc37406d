"""Damaged files: whatever is done to one, analyze.py and the launcher name its run and go on."""

import json
import random
import shutil

import pytest

import analyze
import submitit_launch as launcher
import tiny
from config import UserError
from test_analyze import fake

TRIALS = 400  # of each test; of analyze.py every sixtieth draws
FILES = ("config.toml", "metrics.jsonl", "summary.json", "test.npz", "failed.txt", "job.json")
VALUES = (None, True, -1, 0, 1.5, 1e308, float("nan"), 10**400, "", "x", "\x1b[2J$", [], [1], {})
LINES = (b"", b"{}", b"[]", b"17", b'{"step": NaN, "split": "train"}', b"\xff\xfe", b"[" * 3000)


def flip(data: bytearray, g: random.Random) -> None:
    """One to eight bits."""
    for _ in range(g.randint(1, 8)):
        data[g.randrange(len(data))] ^= 1 << g.randrange(8)


def cut(data: bytearray, g: random.Random) -> None:
    """The end is missing, or a piece from the middle."""
    begin = g.randrange(len(data))
    del data[begin : g.choice([len(data), begin + g.randint(1, 40)])]


def duplicate(data: bytearray, g: random.Random) -> None:
    """A piece stands there twice."""
    begin = g.randrange(len(data))
    data[begin:begin] = data[begin : begin + g.randint(1, 200)]


def replace(data: bytearray, g: random.Random) -> None:
    """A piece becomes another one, or all of it."""
    begin = g.choice([0, g.randrange(len(data))])
    data[begin : g.choice([len(data), begin + g.randint(1, 40)])] = g.choice(LINES)


def another_type(data: bytearray, g: random.Random) -> None:
    """A value of a JSON file becomes one of another type, or is missing."""
    try:
        whole = json.loads(data)
    except ValueError:
        return replace(data, g)
    place = whole
    while isinstance(place, dict) and place:
        key = g.choice(sorted(place))
        if isinstance(place[key], dict) and g.random() < 0.8:
            place = place[key]
        elif g.random() < 0.2:
            del place[key]
            break
        else:
            place[key] = g.choice(VALUES)
            break
    data[:] = json.dumps(whole).encode()


DAMAGES = (flip, cut, duplicate, replace, another_type)


def damage(path, g: random.Random) -> str:
    """Damage a file in one way; what was done, for the message of a failure."""
    how = g.choice(DAMAGES)
    data = bytearray(path.read_bytes())
    how(data, g)
    path.write_bytes(data)
    return f"{how.__name__} of {path.name}: {bytes(data[:200])!r}"


def a_sweep(root):
    """Three finished entries and one that failed, as train.py and the launcher leave them."""
    for name, share in (("baseline", 0.5), ("good", 0.7), ("victim", 0.6)):
        for seed in (0, 1):
            solved = [row < 40 * share + seed for row in range(40)]
            fake(root / name / f"seed{seed}", seed=seed, solved=solved, flop=1e12)
    failed = fake(root / "failed/seed0", summary=False)
    for folder in (failed, root / "victim/seed0"):
        (folder / "job.json").write_text('{"log": "none.log", "job": "7", "code": "/code"}\n')
        (folder / "failed.txt").write_text("RuntimeError: boom\n")


def a_victim(root, original, g: random.Random):
    """A fresh folder, and one of its files to damage."""
    for name in ("victim", "failed"):
        shutil.rmtree(root / name, ignore_errors=True)
        shutil.copytree(original / name, root / name)
    name = g.choice(FILES)
    owner = "failed" if name in ("failed.txt", "job.json") else "victim"
    return root / owner / "seed0" / name


@pytest.mark.slow
def test_the_analysis_survives_what_is_done_to_one_run_and_says_which(
    tmp_path, monkeypatch, capsys
):
    g = random.Random(0)
    a_sweep(tmp_path / "original")
    a_sweep(tmp_path / "runs")
    write, used = analyze.plots.write, 0
    for trial in range(TRIALS):
        path = a_victim(tmp_path / "runs", tmp_path / "original", g)
        what = damage(path, g)
        draws = trial % 60 == 0
        monkeypatch.setattr(analyze.plots, "write", write if draws else lambda out, groups: [])
        try:
            text, _ = analyze.analyze([tmp_path / "runs"], tmp_path / "out")
        except Exception as e:
            raise AssertionError(f"trial {trial}, {what}") from e
        table = json.loads((tmp_path / "out/table.json").read_text())
        entries = [row["entry"] for row in table["entries"]]
        absent = [row["entry"] for row in table["unfinished"]]
        assert {"good", "baseline"} <= set(entries), what
        assert "failed/seed0" in absent, what
        # In the tables under its name, with what sets it apart, or named as missing.
        assert any(entry.startswith("victim") for entry in entries), what
        seeds = [
            row["seed"] for r in table["entries"] for row in r["runs"] if "victim" in r["entry"]
        ]
        assert len(seeds) == 2 or "victim/seed0" in absent, what
        assert "\x1b" not in text and "Not in the tables:" in text, what
        used += len(seeds) == 2
    plots = capsys.readouterr().err.count("no plot ")
    print(f"{TRIALS} damaged files, {used} of them without harm to the run; {plots} plots left out")


@pytest.mark.slow
def test_the_launcher_survives_what_is_done_to_one_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (tmp_path / "sweeps").mkdir()
    tiny.entry(tmp_path / "sweeps", "victim.toml")
    tiny.run(tmp_path / "original/victim/seed0")
    shutil.copytree(tmp_path / "original/victim", tmp_path / "original/failed")
    a_log = tmp_path / "none.log"
    a_log.write_text("data   maze\nRuntimeError: boom\n")
    (tmp_path / "original/failed/seed0/summary.json").unlink()
    for name in ("victim", "failed"):
        folder = tmp_path / "original" / name / "seed0"
        (folder / "job.json").write_text('{"log": "none.log", "job": "7", "code": "/code"}\n')
        (folder / "failed.txt").write_text("RuntimeError: boom\n")
    run = launcher.plan_runs([tmp_path / "sweeps/victim.toml"], "", [("", {})], local=True)[0]
    g, refused = random.Random(1), 0
    for trial in range(TRIALS):
        path = a_victim(tmp_path / "runs", tmp_path / "original", g)
        what = damage(path, g)
        run.folder = path.parent
        try:
            state, note = launcher.state_of(run, {})
            assert state in launcher.STATES and note.isprintable(), what
            at, loss = launcher.last_step(run)
            assert isinstance(at, int) and isinstance(loss, str), what
            launcher.note_stop(path.parent, 15)
            launcher.check_same(path.parent, run.cfg)
        except UserError as e:  # a config.toml that is none, or of another run
            assert "config.toml" in str(e) or "was made with" in str(e), what
            refused += 1
        except Exception as e:
            raise AssertionError(f"trial {trial}, {what}") from e
    print(f"{TRIALS} damaged files, {refused} refused in a sentence")


@pytest.mark.slow
def test_a_damaged_entry_is_refused_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "sweeps" / "small"
    folder.mkdir(parents=True)
    g, refused = random.Random(2), 0
    (tmp_path / "sweeps/slurm.toml").write_text('[slurm]\ntime = "1h"\noptions = "--nice=100"\n')
    tiny.entry(folder, slurm={"partition": "gpu", "setup": "module load cuda"})
    original = {path: path.read_bytes() for path in tmp_path.rglob("*.toml")}
    for trial in range(TRIALS):
        for path, data in original.items():
            path.write_bytes(data)
        what = damage(g.choice(list(original)), g)
        try:
            launcher.plan_runs([folder / "tiny.toml"], "", [("", {})], local=False)
        except UserError as e:
            assert "\n" not in str(e), what
            refused += 1
        except Exception as e:
            raise AssertionError(f"trial {trial}, {what}") from e
    print(f"{TRIALS} damaged entries, {refused} refused in a sentence")
