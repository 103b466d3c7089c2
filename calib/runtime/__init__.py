"""Running models on onnxruntime: sessions, batches, shapes seen by a run."""
