"""One recording through psla tag, Python, a stream and psla listen with default settings: the same events."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import soundfile

import psla_jax
from psla_jax.cli import main
from psla_jax.cli.listen import Listen
from psla_jax.cli.tag import DetectionOptions
from psla_jax.tagging.defaults import DEFAULTS
from psla_jax.tagging.events import Rules
from psla_jax.tagging.live.stream import Stream
from psla_jax.tagging.tagger import Options


def rounded(events) -> list[tuple]:
    return sorted((e.onset, e.offset, e.mid, round(e.score, 6)) for e in events)


def printed(capsys, *arguments: str) -> list[dict]:
    assert main.main(list(arguments)) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def from_json(events: list[dict]) -> list[tuple]:
    return sorted((e["onset"], e["offset"], e["mid"], e["score"]) for e in events)


def test_the_command_python_and_streams_give_the_same_events(saved, sound, tmp_path, capsys):
    """The stream scores the same windows, one at a time: its events differ from those of the file by rounding only."""
    path, model = tmp_path / "a.wav", str(saved("attention"))
    soundfile.write(path, sound, 16_000, subtype="PCM_16")
    tagger = psla_jax.load(model)
    events = rounded(tagger.tag(path).events)
    assert rounded(psla_jax.load(model, rules=Rules(0.3)).tag(path).events) != events, "the threshold matters here"
    assert len(events) > 4

    (line,) = printed(capsys, "tag", str(path), "--model", model, "--json", "-")
    assert from_json(line["events"]) == events

    with Stream(tagger) as stream:
        samples = soundfile.read(path, dtype="int16")[0]
        updates = [u for block in np.array_split(samples, 17) for u in stream.push(block)] + stream.close()
    live = rounded(update.event for update in updates if update.kind == "end")
    heard = printed(capsys, "listen", str(path), "--model", model, "--json", "-", "--overlap", "0.5")
    for found in (live, from_json([update for update in heard if update["kind"] == "end"])):
        assert [event[:3] for event in found] == [event[:3] for event in events]
        assert [event[3] for event in found] == pytest.approx([event[3] for event in events], abs=1e-5)


def test_settings_have_one_default():
    settings = dataclasses.asdict(DEFAULTS)
    defaults = {name: f.default for name, f in DetectionOptions.__dataclass_fields__.items()}
    assert {name: value for name, value in defaults.items() if name in settings} == {
        name: settings[name] for name in settings if name in defaults and name != "threshold"
    } | {"threshold": None}
    rules = dataclasses.asdict(Rules().with_threshold())
    assert rules == {name: settings[name] for name in rules}
    options = Options()
    assert {name: getattr(options, name) for name in ("policy", "overlap", "channel")} == {
        name: settings[name] for name in ("policy", "overlap", "channel")
    }
    assert Listen.__dataclass_fields__["overlap"].default == DEFAULTS.live_overlap
