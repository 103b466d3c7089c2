"""`Declined` as profiles and plans keep it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from passes.core.declined import Declined, Why

__all__ = ["Reason"]


def _read(value: Any) -> Any:
    """Files of earlier versions hold the sentence alone."""
    return {"node": "", "code": Why.UNSAID, "reason": value} if isinstance(value, str) else value


Reason = Annotated[Declined, BeforeValidator(_read)]
