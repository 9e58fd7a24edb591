"""The calibration of a tagger's models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from psla_jax.models.model_dir import Model, find_model, fingerprint
from psla_jax.tagging.calibration.model import CALIBRATION, Calibration
from psla_jax.tagging.defaults import Policy


def load_calibration(models: Sequence[tuple[str, Model]], policy: Policy) -> tuple[Calibration | None, list[str]]:
    """Returns the calibration of a single model, if any, and a note if it does not fit the models or `policy`."""
    directories = [find_model(Path(path)) for path, _ in models]
    if len(directories) != 1:
        calibrated = [path for (path, _), folder in zip(models, directories) if (folder / CALIBRATION).exists()]
        names = ", ".join(dict.fromkeys(calibrated))
        return None, [f"the ensemble is not calibrated: the calibration of {names} is ignored"] if calibrated else []
    card = models[0][1].card
    calibration = Calibration.read(directories[0], card.vocabulary, lambda: fingerprint(directories[0], card))
    if calibration is None or (fitted := calibration.fitted.get("policy")) == policy:
        return calibration, []
    return calibration, [
        f"{models[0][0]} was calibrated with --policy {fitted}: with {policy}, recordings shorter than a "
        "window have other scores, and their probabilities may be wrong"
    ]
