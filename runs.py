"""Run folders and processes: files that are whole or not there, one process a folder, what was
measured, devices and ranks, the stretches of a run, signals.
"""

import atexit
import contextlib
import difflib
import getpass
import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from config import FREE, SWEEPS, UserError, below_sweeps, flat_tables, flatten, read_toml


class TrainingError(Exception):
    """Training cannot go on (exit code 3); the message says what is safe on disk."""


# ---------------------------------------------------------------- files


def write_atomic(path: Path, write) -> None:
    """`write(file)` to a temporary name of this process, fsync, rename.

    A reader or a crash sees the old file or the new one. Raises TrainingError.
    """
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as e:  # torch.save turns a full disk into a RuntimeError
        reason = getattr(e, "strerror", None) or e
        raise TrainingError(
            f"cannot write {path} ({reason}); what was saved there before is untouched"
        ) from e
    finally:
        with contextlib.suppress(OSError):  # it is gone where all went well
            temporary.unlink()


def temporary_name(path: Path) -> Path:
    """Where this process writes what becomes `path`: no other process uses the same name."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")


def remove_temporary(folder: Path) -> None:
    """Remove what writers left that were killed. job.json is the launcher's, which may be at it."""
    for path in folder.glob(".*.tmp"):
        if not path.name.startswith(".job.json."):
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A text file, atomically."""
    # paths that a locale has no letters for keep their bytes
    write_atomic(path, lambda f: f.write(text.encode(errors="surrogateescape")))


def save(path: Path, state: dict) -> None:
    """A checkpoint, atomically."""
    write_atomic(path, lambda f: torch.save(state, f))


def load(path: Path, device="cpu", keys: frozenset | set = frozenset()) -> dict:
    """A checkpoint: tensors and plain values only.

    Raises UserError on a file that is none, is damaged, or lacks some of `keys`.
    """
    try:
        check_records(path)
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, expected a checkpoint of train.py") from None
    except (IsADirectoryError, PermissionError) as e:
        raise UserError(f"{path}: cannot read the checkpoint ({e.strerror})") from None
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception:  # damaged bytes can end in any error
        raise UserError(
            f"{path}: not a readable checkpoint of train.py (truncated, or another kind of file)"
        ) from None
    if not isinstance(state, dict) or not keys <= state.keys():
        name = "best.pt" if "raw" in keys else "ckpt.pt"
        lacking = ", ".join(sorted(keys - set(state))) if isinstance(state, dict) else "all keys"
        raise UserError(f"{path}: no {name} of train.py (it lacks {lacking})")
    return state


def check_records(path: Path) -> None:
    """Raises UserError where bytes of a checkpoint have changed.

    torch.save writes a digest of every record, its CRC-32, but torch.load does not look at it.
    """
    with zipfile.ZipFile(path) as file:
        damaged = file.testzip()
    if damaged:
        raise UserError(
            f"{path}: not a readable checkpoint of train.py (damaged: bytes have changed in "
            f"{damaged})"
        )


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An .npz, atomically."""
    write_atomic(path, lambda f: np.savez_compressed(f, **arrays))


