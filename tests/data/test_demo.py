"""The demo set: what is in it, that it is the same each time, and that it is there whole or not at all."""

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

from psla_jax import audio
from psla_jax.data import demo, sounds
from psla_jax.data.datafile import Datafile, weight_path
from psla_jax.ontology import Ontology, Vocabulary

SMALL = dataclasses.replace(
    demo.RECIPE,
    train_events=(6, 5, 4, 4, 3, 3, 2, 2, 2, 2, 1, 1, 1),
    validation_events=(1,) * 13,
    evaluation_events=(2,) * 13,
)
TINY = dataclasses.replace(SMALL, seconds=(0.06, 0.08))
PARENTS = {"/demo/drum", "/demo/signal", "/demo/noise", "/demo/motor"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Datafile]:
    """The datafiles of the real recipe, with clips cut down to a few hundredths of a second."""
    root = tmp_path_factory.mktemp("demo") / "set"
    recipe = dataclasses.replace(demo.RECIPE, seconds=(0.06, 0.08))
    vocabulary = Vocabulary.read(demo.locate("labels", root, recipe=recipe))
    names = ("train", "truth", "validation", "evaluation")
    return {name: Datafile.read(demo.locate(name, root, recipe=recipe), vocabulary) for name in names}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small set of clips at full length; not to be changed."""
    root = tmp_path_factory.mktemp("demo") / "set"
    demo.locate("train", root, recipe=SMALL)
    return root


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small set of very short clips; not to be changed."""
    root = tmp_path_factory.mktemp("demo") / "set"
    demo.locate("train", root, recipe=TINY)
    return root


