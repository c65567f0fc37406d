"""Run folders to tables and plots.

    python analyze.py runs/laptop [more folders] [--out FOLDER]

Reads the small files of every run folder below (summary.json, config.toml, metrics.jsonl,
test.npz), never a checkpoint, so plots can be drawn again years later. Seeds of one entry are
averaged; runs of other configurations or other data never are. Writes table.md, table.csv,
table.json, learning.png and steps.png (and .svg). Where a folder has an entry called "baseline"
(or as --baseline says), the others are compared with it, seed by seed and puzzle by puzzle, and
accuracy, cost, halting and stability are drawn too. A task may add tables and plots of its own.
Runs that are missing, failed, unfinished or broken are listed by name.

    python analyze.py --depth runs/features/classify/seed0

evaluates a trained net (this needs torch and best.pt) on the test rows with other T and n than it
was trained with, and writes depth.md, depth.csv and depth.png (and .svg).
Exit codes: 0 done, 2 bad input.
"""

import config as _config  # noqa: F401, I001  first: it says so where packages are missing

import dataclasses
import errno
import json
import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import plots
import tasks
from config import (
    SHARED,
    Parser,
    UserError,
    flat_tables,
    flatten,
    quiet_output,
    read_toml,
    toml_value,
)
from plots import write_csv, write_text
from stats import (
    clean,
    excludes_zero,
    interval,
    last_third,
    latex,
    literal,
    markdown,
    paired,
    percent,
    points,
    shown,
    spikes,
    two_groups,
    visible,
    wilson,
)

CLOCKS = ("train", "train_cpu", "validation", "test")
COLUMNS = {  # what is kept of metrics.jsonl
    "train": ("step", "loss", "exact"),
    "val": ("step", "seconds", "exact", "halting_steps", "n"),
}
MOST_KEYS = 5  # columns of keys in a table to read
NO_INTERVAL = ("cells", "to_optimum", "halting_steps")  # cells of one puzzle are not independent
UNKNOWN = (math.nan, math.nan, math.nan)  # mean, low, high


@dataclass
class Run:
    folder: Path
    seed: int = -1
    config: dict = field(default_factory=dict)  # {"data.size": 15, ...} from config.toml
    train: dict = field(default_factory=dict)  # {"step": (lines,), ...} from metrics.jsonl
    val: dict = field(default_factory=dict)
    summary: dict = field(default_factory=dict)  # empty: not finished
    solved: np.ndarray | None = None  # (puzzles,) bool from test.npz
    problem: str = ""  # why its figures cannot be used
    notes: list = field(default_factory=list)  # what is odd about figures that can be used

    @property
    def entry(self) -> Path:
        return self.folder.parent

    @property
    def task(self):
        """The kind of problem: see tasks/base.py."""
        return tasks.get(self.summary["task"])

    def figure(self, name: str) -> float:
        """A share of the test split, or "halting_..." of it; NaN where this task has none."""
        if name.startswith("halting_"):
            return number(self.summary["test_halting"].get(name.removeprefix("halting_")))
        return number(self.summary["test"].get(name))

    @property
    def step_seconds(self) -> float:
        """A training step, on the clock that other work on the machine disturbs least.

        CPU time on a CPU, else the wall clock.
        """
        clock = "train_cpu" if self.summary["device"] == "cpu" else "train"
        return self.summary["seconds"][clock] / self.summary["steps"]

    @property
    def spread(self) -> float:
        """Standard deviation of the validation accuracy over the last third of training."""
        return last_third(self.val["step"], self.val["exact"])

    @property
    def spikes(self) -> float:
        """Jumps of the logged loss."""
        return spikes(self.train["loss"]) if len(self.train["loss"]) else math.nan

    def learned(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, exact) of "train" or "val", without the lines that say nothing of it."""
        table = getattr(self, split)
        known = np.isfinite(table["exact"])
        return table["step"][known], table["exact"][known]


@dataclass
class Group:
    """The finished seeds of one configuration."""

    name: str
    runs: list[Run]
    base: "Group | None" = None  # the baseline it is compared with; a baseline is its own
    alone: str = ""  # why it is not compared, though there is a baseline
    # where compared: exact test accuracy, with its 95 % interval for other seeds and puzzles
    accuracy: tuple = UNKNOWN
    difference: tuple = UNKNOWN  # the same minus the baseline's, paired

    @property
    def first(self) -> dict:
        return self.runs[0].summary

    @property
    def task(self):
        return self.runs[0].task

    @property
    def trivial(self) -> str:
        """What the baseline of the data does."""
        return self.first["data"].get("baseline_is") or self.task.trivial

    def seed(self, seed: int) -> Run:
        """The run of this seed."""
        return next(run for run in self.runs if run.seed == seed)

    def each(self, name: str) -> list[float]:
        """One value per seed: of step_seconds, spread, spikes, or a figure."""
        if name in ("step_seconds", "spread", "spikes"):
            return [getattr(run, name) for run in self.runs]
        return [run.figure(name) for run in self.runs]

    def mean(self, name: str) -> tuple[float, float, float]:
        """(mean, low, high): over seeds their smallest and largest.

        For one seed the 95 % interval of its share of puzzles.
        """
        values = self.each(name)
        if len(values) > 1 or name in NO_INTERVAL:
            return float(np.mean(values)), min(values), max(values)
        return values[0], *wilson(values[0], self.first["test"]["n"])

    @property
    def verdict(self) -> str:
        if self.base is self:
            return "reference"
        return verdict(len(shared_seeds(self.base, self)), *self.difference)

    def per_puzzle(self, seeds: list[int]) -> np.ndarray:
        """(seeds, puzzles) solved exactly; (seeds, 1) shares if a run has no test.npz."""
        runs = [self.seed(seed) for seed in seeds]
        if any(run.solved is None for run in runs):
            return np.array([[run.figure("exact")] for run in runs])
        return np.stack([run.solved for run in runs]).astype(float)


# ---------------------------------------------------------------- reading


def read_file(path: Path) -> str:
    """The text of a file; bytes that are no UTF-8 are replaced. Raises OSError.

    Only regular files: others may never end.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.read_text(encoding="utf-8", errors="replace")


