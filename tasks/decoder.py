"""The net on which Grokfast was published (arXiv 2405.20233): a causal decoder, no recursion.

Token and position embeddings, pre-norm blocks of causal attention and a GELU MLP, the answer read
at the last position. Two layers of width 128 with 4 heads there. It is here to repeat the
published figures with the loop of train.py. Key: model.decoder.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model import Carry, ModelConfig, Output, Trainable, trm_loss
from tasks.classifier import ClassShape

FIXED = {  # what such a net has instead of a recursion
    "T": 1,
    "n": 1,
    "n_sup": 1,
    "prefix": 0,
    "halting": False,
    "mixer": "attention",
    "q_weight": 0.0,
    "loss": "softmax",
    "init": "fixed",
}


@dataclass(frozen=True)
class ModularModel(ModelConfig):
    """ModelConfig with a key more."""

    # the causal decoder of the Grokfast paper, with dim, n_layers and heads, no recursive net
    decoder: bool = False

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.decoder:
            for key, value in FIXED.items():
                if getattr(self, key) != value:
                    yield key, f"{value!r} with decoder = true, which does not recur"


class Block(nn.Module):
    """As published: the attention's residual starts from the normed input."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, h: Tensor, later: Tensor) -> Tensor:
        """h (B, L, D); later (L, L) bool hides the positions behind one's own."""
        h = self.norm_1(h)
        seen, _ = self.attention(h, h, h, attn_mask=later, need_weights=False)
        h = h + seen
        return h + self.mlp(self.norm_2(h))


class Stack(nn.Module):
    """The blocks and the last norm: (B, L, D) -> (B, L, D)."""

    def __init__(self, dim: int, heads: int, layers: int):
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.last_norm = nn.LayerNorm(dim)

    def forward(self, h: Tensor) -> Tensor:
        L = h.shape[1]
        later = torch.ones(L, L, dtype=torch.bool, device=h.device).triu(1)
        for block in self.blocks:
            h = block(h, later)
        return self.last_norm(h)


class Decoder(Trainable):
    """One pass per example: every slot halts at once, y and z mean nothing."""

    net_y = None

    def __init__(self, cfg: ModelConfig, shape: ClassShape, compute: torch.dtype = torch.float32):
        super().__init__()
        self.cfg, self.shape, self.compute = cfg, shape, compute
        self.tokens = nn.Embedding(shape.vocab_size, cfg.dim)
        self.places = nn.Embedding(shape.seq_len, cfg.dim)
        self.net = Stack(cfg.dim, cfg.heads, cfg.n_layers)
        self.head = nn.Linear(cfg.dim, shape.vocab_size, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Tokens (B, L) -> logits (B, 1, V) at the last position."""
        places = torch.arange(inputs.shape[1], device=inputs.device)
        h = self.net(self.tokens(inputs) + self.places(places))
        return self.head(h[:, -1:]).float()

    # ------------------------------------------------------------ what train.py asks of a net

    def first_states(self, B: int, L: int, g: torch.Generator | None = None):
        return None

    def start(self, batch: dict[str, Tensor]) -> Carry:
        return self.refill(None, batch)

    def refill(self, carry: Carry | None, batch: dict[str, Tensor], states=None) -> Carry:
        """Every refill takes the whole new batch."""
        B, device = len(batch["inputs"]), batch["inputs"].device
        nothing = torch.zeros(B, 1, 1, device=device)
        steps = torch.zeros(B, dtype=torch.long, device=device)
        return Carry(nothing, nothing, steps, steps > 0, batch)

    def step(self, carry: Carry) -> tuple[Carry, Output]:
        logits = self(carry.batch["inputs"])
        silent = logits.new_zeros(len(logits))
        steps, halted = carry.steps + 1, torch.ones_like(carry.halted)
        return Carry(carry.y, carry.z, steps, halted, carry.batch), Output(logits, silent, silent)

    def loss(self, out: Output, carry: Carry) -> tuple[Tensor, dict[str, Tensor]]:
        return trm_loss(self.cfg, out, carry)


def flop(cfg: ModelConfig, shape: ClassShape, batch: int) -> float:
    """FLOP of a training step: two per multiply-add, a backward pass counts as two forward ones."""
    D, L = cfg.dim, shape.seq_len
    per_position = cfg.n_layers * (12 * D * D + 2 * L * D) + D * shape.vocab_size / L
    return 3 * 2 * batch * L * per_position
