"""How good a policy is at a control task, and the policies that every net is compared with. numpy; torch only for the MLP.

    policy(x0 (B, n), target (B, n)) -> plan (B, N, m), numpy or torch: all controls at once, seen from x0

Open loop the whole plan is carried out. In closed loop the policy is asked again every so many steps, and of each plan only the steps until
the next are used:

- Where the target is a place to stay (`plant.rest`), every plan is again for N steps from the state measured now, a receding horizon. That is
  how a planner of fixed horizon is used; the run itself still ends after N steps, so J is comparable with J* and with open loop.
- Where the target is to be met at step N (double integrator, rocket), a plan made at step t must be for the N - t steps left. Such a
  policy takes this number as a third argument, policy(x, target, left) -> (B, left or more, m). A planner that cannot has no closed loop here.

Figures that compare: J / J*, J* of the best plan known within the bound; J / J(expert), of the labels. The primary one is
log10(median(J / J*) - 1): 0 means twice the least cost, -2 one per cent above it.
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

LEAST = 1e-9  # J / J* - 1 below this counts as this: J* is known to about as much


# --- one run of a policy --------------------------------------------------------------------------------------------


def plan_of(
    plant: Plant, policy: Callable, x: np.ndarray, target: np.ndarray, left: int = 0
) -> np.ndarray:
    """(B, N, m), or (B, left, m), float64: what the policy wants to do now, not clipped. `left`: steps left, asked for if not 0."""
    plan = policy(x, target, left) if left else policy(x, target)
    plan = np.asarray(plan.detach().cpu() if hasattr(plan, "detach") else plan, np.float64)
    steps = left or plant.N
    if (
        plan.ndim != 3
        or plan.shape[0] != len(x)
        or plan.shape[1] < steps
        or plan.shape[2] != plant.m
    ):
        raise UserError(
            f"a policy for {plant.name} returned a plan of shape {plan.shape}, expected {(len(x), steps, plant.m)}"
        )
    return plan[:, :steps]


def closed_loop(
    plant: Plant,
    policy: Callable,
    x0: np.ndarray,
    target: np.ndarray,
    every: int,
    scale=1.0,
    noise: np.ndarray | None = None,
):
    """States (B, N + 1, n) and controls asked for (B, N, m) when the policy plans anew every `every` steps."""
    states, asked = [x0], []
    for t in range(0, plant.N, every):
        steps = min(every, plant.N - t)
        asked.append(
            plan_of(plant, policy, states[-1], target, 0 if plant.rest else plant.N - t)[:, :steps]
        )
        now = rollout(
            plant, states[-1], asked[-1], scale, None if noise is None else noise[:, t : t + steps]
        )
        states += list(now[:, 1:].swapaxes(0, 1))
    return np.stack(states, 1), np.concatenate(asked, 1)


def figures(
    plant: Plant, rows: dict[str, np.ndarray], states: np.ndarray, asked: np.ndarray
) -> dict[str, float]:
    """What became of `rows` (see plants.ROWS): flat, all floats. `asked`: controls before the plant clipped them.

    error (encoded states: m, rad, ..., mixed) mean, median, largest and in each dimension; success@tolerance, cost and its ratios (median, 95th
    percentile), primary; shares of controls above the bound and at it, of rows beyond the state limits, of rows that diverged; effort
    sum u^2 and smoothness sum (du)^2 as carried out. A row that diverged is a failure of infinite cost, and left out of the means.
    """
    target, u = rows["target_states"], clip(plant, asked)
    alive = np.isfinite(states).all((1, 2)) & np.isfinite(asked).all((1, 2))
    with np.errstate(all="ignore"):
        error = np.where(alive, terminal_error(plant, states, target), np.inf)
        J = np.where(alive, cost(plant, states, asked, target), np.inf)
        each = np.abs(encode(plant, states[:, -1]) - encode(plant, target))
        beyond = ((states < np.array(plant.limits[0])) | (states > np.array(plant.limits[1]))).any(
            (1, 2)
        )
    size = np.linalg.norm(asked, axis=-1)

    def mean(values: np.ndarray) -> float:
        return values[alive].mean() if alive.any() else np.inf

    out = {"error_mean": mean(error), "error_median": np.median(error), "error_max": error.max()}
    out |= {f"error_{i}": mean(each[:, i]) for i, q in enumerate(plant.Qf) if q}
    out |= {f"success@{tolerance:g}": (error < tolerance).mean() for tolerance in plant.tolerances}
    out |= {"cost_mean": mean(J), "cost_median": np.median(J)}
    for name, key in ("expert", "costs"), ("optimum", "optimal_costs"):
        if key in rows:
            ratio = J / np.maximum(rows[key], 1e-12)
            out |= {
                f"to_{name}_median": np.median(ratio),
                f"to_{name}_p95": np.quantile(ratio, 0.95, method="nearest"),
            }
    if "to_optimum_median" in out:
        out["primary"] = math.log10(max(out["to_optimum_median"] - 1, LEAST))
    out |= {
        "above_bound": (size > plant.bound * (1 + 1e-6)).mean(),
        "saturated": (size > plant.bound * 0.999).mean(),
    }
    out |= {"beyond_limits": (beyond | ~alive).mean(), "diverged": 1 - alive.mean()}
    out |= {
        "effort": mean((u**2).sum((1, 2))),
        "smoothness": mean((np.diff(u, axis=1) ** 2).sum((1, 2))),
    }
    return {name: float(value) for name, value in out.items()}


def report(
    plant: Plant,
    policy: Callable,
    rows: dict[str, np.ndarray],
    every: tuple = (1, 5, 10, 25),
    disturbed: int = 10,
    noise: float = 0.05,
    mismatch: float = 0.2,
    takes_left: bool = False,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """{"open": figures with "mse" (of the clipped plan), "every_1": figures, ...}, and both open loop and re-planned every `disturbed` steps:
    "..._noise", Gaussian force of `noise` times the bound on top of every control; "..._less" and "..._more", the plant's own
    parameter (mu, mass) off by `mismatch`.

    Disturbed costs are compared with the undisturbed J*. Starts beyond the training range are other rows: split "wide". Without
    `takes_left`, plants without `rest` have open loop only.
    """
    x0, target = rows["initial_states"], rows["target_states"]
    force = rng(seed, 77).normal(size=(len(x0), plant.N, plant.m)) * noise * plant.bound
    kinds = {
        "": {},
        "_noise": {"noise": force},
        "_less": {"scale": 1 - mismatch},
        "_more": {"scale": 1 + mismatch},
    }
    plan = plan_of(plant, policy, x0, target)
    out = {
        f"open{kind}": figures(plant, rows, rollout(plant, x0, plan, **how), plan)
        for kind, how in kinds.items()
    }
    out["open"]["mse"] = float(((clip(plant, plan) - rows["control_sequences"]) ** 2).mean())
    if plant.rest or takes_left:
        runs = [(step, "") for step in every] + [(disturbed, kind) for kind in kinds if kind]
        out |= {
            f"every_{step}{kind}": figures(
                plant, rows, *closed_loop(plant, policy, x0, target, step, **kinds[kind])
            )
            for step, kind in runs
        }
    return out


def finite(value):
    """Nested figures for JSON, which has no NaN and no infinity: None."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- policies to compare with ---------------------------------------------------------------------------------------


