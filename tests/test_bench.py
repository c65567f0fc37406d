"""bench.py: arithmetic, reference and results.

Its arithmetic is that of the papers. Its reference computes what we compute.
Its table and JSON say what was measured.
"""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import bench
import tiny
from layers import RMSNorm, group_members
from model import ModelConfig, Shape, net_flop, step_calls, trm_loss

SMALL = {"dim": 16, "n_layers": 2, "heads": 2, "T": 2, "n": 2, "multiple": 8, "expansion": 2.0}
NETS = [
    {"mixer": "attention", "prefix": 3, "heads": 2},
    {"mixer": "attention", "positions": "rope2d", "prefix": 2, "q_from": "mean"},
    {"mixer": "mlp", "positions": "none", "prefix": 1, "grad_cycles": 2},
    {"mixer": "mlp", "positions": "learned", "prefix": 0},
    {"mixer": "conv", "positions": "none", "prefix": 0, "loss": "softmax"},
    {"mixer": "conv+attention", "prefix": 2},
    {"mixer": "pool", "positions": "none", "prefix": 0},
    {"mixer": "pool", "per_digit": True, "positions": "none", "prefix": 0},
]


def a_net(model: dict) -> tuple:
    cfg = tiny.config(model=tiny.ENTRY["model"] | SMALL | model, train={"batch_size": 3})
    torch.manual_seed(1)
    net = cfg.task.make_net(cfg, cfg.task.shape(cfg), torch.float32)
    batch = {k: torch.randint(low, 6, (3, 16)) for k, low in (("inputs", 1), ("labels", 2))} | {
        "puzzle": torch.zeros(3, dtype=torch.long)
    }
    return cfg, net, batch


@pytest.mark.parametrize("model", NETS, ids=lambda m: f"{m['mixer']}-{m.get('positions', 'rope')}")
def test_the_textbook_step_has_our_loss_and_our_gradients(model):
    cfg, net, batch = a_net(model)
    book = bench.Textbook(cfg, net, batch)
    logits, q, y, z = book.forward(batch, book.y, book.z)
    theirs = book.loss(logits, q, batch["labels"])
    theirs.backward()
    carry, out = net.step(net.refill(net.start(batch), batch))
    loss, _ = trm_loss(cfg.model, out, carry)
    loss.backward()
    torch.testing.assert_close(out.logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss.double(), theirs.double(), rtol=1e-5, atol=0)
    for name, p in net.named_parameters():
        torch.testing.assert_close(
            p.grad,
            book.w[name].grad,
            rtol=1e-3,
            atol=1e-4 * p.grad.abs().max().item(),
            msg=lambda m, name=name: f"{name}: {m}",
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rms_norm_and_its_gradient_are_those_of_torch(dtype):
    h, d = (
        torch.randn(5, 7, 33, dtype=dtype, requires_grad=True),
        torch.randn(5, 7, 33, dtype=dtype),
    )
    ours, theirs = RMSNorm.apply(h), F.rms_norm(h, (33,), eps=1e-5)
    ours_d, theirs_d = (torch.autograd.grad(out, h, d)[0] for out in (ours, theirs))
    assert ours.dtype == ours_d.dtype == dtype
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        ours_d, theirs_d, **({"rtol": 0.03, "atol": 0.03} if dtype == torch.bfloat16 else {})
    )


@pytest.mark.parametrize(
    "name, model, shape, batch, tera",
    [  # forward FLOP of one net call, computed by hand
        ("Sudoku mixer", {"mixer": "mlp"}, Shape(81, 11), 768, 0.937),
        ("Maze-Hard", {}, Shape(900, 6), 768, 12.23),
        ("small maze", {"dim": 128}, Shape(100, 6), 64, 0.00867),
        ("small mixer", {"dim": 128, "mixer": "mlp"}, Shape(81, 11), 64, 0.00976),
    ],
)
def test_flop_of_known_nets(name, model, shape, batch, tera):
    assert net_flop(ModelConfig(**model), shape, batch) / 1e12 == pytest.approx(tera, rel=1e-3)


@pytest.mark.parametrize("mlp", ["silu", "swiglu"])
@pytest.mark.parametrize("per_digit", [False, True])
def test_flop_of_groups_are_those_that_torch_counts(mlp, per_digit):
    """Less the sums over groups, which are products with a matrix of zeros and ones."""
    model = {"mixer": "groups", "prefix": 0, "mlp": mlp, "per_digit": per_digit}
    cfg, net, _ = a_net(model)
    h = torch.randn(3, 16 * net.planes, cfg.model.dim)
    with FlopCounterMode(display=False) as counter:
        net.net(h, None)
    D, wide = cfg.model.dim, len(net.net.blocks[0].mlp.up.weight)
    members = group_members(4, (net.shape.box_rows, net.shape.box_cols)).numel()
    sums = 2 * 3 * cfg.model.n_layers * members * net.planes * (D + wide)
    counted = counter.get_total_flops() - sums
    assert net_flop(cfg.model, net.shape, 3, net.planes) == pytest.approx(counted)


def test_the_textbook_step_refuses_groups():
    cfg, *_ = a_net({"mixer": "groups", "prefix": 0})
    device = torch.device("cpu")
    assert "model.mixer = 'groups'" in bench.obstacle("reference", cfg, device, False)
    assert not bench.obstacle("eager", cfg, device, False)


def test_flop_follow_the_recursion():
    assert step_calls(ModelConfig()) == 35  # (T + 2) (n + 1)
    assert step_calls(ModelConfig(grad_cycles=3)) == 63
    assert step_calls(ModelConfig(continue_loss=True)) == 56


