"""Transfer: losses by hand, the stages of lambda, pairs, and a student that learns."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from scipy.special import log_softmax  # noqa: E402

from edgeid.converters.distillation.transfer import (  # noqa: E402
    PairSampler,
    SiameseObjective,
    TransferObjective,
    class_log_probabilities,
    contrastive_loss,
    log_probability_loss,
    siamese_drawing,
    train_siamese,
    train_transfer,
    transfer_drawing,
)
from edgeid.converters.graphs.torch_graph import export_torch  # noqa: E402
from edgeid.converters.networks.student import CompactStudent, TransferStudent  # noqa: E402
from edgeid.converters.scores.verification import equal_error_rate, pair_error  # noqa: E402
from edgeid.converters.training.checkpoint import read_checkpoint  # noqa: E402
from edgeid.converters.training.training_loop import TrainOptions  # noqa: E402
from edgeid.runtime.errors import DataError  # noqa: E402
from edgeid.runtime.reference import ReferenceEngine  # noqa: E402


def test_contrastive_loss_by_hand():
    # Distances 5, 5, 1, 3 at a margin of 3: matching 25, matching 1 ... apart 0, (3-1)^2, 0.
    x1 = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    x2 = torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0], [0.0, 0.0]])
    same = torch.tensor([1, 0, 0, 0])
    expected = (25 + 0 + 4 + 0) / 2 / 4
    assert contrastive_loss(x1, x2, same, 3.0).item() == pytest.approx(expected)
    assert contrastive_loss(x1[2:3], x2[2:3], same[:1], 3.0).item() == pytest.approx(0.5)


def test_contrastive_gradient_is_finite_where_embeddings_coincide():
    x = torch.zeros(2, 3, requires_grad=True)
    contrastive_loss(x, torch.zeros(2, 3), torch.tensor([0, 1]), 1.0).backward()
    assert torch.isfinite(x.grad).all()


def test_log_probability_loss_by_hand():
    student = torch.tensor([[0.0, -1.0], [-2.0, 0.0]])
    teacher = torch.tensor([[-1.0, -1.0], [-2.0, -3.0]])
    assert log_probability_loss(student, teacher).item() == pytest.approx((1 + 9) / 2 / 2)


def test_class_log_probabilities():
    rng = np.random.default_rng(0)
    rows, centres = rng.standard_normal((5, 4)), rng.standard_normal((3, 4))
    found = class_log_probabilities(rows * 7, centres * 3, scale=20.0)
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (rows, centres)]
    np.testing.assert_allclose(found, log_softmax(20 * unit[0] @ unit[1].T, axis=1), atol=1e-4)
    assert np.isfinite(class_log_probabilities(rows, centres, 1e4)).all()
    for bad in (np.zeros((3, 4)), np.ones((3, 5)), np.full((3, 4), np.nan), np.ones(4)):
        with pytest.raises(DataError):
            class_log_probabilities(rows, bad)


def test_lambda_rises_in_three_equal_stages():
    objective = TransferObjective(torch.nn.Identity(), 4, 3)
    weights = [objective.weight(p) for p in (0.0, 0.33, 0.34, 0.66, 0.67, 0.999, 1.0)]
    assert weights == [1e-9, 1e-9, 1e-6, 1e-6, 1e-3, 1e-3, 1e-3]


def test_the_two_losses_add_up():
    torch.manual_seed(0)
    objective = TransferObjective(torch.nn.Identity(), 4, 3, stages=(0.0, 0.5))
    x, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    teacher = torch.log_softmax(torch.randn(6, 3), dim=1)
    with torch.no_grad():
        student = log_softmax(objective.classify(x).numpy(), axis=1)
        classes = -student[np.arange(6), labels].mean()
        regression = ((teacher.numpy() - student) ** 2).sum() / 2 / 6
        first, last = (objective.loss((x, labels, teacher), p).item() for p in (0.0, 1.0))
    assert first == pytest.approx(classes, rel=1e-5)
    assert last == pytest.approx(classes + 0.5 * regression, rel=1e-5)


def test_siamese_loss_is_two_softmax_losses_and_the_contrastive_one():
    torch.manual_seed(0)
    stage = TransferObjective(torch.nn.Identity(), 4, 3)
    objective = SiameseObjective(stage, margin=2.0, weight=0.7, size=2)
    a, b = torch.randn(2, 5, 4)
    la, lb = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 2, 2, 1, 1])
    cross = torch.nn.functional.cross_entropy
    with torch.no_grad():
        expected = cross(stage.classify(a), la) + cross(stage.classify(b), lb)
        pairs = contrastive_loss(objective.project(a), objective.project(b), la == lb, 2.0)
        found = objective.loss((a, b, la, lb), 0.5)
    assert found.item() == pytest.approx((expected + 0.7 * pairs).item(), rel=1e-5)


def test_without_a_label_the_teacher_alone_is_followed():
    torch.manual_seed(0)
    objective = TransferObjective(torch.nn.Identity(), 4, 3, stages=(0.5,))
    x, teacher = torch.randn(3, 4), torch.log_softmax(torch.randn(3, 3), dim=1)
    with torch.no_grad():
        student = log_softmax(objective.classify(x).numpy(), axis=1)
        regression = 0.5 * ((teacher.numpy() - student) ** 2).sum() / 2 / 3
        nobody = objective.loss((x, torch.tensor([-1, -1, -1]), teacher), 0.0).item()
        one = objective.loss((x, torch.tensor([-1, 2, -1]), teacher), 0.0).item()
    assert nobody == pytest.approx(regression, rel=1e-5)
    assert one == pytest.approx(regression - student[1, 2], rel=1e-5)


def test_a_student_that_starts_with_the_teachers_classifier():
    rng = np.random.default_rng(0)
    rows, centres = rng.standard_normal((5, 4)), rng.standard_normal((3, 4)).astype(np.float32)
    objective = TransferObjective(torch.nn.Identity(), 4, 3, stages=(1.0,))
    objective.follow(centres, 20.0)
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    teacher = torch.from_numpy(class_log_probabilities(rows, centres, 20.0))
    with torch.no_grad():  # features that are the teacher's embedding have nothing to learn
        labels = torch.full((5,), -1)
        assert objective.loss((torch.from_numpy(unit), labels, teacher), 0.0).item() < 1e-6


@pytest.mark.parametrize("size", [4, 6])
def test_the_projection_starts_without_a_loss(size):
    torch.manual_seed(0)
    objective = SiameseObjective(TransferObjective(torch.nn.Identity(), 4, 3), size=size)
    x = torch.randn(3, 4)
    projected = objective.embedding_network()(x)
    assert projected.shape == (3, size)
    torch.testing.assert_close(torch.cdist(projected, projected), torch.cdist(x, x))


def test_the_siamese_stage_may_go_on_with_the_regression():
    torch.manual_seed(0)
    stage = TransferObjective(torch.nn.Identity(), 4, 3)
    plain, kept = (SiameseObjective(stage, regression=weight) for weight in (0.0, 0.3))
    a, b = torch.randn(2, 5, 4)
    labels = torch.tensor([0, 1, 2, 0, 1])
    za, zb = torch.log_softmax(torch.randn(2, 5, 3), dim=2)
    with torch.no_grad():
        found = kept.loss((a, b, labels, labels, za, zb), 0.5)
        without = plain.loss((a, b, labels, labels), 0.5)
        student = torch.log_softmax(stage.classify(torch.cat([a, b])), dim=1)
    squares = (student - torch.cat([za, zb])).square().sum() / 2 / 10
    assert (found - without).item() == pytest.approx(0.3 * squares.item(), rel=1e-4)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    counts=st.lists(st.integers(1, 6), min_size=2, max_size=8).filter(lambda c: max(c) > 1),
    matching=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_pairs_are_what_they_say(seed, counts, matching):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(10 * np.arange(len(counts)), counts))
    first, second, same = PairSampler(labels, matching).draw(64, rng)
    np.testing.assert_array_equal(labels[first] == labels[second], same)
    assert (first != second).all()
    assert same.all() if matching == 1 else not same.all()
    if matching == 0:
        assert not same.any()


def test_people_are_drawn_evenly_and_all_samples_occur():
    labels = np.array([0] * 300 + [1] * 3 + [2] * 3)
    sampler = PairSampler(labels)
    first, second, same = sampler.draw(6000, np.random.default_rng(0))
    assert same.mean() == pytest.approx(0.5, abs=0.03)
    for members in (first, second):
        shares = np.bincount(labels[members]) / 6000
        np.testing.assert_allclose(shares, 1 / 3, atol=0.03)
        assert len(np.unique(members)) == 306
    again = sampler.draw(6000, np.random.default_rng(0))
    np.testing.assert_array_equal(first, again[0])


@pytest.mark.parametrize(
    ("labels", "matching"),
    [([], 0.5), ([[0, 0, 1]], 0.5), ([0, 0, 0], 0.5), ([0, 1, 2], 0.5), ([0, 0, 1], 1.5)],
)
def test_pairs_that_cannot_be_are_refused(labels, matching):
    with pytest.raises(DataError):
        PairSampler(np.array(labels), matching)


def test_options_are_checked():
    with pytest.raises(DataError):
        TransferObjective(torch.nn.Identity(), 4, 3, stages=())
    with pytest.raises(DataError):
        TransferObjective(torch.nn.Identity(), 4, 3, stages=(-1.0,))
    with pytest.raises(DataError, match="margin"):
        SiameseObjective(TransferObjective(torch.nn.Identity(), 4, 3), margin=0.0)
    with pytest.raises(DataError, match="normalised"):
        SiameseObjective(TransferObjective(torch.nn.Identity(), 4, 3), 2.5, normalised=True)


class Student(torch.nn.Module):
    """8 values -> 6 features."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU())

    def forward(self, x):
        return self.layers(x)


