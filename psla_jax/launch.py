"""What launchers say of the processes that they have started: Slurm, Open MPI and Kubernetes."""

from __future__ import annotations

import os

from psla_jax.config import ShareConfig


def several() -> bool:
    """Whether one of them has started several of this process, for JAX to find."""
    kubernetes = "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ
    return _said()[1] > 1 or kubernetes


def share(config: ShareConfig) -> tuple[int, int]:
    """Which process this is, and of how many, where they need no connection to each other."""
    return (config.index, config.processes) if config.processes > 1 else _said()


def _said() -> tuple[int, int]:
    """Index and number of processes, as Slurm or Open MPI has them."""
    # A batch script has most of Slurm's too, and is one process: only srun sets the nodes of a step.
    if {"SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"} <= set(os.environ):
        return int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    if {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"} <= set(os.environ):
        return int(os.environ["OMPI_COMM_WORLD_RANK"]), int(os.environ["OMPI_COMM_WORLD_SIZE"])
    return 0, 1
