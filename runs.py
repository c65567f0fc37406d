"""Run folders and processes: files that are whole or not there, devices and ranks, signals."""

import json
import os
import pickle
import platform
import signal
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from config import FREE, UserError, below_sweeps, flat_tables, flatten, read_toml


class TrainingError(Exception):
    """Training cannot go on (exit code 3); the message says what is safe on disk."""


# ---------------------------------------------------------------- files


def write_atomic(path: Path, write) -> None:
    """`write(file)` to a temporary name, fsync, rename.

    A reader or a crash sees the old file or the new one. Raises TrainingError.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as e:  # torch.save turns a full disk into a RuntimeError
        temporary.unlink(missing_ok=True)
        reason = getattr(e, "strerror", None) or e
        raise TrainingError(
            f"cannot write {path} ({reason}); what was saved there before is untouched"
        ) from e


def write_text(path: Path, text: str) -> None:
    """A text file, atomically."""
    write_atomic(path, lambda f: f.write(text.encode()))


def save(path: Path, state: dict) -> None:
    """A checkpoint, atomically."""
    write_atomic(path, lambda f: torch.save(state, f))


def load(path: Path, device="cpu", keys: frozenset | set = frozenset()) -> dict:
    """A checkpoint: tensors and plain values only.

    Raises UserError on a file that is none, or lacks some of `keys`.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, expected a checkpoint of train.py") from None
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ):
        raise UserError(
            f"{path}: not a readable checkpoint of train.py (truncated, or another kind of file)"
        ) from None
    if not isinstance(state, dict) or not keys <= state.keys():
        wanted = ", ".join(sorted(keys))
        raise UserError(f"{path}: not a {path.name} of train.py (expected the keys {wanted})")
    return state


def run_folder(cfg, entry: Path) -> Path:
    """runs/<entry below sweeps/, without .toml>/seed<k>"""
    _, name = below_sweeps(entry)
    return Path(cfg.out, name, f"seed{cfg.seed}")


def check_same(folder: Path, cfg, free: set[str] = FREE) -> None:
    """Refuse (UserError) a folder of another configuration; keys in `free` may differ.

    A key younger than the folder had its default there.
    """
    old = flat_tables(read_toml(folder / "config.toml"))
    defaults = flatten(type(cfg)())
    for key, value in flatten(cfg).items():
        before = old.get(key, defaults[key])
        if key in free or before == value:
            continue
        was, now = json.dumps(before), json.dumps(value)
        word = before if isinstance(before, str) else was
        raise UserError(
            f"{folder} was made with {key} = {was}, this command says {now}; "
            f"delete it, pass --{key}={word}, or choose another --out"
        )


def cut_metrics(path: Path, step: int) -> None:
    """Drop the lines after `step`: a resumed run writes them again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:  # the line that a kill cut in half
            break
    write_text(path, "".join(line + "\n" for line in kept))


# ---------------------------------------------------------------- where we are


@dataclass(frozen=True)
class World:
    """This process among the others, and its device."""

    rank: int
    size: int
    device: torch.device
    dtype: torch.dtype  # of activations
    compiled: bool

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def max(self, value: int) -> int:
        """The largest value over all processes."""
        if self.size == 1:
            return int(value)
        found = torch.tensor(int(value), device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)


def cpu_has_bf16() -> bool:
    """Whether this CPU names bf16 units among its flags."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def choose_device(wanted: str) -> str:
    """ "cpu", "cuda" or "mps". Raises UserError for one that is not here."""
    if wanted == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if wanted != "cpu" and not getattr(torch, wanted).is_available():
        raise UserError(
            f"train.device = '{wanted}', but this machine has none; use --train.device=auto"
        )
    return wanted


def make_world(cfg) -> World:
    """The World of a TrainConfig; joins the process group that torchrun or SLURM started."""
    variables = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    rank, size, local = (int(os.environ.get(name, word)) for name, word in variables.items())
    kind = choose_device(cfg.device)
    if cfg.batch_size % (size * cfg.accumulate):
        raise UserError(
            f"train.batch_size = {cfg.batch_size}, expected a multiple of {size} processes "
            f"x accumulate = {cfg.accumulate}"
        )
    if kind == "cpu" and cfg.threads:
        torch.set_num_threads(cfg.threads)
    if kind == "cuda":
        torch.cuda.set_device(local)
        torch.set_float32_matmul_precision("high")
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    if cfg.dtype == "auto":
        bf16 = kind == "cuda" or (kind == "cpu" and cpu_has_bf16())
        dtype = torch.bfloat16 if bf16 else torch.float32
    else:
        dtype = getattr(torch, cfg.dtype)
    compiled = cfg.compile == "on" or (cfg.compile == "auto" and kind == "cuda")
    device = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    return World(rank, size, device, dtype, compiled)


def cpu_name() -> str:
    """The model of the CPU."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def hardware(world: World) -> str:
    """Device, number of threads, dtype and version of torch in one line, to be read by people."""
    if world.device.type == "cuda":
        name, threads = torch.cuda.get_device_name(), ""
    else:
        name = cpu_name()
        threads = f", {torch.get_num_threads()} thread(s)" if world.device.type == "cpu" else ""
    dtype = str(world.dtype).removeprefix("torch.")
    compiled = ", compiled" if world.compiled else ""
    return f"{world.size} x {name}{threads}, {dtype}, torch {torch.__version__}{compiled}"


def commit() -> str:
    """The commit of this code, with + where files differ from it; empty outside git.

    The launcher's copies of the code carry it as a file.
    """
    here = Path(__file__).parent
    if (here / "COMMIT").exists():
        return (here / "COMMIT").read_text().strip()

    def git(*words: str) -> str:
        command = ["git", "-C", str(here), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        changed = git("status", "--porcelain", "-uno")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.TimeoutExpired):
        return ""


# ---------------------------------------------------------------- signals


class Signals:
    """Notes SIGTERM, SIGINT, SIGUSR1 and SIGUSR2.

    The loop asks after each step, saves, and lets the former handler decide.
    """

    def __init__(self):
        self.caught = 0
        self.former = {}
        for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"):
            number = getattr(signal, name, None)
            if number is None:
                continue
            try:
                self.former[number] = signal.signal(number, self.note)
            except ValueError:  # not in the main thread: whoever runs us there handles signals
                pass

    def note(self, number, frame):
        self.caught = number

    def restore(self):
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def leave(self, number: int) -> None:
        """Call the handler that was there before us, else exit with 128 + signal.

        Submitit's handler requeues the job and exits.
        """
        self.restore()
        handler = self.former.get(number)
        if callable(handler) and handler is not signal.default_int_handler:
            handler(number, None)
        raise SystemExit(128 + number)
