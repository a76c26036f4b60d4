"""Train the voice network to say what a public speaker encoder says of the same speech.

Nobody's name is needed, but of actors: speech at any speed is somebody's, and the encoder knows
how near two voices are. Labels teach a network to tell a few thousand speakers apart, which it can
do by the room each was recorded in; an encoder trained on 200,000 people goes by the voice.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgeid.converters.graphs.embedding_loss import STRUCTURE_WEIGHT, structure_error
from edgeid.converters.networks.cnn20 import CNN20
from edgeid.converters.training.checkpoint import CNN20Objective
from edgeid.converters.training.faces import data_directory
from edgeid.converters.training.speaker_teacher import DIM, teach_stretches
from edgeid.converters.training.speaking_styles import Styles
from edgeid.converters.training.speech import SPEEDS, SpeechSampler, read_training
from edgeid.converters.training.training_loop import Batch, TrainOptions, train
from edgeid.runtime.errors import DataError
from edgeid.runtime.voice import VoiceSpec

SEED = 5  # of the stretches, the same in every training: the encoder is asked once
# Sets whose speakers act anger, fear and joy. The encoder takes them for other people: of the two
# calibration speakers of Emo-DB it confuses 22 % of the pairs.
ACTED = ("emodb",)


class SpeakerDistillation(CNN20Objective):
    """The encoder's embeddings, foretold from ours by one matrix, and its similarities."""

    def __init__(self, width: float, dim: int) -> None:
        super().__init__()
        self.network = CNN20(width, dim, average_time=True)
        self.foretell = nn.Linear(dim, DIM, bias=False)

    def loss(self, batch: Batch, progress: float) -> Tensor:  # noqa: ARG002
        x, target = batch
        unit = functional.normalize(self.network(x).float())
        cosine = 1 - functional.cosine_similarity(self.foretell(unit).float(), target)
        return cosine.mean() + STRUCTURE_WEIGHT * structure_error(unit, target)


def distil_voice(
    out: Path,
    options: TrainOptions,
    *,
    stretches: int,
    width: float = 0.5,
    dim: int = 128,
    data: Path | None = None,
    spec: VoiceSpec | None = None,
    strength: float = 1.0,
    work: Path = Path("work"),
) -> Path:
    """Train a speaker CNN-20 on ``speech/train_*.zip`` without labels; a checkpoint at ``out``.

    The encoder hears a stretch of speech as long as a window, noise and all. The network hears
    the same in another style of speaking, over another microphone, and sometimes only a word of
    it: what it is to say does not change. Of acted speech it is to say what the encoder says of
    that speaker on the whole (``steady_lessons``). A checkpoint already at ``out`` is resumed. The
    calibration speakers are left out.

    Args:
        stretches: of speech that the encoder is asked about, see ``teach_stretches``; some 100
            a second on two cores.
        strength: of augmentation, see ``SpeechSampler``.

    Raises:
        DataError: no stretches, or data or checkpoint is missing or does not fit.
        MissingExtraError: the package with the encoder is missing.
    """
    if stretches < 1:
        raise DataError(f"a student needs stretches of speech to learn from, got {stretches}")
    torch.set_num_threads(options.threads)
    data, spec = data or data_directory(), spec or VoiceSpec()
    speech, noise = read_training(data, spec)
    # Here a change of style costs nothing that identity could be told by, so all may change.
    sampler = SpeechSampler(speech, noise, spec, Styles(share=1.0), strength)
    lessons = teach_stretches(sampler, stretches, SEED, work / "teacher")
    lessons = steady_lessons(lessons, sampler, SEED)

    def draw(rng: np.random.Generator) -> Batch:
        numbers = rng.integers(stretches, size=options.batch)
        waves = [sampler.stretch(np.random.default_rng((SEED, k))) for k in numbers]
        return torch.from_numpy(sampler.listen(waves, rng)), torch.from_numpy(lessons[numbers])

    torch.manual_seed(options.seed)
    return train(SpeakerDistillation(width, dim), draw, options, out, "voice")


def steady_lessons(
    lessons: NDArray[np.float32], sampler: SpeechSampler, seed: int
) -> NDArray[np.float32]:
    """Lessons (n, d) as they are, but of acted speech the speaker's mean at about that speed."""
    speakers, speeds = zip(
        *(sampler.somebody(np.random.default_rng((seed, k))) for k in range(len(lessons))),
        strict=True,
    )
    names = np.array([name.partition("/")[0] for name in sampler.speech.speakers])
    acted = np.flatnonzero(np.isin(names, ACTED)[list(speakers)])
    near = np.abs(np.subtract.outer(np.array(speeds)[acted], SPEEDS)).argmin(axis=1)
    classes = np.array(speakers)[acted] * len(SPEEDS) + near
    lessons = lessons.copy()
    for one in np.unique(classes):
        same = acted[classes == one]
        mean = lessons[same].mean(axis=0)
        lessons[same] = mean / np.linalg.norm(mean)
    return lessons
