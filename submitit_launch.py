"""Run many entries and seeds, on SLURM or here.

    python -m submitit_launch sweeps/ablation/ --seeds 0,1,2 [--slurm.time=12h ...] [--wait]
    python -m submitit_launch sweeps/ablation/ --seeds 0,1,2 --local --jobs 2

Everything is checked before anything is submitted. A job trains with a copy of the code and of its
entry as they are now, in OUT/.launch/<time>/; it continues after preemption and time limits. The
same command again says where each run is and submits only what is neither finished nor running nor
queued. Keys of train.py go to every entry; [slurm]: command line > entry > sweeps/slurm.toml.

Several values make a grid, with a folder for each point, like NAME/lr=0.001,dim=32/seed0:

    python -m submitit_launch sweeps/grid/lights_out.toml --train.lr=1e-3,3e-3 --model.dim=32,64

Exit codes: 0 submitted, or with --wait and --local all finished; 1 a run failed, or SLURM took
only some of them; 2 bad input, nothing is submitted; 130 Ctrl-C.
"""

import config as _config  # noqa: F401, I001  first: it says so where packages are missing

import contextlib
import io
import itertools
import json
import os
import re
import shlex
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
from config import (
    SlurmConfig,
    UserError,
    add_keys,
    entries_named,
    has_control_characters,
    hints,
    load_config,
    make_parser,
    minutes,
    named_entry,
    parse,
    parse_value,
    quiet_output,
    read_layers,
    shell_words,
    slurm_config,
    to_toml,
    toml_value,
)
from runs import Lock, TrainingError, check_same, commit, holder_of, run_folder, write_text
from stats import visible

ROOT = Path(__file__).resolve().parent
ALIVE = ("running", "queued")
STATES = ("finished", "running", "queued", "failed", "stopped", "new")
OWN_KEYS = ("hypothesis", "expected", "seed")  # not to be given to all entries alike


@dataclass
class Run:
    """One seed of one entry.

    Its folder knows the rest: job.json where it was started last, failed.txt why that failed.
    """

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

    def job(self) -> dict[str, str]:
        """Where it was started last: {"log", and on SLURM "job" and "code"}, and how it ended."""
        try:
            found = json.loads(read_file(self.folder / "job.json"))
            return {key: value for key, value in found.items() if isinstance(value, str)}
        except (OSError, ValueError, AttributeError, RecursionError):
            return {}

    def words(self, launch: Path) -> list[str]:
        """For train.py."""
        entry = launch / "sweeps" / self.below
        return [f"{entry}.toml", f"--seed={self.cfg.seed}", f"--out={self.cfg.out}"]


def read_file(path: Path) -> str:
    """The text of a regular file, whatever its bytes. Raises OSError and ValueError."""
    if not path.is_file():
        raise FileNotFoundError(path)
    return path.read_text(encoding="utf-8", errors="replace")


# ---------------------------------------------------------------- what to run


def entry_files(paths: list[Path]) -> list[Path]:
    """The entries of files and folders. Raises UserError for a folder without one."""
    files = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.glob("*.toml") if file.name != "slurm.toml")
        else:
            inside = [Path(named_entry(str(path)))]
        if not inside:
            raise UserError(f"{path}: no entry in this folder, expected .toml files")
        files += inside
    return files


def plan_runs(
    entries: list[Path], seeds: str, points: list[tuple[str, dict]], local: bool
) -> list[Run]:
    """Every entry with every seed at every point of a grid, all checked. Raises UserError.

    points: (name of its folder, overrides); one without a name where there is no grid.
    """
    if seeds and not re.fullmatch(r"\d+(,\d+)*", seeds):
        raise UserError(
            f"command line: --seeds={seeds}, expected numbers with commas between, like 0,1,2"
        )
    chosen = [{"seed": int(seed)} for seed in seeds.split(",")] if seeds else [{}]
    runs: dict[Path, Run] = {}
    for entry, (point, overrides) in itertools.product(entry_files(entries), points):
        slurm = slurm_config(entry, overrides)
        for seed in chosen:
            cfg = load_config(train.Config, entry, overrides | seed)
            folder = run_folder(cfg, entry)
            run = Run(entry, cfg, slurm, folder.parent / point / folder.name)
            check_name(run)
            if run.folder in runs:
                raise UserError(
                    f"{entry} and {runs[run.folder].entry} both belong in {run.folder}; "
                    "name each entry and seed once"
                )
            if not local:
                check_processes(run)
            if (run.folder / "config.toml").exists():
                check_same(run.folder, cfg)
            runs[run.folder] = run
    return list(runs.values())


