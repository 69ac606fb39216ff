#!/bin/bash
# One node of the Ray cluster of iterate.sbatch, a task of its step, until it is stopped. The first is the head:
# it leaves the cluster's address in $TPO_JOB/head once it is up, and $TPO_JOB/over when it ends, which ends the
# others too. What a node says is in $TPO_JOB/node-<n>.log.
set -uo pipefail
log=$TPO_JOB/node-$SLURM_NODEID.log
exec >"$log" 2>&1

python=$PWD/.venv/bin/python
address=$(getent ahostsv4 "$SLURMD_NODENAME" | awk 'NR == 1 { print $1 }')
if [ -z "$address" ] || [ "$address" = 127.0.1.1 ]; then
  echo "$SLURMD_NODENAME: found the address '$address', expected one that other nodes reach: fix /etc/hosts or DNS"
  exit 2
fi
while IFS= read -r setting; do export "${setting?}"; done < <(
  "$python" -c 'from tpo.engines.cluster.processes import QUIET; print(*map("=".join, QUIET.items()), sep="\n")'
)

# For this user alone, and Ray's within it, which Ray opens to all; short, for a socket's path has 107 bytes at most.
folder=$(mktemp -d /tmp/tpo.XXXXXX) || exit
ray="" stopped=""
trap 'rm -rf "$folder"; [ "$SLURM_NODEID" -ne 0 ] || touch "$TPO_JOB/over"' EXIT
trap 'stopped=yes; [ -z "$ray" ] || kill -TERM "$ray" 2>/dev/null' TERM

start=(--block --node-ip-address="$address" --temp-dir="$folder/ray" --object-store-memory=2000000000 --disable-usage-stats)
start+=(--num-cpus="$SLURM_CPUS_ON_NODE")
if [ "$SLURM_NODEID" -eq 0 ]; then
  port=$((20000 + SLURM_JOB_ID % 5000 * 2))  # above Ray's workers, below what Linux hands out; another for another job
  start+=(--head --port="$port" --ray-client-server-port="$((port + 1))" --include-dashboard=false)
else
  until [ -s "$TPO_JOB/head" ] || [ -e "$TPO_JOB/over" ] || [ -n "$stopped" ]; do sleep 1; done
  start+=(--address="$(cat "$TPO_JOB/head")")
fi

# Ray gives its agents 15 seconds to start; a file system that is read for the first time may need more: so three
# times. A head that had been up is not started again: it would be another cluster, without what the flow had in it.
for _ in 1 2 3; do
  if [ -n "$stopped" ] || [ -e "$TPO_JOB/over" ]; then break; fi
  "$python" -m ray.scripts.scripts start "${start[@]}" &
  ray=$!
  if [ "$SLURM_NODEID" -eq 0 ]; then
    until grep -q "Ray runtime started" "$log" || ! kill -0 "$ray" 2>/dev/null; do sleep 1; done
    ! kill -0 "$ray" 2>/dev/null || echo "$address:$port" >"$TPO_JOB/head"
  fi
  while kill -0 "$ray" 2>/dev/null; do wait "$ray"; done  # a signal ends a wait early
  if [ -s "$TPO_JOB/head" ] && [ "$SLURM_NODEID" -eq 0 ]; then break; fi
done
[ -n "$stopped" ]
