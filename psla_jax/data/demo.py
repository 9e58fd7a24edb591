"""The embedded data set: sounds of known kinds, synthesised on first use, so that a first run needs no download.

Thirteen kinds of sound in four families, hard in the ways of AudioSet: clips of different lengths with up to two events
in noise, a long tail of rare classes, and training labels of which some are missing (PSLA, sections III-C and III-D).
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
from typing import Any

import numpy as np

from psla_jax import audio
from psla_jax.cache import cache_directory
from psla_jax.data import datafile, sounds
from psla_jax.ontology import Vocabulary

_MARKER = "recipe.json"
_FILES = {
    "train": "train.json",
    "truth": "truth.json",
    "validation": "validation.json",
    "evaluation": "evaluation.json",
    "labels": "labels.csv",
    "ontology": "ontology.json",
}
_SPLITS = ("train", "validation", "evaluation")
_CHILDREN = {
    "drum": ("kick", "tom", "snare", "hat"),
    "signal": ("siren", "warble", "rising", "falling"),
    "noise": ("hiss", "crackle", "wind"),
    "motor": ("engine", "buzz"),
}
_NAMES = {
    "rising": "Rising chirp",
    "falling": "Falling chirp",
    "hat": "Hi-hat",
    "kick": "Kick drum",
    "snare": "Snare drum",
}
_PARENT = {leaf: parent for parent, leaves in _CHILDREN.items() for leaf in leaves}
_ORDER = tuple(key for parent, leaves in _CHILDREN.items() for key in (parent, *leaves))

LEAVES = (
    *("hiss", "kick", "siren", "engine", "hat", "rising", "wind"),
    *("snare", "falling", "buzz", "crackle", "tom", "warble"),
)
"""The kinds of sound, from the most to the least frequent one in training; the mid of ``hiss`` is ``/demo/hiss``."""


class DemoError(ValueError):
    """A file that the demo set does not have, or a folder that it cannot be written to."""


@dataclass(frozen=True)
class Recipe:
    """How the demo set is made: everything that decides its bytes, apart from the code."""

    version: int = 1
    """Counted up when the code gives other sounds or labels: a set in the cache is then not taken for the new one."""
    seed: int = 0
    """Every draw for a clip is a function of (seed, split, clip)."""
    train_events: tuple[int, ...] = (92, 84, 74, 66, 58, 50, 42, 34, 26, 18, 11, 7, 5)
    """Training clips with each of :data:`LEAVES`: the long tail."""
    validation_events: tuple[int, ...] = (15,) * len(LEAVES)
    """Validation clips with each of :data:`LEAVES`."""
    evaluation_events: tuple[int, ...] = (23,) * len(LEAVES)
    """Evaluation clips with each of :data:`LEAVES`."""
    two_events: float = 0.35
    """Share of clips with two events, of different kinds."""
    parents_removed: float = 0.15
    """Share of the parent labels of training clips that are missing."""
    leaves_removed: float = 0.08
    """Share of the leaf labels of training clips that are missing."""
    seconds: tuple[float, float] = (0.5, 0.95)
    """Shortest and longest clip."""
    snr_db: tuple[float, float] = (3.0, 20.0)
    """Lowest and highest level of the first event over the background noise."""
    second_db: tuple[float, float] = (-6.0, 0.0)
    """Lowest and highest level of the second event against the first."""
    peak_db: tuple[float, float] = (-30.0, -3.0)
    """Lowest and highest peak of a clip against full scale."""
    equaliser_db: float = 4.0
    """Standard deviation of each of the broad peaks and dips that the recording chain adds."""

    def __post_init__(self) -> None:
        for split in _SPLITS:
            events = self.events_of(split)
            # With at most half of one kind, each event of a pair finds one of another kind.
            if len(events) != len(LEAVES) or min(events) < 0 or not 0 < 2 * max(events) <= sum(events):
                raise DemoError(
                    f"{split}_events is {events}: give {len(LEAVES)} counts, none of them more than half of the sum."
                )
        for name in ("two_events", "parents_removed", "leaves_removed"):
            if not 0 <= getattr(self, name) <= 1:
                raise DemoError(f"{name} is {getattr(self, name)}: give a share from 0 to 1.")

    def digest(self) -> str:
        """Eight hex digits that stand for all settings."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:8]

    def scene(self) -> dict[str, Any]:
        """The arguments of :func:`psla_jax.data.sounds.clip`."""
        names = ("seconds", "snr_db", "second_db", "peak_db", "equaliser_db")
        return {name: getattr(self, name) for name in names}

    def events_of(self, split: str) -> tuple[int, ...]:
        """The clips of a split with each of :data:`LEAVES`."""
        return getattr(self, f"{split}_events")


