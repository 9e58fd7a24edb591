"""The demo set: its contents, reproducibility and atomic creation."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import scipy.signal

from psla_jax.audio import decode
from psla_jax.data.datafile import Datafile, weight_path
from psla_jax.data.demo import dataset, synthesis
from psla_jax.vocabulary.ontology import Ontology
from psla_jax.vocabulary.vocabulary import Vocabulary

SMALL = dataclasses.replace(
    dataset.RECIPE,
    train_events=(6, 5, 4, 4, 3, 3, 2, 2, 2, 2, 1, 1, 1),
    validation_events=(1,) * 13,
    evaluation_events=(2,) * 13,
)
TINY = dataclasses.replace(SMALL, seconds=(0.06, 0.08))
PARENTS = {"/demo/drum", "/demo/signal", "/demo/noise", "/demo/motor"}


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Datafile]:
    """The datafiles of the default recipe, with clips of a few hundredths of a second."""
    root = tmp_path_factory.mktemp("demo") / "set"
    recipe = dataclasses.replace(dataset.RECIPE, seconds=(0.06, 0.08))
    vocabulary = Vocabulary.read(dataset.locate("labels", root, recipe=recipe))
    names = ("train", "truth", "validation", "evaluation")
    return {name: Datafile.read(dataset.locate(name, root, recipe=recipe), vocabulary) for name in names}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a small set of clips at full length; tests must not change it."""
    root = tmp_path_factory.mktemp("demo") / "set"
    dataset.locate("train", root, recipe=SMALL)
    return root


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a small set of very short clips; tests must not change it."""
    root = tmp_path_factory.mktemp("demo") / "set"
    dataset.locate("train", root, recipe=TINY)
    return root


def contents(root: Path) -> dict[str, str]:
    """Hash of every file below a directory."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def mids(datafile: Datafile, i: int) -> set[str]:
    order = dataset.vocabulary().mids
    return {order[k] for k in datafile.labels(i)}


def leaf_counts(datafile: Datafile) -> list[int]:
    """Number of clips with each leaf, in the order of ``dataset.LEAVES``."""
    counts = dict(zip(dataset.vocabulary().mids, datafile.class_counts().tolist()))
    return [counts[f"/demo/{leaf}"] for leaf in dataset.LEAVES]


def test_the_sizes_are_those_of_a_first_run(full_size: dict[str, Datafile]) -> None:
    assert {name: len(datafile) for name, datafile in full_size.items()} == {
        "train": 420,
        "truth": 420,
        "validation": 144,
        "evaluation": 221,
    }


def test_labels_and_ontology_describe_one_hierarchy(small: Path) -> None:
    vocabulary, ontology = Vocabulary.read(small / "labels.csv"), Ontology.read(small / "ontology.json")
    assert set(vocabulary.mids) == PARENTS | {f"/demo/{leaf}" for leaf in dataset.LEAVES}
    assert set(vocabulary.mids) == {mid for mid in ontology.classes if ontology.restrictions(mid) != ("abstract",)}
    for leaf in dataset.LEAVES:
        assert len(PARENTS & set(ontology.ancestors(f"/demo/{leaf}"))) == 1
        assert not ontology.children(f"/demo/{leaf}")
    assert [ontology.classes[mid].name for mid in vocabulary.mids] == list(vocabulary.names)


@pytest.mark.parametrize("name", ["validation", "evaluation", "truth"])
def test_complete_labels_carry_their_parents_and_no_other(
    full_size: dict[str, Datafile], small: Path, name: str
) -> None:
    ontology = Ontology.read(small / "ontology.json")
    for i in range(len(full_size[name])):
        leaves = mids(full_size[name], i) - PARENTS
        parents = {up for leaf in leaves for up in ontology.ancestors(leaf)} & PARENTS
        assert leaves
        assert mids(full_size[name], i) == leaves | parents


