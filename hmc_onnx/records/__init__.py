"""The settings of a run and what it keeps in JSON: typed, versioned records."""
