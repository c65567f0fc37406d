"""The README names files, entries and functions that exist, and its Python runs."""

import re

import pytest

import tiny

TEXT = (tiny.ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tree_of_files_is_that_of_the_root():
    tree = TEXT[TEXT.index("## Files") :].split("```")[1]
    listed = re.findall(r"^(\w+\.py|\w+/|\w+\.sh) {2,}\S", tree, re.MULTILINE)
    files = {path.name for path in tiny.ROOT.glob("*.py")} | {"run_all.sh"}
    assert {name for name in listed if not name.endswith("/")} == files
    assert {name for name in listed if name.endswith("/")} == {
        "tasks/",
        "sweeps/",
        "tests/",
        "results/",
    }


def test_the_contents_name_every_section():
    contents = re.findall(r"^\[[^]]+\]\(#([\w-]+)\)", TEXT, re.MULTILINE)
    sections = re.findall(r"^## (.+)$", TEXT, re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", name).lower().replace(" ", "-") for name in sections]
    assert contents == anchors


def test_entries_named_in_the_readme_exist():
    named = set(re.findall(r"sweeps/[\w/]+\.toml", TEXT)) - {
        "sweeps/laptop/my_idea.toml",
        "sweeps/slurm.toml",
    }
    assert len(named) > 4 and not [name for name in named if not (tiny.ROOT / name).exists()]


def test_names_of_the_symbol_table_are_in_the_code():
    table = TEXT.split("| paper | here |")[1].split("\n\n")[0]
    code = "\n".join(
        (tiny.ROOT / name).read_text(encoding="utf-8")
        for name in ("layers.py", "model.py", "optim.py", "train.py")
    )
    names = [word for quoted in re.findall(r"`([\w.]+)`", table) for word in quoted.split(".")]
    assert len(names) > 20
    for name in names:
        assert re.search(rf"(def |class |^    ){name}\b", code, re.MULTILINE), name


@pytest.mark.slow
def test_the_ten_lines_of_python_in_the_readme_run(tmp_path, monkeypatch, capsys):
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "load_run" in b)
    assert len(block.splitlines()) <= 10 and block.count('"patience": 10') == 1
    (tmp_path / "sweeps").symlink_to(tiny.ROOT / "sweeps")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block.replace('"patience": 10', '"patience": 1, "steps": 200, "eval_every": 5'), names)
    said = re.search(
        r"best accuracy ([\d.]+)% in epoch (\d); test ([\d.]+)%, top-3 ([\d.]+)%\n$",
        capsys.readouterr().out,
    )
    accuracy, epoch, test, top3 = map(float, said.groups())
    assert (
        accuracy == pytest.approx(100 * names["again"], abs=0.051)
        and accuracy > 40
        and top3 > test > 40
    ), "ten classes: chance is 10 %"
    assert names["best"]["steps"] == names["best"]["best_step"] + 5 < 200, "it stops early"
    assert names["epoch"] == names["checkpoint"]["step"] / 25 == pytest.approx(epoch, abs=0.5)
    assert (tmp_path / "runs/mine/seed0/ckpt.pt").exists() and not names["net"].training
