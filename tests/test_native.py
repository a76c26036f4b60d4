"""The native engine on whole networks: at every level of this machine the bits of the oracle, in
any number of threads, after a fork; and how a level is chosen.

Nothing here has a tolerance: each comparison is of bits.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

import edgeid.runtime
from edgeid.runtime.activation_scale import ActivationScale
from edgeid.runtime.encoding import Int8
from edgeid.runtime.errors import EngineError, GraphError
from edgeid.runtime.graph import (
    Entry,
    Gemm,
    GlobalAveragePool,
    Graph,
    merge_graphs,
)
from edgeid.runtime.native import oracle
from edgeid.runtime.native.engine import NativeEngine, integer_engine, levels
from edgeid.runtime.native.planner import plan
from edgeid.runtime.native.records import KINDS, make_records

from .native_programs import images, same_bits, small_cnn

LEVELS = levels()
if not LEVELS:
    pytest.skip("the C extension was not built", allow_module_level=True)

each_level = pytest.mark.parametrize("isa", LEVELS)
GRAPH = small_cnn()


@pytest.fixture(scope="module")
def expected():
    return oracle.run(plan(GRAPH, "face"), images(9))


def test_the_network_has_every_kind_of_step():
    assert set(make_records(plan(GRAPH, "face")).kinds) == set(KINDS)


@each_level
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_a_network(expected, isa, threads):
    engine = NativeEngine(GRAPH, threads, isa)
    assert (engine.name, engine.isa) == ("native", isa)
    for count in (9, 0, 1, 4, 5):
        same_bits(engine.run("face", images(9)[:count]), expected[:count])


@each_level
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -0.0, 1e-45])
def test_numbers_at_the_end_of_float32(isa, value):
    x = images(2)
    x[0, :, ::2] = value
    x[1] = value
    with np.errstate(all="ignore"):
        expected = oracle.run(plan(GRAPH, "face"), x)
    np.testing.assert_array_equal(NativeEngine(GRAPH, 1, isa).run("face", x), expected)


@each_level
def test_floats_alone(isa):
    """Without scales no step is rounded to eight bits."""
    graph = replace(GRAPH, scales={})
    expected = oracle.run(plan(graph, "face"), images(3))
    same_bits(NativeEngine(graph, 2, isa).run("face", images(3)), expected)


@each_level
def test_two_entries_and_shared_tensors(isa, expected):
    other = oracle.run(plan(small_cnn(1), "face"), images(3))
    engine = NativeEngine(merge_graphs(face=GRAPH, voice=small_cnn(1)), 1, isa)
    for _ in range(2):
        same_bits(engine.run("face", images(9)), expected)
        same_bits(engine.run("voice", images(3)), other)


SIX = merge_graphs(**{name: small_cnn(seed) for seed, name in enumerate("abcdef")})


@pytest.fixture(scope="module")
def six():
    """More entries than one call of the extension takes, with batches of all sizes."""
    batches = {
        name: images(count) for name, count in zip("abcdef", (9, 0, 1, 5, 4, 2), strict=True)
    }
    return batches, {name: oracle.run(plan(SIX, name), x) for name, x in batches.items()}


@each_level
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_entries_side_by_side(six, isa, threads):
    batches, answers = six
    engine = NativeEngine(SIX, threads, isa)
    for names in ("abcdef", "ba", "c", "b", ""):
        got = engine.run_together({name: batches[name] for name in names})
        assert list(got) == list(names)
        for name in names:
            same_bits(got[name], answers[name])
    with pytest.raises(GraphError, match="no entry 'g'"):
        engine.run_together({"a": images(1), "g": images(1)})
    with pytest.raises(EngineError, match="entry 'b' takes a float32 array"):
        engine.run_together({"a": images(1), "b": images(1)[0]})


def test_the_oracle_is_an_engine_of_its_own(monkeypatch, expected):
    assert integer_engine(GRAPH).name == "native"
    monkeypatch.delattr(edgeid.runtime, "_native", raising=False)
    monkeypatch.setitem(sys.modules, "edgeid.runtime._native", None)
    engine = integer_engine(GRAPH)
    assert engine.name == "oracle"
    same_bits(engine.run("face", images(9)), expected)
    same_bits(engine.run_together({"face": images(0)})["face"], expected[:0])
    with pytest.raises(GraphError, match="no entry 'voice'"):
        engine.run("voice", images(1))
    with pytest.raises(EngineError, match="takes a float32 array"):
        engine.run("face", images(1)[0])


def test_the_input_is_left_alone_and_may_be_strided(expected):
    engine = NativeEngine(GRAPH)
    x = images(9)
    x.flags.writeable = False
    same_bits(engine.run("face", x), expected)
    wide = np.zeros((9, 3, 17, 22), np.float32)
    wide[..., ::2] = x
    same_bits(engine.run("face", wide[..., ::2]), expected)
    same_bits(engine.run("face", x[::-1]), expected[::-1])
    same_bits(engine.run("face", np.asfortranarray(x)), expected)


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((3, 17, 11), np.float32),
        np.zeros((1, 3, 11, 17), np.float32),
        np.zeros((1, 3, 17, 11)),
        np.zeros((), np.float32),
        None,
    ],
)
def test_input_of_the_wrong_form_says_what_is_needed(x):
    engine = NativeEngine(GRAPH)
    for call in (engine.run, engine.profile):
        with pytest.raises(EngineError, match=r"takes a float32 array \(N, 3, 17, 11\)"):
            call("face", x)
    with pytest.raises(GraphError, match="no entry 'voice'"):
        engine.run("voice", images(1))


@each_level
def test_a_profile_has_a_line_a_step(isa):
    lines = NativeEngine(GRAPH, 2, isa).profile("face", images(2), rounds=3)
    records = make_records(plan(GRAPH, "face"))
    assert [line[:2] for line in lines] == list(zip(records.names, records.kinds, strict=True))
    assert all(0 <= seconds < 1 for *_, seconds in lines)
    assert {"c1", "c2", "deep", "join", "fc", "unit"} <= {name for name, *_ in lines}


@pytest.mark.parametrize("size", [(3, 1, 2000), (600, 1000, 1), (40, 120, 120)])
def test_the_mean_of_a_large_map(size):
    """As speaker networks have it over time; a pooling layer's own window reaches to 1024."""
    layers = (GlobalAveragePool("mean", ("x",), "y"),)
    graph = Graph((Entry("face", "x", size, "y"),), layers, {})
    x = np.random.default_rng(0).standard_normal((1, *size)).astype(np.float32)
    same_bits(NativeEngine(graph).run("face", x), oracle.run(plan(graph, "face"), x))


