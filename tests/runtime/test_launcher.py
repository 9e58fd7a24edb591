"""Number and index of processes that a launcher started."""

from __future__ import annotations

import jax
import pytest

from psla_jax.config import ConfigError, ShareConfig
from psla_jax.runtime import launcher

SLURM = {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4"}
MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in (*SLURM, *MPI, *POD):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "several", "share"),
    [
        ({}, False, (0, 1)),
        (SLURM, True, (3, 4)),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False, (0, 1)),
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, False, (0, 1)),  # a batch script without srun
        (MPI, True, (1, 2)),
        (POD, True, (0, 1)),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False, (0, 1)),  # any pod
    ],
)
def test_launchers_are_understood(monkeypatch, environment, several, share):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launcher.several() is several
    assert launcher.share(ShareConfig()) == share
    assert launcher.share(ShareConfig(processes=5, index=4)) == (4, 5)


@pytest.mark.parametrize(
    ("environment", "config", "device"),
    [
        (
            SLURM | {"CUDA_VISIBLE_DEVICES": "4,5,6,7"},
            ShareConfig(),
            "1",
        ),  # the third process, the second on its machine
        (SLURM | {"CUDA_VISIBLE_DEVICES": "2"}, ShareConfig(), None),  # srun --gpus-per-task=1
        (SLURM | {"SLURM_LOCALID": "5", "CUDA_VISIBLE_DEVICES": "0,1"}, ShareConfig(), "1"),
        (MPI | {"ROCR_VISIBLE_DEVICES": "0,1"}, ShareConfig(), "1"),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, ShareConfig(processes=4, index=3), "3"),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, ShareConfig(), None),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "0,1", "JAX_CUDA_VISIBLE_DEVICES": "0"}, ShareConfig(), None),
        (SLURM | {"CUDA_VISIBLE_DEVICES": ""}, ShareConfig(), None),
    ],
)
def test_processes_that_share_work_use_the_gpu_of_their_index_on_the_machine(monkeypatch, environment, config, device):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    chosen = {}
    monkeypatch.setattr(jax.config, "update", chosen.__setitem__)
    launcher.use_own_accelerator(config)
    expected = {f"jax_{kind}_visible_devices": device for kind in ("cuda", "rocm")}
    assert chosen == (expected if device else {})


@pytest.mark.parametrize(
    ("task", "first", "step", "count", "share"),
    [
        ("0", "0", "1", "4", (0, 4)),
        ("3", "0", "1", "4", (3, 4)),
        ("7", "1", "3", "3", (2, 3)),
        ("5", "5", "1", "1", (0, 1)),
    ],
)
def test_the_tasks_of_a_slurm_array_share_the_work(monkeypatch, task, first, step, count, share):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
    assert launcher.array_share() == (0, 1)
    for name, value in (("MIN", first), ("STEP", step), ("COUNT", count)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert launcher.array_share() == share


def test_an_irregular_slurm_array_is_an_error(monkeypatch):
    for name, value in (("ID", "7"), ("MIN", "1"), ("COUNT", "3")):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    with pytest.raises(ConfigError, match=r"SLURM_ARRAY_TASK_ID is 7, which is none of 3 tasks .*--array=0-2"):
        launcher.array_share()
