#!/usr/bin/env bash
# bash tests/slurm/start.sh FOLDER         a SLURM of one node on 127.0.0.1, with all it writes in FOLDER; prints the line that makes it yours
# bash tests/slurm/start.sh FOLDER stop    ends its daemons
# Debian's slurm-wlm and munge are installed where they are missing. Exit code 77: not root, or no such packages here.
set -euo pipefail
D=$(mkdir -p "$1" && cd "$1" && pwd)

if [ "${2:-}" = stop ]; then
  export SLURM_CONF=$D/slurm.conf
  timeout 10 scancel --signal=KILL --full --user="$(id -un)" 2>/dev/null || true  # no job outlives its SLURM
  for _ in $(seq 50); do [ -n "$(timeout 10 squeue -h 2>/dev/null)" ] || break; sleep 0.2; done
  for name in slurmd slurmctld munged; do
    pid=$(cat "$D/$name.pid" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || continue 2; sleep 0.1; done
    kill -KILL "$pid" 2>/dev/null || true
  done
  exit 0
fi

if [ "$(id -u)" != 0 ]; then echo "SLURM's daemons need root" >&2; exit 77; fi
if ! command -v slurmctld slurmd sbatch munged >/dev/null; then
  command -v apt-get >/dev/null || { echo "no apt-get here to install slurm-wlm and munge with" >&2; exit 77; }
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -qq --no-install-recommends slurm-wlm munge; } > "$D/apt.log" 2>&1 ||
    { echo "apt-get could not install slurm-wlm and munge: $(tail -n 1 "$D/apt.log")" >&2; exit 77; }
fi

port() {  # one that is free now
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

mkdir -p "$D/state" "$D/spool"
(umask 077; head -c 128 /dev/urandom > "$D/munge.key")
: > "$D/cgroup.conf"
cat > "$D/slurm.conf" <<END
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$(port)
SlurmdPort=$(port)
# All daemons listen on 127.0.0.1 only
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits (120 s by default)
AuthInfo=socket=$D/munge.socket,cred_expire=10
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool
SlurmctldPidFile=$D/slurmctld.pid
SlurmdPidFile=$D/slurmd.pid
SlurmctldLogFile=$D/slurmctld.log
SlurmdLogFile=$D/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1
JobRequeue=1
ReturnToService=2
# Four slots, also on a machine of two cores: tiny runs mostly wait for their imports
SlurmdParameters=config_overrides
NodeName=localhost NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=tests Nodes=localhost Default=YES MaxTime=INFINITE State=UP
END

export SLURM_CONF=$D/slurm.conf
munged --force --key-file="$D/munge.key" --socket="$D/munge.socket" --pid-file="$D/munged.pid" --log-file="$D/munged.log" --seed-file="$D/munged.seed"
slurmctld
slurmd -N localhost
for _ in $(seq 150); do
  if [ "$(sinfo -h -o %T 2>/dev/null)" = idle ]; then
    echo "export SLURM_CONF=$D/slurm.conf"
    exit 0
  fi
  sleep 0.2
done
echo "SLURM does not become idle within 30 s: $(tail -qn 2 "$D/slurmctld.log" "$D/slurmd.log" 2>/dev/null)" >&2
bash "$0" "$D" stop
exit 1
