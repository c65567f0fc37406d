"""Classification without a grid: feature vectors from a known rule or a file, and modular addition. numpy only.

features    (N, F) numbers -> one of C classes; founding document 004's task, with a rule whose best possible accuracy is known
modular     a + b modulo p, the task on which grokking was found (arXiv 2201.02177) and Grokfast was shown (2405.20233)
"""

import csv
import zipfile

import numpy as np

from config import UserError

LATENT, LEVELS, BRANCH, SHRINK = 8, 2, 3, 0.7  # of the generated classes: see `centres`


def centres(features: int, classes: int, g: np.random.Generator) -> np.ndarray:
    """(C, leaves, F): every class is a tree. Its root is a random point; each point has BRANCH children around it, SHRINK times
    as far as those of the level above. Leaves lie in a LATENT-dimensional subspace of the features, which have variance 1 or more."""
    points = g.normal(size=(classes, 1, LATENT))
    for level in range(1, LEVELS + 1):
        around = g.normal(size=(classes, points.shape[1], BRANCH, LATENT))
        points = (points[:, :, None] + SHRINK**level * around).reshape(classes, -1, LATENT)
    basis = np.linalg.qr(g.normal(size=(max(features, LATENT), LATENT)))[0][:features]
    return points @ basis.T * np.sqrt(features / LATENT)


def generate_features(
    count: int, leaves: np.ndarray, noise: float, g: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(N, F) float32 and (N, 1) int64: a random class, a random leaf of its tree, Gaussian noise on every feature."""
    label, leaf = g.integers(leaves.shape[0], size=count), g.integers(leaves.shape[1], size=count)
    return (leaves[label, leaf] + noise * g.normal(size=(count, leaves.shape[2]))).astype(
        np.float32
    ), label[:, None]


def bayes(inputs: np.ndarray, leaves: np.ndarray, noise: float) -> np.ndarray:
    """(N, 1) the most probable class given the rule itself: no classifier is better on average, so this is the ceiling."""
    C, K, F = leaves.shape
    near = (
        inputs @ leaves.reshape(-1, F).T - (leaves**2).sum(-1).reshape(-1) / 2
    )  # |x|^2 / 2 cancels
    score = near.reshape(-1, C, K) / noise**2
    top = score.max((1, 2), keepdims=True)
    return np.exp(score - top).sum(2).argmax(1)[:, None]


def read_features(path: str) -> tuple[np.ndarray, np.ndarray]:
    """(N, F) float32 and (N, 1) int64 from an .npz (arrays `features` and `labels`) or a .csv (header; the last column is the label).

    Raises UserError for a missing or damaged file, other shapes, values that are no numbers, labels that are no whole numbers >= 0.
    """
    try:
        if str(path).endswith(".npz"):
            with np.load(path, allow_pickle=False) as file:
                missing = {"features", "labels"} - set(file.files)
                if missing:
                    raise UserError(
                        f"{path}: has arrays {sorted(file.files)}, expected features and labels"
                    )
                x, y = file["features"], file["labels"]
        else:
            with open(path, newline="", encoding="utf-8-sig") as file:
                header, *rows = csv.reader(file)
            for at, row in enumerate(rows, 2):
                if len(row) != len(header):
                    raise UserError(
                        f"{path}, line {at}: has {len(row)} columns, expected {len(header)}"
                    )
            table = np.array(rows, dtype=np.float64).reshape(len(rows), len(header))
            x, y = table[:, :-1], table[:, -1]
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float64)
    except UserError:
        raise
    except (
        OSError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        UnicodeDecodeError,
        csv.Error,
    ) as error:
        raise UserError(
            f"{path}: cannot be read as features and labels ({getattr(error, 'strerror', None) or error})"
        ) from None
    if x.ndim != 2 or y.shape not in ((len(x),), (len(x), 1)) or not x.size:
        raise UserError(
            f"{path}: features have shape {x.shape} and labels {y.shape}, expected (N, F) and (N,) with N and F at least 1"
        )
    y = y.reshape(-1, 1)
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise UserError(
            f"{path}, row {row + 1}: feature {column + 1} is {x[row, column]}, expected a finite number"
        )
    bad = np.flatnonzero(~(y >= 0) | (y != np.floor(y)))
    if bad.size:
        raise UserError(
            f"{path}, row {bad[0] + 1}: label {y[bad[0], 0]:g}, expected a whole number from 0 on"
        )
    return x, y.astype(np.int64)


def additions(p: int) -> tuple[np.ndarray, np.ndarray]:
    """All p * p sums: (p * p, 3) int64 tokens a, b, '=' (which is p) and (p * p, 1) labels a + b mod p."""
    a, b = np.divmod(np.arange(p * p), p)
    return np.stack([a, b, np.full(p * p, p)], 1), ((a + b) % p)[:, None]
