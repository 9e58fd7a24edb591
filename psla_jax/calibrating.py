"""A model's scores made probabilities and decisions: ``psla calibrate``."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from psla_jax import score_cache
from psla_jax.calibration import CALIBRATION, CalibratedClass, Calibration, CalibrationError
from psla_jax.calibration_fit import Method, Recipe, crossfit, fit
from psla_jax.calibration_report import show
from psla_jax.checkpoints import find_model, fingerprint, load_model, read_card
from psla_jax.config import Channel
from psla_jax.data.datafile import Datafile
from psla_jax.data.sets import locate
from psla_jax.files import written_aside
from psla_jax.journal import Journal
from psla_jax.ontology import Vocabulary
from psla_jax.reliability import Decisions, Reliability, decisions, reliability
from psla_jax.scores import Scores
from psla_jax.tagging.programs import Policy
from psla_jax.tagging.tagger import POLICY, Failure, Options, Tagger

COMPARED = (0.5, 0.2)
"""Thresholds for all classes that the fitted ones are compared with; ``psla tag`` has the second one by default."""


@dataclass(frozen=True)
class Request:
    """What to calibrate, on what, and how. Fields as in ``psla calibrate``."""

    model: str
    data: str
    method: Method = "sigmoid"
    precision: float | None = None
    min_positives: int = 10
    folds: int = 5
    policy: Policy | Literal[""] = ""
    channel: Channel = "mean"
    batch_size: int = 0
    trust: bool = False
    keep_scores: bool = True
    json: str = ""
    overwrite: bool = False


def calibrate(request: Request) -> Calibration:
    """Scores the clips as ``psla tag`` does, fits thresholds and curves, and puts them into the model directory.

    Raises:
        ValueError: one of this package's own, naming the model or file and the remedy.
    """
    recipe = Recipe(request.method, request.precision, request.min_positives, request.folds)
    directory = find_model(Path(request.model))
    card = read_card(directory)
    _require_new(directory, request)
    journal = Journal()
    say = _to_errors if request.json == "-" else journal.say
    data = Datafile.read(locate(request.data, say), card.vocabulary)
    scores = _scores(directory, card.vocabulary, data, request, journal, say)
    calibration = _calibration(fingerprint(directory, card), card.vocabulary, scores, recipe, _origin(data, request))
    place = calibration.write(directory)
    if request.json != "-":
        show(journal.console, calibration, card.vocabulary)
    if request.json == "-":
        sys.stdout.write(calibration.to_json())
    elif request.json:
        with written_aside(request.json) as file:
            file.write(calibration.to_json())
    say(f"{place}: thresholds and probabilities, which psla tag uses from now on")
    return calibration


def _require_new(directory: Path, request: Request) -> None:
    """Raises CalibrationError if something would be overwritten that was not meant to be."""
    for place in (str(directory / CALIBRATION), request.json):
        if place not in ("", "-") and os.path.exists(place) and not request.overwrite:
            raise CalibrationError(f"{place} is there already: replace it with --overwrite True.")
    folder = os.path.dirname(request.json) or "."
    if not os.path.isdir(folder):
        raise CalibrationError(f"there is no folder {folder} for {request.json}: make it, or name another place.")


def _to_errors(text: str) -> None:
    print(text, file=sys.stderr)


def _scores(
    directory: Path,
    vocabulary: Vocabulary,
    data: Datafile,
    request: Request,
    journal: Journal,
    say: Callable[[str], None],
) -> Scores:
    """The clips' scores, from an earlier call if nothing has changed since."""
    options = Options(policy=request.policy or POLICY, channel=request.channel, batch_size=request.batch_size)

    def make() -> Scores:
        return _scored(directory, data, options, request.trust, journal)

    def found() -> None:
        say(f"{request.model}: scores kept from an earlier call (--keep-scores False makes them anew)")

    settings = ("tag", options.policy, f"{options.overlap}", options.channel)
    kept = score_cache.kept(directory, vocabulary, data, settings, make, found) if request.keep_scores else make()
    if kept.skipped:
        say(f"{len(kept.skipped)} clips cannot be read: {', '.join(kept.skipped[:5])}")
    _require_finite(kept, vocabulary)
    return kept


