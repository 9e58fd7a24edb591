"""Number and index of processes that a launcher started."""

from __future__ import annotations

import pytest

from psla_jax.config import ShareConfig
from psla_jax.runtime import launcher

SLURM = {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4"}
MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
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
