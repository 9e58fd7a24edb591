"""The plan of a training on devices that are absent, as text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from psla_jax.config import RunConfig
from psla_jax.plan import scaling
from psla_jax.plan.compiler import Compiled, compile_step, compiler_folder
from psla_jax.plan.devices import Device, PlanError, PlanTimeout

TRAIN, EVALUATION = "train", "evaluation"
TITLES = {TRAIN: "training step", EVALUATION: "evaluation step"}
ALIGNMENT = 8
"""The largest batch is rounded to a multiple of so many clips per device."""


@dataclass(frozen=True)
class Request:
    """What to plan."""

    config: RunConfig
    num_classes: int
    device: Device
    num_devices: int
    timeout: float
    """Seconds for a compilation."""

    @property
    def parts(self) -> int:
        """Number of microbatches in a step, over all devices."""
        return self.num_devices * self.config.optimizer.accumulate

    def clips(self, step: str) -> int:
        """Returns the rows of a batch with those that pad it."""
        parts = self.parts if step == TRAIN else self.num_devices
        return math.ceil(self.config.data.batch_size / parts) * parts

    def with_batch_size(self, clips: int) -> Request:
        """Returns the same request for another batch size."""
        config = self.config
        return dataclasses.replace(
            self, config=dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=clips))
        )

    @property
    def memory(self) -> float:
        """Bytes of a device that JAX uses by default."""
        return self.device.memory * self.device.usable

    def install(self, log: Callable[[str], None]) -> None:
        """Installs the compiler, if it is not; raises PlanError if that fails."""
        compiler_folder(self.device.topology(self.num_devices)[0], log)

    def compile(self, step: str, log: Callable[[str], None], keep: Path | None = None) -> Compiled:
        """Compiles a step, and writes the text of the program to `keep`; raises PlanError if that fails."""
        arguments = step, self.config, self.num_classes, self.device, self.num_devices
        return compile_step(*arguments, timeout=self.timeout, log=log, keep=keep)


@dataclass(frozen=True)
class Estimate:
    """The largest batch that fits, by a straight line through the memory of two compiled batch sizes."""

    clips: int
    """Over all devices; 0 if none fits."""
    sizes: tuple[int, int]


def largest_batch(request: Request, compiled: Compiled, log: Callable[[str], None]) -> Estimate:
    """Returns an estimate of the largest batch, from a compiled training step and one of twice or half its size."""
    first = request.clips(TRAIN)
    second = 2 * first if compiled.memory.total < request.memory / 2 or first < 2 * request.parts else first // 2
    second = math.ceil(second / request.parts) * request.parts
    other = request.with_batch_size(second).compile(TRAIN, log)
    slope = (other.memory.total - compiled.memory.total) / (second - first)
    clips = math.floor(first + (request.memory - compiled.memory.total) / slope) if slope > 0 else first
    each = max(clips // request.parts, 0)
    each -= each % ALIGNMENT if each >= ALIGNMENT else 0
    return Estimate(each * request.parts, (min(first, second), max(first, second)))


def plan(request: Request, log: Callable[[str], None], print_: Callable[[str], None], *, largest: bool) -> bool:
    """Compiles both steps and prints the plan; returns whether everything could be compiled.

    Args:
        request: what to plan.
        log: called with lines on the progress.
        print_: called with lines of the plan.
        largest: estimate the largest batch.

    Raises:
        PlanError: the compiler cannot be installed, or the training step cannot be compiled.
    """
    config, device = request.config, request.device
    request.install(log)
    print_(
        f"{config.model.name}, {request.num_classes} classes, {config.frontend.target_length} frames, batch of "
        f"{config.data.batch_size}, {config.optimizer.precision}, on {request.num_devices} x {device.title}"
    )
    print_("Compiled by XLA, not run: bounds are bytes over bandwidth and operations over peak, for one device.")
    if config.distill.active:
        print_("The teacher of distill is left out: it needs memory and time besides.")
    complete = True
    for step in (TRAIN, EVALUATION):
        print_(f"\n{TITLES[step]}")
        try:
            compiled = request.compile(step, log)
            estimate = largest_batch(request, compiled, log) if largest and step == TRAIN else None
        except PlanError as error:
            if step == TRAIN and not isinstance(error, PlanTimeout):
                raise
            print_(f"  {error}")
            complete = False
            continue
        for name, text in rows(request, step, compiled, estimate):
            print_(f"  {name:<22}{text}")
    return complete


def rows(request: Request, step: str, compiled: Compiled, estimate: Estimate | None) -> list[tuple[str, str]]:
    """Returns names and values of the plan of a step."""
    memory, summary, device = compiled.memory, compiled.summary, request.device
    fits = "fits" if memory.total <= request.memory else "DOES NOT FIT"
    bandwidth, compute = summary.memory_bound(device), summary.compute_bound(device)
    share = f" ({device.usable:.0%} of {device.memory / 1e9:.0f}, JAX's default)" if device.usable < 1 else ""
    table = [
        ("memory", f"{_gb(memory.total)}: {fits} in {_gb(request.memory)}{share}"),
        ("", f"{_gb(memory.arguments)} state and batch, {_gb(memory.working)} working memory"),
    ]
    if estimate is not None:
        small, large = estimate.sizes
        table.append(("largest batch", f"{_clips(estimate.clips)}, estimated from batches of {small} and {large}"))
    table += [
        ("bytes moved", f"{_gb(summary.moved)}: {1e3 * bandwidth:.2f} ms at {device.bandwidth / 1e12:.2f} TB/s"),
        ("products", f"{sum(summary.flops.values()) / 1e12:.3g} TFLOP: {1e3 * compute:.2f} ms at the peak"),
        ("clips per second", f"at most {request.clips(step) / max(bandwidth, compute):,.0f}"),
        ("kernels", f"{summary.kernels:,}"),
        ("collectives", _collectives(compiled)),
        ("convolutions", _counts(summary.convolutions) or "none by cuDNN"),
        ("precision", _counts(summary.products) or "no products"),
        ("float64", f"{summary.float64} kernels outside the frontend"),
        ("host", f"{summary.callbacks} calls"),
    ]
    if summary.unknown_loops:
        table.append(("loops", f"{summary.unknown_loops} of unknown length are counted once"))
    return table + (_scaling(request, compiled) if step == TRAIN else [])


def _scaling(request: Request, compiled: Compiled) -> list[tuple[str, str]]:
    """Returns the lines of a model of more devices with as many clips on each.

    There are none without all-reduces, and for devices whose links are not known.
    """
    reductions, links = compiled.summary.collectives.get("all-reduce"), request.device.links
    if reductions is None or not links:
        return []
    summary, device = compiled.summary, request.device
    bound = max(summary.memory_bound(device), summary.compute_bound(device))
    each, lines = request.clips(TRAIN) / request.num_devices, list[tuple[str, str]]()
    for number in scaling.NUMBERS:
        estimate = scaling.scale(number, bound, reductions, links)
        text = (
            f"{1e3 * estimate.seconds:.1f} ms, {1e3 * estimate.communication:.1f} of it in all-reduces: at most "
            f"{number * each / estimate.seconds:,.0f} clips/s, {estimate.efficiency:.0%} of {number} devices"
        )
        lines.append(("a model of scaling" if not lines else "", f"{number} devices: {text}"))
    return [*lines, ("", scaling.assumptions(links))]


def _collectives(compiled: Compiled) -> str:
    found = compiled.summary.collectives.items()
    return ", ".join(f"{each.number} {name} of {each.nbytes / 1e6:.1f} MB in all" for name, each in found) or "none"


def _clips(number: int) -> str:
    return f"about {number:,} clips" if number else "none, not even one clip per device"


def _counts(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in sorted(numbers.items()))


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:.3g} GB"
