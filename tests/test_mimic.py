"""Mimic: the loss by hand, training and resumption, all units against selected ones."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgeid.converters.distillation.mimic import (  # noqa: E402
    MimicObjective,
    MimicOptions,
    TeacherUnits,
    compare_units,
    embed,
    train_mimic,
    unit_loss,
)
from edgeid.converters.distillation.neuron_selection import select_units  # noqa: E402
from edgeid.converters.training.checkpoint import Checkpoint, load_network  # noqa: E402
from edgeid.converters.training.training_loop import TrainOptions  # noqa: E402
from edgeid.runtime.errors import DataError  # noqa: E402

OPTIONS = TrainOptions(steps=120, batch=64, rate=0.1, save_every=50)


def teacher(people, seed, first=0):
    """Inputs of 8 values; units 0-3 carry identity, 4-11 follow loud noise of the inputs."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(first, first + people), 6)
    looks = rng.standard_normal((people, 4))[labels - first]
    own = looks + 0.3 * rng.standard_normal((len(labels), 4))
    noise = 3 * rng.standard_normal((len(labels), 4))
    inputs = np.concatenate([own, noise], axis=1)
    mixture = np.random.default_rng(99).standard_normal((4, 8))
    features = np.concatenate([own, np.sin(noise @ mixture)], axis=1) * 5 + 1
    return TeacherUnits(inputs.astype(np.float32), features.astype(np.float32), labels)


class Student(torch.nn.Module):
    """A bottleneck of four hidden values: it has to choose what it learns."""

    def __init__(self, units):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(8, 4), torch.nn.Tanh(), torch.nn.Linear(4, units)
        )

    def forward(self, x):
        return self.layers(x)


def test_unit_loss_by_hand():
    predicted = torch.tensor([[1.0, 4.0], [0.0, 0.0]])
    target = torch.tensor([[0.0, 0.0], [0.0, 6.0]])
    # errors 1/1, 4/2, 0, 6/2: squares 1, 4, 0, 9 over four, halved
    loss = unit_loss(predicted, target, torch.tensor([1.0, 2.0]))
    assert loss.item() == pytest.approx(14 / 4 / 2)


def test_only_the_selected_units_are_regressed():
    objective = MimicObjective(torch.nn.Identity(), np.array([2, 0]), np.float32([1, 1, 4]))
    x = torch.tensor([[8.0, 3.0]])
    features = torch.tensor([[3.0, 100.0, 0.0]])
    assert objective.loss((x, features), 0.0).item() == pytest.approx((2**2 + 0) / 2 / 2)


def test_selected_units_make_the_better_student(tmp_path):
    data, held_out = teacher(40, 0), teacher(30, 1, first=100)
    selection = select_units(data.features, data.labels)
    assert selection.indices.tolist() == [0, 1, 2, 3]
    report = compare_units(Student, data, held_out, selection, MimicOptions(OPTIONS, tmp_path))
    assert (report.all_units.units, report.selected.units) == (12, 4)
    assert report.selected.error < report.all_units.error
    assert report.selected.teacher_error < report.all_units.teacher_error
    assert report.selected.unexplained < report.all_units.unexplained
    assert "selected, 4 units: EER" in report.lines()[1]
    # run again: both trainings are read from their checkpoints
    again = compare_units(Student, data, held_out, selection, MimicOptions(OPTIONS, tmp_path))
    assert again == report


def test_an_interrupted_training_resumes(tmp_path, monkeypatch):

    data = teacher(20, 0)
    draw, units = data.drawing(32), np.arange(4)

    def run(out):
        torch.manual_seed(3)
        objective = MimicObjective(Student(4), units, data.spread())
        train_mimic(objective, draw, OPTIONS, out)
        return embed(objective.network, data.inputs)

    whole = run(tmp_path / "whole.pt")
    saved = Checkpoint.save

    def stop(self, step):
        saved(self, step)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken.pt")
    monkeypatch.undo()
    np.testing.assert_allclose(run(tmp_path / "broken.pt"), whole, rtol=1e-3, atol=1e-3)


def test_its_checkpoint_is_not_taken_for_a_cnn20(tmp_path):
    data = teacher(20, 0)
    objective = MimicObjective(Student(4), np.arange(4), data.spread())
    train_mimic(objective, data.drawing(8), TrainOptions(steps=2, batch=8), tmp_path / "m.pt")
    with pytest.raises(DataError, match="another network than CNN-20"):
        load_network(tmp_path / "m.pt")


def test_a_unit_that_never_changes_does_not_divide_by_zero():
    data = TeacherUnits(np.ones((4, 1), np.float32), np.ones((4, 2), np.float32), np.arange(4))
    assert data.spread().tolist() == [1, 1]


@pytest.mark.parametrize(
    ("inputs", "features", "labels"),
    [
        (np.ones((3, 1)), np.ones((4, 2)), np.zeros(4)),
        (np.ones((4, 1)), np.ones(4), np.zeros(4)),
        (np.ones((4, 1)), np.ones((4, 2)), np.zeros(3)),
        (np.ones((0, 1)), np.ones((0, 2)), np.zeros(0)),
        (np.ones((4, 1)), np.full((4, 2), np.nan), np.zeros(4)),
    ],
)
def test_units_are_checked(inputs, features, labels):
    with pytest.raises(DataError):
        TeacherUnits(inputs.astype(np.float32), features.astype(np.float32), labels)


@pytest.mark.parametrize("units", [[], [3], [-1], [[0]]])
def test_units_outside_the_layer(units):
    with pytest.raises(DataError):
        MimicObjective(torch.nn.Identity(), np.array(units, np.intp), np.ones(3, np.float32))


def test_people_of_both_sets_are_told():
    data = teacher(20, 0)
    selection = select_units(data.features, data.labels)
    with pytest.raises(DataError, match="20 people are in training and held out"):
        compare_units(Student, data, teacher(20, 1), selection)
    other = TeacherUnits(data.inputs, data.features[:, :5], data.labels + 100)
    with pytest.raises(DataError, match="held out 5"):
        compare_units(Student, data, other, selection)
