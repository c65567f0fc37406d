"""What people write: mazes and Sudokus in other letters and layouts, and further tries of a net."""

import os
import shutil

import numpy as np
import pytest
import torch

import evaluate
import solve
import tiny
import train
from config import UserError
from tasks import puzzles, text
from train import load_run

ROWS = ["S ##", " #  ", "    ", "## G"]  # free cells at the left and right rim, none cut off
MAZE = "".join(ROWS)
SUDOKU, SOLVED = "12.434.22.4.43.1", "1234341221434321"
NINE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"


def maze_config(**model):
    return tiny.config(data={"task": "maze", "size": 5}, model={"mixer": "conv"} | model)


def doubled(rows: list[str]) -> list[str]:
    """Rows as solve.py prints them."""
    wide = {"#": "\u2588\u2588", " ": "  "}
    return ["".join(wide.get(cell, cell + " ") for cell in row) for row in rows]


def framed(rows: list[str]) -> str:
    line = "+" + "-" * len(rows[0]) + "+"
    return "\n".join([line, *(f"|{row}|" for row in rows), line])


def lettered(free: str, wall: str, goal: str) -> str:
    table = str.maketrans({" ": free, "#": wall, "G": goal})
    return "\n".join(ROWS).translate(table)


@pytest.mark.parametrize(
    "written, words",
    [
        (MAZE, "4 columns, 4 rows"),
        ("\n".join(ROWS), "'#' wall, space free, 'S' start, 'G' goal"),
        ("\r\n".join(ROWS) + "\r\n", "4 columns, 4 rows"),
        (lettered(".", "X", "E"), "'X' wall, '.' free, 'S' start, 'E' goal"),
        (lettered("0", "1", "G"), "'1' wall, '0' free"),
        (lettered(" ", "\u2588", "E"), "full block wall, space free"),
        (lettered(" ", "#", "G").replace("S", "A").replace("G", "B"), "'A' start, 'B' goal"),
        (framed(ROWS), "frame left out"),
        (framed(doubled(ROWS)), "two characters a cell"),
        ("\n".join(doubled(ROWS)), "two characters a cell"),
        ("\n".join(row.rstrip() for row in doubled(ROWS)), "two characters a cell"),
        ("\n".join(" ".join(row) for row in lettered(".", "#", "G").split()), "spaces between"),
        ("\n".join(",".join(row) for row in lettered("0", "1", "G").split()), "commas left out"),
    ],
)
def test_a_maze_is_read_in_any_letters_and_layout(written, words):
    read = text.maze(written)
    assert (read.text, read.side) == (MAZE, 4) and words in read.understood


def test_two_grids_beside_each_other_as_printed_give_the_left_one():
    grid = framed(doubled(ROWS)).splitlines()
    answer = framed(doubled([row.replace(" ", "o") for row in ROWS])).splitlines()
    read = text.maze("\n".join(f"        {a}    {b}" for a, b in zip(grid, answer)))
    assert read.text == MAZE and "the left one of two grids" in read.understood


@pytest.mark.parametrize(
    "rows, words, square",
    [
        (
            ["S  ", "   ", "###", "   ", "  G"],
            "3 columns, 5 rows: mazes are square, walls added on the right",
            "S  ##   #######   ##  G##",
        ),
        (
            ["S  ", "", "###", "", "  G"],  # an editor cut off spaces: the cells are free
            "3 columns, 5 rows: mazes are square, walls added on the right",
            "S  ##   #######   ##  G##",
        ),
        (
            ["S . #", ". . G"],
            "3 columns, 2 rows: mazes are square, walls added below",
            "S #  G###",
        ),
    ],
)
def test_a_rectangle_gets_walls_and_says_so(rows, words, square):
    read = text.maze("\n".join(rows))
    assert read.text == square and words in read.understood


