"""How each operator passes channels on: a class a family, a module a subject.

To add an operator, write a rule and register it. tests/passes/test_channels.py draws graphs from all of them: add
a step there, which proves it exact, and run `python -m passes.channels > docs/operators.md`.
"""

__all__: list[str] = []
