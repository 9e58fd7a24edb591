"""Folders of recordings: recognised layouts, excluded files and notes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from servers import one_sentence

from psla_jax.data.prepare import table
from psla_jax.data.prepare.collection import Clip, Collection, CollectionError
from psla_jax.data.prepare.folder import read
from psla_jax.data.prepare.walk import PathError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def read_folder(folder: Path, **options) -> Collection:
    return read(str(folder), progress=False, **options)


def clips(collection: Collection, root: Path) -> dict[str, tuple[str, str]]:
    """Returns label and part of every clip, by its path relative to `root`."""
    return {str(Path(c.path).relative_to(root)): (*c.labels, c.part) for c in collection.clips}


def test_the_class_is_the_top_level_folder_at_any_depth(tmp_path):
    touch(
        tmp_path, "dog/a.wav", "dog/2020/may/b.FLAC", "Cat, big/c.wav", "dog/._a.wav", ".cache/d.wav", "dog/notes.txt"
    )
    made = read_folder(tmp_path)
    assert clips(made, tmp_path) == {
        "Cat, big/c.wav": ("Cat, big", ""),
        "dog/2020/may/b.FLAC": ("dog", ""),
        "dog/a.wav": ("dog", ""),
    }
    assert (made.layout, made.exclusive, made.excluded, made.notes) == ("class folders", True, (), ())


def test_a_path_may_be_relative_or_end_with_a_slash(tmp_path, monkeypatch):
    touch(tmp_path, "here/dog/a.wav", "here/cat/b.wav")
    monkeypatch.chdir(tmp_path)
    for path in ("here", "here/", "./here/../here"):
        assert [c.path for c in read_folder(Path(path)).clips] == [
            str(tmp_path / p) for p in ("here/cat/b.wav", "here/dog/a.wav")
        ]


def test_excluded_files_and_unused_folders_are_reported(tmp_path):
    touch(tmp_path, "dog/a.wav", "cat/b.wav", "loose.wav", "cat/c.rm", "documents/readme.txt", "Empty/.keep")
    root = os.fsencode(tmp_path)
    open(root + b"/dog/caf\xe9.wav", "wb").close()
    os.mkfifo(root + b"/dog/pipe.wav")
    os.mkdir(root + b"/v\xf6gel")
    open(root + b"/v\xf6gel/a.wav", "wb").close()
    made = read_folder(tmp_path)
    assert set(clips(made, tmp_path)) == {"dog/a.wav", "cat/b.wav"}
    reasons = {os.fsencode(clip.path).removeprefix(root + b"/"): clip.reason for clip in made.excluded}
    assert "is not in a class folder" in reasons.pop(b"loose.wav")
    assert "is in an unsupported format: convert" in reasons.pop(b"cat/c.rm")
    assert "is a pipe, a device or a broken link" in reasons.pop(b"dog/pipe.wav")
    assert set(reasons) == {b"dog/caf\xe9.wav", b"v\xf6gel/a.wav"}
    assert all("not UTF-8" in reason for reason in reasons.values())
    assert sorted(made.notes) == [
        f"the folder {name} has no usable audio, so it is not a class" for name in ("Empty", "documents", r"v\xf6gel")
    ]


def test_a_split_into_folders_is_recognised(tmp_path):
    touch(tmp_path, "train/dog/a.wav", "train/cat/b.wav", "Test/dog/x/c.wav", "val/cat/d.wav", "val/e.wav")
    made = read_folder(tmp_path)
    assert made.layout == "class folders in folders of a split"
    assert clips(made, tmp_path) == {
        "Test/dog/x/c.wav": ("dog", "evaluation"),
        "train/cat/b.wav": ("cat", "train"),
        "train/dog/a.wav": ("dog", "train"),
        "val/cat/d.wav": ("cat", "validation"),
    }
    assert [Path(clip.path).name for clip in made.excluded] == ["e.wav"]


def esc50(folder: Path) -> Path:
    """Writes six clips in the layout of ESC-50, with its columns, file names and folds."""
    rows = [
        f"{fold}-{100 + fold}-{take}-{target}.wav,{fold},{target},{name},False,{100 + fold},{take}"
        for fold in (1, 2, 5) for take, target, name in (("A", 0, "dog"), ("B", 14, "chirping_birds"))
    ]  # fmt: skip
    touch(folder, "README.md", "LICENSE", *(f"audio/{row.partition(',')[0]}" for row in rows))
    (folder / "meta").mkdir()
    (folder / "meta" / "esc50.csv").write_text("\n".join(["filename,fold,target,category,esc10,src_file,take", *rows]))
    return folder


def test_esc50_is_recognised(tmp_path):
    made = read_folder(esc50(tmp_path))
    assert made.layout == "ESC-50; fold 5 of 1, 2, 5 is for evaluation"
    assert made.exclusive
    labels = clips(made, tmp_path / "audio")
    assert labels["5-105-B-14.wav"] == ("chirping_birds", "evaluation")
    assert labels["1-101-A-0.wav"] == ("dog", "train")
    assert sum(part == "evaluation" for _, part in labels.values()) == 2
    assert clips(read_folder(tmp_path, fold="2"), tmp_path / "audio")["2-102-A-0.wav"] == ("dog", "evaluation")


def test_speech_commands_are_recognised(tmp_path):
    touch(tmp_path, "yes/a_nohash_0.wav", "yes/b_nohash_0.wav", "no/a_nohash_0.wav", "_background_noise_/hum.wav")
    (tmp_path / "validation_list.txt").write_text("yes/a_nohash_0.wav\n")
    (tmp_path / "testing_list.txt").write_text("no/a_nohash_0.wav\nno/gone_nohash_1.wav\n")
    made = read_folder(tmp_path)
    assert made.layout == "Speech Commands"
    assert clips(made, tmp_path) == {
        "no/a_nohash_0.wav": ("no", "evaluation"),
        "yes/a_nohash_0.wav": ("yes", "validation"),
        "yes/b_nohash_0.wav": ("yes", "train"),
    }
    assert made.notes == ("listed clips that are missing: 1, such as no/gone_nohash_1.wav",)


def test_a_folder_without_audio_is_an_error_of_one_sentence(tmp_path):
    touch(tmp_path, "dog/notes.txt")
    with pytest.raises(CollectionError, match="there is no audio file under") as caught:
        read_folder(tmp_path)
    one_sentence(caught.value)
    touch(tmp_path, "loose.wav")
    with pytest.raises(
        CollectionError, match=r"no recording under .* can be used: .*loose\.wav is not in a class folder"
    ):
        read_folder(tmp_path)
    with pytest.raises(PathError, match="cannot be read"):
        read_folder(tmp_path / "nowhere")


def test_a_fold_needs_a_data_set_with_folds(tmp_path):
    with pytest.raises(CollectionError, match="has no folds, but --fold is 3"):
        read_folder(touch(tmp_path, "dog/a.wav"), fold="3")


def urbansound8k(folder: Path) -> Path:
    """Writes the layout of UrbanSound8K; two slices have the same times, which are those in their recordings."""
    rows = [
        f"{source}-{target}-0-{take}.wav,{source},{58.0 + take},{62.0 + take},1,{fold},{target},{name}"
        for fold, source, target, name in ((1, 100, 3, "dog_bark"), (2, 200, 5, "idling"), (10, 300, 3, "dog_bark"))
        for take in range(2)
    ]  # fmt: skip
    touch(
        folder, "UrbanSound8K_README.txt", *(f"audio/fold{row.split(',')[5]}/{row.partition(',')[0]}" for row in rows)
    )
    touch(folder, *(f"audio/fold{number}/.DS_Store" for number in range(1, 11)))
    (folder / "metadata").mkdir()
    header = "slice_file_name,fsID,start,end,salience,fold,classID,class"
    (folder / "metadata" / "UrbanSound8K.csv").write_text("\n".join([header, *rows]))
    return folder


@pytest.mark.parametrize("where", [".", "audio", ".."])
def test_urbansound8k_is_recognised(tmp_path, where):
    root = urbansound8k(tmp_path / "data" / "UrbanSound8K")
    made = read_folder(root / where)
    assert made.layout == "UrbanSound8K; fold 10 of 1, 2, 10 is for evaluation"
    assert (made.exclusive, made.excluded) == (True, ())
    audio = root / "audio"
    first = str(audio / "fold1" / "100-3-0-0.wav")
    assert made.clips[0] == Clip(first, ("dog_bark",), "train", made.clips[0].group, fold="1")
    assert clips(made, audio) == {
        **dict.fromkeys(("fold1/100-3-0-0.wav", "fold1/100-3-0-1.wav"), ("dog_bark", "train")),
        **dict.fromkeys(("fold2/200-5-0-0.wav", "fold2/200-5-0-1.wav"), ("idling", "train")),
        **dict.fromkeys(("fold10/300-3-0-0.wav", "fold10/300-3-0-1.wav"), ("dog_bark", "evaluation")),
    }
    listed = table.read(str(root / "metadata" / "UrbanSound8K.csv"), str(audio), progress=False)
    assert listed.clips == made.clips
    assert clips(read_folder(root / where, fold="2"), audio)["fold2/200-5-0-0.wav"] == ("idling", "evaluation")


def test_folds_are_not_classes(tmp_path):
    root = urbansound8k(tmp_path / "UrbanSound8K")
    (root / "metadata" / "UrbanSound8K.csv").unlink()
    for folder in (root, root / "audio"):
        with pytest.raises(
            CollectionError, match=r"the folders fold1, fold10, fold2 of .*audio are folds and have no"
        ) as caught:
            read_folder(folder)
        one_sentence(caught.value)
    touch(
        tmp_path / "own", "Fold_1/dog/a.wav", "Fold_1/cat/b.wav", "Fold_2/dog/c.wav", "Fold_3/cat/d.wav", "meta/x.txt"
    )
    made = read_folder(tmp_path / "own", fold="2")
    assert made.layout == "class folders in fold folders; fold 2 of 1, 2, 3 is for evaluation"
    assert clips(made, tmp_path / "own") == {
        "Fold_1/cat/b.wav": ("cat", "train"),
        "Fold_1/dog/a.wav": ("dog", "train"),
        "Fold_2/dog/c.wav": ("dog", "evaluation"),
        "Fold_3/cat/d.wav": ("cat", "train"),
    }
    with pytest.raises(CollectionError, match="has the folds 1, 2, 3, but --fold is 7"):
        read_folder(tmp_path / "own", fold="7")


def test_esc50_is_recognised_one_level_down_and_in_its_audio_folder(tmp_path):
    root = esc50(tmp_path / "ESC-50-master")
    for folder in (tmp_path, root / "audio"):
        made = read_folder(folder)
        assert made.layout == "ESC-50; fold 5 of 1, 2, 5 is for evaluation"
        assert len(made.clips) == 6
    touch(tmp_path, "mine/dog/a.wav")
    with pytest.raises(CollectionError, match=r"has a data set in .*ESC-50-master beside other folders") as caught:
        read_folder(tmp_path)
    one_sentence(caught.value)


@pytest.mark.parametrize(
    "other", ["metadata/list.csv", "__MACOSX/._a.wav", "Empty/.keep", "held-back/dog/x.wav", "old.wav"]
)
@pytest.mark.parametrize("names", ["train val test", "train_audio test_audio", "nsynth-train nsynth-valid", "dev eval"])
def test_a_split_beside_other_folders_is_recognised(tmp_path, names, other):
    folders = names.split()
    touch(tmp_path, other, *(f"{name}/{label}/1.wav" for name in folders for label in ("dog", "cat")))
    made = read_folder(tmp_path)
    parts = {
        "val": "validation",
        "nsynth-valid": "validation",
        "test": "evaluation",
        "test_audio": "evaluation",
        "eval": "evaluation",
    }
    assert clips(made, tmp_path) == {
        f"{name}/{label}/1.wav": (label, parts.get(name, "train")) for name in folders for label in ("dog", "cat")
    }
    expected = {"held-back/dog/x.wav": "is in a folder beside parts of a split", "old.wav": "is not in a class folder"}
    assert [clip.reason.partition(":")[0] for clip in made.excluded] == [v for k, v in expected.items() if k == other]


@pytest.mark.parametrize(
    "flat",
    [
        "train test",
        "train val test extra",
        "nsynth-train nsynth-test",
        "balanced_train_segments eval_segments",
        "Kaggle2019.audio_train_curated Kaggle2019.audio_train_noisy Kaggle2019.audio_test",
    ],
)
def test_parts_of_a_split_are_not_classes(tmp_path, flat):
    touch(tmp_path, *(f"{name}/{i}.wav" for name in flat.split() for i in range(3)))
    with pytest.raises(
        CollectionError, match=r"the folders .* are parts of a split and have no class folders: list"
    ) as caught:
        read_folder(tmp_path)
    one_sentence(caught.value)


@pytest.mark.parametrize(
    "names", ["train bus tram", "train_horn test_tone", "Train,Train horn,Bus", "val dog", "1 2 3", "fold dog"]
)
def test_classes_with_names_like_parts_are_classes(tmp_path, names):
    folders = names.split("," if "," in names else None)
    touch(tmp_path, *(f"{name}/a.wav" for name in folders))
    made = read_folder(tmp_path)
    assert (made.layout, made.notes) == ("class folders", ())
    assert clips(made, tmp_path) == {f"{name}/a.wav": (name, "") for name in folders}


def test_class_folders_in_the_only_folder_of_each_part_are_recognised(tmp_path):
    touch(tmp_path, *(f"{part}/audio/{name}/x.wav" for part in ("train", "test") for name in ("yes", "no")))
    assert clips(read_folder(tmp_path), tmp_path) == {
        f"{part}/audio/{name}/x.wav": (name, split)
        for part, split in (("train", "train"), ("test", "evaluation"))
        for name in ("yes", "no")
    }


def test_fsd50k_has_a_command_of_its_own(tmp_path):
    touch(
        tmp_path / "data" / "FSD50K", "FSD50K.dev_audio/1.wav", "FSD50K.eval_audio/2.wav", "FSD50K.ground_truth/dev.csv"
    )
    for folder in (tmp_path / "data", tmp_path / "data" / "FSD50K"):
        with pytest.raises(CollectionError, match=r"is FSD50K, .*: use psla prepare fsd50k .*/data/FSD50K") as caught:
            read_folder(folder)
        one_sentence(caught.value)


@pytest.mark.parametrize("lists", ["data/speech_commands", "data", None])
@pytest.mark.parametrize("start", ["data", "data/speech_commands"])
def test_speech_commands_are_recognised_around_their_folder(tmp_path, lists, start):
    root = touch(
        tmp_path / "data" / "speech_commands", *(f"{n}/{s}_nohash_0.wav" for n in ("yes", "no") for s in "abc")
    )
    touch(root, "_background_noise_/hum.wav")
    if lists:
        (tmp_path / lists / "validation_list.txt").write_text("yes/a_nohash_0.wav\n")
        (tmp_path / lists / "testing_list.txt").write_text("no/a_nohash_0.wav\n")
    made = read_folder(tmp_path / start)
    assert made.layout == ("Speech Commands" if lists else "class folders")
    held_out = {"yes/a_nohash_0.wav": ("yes", "validation"), "no/a_nohash_0.wav": ("no", "evaluation")} if lists else {}
    train = {f"{n}/{s}_nohash_0.wav": (n, "train" if lists else "") for n in ("yes", "no") for s in "abc"}
    assert clips(made, root) == {**train, **held_out}
    assert any("_background_noise_" in note for note in made.notes) == (lists is None)


def test_lists_of_another_folder_are_not_those_of_speech_commands(tmp_path):
    for name in ("validation_list.txt", "testing_list.txt"):
        (tmp_path / name).write_text("yes/a_nohash_0.wav\n")
    assert read_folder(touch(tmp_path / "mine", "dog/a.wav", "cat/b.wav")).layout == "class folders"


def test_class_folders_in_the_only_folder_are_recognised(tmp_path):
    touch(tmp_path, "Data/genres_original/blues/b.wav", "Data/genres_original/jazz/j.wav", "Data/images_original/b.png")
    touch(tmp_path, "loose.wav", "Data/features.csv")
    made = read_folder(tmp_path)
    root = tmp_path / "Data" / "genres_original"
    assert clips(made, root) == {"blues/b.wav": ("blues", ""), "jazz/j.wav": ("jazz", "")}
    assert made.notes == (f"the class folders are those in {root}, which has all recordings",)
    assert [Path(clip.path).name for clip in made.excluded] == ["loose.wav"]


def test_folders_that_may_not_be_the_classes_are_reported(tmp_path):
    touch(tmp_path, *(f"{a}/{b}/{i}.wav" for a in ("2019", "holdout") for b in ("dog", "cat") for i in range(2)))
    touch(tmp_path, "meta/labels.csv")
    _, same, unused = read_folder(tmp_path).notes
    assert same == (
        "each of the folders 2019, holdout has the folders cat, dog: if these are the classes, rename the outer ones "
        "to train, validation and test"
    )
    assert unused == f"the table {tmp_path}/meta/labels.csv is not used: if it has the classes, use psla prepare csv"


def test_unicode_forms_of_class_names_are_one_class(tmp_path):
    touch(tmp_path, "train/V\u00f6gel/a.wav", "test/Vo\u0308gel/b.wav", "train/dog/c.wav")
    assert {clip.labels for clip in read_folder(tmp_path).clips} == {("V\u00f6gel",), ("dog",)}


@pytest.mark.parametrize(
    ("data_set", "beside", "named"),
    [
        (("data/train/cat/a.wav", "data/test/cat/b.wav", "data/test/dog/c.wav"), "background/cat/d.wav", "test, train"),
        (("data/train/cat/a.wav", "data/test/cat/b.wav"), "demo/x.wav", "test, train"),
        (("data/fold1/happy/a.wav", "data/fold2/sad/b.wav"), "extra/happy/c.wav", "fold1, fold2"),
    ],
)
def test_a_split_below_one_of_several_folders_is_named(tmp_path, data_set, beside, named):
    touch(tmp_path, *data_set, beside)
    with pytest.raises(CollectionError) as caught:
        read_folder(tmp_path)
    message = one_sentence(caught.value)
    assert message.startswith(f"{tmp_path}/data has the folders {named}, which are")
    assert f"use psla prepare folder {tmp_path}/data" in message


def test_two_data_sets_with_splits_are_not_classes(tmp_path):
    touch(tmp_path, *(f"{s}/{p}/{c}/a.wav" for s in "ab" for p in ("train", "test") for c in ("cat", "dog")))
    with pytest.raises(CollectionError, match=f"use psla prepare folder {tmp_path}/a"):
        read_folder(tmp_path)


def test_class_folders_may_contain_the_parts_of_the_split(tmp_path):
    touch(
        tmp_path, "fan/train/a.wav", "fan/test/x/b.wav", "fan/supplemental/c.wav", "pump/train/d.wav", "pump/Test/e.wav"
    )
    made = read_folder(tmp_path)
    assert clips(made, tmp_path) == {
        "fan/train/a.wav": ("fan", "train"),
        "fan/test/x/b.wav": ("fan", "evaluation"),
        "pump/train/d.wav": ("pump", "train"),
        "pump/Test/e.wav": ("pump", "evaluation"),
    }
    assert [clip.path for clip in made.excluded] == [str(tmp_path / "fan/supplemental/c.wav")]
    assert made.notes == ()


def test_parts_inside_class_folders_may_be_of_several_domains(tmp_path):
    touch(tmp_path, *(f"{m}/{p}/a.wav" for m in ("fan", "pump") for p in ("train", "source_test", "target_test")))
    assert clips(read_folder(tmp_path), tmp_path) == {
        f"{machine}/{name}/a.wav": (machine, part)
        for machine in ("fan", "pump")
        for name, part in (("train", "train"), ("source_test", "evaluation"), ("target_test", "evaluation"))
    }


def test_class_folders_may_contain_folds(tmp_path):
    touch(tmp_path, *(f"{label}/fold{fold}/{fold}.wav" for label in ("cat", "dog") for fold in (1, 2)))
    made = read_folder(tmp_path, fold="1")
    assert clips(made, tmp_path) == {
        f"{label}/fold{fold}/{fold}.wav": (label, "evaluation" if fold == 1 else "train")
        for label in ("cat", "dog") for fold in (1, 2)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (("audio/a.wav", "audio/b.wav", "meta.csv"), "meta.csv"),
        (("K.audio_train/a.wav", "K.audio_test/b.wav", "K.meta/train.csv"), "K.meta/train.csv"),
        (("train/a.wav", "train/metadata.csv", "test/b.wav", "test/metadata.csv"), "test/metadata.csv"),
        (("a.wav", "b.wav", "metadata.csv"), "metadata.csv"),
    ],
)
def test_a_table_is_named_where_folders_are_no_classes(tmp_path, files, named):
    touch(tmp_path, *files)
    with pytest.raises(CollectionError) as caught:
        read_folder(tmp_path)
    assert one_sentence(caught.value).endswith(
        f": use psla prepare csv with {tmp_path}/{named} if that has the classes."
    )


def test_a_folder_with_a_table_alone_has_no_audio(tmp_path):
    with pytest.raises(CollectionError, match="there is no audio file under"):
        read_folder(touch(tmp_path, "meta.csv"))
