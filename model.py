"""The tiny recursive model (TRM, arXiv 2510.04871): recursion, slots, halting, loss.

    x = embed(question)
    T - 1 times without gradient, then once with:     # the last `grad_cycles` of T carry gradient
        n times:  z = net(z + (y + x))                # think
        y = net(y + z)                                # improve the answer
    logits = head(y);  q = q_head(y)
    the next supervision step starts from (y.detach(), z.detach())

A slot is a row of the batch that keeps its example until the net halts on it.
Shapes: B slots, P prefix positions (the puzzle embedding), L cells, D width, V vocabulary.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers import (
    MLP,
    Attention,
    Block,
    Conv,
    GroupMLP,
    Linear,
    Norm,
    Pool,
    PositionMLP,
    cross_entropy,
    rope_1d,
    rope_2d,
    round_up,
    trunc_normal,
)

# What a machine may hold or wait for: limits that only a slip of the pen can reach.
MOST = {
    "dim": 16_384,
    "n_layers": 1000,
    "heads": 16_384,
    "T": 10_000,
    "n": 10_000,
    "n_sup": 10_000,
    "prefix": 65_536,
    "multiple": 16_384,
    "expansion": 1000,
    "position_expansion": 1000,
}


@dataclass(frozen=True)
class ModelConfig:
    dim: int = 512  # width D
    n_layers: int = 2  # blocks in the one shared net
    heads: int = 8  # attention heads
    T: int = 3  # recursions per supervision step
    n: int = 6  # updates of z before each update of y
    grad_cycles: int = 1  # how many of the T recursions, the last ones, carry gradient
    two_nets: bool = False  # a second net for the updates of y (the paper's ablation)
    # how positions exchange information; groups: in the channel MLP, in place of both
    mixer: Literal["attention", "mlp", "conv", "conv+attention", "pool", "groups"] = "attention"
    # position code; rotary ones act in attention only
    positions: Literal["rope", "rope2d", "learned", "none"] = "rope"
    prefix: int = 16  # positions before the cells; the first holds the puzzle embedding
    norm: Literal["rms", "layer"] = "rms"  # RMSNorm or LayerNorm, without learned gain
    # norm after the residual, or before each part and at the net's end
    norm_place: Literal["post", "pre"] = "post"
    # channel MLP (and position MLP)
    mlp: Literal["swiglu", "reglu", "silu", "gelu"] = "swiglu"
    # inner width of the channel MLP, in units of dim (times 2/3 for SwiGLU and ReGLU)
    expansion: float = 4.0
    # the same for the MLP over positions (mixer = "mlp")
    position_expansion: float = 4.0
    multiple: int = 256  # inner widths are rounded up to a multiple of this
    # first y and z: fixed vectors, learned vectors, fresh noise per token
    init: Literal["fixed", "learned", "random"] = "fixed"
    # the q head reads position 0, or the mean of y over positions
    q_from: Literal["first", "mean"] = "first"
    n_sup: int = 16  # most supervision steps spent on one example
    # training slots take a new example once q_halt > 0; false: all n_sup steps
    halting: bool = True
    # chance per row and step that a minimum of 2..n_sup steps is demanded before halting
    explore: float = 0.1
    # Q-learning target for q_continue from one more forward (the paper's "with ACT")
    continue_loss: bool = False
    loss: Literal["stablemax", "softmax"] = "stablemax"  # cross-entropy of the cells
    q_weight: float = 0.5  # weight of the halting loss (and of the continue loss)
    # weight of the expected further supervision steps, 1 - sigmoid(q_halt): teaches to halt early
    ponder_weight: float = 0.0
    # times T * sum over the net's layers of n * phi^layer; a constant for fixed T, n: no gradient
    complexity_weight: float = 0.0

    def problems(self) -> Iterator[tuple[str, str]]:
        """Impossible values as (key, what was expected)."""
        for key in ("dim", "n_layers", "heads", "T", "n", "multiple", "n_sup"):
            if getattr(self, key) < 1:
                yield key, "at least 1"
        for key, most in MOST.items():
            if getattr(self, key) > most:
                yield key, f"at most {most}"
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
        need = self.heads * {"rope": 2, "rope2d": 4}.get(self.positions, 1)
        if "attention" in self.mixer and self.heads > 0 and self.dim % need:
            why = f"heads = {self.heads}, positions = {self.positions!r}"
            yield "dim", f"a multiple of {need} ({why})"
        if self.mixer in ("conv", "pool", "groups") and self.prefix:
            yield "prefix", f"0 with mixer = {self.mixer!r}, which mixes the cells of the grid only"


@dataclass(frozen=True)
class Shape:
    """What the data fixes about a model. A checkpoint keeps it, to rebuild the net without data."""

    seq_len: int  # cells L
    vocab_size: int  # tokens V
    num_puzzles: int = 1  # rows of the puzzle embedding
    box_rows: int = 0  # the grid is cut into boxes of this size; 0: no boxes
    box_cols: int = 0
    rows: int = 0  # of a grid that is no square; 0: a square, of whatever size the input has
    cols: int = 0

    @classmethod
    def of(cls, values: dict) -> "Shape":
        """From a dict that may hold more, as those of a task and of older checkpoints do."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: values[name] for name in names if name in values})

    def sides(self, cells: int) -> tuple[int, int]:
        """(rows, columns) of a grid with so many cells."""
        if self.rows:
            return self.rows, self.cols
        return math.isqrt(cells), math.isqrt(cells)


