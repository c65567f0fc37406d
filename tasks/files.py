"""Rows from files, and the public files: where they are, how they are fetched and checked.

numpy only. `python data.py download maze_hard` calls `download`.
"""

import contextlib
import csv
import gzip
import hashlib
import json
import lzma
import os
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from itertools import islice
from pathlib import Path

import numpy as np

from config import UserError, refuse_device
from tasks.puzzles import number_of_cells

BAD_FILE = (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError, csv.Error)
COLUMNS = "question", "answer"
BLOCK = 65536  # rows read at a time: this bounds the memory


def open_text(path: str):
    """A text file for csv: plain, or compressed as .gz or .xz, in small or capital letters.

    A byte order mark is left out. Raises UserError for a pipe or a device.
    """
    refuse_device(path)
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(Path(path).suffix.lower(), open)
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def read_arrays(
    path: str, names: tuple[str, ...], what: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of an .npz that are among `names`, and the names of all that it has.

    what: the file should hold, in words. Raises UserError for a file that is no such thing, that
    claims to be larger than the memory, or has arrays of something else than real numbers.
    """
    refuse_device(path)
    try:
        with open_npz(path) as file:
            found = sorted(file.files)
            arrays = {name: file[name] for name in names if name in found}
        for name, values in arrays.items():
            if values.dtype.kind not in "biuf":
                raise ValueError(f"{name} holds {values.dtype}, expected real numbers")
    except Exception as error:  # numpy and zipfile raise whatever they like at a damaged file
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = reason.splitlines()[0]
        raise UserError(f"{path}: cannot be read as {what} ({reason})") from None
    return arrays, found


def open_npz(path: str):
    """np.load for an .npz. Raises ValueError for a single array, an .npy."""
    file = np.load(path, mmap_mode="r", allow_pickle=False)  # the mode is for an .npy alone
    if isinstance(file, np.ndarray):
        raise ValueError("it is an .npy, one array without a name, expected an .npz")
    return file


def digest(*paths: str) -> str:
    """SHA-256 of a file, or of several as if they were one."""
    found = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest()


# ---------------------------------------------------------------- data folders of the public code
# DATA/train and DATA/test hold all__inputs.npy and all__labels.npy, integers (N, L), which are the
# tokens of tasks/puzzles.py: character k of "# SGo" is k + 1, digit d is d + 1, 0 is padding.


def files_of(path: str, split: str) -> list[str]:
    """The files with the rows of a split: the file itself, or two arrays of a data folder.

    The folder may be that of the data set or of one split.
    """
    if not os.path.isdir(path):
        return [path]
    inside = Path(path) / split
    folder = inside if inside.is_dir() else Path(path)
    return [str(folder / f"all__{name}.npy") for name in ("inputs", "labels")]


def read_folder(path: str, split: str, side: int, least: tuple[int, int], most: tuple[int, int]):
    """Questions and answers of a data folder, two (N, L) uint8 arrays.

    least, most: the tokens that questions and answers may have. Raises UserError.
    """
    paths = files_of(path, split)
    check_description(Path(paths[0]).with_name("dataset.json"), side)
    inputs, labels = (
        read_tokens(file, side, *limits) for file, limits in zip(paths, zip(least, most))
    )
    if len(inputs) != len(labels):
        raise UserError(f"{paths[1]}: has {len(labels)} rows, expected {len(inputs)} as the inputs")
    return inputs, labels


def read_tokens(file: str, side: int, least: int, most: int) -> np.ndarray:
    """An .npy of tokens as (N, side * side) uint8. Raises UserError."""
    refuse_device(file)
    try:
        values = np.load(file, mmap_mode="r", allow_pickle=False)
        kind, shape = values.dtype.kind, values.shape
    except FileNotFoundError:
        raise UserError(
            f"{file} does not exist, expected a data folder of the public code: "
            "train/all__inputs.npy, train/all__labels.npy, and so for test"
        ) from None
    except Exception as error:  # numpy raises whatever it likes at a damaged file
        raise UserError(
            f"{file}: cannot be read as an array of tokens ({type(error).__name__})"
        ) from None
    if kind not in "iu" or len(shape) != 2 or not shape[0]:
        found = f"{values.dtype} of shape {shape}"
        raise UserError(f"{file}: holds {found}, expected integers (rows, cells)")
    if shape[1] != side * side:
        found = number_of_cells(shape[1])
        raise UserError(f"{file}: has {found} a row, expected {side * side} ({side}x{side})")
    tokens = np.zeros(shape, np.uint8)
    for at in range(0, len(values), BLOCK):  # this bounds the memory
        block = np.asarray(values[at : at + BLOCK])
        bad = (block < least) | (block > most)
        if bad.any():
            row, cell = np.argwhere(bad)[0]
            raise UserError(
                f"{file}, row {at + row + 1}: has the token {block[row, cell]} at position "
                f"{cell + 1}, expected {least} to {most}"
            )
        tokens[at : at + BLOCK] = block
    return tokens


def check_description(file: Path, side: int) -> None:
    """Raises UserError for a dataset.json of other puzzles. There may be none."""
    if not file.exists():
        return
    refuse_device(file)
    try:
        length = json.loads(file.read_text(encoding="utf-8-sig"))["seq_len"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise UserError(f"{file}: cannot be read, expected JSON with the key seq_len") from None
    if length != side * side:
        raise UserError(f"{file}: seq_len is {length}, expected {side * side} ({side}x{side})")


def read_rows(path: str, tokens: Callable, advice: str) -> tuple[np.ndarray, np.ndarray]:
    """The columns question and answer of a .csv, .csv.gz or .csv.xz, as two (N, L) token arrays.

    `tokens(texts, where, answer)` makes the tokens of some rows of a column; `where(row)` begins
    the sentence about a bad one. Other columns are ignored. `advice` ends the sentence about a
    missing file. Raises UserError for a missing, empty or damaged file and for a missing column.
    """
    if os.path.isdir(path) or path.endswith(".npy"):
        kind = "an array" if path.endswith(".npy") else "a folder"
        raise UserError(f"{path} is {kind}, expected a CSV with the columns question and answer")
    try:
        with open_text(path) as file:
            parts = list(read_blocks(path, csv.reader(file), tokens))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {advice}") from None
    except BAD_FILE as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}); is it damaged?") from None
    if not parts:
        raise UserError(f"{path} has a header but no rows")
    inputs, labels = zip(*parts)
    return np.concatenate(inputs), np.concatenate(labels)


def read_blocks(path: str, reader, tokens: Callable) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Questions and answers as tokens, BLOCK rows at a time. Empty lines are left out."""
    header = next(reader, None)
    if header is None:
        raise UserError(f"{path} is empty, expected a CSV with the columns question and answer")
    for name in COLUMNS:
        if name not in header:
            found = ", ".join(header)[:80]
            raise UserError(f"{path} has no column {name!r}, it has {found!r}")
    question, answer = (header.index(name) for name in COLUMNS)
    rows = (row for row in reader if row)
    done = 0
    while block := list(islice(rows, BLOCK)):
        for number, row in enumerate(block, done + 1):
            if len(row) <= max(question, answer):
                raise UserError(f"{path}, row {number}: {len(row)} columns, expected {len(header)}")
        questions, answers = [row[question] for row in block], [row[answer] for row in block]
        yield (
            tokens(questions, place(path, done, "question"), False),
            tokens(answers, place(path, done, "answer"), True),
        )
        done += len(block)


def place(path: str, done: int, column: str) -> Callable[[int], str]:
    """Names a row of a block, counted from 0, that begins behind `done` rows of a file."""
    return lambda row: f"{path}, row {done + row + 1}: the {column}"


# ---------------------------------------------------------------- the public files


@dataclass(frozen=True)
class Public:
    """A public data set of two files, train.csv and test.csv."""

    task: str  # data.task
    side: int  # of a puzzle
    url: str  # the folder of both files, below `hub`
    rows: tuple[int, int]  # of train.csv and test.csv
    # hashes of the puzzles in each: see `hash_puzzles`; empty: not known
    hashes: tuple[str, str] = ("", "")


PUBLIC = {
    "maze_hard": Public(
        task="maze",
        side=30,
        url="datasets/sapientinc/maze-30x30-hard-1k/resolve/main",
        rows=(1000, 1000),
        hashes=(
            "6c336d012943a4f3a3cdc23df43cc1b23b1e57951b3488a25e67033e9d9dd3c1",
            "574108df83a30578ae0d7ca211c3ffd2d0fdbe0ea7daf8be50eb3b9af365ff58",
        ),
    ),
    "sudoku_extreme": Public(
        task="sudoku",
        side=9,
        url="datasets/sapientinc/sudoku-extreme/resolve/main",
        rows=(3_831_994, 422_786),
    ),
}


def hash_puzzles(inputs: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 of the puzzles alone, sorted.

    The same for any compression, line ending, row order and further columns.
    """
    rows = np.concatenate([inputs, labels], 1)
    return hashlib.sha256(b"".join(sorted(row.tobytes() for row in rows))).hexdigest()


def hub() -> str:
    """Where the public sets are: Hugging Face, or a mirror that HF_ENDPOINT names."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def fetch_public(path: str) -> None:
    """Download the file of a public set that a path names. Raises UserError."""
    try:
        download_one(*public_file(Path(path).name), Path(path))
    except UserError as error:
        words = "or train on generated puzzles: --data.generate=true"
        raise UserError(f"{error}; {words}") from None


def public_file(name: str) -> tuple[str, str] | None:
    """The set of PUBLIC and the split, "train" or "test", that a file name tells."""
    for key in PUBLIC:
        for split in ("train", "test"):
            if name == f"{key}_{split}.csv":
                return key, split
    return None


def download(name: str, to: str = "data", url: str = "") -> list[Path]:
    """Fetch the train and test file of a set of PUBLIC into a folder, unless they are there.

    Raises UserError with the file to fetch by hand.
    """
    paths = {split: Path(to) / f"{name}_{split}.csv" for split in ("train", "test")}
    for split, path in paths.items():
        if path.exists():
            print(f"{path} is there already")
        else:
            download_one(name, split, path, url)
    return list(paths.values())


def download_one(name: str, split: str, path: Path, url: str = "") -> None:
    """Fetch a file of a public set. url: another folder that holds it.

    It gets its name only once its length is what the server announced, every row can be read, and
    their number (and the puzzles, where known) are right. Proxy variables are respected, and
    HF_ENDPOINT. Raises UserError with the file to fetch by hand.
    """
    public, which = PUBLIC[name], ("train", "test").index(split)
    url = (url or f"{hub().rstrip('/')}/{public.url}").rstrip("/")
    rows, known = public.rows[which], public.hashes[which]
    sha = fetch_checked(public, f"{url}/{split}.csv", path, rows, known)
    print(f"{path}  {rows} rows  sha256 {sha}")


def fetch_checked(public: Public, source: str, path: Path, rows: int, known: str) -> str:
    """Download a file of a public set, to another name until it is checked; its SHA-256."""
    part = path.with_suffix(f".part{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sha = fetch(source, part)
        check_puzzles(public, part, rows, known)
        os.replace(part, path)
        return sha
    except (UserError, OSError, ValueError, HTTPException) as error:  # ValueError: bad address
        why = str(error).replace(str(part), "the file") or type(error).__name__
        raise UserError(
            f"no {path} from {source} ({why}); fetch that address by hand and save it as {path}"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def fetch(source: str, path: Path) -> str:
    """Download to a path with a progress bar; the SHA-256.

    Raises UserError if fewer bytes come than announced.
    """
    from tqdm import tqdm

    sha, got = hashlib.sha256(), 0
    opener = urllib.request.build_opener()  # reads the proxy variables now
    with opener.open(source, timeout=60) as answer, open(path, "wb") as file:
        total = int(answer.headers.get("Content-Length") or 0)
        name = source.rsplit("/", 1)[1]
        with tqdm(total=total or None, unit="B", unit_scale=True, desc=name) as bar:
            while block := answer.read(1 << 16):
                file.write(block)
                sha.update(block)
                got += len(block)
                bar.update(len(block))
    if total and got != total:
        raise UserError(f"the connection ended after {got} of {total} bytes")
    return sha.hexdigest()


def check_puzzles(public: Public, path: Path, rows: int, known: str) -> None:
    """Raises UserError unless a file holds so many rows, with the puzzles of a known hash."""
    import tasks  # which imports this file

    task = tasks.get(public.task)
    inputs, labels = task.read(str(path), task.Config(size=public.side), "train")
    if len(inputs) != rows:
        raise UserError(f"it has {len(inputs)} rows, expected {rows}")
    if known and hash_puzzles(inputs, labels) != known:
        raise UserError("its puzzles are not those of the data set")
