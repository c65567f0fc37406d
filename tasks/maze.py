"""Task `maze`: the shortest path from S to G through a grid of walls, as in Maze-Hard.

The mazes themselves, their solvers and generators are in tasks/puzzles.py.
"""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from config import UserError
from tasks.base import (
    BLUE,
    FRESH,
    MIDDLE,
    REDRAW,
    TEST,
    Dataset,
    RowsConfig,
    Split,
    Task,
    hardest_first,
    rng,
)
from tasks.files import read_folder
from tasks.puzzles import (
    FREE,
    GOAL,
    MAX_SIDE,
    MAZE,
    PATH,
    START,
    WALL,
    check,
    check_ends,
    decode,
    encode,
    generate_mazes,
    puzzle_keys,
    redraw_mazes,
    solve_maze,
    solve_mazes,
    to_tokens,
    turned_mazes,
)
from tasks.text import maze as read_text


@dataclass(frozen=True)
class MazeConfig(RowsConfig):
    task: str = "maze"  # the kind of problem
    size: int = 30  # side of the grid
    test_size: int = 0  # side of the test mazes; 0: size (a convolution transfers to other sizes)
    # generated mazes: independent walls, or a random spanning tree (odd size)
    walls: Literal["random", "perfect"] = "random"
    # random walls: least wall probability; each maze draws its own, uniformly
    wall_min: float = 0.2
    wall_max: float = 0.5  # random walls: largest wall probability
    min_distance: int = 0  # least S-G distance of a generated maze in moves; 0: size
    fresh: bool = False  # a new maze for every draw rather than train_rows fixed ones
    augment: bool = True  # turn and mirror the question, solve it again
    # with augment: further copies of every turned maze, with an S and G of their own as far apart
    redraw: int = 0
    flip: float = 0.02  # and with this share of its cells changed between wall and free

    @property
    def unlimited(self) -> bool:
        return self.fresh

    def without_copies(self) -> "MazeConfig":
        return replace(self, augment=False, redraw=0)

    def side(self, split: str) -> int:
        return self.test_size or self.size if split == "test" else self.size

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        for key in ("test_size", "min_distance", "redraw"):
            if getattr(self, key) < 0:
                yield key, "0 or more"
        for key, side, path in (
            ("size", self.size, self.train_path),
            ("test_size", self.side("test"), self.test_path),
        ):
            if not 2 <= side <= MAX_SIDE:
                yield key, f"2 to {MAX_SIDE} cells per side of a maze"
            elif self.walls == "perfect" and not path and side % 2 == 0:
                yield key, "an odd number of cells per side for perfect mazes"
        if not 0 <= self.wall_min <= self.wall_max < 1:
            yield "wall_min", f"0 <= wall_min <= wall_max = {self.wall_max} < 1"
        if self.redraw and (self.fresh or not self.augment):
            yield (
                "redraw",
                "0 with data.fresh = true or data.augment = false: it copies fixed mazes",
            )
        if not 0 <= self.flip < 0.5:
            yield "flip", "a share below 0.5"
        if self.fresh and self.train_path:
            yield "fresh", "false with data.train_path: drop one"
        if self.fresh and not self.generate:
            yield "fresh", "false with data.generate = false, which forbids new mazes"


@dataclass
class MazeData(Dataset):
    # (N, copies, L): turned and mirrored training mazes, each solved again
    variants: Split | None = None
    # fingerprints that no fresh maze may have
    held_out: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    block: tuple = (None, None)  # the last block of fresh mazes, with its key: a cache, no state