def number(value) -> float:
    """A number of a JSON file; NaN for everything else, and for integers beyond every float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def read_metrics(path: Path) -> tuple[dict, dict, int]:
    """The training and validation columns of a metrics.jsonl, and how many lines are damaged.

    Damaged lines are left out. Raises OSError.
    """
    rows, damaged = {"train": [], "val": []}, 0
    text = read_file(path) if path.exists() else ""
    for line in text.split("\n"):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            keys = COLUMNS[record["split"]]
            values = [number(record.get(key)) for key in keys]
            if not 0 <= values[0] < math.inf:
                raise ValueError("a line without its step")
            rows[record["split"]].append(values)
        except (ValueError, TypeError, KeyError, RecursionError):
            damaged += 1
    tables = []
    for split, keys in COLUMNS.items():
        table = np.array(rows[split], dtype=float).reshape(-1, len(keys))
        table = table[table[:, 0].argsort(kind="stable")]
        tables.append(dict(zip(keys, table.T)))
    return *tables, damaged


def read_solved(path: Path, summary: dict) -> np.ndarray | None:
    """Which test puzzles were solved exactly; None unless this agrees with the summary."""
    if not path.is_file():
        return None
    try:
        with np.load(path) as file:
            solved = file["exact"].astype(bool, casting="safe")
    except Exception:  # of damaged bytes: zipfile, zlib and numpy raise a dozen kinds
        return None
    test = summary["test"]
    fits = solved.shape == (test["n"],) and abs(solved.mean() - test["exact"]) < 1e-6
    return solved if fits else None


def read_summary(folder: Path) -> dict:
    """summary.json. Folders of before have no "device", only the line about hardware.

    Raises OSError, ValueError or RecursionError for a file that is none.
    """
    summary = json.loads(read_file(folder / "summary.json"))
    if not isinstance(summary, dict):
        raise ValueError(f"a {type(summary).__name__}, expected an object")
    if "device" not in summary:
        on_cpu = "thread(s)" in str(summary.get("hardware", ""))
        summary["device"] = "cpu" if on_cpu else "accelerator"
    return summary


def at(tables: dict, name: str):
    """A value of nested dicts, "test.exact". Raises ValueError where there is none."""
    value = tables
    for key in name.split("."):
        if not isinstance(value, dict) or key not in value:
            raise ValueError(f"{name} is missing")
        value = value[key]
    return value


def check_number(name: str, value, low: float = 0.0, high: float = math.inf) -> None:
    """Raises ValueError for what is no finite number between low and high."""
    if not math.isfinite(number(value)):
        raise ValueError(f"{name} = {value!r} is not finite, expected a number")
    if not low <= value <= high:
        raise ValueError(f"{name} = {value!r}, expected {low:g} to {high:g}")


def check_kind(name: str, value, kind: type, words: str) -> None:
    """Raises ValueError for a value of another type. There may be none."""
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise ValueError(f"{name} = {value!r}, expected {words}")


def check_figures(run: Run) -> None:
    """Raises ValueError where a figure that tables and plots need is none."""
    summary = run.summary
    if at(summary, "task") not in list(tasks.TASKS):
        raise ValueError(f"task = {summary['task']!r}, expected one of {', '.join(tasks.TASKS)}")
    for name in ("test.exact", "test_halting.exact", "baseline.exact"):
        check_number(name, at(summary, name), 0, 1)
    for name in ("test_halting.steps", "parameters", "depth"):
        check_number(name, at(summary, name))
    for clock in CLOCKS:
        check_number(f"seconds.{clock}", at(summary, f"seconds.{clock}"))
    check_kind("test.n", at(summary, "test.n"), int, "a number of rows")
    check_kind("steps", at(summary, "steps"), int, "a number of steps")
    check_number("test.n", summary["test"]["n"], 1)
    check_number("steps", summary["steps"], 1)
    check_number("seconds per step", run.step_seconds, sys.float_info.min)

    curve = at(summary, "test.curve")
    if not isinstance(curve, list) or not curve:
        raise ValueError(f"test.curve = {curve!r}, expected a share for every supervision step")
    for share in curve:
        check_number("test.curve", share, 0, 1)
    for part in ("test", "test_halting"):
        for name in ("steps", *run.task.figures):
            check_figure(f"{part}.{name}", name, summary[part].get(name))
    for name, value in summary["baseline"].items():
        check_number(f"baseline.{name}", value, -math.inf)
    check_card(summary)


def check_figure(where: str, name: str, value) -> None:
    """Raises ValueError for a figure of another type, or a share that is none."""
    check_kind(where, value, (int, float), "a number")
    if name not in (*NO_INTERVAL, "steps") and not math.isnan(number(value)):
        check_number(where, value, 0, 1)


def check_card(summary: dict) -> None:
    """Raises ValueError for a summary whose words about hardware and data are none."""
    if summary.get("flop") is not None:
        check_number("flop", summary["flop"])
    for key in ("hardware", "commit", "device", "test_puzzles", "note"):
        check_kind(key, summary.get(key), str, "a text")
    card = at(summary, "data")
    check_kind("data", card, dict, "an object")
    check_kind("data.rows", card.get("rows"), dict, "an object")
    if card.get("ceiling") is not None:
        check_number("data.ceiling", card["ceiling"], 0, 1)
    for key, value in card.items():
        if key == "baseline_is" or key.endswith(("source", "sha256")):
            check_kind(f"data.{key}", value, str, "a text")


def check_config(config: dict) -> None:
    """Raises ValueError for keys of a config.toml that are needed here and none."""
    for key in ("seed", "train.steps"):
        check_kind(key, config.get(key), int, "an integer")
    for key in ("model.T", "model.n", "model.n_layers"):
        if key not in config:
            raise ValueError(f"{key} is missing")
        check_kind(key, config[key], int, "an integer")
    if "expected" in config:
        check_number("expected", config["expected"], -math.inf)


def unfinished(run: Run) -> str:
    """Why a run has no summary. Raises OSError."""
    steps = [split["step"].max() for split in (run.train, run.val) if len(split["step"])]
    state = f"step {int(max(steps, default=0))} of {run.config.get('train.steps', '?')}"
    failed = run.folder / "failed.txt"  # the launcher's
    if failed.exists():
        return f"failed at {state}: " + " ".join(read_file(failed).split())
    if not (run.folder / "config.toml").exists():
        return "not started"
    return run.problem or f"not finished: {state}; the same command continues it"


def load_run(folder: Path) -> Run:
    """One run folder, whatever state it is in; `problem` says what is missing."""
    run = Run(folder)
    digits = re.search(r"\d+$", folder.name)
    run.seed = int(digits[0]) if digits else 0
    try:
        read_run(run)
    except OSError as e:
        run.problem = f"cannot read {e.filename or folder} ({e.strerror or e})"
    return run


def read_run(run: Run) -> None:
    """Fill in what the files of a run say. Raises OSError."""
    folder = run.folder
    read_config(run)
    run.train, run.val, damaged = read_metrics(folder / "metrics.jsonl")
    if not (folder / "summary.json").exists():
        run.problem = unfinished(run)
        return
    try:
        run.summary = read_summary(folder)
        check_figures(run)
    except (ValueError, RecursionError) as e:
        run.problem = run.problem or f"summary.json is damaged ({e or type(e).__name__})"
        return
    run.solved = read_solved(folder / "test.npz", run.summary)
    if run.solved is None and (folder / "test.npz").exists():
        run.notes.append("test.npz is damaged or of another run: no comparison puzzle by puzzle")
    if run.summary.get("note"):
        run.notes.append(run.summary["note"])
    if damaged:
        run.notes.append(f"metrics.jsonl has {damaged} damaged line(s), left out")
    if not len(run.val["step"]):
        run.notes.append("metrics.jsonl has no validations: no learning curve, no stability")
    leave_out(run, "train", "loss")
    leave_out(run, "val", "exact")
    try:
        run.task.check(Group(run.entry.name, [run]))
    except Exception as e:  # the figures of a task of its own can lack anything
        run.problem = run.problem or f"summary.json is damaged ({type(e).__name__}: {e})"


def read_config(run: Run) -> None:
    """Fill in config.toml, or why it cannot be used. Raises OSError."""
    path = run.folder / "config.toml"
    try:
        if path.exists():
            read_file(path)  # refuses what is no file
        config = flat_tables(read_toml(path))
        check_config(config)
        run.config, run.seed = config, config.get("seed", run.seed)
    except UserError as e:
        run.problem = str(e)
    except (ValueError, RecursionError) as e:
        run.problem = f"config.toml is damaged ({e or type(e).__name__})"


def leave_out(run: Run, split: str, key: str) -> None:
    """Drop the lines of a split whose figure is not finite, and note it."""
    table = getattr(run, split)
    bad = ~np.isfinite(table[key])
    if bad.any():
        first = table["step"][bad][0]
        run.notes.append(
            f"metrics.jsonl has {bad.sum()} {split} line(s) whose {key} is not finite, "
            f"the first at step {first:.0f}, left out"
        )
        setattr(run, split, {name: values[~bad] for name, values in table.items()})


def load_runs(roots: list[Path]) -> list[Run]:
    """Every run folder below the roots, in order. Raises UserError where there is none."""
    found, closed = set(), []
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root}: no such folder, expected one with run folders of train.py")
        for folder, folders, files in os.walk(root, onerror=closed.append):
            # the launcher's copies of the code are hidden
            folders[:] = [name for name in folders if not name.startswith(".")]
            if {"summary.json", "config.toml", "failed.txt", "job.json"} & {*folders, *files}:
                found.add(Path(folder))
    unread = [Run(Path(e.filename), problem=f"cannot read it ({e.strerror})") for e in closed]
    if not found and not unread:
        raise UserError(
            f"no run folder below {', '.join(map(str, roots))}; "
            "make one: python train.py sweeps/laptop/maze_perfect.toml"
        )
    return [load_run(folder) for folder in sorted(found)] + unread


# ---------------------------------------------------------------- what belongs together


def names_of(runs: list[Run]) -> dict[Path, str]:
    """Entry folder -> its name: the path below what all have in common."""
    entries = sorted({run.entry.absolute() for run in runs})
    common = os.path.commonpath([entry.parent for entry in entries])
    names = {}
    for run in runs:
        below = Path(os.path.relpath(run.entry.absolute(), common))
        names[run.entry] = visible(below.as_posix())
    return names


def data_of(run: Run) -> dict:
    """What makes test puzzles the same: the digest of their questions, and those of the files."""
    hashes = {
        f"sha256 of {key.removesuffix('_sha256')}": value
        for key, value in run.summary["data"].items()
        if key.endswith("sha256")
    }
    return hashes | {"sha256 of the test questions": run.summary.get("test_puzzles", "unknown")}


def common_keys(runs: list[Run]) -> dict[Path, set[str]]:
    """Entry folder -> the keys that the config.toml of all its runs have.

    A key that an older version did not have says nothing about its runs.
    """
    known: dict[Path, set[str]] = {}
    for run in runs:
        keys = set(run.config)
        if keys:
            known[run.entry] = known.get(run.entry, keys) & keys
    return known


def setup_of(run: Run, keys: set[str]) -> dict:
    """What the seeds of one configuration have in common."""
    config = {key: run.config[key] for key in keys - SHARED if key in run.config}
    return config | data_of(run)


def name_files_alike(runs: list[Run]) -> None:
    """Data files with the same bytes are the same data: all get the path of the first run."""
    first: dict[tuple[str, str], str] = {}
    for run in runs:
        files = run.summary.get("files")
        for key, digest in files.items() if isinstance(files, dict) else ():
            if key in run.config:
                run.config[key] = first.setdefault((key, str(digest)), run.config[key])


def mixed_words(setup: dict, others: list[dict]) -> str:
    """What a setup has that another one of the same entry has not, for its name."""
    words = []
    for key, value in sorted(setup.items()):
        if any(other.get(key) != value for other in others):
            words.append(f"{key} = {value[:8] if key.startswith('sha256') else value}")
    return f" ({', '.join(words)})" if words else ""


def group(runs: list[Run]) -> list[Group]:
    """Finished runs by entry and configuration, best first within each task.

    Configurations that share an entry name their difference.
    """
    name_files_alike([run for run in runs if not run.problem])
    names, keys = names_of(runs), common_keys(runs)
    found: list[tuple[str, dict, list[Run]]] = []
    for run in runs:
        if run.problem:
            continue
        name, setup = names[run.entry], setup_of(run, keys.get(run.entry, set()))
        members = next((g[2] for g in found if g[:2] == (name, setup)), None)
        if members is None:
            members = []
            found.append((name, setup, members))
        twin = next((other for other in members if other.seed == run.seed), None)
        if twin:
            run.problem = f"the same entry and seed as {twin.folder.name}, which is in the tables"
        else:
            members.append(run)
    groups = []
    for name, setup, members in found:
        others = [other for same, other, _ in found if same == name]
        members.sort(key=lambda run: run.seed)
        groups.append(Group(name + mixed_words(setup, others), members))
    return sorted(groups, key=lambda g: (g.first["task"], -g.mean("exact")[0], g.name))


def compare(groups: list[Group], baseline: str) -> None:
    """Gives every group the baseline of its folder and what differs from it, or why it has none."""
    for g in groups:
        wanted = g.runs[0].entry.parent / baseline
        found = [other for other in groups if other.runs[0].entry == wanted]
        if not found:
            continue
        base = found[0]
        if len(found) > 1:
            g.alone = f"not compared: {baseline} has runs of {len(found)} configurations"
        elif data_of(base.runs[0]) != data_of(g.runs[0]):
            g.alone = f"not compared: its data are not those of {base.name}"
        elif not shared_seeds(base, g):
            g.alone = f"not compared: no seed in common with {base.name}"
        else:
            g.base = base
            solved = g.per_puzzle([run.seed for run in g.runs])
            g.accuracy = tuple(float(value) for value in np.clip(interval(solved), 0, 1))
            g.difference = difference(base, g)


def missing(runs: list[Run], groups: list[Group]) -> list[tuple[str, str]]:
    """Seeds that an entry lacks and another entry of a compared sweep has."""
    names, result = names_of(runs), []
    for sweep in sorted({g.runs[0].entry.parent for g in groups if g.base}):
        have: dict[Path, set[int]] = {}
        for run in runs:
            if run.entry.parent == sweep:
                have.setdefault(run.entry, set()).add(run.seed)
        every = set.union(*have.values())
        for entry, seeds in have.items():
            for seed in sorted(every - seeds):
                name = f"{names[entry]}/seed{seed}"
                result.append((name, "missing: other entries have this seed"))
    return result


def shared_seeds(a: Group, b: Group) -> list[int]:
    return sorted({run.seed for run in a.runs} & {run.seed for run in b.runs})


def difference(a: Group, b: Group) -> tuple[float, float, float]:
    """Exact test accuracy of b minus a over their common seeds, with its paired 95 % interval."""
    seeds = shared_seeds(a, b)
    one, two = a.per_puzzle(seeds), b.per_puzzle(seeds)
    if one.shape != two.shape:  # one of them has no test.npz
        one, two = one.mean(1, keepdims=True), two.mean(1, keepdims=True)
    # shares differ by no more than 1
    return tuple(float(value) for value in np.clip(paired(one, two), -1, 1))


def verdict(seeds: int, mean: float, low: float, high: float) -> str:
    """What a difference says: "helps" or "hurts" only where the interval excludes zero.

    One seed shows nothing about others.
    """
    if seeds < 2 or not excludes_zero(low, high):
        return "not shown"
    return "helps" if mean > 0 else "hurts"


def switch(g: Group) -> dict:
    """The keys in which a group differs from its baseline."""
    ours, theirs = g.runs[0].config, g.base.runs[0].config
    keys = [key for key in {**theirs, **ours} if key not in SHARED]
    return {key: ours.get(key) for key in keys if ours.get(key) != theirs.get(key)}


def time_ratio(g: Group) -> tuple[float, float, float]:
    """Time per step in units of the baseline's, seed by seed: mean, smallest, largest.

    NaN on other hardware.
    """
    ratios = []
    for seed in shared_seeds(g.base, g):
        base, own = g.base.seed(seed), g.seed(seed)
        same = base.summary.get("hardware") == own.summary.get("hardware")
        ratios.append(own.step_seconds / base.step_seconds if same else math.nan)
    return float(np.mean(ratios)), min(ratios), max(ratios)


# ---------------------------------------------------------------- a row per configuration


def source(card: dict) -> str:
    """The data of a run in one phrase."""

    def of(split: str) -> str:
        sha = card.get(f"{split}_sha256")
        name = card.get(f"{split}_source", card.get("source", "?"))
        return f"{name} (sha256 {sha[:6]})" if sha else str(name)

    train, test = of("train"), of("test")
    sources = train if train == test else f"{train}, test: {test}"
    rows = card.get("rows") or {}
    counts = [str(rows.get(split, "?")) for split in ("train", "val", "test")]
    return f"{sources}; {' / '.join(counts)} train / val / test"


def unique(g: Group, key: str) -> str:
    """The values of a summary's key over the seeds."""
    return ", ".join(sorted({str(run.summary.get(key) or "-") for run in g.runs}))


