#!/usr/bin/env bash
#SBATCH --job-name=nas
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#
# One search on all nodes of a SLURM job. From the folder that has .venv and results/:
#
#     sbatch docs/cluster/slurm.sh --data my.yaml --budget 64gpu-h --name mine
#
# The same command again, or SLURM's own requeueing, goes on with results/mine. See docs/cluster.md.
#
#   NAS_VENV     the environment with nas and ray                [.venv of the folder that sbatch was called in]
#   NAS_HEAD_IP  address of the first node for the others        [its first one]
#   NAS_WAIT     seconds to wait for all nodes                   [300]
#   NAS_GRACE    seconds that running trials get when time is up [60]; a second TERM then ends them
set -euo pipefail

venv=${NAS_VENV:-$PWD/.venv}
export PATH="$venv/bin:$PATH"
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun does not take it over from sbatch by itself

# The cluster listens on the network: a token of this job alone, in the environment, which only its owner can read.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
unset RAY_ADDRESS RAY_AUTH_TOKEN_PATH

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
ip=${NAS_HEAD_IP:-$(hostname -I | cut -d ' ' -f 1)} # this script runs on the first node
port=$((20000 + SLURM_JOB_ID % 10000))              # beside Ray's own 10002 to 19999
address="$ip:$port"

steps=()
cleanup() {
    trap '' TERM
    for step in "${steps[@]}"; do kill -TERM "$step" 2>/dev/null || true; done
    for step in "${steps[@]}"; do wait "$step" 2>/dev/null || true; done
}
trap cleanup EXIT
trap 'exit 143' TERM INT

# A step for each node, so that one that dies leaves the others alone.
on_node() {
    local node=$1
    shift
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" "$@" &
    steps+=("$!")
}

resources=(--num-cpus="${SLURM_CPUS_PER_TASK:-1}")
on_node "${nodes[0]}" ray start --head --block --node-ip-address="$ip" --port="$port" --include-dashboard=false \
    --temp-dir="/tmp/nas-$SLURM_JOB_ID" "${resources[@]}"

present() { # how many nodes are there; the head answers with its list of them
    timeout 20 ray status --address "$address" 2>/dev/null | sed -n '/^Active:/,/^Pending:/p' | grep -c ' node_' || true
}

wait_for() { # wait_for COUNT: until so many are there, or the time is over
    until [ "$(present)" -ge "$1" ]; do
        [ "$SECONDS" -lt "${NAS_WAIT:-300}" ] || return 1
        kill -0 "${steps[0]}" 2>/dev/null || return 1 # the head has ended
        sleep 1
    done
}

SECONDS=0
if ! wait_for 1; then
    echo "slurm.sh: no Ray head at $address: see above, or set NAS_HEAD_IP" >&2
    exit 5
fi
for node in "${nodes[@]:1}"; do
    on_node "$node" ray start --block --address="$address" "${resources[@]}"
done
if ! wait_for "${#nodes[@]}"; then
    echo "slurm.sh: $(present) of ${#nodes[@]} nodes after ${NAS_WAIT:-300} s; beginning with these" >&2
fi

# The name of the run: --name, else that of the job. Where it exists, it is gone on with; block files are named again.
name=${SLURM_JOB_NAME:-nas}
arguments=("$@")
blocks=()
named=no
for ((i = 0; i < $#; i++)); do
    case ${arguments[i]} in
        --name) name=${arguments[i + 1]:?--name needs a name} named=yes ;;
        --name=*) name=${arguments[i]#--name=} named=yes ;;
        --blocks) blocks+=(--blocks "${arguments[i + 1]:?--blocks needs a file}") ;;
        --blocks=*) blocks+=("${arguments[i]}") ;;
    esac
done
[ "$named" = yes ] || arguments+=(--name "$name")
if [ -f "results/$name/run.yaml" ]; then
    echo "slurm.sh: results/$name exists: going on with it" >&2
    arguments=(--resume "results/$name" "${blocks[@]}")
fi

nas search --address "$address" "${arguments[@]}" &
search=$!

stop() { # the first TERM lets running trials end, a second stops them; either way the run can be gone on with
    trap '' TERM INT
    echo "slurm.sh: the job ends: stopping the search" >&2
    kill -TERM "$search" 2>/dev/null || true
    last=$((SECONDS + ${NAS_GRACE:-60}))
}
last=
trap stop TERM INT

while kill -0 "$search" 2>/dev/null; do
    if [ -n "$last" ] && [ "$SECONDS" -ge "$last" ]; then
        kill -TERM "$search" 2>/dev/null || true
        last=
    fi
    sleep 1
done
code=0
wait "$search" || code=$?
exit "$code"
