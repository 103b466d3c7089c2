"""The graph itself: loading and saving, shapes, cost, layers, parts of it."""
