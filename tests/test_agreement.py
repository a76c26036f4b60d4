"""The agreement of templates, and what it makes of similarities."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeid.converters.scores.agreement import fit_agreement
from edgeid.converters.scores.calibration import CalibrationOptions, calibrate
from edgeid.converters.scores.fusion import FusionOptions
from edgeid.converters.scores.views import Views
from edgeid.metrics import equal_error_rate
from edgeid.runtime.agreement import Agreement, agreement_of
from edgeid.runtime.errors import ModelFormatError
from edgeid.runtime.score import Calibration, similarity, similarity_matrix

AGREEMENT = Agreement(low=-0.5, usual=0.2, high=0.8, weight=0.6)
OPTIONS = FusionOptions()


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@given(seed=st.integers(0, 10_000), n=st.integers(2, 6), d=st.integers(1, 9))
def test_agreement_is_the_mean_cosine_of_any_two(seed, n, d):
    templates = unit(np.random.default_rng(seed).standard_normal((n, d)))
    pairs = [a @ b for a, b in itertools.combinations(templates, 2)]
    found = agreement_of(templates.mean(axis=0)[None], [n])
    np.testing.assert_allclose(found, [np.mean(pairs)], atol=1e-9)


def test_one_template_agrees_with_nothing():
    assert agreement_of(np.array([[0.6, 0.8]]), [1]) == [0.0]
    assert AGREEMENT.shifts([0.0, 0.9, -1.0], [1, 1, 1]).tolist() == [0.0, 0.0, 0.0]


def test_shifts_by_hand():
    # three templates are believed by half, two by a third; agreements are cut off at the range
    found = AGREEMENT.shifts([0.5, -0.1, 0.5, 1.0, -1.0], [3, 3, 2, 3, 3])
    wanted = [0.3 * 0.3, -0.3 * 0.3, 0.2 * 0.3, 0.3 * 0.6, -0.3 * 0.7]
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_similarity_with_agreement_by_hand():
    # at right angles templates agree by 0, which is 0.2 less than the usual
    templates = [[1.0, 0.0], [0.0, 2.0]]
    found = similarity(templates, [3.0, 0.0], agreement=AGREEMENT)
    assert found == pytest.approx(np.sqrt(0.5) + 0.2 * 0.2)
    # the same template again agrees by 1, counted as 0.8
    assert similarity([[0.0, 1.0]] * 2, [0.0, 1.0], agreement=AGREEMENT) == pytest.approx(0.88)
    assert similarity([[0.0, 1.0]] * 2, [0.0, -1.0], agreement=AGREEMENT) == -1.0
    assert similarity([[0.0, 1.0]], [0.6, 0.8], agreement=AGREEMENT) == pytest.approx(0.8)


def test_a_matrix_moves_each_persons_row():
    rng = np.random.default_rng(0)
    galleries = [rng.standard_normal((n, 8)) for n in (1, 3, 2)]
    probes = rng.standard_normal((5, 8))
    plain, moved = (similarity_matrix(galleries, probes, None, a) for a in (None, AGREEMENT))
    np.testing.assert_allclose(np.ptp(plain - moved, axis=1), 0, atol=1e-12)
    assert (plain[0] == moved[0]).all()
    assert abs((plain - moved)[1:, 0]).min() > 0
    for (i, gallery), (j, probe) in itertools.product(enumerate(galleries), enumerate(probes)):
        alone = similarity(gallery, probe, agreement=AGREEMENT)
        assert moved[i, j] == pytest.approx(alone, abs=1e-12)


@pytest.mark.parametrize(
    "broken",
    [
        {"low": 0.3},
        {"high": 1.2},
        {"low": -1.5},
        {"usual": float("nan")},
        {"weight": 0},
        {"weight": -1.0},
        {"weight": 1e6},
        {"weight": True},
        {"weight": None},
        {"more": 1},
    ],
)
def test_what_cannot_be_is_refused(broken):
    data = AGREEMENT.to_dict() | broken
    with pytest.raises(ModelFormatError, match="agreement"):
        Agreement.from_dict(data)
    with pytest.raises(ModelFormatError):
        Calibration.from_dict({"agreement": {"voice": data}})


def test_a_calibration_keeps_it_and_scores_by_it():
    calibration = Calibration(voice_agreement=AGREEMENT)
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration
    templates, probe = [[1.0, 0.0], [0.0, 2.0]], [3.0, 0.0]
    with_agreement = similarity(templates, probe, agreement=AGREEMENT)
    assert calibration.similarity("voice", templates, probe) == with_agreement
    assert calibration.similarity("face", templates, probe) == similarity(templates, probe)
    with pytest.raises(ModelFormatError, match="iris"):
        Calibration.from_dict({"agreement": {"iris": AGREEMENT.to_dict()}})


def people(count, seed, spreads=(0.6, 1.6), samples=6, views=1):
    """Samples of people who vary much or little: ``spreads`` in turn; 24 dimensions."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        noise = spreads[number % len(spreads)] * rng.standard_normal((views, samples, 24))
        found.append(Views(rng.standard_normal(24) + noise, np.ones((views, samples))))
    return found


