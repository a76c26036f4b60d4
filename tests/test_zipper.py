"""Zipper: blocks, means, the sequence of merged models and its resumption, the baseline."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import DataError, GraphError
from edgeid.runtime.format import read_model
from edgeid.runtime.graph import (
    Entry,
    Flatten,
    Gemm,
    GlobalAveragePool,
    Graph,
    merge_graphs,
)

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from edgeid.converters.graphs.normalisation import fold_norms  # noqa: E402
from edgeid.converters.graphs.weight_calibration import (  # noqa: E402
    Task,
    regression_loss,
    regression_task,
)
from edgeid.converters.recipe import (  # noqa: E402
    Context,
    recipe_from_json,
    recipe_to_json,
    run_recipe,
)
from edgeid.converters.zipper.naive_sharing import NaiveSharing  # noqa: E402
from edgeid.converters.zipper.shared_layers import (  # noqa: E402
    absorb_average,
    block_pairs,
    paired_layers,
    share_weights,
    shared_name,
    weighted_layers,
)
from edgeid.converters.zipper.shared_training import (  # noqa: E402
    calibrate_further,
    regression_tasks,
)
from edgeid.converters.zipper.zipper import (  # noqa: E402
    CNN20_BLOCKS,
    Zipper,
    align_block,
    blocks_of,
    merge_block,
    merge_sequence,
)

from .data import ROOT  # noqa: E402
from .networks import inputs, residual_graph  # noqa: E402
from .test_filter_alignment import shuffled  # noqa: E402

ENTRIES = ("face", "voice")
QUICK = Zipper(fraction=1.0, batch=4, settle=2)


@pytest.fixture(scope="module")
def pair() -> Graph:
    return merge_graphs(face=residual_graph(1), voice=residual_graph(2, average=True))


@pytest.fixture
def context(tmp_path) -> Context:
    samples = {"face": inputs(8), "voice": inputs(8, seed=1)}
    return Context(samples, work=tmp_path / "work", progress=False)


def run(graph, entry, x, engine="reference"):
    return make_engine(graph, engine).run(entry, x)


def shared(graph) -> int:
    return sum(a.weight == b.weight for a, b in paired_layers(graph, ENTRIES))


def tensors_equal(a: Graph, b: Graph) -> bool:
    return a.layers == b.layers and all(
        np.array_equal(tensor.decode(), b.tensors[name].decode())
        for name, tensor in a.tensors.items()
    )


def test_the_blocks_of_cnn20():
    # paper 004, section IV-A: 1st, 2nd-3rd, 4th, 5th-6th, 7th-8th, 9th, 10th-11th, 12th-13th,
    # 14th-15th, 16th-17th, 18th-19th and 20th-21st
    assert CNN20_BLOCKS == (
        (1,), (2, 3), (4,), (5, 6), (7, 8), (9,),
        (10, 11), (12, 13), (14, 15), (16, 17), (18, 19), (20, 21),
    )  # fmt: skip
    assert blocks_of(21) == CNN20_BLOCKS
    assert blocks_of(3) == ((1,), (2,), (3,))
    assert blocks_of(3, ((1, 2), (3,))) == ((1, 2), (3,))


@pytest.mark.parametrize(
    "grouping", [((1,),), ((2,), (1,), (3,)), ((1, 2), (2, 3)), ((1, 2, 3), ())]
)
def test_groupings_that_do_not_hold_every_layer_once(grouping):
    with pytest.raises(GraphError, match=r"layers 1\.\.3 in order"):
        blocks_of(3, grouping)


def two_layers(w1, w2) -> Graph:
    graphs = [
        Graph(
            (Entry("e", "x", (2,), "y"),), (Gemm("fc", ("x",), "y", "w"),), {"w": encode_float32(w)}
        )
        for w in (w1, w2)
    ]
    return merge_graphs(face=graphs[0], voice=graphs[1])


def test_the_mean_by_hand():
    graph = two_layers([[3, 4], [0, 0]], [[10, 0], [1, 1]])
    named = [(*paired_layers(graph, ENTRIES)[0], "shared/01.weight")]
    plain = share_weights(graph, named, balance=False)
    assert plain.tensors.keys() == {"shared/01.weight"}
    assert plain.tensors["shared/01.weight"].decode().tolist() == [[6.5, 2], [0.5, 0.5]]
    # (3, 4) is brought to length 10 first; a filter of zeros stays one
    even = share_weights(graph, named, balance=True)
    assert even.tensors["shared/01.weight"].decode() == pytest.approx(
        np.array([[8, 4], [0.5, 0.5]])
    )
    with pytest.raises(GraphError, match=r"'z'.* share these weights already"):
        share_weights(
            replace(graph, layers=(*graph.layers, Gemm("z", ("face/x",), "z", "face/w"))),
            named,
            False,
        )


@pytest.mark.parametrize("distance", ["score", "filter"])
@pytest.mark.parametrize("balance", [True, False])
def test_merging_a_network_with_a_shuffled_copy_of_itself_loses_nothing(distance, balance):
    one = residual_graph(1, channels=(4, 5, 6, 7))
    graph = merge_graphs(face=shuffled(one, 3), voice=one)
    x = inputs(4)
    expected = run(graph, "voice", x)
    options = Zipper(distance=distance)
    numbers = range(1, 22)
    merged, _ = align_block(graph, numbers, options)
    pairs = block_pairs(merged, numbers, ENTRIES)
    named = [(a, b, shared_name(n)) for n, (a, b) in zip(numbers, pairs, strict=True)]
    merged = fold_norms(share_weights(merged, named, balance))
    assert shared(merged) == 21
    for entry in ENTRIES:
        assert np.abs(run(merged, entry, x) - expected).max() < 1e-5
    # without alignment the same mean destroys it
    unaligned, _ = align_block(graph, numbers, replace(options, distance=None))
    assert np.abs(run(share_weights(unaligned, named, False), "voice", x) - expected).max() > 0.1


def test_a_whole_round_on_a_shuffled_copy_loses_nothing(tmp_path):
    one = residual_graph(1, channels=(4, 5, 6, 7))
    graph = merge_graphs(face=shuffled(one, 3), voice=one)
    x = inputs(16)
    tasks = [regression_task(graph, entry, x, 16) for entry in ENTRIES]
    # one batch of all samples, so that statistics are those of the same inputs throughout
    models = list(
        merge_sequence(graph, tasks, Zipper(merging="mean", epochs=0, settle=1), tmp_path)
    )
    for entry in ENTRIES:
        before, after = run(graph, entry, x), run(models[-1].graph, entry, x)
        assert np.abs(before - after).max() < 1e-3 * np.abs(before).max()


def test_averaging_is_absorbed():
    graph, x = residual_graph(2, average=True), inputs(3)
    layer = weighted_layers(graph, "face")[-1]
    assert graph.tensors[layer.weight].shape == (5, 6 * 2)
    wide = absorb_average(graph, "face", layer)
    assert wide.tensors[layer.weight].shape == (5, 6 * 2 * 2)
    assert "AveragePool" not in {one.op for one in wide.layers}
    assert np.allclose(run(wide, "face", x), run(graph, "face", x), atol=1e-5)
    assert absorb_average(wide, "face", layer) is wide


def test_global_averaging_is_absorbed():
    layers = (
        GlobalAveragePool("p", ("x",), "a"),
        Flatten("f", ("a",), "b"),
        Gemm("fc", ("b",), "y", "w"),
    )
    graph = Graph((Entry("e", "x", (2, 1, 2), "y"),), layers, {"w": encode_float32([[2, 6]])})
    wide = absorb_average(graph, "e", layers[2])
    assert wide.tensors["w"].decode().tolist() == [[1, 1, 3, 3]]
    x = np.arange(4, dtype=np.float32).reshape(1, 2, 1, 2)
    assert run(wide, "e", x).tolist() == run(graph, "e", x).tolist() == [[16.0]]


def test_networks_of_different_architecture():
    face = residual_graph(1)
    with pytest.raises(GraphError, match="21 layers with weights, 'voice' 19"):
        paired_layers(merge_graphs(face=face, voice=residual_graph(1, units=(1, 1, 4, 1))), ENTRIES)
    other = residual_graph(1, channels=(3, 5, 4, 6))
    with pytest.raises(GraphError, match=r"layer 4: .*\(4, 3, 3, 3\).*\(5, 3, 3, 3\)"):
        paired_layers(merge_graphs(face=face, voice=other), ENTRIES)
    with pytest.raises(GraphError, match="layer 21"):  # embeddings of different dimension
        paired_layers(merge_graphs(face=face, voice=residual_graph(1, dim=6)), ENTRIES)
    with pytest.raises(GraphError, match="layer 21"):  # another input size
        paired_layers(merge_graphs(face=face, voice=residual_graph(1, size=48)), ENTRIES)
    with pytest.raises(GraphError, match="no entry 'iris'"):
        paired_layers(merge_graphs(face=face, voice=face), ("face", "iris"))


def test_the_sequence_is_saved_and_resumed(pair, context, tmp_path):
    tasks = regression_tasks(pair, QUICK, context)
    whole = list(merge_sequence(pair, tasks, QUICK, tmp_path / "whole"))
    assert [model.blocks for model in whole] == list(range(13))
    assert [shared(model.graph) for model in whole] == [
        0, 1, 3, 4, 6, 8, 9, 11, 13, 15, 17, 19, 21,
    ]  # fmt: skip
    assert len(list((tmp_path / "whole").glob("*.edgeid"))) == 13
    assert tensors_equal(read_model(tmp_path / "whole" / "00.edgeid").graph, pair)
    assert whole[10].weights < whole[5].weights < whole[1].weights
    assert whole[10].size == (tmp_path / "whole" / "10.edgeid").stat().st_size
    assert whole[3].figures["distance after"] <= whole[3].figures["distance before"]
    for model in whole:
        for entry in ENTRIES:
            assert np.isfinite(run(model.graph, entry, context.inputs(entry), "onnxruntime")).all()

    rounds = 0

    def interrupted(items, _what):
        nonlocal rounds
        rounds += 1
        for item in items:
            if rounds == 6 and item == 1:
                raise KeyboardInterrupt
            yield item

    work = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        list(merge_sequence(pair, tasks, QUICK, work, track=interrupted))
    assert sorted(path.name for path in work.iterdir()) == [f"{n:02}.edgeid" for n in range(6)]
    # fewer blocks at first, one file damaged: what is whole is kept
    (work / "05.edgeid").write_bytes((work / "05.edgeid").read_bytes()[:-1])
    kept = (work / "04.edgeid").stat().st_mtime_ns
    list(merge_sequence(pair, tasks, replace(QUICK, blocks=7), work))
    list(merge_sequence(pair, tasks, QUICK, work))
    assert (work / "04.edgeid").stat().st_mtime_ns == kept
    for number in range(13):
        name = f"{number:02}.edgeid"
        assert (work / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    with pytest.raises(DataError, match="other networks or with other options"):
        next(merge_sequence(pair, tasks, replace(QUICK, rate=1e-4), work))
    with pytest.raises(DataError, match=r"tasks for \['face'\]"):
        next(merge_sequence(pair, tasks[:1], QUICK, work))


def test_calibration_brings_the_embeddings_back(context, tmp_path):
    small = {"channels": (4, 6), "units": (1, 0)}
    pair = merge_graphs(face=residual_graph(1, **small), voice=residual_graph(2, **small))
    found = {}
    for epochs in (0, 30):
        options = replace(QUICK, epochs=epochs, batch=8, rate=3e-3, settle=1)
        tasks = regression_tasks(pair, options, context)
        *_, last = merge_sequence(pair, tasks, options, tmp_path / str(epochs))
        assert last.blocks == 5
        aims = [torch.from_numpy(run(pair, e, context.inputs(e))) for e in ENTRIES]
        got = [torch.from_numpy(run(last.graph, e, context.inputs(e))) for e in ENTRIES]
        unit = torch.nn.functional.normalize
        losses = [regression_loss(y, (y, unit(aim))) for y, aim in zip(got, aims, strict=True)]
        found[epochs] = float(sum(losses))
    assert found[30] < 0.5 * found[0]


def test_further_calibration_keeps_what_is_shared(pair, context):
    tasks = regression_tasks(pair, QUICK, context)
    merged, _ = merge_block(pair, (1,), tasks, replace(QUICK, epochs=0), (1, 1))
    further, figures = calibrate_further(merged, tasks, QUICK, 1)
    assert shared(further) == shared(merged) == 1
    assert figures.keys() == {"loss/face", "loss/voice"}
    assert not tensors_equal(further, merged)


def test_the_last_model_is_finished(pair, context, tmp_path):
    options = replace(QUICK, blocks=3)
    tasks = regression_tasks(pair, options, context)
    plain, finished = (
        list(merge_sequence(pair, tasks, each, tmp_path / str(each.finish)))
        for each in (options, replace(options, finish=2, finish_rate=2e-3))
    )
    assert tensors_equal(plain[2].graph, finished[2].graph)
    assert not tensors_equal(plain[3].graph, finished[3].graph)
    assert shared(finished[3].graph) == 4
    further, _ = calibrate_further(plain[3].graph, tasks, replace(options, rate=2e-3), 2)
    x = context.inputs("face")
    assert np.allclose(run(further, "face", x), run(finished[3].graph, "face", x), atol=1e-3)
    with pytest.raises(DataError, match="other options"):  # it would go on from a finished one
        next(merge_sequence(pair, tasks, replace(options, finish=2, blocks=4), tmp_path / "2"))


def test_what_counts_more_is_kept_better(pair, context, tmp_path):
    found = {}
    for weights in ((1.0, 9.0), (9.0, 1.0)):
        options = replace(QUICK, blocks=4, epochs=0, weights=weights)
        tasks = regression_tasks(pair, options, context)
        *_, last = merge_sequence(pair, tasks, options, tmp_path / str(weights[0]))
        for entry in ENTRIES:
            x = context.inputs(entry)
            made = [torch.from_numpy(run(graph, entry, x)) for graph in (last.graph, pair)]
            found[entry, weights] = float(torch.cosine_similarity(*made).mean())
    assert found["face", (9.0, 1.0)] > found["face", (1.0, 9.0)]
    assert found["voice", (1.0, 9.0)] > found["voice", (9.0, 1.0)]


class Head(torch.nn.Module):
    """A classification loss with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.classes = torch.nn.Linear(5, 3)

    def forward(self, embedding, batch):
        return torch.nn.functional.cross_entropy(self.classes(embedding), batch[1])


