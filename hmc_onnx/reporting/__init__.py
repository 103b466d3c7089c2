"""Reports for people: tables of plans, comparisons, latency tables and training, and the page of a run."""
