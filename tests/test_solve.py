"""solve.py: what the net answers and what bad input is told.

The answers, the verdict on them, puzzles in and pictures out.
"""

import io
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import data
import solve
import tasks
import tiny
from evaluate import evaluate
from runs import World
from tasks import puzzles
from train import load_run

MAZE = "S   #\n### #\n#   #\n# ###\n#   G"
SUDOKU_TASK = tasks.get("sudoku")
SUDOKU, SOLVED = "12.. ..12 .1.. 4..1".replace(" ", ""), "1234341221434321"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Tiny trained nets.

    For mazes of any size, for 5x5 mazes only (two reasons), with random first states,
    for 4x4 Sudoku.
    """
    root, maze = tmp_path_factory.mktemp("runs"), {"task": "maze", "size": 5, "walls": "perfect"}
    tiny.run(root / "maze", data=maze, model={"mixer": "conv"})
    tiny.run(root / "mlp", data=maze, model={"mixer": "mlp"})
    tiny.run(
        root / "learned",
        data=maze,
        model={"mixer": "attention", "positions": "learned"},
        train={"steps": 1},
    )
    tiny.run(root / "rope", data=maze, model=tiny.ATTENTION, train={"steps": 1})
    tiny.run(
        root / "random", data=maze, model={"mixer": "conv", "init": "random"}, train={"steps": 1}
    )
    tiny.run(root / "sudoku")
    return root


def trace(task, question, answers, label=None):
    """A trace of given answers, written as text."""

    def token(char):
        return puzzles.MAZE.index(char) + 1 if task == "maze" else int(char.replace(".", "0")) + 1

    def tokens(text):
        return np.array([token(char) for char in text], dtype=np.uint8)

    return solve.Trace(
        tasks.get(task),
        tasks.get(task).Config(),
        tokens(question),
        np.stack([tokens(a) for a in answers]),
        np.linspace(0.1, 0.9, len(answers)),
        None if label is None else tokens(label),
        "" if label else "nobody knows",
    )


def draw(cfg, seed, count=1):
    return cfg.task.draw_puzzle(cfg, seed, 0, count)


def kinds(t, step):
    rows, cols = t.sides()
    return t.kinds(step).reshape(rows, cols).tolist()


@pytest.mark.parametrize("name", ["maze", "random", "sudoku"])
def test_answers_are_those_that_evaluate_scores(runs, name):
    cfg, net, _ = load_run(runs / name)
    question, _ = draw(cfg, seed=5)
    answers = solve.solve(cfg.task, cfg, net, question, steps=3).answers
    for wanted in answers:
        split = data.Split(question[None], wanted[None])
        curve = evaluate(net, split, cfg, World(0, 1, torch.device("cpu"), torch.float32, False))[
            "curve"
        ]
        assert curve == [float((answer == wanted).all()) for answer in answers]


def test_the_last_answer_is_averaged_where_evaluation_averages(runs):
    cfg, net, _ = load_run(runs / "sudoku")
    with torch.no_grad():
        net.head.weight.normal_(0, 3.0)  # answers that change from step to step
    averaged, differ = replace(cfg, train=replace(cfg.train, eval_average=3)), 0
    for seed in range(8):
        question, _ = draw(cfg, seed)
        own, answers = (
            solve.solve(cfg.task, c, net, question, steps=3).answers for c in (cfg, averaged)
        )
        split = data.Split(question[None], answers[-1:])
        result = evaluate(
            net, split, averaged, World(0, 1, torch.device("cpu"), torch.float32, False)
        )
        assert result["exact"] == 1 and (answers[:-1] == own[:-1]).all()
        differ += (answers[-1] != own[-1]).any()
    assert differ


def test_it_prints_grid_verdict_and_halting_and_writes_both_pictures(runs, tmp_path, capsys):
    assert solve.main([str(runs / "maze"), MAZE, "--steps=4", "--out", str(tmp_path / "new")]) == 0
    out = capsys.readouterr().out
    for part in (
        "puzzle  maze 5x5, yours",
        "\nrules   ",
        "\nlabel   ",
        "\nsteps   4 used",
        "|S       ",
    ):
        assert part in out
    rows = {
        line.split()[0]: line.split()[1:]
        for line in out.splitlines()
        if line.startswith(("step ", "halt ", "changed ", "wrong "))
    }
    assert (
        rows["step"] == list("1234")
        and all(len(row) == 4 for row in rows.values())
        and len(rows) == 4
    )
    with (
        Image.open(tmp_path / "new/solved.png") as png,
        Image.open(tmp_path / "new/solved.gif") as gif,
    ):
        assert png.size[0] > 1000 and gif.size[0] > 400
        shown = 0
        for frame in range(gif.n_frames):  # equal frames in a row are merged into a longer one
            gif.seek(frame)
            shown += gif.info["duration"]
    assert shown == 500 * (2 + 4 + 3)  # question, steps, the last one once more


@pytest.mark.parametrize(
    "answer, rules, label",
    [
        ("SoG      ", "and none is shorter", "right in all 9 cells"),
        ("S Go oooo", "but a shorter one exists", "wrong in 6 of 9 cells"),
        ("SoGo     ", "broken", "wrong in 1 of 9 cells"),
        ("SoG #    ", "broken", "wrong in 1 of 9 cells"),
    ],
)
def test_verdict_on_a_maze(answer, rules, label):
    text = solve.report(trace("maze", "S G      ", [answer], "SoG      "))
    assert rules in text.split("rules")[1].splitlines()[0] and f"label   {label}" in text


@pytest.mark.parametrize(
    "answer, rules",
    [
        (SOLVED, "kept"),
        (SOLVED[:-1] + "4", "broken"),
        ("2" + SOLVED[1:], "broken"),
        (SUDOKU, "broken"),
    ],
)
def test_verdict_on_a_sudoku(answer, rules):
    assert f"rules   {rules}: " in solve.report(trace("sudoku", SUDOKU, [answer], SOLVED))


def test_halting_sentence_names_the_step_and_whether_the_answer_still_changed():
    t = trace("maze", "S G      ", ["S G      ", "S G      ", "SoG      "], "SoG      ")
    for halt, says in (
        ([0.1, 0.6, 0.9], "would stop after step 2, where the answer was another one"),
        ([0.1, 0.2, 0.9], "after step 3, where the answer was the same"),
        ([0.1, 0.2, 0.5], "would have used all of them"),
    ):
        t.halt = np.array(halt)
        assert says in solve.report(t)


def test_cells_are_told_apart():
    t = trace("maze", "S G #    ", ["S Go    o", "SoG #   o"], "SoG #    ")
    assert kinds(t, 0) == [
        ["start", "free", "goal"],
        ["free", "wall", "free"],
        ["free", "free", "free"],
    ]
    assert kinds(t, 1) == [
        ["start", "missing", "goal"],
        ["stray", "stray", "free"],
        ["free", "free", "stray"],
    ]
    assert kinds(t, 2) == [
        ["start", "new", "goal"],
        ["free", "wall", "free"],
        ["free", "free", "stray"],
    ]
    t.label = None  # only what the question forbids is wrong then
    assert kinds(t, 1) == [
        ["start", "free", "goal"],
        ["new", "stray", "free"],
        ["free", "free", "new"],
    ]
    t = trace("sudoku", SUDOKU, ["22" + SOLVED[2:-2] + "41", SOLVED], SOLVED)
    assert kinds(t, 0)[0] == ["given", "given", "blank", "blank"]
    assert kinds(t, 1)[0] == ["wrong", "given", "new", "new"]
    assert kinds(t, 1)[3] == ["given", "new", "wrong", "given"]
    assert kinds(t, 2)[3] == ["given", "filled", "new", "given"]


def test_a_puzzle_may_come_as_word_file_or_standard_input(runs, tmp_path, monkeypatch, capsys):
    (tmp_path / "maze.txt").write_text(MAZE.replace("\n#   #", "\n#   #") + "\n")
    outputs = []
    for word in MAZE.replace("\n", ""), str(tmp_path / "maze.txt"), "-":
        monkeypatch.setattr("sys.stdin", io.StringIO(MAZE + "\n\n"))
        assert solve.main([str(runs / "maze"), word, "--out", str(tmp_path)]) == 0
        outputs.append(capsys.readouterr().out)
    assert len(set(outputs)) == 1
    cfg = tiny.config(data={"task": "maze", "size": 5}, model={"mixer": "conv"})
    assert (
        cfg.task.parse(cfg, "S #\n\n #G") == cfg.task.parse(cfg, "S #    #G")
    ).all()  # trailing spaces may be lost
    assert (
        SUDOKU_TASK.parse(tiny.config(), "12 .. 0012\n.1..\n40 01\n")
        == SUDOKU_TASK.parse(tiny.config(), SUDOKU)
    ).all()


@pytest.mark.parametrize("name", ["maze", "rope"])
@pytest.mark.slow
def test_a_net_whose_weights_fit_any_size_takes_other_mazes_and_more_steps(
    runs, name, tmp_path, capsys
):
    assert solve.main([str(runs / name), "--size=11", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "maze 11x11, new (perfect walls, seed 0)" in out and "7 used" in out  # 3 steps for 5x5


def test_new_puzzles_follow_the_seed_and_are_none_of_the_test_split(runs):
    cfg, _, _ = load_run(runs / "sudoku")
    draws = [draw(cfg, seed)[0] for seed in (0, 0, 1, 2)]
    assert (draws[0] == draws[1]).all() and (draws[0] != draws[2]).any()
    test = data.load(cfg).test.inputs
    assert not any((draw == row).all() for draw in draws for row in test)
    most, source = draw(cfg, 0, count=8)
    assert "fewest givens of 8 new ones" in source and (most == 1).sum() >= (draws[0] == 1).sum()


def test_a_run_on_a_file_shows_rows_of_its_test_file(tmp_path):
    (tmp_path / "test.csv").write_text(f"question,answer\n{SOLVED},{SOLVED}\n{SUDOKU},{SOLVED}\n")
    cfg = tiny.config(data={"test_path": str(tmp_path / "test.csv")})
    question, source = draw(cfg, seed=3)
    assert puzzles.decode("sudoku", question) == SUDOKU and source == "row 2 of test.csv"


def test_a_puzzle_without_a_label_is_answered_all_the_same(runs, tmp_path, capsys):
    assert solve.main([str(runs / "maze"), "S#\n#G", "--out", str(tmp_path)]) == 0
    assert "label   unknown: the puzzle has no path from S to G" in capsys.readouterr().out
    assert solve.main([str(runs / "sudoku"), "." * 16, "--out", str(tmp_path)]) == 0
    assert "label   unknown: the puzzle has more than one solution" in capsys.readouterr().out


def test_hero_picture_needs_a_finished_run_and_writes_nothing_else(runs, tmp_path, capsys):
    assert solve.main([str(runs / "sudoku"), "--picture", str(tmp_path / "deep/hero.png")]) == 0
    with Image.open(tmp_path / "deep/hero.png") as png:
        assert png.size[0] > png.size[1] > 500
    assert not (runs / "sudoku/solved.png").exists()
    (tmp_path / "best.pt").write_bytes((runs / "sudoku/best.pt").read_bytes())
    assert solve.main([str(tmp_path), "--picture", str(tmp_path / "other.png")]) == 2
    assert (
        "--picture needs a finished run" in capsys.readouterr().err
        and not (tmp_path / "other.png").exists()
    )


@pytest.mark.parametrize(
    "words, says",
    [
        (
            ["maze", "53..7...."],
            "the puzzle looks like no maze, but this net was trained on mazes",
        ),
        (
            ["sudoku", "#S G"],
            "the puzzle looks like a maze, but this net was trained on Sudokus",
        ),
        (["maze", "S" + 24 * " "], "the puzzle has 0 cells G, expected exactly one"),
        (["maze", "SG" * 8], "the puzzle has 8 cells S, expected exactly one"),
        (
            ["maze", "S G" * 7],
            "the puzzle is one line of 21 cells, expected a square, such as 25 (5x5)",
        ),
        (["maze", "S x\n   \n  G"], "the puzzle: row 1, column 3 is 'x', expected '#' or 'X' or"),
        (["maze", "S" + 61 * 61 * " "], "the puzzle is one line of 3722 cells, expected a square"),
        (
            ["maze", "S" + (61 * 61 - 2) * " " + "G"],
            "the puzzle is 61x61, expected 2 to 60 cells per side",
        ),
        (["maze", ""], "the puzzle is empty"),
        (
            ["mlp", "S #\n  #\n# G"],
            (
                "the puzzle is 3x3, this net solves 5x5 only: "
                "with mixer = 'mlp' its weights belong to one size"
            ),
        ),
        (
            ["learned", "--size=7"],
            "the puzzle is 7x7, this net solves 5x5 only: with positions = 'learned'",
        ),
        (["sudoku", "." * 81], "the puzzle is 9x9, this net solves 4x4"),
        (["sudoku", "12345"], "the puzzle has 5 cells, expected 16 (4x4)"),
        (["sudoku", "9" + SUDOKU[1:]], "the puzzle has '9' at position 1"),
        (["maze", "--size=6"], "--size 6: a perfect maze has an odd number"),
        (["maze", "no/such.txt"], "no/such.txt: no such file"),
        (["maze", "maze.txt"], "maze.txt: no such file"),
        (["maze", "{runs}"], "not a readable text file"),
        (["maze", "{runs}/maze/best.pt"], "not a readable text file"),
        (["maze", MAZE, "--out={runs}/maze/best.pt"], "cannot write"),
        (["maze", "S", "G"], "command line: unexpected 'G', put the puzzle in quotes"),
        (["maze", "--stpes=3"], "command line: unexpected '--stpes=3'"),
        (["maze", "--steps=-1"], "command line: --steps, --seed and --size are 0 or more"),
        (["maze", "--steps=x"], "command line: argument --steps"),
        (["maze", "--page={runs}/maze/best.pt"], "expected the name of a .html file"),
        (["maze", "--picture=README.md"], "--picture README.md, expected the name of a .png file"),
        (["S .. .G", "{runs}/maze"], "command line: the run comes first, then the puzzle"),
        (["nowhere"], "no such run"),
        (["maze/config.toml"], "not a readable checkpoint"),
        (["maze/ckpt.pt"], "no best.pt of train.py (it lacks"),
    ],
)
def test_bad_input_ends_in_one_sentence(runs, words, says, capsys):
    words = [str(runs / words[0]), *(w.format(runs=runs) for w in words[1:])]
    assert solve.main(words) == 2
    err = capsys.readouterr().err
    assert (
        err.startswith("error: ")
        and says in err
        and err.count("\n") == 1
        and "Traceback" not in err
    )


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"test": {"curve": []}}', '{"test": {"curve": ["x"], "n": 1}}', "[" * 5000],
)
def test_a_damaged_summary_has_no_hero_picture(runs, content, tmp_path, capsys):
    (tmp_path / "best.pt").write_bytes((runs / "sudoku/best.pt").read_bytes())
    (tmp_path / "summary.json").write_text(content)
    assert solve.main([str(tmp_path), "--picture", str(tmp_path / "hero.png")]) == 2
    err = capsys.readouterr().err
    assert "summary.json: missing or damaged; --picture needs a finished run" in err
    assert err.count("\n") == 1 and not (tmp_path / "hero.png").exists()


@pytest.mark.slow
def test_pictures_have_the_settings_of_the_library_whatever_the_users_are(runs, tmp_path):
    settings = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    settings["MATPLOTLIBRC"] = str(tmp_path / "matplotlibrc")
    words = [sys.executable, tiny.ROOT / "solve.py", runs / "maze", "--out", tmp_path]
    done = subprocess.run(words, env=os.environ | settings, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "solved.png").exists() and (tmp_path / "solved.gif").exists()


def test_without_a_run_and_with_help(capsys):
    assert solve.main([]) == 2 and capsys.readouterr().err.startswith(
        "error: command line: the following arguments are required: run"
    )
    with pytest.raises(SystemExit) as stop:
        solve.main(["--help"])
    assert stop.value.code == 0 and "--steps" in capsys.readouterr().out
