"""`psla teach`: the scores of exactly the inputs that a training sees, and trainings that use them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sounds
import starting
from flax import nnx

from psla_jax.audio.frontend import Frontend
from psla_jax.cli.main import main
from psla_jax.config import ModelConfig, RunConfig, SamplingConfig
from psla_jax.config_distill import DistillConfig
from psla_jax.config_fields import ConfigError
from psla_jax.data import datasets
from psla_jax.data.loader import batches
from psla_jax.data.taught import Card, TaughtScores
from psla_jax.data.teacher import TeacherError
from psla_jax.data.train_source import train_source
from psla_jax.models.factory import from_config
from psla_jax.models.model_dir import ModelCard, save_model
from psla_jax.models.state import split_model
from psla_jax.training import loop
from psla_jax.training.monitor import TrainingMonitor
from psla_jax.training.objective import augmented, with_spectrograms
from psla_jax.training.online_teacher import load_teacher
from psla_jax.training.run_directory import RunError
from psla_jax.training.teach import Teaching, teach
from psla_jax.training.trainer import augmentation, step_key

SAMPLING = SamplingConfig(freq_mask=24, time_mask=10, waveform=("mixup", "gain"), spectrogram=("mixup", "specaugment"))
CLASSES = len(sounds.VOCABULARY)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sounds.make(tmp_path_factory.mktemp("sounds"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, settings = tmp_path_factory.mktemp("models") / "teacher", ModelConfig("tiny:build")
    network = from_config(settings, CLASSES, jnp.float32, nnx.Rngs(7))
    params, stats = split_model(network)
    # Larger weights give scores that differ from clip to clip; those of the heads stay a mean.
    params = jax.tree.map_with_path(lambda path, x: x if "head_weight" in jax.tree_util.keystr(path) else 2 * x, params)
    save_model(
        folder, ModelCard(settings, sounds.config(folder, folder).frontend, sounds.VOCABULARY, {}), params, stats
    )
    return str(folder)


def config(data: Path, run_dir: Path, accumulate: int = 1, **distill: object) -> RunConfig:
    settings = sounds.config(data, run_dir, sampling=SAMPLING, distill=DistillConfig(**distill))
    optimizer = dataclasses.replace(settings.optimizer, epochs=2, accumulate=accumulate)
    aggregation = dataclasses.replace(settings.aggregation, first=1, last=2)
    return dataclasses.replace(settings, optimizer=optimizer, aggregation=aggregation)


@pytest.fixture(scope="module")
def taught(data: Path, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("taught") / "out"
    teach(config(data, out), [model], str(out), top=100)
    return out


def arrays(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("*.npy")}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_sample_has_the_scores_of_the_online_teacher(data, model, tmp_path, accumulate):
    """Two epochs of 26 clips in batches of 8 rows, of which the last one has 2, on four devices.

    The config is that of the training: it names the folder, which does not exist yet.
    """
    settings = config(data, tmp_path, accumulate, teacher=str(tmp_path / "out"))
    teach(settings, [model], str(tmp_path / "out"), top=100)
    card = Card.read(tmp_path / "out")
    assert (card.top, card.epochs, card.samples) == (CLASSES, 2, 26)
    scores = TaughtScores(str(tmp_path / "out"), card, 1.0, False)
    sets = datasets.load(settings.data, "bce")
    frontend = Frontend.from_config(settings.frontend)
    source = train_source(
        sets.train, settings.data, SAMPLING, num_samples=frontend.num_samples, epochs=2, seed=0, taught=scores
    )
    teacher = load_teacher([model], frontend, sets.vocabulary, exclusive=False, trusted=("tiny:build",), field="x")
    augment, compared = augmentation(SAMPLING, frontend), 0
    for number, batch in enumerate(batches(source)):
        key = step_key(np.uint32(0), np.int32(number))
        keys = [key] if accumulate == 1 else list(jax.random.split(key, accumulate))
        for part, part_key in enumerate(keys):
            rows = {
                name: jnp.asarray(batch[name][part::accumulate])
                for name in ("waveform", "num_samples", "labels", "valid", "taught")
            }
            untaught = {name: value for name, value in rows.items() if name != "taught"}
            seen = augmented(with_spectrograms(untaught, frontend), augment, jax.random.split(part_key)[0])
            expected = np.asarray(teacher.scores(seen["spectrogram"], teacher.weights))
            valid = np.asarray(rows["valid"]) > 0
            np.testing.assert_allclose(rows["taught"][valid], expected[valid], rtol=2e-3, atol=1e-4)
            assert not np.asarray(rows["taught"])[~valid].any()
            compared += valid.sum()
    assert compared == 52


def test_of_each_row_the_largest_scores_and_the_mean_of_the_others_are_stored(data, model, taught, tmp_path):
    teach(config(data, tmp_path), [model], str(tmp_path / "out"), top=2)
    whole, largest = (
        TaughtScores(str(directory), Card.read(directory), 1.0, False) for directory in (taught, tmp_path / "out")
    )
    labels = np.zeros(CLASSES, np.float32)
    for epoch, sample in ((0, 0), (0, 25), (1, 3)):
        all_scores = whole.scores(epoch, sample, labels)
        expected, order = all_scores.copy(), np.argsort(all_scores)
        expected[order[:2]] = all_scores[order[:2]].mean()
        np.testing.assert_allclose(largest.scores(epoch, sample, labels), expected, rtol=2e-3)


def losses_of(directory: Path) -> np.ndarray:
    return np.genfromtxt(directory / "result.csv", delimiter=",", names=True)["train_loss"]


def test_a_training_on_stored_scores_is_that_with_the_model_and_resumes_exactly(
    data, model, taught, tmp_path, monkeypatch
):
    loop.train(config(data, tmp_path / "online", model=(model,)))
    loop.train(config(data, tmp_path / "stored", teacher=str(taught)))
    np.testing.assert_allclose(losses_of(tmp_path / "stored"), losses_of(tmp_path / "online"), rtol=1e-3)
    for kind, fields in {"stored": {"teacher": str(taught)}, "online": {"model": (model,)}}.items():
        settings = dataclasses.replace(config(data, tmp_path / f"again-{kind}", **fields), checkpoint_every=2)
        add = TrainingMonitor.add

        def interrupted(self, step, batch, metrics, add=add):
            if step == 5:
                raise KeyboardInterrupt
            add(self, step, batch, metrics)

        with monkeypatch.context() as patch:
            patch.setattr(TrainingMonitor, "add", interrupted)
            with pytest.raises(KeyboardInterrupt):
                loop.train(settings)
        loop.train(settings)
        for name in ("result.csv", "summary.json"):
            assert (tmp_path / f"again-{kind}" / name).read_bytes() == (tmp_path / kind / name).read_bytes()
    saved = json.loads((tmp_path / "online" / "data.json").read_text())
    assert list(saved["teacher"]) == ["models"]


def test_an_interrupted_pass_goes_on_exactly(data, model, taught, tmp_path, monkeypatch):
    record = Teaching._write_progress
    monkeypatch.setattr("psla_jax.training.teach.SAVE_SECONDS", 0.0)

    def killed(self: Teaching, steps: int) -> None:
        record(self, steps)
        if steps == 5:
            raise KeyboardInterrupt

    settings = config(data, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Teaching, "_write_progress", killed)
        with pytest.raises(KeyboardInterrupt):
            teach(settings, [model], str(tmp_path / "out"), top=100)
    with pytest.raises(TeacherError, match=r"which has 5 of the 8 steps of this training: run psla teach"):
        loop.train(config(data, tmp_path / "run", teacher=str(tmp_path / "out")))
    teach(settings, [model], str(tmp_path / "out"), top=100)
    assert arrays(tmp_path / "out") == arrays(taught)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"by other settings \(seed: 0 -> 1\)"),
        ({"sampling": dataclasses.replace(SAMPLING, mixup=0.2)}, r"\(sampling.mixup: 0.5 -> 0.2\)"),
    ],
)
def test_a_training_with_other_draws_is_refused(data, taught, tmp_path, change, message):
    with pytest.raises(TeacherError, match=message):
        loop.train(dataclasses.replace(config(data, tmp_path / "run", teacher=str(taught)), **change))


def test_other_misuse_is_refused(data, model, taught, tmp_path):
    settings = config(data, tmp_path / "run", teacher=str(taught))
    longer = dataclasses.replace(settings, optimizer=dataclasses.replace(settings.optimizer, epochs=3))
    with pytest.raises(TeacherError, match="has 8 of the 12 steps of this training"):
        loop.train(longer)
    unmixed = dataclasses.replace(SAMPLING, spectrogram=("specaugment",))
    two_views = DistillConfig(teacher=str(taught), consistency=0.5)
    with pytest.raises(TeacherError, match=r"scores of one view of every clip, and distill.consistency 0.5 draws two"):
        loop.train(dataclasses.replace(settings, sampling=unmixed, distill=two_views))
    with pytest.raises(TeacherError, match="a folder without scores of psla teach"):
        loop.train(config(data, tmp_path / "run", teacher=str(data)))
    with pytest.raises(TeacherError, match="has scores of other models or settings: choose another folder"):
        teach(dataclasses.replace(settings, seed=5), [model], str(taught))
    with pytest.raises(TeacherError, match="holds other files"):
        teach(settings, [model], str(data))
    with pytest.raises(ConfigError, match="--top is 0"):
        teach(settings, [model], str(tmp_path / "out"), top=0)
    with pytest.raises(TeacherError, match="--models: there is no model at /nowhere"):
        teach(settings, ["/nowhere"], str(tmp_path / "out"))


def test_a_run_does_not_resume_with_another_teacher(data, model, tmp_path):
    settings = config(data, tmp_path / "run", model=(model,))
    shutil.copytree(model, tmp_path / "copy")
    changed = dataclasses.replace(settings, distill=DistillConfig(model=(str(tmp_path / "copy"),)))
    loop.train(changed)
    (tmp_path / "copy" / "weights.safetensors").write_bytes(b"other")
    with pytest.raises(RunError, match=r"was started on other data .changed: teacher."):
        loop.train(changed)


def test_a_clip_that_could_not_be_read_has_its_labels(taught, tmp_path):
    shutil.copytree(taught, tmp_path / "copy")
    rest = np.load(tmp_path / "copy" / "rest.npy", mmap_mode="r+")
    rest[26 + 3] = np.nan
    rest.flush()
    scores, labels = TaughtScores(str(tmp_path / "copy"), Card.read(taught), 1.0, False), np.eye(4, dtype=np.float32)[2]
    np.testing.assert_array_equal(scores.scores(1, 3, labels), labels)
    assert 0 < scores.scores(1, 4, labels)[0] < 1


def test_the_command_teaches_and_a_training_in_another_process_learns(data, model, tmp_path):
    """Several processes of `psla teach` write the scores of one."""
    directory = starting.prepare(tmp_path / "work", data)
    options = ("--sampling.spectrogram", "mixup", "specaugment", "--optimizer.epochs", "1", "--aggregation.first", "1")
    options = (*options, "--aggregation.last", "1")
    for out, count in (("one", 1), ("two", 2)):
        given = (*options, "--models", model, "--out", out)
        if count == 1:
            processes = [starting.start(directory, *given, command="teach")]
        else:
            processes = starting.start_together(directory, 2, *given, command="teach")
        assert [process.wait(timeout=300) for process in processes] == [0] * count, [
            log.read_text() for log in directory.glob("out*.txt")
        ]
    one, two = (TaughtScores(str(directory / out), Card.read(directory / out), 1.0, False) for out in ("one", "two"))
    for sample in range(26):
        np.testing.assert_allclose(one.scores(0, sample, None), two.scores(0, sample, None), rtol=2e-3)
    starting.finish(directory, *options, "--distill.teacher", "one")
    assert (directory / "run" / "summary.json").is_file()


def test_the_command_needs_a_folder_and_models(data, tmp_path, capsys):
    directory = starting.prepare(tmp_path / "work", data)
    assert main(["teach"]) == 2
    assert main(["teach", str(directory / "config.py")]) == 2
    assert main(["teach", str(directory / "config.py"), "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[2].strip()[:30] for line in errors] == [
        "psla teach needs a config as i",
        "psla teach needs a directory f",
        "--models is empty: name the mo",
    ]