def test_puzzles(g: Group) -> str:
    return "/".join(str(n) for n in sorted({run.summary["test"]["n"] for run in g.runs}))


def mean_of(values: list[float]) -> float | None:
    return clean(float(np.mean(values)))


def row(g: Group, names: list[str]) -> dict:
    """A group as one flat row, with the figures `names`. Shares lie between 0 and 1."""
    flat = {
        "entry": g.name,
        "task": g.first["task"],
        "seeds": " ".join(str(run.seed) for run in g.runs),
        "test_puzzles": test_puzzles(g),
        "parameters": g.first["parameters"],
        "depth": g.first["depth"],
    }
    for name in names:
        mean, low, high = map(clean, g.mean(name))
        flat |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    if g.base:
        flat |= comparison_row(g)
    notes = [g.alone] * bool(g.alone)
    notes += sorted({note for run in g.runs for note in run.notes})
    if two_groups(np.array(g.each("exact"))):
        notes.append("seeds fall into two groups: their interval may be too narrow")
    steps_per_second = [1 / seconds for seconds in g.each("step_seconds")]
    flat |= {
        "copy_exact": g.first["baseline"]["exact"],
        "copy_cells": g.first["baseline"].get("cells"),
        "trivial": g.trivial,
        "ceiling": g.first["data"].get("ceiling"),
        "best_step": unique(g, "best_step"),
        "train_steps": unique(g, "steps"),
        "steps_per_second": mean_of(steps_per_second),
        "flop": g.first.get("flop"),
        "spread_last_third": mean_of(g.each("spread")),
        "loss_spikes": mean_of(g.each("spikes")),
    }
    for clock in CLOCKS:
        seconds = [run.summary["seconds"][clock] for run in g.runs]
        flat[f"{clock}_seconds"] = round(float(np.mean(seconds)), 1)
    return flat | {
        "hardware": unique(g, "hardware"),
        "commit": unique(g, "commit"),
        "data": source(g.first["data"]),
        "chosen": unique(g, "chosen"),
        "weights": unique(g, "weights"),
        "note": "; ".join(notes),
    }


