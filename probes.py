"""What a trained net does with its demonstrations: `python probes.py runs/laptop/arc_E1v2/seed0 [more runs] [--against EMBEDDING_RUN]`.

Writes probes.json into each run folder and prints it in words:
    context    exact with the true context, another task's, the mean over rows, zeros; on training tasks and held-out ones
    demos      exact by the number of demonstrations shown, from none to all
    order      largest change of the context when demonstrations are reversed, and when all are shown twice
    interface  size and effective rank of contexts and of question tokens, as the net gets them; with --against beside the puzzle embedding of
               an embedding run: sizes, mean cosine, Frechet distance of single positions
    gradient   per supervision step: gradient at the context over gradient at the question; norms by part of the encoder; mean cosine of the
               encoder's gradients of different tasks
    noise      share of answers that differ when a variational encoder samples twice; 0 for the others

    python probes.py adapt runs/laptop/arc_E1v2/seed0 [--steps 0,50,200] [--tasks 8] [--lr 1e-3]

Test-time training, a mode of its own: for each held-out task the net starts from the run's best
checkpoint and learns on that task's demonstrations alone, each asked with the others shown (with a
puzzle embedding: each asked), under the run's augmentations; its queries are asked after so many
steps, then the net is reset. Writes adapt.json. Its figures are never to be mixed with those of a
net that does not learn at test time, which stand at 0 steps. Exit codes: 0 done, 2 bad input.
"""

import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch

import data
from config import Parser, UserError, flatten
from encoders import Conditioned
from runs import TrainingError, World, make_world, write_text
from tasks import episodes
from tasks.arc_report import ablation, score, solve, trained
from train import Config, load_run, make_run, train_step


def probe(folder: Path, against: Path | None = None) -> dict:
    """All figures of one run."""
    world = World(0, 1, torch.device("cpu"), torch.float32, False)
    cfg, net, _ = load_run(folder)
    if cfg.data.task != "arc":
        raise UserError(f"{folder}: a run of data.task = {cfg.data.task!r}, expected 'arc'")
    ds = data.load(cfg).arc
    sides = {"train": trained(ds)[: max(64, len(ds.test))], "test": ds.test}
    rows = {
        side: episodes.examples(ds, cfg.arc, episodes.queries(ds, cfg.arc, tasks, 1))
        for side, tasks in sides.items()
    }
    true = {side: score(solve(net, cfg, r, world)[0], r["labels"]) for side, r in rows.items()}
    wrong = {side: ablation(net, cfg, r, world) for side, r in rows.items()}
    found = {
        "context": {side: w and {"true": true[side]["exact"]} | w for side, w in wrong.items()},
        "demos": {},
        "n": {s: len(r["task"]) for s, r in rows.items()},
    }
    if not isinstance(net, Conditioned):
        return found
    if cfg.arc.mode != "embed":
        for side, tasks in sides.items():
            found["demos"][side] = {}
            for shown in range(cfg.arc.demos):
                asked = episodes.examples(
                    ds, cfg.arc, episodes.queries(ds, cfg.arc, tasks, 1, shown)
                )
                found["demos"][side][str(shown)] = score(
                    solve(net, cfg, asked, world)[0], asked["labels"]
                )
            found["demos"][side][str(cfg.arc.demos)] = true[side]
        found["order"] = order(net, cfg, rows["train"])
    found["interface"] = interface(net, cfg, rows["train"], against)
    found["gradient"] = gradients(net, cfg, rows["train"])
    found["noise"] = sampling(net, cfg, rows["train"])
    return found


def tensors(rows: dict[str, np.ndarray], count: int = 64) -> dict[str, torch.Tensor]:
    """At most `count` rows, spread over all of them: neighbours are queries of one task."""
    N = len(rows["task"])
    at = np.linspace(0, N - 1, min(count, N)).astype(int)
    return {k: data.tensor(v[at]) for k, v in rows.items()}


def first_step(net: Conditioned, batch: dict, **keys):
    return net.step(
        net.refill(
            net.start(batch),
            batch,
            net.first_states(
                len(batch["inputs"]), net.shape.seq_len, torch.Generator().manual_seed(0)
            ),
        ),
        **keys,
    )