def check_name(run: Run) -> None:
    """Raises UserError where a name could become a line of its own in a script or a log."""
    folder = str(run.folder.resolve())
    if has_control_characters(folder):
        letters = f"a name of {sys.getfilesystemencoding()} letters (see LC_ALL)"
        raise UserError(f"--out {folder!r}, expected {letters} without control characters")


def check_processes(run: Run) -> None:
    """Raises UserError where a batch does not divide among the processes of a job."""
    train_config, processes = run.cfg.train, run.slurm.processes
    if train_config.batch_size % (processes * train_config.accumulate):
        raise UserError(
            f"{run.entry}: train.batch_size = {train_config.batch_size}, expected a multiple of "
            f"{processes} processes ([slurm] nodes x tasks) x accumulate = "
            f"{train_config.accumulate}"
        )


def missing_data(runs: list[Run]) -> str:
    """What the first run that cannot start lacks, as a sentence; empty: nothing is missing."""
    for run in runs:
        missing = run.cfg.task.missing(run.cfg)
        if missing := missing or missing_weights(run):
            return f"{run.entry}: {missing}"
    return ""


def missing_weights(run: Run) -> str:
    """The weights that a run lacks to begin, as a sentence. One that has begun needs none."""
    path = run.cfg.init_file
    if not run.cfg.train.init or os.path.exists(run.folder / "ckpt.pt") or os.path.exists(path):
        return ""
    return f"train.init needs {path}, but there is no such file; train that run first"


# ---------------------------------------------------------------- where a run is


def end_of_log(log: str) -> list[str]:
    """The lines at the end of a log; none where there is no log."""
    try:
        text = read_file(Path(log))[-20_000:]
    except (OSError, ValueError):
        return []
    return [visible(line.rstrip()) for line in re.split(r"[\r\n]+", text) if line.strip()]


def last_lines(log: str, count: int = 1) -> list[str]:
    """The last lines of a log, without progress bars and srun's echo of exit codes."""
    noise = re.compile(r"srun: |slurmstepd\S*: error: \*\*\* STEP|.*\d+%\|")
    return [line for line in end_of_log(log) if not noise.match(line)][-count:]


def reason_of_end(log: str) -> str:
    """Why a job ended that could not say so itself, from its log; empty without a log.

    What was killed leaves its usual lines behind, and on SLURM a word of srun.
    """
    last = "".join(last_lines(log))
    usual = re.match(r"[a-z]+ {2,}|encoder |submitit ", last)
    if last and not usual:
        return last.removeprefix("error: ")
    echo = r"srun: error: .*: tasks? \S+: (Killed|Out Of Memory|Segmentation fault|Aborted)"
    words = [found[1] for line in end_of_log(log) if (found := re.match(echo, line))]
    if words and words[-1] != "Killed":
        return f"killed: {words[-1]}"
    return "killed" if last or words else ""


def state_of(run: Run, jobs: dict) -> tuple[str, str]:
    """(one of STATES, what to know about it); `jobs` is what `queue` returns."""
    if (run.folder / "summary.json").exists():
        return "finished", finished_words(run)
    job = run.job()
    if in_queue := jobs.get((job.get("job"), job.get("code"))):
        running = in_queue in ("RUNNING", "COMPLETING")
        return ("running" if running else "queued"), f"job {job['job']}"
    if holder := holder_of(run.folder):
        return "running", "on this machine" if holder.here else f"on {visible(holder.host)}"
    at = f"at step {last_step(run)[0]} of {run.cfg.train.steps}"
    if not job:
        return ("stopped", at) if (run.folder / "ckpt.pt").exists() else ("new", "")
    if reason := error_of(run.folder):
        return "failed", reason
    if job.get("stopped"):
        return "stopped", visible(f"{at}: {job['stopped']}")
    reason = reason_of_end(job.get("log", ""))
    if re.search(r"CANCELLED AT (?!.*DUE TO)", reason):  # SLURM's words for scancel
        return "stopped", f"{at}: {reason}"
    return "failed", reason or "it left no log; cancelled before it began?"


def error_of(folder: Path) -> str:
    """What `note_error` wrote, in one line; empty: nothing."""
    try:
        return visible(" ".join(read_file(folder / "failed.txt").split()))
    except (OSError, ValueError):
        return ""


def finished_words(run: Run) -> str:
    """The test figure of a finished run."""
    try:
        return run.cfg.task.brief(json.loads(read_file(run.folder / "summary.json")))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return "its summary.json cannot be read, or is of another version"


