"""Public formats as data: folders of the public code, Kaggle's two files, re-arc's lists."""

import json
from dataclasses import replace

import numpy as np
import pytest

import data
import tiny
from config import UserError
from tasks import arc_tasks, episodes, puzzles
from tasks.arc_tasks import ArcConfig, read_tasks


def public_folder(root, inputs, labels, side):
    """Both splits of a data folder as the public code writes them."""
    half = len(inputs) // 2
    for split, rows in (("train", slice(half, None)), ("test", slice(half))):
        (root / split).mkdir(parents=True)
        np.save(root / split / "all__inputs.npy", inputs[rows].astype(np.int64))
        np.save(root / split / "all__labels.npy", labels[rows].astype(np.int64))
        np.save(root / split / "all__puzzle_identifiers.npy", np.zeros(len(inputs[rows])))
        about = {"seq_len": side * side, "vocab_size": 11, "pad_id": 0, "sets": ["all"]}
        (root / split / "dataset.json").write_text(json.dumps(about))
    return root


def rows_of(task: str, side: int, count: int = 120):
    cfg = tiny.config(data={"task": task, "size": side, "test_rows": count})
    test = data.load(cfg).test
    return test.inputs, test.labels


@pytest.fixture(params=[("maze", 5), ("sudoku", 4)])
def folder(request, tmp_path):
    task, side = request.param
    inputs, labels = rows_of(task, side)
    return task, side, public_folder(tmp_path / "set", inputs, labels, side), inputs, labels


def config_of(task, side, train, test):
    rows = {"train_rows": 0, "val_rows": 8, "test_rows": 0}
    paths = {"train_path": str(train), "test_path": str(test)}
    model = {"mixer": "conv"} if task == "maze" else {}
    return tiny.config(data={"task": task, "size": side} | rows | paths, model=model)


def test_a_data_folder_has_the_rows_that_a_csv_has(folder, tmp_path):
    task, side, root, inputs, labels = folder
    for split, rows in (("train", slice(60, None)), ("test", slice(60))):
        lines = ["question,answer"]
        for question, answer in zip(inputs[rows], labels[rows]):
            decoded = puzzles.decode(task, question), puzzles.decode(task, answer)
            lines.append(",".join(decoded))
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    of_csv = data.load(config_of(task, side, tmp_path / "train.csv", tmp_path / "test.csv"))
    for train, test in ((root, root), (root / "train", root / "test")):
        of_folder = data.load(config_of(task, side, train, test))
        for split in "train", "val", "test":
            one, other = getattr(of_csv, split), getattr(of_folder, split)
            assert (one.inputs == other.inputs).all() and (one.labels == other.labels).all()
        assert of_folder.card["test_rows_in_file"] == 60


def test_a_run_on_a_data_folder_knows_its_bytes(folder, tmp_path):
    task, side, root, *_ = folder
    cfg = config_of(task, side, root, root)
    assert not cfg.task.missing(cfg)
    paths = cfg.task.files(cfg)["data.train_path"].split(",")
    assert paths == [str(root / "train" / f"all__{name}.npy") for name in ("inputs", "labels")]
    before = data.load(cfg).card["train_sha256"]
    changed = np.load(paths[0])[::-1]
    np.save(paths[0], changed)
    np.save(paths[1], np.load(paths[1])[::-1])
    assert data.load(cfg).card["train_sha256"] != before


def damaged(name, change):
    def damage(root):
        path = root / "test" / name
        values = np.load(path)
        np.save(path, change(values), allow_pickle=True)

    return damage


def set_token(value):
    def change(values):
        values[3, 2] = value
        return values

    return change


def refuse_list(root):
    (root / "test/dataset.json").write_text("[]")


def other_length(root):
    (root / "test/dataset.json").write_text('{"seq_len": 900}')


@pytest.mark.parametrize(
    "damage, says",
    [
        (damaged("all__inputs.npy", set_token(0)), "row 4: has the token 0 at position 3"),
        (damaged("all__labels.npy", set_token(77)), "row 4: has the token 77 at position 3"),
        (damaged("all__inputs.npy", lambda v: v[:, :9]), "has 9 cells (3x3) a row, expected"),
        (damaged("all__labels.npy", lambda v: v[:-1]), "has 59 rows, expected 60"),
        (damaged("all__inputs.npy", lambda v: v.astype(float)), "holds float64 of shape (60,"),
        (damaged("all__inputs.npy", lambda v: v.astype(object)), "cannot be read as an array"),
        (lambda root: (root / "test/all__labels.npy").unlink(), "does not exist, expected a data"),
        (
            lambda root: (root / "test/all__labels.npy").write_text("x"),
            "cannot be read as an array",
        ),
        (refuse_list, "dataset.json: cannot be read, expected JSON with the key seq_len"),
        (other_length, "dataset.json: seq_len is 900, expected"),
    ],
)
def test_a_damaged_data_folder_is_one_sentence(folder, damage, says):
    task, side, root, *_ = folder
    damage(root)
    with pytest.raises(UserError) as error:
        data.load(config_of(task, side, root, root))
    assert says in str(error.value) and str(root) in str(error.value)
    assert "\n" not in str(error.value)