RECIPE = Recipe()
"""The demo set that ``configs/demo.py`` trains on."""


def vocabulary() -> Vocabulary:
    """The 17 classes: every family, followed by its kinds."""
    return Vocabulary(tuple(map(_mid, _ORDER)), tuple(map(_name, _ORDER)))


def locate(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    recipe: Recipe = RECIPE,
    on_start: Callable[[str], None] | None = None,
) -> str:
    """The path of a file of the demo set, which is synthesised first where it is not there as a whole.

    That takes some seconds and 20 MB. Any number of processes may ask at once.

    Args:
        name: ``train``, ``validation`` or ``evaluation`` for a datafile; ``truth`` for the training set without missing
            labels; ``labels`` for the vocabulary as CSV; ``ontology`` for the hierarchy in AudioSet's JSON format.
        root: the folder of the set; by default one in :func:`cache_directory` that is named by the recipe's digest.
        recipe: what the set is like.
        on_start: told, in one sentence, that synthesis starts.

    Raises:
        DemoError: there is no such name, the folder holds something else, or it cannot be written.
    """
    if name not in _FILES:
        raise DemoError(f"the demo set has no file {name!r}: ask for one of {', '.join(_FILES)}.")
    folder = os.path.abspath(cache_directory() / f"demo-{recipe.digest()}" if root is None else root)
    if not _is_whole(folder, recipe):
        if root is not None and not _may_replace(folder, recipe):
            raise DemoError(f"the folder {folder} holds something else than this demo set: name a new folder.")
        if on_start is not None:
            on_start(f"Synthesising the demo set in {folder}, which takes some seconds the first time.")
        try:
            _make(folder, recipe)
        except OSError as error:
            raise DemoError(
                f"the demo set cannot be written to {folder} ({error.strerror}): "
                "free some space, or set the environment variable PSLA_CACHE to a folder of yours."
            ) from error
    return os.path.join(folder, _FILES[name])


def _mid(key: str) -> str:
    return f"/demo/{key}"


def _name(key: str) -> str:
    return _NAMES.get(key, key.capitalize())


# ---- The folder: whole or absent -------------------------------------------------------------------------------------


