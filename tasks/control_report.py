"""How good a policy is at a control task, and the policies that every net is compared with.

A policy is a function: policy(x0 (B, n), target (B, n)) -> plan (B, N, m), numpy or torch, all
controls at once, seen from x0. numpy only; torch enters in `mlp`.

In open loop the whole plan is carried out. In closed loop the policy is asked again every so many
steps, and of each plan only the steps until the next one are used:

- Where the target is a place to stay (`plant.rest`), every plan is again for N steps, from the
  state measured now: a receding horizon. The run still ends after N steps, so J is comparable
  with J* and with open loop.
- Where the target is to be met at step N (double integrator, rocket), a plan made at step t must
  be for the N - t steps left. Such a policy takes this number as a third argument,
  policy(x, target, left) -> (B, left or more, m). A policy that cannot has no closed loop here.

Figures that compare: J / J*, with J* of the best plan known within the bound, and J / J(expert),
of the labels. The primary figure is log10(median(J / J*) - 1): 0 is twice the least cost, -2 is
one per cent above it.
"""

import math
from collections.abc import Callable
from itertools import combinations_with_replacement

import numpy as np

from config import UserError
from tasks.base import rng
from tasks.plants import (
    EXPERTS,
    Plant,
    clip,
    cost,
    encode,
    inputs,
    rollout,
    scaling,
    terminal_error,
)

# Steps between plans in the closed loop that chooses checkpoints and decides the ablation.
REPLAN = 10
LEAST = 1e-9  # J / J* - 1 below this counts as this: J* is known to about as much
NOISE = 0.05  # standard deviation of the force that disturbs, in units of the bound
MISMATCH = 0.2  # how much the plant's own parameter (mu, mass) is off, as a share
FORCE, BATCHES = 77, 78  # streams of random numbers

# ---------------------------------------------------------------- one run of a policy


def plan_of(
    plant: Plant, policy: Callable, x: np.ndarray, target: np.ndarray, left: int = 0
) -> np.ndarray:
    """What the policy wants to do now, not clipped: (B, N, m) float64, or (B, left, m).

    left: how many steps are left; 0: the policy is not told. Raises UserError for a plan of
    another shape.
    """
    plan = policy(x, target, left) if left else policy(x, target)
    if hasattr(plan, "detach"):
        plan = plan.detach().cpu()
    plan = np.asarray(plan, np.float64)
    steps = left or plant.N
    B, M, m = plan.shape if plan.ndim == 3 else (0, 0, 0)
    if B != len(x) or M < steps or m != plant.m:
        raise UserError(
            f"a policy for {plant.name} returned a plan of shape {plan.shape}, "
            f"expected {(len(x), steps, plant.m)}"
        )
    return plan[:, :steps]


