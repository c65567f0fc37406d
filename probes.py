"""What a trained net does with its demonstrations.

    python probes.py runs/encoders_laptop/E1v2/seed0 [more runs] [--against EMBEDDING_RUN]

Writes probes.json into each run folder and prints it in words:

    context    exact with the true context, another task's, the mean over rows, zeros; on training
               tasks and held-out ones
    demos      exact by the number of demonstrations shown, from none to all
    order      largest change of the context when demonstrations are reversed, and when all are
               shown twice
    interface  size and effective rank of contexts and of question tokens, as the net gets them;
               with --against beside the puzzle embedding of an embedding run: sizes, mean cosine,
               Frechet distance of single positions
    gradient   per supervision step: gradient at the context over gradient at the question; norms
               by part of the encoder; mean cosine of the encoder's gradients of different tasks
    noise      share of answers that differ when a variational encoder samples twice; 0 for the
               others

    python probes.py adapt RUN [--steps 0,50,200] [--tasks 8] [--lr 1e-3]

Test-time training, a mode of its own: for each held-out task the net starts from the run's best
checkpoint and learns on that task's demonstrations alone, each asked with the others shown (with a
puzzle embedding: each asked), under the run's augmentations. Its queries are asked after so many
steps, then the net is reset. Writes adapt.json. Its figures are never to be mixed with those of a
net that does not learn at test time, which stand at 0 steps.

    python probes.py imitate RUN --against EMBEDDING_RUN [--steps 1000] [--lr 1e-3]

Can an encoder say what the net is known to understand? The encoder of a run, and a linear map of
its context, learn the puzzle embedding of another run from the demonstrations of its training
tasks. Then that run's net is asked with what was imitated, on training tasks and held-out ones.
Writes imitate.json. Exit codes: 0 done, 2 bad input.
"""

import config as _config  # noqa: F401, I001  first: it says so where packages are missing

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import trange

import data
from config import Parser, UserError, flatten, quiet_output
from model import Carry, Output
from runs import TrainingError, World, make_world, write_text
from tasks import episodes
from tasks.arc_report import ablation, score, solve, some_trained, trained
from tasks.conditioned import Conditioned
from train import Config, load_run, make_run, train_step

ONE_CPU = World(0, 1, torch.device("cpu"), torch.float32, False)
Rows = dict[str, np.ndarray]


def load_arc_run(folder: Path) -> tuple[Config, torch.nn.Module]:
    """(config, net) of a run of the ARC task. Raises UserError."""
    cfg, net, _ = load_run(folder)
    if cfg.data.task != "arc":
        raise UserError(f"{folder}: a run of data.task = {cfg.data.task!r}, expected 'arc'")
    return cfg, net


def probe(folder: Path, against: Path | None = None) -> dict:
    """All figures of one run."""
    cfg, net = load_arc_run(folder)
    ds = data.load(cfg).arc
    sides = {"train": some_trained(ds), "test": ds.test}
    rows = {side: queries(ds, cfg, tasks) for side, tasks in sides.items()}
    found = {
        "context": {side: by_context(net, cfg, rows[side]) for side in sides},
        "demos": {},
        "n": {side: len(rows[side]["task"]) for side in sides},
    }
    if not isinstance(net, Conditioned):
        return found
    if cfg.arc.mode != "embed":
        found["demos"] = {side: by_demos(net, cfg, ds, tasks) for side, tasks in sides.items()}
        found["order"] = order(net, rows["train"])
    found["interface"] = interface(net, rows["train"], against)
    found["gradient"] = gradients(net, rows["train"])
    found["noise"] = sampling(net, rows["train"])
    return found


def queries(ds: episodes.ArcData, cfg: Config, tasks: np.ndarray, demos: int = -1) -> Rows:
    """Every query of these tasks, not augmented, with so many demonstrations (-1: all)."""
    return episodes.examples(ds, cfg.arc, episodes.queries(ds, cfg.arc, tasks, 1, demos))


