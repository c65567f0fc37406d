"""Plants to control, experts that plan for them, and rows of expert plans to imitate.

numpy only. Plants and costs also take torch tensors, and then have gradients.

A plan is a sequence of N controls u, each held for dt seconds. Everything is vectorised over B
rows: x0 and target (B, n), plan (B, N, m), states (B, N + 1, n). A plant clips what it is given
to |u| <= bound (Euclidean norm): the same limit for expert, net and plant.

    double_integrator   x = (position in m, velocity in m/s), u = acceleration;
                        to be at a target, with a velocity of its own, after N steps
    van_der_pol         x1' = x2, x2' = mu (1 - x1^2) x2 - x1 + u with mu = 1;
                        to the origin, which is unstable
    van_der_pol_mu      the same; mu in [0.5, 2] is different in every row, and a third state
    pendulum            swing-up: theta = 0 is upright, and u is too weak to lift it directly;
                        nets see (sin theta, cos theta, theta')
    rocket_standin      powered descent on Mars by least acceleration, in place of the
                        fuel-optimal data set of the source project

The source project is Tiny Recursive Control. Names with `source` in them repeat what it does, for
comparison alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from config import UserError
from tasks.base import rng
from tasks.files import read_arrays

INF = float("inf")
G0 = 9.81  # m/s^2, gravity on Earth
ISP = 200.7  # s, specific impulse of the rocket's engine
MARS = -3.71  # m/s^2, gravity on Mars


def library(x):
    """The module, numpy or torch, that calculates with x."""
    if isinstance(x, np.ndarray):
        return np
    import torch

    return torch


def constant(values, x):
    """Constants as an array or tensor that goes with x."""
    return np.asarray(values) if isinstance(x, np.ndarray) else x.new_tensor(values)


# ---------------------------------------------------------------- how plants move

# Each is (x (..., n), u (..., m), dt, scale) -> x (..., n) after dt seconds.
# `scale`: a parameter of the plant as a multiple of what the planner believes.


def step_double_integrator(x, u, dt, scale):
    """Exact for a held control. `scale`: of the mass, which is 1."""
    position, velocity, acceleration = x[..., 0], x[..., 1], u[..., 0] / scale
    after = position + velocity * dt + acceleration * dt**2 / 2
    return library(x).stack([after, velocity + acceleration * dt], -1)


def step_van_der_pol(x, u, dt, scale):
    """Runge-Kutta for a held control. `scale`: of mu, which is 1 or the third state."""
    mu = x[..., 2] if x.shape[-1] == 3 else 1.0

    def rate(x):
        speed = x[..., 1]
        force = scale * mu * (1 - x[..., 0] ** 2) * speed - x[..., 0] + u[..., 0]
        still = [0 * speed] * (x.shape[-1] - 2)  # mu does not change
        return library(x).stack([speed, force, *still], -1)

    return runge_kutta(rate, x, dt)


def step_pendulum(x, u, dt, scale):
    """Runge-Kutta for a held torque. Length 1 m, friction 0.1 per s. `scale`: of the mass, 1 kg.

    theta is not wrapped: it counts turns.
    """
    xp = library(x)

    def rate(x):
        return xp.stack(
            [x[..., 1], G0 * xp.sin(x[..., 0]) - 0.1 * x[..., 1] + u[..., 0] / scale], -1
        )

    return runge_kutta(rate, x, dt)


def step_rocket(x, u, dt, scale):
    """x = (position in m, velocity in m/s, mass in kg), u = thrust in N at the start of the step.

    The engine throttles as the mass burns, so that the acceleration u / mass is held; then the
    step is exact. (The source project holds the thrust.) `scale`: of the mass.
    """
    position, velocity, mass = x[..., 0:3], x[..., 3:6], x[..., 6:7]
    thrust = u / (mass * scale)  # acceleration
    total = thrust + constant([0.0, 0.0, MARS], x)
    size = ((thrust**2).sum(-1)[..., None] + 1e-24) ** 0.5  # 1e-24: a gradient at 0 too
    burnt = library(x).exp(-size * dt / (ISP * G0))
    after = position + velocity * dt + total * dt**2 / 2
    return library(x).concatenate([after, velocity + total * dt, mass * burnt], -1)


def runge_kutta(rate: Callable, x, dt):
    """One classical step of order 4 of x' = rate(x)."""
    a = rate(x)
    b = rate(x + dt / 2 * a)
    c = rate(x + dt / 2 * b)
    d = rate(x + dt * c)
    return x + dt / 6 * (a + 2 * b + 2 * c + d)


# ---------------------------------------------------------------- plants


