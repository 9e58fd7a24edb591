"""Kills a training with SIGKILL again and again, and compares what it ends with with one that was left alone.

    python scripts/kill.py --kills 50
    python scripts/kill.py --kills 10 --processes 2

Every kill waits for a phase of the run (loader, step, checkpoint, evaluation, aggregation) and a random moment in it.
A run that has come to its end is compared, and another one begun. Exit code 1 if anything differs.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro
from orbax.checkpoint import v1 as ocp
from rich.console import Console
from rich.table import Table

PHASES = ("start", "loader", "step", "checkpoint", "evaluation", "aggregation")
MOST_OF = {"start": 4.0, "loader": 0.02, "step": 0.05, "checkpoint": 0.3, "evaluation": 0.4, "aggregation": 2.0}
"""Seconds that the random moment lies behind the beginning of a phase at most."""
CONFIG = """
from psla_jax.config import (
    AggregationConfig, DataConfig, FrontendConfig, ModelConfig, OptimizerConfig, RunConfig, SamplingConfig,
)
config = RunConfig(
    data=DataConfig(
        train="demo:train", labels="demo:labels", validation="demo:validation", evaluation="demo:evaluation",
        batch_size=64, workers={workers}, preflight=0,
    ),
    frontend=FrontendConfig(target_length=64),
    model=ModelConfig(name="efficientnet-tiny", heads=2),
    sampling=SamplingConfig(freq_mask=24, time_mask=16),
    optimizer=OptimizerConfig(learning_rate=1e-3, epochs=4, warmup_steps=5, decay_start=2, decay_every=1),
    aggregation=AggregationConfig(first=2, last=4),
    checkpoint_every=2,
    bootstrap=20,
)
"""
WATCHED = """
import functools, mmap, os, sys
from psla_jax import experiment, run_checkpoints, shelf, training, watch
page = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 1)
def phase(number, owner, name):
    function = getattr(owner, name)
    @functools.wraps(function)
    def marked(*given, **named):
        before, page[0] = page[0], number
        try:
            return function(*given, **named)
        finally:
            page[0] = before
    setattr(owner, name, marked)
