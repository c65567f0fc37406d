"""The planner: every switch acts, nothing is dead, bounds hold, and a run is like any other.

The smoke test of the control plan has nine categories, and the source project's own versions of
them pass with three features inert. Ours ask for behaviour, and have `smoke` and their number in
the name: 1 imports, 2 layers (values by hand), 3 creation, 4 mixed features, 5 forward,
6 gradients, 7 parameter counts, 8 configuration, 9 compatibility with the source's sizes.
"""

import json
import math
import re
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import data
import tasks
import tiny
from layers import MLP, Block, Norm
from model import TRM, ModelConfig
from tasks import plants
from tasks.base import rng
from tasks.control import ControlConfig
from tasks.planner import (
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
from tasks.plants import PLANTS
from train import load_run, main

TASK = tasks.get("control")
SMALL = ModelConfig(
    dim=16, heads=2, n_layers=1, T=3, n=2, prefix=0, multiple=4, expansion=2.0, n_sup=1
)
SOURCE = ModelConfig(
    dim=128,
    heads=4,
    n_layers=2,
    T=3,
    n=4,
    prefix=0,
    multiple=1,
    expansion=2.0,
    n_sup=1,
    positions="none",
    mlp="silu",
    norm="layer",
    norm_place="pre",
    init="learned",
)
DEFAULT = PlanConfig()
ONE_TOKEN = PlanConfig(one_token=True, residual=True, feedback="plan")
DI, VDP, ROCKET = (PLANTS[name] for name in ("double_integrator", "van_der_pol", "rocket_standin"))


def make(plan=DEFAULT, plant=DI, seed=0, source=False, scale=(), **changes):
    """A small net; with `source` one of the source project's size."""
    torch.manual_seed(seed)
    cfg = replace(SOURCE if source else SMALL, **changes)
    return make_planner(cfg, plan, plant, scale)


def examples(plant=DI, count=6):
    """A batch with labels, and its rows."""
    x0, target = plants.draw_ends(plant, count, rng(5))
    rows = plants.make_rows(plant, x0, target, best=False)
    labels = torch.from_numpy(rows["control_sequences"]).float()
    return as_batch(plant, x0, target) | {"labels": labels}, rows


def scale_of(plant, rows):
    """As the shape of a data set holds it."""
    pairs = plants.scaling(plant, rows).values()
    return tuple(tuple(map(float, part)) for pair in pairs for part in pair)


def forward(net, batch):
    """(carry, plans) of one step."""
    g = torch.Generator().manual_seed(3)
    states = net.first_states(len(batch["inputs"]), g=g)
    return net.step(net.refill(None, batch, states))


def gradients(net, batch):
    """{name: gradient or None} of the loss of one step."""
    net.zero_grad()
    carry, plans = forward(net, batch)
    net.loss(plans, carry)[0].backward()
    return {name: p.grad for name, p in net.named_parameters()}


def dead(net, batch):
    """The parameters without gradient."""

    def is_dead(grad):
        return grad is None or not grad.abs().max() > 0

    return [name for name, grad in gradients(net, batch).items() if is_dead(grad)]


def count(net):
    return sum(p.numel() for p in net.parameters())


def share_weights(one, two):
    """Gives `two` the numbers of `one` wherever their shapes are the same."""
    known = dict(one.named_parameters())
    with torch.no_grad():
        for name, p in two.named_parameters():
            if name in known and known[name].shape == p.shape:
                p.copy_(known[name])


def think(net, x, y, z, cycles):
    """The recursion of SMALL written out: (y, z) after some cycles, without feedback."""
    for _ in range(cycles):
        for _ in range(2):
            z = net.net(z + y + x, None)
        y = net.net(y + z, None)
    return y, z


# ---------------------------------------------------------------- the nine smoke categories


def test_smoke_1_imports():
    from tasks import control_report, planner

    assert planner.Planner and planner.SourcePlanner and control_report.report


def test_smoke_2_layers_by_hand():
    h = torch.tensor([[3.0, 4.0]])
    rms, layer = Norm("rms"), Norm("layer")
    torch.testing.assert_close(rms(h), h / math.sqrt(12.5 + 1e-5))
    torch.testing.assert_close(layer(h), torch.tensor([[-0.5, 0.5]]) / math.sqrt(0.25 + 1e-5))
    mlp = MLP(2, "swiglu", 0.75, 1)  # inner width 1
    with torch.no_grad():
        mlp.up.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))  # gate 3, up 4
        mlp.down.weight.copy_(torch.tensor([[1.0], [2.0]]))
    value = 3 / (1 + math.exp(-3)) * 4
    torch.testing.assert_close(mlp(h), torch.tensor([[value, 2 * value]]))
    torch.testing.assert_close(Block([], mlp, "rms", True)(h), h + mlp(rms(h)))  # pre
    torch.testing.assert_close(Block([], mlp, "rms", False)(h), rms(h + mlp(h)))  # post