def labelled(entry: str) -> Task:
    def draw(rng):
        label = rng.integers(3, size=4)
        x = inputs(4, seed=int(rng.integers(100))) + label[:, None, None, None]
        return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(label)

    return Task(entry, draw, Head(), 2)


def test_classification_heads_are_trained_and_resumed(pair, context, tmp_path):
    options = replace(QUICK, blocks=3)

    def tasks():
        return [labelled("face"), regression_tasks(pair, options, context)[1]]

    once = tasks()
    start = once[0].loss.classes.weight.detach().clone()
    list(merge_sequence(pair, once, options, tmp_path / "once"))
    assert not torch.equal(start, once[0].loss.classes.weight)
    list(merge_sequence(pair, tasks(), replace(options, blocks=2), tmp_path / "twice"))
    again = tasks()
    list(merge_sequence(pair, again, options, tmp_path / "twice"))
    assert torch.equal(again[0].loss.classes.weight, once[0].loss.classes.weight)
    for number in range(4):
        name = f"{number:02}.edgeid"
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
    (tmp_path / "twice" / "03.heads.pt").unlink()  # without its head a model is made again
    list(merge_sequence(pair, tasks(), options, tmp_path / "twice"))
    assert (tmp_path / "twice" / "03.heads.pt").is_file()


