"""Training of closed-set face classifiers: VGG11-bn, and slim networks that learn from it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks.papers.closed_set import OTHER, SIZE, TRAIN, ClosedSet, augment, network_input
from edgeid.converters.networks.flame import DistillationLoss, SlimOptions, slim_vgg11
from edgeid.converters.networks.vgg11 import VGG11
from edgeid.converters.training.checkpoint import Objective, read_checkpoint
from edgeid.converters.training.faces import Crops
from edgeid.converters.training.training_loop import TrainOptions, train
from edgeid.runtime.replacement import replace_file

DIM = 512  # of the feature
COSINE_SCALE = 24.0
SMOOTHING = 0.1
BATCH = 64
KNOWN = BATCH * 5 // 8  # of a batch: training images of the people; the rest shows others
SMALL = 48  # pixels of the baseline's first phase


class Classifier(nn.Module):
    """A network's feature, and one weight vector a person; scores (N, people)."""

    def __init__(self, network: VGG11, people: int) -> None:
        super().__init__()
        self.network = network
        self.classify = nn.Linear(DIM, people, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classify(self.network(x))
        return scores

    def logits(self, feature: Tensor) -> Tensor:
        """Scaled cosines of features and people: the L2 norm on the feature."""
        return COSINE_SCALE * F.linear(F.normalize(feature), F.normalize(self.classify.weight))

    def ready(self) -> Classifier:
        """For inference: people's vectors of one length, so that the largest score wins."""
        with torch.no_grad():
            self.classify.weight.copy_(F.normalize(self.classify.weight))
        return self.eval()


class BaselineObjective(Objective):
    """Cross-entropy on the people, and regression of a public network's embeddings."""

    network: Classifier

    def __init__(self, people: int) -> None:
        super().__init__()
        self.network = Classifier(VGG11(1.0, DIM, pooled=True), people)
        self.regress = nn.Linear(DIM, 128, bias=False)

    def loss(self, batch: tuple[Tensor, ...], progress: float) -> Tensor:  # noqa: ARG002
        x, label, target = batch
        feature = self.network.network(x).float()
        with torch.autocast("cpu", enabled=False):
            unit = F.normalize(self.regress(feature))
            cosine = 1 - (unit * target).sum(1).mean()
            structure = ((unit @ unit.T - target @ target.T) ** 2).mean()
            known = F.cross_entropy(
                self.network.logits(feature), label, ignore_index=-1, label_smoothing=SMOOTHING
            )
        loss: Tensor = known + 3 * cosine + 5 * structure
        return loss


class StudentObjective(Objective):
    """Distillation with the L2 norm on the feature (paper 003, "training tips")."""

    network: Classifier

    def __init__(self, network: Classifier, people_vectors: Tensor) -> None:
        super().__init__()
        self.network = network
        self._theirs = people_vectors
        self._distil = DistillationLoss(feature=10.0, soft=1.0, hard=0.5, temperature=4.0)

    def loss(self, batch: tuple[Tensor, ...], progress: float) -> Tensor:  # noqa: ARG002
        x, label, target = batch
        feature = self.network.network(x).float()
        with torch.autocast("cpu", enabled=False):
            theirs = COSINE_SCALE * F.linear(target, self._theirs)
            return self._distil((feature, target), (self.network.logits(feature), theirs), label)


@dataclass(frozen=True)
class Lesson:
    """Augmented images, and the baseline's features of them.

    Attributes:
        views: (N, SIZE, SIZE).
        features: (N, DIM) float16, unit length.
        labels: (N,); -1 for people who are not of the task.
    """

    views: Crops
    features: NDArray[np.float16]
    labels: NDArray[np.int64]


def train_baseline(faces: ClosedSet, path: Path, seed: int, steps: tuple[int, int]) -> Classifier:
    """VGG11-bn, first on small images, then on those of the full size; resumed at ``path``."""
    first = path.with_name(f"{path.stem}-{SMALL}.pt")
    torch.manual_seed(seed)
    options = TrainOptions(steps[0], BATCH, 0.1, seed)
    train(BaselineObjective(faces.people), _sampler(faces, SMALL), options, first, f"{SMALL} px")
    options = TrainOptions(steps[1], BATCH, 0.03, seed + 100, start=first)
    objective = BaselineObjective(faces.people)
    train(objective, _sampler(faces, SIZE), options, path, f"{SIZE} px")
    objective.load_state_dict(read_checkpoint(path)["objective"])
    return objective.network.ready()


def _sampler(faces: ClosedSet, size: int):  # type: ignore[no-untyped-def]
    mine, others = faces.of(TRAIN), faces.of(OTHER)

    def draw(rng: np.random.Generator) -> tuple[Tensor, ...]:
        index = np.concatenate([rng.choice(mine, KNOWN), rng.choice(others, BATCH - KNOWN)])
        views = np.stack([augment(faces.crops[i], rng, size) for i in index])
        label, target = faces.labels[index], faces.targets[index]
        return network_input(views), torch.from_numpy(label), torch.from_numpy(target)

    return draw


def prepare_lesson(
    faces: ClosedSet, teacher: Classifier, count: int, work: Path, seed: int
) -> Lesson:
    """``count`` views of every training image, and as many others as a batch has; kept."""
    parts = [_one_view(faces, teacher, number, work, seed) for number in range(count)]
    views, features, labels = (np.concatenate(x) for x in zip(*parts, strict=True))
    return Lesson(views, features, labels)


def _one_view(
    faces: ClosedSet, teacher: Classifier, number: int, work: Path, seed: int
) -> tuple[Crops, NDArray[np.float16], NDArray[np.int64]]:
    path = work / f"view-{seed}-{number}.npz"
    if not path.is_file():
        rng = np.random.default_rng((seed, number))
        mine, others = faces.of(TRAIN), faces.of(OTHER)
        share = len(mine) * (BATCH - KNOWN) // KNOWN
        index = np.concatenate([mine, rng.choice(others, share, replace=False)])
        views = np.stack([augment(faces.crops[i], rng, SIZE) for i in index])
        stream = io.BytesIO()
        np.savez(stream, views=views, features=unit_features(teacher, views), index=index)
        replace_file(path, stream.getvalue())
    with np.load(path, allow_pickle=False) as stored:
        return stored["views"], stored["features"], faces.labels[stored["index"]]


def unit_features(teacher: Classifier, views: Crops) -> NDArray[np.float16]:
    """(N, DIM) features of views, unit length."""
    network = teacher.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for i in tqdm(range(0, len(views), BATCH), desc="features"):
            feature = network(network_input(views[i : i + BATCH])).float()
            found.append(F.normalize(feature).numpy().astype(np.float16))
    return np.concatenate(found)


def train_student(
    slim: SlimOptions, teacher: Classifier, lesson: Lesson, path: Path, options: TrainOptions
) -> Classifier:
    """A slim VGG11, started from the baseline's tensors that still fit; resumed at ``path``."""
    people = len(teacher.classify.weight)
    torch.manual_seed(options.seed)
    network = Classifier(slim_vgg11(slim, 1.0, DIM, pooled=True), people)
    theirs, own = teacher.state_dict(), network.state_dict()
    fitting = {k: v for k, v in theirs.items() if k in own and own[k].shape == v.shape}
    network.load_state_dict(fitting, strict=False)
    objective = StudentObjective(network, teacher.classify.weight.detach().clone())

    def draw(rng: np.random.Generator) -> tuple[Tensor, ...]:
        index = rng.integers(len(lesson.views), size=options.batch)
        target = torch.from_numpy(lesson.features[index].astype(np.float32))
        return network_input(lesson.views[index]), torch.from_numpy(lesson.labels[index]), target

    train(objective, draw, options, path, path.stem)
    objective.load_state_dict(read_checkpoint(path)["objective"])
    return network.ready()
