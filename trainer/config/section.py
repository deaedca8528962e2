"""What all sections of the configuration share, and how a validator complains of a key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """What all sections share: they cannot change, unknown keys are errors, and `"12"` is not a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def with_defaults_of(key: str, usual: str, defaults: Mapping[Any, Mapping[str, Any]], given: Any) -> Any:
    """What was given for a section, of which one key chooses some defaults of the others; whatever it is, as yet unchecked."""
    chosen = given.get(key, usual) if isinstance(given, dict) else None
    return {**defaults[chosen], **given} if isinstance(chosen, str) and chosen in defaults else given


def complaint(key: str | int, got: str, expected: str, *inner: str | int) -> PydanticCustomError:
    """An error of a validator that names the key below its own model: `config_io` finds the line by `below`."""
    return PydanticCustomError(
        "complaint", "got {got}, expected {expected}", {"below": (key, *inner), "got": got, "expected": expected}
    )
