"""Measuring on onnxruntime: second moments, sensitivity, latency."""
