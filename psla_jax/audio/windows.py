"""Windows of recordings that are longer than the input of a model: where they start, on the grid of output frames."""

from __future__ import annotations

from dataclasses import dataclass

from psla_jax.config import FrontendConfig

OUTPUT_STRIDE = 32
"""Spectrogram frames per output frame of a backbone."""
DEFAULT_OVERLAP = 0.5
"""Overlap of consecutive windows, as a fraction of a window."""


class WindowError(ValueError):
    """Invalid window settings; the message names the setting."""


@dataclass(frozen=True)
class Grid:
    """Where the spectrogram frames and the output frames of a model are in a waveform; by default those of the recipe.

    Five convolutions of stride 2 with symmetric padding leave the centre of output frame `k` at the centre of
    spectrogram frame `32 k`: an output frame represents the sound from half an output frame before that point to half
    an output frame after it. (Static padding shifts it by up to one output frame.)
    """

    rate: int = 16_000
    """Samples per second."""
    hop: int = 160
    """Samples from one spectrogram frame to the next."""
    window: int = 400
    """Samples of a spectrogram frame."""

    @classmethod
    def of(cls, frontend: FrontendConfig) -> Grid:
        """Returns the grid of a frontend."""
        return cls(frontend.sample_rate, frontend.hop_samples, frontend.window_samples)

    @property
    def output_samples(self) -> int:
        """Samples from one output frame to the next."""
        return OUTPUT_STRIDE * self.hop

    @property
    def output_seconds(self) -> float:
        """Seconds from one output frame to the next, 0.32 by default."""
        return self.output_samples / self.rate

    def num_frames(self, samples: int) -> int:
        """Returns the number of spectrogram frames that lie completely within this many samples."""
        return 0 if samples < self.window else 1 + (samples - self.window) // self.hop

    def num_output_frames(self, samples: int) -> int:
        """Returns the number of output frames that this many samples extend into, at least one."""
        return max(1, -(-self.num_frames(samples) // OUTPUT_STRIDE))

    def frame_start(self, frame: int) -> float:
        """Returns the start in seconds of the sound that an output frame represents; 0 for the first frame."""
        return max(0.0, (frame - 0.5) * self.output_seconds + self.window / 2 / self.rate)

    def hop_frames(self, size: int, overlap: float = DEFAULT_OVERLAP) -> int:
        """Output frames from one window of `size` samples to the next, for an overlap as a fraction of a window.

        Raises:
            WindowError: the overlap is not in [0, 0.95].
        """
        if not 0 <= overlap <= 0.95:
            raise WindowError(f"overlap is {overlap!r}: use a fraction from 0 to 0.95.")
        return max(1, round(size // self.output_samples * (1 - overlap)))

    def require_covering(self, size: int, hop: int) -> None:
        """Raises WindowError if windows of `size` samples, one every `hop` output frames, leave sound out."""
        if hop * self.output_samples > size:
            raise WindowError(
                f"windows of {size / self.rate:.2f} s are shorter than the hop of {hop * self.output_seconds:.2f} s "
                f"between them: use a model with a target_length of at least {hop * OUTPUT_STRIDE + 2} frames."
            )

    def window_starts(self, samples: int, size: int, hop: int) -> list[int]:
        """Returns the first output frame of each window of `size` samples: one every `hop` of them, and a last one.

        The last window starts at the first output frame from which the remaining samples fit into a window, so that it
        lacks less than one output frame; a recording that is shorter than a window has a single shorter one.
        """
        last = max(samples - size, 0) // (hop * self.output_samples) * hop
        excess = samples - size - last * self.output_samples
        starts = list(range(0, last + 1, hop))
        return [*starts, last + -(-excess // self.output_samples)] if excess > 0 else starts
