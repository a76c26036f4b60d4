"""The codebook pass on small networks: what it leaves as it is, stores, meets and resumes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgeid.converters.codebook import calibration as codebook_calibration  # noqa: E402
from edgeid.converters.codebook import coding as codebook_coding  # noqa: E402
from edgeid.converters.codebook.calibration import (  # noqa: E402
    CodebookCalibration,
    _Training,
    calibrate,
)
from edgeid.converters.codebook.coded_weights import Coding  # noqa: E402
from edgeid.converters.codebook.coding import code_graph, fit_channels  # noqa: E402
from edgeid.converters.codebook.module import CodebookModule  # noqa: E402
from edgeid.converters.codebook.pairing import pair_layers  # noqa: E402
from edgeid.converters.codebook.plan import embedding_cosines  # noqa: E402
from edgeid.converters.codebook.shared_codebooks import LayerCoding, SharedCodebooks  # noqa: E402
from edgeid.converters.graphs.fully_connected import as_convolutions  # noqa: E402
from edgeid.converters.graphs.output_scales import with_output_scales  # noqa: E402
from edgeid.converters.graphs.torch_graph import export_torch, to_torch  # noqa: E402
from edgeid.converters.networks.cnn20 import CNN20, settle_statistics  # noqa: E402
from edgeid.converters.networks.vgg11 import VGG11  # noqa: E402
from edgeid.converters.recipe import Context, run_recipe  # noqa: E402
from edgeid.runtime.codebook import Codebook  # noqa: E402
from edgeid.runtime.encoding import encode_float32  # noqa: E402
from edgeid.runtime.engine import make_engine  # noqa: E402
from edgeid.runtime.errors import DataError, GraphError  # noqa: E402
from edgeid.runtime.format import ModelFile, dump_model  # noqa: E402
from edgeid.runtime.graph import merge_graphs  # noqa: E402

from .networks import inputs, residual_graph  # noqa: E402

UNITS = (1, 1, 1, 0)
NO_TRAINING = CodebookCalibration(steps=0)


def small(seed, channels=(8, 8, 16, 16), units=UNITS, **options):
    return residual_graph(seed, channels, units, size=16, dim=8, **options)


@pytest.fixture(scope="module")
def graph():
    return merge_graphs(face=small(1), voice=small(2, average=True))


@pytest.fixture
def context(tmp_path):
    samples = {"face": inputs(48, 16, seed=1), "voice": inputs(48, 16, seed=2)}
    return Context(samples, tmp_path / "work", progress=False)


def coded_names(graph):
    return {name for name, tensor in graph.tensors.items() if isinstance(tensor, Codebook)}


def prepared(graph, k=16, r=4):
    """The graph that is coded, its pairs, and a coding for each."""
    pairing = pair_layers(as_convolutions(graph), ("face", "voice"))
    coded = [name for pair in pairing.pairs for name in pair.tensors]
    original = with_output_scales(as_convolutions(graph), coded)
    return original, pairing, (Coding(k, r),) * len(pairing.pairs)


# what the pass makes


def test_every_pair_shares_its_codewords(graph, context):
    made, (report,) = run_recipe(
        [SharedCodebooks(k=16, r=4, calibration=NO_TRAINING)], graph, context
    )
    coded = coded_names(made)
    assert len(coded) == 2 * (len(UNITS) + 2 * sum(UNITS))  # all but the first
    first = made.tensors["face/layer02.weight"]
    second = made.tensors["voice/layer02.weight"]
    assert np.array_equal(first.codewords, second.codewords)
    assert not np.array_equal(first.indices, second.indices)
    assert made.tensors["face/layer01.weight"].array.dtype == np.float16
    assert report.figures["shared_pairs"] == len(coded) // 2
    assert report.figures["bytes_saved_by_sharing"] > 0
    assert report.bytes_after < report.bytes_before / 2
    assert 0 < report.figures["used/face/layer02.weight + voice/layer02.weight"] <= 1
    x = context.samples["face"][:4]
    runs = [make_engine(made, e).run("face", x) for e in ("reference", "onnxruntime")]
    np.testing.assert_allclose(*runs, rtol=1e-3, atol=1e-3)


def test_finer_codebooks_are_closer_to_the_original(graph, context):
    cosines = []
    for k, r in ((16, 8), (64, 4), (256, 2)):
        made = SharedCodebooks(k=k, r=r, calibration=NO_TRAINING).call(graph, context)
        cosines.append(made.figures["cosine_clustered/face"])
    assert cosines == sorted(cosines)
    assert cosines[-1] > 0.99


def test_one_layer_as_the_user_wants_it(graph, context):
    own = LayerCoding("voice/layer03.weight", 256, 2)
    made = SharedCodebooks(k=16, r=8, layers=(own,), calibration=NO_TRAINING).call(graph, context)
    shapes = {n: made.graph.tensors[n].codewords.shape[1:] for n in coded_names(made.graph)}
    finer = {n for n, shape in shapes.items() if shape == (256, 2)}
    assert finer == {"face/layer03.weight", "voice/layer03.weight"}
    assert set(shapes.values()) == {(256, 2), (16, 8)}


def test_a_single_network_and_entries_left_alone(graph, context):
    step = SharedCodebooks(("voice",), k=16, r=4, calibration=NO_TRAINING)
    made, (report,) = run_recipe([step], graph, context)
    assert all(name.startswith("voice/") for name in coded_names(made))
    assert report.figures["bytes_saved_by_sharing"] == 0
    x = context.samples["face"][:4]
    before, after = (make_engine(g, "reference").run("face", x) for g in (graph, made))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)


def test_networks_of_other_depth_and_width(context):
    graph = merge_graphs(
        face=small(1, (8, 8, 24, 24), (2, 1, 1, 0)), voice=small(2, (8, 16, 16, 20), (1, 0, 1, 0))
    )
    step = SharedCodebooks(k=16, r=8, calibration=CodebookCalibration(steps=2, batch=8))
    made, (report,) = run_recipe([step], graph, context)
    assert report.figures["shared_pairs"] == 8  # the layers of the shorter network
    assert len(coded_names(made)) == 12 + 8
    widths = [
        (pair, made.tensors[pair[0]].shape[1], made.tensors[pair[1]].shape[1])
        for pair in (
            name.removeprefix("K/").split(" + ") for name in report.figures if "K/" in name
        )
        if len(pair) == 2
    ]
    unlike = [pair for pair, a, b in widths if a != b]
    assert unlike  # a narrower layer reads the first sub-spaces of its partner's codebooks
    for face, voice in unlike:
        tables = made.tensors[face].codewords, made.tensors[voice].codewords
        assert np.array_equal(*tables)


class TinyMobileFace(torch.nn.Module):
    """One inverted residual, then a depth-wise convolution over the whole map."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, 4, 1), torch.nn.PReLU(8))
        self.unit = torch.nn.Sequential(
            torch.nn.Conv2d(8, 16, 1),
            torch.nn.PReLU(16),
            torch.nn.Conv2d(16, 16, 3, 1, 1, groups=16),
            torch.nn.PReLU(16),
            torch.nn.Conv2d(16, 8, 1),
        )
        self.spread = torch.nn.Conv2d(8, 8, (28, 24), groups=8)
        self.linear = torch.nn.Conv2d(8, 12, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.linear(self.spread(x + self.unit(x))).flatten(1)


@pytest.mark.parametrize("other", ["mobilefacenet", "vgg11"])
def test_cnn20_with_another_architecture(other, tmp_path):
    torch.manual_seed(0)
    networks = {
        "face": TinyMobileFace() if other == "mobilefacenet" else VGG11(0.125, 8),
        "voice": CNN20(0.125, 8, average_time=True),
    }
    shape = (1, 112, 96)
    for network in networks.values():
        settle_statistics(network, [torch.randn(4, *shape)])
    graph = merge_graphs(**{n: export_torch(m, shape, n) for n, m in networks.items()})
    x = np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32)
    context = Context({"face": x, "voice": x}, tmp_path, progress=False)
    step = SharedCodebooks(k=16, r=8, reorder=False, calibration=NO_TRAINING)
    made, (report,) = run_recipe([step], graph, context)
    assert report.figures["shared_pairs"] == {"mobilefacenet": 3, "vgg11": 8}[other]
    assert report.bytes_after < report.bytes_before / 2
    for name in networks:
        assert np.isfinite(make_engine(made, "reference").run(name, x)).all()


