"""Plants, experts, rows and figures of control, against values found by hand or in another way."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from config import UserError
from tasks import control_report as metrics
from tasks import plants
from tasks.base import rng
from tasks.plants import DOUBLE_INTEGRATOR as DI
from tasks.plants import (
    PENDULUM,
    PLANTS,
    ROCKET_STANDIN,
    SOURCE_VAN_DER_POL,
    SPLITS,
    VAN_DER_POL_MU,
)
from tasks.plants import VAN_DER_POL as VDP


def ends(plant, count, seed=7):
    return plants.draw_ends(plant, count, rng(seed))


def errors(plant, x0, plan, target):
    """Terminal errors (B,) of plans."""
    return plants.terminal_error(plant, plants.rollout(plant, x0, plan), target)


@pytest.fixture(scope="module")
def labels():
    """1000 + 1000 rows of the source project's Van der Pol labels, R = 0.1."""
    return plants.source_splits(SOURCE_VAN_DER_POL)


@pytest.fixture(scope="module")
def test_rows():
    """60 rows of optimal labels for each plant."""
    chosen = DI, VDP, VAN_DER_POL_MU, ROCKET_STANDIN
    return {plant.name: plants.generate(plant, 60, "test") for plant in chosen}


# ---------------------------------------------------------------- plants

T = 0.05
# Taylor series of one step from rest, of x1'' = mu x1' - x1 + 1
KICK = (T**2 / 2 + T**3 / 6, T + T**2 / 2 - T**4 / 24)
KICK_MU_2 = (T**2 / 2 + T**3 / 3, T + T**2 + T**3 / 2, 2)
# and of a pendulum that falls away from upright
FALL = (
    1e-3 * (1 + 9.81 * T**2 / 2 - 0.981 * T**3 / 6 + 9.81**2 * T**4 / 24),
    1e-3 * (9.81 * T - 0.981 * T**2 / 2 + (9.81**2 + 0.0981) * T**3 / 6),
)
LANDER = (0, 0, 100, 10, 0, -5, 2000)
THRUST = (2000.0, 0.0, 7420.0)  # of 2000 kg: accelerations 1, 0 and what Mars pulls
BURNT = math.exp(-math.sqrt(1 + 3.71**2) * 1.2 / (200.7 * 9.81))


@pytest.mark.parametrize(
    "plant, x, u, after, atol",
    [
        (DI, (1, 2), (3,), (1 + 0.66 + 3 * 0.33**2 / 2, 2.99), 1e-14),
        (VDP, (1, 0), (1,), (1, 0), 1e-15),  # u holds the spring
        (VDP, (0, 0), (1,), KICK, 2e-8),
        (VAN_DER_POL_MU, (0, 0, 2), (1,), KICK_MU_2, 2e-6),
        (PENDULUM, (np.pi, 0), (0,), (np.pi, 0), 1e-15),  # hangs
        (PENDULUM, (1e-3, 0), (0,), FALL, 1e-7),
        (ROCKET_STANDIN, LANDER, THRUST, (12.72, 0, 94, 11.2, 0, -5, 2000 * BURNT), 1e-9),
    ],
)
def test_one_step_by_hand(plant, x, u, after, atol):
    found = plant.step(np.array([x], float), np.array([u], float), plant.dt, 1.0)
    np.testing.assert_allclose(found, [after], rtol=0, atol=atol)


@pytest.mark.parametrize("name", PLANTS)
def test_numpy_and_torch_agree(name):
    plant = PLANTS[name]
    x0, target = ends(plant, 4)
    plan = rng(1).normal(size=(4, 8, plant.m)) * plant.bound * 0.3
    states = plants.rollout(plant, x0, plan, 1.1)
    start, u, goal = (torch.from_numpy(values) for values in (x0, plan, target))
    theirs = plants.rollout(plant, start, u, 1.1)
    np.testing.assert_allclose(theirs, states, rtol=1e-10, atol=1e-10)
    J = plants.cost(plant, states, plan, target)
    np.testing.assert_allclose(plants.cost(plant, theirs, u, goal), J, rtol=1e-12)
    error = plants.terminal_error(plant, states, target)
    np.testing.assert_allclose(plants.terminal_error(plant, theirs, goal), error, rtol=1e-9)