@pytest.mark.parametrize("seed", range(5))
def test_a_path_of_a_maze_with_added_walls_is_a_path_without_them(seed):
    g = np.random.default_rng(seed)
    rows, columns = 4 + seed % 2, 6
    cells = np.where(g.random((rows, columns)) < 0.2, "#", ".")
    cells[0, 0], cells[-1, -1] = "S", "G"
    read = text.maze("\n".join(map("".join, cells)))
    try:
        solved = np.array(list(puzzles.solve_maze(read.text))).reshape(6, 6)
    except UserError:
        return
    assert not (solved[rows:] == "o").any()
    assert (cells[solved[:rows] == "o"] == ".").all()


def test_what_is_no_maze_or_unclear_ends_in_a_sentence():
    with pytest.raises(UserError, match="looks like no maze"):
        text.maze("53..7")
    with pytest.raises(UserError, match="row 2 has 2 cells, expected 3 as in row 1"):
        text.maze("S.#\n..\n..G")  # no editor cuts off a '.'
    walls_between_cells = "+--+--+\n|S    |\n+  +--+\n|    G|\n+--+--+"
    with pytest.raises(UserError, match=r"row 1, column 1 is '\+', expected '#' or"):
        maze_config().task.parse(maze_config(), walls_between_cells)


NEWSPAPER = "\n".join(NINE[at : at + 9] for at in range(0, 81, 9))
BOXES = """+-------+-------+-------+
| 5 3 . | . 7 . | . . . |
| 6 . . | 1 9 5 | . . . |
| . 9 8 | . . . | . 6 . |
+-------+-------+-------+
| 8 . . | . 6 . | . . 3 |
| 4 . . | 8 . 3 | . . 1 |
| 7 . . | . 2 . | . . 6 |
+-------+-------+-------+
| . 6 . | . . . | 2 8 . |
| . . . | 4 1 9 | . . 5 |
| . . . | . 8 . | . 7 9 |
+-------+-------+-------+"""
DRAWN = BOXES.replace("+", "\u253c").replace("-", "\u2500").replace("|", "\u2502")


def barred(side: str, bar: str, blank: str = " ") -> str:
    """A bar between all cells."""
    rows = [NINE[at : at + 9].replace(".", blank) for at in range(0, 81, 9)]
    lines = [side + bar.join(f" {cell} " for cell in row) + side for row in rows]
    return f"\n+{'---+' * 9}\n".join(lines)


@pytest.mark.parametrize(
    "written",
    [NINE, NEWSPAPER, BOXES, DRAWN, BOXES.replace("\n", "\r\n"), NINE + "\r\n"]
    + [NEWSPAPER.replace(".", blank) for blank in "0_*xX"]
    + ["\n".join(",".join(line) for line in NEWSPAPER.splitlines()), f"Puzzle 12:\n{NEWSPAPER}"]
    + [barred("|", "|"), barred("\u2551", "\u2502"), barred("", "|"), barred("|", "|", blank=".")]
    + [NEWSPAPER.replace(".", "?"), "# from a newspaper\n" + NEWSPAPER]
    + [
        "\n".join(mark.join(line).replace(".", "") for line in NEWSPAPER.splitlines())
        for mark in ",\t"
    ],
)
def test_a_sudoku_is_read_in_any_layout(written):
    (read,) = text.sudokus(written, 9)
    assert read.text == NINE and read.understood.startswith("a Sudoku")


def test_a_byte_order_mark_is_no_cell(tmp_path):
    (tmp_path / "puzzle.txt").write_bytes(b"\xef\xbb\xbf" + NINE.encode() + b"\r\n")
    for word in str(tmp_path / "puzzle.txt"), "\ufeff" + NINE:
        (read,) = text.sudokus(solve.read_puzzle(word), 9)
        assert read.text == NINE


