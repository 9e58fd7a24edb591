"""Mutated recordings through everything that reads recordings: the loader, prepare, check, pack and tag.

    python scripts/fuzz.py --files 200

Each works through all files in a process of its own. The table says how many files were refused, what the process
ended with, how long it took and how much memory it had at most. Exit code 1 if one crashed, hung or said nothing.
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
import tyro
from rich.console import Console
from rich.table import Table

LOADER = """
import sys
from pathlib import Path
from psla_jax.data.datafile import Datafile
from psla_jax.data.pipeline import ClipReader, EvaluationSource, batches
from psla_jax.ontology import Vocabulary
folder = Path(sys.argv[1])
reader = ClipReader(Datafile.read(folder / "all.json", Vocabulary.read(folder / "labels.csv")), 16_000, "mean")
found = list(batches(EvaluationSource(reader, 8)))
failed = sum(int((batch["failed"] >= 0).sum()) for batch in found)
assert sum(int(batch["valid"].sum()) for batch in found) + failed == len(reader.datafile)
print(f"{failed} refused")
"""
PSLA = "from psla_jax.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
REFUSED = re.compile(r"(\d+) refused|(\d+) of \d+ recordings could not be tagged|cannot be read: (\d+) of \d+ clips")


@dataclass(frozen=True)
class Arguments:
    """How many files, and how long each part may take with them."""

    files: int = 200
    seed: int = 0
    limit: int = 600
    """Seconds after which a part counts as hung."""
    model: str = ""
    """What tags; empty: a small network with random weights."""
    json: bool = False
    """Print the rows as JSON."""


@dataclass(frozen=True)
class Outcome:
    """What became of one part."""

    part: str
    code: int
    refused: int
    seconds: float
    megabytes: int
    traceback: bool

    @property
    def well(self) -> bool:
        """Neither crashed, nor hung, nor ended with a trace."""
        return self.code in (0, 1, 2) and not self.traceback


def prepare(place: Path, arguments: Arguments) -> dict[str, list[str]]:
    """The files, and a command for each part."""
    files = [*mutations.mutated(place / "class" / "mutated", arguments.files, arguments.seed)]
    files.append(mutations.hours_of_silence(place / "class" / "mutated" / "hours.wav"))
    (place / "class" / "sound").mkdir()
    for number in range(3):
        good = place / "class" / "sound" / f"{number}.wav"
        good.write_bytes(mutations.encoded(mutations.np.random.default_rng(number), "WAV"))
        files.append(good)
    clips = [{"wav": str(file), "labels": f"/t/{file.parent.name}"} for file in files]
    (place / "all.json").write_text(json.dumps({"data": clips}))
    (place / "labels.csv").write_text("index,mid,display_name\n0,/t/mutated,Mutated\n1,/t/sound,Sound\n")
    model = arguments.model or make_model(place / "model")
    short = place / "class" / "short"  # Hours of silence would be tagged, and packed, to their end.
    shutil.copytree(place / "class" / "mutated", short, ignore=shutil.ignore_patterns("hours.wav"))
    return {
        "loader": ["-c", LOADER, str(place)],
        "prepare folder": ["-c", PSLA, "prepare", "folder", str(place / "class"), "--out", str(place / "prepared")],
        "check": ["-c", PSLA, "check", str(place / "all.json"), "--labels", str(place / "labels.csv")],
        "pack": [*("-c", PSLA, "pack", str(place / "all.json"), str(place / "packed")), "--unreadable", "skip"],
        "tag": ["-c", PSLA, "tag", str(short), "--model", model, "--json", str(place / "tags.json")],
    }


def make_model(place: Path) -> str:
    """A small network with random weights."""
    import numpy as np
    from flax import nnx

    from psla_jax.checkpoints import ModelCard, save_model
    from psla_jax.config import FrontendConfig, ModelConfig
    from psla_jax.models import tagger
    from psla_jax.ontology import Vocabulary
    from psla_jax.training import split_model

    config = ModelConfig(name="efficientnet-tiny", heads=1)
    vocabulary = Vocabulary(("/t/mutated", "/t/sound"), ("Mutated", "Sound"))
    network = tagger.from_config(config, 2, np.float32, nnx.Rngs(0))
    save_model(place, ModelCard(config, FrontendConfig(target_length=96), vocabulary, {}), *split_model(network))
    return str(place)


def run(part: str, command: list[str], limit: int) -> Outcome:
    """Runs one part to its end, or to the limit."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([sys.executable, *command], stdout=said, stderr=said)
        peak = 0
        while process.poll() is None and time.monotonic() - started < limit:
            peak = max(peak, _resident(process.pid))
            time.sleep(0.02)
        process.kill()
        code = process.wait()
        said.seek(0)
        text = said.read().decode(errors="replace")
    counts = [int(next(filter(None, found))) for found in REFUSED.findall(text)]
    more = re.search(r"left out: and (\d+) more", text)
    named = len(re.findall("^left out: /", text, re.MULTILINE))
    refused = max([*counts, named + (int(more[1]) if more else 0)])
    outcome = Outcome(part, code, refused, time.monotonic() - started, peak, "Traceback" in text)
    if not outcome.well:
        print(text[-3000:], file=sys.stderr)
    return outcome


def _resident(process: int) -> int:
    """Memory of a process in MB."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    except (OSError, IndexError):
        return 0


def fuzz(arguments: Arguments) -> list[Outcome]:
    """All parts, one after the other."""
    with tempfile.TemporaryDirectory(prefix="psla-fuzz-") as place:
        parts = prepare(Path(place), arguments)
        return [run(part, command, arguments.limit) for part, command in parts.items()]


def main(arguments: Arguments) -> int:
    """The table."""
    outcomes = fuzz(arguments)
    if arguments.json:
        print(json.dumps([asdict(outcome) for outcome in outcomes]))
    else:
        table = Table(title=f"{arguments.files} mutated recordings, one of ten hours, and three good ones")
        for column in ("", "exit", "refused", "s", "peak MB", ""):
            table.add_column(column, justify="left" if not column else "right")
        for o in outcomes:
            row = (o.part, str(o.code), str(o.refused), f"{o.seconds:.1f}", str(o.megabytes), "" if o.well else "BAD")
            table.add_row(*row)
        Console().print(table)
    return 0 if all(outcome.well for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
