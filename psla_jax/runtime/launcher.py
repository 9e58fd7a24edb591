"""The number of processes and the index of this one, as set by Slurm, Open MPI or Kubernetes."""

from __future__ import annotations

import os

from psla_jax.config import ShareConfig


def several() -> bool:
    """Returns whether a launcher that JAX detects has started several processes of this command."""
    kubernetes = "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ
    return _from_environment()[1] > 1 or kubernetes


def share(config: ShareConfig) -> tuple[int, int]:
    """Returns the index of this process and the number of processes, for work that needs no connection between them."""
    return (config.index, config.processes) if config.processes > 1 else _from_environment()


def _from_environment() -> tuple[int, int]:
    """Returns index and number of processes under Slurm or Open MPI; (0, 1) elsewhere."""
    # A Slurm batch script is a single process and has most of these variables; only srun sets SLURM_STEP_NODELIST.
    if {"SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"} <= set(os.environ):
        return int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    if {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"} <= set(os.environ):
        return int(os.environ["OMPI_COMM_WORLD_RANK"]), int(os.environ["OMPI_COMM_WORLD_SIZE"])
    return 0, 1