def comparison_row(g: Group) -> dict:
    """The part of a row that compares with the baseline."""
    names = ("difference", "difference_low", "difference_high")
    names += ("time_ratio", "time_ratio_low", "time_ratio_high")
    values = [None] * 6 if g.base is g else map(clean, (*g.difference, *time_ratio(g)))
    by_puzzle = all(run.solved is not None for run in g.runs + g.base.runs)
    differs = [f"{key} = {json.dumps(value, default=str)}" for key, value in switch(g).items()]
    return {
        "baseline": g.base.name,
        "switch": ", ".join(differs),
        **dict(zip(names, values)),
        "paired_seeds": len(shared_seeds(g.base, g)),
        "paired_by": "puzzle" if by_puzzle else "seed",
        "verdict": g.verdict,
        "expected_points": g.runs[0].config.get("expected") or None,
    }


def figure_names(groups: list[Group]) -> list[str]:
    """All figures of the tasks of these groups, and those that halting has."""
    names = [name for g in groups for name in g.task.figures]
    return [*dict.fromkeys(names), "halting_exact", "halting_steps"]


# ---------------------------------------------------------------- tables


def compared(rows: list[dict]) -> list[str]:
    """The table of differences to the baseline, and what its columns mean."""
    head = ["entry", "differs in", "depth", "exact %", "difference, points (95 %)"]
    head += ["expected", "verdict", "time per step", "steps used", "seeds x puzzles"]
    lines = []
    for r in rows:
        reference = r["verdict"] == "reference"
        gap, ratio = "reference", "1"
        if not reference:
            gap = points(r["difference"], r["difference_low"], r["difference_high"])
            ratio = "-"
        if r["time_ratio"] is not None:
            ratio = f"{r['time_ratio']:.2f} "
            ratio += f"({r['time_ratio_low']:.2f}-{r['time_ratio_high']:.2f})"
        line = [r["entry"], r["switch"] or "-", r["depth"], percent(r, "exact"), gap]
        line += [shown(r["expected_points"], "+.1f"), r["verdict"], ratio]
        line += [f"{r['halting_steps']:.1f}", f"{r['paired_seeds']} x {r['test_puzzles']}"]
        lines.append(line)
    text = markdown(head, lines)
    text += [
        "difference: exact accuracy minus the baseline's, over the same seeds and puzzles, with a "
        "95 % interval for other seeds and puzzles. expected: the published change, often on "
        "another task. verdict: helps or hurts only if the interval excludes zero and there are "
        "two seeds or more. Among twenty entries that change nothing, one interval excludes zero "
        "by chance. time per step: in units of the baseline's, seed by seed (smallest-largest). "
        "steps used: supervision steps until the net would stop, on the test puzzles."
    ]
    if any(r["paired_seeds"] == 1 for r in rows):
        text += ["One seed: the interval says nothing about other seeds."]
    by_seed = [r["entry"] for r in rows if r["paired_by"] == "seed"]
    if by_seed:
        text += [f"Without test.npz: {literal(', '.join(by_seed))}; intervals over seeds only."]
    return text + [""]