def closed_loop(
    plant: Plant,
    policy: Callable,
    x0: np.ndarray,
    target: np.ndarray,
    every: int,
    scale: float = 1.0,
    noise: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """States (B, N + 1, n) and controls asked for (B, N, m).

    The policy plans anew every `every` steps. scale, noise: see plants.rollout.
    """
    states, asked = [x0], []
    for t in range(0, plant.N, every):
        until = min(t + every, plant.N)
        left = 0 if plant.rest else plant.N - t
        plan = plan_of(plant, policy, states[-1], target, left)[:, : until - t]
        force = None if noise is None else noise[:, t:until]
        new = rollout(plant, states[-1], plan, scale, force)[:, 1:]
        states += list(new.swapaxes(0, 1))
        asked.append(plan)
    return np.stack(states, 1), np.concatenate(asked, 1)


# ---------------------------------------------------------------- figures


def figures(
    plant: Plant, rows: dict[str, np.ndarray], states: np.ndarray, asked: np.ndarray
) -> dict[str, float]:
    """What became of `rows` (see plants.ROWS). asked: the controls before the plant clipped them.

    error_mean, error_median, error_max    at the end, of encoded states (m, rad, ... mixed)
    error_0, error_1, ...                  the mean in each dimension that counts
    success@TOLERANCE                      share of rows whose error is below it
    cost_mean, cost_median                 J
    to_expert_..., to_optimum_...          J / J(expert) and J / J*: median, 95th percentile
    primary                                log10(median(J / J*) - 1)
    above_bound, saturated                 shares of controls above the bound, and at it
    beyond_limits, diverged                shares of rows
    effort, smoothness                     sum u^2 and sum (du)^2, as carried out

    A row that diverged is a failure of infinite cost, and left out of the means.
    """
    target, u = rows["target_states"], clip(plant, asked)
    alive = np.isfinite(states).all((1, 2)) & np.isfinite(asked).all((1, 2))
    with np.errstate(all="ignore"):
        error = np.where(alive, terminal_error(plant, states, target), np.inf)
        J = np.where(alive, cost(plant, states, asked, target), np.inf)
        each = np.abs(encode(plant, states[:, -1]) - encode(plant, target))
        low, high = np.array(plant.limits[0]), np.array(plant.limits[1])
        beyond = ((states < low) | (states > high)).any((1, 2))
    size = np.linalg.norm(asked, axis=-1)

    def mean(values: np.ndarray) -> float:
        return values[alive].mean() if alive.any() else np.inf

    found = {"error_mean": mean(error), "error_median": np.median(error), "error_max": error.max()}
    for i, weight in enumerate(plant.Qf):
        if weight:
            found[f"error_{i}"] = mean(each[:, i])
    for tolerance in plant.tolerances:
        found[f"success@{tolerance:g}"] = (error < tolerance).mean()
    found |= {"cost_mean": mean(J), "cost_median": np.median(J)}
    if "costs" in rows:
        found |= cost_ratio("to_expert", J, rows["costs"])
    if "optimal_costs" in rows:
        found |= cost_ratio("to_optimum", J, rows["optimal_costs"])
        found["primary"] = primary(found["to_optimum_median"])
    found |= {
        "above_bound": (size > plant.bound * (1 + 1e-6)).mean(),
        "saturated": (size > plant.bound * 0.999).mean(),
        "beyond_limits": (beyond | ~alive).mean(),
        "diverged": 1 - alive.mean(),
        "effort": mean((u**2).sum((1, 2))),
        "smoothness": mean((np.diff(u, axis=1) ** 2).sum((1, 2))),
    }
    return {name: float(value) for name, value in found.items()}


def cost_ratio(name: str, J: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Median and 95th percentile of J over another cost."""
    ratio = J / np.maximum(other, 1e-12)
    return {
        f"{name}_median": np.median(ratio),
        f"{name}_p95": np.quantile(ratio, 0.95, method="nearest"),
    }


def primary(ratio: float) -> float:
    """The primary figure of a median J / J*. Lower is better."""
    return math.log10(max(ratio - 1, LEAST))


def squared_error(plan: np.ndarray, rows: dict[str, np.ndarray]) -> float:
    """Mean squared difference from the labels."""
    return float(((plan - rows["control_sequences"]) ** 2).mean())


def report(
    plant: Plant,
    policy: Callable,
    rows: dict[str, np.ndarray],
    every: tuple = (1, 5, 10, 25),
    disturbed: int = REPLAN,
    takes_left: bool = False,
) -> dict[str, dict[str, float]]:
    """Figures of a policy in open loop and in closed loops, by name.

    "open"             open loop, with "mse" of the clipped plan besides
    "every_1", ...     re-planned every so many steps, for each of `every`
    "..._noise"        with a random force on top of every control
    "..._less"         the plant's own parameter (mu, mass) is smaller than it should be
    "..._more"         and larger

    The disturbed ones are for open loop and for re-planning every `disturbed` steps; their costs
    are compared with the undisturbed J*. Without `takes_left`, plants without `rest` have open
    loop only.
    """
    x0, target = rows["initial_states"], rows["target_states"]
    force = rng(0, FORCE).normal(size=(len(x0), plant.N, plant.m)) * NOISE * plant.bound
    disturbances = {
        "_noise": {"noise": force},
        "_less": {"scale": 1 - MISMATCH},
        "_more": {"scale": 1 + MISMATCH},
    }
    plan = plan_of(plant, policy, x0, target)

    def open_loop(**how) -> dict[str, float]:
        return figures(plant, rows, rollout(plant, x0, plan, **how), plan)

    def replanned(steps: int, **how) -> dict[str, float]:
        return figures(plant, rows, *closed_loop(plant, policy, x0, target, steps, **how))

    found = {"open": open_loop()}
    for kind, how in disturbances.items():
        found[f"open{kind}"] = open_loop(**how)
    found["open"]["mse"] = squared_error(clip(plant, plan), rows)
    if plant.rest or takes_left:
        for steps in every:
            found[f"every_{steps}"] = replanned(steps)
        for kind, how in disturbances.items():
            found[f"every_{disturbed}{kind}"] = replanned(disturbed, **how)
    return found


def finite(value):
    """Nested figures for JSON, which has no NaN and no infinity: None."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# ---------------------------------------------------------------- policies to compare with


def zero(plant: Plant) -> Callable:
    """Does nothing."""
    return lambda x0, target, left=0: np.zeros((len(x0), left or plant.N, plant.m))


def expert(plant: Plant, name: str = "") -> Callable:
    """An expert (a key of EXPERTS; the plant's own), who solves the problem anew when asked."""
    solve = EXPERTS[name or plant.expert]
    return lambda x0, target, left=0: solve(plant, x0, target, left)


def polynomial(plant: Plant, train: dict[str, np.ndarray], degree: int) -> Callable:
    """Least squares on all monomials of the inputs up to `degree`; 1 is plain least squares."""
    x = inputs(plant, train["initial_states"], train["target_states"])
    middle = (x.max(0) + x.min(0)) / 2
    half = np.maximum(np.ptp(x, 0) / 2, 1e-8)
    columns = range(x.shape[1])
    powers = []  # x0 x0 x2 is (0, 0, 2)
    for d in range(degree + 1):
        powers += combinations_with_replacement(columns, d)

    def monomials(x: np.ndarray) -> np.ndarray:
        x = (x - middle) / half
        return np.stack([x[:, list(power)].prod(1) for power in powers], 1)

    plans = train["control_sequences"]
    weights = np.linalg.lstsq(monomials(x), plans.reshape(len(plans), -1), rcond=None)[0]

    def policy(x0, target):
        plan = monomials(inputs(plant, x0, target)) @ weights
        return plan.reshape(-1, plant.N, plant.m)

    return policy


def nearest(plant: Plant, train: dict[str, np.ndarray]) -> Callable:
    """The label of the training row whose inputs are nearest."""
    x = inputs(plant, train["initial_states"], train["target_states"])
    unit = np.maximum(x.std(0), 1e-8)

    def policy(x0, target):
        away = ((inputs(plant, x0, target) / unit)[:, None] - (x / unit)[None]) ** 2
        return train["control_sequences"][away.sum(-1).argmin(1)]

    return policy


def mlp_parameters(plant: Plant, width: int) -> int:
    """Weights and biases of the MLP below, which has two hidden layers."""
    nothing = np.zeros((1, plant.n))
    first = (inputs(plant, nothing, nothing).shape[1] + 1) * width
    second = (width + 1) * width
    last = (width + 1) * plant.N * plant.m
    return first + second + last


def mlp_width(plant: Plant, parameters: int) -> int:
    """The width whose MLP has `parameters` weights, or the nearest number."""
    widths = range(1, 4096)
    return min(widths, key=lambda width: abs(mlp_parameters(plant, width) - parameters))


def mlp(
    plant: Plant, train: dict[str, np.ndarray], width: int, steps: int = 3000, seed: int = 0
) -> Callable:
    """A plain network fitted to the labels: two SiLU layers, AdamW with a cosine, squared error.

    For m = 1 a tanh keeps the bound. Leaves torch's random state and threads as they were.
    """
    import torch
    from torch import nn

    def tensor(values: np.ndarray):
        return torch.tensor(values, dtype=torch.float32)

    scale = scaling(plant, train)
    x_mean, x_std = map(tensor, scale["inputs"])
    u_mean, u_std = map(tensor, scale["controls"])
    x = tensor(inputs(plant, train["initial_states"], train["target_states"]))
    y = tensor(train["control_sequences"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(x.shape[1], width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, plant.N * plant.m),
        )

    def forward(x):
        u = net((x - x_mean) / x_std).view(-1, plant.N, plant.m)
        u = u * u_std + u_mean
        return plant.bound * torch.tanh(u / plant.bound) if plant.m == 1 else u

    lr, batch = 3e-3, 64
    optimizer = torch.optim.AdamW(net.parameters(), lr, weight_decay=1e-5, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, lr / 1000)
    batches = torch.from_numpy(rng(seed, BATCHES).integers(len(x), size=(steps, batch)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two make so small a net slower
    for rows in batches:
        loss = (((forward(x[rows]) - y[rows]) / u_std) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    torch.set_num_threads(threads)

    @torch.no_grad()
    def policy(x0, target):
        return forward(tensor(inputs(plant, x0, target))).double().numpy()

    return policy
