"""Every error that EdgeID raises on purpose, in one tree.

    EdgeIDError
    |-- InputError               what was handed in cannot be used
    |   |-- ImageError             unreadable or truncated image, wrong shape or dtype
    |   |-- AudioError             unreadable or truncated audio, wrong shape or dtype, NaN
    |   `-- QualityError           readable, but not good enough for a decision
    |       |-- NoFaceError
    |       |-- SeveralFacesError
    |       |-- FaceTooSmallError
    |       |-- FaceBlurredError
    |       |-- FaceExposureError     too dark, too bright, too flat
    |       |-- FacePoseError         turned or tilted too far
    |       |-- SilenceError
    |       |-- TooLittleSpeechError
    |       `-- ClippedAudioError
    |-- ModelError               a model file or graph cannot be used
    |   |-- ModelFormatError       corrupt, truncated, not an .edgeid file
    |   |-- ModelVersionError      written by a newer EdgeID
    |   |-- GraphError             layers that do not fit together
    |   |   `-- UnsupportedOperatorError
    |   `-- GoldenVectorError      the engine does not reproduce the file's golden vectors
    |-- EngineError              the engine asked for is not there or failed
    |-- CalibrationError         no threshold can be given for the false match rate asked for
    |-- StoreError               the template store cannot do what was asked
    |   |-- UnknownUserError
    |   |-- DuplicateUserError
    |   |-- WrongKeyError
    |   |-- StoreLockedError
    |   |-- StoreFullError
    |   `-- StoreCorruptError
    |-- DataError                a data set, protocol file or checkpoint is missing or malformed
    `-- MissingExtraError        an optional dependency is not installed

Each class carries a stable ``code`` for programs; the message is for people and says
what was wrong, with the value, and what to do.
"""

from __future__ import annotations


class EdgeIDError(Exception):
    """Base of every error EdgeID raises on purpose."""

    code = "error"


class InputError(EdgeIDError):
    """What was handed in cannot be used."""

    code = "bad-input"


class ImageError(InputError):
    """The image is unreadable, truncated, or an array of the wrong shape or dtype."""

    code = "bad-image"


class AudioError(InputError):
    """The audio is unreadable, truncated, not finite, or of the wrong shape or dtype."""

    code = "bad-audio"


class QualityError(InputError):
    """The input is readable, but not good enough to decide on."""

    code = "quality"


class NoFaceError(QualityError):
    """No face was found in the image."""

    code = "no-face"


class SeveralFacesError(QualityError):
    """More than one face was found where exactly one is needed."""

    code = "several-faces"


class FaceTooSmallError(QualityError):
    """The face has too few pixels."""

    code = "face-too-small"


class FaceBlurredError(QualityError):
    """The face is out of focus or smeared by motion."""

    code = "face-blurred"


class FaceExposureError(QualityError):
    """The face is too dark, too bright or without contrast."""

    code = "face-exposure"


class FacePoseError(QualityError):
    """The face is turned or tilted too far from the camera."""

    code = "face-pose"


class SilenceError(QualityError):
    """The recording holds no speech at all."""

    code = "silence"


class TooLittleSpeechError(QualityError):
    """The recording holds some speech, but less than a decision needs."""

    code = "too-little-speech"


class ClippedAudioError(QualityError):
    """The recording was overdriven: too many samples at full scale."""

    code = "clipped-audio"


class ModelError(EdgeIDError):
    """A model file or graph cannot be used."""

    code = "model"


class ModelFormatError(ModelError):
    """The file is not an .edgeid file, or is truncated or corrupt."""

    code = "model-format"


class ModelVersionError(ModelError):
    """The file was written in a version of the format that this EdgeID does not read."""

    code = "model-version"


class GraphError(ModelError):
    """Layers or tensors of a graph do not fit together."""

    code = "graph"


class UnsupportedOperatorError(GraphError):
    """A network uses an operator outside the set EdgeID runs."""

    code = "unsupported-operator"


class GoldenVectorError(ModelError):
    """The engine does not reproduce the golden vectors stored in the model file."""

    code = "golden-vector"


class EngineError(EdgeIDError):
    """The inference engine asked for is not available, or failed."""

    code = "engine"


class CalibrationError(EdgeIDError):
    """No threshold can be stated for the false match rate asked for."""

    code = "calibration"


class StoreError(EdgeIDError):
    """The template store cannot do what was asked; it is left as it was."""

    code = "store"


class UnknownUserError(StoreError):
    """No such user is enrolled."""

    code = "unknown-user"


class DuplicateUserError(StoreError):
    """The user is enrolled already."""

    code = "duplicate-user"


class WrongKeyError(StoreError):
    """The key does not open this store, or the key file cannot be used."""

    code = "wrong-key"


class StoreLockedError(StoreError):
    """Another process holds the store."""

    code = "store-locked"


class StoreFullError(StoreError):
    """The disk is full, or the store cannot be written."""

    code = "store-full"


class StoreCorruptError(StoreError):
    """The store file is damaged or is not an EdgeID store."""

    code = "store-corrupt"


class DataError(EdgeIDError):
    """A data set, protocol file or training checkpoint is missing or malformed."""

    code = "data"


class MissingExtraError(EdgeIDError):
    """An optional dependency is needed and not installed."""

    code = "missing-extra"
