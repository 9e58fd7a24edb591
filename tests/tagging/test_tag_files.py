"""Search for recordings, and outputs of interrupted runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from psla_jax.tagging.tag_files import FolderError, ResultWriter, find_audio


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
        f"{tmp_path / 'in'} also contains 3 files that are not audio by their names: 2 .txt, 1 without an extension"
    ]


def test_missing_audio_is_an_error(tmp_path):
    with pytest.raises(FolderError, match="contains no audio"):
        find_audio([str(tmp_path)])
    (tmp_path / "a.txt").touch()
    with pytest.raises(FolderError, match=r"contains no audio \(other files: 1 \.txt\): name a folder"):
        find_audio([str(tmp_path)])
    with pytest.raises(FolderError, match="nothing to tag"):
        find_audio([])


def open_writer(tmp_path, settings=1, overwrite=False) -> ResultWriter:
    files = {str(tmp_path / "a.csv"): "head\n", str(tmp_path / "b.json"): ""}
    return ResultWriter(files, [], settings, overwrite=overwrite)


def append(writer: ResultWriter, tmp_path, clip: str) -> None:
    writer.append(clip, {str(tmp_path / "a.csv"): f"{clip}\n", str(tmp_path / "b.json"): f"<{clip}>\n"})


@pytest.mark.parametrize("torn", ["", "half a li", "clip 2\nclip"])
def test_an_interrupted_run_resumes_after_the_last_complete_line(tmp_path, torn):
    first = open_writer(tmp_path)
    for clip in ("0", "1"):
        append(first, tmp_path, clip)
    first.close()
    with open(tmp_path / "a.csv", "a") as file:
        file.write(torn)
    with open(tmp_path / "a.csv.progress", "a") as file:
        file.write(torn and '{"clip": "2", "si')
    again = open_writer(tmp_path)
    assert again.done == {"0", "1"}
    for clip in ("2", "3"):
        append(again, tmp_path, clip)
    again.finish()
    assert (tmp_path / "a.csv").read_text() == "head\n0\n1\n2\n3\n"
    assert (tmp_path / "b.json").read_text() == "<0>\n<1>\n<2>\n<3>\n"
    assert not (tmp_path / "a.csv.progress").exists()


def test_an_interruption_before_the_first_clip_changes_nothing(tmp_path):
    open_writer(tmp_path).close()
    again = open_writer(tmp_path)
    append(again, tmp_path, "0")
    again.finish()
    assert (tmp_path / "a.csv").read_text() == "head\n0\n"


def test_nothing_is_overwritten_unless_asked(tmp_path):
    done = open_writer(tmp_path)
    append(done, tmp_path, "0")
    done.finish()
    with pytest.raises(FolderError, match=r"a\.csv already exists"):
        open_writer(tmp_path)
    replaced = open_writer(tmp_path, overwrite=True)
    assert replaced.done == set()
    replaced.finish()
    assert (tmp_path / "a.csv").read_text() == "head\n"


def test_other_settings_do_not_resume(tmp_path):
    begun = open_writer(tmp_path)
    append(begun, tmp_path, "0")
    begun.close()
    with pytest.raises(FolderError, match="was started with other settings"):
        open_writer(tmp_path, settings=2)
    assert (tmp_path / "a.csv").read_text() == "head\n0\n"
    (tmp_path / "a.csv.progress").write_text("this\nis something else\n")
    with pytest.raises(FolderError, match="is not a progress file of psla tag"):
        open_writer(tmp_path)


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "mine.txt").write_text("mine")
    with pytest.raises(FolderError, match="labels already exists"):
        ResultWriter({}, [str(tmp_path / "labels")], 1, overwrite=False)
    assert json.dumps(sorted(p.name for p in tmp_path.iterdir())) == '["labels"]'
