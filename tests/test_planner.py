"""The planner: every switch acts, nothing is dead, bounds hold, and a run goes through train.py like any other.

The smoke test of founding document 000 has nine categories. Its own versions pass with three features inert; ours ask for behaviour:
1 imports, 2 layers (values by hand), 3 creation, 4 mixed features, 5 forward, 6 gradients, 7 parameter counts, 8 configuration, 9 compatibility
with the source's sizes: the tests with `smoke` and these numbers in their names.
"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import control
import data
import tiny
from control import PLANTS
from layers import MLP, Block, Norm
from model import TRM, ModelConfig, Shape
from planner import (
    PlanConfig,
    Planner,
    SourcePlanner,
    all_plans,
    as_batch,
    evaluate_plans,
    full_report,
    make_planner,
    plan_loss,
    policy,
)
from train import Config, load_run, main, make_net, rank

SMALL = ModelConfig(
    dim=16, heads=2, n_layers=1, T=3, n=2, prefix=0, multiple=4, expansion=2.0, n_sup=1
)
SOURCE = ModelConfig(dim=128, heads=4, n_layers=2, T=3, n=4, prefix=0, multiple=1, expansion=2.0, n_sup=1, positions="none", mlp="silu",
                     norm="layer", norm_place="pre", init="learned")  # fmt: skip
ONE_TOKEN = PlanConfig(one_token=True, residual=True, feedback="plan")
DI, VDP, ROCKET = (PLANTS[name] for name in ("double_integrator", "van_der_pol", "rocket_standin"))


def make(plan=PlanConfig(), plant=DI, seed=0, source=False, scale=(), **changes):
    torch.manual_seed(seed)
    return make_planner(replace(SOURCE if source else SMALL, **changes), plan, plant, scale)


def examples(plant=DI, count=6):
    """A batch with labels, and its rows."""
    x0, target = control.draw_ends(plant, count, control.rng(5))
    rows = control.make_rows(plant, x0, target, best=False)
    batch = {k: torch.from_numpy(v) for k, v in as_batch(plant, rows).items()}
    return batch | {"labels": torch.from_numpy(rows["control_sequences"]).float()}, rows


def scale_of(plant, rows):
    return tuple(
        tuple(map(float, part)) for pair in control.scaling(plant, rows).values() for part in pair
    )


def forward(net, batch):
    carry = net.refill(
        None, batch, net.first_states(len(batch["inputs"]), g=torch.Generator().manual_seed(3))
    )
    return net.step(carry)


def gradients(net, batch):
    """{name: gradient or None} of the loss of one step."""
    net.zero_grad()
    carry, plans = forward(net, batch)
    net.loss(plans, carry)[0].backward()
    return {name: p.grad for name, p in net.named_parameters()}


def dead(net, batch):
    return [
        name
        for name, grad in gradients(net, batch).items()
        if grad is None or not grad.abs().max() > 0
    ]


# --- the nine smoke categories ----------------------------------------------------------------------------------------


def test_smoke_1_imports():
    import control_metrics
    import planner

    assert planner.Planner and planner.SourcePlanner and control_metrics.report


def test_smoke_2_layers_by_hand():
    h = torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(Norm("rms")(h), h / math.sqrt(12.5 + 1e-5))
    torch.testing.assert_close(
        Norm("layer")(h), torch.tensor([[-0.5, 0.5]]) / math.sqrt(0.25 + 1e-5)
    )
    mlp = MLP(2, "swiglu", 0.75, 1)  # inner width 1
    with torch.no_grad():
        mlp.up.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))  # gate 3, up 4
        mlp.down.weight.copy_(torch.tensor([[1.0], [2.0]]))
    value = 3 / (1 + math.exp(-3)) * 4
    torch.testing.assert_close(mlp(h), torch.tensor([[value, 2 * value]]))
    for pre, expected in ((True, h + mlp(Norm("rms")(h))), (False, Norm("rms")(h + mlp(h)))):
        torch.testing.assert_close(Block([], mlp, "rms", pre)(h), expected)


@pytest.mark.parametrize(
    "plant", [DI, VDP, ROCKET, PLANTS["pendulum"], PLANTS["van_der_pol_mu"]], ids=lambda p: p.name
)
def test_smoke_3_a_net_for_every_plant(plant):
    batch, rows = examples(plant, 3)
    net = make(
        PlanConfig(hold=5, residual=True, feedback="both"), plant, scale=scale_of(plant, rows)
    )
    assert net.shape.seq_len == plant.N // 5
    plans = forward(net, batch)[1]
    assert len(plans) == 4 and all(
        u.shape == (3, plant.N, plant.m) and u.isfinite().all() for u in plans
    )


SWITCHES = {"mlp": "silu", "norm": "layer", "norm_place": "pre", "expansion": 4.0, "init": "random", "T": 2, "n": 3, "n_layers": 2, "two_nets": True,
            "mixer": "mlp", "positions": "none", "heads": 4, "dim": 32, "multiple": 64}  # fmt: skip


@pytest.mark.parametrize("key", SWITCHES)
def test_smoke_4_every_switch_of_the_net_changes_the_plan(key):
    batch, _ = examples()
    one, two = make(), make(**{key: SWITCHES[key]})
    with torch.no_grad():  # the same numbers wherever the shapes are the same
        for name, p in two.named_parameters():
            if (
                name in dict(one.named_parameters())
                and dict(one.named_parameters())[name].shape == p.shape
            ):
                p.copy_(dict(one.named_parameters())[name])
    a, b = forward(one, batch)[1][-1], forward(two, batch)[1][-1]
    assert not torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("change", [{"mlp": "swiglu"}, {"norm": "rms"}, {"norm_place": "post"}, {"expansion": 4.0}, {"init": "fixed"}, {"grad_cycles": 3}],
                         ids=str)  # fmt: skip
def test_smoke_4_every_switch_of_the_sources_net_acts(change):
    batch, _ = examples()
    one, two = make(ONE_TOKEN, source=True), make(ONE_TOKEN, source=True, **change)
    with torch.no_grad():
        for name, p in two.named_parameters():
            old = dict(one.named_parameters()).get(name)
            if old is not None and old.shape == p.shape:
                p.copy_(old)
    if "grad_cycles" in change:
        a, b = (gradients(net, batch)["net.blocks.0.up.weight"] for net in (one, two))
    elif "init" in change:
        assert "y0" in gradients(one, batch) and "y0" not in gradients(two, batch)
        return
    else:
        a, b = (forward(net, batch)[1][-1] for net in (one, two))
    assert not torch.allclose(a, b, rtol=1e-3)


def test_smoke_5_forward_is_the_recursion_written_out():
    batch, _ = examples()
    net = make(positions="none")
    x = net.encode(batch["inputs"]).view(6, 15, 16)
    y, z = (s.expand_as(x) for s in (net.y0, net.z0))
    for _ in range(3):
        for _ in range(2):
            z = net.net(z + y + x, None)
        y = net.net(y + z, None)
    torch.testing.assert_close(forward(net, batch)[1][-1], DI.bound * torch.tanh(net.head(y)))


PLANS = [PlanConfig(), PlanConfig(residual=True), PlanConfig(feedback="plan"), PlanConfig(feedback="error"), PlanConfig(residual=True, feedback="both"),
         PlanConfig(hold=5, supervise="all", residual=True), PlanConfig(process="cost", residual=True)]  # fmt: skip


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize(
    "net",
    [
        {},
        {"init": "learned", "norm_place": "pre"},
        {"grad_cycles": 3, "two_nets": True},
        {"mixer": "mlp", "positions": "none"},
    ],
    ids=str,
)
def test_smoke_6_no_parameter_is_dead(plan, net):
    batch, _ = examples()
    assert dead(make(plan, **net), batch) == []


def test_smoke_6_what_is_dead_in_the_sources_net_is_known():
    """Queries and keys of one token, and without error feedback what would read the error."""
    batch, _ = examples()
    errors = {"see_error.weight", "see_error.bias"} | {
        f"error_encoder.{i}.{part}" for i in (0, 2, 3) for part in ("weight", "bias")
    }
    assert set(dead(make(ONE_TOKEN, source=True), batch)) == errors
    net = make(replace(ONE_TOKEN, feedback="both"), source=True)
    assert dead(net, batch) == []
    for name, grad in gradients(net, batch).items():
        if "in_proj" in name:
            assert grad[:256].abs().max() < 1e-6 * grad[256:].abs().max()


def block(d, e, swiglu, norm):
    return (
        4 * d * d
        + 4 * d
        + 2 * (2 * d if norm == "layer" else d)
        + (3 * e * d * d + 2 * e * d + d if swiglu else 2 * e * d * d + e * d + d)
    )


@pytest.mark.parametrize("change, count", [
    ({}, 398_366), ({"mlp": "swiglu"}, 464_414), ({"norm": "rms"}, 397_854), ({"norm_place": "post"}, 398_366), ({"expansion": 4.0}, 529_950),
    ({"init": "fixed"}, 398_110), ({"mlp": "swiglu", "norm": "rms", "norm_place": "post", "expansion": 4.0, "init": "fixed"}, 661_278)], ids=str)  # fmt: skip
def test_smoke_7_parameters_of_the_seven_configurations(change, count):
    cfg = replace(SOURCE, **change)
    n, d, h, N = 2, 128, 256, 15
    formula = (
        (2 * n + 1) * h + h + 2 * h + h * d + d + n * (h // 2) + 3 * (h // 2) + (h // 2) * d + d
    )  # encoder, error encoder
    formula += (
        d * h + 3 * h + h * N + N + (d + N) * h + 3 * h + h * N + N + N * d + d + 2 * d + d
    )  # first plan, residual, E_u, E_err
    formula += 2 * block(d, int(cfg.expansion), cfg.mlp == "swiglu", cfg.norm) + (
        2 * d if cfg.init == "learned" else 0
    )
    found = sum(p.numel() for p in make(ONE_TOKEN, source=True, **change).parameters())
    assert found == formula == count


def test_smoke_7_parameters_of_the_planner():
    d, F, L, inner = 16, 4, 15, 24
    both = make(PlanConfig(residual=True, feedback="both"), init="learned")
    expected = (
        (F + 1) * L * d + 4 * d * d + 3 * d * inner + d + d + d + 4 * d + 2 * d
    )  # encode, attention, SwiGLU, head, first, plan, error, y0 z0
    assert sum(p.numel() for p in both.parameters()) == expected


@pytest.mark.parametrize("tables, words", [
    ({"plan": {"hold": 4}}, "hold = 4, expected a divisor of the 15 steps"), ({"model": {"n_sup": 3}}, "n_sup = 3, expected 1"),
    ({"model": {"mixer": "conv"}}, "mixer = 'conv', expected 'attention' or 'mlp'"), ({"model": {"prefix": 1}}, "prefix = 1, expected 0"),
    ({"plan": {"process": "reward"}}, "process = 'reward', expected one of"), ({"data": {"plant": "van_der_poll"}}, "did you mean 'van_der_pol'"),
    ({"data": {"task": "sudoku"}, "plan": {"residual": True}}, "its default, since data.task = 'sudoku'"),
    ({"plan": {"one_token": True, "residual": True, "feedback": "plan"}}, "expected"), ({"model": {"continue_loss": True}}, "continue_loss = True, expected its default"),
    ({"model": {"T": 1}, "plan": {"process": "hinge", "residual": False, "feedback": "none"}}, "there are no two plans"),
    ({"model": {"T": 1}, "plan": {"residual": False}}, "there is no earlier plan"), ({"model": {"q_weight": 0.1}}, "q_weight = 0.1, expected its default"),
    ({"data": {"train_path": "rows.npz"}}, "rows.npz: cannot be read")], ids=str)  # fmt: skip
def test_smoke_8_what_cannot_be_ends_in_one_sentence(tables, words, tmp_path, capsys):
    entry = tiny.entry(tmp_path, **{k: CONTROL[k] | tables.get(k, {}) for k in CONTROL})
    assert main([str(entry), f"--out={tmp_path}/runs"]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (tmp_path / "runs").exists()


def test_smoke_9_the_bound_holds_whatever_the_weights():
    for plan, plant, source in (
        (PlanConfig(residual=True), DI, False),
        (PlanConfig(hold=10), ROCKET, False),
        (ONE_TOKEN, DI, True),
    ):
        batch, rows = examples(plant)
        net = make(plan, plant, source=source, seed=1, scale=scale_of(plant, rows))
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(30)
            plans = torch.stack(forward(net, batch)[1])
        length = plans.norm(dim=-1)
        assert length.max() <= plant.bound * (1 + 1e-6) and length.max() > 0.9 * plant.bound


def test_smoke_9_twenty_steps_overfit_a_batch():
    batch, _ = examples(count=16)
    for net in (make(dim=32), make(ONE_TOKEN, source=True)):
        optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
        losses = []
        for _ in range(20):
            carry, plans = forward(net, batch)
            loss = net.loss(plans, carry)[0] / 16
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.4 * losses[0]


# --- plans, feedback, losses ------------------------------------------------------------------------------------------


def test_u0_exists_only_where_something_depends_on_it_and_cycles_go_on_beyond_T():
    batch, rows = examples()
    assert (
        len(forward(make(), batch)[1]) == 3
        and len(forward(make(PlanConfig(residual=True)), batch)[1]) == 4
    )
    net = make(PlanConfig(residual=True))
    short, long = (
        all_plans(net, rows["initial_states"], rows["target_states"], cycles) for cycles in (0, 6)
    )
    assert len(long) == 7
    np.testing.assert_allclose(long[:4], short, atol=1e-6)


def test_residual_plans_add_up():
    batch, _ = examples()
    net = make(PlanConfig(residual=True))
    with torch.no_grad():
        net.head.weight.zero_()
    plans = forward(net, batch)[1]
    assert all(torch.equal(u, plans[0]) for u in plans) and plans[0].abs().max() > 0


def test_feedback_sees_the_plan_and_where_it_leads():
    batch, _ = examples()
    plan, error = make(PlanConfig(feedback="plan")), make(PlanConfig(feedback="error"))
    u = torch.zeros(6, 15, 1)
    assert plan.look(u, batch).abs().max() == 0 and not torch.equal(
        plan.look(u + 1, batch), plan.look(u, batch)
    )
    e = error.errors(u, batch)
    states = control.rollout(DI, batch["start"], u)
    torch.testing.assert_close(e[:, 4, :2], 3 * torch.tanh((states[:, 4] - batch["target"]) / 3))
    torch.testing.assert_close(e[:, 0, 2:], 3 * torch.tanh((states[:, -1] - batch["target"]) / 3))
    assert make().look(u, batch) == 0


def test_truncation_keeps_the_gradient_of_the_last_cycles_only():
    """With grad_cycles = 1 the first two cycles are constants for the net: its gradient is that of one cycle from where they ended."""
    batch, _ = examples()
    net, full = make(positions="none"), make(positions="none", grad_cycles=3)
    full.load_state_dict(net.state_dict())
    torch.testing.assert_close(forward(net, batch)[1], forward(full, batch)[1])
    a, b = (gradients(n, batch)["net.blocks.0.mlp.up.weight"] for n in (net, full))
    assert not torch.allclose(a, b)
    x = net.encode(batch["inputs"]).view(6, 15, 16)
    with torch.no_grad():
        y, z = (s.expand_as(x) for s in (net.y0, net.z0))
        for _ in range(2):
            for _ in range(2):
                z = net.net(z + y + x, None)
            y = net.net(y + z, None)
    for _ in range(2):
        z = net.net(z + y + x, None)
    loss = (
        ((DI.bound * torch.tanh(net.head(net.net(y + z, None))) - batch["labels"]) ** 2)
        .mean((1, 2))
        .sum()
    )
    expected = torch.autograd.grad(loss, net.net.blocks[0].mlp.up.weight)[0]
    torch.testing.assert_close(a, expected)


def test_the_loss_by_hand():
    batch, _ = examples(count=2)
    one, two = batch["labels"] + 1.0, batch["labels"] + torch.tensor([0.5, 0.25])[:, None, None]
    loss, sums = plan_loss(PlanConfig(), DI, [one, two], batch)
    torch.testing.assert_close(loss, torch.tensor(0.25 + 0.0625))
    assert sums["rows"] == 2 and sums["count"] == 0
    loss, _ = plan_loss(PlanConfig(supervise="all"), DI, [one, two], batch)
    torch.testing.assert_close(loss, torch.tensor((2 + 0.3125) / 2))
    J = [control.plan_cost(DI, batch["start"], u, batch["target"]) for u in (one, two)]
    for process, expected in (
        ("cost", (J[0].log() + J[1].log()) / 2),
        ("hinge", (J[1] / J[0] - 1).clamp(min=0)),
    ):
        _, sums = plan_loss(PlanConfig(process=process), DI, [one, two], batch)
        torch.testing.assert_close(sums["process_loss"], expected.sum())


def test_only_the_sources_process_supervision_rewards_a_bad_first_plan():
    """The first plan gets worse, the last one stays: the source's loss falls, ours do not."""
    batch, _ = examples(VDP)
    last, loss = batch["labels"], {}
    for process in ("cost", "hinge", "source"):
        first = [(last + shift).clamp(-2, 2).requires_grad_() for shift in (0.2, 1.0)]
        values = [
            plan_loss(PlanConfig(process=process, process_weight=1.0), VDP, [u, last], batch)[1][
                "process_loss"
            ]
            for u in first
        ]
        total, _ = plan_loss(
            PlanConfig(process=process, process_weight=1.0), VDP, [first[0], last], batch
        )
        total.backward() if total.requires_grad else None
        loss[process] = values[1] - values[0]
        if process == "hinge":
            assert (
                first[0].grad is None or not first[0].grad.any()
            )  # the first plan is judged by no one
    assert loss["source"] < 0 <= loss["hinge"] and loss["cost"] > 0


