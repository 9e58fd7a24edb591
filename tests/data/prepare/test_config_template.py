"""Config for custom recordings: its dependence on number and lengths of the clips, and the generated file."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from psla_jax.config import RunConfig, flatten
from psla_jax.data.prepare.config_template import (
    DataSummary,
    batch_size,
    is_imbalanced,
    make_config,
    render_config,
    target_length,
)

ESC = DataSummary("ESC-50", {"train": 1600, "evaluation": 400}, (32,) * 50, 50, (5.0,) * 1600, True)
TAGS = DataSummary("my sounds!", {"train": 90, "validation": 9, "evaluation": 9}, (1, 80), 2, (0.5,) * 90, False)
LARGE = DataSummary("x", {"train": 400_000, "validation": 9}, (900, 1000), 500, (10.0,) * 100, False)


def run(summary: DataSummary, folder: Path) -> tuple[RunConfig, str]:
    text = render_config(summary)
    (folder / "config.py").write_text(text)
    return runpy.run_path(str(folder / "config.py"))["config"], text


@pytest.mark.parametrize("summary", [ESC, TAGS, LARGE])
def test_the_file_contains_the_config_with_paths_in_its_own_folder(tmp_path, summary):
    actual = flatten(run(summary, tmp_path)[0])
    expected = flatten(make_config(summary))
    for name in ("train", "validation", "evaluation", "labels"):
        file = expected.pop(f"data.{name}")
        assert actual.pop(f"data.{name}") == (str(tmp_path / file) if file else "")
    assert actual == expected


def test_comments_explain_the_values(tmp_path):
    config, text = run(ESC, tmp_path)
    assert "config for 1,600 clips of 50 classes" in text
    assert "# cross-entropy, because every clip has exactly one class" in text
    assert "Without a validation set, no best epoch is selected" in text
    assert "# 32 training clips per class: each clip is drawn once per epoch" in text
    assert config.optimizer.loss == "auto"
    assert config.run_dir == "runs/ESC-50"
    _, text = run(replace(ESC, parts={**ESC.parts, "validation": 4}), tmp_path)
    assert "highest accuracy on the validation set" in text
    config, text = run(TAGS, tmp_path)
    assert "binary cross-entropy, because a clip may have several classes" in text
    assert "highest mAP on the validation set" in text
    assert "1 to 80 training clips per class: rare classes are drawn more often" in text
    assert config.run_dir == "runs/my_sounds_"
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("seconds", "frames"),
    [((0.01,), 32), ((1.0,) * 99, 128), ((5.0,), 512), ((10.0,), 1024), ((30.0,), 3000), ((3600.0,), 3000),
     ((1.0,) * 96 + (20.0,) * 4, 128), ((1.0,) * 90 + (20.0,) * 10, 2016), ((0.335,), 32), ((0.345,), 64)],
)  # fmt: skip
def test_frames_cover_95_percent_of_the_clips(seconds, frames):
    assert target_length(seconds) == frames


@pytest.mark.parametrize(
    ("clips", "frames", "size"), [(5, 96, 8), (160, 96, 8), (320, 96, 16), (10**6, 1056, 64), (10**6, 3000, 16)]
)
def test_batch_size_depends_on_number_and_length_of_the_clips(clips, frames, size):
    assert batch_size(clips, frames) == size


def test_classes_of_similar_size_are_not_imbalanced():
    assert not is_imbalanced((10, 30))
    assert is_imbalanced((10, 31))


@pytest.mark.parametrize("clips", [1, 7, 50, 1000, 30_000, 300_000, 2_000_000])
@pytest.mark.parametrize("length", [0.03, 1.0, 30.0])
def test_every_size_gives_a_valid_config(clips, length):
    config = make_config(DataSummary("x", {"train": clips, "evaluation": 1}, (1,), 2, (length,), True))
    assert 20 <= config.optimizer.epochs <= 100
    assert config.aggregation.last == 0, "the last epoch"
    steps = -(-clips // config.data.batch_size) * config.optimizer.epochs
    assert config.optimizer.warmup_steps <= max(steps // 10, 1)