@contextlib.contextmanager
def refuse_misfit(path: Path):
    """Turns what goes wrong with the parts of a checkpoint into a UserError."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as e:
        if out_of_memory(e):
            raise
        raise UserError(
            f"{path}: its parts do not fit this run, expected a ckpt.pt of the same entry "
            f"({type(e).__name__}: {first_line(e)}); delete it to start over, or choose another "
            "--out"
        ) from None


def run_folder(cfg, entry: Path) -> Path:
    """runs/<entry below sweeps/, without .toml>/seed<k>"""
    _, name = below_sweeps(entry)
    return Path(cfg.out, name, f"seed{cfg.seed}")


def find_run(path: Path) -> Path:
    """The path of a run as it was given. Raises UserError, with what may be meant, for another."""
    if path.is_file() or (path / "best.pt").exists():
        return path
    if path.name == "best.pt":
        path = path.parent
    if not path.is_dir():
        raise UserError(f"{path}: no such run{meant_run(path)}")
    inside = [file.parent for file in path.glob("**/best.pt")]
    if inside:
        inside.sort(key=lambda folder: (len(folder.parts), folder))
        some = ", ".join(map(str, inside[:4])) + ", ..." * (len(inside) > 4)
        raise UserError(f"{path}: no run but a folder of runs, expected one of {some}")
    if (path / "config.toml").exists():
        raise UserError(f"{path}: no best.pt yet, it comes with the run's first validation")
    raise UserError(f"{path}: no run in this folder, expected one with best.pt")


def meant_run(path: Path) -> str:
    """The run that a wrong path may mean, or the entry that makes it, as the end of a sentence."""
    advice = {}
    for entry in sorted(SWEEPS.glob("**/*.toml"), reverse=True):
        train_it = f", train it first: python train.py {os.path.relpath(entry)}"
        advice |= dict.fromkeys([entry.stem, f"runs/{below_sweeps(entry)[1]}"], train_it)
    for file in sorted(Path("runs").glob("**/seed*/best.pt"), reverse=True):
        seed, entry = file.parent, file.parent.parent
        advice |= dict.fromkeys([entry.name, str(entry)], f", did you mean {seed}?")
    entry = path.parent if path.name.startswith("seed") else path
    for word in (str(entry), entry.stem):
        close = difflib.get_close_matches(word, advice, 1, 0.8)
        if close:
            return advice[close[0]]
    return ", expected a run folder such as runs/laptop/maze_random/seed0, or a best.pt"


def check_same(folder: Path, cfg, free: set[str] = FREE) -> None:
    """Refuse (UserError) a folder of another configuration; keys in `free` may differ.

    Files may lie elsewhere if their bytes are the same. A folder without a checkpoint or a
    summary holds nothing to protect.
    """
    kept = ("ckpt.pt", "best.pt", "summary.json")
    if not any(os.path.exists(folder / name) for name in kept):
        return
    if os.path.exists(folder / "config.toml"):
        refuse_difference(folder, flat_tables(read_toml(folder / "config.toml")), cfg, free)


def refuse_difference(folder: Path, old: dict, cfg, free: set[str] = FREE) -> None:
    """Raises UserError for a key whose value was another one.

    A key younger than the folder had its default there.
    """
    defaults, files, differs = flatten(type(cfg)()), cfg.files(), []
    for key, value in flatten(cfg).items():
        before = old.get(key, defaults[key])
        if key in free or before == value:
            continue
        if key in files and same_bytes(folder, key, files[key]):
            continue
        differs.append((key, before, value))
    if not differs:
        return
    key, before, value = differs[0]
    was, now = json.dumps(before), json.dumps(value)
    word = before if isinstance(before, str) else was
    others = ", ".join(name for name, *_ in differs[1:4])
    also = f" (and {others} differ{'s' * (len(differs) == 2)})" if others else ""
    raise UserError(
        f"{folder} was made with {key} = {was}, this command says {now}{also}; "
        f"choose another --out, pass --{key}={word}, or delete it"
    )


def same_bytes(folder: Path, key: str, source: str) -> bool:
    """Whether a file has the bytes that the checkpoint of a folder was trained on."""
    try:
        files = load(folder / "ckpt.pt").get("files", {})
        return files.get(key) == digest_of_files(source)
    except (UserError, OSError, AttributeError):
        return False


def digest_of_files(source: str) -> str:
    """SHA-256 of a file, or of a list of files and folders with commas between.

    Of a folder: of the names and bytes of all JSON files below it.
    """
    found = hashlib.sha256()
    for part in source.split(","):
        path = Path(part)
        if not path.is_dir():
            files = [path] if path.exists() else []
        else:
            files = sorted(path.rglob("*.json"))
            found.update("".join(f"{file.relative_to(path)}\n" for file in files).encode())
        for file in files:
            with open(file, "rb") as f:
                while block := f.read(1 << 20):
                    found.update(block)
    return found.hexdigest()


def last_good(folder: Path) -> str:
    """The checkpoint that is safe on disk."""
    return str(folder / "ckpt.pt") if (folder / "ckpt.pt").exists() else "none yet"


# ---------------------------------------------------------------- one process a folder

PULSE = 15.0  # seconds between signs of life
STILL = 90.0  # seconds without one after which a process on another machine is dead


@dataclass(frozen=True)
class Holder:
    """A process that works in a folder."""

    host: str
    machine: str  # see `machine`
    pid: int
    birth: str  # see `birth`
    since: str = ""

    @property
    def here(self) -> bool:
        """Whether its number means something to this process."""
        return self.machine == machine()

    @property
    def name(self) -> tuple:
        """What no other process has."""
        return self.machine, self.pid, self.birth

    @property
    def gone(self) -> bool:
        """Whether it has ended. Asked where it is `here`."""
        found = birth(self.pid)
        unknown = "unknown" in (found, self.birth)
        return not found or (found != self.birth and not unknown)


def machine() -> str:
    """Where process numbers are comparable: one start of one machine, and one container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def birth(pid: int) -> str:
    """When a process of this machine began, empty: there is none, "unknown": the system hides it.

    With the number it names a process for good, as numbers are used again.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:  # another user's
        pass
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "unknown"
    return "" if words[0] in "ZX" else words[19]  # a zombie is dead


class Lock:
    """FOLDER/.lock names the one process that writes in a run folder, which is made if need be.

    A file that appears whole or not at all locks on shared file systems too. A thread touches it
    as a sign of life. The lock of a dead process is none: on this machine its number tells, on
    another one its silence.
    """

    def __init__(self, folder: Path, pid: int = 0):
        """pid: the process that the lock is for; 0: this one."""
        self.folder, self.path = folder, folder / ".lock"
        pid, now = pid or os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S")
        self.me = Holder(socket.gethostname(), machine(), pid, birth(pid), now)
        self.done = threading.Event()
        self.made: list[Path] = []  # folders that were not there before

    def __enter__(self) -> "Lock":
        places = [self.folder, *self.folder.parents]
        self.made = [path for path in places if not os.path.exists(path)]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.take()
        remove_temporary(self.folder)
        threading.Thread(target=self.beat, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.done.set()
        with contextlib.suppress(OSError):
            if self.mine():
                self.path.unlink()
            for path in self.made:  # a run that did not begin leaves no empty folders
                path.rmdir()

    def take(self) -> None:
        """Raises UserError where another process holds the lock."""
        while not self.create() and not self.mine():
            found = read_lock(self.path)
            if found:
                self.refuse_living(*found)
                self.bury(found[0])

    def create(self) -> bool:
        """Write the lock, complete from the start. False: there is one."""
        text = json.dumps(vars(self.me)) + "\n"
        temporary = temporary_name(self.path)
        try:
            temporary.write_text(text)
            os.link(temporary, self.path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            try:
                with open(self.path, "x") as f:
                    f.write(text)
            except FileExistsError:
                return False
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        return True

    def mine(self) -> bool:
        """Whether this process holds the lock, by itself or because the launcher took it for it."""
        found = read_lock(self.path)
        return bool(found) and found[0].name == self.me.name

    def refuse_living(self, holder: Holder, seen: float) -> None:
        """Raises UserError unless the holder is dead."""
        if is_dead(holder, seen):
            return
        if not holder.here and not self.gives_sign_of_life(holder, seen):
            return
        raise UserError(
            f"{self.folder}: process {holder.pid} on {holder.host} works here since "
            f"{holder.since}; wait for it, stop it, or choose another --out"
        )

    def gives_sign_of_life(self, holder: Holder, seen: float) -> bool:
        """Watch a holder on another machine, whose clock may differ, until it is taken for dead."""
        print(
            f"{self.folder}: process {holder.pid} on {holder.host} may work here; "
            f"waiting {STILL:.0f} s for a sign of life",
            file=sys.stderr,
            flush=True,
        )
        end = time.monotonic() + STILL
        while time.monotonic() < end:
            found = read_lock(self.path)
            if found != (holder, seen):
                return found is not None
            time.sleep(1)
        return False

    def bury(self, dead: Holder) -> None:
        """Remove the lock of a dead holder, unless somebody else was faster."""
        grave = temporary_name(self.path.with_name(".lock.dead"))
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.path, grave)
            found = read_lock(grave)
            if found and found[0] != dead:
                os.replace(grave, self.path)  # it belongs to a living one
            grave.unlink()

    def beat(self) -> None:
        """Signs of life until the end."""
        while not self.done.wait(PULSE):
            with contextlib.suppress(OSError):
                if self.mine():
                    os.utime(self.path)

    def check(self) -> None:
        """Raises TrainingError where another process took us for dead: nothing is written then."""
        found = read_lock(self.path)
        if found and found[0].name != self.me.name:
            raise TrainingError(
                f"{self.folder}: process {found[0].pid} on {found[0].host} works here now, as this "
                "one gave no sign of life; stopped before anything was written"
            )


@contextlib.contextmanager
def locked(folder: Path, world: "World", out: str) -> Iterator[Lock | None]:
    """A run folder below `out`, which rank 0 locks for all. Raises UserError on every rank."""
    with contextlib.ExitStack() as stack:
        lock = error = None
        if world.rank == 0:
            try:
                lock = stack.enter_context(Lock(folder))
            except UserError as e:
                error = e
            except OSError as e:
                error = cannot_write(out, folder, e)
        if world.max(error is not None):
            raise error or UserError(f"{folder}: rank 0 cannot work here")
        yield lock


def cannot_write(out: str, folder: Path, error: Exception) -> UserError:
    """A run folder where we may not write."""
    reason = getattr(error, "strerror", None) or error
    return UserError(f"--out {out}: cannot write to {folder} ({reason})")


def read_lock(path: Path) -> tuple[Holder, float] | None:
    """(who holds a lock, its last sign of life), None: nobody."""
    try:
        with open(path, "rb") as f:  # opening asks the server of a shared file system
            seen, text = os.fstat(f.fileno()).st_mtime, f.read()
    except FileNotFoundError:
        return None
    unknown = Holder("a machine", "unknown", 0, "")
    try:
        holder = Holder(**json.loads(text))
    except (ValueError, TypeError):  # no lock of ours
        return unknown, seen
    return (holder if type(holder.pid) is int else unknown), seen


def is_dead(holder: Holder, seen: float) -> bool:
    """Whether a holder is dead for certain: on another machine after minutes of silence."""
    if holder.here:
        return holder.gone
    return time.time() - seen > 10 * STILL  # clocks differ


def holder_of(folder: Path) -> Holder | None:
    """The process that works in a run folder; None: nobody, or a dead one."""
    try:
        found = read_lock(folder / ".lock")
    except OSError:
        return None
    return found[0] if found and not is_dead(*found) else None


# ---------------------------------------------------------------- what was measured


def cut_metrics(path: Path, step: int) -> None:
    """Drop the lines after `step`: a resumed run writes them again.

    Damaged lines go too, with a word about them, but for a last line that a kill cut in half.
    """
    if not path.exists():
        return
    kept, damaged = [], 0
    text = path.read_bytes().decode("utf-8", errors="replace")
    lines = text.splitlines()
    for at, line in enumerate(lines):
        found = step_of(line)
        if found is None:
            damaged += at < len(lines) - 1
        elif found <= step:
            kept.append(line)
    if damaged:
        print(f"{path}: dropped {damaged} damaged line(s)", file=sys.stderr)
    write_text(path, "".join(line + "\n" for line in kept))


def step_of(line: str) -> int | None:
    """The step of a line of metrics.jsonl, None: it is damaged."""
    if "\ufffd" in line:  # bytes that are no UTF-8
        return None
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if type(step) is int else None


class Log:
    """metrics.jsonl of rank 0, wandb and TensorBoard if asked for. Other ranks write nothing."""

    def __init__(self, run, watchers: list):
        """watchers: see `import_watchers`."""
        self.run, self.file, self.watchers = run, None, []
        if run.lead:
            cut_metrics(run.folder / "metrics.jsonl", run.step)
            self.file = open(run.folder / "metrics.jsonl", "a", encoding="utf-8")
            self.watchers = [watcher(package, run) for watcher, package in watchers]

    def record(self, split: str, line: dict) -> None:
        """A line of "train" or "val" figures."""
        run = self.run
        line = {"step": run.step, "split": split, **line, "seconds": run.seconds["train"]}
        if not self.file:
            return
        try:
            self.file.write(json.dumps({key: short(value) for key, value in line.items()}) + "\n")
            self.file.flush()
        except OSError as e:
            raise TrainingError(
                f"cannot write {self.file.name} ({e.strerror}); "
                f"last good checkpoint: {last_good(run.folder)}"
            ) from e
        for watcher in self.watchers:
            watcher.log(numbers(split, line), run.step)

    def close(self) -> None:
        if self.file:
            with contextlib.suppress(OSError):  # a full disk: the write before said so
                self.file.close()

    def finish(self, summary: dict) -> None:
        """The test figures, for wandb and TensorBoard."""
        for watcher in self.watchers:
            watcher.finish(numbers("test", summary["test"]), summary["best_step"])


def short(value):
    """Floats to seven digits."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def numbers(split: str, line: dict) -> dict:
    """{"train/loss": 0.5, ...}: what wandb and TensorBoard draw."""
    kept = {key: value for key, value in line.items() if isinstance(value, (int, float))}
    return {f"{split}/{key}": value for key, value in kept.items()}


