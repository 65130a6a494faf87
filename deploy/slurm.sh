#!/bin/bash
# One stage as a job of Slurm (`run.launcher: slurm`), a template of Jinja2. What is not in braces is
# yours to change: partition, account, time, modules.
#SBATCH --job-name={{ name }}
#SBATCH --output="{{ folder | replace('%', '%%') }}/log"
#SBATCH --open-mode=append
#SBATCH --nodes={{ nodes }}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task={{ cpus }}
{% if gpus %}#SBATCH --gpus-per-node={{ gpus }}
{% endif %}#SBATCH --requeue
##SBATCH --partition=gpu
##SBATCH --account=research
##SBATCH --time=24:00:00

set -euo pipefail
export INFALIGN_JOB={{ folder | quoted }}
cd {{ root | quoted }}
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then  # where the nodes meet
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    export PET_RDZV_BACKEND=c10d PET_RDZV_ID="$SLURM_JOB_ID" PET_RDZV_CONF=read_timeout=3600
    export PET_RDZV_ENDPOINT="$first:$((20000 + SLURM_JOB_ID % 20000))"
fi
srun --kill-on-bad-exit=1 --cpus-per-task={{ cpus }} bash -c 'export PET_NODE_RANK=$SLURM_NODEID; exec "$@"' stage \
    {{ command }}
