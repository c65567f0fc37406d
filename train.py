"""Train a tiny recursive model from one TOML entry: `python train.py sweeps/laptop/maze_perfect.toml [--train.steps=200 --seed=1]`.

The same command continues a stopped run to the same bits, says so when the run is finished, and refuses a folder that holds
another configuration. Several processes: `torchrun --nproc_per_node=2 train.py ENTRY`. Exit codes: 0 finished, 2 bad input,
3 training failed (non-finite loss, disk full), 128 + signal stopped by a signal after a checkpoint.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

import data
from arc import ArcConfig, sentence
from arc_report import report
from conditioned import Conditioned, gradient_share, load_decoder, means
from conditioned import impossible as impossible_conditions
from config import FREE, build, command_line, flatten, load_config, to_toml
from control import PLANTS
from data import DataConfig, UserError
from encoders import EncoderConfig
from evaluate import evaluate, rows_within_training
from model import TRM, Carry, ModelConfig, Shape, complexity, net_flop, step_calls
from optim import GrokFast, make_ema, make_optimizers, schedule, set_rates
from planner import PlanConfig, Planner, full_report, impossible, make_planner
from runs import TrainingError, check_same, cut_metrics, load, run_folder, save, write_atomic
from slurm import slurm_config


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 1000  # optimizer steps, one supervision step each
    batch_size: int = 768  # slots, over all processes
    stagger: bool = False  # with model.halting = false: slots take new examples in turn rather than all at the same step
    accumulate: int = 1  # pieces a batch is worked in, for memory; the result is the same to rounding
    optimizer: Literal["adamw", "muon", "adam_atan2"] = "adamw"  # muon: for the matrices of the net, adamw for the rest
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
    ema: float = 0.999  # decay of the averaged weights, which are evaluated and saved; 0: none
    ema_warmup: bool = False  # decay of update t at most (1 + t) / (10 + t): for short runs
    grokfast: Literal["none", "ema", "ma", "highpass"] = "none"  # gradient filter; highpass is document 004's formula, the opposite one
    grokfast_alpha: float = 0.98  # decay of the gradient's moving average
    grokfast_lambda: float = 0.1  # weight of the filtered part (document 004: 0.1; the Grokfast paper: 2)
    grokfast_window: int = 100  # gradients in the "ma" filter
    eval_every: int = 0  # steps between validations; 0: ten per run
    eval_steps: int = 0  # supervision steps in evaluation; 0: n_sup
    eval_average: int = 1  # last steps of an evaluation whose probabilities are averaged for the answer to a puzzle; 1: the last one alone
    patience: int = 0  # validations without a better one before stopping early; 0: never
    log_every: int = 20  # steps between lines of metrics.jsonl, the loop's only host sync
    ckpt_minutes: float = 5.0  # wall-clock time between checkpoints
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to compute
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # activations; auto: bfloat16 on CUDA and on CPUs with bf16 units
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile of the net; auto: on CUDA
    threads: int = 0  # CPU threads; 0: torch's choice
    wandb: str = ""  # Weights & Biases project, if wandb is installed; empty: none

    def problems(self) -> Iterator[tuple[str, str]]:
        for key in ("steps", "batch_size", "accumulate", "log_every", "grokfast_window", "muon_iterations", "eval_average"):
            if getattr(self, key) < 1:
                yield key, "at least 1"
        for key in ("lr", "muon_lr", "puzzle_lr"):
            if not getattr(self, key) > 0:
                yield key, "more than 0"
        for key in ("weight_decay", "muon_weight_decay", "puzzle_weight_decay", "warmup", "clip", "eval_every", "eval_steps",
                    "patience", "ckpt_minutes", "threads", "grokfast_lambda"):
            if not getattr(self, key) >= 0:
                yield key, "at least 0"
        for key in ("beta1", "beta2", "muon_momentum", "ema", "grokfast_alpha"):
            if not 0 <= getattr(self, key) < 1:
                yield key, "0 or more, below 1"
        if not 0 <= self.lr_floor <= 1:
            yield "lr_floor", "0 to 1"
        if self.accumulate > 0 and self.batch_size % self.accumulate:
            yield "accumulate", f"a divisor of batch_size = {self.batch_size}"


@dataclass(frozen=True)
class Config:
    hypothesis: str = ""  # one sentence that can turn out false
    expected: float = 0.0  # published change of exact accuracy against the baseline, in points; 0: none. analyze.py shows it
    seed: int = 0  # of weights, data order and exploration
    out: str = "runs"  # root of the run folders
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    arc: ArcConfig = field(default_factory=ArcConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    @property
    def eval_steps(self) -> int:
        """Supervision steps of an evaluation."""
        return self.train.eval_steps or self.model.n_sup

    def problems(self) -> Iterator[tuple[str, str, str]]:
        if self.seed < 0:
            yield "", "seed", "0 or more"
        for table in ("model", "data", "train", "plan", "arc", "encoder"):
            problems = getattr(getattr(self, table), "problems", tuple)
            yield from ((table, key, expected) for key, expected in problems())
        task = self.data.task
        if task == "control":
            yield from impossible(self.model, self.plan, PLANTS[self.data.plant])
        else:
            yield from self.changed("plan", f"its default, since data.task = {task!r} makes no plans")
        if task == "arc":
            yield from impossible_conditions(self.model, self.arc, self.encoder)
            yield from ((*p[:2], "its default with data.task = 'arc', whose data are the table [arc]") for p in self.changed("data") if p[1] != "task")
        else:
            yield from self.changed("arc", f"its default, since data.task = {task!r} has no demonstrations")
            yield from self.changed("encoder", f"its default, since data.task = {task!r} has no demonstrations")
        if self.data.task in ("features", "modular"):
            if self.model.mixer not in ("attention", "mlp"):
                yield "model", "mixer", f"'attention' or 'mlp': data.task = {self.data.task!r} has no grid"
            if self.model.positions == "rope2d":
                yield "model", "positions", f"'rope', 'learned' or 'none': data.task = {self.data.task!r} has no grid"
        if self.train.stagger and self.model.halting:
            yield "train", "stagger", "false, or model.halting = false: slots that halt take a new example on their own"
        if self.train.eval_average > self.eval_steps:
            yield "train", "eval_average", f"at most the {self.eval_steps} supervision steps of an evaluation"
        elif self.train.eval_average > 1 and task not in ("maze", "sudoku"):
            yield "train", "eval_average", f"1 with data.task = {task!r}: it is for puzzles"
        if self.model.per_digit and self.data.task != "sudoku":
            yield "model", "per_digit", "false, or data.task = 'sudoku'"
        if self.model.mixer in ("mlp",) or self.model.positions == "learned":
            if self.data.test_size not in (0, self.data.size):
                yield "data", "test_size", f"data.size: weights of mixer = {self.model.mixer!r}, positions = {self.model.positions!r} belong to one size"

    def changed(self, table: str, expected: str = "") -> Iterator[tuple[str, str, str]]:
        """The keys of a table that have no effect here, but are not at their defaults."""
        mine = getattr(self, table)
        return ((table, key, expected) for key, default in flatten(type(mine)()).items() if getattr(mine, key) != default)


# ---------------------------------------------------------------- where we are

@dataclass(frozen=True)
class World:
    """This process among the others, and its device."""
    rank: int
    size: int
    device: torch.device
    dtype: torch.dtype
    compiled: bool

    def sum(self, values: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(values)
        return values


def cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def make_world(cfg: TrainConfig) -> World:
    rank, size, local = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    kind = cfg.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    elif kind != "cpu" and not getattr(torch, kind).is_available():
        raise UserError(f"train.device = '{kind}', but this machine has none; use --train.device=auto")
    if cfg.batch_size % (size * cfg.accumulate):
        raise UserError(f"train.batch_size = {cfg.batch_size}, expected a multiple of {size} processes x accumulate = {cfg.accumulate}")
    if kind == "cpu" and cfg.threads:
        torch.set_num_threads(cfg.threads)
    if kind == "cuda":
        torch.cuda.set_device(local)
        torch.set_float32_matmul_precision("high")
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    bf16 = kind == "cuda" or (kind == "cpu" and cpu_has_bf16())
    dtype = {"auto": torch.bfloat16 if bf16 else torch.float32}.get(cfg.dtype) or getattr(torch, cfg.dtype)
    compiled = cfg.compile == "on" or (cfg.compile == "auto" and kind == "cuda")
    return World(rank, size, torch.device(kind, local) if kind == "cuda" else torch.device(kind), dtype, compiled)


def hardware(world: World) -> str:
    name = torch.cuda.get_device_name() if world.device.type == "cuda" else platform.processor() or platform.machine()
    try:
        cpu = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
        name = name if world.device.type == "cuda" else cpu
    except (OSError, StopIteration):
        pass
    threads = f", {torch.get_num_threads()} thread(s)" if world.device.type == "cpu" else ""
    return f"{world.size} x {name}{threads}, {str(world.dtype).removeprefix('torch.')}, torch {torch.__version__}" + (
        ", compiled" if world.compiled else "")


def commit() -> str:
    """The commit of this code, with + where files differ from it; empty outside git. The launcher's copies carry it as a file."""
    if (noted := Path(__file__).with_name("COMMIT")).exists():
        return noted.read_text().strip()

    def git(*args):
        return subprocess.run(["git", "-C", str(Path(__file__).parent), *args], capture_output=True, text=True, timeout=10).stdout.strip()
    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.TimeoutExpired):
        return ""