def import_wandb(project: str):
    """The module, or None where nobody asks for it. Raises UserError where it is not installed."""
    if not project:
        return None
    try:
        import wandb

        return wandb
    except ImportError:
        raise UserError(
            f"train.wandb = {project!r}, but wandb is not installed; pip install wandb, "
            "or leave the key out"
        ) from None


def import_tensorboard(wanted: bool):
    """The module, or None where nobody asks for it. Raises UserError where it is not installed."""
    if not wanted:
        return None
    try:
        from torch.utils import tensorboard

        return tensorboard
    except ImportError:
        raise UserError(
            "train.tensorboard = true, but tensorboard is not installed; pip install tensorboard, "
            "or leave the key out"
        ) from None


def import_watchers(cfg) -> list[tuple]:
    """(class, package) of all that a TrainConfig wants to be told. Raises UserError."""
    wandb, tensorboard = import_wandb(cfg.wandb), import_tensorboard(cfg.tensorboard)
    wanted = [(Wandb, wandb), (TensorBoard, tensorboard)]
    return [(watcher, package) for watcher, package in wanted if package]


class Wandb:
    """A run of Weights & Biases that a resumed run continues."""

    def __init__(self, wandb, run):
        self.run = wandb.init(
            project=run.cfg.train.wandb,
            name=f"{run.folder.parent.name}-{run.folder.name}",
            config=flatten(run.cfg),
            dir=str(run.folder),
            resume="allow",
            id=str(run.folder.resolve()).replace("/", "_")[-60:],
        )

    def log(self, values: dict, step: int) -> None:
        self.run.log(values, step=step)

    def finish(self, values: dict, step: int) -> None:
        self.run.summary.update(values)
        self.run.finish()


