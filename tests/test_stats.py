"""Intervals: known cases, how often they cover the truth, what is paired; spread and spikes."""

import csv
import math

import numpy as np
import pytest

import plots
import stats
from config import UserError


@pytest.mark.parametrize(
    "share, n, low, high",
    [(0.5, 100, 0.4038, 0.5962), (0.0, 10, 0.0, 0.2775), (0.98, 512, 0.9639, 0.9890)],
)
def test_wilson_interval_agrees_with_published_values(share, n, low, high):
    assert stats.wilson(share, n) == pytest.approx((low, high), abs=2e-4)


@pytest.mark.parametrize(
    "freedom, quantile",
    [
        (1, 12.706),
        (2, 4.3027),
        (10, 2.2281),
        (11, 2.2010),
        (20, 2.0860),
        (60, 2.0003),
        (10_000, 1.9602),
    ],
)
def test_quantiles_of_student_s_t(freedom, quantile):
    assert stats.student(freedom) == pytest.approx(quantile, abs=0.01)


def test_one_seed_two_puzzles_by_hand():
    assert stats.interval(np.array([[0.0, 1.0]])) == (
        0.5,
        0.0,
        1.0,
    )  # means 0, 1/2, 1 with chances 1/4, 1/2, 1/4


def test_one_seed_many_puzzles_is_binomial():
    mean, low, high = stats.interval(np.arange(400)[None] < 100)
    half = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert (mean, low, high) == pytest.approx((0.25, 0.25 - half, 0.25 + half), abs=0.006)


def test_drawing_puzzles_by_pattern_is_the_bootstrap_over_seeds_and_puzzles():
    g = np.random.default_rng(3)
    values = (g.random((12, 40)) < g.random(40)).astype(
        float
    )  # twelve seeds: Student's t is the narrower one
    naive = [
        values[g.integers(12, size=12)][:, g.integers(40, size=40)].mean() for _ in range(4000)
    ]
    assert stats.interval(values)[1:] == pytest.approx(np.quantile(naive, [0.025, 0.975]), abs=0.01)


def test_few_seeds_get_student_s_interval():
    values = np.array([[0.5], [0.6], [0.7]])
    assert stats.interval(values) == pytest.approx(
        (0.6, 0.6 - 4.303 * 0.1 / math.sqrt(3), 0.6 + 4.303 * 0.1 / math.sqrt(3))
    )
    assert stats.interval(np.repeat(values, 100, axis=1))[1:] == pytest.approx(
        stats.interval(values)[1:]
    )


def test_a_single_number_has_no_interval():
    assert stats.interval(np.array([[0.7]]))[0] == 0.7 and all(
        map(math.isnan, stats.interval(np.array([[0.7]]))[1:])
    )
    assert (
        not stats.excludes_zero(math.nan, math.nan)
        and not stats.excludes_zero(0.0, 0.1)
        and stats.excludes_zero(-0.2, -0.1)
    )


def test_pairing_cancels_what_both_find_hard():
    g = np.random.default_rng(0)
    a = g.random((3, 500)) < np.where(np.arange(500) < 250, 0.02, 0.98)
    b = a | (np.arange(500) % 10 == 0)
    mean, low, high = stats.paired(a, b)
    assert stats.paired(b, a) == pytest.approx((-mean, -high, -low), abs=0.005)
    assert 0 < low < mean < high and high - low < 0.6 * np.subtract(
        *stats.interval(a.astype(float))[:0:-1]
    )


@pytest.mark.parametrize("seeds, puzzles", [(1, 100), (3, 100), (5, 2048)])
def test_puzzles_that_are_all_right_leave_room_for_one_that_is_not(seeds, puzzles):
    bound = 1 - stats.wilson(1.0, puzzles)[0]
    right = np.ones((seeds, puzzles))
    assert stats.interval(right)[:2] == pytest.approx((1, 1 - bound))
    assert stats.paired(right, right) == pytest.approx((0, -bound, bound))
    assert 3 / puzzles < bound < 4 / puzzles


@pytest.mark.parametrize(
    "shares, two",
    [
        ([0.95, 0.2, 0.96], True),
        ([0.95, 0.2, 0.96, 0.25], True),
        ([0.95, 0.91, 0.96], False),
        ([0.9, 0.6, 0.3], False),
        ([0.9, 0.1], False),
    ],
)
def test_seeds_in_two_groups_widen_the_interval(shares, two):
    assert stats.two_groups(np.array(shares)) == two