def contents(root: Path) -> dict[str, str]:
    """The hash of every file below a folder."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def mids(datafile: Datafile, i: int) -> set[str]:
    order = demo.vocabulary().mids
    return {order[k] for k in datafile.labels(i)}


def leaf_counts(datafile: Datafile) -> list[int]:
    """How many clips have each leaf, in the order of ``demo.LEAVES``."""
    counts = dict(zip(demo.vocabulary().mids, datafile.class_counts().tolist()))
    return [counts[f"/demo/{leaf}"] for leaf in demo.LEAVES]


def test_the_sizes_are_those_of_a_first_run(whole: dict[str, Datafile]) -> None:
    assert {name: len(datafile) for name, datafile in whole.items()} == {
        "train": 420,
        "truth": 420,
        "validation": 144,
        "evaluation": 221,
    }


def test_labels_and_ontology_describe_one_hierarchy(small: Path) -> None:
    vocabulary, ontology = Vocabulary.read(small / "labels.csv"), Ontology.read(small / "ontology.json")
    assert set(vocabulary.mids) == PARENTS | {f"/demo/{leaf}" for leaf in demo.LEAVES}
    assert set(vocabulary.mids) == {mid for mid in ontology.classes if ontology.restrictions(mid) != ("abstract",)}
    for leaf in demo.LEAVES:
        assert len(PARENTS & set(ontology.ancestors(f"/demo/{leaf}"))) == 1
        assert not ontology.children(f"/demo/{leaf}")
    assert [ontology.classes[mid].name for mid in vocabulary.mids] == list(vocabulary.names)


@pytest.mark.parametrize("name", ["validation", "evaluation", "truth"])
def test_complete_labels_carry_their_parents_and_no_other(whole: dict[str, Datafile], small: Path, name: str) -> None:
    ontology = Ontology.read(small / "ontology.json")
    for i in range(len(whole[name])):
        leaves = mids(whole[name], i) - PARENTS
        parents = {up for leaf in leaves for up in ontology.ancestors(leaf)} & PARENTS
        assert leaves
        assert mids(whole[name], i) == leaves | parents


def test_training_has_a_long_tail_and_evaluation_has_not(whole: dict[str, Datafile]) -> None:
    tail = leaf_counts(whole["truth"])
    assert tail == sorted(tail, reverse=True) == list(demo.RECIPE.train_events)
    assert tail[0] >= 85
    assert tail[-1] <= 6
    assert set(leaf_counts(whole["validation"])) == {15}
    assert set(leaf_counts(whole["evaluation"])) == {23}


@pytest.mark.parametrize("name", ["truth", "validation", "evaluation"])
def test_a_third_of_the_clips_has_two_events(whole: dict[str, Datafile], name: str) -> None:
    events = [len(mids(whole[name], i) - PARENTS) for i in range(len(whole[name]))]
    assert set(events) == {1, 2}
    assert np.mean(np.array(events) == 2) == pytest.approx(0.35, abs=0.005)


def test_pairs_are_of_many_kinds(whole: dict[str, Datafile]) -> None:
    clips = [frozenset(mids(whole["truth"], i) - PARENTS) for i in range(len(whole["truth"]))]
    assert len({clip for clip in clips if len(clip) == 2}) > 40


def test_labels_are_missing_from_training_alone(whole: dict[str, Datafile]) -> None:
    train, truth = whole["train"], whole["truth"]
    missing: list[str] = []
    for i in range(len(train)):
        assert train.wav(i) == truth.wav(i)
        assert mids(train, i)
        assert mids(train, i) <= mids(truth, i)
        missing += mids(truth, i) - mids(train, i)
    counts = dict(zip(demo.vocabulary().mids, truth.class_counts().tolist()))
    parents = sum(counts[mid] for mid in PARENTS)
    # A little under the shares of the recipe, because a clip keeps its last label.
    assert 0.13 < sum(mid in PARENTS for mid in missing) / parents <= 0.152
    assert 0.06 < sum(mid not in PARENTS for mid in missing) / (sum(counts.values()) - parents) <= 0.082


def test_weights_are_beside_the_training_set(small: Path) -> None:
    train = Datafile.read(small / "train.json", demo.vocabulary())
    assert np.loadtxt(weight_path(small / "train.json")) == pytest.approx(train.clip_weights())


def test_every_clip_is_a_recording_of_its_length_and_level(small: Path) -> None:
    train = Datafile.read(small / "train.json", demo.vocabulary())
    clips = [audio.read(train.wav(i)) for i in range(len(train))]
    seconds, peaks = np.array([len(clip) / 16_000 for clip in clips]), np.array([np.abs(clip).max() for clip in clips])
    assert 0.5 <= seconds.min() < 0.6 < 0.85 < seconds.max() <= 0.95
    assert 10 ** (-30 / 20) * 0.99 < peaks.min() < 0.3 * peaks.max()
    assert peaks.max() < 10 ** (-3 / 20) * 1.01


def test_the_same_recipe_gives_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    demo.locate("evaluation", tmp_path / "again", recipe=TINY)
    assert contents(tmp_path / "again") == contents(tiny)


def test_another_seed_gives_other_sounds_and_another_folder(tiny: Path, tmp_path: Path) -> None:
    other = dataclasses.replace(TINY, seed=1)
    demo.locate("train", tmp_path / "other", recipe=other)
    before, after = contents(tiny), contents(tmp_path / "other")
    assert not {before[name] for name in before if name.endswith(".wav")} & set(after.values())
    assert other.digest() != TINY.digest()


def test_locate_gives_paths_that_are_there_and_synthesises_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PSLA_CACHE", str(tmp_path / "cache"))
    said: list[str] = []
    names = ("train", "truth", "validation", "evaluation", "labels", "ontology")
    paths = [demo.locate(name, recipe=TINY, on_start=said.append) for name in names]
    first = contents(tmp_path)
    written = [os.stat(path).st_mtime_ns for path in paths]
    assert paths == [demo.locate(name, recipe=TINY, on_start=said.append) for name in names]
    assert contents(tmp_path) == first
    assert [os.stat(path).st_mtime_ns for path in paths] == written
    folder = tmp_path / "cache" / f"demo-{TINY.digest()}"
    assert {os.path.dirname(path) for path in paths} == {str(folder)}
    assert os.listdir(folder.parent) == [folder.name]
    assert len(said) == 1
    assert str(folder) in said[0]
    assert "".join(capfd.readouterr()) == ""


def test_the_folder_can_be_moved(tiny: Path, tmp_path: Path) -> None:
    demo.locate("train", tmp_path / "here", recipe=TINY)
    os.rename(tmp_path / "here", tmp_path / "there")
    moved = Datafile.read(
        demo.locate("train", tmp_path / "there", recipe=TINY, on_start=pytest.fail), demo.vocabulary()
    )
    assert np.array_equal(audio.read(moved.wav(3)), audio.read(tiny / "train" / "003.wav"))


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_interrupted_synthesis_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    write, calls = audio.write_pcm16, iter(range(20))

    def write_some(path: str, waveform: np.ndarray) -> None:
        if next(calls) == 12:
            raise stop
        write(path, waveform)

    monkeypatch.setattr(audio, "write_pcm16", write_some)
    with pytest.raises(stop):
        demo.locate("train", tmp_path / "set", recipe=TINY)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("lost", ["train/004.wav", "evaluation.json", "recipe.json"])
def test_a_set_that_lost_a_file_is_made_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    monkeypatch.setenv("PSLA_CACHE", str(tmp_path))
    folder = Path(demo.locate("train", recipe=TINY)).parent
    os.unlink(folder / lost)
    said: list[str] = []
    demo.locate("train", recipe=TINY, on_start=said.append)
    assert len(said) == 1
    assert contents(folder) == contents(tiny)
    assert os.listdir(tmp_path) == [folder.name]


def test_a_cut_file_does_not_count_as_whole(tiny: Path, tmp_path: Path) -> None:
    demo.locate("train", tmp_path / "set", recipe=TINY)
    os.truncate(tmp_path / "set" / "train" / "002.wav", 100)
    demo.locate("train", tmp_path / "set", recipe=TINY)
    assert contents(tmp_path / "set") == contents(tiny)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text("mine", encoding="utf-8")
    with pytest.raises(demo.DemoError, match="holds something else") as error:
        demo.locate("train", tmp_path, recipe=TINY)
    assert str(tmp_path) in str(error.value)
    assert (tmp_path / "train.json").read_text(encoding="utf-8") == "mine"
    assert os.listdir(tmp_path) == ["train.json"]


def test_the_set_of_another_recipe_is_left_alone(tiny: Path) -> None:
    before = contents(tiny)
    with pytest.raises(demo.DemoError, match="holds something else"):
        demo.locate("train", tiny, recipe=dataclasses.replace(TINY, seed=1))
    assert contents(tiny) == before


def test_an_empty_folder_is_filled(tiny: Path, tmp_path: Path) -> None:
    demo.locate("train", tmp_path, recipe=TINY)
    assert contents(tmp_path) == contents(tiny)


def test_two_at_once_both_get_a_whole_set(tiny: Path, tmp_path: Path) -> None:
    both_have_started = threading.Barrier(2)

    def ask(name: str) -> str:
        return demo.locate(name, tmp_path / "set", recipe=TINY, on_start=lambda _: both_have_started.wait(60) and None)

    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(ask, ["train", "labels"]))
    assert all(map(os.path.isfile, paths))
    assert contents(tmp_path / "set") == contents(tiny)
    assert os.listdir(tmp_path) == ["set"]


def test_an_unknown_name_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(demo.DemoError, match=r"'test'.*evaluation"):
        demo.locate("test", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_place_that_cannot_be_written_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("PSLA_CACHE", str(tmp_path / "file"))
    with pytest.raises(demo.DemoError, match=r"cannot be written.*PSLA_CACHE"):
        demo.locate("train", recipe=TINY)


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
def test_a_recipe_that_cannot_be_made_is_an_error(field: str, value: object) -> None:
    with pytest.raises(demo.DemoError, match=field):
        dataclasses.replace(TINY, **{field: value})


def test_the_cache_is_the_users_unless_the_environment_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PSLA_CACHE", str(tmp_path))
    assert demo.cache_directory() == tmp_path
    monkeypatch.delenv("PSLA_CACHE")
    assert "psla_jax" in str(demo.cache_directory())
    assert os.path.isabs(demo.cache_directory())


def test_the_recipe_is_beside_the_set(tiny: Path) -> None:
    marker = json.loads((tiny / "recipe.json").read_text(encoding="utf-8"))
    assert marker["recipe"] == json.loads(json.dumps(dataclasses.asdict(TINY)))
    assert set(marker["files"]) == set(contents(tiny)) - {"recipe.json"}


def spectrum(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies in hertz and the power ``(frequencies, frames)`` of one sound, without noise or room."""
    wave = sounds.KINDS[kind](np.random.default_rng([5, seed]), 16_000)
    assert wave.shape == (16_000,)
    assert np.isfinite(wave).all()
    hertz, _, power = scipy.signal.spectrogram(wave, 16_000, nperseg=512, noverlap=352)
    return hertz, power


