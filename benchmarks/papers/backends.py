"""PCA and Joint Bayesian of one network: learnt on training people, chosen on calibration ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.papers.figures import embed, evaluate_faces, evaluate_voices, save_results
from edgeid.converters.scores.scoring import HeldPeople, choose_shrinkage, learn_backend
from edgeid.converters.scores.verification import pair_error
from edgeid.converters.training.faces import FaceSet
from edgeid.converters.training.speech import SpeechSet, read_speech
from edgeid.runtime.face_spec import FaceSpec, network_input
from edgeid.runtime.graph import Graph
from edgeid.runtime.scoring_backend import Backend
from edgeid.runtime.voice import VoiceSpec, cut_windows

Floats = NDArray[np.float32]
UTTERANCES = 8  # of a speaker, to learn from
SPEAKERS = 200  # embedded at a time
FEWEST = 10  # people of a set that says anything


@dataclass(frozen=True, eq=False)
class People:
    """Embeddings (N, d) and the identity of each, which begins with the name of its set."""

    embeddings: Floats
    identities: NDArray[np.str_]

    @property
    def sets(self) -> NDArray[np.str_]:
        """(N,) the set of each."""
        return np.array([name.partition("/")[0] for name in self.identities])

    def error(self, backend: Backend | None = None) -> float:
        """Mean over the sets of the equal error rate within each.

        People of different sets are easy to tell apart, by camera or microphone; and few people
        with many images would outweigh the rest. Sets of fewer than ten people are left out.
        """
        errors = []
        for one in np.unique(self.sets):
            chosen = self.sets == one
            if len(np.unique(self.identities[chosen])) >= FEWEST:
                part = self.embeddings[chosen], self.identities[chosen]
                errors.append(pair_error(*part, backend))
        return float(np.mean(errors))


def learn_chosen(training: People, calibration: People) -> tuple[Backend, dict[str, Any]]:
    """The back end of the training people, and what there is to report of it.

    Its shrinkage is the one that verifies best the calibration people of each set by a back end
    that neither they nor their set had a part in; 1 is the cosine.
    """
    rows, names, sets = training.embeddings, training.identities, training.sets
    others = HeldPeople(calibration.embeddings, calibration.identities, calibration.sets)
    options, errors = choose_shrinkage(rows, names, sets=sets, others=others)
    backend = learn_backend(rows, names, options, sets)
    return backend, {
        "dimensions": backend.projection.shape[0],
        "shrinkage": options.shrinkage,
        "left_out_eer": {f"{share:g}": error for share, error in errors.items()},
        "calibration_eer": calibration.error(backend),
        "calibration_eer_cosine": calibration.error(),
    }


def face_figures(
    graph: Graph, training: FaceSet, calibration: FaceSet, entry: str = "face"
) -> dict[str, Any]:
    """LFW and calibration people by cosine and by Joint Bayesian."""
    people = [embed_faces(graph, faces, entry) for faces in (training, calibration)]
    backend, choice = learn_chosen(*people)
    return {
        "calibration_eer": choice["calibration_eer_cosine"],
        "cosine": evaluate_faces(graph, entry),
        "joint_bayesian": evaluate_faces(graph, entry, backend=backend) | choice,
    }


def teacher_figures(graph: Graph, faces: tuple[FaceSet, FaceSet], cache: Path) -> dict[str, Any]:
    """``face_figures`` of a teacher, kept in ``cache``: it has a folder to itself."""
    path = cache / f"figures-{len(faces[0].crops)}.json"
    return kept_figures(path, lambda: face_figures(graph, *faces))


def kept_figures(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured before and kept at ``path``, or is now."""
    if not path.is_file():
        save_results(path, make())
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def embed_faces(graph: Graph, faces: FaceSet, entry: str = "face") -> People:
    """Outputs for all crops, some at a time."""
    parts = [faces.crops[i : i + 1024] for i in range(0, len(faces.crops), 1024)]
    rows = [embed(graph, entry, network_input(part, FaceSpec())) for part in parts]
    return People(np.concatenate(rows), names_of(faces))


def measured_people(faces: tuple[FaceSet, FaceSet], quick: bool) -> tuple[FaceSet, FaceSet]:
    """Training people, of whom a quick run takes a few, and calibration people."""
    training, calibration = faces
    return (training.subset(training.labels < 500) if quick else training), calibration


def names_of(faces: FaceSet) -> NDArray[np.str_]:
    """(N,) identity of each crop."""
    return np.array(faces.identities)[faces.labels]


def voice_figures(graph: Graph, data: Path) -> dict[str, Any]:
    """Development trials and calibration speakers by cosine and by Joint Bayesian.

    The training speakers of all sets teach the back end, each with ``UTTERANCES`` at most.
    """
    archives = [data / "speech" / f"train_{kind}.zip" for kind in ("sentences", "words")]
    training, calibration = read_speech(archives, VoiceSpec()).split()
    people = [embed_speech(graph, speech) for speech in (training, calibration)]
    backend, choice = learn_chosen(*people)
    return {
        "calibration_eer": choice["calibration_eer_cosine"],
        "cosine": evaluate_voices(graph),
        "joint_bayesian": evaluate_voices(graph, backend=backend) | choice,
    }


def embed_speech(graph: Graph, speech: SpeechSet) -> People:
    """Embeddings (N, d) of utterances, each the mean over its windows."""
    rows, names = [], list[str]()
    for first in range(0, len(speech.speakers), SPEAKERS):
        groups = [u[:UTTERANCES] for u in speech.utterances[first : first + SPEAKERS]]
        windows = [cut_windows(u, VoiceSpec()) for group in groups for u in group]
        outputs = embed(graph, "voice", np.concatenate(windows))
        ends = np.cumsum([len(each) for each in windows])
        rows += [part.mean(axis=0) for part in np.split(outputs, ends[:-1])]
        speakers = speech.speakers[first : first + SPEAKERS]
        names += [name for name, group in zip(speakers, groups, strict=True) for _ in group]
    return People(np.stack(rows), np.array(names))
