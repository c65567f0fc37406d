"""From TOML and the command line to a Config.

Layers, every error sentence, --help, the round trip, every entry in sweeps/.
"""

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tasks
import tiny
import train as training
from config import build, command_line, comments, flatten, load_config, read_toml, to_toml
from model import ModelConfig
from train import Config, TrainConfig, main

Maze = Config.of("maze")
ENTRIES = sorted((tiny.ROOT / "sweeps").rglob("*.toml"))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refused(capsys, out: Path, *words) -> str:
    """The sentence of a command that must be refused.

    That is: exit code 2, one line on stderr, nothing on stdout and no run folder.
    """
    assert main([*map(str, words), f"--out={out}"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert not out.exists()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: "), captured.err
    return lines[0].removeprefix("error: ")


@pytest.fixture(autouse=True)
def nothing_trains(monkeypatch):
    """A mistake that is not refused ends here, and not in a training of the default net."""

    def accepted(*args):
        raise AssertionError("accepted")

    monkeypatch.setattr(training, "make_run", accepted)


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "never_made"


# ---------------------------------------------------------------- layers


def test_the_command_line_overrides_the_entry_which_overrides_its_base(tmp_path):
    write(
        tmp_path / "a" / "base.toml",
        'hypothesis = "of the base"\nseed = 3\n'
        "[model]\ndim = 32\nheads = 2\nn = 5\n"
        "[train]\nlr = 1\n",
    )
    entry = write(
        tmp_path / "a" / "b" / "entry.toml",
        'base = "../base.toml"\nmodel.heads = 4\nmodel.n = 7\n[train]\nsteps = 9\n',
    )
    cfg = load_config(Config, entry, {"model": {"n": 1}, "seed": 8})
    assert (cfg.model.dim, cfg.model.heads, cfg.model.n, cfg.model.T) == (32, 4, 1, ModelConfig().T)
    assert (cfg.train.lr, cfg.train.steps, cfg.seed) == (1.0, 9, 8)
    assert isinstance(cfg.train.lr, float)
    assert cfg.hypothesis == "", "a hypothesis belongs to one entry"


def test_without_anything_the_defaults_hold(tmp_path):
    assert load_config(Config, write(tmp_path / "empty.toml", ""), {}) == Maze()


def test_the_slurm_table_is_left_to_the_launcher(tmp_path):
    assert (
        load_config(
            Config, write(tmp_path / "e.toml", "[slurm]\npartition = 3\nanything = []\n"), {}
        )
        == Maze()
    )


def test_both_ways_to_write_an_override_are_the_same(tmp_path):
    entry = write(tmp_path / "e.toml", "")
    one = command_line(
        Config,
        [
            str(entry),
            "--train.steps=200",
            "--model.mixer=conv+attention",
            "--data.augment=false",
            "--train.lr=1e-3",
        ],
        "",
    )
    two = command_line(
        Config,
        [
            "--train.steps",
            "200",
            "--model.mixer",
            "conv+attention",
            str(entry),
            "--data.augment",
            "false",
            "--train.lr",
            "0.001",
        ],
        "",
    )
    assert (
        one
        == two
        == (
            entry,
            {
                "train": {"steps": 200, "lr": 0.001},
                "model": {"mixer": "conv+attention"},
                "data": {"augment": False},
            },
        )
    )


def test_words_stay_words_where_a_string_is_wanted(tmp_path):
    words = [
        "e.toml",
        "--data.train_path=123",
        "--train.wandb=true",
        "--out=1e3",
        "--train.dtype=float32",
    ]
    assert command_line(Config, words, "")[1] == {
        "data": {"train_path": "123"},
        "train": {"wandb": "true", "dtype": "float32"},
        "out": "1e3",
    }


def test_numbers_may_lack_the_digit_that_toml_demands(tmp_path):
    assert command_line(Config, ["e.toml", "--train.lr=.5", "--model.expansion=2."], "")[1] == {
        "train": {"lr": 0.5},
        "model": {"expansion": 2.0},
    }


# ---------------------------------------------------------------- error sentences


@pytest.mark.parametrize(
    "text, sentence",
    [
        (
            "[model]\nexpansoin = 3.0",
            r"{e} \[model\]: unknown key 'expansoin', did you mean 'expansion'\?",
        ),
        ("[train]\nlearning_rate = 3", r"{e} \[train\]: unknown key 'learning_rate'.*"),
        ("[modle]\ndim = 3", r"{e}: unknown key 'modle', did you mean 'model'\?"),
        ("sede = 3", r"{e}: unknown key 'sede', did you mean 'seed'\?"),
        (
            "qqqq = 3",
            (
                r"{e}: unknown key 'qqqq'; "
                r"known are hypothesis, expected, seed, out, model, data, train"
            ),
        ),
        ("model = 3", r"{e}: model = 3, expected a table \[model\]"),
        (
            "[model]\ndim = 'big'",
            r"{e} \[model\]: dim = 'big', expected an integer \(default 512\)",
        ),
        ("[model]\nT = 3.0", r"{e} \[model\]: T = 3.0, expected an integer \(default 3\)"),
        ("[model]\nT = true", r"{e} \[model\]: T = True, expected an integer \(default 3\)"),
        (
            "[model]\nhalting = 1",
            r"{e} \[model\]: halting = 1, expected true or false \(default True\)",
        ),
        (
            "[model]\nexplore = '0.1'",
            r"{e} \[model\]: explore = '0.1', expected a number \(default 0.1\)",
        ),
        (
            "[model]\nexplore = true",
            r"{e} \[model\]: explore = True, expected a number \(default 0.1\)",
        ),
        ("[train]\nlr = inf", r"{e} \[train\]: lr = inf, expected a number \(default 0.0001\)"),
        ("[train]\nclip = nan", r"{e} \[train\]: clip = nan, expected a number \(default 0.0\)"),
        ("[train]\nwandb = 3", r"{e} \[train\]: wandb = 3, expected a string \(default ''\)"),
        (
            "[model]\nmixer = 'atention'",
            (
                r"{e} \[model\]: mixer = 'atention', expected one of 'attention', 'mlp', .* "
                r"\(default 'attention'\), did you mean 'attention'\?"
            ),
        ),
        (
            "[model]\nmixer = 7",
            (
                r"{e} \[model\]: mixer = 7, expected one of 'attention', 'mlp', .* "
                r"\(default 'attention'\)"
            ),
        ),
        (
            "[model]\nmixer = ['mlp']",
            r"{e} \[model\]: mixer = \['mlp'\], expected one of 'attention', .*",
        ),
        ("[model]\nT = 2\ngrad_cycles = 3", r"{e} \[model\]: grad_cycles = 3, expected 1 to T = 2"),
        (
            "[model]\nheads = 7",
            r"{e} \(default\) \[model\]: dim = 512, expected a multiple of 14 .*",
        ),
        (
            "[model]\nmixer = 'conv'",
            r"{e} \(default\) \[model\]: prefix = 16, expected 0 with mixer = 'conv'.*",
        ),
        ("[train]\nlr = -1", r"{e} \[train\]: lr = -1.0, expected more than 0"),
        (
            "[train]\nbatch_size = 10\naccumulate = 4",
            r"{e} \[train\]: accumulate = 4, expected a divisor of batch_size = 10",
        ),
        (
            "[model]\nmixer = 'mlp'\n[data]\nsize = 9\ntest_size = 11",
            r"{e} \[data\]: test_size = 11, expected data.size: .*",
        ),
        (
            "[train]\nstagger = true",
            r"{e} \[train\]: stagger = True, expected false, or model.halting = false: .*",
        ),
        (
            "[train]\neval_steps = 4\neval_average = 5",
            (
                r"{e} \[train\]: eval_average = 5, "
                r"expected at most the 4 supervision steps of an evaluation"
            ),
        ),
        (
            "[data]\ntask = 'modular'\n[train]\neval_average = 2",
            r"{e} \[train\]: eval_average = 2, expected 1 with data.task = 'modular': .*",
        ),
        ("seed = -1", r"{e}: seed = -1, expected 0 or more"),
        ("hypothesis = 3", r"{e}: hypothesis = 3, expected a string \(default ''\)"),
        ("base = 3", r"{e}: base = 3, expected the path of another entry"),
        (
            "base = 'gone.toml'",
            r"{d}/gone.toml: cannot read the entry \(No such file or directory\)",
        ),
        ("[model", r"{e}: not a TOML file \(.*\)"),
        ("[model]\ndim = 3\ndim = 4", r"{e}: not a TOML file \(.*\)"),
    ],
)
def test_a_wrong_entry_is_refused_in_one_sentence(text, sentence, tmp_path, out, capsys):
    entry = write(tmp_path / "wrong.toml", text)
    assert re.fullmatch(
        sentence.replace("{e}", re.escape(str(entry))).replace("{d}", re.escape(str(tmp_path))),
        refused(capsys, out, entry),
    )


@pytest.mark.parametrize(
    "words, sentence",
    [
        (
            ["--trian.steps=5"],
            "command line: unknown key '--trian.steps=5', did you mean 'train.steps'?",
        ),
        (
            ["--train.steps"],
            "command line: argument --train.steps: expected one argument; "
            "see python train.py --help",
        ),
        (
            ["--model.dim=big"],
            "command line [model]: dim = 'big', expected an integer (default 512)",
        ),
        (
            ["--model.dim", "[1]"],
            "command line [model]: dim = [1], expected an integer (default 512)",
        ),
        (["--train.lr=1e"], "command line [train]: lr = '1e', expected a number (default 0.0001)"),
        (
            ["--data.augment=maybe"],
            "command line [data]: augment = 'maybe', expected true or false (default True)",
        ),
        (
            ["--model.loss=softmx"],
            (
                "command line [model]: loss = 'softmx', expected one of 'stablemax', 'softmax' "
                "(default 'stablemax'), did you mean 'softmax'?"
            ),
        ),
        (["--train.beta1=1"], "command line [train]: beta1 = 1.0, expected 0 or more, below 1"),
        (["--seed=-1"], "command line: seed = -1, expected 0 or more"),
        (["--seed=one"], "command line: seed = 'one', expected an integer (default 0)"),
        (["another.toml"], "command line: unexpected word 'another.toml'"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_sentence(words, sentence, tmp_path, out, capsys):
    assert refused(capsys, out, tiny.entry(tmp_path), *words) == sentence


@pytest.mark.parametrize(
    "word, option",
    [("--train.lr=.1,.2", "--train.lr=.1,.2"), ("--seed=0,1", "--seeds=0,1")],
)
def test_several_values_of_a_key_are_for_the_launcher(word, option, tmp_path, out, capsys):
    sentence = refused(capsys, out, tiny.entry(tmp_path), word)
    assert "expected one value here" in sentence
    assert f"python -m submitit_launch {tiny.entry(tmp_path)} {option} " in sentence


def test_a_command_without_an_entry_is_refused(out, capsys):
    words = "command line: the following arguments are required: entry; see python train.py --help"
    assert refused(capsys, out) == words


def test_an_entry_that_cannot_be_read_is_refused(tmp_path, out, capsys):
    assert (
        refused(capsys, out, tmp_path / "gone.toml")
        == f"{tmp_path}/gone.toml: cannot read the entry (No such file or directory)"
    )
    advice = f"python -m submitit_launch {tmp_path} trains all"
    assert (
        refused(capsys, out, tmp_path) == f"{tmp_path}: is a folder, expected one entry; {advice}"
    )
    (tmp_path / "latin.toml").write_bytes(b'hypothesis = "\xe9"')
    assert refused(capsys, out, tmp_path / "latin.toml").startswith(
        f"{tmp_path}/latin.toml: not a TOML file ("
    )


def test_a_base_may_have_a_base(tmp_path):
    write(tmp_path / "a.toml", 'hypothesis = "a"\nmodel.dim = 32\nmodel.n = 1\nmodel.T = 5\n')
    (tmp_path / "below").mkdir()
    write(tmp_path / "below/b.toml", 'hypothesis = "b"\nbase = "../a.toml"\nmodel.n = 2\n')
    entry = write(tmp_path / "c.toml", 'base = "below/b.toml"\nmodel.T = 7\n')
    cfg = load_config(Config, entry, {})
    assert (cfg.model.dim, cfg.model.n, cfg.model.T, cfg.hypothesis) == (32, 2, 7, "")


def test_a_base_that_leads_back_is_refused_with_the_chain(tmp_path, out, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, base in ("ab", "bc", "cb"):
        write(tmp_path / f"{name}.toml", f'base = "{base}.toml"\n')
    chain = "a.toml -> b.toml -> c.toml -> b.toml"
    assert refused(capsys, out, "a.toml") == f"a.toml: base leads back to itself: {chain}"
    write(tmp_path / "own.toml", 'base = "own.toml"\n')
    assert "own.toml -> own.toml" in refused(capsys, out, "own.toml")


def test_errors_of_a_base_carry_its_name(tmp_path, out, capsys):
    entry = write(tmp_path / "d.toml", 'base = "e.toml"\n')
    write(tmp_path / "e.toml", "model.dmi = 32\n")
    assert (
        refused(capsys, out, entry)
        == f"{tmp_path}/e.toml [model]: unknown key 'dmi', did you mean 'dim'?"
    )
    write(tmp_path / "e.toml", "model.explore = 32\n")
    assert (
        refused(capsys, out, entry)
        == f"{tmp_path}/e.toml [model]: explore = 32.0, expected a probability, 0 to 1"
    )
    write(tmp_path / "e.toml", "model.T = 2\nmodel.grad_cycles = 2\n")
    assert (
        refused(capsys, out, entry, "--model.T=1")
        == f"{tmp_path}/e.toml [model]: grad_cycles = 2, expected 1 to T = 1"
    )


@pytest.mark.parametrize(
    "words, key",
    [
        (["--data.size=5"], "size = 5"),
        (["--data.test_size=6"], "data.test_size"),
        (["--data.givens_min=17"], "givens_min = 17"),
        (["--data.val_rows=40"], "val_rows"),
        (["--data.train_rows=-3"], "train_rows = -3"),
        (["--data.fresh=true"], "data.fresh"),
        (["--data.generate=false"], "data.test_path"),
        (["--data.train_path=gone.csv"], "gone.csv"),
    ],
)
def test_impossible_data_is_refused_before_anything_is_written(words, key, tmp_path, out, capsys):
    assert key in refused(capsys, out, tiny.entry(tmp_path), *words)


def test_a_real_process_says_the_same(tmp_path, out):
    entry = write(tmp_path / "wrong.toml", "[model]\nexpansoin = 3.0")
    process = tiny.spawn(entry, f"--out={out}")
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (2, "") and not out.exists()
    assert stderr == f"error: {entry} [model]: unknown key 'expansoin', did you mean 'expansion'?\n"


# ---------------------------------------------------------------- --help and config.toml


def meaning_of(cls, name: str) -> str:
    """The comment of a field in the source: behind it, or in the lines above it."""
    for base in cls.__mro__:
        if base.__module__ == "builtins":
            continue
        lines = Path(sys.modules[base.__module__].__file__).read_text().splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith(f"class {base.__name__}"))
        for at in range(start + 1, len(lines)):
            if lines[at].startswith(("class ", "def ")):
                break
            if lines[at].startswith(f"    {name}: "):
                while "  # " not in lines[at] and lines[at].endswith(("[", "(")):
                    at += next(i for i, line in enumerate(lines[at:]) if line.startswith("    ]"))
                if "  # " in lines[at]:
                    return lines[at].split("  # ", 1)[1]
                words = []
                at = next(i for i, line in enumerate(lines) if line.startswith(f"    {name}: "))
                while lines[at - 1].startswith("    # "):
                    at -= 1
                    words.insert(0, lines[at].removeprefix("    # "))
                return " ".join(words)
    return ""


def classes_of(task: str) -> dict[str, type]:
    """Table -> the dataclass that a task has for it; "" holds the keys outside tables."""
    fields = {f.name: f.type for f in dataclasses.fields(Config.of(task))}
    tables = {name: kind for name, kind in fields.items() if dataclasses.is_dataclass(kind)}
    return {"": Config} | tables


@pytest.mark.parametrize("task", tasks.TASKS)
def test_help_lists_every_key_with_its_meaning_choices_and_default(task, capsys):
    with pytest.raises(SystemExit) as end:
        main([f"--data.task={task}", "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for table, cls in classes_of(task).items():
        for f in dataclasses.fields(cls):
            if dataclasses.is_dataclass(f.type) or f.name == "hypothesis":
                continue
            key = f"{table}.{f.name}".strip(".")
            meaning = " ".join(meaning_of(cls, f.name).split())
            assert meaning, f"{key} has no comment"
            choices = r"\{[^}]*\} " if getattr(f.type, "__args__", ()) else ""
            form = rf"--{re.escape(key)} {re.escape(meaning)} ({choices})\(default ([^)]*)\)"
            shown = re.search(form, text)
            assert shown, f"{key} is not in --help as it is in the code"
            assert shown[2] == repr(f.default)
            for choice in getattr(f.type, "__args__", ()):
                assert str(choice) in shown[1]


def test_comments_are_found_behind_a_field_and_above_it():
    found = comments(TrainConfig)
    assert found["steps"] == "optimizer steps, one supervision step each"
    assert found["ema"].startswith("decay of the averaged weights (EMA), which are evaluated")


@pytest.mark.parametrize("task", tasks.TASKS)
def test_config_toml_gives_the_config_back(task, tmp_path):
    cls = Config.of(task)
    odd = dataclasses.replace(
        cls(hypothesis='A "quoted" \\ line\nand é, 数, \t tab', seed=12345, out="a b/c"),
        train=TrainConfig(lr=1e-30, ema=0.0, steps=10**12, grokfast="highpass", beta2=0.1 + 0.2),
    )
    keys = {
        f"{table}.{f.name}".strip(".")
        for table, kind in classes_of(task).items()
        for f in dataclasses.fields(kind)
        if not dataclasses.is_dataclass(f.type)
    }
    assert flatten(odd).keys() == keys - {"model", "data", "train"}
    path = write(tmp_path / "config.toml", to_toml(odd, "sweeps/some entry.toml"))
    assert build(cls, read_toml(path)) == odd


def test_a_maze_s_config_toml_with_odd_values_loads(tmp_path):
    model = ModelConfig(mixer="conv+attention", explore=1 / 3)
    odd = Maze(model=model, data=dataclasses.replace(Maze().data, train_path="é.csv"))
    for cfg in (Maze(), odd):
        path = write(tmp_path / "config.toml", to_toml(cfg, "sweeps/some entry.toml"))
        assert load_config(Config, path, {}) == cfg


def test_config_knows_no_torch():
    code = "import config, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT).returncode == 0


# ---------------------------------------------------------------- sweeps/


def test_there_are_entries():
    names = {str(p.relative_to(tiny.ROOT / "sweeps")) for p in ENTRIES}
    assert names >= {"maze_baseline.toml", "sudoku_mlp.toml", "sudoku_attention.toml"} and any(
        n.startswith("laptop/") for n in names
    )


@pytest.mark.parametrize(
    "path", ENTRIES, ids=lambda p: str(p.relative_to(tiny.ROOT / "sweeps").with_suffix(""))
)
def test_every_entry_loads_and_makes_a_net(path):
    cfg = load_config(Config, path, {})
    assert len(cfg.hypothesis) > 20 and cfg.hypothesis.endswith((".", ")")), (
        "an entry starts with a sentence that can turn out false"
    )
    with torch.device("meta"):
        net = cfg.task.make_net(cfg, cfg.task.shape(cfg), torch.float32)
    assert sum(p.numel() for p in net.parameters()) > 1000
    assert cfg.task.flop(cfg, net) >= 0


def test_the_baseline_is_the_paper_s():
    cfg = load_config(Config, tiny.ROOT / "sweeps" / "maze_baseline.toml", {})
    m, t = cfg.model, cfg.train
    assert (
        m.T,
        m.n,
        m.dim,
        m.n_layers,
        m.heads,
        m.mixer,
        m.positions,
        m.norm_place,
        m.mlp,
        m.n_sup,
    ) == (3, 6, 512, 2, 8, "attention", "rope", "post", "swiglu", 16)
    assert (t.batch_size, t.lr, t.weight_decay, t.warmup, t.ema, t.schedule, t.beta1, t.beta2) == (
        768,
        1e-4,
        1.0,
        2000,
        0.999,
        "constant",
        0.9,
        0.95,
    )
    assert (
        math.isclose(t.steps, 60_000 * 1000 / 768, rel_tol=0.01)
        and not m.continue_loss
        and cfg.data.size == 30
    )


@pytest.mark.parametrize("name", ["maze_baseline", "sudoku_mlp", "sudoku_attention"])
def test_without_a_network_a_sentence_says_what_to_fetch_by_hand(
    name, out, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    sentence = refused(capsys, out, tiny.ROOT / "sweeps" / f"{name}.toml")
    saved = "maze_hard" if name == "maze_baseline" else "sudoku_extreme"
    assert "http://127.0.0.1:9/datasets/" in sentence and "by hand and save it as" in sentence
    assert f"data/{saved}_train.csv" in sentence and "--data.generate=true" in sentence
    assert sentence.count(". ") == 0


def test_generate_on_the_command_line_takes_back_the_files_of_an_entry():
    entry = tiny.ROOT / "sweeps/ablation/baseline.toml"
    assert load_config(Config, entry, {}).data.train_path == "data/maze_hard_train.csv"
    cfg = load_config(Config, entry, {"data": {"generate": True, "test_path": "own.csv"}})
    assert (cfg.data.train_path, cfg.data.test_path) == ("", "own.csv")