def centroid(kind: str) -> float:
    """The middle frequency in hertz of a kind of sound, over twelve of them."""
    found = [np.average(hertz, weights=power.sum(axis=1)) for hertz, power in (spectrum(kind, s) for s in range(12))]
    return float(np.median(found))


def test_the_kinds_are_those_of_the_set() -> None:
    assert set(sounds.KINDS) == set(demo.LEAVES)


def test_the_kinds_lie_where_they_are_heard() -> None:
    assert centroid("kick") < centroid("tom") < centroid("snare") < centroid("hat")
    assert centroid("wind") < centroid("hiss")
    assert centroid("engine") < centroid("buzz")


@pytest.mark.parametrize(("kind", "sign"), [("rising", 1), ("falling", -1)])
def test_chirps_go_one_way(kind: str, sign: int) -> None:
    for seed in range(12):
        hertz, power = spectrum(kind, seed)
        loud = power.sum(axis=0) > 0.1 * power.sum(axis=0).max()
        course = np.diff(hertz[power.argmax(axis=0)])[loud[1:] & loud[:-1]]
        moves = course[(course != 0) & (np.abs(course) < 400)]
        assert np.mean(np.sign(moves) == sign) > 0.8


def test_a_siren_glides_and_a_warble_jumps() -> None:
    def share_at_the_ends(kind: str, seed: int) -> float:
        hertz, power = spectrum(kind, seed)
        pitch = hertz[power.argmax(axis=0)][5:-5]
        place = (pitch - pitch.min()) / (pitch.max() - pitch.min())
        return float(np.mean((place < 0.2) | (place > 0.8)))

    shares = {kind: np.median([share_at_the_ends(kind, seed) for seed in range(12)]) for kind in ("siren", "warble")}
    assert shares["siren"] < 0.75
    assert shares["warble"] > 0.85


def test_noise_drowns_a_clip_as_much_as_asked() -> None:
    def tone_over_noise(snr_db: float) -> float:
        levels = {"snr_db": (snr_db, snr_db), "second_db": (0.0, 0.0), "peak_db": (-3.0, -3.0)}
        wave = sounds.clip(np.random.default_rng(3), ["siren"], seconds=(1.0, 1.0), equaliser_db=0.0, **levels)
        _, _, power = scipy.signal.spectrogram(wave, 16_000, nperseg=512)
        return float(10 * np.log10(power.max() / np.median(power)))

    assert tone_over_noise(20) - tone_over_noise(0) == pytest.approx(20, abs=3)
