"""What matters of a compiled program: traffic, work, collectives, convolutions, precision."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from psla_jax.plan.devices import EXACT, Device
from psla_jax.plan.hlo import Instruction, Program
from psla_jax.plan.traffic import Kernel, kernels, product_flops, results, unknown_loops

FRONTEND = "_log_mel"
"""Part of the scope of the frontend's instructions (:mod:`psla_jax.audio.frontend`), which is computed exactly."""
FORWARD, INPUT_GRADIENT, FILTER_GRADIENT = "forward", "input gradient", "filter gradient"
AS_FORWARD = "filter gradient as forward"
"""A filter gradient for which cuDNN is asked as a forward convolution with activations as its kernel: it has only
fallbacks for that."""


@dataclass(frozen=True)
class Collective:
    """Collective operations of one kind."""

    number: int
    nbytes: int
    """Bytes of their operands on one device."""


@dataclass(frozen=True)
class Summary:
    """Counts for one device and one run of a program."""

    kernels: int
    """Number of launches, library calls included."""
    read: float
    """Bytes."""
    written: float
    flops: dict[str, float]
    """Of products and convolutions, by the type of their operands, see :attr:`psla_jax.plan.devices.Device.peak`."""
    collectives: dict[str, Collective]
    convolutions: dict[str, int]
    """Number of cuDNN's convolutions, by kind."""
    products: dict[str, int]
    """Number of products and convolutions outside the frontend, by type and precision, as in ``f32 default``."""
    float64: int
    """Number of kernels outside the frontend that compute in float64."""
    callbacks: int
    """Number of calls of the host."""
    num_outputs: int
    num_donated: int
    unknown_loops: int

    @property
    def moved(self) -> float:
        """Bytes read and written."""
        return self.read + self.written

    def memory_bound(self, device: Device) -> float:
        """Returns the seconds that the traffic takes at least."""
        return self.moved / device.bandwidth

    def compute_bound(self, device: Device) -> float:
        """Returns the seconds that the products take at least."""
        return sum(flops / device.peak_of(dtype) for dtype, flops in self.flops.items())


def summarise(program: Program) -> Summary:
    """Returns the summary of a compiled program."""
    launched = kernels(program)
    flops: Counter[str] = Counter()
    for kernel in launched:
        if kernel.flops:
            flops[_product_type(kernel)] += kernel.times * kernel.flops  # type: ignore[assignment]
    return Summary(
        kernels=sum(kernel.times for kernel in launched),
        read=sum(kernel.times * kernel.read for kernel in launched),
        written=sum(kernel.times * kernel.written for kernel in launched),
        flops=dict(flops),
        collectives=_collectives(launched),
        convolutions=dict(Counter(kind for kernel in launched if (kind := convolution_kind(kernel)))),
        products=dict(_products(program)),
        float64=sum(kernel.times for kernel in launched if "f64" in kernel.dtypes and FRONTEND not in kernel.scope),
        callbacks=sum(_calls_host(instruction) for _, instruction in program.instructions()),
        num_outputs=program.num_outputs,
        num_donated=program.num_donated,
        unknown_loops=unknown_loops(program),
    )


def convolution_kind(kernel: Kernel) -> str:
    """Returns what a call of cuDNN computes; empty for any other kernel.

    A forward convolution in the backward pass is the gradient of an input, or that of a filter if its result is smaller
    than both of its operands, which are activations then.
    """
    target = kernel.instruction.target
    if "cudnn$conv" not in target:
        return ""
    if "BackwardFilter" in target:
        return FILTER_GRADIENT
    if "BackwardInput" in target:
        return INPUT_GRADIENT
    if not is_backward(kernel.scope):
        return FORWARD
    smaller = results(kernel.instruction)[0].size < min(operand.size for operand in kernel.operands[:2])
    if smaller:
        return AS_FORWARD
    return FORWARD if "rematted_computation" in kernel.scope else INPUT_GRADIENT


def is_backward(scope: str) -> bool:
    """Returns whether a scope is that of a backward pass."""
    return "transpose(" in scope


def _collectives(launched: Iterable[Kernel]) -> dict[str, Collective]:
    found: dict[str, Collective] = {}
    for kernel in launched:
        if name := kernel.collective:
            known = found.get(name, Collective(0, 0))
            size = kernel.times * sum(operand.nbytes for operand in kernel.operands)
            found[name] = Collective(known.number + kernel.times, known.nbytes + size)
    return found


def _products(program: Program) -> Counter[str]:
    """Counts the products and convolutions outside the frontend by the type of their operands and their precision."""
    found: Counter[str] = Counter()
    for computation, instruction in program.instructions():
        if product_flops(computation, instruction) and FRONTEND not in instruction.scope:
            dtype = computation.operands(instruction)[0].outputs[0].dtype
            found[f"{dtype} {precision(instruction)}"] += 1
    return found


def precision(instruction: Instruction) -> str:
    """Returns the precision of a product, such as ``default`` or ``highest``; on GPUs, default float32 is TF32."""
    match = re.search(r'operand_precision"?[=:][{\[]"?(\w+)', instruction.attributes)
    return match[1].lower() if match else "default"


def _product_type(kernel: Kernel) -> str:
    """Returns the widest floating-point type among the operands of a product, and whether it is computed exactly."""
    dtypes = {array.dtype for operand in kernel.operands for array in operand.outputs}
    dtype = next((dtype for dtype in ("f64", "f32", "bf16", "f16") if dtype in dtypes), "f32")
    return EXACT if dtype == "f32" and precision(kernel.instruction) == "highest" else dtype


def _calls_host(instruction: Instruction) -> bool:
    operation, target = instruction.operation, instruction.target.lower()
    return (
        operation in ("infeed", "outfeed") or "callback" in target or "is_host_transfer=true" in instruction.attributes
    )