phase(1, watch.Watch, "fetch")
phase(2, training.Trainer, "step")
phase(3, run_checkpoints.RunCheckpoints, "save")
phase(3, run_checkpoints.RunCheckpoints, "wait")
phase(4, shelf.Shelf, "score")
phase(5, experiment, "summarise")
from psla_jax.cli import main
sys.exit(main(["train", "config.py", "--run-dir", *sys.argv[2:]]))
"""


@dataclass(frozen=True)
class Arguments:
    """How often to kill what."""

    kills: int = 50
    """Over all runs together."""
    processes: int = 1
    """Of each run, on this machine."""
    workers: int = 1
    """Loader processes of each."""
    seed: int = 0
    """Of the moments."""
    directory: str = ""
    """Where the runs go; empty for one that is deleted."""
    json: bool = False
    """Print the table as JSON."""


@dataclass
class Tally:
    """What has happened so far."""

    kills: Counter = field(default_factory=Counter)
    restarts: int = 0
    runs: int = 0
    differences: list[str] = field(default_factory=list)
    orphans: int = 0


class Run:
    """One start of a training, of one process or several."""

    def __init__(self, place: Path, name: str, processes: int) -> None:
        self.place, self.name = place, name
        self.pages = [place / f"phase{index}" for index in range(processes)]
        port = _free_port()
        self.parts = [self._started(index, processes, port) for index in range(processes)]
        self.maps = []
        for page in self.pages:
            with open(page, "r+b") as file:
                self.maps.append(mmap.mmap(file.fileno(), 1))

    def _started(self, index: int, processes: int, port: int) -> subprocess.Popen:
        self.pages[index].write_bytes(b"\0")
        together = ["--distributed.coordinator", f"127.0.0.1:{port}", "--distributed.processes", str(processes)]
        together += ["--distributed.index", str(index), "--distributed.timeout", "10"]
        environment = os.environ | {"PSLA_HUGE_PAGES": "0"}
        command = [sys.executable, "-c", WATCHED, str(self.pages[index]), self.name, *(together * (processes > 1))]
        log = open(self.place / f"{self.name}.log", "ab")  # noqa: SIM115 - the process keeps it open
        return subprocess.Popen(
            command, cwd=self.place, env=environment, stdout=log, stderr=log, start_new_session=True
        )

    def phase(self, index: int = 0) -> str:
        """Where a process is."""
        return PHASES[self.maps[index][0]]

    def over(self) -> bool:
        """Whether any process has ended."""
        return any(part.poll() is not None for part in self.parts)

    def end(self) -> list[int]:
        """Waits for all processes; their exit codes."""
        return [part.wait(timeout=600) for part in self.parts]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def orphans(groups: list[int]) -> list[int]:
    """Processes of these sessions that still live some seconds after those that they served."""
    deadline = time.monotonic() + 10
    while True:
        left = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _session(p) in groups]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def _session(process: Path) -> int:
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] == "Z" else int(fields[3])


def kill_once(run: Run, wanted: str, draw: random.Random) -> str | None:
    """Kills one process of a run in the wanted phase, or at any moment; None if the run ended before."""
    victim = draw.randrange(len(run.parts))
    deadline = time.monotonic() + draw.uniform(0, 30) if wanted == "anywhere" else float("inf")
    while not run.over():
        if run.phase(victim) == wanted or time.monotonic() > deadline:
            time.sleep(draw.uniform(0, MOST_OF.get(wanted, 0.0)))
            hit = run.phase(victim)
            if run.over():
                return None
            run.parts[victim].send_signal(signal.SIGKILL)
            return hit
        time.sleep(0.0005)
    return None


def live(place: Path, name: str, arguments: Arguments, draw: random.Random, tally: Tally) -> None:
    """One run from its beginning to its end, killed on the way as long as there are kills left."""
    targets = [*PHASES[1:], "anywhere", "anywhere"]
    while True:
        run = Run(place, name, arguments.processes)
        left = arguments.kills - sum(tally.kills.values())
        hit = kill_once(run, draw.choice(targets), draw) if left > 0 else None
        codes = run.end()
        tally.orphans += len(orphans([part.pid for part in run.parts]))
        if hit is None:
            if any(codes):
                tail = (place / f"{name}.log").read_text(errors="replace")[-2000:]
                sys.exit(f"a run that was not killed ended with {codes}:\n{tail}")
            tally.runs += 1
            return
        tally.kills[hit] += 1
        tally.restarts += 1
        print(f"kill {sum(tally.kills.values())}: {name}, in {hit}", file=sys.stderr, flush=True)


def differences(one: Path, other: Path) -> list[str]:
    """What two finished runs do not have in common, bit for bit."""
    found = []
    tables = [*sorted(path.name for path in one.glob("*.csv")), "summary.json"]
    found += [name for name in tables if (one / name).read_bytes() != (other / name).read_bytes()]
    for path in sorted((one / "scores").glob("*.npz")):
        with np.load(path) as a, np.load(other / "scores" / path.name) as b:
            found += [f"scores/{path.name}: {key}" for key in a.files if not np.array_equal(a[key], b[key])]
    weights = sorted(path.relative_to(one) for path in (one / "models").glob("*/weights"))
    last = max(int(p.name) for p in (one / "checkpoints").iterdir() if p.name.isdigit())
    for part in [*weights, Path("checkpoints", str(last), "model"), Path("checkpoints", str(last), "opt")]:
        found += [str(part)] if not _same(_arrays(one / part), _arrays(other / part)) else []
    return found


def _arrays(place: Path) -> list[np.ndarray]:
    """The arrays that Orbax has written there."""
    import jax

    inside = place.name in ("model", "opt")
    loaded = ocp.load(place.parent.absolute(), checkpointable_name=place.name) if inside else ocp.load(place.absolute())
    return [np.asarray(leaf) for leaf in jax.tree.leaves(loaded)]


def _same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(a.tobytes() == b.tobytes() for a, b in zip(one, other))


def main(arguments: Arguments) -> int:
    """Kills, restarts, compares."""
    place = Path(arguments.directory or tempfile.mkdtemp(prefix="psla-kill-")).absolute()
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.py").write_text(CONFIG.format(workers=arguments.workers))
    draw, tally = random.Random(arguments.seed), Tally()
    whole = Run(place, "alone", arguments.processes)
    if any(whole.end()):
        sys.exit(f"the run that was left alone failed: see {place / 'alone.log'}")
    before = time.monotonic()
    while sum(tally.kills.values()) < arguments.kills:
        name = f"run{tally.runs}"
        live(place, name, arguments, draw, tally)
        tally.differences += [f"{name}: {what}" for what in differences(place / "alone", place / name)]
    seconds = time.monotonic() - before
    if not arguments.directory:
        shutil.rmtree(place)
    report(arguments, tally, seconds)
    return 1 if tally.differences or tally.orphans else 0


def report(arguments: Arguments, tally: Tally, seconds: float) -> None:
    """The table."""
    figures = {f"kills in {phase}": tally.kills[phase] for phase in PHASES}
    figures |= {"kills": sum(tally.kills.values()), "restarts": tally.restarts, "runs compared": tally.runs}
    figures |= {"differences": len(tally.differences), "processes left over": tally.orphans, "seconds": round(seconds)}
    if arguments.json:
        print(json.dumps(figures | {"which": tally.differences}))
        return
    table = Table(title=f"{arguments.processes} process(es), {arguments.workers} loader worker(s) each")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in figures.items():
        table.add_row(name, str(value))
    console = Console()
    console.print(table)
    for line in tally.differences:
        console.print(line)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
