"""Read an ONNX file into a graph."""