SMOKE_PLANTS = [DI, VDP, ROCKET, PLANTS["pendulum"], PLANTS["van_der_pol_mu"]]


@pytest.mark.parametrize("plant", SMOKE_PLANTS, ids=lambda plant: plant.name)
def test_smoke_3_a_net_for_every_plant(plant):
    batch, rows = examples(plant, 3)
    plan = PlanConfig(hold=5, residual=True, feedback="both")
    net = make(plan, plant, scale=scale_of(plant, rows))
    assert net.shape.seq_len == plant.N // 5
    plans = forward(net, batch)[1]
    assert len(plans) == 4
    for u in plans:
        assert u.shape == (3, plant.N, plant.m) and u.isfinite().all()


SWITCHES = {
    "mlp": "silu",
    "norm": "layer",
    "norm_place": "pre",
    "expansion": 4.0,
    "init": "random",
    "T": 2,
    "n": 3,
    "n_layers": 2,
    "two_nets": True,
    "mixer": "mlp",
    "positions": "none",
    "heads": 4,
    "dim": 32,
    "multiple": 64,
}


@pytest.mark.parametrize("key", SWITCHES)
def test_smoke_4_every_switch_of_the_net_changes_the_plan(key):
    batch, _ = examples()
    one, two = make(), make(**{key: SWITCHES[key]})
    share_weights(one, two)
    a, b = forward(one, batch)[1][-1], forward(two, batch)[1][-1]
    assert not torch.allclose(a, b, atol=1e-5)


SOURCE_SWITCHES = {"mlp": "swiglu", "norm": "rms", "norm_place": "post", "expansion": 4.0}


@pytest.mark.parametrize("key", SOURCE_SWITCHES)
def test_smoke_4_every_switch_of_the_sources_net_changes_the_plan(key):
    batch, _ = examples()
    one = make(ONE_TOKEN, source=True)
    two = make(ONE_TOKEN, source=True, **{key: SOURCE_SWITCHES[key]})
    share_weights(one, two)
    a, b = forward(one, batch)[1][-1], forward(two, batch)[1][-1]
    assert not torch.allclose(a, b, rtol=1e-3)


def test_smoke_4_grad_cycles_of_the_sources_net_changes_the_gradient():
    batch, _ = examples()
    one, two = make(ONE_TOKEN, source=True), make(ONE_TOKEN, source=True, grad_cycles=3)
    share_weights(one, two)
    a, b = (gradients(net, batch)["net.blocks.0.up.weight"] for net in (one, two))
    assert not torch.allclose(a, b, rtol=1e-3)


def test_smoke_4_init_of_the_sources_net_decides_whether_states_learn():
    batch, _ = examples()
    learned, fixed = make(ONE_TOKEN, source=True), make(ONE_TOKEN, source=True, init="fixed")
    assert "y0" in gradients(learned, batch)
    assert "y0" not in gradients(fixed, batch)


def test_smoke_5_forward_is_the_recursion_written_out():
    batch, _ = examples()
    net = make(positions="none")
    x = net.encode(batch["inputs"]).view(6, 15, 16)
    y, _ = think(net, x, net.y0.expand_as(x), net.z0.expand_as(x), cycles=3)
    torch.testing.assert_close(forward(net, batch)[1][-1], DI.bound * torch.tanh(net.head(y)))


