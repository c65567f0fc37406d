"""Solve held-out rows and score them by the labels and by the rules.

    python evaluate.py runs/laptop/maze_perfect/seed0 [--steps 32] [--data.test_size=21] [--raw]
    python evaluate.py step_65104 --entry sweeps/maze_official.toml --data.test_path=FILE

Prints the last line of a training for a trained net: on the run's own test rows, or on others
that --data.KEY=VALUE names, under the same rules. Then what the rules and the halting head say,
and how accuracy grows with the supervision steps, beyond those of training if you like:
--steps 1,2,4,8,16,32. --tries 16 begins again on rows whose answers break the rules, and says
what that cost. Nothing in the run's folder changes. With --entry it reads a checkpoint of
the official TRM code (a file step_N). Exit codes: 0 done, 2 bad input.
"""

import config as _config  # noqa: F401, I001  first: it says so where packages are missing

import dataclasses
import json
import math
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import data
from config import (
    UserError,
    add_keys,
    flatten,
    load_config,
    make_parser,
    nested,
    overlay,
    parse,
    parse_value,
    quiet_output,
    shown,
)
from layers import log_probabilities
from stats import visible


def evaluate(net, split: data.Split, cfg, world, **options) -> dict:
    """The figures of a net on a split, as its task measures them: see `evaluate_rows`."""
    return cfg.task.evaluate(net, split, cfg, world, **options)


class Answers:
    """What N rows answered: after the last step, and when the net would have stopped on each."""

    def __init__(self, labels: np.ndarray, steps: int):
        self.labels, self.steps = labels, steps
        self.unasked = labels < 0  # padding
        self.final, self.at_halt = np.zeros_like(labels), np.zeros_like(labels)  # (N, L)
        self.used = np.full(len(labels), steps)  # steps until the net would stop
        self.open = np.ones(len(labels), dtype=bool)  # has not stopped yet
        self.right = np.zeros((len(labels), steps), dtype=bool)  # exact after each step
        self.judged: dict[str, np.ndarray] = {}  # (N, steps) bool, what the task reads off logits

    def note(self, rows: np.ndarray, step: int, answers: np.ndarray, q: np.ndarray, judged: dict):
        """What some rows answered after a step, counted from 0. A row may occur more than once."""
        self.final[rows] = answers
        self.right[rows, step] = ((answers == self.labels[rows]) | self.unasked[rows]).all(-1)
        for name, values in judged.items():
            self.judged.setdefault(name, np.zeros_like(self.right))[rows, step] = values
        stop = self.open[rows] & ((q > 0) | (step == self.steps - 1))
        self.at_halt[rows[stop]] = answers[stop]
        self.used[rows[stop]] = step + 1
        self.open[rows[stop]] = False


@torch.no_grad()
def evaluate_rows(
    net, split: data.Split, cfg, world, task, rows: int = 0, adaptive=False, progress: str = ""
) -> dict:
    """Solve the first `rows` (0: all) rows of a split with all supervision steps.

    Returns {"exact", what the task's rules and `judge` say, "cells", "steps", "n",
    "curve": exact after each step,
    "halting": the same figures when each row's answer is read at its first q_halt > 0,
    "verdict": {name: (n,) bool}}.

    The answer is that of the last step, or of the mean of the probabilities after the last
    cfg.train.eval_average steps; the curve shows each step's own answer. With `adaptive` finished
    rows leave the batch, so only the "halting" figures are defined, and the top level repeats
    them. Rows are dealt out over the processes.
    """
    was_training = net.training
    net.eval()
    count = min(rows, len(split)) if rows else len(split)
    mine = np.arange(count)[world.rank :: world.size]
    answers = solve_rows(net, split, mine, cfg, world, task, adaptive, progress)
    net.train(was_training)
    return summarise(answers, split, world, task, mine, count, adaptive)


