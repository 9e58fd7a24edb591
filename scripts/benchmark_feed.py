"""Measures how many training clips the loader puts into device buffers: ``python scripts/benchmark.py --part feed``.

    python scripts/benchmark_feed.py [--counts 1 2 4] [--seconds 10] [--records 2000000]

Clips are synthesised recordings of ten seconds at 16 kHz, half of which are mixed with a second one: a clip takes one
and a half readings. The last column divides the clips by the CPU time of all processes, the main one included: the
clips per second that one core provides. Devices that take N clips per second need N divided by it cores.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import psutil
import soundfile
import tyro

from psla_jax.config import DataConfig, SamplingConfig
from psla_jax.data.datafile import Datafile
from psla_jax.data.demo.dataset import Recipe
from psla_jax.data.demo.synthesis import SOUNDS, clip
from psla_jax.data.loader import batches
from psla_jax.data.pack import pack
from psla_jax.data.train_source import train_source
from psla_jax.data.validate.findings import format_count
from psla_jax.runtime.allocator import retain_freed_memory
from psla_jax.runtime.sharding import Placement
from psla_jax.vocabulary.vocabulary import Vocabulary

SECONDS, RATE, SAMPLES = 10.0, 16_000, 400 + 160 * 1055
CLIPS = 256
"""Number of recordings."""
FORMATS = {
    "16-bit shards": "pcm16/wav.json",
    "FLAC shards": "flac/wav.json",
    "WAV files": "wav.json",
    "FLAC files": "flac.json",
}
"""Datafiles of the formats."""
EPOCHS = 1000
"""More than are read."""


@dataclass(frozen=True)
class Options:
    """Command-line arguments."""

    counts: tuple[int, ...] = (1, 2, 4)
    """Numbers of loader processes, and of threads of the main process."""
    seconds: float = 10.0
    """Shortest duration of a measurement."""
    batch_size: int = 100
    """Clips per batch."""
    records: int = 2_000_000
    """Number of clips of the data set with which the memory of a worker is measured."""


@dataclass(frozen=True)
class Feed:
    """Result of a measurement."""

    clips: int
    seconds: float
    cpu_seconds: float
    """CPU time of the main process and the workers."""
    worker_bytes: float
    """Mean memory of a worker that no other process shares; 0 without workers."""


def main(options: Options) -> None:
    """Prints the table and the memory of a worker."""
    retain_freed_memory()  # As the command line does.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        print("| | read by | clips per second | clips per second and core |\n|---|---|---|---|")
        for label, datafile in FORMATS.items():
            for kind, count in itertools.product(("thread", "process"), options.counts):
                feed = measure(folder, folder / datafile, kind, count, options)
                rates = feed.clips / feed.seconds, feed.clips / feed.cpu_seconds
                print(f"| {label} | {format_count(count, kind)} | {rates[0]:,.0f} | {rates[1]:,.0f} |", flush=True)
        large = folder / "large.json"
        write_datafile(large, [str(folder / f"{i % CLIPS:06d}.wav") for i in range(options.records)])
        feed = measure(folder, large, "process", 2, options)
        print(f"\nmemory of a worker with {options.records:,} clips: {feed.worker_bytes / 1e6:,.0f} MB")


def prepare(folder: Path) -> None:
    """Writes the recordings in all formats."""
    recipe, names = Recipe(), list(SOUNDS)
    for number in range(CLIPS):
        waveform = clip(
            np.random.default_rng(number),
            [names[number % len(names)]],
            seconds=(SECONDS, SECONDS),
            snr_db=recipe.snr_db,
            second_db=recipe.second_db,
            peak_db=recipe.peak_db,
            equaliser_db=recipe.equaliser_db,
        )
        for suffix in ("wav", "flac"):
            soundfile.write(folder / f"{number:06d}.{suffix}", waveform, RATE, subtype="PCM_16")
    for suffix in ("wav", "flac"):
        write_datafile(folder / f"{suffix}.json", [str(folder / f"{i:06d}.{suffix}") for i in range(CLIPS)])
    pack(str(folder / "wav.json"), str(folder / "pcm16"), format="pcm16", progress=False)
    pack(str(folder / "wav.json"), str(folder / "flac"), format="flac", progress=False)


def write_datafile(path: Path, recordings: list[str]) -> None:
    """Writes a datafile in which every clip has two classes."""
    mids = Vocabulary.read("audioset").mids
    pairs = [f"{mids[i % len(mids)]},{mids[(7 * i + 1) % len(mids)]}" for i in range(len(recordings))]
    path.write_text(json.dumps({"data": [{"wav": wav, "labels": pair} for wav, pair in zip(recordings, pairs)]}))


def measure(folder: Path, datafile: Path, kind: str, count: int, options: Options) -> Feed:
    """Reads batches into device buffers for a while; the first batches, which processes start with, do not count."""
    workers, threads = (count, 1) if kind == "process" else (0, count)
    data = Datafile.read(datafile, Vocabulary.read("audioset")).share(folder / "shared")
    config = DataConfig(batch_size=options.batch_size)
    source = train_source(data, config, SamplingConfig(), num_samples=SAMPLES, epochs=EPOCHS, seed=0)
    placement, stream = Placement.over_all_devices(), batches(source, workers=workers, threads=threads)
    try:
        feed(stream, placement, 2 * count)
        start, cpu, read = time.perf_counter(), cpu_seconds(), 0
        while (seconds := time.perf_counter() - start) < options.seconds:
            read += feed(stream, placement, 2 * count)
        return Feed(read, seconds, cpu_seconds() - cpu, worker_memory())
    finally:
        stream.close()


def feed(stream: Iterator[dict[str, np.ndarray]], placement: Placement, count: int) -> int:
    """Puts `count` batches on the devices and returns the number of their clips."""
    clips = 0
    for _ in range(count):
        batch = next(stream)
        jax.block_until_ready(placement.shard_batch(batch))
        clips += len(batch["clip"])
    return clips


def cpu_seconds() -> float:
    """Returns the CPU time of this process and its children so far."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def worker_memory() -> float:
    """Returns the mean memory in bytes that the children of this process share with no other process."""
    children = psutil.Process().children(recursive=True)
    workers = [child for child in children if any("spawn_main" in argument for argument in child.cmdline())]
    return float(np.mean([worker.memory_full_info().uss for worker in workers])) if workers else 0.0


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
