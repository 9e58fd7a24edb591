"""Compares the speed and memory of this package with the reference implementation in PyTorch.

    python scripts/benchmark.py [--part train_step_b8] [--rounds 5] [--json]

Every implementation measures each part in a process of its own. The processes take turns: a round is one measurement of
each, and the table lists the medians over all rounds. ``released`` is the official architecture as its authors run it
(eager mode, default memory layout), ``tuned`` is optimised PyTorch (channels last, huge pages, torch.compile for
inference). On a GPU, these run there, and PyTorch's convolutions are autotuned. ``onnxruntime`` and ``openvino`` run
the official architecture on the CPU, where they are installed (``pip install '.[benchmark]'``). Scores are compared
before anything is timed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from psla_jax.config import Precision
from psla_jax.runtime import process as runtime

HERE = Path(__file__).resolve().parent
PYTORCH = "released", "tuned"
RUNTIMES = "onnxruntime", "openvino"
RIVALS = ("ours", *PYTORCH, *RUNTIMES)
TOLERANCE = 1e-5
FEED = "feed"
"""Part whose measurements and table are those of benchmark_feed.py."""


@dataclass(frozen=True)
class Part:
    """A measurement, which is a row of the table."""

    name: str
    unit: str
    rivals: tuple[str, ...]
    what: str


PARTS = (
    Part("inference_b1", "s", RIVALS, "B2, 527 classes, 1056 frames, batch 1, per call"),
    Part("inference_b8", "s", RIVALS, "B2, 527 classes, 1056 frames, batch 8, per call"),
    Part("train_step_b8", "s", ("ours", *PYTORCH), "forward, backward and Adam, batch 8, per step"),
    Part("train_step_memory", "B", ("ours", *PYTORCH), "peak memory of a training process, batch 8"),
    Part("frontend", "s", ("ours", "released"), "log-mel of 8 clips of 10 s"),
    Part("host_per_clip", "s", ("ours", "released"), "CPU time of one core per training clip of 10 s"),
    Part("epoch_end", "s", ("ours", "released"), "metrics and scores on disk, 20,000 clips x 527 classes"),
    Part("first_tag", "s", ("ours",), "psla tag on a 10 s file, as a process, second call"),
)


@dataclass(frozen=True)
class Options:
    """Command-line arguments."""

    part: str = ""
    """Name of a single part to measure. Empty: all parts but feed, which has no competitors (benchmark_feed.py)."""
    rounds: int = 5
    """Number of measurements per implementation."""
    json: bool = False
    """Print the results as JSON instead of a table."""
    precision: Precision = "highest"
    """Precision of the networks: highest (float32), or on GPUs also tf32 or bf16."""


@contextmanager
def worker(rival: str, part: str, folder: str, precision: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """Starts a process for one part of one implementation; the function it yields takes one measurement per call."""
    environment = dict(os.environ)
    if rival != "released":
        environment[runtime.TUNABLES] = f"{runtime.HUGE_PAGES}:{runtime.RETAIN_FREED_MEMORY}"
    command = [sys.executable, str(HERE / "benchmark_rivals.py"), rival, part, folder, precision]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    requests, answers = process.stdin, process.stdout
    assert requests is not None
    assert answers is not None

    def measure() -> dict[str, Any]:
        requests.write("go\n")
        requests.flush()
        line = answers.readline()
        if not line:
            raise SystemExit(f"benchmark: {rival} failed at {part}; see its message above.")
        return json.loads(line)

    try:
        yield measure
    finally:
        requests.close()
        process.wait()


def run_part(part: Part, options: Options, folder: str) -> dict[str, Any]:
    """Measures all implementations in turns and returns a row of the table; the first round is a warm-up."""
    with ExitStack() as stack:
        rivals = {
            rival: stack.enter_context(worker(rival, part.name, folder, options.precision))
            for rival in part.rivals
            if rival not in RUNTIMES or (importlib.util.find_spec(rival) and not runtime.may_use_accelerator())
        }
        first = {rival: measure() for rival, measure in rivals.items()}
        check_scores(part, first, options.precision)
        rounds = [{rival: measure()["value"] for rival, measure in rivals.items()} for _ in range(options.rounds)]
    return row_of(part, rounds)


def check_scores(part: Part, first: dict[str, dict[str, Any]], precision: str) -> None:
    """Exits with an error if the float32 scores of the implementations differ by more than :data:`TOLERANCE`."""
    scores = {rival: result["check"] for rival, result in first.items() if "check" in result}
    for rival, values in scores.items():
        difference = max(abs(a - b) for a, b in zip(values, scores["ours"]))
        if precision == "highest" and not difference <= TOLERANCE:
            raise SystemExit(f"benchmark: {part.name} of {rival} differs from ours by {difference:.1e}.")


def row_of(part: Part, rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Returns the medians of values and ratios. Ratios are taken per round, as the speed of the machine drifts."""
    row: dict[str, Any] = {"part": part.name, "unit": part.unit}
    for rival in RIVALS:
        row[rival] = median(r[rival] for r in rounds) if rival in rounds[0] else None
    for rival in RIVALS[1:]:
        row[f"ratio_{rival}"] = median(r[rival] / r["ours"] for r in rounds) if rival in rounds[0] else None
    return row


def show(rows: list[dict[str, Any]], device: str) -> None:
    """Prints the table."""
    table = Table(title=f"seconds or bytes, medians; ratio = theirs / ours; {device}", title_justify="left")
    measured = [rival for rival in RIVALS if any(row[rival] is not None for row in rows)]
    for column in ("part", *measured, *(f"{rival} / ours" for rival in measured[1:]), "what"):
        table.add_column(column, justify="left" if column in ("part", "what") else "right", no_wrap=column != "what")
    for row, part in zip(rows, (p for p in PARTS if p.name in {r["part"] for r in rows})):
        values = [_format(row[rival], row["unit"]) for rival in measured]
        ratios = [f"{r:.2f}" if (r := row[f"ratio_{rival}"]) is not None else "-" for rival in measured[1:]]
        table.add_row(row["part"], *values, *ratios, part.what)
    Console(width=180 if not sys.stdout.isatty() else None).print(table)


def _format(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{value / 2**30:.2f} GiB" if unit == "B" else f"{value:.4g} s"


def main(options: Options) -> None:
    """Measures the selected parts and prints the results."""
    if options.part == FEED:
        if options != Options(part=FEED):
            raise SystemExit(
                "benchmark: the part feed takes no other option: use scripts/benchmark_feed.py for its own."
            )
        import benchmark_feed  # It needs psutil.

        return benchmark_feed.main(benchmark_feed.Options())
    parts = [part for part in PARTS if options.part in ("", part.name)]
    if not parts:
        raise SystemExit(
            f"benchmark: there is no part {options.part!r}: choose one of {', '.join(p.name for p in PARTS)}, {FEED}."
        )
    with tempfile.TemporaryDirectory() as folder:
        prepared = [sys.executable, str(HERE / "benchmark_rivals.py"), "prepare", "", folder, options.precision]
        device = subprocess.run(prepared, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        rows = []
        for part in parts:
            print(f"{part.name} ...", file=sys.stderr)
            rows.append(run_part(part, options, folder))
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        show(rows, device)
    return None


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
