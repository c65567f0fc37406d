"""Control tasks as arrays: plants, experts, and rows to imitate. numpy only; plants and costs also take torch tensors, with gradient.

A plan is a sequence of N controls u, each held for dt seconds. Everything is vectorised over rows: x0 and target (B, n), plan (B, N, m),
states (B, N + 1, n). Every plant clips what it is given to |u| <= bound (Euclidean norm): the limit of expert, model and plant alike.

    double_integrator    x = (position m, velocity m/s), u = acceleration; flies by a target with a velocity of its own at step N
    van_der_pol          x1' = x2, x2' = mu (1 - x1^2) x2 - x1 + u with mu = 1; to the origin, which is unstable
    van_der_pol_mu       the same, every row with its own mu in [0.5, 2], which is a third, constant state
    pendulum             swing-up: theta = 0 is upright, u too weak to lift it directly; nets see (sin, cos, theta')
    rocket_standin       powered descent on Mars by least acceleration. A stand-in for the fuel-optimal data set of the source project

The source project is Tiny Recursive Control; what is here only for comparison with it has `source` in its name.
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from config import UserError
from tasks.base import rng

G0, ISP, MARS = 9.81, 200.7, -3.71  # m/s^2, s, m/s^2


def library(x):
    """The module, numpy or torch, that calculates with x."""
    if isinstance(x, np.ndarray):
        return np
    import torch

    return torch


def _like(values, x):
    """Constants as an array or tensor that goes with x."""
    return np.asarray(values) if isinstance(x, np.ndarray) else x.new_tensor(values)


# --- plants ---------------------------------------------------------------------------------------------------------


def step_double_integrator(x, u, dt, scale):
    """Exact for a held control. `scale`: the mass, 1 = nominal."""
    p, v, a = x[..., 0], x[..., 1], u[..., 0] / scale
    return library(x).stack([p + v * dt + a * dt**2 / 2, v + a * dt], -1)


def _rk4(rate: Callable, x, dt):
    a = rate(x)
    b = rate(x + dt / 2 * a)
    c = rate(x + dt / 2 * b)
    return x + dt / 6 * (a + 2 * b + 2 * c + rate(x + dt * c))


def step_van_der_pol(x, u, dt, scale):
    """RK4 for a held control. `scale`: of mu, which is 1 or the third state."""
    xp, mu = library(x), x[..., 2] if x.shape[-1] == 3 else 1.0

    def rate(x):
        speed = x[..., 1]
        force = scale * mu * (1 - x[..., 0] ** 2) * speed - x[..., 0] + u[..., 0]
        return xp.stack([speed, force] + [0 * speed] * (x.shape[-1] - 2), -1)

    return _rk4(rate, x, dt)


def step_pendulum(x, u, dt, scale):
    """RK4 for a held torque; length 1 m, mass `scale` kg, friction 0.1 per s; theta is not wrapped."""
    xp = library(x)

    def rate(x):
        return xp.stack(
            [x[..., 1], 9.81 * xp.sin(x[..., 0]) - 0.1 * x[..., 1] + u[..., 0] / scale], -1
        )

    return _rk4(rate, x, dt)


def step_rocket(x, u, dt, scale):
    """x = (r in m, v in m/s, mass in kg), u = thrust in N at the start of the step. `scale`: of the mass that the thrust accelerates.

    The engine throttles as the mass burns, so that the acceleration u / mass is held; then the step is exact (the source holds the thrust).
    """
    xp = library(x)
    r, v, mass = x[..., 0:3], x[..., 3:6], x[..., 6:7]
    dt = _column(dt)
    a = u / (mass * _column(scale))
    total = a + _like([0.0, 0.0, MARS], x)
    burnt = xp.exp(-(((a**2).sum(-1)[..., None] + 1e-24) ** 0.5) * dt / (ISP * G0))
    return xp.concatenate([r + v * dt + total * dt**2 / 2, v + total * dt, mass * burnt], -1)


def _column(value):
    """A number as it is, one number per row as a column."""
    return value[..., None] if np.ndim(value) else value


@dataclass(frozen=True)
class Plant:
    """J = sum over t < N of e_t' Q e_t + R |u_t|^2, plus e_N' Qf e_N, where e = encode(x) - encode(target); Q and Qf are diagonals."""

    name: str
    step: Callable  # (x (..., n), u (..., m), dt, scale) -> (..., n); scale: a parameter as a multiple of what it should be
    n: int  # states
    m: int  # controls
    N: int  # steps
    dt: float  # seconds
    bound: float  # |u| <= bound
    Q: tuple  # of encoded states
    R: float
    Qf: tuple  # of encoded states; where it is 0, an error does not count
    start: tuple  # (lowest, highest) start, uniform between
    goal: tuple  # (lowest, highest) target, uniform between
    tolerances: tuple  # of the terminal error, for success
    limits: tuple  # (lowest, highest) state: beyond is a violation, which nothing prevents
    expert: str  # who makes the labels: a key of EXPERTS
    rest: bool = True  # the target is a place to stay; otherwise to be at after N steps
    angles: tuple = ()  # states that are angles in radians
    zscore: bool = False  # nets should see and make numbers scaled by the training rows (`scaling`)


INF = float("inf")
DOUBLE_INTEGRATOR = Plant(  # its cost asks for what its expert does: least effort to the target
    "double_integrator", step_double_integrator, n=2, m=1, N=15, dt=0.33, bound=4.0, Q=(0.0, 0.0), R=1.0, Qf=(1e3, 1e3),
    start=((-2, -2), (2, 2)), goal=((-2, -2), (2, 2)), tolerances=(0.02, 0.05, 0.1, 0.2), limits=((-10, -10), (10, 10)),
    expert="minimum_norm", rest=False)  # fmt: skip
VAN_DER_POL = Plant(
    "van_der_pol", step_van_der_pol, n=2, m=1, N=100, dt=0.05, bound=2.0, Q=(10.0, 5.0), R=0.1, Qf=(200.0, 100.0),
    start=((-2, -2), (2, 2)), goal=((0, 0), (0, 0)), tolerances=(0.02, 0.05, 0.1, 0.2), limits=((-5, -5), (5, 5)), expert="optimum")  # fmt: skip
VAN_DER_POL_MU = replace(
    VAN_DER_POL, name="van_der_pol_mu", n=3, Q=(10.0, 5.0, 0.0), Qf=(200.0, 100.0, 0.0), start=((-2, -2, 0.5), (2, 2, 2)),
    goal=((0, 0, 1), (0, 0, 1)), limits=((-5, -5, -INF), (5, 5, INF)))  # fmt: skip
PENDULUM = Plant(
    "pendulum", step_pendulum, n=2, m=1, N=100, dt=0.05, bound=4.0, Q=(10.0, 10.0, 1.0), R=0.1, Qf=(200.0, 200.0, 20.0),
    start=((-np.pi, -1), (np.pi, 1)), goal=((0, 0), (0, 0)), tolerances=(0.02, 0.05, 0.1, 0.2), limits=((-INF, -INF), (INF, INF)),
    expert="optimum", angles=(0,))  # fmt: skip
ROCKET_STANDIN = Plant(  # no target for the mass: the source's gave away how much fuel the label burns; more than 1 m under ground is a violation
    "rocket_standin", step_rocket, n=7, m=3, N=50, dt=1.2, bound=15e3, Q=(0.0,) * 7, R=1e-8, Qf=(1.0,) * 3 + (10.0,) * 3 + (0.0,),
    start=((-1000, -1000, 1500, -20, -20, -60, 1600), (1000, 1000, 2500, 20, 20, -20, 2000)), goal=((0,) * 7, (0,) * 7),
    tolerances=(1.0, 3.0, 10.0, 30.0), limits=((-INF, -INF, -1, -INF, -INF, -INF, 0), (INF,) * 7), expert="minimum_acceleration",
    rest=False, zscore=True)  # fmt: skip
SOURCE_DOUBLE_INTEGRATOR = replace(  # its cost is not what its expert minimises; the position is missed by |6 a3| T dt^2 / 12
    DOUBLE_INTEGRATOR, name="source_double_integrator", Q=(10.0, 5.0), R=0.1, Qf=(200.0, 100.0), expert="source_midpoint")  # fmt: skip
SOURCE_DOUBLE_INTEGRATOR_LQR8 = replace(  # the ablation's labels: up to 8 for a model that ends at 4, and 94 % miss the target by 0.1
    DOUBLE_INTEGRATOR, name="source_double_integrator_lqr8", dt=1 / 3, bound=8.0, Q=(1.0, 1.0), R=0.1, Qf=(100.0, 100.0),
    expert="source_lqr")  # fmt: skip
SOURCE_VAN_DER_POL = replace(
    VAN_DER_POL, name="source_van_der_pol", expert="source_lqr"
)  # with the declared R
SOURCE_VAN_DER_POL_R05 = replace(
    SOURCE_VAN_DER_POL, name="source_van_der_pol_r05", R=0.5
)  # as its generator really ran
SOURCE_SEEDS = {  # rows and seed of the training file, of the test file; equal seeds: the test file is the head of the training file
    "source_double_integrator": (1000, 42, 1000, 123), "source_double_integrator_lqr8": (5000, 42, 1000, 42),
    "source_van_der_pol": (1000, 42, 1000, 123), "source_van_der_pol_r05": (1000, 42, 1000, 123)}  # fmt: skip
PLANTS = {p.name: p for p in (DOUBLE_INTEGRATOR, VAN_DER_POL, VAN_DER_POL_MU, PENDULUM, ROCKET_STANDIN, SOURCE_DOUBLE_INTEGRATOR,
                              SOURCE_DOUBLE_INTEGRATOR_LQR8, SOURCE_VAN_DER_POL, SOURCE_VAN_DER_POL_R05)}  # fmt: skip


def source_process_supervision(plant: Plant) -> Plant:
    """The plant with the cost that the source trains through, whatever its labels minimise: Q = I, R = 0.01, Qf = 10 I."""
    return replace(plant, Q=(1.0,) * len(plant.Q), R=0.01, Qf=(10.0,) * len(plant.Q))


def encode(plant: Plant, x):
    """(..., n) -> (..., F): what a net should see and what errors are measured in; each angle as its sine and cosine."""
    if not plant.angles:
        return x
    xp, columns = library(x), []
    for i in range(plant.n):
        columns += [xp.sin(x[..., i]), xp.cos(x[..., i])] if i in plant.angles else [x[..., i]]
    return xp.stack(columns, -1)


def clip(plant: Plant, u):
    """Controls (..., m) as the plant carries them out: shortened to the bound, the direction kept."""
    if plant.m == 1:
        return u.clip(-plant.bound, plant.bound)
    length = ((u**2).sum(-1)[..., None] + 1e-24) ** 0.5
    return u * (plant.bound / length).clip(None, 1.0)


def rollout(plant: Plant, x0, plan, scale=1.0, noise=None, dts=None):
    """States (B, M + 1, n) under a plan of M steps, clipped. `noise` (B, M, m) acts as force on top; `dts` (B, M) instead of plant.dt."""
    u, states = clip(plant, plan), [x0]
    u = u if noise is None else u + noise
    for t in range(plan.shape[-2]):
        states.append(
            plant.step(states[-1], u[..., t, :], plant.dt if dts is None else dts[..., t], scale)
        )
    return library(x0).stack(states, -2)


def cost(plant: Plant, states, controls, target):
    """J (B,) of states (B, M + 1, n) and the clipped controls (B, M, m) that led there."""
    e = (encode(plant, states) - encode(plant, target)[..., None, :]) ** 2
    Q, Qf = _like(plant.Q, e), _like(plant.Qf, e)
    return (
        (e[..., :-1, :] @ Q).sum(-1)
        + plant.R * (clip(plant, controls) ** 2).sum((-1, -2))
        + e[..., -1, :] @ Qf
    )


def plan_cost(plant: Plant, x0, plan, target, scale=1.0):
    """J (B,) of plans (B, N, m), rolled out."""
    return cost(plant, rollout(plant, x0, plan, scale), plan, target)


def terminal_error(plant: Plant, states, target):
    """(B,) Euclidean norm of the last encoded error, of the states that count (all but a rocket's mass and a given mu)."""
    e = encode(plant, states[..., -1, :]) - encode(plant, target)
    return ((e**2) @ _like([float(q > 0) for q in plant.Qf], e)) ** 0.5


def linearise(plant: Plant, x: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Jacobians (..., n, n) and (..., n, m) of a step, to machine precision: derivatives by a complex step need no difference."""
    h = 1e-30
    A = [plant.step(x + 1j * h * row, u, plant.dt, 1.0).imag / h for row in np.eye(plant.n)]
    B = [plant.step(x + 0j, u + 1j * h * row, plant.dt, 1.0).imag / h for row in np.eye(plant.m)]
    return np.stack(A, -1), np.stack(B, -1)


# --- experts that are linear algebra --------------------------------------------------------------------------------


def minimum_norm(plant: Plant, x0: np.ndarray, target: np.ndarray, left: int = 0) -> np.ndarray:
    """(B, M, m) plans of least sum u^2 that are at the target after M = left or N steps: u = C'(CC')^-1 (target - A^M x0).

    For linear plants, exact. Not clipped: where the bound would bind, the plant will.
    """
    A, B = (
        matrix[0] for matrix in linearise(plant, np.zeros((1, plant.n)), np.zeros((1, plant.m)))
    )
    C, power = _reach(A, B, left or plant.N)
    return ((target - x0 @ power.T) @ np.linalg.pinv(C).T).reshape(len(x0), -1, plant.m)


def _reach(A: np.ndarray, B: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """[A^(M-1) B, ..., B] (n, M m) and A^M: the last state is A^M x0 + C u."""
    columns, power = [], np.eye(len(A))
    for _ in range(steps):
        columns.insert(0, power @ B)
        power = power @ A
    return np.concatenate(columns, 1), power


def minimum_acceleration(
    plant: Plant, x0: np.ndarray, target: np.ndarray, left: int = 0
) -> np.ndarray:
    """(B, M, 3) thrusts of the rocket whose accelerations have the least sum of squares and end at the target, at rest, in M steps."""
    M, dt = left or plant.N, plant.dt
    C, power = _reach(np.array([[1, dt], [0, 1]]), np.array([[dt**2 / 2], [dt]]), M)
    axes = np.stack([x0[:, 0:3], x0[:, 3:6]], -1)  # (B, 3, 2): position and velocity of each axis
    drift = axes @ power.T + np.array([[0, 0], [0, 0], [MARS * (M * dt) ** 2 / 2, MARS * M * dt]])
    wish = np.stack([target[:, 0:3], target[:, 3:6]], -1)
    a = ((wish - drift) @ np.linalg.pinv(C).T).swapaxes(1, 2)  # (B, M, 3)
    burnt = np.exp(-np.linalg.norm(a, axis=-1).cumsum(1) * dt / (ISP * G0))
    mass = x0[:, None, 6] * np.concatenate([np.ones((len(x0), 1)), burnt[:, :-1]], 1)
    return mass[..., None] * a


def lqr_gains(
    A: np.ndarray, B: np.ndarray, Q: np.ndarray, R: np.ndarray, Qf: np.ndarray, steps: int
) -> list[np.ndarray]:
    """K_0 .. K_(M-1), each (m, n), of u = -K x: the Riccati recursion backwards from P = Qf."""
    P, gains = Qf, []
    for _ in range(steps):
        gains.insert(0, np.linalg.solve(R + B.T @ P @ B, B.T @ P @ A))
        P = Q + A.T @ P @ (A - B @ gains[0])
    return gains


def lqr(
    plant: Plant,
    x0: np.ndarray,
    target: np.ndarray,
    left: int = 0,
    matrices: tuple | None = None,
    affine: bool = True,
) -> np.ndarray:
    """(B, M, m) controls of a finite-horizon LQR that steers the plant itself, clipped step by step; not for the rocket.

    Linearised at the first row's target (or with `matrices` A, B given), for the cost of the plant. The gains act on (x - target, drift): a target
    that is no point of rest moves off by its drift every step. `affine=False` ignores that, as the source project does.
    """
    n, m = plant.n, plant.m
    A, B = matrices or (matrix[0] for matrix in linearise(plant, target[:1], np.zeros((1, m))))
    E = _encode_jacobian(plant, target[:1])[0]
    Q, Qf = (np.zeros((2 * n, 2 * n)) for _ in range(2))
    Q[:n, :n], Qf[:n, :n] = E.T @ np.diag(plant.Q) @ E, E.T @ np.diag(plant.Qf) @ E
    A, B = (
        np.block([[A, np.eye(n)], [np.zeros((n, n)), np.eye(n)]]),
        np.concatenate([B, np.zeros((n, m))]),
    )
    drift = affine * (plant.step(target, np.zeros((len(target), m)), plant.dt, 1.0) - target)
    x, plan = x0, []
    for K in lqr_gains(A, B, Q, plant.R * np.eye(m), Qf, left or plant.N):
        away = x - target
        away[:, plant.angles] = (away[:, plant.angles] + np.pi) % (2 * np.pi) - np.pi
        plan.append(clip(plant, -np.concatenate([away, drift], 1) @ K.T))
        x = plant.step(x, plan[-1], plant.dt, 1.0)
    return np.stack(plan, 1)


def source_midpoint(plant: Plant, x0: np.ndarray, target: np.ndarray, left: int = 0) -> np.ndarray:
    """(B, M, 1): the continuous minimum-energy acceleration of the double integrator, sampled at the middle of every step."""
    M = left or plant.N
    T, t = M * plant.dt, (np.arange(M) + 0.5) * plant.dt
    dp, speeds = target[:, :1] - x0[:, :1], x0[:, 1:] + target[:, 1:]
    a2, a3 = (3 * dp - T * (speeds + x0[:, 1:])) / T**2, (-2 * dp + T * speeds) / T**3
    return clip(plant, (2 * a2 + 6 * a3 * t)[..., None])


def source_lqr(plant: Plant, x0: np.ndarray, target: np.ndarray, left: int = 0) -> np.ndarray:
    """`lqr` without the affine term; Van der Pol linearised as x + rate dt, where the exact step is at hand."""
    euler = np.eye(2) + plant.dt * np.array([[0, 1], [-1, 1]]), plant.dt * np.array([[0], [1]])
    return lqr(
        plant, x0, target, left, euler if plant.step is step_van_der_pol else None, affine=False
    )


def _encode_jacobian(plant: Plant, x: np.ndarray) -> np.ndarray:
    """(..., F, n)"""
    return np.stack([encode(plant, x + 1e-30j * row).imag / 1e-30 for row in np.eye(plant.n)], -1)


# --- the optimum within the bound -----------------------------------------------------------------------------------


def optimum(plant: Plant, x0: np.ndarray, target: np.ndarray, plan: np.ndarray, sweeps: int = 60,
            close: float = 1e-9) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Improves plans (B, M, m) until no neighbour within the bound is better: (plans, J (B,)).

    Iterative LQR (Gauss-Newton shooting) with the control limit in its backward pass, after Tassa, Mansard and Todorov 2014. A row is done when
    a sweep promises to lower J by less than a share `close`. A local optimum: where there may be several, compare starts (`best_plan`).
    """
    plan = clip(plant, plan)
    states = rollout(plant, x0, plan)
    J, damp, live = cost(plant, states, plan, target), np.full(len(x0), 1e-6), np.arange(len(x0))
    for _ in range(sweeps):
        k, K, promise = _backward(plant, states[live], plan[live], target[live], damp[live])
        worth = promise > close * J[live]
        live, k, K = live[worth], k[worth], K[worth]
        better = np.zeros(len(live), bool)
        for shrink in 1.0, 0.5, 0.2, 0.05, 0.01:
            open_ = np.flatnonzero(~better)
            if not len(open_):
                break
            rows = live[open_]
            tried, u = _forward(plant, states[rows], plan[rows], shrink * k[open_], K[open_])
            new = cost(plant, tried, u, target[rows])
            better[open_] = new < J[rows]
            took, now = rows[better[open_]], better[open_]
            states[took], plan[took], J[took] = tried[now], u[now], new[now]
        damp[live] = np.clip(damp[live] * np.where(better, 0.1, 100), 1e-9, None)
        live = live[damp[live] < 1e6]
        if not len(live):
            break
    return plan, J


def _backward(plant: Plant, states, plan, target, damp):
    """Feedforward k (B, M, m) and feedback K (B, M, m, n) of the best small change, and how much it promises to lower J (B,).

    Rows are the last axis here: numpy is ten times faster at many small matrices then.
    """
    A, B = (
        np.ascontiguousarray(np.moveaxis(matrix, 0, -1))
        for matrix in linearise(plant, states[:, :-1], plan)
    )  # (M, n, n, B), (M, n, m, B)
    E, e = _encode_jacobian(plant, states), encode(plant, states) - encode(plant, target)[:, None]
    weight = np.array([plant.Q] * plan.shape[1] + [plant.Qf])  # (M + 1, F)
    lx = np.ascontiguousarray(
        np.moveaxis(2 * np.einsum("btfi,tf,btf->bti", E, weight, e), 0, -1)
    )  # (M + 1, n, B)
    lxx = np.ascontiguousarray(
        np.moveaxis(2 * np.einsum("btfi,tf,btfj->btij", E, weight, E), 0, -1)
    )
    eye = np.eye(plant.m)[..., None]
    k, K, Vx, Vxx, promise = (
        np.zeros(plan.shape),
        np.zeros((*plan.shape, plant.n)),
        lx[-1],
        lxx[-1],
        0.0,
    )
    for t in reversed(range(plan.shape[1])):
        u = plan[:, t].T
        VA, VB = np.einsum("ijb,jkb->ikb", Vxx, A[t]), np.einsum("ijb,jkb->ikb", Vxx, B[t])
        Qx, Qu = (
            lx[t] + np.einsum("jib,jb->ib", A[t], Vx),
            2 * plant.R * u + np.einsum("jib,jb->ib", B[t], Vx),
        )
        Qxx, Qux = lxx[t] + np.einsum("jib,jkb->ikb", A[t], VA), np.einsum("jib,jkb->ikb", B[t], VA)
        Quu = 2 * plant.R * eye + np.einsum("jib,jkb->ikb", B[t], VB)
        inverse = _inverse(Quu + damp * 2 * plant.R * eye)
        wish = u - np.einsum("ijb,jb->ib", inverse, Qu)
        free = (wish**2).sum(
            0
        ) < plant.bound**2  # at the bound a control does not answer to the state
        du = clip(plant, wish.T).T - u
        gain = -np.einsum("ijb,jkb->ikb", inverse, Qux) * free
        QuuK = np.einsum("ijb,jkb->ikb", Quu, gain)
        Vx = Qx + np.einsum("jib,jb->ib", gain, Qu) + np.einsum("jib,jb->ib", Qux + QuuK, du)
        Vxx = (
            Qxx + np.einsum("jib,jkb->ikb", gain, QuuK + Qux) + np.einsum("jib,jkb->ikb", Qux, gain)
        )
        promise = promise - (Qu * du).sum(0) - np.einsum("ib,ijb,jb->b", du, Quu, du) / 2
        k[:, t], K[:, t] = du.T, np.moveaxis(gain, -1, 0)
    return k, K, promise


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """(m, m, B) -> (m, m, B)"""
    return (
        1 / matrix
        if len(matrix) == 1
        else np.moveaxis(np.linalg.inv(np.moveaxis(matrix, -1, 0)), 0, -1)
    )


def _forward(plant: Plant, states, plan, k, K):
    """The plan changed by k and by K on every deviation from the old states: (states, plan)."""
    x, u = [states[:, 0]], []
    for t in range(plan.shape[1]):
        u.append(
            clip(
                plant, plan[:, t] + k[:, t] + np.einsum("bij,bj->bi", K[:, t], x[-1] - states[:, t])
            )
        )
        x.append(plant.step(x[-1], u[-1], plant.dt, 1.0))
    return np.stack(x, 1), np.stack(u, 1)


@lru_cache(maxsize=4)
def _values(plant: Plant, cells: int = 321, levels: int = 9):
    """Dynamic programming on a grid, for plants of two states and one fixed target: (axes, candidate controls, V (N + 1, cells, cells)).

    The grid spans a turn of an angle and one and a half times the starts (or 10 rad/s) otherwise; V is interpolated linearly.
    """
    far = [
        np.pi if i in plant.angles else 10.0 if plant.angles else 1.5 * plant.start[1][i]
        for i in range(2)
    ]
    axes = [np.linspace(-edge, edge, cells) for edge in far]
    x = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 1, 2)
    u = np.linspace(-plant.bound, plant.bound, levels)[:, None]
    look_up = _interpolation(plant, axes, plant.step(x + 0 * u, u + 0 * x[..., :1], plant.dt, 1.0))
    e = (encode(plant, x[:, 0]) - encode(plant, np.array(plant.goal[:1], float))) ** 2
    now, values = (
        (e @ np.array(plant.Q))[:, None] + plant.R * (u**2).sum(-1),
        [e @ np.array(plant.Qf)],
    )
    for _ in range(plant.N):
        values.insert(0, (now + look_up(values[0])).min(1))
    return axes, u, values


