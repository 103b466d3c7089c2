"""Running models on onnxruntime: sessions, batches, shapes seen by a run."""

from calib.runtime.installed import import_onnxruntime

ort = import_onnxruntime()
