"""The shape of the repository.

Who knows what, who imports what, one rule book, files that can be copied.
"""

import ast
import dataclasses
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch

import submitit_launch as launcher
import tasks
import tiny
import train
from config import UserError, read_toml, with_entry
from model import TRM, ModelConfig, Shape, net_flop
from optim import make_optimizers
from runs import make_world
from train import Config, TrainConfig

ROOT = tiny.ROOT
# These know no task: neither by its name nor by what only one task has.
GENERIC = [
    "train",
    "data",
    "evaluate",
    "analyze",
    "plots",
    "solve",
    "submitit_launch",
    "bench",
    "model",
]
# What they may import of tasks/.
LIBRARIES = {"tasks", "tasks.base", "tasks.files", "tasks.puzzles"}
STAND_INS = {
    "per_digit",
    "classes",
    "plant",
    "Conditioned",
    "Planner",
    "encoder",
    "arc",
    "modulus",
    "plan",
}


def tree_of(name: str) -> ast.Module:
    return ast.parse((ROOT / f"{name}.py").read_text())


# ---------------------------------------------------------------- who knows what


def test_the_root_shows_at_most_sixteen_files():
    assert len(list(ROOT.glob("*.py"))) <= 16


@pytest.mark.parametrize("name", GENERIC)
def test_a_generic_file_names_no_task(name):
    found = []
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Constant) and node.value in tasks.TASKS:
            found.append((node.lineno, node.value))
        if isinstance(node, ast.Attribute) and node.attr in STAND_INS:
            found.append((node.lineno, node.attr))
        if isinstance(node, ast.Name) and node.id in STAND_INS:
            found.append((node.lineno, node.id))
    assert found == []


@pytest.mark.parametrize("name", GENERIC)
def test_a_generic_file_imports_no_task(name):
    found = set()
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.ImportFrom):
            found.add(node.module)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    assert {module for module in found if module.split(".")[0] == "tasks"} <= LIBRARIES


def test_every_task_is_a_class_with_its_own_name_title_and_table():
    for name in tasks.TASKS:
        task = tasks.get(name)
        assert task.name == name and task.title and task.Config().task == name
    with pytest.raises(KeyError):
        tasks.get("chess")


# ---------------------------------------------------------------- who imports what


def loaded_by(code: str, *words: str) -> set[str]:
    """Modules of ours and torch that a process has at its end."""
    ours = {path.stem for path in ROOT.glob("*.py")} | {"tasks", "torch"}
    show = f"; import sys; print(*(m for m in sys.modules if m.split('.')[0] in {ours!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code + show, *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    names = done.stdout.split("\n")[-2].split()
    return {name for name in names if not name.startswith("torch.")}


def test_config_loads_no_other_file_of_ours():
    assert loaded_by("import config") == {"config"}


@pytest.mark.parametrize("name", ["layers", "stats", "optim"])
@pytest.mark.slow
def test_a_part_loads_no_other_file_of_ours(name):
    assert loaded_by(f"import {name}") - {"torch"} == {name}


def test_the_net_loads_only_its_layers():
    assert loaded_by("import model") - {"torch"} == {"layers", "model"}


@pytest.mark.slow
def test_training_a_maze_loads_nothing_of_other_tasks(tmp_path):
    model = {"mixer": "conv"}
    maze = tiny.entry(tmp_path, data={"task": "maze", "size": 5, "walls": "perfect"}, model=model)
    code = "import sys, train; assert train.main(sys.argv[1:]) == 0"
    loaded = loaded_by(code, str(maze), f"--out={tmp_path}")
    of_tasks = {name for name in loaded if name.startswith("tasks")}
    own = {"tasks", "tasks.base", "tasks.files", "tasks.puzzles", "tasks.text", "tasks.maze"}
    assert of_tasks == own and "encoders" not in loaded


NO_TORCH = (
    "import sys; sys.modules['torch'] = None; import analyze; sys.exit(analyze.main(sys.argv[1:]))"
)


def test_analyze_works_without_torch(tmp_path):
    for name in ("a", "b"):
        tiny.run(tmp_path / "runs" / name / "seed0")
    words = [str(tmp_path / "runs"), f"--out={tmp_path / 'results'}"]
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results" / "table.md").read_text().count("| a |") == 2


# ---------------------------------------------------------------- one rule book

