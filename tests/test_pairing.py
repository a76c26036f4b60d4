"""Pairing: who is paired with whom, who is left alone, who is kept out."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgeid.converters.codebook.pairing import pair_layers  # noqa: E402
from edgeid.converters.graphs.torch_graph import export_torch  # noqa: E402
from edgeid.converters.networks.cnn20 import CNN20  # noqa: E402
from edgeid.converters.networks.vgg11 import VGG11  # noqa: E402
from edgeid.runtime.encoding import encode_float32  # noqa: E402
from edgeid.runtime.errors import GraphError  # noqa: E402
from edgeid.runtime.graph import Conv, Entry, Graph, merge_graphs  # noqa: E402


def chain(*channels, groups=None):
    """1x1 convolutions one after the other; ``groups`` of some, by number."""
    layers, tensors = [], {}
    for number, (c_in, c_out) in enumerate(pairwise(channels)):
        g = (groups or {}).get(number, 1)
        tensors[f"w{number}"] = encode_float32(np.ones((c_out, c_in // g, 1, 1)))
        name = f"a{number}"
        layers.append(Conv(f"c{number}", (name,), f"a{number + 1}", f"w{number}", groups=g))
    entry = Entry("face", "a0", (channels[0], 1, 1), layers[-1].output)
    return Graph((entry,), tuple(layers), tensors)


def names(pairing):
    return [pair.tensors for pair in pairing.pairs]


def test_equal_networks_are_paired_one_to_one():
    graph = merge_graphs(face=chain(1, 16, 16, 32), voice=chain(1, 16, 16, 32))
    pairing = pair_layers(graph, ("face", "voice"))
    assert names(pairing) == [("face/w1", "voice/w1"), ("face/w2", "voice/w2")]
    assert pairing.pairs[0].readers == ((("face", "face/c1"),), (("voice", "voice/c1"),))
    assert pairing.kept == {"face/w0": "the first layer", "voice/w0": "the first layer"}


def test_a_shorter_network_is_paired_where_most_is_shared():
    """Input channels 16, 32, 64 against 64: 64 goes with 64, and the order is kept."""
    graph = merge_graphs(face=chain(1, 16, 32, 64, 8), voice=chain(1, 64, 8))
    assert names(pair_layers(graph, ("face", "voice"))) == [
        ("face/w1",), ("face/w2",), ("face/w3", "voice/w1"),
    ]  # fmt: skip


def test_pairs_never_cross():
    graph = merge_graphs(face=chain(1, 64, 8, 8), voice=chain(1, 8, 64, 8))
    # 64 with 64 and nothing else beats 64 with 8 and 8 with 64
    assert names(pair_layers(graph, ("face", "voice"))) == [
        ("voice/w1",), ("face/w1", "voice/w2"), ("face/w2",),
    ]  # fmt: skip


def test_what_is_kept_out():
    graph = chain(3, 16, 16, 16, 4, 16, groups={1: 16, 2: 2})
    longer = chain(3, 16, 16, 16, 4, 16, 16, groups={1: 16, 2: 2})
    with pytest.raises(GraphError, match=r"no layer of .* can be coded"):
        pair_layers(graph, ("face",))
    pairing = pair_layers(longer, ("face",))
    assert names(pairing) == [("w5",)]
    assert pairing.kept == {
        "w0": "the first layer",
        "w1": "16 groups",
        "w2": "2 groups",
        "w3": "16 -> 4 channels, fewer than 8",
        "w4": "4 -> 16 channels, fewer than 8",
    }


def test_a_weight_that_both_read_already_is_its_own_pair():
    merged = merge_graphs(face=chain(1, 16, 16, 32), voice=chain(1, 16, 16, 32))
    layers = tuple(
        replace(x, weight="face/w1") if isinstance(x, Conv) and x.weight == "voice/w1" else x
        for x in merged.layers
    )
    tensors = {n: t for n, t in merged.tensors.items() if n != "voice/w1"}
    pairing = pair_layers(replace(merged, layers=layers, tensors=tensors), ("face", "voice"))
    assert names(pairing) == [("face/w1",), ("face/w2", "voice/w2")]
    assert pairing.pairs[0].readers == ((("face", "face/c1"), ("voice", "voice/c1")),)


@pytest.mark.parametrize("entries", [(), ("face", "face"), ("face", "voice", "other")])
def test_how_many_entries(entries):
    with pytest.raises(GraphError, match="one or two entries"):
        pair_layers(chain(1, 16, 16), entries)


def test_an_entry_that_is_not_there():
    with pytest.raises(GraphError, match="no entry 'voice'"):
        pair_layers(chain(1, 16, 16), ("face", "voice"))


class SmallMobileFace(torch.nn.Module):
    """Two inverted residuals, a global depth-wise convolution and a linear 1x1, as
    MobileFaceNet (Chen et al. 2018) has them."""

    def __init__(self):
        super().__init__()
        self.stem = self.block(1, 16, 3, 2)
        self.units = torch.nn.ModuleList(
            torch.nn.Sequential(
                self.block(16, 32, 1), self.block(32, 32, 3, groups=32), self.block(32, 16, 1)
            )
            for _ in range(2)
        )
        self.last = self.block(16, 64, 1)
        self.spread = torch.nn.Conv2d(64, 64, (14, 12), groups=64)
        self.linear = torch.nn.Conv2d(64, 16, 1)

    @staticmethod
    def block(c_in, c_out, kernel, stride=1, groups=1):
        return torch.nn.Sequential(
            torch.nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups),
            torch.nn.PReLU(c_out),
        )

    def forward(self, x):
        x = torch.nn.functional.max_pool2d(self.stem(x), 4)
        for unit in self.units:
            x = x + unit(x)
        return self.linear(self.spread(self.last(x))).flatten(1)


def test_mobilefacenet_with_cnn20():
    face = export_torch(SmallMobileFace(), (1, 112, 96), "face")
    voice = export_torch(CNN20(0.125, 16, average_time=True), (1, 112, 96), "voice")
    pairing = pair_layers(merge_graphs(face=face, voice=voice), ("face", "voice"))
    reasons = list(pairing.kept.values())
    assert reasons.count("the first layer") == 2
    assert reasons.count("32 groups") == 2
    assert reasons.count("64 groups") == 1
    tensors = [t for pair in pairing.pairs for t in pair.tensors]
    assert len(tensors) == len(set(tensors)) == 6 + 20
    assert sum(len(pair.tensors) == 2 for pair in pairing.pairs) == 6
    assert sum(len(pair.tensors) == 1 for pair in pairing.pairs) == 14


def test_cnn20_with_vgg11():
    face = export_torch(CNN20(0.125, 16), (1, 112, 96), "face")
    voice = export_torch(VGG11(0.125, 16), (1, 112, 96), "voice")
    pairing = pair_layers(merge_graphs(face=face, voice=voice), ("face", "voice"))
    shared = [pair for pair in pairing.pairs if len(pair.tensors) == 2]
    assert len(shared) == 8  # all of VGG11 but the first layer
    assert len(pairing.pairs) == 20
    for entry in ("face", "voice"):  # in the order of the network
        order = [t for pair in pairing.pairs for t in pair.tensors if t.startswith(entry)]
        layers = [x.weight for x in face.layers if hasattr(x, "weight")]
        if entry == "face":
            assert [t.removeprefix("face/") for t in order] == layers[1:]
