"""Coding in turns, and what calibration trains: some entries, weights that are left, on what."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgeid.converters.codebook import turns as codebook_turns  # noqa: E402
from edgeid.converters.codebook.calibration import CodebookCalibration, calibrate  # noqa: E402
from edgeid.converters.codebook.coding import code_graph  # noqa: E402
from edgeid.converters.codebook.module import CodebookModule  # noqa: E402
from edgeid.converters.codebook.pairing import Pairing  # noqa: E402
from edgeid.converters.codebook.plan import embedding_cosines  # noqa: E402
from edgeid.converters.codebook.shared_codebooks import SharedCodebooks, _split  # noqa: E402
from edgeid.converters.codebook.turns import code_in_turns, forget_turns  # noqa: E402
from edgeid.converters.recipe import Context  # noqa: E402
from edgeid.runtime.codebook import Codebook  # noqa: E402
from edgeid.runtime.errors import DataError  # noqa: E402
from edgeid.runtime.format import ModelFile, dump_model  # noqa: E402
from edgeid.runtime.graph import merge_graphs  # noqa: E402

from .networks import inputs  # noqa: E402
from .test_codebook import NO_TRAINING, prepared, small  # noqa: E402

TRAINING = CodebookCalibration(steps=30, batch=24, rate=1e-2)


@pytest.fixture(scope="module")
def graph():
    return merge_graphs(face=small(1), voice=small(2, average=True))


@pytest.fixture
def context(tmp_path):
    samples = {"face": inputs(48, 16, seed=1), "voice": inputs(48, 16, seed=2)}
    return Context(samples, tmp_path / "work", progress=False)


def in_turns(graph, context, turns, training=TRAINING, r=8):
    original, pairing, codings = prepared(graph, 16, r)
    coded = code_in_turns(
        original,
        original,
        pairing,
        codings,
        context,
        samples=32,
        rounds=1,
        turns=turns,
        training=training,
    )
    return original, pairing, coded


def likeness(original, graph, context):
    return sum(embedding_cosines(original, graph, context, ("face", "voice")).values())


# coding in turns


def test_weights_that_are_left_make_good_what_was_lost(graph, context):
    samples = {"face": inputs(256, 16, seed=3), "voice": inputs(256, 16, seed=4)}
    context = replace(context, samples=samples)
    training = replace(TRAINING, steps=60, rate=3e-2)
    original, pairing, at_once = in_turns(graph, context, 1)
    works = replace(context, work=context.work / "turns")
    _, _, slowly = in_turns(graph, works, 5, training)
    names = {name for pair in pairing.pairs for name in pair.tensors}
    assert all(isinstance(slowly.graph.tensors[name], Codebook) for name in names)
    assert len(slowly.pairs) == len(pairing.pairs)
    loss = [2 - likeness(original, coded.graph, context) for coded in (at_once, slowly)]
    assert loss[1] < 0.8 * loss[0]  # measured: 0.6


def test_one_turn_trains_nothing(graph, context):
    original, pairing, codings = prepared(graph, 16, 8)
    plain = code_graph(original, original, pairing, codings, context, samples=32, rounds=1)
    _, _, coded = in_turns(graph, replace(context, work=context.work / "turn"), 1)
    assert dump_model(ModelFile(coded.graph)) == dump_model(ModelFile(plain.graph))


def test_pairs_of_earlier_turns_keep_their_indices(graph, context):
    original, pairing, codings = prepared(graph, 16, 8)
    part = Pairing(pairing.pairs[:2], pairing.kept)
    first = code_graph(original, original, part, codings, context, samples=32)
    whole = code_graph(
        original, first.graph, pairing, codings, context, samples=32, done=first.pairs
    )
    for before, after in zip(first.pairs, whole.pairs, strict=False):
        assert before is after
        for name in before.shapes:
            stored = whole.graph.tensors[name].decode()
            np.testing.assert_allclose(stored, before.decode(name).numpy(), rtol=1e-5, atol=1e-7)


def test_an_interrupted_turn_ends_as_an_unbroken_one(graph, context, monkeypatch):
    _, _, unbroken = in_turns(graph, replace(context, work=context.work / "whole"), 3)
    trained, turns = codebook_turns.calibrate, []

    def interrupted(*args):
        if len(turns) == 1:
            raise KeyboardInterrupt
        turns.append(args)
        return trained(*args)

    monkeypatch.setattr(codebook_turns, "calibrate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        in_turns(graph, context, 3)
    monkeypatch.setattr(codebook_turns, "calibrate", lambda *a: (turns.append(a), trained(*a))[1])
    _, _, resumed = in_turns(graph, context, 3)
    assert len(turns) == 2  # the first turn was not trained again
    dumped = [dump_model(ModelFile(coded.graph)) for coded in (unbroken, resumed)]
    assert dumped[0] == dumped[1]
    forget_turns(context.work)
    assert [path.name for path in context.work.iterdir()] == ["whole"]


def test_there_are_no_more_turns_than_pairs(graph, context, monkeypatch):
    sizes = []
    coder = codebook_turns.code_graph

    def counted(original, graph, part, *args, **options):
        sizes.append(len(part.pairs))
        return coder(original, graph, part, *args, **options)

    monkeypatch.setattr(codebook_turns, "code_graph", counted)
    _, pairing, _ = in_turns(graph, context, 100, replace(TRAINING, steps=0))
    assert sizes == list(range(1, len(pairing.pairs) + 1))


def test_the_pass_in_turns(graph, context):
    step = SharedCodebooks(k=16, r=8, turns=2, between=2, calibration=NO_TRAINING)
    made = step.call(graph, context)
    step.ensures(graph, made.graph, context)
    assert not list(context.work.rglob("*.npz"))
    assert not list(context.work.rglob("*.edgeid"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"turns": 0}, "turns 0"),
        ({"between": -1}, "between -1"),
        ({"calibration": CodebookCalibration(entries=("voise",))}, "'voise'"),
    ],
)
def test_bad_options(graph, context, options, message):
    with pytest.raises(DataError, match=message):
        SharedCodebooks(**options).requires(graph, context)


# what is trained


def test_other_entries_stay_as_they_are(graph, context):
    """Pairs of one weight each: nothing of the face is read by the voice."""
    original, pairing, codings = prepared(graph, 16, 8)
    pairs = [
        replace(pair, tensors=(name,), readers=(readers,))
        for pair in pairing.pairs
        for name, readers in zip(pair.tensors, pair.readers, strict=True)
    ]
    apart = Pairing(tuple(pairs), pairing.kept)
    coded = code_graph(original, original, apart, codings[:1] * len(pairs), context, samples=32)
    options = replace(TRAINING, steps=3, entries=("voice",))
    made = calibrate(original, coded, options, context).coded.graph
    changed = {
        name
        for name, tensor in made.tensors.items()
        if tensor.decode().tobytes() != coded.graph.tensors[name].decode().tobytes()
    }
    assert changed
    assert all(name.startswith("voice/") for name in changed)


def test_codewords_that_another_entry_reads_are_not_trained(graph, context):
    original, pairing, codings = prepared(graph, 16, 8)
    coded = code_graph(original, original, pairing, codings, context, samples=8)
    module = CodebookModule(coded.graph, coded.entries(), coded.pairs)
    shared = {id(parameter) for parameter in [*module.codewords, *module.gains]}
    some = module.trainable(("voice",))
    assert some
    assert not shared & {id(parameter) for parameter in some}
    assert shared <= {id(parameter) for parameter in module.trainable(("face", "voice"))}


def test_weights_that_are_not_coded_are_trained_only_where_named(graph, context):
    original, pairing, codings = prepared(graph, 16, 8)
    part = Pairing(pairing.pairs[:-1], pairing.kept)
    coded = code_graph(original, original, part, codings, context, samples=8)
    left = pairing.pairs[-1].tensors
    kept, trained = (
        calibrate(original, coded, replace(TRAINING, steps=2), context, free).coded.graph
        for free in ((), left)
    )
    for name in left:
        before = coded.graph.tensors[name].decode()
        assert np.array_equal(kept.tensors[name].decode(), before)
        assert not np.array_equal(trained.tensors[name].decode(), before)


# fresh inputs


def test_calibration_draws_fresh_inputs_where_there_are_any(graph, context):
    asked = []

    def fresh(count, rng):
        asked.append(count)
        return rng.standard_normal((count, *context.samples["voice"].shape[1:]), np.float32)

    original, pairing, codings = prepared(graph)
    coded = code_graph(original, original, pairing, codings, context, samples=8)
    options = replace(TRAINING, steps=3)
    calibrate(original, coded, options, replace(context, fresh={"voice": fresh}))
    assert asked == [24, 24, 24]


def test_turns_draw_inputs_of_their_own(graph, context):
    drawn = []

    def fresh(count, rng):
        drawn.append(rng.standard_normal((count, *context.samples["voice"].shape[1:]), np.float32))
        return drawn[-1]

    in_turns(graph, replace(context, fresh={"voice": fresh}), 3, replace(TRAINING, steps=2))
    assert len(drawn) == 4
    assert len({batch.tobytes() for batch in drawn}) == 4


def test_half_of_what_is_coded_and_judged_by_is_fresh(context):
    def fresh(count, _rng):
        return np.full((count, *context.samples["voice"].shape[1:]), 7, np.float32)

    many = np.repeat(context.samples["voice"], 5, axis=0)
    samples = {"face": context.samples["face"], "voice": many}
    parts = _split(replace(context, samples=samples, fresh={"voice": fresh}), ("face", "voice"))
    altered = [(part.samples["voice"] == 7).all(axis=(1, 2, 3)) for part in parts]
    assert sum(map(len, altered)) == 240
    assert sum(part.sum() for part in altered) == 120
    assert all(0.2 < part.mean() < 0.8 for part in altered)
    assert all((part.samples["face"] != 7).any(axis=(1, 2, 3)).all() for part in parts)
    assert not (many == 7).any()  # the caller's samples are left alone


def test_one_sample_stays_as_it_is(context):
    one = {entry: rows[:1] for entry, rows in context.samples.items()}
    single = replace(context, samples=one, fresh={"voice": lambda *_: pytest.fail("asked")})
    for part in _split(single, ("face", "voice")):
        assert np.array_equal(part.samples["voice"], one["voice"])
