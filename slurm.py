"""SLURM as a run sees it: the table [slurm], the options of its job, the queue, and the process group of its tasks.

The table stands in an entry, in the slurm.toml of its sweeps folder (for all entries of a cluster), or on the command line:
    command line  >  entry  >  its base  >  sweeps/slurm.toml  >  defaults
It says where a run computes, never what: train.py checks it and goes on without it.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from config import overlay, read_layers, read_toml
from data import UserError


@dataclass(frozen=True)
class SlurmConfig:
    partition: str = ""  # where to queue; empty, here and below: as the cluster does by itself
    account: str = ""  # who pays
    qos: str = ""  # quality of service
    constraint: str = ""  # features a node must have, for example "h100|h200"
    time: str = "12h"  # limit of one job, "90m", "12h", "1d12h" or SLURM's D-HH:MM:SS; a longer run is requeued and continues
    nodes: int = 1  # nodes of a run
    gpus: int = 0  # GPUs on each node
    tasks: int = (
        0  # processes on each node, all of a run form one DDP group; 0: one per GPU, at least one
    )
    cpus: int = 1  # CPUs of each process
    memory: str = ""  # on each node, for example "16GB"
    max_parallel: int = 0  # runs of a launch that compute at the same time; 0: no limit of ours
    signal_delay: int = (
        120  # seconds between the warning and the time limit: a step and a checkpoint must fit
    )
    requeue: int = 100  # times a job comes back after a warning before somebody has to launch again
    setup: str = (
        ""  # shell command on the node before Python starts, for example "module load cuda"
    )
    options: str = ""  # further sbatch options, for example "--exclude=n12 --nice=100"

    def problems(self) -> Iterator[tuple[str, str, str]]:
        if not minutes(self.time):
            yield "", "time", 'a duration like "90m", "12h", "1d12h" or "1-12:00:00"'
        for key in ("nodes", "cpus", "signal_delay"):
            if getattr(self, key) < 1:
                yield "", key, "at least 1"
        for key in ("gpus", "tasks", "max_parallel", "requeue"):
            if getattr(self, key) < 0:
                yield "", key, "at least 0"
        if self.signal_delay >= min(60 * (minutes(self.time) or 1), 65536):
            yield "", "signal_delay", f"fewer seconds than time = {self.time!r} has, at most 65535"
        if not re.fullmatch(r"(\d+[KMGT]B?)?", self.memory):
            yield "", "memory", 'a size like "16GB" or "500M"'
        if any(not re.fullmatch(r"--[a-z][a-z-]*(=.*)?", word) for word in split(self.options)):
            yield (
                "",
                "options",
                'long options with their values behind =, like "--exclude=n12 --exclusive"',
            )

    @property
    def processes(self) -> int:
        return self.nodes * (self.tasks or self.gpus or 1)


def split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # a quote that is never closed
        return [text]


def minutes(text: str) -> int:
    """A duration in minutes, 0 where it is none."""
    if m := re.fullmatch(r"(?=.)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?", text):
        d, h, m, s = (*(int(g or 0) for g in m.groups()), 0)
    elif m := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text):
        d, h, m, s = (int(g or 0) for g in m.groups())
    else:
        return 0
    return d * 1440 + h * 60 + m + (s > 0)


def slurm_config(entry: Path, overrides: dict | None = None) -> SlurmConfig:
    """The [slurm] table of an entry, of all the places that may hold it. Raises UserError."""
    layers, parts = read_layers(Path(entry)), Path(entry).resolve().parts
    if "sweeps" in parts:
        shared = Path(*parts[: len(parts) - parts[::-1].index("sweeps")], "slurm.toml")
        if shared.exists():
            tables = read_toml(shared)
            if other := tables.keys() - {"slurm"}:
                raise UserError(
                    f"{shared}: unknown key '{min(other)}', expected the table [slurm] alone"
                )
            layers.insert(0, (str(shared), tables))
    layers.append(("command line", overrides or {}))
    for where, layer in layers:
        if not isinstance(layer.get("slurm", {}), dict):
            raise UserError(f"{where}: slurm = {layer['slurm']!r}, expected a table [slurm]")
    return overlay(
        SlurmConfig,
        [(f"{where} [slurm]", layer.get("slurm", {})) for where, layer in layers],
        f"{entry} [slurm]",
    )


def parameters(cfg: SlurmConfig, name: str, code: Path) -> dict:
    """What submitit's SlurmExecutor is told about jobs that run from the folder `code`."""
    further = dict(
        word.removeprefix("--").split("=", 1) if "=" in word else (word.removeprefix("--"), True)
        for word in split(cfg.options)
    )
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
        "srun_args": [
            f"--cpus-per-task={cfg.cpus}"
        ],  # since SLURM 22.05 srun does not take it over from sbatch
        "additional_parameters": {
            "chdir": str(code),
            "requeue" if cfg.requeue else "no-requeue": True,
            **further,
        },
    }


def queue() -> dict[tuple[str, str], str]:
    """{(job id, working folder): state} of my jobs that are queued or running. Raises UserError if SLURM does not answer."""
    try:
        done = subprocess.run(
            ["squeue", "-h", "-r", "-u", str(os.getuid()), "-o", "%i|%T|%Z"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            "squeue has not answered for a minute, so nobody knows which runs are queued; try again later"
        ) from None
    if done.returncode:
        raise UserError(
            f"squeue failed, so nobody knows which runs are queued: {done.stderr.strip()}"
        )
    rows = (line.split("|", 2) for line in done.stdout.splitlines())
    return {(job, folder): state for job, state, folder in rows}


def join_group() -> None:
    """SLURM's variables to those of torch.distributed: the tasks of a job are the ranks of one group, rank 0 on its first node."""
    import submitit

    job = submitit.JobEnvironment()
    os.environ.update(
        RANK=str(job.global_rank),
        WORLD_SIZE=str(job.num_tasks),
        LOCAL_RANK=str(job.local_rank),
        MASTER_ADDR=job.hostnames[0],
        MASTER_PORT=str(10_000 + int(job.raw_job_id) % 20_000),
    )  # below the ports of outgoing connections