def test_a_loss_that_diverges(pair, context):
    tasks = list(regression_tasks(pair, QUICK, context))
    tasks[1] = replace(tasks[1], loss=lambda y, _batch: y.sum() * float("nan"))
    with pytest.raises(DataError, match=r"loss of 'voice' is nan at step 1 of 2: lower the rate"):
        merge_block(pair, (1,), tasks, QUICK, (1, 1))


@pytest.mark.parametrize(("count", "batch", "fraction"), [(1, 4, 1.0), (4, 1, 1.0), (4, 4, 0.0)])
def test_too_little_to_calibrate_on(pair, count, batch, fraction):
    with pytest.raises(DataError, match="face: "):
        regression_task(pair, "face", inputs(count), batch, fraction)


def test_the_part_of_the_samples_that_is_an_epoch(pair):
    assert regression_task(pair, "face", inputs(40), 4, 0.1).steps == 1
    assert regression_task(pair, "face", inputs(40), 4).steps == 10
    assert regression_task(pair, "face", inputs(3), 64).steps == 1


def test_a_recipe_with_the_zipper(pair, context):
    recipe = (replace(QUICK, blocks=2),)
    graph, reports = run_recipe(recipe, pair, context)
    assert shared(graph) == 3
    assert reports[0].bytes_after < reports[0].bytes_before
    assert len(reports[0].lines) == 3
    again, resumed = run_recipe(recipe, pair, context)
    assert resumed[0].resumed
    assert tensors_equal(again, graph)
    with pytest.raises(GraphError, match=r"'zipper'.*'face/layer01' is merged already"):
        run_recipe((*recipe, QUICK), pair, context)
    with pytest.raises(DataError, match="'outputs' or 'mean', not 'median'"):
        run_recipe((replace(QUICK, merging="median"),), pair, context)
    with pytest.raises(GraphError, match="13 blocks to merge, there are 12"):
        run_recipe((replace(QUICK, blocks=13),), pair, context)
    with pytest.raises(DataError, match="no sample inputs for entry 'voice'"):
        run_recipe((QUICK,), pair, replace(context, samples={"face": inputs(4)}))