# --- through train.py -------------------------------------------------------------------------------------------------

CONTROL = {
    "data": {"task": "control", "plant": "double_integrator", "train_rows": 60, "val_rows": 10, "test_rows": 12, "size": 30},
    "model": {"mixer": "attention", "positions": "rope", "prefix": 0, "n_sup": 1, "q_from": "first", "T": 2},
    "train": {"steps": 10, "batch_size": 8, "lr": 0.003, "ema": 0.9}, "plan": {"residual": True, "feedback": "both", "hold": 5}}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("control") / "seed0"
    return folder, tiny.run(folder, **CONTROL)


def test_a_run_reports_what_a_control_reader_expects(run):
    folder, summary = run
    assert json.loads(
        (folder / "summary.json").read_text(),
        parse_constant=lambda word: pytest.fail(f"{word} is no JSON"),
    ) == json.loads(json.dumps(summary))
    assert set(summary["control"]) == {
        "open",
        "open_noise",
        "open_less",
        "open_more",
        "wide",
        "cycles",
        "ms_per_plan",
    }  # met at step N: no closed loop
    assert [c["cycle"] for c in summary["control"]["cycles"]] == list(range(8)) and [
        c["trained"] for c in summary["control"]["cycles"]
    ] == [True] * 3 + [False] * 5
    assert summary["data"]["baseline_is"] == "doing nothing" and summary["test"]["n"] == 12
    with np.load(folder / "test.npz") as file:
        assert file["ratio"].shape == (12,) and file["exact"].mean() == pytest.approx(
            summary["test"]["exact"]
        )


