#!/usr/bin/env bash
# Trains on a Slurm cluster:   sbatch run_regressor.sh [flags of main.py]
# and on any other machine:    bash run_regressor.sh [flags of main.py]
#
# Account, partition and mail address are yours: give them to sbatch (--account=..., --partition=...,
# --mail-user=...) or set SBATCH_ACCOUNT, SBATCH_PARTITION. On a cluster without GPUs add --gpus=0.
#
#SBATCH --job-name=colorization
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --gpus=1
#SBATCH --time=24:00:00
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

# Slurm runs a copy of this script from its own folder; the project is where sbatch was called.
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")}"
if [ ! -f main.py ]; then
    echo "run_regressor.sh: no main.py in $PWD: call sbatch from the project's folder" >&2
    exit 2
fi
if [ -f .venv/bin/activate ]; then
    # shellcheck disable=SC1091
    . .venv/bin/activate
fi

if [ -n "${SLURM_JOB_ID:-}" ] && command -v srun >/dev/null; then
    exec srun python3 -u main.py "$@"
fi
exec python3 -u main.py "$@"