ENTRIES = sorted(path for path in (ROOT / "sweeps").rglob("*.toml") if path.name != "slurm.toml")
WRONG = [
    ("laptop/sudoku_9x9.toml", "--data.size=5"),
    ("laptop/sudoku_9x9.toml", "--data.reveal=2"),
    ("laptop/sudoku_9x9.toml", "--data.fresh=true"),
    ("laptop/sudoku_9x9.toml", "--data.givens_max=99"),
    ("laptop/sudoku_9x9.toml", "--data.val_rows=4000"),
    ("laptop/sudoku_9x9.toml", "--data.train_rows=-1"),
    ("laptop/sudoku_9x9.toml", "--data.train_rows=0"),
    ("laptop/sudoku_9x9.toml", "--data.task=chess"),
    ("laptop/sudoku_9x9.toml", "--model.per_digit=true"),
    ("laptop/maze_perfect.toml", "--data.size=6"),
    ("laptop/maze_perfect.toml", "--data.size=99"),
    ("laptop/maze_perfect.toml", "--data.wall_min=0.9"),
    ("laptop/maze_perfect.toml", "--data.redraw=2"),
    ("laptop/maze_perfect.toml", "--data.flip=0.7"),
    ("laptop/maze_perfect.toml", "--data.walls=brick"),
    ("laptop/maze_perfect.toml", "--data.reveal=0.5"),
    ("laptop/maze_perfect.toml", "--model.per_digit=true"),
    ("laptop/maze_perfect.toml", "--plan.hold=5"),
    ("laptop/maze_perfect.toml", "--arc.demos=2"),
    ("laptop/maze_perfect.toml", "--model.mixer=mlp --data.test_size=9"),
    ("laptop/maze_perfect.toml", "--train.eval_average=99"),
    ("laptop/maze_perfect.toml", "--model.halting=true --train.stagger=true"),
    ("laptop/maze_perfect.toml", "--train.lr=0"),
    ("features/classify.toml", "--model.mixer=conv"),
    ("features/classify.toml", "--data.noise=0"),
    ("features/classify.toml", "--train.eval_average=2"),
    ("grokking/adamw.toml", "--data.modulus=1"),
    ("grokking/adamw.toml", "--data.train_path=x.csv"),
    ("control/van_der_pol.toml", "--plan.hold=7"),
    ("control/van_der_pol.toml", "--data.plant=bicycle"),
    ("control/van_der_pol.toml", "--model.prefix=2"),
    ("encoders_laptop/E1v2.toml", "--encoder.kind=lookup"),
    ("encoders_laptop/E1v2.toml", "--arc.side=2"),
    ("encoders_laptop/E1v2.toml", "--data.size=9"),
    ("encoders_laptop/E0v2.toml", "--encoder.layers=3"),
    ("grid/lights_out.toml", "--data.size=five"),
]


@pytest.fixture
def verdicts(monkeypatch, capsys, tmp_path):
    """entry, words -> (exit code, sentence) of train.py and of the launcher. Nothing is trained."""
    monkeypatch.setattr(train, "train", lambda *args: {})

    def both(entry: Path, *words: str) -> list[tuple[int, str]]:
        found = []
        for main, more in ((train.main, []), (launcher.main, ["--dry-run", "--local"])):
            code = main([str(entry), *words, f"--out={tmp_path}", *more])
            found.append((code, capsys.readouterr().err))
        return found

    return both


@pytest.mark.slow
@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: str(path.relative_to(ROOT / "sweeps")))
def test_launcher_and_train_accept_the_same_entries(path, verdicts):
    assert verdicts(path) == [(0, ""), (0, "")]


@pytest.mark.parametrize("name, words", WRONG, ids=lambda value: value)
def test_launcher_and_train_refuse_the_same(name, words, verdicts):
    key = words.split()[-1].removeprefix("--").partition("=")[0]
    for code, error in verdicts(ROOT / "sweeps" / name, *words.split()):
        assert code == 2 and error.startswith("error: ") and error.count("\n") == 1
        assert key.rpartition(".")[2] in error or "size" in error


# ---------------------------------------------------------------- extensions that lack a part


def test_every_mixer_can_be_made_and_has_a_cost():
    for mixer in typing.get_args(ModelConfig.__dataclass_fields__["mixer"].type):
        cfg = ModelConfig(dim=16, heads=2, mixer=mixer, prefix=0, multiple=8)
        shape = Shape(16, 6, 1, 2, 2)
        TRM(cfg, shape)
        assert net_flop(cfg, shape, 1) > 0


