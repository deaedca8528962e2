"""Finds names of persons and places in text: by Presidio (github.com/microsoft/presidio), which asks a spaCy model.

Both are imported where they are asked for: neither they nor any model of theirs comes with Drumline.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.errors import BackendError, DataError

# What Presidio calls them.
ENTITIES = {"name": "PERSON", "place": "LOCATION"}
# Of a text that is analyzed at once: spaCy refuses more than a million characters, and holds some kilobytes for each.
_PIECE_CHARACTERS = 50_000


def find_named(text: str, kinds: Sequence[str], language_model: str) -> Iterator[tuple[int, int, str]]:
    """Begin, end and kind of each.

    Raises BackendError where Presidio is not installed, and DataError where there is no such model.
    """
    analyzer, language = _analyzer(language_model)
    wanted = {ENTITIES[kind]: kind for kind in kinds if kind in ENTITIES}
    for begin, piece in _pieces(text):
        for each in analyzer.analyze(piece, language=language, entities=sorted(wanted)):
            yield begin + each.start, begin + each.end, wanted[each.entity_type]


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """Cut where there is a space, if there is any."""
    begin = 0
    while len(text) - begin > _PIECE_CHARACTERS:
        end = max(text.rfind(" ", begin, begin + _PIECE_CHARACTERS), text.rfind("\n", begin, begin + _PIECE_CHARACTERS))
        end = end if end > begin else begin + _PIECE_CHARACTERS
        yield begin, text[begin:end]
        begin = end
    yield begin, text[begin:]


@functools.lru_cache(maxsize=1)
def _analyzer(language_model: str) -> tuple[Any, str]:
    """Presidio's analyzer with the model, and the language that the model says it is of. Loading it takes seconds."""
    try:
        import spacy.util
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
        from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine
        from presidio_analyzer.predefined_recognizers import SpacyRecognizer
    except ImportError as error:
        raise BackendError(
            f"data.personal_data.kinds: name and place need Presidio, which is not installed ({error}); "
            "run: pip install presidio-analyzer, and python -m spacy download MODEL"
        ) from None
    # Presidio itself would download one that is not there.
    is_package = spacy.util.is_package(language_model)
    folder = spacy.util.get_package_path(language_model) if is_package else Path(language_model)
    try:
        language = str(json.loads((folder / "meta.json").read_bytes())["lang"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"data.personal_data.language_model: {language_model} is no spaCy model that is installed, and no folder of one; "
            f"run: python -m spacy download {language_model}"
        ) from None
    labels = {
        "PERSON": "PERSON",
        "PER": "PERSON",
        "GPE": "LOCATION",
        "LOC": "LOCATION",
        "LOCATION": "LOCATION",
        "FAC": "LOCATION",
    }
    engine = SpacyNlpEngine(
        models=[{"lang_code": language, "model_name": language_model}],
        ner_model_configuration=NerModelConfiguration(model_to_presidio_entity_mapping=labels),
    )
    engine.load()
    registry = RecognizerRegistry(
        recognizers=[SpacyRecognizer(supported_language=language, supported_entities=sorted(ENTITIES.values()))],
        supported_languages=[language],
    )
    return AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[language]), language
