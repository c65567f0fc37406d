"""The net against naive references: switches, gradients, slots, losses, mixers, positions, norms.

Every switch is alive and moves nothing else. Gradients reach every parameter.
"""

import copy
import dataclasses
import itertools
import math
import typing

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import layers
from layers import (
    MLP,
    Attention,
    Block,
    Conv,
    GroupMLP,
    Linear,
    Norm,
    Pool,
    cross_entropy,
    rope_1d,
    rope_2d,
    rotate,
    stablemax_log_probs,
)
from model import TRM, Carry, ModelConfig, Net, Output, Shape, complexity, trm_loss
from tasks.digits import DigitNet, SudokuModel

FIELDS = dataclasses.fields(SudokuModel)  # every key of ModelConfig, and one more
CHOICES = {f.name: typing.get_args(f.type) for f in FIELDS if typing.get_args(f.type)}
TINY = {
    "dim": 16,
    "n_layers": 2,
    "heads": 2,
    "T": 3,
    "n": 2,
    "prefix": 2,
    "expansion": 2.0,
    "multiple": 4,
    "n_sup": 4,
    "explore": 0.0,
}
SHAPE = Shape(16, 6, 3, 2, 2)  # 4x4 Sudoku, three puzzle identifiers


def make(
    shape: Shape = SHAPE,
    compute: torch.dtype = torch.float32,
    q_bias=(-5.0, -6.0),
    seed: int = 0,
    **changes,
) -> TRM:
    """A tiny net that halts as q_bias says, and whose q head sees y.

    The weight of a new q head is zero.
    """
    values = TINY | changes
    if values.get("mixer") in ("conv", "pool", "groups"):
        values["prefix"] = 0
    torch.manual_seed(seed)
    cfg = SudokuModel(**values)
    net = (DigitNet if cfg.per_digit else TRM)(cfg, shape, compute)
    with torch.no_grad():
        net.q_head.weight.normal_(0, 0.01)
        net.q_head.bias.copy_(torch.tensor(q_bias))
        if net.cfg.prefix:
            net.puzzles.normal_(0, 0.1)
    return net


def examples(
    B: int = 3, L: int = 16, V: int = 6, seed: int = 1, puzzles: int = 3
) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "inputs": torch.randint(1, V, (B, L), generator=g),
        "labels": torch.randint(1, V, (B, L), generator=g),
        "puzzle": torch.randint(puzzles, (B,), generator=g),
    }


def first_step(net: TRM, batch=None):
    batch = batch or examples()
    g = torch.Generator().manual_seed(3)
    states = net.first_states(*batch["inputs"].shape, g)
    return net.step(net.refill(net.start(batch), batch, states))


# ---------------------------------------------------------------- liveness


def observe(net: TRM) -> dict:
    """Everything a switch could act on.

    Weights; output, loss, gradient and cost of the first step; the slots over nine steps.
    """
    seen = {
        "weights": {k: tuple(v.shape) for k, v in net.state_dict().items()},
        "trained": [k for k, _ in net.named_parameters()],
        "cost": 0,
    }

    def count(module, args, output):
        seen["cost"] += 1

    hooks = [part.register_forward_hook(count) for part in (net.net, net.net_y) if part is not None]
    carry, out = first_step(net.train())
    loss, _ = trm_loss(net.cfg, out, carry)
    loss.backward()
    for hook in hooks:
        hook.remove()
    seen |= {
        "logits": out.logits.detach(),
        "q": out.q_halt.detach(),
        "loss": loss.detach(),
        "gradient": {k: p.grad.clone() for k, p in net.named_parameters() if p.grad is not None},
    }
    batch, g, trace = examples(), torch.Generator().manual_seed(4), []
    carry = net.start(batch)
    with torch.no_grad():
        for _ in range(9):
            carry, _ = net.step(
                net.refill(carry, batch, net.first_states(3, 16, g)),
                min_steps=net.exploration(3, g),
            )
            trace += carry.steps.tolist()
    return seen | {"steps": trace}


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


OUTPUT = {"logits", "q", "loss", "gradient"}
GO, STOP = (-5.0, -6.0), (5.0, 6.0)  # q biases: slots run to n_sup, slots halt at once
# key, value, what moves and nothing else, q bias, under which other settings
SWITCHES = [
    ("dim", 32, {"weights"}, GO, {}),
    ("n_layers", 1, {"weights", "trained"}, GO, {}),
    ("heads", 4, OUTPUT, GO, {}),
    ("heads", 4, set(), GO, {"mixer": "conv"}),
    ("T", 2, OUTPUT | {"cost"}, GO, {}),
    ("n", 3, OUTPUT | {"cost"}, GO, {}),
    ("grad_cycles", 2, {"gradient"}, GO, {}),
    ("grad_cycles", 3, {"gradient"}, GO, {}),
    ("two_nets", True, {"weights", "trained"}, GO, {}),
    ("mixer", "mlp", {"weights", "trained"}, GO, {}),
    ("mixer", "conv+attention", {"weights", "trained"}, GO, {}),
    ("mixer", "conv", {"weights", "trained"}, GO, {"prefix": 0}),
    ("mixer", "pool", {"weights", "trained"}, GO, {"prefix": 0}),
    ("mixer", "groups", {"weights", "trained"}, GO, {"prefix": 0}),
    ("per_digit", True, {"weights"}, GO, {"mixer": "pool", "q_from": "mean"}),
    ("per_digit", True, {"weights", "trained"}, GO, {"mixer": "groups", "q_from": "mean"}),
    ("positions", "rope2d", OUTPUT, GO, {}),
    ("positions", "none", OUTPUT, GO, {}),
    ("positions", "rope2d", set(), GO, {"mixer": "mlp"}),
    ("positions", "learned", {"weights", "trained"}, GO, {"mixer": "mlp"}),
    ("prefix", 3, OUTPUT, GO, {}),
    ("prefix", 0, {"weights", "trained"}, GO, {}),
    ("norm", "layer", OUTPUT, GO, {}),
    ("norm_place", "pre", OUTPUT, GO, {}),
    ("mlp", "silu", {"weights"}, GO, {}),
    ("mlp", "reglu", OUTPUT, GO, {}),
    ("mlp", "gelu", OUTPUT, GO, {"mlp": "silu"}),
    ("expansion", 4.0, {"weights"}, GO, {}),
    ("position_expansion", 2.0, {"weights"}, GO, {"mixer": "mlp"}),
    ("position_expansion", 2.0, set(), GO, {}),
    ("multiple", 64, {"weights"}, GO, {}),
    ("init", "learned", {"trained", "gradient"}, GO, {}),
    ("init", "random", {"weights"}, GO, {}),
    ("q_from", "mean", {"q", "loss", "gradient"}, GO, {}),
    ("n_sup", 2, {"steps"}, GO, {}),
    ("n_sup", 2, set(), STOP, {}),
    ("halting", False, {"steps"}, STOP, {}),
    ("halting", False, set(), GO, {}),
    ("explore", 1.0, {"steps"}, STOP, {}),
    ("explore", 1.0, set(), STOP, {"halting": False}),
    ("continue_loss", True, {"loss", "gradient", "cost"}, STOP, {"halting": False}),
    (
        "continue_loss",
        True,
        {"loss", "gradient", "cost", "steps"},
        GO,
        {},
    ),  # halts where q_halt > q_continue
    ("loss", "softmax", {"loss", "gradient"}, GO, {}),
    ("q_weight", 0.1, {"loss", "gradient"}, GO, {}),
    ("ponder_weight", 0.5, {"loss", "gradient"}, GO, {}),
    ("complexity_weight", 0.5, {"loss"}, GO, {}),
]


