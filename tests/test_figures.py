"""Figures in the READMEs are those of the files in results/, and what they link to exists.

A line that quotes results ends in a marker, which a page does not show:

    | maze_perfect | 99.5 % (99.2-99.8) | <!-- laptop/table.json maze_perfect: exact -->

A marker names a file below results/, a row of it, and keys of that row. Every figure named must
stand in the line, rounded as `written` says. An interval in brackets behind it must be its own.

    JSON      the row is a path, "van_der_pol/configs/baseline", and so may be a key. A step is a
              key or the only beginning of one, in a list a number, an "entry" or a "policy".
              The rows of a table.json are named by their entry alone.
    Markdown  the row is named by its first cell, a key is the beginning of a column's title.
"""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import analyze
import tiny
from config import UserError
from evaluate import evaluate
from runs import make_world
from stats import wilson
from train import load_init, load_run

READMES = {"README.md": 8, "results/README.md": 30}  # file -> at least so many markers
MARKER = re.compile(r"<!-- (\S+\.(?:json|md))(?: ([^:]*))?: ([^>]+?) -->")
NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?"
BRACKET = re.compile(rf"[ %*]*(?: points)?[ *]*\((?:95 % interval )?({NUMBER})(?:-| to )({NUMBER})")
SHARE = re.compile(
    r"(halting_)?exact|valid|optimal|cells|copy_exact|copy_cells|top3|ceiling"
    r"|pass@\d+|\w+_success(@[\d.]+)?"
)


def lines(readme: str) -> list[str]:
    return (tiny.ROOT / readme).read_text(encoding="utf-8").splitlines()


# ---------------------------------------------------------------- files to figures


def step(node, name: str):
    """One step of a path: the value behind a key, or behind the only key that begins so."""
    if isinstance(node, list):
        if name.isdigit():
            return node[int(name)]
        node = {item.get("entry", item.get("policy")): item for item in node}
    if name in node:
        return node[name]
    found = [key for key in node if key.startswith(name)]
    assert len(found) == 1, f"{name!r} names {len(found)} of {list(node)}"
    return node[found[0]]


def follow(node, path: str):
    for name in filter(None, path.split("/")):
        node = step(node, name)
    return node


def json_row(file: Path, path: str):
    whole = json.loads(file.read_text(encoding="utf-8"))
    return follow(whole.get("entries", whole), path)


def markdown_row(file: Path, name: str) -> dict[str, str]:
    """{title of a column: cell} of the first row whose first cell is `name`."""
    titles = []
    for line in file.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip(" *") for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            titles = []
        elif not titles:
            titles = cells
        elif cells[0] == name:
            return dict(zip(titles, cells, strict=True))
    raise AssertionError(f"{file.name} has no row {name!r}")


# ---------------------------------------------------------------- figures to words


def power(value: float, digits: int) -> str:
    """1.2e-6"""
    return re.sub(r"e([-+])0(\d)", r"e\1\2", f"{value:.{digits}e}").replace("e+", "e")


def written(key: str, value, row: dict) -> set[str]:
    """All the ways in which we write the figure `key` of a row."""
    if isinstance(value, str):
        return {value}
    if SHARE.fullmatch(key):
        percent = round(100 * value, 6)
        whole = {f"{percent:.0f}"} if percent.is_integer() else set()
        return {f"{percent:.1f}"} | whole
    if key == "difference" and "primary" not in row:
        return {f"{100 * value:+.1f}"}
    if key == "difference":
        return {f"{value:+.3f}"}
    if key == "primary":
        return {f"{value:.{digits}f} ± {row['primary_half']:.{digits}f}" for digits in (2, 3)}
    if key == "mse":
        return {power(value, 0), power(value, 1)}
    if key == "to_optimum":
        return {f"{value:.4f}"}
    if key == "halting_steps":
        return {f"{value:.1f}"}
    if key == "improvement_percent":
        return {f"{value:.0f}"}
    if key.startswith("solved@"):
        return {f"{value:.1f}", f"{value:.2f}"}
    if "ratio" in key or key == "seconds_per_step":
        return {f"{value:.2f}"}
    return {f"{value:,.0f}", f"{value:.0f}"}  # counts, and seconds


def interval(key: str, row: dict) -> tuple | None:
    """(low, high), or None: of one run's share the binomial interval over its puzzles."""
    if f"{key}_low" in row:
        return row[f"{key}_low"], row[f"{key}_high"]
    if SHARE.fullmatch(key) and "n" in row:
        return wilson(row[key], row["n"])
    return None


