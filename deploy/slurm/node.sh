#!/bin/bash
# One node of iterate.sbatch's Ray cluster, run as a task of its step until it is stopped. The first node is the head: it
# writes the cluster's address to $TPO_JOB/head once it is up, and creates $TPO_JOB/over when it ends, which ends the
# others too. Each node logs to $TPO_JOB/node-<n>.log.
set -uo pipefail
log=$TPO_JOB/node-$SLURM_NODEID.log
exec >"$log" 2>&1

python=$PWD/.venv/bin/python
address=$(getent ahostsv4 "$SLURMD_NODENAME" | awk 'NR == 1 { print $1 }')
if [ -z "$address" ] || [ "$address" = 127.0.1.1 ]; then
  echo "$SLURMD_NODENAME: found the address '$address', expected one that other nodes can reach: fix /etc/hosts or DNS"
  exit 2
fi
while IFS= read -r setting; do export "${setting?}"; done < <(
  "$python" -c 'from tpo.engines.cluster.processes import QUIET; print(*map("=".join, QUIET.items()), sep="\n")'
)

# Only this user may enter this folder; Ray makes its own, inside it, world-accessible. The path is short because a
# socket's path may have at most 107 bytes.
folder=$(mktemp -d /tmp/tpo.XXXXXX) || exit
ray="" stopped=""
trap 'rm -rf "$folder"; [ "$SLURM_NODEID" -ne 0 ] || touch "$TPO_JOB/over"' EXIT
trap 'stopped=yes; [ -z "$ray" ] || kill -TERM "$ray" 2>/dev/null' TERM

start=(--block --node-ip-address="$address" --temp-dir="$folder/ray" --object-store-memory=2000000000 --disable-usage-stats)
start+=(--num-cpus="$SLURM_CPUS_ON_NODE")
if [ "$SLURM_NODEID" -eq 0 ]; then
  port=$((20000 + SLURM_JOB_ID % 5000 * 2))  # above Ray's worker ports, below Linux's ephemeral ones; varies by job
  start+=(--head --port="$port" --ray-client-server-port="$((port + 1))" --include-dashboard=false)
else
  until [ -s "$TPO_JOB/head" ] || [ -e "$TPO_JOB/over" ] || [ -n "$stopped" ]; do sleep 1; done
  start+=(--address="$(cat "$TPO_JOB/head")")
fi

# Ray gives its agents 15 seconds to start, which may not be enough while a file system's cache is cold: hence three
# attempts. A head that has been up is not restarted: it would be a new cluster, without the flow's actors and objects.
for _ in 1 2 3; do
  if [ -n "$stopped" ] || [ -e "$TPO_JOB/over" ]; then break; fi
  "$python" -m ray.scripts.scripts start "${start[@]}" &
  ray=$!
  if [ "$SLURM_NODEID" -eq 0 ]; then
    until grep -q "Ray runtime started" "$log" || ! kill -0 "$ray" 2>/dev/null; do sleep 1; done
    ! kill -0 "$ray" 2>/dev/null || echo "$address:$port" >"$TPO_JOB/head"
  fi
  while kill -0 "$ray" 2>/dev/null; do wait "$ray"; done  # signals interrupt a wait
  if [ -s "$TPO_JOB/head" ] && [ "$SLURM_NODEID" -eq 0 ]; then break; fi
done
[ -n "$stopped" ]
