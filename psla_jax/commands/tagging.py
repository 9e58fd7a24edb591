"""Sounds to names and times: tag."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from psla_jax.commands.arguments import UsageError, parse
from psla_jax.config import ShareConfig
from psla_jax.terminal import printable

if TYPE_CHECKING:
    from psla_jax.calibration import Calibration
    from psla_jax.journal import Bar
    from psla_jax.tagging.folder import Item
    from psla_jax.tagging.tagger import Tagger


OWN_FILES = {"audacity": ".txt", "embeddings": ".npz", "plot": ".png"}
"""Options that name a folder for a file per recording, with the ending of its name."""
THRESHOLD = 0.2
"""Of scores that were not calibrated."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is looked for, with what and how: the same for recordings and for what is heard."""

    model: tuple[str, ...]
    """Model directory or run directory; several are an ensemble."""
    threshold: float | None = None
    """Scores below it are left out, and events reach it; without it, the thresholds that psla calibrate fitted to the
    classes of the model, or else 0.2."""
    raw: bool = False
    """Scores alone, also of a calibrated model."""
    classes: tuple[str, ...] = ()
    """Look for these alone, by name or mid."""
    not_classes: tuple[str, ...] = ()
    """Leave these out."""
    ontology: str = ""
    """AudioSet's ontology.json: classes then stand for all below them too; without it, for themselves alone."""
    policy: Literal["", "pad", "repeat", "mask"] = ""
    """What is shorter than a window: silence after it, itself again, or its own steps alone."""
    overlap: float = 0.5
    """Of the windows of longer recordings."""
    release: float = 0.7
    """An event lasts while scores are at this fraction of the threshold or above."""
    smooth: int = 1
    """Steps of 0.32 s under the running median of the scores; odd, 1 for none."""
    min_gap: float = 0.64
    """Seconds: events of a class with less between them are one."""
    min_duration: float = 0.32
    """Seconds: shorter events are left out."""
    channel: Literal["mean", "first"] = "mean"
    """Which channel of stereo sound."""
    trust: bool = False
    """Import the Python code that a custom model names."""


@dataclass(frozen=True, kw_only=True)
class Tag(Search):
    """What is in recordings of any length. Example: psla tag street.wav recordings/ --model runs/demo --csv tags.csv"""

    audio: Positional[tuple[str, ...]]
    """Files, or folders that are walked: whatever soundfile reads, at any rate, mono or not."""
    top: int = 5
    """How many classes of a whole recording to name."""
    times: Literal["auto", "always", "never"] = "auto"
    """Events with times: for recordings longer than a window (auto), for all, or for none."""
    json: str = ""
    """Write a JSON object per line and recording to this file; - for the screen."""
    csv: str = ""
    """Write clip,onset,offset,class,mid,score to this file; - for the screen."""
    rttm: str = ""
    """Write RTTM lines to this file; - for the screen."""
    audacity: str = ""
    """Write an Audacity label track per recording into this folder."""
    embeddings: str = ""
    """Write the embeddings of every recording and of its steps into this folder, as .npz."""
    plot: str = ""
    """Draw every recording into this folder, as .png: log-mel, the --top classes over time, attention."""
    batch_size: int = 0
    """Windows computed together; 0 for what suits the device."""
    overwrite: bool = False
    """Begin the outputs anew, whatever is there."""
    distributed: ShareConfig = field(default_factory=ShareConfig)
    """Each of them tags every n-th recording, and the last one joins what all have found."""


def tag(arguments: list[str]) -> int:
    """psla tag AUDIO... --model MODEL"""
    options: Tag = parse(Tag, arguments, "psla tag")
    _require_places(options)
    if options.top < 1:
        raise UsageError(f"--top is {options.top}: name at least one class.")

    from psla_jax.tagging.folder import find_audio

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")  # Names of files may be no UTF-8: they pass as they are.
    if options.plot:
        from psla_jax.tagging import picture

        picture.require()
    items = find_audio(options.audio)
    tagger, classes = tagger_for(options, options.batch_size)
    if options.embeddings:
        tagger.require_embeddings()
    return _Session(options, tagger, classes).run(items)


