"""Output files of single recordings: label tracks, embeddings and plots, each kind in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from psla_jax.audio import decode
from psla_jax.config import Channel, FrontendConfig
from psla_jax.runtime.files import atomic_text
from psla_jax.tagging.formats import OutputOptions, audacity_labels
from psla_jax.tagging.plot import figure
from psla_jax.tagging.plot.spectrogram import log_mel_spectrogram
from psla_jax.tagging.recording import RecordingAccumulator
from psla_jax.tagging.result import Tags
from psla_jax.tagging.tag_files import Recording

SUFFIXES = {"audacity": ".txt", "embeddings": ".npz", "plot": ".png"}
"""Kinds of files, and their suffixes."""


@dataclass(frozen=True)
class OwnFiles:
    """Names and writes the files of recordings."""

    folders: Mapping[str, str]
    """Folder of each kind of file to write."""
    options: OutputOptions
    channel: Channel
    frontend: FrontendConfig
    """Spectrogram settings of the (first) model, for plots."""

    def paths(self, recording: Recording) -> dict[str, Path]:
        """Returns the files of a recording by kind."""
        name = recording.output_name
        return {kind: Path(folder) / f"{name}{SUFFIXES[kind]}" for kind, folder in self.folders.items()}

    def write(self, recording: Recording, accumulator: RecordingAccumulator, tags: Tags) -> list[str]:
        """Writes the files of a recording and returns a sentence for each one that cannot be written."""
        problems = []
        for kind, path in self.paths(recording).items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if kind == "audacity":
                    with atomic_text(path) as file:
                        file.write(audacity_labels(tags, self.options))
                elif kind == "embeddings":
                    accumulator.embeddings().save(path)
                else:
                    blocks = decode.blocks(recording.file, channel=self.channel, sample_rate=self.frontend.sample_rate)
                    spectrogram = log_mel_spectrogram(blocks, self.frontend)
                    figure.draw(path, tags, accumulator.heatmaps(), spectrogram, top=self.options.top)
            except (OSError, decode.AudioError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
                problems.append(f"{path} cannot be written ({reason}): correct this, and run the same command again.")
        return problems