class TensorBoard:
    """tensorboard/ in the run folder. A resumed run hides what it writes again."""

    def __init__(self, tensorboard, run):
        folder = str(run.folder / "tensorboard")
        self.writer = tensorboard.SummaryWriter(folder, purge_step=run.step + 1)

    def log(self, values: dict, step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def finish(self, values: dict, step: int) -> None:
        self.log(values, step)
        self.writer.close()


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
        return self.maxima(value)[0]

    def maxima(self, *values: int) -> list[int]:
        """The largest of each value over all processes, asked at once."""
        found = torch.tensor([int(value) for value in values])
        if self.size > 1:
            found = found.to(self.device)
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.tolist()


class Agreement:
    """What all processes do at the same step: each may get a signal, and has its own clock.

    Several ask each other at every tenth step, and at every step while a step takes more than a
    second: between a signal and the end of a job there may be 30 seconds.
    """

    def __init__(self, run):
        self.run = run
        self.asked = run.step, time.perf_counter()
        self.slow = 1

    def __call__(self, caught: int, late: bool) -> tuple[int, int]:
        """The largest of each over all processes; 0 where nobody is asked."""
        run = self.run
        if run.world.size == 1:
            return caught, late
        if run.step % 10 and not self.slow:
            return 0, 0
        step, clock = self.asked
        self.asked = run.step, time.perf_counter()
        slow = self.asked[1] - clock > run.step - step
        caught, late, self.slow = run.world.maxima(caught, late, slow)
        return caught, late


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


RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def ranks() -> tuple[int, int, int]:
    """(rank, processes, rank on this machine), as torchrun and the launcher set them; 0, 1, 0.

    Raises UserError where the variables are half set.
    """
    words = {name: os.environ[name] for name in RANKS if name in os.environ}
    if not words:
        return 0, 1, 0
    if len(words) == len(RANKS) and all(word.isdecimal() for word in words.values()):
        rank, size, local = (int(words[name]) for name in RANKS)
        addressed = size == 1 or {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
        if max(rank, local) < size and addressed:
            return rank, size, local
    unset = [f"{name} is unset" for name in RANKS if name not in words]
    shown = [f"{name} = {word!r}" for name, word in words.items()]
    raise UserError(
        f"the environment says {', '.join(shown + unset)}, expected all of them as torchrun sets "
        "them (RANK and LOCAL_RANK are numbers below WORLD_SIZE, beside MASTER_ADDR and "
        f"MASTER_PORT), or none: unset {' '.join(RANKS)}"
    )


def make_world(cfg) -> World:
    """The World of a TrainConfig; joins the process group that torchrun or SLURM started."""
    rank, size, local = ranks()
    kind = choose_device(cfg.device)
    if cfg.batch_size % (size * cfg.accumulate):
        raise UserError(
            f"train.batch_size = {cfg.batch_size}, expected a multiple of {size} processes "
            f"x accumulate = {cfg.accumulate}"
        )
    if kind == "cpu" and cfg.threads:
        torch.set_num_threads(cfg.threads)
    if kind == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"the environment says LOCAL_RANK = '{local}', expected a number below "
                f"{torch.cuda.device_count()}, the GPUs here"
            )
        torch.cuda.set_device(local)
        torch.set_float32_matmul_precision("high")
    if size > 1 and not dist.is_initialized():
        join_group(kind)
    if cfg.dtype == "auto":
        dtype = torch.bfloat16 if kind == "cuda" else torch.float32
    else:
        dtype = getattr(torch, cfg.dtype)
    device = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    compiled = cfg.compile in ("on", "graphs") or (cfg.compile == "auto" and kind == "cuda")
    fault = cache_fault()
    if compiled:
        fault = fault or compiler_fault(device)
        if fault and rank == 0:
            words = "torch.compile does not work here, so the net runs without it"
            print(f"{words}: {fault}", flush=True)
    return World(rank, size, device, dtype, compiled and not fault)


def join_group(kind: str) -> None:
    """The process group of all ranks. Raises UserError where it cannot be joined."""
    # PyTorch imports this module later by itself, and its functions keep the group they then find:
    # a group that never ends, whose threads may abort a process that is about to leave.
    import torch.distributed.nn.functional  # noqa: F401

    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    except (ValueError, RuntimeError) as e:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(
            f"cannot join the processes of WORLD_SIZE = {os.environ['WORLD_SIZE']} at MASTER_ADDR "
            f"and MASTER_PORT = {where} ({first_line(e)})"
        ) from None


def cache_fault() -> str:
    """Why what is compiled cannot be kept, in a line; empty: it can.

    torch makes the folder for it together with any optimizer, and does not get over a failure.
    So it gets a temporary one instead.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        user = f"uid_{os.getuid()}"
    usual = f"{tempfile.gettempdir()}/torchinductor_{user}"
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR", usual)
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as e:
        instead = tempfile.mkdtemp(prefix="torchinductor_")
        atexit.register(shutil.rmtree, instead, ignore_errors=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = instead
        return f"cannot write to TORCHINDUCTOR_CACHE_DIR = {folder!r} ({e.strerror})"


def compiler_fault(device: torch.device) -> str:
    """Why torch.compile cannot work here, in a line; empty: it can.

    It needs a C++ compiler, among others. A function of one line tells.
    """
    try:
        torch.compile(lambda x: x + 1, dynamic=False)(torch.zeros(8, device=device))
    except Exception as e:  # whatever is missing
        return first_line(e)
    return ""


def first_line(error: Exception) -> str:
    """What an error says, without its further lines."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def advise_on_memory(folder: Path, cfg):
    """Turns an error for want of memory into a TrainingError that says what helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        if not out_of_memory(e):
            raise
        tc, size = cfg.train, ranks()[1]
        pieces = [k for k in range(tc.accumulate + 1, tc.batch_size + 1)]
        pieces = [k for k in pieces if tc.batch_size % (k * size) == 0]
        more = f"--train.accumulate={min(pieces)}" if pieces else "a smaller train.batch_size"
        elsewhere = ", with another --out" if last_good(folder) != "none yet" else ""
        raise TrainingError(
            f"{folder}: out of memory ({first_line(e)}); {more} works a batch in smaller pieces"
            f"{elsewhere}; last good checkpoint: {last_good(folder)}"
        ) from e


def out_of_memory(error: Exception) -> bool:
    """Whether an error is for want of memory, on any device."""
    words = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc")
    typed = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return typed or any(word in str(error) for word in words)


def cpu_name() -> str:
    """The model of the CPU."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def name_of(dtype: torch.dtype) -> str:
    """The name without "torch.": float32 or bfloat16"""
    return str(dtype).removeprefix("torch.")


def hardware(world: World) -> str:
    """Device, number of threads, dtype and version of torch in one line, to be read by people."""
    if world.device.type == "cuda":
        name, threads = torch.cuda.get_device_name(), ""
    else:
        name = cpu_name()
        threads = ""
        if world.device.type == "cpu":
            units = torch.backends.cpu.get_cpu_capability()  # "AVX512": rounding depends on it
            threads = f", {units}, {torch.get_num_threads()} thread(s)"
    dtype = name_of(world.dtype)
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
        changed = git("status", "--porcelain", "-uno", "--", ".", ":!results", ":!*.md")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.TimeoutExpired):
        return ""


