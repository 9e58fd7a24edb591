"""Passes corrupted audio files to everything that reads audio: the loader, prepare, check, pack and tag.

    python scripts/fuzz.py --files 200

Each part processes all files in a subprocess. The table lists the number of rejected files, the exit code, the duration
and the peak memory of each part. The exit code is 1 if a part crashed, hung or printed a traceback.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import mutations
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

LOADER = """
import sys
from pathlib import Path
from psla_jax.data.datafile import Datafile
from psla_jax.data.clip_reader import ClipReader
from psla_jax.data.loader import EvaluationSource, batches
from psla_jax.vocabulary.vocabulary import Vocabulary
folder = Path(sys.argv[1])
reader = ClipReader(Datafile.read(folder / "all.json", Vocabulary.read(folder / "labels.csv")), 16_000, "mean")
loaded = list(batches(EvaluationSource(reader, 8)))
failed = sum(int((batch["failed"] >= 0).sum()) for batch in loaded)
assert sum(int(batch["valid"].sum()) for batch in loaded) + failed == len(reader.datafile)
print(f"{failed} refused")
"""
PSLA = "from psla_jax.cli.main import main; import sys; sys.exit(main(sys.argv[1:]))"
REFUSED = re.compile(
    r"(\d+) refused|(\d+) of \d+ recordings could not be tagged|cannot be read: (\d+) of \d+ clips"
    r"|^(?:left out|excluded): (\d+) recordings",
    re.MULTILINE,
)
"""Matches the messages with the number of rejected files."""
REFUSED_FILE = re.compile(r"^(?:left out|excluded): /", re.MULTILINE)
"""Matches the messages that name a rejected file; ``psla pack`` prints no number."""


@dataclass(frozen=True)
class Arguments:
    """Command-line arguments."""

    files: int = 200
    """Number of corrupted files."""
    seed: int = 0
    """Seed of the corruptions."""
    limit: int = 600
    """Seconds after which a part counts as hung."""
    model: str = ""
    """Model directory for psla tag. Empty: a small network with random weights."""
    json: bool = False
    """Print the results as JSON instead of a table."""


@dataclass(frozen=True)
class Outcome:
    """Result of one part."""

    part: str
    code: int
    refused: int
    seconds: float
    megabytes: int
    traceback: bool

    @property
    def ok(self) -> bool:
        """Whether the part neither crashed, hung nor printed a traceback."""
        return self.code in (0, 1, 2) and not self.traceback


def prepare(directory: Path, arguments: Arguments) -> dict[str, list[str]]:
    """Writes the files and returns the command of each part."""
    files = [*mutations.mutated(directory / "class" / "mutated", arguments.files, arguments.seed)]
    files.append(mutations.hours_of_silence(directory / "class" / "mutated" / "hours.wav"))
    (directory / "class" / "sound").mkdir()
    for number in range(3):
        valid = directory / "class" / "sound" / f"{number}.wav"
        valid.write_bytes(mutations.encoded(np.random.default_rng(number), "WAV"))
        files.append(valid)
    clips = [{"wav": str(file), "labels": f"/t/{file.parent.name}"} for file in files]
    datafile = directory / "all.json"
    datafile.write_text(json.dumps({"data": clips}))
    (directory / "labels.csv").write_text("index,mid,display_name\n0,/t/mutated,Mutated\n1,/t/sound,Sound\n")
    model = arguments.model or make_model(directory / "model")
    short = directory / "class" / "short"  # Without the ten hours of silence, which psla tag would process to the end.
    shutil.copytree(directory / "class" / "mutated", short, ignore=shutil.ignore_patterns("hours.wav"))
    psla = ["-c", PSLA]
    return {
        "loader": ["-c", LOADER, str(directory)],
        "prepare folder": [*psla, "prepare", "folder", f"{directory}/class", "--out", f"{directory}/prepared"],
        "check": [*psla, "check", str(datafile), "--labels", f"{directory}/labels.csv"],
        "pack": [*psla, "pack", str(datafile), f"{directory}/packed", "--unreadable", "skip"],
        "tag": [*psla, "tag", str(short), "--model", model, "--json", f"{directory}/tags.json"],
    }


def make_model(directory: Path) -> str:
    """Saves a small network with random weights."""
    from flax import nnx

    from psla_jax.config import FrontendConfig, ModelConfig
    from psla_jax.models import factory
    from psla_jax.models.model_dir import ModelCard, save_model
    from psla_jax.models.state import split_model
    from psla_jax.vocabulary.vocabulary import Vocabulary

    config = ModelConfig(name="efficientnet-tiny", heads=1)
    vocabulary = Vocabulary(("/t/mutated", "/t/sound"), ("Mutated", "Sound"))
    network = factory.from_config(config, 2, np.float32, nnx.Rngs(0))
    save_model(directory, ModelCard(config, FrontendConfig(target_length=96), vocabulary, {}), *split_model(network))
    return str(directory)


def run(part: str, command: list[str], limit: int) -> Outcome:
    """Runs one part until it ends or exceeds `limit` seconds."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([sys.executable, *command], stdout=output, stderr=output)
        peak = 0
        while process.poll() is None and time.monotonic() - start < limit:
            peak = max(peak, _resident(process.pid))
            time.sleep(0.02)
        process.kill()
        code = process.wait()
        output.seek(0)
        text = output.read().decode(errors="replace")
    counts = [int(next(filter(None, groups))) for groups in REFUSED.findall(text)]
    refused = max([*counts, len(REFUSED_FILE.findall(text))])
    outcome = Outcome(part, code, refused, time.monotonic() - start, peak, "Traceback" in text)
    if not outcome.ok:
        print(text[-3000:], file=sys.stderr)
    return outcome


def _resident(process: int) -> int:
    """Returns the resident memory of a process in MB."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    except (OSError, IndexError):
        return 0


def fuzz(arguments: Arguments) -> list[Outcome]:
    """Runs all parts one by one."""
    with tempfile.TemporaryDirectory(prefix="psla-fuzz-") as directory:
        parts = prepare(Path(directory), arguments)
        return [run(part, command, arguments.limit) for part, command in parts.items()]


def main(arguments: Arguments) -> int:
    """Runs all parts and prints the results; returns the exit code."""
    outcomes = fuzz(arguments)
    if arguments.json:
        print(json.dumps([asdict(outcome) for outcome in outcomes]))
    else:
        table = Table(title=f"{arguments.files} corrupted audio files, ten hours of silence, and three valid files")
        for column in ("", "exit", "refused", "s", "peak MB", ""):
            table.add_column(column, justify="left" if not column else "right")
        for o in outcomes:
            row = (o.part, str(o.code), str(o.refused), f"{o.seconds:.1f}", str(o.megabytes), "" if o.ok else "FAILED")
            table.add_row(*row)
        Console().print(table)
    return 0 if all(outcome.ok for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
