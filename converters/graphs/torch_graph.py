"""graph -> torch for training and calibration, and the ways back."""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any, cast

import numpy as np

from edgeid.converters.networks.prelu import prelu
from edgeid.converters.onnx_import.model import import_onnx
from edgeid.runtime.encoding import Tensor, encode_float32
from edgeid.runtime.errors import EngineError, GraphError, MissingExtraError
from edgeid.runtime.graph import (
    Affine,
    AveragePool,
    Clip,
    Concat,
    Conv,
    Flatten,
    Gemm,
    Graph,
    L2Normalize,
    Layer,
    MaxPool,
    PRelu,
    Reshape,
)

try:
    import torch
    from torch import nn
    from torch.nn import functional as F
except ImportError as error:
    raise MissingExtraError(
        "training and exporting need torch: pip install edgeid[convert]"
    ) from error

OPSET = 20

Inputs = list[torch.Tensor]


class GraphModule(nn.Module):
    """A graph as a torch module; every tensor of it is a float32 parameter.

    ``weight(name)`` is the parameter of a tensor; two layers that share a tensor share the
    parameter, across entries too. Parameter names in ``state_dict`` are the tensor names
    with "." written as %2E, which torch does not allow.
    """

    def __init__(self, graph: Graph, entries: tuple[str, ...]) -> None:
        super().__init__()
        graph.validate()
        self.graph = graph
        self.entries = entries
        layers = {layer.name: layer for name in entries for layer in graph.layers_of(name)}
        used = {tensor for layer in layers.values() for tensor in layer.tensor_names()}
        self.weights = nn.ParameterDict(
            {_quoted(n): nn.Parameter(_tensor(graph.tensors[n])) for n in sorted(used)}
        )
        self.tensor_names = tuple(sorted(used))

    def weight(self, name: str) -> torch.Tensor:
        """The parameter of a tensor of the graph."""
        return cast(torch.Tensor, self.weights[_quoted(name)])

    def forward(self, x: torch.Tensor, entry: str | None = None) -> torch.Tensor:
        """Run an entry (the first where none is named) on float32 (N, *entry.shape)."""
        return self.activations(x, entry)[self.graph.entry(entry or self.entries[0]).output]

    def activations(self, x: torch.Tensor, entry: str | None = None) -> dict[str, torch.Tensor]:
        """Every activation of an entry by name, for losses on layers."""
        name = entry or self.entries[0]
        if name not in self.entries:
            raise GraphError(f"no entry {name!r}; the module has {list(self.entries)}")
        values = {self.graph.entry(name).input: x}
        for layer in self.graph.layers_of(name):
            values[layer.output] = self._run(layer, [values[i] for i in layer.inputs])
        return values

    def _run(self, layer: Layer, inputs: Inputs) -> torch.Tensor:
        x = inputs[0]
        if isinstance(layer, Conv):
            return self._conv(layer, x)
        if isinstance(layer, Gemm):
            return F.linear(x, self.weight(layer.weight), self._bias(layer))
        if isinstance(layer, PRelu):
            slope = self.weight(layer.slope)
            if not self.training:
                return F.prelu(x, slope)
            return prelu(x, slope)
        if isinstance(layer, Affine):
            weight, bias = self.weight(layer.weight), self.weight(layer.bias)
            return x * _along(weight, x) + _along(bias, x)
        if isinstance(layer, Clip):
            return x.clamp(layer.low, layer.high)
        if isinstance(layer, MaxPool):
            padded = _padded(x, layer.pad, -math.inf)
            return F.max_pool2d(padded, layer.kernel, layer.stride)
        if isinstance(layer, AveragePool):
            return _average_pool(layer, x)
        if isinstance(layer, Reshape):
            return _reshaped(layer, x)
        if isinstance(layer, L2Normalize):
            return F.normalize(x, dim=1, eps=layer.eps)
        return _PLAIN[layer.op](inputs)

    def _bias(self, layer: Conv | Gemm) -> torch.Tensor | None:
        return None if layer.bias is None else self.weight(layer.bias)

    def _conv(self, layer: Conv, x: torch.Tensor) -> torch.Tensor:
        top, left, bottom, right = layer.pad
        pad: Any = 0
        if top == bottom and left == right:
            pad = (top, left)  # padding inside the convolution saves a copy
        else:
            x = _padded(x, layer.pad, 0.0)
        weight, bias = self.weight(layer.weight), self._bias(layer)
        return F.conv2d(x, weight, bias, layer.stride, pad, 1, layer.groups)


