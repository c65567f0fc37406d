"""Update rules: Adam-atan2, Muon in batches, sign-SGD, gradient filters, the average of weights.

`make_optimizers` says which parameter gets which rule. AdamW, Muon's rule and the averaged model
come from torch. Each class here stands alone and can be copied.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class AdamAtan2(torch.optim.Optimizer):
    """Adam with the update lr * atan2(m_hat, sqrt(v_hat)), and decoupled decay (arXiv 2407.05872).

    It has no epsilon. The bias corrections m_hat = m / (1 - beta1^t), v_hat = v / (1 - beta2^t)
    are the paper's. The package adam-atan2, which the public TRM code uses, corrects m outside:
    lr / (1 - beta1^t) * atan2(m, sqrt(v_hat)). With beta1 = 0.9 its first update is 27 % larger,
    and the difference fades as beta1^t does.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
    ):
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "step": 0}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            m, v = self.moments(params)
            b1, b2 = group["betas"]
            group["step"] += 1
            t = group["step"]
            torch._foreach_lerp_(m, grads, 1 - b1)
            torch._foreach_mul_(v, b2)
            torch._foreach_addcmul_(v, grads, grads, 1 - b2)
            # atan2 sees the ratio alone, so both bias corrections go into one factor.
            root = torch._foreach_sqrt(v)
            torch._foreach_mul_(root, (1 - b1**t) / math.sqrt(1 - b2**t))
            angles = [torch.atan2(a, b) for a, b in zip(m, root)]
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, angles, alpha=-group["lr"])

    def moments(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The running means of g and g^2 of each parameter, zeros at first."""
        for p in params:
            if not self.state[p]:
                self.state[p] = {"m": torch.zeros_like(p), "v": torch.zeros_like(p)}
        return [self.state[p]["m"] for p in params], [self.state[p]["v"] for p in params]


# Before torch 2.9 there is none, which concerns those alone who use it.
TorchMuon = getattr(torch.optim, "Muon", torch.optim.Optimizer)


class Muon(TorchMuon):
    """torch.optim.Muon with its matrices orthogonalised in batches of one shape.

    The same rule, options and state dict. Off CUDA it iterates in fp32: bf16, which torch takes
    everywhere, makes a step 10 times slower on CPUs without bf16 units.
    """

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(tuple(p.shape), []).append(p)
            for params in shapes.values():
                self.step_shape(group, params)

    def step_shape(self, group: dict, params: list[Tensor]) -> None:
        """One step of parameters of one shape."""
        momentum = group["momentum"]
        grads = [p.grad for p in params]
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        means = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(means, grads, 1 - momentum)
        updates = torch._foreach_lerp(grads, means, momentum) if group["nesterov"] else means
        settings = group["ns_coefficients"], group["ns_steps"], group["eps"]
        turned = orthogonal(torch.stack(updates), *settings).to(params[0].dtype)
        lr = group["lr"]
        scale = muon_scale(group["adjust_lr_fn"], *params[0].shape)
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_add_(params, list(turned.unbind()), alpha=-lr * scale)


def muon_scale(kind: str | None, rows: int, cols: int) -> float:
    """Factor on Muon's rate for a matrix of this shape: `adjust_lr_fn` of torch.optim.Muon.

    "match_rms_adamw": updates as large as AdamW's. "original", and None: Muon's own.
    """
    if kind == "match_rms_adamw":
        return 0.2 * max(rows, cols) ** 0.5
    return max(1, rows / cols) ** 0.5


def orthogonal(
    g: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float = 1e-7
) -> Tensor:
    """Newton-Schulz iteration towards U V^T of each matrix U S V^T in g (K, rows, cols).

    With Muon's coefficients it ends near U V^T only: singular values of about 0.5 to 1.5.
    """
    a, b, c = coefficients
    tall = g.shape[1] > g.shape[2]
    x = g.bfloat16() if g.is_cuda else g.float()
    x = x.mT if tall else x  # the smaller side first: a smaller Gram matrix
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b A + c A^2
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


class SignSGD(torch.optim.Optimizer):
    """p -= lr * sign(grad), with decoupled decay, for embedding tables of identifiers.

    Moves only the rows that got a gradient.
    """

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


# ---------------------------------------------------------------- who gets which optimizer

OPTIMIZERS = ("adamw", "adam", "muon", "adam_atan2")
PUZZLE_TABLES = ("puzzles", "encoder.puzzles")  # parameters: a row for every puzzle identifier


def make_optimizers(
    net: nn.Module, cfg, rates: dict[str, float] | None = None
) -> list[torch.optim.Optimizer]:
    """The optimizers of a TrainConfig. Each group keeps its full rate as `peak`: see `set_rates`.

    Rows of puzzle identifiers get sign-SGD. With optimizer = "muon" the matrices inside the
    recursive net and the blocks of an encoder get Muon. All the rest (embeddings, heads,
    convolutions, vectors) gets AdamW or Adam-atan2. A frozen parameter is in no optimizer.
    rates: factors on the rates of the parts "encoder" and "decoder", which become groups of
    their own. Raises ValueError for an unknown optimizer.
    """
    if cfg.optimizer not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        raise ValueError(f"train.optimizer = {cfg.optimizer!r}, expected one of {known}")
    named: dict[str, list[tuple[str, Tensor]]] = {"puzzles": [], "matrices": [], "rest": []}
    for name, p in net.named_parameters():
        if p.requires_grad:
            named[kind_of(name, p, cfg.optimizer == "muon")].append((name, p))

    adam = {"lr": cfg.lr, "betas": (cfg.beta1, cfg.beta2), "weight_decay": cfg.weight_decay}
    rest = groups(named["rest"], cfg.lr, rates)
    if cfg.optimizer == "adam_atan2":
        optimizers = [AdamAtan2(rest, **adam)]
    elif cfg.optimizer == "adam":
        optimizers = [torch.optim.Adam(rest, **adam)]  # its decay is L2 inside the gradient
    else:
        fused = named["rest"][0][1].is_cuda or None
        optimizers = [torch.optim.AdamW(rest, fused=fused, **adam)]
    if named["matrices"]:
        muon = {"lr": cfg.muon_lr, "weight_decay": cfg.muon_weight_decay}
        muon |= {"momentum": cfg.muon_momentum, "nesterov": True, "ns_steps": cfg.muon_iterations}
        optimizers.append(Muon(groups(named["matrices"], cfg.muon_lr, rates), **muon))
    if named["puzzles"]:
        sign = {"lr": cfg.puzzle_lr, "weight_decay": cfg.puzzle_weight_decay}
        optimizers.append(SignSGD(groups(named["puzzles"], cfg.puzzle_lr, rates), **sign))

    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def kind_of(name: str, p: Tensor, muon: bool) -> str:
    """What a parameter is to the optimizers: "puzzles", "matrices" (for Muon) or "rest"."""
    if name in PUZZLE_TABLES:
        return "puzzles"
    recursive = name.startswith("net")  # net and net_y
    encoder_block = name.startswith("encoder.") and "blocks." in name
    if muon and p.ndim == 2 and (recursive or encoder_block):
        return "matrices"
    return "rest"


def groups(
    named: list[tuple[str, Tensor]], lr: float, rates: dict[str, float] | None
) -> list[Tensor] | list[dict]:
    """The parameters for one optimizer, in a group per part where `rates` tells parts apart."""
    if rates is None:
        return [p for _, p in named]
    parts: dict[str, list[Tensor]] = {part: [] for part in rates}
    for name, p in named:
        parts["encoder" if name.startswith("encoder.") else "decoder"].append(p)
    return [{"params": own, "lr": lr * rates[part]} for part, own in parts.items() if own]


def schedule(cfg, step: int) -> float:
    """Share of the full learning rate at this step.

    A linear warm-up, then constant, or a cosine from 1 at the first step after it down to
    `lr_floor` at the last.
    """
    warm = min(1.0, (step + 1) / cfg.warmup) if cfg.warmup else 1.0
    if cfg.schedule == "constant":
        return warm
    progress = max(0.0, (step - cfg.warmup) / max(1, cfg.steps - 1 - cfg.warmup))
    falling = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))  # 1 -> 0
    return warm * (cfg.lr_floor + (1 - cfg.lr_floor) * falling)


def set_rates(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    """Every group's learning rate becomes this share of its full one."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share


# ---------------------------------------------------------------- gradient filters


class GrokFast:
    """Filters every gradient g in place, after reduction over ranks and before clipping.

        ema        g + lambda * mu, mu = alpha * mu + (1 - alpha) * g, which starts at the first g
        ma         g + lambda * mean of the last `window` gradients, once there are so many
        highpass   g + lambda * (g - mu)

    "ema" and "ma" amplify slow gradients, as published (arXiv 2405.20233): gain 1 + lambda at
    frequency zero, about 1 at the highest. "highpass", the high-pass variant of GrokFast, is the
    OPPOSITE filter and amplifies fast gradients: gain 1 at frequency zero, about 1 + lambda at
    the highest.
    Memory: one copy of the weights, `window` copies for "ma". The state is checkpointed.
    """

    def __init__(self, kind: str, alpha: float = 0.98, lamb: float = 2.0, window: int = 100):
        self.kind, self.alpha, self.lamb, self.window = kind, alpha, lamb, window
        self.mean: list[Tensor] = []  # mu of each parameter; not for "ma"
        self.past: list[list[Tensor]] = []  # the last gradients, oldest first; "ma" only

    @torch.no_grad()
    def __call__(self, grads: list[Tensor]) -> None:
        if self.kind == "ma":
            self.add_window(grads)
            return
        if self.mean:
            torch._foreach_lerp_(self.mean, grads, 1 - self.alpha)
        else:
            self.mean = [g.clone() for g in grads]
        if self.kind == "ema":
            torch._foreach_add_(grads, self.mean, alpha=self.lamb)
        else:
            torch._foreach_mul_(grads, 1 + self.lamb)
            torch._foreach_sub_(grads, self.mean, alpha=self.lamb)

    def add_window(self, grads: list[Tensor]) -> None:
        self.past.append([g.clone() for g in grads])
        if len(self.past) > self.window:
            self.past.pop(0)
        if len(self.past) < self.window:
            return
        for i, g in enumerate(grads):
            total = sum(past[i] for past in self.past)
            g.add_(total, alpha=self.lamb / self.window)

    def state_dict(self) -> dict:
        return {"mean": self.mean, "past": self.past}

    def load_state_dict(self, state: dict) -> None:
        self.mean, self.past = state["mean"], state["past"]


# ---------------------------------------------------------------- the average of weights


class EMA(AveragedModel):
    """A copy of the net whose weights are the exponential moving average.

    With `warmup` the decay of update t is min(decay, (1 + t) / (10 + t)), so that early weights
    are forgotten. The first update copies.

    The rows of puzzle identifiers are copied as they are now. The public TRM code does so too: its
    rows are a buffer, and its average takes parameters alone.
    """

    def __init__(self, net: nn.Module, decay: float, warmup: bool = False):
        super().__init__(net)
        self.decay, self.warmup = decay, warmup

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """AveragedModel sends its count of updates to the GPU and waits. Here it stays behind."""
        t = int(self.n_averaged)  # on the CPU
        keep = min(self.decay, (1 + t) / (10 + t)) if self.warmup else self.decay
        own, new = dict(self.module.named_parameters()), dict(model.named_parameters())
        rows = [name for name in new if name in PUZZLE_TABLES]
        rest = [name for name in new if name not in PUZZLE_TABLES]
        torch._foreach_lerp_([own[k] for k in rest], [new[k] for k in rest], 1 - keep if t else 1)
        for name in rows:
            own[name].copy_(new[name])
        for mine, buffer in zip(self.module.buffers(), model.buffers()):
            mine.copy_(buffer)
        self.n_averaged += 1


if __name__ == "__main__":
    raise SystemExit("optim.py is a part to import; python train.py begins, README.md says more")
