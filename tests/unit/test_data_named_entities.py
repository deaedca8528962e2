"""Names and places by Presidio itself and a real spaCy pipeline, of rules: trained models are too large for a test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.data_corpora import data_config, write_jsonl
from trainer.config import Config
from trainer.data.personal_data import find_personal_data
from trainer.data.prepare import prepare
from trainer.data.store import TokenStore
from trainer.data.tokenizer import Tokenizer
from trainer.errors import BackendError, ConfigError, DataError


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("presidio_analyzer", reason="needs Presidio, which is not installed")
    spacy = pytest.importorskip("spacy")
    pipeline = spacy.blank("en")
    ruler = pipeline.add_pipe("entity_ruler")
    people, places = ["Ada Lovelace", "Alan Turing"], ["London", "Bletchley Park"]
    ruler.add_patterns([{"label": "PERSON", "pattern": each} for each in people])
    ruler.add_patterns([{"label": "GPE", "pattern": each} for each in places])
    folder = tmp_path_factory.mktemp("model")
    pipeline.to_disk(folder)
    return str(folder)


def test_names_and_places_are_found_beside_what_has_a_form(language_model: str) -> None:
    text = "Ada Lovelace of London wrote to ada@example.org about Alan Turing."
    found = find_personal_data(text, ("email", "name", "place"), language_model)
    assert [(text[begin:end], kind) for begin, end, kind in found] == [
        ("Ada Lovelace", "name"),
        ("London", "place"),
        ("ada@example.org", "email"),
        ("Alan Turing", "name"),
    ]
    assert [kind for *_, kind in find_personal_data(text, ("place",), language_model)] == ["place"]


def test_long_texts_are_analyzed_in_pieces(language_model: str) -> None:
    text = " ".join(["word"] * 30_000 + ["Alan Turing"] + ["word"] * 30_000 + ["London"])
    found = find_personal_data(text, ("name", "place"), language_model)
    assert [text[begin:end] for begin, end, _ in found] == ["Alan Turing", "London"]


def test_prepare_masks_them(language_model: str, tmp_path: Path) -> None:
    rows = [{"text": f"{number} letters from Ada Lovelace at Bletchley Park"} for number in range(20)]
    source = write_jsonl(tmp_path / "letters.jsonl", rows)
    config = with_rule(data_config(tmp_path / "store", [source], file_format="jsonl"), language_model)
    prepare(config)
    tokenizer = Tokenizer.load(tmp_path / "store" / "tokenizer.json")
    (stream,) = TokenStore(tmp_path / "store", "train").streams
    text = tokenizer.decode(stream.segments[0][:].tolist())
    assert "19 letters from <name> at <place>" in text
    assert "Lovelace" not in text
    report = json.loads((tmp_path / "store" / "personal-data.json").read_text())
    assert report["train"]["num_items"] == {"name": 20, "place": 20}


def test_a_model_that_is_not_there_is_refused_and_not_downloaded(language_model: str) -> None:
    with pytest.raises(DataError, match=r"language_model: en_core_web_none is no spaCy model .* spacy download"):
        find_personal_data("Ada", ("name",), "en_core_web_none")


def test_without_presidio_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from trainer.data import named_entities

    named_entities._analyzer.cache_clear()
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(BackendError, match="name and place need Presidio, which is not installed"):
        find_personal_data("Ada", ("name",), "any")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("{action: mask, kinds: [name]}", "language_model: got null, expected a spaCy model"),
        ("{action: mask, kinds: [email], language_model: any}", "language_model: got any, expected nothing without the kinds"),
    ],
)
def test_names_need_a_model_and_a_model_names(rule: str, expected: str, small_config: Path) -> None:
    from trainer.config_io import load_config

    with pytest.raises(ConfigError) as told:
        load_config(small_config, [f"data.personal_data={rule}"])
    assert expected in str(told.value)


def with_rule(config: Config, language_model: str) -> Config:
    content = config.model_dump()
    content["data"]["personal_data"] = {"action": "mask", "kinds": ["name", "place"], "language_model": language_model}
    return Config.model_validate(content)
