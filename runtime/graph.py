"""The one intermediate form of a network: typed layers over named tensors.

Converters produce it, the ``.edgeid`` file stores it, every engine runs it. The
vocabulary is that of ONNX; batch normalisation is folded before a network becomes a
graph. Activations are float32, NCHW. Weights live beside the layers in
``Graph.tensors`` under the names that the layers carry, so that two layers may share one.
"""
