"""The README names files, entries and functions that exist."""

import re

import tiny

TEXT = (tiny.ROOT / "README.md").read_text(encoding="utf-8")


def test_every_python_file_is_in_the_table_of_files_and_the_other_way_round():
    listed = set(re.findall(r"^\| `(\w+\.py)` \|", TEXT, re.MULTILINE))
    assert listed == {path.name for path in tiny.ROOT.glob("*.py")}


def test_entries_named_in_the_readme_exist():
    named = set(re.findall(r"sweeps/[\w/]+\.toml", TEXT)) - {"sweeps/laptop/my_idea.toml", "sweeps/slurm.toml"}
    assert len(named) > 4 and not [name for name in named if not (tiny.ROOT / name).exists()]


def test_names_of_the_symbol_table_are_in_the_code():
    table = TEXT.split("| paper | here |")[1].split("\n\n")[0]
    code = "\n".join((tiny.ROOT / name).read_text(encoding="utf-8") for name in ("layers.py", "model.py", "optim.py", "train.py"))
    names = [word for quoted in re.findall(r"`([\w.]+)`", table) for word in quoted.split(".")]
    assert len(names) > 20
    for name in names:
        assert re.search(rf"(def |class |^    ){name}\b", code, re.MULTILINE), name
