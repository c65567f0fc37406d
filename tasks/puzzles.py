"""Mazes and Sudoku as arrays: their text, rules, solvers, generators and symmetries. numpy only.

A puzzle is a row of L = side * side tokens, read row by row; 0 is padding and never occurs in one.
    maze    '#' wall 1, ' ' free 2, 'S' start 3, 'G' goal 4, 'o' path 5 (answers only)            vocabulary 6
    sudoku  blank 1, digit d -> d + 1                                                             vocabulary side + 2
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
GIVENS = {4: (6, 10), 6: (14, 18), 9: (36, 45)}  # default clues of generated ones
LEAST_GIVENS = {4: 4, 6: 8, 9: 17}  # no Sudoku with fewer has one solution
MAX_SIDE = 60  # a row of a maze, its rim and a shift must fit the bits of an int64
POPCOUNT = np.array([bin(mask).count("1") for mask in range(512)])  # digits in a mask of candidates


# --- text -----------------------------------------------------------------------------------------------------------


@lru_cache
def _table(task: str, side: int, answer: bool) -> np.ndarray:
    """(256,) uint8: character code -> token, 0 where the character may not occur."""
    table = np.zeros(256, np.uint8)
    for token, char in enumerate(MAZE if task == "maze" else "0123456789"[: side + 1], 1):
        table[ord(char)] = token
    if task == "maze" and not answer:
        table[ord("o")] = 0
    if task == "sudoku":
        table[ord("0")] = table[ord(".")] = 0 if answer else 1
    return table


def to_tokens(
    task: str, texts: list[str], side: int, where: Callable[[int], str], answer: bool = False
) -> np.ndarray:
    """N strings -> (N, L) uint8. `where(row)` begins the sentence about a bad row."""
    for row, text in enumerate(texts):
        if len(text) != side * side:
            root = math.isqrt(len(text))
            grid = f" ({root}x{root})" if root and root * root == len(text) else ""
            raise UserError(
                f"{where(row)} has {len(text)} cells{grid}, expected {side * side} ({side}x{side})"
            )
    table = _table(task, side, answer)
    codes = np.frombuffer(
        "".join(texts).encode("latin-1", "replace"), np.uint8
    )  # one byte per character, always
    tokens = table[codes].reshape(len(texts), side * side)
    if not tokens.all():
        row, at = np.argwhere(tokens == 0)[0]
        known = "".join(chr(c) for c in np.flatnonzero(table))
        raise UserError(
            f"{where(row)} has {texts[row][at]!r} at position {at + 1}, expected one of {known!r}"
        )
    return tokens


def check_ends(questions: np.ndarray, where: Callable[[int], str]):
    """Every maze has one S and one G."""
    for token, name in (START, "S"), (GOAL, "G"):
        found = (questions == token).sum(1)
        if (found != 1).any():
            row = np.flatnonzero(found != 1)[0]
            raise UserError(f"{where(row)} has {found[row]} cells {name}, expected exactly one")


def _flat(task: str, text: str) -> str:
    """The cells of a text of one or many lines; a maze gets back trailing spaces that an editor has cut off."""
    if task == "sudoku":
        return "".join(text.split())
    lines = text.splitlines()
    if max(map(len, lines), default=0) != len(
        lines
    ):  # not a square: empty lines around it may be to blame
        lines = text.strip("\r\n").splitlines()
    return "".join(line.ljust(len(lines)) for line in lines)


def encode(task: str, text: str, size: int) -> np.ndarray:
    """A question of one or many lines as (L,) uint8 tokens; '.' and '0' are the blanks of a Sudoku, white space is ignored there.

    Raises UserError for a wrong length or character, a maze without S, with two G.
    """
    tokens = to_tokens(task, [_flat(task, text)], size, lambda _: "the puzzle")
    if task == "maze":
        check_ends(tokens, lambda _: "the puzzle")
    return tokens[0]


def decode(task: str, tokens: np.ndarray) -> str:
    """(L,) tokens -> L characters, row by row; '?' for padding, '.' for the blank of a Sudoku."""
    chars = "?" + (MAZE if task == "maze" else ".123456789")
    return "".join(chars[t] for t in np.asarray(tokens).tolist())


# --- mazes: rules and solvers ---------------------------------------------------------------------------------------

STEPS = np.array(
    [(1, 0), (0, -1), (0, 1), (-1, 0)]
)  # down, left, right, up: the order of the label rule


def solve_maze(question: str) -> str:
    """The question with its path as 'o': the label rule of Maze-Hard, for a square maze of any size.

    Breadth-first search from S with a FIFO queue and the neighbours down, left, right, up, first visit keeps its parent:
    the lexicographically smallest shortest path with D < L < R < U. Reproduces all 2000 labels of Maze-Hard.
    Raises UserError for a malformed maze or a G that cannot be reached. Line breaks are dropped.
    """
    side = math.isqrt(len(_flat("maze", question)))
    cells = list(decode("maze", encode("maze", question, side)))
    start, goal = cells.index("S"), cells.index("G")
    parent, queue = {start: start}, deque([start])
    while queue and goal not in parent:
        here = queue.popleft()
        row, col = divmod(here, side)
        for down, right in STEPS.tolist():
            there = here + down * side + right
            if (
                0 <= row + down < side
                and 0 <= col + right < side
                and cells[there] != "#"
                and there not in parent
            ):
                parent[there] = here
                queue.append(there)
    if goal not in parent:
        raise UserError("the puzzle has no path from S to G")
    here = parent[goal]
    while here != start:
        cells[here] = "o"
        here = parent[here]
    return "".join(cells)


def _bits(mask: np.ndarray) -> np.ndarray:
    """(N, S, S) bool -> (S + 2, N) int64: a word per row of a maze, column c in bit c + 1, with a rim of zeros."""
    if mask.shape[1] > MAX_SIDE:
        raise UserError(
            f"a maze of {mask.shape[1]}x{mask.shape[1]} cells is too large, at most {MAX_SIDE}x{MAX_SIDE}"
        )
    packed = np.zeros(mask.shape[:2] + (8,), np.uint8)
    packed[..., : (mask.shape[2] + 7) // 8] = np.packbits(mask, axis=2, bitorder="little")
    words = np.zeros((mask.shape[1] + 2, len(mask)), np.int64)
    words[1:-1] = packed.view("<i8")[..., 0].T << 1
    return words


def _flood(open_: np.ndarray, start: np.ndarray, goal: np.ndarray):
    """Breadth-first waves from G in N mazes at once, a row of cells per machine word.

    open_ (N, S, S) bool, start and goal (N,) cell numbers. Returns moves (N,), -1 where S is not reached, and planes
    (3, S + 2, N): planes[k] holds the cells whose distance is k modulo 3. That is all a walk to G needs, since
    neighbouring cells differ by exactly one.
    """
    side, live = open_.shape[1], np.arange(len(open_))
    todo = _bits(open_)  # cells no wave has reached
    front = np.zeros_like(todo)
    front[goal // side + 1, live] = 1 << (goal % side + 1)
    todo &= ~front
    moves = np.full(len(open_), -1)
    planes = np.zeros((3,) + todo.shape, np.int64)
    seen, row, col = planes.copy(), start // side + 1, start % side + 1
    for distance in count_from():
        seen[distance % 3] |= front
        there = front[row[live], np.arange(live.size)] >> col[live] & 1 > 0
        moves[live[there]] = distance
        if distance % 8 == 0 or live.size < 512:  # finished mazes leave
            going = (moves[live] < 0) & front.any(0)
            planes[:, :, live[~going]] = seen[:, :, ~going]
            live, seen, front, todo = (
                live[going],
                seen[:, :, going],
                front[:, going],
                todo[:, going],
            )
            if not live.size:
                return moves, planes
        wave = front << 1 | front >> 1
        wave[1:] |= front[:-1]
        wave[:-1] |= front[1:]
        front = wave & todo
        todo ^= front


def solve_mazes(questions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, L) questions -> (N, L) labels by the rule of solve_maze, and (N,) moves from S to G, -1 (no 'o') if unreachable."""
    side = math.isqrt(questions.shape[1])
    start, goal = (questions == START).argmax(1), (questions == GOAL).argmax(1)
    moves, planes = _flood((questions != WALL).reshape(-1, side, side), start, goal)
    labels, left = questions.copy(), moves.copy()
    row, col = np.divmod(start, side)
    down, right = STEPS.T[:, :, None]  # each (4, 1)
    while (live := np.flatnonzero(left > 1)).size:
        rows, cols = row[live] + down, col[live] + right  # (4, live)
        nearer = planes[(left[live] - 1) % 3, rows + 1, live] >> (cols + 1) & 1
        first = (
            nearer.argmax(0),
            np.arange(live.size),
        )  # the first of D, L, R, U that comes closer to G
        row[live], col[live] = rows[first], cols[first]
        labels[live, row[live] * side + col[live]] = PATH
        left[live] -= 1
    return labels, moves