@dataclass
class Carry:
    """What the slots keep between optimizer steps: detached, and saved in ckpt.pt."""

    y: Tensor  # (B, P+L, D) current answer
    z: Tensor  # (B, P+L, D) latent state
    steps: Tensor  # (B,) supervision steps spent on this example
    halted: Tensor  # (B,) bool: takes a new example at the next refill
    batch: dict[str, Tensor]  # the examples: inputs (B, L), labels (B, L), puzzle (B,)
    more: dict[str, Tensor] = field(default_factory=dict)  # further states of a net, each (B, ...)

    def map(self, f: Callable[[Tensor], Tensor]) -> "Carry":
        """f on every tensor."""
        batch = {name: f(value) for name, value in self.batch.items()}
        more = {name: f(value) for name, value in self.more.items()}
        return Carry(f(self.y), f(self.z), f(self.steps), f(self.halted), batch, more)

    @staticmethod
    def cat(parts: "list[Carry]") -> "Carry":
        """Pieces of a batch, joined again."""

        def join(tensors: list) -> Tensor | dict:
            if isinstance(tensors[0], dict):
                return {name: join([t[name] for t in tensors]) for name in tensors[0]}
            return torch.cat(tensors)

        names = [field.name for field in dataclasses.fields(Carry)]
        return Carry(*(join([getattr(part, name) for part in parts]) for name in names))


@dataclass
class Output:
    logits: Tensor  # (B, L, V)
    q_halt: Tensor  # (B,)
    q_continue: Tensor  # (B,)
    target_continue: Tensor | None = None  # (B,) in 0..1, with the continue loss
    aux: dict[str, Tensor] = field(default_factory=dict)  # what a net says besides


class Net(nn.Module):
    """n_layers blocks, (B, P+L, D) -> (B, P+L, D); the only thing that is applied recursively."""

    def __init__(self, cfg: ModelConfig, shape: Shape, planes: int = 1):
        super().__init__()
        pre = cfg.norm_place == "pre"
        blocks = []
        for _ in range(cfg.n_layers):
            mixers = make_mixers(cfg, shape, planes)
            mlp = make_mlp(cfg, shape, planes)
            blocks.append(Block(mixers, mlp, cfg.norm, pre))
        self.blocks = nn.ModuleList(blocks)
        self.last_norm = Norm(cfg.norm) if pre else nn.Identity()

    def forward(self, h: Tensor, angles: Tensor | None) -> Tensor:
        for block in self.blocks:
            h = block(h, angles)
        return self.last_norm(h)


