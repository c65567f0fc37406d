"""Update rules against hand-written loops, gradient filters against hand-computed sequences.

And every key of TrainConfig: what it moves, and what it leaves alone.
"""

import cmath
import copy
import dataclasses
import math
import sys
import types
import typing

import pytest
import torch
from torch import nn

import data
import test_init
import tiny
import train as training
from config import UserError
from model import TRM, ModelConfig, Shape
from optim import EMA, AdamAtan2, GrokFast, Muon, SignSGD, make_optimizers, schedule, set_rates
from runs import make_world
from tasks.base import Task
from train import TrainConfig

CHOICES = {
    f.name: typing.get_args(f.type)
    for f in dataclasses.fields(TrainConfig)
    if typing.get_args(f.type)
}


class Toy(nn.Module):
    """One parameter of each kind that make_optimizers tells apart."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(0)

        def parameter(*shape):
            return nn.Parameter(torch.randn(shape, generator=g))

        self.tokens, self.puzzles, self.y0 = parameter(5, 8), parameter(3, 8), parameter(8)
        self.net, self.net_y, self.q_head = nn.Module(), nn.Module(), nn.Linear(8, 2)
        self.net.up, self.net.kernel, self.net_y.up = (
            parameter(12, 8),
            parameter(8, 1, 3, 3),
            parameter(12, 8),
        )


MATRICES, PUZZLES, REST = (
    {"net.up", "net_y.up"},
    {"puzzles"},
    {"tokens", "y0", "net.kernel", "q_head.weight", "q_head.bias"},
)


def updates(**changes) -> tuple[dict, Toy]:
    """Weights after five steps on gradients that do not depend on the weights."""
    cfg = dataclasses.replace(TrainConfig(warmup=2, steps=8, puzzle_lr=0.01), **changes)
    torch.manual_seed(0)
    net = Toy()
    optimizers = make_optimizers(net, cfg)
    g = torch.Generator().manual_seed(1)
    for step in range(5):
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=g)
        set_rates(optimizers, schedule(cfg, step))
        for optimizer in optimizers:
            optimizer.step()
    return {k: p.detach().clone() for k, p in net.named_parameters()}, net


ADAM = MATRICES | REST
# key, value, which weights move differently, under which other settings
UPDATES = [
    ("optimizer", "muon", MATRICES, {}),
    ("optimizer", "adam_atan2", ADAM, {}),
    ("optimizer", "adam", ADAM, {}),
    ("lr", 2e-4, ADAM, {}),
    ("lr", 2e-4, REST, {"optimizer": "muon"}),
    ("weight_decay", 0.5, ADAM, {}),
    ("weight_decay", 0.5, ADAM, {"optimizer": "adam_atan2"}),
    ("weight_decay", 0.5, REST, {"optimizer": "muon"}),
    ("beta1", 0.5, ADAM, {}),
    ("beta1", 0.5, ADAM, {"optimizer": "adam_atan2"}),
    ("beta2", 0.5, ADAM, {}),
    ("beta2", 0.5, ADAM, {"optimizer": "adam_atan2"}),
    ("muon_lr", 0.04, MATRICES, {"optimizer": "muon"}),
    ("muon_lr", 0.04, set(), {}),
    ("muon_weight_decay", 0.5, MATRICES, {"optimizer": "muon"}),
    ("muon_momentum", 0.5, MATRICES, {"optimizer": "muon"}),
    ("muon_iterations", 5, MATRICES, {"optimizer": "muon"}),
    ("muon_iterations", 5, set(), {}),
    ("puzzle_lr", 0.02, PUZZLES, {}),
    ("puzzle_lr", 0.02, PUZZLES, {"optimizer": "muon"}),
    ("puzzle_weight_decay", 0.5, PUZZLES, {}),
    ("warmup", 4, ADAM | PUZZLES, {}),
    ("warmup", 0, ADAM | PUZZLES, {"optimizer": "muon"}),
    ("schedule", "cosine", ADAM | PUZZLES, {}),
    ("lr_floor", 0.5, ADAM | PUZZLES, {"schedule": "cosine"}),
    ("lr_floor", 0.5, set(), {}),
    ("steps", 20, ADAM | PUZZLES, {"schedule": "cosine"}),
    ("steps", 20, set(), {}),
]


@pytest.mark.parametrize(
    "key, value, moves, others", UPDATES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_optimizer_switch_moves_the_weights_it_should_and_no_others(key, value, moves, others):
    a, b = updates(**others)[0], updates(**others | {key: value})[0]
    assert {k for k in a if not torch.equal(a[k], b[k])} == moves


# ---------------------------------------------------------------- Adam-atan2


def test_adam_atan2_equals_a_scalar_loop():
    lr, b1, b2, decay = 0.01, 0.9, 0.95, 0.3
    g = torch.Generator().manual_seed(0)
    start, grads = torch.randn(4, generator=g), [torch.randn(4, generator=g) for _ in range(7)]
    p = nn.Parameter(start.clone())
    optimizer = AdamAtan2([p], lr, (b1, b2), decay)
    for grad in grads:
        p.grad = grad.clone()
        optimizer.step()
    for i in range(4):
        w, m, v = start[i].item(), 0.0, 0.0
        for t, grad in enumerate(grads, 1):
            m, v = b1 * m + (1 - b1) * grad[i].item(), b2 * v + (1 - b2) * grad[i].item() ** 2
            w = w * (1 - lr * decay) - lr * math.atan2(m / (1 - b1**t), math.sqrt(v / (1 - b2**t)))
        assert p[i].item() == pytest.approx(w, rel=1e-5, abs=1e-6)


def test_the_first_update_of_adam_atan2_is_the_papers_and_not_that_of_the_package():
    p = nn.Parameter(torch.zeros(1))
    p.grad = torch.full((1,), 3.0)
    AdamAtan2([p], lr=1.0).step()
    paper = math.atan2(3.0, 3.0)
    package = math.atan2((1 - 0.9) * 3.0, 3.0) / (1 - 0.9)  # corrects m outside of atan2
    assert -p.item() == pytest.approx(paper)
    assert package / paper == pytest.approx(1.27, abs=0.005), "what the docstring says"


def test_adam_atan2_does_not_see_the_scale_of_the_gradient():
    ends = []
    for scale in (1.0, 2.0**-40, 2.0**30):  # AdamW's epsilon would show at the small one
        p = nn.Parameter(torch.ones(5))
        optimizer = AdamAtan2([p], 0.1)
        for t in range(4):
            p.grad = scale * torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0]) * (-1) ** (t // 2)
            optimizer.step()
        ends.append(p.detach().clone())
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-6, atol=1e-7)
    assert ends[0][4] == 1 and (ends[0][:4] != 1).all()


def test_adam_atan2_continues_from_its_state_dict_to_the_same_bits():
    def steps(optimizer, p, first, last):
        for t in range(first, last):
            p.grad = torch.sin(torch.arange(6.0) + t)
            optimizer.step()

    p = nn.Parameter(torch.ones(6))
    optimizer = AdamAtan2([p], 0.1, weight_decay=0.1)
    steps(optimizer, p, 0, 3)
    q = nn.Parameter(p.detach().clone())
    other = AdamAtan2([q], 0.1, weight_decay=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(optimizer, p, 3, 6), steps(other, q, 3, 6)
    assert torch.equal(p, q)


# ---------------------------------------------------------------- sign-SGD


def test_sign_sgd_moves_and_decays_only_the_rows_that_are_present():
    start = torch.tensor([[1.0, -2.0], [3.0, 4.0], [5.0, -6.0]])
    p = nn.Parameter(start.clone())
    p.grad = torch.tensor([[0.3, -7.0], [0.0, 0.0], [0.0, 1e-9]])
    SignSGD([p], lr=0.1, weight_decay=0.5).step()
    kept = 1 - 0.1 * 0.5
    expected = torch.tensor(
        [[kept - 0.1, -2 * kept + 0.1], [3.0, 4.0], [5 * kept, -6 * kept - 0.1]]
    )
    torch.testing.assert_close(p.detach(), expected)
    assert torch.equal(p[1], start[1])


def test_duplicate_identifiers_sum_their_gradients_before_the_sign():
    table = nn.Parameter(torch.zeros(2, 1))
    rows = nn.functional.embedding(torch.tensor([0, 0, 0]), table)
    (rows * torch.tensor([[1.0], [1.0], [-1.5]])).sum().backward()
    SignSGD([table], lr=0.1).step()
    torch.testing.assert_close(table.detach(), torch.tensor([[-0.1], [0.0]]))


# ---------------------------------------------------------------- groups and rates

REAL = [
    dict(mixer="attention"),
    dict(mixer="mlp", init="learned", positions="learned"),
    dict(mixer="conv", prefix=0, two_nets=True),
    dict(mixer="pool", prefix=0),
    dict(mixer="groups", prefix=0),
    dict(mixer="conv+attention", two_nets=True),
]


@pytest.mark.parametrize("optimizer", CHOICES["optimizer"])
@pytest.mark.parametrize("model", REAL, ids=lambda m: m["mixer"])
def test_every_parameter_is_in_exactly_one_group(optimizer, model):
    net = TRM(
        ModelConfig(**{"dim": 16, "heads": 2, "multiple": 4, "prefix": 1} | model),
        Shape(16, 6, 2, 2, 2),
    )
    optimizers = make_optimizers(net, TrainConfig(optimizer=optimizer))
    grouped = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in net.parameters())
    names = {id(p): name for name, p in net.named_parameters()}
    for o in optimizers:
        mine = {names[id(p)] for group in o.param_groups for p in group["params"]}
        if isinstance(o, torch.optim.Muon):
            assert optimizer == "muon"
            recursive = [n for n in names.values() if n.split(".")[0] in ("net", "net_y")]
            assert mine == {n for n in recursive if net.get_parameter(n).ndim == 2} != set()
        if isinstance(o, SignSGD):
            assert mine == {"puzzles"}
    expected = {
        "adamw": {torch.optim.AdamW},
        "adam": {torch.optim.Adam},
        "adam_atan2": {AdamAtan2},
        "muon": {torch.optim.AdamW, Muon},
    }
    assert {type(o) for o in optimizers} - {SignSGD} == expected[optimizer]
    assert (SignSGD in map(type, optimizers)) == bool(net.cfg.prefix)


def test_an_unknown_optimizer_raises_at_once():
    cfg = types.SimpleNamespace(**vars(TrainConfig()) | {"optimizer": "adamm"})
    with pytest.raises(ValueError, match="adamm") as error:
        make_optimizers(Toy(), cfg)
    for name in CHOICES["optimizer"]:
        assert name in str(error.value)


def test_rates_of_parts_make_groups_and_frozen_parameters_are_in_none():
    net = Toy()
    net.encoder = nn.Module()
    net.encoder.blocks, net.encoder.vector = nn.Linear(4, 4), nn.Parameter(torch.zeros(4))
    net.tokens.requires_grad = False
    cfg = TrainConfig(optimizer="muon", lr=0.1, muon_lr=0.5, puzzle_lr=0.8)
    adam, muon, sign = make_optimizers(net, cfg, {"encoder": 2.0, "decoder": 0.5})
    names = {id(p): name for name, p in net.named_parameters()}

    def told(optimizer) -> list:
        groups = optimizer.param_groups
        return [(g["peak"], {names[id(p)] for p in g["params"]}) for g in groups]

    vectors = {"encoder.vector", "encoder.blocks.bias"}
    assert told(adam) == [(0.2, vectors), (0.05, REST - {"tokens"})]
    assert told(muon) == [(1.0, {"encoder.blocks.weight"}), (0.25, MATRICES)]
    assert told(sign) == [(0.4, PUZZLES)]


def test_groups_hold_the_configured_numbers():
    cfg = TrainConfig(
        optimizer="muon",
        lr=0.1,
        weight_decay=0.2,
        beta1=0.3,
        beta2=0.4,
        muon_lr=0.5,
        muon_weight_decay=0.6,
        muon_momentum=0.7,
        muon_iterations=4,
        puzzle_lr=0.8,
        puzzle_weight_decay=0.9,
    )
    adam, muon, sign = (o.param_groups[0] for o in make_optimizers(Toy(), cfg))
    assert (adam["lr"], adam["weight_decay"], adam["betas"]) == (0.1, 0.2, (0.3, 0.4))
    assert (muon["lr"], muon["weight_decay"], muon["momentum"]) == (0.5, 0.6, 0.7)
    assert (muon["ns_steps"], muon["nesterov"]) == (4, True)
    assert (sign["lr"], sign["weight_decay"]) == (0.8, 0.9)


def test_rates_are_shares_of_the_full_rate():
    optimizers = make_optimizers(
        Toy(), TrainConfig(optimizer="muon", lr=0.1, muon_lr=0.5, puzzle_lr=0.8)
    )
    for share in (0.5, 0.25, 1.0):  # not cumulative
        set_rates(optimizers, share)
        rates = [o.param_groups[0]["lr"] for o in optimizers]
        assert rates == [0.1 * share, 0.5 * share, 0.8 * share]


def test_the_schedule_warms_up_linearly_and_ends_at_its_floor():
    cfg = TrainConfig(warmup=4, steps=20)
    assert [schedule(cfg, s) for s in (0, 1, 2, 3, 4, 19)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert schedule(TrainConfig(warmup=0), 0) == 1.0
    cosine = TrainConfig(warmup=4, steps=20, schedule="cosine", lr_floor=0.1)
    assert [schedule(cosine, s) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    for s in (4, 8, 12, 16, 19):
        assert schedule(cosine, s) == pytest.approx(
            0.1 + 0.9 * (1 + math.cos(math.pi * (s - 4) / 15)) / 2
        )
    assert schedule(cosine, 19) == pytest.approx(0.1, abs=1e-12), "the last step is at the floor"
    odd = TrainConfig(warmup=4, steps=21, schedule="cosine", lr_floor=0.1)
    assert schedule(odd, 12) == pytest.approx(0.55)
    for steps in (1, 2, 3):  # no room for a cosine
        short = TrainConfig(warmup=2, steps=steps, schedule="cosine", lr_floor=0.1)
        assert [schedule(short, s) for s in range(steps)] == [0.5, 1.0, 1.0][:steps]
    assert schedule(cosine, 20) == pytest.approx(0.1) == schedule(cosine, 25)
    falling = [schedule(cosine, s) for s in range(4, 21)]
    assert falling == sorted(falling, reverse=True)


# ---------------------------------------------------------------- GrokFast


def filtered(kind: str, grads: list[float], **settings) -> list[float]:
    f, out = GrokFast(kind, **settings), []
    for g in grads:
        t = [torch.tensor([g], dtype=torch.float64), torch.tensor([[2 * g]], dtype=torch.float64)]
        f(t)
        assert t[1].item() == pytest.approx(2 * t[0].item())  # every tensor is filtered by itself
        out.append(t[0].item())
    return out


def test_the_ema_filter_adds_the_slow_part():
    grads = [1.0, 2.0, -4.0, 0.0]  # alpha 0.5: mu = 1, 1.5, -1.25, -0.625
    assert filtered("ema", grads, alpha=0.5, lamb=2.0) == pytest.approx([3.0, 5.0, -6.5, -1.25])


def test_the_highpass_filter_adds_the_fast_part():
    grads = [1.0, 2.0, -4.0, 0.0]  # g + 2 (g - mu) with the same mu
    assert filtered("highpass", grads, alpha=0.5, lamb=2.0) == pytest.approx([1.0, 3.0, -9.5, 1.25])


def test_the_ma_filter_adds_the_mean_of_a_full_window():
    grads = [1.0, 2.0, -4.0, 0.0, 6.0]  # window 3: nothing yet, nothing yet, mean -1/3, -2/3, 2/3
    assert filtered("ma", grads, lamb=3.0, window=3) == pytest.approx([1.0, 2.0, -5.0, -2.0, 8.0])
    assert filtered("ma", grads, lamb=3.0, window=1) == pytest.approx([4 * g for g in grads])


def gain(kind: str, omega: float, **settings) -> float:
    """Amplitude after the filter of a gradient exp(i omega t), once the start is forgotten."""
    steps = 600
    real = filtered(kind, [math.cos(omega * t) for t in range(steps)], **settings)[-1]
    imaginary = filtered(kind, [math.sin(omega * t) for t in range(steps)], **settings)[-1]
    return abs(complex(real, imaginary))


@pytest.mark.parametrize("alpha, lamb", [(0.9, 2.0), (0.95, 0.1)])
def test_ema_amplifies_slow_gradients_and_highpass_fast_ones(alpha, lamb):
    settings = {"alpha": alpha, "lamb": lamb}
    nyquist = (1 - alpha) / (1 + alpha)  # of the moving average
    assert gain("ema", 0.0, **settings) == pytest.approx(1 + lamb)
    assert gain("ema", math.pi, **settings) == pytest.approx(1 + lamb * nyquist, rel=1e-6)
    assert gain("highpass", 0.0, **settings) == pytest.approx(1)
    assert gain("highpass", math.pi, **settings) == pytest.approx(
        1 + lamb * (1 - nyquist), rel=1e-6
    )
    for omega in (0.1, 1.0):
        mean = (1 - alpha) / (1 - alpha * cmath.exp(-1j * omega))
        assert gain("ema", omega, **settings) == pytest.approx(abs(1 + lamb * mean), rel=1e-6)
        assert gain("highpass", omega, **settings) == pytest.approx(
            abs(1 + lamb * (1 - mean)), rel=1e-6
        )


def test_ma_amplifies_slow_gradients():
    for window in (4, 5):
        assert gain("ma", 0.0, lamb=2.0, window=window) == pytest.approx(3)
        assert gain("ma", math.pi, lamb=2.0, window=window) == pytest.approx(
            1 + 2 * (window % 2) / window
        )


@pytest.mark.parametrize("kind", ["ema", "ma", "highpass"])
def test_a_filter_continues_from_its_state_dict_to_the_same_bits(kind, tmp_path):
    def grads(t):
        return [torch.sin(torch.arange(4.0) + t), torch.cos(torch.ones(2, 2) * t)]

    whole, first, second = (GrokFast(kind, 0.9, 2.0, 3) for _ in range(3))
    for t in range(5):
        a, b = grads(t), grads(t)
        whole(a), first(b)
    torch.save(first.state_dict(), tmp_path / "filter.pt")
    second.load_state_dict(torch.load(tmp_path / "filter.pt", weights_only=True))
    for t in range(5, 9):
        a, b = grads(t), grads(t)
        whole(a), second(b)
        assert all(torch.equal(x, y) for x, y in zip(a, b)) and not torch.equal(a[0], grads(t)[0])


def test_a_filter_keeps_no_reference_to_the_gradients_it_saw():
    for kind in ("ema", "ma", "highpass"):
        f, g = GrokFast(kind, 0.5, 1.0, 2), [torch.ones(3)]
        f(g)
        g[0].fill_(100.0)
        after = [torch.ones(3)]
        f(after)
        torch.testing.assert_close(after[0], torch.full((3,), 1.0 if kind == "highpass" else 2.0))


# ---------------------------------------------------------------- the averaged weights


@pytest.mark.parametrize("warmup", [False, True])
def test_the_ema_of_weights_equals_a_scalar_loop(warmup):
    net = nn.Linear(1, 1, bias=False)
    ema, mean = EMA(net, 0.9, warmup), None
    for t, value in enumerate([1.0, 3.0, -2.0, 5.0, 5.0]):
        with torch.no_grad():
            net.weight.fill_(value)
        ema.update_parameters(net)
        keep = min(0.9, (1 + t) / (10 + t)) if warmup else 0.9
        mean = value if t == 0 else keep * mean + (1 - keep) * value
        assert ema.module.weight.item() == pytest.approx(mean, rel=1e-6)
    assert net.weight.item() == 5.0


def test_the_warm_up_of_the_ema_ends_at_the_full_decay():
    net = nn.Linear(1, 1, bias=False)
    ema = EMA(net, 0.5, True)
    ema.n_averaged.fill_(8)  # (1 + 8) / (10 + 8) is 0.5; later it would be more
    for t, before in ((8, 2.0), (30, 4.0)):
        ema.n_averaged.fill_(t)
        with torch.no_grad():
            ema.module.weight.fill_(before), net.weight.fill_(0.0)
        ema.update_parameters(net)
        assert ema.module.weight.item() == pytest.approx(before * 0.5)


# ---------------------------------------------------------------- what training does with each key


class Recorder(torch.optim.Optimizer):
    """Keeps the gradients it is handed and moves nothing.

    So runs that differ in a filter see the same raw gradients.
    """

    def __init__(self, params):
        super().__init__(params, {"lr": 1.0})
        self.seen = []

    def step(self, closure=None):
        (group,) = self.param_groups
        self.seen.append(torch.cat([p.grad.flatten() for p in group["params"]]).clone())


def gradients(folder, monkeypatch, **keys) -> list[torch.Tensor]:
    recorder = []

    def record(net, cfg, rates=None):
        recorder.append(Recorder(net.parameters()))
        recorder[0].param_groups[0]["peak"] = 1.0
        return recorder

    monkeypatch.setattr(training, "make_optimizers", record)
    tiny.run(folder, train={"steps": 6, "eval_every": 6, **keys})
    return recorder[0].seen


def test_clip_bounds_the_norm_of_all_gradients(tmp_path, monkeypatch):
    free = gradients(tmp_path / "a", monkeypatch)
    cut = gradients(tmp_path / "b", monkeypatch, clip=0.5)
    assert min(g.norm() for g in free) > 0.6
    for a, b in zip(free, cut, strict=True):
        torch.testing.assert_close(b, a * 0.5 / a.norm(), rtol=1e-4, atol=1e-7)
    wide = gradients(tmp_path / "c", monkeypatch, clip=1e6)
    assert all(torch.equal(a, b) for a, b in zip(free, wide, strict=True))


@pytest.mark.parametrize("kind", ["ema", "ma", "highpass"])
def test_the_loop_filters_with_the_configured_numbers_before_it_clips(kind, tmp_path, monkeypatch):
    raw = gradients(tmp_path / "raw", monkeypatch)
    keys = {"grokfast": kind, "grokfast_alpha": 0.7, "grokfast_lambda": 1.5, "grokfast_window": 3}
    for name, clip in (("free", 0.0), ("cut", 0.5)):
        mu, seen = None, gradients(tmp_path / name, monkeypatch, clip=clip, **keys)
        for t, (g, ours) in enumerate(zip(raw, seen, strict=True)):
            mu = g if mu is None else 0.7 * mu + 0.3 * g
            window = sum(raw[t - 2 : t + 1]) / 3 if t >= 2 else 0 * g
            expected = g + 1.5 * {"ema": mu, "highpass": g - mu, "ma": window}[kind]
            if clip:
                expected = expected * 0.5 / expected.norm()
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_grokfast_numbers_are_dead_without_a_filter(tmp_path, monkeypatch):
    raw = gradients(tmp_path / "a", monkeypatch)
    numbers = {"grokfast_alpha": 0.5, "grokfast_lambda": 9.0, "grokfast_window": 2}
    other = gradients(tmp_path / "b", monkeypatch, **numbers)
    assert all(torch.equal(a, b) for a, b in zip(raw, other, strict=True))


def test_ema_moves_the_averaged_weights_and_the_validation_only(tmp_path):
    names = {"base": {}, "less": {"ema": 0.5}, "warm": {"ema_warmup": True}, "none": {"ema": 0.0}}
    for name, keys in names.items():
        tiny.run(tmp_path / name, train=keys)
    state = {name: tiny.checkpoint(tmp_path / name) for name in names}
    for name in ("less", "warm", "none"):
        assert tiny.differences(state[name]["net"], state["base"]["net"]) == []
        assert tiny.lines(tmp_path / name, "train") == tiny.lines(tmp_path / "base", "train")
        assert tiny.lines(tmp_path / name, "val") != tiny.lines(tmp_path / "base", "val")
    for name in ("less", "warm"):
        assert tiny.differences(state[name]["ema"], state["base"]["ema"]) != []
    assert state["none"]["ema"] is None


def test_batch_size_is_the_number_of_slots(tmp_path):
    tiny.run(tmp_path / "a", train={"batch_size": 6, "steps": 2})
    carry = tiny.checkpoint(tmp_path / "a")["processes"][0]["carry"]
    assert carry["y"].shape[0] == carry["steps"].shape[0] == carry["batch"]["inputs"].shape[0] == 6


@pytest.fixture
def steps_seen(monkeypatch) -> list[list[int]]:
    """The steps of the slots at every call of TRM.step in training."""
    seen, step = [], TRM.step

    def watched(net, carry, **random):
        if net.training:
            seen.append(carry.steps.tolist())
        return step(net, carry, **random)

    monkeypatch.setattr(TRM, "step", watched)
    return seen


def test_accumulate_is_the_number_of_pieces(tmp_path, steps_seen):
    tiny.run(tmp_path, train={"batch_size": 6, "accumulate": 3, "steps": 2})
    assert [len(steps) for steps in steps_seen] == [2] * 6


def test_stagger_lets_slots_take_new_examples_in_turn(tmp_path, steps_seen):
    for stagger in (False, True):
        tiny.run(
            tmp_path / str(stagger),
            model={"halting": False, "n_sup": 3},
            train={"stagger": stagger, "batch_size": 5, "steps": 7},
        )
    together, in_turn = steps_seen[:7], steps_seen[7:]
    assert together == [[i % 3] * 5 for i in range(7)]
    assert in_turn == [[0] * 5] + [[(i + slot) % 3 for slot in range(5)] for i in range(1, 7)]


def test_ranks_stagger_as_one_process_does(tmp_path):
    cfg = tiny.config(
        model={"halting": False, "n_sup": 3}, train={"stagger": True, "batch_size": 4}
    )
    dataset = data.load(cfg)
    run = training.make_run(cfg, tmp_path, make_world(cfg.train), dataset)
    run.world = dataclasses.replace(run.world, rank=1)
    feed = data.batches(dataset, cfg, 4, cfg.seed, 0)
    training.train_step(run, feed)
    feed.close()
    assert run.carry.steps.tolist() == [2, 3, 1, 2]  # slots 4 to 7
    assert run.carry.halted.tolist() == [False, True, False, False]


def test_steps_log_every_and_eval_every_say_when(tmp_path):
    tiny.run(tmp_path / "a", train={"steps": 7, "log_every": 3, "eval_every": 2})
    assert [line["step"] for line in tiny.lines(tmp_path / "a", "train")] == [3, 6, 7]
    assert [line["step"] for line in tiny.lines(tmp_path / "a", "val")] == [2, 4, 6, 7]
    tiny.run(tmp_path / "b", train={"steps": 20, "eval_every": 0})
    validations = [line["step"] for line in tiny.lines(tmp_path / "b", "val")]
    assert validations == list(range(2, 21, 2))  # ten per run
    assert tiny.checkpoint(tmp_path / "b")["step"] == 20


def test_log_every_does_not_move_the_weights(tmp_path):
    for every in (1, 4):
        tiny.run(tmp_path / str(every), train={"log_every": every})
    one, four = (tiny.checkpoint(tmp_path / name) for name in "14")
    assert tiny.differences(one["net"], four["net"]) == []
    each = [line["loss"] for line in tiny.lines(tmp_path / "1", "train")]
    mean = tiny.lines(tmp_path / "4", "train")[0]["loss"]
    assert mean == pytest.approx(sum(each[:4]) / 4, abs=2e-6)


def test_eval_steps_is_the_length_of_the_curve(tmp_path):
    for steps, expected in ((0, 3), (2, 2), (5, 5)):
        summary = tiny.run(tmp_path / str(steps), train={"eval_steps": steps, "steps": 5})
        validation = tiny.lines(tmp_path / str(steps), "val")[0]
        assert len(summary["test"]["curve"]) == len(validation["curve"]) == expected
        assert summary["test"]["steps"] == expected
    assert tiny.differences(*(tiny.checkpoint(tmp_path / name)["net"] for name in "05")) == []


def test_eval_average_moves_the_answer_and_nothing_else(tmp_path):
    train = {"eval_steps": 4, "eval_every": 10, "batch_size": 32}
    rows = {"test_rows": 200}
    one = tiny.run(tmp_path / "1", train=train | {"eval_average": 1}, data=rows)
    four = tiny.run(tmp_path / "4", train=train | {"eval_average": 4}, data=rows)
    assert one["test"]["curve"] == four["test"]["curve"]
    assert one["test_halting"] == four["test_halting"]
    assert one["test"]["cells"] != four["test"]["cells"]
    assert tiny.differences(*(tiny.checkpoint(tmp_path / name)["net"] for name in "14")) == []


def test_ckpt_minutes_is_the_time_between_checkpoints(tmp_path, monkeypatch):
    save, saved = training.save, []

    def save_and_note(path, state):
        saved.append(path.name)
        save(path, state)

    monkeypatch.setattr(training, "save", save_and_note)
    tiny.run(tmp_path / "a", train={"ckpt_minutes": 0.0})
    assert saved.count("ckpt.pt") == 10
    saved.clear()
    tiny.run(tmp_path / "b", train={"ckpt_minutes": 60.0})
    assert saved.count("ckpt.pt") == 2  # with the evaluations only
    saved.clear()
    clock = [0.0]

    def ten_seconds(run):
        clock[0] += 10

    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])
    tiny.run(tmp_path / "c", ten_seconds, train={"ckpt_minutes": 0.5, "eval_every": 10})
    assert saved.count("ckpt.pt") == 3  # 40 seconds after the last one: steps 4 and 8, and the end


def test_patience_counts_validations_without_a_better_one(tmp_path, monkeypatch):
    figures = iter([0.1, 0.3, 0.2, 0.3, 0.1, 0.9])  # equal is not better

    def fake(task, net, split, cfg, world, rows=0, adaptive=False, progress=""):
        exact = next(figures) if progress == "validation" else 0.5
        half = {"exact": exact, "cells": 0.5, "valid": 0.0, "steps": 3.0, "n": 10}
        return half | {"curve": [exact] * 3, "halting": dict(half), "verdict": {}}

    monkeypatch.setattr(Task, "evaluate", fake)
    summary = tiny.run(tmp_path, train={"steps": 40, "eval_every": 2, "patience": 3})
    assert [line["exact"] for line in tiny.lines(tmp_path, "val")] == [0.1, 0.3, 0.2, 0.3, 0.1]
    assert (summary["steps"], summary["best_step"], summary["val"]["exact"]) == (10, 4, 0.3)
    assert tiny.checkpoint(tmp_path, "best.pt")["step"] == 4


# ---------------------------------------------------------------- the host


def test_device_and_dtype_choose_where_and_in_what_to_compute(monkeypatch):
    assert make_world(TrainConfig(device="cpu")).device.type == "cpu"
    for dtype in ("float32", "bfloat16"):
        assert make_world(TrainConfig(device="cpu", dtype=dtype)).dtype == getattr(torch, dtype)
    assert make_world(TrainConfig(device="cpu")).dtype == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert make_world(TrainConfig(device="auto")).device.type == "cpu"
    for device in ("cuda", "mps"):
        with pytest.raises(UserError) as error:
            make_world(TrainConfig(device=device))
        assert f"train.device = '{device}'" in str(error.value)
        assert "this machine has none; use --train.device=auto" in str(error.value)


def test_dtype_moves_the_activations_and_not_the_weights(tmp_path):
    for dtype in ("float32", "bfloat16"):
        tiny.run(tmp_path / dtype, train={"dtype": dtype, "steps": 2})
    fp32, bf16 = (tiny.checkpoint(tmp_path / dtype) for dtype in ("float32", "bfloat16"))
    assert fp32["processes"][0]["carry"]["y"].dtype == torch.float32
    assert bf16["processes"][0]["carry"]["y"].dtype == torch.bfloat16
    assert {v.dtype for v in bf16["net"].values()} == {torch.float32}
    assert tiny.differences(fp32["net"], bf16["net"]) != []


def whole_recursion(compiled: list):
    """A torch.compile that compiles nothing and notes what it was asked for."""

    def compile_nothing(function, *, mode="default", **options):
        if function.__name__ == "recurse":
            compiled.append((function.__name__, mode))
        return function

    return compile_nothing


@pytest.mark.slow
def test_compile_compiles_the_recursive_net_and_its_averaged_twin(tmp_path, monkeypatch):
    compiled = []

    def note(module, **options):
        compiled.append(type(module).__name__)

    monkeypatch.setattr(nn.Module, "compile", note)
    tiny.run(tmp_path / "on", train={"compile": "on", "steps": 1}, model={"two_nets": True})
    assert compiled == ["Net"] * 4
    compiled.clear()
    monkeypatch.setattr(torch, "compile", whole_recursion(compiled))
    tiny.run(tmp_path / "graphs", train={"compile": "graphs", "steps": 1})
    assert compiled == [("recurse", "reduce-overhead")] * 2
    tiny.run(tmp_path / "eager", train={"steps": 1})
    assert tiny.lines(tmp_path / "graphs") == tiny.lines(tmp_path / "eager")
    compiled.clear()
    for choice in ("off", "auto"):  # auto: CUDA only
        tiny.run(tmp_path / choice, train={"compile": choice, "steps": 1})
    assert compiled == []


def test_threads_sets_the_threads_of_torch():
    before = torch.get_num_threads()
    try:
        make_world(TrainConfig(device="cpu", threads=2))
        assert torch.get_num_threads() == 2
        make_world(TrainConfig(device="cpu", threads=0))
        assert torch.get_num_threads() == 2  # 0 leaves it alone
    finally:
        torch.set_num_threads(before)


def test_wandb_hears_every_line_and_the_summary(tmp_path, monkeypatch):
    heard = types.SimpleNamespace(lines=[], summary={}, finished=0, started=None)

    class Run:
        summary = heard.summary

        def log(self, values, step):
            heard.lines.append((step, values))

        def finish(self):
            heard.finished += 1

    def init(**options):
        heard.started = options
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    summary = tiny.run(tmp_path / "seed0", train={"wandb": "mazes"})
    assert heard.started["project"] == "mazes" and heard.started["config"]["train.wandb"] == "mazes"
    written = tiny.lines(tmp_path / "seed0")
    assert [step for step, _ in heard.lines] == [line["step"] for line in written]
    first = tiny.lines(tmp_path / "seed0", "train")[0]
    assert heard.lines[0][1]["train/loss"] == pytest.approx(first["loss"], abs=1e-6)
    assert heard.summary["test/exact"] == summary["test"]["exact"]
    assert heard.finished == 1


def test_tensorboard_hears_every_line_and_the_test(tmp_path, monkeypatch):
    written, opened = [], []

    class Writer:
        def __init__(self, folder, purge_step):
            opened.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def flush(self):
            pass

        def close(self):
            opened.append("closed")

    package = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", package)
    monkeypatch.setattr(torch.utils, "tensorboard", package, raising=False)
    folder = tmp_path / "seed0"
    tiny.interrupted(folder, train={"tensorboard": True})
    del written[:]
    summary = tiny.run(folder, train={"tensorboard": True})
    place = f"{folder}/tensorboard"
    assert opened == [(place, 1), (place, 6), "closed"], "it continues after step 5"
    lines = [line for line in tiny.lines(folder, "train") if line["step"] > 5]
    losses = [(value, step) for name, value, step in written if name == "train/loss"]
    assert [step for _, step in losses] == [6, 7, 8, 9, 10]
    assert losses[0][0] == pytest.approx(lines[0]["loss"], abs=1e-6)
    last = tiny.lines(folder, "val")[-1]
    assert ("val/cells", pytest.approx(last["cells"]), 10) in written
    assert ("test/exact", summary["test"]["exact"], summary["best_step"]) in written


# ---------------------------------------------------------------- no key without a row

ELSEWHERE = {  # keys whose rows are tests of their own, above
    "clip": test_clip_bounds_the_norm_of_all_gradients,
    "grokfast": test_the_loop_filters_with_the_configured_numbers_before_it_clips,
    "grokfast_alpha": test_the_loop_filters_with_the_configured_numbers_before_it_clips,
    "grokfast_lambda": test_the_loop_filters_with_the_configured_numbers_before_it_clips,
    "grokfast_window": test_the_loop_filters_with_the_configured_numbers_before_it_clips,
    "ema": test_ema_moves_the_averaged_weights_and_the_validation_only,
    "ema_warmup": test_ema_moves_the_averaged_weights_and_the_validation_only,
    "batch_size": test_batch_size_is_the_number_of_slots,
    "stagger": test_stagger_lets_slots_take_new_examples_in_turn,
    "accumulate": test_accumulate_is_the_number_of_pieces,
    "steps": test_steps_log_every_and_eval_every_say_when,
    "log_every": test_steps_log_every_and_eval_every_say_when,
    "eval_every": test_steps_log_every_and_eval_every_say_when,
    "eval_steps": test_eval_steps_is_the_length_of_the_curve,
    "eval_average": test_eval_average_moves_the_answer_and_nothing_else,
    "ckpt_minutes": test_ckpt_minutes_is_the_time_between_checkpoints,
    "patience": test_patience_counts_validations_without_a_better_one,
    "device": test_device_and_dtype_choose_where_and_in_what_to_compute,
    "dtype": test_dtype_moves_the_activations_and_not_the_weights,
    "compile": test_compile_compiles_the_recursive_net_and_its_averaged_twin,
    "threads": test_threads_sets_the_threads_of_torch,
    "wandb": test_wandb_hears_every_line_and_the_summary,
    "tensorboard": test_tensorboard_hears_every_line_and_the_test,
    "init": test_init.test_the_weights_before_the_first_step_are_those_of_the_run,
    "init_weights": test_init.test_the_weights_before_the_first_step_are_those_of_the_run,
}


def test_every_training_key_has_a_row():
    keys = {f.name for f in dataclasses.fields(TrainConfig)}
    assert {row[0] for row in UPDATES} | ELSEWHERE.keys() == keys
    covered = {
        "grokfast": {"none", "ema", "ma", "highpass"},
        "device": {"auto", "cpu", "cuda", "mps"},
        "compile": {"auto", "on", "graphs", "off"},
        "dtype": {"auto", "float32", "bfloat16"},
        "init_weights": {"ema", "raw"},
    }
    for key, choices in CHOICES.items():
        rows = {row[1] for row in UPDATES if row[0] == key} | {getattr(TrainConfig(), key)}
        assert covered.get(key, rows) == set(choices), f"a choice of {key} without a row"


def test_impossible_training_values_are_named():
    def problems(**keys):
        return [key for key, _ in TrainConfig(**keys).problems()]

    assert problems() == []
    for key in (
        "steps",
        "batch_size",
        "accumulate",
        "log_every",
        "grokfast_window",
        "muon_iterations",
        "eval_average",
    ):
        assert key in problems(**{key: 0})
    for key in ("lr", "muon_lr", "puzzle_lr"):
        assert problems(**{key: 0.0}) == [key]
    for key in (
        "weight_decay",
        "muon_weight_decay",
        "puzzle_weight_decay",
        "warmup",
        "clip",
        "eval_every",
        "eval_steps",
        "patience",
        "ckpt_minutes",
        "threads",
        "grokfast_lambda",
    ):
        assert problems(**{key: -1}) == [key]
    for key in ("beta1", "beta2", "muon_momentum", "ema", "grokfast_alpha"):
        assert problems(**{key: 1.0}) == [key] == problems(**{key: -0.1})
    assert problems(lr_floor=1.1) == ["lr_floor"] == problems(lr_floor=-0.1)
    assert problems(batch_size=10, accumulate=4) == ["accumulate"]


# ---------------------------------------------------------------- Muon

MUON = [
    {"nesterov": True},
    {"nesterov": False},
    {"adjust_lr_fn": "original"},
    {"adjust_lr_fn": "match_rms_adamw"},
    {"eps": 50.0},  # larger than any norm: the iteration starts from smaller matrices
]


@pytest.mark.parametrize("changes", MUON, ids=str)
def test_muon_in_batches_is_torchs_muon(changes):
    g = torch.Generator().manual_seed(0)
    shapes = (8, 4), (4, 8), (8, 4), (6, 6)
    start = [torch.randn(*shape, generator=g) for shape in shapes]
    ours, theirs = ([nn.Parameter(w.clone()) for w in start] for _ in range(2))
    options = {"lr": 0.1, "momentum": 0.8, "ns_steps": 3, "weight_decay": 0.1} | changes
    a, b = Muon(ours, **options), torch.optim.Muon(theirs, **options)
    for _ in range(3):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn(p.shape, generator=g)
            q.grad = p.grad.clone()
        a.step(), b.step()
    for p, q, w in zip(ours, theirs, start):
        assert (p - q).norm() < 0.02 * (q - w).norm()  # torch iterates in bf16
    assert a.state_dict()["state"].keys() == b.state_dict()["state"].keys()
    b.load_state_dict(a.state_dict())  # and a run may go over to torch's


@pytest.mark.parametrize("shape", [(8, 4), (4, 8)])
def test_adjust_lr_fn_scales_the_step_of_muon(shape):
    moved = {}
    for kind in (None, "original", "match_rms_adamw"):
        p = nn.Parameter(torch.zeros(shape))
        p.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        Muon([p], lr=0.1, weight_decay=0.0, adjust_lr_fn=kind).step()
        moved[kind] = p.detach()
    assert torch.equal(moved[None], moved["original"])
    ratio = 0.2 * 8**0.5 / max(1, shape[0] / shape[1]) ** 0.5
    torch.testing.assert_close(moved["match_rms_adamw"], ratio * moved[None])
