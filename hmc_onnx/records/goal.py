"""What a network is compressed to: a target or a bound on the loss, and by which methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from hmc_onnx.records.options import Option, Options
from passes.core.arguments import check_type
from passes.core.errors import SettingsError
from passes.core.records import Frozen

__all__ = ["Goal", "Strategy", "Target", "Unreachable", "parse_target"]

Strategy = Literal["hmc", "nahc", "ahc", "prune", "lowrank"]


class Target(Frozen):
    """The share of the original's time, MACs and parameters that may be used; None where there is no bound."""

    latency: float | None = Field(default=None, gt=0, le=1)
    macs: float | None = Field(default=None, gt=0, le=1)
    params: float | None = Field(default=None, gt=0, le=1)

    def __str__(self) -> str:
        return ",".join(f"{k}={v:g}" for k, v in self if v is not None) or "none"


class Unreachable(SettingsError):
    """No network meets a target.

    Attributes:
        least: for each bound of the target, the least that can be reached if there were no other bound.
    """

    def __init__(self, message: str, least: Target) -> None:
        super().__init__(message)
        self.least = least

    def __reduce__(self) -> tuple[Any, ...]:
        """Exceptions are copied between processes by their constructors' arguments."""
        return Unreachable, (str(self), self.least)


class Goal(Options):
    """What to compress for: either a target, or a bound on the loss of accuracy.

    Raises:
        SettingsError: both are given, or neither; or a value is out of range.
    """

    panel: ClassVar[str] = "Goal"

    target: Annotated[Target | None, Option(given=str, metavar="SHARES", example="macs=0.5")] = Field(
        default=None,
        description="Share of the original to keep: latency=0.6, macs=0.5, params=0.5, or several with commas between. "
        "none changes the precision alone.",
    )
    max_drop: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="In place of a target: make the fastest network that loses no more top-1 accuracy than this share, "
        "such as 0.01. Without labels, the loss is the share of images for which another class is chosen.",
    )
    or_nearest: bool = Field(
        default=False,
        description="Where the target cannot be reached, make the network that comes nearest to it, in place of none.",
    )
    strategy: Strategy = Field(
        default="hmc",
        description="hmc chooses a method for each layer; the others allow fewer choices, for comparison.",
    )

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            target: Target | str | None = None,
            max_drop: float | None = None,
            or_nearest: bool = False,
            strategy: Strategy = "hmc",
        ) -> None: ...

    @field_validator("target", mode="before")
    @classmethod
    def _parsed(cls, target: Any) -> Any:
        return target if target is None or isinstance(target, Target | dict) else parse_target(target)

    def model_post_init(self, _: object) -> None:
        """Check that there is one aim."""
        if self.target is None and self.max_drop is None:
            raise SettingsError("there is no goal: give `target`, such as latency=0.6, or `max_drop`, such as 0.01")
        if self.target is not None and self.max_drop is not None:
            raise SettingsError("`target` and `max_drop` were both given: give one")

    @classmethod
    def of(cls, goal: Goal | Target | str) -> Goal:
        """A goal from what a caller gives: itself, a target, or text such as "latency=0.6" or "max_drop=0.01".

        Raises:
            SettingsError: the text is not understood, or a share is out of range.
        """
        if isinstance(goal, Goal):
            return goal
        check_type(goal, (Target, str), "the goal", 'say what it bounds, such as "macs=0.5" or "max_drop=0.01"')
        if isinstance(goal, str) and goal.replace(" ", "").startswith("max_drop="):
            try:
                share = float(goal.partition("=")[2])
            except ValueError as e:
                raise SettingsError(
                    f"'{goal}' is not understood: max_drop is a share of the images, such as 0.01"
                ) from e
            return cls(max_drop=share)
        return cls(target=parse_target(goal) if isinstance(goal, str) else goal)

    @property
    def by_latency(self) -> bool:
        """Whether times have to be measured."""
        return self.target is None or self.target.latency is not None


def parse_target(text: str) -> Target:
    """Read "latency=0.6", "macs=0.5", "params=0.4" or several with commas between; "none" bounds nothing.

    Raises:
        SettingsError: the text is not of that form, or a share is outside (0, 1].
    """
    check_type(text, str, "the target", 'say what it bounds, such as "macs=0.5"')
    if text.strip() == "none":
        return Target()
    values: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (word.strip() for word in part.partition("="))
        try:
            repeated, values[name] = name in values, float(number)
        except ValueError:
            repeated = True
        if repeated or name not in Target.model_fields:
            raise SettingsError(
                f"target '{text}' is not understood: "
                "write latency=0.6, macs=0.5 or params=0.5, or several with commas between"
            )
    for name, value in values.items():
        if not 0 < value <= 1:
            raise SettingsError(f"target {name}={value:g} is out of range: it is a share, above 0 and at most 1")
    return Target(**values)