@dataclass(frozen=True)
class Plant:
    """What is to be controlled, and what it costs.

    J = sum over t < N of (e_t' Q e_t + R |u_t|^2), plus e_N' Qf e_N, with the error
    e = encode(x) - encode(target). Q and Qf are diagonals.
    """

    name: str
    step: Callable  # see above
    n: int  # states
    m: int  # controls
    N: int  # steps
    dt: float  # seconds of a step
    bound: float  # |u| <= bound
    Q: tuple  # of encoded states
    R: float
    Qf: tuple  # of encoded states; where it is 0, an error at the end does not count
    start: tuple  # (lowest, highest) start, uniform between
    goal: tuple  # (lowest, highest) target, uniform between
    tolerances: tuple  # errors at the end that count as success, increasing
    limits: tuple  # (lowest, highest) state: beyond is a violation, which nothing prevents
    expert: str  # who makes the labels: a key of EXPERTS
    rest: bool = True  # the target is a place to stay; false: to be at after N steps
    angles: tuple = ()  # which states are angles in radians
    zscore: bool = False  # nets should see and make numbers scaled by the training rows


DOUBLE_INTEGRATOR = Plant(  # its cost asks for what its expert does: least effort to the target
    name="double_integrator",
    step=step_double_integrator,
    n=2,
    m=1,
    N=15,
    dt=0.33,
    bound=4.0,
    Q=(0.0, 0.0),
    R=1.0,
    Qf=(1e3, 1e3),
    start=((-2, -2), (2, 2)),
    goal=((-2, -2), (2, 2)),
    tolerances=(0.02, 0.05, 0.1, 0.2),
    limits=((-10, -10), (10, 10)),
    expert="minimum_norm",
    rest=False,
)
VAN_DER_POL = Plant(
    name="van_der_pol",
    step=step_van_der_pol,
    n=2,
    m=1,
    N=100,
    dt=0.05,
    bound=2.0,
    Q=(10.0, 5.0),
    R=0.1,
    Qf=(200.0, 100.0),
    start=((-2, -2), (2, 2)),
    goal=((0, 0), (0, 0)),
    tolerances=(0.02, 0.05, 0.1, 0.2),
    limits=((-5, -5), (5, 5)),
    expert="optimum",
)
VAN_DER_POL_MU = replace(
    VAN_DER_POL,
    name="van_der_pol_mu",
    n=3,
    Q=(10.0, 5.0, 0.0),
    Qf=(200.0, 100.0, 0.0),
    start=((-2, -2, 0.5), (2, 2, 2)),
    goal=((0, 0, 1), (0, 0, 1)),
    limits=((-5, -5, -INF), (5, 5, INF)),
)
PENDULUM = Plant(
    name="pendulum",
    step=step_pendulum,
    n=2,
    m=1,
    N=100,
    dt=0.05,
    bound=4.0,
    Q=(10.0, 10.0, 1.0),
    R=0.1,
    Qf=(200.0, 200.0, 20.0),
    start=((-np.pi, -1), (np.pi, 1)),
    goal=((0, 0), (0, 0)),
    tolerances=(0.02, 0.05, 0.1, 0.2),
    limits=((-INF, -INF), (INF, INF)),
    expert="optimum",
    angles=(0,),
)
ROCKET_STANDIN = Plant(
    name="rocket_standin",
    step=step_rocket,
    n=7,
    m=3,
    N=50,
    dt=1.2,
    bound=15e3,
    Q=(0.0,) * 7,
    R=1e-8,
    # No target for the mass: the source's told the net how much fuel the label burns.
    Qf=(1.0, 1.0, 1.0, 10.0, 10.0, 10.0, 0.0),
    start=((-1000, -1000, 1500, -20, -20, -60, 1600), (1000, 1000, 2500, 20, 20, -20, 2000)),
    goal=((0,) * 7, (0,) * 7),
    tolerances=(1.0, 3.0, 10.0, 30.0),
    # A violation: more than 1 m under ground.
    limits=((-INF, -INF, -1, -INF, -INF, -INF, 0), (INF,) * 7),
    expert="minimum_acceleration",
    rest=False,
    zscore=True,
)

# The source project's labels, repeated with their faults. An entry trains on the first ones; the
# others document its published figures, and tests/test_control.py measures them.
SOURCE_DOUBLE_INTEGRATOR = replace(  # its expert does not minimise its cost
    DOUBLE_INTEGRATOR,
    name="source_double_integrator",
    Q=(10.0, 5.0),
    R=0.1,
    Qf=(200.0, 100.0),
    expert="source_midpoint",
)
SOURCE_DOUBLE_INTEGRATOR_LQR8 = replace(  # of its ablation, whose net is bounded to 4
    DOUBLE_INTEGRATOR,
    name="source_double_integrator_lqr8",
    dt=1 / 3,
    bound=8.0,
    Q=(1.0, 1.0),
    R=0.1,
    Qf=(100.0, 100.0),
    expert="source_lqr",
)
SOURCE_VAN_DER_POL = replace(  # with the R that it declares
    VAN_DER_POL, name="source_van_der_pol", expert="source_lqr"
)
SOURCE_VAN_DER_POL_R05 = replace(  # with the R that its generator really had
    SOURCE_VAN_DER_POL, name="source_van_der_pol_r05", R=0.5
)
# (rows, seed) of its training file and of its test file. Where the seeds are equal, the test file
# is the head of the training file.
SOURCE_SEEDS = {
    "source_double_integrator": {"train": (1000, 42), "test": (1000, 123)},
    "source_double_integrator_lqr8": {"train": (5000, 42), "test": (1000, 42)},
    "source_van_der_pol": {"train": (1000, 42), "test": (1000, 123)},
    "source_van_der_pol_r05": {"train": (1000, 42), "test": (1000, 123)},
}
PLANTS = {
    plant.name: plant
    for plant in (
        DOUBLE_INTEGRATOR,
        VAN_DER_POL,
        VAN_DER_POL_MU,
        PENDULUM,
        ROCKET_STANDIN,
        SOURCE_DOUBLE_INTEGRATOR,
        SOURCE_DOUBLE_INTEGRATOR_LQR8,
        SOURCE_VAN_DER_POL,
        SOURCE_VAN_DER_POL_R05,
    )
}