@torch.no_grad()
def solve_rows(
    net, split, mine, cfg, world, task, adaptive=False, progress: str = "", first_states=None
) -> Answers:
    """What the rows `mine` of a split answered, in batches of one size.

    first_states: questions (B, L) to the y and z that they begin with; None: those of the net.
    """
    slots = cfg.train.batch_size // cfg.train.accumulate // world.size
    size = max(1, min(slots, len(mine)))
    answers = Answers(np.asarray(split.labels[mine], dtype=np.int64), cfg.eval_steps)
    first_states = first_states or (lambda questions: net.states_of(questions, cfg.seed))
    hidden = not progress or world.rank > 0
    bar = tqdm(total=len(mine), desc=progress, leave=False, disable=hidden, unit="row")
    for first in range(0, len(mine), size):
        block = np.arange(first, min(first + size, len(mine)))
        padding = np.full(size - len(block), block[-1])  # one batch size: no recompilation
        block = np.concatenate([block, padding])
        states = first_states(split.inputs[mine[block]])
        solve_block(net, split, cfg, world, task, answers, mine, block, states, adaptive)
        bar.update(min(size, len(mine) - first))
    bar.close()
    return answers


def solve_block(
    net, split, cfg, world, task, answers: Answers, mine, block, states, adaptive
) -> None:
    """All supervision steps of a batch. block: rows of `answers`, of `mine` of the split."""
    batch = {
        "inputs": data.tensor(split.inputs[mine[block]]),
        "labels": torch.from_numpy(answers.labels[block]),
        "puzzle": torch.zeros(len(block), dtype=torch.long),
        **{name: data.tensor(values[mine[block]]) for name, values in split.more.items()},
    }
    batch = {name: value.to(world.device) for name, value in batch.items()}
    carry = net.refill(net.start(batch), batch, states)
    average = 1 if adaptive else cfg.train.eval_average
    running, summed = block, 0.0  # running[i]: the row that slot i solves
    for step in range(cfg.eval_steps):
        carry, out = net.step(carry)
        judged = task.judge(out.logits, carry.batch["labels"])
        judged = {name: value.cpu().numpy() for name, value in judged.items()}
        found, q = out.logits.argmax(-1).cpu().numpy(), out.q_halt.cpu().numpy()
        answers.note(running, step, found, q, judged)
        if average > 1 and step >= cfg.eval_steps - average:
            summed = summed + log_probabilities(out.logits, cfg.model.loss).exp()
        if adaptive:
            keep = slots_to_keep(answers.open[running], len(block))
            if not len(keep):
                return
            if len(keep) < len(running):
                running, index = running[keep], torch.from_numpy(keep).to(world.device)
                carry = carry.map(lambda t, index=index: t[index])
    if average > 1:
        answers.final[running] = summed.argmax(-1).cpu().numpy()