def test_another_side_is_named(folder):
    task, side, root, *_ = folder
    with pytest.raises(UserError, match=r"expected (36|81) \((6x6|9x9)\)"):
        data.load(config_of(task, 6 if task == "sudoku" else 9, root, root))


# ---------------------------------------------------------------- ARC


def pair(g) -> dict:
    grid = g.integers(10, size=(3, 3))
    return {"input": grid.tolist(), "output": grid[::-1].tolist()}


def kaggle(folder, split: str, ids: list[str], seed: int):
    """Two files as Kaggle has them, and the tasks in full."""
    g = np.random.default_rng(seed)
    full = {id: {"train": [pair(g) for _ in range(3)], "test": [pair(g)] * 1} for id in ids}
    asked, answers = {}, {}
    for id, task in full.items():
        asked[id] = task | {"test": [{"input": one["input"]} for one in task["test"]]}
        answers[id] = [one["output"] for one in task["test"]]
    folder.mkdir(exist_ok=True)
    challenges = folder / f"arc-agi_{split}_challenges.json"
    challenges.write_text(json.dumps(asked))
    (folder / f"arc-agi_{split}_solutions.json").write_text(json.dumps(answers))
    return challenges, full


def as_json(task: arc_tasks.ArcTask) -> dict:
    pairs = [{"input": a.tolist(), "output": b.tolist()} for a, b in task.pairs]
    return {"train": pairs[: task.demos], "test": pairs[task.demos :]}


def test_kaggles_two_files_are_tasks(tmp_path):
    file, full = kaggle(tmp_path / "a", "training", ["0a", "0b", "0c"], 0)
    for source in file, file.parent:
        assert {task.id: as_json(task) for task in read_tasks(str(source))} == full
    whole = tmp_path / "whole.json"  # answers inside
    whole.write_text(json.dumps(full))
    assert {task.id: as_json(task) for task in read_tasks(str(whole))} == full
    other, _ = kaggle(tmp_path / "a", "evaluation", ["1a", "1b"], 1)
    with pytest.raises(UserError, match="evaluation_challenges.json, .*training_challenges.json"):
        read_tasks(str(file.parent))
    arc = ArcConfig(train=str(file), test=str(other), side=4, val_tasks=1, train_tasks=0)
    ds = episodes.load(replace(arc, test_tasks=0))
    assert (len(ds.train), len(ds.val), len(ds.test)) == (2, 1, 2)
    cfg = tiny.config(data={"task": "arc"}, arc={"train": str(file), "test": str(other)})
    assert not cfg.task.missing(cfg)
    assert cfg.task.files(cfg)["arc.train"].endswith("training_solutions.json")


def test_what_is_wrong_with_kaggles_files_is_one_sentence(tmp_path):
    file, _ = kaggle(tmp_path, "training", ["0a", "0b"], 0)
    solutions = tmp_path / "arc-agi_training_solutions.json"
    for content, says in (
        ("{}", "solutions.json, task 0a: is not there, expected a list of answers"),
        ('{"0a": []}', "solutions.json, task 0a: has 0 answers, expected 1"),
        ('{"0a": [[[11]]]}', "challenges.json, task 0a: test[0].output: row 1 has 11"),
        ("{", "solutions.json: cannot be read as JSON"),
    ):
        solutions.write_text(content)
        with pytest.raises(UserError) as error:
            read_tasks(str(file))
        assert says in str(error.value) and "\n" not in str(error.value)
    solutions.unlink()
    with pytest.raises(UserError, match="expected arc-agi_training_solutions.json"):
        read_tasks(str(file))
    for content in "[]", "3", '{"train": [], "test": []}':
        (tmp_path / "one.json").write_text(content)
        with pytest.raises(UserError, match="one.json: holds .*expected tasks by id"):
            read_tasks(str(tmp_path / "one.json"))


def test_re_arcs_lists_of_pairs_end_in_queries(tmp_path):
    g = np.random.default_rng(0)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "metadata.json").write_text('{"00": {"n_examples": 5}}')
    (tmp_path / ".hidden.json").write_text("{")
    lists = {"00": [pair(g) for _ in range(5)], "01": [pair(g) for _ in range(40)]}
    for id, pairs in lists.items():
        (tmp_path / "tasks" / f"{id}.json").write_text(json.dumps(pairs))
    few, many = read_tasks(str(tmp_path))
    assert (few.demos, len(few.pairs), many.demos, len(many.pairs)) == (4, 5, 36, 40)
    assert as_json(few) == {"train": lists["00"][:4], "test": lists["00"][4:]}
    (tmp_path / "tasks/02.json").write_text(json.dumps(lists["00"][:1]))  # nothing to show
    with pytest.raises(UserError, match="02.json: has no pairs 'train'"):
        read_tasks(str(tmp_path))
