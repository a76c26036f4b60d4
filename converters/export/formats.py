"""What a model can be exported as."""

from __future__ import annotations

FORMATS = {
    "onnx": ".onnx",
    "onnx-codebook": ".codebook.onnx",
    "tflite": ".tflite",
    "tflite-int8": ".int8.tflite",
}
"""Names of the formats, and how the names of their files end."""