def slots_to_keep(going: np.ndarray, size: int) -> np.ndarray:
    """Which slots go on, where `going` says which need to: all, or as many as a smaller batch has.

    Few batch sizes, size / 2, 4 and 8, so that few nets are compiled. Empty: none needs to.
    """
    keep = np.flatnonzero(going)
    if not len(keep):
        return keep
    smaller = [n for n in (size // 2, size // 4, size // 8) if len(keep) <= n < len(going)]
    if not smaller:
        return np.arange(len(going))
    return np.resize(keep, smaller[-1])  # some may stand there more than once


def summarise(answers: Answers, split, world, task, mine, count: int, adaptive: bool) -> dict:
    """The figures of `evaluate_rows`, over all processes."""
    labels, unasked = answers.labels, answers.unasked
    inputs = np.asarray(split.inputs[mine])

    def joined(own: np.ndarray) -> np.ndarray:
        every = np.zeros(count)
        every[world.rank :: world.size] = own
        return world.sum(torch.from_numpy(every)).numpy().astype(bool)

    def mean_over_rows(columns: list[np.ndarray]) -> list[float]:
        sums = np.stack(columns, 1).astype(np.float64).sum(0)
        total = world.sum(torch.from_numpy(np.concatenate([sums, [len(mine)]])))
        return (total[:-1] / total[-1]).tolist()

    def figures(found: np.ndarray, steps: np.ndarray) -> tuple[dict, dict]:
        right = found == labels
        verdict = {"exact": (right | unasked).all(-1)}
        at = np.arange(len(mine)), steps - 1
        verdict |= {name: values[at] for name, values in answers.judged.items()}
        verdict |= task.score(inputs, found)
        cells = right.sum(-1) / (~unasked).sum(-1)
        means = mean_over_rows([*verdict.values(), cells, steps])
        shares = dict(zip([*verdict, "cells", "steps"], means))
        return shares | {"n": count}, {name: joined(value) for name, value in verdict.items()}

    halting, verdict = figures(answers.at_halt, answers.used)
    if adaptive:
        return halting | {"halting": halting, "verdict": verdict}
    every_step = np.full(len(mine), answers.steps)
    mean, verdict = figures(answers.final, every_step)
    curve = mean_over_rows(list(answers.right.T))
    return mean | {"curve": curve, "halting": halting, "verdict": verdict}


# ---------------------------------------------------------------- further tries

NOISE = 0.3  # of further tries: its share of the spread of the first states


@torch.no_grad()
def other_states(cfg, net, questions: np.ndarray, number: int) -> tuple:
    """Other first states of questions (B, L) than those of the first try, and words about them."""
    if cfg.model.init == "random":
        return net.states_of(questions, cfg.seed + number), "other random first states"
    g = torch.Generator().manual_seed(number)
    size = 1, net.length(questions.shape[1]), cfg.model.dim
    states = []
    for state in net.states_of(questions, cfg.seed):
        noise = torch.randn(size, generator=g).to(state)
        states.append(state + NOISE * state.std() * noise)
    return tuple(states), "noise on the first states"


@torch.no_grad()
def need_rules(task, inputs: np.ndarray, answers: np.ndarray, tries: int) -> None:
    """Raises UserError for a task without rules: no answer of a try could be told from another."""
    if "valid" not in task.score(inputs, answers):
        raise UserError(
            f"--tries {tries}: data.task = {task.name!r} has no rules, expected maze or sudoku"
        )


def try_rows(net, split, cfg, world, task, tries: int, rows: int = 0) -> dict:
    """What 1, 2, ... tries come to on the first `rows` (0: all) rows of a split.

    Every second further try sees another view of the puzzle, the others begin with other first
    states. Where rules prove an answer right, as in Sudoku, a row whose answer keeps them is done.
    Else, as in mazes, each row takes all tries, and its answer is the one that most tries gave,
    of those that keep the rules; the earlier one of two.

    Returns {"exact": [...], "valid": [...], "steps": [...]}: shares, and supervision steps a row,
    after so many tries.
    """
    count = min(rows, len(split)) if rows else len(split)
    inputs, labels = split.inputs[:count], np.asarray(split.labels[:count], dtype=np.int64)
    net.eval()
    given: list[dict[bytes, int]] = [{} for _ in range(count)]  # how often an answer that is valid
    chosen, todo, spent = np.zeros_like(labels), np.arange(count), 0
    curves: dict[str, list[float]] = {"exact": [], "valid": [], "steps": []}
    for number in range(1, tries + 1):
        found = one_try(net, split, todo, cfg, world, task, number)
        spent += len(todo) * cfg.eval_steps
        kept = task.score(inputs[todo], found)["valid"]
        for row, answer, valid in zip(todo, found, kept):
            if valid:
                key = answer.tobytes()
                given[row][key] = given[row].get(key, 0) + 1
                most = max(given[row], key=given[row].get)  # the earlier one of two
                chosen[row] = np.frombuffer(most, answer.dtype)
            elif number == 1:
                chosen[row] = answer
        if task.proves:
            todo = todo[~kept]
        curves["exact"].append(float((chosen == labels).all(-1).mean()))
        curves["valid"].append(float(task.score(inputs, chosen)["valid"].mean()))
        curves["steps"].append(spent / count)
        if not len(todo):
            break
    return curves


def one_try(net, split, todo, cfg, world, task, number: int) -> np.ndarray:
    """(rows, L) answers of the rows `todo` of a split at their n-th try."""
    if not len(todo):
        return np.zeros((0, split.labels.shape[1]), np.int64)

    def from_other_states(questions: np.ndarray) -> tuple:
        return other_states(cfg, net, questions, number)[0]

    views, undo = [], []
    for row in todo:
        view, back = split.inputs[row], None
        if number % 2 == 0:
            g = np.random.default_rng((cfg.seed, number, row))
            view, back, _ = task.other_view(view, g)
        views.append(view)
        undo.append(back)
    first_states = from_other_states if number % 2 and number > 1 else None
    views = data.Split(np.stack(views), split.labels[todo])  # these labels are never read
    mine, progress = np.arange(len(todo)), f"try {number}"
    found = solve_rows(net, views, mine, cfg, world, task, False, progress, first_states).final
    for k, back in enumerate(undo):
        if back:
            found[k] = back(found[k : k + 1])[0]
    return found


def rows_within_training(cfg) -> int:
    """How many rows an evaluation may take so that it costs no more than the training.

    It binds in smoke tests only.
    """
    m, slots = cfg.model, cfg.train.steps * cfg.train.batch_size
    return max(2, int(slots * (m.T + 2 * m.grad_cycles) / (m.T * cfg.eval_steps)))


# ---------------------------------------------------------------- a trained net


@dataclass
class Trained:
    """A net from a file, and what is known about it."""

    path: Path  # a run folder, a best.pt, or a checkpoint of the official code
    cfg: object  # see train.Config
    net: torch.nn.Module
    shape: dict  # of its data
    step: int
    weights: str  # "ema", "raw" or "official"
    chosen: str  # how the checkpoint was chosen
    seconds: float = math.nan  # of training, where known


def open_run(path: Path, raw: bool):
    """(Trained, the World that it computes in) of a run folder or a best.pt. Raises UserError."""
    from runs import find_run
    from train import load_run

    path = find_run(path)
    refuse_official(path)
    world = world_of(load_run(path)[0])
    cfg, net, state = load_run(path, world.device, world.dtype, "raw" if raw else "ema")
    weights = "raw" if raw or state["ema"] is None else "ema"
    chosen, seconds = "best by validation", seconds_of_training(path)
    shape, step = state["shape"], state["step"]
    return Trained(path, cfg, net, shape, step, weights, chosen, seconds), world


def open_official(path: Path, entry: Path, model: dict):
    """The same of a checkpoint of the official code. Raises UserError.

    model: values of the table [model] over those of the entry.
    """
    from train import Config

    cfg = load_config(Config, entry, {"model": model})
    world = world_of(cfg)
    net, state = load_official(path, cfg, entry, world.device, world.dtype)
    shape, step = state["shape"], state["step"]
    return Trained(path, cfg, net, shape, step, "official", "the official code's"), world


def world_of(cfg):
    """Device and dtype as in training; where that device is not here, the best one that is."""
    from runs import choose_device, make_world

    try:
        choose_device(cfg.train.device)
    except UserError:
        return make_world(replace(cfg.train, device="auto"))
    return make_world(cfg.train)


def seconds_of_training(path: Path) -> float:
    """What the summary of a finished run says; NaN where there is none."""
    folder = path if path.is_dir() else path.parent
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return float(summary["seconds"]["train"])
    except (OSError, ValueError, LookupError, TypeError):
        return math.nan


# ---------------------------------------------------------------- checkpoints of the official code

# What the official code writes beside its checkpoints says more than they do: its keys and ours.
OFFICIAL_CONFIG = "all_config.yaml"
OFFICIAL_KEYS = {
    "H_cycles": "T",
    "L_cycles": "n",
    "L_layers": "n_layers",
    "hidden_size": "dim",
    "num_heads": "heads",
    "puzzle_emb_len": "prefix",
    "mlp_t": "mixer",
    "pos_encodings": "positions",
}
OFFICIAL_VALUES = {  # where theirs are not ours
    ("mlp_t", "true"): "mlp",
    ("mlp_t", "false"): "attention",
    ("puzzle_emb_len", "0"): "1",  # as many positions as the embedding fills
}


def refuse_official(path: Path) -> None:
    """Raises UserError for a checkpoint of the official code that comes without its entry."""
    from runs import load

    if not path.is_file():
        return
    if any(str(name).endswith("L_level.layers.0.mlp.down_proj.weight") for name in load(path)):
        raise UserError(
            f"{path}: is a checkpoint of the official code, expected --entry ENTRY with it, the "
            "entry that says which net it is, such as sweeps/sudoku_mlp.toml"
        )


def load_official(
    path: Path, cfg, entry: Path, device="cpu", dtype: torch.dtype = torch.float32
) -> tuple[torch.nn.Module, dict]:
    """(net in eval mode, checkpoint as train.load_run gives it) from a file step_N.

    The entry says what the file does not: the task, T, n, heads. Raises UserError where it is
    another net.
    """
    from model import public_names
    from runs import load

    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected a checkpoint of the official code: step_N")
    saved = load(path, device)
    try:
        weights = public_names(saved)
    except KeyError as e:
        raise UserError(
            f"{path}: holds {shown(e.args[0])}, expected the names of the official TRM code, such "
            "as 'inner.L_level.layers.0.mlp.down_proj.weight'; --entry is for its checkpoints only"
        ) from None
    refuse_identifiers(path, weights)
    refuse_other_config(path, cfg, entry)
    shape = cfg.task.shape(cfg)
    net = cfg.task.make_net(cfg, shape, dtype).to(device)
    refuse_other_sizes(path, weights, net.state_dict(), entry)
    net.load_state_dict(weights)
    digits = re.search(r"\d+", path.name)
    step = int(digits.group()) if digits else 0
    state = {"step": step, "val": {}, "raw": weights, "ema": None}
    return net.eval(), state | {"config": flatten(cfg), "shape": shape}


def refuse_identifiers(path: Path, weights: dict) -> None:
    """Raises UserError for a net that knows puzzles by their number, as those for ARC do."""
    rows = len(weights["puzzles"]) if "puzzles" in weights else 1
    if rows > 1:
        raise UserError(
            f"{path}: holds a vector for each of {rows} puzzle identifiers, as checkpoints for ARC "
            "do, expected one vector: our ARC nets read demonstrations, not identifiers"
        )


def refuse_other_config(path: Path, cfg, entry: Path) -> None:
    """Raises UserError where the configuration beside a checkpoint is not the entry's."""
    try:
        text = (path.parent / OFFICIAL_CONFIG).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    for name, value in re.findall(r"^\s*(\w+):[ \t]*(\S+)[ \t]*$", text, re.MULTILINE):
        if name not in OFFICIAL_KEYS:
            continue
        key = OFFICIAL_KEYS[name]
        ours = str(getattr(cfg.model, key))
        theirs = OFFICIAL_VALUES.get((name, value.lower()), value)
        if ours != theirs:
            raise UserError(
                f"{path}: trained with {name}: {value} ({OFFICIAL_CONFIG}), but {entry} has "
                f"model.{key} = {ours}, expected an entry with {theirs} (for evaluate.py also "
                f"--model.{key}={theirs})"
            )


def refuse_other_sizes(path: Path, theirs: dict, ours: dict, entry: Path) -> None:
    """Raises UserError where the weights of a checkpoint are not those of the entry's net."""
    from model import sizes

    found, expected = sizes(theirs), sizes(ours)
    for key, value in expected.items():
        if found.get(key) != value:
            raise UserError(
                f"{path}: {key} = {shown(found.get(key))}, but {entry} has {shown(value)}; "
                "expected the entry of the same net"
            )
    for name in sorted(theirs.keys() | ours.keys()):
        shapes = [tuple(part[name].shape) if name in part else None for part in (theirs, ours)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{path}: {name} has the shape {shapes[0]}, but {shapes[1]} in the net of {entry}; "
                "expected the entry of the same net"
            )


# ---------------------------------------------------------------- the command


def command_line(argv: list[str] | None):
    """(options, keys of [data] and [model] as they were typed)"""
    import tasks
    from model import ModelConfig

    parser = make_parser("evaluate.py", __doc__)
    add = parser.add_argument
    add("run", type=Path, help="a run folder, a best.pt, or with --entry an official step_N")
    words = "supervision steps, or which of them to show: 1,2,4,8,16,32 (default: as the run)"
    add("--steps", default="", help=words)
    words = "as solve.py's: begin again on rows whose answers break the rules (default 1)"
    add("--tries", type=int, default=1, help=words)
    add("--raw", action="store_true", help="the weights themselves rather than their average")
    add("--out", type=Path, help="a file.json for the figures; file.png beside it gets the curve")
    add("--entry", type=Path, help="RUN is a checkpoint of the official code, of this entry's net")
    tables = [tasks.get(name).Config for name in tasks.TASKS]
    keys = add_keys(parser, tables, ("data.task",), "data")
    keys |= add_keys(parser, [ModelConfig], (), "model")
    options, typed = parse(parser, sys.argv[1:] if argv is None else argv, dict.fromkeys(keys, str))
    options.steps = step_list(options.steps) if options.steps else []
    if options.tries < 1:
        raise UserError(f"--tries {options.tries}: expected 1 or more")
    if options.out and options.out.suffix != ".json":
        raise UserError(f"--out {options.out}: expected the name of a .json file")
    if options.out and options.out.name in ("summary.json", "job.json"):
        raise UserError(f"--out {options.out}: is a name of files in run folders, expected another")
    if options.out and options.out.exists() and not is_own(options.out):
        raise UserError(f"--out {options.out}: is there and not of evaluate.py, expected another")
    return options, typed


def is_own(path: Path) -> bool:
    """Whether a file holds what `write_figures` writes."""
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        return {"run", "test", "test_puzzles"} <= figures.keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def step_list(text: str) -> list[int]:
    """ "1,2,4" -> [1, 2, 4]. Raises UserError."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--steps {text!r}: expected numbers of 1 or more, such as 1,2,4,8,16,32")
    return sorted({int(part) for part in parts})


def typed_values(values: dict[str, str], cls) -> dict:
    """Words of the command line as the fields of a table want them."""
    kinds = {field.name: field.type for field in dataclasses.fields(cls)}
    return {key: parse_value(text, kinds.get(key, str)) for key, text in values.items()}


def asked_config(trained: Trained, changes: dict, steps: list[int]):
    """The run's configuration, with other test rows and steps. Raises UserError.

    Whoever names a file means all of its rows.
    """
    if "test_path" in changes and "test_rows" in vars(trained.cfg.data):
        changes = {"test_rows": 0} | changes
    layer = {"data": changes} if changes else {}
    if steps:
        layer["train"] = {"eval_steps": steps[-1]}
    own = nested(flatten(trained.cfg))
    layers = [(str(trained.path), own), ("command line", layer)]
    return overlay(type(trained.cfg), layers, str(trained.path))


def load_rows(trained: Trained, cfg) -> data.Dataset:
    """The test rows. Raises UserError where the net cannot read them."""
    task = cfg.task.bound(trained.shape)
    task.fetch(cfg, ("test",))
    try:
        dataset = task.load_test(cfg)
    except MemoryError as e:
        raise UserError(f"data: more rows than fit into memory ({e}), expected fewer") from None
    for key, value in trained.shape.items():
        found = dataset.shape.get(key, value)
        if isinstance(value, int) and found != value and key != "num_puzzles":
            raise UserError(
                f"{trained.path}: the net was made for {key} = {value}, but these data have "
                f"{found}; expected data of the same kind (other mazes: data.test_size)"
            )
    return dataset


def seen_in_training(trained: Trained, cfg, test: data.Split) -> int | None:
    """How many test rows the run has trained or validated on, up to the symmetries of its task.

    None where nobody can tell: training made new rows all the time, its files are not here, or
    rows are numbers rather than tokens.
    """
    if trained.weights == "official":
        return None
    if cfg.data == trained.cfg.data:
        return 0  # the splits of a run share no row
    try:
        own = data.load(replace(trained.cfg, data=trained.cfg.data.without_copies()))
    except UserError:
        return None
    if own.train is None or test.inputs.dtype.kind == "f":
        return None
    keys = [cfg.task.keys(part).min(1) for part in (own.train, own.val, test)]
    return int(np.isin(keys[2], np.concatenate(keys[:2])).sum())


def measure(trained: Trained, cfg, world, rows: int, tries: int = 1) -> dict:
    """The figures of a net on the test rows of cfg, named as in summary.json."""
    from train import digest

    task, net, dataset = cfg.task, trained.net, load_rows(trained, cfg)
    if tries > 1:
        need_rules(task, dataset.test.inputs[:1], dataset.test.labels[:1], tries)
    test = task.evaluate(net, dataset.test, cfg, world, rows=rows, progress="test")
    del test["verdict"]
    halting = test.pop("halting")
    more, _ = task.report(net, dataset, cfg, world)
    if tries > 1:
        more["tries"] = try_rows(net, dataset.test, cfg, world, task, tries, test["n"])
    return {
        "run": str(trained.path),
        "seed": cfg.seed,
        "task": task.name,
        "test": test,
        "test_halting": halting,
        "chosen": trained.chosen,
        "best_step": trained.step,
        "weights": trained.weights,
        "trained_steps": trained.cfg.model.n_sup,
        "baseline": dataset.card["baseline"],
        "parameters": sum(p.numel() for p in net.parameters()),
        "test_puzzles": digest(dataset.test.inputs[: test["n"]]),
        "seconds": {"train": trained.seconds},
        "seen_in_training": seen_in_training(trained, cfg, dataset.test),
        "data": dataset.card,
    } | more


def report(figures: dict, task, shown_steps: list[int], tries: int = 1) -> str:
    """What the command prints. tries: how many were asked for."""
    sentence = task.sentence(figures).removesuffix("; trained nan min")
    lines = [f"done   {sentence}", *rules_table(figures, task)]
    curve = figures["test"]["curve"]
    steps = shown_steps or range(1, len(curve) + 1)
    for first in range(0, len(steps), 12):
        part = steps[first : first + 12]
        lines.append("step   " + "".join(f"{step:7d}" for step in part))
        lines.append("exact %" + "".join(f"{100 * curve[step - 1]:7.1f}" for step in part))
    if len(curve) > figures["trained_steps"]:
        lines.append(f"note   trained with at most {figures['trained_steps']} supervision steps")
    if "tries" in figures:
        lines += tries_table(figures["tries"])
        taken = len(figures["tries"]["exact"])
        if taken < tries:
            lines.append(f"note   all answers keep the rules after {taken} of {tries} tries")
    return "\n".join(lines)


def tries_table(tries: dict) -> list[str]:
    """Shares after 1, 2, 4, ... tries and after the last, and the supervision steps a row took."""
    last = len(tries["exact"])
    numbers = sorted({2**k for k in range(last.bit_length())} | {last})
    lines = ["tries  " + "".join(f"{number:7d}" for number in numbers)]
    for key in ("exact", "valid"):
        shares = "".join(f"{100 * tries[key][number - 1]:7.1f}" for number in numbers)
        lines.append(f"{key} %" + shares)
    steps = "".join(f"{tries['steps'][number - 1]:7.1f}" for number in numbers)
    return [*lines, "steps  " + steps]


def rules_table(figures: dict, task) -> list[str]:
    """Shares after the last step and at halting: exact, what the rules say, cells; and steps."""
    test, halting = figures["test"], figures["test_halting"]
    keys = [key for key in task.words if key in test and key in halting]
    head = "".join(f"{key + ' %':>11}" for key in keys)
    lines = [f"       {'':15}{head}{'steps':>11}"]
    for name, found in (("last step", test), ("when it halts", halting)):
        shares = "".join(f"{100 * found[key]:11.1f}" for key in keys)
        lines.append(f"       {name:15}{shares}{found['steps']:11.1f}")
    return lines


def draw_curve(figures: dict, task, shown_steps: list[int], path: Path) -> None:
    """Exact accuracy after each supervision step, with 95 % intervals, as a PNG."""
    import plots  # first: it chooses matplotlib's settings
    from stats import wilson

    curve, n = figures["test"]["curve"], figures["test"]["n"]
    x = np.arange(1, len(curve) + 1)
    low, high = 100 * np.array([wilson(share, n) for share in curve]).T
    figure = plots.Figure(figsize=(6.4, 4.2), layout="constrained", dpi=150)
    ax = figure.subplots()
    colour = plots.COLOURS[0]
    ax.plot(x, 100 * np.array(curve), color=colour, lw=2, label=f"the net ({n} {task.rows})")
    ax.fill_between(x, low, high, color=colour, alpha=0.2, lw=0, label="95 % interval")
    points = [step for step in shown_steps or x]
    ax.plot(points, [100 * curve[step - 1] for step in points], "o", color=colour)
    if len(curve) > figures["trained_steps"]:
        text = "most steps in training"
        ax.axvline(figures["trained_steps"], color=plots.COLOURS[1], ls=":", lw=1.5, label=text)
    text = f"{figures['data']['baseline_is']}: {100 * figures['baseline']['exact']:.0f} %"
    ax.axhline(100 * figures["baseline"]["exact"], color=plots.GREY, ls="--", lw=1.2, label=text)
    if shown_steps and shown_steps[-1] > 8:
        ax.set_xscale("log", base=2)
    ax.minorticks_off()
    ticks = shown_steps or x[:: -(-len(x) // 12)]
    ax.set_xticks(ticks, [str(step) for step in ticks])
    ax.set(xlabel="supervision step", ylabel="exact on test (%)", ylim=(-4, 104))
    plots.plain(ax)
    ax.legend(frameon=False, fontsize=9)
    plots.save_png(figure, path)


def write_figures(figures: dict, task, shown_steps: list[int], out: Path) -> None:
    """The figures as JSON, and the curve beside them as a PNG."""
    from runs import write_text

    own = {key: value for key, value in figures.items() if key != "seconds"}  # of training
    write_text(out, json.dumps(own, indent=1, default=str) + "\n")
    draw_curve(figures, task, shown_steps, out.with_suffix(".png"))
    print(f"wrote  {out} and {out.with_suffix('.png')}")


def make_folder(out: Path | None) -> None:
    """The folder of --out, before anything is computed. Raises UserError."""
    if out:
        if not out.parent.exists():
            print(f"note   {out.parent} is a new folder")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"--out {out}: cannot make its folder ({e.strerror})") from None


def open_named(options, model: dict):
    """(Trained, World) of what the command line names. Raises UserError."""
    if not options.entry and model:
        raise UserError(
            f"--model.{min(model)}: a run keeps the [model] that it was trained with, expected "
            "such a key with --entry only"
        )
    if not options.entry:
        return open_run(options.run, options.raw)
    if options.raw:
        raise UserError("--raw: an official checkpoint holds one set of weights, expected no --raw")
    return open_official(options.run, options.entry, model)


def command(argv: list[str] | None) -> None:
    """Measure what the command line says. Raises UserError and TrainingError."""
    from model import ModelConfig
    from runs import hardware
    from train import compile_net

    options, typed = command_line(argv)
    make_folder(options.out)
    trained, world = open_named(options, typed_values(typed.get("model", {}), ModelConfig))
    changes = typed_values(typed.get("data", {}), type(trained.cfg.data))
    cfg = asked_config(trained, changes, options.steps)
    own_rows = not changes and not options.entry
    rows = rows_within_training(trained.cfg) if own_rows else 0  # as at the end of training
    if world.compiled:
        compile_net(trained.net)
    figures = measure(trained, cfg, world, rows, options.tries)
    figures["hardware"] = hardware(world)
    steps = len(figures["test"]["curve"])
    if options.steps and steps != options.steps[-1]:
        name = cfg.task.name
        raise UserError(f"--steps: a net of data.task = {name!r} always takes {steps}, not others")
    print(headline(trained, figures))
    chosen = options.steps if len(options.steps) > 1 else []
    print(report(figures, cfg.task, chosen, options.tries))
    if options.out:
        write_figures(figures, cfg.task, chosen, options.out)


def headline(trained: Trained, figures: dict) -> str:
    """Which net, and what computed it. T, n and heads are not in an official checkpoint."""
    line = (
        f"run    {trained.path}: {figures['parameters']:,} parameters, {trained.weights} weights "
        f"of step {trained.step} | {figures['hardware']}"
    )
    if trained.weights == "official":
        m = trained.cfg.model
        line += f"\nnote   T = {m.T}, n = {m.n} and heads = {m.heads}, as the entry says"
    if "test_source" in figures["data"]:
        line += f"\ndata   test rows: {figures['data']['test_source']}"
    seen, rows = figures["seen_in_training"], figures["test"]["n"]
    if seen is None and trained.weights != "official":
        line += "\nnote   whether the run was trained on some of these rows is not known"
    if seen:
        line += (
            f"\nnote   {seen} of the {rows} rows were in the run's training or validation, as they "
            "are, turned or renamed: what the net scores on them is memory"
        )
    return line


def main(argv: list[str] | None = None) -> int:
    from runs import TrainingError

    try:
        command(argv)
    except (UserError, TrainingError) as e:
        print(f"error: {visible(str(e))}", file=sys.stderr)
        return 2
    except OSError as e:
        print(f"error: {visible(str(e.filename))}: {e.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    quiet_output()
    sys.exit(main())
