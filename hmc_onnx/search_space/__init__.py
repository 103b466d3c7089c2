"""The search space: what each layer and channel group may become, and the weights that each candidate has."""
