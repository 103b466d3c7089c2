"""Where tasks run, and where their results are kept."""