def people(count, seed):
    """Six samples of each; in other directions than people differ they are louder."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(count), 6)
    noise = rng.standard_normal((len(labels), 8)) * ([0.3] * 4 + [2.0] * 4)
    looks = np.concatenate([rng.standard_normal((count, 4)), np.zeros((count, 4))], axis=1)
    return (looks[labels] + noise).astype(np.float32), labels


OPTIONS = TrainOptions(steps=150, batch=64, rate=0.1, save_every=50)


def outputs(network, x):
    with torch.no_grad():
        return network(torch.from_numpy(x)).numpy()


def distance_error(embeddings, names):
    """Equal error rate of what the contrastive loss trains, the plain distance."""
    distance = np.linalg.norm(embeddings[:, None] - embeddings[None], axis=2)
    upper = np.triu(np.ones(distance.shape, bool), 1)
    same = names[:, None] == names[None, :]
    return equal_error_rate(-distance[upper & same], -distance[upper & ~same])


@pytest.fixture(scope="module")
def transferred(tmp_path_factory):
    """People, and the checkpoint of a student that learnt from them."""
    x, labels = people(30, seed=0)
    centres = np.stack([x[labels == person, :4].mean(axis=0) for person in range(30)])
    teacher = class_log_probabilities(x[:, :4], centres, scale=8.0)
    out = tmp_path_factory.mktemp("transfer") / "transfer.pt"
    train_transfer(stage(), transfer_drawing(x, labels, teacher, 64), out, OPTIONS)
    return x, labels, out


def stage(out=None):
    torch.manual_seed(1)
    objective = TransferObjective(Student(), 6, 30, stages=(1e-3, 1e-2, 1e-1))
    if out is not None:
        train_transfer(objective, lambda _: (), out, OPTIONS)
    return objective


def test_the_student_learns_from_the_teacher(transferred):
    *_, out = transferred
    assert read_checkpoint(out)["shape"] == {"classes": 30}
    others, names = people(40, seed=5)
    before, after = stage().eval(), stage(out).eval()
    errors = [pair_error(outputs(one.network, others), names) for one in (before, after)]
    assert errors[1] < errors[0] - 0.02


@pytest.mark.parametrize(("normalised", "margin"), [(False, 2.0), (True, 1.0)])
def test_the_siamese_stage_brings_other_people_together_too(
    normalised, margin, transferred, tmp_path
):
    x, labels, out = transferred
    others, names = people(40, seed=5)
    error = pair_error if normalised else distance_error
    siamese = SiameseObjective(stage(out), margin, size=5, normalised=normalised)
    untrained = error(outputs(siamese.embedding_network(), others), names)
    pairs = siamese_drawing(x, labels, 32)
    train_siamese(siamese, pairs, tmp_path / "siamese.pt", OPTIONS)
    embeddings = outputs(siamese.embedding_network(), others)
    assert error(embeddings, names) < untrained - 0.005
    # a finished training is read back, not repeated
    fresh = SiameseObjective(stage(), margin, size=5, normalised=normalised)
    train_siamese(fresh, lambda _: (), tmp_path / "siamese.pt", OPTIONS)
    np.testing.assert_array_equal(outputs(fresh.embedding_network(), others), embeddings)
    with pytest.raises(DataError, match="another training"):
        train_transfer(stage(), pairs, tmp_path / "siamese.pt", OPTIONS)


def test_the_student_of_table_1_becomes_a_graph():
    torch.manual_seed(0)
    siamese = SiameseObjective(TransferObjective(TransferStudent(channels=1), 1024, 7))
    network = siamese.embedding_network()
    graph = export_torch(network, (1, 56, 56), "face")
    x = np.random.default_rng(0).standard_normal((2, 1, 56, 56)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    assert expected.shape == (2, 256)
    np.testing.assert_allclose(ReferenceEngine(graph).run("face", x), expected, atol=1e-4)
    weights = sum(math.prod(t.shape) for t in graph.tensors.values() if len(t.shape) > 1)
    assert weights == 6_709_088 - 2 * 9 * 32 + 1024 * 256  # one input channel, the projection


def test_the_compact_student_counts_its_weights_and_has_few():
    network = CompactStudent()
    weights = sum(p.numel() for p in network.parameters() if p.ndim > 1)
    assert weights == 445_984
    assert network(torch.zeros(2, 1, 112, 96)).shape == (2, 128)
    odd = CompactStudent((3, 17, 9), 4, channels=(4, 6), units=(1, 0))  # 9x5, 5x3
    assert odd.pool.kernel_size == (5, 3)
    assert odd(torch.zeros(2, 3, 17, 9)).shape == (2, 4)


def test_outputs_of_the_compact_student_are_cut_scaled_and_projected():
    torch.manual_seed(0)
    network = CompactStudent((1, 16, 16), 5, channels=(4,), units=(0,)).eval()
    x = torch.randn(2, 1, 16, 16)
    mean, spread, after = torch.randn(3), torch.rand(3), torch.nn.Linear(3, 2)
    with torch.no_grad():
        expected = after(network(x)[:, :3] * spread + mean)
        network.keep_outputs(3, mean, spread)
        network.project_outputs(after)
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-6)