def test_what_solve_prints_can_be_read_again(tmp_path, capsys):
    tiny.run(tmp_path / "sudoku", train={"steps": 1})
    cfg, net, _ = load_run(tmp_path / "sudoku")
    for name, task_cfg, question in (
        ("sudoku", cfg, SUDOKU),
        ("maze", maze_config(), "S   #### ##   ## ####   G"),
    ):
        task = task_cfg.task
        inputs = task.parse(task_cfg, question)
        t = solve.Trace(task, task_cfg.data, inputs, inputs[None], np.zeros(1), None)
        printed = "\n".join(solve.grids(t))
        assert (task.parse(task_cfg, printed) == inputs).all(), name
        alone = "\n".join(task.lines(task_cfg.data, inputs))
        assert (task.parse(task_cfg, alone) == inputs).all(), name


def test_several_sudokus_are_the_first_or_all(tmp_path, capsys):
    tiny.run(tmp_path / "run", train={"steps": 1})
    other = "..3.34....4.4..."
    for written in (f"{SUDOKU}\n{other}\n", f"{SUDOKU},{SOLVED}\n{other},{SOLVED}\n"):
        assert [one.text for one in text.sudokus(written, 4)] == [SUDOKU, other]
    grids = "\n".join(f"Grid {at}\n" + one for at, one in ((1, "12.4\n34.2\n2.4.\n43.1"),) * 2)
    assert [one.text for one in text.sudokus(grids, 4)] == [SUDOKU] * 2
    (tmp_path / "some.txt").write_text(f"{SUDOKU}\n{other}\n")
    words = [str(tmp_path / "run"), str(tmp_path / "some.txt")]
    assert solve.main(words) == 0
    out = capsys.readouterr().out
    assert "read    2 Sudokus" in out and "more    puzzles in this text: 1; --all" in out
    assert out.count("puzzle  ") == 1
    assert solve.main([*words, "--all"]) == 0
    out = capsys.readouterr().out
    assert "number 2 of 2" in out and "of 2 answers keep the rules" in out


