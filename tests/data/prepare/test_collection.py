"""Custom recordings: vocabulary, datafiles and config."""

from __future__ import annotations

import csv
import json
import runpy
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from disks import full_disk
from servers import one_sentence

from psla_jax.data.datafile import Datafile
from psla_jax.data.prepare.collection import (
    Clip,
    Collection,
    CollectionError,
    ExcludedClip,
    Prepared,
    part_names,
    prepare,
)
from psla_jax.data.prepare.walk import PathError
from psla_jax.vocabulary.vocabulary import Vocabulary, VocabularyError

PARTS = ("train", "validation", "evaluation")


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> Path:
    """Returns a folder of 40 recordings with two rates and formats: one of 2 s, the others of 0.1 s."""
    folder = tmp_path_factory.mktemp("audio")
    for i in range(40):
        rate, ending = (8000, "wav") if i % 2 else (22_050, "flac")
        soundfile.write(folder / f"{i:02d}.{ending}", np.full(rate // 10 if i else 2 * rate, 0.1), rate)
    return folder


def collection(audio: Path, *labels: str, parts: str = "", exclusive: bool = True) -> Collection:
    """Returns the first recordings with labels separated by ``;`` and with parts given by their first letters."""
    files = sorted(audio.iterdir())
    names = {"t": "train", "v": "validation", "e": "evaluation", "": ""}
    part_names = [names[parts[i : i + 1]] for i in range(len(labels))]
    clips = [
        Clip(str(files[i]), tuple(filter(None, cell.split(";"))), part_names[i]) for i, cell in enumerate(labels)
    ]  # fmt: skip
    return Collection("a test", tuple(clips), exclusive)


def run(recordings: Collection, out: Path, **options) -> Prepared:
    return prepare(recordings, str(out), progress=False, **options)


def records(path: str) -> dict[str, str]:
    return {Path(r["wav"]).name: r["labels"] for r in json.loads(Path(path).read_text())["data"]}


def test_written_files_can_be_used_for_training(audio, tmp_path):
    made = run(collection(audio, *["dog", "cat"] * 20), tmp_path / "out")
    vocabulary = Vocabulary.read(made.labels)
    assert vocabulary == Vocabulary(("cat", "dog"), ("cat", "dog"))
    config = runpy.run_path(made.config)["config"]
    seen = Counter()
    for part in PARTS:
        assert getattr(config.data, part) == made.datafiles[part] == str(tmp_path / "out" / f"{part}.json")
        data = Datafile.read(made.datafiles[part], vocabulary)
        assert data.exclusive
        assert len(data) == made.clips[part] == {"train": 32}.get(part, 4)
        assert set(data.class_counts()) == {16 if part == "train" else 2}
        seen.update(data.wav(i) for i in range(len(data)))
    assert seen == Counter({str(file): 1 for file in audio.iterdir()})
    assert config.frontend.target_length == 32
    report = made.report().splitlines()
    assert report[0] == "layout: a test"
    assert report[-1] == f"to train on it: psla train {made.config}"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "class_labels_indices.csv", "config.py", "evaluation.json", "train.json", "validation.json",
    ]  # fmt: skip


def test_the_split_depends_on_the_seed_and_not_on_the_folder(audio, tmp_path):
    labels = ["a", "b", "c", "d"] * 10
    one, two, other = (run(collection(audio, *labels), tmp_path / n, seed=s) for n, s in (("1", 5), ("2", 5), ("3", 6)))
    (tmp_path / "moved").mkdir()
    for file in audio.iterdir():
        (tmp_path / "moved" / file.name).symlink_to(file)
    moved = run(collection(tmp_path / "moved", *labels), tmp_path / "4", seed=5)
    for part in PARTS:
        files = [Path(made.datafiles[part]) for made in (one, two, other)]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert records(one.datafiles[part]) == records(moved.datafiles[part])
    assert records(one.datafiles["evaluation"]) != records(other.datafiles["evaluation"])


def test_several_labels_per_clip_are_not_exclusive(audio, tmp_path):
    made = run(collection(audio, *["a;b", "b", "a", ""] * 5, exclusive=False), tmp_path)
    vocabulary = Vocabulary.read(made.labels)
    assert not any(Datafile.read(path, vocabulary).exclusive for path in made.datafiles.values())
    assert records(made.datafiles["train"])["00.flac"] in ("a,b", "b,a", "")
    assert "binary cross-entropy" in Path(made.config).read_text()


def test_commas_are_preserved_in_names_and_replaced_in_mids(audio, tmp_path):
    made = run(collection(audio, *["Male speech, man", "Music"] * 2), tmp_path)
    assert Vocabulary.read(made.labels).to_json() == [["Male speech; man", "Male speech, man"], ["Music", "Music"]]
    assert set(records(made.datafiles["train"]).values()) == {"Male speech; man", "Music"}
    files = sorted(map(str, audio.iterdir()))
    alike = Collection("a test", (Clip(files[0], ("a, b",)), Clip(files[1], ("a; b",))), True)
    with pytest.raises(VocabularyError, match="'a; b' of an earlier class"):
        run(alike, tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def test_a_predefined_split_is_used(audio, tmp_path):
    made = run(collection(audio, *"ababab", parts="ttteve"), tmp_path / "1")
    assert {part: list(records(path)) for part, path in made.datafiles.items()} == {
        "train": ["00.flac", "01.wav", "02.flac"],
        "validation": ["04.flac"],
        "evaluation": ["03.wav", "05.wav"],
    }
    without_validation = run(collection(audio, *"ab" * 10, parts="tttttttttttttttteeee"), tmp_path / "2")
    assert without_validation.clips == {"train": 16, "evaluation": 4}
    assert "no validation part, so no best epoch is selected" in "".join(without_validation.notes)
    assert runpy.run_path(without_validation.config)["config"].data.validation == ""
    with_validation = run(collection(audio, *"ab" * 10, parts="tttttttttttttttteeee"), tmp_path / "3", validation=0.25)
    assert with_validation.clips == {"train": 12, "validation": 4, "evaluation": 4}
    assert records(with_validation.datafiles["evaluation"]) == records(without_validation.datafiles["evaluation"])
    assert Counter(records(with_validation.datafiles["validation"]).values()) == {"a": 2, "b": 2}


def test_shares_can_be_chosen(audio, tmp_path):
    made = run(collection(audio, *"ab" * 20), tmp_path / "1", validation=0.0, evaluation=0.3)
    assert made.clips == {"train": 28, "evaluation": 12}
    for options in ({"validation": 1.0}, {"evaluation": -0.1}, {"validation": 0.5, "evaluation": 0.5}):
        with pytest.raises(CollectionError, match=r"--(validation|evaluation)") as caught:
            run(collection(audio, *"ab" * 20), tmp_path / "2", **options)
        one_sentence(caught.value)
    with pytest.raises(CollectionError, match="both 0"):
        run(collection(audio, *"ab"), tmp_path / "2", validation=0.0, evaluation=0.0)


def test_a_full_disk_does_not_block_the_same_command(audio, tmp_path, monkeypatch):
    """The config is the last file: without it, the others would be existing files that need --force."""
    with monkeypatch.context() as patch:
        patch.setattr("psla_jax.data.prepare.config_template.render_config", full_disk)
        with pytest.raises(OSError, match="No space left"):
            run(collection(audio, *"ab" * 20), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    run(collection(audio, *"ab" * 20), tmp_path / "out")


def test_unreadable_recordings_are_excluded_and_listed(audio, tmp_path):
    (tmp_path / "broken, twice.wav").write_text("hello")
    (tmp_path / "empty.wav").touch()
    readable = collection(audio, *"ab" * 5)
    broken = tuple(Clip(str(tmp_path / name), ("c",)) for name in ("empty.wav", "broken, twice.wav"))
    unsupported = ExcludedClip("/x.m4a", "is in an unsupported format.")
    made = run(Collection("a test", readable.clips + broken, True, (unsupported,)), tmp_path / "out")
    assert made.classes == 2
    assert [Path(clip.path).name for clip in made.excluded] == ["x.m4a", "broken, twice.wav", "empty.wav"]
    with open(made.excluded_list, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [clip.path for clip in made.excluded]
    assert "is an empty file" in rows[2]["reason"]
    assert "excluded: 3 recordings, all listed in" in made.report()
    run(readable, tmp_path / "out", force=True)
    assert not (tmp_path / "out" / "left_out.csv").exists()
    with pytest.raises(CollectionError, match=r"no recording can be used: .*broken, twice\.wav cannot be read"):
        run(Collection("a test", broken, True), tmp_path / "none")


def test_classes_with_too_few_clips_are_reported(audio, tmp_path):
    made = run(collection(audio, *"aaaaabbc", parts="tttvett t".replace(" ", "t")), tmp_path / "1")
    assert made.notes == (
        "the class c has only one clip, which is used for training or for evaluation, not both",
        "the class b has no validation clip, and is not evaluated there",
        "the class b has no evaluation clip, and is not evaluated there",
    )
    made = run(collection(audio, *"abcdefgh", parts="tttttttv"), tmp_path / "2")
    description = "only one clip, which is used for training or for evaluation, not both"
    assert f"each of 8 classes has {description}: a, b, c, d, e, ..." in made.notes
    assert "the class h has no training clip, and cannot be learned" in made.notes


def test_fewer_than_two_classes_are_rejected(audio, tmp_path):
    for labels, message in ((["dog"] * 4, "only the class dog"), ([""] * 4, "no class")):
        with pytest.raises(CollectionError, match=message) as caught:
            run(collection(audio, *labels), tmp_path / "out")
        one_sentence(caught.value)
    assert not (tmp_path / "out").exists()


def test_clips_that_are_all_of_different_classes_are_rejected(audio, tmp_path):
    with pytest.raises(CollectionError, match="no class has two clips") as caught:
        run(collection(audio, *"abcd"), tmp_path / "out")
    one_sentence(caught.value)
    assert not (tmp_path / "out").exists()


def test_too_few_clips_for_a_validation_part_are_reported(audio, tmp_path):
    made = run(collection(audio, *"ababab"), tmp_path)
    assert made.clips == {"train": 4, "evaluation": 2}
    assert made.notes == ("there is no validation part, so no best epoch is selected",)


def test_a_split_without_training_part_is_rejected_and_one_with_a_single_part_is_replaced(audio, tmp_path):
    with pytest.raises(CollectionError, match="no training part"):
        run(collection(audio, *"abab", parts="vvee"), tmp_path / "1")
    made = run(collection(audio, *"ab" * 10, parts="t" * 20), tmp_path / "2")
    assert set(made.datafiles) == set(PARTS)
    assert "all clips are in the part train of the split, so they are split again" in made.notes


def test_existing_files_are_replaced_only_with_force(audio, tmp_path):
    (tmp_path / "config.py").write_text("mine")
    with pytest.raises(PathError, match=r"config\.py already exists"):
        run(collection(audio, *"ab" * 5), tmp_path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("config.py", "mine")]
    run(collection(audio, *"ab" * 10), tmp_path, force=True)
    assert (tmp_path / "validation.json").exists()
    made = run(collection(audio, *"ab" * 10, parts="tttttttttttttttteeee"), tmp_path, force=True)
    assert sorted(made.datafiles) == ["evaluation", "train"]
    assert not (tmp_path / "validation.json").exists()


def write_esc50(folder: Path) -> list[Clip]:
    """Writes 80 pieces of 20 recordings of two classes under the file names of ESC-50."""
    folder.mkdir()
    rng, clips = np.random.default_rng(0), []
    for source in range(20):
        for take in "ABCD":
            path = folder / f"{1 + source % 5}-{1000 + source}-{take}-{source % 2}.wav"
            soundfile.write(path, rng.uniform(-0.1, 0.1, 800), 8000)
            clips.append(Clip(str(path), (("dog", "cat")[source % 2],)))
    return clips


def sources_of(made: Prepared) -> dict[str, set[str]]:
    return {part: {name.split("-")[1] for name in records(path)} for part, path in made.datafiles.items()}


@pytest.mark.parametrize("predefined", [False, True])
def test_pieces_of_one_source_recording_stay_in_one_part(tmp_path, predefined):
    clips = write_esc50(tmp_path / "audio")
    if predefined:
        clips = [replace(c, part="evaluation" if Path(c.path).name.startswith("5") else "train") for c in clips]
    made = run(Collection("a test", tuple(clips), True), tmp_path / "out", validation=0.1)
    found = sources_of(made)
    assert set(found) == set(PARTS)
    assert sum(map(len, found.values())) == len(set.union(*found.values())) == 20
    assert made.clips["validation"] == 8
    assert Counter(records(made.datafiles["validation"]).values()) == {"dog": 4, "cat": 4}
    assert "80 clips are of 20 sources; all clips of a source are in one part" in made.notes
    assert "the file names are those of ESC-50, and contain the source of each clip" in made.notes
    assert {clip.path: clip.source for clip in made.members}[clips[0].path] == "1000"


def test_the_groups_of_a_table_stay_in_one_part(audio, tmp_path):
    made = collection(audio, *"ab" * 20)
    clips = [replace(clip, group=str(i // 4)) for i, clip in enumerate(made.clips)]
    made = run(Collection("a test", tuple(clips), True), tmp_path / "1")
    source = {clip.path: clip.source for clip in made.members}
    parts = {
        source[r["wav"]]: part
        for part, path in made.datafiles.items()
        for r in json.loads(Path(path).read_text())["data"]
    }
    for part, path in made.datafiles.items():
        assert {parts[source[r["wav"]]] for r in json.loads(Path(path).read_text())["data"]} == {part}
    assert made.clips == {"train": 32, "validation": 4, "evaluation": 4}
    divided = [replace(clip, part="train" if i % 4 else "evaluation") for i, clip in enumerate(clips)]
    made = run(Collection("a test", tuple(divided), True), tmp_path / "2")
    assert "sources with clips in several parts of the split, which makes metrics too high: 10, such as 0" in made.notes


def test_exact_copies_in_held_out_parts_are_counted(audio, tmp_path):
    (tmp_path / "audio").mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        soundfile.write(tmp_path / "audio" / f"{i:02d}.wav", rng.uniform(-0.1, 0.1, 800), 8000)
    for copy, of in (("08", "09"), ("10", "00")):
        (tmp_path / "audio" / f"{copy}.wav").write_bytes((tmp_path / "audio" / f"{of}.wav").read_bytes())
    made = run(collection(tmp_path / "audio", *"ab" * 6, parts="t" * 8 + "e" * 4), tmp_path / "out")
    assert [note.partition(", such as")[0] for note in made.copies] == [
        "copies of other recordings of the evaluation part in it, which count again in metrics: 1",
        "copies of training clips in the evaluation part, which make metrics too high: 1",
        "recordings with the same content but different labels: 2",
        "exact copies of other recordings: 2",
    ]
    assert all(f"note: {note}" in made.report() for note in made.copies)


def test_spellings_of_one_class_are_reported(audio, tmp_path):
    made = run(collection(audio, *["Dog", "dog", "DOG", "sea waves", "sea_waves", "cat"] * 6), tmp_path / "1")
    assert made.notes[:2] == (
        "3 classes differ only in case or spaces: DOG, Dog, dog; are they the same class?",
        "2 classes differ only in case or spaces: sea waves, sea_waves; are they the same class?",
    )
    made = run(collection(audio, *["Actor_01", "Actor_02"] * 20), tmp_path / "2")
    assert (
        "the classes differ only in a number: Actor_01, Actor_02; check that they are not speakers or parts"
        in made.notes
    )
    assert run(collection(audio, *["1", "2"] * 20), tmp_path / "3").notes == ()


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        ("train dev eval", ["train", "validation", "evaluation"]),
        ("dev eval", ["train", "evaluation"]),
        ("Development test", ["train", "evaluation"]),
        ("dev val test", ["train", "validation", "evaluation"]),
        ("dev train", ["validation", "train"]),
        ("val test", ["validation", "evaluation"]),
        ("dev dog", ["validation"]),
    ],
)
def test_a_development_part_is_for_training_if_nothing_else_is(names, parts):
    assert list(part_names(names.split()).values()) == parts