def _interpolation(plant: Plant, axes: list, x: np.ndarray) -> Callable:
    """V (cells^2,) -> V at the points x (..., 2), linear between the grid's, held beyond its edges."""
    at, part = [], []
    for i, axis in enumerate(axes):
        place = x[..., i] if i not in plant.angles else (x[..., i] + np.pi) % (2 * np.pi) - np.pi
        place = ((place - axis[0]) / (axis[1] - axis[0])).clip(0, len(axis) - 1.000001)
        at.append(place.astype(np.int32))
        part.append(place - at[-1])
    corner, wide = at[0] * len(axes[1]) + at[1], len(axes[1])
    a, b = part
    return lambda V: (
        (1 - a) * ((1 - b) * V[corner] + b * V[corner + 1])
        + a * ((1 - b) * V[corner + wide] + b * V[corner + wide + 1])
    )


def grid_plan(plant: Plant, x0: np.ndarray) -> np.ndarray:
    """(B, N, m) plans of the dynamic programme: coarse, but in the basin of the best optimum, also where there are many."""
    axes, u, values = _values(plant)
    x, plan = x0, []
    for V in values[1:]:
        now = x[:, None] + 0 * u
        held = u + 0 * now[..., :1]
        total = plant.R * (u**2).sum(-1) + _interpolation(
            plant, axes, plant.step(now, held, plant.dt, 1.0)
        )(V)
        plan.append(u[total.argmin(1)])
        x = plant.step(x, plan[-1], plant.dt, 1.0)
    return np.stack(plan, 1)