def test_a_folder_of_runs_and_an_entry_are_answered_with_a_suggestion(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    tiny.run(tmp_path / "runs/laptop/mine/seed0", train={"steps": 1})
    shutil.copytree("runs/laptop/mine/seed0", "runs/laptop/mine/dim=8/seed0")
    entry = tiny.entry(tmp_path)
    capsys.readouterr()
    for word, says in (
        ("runs/laptop/mine", "no run but a folder of runs, expected one of runs/laptop/mine/seed0"),
        ("mine", "did you mean runs/laptop/mine/seed0?"),
        ("runs/laptop/mien", "did you mean runs/laptop/mine/seed0?"),
        ("runs/laptop/mine/seed7", "did you mean runs/laptop/mine/seed0?"),
        ("sweeps/mine.toml", "did you mean runs/laptop/mine/seed0?"),
        ("maze_perfetc", "train it first: python train.py "),
        ("runs/laptop/maze_perfect/seed0", "train it first: python train.py "),
        ("elsewhere", "no such run, expected a run folder such as "),
    ):
        for program, words in (
            (solve, [word]),
            (evaluate, [word]),
            (train, [str(entry), f"--train.init={word}"]),
        ):
            assert program.main(words) == 2
            err = capsys.readouterr().err
            assert says in err and err.count("\n") == 1
    shutil.rmtree("runs/laptop/mine/dim=8")
    os.remove("runs/laptop/mine/seed0/best.pt")
    assert solve.main(["runs/laptop/mine/seed0"]) == 2
    assert "no best.pt yet" in capsys.readouterr().err


# ---------------------------------------------------------------- further tries


def test_a_view_of_a_puzzle_is_one_and_its_answer_turns_back():
    g = np.random.default_rng(0)
    cases = [
        (maze_config(), "S   #### ##   ## ####   G", puzzles.solve_maze),
        (tiny.config(), SUDOKU, puzzles.solve_sudoku),
        (tiny.config(data={"task": "sudoku", "size": 9}), NINE, puzzles.solve_sudoku),
    ]
    for cfg, question, solver in cases:
        task = cfg.task
        inputs = task.parse(cfg, question)
        views = set()
        for _ in range(20):
            view, undo, words = task.other_view(inputs, g)
            views.add(view.tobytes())
            solved = solver(puzzles.decode(task.name, view))
            answer = puzzles.to_tokens(task.name, [solved], cfg.data.size, str, answer=True)
            back = undo(answer)
            assert task.score(inputs[None], back)["valid"].all() and words
            assert (undo(view[None])[0] == inputs).all()
        assert len(views) > 3


@pytest.mark.parametrize("init", ["fixed", "random", "learned"])
def test_further_tries_end_with_the_rules_and_say_what_they_cost(tmp_path, monkeypatch, init):
    tiny.run(tmp_path / "run", model={"init": init}, train={"steps": 1})
    cfg, net, _ = load_run(tmp_path / "run")
    task, inputs = cfg.task, cfg.task.parse(cfg, SUDOKU)
    right, wrong = puzzles.to_tokens("sudoku", [SOLVED], 4, str), inputs[None]
    first = solve.solve(task, cfg, net, inputs, 3)
    first.answers = np.repeat(wrong, 3, 0)
    calls = []

    def think(cfg, net, question, steps, states):
        calls.append((question, states))
        answers = right if len(calls) == 2 else question[None]
        return np.repeat(answers, steps, 0), np.zeros(steps)

    monkeypatch.setattr(solve, "think", think)
    t = solve.try_again(first, cfg, net, 5)
    assert t.number == 3 and len(calls) == 2 and t.kept()
    assert "the first one breaks the rules (5 of 16 cells wrong)" in t.tries
    assert "; try 3 (" in t.tries and "9 steps in all" in t.tries
    plain = net.states_of(inputs[None], cfg.seed)
    assert not torch.equal(calls[1][1][0].expand(1, 16, -1), plain[0].expand(1, 16, -1))
    calls[:] = [None] * 5
    t = solve.try_again(first, cfg, net, 4)
    assert t.number == 1 and (t.answers == first.answers).all()
    assert "so does each of 4: 12 steps in all" in t.tries


def test_tries_are_printed_beside_the_single_try(tmp_path, capsys):
    tiny.run(tmp_path / "run", train={"steps": 1})
    words = [str(tmp_path / "run"), SUDOKU]
    assert solve.main([*words, "--tries=3"]) == 0
    assert "tries   the first one breaks the rules (" in capsys.readouterr().out
    assert solve.main(words) == 0
    assert "tries " not in capsys.readouterr().out
    assert solve.main([*words, "--tries=0"]) == 2
    assert "--tries 0, expected 1 or more" in capsys.readouterr().err


def test_a_title_says_what_was_not_solved(monkeypatch):
    cfg = tiny.config()
    inputs = cfg.task.parse(cfg, SUDOKU)
    label = puzzles.to_tokens("sudoku", [SOLVED], 4, str)[0]

    def attempt(question):
        answer = label if (question == inputs).all() else question
        return solve.Trace(cfg.task, cfg.data, question, answer[None], np.zeros(1), label)

    unsolved = solve.Puzzle(np.ones(16, np.uint8), "hard")
    solved = solve.Puzzle(inputs, "easy")
    t, source = solve.first_solved([unsolved, solved], attempt)
    assert source == "easy" and solve.reservation(t) == ""
    t, source = solve.first_solved([unsolved, unsolved], attempt)
    assert source == "hard" and solve.reservation(t) == ", not solved"
    drawn = maze_config().task.draw_puzzles(maze_config(), 0, 7, 4)
    longest = [puzzles.solve_maze(puzzles.decode("maze", row)).count("o") for row, _ in drawn]
    assert longest == sorted(longest, reverse=True)
    assert "the longest path of 4" in drawn[0][1] and "the longest path but 3 of 4" in drawn[3][1]