def figures_tables(rows: list[dict], make: Callable = markdown) -> list[str]:
    """A table of the figures of each kind of task, and in Markdown what its columns mean."""
    text, notes = [], []
    kinds: dict[tuple, list[dict]] = {}
    for r in rows:
        kinds.setdefault(tuple(tasks.get(r["task"]).heads), []).append(r)
    for head, members in kinds.items():
        task, keys = tasks.get(members[0]["task"]), keys_of(members)
        lines = []
        for r in members:
            values = [toml_value(r[key]) if key in r else "-" for key in keys]
            lines.append([r["entry"], *values, *(cell(r) for cell in task.heads.values())])
        text += make(["entry", *keys, *head], lines)
        notes += [task.notes]
    if make is latex:
        return text
    text += [
        "Test split, read once per run with the checkpoint that was best on validation. Mean over "
        "seeds (smallest-largest); with one seed (95 % binomial interval)."
    ]
    return [*text, *notes, ""]


def cost_table(rows: list[dict]) -> list[str]:
    """Size, time, steadiness and origin of each row."""
    head = ["entry", "parameters", "depth", "training steps", "training seconds", "CPU seconds"]
    head += ["steps/s", "spread", "spikes", "hardware", "commit", "data"]
    lines = []
    for r in rows:
        spread = r["spread_last_third"]
        line = [r["entry"], f"{r['parameters']:,}", r["depth"], r["train_steps"]]
        line += [f"{r['train_seconds']:.0f}", f"{r['train_cpu_seconds']:.0f}"]
        line += [f"{r['steps_per_second']:.2f}", "-" if spread is None else f"{100 * spread:.1f}"]
        line += [shown(r["loss_spikes"], ".1f"), r["hardware"], r["commit"], r["data"]]
        lines.append(line)
    return markdown(head, lines) + [
        "depth: blocks applied per supervision step, T x (n + 1) x layers. training seconds: wall "
        "clock without evaluations, mean over seeds; CPU seconds: the same in time of all cores. "
        "steps/s: by CPU seconds on a CPU, else by the wall clock. spread: standard deviation of "
        "the validation accuracy over the last third of training, in points. spikes: jumps of the "
        "logged loss above 1.5 times the median of the ten lines before, per run. A + behind a "
        "commit: files differed from it.",
        "",
    ]


def report(rows: list[dict], answers: list[tuple[str, str]], absent: list[tuple[str, str]]) -> str:
    """table.md"""
    text = []
    for name in dict.fromkeys(r["task"] for r in rows):
        text += tasks.get(name).extra_tables([r for r in rows if r["task"] == name])
    with_baseline = [r for r in rows if r.get("baseline")]
    if with_baseline:
        text += compared(with_baseline)
    for question, answer in answers:
        text += [f"**{literal(question)}** {literal(answer)}", ""]
    if rows:
        text += figures_tables(rows) + cost_table(rows)
    notes = {literal(f"{r['entry']}: {r['note']}") for r in rows if r["note"]}
    text += [f"- {note}" for note in sorted(notes)]
    if absent:
        text += ["Not in the tables:"]
        text += [f"- {literal(f'{name}: {problem}')}" for name, problem in absent]
    return "\n".join(text).rstrip() + "\n"


