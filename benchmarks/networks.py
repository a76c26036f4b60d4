"""The networks of ``benchmarks/engines.py``, in every format that its contenders read.

Speed does not depend on what the weights are worth, so the CNN-20 pairs are not trained: weights
are drawn from a fixed seed, batch norms settled on the samples inside the package, K-means
codebooks (K=64, r=8, shared by the two networks) put in every layer but the first. All formats of
a folder are made of the same decoded codewords. In the ReLU variant every PReLU is a ReLU, which
other engines' int8 fuses into their convolutions: their best case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from edgeid.converters.codebook.kmeans import kmeans
from edgeid.converters.codebook.subvectors import cut, index_grid
from edgeid.converters.export.onnx_model import onnx_bytes
from edgeid.converters.export.sample_inputs import sample_inputs
from edgeid.converters.export.tflite_int8 import tflite_int8_bytes
from edgeid.converters.export.tflite_layers import tflite_bytes
from edgeid.converters.graphs.fully_connected import as_convolutions
from edgeid.converters.graphs.normalisation import fold_norms
from edgeid.converters.graphs.torch_graph import export_torch
from edgeid.converters.network_files import face_spec
from edgeid.converters.networks.cnn20 import CNN20, INPUT_SHAPE, settle_statistics
from edgeid.converters.onnx_import.model import import_onnx
from edgeid.converters.quantisation.activations import ActivationScales
from edgeid.converters.recipe import Context
from edgeid.runtime.codebook import make_codebook, quantise_codewords
from edgeid.runtime.encoding import FloatArray, Tensor, encode_float32, encode_int8
from edgeid.runtime.face import network_input
from edgeid.runtime.format import ModelFile, read_model, write_model
from edgeid.runtime.graph import Conv, Flatten, Gemm, Graph, Layer, PRelu, Relu, merge_graphs
from edgeid.runtime.model import Model
from edgeid.runtime.reference import ReferenceEngine

K, R = 64, 8
SEED = 4
WINDOWS = 3  # of speech that 3 s are cut into
FEWEST = 16  # channels: narrower layers are not coded
Samples = dict[str, FloatArray]


def cnn20_pair(width: float, samples: Samples, dim: int = 512) -> Graph:
    """CNN-20 for faces and for voices, untrained, with shared codebooks."""
    torch.manual_seed(SEED)
    graphs = {}
    for entry in ("face", "voice"):
        network = CNN20(width, dim)
        settle_statistics(network, [torch.from_numpy(samples[entry])])
        graphs[entry] = as_convolutions(export_torch(network.eval(), INPUT_SHAPE, entry))
    return _scaled(_coded(merge_graphs(**graphs)), samples)


def mobilefacenet(path: Path, samples: Samples) -> Graph:
    """The public MobileFaceNet with codebooks in its 1x1 and 3x3 layers, depth-wise in int8."""
    return _scaled(_coded(as_convolutions(import_onnx(path, "face"))), samples)


def with_relu(graph: Graph, samples: Samples) -> Graph:
    """Every PReLU a ReLU."""
    layers = tuple(
        Relu(layer.name, layer.inputs, layer.output) if isinstance(layer, PRelu) else layer
        for layer in graph.layers
    )
    read = {name for layer in layers for name in layer.tensor_names()}
    tensors = {name: tensor for name, tensor in graph.tensors.items() if name in read}
    return _scaled(replace(graph, layers=layers, tensors=tensors), samples)


def decoded(graph: Graph) -> Graph:
    """The same function in plain float32, batch norms folded: what other engines are given."""
    plain: dict[str, Tensor] = {
        name: encode_float32(tensor.decode()) for name, tensor in graph.tensors.items()
    }
    return _fully_connected(fold_norms(Graph(graph.entries, graph.layers, plain)))


def _fully_connected(graph: Graph) -> Graph:
    """Convolutions over a whole map, then Flatten, as the fully connected layers they were."""
    layers, tensors = list(graph.layers), dict(graph.tensors)
    writers: dict[str, Layer] = {}
    for place, layer in enumerate(layers):
        before = writers.get(layer.inputs[0])
        writers[layer.output] = layer
        if not isinstance(before, Conv) or not isinstance(layer, Flatten):
            continue
        weight = tensors[before.weight].decode()
        if before.groups > 1 or weight.shape[2:] == (1, 1):
            continue
        tensors[before.weight] = encode_float32(weight.reshape(len(weight), -1))
        flat = f"{layer.name}.map"
        layers[place] = Gemm(before.name, (flat,), layer.output, before.weight, before.bias)
        layers[layers.index(before)] = Flatten(layer.name, before.inputs, flat)
    changed = Graph(graph.entries, tuple(layers), tensors)
    changed.validate()
    return changed


def package_samples() -> Samples:
    """Inputs of the two CNN-20s from the photos and recordings inside the package."""
    folder = Path(str(files("edgeid") / "samples"))
    model = Model.load()
    found = sample_inputs(model, [folder], [folder])
    return {name: found[name] for name in ("face", "voice")}


def mobilefacenet_samples(path: Path) -> Samples:
    """The same photos as the MobileFaceNet takes them."""
    photos = sorted(Path(str(files("edgeid") / "samples")).glob("*.jpg"))
    model, spec = Model.load(), face_spec(import_onnx(path, "face"))
    crops = [model.read_face(photo, checks=False, several="largest").crop for photo in photos]
    return {"face": network_input(np.stack(crops), spec)}


def _coded(graph: Graph) -> Graph:
    """Codebooks in all wide layers, the n-th of each network sharing theirs; the rest int8."""
    tensors: dict[str, Tensor] = dict(graph.tensors)
    groups: dict[int, list[str]] = {}
    for entry in graph.entries:
        weighted = [x for x in graph.layers_of(entry.name) if isinstance(x, Conv | Gemm)]
        for number, layer in enumerate(weighted):
            shape = tensors[layer.weight].shape
            if (isinstance(layer, Conv) and layer.groups > 1) or min(shape[:2]) < FEWEST:
                tensors[layer.weight] = encode_int8(tensors[layer.weight].decode())
            else:
                groups.setdefault(number, []).append(layer.weight)
    for names in groups.values():
        tensors |= _shared_codebook({name: tensors[name] for name in names})
    return replace(graph, tensors=tensors)


def _shared_codebook(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts = {name: cut(torch.from_numpy(w.decode()), R) for name, w in weights.items()}
    vectors = torch.cat(list(parts.values()), dim=1)
    found = kmeans(vectors, torch.ones_like(vectors), K, seed=SEED, iterations=4)
    codewords, scale = quantise_codewords(found.codewords.numpy())
    rows = torch.split(found.indices, [part.shape[1] for part in parts.values()], dim=1)
    coded: dict[str, Tensor] = {}
    for (name, weight), own in zip(weights.items(), rows, strict=True):
        indices = index_grid(own, weight.shape).numpy()
        coded[name] = make_codebook(codewords, indices, weight.shape, scale)
    return coded


def _scaled(graph: Graph, samples: Samples) -> Graph:
    inputs = {entry.name: samples[entry.name] for entry in graph.entries}
    context = Context(inputs, Path(), SEED, progress=False)
    return ActivationScales().call(replace(graph, scales={}), context).graph


def write_folder(
    folder: Path,
    graph: Graph,
    samples: Samples,
    *,
    int8: bool,
    counts: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """The files of one network or pair; ``inputs.npz`` comes last and says that all are there.

    model.edgeid, and for each entry ENTRY.onnx, ENTRY.tflite and, with ``int8``,
    ENTRY.int8.onnx and ENTRY.int8.tflite; in inputs.npz one input of each entry, or as many
    as ``counts`` says, and what the reference engine answers to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_model(ModelFile(graph), folder / "model.edgeid")
    plain = decoded(graph)
    for entry in graph.entries:
        name, path = entry.name, folder / f"{entry.name}.onnx"
        path.write_bytes(onnx_bytes(plain, (name,), decoded=True))
        (folder / f"{name}.tflite").write_bytes(tflite_bytes(plain, name))
        if int8:
            quantise_onnx(path, folder / f"{name}.int8.onnx", samples[name])
            data = tflite_int8_bytes(plain, name, samples[name])
            (folder / f"{name}.int8.tflite").write_bytes(data)
    write_inputs(folder, plain, samples, counts)