@pytest.mark.slow
def test_arms_are_measured_and_written_down(tmp_path, capsys):
    entry, out = tiny.entry(tmp_path, train={"accumulate": 2}), tmp_path / "results" / "bench.json"
    call = ["--net", str(entry), "--steps", "2", "--device", "cpu", "--out", str(out)]
    assert bench.main([*call, "--arms", "reference,eager"]) == 0
    assert bench.main([*call, "--arms", "eager", "--batch", "2"]) == 0
    printed = capsys.readouterr().out
    assert "reference" in printed and "ms/puzzle" in printed
    ((key, result),) = json.loads(
        out.read_text()
    ).items()  # one key per net and device: the second call replaces the first
    assert str(entry) in key and result["batch"] == 2 and list(result["arms"]) == ["eager"]
    eager = result["arms"]["eager"]
    assert len(eager["every_step"]) == 2 and eager["accumulate"] == 2
    assert 0 < eager["share_of_matmul_peak"] < 1
    assert eager["flop_per_second"] == pytest.approx(
        result["flop_per_step"] / eager["seconds_per_step"]
    )
    assert {"commit", "torch", "hardware", "threads"} <= result.keys()


ALWAYS = {"norms", "heads and embedding", "loss", "optimizer", "EMA", "other"}
PARTS = [  # (net, what it has beside these)
    ({"mixer": "conv", "prefix": 0}, {"mixing: convolution", "channel MLP"}),
    ({"mixer": "mlp", "norm_place": "pre"}, {"mixing: position MLP", "channel MLP"}),
    (
        {"mixer": "conv+attention", "two_nets": True},
        {"mixing: convolution", "mixing: attention", "channel MLP"},
    ),
    ({"mixer": "groups", "prefix": 0}, {"group MLP"}),
]


@pytest.mark.parametrize("model, own", PARTS, ids=["conv", "mlp", "conv+attention", "groups"])
def test_the_parts_of_a_profile_add_up_to_the_step(model, own):
    cfg, net, batch = a_net({"positions": "none", "q_from": "mean"} | model)
    clock = bench.Clock(torch.device("cpu"))
    found = bench.profile_step(cfg, net, batch, 3, clock)
    parts = found["parts"]
    assert parts.keys() == ALWAYS | own
    assert all(part["ms"] > 0 for part in parts.values())
    total = sum(part["ms"] for part in parts.values())
    assert total == pytest.approx(found["ms_per_step"], rel=0.1)
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1)
    printed = bench.profile_table(found)
    assert all(name in printed for name in parts)


class SlowBackward(torch.autograd.Function):
    """The identity, with a backward that takes a time of its own."""

    @staticmethod
    def forward(ctx, h, wait):
        ctx.wait = wait
        return h.view_as(h)

    @staticmethod
    def backward(ctx, d):
        ctx.wait()
        return d, None


@pytest.mark.parametrize(
    "place, part",
    [
        ("mixers.0", "mixing: attention"),
        ("mlp", "channel MLP"),
        ("norm", "norms"),
    ],
)
def test_backward_is_booked_where_its_forward_was(place, part):
    cfg, net, batch = a_net({"mixer": "attention", "prefix": 0, "q_from": "mean"})
    clock, now = bench.Clock(torch.device("cpu")), [0.0]

    def wait() -> None:
        now[0] += 1.0

    clock.now = lambda: now[0]  # nothing else takes time
    arm, _ = bench.warm_up("eager", cfg, net, batch, clock)
    module = arm.run.net.net.blocks[0].get_submodule(place)
    forward = module.forward
    module.forward = lambda h, *more: SlowBackward.apply(forward(h, *more), wait)
    profile = bench.Profile(clock)
    profile.watch_run(arm.run)
    profile.begin()
    arm.train_step()
    profile.turn_to("other")
    calls = cfg.model.n + 1  # with gradient
    norms = 2 * calls if place == "norm" else calls
    assert {name: took for name, took in profile.seconds.items() if took} == {part: norms}


def test_a_profile_is_printed_and_written_down(tmp_path, capsys):
    entry, out = tiny.entry(tmp_path), tmp_path / "bench.json"
    call = ["--net", str(entry), "--steps", "1", "--device", "cpu", "--out", str(out)]
    assert bench.main([*call, "--arms", "eager", "--profile"]) == 0
    ((_, result),) = json.loads(out.read_text()).items()
    assert "mixing: pooling" in result["profile"]["parts"]
    assert "mixing: pooling" in capsys.readouterr().out


def test_arms_that_make_no_sense_here_say_why(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "cpu_has_bf16", lambda: False)
    monkeypatch.setattr(bench, "ARMS", ["reference", "eager", "bf16"])
    entry = tiny.entry(tmp_path, model={"norm": "layer"})
    assert (
        bench.main(
            [
                "--net",
                str(entry),
                "--steps",
                "1",
                "--device",
                "cpu",
                "--out",
                str(tmp_path / "b.json"),
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "no bf16 units" in printed and "model.norm" in printed


def test_arms_that_disagree_are_an_error():
    bench.check_agreement({"reference": 1.0, "eager": 1.00001, "bf16": 1.02}, exact=True)
    with pytest.raises(bench.TrainingError, match="reference and eager compute different things"):
        bench.check_agreement({"reference": 1.0, "eager": 1.01}, exact=True)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--net", "maze_atention"], "unknown net 'maze_atention'"),
        (["--arms", "eagr"], "unknown arm 'eagr'"),
        (["--steps", "0"], "at least 1"),
        (["--net", "nothing.toml"], "cannot read the entry"),
    ],
)
def test_bad_words_are_one_sentence(words, message, tmp_path, capsys):
    assert bench.main([*words, "--out", str(tmp_path / "b.json")]) == 2
    assert message in capsys.readouterr().err
