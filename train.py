"""Train a tiny recursive model from one TOML entry: `python train.py sweeps/laptop/maze.toml [--train.steps=200 --seed=1]`.

The same command continues a stopped run to the same bits, says so when the run is finished, and refuses a folder that holds
another configuration. Several processes: `torchrun --nproc_per_node=2 train.py ENTRY`. Exit codes: 0 finished, 2 bad input,
3 training failed (non-finite loss, disk full), 128 + signal stopped by a signal after a checkpoint.
"""

import dataclasses
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

import data
from config import build, command_line, flatten, load_config, to_toml
from data import DataConfig, UserError
from evaluate import evaluate, rows_within_training
from model import TRM, Carry, ModelConfig, Shape, trm_loss
from optim import GrokFast, make_ema, make_optimizers, schedule, set_rates
from runs import TrainingError, check_same, cut_metrics, load, run_folder, save, write_atomic


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 1000  # optimizer steps, one supervision step each
    batch_size: int = 768  # slots, over all processes
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
    patience: int = 0  # validations without a better one before stopping early; 0: never
    log_every: int = 20  # steps between lines of metrics.jsonl, the loop's only host sync
    ckpt_minutes: float = 5.0  # wall-clock time between checkpoints
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # where to compute
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # activations; auto: bfloat16 on CUDA and on CPUs with bf16 units
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile of the net; auto: on CUDA
    threads: int = 0  # CPU threads; 0: torch's choice
    wandb: str = ""  # Weights & Biases project, if wandb is installed; empty: none

    def problems(self) -> Iterator[tuple[str, str]]:
        for key in ("steps", "batch_size", "accumulate", "log_every", "grokfast_window", "muon_iterations"):
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


# Keys that change how a run is watched or where it computes, not what it computes: a run may continue with others.
FREE = {"hypothesis", "out", "train.log_every", "train.ckpt_minutes", "train.device", "train.threads", "train.wandb"}

NOISE = 7  # stream of data.rng for exploration and random first states; data.py uses 0..6


@dataclass(frozen=True)
class Config:
    hypothesis: str = ""  # one sentence that can turn out false
    seed: int = 0  # of weights, data order and exploration
    out: str = "runs"  # root of the run folders
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def problems(self) -> Iterator[tuple[str, str, str]]:
        if self.seed < 0:
            yield "", "seed", "0 or more"
        for table in ("model", "data", "train"):
            problems = getattr(getattr(self, table), "problems", tuple)
            yield from ((table, key, expected) for key, expected in problems())
        if self.model.mixer in ("mlp",) or self.model.positions == "learned":
            if self.data.test_size not in (0, self.data.size):
                yield "data", "test_size", f"data.size: weights of mixer = {self.model.mixer!r}, positions = {self.model.positions!r} belong to one size"


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
    """The commit of this code, with + where files differ from it; empty outside git."""
    def git(*args):
        return subprocess.run(["git", "-C", str(Path(__file__).parent), *args], capture_output=True, text=True, timeout=10).stdout.strip()
    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.TimeoutExpired):
        return ""


# ---------------------------------------------------------------- the training loop

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

    def leave(self) -> None:
        """Call the handler that was there before us (submitit requeues and exits), else exit with 128 + signal."""
        self.restore()
        handler = self.former[self.caught]
        if callable(handler) and handler is not signal.default_int_handler:
            handler(self.caught, None)
        raise SystemExit(128 + self.caught)


def average_gradients(params: list[Tensor], world: World) -> None:
    """One all-reduce of all gradients; each process divided by the global batch already, so the sum is the mean."""
    if world.size > 1:
        flat = torch.cat([p.grad.reshape(-1) for p in params])
        dist.all_reduce(flat)
        for p, g in zip(params, flat.split([p.numel() for p in params])):
            p.grad.copy_(g.view_as(p))