def test_every_model_switch_has_a_row():
    assert {row[0] for row in SWITCHES} == {f.name for f in FIELDS}
    for key, choices in CHOICES.items():
        used = {row[1] for row in SWITCHES if row[0] == key} | {getattr(SudokuModel(), key)}
        assert used >= set(choices), f"a choice of {key} without a row"


@pytest.mark.parametrize(
    "key, value, moves, q_bias, others", SWITCHES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_switch_moves_what_it_should_and_nothing_else(key, value, moves, q_bias, others):
    base = make(q_bias=q_bias, **others)
    flipped = make(q_bias=q_bias, **others | {key: value})
    if "weights" not in moves:  # equal weights: what still differs is the switch
        flipped.load_state_dict(base.state_dict())
    a, b = observe(base), observe(flipped)
    compared = (
        {"weights", "trained", "cost", "steps"} if "weights" in moves else a.keys()
    )  # other weights, other numbers
    assert {k for k in compared if not same(a[k], b[k])} == moves


def test_two_equal_nets_are_one_net_and_the_second_one_answers():
    one, two = make(), make(two_nets=True)
    shared = {k: v for k, v in one.state_dict().items()}
    two.load_state_dict(
        shared
        | {k.replace("net.", "net_y.", 1): v for k, v in shared.items() if k.startswith("net.")}
    )
    assert torch.equal(first_step(one)[1].logits, first_step(two)[1].logits)
    calls = []
    two.net.register_forward_hook(lambda *_: calls.append("z"))
    two.net_y.register_forward_hook(lambda *_: calls.append("y"))
    first_step(two)
    assert "".join(calls) == 3 * "zzy"  # T times n updates of z, then one of y
    count = [sum(p.numel() for p in net.parameters()) for net in (one, two)]
    assert count[1] - count[0] == sum(p.numel() for p in one.net.parameters())


@pytest.mark.parametrize("key, value", [(k, v) for k, choices in CHOICES.items() for v in choices])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_every_choice_runs_forward_and_backward_in_every_dtype(key, value, compute):
    net = make(compute=compute, continue_loss=True, **{key: value})
    carry, out = first_step(net.train())
    loss, _ = trm_loss(net.cfg, out, carry)
    loss.backward()
    assert carry.y.dtype == carry.z.dtype == compute
    assert out.logits.dtype == loss.dtype == torch.float32
    assert all(p.dtype == torch.float32 and p.grad.isfinite().all() for p in net.parameters())
    exact = make(continue_loss=True, **{key: value})
    near = first_step(exact.train())[1].logits
    if (key, value) != ("init", "random"):  # noise of another dtype is other noise
        error = ((out.logits - near).norm() / near.norm()).item()
        assert error < {torch.bfloat16: 0.4, torch.float64: 1e-4, torch.float32: 1e-9}[compute]
        assert compute == torch.float32 or error > 0


def problems(**changes) -> list[str]:
    """The keys that SudokuModel, and ModelConfig in it, refuses."""
    return [key for key, _ in SudokuModel(**changes).problems()]


def test_impossible_values_are_named():
    assert problems() == []
    for key in ("dim", "n_layers", "heads", "T", "n", "multiple", "n_sup"):
        assert key in problems(**{key: 0})
    for key in ("prefix", "q_weight", "ponder_weight", "complexity_weight"):
        assert problems(**{key: -1}) == [key]
    for key in ("expansion", "position_expansion"):
        assert problems(**{key: 0.0}) == [key]
    assert problems(explore=1.5) == ["explore"] == problems(explore=-0.1)
    assert problems(grad_cycles=0) == ["grad_cycles"] == problems(grad_cycles=4)
    assert problems(dim=516) == ["dim"] == problems(dim=18, heads=3, positions="rope2d")
    assert problems(dim=18, heads=3) == [] == problems(dim=516, mixer="mlp")
    assert problems(mixer="conv") == ["prefix"] == problems(mixer="pool")
    assert problems(mixer="pool", prefix=0) == []
    assert problems(per_digit=True) == ["per_digit"]
    assert problems(per_digit=True, mixer="pool", prefix=0) == ["per_digit"]
    assert problems(per_digit=True, mixer="pool", prefix=0, q_from="mean") == []
    assert problems(mixer="groups") == ["prefix"]
    assert problems(mixer="groups", prefix=0) == []
    assert problems(per_digit=True, mixer="groups", prefix=0) == ["per_digit"]
    assert problems(per_digit=True, mixer="groups", prefix=0, q_from="mean") == []
    assert "dim" in [key for key, _ in ModelConfig(dim=0).problems()]


# ---------------------------------------------------------------- gradients


def plain_recursion(net: TRM, x, y, z):
    """The paper's loop, written out; every cycle keeps its gradient."""
    for _ in range(net.cfg.T):
        for _ in range(net.cfg.n):
            z = net.net(z + y + x, net.angles(x))
        y = (net.net_y or net.net)(y + z, net.angles(x))
    return y, z


def gradients(net: TRM) -> dict:
    return {k: p.grad.clone() for k, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("grad_cycles", [1, 2, 3])
@pytest.mark.parametrize("two_nets", [False, True])
def test_the_last_grad_cycles_recursions_carry_gradient(grad_cycles, two_nets):
    net = make(grad_cycles=grad_cycles, two_nets=two_nets)
    carry, out = first_step(net)
    out.logits.square().sum().backward()
    ours = gradients(net)
    net.zero_grad()
    batch = examples()
    x = net.embed(batch)
    y, z = (s.expand_as(x) for s in net.first_states(3, 16))
    free = copy.deepcopy(net)
    free.cfg = dataclasses.replace(net.cfg, T=3 - grad_cycles)
    with torch.no_grad():
        y, z = plain_recursion(free, x, y, z)
    net.cfg = dataclasses.replace(net.cfg, T=grad_cycles)
    y, z = plain_recursion(net, x, y, z)
    logits = F.linear(y, net.head.weight)[:, 2:]
    torch.testing.assert_close(out.logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((carry.y, carry.z), (y.detach(), z.detach()), rtol=1e-5, atol=1e-5)
    logits.square().sum().backward()
    for name, p in net.named_parameters():
        if not name.startswith("q_head"):
            error = (ours[name] - p.grad).abs()
            assert (error <= 1e-4 + 1e-3 * p.grad.abs()).all(), name


def initial_gradient(net: TRM, batch):
    net.zero_grad()
    _, out = net.step(net.refill(net.start(batch), batch))
    (out.logits * torch.linspace(-1, 1, out.logits.numel()).view_as(out.logits)).sum().backward()
    return net.y0.grad.clone(), net.z0.grad.clone()


def test_gradient_of_learned_initial_states_is_exact_where_every_cycle_carries_it():
    net = make(init="learned", grad_cycles=3)
    batch = examples()
    x = net.embed(batch)
    y0, z0 = net.y0.detach().clone().requires_grad_(), net.z0.detach().clone().requires_grad_()
    y, _ = plain_recursion(net, x, y0.expand_as(x), z0.expand_as(x))
    logits = F.linear(y, net.head.weight)[:, 2:]
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    ours = initial_gradient(net, batch)
    torch.testing.assert_close(ours, (y0.grad, z0.grad), rtol=1e-3, atol=1e-5)  # once, not twice
    assert min(g.norm() for g in ours) > 1e-3


def test_gradient_of_learned_initial_states_equals_finite_differences():
    net = make(
        init="learned", grad_cycles=3, mixer="mlp", compute=torch.float64
    )  # no step of it falls back to fp32
    x = net.embed(examples()).detach()
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y0, z0 = (s.detach().double().clone().requires_grad_() for s in (net.y0, net.z0))

    def value(y, z):
        return (net(x, y.expand_as(x), z.expand_as(x))[0] * weights).sum()

    value(y0, z0).backward()
    for leaf, other in ((y0, z0), (z0, y0)):
        direction = torch.randn(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        with torch.no_grad():
            pair = [
                (leaf + e * direction, other) if leaf is y0 else (other, leaf + e * direction)
                for e in (1e-5, -1e-5)
            ]
            slope = (value(*pair[0]) - value(*pair[1])) / 2e-5
        torch.testing.assert_close((leaf.grad * direction).sum(), slope, rtol=1e-5, atol=1e-6)
        assert slope.abs() > 1e-3


@pytest.mark.parametrize("grad_cycles", [1, 2])
def test_learned_initial_states_get_the_gradient_of_the_first_cycle_that_carries_one(grad_cycles):
    net = make(init="learned", grad_cycles=grad_cycles)
    batch = examples()
    x = net.embed(batch)
    y, z = (s.detach().expand_as(x) for s in (net.y0, net.z0))
    tail = copy.deepcopy(net)
    tail.cfg = dataclasses.replace(net.cfg, T=3 - grad_cycles)
    with torch.no_grad():
        y, z = plain_recursion(tail, x, y, z)
    y, z = y.clone().requires_grad_(), z.clone().requires_grad_()
    tail.cfg = dataclasses.replace(net.cfg, T=grad_cycles)
    logits = F.linear(plain_recursion(tail, x.detach(), y, z)[0], net.head.weight)[:, 2:]
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    ours = initial_gradient(net, batch)
    torch.testing.assert_close(ours, (y.grad.sum((0, 1)), z.grad.sum((0, 1))), rtol=1e-3, atol=1e-4)
    assert min(g.norm() for g in ours) > 1e-3
    fixed = make(grad_cycles=grad_cycles)
    fixed.load_state_dict(net.state_dict())
    assert torch.equal(first_step(net)[1].logits, first_step(fixed)[1].logits), (
        "handing on the gradient moved the output"
    )


def test_learned_initial_states_move_with_the_first_optimizer_step():
    net = make(init="learned")
    before = net.y0.detach().clone(), net.z0.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    carry, out = first_step(net)
    trm_loss(net.cfg, out, carry)[0].backward()
    optimizer.step()
    assert (net.y0 - before[0]).norm() > 1e-4 and (net.z0 - before[1]).norm() > 1e-4


def test_running_slots_give_learned_initial_states_no_gradient():
    net, batch = make(init="learned"), examples()
    carry, _ = net.step(net.refill(net.start(batch), batch))

    def gradient(halted):
        net.zero_grad()
        _, out = net.step(
            net.refill(dataclasses.replace(carry, halted=torch.tensor(halted)), batch)
        )
        out.logits.square().sum().backward()
        return net.y0.grad.norm()

    assert gradient([False] * 3) == 0 and gradient([False, True, False]) > 0


@pytest.mark.parametrize(
    "mixer, norm_place, mlp",
    [*itertools.product(CHOICES["mixer"], CHOICES["norm_place"], CHOICES["mlp"])],
)
def test_no_parameter_is_without_gradient(mixer, norm_place, mlp):
    for extra in (
        {"init": "learned", "positions": "learned", "two_nets": True},
        {"q_from": "mean"},
        {"grad_cycles": 3, "norm": "layer"},
    ):
        net = make(mixer=mixer, norm_place=norm_place, mlp=mlp, continue_loss=True, **extra)
        with torch.no_grad():
            if net.cfg.prefix:
                net.puzzles.zero_()  # as it starts
        carry, out = first_step(net.train())
        trm_loss(net.cfg, out, carry)[0].backward()
        present = set(examples()["puzzle"].tolist())
        assert present != {0}
        dead = [name for name, p in net.named_parameters() if p.grad is None or p.grad.norm() == 0]
        assert dead == []
        if net.cfg.prefix:
            assert {i for i, row in enumerate(net.puzzles.grad) if row.norm() > 0} == present


def test_without_the_continue_loss_only_the_row_of_q_continue_has_no_gradient():
    net = make()
    carry, out = first_step(net.train())
    trm_loss(net.cfg, out, carry)[0].backward()
    assert [
        name for name, p in net.named_parameters() if p.grad is None or p.grad.norm() == 0
    ] == []
    assert net.q_head.bias.grad[1] == 0 and net.q_head.bias.grad[0] != 0
    assert net.q_head.weight.grad[1].norm() == 0 and net.q_head.weight.grad[0].norm() > 0


# ---------------------------------------------------------------- slots and halting


def test_the_carry_is_detached_and_steps_count():
    net, batch = make(init="learned"), examples()
    carry, out = first_step(net.train())
    assert out.logits.requires_grad
    assert not any(
        t.requires_grad
        for t in (carry.y, carry.z, carry.steps, carry.halted, *carry.batch.values())
    )
    assert carry.steps.tolist() == [1, 1, 1] and carry.halted.tolist() == [False] * 3
    y = carry.y
    carry, _ = net.step(net.refill(carry, batch))
    assert carry.steps.tolist() == [2, 2, 2] and not torch.equal(carry.y, y)


def test_refill_leaves_running_slots_alone():
    net, old, new = make(), examples(seed=1), examples(seed=2)
    carry, _ = net.step(net.refill(net.start(old), old))
    carry.halted = torch.tensor([False, True, False])
    before = carry.map(lambda t: t.clone())
    after = net.refill(carry, new)
    for slot in (0, 2):
        assert torch.equal(after.y[slot], before.y[slot])
        assert torch.equal(after.z[slot], before.z[slot])
        assert after.steps[slot] == 1
        assert all(torch.equal(after.batch[k][slot], old[k][slot]) for k in old)
    assert torch.equal(after.y[1], net.y0.expand(18, 16))
    assert torch.equal(after.z[1], net.z0.expand(18, 16))
    assert after.steps[1] == 0
    assert all(torch.equal(after.batch[k][1], new[k][1]) for k in new)
    assert not after.halted.any()


def test_a_slot_does_not_see_its_neighbours():
    net, batch = make(), examples()
    _, out = net.step(net.refill(net.start(batch), batch))
    alone = {k: v[1:2] for k, v in batch.items()}
    _, one = net.step(net.refill(net.start(alone), alone))
    torch.testing.assert_close(out.logits[1:2], one.logits, rtol=1e-4, atol=1e-5)


def test_slots_halt_at_n_sup_or_when_q_halt_is_positive_and_in_eval_mode_at_n_sup_only():
    batch = examples()
    for q_bias, training, expected in (
        (GO, True, [1, 2, 3, 4, 1]),
        (STOP, True, [1, 1, 1, 1, 1]),
        (STOP, False, [1, 2, 3, 4, 1]),
    ):
        net = make(q_bias=q_bias).train(training)
        carry, seen = net.start(batch), []
        for _ in range(5):
            carry, _ = net.step(net.refill(carry, batch))
            seen.append(carry.steps[0].item())
        assert seen == expected


def test_exploration_demands_two_to_n_sup_steps_of_the_share_it_should():
    net = make(explore=0.25, n_sup=5)
    demanded = net.exploration(20_000, torch.Generator().manual_seed(0))
    share = {k: (demanded == k).float().mean().item() for k in demanded.unique().tolist()}
    assert share.keys() == {0, 2, 3, 4, 5}
    assert abs(share[0] - 0.75) < 0.015 and all(abs(share[k] - 0.0625) < 0.01 for k in (2, 3, 4, 5))
    assert make(explore=0.0).exploration(4, torch.Generator()) is None
    assert make(explore=1.0, halting=False).exploration(4, torch.Generator()) is None
    assert (
        make(explore=1.0, n_sup=1).exploration(4, torch.Generator().manual_seed(0)).tolist()
        == [1] * 4
    )


def test_exploration_forbids_halting_before_the_demanded_step():
    net, batch = make(q_bias=STOP).train(), examples()
    carry = net.refill(net.start(batch), batch)
    demanded, halted_at = torch.tensor([0, 3, 9]), [0, 0, 0]
    for step in (1, 2, 3, 4):
        carry, _ = net.step(carry, min_steps=demanded)
        halted_at = [at or step * halted for at, halted in zip(halted_at, carry.halted.tolist())]
    assert halted_at[:2] == [1, 3]


def test_random_first_states_are_fresh_noise_per_token_and_a_function_of_the_generator():
    net = make(init="random")
    y, z = net.first_states(40, 16, torch.Generator().manual_seed(0))
    again = net.first_states(40, 16, torch.Generator().manual_seed(0))
    assert y.shape == z.shape == (40, 18, 16)
    assert torch.equal(y, again[0])
    assert torch.equal(z, again[1])
    assert abs(y.std().item() - 1) < 0.02
    assert abs((y * z).mean().item()) < 0.04
    assert not torch.equal(y[0, 0], y[0, 1]) and not torch.equal(y[0], y[1])


def test_initialisation_has_the_standard_deviations_of_the_paper():
    torch.manual_seed(0)
    net = TRM(ModelConfig(dim=256, heads=4, prefix=2), Shape(64, 300))
    for name, p in net.named_parameters():
        if name == "puzzles" or name == "q_head.weight":
            assert not p.any()
        elif name == "q_head.bias":
            assert p.tolist() == [-5, -5]
        else:
            target = p.shape[-1] ** -0.5
            assert abs(p.std().item() / target - 1) < 0.03, name
            assert p.abs().max() <= 2 * target / 0.8796, name
            assert abs(p.mean().item()) < 0.05 * target, name
    assert abs(torch.stack([net.y0, net.z0]).std().item() - 1) < 0.1
    assert not torch.equal(net.y0, net.z0)
    assert "y0" not in dict(net.named_parameters()) and "y0" in net.state_dict()


# ---------------------------------------------------------------- losses


def test_stablemax_equals_a_naive_float64_one():
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)) * 10
    logits[0, 0] = 0
    logits[0, 1, 0], logits[0, 1, 1] = 1e4, -1e4
    ours = stablemax_log_probs(logits)
    for b, at in itertools.product(range(3), range(5)):
        s = [float(v) + 1 if v >= 0 else 1 / (1 - float(v)) for v in logits[b, at]]
        naive = torch.tensor([math.log(v / sum(s)) for v in s], dtype=torch.float64)
        torch.testing.assert_close(ours[b, at].double(), naive, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.exp().sum(-1), torch.ones(3, 5))


def test_stablemax_gradient_is_finite_everywhere():
    logits = torch.tensor([-1e8, -1.0, -1e-8, 0.0, 1e-8, 1.0, 1e8], requires_grad=True)
    stablemax_log_probs(logits)[:6].sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["stablemax", "softmax"])
def test_cross_entropy_is_the_mean_over_labelled_positions_of_a_row(kind):
    g = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(3, 6, 5, generator=g), torch.randint(5, (3, 6), generator=g)
    labels[0, 2:] = -100
    labels[2] = -100
    log_p = stablemax_log_probs(logits)
    if kind == "softmax":
        e = logits.double().exp()
        log_p = (e / e.sum(-1, keepdim=True)).log().float()
    naive = []
    for b, length in ((0, 2), (1, 6)):  # so many positions are labelled
        naive.append(-sum(log_p[b, at, labels[b, at]] for at in range(length)) / length)
    loss = cross_entropy(logits, labels, kind)
    torch.testing.assert_close(loss[:2], torch.stack(naive))
    assert loss[2] == 0
    other = logits.clone()
    other[0, 2:], other[2] = 9.0, -9.0  # positions labelled -100
    assert torch.equal(cross_entropy(other, labels, kind)[0], loss[0])


def scored(labels, answers, q=(0.0, 0.0), steps=(1, 1), halted=(True, True), **changes):
    """trm_loss of two rows whose logits say `answers` loudly."""
    cfg = ModelConfig(**TINY | changes)
    labels, answers = torch.tensor(labels), torch.tensor(answers)
    logits = F.one_hot(answers, 6).float() * 5
    q = torch.tensor(q)
    carry = Carry(
        torch.zeros(2),
        torch.zeros(2),
        torch.tensor(steps),
        torch.tensor(halted),
        {"labels": labels},
    )
    return trm_loss(cfg, Output(logits, q, q), carry)


def test_the_halting_head_is_taught_whether_the_row_is_exactly_right():
    q = (0.7, -0.4)
    loss, parts = scored(
        [[1, 2, -100], [1, 2, 3]], [[1, 2, 5], [1, 2, 4]], q
    )  # right where labelled; one cell wrong
    bce = math.log(1 + math.exp(-0.7)) + math.log(1 + math.exp(-0.4))  # targets 1 and 0
    assert parts["halt_loss"].item() == pytest.approx(bce, rel=1e-5)
    assert loss.item() == pytest.approx(parts["answer_loss"].item() + 0.5 * bce, rel=1e-6)
    assert (parts["rows"], parts["count"], parts["exact"], parts["q_accuracy"], parts["steps"]) == (
        2,
        2,
        1,
        2,
        2,
    )
    assert parts["cells"].item() == pytest.approx(1 + 2 / 3)


def test_metrics_cover_the_rows_that_halted():
    labels, answers = [[1, 2, 3], [1, 2, 3]], [[1, 2, 3], [1, 2, 4]]
    loss, parts = scored(labels, answers, steps=(3, 2), halted=(False, True))
    assert (parts["rows"], parts["count"], parts["exact"], parts["steps"]) == (2, 1, 0, 2)
    assert parts["cells"].item() == pytest.approx(2 / 3)
    assert loss == scored(labels, answers)[0], "the loss covers all rows"


def test_the_complexity_penalty_is_a_constant_without_gradient():
    phi = (1 + math.sqrt(5)) / 2
    for T, n, n_layers in ((3, 6, 2), (2, 3, 4), (1, 1, 1)):
        cfg = ModelConfig(T=T, n=n, n_layers=n_layers)
        assert complexity(cfg) == pytest.approx(
            sum(n * phi**layer for _ in range(T) for layer in range(n_layers)), rel=1e-12
        )
    assert complexity(ModelConfig(T=3, n=6, n_layers=2)) == pytest.approx(3 * 6 * (1 + phi))
    plain, dear = make(), make(complexity_weight=0.25)
    results = []
    for net in (plain, dear):
        carry, out = first_step(net.train())
        loss, _ = trm_loss(net.cfg, out, carry)
        loss.backward()
        results.append((loss.item(), gradients(net)))
    assert results[1][0] - results[0][0] == pytest.approx(
        3 * 0.25 * complexity(dear.cfg), rel=1e-5
    )  # three rows
    assert all(torch.equal(results[0][1][k], results[1][1][k]) for k in results[0][1])


def test_the_ponder_penalty_is_the_chance_to_go_on():
    labels = [[1, 2, 3], [1, 2, 3]]
    plain, _ = scored(labels, labels, (0.7, -0.4))
    loss, parts = scored(labels, labels, (0.7, -0.4), ponder_weight=0.2)
    expected = sum(1 - 1 / (1 + math.exp(-q)) for q in (0.7, -0.4))
    assert parts["ponder"].item() == pytest.approx(expected, rel=1e-5)
    assert loss.item() - plain.item() == pytest.approx(0.2 * expected, rel=1e-4)


def short_training(ponder_weight: float) -> float:
    """Mean supervision steps per example at the end of a short training to copy a question.

    7 of 10 labels have a wrong cell. So the answer is exact in 3 of 10 rows, and the halting head
    has no way to tell which.
    """
    torch.manual_seed(0)
    net = TRM(
        ModelConfig(
            **TINY
            | {
                "mixer": "conv",
                "positions": "none",
                "prefix": 0,
                "T": 1,
                "n": 1,
                "n_layers": 1,
                "q_from": "mean",
                "n_sup": 8,
                "ponder_weight": ponder_weight,
            }
        ),
        SHAPE,
    ).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    carry, spent, finished = None, 0, 0
    for step in range(100):
        batch = examples(8, seed=step)
        g = torch.Generator().manual_seed(1000 + step)
        wrong = F.one_hot(torch.randint(16, (8,), generator=g), 16).bool() & (
            torch.rand(8, 1, generator=g) < 0.7
        )
        batch["labels"] = torch.where(wrong, batch["inputs"] % 5 + 1, batch["inputs"])
        carry, out = net.step(net.refill(carry or net.start(batch), batch))
        loss, metrics = trm_loss(net.cfg, out, carry)
        optimizer.zero_grad()
        (loss / 8).backward()
        optimizer.step()
        if step >= 50:
            spent, finished = spent + metrics["steps"].item(), finished + metrics["count"].item()
    return spent / finished


def test_ponder_weight_lowers_the_steps_used():
    patient, hurried = short_training(0.0), short_training(1.0)
    assert hurried < 0.5 * patient, (patient, hurried)


# ---------------------------------------------------------------- the continue loss


def test_the_continue_loss_costs_one_more_forward_and_has_the_target_of_q_learning():
    net, batch = (
        make(continue_loss=True, n_sup=2, q_bias=(-0.1, 0.2), q_from="mean").train(),
        examples(),
    )
    calls = []
    net.net.register_forward_hook(lambda *_: calls.append(1))
    carry, out = net.step(net.refill(net.start(batch), batch))
    assert len(calls) == 2 * 3 * (2 + 1)  # twice T * (n + 1)
    with torch.no_grad():
        ahead = net.read(net(net.embed(carry.batch), carry.y, carry.z)[0])
    torch.testing.assert_close(
        out.target_continue, torch.maximum(ahead.q_halt, ahead.q_continue).sigmoid()
    )
    assert not out.target_continue.requires_grad
    assert (
        ahead.q_continue > ahead.q_halt
    ).all()  # so that the last step's other target can be told apart
    carry, out = net.step(carry)
    with torch.no_grad():
        ahead = net.read(net(net.embed(carry.batch), carry.y, carry.z)[0])
    torch.testing.assert_close(out.target_continue, ahead.q_halt.sigmoid())
    loss, parts = trm_loss(net.cfg, out, carry)
    p, t = out.q_continue.sigmoid(), out.target_continue
    naive = -(t * p.log() + (1 - t) * (1 - p).log()).sum()
    torch.testing.assert_close(parts["continue_loss"], naive.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        loss, parts["answer_loss"] + 0.5 * parts["halt_loss"] + 0.5 * naive, rtol=1e-5, atol=1e-5
    )


def test_with_the_continue_loss_a_slot_halts_where_q_halt_beats_q_continue():
    for q_bias, halted in (((-5.0, -6.0), True), ((5.0, 6.0), False)):
        assert (
            first_step(make(continue_loss=True, q_bias=q_bias).train())[0].halted.tolist()
            == [halted] * 3
        )


def test_the_continue_loss_costs_nothing_in_evaluation():
    net, calls = make(continue_loss=True).eval(), []
    net.net.register_forward_hook(lambda *_: calls.append(1))
    assert first_step(net)[1].target_continue is None and len(calls) == 9


# ---------------------------------------------------------------- mixing


def test_conv_equals_a_naive_convolution_and_leaves_the_prefix_out():
    torch.manual_seed(0)
    conv, h = Conv(4, prefix=2), torch.randn(2, 2 + 9, 4)
    out = conv(h)
    assert not out[:, :2].any()
    grid, naive = h[:, 2:].view(2, 3, 3, 4), torch.zeros(2, 3, 3, 4)
    for r, c, i, j in itertools.product(range(3), range(3), range(3), range(3)):
        if 0 <= r + i - 1 < 3 and 0 <= c + j - 1 < 3:
            naive[:, r, c] += grid[:, r + i - 1, c + j - 1] * conv.weight[:, 0, i, j]
    torch.testing.assert_close(out[:, 2:], naive.view(2, 9, 4))


def groups_of(at: int, side: int, box: tuple[int, int], S: int):
    """The groups of position `at`, S positions a cell: row, column, box, cell (if S > 1)."""
    every = range(side * side * S)
    same = [i for i in every if i % S == at % S]
    row, col = [i // S // side for i in every], [i // S % side for i in every]
    yield [i for i in same if row[i] == row[at]]
    yield [i for i in same if col[i] == col[at]]
    if box[0]:
        area = [(y // box[0], x // box[1]) for y, x in zip(row, col)]
        yield [i for i in same if area[i] == area[at]]
    if S > 1:
        yield [i for i in every if i // S == at // S]


@pytest.mark.parametrize("digits", [1, 0], ids=["cells", "cells and digits"])
@pytest.mark.parametrize("side, box", [(4, (2, 2)), (6, (2, 3)), (5, (0, 0))])
def test_pool_equals_the_formula_of_every_cell(side, box, digits):
    torch.manual_seed(0)
    S, D = digits or side, 3  # positions per cell
    kinds, every = 2 + (box[0] > 0) + (S > 1), range(side * side * S)
    pool, h = Pool(D, box, S), torch.randn(2, len(every), D)
    out = pool(h)
    u, g = F.linear(h, pool.into.weight).split(kinds * D, -1)
    for cell in every:
        pooled = []
        for kind, members in enumerate(groups_of(cell, side, box, S)):
            assert len(members) == side
            part = slice(kind * D, kind * D + D)
            pooled.append(
                (u[:, members, part] * F.silu(g[:, members, part])).sum(1) / len(members) ** 0.5
            )
        torch.testing.assert_close(
            out[:, cell], F.linear(torch.cat(pooled, -1), pool.out.weight), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("digits", [1, 0], ids=["cells", "cells and digits"])
@pytest.mark.parametrize("side, box", [(4, (2, 2)), (6, (2, 3)), (5, (0, 0))])
@pytest.mark.parametrize("kind", ["silu", "swiglu"])
def test_group_mlp_equals_the_formula_of_every_cell(kind, side, box, digits):
    torch.manual_seed(0)
    S, D = digits or side, 5  # 2 channels are summed, 3 tell their soft maximum
    mlp, h = GroupMLP(D, kind, 2.0, 2, box, S), torch.randn(2, side * side * S, D)
    out = mlp(h)
    maps = [mlp.line, mlp.line] + [mlp.area] * (box[0] > 0) + [mlp.cell] * (S > 1)
    for cell in range(side * side * S):
        u = F.linear(h[:, cell], mlp.up.weight)
        for members, read in zip(groups_of(cell, side, box, S), maps, strict=True):
            assert len(members) == side
            total = h[:, members, :2].sum(1) / side**0.5
            soft = h[:, members, 2:].exp().mean(1).log()
            pooled = torch.cat([total, soft], -1)
            u = u + F.linear(F.silu(F.linear(pooled, read[0].weight)), read[2].weight)
        gate, value = u.chunk(2, -1) if kind == "swiglu" else (u, 1)
        naive = F.linear(F.silu(gate) * value, mlp.down.weight)
        torch.testing.assert_close(out[:, cell], naive, rtol=1e-4, atol=1e-5)


def sudoku_moves(side: int, box: tuple[int, int], seed: int) -> torch.Tensor:
    """A random permutation of cells that keeps rows, columns and boxes together.

    Of bands, rows in bands, stacks and columns in stacks.
    """
    g = torch.Generator().manual_seed(seed)

    def line(group):
        return torch.cat(
            [
                band * group + torch.randperm(group, generator=g)
                for band in torch.randperm(side // group, generator=g)
            ]
        )

    return (line(box[0])[:, None] * side + line(box[1])[None]).flatten()


@pytest.mark.parametrize("mixer", ["pool", "groups"])
@pytest.mark.parametrize("side, box", [(4, (2, 2)), (6, (2, 3))])
def test_a_net_turns_with_the_position_symmetries_of_sudoku(side, box, mixer):
    net = make(Shape(side * side, 6, 1, *box), mixer=mixer, positions="none", q_from="mean")
    batch = examples(2, side * side, puzzles=1)
    out = first_step(net, batch)[1]
    for seed in range(3):
        move = sudoku_moves(side, box, seed)
        moved = first_step(net, {k: v[:, move] if v.dim() == 2 else v for k, v in batch.items()})[1]
        torch.testing.assert_close(moved.logits, out.logits[:, move], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(moved.q_halt, out.q_halt, rtol=1e-4, atol=1e-4)
    broken = torch.arange(side * side)
    broken[[0, side]] = broken[[side, 0]]  # two cells swap: no symmetry
    moved = first_step(net, {k: v[:, broken] if v.dim() == 2 else v for k, v in batch.items()})[1]
    assert (moved.logits - out.logits[:, broken]).abs().max() > 0.01


@pytest.mark.parametrize("mixer", ["pool", "groups"])
@pytest.mark.parametrize("side, box", [(4, (2, 2)), (6, (2, 3))])
def test_a_net_per_digit_renames_its_answer_with_the_digits(side, box, mixer):
    torch.manual_seed(5)
    digits = torch.cat([torch.arange(2), 2 + torch.randperm(side)])  # padding and blank stay
    batch = examples(2, side * side, side + 2, puzzles=1)
    renamed = batch | {"inputs": digits[batch["inputs"]]}
    for per_digit in (True, False):
        net = make(
            Shape(side * side, side + 2, 1, *box),
            mixer=mixer,
            positions="none",
            q_from="mean",
            per_digit=per_digit,
        )
        out, moved = first_step(net, batch)[1], first_step(net, renamed)[1]
        same = torch.allclose(moved.logits[..., digits], out.logits, rtol=1e-3, atol=1e-4)
        assert same == per_digit == torch.allclose(moved.q_halt, out.q_halt, rtol=1e-6, atol=1e-6)
        assert out.logits.shape == (2, side * side, side + 2)
        assert (out.logits[..., :2] == -1e4).all() == per_digit  # no answers
        assert len(net.tokens) == (3 if per_digit else side + 2)


def test_transposing_the_grid_swaps_the_row_and_the_column_weights_of_pool():
    torch.manual_seed(0)
    pool, h, turned = (
        Pool(3, (2, 2)),
        torch.randn(2, 16, 3),
        torch.arange(16).view(4, 4).T.flatten(),
    )
    swapped, kinds = copy.deepcopy(pool), [1, 0, 2]  # column, row, box
    with torch.no_grad():
        swapped.into.weight.copy_(
            pool.into.weight.view(2, 3, 3, 3)[:, kinds].flatten(0, 2)
        )  # (u and g, kind, D, D)
        swapped.out.weight.copy_(pool.out.weight.view(3, 3, 3)[:, kinds].flatten(1))
    torch.testing.assert_close(swapped(h[:, turned]), pool(h)[:, turned], rtol=1e-4, atol=1e-5)
    assert (pool(h[:, turned]) - pool(h)[:, turned]).abs().max() > 0.01, (
        "so a pool net does not turn with the transposition"
    )


def test_a_group_mlp_turns_with_the_transposition():
    torch.manual_seed(0)
    mlp, h = GroupMLP(4, "silu", 2.0, 2, (2, 2)), torch.randn(2, 16, 4)
    turned = torch.arange(16).view(4, 4).T.flatten()
    torch.testing.assert_close(mlp(h[:, turned]), mlp(h)[:, turned], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mixer", ["conv", "pool", "groups"])
def test_weights_of_conv_pool_and_groups_do_not_depend_on_the_size_of_the_grid(mixer):
    small, large = (
        make(Shape(16, 6), mixer=mixer, positions="none"),
        make(Shape(49, 6), mixer=mixer, positions="none", seed=1),
    )
    large.load_state_dict(small.state_dict())
    batch = examples(2, 49, puzzles=1)
    outs = [first_step(net, batch)[1].logits for net in (small, large)]
    assert torch.equal(*outs) and outs[0].shape == (2, 49, 6)


def test_attention_equals_a_naive_one():
    torch.manual_seed(0)
    attention, h = Attention(8, 2), torch.randn(2, 5, 8)
    out, parts = attention(h, rope_1d(5, 4)), []
    q, k, v = F.linear(h, attention.qkv.weight).split(8, -1)
    for head in range(2):
        a, b, c = (t[..., head * 4 : head * 4 + 4] for t in (q, k, v))
        a, b = (rotate(t[:, :, None], rope_1d(5, 4))[:, :, 0] for t in (a, b))
        parts.append((a @ b.mT / 2).softmax(-1) @ c)
    torch.testing.assert_close(
        out, F.linear(torch.cat(parts, -1), attention.out.weight), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["swiglu", "reglu", "silu", "gelu"])
def test_mlp_equals_its_formula_and_rounds_its_inner_width_up(kind):
    torch.manual_seed(0)
    mlp, h = MLP(12, kind, 2.0, 5), torch.randn(3, 12)
    u = h @ mlp.up.weight.T
    if kind == "swiglu":
        u = u[:, :20] * u[:, :20].sigmoid() * u[:, 20:]
    elif kind == "reglu":
        u = u[:, :20] * (u[:, :20] > 0) * u[:, 20:]
    else:
        u = u * u.sigmoid() if kind == "silu" else u * 0.5 * (1 + torch.erf(u / 2**0.5))
    torch.testing.assert_close(mlp(h), u @ mlp.down.weight.T, rtol=1e-4, atol=1e-5)
    assert mlp.down.weight.shape == (
        12,
        {"swiglu": 20, "reglu": 20, "silu": 25, "gelu": 25}[kind],
    )  # 16 and 24, rounded up to fives
    assert MLP(512).down.weight.shape == (512, 1536) and MLP(97).down.weight.shape == (97, 512)


# ---------------------------------------------------------------- positions


def test_rotations_keep_lengths_and_see_distances_only():
    g = torch.Generator().manual_seed(0)
    q, k = (
        torch.randn(1, 1, 1, 8, generator=g).expand(1, 10, 1, 8),
        torch.randn(1, 1, 1, 8, generator=g).expand(1, 10, 1, 8),
    )
    angles = rope_1d(10, 8)
    a, b = rotate(q, angles)[0, :, 0], rotate(k, angles)[0, :, 0]
    torch.testing.assert_close(a.norm(dim=-1), q[0, :, 0].norm(dim=-1))
    score = a @ b.T
    for distance in range(-9, 10):
        line = score.diagonal(distance)
        torch.testing.assert_close(line, line[:1].expand_as(line), rtol=1e-4, atol=1e-4)
    assert (score[0, 1:] - score[0, 0]).abs().min() > 1e-3


def test_rope_1d_turns_pair_i_by_position_over_base_to_the_2i_over_dim():
    angles = rope_1d(5, 6, base=100.0)
    for p, i in itertools.product(range(5), range(3)):
        assert angles[p, i].item() == pytest.approx(p * 100 ** (-2 * i / 6), rel=1e-5)


def test_rope_2d_gives_half_of_a_head_to_the_row_and_half_to_the_column():
    rows, cols, dim = 3, 4, 8
    angles = rope_2d(rows, cols, dim).view(rows, cols, 2, 2)  # (row, column, half, pair)
    one = rope_1d(4, 4)
    for r, c in itertools.product(range(rows), range(cols)):
        assert torch.equal(angles[r, c, 0], one[r]) and torch.equal(angles[r, c, 1], one[c])
    assert rope_2d(rows, cols, dim).dtype == torch.float32


def test_rope_2d_sees_the_shift_between_two_cells_only():
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 8, generator=g).expand(1, 25, 1, 8) for _ in range(2))
    angles = rope_2d(5, 5, 8)
    score = (rotate(q, angles)[0, :, 0] @ rotate(k, angles)[0, :, 0].T).view(5, 5, 5, 5)
    torch.testing.assert_close(score[0, 0, 2, 1], score[2, 3, 4, 4], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(score[1, 1, 0, 3], score[4, 0, 3, 2], rtol=1e-4, atol=1e-4)
    assert (score[0, 0, 2, 1] - score[0, 0, 1, 2]).abs() > 1e-3


@pytest.mark.parametrize("prefix", [1, 3, 7])
def test_rope_2d_puts_the_prefix_on_a_row_of_its_own_above_the_grid(prefix):
    angles = rope_2d(2, 3, 8, prefix)
    assert angles.shape == (prefix + 6, 4)
    one = rope_1d(8, 4)
    places = [(0, p) for p in range(prefix)] + [(1 + r, c) for r in range(2) for c in range(3)]
    for at, (r, c) in enumerate(places):
        assert torch.equal(angles[at], torch.cat([one[r], one[c]]))
    assert len(set(places)) == len(places)


def test_rope_2d_refuses_a_head_that_has_no_quarters():
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        rope_2d(2, 2, 6)


def test_learned_positions_are_added_before_the_scale():
    net, batch = make(positions="learned"), examples()
    x = net.embed(batch)
    plain = torch.cat(
        [F.pad(net.puzzles[batch["puzzle"]][:, None], (0, 0, 0, 1)), net.tokens[batch["inputs"]]], 1
    )
    torch.testing.assert_close(x, 4 * 0.5**0.5 * (plain + net.places))


def test_the_prefix_holds_the_puzzle_embedding_at_position_0_and_zeros():
    net, batch = make(prefix=3), examples()
    x = net.embed(batch)
    torch.testing.assert_close(x[:, 0], 4 * net.puzzles[batch["puzzle"]])
    assert not x[:, 1:3].any()
    torch.testing.assert_close(x[:, 3:], 4 * net.tokens[batch["inputs"]])
    context = torch.randn(3, 3, 16)
    torch.testing.assert_close(net.embed(batch, context)[:, :3], 4 * context)


# ---------------------------------------------------------------- norms and blocks


@pytest.mark.parametrize(
    "compute, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 4e-3)]
)
def test_norms_equal_their_formulas(compute, tolerance):
    h = (torch.randn(4, 7, generator=torch.Generator().manual_seed(0)) * 3 + 1).to(compute)
    wide = h.double()
    rms = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    layer = (wide - wide.mean(-1, keepdim=True)) / (
        wide.var(-1, keepdim=True, unbiased=False) + 1e-5
    ).sqrt()
    for kind, naive in (("rms", rms), ("layer", layer)):
        norm = Norm(kind)
        assert list(norm.parameters()) == [] and norm(h).dtype == compute
        torch.testing.assert_close(norm(h).double(), naive, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize(
    "compute, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]
)
def test_gradients_of_norms_equal_those_of_their_formulas(kind, compute, tolerance):
    g = torch.Generator().manual_seed(0)
    h = torch.randn(5, 6, 7, generator=g).mul(2).add(1).to(compute)
    h[0, 0] = 0.0  # a row of zeros
    d = torch.randn(5, 7, 6, generator=g).to(compute).mT  # as a transposed neighbour hands it over
    ours, naive = h.clone().requires_grad_(), h.double().requires_grad_()
    Norm(kind)(ours).backward(d)
    centred = naive - naive.mean(-1, keepdim=True) if kind == "layer" else naive
    (centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()).backward(d.double())
    assert ours.grad.dtype == compute
    error = (ours.grad.double() - naive.grad).norm(dim=-1) / naive.grad.norm(dim=-1)
    assert error.max() < tolerance


def test_norms_compute_in_fp32_inside_bf16():
    h = torch.full((1, 512), 1.0, dtype=torch.bfloat16)
    h[0, ::2] = 1.0078125  # the next bf16; a bf16 sum of 512 squares would be off by whole percents
    exact = h.double() / (h.double().square().mean() + 1e-5).sqrt()
    assert torch.equal(Norm("rms")(h), exact.to(torch.bfloat16))


def test_post_norm_and_pre_norm_blocks_equal_their_formulas():
    torch.manual_seed(0)
    h, norm = torch.randn(2, 9, 8), Norm("rms")
    mixer, mlp = Conv(8), MLP(8, multiple=4)
    post = norm(h + mixer(h))
    post = norm(post + mlp(post))
    torch.testing.assert_close(Block([mixer], mlp)(h), post)
    pre = h + mixer(norm(h))
    pre = pre + mlp(norm(pre))
    torch.testing.assert_close(Block([mixer], mlp, pre=True)(h), pre)


def test_the_mixer_runs_everything_the_norm_too_over_positions():
    torch.manual_seed(0)
    h, norm = torch.randn(2, 9, 8), Norm("rms")
    mixer, mlp = layers.PositionMLP(9, "swiglu", 2.0, 4), MLP(8, multiple=4)
    t = h.transpose(1, 2)
    t = norm(t + mixer.mlp(t)).transpose(1, 2)
    torch.testing.assert_close(Block([mixer], mlp)(h), norm(t + mlp(t)))


def test_a_pre_norm_net_ends_with_one_more_norm():
    net = make(norm_place="pre", mixer="pool").net
    h = torch.randn(2, 16, 16)
    inner = net.blocks[1](net.blocks[0](h))
    torch.testing.assert_close(net(h, None), Norm("rms")(inner))
    assert inner.square().mean() > 1.05
    post = make(mixer="pool").net
    torch.testing.assert_close(post(h, None), post.blocks[1](post.blocks[0](h)))


def test_conv_and_attention_act_one_after_the_other():
    net = make(mixer="conv+attention")
    block = net.net.blocks[0]
    assert [type(m) for m in block.mixers] == [Conv, Attention]
    h = torch.randn(2, 18, 16)
    norm, angles = Norm("rms"), net.angles(h)
    a = norm(h + block.mixers[0](h))
    a = norm(a + block.mixers[1](a, angles))
    torch.testing.assert_close(block(h, angles), norm(a + block.mlp(a)))


def test_linear_computes_in_the_dtype_of_its_input_over_fp32_weights():
    linear = Linear(4, 3)
    for compute in (torch.float32, torch.bfloat16, torch.float64):
        x = torch.randn(2, 4).to(compute)
        assert torch.equal(linear(x), F.linear(x, linear.weight.to(compute)))
    assert linear.weight.dtype == torch.float32
    assert isinstance(linear, nn.Module)
    assert not hasattr(linear, "bias")


def test_the_net_is_the_only_recursive_part():
    net = make()
    assert isinstance(net.net, Net) and net.net_y is None
    assert {k.split(".")[0] for k, _ in net.named_parameters()} == {
        "tokens",
        "puzzles",
        "net",
        "head",
        "q_head",
    }
