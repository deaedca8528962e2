"""What pydantic finds at fault in a configuration, in words that need no knowledge of pydantic."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Iterator, Sequence

from pydantic import BaseModel
from pydantic_core import ErrorDetails

# Where in the tree: ("data", "train", 0, "path").
Place = tuple[str | int, ...]


def explain(errors: Sequence[ErrorDetails], root: type[BaseModel]) -> Iterator[tuple[Place, str]]:
    """For each place in a `root` that is at fault: what was got, what was expected, and the nearest valid name."""
    renamed = {}
    for error in errors:
        if error["type"] == "extra_forbidden":
            renamed[error["loc"]] = _nearest_key(root, error["loc"])
    replaced = {(*place[:-1], near) for place, near in renamed.items()}

    expectations: dict[Place, list[ErrorDetails]] = {}
    for error in errors:
        below = error.get("ctx", {}).get("below", ()) if error["type"] == "complaint" else ()
        place = (*error["loc"], *below)
        # A misspelt key is also a missing one; the user made one mistake.
        if error["type"] == "missing" and place in replaced:
            continue
        # pydantic counts only the items that are right; those that are not have their own complaints.
        if error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]:
            continue
        expectations.setdefault(_written(root, place), []).append(error)

    for place, found in expectations.items():
        first = found[0]
        match first["type"]:
            case "extra_forbidden":
                text = f"unknown key{_suggest(renamed[place])}"
            case "missing":
                text = "missing, and it has no default"
            case "complaint":
                text = first["msg"]
            case _:
                expected = " or ".join(dict.fromkeys(_expected(error) for error in found))
                text = f"got {show(first['input'])}, expected {expected}{_suggest(_nearest_choice(first))}"
        yield place, text


def _expected(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    match error["type"]:
        case "int_type" | "int_from_float" | "int_parsing" | "int_parsing_size":
            return "a whole number"
        case "float_type" | "float_parsing":
            return "a number"
        case "finite_number":
            return "a finite number"
        case "bool_type" | "bool_parsing":
            return "true or false"
        case "string_type":
            return "text (write it in quotes)" if isinstance(error["input"], bool | int | float) else "text"
        case "string_too_short":
            return "text that is not empty"
        case "string_pattern_mismatch":
            return f"text of the form {context['pattern']}"
        case "literal_error":
            return _one_of(_choices(error))
        case "greater_than_equal":
            return f"at least {context['ge']}"
        case "greater_than":
            return f"more than {context['gt']}"
        case "less_than_equal":
            return f"at most {context['le']}"
        case "less_than":
            return f"less than {context['lt']}"
        case "too_short":
            return f"a list of at least {context['min_length']}"
        case "tuple_type" | "list_type":
            return "a list"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "a section of `key: value` lines"
        case _:
            return error["msg"]


def _choices(error: ErrorDetails) -> list[str]:
    # The context has them as one string: "'a', 'b' or 'c'".
    return re.findall(r"'([^']+)'", str(error["ctx"]["expected"]))


def _one_of(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"


def _nearest_choice(error: ErrorDetails) -> str | None:
    if error["type"] != "literal_error" or not isinstance(error["input"], str):
        return None
    return _nearest(error["input"], _choices(error))


def _nearest_key(root: type[BaseModel], place: Place) -> str | None:
    """The key that an unknown one was meant to be: one of its section, or its name in another section."""
    wrong = str(place[-1])
    section = _section(root, place[:-1])
    near = _nearest(wrong, section.model_fields) if section else None
    if near is None:
        elsewhere = [name for name, inner in _sections(root) if wrong in inner.model_fields]
        near = f"{elsewhere[0]}.{wrong}" if elsewhere else None
    return near


def _nearest(wrong: str, names: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(wrong, list(names), n=1)), None)


def _suggest(name: str | None) -> str:
    return f"; did you mean {name}?" if name else ""


def _written(root: type[BaseModel], place: Place) -> Place:
    """The part of a pydantic location that is a place in the file; what follows it names the members of a union."""
    for depth in range(1, len(place)):
        if not isinstance(place[depth], int) and _section(root, place[:depth]) is None:
            return place[:depth]
    return place


def _section(model: type[BaseModel], place: Place) -> type[BaseModel] | None:
    """The model of the section at a place."""
    keys = iter(place)
    for key in keys:
        if isinstance(key, int):
            continue
        inner = model.model_fields.get(key)
        found = _models(inner.annotation) if inner else []
        if inner is None or not found:
            return None
        model = found[0]
        if typing.get_origin(inner.annotation) is dict:
            next(keys, None)  # the name of one of them, which may be any
    return model


def _sections(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, inner in model.model_fields.items():
        for found in _models(inner.annotation):
            yield name, found


def _models(annotation: object) -> list[type[BaseModel]]:
    """The models in an annotation such as `tuple[SourceConfig, ...]` or `FieldsConfig | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in _models(argument)]


def dotted(place: Place) -> str:
    """`data.train.0.path`: a place as overrides write it."""
    return ".".join(str(key) for key in place)


def show(value: object) -> str:
    """A value as the user would have written it."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case str():
            return repr(value)
        case dict():
            return "a section"
        case list() | tuple():
            return "a list"
        case _:
            return str(value)
