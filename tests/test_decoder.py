"""The published net of Grokfast: its formula, its data, and that the loop of train.py trains it."""

import math

import numpy as np
import pytest
import torch

import data
import tiny
from config import UserError, load_config
from tasks.classifier import ClassShape
from tasks.decoder import Decoder, ModularModel
from tasks.features import products
from train import Config, load_run, train

MODEL = {
    "decoder": True,
    "dim": 16,
    "heads": 2,
    "n_layers": 2,
    "T": 1,
    "n": 1,
    "n_sup": 1,
    "prefix": 0,
    "halting": False,
    "mixer": "attention",
    "q_from": "first",
    "loss": "softmax",
    "q_weight": 0.0,
}


def config(**changes):
    table = {"task": "modular", "operation": "multiply", "modulus": 7, "train_share": 0.6}
    model = MODEL | changes.pop("model", {})
    steps = {"optimizer": "adam", "ema": 0.0} | changes.pop("train", {})
    return tiny.config(data=table | changes, model=model, train=steps)


def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def layer_norm(h, w, name):
    middle = h - h.mean(-1, keepdims=True)
    scaled = middle / np.sqrt((middle**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def naive(w: dict, tokens: list[int], heads: int, layers: int) -> np.ndarray:
    """Logits of one row, position by position, with loops."""
    h = np.array([w["tokens.weight"][t] + w["places.weight"][i] for i, t in enumerate(tokens)])
    L, D = h.shape
    width = D // heads
    for layer in range(layers):
        at = f"net.blocks.{layer}"
        h = layer_norm(h, w, f"{at}.norm_1")
        qkv = h @ w[f"{at}.attention.in_proj_weight"].T + w[f"{at}.attention.in_proj_bias"]
        q, k, v = qkv[:, :D], qkv[:, D : 2 * D], qkv[:, 2 * D :]
        seen = np.zeros_like(h)
        for i in range(L):
            for head in range(heads):
                part = slice(head * width, (head + 1) * width)
                scores = k[: i + 1, part] @ q[i, part] / math.sqrt(width)  # nothing that follows
                seen[i, part] = softmax(scores) @ v[: i + 1, part]
        out = f"{at}.attention.out_proj"
        h = h + seen @ w[f"{out}.weight"].T + w[f"{out}.bias"]
        inner = layer_norm(h, w, f"{at}.norm_2") @ w[f"{at}.mlp.0.weight"].T
        inner = inner + w[f"{at}.mlp.0.bias"]
        gelu = np.array([[x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in row] for row in inner])
        h = h + gelu @ w[f"{at}.mlp.2.weight"].T + w[f"{at}.mlp.2.bias"]
    return layer_norm(h, w, "net.last_norm")[-1] @ w["head.weight"].T


def test_logits_follow_the_published_formula():
    torch.manual_seed(0)
    net = Decoder(ModularModel(**MODEL), ClassShape(seq_len=4, vocab_size=9, classes=7)).double()
    w = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    rows = torch.randint(9, (5, 4))
    for row, logits in zip(rows, net(rows)):
        wanted = naive(w, row.tolist(), heads=2, layers=2)
        np.testing.assert_allclose(logits[0].detach().numpy(), wanted, atol=1e-5)


def test_products_are_those_of_the_published_code():
    inputs, labels = products(5)
    assert inputs.shape == (20, 4) and len(np.unique(inputs, axis=0)) == 20
    for (a, times, b, equals), (label,) in zip(inputs, labels):
        assert (times, equals, label) == (5, 6, a * b % 5) and b > 0
    dataset = data.load(config())
    assert dataset.shape == {"seq_len": 4, "vocab_size": 9, "classes": 7}
    assert "products modulo 7" in dataset.card["source"]


def test_the_loop_of_train_py_trains_it_and_resumes(tmp_path):
    cfg = config(
        train={"steps": 200, "batch_size": 20, "lr": 1e-2, "eval_every": 100, "weight_decay": 0.0}
    )
    summary = train(cfg, tmp_path / "run")
    lines = tiny.lines(tmp_path / "run", "train")
    assert lines[-1]["exact"] > 0.9 > lines[0]["exact"] and summary["flop"] > 0
    assert {line["halted"] for line in lines} == {20}
    (tmp_path / "run" / "summary.json").unlink()
    assert train(cfg, tmp_path / "run")["test"] == summary["test"]
    assert type(load_run(tmp_path / "run")[1]) is Decoder


@pytest.mark.parametrize("key, value", [("T", 2), ("q_weight", 0.5), ("mixer", "mlp")])
def test_a_decoder_does_not_recur(key, value, tmp_path):
    entry = tiny.ROOT / "sweeps/grokfast_published/baseline.toml"
    with pytest.raises(UserError, match=rf"{key} = .*, expected .* with decoder = true"):
        load_config(Config, entry, {"model": {key: value}})


def test_adam_s_decay_is_inside_the_gradient():
    """Its first step has the length of the rate, whatever the decay: AdamW's has both."""
    from optim import make_optimizers

    moved = {}
    for name in ("adam", "adamw"):
        cfg = config(train={"optimizer": name, "lr": 0.1, "weight_decay": 0.5}).train
        net = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(net.weight, 2.0)
        (optimizer,) = make_optimizers(net, cfg)
        net.weight.grad = torch.ones(1, 1)
        optimizer.step()
        moved[name] = 2.0 - net.weight.item()
    assert moved["adam"] == pytest.approx(0.1, abs=1e-6)
    assert moved["adamw"] == pytest.approx(0.1 + 0.1 * 0.5 * 2.0, abs=1e-6)
