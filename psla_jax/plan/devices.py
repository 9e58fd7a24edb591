"""Accelerators that a training can be planned for: their limits, and their description for XLA's compiler.

Sources: for NVIDIA GPUs the target descriptions of OpenXLA (``xla/backends/gpu/target_config/specs``), and the vendors'
data sheets for the peaks (dense, without sparsity); for TPUs the pages of Google Cloud on v5e and v6e.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GPU_SHARE = 0.75
"""Share of a GPU's memory that JAX allocates, unless XLA_PYTHON_CLIENT_MEM_FRACTION names another one."""


EXACT = "f32 highest"
"""Products of float32 at the highest precision, which are not computed in TF32."""


class PlanError(ValueError):
    """A plan that cannot be made; the message says why."""


class PlanTimeout(PlanError):
    """A program that takes too long to compile."""


@dataclass(frozen=True)
class Device:
    """An accelerator, with its bandwidth in bytes per second and its peaks in operations per second."""

    title: str
    memory: int
    """Bytes."""
    bandwidth: float
    peak: dict[str, float]
    """Of matrix products, by the type of their operands: ``f32`` (TF32 on GPUs), ``bf16``, and on GPUs ``f64`` and
    :data:`EXACT`."""
    usable: float = 1.0
    """Share of the memory that JAX uses by default."""
    links: float = 0.0
    """Bytes per second in each direction to the other devices of a machine of eight; 0 if devices form no machines."""

    def peak_of(self, dtype: str) -> float:
        """Returns the peak of a type; for one that is not listed, that of ``f32``."""
        return self.peak.get(dtype, self.peak["f32"])

    def topology(self, devices: int) -> tuple[str, dict[str, Any]]:
        """Returns platform and options of ``jax.experimental.topologies.get_topology_desc`` for a number of devices.

        Raises PlanError if they cannot be connected.
        """
        raise PlanError(f"{self.title} has no compiler: choose another device.")


@dataclass(frozen=True)
class Gpu(Device):
    """An NVIDIA GPU, with the facts by which XLA chooses among kernels."""

    usable: float = GPU_SHARE
    links: float = 450e9
    """NVLink of the fourth generation, of an H100 or H200."""
    capability: int = 9
    """Major compute capability."""
    cores: int = 132
    fpus_per_core: int = 128
    clock_ghz: float = 1.98
    shared_memory: int = 233472
    """Bytes per core; a block can have 1 KiB less."""
    l2_cache: int = 52428800

    def topology(self, devices: int) -> tuple[str, dict[str, Any]]:
        return "cuda", {"topology": f"1x1x{devices}", "target_config": self.target_config}

    @property
    def target_config(self) -> str:
        """The text of XLA's ``GpuTargetConfigProto``."""
        return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {self.shared_memory - 1024}
  shared_memory_per_core: {self.shared_memory} core_count: {self.cores} fpus_per_core: {self.fpus_per_core}
  memory_bandwidth: {self.bandwidth:.0f} l2_cache_size: {self.l2_cache} clock_rate_ghz: {self.clock_ghz}
  device_memory_size: {self.memory} cuda_compute_capability {{ major: {self.capability} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{self.title}"
"""


@dataclass(frozen=True)
class Tpu(Device):
    """A Cloud TPU chip of one generation."""

    generation: str = "v5e"

    def topology(self, devices: int) -> tuple[str, dict[str, Any]]:
        grids = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
        if devices not in grids:
            raise PlanError(f"{devices} TPUs form no slice: use one of {', '.join(map(str, grids))}.")
        options: dict[str, Any] = {"topology_name": f"{self.generation}:{grids[devices]}"}
        return "tpu", options | ({"chips_per_host_bounds": (1, 1, 1)} if devices == 1 else {})


_A100_PEAK = {"f32": 156e12, "bf16": 312e12, "f64": 19.5e12, EXACT: 19.5e12}
_HOPPER_PEAK = {"f32": 494e12, "bf16": 989e12, "f64": 67e12, EXACT: 67e12}
_B200_PEAK = {"f32": 1.1e15, "bf16": 2.25e15, "f64": 37e12, EXACT: 75e12}

DEVICES: dict[str, Device] = {
    "a100": Gpu(
        "NVIDIA A100-SXM4-80GB", 85100068864, 2.03904e12, _A100_PEAK, links=300e9, capability=8,
        cores=108, fpus_per_core=64, clock_ghz=1.41, shared_memory=167936, l2_cache=41943040,
    ),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 84942979072, 3.35232e12, _HOPPER_PEAK),
    "h200": Gpu("NVIDIA H200 141GB HBM3e", 151397597184, 4.8e12, _HOPPER_PEAK),
    "b200": Gpu(
        "NVIDIA B200", 191514411008, 7.67232e12, _B200_PEAK, links=900e9, capability=10,
        cores=148, clock_ghz=1.965, l2_cache=132644864,
    ),
    "v5e": Tpu("TPU v5e", 16 << 30, 0.82e12, {"f32": 197e12, "bf16": 197e12}, generation="v5e"),
    "v6e": Tpu("TPU v6e", 32 << 30, 1.64e12, {"f32": 918e12, "bf16": 918e12}, generation="v6e"),
}  # fmt: skip
"""The devices by the names that ``psla plan --device`` takes."""


def find_device(name: str) -> Device:
    """Returns a device by its name; raises PlanError if it is unknown."""
    if name not in DEVICES:
        raise PlanError(f"--device is {name!r}, which is unknown: choose one of {', '.join(DEVICES)}.")
    return DEVICES[name]
