"""Update rules: who gets which optimizer, Adam-atan2, Muon in batches, sign-SGD, GrokFast's gradient filters, the EMA of weights.

AdamW, Muon's rule and the averaged model come from torch. Each class here stands alone and can be copied.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class AdamAtan2(torch.optim.Optimizer):
    """Adam whose update is lr * atan2(m_hat, sqrt(v_hat)), with decoupled decay; it has no epsilon (arXiv 2407.05872)."""

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
    ):
        super().__init__(
            params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "step": 0}
        )

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p] = {"m": torch.zeros_like(p), "v": torch.zeros_like(p)}
            grads = [p.grad for p in params]
            m, v = ([self.state[p][k] for p in params] for k in "mv")
            group["step"] += 1
            (b1, b2), t = group["betas"], group["step"]
            torch._foreach_lerp_(m, grads, 1 - b1)
            torch._foreach_mul_(v, b2)
            torch._foreach_addcmul_(v, grads, grads, 1 - b2)
            root = torch._foreach_sqrt(
                v
            )  # atan2 sees only the ratio: both bias corrections go into one factor
            torch._foreach_mul_(root, (1 - b1**t) / math.sqrt(1 - b2**t))
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(
                params, [torch.atan2(a, b) for a, b in zip(m, root)], alpha=-group["lr"]
            )


class Muon(torch.optim.Muon):
    """torch.optim.Muon with its matrices orthogonalised in batches of one shape, and off CUDA in fp32.

    The same rule and state dict; bf16, which torch takes everywhere, makes the step 10 times slower on CPUs without bf16 units.
    """

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(tuple(p.shape), []).append(p)
            lr, momentum = group["lr"], group["momentum"]
            for (rows, cols), params in shapes.items():
                grads = [p.grad for p in params]
                buffers = [
                    self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in params
                ]
                torch._foreach_lerp_(buffers, grads, 1 - momentum)
                updates = (
                    torch._foreach_lerp(grads, buffers, momentum) if group["nesterov"] else buffers
                )
                updates = orthogonal(
                    torch.stack(updates), group["ns_coefficients"], group["ns_steps"]
                ).to(params[0].dtype)
                torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
                torch._foreach_add_(
                    params, list(updates.unbind()), alpha=-lr * max(1, rows / cols) ** 0.5
                )


def orthogonal(g: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Newton-Schulz iteration towards U V^T of each matrix U S V^T in g (K, rows, cols), as in Muon."""
    a, b, c = coefficients
    x = g.bfloat16() if g.is_cuda else g.float()
    x = x.mT if g.shape[1] > g.shape[2] else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if g.shape[1] > g.shape[2] else x


