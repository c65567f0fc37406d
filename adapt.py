"""Test-time training: `python adapt.py runs/laptop/arc_E1v2/seed0 [--steps 0,50,200] [--tasks 8] [--lr 1e-3]`.

For each held-out task the net starts from the run's best checkpoint and learns on that task's demonstrations alone, each asked with the
others shown (with a puzzle embedding: each asked), under the run's augmentations; its queries are asked after so many steps, then the net is
reset. Writes adapt.json into the run folder. These are figures of a separate mode: never to be mixed with those of a net that does not
learn at test time, which stand at 0 steps. Exit codes: 0 done, 2 bad input.
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import torch

import arc
import data
from arc_report import score, solve
from config import Parser, flatten
from model import Shape
from puzzles import UserError
from runs import TrainingError, write_atomic
from train import Config, load_run, make_run, make_world, train_step


def learning(cfg: Config, lr: float, batch: int) -> Config:
    """The configuration in which a net learns one task."""
    mode = "embed" if cfg.arc.mode == "embed" else "loo"
    train = dataclasses.replace(cfg.train, warmup=0, schedule="constant", ema=0.0, lr=lr or cfg.train.lr, batch_size=batch or cfg.train.batch_size, compile="off")
    encoder = dataclasses.replace(cfg.encoder, decoder="", freeze_steps=0, freeze_decoder_steps=0)
    return dataclasses.replace(cfg, arc=dataclasses.replace(cfg.arc, mode=mode), train=train, encoder=encoder)


def adapt(folder: Path, steps: list[int], tasks: int = 0, lr: float = 0.0, batch: int = 0) -> dict:
    """{"steps": {"0": {exact, cells, n, pass@k ...}, ...}, ...} over the first `tasks` (0: all) held-out tasks."""
    cfg, net, _ = load_run(folder)
    if cfg.data.task != "arc":
        raise UserError(f"{folder}: a run of data.task = {cfg.data.task!r}, expected 'arc'")
    own, dataset = learning(cfg, lr, batch), data.load(cfg.data, cfg.arc)
    ds, _ = dataset.arc
    chosen, world = ds.test[: tasks or None], make_world(own.train)
    plan = arc.queries(ds, cfg.arc, chosen)
    answers = {n: np.zeros((len(plan), cfg.arc.side**2), np.int64) for n in steps}
    confidence = {n: np.zeros(len(plan)) for n in steps}
    for task in chosen:
        mine = plan.task == task
        rows = arc.examples(ds, cfg.arc, plan[mine])
        alone = dataclasses.replace(dataset, arc=(dataclasses.replace(ds, train=np.array([task])), own.arc))
        run = make_run(own, folder, world, Shape(**dataset.shape))
        run.net.load_state_dict(net.state_dict())
        feed = data.batches(alone, own.data, own.train.batch_size, own.seed, 0, device=world.device)
        try:
            for n in sorted(steps):
                while run.step < n:
                    train_step(run, feed)
                answers[n][mine], confidence[n][mine], _ = solve(run.net, own, rows, world)
        finally:
            feed.close()
    plain = plan.augmentation == 0
    labels = arc.examples(ds, cfg.arc, plan[plain])["labels"]
    return {"mode": "test-time training on the demonstrations of each held-out task", "tasks": len(chosen), "lr": own.train.lr, "batch_size": own.train.batch_size,
            "steps": {str(n): score(answers[n][plain], labels) | arc.vote(ds, cfg.arc, plan, answers[n], confidence[n]) for n in sorted(steps)},
            "config": flatten(own)}


def main(argv: list[str] | None = None) -> int:
    parser = Parser("adapt.py", __doc__)
    parser.add_argument("run", type=Path, help="a run folder of data.task = 'arc'")
    parser.add_argument("--steps", default="0,50,200", help="training steps per task after which its queries are asked (default: 0,50,200)")
    parser.add_argument("--tasks", type=int, default=0, help="how many held-out tasks (default: all)")
    parser.add_argument("--lr", type=float, default=0.0, help="learning rate (default: the run's)")
    parser.add_argument("--batch", type=int, default=0, help="slots (default: the run's batch_size)")
    try:
        args = parser.parse_args(argv)
        words = args.steps.split(",")
        if not all(word.isdecimal() for word in words) or min(args.tasks, args.batch, args.lr) < 0:
            parser.error(f"--steps {args.steps} --tasks {args.tasks} --batch {args.batch} --lr {args.lr}: expected numbers of 0 or more, steps separated by commas")
        torch.set_num_threads(1)
        found = adapt(args.run, sorted({int(word) for word in words}), args.tasks, args.lr, args.batch)
        write_atomic(args.run / "adapt.json", lambda f: f.write((json.dumps(found, indent=1) + "\n").encode()))
    except (UserError, TrainingError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(f"{args.run}: test-time training, a mode of its own")
    for n, part in found["steps"].items():
        print(f"  {n:>5} steps per task: {100 * part['exact']:.1f} % exact ({100 * part['exact_low']:.1f} to {100 * part['exact_high']:.1f}, n = {part['n']}), {arc.sentence(part)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
