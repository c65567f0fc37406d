"""How fast is a training step, and why: time, FLOP, share of the machine's matmul peak, memory, against a textbook step.

    python bench.py --net maze_attention                     one of the nets below, or an entry: --net sweeps/maze_baseline.toml
    python bench.py --net maze_conv --arms eager,compiled    without the reference
    python bench.py --net sudoku_mlp --device cuda           the paper's size

All arms start from the same weights and rows, must agree on the first loss and gradient norm, and run interleaved in one process
(A B C A B C ...); figures are medians, ratios are taken round by round. One training step is forward, backward, optimizer and EMA.
"""

import argparse
import copy
import dataclasses
import json
import math
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import load_config
from data import BOX, UserError
from layers import round_up
from model import TRM, ModelConfig, Shape
from optim import make_ema, make_optimizers, schedule, set_rates
from train import Config, TrainingError, commit, cpu_has_bf16, forward_backward, hardware, make_world, write_atomic

SWEEPS = Path(__file__).parent / "sweeps"
NETS = {  # name: (entry, what differs from it)
    "maze_attention": ("maze_baseline", {"data": {"size": 10}, "model": {"dim": 128}, "train": {"batch_size": 64}}),
    "sudoku_mixer": ("sudoku_mlp", {"model": {"dim": 128}, "train": {"batch_size": 64}}),
    "maze_conv": ("laptop/maze_perfect", {}),
    "sudoku_pool": ("laptop/sudoku_extreme", {}),
    "sudoku_small": ("laptop/sudoku_9x9", {}),
    "maze_baseline": ("maze_baseline", {}),
    "sudoku_mlp": ("sudoku_mlp", {})}
ARMS = ["reference", "eager", "compiled", "bf16", "bf16+compiled"]


# ---------------------------------------------------------------- arithmetic

def net_flops(cfg: ModelConfig, shape: Shape, batch: int) -> float:
    """FLOP of one forward call of the net: two per multiply-add of its matrix products and convolutions, nothing else."""
    D, L = cfg.dim, cfg.prefix + shape.seq_len

    def mlp(width: int, expansion: float) -> int:  # per vector; SwiGLU has three matrices
        inner = round_up(expansion * width * (2 / 3 if cfg.mlp == "swiglu" else 1), cfg.multiple)
        return (3 if cfg.mlp == "swiglu" else 2) * width * inner

    kinds, side = (3 if shape.box_rows else 2), math.isqrt(shape.seq_len)
    per_cell = {"attention": 4 * D * D + 2 * L * D, "conv": 9 * D, "mlp": mlp(L, cfg.position_expansion) * D / L,
                "pool": 2 * kinds * D * D + kinds * side * D * D / L}  # pooled vectors: one per group, `side` groups of a kind
    mixing = sum(per_cell[part] for part in cfg.mixer.split("+"))
    return 2 * batch * L * cfg.n_layers * (mixing + mlp(D, cfg.expansion))


