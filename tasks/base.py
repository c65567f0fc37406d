"""What a kind of problem is: class Task, whose defaults suit a puzzle, and what its methods share.

A puzzle is a question and an answer, two rows of tokens of one length.
The rest of the program asks a task these things and knows none by name:

    configuration    Config, model_config, tables, problems, missing
    data             load, load_test, draw
    the net          shape, make_net, prepare, flop
    scoring          evaluate, judge, score, better, report
    words, tables    sentence, figures, heads, extra_columns, extra_tables, extra_plots
    one puzzle       readings, parse, text, draw_puzzles, draw_puzzle, other_view, solution,
                     verdict, lines, kinds, decorate

numpy only: what needs torch is imported where it is used, so that analyze.py works without torch.
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from config import UserError
from stats import percent
from tasks.files import digest, fetch_public, files_of, public_file, read_rows
from tasks.puzzles import fingerprint

BLUE, RED = "#0072B2", "#D55E00"  # of Okabe and Ito
MIDDLE = {"ha": "center", "va": "center_baseline"}

# The streams of randomness: the second number of every key.
TEST, POOL, VAL, CUT, ORDER, AUGMENT, FRESH, NOISE, REDRAW = range(9)


def rng(*key: int) -> np.random.Generator:
    """The random numbers of a key of non-negative integers. Other keys are independent.

    The same bits on every machine.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@lru_cache(maxsize=4)
def _order(rows: int, *key: int) -> np.ndarray:
    return rng(*key).permutation(rows)


def epoch_rows(rows: int, size: int, step: int, *key: int) -> np.ndarray:
    """(size,) which of `rows` rows the batch of a step takes.

    They come in epochs, each a new permutation, without replacement across steps.
    """
    at = step * size + np.arange(size)
    epochs = at // rows
    parts = [_order(rows, *key, epoch)[at[epochs == epoch] % rows] for epoch in np.unique(epochs)]
    return np.concatenate(parts)


# ---------------------------------------------------------------- configuration


@dataclass(frozen=True)
class DataConfig:
    """The table [data]. A task adds its own keys."""

    task: str = "maze"  # the kind of problem: maze, sudoku, grid, features, modular, control, arc

    def problems(self) -> Iterator[tuple[str, str]]:
        """Impossible values as (key, what was expected)."""
        return iter(())

    def without_copies(self) -> "DataConfig":
        """The same rows, for who needs no turned or redrawn copies: they take minutes to make."""
        return self


@dataclass(frozen=True)
class RowsConfig(DataConfig):
    """Rows from files, or generated."""

    # file of training rows, or for mazes and Sudoku a data folder of the public code; empty:
    # generated
    train_path: str = ""
    test_path: str = ""  # the same for test rows
    # make rows offline where no path is given; false: insist on files. On the command line true
    # takes back the paths of an entry
    generate: bool = True
    # rows before the validation split: generated, or drawn from the file; 0: the whole file
    train_rows: int = 1000
    val_rows: int = 0  # validation rows; 0: a tenth of the training rows, within limits
    test_rows: int = 0  # test rows; 0: the whole file, or the task's own number
    # of generation and split, not of training: all training seeds share validation and test
    seed: int = 0

    def problems(self) -> Iterator[tuple[str, str]]:
        for key in ("train_rows", "val_rows", "test_rows", "seed"):
            if getattr(self, key) < 0:
                yield key, "0 or more"
        if self.unlimited:
            return
        if self.train_rows == 0 and not self.train_path:
            yield "train_rows", "1 or more: 0 means a whole file, but data.train_path is empty"
        if self.cut_from_training and 0 < self.train_rows <= self.val_rows:
            fewer = f"fewer than data.train_rows = {self.train_rows}"
            yield "val_rows", f"{fewer}: they are cut from them"

    @property
    def unlimited(self) -> bool:
        """Whether training needs no fixed rows."""
        return False

    @property
    def cut_from_training(self) -> bool:
        """Whether train_rows counts the validation rows too."""
        return True


# ---------------------------------------------------------------- data