# ---------------------------------------------------------------- the stretches of a run


def code_digest() -> str:
    """Eight digits that tell this code from another, edits that are in no commit included."""
    here, found = Path(__file__).parent, hashlib.sha256()
    for path in sorted([*here.glob("*.py"), *here.glob("tasks/*.py")]):
        found.update(path.read_bytes())
    return found.hexdigest()[:8]


def stretch(world: World, step: int) -> dict:
    """What computes the steps from here on. summary.json lists all stretches of a run."""
    made_of = {"commit": commit(), "code": code_digest(), "hardware": hardware(world)}
    return {"from": step, "to": step} | made_of


def begin_stretch(stretches: list[dict], new: dict) -> str:
    """Add a stretch to those of a run, and say how it differs from the last one.

    The same code on the same hardware goes on with the last one.
    """
    if not stretches:
        stretches.append(new)
        return ""
    last = stretches[-1]
    names = [name for name in ("commit", "code", "hardware") if new[name] != last.get(name)]
    if not names:
        return ""
    stretches.append(new)
    known = [name for name in names if last.get(name)]
    return ", ".join(f"{name} {new[name]} (was {last[name]})" for name in known)


# ---------------------------------------------------------------- signals


class Stopped(BaseException):
    """A signal came where nothing has to be saved."""


class Signals:
    """Notes SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2.

    Where nothing has to be saved, a signal raises Stopped. Where the loop saves, it asks after
    each step. Both then call `leave`, which lets the former handler decide.
    """

    def __init__(self, where: str):
        """where: words like "before the first step" for what is interrupted."""
        self.caught, self.where = 0, where
        self.saves = False
        self.former = {}
        for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
            number = getattr(signal, name, None)
            if number is None:
                continue
            if name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup: the end of the terminal is no reason to stop
            try:
                self.former[number] = signal.signal(number, self.note)
            except ValueError:  # not in the main thread: whoever runs us there handles signals
                pass

    def note(self, number, frame):
        first, self.caught = not self.caught, number
        if first and not self.saves:
            raise Stopped

    def stop_at_once(self, where: str) -> None:
        """From here on nothing has to be saved."""
        self.where, self.saves = where, False
        if self.caught:
            raise Stopped

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


if __name__ == "__main__":
    raise SystemExit("runs.py is a part to import; python train.py begins, README.md says more")
