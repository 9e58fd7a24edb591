"""Training with a teacher: the loss against NumPy, and runs that are taught."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sounds
from scipy.special import expit, logit, softmax

from psla_jax.config import OptimizerConfig, RunConfig, SamplingConfig, from_json, to_json
from psla_jax.config_distill import DistillConfig
from psla_jax.config_fields import ConfigError
from psla_jax.data.datafile import Datafile
from psla_jax.data.teacher import TeacherError
from psla_jax.training import loop, losses
from psla_jax.training.distillation import distilled
from psla_jax.training.monitor import TrainingMonitor
from psla_jax.training.run_directory import RunError

RNG = np.random.default_rng(0)
SCORES, TEACHER = RNG.uniform(0.01, 0.99, (2, 6, 4)).astype(np.float32)
LABELS = np.eye(4, dtype=np.float32)[RNG.integers(4, size=6)]


def bce(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray | float = 1.0) -> np.ndarray:
    return -(weights * (targets * np.log(scores) + (1 - targets) * np.log(1 - scores))).mean(axis=1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_the_loss_is_the_weighted_sum_of_both_cross_entropies(temperature, weight):
    config = DistillConfig(teacher="t.npz", weight=weight, temperature=temperature)
    loss = distilled(losses.from_config(OptimizerConfig(loss="bce")), config, exclusive=False)
    soft = expit(logit(SCORES) / temperature)
    expected = weight * bce(soft, TEACHER) + (1 - weight) * bce(SCORES, LABELS)
    np.testing.assert_allclose(loss(SCORES, LABELS, TEACHER), expected, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_of_exclusive_classes_is_that_of_distributions(temperature):
    config = DistillConfig(teacher="t.npz", weight=0.3, temperature=temperature)
    loss = distilled(losses.from_config(OptimizerConfig(loss="ce")), config, exclusive=True)
    teacher = TEACHER / TEACHER.sum(axis=1, keepdims=True)
    soft = softmax(np.log(SCORES) / temperature, axis=1)
    of_labels = -np.log((SCORES / SCORES.sum(axis=1, keepdims=True))[LABELS > 0])
    expected = -0.3 * (teacher * np.log(soft)).sum(axis=1) + 0.7 * of_labels
    np.testing.assert_allclose(loss(SCORES, LABELS, teacher), expected, rtol=1e-5)


def test_class_weights_apply_to_both_parts_and_smoothing_to_the_labels():
    weights = np.array([0.1, 0.4, 1.5, 2.0], np.float32)
    of_labels = losses.from_config(OptimizerConfig(loss="bce", label_smoothing=0.2), weights)
    config = DistillConfig(teacher="t.npz", weight=0.3)
    loss = distilled(of_labels, config, exclusive=False, weights=jnp.asarray(weights))
    expected = 0.3 * bce(SCORES, TEACHER, weights) + 0.7 * bce(SCORES, 0.8 * LABELS + 0.1, weights)
    np.testing.assert_allclose(loss(SCORES, LABELS, TEACHER), expected, rtol=1e-5)


def test_a_loss_of_ones_own_gets_the_fields_that_it_names():
    def counted(scores: jax.Array, labels: jax.Array, valid: jax.Array) -> jax.Array:
        return scores.sum(axis=1) + valid

    loss = distilled(counted, DistillConfig(teacher="t.npz", weight=0.3), exclusive=False)
    expected = 0.3 * bce(SCORES, TEACHER) + 0.7 * (SCORES.sum(axis=1) + 2)
    result = losses.call(loss, SCORES, LABELS, {"teacher": TEACHER, "valid": np.full(6, 2.0)})
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_two_teachers_are_refused():
    with pytest.raises(ConfigError, match=r"distill.model is \('m',\): use either this or distill.teacher"):
        DistillConfig(teacher="t.npz", model=("m",))


def test_a_config_of_an_earlier_version_has_no_teacher():
    fields = json.loads(to_json(RunConfig()))
    del fields["distill"]
    assert from_json(json.dumps(fields)).distill == DistillConfig()
    taught = RunConfig(distill=DistillConfig(teacher="t.npz", clips=("a", "b")))
    assert from_json(to_json(taught)) == taught


# ---- runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of `sounds`, with scores of the training clips that tell nothing but their classes."""
    directory = sounds.make(tmp_path_factory.mktemp("sounds"))
    train = Datafile.read(directory / "train.json", sounds.VOCABULARY)
    clips = [train.clip_id(clip) for clip in range(len(train))]
    hot = np.stack([train.multi_hot(clip) for clip in range(len(train))])
    np.savez(directory / "teacher.npz", clips=clips, scores=0.1 + 0.8 * hot, mids=sounds.VOCABULARY.mids)
    np.savez(directory / "labels.npz", clips=clips, scores=hot, mids=sounds.VOCABULARY.mids)
    return directory


