"""Train a tiny recursive model from one TOML entry.

    python train.py sweeps/laptop/maze_perfect.toml [--train.steps=200 --seed=1]
    torchrun --nproc_per_node=2 train.py ENTRY

The same command continues a stopped run to the same bits, says so when the run is finished, and
refuses a folder that holds another configuration, other data, or another process at work.
Exit codes: 0 finished, 2 bad input, 3 training failed (non-finite loss, disk full, out of memory),
128 + signal stopped by a signal, after a checkpoint where there is something to save.
"""

import config as _config  # noqa: F401, I001  first: it says so where packages are missing

import dataclasses
import functools
import hashlib
import json
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

import data
import tasks
from config import (
    LARGEST,
    UserError,
    build,
    command_line,
    entries_text,
    flatten,
    known_only,
    load_config,
    nearest,
    nested,
    quiet_output,
    slurm_config,
    to_toml,
)
from evaluate import rows_within_training
from model import TRM, Carry, ModelConfig, complexity
from optim import EMA, GrokFast, make_optimizers, schedule, set_rates
from runs import (
    Agreement,
    Lock,
    Log,
    Signals,
    Stopped,
    TrainingError,
    World,
    advise_on_memory,
    begin_stretch,
    cannot_write,
    check_same,
    digest_of_files,
    find_run,
    hardware,
    import_watchers,
    last_good,
    load,
    locked,
    make_world,
    name_of,
    ranks,
    refuse_difference,
    refuse_misfit,
    run_folder,
    save,
    stretch,
    write_arrays,
    write_text,
)
from tasks.base import NOISE, DataConfig

# What a machine may hold or wait for: limits that only a slip of the pen can reach.
MOST = {
    "batch_size": 2**20,
    "grokfast_window": 10_000,
    "muon_iterations": 1000,
    "eval_steps": 10_000,
    "threads": 1024,
}
# Keys of [model] that shape the weights: where one differs, those of another run do not fit.
SHAPING = ("dim", "n_layers", "two_nets", "mixer", "prefix", "positions", "mlp", "expansion")
SHAPING += ("position_expansion", "multiple", "init")
RATES = {  # and the decay that each is multiplied by
    "lr": "weight_decay",
    "muon_lr": "muon_weight_decay",
    "puzzle_lr": "puzzle_weight_decay",
}


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 1000  # optimizer steps, one supervision step each
    batch_size: int = 768  # slots, over all processes
    # with model.halting = false: slots take new examples in turn rather than all at the same step
    stagger: bool = False
    # pieces a batch is worked in, to fit into memory, or a CPU's cache (a piece of 1 MB or so); the
    # result is the same to rounding
    accumulate: int = 1
    # muon: for the matrices of the net, adamw for the rest; adam: decay inside the gradient (L2)
    optimizer: Literal["adamw", "adam", "muon", "adam_atan2"] = "adamw"
    lr: float = 1e-4  # learning rate of AdamW or Adam-atan2
    weight_decay: float = 1.0  # decoupled decay of AdamW or Adam-atan2
    beta1: float = 0.9  # first moment
    beta2: float = 0.95  # second moment
    muon_lr: float = 0.02  # learning rate of Muon
    muon_weight_decay: float = 0.0  # decay of Muon
    muon_momentum: float = 0.9  # momentum of Muon (Nesterov)
    muon_iterations: int = 3  # Newton-Schulz steps of Muon
    puzzle_lr: float = 1e-4  # sign-SGD on the puzzle embedding
    puzzle_weight_decay: float = 1.0  # decay of the puzzle rows that are in the batch
    warmup: int = 2000  # steps of linear warm-up
    schedule: Literal["constant", "cosine"] = "constant"  # learning rate after the warm-up
    lr_floor: float = 0.05  # where the cosine ends, as a share of the full rate
    clip: float = 0.0  # largest gradient norm; 0: no clipping
    # decay of the averaged weights (EMA), which are evaluated and saved; 0: none
    ema: float = 0.999
    ema_warmup: bool = False  # decay of update t at most (1 + t) / (10 + t): for short runs
    # gradient filter; highpass amplifies fast gradients, the opposite of the published filters
    grokfast: Literal["none", "ema", "ma", "highpass"] = "none"
    grokfast_alpha: float = 0.98  # decay of the gradient's moving average
    grokfast_lambda: float = 0.1  # weight of the filtered part (the Grokfast paper: 2)
    grokfast_window: int = 100  # gradients in the "ma" filter
    eval_every: int = 0  # steps between validations; 0: ten per run
    eval_steps: int = 0  # supervision steps in evaluation; 0: n_sup
    # last steps of an evaluation whose probabilities are averaged for the answer; 1: the last alone
    eval_average: int = 1
    patience: int = 0  # validations without a better one before stopping early; 0: never
    log_every: int = 20  # steps between lines of metrics.jsonl, the loop's only host sync
    ckpt_minutes: float = 5.0  # wall-clock time between checkpoints
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to compute
    # activations; auto: bfloat16 on CUDA, float32 elsewhere. On CPUs, even those with bf16 units,
    # bfloat16 is slower with most nets here, and costs accuracy; bench.py measures it
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    # torch.compile of the net; auto: on CUDA. graphs: of a whole recursion, as a CUDA graph, for
    # nets so small that a GPU waits for the next call
    compile: Literal["auto", "on", "graphs", "off"] = "auto"
    threads: int = 0  # CPU threads; 0: torch's choice
    # run folder or best.pt with the first weights, {seed} in it stands for the seed; empty: none
    init: str = ""
    # which weights of it: the averaged ones, where it has them, or those of the optimizer
    init_weights: Literal["ema", "raw"] = "ema"
    wandb: str = ""  # Weights & Biases project, if wandb is installed; empty: none
    tensorboard: bool = False  # a folder tensorboard/ in the run's, if tensorboard is installed

    def problems(self) -> Iterator[tuple[str, str]]:
        """Impossible values as (key, what was expected)."""
        for key in (
            "steps",
            "batch_size",
            "accumulate",
            "log_every",
            "grokfast_window",
            "muon_iterations",
            "eval_average",
        ):
            if getattr(self, key) < 1:
                yield key, "at least 1"
        for key in ("lr", "muon_lr", "puzzle_lr"):
            if not getattr(self, key) > 0:
                yield key, "more than 0"
        for key in (
            "weight_decay",
            "muon_weight_decay",
            "puzzle_weight_decay",
            "warmup",
            "clip",
            "eval_every",
            "eval_steps",
            "patience",
            "ckpt_minutes",
            "threads",
            "grokfast_lambda",
        ):
            if not getattr(self, key) >= 0:
                yield key, "at least 0"
        for key in ("beta1", "beta2", "muon_momentum", "ema", "grokfast_alpha"):
            if not 0 <= getattr(self, key) < 1:
                yield key, "0 or more, below 1"
        if not 0 <= self.lr_floor <= 1:
            yield "lr_floor", "0 to 1"
        for key, most in MOST.items():
            if getattr(self, key) > most:
                yield key, f"at most {most}"
        for key, decay in RATES.items():
            if getattr(self, key) * getattr(self, decay) > LARGEST:
                yield key, f"less: its product with {decay} has to be at most {LARGEST:g}"
        if self.beta1 < 1 and self.lr > 10 * LARGEST * (1 - self.beta1):
            yield "lr", f"less: lr / (1 - beta1) has to be at most {10 * LARGEST:g}"
        if self.accumulate > 0 and self.batch_size % self.accumulate:
            yield "accumulate", f"a divisor of batch_size = {self.batch_size}"