def test_a_recipe_interrupted_in_a_round_goes_on_from_it(pair, context, tmp_path):
    recipe = (replace(QUICK, blocks=4),)
    expected, _ = run_recipe(recipe, pair, replace(context, work=tmp_path / "unbroken"))
    rounds = iter(range(99))

    class Cut(Context):
        def track(self, items, _what, total=None):  # noqa: ARG002
            number = next(rounds)
            for item in items:
                if number == 2 and item == 1:
                    raise KeyboardInterrupt
                yield item

    cut = Cut(context.samples, context.work, progress=False)
    with pytest.raises(KeyboardInterrupt) as caught:
        run_recipe(recipe, pair, cut)
    assert "those are kept, run again to go on" in caught.value.__notes__[0]
    kept = {p: p.stat().st_mtime_ns for p in context.work.glob("01-zipper-*/*.edgeid")}
    assert sorted(p.name for p in kept) == ["00.edgeid", "01.edgeid", "02.edgeid"]
    graph, reports = run_recipe(recipe, pair, context)
    assert not reports[0].resumed
    assert reports[0].lines[4].startswith("4 blocks merged")
    assert all(p.stat().st_mtime_ns == when for p, when in kept.items())
    assert tensors_equal(graph, expected)


KILLED = """
import os, signal, sys
from pathlib import Path
from edgeid.converters.recipe import Context, run_recipe
from tests.networks import inputs
from tests.test_zipper import ENTRIES, QUICK, merge_graphs, replace, residual_graph

class Killed(Context):
    def track(self, items, what, total=None):
        for item in items:
            if list(Path(sys.argv[1]).glob("*/01.edgeid")):
                os.kill(os.getpid(), signal.SIGKILL)
            yield item

pair = merge_graphs(face=residual_graph(1), voice=residual_graph(2, average=True))
samples = {"face": inputs(8), "voice": inputs(8, seed=1)}
context = Killed(samples, Path(sys.argv[1]), progress=False)
run_recipe((replace(QUICK, blocks=2),), pair, context)
"""


