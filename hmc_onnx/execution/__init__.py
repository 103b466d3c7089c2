"""How a run is executed: what its stages share, worker processes and clusters, checkpoints."""
