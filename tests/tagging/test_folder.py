"""Finding recordings, and outputs that survive an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from psla_jax.tagging.folder import FolderError, Results, find_audio


def test_folders_are_walked_in_order_and_files_are_taken_as_they_are(tmp_path):
    for name in ("b/2.WAV", "b/1.flac", "a.ogg", "notes.txt", ".hidden.wav", "b/c/3.mp3", "b/raw.raw"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_audio([str(tmp_path), str(tmp_path / "notes.txt"), str(tmp_path / "a.ogg")])
    assert [item.name for item in found] == ["a.ogg", "b/1.flac", "b/2.WAV", "b/c/3.mp3", "notes.txt"]
    assert [Path(item.path) for item in found] == [tmp_path / item.name for item in found]


def test_recordings_of_one_name_get_names_apart(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.wav").touch()
    names = [item.name for item in find_audio([str(tmp_path / "x"), str(tmp_path / "y" / "a.wav")])]
    assert len(set(names)) == 2
    assert all(name.endswith("a.wav") and not name.startswith("/") for name in names)


def test_nothing_to_tag_is_named(tmp_path):
    with pytest.raises(FolderError, match="has no audio in it"):
        find_audio([str(tmp_path)])
    with pytest.raises(FolderError, match="nothing to tag"):
        find_audio([])


def opened(tmp_path, settings=1, overwrite=False) -> Results:
    files = {str(tmp_path / "a.csv"): "head\n", str(tmp_path / "b.json"): ""}
    return Results(files, [], settings, overwrite=overwrite)


def add(results: Results, tmp_path, clip: str) -> None:
    results.add(clip, {str(tmp_path / "a.csv"): f"{clip}\n", str(tmp_path / "b.json"): f"<{clip}>\n"})


@pytest.mark.parametrize("torn", ["", "half a li", "clip 2\nclip"])
def test_an_interrupted_run_goes_on_with_whole_lines(tmp_path, torn):
    first = opened(tmp_path)
    for clip in ("0", "1"):
        add(first, tmp_path, clip)
    first.close()
    with open(tmp_path / "a.csv", "a") as file:
        file.write(torn)
    with open(tmp_path / "a.csv.progress", "a") as file:
        file.write(torn and '{"clip": "2", "si')
    again = opened(tmp_path)
    assert again.done == {"0", "1"}
    for clip in ("2", "3"):
        add(again, tmp_path, clip)
    again.finish()
    assert (tmp_path / "a.csv").read_text() == "head\n0\n1\n2\n3\n"
    assert (tmp_path / "b.json").read_text() == "<0>\n<1>\n<2>\n<3>\n"
    assert not (tmp_path / "a.csv.progress").exists()


def test_an_interruption_before_the_first_clip_changes_nothing(tmp_path):
    opened(tmp_path).close()
    again = opened(tmp_path)
    add(again, tmp_path, "0")
    again.finish()
    assert (tmp_path / "a.csv").read_text() == "head\n0\n"


def test_nothing_is_overwritten_unless_asked(tmp_path):
    done = opened(tmp_path)
    add(done, tmp_path, "0")
    done.finish()
    with pytest.raises(FolderError, match=r"a\.csv is there already"):
        opened(tmp_path)
    anew = opened(tmp_path, overwrite=True)
    assert anew.done == set()
    anew.finish()
    assert (tmp_path / "a.csv").read_text() == "head\n"


def test_other_settings_do_not_go_on(tmp_path):
    begun = opened(tmp_path)
    add(begun, tmp_path, "0")
    begun.close()
    with pytest.raises(FolderError, match="begun with other settings"):
        opened(tmp_path, settings=2)
    assert (tmp_path / "a.csv").read_text() == "head\n0\n"
    (tmp_path / "a.csv.progress").write_text("this\nis something else\n")
    with pytest.raises(FolderError, match="is not what psla tag noted"):
        opened(tmp_path)


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "mine.txt").write_text("mine")
    with pytest.raises(FolderError, match="labels is there already"):
        Results({}, [str(tmp_path / "labels")], 1, overwrite=False)
    assert json.dumps(sorted(p.name for p in tmp_path.iterdir())) == '["labels"]'