@dataclass(frozen=True)
class Config:
    """A run's configuration. `Config.of(task)` has the tables of that task."""

    hypothesis: str = ""  # one sentence that can turn out false
    # published change of exact accuracy against the baseline, in points; 0: none. For analyze.py
    expected: float = 0.0
    seed: int = 0  # of weights, data order and exploration
    out: str = "runs"  # root of the run folders
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @staticmethod
    @functools.cache
    def of(name: str) -> "type[Config]":
        """The class for a task, whose tables have the task's own keys."""
        task = tasks.get(name)
        tables = {"model": task.model_config(), "data": task.Config} | task.tables()
        fields = [(key, cls, field(default_factory=cls)) for key, cls in tables.items()]
        return dataclasses.make_dataclass("Config", fields, bases=(Config,), frozen=True)

    @classmethod
    def variant(cls, layers: list[tuple[str, dict]]) -> "type[Config]":
        """The class for the task that the layers name, the last one that does. Raises UserError."""
        name, where = DataConfig().task, "default"
        for place, layer in layers:
            table = layer.get("data", {})
            if isinstance(table, dict) and "task" in table:
                name, where = table["task"], place
        if not isinstance(name, str) or name not in tasks.TASKS:
            known = ", ".join(repr(task) for task in tasks.TASKS)
            guess = nearest(str(name), tasks.TASKS)
            guess = guess if "did you mean" in guess else ""
            raise UserError(f"{where} [data]: task = {name!r}, expected one of {known}{guess}")
        return Config.of(name)

    @property
    def task(self):
        """The kind of problem: see tasks/base.py."""
        return tasks.get(self.data.task)

    @property
    def init_file(self) -> str:
        """The best.pt that train.init names."""
        path = self.train.init.replace("{seed}", str(self.seed))
        return path if path.endswith(".pt") or os.path.isfile(path) else f"{path}/best.pt"

    def files(self) -> dict[str, str]:
        """The keys that name files, and those files: their bytes count, not their place."""
        files = self.task.files(self)
        return files | {"train.init": self.init_file} if self.train.init else files

    @property
    def eval_steps(self) -> int:
        """Supervision steps of an evaluation."""
        return self.train.eval_steps or self.model.n_sup

    def problems(self) -> Iterator[tuple[str, str, str]]:
        """Impossible values as (table, key, what was expected), in every table and between them."""
        if self.seed < 0:
            yield "", "seed", "0 or more"
        for part in dataclasses.fields(self):
            table = getattr(self, part.name)
            if dataclasses.is_dataclass(table):
                for key, expected in table.problems():
                    yield part.name, key, expected
        yield from self.task.problems(self)
        if self.train.stagger and self.model.halting:
            why = "slots that halt take a new example on their own"
            yield "train", "stagger", f"false, or model.halting = false: {why}"
        if self.train.eval_average > self.eval_steps:
            limit = f"at most the {self.eval_steps} supervision steps of an evaluation"
            yield "train", "eval_average", limit


# ---------------------------------------------------------------- what a run is made of


