"""A tiny recursive model that plans: the recursion of model.py with tokens of time, its y decoded to a plan after every cycle.

    x = encode(start, target)                          # (B, L, D): L = N / hold tokens of time
    u^0 = 0, or with `residual` squash(first(x))
    for k in 1 .. T:                                   # the last grad_cycles of them with gradient
        c = x + what `feedback` sees of u^(k-1)        # the plan itself, or where a rollout of it ends up
        n times:  z = net(z + (y + c))
        y = net(y + z)
        u^k = squash(head(y) [+ what u^(k-1) was squashed from])

`squash` keeps every control within the bound of the plant. A row is solved in one supervision step, so the carry is only the examples.
`SourcePlanner` is the one-token network of the source project (Tiny Recursive Control), for its parameter counts and for comparison.

Shapes: B rows, n states, m controls, N time steps, plans (B, N, m).
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from tasks.control_report import LEAST, closed_loop, figures, finite, report
from layers import ACTIVATIONS, Linear, rope_1d, trunc_normal
from model import Carry, ModelConfig, Net, Shape, Trainable, make_states


@dataclass(frozen=True)
class PlanConfig:
    """How a net plans: the table [plan] of an entry whose task is control."""

    hold: int = 1  # time steps that one token plans: L = N / hold tokens
    residual: bool = (
        False  # each cycle changes the plan of the cycle before rather than making a new one
    )
    feedback: Literal["none", "plan", "error", "both"] = (
        "none"  # what a cycle sees of the plan so far: its controls, the errors along its rollout
    )
    supervise: Literal["final", "all"] = (
        "final"  # imitate with the last plan only, or the mean over the plans of all cycles
    )
    process: Literal["none", "cost", "hinge", "source"] = (
        "none"  # learn from the cost of all plans too; "source" is the form that can be gamed
    )
    process_weight: float = 0.1  # weight of that
    one_token: bool = (
        False  # the source project's net: the whole plan is one token, so attention is a linear map
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.hold < 1:
            yield "hold", "at least 1"
        if self.process_weight < 0:
            yield "process_weight", "at least 0"
        if self.one_token and self.hold != 1:
            yield "hold", "1 with one_token = true, whose token is the whole plan"
        if self.one_token and not self.residual:
            yield "residual", "true with one_token = true"


def impossible(cfg: ModelConfig, plan: PlanConfig, plant: Plant) -> Iterator[tuple[str, str, str]]:
    """What a planner cannot do, as (table, key, what was expected)."""
    if plant.N % plan.hold:
        yield "plan", "hold", f"a divisor of the {plant.N} steps of {plant.name}"
    if cfg.n_sup != 1:
        yield (
            "model",
            "n_sup",
            "1 for data.task = 'control', which solves a row in one supervision step of T cycles",
        )
    if cfg.mixer not in ("attention", "mlp") or (plan.one_token and cfg.mixer != "attention"):
        yield (
            "model",
            "mixer",
            "'attention'"
            + ("" if plan.one_token else " or 'mlp'")
            + " for data.task = 'control', which has no grid",
        )
    if cfg.positions not in ("rope", "none") or (plan.one_token and cfg.positions != "none"):
        yield (
            "model",
            "positions",
            "'none'" + ("" if plan.one_token else " or 'rope'") + " for data.task = 'control'",
        )
    if cfg.prefix:
        yield "model", "prefix", "0 for data.task = 'control'"
    if cfg.init == "random" and plan.one_token:
        yield "model", "init", "'fixed' or 'learned' with plan.one_token = true"
    if plan.feedback in ("plan", "both") and not plan.residual and cfg.T == 1:
        yield (
            "plan",
            "feedback",
            "'none' or 'error' with T = 1 and no residual: there is no earlier plan to see",
        )
    for key in (
        "continue_loss",
        "ponder_weight",
        "complexity_weight",
        "halting",
        "explore",
        "q_from",
        "q_weight",
        "loss",
    ):
        if getattr(cfg, key) != getattr(ModelConfig(), key):
            yield (
                "model",
                key,
                "its default for data.task = 'control', where nothing halts and no cell is classified",
            )
    if plan.process in ("hinge", "source") and not plan.residual and cfg.T == 1:
        yield (
            "plan",
            "process",
            "'none' or 'cost' with T = 1 and no residual: there are no two plans to compare",
        )
    if plan.one_token:
        if cfg.two_nets:
            yield "model", "two_nets", "false with plan.one_token = true"
        if cfg.multiple != 1:
            yield "model", "multiple", "1 with plan.one_token = true, whose widths are not rounded"
        if plan.feedback not in ("plan", "both"):
            yield (
                "plan",
                "feedback",
                "'plan' or 'both' with plan.one_token = true, which always sees its plan",
            )
        if plant.zscore:
            yield (
                "data",
                "plant",
                f"one whose numbers need no scaling with plan.one_token = true, not {plant.name!r}",
            )


class Planner(Trainable):
    """start and target -> plans u^0 .. u^T. `scale`: means and standard deviations of inputs and controls, for plants that need it."""

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
        """The parameters."""
        cfg, D, out = self.cfg, self.cfg.dim, self.plan.hold * self.plant.m
        self.encode = nn.Linear(
            size, self.shape.seq_len * D
        )  # every token has its own view of the start; the bias is its place
        nn.init.normal_(self.encode.weight, std=(size + 1) ** -0.5)
        nn.init.normal_(self.encode.bias, std=(size + 1) ** -0.5)
        self.net = Net(cfg, self.shape)
        self.net_y = Net(cfg, self.shape) if cfg.two_nets else None
        self.head = Linear(D, out)
        self.first = Linear(D, out) if self.plan.residual else None
        self.see_plan = Linear(out, D) if self.plan.feedback in ("plan", "both") else None
        self.see_error = (
            Linear(2 * len(self.plant.Q), D) if self.plan.feedback in ("error", "both") else None
        )
        make_states(self, cfg.init, lambda: trunc_normal(D, std=1.0))

    # ------------------------------------------------------------ the recursion

    def plans(
        self, batch: dict[str, Tensor], states: tuple[Tensor, Tensor], cycles: int = 0
    ) -> list[Tensor]:
        """u^0 .. u^T, each (B, N, m) fp32 within the bound; u^0 is left out where nothing depends on it. `cycles`: other than T."""
        T, angles = cycles or self.cfg.T, self.angles()
        x = self.question(batch)
        y, z = (s.to(x.dtype).expand(x.shape) for s in states)
        first_y, first_z = y, z
        raw = self.guess(x)
        u = self.squash(raw)
        plans = [u] if self.plan.residual else []
        for k in range(T):
            carries = k >= T - self.cfg.grad_cycles
            if (
                carries and k and k == T - self.cfg.grad_cycles and first_y.requires_grad
            ):  # learned y0, z0: see model.TRM.forward
                y, z = y + (first_y - first_y.detach()), z + (first_z - first_z.detach())
            with torch.set_grad_enabled(carries and torch.is_grad_enabled()):
                c = x + self.look(u, batch)
                yc = y + c
                for _ in range(self.cfg.n):
                    z = self.net(z + yc, angles)
                y = (self.net_y or self.net)(y + z, angles)
            raw = self.decode(y, u, raw)
            u = self.squash(raw)
            plans.append(u)
        return plans

    def question(self, batch: dict[str, Tensor]) -> Tensor:
        """x (B, L, D)"""
        start = (batch["inputs"] - self.input_mean) / self.input_std
        return self.encode(start).unflatten(1, (-1, self.cfg.dim)).to(self.compute)

    def guess(self, x: Tensor) -> Tensor:
        """What u^0 is squashed from (B, N, m)."""
        if self.first is None:
            return x.new_zeros(len(x), self.plant.N, self.plant.m, dtype=torch.float32)
        return self.first(x).float().reshape(len(x), self.plant.N, self.plant.m)

    def decode(self, y: Tensor, u: Tensor, raw: Tensor) -> Tensor:
        """What the plan is squashed from, (B, N, m), after a cycle: `raw` and the plan `u` are of the cycle before."""
        new = self.head(y).float().reshape(raw.shape)
        return raw + new if self.plan.residual else new

    def squash(self, raw: Tensor) -> Tensor:
        """Any numbers to controls within the bound: each vector keeps its direction, its length l becomes bound * tanh(l / bound)."""
        bound, u = self.plant.bound, raw * self.control_std + self.control_mean
        if not self.plant.zscore:
            u = bound * u
        if self.plant.m == 1:
            return bound * torch.tanh(u / bound)
        length = (u.square().sum(-1, keepdim=True) + 1e-12).sqrt()
        return u * (bound / length) * torch.tanh(length / bound)

    def look(self, u: Tensor, batch: dict[str, Tensor]) -> Tensor | float:
        """What a cycle sees of the last plan, (B, L, D) or 0. No gradient runs through the rollout."""
        seen = 0.0
        if self.see_plan is not None:
            seen = self.see_plan(
                (u / self.plant.bound).reshape(len(u), self.shape.seq_len, -1).to(self.compute)
            )
        if self.see_error is not None:
            seen = seen + self.see_error(self.errors(u.detach(), batch))
        return seen

    def errors(self, u: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """(B, L, 2 F): the encoded errors of a rollout at the time of each token and at the end, squashed to +-3."""
        states = rollout(self.plant, batch["start"], u)
        e = encode(self.plant, states) - encode(self.plant, batch["target"])[:, None]
        e = e / self.input_std[: e.shape[-1]]
        e = 3 * torch.tanh(e / 3)
        at = e[:, : -1 : self.plan.hold]
        return torch.cat([at, e[:, -1:].expand_as(at)], -1).to(self.compute)

    def angles(self) -> Tensor | None:
        if self.cfg.mixer != "attention" or self.cfg.positions != "rope":
            return None
        return rope_1d(
            self.shape.seq_len, self.cfg.dim // self.cfg.heads, device=self.input_mean.device
        )

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
        B, device = len(batch["inputs"]), batch["inputs"].device
        y, z = (s if s.dim() == 3 else s.expand(B, 1, -1) for s in states or self.first_states(B))
        return Carry(
            y,
            z,
            torch.zeros(B, dtype=torch.long, device=device),
            torch.zeros(B, dtype=torch.bool, device=device),
            batch,
        )

    def step(self, carry: Carry, min_steps: Tensor | None = None) -> tuple[Carry, list[Tensor]]:
        """(the carry, halted; the plans)."""
        plans = self.plans(carry.batch, (carry.y, carry.z))
        return Carry(
            carry.y.detach(),
            carry.z.detach(),
            carry.steps + 1,
            torch.ones_like(carry.halted),
            carry.batch,
        ), plans

    def loss(self, plans: list[Tensor], carry: Carry) -> tuple[Tensor, dict[str, Tensor]]:
        return plan_loss(self.plan, self.plant, plans, carry.batch, self.control_std)


def plan_loss(
    plan: PlanConfig,
    plant: Plant,
    plans: list[Tensor],
    batch: dict[str, Tensor],
    unit: Tensor | float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over rows of the squared error (mean over a plan, controls in units of `unit`) + process_weight * process loss; metric sums.

    process, of the costs J_k of the plans u^k:
    "cost":    mean of log J_k: every plan should be cheap. Nothing is gained by a bad first plan.
    "hinge":   mean of max(0, J_(k+1) / J_k - 1), J_k without gradient: no plan should be worse than the one before.
    "source":  -mean of (J_k - J_(k+1)) / (J_0 + 1e-6), as the source project trains, for the cost it trains through. It telescopes, and a
               costlier first plan lowers it: kept to show that.
    """
    wrong = [(((u - batch["labels"]) / unit) ** 2).mean((1, 2)) for u in plans]  # each (B,)
    imitation = torch.stack(wrong).mean(0) if plan.supervise == "all" else wrong[-1]
    loss = imitation.sum()
    metrics = {"imitation_loss": loss.detach()}
    if plan.process != "none":
        judge = source_process_supervision(plant) if plan.process == "source" else plant
        K, many = (
            len(plans),
            {name: batch[name].repeat(len(plans), 1) for name in ("start", "target")},
        )
        J = plan_cost(judge, many["start"], torch.cat(plans), many["target"]).view(
            K, -1
        )  # (K, B): one rollout for all plans
        if plan.process == "cost":
            process = J.log().mean(0)
        elif plan.process == "hinge":
            process = (J[1:] / J[:-1].detach() - 1).clamp(min=0).mean(0)
        else:
            process = -((J[:-1] - J[1:]) / (J[0] + 1e-6)).mean(0)
        loss = loss + plan.process_weight * process.sum()
        metrics["process_loss"] = process.sum().detach()
    count = torch.zeros((), device=loss.device)  # nothing here is right or wrong
    return loss, {"rows": count + len(plans[-1]), "loss": loss.detach(), **metrics, "count": count}


