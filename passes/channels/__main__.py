"""Prints the table of operators in docs/operators.md: `python -m passes.channels`."""

from passes.channels.registry import table

print(table(), end="")
