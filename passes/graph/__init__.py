"""The graph: loading and saving, shapes, costs, layers, subgraphs, and weights that stay in a file."""
