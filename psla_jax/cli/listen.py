"""The command ``psla listen``: events in live audio from a microphone or a pipe."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from psla_jax.cli.arguments import UsageError, parse
from psla_jax.cli.tag import DetectionOptions, build_tagger
from psla_jax.runtime.files import exists
from psla_jax.runtime.streams import STANDARD, is_standard_output, is_stream, open_output
from psla_jax.runtime.terminal import printable
from psla_jax.tagging.defaults import DEFAULTS

if TYPE_CHECKING:
    from psla_jax.tagging.live.microphone import Microphone
    from psla_jax.tagging.live.pipe import Pipe
    from psla_jax.tagging.live.stream import Stream, Update

BUFFER_SECONDS = 20
"""Maximum duration of audio that waits to be processed."""
STATUS_SECONDS = 0.25
"""Minimum time between two refreshes of the status line."""


@dataclass(frozen=True, kw_only=True)
class Listen(DetectionOptions):
    """Detect events in live audio from a microphone or a pipe.

    Example: ffmpeg -i URL -f wav - | psla listen - --model runs/demo"""

    source: Positional[str] = ""
    """Named pipe or file to read, or - for standard input. Empty: record from the microphone."""
    format: Literal["wav", "u8", "s16le", "s24le", "s32le", "f32le", "f64le"] = "wav"
    """Format of the pipe: WAV, or headerless samples in ffmpeg's notation, which also need --rate."""
    rate: int = 0
    """Sample rate in Hz of headerless samples or of the microphone. 0: default rate of the microphone."""
    channels: int = 0
    """Number of channels of headerless samples. 0: mono."""
    device: str = ""
    """Microphone, by number or part of its name. Empty: default microphone of the system."""
    overlap: float = DEFAULTS.live_overlap
    """Overlap of windows, from 0 to 0.95. 0.9 scores one 10 s window per second, at 5 times the cost of 0.5, with which
    the events are those of psla tag."""
    early: bool = True
    """Report events before they are final: they may still change or be cancelled. False: wait until they are final."""
    json: str = ""
    """Write every update as one line of JSON to this new file; - writes to standard output."""


def listen(arguments: list[str]) -> int:
    """Runs ``psla listen [SOURCE] --model MODEL`` until the source ends or Ctrl-C is pressed; returns its exit code."""
    options: Listen = parse(Listen, arguments, "psla listen")
    if is_standard_output(options.json):
        options = dataclasses.replace(options, json=STANDARD)
    if options.json not in ("", STANDARD) and exists(options.json):
        raise UsageError(f"{options.json} exists already: choose another file for --json.")
    source = _source(options)

    from psla_jax.tagging.inputs import Samples
    from psla_jax.tagging.live.audio_queue import AudioQueue
    from psla_jax.tagging.recording import quality_notes

    queue = AudioQueue(BUFFER_SECONDS * source.rate)
    if not source.live:  # Fill the queue while the model is loaded.
        source.start(queue)
    with _Output(options.json, source.live) as output:
        tagger, classes = build_tagger(options)

        from psla_jax.tagging.live.stream import Stream

        tagger.on_compile = output.info
        stream = Stream(tagger, source.rate, classes=classes, early=options.early)
        output.info(f"listening to {source.name}, {source.rate} Hz: {stream.latency} (stop with Ctrl-C)")
        for note in quality_notes(source.name, 1.0, source.rate, top_hz=tagger.top_hz):
            output.info(note)
        with _interrupts() as stop:
            if source.live:
                source.start(queue)
            output.began = time.time()
            try:
                for block in queue.blocks(stop):
                    if block.lost:
                        seconds = block.lost / source.rate
                        output.report(stream.skip(seconds))
                        output.report_lost(stream, seconds)
                    output.report(stream.push(Samples("the block", block.samples, axis=1)))
                    output.show_status(stream, queue.size / source.rate if source.live else 0.0)
            finally:
                output.report(stream.close())
                source.close()
        return _finish(source, stream, output, stop.is_set())


def _source(options: Listen) -> Pipe | Microphone:
    """Opens the source of audio; raises UsageError for options that do not apply to it."""
    headerless = options.format != "wav"
    for name, given, applies in (
        ("device", options.device, not options.source),
        ("format", headerless, options.source),
        ("channels", options.channels, options.source and headerless),
        ("rate", options.rate, headerless or not options.source),
    ):
        if given and not applies:
            kind = "WAV, whose header contains it" if options.source else "a microphone"
            kind = "a pipe" if name == "device" else kind
            raise UsageError(f"--{name} does not apply to {kind}: leave it out.")
    if options.rate < 0 or options.channels < 0:
        raise UsageError(f"--rate is {options.rate}, --channels is {options.channels}: use positive numbers.")
    if not options.source:
        from psla_jax.tagging.live.microphone import Microphone

        return Microphone(options.device, options.rate)
    if headerless and not options.rate:
        raise UsageError("headerless samples have no sample rate: add --rate, such as --rate 16000.")

    from psla_jax.tagging.live import pipe

    layout = pipe.Layout(options.format, options.rate, options.channels or 1) if headerless else None
    return pipe.Pipe(*pipe.open_source(options.source), layout)


