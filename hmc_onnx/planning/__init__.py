"""The planning stage: one candidate for each layer and group, within a target or a bound on the loss."""
