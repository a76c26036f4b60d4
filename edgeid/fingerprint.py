"""Which model made a template: embeddings of different models cannot be compared."""

from __future__ import annotations

import hashlib
import json

from edgeid.runtime.format import ModelFile
from edgeid.runtime.graph import graph_to_dict


def model_fingerprint(file: ModelFile) -> str:
    """SHA-256, as 64 hexadecimal digits, of all that embeddings depend on.

    That is the graph with its weights as stored, and the preprocessing of face and voice. A new
    calibration, model card or version number leaves it as it is.
    """
    graph = graph_to_dict(file.graph)
    structure = {"graph": graph, "face": file.face, "voice": file.voice}
    digest = hashlib.sha256(json.dumps(structure, sort_keys=True).encode())
    for name in sorted(file.graph.tensors):
        tensor = file.graph.tensors[name]
        attributes = [getattr(tensor, attribute) for attribute in tensor.attributes]
        digest.update(json.dumps([name, tensor.encoding, tensor.shape, attributes]).encode())
        for part, array in sorted(tensor.parts().items()):
            digest.update(json.dumps([part, array.dtype.str, array.shape]).encode())
            digest.update(array.tobytes())
    return digest.hexdigest()
