"""Configurations: what is read, what wins, and what is said about mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.cli import main
from trainer.config_io import config_schema, dump_config, load_config
from trainer.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
# What the recipes begin from: what matters of the config.json of these models.
WEIGHTS = {
    "weights/all-minilm-l6-v2": {
        "model_type": "bert",
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "weights/smollm2-135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49_152,
        "max_position_embeddings": 8192,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": True,
    },
}

# What replaces what in the small configuration, and all that must be said; line numbers are those of the changed file.
MISTAKES = {
    "unknown key": ("  width: 8", "  widht: 8", ["11: model.widht: unknown key; did you mean width?"]),
    "key of another section": (
        "  width: 8",
        "  width: 8\n  learning_rate: 1.0",
        ["12: model.learning_rate: unknown key; did you mean optimizer.learning_rate?"],
    ),
    "unknown section": (
        "optimizer:",
        "optimiser:",
        ["12: optimiser: unknown key; did you mean optimizer?"],
    ),
    "unknown key like no other": ("  width: 8", "  width: 8\n  zzz: 8", ["12: model.zzz: unknown key"]),
    "missing key": ("  width: 8\n", "", ["8: model.width: missing, and it has no default"]),
    "missing section": (
        "optimizer:\n  learning_rate: 3e-4\n",
        "",
        ["1: optimizer: missing, and it has no default"],
    ),
    "empty section": (
        "\n  learning_rate: 3e-4",
        "",
        ["12: optimizer: got nothing, expected a section of `key: value` lines"],
    ),
    "word for a number": ("width: 8", "width: wide", ["11: model.width: got 'wide', expected a whole number"]),
    "quoted number": ("width: 8", 'width: "8"', ["11: model.width: got '8', expected a whole number"]),
    "fraction for a count": ("width: 8", "width: 8.5", ["11: model.width: got 8.5, expected a whole number"]),
    "yes for true": (
        "  width: 8",
        "  width: 8\n  biases: yes",
        ["12: model.biases: got 'yes', expected true or false"],
    ),
    "number for text": (
        "name: small",
        "name: 2024",
        ["1: run.name: got 2024, expected text (write it in quotes)"],
    ),
    "nothing for text": ("path: text.txt", "path:", ["5: data.train.0.path: got nothing, expected text"]),
    "empty text": ("path: text.txt", "path: ''", ["5: data.train.0.path: got '', expected text that is not empty"]),
    "too small": ("width: 8", "width: 0", ["11: model.width: got 0, expected at least 1"]),
    "not above": ("3e-4", "0", ["13: optimizer.learning_rate: got 0, expected more than 0.0"]),
    "not a number": ("3e-4", ".nan", ["13: optimizer.learning_rate: got nan, expected a finite number"]),
    "no such choice": (
        "kind: bpe",
        "kind: bpee",
        ["7: data.tokenizer.kind: got 'bpee', expected one of bpe, wordpiece, word, character, pretrained; did you mean bpe?"],
    ),
    "one of two types": (
        "  sequence_length: 16",
        "  fields: {text: 1.5}\n  sequence_length: 16",
        ["6: data.fields.text: got 1.5, expected text (write it in quotes) or a whole number"],
    ),
    "mapping for a list": ("    - path", "      path", ["4: data.train: got a section, expected a list"]),
    "empty list": ("\n    - path: text.txt", " []", ["4: data.train: got a list, expected a list of at least 1"]),
    "item of a list": (
        "path: text.txt",
        "path: text.txt\n    - {path: more.txt, begn: 0.5}",
        ["6: data.train.1.begn: unknown key; did you mean begin?"],
    ),
    "key given twice": (
        "  width: 8",
        "  width: 8\n  width: 16",
        ["12: model.width: the key is given twice; first in line 11"],
    ),
    "two keys that disagree": (
        "  width: 8",
        "  width: 9",
        ["11: model.width: got 9, expected a multiple of `num_heads`, which is 2"],
    ),
    "disagreement in a list": (
        "path: text.txt",
        "path: text.txt\n      begin: 0.5\n      end: 0.5",
        ["7: data.train.0.end: got 0.5, expected more than `begin`, which is 0.5"],
    ),
    "disagreement over sections": (
        "3e-4",
        "3e-4\n  schedule: warmup_stable_decay\n  decay_steps: 30",
        ["15: optimizer.decay_steps: got 30, expected warm-up and decay within train.steps, which is 20"],
    ),
    "several at once": (
        "  width: 8",
        "  width: x\n  widht: 8\n  dropout: 1",
        [
            "11: model.width: got 'x', expected a whole number",
            "12: model.widht: unknown key; did you mean width?",
            "13: model.dropout: got 1, expected less than 1.0",
        ],
    ),
    "a tag": ("width: 8", "width: !!python/name:os.system 8", ["11: model.width: got the YAML tag"]),
    "not YAML": ("width: 8", "width: [8", ["12: not valid YAML: "]),
    "a tab": ("  width: 8", "\twidth: 8", ["11: not valid YAML: found character '\\t' that cannot start any token"]),
    "a control character": ("width: 8", "width: \x01", ["11: not valid YAML: the character"]),
    "an alias to itself": (
        "model:",
        "model: &model\n  again: *model",
        ["9: model.again: got an alias to a section around it"],
    ),
}

OVERRIDE_MISTAKES = {
    "train.steps=abc": "got 'abc', expected a whole number",
    "modle.width=3": "modle: unknown key; did you mean model?",
    "model.widht=3": "unknown key; did you mean width?",
    "train.steps": "expected section.key=value",
    "=3": "expected section.key=value",
    "train..steps=3": "expected section.key=value",
    "train.steps.more=3": "`train.steps` is 20: it has no `more`",
    "model.0=3": "`model` is a section: it has no `0`",
    "data.train.2.path=x": "`data.train` is a list of 1: it has no `2`",
    "model.width=[8": "not valid YAML: ",
    "model.width=9": "got 9, expected a multiple of `num_heads`, which is 2",
    "model.pooling=mean": "got mean, expected first, the default: gpt has no choice of it",
    "data.train.0={path: x, begn: 1}": "data.train.0.begn: unknown key; did you mean begin?",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_told_with_file_and_line(mistake: str, small_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right, wrong, expected = MISTAKES[mistake]
    text = small_config.read_text()
    assert right in text
    small_config.write_text(text.replace(right, wrong))

    assert main(["check", str(small_config)]) == 2

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(expected), lines
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(f"drumline: {small_config}:{start}")


@pytest.mark.parametrize("override", OVERRIDE_MISTAKES)
def test_a_mistaken_override_is_named(override: str, small_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(small_config), override]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"drumline: {override}: {OVERRIDE_MISTAKES[override]}")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, ": no such file"),
        (b"", ": the file is empty"),
        (b"# nothing but a comment\n", ": the file is empty"),
        (b"- a\n- b\n", ":1: got a list, expected sections"),
        (b"# text\nhello\n", ":2: got 'hello', expected sections"),
        (b"run:\n  name: caf\xe9\n", ":2: got the byte 0xe9, expected text in UTF-8"),
        (b"a: 1\n---\nb: 2\n", ":2: not valid YAML: but found another document"),
        (b"[" * 5000, ":1: not valid YAML: sections are nested too deeply"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_line(tmp_path: Path, content: bytes | None, expected: str) -> None:
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    assert len(raised.value.complaints) == 1
    assert raised.value.complaints[0].startswith(f"{path}{expected}")


def test_a_directory_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got a directory, expected a YAML file"):
        load_config(tmp_path)


def test_a_misspelt_file_gets_the_nearest_name(small_config: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean .*small\.yaml\?"):
        load_config(small_config.with_name("smal.yaml"))


def test_complaints_come_in_the_order_of_the_file_and_then_of_the_overrides(small_config: Path) -> None:
    small_config.write_text(small_config.read_text().replace("width: 8", "width: x").replace("name: small", "name: 1"))
    with pytest.raises(ConfigError) as raised:
        load_config(small_config, ["train.steps=y", "model.num_heads=x"])
    starts = [complaint.split(" ")[0] for complaint in raised.value.complaints]
    assert starts == [f"{small_config}:1:", f"{small_config}:11:", "train.steps=y:", "model.num_heads=x:"]


def test_numbers_and_words_are_read_as_in_yaml_1_2(small_config: Path) -> None:
    config = load_config(
        small_config, ["run.name=no", "optimizer.learning_rate=3e-4", "optimizer.epsilon=1.0e-4", "train.steps=1e3"]
    )
    assert config.run.name == "no"
    assert config.optimizer.learning_rate == 3e-4
    assert config.optimizer.epsilon == 1e-4
    assert config.train.steps == 1000
    assert isinstance(config.train.steps, int)


def test_anchors_are_followed(small_config: Path) -> None:
    text = small_config.read_text().replace("- path: text.txt", "- &source {path: text.txt}\n  validation: [*source]")
    small_config.write_text(text)
    config = load_config(small_config)
    assert config.data.validation == config.data.train


def test_overrides_win_over_the_file_and_later_ones_over_earlier(small_config: Path) -> None:
    config = load_config(
        small_config,
        [
            "train.steps=5",
            "train.steps=6",
            "data.train.0.path=other.txt",
            "evaluation.every=null",
            "model.biases=false",
        ],
    )
    assert config.train.steps == 6
    assert config.data.train[0].path == "other.txt"
    assert config.evaluation.every is None
    assert not config.model.biases


def test_overrides_make_sections_and_append_to_lists(small_config: Path) -> None:
    config = load_config(
        small_config,
        [
            "data.train.1.path=b.txt",
            "data.validation.0={path: c.txt}",
            "checkpoint.keep_last=7",
            "data.fields.text=body",
        ],
    )
    assert [source.path for source in config.data.train] == ["text.txt", "b.txt"]
    assert config.data.validation[0].path == "c.txt"
    assert config.checkpoint.keep_last == 7
    assert config.data.fields.text == "body"


def test_an_override_puts_a_mistake_of_the_file_right(small_config: Path) -> None:
    small_config.write_text(small_config.read_text().replace("width: 8", "width: x"))
    assert load_config(small_config, ["model.width=8"]).model.width == 8


def test_an_override_may_contain_an_equals_sign(small_config: Path) -> None:
    assert load_config(small_config, ["data.store=a=b"]).data.store == "a=b"


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A working folder with the config.json of what recipes begin from, and away from stores prepared with other settings."""
    for folder, content in WEIGHTS.items():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_what_is_written_reads_back_equal(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    written = tmp_path / "written.yaml"
    written.write_text(dump_config(config))
    assert load_config(written) == config


@pytest.mark.parametrize("text", ["no", "1e3", "3e-4", "true", "null", "12", ".5", "0x10", "a: b", "#a", "", " a", "é", "~"])
def test_text_that_looks_like_something_else_survives_writing(text: str, small_config: Path, tmp_path: Path) -> None:
    config = load_config(small_config)
    data = config.data.model_copy(update={"store": text or "x"})
    written = tmp_path / "written.yaml"
    written.write_text(dump_config(config.model_copy(update={"data": data})))
    assert load_config(written).data.store == (text or "x")


def test_the_schema_names_every_section_and_is_json() -> None:
    schema = json.loads(json.dumps(config_schema()))
    assert {"run", "data", "model", "optimizer", "train", "distribution"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_recipe_passes_check(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(path)]) == 0
    assert "parameters" in capsys.readouterr().out
