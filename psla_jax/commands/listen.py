"""Sound as it comes, from a microphone or a pipe: listen."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from psla_jax.commands.arguments import UsageError, parse
from psla_jax.commands.tagging import Search, tagger_for
from psla_jax.terminal import printable

if TYPE_CHECKING:
    from psla_jax.tagging.inbox import Heard
    from psla_jax.tagging.microphone import Microphone
    from psla_jax.tagging.pipe import Pipe
    from psla_jax.tagging.stream import Stream, Update

BUFFER_SECONDS = 20
"""Of sound that may wait to be computed."""
MODERATE_LOAD = 0.7
"""The share of the time that computing may take without falling behind now and then."""


@dataclass(frozen=True, kw_only=True)
class Listen(Search):
    """What a microphone or a pipe hears. Example: ffmpeg -i URL -f wav - | psla listen - --model runs/demo"""

    source: Positional[str] = ""
    """Where WAV or bare samples come from: - for standard input, or the name of a pipe; left out, the microphone."""
    format: Literal["wav", "u8", "s16le", "s24le", "s32le", "f32le", "f64le"] = "wav"
    """What comes through a pipe: WAV, or bare samples as ffmpeg names them, which need --rate."""
    rate: int = 0
    """Samples per second of bare samples, or of the microphone, where 0 is its own."""
    channels: int = 0
    """Of bare samples; 0 is 1."""
    device: str = ""
    """Which microphone: its number, or part of its name."""
    overlap: float = 0.9
    """Of windows, up to 0.95. Of 10 s windows 0.9 looks every second, which costs five times what 0.5 does."""
    early: bool = True
    """Tell events at first sight: they may still change, or be cancelled. False waits until they are certain."""
    json: str = ""
    """Write a JSON object for everything that is told to this new file; - for the screen."""


def listen(arguments: list[str]) -> int:
    """psla listen [SOURCE] --model MODEL"""
    options: Listen = parse(Listen, arguments, "psla listen")
    if options.json not in ("", "-") and os.path.exists(options.json):
        raise UsageError(f"{options.json} is there already: name another file for --json.")
    return _listen(options, _source(options))


def _listen(options: Listen, source: Pipe | Microphone) -> int:
    """Listens until the sound ends or Ctrl-C."""
    from psla_jax.tagging.clip import notes
    from psla_jax.tagging.inbox import Inbox

    inbox = Inbox(BUFFER_SECONDS * source.rate)
    if not source.live:  # The program at the other end need not wait for the model.
        source.start(inbox)
    with _Screen(options.json, source.live) as screen:
        stream = _stream(options, source.rate, screen)
        screen.say(f"listening to {source.name}, {source.rate} Hz: {stream.latency} (Ctrl-C ends it)")
        for note in notes(source.name, 1.0, source.rate):
            screen.say(note)
        if source.live:
            source.start(inbox)
        screen.began = time.time()
        with _interrupts() as stop:
            try:
                for heard in inbox.blocks(stop):
                    _hear(stream, heard, source.rate, screen)
                    screen.show(stream, inbox.held / source.rate if source.live else 0.0)
            finally:
                screen.tell(stream.close())
                source.close()
        return _ended(source, stream, screen, stop.is_set())


def _source(options: Listen) -> Pipe | Microphone:
    """Where sound comes from; options that mean nothing there are refused."""
    bare = options.format != "wav"
    for name, given, fits in (
        ("device", options.device, not options.source),
        ("format", bare, options.source),
        ("channels", options.channels, options.source and bare),
        ("rate", options.rate, bare or not options.source),
    ):
        if given and not fits:
            kind = "WAV, whose header says it" if options.source else "a microphone"
            kind = "a pipe" if name == "device" else kind
            raise UsageError(f"--{name} means nothing for {kind}: leave it out.")
    if options.rate < 0 or options.channels < 0:
        raise UsageError(f"--rate {options.rate} --channels {options.channels}: use positive numbers.")
    if not options.source:
        from psla_jax.tagging.microphone import Microphone

        return Microphone(options.device, options.rate)
    if bare and not options.rate:
        raise UsageError("bare samples do not say how many there are in a second: add --rate, such as --rate 16000.")

    from psla_jax.tagging import pipe

    layout = pipe.Layout(options.format, options.rate, options.channels or 1) if bare else None
    return pipe.Pipe(*pipe.opened(options.source), layout)


def _stream(options: Listen, rate: int, screen: _Screen) -> Stream:
    """The models, loaded and compiled."""
    from psla_jax.tagging.stream import Stream

    tagger, classes = tagger_for(options)
    tagger.on_compile = screen.say
    return Stream(tagger, rate, classes=classes, early=options.early)


def _hear(stream: Stream, heard: Heard, rate: int, screen: _Screen) -> None:
    """Passes on a block, and what was lost before it."""
    if heard.lost:
        seconds = heard.lost / rate
        screen.tell(stream.skip(seconds))
        screen.lost(stream, seconds)
    screen.tell(stream.push(heard.block))


def _ended(source: Pipe | Microphone, stream: Stream, screen: _Screen, stopped: bool) -> int:
    """Says how it ended, and with which exit code."""
    from psla_jax.tagging.clip import notes
    from psla_jax.tagging.result import clock

    for note in (*source.notes, *(notes(source.name, stream.peak, 0) if stream.heard else ())):
        screen.say(note)
    screen.say(f"heard {clock(stream.heard)}, {screen.events} events")
    if stopped:
        return 130
    if source.live:
        screen.say(f"psla: {source.name} stopped by itself: is it still plugged in?")
        return 1
    return 0 if stream.heard else 2


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that nothing is left half done; a second Ctrl-C ends the program as ever."""
    stop = threading.Event()

    def interrupted(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class _Screen:
    """Where things are told: events on standard output, all else on standard error, what sounds now on a last line.

    Attributes:
        events: how many have ended.
        began: when the first sample was heard, in seconds since 1970.
    """

    def __init__(self, file: str, live: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        self.events, self.began, self._live = 0, time.time(), live
        self._out = Console(highlight=False, soft_wrap=True)
        self._err = Console(stderr=True, highlight=False, soft_wrap=True)
        screen = self._out if self._out.is_terminal else self._err
        # JSON on a terminal has it to itself.
        shown = screen.is_terminal and not (file == "-" and self._out.is_terminal)
        self._status = Live(console=screen, transient=True, auto_refresh=False) if shown else None
        self._shown = 0.0
        self._open: dict[int, Update] = {}
        self._text = file != "-"
        self._json: Any = sys.stdout if file == "-" else None
        self._file = file if file not in ("", "-") else ""

    def __enter__(self) -> _Screen:
        if self._file:
            self._json = open(self._file, "x", encoding="utf-8")
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()
        if self._file:
            self._json.close()

    def clock(self, seconds: float) -> str:
        """A moment of the sound: the time of day where it happens now, else its place."""
        from psla_jax.tagging.result import clock

        if not self._live:
            return clock(seconds)
        return datetime.fromtimestamp(self.began + seconds).strftime("%H:%M:%S.%f")[:-5]

    def say(self, text: str) -> None:
        """A line that is no event."""
        if text:
            self._err.print(printable(text), markup=False)

    def tell(self, updates: list[Update]) -> None:
        """Events: every update as JSON, and as text all but how they grow."""
        for update in updates:
            self.events += update.kind == "end"
            if update.kind in ("end", "cancel"):
                self._open.pop(update.id, None)
            else:
                self._open[update.id] = update
            if self._json:
                self._write(_fields(update) | self._moment(update.event.onset))
            if self._text and update.kind != "update":
                e = update.event
                until = f" - {self.clock(e.offset)}" if update.kind == "end" else ""
                when = f"{self.clock(e.onset)}{until}"
                self._out.print(f"{update.kind:<7} {when:<23} {e.score:.3f}  {e.name}", markup=False)

    def lost(self, stream: Stream, seconds: float) -> None:
        """Sound that was thrown away, because computing was too slow for it."""
        if self._json:
            until = stream.heard
            since = until - seconds
            fields = {"kind": "lost", "onset": round(since, 3), "offset": round(until, 3)}
            self._write(fields | self._moment(since))
        latency = stream.latency
        self.say(
            f"fell behind: {seconds:.1f} s of sound before {self.clock(stream.heard)} were not heard; computing takes "
            f"{latency.load:.0%} of the time: choose a lower --overlap or a smaller model."
        )

    def show(self, stream: Stream, behind: float) -> None:
        """The last line: what sounds now; four times a second at most."""
        if not self._status or time.monotonic() - self._shown < 0.25:
            return
        from rich.text import Text

        sounding = sorted((u.event for u in self._open.values() if u.sounding), key=lambda e: -e.score)
        names = " · ".join(f"{e.name} {e.score:.2f}" for e in sounding) or "nothing that it knows"
        late = f", {behind:.0f} s behind" if behind >= 1 else ""
        head = f"{self.clock(stream.heard)}  computing {stream.latency.load:.0%}{late}  "
        self._status.update(Text(head + names, no_wrap=True, overflow="ellipsis"), refresh=True)
        self._shown = time.monotonic()

    def _moment(self, seconds: float) -> dict[str, str]:
        """The time of day, where there is one."""
        if not self._live:
            return {}
        return {"time": datetime.fromtimestamp(self.began + seconds).astimezone().isoformat(timespec="milliseconds")}

    def _write(self, fields: dict[str, Any]) -> None:
        self._json.write(json.dumps(fields, ensure_ascii=False) + "\n")
        self._json.flush()


def _fields(update: Update) -> dict[str, Any]:
    e = update.event
    return {
        "kind": update.kind,
        "id": update.id,
        "onset": e.onset,
        "offset": e.offset,
        "class": e.name,
        "mid": e.mid,
        "score": round(e.score, 6),
        "sounding": update.sounding,
        "heard": update.heard,
    }
