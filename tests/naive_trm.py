"""A second TRM, written from the text of the paper in plain loops and float64.

It shares no code with ours. `python tests/naive_trm.py` makes tests/golden_naive.npz, in the
format of the public code's golden vectors. Gradients come from autograd over these few lines. All
else is spelled out per row and per head.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch

CONFIG = {
    "batch_size": 3,
    "seq_len": 9,
    "vocab_size": 5,
    "puzzle_emb_ndim": 16,
    "num_puzzle_identifiers": 2,
    "H_cycles": 2,
    "L_cycles": 2,
    "H_layers": 0,
    "L_layers": 1,
    "hidden_size": 16,
    "expansion": 2,
    "num_heads": 2,
    "pos_encodings": "rope",
    "halt_max_steps": 2,
    "halt_exploration_prob": 0.0,
    "forward_dtype": "float32",
    "mlp_t": False,
    "puzzle_emb_len": 2,
}
D, HEADS, P = CONFIG["hidden_size"], CONFIG["num_heads"], CONFIG["puzzle_emb_len"]
LENGTH = P + CONFIG["seq_len"]


def rms(h):
    return h / ((h * h).mean(-1, keepdim=True) + 1e-5).sqrt()


def attention(w, h):  # h (LENGTH, D)
    size = D // HEADS
    qkv = h @ w["inner.L_level.layers.0.self_attn.qkv_proj.weight"].T
    heads = []
    for i in range(HEADS):
        q, k, v = (qkv[:, part * D + i * size : part * D + (i + 1) * size] for part in range(3))
        turned = []
        for m in (q, k):
            rows = []
            for place in range(LENGTH):
                row = [None] * size
                for j in range(size // 2):
                    angle = place / 10_000 ** (2 * j / size)
                    a, b = m[place, j], m[place, j + size // 2]
                    row[j] = a * math.cos(angle) - b * math.sin(angle)
                    row[j + size // 2] = b * math.cos(angle) + a * math.sin(angle)
                rows.append(torch.stack(row))
            turned.append(torch.stack(rows))
        score = turned[0] @ turned[1].T / math.sqrt(size)
        score = (score - score.max(1, keepdim=True).values).exp()
        heads.append(score / score.sum(1, keepdim=True) @ v)
    return torch.cat(heads, 1) @ w["inner.L_level.layers.0.self_attn.o_proj.weight"].T


def net(w, h):
    h = rms(h + attention(w, h))
    both = h @ w["inner.L_level.layers.0.mlp.gate_up_proj.weight"].T
    gate, up = both[:, : both.shape[1] // 2], both[:, both.shape[1] // 2 :]
    return rms(
        h + (gate * torch.sigmoid(gate) * up) @ w["inner.L_level.layers.0.mlp.down_proj.weight"].T
    )


def cycle(w, x, y, z):
    for _ in range(CONFIG["L_cycles"]):
        z = net(w, z + y + x)
    return net(w, y + z), z


def row_step(w, question, table_row, y, z):
    tokens = w["inner.embed_tokens.embedding_weight"][torch.tensor(question)]
    x = torch.cat(
        [table_row[None], torch.zeros(P - 1, D, dtype=torch.float64), tokens]
    ) * math.sqrt(D)
    for turn in range(CONFIG["H_cycles"]):
        y, z = cycle(w, x, y, z)
        if turn < CONFIG["H_cycles"] - 1:
            y, z = y.detach(), z.detach()
    q = w["inner.q_head.weight"] @ y[0] + w["inner.q_head.bias"]
    return y[P:] @ w["inner.lm_head.weight"].T, q[0], y, z


def answer_loss(logits, label):
    losses = []
    for place, target in enumerate(label):
        if target >= 0:
            s = torch.stack([v + 1 if v >= 0 else 1 / (1 - v) for v in logits[place]])
            losses.append(-(s[target] / s.sum()).log())
    return sum(losses) / len(losses)


def golden() -> dict[str, np.ndarray]:
    r = np.random.default_rng(5)
    V, B, ids = CONFIG["vocab_size"], CONFIG["batch_size"], CONFIG["num_puzzle_identifiers"]
    sizes = {
        "H_init": (D,),
        "L_init": (D,),
        "embed_tokens.embedding_weight": (V, D),
        "lm_head.weight": (V, D),
        "q_head.weight": (2, D),
        "q_head.bias": (2,),
        "puzzle_emb.weights": (ids, D),
        "L_level.layers.0.self_attn.qkv_proj.weight": (3 * D, D),
        "L_level.layers.0.self_attn.o_proj.weight": (D, D),
        "L_level.layers.0.mlp.gate_up_proj.weight": (512, D),
        "L_level.layers.0.mlp.down_proj.weight": (D, 256),
    }
    w32 = {
        f"inner.{k}": (
            r.standard_normal(s) * (1 if "init" in k or "bias" in k else s[-1] ** -0.5)
        ).astype(np.float32)
        for k, s in sizes.items()
    }
    out = {"config": np.array(json.dumps(CONFIG))} | {f"weights/{k}": v for k, v in w32.items()}
    slots = [None] * B
    for step in range(1, 5):
        w = {
            k: torch.tensor(v, dtype=torch.float64, requires_grad="init" not in k)
            for k, v in w32.items()
        }
        new = {
            "inputs": r.integers(0, V, (B, 9)),
            "labels": r.integers(0, V, (B, 9)),
            "puzzle_identifiers": r.integers(0, ids, B),
        }
        new["labels"][r.random((B, 9)) < 0.2] = -100
        rows = []
        for i in range(B):
            if slots[i] is None or slots[i]["halted"]:
                slots[i] = {
                    **{k: v[i].tolist() for k, v in new.items()},
                    "steps": 0,
                    "y": w["inner.H_init"].expand(LENGTH, D),
                    "z": w["inner.L_init"].expand(LENGTH, D),
                }
            s = slots[i]
            table_row = (
                w["inner.puzzle_emb.weights"][s["puzzle_identifiers"]].detach().requires_grad_()
            )
            logits, q, y, z = row_step(w, s["inputs"], table_row, s["y"], s["z"])
            wrong = sum(t >= 0 and int(v.argmax()) != t for v, t in zip(logits, s["labels"]))
            target = float(wrong == 0)
            lm = answer_loss(logits, s["labels"])
            halt = -(target * q.sigmoid().log() + (1 - target) * (-q).sigmoid().log())
            s |= {"y": y.detach(), "z": z.detach(), "steps": s["steps"] + 1}
            s["halted"] = s["steps"] >= CONFIG["halt_max_steps"] or q.item() > 0
            rows.append((logits, q, lm, halt, table_row))
        lm, halt = sum(row[2] for row in rows), sum(row[3] for row in rows)
        loss = (lm + 0.5 * halt) / B
        loss.backward()
        here = {f"batch/{k}": v.astype(np.int32) for k, v in new.items()} | {
            "logits": torch.stack([row[0] for row in rows]),
            "q_halt": torch.stack([row[1] for row in rows]),
            "loss": loss,
            "lm_loss": lm,
            "q_halt_loss": halt,
            "y": torch.stack([s["y"] for s in slots]),
            "z": torch.stack([s["z"] for s in slots]),
            "halted": np.array([s["halted"] for s in slots]),
            "steps": np.array([s["steps"] for s in slots], dtype=np.int32),
            "current_inputs": np.array([s["inputs"] for s in slots], dtype=np.int32),
        }
        grads = {k: v.grad for k, v in w.items() if v.grad is not None and "puzzle" not in k}
        grads["inner.puzzle_emb.local_weights"] = torch.stack([row[4].grad for row in rows])
        here |= {f"grad_norm/{k}": g.norm() for k, g in grads.items()}
        if step == 2:
            here |= {f"grad/{k}": g for k, g in grads.items()}
        out |= {
            f"step{step}/{k}": (
                v.detach().numpy().astype(np.float64 if "loss" in k else np.float32)
                if torch.is_tensor(v)
                else v
            )
            for k, v in here.items()
        }
    return out


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).parent / "golden_naive.npz", **golden())
