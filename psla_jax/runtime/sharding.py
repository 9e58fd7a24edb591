"""Data-parallel sharding: one mesh of all devices, replicated state, batches split along their first axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from psla_jax.runtime import distributed
from psla_jax.runtime.fork import require_own_devices

CONTROL = "control"
"""Batch field with each process's control code: 0, or a request to save or stop. The step returns the largest one."""
DEVICE_FIELDS = ("waveform", "num_samples", "labels", "teacher", "taught", "valid", CONTROL)
"""Batch fields that the step needs on the devices; the other ones identify clips and stay on the host."""


@dataclass(frozen=True)
class Placement:
    """Placement of state and batches on a one-dimensional mesh of devices, with the axis ``data``."""

    mesh: Mesh

    @classmethod
    def over(cls, devices: Sequence[jax.Device]) -> Placement:
        """Returns the placement on a mesh of these devices, those of one process beside each other.

        ``jax.make_mesh`` would refuse devices with different ``slice_index``, which GPUs of several hosts have.
        """
        ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
        return cls(Mesh(np.array(ordered), ("data",), axis_types=(AxisType.Auto,)))

    @classmethod
    def over_all_devices(cls) -> Placement:
        """Returns the placement on a mesh of all devices of all processes; raises ForkError in a forked process."""
        require_own_devices()
        return cls.over(jax.devices())

    @property
    def platform(self) -> str:
        """Platform of the devices, for :func:`psla_jax.models.platforms.layers_for`: ``cpu``, ``gpu`` or ``tpu``."""
        return self.mesh.devices.flat[0].platform

    @property
    def replicated(self) -> NamedSharding:
        """Sharding of the state: one copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def split(self) -> NamedSharding:
        """Sharding of batches: rows are divided among the devices."""
        return NamedSharding(self.mesh, PartitionSpec("data"))

    def shard_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Puts the device fields of a batch on the devices. With several processes, each one passes its own rows."""
        return self.shard_rows({k: batch[k] for k in DEVICE_FIELDS if k in batch})

    def shard_rows(self, arrays: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Splits arrays along their first axis. With several processes, each one passes the rows of :meth:`rows`."""
        if distributed.process_count() == 1:
            return jax.device_put(arrays, self.split)
        return {k: jax.make_array_from_process_local_data(self.split, v) for k, v in arrays.items()}

    def replicate(self, tree: Any) -> Any:
        """Puts a copy of arrays that every process has on every device."""
        return jax.device_put(tree, self.replicated)

    def padded_size(self, batch_size: int, accumulate: int = 1) -> int:
        """Returns the least number of rows, from `batch_size` on, that gives `accumulate` microbatches on every device.

        The additional rows are invalid (:func:`psla_jax.data.loader.batches`) and change no result.
        """
        parts = self.mesh.size * accumulate
        return math.ceil(batch_size / parts) * parts

    def rows(self, batch_size: int, accumulate: int = 1) -> range:
        """Returns the rows of a batch, padded to :meth:`padded_size`, that belong to this process."""
        padded = self.padded_size(batch_size, accumulate)
        slices = self.split.addressable_devices_indices_map((padded,)).values()
        rows = sorted(row for index in slices if index is not None for row in range(padded)[index[0]])
        assert rows == list(range(rows[0], rows[-1] + 1)), "the devices of a process are adjacent in the mesh"
        return range(rows[0], rows[-1] + 1)
