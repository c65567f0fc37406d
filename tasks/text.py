"""What people write -> puzzles in the characters of tasks/puzzles.py, and what was understood.

    maze(text)           a maze with other letters, in a frame, two characters wide, or no square
    sudokus(text, side)  one or many Sudokus, as newspapers, files and solve.py print them

A character that means nothing in a Sudoku stays as it is: puzzles.encode names it.
"""

import math
import re
from dataclasses import dataclass

from config import UserError

BARS = "|\u2502\u2551\u2503"
FRAME = set("+-=") | set(map(chr, range(0x2500, 0x2580)))  # and all box drawing
BLOCK = "\u2588"  # a full block
WALLS, FREE, STARTS, GOALS = f"#X1{BLOCK}", " .0", "SA", "GEB"
KINDS = {"wall": WALLS, "free": FREE, "start": STARTS, "goal": GOALS}  # of cells of a maze
MEANING = {wall: "#" for wall in WALLS} | {free: " " for free in FREE}
MEANING |= {"S": "S", "A": "S", "G": "G", "E": "G", "B": "G", "o": "o"}  # o: puzzles says where
NAMES = {" ": "space", BLOCK: "full block"}
BLANKS = "0._*xX?"  # of a Sudoku
SEPARATORS = " \t,;[]" + BARS


@dataclass
class Reading:
    text: str  # the cells row by row, as puzzles.encode takes them
    side: int  # rows and columns of it; 0: no square
    understood: str  # one sentence


def is_frame(line: str) -> bool:
    """Whether a line is nothing but a frame, or a bar between boxes."""
    characters = set(line) - set(" \t" + BARS)
    return bool(characters) and characters <= FRAME


# ---------------------------------------------------------------- mazes


def maze(text: str) -> Reading:
    """A maze of one or many lines. Raises UserError for a text that is no maze."""
    if not set(f"#XSAGEBo{BLOCK}") & set(text):
        looks = "looks like no maze" if text.strip() else "is empty"
        raise UserError(
            f"the puzzle {looks}, but this net was trained on mazes: "
            "expected '#' wall, space free, one S, one G"
        )
    lines, words = without_frame(text.strip("\r\n").splitlines())
    if len(lines) == 1:
        count = len(lines[0])
        side = math.isqrt(count)
        is_square = side * side == count
        if is_square:
            lines = [lines[0][at : at + side] for at in range(0, count, side)]
        refuse_unknown(lines)
        if not is_square:
            return Reading(plain(lines[0]), 0, f"one line of {count} cells")
        return Reading(plain("".join(lines)), side, f"{side} columns, {side} rows; {legend(lines)}")
    if not words:  # empty lines around a maze may be free rows of it
        lines = text.splitlines()
        if len(lines) != longest(lines):
            lines = text.strip("\r\n").splitlines()
    lines, more = one_character_a_cell(lines)
    words += more
    columns, rows = longest(lines), len(lines)
    refuse_short(lines)
    refuse_unknown(lines)
    words.insert(0, f"{columns} columns, {rows} rows")
    side = max(columns, rows)
    letters = legend(lines)
    cells = [plain(line.ljust(columns)).ljust(side, "#") for line in lines]
    cells += ["#" * side] * (side - rows)
    if columns != rows:
        place = "below" if rows < columns else "on the right"
        words[0] += f": mazes are square, walls added {place}"
    return Reading("".join(cells), side, "; ".join([*words, letters]))


def longest(lines: list[str]) -> int:
    return max(map(len, lines), default=0)


def refuse_unknown(lines: list[str]) -> None:
    """Raises UserError for the first character that means nothing in a maze."""
    for row, line in enumerate(lines, 1):
        for column, cell in enumerate(line, 1):
            if cell not in MEANING:
                known = "; ".join(f"{named(letters)} {kind}" for kind, letters in KINDS.items())
                raise UserError(
                    f"the puzzle: row {row}, column {column} is {cell!r}, expected {known}"
                )


def named(letters: str) -> str:
    """ "GE" -> "'G' or 'E'"."""
    return " or ".join(NAMES.get(letter, repr(letter)) for letter in letters)


def refuse_short(lines: list[str]) -> None:
    """Raises UserError for a short row, unless spaces are free: an editor may cut those off."""
    if " " in "".join(lines) or not set(FREE) & set("".join(lines)):
        return
    for at, line in enumerate(lines, 1):
        if len(line) != len(lines[0]):
            raise UserError(
                f"the puzzle: row {at} has {len(line)} cells, expected {len(lines[0])} as in row 1"
            )


def without_frame(lines: list[str]) -> tuple[list[str], list[str]]:
    """The lines inside a frame, of two grids beside each other the left one; and words on it.

    A frame is a line above, a line below, and a bar at both ends of every line between.
    """
    framed = len(lines) > 2 and is_frame(lines[0]) and is_frame(lines[-1])
    if not framed:
        return lines, []
    bar, other = f"[{BARS}]", f"[^{BARS}]*"
    row = re.compile(rf"\s*{bar}({other}){bar}(\s+{bar}{other}{bar})?\s*")
    found = [row.fullmatch(line) for line in lines[1:-1]]
    if not all(found):
        return lines, []
    words = ["frame left out"]
    if all(match[2] for match in found):
        words = ["the left one of two grids", *words]
    return [match[1] for match in found], words