def states_of(runs: list[Run]) -> list[tuple[str, str]]:
    """The state of each run. SLURM is asked only where a run was submitted to it."""
    submitted = shutil.which("squeue") and any("job" in run.job() for run in runs)
    jobs = queue() if submitted else {}
    return [state_of(run, jobs) for run in runs]


def last_step(run: Run) -> tuple[int, str]:
    """(last step in metrics.jsonl, its loss as text)"""
    at, loss = 0, ""
    with (
        contextlib.suppress(OSError),
        open(run.folder / "metrics.jsonl", "rb") as f,
    ):
        f.seek(max(0, f.seek(0, os.SEEK_END) - 4096))
        for line in f.read().decode(errors="replace").splitlines():
            # half a line, or a damaged one
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                found = json.loads(line)
                if type(found["step"]) is int:
                    at = found["step"]
                loss = f"{found['loss']:.3f}" if "loss" in found else loss
    return at, loss


# ---------------------------------------------------------------- a copy of everything


def git(*arguments: str) -> bytes:
    """What git prints about this folder; nothing where it fails."""
    with contextlib.suppress(OSError):
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True)
        return done.stdout if done.returncode == 0 else b""
    return b""


def code_files() -> list[str]:
    """Tracked files and new ones that git does not ignore, without results.

    Outside a clone: the program alone.
    """
    listed = os.fsdecode(git("ls-files", "-z", "--cached", "--others", "--exclude-standard"))
    names = [name for name in listed.split("\0") if name and not name.startswith("results/")]
    if names:
        return names
    found = [*ROOT.glob("*.py"), *ROOT.glob("tasks/*.py")]
    return [str(path.relative_to(ROOT)) for path in found]


def make_private(out: Path) -> Path:
    """OUT/.launch, which nobody else may read or write. Raises UserError.

    Jobs run the code and the pickles that lie there.
    """
    folder = out / ".launch"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise UserError(f"--out {out}: {folder} belongs to another user, expected one of yours")
        folder.chmod(0o700)
    except OSError as e:
        raise UserError(f"--out {out}: cannot write to {folder} ({e.strerror})") from None
    return folder


def make_launch_folder(out: Path) -> Path:
    """OUT/.launch/<time>/ with logs/, of this launch alone. Raises UserError."""
    while True:
        launch = out / ".launch" / time.strftime("%Y-%m-%d_%H-%M-%S")
        try:
            (launch / "logs").mkdir(parents=True)
            return launch
        except FileExistsError:  # another launch in the same second
            time.sleep(0.1)
        except OSError as e:
            raise UserError(f"--out {out}: cannot write to {launch} ({e.strerror})") from None


def snapshot(runs: list[Run]) -> Path:
    """The folder of a launch: code/ as it is now, sweeps/ with every key of every entry written
    out, diff.patch with the difference of the code to its commit, logs/. Raises UserError.
    """
    out = Path(runs[0].cfg.out)
    make_private(out)
    launch = make_launch_folder(out)
    try:
        fill_launch_folder(launch, runs)
    except OSError as e:
        where = e.filename or launch
        raise UserError(f"--out {out}: cannot copy to {where} ({e.strerror or e})") from None
    return launch


def fill_launch_folder(launch: Path, runs: list[Run]) -> None:
    """Everything that `snapshot` names, and the run folders. Raises OSError."""
    out = Path(runs[0].cfg.out)
    for name in code_files():
        source, target = ROOT / name, launch / "code" / name
        if source.is_file() and out.resolve() not in source.resolve().parents:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    (launch / "code" / "COMMIT").write_text(commit() + "\n")
    (launch / "diff.patch").write_bytes(git("diff", "--binary", "HEAD"))
    for run in runs:
        target = Path(run.words(launch)[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(to_toml(run.cfg, str(run.entry)), encoding="utf-8")
        run.folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def one_launch(out: Path):
    """One launch at a time looks into OUT and submits: two would both submit what neither saw."""
    lock, waits = Lock(make_private(out)), False
    while True:
        try:
            lock.take()
            break
        except UserError as e:
            if not waits:
                print(f"waiting for another launch: {visible(str(e))}", file=sys.stderr, flush=True)
            waits = True
            time.sleep(1)
    with lock:
        yield


def prepare(run: Run, job: dict) -> None:
    """Note where a run is started; what the last attempt left is history."""
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "failed.txt").unlink(missing_ok=True)
    write_text(run.folder / "job.json", json.dumps(job) + "\n")


def note_error(folder: Path, reason: str) -> None:
    """failed.txt, for the analysis and the next launch.

    Of several processes the first one knows the cause.
    """
    with (
        contextlib.suppress(FileExistsError),
        open(folder / "failed.txt", "x", encoding="utf-8") as f,
    ):
        f.write(reason.strip() + "\n")


def note_stop(folder: Path, number: int) -> None:
    """In job.json: a signal stopped this run, after a checkpoint."""
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError, TrainingError):
        job = json.loads(read_file(folder / "job.json"))
        job["stopped"] = f"stopped by {signal.Signals(number).name}"
        write_text(folder / "job.json", json.dumps(job) + "\n")


