"""What may be said about a few seeds and some hundred puzzles. Only numpy.

Intervals, paired differences, steadiness, and how figures and names are written.
"""

import math

import numpy as np

# 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom
STUDENT = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
GOAL = 0.95  # share of the validation rows that counts as having generalised


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t."""
    return STUDENT[freedom - 1] if freedom <= len(STUDENT) else 1.96 + 2.65 / freedom


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a binomial share (Wilson), sound near 0 and 1; of NaN there is none."""
    if math.isnan(share):
        return math.nan, math.nan
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    whole = 1 + z * z / n
    return max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)


def interval(values: np.ndarray, resamples: int = 2000) -> tuple[float, float, float]:
    """Mean of (seeds, puzzles) values, and its 95 % interval for other seeds and other puzzles.

    A bootstrap over both: a resample draws seeds and puzzles with replacement. The seeds of a
    puzzle stay together, for a hard puzzle is hard for all.

    Few seeds cannot show by resampling how far others would lie: with three that differ, such an
    interval covers the truth in 79 % of simulated cases. So it is never narrower than Student's t
    over the means of the seeds, with which it is 95 % or more where seeds spread evenly. One seed:
    puzzles only.

    Where a seed fails altogether now and then, it covers less, for a few seeds may all be good
    ones. If one in five does, it holds the truth in 47 % of simulated cases with three seeds, 70 %
    with five, 88 % with ten. Seeds that do fall into two groups make it at least as wide as they
    lie apart (`two_groups`).

    Puzzles that are all right, or differ in none, leave room for one that is not: Wilson's bound.

    Puzzles with the same values are drawn together (multinomial): the same distribution, in a
    fraction of the time.
    """
    seeds, puzzles = values.shape
    mean = float(values.mean())
    if values.size < 2:
        return mean, math.nan, math.nan
    g = np.random.default_rng(0)  # the same runs, the same interval
    patterns, counts = np.unique(values, axis=1, return_counts=True)  # (seeds, K), (K,)
    drawn_counts = g.multinomial(puzzles, counts / puzzles, resamples)  # (resamples, K)
    means = drawn_counts / puzzles @ patterns.T  # (resamples, seeds)
    drawn = np.take_along_axis(means, g.integers(seeds, size=means.shape), 1).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    half = 0.0
    if seeds > 1:
        half = student(seeds - 1) * values.mean(1).std(ddof=1) / math.sqrt(seeds)
    if puzzles > 1 and values.min() == values.max():
        half = 1 - wilson(1.0, puzzles)[0]
    low, high = min(float(low), mean - half), max(float(high), mean + half)
    if two_groups(values.mean(1)):
        low, high = min(low, values.mean(1).min()), max(high, values.mean(1).max())
    return mean, float(low), float(high)


def two_groups(shares: np.ndarray) -> bool:
    """Whether the seeds fall into two groups, as where some fail altogether. shares: one a seed.

    Their largest gap is 10 points or more, and twice what they spread besides. Two seeds cannot
    tell.
    """
    if len(shares) < 3:
        return False
    gap = np.diff(np.sort(shares)).max()
    return bool(gap >= 0.1 and gap > 2 * (np.ptp(shares) - gap))


def paired(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """b minus a, mean and 95 % interval, where [i, j] of both is the same seed and puzzle.

    What both find hard cancels.
    """
    return interval(np.asarray(b, dtype=float) - np.asarray(a, dtype=float))


def excludes_zero(low: float, high: float) -> bool:
    """Whether an interval does not hold zero; NaN: no."""
    return low > 0 or high < 0


def ratio(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """b over a, where [i] of both is the same seed: geometric mean and 95 % interval.

    NaN where a seed is infinite or there is only one.
    """
    if not np.isfinite([a, b]).all():
        return math.nan, math.nan, math.nan
    return tuple(math.exp(value) for value in paired(np.log(a)[:, None], np.log(b)[:, None]))


def time_to_threshold(steps: np.ndarray, shares: np.ndarray) -> float:
    """The first step whose share is GOAL or more; infinity: none, which no mean may hide."""
    reached = shares >= GOAL
    return float(steps[np.argmax(reached)]) if reached.any() else math.inf


def last_third(steps: np.ndarray, values: np.ndarray) -> float:
    """Standard deviation of the values of the last third of the steps; NaN for fewer than two."""
    late = values[steps > 2 / 3 * steps.max()] if len(steps) else values
    return float(late.std(ddof=1)) if len(late) > 1 else math.nan


def spikes(loss: np.ndarray, window: int = 10, factor: float = 1.5) -> int:
    """How often the loss jumps above `factor` times the median of the `window` lines before.

    What follows at once is the same spike.
    """
    if len(loss) <= window:
        return 0
    before = np.lib.stride_tricks.sliding_window_view(loss, window)[:-1]
    high = loss[window:] > factor * np.median(before, axis=1)
    starts = high & ~np.concatenate([[False], high[:-1]])
    return int(starts.sum())


# ---------------------------------------------------------------- in words


def clean(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return None if math.isnan(value) else round(value, 6)


def shown(value: float | None, form: str) -> str:
    """A number in this format, or a dash."""
    return "-" if value is None else format(value, form)


def percent(row: dict, name: str) -> str:
    """99.4 (98.9-99.8), or a dash where there is no such figure."""
    mean, low, high = (row.get(name + end) for end in ("", "_low", "_high"))
    if mean is None:
        return "-"
    return f"{100 * mean:.1f}" + (f" ({100 * low:.1f}-{100 * high:.1f})" if low != high else "")


def points(mean: float, low: float | None, high: float | None) -> str:
    """-7.5 (-9.1 to -5.8): a difference of shares in points."""
    values = (None if value is None else round(100 * value, 1) + 0.0 for value in (mean, low, high))
    mean, low, high = values  # + 0.0: no "-0.0"
    return f"{mean:+.1f}" + ("" if low is None else f" ({low:+.1f} to {high:+.1f})")


def visible(text: str) -> str:
    """Text of one line for any terminal and file: what cannot be seen is written as an escape.

    A name with an ESC would change the terminal, one that is no UTF-8 could not be written at all.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def literal(text: str) -> str:
    """A text of one line as Markdown shows it to the letter: no HTML, no column, no link."""
    text = visible(text.replace("\n", " "))
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return text.replace("|", r"\|").replace("](", r"]\(")


TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
TEX |= {letter: "\\" + letter for letter in "&%$#_{}"}


def latex(head: list[str], lines: list[list]) -> list[str]:
    """The lines of a LaTeX table, for the package booktabs, with an empty one behind it."""

    def row(cells: list) -> str:
        words = ("".join(TEX.get(letter, letter) for letter in visible(str(c))) for c in cells)
        return " & ".join(words) + r" \\"

    body = [row(cells) for cells in lines]
    begin = [rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule", row(head), r"\midrule"]
    return [*begin, *body, r"\bottomrule", r"\end{tabular}", ""]


def markdown(head: list[str], lines: list[list]) -> list[str]:
    """The lines of a Markdown table, with an empty one behind it."""
    rows = [head, ["---"] * len(head), *lines]
    text = [" | ".join(literal(str(cell)) for cell in cells) for cells in rows]
    return [f"| {row} |" for row in text] + [""]


if __name__ == "__main__":
    raise SystemExit("stats.py is a part to import; python train.py begins, README.md says more")