# ---------------------------------------------------------------- answers


def by_context(net: torch.nn.Module, cfg: Config, rows: Rows) -> dict[str, float]:
    """Exact with the true and with wrong contexts; {} for a net without context."""
    wrong = ablation(net, cfg, rows, ONE_CPU)
    if not wrong:
        return {}
    return {"true": solved(net, cfg, rows)["exact"]} | wrong


def by_demos(net: Conditioned, cfg: Config, ds: episodes.ArcData, tasks: np.ndarray) -> dict:
    """{"0": figures, "1": ...} by demonstrations shown."""
    shown = range(cfg.arc.demos + 1)
    return {str(k): solved(net, cfg, queries(ds, cfg, tasks, k)) for k in shown}


def solved(net: torch.nn.Module, cfg: Config, rows: Rows) -> dict[str, float]:
    """What the net scores on these rows."""
    return score(solve(net, cfg, rows, ONE_CPU).answers, rows["labels"])


# ---------------------------------------------------------------- contexts


def tensors(rows: Rows, count: int = 64) -> dict[str, Tensor]:
    """At most `count` rows, spread over all of them: neighbours are queries of one task."""
    N = len(rows["task"])
    at = np.linspace(0, N - 1, min(count, N)).astype(int)
    return {name: data.tensor(values[at]) for name, values in rows.items()}


def start(net: Conditioned, batch: dict[str, Tensor], g: torch.Generator) -> Carry:
    """Slots that hold a batch, before their first step."""
    states = net.first_states(len(batch["inputs"]), net.shape.seq_len, g)
    return net.refill(net.start(batch), batch, states)


def first_step(net: Conditioned, batch: dict[str, Tensor], **keys) -> tuple[Carry, Output]:
    return net.step(start(net, batch, torch.Generator().manual_seed(0)), **keys)


def context_of(net: Conditioned, batch: dict[str, Tensor]) -> Tensor:
    """(B, P, D) of the first step."""
    return first_step(net, batch)[1].aux["context"]


@torch.no_grad()
def order(net: Conditioned, rows: Rows) -> dict[str, float]:
    """Largest changes of contexts, whose size is about 1.

    An encoder that keeps the order cannot take more demonstrations either: it has no "twice".
    """
    batch = tensors(rows)
    demos, mask = batch["demos"], batch["mask"]
    context = context_of(net, batch)

    def moved(demos: Tensor, mask: Tensor) -> float:
        other = context_of(net, batch | {"demos": demos, "mask": mask})
        return float((other - context).abs().max())

    found = {"reversed": moved(demos.flip(1), mask.flip(1))}
    if not net.encoder.keeps_order:
        found["twice"] = moved(torch.cat([demos, demos], 1), torch.cat([mask, mask], 1))
    return found


def effective_rank(x: Tensor) -> float:
    """How many directions x (N, D) uses, about its mean.

    exp of the entropy of its normalised singular values.
    """
    s = torch.linalg.svdvals((x - x.mean(0)).double())
    p = s / s.sum().clamp(min=1e-12)
    return float(torch.exp(-(p * (p + 1e-12).log()).sum()))


@torch.no_grad()
def interface(net: Conditioned, rows: Rows, against: Path | None) -> dict[str, float]:
    """Contexts beside question tokens, and beside the embeddings of another run."""
    batch = tensors(rows)
    context = context_of(net, batch).float()  # (B, P, D)
    tokens = F.embedding(batch["inputs"], net.tokens).float()
    found = {
        "context_size": size(context),
        "token_size": size(tokens),
        "rank_over_rows": effective_rank(context.flatten(1)),
        "rank_over_positions": float(np.mean([effective_rank(row) for row in context])),
        "rows": len(context),
    }
    if against:
        found |= beside_embeddings(context[:, 0], puzzle_embeddings(against, net))
    return found


def size(x: Tensor) -> float:
    """RMS of vectors (..., D) as they enter the net, which scales them by sqrt(D)."""
    return float(math.sqrt(x.shape[-1]) * x.square().mean().sqrt())