def noise(net: TRM, cfg: Config, world: World, step: int, L: int) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None]:
    """This step's random first states and exploration, drawn for the global batch: a pure function of (seed, step)."""
    B, (lo, hi) = cfg.train.batch_size, (cfg.train.batch_size * r // world.size for r in (world.rank, world.rank + 1))
    g = torch.Generator(world.device).manual_seed(int(data.rng(cfg.seed, NOISE, step).integers(2**62)))
    demanded = net.exploration(B, g)
    states = tuple(s[lo:hi] for s in net.first_states(B, L, g)) if cfg.model.init == "random" else None
    return states, None if demanded is None else demanded[lo:hi]


def forward_backward(net: TRM, carry: Carry, min_steps: Tensor | None, cfg: Config) -> tuple[Carry, dict[str, Tensor]]:
    """One supervision step of all slots with gradients added up, in `accumulate` pieces. Returns the carry and metric sums."""
    B = len(carry.steps)
    size = B // cfg.train.accumulate
    carries, sums = [], {}
    for lo in range(0, B, size):
        piece = carry if size == B else carry.map(lambda t: t[lo:lo + size])
        piece, out = net.step(piece, min_steps=None if min_steps is None else min_steps[lo:lo + size])
        loss, metrics = trm_loss(cfg.model, out, piece)
        (loss / cfg.train.batch_size).backward()
        carries.append(piece)
        sums = {k: v + sums[k] if sums else v for k, v in metrics.items()}
    return (carries[0] if size == B else Carry.cat(carries)), sums


def train(cfg: Config, folder: Path, entry: str = "") -> dict:
    """Run one entry to its end in `folder` and return its summary; resumes, skips a finished run, refuses another's folder."""
    folder, tc = Path(folder), cfg.train
    world = make_world(tc)
    lead = world.rank == 0
    if (folder / "config.toml").exists():
        check_same(folder, cfg, FREE)
    if (folder / "summary.json").exists():
        summary = json.loads((folder / "summary.json").read_text())
        if lead:
            print(f"{folder} is finished; nothing to do. {one_line(summary)}")
        return summary
    dataset = data.load(cfg.data)
    shape = Shape(**dataset.shape)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if lead:
            write_atomic(folder / "config.toml", lambda f: f.write(to_toml(cfg, entry).encode()))
    except (OSError, TrainingError) as e:
        raise UserError(f"--out {cfg.out}: cannot write to {folder} ({getattr(e, 'strerror', None) or e})") from None

    torch.manual_seed(cfg.seed)
    net = TRM(cfg.model, shape, world.dtype).to(world.device)
    ema = make_ema(net, tc.ema, tc.ema_warmup) if tc.ema else None
    params = list(net.parameters())
    optimizers = make_optimizers(net, tc)
    grokfast = GrokFast(tc.grokfast, tc.grokfast_alpha, tc.grokfast_lambda, tc.grokfast_window) if tc.grokfast != "none" else None
    if world.compiled:
        for part in (net.net, net.net_y, *((ema.module.net, ema.module.net_y) if ema else ())):
            if part is not None:
                part.compile(dynamic=False)
    eval_every = tc.eval_every or max(1, tc.steps // 10)
    per_rank, L, max_rows = tc.batch_size // world.size, shape.seq_len, rows_within_training(cfg)
    refill_every = 1 if cfg.model.halting else cfg.model.n_sup  # without halting all slots start over together

    # Everything that changes while training; ckpt.pt holds it, and randomness is a function of (seed, step), so it has no state.
    step, elapsed, cpu_time, stale, best, carry, sums = 0, 0.0, 0.0, 0, None, None, {}
    if (folder / "ckpt.pt").exists():
        state = load(folder / "ckpt.pt", world.device)
        net.load_state_dict(state["net"])
        if ema:
            ema.load_state_dict(state["ema"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if grokfast:
            grokfast.load_state_dict(state["grokfast"])
        if len(state["carries"]) != world.size:
            raise UserError(f"{folder}/ckpt.pt was written by {len(state['carries'])} process(es), this run has {world.size}; "
                            "start as many, or another --out")
        carry, sums = Carry(**state["carries"][world.rank]), state["sums"][world.rank]
        step, elapsed, cpu_time, stale, best = (state[k] for k in ("step", "elapsed", "cpu_time", "stale", "best"))
    if lead:
        banner(cfg, net, dataset, world, folder, step)
        cut_metrics(folder / "metrics.jsonl", step)
        log = open(folder / "metrics.jsonl", "a", encoding="utf-8")
    watch = start_wandb(cfg, folder) if lead and tc.wandb else None

    def record(line: dict) -> None:
        if lead:
            log.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()}) + "\n")
            log.flush()
            if watch:
                watch.log({f"{line['split']}/{k}": v for k, v in line.items() if isinstance(v, (int, float))}, step=line["step"])

    def checkpoint() -> None:
        mine = (vars(carry), sums)
        everyone = [mine]
        if world.size > 1:
            everyone = [None] * world.size if lead else None
            dist.gather_object(({k: to_cpu(v) for k, v in mine[0].items()}, {k: v.cpu() for k, v in sums.items()}), everyone)
        if lead:
            save(folder / "ckpt.pt", {
                "step": step, "elapsed": elapsed + time.perf_counter() - started, "cpu_time": cpu_time + time.process_time() - cpu_started,
                "stale": stale, "best": best, "net": net.state_dict(), "ema": ema.state_dict() if ema else None,
                "optimizers": [o.state_dict() for o in optimizers], "grokfast": grokfast.state_dict() if grokfast else None,
                "carries": [c for c, _ in everyone], "sums": [s for _, s in everyone],
                "config": flatten(cfg), "shape": dataclasses.asdict(shape)})

    def check_finite() -> None:
        if bad is not None and (failed := float(bad)) != math.inf:
            where = f"{folder}/ckpt.pt" if (folder / "ckpt.pt").exists() else "none yet"
            raise TrainingError(f"{folder}: loss or gradient is not finite at step {int(failed) + 1} (loss {float(bad_loss):.4g}); last good "
                                f"checkpoint: {where}; a smaller train.lr or train.clip=1 usually helps")

    feed = data.batches(dataset, cfg.data, tc.batch_size, cfg.seed, -(-step // refill_every), rank=world.rank, world=world.size,
                        device=world.device)
    signals, bad, bad_loss = Signals(), None, None
    started, cpu_started, saved_at, eval_seconds = time.perf_counter(), time.process_time(), time.perf_counter(), 0.0
    bar = tqdm(total=tc.steps, initial=step, desc=f"{folder.parent.name} s{cfg.seed}", disable=not lead, unit="step",
               mininterval=0.5 if sys.stderr.isatty() else 15, dynamic_ncols=True)
    shown = {"val": f"{100 * best['exact']:.1f}%"} if best else {}
    net.train()
    try:
        while step < tc.steps and not (tc.patience and stale >= tc.patience):
            states, min_steps = noise(net, cfg, world, step, L)
            if step % refill_every == 0:
                batch = next(feed)
                carry = net.refill(carry or net.start(batch), batch, states)
            carry, metrics = forward_backward(net, carry, min_steps, cfg)
            average_gradients(params, world)
            grads = [p.grad for p in params]
            if grokfast:
                grokfast(grads)
            norm = torch.nn.utils.clip_grad_norm_(params, tc.clip or math.inf, foreach=True)
            finite = torch.isfinite(metrics["loss"]) & torch.isfinite(norm)
            now = torch.where(finite, math.inf, float(step))
            bad_loss = metrics["loss"] / per_rank if bad is None else torch.where(bad < math.inf, bad_loss, metrics["loss"] / per_rank)
            bad = now if bad is None else torch.minimum(bad, now)  # read at the next log line: no sync here
            set_rates(optimizers, schedule(tc, step))
            for optimizer in optimizers:
                optimizer.step()
            for p in params:
                p.grad = None
            if ema:
                ema.update_parameters(net)
            sums = {k: v + sums[k] if sums else v for k, v in (metrics | {"grad_norm": norm}).items()}
            step += 1
            bar.update()

            if step % tc.log_every == 0 or step == tc.steps:
                total = dict(zip(sums, world.sum(torch.stack([v.double() if world.device.type != "mps" else v.float()
                                                              for v in sums.values()])).tolist()))
                check_finite()
                line = summarize(total, world)
                seconds = elapsed + time.perf_counter() - started
                record({"step": step, "split": "train", **line, "lr": tc.lr * schedule(tc, step - 1), "seconds": round(seconds, 2)})
                sums = {}
                bar.set_postfix({"loss": f"{line['loss']:.3f}", **({"exact": f"{100 * line['exact']:.0f}%"} if "exact" in line else {}), **shown})
            evaluated = step % eval_every == 0 or step == tc.steps
            if evaluated:
                check_finite()
                before = time.perf_counter()
                result = evaluate(ema.module if ema else net, dataset.val, cfg, world, max_rows, progress="validation")
                result.pop("verdict")
                eval_seconds += time.perf_counter() - before
                record({"step": step, "split": "val", **{k: v for k, v in result.items() if not isinstance(v, dict)},
                        "halting_exact": result["halting"]["exact"], "halting_steps": result["halting"]["steps"],
                        "seconds": round(elapsed + time.perf_counter() - started, 2)})
                if best is None or (result["exact"], result["cells"]) > (best["exact"], best["cells"]):
                    best, stale = {"step": step, **result}, 0
                    if lead:
                        save(folder / "best.pt", {"step": step, "config": flatten(cfg), "shape": dataclasses.asdict(shape), "val": result,
                                                  "ema": ema.module.state_dict() if ema else None, "raw": net.state_dict()})
                else:
                    stale += 1
                shown = {"val": f"{100 * result['exact']:.1f}%", "best": f"{100 * best['exact']:.1f}%@{best['step']}"}
            stop = signals.caught
            if world.size > 1 and step % 10 == 0:  # all ranks must leave at the same step
                stop = int(max_over_ranks(stop, world))
            elif world.size > 1:
                stop = 0
            due = time.perf_counter() - saved_at > 60 * tc.ckpt_minutes
            if world.size > 1:
                due = False if step % 10 else bool(max_over_ranks(int(due), world))
            if stop or due or evaluated:
                check_finite()
                checkpoint()
                saved_at = time.perf_counter()
            if stop:
                signals.caught = stop
                bar.close()
                if lead:
                    print(f"stopped by {signal.Signals(stop).name} after step {step}; {folder}/ckpt.pt is complete, the same command continues")
                signals.leave()
    finally:
        bar.close()
        feed.close()
        signals.restore()
        if lead:
            log.close()
    seconds, cpu_seconds = elapsed + time.perf_counter() - started, cpu_time + time.process_time() - cpu_started
    return finish(cfg, folder, entry, net, dataset, world, {"steps": step, "seconds": seconds, "cpu_seconds": cpu_seconds}, best, watch)


def max_over_ranks(value: int, world: World) -> int:
    t = torch.tensor(value, device=world.device)
    dist.all_reduce(t, dist.ReduceOp.MAX)
    return int(t)


def to_cpu(value):
    return {k: v.cpu() for k, v in value.items()} if isinstance(value, dict) else value.cpu()


def summarize(total: dict, world: World) -> dict:
    """Metric sums of a log window, over all processes -> means: losses over rows, the rest over the rows that halted."""
    rows, count = total["rows"], total["count"]
    line = {k: v / rows for k, v in total.items() if k == "loss" or k.endswith("_loss") or k == "ponder"}
    if count:
        line |= {k: total[k] / count for k in ("exact", "cells", "q_accuracy", "steps")}
        line["steps_at_halt"] = line.pop("steps")
    return line | {"halted": int(count)}


def start_wandb(cfg: Config, folder: Path):
    try:
        import wandb
    except ImportError:
        raise UserError(f"train.wandb = {cfg.train.wandb!r}, but wandb is not installed; pip install wandb, or leave the key out") from None
    return wandb.init(project=cfg.train.wandb, name=f"{folder.parent.name}-{folder.name}", config=flatten(cfg), dir=str(folder), resume="allow",
                      id=str(folder.resolve()).replace("/", "_")[-60:])


def finish(cfg: Config, folder: Path, entry: str, net: TRM, dataset, world: World, spent: dict, best: dict, watch) -> dict:
    """The test split meets the checkpoint that validation chose, once; summary.json, written last, marks the run as finished."""
    if world.size > 1:
        dist.barrier()  # rank 0 has written best.pt
    state = load(folder / "best.pt", world.device)
    net.load_state_dict(state["ema"] or state["raw"])
    rows = rows_within_training(cfg)
    started = time.perf_counter()
    test = evaluate(net, dataset.test, cfg, world, rows, progress="test")
    took = {"test_seconds": time.perf_counter() - started}
    verdict = test.pop("verdict")
    halting = test.pop("halting")
    if halting["steps"] < (cfg.train.eval_steps or cfg.model.n_sup):  # somebody halts early: let finished rows leave the batch
        started = time.perf_counter()
        halting = evaluate(net, dataset.test, cfg, world, rows, adaptive=True, progress="test, halting")["halting"]
        took["halting_seconds"] = time.perf_counter() - started
    m = cfg.model
    summary = {
        "entry": entry, "hypothesis": cfg.hypothesis, "seed": cfg.seed, "folder": str(folder), "task": cfg.data.task,
        "test": test, "test_halting": halting, "val": {k: v for k, v in best.items() if k not in ("curve", "halting", "step")},
        "best_step": best["step"], "weights": "ema" if state["ema"] else "raw", "chosen": "best by validation",
        "baseline": data.baseline(dataset.test, cfg.data.task), "parameters": sum(p.numel() for p in net.parameters()),
        "depth": m.T * (m.n + 1) * m.n_layers, **spent, **took, "hardware": hardware(world), "commit": commit(), "data": dataset.card}
    if world.rank == 0:
        if rows < len(dataset.test):
            summary["note"] = f"evaluations were cut to {rows} rows: no more work than the training itself"
        if world.size == 1:
            np.savez_compressed(folder / "test.npz", **verdict)
        write_atomic(folder / "summary.json", lambda f: f.write((json.dumps(summary, indent=1, default=str) + "\n").encode()))
        print(f"done   {one_line(summary)}\n       best checkpoint: {folder}/best.pt; next: python solve.py {folder}")
        if watch:
            watch.summary.update({k: v for k, v in flatten_numbers(summary).items()})
            watch.finish()
    return summary


def flatten_numbers(values: dict, prefix: str = "") -> dict:
    flat = {}
    for k, v in values.items():
        flat |= flatten_numbers(v, f"{prefix}{k}/") if isinstance(v, dict) else {prefix + k: v} if isinstance(v, (int, float)) else {}
    return flat


def one_line(summary: dict) -> str:
    test, halting = summary["test"], summary["test_halting"]
    rules = ", ".join(f"{100 * test[k]:.1f} % {k}" for k in ("valid", "optimal") if k in test)
    return (f"test {100 * test['exact']:.1f} % exact, {rules}, {100 * test['cells']:.1f} % of cells (n = {test['n']}, {summary['chosen']}: "
            f"step {summary['best_step']}, {summary['weights']}); halting: {100 * halting['exact']:.1f} % in {halting['steps']:.1f} steps; "
            f"copying: {100 * summary['baseline']['exact']:.1f} %; {summary['seconds'] / 60:.1f} min")


def banner(cfg: Config, net: TRM, dataset, world: World, folder: Path, step: int) -> None:
    m, card = cfg.model, dataset.card
    changed = [f"{k.removeprefix('model.')}={v}" for k, v in flatten(cfg).items() if k.startswith("model.") and v != flatten(Config())[k]]
    print(f"run    {folder} | {hardware(world)}" + (f" | continues at step {step}" if step else ""))
    print(f"model  TRM {sum(p.numel() for p in net.parameters()):,} parameters, {m.T * (m.n + 1) * m.n_layers} blocks deep"
          + (f" | not default: {' '.join(changed)}" if changed else ""))
    print("data   " + ", ".join(f"{k} {v}" for k, v in card.items() if isinstance(v, (str, int, float)) and len(str(v)) < 90), flush=True)


def load_run(path: Path, device="cpu", dtype: torch.dtype = torch.float32, weights: str = "ema") -> tuple[Config, TRM, dict]:
    """(config, net in eval mode, checkpoint) from a run folder or a best.pt. weights: "ema" (default, where kept) or "raw"."""
    path = Path(path)
    if path.is_dir():
        path = path / "best.pt"
    state = load(path, device)
    if not isinstance(state, dict) or not {"config", "shape", "raw", "ema"} <= state.keys():
        raise UserError(f"{path}: not a best.pt of train.py (expected the keys config, shape, ema, raw)")
    tables: dict = {}
    for key, value in state["config"].items():
        table, _, name = key.rpartition(".")
        (tables.setdefault(table, {}) if table else tables)[name] = value
    cfg = build(Config, tables)
    net = TRM(cfg.model, Shape(**state["shape"]), dtype).to(device)
    net.load_state_dict(state[weights] if state[weights] is not None else state["raw"])
    return cfg, net.eval(), state


def main(argv: list[str] | None = None) -> int:
    try:
        entry, overrides = command_line(Config, sys.argv[1:] if argv is None else argv, __doc__)
        cfg = load_config(Config, entry, overrides)
        train(cfg, run_folder(cfg, entry), str(entry))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except TrainingError as e:
        print(f"error: {e}", file=sys.stderr)
        return 3
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