# options


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (SharedCodebooks(k=48), "K = 48"),
        (SharedCodebooks(r=16), "r = 16"),
        (SharedCodebooks(("face", "other")), "no entry 'other'"),
        (SharedCodebooks(budget=0), "budget 0"),
        (SharedCodebooks(samples=0), "samples 0"),
        (SharedCodebooks(layers=(LayerCoding("face/layer01.weight", 16, 2),)), "not coded"),
        (SharedCodebooks(layers=(LayerCoding("face/layer02.weight", 17, 2),)), "K = 17"),
        (SharedCodebooks(narrow=100), "no layer of"),
        (SharedCodebooks(calibration=CodebookCalibration(rate=2.0)), "rate 2.0"),
        (SharedCodebooks(calibration=CodebookCalibration(batch=1)), "batch is 1"),
        (SharedCodebooks(calibration=CodebookCalibration(blend=1.5)), "blend 1.5"),
        (SharedCodebooks(calibration=CodebookCalibration(jitter=17)), "jitter 17"),
    ],
)
def test_options_that_make_no_sense(step, message, graph, context):
    with pytest.raises((DataError, GraphError), match=message):
        run_recipe([step], graph, context)


def test_no_samples_for_an_entry(graph, context):
    without = replace(context, samples={"face": context.samples["face"]})
    with pytest.raises(DataError, match="no sample inputs for entry 'voice'"):
        run_recipe([SharedCodebooks()], graph, without)


