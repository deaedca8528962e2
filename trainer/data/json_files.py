"""Reads JSON lines, and question answering in the format of SQuAD 1.1 and 2.0.

A row is its place and the values of the fields that were asked for, in that order. Of JSON lines the place is the offset of
the line, of SQuAD the number of the question in the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from trainer.data.input_files import checked_read, decode, line_number, open_span, text_lines
from trainer.data.sources import Span, compression_of, one_line
from trainer.data.tables import FieldColumn, Row
from trainer.errors import DataError


def json_texts(span: Span, column: str) -> Iterator[str]:
    """The field of each object that holds its text."""
    for offset, record in _objects(span):
        text = record.get(column)
        if not isinstance(text, str) or is_broken(text):
            raise _no_text(_place(span, offset), record, FieldColumn("text", column))
        yield text


def json_rows(span: Span, columns: Sequence[FieldColumn]) -> Iterator[Row]:
    names = [str(column) for _, column in columns]
    for offset, record in _objects(span):
        try:
            yield offset, [record[name] for name in names]
        except KeyError:
            missing = next(column for column in columns if column.column not in record)
            raise _no_text(_place(span, offset), record, missing) from None


def squad_rows(span: Span) -> Iterator[Row]:
    """Context, question, answers and id of each question (Rajpurkar et al. 2016, arXiv:1606.05250, and 2018,
    arXiv:1806.03822). Answers are lists of text and begin; of a question that is marked as impossible there are none.

    The file is one JSON object, and held in memory. Its paragraphs are taken to be of one length, so that shares of it
    have no gap and no overlap, and no paragraph in common.
    """
    paragraphs = list(_paragraphs(span.path, _squad_data(span)))
    compressed = compression_of(span.path) is not None
    number = 0
    for place, (where, paragraph) in enumerate(paragraphs):
        begin = span.size * place // len(paragraphs)
        is_within = compressed or span.begin <= begin < span.end
        context = _member(paragraph, "context", str, where)
        for index, question in enumerate(_member(paragraph, "qas", list, where)):
            if is_within:
                yield number, _squad_question(context, question, f"{where}.qas[{index}]")
            number += 1


def is_broken(text: str) -> bool:
    r"""Whether escapes like \ud83d stand alone, which JSON allows and UTF-8 does not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _objects(span: Span) -> Iterator[tuple[int, dict[str, Any]]]:
    for offset, line in text_lines(span):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{_place(span, offset)}: is not JSON ({one_line(error)}); expected an object a line") from None
        if not isinstance(record, dict):
            where = _place(span, offset)
            raise DataError(f"{where}: got a JSON {type(record).__name__}, expected an object with fields")
        yield offset, record


def _place(span: Span, offset: int) -> str:
    return f"{span.path}:{line_number(span.path, offset)}"


def _no_text(where: str, record: dict[str, Any], missing: FieldColumn) -> DataError:
    field, column = missing
    if column not in record:
        return DataError(
            f"{where}: has no field {column!r}; it has {', '.join(record)}: set data.fields.{field} to one of them"
        )
    return DataError(f"{where}: field {column!r} is {got(record[column])}, expected text; mend or leave out that line")


def got(value: Any) -> str:
    """What was got where text was expected."""
    return "text with half a surrogate pair" if isinstance(value, str) else json.dumps(value)[:40]


def _squad_data(span: Span) -> list[Any]:
    with open_span(Span(span.path, span.size, span.modified_ns, 0, span.size)) as file:
        text = decode(checked_read(file, span.path), span.path, 0)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{span.path}: is not JSON ({one_line(error)}); expected one object as SQuAD has it") from None
    return _member(content, "data", list, span.path)


def _paragraphs(path: str, articles: list[Any]) -> Iterator[tuple[str, Any]]:
    for number, article in enumerate(articles):
        where = f"{path}: data[{number}]"
        for index, paragraph in enumerate(_member(article, "paragraphs", list, where)):
            yield f"{where}.paragraphs[{index}]", paragraph


def _squad_question(context: str, question: Any, where: str) -> list[Any]:
    text = _member(question, "question", str, where)
    answers: list[tuple[str, int]] = []
    if not question.get("is_impossible", False):
        for index, answer in enumerate(_member(question, "answers", list, where)):
            place = f"{where}.answers[{index}]"
            answers.append((_member(answer, "text", str, place), _member(answer, "answer_start", int, place)))
    return [context, text, answers, str(question.get("id", ""))]


def _member(container: Any, key: str, kind: type[Any], where: str) -> Any:
    if not isinstance(container, dict):
        raise DataError(f"{where}: got a JSON {type(container).__name__}, expected an object with {key!r}, as SQuAD has it")
    if key not in container:
        raise DataError(f"{where}: has no {key!r}; it has {', '.join(container)}: expected what SQuAD has")
    if not isinstance(container[key], kind):
        raise DataError(f"{where}.{key}: got {json.dumps(container[key])[:40]}, expected a {kind.__name__}, as SQuAD has it")
    return container[key]
