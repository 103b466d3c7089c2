"""Models on onnxruntime: sessions, batch sizes, and shapes that only a run shows."""