def source_process_supervision(plant: Plant) -> Plant:
    """The plant with the cost that the source project trains through, whatever its labels do."""
    size = len(plant.Q)
    return replace(plant, Q=(1.0,) * size, R=0.01, Qf=(10.0,) * size)


def encode(plant: Plant, x):
    """States (..., n) -> (..., F): what a net sees and what errors are measured in.

    Each angle becomes its sine and cosine.
    """
    if not plant.angles:
        return x
    columns = []
    for i in range(plant.n):
        if i in plant.angles:
            columns += [library(x).sin(x[..., i]), library(x).cos(x[..., i])]
        else:
            columns += [x[..., i]]
    return library(x).stack(columns, -1)


def wrap(angle: np.ndarray) -> np.ndarray:
    """An angle within -pi .. pi."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def clip(plant: Plant, u):
    """Controls (..., m) as the plant carries them out: shortened to the bound, same direction."""
    if plant.m == 1:
        return u.clip(-plant.bound, plant.bound)
    length = ((u**2).sum(-1)[..., None] + 1e-24) ** 0.5
    return u * (plant.bound / length).clip(None, 1.0)


def rollout(plant: Plant, x0, plan, scale=1.0, noise=None):
    """States (B, M + 1, n) under a plan of M steps, which is clipped first.

    `scale`: see the steps of plants. `noise` (B, M, m): a force on top of the controls.
    """
    u = clip(plant, plan)
    if noise is not None:
        u = u + noise
    states = [x0]
    for t in range(plan.shape[-2]):
        states.append(plant.step(states[-1], u[..., t, :], plant.dt, scale))
    return library(x0).stack(states, -2)


def cost(plant: Plant, states, controls, target):
    """J (B,) of states (B, M + 1, n) and the controls (B, M, m) that led there."""
    e = (encode(plant, states) - encode(plant, target)[..., None, :]) ** 2
    on_the_way = (e[..., :-1, :] @ constant(plant.Q, e)).sum(-1)
    effort = plant.R * (clip(plant, controls) ** 2).sum((-1, -2))
    return on_the_way + effort + e[..., -1, :] @ constant(plant.Qf, e)


def plan_cost(plant: Plant, x0, plan, target):
    """J (B,) of plans (B, N, m), rolled out."""
    return cost(plant, rollout(plant, x0, plan), plan, target)


def terminal_error(plant: Plant, states, target):
    """(B,) Euclidean norm of the last encoded error, over the states that count.

    A rocket's mass and a given mu do not.
    """
    e = encode(plant, states[..., -1, :]) - encode(plant, target)
    counts = constant([float(q > 0) for q in plant.Qf], e)
    return ((e**2) @ counts) ** 0.5


# ---------------------------------------------------------------- derivatives

TINY = 1e-30  # a complex step f(x + ih).imag / h has no rounding error, so h may be this small


def linearise(plant: Plant, x: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Jacobians A (..., n, n) and B (..., n, m) of a step, to machine precision."""
    A = [plant.step(x + 1j * TINY * i, u, plant.dt, 1.0).imag / TINY for i in np.eye(plant.n)]
    B = [plant.step(x + 0j, u + 1j * TINY * i, plant.dt, 1.0).imag / TINY for i in np.eye(plant.m)]
    return np.stack(A, -1), np.stack(B, -1)


