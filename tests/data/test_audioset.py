"""AudioSet from its lists and whatever audio there is, on a small one in the published form."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import miniature
import numpy as np
import pytest
from miniature import Clip
from servers import Page, one_sentence, serving

from psla_jax.data import audioset
from psla_jax.data.audioset import Index, Prepared, prepare
from psla_jax.data.datafile import Datafile
from psla_jax.data.files import FilesError, Listing
from psla_jax.data.segments import AudioSetError, Clips
from psla_jax.ontology import OntologyError, Vocabulary

VOCABULARY = Vocabulary.read("audioset")
SETS = miniature.clips()
ALL = [clip for listed in SETS.values() for clip in listed]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> tuple[list[str], Path, dict[str, Path]]:
    """The lists, the folder of the audio and the file of every clip."""
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


def test_every_clip_finds_its_file_whatever_it_is_called(copy, tmp_path):
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


def test_what_is_missing_is_counted_per_class_and_listed_in_the_published_form(copy, tmp_path):
    lists, audio, files = copy
    shutil.copytree(audio, tmp_path / "audio")
    lost = [clip for i, clip in enumerate(ALL) if i % 4 == 0]  # every clip of the first class
    for clip in lost:
        (tmp_path / "audio" / files[clip.id].relative_to(audio)).unlink()
    made = run(lists, tmp_path / "audio", tmp_path / "out")
    again = Clips()
    for path in made.missing.values():
        again.read(path, VOCABULARY)
    assert again.ids == [clip.id for clip in lost]
    assert list(again.starts) == [clip.start for clip in lost]
    assert [[VOCABULARY.mids[i] for i in again.classes(row)] for row in range(len(lost))] == [
        list(clip.mids) for clip in lost
    ]
    with open(made.coverage, newline="") as file:
        rows = {row["mid"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(VOCABULARY.mids)
    for name, listed in SETS.items():
        there = [clip for clip in listed if clip not in lost]
        for mid in VOCABULARY.mids:
            assert int(rows[mid][f"{name}_listed"]) == sum(mid in clip.mids for clip in listed)
            assert int(rows[mid][f"{name}_found"]) == sum(mid in clip.mids for clip in there)
    assert made.found["balanced_train"] == sum(clip not in lost for clip in SETS["balanced_train"])
    assert any("least covered in eval: Speech 0 of 3" in note for note in made.notes)
    assert any("classes of eval without any audio: " in note for note in made.notes)
    assert "balanced_train_missing_segments.csv: the clips of balanced_train without audio" in made.report()


def index(clips: list[Clip], tmp_path: Path, *listings: Listing) -> Index:
    (path,) = miniature.write_lists(tmp_path, {"eval": clips})
    lists = Clips()
    lists.read(path, VOCABULARY)
    made = Index(lists)
    for listing in listings:
        made.add(listing)
    return made


def clip(name: str, start: float = 30) -> Clip:
    return Clip(name, start, ("/m/09x0r",))


LOOK_UPS = {
    "Y-_abcdefghi.wav": "-_abcdefghi",
    "-_abcdefghi.flac": "-_abcdefghi",
    "-_abcdefghi_30.000.wav": "-_abcdefghi",
    "-_abcdefghi_30000_40000.WAV": "-_abcdefghi",
    "Y-_abcdefghi_30.000_40.000.wav": "-_abcdefghi",
    "eval--_abcdefghi-30-40.wav": "-_abcdefghi",
    "YabcdefghiJ.wav": "YabcdefghiJ",  # an id that starts with Y itself,
    "YabcdefghiJ_30.wav": "YabcdefghiJ",
    "YabcdefghiJK.wav": "abcdefghiJK",  # and Y before an id that starts like the rest of that one
    "YYabcdefghiJ.wav": "YabcdefghiJ",
    "0123456789_.wav": "0123456789_",
    "_123456789_.wav": None,
    "-_abcdefgh.wav": None,
    "-_ABCDEFGHI.wav": None,
    "x.wav": None,
}


@pytest.mark.parametrize("name", LOOK_UPS)
def test_ids_are_looked_up_and_never_split(tmp_path, name):
    ids = ["-_abcdefghi", "YabcdefghiJ", "abcdefghiJK", "0123456789_"]
    made = index([clip(i) for i in ids], tmp_path, Listing("/audio", [name], [], []))
    assert [i for i, file in zip(ids, made.names) if file] == ([LOOK_UPS[name]] if LOOK_UPS[name] else [])


def test_of_two_files_the_one_of_the_right_time_is_taken_else_the_first_by_path_in_any_order(tmp_path):
    listings = [
        Listing("/b", ["-_abcdefghi_0.000.wav", "YabcdefghiJ.wav", "abcdefghiJK_30000_40000.wav"], [], []),
        Listing("/a", ["YabcdefghiJ.flac", "YabcdefghiJ.wav", "abcdefghiJK.wav", "abcdefghiJK_0.wav"], [], []),
        Listing("/c", ["-_abcdefghi.wav"], [], []),
    ]
    wanted = ["/c/-_abcdefghi.wav", "/a/YabcdefghiJ.flac", "/b/abcdefghiJK_30000_40000.wav"]
    for number, order in enumerate((listings, listings[::-1], [listings[1], listings[0], listings[2]])):
        clips = [clip(i) for i in ("-_abcdefghi", "YabcdefghiJ", "abcdefghiJK")]
        made = index(clips, tmp_path / str(number), *order)
        assert [made.path(row) for row in range(3)] == wanted
        assert made.doubles == 5


@pytest.mark.parametrize(
    ("rest", "start", "agrees"),
    [("_30", 30, True), ("_30.000", 30, True), ("_30000_40000", 30, True), ("_000030", 30, True), ("_0_10", 0, True),
     ("_30_40", 0, False), ("_40", 30, False), ("_3000", 30, False), ("_30.5", 30.5, True), ("-30-40", 30, True)],
)  # fmt: skip
def test_the_start_time_in_a_name_is_in_seconds_or_milliseconds(tmp_path, rest, start, agrees):
    made = index([clip("-_abcdefghi", start)], tmp_path, Listing("/a", [f"-_abcdefghi{rest}.wav"], [], []))
    assert (made.times[0] == audioset._AGREES) == agrees
    assert (made.times[0] == audioset._CONTRADICTS) != agrees


def test_what_is_odd_is_said(copy, tmp_path):
    lists, audio, files = copy
    shutil.copytree(audio, tmp_path / "audio")
    first, second = SETS["balanced_train"][:2]
    file = tmp_path / "audio" / files[first.id].relative_to(audio)
    empty_files(tmp_path / "audio" / "zz", file.name, "another.m4a", f"._{file.name}")
    other = tmp_path / "audio" / files[second.id].relative_to(audio)
    other.rename(other.with_name(f"{second.id}_{second.start + 100:.0f}.flac"))
    odd = os.fsencode(tmp_path / "audio") + b"/\xff.wav"
    open(odd, "wb").close()
    open(odd.replace(b".wav", b".mp4"), "wb").close()
    leaked = Path(lists[2]).read_text() + first.line
    (tmp_path / "eval_segments.csv").write_text(leaked)
    made = run([*lists[:2], str(tmp_path / "eval_segments.csv")], tmp_path / "audio", tmp_path / "out")
    notes = "\n".join(made.notes)
    double = f"files of a clip that another file has too: 1, such as {tmp_path}/audio/zz/{file.name} beside {file};"
    assert double in notes
    assert "files named after another start time than their clip has: 1, such as" in notes
    assert f"a clip that starts at {second.start:g} s" in notes
    assert f"clips of eval that are also in balanced_train: 1, such as {first.id}" in notes
    assert rf"files of kinds that are not read are left out, such as {tmp_path}/audio/\xff.mp4;" in notes
    assert rf"files left out for a name that is not UTF-8: 1, such as {tmp_path}/audio/\xff.wav; rename them" in notes
    assert records(tmp_path / "out" / "eval_data.json")[-1][0] == str(file)
    assert made.found["eval"] == 12
    assert made.report().count("note: ") == len(made.notes) == 5


def test_a_clip_of_both_training_lists_is_once_in_the_full_set(copy, tmp_path):
    lists, audio, _ = copy
    (tmp_path / "unbalanced_train_segments.csv").write_text(Path(lists[1]).read_text() + SETS["balanced_train"][4].line)
    made = run([lists[0], str(tmp_path / "unbalanced_train_segments.csv")], audio, tmp_path / "out")
    assert made.found == {"balanced_train": 25, "unbalanced_train": 8, "train": 32}
    paths = [wav for wav, _ in records(tmp_path / "out" / "train_data.json")]
    assert len(paths) == len(set(paths))


def test_one_list_alone_gives_its_own_datafile_only(copy, tmp_path):
    lists, audio, _ = copy
    made = run(lists[2:], audio, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "class_labels_indices.csv", "coverage.csv", "eval_data.json", "eval_missing_segments.csv",
    ]  # fmt: skip
    assert list(made.datafiles) == ["eval"]


def refused(kind: type[Exception], lists: list[str], audio: Path, out: Path, **options) -> str:
    with pytest.raises(kind) as caught:
        run(lists, audio, out, **options)
    return one_sentence(caught.value)


def test_audio_that_is_not_there_is_one_sentence_and_nothing_is_written(copy, tmp_path):
    lists, *_ = copy
    out = tmp_path / "out"
    nothing = empty_files(tmp_path / "nothing", "readme.txt")
    assert f"no audio file under {nothing}" in refused(AudioSetError, lists, nothing, out)
    others = empty_files(tmp_path / "others", "Ynot_listed_.wav", "b.wav")
    assert "none of the 25 clips of balanced_train is among the 2 audio files" in refused(
        AudioSetError, lists, others, out
    )
    foreign = empty_files(tmp_path / "foreign", f"Y{ALL[0].id}.m4a")
    assert "m4a, which is of a kind that is not read: convert" in refused(AudioSetError, lists, foreign, out)
    assert "nowhere cannot be read" in refused(FilesError, lists, tmp_path / "nowhere", out)
    half = empty_files(tmp_path / "half", *(f"{c.id}.wav" for c in SETS["eval"]))
    assert "none of the 7 clips of unbalanced_train" in refused(AudioSetError, lists[1:], half, out)
    assert not out.exists()


def test_what_is_there_is_not_replaced_without_force(copy, tmp_path):
    lists, audio, _ = copy
    (tmp_path / "train_data.json").write_text("mine")
    assert "train_data.json is there already" in refused(FilesError, lists, audio, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["train_data.json"]
    assert (tmp_path / "train_data.json").read_text() == "mine"
    run(lists, audio, tmp_path, force=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    refused(FilesError, lists, audio, tmp_path)
    run(lists, audio, tmp_path, force=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def ontology(path: Path, mids: tuple[str, ...] = VOCABULARY.mids, children: tuple[str, ...] = ()) -> Path:
    entries = [{"id": mid, "name": mid, "child_ids": [], "restrictions": []} for mid in mids]
    entries[0]["child_ids"] = list(children)
    path.write_text(json.dumps(entries))
    return path


def test_an_ontology_is_checked_and_put_beside_the_datafiles(copy, tmp_path):
    lists, audio, _ = copy
    good = ontology(tmp_path / "ontology.json", children=VOCABULARY.mids[1:3])
    made = run(lists, audio, tmp_path / "out", ontology=str(good))
    assert Path(made.ontology).read_text() == good.read_text()
    assert made.ontology == str(tmp_path / "out" / "ontology.json")
    cycle = ontology(tmp_path / "cycle.json", children=VOCABULARY.mids[:1])
    assert "is its own ancestor" in refused(OntologyError, lists, audio, tmp_path / "no", ontology=str(cycle))
    short = ontology(tmp_path / "short.json", VOCABULARY.mids[3:])
    assert f"lacks 3 of the 527 classes, such as {VOCABULARY.mids[0]}" in refused(
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
        assert "is not AudioSet's ontology.json" in refused(
            OntologyError, lists, audio, tmp_path / "no", ontology="audioset"
        )
        server.pages["/ontology.json"] = Page(body)
        for out in ("one", "two"):
            run(lists, audio, tmp_path / out, ontology="audioset")
            assert (tmp_path / out / "ontology.json").read_bytes() == body
        assert len(server.asked) == 2
    assert [p.name for p in (tmp_path / "cache" / "audioset").iterdir()] == ["ontology.json"]


def test_a_class_list_of_ones_own_limits_the_mids(copy, tmp_path):
    lists, audio, _ = copy
    Vocabulary(miniature.MIDS, ("a", "b", "c", "d")).write(tmp_path / "labels.csv")
    message = refused(AudioSetError, lists, audio, tmp_path / "out", labels=str(tmp_path / "labels.csv"))
    assert "is not among the 4 classes" in message


def test_memory_does_not_hold_the_listing(tmp_path):
    """The index keeps a name per clip; what belongs to no clip is forgotten."""
    made = index([clip("-_abcdefghi")], tmp_path)
    for number in range(50):
        made.add(Listing(f"/{number}", [f"{i:011d}.wav" for i in range(100)], [f"{i}.m4a" for i in range(100)], []))
    assert made.files == 5000
    assert made.names == [""]
    assert len(made.foreign) <= 5
    assert np.count_nonzero(made.found()) == 0