@pytest.mark.parametrize("name", PLANTS)
def test_gradients_are_those_of_differences(name):
    plant = PLANTS[name]
    x0, target = ends(plant, 4)
    plan = rng(1).normal(size=(4, 8, plant.m)) * plant.bound * 0.3
    u = torch.from_numpy(plan).requires_grad_()

    def J_of(x0, plan, target):
        return plants.cost(plant, plants.rollout(plant, x0, plan, 1.1), plan, target)

    J_of(torch.from_numpy(x0), u, torch.from_numpy(target)).sum().backward()
    h = 1e-4 * plant.bound
    up, down = plan.copy(), plan.copy()
    up[:, 3, 0] += h
    down[:, 3, 0] -= h
    slope = (J_of(x0, up, target) - J_of(x0, down, target)) / (2 * h)
    np.testing.assert_allclose(u.grad[:, 3, 0], slope, rtol=1e-3, atol=1e-6)


def test_the_cost_by_hand():
    plant = replace(DI, N=1, Q=(10.0, 5.0), R=0.1, Qf=(200.0, 100.0))
    states, plan = np.array([[[1.0, 2.0], [3.0, 1.0]]]), np.array([[[2.0]]])
    J = plants.cost(plant, states, plan, np.array([[1.0, 1.0]]))
    assert J == pytest.approx(5 + 0.4 + 200 * 4)


def test_the_cost_of_an_angle_does_not_count_turns():
    plant, plan = replace(PENDULUM, N=1), np.zeros((1, 1, 1))
    states = np.array([[[np.pi, 0.0], [2 * np.pi, 3.0]]])  # down, then up after a whole turn
    J = plants.cost(plant, states, plan, np.zeros((1, 2)))
    assert J == pytest.approx(10 * 4 + 20 * 9)


def test_the_source_trains_through_another_cost():
    expected = replace(DI, Q=(1.0, 1.0), R=0.01, Qf=(10.0, 10.0))
    assert plants.source_process_supervision(DI) == expected


@pytest.mark.parametrize("sign", [1, -1])
def test_plants_clip(sign):
    x0 = np.zeros((1, 2))
    at, beyond = (plants.rollout(VDP, x0, np.full((1, 5, 1), sign * size)) for size in (2.0, 50.0))
    np.testing.assert_array_equal(at, beyond)


