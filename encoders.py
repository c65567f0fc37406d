"""Demonstration encoders: the examples of a task become the prefix of the recursive net.

    context, state, aux = encoder(batch, state)

    batch["demos"]  (B, K, 2, S) tokens of K input-output pairs on a square canvas; 0 is padding
    batch["mask"]   (B, K) bool: which slots hold a pair
    context         (B, P, D) for `TRM.step(carry, context)`, attached to this step's graph
    state           (B, M, D) of a recurrent encoder, detached; None of the others
    aux             {"kl": (B,)} of a variational encoder

A reader makes a vector of each demonstration, a bottleneck may sample it, and a join makes the
context of all vectors: see FAMILY. The order of demonstrations does not matter. The kinds are
those of the public ETRM and ETRMTRM code, without its defects: padding is masked, empty slots cost
nothing, and only what is carried on is detached. `Conditioned` is a TRM and its encoder as one
net.

Shapes: B slots, K demonstrations of a slot, N demonstrations of all slots, S cells, P context
positions, D width, V vocabulary.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers import (
    MLP,
    Attention,
    Block,
    Linear,
    Norm,
    rope_1d,
    rope_2d,
    rotate,
    round_up,
    trunc_normal,
)
from model import TRM, Carry, ModelConfig, Output, Shape


class Kind(NamedTuple):
    reader: str  # demonstration -> vector: a key of READERS; empty: demonstrations are not read
    bottleneck: str  # what is sampled: "each" vector, the vectors "joined", or nothing
    join: str  # vectors -> context: a key of JOINS


FAMILY = {
    "standard": Kind("pooled", "", "set"),
    "hybrid_standard": Kind("cls", "", "set"),
    "variational": Kind("pooled", "joined", "set"),
    "hybrid_variational": Kind("cls", "joined", "set"),
    "lpn_standard": Kind("cls", "", "mean"),
    "lpn_variational": Kind("cls", "each", "mean"),
    "lpn_variational_v2": Kind("cls", "joined", "mean"),
    "lpn": Kind("small", "", "mean"),
    "lpn_var": Kind("small", "each", "mean"),
    "recurrent_standard": Kind("pooled", "", "carried set"),
    "trm_style": Kind("pooled", "", "recursion"),
    "cells": Kind("cells", "", "cells"),
    "lookup": Kind("", "", "puzzle table"),
    "one_hot": Kind("", "", "task table"),
}


# What a machine may hold or wait for: limits that only a slip of the pen can reach.
MOST = {
    "layers": 1000,
    "set_layers": 1000,
    "heads": 16_384,
    "multiple": 16_384,
    "small": 16_384,
    "latent": 16_384,
    "expansion": 1000,
    "T": 10_000,
    "n": 10_000,
}


@dataclass(frozen=True)
class EncoderConfig:
    kind: Literal[("none", *FAMILY)] = "none"  # what fills the prefix
    layers: int = 2  # blocks that read one demonstration
    heads: int = 8  # attention heads
    # cells of a demonstration to a vector (standard, variational, recurrent_standard, trm_style)
    pooling: Literal["mean", "attention", "weighted"] = "mean"
    # rope: 1-D over input then output; rope2d: the row and the column, which both share
    positions: Literal["rope", "rope2d"] = "rope"
    # norm after or before each part; reading with a CLS token is always pre, trm_style recurs post
    norm_place: Literal["post", "pre"] = "post"
    set_layers: int = 1  # blocks that join the demonstrations
    expansion: float = 4.0  # inner width of the MLPs, in units of the width (times 2/3: SwiGLU)
    multiple: int = 256  # inner widths are rounded up to a multiple of this
    small: int = 128  # width of the paper-size readers (lpn, lpn_var)
    # of the first context queries and states; with the public code's 0.02 all context positions
    # start as copies
    query_std: float = 1.0
    latent: int = 0  # width of the variational bottleneck; 0: that of the vectors (lpn_var: 32)
    kl_weight: float = 1e-4  # weight of a row's KL beside its cross-entropy
    state: Literal["learned", "fixed"] = "learned"  # first state of a recurrent encoder
    # share of the old state that a recurrent encoder keeps (the public code: 0.9)
    carry_ema: float = 0.0
    T: int = 3  # trm_style: recursions, the last one with gradient
    n: int = 1  # trm_style: updates of the low state in each
    # context positions leave with RMS 1; false: as the head makes them (the public code's lpn and
    # variational ones)
    normalize: bool = True
    frozen: bool = False  # random weights for ever: can the net use any context at all?
    # learning rates of the encoder, in units of the [train] ones; weight decay per step follows
    lr: float = 1.0
    freeze_steps: int = 0  # the encoder does not move for this many steps
    freeze_decoder_steps: int = 0  # everything but the encoder does not move for this many steps
    # finished run folder whose net, less its encoder or puzzle table, is the first decoder
    decoder: str = ""

    def problems(self, dim: int = 0, prefix: int = 0) -> Iterator[tuple[str, str]]:
        """Impossible values as (key, what was expected).

        dim and prefix of the net (model.dim, model.prefix): also what does not fit it.
        """
        for key in ("layers", "heads", "set_layers", "multiple", "small", "T", "n"):
            if getattr(self, key) < 1:
                yield key, "at least 1"
        for key, most in MOST.items():
            if getattr(self, key) > most:
                yield key, f"at most {most}"
        if not self.lr > 0:
            yield "lr", "more than 0"
        for key in ("latent", "kl_weight", "query_std", "freeze_steps", "freeze_decoder_steps"):
            if getattr(self, key) < 0:
                yield key, "at least 0"
        if self.expansion <= 0:
            yield "expansion", "more than 0"
        if not 0 <= self.carry_ema < 1:
            yield "carry_ema", "a share from 0 to below 1"
        if self.kind in ("lpn", "lpn_var") and self.heads > 0 and self.small % self.heads:
            yield "small", f"a multiple of encoder.heads = {self.heads}"
        if self.kind != "none" and dim:
            yield from self.misfits(dim, prefix)

    def misfits(self, dim: int, prefix: int) -> Iterator[tuple[str, str]]:
        """What does not fit a net of this width and prefix."""
        if prefix < 1:
            yield "kind", f"'none' with model.prefix = {prefix}: the context has no place to go"
        per_head = 4 if self.positions == "rope2d" else 2  # rotary angles come in so many
        rotated = FAMILY[self.kind].reader in ("pooled", "cls", "cells")
        if rotated and self.heads > 0 and dim % (self.heads * per_head):
            yield (
                "heads",
                f"a number that with positions = {self.positions!r} divides model.dim = {dim} "
                f"into {per_head} per head or a multiple",
            )


@dataclass(frozen=True)
class Sizes:
    """What an encoder has to know about the net and the data."""

    dim: int  # D
    prefix: int  # P
    seq_len: int  # S
    vocab_size: int  # V
    num_tasks: int = 1
    num_puzzles: int = 1


# ---------------------------------------------------------------- attention and pooling


class View(NamedTuple):
    """What `MaskedAttention` attends to."""

    source: Tensor | None = None  # (N, L, D); None: to itself
    mask: Tensor | None = None  # (N, L) bool: which positions count; None: all
    angles: Tensor | None = None  # (N, L, D / heads / 2) rotary angles; None: no positions


class MaskedAttention(nn.Module):
    """Attention of h (N, Q, D) to a `View`. Zeros where the mask hides everything."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.out = Linear(dim, dim), Linear(dim, 2 * dim), Linear(dim, dim)

    def forward(self, h: Tensor, view: View) -> Tensor:
        source, mask, angles = view
        q = self.q(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (N, H, Q, D/H)
        kv = self.kv(h if source is None else source)
        kv = kv.unflatten(-1, (2, self.heads, -1)).transpose(1, 3)  # (N, H, 2, L, D/H)
        k, v = kv.unbind(2)  # each (N, H, L, D/H)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        if h.device.type == "cpu" and h.dtype.itemsize == 2:  # as in layers.Attention
            q, k, v = q.float(), k.float(), v.float()
        if mask is None:
            a = F.scaled_dot_product_attention(q, k, v)
        else:
            some = mask.any(-1)[:, None]  # (N, 1)
            # Where all is hidden nothing is: kernels differ on rows without a single position.
            seen = (mask | ~some)[:, None, None]  # (N, 1, 1, L)
            a = F.scaled_dot_product_attention(q, k, v, attn_mask=seen) * some[:, :, None, None]
        return self.out(a.to(h.dtype).transpose(1, 2).flatten(2))


def make_blocks(count: int, dim: int, cfg: EncoderConfig, mixer, pre: bool) -> nn.ModuleList:
    """Blocks with RMSNorm and SwiGLU. mixer: Attention or MaskedAttention."""
    blocks = nn.ModuleList()
    for _ in range(count):
        attention = mixer(dim, cfg.heads)
        mlp = MLP(dim, "swiglu", cfg.expansion, cfg.multiple)
        blocks.append(Block([attention], mlp, "rms", pre))
    return blocks


def masked_mean(h: Tensor, mask: Tensor) -> Tensor:
    """Mean over axis 1 of h (N, L, D) where mask (N, L); zeros where the mask is empty."""
    weight = mask[..., None].to(h.dtype)
    return (h * weight).sum(1) / weight.sum(1).clamp(min=1)


# Each takes cells h (N, L, D) and which of them count (N, L), and returns (N, D).


class MeanPool(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()

    def forward(self, h: Tensor, valid: Tensor) -> Tensor:
        return masked_mean(h, valid)


class AttentionPool(nn.Module):
    """What a learned query attends to."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.query = nn.Parameter(trunc_normal(dim, std=0.02))
        self.attention = MaskedAttention(dim, heads)

    def forward(self, h: Tensor, valid: Tensor) -> Tensor:
        query = self.query.to(h.dtype).expand(len(h), 1, -1)
        return self.attention(query, View(h, valid))[:, 0]


class WeightedPool(nn.Module):
    """A mean with learned weights."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.score = Linear(dim, 1)

    def forward(self, h: Tensor, valid: Tensor) -> Tensor:
        score = self.score(h).float()  # (N, L, 1)
        score = score.masked_fill(~valid[..., None], -1e9)  # finite: an empty row is not NaN
        weight = score.softmax(1) * valid[..., None]
        return (h * weight.to(h.dtype)).sum(1)


POOLINGS = {"mean": MeanPool, "attention": AttentionPool, "weighted": WeightedPool}


# ---------------------------------------------------------------- demonstration -> vector


class Packed(NamedTuple):
    """The tokens of N demonstrations without their padding, in order, at the front of a row."""

    tokens: Tensor  # (N, L)
    places: Tensor  # (N, L) where they were among the 2 S cells
    valid: Tensor  # (N, L) bool: which are there; the rest of a row is padding
    mask: Tensor | None  # valid, or None where all are there


def pack(demos: Tensor) -> Packed:
    """Demonstrations (N, 2, S) without their padding. One host sync.

    Attention over these is attention over everything with padding masked, for less work.
    """
    tokens = demos.flatten(1)
    present = tokens > 0
    least, most = torch.stack(present.sum(1).aminmax()).tolist()
    length = most
    if least < most:
        length = min(round_up(most, 8), tokens.shape[1])  # few lengths, aligned
    places = present.byte().argsort(dim=1, descending=True, stable=True)[:, :length]
    valid = present.gather(1, places)
    return Packed(tokens.gather(1, places), places, valid, None if least == most else valid)


class Reader(nn.Module):
    """Demonstrations (N, 2, S) -> vectors (N, width), by attention over the cells of both grids.

    Input and output tokens have tables of their own.
    """

    def __init__(self, cfg: EncoderConfig, sizes: Sizes, pre: bool):
        super().__init__()
        self.cfg, self.vocab_size, self.width = cfg, sizes.vocab_size, sizes.dim
        D = self.width
        self.tokens = nn.Parameter(trunc_normal(2 * self.vocab_size, D, std=D**-0.5))
        self.blocks = make_blocks(cfg.layers, D, cfg, MaskedAttention, pre)
        self.last_norm = Norm("rms") if pre else nn.Identity()

    def embed(self, packed: Packed, S: int, compute: torch.dtype) -> Tensor:
        """Hidden states of the cells (N, L, D), of variance 1."""
        output = packed.places >= S  # of the output grid: the second table
        h = F.embedding(packed.tokens + self.vocab_size * output, self.tokens)
        return (math.sqrt(self.width) * h).to(compute)

    def angles(self, packed: Packed, S: int) -> Tensor:
        """Rotary angles (N, L, D / heads / 2) of the cells."""
        width, device = self.width // self.cfg.heads, packed.places.device
        if self.cfg.positions == "rope":
            angles = rope_1d(2 * S, width, device=device)
        else:  # a cell of the input and of the output are in the same place
            side = math.isqrt(S)
            angles = rope_2d(side, side, width, device=device).repeat(2, 1)
        return angles[packed.places]

    def read_cells(self, packed: Packed, S: int, compute: torch.dtype) -> Tensor:
        """(N, L, D) after all blocks."""
        h = self.embed(packed, S, compute)
        view = View(None, packed.mask, self.angles(packed, S))
        for block in self.blocks:
            h = block(h, view)
        return self.last_norm(h)

    def output_shape(self, S: int) -> tuple[int, ...]:
        """Of one demonstration."""
        return (self.width,)


class PooledReader(Reader):
    """The cells are pooled."""

    def __init__(self, cfg: EncoderConfig, sizes: Sizes):
        super().__init__(cfg, sizes, pre=cfg.norm_place == "pre")
        self.out = Linear(self.width, self.width)
        self.pool = POOLINGS[cfg.pooling](self.width, cfg.heads)

    def forward(self, demos: Tensor, compute: torch.dtype) -> Tensor:
        packed = pack(demos)
        h = self.read_cells(packed, demos.shape[-1], compute)
        return self.out(self.pool(h, packed.valid))


class CellsReader(Reader):
    """Every cell keeps its vector: (N, 2, S) -> (N, 2 S, D), zeros at padding."""

    def __init__(self, cfg: EncoderConfig, sizes: Sizes):
        super().__init__(cfg, sizes, pre=cfg.norm_place == "pre")
        self.out = Linear(self.width, self.width)

    def forward(self, demos: Tensor, compute: torch.dtype) -> Tensor:
        N, _, S = demos.shape
        packed = pack(demos)
        h = self.out(self.read_cells(packed, S, compute)) * packed.valid[..., None]
        every = h.new_zeros(N, *self.output_shape(S))
        return every.scatter(1, packed.places[..., None].expand_as(h), h)

    def output_shape(self, S: int) -> tuple[int, ...]:
        return (2 * S, self.width)


class ClsReader(Reader):
    """An extra token beside the cells becomes the vector. Pre-norm."""

    def __init__(self, cfg: EncoderConfig, sizes: Sizes):
        super().__init__(cfg, sizes, pre=True)
        self.cls = nn.Parameter(trunc_normal(self.width, std=0.02))

    def forward(self, demos: Tensor, compute: torch.dtype) -> Tensor:
        N, _, S = demos.shape
        packed = pack(demos)
        cls = self.cls.to(compute).expand(N, 1, -1)
        h = torch.cat([cls, self.embed(packed, S, compute)], 1)
        angles = F.pad(self.angles(packed, S), (0, 0, 1, 0))  # the extra token is not rotated
        view = View(None, with_cls(packed.mask), angles)
        for block in self.blocks:
            h = block(h, view)
        return self.last_norm(h[:, 0])


class SmallReader(nn.Module):
    """The reader of the LPN paper (arXiv 2411.08706): (N, 2, S) -> (N, small).

    Learned rows, columns and sides (input or output), an extra token, LayerNorm, SiLU.
    """

    def __init__(self, cfg: EncoderConfig, sizes: Sizes):
        super().__init__()
        self.width, side = cfg.small, math.isqrt(sizes.seq_len)

        def table(rows: int, std: float) -> nn.Parameter:
            return nn.Parameter(trunc_normal(rows, self.width, std=std))

        self.tokens = table(sizes.vocab_size, 0.5)
        self.rows = table(side, 0.5)
        self.cols = table(side, 0.5)
        self.sides = table(2, 0.5)
        self.cls = table(1, 0.02)
        self.blocks = nn.ModuleList()
        for _ in range(cfg.layers):
            attention = MaskedAttention(self.width, cfg.heads)
            mlp = MLP(self.width, "silu", cfg.expansion, 1)
            self.blocks.append(Block([attention], mlp, "layer", pre=True))
        self.last_norm = Norm("layer")

    def forward(self, demos: Tensor, compute: torch.dtype) -> Tensor:
        S, side = demos.shape[-1], len(self.rows)
        packed = pack(demos)
        h = F.embedding(packed.tokens, self.tokens)  # four of variance 1/4
        h = h + F.embedding(packed.places % S // side, self.rows)
        h = h + F.embedding(packed.places % side, self.cols)
        h = h + F.embedding(packed.places // S, self.sides)
        h = torch.cat([self.cls.expand(len(h), 1, -1), h], 1).to(compute)
        view = View(None, with_cls(packed.mask))
        for block in self.blocks:
            h = block(h, view)
        return self.last_norm(h[:, 0])

    def output_shape(self, S: int) -> tuple[int, ...]:
        return (self.width,)


def with_cls(mask: Tensor | None) -> Tensor | None:
    """The mask (N, L) of cells, with an extra token before them."""
    return None if mask is None else F.pad(mask, (1, 0), value=True)


READERS = {"pooled": PooledReader, "cls": ClsReader, "cells": CellsReader, "small": SmallReader}


class Bottleneck(nn.Module):
    """h (..., width) -> z (..., latent), and the KL to the unit normal (...), summed over latent.

    z = mu + sigma * noise in training, mu in evaluation.
    """

    def __init__(self, width: int, latent: int):
        super().__init__()
        self.mean, self.log_var = nn.Linear(width, latent), nn.Linear(width, latent)
        with torch.no_grad():
            self.mean.weight.copy_(trunc_normal(latent, width, std=width**-0.5))
        for tensor in (self.mean.bias, self.log_var.weight, self.log_var.bias):  # sigma starts at 1
            nn.init.zeros_(tensor)

    def forward(self, h: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        mu, log_var = self.mean(h.float()), self.log_var(h.float()).clamp(-10, 10)
        kl = 0.5 * (mu.square() + log_var.exp() - 1 - log_var).sum(-1)
        if self.training:
            if noise is None:
                raise ValueError("a variational encoder in training needs noise, see Encoder.noise")
            mu = mu + (log_var / 2).exp() * noise
        return mu.to(h.dtype), kl


# ---------------------------------------------------------------- encoders


class Encoder(nn.Module):
    """What all kinds share. Parameters are fp32, activations `compute`, the context is fp32."""

    keeps_order = False  # whether the order of demonstrations can be seen in the context

    def __init__(self, cfg: EncoderConfig, sizes: Sizes, compute: torch.dtype):
        super().__init__()
        self.cfg, self.sizes, self.compute = cfg, sizes, compute
        self.dim, self.prefix = sizes.dim, sizes.prefix
        self.norm = Norm("rms")

    def reset(self, state: Tensor | None, fresh: Tensor) -> Tensor | None:
        """The state for this step: fresh (B,) slots begin anew. None if nothing is carried."""
        return None

    def noise(self, B: int, K: int, g: torch.Generator) -> Tensor | None:
        """Normal numbers for one call in training; None for an encoder that samples nothing."""
        return None

    def forward(
        self, batch: dict[str, Tensor], state: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """(context, state to carry on, {"kl": (B,)}). The caller sums the KL over rows.

        state: from `reset`; None: the first one. noise: from `noise`, in training only.
        A row without demonstrations is legal: its context says nothing of the task.
        """
        raise NotImplementedError

    def finish(self, context: Tensor) -> Tensor:
        """(B, P, D) in fp32, each position with RMS 1."""
        context = context.float()
        return self.norm(context) if self.cfg.normalize else context


class PuzzleTable(Encoder):
    """A row per puzzle id in the first position: to the bit what TRM does with its own table.

    Like TaskTable it reads no demonstrations. Both show what a perfect encoder could reach.
    """

    def __init__(self, cfg: EncoderConfig, sizes: Sizes, compute: torch.dtype):
        super().__init__(cfg, sizes, compute)
        self.puzzles = nn.Parameter(torch.zeros(sizes.num_puzzles, self.dim))

    def forward(self, batch, state=None, noise=None):
        first = F.embedding(batch["puzzle"], self.puzzles)[:, None]
        return F.pad(first, (0, 0, 0, self.prefix - 1)), None, {}


class TaskTable(Encoder):
    """P x D numbers per task id."""

    def __init__(self, cfg: EncoderConfig, sizes: Sizes, compute: torch.dtype):
        super().__init__(cfg, sizes, compute)
        self.tasks = nn.Parameter(trunc_normal(sizes.num_tasks, self.prefix, self.dim, std=1.0))

    def forward(self, batch, state=None, noise=None):
        rows = F.embedding(batch["task"], self.tasks.flatten(1))  # (B, P * D)
        return self.finish(rows.unflatten(1, (self.prefix, -1))), None, {}


class DemoEncoder(Encoder):
    """Reads demonstrations. A kind says how their vectors are joined."""

    one_vector = False  # `join` gives one vector per row, which the head makes P of

    def __init__(self, cfg: EncoderConfig, sizes: Sizes, compute: torch.dtype):
        super().__init__(cfg, sizes, compute)
        kind = FAMILY[cfg.kind]
        self.reader = READERS[kind.reader](cfg, sizes)
        width = self.reader.width
        self.make_join()
        self.sampled = kind.bottleneck
        self.latent = cfg.latent or (32 if cfg.kind == "lpn_var" else width)
        if self.sampled:
            self.bottleneck = Bottleneck(width, self.latent)
        self.head = None
        if self.sampled or self.one_vector:
            into = self.latent if self.sampled else width
            self.head = Linear(into, self.prefix * self.dim)

    def make_join(self) -> None:
        """The parameters of `join`."""

    def join(
        self, vectors: Tensor, mask: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, K, D), (B, K) -> (B, P, D), or (B, D) where `one_vector`; and the state to carry."""
        raise NotImplementedError

    def summary(self, h: Tensor) -> Tensor:
        """What `join` returned, as one vector per row (B, D) for the bottleneck."""
        return h

    def noise(self, B: int, K: int, g: torch.Generator) -> Tensor | None:
        if not self.sampled:
            return None
        shape = (B, K, self.latent) if self.sampled == "each" else (B, self.latent)
        return torch.randn(shape, generator=g, device=g.device)

    def read(self, demos: Tensor, mask: Tensor) -> Tensor:
        """(B, K, 2, S), (B, K) -> (B, K, D). Empty slots are zeros, and are not worked on."""
        packed = demos[mask]  # (N, 2, S)
        if not len(packed):
            shape = *mask.shape, *self.reader.output_shape(demos.shape[-1])
            return torch.zeros(shape, dtype=self.compute, device=demos.device)
        vectors = self.reader(packed, self.compute)
        return vectors.new_zeros(*mask.shape, *vectors.shape[1:]).index_put((mask,), vectors)

    def forward(self, batch, state=None, noise=None):
        mask, aux = batch["mask"], {}
        h = self.read(batch["demos"], mask)
        if self.sampled == "each":
            h, kl = self.bottleneck(h, noise)
            aux["kl"] = masked_mean(kl[..., None], mask)[:, 0]
        h, carried = self.join(h, mask, state)
        if self.sampled == "joined":
            h, aux["kl"] = self.bottleneck(self.summary(h), noise)
        if self.head is not None:
            h = self.head(h).unflatten(-1, (self.prefix, self.dim))
        return self.finish(h), carried, aux


class MeanEncoder(DemoEncoder):
    """The mean of the vectors."""

    one_vector = True

    def join(self, vectors, mask, state):
        return masked_mean(vectors, mask), None


class CellsEncoder(DemoEncoder):
    """Every cell of every demonstration is a context position."""

    keeps_order = True

    def join(self, vectors, mask, state):
        h = vectors.flatten(1, 2)  # (B, K * 2 S, D)
        if h.shape[1] != self.prefix:
            raise ValueError(
                f"encoder 'cells' makes {h.shape[1]} context positions of {mask.shape[1]} "
                f"demonstrations, the net has prefix = {self.prefix}"
            )
        return h, None


class SetEncoder(DemoEncoder):
    """Learned queries, one per context position, attend to the vectors."""

    def make_join(self) -> None:
        cfg = self.cfg
        self.first = nn.Parameter(trunc_normal(self.prefix, self.dim, std=cfg.query_std))
        pre = cfg.norm_place == "pre"
        self.blocks = make_blocks(cfg.set_layers, self.dim, cfg, MaskedAttention, pre)

    def join(self, vectors, mask, state):
        h = self.first.to(self.compute).expand(len(mask), -1, -1)
        for block in self.blocks:
            h = block(h, View(vectors, mask))
        return h, None

    def summary(self, h: Tensor) -> Tensor:
        return self.norm(self.norm(h).mean(1))


class RecurrentEncoder(DemoEncoder):
    """Carries a state (B, M, D) from step to step. Its first P positions are the context."""

    def make_first(self, positions: int) -> None:
        """The state of fresh slots."""
        first = trunc_normal(positions, self.dim, std=self.cfg.query_std)
        if self.cfg.state == "fixed":
            self.register_buffer("first", first)
        else:
            self.first = nn.Parameter(first)

    def reset(self, state: Tensor | None, fresh: Tensor) -> Tensor:
        """Fresh slots begin with the first state, which may learn; others go on, detached."""
        first = self.first.to(self.compute).expand(len(fresh), -1, -1)
        return first if state is None else torch.where(fresh[:, None, None], first, state.detach())

    def recurse(self, vectors: Tensor, mask: Tensor, state: Tensor) -> Tensor:
        """The next state (B, M, D)."""
        raise NotImplementedError

    def join(self, vectors, mask, state):
        if state is None:
            state = self.reset(None, mask[:, 0])
        new = self.recurse(vectors, mask, state)
        if self.cfg.carry_ema:
            new = self.cfg.carry_ema * state.detach() + (1 - self.cfg.carry_ema) * new
        return new[:, : self.prefix], new.detach()


class CarriedSet(RecurrentEncoder):
    """A SetEncoder whose queries are the state."""

    def make_join(self) -> None:
        cfg = self.cfg
        self.make_first(self.prefix)
        pre = cfg.norm_place == "pre"
        self.blocks = make_blocks(cfg.set_layers, self.dim, cfg, MaskedAttention, pre)

    def recurse(self, vectors: Tensor, mask: Tensor, state: Tensor) -> Tensor:
        h = state
        for block in self.blocks:
            h = block(h, View(vectors, mask))
        # Under pre-norm: what is carried must not grow from step to step.
        return self.norm(h) if self.cfg.norm_place == "pre" else h


class Recursion(RecurrentEncoder):
    """TRM's recursion: the mean vector is the question, and the state is two states (2 P)."""

    def make_join(self) -> None:
        self.make_first(2 * self.prefix)
        self.blocks = make_blocks(self.cfg.set_layers, self.dim, self.cfg, Attention, pre=False)

    def recurse(self, vectors: Tensor, mask: Tensor, state: Tensor) -> Tensor:
        P, T = self.prefix, self.cfg.T
        task = masked_mean(vectors, mask)[:, None]  # (B, 1, D)
        angles = rope_1d(P, self.dim // self.cfg.heads, device=state.device)
        first_high, first_low = state[:, :P], state[:, P:]
        high, low = first_high, first_low
        with torch.no_grad():
            for _ in range(T - 1):
                high, low = self.cycle(high, low, task, angles)
        if state.requires_grad and T > 1:
            # As in TRM.forward: a learned first state acts through the recursions above.
            high = high + (first_high - first_high.detach())
            low = low + (first_low - first_low.detach())
        return torch.cat(self.cycle(high, low, task, angles), 1)

    def cycle(
        self, high: Tensor, low: Tensor, task: Tensor, angles: Tensor
    ) -> tuple[Tensor, Tensor]:
        """n updates of the low state, one of the high."""
        for _ in range(self.cfg.n):
            low = self.net(low + (high + task), angles)
        return self.net(high + low, angles), low

    def net(self, h: Tensor, angles: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h, angles)
        return h


JOINS = {
    "set": SetEncoder,
    "mean": MeanEncoder,
    "carried set": CarriedSet,
    "recursion": Recursion,
    "cells": CellsEncoder,
    "puzzle table": PuzzleTable,
    "task table": TaskTable,
}


def make_encoder(
    cfg: EncoderConfig, sizes: Sizes, compute: torch.dtype = torch.float32
) -> Encoder | None:
    """The one place where encoders are made; None for kind = "none"."""
    if cfg.kind == "none":
        return None
    encoder = JOINS[FAMILY[cfg.kind].join](cfg, sizes, compute)
    return encoder.requires_grad_(not cfg.frozen)


# ---------------------------------------------------------------- a net and its encoder


class Conditioned(TRM):
    """A TRM and its encoder as one net: what is trained, averaged and saved."""

    def __init__(
        self,
        cfg: ModelConfig,
        encoder: EncoderConfig,
        shape: dict,
        demos: int = 0,
        compute: torch.dtype = torch.float32,
    ):
        """shape: the fields of Shape, and "num_tasks". demos: most demonstrations of a slot."""
        super().__init__(cfg, Shape.of(shape), compute)
        self.puzzles = None  # the context takes its place
        self.demos = demos
        sizes = Sizes(
            cfg.dim,
            cfg.prefix,
            self.shape.seq_len,
            self.shape.vocab_size,
            shape.get("num_tasks", 1),
            self.shape.num_puzzles,
        )
        self.encoder = make_encoder(encoder, sizes, compute)

    def step(
        self,
        carry: Carry,
        context: Tensor | None = None,
        min_steps: Tensor | None = None,
        noise: Tensor | None = None,
        average: bool = False,
    ) -> tuple[Carry, Output]:
        """One supervision step of every slot. noise: from `noise`, in training.

        For ablations: average gives all rows their mean context, and `context` (B, P, D) is used
        as it is.
        """
        fresh, before = carry.steps == 0, carry.more.get("state")
        aux = {}
        if context is None:
            state = self.encoder.reset(before, fresh)
            context, state, aux = self.encoder(carry.batch, state, noise)
            carry = replace(carry, more={} if state is None else {"state": state})
            if average:
                context = context.mean(0, keepdim=True).expand_as(context)
        carry, out = super().step(carry, context, min_steps)
        out.aux = aux | {"context": context, "fresh": fresh}
        if before is not None and "state" in carry.more:
            out.aux["before"] = before
        return carry, out

    def noise(self, B: int, g: torch.Generator) -> Tensor | None:
        return self.encoder.noise(B, self.demos, g)

    def loss(self, out: Output, carry: Carry) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().loss(out, carry)
        if "kl" in out.aux:
            kl = out.aux["kl"].sum()
            loss = loss + self.encoder.cfg.kl_weight * kl
            metrics |= {"kl_loss": kl.detach(), "loss": loss.detach()}
        return loss, metrics

    def frozen(self, step: int) -> list[Tensor]:
        cfg, params = self.encoder.cfg, []
        encoder = list(self.encoder.parameters())
        if step < cfg.freeze_steps:
            params += encoder
        if step < cfg.freeze_decoder_steps:
            own = {id(p) for p in encoder}
            params += [p for p in self.parameters() if id(p) not in own]
        return params

    def rates(self) -> dict[str, float]:
        return {"encoder": self.encoder.cfg.lr, "decoder": 1.0}


if __name__ == "__main__":
    raise SystemExit("encoders.py is a part to import; python train.py begins, README.md says more")
