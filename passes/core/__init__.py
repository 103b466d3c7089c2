"""Helpers that know nothing of graphs: errors, progress, JSON records, atomic files, arrays on disk, least squares."""