def one_character_a_cell(lines: list[str]) -> tuple[list[str], list[str]]:
    """Lines without commas or spaces between the cells, or the second character of each cell."""
    if all("," in line for line in lines):
        return [line.replace(",", "") for line in lines], ["commas left out"]
    rows, columns = len(lines), longest(lines)
    if columns > 2 and all(is_spaced(line) for line in lines):
        return [line[::2] for line in lines], ["spaces between cells left out"]
    if rows < columns <= 2 * rows:
        wide = [line.ljust(2 * rows) for line in lines]
        if all(is_doubled(line) for line in wide):
            return [line[::2] for line in wide], ["two characters a cell"]
    return lines, []


def is_spaced(line: str) -> bool:
    """Whether spaces stand between the cells and nowhere else."""
    return len(line) > 1 and " " not in line[::2] and not line[1::2].strip(" ")


def is_doubled(line: str) -> bool:
    """Whether every cell is two characters: alike, or an S or G and a space."""
    pairs = zip(line[::2], line[1::2])
    return all(a == b or (b == " " and a in STARTS + GOALS) for a, b in pairs)


def plain(line: str) -> str:
    """A line in the characters of tasks/puzzles.py."""
    return "".join(MEANING[cell] for cell in line)


def legend(lines: list[str]) -> str:
    """Which characters stand for what."""
    found = set("".join(lines))
    parts = []
    for kind, letters in KINDS.items():
        used = "".join(letter for letter in letters if letter in found)
        if used:
            parts.append(f"{named(used)} {kind}")
    return ", ".join(parts)


# ---------------------------------------------------------------- Sudoku


def sudokus(text: str, side: int) -> list[Reading]:
    """The Sudokus of a text: side x side, one below the other, or each in a line of its own.

    Raises UserError for a text that is no Sudoku. A wrong number of cells is left to
    puzzles.encode.
    """
    lines, words = grid_lines(text, side)
    found = set("".join(lines))
    if not found or found & set("#SGo"):
        is_maze = set("#SGo") & (found or set(text))
        looks = "looks like a maze" if is_maze else "is empty"
        raise UserError(
            f"the puzzle {looks}, but this net was trained on Sudokus: "
            "expected digits, '.' or 0 for blanks"
        )
    each = split(lines, side)
    words.insert(0, f"{len(each)} Sudokus" if len(each) > 1 else "a Sudoku")
    blanks = [repr(char) for char in BLANKS if char in found]
    if blanks:
        words.append(f"{' or '.join(blanks)} blank")
    understood = ", ".join(words)
    return [Reading(with_dots(cells), side, understood) for cells in each]


def grid_lines(text: str, side: int) -> tuple[list[str], list[str]]:
    """The cells of every line that has some, and words on what was left out."""
    lines = [line for line in text.splitlines() if line.strip()]
    rows = [line for line in lines if not is_frame(line)]
    headings = [line for line in rows if is_heading(line)]
    rows = [line for line in rows if not is_heading(line)]
    words = []
    left = [left_grid(line, side) for line in rows]
    if rows and all(left):
        rows = left
        words.append("the left one of two grids")
    if len(lines) > len(rows) + len(headings) or set(BARS) & set(text):
        words.append("frame left out")
    if headings:
        words.append(f"{len(headings)} line{'s' * (len(headings) > 1)} of text left out")
    return [cells_of(line, side) for line in rows], words


def cells_of(line: str, side: int) -> str:
    """A line without what stands between cells; of a question and its answer the question."""
    first, comma, rest = line.partition(",")
    if comma and len(first.strip()) == len(rest.strip()) == side * side:
        return first.strip()
    for separator in (f"[{BARS}]", "[,;]", "\t"):  # one between all cells: an empty one is blank
        between = re.split(separator, line.strip(" \r"))
        between = between[1:-1] if len(between) == side + 2 else between
        if len(between) == side and all(len(cell.strip()) <= 1 for cell in between):
            return "".join(cell.strip() or "." for cell in between)
    return "".join(char for char in line if char not in SEPARATORS)


def left_grid(line: str, side: int) -> str:
    """The left one of two rows with a gap of four spaces or more between them; empty: none."""
    parts = re.split(r"\s{4,}", line.strip())
    is_two = len(parts) == 2 and all(len(cells_of(part, side)) == side for part in parts)
    return parts[0] if is_two else ""


def is_heading(line: str) -> bool:
    """Whether half of a line or more is letters: "Grid 01". An x is a blank, # a wall or, before
    a word, a comment.
    """
    if re.match(r"\s*#.*[a-z]{3}", line):
        return True
    characters = [char for char in line if char not in SEPARATORS]
    letters = [char for char in characters if char.isalpha() and char not in BLANKS]
    return "#" not in line and len(characters) > 1 and 2 * len(letters) >= len(characters)


def split(lines: list[str], side: int) -> list[str]:
    """The cells of every Sudoku."""
    if all(len(line) == side * side for line in lines):
        return lines
    if all(len(line) == side for line in lines) and len(lines) % side == 0:
        return ["".join(lines[at : at + side]) for at in range(0, len(lines), side)]
    return ["".join(lines)]


def with_dots(cells: str) -> str:
    """Every blank as '.'."""
    return "".join("." if char in BLANKS else char for char in cells)
