"""Extensions of audio files, and names for what other files hold, by their first bytes."""

from __future__ import annotations

import codecs

AUDIO_EXTENSIONS = frozenset({
    ".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".asf", ".au", ".avi", ".caf", ".dsf", ".dts",
    ".eac3", ".flac", ".flv", ".m4a", ".m4b", ".m4v", ".mka", ".mkv", ".mov", ".mp1", ".mp2", ".mp3", ".mp4", ".mpc",
    ".mpeg", ".mpg", ".oga", ".ogg", ".ogv", ".opus", ".rf64", ".spx", ".tak", ".tta", ".w64", ".wav", ".webm",
    ".wma", ".wmv", ".wv",
})  # fmt: skip
"""Extensions of formats that libsndfile or FFmpeg reads, with video or without, in lower case."""
HEAD_BYTES = 512
"""Number of bytes that :func:`describe` needs."""

_UNPACK = "unpack it, and name the recordings in it"
_DOWNLOAD = "download the recording itself"
_REPAIR = "download or convert it again, or leave it out"
_LEAVE_OUT = "leave it out"
_DEFECT = "is incomplete or damaged, or has no sound that can be decoded"
_SIGNATURES = (
    (0, b"PK\x03\x04", "it is a ZIP archive", _UNPACK),
    (0, b"\x1f\x8b", "it is a gzip archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "it is a 7-Zip archive", _UNPACK),
    (0, b"Rar!", "it is a RAR archive", _UNPACK),
    (257, b"ustar", "it is a tar archive", _UNPACK),
    (0, b"%PDF", "it is a PDF document", _LEAVE_OUT),
    (0, b"\x89PNG", "it is a PNG image", _LEAVE_OUT),
    (0, b"\xff\xd8\xff", "it is a JPEG image", _LEAVE_OUT),
    (0, b"GIF8", "it is a GIF image", _LEAVE_OUT),
    (0, b"\x93NUMPY", "it is a NumPy array", "pass the array itself, or write it as WAV"),
    (0, b"version https://git-lfs", "it is a pointer of Git LFS", "fetch the recording with git lfs pull"),
    (4, b"ftyp", "it is an MP4 file that is incomplete or has no sound", _REPAIR),
    (0, b"\x1a\x45\xdf\xa3", "it is a WebM or Matroska file that is incomplete or has no sound", _REPAIR),
    (0, b"\x30\x26\xb2\x75", "it is a Windows Media file that is damaged or has no sound", _REPAIR),
    (8, b"AVI ", "it is an AVI file that is damaged or has no sound", _REPAIR),
    (8, b"WEBP", "it is a WebP image", _LEAVE_OUT),
    (0, b"RIFF", f"it is a WAV file that {_DEFECT}", _REPAIR),
    (0, b"RF64", f"it is a WAV file that {_DEFECT}", _REPAIR),
    (0, b"fLaC", f"it is a FLAC file that {_DEFECT}", _REPAIR),
    (0, b"OggS", f"it is an Ogg file that {_DEFECT}", _REPAIR),
    (0, b"caff", f"it is a CAF file that {_DEFECT}", _REPAIR),
    (0, b"wvpk", f"it is a WavPack file that {_DEFECT}", _REPAIR),
    (0, b"ID3", f"it is an MP3 file that {_DEFECT}", _REPAIR),
    (8, b"AIF", f"it is an AIFF file that {_DEFECT}", _REPAIR),
)
"""Position and bytes of a signature, what the file is, and the remedy."""


def describe(head: bytes) -> tuple[str, str] | None:
    """Returns what a file that cannot be decoded is, and the remedy, by its first bytes; None if they are unknown."""
    for position, signature, kind, remedy in _SIGNATURES:
        if head.startswith(signature, position):
            return kind, remedy
    if not head.strip(b"\0"):
        return "it begins with zeros only", "download or copy it again"
    text = head.strip().lower()
    if text.startswith((b"<!doctype html", b"<html")) or b"<html" in text:
        return "it is an HTML page", _DOWNLOAD
    beginning = _text(head)
    return None if beginning is None else (f"it is a text that begins with {beginning[:20].strip()!r}", _DOWNLOAD)


def _text(head: bytes) -> str | None:
    """Returns the beginning of a text in UTF-8, or in UTF-16 with a byte order mark; None for other files."""
    encoding = "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)  # The last character may be incomplete.
    except UnicodeDecodeError:
        return None
    return text if all(char.isprintable() or char in "\t\r\n\f" for char in text) else None