def _require_places(options: Tag) -> None:
    """Raises UsageError if outputs would mix."""
    files = {name: getattr(options, name) for name in ("json", "csv", "rttm") if getattr(options, name)}
    folders = {name: getattr(options, name) for name in ("audacity", "embeddings", "plot") if getattr(options, name)}
    screens = [name for name, place in files.items() if place == "-"]
    if len(screens) > 1:
        raise UsageError(f"--{' - and --'.join(screens)} - would mix on the screen: send all but one to files.")
    for name, place in folders.items():
        if place == "-":
            raise UsageError(f"--{name} is -, and a folder cannot go to the screen: name a folder.")
    seen: dict[str, str] = {}
    for name, place in {**files, **folders}.items():
        other = seen.setdefault(os.path.abspath(place), name)
        if other != name and place != "-" and not {name, other} <= set(folders):
            raise UsageError(f"--{other} and --{name} are both {place}: name a place for each.")


def tagger_for(options: Search, batch_size: int = 0) -> tuple[Tagger, list[int] | None]:
    """The models, and which of their classes to look for."""
    from psla_jax import kept_programs

    kept_programs.expect({"tag": [os.path.abspath(path) for path in options.model], "policy": options.policy})
    from psla_jax.ontology import Ontology
    from psla_jax.tagging.classes import selected
    from psla_jax.tagging.events import Rules
    from psla_jax.tagging.tagger import POLICY, load

    rules = Rules(_threshold(options, None), options.release, options.smooth, options.min_gap, options.min_duration)
    tagger = load(
        options.model,
        trust=options.trust,
        policy=options.policy or POLICY,
        overlap=options.overlap,
        rules=rules,
        channel=options.channel,
        batch_size=batch_size,
        calibrated=not options.raw,
    )
    if options.threshold is None and tagger.calibration is not None:
        rules = dataclasses.replace(rules, threshold=tagger.calibration.event_thresholds)
        tagger.options = dataclasses.replace(tagger.options, rules=rules)
    ontology = Ontology.read(options.ontology) if options.ontology else None
    return tagger, selected(tagger.vocabulary, options.classes, options.not_classes, ontology)


def _threshold(options: Search, calibration: Calibration | None) -> Any:
    """What classes have to score to be shown: one number, or one for each."""
    if options.threshold is not None:
        return options.threshold
    return THRESHOLD if calibration is None else calibration.deciders.thresholds