def net_calls(cfg: ModelConfig) -> dict[str, int]:
    """Forward passes of the net that one supervision step costs; a call with gradient counts as three."""
    ahead = cfg.T if cfg.continue_loss else 0
    return {"train": (cfg.T + 2 * cfg.grad_cycles + ahead) * (cfg.n + 1), "solve": cfg.T * (cfg.n + 1)}


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
    """The same step in plain fp32, sharing no code with layers.py: no fused kernels, float64 stablemax, one tensor at a time."""

    def __init__(self, net: TRM, cfg: Config):
        plain = {"norm": "rms", "norm_place": "post", "mlp": "swiglu", "init": "fixed", "two_nets": False, "continue_loss": False,
                 "ponder_weight": 0.0, "complexity_weight": 0.0}
        other = [f"model.{k} = {v!r}" for k in plain if (v := getattr(cfg.model, k)) != plain[k]]
        if other:
            raise NotImplementedError(f"the textbook step has no {', '.join(other)}")
        self.cfg, self.box = cfg, (net.shape.box_rows, net.shape.box_cols)
        self.w = {name: t.detach().clone() for name, t in net.state_dict().items()}
        self.params = [t.requires_grad_() for name, t in self.w.items() if name not in ("y0", "z0")]
        self.ema = [p.detach().clone() for p in self.params]
        tc = cfg.train
        self.optimizer = torch.optim.AdamW(self.params, lr=tc.lr, betas=(tc.beta1, tc.beta2), weight_decay=tc.weight_decay, foreach=False)
        angles = net.angles(torch.empty(1, cfg.model.prefix + net.shape.seq_len, 1, device=net.tokens.device))
        if angles is not None:
            angles = torch.cat([angles, angles], -1)[:, None]  # (L, 1, D/H)
            self.cos, self.sin = angles.cos(), angles.sin()

    def mix(self, h: Tensor, part: str, w: dict[str, Tensor]) -> Tensor:
        B, L, D = h.shape
        if part == "attention":
            heads = self.cfg.model.heads
            q, k, v = F.linear(h, w["qkv.weight"]).view(B, L, 3 * heads, D // heads).split(heads, 2)
            if self.cfg.model.positions.startswith("rope"):
                q, k = turn(q, self.cos, self.sin), turn(k, self.cos, self.sin)
            a = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
            return F.linear(a.transpose(1, 2).reshape(B, L, D), w["out.weight"])
        P = self.cfg.model.prefix
        side = math.isqrt(L - P)
        if part == "conv":
            grid = h[:, P:].transpose(1, 2).reshape(B, D, side, side)
            out = F.conv2d(grid, w["weight"], padding=1, groups=D).flatten(2).transpose(1, 2)
            return torch.cat([torch.zeros_like(h[:, :P]), out], 1)
        u, gate = F.linear(h, w["into.weight"]).chunk(2, -1)  # pool
        m = (u * F.silu(gate)).view(B, side, side, -1, D) / math.sqrt(side)
        m = list(m.unbind(3))
        m[0], m[1] = m[0].sum(2, keepdim=True).expand_as(m[0]), m[1].sum(1, keepdim=True).expand_as(m[1])
        if self.box[0]:
            r, c = self.box
            boxes = m[2].reshape(B, side // r, r, side // c, c, D)
            m[2] = boxes.sum((2, 4), keepdim=True).expand_as(boxes).reshape(B, side, side, D)
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
                    h = rms(h + self.mix(h, part, w))
            at = f"net.blocks.{layer}.mlp."
            h = rms(h + swiglu(h, self.w[at + "up.weight"], self.w[at + "down.weight"]))
        return h

    def forward(self, batch: dict[str, Tensor], y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One supervision step: logits (B, L, V), q_halt (B,), y, z."""
        m, w = self.cfg.model, self.w
        x = w["tokens"][batch["inputs"]]
        if m.prefix:
            puzzle = w["puzzles"][batch["puzzle"]]
            x = torch.cat([F.pad(puzzle, (0, (m.prefix - 1) * m.dim)).view(-1, m.prefix, m.dim), x], 1)
        if m.positions == "learned":
            x = math.sqrt(0.5) * (x + w["places"])
        x = math.sqrt(m.dim) * x
        for cycle in range(m.T):
            with torch.set_grad_enabled(torch.is_grad_enabled() and cycle >= m.T - m.grad_cycles):
                for _ in range(m.n):
                    z = self.net(z + (y + x))
                y = self.net(y + z)
        q = F.linear(y[:, 0] if m.q_from == "first" else y.mean(1), w["q_head.weight"], w["q_head.bias"])
        return F.linear(y, w["head.weight"])[:, m.prefix:], q[:, 0], y, z

    def start(self, batch: dict[str, Tensor]) -> None:
        B, L = batch["inputs"].shape
        size = (B, self.cfg.model.prefix + L, self.cfg.model.dim)
        self.batch, self.y, self.z = batch, self.w["y0"].expand(size), self.w["z0"].expand(size)

    def loss(self, logits: Tensor, q: Tensor, labels: Tensor) -> Tensor:
        if self.cfg.model.loss == "stablemax":
            v = logits.double()
            s = torch.where(v < 0, 1 / (1 - v + 1e-30), v + 1)
            log_p = torch.log(s / s.sum(-1, keepdim=True))
        else:
            log_p = F.log_softmax(logits, -1)
        cells = -log_p.gather(-1, labels[..., None]).squeeze(-1).mean(-1)  # (B,)
        right = (logits.argmax(-1) == labels).all(-1).to(q.dtype)
        return cells.sum() + self.cfg.model.q_weight * F.binary_cross_entropy_with_logits(q, right, reduction="sum")

    def train_step(self) -> tuple[Tensor, Tensor]:
        tc, total, ys, zs = self.cfg.train, 0.0, [], []
        for rows in torch.arange(tc.batch_size).chunk(tc.accumulate):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            batch = {k: v[part] for k, v in self.batch.items()}
            logits, q, y, z = self.forward(batch, self.y[part], self.z[part])
            loss = self.loss(logits, q, batch["labels"]) / tc.batch_size
            loss.backward()
            total, ys, zs = total + loss.detach(), ys + [y.detach()], zs + [z.detach()]
        self.y, self.z = torch.cat(ys), torch.cat(zs)
        norm = nn.utils.clip_grad_norm_(self.params, tc.clip or math.inf, foreach=False)
        self.optimizer.param_groups[0]["lr"] = tc.lr * schedule(tc, 0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for average, p in zip(self.ema, self.params):
            average.mul_(tc.ema).add_(p.detach(), alpha=1 - tc.ema)
        return total, norm

    def solve_step(self) -> None:
        size = self.cfg.train.batch_size // self.cfg.train.accumulate
        with torch.no_grad():
            self.forward({k: v[:size] for k, v in self.batch.items()}, self.y[:size], self.z[:size])


class Ours:
    """The step of train.py, piece by piece."""

    def __init__(self, net: TRM, cfg: Config):
        self.cfg, self.net = cfg, net.train()
        self.params, self.optimizers = list(net.parameters()), make_optimizers(net, cfg.train)
        self.ema = make_ema(net, cfg.train.ema, cfg.train.ema_warmup) if cfg.train.ema else None
        if cfg.train.compile == "on":
            for part in filter(None, (net.net, net.net_y)):
                part.compile(dynamic=False)

    def start(self, batch: dict[str, Tensor]) -> None:
        self.batch, self.carry = batch, self.net.start(batch)

    def train_step(self) -> tuple[Tensor, Tensor]:
        self.carry = self.net.refill(self.carry, self.batch)
        self.carry, metrics = forward_backward(self.net, self.carry, None, self.cfg)
        norm = nn.utils.clip_grad_norm_(self.params, self.cfg.train.clip or math.inf, foreach=True)
        set_rates(self.optimizers, schedule(self.cfg.train, 0))
        for optimizer in self.optimizers:
            optimizer.step()
        for p in self.params:
            p.grad = None
        if self.ema:
            self.ema.update_parameters(self.net)
        return metrics["loss"] / self.cfg.train.batch_size, norm

    def solve_step(self) -> None:
        size = self.cfg.train.batch_size // self.cfg.train.accumulate
        self.net.training = False  # of the whole only, as `step` asks for it: the compiled net need not be compiled again
        with torch.no_grad():
            self.net.step(self.carry if size == self.cfg.train.batch_size else self.carry.map(lambda t: t[:size]))
        self.net.training = True


# ---------------------------------------------------------------- measuring

class Clock:
    """Seconds of a call; on a GPU also the memory it reached. Waits for the device at both ends only.

    With one CPU thread these are CPU seconds, so that other processes on a busy machine count little.
    """

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.now = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
        self.wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)

    def held(self) -> int:
        return torch.cuda.memory_allocated() if self.cuda else 0

    def __call__(self, f) -> float:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        held = self.held()
        self.wait()
        started = self.now()
        self.result = f()
        self.wait()
        seconds = self.now() - started
        self.grown = torch.cuda.max_memory_allocated() - held if self.cuda else 0
        return seconds


def make_arm(name: str, net: TRM, cfg: Config, pieces: int) -> Textbook | Ours:
    words = {"dtype": "bfloat16" if "bf16" in name else "float32", "compile": "on" if "compiled" in name else "off"}
    cfg = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, accumulate=pieces, **words))
    if name == "reference":
        return Textbook(net, cfg)
    net = copy.deepcopy(net)
    net.compute = getattr(torch, words["dtype"])
    return Ours(net, cfg)


def warm_up(name: str, net: TRM, cfg: Config, batch: dict[str, Tensor], clock: Clock) -> tuple[Textbook | Ours, dict]:
    """An arm after its first steps, and what they said. Where the GPU's memory is too small, the batch is worked in more pieces."""
    B, held = cfg.train.batch_size, clock.held()
    for pieces in (n for n in range(cfg.train.accumulate, B + 1) if B % n == 0):
        try:
            arm = make_arm(name, net, cfg, pieces)
            arm.start(batch)
            started = time.perf_counter()
            clock(arm.train_step)
            loss, norm = (float(v) for v in clock.result)
            clock(arm.solve_step)
            first = time.perf_counter() - started
            return arm, {"accumulate": pieces, "loss": loss, "grad_norm": norm, "first_seconds": first, "own_bytes": clock.held() - held}
        except torch.OutOfMemoryError:
            arm = None
            torch.cuda.empty_cache()
    raise UserError(f"not even one row of {name} fits into this GPU's memory")


def check_agreement(found: dict[str, dict], exact: bool) -> None:
    """All arms must have computed the same thing: fp32 to rounding, lower precision to what it can."""
    (first, one), *others = found.items()
    for name, other in others:
        loss, norm = (1e-4, 1e-3) if exact and "bf16" not in first + name else (5e-2, math.inf)
        for key, tolerance in (("loss", loss), ("grad_norm", norm)):
            if not math.isclose(one[key], other[key], rel_tol=tolerance):
                raise SystemExit(f"error: {first} and {name} compute different things: {key} {one[key]:.6g} and {other[key]:.6g}")


def measure(cfg: Config, names: list[str], rounds: int, insist: bool) -> dict:
    """Everything about one net on one device, as it goes to JSON. insist: run an arm even where the hardware is against it."""
    world = make_world(cfg.train)
    side, task = cfg.data.size, cfg.data.task
    shape = Shape(side * side, *((6, 1, 0, 0) if task == "maze" else (side + 2, 1, *BOX[side])))
    B, clock, skipped, arms, found = cfg.train.batch_size, Clock(world.device), {}, {}, {}
    torch.manual_seed(cfg.seed)
    net = TRM(cfg.model, shape).to(world.device)
    batch = {k: torch.randint(1, shape.vocab_size, (B, shape.seq_len)).to(world.device) for k in ("inputs", "labels")}
    batch["puzzle"] = torch.zeros(B, dtype=torch.long, device=world.device)
    for name in names:
        try:
            if "bf16" in name and world.device.type == "cpu" and not cpu_has_bf16() and not insist:
                raise NotImplementedError("this CPU has no bf16 units; name the arm in --arms to run it all the same")
            arms[name], found[name] = warm_up(name, net, cfg, batch, clock)
        except NotImplementedError as e:
            skipped[name] = {"not_available_here": str(e)}
    check_agreement(found, exact=not clock.cuda)  # CUDA's fp32 matmuls are TF32

    train, solve, memory, peak = ({name: [] for name in arms} for _ in range(4))
    square = torch.randn(*[8192 if clock.cuda else 2048] * 2, device=world.device)
    for _ in range(rounds):
        for name, arm in arms.items():
            train[name].append(clock(arm.train_step))
            memory[name].append(clock.grown)
            solve[name].append(clock(arm.solve_step))
            a = square.bfloat16() if "bf16" in name else square
            peak[name].append(2 * len(a)**3 / min(clock(lambda: a @ a) for _ in range(5 if clock.cuda else 1)))

    call, calls, steps = net_flops(cfg.model, shape, B), net_calls(cfg.model), cfg.train.eval_steps or cfg.model.n_sup
    for name, one in found.items():
        step, best = statistics.median(train[name]), max(max(peak[k]) for k in arms if ("bf16" in k) == ("bf16" in name))
        first, own = one.pop("first_seconds"), one.pop("own_bytes")
        one |= {"seconds_per_step": step, "flop_per_second": calls["train"] * call / step, "matmul_peak": best,
                "share_of_peak": calls["train"] * call / step / best,
                "seconds_per_puzzle": steps * statistics.median(solve[name]) * one["accumulate"] / B,
                "compile_seconds": max(0.0, first - step - statistics.median(solve[name])) if "compiled" in name else 0.0, "all_seconds": train[name]}
        if "reference" in arms:
            one["ratio"] = statistics.median(a / b for a, b in zip(train[name], train["reference"]))
        if clock.cuda:
            one["peak_bytes"] = own + max(memory[name])
    return {"device": torch.cuda.get_device_name() if clock.cuda else hardware(world), "torch": torch.__version__, "commit": commit(),
            "parameters": sum(p.numel() for p in net.parameters()), "batch": B, "rounds": rounds, "clock": clock.now.__name__, "gflop_per_net_call": call / 1e9,
            "gflop_per_step": calls["train"] * call / 1e9, "net_calls_per_step": calls["train"], "supervision_steps_per_puzzle": steps,
            "process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
            "arms": {name: found.get(name) or skipped[name] for name in names}}


def table(net: str, result: dict) -> str:
    lines = [f"{net}: batch {result['batch']}, {result['parameters']:,} parameters, {result['gflop_per_step']:.4g} GFLOP per step "
             f"| {result['device']}, {'CPU seconds' if result['clock'] == 'process_time' else 'wall seconds'}",
             f"{'arm':14} {'s/step':>8} {'ratio':>6} {'ms/puzzle':>10} {'GFLOP/s':>9} {'of peak':>8} {'compile s':>10} {'pieces':>7} {'memory':>9}  first loss"]
    for name, a in result["arms"].items():
        if "not_available_here" in a:
            lines.append(f"{name:14} not available here: {a['not_available_here']}")
            continue
        ratio = f"{a['ratio']:.2f}" if "ratio" in a else ""
        memory = f"{a['peak_bytes'] / 2**30:.2f} GiB" if "peak_bytes" in a else ""
        lines.append(f"{name:14} {a['seconds_per_step']:8.4g} {ratio:>6} {1e3 * a['seconds_per_puzzle']:10.4g} {a['flop_per_second'] / 1e9:9.4g} "
                     f"{100 * a['share_of_peak']:6.0f} % {a['compile_seconds']:10.3g} {a['accumulate']:7} {memory:>9}  {a['loss']:.6f}")
    peaks = {f"{'bf16' if 'bf16' in k else 'fp32'} {a['matmul_peak'] / 1e9:.4g}" for k, a in result["arms"].items() if "matmul_peak" in a}
    return "\n".join(lines + [f"matmul peak, GFLOP/s: {', '.join(sorted(peaks))}; whole process, all arms: {result['process_peak_bytes'] / 2**30:.2f} GiB of host memory"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="maze_attention", help=f"an entry (.toml), or one of {', '.join(NETS)} (default maze_attention)")
    parser.add_argument("--batch", type=int, default=0, help="slots (default: as in the entry, 64 for the two small twins of the paper's nets)")
    parser.add_argument("--steps", type=int, default=5, help="rounds measured, each one step of every arm (default 5)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--arms", default="", help=f"some of {','.join(ARMS)} (default: what makes sense here)")
    parser.add_argument("--out", type=Path, default=Path("results/bench.json"), help="JSON, one key per net and device (default results/bench.json)")
    args = parser.parse_args(argv)
    cache = tempfile.TemporaryDirectory()  # an empty one: compile seconds as on a fresh machine
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache.name
    try:
        entry, overrides = NETS.get(args.net, (args.net, {}))
        train = overrides.get("train", {}) | {"device": args.device, "threads": args.threads} | ({"batch_size": args.batch} if args.batch else {})
        path = Path(entry) if entry.endswith(".toml") else SWEEPS / f"{entry}.toml"
        cfg = load_config(Config, path, overrides | {"train": train})
        names = args.arms.split(",") if args.arms else ARMS
        if wrong := [name for name in names if name not in ARMS]:
            raise UserError(f"--arms: unknown {wrong[0]!r}, expected some of {','.join(ARMS)}")
        if args.steps < 1:
            raise UserError(f"--steps = {args.steps}, expected at least 1")
        result = measure(cfg, names, args.steps, insist=bool(args.arms))
        print(table(args.net, result))
        known = json.loads(args.out.read_text()) if args.out.exists() else {}
        known[f"{args.net} {result['device'].split(',')[0]}"] = result
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.out, lambda f: f.write((json.dumps(known, indent=1) + "\n").encode()))
    except (UserError, TrainingError, json.JSONDecodeError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