def error(found, agreement):
    """EER of all of view 0, three of whose samples enrol each."""
    templates = [own.embeddings[0, :3] for own in found]
    probes = np.concatenate([own.embeddings[0, 3:] for own in found])
    scores = similarity_matrix(templates, probes, None, agreement)
    genuine = np.repeat(np.arange(len(found)), 3) == np.arange(len(found))[:, None]
    return equal_error_rate(scores.ravel(), genuine.ravel())


def test_what_is_learnt_helps_with_other_people():
    agreement = fit_agreement(people(60, 1), 3, 3, OPTIONS)
    assert agreement is not None
    others = people(200, 2)
    assert error(others, agreement) < 0.9 * error(others, None)


def test_the_regression_is_that_of_an_independent_minimiser():
    from scipy.optimize import minimize

    found = people(20, 3, samples=9)
    agreement = fit_agreement(found, 3, 6, OPTIONS)
    rng = np.random.default_rng(OPTIONS.seed)
    rows = []
    for _ in range(8):
        mixed = [own.permuted(rng).embeddings[0] for own in found]
        units = [unit(own) for own in mixed]
        for claimed, probing in itertools.product(range(20), range(20)):
            three = units[claimed][:3]
            cosines = units[probing][3:] @ unit(three.mean(axis=0))
            mean = np.mean([a @ b for a, b in itertools.combinations(three, 2)])
            rows += [(score, mean, claimed == probing) for score in cosines]
    scores, means, genuine = np.array(rows).T
    columns = np.stack([scores, means.clip(agreement.low, agreement.high)], axis=1)
    share = np.where(genuine, 0.01 / genuine.sum(), 0.99 / (1 - genuine).sum())
    sign = np.where(genuine, 1, -1)
    spread = np.sqrt(share @ (columns - share @ columns) ** 2)

    def loss(b):
        return share @ np.logaddexp(0, -sign * (b[0] + columns @ b[1:])) + 5e-5 * np.sum(
            (b[1:] * spread) ** 2
        )

    best = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-8}).x
    assert agreement.weight == pytest.approx(-2 * best[2] / best[1], rel=1e-3)
    assert agreement.usual == pytest.approx(np.median(means))


def test_where_agreement_tells_nothing_there_is_none():
    assert fit_agreement(people(60, 4, spreads=(50.0,)), 3, 3, OPTIONS) is None  # all is chance
    assert fit_agreement(people(60, 4, spreads=(0.0,)), 3, 3, OPTIONS) is None  # all agree alike
    assert fit_agreement(people(60, 1), 1, 3, OPTIONS) is None  # one template
    assert fit_agreement(people(9, 1), 3, 3, OPTIONS) is None  # too few to leave some out
    assert fit_agreement(people(60, 1, samples=3), 3, 3, OPTIONS) is None  # nothing to probe with


def test_templates_and_probes_are_of_one_view():
    found = people(60, 1)
    # in a view of opposite embeddings all is as in the first, and across the two nothing is
    turned = [
        Views(np.concatenate([own.embeddings, -own.embeddings]), np.ones((2, 6))) for own in found
    ]
    assert fit_agreement(turned, 3, 3, OPTIONS).to_dict() == pytest.approx(
        fit_agreement(found, 3, 3, OPTIONS).to_dict(), rel=1e-6
    )


def test_a_calibration_is_measured_on_moved_scores():
    samples = {f"p{i}": own for i, own in enumerate(people(60, 1))}
    options = CalibrationOptions(enrolments=((3, 3),), probes=3)
    voice = calibrate({}, samples, options=options)
    assert voice.face_agreement is None
    agreement = voice.voice_agreement
    assert agreement is not None
    single = calibrate({}, samples, options=CalibrationOptions(enrolments=((1, 1),), probes=3))
    assert single.voice_agreement is None
    others = people(200, 2)
    templates = [own.embeddings[0, :3] for own in others]
    probes = np.concatenate([own.embeddings[0, 3:] for own in others])
    scores = voice.similarity_matrix("voice", templates, probes)
    stranger = np.repeat(np.arange(200), 3) != np.arange(200)[:, None]
    rate = np.mean(scores[stranger] >= voice.threshold("voice", 0.01))
    assert 0.004 < rate < 0.02


def test_usual_is_the_agreement_of_samples_as_recorded():
    plain, poor = people(60, 1, samples=6), people(60, 1, (1.0, 2.5))
    both = [
        Views(np.concatenate([a.embeddings, b.embeddings]), np.ones((2, 6)))
        for a, b in zip(plain, poor, strict=True)
    ]
    alone, together = (fit_agreement(found, 3, 3, OPTIONS) for found in (plain, both))
    assert together.usual == pytest.approx(alone.usual, abs=1e-9)
    assert together.low < alone.low


def test_equal_samples_are_no_trouble():
    # rounding makes the cosine of a sample and its copy 1.0000000000000002
    copies = [
        Views(np.repeat(own.embeddings[:, :1], 6, axis=1), own.quality) for own in people(60, 1)
    ]
    assert fit_agreement(copies, 3, 3, OPTIONS) is None
    same = np.float32([[0.1, 0.3, 0.7]] * 3)
    assert agreement_of(unit(same).mean(axis=0, dtype=float)[None], [3]) <= 1
