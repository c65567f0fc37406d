"""Run folders: files that are whole or not there, where a run lives, which configuration a folder belongs to."""

import json
import os
import pickle
import zipfile
from pathlib import Path

import torch

from config import flatten, read_toml
from data import UserError


class TrainingError(Exception):
    """Training cannot go on (exit code 3); the message says what is safe on disk."""


def write_atomic(path: Path, write) -> None:
    """`write(file)` to a temporary name, fsync, rename: a reader or a crash sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as e:  # torch.save turns a full disk into a RuntimeError
        temporary.unlink(missing_ok=True)
        raise TrainingError(f"cannot write {path} ({getattr(e, 'strerror', None) or e}); what was saved there before is untouched") from e


def save(path: Path, state: dict) -> None:
    write_atomic(path, lambda f: torch.save(state, f))


def load(path: Path, device="cpu", keys: frozenset | set = frozenset()) -> dict:
    """A checkpoint, tensors and plain values only. Raises UserError on a file that is none, or lacks some of `keys`."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, expected a checkpoint written by train.py") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError):
        raise UserError(f"{path}: not a readable checkpoint of train.py (truncated, or another kind of file)") from None
    if not isinstance(state, dict) or not keys <= state.keys():
        raise UserError(f"{path}: not a {path.name} of train.py (expected the keys {', '.join(sorted(keys))})")
    return state


def run_folder(cfg, entry: Path) -> Path:
    """runs/<entry below sweeps/, without .toml>/seed<k>"""
    parts = Path(entry).resolve().with_suffix("").parts
    below = parts[len(parts) - parts[::-1].index("sweeps"):] if "sweeps" in parts else parts[-1:]
    return Path(cfg.out, *below, f"seed{cfg.seed}")


def check_same(folder: Path, cfg, free: set[str]) -> None:
    """Refuse (UserError) a folder that was made with another configuration; keys in `free` may differ."""
    old = read_toml(folder / "config.toml")
    old = {k: v for k, v in old.items() if not isinstance(v, dict)} | {
        f"{t}.{k}": v for t, keys in old.items() if isinstance(keys, dict) for k, v in keys.items()}
    defaults = flatten(type(cfg)())
    for key, value in flatten(cfg).items():
        if key not in free and old.get(key, defaults[key]) != value:  # a key younger than the folder had its default there
            before = old.get(key, defaults[key])
            was, now = json.dumps(before), json.dumps(value)
            raise UserError(f"{folder} was made with {key} = {was}, this command says {now}; "
                            f"delete it, pass --{key}={before if isinstance(before, str) else was}, or choose another --out")


def cut_metrics(path: Path, step: int) -> None:
    """Drop the lines after `step`: a resumed run writes them again."""
    if path.exists():
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except ValueError:  # the line that a kill cut in half
                break
        write_atomic(path, lambda f: f.write("".join(line + "\n" for line in kept).encode()))