def test_a_loaded_run_plans_the_same(run):
    folder, summary = run
    cfg, net, _ = load_run(folder)
    rows = control.generate(DI, 12, "test", 0)
    again = evaluate_plans(net, rows)
    assert again["primary"] == pytest.approx(summary["test"]["primary"], rel=1e-5) and again[
        "mse"
    ] == pytest.approx(summary["test"]["mse"], rel=1e-5)
    plan = policy(net)(rows["initial_states"], rows["target_states"])
    assert plan.shape == (12, 15, 1) and np.abs(plan).max() <= DI.bound


def test_a_stopped_control_run_ends_with_the_same_bits(tmp_path, run):
    import train as program

    class Stop(Exception):
        pass

    folder, calls, original = tmp_path / "seed0", [0], program.train_step

    def stops(*args):
        calls[0] += 1
        if calls[0] == 7:
            raise Stop
        original(*args)

    program.train_step = stops
    try:
        with pytest.raises(Stop):
            tiny.run(folder, **CONTROL)
    finally:
        program.train_step = original
    tiny.run(folder, **CONTROL)
    tiny.assert_same_run(run[0], folder)


def test_learning_lowers_the_cost_and_the_best_checkpoint_is_the_cheapest(tmp_path):
    tables = {
        **CONTROL,
        "train": CONTROL["train"] | {"steps": 80, "eval_every": 20},
        "data": CONTROL["data"] | {"train_rows": 200},
    }
    summary = tiny.run(tmp_path / "seed0", **tables)
    val = tiny.lines(tmp_path / "seed0", "val")
    assert val[-1]["mse"] < 0.5 * val[0]["mse"]
    assert summary["best_step"] == min(val, key=lambda line: (line["primary"], line["mse"]))["step"]