def bracket_is_right(text: str, key: str, row: dict) -> bool:
    """Is the bracket that the text begins with the figure's interval? True without a bracket."""
    bracket = BRACKET.match(text)
    ends = interval(key, row)
    if not bracket or ends is None:
        return True
    low, high = (written(key, end, row) for end in ends)
    return bracket[1] in low and bracket[2] in high


def stands(line: str, key: str, row: dict) -> bool:
    """Does the figure stand in the line, its own interval behind it?"""
    for form in written(key, row[key], row):
        for match in re.finditer(rf"(?<![\d.])(?<!\d,){re.escape(form)}(?![.,]?\d)", line):
            if bracket_is_right(line[match.end() :], key, row):
                return True
    return False


def cell_stands(line: str, cell: str) -> bool:
    """Does the first number of a Markdown cell stand in the line?"""
    number = re.search(NUMBER, cell)[0]
    return bool(re.search(rf"(?<![\d.])(?<!\d,){re.escape(number)}(?![.,]?\d)", line))


def wrong(line: str) -> list[str]:
    """What the markers of a line name and the line does not say."""
    text = MARKER.sub("", line)
    found = []
    for file, path, keys in MARKER.findall(line):
        file = tiny.ROOT / "results" / file
        assert file.is_file(), f"results/{file} is named and not there"
        for key in keys.split():
            if file.suffix == ".md":
                cell = step(markdown_row(file, path), key)
                if not cell_stands(text, cell):
                    found.append(f"{path} {key}: {cell}")
                continue
            parent, _, name = key.rpartition("/")
            row = follow(json_row(file, path), parent)
            if not stands(text, name, row):
                expected = " or ".join(sorted(written(name, row[name], row)))
                found.append(f"{path} {key}: {expected}, interval {interval(name, row)}")
    return found


# ---------------------------------------------------------------- claims


@pytest.mark.parametrize("readme", READMES)
def test_marked_lines_say_what_the_files_say(readme):
    for number, line in enumerate(lines(readme), 1):
        assert not wrong(line), f"{readme}, line {number}: {line}"
        # what looks like a marker is one
        assert len(MARKER.findall(line)) == line.count("<!-- "), f"{readme}, line {number}: {line}"


@pytest.mark.parametrize("readme", READMES)
def test_figures_are_marked(readme):
    markers = MARKER.findall("\n".join(lines(readme)))
    assert len(markers) >= READMES[readme], f"{readme} has {len(markers)} markers"


@pytest.mark.parametrize(
    "line",
    [
        "| 35,842 | 99.2 % (98.8-99.4) | 145 | <!-- laptop/table.json maze_perfect:"
        " parameters exact train_cpu_seconds -->",
        "**86.9 %** are right <!-- maze_hard/table.json maze_hard: exact -->",
        "86.2 % (83.9 to 88.2) <!-- maze_hard/runs/maze_hard/seed0/summary.json: test/exact -->",
        "+1.0 (-1.7 to +3.6), not shown <!-- ablation_laptop/table.json T2_n2:"
        " difference verdict -->",
        "-2.88 ± 0.15 and 66.6 % <!-- control_ablation/ablation_analysis.json"
        " van_der_pol/references/MLP: primary open_success@0.2 -->",
        "held-out: 76.9 % <!-- arc_laptop/rules.md E1v2: held-out -->",
    ],
)
def test_a_changed_figure_is_found(line):
    assert not wrong(line)
    text, marker = line.split(" <!-- ")
    for digit in re.finditer(r"\d", text):
        other = str((int(digit[0]) + 1) % 10)
        changed = text[: digit.start()] + other + text[digit.end() :]
        assert wrong(f"{changed} <!-- {marker}"), changed