# ---------------------------------------------------------------- what a run is made of

class Signals:
    """Notes SIGTERM, SIGINT, SIGUSR1, SIGUSR2; the loop asks after each step, saves, and lets the former handler decide."""

    def __init__(self):
        self.caught = 0
        self.former = {}
        for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"):
            if hasattr(signal, name):
                try:
                    self.former[getattr(signal, name)] = signal.signal(getattr(signal, name), self.note)
                except ValueError:  # not in the main thread: whoever runs us there handles signals
                    pass

    def note(self, number, frame):
        self.caught = number

    def restore(self):
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def leave(self, number: int) -> None:
        """Call the handler that was there before us (submitit requeues and exits), else exit with 128 + signal."""
        self.restore()
        handler = self.former.get(number)
        if callable(handler) and handler is not signal.default_int_handler:
            handler(number, None)
        raise SystemExit(128 + number)


@dataclass
class Run:
    """A run in memory. What changes while training is all here: `checkpoint` writes it, `restore` reads it back.

    There is no generator to save: every random number is a function of (seed, step), and the data position is the step.
    """
    cfg: Config
    folder: Path
    world: World
    shape: Shape
    net: TRM | Planner
    ema: AveragedModel | None
    optimizers: list[torch.optim.Optimizer]
    grokfast: GrokFast | None
    step: int = 0
    carry: Carry | None = None  # of this process
    sums: dict[str, Tensor] = field(default_factory=dict)  # metric sums since the last log line, on the device
    best: dict | None = None  # the best validation so far
    stale: int = 0  # validations since then
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "train_cpu": 0.0, "validation": 0.0})
    bad: Tensor | None = None  # first step whose loss or gradient was not finite, inf: none; read at log lines only
    mark: tuple[float, float] = (0.0, 0.0)  # wall and CPU clock when time was last booked

    @property
    def every(self) -> int:
        """Steps between refills: without halting all slots start over together, or else in turn."""
        return 1 if self.cfg.model.halting or self.cfg.train.stagger else self.cfg.model.n_sup

    def book(self, kind: str = "") -> None:
        """Book the time since the last call as "train" or "validation", or as neither."""
        now = time.perf_counter(), time.process_time()
        if kind:
            self.seconds[kind] += now[0] - self.mark[0]
        if kind == "train":
            self.seconds["train_cpu"] += now[1] - self.mark[1]
        self.mark = now


