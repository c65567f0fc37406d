"""A tiny recursive model that is told its task by examples: an encoder of encoders.py fills the prefix of model.TRM.

    state = first state where a slot is new, else the one it carries, detached
    context, state = encoder(demonstrations of the slot, state)       # made anew at every supervision step, attached
    y, z = TRM(context, question, y, z)
    loss = TRM's + kl_weight * KL                                     # one KL per row, of the same denominator as the cross-entropy

The demonstrations lie in the carry beside question and labels, so a slot keeps its own until it halts.

Shapes: B slots, P context positions, D width, M positions of a recurrent encoder's state.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from arc import ArcConfig
from encoders import FAMILY, EncoderConfig, encode, make_encoder
from model import TRM, Carry, ModelConfig, Output, Shape
from puzzles import UserError
from runs import load


def impossible(cfg: ModelConfig, arc: ArcConfig, encoder: EncoderConfig) -> Iterator[tuple[str, str, str]]:
    """What does not go together, as (table, key, what was expected)."""
    yield from (("encoder", key, expected) for key, expected in encoder.problems(cfg.dim, cfg.prefix))
    if cfg.mixer == "pool" or cfg.per_digit:
        yield "model", "mixer", "another one for data.task = 'arc', whose canvas has no boxes"
    if encoder.kind == "none":
        changed = [k for k, v in vars(encoder).items() if v != getattr(EncoderConfig(), k)]
        if changed:
            yield "encoder", changed[0], "its default with encoder.kind = 'none'"
        return
    reader, _, join = FAMILY[encoder.kind]
    if reader and arc.mode == "embed":
        yield "encoder", "kind", "'none', 'lookup' or 'one_hot' with arc.mode = 'embed', which has no demonstrations"
    if join == "puzzle table" and arc.mode != "embed":
        yield "encoder", "kind", f"another one with arc.mode = {arc.mode!r}: 'lookup' has a row per puzzle id, which arc.mode = 'embed' gives"
    if join == "cells" and cfg.prefix != (need := 2 * arc.demos * arc.side**2):
        yield "model", "prefix", f"{need} with encoder.kind = 'cells': 2 x arc.demos x arc.side x arc.side positions"
    if join in ("recursion", "set", "carried set") and encoder.heads > 0 and cfg.dim % (2 * encoder.heads):
        yield "encoder", "heads", f"a number that divides model.dim = {cfg.dim} into an even width per head"
    if encoder.frozen and (encoder.freeze_steps or encoder.lr != 1):
        yield "encoder", "freeze_steps" if encoder.freeze_steps else "lr", "its default with encoder.frozen = true, which never learns"


class Conditioned(TRM):
    """A TRM and its encoder as one net: what is trained, averaged and saved."""

    def __init__(self, cfg: ModelConfig, encoder: EncoderConfig, shape: Shape, compute: torch.dtype = torch.float32):
        super().__init__(cfg, shape, compute)
        self.puzzles = None  # the context takes its place
        self.encoder = make_encoder(encoder, cfg.dim, cfg.prefix, shape.seq_len, shape.vocab_size, shape.num_tasks, shape.num_puzzles, compute)

    def step(self, carry: Carry, context: Tensor | None = None, min_steps: Tensor | None = None, noise: Tensor | None = None,
             average: bool = False) -> tuple[Carry, Output]:
        """One supervision step of every slot. noise: of a variational encoder in training, from `noise`. For ablations: average gives all
        rows their mean context; `context` (B, P, D), if given, is used as it is."""
        fresh, before = carry.steps == 0, carry.state
        if context is None:
            context, state, aux = encode(self.encoder, carry.batch, self.encoder.reset(before, fresh), noise)
            carry = replace(carry, state=state)
            if average:
                context = context.mean(0, keepdim=True).expand_as(context)
        else:
            aux = {}
        carry, out = super().step(carry, context, min_steps)
        out.aux = aux | {"context": context, "fresh": fresh}
        if before is not None and carry.state is not None:
            out.aux["before"] = before
        return carry, out

    def noise(self, B: int, K: int, g: torch.Generator) -> Tensor | None:
        """Normal numbers for a step in training, drawn for B rows of K demonstrations; None where nothing is sampled."""
        return self.encoder.noise(B, K, g)

    def loss(self, out: Output, carry: Carry) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().loss(out, carry)
        if "kl" in out.aux:
            loss, metrics["kl_loss"] = loss + self.encoder.cfg.kl_weight * out.aux["kl"].sum(), out.aux["kl"].sum().detach()
            metrics["loss"] = loss.detach()
        return loss, metrics | health(out, carry, self.cfg.prefix)

    def standing(self, step: int) -> list[Tensor]:
        """Parameters that do not move at this step, though later ones may move them."""
        cfg = self.encoder.cfg
        own = {id(p) for p in self.encoder.parameters()}
        return [p for p in self.parameters() if step < (cfg.freeze_steps if id(p) in own else cfg.freeze_decoder_steps)]

    def rates(self) -> dict[str, float]:
        return {"encoder": self.encoder.cfg.lr, "decoder": self.encoder.cfg.decoder_lr}


# ---------------------------------------------------------------- figures of an encoder

def health(out: Output, carry: Carry, prefix: int) -> dict[str, Tensor]:
    """Sums over rows, on the device: divided by `rows` they are means, but encoder_carry_change by `encoder_going` (rows that went on).

    encoder_rms: of the context. encoder_variance: mean over places of the variance over rows, in units of the mean square, so that it does
    not depend on scale. encoder_diversity: variance over a row's positions in the same units. encoder_coverage: share of rows whose context
    got a gradient. encoder_carry_rms: of a recurrent encoder's state; encoder_carry_change: its change in one step, relative.
    """
    context = out.aux["context"].detach().float()
    rows, square = len(context), context.square().mean().clamp(min=1e-12)
    found = {"encoder_rms": square.sqrt(), "encoder_variance": context.var(0, correction=0).mean() / square,
             "encoder_diversity": context.var(1, correction=0).mean() / square}
    covered = torch.zeros((), device=context.device)

    def cover(grad: Tensor) -> None:
        covered.add_((grad.flatten(1) != 0).any(1).sum())

    if out.aux["context"].requires_grad:
        out.aux["context"].register_hook(cover)  # the backward pass fills it
    sums = {k: rows * v for k, v in found.items()} | {"encoder_coverage": covered}
    if carry.state is not None:
        now = carry.state[:, :prefix].float()
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
    return {"encoder_gradient": rows * own, "encoder_gradient_share": rows * own / total.clamp(min=1e-12)}


def means(total: dict[str, float]) -> dict[str, float]:
    """Of the sums above since the last line."""
    line = {k: v / total["rows"] for k, v in total.items() if k.startswith("encoder_") and k not in ("encoder_carry_change", "encoder_going")}
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
        raise UserError(f"{at} = {path!r}: no finished run there (no readable summary.json), expected the run folder of a decoder") from None
    seen = set(card.get("ids", {}).get("train", "").split())
    if card.get("protocol") == "transductive":
        seen |= {name for part in card["ids"].values() for name in part.split()}
    if both := sorted(seen & held_out):
        raise UserError(f"{at} = {path!r}: was trained on {len(both)} of the held-out tasks, the first is {both[0]!r}, expected none")
    state = load(folder / "best.pt", "cpu", {"raw", "ema", "config"})
    found = {k: v for k, v in (state["ema"] or state["raw"]).items() if k != "puzzles" and not k.startswith("encoder.")}
    wanted = {k: v for k, v in net.state_dict().items() if k != "puzzles" and not k.startswith("encoder.")}
    for names, what in ((wanted.keys() - found.keys(), "lacks"), (found.keys() - wanted.keys(), "has an unknown")):
        if names:
            raise UserError(f"{at} = {path!r}: {what} {sorted(names)[0]!r} ({len(names)} in all), expected the weights of a net with this [model]")
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            raise UserError(f"{at} = {path!r}: {name!r} is {tuple(found[name].shape)}, expected {tuple(tensor.shape)}")
    for key in ("T", "n", "positions", "norm", "norm_place", "mlp", "heads", "mixer"):
        if (was := state["config"].get(f"model.{key}")) != (now := getattr(net.cfg, key)):
            raise UserError(f"{at} = {path!r}: was trained with model.{key} = {was!r}, expected {now!r} as in this entry")
    net.load_state_dict(found, strict=False)