def test_seeds_in_two_groups_are_all_in_the_interval():
    means = np.array([0.95, 0.2, 0.96, 0.97, 0.94, 0.95, 0.93, 0.96, 0.95, 0.96])
    values = np.arange(100) < 100 * means[:, None]
    _, low, high = stats.interval(values.astype(float))
    assert low <= 0.2 and high >= 0.97


@pytest.mark.parametrize("seeds, luck", [(3, 0.0), (3, 0.5), (5, 0.3)])
@pytest.mark.slow
def test_the_interval_covers_the_truth_at_least_as_often_as_it_says(seeds, luck):
    """Two nets are equally good in the mean. `luck` is the spread of a seed, in logits.

    300 of 300 are expected at best, 285 at least, less chance.
    """
    g, covered = np.random.default_rng(seeds), 0
    for _ in range(300):
        hardness, (a, b) = g.normal(1.5, 1.5, 200), g.normal(0, luck, (2, seeds, 1))
        solved = [g.random((seeds, 200)) < 1 / (1 + np.exp(-hardness - skill)) for skill in (a, b)]
        _, low, high = stats.paired(*solved)
        covered += low <= 0 <= high
    assert 275 <= covered


def test_a_real_difference_is_found():
    g, found = np.random.default_rng(0), 0
    for _ in range(50):
        hardness, luck = g.normal(1.5, 1.5, 500), g.normal(0, 0.05, (2, 3, 1))
        a, b = (
            g.random((3, 500)) < 1 / (1 + np.exp(-hardness - skill))
            for skill in (luck[0], luck[1] + 1.5)
        )
        found += stats.paired(a, b)[1] > 0
    assert found >= 45


def test_spread_of_the_last_third():
    steps, values = np.arange(1, 10), np.array([0, 9, 0, 9, 0, 9, 1.0, 2.0, 3.0])
    assert stats.last_third(steps, values) == 1.0
    assert math.isnan(stats.last_third(steps[:1], values[:1])) and math.isnan(
        stats.last_third(steps[:0], values[:0])
    )


@pytest.mark.parametrize(
    "jumps, count",
    [
        ({}, 0),
        ({20: 1.4}, 0),
        ({20: 1.6}, 1),
        ({20: 1.6, 21: 3.0}, 1),
        ({20: 1.6, 25: 1.6}, 2),
        ({3: 9.0}, 0),
        ({99: 2.0}, 1),
    ],
)
def test_spikes_are_jumps_above_the_lines_before(jumps, count):
    loss = np.ones(100)
    loss[list(jumps)] = list(jumps.values())
    assert stats.spikes(loss) == count and stats.spikes(loss[:10]) == 0


def test_a_share_that_is_not_known_has_no_interval():
    assert all(math.isnan(value) for value in stats.wilson(math.nan, 512))


def test_what_cannot_be_seen_is_written_as_an_escape():
    assert stats.visible("maze é 5x5 $x") == "maze é 5x5 $x"
    assert stats.visible("a\x1b[31mb\n\udcff") == r"a\x1b[31mb\n\udcff"


def test_a_table_shows_names_to_the_letter():
    lines = stats.markdown(["entry"], [["a|b<img src=x>"], ["c\nd"], ["[x](http://y)"], ["**5**"]])
    assert lines[2:6] == [
        r"| a\|b&lt;img src=x> |",
        "| c d |",
        r"| [x]\(http://y) |",
        "| **5** |",
    ]


def test_a_spreadsheet_finds_no_formula_in_a_csv(tmp_path):
    texts = ["=1+1", "+1", "-x", "@x", "\tx", "-", "x=1", -0.5, None]
    plots.write_csv(tmp_path / "t.csv", [{"a": text} for text in texts] + [{"b": 1}])
    with open(tmp_path / "t.csv", newline="") as file:
        rows = [row["a"] for row in csv.DictReader(file)]
    assert rows == ["'=1+1", "'+1", "'-x", "'@x", "'\tx", "-", "x=1", "-0.5", "", ""]


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "table.md"
    plots.write_text(path, "old\n")

    def half(file):
        file.write(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write .*table.md \(No space left on device\)"):
        plots.write_whole(path, half)
    assert path.read_text() == "old\n" and list(tmp_path.iterdir()) == [path]


def test_falling_and_rising_losses_have_no_spikes():
    assert (
        stats.spikes(np.exp(-np.arange(100) / 10)) == 0
        and stats.spikes(1 + np.arange(100) / 100) == 0
    )
