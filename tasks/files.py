"""Rows from files, and the public files: where they are, how they are fetched and checked.

numpy only. `python data.py download maze_hard` calls `download`.
"""

import contextlib
import csv
import gzip
import hashlib
import lzma
import os
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from itertools import islice
from pathlib import Path

import numpy as np

from config import UserError

BAD_FILE = (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError, csv.Error)
COLUMNS = "question", "answer"
BLOCK = 65536  # rows read at a time: this bounds the memory


def digest(path: str) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def read_rows(path: str, tokens: Callable, advice: str) -> tuple[np.ndarray, np.ndarray]:
    """The columns question and answer of a .csv, .csv.gz or .csv.xz, as two (N, L) token arrays.

    `tokens(texts, where, answer)` makes the tokens of some rows of a column; `where(row)` begins
    the sentence about a bad one. Other columns are ignored. `advice` ends the sentence about a
    missing file. Raises UserError for a missing, empty or damaged file and for a missing column.
    """
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(Path(path).suffix, open)
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            parts = list(_blocks(path, csv.reader(file), tokens))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {advice}") from None
    except BAD_FILE as error:
        reason = error or type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}); is it damaged?") from None
    if not parts:
        raise UserError(f"{path} has a header but no rows")
    inputs, labels = zip(*parts)
    return np.concatenate(inputs), np.concatenate(labels)


def _blocks(path: str, reader, tokens: Callable):
    """(questions, answers) of block after block."""
    header = next(reader, None)
    if header is None:
        raise UserError(f"{path} is empty, expected a CSV with the columns question and answer")
    for name in COLUMNS:
        if name not in header:
            found = ", ".join(header)[:80]
            raise UserError(f"{path} has no column {name!r}, it has {found!r}")
    places = [header.index(name) for name in COLUMNS]
    rows, done = (row for row in reader if row), 0
    while block := list(islice(rows, BLOCK)):
        for number, row in enumerate(block, done + 1):
            if len(row) <= max(places):
                raise UserError(f"{path}, row {number}: {len(row)} columns, expected {len(header)}")
        yield [
            tokens([row[place] for row in block], _where(path, done, name), name == "answer")
            for name, place in zip(COLUMNS, places)
        ]
        done += len(block)


def _where(path: str, done: int, name: str) -> Callable[[int], str]:
    return lambda at: f"{path}, row {done + at + 1}: the {name}"


# ---------------------------------------------------------------- the public files


@dataclass(frozen=True)
class Public:
    """A public data set of two files, train.csv and test.csv."""

    task: str
    side: int
    url: str
    rows: tuple[int, int]  # of the two files
    # of the puzzles in each: see `content`; empty where the set is not at hand
    contents: tuple[str, str] = ("", "")


HUB = "https://huggingface.co/datasets/sapientinc"
PUBLIC = {
    "maze_hard": Public(
        "maze",
        30,
        f"{HUB}/maze-30x30-hard-1k/resolve/main",
        (1000, 1000),
        (
            "6c336d012943a4f3a3cdc23df43cc1b23b1e57951b3488a25e67033e9d9dd3c1",
            "574108df83a30578ae0d7ca211c3ffd2d0fdbe0ea7daf8be50eb3b9af365ff58",
        ),
    ),
    "sudoku_extreme": Public(
        "sudoku", 9, f"{HUB}/sudoku-extreme/resolve/main", (3_831_994, 422_786)
    ),
}


def content(inputs: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 of the puzzles alone, sorted.

    The same for any compression, line ending, row order and further columns.
    """
    rows = np.concatenate([inputs, labels], 1)
    return hashlib.sha256(b"".join(sorted(row.tobytes() for row in rows))).hexdigest()


def fetch(source: str, path: Path) -> str:
    """Download to a path with a progress bar; the SHA-256.

    Raises UserError if fewer bytes come than announced.
    """
    from tqdm import tqdm

    found, got = hashlib.sha256(), 0
    opener = urllib.request.build_opener()  # reads the proxy variables now
    with opener.open(source, timeout=60) as answer, open(path, "wb") as file:
        total = int(answer.headers.get("Content-Length") or 0)
        name = source.rsplit("/", 1)[1]
        with tqdm(total=total or None, unit="B", unit_scale=True, desc=name) as bar:
            while block := answer.read(1 << 16):
                file.write(block)
                found.update(block)
                got += len(block)
                bar.update(len(block))
    if total and got != total:
        raise UserError(f"the connection ended after {got} of {total} bytes")
    return found.hexdigest()


def download(name: str, to: str = "data", url: str = "") -> list[Path]:
    """Fetch the train and test file of a set of PUBLIC into a folder, unless they are there.

    A file gets its name only once its length is what the server announced, every row can be read,
    and their number (and content, where known) is right. Proxy variables are respected.
    Raises UserError with the file to fetch by hand.
    """
    public = PUBLIC[name]
    paths = [Path(to) / f"{name}_{split}.csv" for split in ("train", "test")]
    for path, split, rows, known in zip(paths, ("train", "test"), public.rows, public.contents):
        if path.exists():
            print(f"{path} is there already")
            continue
        source = f"{(url or public.url).rstrip('/')}/{split}.csv"
        part = path.with_suffix(f".part{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sha = fetch(source, part)
            _check(public, part, rows, known)
            os.replace(part, path)
        except (UserError, OSError, ValueError, HTTPException) as error:  # ValueError: bad address
            why = str(error).replace(str(part), "the file") or type(error).__name__
            raise UserError(
                f"no {path} from {source} ({why}); fetch that address by hand and save it as {path}"
            ) from None
        finally:
            with contextlib.suppress(OSError):
                part.unlink()
        print(f"{path}  {rows} rows  sha256 {sha}")
    return paths


def _check(public: Public, part: Path, rows: int, known: str) -> None:
    """Raises UserError unless a fetched file holds the puzzles of the data set."""
    import tasks

    task = tasks.get(public.task)
    inputs, labels = task.read(str(part), task.Config(size=public.side), "train")
    if len(inputs) != rows:
        raise UserError(f"it has {len(inputs)} rows, expected {rows}")
    if known and content(inputs, labels) != known:
        raise UserError("its puzzles are not those of the data set")
