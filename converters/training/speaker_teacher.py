"""A public speaker encoder as teacher: what it says of every training utterance.

The encoder of the Resemblyzer package (Apache 2.0; after Wan et al. 2018, "Generalized end-to-end
loss for speaker verification") was trained on thousands of speakers of VoxCeleb and LibriSpeech.
Only its weights are read from the package, which need not be importable:

    pip install --no-deps resemblyzer==0.1.4
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from edgeid.converters.training.speech import SpeechSet
from edgeid.runtime.audio import Samples
from edgeid.runtime.errors import DataError, MissingExtraError
from edgeid.runtime.logmel import mel_filters, power_spectrum
from edgeid.runtime.replacement import replace_file
from edgeid.runtime.voice import VoiceSpec

Floats = NDArray[np.float32]
# The encoder's own front end: 25 ms windows every 10 ms, 40 mel bands, powers and no logarithm.
SPEC = VoiceSpec(fft=400, window=400, hop=160, mels=40, low=0, high=8000)
FRAMES = 160
WINDOW = FRAMES * SPEC.hop  # samples
LOUDNESS = 10 ** (-30 / 20)  # root mean square that quieter speech is raised to
DIM = 256
BATCH = 64


class SpeakerTeacher(nn.Module):
    """Waveforms (N, 25600) of 1.6 s at 16 kHz -> unit embeddings (N, 256)."""

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__()
        self.lstm = nn.LSTM(SPEC.mels, DIM, 3, batch_first=True)
        self.linear = nn.Linear(DIM, DIM)
        state = _read(weights or _weights())
        try:
            self.load_state_dict({n: t for n, t in state.items() if not n.startswith("similarity")})
        except RuntimeError as error:
            raise DataError(f"the speaker encoder has other weights: {error}") from error
        self.eval()

    @torch.no_grad()
    def forward(self, waves: Samples) -> Tensor:
        padded = np.pad(waves, ((0, 0), (SPEC.fft // 2, SPEC.fft // 2)))
        mel = power_spectrum(padded, SPEC) @ mel_filters(SPEC)  # (N, 161, 40)
        _, (hidden, _) = self.lstm(torch.from_numpy(mel[:, :FRAMES]))
        return functional.normalize(functional.relu(self.linear(hidden[-1])))


def _weights() -> Path:
    spec = find_spec("resemblyzer")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            "the speaker encoder that teaches is missing: pip install --no-deps resemblyzer==0.1.4"
        )
    return Path(spec.submodule_search_locations[0]) / "pretrained.pt"


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    except Exception as error:  # torch.load has no error class of its own
        raise DataError(f"{path} is not the speaker encoder: {error}") from error
    return dict(state)


@dataclass(frozen=True)
class SpeakerLessons:
    """What the teacher says of the utterances of a ``SpeechSet``, by speaker: (n_i, 256) each.

    A lesson is the mean of utterance and speaker, without what all voices have in common, and of
    unit length: words are too short for the teacher to tell much of one alone.
    """

    targets: tuple[Floats, ...]


def teach_speakers(
    speech: SpeechSet, cache: Path, teacher: SpeakerTeacher | None = None
) -> SpeakerLessons:
    """The lessons of all utterances, from ``cache`` if they were made before."""
    counts = [len(group) for group in speech.utterances]
    digest = hashlib.sha256()
    for group in speech.utterances:
        for utterance in group:
            digest.update(utterance.tobytes())
    path = cache / f"speakers-{digest.hexdigest()[:16]}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            rows = stored["embeddings"]
    else:
        rows = embed_utterances(speech, teacher or SpeakerTeacher())
        cache.mkdir(parents=True, exist_ok=True)
        memory = io.BytesIO()
        np.savez(memory, embeddings=rows)
        replace_file(path, memory.getvalue())
    return SpeakerLessons(_lessons(np.split(rows, np.cumsum(counts)[:-1])))


def _lessons(groups: list[Floats]) -> tuple[Floats, ...]:
    centre = np.mean([group.mean(axis=0) for group in groups], axis=0)
    return tuple(_unit(group + group.mean(axis=0) - 2 * centre) for group in groups)


def _unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def embed_utterances(speech: SpeechSet, teacher: SpeakerTeacher) -> Floats:
    """Unit embeddings (utterances, 256): of each the mean over windows that half overlap."""
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
            for window in _windows(utterance):
                windows.append(window)
                owners.append(count)
            count += 1
            if len(windows) >= BATCH:
                flush()
    if windows:
        flush()
    return _unit(sums)


def _windows(speech: Samples) -> list[Samples]:
    """Stretches of 1.6 s; short speech is repeated, as the runtime repeats it."""
    power = float(np.sqrt(np.mean(np.square(speech, dtype=np.float64))))
    louder = speech * np.float32(max(1.0, LOUDNESS / max(power, 1e-9)))
    if len(louder) < WINDOW:
        louder = np.resize(louder, WINDOW)
    slack = len(louder) - WINDOW
    starts = np.linspace(0, slack, 1 + -(-slack // (WINDOW // 2))).astype(int)
    return [louder[s : s + WINDOW] for s in starts]
