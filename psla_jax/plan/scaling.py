"""Model of the time that all-reduces add on several devices and machines; nothing in it was measured.

A step takes at least the bound of one device, and besides, without any overlap, its all-reduces: those of synchronised
batch statistics wait for each other. An all-reduce takes a latency, and the time of its bytes. The devices of a machine
add theirs first, then the machines exchange the sums.
"""

from __future__ import annotations

from dataclasses import dataclass

from psla_jax.plan.summary import Collective

DEVICES_PER_MACHINE = 8
NUMBERS = (8, 16, 64)
"""Numbers of devices of the table."""


@dataclass(frozen=True)
class Network:
    """Connection of the devices of a machine, or of machines."""

    latency: float
    """Seconds of an all-reduce of a few bytes."""
    bandwidth: float
    """Bytes per second in each direction, of a device or of a machine."""

    def seconds(self, members: int, reductions: Collective) -> float:
        """Returns the time of all-reduces among devices or machines, in rings: every byte is sent about twice."""
        if members < 2:
            return 0.0
        return reductions.number * self.latency + 2 * (members - 1) / members * reductions.nbytes / self.bandwidth


LATENCY = 15e-6
"""Seconds of an all-reduce of a few bytes in a machine."""
ETHERNET = Network(40e-6, 12.5e9)
"""100 Gb per machine, with RDMA."""


@dataclass(frozen=True)
class Scaling:
    """Estimate for a number of devices with the same clips on each."""

    devices: int
    seconds: float
    """Of a step."""
    communication: float
    """Seconds of it in all-reduces."""

    @property
    def efficiency(self) -> float:
        """Clips per second as a fraction of those of as many devices that do not communicate."""
        return 1.0 - self.communication / self.seconds


def assumptions(links: float) -> str:
    """Returns a line with what :func:`scale` assumes."""
    return (
        f"no overlap; {LATENCY * 1e6:.0f} us and {links / 1e9:.0f} GB/s in machines of {DEVICES_PER_MACHINE}, "
        f"{ETHERNET.latency * 1e6:.0f} us and {ETHERNET.bandwidth / 1e9:.1f} GB/s between them; --model.batch_norm "
        "local exchanges gradients and running statistics only"
    )


def scale(devices: int, bound: float, reductions: Collective, links: float) -> Scaling:
    """Returns the estimate for `devices` devices.

    Args:
        devices: their number; they fill machines of eight.
        bound: seconds that a step takes at least on every device.
        reductions: all-reduces of a step.
        links: bytes per second between the devices of a machine, in each direction.
    """
    machines, own = -(-devices // DEVICES_PER_MACHINE), min(devices, DEVICES_PER_MACHINE)
    communication = Network(LATENCY, links).seconds(own, reductions) + ETHERNET.seconds(machines, reductions)
    return Scaling(devices, bound + communication, communication)
