"""Mazes and Sudoku as arrays: their text, rules, solvers, generators and symmetries.

A library to copy: numpy, and UserError of config.py. Knows nothing of tasks, files and nets.

A puzzle is a row of L = side * side tokens, read row by row. 0 is padding and never occurs in one.

    maze    '#' wall 1, ' ' free 2, 'S' start 3, 'G' goal 4, 'o' path 5 (answers only): 6 tokens
    sudoku  blank 1, digit d -> d + 1: side + 2 tokens
"""

import math
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from itertools import count as count_from

import numpy as np

from config import UserError

WALL, FREE, START, GOAL, PATH = 1, 2, 3, 4, 5
MAZE = "# SGo"
BOX = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # side -> rows and columns of a box
GIVENS = {4: (6, 10), 6: (14, 18), 9: (36, 45)}  # side -> fewest and most clues, by default
LEAST_GIVENS = {4: 4, 6: 8, 9: 17}  # no Sudoku with fewer has one solution
MAX_SIDE = 60  # a row of a maze, its rim and a shift must fit the bits of an int64


# ---------------------------------------------------------------- text


@lru_cache
def token_table(task: str, side: int, answer: bool) -> np.ndarray:
    """(256,) uint8: character code -> token, 0 where the character may not occur."""
    table = np.zeros(256, np.uint8)
    characters = MAZE if task == "maze" else "0123456789"[: side + 1]
    for token, char in enumerate(characters, 1):
        table[ord(char)] = token
    if task == "maze" and not answer:
        table[ord("o")] = 0
    if task == "sudoku":
        blank = 0 if answer else 1
        table[ord("0")] = blank
        table[ord(".")] = blank
    return table


def to_tokens(
    task: str, texts: list[str], side: int, where: Callable[[int], str], answer: bool = False
) -> np.ndarray:
    """N strings -> (N, L) uint8. `where(row)` begins the sentence about a bad row.

    Raises UserError for a wrong length or character.
    """
    for row, text in enumerate(texts):
        if len(text) != side * side:
            found = number_of_cells(len(text))
            raise UserError(f"{where(row)} has {found}, expected {side * side} ({side}x{side})")
    table = token_table(task, side, answer)
    # One byte per character, always: others than latin-1's become '?'.
    codes = np.frombuffer("".join(texts).encode("latin-1", "replace"), np.uint8)
    tokens = table[codes].reshape(len(texts), side * side)
    if not tokens.all():
        row, at = np.argwhere(tokens == 0)[0]
        known = "".join(chr(code) for code in np.flatnonzero(table))
        found = texts[row][at]
        raise UserError(
            f"{where(row)} has {found!r} at position {at + 1}, expected one of {known!r}"
        )
    return tokens


def number_of_cells(count: int) -> str:
    """In words: 9 cells (3x3), or 8 cells where they are no square."""
    side = math.isqrt(count)
    if count and side * side == count:
        return f"{count} cells ({side}x{side})"
    return f"{count} cells"


def check_ends(questions: np.ndarray, where: Callable[[int], str]) -> None:
    """Raises UserError unless every maze (N, L) has one S and one G."""
    for token, name in (START, "S"), (GOAL, "G"):
        found = (questions == token).sum(1)
        if (found != 1).any():
            row = np.flatnonzero(found != 1)[0]
            raise UserError(f"{where(row)} has {found[row]} cells {name}, expected exactly one")


def one_line(task: str, text: str) -> str:
    """The cells of a text of one or many lines.

    White space in a Sudoku is dropped. A maze gets back the trailing spaces that an editor cut off.
    Raises UserError for a maze with more rows than columns.
    """
    if task == "sudoku":
        return "".join(text.split())
    lines = text.splitlines()
    longest = max(map(len, lines), default=0)
    if longest != len(lines):  # no square: empty lines around it may be to blame
        lines = text.strip("\r\n").splitlines()
    refuse_tall(lines)
    return "".join(line.ljust(len(lines)) for line in lines)


def refuse_tall(lines: list[str]) -> None:
    """Raises UserError for a maze of more rows than columns, where no editor cut off spaces.

    It did not where all rows are equally long, or where one of them ends in a space. Such a maze
    made square with free cells could have a path that it does not have.
    """
    longest = max(map(len, lines), default=0)
    whole = min(map(len, lines), default=0) == longest or any(line[-1:] == " " for line in lines)
    if 0 < longest < len(lines) and whole:
        raise UserError(
            f"the puzzle has {len(lines)} rows of {longest} cells, expected as many rows as columns"
        )