def test_clipping_keeps_the_direction():
    thrusts = np.array([[30e3, 0, 40e3], [3.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    found = plants.clip(ROCKET_STANDIN, thrusts)
    np.testing.assert_allclose(found, [[9e3, 0, 12e3], [3, 4, 0], [0, 0, 0]])


def test_noise_mismatch_and_time_steps_act():
    x0, plan = np.array([[1.0, 2.0]]), np.full((1, 2, 1), 3.0)
    heavy, half = plants.rollout(DI, x0, plan, scale=2.0), plants.rollout(DI, x0, plan / 2)
    np.testing.assert_allclose(heavy, half)
    held, idle = plants.rollout(DI, x0, plan, noise=-plan), plants.rollout(DI, x0, 0 * plan)
    np.testing.assert_allclose(held, idle)
    states = plants.rollout(replace(DI, dt=0.5), x0, plan)
    np.testing.assert_allclose(states, [[[1, 2], [2.375, 3.5], [4.5, 5]]])


def test_a_given_mu_is_a_third_state():
    x, u = np.array([[1.0, 1.0]]), np.full((1, 1), 3.0)
    given = VAN_DER_POL_MU.step(np.array([[1.0, 1.0, 1.5]]), u, T, 1.0)
    np.testing.assert_allclose(given[:, :2], VDP.step(x, u, T, 1.5))


# ---------------------------------------------------------------- experts


def test_minimum_norm_is_exact_and_the_least():
    x0, target = ends(DI, 500)
    plan = plants.minimum_norm(DI, x0, target)
    assert errors(DI, x0, plan, target).max() < 1e-12
    assert np.abs(plan).max() < DI.bound
    one_at_a_time = np.eye(DI.N)[:, :, None]
    C = plants.rollout(DI, np.zeros((DI.N, 2)), one_at_a_time)[:, -1].T  # (2, N)
    idle = np.linalg.svd(C)[2][2:]  # controls that lead nowhere
    assert np.abs(plan[..., 0] @ idle.T).max() < 1e-12, "it has no part of those"


def test_minimum_norm_for_fewer_steps_left():
    x0, target = ends(DI, 500)
    plan = plants.minimum_norm(DI, x0, target, 4)
    assert plan.shape == (500, 4, 1)
    assert errors(replace(DI, bound=1e3), x0, plan, target).max() < 1e-12


def quadratic_programme(plant, x0, target):
    """The best plan of a linear plant without bound, all controls at once.

    Least squares on the residuals of the cost.
    """
    N, B = plant.N, len(x0)
    free = plants.rollout(plant, x0, np.zeros((B, N, 1))) - target[:, None]
    moved = plants.rollout(plant, np.zeros((N, 2)), np.eye(N)[:, :, None])  # (controls, N + 1, 2)
    weight = np.sqrt(np.array([plant.Q] * N + [plant.Qf]))
    matrix = np.concatenate([(moved * weight).reshape(N, -1).T, np.sqrt(plant.R) * np.eye(N)])
    wish = np.concatenate([-(free * weight).reshape(B, -1), np.zeros((B, N))], 1)
    return np.linalg.lstsq(matrix, wish.T, rcond=None)[0].T[..., None]


UNBOUNDED = replace(PLANTS["source_double_integrator"], bound=1e3)


def test_lqr_for_moving_targets_is_the_quadratic_programme_and_the_sources_is_not():
    x0, target = ends(UNBOUNDED, 200)
    best = quadratic_programme(UNBOUNDED, x0, target)
    np.testing.assert_allclose(plants.lqr(UNBOUNDED, x0, target), best, atol=1e-9)
    wrong = plants.source_lqr(UNBOUNDED, x0, target)
    J_wrong, J_best = (plants.plan_cost(UNBOUNDED, x0, p, target).mean() for p in (wrong, best))
    assert J_wrong > 2 * J_best


def test_at_a_point_of_rest_the_sources_lqr_is_right_too():
    x0, target = ends(UNBOUNDED, 200)
    target[:, 1] = 0
    best = quadratic_programme(UNBOUNDED, x0, target)
    np.testing.assert_allclose(plants.source_lqr(UNBOUNDED, x0, target), best, atol=1e-9)


def test_the_sources_gains():
    plant = PLANTS["source_double_integrator_lqr8"]
    A, B = plants.linearise_once(plant, np.zeros(2))
    gains = plants.lqr_gains(A, B, np.eye(2), 0.1 * np.eye(1), 100 * np.eye(2), 15)
    found = [gains[0][0], gains[14][0]]
    np.testing.assert_allclose(found, [[1.65, 2.46], [0.48, 3.05]], atol=0.006)


@pytest.mark.parametrize("plant", [DI, VDP, VAN_DER_POL_MU], ids=lambda plant: plant.name)
def test_no_neighbour_of_the_optimum_is_better(plant):
    plant = replace(plant, bound=1.0) if plant is DI else plant  # so that the bound binds
    x0, target = ends(plant, 40)
    plan = plants.best_plan(plant, x0, target)
    free = replace(plant, bound=1e9)
    u = torch.from_numpy(plan).requires_grad_()
    J = plants.plan_cost(free, torch.from_numpy(x0), u, torch.from_numpy(target))
    slope = torch.autograd.grad(J.sum(), u)[0].numpy()
    at = np.abs(plan) > plant.bound - 1e-12
    assert 0.01 < at.mean() < 0.9
    outwards = np.sign(plan[at]) * slope[at]
    assert (outwards < 1e-3).all(), "further out would be better, further in worse"
    inside, scale = np.abs(slope[~at]).max(), np.abs(slope[at]).max()
    assert inside < 1e-3 * scale, "inside the bound the gradient vanishes"


def test_the_sources_van_der_pol_labels_have_the_measured_statistics(labels):
    rows = labels["test"]
    u, states = rows["control_sequences"], rows["state_trajectories"]
    error = plants.terminal_error(VDP, states, rows["target_states"])
    assert error.mean() == pytest.approx(0.003, abs=0.0002)
    assert error.max() == pytest.approx(0.012, abs=0.0006)
    at_bound = np.abs(u) == 2
    assert at_bound.mean() == pytest.approx(0.104, abs=0.002)
    assert 0.83 < at_bound.any((1, 2)).mean() < 0.89
    assert u.var() == pytest.approx(0.94, abs=0.015)
    assert (u**2).sum((1, 2)).mean() == pytest.approx(93, abs=0.6)
    ratio = rows["costs"] / rows["optimal_costs"]
    assert ratio.min() > 1
    assert ratio.mean() == pytest.approx(1.0035, abs=0.0015)


def test_the_sources_van_der_pol_labels_with_the_r_of_its_generator(labels):
    rows, plant = labels["test"], PLANTS["source_van_der_pol_r05"]
    u = plants.source_lqr(plant, rows["initial_states"], rows["target_states"])
    assert (np.abs(u) == 2).mean() == pytest.approx(0.082, abs=0.004)
    assert 0.75 < u.var() < 0.79
    assert (u**2).sum((1, 2)).mean() == pytest.approx(76, abs=1)


def test_the_sources_double_integrator_labels_have_the_measured_statistics():
    plant = PLANTS["source_double_integrator"]
    x0, target = ends(plant, 2000)
    u = plants.source_midpoint(plant, x0, target)
    states = plants.rollout(plant, x0, u)
    error = plants.terminal_error(plant, states, target)
    assert error.mean() == pytest.approx(0.0163, abs=0.0012)
    assert error.max() < 0.06
    assert np.abs(states[:, -1, 1] - target[:, 1]).max() < 1e-12
    # The position is missed by |6 a3| T dt^2 / 12, of the path p0 + v0 t + a2 t^2 + a3 t^3.
    a3 = (-2 * (target - x0)[:, 0] + 4.95 * (x0 + target)[:, 1]) / 4.95**3
    missed = np.abs(states[:, -1, 0] - target[:, 0])
    np.testing.assert_allclose(missed, np.abs(6 * a3) * 4.95 * 0.33**2 / 12, atol=1e-12)
    assert 2.5 < np.abs(u).max() < 3.3
    assert u.var() == pytest.approx(0.48, abs=0.04)
    assert 6.6 < (u**2).sum((1, 2)).mean() < 7.6


def test_the_sources_ablation_labels_have_the_measured_statistics():
    plant = PLANTS["source_double_integrator_lqr8"]
    x0, target = ends(plant, 3000)
    u = plants.source_lqr(plant, x0, target)
    at_bound = np.abs(u) == 8
    assert np.abs(u).max() == 8
    assert u.std() == pytest.approx(2.07, abs=0.06)
    assert at_bound.any((1, 2)).mean() == pytest.approx(0.37, abs=0.04)
    assert at_bound.mean() == pytest.approx(0.029, abs=0.005)
    error = errors(plant, x0, u, target)
    assert error.mean() == pytest.approx(0.85, abs=0.04)
    assert (error < 0.1).mean() == pytest.approx(0.064, abs=0.02)
    floor = ((u - u.clip(-4, 4)) ** 2).mean()  # of a model bounded to 4
    assert floor == pytest.approx(0.671, abs=0.05), "no such model has a lower error"


def test_the_rockets_expert_lands_as_measured():
    plant = ROCKET_STANDIN
    x0, target = ends(plant, 1000)
    u = plants.minimum_acceleration(plant, x0, target)
    states = plants.rollout(plant, x0, u)
    assert plants.terminal_error(plant, states, target).max() < 1e-9
    peak = np.linalg.norm(u, axis=-1).max(1)
    assert np.median(peak) == pytest.approx(9300, abs=250)
    assert np.quantile(peak, 0.95) == pytest.approx(11100, abs=300)
    assert peak.max() < plant.bound
    assert states[:, :-1, 2].min() > 0
    fuel = x0[:, 6] - states[:, -1, 6]
    assert 175 < fuel.min() < fuel.max() < 295
    second_half = plants.minimum_acceleration(plant, states[:, 25], target, 25)
    np.testing.assert_allclose(second_half, u[:, 25:], rtol=1e-6, atol=1e-3)  # Bellman


@pytest.mark.slow
def test_the_pendulum_swings_up_and_the_grid_knows_the_best_side():
    x0, target = ends(PENDULUM, 10)
    x0[:3] = [[np.pi, 0.0], [np.pi - 0.01, 0.0], [np.pi + 0.01, 0.0]]
    plan = plants.best_plan(PENDULUM, x0, target)
    J = plants.plan_cost(PENDULUM, x0, plan, target)
    assert errors(PENDULUM, x0, plan, target).max() < 0.02, "all upright, also from hanging"
    assert J[1] == pytest.approx(J[2], rel=1e-6), "a mirror image costs the same"
    assert np.abs(plan).max() <= PENDULUM.bound
    start = plants.lqr(PENDULUM, x0, target)
    from_lqr = plants.optimum(PENDULUM, x0, target, start, sweeps=8)[1]
    assert (J <= from_lqr * (1 + 1e-9)).all() and (from_lqr > 1.01 * J).any()


@pytest.mark.slow
def test_the_plans_of_a_pendulum_are_improved_until_nothing_helps():
    """Test rows that 60 sweeps left unfinished; the costs come from another implementation."""
    g = plants.rng(0, plants.SPLITS["test"])
    x0, target = (ends[[175, 373]] for ends in plants.draw_ends(PENDULUM, 1000, g))
    J = plants.plan_cost(PENDULUM, x0, plants.best_plan(PENDULUM, x0, target), target)
    assert J == pytest.approx([1010.799, 2127.525], abs=1e-2)


def test_interpolation_is_exact_for_bilinear_functions_and_holds_at_the_edges():
    axes = [np.linspace(-1, 1, 5), np.linspace(-2, 2, 9)]

    def bilinear(a, b):
        return 1 + 2 * a - 3 * b + a * b

    V = bilinear(*np.meshgrid(*axes, indexing="ij")).ravel()
    x = np.array([[0.3, -1.1], [-1.0, 2.0], [5.0, 0.1]])
    found = plants.interpolation(VDP, axes, x)(V)
    np.testing.assert_allclose(found, bilinear(x[:, 0].clip(-1, 1), x[:, 1]), atol=1e-5)


# ---------------------------------------------------------------- rows


def test_rows_have_the_format_and_costs_are_costs(test_rows):
    for name, rows in test_rows.items():
        p = PLANTS[name]
        shapes = [(p.n,), (p.n,), (p.N + 1, p.n), (p.N, p.m), (), ()]
        expected = dict(zip([*plants.ROWS, "optimal_costs"], shapes))
        assert {key: values.shape[1:] for key, values in rows.items()} == expected
        assert (rows["optimal_costs"] <= rows["costs"] * (1 + 1e-12)).all()
        assert np.linalg.norm(rows["control_sequences"], axis=-1).max() <= p.bound


def test_labels_and_the_least_cost_have_one_objective(test_rows):
    rows = test_rows["double_integrator"]
    assert (rows["costs"] < 1.01 * rows["optimal_costs"]).all()


def test_splits_share_no_row_and_repeat_to_the_bit():
    starts = {split: plants.generate(DI, 50, split)["initial_states"] for split in SPLITS}
    assert len({row.tobytes() for rows in starts.values() for row in rows}) == 200
    again = plants.generate(DI, 50, "val")["initial_states"]
    np.testing.assert_array_equal(starts["val"], again)
    other = plants.generate(DI, 50, "val", seed=1)["initial_states"]
    assert not np.isin(starts["val"], other).any()


def test_only_wide_starts_lie_beyond_the_training_range():
    starts = {split: plants.generate(DI, 50, split)["initial_states"] for split in SPLITS}
    for split in ("train", "val", "test"):
        assert np.abs(starts[split]).max() <= 2
    assert (np.abs(starts["wide"]).max(1) > 2).all() and np.abs(starts["wide"]).max() <= 3


def test_training_rows_have_no_least_cost():
    assert "optimal_costs" not in plants.generate(DI, 1, "train")


def test_the_sources_ablation_tests_on_training_rows():
    plant = PLANTS["source_double_integrator_lqr8"]
    train, test = (np.concatenate(plants.draw_ends(plant, n, rng(42)), 1) for n in (5000, 1000))
    np.testing.assert_array_equal(train[:1000], test)


def test_an_unknown_split_is_refused():
    expected = "split = 'eval' with 5 rows, expected one of train, val, test, wide"
    with pytest.raises(UserError, match=expected):
        plants.generate(DI, 5, "eval")


def test_a_file_is_read_back(tmp_path, test_rows):
    rows = test_rows["rocket_standin"] | {"timestep_dts": np.full((60, 50), 1.2)}
    np.savez(tmp_path / "a.npz", **rows, more=1)
    back = plants.read_npz(str(tmp_path / "a.npz"), ROCKET_STANDIN)
    assert list(back) == [*plants.ROWS, "timestep_dts", "optimal_costs"]
    for name, values in back.items():
        np.testing.assert_array_equal(values, rows[name])


def broken(name, change):
    """Rows with one array changed."""
    return lambda rows: rows | {name: change(rows[name])}


def at(row, value):
    """An array with another value at a place."""

    def change(values):
        values = values.copy()
        values[row] = value
        return values

    return change


def empty(rows):
    return {name: values[:0] for name, values in rows.items()}


UNREADABLE = "cannot be read as control rows"


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda rows: {"x": rows["costs"]},
            "has arrays ['x'], expected also initial_states, target_states, state_tra",
        ),
        (
            broken("control_sequences", lambda v: v[:, :9]),
            "(60, 9, 1), expected (S, 15, 1) for double_integrator, with S = 60 rows",
        ),
        (broken("costs", lambda v: v[:, None]), "costs has shape (60, 1), expected (S)"),
        (
            broken("initial_states", lambda v: v[0, 0]),
            "initial_states has shape (), expected (S, 2)",
        ),
        (
            broken("target_states", lambda v: v[:9]),
            "target_states has shape (9, 2), expected (S, 2)",
        ),
        (empty, "expected (S, 2) for double_integrator, with S = 1 or more rows"),
        (broken("costs", at(4, np.nan)), "row 5: costs has nan, expected finite numbers"),
        (
            broken("control_sequences", at(2, -8.0)),
            "row 3: control_sequences reaches 8, expected at most the bound 4 of double_integrator",
        ),
        (broken("state_trajectories", at((1, 0), 9.0)), "row 2: state_trajectories begins"),
        (broken("costs", lambda v: v.astype(str) + "a"), UNREADABLE),
        (broken("costs", lambda v: v.astype(object)), UNREADABLE),
        (None, "No such file"),
        (b"PK\x03\x04 no zip", UNREADABLE),
        (b"", UNREADABLE),
    ],
)
def test_bad_files_end_in_one_sentence(tmp_path, test_rows, change, words):
    path = tmp_path / "a.npz"
    if isinstance(change, bytes):
        path.write_bytes(change)
    elif change:
        np.savez(path, **change(test_rows["double_integrator"]))
    with pytest.raises(UserError) as error:
        plants.read_npz(str(path), DI)
    sentence = str(error.value)
    assert sentence.startswith(str(path)) and words in sentence and "\n" not in sentence