def slug(title: str) -> str:
    """The anchor that GitHub makes of a title."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def anchors(file: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    return {slug(title) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


@pytest.mark.parametrize("readme", READMES)
def test_pictures_and_links_exist(readme):
    here = tiny.ROOT / readme
    text = "\n".join(lines(readme))
    links = re.findall(r"\]\(([^()\s]+)\)|<img [^>]*src=\"([^\"]+)\"", text)
    targets = [markdown or html for markdown, html in links]
    local = [target for target in targets if not re.match(r"https?://|mailto:", target)]
    assert len(local) >= 8
    for target in local:
        name, _, anchor = target.partition("#")
        file = here.parent / name if name else here
        assert file.exists(), f"{readme} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{readme} links to {target}"


def test_entries_and_programs_named_with_the_results_exist():
    text = "\n".join(lines("results/README.md"))
    examples = {"sweeps/laptop/ENTRY.toml", "sweeps/slurm.toml"}
    entries = set(re.findall(r"sweeps/[\w/]+\.toml", text)) - examples
    folders = set(re.findall(r"`(sweeps/[\w/]+/)`", text))
    programs = set(re.findall(r"python ([\w/]+\.py)", text))
    assert len(entries) > 6 and len(folders) > 6 and len(programs) > 4
    for name in entries | folders | programs:
        assert (tiny.ROOT / name).exists(), name


# ---------------------------------------------------------------- runs to figures

RESULTS = tiny.ROOT / "results"
KEPT = sorted({path.relative_to(RESULTS).parts[0] for path in RESULTS.glob("**/summary.json")})


@pytest.mark.parametrize(
    "name", [name for name in KEPT if (RESULTS / name / "table.json").exists()]
)
def test_a_table_can_be_made_again_from_its_runs(name, tmp_path):
    runs = RESULTS / name / "runs"
    groups = analyze.group(analyze.load_runs([runs if runs.exists() else RESULTS / name]))
    analyze.compare(groups, "baseline")
    analyze.write_tables(tmp_path, groups, [])
    kept, made = (
        json.loads((folder / "table.json").read_text()) for folder in (RESULTS / name, tmp_path)
    )
    assert [row["entry"] for row in kept["entries"]] == [row["entry"] for row in made["entries"]]
    for old, new in zip(kept["entries"], made["entries"], strict=True):
        for key in ("seeds", "parameters", "exact", "exact_low", "exact_high", "verdict"):
            assert old.get(key) == new.get(key), (old["entry"], key)


RULED = [path.parent.name for path in RESULTS.glob("*/rules.md") if (path.parent / "runs").exists()]


@pytest.mark.parametrize("name", RULED)
def test_decision_trees_can_be_read_again_from_their_runs(name, tmp_path):
    assert analyze.main(["--rules", str(RESULTS / name / "runs"), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "rules.md").read_text() == (RESULTS / name / "rules.md").read_text()


# ---------------------------------------------------------------- nets to figures

NETS = {  # a net in results/ -> its run, its test rows, how many are asked here, least share right
    "maze_hard": ("runs/maze_hard/seed0", "maze_hard_test.csv.gz", 40, 0.7),
    "sudoku_extreme": (
        "runs/sudoku_extreme_groups/seed0",
        "sudoku_proxy_test_5000.csv.gz",
        24,
        0.3,
    ),
}
SHARED = Path(os.environ.get("SHARED_DATA", tiny.ROOT.parent / "shared" / "data"))


def test_every_net_in_results_is_small_and_tested():
    assert {path.parent.name for path in RESULTS.glob("*/best.pt")} == set(NETS)
    assert all((RESULTS / name / "best.pt").stat().st_size < 300_000 for name in NETS)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real puzzle files in {SHARED}")
@pytest.mark.parametrize("name", NETS)
def test_a_net_in_results_answers_as_its_run_did(name):
    run, file, rows, least = NETS[name]
    kept = np.load(RESULTS / name / run / "test.npz")["exact"][:rows]
    cfg, net, _ = load_run(RESULTS / name / "best.pt")
    cfg = replace(cfg, data=replace(cfg.data, test_path=str(SHARED / file)))
    world = make_world(replace(cfg.train, compile="off", device="cpu"))
    split = cfg.task.load_test(cfg).test
    found = evaluate(net, split, cfg, world, rows=rows)["verdict"]["exact"]
    assert least < kept.mean() < 1 and (found == kept).sum() >= rows - 1  # rounding


def test_a_net_without_its_raw_weights_says_so():
    path = RESULTS / "sudoku_extreme" / "best.pt"
    with pytest.raises(UserError, match="averaged weights only, expected the raw ones"):
        load_run(path, weights="raw")
    cfg, net, _ = load_run(path)
    init = replace(cfg.train, init=str(path), init_weights="raw")
    with pytest.raises(UserError, match="train.init: .*averaged weights only"):
        load_init(net, replace(cfg, train=init))
