"""The onnx engine: one graph a model, its session, and an executor that owns the states. Needs no torch."""

import os

# ONNX Runtime 1.31 keeps a database of its use and sends it to another host, unless told not to before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
