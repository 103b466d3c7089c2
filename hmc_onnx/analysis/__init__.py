"""Analysis of a model: its inputs, the layers and channel groups that can be compressed, and `inspect`."""