def puzzle_embeddings(folder: Path, net: Conditioned) -> Tensor:
    """(rows, D): the trained rows of a run's puzzle embedding. Raises UserError."""
    _, other, _ = load_run(folder)
    return embedding_rows(folder, other, net)


def embedding_rows(folder: Path, other: torch.nn.Module, net: Conditioned) -> Tensor:
    """The same of the net of a run that has been read."""
    D = net.cfg.dim
    if isinstance(other, Conditioned) or not net.cfg.prefix or other.cfg.dim != D:
        raise UserError(
            f"{folder}: expected a run with encoder.kind = 'none', a puzzle embedding and "
            f"model.dim = {D}"
        )
    table = other.puzzles[other.puzzles.any(1)].float()
    if not len(table):
        raise UserError(
            f"{folder}: its puzzle embedding is zero, expected a run with arc.mode = 'embed'"
        )
    return table


def beside_embeddings(context: Tensor, table: Tensor) -> dict[str, float]:
    """Contexts (B, D) of one position beside puzzle embeddings (rows, D)."""
    scale = math.sqrt(context.shape[1])
    means = F.normalize(context.mean(0), dim=0), F.normalize(table.mean(0), dim=0)
    return {
        "embedding_size": size(table),
        "first_position_size": size(context),
        "rank_of_embeddings": effective_rank(table),
        "cosine_of_means": float(means[0] @ means[1]),
        "frechet": frechet(scale * context, scale * table),
    }


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance of two clouds of vectors (N, D), each taken as a normal distribution.

    |mean a - mean b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), A and B the covariances.
    """
    a, b = a.double(), b.double()
    A, B = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(A)
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ B @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + A.trace() + B.trace() - 2 * cross)


# ---------------------------------------------------------------- gradients


def gradients(net: Conditioned, rows: Rows) -> dict:
    """Of training queries, in training mode but with nothing sampled beyond a fixed seed."""
    batch, g = tensors(rows, 32), torch.Generator().manual_seed(0)
    net.train()
    noise = net.noise(len(batch["inputs"]), g)
    found = {"context_over_question": by_step(net, batch, noise, g)}
    found["parts"] = by_part(net.encoder)
    if any(p.requires_grad for p in net.encoder.parameters()):
        found["cosine_between_tasks"] = cosine_between_tasks(net, batch, noise)
    net.zero_grad()
    net.eval()
    return found


def by_step(
    net: Conditioned, batch: dict[str, Tensor], noise: Tensor | None, g: torch.Generator
) -> list[float]:
    """Gradient at the context over gradient at the question, of every supervision step.

    Leaves the gradients of the last step in the net.
    """
    P, ratios = net.cfg.prefix, []
    carry = start(net, batch, g)
    embed, kept = net.embed, []

    def embed_and_keep(batch: dict[str, Tensor], context: Tensor | None = None) -> Tensor:
        x = embed(batch, context)
        x.retain_grad()
        kept.append(x)
        return x

    net.embed = embed_and_keep
    try:
        for _ in range(net.cfg.n_sup):
            kept.clear()
            carry, out = net.step(carry, noise=noise)
            net.zero_grad()
            net.loss(out, carry)[0].backward()
            grad = kept[0].grad  # (B, P+L, D)
            ratios.append(float(grad[:, :P].norm() / grad[:, P:].norm().clamp(min=1e-12)))
    finally:
        del net.embed
    return ratios


def by_part(encoder: torch.nn.Module) -> dict[str, float]:
    """Gradient norms of the parts of an encoder: reader.blocks.0, blocks.0, head, ..."""
    parts: dict[str, float] = {}
    for name, p in encoder.named_parameters():
        if p.grad is not None:
            words = name.split(".")
            part = ".".join(words[:3]) if "blocks" in words else words[0]
            parts[part] = math.hypot(parts.get(part, 0.0), float(p.grad.norm()))
    return parts


def cosine_between_tasks(
    net: Conditioned, batch: dict[str, Tensor], noise: Tensor | None, rows: int = 8
) -> float | None:
    """Mean cosine of the encoder's gradients of single rows; None if there is one row only."""
    params = [p for p in net.encoder.parameters() if p.requires_grad]
    gradients = []
    for row in range(min(rows, len(batch["inputs"]))):
        net.zero_grad()
        one = {name: values[row : row + 1] for name, values in batch.items()}
        own_noise = None if noise is None else noise[row : row + 1]
        carry, out = first_step(net, one, noise=own_noise)
        net.loss(out, carry)[0].backward()
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
        gradients.append(torch.cat([grad.flatten() for grad in own]))
    if len(gradients) < 2:
        return None
    u = F.normalize(torch.stack(gradients), dim=1)
    different = ~torch.eye(len(u), dtype=torch.bool)
    return float((u @ u.T)[different].mean())