def test_int8_weights_are_taken_as_they_are():
    tensors = {"w": Int8(np.array([[-127, 5]], np.int8), np.array([0.5], np.float32))}
    layers = (Gemm("fc", ("x",), "y", "w"),)
    scales = {"x": ActivationScale(1.0, 10)}
    graph = Graph((Entry("face", "x", (2,), "y"),), layers, tensors, scales)
    x = np.array([[3, 100]], np.float32)
    for isa in LEVELS:
        assert NativeEngine(graph, 1, isa).run("face", x).tolist() == [[(-381 + 500) / 2]]


# ---- threads and processes ----


def at_once(count, work):
    """Calls ``work(number)`` in so many Python threads that start together."""
    barrier = threading.Barrier(count)

    def one(number):
        barrier.wait()
        work(number)

    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(one, number) for number in range(count)]:
            future.result()


@pytest.mark.parametrize("threads", [1, 3])
def test_many_python_threads(expected, threads):
    """On one engine and on two at once, with batches of different sizes."""
    engines = [NativeEngine(GRAPH, threads), NativeEngine(GRAPH, threads, LEVELS[0])]

    def work(number):
        for turn in range(12):
            first = (number + turn) % 8
            last = first + 1 + turn % (9 - first)
            got = engines[number % 2].run("face", images(9)[first:last])
            same_bits(got, expected[first:last])

    at_once(6, work)


def test_engines_come_and_go_in_threads(expected):
    def work(number):
        for turn in range(4):
            engine = NativeEngine(GRAPH, 1 + (number + turn) % 3)
            same_bits(engine.run("face", images(9)[:2]), expected[:2])

    at_once(4, work)


def in_child(work, seconds=60):
    """Exit status of a forked child that does ``work``; -9 where it hung."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of fork with threads: that is the test
        child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    for _ in range(seconds * 100):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("threads", [1, 3])
def test_a_forked_child_computes_and_the_parent_goes_on(expected, threads):
    engine = NativeEngine(GRAPH, threads)
    same_bits(engine.run("face", images(9)), expected)

    def work():
        same_bits(engine.run("face", images(9)), expected)
        fresh = NativeEngine(GRAPH, threads)  # with threads of its own
        same_bits(fresh.run("face", images(9)), expected)
        fresh = None  # joins them

    assert in_child(work) == 0
    same_bits(engine.run("face", images(9)), expected)
    assert in_child(lambda: engine.__dict__.clear()) == 0  # lets go of the parent's pool
    same_bits(engine.run("face", images(9)), expected)


# ---- which level ----


@each_level
def test_the_environment_names_a_level(monkeypatch, isa):
    monkeypatch.setenv("EDGEID_ISA", isa)
    assert NativeEngine(GRAPH).isa == isa
    assert NativeEngine(GRAPH, 1, LEVELS[0]).isa == LEVELS[0]  # an argument comes first


def test_without_a_choice_the_best_level_serves(monkeypatch):
    monkeypatch.delenv("EDGEID_ISA", raising=False)
    assert NativeEngine(GRAPH).isa == LEVELS[-1]
    monkeypatch.setenv("EDGEID_ISA", "")
    assert NativeEngine(GRAPH).isa == LEVELS[-1]
    assert LEVELS[0] == "portable"


@pytest.mark.parametrize("isa", ["sse9", "AVX2", " portable", "x" * 300, "é"])
def test_a_level_that_is_not_here(monkeypatch, isa):
    with pytest.raises(EngineError, match=r"isa is '.*; this machine has portable"):
        NativeEngine(GRAPH, 1, isa)
    monkeypatch.setenv("EDGEID_ISA", isa)
    with pytest.raises(EngineError, match=r"EDGEID_ISA is '.*; this machine has portable") as error:
        NativeEngine(GRAPH)
    assert len(str(error.value)) < 200


def test_without_the_extension(monkeypatch):
    monkeypatch.delattr(edgeid.runtime, "_native", raising=False)
    monkeypatch.setitem(sys.modules, "edgeid.runtime._native", None)
    assert levels() == ()
    with pytest.raises(EngineError, match=r"was not built .*: install a wheel"):
        NativeEngine(GRAPH)