# ---------------------------------------------------------------- the source project's net


class SourceBlock(nn.Module):
    """One token's block in the source project: attention with biases (a linear map here: with one token softmax is 1), then its MLP; norms with gain."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        D, inner = cfg.dim, int(cfg.dim * cfg.expansion)
        self.attention = nn.MultiheadAttention(D, cfg.heads, batch_first=True)
        self.gated, self.activation = cfg.mlp.endswith("glu"), ACTIVATIONS[cfg.mlp]
        self.up = nn.Linear(D, 2 * inner if self.gated else inner)
        self.down = nn.Linear(inner, D)
        self.norms = nn.ModuleList(affine_norm(cfg.norm, D) for _ in range(2))
        self.pre = cfg.norm_place == "pre"

    def mlp(self, h: Tensor) -> Tensor:
        u = self.up(h)
        if self.gated:
            gate, u = u.chunk(2, -1)
            return self.down(self.activation(gate) * u)
        return self.down(self.activation(u))

    def forward(self, h: Tensor) -> Tensor:
        for f, norm in zip(
            (lambda h: self.attention(h, h, h, need_weights=False)[0], self.mlp), self.norms
        ):
            h = h + f(norm(h)) if self.pre else norm(h + f(h))
        return h


def affine_norm(kind: str, width: int) -> nn.Module:
    return nn.RMSNorm(width, eps=1e-5) if kind == "rms" else nn.LayerNorm(width)


class SourceNet(nn.Module):
    """n_layers blocks; with pre-norm one more norm at the end, without gain, so that the parameter counts are the source's."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.blocks = nn.ModuleList(SourceBlock(cfg) for _ in range(cfg.n_layers))
        self.kind, self.pre = cfg.norm, cfg.norm_place == "pre"

    def forward(self, h: Tensor, angles: None = None) -> Tensor:
        for block in self.blocks:
            h = block(h)
        if self.pre:
            h = (F.rms_norm if self.kind == "rms" else F.layer_norm)(h, h.shape[-1:], eps=1e-5)
        return h


