"""Kills a training run with SIGKILL many times and compares its results with those of an undisturbed run.

    python scripts/kill.py --kills 50
    python scripts/kill.py --kills 10 --processes 2

Each kill waits for a phase of the run (loader, step, checkpoint, evaluation, aggregation) and a random delay in it; the
run is then restarted. A run that reaches its end is compared bit for bit, and a new one is begun. The exit code is 1 if
anything differs or a process outlives its run.
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
MAX_DELAYS = {"start": 4.0, "loader": 0.02, "step": 0.05, "checkpoint": 0.3, "evaluation": 0.4, "aggregation": 2.0}
"""Maximum delay between the beginning of each phase and the kill, in seconds."""
FUNCTIONS = (
    ("loader", "monitor", "TrainingMonitor.fetch"),
    ("step", "trainer", "Trainer.step"),
    ("checkpoint", "checkpointing", "RunCheckpoints.save"),
    ("checkpoint", "checkpointing", "RunCheckpoints.wait"),
    ("evaluation", "artifacts", "RunArtifacts.score"),
    ("aggregation", "loop", "summarise"),
)
"""Phase, module of ``psla_jax.training`` and name of the functions that mark the phases."""
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
MARKED_RUN = f"""
import functools, importlib, mmap, os, sys
page = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 1)
def mark(number, module, name):
    *owners, name = name.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module("psla_jax.training." + module))
    function = getattr(owner, name)
    @functools.wraps(function)
    def marked(*args, **kwargs):
        before, page[0] = page[0], number
        try:
            return function(*args, **kwargs)
        finally:
            page[0] = before
    setattr(owner, name, marked)
for number, module, name in {[(PHASES.index(phase), *function) for phase, *function in FUNCTIONS]}:
    mark(number, module, name)
