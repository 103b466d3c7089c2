"""The channel rules: how each operator passes channels on. One class for a family of operators.

To add an operator, write a rule in the module that fits and decorate it with `register`; a new module is also named in
`passes.channels.registry.MODULES`. Add a step to tests/drawing.py, whose random graphs prove the rule exact, and run
`python -m passes.channels > docs/operators.md`.
"""

__all__: list[str] = []