def two_layers(d_in: int, hidden: int, d_out: int, gain: float = 1.0) -> nn.Sequential:
    """Linear, SiLU, LayerNorm, Linear with biases: (d_in + 3) hidden + (hidden + 1) d_out parameters."""
    net = nn.Sequential(
        nn.Linear(d_in, hidden), nn.SiLU(), nn.LayerNorm(hidden), nn.Linear(hidden, d_out)
    )
    for layer in (net[0], net[3]):
        nn.init.xavier_uniform_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return net


class SourcePlanner(Planner):
    """The source project's two-level network: y, z are its z_H, z_L, n and T its L and H cycles, and every switch acts.

    Its error encoder exists here as there; unlike there it is called, with feedback = "both".
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
        ends = [batch["start"], batch["target"], torch.ones_like(batch["start"][:, :1])]
        return self.encoder(torch.cat(ends, -1))[:, None]

    def guess(self, x: Tensor) -> Tensor:
        return self.plant.bound * torch.tanh(self.first(x).view(len(x), self.plant.N, self.plant.m))

    def decode(self, y: Tensor, u: Tensor, raw: Tensor) -> Tensor:
        step = self.head(torch.cat([y[:, 0], u.flatten(1)], -1)).view_as(u)
        return clip(self.plant, u + self.plant.bound / 2 * torch.tanh(step))

    def squash(self, raw: Tensor) -> Tensor:
        return raw  # guess and decode are within the bound

    def look(self, u: Tensor, batch: dict[str, Tensor]) -> Tensor:
        seen = self.see_plan(u.flatten(1))
        if self.plan.feedback == "both":
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
    return (SourcePlanner if plan.one_token else Planner)(cfg, plan, plant, scale, compute)


# ---------------------------------------------------------------- figures


def as_batch(plant: Plant, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a net gets, float32, of rows (see plants.ROWS)."""
    batch = {
        "inputs": inputs(plant, rows["initial_states"], rows["target_states"]),
        "start": rows["initial_states"],
        "target": rows["target_states"],
    }
    return {name: values.astype(np.float32) for name, values in batch.items()}


