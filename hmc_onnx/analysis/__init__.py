"""What a model is made of: its inputs, its layers and its channel groups."""
