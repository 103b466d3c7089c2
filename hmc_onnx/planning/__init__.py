"""Choosing one candidate for each layer and group."""