@torch.no_grad()
def all_plans(net: Planner, x0: np.ndarray, target: np.ndarray, cycles: int = 0) -> np.ndarray:
    """(K, B, N, m) float64: the plans of all cycles, u^0 first where there is one."""
    device = net.input_mean.device
    batch = {
        k: torch.from_numpy(v).to(device)
        for k, v in as_batch(net.plant, {"initial_states": x0, "target_states": target}).items()
    }
    g = torch.Generator(device).manual_seed(0)
    carry = net.refill(None, batch, net.first_states(len(x0), g=g))
    return torch.stack(net.plans(batch, (carry.y, carry.z), cycles)).double().cpu().numpy()


def policy(net: Planner, cycles: int = 0):
    """The net as control_report wants it: (x0, target) -> (B, N, m)."""
    return lambda x0, target: all_plans(net, x0, target, cycles)[-1]


MOST = 1e6  # J / J* of a row counts as this at most: what diverges is infinitely bad, and JSON knows no infinity
REPLAN = (
    10  # steps between plans in the closed loop that chooses checkpoints and decides the ablation
)


def evaluate_plans(net: Planner, rows: dict[str, np.ndarray]) -> dict:
    """The figures by which checkpoints are chosen: closed loop, re-planned every 10 steps (open loop where the target is to be met at step N).

    {"primary": log10(median J / J* - 1), "to_optimum": that median itself, "exact": share of rows within the widest tolerance, "mse" of the open-loop plan, "curve": exact of
    each cycle's plan in open loop, "steps": cycles, "n", "verdict": {"exact" (n,) bool, "ratio": J / J* (n,)}}. Lower primary is better.
    """
    was_training, plant = net.training, net.plant
    net.eval()
    x0, target = rows["initial_states"], rows["target_states"]
    plans = all_plans(net, x0, target)
    if plant.rest:
        states, asked = closed_loop(plant, policy(net), x0, target, REPLAN)
    else:
        states, asked = rollout(plant, x0, plans[-1]), plans[-1]
    with np.errstate(all="ignore"):
        reached = [
            terminal_error(plant, rollout(plant, x0, u), target) < plant.tolerances[-1]
            for u in plans
        ]
        exact = terminal_error(plant, states, target) < plant.tolerances[-1]
        ratio = np.nan_to_num(
            cost(plant, states, asked, target) / np.maximum(rows["optimal_costs"], 1e-12), nan=MOST
        ).clip(max=MOST)
    net.train(was_training)
    mean = {
        "primary": math.log10(max(np.median(ratio) - 1, LEAST)),
        "exact": float(exact.mean()),
        "mse": float(((plans[-1] - rows["control_sequences"]) ** 2).mean()),
        "to_optimum": float(np.median(ratio)),
        "steps": float(net.cfg.T),
    }
    return mean | {
        "n": len(x0),
        "curve": [float(r.mean()) for r in reached],
        "verdict": {"exact": exact, "ratio": ratio},
    }


