"""What the C extension is handed: buffers and records that are wrong are refused, or harmless."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edgeid.runtime.native import program as p
from edgeid.runtime.native.engine import levels
from edgeid.runtime.native.planner import plan
from edgeid.runtime.native.records import FIELDS, make_records

from .native_programs import fixed, lookup, small_cnn

LEVELS = levels()
if not LEVELS:
    pytest.skip("the C extension was not built", allow_module_level=True)

from edgeid.runtime import _native  # noqa: E402

POOLS = {threads: _native.Pool(threads) for threads in (1, 2)}
RECORDS = make_records(plan(small_cnn(), "face"))
IN, OUT = 3 * 17 * 11, 80


def made(isa=LEVELS[-1], **other):
    arguments = {
        **{"records": RECORDS.records, "slots": RECORDS.slots, "blob": RECORDS.blob},
        **{"input": IN, "output": OUT, "result": RECORDS.result, "isa": isa},
    }
    return _native.Program(**(arguments | other))


def test_fields_are_those_of_the_extension():
    assert len(FIELDS) == _native.FIELDS


def test_buffers_of_the_wrong_size():
    program, pool = made(), POOLS[1]
    x, out = np.zeros((2, IN), np.float32), np.zeros((2, OUT), np.float32)
    _native.run(pool, program, x, out)
    assert program.bytes > 0
    for bad_x, bad_out in (
        (x, out[:1]),
        (x[:1], out),
        (x, np.zeros((2, OUT + 1), np.float32)),
        (x.reshape(-1)[1:], out),
        (x.tobytes()[1:], out),
        (np.zeros(2 * IN * 4 + 1, np.uint8)[1:], out),  # not aligned
    ):
        with pytest.raises(ValueError, match=r"takes float32 arrays \(N, 561\) and \(N, 80\)"):
            _native.run(pool, program, bad_x, bad_out)
    with pytest.raises(ValueError, match="float64 for every step"):
        program.profile(pool, x, out, np.zeros(3))
    with pytest.raises((ValueError, BufferError)):
        _native.run(pool, program, np.asfortranarray(x), out)
    with pytest.raises((ValueError, BufferError, TypeError)):
        _native.run(pool, program, x, out.tobytes())  # cannot be written
    twice = np.zeros((2, OUT), np.float32)
    _native.run(pool, program, x, out, program, x[:1], twice[:1])  # one program, two calls
    assert np.array_equal(twice[0], out[0])
    one = (program, x, out)
    for wrong in ((), (program,), (*one, program), one * 5, (*one, None, x, out), (pool, x, out)):
        with pytest.raises(TypeError, match=r"run\(pool, program|takes programs"):
            _native.run(pool, *wrong)
    for bad in (None, program, 1):
        with pytest.raises(TypeError, match="must be a Pool"):
            _native.run(bad, program, x, out)


def test_records_of_the_wrong_size():
    rows = np.ascontiguousarray(RECORDS.records)
    for other in (
        {"records": rows.reshape(-1)[:-1].copy()},
        {"slots": RECORDS.slots.reshape(-1)[:-1].copy()},
        {"records": b"\0" * (8 * _native.FIELDS + 1)},
        {"records": rows[:0]},
        {"slots": RECORDS.slots[:0]},
        {"slots": RECORDS.slots[:1]},
        {"blob": RECORDS.blob[:0]},
        {"blob": RECORDS.blob[: len(RECORDS.blob) // 2]},
        {"isa": "sse9"},
        {"input": 0},
        {"input": IN + 1},
        {"output": OUT + 8},
        {"output": -1},
        {"result": -1},
        {"result": len(RECORDS.slots)},
    ):
        with pytest.raises(ValueError, match=r"step|must be|no instruction set|out of range|slot"):
            made(**other)


NUMBERS = st.one_of(
    st.integers(-2, 40),
    st.sampled_from(
        [2**k + d for k in (8, 12, 15, 16, 24, 26, 31, 32, 33, 62) for d in (-1, 0, 1)]
    ),
    st.sampled_from([-(2**31), -(2**63), 2**63 - 1, len(RECORDS.blob), len(RECORDS.blob) - 8]),
    st.integers(0, len(RECORDS.blob) // 8 - 1).map(lambda n: 8 * n),
)


def refused_or_run(isa, **other):
    try:
        program = made(isa, **other)
    except ValueError:
        return
    out = np.empty((2, OUT), np.float32)
    try:
        _native.run(POOLS[2], program, np.ones((2, IN), np.float32), out)
    except MemoryError:
        assert other  # of an arena that a record makes too large


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(LEVELS),
    st.integers(0, len(RECORDS.records) - 1),
    st.sampled_from(FIELDS),
    NUMBERS,
)
@example(LEVELS[0], 0, "gain", 2**40)  # of a step that has no epilogue
@example(LEVELS[0], 0, "slope1", len(RECORDS.blob) - 8)
@example(LEVELS[0], 0, "input", 2**30)
@example(LEVELS[0], len(RECORDS.records) - 1, "second", 2**30)
@example(LEVELS[0], len(RECORDS.records) - 1, "coded", 2**32 + 5)
def test_a_record_with_one_wrong_number_is_refused_or_runs_in_its_memory(isa, step, field, number):
    records = RECORDS.records.copy()
    records[step, FIELDS.index(field)] = number
    refused_or_run(isa, records=records)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, RECORDS.slots.size - 1), NUMBERS)
def test_a_slot_with_one_wrong_number_is_refused_or_runs_in_its_memory(place, number):
    slots = RECORDS.slots.copy()
    slots.reshape(-1)[place] = number if number % 2 else number // 64 * 64
    refused_or_run(LEVELS[-1], slots=slots)


@pytest.mark.parametrize("length", [0, 1, 3, 16])
def test_codewords_of_other_lengths(length):
    rng = np.random.default_rng(0)
    window = p.Window((3, 3), (1, 1), (1, 1, 1, 1))
    program, _ = fixed(1, 4, (3, 3), window, lookup(rng, 1, 4, (3, 3), length=8))
    records = make_records(program)
    rows = records.records.copy()
    rows[records.kinds.index("lookup"), FIELDS.index("length")] = length
    with pytest.raises(ValueError, match="no such codebook"):
        _native.Program(*(rows, records.slots, records.blob, 9, 8 * 9, records.result, LEVELS[0]))


def test_the_output_of_a_step_that_writes_less_than_it_says():
    """A step that only names the slot of the result does not make it as large as its own sizes."""
    records = RECORDS.records.copy()
    row = records[RECORDS.kinds.index("quantise")].copy()
    sizes = slice(FIELDS.index("cin"), FIELDS.index("wout") + 1)
    row[sizes] = (1, 1, OUT, 1, 1, OUT)
    row[FIELDS.index("real")] = RECORDS.result
    row[FIELDS.index("input")], row[FIELDS.index("coded")] = np.argsort(RECORDS.slots[:, 1])[-2:]
    with pytest.raises(ValueError, match="no step writes an output of 80 values"):
        made(records=np.vstack([records, row]))


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_threads_out_of_range(threads):
    with pytest.raises(ValueError, match=r"threads must be 1\.\.256"):
        _native.Pool(threads)