class Maze(Task):
    name = "maze"
    title = "Mazes"
    Config = MazeConfig

    def problems(self, cfg) -> Iterator[tuple[str, str, str]]:
        fixed = size_bound(cfg.model)
        if fixed and cfg.data.test_size not in (0, cfg.data.size):
            yield "data", "test_size", f"data.size: with {fixed} weights belong to one size"

    def advice(self) -> str:
        return "`python data.py download maze_hard` fetches the real files"

    # ------------------------------------------------------------ data

    def load(self, cfg) -> MazeData:
        data = cfg.data
        if not data.fresh:
            return super().load(cfg)
        test, test_card = self.source(
            data, "test", data.test_rows or (0 if data.test_path else 512)
        )
        held_out = self.keys(test)
        val, val_card = self.source(data, "val", data.val_rows or 512, held_out)
        card = self.card(data) | {
            "augmentation": "none: every training maze is new",
            "split": "a fresh maze that is a validation or test maze, turned or mirrored, "
            "is drawn again",
        }
        card |= {f"train_{key}": value for key, value in val_card.items()}
        card |= {f"test_{key}": value for key, value in test_card.items()}
        return self.finish(cfg, None, val, test, card)

    def card(self, data) -> dict:
        sizes = {"size": data.size, "test_size": data.side("test")}
        return {"task": self.name} | sizes | {"augmentation": "none"}

    def finish(self, cfg, train, val: Split, test: Split, card: dict) -> MazeData:
        plain = super().finish(cfg, train, val, test, card)
        keys = [self.keys(test)] + ([] if train else [self.keys(val)])
        held_out = np.unique(np.concatenate([part.ravel() for part in keys]))
        made = MazeData(**vars(plain), held_out=held_out)
        if train and cfg.data.augment:
            made.variants = self.solve_variants(cfg.data, train, card)
        return made

    def solve_variants(self, data, train: Split, card: dict) -> Split:
        """Every training maze turned and mirrored, redrawn if asked for, and solved again."""
        side = data.size
        turned = turned_mazes(train.inputs)
        card["augmentation"] = "8 turns and mirror images, each solved again"
        if data.redraw:
            copies = np.repeat(turned, data.redraw, 1).reshape(-1, side * side)
            redrawn = redraw_mazes(copies, data.flip, rng(data.seed, REDRAW))
            card |= redraw_card(data, copies, redrawn)
            turned = np.concatenate([turned, redrawn.reshape(len(train), -1, side * side)], 1)
        solved = solve_mazes(turned.reshape(-1, side * side))[0].reshape(turned.shape)
        same = (solved[:, 0] == train.labels).all(1).sum()
        card["labels_by_rule"] = f"{int(same)} of {len(train)}"
        return Split(turned, solved)

    def no_file(self, split: str) -> str:
        return (
            f"data.{split}_path is empty: `python data.py download maze_hard` fetches "
            "data/maze_hard_train.csv and data/maze_hard_test.csv for --data.train_path and "
            "--data.test_path; or take generated puzzles with --data.generate=true"
        )

    def read(self, path: str, data, split: str) -> tuple[np.ndarray, np.ndarray]:
        if os.path.isdir(path):
            least, most = (WALL, WALL), (GOAL, PATH)
            return read_folder(path, split, data.side(split), least, most)
        return super().read(path, data, split)

    def tokens(self, data, split: str, texts: list[str], where, answer: bool) -> np.ndarray:
        return to_tokens("maze", texts, data.side(split), where, answer)

    def check_rows(self, data, rows: Split, where) -> None:
        inputs, labels = rows.inputs, rows.labels
        check_ends(inputs, lambda row: where(row) + " the question")
        self.refuse_changed(data, rows, (inputs == FREE) & (labels == PATH), where)
        lost = np.flatnonzero(solve_mazes(inputs)[1] < 0)
        if lost.size:
            raise UserError(f"{where(lost[0])} G cannot be reached from S")
        bad = np.flatnonzero(~check("maze", inputs, labels)["valid"])
        if bad.size:
            found = (labels[bad[0]] == PATH).sum()
            raise UserError(
                f"{where(bad[0])} the answer's {found} cells 'o' are not one path from S to G, "
                "expected one, none of whose cells could be spared"
            )

    def generate(self, data, split: str, rows: int, g, avoid) -> tuple[Split, str]:
        side = data.side(split)
        inputs, labels = generate_mazes(data, rows, g, side, avoid)
        return Split(inputs, labels), f"generated {side}x{side}, {data.walls} walls"

    def keys(self, rows: Split) -> np.ndarray:
        return puzzle_keys("maze", rows.inputs, rows.labels)

    def draw(self, dataset: MazeData, cfg, size: int, seed: int, step: int, mine: slice) -> dict:
        if dataset.train is not None:
            return super().draw(dataset, cfg, size, seed, step, mine)
        inputs, labels = fresh_mazes(dataset, cfg.data, size, seed, step)
        batch = {"inputs": inputs, "labels": labels, "puzzle": np.zeros(size, np.int64)}
        return {name: values[mine] for name, values in batch.items()}

    def augment(self, dataset: MazeData, data, row, g) -> tuple[np.ndarray, np.ndarray]:
        if dataset.variants is None:
            return super().augment(dataset, data, row, g)
        variants = dataset.variants
        pick = g.integers(variants.inputs.shape[1], size=len(row))
        return variants.inputs[row, pick], variants.labels[row, pick]

    def shape(self, cfg) -> dict:
        return {"seq_len": cfg.data.size**2, "vocab_size": 1 + len(MAZE)}

    def score(self, inputs: np.ndarray, answers: np.ndarray) -> dict[str, np.ndarray]:
        return check("maze", inputs, answers)

    # ------------------------------------------------------------ one maze, for solve.py

    cells = {
        "free": ("white", ""),
        "wall": ("#444444", ""),
        "start": ("#009E73", ""),
        "goal": ("#CC79A7", ""),
        "path": (BLUE, "path"),
        "new": ("#56B4E9", "path, new in this step"),
        "stray": ("#D55E00", "\u00d7 wrong"),
        "missing": ("white", "\u2022 path still missing"),
    }

    def parse(self, cfg, text: str) -> np.ndarray:
        return self.readings(cfg, text)[0][0]

    def readings(self, cfg, text: str) -> list[tuple[np.ndarray, str]]:
        found = read_text(text)
        if not found.side:
            size = cfg.data.size
            raise UserError(
                f"the puzzle is one line of {len(found.text)} cells, expected a square, such as "
                f"{size * size} ({size}x{size}), or line breaks"
            )
        refuse_size(cfg, found.side)
        return [(encode("maze", found.text, found.side), found.understood)]

    def text(self, data, tokens: np.ndarray) -> str:
        return decode("maze", tokens)

    def draw_puzzle(self, cfg, seed: int, size: int, count: int) -> tuple[np.ndarray, str]:
        return self.draw_puzzles(cfg, seed, size, count)[0]

    def draw_puzzles(self, cfg, seed: int, size: int, count: int) -> list[tuple[np.ndarray, str]]:
        data = replace(cfg.data, size=size or cfg.data.size, test_size=0)
        if not size and data.test_path and os.path.exists(data.test_path):
            return [self.row_of_file(data, seed + at) for at in range(count)]
        refuse_size(cfg, data.size)
        if data.walls == "perfect" and data.size % 2 == 0:
            raise UserError(f"--size {size}: a perfect maze has an odd number of cells per side")
        g = rng(seed, TEST, 1)  # no split draws from this stream
        inputs, labels = generate_mazes(data, count, g, data.size)
        about = f"({data.walls} walls, seed {seed})"
        drawn = hardest_first(inputs, labels, "the longest path")
        return [(puzzle, f"{which} {about}") for puzzle, which in drawn]

    def solution(self, data, inputs: np.ndarray) -> tuple[np.ndarray | None, str]:
        try:
            solved = solve_maze(decode("maze", inputs))
        except UserError as e:  # no path
            return None, str(e)
        return np.array([1 + MAZE.index(cell) for cell in solved], np.uint8), ""

    def other_view(self, inputs: np.ndarray, g) -> tuple[np.ndarray, Callable, str]:
        cells = np.arange(len(inputs))
        turns = turned_mazes(cells[None])[0]  # (8, L): turns[k] are the cells of turn k in order
        at = int(g.integers(1, len(turns)))
        back = turns[at].argsort()
        words = f"turned by {at % 4 * 90} degrees"
        if at >= 4:
            words = "mirrored" + f" and {words}" * (at > 4)
        return inputs[turns[at]], lambda answers: answers[:, back], words

    def forbidden(self, inputs: np.ndarray, answer: np.ndarray) -> np.ndarray:
        return (answer != inputs) & ~((inputs == FREE) & (answer == PATH))

    def verdict(self, inputs: np.ndarray, answer: np.ndarray) -> str:
        rules = check("maze", inputs[None], answer[None])
        if not rules["valid"][0]:
            return "broken: the cells marked o are not one path from S to G"
        best = "and none is shorter" if rules["optimal"][0] else "but a shorter one exists"
        return f"kept: one path from S to G, {best}"

    def lines(self, data, tokens: np.ndarray) -> list[str]:
        side, _ = self.sides(data, len(tokens))
        blocks = "utf" in (sys.stdout.encoding or "").lower()
        wide = {"#": "\u2588\u2588" if blocks else "##", "o": "oo"}
        frame = "+" + "--" * side + "+"
        rows = [decode("maze", row) for row in tokens.reshape(side, side)]
        drawn = ["".join(wide.get(cell, cell + " ") for cell in row) for row in rows]
        return [frame, *(f"|{row}|" for row in drawn), frame]

    def kinds(self, inputs, answer, before, wrong) -> np.ndarray:
        changed = (inputs != FREE) | (answer != FREE)
        cases = {
            "stray": wrong & changed,
            "missing": wrong,
            "start": inputs == START,
            "goal": inputs == GOAL,
            "wall": inputs == WALL,
            "new": (answer != before) & (answer == PATH),
            "path": answer == PATH,
        }
        return np.select(list(cases.values()), list(cases), "free")

    def decorate(self, ax, data, inputs, answer, kinds, size: float) -> None:
        side, _ = self.sides(data, len(inputs))
        for at, name in enumerate(kinds):
            x, y = at % side, at // side
            if name in ("start", "goal"):
                letter = name[0].upper()
                bold = {"weight": "bold", "fontsize": 0.72 * size}
                ax.text(x, y, letter, color="white", **bold, **MIDDLE)
            elif name == "stray":
                ax.plot(x, y, "x", color="white", ms=0.42 * size, mew=0.1 * size)
            elif name == "missing":
                ax.plot(x, y, "o", color=BLUE, alpha=0.55, ms=0.26 * size, mew=0)


