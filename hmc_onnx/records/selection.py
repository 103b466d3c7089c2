"""Which layers the user leaves alone: the patterns of the options `keep` and `only`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from passes.core.declined import Declined, Why
from passes.core.errors import SettingsError

__all__ = ["ALL", "LayerSelection"]

# Names that the message on a pattern without a match lists, and how similar to the pattern they have to be (0 to 1).
SHOWN, SIMILAR = 5, 0.3


@dataclass(frozen=True)
class LayerSelection:
    """Patterns on the names of layers, in the style of a shell: *, ?, [abc], [!abc]; upper and lower case differ.

    Attributes:
        keep: layers that match one of these are left alone.
        only: if there are any, layers that match none of these are left alone, too.
    """

    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    def left_alone(self, names: Sequence[str]) -> dict[str, Declined]:
        """Why layers are left alone, by name, for those that are.

        Args:
            names: of all layers of a model, in its order.

        Raises:
            SettingsError: a pattern matches no layer, or no layer is left to be changed.
        """
        for option, patterns in (("keep", self.keep), ("only", self.only)):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in names):
                    raise SettingsError(f"`{option}` '{pattern}' matches no layer: {_near(pattern, names)}")
        found: dict[str, Declined] = {}
        for name in names:
            matched = next((p for p in self.keep if fnmatchcase(name, p)), None)
            if matched is not None:
                found[name] = Declined(name, Why.CHOSEN, f"kept, as it matches the pattern {matched}")
            elif self.only and not any(fnmatchcase(name, p) for p in self.only):
                found[name] = Declined(
                    name, Why.CHOSEN, f"left alone, as it matches no pattern of {' '.join(self.only)}"
                )
        if found and len(found) == len(names):
            raise SettingsError("no layer is left to compress: match fewer with `keep`, or more with `only`")
        return found


ALL = LayerSelection()


def _near(pattern: str, names: Sequence[str]) -> str:
    """Layers that the user may have meant, or the first ones where none is near."""
    near = get_close_matches(pattern.strip("*"), names, n=SHOWN, cutoff=SIMILAR)
    if near:
        return f"near names are {', '.join(near)}"
    return f"its layers are {', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''}"