# ---------------------------------------------------------------- on SLURM


def parameters(cfg: SlurmConfig, name: str, code: Path) -> dict:
    """What submitit's SlurmExecutor is told about jobs that run from the folder `code`."""
    further = {}
    for word in shell_words(cfg.options):
        key, equals, value = word.removeprefix("--").partition("=")
        further[key] = value if equals else True
    wanted = {
        "partition": cfg.partition,
        "account": cfg.account,
        "qos": cfg.qos,
        "constraint": cfg.constraint,
        "mem": cfg.memory,
        "gpus_per_node": cfg.gpus,
    }
    return {key: value for key, value in wanted.items() if value} | {
        "job_name": name,
        "time": minutes(cfg.time),
        "nodes": cfg.nodes,
        "ntasks_per_node": cfg.tasks or cfg.gpus or 1,
        "cpus_per_task": cfg.cpus,
        "signal_delay_s": cfg.signal_delay,
        "array_parallelism": cfg.max_parallel or 100_000,
        "stderr_to_stdout": True,
        "setup": [f"export OMP_NUM_THREADS={cfg.cpus}", *([cfg.setup] if cfg.setup else [])],
        # since SLURM 22.05 srun does not take it over from sbatch
        "srun_args": [f"--cpus-per-task={cfg.cpus}"],
        "additional_parameters": {
            "chdir": str(code),
            "requeue" if cfg.requeue else "no-requeue": True,
            **further,
        },
    }


def queue() -> dict[tuple[str, str], str]:
    """{(job id, working folder): state} of my jobs that are queued or running.

    Raises UserError if SLURM does not answer.
    """
    command = ["squeue", "-h", "-r", "-u", str(os.getuid()), "-o", "%i|%T|%Z"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        raise UserError(
            "squeue has not answered for a minute, so nobody knows which runs are queued; "
            "try again later"
        ) from None
    if done.returncode:
        raise UserError(
            f"squeue failed, so nobody knows which runs are queued: {done.stderr.strip()}"
        )
    rows = (line.split("|", 2) for line in done.stdout.splitlines())
    return {(job, folder): state for job, state, folder in rows}


def join_group() -> None:
    """SLURM's variables to those of torch.distributed.

    The tasks of a job are the ranks of one group, rank 0 on its first node.
    """
    job = submitit.JobEnvironment()
    port = 10_000 + int(job.raw_job_id) % 20_000  # below the ports of outgoing connections
    os.environ.update(
        RANK=str(job.global_rank),
        WORLD_SIZE=str(job.num_tasks),
        LOCAL_RANK=str(job.local_rank),
        MASTER_ADDR=job.hostnames[0],
        MASTER_PORT=str(port),
    )


class Job:
    """What every task of a SLURM job runs, in a copy of the code.

    Strings and numbers only: everything else is on disk.
    """

    def __init__(self, words: list[str], folder: str, cwd: str, requeue: int):
        self.words, self.folder, self.cwd, self.requeue = words, folder, cwd, requeue

    def __call__(self) -> None:
        quiet_output()
        os.chdir(self.cwd)  # relative paths mean what they meant to whoever launched
        join_group()
        job, code = submitit.JobEnvironment(), str(Path(__file__).parent)
        # SUBMITIT_PREEMPT_SIGNAL may name another one than USR2
        preempted = signal.Signals[f"SIG{job.USR_SIG}"]
        # submitit's: rank 0 asks checkpoint(), requeues the job and exits
        requeue = signal.getsignal(preempted)

        def leave(number: int, frame) -> None:
            """The signal of submitit comes before the time limit. It and the others come from a
            preemption, too, but also from scancel: then we are no longer RUNNING.
            """
            with contextlib.suppress(UserError):
                asked = number == preempted and number != signal.SIGTERM
                if asked or queue().get((job.job_id, code)) == "RUNNING":
                    requeue(number, frame)
                    # As another rank: where the end of one task ends the job, it must not come
                    # before the requeueing.
                    time.sleep(60)
            note_stop(Path(self.folder), number)
            raise SystemExit(128 + number)

        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, preempted):
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
        """Asked by submitit after train.py has saved: what to run when this job starts again."""
        if int(os.environ.get("SLURM_RESTART_COUNT", 0)) >= self.requeue:
            raise TrainingError(
                f"stopped after a checkpoint and not requeued, as [slurm] requeue = "
                f"{self.requeue}; launching again continues"
            )
        return DelayedSubmission(Job(self.words, self.folder, self.cwd, self.requeue))


