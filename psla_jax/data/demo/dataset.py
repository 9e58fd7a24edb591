"""The embedded demo set: synthetic recordings of 13 sound classes in four families; no download is needed.

It has the difficulties of AudioSet: clips of different lengths with one or two events in noise, a long tail of rare
classes, and missing training labels (PSLA, sections III-C and III-D).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from psla_jax.audio import decode
from psla_jax.data import datafile
from psla_jax.data.demo import synthesis
from psla_jax.runtime.cache import in_cache
from psla_jax.vocabulary.vocabulary import Vocabulary

_MARKER = "recipe.json"
_SPLITS = ("train", "validation", "evaluation")
_FILES = {**{name: f"{name}.json" for name in (*_SPLITS, "truth", "ontology")}, "labels": "labels.csv"}
_CHILDREN = {
    "drum": ("kick", "tom", "snare", "hat"),
    "signal": ("siren", "warble", "rising", "falling"),
    "noise": ("hiss", "crackle", "wind"),
    "motor": ("engine", "buzz"),
}
_PARENT = {leaf: parent for parent, leaves in _CHILDREN.items() for leaf in leaves}
_ORDER = tuple(key for parent, leaves in _CHILDREN.items() for key in (parent, *leaves))
_NAMES = {key: key.capitalize() for key in ("sound", *_ORDER)}
_NAMES |= {"rising": "Rising chirp", "falling": "Falling chirp", "hat": "Hi-hat"}
_NAMES |= {"kick": "Kick drum", "snare": "Snare drum"}

LEAVES = (
    *("hiss", "kick", "siren", "engine", "hat", "rising", "wind"),
    *("snare", "falling", "buzz", "crackle", "tom", "warble"),
)
"""The sound classes, from the most to the least frequent in training; the mid of ``hiss`` is ``/demo/hiss``."""


class DemoError(ValueError):
    """An invalid recipe or file name, or a directory that the demo set cannot be written to."""


@dataclass(frozen=True)
class Recipe:
    """The settings that, together with the code, determine every byte of the demo set."""

    version: int = 1
    """Version of the code; incremented when its sounds or labels change, so that cached sets are not reused."""
    seed: int = 0
    """Seed; the random draws of a clip are a function of (seed, split, clip)."""
    train_events: tuple[int, ...] = (92, 84, 74, 66, 58, 50, 42, 34, 26, 18, 11, 7, 5)
    """Number of training clips with each of :data:`LEAVES`, a long tail."""
    validation_events: tuple[int, ...] = (15,) * len(LEAVES)
    """Number of validation clips with each of :data:`LEAVES`."""
    evaluation_events: tuple[int, ...] = (23,) * len(LEAVES)
    """Number of evaluation clips with each of :data:`LEAVES`."""
    two_events: float = 0.35
    """Fraction of clips with two events, of different classes."""
    parents_removed: float = 0.15
    """Fraction of the parent labels that are removed from training clips."""
    leaves_removed: float = 0.08
    """Fraction of the leaf labels that are removed from training clips."""
    seconds: tuple[float, float] = (0.5, 0.95)
    """Shortest and longest duration of a clip."""
    snr_db: tuple[float, float] = (3.0, 20.0)
    """Lowest and highest level of the first event relative to the background noise."""
    second_db: tuple[float, float] = (-6.0, 0.0)
    """Lowest and highest level of the second event relative to the first."""
    peak_db: tuple[float, float] = (-30.0, -3.0)
    """Lowest and highest peak of a clip relative to full scale."""
    equaliser_db: float = 4.0
    """Standard deviation of the gain of the three broad peaks or dips in the frequency response of the recording."""

    def __post_init__(self) -> None:
        for split in _SPLITS:
            events = self.clip_counts(split)
            # If no class has more than half of the events, the events can be paired with events of other classes.
            if len(events) != len(LEAVES) or min(events) < 0 or not 0 < 2 * max(events) <= sum(events):
                raise DemoError(
                    f"{split}_events is {events}: use {len(LEAVES)} counts, none of them more than half of the sum."
                )
        for name in ("two_events", "parents_removed", "leaves_removed"):
            if not 0 <= getattr(self, name) <= 1:
                raise DemoError(f"{name} is {getattr(self, name)}: use a fraction in [0, 1].")

    def digest(self) -> str:
        """Returns eight hex digits of a hash of all settings."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:8]

    def clip_counts(self, split: str) -> tuple[int, ...]:
        """Returns the number of clips of a split with each of :data:`LEAVES`."""
        return getattr(self, f"{split}_events")