def _far(open_: np.ndarray, goal: np.ndarray, least: int) -> np.ndarray:
    """(N, S, S) bool: the cells from which G is at least `least` moves away, and can be reached."""
    side, every = open_.shape[1], np.arange(len(open_))
    todo = _bits(open_)
    front, far = np.zeros_like(todo), np.zeros_like(todo)
    front[goal // side + 1, every] = 1 << (goal % side + 1)
    for distance in count_from():
        if not front.any():
            break
        far |= front if distance >= least else 0
        todo &= ~front
        wave = front << 1 | front >> 1
        wave[1:] |= front[:-1]
        wave[:-1] |= front[1:]
        front = wave & todo
    return (far[1:-1].T[:, :, None] >> np.arange(1, side + 1) & 1).astype(bool)


def redraw_mazes(
    questions: np.ndarray, flip: float, g: np.random.Generator, tries: int = 16
) -> np.ndarray:
    """Mazes like these (N, L): every cell changes between wall and free with probability `flip`, then G is drawn uniformly from
    the free cells and S from those at least as far from it as in the closest of `questions`. A maze for which `tries` draws
    find no such S comes back as it was. Labels are the caller's to solve.
    """
    side, out = math.isqrt(questions.shape[1]), questions.copy()
    least = solve_mazes(questions)[1].min()
    todo = np.arange(len(questions))
    for _ in range(tries):
        free = (questions[todo] != WALL) ^ (g.random((todo.size, side * side), np.float32) < flip)
        goal = (free * g.random(free.shape, np.float32)).argmax(1)
        far = _far(free.reshape(-1, side, side), goal, least).reshape(free.shape)
        found, every = far.any(1), np.arange(todo.size)
        cells = np.where(free, FREE, WALL).astype(np.uint8)
        cells[every, (far * g.random(free.shape, np.float32)).argmax(1)] = START
        cells[every, goal] = GOAL
        out[todo[found]] = cells[found]
        todo = todo[~found]
    return out


def turned_mazes(rows: np.ndarray) -> np.ndarray:
    """(N, L) -> (N, 8, L): every grid turned by 0, 90, 180, 270 degrees, then the same for its mirror image."""
    side = math.isqrt(rows.shape[1])
    grid = rows.reshape(-1, side, side)
    turns = [np.rot90(g, k, (1, 2)) for g in (grid, grid.swapaxes(1, 2)) for k in range(4)]
    return np.stack(turns, 1).reshape(len(rows), 8, -1)


# --- Sudoku: rules and solver ---------------------------------------------------------------------------------------
# Candidates are bit masks in arrays (L, N): a cell is a contiguous row over all puzzles, digit d is bit d - 1.


@lru_cache
def _units(side: int, box: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(3 side, side) cells of all rows, columns and boxes; (L, 3) the row, column and box of a cell, as unit numbers."""
    box_rows, box_cols = box or BOX[side]
    cell = np.arange(side * side).reshape(side, side)
    boxes = (
        cell.reshape(side // box_rows, box_rows, side // box_cols, box_cols)
        .swapaxes(1, 2)
        .reshape(side, side)
    )
    units = np.concatenate([cell, cell.T, boxes])
    return units, np.argsort(units.ravel(), kind="stable").reshape(-1, 3) // side


def _several(masks: np.ndarray) -> np.ndarray:
    """Where a mask has more than one bit."""
    return (masks & (masks - 1)) > 0


def _tighten(cand: np.ndarray, side: int) -> np.ndarray:
    """One round of naked and hidden singles over (L, N) candidates; a puzzle found contradictory becomes all zero."""
    units, (row, col, box) = _units(side)[0], _units(side)[1].T
    single = ~_several(cand)
    known = np.where(single, cand, 0).astype(cand.dtype)
    once, twice, fixed, clash = np.zeros(
        (4, 3 * side, cand.shape[1]), cand.dtype
    )  # digits with >= 1, >= 2 cells ...
    for cells in units.T:  # ... and digits with >= 1, >= 2 known cells, in every unit
        twice |= once & cand[cells]
        once |= cand[cells]
        clash |= fixed & known[cells]
        fixed |= known[cells]
    anywhere = [u[row] | u[col] | u[box] for u in (clash, fixed, once & ~twice)]
    out = cand & ~np.where(single, anywhere[0], anywhere[1])
    must = out & anywhere[2]
    out = np.where(must > 0, must, out)
    dead = (out == 0).any(0) | (once != (1 << side) - 1).any(0) | _several(must).any(0)
    out[:, dead] = 0
    return out


def _propagate(cand: np.ndarray, side: int) -> np.ndarray:
    """Singles until nothing changes."""
    cand, live = cand.copy(), np.arange(cand.shape[1])
    while live.size:
        before = cand[:, live]
        after = _tighten(before, side)
        cand[:, live] = after
        live = live[(before != after).any(0)]
    return cand


def _fewest(cand: np.ndarray, noise: np.ndarray | float = 0.0) -> np.ndarray:
    """(N,) the undecided cell with the fewest candidates; noise below 1 breaks ties."""
    return np.where(_several(cand), POPCOUNT[cand] + noise, 99).argmin(0)


def _search(cand: np.ndarray, side: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact search for N puzzles at once: (N,) solutions found (counting stops at `limit`) and (L, N) one of them."""
    found, answer = np.zeros(cand.shape[1], int), np.zeros_like(cand)
    stack, owner = cand, np.arange(cand.shape[1])
    while owner.size:
        top, who = (
            _propagate(stack[:, -1024:], side),
            owner[-1024:],
        )  # a block keeps memory bounded and numpy busy
        stack, owner = stack[:, :-1024], owner[:-1024]
        alive, open_ = top[0] > 0, _several(top).any(0)
        solved = alive & ~open_
        np.add.at(found, who[solved], 1)
        answer[:, who[solved]] = top[:, solved]
        top, who = top[:, open_], who[open_]
        cell = _fewest(top)
        children, owners = [stack], [owner]
        for digit in range(side):
            has = np.flatnonzero(top[cell, np.arange(who.size)] >> digit & 1)
            child = top[:, has]
            child[cell[has], np.arange(has.size)] = 1 << digit
            children.append(child)
            owners.append(who[has])
        stack, owner = np.concatenate(children, 1), np.concatenate(owners)
        wanted = found[owner] < limit
        stack, owner = stack[:, wanted], owner[wanted]
    return found, answer


def solve_sudoku(question: str) -> str:
    """The only solution of a 4x4, 6x6 (boxes of 2 rows, 3 columns) or 9x9 Sudoku; '.' or '0' is a blank.

    Raises UserError for a malformed puzzle, and where there is no solution or more than one.
    """
    side = math.isqrt(len(_flat("sudoku", question)))
    tokens = encode("sudoku", question, side if side in BOX else 9).astype(int)
    cand = np.where(tokens > 1, 1 << np.maximum(tokens - 2, 0), (1 << side) - 1).astype(np.uint16)[
        :, None
    ]
    found, answer = _search(cand, side, limit=2)
    if found[0] != 1:
        raise UserError(
            f"the puzzle has {'no solution' if found[0] == 0 else 'more than one solution'}"
        )
    return decode("sudoku", np.log2(answer[:, 0]).astype(int) + 2)


# --- rules ----------------------------------------------------------------------------------------------------------


def check(
    task: str, inputs: np.ndarray, answer: np.ndarray, box: tuple[int, int] | None = None
) -> dict[str, np.ndarray]:
    """What the rules say of answers (N, L) to questions (N, L); no solution is needed. Returns (N,) bool per verdict.

    maze: "valid": only free cells became 'o', and they make one path from S to G on which no 'o' could be spared;
    "optimal": valid and no path is shorter. sudoku: "valid": the givens stand, and every row, column and box (box:
    its rows and columns, by default those of BOX) holds every digit.
    """
    inputs, answer = np.asarray(inputs), np.asarray(answer)
    side = math.isqrt(inputs.shape[1])
    if task == "sudoku":
        bit = np.array(
            [0, 0] + [1 << d for d in range(side)] + [0], np.uint16
        )  # pad, blank, digits, anything above
        bits = bit.take(answer, mode="clip").T  # (L, N)
        valid = ((answer == inputs) | (inputs == 1)).all(1)
        for cells in _units(side, box)[0]:
            valid &= np.bitwise_or.reduce(bits[cells], 0) == (1 << side) - 1
        return {"valid": valid}
    kept = (answer == inputs) | ((inputs == FREE) & (answer == PATH))
    path = (answer == PATH) & (inputs == FREE)
    ends = (inputs == START) | (inputs == GOAL)
    start, goal = (inputs == START).argmax(1), (inputs == GOAL).argmax(1)
    along, _ = _flood(
        (path | ends).reshape(-1, side, side), start, goal
    )  # shortest way over 'o' uses every 'o'
    least, _ = _flood((inputs != WALL).reshape(-1, side, side), start, goal)
    valid = kept.all(1) & (along == path.sum(1) + 1)
    return {"valid": valid, "optimal": valid & (along == least)}


# --- generators -----------------------------------------------------------------------------------------------------


def collect(make: Callable, count: int, avoid: np.ndarray, patience: int, rate: float, advice: str):
    """`count` rows of make(n) -> (inputs, labels, keys), which may return fewer than n, none with a key in `avoid`."""
    inputs, labels, have, tried, idle = [], [], 0, 0, 0
    while have < count:
        n = int(np.clip(1.2 * (count - have) / rate, 16, 4096))
        x, y, keys = make(n)
        new = ~np.isin(keys, np.asarray(avoid, np.uint64))
        inputs.append(x[new])
        labels.append(y[new])
        have, tried, idle = have + new.sum(), tried + n, 0 if new.any() else idle + n
        rate = max(have, 0.5) / tried
        if idle >= patience:
            raise UserError(f"none of {idle} generated puzzles met the wishes; {advice}")
    return np.concatenate(inputs)[:count], np.concatenate(labels)[:count]


def _tree_walls(n: int, side: int, g: np.random.Generator) -> np.ndarray:
    """(n, L) bool walls of perfect mazes: Kruskal's algorithm on all at once, rooms at even rows and columns."""
    room = np.arange(((side + 1) // 2) ** 2).reshape((side + 1) // 2, -1)
    a = np.concatenate(
        [room[:, :-1].ravel(), room[:-1].ravel()]
    )  # (E,) the two rooms of every inner wall
    b = np.concatenate([room[:, 1:].ravel(), room[1:].ravel()])
    cell = np.arange(side * side).reshape(side, side)[::2, ::2].ravel()  # (rooms,)
    walls = np.ones((n, side * side), bool)
    walls[:, cell] = False
    group = np.tile(room.ravel().astype(np.int16), (n, 1))  # (n, rooms) connected component
    every = np.arange(n)
    for edge in g.random((n, a.size)).argsort(1).T:
        one, two = group[every, a[edge]], group[every, b[edge]]
        walls[every, (cell[a[edge]] + cell[b[edge]]) // 2] &= one == two
        group = np.where(group == two[:, None], one[:, None], group)
    return walls


def generate_mazes(cfg, count: int, g: np.random.Generator, size: int, avoid: np.ndarray = ()):
    """`count` mazes with labels by the rule of solve_maze: two (count, L) uint8 arrays, a function of g's state alone.

    Walls as cfg.walls says, S and G uniform on free cells, kept if they are at least cfg.min_distance moves apart.
    `avoid`: fingerprints of mazes not to draw. Raises UserError if such mazes are too rare to be found.
    """

    def make(n: int):
        noise = g.random((n, size * size), np.float32)
        if cfg.walls == "perfect":
            walls = _tree_walls(n, size, g)
        else:
            walls = noise < g.uniform(cfg.wall_min, cfg.wall_max, (n, 1))
        noise[walls] = -1.0
        questions = np.where(walls, WALL, FREE).astype(np.uint8)
        every, ends = np.arange(n), []
        for token in (
            START,
            GOAL,
        ):  # the largest and second largest noise on free cells: uniform on them
            ends.append(noise.argmax(1))
            questions[every, ends[-1]] = token
            noise[every, ends[-1]] = -1.0
        moves, _ = _flood(~walls.reshape(n, size, size), *ends)
        questions = questions[moves >= (cfg.min_distance or size)]
        return questions, solve_mazes(questions)[0], fingerprint(questions)

    advice = f"lower --data.min_distance={cfg.min_distance or size} or change the walls of the {size}x{size} mazes"
    return collect(make, count, avoid, 1_000_000, 0.6 if cfg.walls == "perfect" else 0.2, advice)


def _fill(n: int, side: int, g: np.random.Generator) -> np.ndarray:
    """(L, n) masks of n random solved grids: random guesses in a tightest cell, singles; a dead end begins again."""
    cand = np.full((side * side, n), (1 << side) - 1, np.uint16)
    while (live := np.flatnonzero(_several(cand).any(0))).size:
        part, every = cand[:, live], np.arange(live.size)
        cell = _fewest(part, g.random(part.shape))
        digits = part[cell, every] >> np.arange(side, dtype=np.uint16)[:, None] & 1  # (side, live)
        part[cell, every] = 1 << (g.random(digits.shape) * digits).argmax(0)
        part = _propagate(part, side)
        part[:, part[0] == 0] = (1 << side) - 1
        cand[:, live] = part
    return cand


def givens_range(cfg) -> tuple[int, int]:
    """Fewest and most clues; a bound that is not given is the default, but never on the wrong side of the other."""
    low, high = GIVENS[cfg.size]
    low, high = (
        cfg.givens_min or min(low, cfg.givens_max or low),
        cfg.givens_max or max(high, cfg.givens_min),
    )
    return low, high


def generate_sudokus(cfg, count: int, g: np.random.Generator, size: int, avoid: np.ndarray = ()):
    """`count` Sudokus with exactly one solution each: two (count, L) uint8 arrays, a function of g's state alone.

    From a random full grid clues go in random order while the solution stays the only one, down to a number drawn
    between cfg.givens_min and cfg.givens_max. `avoid`: symmetry keys not to draw. Raises UserError if none is found.
    """
    low, high = givens_range(cfg)

    def make(n: int):
        solved, target = _fill(n, size, g), g.integers(low, high + 1, n)
        given = np.ones(solved.shape, bool)
        for cell in g.random((n, size * size)).argsort(1).T:
            live = np.flatnonzero(given.sum(0) > target)
            if not live.size:
                break
            cell, every = cell[live], np.arange(live.size)
            rival = np.where(given[:, live], solved[:, live], (1 << size) - 1).astype(np.uint16)
            rival[cell, every] = (
                (1 << size) - 1 - solved[cell, live]
            )  # is there a solution with another digit here?
            found, _ = _search(rival, size, limit=1)
            given[cell, live] = found > 0
        enough = given.sum(0) <= high
        labels = (np.log2(solved[:, enough]).astype(np.uint8) + 2).T
        inputs = np.where(given[:, enough].T, labels, 1).astype(np.uint8)
        return inputs, labels, sudoku_keys(inputs, labels)

    advice = f"widen --data.givens_min={low} or --data.givens_max={high}, or ask for fewer rows"
    return collect(make, count, avoid, 2000, 1.0, advice)


# --- identity of puzzles, up to symmetry ----------------------------------------------------------------------------


def _mix(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that scrambles all bits (the finaliser of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def fingerprint(rows: np.ndarray) -> np.ndarray:
    """(N, L) tokens -> (N,) uint64: a hash of each row."""
    place = _mix(np.arange(1, rows.shape[1] + 1, dtype=np.uint64))
    hashes = np.zeros(len(rows), np.uint64)
    for at in range(0, len(rows), 4096):  # blocks bound the memory
        hashes[at : at + 4096] = _mix(place * (rows[at : at + 4096] + np.uint64(1))).sum(1)
    return hashes


def sudoku_keys(inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) uint64, equal for puzzles that differ by a symmetry only (digits, rows, columns, bands, stacks, transpose).

    Colour refinement: a cell's colour takes in the colours of its row, column, box and digit (of the solution), three
    times; the key is the sum of all colours. Equal keys of different puzzles are possible, and err on the safe side.
    """
    keys, side = np.zeros(len(inputs), np.uint64), math.isqrt(inputs.shape[1])
    boxes, box_of = _units(side)[0][2 * side :], _units(side)[1][:, 2] - 2 * side
    for at in range(0, len(inputs), 4096):  # blocks that stay in the cache
        digit = labels[at : at + 4096].astype(np.int64) - 2
        colour = _mix((inputs[at : at + 4096] > 1).astype(np.uint64) + np.uint64(1))
        same = digit.argsort(1, kind="stable")  # cells sorted by digit
        for _ in range(3):
            grid = colour.reshape(-1, side, side)
            lines = _mix(grid.sum(2))[:, :, None] + _mix(grid.sum(1))[:, None, :]
            box = _mix(colour[:, boxes].sum(2) + np.uint64(1))[:, box_of]
            value = _mix(
                np.take_along_axis(colour, same, 1).reshape(grid.shape).sum(2) + np.uint64(2)
            )
            colour = _mix(
                colour + lines.reshape(colour.shape) + box + np.take_along_axis(value, digit, 1)
            )
        keys[at : at + 4096] = colour.sum(1)
    return keys


def puzzle_keys(task: str, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What the symmetric copies of each puzzle are known by: (N, 8) fingerprints of a maze, (N, 1) Sudoku keys."""
    if task == "sudoku":
        return sudoku_keys(inputs, labels)[:, None]
    return np.stack([fingerprint(turned) for turned in turned_mazes(inputs).swapaxes(0, 1)], 1)


def shuffle_sudoku(
    inputs: np.ndarray, labels: np.ndarray, g: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Every puzzle and its solution (B, L) under its own random element of the symmetry group."""
    size, side = len(inputs), math.isqrt(inputs.shape[1])

    def lines(
        group: int,
    ) -> np.ndarray:  # (B, side): groups keep together; rank of the group, then chance within it
        return (
            g.random((size, side // group)).argsort(1).repeat(group, 1) + g.random((size, side))
        ).argsort(1)

    box_rows, box_cols = BOX[side]
    row, col = lines(box_rows)[:, :, None], lines(box_cols)[:, None, :]
    digit = np.concatenate(
        [np.tile([0, 1], (size, 1)), 2 + g.random((size, side)).argsort(1)], 1
    ).astype(np.uint8)
    flip = (g.random(size) < 0.5) & (box_rows == box_cols)
    every = np.arange(size)[:, None, None]
    out = []
    for tokens in inputs, labels:
        grid = tokens.reshape(size, side, side)
        grid = np.where(flip[:, None, None], grid.swapaxes(1, 2), grid)[every, row, col]
        out.append(digit[every, grid].reshape(size, -1))
    return out[0], out[1]
