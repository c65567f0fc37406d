"""evaluate.py as a command: a run again, other rows and steps, official checkpoints."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
import evaluate
import solve
import tiny
from config import load_config
from model import PUBLIC_NAMES, PUBLIC_PARTS, public_names
from runs import make_world
from tasks.puzzles import decode
from train import Config, load_run

MAZE = {"task": "maze", "size": 5, "walls": "perfect"}
PREFIXES = ["", "inner.", "model.inner.", "_orig_mod.model.inner."]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Tiny runs: 4x4 Sudoku, 5x5 mazes with a convolution, clouds of points, a plant."""
    root = tmp_path_factory.mktemp("runs")
    tiny.run(root / "sudoku")
    tiny.run(root / "maze", data=MAZE, model={"mixer": "conv"})
    tiny.run(root / "mlp", data=MAZE, model={"mixer": "mlp"}, train={"eval_average": 2})
    points = {"task": "features", "train_rows": 60, "val_rows": 10}
    net = {"mixer": "attention", "prefix": 0, "dim": 16}
    tiny.run(root / "points", data=points, model=net)
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def figures_of(out: Path, *words) -> dict:
    """The JSON that the command writes."""
    assert evaluate.main([*map(str, words), f"--out={out}"]) == 0
    return json.loads(out.read_text())


