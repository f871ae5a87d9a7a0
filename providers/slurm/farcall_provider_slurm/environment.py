"""Variables by which Slurm's commands would do other things than they are told to."""

from __future__ import annotations

from .config import SlurmConfig

#: Filters and habits of the person whose environment it is, and what an enclosing job would hand on to ours.
_ALWAYS = (
    "SBATCH_ARRAY_INX",
    "SBATCH_CLUSTERS",
    "SBATCH_EXCLUSIVE",
    "SBATCH_EXPORT",
    "SBATCH_JOB_NAME",
    "SBATCH_OUTPUT",
    "SBATCH_ERROR",
    "SBATCH_REQUEUE",
    "SBATCH_TIMELIMIT",
    # Its command would last as long as the job.
    "SBATCH_WAIT",
    "SQUEUE_ACCOUNT",
    "SQUEUE_FORMAT",
    "SQUEUE_FORMAT2",
    "SQUEUE_NAMES",
    "SQUEUE_PARTITION",
    "SQUEUE_QOS",
    "SQUEUE_STATES",
    "SQUEUE_USERS",
    "SCANCEL_ACCOUNT",
    # It would ask whether we mean it.
    "SCANCEL_INTERACTIVE",
    "SCANCEL_NAME",
    "SCANCEL_PARTITION",
    "SCANCEL_QOS",
    "SCANCEL_STATE",
    "SCANCEL_USER",
    # Ids would be taken for those of another cluster.
    "SLURM_CLUSTERS",
    "SLURM_CPUS_PER_TASK",
    "SLURM_MEM_PER_CPU",
    "SLURM_MEM_PER_GPU",
    "SLURM_MEM_PER_NODE",
    "SLURM_NPROCS",
    "SLURM_NTASKS",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_TRES_PER_TASK",
)

#: They would win over the script, so they go where the configuration says something; elsewhere they may stay.
_BY_OPTION = {
    "account": "SBATCH_ACCOUNT",
    "partition": "SBATCH_PARTITION",
    "qos": "SBATCH_QOS",
    "constraint": "SBATCH_CONSTRAINT",
    "reservation": "SBATCH_RESERVATION",
    "mem_per_node": "SBATCH_MEM_PER_NODE",
    "gpus_per_node": "SBATCH_GPUS_PER_NODE",
    "gres": "SBATCH_GRES",
}


def hidden_by(config: SlurmConfig) -> tuple[str, ...]:
    """The names of those that the commands for this configuration must not see."""
    set_here = [name for option, name in _BY_OPTION.items() if getattr(config, option) is not None]
    return (*_ALWAYS, *set_here)
