"""Folders of recordings: recognised layouts, excluded files and notes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from servers import one_sentence

from psla_jax.data.prepare.collection import Collection, CollectionError
from psla_jax.data.prepare.folder import read
from psla_jax.data.prepare.walk import PathError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def read_folder(folder: Path, **options) -> Collection:
    return read(str(folder), progress=False, **options)


def clips(collection: Collection, root: Path) -> dict[str, tuple[str, str]]:
    """Returns label and part of every clip, by its path relative to `root`."""
    return {str(Path(c.path).relative_to(root)): (*c.labels, c.part) for c in collection.clips}


def test_the_class_is_the_top_level_folder_at_any_depth(tmp_path):
    touch(
        tmp_path, "dog/a.wav", "dog/2020/may/b.FLAC", "Cat, big/c.wav", "dog/._a.wav", ".cache/d.wav", "dog/notes.txt"
    )
    made = read_folder(tmp_path)
    assert clips(made, tmp_path) == {
        "Cat, big/c.wav": ("Cat, big", ""),
        "dog/2020/may/b.FLAC": ("dog", ""),
        "dog/a.wav": ("dog", ""),
    }
    assert (made.layout, made.exclusive, made.excluded, made.notes) == ("class folders", True, (), ())


def test_a_path_may_be_relative_or_end_with_a_slash(tmp_path, monkeypatch):
    touch(tmp_path, "here/dog/a.wav", "here/cat/b.wav")
    monkeypatch.chdir(tmp_path)
    for path in ("here", "here/", "./here/../here"):
        assert [c.path for c in read_folder(Path(path)).clips] == [
            str(tmp_path / p) for p in ("here/cat/b.wav", "here/dog/a.wav")
        ]


def test_excluded_files_and_unused_folders_are_reported(tmp_path):
    touch(tmp_path, "dog/a.wav", "cat/b.wav", "loose.wav", "cat/c.rm", "documents/readme.txt", "Empty/.keep")
    root = os.fsencode(tmp_path)
    open(root + b"/dog/caf\xe9.wav", "wb").close()
    os.mkdir(root + b"/v\xf6gel")
    open(root + b"/v\xf6gel/a.wav", "wb").close()
    made = read_folder(tmp_path)
    assert set(clips(made, tmp_path)) == {"dog/a.wav", "cat/b.wav"}
    reasons = {os.fsencode(clip.path).removeprefix(root + b"/"): clip.reason for clip in made.excluded}
    assert "is not in a class folder" in reasons.pop(b"loose.wav")
    assert "is in an unsupported format: convert" in reasons.pop(b"cat/c.rm")
    assert set(reasons) == {b"dog/caf\xe9.wav", b"v\xf6gel/a.wav"}
    assert all("not UTF-8" in reason for reason in reasons.values())
    assert sorted(made.notes) == [
        f"the folder {name} has no usable audio, so it is not a class" for name in ("Empty", "documents", r"v\xf6gel")
    ]


def test_a_split_into_folders_is_recognised(tmp_path):
    touch(tmp_path, "train/dog/a.wav", "train/cat/b.wav", "Test/dog/x/c.wav", "val/cat/d.wav", "val/e.wav")
    made = read_folder(tmp_path)
    assert made.layout == "class folders in folders of a split"
    assert clips(made, tmp_path) == {
        "Test/dog/x/c.wav": ("dog", "evaluation"),
        "train/cat/b.wav": ("cat", "train"),
        "train/dog/a.wav": ("dog", "train"),
        "val/cat/d.wav": ("cat", "validation"),
    }
    assert [Path(clip.path).name for clip in made.excluded] == ["e.wav"]


def esc50(folder: Path) -> Path:
    """Writes six clips in the layout of ESC-50, with its columns, file names and folds."""
    rows = [
        f"{fold}-{100 + fold}-{take}-{target}.wav,{fold},{target},{name},False,{100 + fold},{take}"
        for fold in (1, 2, 5) for take, target, name in (("A", 0, "dog"), ("B", 14, "chirping_birds"))
    ]  # fmt: skip
    touch(folder, "README.md", "LICENSE", *(f"audio/{row.partition(',')[0]}" for row in rows))
    (folder / "meta").mkdir()
    (folder / "meta" / "esc50.csv").write_text("\n".join(["filename,fold,target,category,esc10,src_file,take", *rows]))
    return folder


def test_esc50_is_recognised(tmp_path):
    made = read_folder(esc50(tmp_path))
    assert made.layout == "ESC-50; fold 5 of 1, 2, 5 is for evaluation"
    assert made.exclusive
    labels = clips(made, tmp_path / "audio")
    assert labels["5-105-B-14.wav"] == ("chirping_birds", "evaluation")
    assert labels["1-101-A-0.wav"] == ("dog", "train")
    assert sum(part == "evaluation" for _, part in labels.values()) == 2
    assert clips(read_folder(tmp_path, fold="2"), tmp_path / "audio")["2-102-A-0.wav"] == ("dog", "evaluation")


def test_speech_commands_are_recognised(tmp_path):
    touch(tmp_path, "yes/a_nohash_0.wav", "yes/b_nohash_0.wav", "no/a_nohash_0.wav", "_background_noise_/hum.wav")
    (tmp_path / "validation_list.txt").write_text("yes/a_nohash_0.wav\n")
    (tmp_path / "testing_list.txt").write_text("no/a_nohash_0.wav\nno/gone_nohash_1.wav\n")
    made = read_folder(tmp_path)
    assert made.layout == "Speech Commands"
    assert clips(made, tmp_path) == {
        "no/a_nohash_0.wav": ("no", "evaluation"),
        "yes/a_nohash_0.wav": ("yes", "validation"),
        "yes/b_nohash_0.wav": ("yes", "train"),
    }
    assert made.notes == ("listed clips that are missing: 1, such as no/gone_nohash_1.wav",)


def test_a_folder_without_audio_is_an_error_of_one_sentence(tmp_path):
    touch(tmp_path, "dog/notes.txt")
    with pytest.raises(CollectionError, match="there is no audio file under") as caught:
        read_folder(tmp_path)
    one_sentence(caught.value)
    touch(tmp_path, "loose.wav")
    with pytest.raises(
        CollectionError, match=r"no recording under .* can be used: .*loose\.wav is not in a class folder"
    ):
        read_folder(tmp_path)
    with pytest.raises(PathError, match="cannot be read"):
        read_folder(tmp_path / "nowhere")


def test_a_fold_needs_a_data_set_with_folds(tmp_path):
    with pytest.raises(CollectionError, match="has no folds, but --fold is 3"):
        read_folder(touch(tmp_path, "dog/a.wav"), fold="3")
