"""The comparison of two models: signature, cost, fidelity, accuracy and latency."""
