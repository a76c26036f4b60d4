"""graph <-> torch: the same answers on both sides, and trained values written back."""

from __future__ import annotations

import numpy as np
import pytest

from edgeid.runtime.encoding import encode_float32, encode_int8
from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import EngineError, GraphError, UnsupportedOperatorError
from edgeid.runtime.graph import Entry, Flatten, Gemm, Graph, PRelu, Relu, Reshape, merge_graphs

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from edgeid.converters.graphs.torch_graph import export_torch, from_torch, to_torch  # noqa: E402

W = np.array([[1, 2], [3, 4]], np.float32)


def shared() -> Graph:
    """Two entries whose layers share one weight."""
    layers = (
        Gemm("one", ("x",), "y", "fc.weight"),
        Gemm("two", ("u",), "h", "fc.weight"),
        PRelu("act", ("h",), "v", "a%2Eb.slope"),
    )
    tensors = {"fc.weight": encode_int8(W), "a%2Eb.slope": encode_float32(W[0])}
    return Graph((Entry("face", "x", (2,), "y"), Entry("voice", "u", (2,), "v")), layers, tensors)


def test_by_hand():
    module = to_torch(shared(), "voice")
    got = module(torch.tensor([[1.0, -1.0]]))
    assert got.tolist() == [[pytest.approx(-1, abs=0.05), pytest.approx(-2, abs=0.05)]]


def test_entries_share_the_parameters_of_shared_tensors():
    module = to_torch(shared())
    assert module.tensor_names == ("a%2Eb.slope", "fc.weight")
    assert len(list(module.parameters())) == 2
    x = torch.ones(1, 2)
    (module(x, "face").sum() + module(x, "voice").sum()).backward()
    # d/dw of two sums over the same w, and slopes that no positive value reaches
    assert module.weight("fc.weight").grad.tolist() == [[2, 2], [2, 2]]
    assert module.weight("a%2Eb.slope").grad.tolist() == [0, 0]
    with pytest.raises(GraphError, match="no entry 'iris'"):
        module(x, "iris")


def test_trained_values_are_written_back_under_their_names():
    graph = shared()
    module = to_torch(graph, "face")
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    module(torch.tensor([[1.0, 0.0]])).sum().backward()
    optimizer.step()
    trained = from_torch(module)
    before, after = (g.tensors["fc.weight"].decode() for g in (graph, trained))
    assert after == pytest.approx(before - np.array([[1, 0], [1, 0]]), abs=1e-6)
    assert trained.tensors["a%2Eb.slope"] is graph.tensors["a%2Eb.slope"]
    assert trained.layers == graph.layers
    # the graph keeps its own copy
    with torch.no_grad():
        module.weight("fc.weight").zero_()
    assert trained.tensors["fc.weight"].decode().any()


def test_state_dicts_load_back():
    module, other = to_torch(shared()), to_torch(shared())
    with torch.no_grad():
        module.weight("fc.weight").fill_(9)
    other.load_state_dict(module.state_dict())
    assert from_torch(other).tensors["fc.weight"].decode().tolist() == [[9, 9], [9, 9]]


def test_diverged_parameters_are_not_written_back():
    module = to_torch(shared())
    with torch.no_grad():
        module.weight("fc.weight")[0, 0] = float("nan")
    with pytest.raises(GraphError, match=r"'fc\.weight': .*NaN"):
        from_torch(module)


def test_reshape_keeps_the_batch_first():
    layers = (Reshape("r", ("x",), "a", (-1, 2)), Flatten("f", ("a",), "b"), Relu("z", ("b",), "y"))
    graph = Graph((Entry("face", "x", (4,), "y"),), layers, {})
    module = to_torch(graph)
    assert module.activations(torch.ones(3, 4))["a"].shape == (3, 2, 2)
    assert module(torch.ones(0, 4)).shape == (0, 4)


class Network(nn.Module):
    """Every kind of layer that our networks use."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.act1 = nn.PReLU(8)
        self.depth = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.norm2 = nn.BatchNorm2d(8)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(12 * 3 * 4, 16)
        self.norm3 = nn.BatchNorm1d(16)

    def forward(self, x):
        x = self.act1(self.norm1(self.first(x)))
        y = F.relu6(self.norm2(self.depth(x))) + x
        y = torch.cat([F.max_pool2d(y, 2), F.leaky_relu(self.squeeze(F.avg_pool2d(y, 2)))], 1)
        y = self.drop(y).view(y.size(0), -1)
        return F.normalize(self.norm3(self.fc(y)))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    torch.set_num_threads(1)
    module = Network()
    for norm in (module.norm1, module.norm2, module.norm3):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(norm.weight)
    return module


@pytest.fixture(scope="module")
def exported(network):
    network.train()
    graph = export_torch(network, (1, 12, 16), "voice")
    assert network.training  # put back into the mode it was in
    assert network.norm1.training
    network.eval()
    return graph


def test_a_torch_network_becomes_a_graph_that_answers_alike(network, exported):
    x = torch.randn(5, 1, 12, 16)
    with torch.no_grad():
        expected = network(x).numpy()
    for engine in ("reference", "onnxruntime"):
        got = make_engine(exported, engine).run("voice", x.numpy())
        assert np.abs(got - expected).max() < 1e-4
    with torch.no_grad():
        again = to_torch(exported, "voice")(x).numpy()
    assert np.abs(again - expected).max() < 1e-4


def test_batch_norms_are_folded_and_dropout_is_gone(exported):
    assert "Affine" not in {layer.op for layer in exported.layers}
    assert exported.entries[0].name == "voice"


def test_there_and_back_changes_nothing(exported):
    again = from_torch(to_torch(exported))
    for name, tensor in exported.tensors.items():
        assert again.tensors[name].decode().tobytes() == tensor.decode().tobytes()


def test_exported_graphs_merge(exported):
    both = merge_graphs(face=exported, voice=exported)
    x = np.ones((2, 1, 12, 16), np.float32)
    one = make_engine(exported, "reference").run("voice", x)
    assert np.array_equal(make_engine(both, "reference").run("face", x), one)


class Unsupported(nn.Module):
    def forward(self, x):
        return torch.softmax(x, dim=1)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_networks_that_cannot_be_exported():
    with pytest.raises(UnsupportedOperatorError, match="Softmax"):
        export_torch(Unsupported(), (3,))
    with pytest.raises(EngineError, match="torch cannot export Branching"):
        export_torch(Branching(), (3,))