@torch.no_grad()
def order(net: Conditioned, cfg, rows: dict) -> dict[str, float]:
    """Of contexts whose size is about 1; "cells" keeps the order and cannot take more, so it has no "twice"."""
    batch = tensors(rows)
    context = first_step(net, batch)[1].aux["context"]
    flipped = batch | {k: batch[k].flip(1) for k in ("demos", "mask")}
    result = {"reversed": float((first_step(net, flipped)[1].aux["context"] - context).abs().max())}
    if net.encoder.join != "cells":
        doubled = batch | {k: torch.cat([batch[k]] * 2, 1) for k in ("demos", "mask")}
        result["twice"] = float((first_step(net, doubled)[1].aux["context"] - context).abs().max())
    return result


def effective_rank(x: torch.Tensor) -> float:
    """exp of the entropy of the normalised singular values of x about its mean: how many directions it uses."""
    s = torch.linalg.svdvals((x - x.mean(0)).double())
    p = s / s.sum().clamp(min=1e-12)
    return float(torch.exp(-(p * (p + 1e-12).log()).sum()))


@torch.no_grad()
def interface(net: Conditioned, cfg, rows: dict, against: Path | None) -> dict[str, float]:
    batch = tensors(rows)
    context = first_step(net, batch)[1].aux["context"].float()  # (B, P, D)
    tokens = torch.nn.functional.embedding(batch["inputs"], net.tokens).float()
    scale = math.sqrt(cfg.model.dim)

    def size(x: torch.Tensor) -> float:
        return float(scale * x.square().mean().sqrt())

    found = {
        "context_size": size(context),
        "token_size": size(tokens),
        "rank_over_rows": effective_rank(context.flatten(1)),
        "rank_over_positions": float(np.mean([effective_rank(c) for c in context])),
        "rows": len(context),
    }
    if against:
        _, other, _ = load_run(against)
        if isinstance(other, Conditioned) or not cfg.model.prefix or other.cfg.dim != cfg.model.dim:
            raise UserError(
                f"{against}: expected a run with encoder.kind = 'none', a puzzle embedding and model.dim = {cfg.model.dim}"
            )
        table = other.puzzles[other.puzzles.any(1)].float()
        if not len(table):
            raise UserError(
                f"{against}: its puzzle embedding is zero, expected a run with arc.mode = 'embed'"
            )
        first = context[:, 0]
        normal = torch.nn.functional.normalize
        found |= {
            "embedding_size": size(table),
            "first_position_size": size(first),
            "rank_of_embeddings": effective_rank(table),
            "cosine_of_means": float(normal(first.mean(0), dim=0) @ normal(table.mean(0), dim=0)),
            "frechet": frechet(scale * first, scale * table),
        }
    return found


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """Frechet distance of two clouds of vectors, each taken as a normal distribution."""
    a, b = a.double(), b.double()
    one, two = (torch.cov(x.T) for x in (a, b))
    values, vectors = torch.linalg.eigh(one)
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ two @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + one.trace() + two.trace() - 2 * cross)


