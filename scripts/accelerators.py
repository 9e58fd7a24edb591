"""Compiles the training and evaluation step for accelerators that need not be in this machine, and prints their costs.

    python scripts/accelerators.py --model efficientnet-b2 --device h100 a100 --devices 1 8 --precision tf32 bf16
    python scripts/accelerators.py --check

The figures are those of ``psla plan``: compiled, not run. Milliseconds are bytes over bandwidth, and operations over
peak. With ``--check``, the steps of a small network are compiled for two H100s, and properties are verified that a
program must keep; a failed one is a line, and the exit code 1. The compiler is installed in the user's cache directory.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro

from psla_jax.config import (
    DataConfig,
    FrontendConfig,
    ModelConfig,
    OptimizerConfig,
    Precision,
    RunConfig,
    SamplingConfig,
)
from psla_jax.plan.compiler import Compiled
from psla_jax.plan.devices import PlanError, find_device
from psla_jax.plan.report import EVALUATION, TRAIN, Request
from psla_jax.plan.summary import AS_FORWARD

PRODUCTS = {TRAIN: "f32 default", EVALUATION: "f32 highest"}
"""Products outside the frontend: TensorFloat-32 in training, float32 in evaluation."""
METRICS = 2
"""Outputs of a training step besides the state: loss and norm of the gradient."""
TOLERANCE = 0.1
"""Relative difference of the working memory from the recorded one."""


@dataclass(frozen=True)
class Recorded:
    """Figures of a step that ``--record`` measured."""

    working_memory: int
    """Bytes."""
    all_reduces: int


# Renewed by --record.
RECORDED = {
    TRAIN: Recorded(working_memory=31780936, all_reduces=64),
    EVALUATION: Recorded(working_memory=9894416, all_reduces=0),
}


@dataclass(frozen=True)
class Options:
    """What to compile; all combinations of several values are compiled."""

    device: tuple[str, ...] = ("h100",)
    """Kinds of devices: a100, h100, h200, b200, v5e, v6e."""
    devices: tuple[int, ...] = (1,)
    """Numbers of devices."""
    precision: tuple[Precision, ...] = ("tf32",)
    """Precision of training; scores are computed at the highest one."""
    batch_size: tuple[int, ...] = (96,)
    """Clips per step, over all devices."""
    model: str = "efficientnet-b2"
    """Name of the model."""
    frames: int = 1056
    """Number of spectrogram frames per clip."""
    classes: int = 527
    """Number of classes."""
    timeout: float = 1800
    """Seconds for a compilation."""
    keep: str = ""
    """Directory for the texts of the compiled programs; empty to keep none."""
    check: bool = False
    """Check the steps of the small network instead."""
    record: bool = False
    """Write the figures with which --check compares into this file."""

    def request(self, device: str, devices: int, precision: Precision, batch_size: int) -> Request:
        """Returns the plan for one combination."""
        config = RunConfig(
            data=DataConfig(batch_size=batch_size),
            frontend=FrontendConfig(target_length=self.frames),
            model=ModelConfig(name=self.model),
            sampling=SamplingConfig(time_mask=min(192, self.frames)),
            optimizer=OptimizerConfig(precision=precision),
        )
        return Request(config, self.classes, find_device(device), devices, self.timeout)


CHECKED = Options(model="efficientnet-tiny", frames=128).request("h100", 2, "tf32", 8)
"""Small, and with all layers: its last stages have images of four rows, fewer than the rows of a kernel."""


def log(text: str) -> None:
    """Prints a line on standard error."""
    print(text, file=sys.stderr, flush=True)


def compile_both(request: Request) -> dict[str, Compiled]:
    """Compiles both steps at the same time; raises PlanError if one cannot be compiled."""
    request.install(log)
    with ThreadPoolExecutor() as pool:
        return dict(zip(RECORDED, pool.map(lambda step: request.compile(step, log), RECORDED)))


def problems(step: str, compiled: Compiled, recorded: Recorded) -> Iterator[str]:
    """Yields a sentence per property that a step lacks."""
    summary, working = compiled.summary, compiled.memory.working
    if summary.callbacks:
        yield f"it calls the host {summary.callbacks} times: remove callbacks and prints from what is traced."
    kept = summary.num_outputs - summary.num_donated
    if step == TRAIN and kept != METRICS:
        yield f"{kept} of its outputs have memory of their own instead of {METRICS}: the whole state must be donated."
    if others := sorted(set(summary.collectives) - {"all-reduce"}):
        yield f"devices communicate by {', '.join(others)}: batches must stay divided, and the state replicated."
    number = summary.collectives["all-reduce"].number if "all-reduce" in summary.collectives else 0
    if number > recorded.all_reduces:
        yield f"it has {number} all-reduces instead of at most {recorded.all_reduces}."
    if wrong := summary.convolutions.get(AS_FORWARD, 0):
        yield f"{wrong} filter gradients are forward convolutions for cuDNN, for which it has fallbacks only."
    if summary.float64:
        yield f"{summary.float64} kernels outside the frontend compute in float64."
    if other := sorted(set(summary.products) - {PRODUCTS[step]}):
        yield f"products outside the frontend are {', '.join(other)} instead of {PRODUCTS[step]}."
    if abs(working - recorded.working_memory) > TOLERANCE * recorded.working_memory:
        yield (
            f"its working memory is {working:,} bytes, which differs by more than {TOLERANCE:.0%} from "
            f"{recorded.working_memory:,}: run this script with --record if that is intended."
        )


def check() -> int:
    """Prints the problems of the checked steps; returns 1 if there are any. Raises PlanError if one is not compiled."""
    found = compile_both(CHECKED)
    failures = [
        f"accelerators: {step} step for 2 x H100: {problem}"
        for step, compiled in found.items()
        for problem in problems(step, compiled, RECORDED[step])
    ]
    print("\n".join(failures) or "accelerators: both steps for 2 x H100 are as they should be (compiled, not run)")
    return 1 if failures else 0


def record() -> int:
    """Writes the figures of the checked steps into this file."""
    lines = []
    for step, compiled in compile_both(CHECKED).items():
        reductions = compiled.summary.collectives.get("all-reduce")
        number, name = reductions.number if reductions else 0, {TRAIN: "TRAIN", EVALUATION: "EVALUATION"}[step]
        lines.append(f"    {name}: Recorded(working_memory={compiled.memory.working}, all_reduces={number}),\n")
    path = Path(__file__)
    text = re.sub(r"(?<=^RECORDED = \{\n).*?(?=^\}$)", "".join(lines), path.read_text("utf-8"), flags=re.M | re.S)
    path.write_text(text, "utf-8")
    return 0


def table(options: Options) -> int:
    """Prints a row per step; returns 1 if one could not be compiled."""
    if options.keep:
        Path(options.keep).mkdir(parents=True, exist_ok=True)
    print(f"{options.model}, {options.frames} frames, {options.classes} classes; compiled, not run\n")
    print(
        "| step | devices | clips | GB | kernels | GB moved | ms by bandwidth | ms by peak | all-reduces | their MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    code = 0
    combinations = itertools.product(options.device, options.devices, options.precision, options.batch_size)
    for (device, devices, precision, batch_size), step in itertools.product(combinations, (TRAIN, EVALUATION)):
        if step == EVALUATION and precision != options.precision[0]:
            continue  # Scores are computed at the highest precision.
        request = options.request(device, devices, precision, batch_size)
        what = f"{step} {precision if step == TRAIN else 'highest'} | {devices} x {device} | {request.clips(step)}"
        try:
            name = f"{step}-{options.model}-{device}-{devices}-{precision}-{batch_size}.hlo"
            compiled = request.compile(step, log, Path(options.keep) / name if options.keep else None)
            print(f"| {what} | {row(request, compiled)} |", flush=True)
        except PlanError as error:
            print(f"| {what} | {error} |", flush=True)
            code = 1
    return code


def row(request: Request, compiled: Compiled) -> str:
    """Returns the figures of a step as cells of the table."""
    summary, device = compiled.summary, request.device
    reductions = summary.collectives.get("all-reduce")
    cells = (
        f"{compiled.memory.total / 1e9:.2f}",
        f"{summary.kernels}",
        f"{summary.moved / 1e9:.1f}",
        f"{1e3 * summary.memory_bound(device):.1f}",
        f"{1e3 * summary.compute_bound(device):.1f}",
        f"{reductions.number if reductions else 0}",
        f"{reductions.nbytes / 1e6 if reductions else 0:.1f}",
    )
    return " | ".join(cells)


def main(options: Options) -> int:
    """Checks, records or prints the table, and returns the exit code."""
    try:
        if options.record:
            return record()
        return check() if options.check else table(options)
    except PlanError as error:
        log(f"accelerators: {error}")
        return 1 if options.check else 2


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