def config(data: Path, run_dir: Path, teacher: str = "teacher.npz", **fields: object) -> RunConfig:
    settings = {"teacher": str(data / teacher) if teacher else ""} | fields
    sampling = SamplingConfig(freq_mask=24, time_mask=10, spectrogram=("mixup", "specaugment"))
    return sounds.config(data, run_dir, sampling=sampling, distill=DistillConfig(**settings))


def results(directory: Path) -> list[bytes]:
    return [(directory / name).read_bytes() for name in ("result.csv", "summary.json")]


@pytest.fixture(scope="module")
def taught(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "taught"
    loop.train(config(data, directory))
    return directory


def losses_of(directory: Path) -> np.ndarray:
    table = np.genfromtxt(directory / "result.csv", delimiter=",", names=True)
    return table["train_loss"]


def test_a_teacher_of_the_labels_themselves_changes_nothing_but_rounding(data, tmp_path):
    """Under mixup of waveforms and of spectrograms, its scores are mixed with the weights of the labels."""
    loop.train(config(data, tmp_path / "taught", "labels.npz", weight=0.6))
    loop.train(config(data, tmp_path / "plain", ""))
    np.testing.assert_allclose(losses_of(tmp_path / "taught"), losses_of(tmp_path / "plain"), rtol=2e-3)


def test_a_teacher_is_imitated(data, taught, tmp_path):
    loop.train(config(data, tmp_path / "plain", ""))
    assert abs(losses_of(taught) - losses_of(tmp_path / "plain")).min() > 0.01


def test_a_taught_run_resumes_bit_for_bit(data, taught, tmp_path, monkeypatch):
    settings, add = dataclasses.replace(config(data, tmp_path / "run"), checkpoint_every=2), TrainingMonitor.add

    def interrupted(self, step, batch, metrics):
        if step == 6:
            raise KeyboardInterrupt
        add(self, step, batch, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingMonitor, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop.train(settings)
    loop.train(dataclasses.replace(settings, data=dataclasses.replace(settings.data, workers=1)))
    assert results(tmp_path / "run") == results(taught)


def test_a_run_does_not_resume_with_other_scores(data, taught, tmp_path):
    settings = config(data, taught)
    content = (data / "teacher.npz").read_bytes()
    try:
        (data / "teacher.npz").write_bytes((data / "labels.npz").read_bytes())
        with pytest.raises(RunError, match=r"was started on other data .changed: teacher.: choose another directory"):
            loop.train(settings)
    finally:
        (data / "teacher.npz").write_bytes(content)
    with pytest.raises(RunError, match=r"distill.weight: 0.9 -> 0.5"):
        loop.train(config(data, taught, weight=0.5))


def test_a_teacher_that_cannot_be_used_ends_the_run_before_its_first_step(data, tmp_path):
    np.savez(tmp_path / "t.npz", clips=np.array(["z.wav"]), scores=np.ones((1, 4)), mids=sounds.VOCABULARY.mids)
    settings = sounds.config(data, tmp_path / "run", distill=DistillConfig(teacher=str(tmp_path / "t.npz")))
    with pytest.raises(TeacherError, match=r"distill.teacher is .*none of the 26 training clips"):
        loop.train(settings)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_what_the_teacher_lacks_is_counted_in_the_log(data, tmp_path, capsys):
    with np.load(data / "teacher.npz") as file:
        np.savez(tmp_path / "t.npz", clips=file["clips"][:20], scores=file["scores"][:20], mids=file["mids"])
    loop.train(sounds.config(data, tmp_path / "run", distill=DistillConfig(teacher=str(tmp_path / "t.npz"))))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "scores of 20 of 26 training clips" in log
    assert "clips without teacher, for which labels stand in: 6, such as " in log
