"""Fire, depth-wise + point-wise and Flame: paper 003's counts, shapes, slim networks, export."""

from __future__ import annotations

import numpy as np
import pytest

from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import DataError

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
from torch import nn  # noqa: E402

from edgeid.converters.graphs.normalisation import fold_norms  # noqa: E402
from edgeid.converters.graphs.torch_graph import export_torch  # noqa: E402
from edgeid.converters.networks.cnn20 import CNN20  # noqa: E402
from edgeid.converters.networks.flame import (  # noqa: E402
    DistillationLoss,
    SlimOptions,
    count_weights,
    make_structure,
    slim_cnn20,
    slim_vgg11,
    substitute,
)
from edgeid.converters.networks.vgg11 import VGG11  # noqa: E402

STRUCTURES = ("fire", "depthwise", "flame")


def channels(network):
    """Output channels of the 3x3 convolutions with full depth."""
    return [
        m.out_channels
        for m in network.modules()
        if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) and m.groups == 1
    ]


def randomise(network):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return network


def test_the_counts_of_paper_003():
    # "Filter parameters with input channel=256, output channel=512, kernel size = 3x3"
    assert count_weights(nn.Conv2d(256, 512, 3)) == 1_179_648
    assert count_weights(make_structure("fire", 256, 512)) == 180_224
    assert count_weights(make_structure("depthwise", 256, 512)) == 133_376
    assert count_weights(make_structure("flame", 256, 512)) == 49_728


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
def test_shapes_are_those_of_the_convolution(structure, stride, size):
    conv = nn.Conv2d(6, 9, 3, stride, 1)
    made = make_structure(structure, 6, 9, stride).eval()
    x = torch.randn(2, 6, *size)
    assert made(x).shape == conv(x).shape


def test_a_structure_sees_the_neighbourhood_that_the_convolution_sees():
    for structure in STRUCTURES:
        torch.manual_seed(1)
        made = make_structure(structure, 4, 64, 2).eval()  # wide: not all units are off
        x = torch.zeros(1, 4, 9, 9, requires_grad=True)
        with torch.no_grad():
            x += torch.rand_like(x)
        made(x)[0, :, 1, 2].sum().backward()
        rows, columns = torch.nonzero(x.grad.abs().sum((0, 1)), as_tuple=True)
        # output (1, 2) with stride 2 and padding 1 stands on input (2, 4)
        assert 1 <= rows.min() <= rows.max() <= 3
        assert 3 <= columns.min() <= columns.max() <= 5


def test_structures_that_cannot_be_built():
    with pytest.raises(DataError, match="1 channels"):
        make_structure("fire", 4, 1)
    with pytest.raises(DataError, match="squeezed by 0"):
        make_structure("flame", 4, 8, ratio=0.0)
    with pytest.raises(DataError, match="'smoke' is none of fire, depthwise, flame"):
        make_structure("smoke", 4, 8)


def test_substitution_counts_by_hand():
    network = VGG11(1.0, 512)
    assert substitute(network, "flame") == 7  # all but the first, which reads one channel
    pairs = [(64, 128), (128, 256), (256, 256), (256, 512), *[(512, 512)] * 3]
    # squeeze, expand, depth-wise 3x3, point-wise
    flames = sum(i * (o // 8) + 2 * (o // 8) * (o // 2) + 9 * (o // 8) for i, o in pairs)
    assert count_weights(network) == 9 * 64 + flames + 512 * 9 * 512
    assert CNN20(0.125, 16).trunk[0][0].weight.shape == (8, 1, 3, 3)
    assert substitute(CNN20(0.125, 16), "fire") == 19


def test_substitution_keeps_everything_else():
    network = VGG11(0.125, 8)
    first, norm, embed = network.trunk[0], network.trunk[5], network.embed
    substitute(network, "depthwise")
    assert network.trunk[0] is first
    assert network.trunk[5] is norm
    assert network.embed is embed


def test_what_is_not_replaced():
    network = nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 4, 3, (1, 2), 1),
    )  # fmt: skip
    assert substitute(network, "fire") == 0
    assert all(isinstance(layer, nn.Conv2d) for layer in network)


def test_biases_stay_where_they_were():
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, bias=False)
    )
    substitute(network, "flame")
    assert network[0].expand.bias is not None
    assert network[0].spread[1].bias is not None
    assert network[1].expand.bias is None


def test_shrink_and_shallow():
    keep = {"structure": None}
    assert channels(slim_vgg11(SlimOptions(**keep))) == [64, 128, 256, 256, 512, 512, 512, 512]
    shrunk = slim_vgg11(SlimOptions(shrink=True, **keep))
    assert channels(shrunk) == [32, 64, 128, 128, 256, 256, 512, 512]
    shallow = slim_vgg11(SlimOptions(shallow=True, **keep))  # without layers 3, 5 and 7
    assert channels(shallow) == [64, 128, 256, 512, 512]
    both = slim_vgg11(SlimOptions(shrink=True, shallow=True, **keep))
    assert channels(both) == [32, 64, 128, 512, 512]
    slim = slim_cnn20(SlimOptions(shrink=True, **keep))
    assert channels(slim) == [32] * 3 + [64] * 5 + [128] * 9 + [512] * 3
    with pytest.raises(DataError, match="shortcuts"):
        slim_cnn20(SlimOptions(shallow=True))


