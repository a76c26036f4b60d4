"""Learning a scoring back end: parity with the model it is made of, gains, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgeid.converters.scores.calibration import CalibrationOptions, calibrate
from edgeid.converters.scores.joint_bayesian import fit_joint_bayesian
from edgeid.converters.scores.scoring import (
    BackendOptions,
    HeldPeople,
    choose_shrinkage,
    learn_backend,
)
from edgeid.converters.scores.verification import equal_error_rate, pair_error, pair_scores
from edgeid.runtime.encoding import Int8
from edgeid.runtime.errors import CalibrationError, DataError
from edgeid.runtime.score import Calibration, similarity

EXACT = BackendOptions(shrinkage=0.0, weights="float16")


def anisotropic(people, samples, seed, size=16, loud=10.0):
    """People differ evenly in all directions; their samples vary most in the first four."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(people) + 1000 * seed, samples)
    variation = np.ones(size)
    variation[:4] = loud
    identity = rng.standard_normal((people, size))[np.repeat(np.arange(people), samples)]
    rows = 6 * np.ones(size) + identity + 0.6 * variation * rng.standard_normal((len(labels), size))
    return rows, labels


def test_the_back_end_is_the_joint_bayesian_ratio_after_pca():
    rows, labels = anisotropic(60, 6, seed=1)
    backend = learn_backend(rows, labels, EXACT)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    model = fit_joint_bayesian(unit, labels)  # all 16 dimensions: the PCA only turns them
    expected = [model.log_likelihood_ratio(np.tile(row, (40, 1)), unit[40:80]) for row in unit[:9]]
    ratios = backend.log_likelihood_ratio(unit[:9], unit[40:80])
    np.testing.assert_allclose(ratios, expected, atol=0.02 * np.abs(expected).max())
    assert np.corrcoef(ratios.ravel(), np.ravel(expected))[0, 1] > 0.9999


def test_variation_of_few_directions_is_told_from_identity():
    backend = learn_backend(*anisotropic(150, 6, seed=1), BackendOptions(shrinkage=0.0))
    assert isinstance(backend.projection, Int8)
    rows, labels = anisotropic(80, 5, seed=2)
    assert pair_error(rows, labels, backend) < 0.6 * pair_error(rows, labels)


def test_full_shrinkage_ranks_as_the_cosine():
    rows, labels = anisotropic(60, 4, seed=1, size=8)  # far from a mean of zero
    backend = learn_backend(rows, labels, BackendOptions(shrinkage=1.0))
    assert isinstance(backend.projection, Int8)
    assert backend.projection.shape == (8, 8)
    assert not backend.offset.any()
    for scored, plain in zip(
        pair_scores(rows, labels, backend), pair_scores(rows, labels), strict=True
    ):
        assert np.corrcoef(scored, plain)[0, 1] > 1 - 1e-9


def test_scores_lie_about_minus_one_to_one():
    rows, labels = anisotropic(60, 6, seed=3)
    backend = learn_backend(rows, labels)
    genuine, impostor = pair_scores(rows, labels, backend)
    assert -1 <= impostor.min() < impostor.mean() < genuine.mean() < genuine.max() < 1.2


def test_dimensions_are_those_that_the_samples_can_tell():
    rows, labels = anisotropic(60, 6, seed=1)
    assert learn_backend(rows, labels).projection.shape == (16, 16)
    assert learn_backend(rows, labels, BackendOptions(dimensions=5)).projection.shape == (5, 16)
    # 12 samples of 4 people leave 8, which is enough for 4 dimensions
    assert learn_backend(rows[:24:2], labels[:24:2]).projection.shape == (4, 16)
    assert learn_backend(np.eye(4), [0, 0, 1, 1]).projection.shape == (1, 4)
    flat = np.concatenate([rows[:, :3], np.zeros((len(rows), 5))], axis=1)
    assert learn_backend(flat, labels).projection.shape[0] == 3


def test_equal_samples_in_another_order_give_about_equal_back_ends():
    rows, labels = anisotropic(40, 5, seed=4)
    order = np.random.default_rng(0).permutation(len(rows))
    a = learn_backend(rows, labels, EXACT)
    b = learn_backend(rows[order], labels[order], EXACT)
    again = learn_backend(rows, labels, EXACT)
    assert json.dumps(a.to_dict()) == json.dumps(again.to_dict())
    np.testing.assert_allclose(a.projection.decode(), b.projection.decode(), rtol=0.02, atol=0.05)


