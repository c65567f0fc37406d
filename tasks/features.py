"""Rows for classification without a grid: feature vectors, and modular addition. numpy only.

features    (N, F) numbers -> one of C classes, from a file or from a rule whose best possible
            accuracy is known
modular     a + b modulo p, the task on which grokking was found (arXiv 2201.02177) and Grokfast
            was shown (arXiv 2405.20233)
"""

import csv

import numpy as np

from config import UserError
from tasks.files import BAD_FILE, open_text, read_arrays

# The trees of `centres`: dimension, levels below the root, children of a point, and how much
# closer the children of each level are.
LATENT, LEVELS, BRANCH, SHRINK = 8, 2, 3, 0.7
WHAT = "features and labels"
MOST_CLASSES = 65_536  # a net has an output for each


# ---------------------------------------------------------------- generated vectors


def centres(features: int, classes: int, g: np.random.Generator) -> np.ndarray:
    """(C, leaves, F): the centres of the classes. Each class is a tree, its centres the leaves.

    The root is a random point. Each point has BRANCH children around it, SHRINK times as far
    away as those of the level above. All lie in a subspace of LATENT dimensions of the features,
    which have variance 1 or more.
    """
    points = g.normal(size=(classes, 1, LATENT))
    for level in range(1, LEVELS + 1):
        around = g.normal(size=(classes, points.shape[1], BRANCH, LATENT))
        children = points[:, :, None] + SHRINK**level * around
        points = children.reshape(classes, -1, LATENT)
    basis = np.linalg.qr(g.normal(size=(max(features, LATENT), LATENT)))[0][:features]
    return points @ basis.T * np.sqrt(features / LATENT)


def generate_features(
    count: int, leaves: np.ndarray, noise: float, g: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (N, F) float32 and their classes (N, 1) int64.

    A random class, a random leaf of its tree, and Gaussian noise on every feature.
    """
    classes, leaves_each, features = leaves.shape
    label = g.integers(classes, size=count)
    leaf = g.integers(leaves_each, size=count)
    vectors = leaves[label, leaf] + noise * g.normal(size=(count, features))
    return vectors.astype(np.float32), label[:, None]


def bayes(inputs: np.ndarray, leaves: np.ndarray, noise: float) -> np.ndarray:
    """(N, 1) the most probable class of each vector, given the rule itself.

    No classifier is better on average, so this is the ceiling.
    """
    C, K, F = leaves.shape
    centre = leaves.reshape(-1, F)
    # -|x - c|^2 / 2 without |x|^2 / 2, which is the same for all centres.
    closeness = inputs @ centre.T - (leaves**2).sum(-1).reshape(-1) / 2
    score = closeness.reshape(-1, C, K) / noise**2  # log densities, but for a constant
    top = score.max((1, 2), keepdims=True)  # against overflow
    return np.exp(score - top).sum(2).argmax(1)[:, None]


# ---------------------------------------------------------------- vectors from files


def read_features(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (N, F) float32 and their classes (N, 1) int64 of a file.

    An .npz has the arrays `features` and `labels`. A .csv (.csv.gz, .csv.xz) has a header, and
    the label last; empty lines are left out. Raises UserError for a missing or damaged file, other
    shapes, features that are no finite numbers, and labels that are no whole numbers from 0 on,
    below MOST_CLASSES.
    """
    x, y = read_npz(path) if str(path).lower().endswith(".npz") else read_csv(path)
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused below
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float64)
    if x.ndim != 2 or y.shape not in ((len(x),), (len(x), 1)) or not x.size:
        raise UserError(
            f"{path}: features have shape {x.shape} and labels {y.shape}, "
            "expected (N, F) and (N,) with N and F at least 1"
        )
    y = y.reshape(-1, 1)
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise UserError(
            f"{path}, row {row + 1}: feature {column + 1} is {x[row, column]}, "
            "expected a finite number"
        )
    bad = np.flatnonzero(~(y >= 0) | (y != np.floor(y)) | (y >= MOST_CLASSES))
    if bad.size:
        raise UserError(
            f"{path}, row {bad[0] + 1}: label {y[bad[0], 0]:g}, expected a whole number from 0 on, "
            f"below {MOST_CLASSES}"
        )
    return x, y.astype(np.int64)


def read_npz(path: str) -> tuple[np.ndarray, np.ndarray]:
    """The arrays `features` and `labels` as they are."""
    arrays, found = read_arrays(path, ("features", "labels"), WHAT)
    if len(arrays) < 2:
        raise UserError(f"{path}: has arrays {found}, expected features and labels")
    return arrays["features"], arrays["labels"]


def read_csv(path: str) -> tuple[np.ndarray, np.ndarray]:
    """The columns of a table with a header: all but the last, and the last."""
    try:
        with open_text(path) as file:
            reader = csv.reader(file)
            header = next(reader, [])
            # Spreadsheets leave lines of nothing, or of commas alone, at the end.
            lines = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
        for line, row in lines:
            if len(row) != len(header):
                raise UserError(
                    f"{path}, line {line}: has {len(row)} columns, expected {len(header)}"
                )
        rows = [row for _, row in lines]
        table = np.array(rows, dtype=np.float64).reshape(len(rows), len(header))
    except (*BAD_FILE, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read as {WHAT} ({reason})") from None
    if not rows:
        lack = "it has a header but no rows" if header else "it is empty"
        raise UserError(f"{path}: cannot be read as {WHAT} ({lack}), expected a header and rows")
    return table[:, :-1], table[:, -1]


# ---------------------------------------------------------------- modular addition


def additions(p: int) -> tuple[np.ndarray, np.ndarray]:
    """All sums: (p * p, 3) int64 tokens a, b, '=' (which is p), and (p * p, 1) a + b modulo p."""
    a, b = np.divmod(np.arange(p * p), p)
    equals = np.full(p * p, p)
    return np.stack([a, b, equals], 1), ((a + b) % p)[:, None]


def products(p: int) -> tuple[np.ndarray, np.ndarray]:
    """Every product a * b modulo p with b > 0: (p * (p - 1), 4) tokens a, "*", b, "=".

    "*" is p and "=" is p + 1, as in the published code of Grokfast. Labels (p * (p - 1), 1).
    """
    a, b = (side.ravel() for side in np.meshgrid(np.arange(p), np.arange(1, p), indexing="ij"))
    times, equals = np.full(len(a), p), np.full(len(a), p + 1)
    return np.stack([a, times, b, equals], 1), (a * b % p)[:, None]
