"""What every floor uses and is no graph: errors, progress, records on disk, arrays on a shelf, least squares."""