def linearise_once(plant: Plant, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A (n, n) and B (n, m) at one state x (n,) without control."""
    A, B = linearise(plant, x[None], np.zeros((1, plant.m)))
    return A[0], B[0]


def encode_jacobian(plant: Plant, x: np.ndarray) -> np.ndarray:
    """(..., F, n)"""
    columns = [encode(plant, x + 1j * TINY * i).imag / TINY for i in np.eye(plant.n)]
    return np.stack(columns, -1)


# ---------------------------------------------------------------- experts that are linear algebra

# Each is (plant, x0 (B, n), target (B, n), left) -> plans (B, M, m), where M is the number of
# steps left, or N for left = 0.


def minimum_norm(plant: Plant, x0: np.ndarray, target: np.ndarray, left: int = 0) -> np.ndarray:
    """Plans of least sum u^2 that are at the target after M steps, for linear plants. Exact.

    u = C' (C C')^-1 (target - A^M x0). Not clipped: where the bound binds, the plant clips.
    """
    A, B = linearise_once(plant, np.zeros(plant.n))
    C, power = reach(A, B, left or plant.N)
    u = (target - x0 @ power.T) @ np.linalg.pinv(C).T
    return u.reshape(len(x0), -1, plant.m)


def reach(A: np.ndarray, B: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """C = [A^(M-1) B, ..., B] (n, M m) and A^M: the last state is A^M x0 + C u."""
    columns, power = [], np.eye(len(A))
    for _ in range(steps):
        columns.insert(0, power @ B)
        power = power @ A
    return np.concatenate(columns, 1), power


def minimum_acceleration(
    plant: Plant, x0: np.ndarray, target: np.ndarray, left: int = 0
) -> np.ndarray:
    """Thrusts of the rocket whose accelerations have the least sum of squares.

    They end at the target, at rest, after M steps.
    """
    M, dt = left or plant.N, plant.dt
    C, power = reach(np.array([[1, dt], [0, 1]]), np.array([[dt**2 / 2], [dt]]), M)
    # (B, 3, 2): position and velocity of each axis
    start = np.stack([x0[:, 0:3], x0[:, 3:6]], -1)
    end = np.stack([target[:, 0:3], target[:, 3:6]], -1)
    fall = np.array([[0, 0], [0, 0], [MARS * (M * dt) ** 2 / 2, MARS * M * dt]])
    drift = start @ power.T + fall
    a = ((end - drift) @ np.linalg.pinv(C).T).swapaxes(1, 2)  # (B, M, 3)

    burnt = np.exp(-np.linalg.norm(a, axis=-1).cumsum(1) * dt / (ISP * G0))
    burnt = np.concatenate([np.ones((len(x0), 1)), burnt[:, :-1]], 1)  # before each step
    mass = x0[:, None, 6] * burnt
    return mass[..., None] * a


def lqr_gains(
    A: np.ndarray, B: np.ndarray, Q: np.ndarray, R: np.ndarray, Qf: np.ndarray, steps: int
) -> list[np.ndarray]:
    """K_0 .. K_(M-1), each (m, n), of u = -K x: the Riccati recursion backwards from P = Qf."""
    P, gains = Qf, []
    for _ in range(steps):
        K = np.linalg.solve(R + B.T @ P @ B, B.T @ P @ A)
        P = Q + A.T @ P @ (A - B @ K)
        gains.insert(0, K)
    return gains


def lqr(
    plant: Plant,
    x0: np.ndarray,
    target: np.ndarray,
    left: int = 0,
    matrices: tuple | None = None,
    affine: bool = True,
) -> np.ndarray:
    """A finite-horizon LQR that steers the plant itself, clipped step by step. Not for the rocket.

    Linearised at the first row's target, or with `matrices` (A, B), for the cost of the plant.
    A target that is no point of rest drifts: without control the plant leaves it by `drift` in
    every step. The gains act on (x - target, drift). affine = False ignores the drift, as the
    source project does.
    """
    n, m = plant.n, plant.m
    A, B = matrices or linearise_once(plant, target[0])
    E = encode_jacobian(plant, target[:1])[0]
    zero = np.zeros((n, n))
    # The state is (x - target, drift): the error grows by the drift, which stays as it is.
    A = np.block([[A, np.eye(n)], [zero, np.eye(n)]])
    B = np.concatenate([B, np.zeros((n, m))])
    Q = np.block([[E.T @ np.diag(plant.Q) @ E, zero], [zero, zero]])
    Qf = np.block([[E.T @ np.diag(plant.Qf) @ E, zero], [zero, zero]])
    still = np.zeros((len(target), m))
    drift = affine * (plant.step(target, still, plant.dt, 1.0) - target)

    x, plan = x0, []
    for K in lqr_gains(A, B, Q, plant.R * np.eye(m), Qf, left or plant.N):
        away = x - target
        away[:, plant.angles] = wrap(away[:, plant.angles])
        u = clip(plant, -np.concatenate([away, drift], 1) @ K.T)
        plan.append(u)
        x = plant.step(x, u, plant.dt, 1.0)
    return np.stack(plan, 1)


def source_midpoint(plant: Plant, x0: np.ndarray, target: np.ndarray, left: int = 0) -> np.ndarray:
    """The double integrator's continuous minimum-energy control, at the middle of every step.

    The path is p0 + v0 t + a2 t^2 + a3 t^3. Held, these controls miss the position by
    |6 a3| T dt^2 / 12.
    """
    M = left or plant.N
    T = M * plant.dt
    t = (np.arange(M) + 0.5) * plant.dt
    distance = target[:, :1] - x0[:, :1]
    speeds = x0[:, 1:] + target[:, 1:]
    a2 = (3 * distance - T * (speeds + x0[:, 1:])) / T**2
    a3 = (-2 * distance + T * speeds) / T**3
    return clip(plant, (2 * a2 + 6 * a3 * t)[..., None])


def source_lqr(plant: Plant, x0: np.ndarray, target: np.ndarray, left: int = 0) -> np.ndarray:
    """`lqr` without the drift. Van der Pol is linearised by an Euler step."""
    matrices = None
    if plant.step is step_van_der_pol:
        A = np.eye(2) + plant.dt * np.array([[0, 1], [-1, 1]])
        B = plant.dt * np.array([[0], [1]])
        matrices = A, B
    return lqr(plant, x0, target, left, matrices, affine=False)


# ---------------------------------------------------------------- the optimum within the bound


def optimum(
    plant: Plant,
    x0: np.ndarray,
    target: np.ndarray,
    plan: np.ndarray,
    sweeps: int = 1000,
    close: float = 1e-9,
) -> tuple[np.ndarray, np.ndarray]:
    """Improves plans (B, M, m) until no neighbour within the bound is better: (plans, J (B,)).

    Iterative LQR (Gauss-Newton shooting) with the control limit in its backward pass, after
    Tassa, Mansard and Todorov 2014. A row is done when a sweep promises to lower J by less than
    a share `close`. Of 1000 pendulums all are done within 200 sweeps; 15 are not after 60, and
    end up to 12 % lower. The optimum is local, so J is an upper bound of the least possible:
    where there may be several, compare starts.
    """
    plan = clip(plant, plan)
    states = rollout(plant, x0, plan)
    J = cost(plant, states, plan, target)
    damp = np.full(len(x0), 1e-6)
    live = np.arange(len(x0))  # rows that may get better
    for _ in range(sweeps):
        k, K, promise = backward(plant, states[live], plan[live], target[live], damp[live])
        worth = promise > close * J[live]
        live, k, K = live[worth], k[worth], K[worth]
        better = line_search(plant, live, states, plan, J, target, k, K)
        damp[live] = np.clip(damp[live] * np.where(better, 0.1, 100), 1e-9, None)
        live = live[damp[live] < 1e6]
        if not len(live):
            break
    return plan, J


def line_search(plant: Plant, live, states, plan, J, target, k, K) -> np.ndarray:
    """Tries the change (k, K) of the rows `live` at smaller and smaller sizes.

    A row that gets cheaper takes the change: its states, plan and J are overwritten.
    Returns which rows did, a bool for each of `live`.
    """
    better = np.zeros(len(live), bool)
    for size in 1.0, 0.5, 0.2, 0.05, 0.01:
        waiting = np.flatnonzero(~better)
        if not len(waiting):
            break
        rows = live[waiting]
        x, u = forward(plant, states[rows], plan[rows], size * k[waiting], K[waiting])
        new = cost(plant, x, u, target[rows])
        cheaper = new < J[rows]
        better[waiting] = cheaper
        rows = rows[cheaper]
        states[rows], plan[rows], J[rows] = x[cheaper], u[cheaper], new[cheaper]
    return better


def forward(plant: Plant, states, plan, k, K) -> tuple[np.ndarray, np.ndarray]:
    """(states, plan), the plan changed by k and by K on every deviation from the old states."""
    x, new_states, new_plan = states[:, 0], [states[:, 0]], []
    for t in range(plan.shape[1]):
        feedback = np.einsum("bij,bj->bi", K[:, t], x - states[:, t])
        u = clip(plant, plan[:, t] + k[:, t] + feedback)
        x = plant.step(x, u, plant.dt, 1.0)
        new_plan.append(u)
        new_states.append(x)
    return np.stack(new_states, 1), np.stack(new_plan, 1)


def backward(plant: Plant, states, plan, target, damp) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best small change of each plan, du = k + K dx, from the last step to the first.

    Returns feedforward k (B, M, m), feedback K (B, M, m, n), and by how much the change promises
    to lower J (B,). Inside, rows are the last axis: with many small matrices numpy is ten times
    faster then. V is the cost to go: V(x + dx) = V + Vx' dx + dx' Vxx dx / 2.
    """
    A, B = linearise(plant, states[:, :-1], plan)
    A, B = rows_last(A), rows_last(B)  # (M, n, n, B), (M, n, m, B)
    lx, lxx = state_cost(plant, states, target)
    R = 2 * plant.R * np.eye(plant.m)[..., None]  # (m, m, 1)
    k, K, promise = np.zeros(plan.shape), np.zeros((*plan.shape, plant.n)), 0.0

    Vx, Vxx = lx[-1], lxx[-1]
    for t in reversed(range(plan.shape[1])):
        u = plan[:, t].T

        # Q(dx, du) = l + V(A dx + B du)
        # Qx = lx + A' Vx,  Qu = 2 R u + B' Vx
        Qx = lx[t] + vector_t(A[t], Vx)
        Qu = 2 * plant.R * u + vector_t(B[t], Vx)
        # Qxx = lxx + A' Vxx A,  Qux = B' Vxx A,  Quu = 2 R + B' Vxx B
        VA, VB = matrix(Vxx, A[t]), matrix(Vxx, B[t])
        Qxx = lxx[t] + matrix_t(A[t], VA)
        Qux = matrix_t(B[t], VA)
        Quu = R + matrix_t(B[t], VB)

        # du = clip(u - (Quu + damp 2 R)^-1 Qu) - u
        inverse = invert(Quu + damp * R)
        wish = u - vector(inverse, Qu)
        du = clip(plant, wish.T).T - u
        # gain = -(Quu + damp 2 R)^-1 Qux; at the bound a control does not answer to the state
        free = (wish**2).sum(0) < plant.bound**2
        gain = -matrix(inverse, Qux) * free

        # Vx = Qx + gain' Qu + (Qux + Quu gain)' du
        Quu_gain = matrix(Quu, gain)
        Vx = Qx + vector_t(gain, Qu) + vector_t(Qux + Quu_gain, du)
        # Vxx = Qxx + gain' (Quu gain + Qux) + Qux' gain
        Vxx = Qxx + matrix_t(gain, Quu_gain + Qux) + matrix_t(Qux, gain)

        # J falls by -(Qu' du + du' Quu du / 2)
        promise = promise - (Qu * du).sum(0) - np.einsum("ib,ijb,jb->b", du, Quu, du) / 2
        k[:, t] = du.T
        K[:, t] = np.moveaxis(gain, -1, 0)
    return k, K, promise