def test_options_survive_the_model_file():
    step = SharedCodebooks(
        budget=1000, layers=(LayerCoding("a", 16, 2),), calibration=CodebookCalibration(steps=3)
    )
    assert SharedCodebooks.from_dict(step.to_dict()) == step


# the parts


def test_scales_and_shifts_are_fitted_by_least_squares():
    torch.manual_seed(0)
    raw = torch.randn(50, 3, 4, 4)
    scale, shift = torch.tensor([2.0, -1.0, 1.0]), torch.tensor([0.5, 0.0, 3.0])
    along = (1, 3, 1, 1)
    wanted = raw * scale.reshape(along) * 1.3 + shift.reshape(along)
    found = fit_channels(raw, wanted, scale, torch.zeros(3))
    torch.testing.assert_close(found[0], 1.3 * scale, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], shift, rtol=1e-4, atol=1e-4)
    dead = fit_channels(torch.zeros(5, 3), torch.randn(5, 3), scale, shift)
    assert torch.equal(dead[0], scale)
    assert torch.equal(dead[1], shift)
    far = fit_channels(raw, 100 * wanted, scale, shift)
    torch.testing.assert_close(far[0], 2 * scale)


def test_the_module_computes_what_the_file_computes(graph, context):
    original, pairing, codings = prepared(graph)
    coded = code_graph(original, original, pairing, codings, context, samples=8)
    module = CodebookModule(coded.graph, coded.entries(), coded.pairs)
    x = context.samples["voice"][:3]
    stored = make_engine(coded.graph, "reference").run("voice", x)
    with torch.no_grad():
        trained = module(torch.from_numpy(x), "voice").numpy()
    np.testing.assert_allclose(trained, stored, rtol=1e-3, atol=1e-4)
    again = module.to_graph()
    assert coded_names(again) == coded_names(coded.graph)
    np.testing.assert_allclose(
        make_engine(again, "reference").run("voice", x), stored, rtol=1e-3, atol=1e-4
    )