def make_mixers(cfg: ModelConfig, shape: Shape, planes: int = 1) -> list[nn.Module]:
    """The token mixing of one block; two parts for "conv+attention", none for "groups"."""
    if cfg.mixer == "groups":
        return []
    make = {
        "attention": lambda: Attention(cfg.dim, cfg.heads),
        "mlp": lambda: PositionMLP(
            cfg.prefix + shape.seq_len, cfg.mlp, cfg.position_expansion, cfg.multiple
        ),
        "conv": lambda: Conv(cfg.dim, cfg.prefix, (shape.rows, shape.cols)),
        "pool": lambda: Pool(cfg.dim, (shape.box_rows, shape.box_cols), planes),
    }
    return [make[part]() for part in cfg.mixer.split("+")]


def make_mlp(cfg: ModelConfig, shape: Shape, planes: int = 1) -> MLP:
    """The channel mixing of one block; for "groups" it mixes tokens too."""
    sizes = cfg.dim, cfg.mlp, cfg.expansion, cfg.multiple
    if cfg.mixer == "groups":
        return GroupMLP(*sizes, (shape.box_rows, shape.box_cols), planes)
    return MLP(*sizes)


def make_states(net: nn.Module, init: str, draw: Callable[[], Tensor]) -> None:
    """The first y and z of a net: vectors that learn, or fixed ones.

    None with init = "random", which draws them for every example.
    """
    for name in ("y0", "z0"):
        if init == "learned":
            setattr(net, name, nn.Parameter(draw()))
        elif init == "fixed":
            net.register_buffer(name, draw())


class Trainable(nn.Module):
    """What train.py asks of a net, where most have nothing to say."""

    planes = 1  # positions per cell

    def states_of(self, questions, seed: int) -> tuple[Tensor, Tensor]:
        """The first y and z of these puzzles, each broadcastable to (B, P+L, D), for evaluation.

        questions: a numpy array (B, L) or (B, F). With init = "random" the noise of a puzzle is a
        function of the seed and its question. So an evaluation is the same for any batch size,
        pieces of a batch and number of processes.
        """
        B, L = questions.shape
        if self.cfg.init != "random":
            return self.first_states(B, L)
        g = torch.Generator(next(self.parameters()).device)
        states = []
        for question in questions:
            key = hashlib.sha256(f"{seed} ".encode() + question.tobytes()).digest()
            g.manual_seed(int.from_bytes(key[:8], "little") >> 1)
            states.append(self.first_states(1, L, g))
        y, z = zip(*states)
        return torch.cat(y), torch.cat(z)

    def exploration(self, B: int, g: torch.Generator) -> Tensor | None:
        """Steps demanded of each row before it may halt (B,)."""
        return None

    def noise(self, B: int, g: torch.Generator) -> Tensor | None:
        """Random numbers that a step in training needs, (B, ...)."""
        return None

    def rates(self) -> dict[str, float] | None:
        """Factors on the learning rates of parts of the net; None: one rate for all."""
        return None

    def frozen(self, step: int) -> list[Tensor]:
        """Parameters that do not move at this step, though later ones may move them."""
        return []

    def after_backward(self, norm: Tensor, rows: int) -> dict[str, Tensor]:
        """Further metric sums, once gradients are there. norm: of all of them."""
        return {}

    def means(self, total: dict[str, float]) -> dict[str, float]:
        """Figures for metrics.jsonl, of the metric sums since the last line."""
        return {}