@torch.no_grad()
def sampling(net: Conditioned, rows: Rows) -> float:
    """Share of first answers that differ between two samples of the latent."""
    batch, answers = tensors(rows), []
    for seed in (0, 1):
        noise = net.noise(len(batch["inputs"]), torch.Generator().manual_seed(seed))
        if noise is None:
            return 0.0
        net.train()
        _, out = first_step(net, batch, noise=noise)
        net.eval()
        answers.append(out.logits.argmax(-1))
    return float((answers[0] != answers[1]).any(1).float().mean())


# ---------------------------------------------------------------- test-time training


def config_of_one_task(cfg: Config, lr: float, batch: int) -> Config:
    """The configuration in which a net learns one task. lr, batch: 0 for the run's."""
    train = dataclasses.replace(
        cfg.train,
        warmup=0,
        schedule="constant",
        ema=0.0,
        lr=lr or cfg.train.lr,
        batch_size=batch or cfg.train.batch_size,
        compile="off",
    )
    mode = "embed" if cfg.arc.mode == "embed" else "loo"
    arc = dataclasses.replace(cfg.arc, mode=mode)
    encoder = dataclasses.replace(cfg.encoder, decoder="", freeze_steps=0, freeze_decoder_steps=0)
    return dataclasses.replace(cfg, arc=arc, train=train, encoder=encoder)


def adapt(folder: Path, steps: list[int], tasks: int = 0, lr: float = 0.0, batch: int = 0) -> dict:
    """{"steps": {"0": {exact, cells, n, pass@k ...}, ...}, ...} of the held-out tasks.

    tasks: only the first so many; 0: all.
    """
    cfg, net = load_arc_run(folder)
    own, dataset = config_of_one_task(cfg, lr, batch), data.load(cfg)
    ds, steps = dataset.arc, sorted(steps)
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
        for n in train_to(run, alone, steps):
            found = solve(run.net, own, rows, world)
            answers[n][mine], confidence[n][mine] = found.answers, found.confidence
    plain = plan.augmentation == 0
    labels = episodes.examples(ds, cfg.arc, plan[plain])["labels"]
    figures = {}
    for n in steps:
        votes = episodes.vote(ds, cfg.arc, plan, answers[n], confidence[n])
        figures[str(n)] = score(answers[n][plain], labels) | votes
    return {
        "mode": "test-time training on the demonstrations of each held-out task",
        "tasks": len(chosen),
        "lr": own.train.lr,
        "batch_size": own.train.batch_size,
        "steps": figures,
        "config": flatten(own),
    }


def train_to(run, dataset: data.Dataset, steps: list[int]) -> Iterator[int]:
    """Trains, and stops after each of these steps."""
    cfg = run.cfg
    feed = data.batches(dataset, cfg, cfg.train.batch_size, cfg.seed, 0, device=run.world.device)
    try:
        for n in steps:
            while run.step < n:
                train_step(run, feed)
            yield n
    finally:
        feed.close()


# ---------------------------------------------------------------- known embeddings