def test_a_killed_recipe_goes_on_from_the_last_round(pair, context):
    done = subprocess.run([sys.executable, "-c", KILLED, str(context.work)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    (kept,) = context.work.glob("01-zipper-*/01.edgeid")
    when = kept.stat().st_mtime_ns
    graph, _ = run_recipe((replace(QUICK, blocks=2),), pair, context)
    assert shared(graph) == 3
    assert kept.stat().st_mtime_ns == when
    fresh = replace(context, work=context.work / "unbroken")
    assert tensors_equal(graph, run_recipe((replace(QUICK, blocks=2),), pair, fresh)[0])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"entries": ("face", "face")}, "merged with itself"),
        ({"rate": float("nan")}, "rate nan"),
        ({"rate": -1e-3}, "rate -0.001"),
        ({"epochs": -1}, "epochs -1"),
        ({"settle": 0}, "settle 0"),
        ({"batch": 1}, "batch 1"),
        ({"fraction": 1.5}, "fraction 1.5"),
        ({"blocks": -1}, "-1 blocks to merge"),
    ],
)
def test_options_out_of_range(pair, context, changed, message):
    with pytest.raises((DataError, GraphError), match=message):
        replace(QUICK, **changed).requires(pair, context)


def test_the_options_survive_the_recipe_in_a_file():
    recipe = (
        Zipper(blocks=8, grouping=((1, 2), (3,)), distance="score"),
        NaiveSharing(Zipper(distance=None), start="voice"),
    )
    assert recipe_from_json(recipe_to_json(recipe), (Zipper, NaiveSharing)) == recipe
    with pytest.raises(DataError, match="distance"):
        Zipper.from_dict({"pass": "zipper", "distance": "cosine"})