def test_samples_that_do_not_vary_keep_the_factors_finite():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 3)
    rows = rng.standard_normal((20, 4))[labels]
    backend = learn_backend(rows, labels)
    genuine, impostor = pair_scores(rows, labels, backend)
    assert genuine.min() > impostor.max()


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (np.zeros((4, 2)), [0, 0, 1, 1], "zero"),
        (np.eye(4), [0, 1, 2, 3], "too few"),
        (np.ones((9, 4)), [0, 0, 0, 1, 1, 1, 2, 2, 2], "too few"),
        (np.full((4, 2), np.nan), [0, 0, 1, 1], "NaN"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(rows, labels, message):
    with pytest.raises(DataError, match=message):
        learn_backend(rows, labels)


@pytest.mark.parametrize(
    "options",
    [{"dimensions": 0}, {"iterations": 0}, {"shrinkage": 1.1}, {"weights": "int4"}],
)
def test_options_are_checked(options):
    with pytest.raises(DataError):
        BackendOptions(**options)


def test_shrinkage_is_chosen_on_people_held_out():
    plenty, errors = choose_shrinkage(*anisotropic(150, 6, seed=5))
    assert plenty.shrinkage < 1
    assert errors[plenty.shrinkage] < errors[1.0]
    # Isotropic people and variation, few samples: there is nothing but noise to learn.
    few, errors = choose_shrinkage(*anisotropic(24, 3, seed=6, loud=1.0), folds=2)
    assert few.shrinkage > 0
    assert errors[few.shrinkage] <= errors[0.0]
    with pytest.raises(DataError, match="two folds"):
        choose_shrinkage(*anisotropic(24, 3, seed=6), folds=1)


def recorded(people, samples, seed, loud):
    """One set: people who differ in all 16 directions, samples most in the directions ``loud``,
    and a microphone that adds the same to all."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(people) + 1000 * seed, samples)
    variation = np.ones(16)
    variation[loud] = 8.0
    rows = np.repeat(rng.standard_normal((people, 16)), samples, axis=0)
    rows += 0.5 * variation * rng.standard_normal(rows.shape)
    return rows + 4 * rng.standard_normal(16), labels, np.full(len(labels), f"set {seed}")


def joined(*parts):
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


def test_shrinkage_is_chosen_on_sets_left_out():
    # what varies in one set is what tells people apart in another
    unlike = joined(*(recorded(30, 6, seed, [seed - 1]) for seed in range(1, 6)))
    rows, labels, sets = unlike
    within, _ = choose_shrinkage(rows, labels, folds=5)
    across, errors = choose_shrinkage(rows, labels, sets=sets)
    assert across.shrinkage > within.shrinkage
    assert errors[across.shrinkage] <= errors[0.0]
    # where all sets vary alike, a set left out gains as well
    rows, labels, sets = joined(*(recorded(30, 6, seed, [0, 1, 2]) for seed in range(1, 6)))
    alike, errors = choose_shrinkage(rows, labels, sets=sets)
    assert alike.shrinkage < 1
    assert errors[alike.shrinkage] < 0.8 * errors[1.0]
    # the mean over the sets of a back end of the others
    held = sets == "set 1"
    errors = [
        pair_error(
            rows[sets == one],
            labels[sets == one],
            learn_backend(
                rows[sets != one], labels[sets != one], BackendOptions(), sets[sets != one]
            ),
        )
        for one in np.unique(sets)
    ]
    _, found = choose_shrinkage(rows, labels, shares=(0.5,), sets=sets)
    assert found[0.5] == pytest.approx(np.mean(errors))
    # sets of few people are learnt from, never left out
    some = ~held | (labels < 1009)
    _, found = choose_shrinkage(rows[some], labels[some], shares=(0.5,), sets=sets[some])
    assert found[0.5] != pytest.approx(np.mean(errors), rel=1e-6)


def test_shrinkage_is_chosen_by_people_whom_the_network_does_not_know():
    # what is left of the variation of known people says nothing of others'
    known = joined(*(recorded(30, 6, seed, [0, 1, 2]) for seed in range(1, 6)))
    unknown = joined(*(recorded(12, 6, seed, [8, 9, 10]) for seed in range(1, 6)))
    alone, _ = choose_shrinkage(*known[:2], sets=known[2])
    chosen, errors = choose_shrinkage(*known[:2], sets=known[2], others=HeldPeople(*unknown))
    assert alone.shrinkage < chosen.shrinkage
    assert errors[chosen.shrinkage] < errors[0.0]
    # a set of the others is scored by a back end of the rest of what is known
    rows, labels, sets = known
    expected = []
    for one in np.unique(sets):
        backend = learn_backend(
            rows[sets != one], labels[sets != one], BackendOptions(), sets[sets != one]
        )
        scored = unknown[2] == one
        expected.append(pair_error(unknown[0][scored], unknown[1][scored], backend))
    held = HeldPeople(*unknown)
    _, errors = choose_shrinkage(rows, labels, shares=(0.5,), sets=sets, others=held)
    assert errors[0.5] == pytest.approx(np.mean(expected))
    # one set: all that is known is learnt from; nine people are too few to ask
    one_set = [part[:72] for part in unknown]
    rows, labels = rows[sets == "set 1"], labels[sets == "set 1"]
    _, errors = choose_shrinkage(rows, labels, shares=(0.5,), others=HeldPeople(*one_set))
    backend = learn_backend(rows, labels)
    codes = np.unique(one_set[1], return_inverse=True)[1]
    parts = [
        pair_error(one_set[0][codes % 3 == i], codes[codes % 3 == i], backend) for i in range(3)
    ]
    assert errors[0.5] == pytest.approx(np.mean(parts))
    few = HeldPeople(*(part[:54] for part in unknown))
    assert choose_shrinkage(rows, labels, others=few) == choose_shrinkage(rows, labels)
    with pytest.raises(DataError, match="one for each of 360"):
        choose_shrinkage(rows, labels, others=HeldPeople(unknown[0], unknown[1], ["a"]))


def test_what_tells_sets_apart_is_not_learnt():
    rows, labels, sets = joined(*(recorded(40, 6, seed, [0]) for seed in range(1, 4)))
    alone = learn_backend(rows[sets == "set 1"], labels[sets == "set 1"], EXACT)
    plain, apart = (learn_backend(rows, labels, EXACT, names) for names in (None, sets))
    # the three microphones would be what people differ by most
    assert plain.variance_ratio.max() > 3 * apart.variance_ratio.max()
    assert apart.variance_ratio.max() < 2 * alone.variance_ratio.max()
    with pytest.raises(DataError, match="one for each of 720 embeddings"):
        learn_backend(rows, labels, sets=sets[:5])


def test_calibration_is_of_the_back_end_s_scores():
    backend = learn_backend(*anisotropic(150, 6, seed=1))
    rows, labels = anisotropic(40, 6, seed=2)
    faces = {f"p{i}": rows[labels == label] for i, label in enumerate(np.unique(labels))}
    options = CalibrationOptions(impostors=2000, probes=3)
    plain = calibrate(faces, {}, options=options)
    scored = calibrate(faces, {}, options=options, backends={"face": backend})
    assert scored.face_backend is backend
    assert scored.voice_backend is None
    assert plain.face is not None
    assert scored.face is not None
    assert scored.face.fnmr_at(0.01) < plain.face.fnmr_at(0.01)
    others, names = anisotropic(40, 4, seed=3)
    people = [others[names == name] for name in np.unique(names)]
    impostor = [
        scored.similarity("face", a[:3], b[3])
        for i, a in enumerate(people)
        for j, b in enumerate(people)
        if i != j
    ]
    accepted = np.mean(np.array(impostor) >= scored.threshold("face", 0.05))
    assert accepted == pytest.approx(0.05, abs=0.03)
    assert impostor[0] == similarity(people[0][:3], people[1][3], backend)
    again = Calibration.from_dict(json.loads(json.dumps(scored.to_dict())))
    assert again.to_dict() == scored.to_dict()


def test_both_modalities_fuse_their_back_ends():
    backend = learn_backend(*anisotropic(150, 6, seed=1))
    sets = []
    for seed in (2, 3):
        rows, labels = anisotropic(20, 6, seed=seed)
        sets.append({f"p{i}": rows[labels == one] for i, one in enumerate(np.unique(labels))})
    options = CalibrationOptions(impostors=2000, probes=3)
    result = calibrate(*sets, options=options, backends={"face": backend, "voice": backend})
    assert result.fused is not None
    assert result.voice_backend is backend
    assert result.fused.fnmr_at(0.05) <= result.face.fnmr_at(0.05)
    with pytest.raises(CalibrationError, match="not 'iris'"):
        calibrate(*sets, options=options, backends={"iris": backend})


def test_equal_error_rate_by_hand():
    assert equal_error_rate([2.0, 3.0], [0.0, 1.0]) == 0
    assert equal_error_rate([0.0, 1.0], [2.0, 3.0]) == 1
    # at 2: one of four genuine is below, one of four impostors is not
    assert equal_error_rate([1.0, 2.0, 3.0, 4.0], [-1.0, 0.0, 0.5, 2.5]) == 0.25
    assert equal_error_rate([1.0, 1.0], [1.0, 1.0]) == 0.5
    for genuine, impostor in (([], [1.0]), ([1.0], []), ([np.nan], [1.0]), ([1.0], [np.inf])):
        with pytest.raises(DataError):
            equal_error_rate(genuine, impostor)


def test_each_pair_counts_once():
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    genuine, impostor = pair_scores(rows, np.array([0, 1, 0]))
    assert genuine == pytest.approx([np.sqrt(0.5)])
    assert sorted(impostor) == pytest.approx([0.0, np.sqrt(0.5)])
    with pytest.raises(DataError):
        pair_error(rows, np.array([0, 1, 2]))
    with pytest.raises(DataError):
        pair_error(rows[:1], np.array([0]))
    with pytest.raises(DataError):
        pair_error(rows, np.array([0, 1]))


def test_of_many_samples_an_even_choice_is_made():
    labels = np.arange(5000) // 4
    rows = np.eye(5)[labels % 5] + 0.01 * np.random.default_rng(0).standard_normal((5000, 5))
    genuine, impostor = pair_scores(rows, labels)
    assert len(genuine) == 3000 // 8 * 2 * 6
    assert len(genuine) + len(impostor) == 3000 * 2999 / 2
