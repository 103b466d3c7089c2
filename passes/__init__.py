"""The floor that knows graphs: load and save, normalisation, channel groups, decompositions, cost."""