def test_inputs_are_what_differs_between_rows():
    x0, target = ends(DI, 3)
    both = np.concatenate([x0, target], 1)
    np.testing.assert_array_equal(plants.inputs(DI, x0, target), both)
    np.testing.assert_array_equal(plants.inputs(VDP, x0, 0 * x0), x0)
    encoded = np.stack([np.sin(x0[:, 0]), np.cos(x0[:, 0]), x0[:, 1]], 1)
    np.testing.assert_allclose(plants.inputs(PENDULUM, x0, 0 * x0), encoded)


def test_scaling_is_for_plants_that_need_it(test_rows):
    rows = test_rows["rocket_standin"]
    mean, std = plants.scaling(ROCKET_STANDIN, rows)["controls"]
    z = (rows["control_sequences"] - mean) / std
    np.testing.assert_allclose([z.mean((0, 1)), z.std((0, 1))], [[0] * 3, [1] * 3], atol=1e-9)
    mean, std = plants.scaling(VDP, test_rows["van_der_pol"])["controls"]
    assert (mean.tolist(), std.tolist()) == ([0.0], [1.0])


# ---------------------------------------------------------------- figures

HAND = replace(
    DI,
    N=2,
    tolerances=(0.5, 1.5),
    limits=((-10, -10), (10, 10)),
    bound=4.0,
    Q=(0.0, 0.0),
    R=1.0,
    Qf=(1.0, 1.0),
)
HAND_ROWS = {
    "target_states": np.zeros((2, 2)),
    "costs": np.array([10.0, 10.0]),
    "optimal_costs": np.array([8.0, 10.0]),
}
HAND_STATES = np.array([[[0, 0], [11, 0], [0, 1]], [[0, 0], [0, 0], [3, 4]]], float)