def make_net(cfg: Config, shape: Shape, compute: torch.dtype) -> TRM | Planner:
    if cfg.data.task == "control":
        return make_planner(cfg.model, cfg.plan, PLANTS[cfg.data.plant], shape.scale, compute)
    if cfg.encoder.kind != "none":
        return Conditioned(cfg.model, cfg.encoder, shape, compute)
    return TRM(cfg.model, shape, compute)


def make_run(cfg: Config, folder: Path, world: World, shape: Shape, held_out: set[str] = frozenset()) -> Run:
    """Fresh weights from the seed (and a decoder that has not seen the tasks in `held_out`), averaged copy, optimizers."""
    torch.manual_seed(cfg.seed)
    net, tc = make_net(cfg, shape, world.dtype).to(world.device), cfg.train
    if cfg.encoder.decoder and not (folder / "ckpt.pt").exists():
        load_decoder(net, cfg.encoder.decoder, held_out)
    ema = make_ema(net, tc.ema, tc.ema_warmup) if tc.ema else None
    grokfast = GrokFast(tc.grokfast, tc.grokfast_alpha, tc.grokfast_lambda, tc.grokfast_window) if tc.grokfast != "none" else None
    if world.compiled:
        torch._dynamo.config.recompile_limit = 32  # a graph for each batch size, with and without gradient, of net and averaged net
        for part in (net.net, net.net_y, *((ema.module.net, ema.module.net_y) if ema else ())):
            if part is not None:
                part.compile(dynamic=False)
    rates = net.rates() if isinstance(net, Conditioned) else None
    return Run(cfg, folder, world, shape, net.train(), ema, make_optimizers(net, tc, rates), grokfast)


