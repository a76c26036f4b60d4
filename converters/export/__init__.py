"""A model for other runtimes: ONNX, with or without its codebooks, and TFLite, float or int8."""