def test_only_training_has_a_long_tail(full_size: dict[str, Datafile]) -> None:
    tail = leaf_counts(full_size["truth"])
    assert tail == sorted(tail, reverse=True) == list(dataset.RECIPE.train_events)
    assert tail[0] >= 85
    assert tail[-1] <= 6
    assert set(leaf_counts(full_size["validation"])) == {15}
    assert set(leaf_counts(full_size["evaluation"])) == {23}


@pytest.mark.parametrize("name", ["truth", "validation", "evaluation"])
def test_a_third_of_the_clips_has_two_events(full_size: dict[str, Datafile], name: str) -> None:
    events = [len(mids(full_size[name], i) - PARENTS) for i in range(len(full_size[name]))]
    assert set(events) == {1, 2}
    assert np.mean(np.array(events) == 2) == pytest.approx(0.35, abs=0.005)


def test_pairs_are_of_many_kinds(full_size: dict[str, Datafile]) -> None:
    clips = [frozenset(mids(full_size["truth"], i) - PARENTS) for i in range(len(full_size["truth"]))]
    assert len({clip for clip in clips if len(clip) == 2}) > 40


def test_labels_are_missing_from_training_alone(full_size: dict[str, Datafile]) -> None:
    train, truth = full_size["train"], full_size["truth"]
    missing: list[str] = []
    for i in range(len(train)):
        assert train.wav(i) == truth.wav(i)
        assert mids(train, i)
        assert mids(train, i) <= mids(truth, i)
        missing += mids(truth, i) - mids(train, i)
    counts = dict(zip(dataset.vocabulary().mids, truth.class_counts().tolist()))
    parents = sum(counts[mid] for mid in PARENTS)
    # Slightly below the fractions of the recipe, because a clip keeps its last label.
    assert 0.13 < sum(mid in PARENTS for mid in missing) / parents <= 0.152
    assert 0.06 < sum(mid not in PARENTS for mid in missing) / (sum(counts.values()) - parents) <= 0.082


def test_weights_are_beside_the_training_set(small: Path) -> None:
    train = Datafile.read(small / "train.json", dataset.vocabulary())
    assert np.loadtxt(weight_path(small / "train.json")) == pytest.approx(train.clip_weights())


def test_every_clip_is_a_recording_of_its_length_and_level(small: Path) -> None:
    train = Datafile.read(small / "train.json", dataset.vocabulary())
    clips = [decode.read(train.wav(i)) for i in range(len(train))]
    seconds, peaks = np.array([len(clip) / 16_000 for clip in clips]), np.array([np.abs(clip).max() for clip in clips])
    assert 0.5 <= seconds.min() < 0.6 < 0.85 < seconds.max() <= 0.95
    assert 10 ** (-30 / 20) * 0.99 < peaks.min() < 0.3 * peaks.max()
    assert peaks.max() < 10 ** (-3 / 20) * 1.01


def test_the_same_recipe_gives_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    dataset.locate("evaluation", tmp_path / "again", recipe=TINY)
    assert contents(tmp_path / "again") == contents(tiny)


def test_another_seed_gives_other_sounds_and_another_folder(tiny: Path, tmp_path: Path) -> None:
    other = dataclasses.replace(TINY, seed=1)
    dataset.locate("train", tmp_path / "other", recipe=other)
    before, after = contents(tiny), contents(tmp_path / "other")
    assert not {before[name] for name in before if name.endswith(".wav")} & set(after.values())
    assert other.digest() != TINY.digest()


def test_locate_gives_paths_that_are_there_and_synthesises_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PSLA_CACHE", str(tmp_path / "cache"))
    messages: list[str] = []
    names = ("train", "truth", "validation", "evaluation", "labels", "ontology")
    paths = [dataset.locate(name, recipe=TINY, on_start=messages.append) for name in names]
    first = contents(tmp_path)
    times = [os.stat(path).st_mtime_ns for path in paths]
    assert paths == [dataset.locate(name, recipe=TINY, on_start=messages.append) for name in names]
    assert contents(tmp_path) == first
    assert [os.stat(path).st_mtime_ns for path in paths] == times
    folder = tmp_path / "cache" / f"demo-{TINY.digest()}"
    assert {os.path.dirname(path) for path in paths} == {str(folder)}
    assert os.listdir(folder.parent) == [folder.name]
    assert len(messages) == 1
    assert str(folder) in messages[0]
    assert "".join(capfd.readouterr()) == ""


