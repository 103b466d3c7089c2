"""`Declined`: the type in which every analysis says what it leaves as it is, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

__all__ = ["Declined", "Why", "sentences"]


class Why(str, Enum):
    """Kinds of reasons, for programs to tell apart; the sentence for people is `Declined.reason`.

    COMPUTED_WEIGHTS: its weights, or other parameters, are not constant.
    CUSTOM_DOMAIN: it is no operator of ONNX.
    NO_RULE: no rule says how its operator passes channels on.
    ELEMENT_TYPE: its weights are of a type that is not handled.
    NOT_FINITE: its weights are NaN or infinite.
    FORM: its attributes or its bias are of a form that is not handled.
    UNKNOWN_SIZE: a shape is not known.
    TOO_LARGE: it is too large to be studied.
    GROUPED: it is a grouped Conv, or tied to one.
    KERNEL: its kernel is not one that the method is for.
    OUTPUT: it is an output of the model.
    UNREAD: no layer reads it that could be made smaller.
    TIED: it is tied to a layer that is left as it is.
    CHANNELS: its channels cannot be followed.
    NESTED: it is inside another node.
    SHARED: its weights are shared with a node that cannot be changed in the same way.
    CHOSEN: the user leaves it alone.
    UNSAID: the kind is not recorded.
    """

    COMPUTED_WEIGHTS = "computed weights"
    CUSTOM_DOMAIN = "custom domain"
    NO_RULE = "no rule"
    ELEMENT_TYPE = "element type"
    NOT_FINITE = "not finite"
    FORM = "form"
    UNKNOWN_SIZE = "unknown size"
    TOO_LARGE = "too large"
    GROUPED = "grouped"
    KERNEL = "kernel"
    OUTPUT = "output"
    UNREAD = "unread"
    TIED = "tied"
    CHANNELS = "channels"
    NESTED = "nested"
    SHARED = "shared"
    CHOSEN = "chosen"
    UNSAID = "unsaid"


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


def sentences(declined: Mapping[str, Declined]) -> dict[str, str]:
    """The sentences for people, by the names of what is left as it is."""
    return {name: str(own) for name, own in declined.items()}
