"""The profiling stage: the cost, the time and the sensitivity of every candidate."""
