"""Cache of scores across commands, valid as long as neither the model nor the data change."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from psla_jax.audio import shards
from psla_jax.data.datafile import Datafile
from psla_jax.evaluation.scores import Scores, ScoresError
from psla_jax.models.model_dir import fingerprint, read_card
from psla_jax.runtime import distributed, exported
from psla_jax.runtime.cache import cache_directory
from psla_jax.vocabulary.vocabulary import Vocabulary

DECODERS = ("av", "numpy", "soundfile", "soxr")
"""Distributions that decode and resample audio."""


def cached(
    model: Path,
    vocabulary: Vocabulary,
    data: Datafile,
    settings: Sequence[str],
    compute: Callable[[], Scores],
    on_hit: Callable[[], None],
    log: Callable[[str], None],
) -> Scores:
    """Returns the cached scores of a model directory, after calling `on_hit`, or computes and caches them.

    They depend on the model, the clips in `data`, the order of the classes in `vocabulary`, `settings`, and everything
    in :func:`psla_jax.runtime.exported.environment`. `log` receives a line if they cannot be written. The scores of
    custom models are not cached, because their code may change.
    """
    card = read_card(model)
    if card.model.custom_code:
        return compute()
    path = cache_directory() / "scores" / f"{_key(fingerprint(model, card), vocabulary, data, settings)}.npz"
    scores = None
    with contextlib.suppress(ScoresError):  # A damaged file is replaced.
        scores = Scores.load(path)
    # If any process has no cached scores, all compute them, because that is a collective operation.
    if not distributed.any_process(scores is None) and scores is not None:
        on_hit()
        return scores
    scores = compute()
    try:
        scores.save(path)
    except OSError as error:
        log(f"the scores cannot be cached ({error.strerror}: {error.filename}): PSLA_CACHE can name another directory")
    return scores


def _key(model: str, vocabulary: Vocabulary, data: Datafile, settings: Sequence[str]) -> str:
    """Returns a hash of everything that affects the scores, including size and modification time of every clip."""
    decoders = [(name, metadata.version(name)) for name in DECODERS]
    inputs = [repr(exported.environment()), decoders, model, vocabulary.to_json(), data.sha256, *settings]
    digest = hashlib.sha256(json.dumps(inputs).encode())
    for clip in range(len(data)):
        path = data.wav(clip)
        try:
            status = os.stat(shards.storage_path(path))
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode("utf-8", "surrogatepass"))
        except OSError:
            digest.update(b"absent")
    return digest.hexdigest()[:32]
