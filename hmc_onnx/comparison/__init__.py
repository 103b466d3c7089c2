"""Two models side by side: cost, fidelity, accuracy and time."""
