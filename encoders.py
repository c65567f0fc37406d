"""Demonstration encoders: the examples of a task become the prefix of the recursive net, in place of a learned row per puzzle.

    context, state, aux = encoder(demos, mask, state)

demos (B, K, 2, S) tokens of K input-output pairs on a square canvas of S cells, 0 is padding; mask (B, K) which slots hold a pair.
context (B, P, D) for `TRM.step(carry, context)`; state (B, M, D) of a recurrent encoder, else None; aux {"kl": (B,)} of a variational
one. An encoder is three choices, see FAMILY: a vector for every demonstration, a bottleneck, and how the vectors are joined. Sources:
the public ETRM and ETRMTRM code (names and sizes of kinds), with its defects repaired: padding is masked, empty slots cost nothing,
the context stays attached to this step's graph and only what is carried on is detached.

Shapes: B slots, N demonstrations of all slots, P context positions, D width, V vocabulary; the order of demonstrations does not matter.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import UserError
from layers import MLP, Attention, Block, Linear, Norm, rope_1d, rope_2d, rotate, trunc_normal
from model import TRM, Carry, ModelConfig, Output, Shape

#          kind                   demonstration -> vector   bottleneck               demonstrations -> context
FAMILY = {
    "standard": ("pooled", "", "set"),
    "hybrid_standard": ("cls", "", "set"),
    "variational": ("pooled", "joined", "set"),
    "hybrid_variational": ("cls", "joined", "set"),
    "lpn_standard": ("cls", "", "mean"),
    "lpn_variational": ("cls", "each", "mean"),
    "lpn_variational_v2": ("cls", "joined", "mean"),
    "lpn": ("small", "", "mean"),
    "lpn_var": ("small", "each", "mean"),
    "recurrent_standard": ("pooled", "", "carried set"),
    "trm_style": ("pooled", "", "recursion"),
    "cells": ("cells", "", "cells"),
    "lookup": ("", "", "puzzle table"),
    "one_hot": ("", "", "task table"),
}


@dataclass(frozen=True)
class EncoderConfig:
    kind: Literal[
        "none",
        "standard",
        "hybrid_standard",
        "variational",
        "hybrid_variational",
        "lpn_standard",
        "lpn_variational",
        "lpn_variational_v2",
        "lpn",
        "lpn_var",
        "recurrent_standard",
        "trm_style",
        "cells",
        "lookup",
        "one_hot",
    ] = "none"  # what fills the prefix
    layers: int = 2  # blocks that read one demonstration
    heads: int = 8  # attention heads
    pooling: Literal["mean", "attention", "weighted"] = (
        "mean"  # cells of a demonstration to a vector (standard, variational, recurrent_standard, trm_style)
    )
    positions: Literal["rope", "rope2d"] = (
        "rope"  # 1-D over input then output, or the row and column that both share
    )
    norm_place: Literal["post", "pre"] = (
        "post"  # norm after or before each part; reading with a CLS token is always pre, trm_style recurs post
    )
    set_layers: int = 1  # blocks that join the demonstrations
    expansion: float = 4.0  # inner width of the MLPs, in units of the width (times 2/3: SwiGLU)
    multiple: int = 256  # inner widths are rounded up to a multiple of this
    small: int = 128  # width of the paper-size readers (lpn, lpn_var)
    query_std: float = 1.0  # first context queries and states; the public code's 0.02 makes all context positions start as copies
    latent: int = 0  # width of the variational bottleneck; 0: that of the vectors (lpn_var: 32)
    kl_weight: float = 1e-4  # weight of a row's KL beside its cross-entropy
    state: Literal["learned", "fixed"] = "learned"  # first state of a recurrent encoder
    carry_ema: float = (
        0.0  # share of the old state that a recurrent encoder keeps (the public code: 0.9)
    )
    T: int = 3  # trm_style: recursions, the last one with gradient
    n: int = 1  # trm_style: updates of the low state in each
    normalize: bool = True  # context positions leave with RMS 1; false: as the head makes them (the public code's lpn and variational ones)
    gain: float = 1.0  # the context is multiplied by this
    gain_learned: bool = False  # and the factor is learned
    frozen: bool = False  # random weights for ever: can the net use any context at all?
    lr: float = 1.0  # learning rates of the encoder, in units of the [train] ones; weight decay per step follows the rate
    decoder_lr: float = 1.0  # learning rates of everything but the encoder, in the same units
    freeze_steps: int = 0  # the encoder stands still for this many steps
    freeze_decoder_steps: int = 0  # everything but the encoder stands still for this many steps
    decoder: str = (
        ""  # finished run folder whose net, less its encoder or puzzle table, is the first decoder
    )

    def problems(self, dim: int = 0, prefix: int = 0) -> Iterator[tuple[str, str]]:
        """Impossible values as (key, what was expected); with dim and prefix of the net (model.dim, model.prefix) also what does not fit it."""
        for key in ("layers", "heads", "set_layers", "multiple", "small", "T", "n"):
            if getattr(self, key) < 1:
                yield key, "at least 1"
        for key in ("lr", "decoder_lr"):
            if not getattr(self, key) > 0:
                yield key, "more than 0"
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
            if prefix < 1:
                yield "kind", f"'none' with model.prefix = {prefix}: the context has no place to go"
            need = self.heads * (4 if self.positions == "rope2d" else 2)
            if FAMILY[self.kind][0] in ("pooled", "cls", "cells") and need > 0 and dim % need:
                yield (
                    "heads",
                    f"a number that with positions = {self.positions!r} divides model.dim = {dim} into {need // self.heads} per head or a multiple",
                )


# ---------------------------------------------------------------- pieces


class MaskedAttention(nn.Module):
    """Attention of h (N, Q, D) to a source (N, L, D), of which a mask (N, L) hides positions; without source to itself.

    `view` = (source or None, mask or None for all, rotary angles (N, L, D / heads / 2) or None). Where the mask hides everything: zeros.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.out = Linear(dim, dim), Linear(dim, 2 * dim), Linear(dim, dim)

    def forward(
        self, h: Tensor, view: tuple[Tensor | None, Tensor | None, Tensor | None]
    ) -> Tensor:
        source, mask, angles = view
        q = self.q(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (N, H, Q, D/H)
        k, v = (
            self.kv(h if source is None else source)
            .unflatten(-1, (2, self.heads, -1))
            .transpose(1, 3)
            .unbind(2)
        )  # each (N, H, L, D/H)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        if h.device.type == "cpu" and h.dtype.itemsize == 2:  # as in layers.Attention
            q, k, v = q.float(), k.float(), v.float()
        if mask is None:
            a = F.scaled_dot_product_attention(q, k, v)
        else:
            some = mask.any(-1)[:, None]
            a = (
                F.scaled_dot_product_attention(q, k, v, attn_mask=(mask | ~some)[:, None, None])
                * some[:, :, None, None]
            )
        return self.out(a.to(h.dtype).transpose(1, 2).flatten(2))


def masked_mean(h: Tensor, mask: Tensor) -> Tensor:
    """Mean over axis 1 of h (N, L, D) where mask (N, L); zeros where the mask is empty."""
    weight = mask[..., None].to(h.dtype)
    return (h * weight).sum(1) / weight.sum(1).clamp(min=1)


class Pool(nn.Module):
    """Cells (N, L, D) and which of them count (N, L) -> (N, D): their mean, a learned query's attention, or learned weights."""

    def __init__(self, kind: str, dim: int, heads: int):
        super().__init__()
        self.kind = kind
        if kind == "attention":
            self.query, self.attention = (
                nn.Parameter(trunc_normal(dim, std=0.02)),
                MaskedAttention(dim, heads),
            )
        elif kind == "weighted":
            self.score = Linear(dim, 1)

    def forward(self, h: Tensor, valid: Tensor) -> Tensor:
        if self.kind == "attention":
            return self.attention(self.query.to(h.dtype).expand(len(h), 1, -1), (h, valid, None))[
                :, 0
            ]
        if self.kind == "weighted":
            score = (
                self.score(h).float().masked_fill(~valid[..., None], -1e9)
            )  # finite: an empty row must not become NaN
            return (h * (score.softmax(1) * valid[..., None]).to(h.dtype)).sum(1)
        return masked_mean(h, valid)


def content(tokens: Tensor) -> tuple[Tensor, Tensor, bool]:
    """tokens (N, L), 0 is padding -> places (N, longest) of what is not, in order, which of them are real (N, longest), and whether all are.

    Attention over these is attention over everything with padding masked, at a fraction of the cost. One host sync.
    """
    valid = tokens > 0
    least, most = torch.stack(valid.sum(1).aminmax()).tolist()
    longest = (
        most if least == most else min(-(-most // 8) * 8, tokens.shape[1])
    )  # few lengths, aligned
    places = valid.byte().argsort(dim=1, descending=True, stable=True)[:, :longest]
    return places, valid.gather(1, places), least == most


class Reader(nn.Module):
    """Demonstrations (N, 2, S) -> vectors (N, D), or, how = "cells", (N, 2 S, D) with zeros at padding.

    Input and output tokens have tables of their own; the cells of both are one sequence. how = "pooled": blocks, pooling, a linear
    map; "cls": pre-norm blocks around an extra token, which is the answer.
    """

    def __init__(self, cfg: EncoderConfig, how: str, dim: int, vocab_size: int):
        super().__init__()
        self.cfg, self.how, self.vocab_size = cfg, how, vocab_size
        pre = how == "cls" or cfg.norm_place == "pre"
        self.tokens = nn.Parameter(trunc_normal(2 * vocab_size, dim, std=dim**-0.5))
        self.blocks = nn.ModuleList(
            Block(
                [MaskedAttention(dim, cfg.heads)],
                MLP(dim, "swiglu", cfg.expansion, cfg.multiple),
                "rms",
                pre,
            )
            for _ in range(cfg.layers)
        )
        self.last_norm = Norm("rms") if pre else nn.Identity()
        if how == "cls":
            self.cls = nn.Parameter(trunc_normal(dim, std=0.02))
        else:
            self.out = Linear(dim, dim)
        self.pool = Pool(cfg.pooling, dim, cfg.heads) if how == "pooled" else None

    def forward(self, demos: Tensor, compute: torch.dtype) -> Tensor:
        (N, _, S), D = demos.shape, self.tokens.shape[1]
        tokens = demos.flatten(1)
        places, valid, full = content(tokens)
        which = tokens.gather(1, places) + self.vocab_size * (places >= S)
        h = (math.sqrt(D) * F.embedding(which, self.tokens)).to(compute)
        angles = self.angles(S, D // self.cfg.heads, demos.device)[
            places
        ]  # (N, longest, D / heads / 2)
        if self.how == "cls":  # unrotated
            h = torch.cat([self.cls.to(compute).expand(N, 1, -1), h], 1)
            valid, angles = F.pad(valid, (1, 0), value=True), F.pad(angles, (0, 0, 1, 0))
        for block in self.blocks:
            h = block(h, (None, None if full else valid, angles))
        if self.how == "cls":
            return self.last_norm(h[:, 0])
        h = self.last_norm(h)
        if self.how == "pooled":
            return self.out(self.pool(h, valid))
        h = self.out(h) * valid[..., None]
        return h.new_zeros(N, 2 * S, D).scatter(1, places[..., None].expand_as(h), h)

    def angles(self, S: int, width: int, device) -> Tensor:
        """(2 S, width / 2): positions 0..2S-1, or the same row and column for a cell of the input and of the output."""
        if self.cfg.positions == "rope":
            return rope_1d(2 * S, width, device=device)
        return rope_2d(math.isqrt(S), math.isqrt(S), width, device=device).repeat(2, 1)


class SmallReader(nn.Module):
    """The reader of the LPN paper (arXiv 2411.08706), (N, 2, S) -> (N, small): learned rows, columns and sides, LayerNorm, SiLU, CLS."""

    def __init__(self, cfg: EncoderConfig, seq_len: int, vocab_size: int):
        super().__init__()
        width, side = cfg.small, math.isqrt(seq_len)
        for name, rows in (
            ("tokens", vocab_size),
            ("rows", side),
            ("cols", side),
            ("sides", 2),
            ("cls", 1),
        ):
            setattr(
                self,
                name,
                nn.Parameter(trunc_normal(rows, width, std=0.02 if name == "cls" else 0.5)),
            )
        self.blocks = nn.ModuleList(
            Block(
                [MaskedAttention(width, cfg.heads)],
                MLP(width, "silu", cfg.expansion, 1),
                "layer",
                True,
            )
            for _ in range(cfg.layers)
        )
        self.last_norm = Norm("layer")

    def forward(self, demos: Tensor, compute: torch.dtype) -> Tensor:
        tokens, (_, _, S), side = demos.flatten(1), demos.shape, len(self.rows)
        places, valid, full = content(tokens)
        parts = (
            (self.tokens, tokens.gather(1, places)),
            (self.rows, places % S // side),
            (self.cols, places % side),
            (self.sides, places // S),
        )
        h = sum(F.embedding(at, table) for table, at in parts)  # four of variance 1/4
        h = torch.cat([self.cls.expand(len(h), 1, -1), h], 1).to(compute)
        valid = F.pad(valid, (1, 0), value=True)
        for block in self.blocks:
            h = block(h, (None, None if full else valid, None))
        return self.last_norm(h[:, 0])


class Bottleneck(nn.Module):
    """h (..., width) -> z = mu + sigma * noise (..., latent) in training, mu in evaluation; KL to the unit normal (...), summed over latent."""

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


# ---------------------------------------------------------------- the encoder


class Encoder(nn.Module):
    """Any kind of FAMILY. Parameters are fp32; activations have the dtype `compute`, the context is fp32.

    ids (B,) are read by the two tables only, which use no demonstrations: "lookup", D numbers per puzzle id in the first position, is to the
    bit what TRM does with its own embedding; "one_hot" has P x D numbers per task id. Both show what a perfect encoder could reach.
    """

    def __init__(
        self,
        cfg: EncoderConfig,
        dim: int,
        prefix: int,
        seq_len: int,
        vocab_size: int,
        num_tasks: int = 1,
        num_puzzles: int = 1,
        compute: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.cfg, self.dim, self.prefix, self.compute = cfg, dim, prefix, compute
        reader, self.bottleneck_at, self.join = FAMILY[cfg.kind]
        self.width = width = cfg.small if reader == "small" else dim  # of a demonstration's vector
        if reader:
            self.reader = (
                SmallReader(cfg, seq_len, vocab_size)
                if reader == "small"
                else Reader(cfg, reader, dim, vocab_size)
            )
        if self.join == "puzzle table":
            self.puzzles = nn.Parameter(torch.zeros(num_puzzles, dim))
        elif self.join == "task table":
            self.tasks = nn.Parameter(trunc_normal(num_tasks, prefix, dim, std=1.0))
        elif self.join in ("set", "carried set", "recursion"):
            recurrent = self.join != "set"
            first = trunc_normal(
                prefix * (2 if self.join == "recursion" else 1), dim, std=cfg.query_std
            )
            if recurrent and cfg.state == "fixed":
                self.register_buffer("first", first)
            else:
                self.first = nn.Parameter(first)
            mixer = Attention if self.join == "recursion" else MaskedAttention
            self.blocks = nn.ModuleList(
                Block(
                    [mixer(dim, cfg.heads)],
                    MLP(dim, "swiglu", cfg.expansion, cfg.multiple),
                    "rms",
                    cfg.norm_place == "pre" and self.join != "recursion",
                )
                for _ in range(cfg.set_layers)
            )
        self.latent = cfg.latent or (32 if cfg.kind == "lpn_var" else width)
        if self.bottleneck_at:
            self.bottleneck = Bottleneck(width, self.latent)
        self.head = (
            Linear(self.latent if self.bottleneck_at else width, prefix * dim)
            if self.bottleneck_at or self.join == "mean"
            else None
        )
        self.norm = Norm("rms")
        self.gain = (
            nn.Parameter(torch.tensor(cfg.gain))
            if cfg.gain_learned and self.join != "puzzle table"
            else cfg.gain
        )
        if cfg.frozen:
            self.requires_grad_(False)

    # ------------------------------------------------------------ slots

    def reset(self, state: Tensor | None, fresh: Tensor) -> Tensor | None:
        """State for this step: fresh (B,) slots begin with the first one, which may learn; others go on, detached. None if nothing is carried."""
        if self.join not in ("carried set", "recursion"):
            return None
        first = self.first.to(self.compute).expand(len(fresh), -1, -1)
        return first if state is None else torch.where(fresh[:, None, None], first, state.detach())

    def noise(self, B: int, K: int, g: torch.Generator) -> Tensor | None:
        """Normal numbers for one call in training: (B, K, latent), (B, latent), or None for an encoder that samples nothing."""
        if not self.bottleneck_at:
            return None
        return torch.randn(
            (B, K, self.latent) if self.bottleneck_at == "each" else (B, self.latent),
            generator=g,
            device=g.device,
        )

    # ------------------------------------------------------------ demonstrations to context

    def read(self, demos: Tensor, mask: Tensor) -> Tensor:
        """(B, K, 2, S), (B, K) -> (B, K, D), or (B, K, 2 S, D) of cells. Only valid demonstrations are worked on; empty slots are zeros."""
        packed = demos[mask]  # (N, 2, S)
        if not len(packed):
            return torch.zeros(
                *mask.shape,
                *([2 * demos.shape[-1]] if self.join == "cells" else []),
                self.width,
                dtype=self.compute,
                device=demos.device,
            )
        vectors = self.reader(packed, self.compute)
        return vectors.new_zeros(*mask.shape, *vectors.shape[1:]).index_put((mask,), vectors)

    def recurse(self, vectors: Tensor, mask: Tensor, state: Tensor) -> Tensor:
        """The next state (B, M, D) from the last one. "carried set": the context queries are the state. "recursion": TRM's two states."""
        if self.join == "carried set":
            new = state
            for block in self.blocks:
                new = block(new, (vectors, mask, None))
            if self.cfg.norm_place == "pre":
                new = self.norm(new)  # what is carried must not grow from step to step
        else:
            task, P = masked_mean(vectors, mask)[:, None], self.prefix
            angles = rope_1d(P, self.dim // self.cfg.heads, device=state.device)

            def net(h: Tensor) -> Tensor:
                for block in self.blocks:
                    h = block(h, angles)
                return h

            def cycle(high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
                for _ in range(self.cfg.n):
                    low = net(low + (high + task))
                return net(high + low), low

            high, low = first = state[:, :P], state[:, P:]
            with torch.no_grad():
                for _ in range(self.cfg.T - 1):
                    high, low = cycle(high, low)
            if (
                state.requires_grad and self.cfg.T > 1
            ):  # as in TRM.forward: a learned first state gets its gradient past these
                high, low = (now + (was - was.detach()) for now, was in zip((high, low), first))
            new = torch.cat(cycle(high, low), 1)
        return (
            self.cfg.carry_ema * state.detach() + (1 - self.cfg.carry_ema) * new
            if self.cfg.carry_ema
            else new
        )

    def forward(
        self,
        demos: Tensor | None,
        mask: Tensor | None,
        state: Tensor | None = None,
        ids: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Context (B, P, D), attached; the state to carry on, detached; {"kl": (B,)}, for the caller to sum over rows like all losses.

        state comes from `reset` (None: the first one), noise from `noise` (in training only). A row without demonstrations is legal: its
        context says nothing of the task, and is finite.
        """
        if self.join == "puzzle table":
            return (
                F.pad(F.embedding(ids, self.puzzles)[:, None], (0, 0, 0, self.prefix - 1)),
                None,
                {},
            )
        carried, aux = None, {}
        if self.join == "task table":
            h = F.embedding(ids, self.tasks.flatten(1)).unflatten(1, (self.prefix, -1))
        else:
            h = self.read(demos, mask)
            if self.bottleneck_at == "each":
                h, kl = self.bottleneck(h, noise)
                aux["kl"] = masked_mean(kl[..., None], mask)[:, 0]
        if self.join == "mean":
            h = masked_mean(h, mask)
        elif self.join == "set":
            vectors, h = h, self.first.to(self.compute).expand(len(mask), -1, -1)
            for block in self.blocks:
                h = block(h, (vectors, mask, None))
        elif self.join in ("carried set", "recursion"):
            state = self.recurse(h, mask, self.reset(None, mask[:, 0]) if state is None else state)
            h, carried = state[:, : self.prefix], state.detach()
        elif self.join == "cells":
            h = h.flatten(1, 2)  # (B, K * 2 S, D)
            if h.shape[1] != self.prefix:
                raise ValueError(
                    f"encoder 'cells' makes {h.shape[1]} context positions of {mask.shape[1]} demonstrations, the net has prefix = {self.prefix}"
                )
        if self.bottleneck_at == "joined":
            h, aux["kl"] = self.bottleneck(
                self.norm(self.norm(h).mean(1)) if self.join == "set" else h, noise
            )
        if self.head is not None:
            h = self.head(h).unflatten(-1, (self.prefix, self.dim))
        h = h.float()
        return self.gain * (self.norm(h) if self.cfg.normalize else h), carried, aux


def make_encoder(
    cfg: EncoderConfig,
    dim: int,
    prefix: int,
    seq_len: int,
    vocab_size: int,
    num_tasks: int = 1,
    num_puzzles: int = 1,
    compute: torch.dtype = torch.float32,
) -> Encoder | None:
    """The one place where encoders are made; None for kind = "none"."""
    return (
        None
        if cfg.kind == "none"
        else Encoder(cfg, dim, prefix, seq_len, vocab_size, num_tasks, num_puzzles, compute)
    )


def encode(
    encoder: Encoder,
    batch: dict[str, Tensor],
    state: Tensor | None = None,
    noise: Tensor | None = None,
):
    """`encoder` on the slots of a batch with demos, mask, task and puzzle, whatever of it this kind reads; returns context, state, aux."""
    return encoder(
        batch.get("demos"),
        batch.get("mask"),
        state,
        batch["puzzle" if encoder.join == "puzzle table" else "task"],
        noise,
    )


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
        sizes = self.shape.seq_len, self.shape.vocab_size
        rows = shape.get("num_tasks", 1), self.shape.num_puzzles
        self.encoder = make_encoder(encoder, cfg.dim, cfg.prefix, *sizes, *rows, compute)

    def step(
        self,
        carry: Carry,
        context: Tensor | None = None,
        min_steps: Tensor | None = None,
        noise: Tensor | None = None,
        average: bool = False,
    ) -> tuple[Carry, Output]:
        """One supervision step of every slot. noise: of a variational encoder in training, from `noise`. For ablations: average gives all
        rows their mean context; `context` (B, P, D), if given, is used as it is."""
        fresh, before, aux = carry.steps == 0, carry.more.get("state"), {}
        if context is None:
            first = self.encoder.reset(before, fresh)
            context, state, aux = encode(self.encoder, carry.batch, first, noise)
            carry = replace(carry, more={} if state is None else {"state": state})
            if average:
                context = context.mean(0, keepdim=True).expand_as(context)
        carry, out = super().step(carry, context, min_steps)
        out.aux = aux | {"context": context, "fresh": fresh}
        if before is not None and "state" in carry.more:
            out.aux["before"] = before
        return carry, out

    def noise(self, B: int, g: torch.Generator) -> Tensor | None:
        """Normal numbers for B rows of demonstrations; None where nothing is sampled."""
        return self.encoder.noise(B, self.demos, g)

    def loss(self, out: Output, carry: Carry) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().loss(out, carry)
        if "kl" in out.aux:
            loss, metrics["kl_loss"] = (
                loss + self.encoder.cfg.kl_weight * out.aux["kl"].sum(),
                out.aux["kl"].sum().detach(),
            )
            metrics["loss"] = loss.detach()
        return loss, metrics | health(out, carry, self.cfg.prefix)

    def frozen(self, step: int) -> list[Tensor]:
        cfg = self.encoder.cfg
        own = {id(p) for p in self.encoder.parameters()}
        return [
            p
            for p in self.parameters()
            if step < (cfg.freeze_steps if id(p) in own else cfg.freeze_decoder_steps)
        ]

    def rates(self) -> dict[str, float]:
        return {"encoder": self.encoder.cfg.lr, "decoder": self.encoder.cfg.decoder_lr}

    def after_backward(self, norm: Tensor, rows: int) -> dict[str, Tensor]:
        return gradient_share(self, norm, rows)

    def means(self, total: dict[str, float]) -> dict[str, float]:
        return health_means(total)


# ---------------------------------------------------------------- figures of an encoder


def health(out: Output, carry: Carry, prefix: int) -> dict[str, Tensor]:
    """Sums over rows, on the device: divided by `rows` they are means, but encoder_carry_change by `encoder_going` (rows that went on).

    encoder_rms: of the context. encoder_variance: mean over places of the variance over rows, in units of the mean square, so that it does
    not depend on scale. encoder_diversity: variance over a row's positions in the same units. encoder_coverage: share of rows whose context
    got a gradient. encoder_carry_rms: of a recurrent encoder's state; encoder_carry_change: its change in one step, relative.
    """
    context = out.aux["context"].detach().float()
    rows, square = len(context), context.square().mean().clamp(min=1e-12)
    found = {
        "encoder_rms": square.sqrt(),
        "encoder_variance": context.var(0, correction=0).mean() / square,
        "encoder_diversity": context.var(1, correction=0).mean() / square,
    }
    covered = torch.zeros((), device=context.device)

    def cover(grad: Tensor) -> None:
        covered.add_((grad.flatten(1) != 0).any(1).sum())

    if out.aux["context"].requires_grad:
        out.aux["context"].register_hook(cover)  # the backward pass fills it
    sums = {k: rows * v for k, v in found.items()} | {"encoder_coverage": covered}
    if "state" in carry.more:
        now = carry.more["state"][:, :prefix].float()
        sums["encoder_carry_rms"] = now.square().mean((1, 2)).sqrt().sum()
        old, going = now, torch.zeros_like(out.aux["fresh"])
        if "before" in out.aux:
            old, going = out.aux["before"][:, :prefix].float(), ~out.aux["fresh"]
        sums["encoder_carry_change"] = (going * change(now, old)).sum()
        sums["encoder_going"] = going.sum().float()
    return sums


def change(now: Tensor, before: Tensor) -> Tensor:
    """(B,): how far a row's state moved, relative to what it was."""
    return (now - before).flatten(1).norm(dim=1) / (before.flatten(1).norm(dim=1) + 1e-8)


def gradient_share(net: Conditioned, total: Tensor, rows: int) -> dict[str, Tensor]:
    """The encoder's part of the gradient norm (before clipping, over all processes), and that norm itself, as sums over rows."""
    grads = [p.grad for p in net.encoder.parameters() if p.grad is not None]
    own = torch.nn.utils.get_total_norm(grads, foreach=True) if grads else torch.zeros_like(total)
    return {
        "encoder_gradient": rows * own,
        "encoder_gradient_share": rows * own / total.clamp(min=1e-12),
    }


def health_means(total: dict[str, float]) -> dict[str, float]:
    """Of the sums above since the last line."""
    line = {
        k: v / total["rows"]
        for k, v in total.items()
        if k.startswith("encoder_") and k not in ("encoder_carry_change", "encoder_going")
    }
    if total.get("encoder_going"):
        line["encoder_carry_change"] = total["encoder_carry_change"] / total["encoder_going"]
    return line


# ---------------------------------------------------------------- a decoder from another run


def load_decoder(net: TRM, path: str, held_out: set[str]) -> None:
    """Weights of a finished run's net (averaged ones, where kept), less its encoder or puzzle table, into `net`.

    Raises UserError where a weight is missing, left over or of another shape, and where that run trained on a task in `held_out`.
    """
    folder, at = Path(path), "encoder.decoder"
    try:
        card = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["data"]
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"{at} = {path!r}: no finished run there (no readable summary.json), expected the run folder of a decoder"
        ) from None
    seen = set(card.get("ids", {}).get("train", "").split())
    if card.get("protocol") == "transductive":
        seen |= {name for part in card["ids"].values() for name in part.split()}
    if both := sorted(seen & held_out):
        raise UserError(
            f"{at} = {path!r}: was trained on {len(both)} of the held-out tasks, the first is {both[0]!r}, expected none"
        )
    from runs import load  # only here: the rest of this file can be copied without it

    state = load(folder / "best.pt", "cpu", {"raw", "ema", "config"})
    found = {
        k: v
        for k, v in (state["ema"] or state["raw"]).items()
        if k != "puzzles" and not k.startswith("encoder.")
    }
    wanted = {
        k: v for k, v in net.state_dict().items() if k != "puzzles" and not k.startswith("encoder.")
    }
    for names, what in (
        (wanted.keys() - found.keys(), "lacks"),
        (found.keys() - wanted.keys(), "has an unknown"),
    ):
        if names:
            raise UserError(
                f"{at} = {path!r}: {what} {sorted(names)[0]!r} ({len(names)} in all), expected the weights of a net with this [model]"
            )
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            raise UserError(
                f"{at} = {path!r}: {name!r} is {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
            )
    for key in ("T", "n", "positions", "norm", "norm_place", "mlp", "heads", "mixer"):
        if (was := state["config"].get(f"model.{key}")) != (now := getattr(net.cfg, key)):
            raise UserError(
                f"{at} = {path!r}: was trained with model.{key} = {was!r}, expected {now!r} as in this entry"
            )
    net.load_state_dict(found, strict=False)