RECIPE = Recipe()
"""The recipe of the demo set that ``configs/demo.py`` trains on."""


def vocabulary() -> Vocabulary:
    """Returns the 17 classes: every family, followed by its sound classes."""
    return Vocabulary(tuple(f"/demo/{key}" for key in _ORDER), tuple(_NAMES[key] for key in _ORDER))


def locate(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    recipe: Recipe = RECIPE,
    on_start: Callable[[str], None] | None = None,
) -> str:
    """Returns the path of a file of the demo set; synthesises the set first unless it is complete.

    Synthesis takes some seconds and 20 MB of disk space. Concurrent calls of several processes are safe.

    Args:
        name: ``train``, ``validation`` or ``evaluation`` for a datafile; ``truth`` for the training set with all
            labels; ``labels`` for the vocabulary as CSV; ``ontology`` for the hierarchy in AudioSet's JSON format.
        root: directory of the set; by default a subdirectory of the cache named by the recipe's digest.
        recipe: settings of the set.
        on_start: receives a message when synthesis starts.

    Raises:
        DemoError: the name is unknown, or the directory contains other files or cannot be written.
    """
    if name not in _FILES:
        raise DemoError(f"the demo set has no file {name!r}: use one of {', '.join(_FILES)}.")
    if root is not None and not _is_replaceable(directory := os.path.abspath(root), recipe):
        raise DemoError(f"the directory {directory} contains other files than this demo set: use a new directory.")

    def make(path: Path) -> str:
        directory = os.path.abspath(path)
        if not _is_complete(directory, recipe):
            if on_start is not None:
                on_start(f"Synthesising the demo set in {directory}; this takes some seconds, once.")
            _create(directory, recipe)
        return directory

    try:
        directory = in_cache(make, f"demo-{recipe.digest()}") if root is None else make(Path(root))
    except OSError as error:
        raise DemoError(
            f"the demo set cannot be written to {error.filename or root} ({error.strerror}): "
            "free some space, or set the environment variable PSLA_CACHE to a writable directory."
        ) from error
    return os.path.join(directory, _FILES[name])