def best_plan(plant: Plant, x0: np.ndarray, target: np.ndarray, left: int = 0) -> np.ndarray:
    """(B, M, m) the best plan we can find: `optimum` from the plant's linear expert, its LQR or, where there are many optima, the grid.

    Of 300 pendulums, a grid of half as many cells a side ends more than 0.1 % above this one's in 1.3 %, never below it; of 200, the LQR as start
    in 59 % (above 1e-6), never below.
    """
    start = (
        grid_plan(plant, x0)
        if plant.angles
        else (LINEAR.get(plant.expert) or lqr)(plant, x0, target, left)
    )
    return optimum(plant, x0, target, start)[0]


LINEAR = {
    "minimum_norm": minimum_norm,
    "minimum_acceleration": minimum_acceleration,
    "source_midpoint": source_midpoint,
}
EXPERTS = {
    **LINEAR,
    "lqr": lqr,
    "source_lqr": source_lqr,
    "optimum": best_plan,
}  # each (plant, x0, target, left) -> plans (B, M, m)


# --- rows -----------------------------------------------------------------------------------------------------------

ROWS = ("initial_states", "target_states", "state_trajectories", "control_sequences", "costs")
SPLITS = {
    "train": 1,
    "val": 2,
    "test": 3,
    "wide": 4,
}  # second number of the key: no split ever sees another's rows
WIDE = 1.5  # starts of the split "wide" spread this much further, all of them beyond the training range