def encode(task: str, text: str, size: int) -> np.ndarray:
    """A question of one or many lines as (L,) uint8 tokens.

    '.' and '0' are the blanks of a Sudoku. Raises UserError for a wrong length or character, and
    for a maze without one S and one G.
    """
    tokens = to_tokens(task, [one_line(task, text)], size, lambda _: "the puzzle")
    if task == "maze":
        check_ends(tokens, lambda _: "the puzzle")
    return tokens[0]


def decode(task: str, tokens: np.ndarray) -> str:
    """(L,) tokens -> L characters, row by row. '?' is padding, '.' the blank of a Sudoku."""
    chars = "?" + (MAZE if task == "maze" else ".123456789")
    return "".join(chars[token] for token in np.asarray(tokens).tolist())


# ---------------------------------------------------------------- mazes: one at a time

STEPS = np.array([(1, 0), (0, -1), (0, 1), (-1, 0)])  # D, L, R, U: the order of the label rule


def solve_maze(question: str) -> str:
    """The question with its path as 'o': the label rule of Maze-Hard, for a square of any size.

    Breadth-first search from S with a FIFO queue and the neighbours down, left, right, up. The
    first visit keeps its parent. So the path is the first, in the order D < L < R < U, of all
    shortest paths. It reproduces all 2000 labels of Maze-Hard.
    Line breaks are dropped. Raises UserError for a malformed maze, and where no path leads to G.
    """
    side = math.isqrt(len(one_line("maze", question)))
    grid = list(decode("maze", encode("maze", question, side)))
    start, goal = grid.index("S"), grid.index("G")
    parent = {start: start}
    queue = deque([start])
    while queue and goal not in parent:
        here = queue.popleft()
        row, col = divmod(here, side)
        for down, right in STEPS.tolist():
            inside = 0 <= row + down < side and 0 <= col + right < side
            there = here + down * side + right
            if inside and grid[there] != "#" and there not in parent:
                parent[there] = here
                queue.append(there)
    if goal not in parent:
        raise UserError("the puzzle has no path from S to G")
    here = parent[goal]
    while here != start:
        grid[here] = "o"
        here = parent[here]
    return "".join(grid)


# ---------------------------------------------------------------- mazes: many at once
# A maze is S + 2 machine words, a row of cells each, with a rim of zeros: (S + 2, N) int64. Column
# c is bit c + 1, so one shift moves a whole row of cells to the left or right.


