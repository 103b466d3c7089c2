"""Typed records: settings and goals of a run, and its results (profile, plan, comparison), kept as JSON."""
