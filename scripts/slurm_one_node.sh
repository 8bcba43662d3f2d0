#!/usr/bin/env bash
# Runs a command in a Slurm cluster of this one machine that lives as long as the command: real munged, slurmctld and slurmd from
# Debian's slurm-wlm and munge, everything of theirs in a folder that is removed. Needs root.
#   scripts/slurm_one_node.sh srun -n 2 --overcommit hostname
set -euo pipefail
for daemon in munged slurmctld slurmd; do
  PATH=$PATH:/usr/sbin command -v $daemon > /dev/null || { echo "slurm_one_node: $daemon is not installed (apt-get install slurm-wlm munge)" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "slurm_one_node: needs root" >&2; exit 1; }
PATH=$PATH:/usr/sbin
folder=$(mktemp -d)
chmod 755 "$folder"
pids=()
# A step is over when slurmctld knows it: its daemon waits for that. Then the last that was started ends first.
finish() {
  for _ in $(seq 100); do
    [ -n "$(squeue -h 2> /dev/null)" ] || break
    sleep 0.1
  done
  for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
    kill "${pids[i]}" 2> /dev/null || true
    for _ in $(seq 50); do
      kill -0 "${pids[i]}" 2> /dev/null || break
      sleep 0.1
    done
    kill -KILL "${pids[i]}" 2> /dev/null || true
  done
  rm -rf "$folder"
}
trap finish EXIT
host=$(hostname -s)
mkdir "$folder"/{state,spool,munge}
head -c 1024 /dev/urandom > "$folder/munge/key"
chmod 400 "$folder/munge/key"
chmod 711 "$folder/munge"
cat > "$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${SLURMCTLD_PORT:-16817}
SlurmdPort=${SLURMD_PORT:-16818}
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SelectType=select/linear
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=one Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$folder/slurm.conf
munged --foreground --force --socket="$folder/munge/socket" --key-file="$folder/munge/key" --log-file="$folder/munge/log" \
  --pid-file="$folder/munge/pid" --seed-file="$folder/munge/seed" > "$folder/munge/out" 2>&1 &
pids+=($!)
until [ -S "$folder/munge/socket" ]; do
  kill -0 "${pids[0]}" 2> /dev/null || { cat "$folder/munge/out" >&2; exit 1; }
  sleep 0.1
done
slurmctld -D -f "$SLURM_CONF" > "$folder/slurmctld.log" 2>&1 &
pids+=($!)
slurmd -D -f "$SLURM_CONF" -N "$host" > "$folder/slurmd.log" 2>&1 &
pids+=($!)
for _ in $(seq 300); do
  if sinfo -h -o %T 2> /dev/null | grep -q idle; then ready=1; break; fi
  sleep 0.1
done
[ -n "${ready:-}" ] || { echo "slurm_one_node: the node did not become idle" >&2; tail -n 20 "$folder"/slurm*.log >&2; exit 1; }
"$@"
