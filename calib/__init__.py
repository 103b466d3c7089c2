"""Measuring with onnxruntime: image data, sessions, second moments, sensitivity and latency."""