def write_inputs(folder: Path, plain: Graph, samples: Samples, counts: Mapping[str, int]) -> None:
    """Inputs of each entry and their outputs; all that the measuring processes read."""
    engine = ReferenceEngine(plain)
    arrays = {e.name: samples[e.name][: counts.get(e.name, 1)] for e in plain.entries}
    outputs = {f"{name}_output": engine.run(name, x) for name, x in arrays.items()}
    np.savez(folder / "inputs.npz", **arrays, **outputs)  # type: ignore[arg-type]


def quantise_onnx(source: Path, out: Path, samples: FloatArray) -> None:
    """int8 QDQ as onnxruntime makes it: a scale an output channel, uint8 activations."""
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.rows = iter([{name: row[None]} for row in samples])

        def get_next(self) -> dict[str, FloatArray] | None:
            return next(self.rows, None)

    name = f"{source.stem}_input"
    q.quantize_static(
        source,
        out,
        Reader(name),
        quant_format=q.QuantFormat.QDQ,
        per_channel=True,
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
    )


def build(work: Path, model: Path, teacher: Path, wanted: Sequence[str]) -> None:
    """Write what is missing of the folders ``wanted`` below ``work``; "trained" always, for the
    model may be another.

    Args:
        model: a trained pair with codebooks, for "trained".
        teacher: the public MobileFaceNet in ONNX, for "mobilefacenet".
    """
    missing = [n for n in wanted if n == "trained" or not (work / n / "inputs.npz").is_file()]
    if not missing:
        return
    torch.set_num_threads(1)
    samples = package_samples()
    for name in missing:
        print(f"building {name}", flush=True)
        if name == "mobilefacenet":
            own = mobilefacenet_samples(teacher)
            write_folder(work / name, mobilefacenet(teacher, own), own, int8=False)
        elif name == "trained":
            spec = Model.load(model).face_spec
            mirrored = spec is not None and spec.mirror
            counts = {"face": 2 if mirrored else 1, "voice": WINDOWS}
            write_folder(work / name, _trained(model), samples, int8=False, counts=counts)
        else:
            width = float(name.removesuffix("-relu").removeprefix("cnn20-"))
            graph = cnn20_pair(width, samples)
            if name.endswith("-relu"):
                graph = with_relu(graph, samples)
            write_folder(work / name, graph, samples, int8=name.endswith("-relu"))


def _trained(path: Path) -> Graph:
    """Face and voice of a model file."""
    graph = read_model(path).graph
    layers = {layer.name for entry in ("face", "voice") for layer in graph.layers_of(entry)}
    kept = tuple(layer for layer in graph.layers if layer.name in layers)
    read = {name for layer in kept for name in layer.tensor_names()}
    activations = {name for layer in kept for name in (*layer.inputs, layer.output)}
    return replace(
        graph,
        entries=tuple(graph.entry(name) for name in ("face", "voice")),
        layers=kept,
        tensors={name: tensor for name, tensor in graph.tensors.items() if name in read},
        scales={name: scale for name, scale in graph.scales.items() if name in activations},
    )
