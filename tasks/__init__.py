"""The kinds of problem: `get("maze")`. Each is a class of tasks/base.py, loaded when asked for.

A new kind of problem is a new file here and a new line below.
"""

import functools
import importlib

TASKS = {
    "maze": "maze.Maze",
    "sudoku": "sudoku.Sudoku",
    "grid": "grid.Grid",
    "features": "classify.Features",
    "modular": "classify.Modular",
    "control": "control.Control",
    "arc": "arc.Arc",
}


@functools.cache
def get(name: str):
    """The task of this name, an instance of base.Task. Raises KeyError for other names."""
    module, cls = TASKS[name].split(".")
    return getattr(importlib.import_module(f"tasks.{module}"), cls)()