def full_report(net: Planner, rows: dict[str, np.ndarray], seed: int, beyond: int = 5) -> dict:
    """Everything for summary.json: {"open", "every_1" .. (see control_report.report), "wide", "cycles": [...], "ms_per_plan"}.

    "cycles": for the plan of each cycle, and of `beyond` more than the net was trained for: median J / J*, mse, median error, mean |change|.
    "wide": starts beyond the training range.
    """
    plant, x0, target = net.plant, rows["initial_states"], rows["target_states"]
    net.eval()
    plans, cycles = all_plans(net, x0, target, net.cfg.T + beyond), []
    for k, u in enumerate(plans):
        found = figures(plant, rows, rollout(plant, x0, u), u)
        change = float(np.abs(u - plans[k - 1]).mean()) if k else None
        cycles.append(
            {
                "cycle": k + 1 - net.plan.residual,
                "trained": k < len(plans) - beyond,
                "mse": float(((u - rows["control_sequences"]) ** 2).mean()),
                "to_optimum_median": found["to_optimum_median"],
                "error_median": found["error_median"],
                "change": change,
            }
        )
    out = report(plant, policy(net), rows) | {"cycles": cycles}
    out["wide"] = report(
        plant,
        policy(net),
        generate(plant, min(300, len(x0)), "wide", seed),
        every=(REPLAN,),
        disturbed=REPLAN,
    )
    clock = []
    for _ in range(20):
        began = time.perf_counter()
        all_plans(net, x0[:1], target[:1])
        clock.append(1e3 * (time.perf_counter() - began))
    return finite(out | {"ms_per_plan": float(np.median(clock))})