def imitate(folder: Path, against: Path, steps: int = 1000, lr: float = 1e-3) -> dict:
    """What a net makes of its puzzle embedding, and of an encoder's imitation of it.

    {"train": {...}, "test": {...}}, each with exact "known" and "imitated", n, and "explained": the
    share of the embedding's variance over training tasks that the imitation has.
    """
    cfg, net = load_arc_run(folder)
    if not isinstance(net, Conditioned) or cfg.arc.mode == "embed":
        raise UserError(f"{folder}: its net reads no demonstrations, expected one with an encoder")
    known_cfg, known = load_arc_run(against)
    embedding_rows(against, known, net)  # or it says what is wrong
    ds, known_ds = data.load(cfg).arc, data.load(known_cfg).arc
    own, theirs = by_name(ds), by_name(known_ds)
    if any(names(ds, own[side]) != names(known_ds, theirs[side]) for side in own):
        raise UserError(f"{against}: has other tasks than {folder}, expected the same")
    batch = {side: one_query_each(queries(ds, cfg, tasks)) for side, tasks in own.items()}
    # The rows of the tasks as they are. Held-out ones have never been trained.
    place = {side: tasks * known_cfg.arc.augmentations for side, tasks in theirs.items()}
    rows = known.puzzles.detach()[place["train"]]
    says = learn_rows(net, batch["train"], rows, steps, lr)
    asked = {side: queries(known_ds, known_cfg, tasks) for side, tasks in theirs.items()}
    found = {side: {"known": solved(known, known_cfg, asked[side])["exact"]} for side in asked}
    with torch.no_grad():
        for side in asked:
            known.puzzles[place[side]] = says(batch[side])
    error = (known.puzzles.detach()[place["train"]] - rows).square().mean()
    found["train"]["explained"] = float(1 - error / rows.var(0, correction=0).mean())
    for side in asked:
        found[side] |= {"imitated": solved(known, known_cfg, asked[side])["exact"]}
        found[side]["n"] = len(asked[side]["task"])
    return found


def by_name(ds: episodes.ArcData) -> dict[str, np.ndarray]:
    """The tasks of both sides, ordered by their names."""
    sides = {"train": trained(ds), "test": ds.test}
    return {side: tasks[np.argsort(names(ds, tasks))] for side, tasks in sides.items()}


def names(ds: episodes.ArcData, tasks: np.ndarray) -> list[str]:
    return [ds.tasks[task].id for task in tasks]


def one_query_each(rows: Rows) -> dict[str, Tensor]:
    """The first query of every task, with its demonstrations. Tasks keep their order."""
    first = np.unique(rows["task"], return_index=True)[1]
    return {name: data.tensor(values[np.sort(first)]) for name, values in rows.items()}


def learn_rows(
    net: Conditioned, batch: dict[str, Tensor], rows: Tensor, steps: int, lr: float
) -> Callable[[dict[str, Tensor]], Tensor]:
    """Teaches the encoder to say these rows (N, D). Returns what it says of a batch."""
    encoder = net.encoder
    scale = rows.std()  # after a short training the rows are small
    head = torch.nn.Linear(net.cfg.prefix * net.cfg.dim, net.cfg.dim)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr)

    def says(batch: dict[str, Tensor]) -> Tensor:
        fresh = torch.ones(len(batch["task"]), dtype=torch.bool)
        context, _, _ = encoder(batch, encoder.reset(None, fresh), None)
        return scale * head(context.float().flatten(1))

    for _ in trange(steps, desc="imitate", unit="step", leave=False):
        optimizer.zero_grad()
        (F.mse_loss(says(batch), rows) / scale**2).backward()
        optimizer.step()
    return says


# ---------------------------------------------------------------- words


