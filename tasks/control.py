"""Task `control`: plan the controls of a plant, by imitating the plans of an expert.

Plants and experts are in tasks/plants.py, the net in tasks/planner.py, figures and tables in
tasks/control_report.py. A figure of its own: `to_optimum`, J / J*, the cost of what the net does
over the least cost that is known.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from config import UserError
from tasks.base import CUT, Dataset, RowsConfig, Split, Task, rng
from tasks.control_report import figures
from tasks.files import digest
from tasks.plants import (
    PLANTS,
    SOURCE_SEEDS,
    best_plan,
    generate,
    inputs,
    plan_cost,
    read_npz,
    rollout,
    scaling,
    source_splits,
)


@dataclass(frozen=True)
class ControlConfig(RowsConfig):
    task: str = "control"  # the kind of problem
    plant: Literal[tuple(PLANTS)] = "van_der_pol"  # what is to be controlled: see tasks/plants.py

    @property
    def cut_from_training(self) -> bool:
        return False

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.test_path and not self.train_path:
            yield "test_path", "a data.train_path of the same plant beside it"
        if not self.generate and not self.train_path:
            yield "generate", "true, or a data.train_path"


@dataclass
class ControlSplit(Split):
    rows: dict | None = None  # as tasks/plants.py makes them, float64


class Control(Task):
    name = "control"
    title = "Control"
    rows = "rows"
    trivial = "doing nothing"
    solvable = False
    Config = ControlConfig
    figures = ("exact", "to_optimum")

    def tables(self) -> dict[str, type]:
        from tasks.planner import PlanConfig

        return {"plan": PlanConfig}

    def problems(self, cfg) -> Iterator[tuple[str, str, str]]:
        from tasks.planner import impossible

        yield from impossible(cfg.model, cfg.plan, PLANTS[cfg.data.plant])
        if cfg.train.eval_average > 1:
            yield "train", "eval_average", "1 with data.task = 'control': it is for puzzles"

    def missing(self, cfg) -> str:
        for key in ("train_path", "test_path"):
            path = getattr(cfg.data, key)
            if path and not os.path.exists(path):
                return f"data.{key} = {path!r}, but there is no such file"
        return ""

    # ------------------------------------------------------------ data

    def load(self, cfg) -> Dataset:
        """Rows of a plant, generated or from .npz files; J* is calculated where a file has none."""
        data, plant = cfg.data, PLANTS[cfg.data.plant]
        card = {"task": self.name, "plant": plant.name, "expert": plant.expert}
        card["augmentation"] = "none"
        held = data.val_rows or int(np.clip(data.train_rows // 10, 50, 500))
        if data.train_path or plant.name in SOURCE_SEEDS:
            parts, more = cut_rows(data, plant, held)
        else:
            sizes = {"train": data.train_rows, "val": held, "test": data.test_rows or 1000}
            parts = {name: generate(plant, n, name, data.seed) for name, n in sizes.items()}
            source = f"generated, {plant.expert} of {plant.name}"
            more = {"source": source, "generator_seed": data.seed, "split": "other random streams"}
        card |= more
        card["rows"] = {name: len(rows["costs"]) for name, rows in parts.items()}
        card["baseline"], card["baseline_is"] = doing_nothing(plant, parts["test"]), self.trivial
        pairs = scaling(plant, parts["train"]).values()
        scale = tuple(tuple(map(float, part)) for pair in pairs for part in pair)
        splits = (as_split(plant, parts[name]) for name in ("train", "val", "test"))
        return Dataset(*splits, card, self.shape(cfg) | {"scale": scale})

    def load_test(self, cfg) -> Dataset:
        """All splits: the training rows scale the net."""
        return self.load(cfg)

    # ------------------------------------------------------------ the net

    def shape(self, cfg) -> dict:
        return {"seq_len": PLANTS[cfg.data.plant].N, "vocab_size": 0}

    def make_net(self, cfg, shape: dict, compute):
        from tasks.planner import make_planner

        plant = PLANTS[cfg.data.plant]
        return make_planner(cfg.model, cfg.plan, plant, shape.get("scale", ()), compute)

    # ------------------------------------------------------------ scoring

    def evaluate(self, net, split: ControlSplit, cfg, world, **options) -> dict:
        from tasks.planner import evaluate_plans

        result = evaluate_plans(net, split.rows)
        halting = {key: result[key] for key in ("exact", "to_optimum", "steps", "n")}
        return result | {"halting": halting}

    def better(self, result: dict, cfg) -> tuple:
        """Cheaper is better. The source's labels are not the cheapest: closer to them is."""
        if PLANTS[cfg.data.plant].expert.startswith("source"):
            return (-result["mse"],)
        return -result["primary"], -result["mse"]

    def report(self, net, dataset: Dataset, cfg, world) -> tuple[dict, dict]:
        from tasks.planner import full_report

        found = full_report(net, dataset.test.rows, dataset.train.rows, cfg.data.seed)
        return {"control": found}, {}

    def sentence(self, summary: dict) -> str:
        test = summary["test"]
        return (
            f"test: {100 * test['exact']:.1f} % at the target (n = {test['n']}), "
            f"median J / J* {to_optimum(test):.4g}, mse of the plan {test['mse']:.4g} "
            f"({summary['chosen']}: step {summary['best_step']}, {summary['weights']}); "
            f"{summary['data']['baseline_is']}: {100 * summary['baseline']['exact']:.1f} %; "
            f"trained {summary['seconds']['train'] / 60:.1f} min"
        )

    def brief(self, summary: dict) -> str:
        return f"test: {100 * summary['test']['exact']:.1f} % at the target"

    def check(self, group) -> None:
        from tasks.control_tables import cycle_values, describe

        describe(group, None)
        for key in ("cycle", "trained", "to_optimum_median", "error_median", "change"):
            cycle_values(group, key)
        PLANTS[group.first["data"]["plant"]], group.first["hardware"], group.first["commit"]

    def analyze(self, groups: list, out, absent: list, baseline: str):
        from tasks.control_tables import analyze

        return analyze(groups, out, absent, baseline)


