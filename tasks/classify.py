"""Tasks `features` and `modular`: one class per row, no grid.

features: vectors from a known rule, whose best possible accuracy is known, or from a file.
modular: a + b modulo p, the task on which grokking was found (arXiv 2201.02177).
The rows themselves are in tasks/features.py, the net in tasks/classifier.py.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from config import UserError
from stats import percent
from tasks.base import CUT, POOL, TEST, DataConfig, Dataset, RowsConfig, Split, Task, rng
from tasks.features import additions, bayes, centres, generate_features, products, read_features
from tasks.files import digest


@dataclass(frozen=True)
class FeaturesConfig(RowsConfig):
    task: str = "features"  # the kind of problem
    features: int = 128  # length of a generated vector
    classes: int = 10  # classes of generated vectors
    feature_tokens: int = 1  # positions over which the net spreads a vector
    noise: float = 2.0  # standard deviation of the noise on every generated feature

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        for key in ("features", "classes"):
            if getattr(self, key) < 2:
                yield key, "2 or more"
        if self.feature_tokens < 1:
            yield "feature_tokens", "1 or more"
        if not self.noise > 0:
            yield "noise", "more than 0"
        if self.test_path and not self.train_path:
            yield "test_path", "a data.train_path with the same features beside it"
        if not self.generate and not self.train_path:
            yield "generate", "true, or a data.train_path"


@dataclass(frozen=True)
class ModularConfig(DataConfig):
    task: str = "modular"  # the kind of problem
    modulus: int = 97  # p
    # a + b, or a * b with b > 0, modulo p
    operation: Literal["add", "multiply"] = "add"
    # share of the p * p sums to train on; the rest is halved into validation and test
    train_share: float = 0.5
    seed: int = 0  # of the split, not of training

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.seed < 0:
            yield "seed", "0 or more"
        if self.modulus < 2:
            yield "modulus", "2 or more"
        if self.modulus > 5000:
            yield "modulus", "at most 5000: a table of all sums"
        if not 0 < self.train_share < 1:
            yield "train_share", "a share between 0 and 1"


@dataclass
class Rows:
    """All rows of a task, before they are split."""

    inputs: np.ndarray
    labels: np.ndarray  # (N, 1) int64
    train: int  # the first rows, of which validation takes `val`
    val: int
    test: int  # the last rows
    order: np.ndarray  # (N,) in which they are taken
    card: dict
    ceiling: np.ndarray | None = None  # (N, 1) bool: the best possible classifier is right


class Classify(Task):
    """What both tasks share."""

    rows = "rows"
    trivial = "always the most frequent class"
    solvable = False
    figures = ("exact", "cells", "top3")
    words = {"exact": "exact", "top3": "among the first three"}
    heads = {
        "exact %": lambda row: percent(row, "exact"),
        "among the first three %": lambda row: percent(row, "top3"),
        "best possible %": lambda row: (
            "-" if row["ceiling"] is None else f"{100 * row['ceiling']:.1f}"
        ),
        "trivial %": lambda row: f"{100 * row['copy_exact']:.1f} ({row['trivial']})",
        "chosen at step": lambda row: row["best_step"],
        "seeds x rows": lambda row: f"{len(row['seeds'].split())} x {row['test_puzzles']}",
    }
    notes = (
        "best possible: what the most probable class by the rule itself scores on the same test "
        "rows; nothing is better on average."
    )

    def problems(self, cfg) -> Iterator[tuple[str, str, str]]:
        if cfg.model.mixer not in ("attention", "mlp"):
            yield "model", "mixer", f"'attention' or 'mlp': data.task = {self.name!r} has no grid"
        if cfg.model.positions == "rope2d":
            expected = f"'rope', 'learned' or 'none': data.task = {self.name!r} has no grid"
            yield "model", "positions", expected
        if cfg.train.eval_average > 1:
            expected = f"1 with data.task = {self.name!r}: it is for puzzles"
            yield "train", "eval_average", expected

    def missing(self, cfg) -> str:
        for key in ("train_path", "test_path"):
            path = getattr(cfg.data, key, "")
            if path and not os.path.exists(path):
                return f"data.{key} = {path!r}, but there is no such file"
        return ""

    def all_rows(self, data, g) -> Rows:
        """Every row, and how many are for what."""
        raise NotImplementedError

    def load(self, cfg) -> Dataset:
        """A row that occurs in two splits stays in the later one only."""
        data, g = cfg.data, rng(cfg.data.seed, CUT)
        rows = self.all_rows(data, g)
        inputs, labels = rows.inputs, rows.labels
        left = rows.train - rows.val
        if min(rows.test, rows.val, left) < 1:
            raise UserError(
                f"data: {len(inputs)} rows leave {left} to train, {rows.val} to validate, "
                f"{rows.test} to test; expected 1 or more of each"
            )
        order = rows.order
        test = order[len(order) - rows.test :]
        val, train = order[left : rows.train], order[:left]
        kind = np.unique(inputs, axis=0, return_inverse=True)[1].ravel()
        val = val[~np.isin(kind[val], kind[test])]
        train = train[~np.isin(kind[train], kind[np.concatenate([val, test])])]
        if not len(val) or not len(train):
            raise UserError(
                f"data: {len(train)} training and {len(val)} validation rows are left that no "
                "later split has too, expected 1 or more of each"
            )
        card = {"task": self.name, "augmentation": "none"} | rows.card
        card["dropped_in_later_split"] = rows.train - len(val) - len(train)
        inputs = self.scale(inputs, train, card)
        if rows.ceiling is not None:
            card["ceiling"] = float(rows.ceiling[test].mean())
        most = np.bincount(labels[train].ravel()).argmax()
        card |= {
            "split": f"at random, seed {data.seed}",
            "rows": {"train": len(train), "val": len(val), "test": len(test)},
            "baseline": {"exact": float((labels[test] == most).mean())},
            "baseline_is": self.trivial,
        }
        splits = (Split(inputs[part], labels[part]) for part in (train, val, test))
        return Dataset(*splits, card, self.shape_of(cfg, inputs, labels))

    def load_test(self, cfg) -> Dataset:
        """All splits: the training rows scale the questions."""
        return self.load(cfg)

    def scale(self, inputs: np.ndarray, train: np.ndarray, card: dict) -> np.ndarray:
        """Questions as the net gets them."""
        return inputs

    def shape_of(self, cfg, inputs: np.ndarray, labels: np.ndarray) -> dict:
        """The shape, which a file may decide."""
        return self.shape(cfg)

    def make_net(self, cfg, shape: dict, compute):
        from tasks.classifier import Classifier, ClassShape

        return Classifier(cfg.model, ClassShape.of(shape), compute)

    def judge(self, logits, labels) -> dict:
        most = min(3, logits.shape[-1])
        top = logits[:, 0].topk(most).indices
        return {"top3": (top == labels).any(1)}


class Features(Classify):
    name = "features"
    title = "Feature vectors"
    Config = FeaturesConfig

    def all_rows(self, data, g) -> Rows:
        if data.train_path:
            inputs, labels = read_features(data.train_path)
            source = Path(data.train_path).name
            card = {"source": source, "sha256": digest(data.train_path)}
            card["rows_in_file"] = len(inputs)
            test = data.test_rows or len(inputs) // 5
            left = len(inputs) - (0 if data.test_path else test)
            count = min(data.train_rows or len(inputs), left)
            ceiling = None
        else:
            test = data.test_rows or 1000
            leaves = centres(data.features, data.classes, rng(data.seed, POOL))
            count, chance = data.train_rows, rng(data.seed, TEST)
            inputs, labels = generate_features(count + test, leaves, data.noise, chance)
            words = f"{data.classes} trees of {leaves.shape[1]} centres, noise {data.noise}"
            card = {"source": words, "generator_seed": data.seed}
            ceiling = bayes(inputs, leaves, data.noise) == labels
        val, order = data.val_rows or count // 10, g.permutation(len(inputs))
        rows = Rows(inputs, labels, count, val, test, order, card, ceiling)
        if data.test_path:
            self.add_test_file(data, rows, g)
        return rows

    def add_test_file(self, data, rows: Rows, g) -> None:
        """The test rows are those of a file of their own, behind the others."""
        more, answers = read_features(data.test_path)
        width, largest = rows.inputs.shape[1], rows.labels.max()
        if more.shape[1] != width or answers.max() > largest:
            raise UserError(
                f"{data.test_path}: has {more.shape[1]} features and labels up to {answers.max()}, "
                f"expected the {width} features and labels up to {largest} of {data.train_path}"
            )
        rows.test = min(data.test_rows or len(more), len(more))
        behind = len(rows.inputs) + g.permutation(len(more))
        rows.order = np.concatenate([rows.order, behind])
        rows.inputs = np.concatenate([rows.inputs, more])
        rows.labels = np.concatenate([rows.labels, answers])
        rows.card["test_source"] = Path(data.test_path).name
        rows.card["test_sha256"] = digest(data.test_path)

    def scale(self, inputs: np.ndarray, train: np.ndarray, card: dict) -> np.ndarray:
        card["scaling"] = "every feature to mean 0 and variance 1 of the training rows"
        mean, spread = inputs[train].mean(0), inputs[train].std(0)
        return ((inputs - mean) / (spread + 1e-6)).astype(np.float32)

    def shape(self, cfg) -> dict:
        data = cfg.data
        kinds = {"features": data.features, "classes": data.classes}
        return {"seq_len": data.feature_tokens, "vocab_size": 0} | kinds

    def shape_of(self, cfg, inputs: np.ndarray, labels: np.ndarray) -> dict:
        found = {"features": inputs.shape[1], "classes": int(labels.max()) + 1}
        return self.shape(cfg) | (found if cfg.data.train_path else {})


class Modular(Classify):
    name = "modular"
    title = "Modular arithmetic"
    Config = ModularConfig

    def model_config(self) -> type:
        from tasks.decoder import ModularModel

        return ModularModel

    def make_net(self, cfg, shape: dict, compute):
        if not cfg.model.decoder:
            return super().make_net(cfg, shape, compute)
        from tasks.classifier import ClassShape
        from tasks.decoder import Decoder

        return Decoder(cfg.model, ClassShape.of(shape), compute)

    def flop(self, cfg, net) -> float:
        if not cfg.model.decoder:
            return super().flop(cfg, net)
        from tasks.decoder import flop

        return flop(cfg.model, net.shape, cfg.train.batch_size)

    def all_rows(self, data, g) -> Rows:
        make = additions if data.operation == "add" else products
        inputs, labels = make(data.modulus)
        train = round(data.train_share * len(inputs))
        test = (len(inputs) - train + 1) // 2
        left = len(inputs) - test
        word = "sums" if data.operation == "add" else "products"
        card = {"source": f"all {len(inputs)} {word} modulo {data.modulus}"}
        return Rows(inputs, labels, left, left - train, test, g.permutation(len(inputs)), card)

    def shape(self, cfg) -> dict:
        p = cfg.data.modulus
        if cfg.data.operation == "add":
            return {"seq_len": 3, "vocab_size": p + 1, "classes": p}
        return {"seq_len": 4, "vocab_size": p + 2, "classes": p}

    def extra_columns(self, group, groups: list) -> dict:
        from tasks.grokking import columns

        return columns(group, groups)

    def extra_tables(self, rows: list[dict]) -> list[str]:
        from tasks.grokking import reached_table

        return reached_table(rows)

    def extra_plots(self, groups: list) -> dict:
        from tasks.grokking import plot_grokking

        return {"grokking": plot_grokking(sorted(groups, key=lambda group: group.name))}