from psla_jax.cli.main import main
sys.exit(main(["train", "config.py", "--run-dir", *sys.argv[2:]]))
"""
"""Program that runs psla train and writes the number of its current phase to a shared page."""


@dataclass(frozen=True)
class Arguments:
    """Command-line arguments."""

    kills: int = 50
    """Total number of kills, over all runs."""
    processes: int = 1
    """Number of processes per run, all on this machine."""
    workers: int = 1
    """Number of loader processes per process."""
    seed: int = 0
    """Seed of the random phases and delays."""
    directory: str = ""
    """Directory of the runs. Empty: a temporary directory."""
    json: bool = False
    """Print the results as JSON instead of a table."""


@dataclass
class Tally:
    """Counts of kills, restarts and completed runs, and the differences found."""

    kills: Counter = field(default_factory=Counter)
    restarts: int = 0
    runs: int = 0
    differences: list[str] = field(default_factory=list)
    orphans: int = 0


class Run:
    """The processes of a training run between two restarts."""

    def __init__(self, directory: Path, name: str, processes: int) -> None:
        self.directory, self.name = directory, name
        self.pages = [directory / f"phase{index}" for index in range(processes)]
        port = _free_port()
        self.processes = [self._start(index, processes, port) for index in range(processes)]
        self.maps = []
        for page in self.pages:
            with open(page, "r+b") as file:
                self.maps.append(mmap.mmap(file.fileno(), 1))

    def _start(self, index: int, processes: int, port: int) -> subprocess.Popen:
        self.pages[index].write_bytes(b"\0")
        options = ["--distributed.coordinator", f"127.0.0.1:{port}", "--distributed.processes", str(processes)]
        options += ["--distributed.index", str(index), "--distributed.timeout", "10"]
        environment = os.environ | {"PSLA_HUGE_PAGES": "0"}
        command = [sys.executable, "-c", MARKED_RUN, str(self.pages[index]), self.name, *(options * (processes > 1))]
        with open(self.directory / f"{self.name}.log", "ab") as log:
            return subprocess.Popen(
                command, cwd=self.directory, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def phase(self, index: int = 0) -> str:
        """Returns the current phase of a process."""
        return PHASES[self.maps[index][0]]

    def has_ended(self) -> bool:
        """Returns whether any process has ended."""
        return any(process.poll() is not None for process in self.processes)

    def wait(self) -> list[int]:
        """Waits for all processes and returns their exit codes."""
        return [process.wait(timeout=600) for process in self.processes]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def orphans(sessions: list[int]) -> list[int]:
    """Returns the processes of the given sessions that do not end within 10 s."""
    deadline = time.monotonic() + 10
    while True:
        alive = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _session(p) in sessions]
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.1)


def _session(process: Path) -> int:
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] == "Z" else int(fields[3])


def kill_once(run: Run, target: str, rng: random.Random) -> str | None:
    """Kills one process of a run in the target phase, or at a random time for the target ``anywhere``.

    Returns the phase of the process at that moment, or None if the run ended before.
    """
    victim = rng.randrange(len(run.processes))
    deadline = time.monotonic() + rng.uniform(0, 30) if target == "anywhere" else float("inf")
    while not run.has_ended():
        if run.phase(victim) == target or time.monotonic() > deadline:
            time.sleep(rng.uniform(0, MAX_DELAYS.get(target, 0.0)))
            phase = run.phase(victim)
            if run.has_ended():
                return None
            run.processes[victim].send_signal(signal.SIGKILL)
            return phase
        time.sleep(0.0005)
    return None


def run_to_end(directory: Path, name: str, arguments: Arguments, rng: random.Random, tally: Tally) -> None:
    """Completes one run, killing and restarting it until no kills remain."""
    targets = [*PHASES[1:], "anywhere", "anywhere"]
    while True:
        run = Run(directory, name, arguments.processes)
        remaining = arguments.kills - sum(tally.kills.values())
        phase = kill_once(run, rng.choice(targets), rng) if remaining > 0 else None
        codes = run.wait()
        tally.orphans += len(orphans([process.pid for process in run.processes]))
        if phase is None:
            if any(codes):
                tail = (directory / f"{name}.log").read_text(errors="replace")[-2000:]
                sys.exit(f"a run that was not killed ended with {codes}:\n{tail}")
            tally.runs += 1
            return
        tally.kills[phase] += 1
        tally.restarts += 1
        print(f"kill {sum(tally.kills.values())}: {name}, in {phase}", file=sys.stderr, flush=True)


def differences(first: Path, second: Path) -> list[str]:
    """Returns the tables, scores and weights in which two finished runs differ, compared bit for bit."""
    tables = [*sorted(path.name for path in first.glob("*.csv")), "summary.json"]
    names = [name for name in tables if (first / name).read_bytes() != (second / name).read_bytes()]
    for path in sorted((first / "scores").glob("*.npz")):
        with np.load(path) as a, np.load(second / "scores" / path.name) as b:
            names += [f"scores/{path.name}: {key}" for key in a.files if not np.array_equal(a[key], b[key])]
    weights = sorted(path.relative_to(first) for path in (first / "models").glob("*/weights"))
    last = max(int(path.name) for path in (first / "checkpoints").iterdir() if path.name.isdigit())
    for part in [*weights, Path("checkpoints", str(last), "model"), Path("checkpoints", str(last), "opt")]:
        if _leaves(first / part) != _leaves(second / part):
            names.append(str(part))
    return names


def _leaves(path: Path) -> list[bytes]:
    """Returns the contents of the arrays in an Orbax checkpoint, or in one of its items."""
    import jax

    is_item = path.name in ("model", "opt")
    tree = ocp.load(path.parent.absolute(), checkpointable_name=path.name) if is_item else ocp.load(path.absolute())
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def main(arguments: Arguments) -> int:
    """Kills, restarts and compares runs; returns the exit code."""
    directory = Path(arguments.directory or tempfile.mkdtemp(prefix="psla-kill-")).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.py").write_text(CONFIG.format(workers=arguments.workers))
    rng, tally = random.Random(arguments.seed), Tally()
    if any(Run(directory, "undisturbed", arguments.processes).wait()):
        sys.exit(f"the undisturbed run failed: see {directory / 'undisturbed.log'}")
    start = time.monotonic()
    while sum(tally.kills.values()) < arguments.kills:
        name = f"run{tally.runs}"
        run_to_end(directory, name, arguments, rng, tally)
        tally.differences += [f"{name}: {part}" for part in differences(directory / "undisturbed", directory / name)]
    seconds = time.monotonic() - start
    if not arguments.directory:
        shutil.rmtree(directory)
    report(arguments, tally, seconds)
    return 1 if tally.differences or tally.orphans else 0


def report(arguments: Arguments, tally: Tally, seconds: float) -> None:
    """Prints the results as a table or as JSON."""
    counts = {f"kills in {phase}": tally.kills[phase] for phase in PHASES}
    counts |= {"kills": sum(tally.kills.values()), "restarts": tally.restarts, "runs compared": tally.runs}
    counts |= {"differences": len(tally.differences), "processes left over": tally.orphans, "seconds": round(seconds)}
    if arguments.json:
        print(json.dumps(counts | {"which": tally.differences}))
        return
    table = Table(title=f"{arguments.processes} process(es), {arguments.workers} loader worker(s) each")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in counts.items():
        table.add_row(name, str(value))
    console = Console()
    console.print(table)
    for line in tally.differences:
        console.print(line)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
