#!/usr/bin/env bash
#SBATCH --job-name=k400tiny
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1       # one `mlflow run` per node; torchrun starts the processes
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120         # the checkpoint of the last epoch is there before the time is up
#SBATCH --requeue                 # ... and resume=auto goes on from it
#SBATCH --open-mode=append
#
# Train on several nodes. Submit from the project's directory, with the project's environment active
# and everything below on a file system that all nodes share:
#
#   export MLFLOW_TRACKING_URI=http://tracking.example.org:5000
#   sbatch examples/slurm.sh data/frames runs:/<prepare_data run>/annotations/annotations.json
#
# Without a tracking server, leave the metrics on the shared disk and look at them later:
# MLFLOW_TRACKING_URI=sqlite:///$PWD/mlflow.db.
set -euo pipefail

data_path=$1
annotations=$2

# Node 0 opens the rendezvous; a port of the job's own keeps two jobs on one node apart.
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export RDZV_ENDPOINT="$first_node:$((20000 + SLURM_JOB_ID % 40000))"
export NUM_NODES=$SLURM_JOB_NUM_NODES
export DATA_PATH=$data_path ANNOTATIONS=$annotations
export CHECKPOINTS="$PWD/checkpoints/slurm-$SLURM_JOB_ID"

# SLURM_NODEID differs from node to node: it must be read by the task, not here.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c '
    exec mlflow run . -e train --env-manager local \
        -P data_path="$DATA_PATH" \
        -P annotations="$ANNOTATIONS" \
        -P checkpoint_dir="$CHECKPOINTS" \
        -P resume=auto \
        -P nnodes="$NUM_NODES" \
        -P node_rank="$SLURM_NODEID" \
        -P rdzv_endpoint="$RDZV_ENDPOINT" \
        -P max_restarts=3 \
        -P sync_bn=True
'
