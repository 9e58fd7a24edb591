"""The number of processes and the index of this one, as set by Slurm, Open MPI or Kubernetes."""

from __future__ import annotations

import os
from pathlib import Path

from psla_jax.config import ConfigError, ShareConfig


def several() -> bool:
    """Returns whether a launcher that JAX detects has started several processes of this command."""
    kubernetes = "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ
    return _from_environment()[1] > 1 or kubernetes


def share(config: ShareConfig) -> tuple[int, int]:
    """Returns the index of this process and the number of processes, for work that needs no connection between them."""
    return (config.index, config.processes) if config.processes > 1 else _from_environment()


def array_share() -> tuple[int, int]:
    """Returns the index of this task and the number of tasks of a Slurm array; (0, 1) elsewhere.

    Raises ConfigError if the tasks are not numbered regularly.
    """
    if not {"SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"} <= set(os.environ):
        return 0, 1
    task, count = int(os.environ["SLURM_ARRAY_TASK_ID"]), int(os.environ["SLURM_ARRAY_TASK_COUNT"])
    first, step = (int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", value)) for name, value in (("MIN", 0), ("STEP", 1)))
    index, rest = divmod(task - first, step)
    if rest or not 0 <= index < count:
        raise ConfigError(
            f"SLURM_ARRAY_TASK_ID is {task}, which is none of {count} tasks numbered regularly from {first}: use an "
            f"array such as --array=0-{count - 1}, or name the share of each task with --share INDEX/COUNT."
        )
    return index, count


def use_own_accelerator(config: ShareConfig) -> None:
    """Restricts this process to one of the GPUs of its machine, if several processes share the work.

    It is the one with the index of the process on this machine. Without this, every process would compute on the first
    GPU, and reserve memory on all of them. Must be called before JAX is used. A single GPU per process, as with
    ``srun --gpus-per-task=1``, and a choice by ``JAX_CUDA_VISIBLE_DEVICES`` are respected.
    """
    index, count = share(config)
    num_gpus = _num_visible_gpus()
    if count < 2 or num_gpus < 2 or "JAX_CUDA_VISIBLE_DEVICES" in os.environ:
        return
    import jax

    local = os.environ.get("SLURM_LOCALID", os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", ""))
    own = int(local) if local and config.processes < 2 else index
    jax.config.update("jax_cuda_visible_devices", str(own % num_gpus))
    jax.config.update("jax_rocm_visible_devices", str(own % num_gpus))


def _num_visible_gpus() -> int:
    """Returns the number of GPUs that this process can see; JAX counts them from 0."""
    for variable in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        if variable in os.environ:
            return len([device for device in os.environ[variable].split(",") if device])
    return len(list(Path("/dev").glob("nvidia[0-9]*"))) or len(list(Path("/dev/dri").glob("renderD*")))


def _from_environment() -> tuple[int, int]:
    """Returns index and number of processes under Slurm or Open MPI; (0, 1) elsewhere."""
    # A Slurm batch script is a single process and has most of these variables; only srun sets SLURM_STEP_NODELIST.
    if {"SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"} <= set(os.environ):
        return int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    if {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"} <= set(os.environ):
        return int(os.environ["OMPI_COMM_WORLD_RANK"]), int(os.environ["OMPI_COMM_WORLD_SIZE"])
    return 0, 1