def state_cost(plant: Plant, states, target) -> tuple[np.ndarray, np.ndarray]:
    """Gradient lx (M + 1, n, B) and Hessian lxx (M + 1, n, n, B) of the cost of states.

    l = e' Q e with the Jacobian E of e: lx = 2 E' Q e, lxx = 2 E' Q E, without E's derivative.
    """
    steps = states.shape[1] - 1
    Q = np.array([plant.Q] * steps + [plant.Qf])  # (M + 1, F), diagonals
    E = encode_jacobian(plant, states)
    e = encode(plant, states) - encode(plant, target)[:, None]
    lx = 2 * np.einsum("btfi,tf,btf->bti", E, Q, e)
    lxx = 2 * np.einsum("btfi,tf,btfj->btij", E, Q, E)
    return rows_last(lx), rows_last(lxx)


def rows_last(values: np.ndarray) -> np.ndarray:
    """(B, ...) -> (..., B)"""
    return np.ascontiguousarray(np.moveaxis(values, 0, -1))


def matrix(M: np.ndarray, N: np.ndarray) -> np.ndarray:
    """M N for every row, which is the last axis."""
    return np.einsum("ijb,jkb->ikb", M, N)


def matrix_t(M: np.ndarray, N: np.ndarray) -> np.ndarray:
    """M' N"""
    return np.einsum("jib,jkb->ikb", M, N)


