"""What is to be predicted: texts, or JSON objects with the fields of the task. No TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from trainer.config import Config
from trainer.errors import DataError

Item = Mapping[str, str]  # texts by the names of `config.FIELDS`


@dataclass(frozen=True)
class Lines:
    """A line for each prediction: a text, or with `is_json` an object. `origin` names where they are from in complaints."""

    lines: Iterable[str]
    origin: str
    is_json: bool


def input_fields(config: Config) -> dict[str, str]:
    """The fields that a prediction needs, by their names in `config.FIELDS`, and what an object calls them."""
    match config.task:
        case "language_modeling" | "masked_language_modeling":
            names: tuple[str, ...] = ("text",)
        case "classification":
            names = ("text",) if config.data.fields.text_b is None else ("text", "text_b")
        case "translation" | "summarization":
            names = (config.text_fields[0],)
        case "question_answering":
            names = ("question", "context")
    keys = {name: getattr(config.data.fields, name) for name in names}
    # A column that had only a number has the field's name.
    return {name: key if isinstance(key, str) else name for name, key in keys.items()}


def read_items(config: Config, given: Lines) -> Iterator[Item]:
    """Each line as the task's fields, when it is asked for. Raises DataError where one has not got them."""
    fields = input_fields(config)
    if not given.is_json and len(fields) > 1:
        names = " and ".join(repr(key) for key in fields.values())
        raise DataError(
            f"{given.origin}: got lines of text, expected JSON objects with {names}, which {config.task} needs; "
            "give --input FILE.jsonl, or --json"
        )
    for number, line in enumerate(given.lines, start=1):
        if not given.is_json:
            yield {name: line for name in fields}
        elif line.strip():
            yield _item(line, fields, f"{given.origin}:{number}")


def _item(line: str, fields: Mapping[str, str], place: str) -> Item:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: is not JSON ({error}); give one object a line") from None
    if not isinstance(content, dict):
        raise DataError(
            f"{place}: got {line.strip()[:40]}, expected a JSON object with {', '.join(map(repr, fields.values()))}"
        )
    for key in fields.values():
        if not isinstance(content.get(key), str):
            got = json.dumps(content[key], ensure_ascii=False)[:40] if key in content else "nothing"
            raise DataError(f"{place}: field {key!r}: got {got}, expected a text")
    return {name: content[key] for name, key in fields.items()}
