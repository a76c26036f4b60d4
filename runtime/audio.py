"""Recordings in any common form -> mono float32 samples at the rate a model needs."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.errors import AudioError

Samples = NDArray[np.float32]
Recording = str | Path | bytes | NDArray[np.generic] | tuple[NDArray[np.generic], int]

MAX_SECONDS = 600.0
MIN_RATE, MAX_RATE = 4_000, 384_000
MAX_CHANNELS = 32
TAPS_EACH_SIDE = 16  # zero crossings of the sinc kept on either side


def load_audio(audio: Recording, rate: int | None = None) -> tuple[Samples, int]:
    """Decode a recording and mix it down.

    Args:
        audio: a path, the bytes of a WAV, FLAC or Ogg file, ``(samples, rate)``, or samples
            alone with ``rate`` given: float in -1..1 or int16, shape (n,) or (n, channels).
        rate: sampling rate in Hz of bare samples.

    Returns:
        Mono float32 samples in -1..1 and their rate.

    Raises:
        AudioError: unreadable, truncated, empty, too long, NaN, or of the wrong shape,
            dtype or rate.
    """
    if isinstance(audio, tuple):
        if len(audio) != 2:
            raise AudioError(f"a tuple must be (samples, rate), this one has {len(audio)} items")
        audio, rate = audio
    if isinstance(audio, np.ndarray):
        if rate is None:
            raise AudioError("samples came without a sampling rate: pass (samples, rate)")
        return _mono(audio, _checked_rate(rate)), int(rate)
    if isinstance(audio, str | Path):
        audio = _read_file(Path(audio))
    if not isinstance(audio, bytes):
        raise AudioError(
            f"audio must be a path, bytes or (samples, rate), not {type(audio).__name__}"
        )
    return _decode(audio)


def resample(samples: Samples, rate: int, target: int) -> Samples:
    """Change the sampling rate of (n,) samples by a Kaiser-windowed sinc, polyphase.

    Ratios that need more than 1,000 filter phases are rounded (by less than 0.05 %).
    """
    if rate == target or not len(samples):
        return samples
    ratio = Fraction(target, rate).limit_denominator(1000)
    if ratio.numerator > 1000:  # a huge upward ratio
        ratio = 1 / Fraction(rate, target).limit_denominator(1000)
    up, down = ratio.numerator, ratio.denominator
    phases = _filter_phases(up, down)
    taps = phases.shape[1]
    padded = np.pad(samples, (taps // 2 - 1, taps))
    count = -(-len(samples) * up // down)
    out = np.empty(count, np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(padded, taps)
    for first in range(min(up, count)):  # outputs first, first + up, ... share one filter phase
        start, phase = divmod(first * down, up)
        share = out[first::up]
        share[:] = windows[start::down][: len(share)] @ phases[phase]
    return out


@lru_cache(maxsize=8)
def _filter_phases(up: int, down: int) -> NDArray[np.float32]:
    """(up, taps): row p weighs the input around an output that lies p/up after a sample."""
    cutoff = min(1.0, up / down) * 0.95  # of the input's Nyquist frequency
    half = int(np.ceil(TAPS_EACH_SIDE / cutoff))
    offset = np.arange(-half + 1, half + 1)[None, :] - np.arange(up)[:, None] / up
    window = np.i0(9.0 * np.sqrt(np.clip(1 - (offset / half) ** 2, 0, None))) / np.i0(9.0)
    kernel = cutoff * np.sinc(cutoff * offset) * window
    return np.asarray(kernel / kernel.sum(axis=1, keepdims=True), np.float32)


def _checked_rate(rate: object) -> int:
    if isinstance(rate, bool) or not isinstance(rate, int | np.integer):
        raise AudioError(f"the sampling rate must be a whole number of Hz, not {rate!r}")
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(f"sampling rate {rate} Hz is outside {MIN_RATE}..{MAX_RATE} Hz")
    return int(rate)


def _mono(samples: NDArray[np.generic], rate: int) -> Samples:
    if samples.ndim not in (1, 2):
        raise AudioError(f"samples must have shape (n,) or (n, channels), not {samples.shape}")
    if samples.ndim == 2 and not 1 <= samples.shape[1] <= MAX_CHANNELS:
        raise AudioError(
            f"samples of shape {samples.shape} would have {samples.shape[1]} channels: "
            "pass (n, channels), transpose if channels come first"
        )
    if not len(samples):
        raise AudioError("the recording is empty (0 samples)")
    if len(samples) > MAX_SECONDS * rate:
        raise AudioError(
            f"the recording lasts {len(samples) / rate:.0f} s, at most {MAX_SECONDS:.0f} s are read"
        )
    if samples.dtype == np.int16:
        mono = samples.reshape(len(samples), -1).mean(axis=1, dtype=np.float32)
        return np.asarray(mono / np.float32(32768), np.float32)
    if samples.dtype not in (np.float32, np.float64):
        raise AudioError(f"samples must be float in -1..1 or int16, not {samples.dtype}")
    floats = np.asarray(samples, np.float32).reshape(len(samples), -1)
    if not np.isfinite(floats).all():
        bad = int(np.count_nonzero(~np.isfinite(floats)))
        raise AudioError(f"{bad} samples are NaN or infinite: check the recording device")
    peak = float(np.abs(floats).max())
    if peak > 4.0:
        raise AudioError(
            f"float samples reach {peak:.4g}, expected -1..1: divide by the full scale"
        )
    return np.asarray(floats.mean(axis=1), np.float32)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise AudioError(f"no audio file at {path}") from None
    except (OSError, ValueError) as error:
        raise AudioError(f"cannot read {path}: {error}") from None


def _decode(data: bytes) -> tuple[Samples, int]:
    if not data:
        raise AudioError("the audio is empty (0 bytes)")
    _refuse_truncated(data)
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = _checked_rate(file.samplerate)
            if file.frames > MAX_SECONDS * rate:
                raise AudioError(
                    f"the recording lasts {file.frames / rate:.0f} s, "
                    f"at most {MAX_SECONDS:.0f} s are read"
                )
            samples = file.read(dtype="float32", always_2d=True)
            expected = file.frames
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
        raise AudioError(f"the audio cannot be decoded ({error}): give WAV, FLAC or Ogg") from None
    if len(samples) < expected:
        raise AudioError(f"the audio is truncated: {len(samples)} of {expected} samples are there")
    return _mono(samples, rate), rate


def _refuse_truncated(data: bytes) -> None:
    """Find cuts that libsndfile passes over: a WAV short of its data, an Ogg without its end."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        position = 12
        while position + 8 <= len(data):
            name = data[position : position + 4]
            (size,) = struct.unpack_from("<I", data, position + 4)
            # A live recorder writes 0xFFFFFFFF or 0 when it cannot know the length.
            if name == b"data" and 0 < size < 0xFFFFFFFF and position + 8 + size > len(data):
                raise AudioError(
                    f"the WAV is truncated: {len(data) - position - 8} of {size} bytes are there"
                )
            position += 8 + size + size % 2
    if data[:4] == b"OggS":
        last = data.rfind(b"OggS")
        if last + 6 > len(data) or not data[last + 5] & 0x04:
            raise AudioError("the Ogg file is truncated: its last page does not end the stream")
