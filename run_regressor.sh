#!/usr/bin/env bash
# Trains on a Slurm cluster:     sbatch run_regressor.sh [flags of main.py]
# with several jobs at once:     sbatch --array=0-8 run_regressor.sh [flags of main.py]
# and on any other machine:      bash run_regressor.sh [flags of main.py]
#
# Call sbatch from the project's folder. Give what is yours before the script's name: --account=... --partition=...
# --mail-user=... --time=... Or set SBATCH_ACCOUNT, SBATCH_PARTITION, ... On a cluster without GPUs:
# sbatch --gpus=0 run_regressor.sh
#
# The tasks of an array share the work: each takes the next training run that no other task trains, so any indices do.
# Two minutes before its time limit, a job saves and requeues itself; it continues there, as after a preemption.
# Each of several GPUs trains runs of its own. To train one run at a time on all of them, which pays only for wide
# networks:                      sbatch --gpus=4 --export=ALL,TOGETHER=1 run_regressor.sh [flags of main.py]
# Several nodes (--nodes=2 --gpus=8) always train together.
#
#SBATCH --job-name=colorization
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --gpus=1
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

fail() {
    echo "run_regressor.sh: $*" >&2
    exit 2
}

# Slurm runs a copy of this script from its own folder, and starts it where sbatch was called.
here=$(dirname "${BASH_SOURCE[0]}")
[ ! -f "$here/main.py" ] || cd "$here"
[ -f main.py ] || fail "no main.py in $PWD: call sbatch from the project's folder"
if [ -f .venv/bin/activate ]; then
    # shellcheck disable=SC1091
    . .venv/bin/activate
fi

export PYTHONUNBUFFERED=1 # a log is read while it is written
if [ -z "${SLURM_JOB_ID:-}" ] || ! command -v srun >/dev/null; then
    exec python3 main.py "$@"
fi
# Since Slurm 22.05, srun does not inherit this from the job.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
nodes=${SLURM_JOB_NUM_NODES:-1}
if [ "$nodes" -eq 1 ] && { [ "${SLURM_GPUS_ON_NODE:-0}" -le 1 ] || [ -z "${TOGETHER:-}" ]; }; then
    # exec: the signal reaches Python however it is sent.
    exec srun python3 main.py "$@"
fi
# One torchrun per node, one process per GPU. They meet at the first node; the job id tells jobs there apart.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
rendezvous=(--nnodes="$nodes" --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID"
    --rdzv-endpoint="$head:$((20000 + SLURM_JOB_ID % 10000))")
# SIGUSR1 is for the training processes: it would kill torchrun.
# shellcheck disable=SC2016
exec srun bash -c 'trap "" USR1
    gpus=${SLURM_GPUS_ON_NODE:-0}
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # main.py sets the number of threads; this avoids a warning of torchrun
    exec python3 -m torch.distributed.run --nproc-per-node=$((gpus > 1 ? gpus : 1)) "$@"' \
    torchrun "${rendezvous[@]}" main.py "$@"
