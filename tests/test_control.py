"""Plants, experts, rows and figures of the control tasks, against values computed by hand or in another way."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import control
import control_metrics as metrics
from control import DOUBLE_INTEGRATOR as DI
from control import PENDULUM, PLANTS, ROCKET_STANDIN, SOURCE_VAN_DER_POL, SPLITS, VAN_DER_POL_MU
from control import VAN_DER_POL as VDP
from control import UserError, rng


def ends(plant, count, seed=7):
    return control.draw_ends(plant, count, rng(seed))


@pytest.fixture(scope="module")
def labels():
    """1000 + 1000 rows of the source project's Van der Pol labels, R = 0.1."""
    return control.source_splits(SOURCE_VAN_DER_POL)


@pytest.fixture(scope="module")
def test_rows():
    """60 rows of optimal labels for each plant."""
    return {
        plant.name: control.generate(plant, 60, "test")
        for plant in (DI, VDP, VAN_DER_POL_MU, ROCKET_STANDIN)
    }


# --- plants ---------------------------------------------------------------------------------------------------------

T = 0.05
THRUST = (2000.0, 0.0, 7420.0)  # of 2000 kg: accelerations 1, 0 and what Mars pulls
BURNT = math.exp(-math.sqrt(1 + 3.71**2) * 1.2 / (200.7 * 9.81))


@pytest.mark.parametrize("plant, x, u, after, atol", [
    (DI, (1, 2), (3,), (1 + 0.66 + 3 * 0.33**2 / 2, 2.99), 1e-14),
    (VDP, (1, 0), (1,), (1, 0), 1e-15),  # u holds the spring
    (VDP, (0, 0), (1,), (T**2 / 2 + T**3 / 6, T + T**2 / 2 - T**4 / 24), 2e-8),  # Taylor series of x1'' = x1' - x1 + 1
    (VAN_DER_POL_MU, (0, 0, 2), (1,), (T**2 / 2 + T**3 / 3, T + T**2 + T**3 / 2, 2), 2e-6),
    (PENDULUM, (np.pi, 0), (0,), (np.pi, 0), 1e-15),
    (PENDULUM, (1e-3, 0), (0,), (1e-3 * (1 + 9.81 * T**2 / 2 - 0.981 * T**3 / 6 + 9.81**2 * T**4 / 24),
                                 1e-3 * (9.81 * T - 0.981 * T**2 / 2 + (9.81**2 + 0.0981) * T**3 / 6)), 1e-7),  # falls away from upright
    (ROCKET_STANDIN, (0, 0, 100, 10, 0, -5, 2000), THRUST, (12 + 0.72, 0, 94, 11.2, 0, -5, 2000 * BURNT), 1e-9),
])  # fmt: skip
def test_one_step_by_hand(plant, x, u, after, atol):
    got = plant.step(np.array([x], float), np.array([u], float), plant.dt, 1.0)
    np.testing.assert_allclose(got, [after], rtol=0, atol=atol)


@pytest.mark.parametrize("name", PLANTS)
def test_numpy_and_torch_agree_and_gradients_are_those_of_differences(name):
    plant = PLANTS[name]
    x0, target = ends(plant, 4)
    plan = rng(1).normal(size=(4, 8, plant.m)) * plant.bound * 0.3
    states = control.rollout(plant, x0, plan, 1.1)
    tensors = [torch.from_numpy(v) for v in (x0, plan, target)]
    tensors[1].requires_grad_()
    theirs = control.rollout(plant, tensors[0], tensors[1], 1.1)
    np.testing.assert_allclose(theirs.detach(), states, rtol=1e-10, atol=1e-10)
    J = control.cost(plant, theirs, tensors[1], tensors[2])
    np.testing.assert_allclose(J.detach(), control.cost(plant, states, plan, target), rtol=1e-12)
    np.testing.assert_allclose(
        control.terminal_error(plant, theirs, tensors[2]).detach(),
        control.terminal_error(plant, states, target),
        rtol=1e-9,
    )
    J.sum().backward()
    h = 1e-4 * plant.bound
    up, down = plan.copy(), plan.copy()
    up[:, 3, 0] += h
    down[:, 3, 0] -= h
    slope = (
        control.plan_cost(plant, x0, up, target, 1.1)
        - control.plan_cost(plant, x0, down, target, 1.1)
    ) / (2 * h)
    np.testing.assert_allclose(tensors[1].grad[:, 3, 0], slope, rtol=1e-3, atol=1e-6)