def to_optimum(test: dict) -> float:
    """Median J / J* of a summary; older folders call it "cells"."""
    return test["to_optimum"] if "to_optimum" in test else test["cells"]


def cut_rows(data, plant, held: int) -> tuple[dict, dict]:
    """Training, validation and test rows of files or of the source project, and their card."""
    if data.train_path:
        train = read_npz(data.train_path, plant)
        if data.test_path:
            test = read_npz(data.test_path, plant)
        else:
            test = generate(plant, data.test_rows or 1000, "test", data.seed)
        train, test, dropped = apart(train, test, data.test_rows)
        card = {"source": Path(data.train_path).name, "sha256": digest(data.train_path)}
        card["test_source"] = Path(data.test_path).name or "generated"
        card |= dropped
    else:
        train, test = (source_splits(plant)[name] for name in ("train", "test"))
        card = {
            "source": "generated with the sizes and seeds of the source project, "
            "where test rows may be training rows"
        }
    order = rng(data.seed, CUT).permutation(len(train["costs"]))
    if data.train_path:
        order = order[: (data.train_rows or len(order)) + held]
    if len(order) <= held:
        raise UserError(
            f"data.val_rows: {held} validation rows leave nothing of {len(order)} training rows"
        )
    val, train = (chosen(train, rows) for rows in (order[:held], order[held:]))
    test = chosen(test, slice(data.test_rows or None))
    card["split"] = f"validation cut from the training rows, seed {data.seed}"
    for rows in (val, test):
        if "optimal_costs" not in rows:
            start, target = rows["initial_states"], rows["target_states"]
            best = best_plan(plant, start, target)
            rows["optimal_costs"] = plan_cost(plant, start, best, target)
    return {"train": train, "val": val, "test": test}, card


def chosen(rows: dict, which) -> dict:
    """Some of the rows."""
    return {key: values[which] for key, values in rows.items()}


def apart(train: dict, test: dict, test_rows: int) -> tuple[dict, dict, dict]:
    """Rows of two files without those that occur before in one, and training rows that are tested.

    Rows are the same if they begin at the same state and have the same target. Test rows beyond
    the first `test_rows` (0: all) do not count. Returns (train, test, card).
    """
    parts = [np.hstack([rows["initial_states"], rows["target_states"]]) for rows in (train, test)]
    kind = np.unique(np.concatenate(parts), axis=0, return_inverse=True)[1].ravel()
    of_train, of_test = kind[: len(parts[0])], kind[len(parts[0]) :]
    first_of_train, first_of_test = (
        np.sort(np.unique(part, return_index=True)[1]) for part in (of_train, of_test)
    )
    tested = of_test[first_of_test[: test_rows or None]]
    kept = first_of_train[~np.isin(of_train[first_of_train], tested)]
    card = {
        "dropped_repeated": len(of_train) - len(first_of_train),
        "dropped_repeated_test": len(of_test) - len(first_of_test),
        "dropped_in_test": len(first_of_train) - len(kept),
    }
    return chosen(train, kept), chosen(test, first_of_test), card


def doing_nothing(plant, rows: dict) -> dict[str, float]:
    """The trivial baseline: the share of rows that end at the target by themselves, and J / J*."""
    nothing = 0 * rows["control_sequences"]
    found = figures(plant, rows, rollout(plant, rows["initial_states"], nothing), nothing)
    return {
        "exact": found[f"success@{plant.tolerances[-1]:g}"],
        "to_optimum": found["to_optimum_median"],
    }


def as_split(plant, rows: dict) -> ControlSplit:
    """Rows as a net gets them: float32 inputs and plans, start and target as further columns."""
    start, target = rows["initial_states"], rows["target_states"]
    return ControlSplit(
        inputs(plant, start, target).astype(np.float32),
        rows["control_sequences"].astype(np.float32),
        {"start": start.astype(np.float32), "target": target.astype(np.float32)},
        rows,
    )