def test_without_a_writable_cache_the_set_is_made_for_this_process(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("a file in place of the directory")
    monkeypatch.setenv("PSLA_CACHE", str(tmp_path / "cache"))
    messages: list[str] = []
    paths = [dataset.locate(name, recipe=TINY, on_start=messages.append) for name in ("train", "labels", "train")]
    assert contents(Path(paths[0]).parent) == contents(tiny)
    assert paths[0] == paths[2]
    assert len([text for text in messages if str(tmp_path) not in text]) == 1, "synthesised once"
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith(f"the cache is not used: {tmp_path}/cache/demo-")


def test_the_folder_can_be_moved(tiny: Path, tmp_path: Path) -> None:
    dataset.locate("train", tmp_path / "here", recipe=TINY)
    os.rename(tmp_path / "here", tmp_path / "there")
    moved = Datafile.read(
        dataset.locate("train", tmp_path / "there", recipe=TINY, on_start=pytest.fail), dataset.vocabulary()
    )
    assert np.array_equal(decode.read(moved.wav(3)), decode.read(tiny / "train" / "003.wav"))


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_interrupted_synthesis_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    write, calls = decode.write_pcm16, iter(range(20))

    def write_some(path: str, waveform: np.ndarray) -> None:
        if next(calls) == 12:
            raise stop
        write(path, waveform)

    monkeypatch.setattr(decode, "write_pcm16", write_some)
    with pytest.raises(stop):
        dataset.locate("train", tmp_path / "set", recipe=TINY)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("lost", ["train/004.wav", "evaluation.json", "recipe.json"])
def test_an_incomplete_set_is_replaced(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    monkeypatch.setenv("PSLA_CACHE", str(tmp_path))
    folder = Path(dataset.locate("train", recipe=TINY)).parent
    os.unlink(folder / lost)
    messages: list[str] = []
    dataset.locate("train", recipe=TINY, on_start=messages.append)
    assert len(messages) == 1
    assert contents(folder) == contents(tiny)
    assert os.listdir(tmp_path) == [folder.name]


def test_a_truncated_file_is_replaced(tiny: Path, tmp_path: Path) -> None:
    dataset.locate("train", tmp_path / "set", recipe=TINY)
    os.truncate(tmp_path / "set" / "train" / "002.wav", 100)
    dataset.locate("train", tmp_path / "set", recipe=TINY)
    assert contents(tmp_path / "set") == contents(tiny)


def test_a_directory_with_other_files_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text("mine", encoding="utf-8")
    with pytest.raises(dataset.DemoError, match="contains other files") as error:
        dataset.locate("train", tmp_path, recipe=TINY)
    assert str(tmp_path) in str(error.value)
    assert (tmp_path / "train.json").read_text(encoding="utf-8") == "mine"
    assert os.listdir(tmp_path) == ["train.json"]


def test_the_set_of_another_recipe_is_not_changed(tiny: Path) -> None:
    before = contents(tiny)
    with pytest.raises(dataset.DemoError, match="contains other files"):
        dataset.locate("train", tiny, recipe=dataclasses.replace(TINY, seed=1))
    assert contents(tiny) == before


def test_an_empty_folder_is_filled(tiny: Path, tmp_path: Path) -> None:
    dataset.locate("train", tmp_path, recipe=TINY)
    assert contents(tmp_path) == contents(tiny)


def test_concurrent_calls_get_a_complete_set(tiny: Path, tmp_path: Path) -> None:
    both_have_started = threading.Barrier(2)

    def locate(name: str) -> str:
        return dataset.locate(
            name, tmp_path / "set", recipe=TINY, on_start=lambda _: both_have_started.wait(60) and None
        )

    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(locate, ["train", "labels"]))
    assert all(map(os.path.isfile, paths))
    assert contents(tmp_path / "set") == contents(tiny)
    assert os.listdir(tmp_path) == ["set"]


def test_an_unknown_name_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(dataset.DemoError, match=r"'test'.*evaluation"):
        dataset.locate("test", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_an_unwritable_directory_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(dataset.DemoError, match=r"cannot be written to .*file/set.* \(Not a directory\): .*PSLA_CACHE"):
        dataset.locate("train", tmp_path / "file" / "set", recipe=TINY)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("train_events", (3, 2)),
        ("validation_events", (9, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0)),
        ("evaluation_events", (0,) * 13),
        ("two_events", 1.5),
        ("leaves_removed", -0.1),
    ],
)
def test_an_invalid_recipe_is_an_error(field: str, value: object) -> None:
    with pytest.raises(dataset.DemoError, match=field):
        dataclasses.replace(TINY, **{field: value})


