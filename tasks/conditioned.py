"""The net of the ARC task with an encoder: its health, and a decoder from another run.

A context that is the same for all tasks, or that gets no gradient, is of no use. So the health of
the encoder is logged beside the loss.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

import encoders
from config import UserError
from model import TRM, Carry, ModelConfig, Output
from runs import load


class Conditioned(encoders.Conditioned):
    """With the health of its encoder among the metrics."""

    def loss(self, out: Output, carry: Carry) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().loss(out, carry)
        return loss, metrics | health(out, carry, self.cfg.prefix)

    def after_backward(self, norm: Tensor, rows: int) -> dict[str, Tensor]:
        """The encoder's gradient norm, before clipping and over all processes, and its share."""
        grads = [p.grad for p in self.encoder.parameters() if p.grad is not None]
        own = torch.zeros_like(norm)
        if grads:
            own = torch.nn.utils.get_total_norm(grads, foreach=True)
        share = own / norm.clamp(min=1e-12)
        return {"encoder_gradient": rows * own, "encoder_gradient_share": rows * share}

    def means(self, total: dict[str, float]) -> dict[str, float]:
        line = {}
        for name, value in total.items():
            if name.startswith("encoder_") and name not in PER_RUNNING_SLOT:
                line[name] = value / total["rows"]
        if total.get("encoder_going"):
            line["encoder_carry_change"] = total["encoder_carry_change"] / total["encoder_going"]
        return line


# ---------------------------------------------------------------- figures of an encoder

PER_RUNNING_SLOT = ("encoder_carry_change", "encoder_going")  # not means over all rows


def health(out: Output, carry: Carry, prefix: int) -> dict[str, Tensor]:
    """Sums over rows, on the device. Divided by `rows` they are means:

    encoder_rms        of the context
    encoder_variance   variance over rows, mean over places, in units of the mean square
    encoder_diversity  variance over a row's positions, in the same units
    encoder_coverage   share of rows whose context got a gradient
    encoder_carry_rms  of a recurrent encoder's state

    encoder_carry_change, the relative change of that state in one step, is divided by
    encoder_going, the rows that went on.
    """
    context = out.aux["context"].detach().float()
    rows = len(context)
    square = context.square().mean().clamp(min=1e-12)
    sums = {
        "encoder_rms": rows * square.sqrt(),
        "encoder_variance": rows * (context.var(0, correction=0).mean() / square),
        "encoder_diversity": rows * (context.var(1, correction=0).mean() / square),
        "encoder_coverage": count_gradients(out.aux["context"]),
    }
    if "state" in carry.more:
        now = carry.more["state"][:, :prefix].float()
        sums["encoder_carry_rms"] = now.square().mean((1, 2)).sqrt().sum()
        before, running = now, torch.zeros_like(out.aux["fresh"])
        if "before" in out.aux:
            before, running = out.aux["before"][:, :prefix].float(), ~out.aux["fresh"]
        sums["encoder_carry_change"] = (running * change(now, before)).sum()
        sums["encoder_going"] = running.sum().float()
    return sums


def count_gradients(context: Tensor) -> Tensor:
    """How many rows of the context get a gradient: 0 until the backward pass fills it in."""
    count = torch.zeros((), device=context.device)

    def fill_in(grad: Tensor) -> None:
        count.add_((grad.flatten(1) != 0).any(1).sum())

    if context.requires_grad:
        context.register_hook(fill_in)
    return count


def change(now: Tensor, before: Tensor) -> Tensor:
    """(B,): how far a row's state moved, relative to what it was."""
    return (now - before).flatten(1).norm(dim=1) / (before.flatten(1).norm(dim=1) + 1e-8)


# ---------------------------------------------------------------- a decoder from another run


def load_decoder(net: TRM, path: str, held_out: set[str]) -> None:
    """Weights of a finished run's net, less its encoder or puzzle table, into `net`.

    The averaged ones, where kept. Raises UserError where a weight is missing, left over or of
    another shape, where the run computed with other keys, and where it trained on a task in
    `held_out`.
    """
    try:
        refuse_seen(Path(path), held_out)
        state = load(Path(path, "best.pt"), "cpu", {"raw", "ema", "config"})
        found = decoder_weights(state["ema"] or state["raw"])
        refuse_other_weights(found, decoder_weights(net.state_dict()))
        refuse_other_model(state["config"], net.cfg)
    except Misfit as reason:
        raise UserError(f"encoder.decoder = {path!r}: {reason}") from None
    net.load_state_dict(found, strict=False)


class Misfit(Exception):
    """Why a run's net cannot be the decoder."""


def decoder_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without encoder and puzzle table."""
    return {
        name: tensor
        for name, tensor in state.items()
        if name != "puzzles" and not name.startswith("encoder.")
    }


def refuse_seen_init(path: Path, held_out: set[str]) -> None:
    """Raises UserError where the run of train.init trained on a task in `held_out`."""
    try:
        refuse_seen(path.parent, held_out)
    except Misfit as reason:
        raise UserError(f"train.init: the run of {path}: {reason}") from None


def refuse_seen(folder: Path, held_out: set[str]) -> None:
    """Raises Misfit where the run trained on one of these tasks."""
    try:
        card = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["data"]
    except (OSError, ValueError, KeyError):
        raise Misfit(
            "no finished run there (no readable summary.json), expected a finished run"
        ) from None
    ids = card.get("ids", {})
    parts = ids if card.get("protocol") == "transductive" else ["train"]
    seen = {name for part in parts for name in ids.get(part, "").split()}
    both = sorted(seen & held_out)
    if both:
        raise Misfit(
            f"was trained on {len(both)} of the held-out tasks, the first is {both[0]!r}, "
            "expected none"
        )


def refuse_other_weights(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Raises Misfit unless names and shapes are the same."""
    lacking, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    for names, what in ((lacking, "lacks"), (unknown, "has an unknown")):
        if names:
            raise Misfit(
                f"{what} {names[0]!r} ({len(names)} in all), expected the weights of a net with "
                "this [model]"
            )
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            raise Misfit(f"{name!r} is {tuple(found[name].shape)}, expected {tuple(tensor.shape)}")


def refuse_other_model(config: dict, model: ModelConfig) -> None:
    """Raises Misfit where equal weights would compute something else."""
    for key in ("T", "n", "positions", "norm", "norm_place", "mlp", "heads", "mixer"):
        was, now = config.get(f"model.{key}"), getattr(model, key)
        if was != now:
            raise Misfit(
                f"was trained with model.{key} = {was!r}, expected {now!r} as in this entry"
            )