class TRM(Trainable):
    """The model. Parameters are fp32; activations have the dtype `compute` (float32, or bfloat16).

    A task with other questions or answers changes make_question, question, outputs and answer.
    """

    def __init__(self, cfg: ModelConfig, shape: Shape, compute: torch.dtype = torch.float32):
        super().__init__()
        self.cfg, self.shape, self.compute = cfg, shape, compute
        D = cfg.dim
        self.make_question()
        if cfg.prefix:
            self.puzzles = nn.Parameter(torch.zeros(shape.num_puzzles, D))
        if cfg.positions == "learned":
            self.places = nn.Parameter(trunc_normal(cfg.prefix + shape.seq_len, D, std=D**-0.5))
        self.net = Net(cfg, shape, self.planes)
        self.net_y = Net(cfg, shape, self.planes) if cfg.two_nets else None
        self.head = Linear(D, self.outputs)
        self.q_head = nn.Linear(D, 2)  # halt, continue
        nn.init.zeros_(self.q_head.weight)
        nn.init.constant_(self.q_head.bias, -5)
        make_states(self, cfg.init, lambda: trunc_normal(D, std=1.0))

    # ------------------------------------------------------------ the recursion

    def recurse(
        self, x: Tensor, y: Tensor, z: Tensor, angles: Tensor | None
    ) -> tuple[Tensor, Tensor]:
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
        if first_y.requires_grad and self.cfg.grad_cycles < self.cfg.T:
            # Learned y0, z0 act through the recursions above: hand them the gradient, same bits.
            y = y + (first_y - first_y.detach())
            z = z + (first_z - first_z.detach())
        for _ in range(self.cfg.grad_cycles):
            y, z = self.recurse(x, y, z, angles)
        return y, z

    # ------------------------------------------------------------ in and out

    def make_question(self) -> None:
        """The parameters of `question`."""
        D = self.cfg.dim
        self.tokens = nn.Parameter(trunc_normal(self.shape.vocab_size, D, std=D**-0.5))

    def question(self, inputs: Tensor) -> Tensor:
        """Question tokens (B, L) -> (B, L, D), of variance 1 / D."""
        return F.embedding(inputs, self.tokens)

    @property
    def outputs(self) -> int:
        """Numbers that the head gives per position."""
        return self.shape.vocab_size

    def answer(self, cells: Tensor) -> Tensor:
        """y without the prefix (B, L, D) -> logits (B, L, V), fp32."""
        return self.head(cells).float()

    def embed(self, batch: dict[str, Tensor], context: Tensor | None = None) -> Tensor:
        """The question -> x (B, P+L, D).

        `context` (B, P, D), if given, fills the prefix, else the puzzle embedding.
        """
        x = self.question(batch["inputs"])
        if self.cfg.prefix:
            if context is None:
                first = F.embedding(batch["puzzle"], self.puzzles)[:, None]
                context = F.pad(first, (0, 0, 0, self.cfg.prefix - 1))
            x = torch.cat([context, x], 1)
        if self.cfg.positions == "learned":
            x = 0.5**0.5 * (x + self.places)
        return (math.sqrt(self.cfg.dim) * x).to(self.compute)

    def angles(self, x: Tensor) -> Tensor | None:
        """Rotary angles for x (B, P+L, D); computed once per supervision step, for any length."""
        if "attention" not in self.cfg.mixer or not self.cfg.positions.startswith("rope"):
            return None
        width, P = self.cfg.dim // self.cfg.heads, self.cfg.prefix
        if self.cfg.positions == "rope":
            return rope_1d(x.shape[1], width, device=x.device)
        rows, cols = self.shape.sides(x.shape[1] - P)
        return rope_2d(rows, cols, width, P, device=x.device)

    def read(self, y: Tensor) -> Output:
        """The answer's logits (B, L, V) and the q values, in fp32."""
        seen = y[:, 0] if self.cfg.q_from == "first" else y.mean(1)
        q = self.q_head(seen.float())
        return Output(self.answer(y[:, self.cfg.prefix :]), q[:, 0], q[:, 1])

    # ------------------------------------------------------------ slots

    def length(self, L: int) -> int:
        """Positions of the states for L cells."""
        return self.cfg.prefix + L * self.planes

    def first_states(
        self, B: int, L: int, g: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """y and z of fresh slots, each broadcastable to (B, P+L, D).

        init = "random" draws unit normal numbers from g (None: the global generator).
        """
        if self.cfg.init != "random":
            return self.y0.to(self.compute), self.z0.to(self.compute)
        size, device = (2, B, self.length(L), self.cfg.dim), self.q_head.weight.device
        y, z = torch.randn(size, generator=g, device=device).to(self.compute)
        return y, z

    def start(self, batch: dict[str, Tensor]) -> Carry:
        """A carry of halted slots: the first refill fills all of them. The batch gives shapes."""
        B, L = batch["inputs"].shape
        device = batch["inputs"].device
        y = torch.zeros(B, self.length(L), self.cfg.dim, device=device, dtype=self.compute)
        steps = torch.zeros(B, dtype=torch.long, device=device)
        halted = torch.ones(B, dtype=torch.bool, device=device)
        empty = {name: torch.zeros_like(value) for name, value in batch.items()}
        return Carry(y, y.clone(), steps, halted, empty)

    def refill(
        self,
        carry: Carry,
        batch: dict[str, Tensor],
        states: tuple[Tensor, Tensor] | None = None,
    ) -> Carry:
        """Halted slots take their row of the new batch, fresh y and z, and step 0.

        Running slots ignore it. No host sync.
        """
        B, L = batch["inputs"].shape
        y0, z0 = states or self.first_states(B, L)
        new = carry.halted

        def pick(fresh: Tensor, old: Tensor) -> Tensor:
            return torch.where(new.view(-1, *[1] * (old.dim() - 1)), fresh, old)

        examples = {name: pick(value, carry.batch[name]) for name, value in batch.items()}
        steps = carry.steps.masked_fill(new, 0)
        y, z = pick(y0, carry.y), pick(z0, carry.z)
        return Carry(y, z, steps, torch.zeros_like(new), examples, carry.more)

    def step(
        self, carry: Carry, context: Tensor | None = None, min_steps: Tensor | None = None
    ) -> tuple[Carry, Output]:
        """One supervision step of every slot.

        min_steps (B,), from `exploration`, forbids halting before that step. In eval mode slots
        halt at n_sup only; whoever evaluates reads q_halt and takes finished rows out.
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
            out.target_continue = self.promise(carry, context, last)
        return carry, out

    @torch.no_grad()
    def promise(self, carry: Carry, context: Tensor | None, last: Tensor) -> Tensor:
        """What one more step would promise (B,): Q-learning without a replay buffer."""
        y, _ = self(self.embed(carry.batch, context), carry.y, carry.z)
        ahead = self.read(y)
        best = torch.where(last, ahead.q_halt, torch.maximum(ahead.q_halt, ahead.q_continue))
        return best.sigmoid()

    def loss(self, out: Output, carry: Carry) -> tuple[Tensor, dict[str, Tensor]]:
        return trm_loss(self.cfg, out, carry)

    def exploration(self, B: int, g: torch.Generator) -> Tensor | None:
        """0 for most rows, or with probability `explore` one of 2..n_sup."""
        cfg = self.cfg
        if not (cfg.halting and cfg.explore):
            return None
        demanded = 1
        if cfg.n_sup > 1:
            demanded = torch.randint(2, cfg.n_sup + 1, (B,), generator=g, device=g.device)
        chosen = torch.rand(B, generator=g, device=g.device) < cfg.explore
        return torch.where(chosen, demanded, 0)


def complexity(cfg: ModelConfig) -> float:
    """T * sum over layers of n * phi^layer, phi the golden ratio. Constant for fixed T and n."""
    phi = (1 + 5**0.5) / 2
    return cfg.T * sum(cfg.n * phi**layer for layer in range(cfg.n_layers))


def trm_loss(cfg: ModelConfig, out: Output, carry: Carry) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, metric sums on the device), both summed over the rows.

    The loss of a row: cross-entropy + q_weight * (halting [+ continue]) BCE [+ penalties].
    The caller divides by the global batch size. As in the public code, these metrics cover the
    rows that halted in this step: count, cells, exact, q_accuracy (halting head right about
    exactness), steps. The loss parts cover all rows.
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
        parts["continue_loss"] = F.binary_cross_entropy_with_logits(
            out.q_continue, out.target_continue, reduction="sum"
        )
        loss = loss + cfg.q_weight * parts["continue_loss"]
    if cfg.ponder_weight:
        parts["ponder"] = (1 - out.q_halt.sigmoid()).sum()  # expected further steps, one step ahead
        loss = loss + cfg.ponder_weight * parts["ponder"]
    if cfg.complexity_weight:
        loss = loss + cfg.complexity_weight * complexity(cfg) * len(labels)
    done, rows = carry.halted, carry.steps.new_full((), len(labels))
    sums = {"rows": rows, "loss": loss} | parts
    sums |= {
        "count": done.sum(),
        "cells": (cells * done).sum(),
        "exact": (exact & done).sum(),
        "q_accuracy": (((out.q_halt > 0) == exact) & done).sum(),
        "steps": (carry.steps * done).sum(),
    }
    return loss, {name: value.detach() for name, value in sums.items()}


# ---------------------------------------------------------------- published checkpoints

PUBLIC_NAMES = {
    "embed_tokens.embedding_weight": "tokens",
    "embed_pos.embedding_weight": "places",
    "puzzle_emb.weights": "puzzles",
    "H_init": "y0",
    "L_init": "z0",
    "lm_head.weight": "head.weight",
    "q_head.weight": "q_head.weight",
    "q_head.bias": "q_head.bias",
}
PUBLIC_PARTS = {  # of a block
    "self_attn.qkv_proj": "mixers.0.qkv",
    "self_attn.o_proj": "mixers.0.out",
    "mlp_t.gate_up_proj": "mixers.0.mlp.up",
    "mlp_t.down_proj": "mixers.0.mlp.down",
    "mlp.gate_up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
}


def public_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the public TRM code under our names, for `TRM.load_state_dict`.

    Reads checkpoints with or without the `_orig_mod.model.` prefix.
    Raises KeyError on a name that it does not know.
    """
    renamed = {}
    for name, tensor in state.items():
        short = name.split("inner.", 1)[-1]
        if short.startswith("L_level.layers."):
            _, _, layer, part = short.split(".", 3)
            part = PUBLIC_PARTS[part.removesuffix(".weight")]
            renamed[f"net.blocks.{layer}.{part}.weight"] = tensor
        else:
            renamed[PUBLIC_NAMES[short]] = tensor
    return renamed


def sizes(state: dict[str, Tensor]) -> dict:
    """What a state dict under our names tells about its net, by the keys of [model] where it can.

    T, n and the number of heads leave no trace in the weights.
    """
    blocks = [name.split(".")[2] for name in state if name.startswith("net.blocks.")]
    found = {
        "model.n_layers": len(set(blocks)),
        "model.mixer": "mlp" if "net.blocks.0.mixers.0.mlp.up.weight" in state else "attention",
        "model.positions = 'learned'": "places" in state,
        "a puzzle embedding": "puzzles" in state,
    }
    if "tokens" in state:
        found["kinds of tokens"], found["model.dim"] = state["tokens"].shape
    if found["model.mixer"] == "mlp":
        positions = state["net.blocks.0.mixers.0.mlp.up.weight"].shape[1]
        found["model.prefix + cells"] = positions
    return found


# ---------------------------------------------------------------- cost


def net_flop(cfg: ModelConfig, shape: Shape, batch: int, planes: int = 1) -> float:
    """FLOP of one forward call of the net.

    Two per multiply-add of its matrix products and convolutions, nothing else. Sums over groups of
    cells are no products, though "groups" computes them so.
    planes: positions per cell. Raises KeyError for a mixer whose cost is not known.
    """
    D = cfg.dim
    L = cfg.prefix + shape.seq_len * planes
    kinds = 2 + (shape.box_rows > 0) + (planes > 1)  # groups that pooling runs over
    groups = math.isqrt(shape.seq_len)  # some products are per group, not per cell
    gated = cfg.mlp.endswith("glu")  # these have three matrices

    def inner(width: int, expansion: float) -> int:
        return round_up(expansion * width * (2 / 3 if gated else 1), cfg.multiple)

    def mlp(width: int, expansion: float) -> int:
        return (3 if gated else 2) * width * inner(width, expansion)

    wide = (2 if gated else 1) * inner(D, cfg.expansion)  # rows of the channel MLP's first matrix
    per_position = {
        "attention": 4 * D * D + 2 * L * D,
        "conv": 9 * D,
        "mlp": mlp(L, cfg.position_expansion) * D / L,
        "pool": 2 * kinds * D * D + kinds * D * D / groups,
        "groups": kinds * wide * (D + wide) / groups,  # beside the MLP below
    }
    mixing = sum(per_position[part] for part in cfg.mixer.split("+"))
    return 2 * batch * L * cfg.n_layers * (mixing + mlp(D, cfg.expansion))


def step_calls(cfg: ModelConfig) -> int:
    """Forward calls of the net in one training step; a call with gradient counts as three."""
    return (cfg.T + 2 * cfg.grad_cycles + cfg.T * cfg.continue_loss) * (cfg.n + 1)


if __name__ == "__main__":
    raise SystemExit("model.py is a part to import; python train.py begins, README.md says more")