@pytest.mark.parametrize(
    "plant, chosen", [("double_integrator", "cheap"), ("source_double_integrator", "close")]
)
def test_where_the_labels_are_not_the_cheapest_plans_the_best_checkpoint_is_the_closest(
    plant, chosen
):
    cfg = Config(data=data.DataConfig(task="control", plant=plant))
    results = {"cheap": {"primary": -3.0, "mse": 0.2}, "close": {"primary": -1.0, "mse": 0.1}}
    assert max(results, key=lambda name: rank(results[name], cfg)) == chosen


def test_draws_are_rows_and_splits_share_none():
    cfg = data.DataConfig(
        task="control", plant="double_integrator", train_rows=20, val_rows=5, test_rows=6
    )
    ds = data.load(cfg)
    batch = data.draw(ds, cfg, 20, 0, 0)
    assert batch["start"].dtype == np.float32 and len(np.unique(batch["start"], axis=0)) == 20
    for start, target, plan in zip(batch["start"], batch["target"], batch["labels"]):
        exact = control.minimum_norm(DI, start[None].astype(float), target[None].astype(float))[0]
        np.testing.assert_allclose(plan, exact, atol=1e-5)
    np.testing.assert_array_equal(
        batch["inputs"], np.concatenate([batch["start"], batch["target"]], 1)
    )
    starts = np.concatenate([split.rows["initial_states"] for split in (ds.train, ds.val, ds.test)])
    assert (
        len(np.unique(starts, axis=0)) == 31
        and "optimal_costs" in ds.val.rows
        and "optimal_costs" not in ds.train.rows
    )