def zero(plant: Plant) -> Callable:
    """Does nothing."""
    return lambda x0, target, left=0: np.zeros((len(x0), left or plant.N, plant.m))


def expert(plant: Plant, name: str = "") -> Callable:
    """An expert (a key of EXPERTS; the plant's own) that solves the problem anew whenever it is asked."""
    return lambda x0, target, left=0: EXPERTS[name or plant.expert](plant, x0, target, left)


def polynomial(plant: Plant, train: dict[str, np.ndarray], degree: int) -> Callable:
    """Least squares on all monomials of the inputs up to `degree`; degree 1 is plain least squares."""
    x = inputs(plant, train["initial_states"], train["target_states"])
    middle, half = (x.max(0) + x.min(0)) / 2, np.maximum(np.ptp(x, 0) / 2, 1e-8)
    powers = [
        c for d in range(degree + 1) for c in combinations_with_replacement(range(x.shape[1]), d)
    ]

    def monomials(x: np.ndarray) -> np.ndarray:
        x = (x - middle) / half
        return np.stack([x[:, list(c)].prod(1) for c in powers], 1)

    plans = train["control_sequences"]
    weights = np.linalg.lstsq(monomials(x), plans.reshape(len(plans), -1), rcond=None)[0]
    return lambda x0, target: (monomials(inputs(plant, x0, target)) @ weights).reshape(
        -1, plant.N, plant.m
    )


