"""What all sections of a configuration are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A part of the configuration: immutable, and closed to unknown keys.

    Settings of earlier versions stay readable: ``renamed`` maps an old key to the present one; ``retired`` maps a
    key that was removed to the value with which it had no effect. A retired key with that value is dropped; with
    another value it is an error, because this version cannot do what was asked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    renamed: ClassVar[Mapping[str, str]] = {}
    retired: ClassVar[Mapping[str, Any]] = {}

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_versions(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for key in values.keys() & cls.retired.keys():
            if values[key] != cls.retired[key]:
                raise ValueError(
                    f"{key} was removed, only {cls.retired[key]!r} is left of it; leave the setting out, "
                    "and make a new run where an earlier one depends on it"
                )
        for key in values.keys() & cls.renamed.keys():
            if cls.renamed[key] in values:
                raise ValueError(f"{key} is the earlier name of {cls.renamed[key]}; give one of them")
        return {cls.renamed.get(key, key): value for key, value in values.items() if key not in cls.retired}