def gradients(net: Conditioned, cfg, rows: dict, tasks: int = 8) -> dict:
    """Of training queries, in training mode but with nothing sampled beyond a fixed seed."""
    batch, g = tensors(rows, 32), torch.Generator().manual_seed(0)
    net.train()
    noise = net.noise(len(batch["inputs"]), g)
    keys = {} if noise is None else {"noise": noise}
    carry, ratios = (
        net.refill(
            net.start(batch), batch, net.first_states(len(batch["inputs"]), net.shape.seq_len, g)
        ),
        [],
    )
    for _ in range(cfg.model.n_sup):
        kept = {}
        embed = net.embed

        def watch(batch, context=None):
            if context is not None and context.requires_grad:
                context.retain_grad()
                kept["context"] = context
            kept["x"] = embed(batch, context)
            kept["x"].retain_grad()
            return kept["x"]

        net.embed = watch
        try:
            carry, out = net.step(carry, **keys)
            net.zero_grad()
            net.loss(out, carry)[0].backward()
        finally:
            del net.embed
        grad, P = kept["x"].grad, cfg.model.prefix
        ratios.append(float(grad[:, :P].norm() / grad[:, P:].norm().clamp(min=1e-12)))
    parts: dict[str, float] = {}
    for name, p in net.encoder.named_parameters():
        if p.grad is not None:
            part = ".".join(name.split(".")[:3]) if "blocks" in name else name.split(".")[0]
            parts[part] = math.hypot(parts.get(part, 0.0), float(p.grad.norm()))
    found = {"context_over_question": ratios, "parts": parts}
    flat = []
    learning = [p for p in net.encoder.parameters() if p.requires_grad]
    if learning:
        for i in range(min(tasks, len(batch["inputs"]))):
            net.zero_grad()
            one = {k: v[i : i + 1] for k, v in batch.items()}
            carry, out = first_step(net, one, **{k: v[i : i + 1] for k, v in keys.items()})
            net.loss(out, carry)[0].backward()
            flat.append(
                torch.cat(
                    [
                        (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
                        for p in learning
                    ]
                )
            )
        u = torch.nn.functional.normalize(torch.stack(flat), dim=1)
        found["cosine_between_tasks"] = (
            float((u @ u.T)[~torch.eye(len(u), dtype=torch.bool)].mean()) if len(u) > 1 else None
        )
    net.zero_grad()
    net.eval()
    return found


@torch.no_grad()
def sampling(net: Conditioned, cfg, rows: dict) -> float:
    """Share of first answers that differ between two samples of the latent."""
    batch, answers = tensors(rows), []
    for seed in (0, 1):
        noise = net.noise(len(batch["inputs"]), torch.Generator().manual_seed(seed))
        if noise is None:
            return 0.0
        net.train()
        answers.append(first_step(net, batch, noise=noise)[1].logits.argmax(-1))
        net.eval()
    return float((answers[0] != answers[1]).any(1).float().mean())


# ---------------------------------------------------------------- test-time training


def learning(cfg: Config, lr: float, batch: int) -> Config:
    """The configuration in which a net learns one task."""
    mode = "embed" if cfg.arc.mode == "embed" else "loo"
    train = dataclasses.replace(
        cfg.train,
        warmup=0,
        schedule="constant",
        ema=0.0,
        lr=lr or cfg.train.lr,
        batch_size=batch or cfg.train.batch_size,
        compile="off",
    )
    encoder = dataclasses.replace(cfg.encoder, decoder="", freeze_steps=0, freeze_decoder_steps=0)
    return dataclasses.replace(
        cfg, arc=dataclasses.replace(cfg.arc, mode=mode), train=train, encoder=encoder
    )


def adapt(folder: Path, steps: list[int], tasks: int = 0, lr: float = 0.0, batch: int = 0) -> dict:
    """{"steps": {"0": {exact, cells, n, pass@k ...}, ...}, ...} over the first `tasks` (0: all) held-out tasks."""
    cfg, net, _ = load_run(folder)
    if cfg.data.task != "arc":
        raise UserError(f"{folder}: a run of data.task = {cfg.data.task!r}, expected 'arc'")
    own, dataset = learning(cfg, lr, batch), data.load(cfg)
    ds = dataset.arc
    chosen, world = ds.test[: tasks or None], make_world(own.train)
    plan = episodes.queries(ds, cfg.arc, chosen)
    answers = {n: np.zeros((len(plan), cfg.arc.side**2), np.int64) for n in steps}
    confidence = {n: np.zeros(len(plan)) for n in steps}
    for task in chosen:
        mine = plan.task == task
        rows = episodes.examples(ds, cfg.arc, plan[mine])
        alone = dataclasses.replace(dataset, arc=dataclasses.replace(ds, train=np.array([task])))
        run = make_run(own, folder, world, alone)
        run.net.load_state_dict(net.state_dict())
        feed = data.batches(alone, own, own.train.batch_size, own.seed, 0, device=world.device)
        try:
            for n in sorted(steps):
                while run.step < n:
                    train_step(run, feed)
                answers[n][mine], confidence[n][mine], _ = solve(run.net, own, rows, world)
        finally:
            feed.close()
    plain = plan.augmentation == 0
    labels = episodes.examples(ds, cfg.arc, plan[plain])["labels"]
    return {
        "mode": "test-time training on the demonstrations of each held-out task",
        "tasks": len(chosen),
        "lr": own.train.lr,
        "batch_size": own.train.batch_size,
        "steps": {
            str(n): score(answers[n][plain], labels)
            | episodes.vote(ds, cfg.arc, plan, answers[n], confidence[n])
            for n in sorted(steps)
        },
        "config": flatten(own),
    }


def words(folder: Path, found: dict) -> str:
    lines = [
        f"{folder}: n = {found['n']['train']} training and {found['n']['test']} held-out queries"
    ]
    for side, context in found["context"].items():
        lines.append(
            f"  {side:5} exact "
            + ", ".join(f"{100 * v:.1f} % ({k} context)" for k, v in context.items())
        )
    for side, row in found["demos"].items():
        lines.append(
            f"  {side:5} exact by demonstrations shown: "
            + ", ".join(f"{k}: {100 * v['exact']:.1f} %" for k, v in row.items())
        )
    for name in ("order", "interface"):
        if found.get(name):
            lines.append(f"  {name}: " + ", ".join(f"{k} {v:.4g}" for k, v in found[name].items()))
    if gradient := found.get("gradient"):
        lines.append(
            "  gradient at the context over that at the question, by step: "
            + ", ".join(f"{r:.3g}" for r in gradient["context_over_question"])
        )
        lines.append(
            "  gradient by part: " + ", ".join(f"{k} {v:.3g}" for k, v in gradient["parts"].items())
        )
        if (cosine := gradient.get("cosine_between_tasks")) is not None:
            lines.append(
                f"  cosine of the encoder's gradients of two tasks: {cosine:.3g} on average"
            )
    if "noise" in found:
        lines.append(f"  answers that differ between two samples: {100 * found['noise']:.1f} %")
    return "\n".join(lines)


def adapted_words(folder: Path, found: dict) -> str:
    lines = [f"{folder}: test-time training, a mode of its own"]
    for n, part in found["steps"].items():
        exact, low, high = (100 * part[key] for key in ("exact", "exact_low", "exact_high"))
        share = f"{exact:.1f} % exact ({low:.1f} to {high:.1f}, n = {part['n']})"
        lines.append(f"  {n:>5} steps per task: {share}, {episodes.sentence(part)}")
    return "\n".join(lines)


# ---------------------------------------------------------------- the command


def adapt_command(argv: list[str]) -> None:
    parser = Parser("probes.py adapt", __doc__)
    parser.add_argument("run", type=Path, help="a run folder of data.task = 'arc'")
    parser.add_argument(
        "--steps",
        default="0,50,200",
        help="training steps per task after which its queries are asked (default: 0,50,200)",
    )
    parser.add_argument("--tasks", type=int, default=0, help="held-out tasks (default: all)")
    parser.add_argument("--lr", type=float, default=0.0, help="learning rate (default: the run's)")
    parser.add_argument("--batch", type=int, default=0, help="slots (default: the run's)")
    args = parser.parse_args(argv)
    words = args.steps.split(",")
    if not all(word.isdecimal() for word in words) or min(args.tasks, args.batch, args.lr) < 0:
        parser.error(
            f"--steps {args.steps} --tasks {args.tasks} --batch {args.batch} --lr {args.lr}: "
            "expected numbers of 0 or more, steps separated by commas"
        )
    torch.set_num_threads(1)
    steps = sorted({int(word) for word in words})
    found = adapt(args.run, steps, args.tasks, args.lr, args.batch)
    write_text(args.run / "adapt.json", json.dumps(found, indent=1) + "\n")
    print(adapted_words(args.run, found))


def probe_command(argv: list[str]) -> None:
    parser = Parser("probes.py", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of data.task = 'arc'")
    parser.add_argument("--against", type=Path, help="a run with a puzzle embedding: interface")
    args = parser.parse_args(argv)
    for folder in args.runs:
        found = probe(folder, args.against)
        write_text(folder / "probes.json", json.dumps(found, indent=1) + "\n")
        print(words(folder, found))


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ["adapt"]:
            adapt_command(argv[1:])
        else:
            probe_command(argv)
    except (UserError, TrainingError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
