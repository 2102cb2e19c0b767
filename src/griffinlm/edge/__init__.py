"""The onnx engine: one graph a model, its session, and an executor that owns the states. Needs no torch."""
