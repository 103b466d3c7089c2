"""Running models on onnxruntime: sessions, batch sizes, observed shapes, INT8 and float16."""

from calib.runtime.installed import import_onnxruntime

ort = import_onnxruntime()