def test_a_mixer_without_a_cost_fails_before_training(tmp_path, monkeypatch):
    cfg = tiny.config()
    monkeypatch.setattr("model.net_flop", lambda *args: {}["unknown"])
    with pytest.raises(KeyError, match="unknown"):
        train.train(cfg, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_optimizer_that_nobody_makes_fails_before_training():
    net = torch.nn.Linear(2, 2)
    for name in typing.get_args(TrainConfig.__dataclass_fields__["optimizer"].type):
        assert make_optimizers(net, dataclasses.replace(TrainConfig(), optimizer=name))
    with pytest.raises((ValueError, KeyError), match="sgd"):
        make_optimizers(net, dataclasses.replace(TrainConfig(), optimizer="sgd"))


# ---------------------------------------------------------------- files that can be copied

SCRIPT = """
import torch
from model import TRM, ModelConfig, Shape

torch.manual_seed(0)
cfg = ModelConfig(dim=32, heads=4, multiple=8, T=2, n=2, n_sup=2, prefix=0, q_from="mean")
net = TRM(cfg, Shape(seq_len=8, vocab_size=4)).train()
optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
carry, losses = None, []
for step in range(60):
    question = torch.randint(1, 4, (16, 8))
    batch = {"inputs": question, "labels": question.flip(1), "puzzle": torch.zeros(16).long()}
    carry = net.refill(carry or net.start(batch), batch)
    carry, out = net.step(carry)
    loss, sums = net.loss(out, carry)
    (loss / 16).backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(float(sums["answer_loss"]) / 16)
print(losses[0], losses[-1])
assert losses[-1] < 0.9 * losses[0]
"""

COPIES = {  # what the README offers -> a script that uses it alone
    ("layers.py", "model.py"): SCRIPT,
    ("config.py", "tasks/puzzles.py"): (
        "from tasks.puzzles import solve_maze; assert solve_maze('S #  # G ')"
    ),
    ("optim.py",): "from optim import AdamAtan2, GrokFast, Muon",
    ("config.py",): "from config import load_config",
    ("config.py", "runs.py"): (
        "from pathlib import Path; from runs import write_atomic; "
        "write_atomic(Path('x'), lambda f: f.write(b'y')); assert Path('x').read_bytes() == b'y'"
    ),
    ("layers.py", "model.py", "config.py", "encoders.py"): "from encoders import Conditioned",
    ("stats.py",): "from stats import interval, paired",
}


@pytest.mark.slow
@pytest.mark.parametrize("names", COPIES, ids=" ".join)
def test_files_work_in_an_empty_folder(names, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", COPIES[names]], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_offers_these_copies():
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## Take what you need") :].split("\n## ")[0]
    lines = section.splitlines()
    for names in COPIES:
        quoted = [f"`{name}`" for name in names]
        assert any(all(name in line for name in quoted) for line in lines), names


# ---------------------------------------------------------------- older folders


def test_an_unknown_task_is_refused_with_the_nearest_name(tmp_path, capsys):
    entry = tiny.entry(tmp_path, data={"task": "suduko"})
    assert train.main([str(entry)]) == 2
    error = capsys.readouterr().err
    assert "task = 'suduko'" in error and "did you mean 'sudoku'?" in error


def test_a_table_of_another_task_is_an_unknown_key(tmp_path):
    entry = tiny.entry(tmp_path, plan={"hold": 2})
    with pytest.raises(UserError, match="unknown key 'plan'"):
        train.load_config(Config, entry, {})


def test_a_world_of_one_needs_no_process_group():
    world = make_world(tiny.config().train)
    assert world.sum(torch.ones(2)).tolist() == [1, 1] and world.max(3) == 3


# ---------------------------------------------------------------- finding the way

COMMANDS = ["train", "evaluate", "analyze", "solve", "submitit_launch", "bench", "probes", "data"]


def call(capsys, *words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of train.py."""
    capsys.readouterr()
    code = train.main([*map(str, words)])
    return code, *capsys.readouterr()


def test_train_alone_lists_the_entries_with_their_hypotheses(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, out, _ = call(capsys)
    assert code == 0
    for path in ENTRIES:
        assert f"  {path.stem} " in out and f"{path.parent.relative_to(ROOT)}/" in out
    words = read_toml(ROOT / "sweeps/grid/lights_out.toml")["hypothesis"]
    assert words[:60] in out


def test_the_name_of_an_entry_finds_it_or_what_is_meant(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = "sweeps/laptop/maze_perfect.toml"
    assert with_entry(["--seed", "1", "maze_perfect"]) == ["--seed", "1", path]
    assert with_entry(["--train.grokfast", "ema", path]) == ["--train.grokfast", "ema", path]
    code, _, err = call(capsys, "maze_perfct")
    assert code == 2 and path in err
    code, _, err = call(capsys, "baseline")
    assert code == 2 and "sweeps/ablation/baseline.toml or sweeps/ablation_laptop/" in err


def test_help_shows_the_values_of_the_entry_beside_the_defaults(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        train.main(["maze_perfect", "--help"])
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("Values of sweeps/laptop/maze_perfect.toml:")
    assert lines[at + 1].split() == ["--train.steps=550", "(default", "1000)"]
    own = "\n".join(lines[at : lines.index("", at)])
    assert '--model.mixer="conv"' in own and "--train.beta1" not in own


@pytest.mark.parametrize("word, meant", [("--lr", "--train.lr"), ("--n=3", "--model.n")])
def test_a_key_without_its_table_is_told_the_table(word, meant, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, _, err = call(capsys, "maze_perfect", word, "1")
    assert code == 2 and f"did you mean {meant}?" in err


@pytest.mark.parametrize("name", sorted(p.stem for p in ROOT.glob("*.py")))
def test_a_file_that_is_no_command_says_so(name):
    if name in COMMANDS:
        assert "def main(" in (ROOT / f"{name}.py").read_text()
        return
    done = subprocess.run([sys.executable, f"{name}.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"{name}.py is a part to import") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_a_forgotten_environment_is_one_sentence(name):
    """-S: without the folder of installed packages."""
    words = ["-m", name] if name == "submitit_launch" else [f"{name}.py"]
    command = [sys.executable, "-S", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert re.match(r"error: (numpy|torch) is not installed for this Python; ", done.stderr)