def vector(M: np.ndarray, v: np.ndarray) -> np.ndarray:
    """M v"""
    return np.einsum("ijb,jb->ib", M, v)


def vector_t(M: np.ndarray, v: np.ndarray) -> np.ndarray:
    """M' v"""
    return np.einsum("jib,jb->ib", M, v)


def invert(M: np.ndarray) -> np.ndarray:
    """The inverse of (m, m, B) for every row."""
    if len(M) == 1:
        return 1 / M
    return np.moveaxis(np.linalg.inv(np.moveaxis(M, -1, 0)), 0, -1)


# ---------------------------------------------------------------- dynamic programming


@lru_cache(maxsize=4)
def cost_to_go(plant: Plant, cells: int = 321, levels: int = 9) -> tuple[list, np.ndarray, list]:
    """Dynamic programming on a grid, for plants of two states and one fixed target.

    Returns (two axes of the grid, the controls it may choose from (levels, 1),
    V_0 .. V_N, each (cells^2,)). The grid spans a turn of an angle; other states up to one and a
    half times the starts, or to 10 rad/s. V is interpolated linearly.
    """
    edges = [grid_edge(plant, i) for i in range(2)]
    axes = [np.linspace(-edge, edge, cells) for edge in edges]
    x = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 1, 2)
    u = np.linspace(-plant.bound, plant.bound, levels)[:, None]
    look_up = interpolation(plant, axes, next_states(plant, x, u))
    e = encode(plant, x[:, 0]) - encode(plant, np.array(plant.goal[:1], float))
    now = (e**2 @ np.array(plant.Q))[:, None] + plant.R * (u**2).sum(-1)  # (cells^2, levels)
    values = [e**2 @ np.array(plant.Qf)]
    for _ in range(plant.N):
        values.insert(0, (now + look_up(values[0])).min(1))
    return axes, u, values


def grid_edge(plant: Plant, i: int) -> float:
    """Where the grid ends in state i."""
    if i in plant.angles:
        return np.pi
    return 10.0 if plant.angles else 1.5 * plant.start[1][i]


def next_states(plant: Plant, x: np.ndarray, u: np.ndarray) -> np.ndarray:
    """States x (B, 1, n) one step on, under each of the controls u (levels, m): (B, levels, n)."""
    every_x = x + 0 * u
    every_u = u + 0 * x[..., :1]
    return plant.step(every_x, every_u, plant.dt, 1.0)