@dataclass
class Run:
    """A run in memory. All that changes in training is here: `checkpoint` writes it, `restore`
    reads it back.

    There is no generator to save: every random number is a function of (seed, step), and the data
    position is the step.
    """

    cfg: Config
    folder: Path
    world: World
    shape: dict  # of the data: what the net was made for
    net: torch.nn.Module
    ema: EMA | None
    optimizers: list[torch.optim.Optimizer]
    grokfast: GrokFast | None
    flop: float  # of a step; 0: unknown
    step: int = 0
    carry: Carry | None = None  # of this process
    sums: dict[str, Tensor] = field(default_factory=dict)  # metric sums since the last log line
    best: dict | None = None  # the best validation so far
    stale: int = 0  # validations since then
    seconds: dict[str, float] = field(
        default_factory=lambda: {"train": 0.0, "train_cpu": 0.0, "validation": 0.0}
    )
    # first step whose loss or gradient was not finite, inf: none; read at log lines only
    bad: Tensor | None = None
    mark: tuple[float, float] = (0.0, 0.0)  # wall and CPU clock when time was last booked
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 of the data files, by key
    # where the first weights are from: {"file", "sha256", "step", "weights"}; None: the seed
    init: dict | None = None
    # what computed which steps: {"from", "to", "commit", "code", "hardware"}
    stretches: list[dict] = field(default_factory=list)
    lock: Lock | None = None  # of the folder; held by rank 0
    before_step: "Callable[[Run], None] | None" = None  # see train

    @property
    def every(self) -> int:
        """Steps between refills: without halting all slots start over together, or in turn."""
        each_step = self.cfg.model.halting or self.cfg.train.stagger
        return 1 if each_step else self.cfg.model.n_sup

    @property
    def lead(self) -> bool:
        """Whether this process writes files and talks."""
        return self.world.rank == 0

    def book(self, kind: str = "") -> None:
        """Book the time since the last call under a name of `seconds`, or under none."""
        now = time.perf_counter(), time.process_time()
        if kind:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + now[0] - self.mark[0]
        if kind == "train":
            self.seconds["train_cpu"] += now[1] - self.mark[1]
        self.mark = now


def make_run(cfg: Config, folder: Path, world: World, dataset: data.Dataset) -> Run:
    """Fresh weights from the seed, or those of train.init; averaged copy, optimizers."""
    tc = cfg.train
    torch.manual_seed(cfg.seed)
    net = cfg.task.make_net(cfg, dataset.shape, world.dtype).to(world.device)
    flop, init = cfg.task.flop(cfg, net), None
    if not os.path.exists(folder / "ckpt.pt"):  # Path.exists raises where we may not look
        cfg.task.prepare(net, cfg, dataset)
        init = load_init(net, cfg) if tc.init else None
    ema = EMA(net, tc.ema, tc.ema_warmup) if tc.ema else None
    if ema and init:
        ema.n_averaged += 1  # the loaded weights count: the first update does not replace them
    grokfast = None
    if tc.grokfast != "none":
        strength = tc.grokfast_alpha, tc.grokfast_lambda, tc.grokfast_window
        grokfast = GrokFast(tc.grokfast, *strength)
    if world.compiled:
        for each in (net, ema.module) if ema else (net,):
            compile_net(each, tc.compile == "graphs")
    optimizers = make_optimizers(net, tc, net.rates())
    run = Run(cfg, folder, world, dataset.shape, net.train(), ema, optimizers, grokfast, flop)
    run.init = init
    return run


def load_init(net: torch.nn.Module, cfg: Config) -> dict:
    """The weights of train.init into a net. Returns where they are from.

    Every tensor has to be there under its name and in its shape. Raises UserError.
    """
    path, kind = cfg.init_file, cfg.train.init_weights
    try:
        find_run(Path(path))
        state = load(Path(path), "cpu", {"config", "step", "raw", "ema"})
        digest = digest_of_files(path)
        kind, weights = chosen_weights(path, state, kind)
    except UserError as e:
        raise UserError(f"train.init: {e}") from None
    misfit = misfit_of(net.state_dict(), weights)
    if misfit:
        keys = shaping_keys(cfg, state["config"])
        keys = f": {keys}" if keys else ""
        raise UserError(f"train.init = {cfg.train.init!r} does not fit{keys}: {misfit} of {path}")
    net.load_state_dict(weights)
    return {"file": path, "sha256": digest, "step": state["step"], "weights": kind}


def chosen_weights(path: str | Path, state: dict, kind: str) -> tuple[str, dict[str, Tensor]]:
    """(kind, weights) of a checkpoint: the raw ones too where no average was kept.

    Raises UserError where the raw ones are asked for and only the average was kept.
    """
    if kind == "ema" and state["ema"] is None:
        kind = "raw"
    if state[kind] is None:
        raise UserError(
            f"{path}: holds the averaged weights only, expected the raw ones beside them"
        )
    return kind, state[kind]


def misfit_of(own: dict[str, Tensor], other: dict[str, Tensor]) -> str:
    """The first tensor that one state dict lacks or has in another shape; empty: they fit."""
    for name in [*own, *other]:
        if name not in other:
            return f"the net has a tensor {name}, expected the tensors"
        if name not in own:
            return f"the net has no tensor {name}, expected the tensors"
        here, there = tuple(own[name].shape), tuple(other[name].shape)
        if here != there:
            return f"{name} has the shape {here}, expected {there}, that"
    return ""


def shaping_keys(cfg: Config, other: dict) -> str:
    """The keys that shape weights and differ from another run's, in words."""
    own, m = flatten(cfg), cfg.model
    keys = ["data.task"] + [f"model.{name}" for name in SHAPING]
    if "mlp" in m.mixer or m.positions == "learned":  # its weights belong to one size
        keys.append("data.size")
    both = [key for key in keys if key in own and key in other]
    return "; ".join(
        f"{key} = {own[key]!r}, expected {other[key]!r}" for key in both if own[key] != other[key]
    )


