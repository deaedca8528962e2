"""`drumline predict` and `drumline evaluate` of small runs of every task, in this process."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.training import BIN, checked, json_lines, run_command, run_path, training_config, write_config
from trainer.cli import main
from trainer.config import Config
from trainer.data.prepare import prepare

pytestmark = pytest.mark.usefixtures("tensorflow")

WORDS = ("one", "two", "three", "four", "five", "six")
TRANSLATED = dict(zip(WORDS, ("eins", "zwei", "drei", "vier", "fünf", "sechs"), strict=True))
GOOD, BAD = ("good", "fine", "lovely"), ("bad", "poor", "awful")

Record = dict[str, Any]
Drumline = Callable[..., list[Any]]


def classification_record(draw: random.Random) -> Record:
    is_good = draw.random() < 0.5
    words = [*draw.choices(WORDS, k=draw.randint(1, 6)), draw.choice(GOOD if is_good else BAD)]
    return {"text": " ".join(words), "label": "praise" if is_good else "blame"}


def pair_record(draw: random.Random) -> Record:
    first, second = draw.choices(WORDS, k=3), draw.choices(WORDS, k=2)
    labels = [name for name, word in (("has_one", "one"), ("has_two", "two")) if word in first]
    return {"premise": " ".join(first), "hypothesis": " ".join(second), "label": labels}


def text_record(draw: random.Random) -> Record:
    first = draw.randrange(6)
    return {"text": " ".join(WORDS[(first + number) % 6] for number in range(draw.randint(3, 8)))}


def translation_record(draw: random.Random) -> Record:
    words = draw.choices(WORDS, k=draw.randint(1, 4))
    return {"source": " ".join(words), "target": " ".join(TRANSLATED[word] for word in words)}


def summary_record(draw: random.Random) -> Record:
    words = draw.choices(WORDS, k=draw.randint(3, 6))
    return {"document": " ".join(words), "summary": words[0]}


def question_record(draw: random.Random) -> Record:
    words = draw.sample(WORDS, k=6) * 2
    word = draw.choice(words)
    begin = " ".join(words).index(word)
    answers = {"text": [word], "answer_start": [begin]} if draw.random() < 0.8 else {"text": [], "answer_start": []}
    return {"context": " ".join(words), "question": f"where is {word}", "answers": answers}


SMALL = {"num_layers": 1, "num_heads": 2, "width": 16}
WORDPIECE = {"kind": "wordpiece", "vocabulary_size": 300}

# By the run's name: task, how records are made, and what is not as in `trained`.
RUNS: dict[str, tuple[str, Callable[[random.Random], Record], dict[str, Any]]] = {
    "classes": (
        "classification",
        classification_record,
        {
            "data": {"tokenizer": {"kind": "word", "vocabulary_size": 300}},
            "model": {"family": "bag_of_embeddings", "width": 16},
            "optimizer": {"kind": "adam", "learning_rate": 0.03},
            "train": {"steps": 40},
        },
    ),
    "pairs": (
        "classification",
        pair_record,
        {
            "data": {"fields": {"text": "premise", "text_b": "hypothesis"}, "multi_label": True, "tokenizer": WORDPIECE},
            "model": {"family": "bert", **SMALL, "token_types": 2},
        },
    ),
    "masked": (
        "masked_language_modeling",
        text_record,
        {"data": {"tokenizer": WORDPIECE}, "model": {"family": "bert", **SMALL}},
    ),
    "translation": (
        "translation",
        translation_record,
        {
            "model": {"family": "encoder_decoder", **SMALL, "width": 32, "positions": "sinusoidal"},
            "evaluation": {"generate": 10},
            "train": {"steps": 60},
        },
    ),
    "summaries": ("summarization", summary_record, {"data": {"prompt": "Text: {source}\nFirst:"}, "model": SMALL}),
    "questions": (
        "question_answering",
        question_record,
        {
            "data": {"sequence_length": 24, "window_overlap": 4, "tokenizer": WORDPIECE},
            "model": {"family": "bert", **SMALL, "token_types": 2},
        },
    ),
    "continuations": ("language_modeling", text_record, {"model": SMALL}),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tensorflow: Any) -> Callable[[str], Path]:
    """The folder of the run that is called so; trained when it is asked for first."""
    from trainer.loop import train

    directory = tmp_path_factory.mktemp("predict")
    done: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in done:
            task, record, sections = RUNS[name]
            config = config_of(directory / name, name, task, sections)
            write_records(directory / name, record)
            prepare(config, num_processes=1)
            train(config)
            done[name] = directory / name / "runs" / name
        return done[name]

    return run


def config_of(directory: Path, name: str, task: str, sections: Mapping[str, Any]) -> Config:
    """That of `training_config`, with records in JSON and a shorter training."""
    base = training_config(directory, name).model_dump(mode="json", exclude_unset=True)
    own: dict[str, Any] = {
        "data": {
            "format": "jsonl",
            "train": [{"path": str(directory / "train.jsonl")}],
            "validation": [{"path": str(directory / "validation.jsonl")}],
            "sequence_length": 32,
            "tokenizer": {"kind": "bpe", "vocabulary_size": 300},
        },
        "train": {"steps": 10},
        "evaluation": {"every": 10},
        "checkpoint": {"every": 20},
    }
    for values in (own, sections):
        for section, changes in values.items():
            base[section] = dict(changes) if section in ("model", "optimizer") else {**base[section], **changes}
    return Config.model_validate({**base, "task": task})


def write_records(directory: Path, record: Callable[[random.Random], Record]) -> None:
    directory.mkdir()
    draw = random.Random(1)
    for split, count in (("train", 200), ("validation", 20)):
        lines = [json.dumps(record(draw), ensure_ascii=False) for _ in range(count)]
        (directory / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def drumline(capsys: pytest.CaptureFixture[str]) -> Iterator[Drumline]:
    """Calls a verb; what it printed, line by line. Where it shall fail, its complaint."""

    def call(*arguments: str | Path, code: int = 0) -> list[Any]:
        capsys.readouterr()
        assert main([str(each) for each in arguments]) == code
        captured = capsys.readouterr()
        return [json.loads(line) for line in captured.out.splitlines()] if code == 0 else captured.err.splitlines()

    yield call


def test_classes_come_with_their_probabilities(trained: Callable[[str], Path], drumline: Drumline) -> None:
    texts = ["one good two", "awful", "three four lovely", "five poor five five five"]
    found = drumline("predict", trained("classes"), "--text", *texts)
    assert [each["label"] for each in found] == ["praise", "blame", "praise", "blame"]
    for each in found:
        assert list(each) == ["label", "scores"]
        assert list(each["scores"]) == ["blame", "praise"]
        assert sum(each["scores"].values()) == pytest.approx(1.0, abs=1e-5)
        assert each["label"] == max(each["scores"], key=each["scores"].get)


def test_the_order_is_that_of_the_input_whatever_the_batch_size(
    trained: Callable[[str], Path], drumline: Drumline, tmp_path: Path
) -> None:
    path = tmp_path / "given.jsonl"
    path.write_text("\n".join(json.dumps(pair_record(random.Random(number))) for number in range(11)) + "\n\n")
    found = drumline("predict", trained("pairs"), "--input", path)
    assert len(found) == 11
    for size in ("1", "3"):
        for each, other in zip(
            found, drumline("predict", trained("pairs"), "--input", path, "--batch-size", size), strict=True
        ):
            assert each["scores"] == pytest.approx(other["scores"], abs=1e-5)
    for each in found:
        assert each["labels"] == [label for label, score in each["scores"].items() if score >= 0.5]
        assert list(each["scores"]) == ["has_one", "has_two"]


def test_masks_are_filled_with_the_likeliest_of_the_candidates(trained: Callable[[str], Path], drumline: Drumline) -> None:
    (one, two) = drumline("predict", trained("masked"), "--text", "one [MASK] three", "[MASK] two [MASK]!")
    assert [len(each["candidates"]) for each in (one, two)] == [1, 2]
    for candidates in one["candidates"] + two["candidates"]:
        scores = [each["score"] for each in candidates]
        assert scores == sorted(scores, reverse=True) and 0 < sum(scores) <= 1
    likeliest = one["candidates"][0][0]["token"]
    assert one["text"] in (f"one {likeliest} three", f"one{likeliest.removeprefix('##')} three")
    assert two["text"].endswith("!") and "[MASK]" not in two["text"]


def test_translations_do_not_depend_on_their_batch(trained: Callable[[str], Path], drumline: Drumline) -> None:
    texts = ["one two", "three", "six five four three", "two"]
    for options in ([], ["--num-beams", "3"], ["--temperature", "1.0", "--seed", "3"]):
        found = drumline("predict", trained("translation"), "--text", *texts, *options)
        assert [list(each) for each in found] == [["text"]] * 4
        assert found == drumline("predict", trained("translation"), "--text", *texts, *options, "--batch-size", "3")


def test_fewer_tokens_and_stops_cut_texts_short(trained: Callable[[str], Path], drumline: Drumline) -> None:
    run, texts = trained("translation"), ["one two three", "six five four three"]
    whole = [each["text"] for each in drumline("predict", run, "--text", *texts)]
    short = [each["text"] for each in drumline("predict", run, "--text", *texts, "--max-tokens", "2")]
    assert all(text.startswith(part) for text, part in zip(whole, short, strict=True))
    for stop in ("i", "ei"):
        stopped = [each["text"] for each in drumline("predict", run, "--text", *texts, "--stop", stop)]
        assert stopped == [text.split(stop)[0] for text in whole]


def test_an_evaluation_has_the_metrics_of_texts(trained: Callable[[str], Path], drumline: Drumline) -> None:
    run = trained("translation")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    during = [line for line in lines if line["split"] == "validation"]
    assert all({"loss", "perplexity", "accuracy", "bleu", "chrf"} <= line.keys() for line in during)
    (first,) = drumline("evaluate", run, "--generate", "10")
    assert first["bleu"] == pytest.approx(during[-1]["bleu"]) and first["chrf"] == pytest.approx(during[-1]["chrf"])
    (every,) = drumline("evaluate", run)
    assert every == pytest.approx(drumline("evaluate", run, "--generate", "all")[0] | {"seconds": every["seconds"]})
    assert every["chrf"] != first["chrf"]
    assert "bleu" in drumline("evaluate", run, "--generate", "4", "--num-beams", "2")[0]
    assert "bleu" not in drumline("evaluate", run, "--generate", "0")[0]


@pytest.mark.processes
@pytest.mark.parametrize("backend", ["multiworker", "horovod"])
def test_two_processes_share_the_texts_and_find_the_metrics_of_one(
    backend: str, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    """Eleven texts: one process writes one more than the other."""
    run = trained("translation")
    directory = run.parents[1]
    task, _, sections = RUNS["translation"]
    changes = {**sections, "distribution": {"backend": backend}, "evaluation": {"generate": 11}}
    found = {}
    for name, values in (("alone", changes | {"distribution": {"backend": "single"}}), ("together", changes)):
        config = config_of(directory, f"{backend}-{name}", task, values)
        path = write_config(config, tmp_path / f"{name}.yaml")
        verb = ["launch", "local", str(path), "--workers", "2"] if name == "together" else ["train", str(path)]
        checked(run_command([str(BIN / "drumline"), *verb]))
        lines = [line for line in json_lines(run_path(config) / "metrics.jsonl") if line["split"] == "validation"]
        found[name] = {key: lines[-1][key] for key in ("loss", "accuracy", "bleu", "chrf")}
    assert found["together"] == pytest.approx(found["alone"], rel=1e-4)


def test_summaries_go_on_with_the_prompt(trained: Callable[[str], Path], drumline: Drumline) -> None:
    run = trained("summaries")
    long = " ".join(WORDS * 5)
    found = drumline("predict", run, "--text", "one two three", long, "--max-tokens", "4", "--num-beams", "2")
    assert [list(each) for each in found] == [["text"]] * 2
    several = drumline("predict", run, "--text", "one two three", "--temperature", "1", "--samples", "2")
    assert [list(each) for each in several] == [["text", "sample"]] * 2
    (line,) = drumline("predict", run, "--text", "one", "--max-tokens", "30", code=2)
    assert "leaves no room for a source" in line


def test_answers_are_parts_of_contexts_also_of_long_ones(trained: Callable[[str], Path], drumline: Drumline) -> None:
    context = " ".join(WORDS * 8)
    objects = [{"question": f"where is {word}", "context": text} for word, text in (("two", context), ("six", "five six one"))]
    given = [json.dumps(each) for each in objects]
    found = drumline("predict", trained("questions"), "--json", "--text", *given)
    for each, asked in zip(found, objects, strict=True):
        assert list(each) == ["answer", "score"]
        assert each["answer"] in asked["context"] and 0 <= each["score"] <= 1
    assert found == drumline("predict", trained("questions"), "--json", "--text", *given, "--batch-size", "2")


def test_continuations_tell_how_they_ended(trained: Callable[[str], Path], drumline: Drumline) -> None:
    run = trained("continuations")
    found = drumline("predict", run, "--text", "one two", "three", "--max-tokens", "6", "--samples", "2")
    assert [(each["prompt"], each["sample"]) for each in found] == [(text, n) for text in ("one two", "three") for n in (0, 1)]
    assert found == drumline(
        "predict", run, "--text", "one two", "three", "--max-tokens", "6", "--samples", "2", "--batch-size", "3"
    )
    for each in found:
        assert list(each) == ["prompt", "sample", "text", "num_tokens", "finish"]
        assert each["finish"] in ("end_of_text", "max_tokens") and each["num_tokens"] <= 6
    (line,) = drumline("predict", run, "--text", "one " * 40, code=2)
    assert line.startswith("drumline: prompt 1 has ")


@pytest.mark.parametrize(
    ("run", "arguments", "expected"),
    [
        ("pairs", ["--text", "one"], "expected JSON objects with 'premise' and 'hypothesis'"),
        ("pairs", ["--json", "--text", '{"premise": "one"}'], "--text:1: field 'hypothesis': got nothing, expected a text"),
        ("classes", ["--json", "--text", "one"], "--text:1: is not JSON"),
        ("classes", ["--json", "--text", "[1]"], "expected a JSON object with 'text'"),
        ("classes", ["--text", "one", "--max-tokens", "3"], "--max-tokens: got with classification"),
        ("masked", ["--text", "one"], "expected [MASK] in it"),
        ("masked", ["--text", "[MASK]" + " one" * 40], "text 1: has 43 tokens, more than the model's 32"),
        ("translation", ["--text", "one", "--num-beams", "2", "--temperature", "1"], "beams take no chances"),
        ("translation", ["--text", "one", "--num-beams", "2", "--samples", "2"], "which find one text"),
        ("translation", ["--text", "one", "--top-k", "2"], "give --temperature too"),
        ("translation", ["--text", "one", "--length-penalty", "1"], "without --num-beams"),
    ],
)
def test_what_cannot_be_predicted_is_told_in_a_line(
    run: str, arguments: list[str], expected: str, trained: Callable[[str], Path], drumline: Drumline
) -> None:
    (line,) = drumline("predict", trained(run), *arguments, code=2)
    assert expected in line


def test_only_tasks_with_metrics_of_texts_write_some(trained: Callable[[str], Path], drumline: Drumline) -> None:
    (line,) = drumline("evaluate", trained("classes"), "--generate", "3", code=2)
    assert "classification has no metric of texts" in line