def nearest(plant: Plant, train: dict[str, np.ndarray]) -> Callable:
    """The label of the training row whose inputs are nearest."""
    x = inputs(plant, train["initial_states"], train["target_states"])
    unit = np.maximum(x.std(0), 1e-8)

    def policy(x0, target):
        away = ((inputs(plant, x0, target) / unit)[:, None] - (x / unit)[None]) ** 2
        return train["control_sequences"][away.sum(-1).argmin(1)]

    return policy


def mlp_parameters(plant: Plant, width: int, layers: int = 2) -> int:
    """Weights and biases of the MLP below with `layers` hidden layers."""
    first = inputs(plant, *(np.zeros((1, plant.n)),) * 2).shape[1]
    return (
        (first + 1) * width + (layers - 1) * (width + 1) * width + (width + 1) * plant.N * plant.m
    )


def mlp_width(plant: Plant, parameters: int, layers: int = 2) -> int:
    """The width whose MLP has `parameters` weights, or the nearest number."""
    widths = range(1, 4096)
    return min(widths, key=lambda width: abs(mlp_parameters(plant, width, layers) - parameters))


def mlp(
    plant: Plant,
    train: dict[str, np.ndarray],
    width: int,
    layers: int = 2,
    steps: int = 3000,
    batch: int = 64,
    lr: float = 3e-3,
    seed: int = 0,
) -> Callable:
    """A plain network fitted to the labels: SiLU layers, AdamW with a cosine, mean squared error. For m = 1 a tanh keeps the bound."""
    import torch
    from torch import nn

    scale = {
        name: [torch.tensor(v, dtype=torch.float32) for v in pair]
        for name, pair in scaling(plant, train).items()
    }
    x = torch.tensor(
        inputs(plant, train["initial_states"], train["target_states"]), dtype=torch.float32
    )
    y = torch.tensor(train["control_sequences"], dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = [x.shape[1]] + [width] * layers
        hidden = [layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), nn.SiLU())]
        net = nn.Sequential(*hidden, nn.Linear(width, plant.N * plant.m))

    def forward(x):
        u = net((x - scale["inputs"][0]) / scale["inputs"][1]).view(-1, plant.N, plant.m)
        u = u * scale["controls"][1] + scale["controls"][0]
        return plant.bound * torch.tanh(u / plant.bound) if plant.m == 1 else u

    optimizer = torch.optim.AdamW(net.parameters(), lr, weight_decay=1e-5, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, lr / 1000)
    rows = torch.from_numpy(rng(seed, 78).integers(len(x), size=(steps, batch)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two make so small a net slower
    for row in rows:
        loss = (((forward(x[row]) - y[row]) / scale["controls"][1]) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    torch.set_num_threads(threads)

    def policy(x0, target):
        with torch.no_grad():
            return (
                forward(torch.tensor(inputs(plant, x0, target), dtype=torch.float32))
                .double()
                .numpy()
            )

    return policy
