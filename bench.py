"""How fast is a training step, and why: time, FLOP, share of the machine's matmul peak, memory.

    python bench.py --net maze_attention                     one of the nets below
    python bench.py --net sweeps/laptop/maze_hard.toml       or an entry
    python bench.py --net maze_conv --arms eager,compiled    without the reference
    python bench.py --net sudoku_mlp --device cuda           the paper's size
    python bench.py --net maze_conv --arms eager --profile   where the time of a step goes

The reference is a textbook step. All arms start from the same weights and rows, must agree on the
first loss, and run interleaved in one process (A B C A B C ...); figures are medians over rounds,
ratios are taken within a round. A training step is forward, backward, optimizer and EMA.
"""

import config as _config  # noqa: F401, I001  first: it says so where packages are missing

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
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from config import UserError, load_config, quiet_output
from layers import Attention, Block, Conv, Norm, Pool, PositionMLP
from model import Output
from runs import TrainingError, commit, cpu_has_bf16, cpu_name, make_world, write_text
from train import Config, make_run, train_step

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
ARMS = ["reference", "eager", "compiled", "graphs", "bf16", "bf16+compiled", "bf16+graphs"]
COMPILE = {"compiled": "on", "graphs": "graphs"}  # train.compile of an arm, by its last word


# ---------------------------------------------------------------- the reference


def rms(h: Tensor) -> Tensor:
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5)


def swiglu(h: Tensor, up: Tensor, down: Tensor) -> Tensor:
    gate, value = F.linear(h, up).chunk(2, -1)
    return F.linear(F.silu(gate) * value, down)


