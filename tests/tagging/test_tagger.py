"""The tagger against evaluation, against direct calls of the network, and with invalid input."""

from __future__ import annotations

import dataclasses
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
import soundfile
from flax import nnx
from sounds import VOCABULARY
from tolerance import assert_close

import psla_jax
from psla_jax.aggregation.evaluate_models import evaluate
from psla_jax.audio import decode
from psla_jax.audio.decode import AudioError, write_pcm16
from psla_jax.audio.frontend import Frontend
from psla_jax.audio.windows import Grid
from psla_jax.data import datafile
from psla_jax.data.datafile import Datafile, Record
from psla_jax.evaluation.scores import Scores, ScoresError
from psla_jax.models.model_dir import CheckpointError, load_model, read_card
from psla_jax.tagging.calibration import run as calibration
from psla_jax.tagging.events import Rules, find_events
from psla_jax.tagging.plot.figure import PlotError
from psla_jax.tagging.recording import FrameOutputs
from psla_jax.tagging.tagger import Failure, Options, Tagger, TaggerError
from psla_jax.tagging.windows import Cutter

SIZE = 400 + 160 * 95


def direct_outputs(model, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes scores, frame scores and features of one window without the tagger."""
    padded = np.zeros((1, SIZE), np.float32)
    padded[0, : len(samples)] = samples - samples.mean()
    features = nnx.jit(model.network.backbone)(model.frontend(padded, np.array([len(samples)]), zero_mean=False))
    head = model.network.head
    scores = [jax.nn.sigmoid(cla(features))[0] for cla in head.cla]
    weights = [jax.nn.sigmoid(att(features))[0] for att in head.att]
    attention = sum(w / w.sum(axis=0) for w in weights)
    average = attention[: Grid().num_output_frames(len(samples))].mean(axis=0)
    frames = sum(w * s for w, s in zip(head.head_weight[...], scores)) * np.minimum(1, attention / average)
    return np.asarray(head(features))[0], np.asarray(frames), np.asarray(features)[0]


def test_a_clip_no_longer_than_a_window_scores_as_in_evaluation(saved, sound, tmp_path, monkeypatch):
    evaluated: list[Scores] = []
    monkeypatch.setattr(Scores, "metrics", lambda self, real=Scores.metrics: evaluated.append(self) or real(self))
    lengths = (SIZE, SIZE - 1, 9_000, 401)
    records = []
    for i, length in enumerate(lengths):
        write_pcm16(tmp_path / f"{i}.wav", sound[20_000 * i : 20_000 * i + length])
        records.append((str(tmp_path / f"{i}.wav"), [VOCABULARY.mids[i % 3]]))
    datafile.write(tmp_path / "data.json", records)
    evaluate(saved("attention"), tmp_path / "data.json", batch_size=4, bootstrap=0, keep_scores=False)
    tagger = psla_jax.load(saved("attention"), batch_size=4)
    for clip, scores in zip(evaluated[0].clips, evaluated[0].scores):
        np.testing.assert_allclose(tagger.tag(clip).scores, scores, atol=2e-6)
    assert np.ptp(evaluated[0].scores) > 0.2


@pytest.mark.parametrize("exclusive", [False, True])
def test_evaluation_by_windows_scores_recordings_as_tagging_does(saved, sound, tmp_path, capsys, exclusive):
    """Without --windows only the first window counts, and the sound that is left out is reported."""
    model = shutil.copytree(saved("attention"), tmp_path / "model")
    card = dataclasses.replace(read_card(model), exclusive=exclusive)
    (model / "model.json").write_text(card.to_json())
    records = []
    for i, length in enumerate((9_000, SIZE, SIZE + 1, 40_000, 96_000)):
        soundfile.write(tmp_path / f"{i}.wav", sound[:length], 16_000, "FLOAT")
        records.append((str(tmp_path / f"{i}.wav"), [VOCABULARY.mids[i % 3]]))
    (tmp_path / "unreadable.wav").write_bytes(b"RIFF")
    antiphase = tmp_path / "antiphase.wav"
    soundfile.write(antiphase, np.stack([sound[20_000:29_000], -sound[20_000:29_000]], axis=1), 16_000, "FLOAT")
    soundfile.write(tmp_path / "cut.flac", np.tile(sound, 4), 16_000)
    content = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(content[: len(content) // 2])  # Its header states twice the sound.
    others = [(str(tmp_path / "unreadable.wav"), [VOCABULARY.mids[0]]), (str(antiphase), [VOCABULARY.mids[1]])]
    others.append((str(tmp_path / "cut.flac"), [VOCABULARY.mids[2]]))
    datafile.write(tmp_path / "data.json", [*records, *others])
    scores = {}
    for windows in (False, True):
        file = tmp_path / f"{windows}.npz"
        evaluate(
            model, tmp_path / "data.json", batch_size=4, bootstrap=0, windows=windows, save=file, keep_scores=False
        )
        scores[windows] = Scores.load(file)
        assert scores[windows].skipped == (str(tmp_path / "unreadable.wav"),)
        note = "longer than a window of the model: 3 of 7, of which "
        shown = capsys.readouterr().out
        assert (note in shown) is not windows
        assert f"unreadable clips, which are left out: {tmp_path}/unreadable.wav" in shown
        assert "scores may be wrong for clips that are damaged, with channels that cancel each other" in shown
        assert f"(psla check): {antiphase}, {tmp_path}/cut.flac\n" in shown
    tagger = psla_jax.load(model, batch_size=4)
    for clip, row in zip(scores[True].clips, scores[True].scores):
        np.testing.assert_allclose(tagger.tag(clip).scores, row, atol=1e-5)
    np.testing.assert_allclose(scores[True].scores[:2], scores[False].scores[:2], atol=1e-5)
    assert np.abs(scores[True].scores[3:] - scores[False].scores[3:]).max() > 0.05


def test_the_channel_is_that_of_the_training_unless_another_one_is_named(saved, sound, tmp_path):
    """A model that was trained on the first channel hears it in evaluation, tagging, calibration and Python."""
    stereo = np.stack([sound[20_000:29_000], sound[60_000:69_000]], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, 16_000, "FLOAT")
    datafile.write(tmp_path / "data.json", [(str(tmp_path / "a.wav"), [VOCABULARY.mids[0]])])
    plain, model = saved("attention"), shutil.copytree(saved("attention"), tmp_path / "model")
    card = dataclasses.replace(read_card(model), notes={"config": {"data.channel": "first"}})
    (model / "model.json").write_text(card.to_json())
    expected = {c: psla_jax.load(plain, channel=c).tag(tmp_path / "a.wav").scores for c in ("mean", "first")}
    assert np.abs(expected["mean"] - expected["first"]).max() > 0.01
    for path, channel in ((plain, "mean"), (model, "first")):
        np.testing.assert_array_equal(psla_jax.load(path).tag(tmp_path / "a.wav").scores, expected[channel])
        evaluate(path, tmp_path / "data.json", bootstrap=0, save=tmp_path / f"{channel}.npz")
        np.testing.assert_allclose(Scores.load(tmp_path / f"{channel}.npz").scores[0], expected[channel], atol=2e-6)
    assert psla_jax.load([plain, model]).notes == (
        f"the models were trained on different channels, of which that of {plain} is used (--channel)",
    )


def test_results_of_an_evaluation_need_files_of_their_own_and_do_not_cost_each_other(saved, sound, tmp_path):
    soundfile.write(tmp_path / "a.wav", sound[20_000:29_000], 16_000, "FLOAT")
    datafile.write(tmp_path / "data.json", [(str(tmp_path / "a.wav"), [VOCABULARY.mids[0]])])
    same = tmp_path / "same.csv"
    with pytest.raises(ScoresError, match=r"two results would be written to .*same\.csv: name a file for each"):
        evaluate(saved("attention"), tmp_path / "data.json", per_class=same, confusion=same)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        evaluate(saved("attention"), tmp_path / "data.json", save=tmp_path / "file" / "s.npz", per_class=same)
    assert len(same.read_text().splitlines()) == 1 + len(VOCABULARY)


@pytest.mark.parametrize("exclusive", [(True, False), (False, True)])
def test_the_windows_of_a_mixed_ensemble_are_joined_for_each_model(saved, sound, tmp_path, exclusive):
    models = []
    for number, each in enumerate(exclusive):
        models.append(shutil.copytree(saved("attention" if number else "other"), tmp_path / f"model{number}"))
        (models[-1] / "model.json").write_text(dataclasses.replace(read_card(models[-1]), exclusive=each).to_json())
    soundfile.write(tmp_path / "a.wav", sound, 16_000, "FLOAT")
    datafile.write(tmp_path / "data.json", [(str(tmp_path / "a.wav"), [VOCABULARY.mids[0]])])
    evaluate(models, tmp_path / "data.json", bootstrap=0, windows=True, save=tmp_path / "s.npz")
    tagged = psla_jax.load(models).tag(tmp_path / "a.wav").scores
    np.testing.assert_allclose(Scores.load(tmp_path / "s.npz").scores[0], tagged, atol=1e-5)


def test_a_long_recording_is_its_windows_joined(saved, sound):
    model = load_model(saved("attention"))
    tagger = psla_jax.load(saved("attention"), overlap=0.4, batch_size=4)
    cutter = Cutter(SIZE, 2)
    windows = [*cutter.push(sound), *cutter.finish()]
    outputs = [(w, *direct_outputs(model, sound[w.start * Grid().output_samples :][:SIZE])) for w in windows]
    count = windows[-1].start + windows[-1].num_frames
    assert count == 19
    total, features, weights = np.zeros((count, 4)), np.zeros((count, outputs[0][3].shape[1])), np.zeros((count, 1))
    for window, _, frames, embedding in outputs:
        for j in range(window.num_frames):
            weight = min(j + 1, 3 - j)
            total[window.start + j] += weight * frames[j]
            features[window.start + j] += weight * embedding[j]
            weights[window.start + j] += weight
    timeline = tagger.timeline(sound, 16_000)
    np.testing.assert_allclose(timeline.scores, total / weights, atol=1e-3)
    np.testing.assert_allclose(timeline.times[[0, 1, -1]], [0, 0.1725, 5.6125])
    result = tagger.tag(sound, 16_000)
    np.testing.assert_allclose(result.scores, np.max([s for _, s, _, _ in outputs], axis=0), atol=2e-6)
    embeddings = tagger.embed(sound, 16_000)
    assert_close(embeddings.frames, features / weights, 5e-6)
    assert_close(embeddings.clip, (features / weights).mean(axis=0), 1e-5)
    assert result.long
    assert result.duration == 6.0


def test_embeddings_of_many_recordings_are_those_of_each(saved, sound, tmp_path):
    tagger = psla_jax.load(saved("attention"))
    recordings = [sound[:20_000], sound, sound[30_000:42_000]]
    with_rates = [(recording, 16_000) for recording in recordings]
    first, broken, second, third = tagger.embed_all([with_rates[0], tmp_path / "absent.wav", *with_rates[1:]])
    assert isinstance(broken, Failure)
    for together, recording in zip((first, second, third), recordings, strict=True):
        alone = tagger.embed(recording, 16_000)
        assert_close(together.frames, alone.frames, 1e-5)
        assert_close(together.clip, alone.clip, 1e-5)
    with pytest.raises(TaggerError, match="do not share an embedding space"):
        psla_jax.load([saved("attention"), saved("other")]).embed_all([sound], sample_rate=16_000)


def test_scores_of_exclusive_classes_are_distributions(saved, sound):
    """Cross-entropy determines ratios of scores only: every window and output frame is normalised over the classes."""
    model, exclusive = load_model(saved("attention")), load_model(saved("attention"))
    exclusive = dataclasses.replace(exclusive, card=dataclasses.replace(exclusive.card, exclusive=True))
    tagger, plain = (Tagger([("m", m)], Options(overlap=0.4, batch_size=4)) for m in (exclusive, model))
    cutter = Cutter(SIZE, 2)
    windows = [*cutter.push(sound), *cutter.finish()]
    scores = np.stack([direct_outputs(model, sound[w.start * Grid().output_samples :][:SIZE])[0] for w in windows])
    expected = (scores / scores.sum(axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(tagger.tag(sound, 16_000).scores, expected, atol=2e-6)
    assert plain.tag(sound, 16_000).scores.sum() > 1.1
    assert plain.timeline(sound, 16_000).scores.sum(axis=1).max() > 1.1
    assert tagger.timeline(sound, 16_000).scores.astype(np.float32).sum(axis=1).max() <= 1.001
    both = Tagger([("m", exclusive), ("n", exclusive)], Options(overlap=0.4, batch_size=4))
    np.testing.assert_allclose(both.tag(sound, 16_000).scores, expected, atol=2e-6)


def test_events_are_those_of_the_timeline(saved, sound):
    timeline = psla_jax.load(saved("attention")).timeline(sound, 16_000)
    ordered = np.sort(timeline.scores.astype(np.float32), axis=0)
    # Thresholds in the widest gap of the middle scores: a timeline is rounded to float16, events are not.
    gap = 6 + np.diff(ordered[6:13], axis=0).argmax(axis=0)
    between = (ordered[gap, range(len(VOCABULARY))] + ordered[gap + 1, range(len(VOCABULARY))]) / 2
    rules = Rules(threshold=between, release=1.0, smooth=3, min_gap=0.4)
    result = psla_jax.load(saved("attention"), rules=rules).tag(sound, 16_000)
    spans = find_events(timeline.scores.astype(np.float32), rules)
    assert len(spans) > 3, timeline.scores
    assert [(e.mid, e.onset) for e in result.events] == [
        (VOCABULARY.mids[s.column], pytest.approx(max(0, 0.32 * s.start - 0.1475), abs=1e-3)) for s in spans
    ]
    offsets = [6.0 if s.stop == 19 else 0.32 * s.stop - 0.1475 for s in spans]
    assert [e.offset for e in result.events] == pytest.approx(offsets, abs=1e-3)
    few = psla_jax.load(saved("attention"), rules=rules).tag(sound, 16_000, classes=[2])
    assert few.events == tuple(e for e in result.events if e.mid == VOCABULARY.mids[2])
    assert [t.mid for t in few.top()] == [VOCABULARY.mids[2]]


@pytest.mark.parametrize("policy", ["pad", "repeat", "mask"])
def test_policies_for_short_recordings(saved, sound, policy):
    model, short = load_model(saved("attention")), sound[17_000 : 17_000 + 6_000]
    tagger = psla_jax.load(saved("attention"), policy=policy)
    result = tagger.tag(short, 16_000)
    if policy == "pad":
        expected = direct_outputs(model, short)[0]
    elif policy == "repeat":
        quiet = short - short.mean()
        expected = direct_outputs(model, np.tile(quiet, 3)[:SIZE])[0]
    else:
        features = direct_outputs(model, short)[2][None, :2]  # 36 spectrogram frames extend into two output frames.
        expected = np.asarray(model.network.head(features))[0]
    np.testing.assert_allclose(result.scores, expected, atol=1e-5)
    assert tagger.timeline(short, 16_000).scores.shape == (2, 4), "padding has no output frame"
    assert tagger.embed(short, 16_000).frames.shape[0] == 2


def test_policies_agree_for_a_full_window(saved, sound):
    scores = [
        psla_jax.load(saved("mean"), policy=p).tag(sound[:SIZE], 16_000).scores for p in ("pad", "repeat", "mask")
    ]
    np.testing.assert_allclose(scores[1:], [scores[0]] * 2, atol=2e-6)


@pytest.mark.parametrize(
    ("kind", "source"), [("mean", "head"), ("one head", "head"), ("linear", "windows"), ("custom", "windows")]
)
def test_source_of_event_times(saved, sound, kind, source):
    tagger = psla_jax.load(saved(kind), trust=True)
    assert tagger.tag(sound, 16_000).events_from == tagger.events_from == source
    scores = tagger.timeline(sound, 16_000).scores
    assert scores.shape == (19, 4)
    if source == "windows":
        np.testing.assert_allclose(scores[0], tagger.tag(sound[:SIZE], 16_000).scores, atol=1e-3)


def test_an_ensemble_is_the_mean_of_its_members(saved, sound):
    members = [psla_jax.load(saved(kind)) for kind in ("attention", "other")]
    together = psla_jax.load([saved("attention"), saved("other")])
    for samples in (sound, sound[:5000]):
        scores = [member.tag(samples, 16_000).scores for member in members]
        assert np.abs(scores[0] - scores[1]).max() > 0.01
        np.testing.assert_allclose(together.tag(samples, 16_000).scores, np.mean(scores, axis=0), atol=2e-6)
        timelines = [member.timeline(samples, 16_000).scores.astype(np.float32) for member in members]
        np.testing.assert_allclose(together.timeline(samples, 16_000).scores, np.mean(timelines, axis=0), atol=2e-3)


def strips_of(tagger, sound):
    return tagger._analyse_one(sound, 16_000, FrameOutputs(plot=True), None).heatmaps()


def test_a_plot_shows_the_timeline_and_the_attention_of_the_windows(saved, sound):
    model, tagger = load_model(saved("one head")), psla_jax.load(saved("one head"), overlap=0, batch_size=4)
    strips = strips_of(tagger, sound[: 2 * SIZE])
    assert strips.frames_per_column == 1
    np.testing.assert_allclose(strips.scores, tagger.timeline(sound[: 2 * SIZE], 16_000).scores, atol=1e-3)
    window = np.zeros((1, SIZE), np.float32)
    window[0] = sound[:SIZE] - sound[:SIZE].mean()
    features = np.asarray(nnx.jit(model.network.backbone)(model.frontend(window, np.array([SIZE]), zero_mean=False)))
    weights = np.asarray(jax.nn.sigmoid(model.network.head.att(features)))[0]
    assert_close(strips.attention[:3], 3 * weights / weights.sum(axis=0), 3e-5)
    assert np.ptp(strips.attention) > 0.1


@pytest.mark.parametrize("kinds", [["mean"], ["linear"], ["custom"], ["attention", "mean"]])
def test_a_plot_has_no_attention_unless_every_model_has(saved, sound, kinds):
    strips = strips_of(psla_jax.load([saved(kind) for kind in kinds], trust=True), sound)
    assert strips.attention is None
    assert strips.scores.shape == (19, 4)


def test_the_attention_of_an_ensemble_is_the_mean_of_its_members(saved, sound):
    members = [strips_of(psla_jax.load(saved(kind)), sound).attention for kind in ("attention", "other")]
    together = strips_of(psla_jax.load([saved("attention"), saved("other")]), sound).attention
    assert_close(together, np.mean(members, axis=0), 1e-5)


def test_plot_returns_tags_and_writes_a_png(saved, sound, tmp_path):
    tagger = psla_jax.load(saved("attention"))
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT")
    results = [tagger.plot(tmp_path / "a.wav", tmp_path / "a.png"), tagger.plot(sound, tmp_path / "b.png", 16_000)]
    for tags in results:
        np.testing.assert_array_equal(tags.scores, tagger.tag(sound, 16_000).scores)
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("a.png", "b.png"))
    with pytest.raises(PlotError, match=r"ends in \.png"):
        tagger.plot(sound, tmp_path / "b.pdf", 16_000)
    with pytest.raises(AudioError, match="is missing"):
        tagger.plot(tmp_path / "c.wav", tmp_path / "c.png")
    with pytest.raises(TaggerError, match="give sample_rate"):
        tagger.plot(sound, tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()


def changed(model, to, change):
    """Copies a model directory and changes its model card."""
    shutil.copytree(model, to)
    card = json.loads((to / "model.json").read_text())
    change(card)
    (to / "model.json").write_text(json.dumps(card))
    return to


def test_models_of_an_ensemble_may_differ_in_windows_and_order_of_classes(saved, sound, tmp_path):
    longer = changed(saved("other"), tmp_path / "longer", lambda card: card["frontend"].update(target_length=160))
    members = [psla_jax.load(saved("attention")), psla_jax.load(longer)]
    together = psla_jax.load([saved("attention"), longer])
    expected = np.mean([member.timeline(sound, 16_000).scores for member in members], axis=0, dtype=np.float32)
    np.testing.assert_allclose(together.timeline(sound, 16_000).scores, expected, atol=2e-3)
    reversed_order = changed(saved("other"), tmp_path / "reversed", lambda card: card["vocabulary"].reverse())
    pair = psla_jax.load([saved("attention"), reversed_order])
    scores = [members[0].tag(sound, 16_000).scores, psla_jax.load(reversed_order).tag(sound, 16_000).scores[::-1]]
    np.testing.assert_allclose(pair.tag(sound, 16_000).scores, np.mean(scores, axis=0), atol=2e-6)


def test_files_and_arrays_of_any_type_agree(saved, sound, tmp_path):
    tagger = psla_jax.load(saved("attention"))
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="PCM_16")
    scores = tagger.tag(tmp_path / "a.wav").scores
    pcm = soundfile.read(tmp_path / "a.wav", dtype="int16")[0]
    for same in (pcm, pcm.astype(np.int32) * 65_536, pcm / 32_768, np.stack([pcm, pcm], axis=1)):
        np.testing.assert_allclose(tagger.tag(same, 16_000).scores, scores, atol=1e-6)


def test_threads_do_not_disturb_each_other(saved, sound):
    tagger = psla_jax.load(saved("attention"), batch_size=4)
    pieces = [sound[2_000 * i : 2_000 * i + 12_000 + 7_000 * (i % 5)] for i in range(16)]
    alone = [psla_jax.load(saved("attention"), batch_size=4).tag(piece, 16_000) for piece in pieces[:3]]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda piece: tagger.tag(piece, 16_000), pieces))
    for one, other in zip(alone, together):
        np.testing.assert_array_equal(one.scores, other.scores)
        assert one.events == other.events


def test_two_programs_serve_any_length_and_are_cached(saved, sound, tmp_path, monkeypatch):
    monkeypatch.setenv("PSLA_CACHE", str(tmp_path))
    scores = []
    for expected in ([True, False, True, False], [False, False]):
        messages: list[str] = []
        tagger = psla_jax.load(saved("attention"), batch_size=4, cache_programs=True)
        tagger.on_compile = messages.append
        for length in (500, 3_000, 15_600, 16_000, 33_333, 61_234, 96_000):
            scores.append(tagger.tag(sound[:length], 16_000).scores)
        assert [bool(text) for text in messages] == expected
        assert len(list((tmp_path / "exported").iterdir())) == 2
    assert_close(np.array(scores[7:]), np.array(scores[:7]), 1e-6)


def test_a_damaged_cached_program_is_traced_again(saved, sound, tmp_path, monkeypatch):
    monkeypatch.setenv("PSLA_CACHE", str(tmp_path))
    scores = psla_jax.load(saved("attention"), cache_programs=True).tag(sound, 16_000).scores
    for file in (tmp_path / "exported").iterdir():
        file.write_bytes(file.read_bytes()[:-100])
    assert_close(psla_jax.load(saved("attention"), cache_programs=True).tag(sound, 16_000).scores, scores, 1e-6)


@pytest.fixture
def retraced():
    """Makes JAX trace all functions again during the test and after it."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("retraced")
def test_code_that_is_replaced_at_run_time_counts_in_a_library(saved, sound, tmp_path, monkeypatch):
    """A program in the cache must not hide it: caching is off unless it is asked for, and with JAX's own cache."""
    monkeypatch.setenv("PSLA_CACHE", str(tmp_path))
    scores = psla_jax.load(saved("attention"), cache_programs=True).tag(sound, 16_000).scores
    monkeypatch.setattr(Frontend, "normalise", lambda self, x: x * 0.0)
    jax.clear_caches()
    assert np.abs(psla_jax.load(saved("attention")).tag(sound, 16_000).scores - scores).max() > 1e-3
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        changed = psla_jax.load(saved("attention"), cache_programs=True).tag(sound, 16_000).scores
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert np.abs(changed - scores).max() > 1e-3


def test_files_are_tagged_in_order_and_an_unreadable_one_does_not_stop_the_others(saved, sound, tmp_path):
    tagger = psla_jax.load(saved("attention"), batch_size=4)
    paths = [tmp_path / f"{i}.wav" for i in range(9)]
    for i, path in enumerate(paths):
        soundfile.write(path, sound[: 3_000 + 11_000 * (i % 4)], 16_000)
    paths[3].write_text("no sound")
    paths[8].unlink()
    results = list(tagger.tag_all(paths))
    assert [result.clip for result in results] == [str(path) for path in paths]
    assert [i for i, result in enumerate(results) if isinstance(result, Failure)] == [3, 8]
    assert "cannot be read as audio" in str(results[3].error)
    for path, result in zip(paths, results):
        if not isinstance(result, Failure):
            np.testing.assert_allclose(result.scores, tagger.tag(path).scores, atol=2e-6)


ARRAYS = {
    "rank": (np.zeros((2, 3, 4)), 16_000, "has the shape (2, 3, 4)"),
    "short axes": (np.zeros((3, 60)), 16_000, "transpose it"),
    "spectrogram": (np.zeros((1_056, 128)), 16_000, "no sound has more than 64 channels"),
    "nothing": (None, 16_000, "is of type NoneType: give a path"),
    "paths": (["a.wav", "b.wav"], 16_000, "is of type <U5: give a path"),
    "empty": (np.zeros(0), 16_000, "has the shape (0,)"),
    "NaN": (np.full(5_000, np.nan), 16_000, "not finite"),
    "int64": (np.zeros(5_000, np.int64), 16_000, "is of type int64"),
    "complex": (np.zeros(5_000, complex), 16_000, "is of type complex128"),
    "text": (np.array(["a", "b"]), 16_000, "is of type <U1"),
    "scale": (np.full(5_000, 20_000.0), 16_000, "scale it to [-1, 1]"),
    "rate 0": (np.zeros(5_000), 0, "has the sample rate 0"),
    "negative rate": (np.zeros(5_000), -44_100, "has the sample rate -44100"),
    "rate NaN": (np.zeros(5_000), float("nan"), "has the sample rate nan"),
    "text as rate": (np.zeros(5_000), "16k", "has the sample rate '16k'"),
    "too short": (np.zeros(399), 16_000, "is too short (399 samples at 16 kHz)"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_invalid_arrays_are_refused(saved, kind):
    samples, rate, reason = ARRAYS[kind]
    with pytest.raises(AudioError) as caught:
        psla_jax.load(saved("attention")).tag(samples, rate)
    assert reason in str(caught.value)
    assert str(caught.value).count(". ") == 0


def test_invalid_arguments_are_refused(saved, sound, tmp_path):
    tagger = psla_jax.load(saved("attention"))
    with pytest.raises(TaggerError, match="give sample_rate too"):
        tagger.tag(sound)
    with pytest.raises(TaggerError, match="sample_rate is 16000 for the file"):
        tagger.tag("a.wav", 16_000)
    with pytest.raises(AudioError, match="is missing"):
        tagger.tag(tmp_path / "a.wav")
    for option, value in (("policy", "loop"), ("times", "never"), ("channel", "left"), ("batch_size", -1)):
        with pytest.raises(TaggerError, match=f"{option} is "):
            psla_jax.load(saved("attention"), **{option: value})
    with pytest.raises(TaggerError, match="unexpected keyword argument 'polcy'"):
        psla_jax.load(saved("attention"), polcy="pad")
    with pytest.raises(TaggerError, match="name at least one"):
        psla_jax.load([])
    with pytest.raises(TaggerError, match="do not share an embedding space"):
        psla_jax.load([saved("attention"), saved("other")]).embed(sound, 16_000)
    with pytest.raises(TaggerError, match="provides no embeddings"):
        psla_jax.load(saved("custom"), trust=True).embed(sound, 16_000)
    other = changed(saved("other"), tmp_path / "m", lambda card: card["vocabulary"][0].__setitem__(0, "/t/else"))
    with pytest.raises(TaggerError, match="differ in 2 classes, such as '/t/else'"):
        psla_jax.load([saved("attention"), other])


def test_an_incomplete_model_is_refused(saved, tmp_path):
    shutil.copytree(saved("attention"), tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "weights")
    (tmp_path / "model" / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"weights of .*model cannot be read"):
        psla_jax.load(tmp_path / "model")
    (tmp_path / "model" / "model.json").unlink()
    with pytest.raises(CheckpointError, match=r"model\.json is missing"):
        psla_jax.load(tmp_path / "model")


def test_silence_and_a_narrow_band_are_noted(saved, sound):
    tagger = psla_jax.load(saved("attention"))
    assert "is silent" in tagger.tag(np.zeros(9_000), 16_000).notes[0]
    assert "8000 Hz: it has nothing above 4000 Hz" in tagger.tag(sound, 8_000).notes[0]
    assert tagger.tag(sound, 16_000).notes == ()


def test_segments_score_as_their_sound_alone_in_tagging_evaluation_and_calibration(saved, sound, tmp_path, monkeypatch):
    write_pcm16(tmp_path / "long.wav", sound[:48_000])
    times = [(0.0, 0.5), (1.0, 1.9), (2.25, 3.0)]
    records = [Record("long.wav", [VOCABULARY.mids[i]], *time) for i, time in enumerate(times)]
    datafile.write(tmp_path / "data.json", records)
    tagger = psla_jax.load(saved("attention"), batch_size=4)
    whole = decode.read(tmp_path / "long.wav")
    expected = [tagger.tag(whole[int(16_000 * a) : int(16_000 * b)], 16_000).scores for a, b in times]
    data = Datafile.read(tmp_path / "data.json", VOCABULARY)
    tags = list(tagger.tag_all([data.audio(i) for i in range(3)]))
    assert [tag.clip for tag in tags] == [data.clip_id(i) for i in range(3)]
    np.testing.assert_allclose([tag.scores for tag in tags], expected, atol=2e-6)
    assert np.ptp(expected, axis=0).max() > 0.2

    evaluated: list[Scores] = []
    monkeypatch.setattr(Scores, "metrics", lambda self, real=Scores.metrics: evaluated.append(self) or real(self))
    evaluate(saved("attention"), tmp_path / "data.json", batch_size=4, bootstrap=0, keep_scores=False)
    assert evaluated[0].clips.tolist() == [data.clip_id(i) for i in range(3)]
    np.testing.assert_allclose(evaluated[0].scores, expected, atol=2e-6)

    monkeypatch.setattr(calibration, "_fit", lambda model, vocabulary, scores, *_: evaluated.append(scores))
    request = calibration.Request(str(saved("attention")), str(tmp_path / "data.json"), keep_scores=False)
    with pytest.raises(AttributeError):  # the stand-in gives no calibration to write
        calibration.calibrate(request)
    assert evaluated[-1].clips.tolist() == [data.clip_id(i) for i in range(3)]
    np.testing.assert_allclose(evaluated[-1].scores, expected, atol=2e-6)
    np.testing.assert_array_equal(evaluated[-1].labels, np.eye(4, dtype=np.float32)[:3])


@pytest.mark.parametrize("from_file", [True, False])
def test_channels_that_cancel_each_other_and_wrong_scales_are_noted(saved, sound, tmp_path, from_file):
    antiphase = np.stack([sound, -sound], axis=1)
    audio = (tmp_path / "a.wav",) if from_file else (antiphase, 16_000)
    if from_file:
        soundfile.write(audio[0], antiphase, 16_000, subtype="FLOAT")
    (note,) = psla_jax.load(saved("attention")).tag(*audio).notes
    assert note.endswith("channels that cancel each other, so that their mean is nearly silent: use the first one "
                         "(--channel first).")  # fmt: skip
    first = psla_jax.load(saved("attention"), channel="first").tag(*audio)
    assert first.notes == ()
    np.testing.assert_allclose(first.scores, psla_jax.load(saved("attention")).tag(sound, 16_000).scores, atol=1e-5)
    soundfile.write(tmp_path / "b.wav", 32768 * sound, 16_000, subtype="FLOAT")
    assert (
        "times full scale, for which its scores are wrong"
        in psla_jax.load(saved("attention")).tag(tmp_path / "b.wav").notes[0]
    )


def test_a_recording_that_was_cut_off_is_noted(saved, sound, tmp_path):
    for name in ("a.wav", "a.flac"):
        path = tmp_path / name
        soundfile.write(path, np.tile(sound, 3), 16_000)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        tags = psla_jax.load(saved("attention")).tag(path)
        total = 3 * len(sound) / 16_000
        expected = f"{path} holds {tags.duration:.2f} s of the {total:.2f} s that its header states: download"
        assert tags.notes[0].startswith(expected)
        assert tags.duration < 0.75 * total