_PLAIN: dict[str, Callable[[Inputs], torch.Tensor]] = {
    "Relu": lambda inputs: F.relu(inputs[0]),
    "Add": lambda inputs: inputs[0] + inputs[1],
    "Mul": lambda inputs: inputs[0] * inputs[1],
    "GlobalAveragePool": lambda inputs: inputs[0].mean(dim=(2, 3), keepdim=True),
    Flatten.op: lambda inputs: inputs[0].flatten(1),
    Concat.op: lambda inputs: torch.cat(inputs, dim=1),
}


def to_torch(graph: Graph, entry: str | None = None) -> GraphModule:
    """A torch module that computes an entry of the graph, or all of them (entry None).

    Raises:
        GraphError: the graph is not valid, or has no such entry.
    """
    names = tuple(e.name for e in graph.entries) if entry is None else (graph.entry(entry).name,)
    return GraphModule(graph, names)


def from_torch(module: GraphModule) -> Graph:
    """The module's graph with its present parameters as float32 tensors.

    Tensors that the module does not hold stay as they are.

    Raises:
        GraphError: a parameter has become NaN or infinite, or changed its shape.
    """
    tensors = dict(module.graph.tensors)
    for name in module.tensor_names:
        values = module.weight(name).detach().to("cpu", torch.float32).numpy()
        try:
            tensors[name] = encode_float32(values.copy())
        except GraphError as error:
            raise GraphError(f"tensor {name!r}: {error}") from error
    graph = replace(module.graph, tensors=tensors)
    graph.validate()
    return graph


def export_torch(module: nn.Module, shape: tuple[int, ...], entry: str = "face") -> Graph:
    """A torch network as a graph, through torch.onnx.export.

    Args:
        module: takes one float32 (N, *shape), gives one tensor; exported in eval mode and
            put back into the mode it was in.
        shape: of the input, without the batch.
        entry: name of the entry.

    Raises:
        EngineError: torch cannot export it, or with another opset than was asked for.
        UnsupportedOperatorError, GraphError: see ``import_onnx``.
    """
    modes = {m: m.training for m in module.modules()}
    module.eval()
    example = torch.zeros(2, *shape, device=_device(module))
    batch = torch.export.Dim("batch", min=1, max=4096)
    try:
        return exported_graph(module, entry, args=(example,), dynamic_shapes=({0: batch},))
    finally:
        for m, training in modes.items():
            m.training = training


def exported_graph(
    module: nn.Module | torch.export.ExportedProgram, entry: str, **how: Any
) -> Graph:
    """A network or an exported program as a graph; raises as ``export_torch`` does.

    Args:
        module, entry: what is exported, under which name.
        how: further arguments of ``torch.onnx.export``.
    """
    model = _exported(module, **how)
    opset = {o.domain: o.version for o in model.opset_import}.get("", 0)
    if opset != OPSET:  # older exporters stay at 18 and say nothing
        raise EngineError(f"torch exported opset {opset}, asked for {OPSET}")
    return import_onnx(model.SerializeToString(), entry)


def _exported(module: nn.Module | torch.export.ExportedProgram, **how: Any) -> Any:
    # it warns that torchvision, which nothing here needs, is not installed
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")  # deprecations inside the exporter itself
            program = torch.onnx.export(
                module, dynamo=True, opset_version=OPSET, verbose=False, **how
            )
    except Exception as error:
        raise EngineError(f"torch cannot export {type(module).__name__}: {error}") from error
    if program is None:
        raise EngineError(f"torch exported nothing for {type(module).__name__}")
    return program.model_proto


def _device(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _quoted(name: str) -> str:
    return name.replace("%", "%25").replace(".", "%2E")


def _tensor(tensor: Tensor) -> torch.Tensor:
    return torch.from_numpy(np.array(tensor.decode(), dtype=np.float32))


def _along(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, *[1] * (x.ndim - 2))


def _padded(x: torch.Tensor, pad: tuple[int, int, int, int], value: float) -> torch.Tensor:
    top, left, bottom, right = pad
    return F.pad(x, (left, right, top, bottom), value=value) if any(pad) else x


def _average_pool(layer: AveragePool, x: torch.Tensor) -> torch.Tensor:
    # padding is not counted, and may differ by side: averages of x and of ones, divided
    inside = _padded(torch.ones_like(x[:1, :1]), layer.pad, 0.0)
    total = F.avg_pool2d(_padded(x, layer.pad, 0.0), layer.kernel, layer.stride)
    return total / F.avg_pool2d(inside, layer.kernel, layer.stride)


def _reshaped(layer: Reshape, x: torch.Tensor) -> torch.Tensor:
    known = math.prod(n for n in layer.shape if n != -1)
    free = math.prod(x.shape[1:]) // known
    return x.reshape(len(x), *(free if n == -1 else n for n in layer.shape))