def test_the_recipe_is_beside_the_set(tiny: Path) -> None:
    marker = json.loads((tiny / "recipe.json").read_text(encoding="utf-8"))
    assert marker["recipe"] == json.loads(json.dumps(dataclasses.asdict(TINY)))
    assert set(marker["files"]) == set(contents(tiny)) - {"recipe.json"}


def spectrum(sound: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies in hertz and power ``(frequencies, frames)`` of a sound without noise and room."""
    wave = synthesis.SOUNDS[sound](np.random.default_rng([5, seed]), 16_000)
    assert wave.shape == (16_000,)
    assert np.isfinite(wave).all()
    hertz, _, power = scipy.signal.spectrogram(wave, 16_000, nperseg=512, noverlap=352)
    return hertz, power


def centroid(sound: str) -> float:
    """Median spectral centroid in hertz of twelve sounds of a class."""
    spectra = (spectrum(sound, seed) for seed in range(12))
    return float(np.median([np.average(hertz, weights=power.sum(axis=1)) for hertz, power in spectra]))


def test_every_leaf_has_a_sound() -> None:
    assert set(synthesis.SOUNDS) == set(dataset.LEAVES)


def test_the_spectral_centroids_are_ordered() -> None:
    assert centroid("kick") < centroid("tom") < centroid("snare") < centroid("hat")
    assert centroid("wind") < centroid("hiss")
    assert centroid("engine") < centroid("buzz")


@pytest.mark.parametrize(("sound", "sign"), [("rising", 1), ("falling", -1)])
def test_chirps_go_one_way(sound: str, sign: int) -> None:
    for seed in range(12):
        hertz, power = spectrum(sound, seed)
        loud = power.sum(axis=0) > 0.1 * power.sum(axis=0).max()
        steps = np.diff(hertz[power.argmax(axis=0)])[loud[1:] & loud[:-1]]
        moves = steps[(steps != 0) & (np.abs(steps) < 400)]
        assert np.mean(np.sign(moves) == sign) > 0.8


def test_a_siren_glides_and_a_warble_jumps() -> None:
    def fraction_at_the_ends(sound: str, seed: int) -> float:
        hertz, power = spectrum(sound, seed)
        pitch = hertz[power.argmax(axis=0)][5:-5]
        position = (pitch - pitch.min()) / (pitch.max() - pitch.min())
        return float(np.mean((position < 0.2) | (position > 0.8)))

    siren, warble = (np.median([fraction_at_the_ends(s, seed) for seed in range(12)]) for s in ("siren", "warble"))
    assert siren < 0.75
    assert warble > 0.85


def test_the_noise_has_the_requested_level() -> None:
    def tone_over_noise(snr_db: float) -> float:
        levels = {"snr_db": (snr_db, snr_db), "second_db": (0.0, 0.0), "peak_db": (-3.0, -3.0)}
        wave = synthesis.clip(np.random.default_rng(3), ["siren"], seconds=(1.0, 1.0), equaliser_db=0.0, **levels)
        _, _, power = scipy.signal.spectrogram(wave, 16_000, nperseg=512)
        return float(10 * np.log10(power.max() / np.median(power)))

    assert tone_over_noise(20) - tone_over_noise(0) == pytest.approx(20, abs=3)