def test_rows_from_files(tmp_path):
    rows = control.generate(DI, 40, "train", 3)
    np.savez(tmp_path / "rows.npz", **rows)
    tables = {
        **CONTROL,
        "data": CONTROL["data"]
        | {"train_path": str(tmp_path / "rows.npz"), "train_rows": 20, "val_rows": 5},
        "train": CONTROL["train"] | {"steps": 2},
    }
    summary = tiny.run(tmp_path / "seed0", **tables)
    assert (
        summary["data"]["rows"] == {"train": 20, "val": 5, "test": 12}
        and summary["data"]["source"] == "rows.npz"
    )


def test_a_report_covers_closed_loops_and_starts_out_of_range():
    net = make(PlanConfig(hold=10), VDP)
    found = full_report(net, control.generate(VDP, 4, "test", 0), 0)
    assert {
        "open",
        "every_1",
        "every_5",
        "every_10",
        "every_25",
        "every_10_noise",
        "every_10_less",
        "every_10_more",
        "wide",
    } <= set(found)
    assert found["ms_per_plan"] > 0 and {"open", "every_10"} <= set(found["wide"])


def test_every_key_of_the_table_acts():
    """A field of PlanConfig without a row here fails."""
    rows = {"hold": (5, "shape"), "residual": (True, "plans"), "feedback": ("plan", "parameters"), "supervise": ("all", "loss"),
            "process": ("cost", "loss"), "process_weight": (1.0, "loss"), "one_token": (True, "class")}  # fmt: skip
    assert set(rows) == {f for f in PlanConfig.__dataclass_fields__}
    batch, _ = examples()
    for key, (value, what) in rows.items():
        base = PlanConfig(process="cost") if key == "process_weight" else PlanConfig()
        if key == "one_token":
            assert isinstance(make(ONE_TOKEN, source=True), SourcePlanner) and not isinstance(
                make(base), SourcePlanner
            )
            continue
        one, two = make(base), make(replace(base, **{key: value}))
        (c1, p1), (c2, p2) = forward(one, batch), forward(two, batch)
        found = {"shape": one.shape != two.shape, "plans": len(p1) != len(p2), "loss": one.loss(p1, c1)[0] != two.loss(p2, c2)[0],
                 "parameters": sum(p.numel() for p in one.parameters()) != sum(p.numel() for p in two.parameters())}  # fmt: skip
        assert found[what], key


def test_a_control_entry_makes_a_planner_and_only_that():
    cfg = tiny.config(**CONTROL)
    shape = Shape(**data.shape_of(cfg.data))
    assert type(make_net(cfg, shape, torch.float32)) is Planner
    assert (
        type(
            make_net(replace(cfg, plan=ONE_TOKEN, model=replace(SOURCE, T=2)), shape, torch.float32)
        )
        is SourcePlanner
    )
    assert type(make_net(tiny.config(), Shape(16, 6, 1, 2, 2), torch.float32)) is TRM