def _scored(directory: Path, data: Datafile, options: Options, trust: bool, journal: Journal) -> Scores:
    """Scores every clip as ``psla tag`` would, so that what is fitted is what is used."""
    tagger = Tagger([(str(directory), load_model(directory, trust=trust))], options)
    rows: list[np.ndarray] = []
    read: list[int] = []
    skipped: list[str] = []
    with journal.progress(f"scoring {data.source}", len(data)) as bar:
        tagger.on_compile = bar.describe
        for clip, found in enumerate(bar.over(tagger.tag_all(data.wav(i) for i in range(len(data))))):
            if isinstance(found, Failure):
                skipped.append(data.clip_id(clip))
                continue
            rows.append(found.scores)
            read.append(clip)
    if not rows:
        raise CalibrationError(f"none of the {len(data)} clips of {data.source} can be read: check it with psla check.")
    labels = np.stack([data.multi_hot(clip) for clip in read])
    return Scores(np.array([data.clip_id(clip) for clip in read], dtype=str), np.stack(rows), labels, tuple(skipped))


def _require_finite(scores: Scores, vocabulary: Vocabulary) -> None:
    bad = np.argwhere(~np.isfinite(scores.scores))
    if len(bad):
        clip, column = bad[0]
        raise CalibrationError(
            f"the score of {scores.clips[clip]} for {vocabulary.mids[column]} is {scores.scores[clip, column]}: "
            "calibrate a model that is sound (psla check-model)."
        )


def _origin(data: Datafile, request: Request) -> dict[str, Any]:
    """What the scores are of, and how recordings were scored."""
    return {
        "data": Path(data.source).name,
        "sha256": data.sha256,
        "policy": request.policy or POLICY,
        "overlap": Options().overlap,
        "channel": request.channel,
    }


# ---- from scores to a calibration with its figures


def _calibration(
    model: str, vocabulary: Vocabulary, scores: Scores, recipe: Recipe, origin: dict[str, Any]
) -> Calibration:
    """Fits to all clips, and measures on held-out ones, on scores as they are, and on the clips fitted to."""
    found, labels = scores.scores, scores.labels
    fitted, held_out = fit(found, labels, recipe), crossfit(found, labels, recipe)
    deciders = fitted.deciders
    views = {
        "raw": (found, None),
        "held_out": (held_out.probabilities, decisions(held_out.present, labels)),
        "fitted": (deciders.probabilities(found), decisions(deciders.present(found), labels)),
    }
    positives = (labels > 0.5).sum(axis=0)
    scored = positives > 0
    figures: dict[str, Any] = {
        name: _overall(reliability(values[:, scored], labels[:, scored]), decided)
        for name, (values, decided) in views.items()
    }
    for threshold in COMPARED:
        figures[f"score >= {threshold:g}"] = _overall(None, decisions(found >= threshold, labels))
    classes = tuple(
        CalibratedClass(mid, int(positives[i]), own, _of_class(views, labels, i) if scored[i] else {})
        for i, (mid, own) in enumerate(zip(vocabulary.mids, fitted.own))
    )
    notes = {
        **origin,
        "clips": len(labels),
        "unreadable": len(scores.skipped),
        "method": recipe.method,
        "precision": recipe.precision,
        "min_positives": recipe.min_positives,
        "folds": recipe.folds,
    }
    return Calibration(model, notes, figures, fitted.shared, classes)


def _overall(measured: Reliability | None, decided: Decisions | None) -> dict[str, float | None]:
    """The figures of all clips and classes, by name."""
    asked = ((measured, ("brier", "ece", "ece_per_class")), (decided, ("micro_f1", "macro_f1", "precision", "recall")))
    return {name: _number(getattr(figures, name)) for figures, names in asked if figures is not None for name in names}


def _of_class(views: dict[str, Any], labels: np.ndarray, i: int) -> dict[str, Any]:
    """The figures of one class, by view."""
    figures: dict[str, Any] = {}
    for name, (values, decided) in views.items():
        measured = reliability(values[:, i : i + 1], labels[:, i : i + 1])
        figures[name] = {"brier": _number(measured.brier), "ece": _number(measured.ece)}
        if decided is not None:
            figures[name] |= {figure: _number(column[i]) for figure, column in decided.of_class.items()}
    return figures


def _number(value: float) -> float | None:
    """Six digits, which are the same everywhere; JSON has no NaN."""
    return None if math.isnan(value) else float(f"{value:.6g}")