def test_figures_by_hand():
    asked = np.array([[[6.0], [2.0]], [[0.0], [4.0]]])
    found = metrics.figures(HAND, HAND_ROWS, HAND_STATES, asked)
    J = [16 + 4 + 1, 16 + 25]
    to_optimum = (21 / 8 + 4.1) / 2
    expected = {
        "error_mean": 3.0,
        "error_max": 5.0,
        "error_0": 1.5,
        "error_1": 2.5,
        "success@0.5": 0.0,
        "success@1.5": 0.5,
        "cost_mean": sum(J) / 2,
        "to_expert_median": sum(J) / 20,
        "to_expert_p95": 4.1,
        "to_optimum_median": to_optimum,
        "above_bound": 0.25,
        "saturated": 0.5,
        "beyond_limits": 0.5,
        "diverged": 0.0,
        "effort": (20 + 16) / 2,
        "smoothness": (4 + 16) / 2,
        "primary": math.log10(to_optimum - 1),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_a_row_that_diverged_is_a_failure_and_left_out_of_means():
    states = HAND_STATES.copy()
    states[1, 2] = np.nan
    found = metrics.figures(HAND, HAND_ROWS, states, np.zeros((2, 2, 1)))
    assert found["diverged"] == found["success@1.5"] == 0.5
    assert found["cost_median"] == np.inf
    assert found["cost_mean"] == 1.0


@pytest.mark.parametrize("plant", [DI, ROCKET_STANDIN], ids=lambda plant: plant.name)
def test_re_planning_by_a_model_without_error_changes_nothing(test_rows, plant):
    """Bellman: what is left of the best plan is the best plan for what is left."""
    rows = test_rows[plant.name]
    found = metrics.report(plant, metrics.expert(plant), rows, (1, 4), 4, takes_left=True)
    once = found["open"]
    for loop in "every_1", "every_4":
        assert found[loop]["cost_mean"] == pytest.approx(once["cost_mean"], rel=1e-6)
    assert once["mse"] == once["beyond_limits"] == 0
    assert once["to_expert_median"] == pytest.approx(1)
    repaired, wrong = found["every_4_more"]["error_mean"], found["open_more"]["error_mean"]
    assert repaired < 0.5 * wrong, "feedback repairs a wrong mass"


@pytest.mark.parametrize("plant", [DI, ROCKET_STANDIN], ids=lambda plant: plant.name)
def test_without_steps_left_a_target_to_be_met_has_no_closed_loop(test_rows, plant):
    found = metrics.report(plant, metrics.zero(plant), test_rows[plant.name])
    assert set(found) == {"open", "open_noise", "open_less", "open_more"}


def test_zero_control_has_the_sources_own_numbers(labels):
    plant, rows = plants.source_process_supervision(SOURCE_VAN_DER_POL), labels["test"]
    plan = np.zeros((1000, 100, 1))
    J = plants.plan_cost(plant, rows["initial_states"], plan, rows["target_states"])
    assert J.mean() == pytest.approx(391.2, abs=0.1)
    error = errors(plant, rows["initial_states"], plan, rows["target_states"])
    assert error.mean() == pytest.approx(1.93, abs=0.03)


def test_the_expert_has_the_sources_own_numbers(labels):
    plant, rows = SOURCE_VAN_DER_POL, labels["test"]
    found = metrics.report(plant, metrics.expert(plant), rows, (), 50)
    assert found["open"]["success@0.02"] == 1
    assert found["open"]["mse"] == 0
    plan = rows["control_sequences"]
    for std, expected in (0.01, 0.026), (0.03, 0.076), (0.1, 0.249):
        force = rng(5).normal(size=plan.shape) * std
        states = plants.rollout(plant, rows["initial_states"], plan, noise=force)
        error = plants.terminal_error(plant, states, rows["target_states"])
        assert error.mean() == pytest.approx(expected, rel=0.1)


# ---------------------------------------------------------------- policies to compare with


@pytest.mark.parametrize("name", ["double_integrator", "source_double_integrator"])
def test_least_squares_reproduces_the_double_integrator(name):
    plant = PLANTS[name]
    train, test = (plants.make_rows(plant, *ends(plant, 200, seed)) for seed in (1, 2))
    found = metrics.report(plant, metrics.polynomial(plant, train, 1), test)["open"]
    assert found["mse"] < 1e-20
    assert found["success@0.1"] == 1
    assert found["above_bound"] == 0
    error = plants.terminal_error(plant, test["state_trajectories"], test["target_states"])
    assert found["error_mean"] == pytest.approx(error.mean(), abs=1e-9), "that of its labels"


def test_a_polynomial_needs_feedback_on_van_der_pol(labels):
    plant = SOURCE_VAN_DER_POL
    policy = metrics.polynomial(plant, labels["train"], 5)
    found = metrics.report(plant, policy, labels["test"], (50, 25, 10), 10)
    once = found["open"]
    assert once["mse"] == pytest.approx(0.040, abs=0.001)
    assert once["success@0.2"] == pytest.approx(0.37, abs=0.002)
    assert once["error_mean"] == pytest.approx(0.50, abs=0.006)
    replanned = [found[f"every_{steps}"] for steps in (50, 25, 10)]
    succeeded = [loop["success@0.2"] for loop in replanned]
    assert succeeded == [1, 1, 1], "asked once more at half time is enough"
    error = [loop["error_mean"] for loop in replanned]
    np.testing.assert_allclose(error, [0.011, 0.007, 0.003], atol=0.0006)
    assert found["every_10"]["primary"] < -1 < once["primary"]
    assert found["every_10"]["to_optimum_median"] > 1
    assert found["open_noise"]["success@0.2"] < found["every_10_noise"]["success@0.2"]
    assert found["every_10_more"]["success@0.2"] > 0.9


def test_van_der_pol_is_not_linear(labels):
    plant = SOURCE_VAN_DER_POL
    policy = metrics.polynomial(plant, labels["train"], 1)
    found = metrics.report(plant, policy, labels["test"], (), 100)["open"]
    assert found["mse"] == pytest.approx(0.173, abs=0.001)
    assert found["success@0.2"] < 0.02


def test_a_policy_may_return_tensors(test_rows):
    rows = test_rows["van_der_pol"]
    plan = torch.zeros(60, 100, 1, requires_grad=True)
    found = metrics.report(VDP, lambda x, target: plan, rows, (), 50)
    assert found == metrics.report(VDP, metrics.zero(VDP), rows, (), 50)


@pytest.mark.parametrize("shape", [(60, 100), (60, 99, 1), (59, 100, 1), (60, 100, 2), ()])
def test_a_plan_of_another_shape_is_refused(test_rows, shape):
    with pytest.raises(UserError) as error:
        metrics.report(VDP, lambda x, target: np.zeros(shape), test_rows["van_der_pol"])
    words = f"van_der_pol returned a plan of shape {shape}, expected (60, 100, 1)"
    assert words in str(error.value)


def test_the_mlp_has_the_size_asked_for():
    assert metrics.mlp_parameters(VDP, 8) == 3 * 8 + 9 * 8 + 9 * 100
    assert metrics.mlp_parameters(DI, 8) == 5 * 8 + 9 * 8 + 9 * 15
    assert metrics.mlp_width(VDP, metrics.mlp_parameters(VDP, 77)) == 77


def test_the_mlp_learns_and_repeats_to_the_bit(labels):
    state = torch.get_rng_state()
    policy, again = (metrics.mlp(VDP, labels["train"], 32, steps=200) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    found = metrics.report(VDP, policy, labels["test"], (10,), 100)
    assert found["open"]["mse"] < 0.2 * labels["test"]["control_sequences"].var()
    assert found["open"]["above_bound"] == 0
    assert found["every_10"]["error_mean"] < found["open"]["error_mean"]
    x0 = labels["test"]["initial_states"]
    np.testing.assert_array_equal(policy(x0, 0 * x0), again(x0, 0 * x0))
