"""Reports for people: tables of plans, comparisons, latency tables and training."""