def compile_net(net: torch.nn.Module, graphs: bool = False) -> None:
    """torch.compile of the part that is applied recursively.

    graphs: of a recursion of a TRM, replayed as a CUDA graph.
    """
    # a graph for each batch size, with and without gradient, of net and averaged net
    torch._dynamo.config.recompile_limit = 32
    if graphs and isinstance(net, TRM):
        recurse = torch.compile(net.recurse, mode="reduce-overhead", dynamic=False)
        # The next replay overwrites the memory of a graph: clones leave it.
        net.recurse = lambda *states: tuple(state.clone() for state in recurse(*states))
        return
    for part in (net.net, net.net_y):
        if part is not None:
            part.compile(dynamic=False)


def checkpoint(run: Run) -> None:
    """ckpt.pt, complete, by rank 0; the other processes hand over their slots."""
    parts = {"carry": vars(run.carry), "sums": run.sums}
    everyone = [parts]
    if run.world.size > 1:
        everyone = [None] * run.world.size if run.lead else None
        dist.gather_object(to_cpu(parts), everyone)
    if run.lead:
        run.stretches[-1]["to"] = run.step
        state = {
            "step": run.step,
            "best": run.best,
            "stale": run.stale,
            "seconds": run.seconds,
            "stretches": run.stretches,
            "files": run.files,
            "init": run.init,
            "dtype": name_of(run.world.dtype),
            "processes": everyone,
            "net": run.net.state_dict(),
            "ema": run.ema.state_dict() if run.ema else None,
            "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
            "grokfast": run.grokfast.state_dict() if run.grokfast else None,
            "config": flatten(run.cfg),
            "shape": run.shape,
        }
        save(run.folder / "ckpt.pt", state)


def to_cpu(value):
    """Nested dicts of tensors, moved to the CPU."""
    if isinstance(value, dict):
        return {key: to_cpu(inner) for key, inner in value.items()}
    return value.cpu()


# what a ckpt.pt has had in every version
PARTS = {"step", "best", "stale", "seconds", "processes", "config"}
PARTS |= {"net", "ema", "optimizers", "grokfast"}


def start_or_continue(cfg: Config, folder: Path, world: World, dataset: data.Dataset) -> Run:
    """A fresh run, or the one of ckpt.pt. Raises UserError where that is not the same run."""
    path, saved = folder / "ckpt.pt", None
    if os.path.exists(path):
        saved = load(path, world.device, PARTS)
        with refuse_misfit(path):
            world = keep_dtype(world, cfg, saved)
    run = make_run(cfg, folder, world, dataset)
    files = cfg.task.files(cfg)
    run.files = {key: digest_of_files(source) for key, source in files.items()}
    if saved:
        with refuse_misfit(path):
            restore(run, saved)
    if run.init:  # of a continued run as its checkpoint says: the other run may be gone
        run.files["train.init"] = run.init["sha256"]
    return run


def keep_dtype(world: World, cfg: Config, saved: dict) -> World:
    """With train.dtype = "auto" a run keeps the dtype that it began with, on any hardware."""
    if cfg.train.dtype != "auto":
        return world
    if "dtype" in saved:
        return replace(world, dtype=getattr(torch, saved["dtype"]))
    # An older checkpoint tells it by its states, but those of control are always float32.
    states = saved["processes"][0]["carry"]["y"].dtype
    return replace(world, dtype=states) if states == torch.bfloat16 else world