def test_gradients_are_those_of_a_dense_network(graph, context):
    """The gradient of a codeword is the sum of those of the weights that name it."""
    original, pairing, codings = prepared(graph)
    coded = code_graph(original, original, pairing, codings, context, samples=8)
    module = CodebookModule(coded.graph, coded.entries(), coded.pairs)
    x = torch.from_numpy(context.samples["face"][:4])
    module(x, "face").square().sum().backward()
    name = "face/layer02.weight"
    dense = to_torch(coded.graph)
    dense(x, "face").square().sum().backward()
    gradient, gain = dense.weight(name).grad, coded.pairs[0].gains[name]
    stored = coded.graph.tensors[name].unpack_indices()
    expected = torch.zeros_like(module.codewords[0])
    for space, row, column, out in np.ndindex(*stored.shape):
        some = gradient[out, space * 4 : space * 4 + 4, row, column] * gain[space]
        expected[space, int(stored[space, row, column, out])] += some
    scale = float(expected.abs().max())
    torch.testing.assert_close(module.codewords[0].grad, expected, rtol=1e-3, atol=1e-3 * scale)


# calibration


def test_calibration_comes_closer_to_the_original(graph, context):
    original, pairing, codings = prepared(graph, k=16, r=8)
    coded = code_graph(original, original, pairing, codings, context, samples=32)
    options = CodebookCalibration(steps=40, batch=24, rate=3e-2)
    made = calibrate(original, coded, options, context)
    assert made.after < 0.7 * made.before
    for entry in ("face", "voice"):
        cosines = [
            embedding_cosines(original, g, context, (entry,))[entry]
            for g in (coded.graph, made.coded.graph)
        ]
        assert cosines[1] > cosines[0]


def test_cnn20_pair_calibrates_in_a_few_steps(tmp_path):
    torch.manual_seed(0)
    shape = (1, 112, 96)
    graphs = {}
    for name in ("face", "voice"):
        network = CNN20(0.125, 8, average_time=name == "voice")
        settle_statistics(network, [torch.randn(6, *shape)])
        graphs[name] = export_torch(network, shape, name)
    rng = np.random.default_rng(0)
    samples = {n: rng.standard_normal((6, *shape)).astype(np.float32) for n in graphs}
    context = Context(samples, tmp_path, progress=False)
    original, pairing, codings = prepared(merge_graphs(**graphs), 16, 8)
    coded = code_graph(original, original, pairing, codings, context, samples=6)
    options = CodebookCalibration(steps=4, batch=6, rate=1e-2, blend=0)
    made = calibrate(original, coded, options, context)
    assert made.after < made.before


def test_jittered_samples_are_moved_and_repeat_their_border(graph, context):
    original, pairing, codings = prepared(graph)
    coded = code_graph(original, original, pairing, codings, context, samples=8)
    x = np.arange(2 * 9 * 8, dtype=np.float32).reshape(2, 1, 9, 8)
    still, moving = (
        _Training(original, coded, CodebookCalibration(jitter=j), context)._moved for j in (0, 2)
    )
    assert still(x, np.random.default_rng(0)) is x
    wide = np.pad(x[1, 0], 2, mode="edge")
    places = {wide[t : t + 9, c : c + 8].tobytes(): (t, c) for t in range(5) for c in range(5)}
    found = {places[moving(x, np.random.default_rng(s))[1, 0].tobytes()] for s in range(200)}
    assert len(found) == 25  # every shift by up to 2 either way


def test_only_named_entries_are_mirrored(graph, context):
    original, pairing, codings = prepared(graph)
    coded = code_graph(original, original, pairing, codings, context, samples=8)
    training = _Training(original, coded, CodebookCalibration(mirrored=("face",)), context)
    chosen, rng = np.arange(30), np.random.default_rng(0)
    voices, faces = (training._varied(entry, chosen, rng) for entry in ("voice", "face"))
    np.testing.assert_array_equal(voices, context.samples["voice"][:30])
    originals = context.samples["face"][:30]
    same = [np.array_equal(a, b) for a, b in zip(faces, originals, strict=True)]
    turned = [np.array_equal(a, b[..., ::-1]) for a, b in zip(faces, originals, strict=True)]
    assert all(a != b for a, b in zip(same, turned, strict=True))
    assert 5 < sum(turned) < 25