def _finish(source: Pipe | Microphone, stream: Stream, output: _Output, stopped: bool) -> int:
    """Prints a summary and returns the exit code."""
    from psla_jax.tagging.recording import quality_notes
    from psla_jax.tagging.result import clock

    for note in (
        *source.notes,
        *(quality_notes(source.name, stream.peak, 0, stream.reading) if stream.position else ()),
    ):
        output.info(note)
    output.info(f"{clock(stream.position)} of audio, {output.events} events")
    if stopped:
        return 130
    if source.live:
        output.info(f"psla: {source.name} stopped recording: check that it is connected.")
        return 1
    return 0 if stream.position else 2


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Yields an event that the first Ctrl-C sets, so that a push is completed; a second Ctrl-C interrupts it."""
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


class _Output(contextlib.ExitStack):
    """Writes events to standard output, messages to standard error, and active events to a status line.

    `events` is the number of events that have ended, `began` the time of the first sample in seconds since 1970.
    """

    def __init__(self, file: str, live: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__()
        self.events, self.began, self._live = 0, time.time(), live
        self._out = Console(emoji=False, highlight=False, soft_wrap=True)
        self._err = Console(emoji=False, stderr=True, highlight=False, soft_wrap=True)
        screen = self._out if self._out.is_terminal else self._err
        # A status line would break JSON on the same terminal.
        visible = screen.is_terminal and not (file == STANDARD and self._out.is_terminal)
        self._refreshed = 0.0
        self._open: dict[int, Update] = {}
        self._text = file != STANDARD
        self._json: Any = sys.stdout if file == STANDARD else None
        if file not in ("", STANDARD):
            output = open_output(file) if is_stream(file) else open(file, "xb")  # noqa: SIM115 - closed on exit
            self._json = io.TextIOWrapper(self.enter_context(output), encoding="utf-8")
        self._status = self.enter_context(Live(console=screen, transient=True, auto_refresh=False)) if visible else None

    def clock(self, seconds: float) -> str:
        """Formats a position in the stream: as time of day for a microphone, else as time since the start."""
        from psla_jax.tagging.result import clock

        if not self._live:
            return clock(seconds)
        return datetime.fromtimestamp(self.began + seconds).strftime("%H:%M:%S.%f")[:-5]

    def info(self, text: str) -> None:
        """Prints a message to standard error."""
        if text:
            self._err.print(printable(text), markup=False)

    def report(self, updates: list[Update]) -> None:
        """Writes all updates as JSON; prints those that start, end or cancel an event."""
        for update in updates:
            self.events += update.kind == "end"
            if update.kind in ("end", "cancel"):
                self._open.pop(update.id, None)
            else:
                self._open[update.id] = update
            if self._json:
                self._write(_fields(update), update.event.onset)
            if self._text and update.kind != "update":
                e = update.event
                when = self.clock(e.onset) + (f" - {self.clock(e.offset)}" if update.kind == "end" else "")
                self._out.print(f"{update.kind:<7} {when:<23} {e.score:.3f}  {e.name}", markup=False)

    def report_lost(self, stream: Stream, seconds: float) -> None:
        """Reports audio that was dropped because computing was too slow."""
        if self._json:
            onset, offset = stream.position - seconds, stream.position
            self._write({"kind": "lost", "onset": round(onset, 3), "offset": round(offset, 3)}, onset)
        self.info(
            f"fell behind: {seconds:.1f} s of audio before {self.clock(stream.position)} were dropped; computing takes "
            f"{stream.latency.load:.0%} of the time: use a lower --overlap or a smaller model."
        )

    def show_status(self, stream: Stream, delay: float) -> None:
        """Refreshes the status line: time, load, delay in seconds, and active events."""
        if not self._status or time.monotonic() - self._refreshed < STATUS_SECONDS:
            return
        from rich.text import Text

        active = sorted((u.event for u in self._open.values() if u.sounding), key=lambda e: -e.score)
        names = " · ".join(f"{e.name} {e.score:.2f}" for e in active) or "no active event"
        late = f", {delay:.0f} s behind" if delay >= 1 else ""
        head = f"{self.clock(stream.position)}  computing {stream.latency.load:.0%}{late}  "
        self._status.update(Text(head + names, no_wrap=True, overflow="ellipsis"), refresh=True)
        self._refreshed = time.monotonic()

    def _write(self, fields: dict[str, Any], onset: float) -> None:
        """Writes a line of JSON; for a microphone, it ends with the time of day of the onset."""
        if self._live:
            moment = datetime.fromtimestamp(self.began + onset).astimezone()
            fields["time"] = moment.isoformat(timespec="milliseconds")
        self._json.write(json.dumps(fields, ensure_ascii=False) + "\n")
        self._json.flush()


def _fields(update: Update) -> dict[str, Any]:
    e = update.event
    event = {"onset": e.onset, "offset": e.offset, "class": e.name, "mid": e.mid, "score": round(e.score, 6)}
    return {"kind": update.kind, "id": update.id, **event, "sounding": update.sounding, "heard": update.position}
