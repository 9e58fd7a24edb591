"""The config for own recordings: what follows from their number and lengths, and that the file is that config."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from psla_jax.config import RunConfig, flatten
from psla_jax.data.recipe import Facts, batch_size, config_of, config_text, is_uneven, target_length

ESC = Facts("ESC-50", {"train": 1600, "evaluation": 400}, (32,) * 50, 50, (5.0,) * 1600, True)
TAGS = Facts("my sounds!", {"train": 90, "validation": 9, "evaluation": 9}, (1, 80), 2, (0.5,) * 90, False)
LARGE = Facts("x", {"train": 400_000, "validation": 9}, (900, 1000), 500, (10.0,) * 100, False)


def run(facts: Facts, folder: Path) -> tuple[RunConfig, str]:
    text = config_text(facts)
    (folder / "config.py").write_text(text)
    return runpy.run_path(str(folder / "config.py"))["config"], text


@pytest.mark.parametrize("facts", [ESC, TAGS, LARGE])
def test_the_file_is_the_config_with_paths_beside_itself(tmp_path, facts):
    found = flatten(run(facts, tmp_path)[0])
    wanted = flatten(config_of(facts))
    for name in ("train", "validation", "evaluation", "labels"):
        file = wanted.pop(f"data.{name}")
        assert found.pop(f"data.{name}") == (str(tmp_path / file) if file else "")
    assert found == wanted


def test_what_follows_is_in_the_file_to_be_read(tmp_path):
    config, text = run(ESC, tmp_path)
    assert "1,600 training clips of 50 classes" in text
    assert "here cross-entropy, as every clip has exactly one class" in text
    assert "There is no validation set" in text
    assert "classes have 32 to 32 training clips, so each comes once an epoch" in text
    assert config.optimizer.loss == "auto"
    assert config.run_dir == "runs/ESC-50"
    _, text = run(replace(ESC, parts={**ESC.parts, "validation": 4}), tmp_path)
    assert "highest accuracy on the validation set" in text
    config, text = run(TAGS, tmp_path)
    assert "binary cross-entropy, as a clip may have several classes" in text
    assert "highest mAP on the validation set" in text
    assert "classes have 1 to 80 training clips, drawn by class" in text
    assert config.run_dir == "runs/my_sounds_"
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("seconds", "frames"),
    [((0.01,), 32), ((1.0,) * 99, 128), ((5.0,), 512), ((10.0,), 1024), ((30.0,), 3000), ((3600.0,), 3000),
     ((1.0,) * 96 + (20.0,) * 4, 128), ((1.0,) * 90 + (20.0,) * 10, 2016), ((0.335,), 32), ((0.345,), 64)],
)  # fmt: skip
def test_frames_hold_nineteen_of_twenty_clips_whole(seconds, frames):
    assert target_length(seconds) == frames


@pytest.mark.parametrize(
    ("clips", "frames", "size"), [(5, 96, 8), (160, 96, 8), (320, 96, 16), (10**6, 1056, 64), (10**6, 3000, 16)]
)
def test_batches_fit_the_number_of_clips_and_the_memory(clips, frames, size):
    assert batch_size(clips, frames) == size


def test_classes_of_about_the_same_size_are_not_balanced():
    assert not is_uneven((10, 30))
    assert is_uneven((10, 31))


@pytest.mark.parametrize("clips", [1, 7, 50, 1000, 30_000, 300_000, 2_000_000])
@pytest.mark.parametrize("length", [0.03, 1.0, 30.0])
def test_every_size_gives_a_config_that_can_run(clips, length):
    config = config_of(Facts("x", {"train": clips, "evaluation": 1}, (1,), 2, (length,), True))
    assert 20 <= config.optimizer.epochs <= 100
    assert config.aggregation.last == config.optimizer.epochs
    steps = -(-clips // config.data.batch_size) * config.optimizer.epochs
    assert config.optimizer.warmup_steps <= max(steps // 10, 1)
