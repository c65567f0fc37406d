"""A tiny recursive model that plans: the recursion of model.py, with tokens of time.

Its y is decoded to a plan after every cycle.

    x = encode(start, target)                       # (B, L, D): L = N / hold tokens of time
    u^0 = 0, or with `residual` squash(first(x))
    for k in 1 .. T:                                # the last grad_cycles of them with gradient
        c = x + what `feedback` sees of u^(k-1)     # the plan itself, or where a rollout ends up
        n times:  z = net(z + (y + c))
        y = net(y + z)
        u^k = squash(head(y) [+ what u^(k-1) was squashed from])

`squash` keeps every control within the bound of the plant. A row is solved in one supervision
step, so the carry is only the examples. SourcePlanner is the one-token network of the source
project (Tiny Recursive Control), for its parameter counts and for comparison.

Shapes: B rows, n states, m controls, N time steps, F encoded states, plans (B, N, m).
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers import ACTIVATIONS, Linear, rope_1d, trunc_normal
from model import Carry, ModelConfig, Net, Shape, Trainable, make_states
from tasks.control_report import (
    REPLAN,
    closed_loop,
    figures,
    finite,
    plan_of,
    primary,
    report,
    squared_error,
)
from tasks.plants import (
    Plant,
    clip,
    cost,
    encode,
    generate,
    inputs,
    plan_cost,
    rollout,
    source_process_supervision,
    terminal_error,
)


@dataclass(frozen=True)
class PlanConfig:
    """How a net plans: the table [plan] of an entry whose task is control."""

    hold: int = 1  # time steps that one token plans: L = N / hold tokens
    # each cycle changes the plan of the cycle before rather than making a new one
    residual: bool = False
    # what a cycle sees of the plan so far: its controls, the errors along its rollout
    feedback: Literal["none", "plan", "error", "both"] = "none"
    # imitate with the last plan only, or the mean over the plans of all cycles
    supervise: Literal["final", "all"] = "final"
    # learn from the cost of all plans too; "source" is the form that can be gamed
    process: Literal["none", "cost", "hinge", "source"] = "none"
    process_weight: float = 0.1  # weight of that
    # the source project's net: the whole plan is one token, so attention is a linear map
    one_token: bool = False

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.hold < 1:
            yield "hold", "at least 1"
        if self.process_weight < 0:
            yield "process_weight", "at least 0"
        if self.one_token and self.hold != 1:
            yield "hold", "1 with one_token = true, whose token is the whole plan"
        if self.one_token and not self.residual:
            yield "residual", "true with one_token = true"

    @property
    def sees_plan(self) -> bool:
        return self.feedback in ("plan", "both")

    @property
    def sees_error(self) -> bool:
        return self.feedback in ("error", "both")


# Keys of [model] that mean nothing here: nothing halts and no cell is classified.
UNUSED = (
    "continue_loss",
    "ponder_weight",
    "complexity_weight",
    "halting",
    "explore",
    "q_from",
    "q_weight",
    "loss",
)


def impossible(cfg: ModelConfig, plan: PlanConfig, plant: Plant) -> Iterator[tuple[str, str, str]]:
    """What a planner cannot do, as (table, key, what was expected)."""
    here = "for data.task = 'control'"
    if plant.N % plan.hold:
        yield "plan", "hold", f"a divisor of the {plant.N} steps of {plant.name}"
    if cfg.n_sup != 1:
        yield "model", "n_sup", f"1 {here}, which solves a row in one supervision step of T cycles"
    if cfg.prefix:
        yield "model", "prefix", f"0 {here}"
    for key in UNUSED:
        if getattr(cfg, key) != getattr(ModelConfig(), key):
            why = "where nothing halts and no cell is classified"
            yield "model", key, f"its default {here}, {why}"
    if cfg.T == 1 and not plan.residual:  # there is one plan only
        why = "with T = 1 and no residual"
        if plan.sees_plan:
            yield "plan", "feedback", f"'none' or 'error' {why}: there is no earlier plan to see"
        if plan.process in ("hinge", "source"):
            yield "plan", "process", f"'none' or 'cost' {why}: there are no two plans to compare"
    if plan.one_token:
        yield from impossible_for_one_token(cfg, plan, plant)
    else:
        if cfg.mixer not in ("attention", "mlp"):
            yield "model", "mixer", f"'attention' or 'mlp' {here}, which has no grid"
        if cfg.positions not in ("rope", "none"):
            yield "model", "positions", f"'none' or 'rope' {here}"


def impossible_for_one_token(
    cfg: ModelConfig, plan: PlanConfig, plant: Plant
) -> Iterator[tuple[str, str, str]]:
    """What the source project's net cannot do besides."""
    here = "with plan.one_token = true"
    if cfg.mixer != "attention":
        yield "model", "mixer", f"'attention' {here}, for data.task = 'control'"
    if cfg.positions != "none":
        yield "model", "positions", f"'none' {here}, for data.task = 'control'"
    if cfg.init == "random":
        yield "model", "init", f"'fixed' or 'learned' {here}"
    if cfg.two_nets:
        yield "model", "two_nets", f"false {here}"
    if cfg.multiple != 1:
        yield "model", "multiple", f"1 {here}, whose widths are not rounded"
    if not plan.sees_plan:
        yield "plan", "feedback", f"'plan' or 'both' {here}, which always sees its plan"
    if plant.zscore:
        why = f"one whose numbers need no scaling {here}"
        yield "data", "plant", f"{why}, not {plant.name!r}"