def checkpoint(run: Run) -> None:
    """ckpt.pt, complete, by rank 0; the other processes hand over their slots."""
    parts = {"carry": vars(run.carry), "sums": run.sums}
    everyone = [parts]
    if run.world.size > 1:
        everyone = [None] * run.world.size if run.world.rank == 0 else None
        dist.gather_object({k: to_cpu(v) for k, v in parts.items()}, everyone)
    if run.world.rank == 0:
        save(run.folder / "ckpt.pt", {
            "step": run.step, "best": run.best, "stale": run.stale, "seconds": run.seconds, "processes": everyone,
            "net": run.net.state_dict(), "ema": run.ema.state_dict() if run.ema else None,
            "optimizers": [o.state_dict() for o in run.optimizers],
            "grokfast": run.grokfast.state_dict() if run.grokfast else None,
            "config": flatten(run.cfg), "shape": dataclasses.asdict(run.shape)})


def restore(run: Run) -> None:
    """Continue from ckpt.pt, if there is one."""
    path = run.folder / "ckpt.pt"
    if not path.exists():
        return
    state = load(path, run.world.device, {"processes", "optimizers", "grokfast"})
    if len(state["processes"]) != run.world.size:
        raise UserError(f"{path} was written by {len(state['processes'])} process(es), this run has {run.world.size}; "
                        "start as many, or choose another --out")
    run.step, run.best, run.stale, run.seconds = (state[k] for k in ("step", "best", "stale", "seconds"))
    run.net.load_state_dict(state["net"])
    if run.ema:
        run.ema.load_state_dict(state["ema"])
    for optimizer, saved in zip(run.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    if run.grokfast:
        run.grokfast.load_state_dict(state["grokfast"])
    mine = state["processes"][run.world.rank]
    run.carry, run.sums = Carry(**mine["carry"]), mine["sums"]


def to_cpu(value):
    return {k: to_cpu(v) for k, v in value.items()} if isinstance(value, dict) else None if value is None else value.cpu()


# ---------------------------------------------------------------- one training step

def noise(net: TRM, cfg: Config, world: World, step: int) -> tuple[tuple[Tensor, Tensor] | None, dict[str, Tensor]]:
    """This step's random first states, and exploration and an encoder's noise as `step` takes them; drawn for the global batch: a pure
    function of (seed, step)."""
    B, (lo, hi) = cfg.train.batch_size, (cfg.train.batch_size * r // world.size for r in (world.rank, world.rank + 1))
    g = torch.Generator(world.device).manual_seed(int(data.rng(cfg.seed, data.NOISE, step).integers(2**62)))
    demanded = net.exploration(B, g)
    states = tuple(s[lo:hi] for s in net.first_states(B, net.shape.seq_len, g)) if cfg.model.init == "random" else None
    sampled = net.noise(B, cfg.arc.demos, g) if isinstance(net, Conditioned) else None
    return states, {k: v[lo:hi] for k, v in (("min_steps", demanded), ("noise", sampled)) if v is not None}


def forward_backward(net: TRM, carry: Carry, random: dict[str, Tensor], cfg: Config) -> tuple[Carry, dict[str, Tensor]]:
    """One supervision step of all slots with gradients added up, in `accumulate` pieces. Returns the carry and metric sums."""
    B = len(carry.steps)
    size = B // cfg.train.accumulate
    carries, sums = [], {}
    for lo in range(0, B, size):
        piece = carry if size == B else carry.map(lambda t: t[lo:lo + size])
        piece, out = net.step(piece, **{k: v[lo:lo + size] for k, v in random.items()})
        loss, metrics = net.loss(out, piece)
        (loss / cfg.train.batch_size).backward()
        carries.append(piece)
        sums = add(sums, metrics)
    return (carries[0] if size == B else Carry.cat(carries)), sums


def add(sums: dict[str, Tensor], more: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v + sums[k] for k, v in more.items()} if sums else more


def average_gradients(params: list[Tensor], world: World) -> None:
    """One all-reduce of all gradients; each process divided by the global batch already, so the sum is the mean."""
    if world.size > 1:
        flat = torch.cat([p.grad.reshape(-1) for p in params])
        dist.all_reduce(flat)
        for p, g in zip(params, flat.split([p.numel() for p in params])):
            p.grad.copy_(g.view_as(p))


def train_step(run: Run, feed: Iterator[dict]) -> None:
    """Refill the halted slots, think, learn: no host sync in here."""
    net, tc = run.net, run.cfg.train
    states, random = noise(net, run.cfg, run.world, run.step)
    if run.step % run.every == 0:
        batch = next(feed)
        run.carry = net.refill(run.carry or net.start(batch), batch, states)
    run.carry, metrics = forward_backward(net, run.carry, random, run.cfg)
    if tc.stagger and run.step == 0:  # as if slot i had begun i mod n_sup steps ago: the first examples get 1 to n_sup steps, all later ones n_sup
        B = len(run.carry.steps)
        steps = 1 + torch.arange(run.world.rank * B, (run.world.rank + 1) * B, device=run.world.device) % run.cfg.model.n_sup
        run.carry = replace(run.carry, steps=steps, halted=steps >= run.cfg.model.n_sup)
    params = [p for p in net.parameters() if p.requires_grad]
    for p in params:
        if p.grad is None:  # learned y0 and z0 in a step that starts no slot
            p.grad = torch.zeros_like(p)
    average_gradients(params, run.world)
    grads = [p.grad for p in params]
    if run.grokfast:
        run.grokfast(grads)
    norm = torch.nn.utils.get_total_norm(grads, foreach=True)
    if isinstance(net, Conditioned):
        metrics |= gradient_share(net, norm, len(run.carry.steps))
        if still := net.standing(run.step):
            for p in still:  # neither weight nor moments move, and it takes no part in clipping
                p.grad = None
            params = [p for p in params if p.grad is not None]
            norm = torch.nn.utils.get_total_norm([p.grad for p in params], foreach=True)
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


def last_good(folder: Path) -> str:
    return str(folder / "ckpt.pt") if (folder / "ckpt.pt").exists() else "none yet"


def check_finite(run: Run) -> None:
    """Raises TrainingError if a loss or gradient since the start was not finite. Always asked before anything is saved."""
    if run.bad is not None and (step := run.bad.item()) != math.inf:
        loss = (run.sums["loss"] / run.sums["rows"]).item() if run.sums else math.nan
        raise TrainingError(f"{run.folder}: loss or gradient is not finite from step {int(step)} on (loss now {loss:.4g}); last good "
                            f"checkpoint: {last_good(run.folder)}; a smaller train.lr or train.clip = 1 usually helps")


def train_line(run: Run) -> dict:
    """Metric sums since the last line, over all processes -> means: losses over rows, the rest over the rows that halted."""
    kind = torch.float32 if run.world.device.type == "mps" else torch.float64
    total = dict(zip(run.sums, run.world.sum(torch.stack([v.to(kind) for v in run.sums.values()])).tolist()))
    line = {k: v / total["rows"] for k, v in total.items() if k == "loss" or k.endswith("_loss") or k == "ponder"}
    if run.cfg.model.complexity_weight:
        line["complexity_loss"] = run.cfg.model.complexity_weight * complexity(run.cfg.model)
    if total["count"]:
        line |= {k: total[k] / total["count"] for k in ("exact", "cells", "q_accuracy")}
        line["steps_at_halt"] = total["steps"] / total["count"]
    line |= means(total)
    return line | {"halted": int(total["count"]), "lr": run.cfg.train.lr * schedule(run.cfg.train, run.step - 1)}


def rank(result: dict, cfg: Config) -> tuple:
    """Larger is better: of answers those that are right as a whole and then in part, of plans the cost and then the error."""
    if "primary" not in result:
        return result["exact"], result["cells"]
    dear = PLANTS[cfg.data.plant].expert.startswith("source")  # these labels are not the cheapest plans, so to imitate is not to cost less
    return (-result["mse"],) if dear else (-result["primary"], -result["mse"])


def validate(run: Run, split: data.Split) -> dict:
    """Evaluate the averaged weights; better than ever: best.pt. Returns the line for metrics.jsonl."""
    result = evaluate(run.ema.module if run.ema else run.net, split, run.cfg, run.world, rows_within_training(run.cfg),
                      progress="validation")
    del result["verdict"]
    if run.best is None or rank(result, run.cfg) > rank(run.best, run.cfg):
        run.best, run.stale = {"step": run.step, **result}, 0
        if run.world.rank == 0:
            save(run.folder / "best.pt", {"step": run.step, "val": result, "raw": run.net.state_dict(),
                                          "ema": run.ema.module.state_dict() if run.ema else None,
                                          "config": flatten(run.cfg), "shape": dataclasses.asdict(run.shape)})
    else:
        run.stale += 1
    halting = result.pop("halting")
    return result | {"halting_exact": halting["exact"], "halting_steps": halting["steps"]}


# ---------------------------------------------------------------- the run

def train(cfg: Config, folder: Path, entry: str = "") -> dict:
    """Run one entry to its end in `folder` and return its summary; resumes, skips a finished run, refuses another's folder."""
    folder, tc = Path(folder), cfg.train
    world = make_world(tc)
    lead = world.rank == 0
    if os.path.exists(folder / "config.toml"):  # Path.exists raises where we may not look
        check_same(folder, cfg, FREE)
    if os.path.exists(folder / "summary.json"):
        summary = json.loads((folder / "summary.json").read_text())
        if lead:
            print(f"{folder} is finished; nothing to do. {one_line(summary)}")
        return summary
    wandb = import_wandb(tc)
    try:
        dataset = data.load(cfg.data, cfg.arc)
    except UserError as e:
        raise UserError(f"{entry}: {e}" if entry else str(e)) from None
    run = make_run(cfg, folder, world, Shape(**dataset.shape), dataset.held_out_tasks())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if lead:
            write_atomic(folder / "config.toml", lambda f: f.write(to_toml(cfg, entry).encode()))
    except (OSError, TrainingError) as e:
        raise UserError(f"--out {cfg.out}: cannot write to {folder} ({getattr(e, 'strerror', None) or e})") from None
    restore(run)
    if lead:
        banner(run, dataset)
        cut_metrics(folder / "metrics.jsonl", run.step)
        log = open(folder / "metrics.jsonl", "a", encoding="utf-8")
        watch = start_wandb(wandb, run) if wandb else None

    def record(split: str, line: dict) -> None:
        line = {"step": run.step, "split": split, **line, "seconds": run.seconds["train"]}
        if lead:
            try:
                log.write(json.dumps({k: float(f"{v:.7g}") if isinstance(v, float) else v for k, v in line.items()}) + "\n")
                log.flush()
            except OSError as e:
                raise TrainingError(f"cannot write {log.name} ({e.strerror}); last good checkpoint: {last_good(folder)}") from e
            if watch:
                watch.log({f"{split}/{k}": v for k, v in line.items() if isinstance(v, (int, float))}, step=run.step)

    eval_every = tc.eval_every or max(1, tc.steps // 10)
    feed = data.batches(dataset, cfg.data, tc.batch_size, cfg.seed, -(-run.step // run.every), rank=world.rank, world=world.size,
                        device=world.device)
    signals, saved_at = Signals(), time.perf_counter()
    bar = tqdm(total=tc.steps, initial=run.step, desc=f"{folder.parent.name} s{cfg.seed}", disable=not lead, unit="step",
               mininterval=0.5 if sys.stderr.isatty() else 15, dynamic_ncols=True)
    best = f"{100 * run.best['exact']:.1f}%" if run.best else "-"
    run.book()
    try:
        while run.step < tc.steps and not (tc.patience and run.stale >= tc.patience):
            train_step(run, feed)
            bar.update()
            last = run.step == tc.steps
            if run.step % tc.log_every == 0 or last:
                check_finite(run)
                run.book("train")
                line = train_line(run)
                record("train", line)
                run.sums = {}
                exact = f"{100 * line['exact']:.0f}%" if "exact" in line else "-"
                bar.set_postfix(loss=f"{line['loss']:.3f}", exact=exact, best_val=best)
            evaluated = run.step % eval_every == 0 or last
            if evaluated:
                check_finite(run)
                run.book("train")
                line = validate(run, dataset.val)
                run.book("validation")
                record("val", line)
                best = f"{100 * run.best['exact']:.1f}%@{run.best['step']}"
            stop = agree(signals.caught, run)
            if stop or evaluated or agree(time.perf_counter() - saved_at > 60 * tc.ckpt_minutes, run):
                check_finite(run)
                run.book("train")
                checkpoint(run)
                run.book()
                saved_at = time.perf_counter()
            if stop:
                bar.close()
                if lead:
                    print(f"stopped by {signal.Signals(stop).name} after step {run.step}; {folder}/ckpt.pt is complete, "
                          "the same command continues", flush=True)
                signals.leave(stop)
    finally:
        bar.close()
        feed.close()
        signals.restore()
        if lead:
            with contextlib.suppress(OSError):  # a full disk: the write before said so
                log.close()
    summary = finish(run, dataset, entry)
    if lead and watch:
        watch.summary.update({f"test/{k}": v for k, v in summary["test"].items() if isinstance(v, (int, float))})
        watch.finish()
    return summary


def agree(value: int, run: Run) -> int:
    """The largest value over all processes, asked at every tenth step (0 at the others): all must act at the same step."""
    if run.world.size == 1:
        return int(value)
    if run.step % 10:
        return 0
    t = torch.tensor(int(value), device=run.world.device)
    dist.all_reduce(t, dist.ReduceOp.MAX)
    return int(t)


def import_wandb(tc: TrainConfig):
    if not tc.wandb:
        return None
    try:
        import wandb
        return wandb
    except ImportError:
        raise UserError(f"train.wandb = {tc.wandb!r}, but wandb is not installed; pip install wandb, or leave the key out") from None


def start_wandb(wandb, run: Run):
    return wandb.init(project=run.cfg.train.wandb, name=f"{run.folder.parent.name}-{run.folder.name}", config=flatten(run.cfg),
                      dir=str(run.folder), resume="allow", id=str(run.folder.resolve()).replace("/", "_")[-60:])


def finish(run: Run, dataset: data.Dataset, entry: str) -> dict:
    """The test split meets the checkpoint that validation chose, once; summary.json, written last, marks the run as finished."""
    cfg, folder, world, net = run.cfg, run.folder, run.world, run.net
    if world.size > 1:
        dist.barrier()  # rank 0 has written best.pt
    state = load(folder / "best.pt", world.device)
    net.load_state_dict(state["ema"] or state["raw"])
    rows = rows_within_training(cfg)
    run.book()
    test = evaluate(net, dataset.test, cfg, world, rows, progress="test")
    run.seconds |= {"test": 0.0, "test_halting": 0.0} | ({"report": 0.0} if cfg.data.task == "arc" else {})
    run.book("test")
    verdict, halting = test.pop("verdict"), test.pop("halting")
    if halting["steps"] < test["steps"]:  # somebody halts early: do it again and let finished rows leave the batch
        halting = evaluate(net, dataset.test, cfg, world, rows, adaptive=True, progress="test, halting")["halting"]
        run.book("test_halting")
    m = cfg.model
    summary = {
        "entry": entry, "hypothesis": cfg.hypothesis, "seed": cfg.seed, "task": cfg.data.task, "test": test, "test_halting": halting,
        "chosen": "best by validation", "best_step": run.best["step"], "weights": "ema" if state["ema"] else "raw",
        "val": {k: v for k, v in run.best.items() if k not in ("curve", "halting", "step")}, "baseline": dataset.card["baseline"],
        "parameters": sum(p.numel() for p in net.parameters()), "depth": m.T * (m.n + 1) * m.n_layers, "steps": run.step,
        "flop": run.step * step_calls(m) * net_flop(m, net.shape, cfg.train.batch_size), "test_puzzles": digest(dataset.test.inputs[:rows]),
        "seconds": run.seconds, "hardware": hardware(world), "commit": commit(), "data": dataset.card}
    if cfg.data.task == "control":
        summary["control"] = full_report(net, dataset.test.rows, cfg.data.seed)
    elif cfg.data.task == "arc":
        summary["flop"] *= cfg.encoder.kind == "none"  # an encoder's are not counted: 0 means unknown
        summary["arc"], answers = report(net, dataset.arc[0], cfg, world)
        run.book("report")
        if world.rank == 0:
            write_atomic(folder / "answers.npz", lambda f: np.savez_compressed(f, **answers))
    elif rows < len(dataset.test):
        summary["note"] = f"evaluations were cut to {rows} rows, so that they cost no more than the training itself"
    if world.rank == 0:
        write_atomic(folder / "test.npz", lambda f: np.savez_compressed(f, **verdict))
        write_atomic(folder / "summary.json", lambda f: f.write((json.dumps(summary, indent=1, default=str) + "\n").encode()))
        then = f"; next: python solve.py {folder}" if cfg.data.task in ("maze", "sudoku") else ""
        print(f"done   {one_line(summary)}\n       best checkpoint: {folder}/best.pt{then}")
    return summary


def digest(rows: np.ndarray) -> str:
    """What two runs must share before their verdicts on single puzzles may be compared."""
    return hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()


def one_line(summary: dict) -> str:
    test, halting = summary["test"], summary["test_halting"]
    if summary["task"] == "control":
        return (f"test: {100 * test['exact']:.1f} % at the target (n = {test['n']}), median J / J* {test['cells']:.4g}, mse of the plan {test['mse']:.4g} "
                f"({summary['chosen']}: step {summary['best_step']}, {summary['weights']}); {summary['data']['baseline_is']}: "
                f"{100 * summary['baseline']['exact']:.1f} %; trained {summary['seconds']['train'] / 60:.1f} min")
    if summary["task"] == "arc":
        train, held = summary["arc"]["train"], summary["arc"]["test"]
        context = "".join(f", {100 * held['context'][k]:.1f} % with {words}" for k, words in (("shuffled", "another task's context"), ("zero", "none"))
                          if k in held.get("context", {}))
        return (f"held-out tasks {100 * held['exact']:.1f} % exact (n = {held['n']}){context}, {sentence(held)}; training tasks "
                f"{100 * train['exact']:.1f} % (n = {train['n']}), {sentence(train)}; {summary['data']['baseline_is']}: "
                f"{100 * summary['baseline']['exact']:.1f} % exact, {100 * summary['baseline']['cells']:.1f} % of cells; "
                f"{summary['chosen']}: step {summary['best_step']}; trained {summary['seconds']['train'] / 60:.1f} min")
    words = {"exact": "exact", "valid": "valid", "optimal": "optimal"} | (
        {"top3": "among the first three"} if "top3" in test else {"cells": "of cells"})
    figures = ", ".join(f"{100 * test[k]:.1f} % {word}" for k, word in words.items() if k in test)
    ceiling = f"; best possible: {100 * summary['data']['ceiling']:.1f} %" if "ceiling" in summary["data"] else ""
    return (f"test {figures} (n = {test['n']}, {summary['chosen']}: "
            f"step {summary['best_step']}, {summary['weights']}); halting: {100 * halting['exact']:.1f} % in {halting['steps']:.1f} steps; "
            f"{summary['data']['baseline_is']}: {100 * summary['baseline']['exact']:.1f} %{ceiling}; trained {summary['seconds']['train'] / 60:.1f} min")


def banner(run: Run, dataset: data.Dataset) -> None:
    m, defaults = run.cfg.model, flatten(ModelConfig())
    changed = " ".join(f"{k}={v}" for k, v in flatten(m).items() if v != defaults[k])
    print(f"run    {run.folder} | {hardware(run.world)}" + (f" | continues at step {run.step}" if run.step else ""))
    print(f"model  {type(run.net).__name__} {sum(p.numel() for p in run.net.parameters()):,} parameters, {m.T * (m.n + 1) * m.n_layers} blocks deep"
          + (f" | not default: {changed}" if changed else ""))
    if run.cfg.encoder.kind != "none":
        changed = " ".join(f"{key}={getattr(run.cfg.encoder, key)}" for _, key, _ in run.cfg.changed("encoder"))
        print(f"encoder {sum(p.numel() for p in run.net.encoder.parameters()):,} of the parameters | not default: {changed}")
    print("data   " + ", ".join(f"{k} {v}" for k, v in dataset.card.items() if isinstance(v, (str, int, float)) and len(str(v)) < 90), flush=True)


def load_run(path: Path, device="cpu", dtype: torch.dtype = torch.float32, weights: str = "ema") -> tuple[Config, TRM, dict]:
    """(config, net in eval mode, checkpoint) from a run folder or a best.pt. weights: "ema" (default, where kept) or "raw"."""
    path = Path(path)
    if path.is_dir():
        path = path / "best.pt"
    state = load(path, device, {"config", "shape", "raw", "ema"})
    tables: dict = {}
    try:
        for key, value in state["config"].items():
            table, _, name = key.rpartition(".")
            (tables.setdefault(table, {}) if table else tables)[name] = value
        cfg = build(Config, tables)
        net = make_net(cfg, Shape(**state["shape"]), dtype).to(device)
        net.load_state_dict(state["raw"] if state[weights] is None else state[weights])
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as e:
        reason = str(e).splitlines()[0]
        raise UserError(f"{path}: its parts do not fit together, expected a best.pt of this version of train.py ({reason})") from None
    return cfg, net.eval(), state


def command(argv: list[str]) -> None:
    """Train what the command line says. Raises UserError and TrainingError."""
    entry, overrides = command_line(Config, argv, __doc__)
    cfg = load_config(Config, entry, overrides)
    slurm_config(entry)  # checked, so that an entry is right or wrong for the launcher and for us alike
    try:
        train(cfg, run_folder(cfg, entry), str(entry))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def main(argv: list[str] | None = None) -> int:
    try:
        command(sys.argv[1:] if argv is None else argv)
    except (UserError, TrainingError) as e:
        if os.environ.get("RANK", "0") == "0" or isinstance(e, TrainingError):  # bad input is the same for all processes
            print(f"error: {e}", file=sys.stderr)
        return 2 if isinstance(e, UserError) else 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