def arrays(runs: list[Run]) -> list[list[Run]]:
    """Runs that ask for the same: one job array each."""
    groups: dict[SlurmConfig, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.slurm, []).append(run)
    return list(groups.values())


def job_name(runs: list[Run]) -> str:
    """What squeue shows."""
    name = runs[0].below if len(runs) == 1 else runs[0].below.parent
    return re.sub(r"[^\w.+=-]", "_", str(name)).strip(".") or "trm"


def submit(runs: list[Run], launch: Path) -> list[str]:
    """All runs as job arrays. What went wrong with some of them, as sentences.

    Raises UserError where nothing was submitted.
    """
    # Under python -m, Job is __main__.Job here, which a job could not find.
    from submitit_launch import Job

    code, cwd = (launch / "code").resolve(), os.getcwd()
    wrong, count = [], 0
    for array in arrays(runs):
        slurm = array[0].slurm
        # Job.checkpoint counts restarts better than submitit does.
        executor = submitit.SlurmExecutor(launch.resolve() / "logs", max_num_timeout=10**6)
        executor.update_parameters(**parameters(slurm, job_name(array), code))
        jobs = [Job(run.words(launch), str(run.folder), cwd, slurm.requeue) for run in array]
        try:
            # What sbatch says on stderr is in the exception, too.
            with contextlib.redirect_stderr(io.StringIO()), executor.batch():
                submitted = [executor.submit(job) for job in jobs]
        except (FailedJobError, FailedSubmissionError) as e:
            reason = str(e).strip().splitlines()[-1]
            wrong.append(f"sbatch refused the array of {array[0].name}: {reason}")
            continue
        number = submitted[0].job_id.split("_")[0]
        print(f"submitted {len(array)} run(s) as job {number}: {names(array)}", flush=True)
        count += len(array)
        for run, job in zip(array, submitted):
            where = {"job": job.job_id, "code": str(code), "log": str(job.paths.stdout)}
            try:
                prepare(run, where)
            except (OSError, TrainingError) as e:
                wrong.append(f"job {job.job_id} runs, but the next launch will not know it: {e}")
    if not count:
        raise UserError(wrong[0])
    if count < len(runs):
        wrong.append(f"submitted {count} of {len(runs)} run(s), the others not")
    return wrong


def names(runs: list[Run]) -> str:
    """The first runs of an array by name."""
    more = f" and {len(runs) - 4} more" if len(runs) > 4 else ""
    return ", ".join(run.name for run in runs[:4]) + more


def script(runs: list[Run], launch: Path) -> str:
    """The sbatch script of an array, as submitit will write it."""
    from submitit.slurm.slurm import _make_sbatch_string

    logs = launch.resolve() / "logs"
    return _make_sbatch_string(
        command=shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", str(logs)]),
        folder=logs,
        map_count=len(runs) if len(runs) > 1 else None,
        **parameters(runs[0].slurm, job_name(runs), (launch / "code").resolve()),
    )


def dry_run(runs: list[Run], todo: list[Run], local: bool) -> None:
    """Say what would be submitted, to the letter."""
    launch = Path(runs[0].cfg.out, ".launch", "TIME")
    for array in arrays(todo) if not local else []:
        print(f"\nsbatch script of {len(array)} run(s):\n{script(array, launch)}")
    verb = "run here" if local else "submit"
    print(
        f"\nwould {verb} {len(todo)} of {len(runs)} run(s), "
        f"with a copy of the code in {launch}/code:"
    )
    for run in todo:
        print(f"python train.py {shlex.join(run.words(launch))}")


# ---------------------------------------------------------------- on this machine


