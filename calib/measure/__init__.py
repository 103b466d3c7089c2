"""Measurements on onnxruntime: second moments of layers' inputs, sensitivity to changed weights, latency."""