def test_without_steps_nothing_changes(graph, context):
    original, pairing, codings = prepared(graph)
    coded = code_graph(original, original, pairing, codings, context, samples=8)
    made = calibrate(original, coded, NO_TRAINING, context)
    assert made.before == made.after
    x = context.samples["face"][:3]
    runs = [make_engine(g, "reference").run("face", x) for g in (coded.graph, made.coded.graph)]
    np.testing.assert_allclose(*runs, rtol=1e-4, atol=1e-5)


# resumption


def test_an_interrupted_calibration_ends_as_an_unbroken_one(graph, context, monkeypatch):
    original, pairing, codings = prepared(graph)
    coded = code_graph(original, original, pairing, codings, context, samples=8)
    options = CodebookCalibration(steps=12, batch=8, save_every=4)
    whole = calibrate(original, coded, options, replace(context, work=context.work / "whole"))
    step = codebook_calibration._Training.step

    def interrupted(self, number):
        if number == 9:
            raise KeyboardInterrupt
        step(self, number)

    monkeypatch.setattr(codebook_calibration._Training, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(original, coded, options, context)
    assert (context.work / codebook_calibration.CHECKPOINT).is_file()
    seen = []
    monkeypatch.setattr(
        codebook_calibration._Training, "step", lambda t, n: (seen.append(n), step(t, n))
    )
    resumed = calibrate(original, coded, options, context)
    assert seen == [8, 9, 10, 11]
    assert resumed.before == whole.before
    assert resumed.after == whole.after
    dumped = [dump_model(ModelFile(made.coded.graph)) for made in (whole, resumed)]
    assert dumped[0] == dumped[1]
    assert not (context.work / codebook_calibration.CHECKPOINT).exists()


def test_pairs_that_are_done_are_not_clustered_again(graph, context, monkeypatch):
    original, pairing, codings = prepared(graph)
    first = code_graph(original, original, pairing, codings, context, samples=8)
    kept = sorted(context.work.glob("pair-*.npz"))
    assert len(kept) == len(pairing.pairs)
    kept[1].write_bytes(kept[1].read_bytes()[:-10])  # damaged: made anew
    kept[2].unlink()
    cluster, count = codebook_coding.cluster, []
    monkeypatch.setattr(
        codebook_coding, "cluster", lambda *a, **k: (count.append(1), cluster(*a, **k))[1]
    )
    again = code_graph(original, original, pairing, codings, context, samples=8)
    assert len(count) == 2
    assert dump_model(ModelFile(first.graph)) == dump_model(ModelFile(again.graph))


def test_a_checkpoint_of_another_calibration(graph, context):
    original, pairing, codings = prepared(graph)
    coded = code_graph(original, original, pairing, codings, context, samples=8)
    path = context.work / codebook_calibration.CHECKPOINT
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(DataError, match="remove it to start anew"):
        calibrate(original, coded, CodebookCalibration(steps=2), context)


def test_equal_runs_give_equal_files(graph, context):
    step = SharedCodebooks(k=16, r=8, calibration=CodebookCalibration(steps=3, batch=8))
    works = [replace(context, work=context.work / str(n)) for n in range(2)]
    files = [dump_model(ModelFile(step.call(graph, work).graph)) for work in works]
    assert files[0] == files[1]
    assert not list(context.work.glob("*/*"))  # nothing is left of what a resumption needs


def test_small_vectors_are_half_as_large_unless_they_would_lose(graph, context):
    made = SharedCodebooks(k=16, r=4, calibration=NO_TRAINING).call(graph, context).graph
    kinds = {n: t.decode().dtype for n, t in made.tensors.items()}
    assert set(kinds.values()) == {np.dtype(np.float32)}  # as engines read them
    stored = {n: t.parts()["values"].dtype for n, t in made.tensors.items() if len(t.shape) == 1}
    assert set(stored.values()) == {np.dtype(np.float16)}
    tiny = {"face/layer01.bias": np.full(8, 1e-6, np.float32), "face/layer01.slope": None}
    tensors = {n: encode_float32(v) for n, v in tiny.items() if v is not None}
    changed = replace(graph, tensors=graph.tensors | tensors)
    kept = SharedCodebooks(k=16, r=4, calibration=NO_TRAINING).call(changed, context).graph
    assert kept.tensors["face/layer01.bias"].parts()["values"].dtype == np.float32
