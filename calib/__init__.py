"""The floor that measures: data readers, onnxruntime sessions, statistics, sensitivity, latency."""