def interpolation(plant: Plant, axes: list, x: np.ndarray) -> Callable:
    """A function V (cells^2,) -> V at the points x (..., 2).

    Bilinear between the four corners of a cell, held beyond the edges of the grid.
    """
    corners, weights = [], []
    for i, axis in enumerate(axes):
        place = wrap(x[..., i]) if i in plant.angles else x[..., i]
        place = (place - axis[0]) / (axis[1] - axis[0])  # in cells
        place = place.clip(0, len(axis) - 1.000001)  # so that the corner above exists
        corner = place.astype(np.int32)
        corners.append(corner)
        weights.append(place - corner)
    columns = len(axes[1])
    low_low = corners[0] * columns + corners[1]
    low_high = low_low + 1
    high_low = low_low + columns
    high_high = high_low + 1
    a, b = weights  # of the high corner along the first and the second axis

    def look_up(V: np.ndarray) -> np.ndarray:
        low = (1 - b) * V[low_low] + b * V[low_high]
        high = (1 - b) * V[high_low] + b * V[high_high]
        return (1 - a) * low + a * high

    return look_up


def grid_plan(plant: Plant, x0: np.ndarray) -> np.ndarray:
    """Plans (B, N, m) of the dynamic programme.

    They are coarse, but in the basin of the best optimum, also where there are many.
    """
    axes, u, values = cost_to_go(plant)
    x, plan = x0, []
    for V in values[1:]:
        after = next_states(plant, x[:, None], u)
        total = plant.R * (u**2).sum(-1) + interpolation(plant, axes, after)(V)
        chosen = u[total.argmin(1)]
        plan.append(chosen)
        x = plant.step(x, chosen, plant.dt, 1.0)
    return np.stack(plan, 1)


# Experts that are best, or nearly so, on the plants that name them: good starts for `optimum`.
LINEAR = {
    "minimum_norm": minimum_norm,
    "minimum_acceleration": minimum_acceleration,
    "source_midpoint": source_midpoint,
}


def best_plan(plant: Plant, x0: np.ndarray, target: np.ndarray, left: int = 0) -> np.ndarray:
    """(B, M, m) the best plan that we can find.

    `optimum`, started from the plant's linear expert, from LQR, or where there are many optima
    from the grid. How good the grid is: of 300 pendulums, half as many cells a side end more than
    0.1 % above this grid in 1.3 %, and never below it. Of 200 pendulums, LQR as start ends above
    it in 59 % (by more than 1e-6), and never below it.
    """
    if plant.angles:
        start = grid_plan(plant, x0)
    else:
        start = LINEAR.get(plant.expert, lqr)(plant, x0, target, left)
    plan, _ = optimum(plant, x0, target, start)
    return plan


EXPERTS = {**LINEAR, "lqr": lqr, "source_lqr": source_lqr, "optimum": best_plan}


# ---------------------------------------------------------------- rows

ROWS = ("initial_states", "target_states", "state_trajectories", "control_sequences", "costs")
# The second number of the key of a split's random numbers: no split sees another's rows.
SPLITS = {"train": 1, "val": 2, "test": 3, "wide": 4}
WIDE = 1.5  # how much further the starts of the split "wide" spread


