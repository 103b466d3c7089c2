"""Helpers without a graph: errors, progress, JSON records, atomic files, arrays on disk, least squares."""
