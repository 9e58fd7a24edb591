"""Kernels of a compiled program, and the bytes and floating-point operations of each, read off its text.

A kernel reads each of its operands once and writes its results once. Of an operand, a fused kernel reads only the
elements that its result needs: the rows of a slice, for example. What a cache saves or repeats is not modelled.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from psla_jax.plan.hlo import Array, Computation, Instruction, Program

FREE = {
    "parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all", "partition-id", "replica-id",
    "opt-barrier", "add-dependency", "domain",
}  # fmt: skip
"""Operations without a kernel."""
COLLECTIVES = (
    "all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute", "collective-broadcast",
    "ragged-all-to-all",
)  # fmt: skip
_VIEWS = {"bitcast", "reshape", "get-tuple-element"}
_PICKING = {"slice", "dynamic-slice", "gather"}
"""Operations that read as many elements of their first operand as they return."""
_WHOLE = {
    "dot",
    "convolution",
    "scatter",
    "sort",
    "reduce-window",
    "select-and-scatter",
    "custom-call",
    "fft",
    "map",
    "fusion",
}
"""Operations that read all of their operands."""


@dataclass(frozen=True)
class Kernel:
    """A kernel, library call or collective operation of a program."""

    instruction: Instruction
    operands: tuple[Instruction, ...]
    times: int
    """Number of launches per run of the program."""
    read: float
    """Bytes per launch."""
    written: float
    flops: float
    """Of products and convolutions, per launch."""
    dtypes: frozenset[str]
    """Types of everything that it computes."""
    scope: str
    """See :attr:`psla_jax.plan.hlo.Instruction.scope`."""

    @property
    def moved(self) -> float:
        """Bytes read and written in all launches."""
        return self.times * (self.read + self.written)

    @property
    def collective(self) -> str:
        """Name of the collective operation that it starts; empty for other kernels."""
        name = self.instruction.operation.removesuffix("-start")
        return name if name in COLLECTIVES else ""


def kernels(program: Program) -> list[Kernel]:
    """Returns the kernels of a program in the order of their launches.

    A loop whose number of iterations the compiler does not know counts once, see :func:`unknown_loops`. Of the branches
    of a condition, the one that moves most counts.
    """
    return list(_walk(program, program.entry, 1))


def unknown_loops(program: Program) -> int:
    """Returns the number of loops whose number of iterations the compiler does not know."""
    return sum(i.operation == "while" and i.trip_count is None for _, i in program.instructions())


def _walk(program: Program, computation: Computation, times: int) -> Iterator[Kernel]:
    for instruction in computation.instructions:
        operation = instruction.operation
        if operation in FREE or operation.endswith(("-done", "-update")):
            continue
        if operation == "while":
            body = program.computations[instruction.called("body")]
            yield from _walk(program, body, times * (instruction.trip_count or 1))
        elif operation == "conditional":
            branches = [list(_walk(program, program.computations[name], times)) for name in instruction.branches]
            yield from max(branches, key=lambda branch: sum(kernel.moved for kernel in branch), default=[])
        elif operation == "call":
            yield from _walk(program, program.computations[instruction.called("to_apply")], times)
        elif operation == "async-start" and instruction.called("calls"):
            yield from _walk(program, program.computations[instruction.called("calls")], times)
        else:
            yield _kernel(program, computation, instruction, times)


def _kernel(program: Program, computation: Computation, instruction: Instruction, times: int) -> Kernel:
    operands = computation.operands(instruction)
    dtypes = {array.dtype for i in (instruction, *operands) for array in i.outputs}
    scope = instruction.scope
    if instruction.operation == "fusion":
        fused = program.computations[instruction.called("calls")]
        read, written = fusion_traffic(fused)
        flops = _fused_flops(program, fused)
        dtypes |= {array.dtype for i in fused.instructions for array in i.outputs}
        scope = scope or next((i.scope for i in reversed(fused.instructions) if i.scope), "")
    else:
        read, written = _traffic(instruction, operands)
        flops = product_flops(computation, instruction)
    return Kernel(instruction, tuple(operands), times, read, written, flops, frozenset(dtypes), scope)


def _fused_flops(program: Program, fused: Computation) -> float:
    """Returns the operations of the products in a fused computation and in those that it contains."""
    inner = (program.computations[i.called("calls")] for i in fused.instructions if i.operation == "fusion")
    own = sum(product_flops(fused, i) for i in fused.instructions)
    return own + sum(_fused_flops(program, computation) for computation in inner)


def _traffic(instruction: Instruction, operands: list[Instruction]) -> tuple[float, float]:
    """Returns the bytes that an operation by itself reads and writes."""
    operation, read = instruction.operation, sum(operand.traffic for operand in operands)
    if operation == "dynamic-update-slice":  # In place.
        return operands[1].traffic, operands[1].traffic
    if operation in _PICKING:
        return instruction.nbytes + sum(operand.traffic for operand in operands[1:]), instruction.traffic
    if operation == "copy-start":  # Its result is a tuple of the copy, the operand and a context.
        return read, instruction.outputs[0].traffic
    if operation == "all-gather-start":
        return read, max(array.traffic for array in instruction.outputs)
    if operation.endswith("-start"):
        return read, read
    return read, sum(array.traffic for array in results(instruction))


def results(instruction: Instruction) -> tuple[Array, ...]:
    """Returns the outputs of an instruction without the workspace of a library, which follows them as bytes."""
    outputs = instruction.outputs
    if instruction.operation == "custom-call" and len(outputs) > 1 and outputs[-1].dtype in ("s8", "u8"):
        return outputs[:-1]
    return outputs


def fusion_traffic(fused: Computation) -> tuple[float, float]:
    """Returns the bytes that a fused computation reads from its parameters, and those that it writes."""
    roots = fused.operands(fused.root) if fused.root.operation == "tuple" else [fused.root]
    needed: dict[str, float] = defaultdict(float)
    for root in roots:
        needed[root.name] = root.size
    for instruction in reversed(fused.instructions):
        if instruction.operation in ("parameter", "constant", "iota") or needed[instruction.name] <= 0:
            continue
        for position, operand in enumerate(fused.operands(instruction)):
            share = _needed(instruction, needed[instruction.name], position, operand.size)
            needed[operand.name] = min(operand.size, needed[operand.name] + share)
    parameters = (i for i in fused.instructions if i.operation == "parameter")
    read = sum(i.traffic * needed[i.name] / i.size for i in parameters if i.size)
    return read, sum(_written(fused, root) for root in roots)


def _needed(instruction: Instruction, needed: float, position: int, full: int) -> float:
    """Returns how many elements of an operand are read for `needed` elements of the result.

    Args:
        instruction: the operation.
        needed: number of elements of its result that are computed.
        position: index of the operand.
        full: number of elements of the operand.
    """
    operation, part = instruction.operation, needed / max(instruction.size, 1)
    if operation in _PICKING:
        return needed if position == 0 else full
    if operation == "dynamic-update-slice":
        return 0 if position == 0 else full
    if operation == "reduce":
        return full * min(1.0, part * len(instruction.outputs))
    if operation in _WHOLE:
        return full
    if operation == "concatenate":
        return full * part
    return min(full, needed)


def _written(fused: Computation, root: Instruction) -> float:
    """Returns the bytes that a root writes: those of the update if it updates an array in place."""
    source = root
    while source.operation in _VIEWS and source.operands:
        source = fused.operands(source)[0]
    return fused.operands(source)[1].traffic if source.operation == "dynamic-update-slice" else root.traffic


def product_flops(computation: Computation, instruction: Instruction) -> float:
    """Returns the floating-point operations of a matrix product or convolution; 0 for any other instruction."""
    if instruction.operation == "dot":
        contracted = instruction.numbers("lhs_contracting_dims")
    elif instruction.operation == "custom-call" and "cublas" in instruction.target:
        numbers = instruction.backend_config.get("gemm_backend_config", {}).get("dot_dimension_numbers", {})
        contracted = tuple(map(int, numbers.get("lhs_contracting_dimensions", ())))
    elif instruction.operation == "convolution" or "$conv" in instruction.target:
        return _convolution_flops(computation, instruction)
    else:
        return 0.0
    left = computation.operands(instruction)[0].outputs[0].dimensions
    return 2.0 * instruction.outputs[0].size * math.prod(left[axis] for axis in contracted)


def _convolution_flops(computation: Computation, instruction: Instruction) -> float:
    """Returns twice the number of products of a convolution, without those with padding and with inserted zeros.

    The gradients have the same products as the convolution from image to output.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        return 0.0
    first, second = (operand.outputs[0] for operand in computation.operands(instruction)[:2])
    image, kernel, output = first, second, instruction.outputs[0]
    if "BackwardFilter" in instruction.target:
        kernel, output = output, second
    elif "BackwardInput" in instruction.target:
        image, output = output, first
    window = _window(instruction.attributes)
    products = 1
    for axis, (size, stride, low, image_dilation, kernel_dilation) in enumerate(window):
        inputs = image.dimensions[labels[1].index(str(axis))]
        outputs = output.dimensions[labels[3].index(str(axis))]
        starts = [position * stride - low for position in range(outputs)]
        reads = (start + tap * kernel_dilation for start in starts for tap in range(size))
        products *= sum(0 <= read <= (inputs - 1) * image_dilation and read % image_dilation == 0 for read in reads)
    sums = output.dimensions[labels[3].index("b")] * output.dimensions[labels[3].index("f")]
    return 2.0 * sums * kernel.dimensions[labels[2].index("i")] * products


def _window(attributes: str) -> list[tuple[int, int, int, int, int]]:
    """Returns size, stride, padding before, and dilation of image and kernel for every spatial axis of a window."""
    match = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in match[1].split()) if match and match[1] else {}
    sizes = [int(n) for n in fields["size"].split("x")] if "size" in fields else []

    def values(name: str, default: int) -> list[int]:
        texts = fields[name].split("x") if name in fields else [str(default)] * len(sizes)
        return [int(text.partition("_")[0]) for text in texts]

    names = ("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1)
    return list(zip(sizes, *(values(name, default) for name, default in names)))
