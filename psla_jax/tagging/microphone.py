"""A microphone as a source of blocks, through the optional package sounddevice."""

from __future__ import annotations

from typing import Any

import numpy as np

from psla_jax.tagging.inbox import Inbox


class MicrophoneError(ValueError):
    """A microphone that cannot be used; the message says why and what to do."""


class Microphone:
    """The first channel of an input device.

    Attributes:
        name: for messages.
        rate: samples per second.
        notes: what was odd, a sentence each.
    """

    live = True

    def __init__(self, device: str = "", rate: int = 0) -> None:
        """Finds the device; nothing is recorded yet.

        Args:
            device: part of its name or its number; empty for the system's own choice.
            rate: samples per second; 0 for the device's own.

        Raises:
            MicrophoneError: sounddevice or PortAudio is missing, or there is no such device.
        """
        self._library = _sounddevice()
        self._device: int | str | None = int(device) if device.isdigit() else device or None
        try:
            found = self._library.query_devices(self._device, "input")
        except (self._library.PortAudioError, ValueError) as error:
            raise MicrophoneError(
                f"there is no microphone {device}".rstrip()
                + f" ({_plain(error)}): plug one in, choose one of `python -m "
                "sounddevice` with --device, or pipe sound into psla listen -."
            ) from error
        self.name = f"the microphone {found['name']!r}"
        self.rate = rate or round(found["default_samplerate"])
        self.notes: list[str] = []
        self._stream: Any = None
        self._overflows = 0

    def start(self, inbox: Inbox) -> None:
        """Records from now on, into the inbox.

        Raises:
            MicrophoneError: the device is in use, or does not record at this rate.
        """

        def heard(block: np.ndarray, frames: int, when: Any, status: Any) -> None:
            self._overflows += bool(status.input_overflow)
            inbox.offer(block.copy())

        try:
            self._stream = self._library.InputStream(
                samplerate=self.rate, device=self._device, channels=1, dtype="float32", callback=heard,
                finished_callback=inbox.end,
            )  # fmt: skip
            self._stream.start()
        except (self._library.PortAudioError, ValueError) as error:
            raise MicrophoneError(
                f"{self.name} cannot be recorded at {self.rate} Hz ({_plain(error)}): close what uses it, or choose "
                "another --rate or --device."
            ) from error

    def close(self) -> None:
        """Stops recording."""
        if self._stream is not None:
            self._stream.close()
        if self._overflows:
            self.notes.append(
                f"{self.name} lost sound {self._overflows} times before it came here: the computer is too busy."
            )


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError as error:
        raise MicrophoneError(
            "a microphone needs the package sounddevice, which is not installed: pip install sounddevice, or pipe "
            "sound into psla listen -."
        ) from error
    except OSError as error:  # the package is there, the library that it calls is not
        raise MicrophoneError(
            f"a microphone needs the PortAudio library ({error}): install it (apt install libportaudio2), or pipe "
            "sound into psla listen -."
        ) from error
    return sounddevice


def _plain(error: Exception) -> str:
    return str(error).strip().rstrip(".")