class Local:
    """Runs entries as processes, `slots` at a time, each with a GPU of its own if there are any."""

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
                note_end(run.folder, process.returncode)
        while self.free and self.waiting:
            run = self.waiting.pop(0)
            if holder_of(run.folder) or (run.folder / "summary.json").exists():
                continue  # another launch was faster
            slot = self.free.pop(0)
            self.processes.append((run, self.start(run, slot), slot))

    def start(self, run: Run, slot: dict[str, str]) -> subprocess.Popen:
        """A process of a group of its own: Ctrl-C is ours to pass on."""
        name = str(run.below).replace("/", "_")
        log = self.launch / "logs" / f"{name}_seed{run.cfg.seed}.log"
        while log.exists():  # a_b.toml beside a/b.toml
            log = log.with_stem(f"{log.stem}_")
        prepare(run, {"log": str(log)})
        command = [sys.executable, str(self.launch / "code" / "train.py"), *run.words(self.launch)]
        with open(log, "wb") as f:
            process = subprocess.Popen(
                command, env=os.environ | slot, stdout=f, stderr=f, start_new_session=True
            )
        with contextlib.suppress(UserError, OSError):  # it will say the same itself
            Lock(run.folder, process.pid).take()
        return process

    def stop(self) -> None:
        """They finish their step, save and leave. One that is done is about to leave anyway."""
        for run, process, _ in self.processes:
            if not (run.folder / "summary.json").exists():
                process.terminate()
        for run, process, _ in self.processes:
            note_end(run.folder, process.wait())


def note_end(folder: Path, code: int) -> None:
    """What the exit code of a process says; of other ends the log tells."""
    if (folder / "summary.json").exists():
        return
    if code < 0:
        note_error(folder, f"killed by {signal.Signals(-code).name}")
    elif code > 128:
        note_stop(folder, code - 128)