def restore(run: Run, state: dict) -> None:
    """Continue from a checkpoint."""
    path = run.folder / "ckpt.pt"
    written_by = len(state["processes"])
    if written_by != run.world.size:
        raise UserError(
            f"{path} was written by {written_by} process(es), this run has {run.world.size}; "
            "start as many, or choose another --out"
        )
    refuse_difference(run.folder, state["config"], run.cfg)
    refuse_other_data(run, state.get("files", {}))
    run.step, run.best, run.stale = state["step"], state["best"], state["stale"]
    run.seconds, run.init = state["seconds"], state.get("init")
    unknown = {"from": 0, "to": run.step, "commit": "", "code": "", "hardware": ""}
    run.stretches = state.get("stretches", [unknown])
    run.net.load_state_dict(state["net"])
    if run.ema:
        run.ema.load_state_dict(state["ema"])
    for optimizer, saved in zip(run.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    if run.grokfast:
        run.grokfast.load_state_dict(state["grokfast"])
    mine = state["processes"][run.world.rank]
    run.carry, run.sums = carry_of(mine["carry"]), mine["sums"]


def refuse_other_data(run: Run, before: dict[str, str]) -> None:
    """Raises UserError where a data file has other bytes than the checkpoint was trained on."""
    sources = run.cfg.task.files(run.cfg)
    for key, now in run.files.items():
        if before.get(key, now) != now:
            raise UserError(
                f"{run.folder} was trained on other data: {key} = {sources[key]!r} has SHA-256 "
                f"{now[:12]} now, expected {before[key][:12]}; put the old file back, or choose "
                "another --out"
            )


def carry_of(saved: dict) -> Carry:
    """A saved carry. Older checkpoints have "state" or None where `more` is now."""
    saved = dict(saved)
    if "state" in saved:
        state = saved.pop("state")
        saved["more"] = {} if state is None else {"state": state}
    return Carry(**saved)


# ---------------------------------------------------------------- one training step


def random_numbers(run: Run) -> tuple[tuple[Tensor, Tensor] | None, dict[str, Tensor]]:
    """This step's random first states, and what else `net.step` takes at random.

    Drawn for the global batch, a pure function of (seed, step); returned is this process's part.
    """
    net, cfg, world = run.net, run.cfg, run.world
    B = cfg.train.batch_size
    mine = slice(B * world.rank // world.size, B * (world.rank + 1) // world.size)
    key = data.rng(cfg.seed, NOISE, run.step).integers(2**62)
    g = torch.Generator(world.device).manual_seed(int(key))
    random = {"min_steps": net.exploration(B, g)}
    states = None
    if cfg.model.init == "random":
        states = tuple(state[mine] for state in net.first_states(B, net.shape.seq_len, g))
    random["noise"] = net.noise(B, g)
    return states, {name: value[mine] for name, value in random.items() if value is not None}


def forward_backward(
    net: torch.nn.Module, carry: Carry, random: dict[str, Tensor], cfg: Config
) -> tuple[Carry, dict[str, Tensor]]:
    """One supervision step of all slots, in `accumulate` pieces, with gradients added up.

    Returns the carry and metric sums.
    """
    B = len(carry.steps)
    size = B // cfg.train.accumulate
    carries, sums = [], {}
    for low in range(0, B, size):
        rows = slice(low, low + size)
        piece = carry if size == B else carry.map(lambda t, rows=rows: t[rows])
        piece, out = net.step(piece, **{name: value[rows] for name, value in random.items()})
        loss, metrics = net.loss(out, piece)
        (loss / cfg.train.batch_size).backward()
        carries.append(piece)
        sums = add(sums, metrics)
    return (carries[0] if size == B else Carry.cat(carries)), sums


def add(sums: dict[str, Tensor], more: dict[str, Tensor]) -> dict[str, Tensor]:
    """Metric sums, added up; the first ones where there are none yet."""
    return {name: value + sums[name] for name, value in more.items()} if sums else more


def begin_in_turn(carry: Carry, n_sup: int, rank: int) -> Carry:
    """The carry after the very first step with train.stagger.

    As if slot i had begun i mod n_sup steps ago: the first examples get 1 to n_sup steps, all
    later ones n_sup.
    """
    B = len(carry.steps)
    slot = torch.arange(rank * B, (rank + 1) * B, device=carry.steps.device)
    steps = 1 + slot % n_sup
    return replace(carry, steps=steps, halted=steps >= n_sup)


def average_gradients(params: list[Tensor], world: World) -> None:
    """One all-reduce of all gradients.

    Each process divided by the global batch already, so the sum is the mean.
    """
    if world.size == 1:
        return
    flat = torch.cat([p.grad.reshape(-1) for p in params])
    dist.all_reduce(flat)
    for p, grad in zip(params, flat.split([p.numel() for p in params])):
        p.grad.copy_(grad.view_as(p))


def gradients(run: Run) -> list[Tensor]:
    """The parameters that learn, each with its gradient, averaged over processes and filtered."""
    params = [p for p in run.net.parameters() if p.requires_grad]
    for p in params:
        if p.grad is None:  # learned y0 and z0 in a step that starts no slot
            p.grad = torch.zeros_like(p)
    average_gradients(params, run.world)
    if run.grokfast:
        run.grokfast([p.grad for p in params])
    return params


def freeze(run: Run, params: list[Tensor], norm: Tensor) -> tuple[list[Tensor], Tensor]:
    """The parameters that move at this step, and the norm of their gradients.

    Of those that do not, neither weight nor moments move, and they take no part in clipping.
    """
    frozen = run.net.frozen(run.step)
    if not frozen:
        return params, norm
    for p in frozen:
        p.grad = None
    params = [p for p in params if p.grad is not None]
    return params, torch.nn.utils.get_total_norm([p.grad for p in params], foreach=True)


def train_step(run: Run, feed: Iterator[dict]) -> None:
    """Refill the halted slots, think, learn: no host sync in here."""
    net, tc = run.net, run.cfg.train
    states, random = random_numbers(run)
    if run.step % run.every == 0:
        batch = next(feed)
        run.carry = net.refill(run.carry or net.start(batch), batch, states)
    run.carry, metrics = forward_backward(net, run.carry, random, run.cfg)
    if tc.stagger and run.step == 0:
        run.carry = begin_in_turn(run.carry, run.cfg.model.n_sup, run.world.rank)
    params = gradients(run)
    norm = torch.nn.utils.get_total_norm([p.grad for p in params], foreach=True)
    metrics |= net.after_backward(norm, len(run.carry.steps))
    params, norm = freeze(run, params, norm)
    if tc.clip:
        torch.nn.utils.clip_grads_with_norm_(params, tc.clip, norm, foreach=True)
    set_rates(run.optimizers, schedule(tc, run.step))
    for optimizer in run.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    if run.ema:
        run.ema.update_parameters(net)
    failed = torch.where(torch.isfinite(metrics["loss"] + norm), math.inf, float(run.step + 1))
    run.bad = failed if run.bad is None else torch.minimum(run.bad, failed)
    run.sums = add(run.sums, metrics)
    run.step += 1


def check_finite(run: Run) -> None:
    """Raises TrainingError if a loss or gradient since the start was not finite."""
    if run.bad is None or (step := run.bad.item()) == math.inf:
        return
    loss = (run.sums["loss"] / run.sums["rows"]).item() if run.sums else math.nan
    fail(run, f"loss or gradient is not finite from step {int(step)} on (loss now {loss:.4g})")


def check_weights(run: Run) -> None:
    """Raises TrainingError if a weight is not finite: an update can do that after a good loss."""
    tensors = list(run.net.state_dict().values())
    if run.ema:
        tensors += run.ema.state_dict().values()
    finite = [tensor.isfinite().all() for tensor in tensors]
    if not torch.stack([flag.to(run.world.device) for flag in finite]).all():
        fail(run, f"weights are not finite after step {run.step}")


def fail(run: Run, what: str) -> None:
    """Raises TrainingError for a run that has diverged."""
    raise TrainingError(
        f"{run.folder}: {what}; last good checkpoint: {last_good(run.folder)}; "
        "a smaller train.lr or train.clip = 1 usually helps"
    )


def check_before_saving(run: Run) -> None:
    """Raises TrainingError if the run has diverged, or another process took over its folder."""
    check_finite(run)
    check_weights(run)
    if run.lock:
        run.lock.check()


def train_line(run: Run) -> dict:
    """Metric sums since the last line, over all processes, as means.

    Losses are means over rows, the rest over the rows that halted.
    """
    kind = torch.float32 if run.world.device.type == "mps" else torch.float64
    values = torch.stack([value.to(kind) for value in run.sums.values()])
    total = dict(zip(run.sums, run.world.sum(values).tolist()))
    losses = [name for name in total if name in ("loss", "ponder") or name.endswith("_loss")]
    line = {name: total[name] / total["rows"] for name in losses}
    if run.cfg.model.complexity_weight:
        line["complexity_loss"] = run.cfg.model.complexity_weight * complexity(run.cfg.model)
    if total["count"]:
        line |= {name: total[name] / total["count"] for name in ("exact", "cells", "q_accuracy")}
        line["steps_at_halt"] = total["steps"] / total["count"]
    line |= run.net.means(total)
    rate = run.cfg.train.lr * schedule(run.cfg.train, run.step - 1)
    return line | {"halted": int(total["count"]), "lr": rate}


def validate(run: Run, split: data.Split) -> dict:
    """Evaluate the averaged weights; better than ever: best.pt. The line for metrics.jsonl."""
    task, net = run.cfg.task, run.ema.module if run.ema else run.net
    rows = rows_within_training(run.cfg)
    result = task.evaluate(net, split, run.cfg, run.world, rows=rows, progress="validation")
    del result["verdict"]
    if run.best is None or task.better(result, run.cfg) > task.better(run.best, run.cfg):
        run.best, run.stale = {"step": run.step, **result}, 0
        if run.lead:
            state = {
                "step": run.step,
                "val": result,
                "raw": run.net.state_dict(),
                "ema": run.ema.module.state_dict() if run.ema else None,
                "config": flatten(run.cfg),
                "shape": run.shape,
            }
            save(run.folder / "best.pt", state)
    else:
        run.stale += 1
    halting = result.pop("halting")
    return result | {"halting_exact": halting["exact"], "halting_steps": halting["steps"]}


# ---------------------------------------------------------------- the run


def train(
    cfg: Config,
    folder: Path,
    entry: str = "",
    before_step: Callable[[Run], None] | None = None,
) -> dict:
    """Run one entry to its end in `folder` and return its summary.

    Resumes, skips a finished run, refuses another's folder. A signal leaves as whoever started us
    wants it.
    entry: its file, for messages. before_step: called with the run before every training step, to
    watch it from a notebook; what it raises ends the run, and the next call continues it.
    """
    folder, signals = Path(folder), Signals("before the first step")
    try:
        return train_or_skip(cfg, folder, entry, signals, before_step)
    except Stopped:
        if ranks()[0] == 0:
            saved = last_good(folder) != "none yet"
            words = f"{folder}/ckpt.pt is complete" if saved else "there was nothing to save yet"
            name = signal.Signals(signals.caught).name
            print(f"stopped by {name} {signals.where}; {words}, the same command continues")
            sys.stdout.flush()
        signals.leave(signals.caught)
    finally:
        signals.restore()


def train_or_skip(
    cfg: Config, folder: Path, entry: str, signals: Signals, before_step: Callable | None
) -> dict:
    """As `train` says; a signal may raise Stopped."""
    check_same(folder, cfg)
    if os.path.exists(folder / "summary.json"):
        return finished(cfg, folder)
    watchers = import_watchers(cfg.train)
    check_muon(cfg.train)
    if ranks()[0] == 0:  # the others wait for it in make_world
        cfg.task.fetch(cfg)
    world = make_world(cfg.train)
    with locked(folder, world, cfg.out) as lock:
        check_same(folder, cfg)
        if os.path.exists(folder / "summary.json"):  # another process has just finished
            return finished(cfg, folder)
        try:
            dataset = data.load(cfg)
        except UserError as e:
            raise UserError(f"{entry}: {e}" if entry else str(e)) from None
        with advise_on_memory(folder, cfg):
            run = start_or_continue(cfg, folder, world, dataset)
            run.lock, run.before_step = lock, before_step
            return train_and_test(run, dataset, entry, signals, watchers)


def finished(cfg: Config, folder: Path) -> dict:
    """The summary of a finished run, and a line about it. Raises UserError for a damaged one."""
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        sentence = cfg.task.sentence(summary)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(
            f"{path}: not a readable summary of a finished run ({type(e).__name__}: {e}); delete "
            "it, and the same command tests the best checkpoint again"
        ) from None
    if ranks()[0] == 0:
        print(f"{folder} is finished; nothing to do. {sentence}")
    return summary


def check_muon(tc: TrainConfig) -> None:
    """Raises UserError where Muon is wanted and torch is too old for it."""
    if tc.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        raise UserError(
            f"train.optimizer = 'muon', but torch {torch.__version__} has no torch.optim.Muon, "
            "expected torch 2.9 or newer, or another optimizer"
        )


def train_and_test(
    run: Run, dataset: data.Dataset, entry: str, signals: Signals, watchers: list
) -> dict:
    """The run from where it is to its summary."""
    cfg, world = run.cfg, run.world
    if run.lead:
        try:
            write_text(run.folder / "config.toml", to_toml(cfg, entry) + init_comment(run.init))
        except TrainingError as e:
            raise cannot_write(cfg.out, run.folder, e.__cause__ or e) from None
    differs = begin_stretch(run.stretches, stretch(world, run.step))
    if run.lead:
        banner(run, dataset, differs)
    log = Log(run, watchers)
    feed = data.batches(
        dataset,
        cfg,
        cfg.train.batch_size,
        cfg.seed,
        -(-run.step // run.every),
        rank=world.rank,
        world=world.size,
        device=world.device,
    )
    try:
        loop(run, dataset, feed, log, signals)
    finally:
        feed.close()
        log.close()
    signals.stop_at_once("in the last test")
    summary = finish(run, dataset, entry)
    log.finish(summary)
    return summary


def init_comment(init: dict | None) -> str:
    """A line for config.toml: which bytes train.init named."""
    if not init:
        return ""
    words = f"{init['weights']} weights of step {init['step']}, SHA-256 {init['sha256']}"
    return f"\n# train.init: {words}\n"


def loop(run: Run, dataset: data.Dataset, feed: Iterator[dict], log: Log, signals: Signals) -> None:
    """Train, log, validate and save until the last step, or until patience is lost.

    A signal: save, and leave as whoever started us wants it. While the net is compiled, in the
    first step, there is nothing to save.
    """
    tc = run.cfg.train
    eval_every = tc.eval_every or max(1, tc.steps // 10)
    agree, saved_at = Agreement(run), time.perf_counter()
    signals.where, signals.saves = "while the net was compiled", not run.world.compiled
    bar = tqdm(
        total=tc.steps,
        initial=run.step,
        desc=f"{run.folder.parent.name} s{run.cfg.seed}",
        disable=not run.lead,
        unit="step",
        mininterval=0.5 if sys.stderr.isatty() else 15,
        dynamic_ncols=True,
    )
    run.book()
    try:
        while run.step < tc.steps and not (tc.patience and run.stale >= tc.patience):
            if run.before_step:
                run.before_step(run)
            train_step(run, feed)
            signals.saves = True
            bar.update()
            last = run.step == tc.steps
            if run.step % tc.log_every == 0 or last:
                check_finite(run)
                run.book("train")
                line = train_line(run)
                log.record("train", line)
                run.sums = {}
                bar.set_postfix(postfix(line, run.best))
            evaluated = run.step % eval_every == 0 or last
            if evaluated:
                check_before_saving(run)
                run.book("train")
                line = validate(run, dataset.val)
                run.book("validation")
                log.record("val", line)
            late = time.perf_counter() - saved_at > 60 * tc.ckpt_minutes
            stop, late = agree(signals.caught, late)
            if stop or evaluated or late:
                check_before_saving(run)
                run.book("train")
                checkpoint(run)
                run.book()
                saved_at = time.perf_counter()
            if stop:
                bar.close()
                if run.lead:
                    name = signal.Signals(stop).name
                    print(
                        f"stopped by {name} after step {run.step}; {run.folder}/ckpt.pt is "
                        "complete, the same command continues",
                        flush=True,
                    )
                signals.leave(stop)
    finally:
        bar.close()


def postfix(line: dict, best: dict | None) -> dict:
    """What stands behind the progress bar."""
    shown = {"loss": f"{line['loss']:.3f}"}
    shown["exact"] = f"{100 * line['exact']:.0f}%" if "exact" in line else "-"
    shown["best_val"] = f"{100 * best['exact']:.1f}%@{best['step']}" if best else "-"
    return shown


TIMED_ROWS = 256  # test rows on which the time is measured that halting saves


def finish(run: Run, dataset: data.Dataset, entry: str) -> dict:
    """The test split meets the checkpoint that validation chose, once.

    summary.json, written last, marks the run as finished.
    """
    cfg, world, net, task = run.cfg, run.world, run.net, run.cfg.task
    if world.size > 1:
        dist.barrier()  # rank 0 has written best.pt
    state = load(run.folder / "best.pt", world.device, {"raw", "ema"})
    net.load_state_dict(state["ema"] or state["raw"])
    rows = rows_within_training(cfg)
    run.book()
    test = task.evaluate(net, dataset.test, cfg, world, rows=rows, progress="test")
    run.seconds |= {"test": 0.0, "test_halting": 0.0}
    run.book("test")
    verdict, halting = test.pop("verdict"), test.pop("halting")
    if halting["steps"] < test["steps"]:  # what is saved when finished rows leave the batch?
        halting["timed_rows"] = min(test["n"], TIMED_ROWS)
        options = {"rows": halting["timed_rows"], "adaptive": True, "progress": "test, halting"}
        task.evaluate(net, dataset.test, cfg, world, **options)
        run.book("test_halting")
    more, files = task.report(net, dataset, cfg, world)
    if more:
        run.book("report")
    summary = summarise(run, dataset, entry, test, halting, bool(state["ema"])) | more
    if run.init:
        summary["init"] = run.init
    if test["n"] < len(dataset.test):
        limit = f"evaluations were cut to {test['n']} rows"
        summary["note"] = f"{limit}, so that they cost no more than the training itself"
    if run.lead:
        if run.lock:
            run.lock.check()
        for name, arrays in (files | {"test.npz": verdict}).items():
            write_arrays(run.folder / name, arrays)
        text = json.dumps(summary, indent=1, default=str)
        write_text(run.folder / "summary.json", text + "\n")
        then = f"; next: python solve.py {shlex.quote(str(run.folder))}" if task.solvable else ""
        print(f"done   {task.sentence(summary)}")
        print(f"       best checkpoint: {run.folder}/best.pt{then}")
    return summary


def summarise(
    run: Run, dataset: data.Dataset, entry: str, test: dict, halting: dict, averaged: bool
) -> dict:
    """What summary.json says of every run."""
    cfg, m, last = run.cfg, run.cfg.model, run.stretches[-1]
    unsaid = ("curve", "halting", "step")
    return {
        "entry": entry,
        "hypothesis": cfg.hypothesis,
        "seed": cfg.seed,
        "task": cfg.data.task,
        "test": test,
        "test_halting": halting,
        "chosen": "best by validation",
        "best_step": run.best["step"],
        "weights": "ema" if averaged else "raw",
        "val": {key: value for key, value in run.best.items() if key not in unsaid},
        "baseline": dataset.card["baseline"],
        "parameters": sum(p.numel() for p in run.net.parameters()),
        "depth": m.T * (m.n + 1) * m.n_layers,
        "steps": run.step,
        "flop": run.step * run.flop,
        "test_puzzles": digest(dataset.test.inputs[: test["n"]]),
        "seconds": run.seconds,
        "device": run.world.device.type,
        "hardware": last["hardware"],
        "commit": last["commit"],
        "stretches": [*run.stretches[:-1], last | {"to": run.step}],
        "files": run.files,
        "data": dataset.card,
    }


def digest(rows: np.ndarray) -> str:
    """What two runs must share before their verdicts on single puzzles may be compared."""
    return hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()


def banner(run: Run, dataset: data.Dataset, differs: str) -> None:
    """Three lines: where, which net, which data. Then what is not as before, and what takes long.

    differs: from the steps before.
    """
    cfg, m = run.cfg, run.cfg.model
    resumed = f" | continues at step {run.step}" if run.step else ""
    print(f"run    {run.folder} | {hardware(run.world)}{resumed}")
    count = sum(p.numel() for p in run.net.parameters())
    depth = m.T * (m.n + 1) * m.n_layers
    name = type(run.net).__name__
    print(f"model  {name} {count:,} parameters, {depth} blocks deep{changed(m, 'model')}")
    for table in cfg.task.tables():
        print(f"{table:6} {changed(getattr(cfg, table), table).removeprefix(' | ')}")
    if run.init:
        start = f"{run.init['weights']} weights of step {run.init['step']}"
        print(f"init   {start} of {run.init['file']}")
    card = {
        key: value for key, value in dataset.card.items() if isinstance(value, (str, int, float))
    }
    words = [f"{key} {value}" for key, value in card.items() if len(str(value)) < 90]
    print("data   " + ", ".join(words), flush=True)
    if hint := cfg.task.hint(cfg, card):
        print(f"note   {hint}", flush=True)
    if differs:
        print(f"note   other than before step {run.step + 1}: {differs}", flush=True)
    if run.world.compiled:
        print("note   the net is compiled in its first steps, for a minute or more", flush=True)


def changed(table, name: str) -> str:
    """The keys of a table that are not at their defaults."""
    defaults = flatten(type(table)())
    values = {key: value for key, value in flatten(table).items() if value != defaults[key]}
    words = " ".join(f"{key}={value}" for key, value in values.items())
    return f" | not default: {words}" if words else ""


def load_run(
    path: Path, device="cpu", dtype: torch.dtype = torch.float32, weights: str = "ema"
) -> tuple[Config, torch.nn.Module, dict]:
    """(config, net in eval mode, checkpoint) from a run folder or a best.pt.

    weights: "ema" (default, where kept) or "raw". Raises UserError.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "best.pt"
    state = load(path, device, {"config", "shape", "raw", "ema"})
    _, chosen = chosen_weights(path, state, weights)
    try:
        tables = nested(state["config"])
        cls = Config.variant([(str(path), tables)])
        cfg = build(cls, known_only(cls, tables))
        net = cfg.task.make_net(cfg, state["shape"], dtype).to(device)
        net.load_state_dict(chosen)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as e:
        reason = str(e).splitlines()[0]
        raise UserError(
            f"{path}: its parts do not fit together, expected a best.pt of this version of "
            f"train.py ({reason})"
        ) from None
    return cfg, net.eval(), state


def command(argv: list[str]) -> None:
    """Train what the command line says. Raises UserError and TrainingError."""
    if not argv:
        print(__doc__ + "\nEntries:\n\n" + entries_text())
        return
    entry, overrides = command_line(Config, argv, __doc__)
    cfg = load_config(Config, entry, overrides)
    slurm_config(entry)  # an entry is right or wrong for the launcher and for us alike
    try:
        train(cfg, run_folder(cfg, entry), str(entry))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def main(argv: list[str] | None = None) -> int:
    rank = 0
    try:
        rank = ranks()[0]
        command(sys.argv[1:] if argv is None else argv)
    except (UserError, TrainingError) as e:
        # Bad input is the same for all processes: one of them says it.
        if rank == 0 or isinstance(e, TrainingError):
            print(f"error: {e}", file=sys.stderr)
        return 2 if isinstance(e, UserError) else 3
    except KeyboardInterrupt:
        print("stopped by SIGINT before the first step", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    quiet_output()
    sys.exit(main())
