"""Recording from a microphone through the optional package sounddevice."""

from __future__ import annotations

from typing import Any

import numpy as np

from psla_jax.tagging.live.audio_queue import AudioQueue


class MicrophoneError(ValueError):
    """A microphone that cannot be used; the message gives the reason and the remedy."""


class Microphone:
    """The first channel of an input device.

    `name` appears in messages, `rate` is in Hz; `notes` are sentences on problems, complete after :meth:`close`.
    """

    live = True

    def __init__(self, device: str = "", rate: int = 0) -> None:
        """Selects a device by its number or a part of its name, without recording.

        An empty `device` is the default input device, a `rate` of 0 Hz the default sample rate of the device.

        Raises:
            MicrophoneError: sounddevice or PortAudio is missing, or there is no such device.
        """
        self._library = _sounddevice()
        self._device: int | str | None = int(device) if device.isdigit() else device or None
        try:
            properties = self._library.query_devices(self._device, "input")
        except (self._library.PortAudioError, ValueError) as error:
            raise MicrophoneError(
                f"there is no microphone {device}".rstrip()
                + f" ({_message(error)}): connect one, choose one with --device (python -m sounddevice lists them), or "
                "pipe audio into psla listen -."
            ) from error
        self.name = f"the microphone {properties['name']!r}"
        self.rate = rate or round(properties["default_samplerate"])
        self.notes: list[str] = []
        self._stream: Any = None
        self._overflows = 0

    def start(self, queue: AudioQueue) -> None:
        """Starts recording into the queue.

        Raises:
            MicrophoneError: the device is in use, or does not support the sample rate.
        """

        def callback(block: np.ndarray, frames: int, time: Any, status: Any) -> None:
            self._overflows += bool(status.input_overflow)
            queue.put_nowait(block.copy())  # PortAudio reuses the memory of the block.

        try:
            self._stream = self._library.InputStream(
                samplerate=self.rate, device=self._device, channels=1, dtype="float32", callback=callback,
                finished_callback=queue.close,
            )  # fmt: skip
            self._stream.start()
        except (self._library.PortAudioError, ValueError) as error:
            raise MicrophoneError(
                f"{self.name} cannot be recorded at {self.rate} Hz ({_message(error)}): close other programs that use "
                "it, or choose another --rate or --device."
            ) from error

    def close(self) -> None:
        """Stops recording."""
        if self._stream is not None:
            self._stream.close()
        if self._overflows:
            self.notes.append(
                f"{self.name} lost audio {self._overflows} times before psla received it: the computer is too busy."
            )


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError as error:
        raise MicrophoneError(
            "a microphone needs the package sounddevice, which is not installed: pip install sounddevice, or pipe "
            "audio into psla listen -."
        ) from error
    except OSError as error:  # sounddevice is installed, but cannot load PortAudio.
        raise MicrophoneError(
            f"a microphone needs the PortAudio library ({error}): install it (apt install libportaudio2), or pipe "
            "audio into psla listen -."
        ) from error
    return sounddevice


def _message(error: Exception) -> str:
    return str(error).strip().rstrip(".")
