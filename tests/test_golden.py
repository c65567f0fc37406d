"""Parity with the public TRM code: logits, q, losses, halting, carry and every gradient.

The golden vectors of the public code are read from GOLDEN_DIR (default ../shared/golden). A small
file of the same format lies in tests/, so that a clone tests parity too. tests/naive_trm.py made
it, an implementation that shares nothing with ours.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import naive_trm
from model import TRM, ModelConfig, Shape, public_names, trm_loss

HERE = Path(__file__).parent
GOLDEN_DIR = Path(os.environ.get("GOLDEN_DIR", HERE.parent.parent / "shared" / "golden"))
FILES = sorted(HERE.glob("golden*.npz")) + sorted(GOLDEN_DIR.glob("*.npz"))


def test_golden_files_of_the_public_code_are_present():
    if not GOLDEN_DIR.is_dir():
        pytest.skip(
            f"no folder {GOLDEN_DIR} with golden vectors of the public code; "
            "set GOLDEN_DIR to test against them"
        )
    assert any(f.parent == GOLDEN_DIR for f in FILES), f"no golden vectors (*.npz) in {GOLDEN_DIR}"


def from_public_config(old: dict) -> tuple[ModelConfig, Shape]:
    cfg = ModelConfig(
        dim=old["hidden_size"],
        n_layers=old["L_layers"],
        heads=old["num_heads"],
        T=old["H_cycles"],
        n=old["L_cycles"],
        mixer="mlp" if old["mlp_t"] else "attention",
        positions=old["pos_encodings"],
        prefix=old["puzzle_emb_len"],
        expansion=old["expansion"],
        position_expansion=old["expansion"],
        n_sup=old["halt_max_steps"],
        explore=old["halt_exploration_prob"],
        continue_loss=not old.get("no_ACT_continue", True),
    )
    return cfg, Shape(old["seq_len"], old["vocab_size"], old["num_puzzle_identifiers"])


def near(ours: torch.Tensor, theirs: np.ndarray, what: str):
    ours, theirs = ours.detach().double().numpy(), np.asarray(theirs, dtype=np.float64)
    np.testing.assert_allclose(
        ours, theirs, rtol=1e-4, atol=1e-4 * max(1e-3, np.abs(theirs).max()), err_msg=what
    )


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_golden_parity(path):
    file = np.load(path)
    cfg, shape = from_public_config(json.loads(str(file["config"])))
    net = TRM(cfg, shape)
    weights = {
        k.removeprefix("weights/"): torch.from_numpy(file[k])
        for k in file.files
        if k.startswith("weights/")
    }
    net.load_state_dict(public_names(weights))  # strict: every name is known and used
    net.train()
    theirs_to_ours = {k: next(iter(public_names({k: None}))) for k in weights}
    carry, step = None, 1
    while f"step{step}/logits" in file.files:
        now = {
            k.removeprefix(f"step{step}/"): file[k]
            for k in file.files
            if k.startswith(f"step{step}/")
        }
        batch = {
            ours: torch.from_numpy(now[f"batch/{old}"]).long()
            for ours, old in (
                ("inputs", "inputs"),
                ("labels", "labels"),
                ("puzzle", "puzzle_identifiers"),
            )
        }
        if (
            step > 1 and "mlp" in cfg.mixer
        ):  # chaotic: rounding grows over steps, so each starts from the stored carry
            carry.y, carry.z = (torch.from_numpy(file[f"step{step - 1}/{k}"]) for k in "yz")
        carry = net.refill(carry or net.start(batch), batch)
        carry, out = net.step(carry)
        loss, metrics = trm_loss(cfg, out, carry)
        net.zero_grad()
        (loss / len(batch["inputs"])).backward()

        near(out.logits, now["logits"], f"logits of step {step}")
        near(out.q_halt, now["q_halt"], f"q of step {step}")
        near(loss / len(batch["inputs"]), now["loss"], f"loss of step {step}")
        near(metrics["answer_loss"], now["lm_loss"], f"answer loss of step {step}")
        near(metrics["halt_loss"], now["q_halt_loss"], f"halting loss of step {step}")
        near(carry.y, now["y"], f"y of step {step}")
        near(carry.z, now["z"], f"z of step {step}")
        assert carry.halted.tolist() == now["halted"].tolist()
        assert carry.steps.tolist() == now["steps"].tolist()
        assert carry.batch["inputs"].tolist() == now["current_inputs"].tolist()

        ours = dict(net.named_parameters())
        checked = set()
        for key, value in now.items():
            kind, _, name = key.partition("/")
            if kind not in ("grad", "grad_norm"):
                continue
            if name.endswith(
                "puzzle_emb.local_weights"
            ):  # the public code keeps one gradient row per slot
                rows, checked = ours["puzzles"].grad, checked | {"puzzles"}
                if kind == "grad":
                    summed = torch.zeros_like(rows).index_add_(
                        0, carry.batch["puzzle"], torch.from_numpy(value)
                    )
                    near(rows, summed.numpy(), f"{key} of step {step}")
                continue
            grad = ours[theirs_to_ours[name]].grad
            checked.add(theirs_to_ours[name])
            near(grad if kind == "grad" else grad.norm(), value, f"{key} of step {step}")
        assert checked == ours.keys() - {"y0", "z0"}, "a parameter without a golden gradient"
        step += 1
    assert step > 2, "a golden file holds several steps: the carry is what it tests"


def test_golden_file_of_ours_is_what_the_naive_code_makes():
    file, made = np.load(HERE / "golden_naive.npz"), naive_trm.golden()
    assert set(file.files) == set(made)
    for key in made:
        if key != "config":
            np.testing.assert_allclose(made[key], file[key], rtol=1e-5, atol=1e-7, err_msg=key)


def test_golden_reader_refuses_unknown_names():
    with pytest.raises(KeyError):
        public_names({"inner.something_new.weight": torch.zeros(1)})


def test_golden_reader_takes_compiled_checkpoints():
    assert list(
        public_names({"_orig_mod.model.inner.L_level.layers.3.mlp_t.down_proj.weight": None})
    ) == ["net.blocks.3.mixers.0.mlp.down.weight"]


@pytest.mark.parametrize(
    "name, cfg, shape, count",
    [
        ("Maze attention", {}, Shape(900, 6), 6_822_914),
        ("Maze attention, 4 layers", {"n_layers": 4}, Shape(900, 6), 13_638_658),
        ("Sudoku attention", {}, Shape(81, 11), 6_828_034),
        ("Sudoku mixer", {"mixer": "mlp", "positions": "none"}, Shape(81, 11), 5_028_866),
    ],
)
def test_published_parameter_counts(name, cfg, shape, count):
    net = TRM(ModelConfig(**cfg), shape)
    assert sum(p.numel() for key, p in net.named_parameters() if key != "puzzles") == count
    assert net.puzzles.shape == (1, 512)  # plus one row per puzzle identifier