def test_the_cost_by_hand():
    plant = replace(DI, N=1, Q=(10.0, 5.0), R=0.1, Qf=(200.0, 100.0))
    states, plan = np.array([[[1.0, 2.0], [3.0, 1.0]]]), np.array([[[2.0]]])
    assert control.cost(plant, states, plan, np.array([[1.0, 1.0]])) == pytest.approx(
        5 + 0.4 + 200 * 4
    )
    upright = replace(PENDULUM, N=1)
    states = np.array([[[np.pi, 0.0], [2 * np.pi, 3.0]]])  # down, then up after a whole turn
    assert control.cost(upright, states, 0 * plan, np.zeros((1, 2))) == pytest.approx(
        10 * 4 + 20 * 9
    )
    assert control.source_process_supervision(DI) == replace(
        DI, Q=(1.0, 1.0), R=0.01, Qf=(10.0, 10.0)
    )


def test_plants_clip():
    x0 = np.zeros((1, 2))
    for sign in 1, -1:
        at, beyond = (
            control.rollout(VDP, x0, np.full((1, 5, 1), sign * size)) for size in (2.0, 50.0)
        )
        np.testing.assert_array_equal(at, beyond)
    thrust = control.clip(
        ROCKET_STANDIN, np.array([[30e3, 0, 40e3], [3.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    )
    np.testing.assert_allclose(thrust, [[9e3, 0, 12e3], [3, 4, 0], [0, 0, 0]])


def test_noise_mismatch_and_time_steps_act():
    x0, plan = np.array([[1.0, 2.0]]), np.full((1, 2, 1), 3.0)
    np.testing.assert_allclose(
        control.rollout(DI, x0, plan, scale=2.0), control.rollout(DI, x0, plan / 2)
    )
    np.testing.assert_allclose(
        control.rollout(DI, x0, plan, noise=-plan), control.rollout(DI, x0, 0 * plan)
    )
    np.testing.assert_allclose(
        control.rollout(DI, x0, plan, dts=np.full((1, 2), 0.5)),
        control.rollout(replace(DI, dt=0.5), x0, plan),
    )
    fast = VAN_DER_POL_MU.step(np.array([[1.0, 1.0, 1.5]]), plan[:, 0], T, 1.0)
    np.testing.assert_allclose(fast[:, :2], VDP.step(np.array([[1.0, 1.0]]), plan[:, 0], T, 1.5))


# --- experts --------------------------------------------------------------------------------------------------------


def test_minimum_norm_is_exact_and_the_least():
    x0, target = ends(DI, 500)
    plan = control.minimum_norm(DI, x0, target)
    assert (
        control.terminal_error(DI, control.rollout(DI, x0, plan), target).max() < 1e-12
        and np.abs(plan).max() < DI.bound
    )
    unit = np.eye(DI.N)[:, :, None]
    C = control.rollout(DI, np.zeros((DI.N, 2)), unit)[
        :, -1
    ].T  # by rolling out one control at a time
    idle = np.linalg.svd(C)[2][2:]  # controls that lead nowhere
    assert np.abs(plan[..., 0] @ idle.T).max() < 1e-12, "it has no part of those"
    short = control.minimum_norm(DI, x0, target, 4)
    assert (
        short.shape == (500, 4, 1)
        and control.terminal_error(
            DI, control.rollout(replace(DI, bound=1e3), x0, short), target
        ).max()
        < 1e-12
    )


def quadratic_programme(plant, x0, target):
    """The best plan of a linear plant without bound, all controls at once: least squares on the residuals of the cost."""
    M = plant.N
    free = control.rollout(plant, x0, np.zeros((len(x0), M, 1))) - target[:, None]
    moved = control.rollout(
        plant, np.zeros((M, 2)), np.eye(M)[:, :, None]
    )  # (M controls, M + 1, 2)
    weight = np.sqrt(np.array([plant.Q] * M + [plant.Qf]))
    matrix = np.concatenate([(moved * weight).reshape(M, -1).T, np.sqrt(plant.R) * np.eye(M)])
    wish = np.concatenate([-(free * weight).reshape(len(x0), -1), np.zeros((len(x0), M))], 1)
    return np.linalg.lstsq(matrix, wish.T, rcond=None)[0].T[..., None]


DECLARED = replace(PLANTS["source_double_integrator"], bound=1e3)


def test_lqr_for_moving_targets_is_the_quadratic_programme_and_the_sources_is_not():
    x0, target = ends(DECLARED, 200)
    best = quadratic_programme(DECLARED, x0, target)
    np.testing.assert_allclose(control.lqr(DECLARED, x0, target), best, atol=1e-9)
    wrong = control.source_lqr(DECLARED, x0, target)
    assert (
        control.plan_cost(DECLARED, x0, wrong, target).mean()
        > 2 * control.plan_cost(DECLARED, x0, best, target).mean()
    )
    target[:, 1] = 0  # at a point of rest both are right
    np.testing.assert_allclose(
        control.source_lqr(DECLARED, x0, target),
        quadratic_programme(DECLARED, x0, target),
        atol=1e-9,
    )


def test_the_sources_gains():
    plant = PLANTS["source_double_integrator_lqr8"]
    A, B = (matrix[0] for matrix in control.linearise(plant, np.zeros((1, 2)), np.zeros((1, 1))))
    gains = control.lqr_gains(A, B, np.eye(2), 0.1 * np.eye(1), 100 * np.eye(2), 15)
    np.testing.assert_allclose(
        [gains[0][0], gains[14][0]], [[1.65, 2.46], [0.48, 3.05]], atol=0.006
    )


@pytest.mark.parametrize("plant", [DI, VDP, VAN_DER_POL_MU], ids=lambda plant: plant.name)
def test_no_neighbour_of_the_optimum_is_better(plant):
    plant = replace(plant, bound=1.0) if plant is DI else plant  # so that the bound binds
    x0, target = ends(plant, 40)
    plan = control.best_plan(plant, x0, target)
    u = torch.from_numpy(plan).requires_grad_()
    states = control.rollout(replace(plant, bound=1e9), torch.from_numpy(x0), u)
    J = control.cost(replace(plant, bound=1e9), states, u, torch.from_numpy(target))
    slope = torch.autograd.grad(J.sum(), u)[0].numpy()
    at = np.abs(plan) > plant.bound - 1e-12
    assert 0.01 < at.mean() < 0.9 and (np.sign(plan[at]) * slope[at] < 1e-3).all(), (
        "further out would be better, further in worse"
    )
    scale = np.abs(slope[at]).max()
    assert np.abs(slope[~at]).max() < 1e-3 * scale, "inside the bound the gradient vanishes"


def test_the_sources_van_der_pol_labels_have_the_measured_statistics(labels):
    rows = labels["test"]
    u, error = (
        rows["control_sequences"],
        control.terminal_error(VDP, rows["state_trajectories"], rows["target_states"]),
    )
    assert error.mean() == pytest.approx(0.003, abs=0.0002) and error.max() == pytest.approx(
        0.012, abs=0.0006
    )
    assert (np.abs(u) == 2).mean() == pytest.approx(0.104, abs=0.002) and 0.83 < (
        np.abs(u) == 2
    ).any((1, 2)).mean() < 0.89
    assert u.var() == pytest.approx(0.94, abs=0.015) and (u**2).sum((1, 2)).mean() == pytest.approx(
        93, abs=0.6
    )
    ratio = rows["costs"] / rows["optimal_costs"]
    assert ratio.min() > 1 and ratio.mean() == pytest.approx(1.0035, abs=0.0015)
    half = PLANTS["source_van_der_pol_r05"]
    u = control.source_lqr(half, rows["initial_states"], rows["target_states"])
    assert (np.abs(u) == 2).mean() == pytest.approx(0.082, abs=0.004) and 0.75 < u.var() < 0.79
    assert (u**2).sum((1, 2)).mean() == pytest.approx(76, abs=1)


def test_the_sources_double_integrator_labels_have_the_measured_statistics():
    plant = PLANTS["source_double_integrator"]
    x0, target = ends(plant, 2000)
    u = control.source_midpoint(plant, x0, target)
    states = control.rollout(plant, x0, u)
    error = control.terminal_error(plant, states, target)
    assert (
        error.mean() == pytest.approx(0.0163, abs=0.0012)
        and error.max() < 0.06
        and np.abs(states[:, -1, 1] - target[:, 1]).max() < 1e-12
    )
    a3 = (-2 * (target - x0)[:, 0] + 4.95 * (x0 + target)[:, 1]) / 4.95**3
    np.testing.assert_allclose(
        np.abs(states[:, -1, 0] - target[:, 0]), np.abs(6 * a3) * 4.95 * 0.33**2 / 12, atol=1e-12
    )
    assert (
        2.5 < np.abs(u).max() < 3.3
        and u.var() == pytest.approx(0.48, abs=0.04)
        and 6.6 < (u**2).sum((1, 2)).mean() < 7.6
    )
    plant = PLANTS["source_double_integrator_lqr8"]
    x0, target = ends(plant, 3000)
    u = control.source_lqr(plant, x0, target)
    error = control.terminal_error(plant, control.rollout(plant, x0, u), target)
    assert (
        np.abs(u).max() == 8
        and u.std() == pytest.approx(2.07, abs=0.06)
        and (np.abs(u) == 8).any((1, 2)).mean() == pytest.approx(0.37, abs=0.04)
    )
    assert (np.abs(u) == 8).mean() == pytest.approx(
        0.029, abs=0.005
    ) and error.mean() == pytest.approx(0.85, abs=0.04)
    assert (error < 0.1).mean() == pytest.approx(0.064, abs=0.02)
    floor = ((u - u.clip(-4, 4)) ** 2).mean()
    assert floor == pytest.approx(0.671, abs=0.05), (
        "no model bounded to 4 has a lower error on these labels"
    )


def test_the_rockets_expert_lands_as_measured():
    plant = ROCKET_STANDIN
    x0, target = ends(plant, 1000)
    u = control.minimum_acceleration(plant, x0, target)
    states = control.rollout(plant, x0, u)
    assert control.terminal_error(plant, states, target).max() < 1e-9
    peak, fuel = np.linalg.norm(u, axis=-1).max(1), x0[:, 6] - states[:, -1, 6]
    assert (
        np.median(peak) == pytest.approx(9300, abs=250)
        and np.quantile(peak, 0.95) == pytest.approx(11100, abs=300)
        and peak.max() < plant.bound
    )
    assert states[:, :-1, 2].min() > 0 and 175 < fuel.min() < fuel.max() < 295
    half = control.minimum_acceleration(
        plant, states[:, 25], target, 25
    )  # the principle of optimality
    np.testing.assert_allclose(half, u[:, 25:], rtol=1e-6, atol=1e-3)


def test_the_pendulum_swings_up_and_the_grid_knows_the_best_side():
    x0, target = ends(PENDULUM, 10)
    x0[:3] = [[np.pi, 0.0], [np.pi - 0.01, 0.0], [np.pi + 0.01, 0.0]]
    plan = control.best_plan(PENDULUM, x0, target)
    J, error = (
        control.plan_cost(PENDULUM, x0, plan, target),
        control.terminal_error(PENDULUM, control.rollout(PENDULUM, x0, plan), target),
    )
    assert error.max() < 0.02, "all upright, also from hanging"
    assert J[1] == pytest.approx(J[2], rel=1e-6), "a mirror image costs the same"
    assert np.abs(plan).max() <= PENDULUM.bound
    from_lqr = control.optimum(PENDULUM, x0, target, control.lqr(PENDULUM, x0, target), sweeps=8)[1]
    assert (J <= from_lqr * (1 + 1e-9)).all() and (from_lqr > 1.01 * J).any()


# --- rows -----------------------------------------------------------------------------------------------------------


def test_rows_have_the_format_and_costs_are_costs(test_rows):
    for name, rows in test_rows.items():
        p = PLANTS[name]
        shapes = [(p.n,), (p.n,), (p.N + 1, p.n), (p.N, p.m), (), ()]
        assert {key: v.shape[1:] for key, v in rows.items()} == dict(
            zip([*control.ROWS, "optimal_costs"], shapes)
        )
        assert (rows["optimal_costs"] <= rows["costs"] * (1 + 1e-12)).all() and np.linalg.norm(
            rows["control_sequences"], axis=-1
        ).max() <= p.bound
    rows = test_rows["double_integrator"]
    assert (rows["costs"] < 1.01 * rows["optimal_costs"]).all(), "labels and J* have one objective"


def test_splits_share_no_row_and_repeat_to_the_bit():
    starts = {split: control.generate(DI, 50, split)["initial_states"] for split in SPLITS}
    assert "optimal_costs" not in control.generate(DI, 1, "train")
    assert len({row.tobytes() for rows in starts.values() for row in rows}) == 200
    np.testing.assert_array_equal(starts["val"], control.generate(DI, 50, "val")["initial_states"])
    assert not np.isin(
        starts["val"], control.generate(DI, 50, "val", seed=1)["initial_states"]
    ).any()
    assert all(np.abs(starts[split]).max() <= 2 for split in ("train", "val", "test"))
    assert (np.abs(starts["wide"]).max(1) > 2).all() and np.abs(starts["wide"]).max() <= 3
    leaky = PLANTS["source_double_integrator_lqr8"]
    one, two = (
        np.concatenate(control.draw_ends(leaky, count, rng(42)), 1) for count in (5000, 1000)
    )
    np.testing.assert_array_equal(one[:1000], two)
    with pytest.raises(
        UserError, match="split = 'eval' with 5 rows, expected one of train, val, test, wide"
    ):
        control.generate(DI, 5, "eval")


def test_a_file_is_read_back(tmp_path, test_rows):
    rows = test_rows["rocket_standin"] | {"timestep_dts": np.full((60, 50), 1.2)}
    np.savez(tmp_path / "a.npz", **rows, more=1)
    back = control.read_npz(str(tmp_path / "a.npz"), ROCKET_STANDIN)
    assert list(back) == [*control.ROWS, "timestep_dts", "optimal_costs"]
    for name, values in back.items():
        np.testing.assert_array_equal(values, rows[name])


def broken(name, change):
    return lambda rows: rows | {name: change(rows[name])}


def at(row, value):
    def change(values):
        values = values.copy()
        values[row] = value
        return values

    return change


@pytest.mark.parametrize("change, sentence", [
    (lambda rows: {"x": rows["costs"]}, "has arrays ['x'], expected also initial_states, target_states, state_tra"),
    (broken("control_sequences", lambda v: v[:, :9]), "(60, 9, 1), expected (S, 15, 1) for double_integrator, with S = 60 rows"),
    (broken("costs", lambda v: v[:, None]), "costs has shape (60, 1), expected (S)"),
    (broken("initial_states", lambda v: v[0, 0]), "initial_states has shape (), expected (S, 2)"),
    (broken("target_states", lambda v: v[:9]), "target_states has shape (9, 2), expected (S, 2)"),
    (lambda rows: {name: v[:0] for name, v in rows.items()}, "expected (S, 2) for double_integrator, with S = 1 or more rows"),
    (broken("costs", at(4, np.nan)), "row 5: costs has nan, expected finite numbers"),
    (broken("control_sequences", at(2, -8.0)), "row 3: control_sequences reaches 8, expected at most the bound 4 of double_integrator"),
    (broken("state_trajectories", at((1, 0), 9.0)), "row 2: state_trajectories begins"),
    (broken("costs", lambda v: v.astype(str) + "a"), "cannot be read as control rows"),
    (broken("costs", lambda v: v.astype(object)), "cannot be read as control rows"),
    (None, "No such file"), (b"PK\x03\x04 no zip", "cannot be read as control rows"), (b"", "cannot be read as control rows"),
])  # fmt: skip
def test_bad_files_end_in_one_sentence(tmp_path, test_rows, change, sentence):
    path = tmp_path / "a.npz"
    if isinstance(change, bytes):
        path.write_bytes(change)
    elif change:
        np.savez(path, **change(test_rows["double_integrator"]))
    with pytest.raises(UserError) as error:
        control.read_npz(str(path), DI)
    assert (
        str(error.value).startswith(str(path))
        and sentence in str(error.value)
        and "\n" not in str(error.value)
    )


def test_inputs_and_scaling(test_rows):
    x0, target = ends(DI, 3)
    np.testing.assert_array_equal(control.inputs(DI, x0, target), np.concatenate([x0, target], 1))
    np.testing.assert_array_equal(control.inputs(VDP, x0, 0 * x0), x0)
    np.testing.assert_allclose(
        control.inputs(PENDULUM, x0, 0 * x0),
        np.stack([np.sin(x0[:, 0]), np.cos(x0[:, 0]), x0[:, 1]], 1),
    )
    scale = control.scaling(ROCKET_STANDIN, test_rows["rocket_standin"])
    u = test_rows["rocket_standin"]["control_sequences"]
    z = (u - scale["controls"][0]) / scale["controls"][1]
    np.testing.assert_allclose([z.mean((0, 1)), z.std((0, 1))], [[0] * 3, [1] * 3], atol=1e-9)
    assert [v.tolist() for v in control.scaling(VDP, test_rows["van_der_pol"])["controls"]] == [
        [0.0],
        [1.0],
    ]


# --- figures --------------------------------------------------------------------------------------------------------


def test_figures_by_hand():
    plant = replace(
        DI,
        N=2,
        tolerances=(0.5, 1.5),
        limits=((-10, -10), (10, 10)),
        bound=4.0,
        Q=(0.0, 0.0),
        R=1.0,
        Qf=(1.0, 1.0),
    )
    rows = {
        "target_states": np.zeros((2, 2)),
        "costs": np.array([10.0, 10.0]),
        "optimal_costs": np.array([8.0, 10.0]),
    }
    states = np.array([[[0, 0], [11, 0], [0, 1]], [[0, 0], [0, 0], [3, 4]]], float)
    got = metrics.figures(plant, rows, states, np.array([[[6.0], [2.0]], [[0.0], [4.0]]]))
    J = [16 + 4 + 1, 16 + 25]
    wish = {"error_mean": 3.0, "error_max": 5.0, "error_0": 1.5, "error_1": 2.5, "success@0.5": 0.0, "success@1.5": 0.5, "cost_mean": sum(J) / 2,
            "to_expert_median": sum(J) / 20, "to_expert_p95": 4.1, "to_optimum_median": (21 / 8 + 4.1) / 2, "above_bound": 0.25, "saturated": 0.5,
            "beyond_limits": 0.5, "diverged": 0.0, "effort": (20 + 16) / 2, "smoothness": (4 + 16) / 2,
            "primary": math.log10((21 / 8 + 4.1) / 2 - 1)}  # fmt: skip
    assert {name: got[name] for name in wish} == pytest.approx(wish)
    states[1, 2] = np.nan
    got = metrics.figures(plant, rows, states, np.zeros((2, 2, 1)))
    assert (
        got["diverged"] == got["success@1.5"] == 0.5
        and got["cost_median"] == np.inf
        and got["cost_mean"] == 1.0
    )


def test_re_planning_by_a_model_without_error_changes_nothing(test_rows):
    """Bellman: what is left of the best plan is the best plan for what is left."""
    for plant in DI, ROCKET_STANDIN:
        rows = test_rows[plant.name]
        out = metrics.report(plant, metrics.expert(plant), rows, (1, 4), 4, takes_left=True)
        for setting in "every_1", "every_4":
            assert out[setting]["cost_mean"] == pytest.approx(out["open"]["cost_mean"], rel=1e-6)
        assert out["open"]["mse"] == out["open"]["beyond_limits"] == 0 and out["open"][
            "to_expert_median"
        ] == pytest.approx(1)
        assert out["every_4_more"]["error_mean"] < 0.5 * out["open_more"]["error_mean"], (
            "feedback repairs a wrong mass"
        )
        assert set(metrics.report(plant, metrics.zero(plant), rows)) == {
            "open",
            "open_noise",
            "open_less",
            "open_more",
        }


def test_zero_control_and_the_experts_own_numbers(labels):
    plant = control.source_process_supervision(SOURCE_VAN_DER_POL)
    rows = labels["test"]
    plan = np.zeros((1000, 100, 1))
    states = control.rollout(plant, rows["initial_states"], plan)
    assert control.cost(plant, states, plan, rows["target_states"]).mean() == pytest.approx(
        391.2, abs=0.1
    )
    assert control.terminal_error(plant, states, rows["target_states"]).mean() == pytest.approx(
        1.93, abs=0.03
    )
    expert = metrics.report(SOURCE_VAN_DER_POL, metrics.expert(SOURCE_VAN_DER_POL), rows, (), 50)
    assert expert["open"]["success@0.02"] == 1 and expert["open"]["mse"] == 0
    for std, error in (0.01, 0.026), (0.03, 0.076), (0.1, 0.249):
        force = rng(5).normal(size=plan.shape) * std
        noisy = control.rollout(
            plant, rows["initial_states"], rows["control_sequences"], noise=force
        )
        assert control.terminal_error(plant, noisy, rows["target_states"]).mean() == pytest.approx(
            error, rel=0.1
        )


def test_least_squares_reproduces_the_double_integrator():
    for plant in DI, PLANTS["source_double_integrator"]:
        train, test = (control.make_rows(plant, *ends(plant, 200, seed)) for seed in (1, 2))
        out = metrics.report(plant, metrics.polynomial(plant, train, 1), test)["open"]
        assert out["mse"] < 1e-20 and out["success@0.1"] == 1 and out["above_bound"] == 0
        error = control.terminal_error(plant, test["state_trajectories"], test["target_states"])
        assert out["error_mean"] == pytest.approx(error.mean(), abs=1e-9), "the error of its labels"


def test_a_polynomial_needs_feedback_on_van_der_pol(labels):
    plant = SOURCE_VAN_DER_POL
    policy = metrics.polynomial(plant, labels["train"], 5)
    out = metrics.report(plant, policy, labels["test"], (50, 25, 10), 10)
    assert out["open"]["mse"] == pytest.approx(0.040, abs=0.001) and out["open"][
        "success@0.2"
    ] == pytest.approx(0.37, abs=0.002)
    assert out["open"]["error_mean"] == pytest.approx(0.50, abs=0.006)
    assert [out[f"every_{step}"]["success@0.2"] for step in (50, 25, 10)] == [1, 1, 1], (
        "asked once more at half time is enough"
    )
    np.testing.assert_allclose(
        [out[f"every_{step}"]["error_mean"] for step in (50, 25, 10)],
        [0.011, 0.007, 0.003],
        atol=0.0006,
    )
    assert (
        out["every_10"]["primary"] < -1 < out["open"]["primary"]
        and out["every_10"]["to_optimum_median"] > 1
    )
    assert (
        out["open_noise"]["success@0.2"] < out["every_10_noise"]["success@0.2"]
        and out["every_10_more"]["success@0.2"] > 0.9
    )
    straight = metrics.report(
        plant, metrics.polynomial(plant, labels["train"], 1), labels["test"], (), 100
    )["open"]
    assert straight["mse"] == pytest.approx(0.173, abs=0.001) and straight["success@0.2"] < 0.02


def test_a_policy_may_return_tensors_and_wrong_shapes_are_refused(test_rows):
    rows = test_rows["van_der_pol"]
    plan = torch.zeros(60, 100, 1, requires_grad=True)
    assert metrics.report(VDP, lambda x, target: plan, rows, (), 50) == metrics.report(
        VDP, metrics.zero(VDP), rows, (), 50
    )
    with pytest.raises(
        UserError,
        match=r"van_der_pol returned a plan of shape \(60, 100\), expected \(60, 100, 1\)",
    ):
        metrics.report(VDP, lambda x, target: plan[..., 0], rows)


def test_the_mlp_has_the_size_asked_for_and_learns(labels):
    assert (
        metrics.mlp_parameters(VDP, 8) == 3 * 8 + 9 * 8 + 9 * 100
        and metrics.mlp_parameters(DI, 8, 1) == 5 * 8 + 9 * 15
    )
    assert metrics.mlp_width(VDP, metrics.mlp_parameters(VDP, 77)) == 77
    state = torch.get_rng_state()
    policy, again = (metrics.mlp(VDP, labels["train"], 32, steps=200) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    out = metrics.report(VDP, policy, labels["test"], (10,), 100)
    assert (
        out["open"]["mse"] < 0.2 * labels["test"]["control_sequences"].var()
        and out["open"]["above_bound"] == 0
    )
    assert out["every_10"]["error_mean"] < out["open"]["error_mean"]
    x0 = labels["test"]["initial_states"]
    np.testing.assert_array_equal(policy(x0, 0 * x0), again(x0, 0 * x0))
