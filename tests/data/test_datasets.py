"""Data sets of a run: notes on their datafiles."""

from __future__ import annotations

import pytest
import sounds

from psla_jax.config import DataConfig
from psla_jax.data import datafile, datasets


def test_repeats_and_another_folder_of_relative_paths_are_logged(tmp_path, monkeypatch):
    folder = sounds.make(tmp_path / "sounds")
    names = [f"train{i:02d}.wav" for i in (0, 1, 1, 2)]
    for part, repeated in (("train", names), ("evaluation", names), ("validation", names[:2])):
        datafile.write(tmp_path / f"{part}.json", [(name, ["/t/low"]) for name in repeated])
    paths = {part: str(tmp_path / f"{part}.json") for part in ("train", "validation", "evaluation")}
    config = DataConfig(**paths, labels=str(folder / "labels.csv"))
    monkeypatch.chdir(folder)
    logged: list[str] = []
    sets = datasets.load(config, "bce", logged.append)
    assert sets.train.wav(0) == str(folder / "train00.wav")
    moved = [line for line in logged if f"its relative paths are in the working directory, {folder}," in line]
    assert [line.partition(":")[0] for line in moved] == list(paths.values())
    (repeats,) = set(logged) - set(moved)
    assert repeats == (
        f"{paths['evaluation']}: 1 of 4 records list a clip again, which counts several times in metrics"
    )


@pytest.mark.parametrize("held_out", [False, True])
def test_ordinary_datafiles_have_no_notes(tmp_path, held_out):
    folder = sounds.make(tmp_path)
    data = datafile.Datafile.read(folder / "train.json", sounds.VOCABULARY)
    assert datasets.data_notes(data, held_out=held_out) == []