class _Session:
    """One call of the command: where results go, and what has failed."""

    def __init__(self, options: Tag, tagger: Tagger, classes: list[int] | None) -> None:
        from rich.console import Console

        from psla_jax.tagging import output

        self.options, self.tagger, self.classes = options, tagger, classes
        calibration = tagger.calibration
        self.shown = output.Shown(options.top, _threshold(options, calibration), options.times)
        self.formats = {"json": output.json_line, "csv": output.csv_rows, "rttm": output.rttm_lines}
        columns = output.COLUMNS if calibration is None else output.COLUMNS + output.CALIBRATED
        self.headers = {"json": "", "csv": ",".join(columns) + "\n", "rttm": ""}
        self.screen = Console(highlight=False)
        self.errors = Console(stderr=True, highlight=False, soft_wrap=True)

    def run(self, items: list[Item]) -> int:
        """Tags everything that is not done yet; 1 if something could not be."""
        from psla_jax import launch
        from psla_jax.tagging.folder import Results
        from psla_jax.tagging.share import Share

        for note in self.tagger.notes:
            self.errors.print(printable(note), markup=False)
        options = self.options
        files = {getattr(options, k): self.headers[k] for k in self.formats if getattr(options, k) not in ("", "-")}
        folders = [folder for folder in (options.audacity, options.embeddings, options.plot) if folder]
        free = ("overwrite", "batch_size", "distributed")
        settings = {k: v for k, v in dataclasses.asdict(options).items() if k not in free}
        settings["calibration"] = "" if self.tagger.calibration is None else self.tagger.calibration.sha256
        share = Share(*launch.share(options.distributed))
        everything, items = items, share.of(items)
        own = [place for item in items for place in self._own_files(item).values()]
        results = Results(files, folders, settings, overwrite=options.overwrite, share=share, own=own)
        waiting = [item for item in items if item.path not in results.done]
        if len(waiting) < len(items):
            self.errors.print(f"{len(items) - len(waiting)} of {len(items)} recordings are done already: going on")
        for name in self.headers:
            if getattr(options, name) == "-":
                sys.stdout.write(self.headers[name])
        try:
            with self._progress(waiting) as bar:
                for item, found in zip(waiting, self._found(waiting, bar)):
                    self._take(item, found, results)
        except BaseException:
            results.close()
            raise
        results.finish()
        names = [*files, *folders]
        if share.count > 1 and names and share.join(files, names[0], [item.path for item in everything]):
            self.errors.print(f"{', '.join(names)}: {len(everything)} recordings, of {share.count} processes")
        if results.failed:
            self.errors.print(f"{len(results.failed)} of {len(items)} recordings could not be tagged")
        return 1 if results.failed else 0

    def _progress(self, items: list[Item]) -> Any:
        """A bar over the recordings, or over the seconds of a single one."""
        from psla_jax.audio import header
        from psla_jax.journal import Journal

        total = len(items) if len(items) != 1 else math.ceil(header(items[0].path)[0])
        return Journal().progress("tagging", total)

    def _found(self, items: list[Item], bar: Bar) -> Iterator[Any]:
        """The results in the order of the items, while the bar shows how far it is."""
        from psla_jax.tagging.clip import Wanted
        from psla_jax.tagging.result import clock

        def tell(clip: str, seconds: float) -> None:
            if len(items) == 1:
                bar.reach(math.floor(seconds))
            else:
                bar.describe(f"{clip} {clock(seconds)}")

        self.tagger.on_compile = bar.describe
        wanted = Wanted(embeddings=bool(self.options.embeddings), picture=bool(self.options.plot))
        for found in self.tagger.analyse((item.path for item in items), wanted, self.classes, tell):
            yield found
            if len(items) > 1:
                bar.advance()

    def _take(self, item: Item, found: Any, results: Any) -> None:
        """Writes what was found in one recording, or why nothing was."""
        from psla_jax.tagging import output
        from psla_jax.tagging.tagger import Failure

        options = self.options
        if isinstance(found, Failure):
            self.errors.print(f"psla: {printable(str(found.error))}", markup=False)
            line = output.failure_line(found.clip, found.error)
            results.add(item.path, {options.json: line} if options.json not in ("", "-") else {}, failed=True)
            if options.json == "-":
                sys.stdout.write(line)
            return
        tags = found.result()
        self._write_own_files(item, found, tags)
        texts = {name: make(tags, self.shown) for name, make in self.formats.items() if getattr(options, name)}
        results.add(item.path, {getattr(options, k): text for k, text in texts.items() if getattr(options, k) != "-"})
        screen = [text for name, text in texts.items() if getattr(options, name) == "-"]
        if screen:
            sys.stdout.write(screen[0])
            sys.stdout.flush()
        elif not texts and not options.audacity and not options.embeddings and not options.plot:
            self._show(tags)

    def _show(self, tags: Any) -> None:
        from psla_jax.tagging import output

        output.show(self.screen, tags, self.shown)

    def _write_own_files(self, item: Item, found: Any, tags: Any) -> None:
        """The label track, the embeddings and the picture of one recording."""
        from psla_jax.files import written_aside
        from psla_jax.tagging import output

        own = self._own_files(item)
        for place in own.values():
            place.parent.mkdir(parents=True, exist_ok=True)
        if "audacity" in own:
            with written_aside(own["audacity"]) as file:
                file.write(output.audacity_labels(tags, self.shown))
        if "embeddings" in own:
            found.embeddings().save(own["embeddings"])
        if "plot" in own:
            self._draw(own["plot"], item, found, tags)

    def _own_files(self, item: Item) -> dict[str, Path]:
        """Where the outputs of one recording go, by the option that asks for them."""
        folders = {name: getattr(self.options, name) for name in OWN_FILES}
        return {name: Path(folder) / f"{item.name}{OWN_FILES[name]}" for name, folder in folders.items() if folder}

    def _draw(self, place: Path, item: Item, found: Any, tags: Any) -> None:
        from psla_jax import audio
        from psla_jax.tagging import picture
        from psla_jax.tagging.spectrum import spectrum

        sound = spectrum(audio.blocks(item.path, channel=self.options.channel))
        picture.draw(place, tags, found.strips(), sound, top=self.options.top)