def run_rows(g: Group, names: list[str]) -> list[dict]:
    """The figures of each seed, for table.json."""
    rows = []
    for run in g.runs:
        flat = {"seed": run.seed} | {name: clean(run.figure(name)) for name in names}
        flat["step_seconds"] = clean(run.step_seconds)
        flat["spread_last_third"], flat["loss_spikes"] = clean(run.spread), clean(run.spikes)
        rows.append(flat | {"curve": run.summary["test"]["curve"]})
    return rows


def varied(groups: list[Group]) -> list[str]:
    """The keys of the configuration in which groups of one task differ, but for the machine's."""
    configs = [g.runs[0].config for g in groups]
    common = [key for key in configs[0] if all(key in config for config in configs)]
    texts = {key: {json.dumps(config[key], default=str) for config in configs} for key in common}
    return [key for key in common if key not in SHARED and "." in key and len(texts[key]) > 1]


def value_columns(groups: list[Group], g: Group) -> dict:
    """A column for every key in which the groups of a task differ, named as the key."""
    own = [other for other in groups if other.task is g.task]
    return {key: g.runs[0].config[key] for key in varied(own)}


def keys_of(rows: list[dict]) -> list[str]:
    """The columns of `value_columns` that a table to read shows: few tell more than many."""
    keys = [name for name in rows[0] if "." in name]
    return keys if len(keys) <= MOST_KEYS else []


def write_tables(
    out: Path, groups: list[Group], absent: list[tuple[str, str]], tex: bool = False
) -> str:
    """table.md, table.csv and table.json, and table.tex if asked for; returns the first."""
    names = figure_names(groups)
    rows = [
        row(g, names) | g.task.extra_columns(g, groups) | value_columns(groups, g) for g in groups
    ]
    answers = ablation_answers(groups)
    text = report(rows, answers, absent)
    write_text(out / "table.md", text)
    if tex:
        lines = ["% needs the package booktabs", *figures_tables(rows, latex)]
        write_text(out / "table.tex", "\n".join(lines))
    every = [{"status": "finished", **r} for r in rows]
    every += [{"status": problem, "entry": name} for name, problem in absent]
    write_csv(out / "table.csv", every)
    whole = {
        "entries": [{**r, "runs": run_rows(g, names)} for r, g in zip(rows, groups)],
        "answers": dict(answers),
        "unfinished": [{"entry": name, "status": problem} for name, problem in absent],
    }
    write_text(out / "table.json", json.dumps(whole, indent=1) + "\n")
    return text


# ---------------------------------------------------------------- what the comparison says


def listed(groups: list[Group], words) -> str:
    """Each group with what `words` says of it."""
    return "; ".join(f"{g.name} {words(g)}" for g in groups)


def ablation_answers(groups: list[Group]) -> list[tuple[str, str]]:
    """The four questions of an ablation, each with sentences that the figures support."""
    bases = [g for g in groups if g.base is g]
    result = []
    for base in bases:
        others = [g for g in groups if g.base is base and g is not base]
        others.sort(key=lambda g: g.difference[0])
        if not others:
            continue
        where = f" ({base.name})" if len(bases) > 1 else ""
        result += [
            (f"Which change hurts most{where}?", hurts_most(base, others)),
            (f"How steady is training{where}?", steadiness(base, others)),
            (f"How fast is a step{where}?", speed(base, others)),
            (f"More layers or more recursion{where}?", capacity(base, others)),
        ]
    return result


def measured(g: Group) -> str:
    """The difference of a group to its baseline, and the published one."""
    expected = g.runs[0].config.get("expected")
    words = points(*map(clean, g.difference))
    return words + (f", expected {expected:+.1f}" if expected else "")


def hurts_most(base: Group, others: list[Group]) -> str:
    kinds = {kind: [g for g in others if g.verdict == kind] for kind in ("hurts", "helps")}
    open_ones = [g for g in others if g.verdict == "not shown"]
    hurt = kinds["hurts"]
    if hurt:
        accuracy = f"{100 * base.mean('exact')[0]:.1f} %"
        text = f"{hurt[0].name}: {measured(hurt[0])} points against {accuracy} "
        text += "(95 % interval in brackets)."
        if len(hurt) > 1:
            text += f" Also shown to hurt: {listed(hurt[1:], measured)}."
            text += not_more_than(hurt[0], hurt[1])
        if open_ones:
            open_words = listed(open_ones, measured)
    else:
        text = "None is shown to hurt; "
        drop = others[0].difference[0] < 0
        text += (
            "the largest measured drop is " if drop else "none is below the baseline, nearest is "
        )
        text += f"{others[0].name} with {measured(others[0])} points."
    if kinds["helps"]:
        text += f" Shown to help: {listed(kinds['helps'][::-1], measured)}."
    if hurt and open_ones:
        text += f" Not shown either way: {open_words}."
    return text + f" Seeds per comparison: {seeds_of(base, others)}; puzzles: {test_puzzles(base)}."


def not_more_than(most: Group, next_one: Group) -> str:
    """A sentence, where the first is not shown to hurt more than the second."""
    seeds = len(shared_seeds(next_one, most))
    if not seeds:
        return ""
    gap = difference(next_one, most)
    if verdict(seeds, *gap) != "not shown":
        return ""
    words = points(*map(clean, gap))
    return f" That {most.name} hurts more than {next_one.name} is not shown ({words})."


def seeds_of(base: Group, others: list[Group]) -> str:
    return "/".join(map(str, sorted({len(shared_seeds(base, g)) for g in others})))


def spread_change(base: Group, g: Group) -> tuple[float, float, float]:
    """The spread of a group minus its baseline's, over the same seeds, with Student's t."""
    seeds = shared_seeds(base, g)
    one, two = (np.array([[side.seed(s).spread] for s in seeds]) for side in (base, g))
    return paired(one, two)


