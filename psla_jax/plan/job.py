"""A program to compile, and the memory that it needs. Without JAX, for the process that asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from psla_jax.config import RunConfig
from psla_jax.plan.devices import Device


@dataclass(frozen=True)
class Memory:
    """Memory of one device for a program, in bytes, as XLA plans it."""

    arguments: int
    """State and batch."""
    outputs: int
    reused: int
    """Bytes of the outputs that lie where an argument was (donated)."""
    working: int
    code: int

    @property
    def total(self) -> int:
        """Memory that a step needs at its peak."""
        return self.arguments + self.outputs - self.reused + self.working + self.code


@dataclass(frozen=True)
class Job:
    """A program to compile, and where to write it."""

    step: str
    """``train`` or ``evaluation``."""
    config: RunConfig
    num_classes: int
    device: Device
    num_devices: int
    out: Path
