"""The base class of all sections of a configuration, and the spellings of a value that it accepts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.fields import FieldInfo


class Section(BaseModel):
    """A part of the configuration: immutable, and closed to unknown keys.

    Settings of earlier versions stay readable: ``renamed`` maps an old key to the present one; ``retired`` maps a
    key that was removed to the value with which it had no effect. A retired key with that value is dropped; with
    another value it is an error, because this version no longer has it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    renamed: ClassVar[Mapping[str, str]] = {}
    retired: ClassVar[Mapping[str, Any]] = {}

    @model_validator(mode="before")
    @classmethod
    def _read_plain_values(cls, values: Any) -> Any:
        """Read settings of earlier versions, values that YAML turned into something else, and parts of a section."""
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
        values = {cls.renamed.get(key, key): value for key, value in values.items() if key not in cls.retired}
        for key, field in cls.model_fields.items():
            if key in values:
                values[key] = _as_typed(values[key], field.annotation)
                if isinstance(values[key], dict) and isinstance(field.default, Section):
                    # Some settings of a section leave the others at what they are by default here.
                    values[key] = field.default.model_dump(mode="json", exclude_unset=True) | values[key]
        return values


def _as_typed(value: Any, annotation: Any) -> Any:
    """``value`` as its setting spells it.

    YAML 1.1 reads a bare ``on``, ``off``, ``yes`` or ``no`` as a boolean, and ``null`` as no value. A setting that
    takes one of these words, or ``none``, gets the word; a setting that can be null also understands ``off``, ``no``
    and ``none``.
    """
    options = list(_options(annotation))
    words = [option for option in options if isinstance(option, str)]
    takes_bool = any(option is bool or isinstance(option, bool) for option in options)
    if isinstance(value, bool) and not takes_bool:
        spellings = ("on", "yes") if value else ("off", "no", "none")
        word = next((word for word in spellings if word in words), None)
        return None if word is None and not value and NoneType in options else value if word is None else word
    if value is None and NoneType not in options:
        return next((word for word in ("none", "off", "no") if word in words), None)
    if isinstance(value, str) and value == "none" and NoneType in options and "none" not in words:
        return None
    return value


def _options(annotation: Any) -> Iterator[Any]:
    """The types and the literal values that an annotation allows."""
    origin = get_origin(annotation)
    if origin is Literal:
        yield from get_args(annotation)
    elif origin in (Union, UnionType):
        for argument in get_args(annotation):
            yield from _options(argument)
    elif origin is Annotated:
        yield from _options(get_args(annotation)[0])
    else:
        yield annotation


def subsection(field: FieldInfo) -> type[Section] | None:
    """The section that a field holds (also an optional one, or a list of them), or None."""
    options = [field.annotation, *get_args(field.annotation)]
    return next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)