def steadiness(base: Group, others: list[Group]) -> str:
    """Spread of validation accuracy late in training."""
    changes = {g.name: spread_change(base, g) for g in others}
    known = [g for g in others if math.isfinite(changes[g.name][0])]
    spread = float(np.mean(base.each("spread")))
    if not known or math.isnan(spread):
        return "Too few validations in the last third of training to say."
    text = (
        "Over the last third of training the baseline's validation accuracy has a standard "
        f"deviation of {100 * spread:.1f} points (mean over seeds)."
    )
    kinds = {"Shown to be less steady": [], "Shown to be steadier": [], "No difference shown": []}
    for g in known:
        mean, low, high = changes[g.name]
        kind = "No difference shown"
        if excludes_zero(low, high):
            kind = "Shown to be less steady" if mean > 0 else "Shown to be steadier"
        kinds[kind].append(g)
    for kind, members in kinds.items():
        if members:
            text += f" {kind}: {listed(members, lambda g: points(*map(clean, changes[g.name])))}."

    def spike_words(g: Group) -> str:
        return shown(mean_of(g.each("spikes")), ".1f")

    return text + f" Loss spikes per run: {listed([base, *others], spike_words)}."


def speed(base: Group, others: list[Group]) -> str:
    clock = "CPU time" if base.first["device"] == "cpu" else "wall clock"

    def words(g: Group) -> str:
        mean, low, high = time_ratio(g)
        if math.isnan(mean):
            return "on other hardware"
        flop = ""
        if g.first.get("flop") and base.first.get("flop"):
            own, theirs = (side.first["flop"] / side.first["steps"] for side in (g, base))
            flop = f", {own / theirs:.2f} by FLOP"
        return f"{mean:.2f} ({low:.2f}-{high:.2f}{flop})"

    ordered = sorted(others, key=lambda g: -np.nan_to_num(time_ratio(g)[0]))
    rate = np.mean([1 / seconds for seconds in base.each("step_seconds")])
    return (
        f"The baseline makes {rate:.2f} steps/s ({clock}). Time per step in units of its own, "
        f"smallest to largest seed in brackets: {listed(ordered, words)}."
    )


def calls_and_layers(g: Group) -> tuple[int, int]:
    """(calls of the net per supervision step, its layers)"""
    config = g.runs[0].config
    return config["model.T"] * (config["model.n"] + 1), config["model.n_layers"]


def capacity(base: Group, others: list[Group]) -> str:
    """Entries that trade recursion against layers, and entries that only recurse less."""

    def words(g: Group) -> str:
        size = f"depth {g.first['depth']}, {g.first['parameters']:,} parameters"
        return f"{g.verdict}: {measured(g)} points at {size}"

    calls, layers = calls_and_layers(base)
    depth = base.first["depth"]
    fewer = [g for g in others if calls_and_layers(g)[0] < calls]
    traded = [g for g in fewer if calls_and_layers(g)[1] > layers]
    less = [g for g in fewer if calls_and_layers(g)[1] == layers]
    text = f"Baseline: depth {depth} from {calls} calls of {layers} layer(s), "
    text += f"{base.first['parameters']:,} parameters."
    if traded:
        text += f" More layers and less recursion: {listed(traded, words)}."
    else:
        text += " No entry trades recursion for layers."
    if less:
        text += f" Less recursion with the same layers: {listed(less, words)}."
    else:
        text += " No entry only recurses less."
    if not traded:
        return text
    if all(g.verdict == "hurts" and g.first["depth"] >= depth for g in traded):
        return text + " So recursion is worth more than layers: as deep, yet worse."
    if all(g.verdict == "helps" and g.first["depth"] <= depth for g in traded):
        return text + " So layers are worth more than recursion: no deeper, yet better."
    return text + " Which of the two is worth more is not shown."


# ---------------------------------------------------------------- other depths than the trained one

DEPTHS = list(range(1, 7)), list(range(1, 13))  # T and n


def load_seeds(roots: list[Path]) -> list[tuple[Path, tuple]]:
    """(folder, what train.load_run gives) of the seeds of one configuration. Raises UserError."""
    import train

    folders = sorted({best.parent for root in roots for best in root.rglob("best.pt")})
    if not folders:
        raise UserError(
            f"no best.pt below {', '.join(map(str, roots))}, expected a run of train.py"
        )
    runs = [(folder, train.load_run(folder)) for folder in folders]
    first = flatten(runs[0][1][0])
    for folder, (cfg, _, _) in runs:
        other = [k for k, v in flatten(cfg).items() if k not in SHARED and first[k] != v]
        if other:
            raise UserError(
                f"{folder} differs from {folders[0]} in {', '.join(other)}, "
                "expected seeds of one configuration"
            )
    return runs


def depth_rows(runs: list[tuple[Path, tuple]], dataset) -> list[dict]:
    """Test figures of each seed for every T and n of DEPTHS."""
    from tqdm import tqdm

    from evaluate import evaluate
    from runs import make_world

    pairs = [(T, n) for T in DEPTHS[0] for n in DEPTHS[1]]
    seconds = 0.5 if sys.stderr.isatty() else 15
    rows = []
    for folder, (cfg, net, _) in runs:
        large = dataclasses.replace(cfg.train, batch_size=256, accumulate=1)
        cfg, world = dataclasses.replace(cfg, train=large), make_world(large)
        for T, n in tqdm(pairs, desc=folder.name, leave=False, mininterval=seconds):
            net.cfg = dataclasses.replace(cfg.model, T=T, n=n, grad_cycles=1)
            found = evaluate(net, dataset.test, cfg, world)
            shares = {key: round(found[key], 6) for key in ("exact", "top3") if key in found}
            rows.append({"T": T, "n": n, "seed": cfg.seed} | shares)
    return rows


