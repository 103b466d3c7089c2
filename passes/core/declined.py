"""`Declined`: the type in which every analysis says what it leaves as it is, and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Declined", "Why"]


class Why(str, Enum):
    """Kinds of reasons, for programs to tell apart; the sentence for people is `Declined.reason`."""

    COMPUTED_WEIGHTS = "its weights are not constant"
    CUSTOM_DOMAIN = "it is no operator of ONNX"
    ELEMENT_TYPE = "its weights are of a type that is not handled"
    NOT_FINITE = "its weights are NaN or infinite"
    FORM = "its attributes or bias are of a form that is not handled"
    UNKNOWN_SIZE = "the size of its input is not known"
    TOO_LARGE = "it is too large to be studied"
    GROUPED = "it is a grouped Conv"
    KERNEL = "its kernel is not one that the method is for"
    CHANNELS = "its channels cannot be followed or are tied to what cannot be pruned"
    NESTED = "it is inside another node"
    SHARED = "its weights are shared with a node that cannot be changed in the same way"
    CHOSEN = "the user leaves it alone"


@dataclass(frozen=True)
class Declined:
    """A node or channel group that cannot be changed, and why.

    Attributes:
        node: name of the node or channel group; empty if the question was about a geometry alone.
        code: the kind of reason.
        reason: a sentence without a full stop, for reports; also what `str` gives.
    """

    node: str
    code: Why
    reason: str

    def __str__(self) -> str:
        return self.reason
