"""Search for recordings: files, folders and pipes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from psla_jax.runtime import streams
from psla_jax.tagging.share import FolderError
from psla_jax.tagging.tag_files import Recording, find_audio, readable


def test_folders_are_searched_in_order_and_files_may_have_any_name(tmp_path):
    for name in ("b/2.WAV", "b/1.flac", "a.ogg", "notes.txt", ".hidden.wav", "b/c/3.mp3", "b/raw.raw"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    recordings = find_audio([str(tmp_path), str(tmp_path / "notes.txt"), str(tmp_path / "a.ogg")])
    assert [r.output_name for r in recordings] == ["a.ogg", "b/1.flac", "b/2.WAV", "b/c/3.mp3", "notes.txt"]
    assert [Path(r.path) for r in recordings] == [tmp_path / r.output_name for r in recordings]


def test_recordings_of_the_same_name_get_unique_output_names(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.wav").touch()
    names = [r.output_name for r in find_audio([str(tmp_path / "x"), str(tmp_path / "y" / "a.wav")])]
    assert len(set(names)) == 2
    assert all(name.endswith("a.wav") and not name.startswith("/") for name in names)


def test_links_are_followed_once_and_other_files_are_counted(tmp_path):
    (tmp_path / "in" / "z").mkdir(parents=True)
    (tmp_path / "far" / "deep").mkdir(parents=True)
    for name in ("in/z/a.wav", "in/one.txt", "in/z/two.txt", "in/README", "in/.hidden", "far/b.m4a", "far/deep/c.mp3"):
        (tmp_path / name).touch()
    (tmp_path / "in" / "a link").symlink_to(tmp_path / "in" / "z", target_is_directory=True)
    (tmp_path / "in" / "z" / "far").symlink_to(tmp_path / "far", target_is_directory=True)
    (tmp_path / "far" / "deep" / "back").symlink_to(tmp_path / "in", target_is_directory=True)
    notes: list[str] = []
    recordings = find_audio([str(tmp_path / "in")], notes.append)
    assert [r.output_name for r in recordings] == ["z/a.wav", "z/far/b.m4a", "z/far/deep/c.mp3"]
    assert notes == [
        f"{tmp_path / 'in'}: files that are not audio by their names are left out: 2 .txt, 1 without an extension"
    ]


def test_missing_audio_is_an_error(tmp_path):
    with pytest.raises(FolderError, match="contains no audio"):
        find_audio([str(tmp_path)])
    (tmp_path / "a.txt").touch()
    with pytest.raises(FolderError, match=r"contains no audio \(other files: 1 \.txt\): name a folder"):
        find_audio([str(tmp_path)])
    with pytest.raises(FolderError, match="nothing to tag"):
        find_audio([])


def test_a_recording_that_is_named_twice_is_tagged_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").touch()
    assert [r.path for r in find_audio(["in", "./in/a.wav", str(tmp_path / "in"), "in/../in"])] == ["in/a.wav"]


def test_a_whole_path_as_output_name_is_not_that_of_another_recording(tmp_path):
    """The second a.wav gets its whole path, which a file in the first folder has below that folder."""
    other = tmp_path / "other" / "a.wav"
    for path in (tmp_path / "x" / "a.wav", tmp_path / "x" / str(other)[1:], other):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    recordings = find_audio([str(tmp_path / "x"), str(other)])
    assert len({r.output_name for r in recordings}) == len(recordings) == 3


def test_pipes_in_a_folder_are_left_out_and_counted(tmp_path):
    (tmp_path / "a.wav").touch()
    for name in ("b.wav", "c.flac"):
        os.mkfifo(tmp_path / name)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "d.wav"))  # An address has at most 108 bytes.
    notes: list[str] = []
    assert [r.output_name for r in find_audio([str(tmp_path)], notes.append)] == ["a.wav"]
    assert notes == [f"{tmp_path} has 3 pipes or devices with names of audio files, which are left out."]
    (tmp_path / "a.wav").unlink()
    with pytest.raises(FolderError, match="contains no audio"):
        find_audio([str(tmp_path)])


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    def walk(folder, onerror):
        onerror(PermissionError(13, "Permission denied", f"{folder}/private"))
        return [(folder, [], ["a.wav"])]

    monkeypatch.setattr(os, "walk", walk)
    notes: list[str] = []
    assert [r.output_name for r in find_audio([str(tmp_path)], notes.append)] == ["a.wav"]
    assert notes == [f"{tmp_path}/private cannot be searched (Permission denied): check its permissions"]


def test_a_pipe_is_read_once_and_its_content_can_be_read_again():
    read_end, write_end = os.pipe()
    path = f"/dev/fd/{read_end}"
    os.write(write_end, b"sound")
    os.close(write_end)
    with readable(Recording(path, "name")) as recording:
        assert (recording.path, recording.output_name) == (path, "name")
        assert Path(recording.file).read_bytes() == Path(recording.file).read_bytes() == b"sound"
    assert not os.path.exists(recording.file)
    os.close(read_end)


@pytest.mark.parametrize(
    ("path", "message"),
    [("/dev/zero", "/dev/zero cannot be read .it is a device or a socket"), ("pipe", "no program writes to this pipe")],
)
def test_what_gives_no_recording_is_one_sentence(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(streams, "PARTNER_SECONDS", 0.05)
    os.mkfifo("pipe")
    with pytest.raises(FolderError, match=message), readable(Recording(path, "name")):
        pass
