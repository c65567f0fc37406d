"""How fast is a training step, and why: time, FLOP, share of the machine's matmul peak, memory, against a textbook step.

    python bench.py --net maze_attention                     one of the nets below, or an entry: --net sweeps/laptop/maze_hard.toml
    python bench.py --net maze_conv --arms eager,compiled    without the reference
    python bench.py --net sudoku_mlp --device cuda           the paper's size
    python bench.py --analysis 200                           how long analyze.py takes for 200 runs of 10,000 metric lines

All arms start from the same weights and rows, must agree on the first loss, and run interleaved in one process (A B C A B C ...);
figures are medians over rounds, ratios are taken within a round. A training step is forward, backward, optimizer and EMA.
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import analyze
from config import load_config, to_toml
from data import BOX, UserError
from model import TRM, Shape, net_flop, step_calls
from runs import TrainingError, write_atomic
from train import Config, commit, cpu_has_bf16, hardware, make_run, make_world, train_step

NETS = {  # name: (entry, what differs from it)
    "maze_attention": (
        "maze_baseline",
        {"data": {"size": 10}, "model": {"dim": 128}, "train": {"batch_size": 64}},
    ),
    "sudoku_mixer": ("sudoku_mlp", {"model": {"dim": 128}, "train": {"batch_size": 64}}),
    "maze_conv": ("laptop/maze_perfect", {}),
    "sudoku_pool": ("laptop/sudoku_extreme", {}),
    "sudoku_small": ("laptop/sudoku_9x9", {}),
    "maze_baseline": ("maze_baseline", {}),
    "sudoku_mlp": ("sudoku_mlp", {}),
}
ARMS = ["reference", "eager", "compiled", "bf16", "bf16+compiled"]


# ---------------------------------------------------------------- the reference: what a textbook would write


def rms(h: Tensor) -> Tensor:
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5)


def swiglu(h: Tensor, up: Tensor, down: Tensor) -> Tensor:
    gate, value = F.linear(h, up).chunk(2, -1)
    return F.linear(F.silu(gate) * value, down)


def turn(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = q.chunk(2, -1)
    return q * cos + torch.cat([-b, a], -1) * sin


class Textbook:
    """The same step in plain fp32, one operation after the other: nothing of layers.py, float64 stablemax, AdamW tensor by tensor."""

    PLAIN = {
        "norm": "rms",
        "norm_place": "post",
        "mlp": "swiglu",
        "init": "fixed",
        "two_nets": False,
        "continue_loss": False,
        "ponder_weight": 0.0,
        "complexity_weight": 0.0,
    }

    def __init__(self, cfg: Config, net: TRM, batch: dict[str, Tensor]):
        self.cfg, self.box, self.batch = cfg, (net.shape.box_rows, net.shape.box_cols), batch
        self.digits = torch.arange(2, net.shape.vocab_size, device=batch["inputs"].device)
        self.w = {name: t.detach().clone() for name, t in net.state_dict().items()}
        self.params = [t.requires_grad_() for name, t in self.w.items() if name not in ("y0", "z0")]
        self.ema = [p.detach().clone() for p in self.params]
        self.optimizer = torch.optim.AdamW(
            self.params,
            lr=1e-6,
            betas=(cfg.train.beta1, cfg.train.beta2),
            weight_decay=cfg.train.weight_decay,
            foreach=False,
        )
        B, L = batch["inputs"].shape
        self.y, self.z = (
            self.w[name].expand(B, net.length(L), cfg.model.dim) for name in ("y0", "z0")
        )
        angles = net.angles(self.y)
        if angles is not None:
            angles = torch.cat([angles, angles], -1)[:, None]  # (P+L, 1, D/H)
            self.cos, self.sin = angles.cos(), angles.sin()

    def attention(self, h: Tensor, w: dict[str, Tensor]) -> Tensor:
        B, L, D = h.shape
        H = self.cfg.model.heads
        q, k, v = F.linear(h, w["qkv.weight"]).view(B, L, 3 * H, D // H).split(H, 2)
        if self.cfg.model.positions.startswith("rope"):
            q, k = turn(q, self.cos, self.sin), turn(k, self.cos, self.sin)
        a = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return F.linear(a.transpose(1, 2).reshape(B, L, D), w["out.weight"])

    def conv(self, h: Tensor, w: dict[str, Tensor]) -> Tensor:
        B, P, D = len(h), self.cfg.model.prefix, h.shape[2]
        side = math.isqrt(h.shape[1] - P)
        grid = h[:, P:].transpose(1, 2).reshape(B, D, side, side)
        out = F.conv2d(grid, w["weight"], padding=1, groups=D).flatten(2).transpose(1, 2)
        return torch.cat([torch.zeros_like(h[:, :P]), out], 1) if P else out

    def pool(self, h: Tensor, w: dict[str, Tensor]) -> Tensor:
        (B, L, D), S, (r, c) = (
            h.shape,
            len(self.digits) if self.cfg.model.per_digit else 1,
            self.box,
        )
        side = math.isqrt(L // S)
        u, gate = F.linear(h, w["into.weight"]).chunk(2, -1)
        m = list(((u * F.silu(gate)).view(B, side, side, S, -1, D) / math.sqrt(side)).unbind(4))
        m[0], m[1] = (
            m[0].sum(2, keepdim=True).expand_as(m[0]),
            m[1].sum(1, keepdim=True).expand_as(m[1]),
        )
        if r:
            boxes = m[2].reshape(B, side // r, r, side // c, c, S, D)
            m[2] = boxes.sum((2, 4), keepdim=True).expand_as(boxes).reshape(B, side, side, S, D)
        if S > 1:
            m[-1] = m[-1].sum(3, keepdim=True).expand_as(m[-1])
        return F.linear(torch.cat(m, -1).view(B, L, -1), w["out.weight"])

    def net(self, h: Tensor) -> Tensor:
        for layer in range(self.cfg.model.n_layers):
            for i, part in enumerate(self.cfg.model.mixer.split("+")):
                at = f"net.blocks.{layer}.mixers.{i}."
                w = {name.removeprefix(at): t for name, t in self.w.items() if name.startswith(at)}
                if part == "mlp":
                    h = h.transpose(1, 2)
                    h = rms(h + swiglu(h, w["mlp.up.weight"], w["mlp.down.weight"])).transpose(1, 2)
                else:
                    h = rms(h + getattr(self, part)(h, w))
            at = f"net.blocks.{layer}.mlp."
            h = rms(h + swiglu(h, self.w[at + "up.weight"], self.w[at + "down.weight"]))
        return h

    def forward(
        self, batch: dict[str, Tensor], y: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One supervision step: logits (B, L, V), q_halt (B,), y, z."""
        m, w = self.cfg.model, self.w
        tokens = batch["inputs"]
        if m.per_digit:
            given, same = (tokens > 1)[..., None], tokens[..., None] == self.digits
            tokens = (2 * given - 1 * same).flatten(1)
        x = w["tokens"][tokens]
        if m.prefix:
            x = torch.cat(
                [F.pad(w["puzzles"][batch["puzzle"]][:, None], (0, 0, 0, m.prefix - 1)), x], 1
            )
        if m.positions == "learned":
            x = math.sqrt(0.5) * (x + w["places"])
        x, learning = math.sqrt(m.dim) * x, torch.is_grad_enabled()
        for cycle in range(m.T):
            with torch.set_grad_enabled(learning and cycle >= m.T - m.grad_cycles):
                for _ in range(m.n):
                    z = self.net(z + (y + x))
                y = self.net(y + z)
        q = F.linear(
            y[:, 0] if m.q_from == "first" else y.mean(1), w["q_head.weight"], w["q_head.bias"]
        )
        logits = F.linear(y, w["head.weight"])[:, m.prefix :]
        if m.per_digit:
            logits = F.pad(logits.view(len(y), -1, len(self.digits)), (2, 0), value=-1e4)
        return logits, q[:, 0], y, z

    def loss(self, logits: Tensor, q: Tensor, labels: Tensor) -> Tensor:
        if self.cfg.model.loss == "stablemax":
            v = logits.double()
            s = torch.where(v < 0, 1 / (1 - v + 1e-30), v + 1)
            log_p = torch.log(s / s.sum(-1, keepdim=True))
        else:
            log_p = F.log_softmax(logits, -1)
        answer = -log_p.gather(-1, labels[..., None]).squeeze(-1).mean(-1)  # (B,)
        right = (logits.argmax(-1) == labels).all(-1).to(q.dtype)
        return answer.sum() + self.cfg.model.q_weight * F.binary_cross_entropy_with_logits(
            q, right, reduction="sum"
        )

    def train_step(self) -> Tensor:
        tc, total, states = self.cfg.train, 0.0, []
        size = tc.batch_size // tc.accumulate
        for lo in range(0, tc.batch_size, size):
            batch = {k: v[lo : lo + size] for k, v in self.batch.items()}
            logits, q, *state = self.forward(batch, self.y[lo : lo + size], self.z[lo : lo + size])
            loss = self.loss(logits, q, batch["labels"]) / tc.batch_size
            loss.backward()
            total, states = total + loss.detach(), [*states, [t.detach() for t in state]]
        self.y, self.z = (torch.cat(parts) for parts in zip(*states))
        if tc.clip:
            torch.nn.utils.clip_grad_norm_(self.params, tc.clip, foreach=False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for average, p in zip(self.ema, self.params):
            average.mul_(tc.ema).add_(p.detach(), alpha=1 - tc.ema)
        return total

    def solve_step(self, size: int) -> None:
        with torch.no_grad():
            self.forward({k: v[:size] for k, v in self.batch.items()}, self.y[:size], self.z[:size])


class Ours:
    """The step of train.py."""

    def __init__(self, cfg: Config, net: TRM, batch: dict[str, Tensor]):
        self.run, self.feed = (
            make_run(cfg, Path(), make_world(cfg.train), net.shape),
            itertools.repeat(batch),
        )
        self.run.net.load_state_dict(net.state_dict())

    def train_step(self) -> Tensor:
        self.run.sums = {}
        train_step(self.run, self.feed)
        return self.run.sums["loss"] / self.run.cfg.train.batch_size

    def solve_step(self, size: int) -> None:
        net, carry = self.run.net, self.run.carry
        net.training = False  # of the whole only, whose `step` asks for it: the compiled part need not be compiled once more
        with torch.no_grad():
            net.step(carry if size == len(carry.steps) else carry.map(lambda t: t[:size]))
        net.training = True


# ---------------------------------------------------------------- measuring


class Clock:
    """Seconds of a call; on a GPU also the memory that it needs. Waits for the device at both ends only.

    With one CPU thread these are CPU seconds: what other processes take from a busy machine is not in them.
    """

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(
            device.type, lambda: None
        )
        self.now = (
            time.process_time
            if device.type == "cpu" and torch.get_num_threads() == 1
            else time.perf_counter
        )

    def held(self) -> int:
        return torch.cuda.memory_allocated() if self.cuda else 0

    def __call__(self, f, *args) -> float:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        held = self.held()
        self.wait()
        started = self.now()
        self.result = f(*args)
        self.wait()
        seconds = self.now() - started
        self.grown = torch.cuda.max_memory_allocated() - held if self.cuda else 0
        return seconds


def matmul_rate(dtype: torch.dtype, device: torch.device, clock: Clock) -> float:
    """FLOP per second of the best square matmul; their size doubles until one takes a tenth of a second."""
    best, seconds, side = 0.0, 0.0, 256
    while seconds < 0.1 and side <= 8192:
        a = torch.randn(side, side, device=device, dtype=dtype)
        seconds = min(clock(torch.mm, a, a) for _ in range(3))
        best, side = max(best, 2 * side**3 / seconds), 2 * side
    return best


def obstacle(name: str, cfg: Config, device: torch.device, insist: bool) -> str:
    """Why this arm cannot run, or makes no sense here; empty if it does."""
    if name == "reference" and (
        other := [k for k, v in Textbook.PLAIN.items() if getattr(cfg.model, k) != v]
    ):
        return f"the textbook step knows one value of {', '.join(f'model.{k}' for k in other)} only"
    if device.type == "cpu" and "bf16" in name and not cpu_has_bf16() and not insist:
        return "this CPU has no bf16 units (named in --arms it runs all the same)"
    if (
        device.type == "cpu"
        and "compiled" in name
        and not any(map(shutil.which, ("g++", "clang++", "c++")))
    ):
        return "torch.compile needs a C++ compiler"
    return ""


def warm_up(
    name: str, cfg: Config, net: TRM, batch: dict[str, Tensor], clock: Clock
) -> tuple[Textbook | Ours, dict]:
    """An arm after its first step, and what that said. Where a GPU's memory is too small, the batch is worked in more pieces."""
    B, held = cfg.train.batch_size, clock.held()
    words = {
        "dtype": "bfloat16" if "bf16" in name else "float32",
        "compile": "on" if "compiled" in name else "off",
    }
    for pieces in (n for n in range(cfg.train.accumulate, B + 1) if B % n == 0):
        try:
            train = dataclasses.replace(cfg.train, accumulate=pieces, **words)
            arm = (Textbook if name == "reference" else Ours)(
                dataclasses.replace(cfg, train=train), net, batch
            )
            started = time.perf_counter()
            clock(arm.train_step)
            loss = float(clock.result)
            clock(arm.solve_step, B // pieces)
            return arm, {
                "accumulate": pieces,
                "loss": loss,
                "first": time.perf_counter() - started,
                "own_bytes": clock.held() - held,
            }
        except torch.OutOfMemoryError:
            arm = None
            torch.cuda.empty_cache()
    raise UserError(f"not even one row of {name} fits into this GPU's memory")


def check_agreement(losses: dict[str, float], exact: bool) -> None:
    """All arms must have computed the same loss: in fp32 to rounding, in lower precision as well as that allows."""
    (first, a), *others = losses.items()
    for name, b in others:
        if not math.isclose(a, b, rel_tol=1e-4 if exact and "bf16" not in first + name else 0.05):
            raise TrainingError(
                f"{first} and {name} compute different things: first loss {a:.6g} and {b:.6g}"
            )


def measure(cfg: Config, names: list[str], rounds: int, insist: bool) -> dict:
    """Everything about one net on one device, as it goes to JSON. insist: run bf16 even on a CPU without bf16 units."""
    world = make_world(cfg.train)
    side, task, B = cfg.data.size, cfg.data.task, cfg.train.batch_size
    shape = Shape(side * side, *((6, 1, 0, 0) if task == "maze" else (side + 2, 1, *BOX[side])))
    torch.manual_seed(cfg.seed)
    net = TRM(cfg.model, shape).to(world.device)
    batch = {
        k: torch.randint(1, shape.vocab_size, (B, shape.seq_len)).to(world.device)
        for k in ("inputs", "labels")
    }
    batch["puzzle"] = torch.zeros(B, dtype=torch.long, device=world.device)
    clock, skipped, arms, found = Clock(world.device), {}, {}, {}
    for name in names:
        if reason := obstacle(name, cfg, world.device, insist):
            skipped[name] = {"not_available_here": reason}
        else:
            arms[name], found[name] = warm_up(name, cfg, net, batch, clock)
    if not arms:
        raise UserError(
            "no arm can run here: "
            + "; ".join(f"{name}: {why['not_available_here']}" for name, why in skipped.items())
        )
    check_agreement(
        {name: one["loss"] for name, one in found.items()}, exact=not clock.cuda
    )  # CUDA's fp32 matmuls are TF32

    train, solve, memory = ({name: [] for name in arms} for _ in range(3))
    peak = dict.fromkeys(("bf16" if "bf16" in name else "fp32" for name in arms), 0.0)
    for _ in range(rounds):
        for name, arm in arms.items():
            train[name].append(clock(arm.train_step))
            memory[name].append(clock.grown)
            solve[name].append(clock(arm.solve_step, B // found[name]["accumulate"]))
        for kind in peak:
            peak[kind] = max(
                peak[kind],
                matmul_rate(
                    {"bf16": torch.bfloat16, "fp32": torch.float32}[kind], world.device, clock
                ),
            )

    flop, steps = step_calls(cfg.model) * net_flop(cfg.model, shape, B), cfg.eval_steps
    for name, one in found.items():
        step, solved, first, own = (
            statistics.median(train[name]),
            statistics.median(solve[name]),
            one.pop("first"),
            one.pop("own_bytes"),
        )
        one |= {
            "seconds_per_step": step,
            "flop_per_second": flop / step,
            "share_of_matmul_peak": flop / step / peak["bf16" if "bf16" in name else "fp32"],
            "seconds_per_puzzle": steps * solved * one["accumulate"] / B,
            "every_step": train[name],
        }
        if "reference" in arms:
            one["ratio"] = statistics.median(a / b for a, b in zip(train[name], train["reference"]))
        if "compiled" in name:
            one["compile_seconds"] = first - step - solved
        if clock.cuda:
            one["peak_bytes"] = own + max(memory[name])
    return {
        "hardware": hardware(world).split(", ")[0],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
        "batch": B,
        "parameters": sum(p.numel() for p in net.parameters()),
        "flop_per_step": flop,
        "supervision_steps_per_puzzle": steps,
        "seconds": "cpu" if clock.now is time.process_time else "wall",
        "rounds": rounds,
        "matmul_peak": peak,
        "host_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
        "arms": {name: found.get(name) or skipped[name] for name in names},
    }


def table(net: str, result: dict) -> str:
    lines = [
        f"{net} on {result['hardware']}: batch {result['batch']}, {result['parameters']:,} parameters, {result['flop_per_step'] / 1e9:.4g} GFLOP "
        f"per step, {result['supervision_steps_per_puzzle']} supervision steps per puzzle ({result['seconds']} seconds)",
        f"{'arm':14}{'s/step':>9}{'ratio':>7}{'ms/puzzle':>11}{'GFLOP/s':>9}{'of peak':>9}{'compile s':>11}{'pieces':>8}{'GPU GiB':>9}",
    ]
    for name, a in result["arms"].items():
        if "not_available_here" in a:
            lines.append(f"{name:14}  not available here: {a['not_available_here']}")
            continue
        ratio, compiled, memory = (
            f"{a[key] / unit:.{digits}f}" if key in a else ""
            for key, unit, digits in (
                ("ratio", 1, 2),
                ("compile_seconds", 1, 0),
                ("peak_bytes", 2**30, 1),
            )
        )
        lines.append(
            f"{name:14}{a['seconds_per_step']:9.4g}{ratio:>7}{1e3 * a['seconds_per_puzzle']:11.4g}{a['flop_per_second'] / 1e9:9.4g}"
            f"{100 * a['share_of_matmul_peak']:7.0f} %{compiled:>11}{a['accumulate']:8}{memory:>9}"
        )
    peaks = ", ".join(f"{kind} {v / 1e9:.4g} GFLOP/s" for kind, v in result["matmul_peak"].items())
    return "\n".join(
        lines
        + [
            f"best matmul: {peaks}; host memory of the whole process: {result['host_peak_bytes'] / 2**30:.2f} GiB"
        ]
    )


# ---------------------------------------------------------------- the analysis


def made_up_runs(root: Path, runs: int, lines: int, puzzles: int = 1000) -> None:
    """Finished runs of five seeds per entry, the first entry a baseline: every hundredth metric line is a validation."""
    g = np.random.default_rng(0)
    train = {
        "split": "train",
        "loss": 0.512345,
        "answer_loss": 0.412345,
        "halt_loss": 0.1,
        "exact": 0.71875,
        "cells": 0.987654,
        "q_accuracy": 0.91,
        "steps_at_halt": 3.125,
        "halted": 123,
        "lr": 0.0001,
        "seconds": 1.0,
    }
    val = {
        "split": "val",
        "exact": 0.7,
        "valid": 0.7,
        "optimal": 0.7,
        "cells": 0.98,
        "steps": 16.0,
        "n": 100,
        "curve": [0.123456] * 16,
        "halting_exact": 0.7,
        "halting_steps": 4.2,
        "seconds": 1.0,
    }
    metrics = "".join(
        json.dumps({"step": 20 * k} | (train if k % 100 else val)) + "\n"
        for k in range(1, lines + 1)
    )
    for i in range(runs):
        entry, seed = i // 5, i % 5
        cfg = Config(
            seed=seed, train=dataclasses.replace(Config().train, steps=20 * lines, warmup=entry)
        )
        folder = root / (f"entry{entry}" if entry else "baseline") / f"seed{seed}"
        folder.mkdir(parents=True)
        solved = g.random(puzzles) < 0.7
        figures = {"exact": float(solved.mean()), "cells": 0.98, "steps": 16.0, "n": puzzles}
        (folder / "config.toml").write_text(to_toml(cfg, "made up"))
        (folder / "metrics.jsonl").write_text(metrics)
        np.savez_compressed(folder / "test.npz", exact=solved)
        (folder / "summary.json").write_text(
            json.dumps(
                {
                    "seed": seed,
                    "task": "maze",
                    "test": figures | {"curve": [0.1] * 15 + [figures["exact"]]},
                    "test_halting": figures,
                    "baseline": {"exact": 0.0, "cells": 0.8},
                    "parameters": 7_000_000,
                    "depth": 42,
                    "steps": 20 * lines,
                    "flop": 1e18,
                    "test_puzzles": "made up",
                    "hardware": "made up",
                    "commit": "made up",
                    "seconds": {"train": 1.0, "train_cpu": 1.0, "validation": 1.0, "test": 1.0},
                    "data": {},
                }
            )
        )


def measure_analysis(runs: int, lines: int = 10_000) -> str:
    with tempfile.TemporaryDirectory() as root:
        made_up_runs(Path(root, "runs"), runs, lines)
        size = sum(path.stat().st_size for path in Path(root).rglob("*.jsonl"))
        cpu, wall = time.process_time(), time.perf_counter()
        analyze.analyze([Path(root, "runs")], Path(root, "results"))
        return (
            f"analyze.py, {runs} runs of {lines} metric lines ({size / 2**20:.0f} MiB): {time.process_time() - cpu:.1f} s of CPU, "
            f"{time.perf_counter() - wall:.1f} s by the wall clock"
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--net",
        default="maze_attention",
        help=f"an entry (.toml), or {', '.join(NETS)} (default maze_attention)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=0,
        help="slots (default: the entry's; 64 for maze_attention and sudoku_mixer)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=5,
        help="rounds measured, one step of every arm each (default 5)",
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument(
        "--arms", default="", help=f"some of {','.join(ARMS)} (default: all that make sense here)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/bench.json"),
        help="JSON with a key per net and device (default results/bench.json)",
    )
    parser.add_argument(
        "--analysis",
        type=int,
        metavar="RUNS",
        help="time analyze.py on so many made-up runs of 10,000 metric lines instead",
    )
    args = parser.parse_args(argv)
    if args.analysis:
        print(measure_analysis(args.analysis))
        return 0
    names = args.arms.split(",") if args.arms else ARMS
    try:
        if wrong := [name for name in names if name not in ARMS]:
            raise UserError(f"--arms: unknown arm '{wrong[0]}', expected some of {','.join(ARMS)}")
        if args.steps < 1 or args.threads < 1:
            raise UserError("--steps and --threads: expected at least 1")
        if not args.net.endswith(".toml") and args.net not in NETS:
            raise UserError(
                f"--net: unknown net '{args.net}', expected an entry (.toml) or one of {', '.join(NETS)}"
            )
        entry, over = NETS.get(args.net, (args.net, {}))
        path = (
            Path(entry)
            if entry.endswith(".toml")
            else Path(__file__).parent / "sweeps" / f"{entry}.toml"
        )
        train = (
            over.get("train", {})
            | {"device": args.device, "threads": args.threads}
            | ({"batch_size": args.batch} if args.batch else {})
        )
        cfg = load_config(Config, path, over | {"train": train})
        known = json.loads(args.out.read_text()) if args.out.exists() else {}
        with (
            tempfile.TemporaryDirectory() as cache
        ):  # an empty one: compile seconds as on a fresh machine
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            result = measure(cfg, names, args.steps, insist=bool(args.arms))
        print(table(args.net, result))
        args.out.parent.mkdir(parents=True, exist_ok=True)
        known[f"{args.net}, {result['hardware']}"] = result
        write_atomic(args.out, lambda f: f.write((json.dumps(known, indent=1) + "\n").encode()))
    except (UserError, json.JSONDecodeError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except TrainingError as e:
        print(f"error: {e}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
