"""Graph passes: normalisation, pruning, decompositions, removal of residual branches. No onnxruntime, no torch."""
