"""Preparation of AudioSet from segment lists and a partial copy of the audio, on a small example."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import miniature
import numpy as np
import pytest
from disks import full_disk
from miniature import Clip
from servers import Page, one_sentence, serving

from psla_jax.data.datafile import Datafile
from psla_jax.data.prepare import audioset
from psla_jax.data.prepare.audioset import AudioIndex, Prepared, prepare
from psla_jax.data.prepare.audioset_segments import AudioSetError, SegmentTable
from psla_jax.data.prepare.walk import Listing, PathError
from psla_jax.vocabulary.ontology import OntologyError
from psla_jax.vocabulary.vocabulary import Vocabulary

VOCABULARY = Vocabulary.read("audioset")
SETS = miniature.clips()
ALL = [clip for listed in SETS.values() for clip in listed]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> tuple[list[str], Path, dict[str, Path]]:
    """Returns the segment lists, the folder of the audio and the file of every clip."""
    root = tmp_path_factory.mktemp("audioset")
    return miniature.write_lists(root / "csv", SETS), root / "audio", miniature.write_audio(root / "audio", SETS)


def records(path: str | Path) -> list[tuple[str, str]]:
    return [(record["wav"], record["labels"]) for record in json.loads(Path(path).read_text())["data"]]


def run(lists: list[str], audio: Path, out: Path, **options) -> Prepared:
    return prepare(lists, [str(audio)], str(out), progress=False, **options)


def empty_files(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_clips_are_matched_to_files_with_various_names(copy, tmp_path):
    lists, audio, files = copy
    made = run(lists, audio, tmp_path)
    for name, listed in SETS.items():
        expected = [(str(files[clip.id]), ",".join(clip.mids)) for clip in listed]
        assert records(tmp_path / f"{name}_data.json") == expected
        assert made.datafiles[name] == str(tmp_path / f"{name}_data.json")
    both = SETS["balanced_train"] + SETS["unbalanced_train"]
    assert [wav for wav, _ in records(tmp_path / "train_data.json")] == [str(files[clip.id]) for clip in both]
    assert made.found == {"balanced_train": 25, "unbalanced_train": 7, "eval": 11, "train": 32}
    assert len(Datafile.read(tmp_path / "train_data.json", Vocabulary.read(made.labels))) == 32
    assert made.notes == ()
    assert "eval_data.json: 11 of 11 clips (100.0%)" in made.report()


def test_missing_clips_are_counted_per_class_and_listed_in_the_published_format(copy, tmp_path):
    lists, audio, files = copy
    shutil.copytree(audio, tmp_path / "audio")
    lost = [clip for i, clip in enumerate(ALL) if i % 4 == 0]  # every clip of the first class
    for clip in lost:
        (tmp_path / "audio" / files[clip.id].relative_to(audio)).unlink()
    made = run(lists, tmp_path / "audio", tmp_path / "out")
    table = SegmentTable()
    for path in made.missing.values():
        table.read(path, VOCABULARY)
    assert table.ids == [clip.id for clip in lost]
    assert list(table.starts) == [clip.start for clip in lost]
    assert [[VOCABULARY.mids[i] for i in table.classes(row)] for row in range(len(lost))] == [
        list(clip.mids) for clip in lost
    ]
    with open(made.coverage, newline="") as file:
        rows = {row["mid"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(VOCABULARY.mids)
    for name, listed in SETS.items():
        found = [clip for clip in listed if clip not in lost]
        for mid in VOCABULARY.mids:
            assert int(rows[mid][f"{name}_listed"]) == sum(mid in clip.mids for clip in listed)
            assert int(rows[mid][f"{name}_found"]) == sum(mid in clip.mids for clip in found)
    assert made.found["balanced_train"] == sum(clip not in lost for clip in SETS["balanced_train"])
    assert any("least covered in eval: Speech 0 of 3" in note for note in made.notes)
    assert any("classes of eval without any audio: " in note for note in made.notes)
    assert "balanced_train_missing_segments.csv: the clips of balanced_train without audio" in made.report()


def index(clips: list[Clip], tmp_path: Path, *listings: Listing) -> AudioIndex:
    (path,) = miniature.write_lists(tmp_path, {"eval": clips})
    table = SegmentTable()
    table.read(path, VOCABULARY)
    result = AudioIndex(table)
    for listing in listings:
        result.add(listing)
    return result


def clip(name: str, start: float = 30) -> Clip:
    return Clip(name, start, ("/m/09x0r",))


ID_IN_NAME = {
    "Y-_abcdefghi.wav": "-_abcdefghi",
    "-_abcdefghi.flac": "-_abcdefghi",
    "-_abcdefghi_30.000.wav": "-_abcdefghi",
    "-_abcdefghi_30000_40000.WAV": "-_abcdefghi",
    "Y-_abcdefghi_30.000_40.000.wav": "-_abcdefghi",
    "eval--_abcdefghi-30-40.wav": "-_abcdefghi",
    "YabcdefghiJ.wav": "YabcdefghiJ",  # an id that starts with Y
    "YabcdefghiJ_30.wav": "YabcdefghiJ",
    "YabcdefghiJK.wav": "abcdefghiJK",  # Y before an id that begins with the last 10 characters of that one
    "YYabcdefghiJ.wav": "YabcdefghiJ",
    "0123456789_.wav": "0123456789_",
    "_123456789_.wav": None,
    "-_abcdefgh.wav": None,
    "-_ABCDEFGHI.wav": None,
    "x.wav": None,
}


@pytest.mark.parametrize("name", ID_IN_NAME)
def test_ids_are_found_anywhere_in_a_name(tmp_path, name):
    ids = ["-_abcdefghi", "YabcdefghiJ", "abcdefghiJK", "0123456789_"]
    made = index([clip(i) for i in ids], tmp_path, Listing("/audio", [name], [], []))
    assert [i for i, file in zip(ids, made.names) if file] == ([ID_IN_NAME[name]] if ID_IN_NAME[name] else [])


def test_of_two_files_the_one_with_the_right_time_is_used_else_the_first_by_path_in_any_order(tmp_path):
    listings = [
        Listing("/b", ["-_abcdefghi_0.000.wav", "YabcdefghiJ.wav", "abcdefghiJK_30000_40000.wav"], [], []),
        Listing("/a", ["YabcdefghiJ.flac", "YabcdefghiJ.wav", "abcdefghiJK.wav", "abcdefghiJK_0.wav"], [], []),
        Listing("/c", ["-_abcdefghi.wav"], [], []),
    ]
    expected = ["/c/-_abcdefghi.wav", "/a/YabcdefghiJ.flac", "/b/abcdefghiJK_30000_40000.wav"]
    for number, order in enumerate((listings, listings[::-1], [listings[1], listings[0], listings[2]])):
        clips = [clip(i) for i in ("-_abcdefghi", "YabcdefghiJ", "abcdefghiJK")]
        made = index(clips, tmp_path / str(number), *order)
        assert [made.path(row) for row in range(3)] == expected
        assert made.num_duplicates == 5


@pytest.mark.parametrize(
    ("suffix", "start", "matches"),
    [("_30", 30, True), ("_30.000", 30, True), ("_30000_40000", 30, True), ("_000030", 30, True), ("_0_10", 0, True),
     ("_30_40", 0, False), ("_40", 30, False), ("_3000", 30, False), ("_30.5", 30.5, True), ("-30-40", 30, True)],
)  # fmt: skip
def test_the_start_time_in_a_name_is_in_seconds_or_milliseconds(tmp_path, suffix, start, matches):
    made = index([clip("-_abcdefghi", start)], tmp_path, Listing("/a", [f"-_abcdefghi{suffix}.wav"], [], []))
    assert (made.times[0] == audioset._TIME_MATCHES) == matches
    assert (made.times[0] == audioset._TIME_DIFFERS) != matches


def test_irregularities_are_reported(copy, tmp_path):
    lists, audio, files = copy
    shutil.copytree(audio, tmp_path / "audio")
    first, second = SETS["balanced_train"][:2]
    file = tmp_path / "audio" / files[first.id].relative_to(audio)
    empty_files(tmp_path / "audio" / "zz", file.name, "another.rm", f"._{file.name}")
    other = tmp_path / "audio" / files[second.id].relative_to(audio)
    other.rename(other.with_name(f"{second.id}_{second.start + 100:.0f}.flac"))
    not_utf8 = os.fsencode(tmp_path / "audio") + b"/\xff.wav"
    open(not_utf8, "wb").close()
    open(not_utf8.replace(b".wav", b".rm"), "wb").close()
    os.mkfifo(tmp_path / "audio" / "pipe.wav")
    leaked = Path(lists[2]).read_text() + first.line
    (tmp_path / "eval_segments.csv").write_text(leaked)
    made = run([*lists[:2], str(tmp_path / "eval_segments.csv")], tmp_path / "audio", tmp_path / "out")
    notes = "\n".join(made.notes)
    duplicate = f"another file has the same clip: 1, such as {tmp_path}/audio/zz/{file.name} beside {file};"
    assert duplicate in notes
    assert "files named after another start time than that of their clip: 1, such as" in notes
    assert f"a clip that starts at {second.start:g} s" in notes
    assert f"clips of eval that are also in balanced_train: 1, such as {first.id}" in notes
    assert rf"files in unsupported formats are ignored, such as {tmp_path}/audio/\xff.rm;" in notes
    assert rf"files ignored because their name is not UTF-8: 1, such as {tmp_path}/audio/\xff.wav; rename" in notes
    assert f"pipes, devices and broken links are ignored: 1, such as {tmp_path}/audio/pipe.wav" in notes
    assert records(tmp_path / "out" / "eval_data.json")[-1][0] == str(file)
    assert made.found["eval"] == 12
    assert made.report().count("note: ") == len(made.notes) == 6


def test_a_clip_of_both_training_lists_occurs_once_in_the_full_set(copy, tmp_path):
    lists, audio, _ = copy
    (tmp_path / "unbalanced_train_segments.csv").write_text(Path(lists[1]).read_text() + SETS["balanced_train"][4].line)
    made = run([lists[0], str(tmp_path / "unbalanced_train_segments.csv")], audio, tmp_path / "out")
    assert made.found == {"balanced_train": 25, "unbalanced_train": 8, "train": 32}
    paths = [wav for wav, _ in records(tmp_path / "out" / "train_data.json")]
    assert len(paths) == len(set(paths))


def test_a_single_list_gives_one_datafile(copy, tmp_path):
    lists, audio, _ = copy
    made = run(lists[2:], audio, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "class_labels_indices.csv", "coverage.csv", "eval_data.json", "eval_missing_segments.csv",
    ]  # fmt: skip
    assert list(made.datafiles) == ["eval"]


def error_message(kind: type[Exception], lists: list[str], audio: Path, out: Path, **options) -> str:
    with pytest.raises(kind) as caught:
        run(lists, audio, out, **options)
    return one_sentence(caught.value)


def test_missing_audio_is_an_error_of_one_sentence_and_nothing_is_written(copy, tmp_path):
    lists, *_ = copy
    out = tmp_path / "out"
    nothing = empty_files(tmp_path / "nothing", "readme.txt")
    assert f"no audio file under {nothing}" in error_message(AudioSetError, lists, nothing, out)
    others = empty_files(tmp_path / "others", "Ynot_listed_.wav", "b.wav")
    assert "none of the 25 clips of balanced_train is among the 2 audio files" in error_message(
        AudioSetError, lists, others, out
    )
    foreign = empty_files(tmp_path / "foreign", f"Y{ALL[0].id}.rm")
    assert "rm in an unsupported format: convert" in error_message(AudioSetError, lists, foreign, out)
    assert "nowhere cannot be read" in error_message(PathError, lists, tmp_path / "nowhere", out)
    half = empty_files(tmp_path / "half", *(f"{c.id}.wav" for c in SETS["eval"]))
    assert "none of the 7 clips of unbalanced_train" in error_message(AudioSetError, lists[1:], half, out)
    assert not out.exists()


def test_a_full_disk_does_not_block_the_same_command(copy, tmp_path, monkeypatch):
    lists, audio, _ = copy
    with monkeypatch.context() as patch:
        patch.setattr(audioset, "_write_coverage", full_disk)
        with pytest.raises(OSError, match="No space left"):
            run(lists, audio, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    run(lists, audio, tmp_path / "out")


def test_existing_files_are_not_replaced_without_force(copy, tmp_path):
    lists, audio, _ = copy
    (tmp_path / "train_data.json").write_text("mine")
    assert "train_data.json already exists" in error_message(PathError, lists, audio, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["train_data.json"]
    assert (tmp_path / "train_data.json").read_text() == "mine"
    run(lists, audio, tmp_path, force=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    error_message(PathError, lists, audio, tmp_path)
    run(lists, audio, tmp_path, force=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def ontology(path: Path, mids: tuple[str, ...] = VOCABULARY.mids, children: tuple[str, ...] = ()) -> Path:
    entries = [{"id": mid, "name": mid, "child_ids": [], "restrictions": []} for mid in mids]
    entries[0]["child_ids"] = list(children)
    path.write_text(json.dumps(entries))
    return path


def test_an_ontology_is_checked_and_copied(copy, tmp_path):
    lists, audio, _ = copy
    good = ontology(tmp_path / "ontology.json", children=VOCABULARY.mids[1:3])
    made = run(lists, audio, tmp_path / "out", ontology=str(good))
    assert Path(made.ontology).read_text() == good.read_text()
    assert made.ontology == str(tmp_path / "out" / "ontology.json")
    cycle = ontology(tmp_path / "cycle.json", children=VOCABULARY.mids[:1])
    assert "is its own ancestor" in error_message(OntologyError, lists, audio, tmp_path / "no", ontology=str(cycle))
    short = ontology(tmp_path / "short.json", VOCABULARY.mids[3:])
    assert f"lacks 3 of the 527 classes, such as {VOCABULARY.mids[0]}" in error_message(
        AudioSetError, lists, audio, tmp_path / "no", ontology=str(short)
    )
    assert not (tmp_path / "no").exists()


def test_the_official_ontology_is_downloaded_once_into_the_cache(copy, tmp_path, monkeypatch):
    lists, audio, _ = copy
    body = ontology(tmp_path / "ontology.json").read_bytes()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PSLA_CACHE", str(tmp_path / "cache"))
    with serving() as server:
        monkeypatch.setattr(audioset, "ONTOLOGY_URL", server.url("/ontology.json"))
        server.pages["/ontology.json"] = Page(b'[{"id": 1}]')
        assert "is not AudioSet's ontology.json" in error_message(
            OntologyError, lists, audio, tmp_path / "no", ontology="audioset"
        )
        server.pages["/ontology.json"] = Page(body)
        for out in ("one", "two"):
            run(lists, audio, tmp_path / out, ontology="audioset")
            assert (tmp_path / out / "ontology.json").read_bytes() == body
        assert len(server.asked) == 2
    assert [p.name for p in (tmp_path / "cache" / "audioset").iterdir()] == ["ontology.json"]


def test_mids_outside_a_custom_class_list_are_errors(copy, tmp_path):
    lists, audio, _ = copy
    Vocabulary(miniature.MIDS, ("a", "b", "c", "d")).write(tmp_path / "labels.csv")
    message = error_message(AudioSetError, lists, audio, tmp_path / "out", labels=str(tmp_path / "labels.csv"))
    assert "is not among the 4 classes" in message


def test_memory_does_not_hold_the_listing(tmp_path):
    """The index stores one name per clip and forgets files that belong to no clip."""
    made = index([clip("-_abcdefghi")], tmp_path)
    for number in range(50):
        made.add(Listing(f"/{number}", [f"{i:011d}.wav" for i in range(100)], [f"{i}.m4a" for i in range(100)], []))
    assert made.num_files == 5000
    assert made.names == [""]
    assert made.unsupported == "/0/0.m4a"
    assert np.count_nonzero(made.has_audio()) == 0
