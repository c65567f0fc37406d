"""Figures of trained nets on ARC tasks: queries, votes, wrong contexts, probes, adapting."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import probes
import tiny
from evaluate import evaluate
from model import TRM, Carry, Output, Shape
from runs import TrainingError, World
from tasks import arc_report, episodes
from tasks.arc_report import Solved, another_task, context_figures, report, score, solve, trained
from tasks.arc_tasks import ArcTask
from tasks.conditioned import Conditioned
from test_conditioned import EMBED, config, entry, tables
from train import load_run, main

WORLD = World(0, 1, torch.device("cpu"), torch.float32, False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arc") / "arc_E0b/seed0"
    return folder, tiny.run(
        folder,
        **tables(
            "recurrent_standard",
            {"arc": {"test_augmentations": 2, "rules": "moves+colours", "rule_queries": 2}},
        ),
    )


class Oracle(torch.nn.Module):
    """A net that turns its question by a quarter if its task is in `known`, else copies it."""

    shape = Shape(9, 5)

    def __init__(self, known):
        super().__init__()
        self.known = set(map(int, known))

    def states_of(self, questions, seed):
        return None

    def start(self, batch):
        return batch

    def refill(self, carry, batch, states=None):
        return Carry(None, None, torch.zeros(len(batch["inputs"])), None, batch)

    def step(self, carry, **keys):
        batch = carry.batch
        turned = torch.rot90(batch["inputs"].view(-1, 3, 3), 1, (1, 2)).flatten(1)
        known = torch.tensor([int(t) in self.known for t in batch["task"]])[:, None]
        answers = torch.where(known, turned, batch["inputs"])
        return carry, Output(
            torch.nn.functional.one_hot(answers, 8).float(),
            torch.zeros(len(answers)),
            torch.zeros(len(answers)),
        )


def quarter_turns(count: int = 6):
    """Tasks of 3x3 grids that are all turned by a quarter."""
    g = np.random.default_rng(0)

    def pair():
        grid = g.integers(0, 4, (3, 3)).astype(np.uint8)
        return grid, np.rot90(grid).copy()

    cfg = config("standard", {"arc": {"side": 3, "rule_demos": 2}})
    ds = data.load(cfg).arc
    ds.tasks = [ArcTask(f"t{i}", [pair() for _ in range(4)], 2) for i in range(len(ds.tasks))]
    return cfg, ds


def test_report_covers_both_sides_and_counts_what_was_asked():
    cfg, ds = quarter_turns()
    known = [*trained(ds)[:4], *ds.test[:1]]
    found, kept = report(Oracle(known), ds, cfg, WORLD)
    for side, tasks, solved in (("train", 6, 4), ("test", 3, 1)):
        assert (
            found[side]["n"] == 2 * tasks
            and found[side]["tasks"] == tasks
            and found[side]["queries"] == 2 * tasks
        )
        assert (
            found[side]["exact"] == pytest.approx(solved / tasks) == found[side]["pass@1"]
            and found[side]["solved@1"] == solved
        )
        assert found[side]["exact_low"] < found[side]["exact"] < found[side]["exact_high"]
        assert found[side]["copy_cells"] < found[side]["cells"] < 1
        assert len(kept[f"{side}_answers"]) == 2 * tasks and set(kept) >= {
            f"{side}_{k}" for k in ("inputs", "labels", "task")
        }
    assert not set(kept["train_task"]) & set(kept["test_task"])


def test_training_tasks_of_a_transductive_run_are_not_the_held_out_ones():
    cfg = config("none", EMBED, {"arc": {"transductive": True}})
    ds = data.load(cfg).arc
    assert (
        len(ds.train) == 9
        and sorted(trained(ds)) == list(range(6))
        and set(trained(ds)) | set(ds.test) == set(ds.train)
    )
    split = data.load(cfg).val
    assert sorted(set(split.more["task"])) == list(range(6))


def test_the_mean_context_is_one_of_many_tasks(monkeypatch):
    batches = []

    def solve(net, cfg, rows, world, wrong=""):
        batches.extend(rows["task"][at : at + 8] for at in range(0, 80, 8) if wrong == "mean")
        return Solved(rows["labels"], None)

    monkeypatch.setattr(arc_report, "solve", solve)
    net, task = (
        Conditioned.__new__(Conditioned),
        np.repeat(np.arange(10), 8),
    )  # eight queries of each task, one after the other
    right = arc_report.ablation(
        net,
        None,
        {"task": task, "labels": task[:, None], "demos": task, "mask": task, "puzzle": task},
        WORLD,
    )
    assert (
        right == {"shuffled": 1, "mean": 1, "zero": 1} and len(batches) == 10
    )  # labels stay with their rows
    assert min(len(set(batch)) for batch in batches) > 3


def test_score_by_hand():
    labels = np.array([[2, 3, -100], [4, 5, 6]])
    found = score(np.array([[2, 3, 9], [4, 5, 7]]), labels)
    assert (
        found["exact"] == 0.5
        and found["cells"] == pytest.approx((1 + 2 / 3) / 2)
        and found["n"] == 2
        and found["exact_low"] < 0.5 < found["exact_high"]
    )


def test_another_task_is_another_task():
    task = np.array([3, 3, 5, 5, 5, 7])
    other = another_task(task)
    assert (
        (task[other] != task).all()
        and other[0] == 2
        and other[5] == 0
        and another_task(task[:2]) is None
    )


def test_solve_agrees_with_evaluate_and_with_itself_in_pieces(run):
    folder, _ = run
    cfg, net, _ = load_run(folder)
    dataset = data.load(cfg)
    ds = dataset.arc
    rows = episodes.examples(ds, cfg.arc, episodes.queries(ds, cfg.arc, ds.test, 1))
    solved = solve(net, cfg, rows, WORLD)
    answers, confidence = solved.answers, solved.confidence
    result = evaluate(net, dataset.test, cfg, WORLD)
    found = score(answers, rows["labels"])
    assert (
        result["exact"] == found["exact"]
        and result["cells"] == pytest.approx(found["cells"])
        and result["n"] == len(answers) == 6
    )
    pieces = solve(net, replace(cfg, train=replace(cfg.train, batch_size=100)), rows, WORLD)
    assert (pieces.answers == answers).all()
    assert np.allclose(pieces.confidence, confidence, atol=1e-5)
    assert solved.context.shape == (6, 3 * 16)
    assert solved.change.shape == (6, 1) and (solved.change > 0).all()


def test_wrong_contexts_reach_the_net(run):
    folder, _ = run
    cfg, net, _ = load_run(folder)
    ds = data.load(cfg).arc
    rows = episodes.examples(ds, cfg.arc, episodes.queries(ds, cfg.arc, trained(ds), 1))
    whole = replace(cfg, train=replace(cfg.train, batch_size=len(rows["task"])))
    seen, step, contexts = {}, TRM.step, []

    def watch(self, carry, context, min_steps=None):
        contexts.append(context)
        return step(self, carry, context, min_steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TRM, "step", watch)
        for wrong in ("", "mean", "zero"):
            contexts.clear()
            solve(net, whole, rows, WORLD, wrong)
            seen[wrong] = contexts[0]
        contexts.clear()
        arc_report.ablation(net, whole, rows, WORLD)
    torch.testing.assert_close(seen["mean"], seen[""].mean(0, keepdim=True).expand_as(seen[""]))
    assert not seen["zero"].any() and seen[""].any()
    mixed = np.random.default_rng(0).permutation(len(rows["task"]))
    torch.testing.assert_close(
        contexts[0], seen[""][mixed][another_task(rows["task"][mixed])]
    )  # the other task's, in a static first step


def figures_of(context=None, change=None, plan=None) -> dict:
    solved = Solved(None, None, context, change)
    return context_figures(solved, plan)


def test_context_figures_by_hand():
    zeros = np.zeros(4, int)
    task = np.array([0, 0, 1, 1])
    plan = episodes.Episodes(task, zeros, zeros, np.zeros((4, 1), int), np.zeros((4, 2, 2)))
    tight = np.array([[1.0, 0.1], [1.0, 0.2], [-1.0, 0.1], [-1.0, 0.2]])
    found = figures_of(tight, plan=plan)
    assert found["between_task"] > 0.98 and found["retrieval"] == 1
    assert found["norm_variance"] == pytest.approx(1.0025 / 2 / (4.1 / 8), rel=1e-3)
    loose = np.array([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.1], [-1.0, 0.1]])
    found = figures_of(loose, plan=plan)
    assert found["between_task"] < 0.02 and found["retrieval"] == 0
    one_row = plan[np.array([0, 2, 3])]
    assert "between_task" not in figures_of(np.eye(3), plan=one_row)
    change = [[0.5, 0.001, 0.001], [0.5, 0.001, 0.5], [0.001] * 3, [0.5, 0.5, 0.0]]
    found = figures_of(change=np.array(change), plan=plan)  # of steps 2, 3, 4
    assert found["convergence_steps"] == np.mean([3, 5, 2, 4])
    assert found["never_converged"] == 0.25 and len(found["carry_change"]) == 3


# ---------------------------------------------------------------- a run's files


def test_a_finished_run_says_both_sides_in_its_summary_and_line(run, capsys):
    folder, summary = run
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
    for side, tasks in (("train", 6), ("test", 3)):
        part = summary["arc"][side]
        assert (
            part["tasks"] == tasks
            and part["answers"] == 2 * part["queries"] == 4 * tasks
            and set(part["context"]) == {"true", "shuffled", "mean", "zero"}
        )
        assert {
            "norm_variance",
            "between_task",
            "retrieval",
            "convergence_steps",
            "carry_change",
            "pass@1",
            "pass@2_low",
        } <= set(part)
    assert summary["flop"] == 0 and summary["seconds"]["report"] > 0
    line = load_run(folder)[0].task.sentence(summary)
    assert (
        "held-out tasks" in line
        and "another task's context" in line
        and "/3 tasks" in line
        and "/6 tasks" in line
        and "% of cells" in line
    )
    with np.load(folder / "answers.npz") as file:
        assert file["test_answers"].shape == file["test_labels"].shape == (6, 16)
    cfg, net, _ = load_run(folder)
    assert isinstance(net, Conditioned) and cfg.arc.test_augmentations == 2


def test_a_run_without_encoder_reports_too(tmp_path):
    for mode, context in (("embed", {"true", "shuffled", "zero"}), ("fewshot", None)):
        summary = tiny.run(
            tmp_path / mode, **tables("none", {"arc": {"mode": mode}, "train": {"steps": 2}})
        )
        assert (
            set(summary["arc"]["test"].get("context", {})) == (context or set())
            and summary["flop"] > 0
        )


def test_training_remembers_and_the_context_is_why(tmp_path):
    """A few tasks are learned by an encoder, not without their context: the whole path is alive."""
    keys = {
        "arc": {
            "side": 3,
            "rules": "colours",
            "colours": 4,
            "train_tasks": 3,
            "val_tasks": 0,
            "test_tasks": 1,
            "rule_queries": 1,
        },
        "encoder": {"positions": "rope2d", "heads": 2},
        "model": {
            "dim": 32,
            "positions": "rope2d",
            "expansion": 2.0,
            "halting": False,
            "loss": "softmax",
        },
        "train": {
            "steps": 150,
            "batch_size": 12,
            "optimizer": "muon",
            "muon_lr": 0.01,
            "lr": 0.005,
            "warmup": 10,
            "eval_every": 150,
            "ema": 0.9,
            "log_every": 50,
        },
    }
    summary = tiny.run(tmp_path / "seed0", **tables("standard", keys))
    train = summary["arc"]["train"]
    assert train["exact"] == 1 and train["context"]["shuffled"] < 1 and train["n"] == 3, train
    assert summary["best_step"] == 150


# ---------------------------------------------------------------- probes and test-time training


def test_probes_of_a_run(run, capsys):
    folder, summary = run
    assert probes.main([str(folder)]) == 0
    found = json.loads((folder / "probes.json").read_text())
    assert (
        set(found["demos"]["test"]) == {"0", "1", "2"}
        and found["demos"]["test"]["2"]["exact"] == summary["arc"]["test"]["exact"]
    )
    assert (
        found["order"]["reversed"] < 1e-4 and found["order"]["twice"] < 1e-4 and found["noise"] == 0
    )
    assert found["context"]["train"] == summary["arc"]["train"]["context"]
    assert (
        len(found["gradient"]["context_over_question"]) == 2
        and min(found["gradient"]["context_over_question"]) > 0
    )
    assert {"tokens", "out", "first", "reader.blocks.0"} & set(
        found["gradient"]["parts"]
    ) and -1 <= found["gradient"]["cosine_between_tasks"] <= 1
    assert 1 <= found["interface"]["rank_over_positions"] <= 3 and found["interface"][
        "context_size"
    ] == pytest.approx(4.0, rel=0.01)
    assert "by demonstrations shown: 0:" in capsys.readouterr().out


def test_probes_look_at_many_tasks():
    task = np.repeat(np.arange(8), 60)  # sixty queries of each task, one after the other
    assert (
        probes.tensors({"task": task}, 8)["task"].tolist() == list(range(8))
        and len(probes.tensors({"task": task[:5]})["task"]) == 5
    )


def test_probes_compare_with_an_embedding(run, tmp_path):
    tiny.run(
        tmp_path / "seed0",
        **tables("none", EMBED, {"train": {"steps": 3}, "arc": {"rules": "moves+colours"}}),
    )
    found = probes.probe(run[0], tmp_path / "seed0")["interface"]
    assert {"embedding_size", "frechet", "cosine_of_means"} <= set(found) and found["frechet"] > 0
    assert probes.frechet(
        torch.randn(9, 2, generator=torch.Generator().manual_seed(0)),
        torch.randn(9, 2, generator=torch.Generator().manual_seed(0)),
    ) == pytest.approx(0, abs=1e-6)
    assert probes.main([str(run[0]), "--against", str(run[0])]) == 2


def test_an_encoder_imitates_known_embeddings(run, tmp_path, capsys, monkeypatch):
    arc = {"mode": "embed", "rules": "moves+colours", "rule_queries": 2}
    known = tmp_path / "seed0"
    tiny.run(known, **tables("none", {"train": {"steps": 3}, "arc": arc}))
    tables_asked, solved = [], probes.solved

    def look(net, cfg, rows):
        tables_asked.append(net.puzzles.detach().clone())
        return solved(net, cfg, rows)

    monkeypatch.setattr(probes, "solved", look)
    words = ["imitate", str(run[0]), "--against", str(known), "--steps", "300", "--lr", "0.003"]
    assert probes.main(words) == 0
    assert "is imitated" in capsys.readouterr().out
    found = json.loads((run[0] / "imitate.json").read_text())
    assert set(found["train"]) == {"known", "imitated", "explained", "n"}
    assert set(found["test"]) == {"known", "imitated", "n"}
    assert 0.99 < found["train"]["explained"] <= 1
    rows, imitated = tables_asked[0], tables_asked[-1]
    trained_rows = rows.any(1)
    assert 0 < trained_rows.sum() < len(rows)
    torch.testing.assert_close(
        imitated[trained_rows], rows[trained_rows], rtol=0, atol=0.3 * rows.std()
    )
    assert imitated[~trained_rows].any(1).sum() >= found["test"]["n"] / 2  # two queries a task
    assert probes.imitate(run[0], known, 1)["train"]["explained"] < 0.5
    for wrong in ([str(known), "--against", str(known)], [str(run[0]), "--against", str(run[0])]):
        assert probes.main(["imitate", *wrong]) == 2
    assert probes.main([*words[:4], "--steps", "0"]) == 2
    others = tmp_path / "others/seed0"
    tiny.run(others, **tables("none", {"train": {"steps": 3}, "arc": arc | {"seed": 5}}))
    capsys.readouterr()
    assert probes.main(["imitate", str(run[0]), "--against", str(others)]) == 2
    assert "has other tasks" in capsys.readouterr().err


def test_probes_notice_a_sampling_encoder(tmp_path):
    folder = tmp_path / "seed0"
    changes = {"train": {"steps": 2}, "encoder": {"normalize": False}}
    tiny.run(folder, **tables("lpn_variational", changes))
    assert 0 <= probes.probe(folder)["noise"] <= 1
    cfg, net = probes.load_arc_run(folder)
    ds = data.load(cfg).arc
    with torch.no_grad():  # a larger context, which two samples tell apart
        net.encoder.head.weight *= 50
    assert 0 < probes.sampling(net, probes.queries(ds, cfg, trained(ds))) <= 1


def test_probes_and_adapt_refuse_in_one_sentence(run, tmp_path, capsys):
    tiny.run(tmp_path / "sudoku", train={"steps": 1})
    for words in (
        [tmp_path / "sudoku"],
        [tmp_path / "no"],
        ["adapt", tmp_path / "sudoku"],
        ["adapt", run[0], "--steps=a"],
        [],
        ["adapt"],
    ):
        capsys.readouterr()
        assert probes.main([str(word) for word in words]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("command, options", [([], []), (["adapt"], ["--steps=0", "--tasks=1"])])
def test_a_folder_that_cannot_be_written_ends_in_one_sentence(
    command, options, run, monkeypatch, capsys
):
    def full(path, text):
        raise TrainingError(f"cannot write {path} (No space left on device)")

    monkeypatch.setattr(probes, "write_text", full)
    assert probes.main([*command, str(run[0]), *options]) == 2
    assert "No space left" in capsys.readouterr().err


def test_test_time_training_starts_where_the_run_ended_and_never_sees_a_query(run, monkeypatch):
    folder, summary = run
    asked, step = [], probes.train_step

    def look(own, feed):
        step(own, feed)
        asked.append({k: own.carry.batch[k].clone() for k in ("task", "inputs", "labels", "mask")})

    monkeypatch.setattr(probes, "train_step", look)
    assert probes.main(["adapt", str(folder), "--steps", "0,4", "--lr", "0.01"]) == 0
    found = json.loads((folder / "adapt.json").read_text())
    assert (
        found["steps"]["0"]["exact"] == summary["arc"]["test"]["exact"]
        and found["tasks"] == 3
        and "test-time training" in found["mode"]
    )
    for key in ("pass@1", "tasks", "answers"):
        assert found["steps"]["0"][key] == summary["arc"]["test"][key]
    cfg, _, _ = load_run(folder)
    ds = data.load(cfg).arc
    assert len(asked) == 3 * 4 and [int(b["task"].unique()) for b in asked] == [
        int(t) for t in ds.test for _ in range(4)
    ]
    shown = {b["inputs"][i].numpy().tobytes() for b in asked for i in range(len(b["task"]))}
    queries = {
        grid.astype(np.int64).tobytes()
        for grid in episodes.examples(ds, cfg.arc, episodes.queries(ds, cfg.arc, ds.test, 1))[
            "inputs"
        ]
    }
    assert not shown & queries


def test_test_time_training_learns_and_resets(run):
    folder, _ = run
    before = Path(folder / "best.pt").read_bytes()
    found = probes.adapt(folder, [0, 60], lr=0.02)
    assert (
        found["steps"]["60"]["cells"] > found["steps"]["0"]["cells"]
        and Path(folder / "best.pt").read_bytes() == before
    )
    one = probes.adapt(folder, [5], tasks=1, lr=0.02)
    again = probes.adapt(folder, [5], tasks=2, lr=0.02)
    assert (
        one["tasks"] == 1
        and again["tasks"] == 2
        and again["steps"]["5"]["n"] == 2 * one["steps"]["5"]["n"]
    )


def test_a_bad_folder_stays_one_sentence(tmp_path, capsys):
    nowhere = str(tmp_path / "no")
    path = entry(tmp_path, {"arc": {"train": nowhere, "test": nowhere}})
    assert main([str(path), f"--out={tmp_path / 'runs'}"]) == 2
    said = capsys.readouterr().err
    assert "is no folder" in said and nowhere in said and said.count("\n") == 1
