"""Digests of what the native engine answers, to be the same on every machine.

    python tests/arm64/embeddings.py [MODEL.edgeid ...]

Prints a line for every model, entry and instruction set; the default model is among them. Inputs
are drawn as whole numbers, so that they are the same to the bit as well.
"""

from __future__ import annotations

import hashlib
import sys
from importlib.resources import files

import numpy as np

from edgeid.runtime.format import read_model
from edgeid.runtime.native.engine import NativeEngine, levels


def digests(path: str) -> list[str]:
    graph = read_model(path).graph
    lines = []
    for isa in levels():
        engine = NativeEngine(graph, threads=1, isa=isa)
        for entry in graph.entries:
            rng = np.random.default_rng(0)
            x = rng.integers(-255, 256, (2, *entry.shape)).astype(np.float32) / 128
            digest = hashlib.sha256(engine.run(entry.name, x).tobytes()).hexdigest()[:32]
            lines.append(f"{path.rpartition('/')[2]} {entry.name} {isa} {digest}")
    return lines


if __name__ == "__main__":
    for model in [str(files("edgeid") / "default.edgeid"), *sys.argv[1:]]:
        print(*digests(model), sep="\n")