def _is_whole(folder: str, recipe: Recipe) -> bool:
    """Whether the folder holds every file of this set: what tidies a cache up may have taken single ones away."""
    try:
        marker = _read_marker(folder)
        sizes = marker["files"].items()
        return marker["demo"] == recipe.digest() and all(
            os.path.getsize(os.path.join(folder, name)) == size for name, size in sizes
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _may_replace(folder: str, recipe: Recipe) -> bool:
    """Whether nothing else is lost with the folder: it is absent, empty or what is left of this set."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return _read_marker(folder)["demo"] == recipe.digest()
    return not os.path.lexists(folder) or (os.path.isdir(folder) and not os.listdir(folder))


def _read_marker(folder: str) -> Any:
    with open(os.path.join(folder, _MARKER), encoding="utf-8") as file:
        return json.load(file)


def _make(folder: str, recipe: Recipe) -> None:
    """Writes the set beside its place and then moves it there."""
    aside = f"{folder}.{uuid.uuid4().hex}.part"
    try:
        os.makedirs(aside)
        _write_set(aside, recipe)
        _write_marker(aside, recipe)
        _publish(aside, folder, recipe)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_marker(folder: str, recipe: Recipe) -> None:
    """Writes what the set is and how long each of its files is."""
    paths = [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]
    files = {os.path.relpath(path, folder).replace(os.sep, "/"): os.path.getsize(path) for path in sorted(paths)}
    marker = {"demo": recipe.digest(), "recipe": dataclasses.asdict(recipe), "files": files}
    with open(os.path.join(folder, _MARKER), "w", encoding="utf-8", newline="") as file:
        json.dump(marker, file, indent=1)


def _publish(aside: str, folder: str, recipe: Recipe) -> None:
    """Gives a finished set its name, unless another process was quicker."""
    if _is_whole(folder, recipe):
        return
    remains = f"{folder}.{uuid.uuid4().hex}.old"
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, remains)
    try:
        os.rename(aside, folder)
    except OSError:
        if not _is_whole(folder, recipe):
            raise
    finally:
        shutil.rmtree(remains, ignore_errors=True)


def _write_set(folder: str, recipe: Recipe) -> None:
    vocabulary().write(os.path.join(folder, _FILES["labels"]))
    _write_ontology(os.path.join(folder, _FILES["ontology"]))
    for number, split in enumerate(_SPLITS):
        clips = _clips(recipe, split)
        os.mkdir(os.path.join(folder, split))
        wavs = [f"{split}/{index:03d}.wav" for index in range(len(clips))]
        for index, (wav, leaves) in enumerate(zip(wavs, clips)):
            rng = np.random.default_rng([recipe.seed, number, index])
            audio.write_pcm16(os.path.join(folder, wav), sounds.clip(rng, leaves, **recipe.scene()))
        labels = [_labels_of(leaves) for leaves in clips]
        if split == "train":
            _write_datafile(os.path.join(folder, _FILES["truth"]), wavs, labels)
            labels = _with_missing(labels, recipe)
        _write_datafile(os.path.join(folder, _FILES[split]), wavs, labels)


def _write_datafile(path: str, wavs: Sequence[str], labels: Sequence[Sequence[str]]) -> None:
    """Writes a datafile and its weight file; paths relative to the datafile let the folder be moved."""
    datafile.write(path, ((wav, [_mid(key) for key in keys]) for wav, keys in zip(wavs, labels)))
    datafile.write_weights(datafile.Datafile.read(path, vocabulary()), datafile.weight_path(path))


def _write_ontology(path: str) -> None:
    """Writes the hierarchy with a root that is in no vocabulary, as AudioSet has them."""
    children = {"sound": tuple(_CHILDREN), **_CHILDREN}
    entries = [
        {
            "id": _mid(key),
            "name": _name(key),
            "child_ids": [_mid(child) for child in children.get(key, ())],
            "restrictions": ["abstract"] if key == "sound" else [],
        }
        for key in ("sound", *_ORDER)
    ]
    with open(path, "w", encoding="utf-8", newline="") as file:
        json.dump(entries, file, indent=1)


# ---- What is in which clip -------------------------------------------------------------------------------------------


def _clips(recipe: Recipe, split: str) -> list[tuple[str, ...]]:
    """The one or two leaves of every clip of a split, in random order."""
    rng = _planner(recipe, split)
    events = np.repeat(np.arange(len(LEAVES)), recipe.events_of(split))
    rng.shuffle(events)
    pairs = round(len(events) * recipe.two_events / (1 + recipe.two_events))
    # Two of one kind would be one label: the second of them changes places with any other event.
    while len(same := np.flatnonzero(events[:pairs] == events[pairs : 2 * pairs])):
        swap = [pairs + same[0], rng.integers(len(events))]
        events[swap] = events[swap[::-1]]
    kinds = [LEAVES[leaf] for leaf in events]
    clips = [*zip(kinds[:pairs], kinds[pairs : 2 * pairs]), *((kind,) for kind in kinds[2 * pairs :])]
    return [clips[index] for index in rng.permutation(len(clips))]


def _planner(recipe: Recipe, purpose: str) -> np.random.Generator:
    """The draws for a whole split; its number is after those of the splits, from which the draws for clips come."""
    return np.random.default_rng([recipe.seed, len(_SPLITS) + (*_SPLITS, "missing").index(purpose)])


def _labels_of(leaves: Sequence[str]) -> list[str]:
    """The leaves and their parents, in the order of the vocabulary."""
    return sorted({*leaves, *(_PARENT[leaf] for leaf in leaves)}, key=_ORDER.index)


def _with_missing(labels: Sequence[Sequence[str]], recipe: Recipe) -> list[list[str]]:
    """The labels without some of the parents and leaves, as annotators leave them out; each clip keeps at least one."""
    rng = _planner(recipe, "missing")
    kept = [list(keys) for keys in labels]
    for group, share in ((_CHILDREN, recipe.parents_removed), (_PARENT, recipe.leaves_removed)):
        found = [(clip, key) for clip, keys in enumerate(labels) for key in keys if key in group]
        for index in rng.choice(len(found), round(share * len(found)), replace=False):
            clip, key = found[index]
            if len(kept[clip]) > 1:
                kept[clip].remove(key)
    return kept