def probe_words(folder: Path, found: dict) -> str:
    """probes.json as lines to read."""
    n = found["n"]
    lines = [f"{folder}: n = {n['train']} training and {n['test']} held-out queries"]
    for side, context in found["context"].items():
        lines.append(f"  {side:5} exact {listed(context, '{v:.1f} % ({k} context)', 100)}")
    for side, figures in found["demos"].items():
        exact = {shown: part["exact"] for shown, part in figures.items()}
        words = listed(exact, "{k}: {v:.1f} %", 100)
        lines.append(f"  {side:5} exact by demonstrations shown: {words}")
    for name in ("order", "interface"):
        if found.get(name):
            lines.append(f"  {name}: {listed(found[name], '{k} {v:.4g}')}")
    if found.get("gradient"):
        lines += gradient_words(found["gradient"])
    if "noise" in found:
        lines.append(f"  answers that differ between two samples: {100 * found['noise']:.1f} %")
    return "\n".join(lines)


def listed(values: dict[str, float], form: str, scale: float = 1) -> str:
    """Names k and scaled values v, each pair in a form."""
    return ", ".join(form.format(k=name, v=scale * value) for name, value in values.items())


def gradient_words(found: dict) -> list[str]:
    ratios = ", ".join(f"{ratio:.3g}" for ratio in found["context_over_question"])
    lines = [
        f"  gradient at the context over that at the question, by step: {ratios}",
        f"  gradient by part: {listed(found['parts'], '{k} {v:.3g}')}",
    ]
    cosine = found.get("cosine_between_tasks")
    if cosine is not None:
        lines.append(f"  cosine of the encoder's gradients of two tasks: {cosine:.3g} on average")
    return lines


def adapt_words(folder: Path, found: dict) -> str:
    """adapt.json as lines to read."""
    lines = [f"{folder}: test-time training, a mode of its own"]
    for n, part in found["steps"].items():
        exact, low, high = (100 * part[key] for key in ("exact", "exact_low", "exact_high"))
        share = f"{exact:.1f} % exact ({low:.1f} to {high:.1f}, n = {part['n']})"
        lines.append(f"  {n:>5} steps per task: {share}, {episodes.vote_sentence(part)}")
    return "\n".join(lines)


def imitate_words(folder: Path, against: Path, found: dict) -> str:
    """imitate.json as lines to read."""
    explained = 100 * found["train"]["explained"]
    lines = [f"{folder}: {explained:.1f} % of the variance of {against}'s embedding is imitated"]
    for side, part in found.items():
        lines.append(
            f"  {side:5} exact {100 * part['known']:.1f} % with the embedding, "
            f"{100 * part['imitated']:.1f} % with its imitation (n = {part['n']})"
        )
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
    print(adapt_words(args.run, found))


def imitate_command(argv: list[str]) -> None:
    parser = Parser("probes.py imitate", __doc__)
    parser.add_argument("run", type=Path, help="a run folder of data.task = 'arc', with an encoder")
    parser.add_argument(
        "--against", type=Path, required=True, help="a run with a puzzle embedding, same tasks"
    )
    parser.add_argument("--steps", type=int, default=1000, help="training steps (default: 1000)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate (default: 1e-3)")
    args = parser.parse_args(argv)
    if args.steps < 1 or args.lr <= 0:
        parser.error(f"--steps {args.steps} --lr {args.lr}: expected numbers above 0")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = imitate(args.run, args.against, args.steps, args.lr)
    write_text(args.run / "imitate.json", json.dumps(found, indent=1) + "\n")
    print(imitate_words(args.run, args.against, found))


def probe_command(argv: list[str]) -> None:
    parser = Parser("probes.py", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of data.task = 'arc'")
    parser.add_argument("--against", type=Path, help="a run with a puzzle embedding: interface")
    args = parser.parse_args(argv)
    for folder in args.runs:
        found = probe(folder, args.against)
        write_text(folder / "probes.json", json.dumps(found, indent=1) + "\n")
        print(probe_words(folder, found))


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ["adapt"]:
            adapt_command(argv[1:])
        elif argv[:1] == ["imitate"]:
            imitate_command(argv[1:])
        else:
            probe_command(argv)
    except (UserError, TrainingError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    quiet_output()
    sys.exit(main())