def refused(capsys, *words) -> str:
    """The one sentence of exit code 2."""
    capsys.readouterr()
    assert evaluate.main([*map(str, words)]) == 2
    found = capsys.readouterr()
    lines = [line for line in found.err.split("\n") if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in found.err and "done " not in found.out
    return lines[0]


# ---------------------------------------------------------------- a run


@pytest.mark.parametrize("name", ["sudoku", "maze", "mlp", "points"])
def test_a_runs_own_figure_is_reproduced_and_its_folder_stays_as_it_is(
    runs, name, tmp_path, capsys
):
    before = contents(runs / name)
    found = figures_of(tmp_path / "again.json", runs / name)
    summary = json.loads((runs / name / "summary.json").read_text())
    for key in ("test", "test_puzzles", "best_step", "weights", "baseline", "parameters"):
        assert found[key] == summary[key], key
    assert found["test_halting"]["exact"] == summary["test_halting"]["exact"]
    assert found["test_halting"]["steps"] == summary["test_halting"]["steps"]
    assert contents(runs / name) == before
    task = load_run(runs / name)[0].task
    assert f"done   {task.sentence(summary)}\n" in capsys.readouterr().out


def test_best_pt_is_as_good_as_its_folder(runs, tmp_path):
    folder = figures_of(tmp_path / "a.json", runs / "maze")
    file = figures_of(tmp_path / "b.json", runs / "maze" / "best.pt")
    assert {**folder, "run": ""} == {**file, "run": ""}


def test_a_run_that_is_not_finished_says_no_time_of_training(runs, tmp_path, capsys):
    (tmp_path / "best.pt").write_bytes((runs / "maze" / "best.pt").read_bytes())
    assert evaluate.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "done   test" in out and "trained" not in out.split("done")[1].split("\n")[0]
    assert "nan" not in out


def test_raw_weights_are_those_of_best_pt(runs, tmp_path):
    found = figures_of(tmp_path / "raw.json", runs / "maze", "--raw")
    cfg, net, _ = load_run(runs / "maze", weights="raw")
    world = evaluate.world_of(cfg)
    rows = evaluate.rows_within_training(cfg)
    expected = evaluate.evaluate(net, data.load(cfg).test, cfg, world, rows=rows)
    assert found["weights"] == "raw" and found["test"]["cells"] == expected["cells"]
    assert found["test"]["cells"] != figures_of(tmp_path / "a.json", runs / "maze")["test"]["cells"]


def test_more_steps_than_in_training(runs, tmp_path, capsys):
    own = figures_of(tmp_path / "own.json", runs / "sudoku")
    capsys.readouterr()
    found = figures_of(tmp_path / "more" / "curve.json", runs / "sudoku", "--steps", "1,2,4,8")
    out = capsys.readouterr().out
    assert found["test"]["steps"] == 8 and len(found["test"]["curve"]) == 8
    assert found["test"]["curve"][:3] == own["test"]["curve"]
    assert "step         1      2      4      8\n" in out
    assert "trained with at most 3 supervision steps" in out
    with Image.open(tmp_path / "more" / "curve.png") as picture:
        assert min(picture.size) > 400 and len(picture.convert("RGB").getcolors(1 << 20)) > 5
    single = figures_of(tmp_path / "8.json", runs / "sudoku", "--steps", "8")
    assert single["test"] == found["test"]


def test_other_mazes_than_in_training(runs, tmp_path, capsys):
    found = figures_of(tmp_path / "7.json", runs / "maze", "--data.test_size", "7")
    assert found["data"]["test_source"] == "generated 7x7, perfect walls"
    cfg = evaluate.replace(load_run(runs / "maze")[0].data, test_size=7)
    rows = data.load(cfg).test
    assert found["test"]["n"] == len(rows) == 10
    assert found["baseline"]["cells"] == (rows.inputs == rows.labels).mean()


def test_a_file_of_test_rows_counts_whole_and_needs_no_training_file(runs, tmp_path):
    rows = data.load(tiny.config(data={"seed": 7, "test_rows": 23})).test
    lines = [
        ",".join(decode("sudoku", row) for row in pair) for pair in zip(rows.inputs, rows.labels)
    ]
    file = tmp_path / "rows.csv"
    file.write_text("\n".join(["question,answer", *lines]) + "\n")
    words = [runs / "sudoku", "--data.test_path", file, "--data.train_path=gone.csv"]
    found = figures_of(tmp_path / "file.json", *words)
    assert found["test"]["n"] == 23 and found["data"]["test_source"] == "rows.csv"
    assert figures_of(tmp_path / "5.json", *words, "--data.test_rows=5")["test"]["n"] == 5


def test_rows_that_the_run_has_trained_on_are_counted(runs, tmp_path, capsys):
    own = data.load(load_run(runs / "sudoku")[0])
    rows = list(zip(own.train.inputs[:3], own.train.labels[:3]))
    rows += zip(own.test.inputs[:2], own.test.labels[:2])
    lines = [",".join(decode("sudoku", row) for row in pair) for pair in rows]
    file = tmp_path / "rows.csv"
    file.write_text("\n".join(["question,answer", *lines]) + "\n")
    found = figures_of(tmp_path / "a.json", runs / "sudoku", "--data.test_path", file)
    assert found["seen_in_training"] == 3
    assert "3 of the 5 rows were in the run's training" in capsys.readouterr().out
    own = figures_of(tmp_path / "b.json", runs / "sudoku")
    assert own["seen_in_training"] == 0 and "memory" not in capsys.readouterr().out
    points = figures_of(tmp_path / "c.json", runs / "points", "--data.seed=1")
    assert points["seen_in_training"] is None
    assert "is not known" in capsys.readouterr().out


# ---------------------------------------------------------------- further tries


def trained(folder: Path, labels: np.ndarray, script: dict, monkeypatch) -> tuple:
    """What `try_rows` wants, of a net whose n-th try answers script[n][row]."""
    cfg, net, _ = load_run(folder)
    rows = data.load(cfg).test
    split = data.Split(rows.inputs[: len(labels)], labels)

    def one_try(net, split, todo, cfg, world, task, number):
        return np.stack([script[number][row] for row in todo])

    monkeypatch.setattr(evaluate, "one_try", one_try)
    return net, split, cfg, None, cfg.task


def test_a_sudoku_is_tried_until_its_rules_hold(runs, monkeypatch):
    cfg, _, _ = load_run(runs / "sudoku")
    right = np.asarray(data.load(cfg).test.labels[:2], dtype=np.int64)
    wrong = np.full_like(right, 2)
    script = {1: [right[0], wrong[1]], 2: [None, wrong[1]], 3: [None, right[1]]}
    found = evaluate.try_rows(*trained(runs / "sudoku", right, script, monkeypatch), tries=9)
    S = cfg.eval_steps
    assert found == {"exact": [0.5, 0.5, 1], "valid": [0.5, 0.5, 1], "steps": [S, 1.5 * S, 2 * S]}


def test_of_a_mazes_valid_answers_the_most_frequent_counts(runs, monkeypatch):
    cfg, _, _ = load_run(runs / "maze")
    labels = np.asarray(data.load(cfg).test.labels[:1], dtype=np.int64)
    right, broken = labels[0], np.zeros_like(labels[0])
    script = {1: [broken], 2: [right], 3: [broken], 4: [broken]}
    found = evaluate.try_rows(*trained(runs / "maze", labels, script, monkeypatch), tries=4)
    S = cfg.eval_steps
    assert found["exact"] == found["valid"] == [0, 1, 1, 1]
    assert found["steps"] == [S, 2 * S, 3 * S, 4 * S]
    # Two routes, both of them paths: the one that more tries gave, the earlier one of two.
    monkeypatch.setattr(cfg.task, "score", lambda inputs, answers: {"valid": answers.any(-1)})
    script = {1: [right], 2: [right + 1], 3: [right + 1], 4: [right], 5: [right]}
    found = evaluate.try_rows(*trained(runs / "maze", labels, script, monkeypatch), tries=5)
    assert found["exact"] == [1, 1, 0, 1, 1]


@pytest.mark.parametrize("name", ["sudoku", "maze"])
def test_tries_stand_beside_the_single_try(name, runs, tmp_path, capsys):
    one = figures_of(tmp_path / "one.json", runs / name)
    many = figures_of(tmp_path / "many.json", runs / name, "--tries=5")
    out, tries = capsys.readouterr().out, many.pop("tries")
    assert many == one
    S = one["test"]["steps"]
    assert (tries["exact"][0], tries["valid"][0]) == (one["test"]["exact"], one["test"]["valid"])
    spent = np.diff(tries["steps"], prepend=0)
    open_rows = 1 - np.array([0, *tries["valid"][:-1]]) if name == "sudoku" else np.ones(5)
    assert spent == pytest.approx(S * open_rows[: len(spent)])
    assert "tries        1      2      4      5" in out


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_answers_of_a_try_are_those_of_the_puzzle_itself(number, runs):
    """A net that copies its question answers it in every view; only the first is as trained."""
    cfg, net, _ = load_run(runs / "maze")
    split, todo = data.load(cfg).test, np.array([3, 0, 7])

    def copy(carry):
        step = type(net).step(net, carry)
        inputs = step[0].batch["inputs"]
        step[1].logits = torch.nn.functional.one_hot(inputs, net.outputs).float()
        return step

    net.step = copy
    world = make_world(cfg.train)
    found = evaluate.one_try(net, split, todo, cfg, world, cfg.task, number)
    assert (found == split.inputs[todo]).all()
    del net.step
    tried = [evaluate.one_try(net, split, todo, cfg, world, cfg.task, k) for k in (1, 2, 3)]
    assert len({answers.tobytes() for answers in tried}) > 1


def test_tries_want_rules(runs, capsys):
    assert "no rules, expected maze or sudoku" in refused(capsys, runs / "points", "--tries=2")
    assert "--tries 0: expected 1 or more" in refused(capsys, runs / "maze", "--tries=0")


@pytest.mark.slow
def test_bad_input_is_one_sentence(runs, tmp_path, capsys):
    maze, sudoku, table = runs / "maze", runs / "sudoku", tmp_path / "table.json"
    table.write_text('{"entries": []}')
    for words, expected in [
        ([tmp_path / "none"], ["none", "no such run"]),
        ([maze, "--data.test_size=1"], ["command line [data]", "test_size = 1", "2 to"]),
        ([maze, "--data.test_size=8"], ["test_size = 8", "odd number"]),
        ([maze, "--data.test_size=x"], ["test_size = 'x'", "an integer"]),
        ([runs / "mlp", "--data.test_size=7"], ["test_size = 7", "mixer = 'mlp'"]),
        ([maze, "--data.size=7"], ["seq_len = 25", "49", "data.test_size"]),
        ([maze, "--data.testsize=7"], ["--data.testsize", "did you mean 'data.test_size'"]),
        ([sudoku, "--data.walls=perfect"], ["[data]", "unknown key 'walls'"]),
        ([sudoku, "--data.test_path=gone.csv"], ["gone.csv", "does not exist"]),
        ([sudoku, "--data.task=maze"], ["unknown key '--data.task"]),
        ([sudoku, "--steps", "0"], ["--steps '0'", "1 or more"]),
        ([sudoku, "--steps", "4,x"], ["--steps '4,x'", "1,2,4"]),
        ([sudoku, "--steps=99999"], ["eval_steps = 99999", "at most 10000"]),
        ([runs / "mlp", "--steps=1"], ["eval_average = 2", "at most the 1"]),
        ([sudoku, "--model.T=3"], ["--model.T", "--entry"]),
        ([sudoku, "--out=x.txt"], ["x.txt", ".json"]),
        ([sudoku, f"--out={sudoku / 'summary.json'}"], ["summary.json", "expected another"]),
        ([sudoku, f"--out={table}"], ["table.json", "not of evaluate.py"]),
        ([sudoku, f"--out={sudoku / 'best.pt' / 'x.json'}"], ["best.pt", "folder"]),
        ([sudoku, "--entry", tiny.ROOT / "sweeps/sudoku_mlp.toml"], ["folder", "step_N"]),
    ]:
        sentence = refused(capsys, *words)
        assert all(part in sentence for part in expected), (words, sentence)


@pytest.mark.slow
def test_the_command_from_a_terminal(runs, tmp_path):
    command = [sys.executable, str(tiny.ROOT / "evaluate.py")]
    done = subprocess.run(
        [*command, str(runs / "maze")], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0 and "done   test" in done.stdout, done.stderr
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert shown.returncode == 0
    for word in ("--steps", "--data.test_path", "--data.test_size", "--raw", "--out", "--entry"):
        assert word in shown.stdout
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- checkpoints of the official code


def official(state: dict, prefix: str) -> dict:
    """A state dict of ours under the names of the official code: the reverse of public_names."""
    theirs = {ours: old for old, ours in PUBLIC_NAMES.items()}
    mixer = "mlp_t" if any("mixers.0.mlp" in name for name in state) else "self_attn"
    parts = {ours: old for old, ours in PUBLIC_PARTS.items() if old.split(".")[0] in (mixer, "mlp")}
    renamed = {}
    for name, tensor in state.items():
        old = theirs.get(name)
        if old is None:
            _, _, layer, part = name.split(".", 3)
            old = f"L_level.layers.{layer}.{parts[part.removesuffix('.weight')]}.weight"
        renamed[prefix + old] = tensor.clone()
    return renamed


def small_entry(folder: Path, mixer: str = "mlp", **tables) -> Path:
    """An entry whose net the official code can have."""
    positions = "none" if mixer == "mlp" else "rope"
    net = {"mixer": mixer, "positions": positions, "prefix": 2, "q_from": "first", "n_layers": 2}
    return tiny.entry(folder, f"{mixer}.toml", model=net, **tables)


def make_official(entry: Path, prefix: str = "_orig_mod.model.inner.", name: str = "step_1234"):
    """A net of an entry with random weights, and its official checkpoint beside the entry."""
    cfg = load_config(Config, entry, {})
    torch.manual_seed(0)
    net = cfg.task.make_net(cfg, cfg.task.shape(cfg), torch.float32).eval()
    torch.nn.init.normal_(net.q_head.weight)
    torch.nn.init.normal_(net.puzzles)
    state = official(net.state_dict(), prefix)
    for short in ("H_init", "L_init"):  # theirs are bfloat16, so ours must be representable
        state[prefix + short] = state[prefix + short].bfloat16()
    net.y0.copy_(state[prefix + "H_init"])
    net.z0.copy_(state[prefix + "L_init"])
    path = entry.parent / name
    torch.save(state, path)
    return cfg, net, path


@pytest.mark.parametrize("mixer", ["mlp", "attention"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_an_official_checkpoint_gives_the_same_logits(tmp_path, mixer, prefix):
    entry = small_entry(tmp_path, mixer)
    cfg, net, path = make_official(entry, prefix)
    loaded, state = evaluate.load_official(path, cfg, entry)
    assert state["step"] == 1234 and not loaded.training
    rows = torch.from_numpy(data.load(cfg).test.inputs[:4].astype(np.int64))
    batch = {"inputs": rows, "labels": rows, "puzzle": torch.zeros(4, dtype=torch.long)}
    for step_of in (net, loaded):
        step_of.carry = step_of.refill(step_of.start(batch), batch)
    for _ in range(3):
        net.carry, ours = net.step(net.carry)
        loaded.carry, theirs = loaded.step(loaded.carry)
        assert torch.equal(ours.logits, theirs.logits) and torch.equal(ours.q_halt, theirs.q_halt)


def test_the_figures_of_an_official_checkpoint(tmp_path, capsys):
    entry = small_entry(tmp_path, data={"generate": True})
    cfg, net, path = make_official(entry)
    before = path.read_bytes()
    found = figures_of(tmp_path / "found.json", path, "--entry", entry)
    expected = evaluate.evaluate(net, data.load(cfg).test, cfg, evaluate.world_of(cfg))
    assert found["test"]["cells"] == expected["cells"] and found["test"]["n"] == 10
    assert found["test"]["curve"] == expected["curve"]
    out = capsys.readouterr().out
    assert "official" in out and "step 1234" in out and "T = 2, n = 1" in out
    assert path.read_bytes() == before
    more = figures_of(tmp_path / "more.json", path, "--entry", entry, "--model.n=3", "--steps=4")
    assert more["test"]["steps"] == 4 and more["test"]["cells"] != found["test"]["cells"]


def test_solve_takes_an_official_checkpoint(tmp_path, capsys):
    entry = small_entry(tmp_path)
    _, _, path = make_official(entry)
    words = [str(path), "12....12.1..4..1", "--entry", str(entry), "--out", str(tmp_path / "out")]
    assert solve.main(words) == 0
    out = capsys.readouterr().out
    assert "of the official code" in out and "step 1234" in out and "4x4" in out
    assert (tmp_path / "out" / "solved.png").exists()
    assert solve.main([str(path), "12....12.1..4..1"]) == 2
    assert "--entry" in capsys.readouterr().err


def test_what_does_not_fit_is_said(tmp_path, capsys):
    entry = small_entry(tmp_path)
    cfg, net, path = make_official(entry)
    for model, expected in [
        ({"dim": 32}, ["model.dim", "16", "32"]),
        ({"n_layers": 3}, ["model.n_layers", "2", "3"]),
        ({"mixer": "attention"}, ["model.mixer", "'mlp'", "'attention'"]),
        ({"positions": "learned"}, ["model.positions = 'learned'", "False", "True"]),
        ({"prefix": 4}, ["model.prefix + cells", "18", "20"]),
        ({"expansion": 4.0}, ["mlp.down.weight", "(16, 16)", "(16, 48)"]),
    ]:
        words = [f"--model.{key}={value}" for key, value in model.items()]
        sentence = refused(capsys, path, "--entry", entry, *words)
        assert all(part in sentence for part in [path.name, entry.name, *expected]), sentence
    sentence = refused(capsys, path, "--entry", entry, "--data.size=9")
    assert "seq_len = 16" in sentence and "81" in sentence
    sentence = refused(capsys, path)
    assert "official code" in sentence and "--entry" in sentence
    assert "--raw" in refused(capsys, path, "--entry", entry, "--raw")


def test_another_T_or_n_is_said_where_the_configuration_lies_beside(tmp_path, capsys):
    entry = small_entry(tmp_path)
    _, _, path = make_official(entry)
    beside = tmp_path / "all_config.yaml"
    fits = (
        "arch:\n  H_cycles: 2\n  L_cycles: 1\n  mlp_t: true\n  num_heads: 2\n  loss:\n    name: x\n"
    )
    beside.write_text(fits)
    assert evaluate.main([str(path), "--entry", str(entry)]) == 0
    for old, new, expected in [
        ("L_cycles: 1", "L_cycles: 4", ["L_cycles: 4", "model.n = 1", "--model.n=4"]),
        ("H_cycles: 2", "H_cycles: 3", ["H_cycles: 3", "model.T = 2", "--model.T=3"]),
        ("mlp_t: true", "mlp_t: false", ["mlp_t: false", "model.mixer = mlp", "attention"]),
        ("num_heads: 2", "num_heads: 8", ["num_heads: 8", "model.heads = 2"]),
    ]:
        beside.write_text(fits.replace(old, new))
        sentence = refused(capsys, path, "--entry", entry)
        assert all(part in sentence for part in expected), sentence


def test_identifiers_of_arc_and_other_files_are_said(tmp_path, capsys):
    entry = small_entry(tmp_path)
    _, _, path = make_official(entry)
    state = torch.load(path)
    name = next(name for name in state if name.endswith("puzzle_emb.weights"))
    torch.save(state | {name: torch.zeros(960, 16)}, path)
    sentence = refused(capsys, path, "--entry", entry)
    assert "960 puzzle identifiers" in sentence and "ARC" in sentence
    torch.save(state | {"_orig_mod.model.inner.H_level.layers.0.mlp.up": torch.zeros(1)}, path)
    sentence = refused(capsys, path, "--entry", entry)
    assert "H_level" in sentence and "official TRM" in sentence
    torch.save({key: value for key, value in state.items() if "lm_head" not in key}, path)
    assert "head.weight" in refused(capsys, path, "--entry", entry)
    path.write_bytes(b"PK nothing")
    assert "step_1234" in refused(capsys, path, "--entry", entry)


def test_the_reader_is_the_reverse_of_the_writer(tmp_path):
    for mixer in ("mlp", "attention"):
        _, net, _ = make_official(small_entry(tmp_path, mixer))
        state = net.state_dict()
        assert public_names(official(state, "_orig_mod.model.inner.")).keys() == state.keys()


def test_the_official_maze_command_is_an_entry_beside_the_papers():
    paper = load_config(Config, tiny.ROOT / "sweeps/maze_baseline.toml", {})
    public = load_config(Config, tiny.ROOT / "sweeps/maze_official.toml", {})
    m, t = public.model, public.train
    assert (m.T, m.n, m.n_layers, m.dim, m.heads, m.mixer) == (3, 4, 2, 512, 8, "attention")
    assert (m.positions, m.prefix, m.n_sup, m.explore) == ("rope", 16, 16, 0.1)
    assert (t.optimizer, t.lr, t.weight_decay, t.beta1, t.beta2) == (
        "adam_atan2",
        1e-4,
        1,
        0.9,
        0.95,
    )
    assert (t.puzzle_lr, t.puzzle_weight_decay, t.warmup, t.schedule) == (1e-4, 1, 2000, "constant")
    assert (t.batch_size, t.steps, t.ema) == (768, 50_000 * 1000 // 768, 0.999)
    assert t.eval_every == 5000 * 1000 // 768
    assert (paper.model.n, paper.train.optimizer, paper.train.steps) == (6, "adamw", 78125)
    assert public.data == paper.data and not public.data.augment