def test_the_effect_is_checked(pair, context):
    with pytest.raises(GraphError, match=r"layer 1 .* is merged wrongly"):
        QUICK.ensures(pair, pair, context)


def test_the_naive_baseline_begins_with_one_network(pair, context):
    naive = NaiveSharing(replace(QUICK, epochs=0), start="face")
    graph, _ = run_recipe((naive,), pair, context)
    assert shared(graph) == 21
    for number, (a, _) in enumerate(paired_layers(pair, ENTRIES), 1):
        assert np.array_equal(
            graph.tensors[shared_name(number)].decode(), pair.tensors[a.weight].decode()
        )
    slopes = [graph.tensors[f"{entry}/layer05.slope"].decode() for entry in ENTRIES]
    assert np.array_equal(*slopes)
    part, _ = run_recipe((NaiveSharing(replace(QUICK, blocks=3), "voice"),), pair, context)
    assert shared(part) == 4
    later = "voice/layer05.slope"  # behind the shared layers each network goes on from its own
    start, _ = run_recipe(
        (NaiveSharing(replace(QUICK, blocks=3, epochs=0), "face"),), pair, context
    )
    assert np.array_equal(start.tensors[later].decode(), pair.tensors[later].decode())
    assert np.array_equal(
        start.tensors["voice/layer04.slope"].decode(), pair.tensors["face/layer04.slope"].decode()
    )
    with pytest.raises(GraphError, match="start 'iris'"):
        run_recipe((NaiveSharing(QUICK, "iris"),), pair, context)
