"""Scores that are kept from one call to the next, as long as neither model nor data have changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from psla_jax import __version__, processes, shards
from psla_jax.cache import cache_directory
from psla_jax.checkpoints import fingerprint, read_card
from psla_jax.data.datafile import Datafile
from psla_jax.ontology import Vocabulary
from psla_jax.scores import Scores, ScoresError


def kept(
    model: Path,
    vocabulary: Vocabulary,
    data: Datafile,
    settings: Sequence[str],
    make: Callable[[], Scores],
    on_found: Callable[[], None],
) -> Scores:
    """A model's scores from an earlier call, if everything is the same as then; else made, and kept.

    Args:
        model: its directory.
        vocabulary: the classes, in the order of the scores.
        data: the clips.
        settings: what else the scores depend on.
        make: scores the clips.
        on_found: called where that is not needed.
    """
    file = cache_directory() / "scores" / f"{_identity(model, vocabulary, data, settings)}.npz"
    found = None
    if file.is_file():
        with contextlib.suppress(ScoresError):  # Damaged ones are made again.
            found = Scores.load(file)
    if not processes.any_of(found is None) and found is not None:
        on_found()
        return found
    scores = make()
    scores.save(file)
    return scores


def _identity(model: Path, vocabulary: Vocabulary, data: Datafile, settings: Sequence[str]) -> str:
    """A hash of all that scores depend on: model, datafile, every clip's size and date, classes, settings."""
    known = [__version__, fingerprint(model, read_card(model)), vocabulary.to_json(), data.sha256, *settings]
    digest = hashlib.sha256(json.dumps(known).encode())
    for clip in range(len(data)):
        try:
            found = os.stat(shards.file_of(data.wav(clip)))
            digest.update(f"{data.wav(clip)} {found.st_size} {found.st_mtime_ns}".encode("utf-8", "surrogatepass"))
        except OSError:
            digest.update(b"absent")
    return digest.hexdigest()[:32]
