"""Which files of a folder are audio, and what is said about the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from servers import one_sentence

from psla_jax.data.files import FilesError, require_new, shown, walk


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(*folders: Path) -> list[str]:
    return [
        os.path.join(listing.folder, name) for listing in walk([str(f) for f in folders], progress=False)
        for name in listing.audio
    ]  # fmt: skip


def test_audio_is_known_by_its_ending_in_any_case_and_depth_and_what_is_hidden_is_not_seen(tmp_path):
    audio = ["a.wav", "B.WAV", "c.FLAC", "deep/er/d.mp3", "e.x.ogg", "wav.wav"]
    touch(tmp_path, *audio, "notes.txt", "wav", "._a.wav", ".hidden.wav", ".git/f.wav", "deep/._d.mp3", ".wav")
    (tmp_path / "folder.wav").mkdir()
    assert sorted(found(tmp_path)) == sorted(str(tmp_path / name) for name in audio)


def test_sound_that_is_not_read_is_told_apart(tmp_path):
    touch(tmp_path, "a.wav", "b.m4a", "c.WebM")
    (listing,) = walk([str(tmp_path)], progress=False)
    assert (listing.audio, listing.foreign) == (["a.wav"], ["b.m4a", "c.WebM"])


def test_links_are_followed_but_no_folder_is_listed_twice(tmp_path):
    touch(tmp_path, "disk/one/a.wav", "disk/two/b.wav")
    here = tmp_path / "here"
    here.mkdir()
    (here / "link").symlink_to(tmp_path / "disk", target_is_directory=True)
    (tmp_path / "disk" / "one" / "back").symlink_to(tmp_path / "disk", target_is_directory=True)
    (here / "c.wav").symlink_to(tmp_path / "disk" / "one" / "a.wav")
    (here / "broken.wav").symlink_to(tmp_path / "nowhere.wav")
    names = [str(here / name) for name in ("c.wav", "link/one/a.wav", "link/two/b.wav")]
    assert found(here) == names
    assert [name[-5:] for name in found(here, here / "link", tmp_path / "disk" / "two")] == ["c.wav", "b.wav", "a.wav"]


def test_the_order_is_that_of_the_names(tmp_path):
    folders = [f"{i:03d}" for i in range(600)]
    touch(tmp_path, *(f"{folder}/{name}.wav" for folder in reversed(folders) for name in "ba"))
    assert found(tmp_path) == [str(tmp_path / folder / f"{name}.wav") for folder in folders for name in "ab"]


def test_a_name_that_is_not_utf8_is_told_apart(tmp_path):
    root = os.fsencode(tmp_path)
    os.mkdir(root + b"/caf\xe9")
    for name in (b"a\xff.wav", "grün.wav".encode(), b"caf\xe9/b.wav"):
        open(root + b"/" + name, "wb").close()
    listings = list(walk([str(tmp_path)], progress=False))
    assert [listing.audio for listing in listings] == [["grün.wav"], []]
    odd = [os.path.join(listing.folder, name) for listing in listings for name in listing.unnameable]
    assert [shown(path) for path in odd] == [f"{tmp_path}/a\\xff.wav", f"{tmp_path}/caf\\xe9/b.wav"]


def test_a_folder_that_is_not_there_or_is_a_file_is_one_sentence(tmp_path):
    touch(tmp_path, "a.wav")
    for name, reason in (("nowhere", "No such file"), ("a.wav", "Not a directory")):
        with pytest.raises(FilesError, match=reason) as caught:
            found(tmp_path / name)
        assert str(tmp_path / name) in one_sentence(caught.value)


def test_what_is_there_is_only_replaced_by_force_and_a_folder_never(tmp_path):
    touch(tmp_path, "a.json")
    (tmp_path / "b.json").mkdir()
    (tmp_path / "c.json").symlink_to("nowhere")
    new = str(tmp_path / "new.json")
    require_new([new], force=False)
    require_new([new, str(tmp_path / "a.json"), str(tmp_path / "c.json")], force=True)
    for name in ("a.json", "c.json"):
        with pytest.raises(FilesError, match=rf"{name} is there already: .*--out, or replace .* with --force\.$"):
            require_new([new, str(tmp_path / name)], force=False)
    with pytest.raises(FilesError, match=r"b\.json is there already: name another folder with --out\.$"):
        require_new([str(tmp_path / "b.json")], force=True)