def pack(mask: np.ndarray) -> np.ndarray:
    """(N, S, S) bool -> (S + 2, N) int64 words. Raises UserError where a row is too long."""
    count, side, _ = mask.shape
    if side > MAX_SIDE:
        raise UserError(
            f"a maze of {side}x{side} cells is too large, at most {MAX_SIDE}x{MAX_SIDE}"
        )
    octets = np.zeros((count, side, 8), np.uint8)
    octets[..., : (side + 7) // 8] = np.packbits(mask, axis=2, bitorder="little")
    words = np.zeros((side + 2, count), np.int64)
    words[1:-1] = octets.view("<i8")[..., 0].T << 1
    return words


def pack_cell(cell: np.ndarray, side: int) -> np.ndarray:
    """(N,) cell numbers -> (S + 2, N) words with one bit per maze."""
    words = np.zeros((side + 2, len(cell)), np.int64)
    words[cell // side + 1, np.arange(len(cell))] = 1 << (cell % side + 1)
    return words


def neighbours(front: np.ndarray) -> np.ndarray:
    """The cells beside those of `front`, walls included: (S + 2, N) words."""
    beside = front << 1 | front >> 1
    beside[1:] |= front[:-1]
    beside[:-1] |= front[1:]
    return beside


def flood(
    passable: np.ndarray, start: np.ndarray, goal: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Breadth-first waves from G in N mazes at once, until they reach S.

    passable (N, S, S) bool, start and goal (N,) cell numbers. Returns moves (N,) from S to G, -1
    where no path leads there, and planes (3, S + 2, N): planes[k] holds the cells whose distance
    to G is k modulo 3. A walk to G needs no more: neighbouring cells differ by exactly one.
    """
    count, side, _ = passable.shape
    moves = np.full(count, -1)
    planes = np.zeros((3, side + 2, count), np.int64)
    # Of the mazes `active` alone: cells that no wave has reached, the last wave, the planes.
    active = np.arange(count)
    unreached = pack(passable)
    front = pack_cell(goal, side)
    unreached &= ~front
    seen = planes.copy()
    start_row, start_col = start // side + 1, start % side + 1
    for distance in count_from():
        seen[distance % 3] |= front
        word = front[start_row[active], np.arange(active.size)]
        arrived = (word >> start_col[active] & 1) > 0
        moves[active[arrived]] = distance
        if distance % 8 == 0 or active.size < 512:  # finished mazes leave now and then: it costs
            open_ = (moves[active] < 0) & front.any(0)
            planes[:, :, active[~open_]] = seen[:, :, ~open_]
            active = active[open_]
            seen, front, unreached = seen[:, :, open_], front[:, open_], unreached[:, open_]
            if not active.size:
                return moves, planes
        front = neighbours(front) & unreached
        unreached ^= front


def solve_mazes(questions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, L) questions -> (N, L) labels by the rule of solve_maze, and (N,) moves from S to G.

    Where G cannot be reached, moves are -1 and the label has no 'o'.
    """
    side = math.isqrt(questions.shape[1])
    start, goal = (questions == START).argmax(1), (questions == GOAL).argmax(1)
    moves, planes = flood((questions != WALL).reshape(-1, side, side), start, goal)
    labels, left = questions.copy(), moves.copy()
    row, col = np.divmod(start, side)
    down, right = STEPS.T[:, :, None]  # each (4, 1)
    walking = np.flatnonzero(left > 1)
    while walking.size:
        rows, cols = row[walking] + down, col[walking] + right  # (4, walking): the neighbours
        nearer = planes[(left[walking] - 1) % 3, rows + 1, walking] >> (cols + 1) & 1
        first = nearer.argmax(0)  # the first of D, L, R, U that comes closer to G
        each = np.arange(walking.size)
        row[walking], col[walking] = rows[first, each], cols[first, each]
        labels[walking, row[walking] * side + col[walking]] = PATH
        left[walking] -= 1
        walking = walking[left[walking] > 1]
    return labels, moves


def far_cells(passable: np.ndarray, goal: np.ndarray, least: int) -> np.ndarray:
    """(N, S, S) bool: cells from which G can be reached, in `least` moves or more."""
    side = passable.shape[1]
    unreached = pack(passable)
    front = pack_cell(goal, side)
    far = np.zeros_like(front)
    for distance in count_from():
        if not front.any():
            break
        if distance >= least:
            far |= front
        unreached &= ~front
        front = neighbours(front) & unreached
    return (far[1:-1].T[:, :, None] >> np.arange(1, side + 1) & 1).astype(bool)


def redraw_mazes(
    questions: np.ndarray, flip: float, g: np.random.Generator, tries: int = 1000
) -> np.ndarray:
    """Mazes like these (N, L), without labels.

    Every cell changes between wall and free with probability `flip`. G is drawn uniformly from
    the free cells, S from those at least as far from it as in the closest of `questions`. Where
    there is no such S, everything is drawn again: more flips make far cells rare. A maze for
    which `tries` draws find none comes back as it was.
    """
    side, redrawn = math.isqrt(questions.shape[1]), questions.copy()
    least = solve_mazes(questions)[1].min()
    todo = np.arange(len(questions))
    for _ in range(tries):
        flipped = g.random((todo.size, side * side), np.float32) < flip
        free = (questions[todo] != WALL) ^ flipped
        goal = draw_cell(free, g)
        far = far_cells(free.reshape(-1, side, side), goal, least).reshape(free.shape)
        start = draw_cell(far, g)
        grids = np.where(free, FREE, WALL).astype(np.uint8)
        each = np.arange(todo.size)
        grids[each, start] = START
        grids[each, goal] = GOAL
        found = far.any(1)
        redrawn[todo[found]] = grids[found]
        todo = todo[~found]
    return redrawn


def draw_cell(mask: np.ndarray, g: np.random.Generator) -> np.ndarray:
    """(N,) a random cell of each mask (N, L); any cell where a mask is empty."""
    return (mask * g.random(mask.shape, np.float32)).argmax(1)


def turned_mazes(rows: np.ndarray) -> np.ndarray:
    """(N, L) -> (N, 8, L): turned by 0, 90, 180, 270 degrees, then so its mirror image."""
    side = math.isqrt(rows.shape[1])
    grid = rows.reshape(-1, side, side)
    mirrored = grid.swapaxes(1, 2)
    turns = [np.rot90(grid, k, (1, 2)) for k in range(4)]
    turns += [np.rot90(mirrored, k, (1, 2)) for k in range(4)]
    return np.stack(turns, 1).reshape(len(rows), 8, -1)


# ---------------------------------------------------------------- Sudoku: solver
# What a cell may still be is a bit mask of candidates, digit d in bit d - 1: (L, N) uint16. The
# puzzles come last, so that a cell is a contiguous row over all of them.

POPCOUNT = np.array([bin(mask).count("1") for mask in range(512)])  # digits in a mask


@lru_cache
def make_units(side: int, box: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The rows, columns and boxes of a grid, numbered 0 to 3 side - 1 in this order.

    Returns (3 side, side), the cells of each unit, and (L, 3), the units of each cell.
    box: rows and columns of a box, by default those of BOX.
    """
    box_rows, box_cols = box or BOX[side]
    cell = np.arange(side * side).reshape(side, side)
    boxes = cell.reshape(side // box_rows, box_rows, side // box_cols, box_cols).swapaxes(1, 2)
    units = np.concatenate([cell, cell.T, boxes.reshape(side, side)])
    # Each cell occurs three times, in its row, column and box: a stable sort finds these places.
    places = np.argsort(units.ravel(), kind="stable").reshape(-1, 3)
    return units, places // side


def several(masks: np.ndarray) -> np.ndarray:
    """Where a mask has more than one bit."""
    return (masks & (masks - 1)) > 0


def tighten(cand: np.ndarray, side: int) -> np.ndarray:
    """One round of naked and hidden singles over candidates (L, N).

    A puzzle that is found contradictory becomes all zero.
    """
    units, units_of_cell = make_units(side)
    row, col, box = units_of_cell.T
    full = (1 << side) - 1
    single = ~several(cand)
    known = np.where(single, cand, 0).astype(cand.dtype)

    # Digits per unit (3 side, N): possible in a cell or more, in two or more; and so for known.
    nothing = np.zeros((4, 3 * side, cand.shape[1]), cand.dtype)
    possible, possible_twice, taken, taken_twice = nothing
    for cells_of_units in units.T:  # the first cell of every unit, then the second ...
        possible_twice |= possible & cand[cells_of_units]
        possible |= cand[cells_of_units]
        taken_twice |= taken & known[cells_of_units]
        taken |= known[cells_of_units]

    def in_any_unit(digits: np.ndarray) -> np.ndarray:
        """(3 side, N) -> (L, N): the digits of a cell's row, column and box together."""
        return digits[row] | digits[col] | digits[box]

    # An open cell loses what is taken; a known one dies if its digit stands twice in a unit.
    left = cand & ~np.where(single, in_any_unit(taken_twice), in_any_unit(taken))
    # A digit with one possible cell in a unit must be there.
    must = left & in_any_unit(possible & ~possible_twice)
    left = np.where(must > 0, must, left)
    dead = (left == 0).any(0) | (possible != full).any(0) | several(must).any(0)
    left[:, dead] = 0
    return left


def propagate(cand: np.ndarray, side: int) -> np.ndarray:
    """Singles until nothing changes, over candidates (L, N)."""
    cand = cand.copy()
    changing = np.arange(cand.shape[1])
    while changing.size:
        before = cand[:, changing]
        after = tighten(before, side)
        cand[:, changing] = after
        changing = changing[(before != after).any(0)]
    return cand


def tightest_cell(cand: np.ndarray, noise: np.ndarray | float = 0.0) -> np.ndarray:
    """(N,) the open cell with the fewest candidates. noise below 1 breaks ties."""
    return np.where(several(cand), POPCOUNT[cand] + noise, 99).argmin(0)


def search(cand: np.ndarray, side: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact search for N puzzles at once, from candidates (L, N).

    Returns (N,) solutions found, counting up to `limit`, and (L, N) one of them.
    """
    found, answer = np.zeros(cand.shape[1], int), np.zeros_like(cand)
    stack, owner = cand, np.arange(cand.shape[1])  # open branches, and whose they are
    while owner.size:
        # A block from the top keeps memory bounded and numpy busy.
        top, whose = propagate(stack[:, -1024:], side), owner[-1024:]
        stack, owner = stack[:, :-1024], owner[:-1024]
        alive, undecided = top[0] > 0, several(top).any(0)
        solved = alive & ~undecided
        np.add.at(found, whose[solved], 1)
        answer[:, whose[solved]] = top[:, solved]
        branches, owners = split_tightest(top[:, undecided], whose[undecided], side)
        stack = np.concatenate([stack, branches], 1)
        owner = np.concatenate([owner, owners])
        wanted = found[owner] < limit
        stack, owner = stack[:, wanted], owner[wanted]
    return found, answer


def split_tightest(cand: np.ndarray, owner: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A branch for each candidate of each puzzle's tightest cell, and its owner."""
    cell = tightest_cell(cand)
    branches, owners = [], []
    for digit in range(side):
        has = np.flatnonzero(cand[cell, np.arange(owner.size)] >> digit & 1)
        branch = cand[:, has]
        branch[cell[has], np.arange(has.size)] = 1 << digit
        branches.append(branch)
        owners.append(owner[has])
    return np.concatenate(branches, 1), np.concatenate(owners)


def digits_of(masks: np.ndarray) -> np.ndarray:
    """Masks of one bit -> tokens."""
    return np.log2(masks).astype(np.uint8) + 2


def masks_of(labels: np.ndarray) -> np.ndarray:
    """Solved Sudokus (N, L) as tokens -> masks of one bit (L, N)."""
    return (1 << (labels.T.astype(int) - 2)).astype(np.uint16)


def solve_sudoku(question: str) -> str:
    """The only solution of a Sudoku: 4x4, 6x6 (boxes of 2 rows, 3 columns) or 9x9.

    '.' or '0' is a blank. Raises UserError for a malformed puzzle, and where there is no solution
    or more than one.
    """
    side = math.isqrt(len(one_line("sudoku", question)))
    side = side if side in BOX else 9
    tokens = encode("sudoku", question, side).astype(int)
    given = 1 << np.maximum(tokens - 2, 0)
    cand = np.where(tokens > 1, given, (1 << side) - 1).astype(np.uint16)
    found, answer = search(cand[:, None], side, limit=2)
    if found[0] == 0:
        raise UserError(f"the puzzle has no solution{clash(tokens, side)}")
    if found[0] > 1:
        raise UserError("the puzzle has more than one solution")
    return decode("sudoku", digits_of(answer[:, 0]))


def clash(tokens: np.ndarray, side: int) -> str:
    """ ": row 1 has 5 more than once", the first of the givens that clash; empty: none do."""
    for number, unit in enumerate(make_units(side)[0]):
        given = tokens[unit]
        digits, counts = np.unique(given[given > 1] - 1, return_counts=True)
        if (counts > 1).any():
            name = ("row", "column", "box")[number // side]
            return f": {name} {1 + number % side} has {digits[counts > 1][0]} more than once"
    return ""


# ---------------------------------------------------------------- rules


def check(
    task: str, inputs: np.ndarray, answer: np.ndarray, box: tuple[int, int] | None = None
) -> dict[str, np.ndarray]:
    """What the rules say of answers (N, L) to questions (N, L). No solution is needed.

    Returns (N,) bool per verdict: "valid", and of mazes "optimal". box: see check_sudokus.
    """
    inputs, answer = np.asarray(inputs), np.asarray(answer)
    if task == "sudoku":
        return {"valid": check_sudokus(inputs, answer, box)}
    return check_mazes(inputs, answer)


def check_sudokus(
    inputs: np.ndarray, answer: np.ndarray, box: tuple[int, int] | None = None
) -> np.ndarray:
    """(N,) bool: the givens stand, and every row, column and box holds every digit.

    box: rows and columns of a box, by default those of BOX.
    """
    side = math.isqrt(inputs.shape[1])
    bit = np.zeros(side + 3, np.uint16)  # of padding, blank, the digits, anything above
    bit[2:-1] = 1 << np.arange(side)
    bits = bit.take(answer, mode="clip").T  # (L, N)
    valid = ((answer == inputs) | (inputs == 1)).all(1)
    for unit in make_units(side, box)[0]:
        valid &= np.bitwise_or.reduce(bits[unit], 0) == (1 << side) - 1
    return valid


def check_mazes(inputs: np.ndarray, answer: np.ndarray) -> dict[str, np.ndarray]:
    """valid: only free cells became 'o', they make one path from S to G, and none could be spared.

    optimal: valid, and no path is shorter.
    """
    side = math.isqrt(inputs.shape[1])
    path = (inputs == FREE) & (answer == PATH)
    kept = (answer == inputs) | path
    start, goal = (inputs == START).argmax(1), (inputs == GOAL).argmax(1)
    along = path | (inputs == START) | (inputs == GOAL)
    by_path, _ = flood(along.reshape(-1, side, side), start, goal)
    fewest, _ = flood((inputs != WALL).reshape(-1, side, side), start, goal)
    # The shortest way over 'o' uses every 'o'.
    valid = kept.all(1) & (by_path == path.sum(1) + 1)
    return {"valid": valid, "optimal": valid & (by_path == fewest)}


# ---------------------------------------------------------------- generators


def collect(make: Callable, count: int, avoid: np.ndarray, patience: int, rate: float, advice: str):
    """Questions and answers, `count` rows each, none with a key in `avoid`.

    make(n) returns (inputs, labels, keys) of n tries, fewer where tries fail. rate: the share of
    tries that succeed, a first guess. Raises UserError, ending in `advice`, where none of
    `patience` tries in a row succeeds.
    """
    inputs, labels = [], []
    have = tried = idle = 0
    while have < count:
        n = int(np.clip(1.2 * (count - have) / rate, 16, 4096))
        x, y, keys = make(n)
        new = ~np.isin(keys, np.asarray(avoid, np.uint64))
        inputs.append(x[new])
        labels.append(y[new])
        have += new.sum()
        tried += n
        idle = 0 if new.any() else idle + n
        rate = max(have, 0.5) / tried
        if idle >= patience:
            raise UserError(f"none of {idle} generated puzzles met the wishes; {advice}")
    return np.concatenate(inputs)[:count], np.concatenate(labels)[:count]


def perfect_walls(n: int, side: int, g: np.random.Generator) -> np.ndarray:
    """(n, L) bool: walls of mazes with one route between any two cells.

    Kruskal's algorithm on all mazes at once. Rooms are the cells of even rows and columns. In
    random order, the wall between two rooms falls if no way joins them yet.
    """
    rooms = (side + 1) // 2
    room = np.arange(rooms * rooms).reshape(rooms, rooms)
    one_side = np.concatenate([room[:, :-1].ravel(), room[:-1].ravel()])  # (E,) of inner walls
    other_side = np.concatenate([room[:, 1:].ravel(), room[1:].ravel()])
    cell = np.arange(side * side).reshape(side, side)[::2, ::2].ravel()  # (rooms^2,)
    between = (cell[one_side] + cell[other_side]) // 2  # (E,) the cell of the wall
    walls = np.ones((n, side * side), bool)
    walls[:, cell] = False
    component = np.tile(room.ravel().astype(np.int16), (n, 1))  # (n, rooms^2) what is joined
    each = np.arange(n)
    for wall in g.random((n, one_side.size)).argsort(1).T:  # (n,): the next wall of each maze
        a = component[each, one_side[wall]]
        b = component[each, other_side[wall]]
        walls[each, between[wall]] &= a == b
        component = np.where(component == b[:, None], a[:, None], component)
    return walls


def generate_mazes(cfg, count: int, g: np.random.Generator, size: int, avoid: np.ndarray = ()):
    """`count` mazes with labels by the rule of solve_maze: two (count, L) uint8 arrays.

    A function of g's state alone. Walls are as cfg.walls says, S and G uniform on the free cells,
    and at least cfg.min_distance moves apart (0: size). avoid: fingerprints of mazes not to draw.
    Raises UserError where such mazes are too rare to be found.
    """
    least = cfg.min_distance or size

    def make(n: int):
        noise = g.random((n, size * size), np.float32)
        if cfg.walls == "perfect":
            walls = perfect_walls(n, size, g)
        else:
            walls = noise < g.uniform(cfg.wall_min, cfg.wall_max, (n, 1))
        questions = np.where(walls, WALL, FREE).astype(np.uint8)
        # The free cells with the largest and second largest noise: uniform on them.
        noise[walls] = -1.0
        each = np.arange(n)
        start = noise.argmax(1)
        noise[each, start] = -1.0
        goal = noise.argmax(1)
        questions[each, start] = START
        questions[each, goal] = GOAL
        moves, _ = flood(~walls.reshape(n, size, size), start, goal)
        questions = questions[moves >= least]
        return questions, solve_mazes(questions)[0], fingerprint(questions)

    advice = f"lower --data.min_distance={least} or change the walls of the {size}x{size} mazes"
    rate = 0.6 if cfg.walls == "perfect" else 0.2
    return collect(make, count, avoid, 1_000_000, rate, advice)


def solved_grids(n: int, side: int, g: np.random.Generator) -> np.ndarray:
    """(L, n) masks of n random solved grids.

    A random guess in a tightest cell, then singles, and so on. A dead end begins again.
    """
    full = (1 << side) - 1
    cand = np.full((side * side, n), full, np.uint16)
    unsolved = np.arange(n)
    while unsolved.size:
        part = cand[:, unsolved]
        each = np.arange(unsolved.size)
        cell = tightest_cell(part, g.random(part.shape))
        allowed = part[cell, each] >> np.arange(side, dtype=np.uint16)[:, None] & 1  # (side, n)
        guess = (g.random(allowed.shape) * allowed).argmax(0)
        part[cell, each] = 1 << guess
        part = propagate(part, side)
        part[:, part[0] == 0] = full
        cand[:, unsolved] = part
        unsolved = unsolved[several(part).any(0)]
    return cand


def remove_clues(solved: np.ndarray, target: np.ndarray, side: int, g) -> np.ndarray:
    """(L, n) bool: the clues that stay, of solved grids (L, n).

    In random order clues go as long as the solution stays the only one, down to target (n,).
    """
    given = np.ones(solved.shape, bool)
    for cell in g.random(solved.T.shape).argsort(1).T:  # (n,): the next cell of each grid
        todo = np.flatnonzero(given.sum(0) > target)
        if not todo.size:
            break
        cell = cell[todo]
        given[cell, todo] = clue_needed(solved[:, todo], given[:, todo], cell, side)
    return given


def clue_needed(solved: np.ndarray, given: np.ndarray, cell: np.ndarray, side: int) -> np.ndarray:
    """(n,) bool: without the clue in this cell (n,) there is a solution with another digit here.

    solved (L, n) masks, given (L, n) bool.
    """
    return rival(solved, given, cell, side)[0]


def rival(
    solved: np.ndarray, given: np.ndarray, cell: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Is there a solution with another digit in this cell (n,)? (n,) bool, and such ones (L, n).

    solved (L, n) masks, given (L, n) bool: the other clues, which stay.
    """
    full = (1 << side) - 1
    each = np.arange(cell.size)
    cand = np.where(given, solved, full).astype(np.uint16)
    cand[cell, each] = full - solved[cell, each]
    found, answer = search(cand, side, limit=1)
    return found > 0, answer


def givens_range(cfg) -> tuple[int, int]:
    """Fewest and most clues.

    A bound that is not given is the default, but never on the wrong side of the other.
    """
    low, high = GIVENS[cfg.size]
    least = cfg.givens_min or min(low, cfg.givens_max or low)
    most = cfg.givens_max or max(high, cfg.givens_min)
    return least, most


def generate_sudokus(cfg, count: int, g: np.random.Generator, size: int, avoid: np.ndarray = ()):
    """`count` Sudokus with exactly one solution each: two (count, L) uint8 arrays.

    A function of g's state alone. Each has as many clues as a number drawn between cfg.givens_min
    and cfg.givens_max, or a few more where none can go. avoid: symmetry keys not to draw.
    Raises UserError where none is found.
    """
    low, high = givens_range(cfg)

    def make(n: int):
        solved = solved_grids(n, size, g)
        target = g.integers(low, high + 1, n)
        given = remove_clues(solved, target, size, g)
        few = given.sum(0) <= high
        labels = digits_of(solved[:, few]).T
        inputs = np.where(given[:, few].T, labels, 1).astype(np.uint8)
        return inputs, labels, sudoku_keys(inputs, labels)

    advice = f"widen --data.givens_min={low} or --data.givens_max={high}, or ask for fewer rows"
    return collect(make, count, avoid, 2000, 1.0, advice)


def redraw_sudokus(inputs: np.ndarray, labels: np.ndarray, g: np.random.Generator) -> np.ndarray:
    """Sudokus near these (N, L), with other clues of the same solutions (N, L).

    One to four blanks of each are shown. Then its old clues go, in random order, where the
    solution stays the only one. Sudokus near hard ones are hard.
    """
    side = math.isqrt(inputs.shape[1])
    solved = masks_of(labels)
    old = (inputs > 1).T
    # Per Sudoku the rank of every cell in a random order, first the blanks, then the clues.
    rank = (g.random(old.shape) + old).argsort(0).argsort(0)
    shown = ~old & (rank < g.integers(1, 5, len(inputs)))
    given = old | shown
    clues_first = (g.random(old.shape) + ~old).argsort(0)
    for cell in clues_first[: old.sum(0).max(initial=0)]:  # (N,): the next cell of each
        todo = np.flatnonzero(old[cell, np.arange(len(inputs))])
        cell = cell[todo]
        given[cell, todo] = clue_needed(solved[:, todo], given[:, todo], cell, side)
    return np.where(given.T, labels, 1).astype(np.uint8)


def other_solutions(
    inputs: np.ndarray, labels: np.ndarray, g: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sudokus near these (N, L), with solutions of their own: two (N, L) uint8 arrays.

    One clue of each changes its digit, where the other clues allow that. Then blanks are shown
    until the solution is the only one. A Sudoku whose chosen clue allows no other digit stays.
    """
    side = math.isqrt(inputs.shape[1])
    given, solved = (inputs > 1).T.copy(), masks_of(labels)  # (L, N)
    clue = (g.random(given.shape) * given).argmax(0)  # (N,)
    found, answer = rival(solved, given, clue, side)
    solved = np.where(found, answer, solved)
    todo = np.flatnonzero(found)
    while todo.size:
        clues = np.where(given[:, todo], solved[:, todo], (1 << side) - 1).astype(np.uint16)
        found, answer = search(clues, side, limit=2)
        todo, answer = todo[found > 1], answer[:, found > 1]
        # Show a cell where the two solutions differ, or any blank if they are the same one.
        differs = answer != solved[:, todo]
        blank = np.where(differs.any(0), differs, ~given[:, todo])
        given[(g.random(blank.shape) * blank).argmax(0), todo] = True
    labels = digits_of(solved).T
    return np.where(given.T, labels, 1).astype(np.uint8), labels


# ---------------------------------------------------------------- identity, up to symmetry


def mix(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that scrambles all bits (the finaliser of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def fingerprint(rows: np.ndarray) -> np.ndarray:
    """(N, L) tokens -> (N,) uint64: a hash of each row."""
    place = mix(np.arange(1, rows.shape[1] + 1, dtype=np.uint64))
    hashes = np.zeros(len(rows), np.uint64)
    for at in range(0, len(rows), 4096):  # blocks bound the memory
        block = slice(at, at + 4096)
        hashes[block] = mix(place * (rows[block] + np.uint64(1))).sum(1)
    return hashes


def sudoku_keys(inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) uint64, equal for puzzles that differ by a symmetry only.

    Symmetries: of digits, rows, columns, bands, stacks, and the transpose. The key comes from
    colour refinement: at first a cell's colour says whether it is given. Three times it takes in
    the colours of its row, column, box and digit (of the solution). The key is the sum of all
    colours. Different puzzles may have one key; then one of them is left out without need.
    """
    keys = np.zeros(len(inputs), np.uint64)
    for at in range(0, len(inputs), 4096):  # blocks that stay in the cache
        block = slice(at, at + 4096)
        keys[block] = refined_colours(inputs[block], labels[block]).sum(1)
    return keys


def refined_colours(inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N, L) uint64: the colours of sudoku_keys."""
    side = math.isqrt(inputs.shape[1])
    units, units_of_cell = make_units(side)
    boxes, box_of_cell = units[2 * side :], units_of_cell[:, 2] - 2 * side
    digit = labels.astype(np.int64) - 2
    by_digit = digit.argsort(1, kind="stable")  # (N, L): first the cells of digit 0, then ...
    colour = mix((inputs > 1).astype(np.uint64) + np.uint64(1))
    for _ in range(3):
        grid = colour.reshape(-1, side, side)
        row_and_col = mix(grid.sum(2))[:, :, None] + mix(grid.sum(1))[:, None, :]
        box = mix(colour[:, boxes].sum(2) + np.uint64(1))[:, box_of_cell]
        cells_of_digit = np.take_along_axis(colour, by_digit, 1).reshape(grid.shape)
        of_digit = mix(cells_of_digit.sum(2) + np.uint64(2))  # (N, side)
        same_digit = np.take_along_axis(of_digit, digit, 1)
        colour = mix(colour + row_and_col.reshape(colour.shape) + box + same_digit)
    return colour


def puzzle_keys(task: str, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What the symmetric copies of a puzzle are known by: (N, 8) of a maze, (N, 1) of a Sudoku."""
    if task == "sudoku":
        return sudoku_keys(inputs, labels)[:, None]
    turned = turned_mazes(inputs)
    return np.stack([fingerprint(turned[:, k]) for k in range(turned.shape[1])], 1)


# ---------------------------------------------------------------- symmetries of Sudoku


def shuffle_lines(count: int, side: int, group: int, g: np.random.Generator) -> np.ndarray:
    """(count, side): orders of the rows (or columns) of a grid, whose bands of `group` lines stay.

    Bands come in random order, and so do the lines of each band. Every line gets its band's place
    plus a random fraction, and sorting these numbers gives the order. With side = 4, group = 2:

        places of the bands   1, 0
        per line              1.3, 1.1, 0.8, 0.2
        sorted                0.2, 0.8, 1.1, 1.3
        order                 3, 2, 1, 0
    """
    place = g.random((count, side // group)).argsort(1)  # a random permutation per row
    return (place.repeat(group, 1) + g.random((count, side))).argsort(1)


def shuffle_sudoku(
    inputs: np.ndarray, labels: np.ndarray, g: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Every puzzle and its solution (B, L) under its own random element of the symmetry group."""
    count, side = len(inputs), math.isqrt(inputs.shape[1])
    box_rows, box_cols = BOX[side]
    row = shuffle_lines(count, side, box_rows, g)[:, :, None]
    col = shuffle_lines(count, side, box_cols, g)[:, None, :]
    new_digit = 2 + g.random((count, side)).argsort(1)
    kept = np.tile([0, 1], (count, 1))  # padding and blank
    new_token = np.concatenate([kept, new_digit], 1).astype(np.uint8)  # (B, side + 2)
    # Transposed, boxes that are no squares would be no boxes.
    transpose = (g.random(count) < 0.5) & (box_rows == box_cols)
    each = np.arange(count)[:, None, None]

    def shuffled(tokens: np.ndarray) -> np.ndarray:
        grid = tokens.reshape(count, side, side)
        grid = np.where(transpose[:, None, None], grid.swapaxes(1, 2), grid)
        return new_token[each, grid[each, row, col]].reshape(count, -1)

    return shuffled(inputs), shuffled(labels)
