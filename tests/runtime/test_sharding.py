"""Tests of psla_jax.runtime.sharding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from psla_jax.runtime.sharding import Placement


@dataclass(frozen=True)
class Device:
    """A device of a host with an NVLink domain (slice) of its own."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100 80GB HBM3"


def test_a_mesh_spans_hosts_with_slices_of_their_own_in_the_order_of_processes() -> None:
    devices = [Device(id, process_index=id // 4, slice_index=id // 4) for id in (5, 0, 7, 2, 1, 4, 3, 6)]
    placement = Placement.over(cast(Any, devices))
    assert placement.platform == "gpu"
    mesh = placement.mesh
    assert mesh.shape == {"data": 8}
    assert [device.id for device in mesh.devices.flat] == list(range(8))


def test_the_process_comes_before_the_number_of_a_device() -> None:
    devices = [Device(id, process_index=process, slice_index=0) for id, process in ((0, 1), (1, 0), (2, 1), (3, 0))]
    mesh = Placement.over(cast(Any, devices)).mesh
    assert [device.id for device in mesh.devices.flat] == [1, 3, 0, 2]