PLANS = [
    PlanConfig(),
    PlanConfig(residual=True),
    PlanConfig(feedback="plan"),
    PlanConfig(feedback="error"),
    PlanConfig(residual=True, feedback="both"),
    PlanConfig(hold=5, supervise="all", residual=True),
    PlanConfig(process="cost", residual=True),
]
NETS = [
    {},
    {"init": "learned", "norm_place": "pre"},
    {"grad_cycles": 3, "two_nets": True},
    {"mixer": "mlp", "positions": "none"},
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("net", NETS, ids=str)
def test_smoke_6_no_parameter_is_dead(plan, net):
    batch, _ = examples()
    assert dead(make(plan, **net), batch) == []


def test_smoke_6_what_is_dead_in_the_sources_net_is_known():
    """Without error feedback what would read the error; and queries and keys of one token."""
    batch, _ = examples()
    errors = {"see_error.weight", "see_error.bias"}
    for layer in (0, 2, 3):
        errors |= {f"error_encoder.{layer}.weight", f"error_encoder.{layer}.bias"}
    assert set(dead(make(ONE_TOKEN, source=True), batch)) == errors
    net = make(replace(ONE_TOKEN, feedback="both"), source=True)
    assert dead(net, batch) == []
    for name, grad in gradients(net, batch).items():
        if "in_proj" in name:  # queries and keys are the first 2 D rows
            assert grad[:256].abs().max() < 1e-6 * grad[256:].abs().max()


def block_parameters(d, e, swiglu, norm):
    """Of a block of the source project: attention, MLP, two norms."""
    attention = 4 * d * d + 4 * d
    norms = 2 * (2 * d if norm == "layer" else d)
    mlp = 3 * e * d * d + 2 * e * d + d if swiglu else 2 * e * d * d + e * d + d
    return attention + norms + mlp


@pytest.mark.parametrize(
    "change, expected",
    [
        ({}, 398_366),
        ({"mlp": "swiglu"}, 464_414),
        ({"norm": "rms"}, 397_854),
        ({"norm_place": "post"}, 398_366),
        ({"expansion": 4.0}, 529_950),
        ({"init": "fixed"}, 398_110),
        (
            {
                "mlp": "swiglu",
                "norm": "rms",
                "norm_place": "post",
                "expansion": 4.0,
                "init": "fixed",
            },
            661_278,
        ),
    ],
    ids=str,
)
def test_smoke_7_parameters_of_the_seven_configurations(change, expected):
    cfg = replace(SOURCE, **change)
    n, d, h, N = 2, 128, 256, 15
    encoder = (2 * n + 1) * h + h + 2 * h + h * d + d
    error_encoder = n * (h // 2) + 3 * (h // 2) + (h // 2) * d + d
    first_plan = d * h + 3 * h + h * N + N
    residual = (d + N) * h + 3 * h + h * N + N
    see_plan, see_error = N * d + d, 2 * d + d
    blocks = 2 * block_parameters(d, int(cfg.expansion), cfg.mlp == "swiglu", cfg.norm)
    states = 2 * d if cfg.init == "learned" else 0
    formula = encoder + error_encoder + first_plan + residual + see_plan + see_error
    formula += blocks + states
    assert count(make(ONE_TOKEN, source=True, **change)) == formula == expected


def test_smoke_7_parameters_of_the_planner():
    d, F, L, inner = 16, 4, 15, 24
    net = make(PlanConfig(residual=True, feedback="both"), init="learned")
    encode = (F + 1) * L * d
    attention, swiglu = 4 * d * d, 3 * d * inner
    head, first, see_plan, see_error = d, d, d, 4 * d
    states = 2 * d
    expected = encode + attention + swiglu + head + first + see_plan + see_error + states
    assert count(net) == expected


def control_entry(folder, **tables):
    """The entry CONTROL as a file, with changes; without the side of the tiny Sudoku."""
    entry = tiny.entry(folder, **changed(**tables))
    entry.write_text(re.sub("^size = .*\n", "", entry.read_text(), flags=re.MULTILINE))
    return entry


NO_PAIR = {"process": "hinge", "residual": False, "feedback": "none"}
IMPOSSIBLE = [
    ({"plan": {"hold": 4}}, "hold = 4, expected a divisor of the 15 steps"),
    ({"plan": {"process": "reward"}}, "process = 'reward', expected one of"),
    ({"plan": {"one_token": True, "residual": True, "feedback": "plan"}}, "expected"),
    ({"model": {"n_sup": 3}}, "n_sup = 3, expected 1"),
    ({"model": {"mixer": "conv"}}, "mixer = 'conv', expected 'attention' or 'mlp'"),
    ({"model": {"prefix": 1}}, "prefix = 1, expected 0"),
    ({"model": {"continue_loss": True}}, "continue_loss = True, expected its default"),
    ({"model": {"q_weight": 0.1}}, "q_weight = 0.1, expected its default"),
    ({"model": {"T": 1}, "plan": NO_PAIR}, "there are no two plans"),
    ({"model": {"T": 1}, "plan": {"residual": False}}, "there is no earlier plan"),
    ({"data": {"plant": "van_der_poll"}}, "did you mean 'van_der_pol'"),
    ({"data": {"train_path": "rows.npz"}}, "rows.npz: cannot be read"),
]


@pytest.mark.parametrize("tables, words", IMPOSSIBLE, ids=str)
def test_smoke_8_what_cannot_be_ends_in_one_sentence(tables, words, tmp_path, capsys):
    entry = control_entry(tmp_path, **tables)
    assert main([str(entry), f"--out={tmp_path}/runs"]) == 2
    sentence = capsys.readouterr().err
    assert words in sentence and sentence.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_smoke_8_other_tasks_have_no_table_plan(tmp_path, capsys):
    entry = tiny.entry(tmp_path, plan={"residual": True})
    assert main([str(entry), f"--out={tmp_path}/runs"]) == 2
    sentence = capsys.readouterr().err
    assert "unknown key 'plan'" in sentence and sentence.count("\n") == 1


def test_smoke_9_the_bound_holds_whatever_the_weights():
    cases = [
        (PlanConfig(residual=True), DI, False),
        (PlanConfig(hold=10), ROCKET, False),
        (ONE_TOKEN, DI, True),
    ]
    for plan, plant, source in cases:
        batch, rows = examples(plant)
        net = make(plan, plant, source=source, seed=1, scale=scale_of(plant, rows))
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(30)
            plans = torch.stack(forward(net, batch)[1])
        length = plans.norm(dim=-1).max()
        assert 0.9 * plant.bound < length <= plant.bound * (1 + 1e-6)


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


# ---------------------------------------------------------------- plans, feedback, losses


def test_u0_exists_only_where_something_depends_on_it():
    batch, _ = examples()
    assert len(forward(make(), batch)[1]) == 3
    assert len(forward(make(PlanConfig(residual=True)), batch)[1]) == 4


def test_cycles_go_on_beyond_T():
    _, rows = examples()
    net = make(PlanConfig(residual=True))
    x0, target = rows["initial_states"], rows["target_states"]
    short, long = all_plans(net, x0, target), all_plans(net, x0, target, 6)
    assert len(long) == 7
    np.testing.assert_allclose(long[:4], short, atol=1e-6)


def test_residual_plans_add_up():
    batch, _ = examples()
    net = make(PlanConfig(residual=True))
    with torch.no_grad():
        net.head.weight.zero_()
    plans = forward(net, batch)[1]
    assert all(torch.equal(u, plans[0]) for u in plans)
    assert plans[0].abs().max() > 0


def test_feedback_sees_the_plan_and_where_it_leads():
    batch, _ = examples()
    plan, error = make(PlanConfig(feedback="plan")), make(PlanConfig(feedback="error"))
    u = torch.zeros(6, 15, 1)
    assert make().see(u, batch) == 0
    assert plan.see(u, batch).abs().max() == 0
    assert not torch.equal(plan.see(u + 1, batch), plan.see(u, batch))
    e = error.errors(u, batch)
    states = plants.rollout(DI, batch["start"], u)
    torch.testing.assert_close(e[:, 4, :2], 3 * torch.tanh((states[:, 4] - batch["target"]) / 3))
    torch.testing.assert_close(e[:, 0, 2:], 3 * torch.tanh((states[:, -1] - batch["target"]) / 3))


def test_truncation_keeps_the_gradient_of_the_last_cycles_only():
    """With grad_cycles = 1 the first two cycles are constants for the net.

    Its gradient is that of one cycle, from where those ended.
    """
    batch, _ = examples()
    net, full = make(positions="none"), make(positions="none", grad_cycles=3)
    full.load_state_dict(net.state_dict())
    torch.testing.assert_close(forward(net, batch)[1], forward(full, batch)[1])
    name = "net.blocks.0.mlp.up.weight"
    found = gradients(net, batch)[name]
    assert not torch.allclose(found, gradients(full, batch)[name])

    x = net.encode(batch["inputs"]).view(6, 15, 16)
    with torch.no_grad():
        y, z = think(net, x, net.y0.expand_as(x), net.z0.expand_as(x), cycles=2)
    y, _ = think(net, x, y, z, cycles=1)
    u = DI.bound * torch.tanh(net.head(y))
    loss = ((u - batch["labels"]) ** 2).mean((1, 2)).sum()
    expected = torch.autograd.grad(loss, net.net.blocks[0].mlp.up.weight)[0]
    torch.testing.assert_close(found, expected)


def test_the_loss_by_hand():
    batch, _ = examples(count=2)
    one = batch["labels"] + 1.0
    two = batch["labels"] + torch.tensor([0.5, 0.25])[:, None, None]
    loss, sums = plan_loss(PlanConfig(), DI, [one, two], batch)
    torch.testing.assert_close(loss, torch.tensor(0.25 + 0.0625))
    assert sums["rows"] == 2 and sums["count"] == 0
    loss, _ = plan_loss(PlanConfig(supervise="all"), DI, [one, two], batch)
    torch.testing.assert_close(loss, torch.tensor((2 + 0.3125) / 2))


def test_the_process_loss_by_hand():
    batch, _ = examples(count=2)
    one = batch["labels"] + 1.0
    two = batch["labels"] + torch.tensor([0.5, 0.25])[:, None, None]
    J = [plants.plan_cost(DI, batch["start"], u, batch["target"]) for u in (one, two)]
    expected = {
        "cost": (J[0].log() + J[1].log()) / 2,
        "hinge": (J[1] / J[0] - 1).clamp(min=0),
    }
    for process, rows in expected.items():
        _, sums = plan_loss(PlanConfig(process=process), DI, [one, two], batch)
        torch.testing.assert_close(sums["process_loss"], rows.sum())


def test_only_the_sources_process_supervision_rewards_a_bad_first_plan():
    """The first plan gets worse, the last one stays: the source's loss falls, ours do not."""
    batch, _ = examples(VDP)
    last, change = batch["labels"], {}
    for process in ("cost", "hinge", "source"):
        plan = PlanConfig(process=process, process_weight=1.0)
        good, bad = ((last + shift).clamp(-2, 2) for shift in (0.2, 1.0))
        losses = [plan_loss(plan, VDP, [u, last], batch)[1]["process_loss"] for u in (good, bad)]
        change[process] = losses[1] - losses[0]
    assert change["source"] < 0 <= change["hinge"]
    assert change["cost"] > 0


def test_hinge_judges_no_first_plan():
    batch, _ = examples(VDP)
    last = batch["labels"]
    first = (last + 0.2).clamp(-2, 2).requires_grad_()
    plan = PlanConfig(process="hinge", process_weight=1.0)
    loss, _ = plan_loss(plan, VDP, [first, last], batch)
    if loss.requires_grad:
        loss.backward()
    assert first.grad is None or not first.grad.any()


# ---------------------------------------------------------------- through train.py

CONTROL = {
    "data": {
        "task": "control",
        "plant": "double_integrator",
        "train_rows": 60,
        "val_rows": 10,
        "test_rows": 12,
    },
    "model": {
        "mixer": "attention",
        "positions": "rope",
        "prefix": 0,
        "n_sup": 1,
        "q_from": "first",
        "T": 2,
    },
    "train": {"steps": 10, "batch_size": 8, "lr": 0.003, "ema": 0.9},
    "plan": {"residual": True, "feedback": "both", "hold": 5},
}


def changed(**tables):
    """CONTROL with changes."""
    return CONTROL | {name: CONTROL[name] | keys for name, keys in tables.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("control") / "seed0"
    return folder, tiny.run(folder, **CONTROL)


def test_summary_json_is_json(run):
    def refuse(word):
        pytest.fail(f"{word} is no JSON")

    folder, summary = run
    found = json.loads((folder / "summary.json").read_text(), parse_constant=refuse)
    assert found == json.loads(json.dumps(summary))


def test_a_run_reports_what_a_control_reader_expects(run):
    folder, summary = run
    control = summary["control"]
    disturbed = {"open_noise", "open_less", "open_more"}
    # The target is to be met at step N: no closed loop.
    assert set(control) == {"open", "wide", "cycles", "ms_per_plan", "train_mse"} | disturbed
    assert [cycle["cycle"] for cycle in control["cycles"]] == list(range(8))
    assert [cycle["trained"] for cycle in control["cycles"]] == [True] * 3 + [False] * 5
    assert summary["data"]["baseline_is"] == "doing nothing"
    assert summary["test"]["n"] == 12
    with np.load(folder / "test.npz") as file:
        assert file["ratio"].shape == (12,)
        assert file["exact"].mean() == pytest.approx(summary["test"]["exact"])


def test_a_loaded_run_plans_the_same(run):
    folder, summary = run
    _, net, _ = load_run(folder)
    rows = plants.generate(DI, 12, "test", 0)
    again = evaluate_plans(net, rows)
    for key in "primary", "mse":
        assert again[key] == pytest.approx(summary["test"][key], rel=1e-5)
    plan = policy(net)(rows["initial_states"], rows["target_states"])
    assert plan.shape == (12, 15, 1) and np.abs(plan).max() <= DI.bound


def test_a_stopped_control_run_ends_with_the_same_bits(tmp_path, run, monkeypatch):
    import train as program

    class Stop(Exception):
        pass

    folder, calls, original = tmp_path / "seed0", [], program.train_step

    def stops(*args):
        calls.append(1)
        if len(calls) == 7:
            raise Stop
        original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(program, "train_step", stops)
        with pytest.raises(Stop):
            tiny.run(folder, **CONTROL)
    tiny.run(folder, **CONTROL)
    tiny.assert_same_run(run[0], folder)


def test_learning_lowers_the_cost_and_the_best_checkpoint_is_the_cheapest(tmp_path):
    tables = changed(train={"steps": 80, "eval_every": 20}, data={"train_rows": 200})
    summary = tiny.run(tmp_path / "seed0", **tables)
    val = tiny.lines(tmp_path / "seed0", "val")
    assert val[-1]["mse"] < 0.5 * val[0]["mse"]
    best = min(val, key=lambda line: (line["primary"], line["mse"]))
    assert summary["best_step"] == best["step"]


@pytest.mark.parametrize(
    "plant, chosen", [("double_integrator", "cheap"), ("source_double_integrator", "close")]
)
def test_where_the_labels_are_not_the_cheapest_plans_the_best_checkpoint_is_the_closest(
    plant, chosen
):
    cfg = SimpleNamespace(data=ControlConfig(plant=plant))
    results = {"cheap": {"primary": -3.0, "mse": 0.2}, "close": {"primary": -1.0, "mse": 0.1}}
    assert max(results, key=lambda name: TASK.better(results[name], cfg)) == chosen


def test_draws_are_rows():
    cfg = ControlConfig(plant="double_integrator", train_rows=20, val_rows=5, test_rows=6)
    batch = data.draw(data.load(cfg), cfg, 20, 0, 0)
    start, target = batch["start"], batch["target"]
    assert start.dtype == np.float32 and len(np.unique(start, axis=0)) == 20
    exact = plants.minimum_norm(DI, start.astype(float), target.astype(float))
    np.testing.assert_allclose(batch["labels"], exact, atol=1e-5)
    np.testing.assert_array_equal(batch["inputs"], np.concatenate([start, target], 1))


def test_splits_share_no_row():
    cfg = ControlConfig(plant="double_integrator", train_rows=20, val_rows=5, test_rows=6)
    dataset = data.load(cfg)
    splits = dataset.train, dataset.val, dataset.test
    starts = np.concatenate([split.rows["initial_states"] for split in splits])
    assert len(np.unique(starts, axis=0)) == 31
    assert "optimal_costs" in dataset.val.rows
    assert "optimal_costs" not in dataset.train.rows


def test_rows_from_files(tmp_path):
    path = tmp_path / "rows.npz"
    np.savez(path, **plants.generate(DI, 40, "train", 3))
    rows = {"train_path": str(path), "train_rows": 20, "val_rows": 5}
    summary = tiny.run(tmp_path / "seed0", **changed(data=rows, train={"steps": 2}))
    assert summary["data"]["rows"] == {"train": 20, "val": 5, "test": 12}
    assert summary["data"]["source"] == "rows.npz"


def test_a_report_covers_closed_loops_and_starts_out_of_range():
    net = make(PlanConfig(hold=10), VDP)
    train = plants.generate(VDP, 6, "train", 0)
    found = full_report(net, plants.generate(VDP, 4, "test", 0), train, 0)
    plan = policy(net)(train["initial_states"][:4], train["target_states"][:4])  # as many as tested
    error = plants.clip(VDP, plan) - train["control_sequences"][:4]
    assert found["train_mse"] == pytest.approx((error**2).mean(), rel=1e-5)
    replanned = {f"every_{steps}" for steps in (1, 5, 10, 25)}
    disturbed = {f"every_10_{kind}" for kind in ("noise", "less", "more")}
    assert {"open", "wide"} | replanned | disturbed <= set(found)
    assert found["ms_per_plan"] > 0
    assert {"open", "every_10"} <= set(found["wide"])


# Each key of the table [plan]: a value, and a figure below that it changes.
PLAN_KEYS = {
    "hold": (5, "shape"),
    "residual": (True, "plans"),
    "feedback": ("plan", "parameters"),
    "supervise": ("all", "loss"),
    "process": ("cost", "loss"),
    "process_weight": (1.0, "loss"),
    "one_token": (True, "class"),
}


def test_every_key_of_the_table_has_a_row():
    assert set(PLAN_KEYS) == {field.name for field in fields(PlanConfig)}


@pytest.mark.parametrize("key", PLAN_KEYS)
def test_every_key_of_the_table_acts(key):
    value, changes = PLAN_KEYS[key]
    base = PlanConfig(process="cost") if key == "process_weight" else PlanConfig()
    if key == "one_token":
        assert type(make(base)) is Planner
        assert type(make(ONE_TOKEN, source=True)) is SourcePlanner
        return

    def measure(plan):
        batch, _ = examples()
        net = make(plan)
        carry, plans = forward(net, batch)
        loss = net.loss(plans, carry)[0].item()
        figures = {"shape": net.shape, "plans": len(plans), "loss": loss, "parameters": count(net)}
        return figures[changes]

    assert measure(base) != measure(replace(base, **{key: value}))


def test_a_control_entry_makes_a_planner_and_only_that():
    def net_of(cfg):
        return cfg.task.make_net(cfg, cfg.task.shape(cfg), torch.float32)

    cfg = tiny.config(**CONTROL)
    assert type(net_of(cfg)) is Planner
    source = replace(cfg, plan=ONE_TOKEN, model=replace(SOURCE, T=2))
    assert type(net_of(source)) is SourcePlanner
    assert type(net_of(tiny.config())) is TRM
