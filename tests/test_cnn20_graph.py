"""CNN-20 networks out of model files, to be trained further."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from edgeid.converters.graphs.output_scales import with_output_scales  # noqa: E402
from edgeid.converters.graphs.torch_graph import export_torch  # noqa: E402
from edgeid.converters.networks.cnn20 import CNN20, INPUT_SHAPE, settle_statistics  # noqa: E402
from edgeid.converters.networks.cnn20_graph import cnn20_of_graph, settle_norms  # noqa: E402
from edgeid.converters.networks.vgg11 import VGG11  # noqa: E402
from edgeid.runtime.errors import GraphError  # noqa: E402
from edgeid.runtime.graph import Conv  # noqa: E402


def inputs(count, seed=0):
    return torch.randn(count, *INPUT_SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[False, True], ids=["face", "voice"])
def network(request):
    """With norms, biases and slopes that are not what they start as."""
    torch.manual_seed(1)
    made = CNN20(0.125, 8, average_time=request.param)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    settle_statistics(made, [inputs(8, 5)])
    return made


@pytest.mark.parametrize("scaled", [False, True])
def test_a_graph_becomes_the_network_it_was(network, scaled):
    graph = export_torch(network, INPUT_SHAPE, "face")
    if scaled:  # as the files with codebooks have it
        coded = [layer.weight for layer in graph.layers if isinstance(layer, Conv)][1:]
        graph = with_output_scales(graph, coded)
    found = cnn20_of_graph(graph, "face")
    assert (found.width, found.dim) == (0.125, 8)
    assert found.average_time == network.average_time
    x = inputs(3)
    with torch.no_grad():
        torch.testing.assert_close(found(x), network(x), rtol=1e-3, atol=1e-3)
        lengths = found.trunk[1].first[0].weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_settled_norms_keep_the_outputs_and_know_the_batches(network):
    found = cnn20_of_graph(export_torch(network, INPUT_SHAPE, "face"), "face")
    x = inputs(6)
    before = found(x).detach()
    settle_norms(found, [x[:3], x[3:]])
    torch.testing.assert_close(found(x).detach(), before, rtol=1e-3, atol=1e-3)
    norm = found.trunk[0][1]
    seen = found.trunk[0][0](x).detach()
    torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    variance = seen.var((0, 2, 3), correction=0)
    torch.testing.assert_close(norm.running_var, variance, rtol=1e-3, atol=1e-4)
    # training normalises by the batch, and so starts from the same features
    settled = found.trunk(x).detach()
    torch.testing.assert_close(found.train().trunk(x).detach(), settled, rtol=1e-2, atol=1e-2)


def test_another_network_is_refused():
    graph = export_torch(VGG11(0.125, 8).eval(), INPUT_SHAPE, "face")
    with pytest.raises(GraphError, match="face network is no CNN-20"):
        cnn20_of_graph(graph, "face")