def depth(roots: list[Path], out: Path) -> tuple[str, list[str]]:
    """Test accuracy of trained nets for every T and n of DEPTHS, without retraining."""
    import data  # this and what it calls need torch, nothing else here does

    runs = load_seeds(roots)
    folder, (first, _, _) = runs[0]
    dataset, (Ts, ns) = data.load(first), DEPTHS
    rows = depth_rows(runs, dataset)
    exact = np.array([r["exact"] for r in rows]).reshape(len(runs), len(Ts), len(ns)).mean(0)
    trained = first.model.T, first.model.n
    seeds = f"{len(runs)} seed{'s' * (len(runs) > 1)} x {len(dataset.test)} test rows"
    lines = []
    for T, shares in zip(Ts, exact):
        cells = [f"{100 * share:.1f}" for share in shares]
        if T == trained[0] and trained[1] in ns:
            at = ns.index(trained[1])
            cells[at] = f"**{cells[at]}**"
        lines.append([T, *cells])
    text = "\n".join(markdown(["T / n", *ns], lines)) + (
        f"\nExact on test (%), mean of {seeds}, by T and n at evaluation; bold: T = {trained[0]}, "
        f"n = {trained[1]}, as trained. Nothing was retrained, nothing is chosen by this table."
    )
    if "ceiling" in dataset.card:
        text += f" Best possible on these rows: {100 * dataset.card['ceiling']:.1f} %."
    make_folder(out)
    write_text(out / "depth.md", text + "\n")
    write_csv(out / "depth.csv", rows)
    title = f"{visible(folder.parent.name)}, {seeds}"
    figure = plots.plot_depth(exact, Ts, ns, trained, title)
    return text + "\n", ["depth.md", "depth.csv", *plots.save(out, {"depth": figure})]


# ---------------------------------------------------------------- the command


def make_folder(out: Path) -> None:
    """The folder of tables and plots. Raises UserError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot write to {out} ({e.strerror})") from None


def refuse_others(out: Path, groups: list[Group]) -> None:
    """Raises UserError where the tables in `out` are of other entries, and of none of ours."""
    try:
        table = json.loads((out / "table.json").read_text(encoding="utf-8"))
        there = sorted({str(entry["entry"]) for entry in table["entries"]})
    except (OSError, ValueError, LookupError, TypeError):
        return
    # Names get their folder before them where two are alike, so their last parts count.
    ours = {Path(g.name).name for g in groups}
    if there and ours and ours.isdisjoint(Path(name).name for name in there):
        raise UserError(
            f"{out}: holds the table of other entries ({', '.join(there[:4])}), "
            "expected --out with a folder of its own"
        )


def analyze(
    roots: list[Path], out: Path, baseline: str = "", tex: bool = False
) -> tuple[str, list[str]]:
    """Tables and plots of all runs below the roots into `out`. tex: a table for LaTeX as well.

    Returns the Markdown table and the names of the files.
    """
    runs = load_runs(roots)
    groups, names = group(runs), names_of(runs)
    compare(groups, baseline or "baseline")
    if baseline and not any(g.base for g in groups):
        known = ", ".join(dict.fromkeys(g.runs[0].entry.name for g in groups))
        raise UserError(
            f"command line: --baseline = {baseline!r}, expected an entry with a finished run; "
            f"there are {known or 'none'}"
        )
    absent = missing(runs, groups)
    for run in runs:
        if run.problem:
            name = f"{names[run.entry]}/{visible(run.folder.name)}"
            absent.append((name, visible(run.problem)))
    absent.sort()
    refuse_others(out, groups)
    make_folder(out)
    if len({g.first["task"] for g in groups}) == 1:  # a task may have an analysis of its own
        own = groups[0].task.analyze(groups, out, absent, baseline or "baseline")
        if own:
            return own
    text = write_tables(out, groups, absent, tex)
    files = ["table.md", "table.csv", "table.json"] + ["table.tex"] * tex
    if groups:
        files += plots.write(out, groups)
        files += plots.write_values(out, groups, varied(groups))
    return text, files


def rules_of(task, runs: list[Run], out: Path) -> tuple[str, list[str]] | None:
    """What the rules of a task say of the runs that can be read; the others get a problem."""
    try:
        return task.rules(runs, out)
    except UserError:
        raise
    except Exception:  # of a file that the rules alone read; which run it is says the run alone
        for run in runs:
            try:
                task.rules([run], out)
            except Exception as e:
                run.problem = run.problem or f"its files are damaged ({type(e).__name__}: {e})"
        return task.rules(runs, out)


def decide(roots: list[Path], out: Path) -> tuple[str, list[str]]:
    """What the decision trees of a task say of its runs, into out/rules.md, with plots."""
    runs = load_runs(roots)
    usable = [run for run in runs if not run.problem]
    make_folder(out)
    for name in dict.fromkeys(run.summary["task"] for run in usable):
        found = rules_of(tasks.get(name), runs, out)
        if found:
            text, pictures = found
            break
    else:
        raise UserError(
            f"{', '.join(map(str, roots))}: no finished run of a task with rules, "
            "expected entries such as sweeps/encoders_laptop/E1v2.toml"
        )
    names = names_of(runs)
    for run in runs:
        if run.problem:
            name = f"{names[run.entry]}/{visible(run.folder.name)}"
            text += f"\nnot used: {literal(f'{name}: {run.problem}')}"
    write_text(out / "rules.md", text + "\n")
    return text, ["rules.md", *pictures]


def command_line(argv: list[str] | None):
    parser = Parser("analyze.py", __doc__)
    add = parser.add_argument
    add("roots", nargs="+", type=Path, metavar="folder", help="folders with run folders below")
    add(
        "--out",
        type=Path,
        help="where tables and plots go (default: analysis/ in the first folder)",
    )
    add(
        "--depth",
        action="store_true",
        help="accuracy against T and n at evaluation, of the trained nets below the folders",
    )
    add(
        "--baseline",
        default="",
        metavar="entry",
        help="the entry that others of its folder are compared with (default: baseline)",
    )
    add("--tex", action="store_true", help="table.tex as well, for LaTeX with booktabs")
    add(
        "--rules",
        action="store_true",
        help="ARC runs: the decision trees of the encoder experiments, and plots",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    try:
        args = command_line(argv)
        first = args.roots[0]
        if args.depth and (first / "best.pt").exists():  # one run: beside its other seeds
            first = first.resolve().parent
        out = args.out or first / "analysis"
        if args.rules:
            text, files = decide(args.roots, out)
        elif args.depth:
            text, files = depth(args.roots, out)
        else:
            text, files = analyze(args.roots, out, args.baseline, args.tex)
        print(f"{text}\nwrote {visible(str(out))}/: {', '.join(files)}")
    except UserError as e:
        print(f"error: {visible(str(e))}", file=sys.stderr)
        return 2
    except OSError as e:
        where = visible(f"{e.filename} ({e.strerror or e})")
        print(f"error: cannot read or write {where}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    quiet_output()
    sys.exit(main())