def _is_complete(directory: str, recipe: Recipe) -> bool:
    """Returns whether the directory has every file of this set; a cache clean-up may have deleted some."""
    try:
        marker = _read_marker(directory)
        complete = all(os.path.getsize(os.path.join(directory, name)) == n for name, n in marker["files"].items())
        return marker["demo"] == recipe.digest() and complete
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _is_replaceable(directory: str, recipe: Recipe) -> bool:
    """Returns whether the directory is absent, empty or an incomplete copy of this set."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return _read_marker(directory)["demo"] == recipe.digest()
    return not os.path.lexists(directory) or (os.path.isdir(directory) and not os.listdir(directory))


def _read_marker(directory: str) -> Any:
    with open(os.path.join(directory, _MARKER), encoding="utf-8") as file:
        return json.load(file)


def _create(directory: str, recipe: Recipe) -> None:
    """Writes the set, its recipe and the size of each file to a temporary directory and renames it."""
    temporary = f"{directory}.{uuid.uuid4().hex}.part"
    try:
        os.makedirs(temporary)
        _write_set(temporary, recipe)
        paths = sorted((path for path in Path(temporary).rglob("*") if path.is_file()), key=str)
        files = {path.relative_to(temporary).as_posix(): path.stat().st_size for path in paths}
        marker = {"demo": recipe.digest(), "recipe": dataclasses.asdict(recipe), "files": files}
        _write_json(os.path.join(temporary, _MARKER), marker)
        _publish(temporary, directory, recipe)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_json(path: str, value: Any) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        json.dump(value, file, indent=1)


def _publish(temporary: str, directory: str, recipe: Recipe) -> None:
    """Renames a finished set to its directory, unless another process has done so in the meantime."""
    if _is_complete(directory, recipe):
        return
    replaced = f"{directory}.{uuid.uuid4().hex}.old"
    with contextlib.suppress(FileNotFoundError):
        os.rename(directory, replaced)
    try:
        os.rename(temporary, directory)
    except OSError:
        if not _is_complete(directory, recipe):
            raise
    finally:
        shutil.rmtree(replaced, ignore_errors=True)


def _write_set(directory: str, recipe: Recipe) -> None:
    vocabulary().write(os.path.join(directory, _FILES["labels"]))
    _write_ontology(os.path.join(directory, _FILES["ontology"]))
    levels = {n: getattr(recipe, n) for n in ("seconds", "snr_db", "second_db", "peak_db", "equaliser_db")}
    for number, split in enumerate(_SPLITS):
        clips = _clips(recipe, split)
        os.mkdir(os.path.join(directory, split))
        wavs = [f"{split}/{index:03d}.wav" for index in range(len(clips))]
        for index, (wav, leaves) in enumerate(zip(wavs, clips)):
            rng = np.random.default_rng([recipe.seed, number, index])
            decode.write_pcm16(os.path.join(directory, wav), synthesis.clip(rng, leaves, **levels))
        labels = [sorted({*leaves, *(_PARENT[leaf] for leaf in leaves)}, key=_ORDER.index) for leaves in clips]
        if split == "train":
            _write_datafile(os.path.join(directory, _FILES["truth"]), wavs, labels)
            labels = _remove_labels(labels, recipe)
        _write_datafile(os.path.join(directory, _FILES[split]), wavs, labels)


def _write_datafile(path: str, wavs: Sequence[str], labels: Sequence[Sequence[str]]) -> None:
    """Writes a datafile with relative paths, so that the directory can be moved, and its weight file."""
    datafile.write(path, ((wav, [f"/demo/{key}" for key in keys]) for wav, keys in zip(wavs, labels)))
    datafile.write_weights(datafile.Datafile.read(path, vocabulary()), datafile.weight_path(path))


def _write_ontology(path: str) -> None:
    """Writes the hierarchy below an abstract root that is not in the vocabulary, as in AudioSet."""
    children = {"sound": tuple(_CHILDREN), **_CHILDREN}
    entries = [
        {
            "id": f"/demo/{key}",
            "name": _NAMES[key],
            "child_ids": [f"/demo/{child}" for child in children.get(key, ())],
            "restrictions": ["abstract"] if key == "sound" else [],
        }
        for key in ("sound", *_ORDER)
    ]
    _write_json(path, entries)


def _clips(recipe: Recipe, split: str) -> list[tuple[str, ...]]:
    """Returns the one or two leaves of every clip of a split, in random order."""
    rng = _generator(recipe, split)
    events = np.repeat(np.arange(len(LEAVES)), recipe.clip_counts(split))
    rng.shuffle(events)
    pairs = round(len(events) * recipe.two_events / (1 + recipe.two_events))
    # The second event of a pair of the same class is swapped with a random event.
    while len(same := np.flatnonzero(events[:pairs] == events[pairs : 2 * pairs])):
        swap = [pairs + same[0], rng.integers(len(events))]
        events[swap] = events[swap[::-1]]
    leaves = [LEAVES[event] for event in events]
    clips = [*zip(leaves[:pairs], leaves[pairs : 2 * pairs]), *((leaf,) for leaf in leaves[2 * pairs :])]
    return [clips[index] for index in rng.permutation(len(clips))]


def _generator(recipe: Recipe, purpose: str) -> np.random.Generator:
    """Returns the generator of a split's events or of ``missing`` labels; its keys differ from those of the clips."""
    return np.random.default_rng([recipe.seed, len(_SPLITS) + (*_SPLITS, "missing").index(purpose)])


def _remove_labels(labels: Sequence[Sequence[str]], recipe: Recipe) -> list[list[str]]:
    """Removes random parents and leaves, as annotators miss them; each clip keeps at least one label."""
    rng = _generator(recipe, "missing")
    remaining = [list(keys) for keys in labels]
    for group, fraction in ((_CHILDREN, recipe.parents_removed), (_PARENT, recipe.leaves_removed)):
        pairs = [(clip, key) for clip, keys in enumerate(labels) for key in keys if key in group]
        for index in rng.choice(len(pairs), round(fraction * len(pairs)), replace=False):
            clip, key = pairs[index]
            if len(remaining[clip]) > 1:
                remaining[clip].remove(key)
    return remaining