# ---------------------------------------------------------------- helpers


def redraw_card(data, before: np.ndarray, after: np.ndarray) -> dict:
    """What redrawing did to these mazes (N, L)."""
    changed = ((before == WALL) != (after == WALL)).mean()
    unchanged = int((before == after).all(1).sum())
    return {
        "augmentation": "8 turns and mirror images, each solved again; of each "
        f"{data.redraw} copies with S and G redrawn and cells changed with chance {data.flip:g}",
        "redraw_cells_changed": round(float(changed), 5),
        "redraw_unchanged": f"{unchanged} of {len(after)} copies",
    }


def fresh_mazes(dataset: MazeData, data, size: int, seed: int, step: int):
    """The new mazes of a step. They are made for some steps at once.

    A maze costs numpy five times less among 512 than alone.
    """
    steps = max(1, 512 // size)
    key = (data, size, seed, step // steps)
    made, block = dataset.block
    if made != key:
        g = rng(seed, FRESH, step // steps)
        block = generate_mazes(data, steps * size, g, data.size, dataset.held_out)
        dataset.block = key, block
    first = step % steps * size
    return block[0][first : first + size], block[1][first : first + size]


def size_bound(model) -> str:
    """The key that ties a net's weights to one size of grid, as "key = 'value'"; empty: none."""
    for key in ("mixer", "positions"):
        if getattr(model, key) in ("mlp", "learned"):
            return f"{key} = {getattr(model, key)!r}"
    return ""


def refuse_size(cfg, side: int) -> None:
    """Raises UserError where a net cannot take a maze of this side."""
    fixed = size_bound(cfg.model)
    if fixed and side != cfg.data.size:
        raise UserError(
            f"the puzzle is {side}x{side}, this net solves {cfg.data.size}x{cfg.data.size} only: "
            f"with {fixed} its weights belong to one size"
        )
    if not 2 <= side <= MAX_SIDE:
        raise UserError(f"the puzzle is {side}x{side}, expected 2 to {MAX_SIDE} cells per side")
