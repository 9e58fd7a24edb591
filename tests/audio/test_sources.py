"""Files whose headers are wrong, that are joined, damaged or cut off: all of their sound is read, or a note says what
is missing. The expected samples are those written, or those that libsndfile decodes from an intact copy."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr
from encoding import encode, pitch, tones, zeroed

from psla_jax.audio import decode, segments, shards
from psla_jax.audio.decode import AudioError, Reading
from psla_jax.audio.ffmpeg import FFmpegSource
from psla_jax.audio.layout import Section

PITCHES = (440, 1000, 2000)
NOISE = np.random.default_rng(0).integers(-3000, 3000, 48_000, dtype=np.int16)


def read(path: Path | str) -> tuple[np.ndarray, list[str]]:
    """Returns the waveform of a file and the notes on it."""
    reading = Reading()
    return decode.read(path, reading=reading), reading.notes


def reference(path: Path) -> np.ndarray:
    """Returns what libsndfile and soxr make of a mono file."""
    samples, rate = soundfile.read(path, dtype="float32")
    return soxr.resample(samples, rate, 16_000)


def write(path: Path, samples: np.ndarray, rate: int = 16_000, **options: str) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


# ---- Ordinary files --------------------------------------------------------------------------------------------------

ORDINARY: dict[str, Callable[[Path], Path]] = {
    "variable MP3": lambda folder: encode(folder / "a.mp3", tones(*PITCHES), quality=4),
    "constant MP3": lambda folder: encode(folder / "a.mp3", tones(*PITCHES, rate=44_100), 44_100),
    "Vorbis": lambda folder: write(folder / "a.ogg", tones(*PITCHES, rate=22_050), 22_050),
    "short Vorbis": lambda folder: write(folder / "a.ogg", NOISE[:777]),
    "Opus": lambda folder: encode(folder / "a.opus", tones(*PITCHES)),
    "Opus of 16 kHz": lambda folder: write(folder / "a.opus", NOISE, format="OGG", subtype="OPUS"),
    "FLAC": lambda folder: encode(folder / "a.flac", tones(*PITCHES)),
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_ordinary_files_are_read_as_by_libsndfile_and_have_no_notes(tmp_path, kind):
    path = ORDINARY[kind](tmp_path)
    waveform, notes = read(path)
    np.testing.assert_allclose(waveform, reference(path), atol=1e-5)
    assert notes == []
    assert decode.duration(path) == pytest.approx(soundfile.info(path).duration, abs=1e-6)


@pytest.mark.parametrize("ending", ["aac", "m4a", "mka", "webm"])
def test_formats_that_libsndfile_lacks_are_read(tmp_path, ending):
    path = encode(tmp_path / f"a.{ending}", tones(*PITCHES))
    with pytest.raises(soundfile.SoundFileError):
        soundfile.SoundFile(path)
    waveform, notes = read(path)
    assert len(waveform) == pytest.approx(48_000, abs=800)
    assert [pitch(waveform, k + 0.2, k + 0.8) for k in range(3)] == pytest.approx(PITCHES, abs=2)
    assert notes == []
    assert decode.duration(path) == pytest.approx(3, abs=0.05)


# ---- Sound beyond the length in the header ---------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [4, 0], ids=["variable", "constant"])
def test_an_mp3_without_a_header_is_read_to_its_end(tmp_path, quality):
    """A program that writes to a pipe cannot go back to add the number of frames."""
    intact = soundfile.read(encode(tmp_path / "a.mp3", tones(*PITCHES), quality=quality), dtype="float32")[0]
    path = encode(tmp_path / "b.mp3", tones(*PITCHES), quality=quality, write_xing="0")
    waveform, notes = read(path)
    assert notes == []
    assert decode.duration(path) == pytest.approx(len(waveform) / 16_000, abs=1e-3)
    delay = 1105  # Without a header, the delay of the encoder and the decoder is not known.
    with decode.open_audio(path) as audio:
        native = np.concatenate([block for block, _ in decode.read_blocks(audio, 1 << 16)])[:, 0]
    np.testing.assert_allclose(native[delay : delay + len(intact)], intact, atol=1e-5)


def joined(*parts: Path) -> Path:
    path = parts[0].with_name("joined" + parts[0].suffix)
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def opus(path: Path, *pitches: float, channels: int = 1) -> Path:
    samples = tones(*pitches)
    return encode(path, samples if channels == 1 else np.stack([samples] * channels, axis=1))


JOINED: dict[str, Callable[[Path], Path]] = {
    "MP3": lambda f: joined(encode(f / "a.mp3", tones(440)), encode(f / "b.mp3", tones(1000, 2000))),
    "MP3 of two rates": lambda f: joined(
        encode(f / "a.mp3", tones(440)), encode(f / "b.mp3", tones(1000, 2000, rate=22_050), 22_050)
    ),
    "AAC": lambda f: joined(encode(f / "a.aac", tones(440)), encode(f / "b.aac", tones(1000, 2000))),
    "Vorbis": lambda f: joined(write(f / "a.ogg", tones(440), 48_000), write(f / "b.ogg", tones(1000, 2000), 48_000)),
    "Vorbis of two rates": lambda f: joined(
        write(f / "a.ogg", tones(440), 48_000), write(f / "b.ogg", tones(1000, 2000, rate=22_050), 22_050)
    ),
    "M4A": lambda f: joined(encode(f / "a.m4a", tones(440)), encode(f / "b.m4a", tones(1000, 2000))),
    "Opus": lambda f: joined(opus(f / "a.opus", 440), opus(f / "b.opus", 1000, 2000)),
    "Opus of two layouts": lambda f: joined(opus(f / "a.opus", 440), opus(f / "b.opus", 1000, 2000, channels=2)),
    "FLAC": lambda f: joined(encode(f / "a.flac", tones(440)), encode(f / "b.flac", tones(1000, 2000))),
    "WAV": lambda f: joined(write(f / "a.wav", tones(440), 48_000), write(f / "b.wav", tones(1000, 2000), 48_000)),
    **{
        ending: lambda f, ending=ending: joined(
            write(f / f"a.{ending}", tones(440), 48_000), write(f / f"b.{ending}", tones(1000, 2000), 48_000)
        )
        for ending in ("aiff", "au", "caf", "rf64", "w64")
    },
}


@pytest.mark.parametrize("kind", JOINED)
def test_joined_files_are_read_to_the_last(tmp_path, kind):
    path = JOINED[kind](tmp_path)
    waveform, notes = read(path)
    assert [pitch(waveform, k + 0.2, k + 0.8) for k in range(3)] == pytest.approx(PITCHES, abs=2)
    assert notes == []
    assert decode.duration(path) == pytest.approx(3, abs=0.12)
    tolerance = (
        2000 if kind.startswith(("MP3", "AAC", "M4A")) else 2
    )  # The delay of the encoder is unknown in later parts.
    assert len(waveform) == pytest.approx(48_000, abs=tolerance)


@pytest.mark.parametrize("ending", ["wav", "aiff", "flac", "m4a"])
def test_a_joined_part_that_was_cut_off_in_its_header_has_a_note(tmp_path, ending):
    make = encode if ending in ("flac", "m4a") else write
    path = make(tmp_path / f"a.{ending}", tones(*PITCHES), 48_000)
    whole, content = decode.read(path), path.read_bytes()
    path.write_bytes(content + content[:30])
    waveform, notes = read(path)
    np.testing.assert_array_equal(waveform[: len(whole) - 100], whole[:-100])
    (note,) = notes
    assert note.startswith("has a part, 3.0")
    assert note.endswith("s after the beginning, that cannot be decoded: download or copy it again.")
    assert decode.duration(path) == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("in_shard", [True, False])
@pytest.mark.parametrize("stated", [0, 2000, 0x7FFFF000, 0xFFFFFFFF])
def test_the_length_of_a_wav_file_may_be_wrong(tmp_path, stated, in_shard):
    content = bytearray(write(tmp_path / "a.wav", NOISE).read_bytes())
    content[40:44] = struct.pack("<I", stated)
    path: Path | str = tmp_path / "a.wav"
    Path(path).write_bytes(content)
    if in_shard:
        shards.write(str(tmp_path / "a.arrayrecord"), [("a.wav", bytes(content))])
        path = str(shards.Address(str(tmp_path / "a.arrayrecord"), 0, "a.wav"))
    waveform, notes = read(path)
    np.testing.assert_array_equal(waveform, NOISE / np.float32(32768))
    wrong = "its header states 0.06 s, and the 2.94 s of data behind them are read as sound, too"
    assert notes == ([f"has a wrong length: {wrong}: check how it sounds after 0.06 s."] if stated == 2000 else [])
    assert decode.duration(path) == 3.0


JUNK = np.random.default_rng(1).bytes(200_000)
TAILS = {
    "chunk": b"LIST\4\0\0\0INFO",
    "chunk with padding": b"id3 \3\0\0\0abc\0",
    "ID3v1": b"TAG" + bytes(125),
    "ID3v2": b"ID3\4\0\0" + bytes([0, 12, 26, 64]) + JUNK,
    "ID3v2 that was cut off": b"ID3\4\0\0" + bytes([0, 12, 26, 64]) + JUNK[:99_999],
    "APE": b"APETAGEX" + struct.pack("<IIII8x", 2000, 200_000, 1, 0x80000000) + JUNK,
    "chunk and tags": b"LIST\4\0\0\0INFO" + b"ID3\4\0\0" + bytes([0, 12, 26, 64]) + JUNK + b"TAG" + bytes(125),
}


@pytest.mark.parametrize("samples", [48_000, 47_999])
@pytest.mark.parametrize("tail", TAILS)
def test_tags_behind_the_samples_are_not_sound(tmp_path, tail, samples):
    path = tmp_path / "a.wav"
    values = (NOISE[:samples] // 128 + 128).astype(np.uint8)
    head = struct.pack("<4sI8sIHHIIHH", b"RIFF", 99, b"WAVEfmt ", 16, 1, 1, 16_000, 16_000, 1, 8)
    path.write_bytes(head + b"data" + struct.pack("<I", samples) + values.tobytes() + TAILS[tail])
    waveform, notes = read(path)
    np.testing.assert_array_equal(waveform, (values - 128.0) / 128)
    assert notes == []
    assert decode.duration(path) == samples / 16_000


def test_a_wav_file_behind_a_tag_is_read(tmp_path):
    content = write(tmp_path / "a.wav", NOISE).read_bytes()
    (tmp_path / "a.wav").write_bytes(content + TAILS["ID3v2"] + content)
    waveform, notes = read(tmp_path / "a.wav")
    np.testing.assert_array_equal(waveform, np.tile(NOISE, 2) / np.float32(32768))
    assert notes == []


@pytest.mark.parametrize("ending", ["wav", "w64"])
def test_other_data_behind_the_samples_has_a_note(tmp_path, ending):
    path = write(tmp_path / f"a.{ending}", NOISE)
    path.write_bytes(path.read_bytes() + JUNK[:32_000])
    waveform, (note,) = read(path)
    assert len(waveform) == 64_000
    assert "its header states 3.00 s, and the 1.00 s of data behind them" in note


def test_a_flac_file_that_was_written_to_a_pipe(tmp_path):
    path = write(tmp_path / "a.flac", NOISE)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # The 36 bits with the number of samples.
    content[22:26] = bytes(4)
    path.write_bytes(content)
    waveform, notes = read(path)
    np.testing.assert_array_equal(waveform, NOISE / np.float32(32768))
    assert notes == []
    assert decode.duration(path) == 3.0
    assert decode.header(path) == (3.0, 16_000)


# ---- Cut off ---------------------------------------------------------------------------------------------------------

CUT: dict[str, tuple[Callable[[Path], Path], str]] = {
    "WAV": (lambda f: write(f / "a.wav", tones(*PITCHES), 48_000), "of the 3.00 s that its header states"),
    "AIFF": (lambda f: write(f / "a.aiff", tones(*PITCHES), 48_000), "of the 3.00 s that its header states"),
    "RF64": (lambda f: write(f / "a.rf64", tones(*PITCHES), 48_000), "of the 3.00 s that its header states"),
    "Wave64": (lambda f: write(f / "a.w64", tones(*PITCHES), 48_000), "of the 3.00 s that its header states"),
    "CAF": (lambda f: write(f / "a.caf", tones(*PITCHES), 48_000), "middle of a page or chunk, so it was probably cut"),
    "FLAC": (lambda f: encode(f / "a.flac", tones(*PITCHES)), "of the 3.00 s that its header states"),
    "MP3": (lambda f: encode(f / "a.mp3", tones(*PITCHES)), "of the 3.00 s that its header states"),
    "WebM": (lambda f: encode(f / "a.webm", tones(*PITCHES)), "of the 3.01 s that its header states"),
    "M4A": (
        lambda f: encode(f / "a.m4a", tones(*PITCHES), movflags="faststart"), "of the 3.02 s that its header states"
    ),
    "Vorbis": (lambda f: write(f / "a.ogg", tones(*PITCHES, 800, 900), 48_000), "so it was probably cut off"),
    "Opus": (lambda f: encode(f / "a.opus", tones(*PITCHES)), "so it was probably cut off"),
    "AAC": (lambda f: encode(f / "a.aac", tones(*PITCHES)), "if sound is missing, it was cut off"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CUT)
def test_a_file_that_was_cut_off_is_read_up_to_there_with_a_note(tmp_path, kind):
    make, expected = CUT[kind]
    path = make(tmp_path)
    whole = decode.read(path)
    path.write_bytes(path.read_bytes()[: int(0.7 * path.stat().st_size)])
    waveform, notes = read(path)
    assert 16_000 < len(waveform) < 0.8 * len(whole)
    np.testing.assert_allclose(waveform[:-1600], whole[: len(waveform) - 1600], atol=1e-5)
    (note,) = notes
    assert expected in note
    assert f"{len(waveform) / 16_000:.2f} s" in note or "page or chunk" in note
    assert note.endswith(".")


def ogg_pages(path: Path) -> list[bytes]:
    return [b"OggS" + page for page in path.read_bytes().split(b"OggS")[1:]]


def test_an_ogg_file_that_ends_with_a_complete_page_may_be_whole(tmp_path):
    """Programs that divide a recording at once into files do not mark the last page of each."""
    path = opus(tmp_path / "a.opus", *PITCHES)
    path.write_bytes(b"".join(ogg_pages(path)[:-1]))
    waveform, notes = read(path)
    assert 32_000 <= len(waveform) < 48_000
    assert notes == []


def test_the_end_mark_is_found_behind_a_damaged_page(tmp_path):
    path = opus(tmp_path / "a.opus", *PITCHES)
    *pages, damaged, last = ogg_pages(path)
    damaged = damaged[:26] + b"\xff" * (len(damaged) - 26)  # It states 65 kB, which is more than follows.
    path.write_bytes(b"".join([*pages, damaged, last, b"x"]))
    assert not any("cut off" in note for note in read(path)[1])


@pytest.mark.parametrize("ending", ["webm", "opus"])
def test_pieces_of_a_recording_begin_later_than_at_0(tmp_path, ending):
    path = encode(tmp_path / f"a.{ending}", tones(*PITCHES), output_ts_offset="14")
    waveform, notes = read(path)
    assert notes == []
    assert decode.duration(path) == pytest.approx(len(waveform) / 16_000, abs=0.02)
    with path.open("rb") as file:
        source = FFmpegSource(Section(file, 0, path.stat().st_size))
        assert source.seconds() == pytest.approx(3, abs=0.02)
        assert sum(len(block) / rate for block, rate in source.blocks(1 << 16)) == pytest.approx(3, abs=0.02)
        assert source.notes == []


def test_the_duration_is_that_of_the_track_that_is_read(tmp_path):
    path = tmp_path / "a.mka"
    with av.open(path, "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in range(2)]
        for stream, samples in zip(streams, (NOISE[:16_000], NOISE), strict=True):
            frame = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
            frame.sample_rate = 16_000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    waveform, notes = read(path)
    assert notes == []
    assert decode.duration(path) == pytest.approx(len(waveform) / 16_000, abs=0.01)


# ---- Damaged in the middle -------------------------------------------------------------------------------------------

DAMAGED: dict[str, Callable[[Path], Path]] = {
    "FLAC": lambda f: encode(f / "a.flac", NOISE, 16_000),
    "Vorbis": lambda f: write(f / "a.ogg", np.tile(NOISE, 8), 48_000),
    "Opus": lambda f: encode(f / "a.opus", np.tile(NOISE, 5)),
    "Opus, 16 kHz": lambda f: write(f / "a.opus", np.tile(NOISE, 2), format="OGG", subtype="OPUS"),
    "M4A": lambda f: encode(f / "a.m4a", np.tile(NOISE, 4), movflags="faststart"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_times_after_a_damaged_part_stay_right(tmp_path, kind):
    path = DAMAGED[kind](tmp_path)
    whole = decode.read(path)
    path.write_bytes(zeroed(path.read_bytes(), 0.4, 0.55))
    waveform, notes = read(path)
    assert len(waveform) == pytest.approx(len(whole), abs=5)
    quarter = len(whole) // 4
    # Codecs fill bands with noise of their own, and Opus at 16 kHz is decoded at 48 kHz if it is damaged.
    for part in (slice(0, quarter), slice(-quarter, -1000)):
        assert np.corrcoef(waveform[part], whole[: len(waveform)][part])[0, 1] > 0.8
    (note,) = notes
    assert note.startswith("has gaps or is damaged, first at ")
    assert note.endswith("silence in the results.")
    silent = np.flatnonzero(np.abs(np.lib.stride_tricks.sliding_window_view(waveform, 800)).max(axis=1) < 1e-4)
    assert len(silent), "the missing part is not silent"


@pytest.mark.parametrize("start", [1.0, 5.0, 10.0])
def test_a_segment_of_a_damaged_flac_file_is_read(tmp_path, start):
    path = encode(tmp_path / "a.flac", np.tile(NOISE, 4), 16_000)
    path.write_bytes(zeroed(path.read_bytes(), 0.4, 0.45))
    whole = decode.read(path)
    waveform = segments.read(segments.Segment(str(path), start, start + 1))
    first = round(start * 16_000)
    np.testing.assert_allclose(waveform, whole[first : first + 16_000], atol=1e-6)


def test_a_damaged_mp3_has_a_note_on_later_times(tmp_path, capfd):
    path = encode(tmp_path / "a.mp3", np.tile(NOISE, 3), write_xing="0")
    path.write_bytes(zeroed(path.read_bytes(), 0.4, 0.55))
    waveform, notes = read(path)
    assert 1.5 * 16_000 < len(waveform) < 3 * 16_000
    (note,) = notes
    assert note.startswith("is damaged at 1.")
    assert note.endswith("later times may be too early.")
    assert capfd.readouterr() == ("", ""), "a decoding library writes to the terminal"


# ---- Blocks and errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["mp3", "m4a", "opus"])
def test_compressed_files_are_read_in_blocks(tmp_path, monkeypatch, ending):
    path = encode(tmp_path / f"a.{ending}", np.tile(NOISE, 4))
    whole = decode.read(path)
    monkeypatch.setattr(decode, "_BLOCK", 10_000)
    blocks = list(decode.blocks(path))
    assert max(map(len, blocks)) < 6000
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_a_disk_failure_is_an_error_and_not_damage(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp3", np.tile(NOISE, 8))
    content = path.read_bytes()

    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 40_000:
                raise OSError(5, "Input/output error")
            return super().read(size)

    monkeypatch.setattr(decode, "_open_binary", lambda *_: Failing(content))
    with pytest.raises(AudioError, match=r"a\.mp3 cannot be read as audio .*Input/output error"):
        decode.read(path)


def test_a_playlist_opens_no_other_file(tmp_path):
    encode(tmp_path / "secret.aac", tones(440))
    (tmp_path / "a.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path / 'secret.aac'}\n")
    (tmp_path / "b.txt").write_text(f"ffconcat version 1.0\nfile {tmp_path / 'secret.aac'}\n")
    for name in ("a.m3u8", "b.txt"):
        with pytest.raises(AudioError, match="it is a text that begins with"):
            decode.read(tmp_path / name)


def make_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.wav", b"")


def make_cut_m4a(path: Path) -> None:
    content = encode(path.with_suffix(".m4a"), tones(440)).read_bytes()
    path.write_bytes(content[: len(content) // 2])


OTHER_KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "HTML": (
        lambda p: p.write_text("\n<!DOCTYPE html><html>404</html>"),
        "(it is an HTML page): download the recording",
    ),
    "text": (lambda p: p.write_text("Grüße"), "(it is a text that begins with 'Grüße'): download the recording"),
    "ZIP": (make_zip, "(it is a ZIP archive): unpack it"),
    "JPEG": (lambda p: p.write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF"), "(it is a JPEG image): leave it out"),
    "Git LFS": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "fetch the recording with git lfs",
    ),
    "MP4": (make_cut_m4a, "(it is an MP4 file that is incomplete or has no sound): download or convert it again"),
    "zeros": (lambda p: p.write_bytes(bytes(5000)), "(it begins with zeros only): download or copy it again"),
    "UTF-16": (lambda p: p.write_text("Grüße", encoding="utf-16"), "(it is a text that begins with 'Grüße')"),
    "start of a WAV file": (lambda p: p.write_bytes(b"RIFF"), "(it is a WAV file that is incomplete or damaged"),
    "start of a FLAC file": (lambda p: p.write_bytes(b"fLaC"), "(it is a FLAC file that is incomplete or damaged"),
    "empty tag": (lambda p: p.write_bytes(b"ID3\3" + bytes(6)), "(it is an MP3 file that is incomplete or damaged"),
    "frames of no MP3": (lambda p: p.write_bytes(b"\xff\xe3\x01\x9d" * 3), "(Format not recognised): convert it"),
    "unknown": (lambda p: p.write_bytes(b"\x01\xfe\x77" * 99), "(Format not recognised): convert it to WAV or FLAC"),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
@pytest.mark.parametrize("in_shard", [True, False])
def test_the_message_names_what_a_file_is(tmp_path, kind, in_shard):
    make, expected = OTHER_KINDS[kind]
    path: Path | str = tmp_path / "a.wav"
    make(Path(path))
    if in_shard:
        shards.write(str(tmp_path / "a.arrayrecord"), [("a.wav", Path(path).read_bytes())])
        path = str(shards.Address(str(tmp_path / "a.arrayrecord"), 0, "a.wav"))
    with pytest.raises(AudioError) as caught:
        decode.read(path)
    assert str(caught.value).startswith(f"{path} cannot be read as audio ")
    assert expected in str(caught.value)


@pytest.mark.parametrize("ending", ["au", "snd", "vox", "gsm"])
def test_the_name_of_a_file_does_not_make_it_sound(tmp_path, ending):
    path = tmp_path / f"page.{ending}"
    path.write_text("<!DOCTYPE html><html>404</html>" * 999)
    with pytest.raises(AudioError, match="it is an HTML page"):
        decode.read(path)
    with pytest.raises(AudioError, match="it is an HTML page"):
        decode.duration(path)


# ---- Samples ---------------------------------------------------------------------------------------------------------


def test_unscaled_integers_are_read(tmp_path):
    samples = np.array([0, 2**31, -(2**31), 5], np.float64)
    write(tmp_path / "a.wav", samples, subtype="DOUBLE")
    np.testing.assert_array_equal(decode.read(tmp_path / "a.wav"), samples)


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e30, 1e300])
def test_the_first_sample_that_no_recording_can_have_is_named(tmp_path, value):
    samples = np.zeros((48_000, 2))
    samples[24_000:, 1] = value
    write(tmp_path / "a.wav", samples, 16_000, subtype="DOUBLE")
    stored = "infinite or beyond 3.4e+38" if abs(value) in (np.inf, 1e300) else f"{value:g}"
    with pytest.raises(AudioError) as caught:
        decode.read(tmp_path / "a.wav")
    assert f"not finite or too large for a recording, the first {stored} at 1.500 s: export it" in str(caught.value)
    with pytest.raises(AudioError) as caught:
        decode.from_samples(samples, 16_000)
    position = "as large as 1e+30, at sample 24000" if value == 1e30 else f"the first {value:g} at sample 24000"
    assert position in str(caught.value)
    np.testing.assert_array_equal(decode.read(tmp_path / "a.wav", channel="first"), 0)


@pytest.mark.parametrize(("right", "cancelled"), [(-1.0, True), (-0.99, True), (0.0, False), (-0.9, False)])
def test_channels_that_cancel_each_other_are_noticed(tmp_path, right, cancelled):
    tone = tones(440) / 32768
    stereo = np.stack([tone, right * tone], axis=1)
    reading, of_array = Reading(), Reading()
    path = write(tmp_path / "a.wav", stereo, 48_000)
    decode.read(path, reading=reading)
    decode.from_samples(stereo, 48_000, reading=of_array)
    assert (reading.is_cancelled, of_array.is_cancelled) == (cancelled, cancelled)
    assert reading.channel_peak == pytest.approx(0.3, abs=1e-3)
    first = Reading()
    decode.read(path, channel="first", reading=first)
    assert not first.is_cancelled
