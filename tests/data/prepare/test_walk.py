"""Recursive listing of audio files, and the check for existing output files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from servers import one_sentence

from psla_jax.data.prepare.walk import PathError, check_overwrite, printable_path, walk


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def audio_files(*folders: Path) -> list[str]:
    return [
        os.path.join(listing.folder, name) for listing in walk([str(f) for f in folders], progress=False)
        for name in listing.audio
    ]  # fmt: skip


def test_audio_is_recognised_by_extension_in_any_case_and_depth_and_hidden_files_are_ignored(tmp_path):
    audio = ["a.wav", "B.WAV", "c.FLAC", "deep/er/d.mp3", "e.x.ogg", "wav.wav"]
    touch(tmp_path, *audio, "notes.txt", "wav", "._a.wav", ".hidden.wav", ".git/f.wav", "deep/._d.mp3", ".wav")
    (tmp_path / "folder.wav").mkdir()
    assert sorted(audio_files(tmp_path)) == sorted(str(tmp_path / name) for name in audio)


def test_unsupported_formats_are_listed_separately(tmp_path):
    touch(tmp_path, "a.wav", "b.rm", "c.AAX", "d.WebM")
    (listing,) = walk([str(tmp_path)], progress=False)
    assert (listing.audio, listing.unsupported) == (["a.wav", "d.WebM"], ["b.rm", "c.AAX"])


def test_pipes_and_broken_links_are_listed_separately(tmp_path):
    touch(tmp_path, "a.wav")
    os.mkfifo(tmp_path / "b.wav")
    os.mkfifo(tmp_path / "notes.txt")
    (tmp_path / "c.wav").symlink_to("nowhere.wav")
    (listing,) = walk([str(tmp_path)], progress=False)
    assert (listing.audio, listing.not_files) == (["a.wav"], ["b.wav", "c.wav"])


def test_links_are_followed_but_no_folder_is_listed_twice(tmp_path):
    touch(tmp_path, "disk/one/a.wav", "disk/two/b.wav")
    here = tmp_path / "here"
    here.mkdir()
    (here / "link").symlink_to(tmp_path / "disk", target_is_directory=True)
    (tmp_path / "disk" / "one" / "back").symlink_to(tmp_path / "disk", target_is_directory=True)
    (here / "c.wav").symlink_to(tmp_path / "disk" / "one" / "a.wav")
    (here / "broken.wav").symlink_to(tmp_path / "nowhere.wav")
    names = [str(here / name) for name in ("c.wav", "link/one/a.wav", "link/two/b.wav")]
    assert audio_files(here) == names
    assert [name[-5:] for name in audio_files(here, here / "link", tmp_path / "disk" / "two")] == [
        "c.wav",
        "b.wav",
        "a.wav",
    ]


def test_folders_and_files_are_sorted_by_name(tmp_path):
    folders = [f"{i:03d}" for i in range(600)]
    touch(tmp_path, *(f"{folder}/{name}.wav" for folder in reversed(folders) for name in "ba"))
    assert audio_files(tmp_path) == [str(tmp_path / folder / f"{name}.wav") for folder in folders for name in "ab"]


def test_names_that_are_not_utf8_are_listed_separately(tmp_path):
    root = os.fsencode(tmp_path)
    os.mkdir(root + b"/caf\xe9")
    for name in (b"a\xff.wav", "grün.wav".encode(), b"caf\xe9/b.wav"):
        open(root + b"/" + name, "wb").close()
    listings = list(walk([str(tmp_path)], progress=False))
    assert [listing.audio for listing in listings] == [["grün.wav"], []]
    paths = [os.path.join(listing.folder, name) for listing in listings for name in listing.not_utf8]
    assert [printable_path(path) for path in paths] == [f"{tmp_path}/a\\xff.wav", f"{tmp_path}/caf\\xe9/b.wav"]


def test_a_missing_folder_or_a_file_is_an_error_of_one_sentence(tmp_path):
    touch(tmp_path, "a.wav")
    for name, reason in (("nowhere", "No such file"), ("a.wav", "Not a directory")):
        with pytest.raises(PathError, match=reason) as caught:
            audio_files(tmp_path / name)
        assert str(tmp_path / name) in one_sentence(caught.value)


def test_existing_files_are_replaced_only_with_force_and_folders_never(tmp_path):
    touch(tmp_path, "a.json")
    (tmp_path / "b.json").mkdir()
    (tmp_path / "c.json").symlink_to("nowhere")
    new = str(tmp_path / "new.json")
    check_overwrite([new], force=False)
    check_overwrite([new, str(tmp_path / "a.json"), str(tmp_path / "c.json")], force=True)
    for name in ("a.json", "c.json"):
        with pytest.raises(PathError, match=rf"{name} already exists: .*--out, or replace .* with --force\.$"):
            check_overwrite([new, str(tmp_path / name)], force=False)
    with pytest.raises(PathError, match=r"b\.json already exists: choose another folder with --out\.$"):
        check_overwrite([str(tmp_path / "b.json")], force=True)
