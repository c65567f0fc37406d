"""Data sets and batches: `load` makes the splits of a configuration, `batches` feeds training.

Everything random is a pure function of a key, rng(seed, stream, step, ...): a loader has no
state, so nothing needs saving to resume, and any number of ranks sees the batches that one
process would see. What a row is, a task says: see tasks/. numpy only; torch enters in `batches`.

    python data.py download maze_hard      fetch the real files into data/; also: sudoku_extreme
"""

import config as _config  # noqa: F401, I001  first: it says so where packages are missing

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count as count_from
from types import SimpleNamespace

import numpy as np

import tasks
from config import UserError, quiet_output, refuse_problems
from tasks.base import Dataset, Split, rng  # noqa: F401, Split and rng for users of data
from tasks.files import PUBLIC, download
from tasks.puzzles import solve_maze, solve_sudoku  # noqa: F401, for users of data


def load(cfg) -> Dataset:
    """The three splits of a run's configuration, with their card. Deterministic in cfg.

    No split shares a row with another, up to the symmetries that the task knows. Most tasks need
    the table [data] alone, which may stand for the whole. Raises UserError for bad files and
    impossible values.
    """
    cfg = whole(cfg)
    refuse_problems(cfg.data, "data")
    try:
        return tasks.get(cfg.data.task).load(cfg)
    except MemoryError as e:
        raise UserError(f"data: more rows than fit into memory ({e}), expected fewer") from None


def whole(cfg):
    """A run's configuration, or one that holds the table [data] alone."""
    return cfg if hasattr(cfg, "data") else SimpleNamespace(data=cfg)


def draw(
    dataset: Dataset, cfg, size: int, seed: int, step: int, rank: int = 0, world: int = 1
) -> dict[str, np.ndarray]:
    """Rows rank * size / world and following of the global batch of a step.

    The batch is a pure function of (seed, step): {"inputs": (B, L), "labels": (B, L),
    "puzzle": (B,), ...} with B = size / world, and further columns that the task's net reads.
    """
    if size % world:
        raise UserError(f"a batch of {size} does not divide among {world} processes")
    cfg, mine = whole(cfg), slice(rank * size // world, (rank + 1) * size // world)
    return tasks.get(cfg.data.task).draw(dataset, cfg, size, seed, step, mine)


def tensor(values: np.ndarray):
    """float32 and bool as they are, everything else as int64."""
    import torch

    kept = values.dtype in (np.float32, bool)
    return torch.from_numpy(values if kept else values.astype(np.int64))


def batches(
    dataset: Dataset, cfg, size: int, seed: int, first_step: int, rank=0, world=1, device="cpu"
) -> Iterator[dict]:
    """Endless draws of steps first_step, first_step + 1, ... as tensors on `device`.

    One thread works one batch ahead; close() the iterator (or let it go) and the thread ends.
    An error of a draw is raised here.
    """
    import torch

    cuda = torch.device(device).type == "cuda"

    def make(step: int) -> dict:
        batch = draw(dataset, cfg, size, seed, step, rank, world)
        tensors = {name: tensor(value) for name, value in batch.items()}
        return {name: t.pin_memory() for name, t in tensors.items()} if cuda else tensors

    thread = ThreadPoolExecutor(1, "draw")
    try:
        ahead = thread.submit(make, first_step)
        for step in count_from(first_step + 1):
            batch, ahead = ahead.result(), thread.submit(make, step)
            yield {name: t.to(device, non_blocking=cuda) for name, t in batch.items()}
    finally:
        thread.shutdown(wait=True, cancel_futures=True)


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="data.py",
        description="Fetch the real puzzle files; everything else works without them.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("download", help="fetch train.csv and test.csv of a public set")
    command.add_argument("name", choices=sorted(PUBLIC))
    command.add_argument("--to", default="data", help="folder (default: data)")
    command.add_argument("--url", default="", help="another address that holds both files")
    args = parser.parse_args(argv)
    try:
        download(args.name, args.to, args.url)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    quiet_output()
    main()