@dataclass
class Split:
    inputs: np.ndarray  # (N, L) uint8 questions, or (N, F) float32 vectors
    labels: np.ndarray  # (N, L) uint8 answers, (N, 1) int64 classes, or (N, steps, m) float32 plans
    more: dict = field(default_factory=dict)  # further columns of a batch, each (N, ...)

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass
class Dataset:
    train: Split | None  # None: every draw makes new rows
    val: Split
    test: Split
    # what a run states about its data: sources, hashes, rows, augmentation, split, trivial baseline
    card: dict
    shape: dict  # what a net needs to know: the fields of model.Shape, and what the task adds


def copying(split: Split) -> dict[str, float]:
    """What copying the question scores: share of whole answers, and of cells. The bar to clear."""
    same = split.inputs == split.labels
    return {"exact": float(same.all(1).mean()), "cells": float(same.mean())}


# ---------------------------------------------------------------- the task


class Task:
    """A kind of problem. The defaults are those of a puzzle with rows of tokens."""

    name = ""  # data.task
    title = ""  # of a panel in plots
    rows = "puzzles"  # what one row is called
    trivial = "copying the question"  # what the baseline of the card does
    solvable = True  # solve.py can show one
    Config = DataConfig

    # ------------------------------------------------------------ configuration

    def model_config(self) -> type:
        """The dataclass of the table [model]."""
        from model import ModelConfig

        return ModelConfig

    def tables(self) -> dict[str, type]:
        """Further tables of an entry: {"plan": PlanConfig}"""
        return {}

    def problems(self, cfg) -> Iterator[tuple[str, str, str]]:
        """What does not go together, over all tables, as (table, key, what was expected)."""
        return iter(())

    def missing(self, cfg) -> str:
        """What a run cannot start without, as a sentence; empty: nothing is missing."""
        for key in ("train_path", "test_path"):
            path = getattr(cfg.data, key, "")
            if path and not os.path.exists(path):
                advice = self.advice_on(path)
                return f"data.{key} = {path!r}, but there is no such file; {advice}"
            if not path and not cfg.data.generate:
                return (
                    f"data.{key} is empty and data.generate = false, expected a file; "
                    f"{self.advice()}"
                )
        return ""

    def hint(self, cfg, card: dict) -> str:
        """What a person may have overlooked, as a sentence; empty: nothing. card: of the data."""
        if getattr(cfg.data, "train_path", "") and "test_generator_seed" in card:
            return "data.test_path is empty: the test puzzles are new ones, not those of a file"
        return ""

    def fetch(self, cfg, splits: tuple[str, ...] = ("train", "test")) -> None:
        """Download what cfg names of the public files and is not there. Raises UserError.

        Nothing is fetched beside a file of one's own that is missing: that is said elsewhere.
        """
        paths = [getattr(cfg.data, f"{split}_path", "") for split in splits]
        paths = [path for path in paths if path and not os.path.exists(path)]
        if all(public_file(Path(path).name) for path in paths):
            for path in paths:
                fetch_public(path)

    def files(self, cfg) -> dict[str, str]:
        """The keys that name data files, and those files: their bytes count, not their place."""
        paths = {split: getattr(cfg.data, f"{split}_path", "") for split in ("train", "test")}
        return {
            f"data.{split}_path": ",".join(files_of(path, split))
            for split, path in paths.items()
            if path
        }

    def advice(self) -> str:
        """Where to get files for this task."""
        return "python data.py --help says what it can download"

    def advice_on(self, path: str) -> str:
        """The end of the sentence about a file that is missing."""
        if public_file(Path(path).name):
            return self.advice()
        return "expected a CSV with the columns question and answer"

    # ------------------------------------------------------------ data

    def load(self, cfg) -> Dataset:
        """The three splits of a run's configuration, with their card. Deterministic in cfg.

        No split shares a puzzle with another, up to the symmetries that `keys` knows.
        Raises UserError for bad files and impossible values.
        """
        data = cfg.data
        wanted = data.test_rows or (0 if data.test_path else 512)
        test, test_card = self.source(data, "test", wanted)
        held_out = self.keys(test)
        pool, train_card = self.source(data, "train", data.train_rows, held_out)
        train, val, card = self.cut(data, pool, held_out)
        card = (
            self.card(data) | card | _prefixed("train", train_card) | _prefixed("test", test_card)
        )
        return self.finish(cfg, train, val, test, card)

    def load_test(self, cfg) -> Dataset:
        """The test split of `load` alone, with its card: no training file has to be there."""
        data = cfg.data
        wanted = data.test_rows or (0 if data.test_path else 512)
        test, test_card = self.source(data, "test", wanted)
        card = self.card(data) | _prefixed("test", test_card) | {"rows": {"test": len(test)}}
        card["baseline"], card["baseline_is"] = copying(test), self.trivial
        nothing = Split(test.inputs[:0], test.labels[:0])
        return Dataset(nothing, nothing, test, card, self.shape(cfg))

    def card(self, data) -> dict:
        """The first lines of the card."""
        return {"task": self.name, "augmentation": "none"}

    def finish(self, cfg, train: Split | None, val: Split, test: Split, card: dict) -> Dataset:
        """The data set of these splits, its card completed."""
        counts = {"val": len(val), "test": len(test)}
        card["rows"] = {"train": "fresh" if train is None else len(train)} | counts
        card["baseline"], card["baseline_is"] = copying(test), self.trivial
        return Dataset(train, val, test, card, self.shape(cfg))

    def source(self, data, split: str, rows: int, avoid=()) -> tuple[Split, dict]:
        """`rows` rows (0: all) of "train", "val" or "test", and their card: of a file, or new ones.

        Generated rows have no key in `avoid`.
        """
        path = {"train": data.train_path, "test": data.test_path}.get(split, "")
        stream = {"train": POOL, "val": VAL, "test": TEST}[split]
        if not path:
            if not data.generate:
                raise UserError(self.no_file(split))
            split_rows, words = self.generate(data, split, rows, rng(data.seed, stream), avoid)
            return split_rows, {"source": words, "generator_seed": data.seed}

        inputs, labels = self.read(path, data, split)
        total = len(inputs)
        if rows > total and split == "test":
            raise UserError(
                f"data.test_rows = {rows}, but {path} has {total} rows; --data.test_rows=0: all"
            )
        row = np.sort(rng(data.seed, stream).permutation(total)[: rows or total])
        chosen = Split(inputs[row], labels[row])
        self.check_rows(data, chosen, lambda at: f"{path}, row {row[at] + 1}:")
        return chosen, {
            "source": Path(path).name,
            "sha256": digest(*files_of(path, split)),
            "rows_in_file": total,
        }

    def read(self, path: str, data, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Questions and answers of a CSV, each (N, L) tokens. Raises UserError."""

        def tokens(texts: list[str], where, answer: bool) -> np.ndarray:
            return self.tokens(data, split, texts, where, answer)

        return read_rows(path, tokens, self.advice_on(path))

    def no_file(self, split: str) -> str:
        """The sentence for a split that has no file and may not be generated."""
        return f"data.{split}_path is empty, expected a CSV with the columns question and answer"

    def tokens(self, data, split: str, texts: list[str], where, answer: bool) -> np.ndarray:
        """N texts -> (N, L) uint8 tokens. `where(row)` begins the sentence about a bad row."""
        raise NotImplementedError

    def check_rows(self, data, rows: Split, where) -> None:
        """Raises UserError for a question or an answer that is none."""

    def refuse_changed(self, data, rows: Split, filled: np.ndarray, where) -> None:
        """Raises UserError for an answer that changes what its question gives.

        filled (N, L) bool: blanks that the answer may fill.
        """
        kept = (rows.inputs == rows.labels) | filled
        if kept.all():
            return
        row, at = np.argwhere(~kept)[0]
        given = self.text(data, rows.inputs[row, at : at + 1])
        found = self.text(data, rows.labels[row, at : at + 1])
        raise UserError(
            f"{where(row)} the answer has {found!r} at position {at + 1}, "
            f"where the question gives {given!r}"
        )

    def generate(self, data, split: str, rows: int, g, avoid) -> tuple[Split, str]:
        """New rows, and what they are in words."""
        raise UserError(self.no_file(split))

    def keys(self, rows: Split) -> np.ndarray:
        """(N, K) uint64: what the symmetric copies of each puzzle are known by."""
        return fingerprint(rows.inputs)[:, None]

    def cut(self, data, pool: Split, held_out: np.ndarray) -> tuple[Split, Split, dict]:
        """Training and validation rows of a pool, and their card.

        Rows whose keys are in `held_out` are dropped. Validation gets one row of each kind.
        """
        keys = self.keys(pool).min(1)  # one key for all copies of a puzzle
        in_test = held_out.min(1)
        kinds = np.setdiff1d(keys, in_test)  # sorted, each once
        dropped = int(np.isin(keys, in_test).sum())
        count = data.val_rows or int(np.clip(len(pool) // 10, 50, 512))
        if count >= kinds.size:
            raise UserError(
                f"data.val_rows: {count} validation rows leave nothing of {kinds.size} "
                f"different training rows ({dropped} of {len(pool)} are test rows, left out)"
            )
        chosen = rng(data.seed, CUT).permutation(kinds)[:count]
        first = np.sort(np.unique(keys, return_index=True)[1])  # one row of each kind
        in_val = first[np.isin(keys[first], chosen)]
        in_train = np.isin(keys, np.setdiff1d(kinds, chosen))
        val = Split(pool.inputs[in_val], pool.labels[in_val])
        train = Split(pool.inputs[in_train], pool.labels[in_train])
        return train, val, {
            "split": "validation cut from the training rows before augmentation, "
            f"seed {data.seed}; disjoint up to symmetry",
            "dropped_in_test": dropped,
            "dropped_in_val": len(pool) - dropped - len(val) - len(train),
        }  # fmt: skip

    def draw(self, dataset: Dataset, cfg, size: int, seed: int, step: int, mine: slice) -> dict:
        """The rows `mine` of the global batch of a step, which is a pure function of (seed, step).

        Returns {"inputs": (B, L), "labels": (B, L), "puzzle": (B,) int64 zeros, ...}.
        Fixed rows come in epochs, each a new permutation, without replacement across steps.
        """
        row = epoch_rows(len(dataset.train), size, step, seed, ORDER)
        inputs, labels = self.augment(dataset, cfg.data, row, rng(seed, AUGMENT, step))
        batch = {"inputs": inputs, "labels": labels, "puzzle": np.zeros(size, np.int64)}
        batch |= {name: values[row] for name, values in dataset.train.more.items()}
        return {name: values[mine] for name, values in batch.items()}

    def augment(self, dataset: Dataset, data, row: np.ndarray, g) -> tuple[np.ndarray, np.ndarray]:
        """Questions and answers of these training rows, changed as the configuration says."""
        return dataset.train.inputs[row], dataset.train.labels[row]

    # ------------------------------------------------------------ the net

    def shape(self, cfg) -> dict:
        """What a net has to know about the data: the fields of model.Shape."""
        raise NotImplementedError

    def make_net(self, cfg, shape: dict, compute):
        """The net of a configuration. `compute`: the dtype of its activations."""
        from model import TRM, Shape

        return TRM(cfg.model, Shape.of(shape), compute)

    def prepare(self, net, cfg, dataset: Dataset) -> None:
        """Called once with fresh weights, before the first step."""

    def flop(self, cfg, net) -> float:
        """FLOP of one training step; 0: unknown."""
        from model import net_flop, step_calls

        return step_calls(cfg.model) * net_flop(
            cfg.model, net.shape, cfg.train.batch_size, net.planes
        )

    # ------------------------------------------------------------ scoring

    def evaluate(self, net, split: Split, cfg, world, **options) -> dict:
        """The figures of a net on a split: see evaluate.evaluate."""
        from evaluate import evaluate_rows

        return evaluate_rows(net, split, cfg, world, self, **options)

    def judge(self, logits, labels) -> dict:
        """{name: (B,) bool} beyond "exact" that must be read off the logits (B, L, V)."""
        return {}

    proves = False  # whether an answer that keeps the rules is the right one

    def score(self, inputs: np.ndarray, answers: np.ndarray) -> dict[str, np.ndarray]:
        """What the rules say of answers (N, L): {name: (N,) bool}. No solution is needed."""
        return {}

    def better(self, result: dict, cfg) -> tuple:
        """By what validations are compared: larger is better."""
        return result["exact"], result["cells"]

    def report(self, net, dataset: Dataset, cfg, world) -> tuple[dict, dict]:
        """(further test figures for summary.json, {file name: arrays} for the run folder)."""
        return {}, {}

    # ------------------------------------------------------------ words and tables

    figures = ("exact", "valid", "optimal", "cells")  # shares of summary["test"] in the tables
    words = {"exact": "exact", "valid": "valid", "optimal": "optimal", "cells": "of cells"}
    heads = {  # the columns of table.md behind the entry's name
        "exact %": lambda row: percent(row, "exact"),
        "valid %": lambda row: percent(row, "valid"),
        "optimal %": lambda row: percent(row, "optimal"),
        "cells %": lambda row: percent(row, "cells"),
        "halting: exact %": lambda row: percent(row, "halting_exact"),
        "steps": lambda row: f"{row['halting_steps']:.1f}",
        "copying: exact %, cells %": lambda row: (
            f"{100 * row['copy_exact']:.1f}, {100 * row['copy_cells']:.1f}"
        ),
        "seeds x puzzles": lambda row: f"{len(row['seeds'].split())} x {row['test_puzzles']}",
    }
    notes = (  # what the columns mean
        "exact: every cell as in the label; the answer is the last supervision step's, or the mean "
        "of as many as train.eval_average says. valid: the rules hold. optimal: a valid path, and "
        "none is shorter. halting: each answer is read when the net would stop, after `steps` "
        "supervision steps on average."
    )

    def sentence(self, summary: dict) -> str:
        """The last line of a run, made of its summary."""
        test, halting, data = summary["test"], summary["test_halting"], summary["data"]
        shares = [(100 * test[key], word) for key, word in self.words.items() if key in test]
        figures = ", ".join(f"{share:.1f} % {word}" for share, word in shares)
        ceiling = ""
        if "ceiling" in data:
            ceiling = f"; best possible: {100 * data['ceiling']:.1f} %"
        return (
            f"test {figures} (n = {test['n']}, {summary['chosen']}: step {summary['best_step']}, "
            f"{summary['weights']}); halting: {100 * halting['exact']:.1f} % "
            f"in {halting['steps']:.1f} steps; {data['baseline_is']}: "
            f"{100 * summary['baseline']['exact']:.1f} %{ceiling}; "
            f"trained {summary['seconds']['train'] / 60:.1f} min"
        )

    def brief(self, summary: dict) -> str:
        """The figure of a finished run in a few words."""
        return f"test {100 * summary['test']['exact']:.1f} % exact"

    def check(self, group) -> None:
        """Raises an exception where the run of a group lacks what `analyze` or `rules` need."""

    def analyze(self, groups: list, out, absent: list, baseline: str):
        """Tables and plots of groups of this task alone, where it has its own; else None."""
        return None

    def rules(self, runs: list, out: Path) -> tuple[str, list[str]] | None:
        """(text, names of the plots in `out`) of `analyze.py --rules`; None: no rules."""
        return None

    def extra_columns(self, group, groups: list) -> dict:
        """Further columns of a row of table.csv."""
        return {}

    def extra_tables(self, rows: list[dict]) -> list[str]:
        """Further Markdown above the tables, of the rows of this task."""
        return []

    def extra_plots(self, groups: list) -> dict:
        """Further figures by name, of the groups of this task."""
        return {}

    # ------------------------------------------------------------ one puzzle, for solve.py

    cells = {  # what a cell of a picture can be: its fill, and the legend's word where it needs one
        "blank": ("white", ""),
        "given": ("white", ""),
        "filled": ("white", ""),
        "new": ("#d5ebf8", "new or changed in this step"),
        "wrong": ("#f8d5c2", "wrong"),
    }

    def bound(self, shape: dict) -> "Task":
        """This task as a trained net knows it, whose shape is given."""
        return self

    def sides(self, data, length: int) -> tuple[int, int]:
        """(rows, columns) of a puzzle with so many cells."""
        side = math.isqrt(length)
        return side, side

    def parse(self, cfg, text: str) -> np.ndarray:
        """The tokens (L,) of a puzzle. Raises UserError for one that the net cannot take."""
        raise NotImplementedError

    def readings(self, cfg, text: str) -> list[tuple[np.ndarray, str]]:
        """Every puzzle of a text, as (tokens (L,), what was understood). Raises UserError."""
        return [(self.parse(cfg, text), "")]

    def text(self, data, tokens: np.ndarray) -> str:
        """Tokens (L,) as a string of L characters."""
        raise NotImplementedError

    def draw_puzzle(self, cfg, seed: int, size: int, count: int) -> tuple[np.ndarray, str]:
        """A puzzle like those of the run's test split, and a few words about it.

        Of `count` new ones the one with most cells to find. `size`: another side than in training.
        """
        data = cfg.data
        if size and size != getattr(data, "size", size):
            raise UserError(f"--size {size}: expected {data.size}, the only size of this task")
        if not data.test_path or not os.path.exists(data.test_path):
            raise UserError(
                f"no puzzle given, and data.test_path = {data.test_path!r} is not there"
            )
        return self.row_of_file(data, seed)

    def draw_puzzles(self, cfg, seed: int, size: int, count: int) -> list[tuple[np.ndarray, str]]:
        """Several puzzles as `draw_puzzle` describes them, the hardest of `count` first."""
        return [self.draw_puzzle(cfg, seed, size, count)]

    def row_of_file(self, data, seed: int) -> tuple[np.ndarray, str]:
        """A question of the test file."""
        inputs = self.read(data.test_path, data, "test")[0]
        at = seed % len(inputs)
        return inputs[at], f"row {at + 1} of {Path(data.test_path).name}"

    def solution(self, data, inputs: np.ndarray) -> tuple[np.ndarray | None, str]:
        """(the right answer, "") or (None, why it is not known)."""
        return None, "this task has no solver"

    def other_view(self, inputs: np.ndarray, g) -> tuple[np.ndarray, Callable, str]:
        """The same puzzle under a random symmetry, what undoes it in answers (S, L), and words."""
        raise NotImplementedError

    def forbidden(self, inputs: np.ndarray, answer: np.ndarray) -> np.ndarray:
        """(L,) bool: cells of an answer that the question forbids."""
        return np.zeros(len(inputs), bool)

    def verdict(self, inputs: np.ndarray, answer: np.ndarray) -> str:
        """What the rules say of an answer, in words."""
        return "unknown: this task has none"

    def lines(self, data, tokens: np.ndarray) -> list[str]:
        """A grid as lines to read. Cells are two characters wide, so that they look square."""
        rows, cols = self.sides(data, len(tokens))
        return [" ".join(self.text(data, row)) for row in tokens.reshape(rows, cols)]

    def kinds(self, inputs, answer, before, wrong) -> np.ndarray:
        """(L,) names of `cells`. before: the answer of the step before, or the question."""
        filled = answer != inputs
        cases = {"wrong": wrong, "new": filled & (answer != before), "given": ~filled}
        return np.select(list(cases.values()), list(cases), "filled")

    def write_page(self, path: Path, cfg, net, state: dict) -> None:
        """A page to play with a trained net: see tasks/page.py. Raises UserError."""
        from tasks.page import write_page

        write_page(path, self, cfg, net, state)

    def decorate(self, ax, data, inputs, answer, kinds, size: float) -> None:
        """Letters and lines of a picture. size: points per cell."""
        rows, cols = self.sides(data, len(inputs))
        for at, name in enumerate(kinds):
            word = self.text(data, answer[[at]])
            colour = {"given": "black", "wrong": RED}.get(name, BLUE)
            ax.text(at % cols, at // cols, word, fontsize=0.6 * size, color=colour, **MIDDLE)
        for k in range(rows + 1):
            ax.axhline(k - 0.5, color="#aaaaaa", lw=0.02 * size, zorder=1)
        for k in range(cols + 1):
            ax.axvline(k - 0.5, color="#aaaaaa", lw=0.02 * size, zorder=1)


def hardest_first(
    inputs: np.ndarray, labels: np.ndarray, most: str
) -> Iterator[tuple[np.ndarray, str]]:
    """New puzzles (N, L), those with the most cells to find first, and words for each.

    most: what such a puzzle has, "the longest path".
    """
    count = len(inputs)
    for rank, at in enumerate((inputs == labels).sum(1).argsort(kind="stable")):
        but = f" but {rank}" if rank else ""
        yield inputs[at], "new" if count == 1 else f"{most}{but} of {count} new ones"


def _prefixed(name: str, card: dict) -> dict:
    return {f"{name}_{key}": value for key, value in card.items()}