def run_here(runs: list[Run], launch: Path, slots: list[dict[str, str]]) -> None:
    """All runs to their end. Ctrl-C and SIGTERM let every process save; KeyboardInterrupt."""
    local = Local(runs, launch, slots)

    def turn() -> list[tuple[str, str]]:
        local.turn()
        return [("queued", "") if run in local.waiting else state_of(run, {}) for run in runs]

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
    """The environment of each process that may run at a time. Raises UserError."""
    if torch.cuda.is_available():
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
        if jobs > len(gpus):
            raise UserError(
                f"command line: --jobs={jobs}, expected at most {len(gpus)}, the GPUs here; "
                "CUDA_VISIBLE_DEVICES= computes on CPUs"
            )
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[:jobs]]
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return [{}] * jobs
    threads = max(1, (os.cpu_count() or 1) // jobs)
    return [{"OMP_NUM_THREADS": str(threads)}] * jobs


# ---------------------------------------------------------------- watching


def watch(runs: list[Run], states: Callable[[], list[tuple[str, str]]]) -> None:
    """A bar over the steps of all runs and a line for each that ends, until none is left.

    states: what `states_of` returns, asked again and again.
    """
    begun, ended, known = time.monotonic(), set(), []
    steps = [last_step(run)[0] for run in runs]
    with tqdm(
        total=sum(run.cfg.train.steps for run in runs),
        initial=sum(steps),
        unit="step",
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 15,
    ) as bar:
        while True:
            try:
                known = states()
            except UserError as e:  # the queue does not answer for a while
                if not known:
                    raise
                bar.write(str(e), file=sys.stderr)
            for i, (run, (state, note)) in enumerate(zip(runs, known)):
                if state not in ALIVE and run.folder not in ended:
                    ended.add(run.folder)
                    bar.write(f"{state:9} {run.name}: {note}", file=sys.stdout)
                finished = state == "finished"
                at = run.cfg.train.steps if finished else last_step(run)[0]
                bar.update(at - steps[i])
                steps[i] = at
            bar.set_postfix_str(progress(runs, known), refresh=sys.stderr.isatty())
            if not any(state in ALIVE for state, _ in known):
                return
            time.sleep(min(15.0, 0.5 + (time.monotonic() - begun) / 30))


def progress(runs: list[Run], known: list[tuple[str, str]]) -> str:
    """How many runs are in which state, and how far the first two that run are."""
    states = [state for state, _ in known]
    parts = [f"{states.count(name)} {name}" for name in STATES if name in states]
    running = [run for run, state in zip(runs, states) if state == "running"]
    for run in running[:2]:
        at, loss = last_step(run)
        parts.append(f"{run.name} {at}/{run.cfg.train.steps} loss {loss or '-'}")
    return ", ".join(parts + ["..."] * (len(running) > 2))


def print_log(run: Run, reason: str, file) -> None:
    """Where the log of a run is, and its last lines."""
    log = run.job().get("log", "")
    lines = [line for line in last_lines(log, 4) if reason not in line]
    print(f"          {log}", *lines, sep="\n            ", file=file)


def failures(runs: list[Run]) -> bool:
    """Tell which runs did not finish, with the end of their logs; whether there are any."""
    states = states_of(runs)
    bad = [(run, *known) for run, known in zip(runs, states) if known[0] != "finished"]
    for run, state, note in bad:
        print(f"{state:9} {run.name}: {note}", file=sys.stderr)
        print_log(run, note, sys.stderr)
        if state == "failed":
            note_error(run.folder, note)
    return bool(bad)


def analysis(runs: list[Run]) -> list[str]:
    """Words for Python: analyze.py on the folder that holds the runs.

    On each entry's folder where that would show others too.
    """
    parents = sorted({run.folder.parent.parent for run in runs})
    if Path(runs[0].cfg.out) in parents:
        parents = sorted({run.folder.parent for run in runs})
    return ["analyze.py", *map(str, parents)]


# ---------------------------------------------------------------- the command


def launcher_parser():
    """The options of the launcher itself."""
    parser = make_parser("-m submitit_launch", __doc__)
    add = parser.add_argument
    add("entries", nargs="*", type=Path, help="entries, and folders of entries (but slurm.toml)")
    add(
        "--seeds",
        default="",
        metavar="",
        help="run every entry with these, like 0,1,2 (default: the seed in the entry, 0)",
    )
    add("--dry-run", action="store_true", help="say what would be submitted")
    add(
        "--wait",
        action="store_true",
        help="show a bar until all runs have ended, then analyse them",
    )
    add(
        "--local",
        action="store_true",
        help="run here, without SLURM; one process per run, whatever [slurm] says",
    )
    add(
        "--jobs",
        type=int,
        default=0,
        metavar="",
        help="with --local: runs at a time (default 1)",
    )
    return parser


def config_classes(argv: list[str]) -> list[type]:
    """The configurations of all entries that a command line names: a class per task."""
    files = []
    for word in argv:
        path = Path(word)
        if word.startswith("-"):
            continue
        if path.is_dir():
            files += entry_files([path])
        elif path.is_file():
            files += [path] * (path.suffix == ".toml")
        else:
            files += map(Path, entries_named(word))
    given = hints([word for word in argv if word.startswith("--")])
    found = [train.Config.variant([*read_layers(file), *given]) for file in files]
    return list(dict.fromkeys(found)) or [train.Config.variant(given)]


def grid(argv: list[str], kinds: dict[str, type]) -> list[tuple[str, list[str]]]:
    """The points of the grid on a command line, each a name and a command line of its own.

    --train.lr=1e-3,3e-3 --model.dim=32,64 has four: "lr=0.001,dim=32", ... A name says the values
    of the keys that have several. Where a text is wanted, a comma is part of it. Raises UserError.
    """
    axes: list[list[tuple[str, str]]] = []  # of a word: (key=value, word), one for each value
    several = []
    for word in joined_words(argv, kinds):
        key, _, text = word.removeprefix("--").partition("=")
        values = [text]
        wants_text = kinds.get(key, str) is str or key.startswith("slurm.")
        if word.startswith("--") and not wants_text:
            values = text.split(",")
        if len(values) == 1:
            axes.append([("", word)])
            continue
        parsed = [parse_value(value, kinds[key]) for value in values]
        if len(set(parsed)) < len(parsed):
            raise UserError(f"command line: {word}: a value stands there twice")
        several.append(key)
        axes.append([(f"{key}={plain(value)}", f"--{key}={plain(value)}") for value in parsed])
    last = [key.rpartition(".")[2] for key in several]
    points = []
    for choice in itertools.product(*axes):
        named = [name_of_value(name, last) for name, _ in choice if name]
        points.append((",".join(named), [word for _, word in choice]))
    return points


def joined_words(argv: list[str], kinds: dict[str, type]) -> list[str]:
    """--key value as one word, --key=value, for the keys of a configuration."""
    words = []
    for word in argv:
        before = words[-1] if words else ""
        if before.startswith("--") and before.removeprefix("--") in kinds:
            words[-1] = f"{before}={word}"
        else:
            words.append(word)
    return words


def name_of_value(text: str, last: list[str]) -> str:
    """ "train.lr=0.001" -> "lr=0.001"; with its table where another key ends in the same word.

    Every run has a seed of its own beside it.
    """
    key, _, value = text.partition("=")
    short = key.rpartition(".")[2]
    alone = last.count(short) == 1 and short != "seed"
    return f"{short if alone else key}={value}"


def plain(value) -> str:
    """A value of a key as a folder's name says it: 0.001, true, muon."""
    return value if isinstance(value, str) else toml_value(value)


def read_command_line(argv: list[str]):
    """(options of the launcher, the points of the grid: see plan_runs). Raises UserError."""
    parser = launcher_parser()
    kinds = add_keys(parser, config_classes(argv), OWN_KEYS)
    kinds |= add_keys(parser, [SlurmConfig], OWN_KEYS, "slurm")
    points = []
    for name, words in grid(argv, kinds):
        args, overrides = parse(parser, words, kinds)
        points.append((name, overrides))
    if not args.entries:
        raise UserError(
            "command line: no entry, expected .toml files or folders of them, like sweeps/ablation/"
        )
    if args.jobs < 0:
        raise UserError(f"command line: --jobs={args.jobs}, expected a positive number")
    if args.jobs and not args.local:
        raise UserError(
            f"command line: --jobs={args.jobs}, expected --local beside it; "
            "on SLURM it is --slurm.max_parallel"
        )
    return args, points


def command(argv: list[str]) -> int:
    args, points = read_command_line(argv)
    runs = plan_runs(args.entries, args.seeds, points, args.local)
    slots, states = make_slots(args.jobs or 1), states_of(runs)
    for run, (state, note) in zip(runs, states):
        print(f"{state:9} {run.name} -> {run.folder}" + (f": {note}" if note else ""))
        if state == "failed":
            print_log(run, note, sys.stdout)
    todo = left_to_do(runs, states)
    if not args.dry_run:
        for run in todo:
            run.cfg.task.fetch(run.cfg)
    missing = missing_data(todo)
    if args.dry_run:
        dry_run(runs, todo, args.local)
        if missing:
            print(f"but not yet: {missing}")
        return 0
    if missing:
        raise UserError(missing)
    if todo and not args.local and not shutil.which("sbatch"):
        raise UserError(
            "no sbatch here, so nothing was submitted: call this on a login node of the cluster, "
            "or run the entries here with --local"
        )
    launch, wrong = None, []
    if todo:
        with one_launch(Path(todo[0].cfg.out)):
            todo = still_to_do(todo)
            launch = snapshot(todo) if todo else None
            if todo and not args.local:
                wrong = submit(todo, launch)
    for sentence in wrong:
        print(f"error: {visible(sentence)}", file=sys.stderr)
    if args.local:
        run_here(todo, launch, slots)
    return end(args, runs, todo, launch) or int(bool(wrong))


def left_to_do(runs: list[Run], states: list[tuple[str, str]]) -> list[Run]:
    """The runs that are neither finished nor running nor queued."""
    ends = ("finished", *ALIVE)
    return [run for run, (state, _) in zip(runs, states) if state not in ends]


def still_to_do(runs: list[Run]) -> list[Run]:
    """Those that no other launch has taken since the first look, which took no lock."""
    states = states_of(runs)
    left = left_to_do(runs, states)
    for run, (state, note) in zip(runs, states):
        if run not in left:
            print(f"{state:9} {run.name}: {note}, by another launch")
    return left


def end(args, runs: list[Run], todo: list[Run], launch: Path | None) -> int:
    """Wait, report and analyse, as the command line says; the exit code."""
    if args.wait and not args.local:
        try:
            watch(runs, lambda: states_of(runs))
        except KeyboardInterrupt:
            print(
                "\nno longer waiting; the jobs go on, the same command shows them", file=sys.stderr
            )
            return 130
    failed = False
    if args.wait or args.local:
        failed = failures(todo if args.local else runs)
    program, *folders = analysis(runs)
    if args.wait:
        done = subprocess.run([sys.executable, str(ROOT / program), *folders])
        return int(failed or done.returncode != 0)
    if not args.local:
        logs = launch or Path(runs[0].cfg.out, ".launch")
        print(f"look      squeue --me; the same command again; logs: {logs}/")
    print(f"analyse   python {program} {shlex.join(folders)}")
    return int(failed)


def main(argv: list[str] | None = None) -> int:
    try:
        return command(sys.argv[1:] if argv is None else argv)
    except (UserError, TrainingError) as e:
        print(f"error: {visible(str(e))}", file=sys.stderr)
        return 2
    except OSError as e:
        where = visible(f"{e.filename} ({e.strerror or e})")
        print(f"error: cannot read or write {where}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    quiet_output()
    sys.exit(main())
