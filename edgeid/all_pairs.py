"""Face verification over all pairs of a set of images, where no protocol names the pairs."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path, PurePosixPath

import numpy as np

from edgeid.extraction import EvaluatedModel, Progress, embed_images
from edgeid.measurement import DEPENDENT, FAILED_SCORE, count_failed, measure, score_matrix
from edgeid.report import Report
from edgeid.roc import Trials
from edgeid.runtime.errors import DataError
from edgeid.runtime.members import Members

MOST = 5000  # images: 12.5 million pairs


def evaluate_all_pairs(
    model: EvaluatedModel, images: str | Path, aligned: bool, *, progress: Progress | None = None
) -> Report:
    """Every image against every other; the folder of an image is who it shows.

    Args:
        images: zip archive or folder of up to 5,000 images, ``[set/]identity/file.jpg``.
        aligned: the images are aligned crops; otherwise faces are detected and aligned. A photo
            without a face scores -1 in all its comparisons.

    Raises:
        DataError: images are missing, too many, of one person only, or nobody has two.
    """
    with Members(images) as members:
        names = sorted(members.names)
        if not 2 <= len(names) <= MOST:
            raise DataError(f"{images} has {len(names):,} images; all pairs need 2 to {MOST:,}")
        embeddings = embed_images(model, members, set(names), aligned, progress)
    there = [name for name in names if embeddings[name] is not None]
    place = {name: i for i, name in enumerate(there)}
    rows = [row for name in there if (row := embeddings[name]) is not None]
    if not rows:
        raise DataError(f"no face was found in any of the {len(names):,} images of {images}")
    matrix = score_matrix([row[None] for row in rows], [*rows], "face", model.calibration)
    who = np.array([str(PurePosixPath(name).parent) for name in names])
    first, second = np.array(list(combinations(range(len(names)), 2))).T
    scores = np.full(len(first), FAILED_SCORE)
    where = np.array([place.get(name, -1) for name in names])
    scored = (where[first] >= 0) & (where[second] >= 0)
    scores[scored] = matrix[where[first[scored]], where[second[scored]]]
    trials = Trials(scores, who[first] == who[second], who[first], who[second])
    part = measure("all pairs", trials, "face", model.calibration)
    return Report("faces", (part,), len(names), count_failed(embeddings), 0, (DEPENDENT,))
