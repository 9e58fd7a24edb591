"""Data-parallel sharding: one mesh of all devices, replicated state, batches split along their first axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from psla_jax.config import ConfigError
from psla_jax.runtime import distributed
from psla_jax.runtime.fork import require_own_devices

CONTROL = "control"
"""Batch field with each process's control code: 0, or a request to save or stop. The step returns the largest one."""
DEVICE_FIELDS = ("waveform", "num_samples", "labels", "valid", CONTROL)
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
    def replicated(self) -> NamedSharding:
        """Sharding of the state: one copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def split(self) -> NamedSharding:
        """Sharding of batches: rows are divided among the devices."""
        return NamedSharding(self.mesh, PartitionSpec("data"))

    def shard_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Puts the device fields of a batch on the devices. With several processes, each one passes its own rows."""
        fields = {k: batch[k] for k in DEVICE_FIELDS if k in batch}
        if distributed.process_count() == 1:
            return jax.device_put(fields, self.split)
        return {k: jax.make_array_from_process_local_data(self.split, v) for k, v in fields.items()}

    def replicate(self, tree: Any) -> Any:
        """Puts a copy of arrays that every process has on every device."""
        return jax.device_put(tree, self.replicated)

    def rows(self, batch_size: int) -> range:
        """Returns the rows of a batch that belong to this process."""
        slices = self.split.addressable_devices_indices_map((batch_size,)).values()
        rows = sorted(row for index in slices if index is not None for row in range(batch_size)[index[0]])
        assert rows == list(range(rows[0], rows[-1] + 1)), "the devices of a process are adjacent in the mesh"
        return range(rows[0], rows[-1] + 1)

    def check_batch_size(self, batch_size: int, accumulate: int = 1) -> None:
        """Raises ConfigError if the number of devices does not divide a (micro)batch."""
        devices = self.mesh.size
        if batch_size // accumulate % devices:
            suggestion = max(batch_size // (devices * accumulate), 1) * devices * accumulate
            micro = f" in {accumulate} microbatches (optimizer.accumulate)" if accumulate > 1 else ""
            raise ConfigError(
                f"data.batch_size is {batch_size}{micro}, which {devices} devices do not divide: use {suggestion}, for "
                "example."
            )


def abstract_arrays(tree: Any, sharding: NamedSharding | None = None) -> Any:
    """Returns a tree of ``jax.ShapeDtypeStruct`` with the shapes and types of the leaves."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)
