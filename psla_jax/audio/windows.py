"""Windows of recordings that are longer than the input of a model: where they start, on the grid of output frames."""

from __future__ import annotations

FRAME_LENGTH, FRAME_SHIFT = 400, 160
"""Samples of a spectrogram frame, and from one to the next; those of the frontend, which needs JAX."""
OUTPUT_STRIDE = 32
"""Spectrogram frames per output frame of a backbone."""
OUTPUT_FRAME_SAMPLES = OUTPUT_STRIDE * FRAME_SHIFT
OUTPUT_FRAME_SECONDS = 0.32
DEFAULT_OVERLAP = 0.5
"""Overlap of consecutive windows, as a fraction of a window."""


class WindowError(ValueError):
    """Invalid window settings; the message names the setting."""


def hop_frames(size: int, overlap: float = DEFAULT_OVERLAP) -> int:
    """Output frames from one window of `size` samples to the next, for an overlap as a fraction of a window.

    Raises:
        WindowError: the overlap is not in [0, 0.95].
    """
    if not 0 <= overlap <= 0.95:
        raise WindowError(f"overlap is {overlap!r}: use a fraction from 0 to 0.95.")
    return max(1, round(size // OUTPUT_FRAME_SAMPLES * (1 - overlap)))


def require_covering(size: int, hop: int) -> None:
    """Raises WindowError if windows of `size` samples, one every `hop` output frames, leave sound out between them."""
    if hop * OUTPUT_FRAME_SAMPLES > size:
        raise WindowError(
            f"windows of {size / 16_000:.2f} s are shorter than the hop of {hop * OUTPUT_FRAME_SECONDS:.2f} s between "
            f"them: use a model with a target_length of at least {hop * OUTPUT_STRIDE + 2} frames."
        )


def window_starts(samples: int, size: int, hop: int) -> list[int]:
    """Returns the first output frame of each window of `size` samples: one every `hop` output frames, and a last one.

    The last window starts at the first output frame from which the remaining samples fit into a window, so that it
    lacks less than one output frame; a recording that is shorter than a window has a single shorter one.
    """
    last = max(samples - size, 0) // (hop * OUTPUT_FRAME_SAMPLES) * hop
    excess = samples - size - last * OUTPUT_FRAME_SAMPLES
    starts = list(range(0, last + 1, hop))
    return [*starts, last + -(-excess // OUTPUT_FRAME_SAMPLES)] if excess > 0 else starts
