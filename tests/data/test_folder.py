"""Folders of recordings: the layouts that are recognised, and what becomes of everything else that lies in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from servers import one_sentence

from psla_jax.data.collection import Collection, CollectionError
from psla_jax.data.files import FilesError
from psla_jax.data.folder import read


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(folder: Path, **options) -> Collection:
    return read(str(folder), progress=False, **options)


def clips(collection: Collection, root: Path) -> dict[str, tuple[str, str]]:
    """Label and part of every clip, by its path below `root`."""
    return {str(Path(c.path).relative_to(root)): (*c.labels, c.part) for c in collection.clips}


def test_the_class_is_the_folder_directly_below_at_any_depth(tmp_path):
    touch(
        tmp_path, "dog/a.wav", "dog/2020/may/b.FLAC", "Cat, big/c.wav", "dog/._a.wav", ".cache/d.wav", "dog/notes.txt"
    )
    made = found(tmp_path)
    assert clips(made, tmp_path) == {
        "Cat, big/c.wav": ("Cat, big", ""),
        "dog/2020/may/b.FLAC": ("dog", ""),
        "dog/a.wav": ("dog", ""),
    }
    assert (made.layout, made.exclusive, made.left_out, made.notes) == ("class folders", True, (), ())


def test_a_path_may_be_relative_or_end_with_a_slash(tmp_path, monkeypatch):
    touch(tmp_path, "here/dog/a.wav", "here/cat/b.wav")
    monkeypatch.chdir(tmp_path)
    for path in ("here", "here/", "./here/../here"):
        assert [c.path for c in found(Path(path)).clips] == [
            str(tmp_path / p) for p in ("here/cat/b.wav", "here/dog/a.wav")
        ]


def test_what_is_left_out_is_said(tmp_path):
    touch(tmp_path, "dog/a.wav", "cat/b.wav", "loose.wav", "cat/c.m4a", "documents/readme.txt", "Empty/.keep")
    odd = os.fsencode(tmp_path)
    open(odd + b"/dog/caf\xe9.wav", "wb").close()
    os.mkdir(odd + b"/v\xf6gel")
    open(odd + b"/v\xf6gel/a.wav", "wb").close()
    made = found(tmp_path)
    assert set(clips(made, tmp_path)) == {"dog/a.wav", "cat/b.wav"}
    reasons = {os.fsencode(left.path).removeprefix(odd + b"/"): left.reason for left in made.left_out}
    assert "lies in no class folder" in reasons.pop(b"loose.wav")
    assert "of a kind that is not read: convert" in reasons.pop(b"cat/c.m4a")
    assert set(reasons) == {b"dog/caf\xe9.wav", b"v\xf6gel/a.wav"}
    assert all("not UTF-8" in reason for reason in reasons.values())
    assert sorted(made.notes) == [
        f"the folder {name} has no audio that can be used, so it is no class"
        for name in ("Empty", "documents", r"v\xf6gel")
    ]


def test_a_split_into_folders_is_recognised(tmp_path):
    touch(tmp_path, "train/dog/a.wav", "train/cat/b.wav", "Test/dog/x/c.wav", "val/cat/d.wav", "val/e.wav")
    made = found(tmp_path)
    assert made.layout == "class folders in folders of a split"
    assert clips(made, tmp_path) == {
        "Test/dog/x/c.wav": ("dog", "evaluation"),
        "train/cat/b.wav": ("cat", "train"),
        "train/dog/a.wav": ("dog", "train"),
        "val/cat/d.wav": ("cat", "validation"),
    }
    assert [Path(left.path).name for left in made.left_out] == ["e.wav"]


def esc50(folder: Path) -> Path:
    """Six clips in the layout of ESC-50: its columns, its names, its folds."""
    rows = [
        f"{fold}-{100 + fold}-{take}-{target}.wav,{fold},{target},{name},False,{100 + fold},{take}"
        for fold in (1, 2, 5) for take, target, name in (("A", 0, "dog"), ("B", 14, "chirping_birds"))
    ]  # fmt: skip
    touch(folder, "README.md", "LICENSE", *(f"audio/{row.partition(',')[0]}" for row in rows))
    (folder / "meta").mkdir()
    (folder / "meta" / "esc50.csv").write_text("\n".join(["filename,fold,target,category,esc10,src_file,take", *rows]))
    return folder


def test_esc50_is_recognised(tmp_path):
    made = found(esc50(tmp_path))
    assert made.layout == "ESC-50; fold 5 of 1, 2, 5 evaluates"
    assert made.exclusive
    known = clips(made, tmp_path / "audio")
    assert known["5-105-B-14.wav"] == ("chirping_birds", "evaluation")
    assert known["1-101-A-0.wav"] == ("dog", "train")
    assert sum(part == "evaluation" for _, part in known.values()) == 2
    assert clips(found(tmp_path, fold="2"), tmp_path / "audio")["2-102-A-0.wav"] == ("dog", "evaluation")


def test_speech_commands_are_recognised(tmp_path):
    touch(tmp_path, "yes/a_nohash_0.wav", "yes/b_nohash_0.wav", "no/a_nohash_0.wav", "_background_noise_/hum.wav")
    (tmp_path / "validation_list.txt").write_text("yes/a_nohash_0.wav\n")
    (tmp_path / "testing_list.txt").write_text("no/a_nohash_0.wav\nno/gone_nohash_1.wav\n")
    made = found(tmp_path)
    assert made.layout == "Speech Commands"
    assert clips(made, tmp_path) == {
        "no/a_nohash_0.wav": ("no", "evaluation"),
        "yes/a_nohash_0.wav": ("yes", "validation"),
        "yes/b_nohash_0.wav": ("yes", "train"),
    }
    assert made.notes == ("clips of the lists that are not there: 1, such as no/gone_nohash_1.wav",)


def test_without_audio_there_is_one_sentence(tmp_path):
    touch(tmp_path, "dog/notes.txt")
    with pytest.raises(CollectionError, match="there is no audio file under") as caught:
        found(tmp_path)
    one_sentence(caught.value)
    touch(tmp_path, "loose.wav")
    with pytest.raises(
        CollectionError, match=r"no recording under .* can be used: .*loose\.wav lies in no class folder"
    ):
        found(tmp_path)
    with pytest.raises(FilesError, match="cannot be read"):
        found(tmp_path / "nowhere")


def test_a_fold_is_for_data_with_folds(tmp_path):
    with pytest.raises(CollectionError, match="has no folds, but --fold is 3"):
        found(touch(tmp_path, "dog/a.wav"), fold="3")
