"""Parser of the text of a compiled XLA program (optimised HLO)."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64", "c64"), 8),
    "c128": 16,
}
"""Bytes of an element by its type; other types, such as tokens, occupy no memory."""

_ARRAY = re.compile(r"\b([a-z]+\d*[a-z\d]*)\[([\d,]*)\](\{[^}]*\})?")
_ON_CHIP = re.compile(r"T\(.*S\(1\)")
"""Layouts of TPUs have tiles, T(8,128), and their memory space 1 is on the chip; on GPUs, the number means another."""
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_OPERATION = re.compile(r"\s*([\w\-]+)\(")
_NAME = re.compile(r"%([\w.\-]+)")


class HloError(ValueError):
    """A text that is no compiled program."""


@dataclass(frozen=True)
class Array:
    """Type and dimensions of an array in a program."""

    dtype: str
    dimensions: tuple[int, ...]
    on_chip: bool = False
    """Whether it is in the fast memory of a TPU, whose traffic does not count."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dimensions)

    @property
    def nbytes(self) -> int:
        """Bytes, without the padding of a tiled layout."""
        return BYTES[self.dtype] * self.size

    @property
    def traffic(self) -> int:
        """Bytes that reading or writing it moves."""
        return 0 if self.on_chip else self.nbytes


def arrays(text: str) -> tuple[Array, ...]:
    """Returns the arrays of a shape such as ``f32[8,16]{1,0}`` or ``(f32[8]{0}, s8[4]{0})``."""
    return tuple(
        Array(dtype, tuple(int(n) for n in dimensions.split(",") if n), bool(_ON_CHIP.search(layout)))
        for dtype, dimensions, layout in _ARRAY.findall(text)
        if dtype in BYTES
    )


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    operation: str
    outputs: tuple[Array, ...]
    operands: tuple[str, ...]
    """Names of the instructions in the same computation whose results it takes."""
    attributes: str
    """The text after the operands."""
    is_root: bool = False

    @property
    def size(self) -> int:
        """Number of elements of all outputs."""
        return sum(array.size for array in self.outputs)

    @property
    def nbytes(self) -> int:
        """Bytes of all outputs."""
        return sum(array.nbytes for array in self.outputs)

    @property
    def traffic(self) -> int:
        """Bytes that reading or writing all outputs moves."""
        return sum(array.traffic for array in self.outputs)

    @functools.cached_property
    def scope(self) -> str:
        """Where the program comes from: the path of functions and transformations that JAX records; may be empty."""
        match = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return match[1] if match else ""

    @functools.cached_property
    def target(self) -> str:
        """Library function of a custom call, such as ``__cudnn$convForward``."""
        match = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return match[1] if match else ""

    def called(self, attribute: str) -> str:
        """Returns the name of the computation that an attribute such as ``calls`` names; empty if there is none."""
        match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return match[1] if match else ""

    def numbers(self, attribute: str) -> tuple[int, ...]:
        """Returns the numbers of an attribute such as ``lhs_contracting_dims={1}``; empty if there are none."""
        match = re.search(rf"\b{attribute}={{?([\d,x]*)", self.attributes)
        return tuple(int(n) for n in re.findall(r"\d+", match[1])) if match else ()

    @functools.cached_property
    def backend_config(self) -> dict[str, Any]:
        """Settings of the backend; empty if there are none."""
        _, found, text = self.attributes.partition("backend_config=")
        if not found or not text.startswith("{"):
            return {}
        return json.JSONDecoder().raw_decode(text)[0]

    @property
    def trip_count(self) -> int | None:
        """Number of iterations of a while loop, if the compiler knows it."""
        known = self.backend_config.get("known_trip_count", {}).get("n")
        return None if known is None else int(known)

    @property
    def branches(self) -> list[str]:
        """Names of the computations of a conditional."""
        match = re.search(r"branch_computations={([^}]*)}", self.attributes)
        both = [self.called("true_computation"), self.called("false_computation")]
        return _NAME.findall(match[1]) if match else [name for name in both if name]


@dataclass(frozen=True)
class Computation:
    """The instructions of a computation, in an order in which each follows its operands."""

    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @functools.cached_property
    def root(self) -> Instruction:
        return next(i for i in reversed(self.instructions) if i.is_root)

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """Returns the instructions whose results an instruction takes."""
        return [self.by_name[name] for name in instruction.operands]


@dataclass(frozen=True)
class Program:
    """A compiled program."""

    computations: dict[str, Computation]
    entry: Computation
    num_donated: int
    """Number of outputs that lie in the memory of an argument."""

    @property
    def num_outputs(self) -> int:
        """Number of arrays that the program returns."""
        return len(self.entry.root.outputs)

    def instructions(self) -> Iterator[tuple[Computation, Instruction]]:
        """Yields every instruction of the program with its computation."""
        for computation in self.computations.values():
            for instruction in computation.instructions:
                yield computation, instruction


def parse(text: str) -> Program:
    """Parses the text of ``jax.stages.Compiled.as_text``; raises HloError if it has no entry computation."""
    computations: dict[str, Computation] = {}
    name, entry, lines = "", "", list[Instruction]()
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name, lines = match[2], []
            entry = name if match[1] else entry
        elif line.startswith("}") and name:
            computations[name], name = Computation(tuple(lines)), ""
        elif name and (instruction := _parse_instruction(line)):
            lines.append(instruction)
    if entry not in computations:
        raise HloError("the text has no entry computation: give that of a compiled program.")
    header = text[: text.find("\n")]
    return Program(computations, computations[entry], len(re.findall(r"\{\d*\}: \(\d+, \{", header)))


def _parse_instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if match is None:
        return None
    # Shapes are tuples in parentheses, or end at a blank; layouts may have parentheses, too.
    end = _closing(line, match.end()) if line[match.end()] == "(" else line.index(" ", match.end())
    operation = _OPERATION.match(line, end)
    if operation is None:
        return None
    stop = _closing(line, operation.end() - 1)
    return Instruction(
        match[2],
        operation[1],
        arrays(line[match.end() : end]),
        tuple(_NAME.findall(line[operation.end() : stop])),
        line[stop:],
        bool(match[1]),
    )


def _closing(line: str, start: int) -> int:
    """Returns the index behind the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(line, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    raise HloError(f"a parenthesis is not closed in {line.strip():.80}: give the whole text.")