def draw_ends(
    plant: Plant, count: int, g: np.random.Generator, wide: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Starts and targets, each (count, n), uniform in the ranges of the plant. Fewer rows are the head of more rows, unless `wide`."""
    low, high = (np.array([*plant.start[i], *plant.goal[i]], float) for i in range(2))
    vary = np.flatnonzero(low < high)
    part = g.random((count * (8 if wide else 1), len(vary)))
    if wide:
        start = vary < plant.n
        part[:, start] = (part[:, start] - 0.5) * WIDE + 0.5
        part = part[((part < 0) | (part > 1)).any(1)][:count]
    ends = np.tile(low, (len(part), 1))
    ends[:, vary] += part * (high - low)[vary]
    return ends[:, : plant.n], ends[:, plant.n :]


def make_rows(
    plant: Plant, x0: np.ndarray, target: np.ndarray, best: bool = True
) -> dict[str, np.ndarray]:
    """The rows (see ROWS) in which the plant's expert goes from x0 to the target; with `best` "optimal_costs" (S,), J* of the best plan we know."""
    plan = clip(plant, EXPERTS[plant.expert](plant, x0, target, 0))
    rows = dict(
        zip(ROWS, (x0, target, rollout(plant, x0, plan), plan, plan_cost(plant, x0, plan, target)))
    )
    if best:
        rows["optimal_costs"] = (
            rows["costs"]
            if plant.expert == "optimum"
            else plan_cost(plant, x0, best_plan(plant, x0, target), target)
        )
    return rows


def generate(plant: Plant, count: int, split: str, seed: int = 0) -> dict[str, np.ndarray]:
    """`count` rows of "train", "val", "test", or "wide" (starts beyond the training range), a function of (plant, count, split, seed).

    initial_states, target_states (S, n), state_trajectories (S, N + 1, n), control_sequences (S, N, m), costs (S,), float64, and, but for
    "train", optimal_costs (S,).
    Raises UserError for other splits and for fewer than one row.
    """
    if split not in SPLITS or count < 1:
        raise UserError(
            f"control rows: split = {split!r} with {count} rows, expected one of {', '.join(SPLITS)} with 1 or more"
        )
    return make_rows(
        plant, *draw_ends(plant, count, rng(seed, SPLITS[split]), split == "wide"), split != "train"
    )


def source_splits(plant: Plant) -> dict[str, dict]:
    """{"train", "test"} with the sizes and seeds of the source project, leaks included."""
    rows, seed, test_rows, test_seed = SOURCE_SEEDS[plant.name]
    return {
        name: make_rows(
            plant, *draw_ends(plant, count, np.random.default_rng(key)), name != "train"
        )
        for name, count, key in (("train", rows, seed), ("test", test_rows, test_seed))
    }


def read_npz(path: str, plant: Plant) -> dict[str, np.ndarray]:
    """Rows (see ROWS) from an .npz, float64; "timestep_dts" (S, N) and "optimal_costs" (S,) too, where the file has them.

    Raises UserError for a missing or damaged file, missing arrays, other shapes than the plant's, numbers that are not finite, controls beyond
    the bound, trajectories that do not begin at the initial state.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in ROWS if name not in file.files]
            if missing:
                raise UserError(
                    f"{path}: has arrays {sorted(file.files)}, expected also {', '.join(missing)}"
                )
            rows = {
                name: np.asarray(file[name], np.float64)
                for name in (*ROWS, "timestep_dts", "optimal_costs")
                if name in file.files
            }
    except UserError:
        raise
    except (OSError, ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: cannot be read as control rows ({getattr(error, 'strerror', None) or error})"
        ) from None
    n, m, N, S = plant.n, plant.m, plant.N, len(np.atleast_1d(rows["initial_states"]))
    shapes = dict(zip(ROWS, [(n,), (n,), (N + 1, n), (N, m), ()])) | {
        "timestep_dts": (N,),
        "optimal_costs": (),
    }
    for name, values in rows.items():
        if values.shape != (S, *shapes[name]) or not S:
            wish = ", ".join(map(str, ("S", *shapes[name])))
            raise UserError(
                f"{path}: {name} has shape {values.shape}, expected ({wish}) for {plant.name}, with S = {S or '1 or more'} rows"
            )
        if not np.isfinite(values).all():
            place = tuple(np.argwhere(~np.isfinite(values))[0])
            raise UserError(
                f"{path}, row {place[0] + 1}: {name} has {values[place]}, expected finite numbers"
            )
    u, away = (
        rows["control_sequences"],
        np.abs(rows["state_trajectories"][:, 0] - rows["initial_states"]).max(1),
    )
    size, close = (
        np.linalg.norm(u, axis=-1).max(1),
        1e-6 * (1 + np.abs(rows["initial_states"]).max()),
    )
    if (size > plant.bound * (1 + 1e-6)).any():
        row = size.argmax()
        raise UserError(
            f"{path}, row {row + 1}: control_sequences reaches {size[row]:g}, expected at most the bound {plant.bound:g} of {plant.name}"
        )
    if (away > close).any():
        row = away.argmax()
        raise UserError(
            f"{path}, row {row + 1}: state_trajectories begins {away[row]:g} away from initial_states, expected there"
        )
    return rows


def inputs(plant: Plant, x0, target):
    """(B, F + G): what a policy has to know, the encoded start and those encoded targets that differ between rows of this plant."""
    vary = [
        i
        for i, (low, high) in enumerate(zip(*encode(plant, np.array(plant.goal, float))))
        if low != high
    ]
    return library(x0).concatenate([encode(plant, x0), encode(plant, target)[..., vary]], -1)


def scaling(plant: Plant, train: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"inputs", "controls"}: (mean, standard deviation) over the training rows, 0 and 1 where the plant needs no scaling."""
    values = {
        "inputs": inputs(plant, train["initial_states"], train["target_states"]),
        "controls": train["control_sequences"].reshape(-1, plant.m),
    }
    spread = {name: (v.mean(0), np.maximum(v.std(0), 1e-8)) for name, v in values.items()}
    return (
        spread
        if plant.zscore
        else {name: (0 * mean, 0 * std + 1) for name, (mean, std) in spread.items()}
    )