class SignSGD(torch.optim.Optimizer):
    """p -= lr * sign(grad) with decoupled decay, on the rows that got a gradient only: for embedding tables of identifiers."""

    def __init__(self, params: Iterable, lr: float = 1e-4, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    present = (p.grad != 0).any(-1, keepdim=True)  # (rows, 1)
                    p.mul_(1 - group["lr"] * group["weight_decay"] * present)
                    p.sub_(group["lr"] * p.grad.sign())


def make_optimizers(
    net: nn.Module, cfg, rates: dict[str, float] | None = None
) -> list[torch.optim.Optimizer]:
    """The optimizers of a TrainConfig. Each group remembers its full rate as `peak`; `set_rates` scales it.

    Puzzle identifiers: sign-SGD. optimizer = "muon": Muon for the matrices inside the recursive net and the blocks of an encoder, AdamW
    for the rest (embeddings, heads, convolution kernels, vectors). Otherwise one optimizer for everything else. `rates`, where a net has an
    encoder: factors on the rates of "encoder" and "decoder", which are groups of the same optimizers. What is frozen is in none.
    """
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    part = {id(p): "encoder" if name.startswith("encoder.") else "decoder" for name, p in named}
    puzzles = [p for name, p in named if name in ("puzzles", "encoder.puzzles")]
    matrices = [
        p
        for name, p in named
        if cfg.optimizer == "muon"
        and p.ndim == 2
        and (name.startswith("net") or (name.startswith("encoder.") and "blocks." in name))
    ]
    taken = {id(p) for p in puzzles + matrices}
    rest = [p for _, p in named if id(p) not in taken]

    def groups(params: list, lr: float) -> list:
        if rates is None:
            return params
        return [
            {"params": own, "lr": lr * rate}
            for name, rate in rates.items()
            if (own := [p for p in params if part[id(p)] == name])
        ]

    adam = {"lr": cfg.lr, "betas": (cfg.beta1, cfg.beta2), "weight_decay": cfg.weight_decay}
    optimizers = []
    if cfg.optimizer == "adam_atan2":
        optimizers.append(AdamAtan2(groups(rest, cfg.lr), **adam))
    else:
        optimizers.append(
            torch.optim.AdamW(groups(rest, cfg.lr), fused=rest[0].is_cuda or None, **adam)
        )
    if matrices:
        optimizers.append(
            Muon(
                groups(matrices, cfg.muon_lr),
                lr=cfg.muon_lr,
                weight_decay=cfg.muon_weight_decay,
                nesterov=True,
                momentum=cfg.muon_momentum,
                ns_steps=cfg.muon_iterations,
            )
        )
    if puzzles:
        optimizers.append(
            SignSGD(
                groups(puzzles, cfg.puzzle_lr),
                lr=cfg.puzzle_lr,
                weight_decay=cfg.puzzle_weight_decay,
            )
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def schedule(cfg, step: int) -> float:
    """Share of the full learning rate at this step: linear warm-up, then constant or a cosine down to `lr_floor`."""
    warm = min(1.0, (step + 1) / cfg.warmup) if cfg.warmup else 1.0
    if cfg.schedule == "constant":
        return warm
    progress = max(0.0, (step - cfg.warmup) / max(1, cfg.steps - cfg.warmup))
    return warm * (
        cfg.lr_floor + (1 - cfg.lr_floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    )


def set_rates(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share


class GrokFast:
    """Filters every gradient in place, after reduction over ranks and before clipping (arXiv 2405.20233).

    "ema":       g + lambda * mu,  mu = alpha * mu + (1 - alpha) * g   (mu starts at g): amplifies slow gradients, as published;
    "ma":        g + lambda * mean of the last `window` gradients, once the window is full: the same idea;
    "highpass":  g + lambda * (g - mu): what founding document 004 wrote down. It is the OPPOSITE filter: it amplifies fast
                 gradients (gain 1 at frequency zero, about 1 + 2 lambda at the highest, against 1 + lambda and about 1).
    Memory: one copy of the weights, or `window` copies for "ma". The state is checkpointed.
    """

    def __init__(self, kind: str, alpha: float = 0.98, lamb: float = 2.0, window: int = 100):
        self.kind, self.alpha, self.lamb, self.window = kind, alpha, lamb, window
        self.mean: list[Tensor] = []  # mu, or the sum over the window
        self.past: list[list[Tensor]] = []  # "ma" only, oldest first

    @torch.no_grad()
    def __call__(self, grads: list[Tensor]) -> None:
        if self.kind == "ma":
            self.past.append([g.clone() for g in grads])
            if len(self.past) > self.window:
                self.past.pop(0)
            if len(self.past) == self.window:
                for i, g in enumerate(grads):
                    g.add_(sum(past[i] for past in self.past), alpha=self.lamb / self.window)
            return
        if not self.mean:
            self.mean = [g.clone() for g in grads]
        else:
            torch._foreach_lerp_(self.mean, grads, 1 - self.alpha)
        if self.kind == "ema":
            torch._foreach_add_(grads, self.mean, alpha=self.lamb)
        else:
            torch._foreach_mul_(grads, 1 + self.lamb)
            torch._foreach_sub_(grads, self.mean, alpha=self.lamb)

    def state_dict(self) -> dict:
        return {"mean": self.mean, "past": self.past}

    def load_state_dict(self, state: dict) -> None:
        self.mean, self.past = state["mean"], state["past"]


def make_ema(net: nn.Module, decay: float, warmup: bool) -> AveragedModel:
    """The averaged net; with `warmup` the decay of update t is min(decay, (1 + t) / (10 + t)), so early weights are forgotten."""

    def average(
        ema: list[Tensor], new: list[Tensor], t: Tensor
    ) -> None:  # t lives on the CPU: reading it costs no GPU sync
        keep = min(decay, (1 + int(t)) / (10 + int(t))) if warmup else decay
        torch._foreach_lerp_(ema, new, 1 - keep)

    return AveragedModel(net, multi_avg_fn=average)
