"""The pieces of a tiny recursive net: linear maps, norms, positions, mixing, MLPs, losses.

Nothing here knows about tasks, recursion or training. Imports torch only.
Weights stay fp32. A layer computes in the dtype of its input.
Shapes: B batch, L positions (P prefix positions first), D width, H heads, V vocabulary.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def trunc_normal(*shape: int, std: float) -> Tensor:
    """Normal numbers cut at two sigma, with the standard deviation `std`. LeCun init of TRM.

    The cut makes them narrower, so sigma is larger than `std`.
    """
    sigma = std / 0.8796256610342398  # the standard deviation of a unit normal cut at +-2
    return nn.init.trunc_normal_(torch.empty(shape), std=sigma, a=-2 * sigma, b=2 * sigma)


class Linear(nn.Module):
    """x W^T without bias. The weight is cast to the dtype of x: bf16 needs no autocast."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.weight = nn.Parameter(trunc_normal(d_out, d_in, std=d_in**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


# ---------------------------------------------------------------- norms


class RMSNorm(torch.autograd.Function):
    """RMSNorm without gain as one operation, for CPUs. It saves a tenth of a small net's step.

        r = sqrt(mean(h^2) + 1e-5)
        out = h / r
        dh = (d - out * mean(d * out)) / r

    On CPUs F.rms_norm is many operations, and its backward keeps h. This one keeps `out`, which
    the next layer keeps anyway.
    """

    @staticmethod
    def forward(ctx, h: Tensor) -> Tensor:
        wide = h.to(torch.promote_types(h.dtype, torch.float32))
        scale = (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt()  # 1 / r
        out = (wide * scale).to(h.dtype)
        ctx.save_for_backward(out, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d: Tensor) -> Tensor:
        out, scale = ctx.saved_tensors
        wide = scale.dtype
        mean = (d * out).mean(-1, keepdim=True, dtype=wide)
        dh = torch.addcmul(d.to(wide), out.to(wide), mean, value=-1) * scale
        return dh.to(d.dtype)


class Norm(nn.Module):
    """RMSNorm h / sqrt(mean(h^2) + 1e-5), or LayerNorm, over the last axis. TRM learns no gain.

    kind: "rms" or "layer". Computes in fp32 inside.
    """

    def __init__(self, kind: str):
        super().__init__()
        self.norm = {"rms": F.rms_norm, "layer": F.layer_norm}[kind]

    def forward(self, h: Tensor) -> Tensor:
        if self.norm is F.rms_norm and h.device.type == "cpu":
            return RMSNorm.apply(h)
        return self.norm(h, h.shape[-1:], eps=1e-5)


# ---------------------------------------------------------------- positions


def rope_1d(length: int, dim: int, base: float = 10_000.0, device=None) -> Tensor:
    """Rotary angles (length, dim / 2) in radians, fp32 (arXiv 2104.09864).

    Position p turns pair i by p * base^(-2i / dim).
    """
    frequency = base ** (-torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
    return torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequency)


def rope_2d(
    rows: int, cols: int, dim: int, prefix: int = 0, base: float = 10_000.0, device=None
) -> Tensor:
    """Axial rotary angles: half of each head turns with the row, half with the column.

    Returns (prefix + rows * cols, dim / 2) in radians, fp32. The prefix positions are a row of
    their own, (0, 0..prefix-1), and the grid begins in the row below.
    Raises ValueError unless dim is a multiple of 4. Source: the maze runs of arXiv 2601.19085.
    """
    if dim % 4:
        raise ValueError(f"rope_2d needs a head width that is a multiple of 4, got {dim}")
    top = 1 if prefix else 0  # the grid's first row
    row_angles = rope_1d(top + rows, dim // 2, base, device)
    col_angles = rope_1d(max(cols, prefix), dim // 2, base, device)
    prefix_angles = torch.cat([row_angles[:1].expand(prefix, -1), col_angles[:prefix]], -1)
    cell_rows = row_angles[top:].repeat_interleave(cols, 0)  # (rows * cols, dim / 4)
    cell_cols = col_angles[:cols].repeat(rows, 1)
    return torch.cat([prefix_angles, torch.cat([cell_rows, cell_cols], -1)])


def rotate(q: Tensor, angles: Tensor) -> Tensor:
    """q (B, L, H, D/H) with the pairs (i, i + half the head) turned by angles (L, D/H/2).

    Computed in fp32, returned in the dtype of q.
    """
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]  # (L, 1, D/H/2), the same for heads
    a, b = q.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(q.dtype)


# ---------------------------------------------------------------- channel mixing


def round_up(value: float, multiple: int) -> int:
    """The value, rounded, then up to the next multiple: (16.2, 5) -> 20."""
    return math.ceil(round(value) / multiple) * multiple


ACTIVATIONS = {"swiglu": F.silu, "reglu": F.relu, "silu": F.silu, "gelu": F.gelu}


class MLP(nn.Module):
    """Mixes the last axis, of any width.

        swiglu, reglu   down(f(gate) * up), f = SiLU or ReLU (arXiv 2002.05202)
        silu, gelu      down(f(up)), f = SiLU or GELU

    The gated ones have three matrices and the inner width expansion * width * 2/3, the plain ones
    two matrices and expansion * width. Both are rounded up to `multiple` (256 in TRM).
    """

    def __init__(
        self, width: int, kind: str = "swiglu", expansion: float = 4.0, multiple: int = 256
    ):
        super().__init__()
        self.gated = kind.endswith("glu")
        self.activation = ACTIVATIONS[kind]
        inner = round_up(expansion * width * (2 / 3 if self.gated else 1), multiple)
        self.up = Linear(width, 2 * inner if self.gated else inner)  # gated: gate first, then up
        self.down = Linear(inner, width)

    def forward(self, h: Tensor) -> Tensor:
        up, down = self.up.weight.to(h.dtype), self.down.weight.to(h.dtype)
        # Tensor cores want rows of 16 bytes, 97 positions have none: zeros change no result.
        pad = -h.shape[-1] % 8 if h.is_cuda else 0
        if pad:
            h, up, down = F.pad(h, (0, pad)), F.pad(up, (0, pad)), F.pad(down, (0, 0, 0, pad))
        out = F.linear(self.activate(F.linear(h, up)), down)
        return out[..., :-pad] if pad else out

    def activate(self, u: Tensor) -> Tensor:
        """What happens between the matrices. A gated MLP halves the last axis."""
        if self.gated:
            gate, u = u.chunk(2, -1)
            return self.activation(gate) * u
        return self.activation(u)


# ---------------------------------------------------------------- token mixing
# Each maps (B, L, D) to (B, L, D).


class Attention(nn.Module):
    """Full self-attention without mask or bias, with or without rotary positions."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim)
        self.out = Linear(dim, dim)

    def forward(self, h: Tensor, angles: Tensor | None = None) -> Tensor:
        B, L, D = h.shape
        qkv = self.qkv(h).view(B, L, 3, self.heads, D // self.heads)
        q, k, v = qkv.unbind(2)  # each (B, L, H, D/H)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # each (B, H, L, D/H)
        if h.device.type == "cpu" and h.dtype.itemsize == 2:
            # On CPUs the backward of the bf16 kernel is 3.5 times slower than fp32's.
            q, k, v = q.float(), k.float(), v.float()
        a = F.scaled_dot_product_attention(q, k, v).to(h.dtype)
        return self.out(a.transpose(1, 2).reshape(B, L, D))


class Conv(nn.Module):
    """Depthwise 3x3 convolution over the grid. A prefix is left out.

    Its weights do not depend on the grid's size. sides: (rows, columns) of a grid that is no
    square; (0, 0): a square of whatever size the input has.
    """

    def __init__(self, dim: int, prefix: int = 0, sides: tuple[int, int] = (0, 0)):
        super().__init__()
        self.prefix, self.sides = prefix, sides
        self.weight = nn.Parameter(trunc_normal(dim, 1, 3, 3, std=1 / 3))

    def forward(self, h: Tensor, angles: Tensor | None = None) -> Tensor:
        B, L, D = h.shape
        side = math.isqrt(L - self.prefix)
        sides = self.sides if self.sides[0] else (side, side)
        grid = h[:, self.prefix :].unflatten(1, sides).permute(0, 3, 1, 2)  # (B, D, rows, cols)
        out = F.conv2d(grid, self.weight.to(h.dtype), padding=1, groups=D)
        out = out.permute(0, 2, 3, 1).flatten(1, 2)
        return F.pad(out, (0, 0, self.prefix, 0)) if self.prefix else out  # padding by 0 would copy


class Pool(nn.Module):
    """Gated pooling over the groups of a cell: its row, its column and its box.

        u, g = split(W_in h)
        m_k = sum over the group of u_k * silu(g_k) / sqrt(group size)
        out = W_out [m_1, m_2, m_3]

    box: (rows, columns) of a box; (0, 0): the grid has none. digits > 1: a cell holds so many
    positions, one per digit. Then the groups above take in the same digit only, and the digits of
    a cell are a fourth group.

    Equivariant under the permutations of positions that map rows to rows, columns to columns,
    boxes to boxes and digits to digits: all symmetries of Sudoku but the transpose, which swaps
    the weights of rows and columns.

    W_out is applied to the pooled vectors, one per group and not one per cell: the same sum for a
    fraction of the work.
    """

    def __init__(self, dim: int, box: tuple[int, int] = (0, 0), digits: int = 1):
        super().__init__()
        self.box, self.digits = box, digits
        self.groups = ["row", "column"]  # in the order of the weights
        if box[0]:
            self.groups.append("box")
        if digits > 1:
            self.groups.append("cell")
        self.into = Linear(dim, 2 * len(self.groups) * dim)
        self.out = Linear(len(self.groups) * dim, dim)

    def forward(self, h: Tensor, angles: Tensor | None = None) -> Tensor:
        B, L, D = h.shape
        side = math.isqrt(L // self.digits)
        u, g = self.into(h).chunk(2, -1)
        gated = (u * F.silu(g)).view(B, side, side, self.digits, len(self.groups), D)
        scaled = side**-0.5 * self.out.weight.to(h.dtype)
        m = dict(zip(self.groups, gated.unbind(4)))  # each (B, side, side, digits, D)
        weight = dict(zip(self.groups, scaled.split(D, -1)))  # each (D, D)
        out = self.pool_rows(m["row"], weight["row"])
        out = out + self.pool_columns(m["column"], weight["column"])
        if "cell" in m:
            out = out + self.pool_cells(m["cell"], weight["cell"])
        if "box" in m:
            out = self.add_boxes(out, m["box"], weight["box"])
        return out.reshape(B, L, D)

    # Each takes the gated vectors of its group, and its part of W_out.

    def pool_rows(self, m: Tensor, weight: Tensor) -> Tensor:
        return F.linear(m.sum(2), weight)[:, :, None]  # (B, side, 1, digits, D)

    def pool_columns(self, m: Tensor, weight: Tensor) -> Tensor:
        return F.linear(m.sum(1), weight)[:, None]  # (B, 1, side, digits, D)

    def pool_cells(self, m: Tensor, weight: Tensor) -> Tensor:
        return F.linear(m.sum(3), weight)[:, :, :, None]  # (B, side, side, 1, D)

    def add_boxes(self, out: Tensor, m: Tensor, weight: Tensor) -> Tensor:
        """out, and to every cell the pooled vector of its box.

        One axis at a time: a sum over two axes apart, as in backward too, takes 8 times longer on
        CPUs.
        """
        B, side, _, S, D = m.shape
        r, c = self.box
        boxes = m.reshape(B, side // r, r, side // c, c, S, D).sum(4).sum(2)
        pooled = F.linear(boxes, weight)[:, :, :, None]  # (B, side/r, side/c, 1, S, D)
        pooled = pooled.expand(-1, -1, -1, c, -1, -1).reshape(B, side // r, 1, side, S, D)
        return out.view(B, side // r, r, side, S, D) + pooled


class GroupMLP(MLP):
    """An MLP that reads the groups of its cell. It mixes positions and channels in one part.

        p_k = pool(cells of the group k)
        out = W_down act(W_up h + sum over the groups of V_k silu(W_k p_k))

    The groups, `box` and `digits` are those of Pool. pool: the first half of the channels is
    summed and divided by sqrt(group size). The others tell log mean exp, a soft maximum: "is it in
    here already?". act: as in MLP.

    Rows and columns share W_k and V_k. So it is equivariant under the symmetries of Pool, and with
    square boxes under the transpose too: all symmetries of Sudoku.

    W_k and V_k are applied to the pooled vectors, one per group and not one per cell. Cells go to
    groups and back as products with a matrix of zeros and ones (`group_members`): on CPUs that
    takes two thirds of the time of sums over the axes of a grid.
    """

    def __init__(
        self,
        width: int,
        kind: str,
        expansion: float,
        multiple: int,
        box: tuple[int, int] = (0, 0),
        digits: int = 1,
    ):
        super().__init__(width, kind, expansion, multiple)
        self.box, self.digits = box, digits
        inner = len(self.up.weight)

        def read() -> nn.Module:
            return nn.Sequential(Linear(width, inner), nn.SiLU(), Linear(inner, inner))

        self.line = read()  # rows and columns
        self.area = read() if box[0] else None  # boxes
        self.cell = read() if digits > 1 else None  # the digits of a cell

    def forward(self, h: Tensor) -> Tensor:
        B, L, D = h.shape
        S, cells = self.digits, L // self.digits
        side = math.isqrt(cells)
        members = group_members(side, self.box, dtype=h.dtype, device=h.device)
        members = members.expand(B, -1, -1)  # (B, G, cells)
        total, soft = h.split([D // 2, D - D // 2], -1)
        terms = torch.cat([total, soft.exp()], -1).view(B, cells, S, D)
        pooled = self.finish((members @ terms.flatten(2)).view(B, -1, S, D), side)  # (B, G, S, D)
        read = self.line(pooled[:, : 2 * side])  # (B, G, S, W)
        if self.area is not None:
            read = torch.cat([read, self.area(pooled[:, 2 * side :])], 1)
        out = self.up(h).view(B, cells, S, -1)
        if self.cell is not None:
            out = out + self.cell(self.finish(terms.sum(2, True), S))
        out = torch.baddbmm(out.flatten(2), members.mT, read.flatten(2))
        return self.down(self.activate(out.view(B, L, -1)))

    def finish(self, sums: Tensor, size: int) -> Tensor:
        """Sums over groups of `size` cells (..., D) -> what the groups tell (..., D)."""
        D = sums.shape[-1]
        total, soft = sums.split([D // 2, D - D // 2], -1)
        soft = (soft.float().log() - math.log(size)).to(sums.dtype)
        return torch.cat([total * size**-0.5, soft], -1)


def group_members(side: int, box: tuple[int, int] = (0, 0), **like) -> Tensor:
    """Which cells of a square grid are in which group: zeros and ones (G, cells).

    The rows, then the columns, then the boxes of box[0] x box[1] cells, if any.
    like: dtype and device.
    """
    eye, ones = partial(torch.eye, **like), partial(torch.ones, 1, **like)
    groups = [torch.kron(eye(side), ones(side)), torch.kron(ones(side), eye(side))]
    if box[0]:
        r, c = box
        bands = torch.kron(eye(side // r), ones(r))  # which rows are in which row of boxes
        stacks = torch.kron(eye(side // c), ones(c))
        groups.append(torch.kron(bands, stacks))
    return torch.cat(groups)


class PositionMLP(nn.Module):
    """The token mixing of the MLP-mixer: an MLP over the L positions, the same for all channels."""

    def __init__(self, length: int, kind: str, expansion: float, multiple: int):
        super().__init__()
        self.mlp = MLP(length, kind, expansion, multiple)

    def forward(self, h: Tensor, angles: Tensor | None = None) -> Tensor:
        return self.mlp(h)  # the block hands it (B, D, L)


class Block(nn.Module):
    """Token mixing, then channel mixing, each with a residual and a norm.

    Post-norm (TRM): h = norm(h + f(h)). Pre-norm: h = h + f(norm(h)), and the net ends with one
    more norm. Around an MLP over positions all of it runs on the transposed (B, D, L): there the
    norm runs over positions.
    """

    def __init__(self, mixers: list[nn.Module], mlp: MLP, norm: str = "rms", pre: bool = False):
        super().__init__()
        self.mixers = nn.ModuleList(mixers)
        self.mlp = mlp
        self.norm = Norm(norm)
        self.pre = pre

    def residual(self, h: Tensor, f, *args) -> Tensor:
        if self.pre:
            return h + f(self.norm(h), *args)
        return self.norm(h + f(h, *args))

    def forward(self, h: Tensor, angles: Tensor | None = None) -> Tensor:
        for mixer in self.mixers:
            if isinstance(mixer, PositionMLP):
                h = self.residual(h.transpose(1, 2), mixer).transpose(1, 2)
            else:
                h = self.residual(h, mixer, angles)
        return self.residual(h, self.mlp)


# ---------------------------------------------------------------- losses


def stablemax_log_probs(logits: Tensor) -> Tensor:
    """log of s(v) / sum s(v) over the last axis (arXiv 2501.04697).

    s(v) = v + 1 for v >= 0, else 1 / (1 - v).
    """
    s = torch.where(logits < 0, 1 / (1 - logits.clamp(max=0)), logits + 1)
    return s.log() - s.sum(-1, keepdim=True).log()


def log_probabilities(logits: Tensor, kind: str) -> Tensor:
    """Over the last axis, fp32. kind: "stablemax" or "softmax"."""
    logits = logits.float()
    return stablemax_log_probs(logits) if kind == "stablemax" else logits.log_softmax(-1)


def cross_entropy(logits: Tensor, labels: Tensor, kind: str = "stablemax") -> Tensor:
    """Per row the mean cross-entropy of its labelled positions: (B, L, V), (B, L) -> (B,), fp32.

    A negative label (-100 by custom) means not labelled. kind: "stablemax" or "softmax".
    """
    log_probs = log_probabilities(logits, kind)
    labelled = labels >= 0
    loss = -log_probs.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)  # (B, L)
    return (loss * labelled).sum(-1) / labelled.sum(-1).clamp(min=1)


if __name__ == "__main__":
    raise SystemExit("layers.py is a part to import; python train.py begins, README.md says more")
