"""The tiny recursive model (TRM, arXiv 2510.04871): recursion, slots that carry their answer on, halting, loss.

    x = embed(question)
    T - 1 times without gradient, then once with:     # the last `grad_cycles` of T carry gradient
        n times:  z = net(z + (y + x))                # think
        y = net(y + z)                                # improve the answer
    logits = head(y);  q = q_head(y);  the next supervision step starts from (y.detach(), z.detach())

Shapes: B slots of the batch, P prefix positions (the puzzle embedding), L cells, D width, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers import MLP, Attention, Block, Conv, Linear, Norm, Pool, PositionMLP, cross_entropy, rope_1d, rope_2d, round_up, trunc_normal


@dataclass(frozen=True)
class ModelConfig:
    dim: int = 512  # width D
    n_layers: int = 2  # blocks in the one shared net
    heads: int = 8  # attention heads
    T: int = 3  # recursions per supervision step
    n: int = 6  # updates of z before each update of y
    grad_cycles: int = 1  # how many of the T recursions, the last ones, carry gradient
    two_nets: bool = False  # a second net for the updates of y (the paper's ablation)
    mixer: Literal["attention", "mlp", "conv", "conv+attention", "pool"] = "attention"  # how positions exchange information
    per_digit: bool = False  # mixer = "pool": a state for every cell and digit rather than every cell: digits become interchangeable
    positions: Literal["rope", "rope2d", "learned", "none"] = "rope"  # position code; rotary ones act in attention only
    prefix: int = 16  # positions before the cells; the first holds the puzzle embedding
    norm: Literal["rms", "layer"] = "rms"  # RMSNorm or LayerNorm, without learned gain
    norm_place: Literal["post", "pre"] = "post"  # norm after the residual, or before each part and at the net's end
    mlp: Literal["swiglu", "reglu", "silu", "gelu"] = "swiglu"  # channel MLP (and position MLP)
    expansion: float = 4.0  # inner width of the channel MLP, in units of dim (times 2/3 for SwiGLU and ReGLU)
    position_expansion: float = 4.0  # the same for the MLP over positions (mixer = "mlp")
    multiple: int = 256  # inner widths are rounded up to a multiple of this
    init: Literal["fixed", "learned", "random"] = "fixed"  # first y and z: fixed vectors, learned vectors, fresh noise per token
    q_from: Literal["first", "mean"] = "first"  # the q head reads position 0, or the mean of y over positions
    n_sup: int = 16  # most supervision steps spent on one example
    halting: bool = True  # training slots take a new example once q_halt > 0; false: all n_sup steps
    explore: float = 0.1  # chance per row and step that a minimum of 2..n_sup steps is demanded before halting
    continue_loss: bool = False  # Q-learning target for q_continue from one more forward (the paper's "with ACT")
    loss: Literal["stablemax", "softmax"] = "stablemax"  # cross-entropy of the cells
    q_weight: float = 0.5  # weight of the halting loss (and of the continue loss)
    ponder_weight: float = 0.0  # weight of the expected further supervision steps, 1 - sigmoid(q_halt): teaches to halt early
    complexity_weight: float = 0.0  # times T * sum over the net's layers of n * phi^layer; a constant for fixed T, n: no gradient

    def problems(self) -> Iterator[tuple[str, str]]:
        """Impossible values as (key, what was expected)."""
        for key in ("dim", "n_layers", "heads", "T", "n", "multiple", "n_sup"):
            if getattr(self, key) < 1:
                yield key, "at least 1"
        for key in ("prefix", "q_weight", "ponder_weight", "complexity_weight"):
            if getattr(self, key) < 0:
                yield key, "at least 0"
        for key in ("expansion", "position_expansion"):
            if getattr(self, key) <= 0:
                yield key, "more than 0"
        if not 0 <= self.explore <= 1:
            yield "explore", "a probability, 0 to 1"
        if not 1 <= self.grad_cycles <= self.T:
            yield "grad_cycles", f"1 to T = {self.T}"
        if "attention" in self.mixer and self.heads > 0:
            need = {"rope": 2, "rope2d": 4}.get(self.positions, 1)
            if self.dim % (self.heads * need):
                yield "dim", f"a multiple of {self.heads * need} (heads = {self.heads}, positions = {self.positions!r})"
        if self.per_digit and (self.mixer != "pool" or self.q_from != "mean"):
            yield "per_digit", "false, or mixer = 'pool' and q_from = 'mean'"
        if self.mixer in ("conv", "pool") and self.prefix:
            yield "prefix", f"0 with mixer = {self.mixer!r}, which mixes the cells of the grid only"


@dataclass(frozen=True)
class Shape:
    """What the data fixes about a model; saved beside ModelConfig, so a checkpoint rebuilds its net without the data."""
    seq_len: int  # cells L
    vocab_size: int  # tokens V
    num_puzzles: int = 1  # rows of the puzzle embedding
    box_rows: int = 0  # Sudoku's boxes; 0: none
    box_cols: int = 0
    features: int = 0  # length F of the vector to be classified; 0: the question is tokens
    classes: int = 0  # classes of the one answer per example; 0: an answer per cell
    controls: int = 0  # controls per time step, for planner.py; 0: the answers are tokens or classes
    scale: tuple = ()  # of those nets: means and standard deviations of inputs and controls
    num_tasks: int = 1  # tasks, of each of which there may be several puzzles

    @property
    def digits(self) -> int:
        """Sudoku: 9 of 11 tokens, which begin with padding and blank."""
        return self.vocab_size - 2


@dataclass
class Carry:
    """What the slots keep between optimizer steps: detached, and saved in ckpt.pt."""
    y: Tensor  # (B, P+L, D) current answer
    z: Tensor  # (B, P+L, D) latent state
    steps: Tensor  # (B,) supervision steps spent on this example
    halted: Tensor  # (B,) bool: takes a new example at the next refill
    batch: dict[str, Tensor]  # the examples being solved: inputs (B, L), labels (B, L), puzzle (B,)
    state: Tensor | None = None  # (B, M, D) of a recurrent encoder; means nothing where steps = 0

    def map(self, f) -> "Carry":
        return Carry(f(self.y), f(self.z), f(self.steps), f(self.halted), {k: f(v) for k, v in self.batch.items()},
                     None if self.state is None else f(self.state))

    @staticmethod
    def cat(parts: "list[Carry]") -> "Carry":
        def join(name): return torch.cat([getattr(p, name) for p in parts])
        batch = {k: torch.cat([p.batch[k] for p in parts]) for k in parts[0].batch}
        return Carry(join("y"), join("z"), join("steps"), join("halted"), batch, None if parts[0].state is None else join("state"))


@dataclass
class Output:
    logits: Tensor  # (B, L, V)
    q_halt: Tensor  # (B,)
    q_continue: Tensor  # (B,)
    target_continue: Tensor | None = None  # (B,) in 0..1, with the continue loss
    aux: dict[str, Tensor] = field(default_factory=dict)  # of an encoder, see conditioned.py


class Net(nn.Module):
    """n_layers blocks, (B, P+L, D) -> (B, P+L, D); the only thing that is applied recursively."""

    def __init__(self, cfg: ModelConfig, shape: Shape):
        super().__init__()
        self.blocks = nn.ModuleList(Block(make_mixers(cfg, shape), MLP(cfg.dim, cfg.mlp, cfg.expansion, cfg.multiple),
                                          cfg.norm, cfg.norm_place == "pre") for _ in range(cfg.n_layers))
        self.last_norm = Norm(cfg.norm) if cfg.norm_place == "pre" else nn.Identity()

    def forward(self, h: Tensor, angles: Tensor | None) -> Tensor:
        for block in self.blocks:
            h = block(h, angles)
        return self.last_norm(h)


def make_mixers(cfg: ModelConfig, shape: Shape) -> list[nn.Module]:
    """The token mixing of one block; two parts for "conv+attention"."""
    if cfg.mixer == "mlp":
        return [PositionMLP(cfg.prefix + shape.seq_len, cfg.mlp, cfg.position_expansion, cfg.multiple)]
    if cfg.mixer == "pool":
        return [Pool(cfg.dim, (shape.box_rows, shape.box_cols), shape.digits if cfg.per_digit else 1)]
    conv = [Conv(cfg.dim, cfg.prefix)] if "conv" in cfg.mixer else []
    return conv + ([Attention(cfg.dim, cfg.heads)] if "attention" in cfg.mixer else [])


def make_states(net: nn.Module, init: str, draw: Callable[[], Tensor]) -> None:
    """The first y and z of a net: vectors that learn, fixed ones, or none (init = "random" draws them for every example)."""
    for name in ("y0", "z0"):
        if init == "learned":
            setattr(net, name, nn.Parameter(draw()))
        elif init == "fixed":
            net.register_buffer(name, draw())


class TRM(nn.Module):
    """The model. Parameters are fp32; activations have the dtype `compute` (float32, or bfloat16)."""

    def __init__(self, cfg: ModelConfig, shape: Shape, compute: torch.dtype = torch.float32):
        super().__init__()
        self.cfg, self.shape, self.compute = cfg, shape, compute
        D = cfg.dim
        if shape.features:
            self.features = Linear(shape.features, shape.seq_len * D)
        else:
            self.tokens = nn.Parameter(trunc_normal(3 if cfg.per_digit else shape.vocab_size, D, std=D**-0.5))
        if cfg.prefix:
            self.puzzles = nn.Parameter(torch.zeros(shape.num_puzzles, D))
        if cfg.positions == "learned":
            self.places = nn.Parameter(trunc_normal(cfg.prefix + shape.seq_len, D, std=D**-0.5))
        self.net = Net(cfg, shape)
        self.net_y = Net(cfg, shape) if cfg.two_nets else None
        self.head = Linear(D, 1 if cfg.per_digit else shape.classes or shape.vocab_size)
        self.q_head = nn.Linear(D, 2)  # halt, continue
        nn.init.zeros_(self.q_head.weight)
        nn.init.constant_(self.q_head.bias, -5)
        make_states(self, cfg.init, lambda: trunc_normal(D, std=1.0))

    # ------------------------------------------------------------ the recursion

    def recurse(self, x: Tensor, y: Tensor, z: Tensor, angles: Tensor | None) -> tuple[Tensor, Tensor]:
        """Think n times, answer once."""
        yx = y + x
        for _ in range(self.cfg.n):
            z = self.net(z + yx, angles)
        return (self.net_y or self.net)(y + z, angles), z

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """T recursions, the last grad_cycles of them with gradient: each tensor (B, P+L, D)."""
        angles = self.angles(x)
        first_y, first_z = y, z
        with torch.no_grad():
            for _ in range(self.cfg.T - self.cfg.grad_cycles):
                y, z = self.recurse(x, y, z, angles)
        if first_y.requires_grad and self.cfg.grad_cycles < self.cfg.T:  # learned y0, z0 act through the recursions above: hand them the gradient, same bits
            y, z = y + (first_y - first_y.detach()), z + (first_z - first_z.detach())
        for _ in range(self.cfg.grad_cycles):
            y, z = self.recurse(x, y, z, angles)
        return y, z

    # ------------------------------------------------------------ in and out

    def embed(self, batch: dict[str, Tensor], context: Tensor | None = None) -> Tensor:
        """Question tokens (B, L) -> x (B, P+L, D). `context` (B, P, D), if given, fills the prefix, else the puzzle embedding."""
        D, P = self.cfg.dim, self.cfg.prefix
        tokens = batch["inputs"]
        if self.cfg.per_digit:  # blank, given as this digit, given as another one
            digit = torch.arange(2, self.shape.vocab_size, device=tokens.device)
            tokens = torch.where(tokens[..., None] == digit, 1, 2 * (tokens[..., None] > 1)).flatten(1)  # (B, L * digits)
        if self.shape.features:  # (B, F) of variance 1 -> (B, L, D) of variance 1 after the scale below
            x = (self.features(tokens) / math.sqrt(D)).unflatten(1, (-1, D))
        else:
            x = F.embedding(tokens, self.tokens)  # (B, L, D)
        if P:
            if context is None:
                context = F.pad(F.embedding(batch["puzzle"], self.puzzles)[:, None], (0, 0, 0, P - 1))
            x = torch.cat([context, x], 1)
        if self.cfg.positions == "learned":
            x = 0.5**0.5 * (x + self.places)
        return (math.sqrt(D) * x).to(self.compute)

    def angles(self, x: Tensor) -> Tensor | None:
        """Rotary angles for x (B, P+L, D); computed once per supervision step, for any length."""
        if "attention" not in self.cfg.mixer or not self.cfg.positions.startswith("rope"):
            return None
        dim, P, L = self.cfg.dim // self.cfg.heads, self.cfg.prefix, x.shape[1] - self.cfg.prefix
        if self.cfg.positions == "rope":
            return rope_1d(P + L, dim, device=x.device)
        side = math.isqrt(L)
        return rope_2d(side, side, dim, P, device=x.device)

    def read(self, y: Tensor) -> Output:
        """The answer's logits (B, L, V) and the q values, in fp32."""
        q = self.q_head((y[:, 0] if self.cfg.q_from == "first" else y.mean(1)).float())
        cells = y[:, self.cfg.prefix:]
        logits = self.head(cells.mean(1, keepdim=True) if self.shape.classes else cells).float()
        if self.cfg.per_digit:  # padding and blank are no answers
            logits = F.pad(logits.view(len(y), -1, self.shape.digits), (2, 0), value=-1e4)
        return Output(logits, q[:, 0], q[:, 1])

    # ------------------------------------------------------------ slots

    def length(self, L: int) -> int:
        """Positions of the states for L cells."""
        if self.shape.features:
            return self.cfg.prefix + self.shape.seq_len
        return self.cfg.prefix + L * (self.shape.digits if self.cfg.per_digit else 1)

    def first_states(self, B: int, L: int, g: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """y and z of fresh slots, each broadcastable to (B, P+L, D); init = "random" draws them from g (None: the global one)."""
        if self.cfg.init != "random":
            return self.y0.to(self.compute), self.z0.to(self.compute)
        size, device = (2, B, self.length(L), self.cfg.dim), self.tokens.device
        noise = nn.init.trunc_normal_(torch.empty(size, device=device), std=1 / 0.8796256610342398, a=-2.2737, b=2.2737,
                                      generator=g).to(self.compute)
        return noise[0], noise[1]

    def start(self, batch: dict[str, Tensor]) -> Carry:
        """A carry of halted slots: the first refill fills all of them. The batch gives shapes only."""
        B, L = batch["inputs"].shape
        device = batch["inputs"].device
        y = torch.zeros(B, self.length(L), self.cfg.dim, device=device, dtype=self.compute)
        return Carry(y, y.clone(), torch.zeros(B, dtype=torch.long, device=device),
                     torch.ones(B, dtype=torch.bool, device=device), {k: torch.zeros_like(v) for k, v in batch.items()})

    def refill(self, carry: Carry, batch: dict[str, Tensor], states: tuple[Tensor, Tensor] | None = None) -> Carry:
        """Halted slots take their row of the new batch, fresh y and z, and step 0; running slots ignore it. No host sync."""
        B, L = batch["inputs"].shape
        y0, z0 = states or self.first_states(B, L)
        new = carry.halted

        def pick(fresh: Tensor, old: Tensor) -> Tensor:
            return torch.where(new.view(-1, *[1] * (old.dim() - 1)), fresh, old)

        return Carry(pick(y0, carry.y), pick(z0, carry.z), carry.steps.masked_fill(new, 0), torch.zeros_like(new),
                     {k: pick(v, carry.batch[k]) for k, v in batch.items()}, carry.state)

    def step(self, carry: Carry, context: Tensor | None = None, min_steps: Tensor | None = None) -> tuple[Carry, Output]:
        """One supervision step of every slot. min_steps (B,), from `exploration`, forbids halting before that step.

        In eval mode slots halt at n_sup only; whoever evaluates reads q_halt and takes finished rows out.
        """
        cfg = self.cfg
        y, z = self(self.embed(carry.batch, context), carry.y, carry.z)
        out = self.read(y)
        steps = carry.steps + 1
        last = steps >= cfg.n_sup
        halted = last
        if self.training and cfg.halting:
            halted = last | (out.q_halt > (out.q_continue if cfg.continue_loss else 0))
            if min_steps is not None:
                halted = halted & (steps >= min_steps)
        carry = replace(carry, y=y.detach(), z=z.detach(), steps=steps, halted=halted)
        if self.training and cfg.continue_loss:
            with torch.no_grad():  # what one more step would promise: Q-learning without a replay buffer
                ahead = self.read(self(self.embed(carry.batch, context), carry.y, carry.z)[0])
                best = torch.where(last, ahead.q_halt, torch.maximum(ahead.q_halt, ahead.q_continue))
                out.target_continue = best.sigmoid()
        return carry, out

    def loss(self, out: Output, carry: Carry) -> tuple[Tensor, dict[str, Tensor]]:
        return trm_loss(self.cfg, out, carry)

    def exploration(self, B: int, g: torch.Generator) -> Tensor | None:
        """Minimum steps demanded of each row at this step (B,): 0, or with probability `explore` one of 2..n_sup."""
        if not (self.cfg.halting and self.cfg.explore):
            return None
        demanded = torch.randint(2, self.cfg.n_sup + 1, (B,), generator=g, device=g.device) if self.cfg.n_sup > 1 else 1
        return torch.where(torch.rand(B, generator=g, device=g.device) < self.cfg.explore, demanded, 0)


def complexity(cfg: ModelConfig) -> float:
    """T * sum over layers of n * phi^layer, phi the golden ratio: founding document 004's penalty. Constant for fixed T and n."""
    phi = (1 + 5**0.5) / 2
    return cfg.T * sum(cfg.n * phi**layer for layer in range(cfg.n_layers))


def trm_loss(cfg: ModelConfig, out: Output, carry: Carry) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over rows of cross-entropy + q_weight * (halting [+ continue]) BCE [+ penalties], and metric sums on the device.

    The caller divides by the global batch size. Metrics cover the rows that halted in this step, as in the public code:
    count, cells, exact, q_accuracy (halting head right about exactness), steps; the loss parts cover all rows.
    """
    labels = carry.batch["labels"]
    labelled = labels >= 0
    with torch.no_grad():
        right = (out.logits.argmax(-1) == labels) & labelled
        exact = right.sum(-1) == labelled.sum(-1)
        cells = right.sum(-1) / labelled.sum(-1).clamp(min=1)
    answer = cross_entropy(out.logits, labels, cfg.loss).sum()
    halt = F.binary_cross_entropy_with_logits(out.q_halt, exact.float(), reduction="sum")
    loss = answer + cfg.q_weight * halt
    parts = {"answer_loss": answer, "halt_loss": halt}
    if out.target_continue is not None:
        parts["continue_loss"] = F.binary_cross_entropy_with_logits(out.q_continue, out.target_continue, reduction="sum")
        loss = loss + cfg.q_weight * parts["continue_loss"]
    if cfg.ponder_weight:
        parts["ponder"] = (1 - out.q_halt.sigmoid()).sum()  # expected further steps, one step ahead
        loss = loss + cfg.ponder_weight * parts["ponder"]
    if cfg.complexity_weight:
        loss = loss + cfg.complexity_weight * complexity(cfg) * len(labels)
    done = carry.halted
    metrics = {"count": done.sum(), "cells": (cells * done).sum(), "exact": (exact & done).sum(),
               "q_accuracy": (((out.q_halt > 0) == exact) & done).sum(), "steps": (carry.steps * done).sum()}
    return loss, {"rows": carry.steps.new_full((), len(labels)), "loss": loss.detach(),
                  **{k: v.detach() for k, v in parts.items()}, **metrics}


# ---------------------------------------------------------------- published checkpoints

def public_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the public TRM code under our names, for `TRM.load_state_dict`.

    Reads checkpoints with or without the `_orig_mod.model.` prefix. Raises KeyError on a name that it does not know.
    """
    ours = {"embed_tokens.embedding_weight": "tokens", "embed_pos.embedding_weight": "places", "puzzle_emb.weights": "puzzles",
            "H_init": "y0", "L_init": "z0", "lm_head.weight": "head.weight",
            "q_head.weight": "q_head.weight", "q_head.bias": "q_head.bias"}
    parts = {"self_attn.qkv_proj": "mixers.0.qkv", "self_attn.o_proj": "mixers.0.out", "mlp_t.gate_up_proj": "mixers.0.mlp.up",
             "mlp_t.down_proj": "mixers.0.mlp.down", "mlp.gate_up_proj": "mlp.up", "mlp.down_proj": "mlp.down"}
    renamed = {}
    for name, tensor in state.items():
        short = name.split("inner.", 1)[-1]
        if short.startswith("L_level.layers."):
            _, _, layer, part = short.split(".", 3)
            renamed[f"net.blocks.{layer}.{parts[part.removesuffix('.weight')]}.weight"] = tensor
        else:
            renamed[ours[short]] = tensor
    return renamed


def net_flop(cfg: ModelConfig, shape: Shape, batch: int) -> float:
    """FLOP of one forward call of the net: two per multiply-add of its matrix products and convolutions, nothing else."""
    D, kinds = cfg.dim, 2 + (shape.box_rows > 0) + cfg.per_digit
    L = cfg.prefix + shape.seq_len * (shape.digits if cfg.per_digit else 1)

    def mlp(width: int, expansion: float) -> int:  # the gated ones have three matrices
        gated = cfg.mlp.endswith("glu")
        inner = round_up(expansion * width * (2 / 3 if gated else 1), cfg.multiple)
        return (3 if gated else 2) * width * inner

    per_cell = {"attention": 4 * D * D + 2 * L * D, "conv": 9 * D, "mlp": mlp(L, cfg.position_expansion) * D / L,
                "pool": 2 * kinds * D * D + kinds * D * D / math.isqrt(shape.seq_len)}  # the second product is per group, not per cell
    return 2 * batch * L * cfg.n_layers * (sum(per_cell[part] for part in cfg.mixer.split("+")) + mlp(D, cfg.expansion))


def step_calls(cfg: ModelConfig) -> int:
    """Forward calls of the net that one training step costs; a call with gradient counts as three."""
    return (cfg.T + 2 * cfg.grad_cycles + cfg.T * cfg.continue_loss) * (cfg.n + 1)
