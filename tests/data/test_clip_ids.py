"""Matching of clips between copies of a data set with other directories, formats and file names."""

from __future__ import annotations

import pytest

from psla_jax.data.clip_ids import AudioSetId, ClipIdError, audioset_id, file_name, match, require_distinct

VIDEO = "--PJHxphWEs"


@pytest.mark.parametrize(
    ("name", "start"),
    [
        (f"{VIDEO}", None),
        (f"Y{VIDEO}", None),
        (f"/data/audioset/Y{VIDEO}.wav", None),
        (f"{VIDEO}_30000.flac", 30000.0),
        (f"{VIDEO}_30.000", 30.0),
        (f"Y{VIDEO}_30.000_40.000.mp3", 30.0),
        (f"{VIDEO}_30000_40000.WAV", 30000.0),
        (f"{VIDEO}-30-40.m4a", 30.0),
        (f"{VIDEO}_30.wav", 30.0),
    ],
)
def test_an_audioset_id_is_found_in_every_name(name, start):
    assert audioset_id(name) == AudioSetId(VIDEO, start)


@pytest.mark.parametrize(
    ("name", "video"),
    [
        ("Yabcdefghij.wav", "Yabcdefghij"),  # eleven characters, so the Y belongs to the video id
        ("YYabcdefghij.wav", "Yabcdefghij"),
        ("Yabcdefghij_30.wav", "Yabcdefghij"),
        ("abcdefgh_30.wav", "abcdefgh_30"),
        ("Yabcdefghij_3_30.wav", "Yabcdefghij"),
    ],
)
def test_a_y_or_a_number_of_the_video_itself_stays(name, video):
    clip = audioset_id(name)
    assert clip is not None
    assert clip.video == video


@pytest.mark.parametrize("name", ["12345.wav", "dog.wav", "a rather long name.wav", f"{VIDEO}_mono.wav", ""])
def test_other_names_are_no_audioset_ids(name):
    assert audioset_id(name) is None


def test_only_audio_extensions_are_removed():
    assert file_name("/a/b/dog.bark.wav") == "dog.bark"
    assert file_name("dog.bark") == "dog.bark"
    assert file_name(f"{VIDEO}_30.000") == f"{VIDEO}_30.000"
    assert file_name("x.FLAC") == "x"


def test_starts_in_seconds_and_milliseconds_are_one_time():
    at = [AudioSetId(VIDEO, start) for start in (None, 30.0, 30000.0, 40.0)]
    assert at[1].compatible_with(at[2])
    assert at[2].compatible_with(at[1])
    assert at[0].compatible_with(at[3])
    assert not at[1].compatible_with(at[3])
    assert not at[1].compatible_with(AudioSetId("x" * 11, 30.0))


def positions(queries: list[str], candidates: list[str]) -> list[int]:
    return match(queries, candidates).positions.tolist()


def test_paths_come_before_names_and_names_before_ids():
    matching = match(
        ["/a/1.wav", "/b/2.wav", f"/b/Y{VIDEO}.wav", "/b/9.wav"],
        [f"/x/{VIDEO}_30.000.flac", "/x/2.flac", "/a/./1.wav", "/x/3.wav"],
    )
    assert matching.positions.tolist() == [2, 1, 0, -1]
    assert (matching.by_path, matching.by_name, matching.by_id, matching.num_matched) == (1, 1, 1, 3)
    assert matching.summary() == "1 by path, 1 by file name, 1 by AudioSet id"
    assert matching.missing().tolist() == [3]
    assert matching.ambiguous().tolist() == []


def test_a_name_in_several_folders_is_told_apart_by_its_folder_or_not_at_all():
    assert positions(["/a/dog/1.wav", "/a/cat/1.wav"], ["/b/cat/1.flac", "/b/dog/1.flac"]) == [1, 0]
    assert positions(["/a/dog/1.wav", "/a/cat/1.wav"], ["/b/1.wav"]) == [-2, -2]
    assert positions(["/a/1.wav"], ["/b/x/1.wav", "/b/y/1.wav"]) == [-2]
    # One clip matches by path; the other does not match the remaining candidate.
    assert positions(["/a/1.wav", "/b/1.wav"], ["/a/1.wav", "/c/1.wav"]) == [0, -2]


def test_one_video_may_have_several_clips():
    mine = [f"/a/{VIDEO}_30.wav", f"/a/{VIDEO}_40.wav"]
    assert positions(mine, [f"/b/Y{VIDEO}_40000.wav", f"/b/Y{VIDEO}_30000.wav"]) == [1, 0]
    assert positions(mine, [f"/b/Y{VIDEO}_50.000.wav"]) == [-1, -1]
    assert positions(mine, [f"/b/Y{VIDEO}.wav"]) == [-2, -2]
    assert positions(mine[:1], [f"/b/{VIDEO}.wav", f"/b/Y{VIDEO}_30.000.wav"]) == [-2]
    assert positions(mine[:1], [f"/b/Y{VIDEO}.wav"]) == [0]


def test_two_clips_with_one_path_are_refused():
    require_distinct(["a.wav", "b.wav"], "d.json")
    with pytest.raises(ClipIdError, match=r"clips 1 and 3 of d\.json are both b\.wav: keep one of them"):
        require_distinct(["a.wav", "b.wav", "c.wav", "./b.wav"], "d.json")


def test_segments_match_by_times():
    queries = [
        "/here/a.wav#t=1,2",
        "/here/a.wav#t=2.5,3",
        "/here/a.wav",
        f"/here/Y{VIDEO}.wav#t=0,1",
        f"{VIDEO}.wav#t=2,3",
    ]
    candidates = [f"/there/{VIDEO}_30000.flac#t=0,1", "/there/a.flac#t=2.5,3", "/there/a.flac", "/there/a.flac#t=1,2"]
    assert match(queries, candidates).positions.tolist() == [3, 1, 2, 0, -1]
    assert file_name("/a/b.wav#t=1.5,2") == "b#t=1.5,2"
    require_distinct(queries, "list")
    with pytest.raises(ClipIdError, match=r"clips 0 and 5 of list are both /here/a\.wav#t=1,2"):
        require_distinct([*queries, "/here/./a.wav#t=1,2"], "list")
