"""Calibration data: reading, choosing and preprocessing images."""