def turn(q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = q.chunk(2, -1)
    return q * cos + torch.cat([-b, a], -1) * sin


class Textbook:
    """The same step in plain fp32, one operation after the other.

    Nothing of layers.py, float64 stablemax, AdamW tensor by tensor.
    """

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

    def __init__(self, cfg: Config, net: torch.nn.Module, batch: dict[str, Tensor]):
        self.cfg, self.batch, self.planes = cfg, batch, net.planes
        self.box = net.shape.box_rows, net.shape.box_cols
        self.digits = torch.arange(2, net.shape.vocab_size, device=batch["inputs"].device)
        self.w = {name: t.detach().clone() for name, t in net.state_dict().items()}
        learned = [t for name, t in self.w.items() if name not in ("y0", "z0")]
        self.params = [t.requires_grad_() for t in learned]
        self.ema = [p.detach().clone() for p in self.params]
        tc = cfg.train
        self.optimizer = torch.optim.AdamW(
            self.params,
            lr=1e-6,
            betas=(tc.beta1, tc.beta2),
            weight_decay=tc.weight_decay,
            foreach=False,
        )
        B, L = batch["inputs"].shape
        size = B, net.length(L), cfg.model.dim
        self.y, self.z = self.w["y0"].expand(size), self.w["z0"].expand(size)
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
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        a = F.scaled_dot_product_attention(q, k, v)
        return F.linear(a.transpose(1, 2).reshape(B, L, D), w["out.weight"])

    def conv(self, h: Tensor, w: dict[str, Tensor]) -> Tensor:
        B, P, D = len(h), self.cfg.model.prefix, h.shape[2]
        side = math.isqrt(h.shape[1] - P)
        grid = h[:, P:].transpose(1, 2).reshape(B, D, side, side)
        out = F.conv2d(grid, w["weight"], padding=1, groups=D).flatten(2).transpose(1, 2)
        return torch.cat([torch.zeros_like(h[:, :P]), out], 1) if P else out

    def pool(self, h: Tensor, w: dict[str, Tensor]) -> Tensor:
        (B, L, D), S, (r, c) = h.shape, self.planes, self.box
        side = math.isqrt(L // S)
        u, gate = F.linear(h, w["into.weight"]).chunk(2, -1)
        m = ((u * F.silu(gate)).view(B, side, side, S, -1, D) / math.sqrt(side)).unbind(4)
        pooled = [
            m[0].sum(2, keepdim=True).expand_as(m[0]),
            m[1].sum(1, keepdim=True).expand_as(m[1]),
        ]
        if r:
            boxes = m[2].reshape(B, side // r, r, side // c, c, S, D)
            boxes = boxes.sum((2, 4), keepdim=True).expand_as(boxes)
            pooled.append(boxes.reshape(B, side, side, S, D))
        if S > 1:
            pooled.append(m[-1].sum(3, keepdim=True).expand_as(m[-1]))
        return F.linear(torch.cat(pooled, -1).view(B, L, -1), w["out.weight"])

    def net(self, h: Tensor) -> Tensor:
        for layer in range(self.cfg.model.n_layers):
            for i, part in enumerate(self.cfg.model.mixer.split("+")):
                at = f"net.blocks.{layer}.mixers.{i}."
                w = {name.removeprefix(at): t for name, t in self.w.items() if name.startswith(at)}
                if part == "mlp":
                    h = h.transpose(1, 2)
                    h = rms(h + swiglu(h, w["mlp.up.weight"], w["mlp.down.weight"]))
                    h = h.transpose(1, 2)
                else:
                    h = rms(h + getattr(self, part)(h, w))
            at = f"net.blocks.{layer}.mlp."
            h = rms(h + swiglu(h, self.w[at + "up.weight"], self.w[at + "down.weight"]))
        return h

    def embed(self, batch: dict[str, Tensor]) -> Tensor:
        m, w, tokens = self.cfg.model, self.w, batch["inputs"]
        if self.planes > 1:  # a state per cell and digit
            given, same = (tokens > 1)[..., None], tokens[..., None] == self.digits
            tokens = (2 * given - 1 * same).flatten(1)
        x = w["tokens"][tokens]
        if m.prefix:
            first = w["puzzles"][batch["puzzle"]][:, None]
            x = torch.cat([F.pad(first, (0, 0, 0, m.prefix - 1)), x], 1)
        if m.positions == "learned":
            x = math.sqrt(0.5) * (x + w["places"])
        return math.sqrt(m.dim) * x

    def forward(self, batch: dict[str, Tensor], y: Tensor, z: Tensor):
        """One supervision step: logits (B, L, V), q_halt (B,), y, z."""
        m, w, x = self.cfg.model, self.w, self.embed(batch)
        learning = torch.is_grad_enabled()
        for cycle in range(m.T):
            with torch.set_grad_enabled(learning and cycle >= m.T - m.grad_cycles):
                for _ in range(m.n):
                    z = self.net(z + (y + x))
                y = self.net(y + z)
        seen = y[:, 0] if m.q_from == "first" else y.mean(1)
        q = F.linear(seen, w["q_head.weight"], w["q_head.bias"])
        logits = F.linear(y, w["head.weight"])[:, m.prefix :]
        if self.planes > 1:
            logits = F.pad(logits.view(len(y), -1, self.planes), (2, 0), value=-1e4)
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
        halt = F.binary_cross_entropy_with_logits(q, right, reduction="sum")
        return answer.sum() + self.cfg.model.q_weight * halt

    def train_step(self) -> Tensor:
        tc, total, states = self.cfg.train, 0.0, []
        size = tc.batch_size // tc.accumulate
        for low in range(0, tc.batch_size, size):
            rows = slice(low, low + size)
            batch = {name: value[rows] for name, value in self.batch.items()}
            logits, q, y, z = self.forward(batch, self.y[rows], self.z[rows])
            loss = self.loss(logits, q, batch["labels"]) / tc.batch_size
            loss.backward()
            total = total + loss.detach()
            states.append((y.detach(), z.detach()))
        self.y, self.z = (torch.cat(parts) for parts in zip(*states))
        if tc.clip:
            torch.nn.utils.clip_grad_norm_(self.params, tc.clip, foreach=False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for average, p in zip(self.ema, self.params):
            average.mul_(tc.ema).add_(p.detach(), alpha=1 - tc.ema)
        return total

    @torch.no_grad()
    def solve_step(self, size: int) -> None:
        batch = {name: value[:size] for name, value in self.batch.items()}
        self.forward(batch, self.y[:size], self.z[:size])


class Ours:
    """The step of train.py."""

    def __init__(self, cfg: Config, net: torch.nn.Module, batch: dict[str, Tensor]):
        dataset = SimpleNamespace(shape=cfg.task.shape(cfg))
        self.run = make_run(cfg, Path(), make_world(cfg.train), dataset)
        self.run.net.load_state_dict(net.state_dict())
        self.feed = itertools.repeat(batch)

    def train_step(self) -> Tensor:
        self.run.sums = {}
        train_step(self.run, self.feed)
        return self.run.sums["loss"] / self.run.cfg.train.batch_size

    @torch.no_grad()
    def solve_step(self, size: int) -> None:
        net, carry = self.run.net, self.run.carry
        if size < len(carry.steps):
            carry = carry.map(lambda t: t[:size])
        # Of the whole only, whose `step` asks for it: the compiled part is not compiled once more.
        net.training = False
        net.step(carry)
        net.training = True


# ---------------------------------------------------------------- where the time goes

MIXING = {
    Attention: "mixing: attention",
    Conv: "mixing: convolution",
    Pool: "mixing: pooling",
    PositionMLP: "mixing: position MLP",
}


class Mark(torch.autograd.Function):
    """The identity. Where its backward comes by, the time goes to another part."""

    @staticmethod
    def forward(ctx, h: Tensor, profile: "Profile", part: str) -> Tensor:
        ctx.profile, ctx.part = profile, part
        return h.view_as(h)

    @staticmethod
    def backward(ctx, d: Tensor):
        ctx.profile.in_backward(ctx.part)
        return d, None, None


class Profile:
    """The seconds of an eager step, part by part: they add up to the step.

    One clock runs, for one part at a time. A part that is called takes the clock, and hands it
    back at its end. Backward runs through the same operations in reverse. So its time goes to the
    part whose forward made the operation: a mark behind the output of a part hands it the clock,
    and one before its input takes it away. What belongs to no part is "other": sums of residuals,
    slots, metrics, norm and clipping of the gradients. Adding up a weight's gradients belongs to
    the part that has the weight.

    At every change the clock waits for the device. On a GPU this makes the step longer, as no
    operation is queued while another one runs.
    """

    def __init__(self, clock: "Clock"):
        self.clock, self.part, self.last = clock, "other", clock.now()
        self.seconds = {"other": 0.0}
        self.backward = False  # a backward is running

    def begin(self) -> None:
        """Forget what was booked."""
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        self.clock.wait()
        self.part, self.last = "other", self.clock.now()

    def turn_to(self, part: str) -> None:
        """Book the time since the last change, and start with a part."""
        self.clock.wait()
        now = self.clock.now()
        self.seconds[self.part] += now - self.last
        self.part, self.last = part, now

    def in_backward(self, part: str) -> None:
        if not self.backward:
            self.backward = True
            torch.autograd.Variable._execution_engine.queue_callback(self.end_backward)
        self.turn_to(part)

    def end_backward(self) -> None:
        self.backward = False
        self.turn_to("other")

    def watch(self, owner, name: str, part: str) -> None:
        """From here on a method of `owner` is booked as a part."""
        method = getattr(owner, name)
        self.seconds[part] = 0.0

        def watched(*args, **options):
            outside = self.part
            args = [self.mark(value, outside) for value in args]
            self.turn_to(part)
            result = self.mark(method(*args, **options), part)
            self.turn_to(outside)
            return result

        setattr(owner, name, watched)

    def mark(self, value, part: str):
        """A value, with marks on what of it has a gradient."""
        if isinstance(value, tuple):
            return tuple(self.mark(one, part) for one in value)
        if isinstance(value, Output) and value.logits.requires_grad:
            return dataclasses.replace(value, logits=Mark.apply(value.logits, self, part))
        if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
            return Mark.apply(value, self, part)
        return value

    def watch_run(self, run) -> None:
        """All parts of a training step."""
        net = run.net
        blocks = [module for module in net.modules() if isinstance(module, Block)]
        for block in blocks:
            for mixer in block.mixers:
                self.watch(mixer, "forward", MIXING[type(mixer)])
            mixes = not len(block.mixers)
            self.watch(block.mlp, "forward", "group MLP" if mixes else "channel MLP")
        norms = [module for module in net.modules() if isinstance(module, Norm)]
        for norm in norms:
            self.watch(norm, "forward", "norms")
        self.watch(net, "embed", "heads and embedding")
        self.watch(net, "read", "heads and embedding")
        self.watch(net, "loss", "loss")
        for optimizer in run.optimizers:
            self.watch(optimizer, "step", "optimizer")
            self.watch(optimizer, "zero_grad", "optimizer")
        if run.ema:
            self.watch(run.ema, "update_parameters", "EMA")


# ---------------------------------------------------------------- measuring


class Clock:
    """Seconds of a call; on a GPU also the memory that it needs. Waits for the device at both ends.

    With one CPU thread these are CPU seconds: what other processes take from a busy machine is not
    in them.
    """

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        waits = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}
        self.wait = waits.get(device.type, lambda: None)
        one_thread = device.type == "cpu" and torch.get_num_threads() == 1
        self.now = time.process_time if one_thread else time.perf_counter

    def held(self) -> int:
        """Bytes of GPU memory in use."""
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
    """FLOP per second of the best square matmul.

    The size doubles until one takes a tenth of a second.
    """
    best, seconds, side = 0.0, 0.0, 256
    while seconds < 0.1 and side <= 8192:
        a = torch.randn(side, side, device=device, dtype=dtype)
        seconds = min(clock(torch.mm, a, a) for _ in range(3))
        best, side = max(best, 2 * side**3 / seconds), 2 * side
    return best


def obstacle(name: str, cfg: Config, device: torch.device, insist: bool) -> str:
    """Why this arm cannot run, or makes no sense here; empty if it does."""
    other = [key for key, value in Textbook.PLAIN.items() if getattr(cfg.model, key) != value]
    if name == "reference" and other:
        keys = ", ".join(f"model.{key}" for key in other)
        return f"the textbook step knows one value of {keys} only"
    if name == "reference" and cfg.model.mixer == "groups":
        return "the textbook step does not know model.mixer = 'groups'"
    on_cpu = device.type == "cpu"
    if "graphs" in name and device.type != "cuda":
        return "CUDA graphs need a GPU of NVIDIA's"
    if on_cpu and "bf16" in name and not cpu_has_bf16() and not insist:
        return "this CPU has no bf16 units (named in --arms it runs all the same)"
    if on_cpu and "compiled" in name and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        return "torch.compile needs a C++ compiler"
    return ""


def warm_up(
    name: str, cfg: Config, net: torch.nn.Module, batch: dict[str, Tensor], clock: Clock
) -> tuple[Textbook | Ours, dict]:
    """An arm after its first step, and what that showed.

    Where a GPU's memory is too small, the batch is worked in more pieces.
    """
    B, held = cfg.train.batch_size, clock.held()
    words = {
        "dtype": "bfloat16" if "bf16" in name else "float32",
        "compile": COMPILE.get(name.rpartition("+")[2], "off"),
    }
    divisors = [n for n in range(cfg.train.accumulate, B + 1) if B % n == 0]
    for pieces in divisors:
        own = dataclasses.replace(cfg.train, accumulate=pieces, **words)
        kind = Textbook if name == "reference" else Ours
        try:
            arm = kind(dataclasses.replace(cfg, train=own), net, batch)
            started = time.perf_counter()
            clock(arm.train_step)
            loss = float(clock.result)
            clock(arm.solve_step, B // pieces)
            found = {"accumulate": pieces, "loss": loss}
            found["first"] = time.perf_counter() - started
            return arm, found | {"own_bytes": clock.held() - held}
        except torch.OutOfMemoryError:
            arm = None
            torch.cuda.empty_cache()
    raise UserError(f"not even one row of {name} fits into this GPU's memory")


def check_agreement(losses: dict[str, float], exact: bool) -> None:
    """Raises TrainingError unless all arms computed the same loss.

    In fp32 to rounding, in lower precision as well as that allows.
    """
    (first, a), *others = losses.items()
    for name, b in others:
        tight = exact and "bf16" not in first + name
        if not math.isclose(a, b, rel_tol=1e-4 if tight else 0.05):
            raise TrainingError(
                f"{first} and {name} compute different things: first loss {a:.6g} and {b:.6g}"
            )


def made_up_batch(cfg: Config, shape: dict, device: torch.device) -> dict[str, Tensor]:
    """Random questions and answers."""
    size = cfg.train.batch_size, shape["seq_len"]
    batch = {
        name: torch.randint(1, shape["vocab_size"], size).to(device)
        for name in ("inputs", "labels")
    }
    batch["puzzle"] = torch.zeros(cfg.train.batch_size, dtype=torch.long, device=device)
    return batch


def precision(name: str) -> str:
    return "bf16" if "bf16" in name else "fp32"


def measure(
    cfg: Config, names: list[str], rounds: int, insist: bool, profiled: bool = False
) -> dict:
    """Everything about one net on one device, as it goes to JSON.

    insist: run bf16 even on a CPU without bf16 units. profiled: say where a step goes, too.
    """
    world = make_world(cfg.train)
    shape, B = cfg.task.shape(cfg), cfg.train.batch_size
    torch.manual_seed(cfg.seed)
    net = cfg.task.make_net(cfg, shape, torch.float32).to(world.device)
    batch = made_up_batch(cfg, shape, world.device)
    clock, skipped, arms, found = Clock(world.device), {}, {}, {}
    for name in names:
        if reason := obstacle(name, cfg, world.device, insist):
            skipped[name] = {"not_available_here": reason}
        else:
            arms[name], found[name] = warm_up(name, cfg, net, batch, clock)
    if not arms:
        reasons = [f"{name}: {why['not_available_here']}" for name, why in skipped.items()]
        raise UserError(f"no arm can run here: {'; '.join(reasons)}")
    losses = {name: one["loss"] for name, one in found.items()}
    check_agreement(losses, exact=not clock.cuda)  # CUDA's fp32 matmuls are TF32
    times = run_rounds(arms, found, B, rounds, clock, world.device)
    flop, steps = cfg.task.flop(cfg, net), cfg.eval_steps
    for name, one in found.items():
        one |= figures(name, one, times, flop, steps, B, clock.cuda)
    kilobyte = 1 if sys.platform == "darwin" else 1024
    result = {
        "hardware": hardware_name(world),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
        "batch": B,
        "parameters": sum(p.numel() for p in net.parameters()),
        "flop_per_step": flop,
        "supervision_steps_per_puzzle": steps,
        "seconds": "cpu" if clock.now is time.process_time else "wall",
        "rounds": rounds,
        "matmul_peak": times.peak,
        "host_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte,
        "arms": {name: found.get(name) or skipped[name] for name in names},
    }
    if profiled:
        result["profile"] = profile_step(cfg, net, batch, rounds, clock)
    return result


def hardware_name(world) -> str:
    name = torch.cuda.get_device_name() if world.device.type == "cuda" else cpu_name()
    return f"{world.size} x {name}"


@dataclasses.dataclass
class Times:
    """Per arm one value per round."""

    train: dict[str, list[float]]
    solve: dict[str, list[float]]
    memory: dict[str, list[int]]
    peak: dict[str, float]  # FLOP per second of matmuls, by precision


def run_rounds(arms: dict, found: dict, B: int, rounds: int, clock: Clock, device) -> Times:
    """The arms in turn, and in each round the machine's matmul rate."""
    train, solve, memory = ({name: [] for name in arms} for _ in range(3))
    peak = dict.fromkeys(map(precision, arms), 0.0)
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    for _ in tqdm(range(rounds), desc="rounds", leave=False):
        for name, arm in arms.items():
            train[name].append(clock(arm.train_step))
            memory[name].append(clock.grown)
            solve[name].append(clock(arm.solve_step, B // found[name]["accumulate"]))
        for kind in peak:
            peak[kind] = max(peak[kind], matmul_rate(dtypes[kind], device, clock))
    return Times(train, solve, memory, peak)


def figures(
    name: str, one: dict, times: Times, flop: float, steps: int, B: int, cuda: bool
) -> dict:
    """What was measured of an arm. `one`: what its warm-up showed."""
    step, solved = statistics.median(times.train[name]), statistics.median(times.solve[name])
    first, own_bytes = one.pop("first"), one.pop("own_bytes")
    result = {
        "seconds_per_step": step,
        "flop_per_second": flop / step,
        "share_of_matmul_peak": flop / step / times.peak[precision(name)],
        "seconds_per_puzzle": steps * solved * one["accumulate"] / B,
        "every_step": times.train[name],
    }
    if "reference" in times.train:
        pairs = zip(times.train[name], times.train["reference"])
        result["ratio"] = statistics.median(own / reference for own, reference in pairs)
    if name.rpartition("+")[2] in COMPILE:
        result["compile_seconds"] = first - step - solved
    if cuda:
        result["peak_bytes"] = own_bytes + max(times.memory[name])
    return result


def table(net: str, result: dict) -> str:
    """The measurement as text."""
    lines = [
        f"{net} on {result['hardware']}: batch {result['batch']}, {result['parameters']:,} "
        f"parameters, {result['flop_per_step'] / 1e9:.4g} GFLOP per step, "
        f"{result['supervision_steps_per_puzzle']} supervision steps per puzzle "
        f"({result['seconds']} seconds)",
        f"{'arm':14}{'s/step':>9}{'ratio':>7}{'ms/puzzle':>11}{'GFLOP/s':>9}{'of peak':>9}"
        f"{'compile s':>11}{'pieces':>8}{'GPU GiB':>9}",
    ]
    for name, arm in result["arms"].items():
        if "not_available_here" in arm:
            lines.append(f"{name:14}  not available here: {arm['not_available_here']}")
            continue
        ratio = f"{arm['ratio']:.2f}" if "ratio" in arm else ""
        compiled = f"{arm['compile_seconds']:.0f}" if "compile_seconds" in arm else ""
        memory = f"{arm['peak_bytes'] / 2**30:.1f}" if "peak_bytes" in arm else ""
        lines.append(
            f"{name:14}{arm['seconds_per_step']:9.4g}{ratio:>7}"
            f"{1e3 * arm['seconds_per_puzzle']:11.4g}{arm['flop_per_second'] / 1e9:9.4g}"
            f"{100 * arm['share_of_matmul_peak']:7.0f} %{compiled:>11}{arm['accumulate']:8}"
            f"{memory:>9}"
        )
    peaks = [f"{kind} {rate / 1e9:.4g} GFLOP/s" for kind, rate in result["matmul_peak"].items()]
    memory = f"{result['host_peak_bytes'] / 2**30:.2f} GiB"
    lines.append(f"best matmul: {', '.join(peaks)}; host memory of the whole process: {memory}")
    return "\n".join(lines)


def profile_step(
    cfg: Config, net: nn.Module, batch: dict[str, Tensor], rounds: int, clock: Clock
) -> dict:
    """Where an eager step's time goes: means over rounds, milliseconds and shares by part."""
    arm, found = warm_up("eager", cfg, net, batch, clock)
    unmarked = statistics.mean(clock(arm.train_step) for _ in range(rounds))
    profile = Profile(clock)
    profile.watch_run(arm.run)
    arm.train_step()
    profile.begin()
    whole = sum(clock(arm.train_step) for _ in range(rounds))
    profile.turn_to("other")
    parts = {part: 1e3 * seconds / rounds for part, seconds in profile.seconds.items()}
    total = sum(parts.values())
    return {
        "accumulate": found["accumulate"],
        "ms_per_step": 1e3 * whole / rounds,
        "ms_per_step_without_marks": 1e3 * unmarked,
        "parts": {name: {"ms": ms, "share": ms / total} for name, ms in parts.items()},
    }


def profile_table(found: dict) -> str:
    """A profile as text, the largest part first."""
    with_marks, without = found["ms_per_step"], found["ms_per_step_without_marks"]
    lines = [f"where an eager step goes: {with_marks:.4g} ms ({without:.4g} ms when not watched)"]
    lines.append(f"{'part':24}{'ms/step':>9}{'share':>9}")
    parts = sorted(found["parts"].items(), key=lambda item: -item[1]["ms"])
    for name, part in parts:
        lines.append(f"{name:24}{part['ms']:9.4g}{100 * part['share']:7.1f} %")
    return "\n".join(lines)


# ---------------------------------------------------------------- the command


def command_line(argv: list[str] | None) -> argparse.Namespace:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    add = parser.add_argument
    known = ", ".join(NETS)
    add("--net", default="maze_attention", help=f"an entry (.toml), or one of {known}")
    add("--batch", type=int, default=0, help="slots (default: the entry's, or the net's above)")
    add("--steps", type=int, default=5, help="rounds, one step of every arm each (default 5)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    add("--threads", type=int, default=1, help="CPU threads (default 1)")
    add("--arms", default="", help=f"some of {','.join(ARMS)} (default: all that make sense here)")
    add("--profile", action="store_true", help="also say where the time of an eager step goes")
    add(
        "--out",
        type=Path,
        default=Path("runs/bench.json"),
        help="JSON with a key per net and device (default runs/bench.json)",
    )
    return parser.parse_args(argv)


def config_of(args: argparse.Namespace) -> Config:
    """The configuration to measure. Raises UserError."""
    if args.steps < 1 or args.threads < 1:
        raise UserError("--steps and --threads: expected at least 1")
    if not args.net.endswith(".toml") and args.net not in NETS:
        known = ", ".join(NETS)
        raise UserError(
            f"--net: unknown net '{args.net}', expected an entry (.toml) or one of {known}"
        )
    entry, over = NETS.get(args.net, (args.net, {}))
    path = Path(entry)
    if not entry.endswith(".toml"):
        path = Path(__file__).parent / "sweeps" / f"{entry}.toml"
    own = over.get("train", {}) | {"device": args.device, "threads": args.threads, "init": ""}
    if args.batch:
        own["batch_size"] = args.batch
    return load_config(Config, path, over | {"train": own})


def read_known(out: Path) -> dict:
    """What --out holds already. Raises UserError for a file of another kind."""
    try:
        known = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    except (OSError, ValueError, RecursionError):
        known = None
    if not isinstance(known, dict):
        raise UserError(f"--out {out}: is there and not of bench.py, expected another")
    return known


def run(args: argparse.Namespace) -> None:
    names = args.arms.split(",") if args.arms else ARMS
    wrong = [name for name in names if name not in ARMS]
    if wrong:
        raise UserError(f"--arms: unknown arm '{wrong[0]}', expected some of {','.join(ARMS)}")
    cfg = config_of(args)
    print(f"measuring {', '.join(names)} of {args.net}, {args.steps} rounds: minutes", flush=True)
    known = read_known(args.out)
    with tempfile.TemporaryDirectory() as cache:  # empty: compile seconds as on a fresh machine
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        result = measure(cfg, names, args.steps, bool(args.arms), args.profile)
    print(table(args.net, result))
    if args.profile:
        print(profile_table(result["profile"]))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    known[f"{args.net}, {result['hardware']}"] = result
    write_text(args.out, json.dumps(known, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    try:
        run(command_line(argv))
    except (UserError, json.JSONDecodeError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except TrainingError as e:
        print(f"error: {e}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    quiet_output()
    sys.exit(main())