def draw_ends(
    plant: Plant, count: int, g: np.random.Generator, wide: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Starts and targets, each (count, n), uniform in the ranges of the plant.

    `wide`: all starts lie beyond the training range. Fewer rows are the head of more rows, unless
    `wide`.
    """
    low = np.array([*plant.start[0], *plant.goal[0]], float)
    high = np.array([*plant.start[1], *plant.goal[1]], float)
    vary = np.flatnonzero(low < high)
    tries = 8 * count if wide else count
    part = g.random((tries, len(vary)))  # 0 is the lowest, 1 the highest
    if wide:
        start = vary < plant.n
        part[:, start] = (part[:, start] - 0.5) * WIDE + 0.5
        beyond = ((part < 0) | (part > 1)).any(1)
        part = part[beyond][:count]
    ends = np.tile(low, (len(part), 1))
    ends[:, vary] += part * (high - low)[vary]
    return ends[:, : plant.n], ends[:, plant.n :]


def make_rows(
    plant: Plant, x0: np.ndarray, target: np.ndarray, best: bool = True
) -> dict[str, np.ndarray]:
    """The rows (see ROWS) in which the plant's expert goes from x0 to the target.

    `best`: with "optimal_costs" (S,), J* of the best plan that we know.
    """
    plan = clip(plant, EXPERTS[plant.expert](plant, x0, target, 0))
    rows = {
        "initial_states": x0,
        "target_states": target,
        "state_trajectories": rollout(plant, x0, plan),
        "control_sequences": plan,
        "costs": plan_cost(plant, x0, plan, target),
    }
    if best and plant.expert == "optimum":
        rows["optimal_costs"] = rows["costs"]
    elif best:
        rows["optimal_costs"] = plan_cost(plant, x0, best_plan(plant, x0, target), target)
    return rows


def generate(plant: Plant, count: int, split: str, seed: int = 0) -> dict[str, np.ndarray]:
    """`count` rows of "train", "val", "test" or "wide", a function of these arguments.

    initial_states, target_states (S, n), state_trajectories (S, N + 1, n),
    control_sequences (S, N, m), costs (S,), all float64, and except for "train"
    optimal_costs (S,). Raises UserError for other splits and for fewer than one row.
    """
    if split not in SPLITS or count < 1:
        raise UserError(
            f"control rows: split = {split!r} with {count} rows, "
            f"expected one of {', '.join(SPLITS)} with 1 or more"
        )
    x0, target = draw_ends(plant, count, rng(seed, SPLITS[split]), wide=split == "wide")
    return make_rows(plant, x0, target, best=split != "train")


def source_splits(plant: Plant) -> dict[str, dict]:
    """{"train", "test"} with the sizes and seeds of the source project, leaks included."""
    splits = {}
    for name, (count, seed) in SOURCE_SEEDS[plant.name].items():
        x0, target = draw_ends(plant, count, np.random.default_rng(seed))
        splits[name] = make_rows(plant, x0, target, best=name != "train")
    return splits


def inputs(plant: Plant, x0, target):
    """(B, F + G) what a policy has to know: the encoded start and the encoded target.

    Of the target only what differs between rows of this plant.
    """
    low, high = encode(plant, np.array(plant.goal, float))
    vary = np.flatnonzero(low != high)
    return library(x0).concatenate([encode(plant, x0), encode(plant, target)[..., vary]], -1)


def scaling(plant: Plant, train: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"inputs", "controls"}: (mean, standard deviation) over the training rows.

    0 and 1 where the plant needs no scaling.
    """
    values = {
        "inputs": inputs(plant, train["initial_states"], train["target_states"]),
        "controls": train["control_sequences"].reshape(-1, plant.m),
    }
    scale = {}
    for name, v in values.items():
        mean, std = v.mean(0), np.maximum(v.std(0), 1e-8)
        scale[name] = (mean, std) if plant.zscore else (0 * mean, 0 * std + 1)
    return scale


# ---------------------------------------------------------------- files of rows


def read_npz(path: str, plant: Plant) -> dict[str, np.ndarray]:
    """Rows (see ROWS) of an .npz, float64. The file may hold "optimal_costs" (S,) too.

    "timestep_dts" (S, N), as files of the source project have it, is read and not used.
    Raises UserError for a missing or damaged file, missing arrays, other shapes than the plant's,
    numbers that are not finite, controls beyond the bound, trajectories that do not begin at the
    initial state.
    """
    rows = read_rows(path, (*ROWS, "timestep_dts", "optimal_costs"))
    check_shapes(path, plant, rows)
    for name, values in rows.items():
        if not np.isfinite(values).all():
            place = tuple(np.argwhere(~np.isfinite(values))[0])
            raise UserError(
                f"{path}, row {place[0] + 1}: {name} has {values[place]}, expected finite numbers"
            )
    size = np.linalg.norm(rows["control_sequences"], axis=-1).max(1)
    row = size.argmax()
    if size[row] > plant.bound * (1 + 1e-6):
        raise UserError(
            f"{path}, row {row + 1}: control_sequences reaches {size[row]:g}, "
            f"expected at most the bound {plant.bound:g} of {plant.name}"
        )
    away = np.abs(rows["state_trajectories"][:, 0] - rows["initial_states"]).max(1)
    row = away.argmax()
    if away[row] > 1e-6 * (1 + np.abs(rows["initial_states"]).max()):
        raise UserError(
            f"{path}, row {row + 1}: state_trajectories begins {away[row]:g} away "
            "from initial_states, expected there"
        )
    return rows


def read_rows(path: str, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays of an .npz that are among `names`, as float64. Raises UserError."""
    arrays, found = read_arrays(path, names, "control rows")
    rows = {name: np.asarray(values, float) for name, values in arrays.items()}
    missing = [name for name in ROWS if name not in found]
    if missing:
        raise UserError(f"{path}: has arrays {found}, expected also {', '.join(missing)}")
    return rows


def check_shapes(path: str, plant: Plant, rows: dict[str, np.ndarray]) -> None:
    """Raises UserError for an array whose shape is not (S, ...) as the plant has it."""
    shapes = {
        "initial_states": (plant.n,),
        "target_states": (plant.n,),
        "state_trajectories": (plant.N + 1, plant.n),
        "control_sequences": (plant.N, plant.m),
        "costs": (),
        "timestep_dts": (plant.N,),
        "optimal_costs": (),
    }
    S = len(np.atleast_1d(rows["initial_states"]))
    for name, values in rows.items():
        if S and values.shape == (S, *shapes[name]):
            continue
        expected = ", ".join(map(str, ("S", *shapes[name])))
        raise UserError(
            f"{path}: {name} has shape {values.shape}, expected ({expected}) for {plant.name}, "
            f"with S = {S or '1 or more'} rows"
        )