# ---------------------------------------------------------------- the net


class Planner(Trainable):
    """Start and target -> plans u^0 .. u^T.

    scale: mean and standard deviation of the inputs, then of the controls, for plants that need
    it; empty: no scaling.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        plan: PlanConfig,
        plant: Plant,
        scale: tuple = (),
        compute: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.cfg, self.plan, self.plant, self.compute = cfg, plan, plant, compute
        nothing = np.zeros((1, plant.n))
        size = inputs(plant, nothing, nothing).shape[1]
        self.shape = Shape(plant.N // plan.hold, 0)
        scale = scale or ((0.0,) * size, (1.0,) * size, (0.0,) * plant.m, (1.0,) * plant.m)
        for name, values in zip(("input_mean", "input_std", "control_mean", "control_std"), scale):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))
        self.build(size)

    def build(self, size: int) -> None:
        """The parameters. size: numbers that say start and target."""
        cfg, plan, D = self.cfg, self.plan, self.cfg.dim
        # Every token has its own view of the start; the bias is its place.
        self.encode = nn.Linear(size, self.shape.seq_len * D)
        nn.init.normal_(self.encode.weight, std=(size + 1) ** -0.5)
        nn.init.normal_(self.encode.bias, std=(size + 1) ** -0.5)
        self.net = Net(cfg, self.shape)
        self.net_y = Net(cfg, self.shape) if cfg.two_nets else None
        token = plan.hold * self.plant.m  # controls of one token
        self.head = Linear(D, token)
        self.first = Linear(D, token) if plan.residual else None
        self.see_plan = Linear(token, D) if plan.sees_plan else None
        self.see_error = Linear(2 * len(self.plant.Q), D) if plan.sees_error else None
        make_states(self, cfg.init, lambda: trunc_normal(D, std=1.0))

    # ------------------------------------------------------------ the recursion

    def plans(
        self, batch: dict[str, Tensor], states: tuple[Tensor, Tensor], cycles: int = 0
    ) -> list[Tensor]:
        """u^0 .. u^T, each (B, N, m) fp32, within the bound.

        u^0 is left out where nothing depends on it. states: y and z before the first cycle,
        broadcastable to (B, L, D). cycles: how many; 0: T.
        """
        T = cycles or self.cfg.T
        angles = self.angles()
        x = self.question(batch)
        first_y, first_z = (s.to(x.dtype).expand(x.shape) for s in states)
        y, z = first_y, first_z
        raw = self.guess(x)
        u = self.squash(raw)
        plans = [u] if self.plan.residual else []
        free = T - self.cfg.grad_cycles  # cycles without gradient
        for k in range(T):
            if free and k == free and first_y.requires_grad:
                # Learned y0, z0 act through the cycles before: hand them the gradient, same bits.
                y = y + (first_y - first_y.detach())
                z = z + (first_z - first_z.detach())
            gradient = k >= free and torch.is_grad_enabled()
            with torch.set_grad_enabled(gradient):
                c = x + self.see(u, batch)
                y, z = self.recurse(c, y, z, angles)
            raw = self.decode(y, u, raw)
            u = self.squash(raw)
            plans.append(u)
        return plans

    def recurse(
        self, c: Tensor, y: Tensor, z: Tensor, angles: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Think n times, answer once: (y, z)."""
        yc = y + c
        for _ in range(self.cfg.n):
            z = self.net(z + yc, angles)
        return (self.net_y or self.net)(y + z, angles), z

    def question(self, batch: dict[str, Tensor]) -> Tensor:
        """x (B, L, D)"""
        start = (batch["inputs"] - self.input_mean) / self.input_std
        return self.encode(start).unflatten(1, (-1, self.cfg.dim)).to(self.compute)

    def guess(self, x: Tensor) -> Tensor:
        """What u^0 is squashed from (B, N, m)."""
        shape = len(x), self.plant.N, self.plant.m
        if self.first is None:
            return x.new_zeros(shape, dtype=torch.float32)
        return self.first(x).float().reshape(shape)

    def decode(self, y: Tensor, u: Tensor, raw: Tensor) -> Tensor:
        """What the plan of a cycle is squashed from (B, N, m).

        u: the plan of the cycle before; raw: what that was squashed from.
        """
        new = self.head(y).float().reshape(raw.shape)
        return raw + new if self.plan.residual else new

    def squash(self, raw: Tensor) -> Tensor:
        """Any numbers to controls within the bound.

        Each vector keeps its direction; its length l becomes bound * tanh(l / bound).
        """
        bound = self.plant.bound
        u = raw * self.control_std + self.control_mean
        if not self.plant.zscore:
            u = bound * u
        if self.plant.m == 1:
            return bound * torch.tanh(u / bound)
        length = (u.square().sum(-1, keepdim=True) + 1e-12).sqrt()
        return u * (bound / length) * torch.tanh(length / bound)

    def see(self, u: Tensor, batch: dict[str, Tensor]) -> Tensor | float:
        """What a cycle sees of the last plan: (B, L, D), or 0.

        No gradient runs through the rollout.
        """
        seen = 0.0
        if self.see_plan is not None:
            tokens = (u / self.plant.bound).reshape(len(u), self.shape.seq_len, -1)
            seen = self.see_plan(tokens.to(self.compute))
        if self.see_error is not None:
            seen = seen + self.see_error(self.errors(u.detach(), batch))
        return seen

    def errors(self, u: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """(B, L, 2 F): the encoded errors of a rollout, at the time of each token and at the end.

        They are squashed to +-3.
        """
        states = rollout(self.plant, batch["start"], u)
        e = encode(self.plant, states) - encode(self.plant, batch["target"])[:, None]
        e = e / self.input_std[: e.shape[-1]]
        e = 3 * torch.tanh(e / 3)
        now, end = e[:, : -1 : self.plan.hold], e[:, -1:]
        return torch.cat([now, end.expand_as(now)], -1).to(self.compute)

    def angles(self) -> Tensor | None:
        """Rotary angles of the tokens of time."""
        cfg = self.cfg
        if cfg.mixer != "attention" or cfg.positions != "rope":
            return None
        return rope_1d(self.shape.seq_len, cfg.dim // cfg.heads, device=self.input_mean.device)

    # ------------------------------------------------------------ what train.py asks of a net

    def first_states(
        self, B: int, L: int = 0, g: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """y and z before the first cycle; init = "random" draws them from g."""
        if self.cfg.init != "random":
            return self.y0, self.z0
        device = self.input_mean.device
        noise = torch.randn(2, B, self.shape.seq_len, self.cfg.dim, generator=g, device=device)
        return noise[0], noise[1]

    def start(self, batch: dict[str, Tensor]) -> Carry:
        """Every refill takes the whole new batch."""
        return self.refill(None, batch)

    def refill(
        self,
        carry: Carry | None,
        batch: dict[str, Tensor],
        states: tuple[Tensor, Tensor] | None = None,
    ) -> Carry:
        """A carry of the new batch. The old one is not read."""
        B, device = len(batch["inputs"]), batch["inputs"].device
        y, z = states or self.first_states(B)
        if y.dim() < 3:  # one vector for all rows and tokens
            y, z = y.expand(B, 1, -1), z.expand(B, 1, -1)
        steps = torch.zeros(B, dtype=torch.long, device=device)
        halted = torch.zeros(B, dtype=torch.bool, device=device)
        return Carry(y, z, steps, halted, batch)

    def step(self, carry: Carry, min_steps: Tensor | None = None) -> tuple[Carry, list[Tensor]]:
        """(the carry, halted; the plans)."""
        plans = self.plans(carry.batch, (carry.y, carry.z))
        halted = torch.ones_like(carry.halted)
        y, z = carry.y.detach(), carry.z.detach()
        return Carry(y, z, carry.steps + 1, halted, carry.batch), plans

    def loss(self, plans: list[Tensor], carry: Carry) -> tuple[Tensor, dict[str, Tensor]]:
        return plan_loss(self.plan, self.plant, plans, carry.batch, self.control_std)


# ---------------------------------------------------------------- the loss


def plan_loss(
    plan: PlanConfig,
    plant: Plant,
    plans: list[Tensor],
    batch: dict[str, Tensor],
    unit: Tensor | float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, metric sums), both summed over the rows.

    The loss of a row: squared error from the labels (mean over a plan, controls in units of
    `unit`) + process_weight * process loss.
    """
    errors = [(((u - batch["labels"]) / unit) ** 2).mean((1, 2)) for u in plans]  # each (B,)
    imitation = torch.stack(errors).mean(0) if plan.supervise == "all" else errors[-1]
    loss = imitation.sum()
    metrics = {"imitation_loss": loss.detach()}
    if plan.process != "none":
        process = process_loss(plan.process, plant, plans, batch).sum()
        loss = loss + plan.process_weight * process
        metrics["process_loss"] = process.detach()
    count = torch.zeros((), device=loss.device)  # nothing here is right or wrong
    rows = count + len(plans[-1])
    return loss, {"rows": rows, "loss": loss.detach(), **metrics, "count": count}


def process_loss(kind: str, plant: Plant, plans: list[Tensor], batch: dict[str, Tensor]) -> Tensor:
    """A loss (B,) of the costs J_k of all plans u^k.

    "cost"     mean of log J_k: every plan should be cheap. Nothing is gained by a bad first plan.
    "hinge"    mean of max(0, J_(k+1) / J_k - 1), J_k without gradient: no plan should be worse
               than the one before.
    "source"   -mean of (J_k - J_(k+1)) / (J_0 + 1e-6), as the source project trains, with the
               cost that it trains through. The sum telescopes, and a costlier first plan lowers
               it: kept to show that.
    """
    K = len(plans)
    start, target = batch["start"].repeat(K, 1), batch["target"].repeat(K, 1)
    if kind == "source":
        plant = source_process_supervision(plant)
    J = plan_cost(plant, start, torch.cat(plans), target)  # one rollout for all plans
    J = J.view(K, -1)  # (K, B)
    if kind == "cost":
        return J.log().mean(0)
    if kind == "hinge":
        return (J[1:] / J[:-1].detach() - 1).clamp(min=0).mean(0)
    return -((J[:-1] - J[1:]) / (J[0] + 1e-6)).mean(0)


# ---------------------------------------------------------------- the source project's net


class SourceBlock(nn.Module):
    """One token's block in the source project: attention with biases, then an MLP.

    With one token softmax is 1, so attention is a linear map. Norms have a gain.
    """

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        D, inner = cfg.dim, int(cfg.dim * cfg.expansion)
        self.attention = nn.MultiheadAttention(D, cfg.heads, batch_first=True)
        self.gated, self.activation = cfg.mlp.endswith("glu"), ACTIVATIONS[cfg.mlp]
        self.up = nn.Linear(D, 2 * inner if self.gated else inner)
        self.down = nn.Linear(inner, D)
        self.norms = nn.ModuleList(affine_norm(cfg.norm, D) for _ in range(2))
        self.pre = cfg.norm_place == "pre"

    def attend(self, h: Tensor) -> Tensor:
        return self.attention(h, h, h, need_weights=False)[0]

    def mlp(self, h: Tensor) -> Tensor:
        u = self.up(h)
        if self.gated:
            gate, u = u.chunk(2, -1)
            return self.down(self.activation(gate) * u)
        return self.down(self.activation(u))

    def forward(self, h: Tensor) -> Tensor:
        for part, norm in zip((self.attend, self.mlp), self.norms):
            h = h + part(norm(h)) if self.pre else norm(h + part(h))
        return h


def affine_norm(kind: str, width: int) -> nn.Module:
    """A norm with gain."""
    return nn.RMSNorm(width, eps=1e-5) if kind == "rms" else nn.LayerNorm(width)


class SourceNet(nn.Module):
    """n_layers blocks; with pre-norm one more norm at the end.

    That one has no gain, so that the parameter counts are the source's.
    """

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.blocks = nn.ModuleList(SourceBlock(cfg) for _ in range(cfg.n_layers))
        self.kind, self.pre = cfg.norm, cfg.norm_place == "pre"

    def forward(self, h: Tensor, angles: None = None) -> Tensor:
        for block in self.blocks:
            h = block(h)
        if self.pre:
            norm = F.rms_norm if self.kind == "rms" else F.layer_norm
            h = norm(h, h.shape[-1:], eps=1e-5)
        return h


def two_layers(d_in: int, hidden: int, d_out: int, gain: float = 1.0) -> nn.Sequential:
    """Linear, SiLU, LayerNorm, Linear with biases.

    (d_in + 3) hidden + (hidden + 1) d_out parameters.
    """
    net = nn.Sequential(
        nn.Linear(d_in, hidden), nn.SiLU(), nn.LayerNorm(hidden), nn.Linear(hidden, d_out)
    )
    for layer in (net[0], net[3]):
        nn.init.xavier_uniform_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return net


class SourcePlanner(Planner):
    """The source project's two-level network.

    y, z are its z_H, z_L; n and T are its L and H cycles; every switch acts. Its error encoder
    exists here as there. Unlike there, it is called, with feedback = "both".
    """

    def build(self, size: int) -> None:
        cfg, plant, D, h = self.cfg, self.plant, self.cfg.dim, 2 * self.cfg.dim
        whole = plant.N * plant.m
        self.shape = Shape(1, 0)
        self.encoder = two_layers(2 * plant.n + 1, h, D)
        self.net, self.net_y = SourceNet(cfg), None
        self.first = two_layers(D, h, whole, 0.1)
        self.head = two_layers(D + whole, h, whole, 0.01)
        self.see_plan = nn.Linear(whole, D)
        self.see_error = nn.Linear(plant.n, D)
        self.error_encoder = two_layers(plant.n, h // 2, D)
        make_states(self, cfg.init, lambda: 0.02 * torch.randn(D))

    def question(self, batch: dict[str, Tensor]) -> Tensor:
        """x (B, 1, D)"""
        ends = [batch["start"], batch["target"], torch.ones_like(batch["start"][:, :1])]
        return self.encoder(torch.cat(ends, -1))[:, None]

    def guess(self, x: Tensor) -> Tensor:
        """u^0 itself (B, N, m), within the bound."""
        raw = self.first(x).view(len(x), self.plant.N, self.plant.m)
        return self.plant.bound * torch.tanh(raw)

    def decode(self, y: Tensor, u: Tensor, raw: Tensor) -> Tensor:
        """The plan itself (B, N, m), within the bound."""
        change = self.head(torch.cat([y[:, 0], u.flatten(1)], -1)).view_as(u)
        return clip(self.plant, u + self.plant.bound / 2 * torch.tanh(change))

    def squash(self, raw: Tensor) -> Tensor:
        return raw

    def see(self, u: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """What a cycle sees of the last plan (B, 1, D)."""
        seen = self.see_plan(u.flatten(1))
        if self.plan.sees_error:
            e = rollout(self.plant, batch["start"], u.detach())[:, -1] - batch["target"]
            seen = seen + self.see_error(e) + self.error_encoder(e)
        return seen[:, None]


def make_planner(
    cfg: ModelConfig,
    plan: PlanConfig,
    plant: Plant,
    scale: tuple = (),
    compute: torch.dtype = torch.float32,
) -> Planner:
    """The net that the configuration asks for."""
    cls = SourcePlanner if plan.one_token else Planner
    return cls(cfg, plan, plant, scale, compute)


# ---------------------------------------------------------------- plans of a trained net


def as_batch(plant: Plant, x0: np.ndarray, target: np.ndarray) -> dict[str, Tensor]:
    """What a net gets, float32."""
    batch = {"inputs": inputs(plant, x0, target), "start": x0, "target": target}
    return {name: torch.from_numpy(v.astype(np.float32)) for name, v in batch.items()}


@torch.no_grad()
def all_plans(net: Planner, x0: np.ndarray, target: np.ndarray, cycles: int = 0) -> np.ndarray:
    """The plans of all cycles (K, B, N, m) float64, u^0 first where there is one."""
    device = net.input_mean.device
    rows = as_batch(net.plant, x0, target)
    batch = {name: v.to(device) for name, v in rows.items()}
    carry = net.refill(None, batch, net.states_of(rows["inputs"].numpy(), 0))
    plans = net.plans(batch, (carry.y, carry.z), cycles)
    return torch.stack(plans).cpu().numpy().astype(np.float64)  # MPS has no float64


def policy(net: Planner) -> Callable:
    """The net as control_report wants it: (x0, target) -> (B, N, m)."""
    return lambda x0, target: all_plans(net, x0, target)[-1]


# J / J* of a row counts as this at most: what diverges is infinitely bad, but JSON has no infinity.
MOST = 1e6


def drive(
    net: Planner, x0: np.ndarray, target: np.ndarray, plan: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """States (B, N + 1, n) and controls asked for (B, N, m) as a net is used.

    In closed loop, re-planned every REPLAN steps. Where the target is to be met at step N: in
    open loop, by its `plan`.
    """
    if net.plant.rest:
        return closed_loop(net.plant, policy(net), x0, target, REPLAN)
    return rollout(net.plant, x0, plan), plan


def evaluate_plans(net: Planner, rows: dict[str, np.ndarray]) -> dict:
    """The figures by which checkpoints are chosen, of the net as `drive` uses it.

    primary       log10(median J / J* - 1); lower is better
    exact         share of rows whose error is within the widest tolerance
    mse           of the open-loop plan
    to_optimum    median J / J*
    steps         cycles
    n             rows
    curve         exact of each cycle's plan, in open loop
    verdict       {"exact": (n,) bool, "ratio": J / J* (n,)}
    """
    was_training, plant = net.training, net.plant
    net.eval()
    x0, target = rows["initial_states"], rows["target_states"]
    plans = all_plans(net, x0, target)
    states, asked = drive(net, x0, target, plans[-1])
    net.train(was_training)

    def reached(states: np.ndarray) -> np.ndarray:
        return terminal_error(plant, states, target) < plant.tolerances[-1]

    with np.errstate(all="ignore"):
        curve = [float(reached(rollout(plant, x0, plan)).mean()) for plan in plans]
        exact = reached(states)
        ratio = cost(plant, states, asked, target) / np.maximum(rows["optimal_costs"], 1e-12)
        ratio = np.nan_to_num(ratio, nan=MOST).clip(max=MOST)
    median = np.median(ratio)
    return {
        "primary": primary(median),
        "exact": float(exact.mean()),
        "mse": squared_error(plans[-1], rows),
        "to_optimum": float(median),
        "steps": float(net.cfg.T),
        "n": len(x0),
        "curve": curve,
        "verdict": {"exact": exact, "ratio": ratio},
    }


def full_report(
    net: Planner, rows: dict[str, np.ndarray], train: dict[str, np.ndarray], seed: int
) -> dict:
    """Everything that summary.json says besides, of the test rows but where it says otherwise.

    "open", "every_1", ...    see control_report.report
    "train_mse"               as "mse" of "open", of as many training rows
    "cycles"                  see cycle_report
    "wide"                    the same report for starts beyond the training range
    "ms_per_plan"             time to plan one row
    """
    net.eval()
    found = report(net.plant, policy(net), rows)
    some = {key: values[: len(rows["costs"])] for key, values in train.items()}
    plan = plan_of(net.plant, policy(net), some["initial_states"], some["target_states"])
    found["train_mse"] = squared_error(clip(net.plant, plan), some)
    found["cycles"] = cycle_report(net, rows)
    wide = generate(net.plant, min(300, len(rows["costs"])), "wide", seed)
    found["wide"] = report(net.plant, policy(net), wide, every=(REPLAN,), disturbed=REPLAN)
    found["ms_per_plan"] = milliseconds(net, rows["initial_states"][:1], rows["target_states"][:1])
    return finite(found)


def cycle_report(net: Planner, rows: dict[str, np.ndarray], beyond: int = 5) -> list[dict]:
    """Open-loop figures of the plan of each cycle, and of `beyond` cycles more than trained.

    "change": the mean |change| from the plan before.
    """
    x0, target = rows["initial_states"], rows["target_states"]
    plans = all_plans(net, x0, target, net.cfg.T + beyond)
    cycles = []
    for k, plan in enumerate(plans):
        found = figures(net.plant, rows, rollout(net.plant, x0, plan), plan)
        change = float(np.abs(plan - plans[k - 1]).mean()) if k else None
        cycles.append(
            {
                "cycle": k + 1 - net.plan.residual,
                "trained": k < len(plans) - beyond,
                "mse": squared_error(plan, rows),
                "to_optimum_median": found["to_optimum_median"],
                "error_median": found["error_median"],
                "change": change,
            }
        )
    return cycles


def milliseconds(net: Planner, x0: np.ndarray, target: np.ndarray) -> float:
    """Median time of twenty plans."""
    times = []
    for _ in range(20):
        began = time.perf_counter()
        all_plans(net, x0, target)
        times.append(1e3 * (time.perf_counter() - began))
    return float(np.median(times))