@pytest.mark.parametrize("shrink", [False, True])
@pytest.mark.parametrize("shallow", [False, True])
def test_slim_networks_run(shrink, shallow):
    options = SlimOptions("flame", shrink, shallow)
    x = torch.zeros(2, 1, 112, 96)
    assert slim_vgg11(options, 0.125, 16).eval()(x).shape == (2, 16)
    if not shallow:
        assert slim_cnn20(options, 0.125, 16).eval()(x).shape == (2, 16)
        voice = slim_cnn20(options, 0.125, 16, average_time=True)
        assert voice.eval()(x).shape == (2, 16)


class Small(nn.Module):
    """A stem and one strided structure with what follows it."""

    def __init__(self, structure):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.block = nn.Sequential(
            nn.Conv2d(6, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.PReLU(8)
        )
        assert substitute(self, structure) == 1
        self.embed = nn.Linear(8 * 4 * 3, 5)

    def forward(self, x):
        return self.embed(self.block(self.stem(x)).flatten(1))


def parity(network, graph, shape):
    x = torch.randn(3, *shape)
    with torch.no_grad():
        expected = network.eval()(x).numpy()
    for engine in ("reference", "onnxruntime"):
        got = make_engine(graph, engine).run("face", x.numpy())
        assert np.abs(got - expected).max() < 1e-4


@pytest.mark.parametrize("structure", STRUCTURES)
def test_export(structure):
    torch.manual_seed(1)
    network = randomise(Small(structure))
    graph = export_torch(network, (1, 8, 6))
    parity(network, graph, (1, 8, 6))
    folded = fold_norms(graph)  # also those that follow the Concat
    assert "Affine" not in {layer.op for layer in folded.layers}
    parity(network, folded, (1, 8, 6))


def test_export_of_a_whole_network():
    torch.manual_seed(1)
    network = randomise(slim_vgg11(SlimOptions("flame", shallow=True), 0.0625, 8))
    graph = fold_norms(export_torch(network, (1, 112, 96)))
    assert "Affine" not in {layer.op for layer in graph.layers}
    parity(network, graph, (1, 112, 96))


def test_a_pooled_network_takes_images_of_any_size():
    network = slim_vgg11(SlimOptions("flame", shrink=True), 0.125, 16, pooled=True).eval()
    assert network.embed.weight.shape == (16, 64)
    for size in ((32, 32), (64, 64), (112, 96)):
        assert network(torch.zeros(2, 1, *size)).shape == (2, 16)
    # full width, feature of 512, 2,360 people: the paper's 42.94 MB but for half a per cent
    weights = count_weights(VGG11(1.0, 512, pooled=True)) + 512 * 2360
    pairs = 64 + 64 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 3 * 512 * 512
    assert weights == 9 * pairs + 512 * 512 + 512 * 2360
    assert 4e-6 * weights == pytest.approx(42.94, rel=5e-3)
    parity(randomise(network), fold_norms(export_torch(network, (1, 64, 64))), (1, 64, 64))


def test_distillation_by_hand():
    student, teacher = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    # unit vectors at a right angle: squared distance 2, whatever their lengths
    assert float(DistillationLoss(feature=3)((student, teacher))) == pytest.approx(6)
    assert float(DistillationLoss()((student, student * 7))) == pytest.approx(0)
    logits = (torch.tensor([[0.0, 0.0]]), torch.tensor([[4.0, 0.0]]))
    p = 1 / (1 + np.exp(-1.0))  # the teacher at temperature 4
    divergence = p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))
    loss = DistillationLoss(feature=0, soft=1, hard=1, temperature=4)
    assert float(loss((student, teacher), logits)) == pytest.approx(16 * divergence, rel=1e-5)
    known = float(loss((student, teacher), logits, torch.tensor([1])))
    assert known == pytest.approx(16 * divergence + np.log(2), rel=1e-5)
    # a sample without label takes no part in the hard loss
    unknown = float(loss((student, teacher), logits, torch.tensor([-1])))
    assert unknown == pytest.approx(16 * divergence, rel=1e-5)


def test_a_structure_learns_from_its_teacher():
    torch.manual_seed(1)
    teacher = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    ).eval()
    student = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
    )
    substitute(student, "flame")
    x, loss, losses = torch.randn(32, 2, 6, 6), DistillationLoss(), []
    optimiser = torch.optim.Adam(student.parameters(), 0.02)
    with torch.no_grad():
        aim = teacher(x).flatten(1)
    for _ in range(40):
        value = loss((student(x).flatten(1), aim))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        losses.append(value.item())
    assert losses[-1] < 0.5 * losses[0]
