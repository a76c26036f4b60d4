"""The PyTorch networks: weights counted by hand, shapes, and the export's parity."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgeid.converters.networks.cnn20 import CNN20, settle_statistics  # noqa: E402
from edgeid.converters.networks.student import TransferStudent  # noqa: E402
from edgeid.converters.networks.vgg11 import VGG11  # noqa: E402
from edgeid.converters.training.margin import MarginSoftmax  # noqa: E402


def weights(network):
    """Parameters of convolutions and fully connected layers, biases not counted."""
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    return sum(m.weight.numel() for m in network.modules() if isinstance(m, kinds))


def convolutions(network):
    return [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]


def test_transfer_student_has_the_weights_of_table_1():
    student = TransferStudent()
    assert [c.weight.numel() for c in convolutions(student)] == [
        864, 9_216, 18_432, 36_864, 73_728, 147_456,
    ]  # fmt: skip
    assert student.features.weight.numel() == 6_422_528
    assert weights(student) == 6_709_088


def test_transfer_student_shapes():
    assert TransferStudent().eval()(torch.zeros(2, 3, 56, 56)).shape == (2, 1024)
    grey = TransferStudent(channels=1, dim=256).eval()
    assert grey(torch.zeros(2, 1, 56, 56)).shape == (2, 256)


def test_cnn20_has_twenty_convolutions_and_one_layer():
    network = CNN20(1.0, 512)
    # 3x3 kernels: 1 -> 64, then 2, 4, 8, 2 convolutions at 64, 128, 256, 512 channels and
    # the strided ones between them; the last map is 512 x 7 x 6.
    kernels = [64, *[64 * 64] * 2, 64 * 128, *[128 * 128] * 4, 128 * 256, *[256 * 256] * 8]
    kernels += [256 * 512, *[512 * 512] * 2]
    assert [c.weight.numel() for c in convolutions(network)] == [9 * k for k in kernels]
    assert network.embed.weight.numel() == 512 * 7 * 6 * 512
    assert len(kernels) == 20


@pytest.mark.parametrize(("width", "voice"), [(0.25, False), (0.25, True), (0.5, False)])
def test_cnn20_shapes(width, voice):
    network = CNN20(width, 128, average_time=voice).eval()
    assert network(torch.zeros(2, 1, 112, 96)).shape == (2, 128)
    assert network.embed.in_features == 512 * width * 6 * (1 if voice else 7)


def test_averaging_time_equals_a_full_layer_with_repeated_weights():
    """The voice network is CNN-20 itself, with weights that do not depend on the row."""
    torch.manual_seed(0)
    voice = CNN20(0.125, 16, average_time=True).eval()
    full = CNN20(0.125, 16).eval()
    full.trunk.load_state_dict(voice.trunk.state_dict())
    rows = voice.embed.weight.detach().reshape(16, 64, 1, 6) / 7
    full.embed.weight.data = rows.expand(16, 64, 7, 6).reshape(16, -1)
    full.embed.bias.data = voice.embed.bias.detach()
    x = torch.randn(2, 1, 112, 96)
    torch.testing.assert_close(voice(x), full(x), atol=1e-4, rtol=1e-4)


def test_vgg11_shapes_and_weights():
    network = VGG11(1.0, 512)
    channels = [1, 64, 128, 256, 256, 512, 512, 512, 512]
    kernels = [9 * a * b for a, b in pairwise(channels)]
    assert weights(network) == sum(kernels) + 512 * 9 * 512
    assert VGG11(0.125, 32).eval()(torch.zeros(2, 1, 112, 96)).shape == (2, 32)


def test_margin_softmax_by_hand():
    """Two classes along the axes, embedding at 60 degrees from its class, margin 30 degrees."""
    head = MarginSoftmax(2, 2, margin=np.pi / 6, scale=2.0)
    head.weight.data = torch.eye(2) * 5.0
    embedding = torch.tensor([[np.cos(np.pi / 3), np.sin(np.pi / 3)]], dtype=torch.float32) * 3
    logits = 2.0 * np.array([np.cos(np.pi / 2), np.sin(np.pi / 3)])
    expected = np.log(np.exp(logits).sum()) - logits[0]
    assert head(embedding, torch.tensor([0])).item() == pytest.approx(expected, abs=1e-5)
    plain = 2.0 * np.array([np.cos(np.pi / 3), np.sin(np.pi / 3)])
    expected = np.log(np.exp(plain).sum()) - plain[0]
    assert head(embedding, torch.tensor([0]), ramp=0.0).item() == pytest.approx(expected, abs=1e-5)


def test_margin_softmax_stays_finite_at_the_poles():
    head = MarginSoftmax(2, 2)
    head.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    embedding = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    head(embedding, torch.tensor([1, 0])).backward()
    assert torch.isfinite(embedding.grad).all()


def test_settled_statistics_are_the_plain_averages():
    network = CNN20(0.125, 8)
    batches = [torch.randn(16, 1, 112, 96) for _ in range(3)]
    settle_statistics(network, batches)
    first = network.trunk[0]
    with torch.no_grad():
        means = torch.stack([first[0](b).mean((0, 2, 3)) for b in batches]).mean(0)
    torch.testing.assert_close(first[1].running_mean, means, atol=1e-5, rtol=1e-4)
    assert not network.training
