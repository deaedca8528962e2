"""A SavedModel runs in a process without Drumline, and computes what the run's model computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trained_runs import BAG, BERT, GPT2, LLAMA, PRE_NORM, T5, trained_run

from trainer.pretrained.trained import read_run

# Runs every signature of each folder on a batch of 3 and of 1, and writes what it gives.
PROGRAM = """
import pathlib, sys, numpy, tensorflow
for run in map(pathlib.Path, sys.argv[1:]):
    model = tensorflow.saved_model.load(str(run / "served"))
    given, results = dict(numpy.load(run / "given.npz")), {}
    for name, signature in model.signatures.items():
        for rows in (3, 1):
            values = {}
            for key, spec in signature.structured_input_signature[1].items():
                values[key] = given[key][:rows, : spec.shape[1]] if len(spec.shape) > 1 else given[key][:rows]
            values["lengths"] = numpy.minimum(values["lengths"], values["tokens"].shape[1])
            for key, value in signature(**{key: tensorflow.constant(value) for key, value in values.items()}).items():
                results[f"{name}.{key}.{rows}"] = value.numpy()
    numpy.savez(run / "out.npz", **results)
assert "trainer" not in sys.modules
"""

RUNS: dict[str, tuple[str, dict[str, Any], tuple[str, ...], dict[str, Any]]] = {
    "bag, one sigmoid": ("classification", BAG, ("bad", "good"), {}),
    "bag": ("classification", BAG, ("bad", "fair", "good"), {}),
    "pairs": ("classification", BERT, ("bad", "fair", "good"), {"fields": {"text_b": "second"}}),
    "a set of classes": ("classification", LLAMA, ("bad", "fair", "good"), {"multi_label": True}),
    "masked": ("masked_language_modeling", BERT, (), {}),
    "gpt2": ("language_modeling", GPT2, (), {}),
    "llama": ("language_modeling", LLAMA, (), {}),
    "t5": ("translation", T5, (), {"target_length": 7}),
    "pre-norm": ("summarization", PRE_NORM, (), {"target_length": 7}),
    "questions": ("question_answering", BERT, (), {"window_overlap": 4}),
}

Served = dict[str, tuple[Path, dict[str, np.ndarray]]]


@pytest.fixture(scope="module")
def served(tensorflow: Any, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Of each of `RUNS` its folder, and what its signatures gave in a fresh process, by `signature.output.rows`."""
    from trainer.pretrained.saved_model import write_saved_model

    runs = {}
    for name, (task, model, labels, data) in RUNS.items():
        runs[name] = trained_run(tmp_path_factory.mktemp("run"), task, model, labels, **data)
        (runs[name] / "served").mkdir()
        write_saved_model(read_run(runs[name], "latest"), runs[name] / "served")
        np.savez(runs[name] / "given.npz", **rows_for(runs[name]))
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": ""}
    command = [sys.executable, "-P", "-c", PROGRAM, *map(str, runs.values())]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: (path, dict(np.load(path / "out.npz"))) for name, path in runs.items()}


def rows_for(run: Path) -> dict[str, np.ndarray]:
    size = read_run(run, "latest").tokenizer.vocabulary_size
    generator = np.random.default_rng(0)
    types = (np.arange(12)[None] >= 4).astype(np.int32).repeat(3, 0)
    tokens, targets = (generator.integers(1, size, (3, 12)).astype(np.int32) for _ in range(2))
    return {"tokens": tokens, "targets": targets, "types": types, "lengths": np.array([12, 9, 7], np.int32)}


def constants(tensorflow: Any, values: Any) -> dict[str, Any]:
    return {name: tensorflow.constant(value) for name, value in values.items()}


def segments_of(given: dict[str, np.ndarray]) -> np.ndarray:
    return (np.arange(12)[None] < given["lengths"][:, None]).astype(np.int32)


@pytest.mark.parametrize("name", ["bag, one sigmoid", "bag", "pairs", "a set of classes"])
def test_classify(tensorflow: Any, served: Served, name: str) -> None:
    from trainer.tasks.classification import Classification

    _, model, labels, data = RUNS[name]
    path, results = served[name]
    run, given = read_run(path, "latest"), rows_for(path)
    places = given["lengths"] - 1 if model["family"] == "gpt" else np.zeros(3, np.int32)
    features = {"inputs": given["tokens"], "segments": segments_of(given), "places": places[:, None].astype(np.int32)}
    if data.get("fields"):
        features["types"] = given["types"]
    expected = Classification(run.config).scores(constants(tensorflow, run.weights), constants(tensorflow, features))
    scores = results["classify.scores.3"]
    assert scores.shape == (3, len(labels))
    assert np.abs(scores - expected[:, 0].numpy()).max() <= 1e-5
    assert np.array_equal(results["serving_default.scores.3"], scores)
    assert results["embed.embedding.3"].shape == (3, model["width"])


def test_embed_is_the_mean_over_real_tokens(tensorflow: Any, served: Served) -> None:
    from trainer.models import bert

    path, results = served["masked"]
    run, given = read_run(path, "latest"), rows_for(path)
    weights, tokens = constants(tensorflow, run.weights), tensorflow.constant(given["tokens"])
    hidden = bert.hidden_states(run.config.model, weights, tokens, tensorflow.constant(segments_of(given)))
    for row, length in enumerate(given["lengths"]):
        expected = hidden[row, :length].numpy().mean(0)
        assert np.abs(results["embed.embedding.3"][row] - expected).max() <= 1e-4
    expected = bert.token_logits(run.config.model, weights, hidden).numpy()
    real = segments_of(given) > 0
    assert np.abs(results["logits.logits.3"] - expected)[real].max() <= 1e-4


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generate_goes_on_greedily(tensorflow: Any, served: Served, name: str) -> None:
    from trainer.models import gpt

    path, results = served[name]
    run, given = read_run(path, "latest"), rows_for(path)
    weights = constants(tensorflow, run.weights)
    assert results["generate.tokens.3"].shape == (3, 6)
    prompts = given["tokens"][:, :6]
    for row, length in enumerate(np.minimum(given["lengths"], 6)):
        text = prompts[row, 6 - length :].tolist()
        for written in results["generate.tokens.3"][row].tolist():
            scores = gpt.logits(run.config.model, weights, tensorflow.constant([text]))[0, -1].numpy()
            best = int(scores.argmax())
            assert best == written or scores[best] - scores[written] < 1e-4
            if written == run.tokenizer.end_of_text:
                break
            text.append(written)
    expected = gpt.logits(run.config.model, weights, tensorflow.constant(given["tokens"])).numpy()
    real = segments_of(given) > 0
    assert np.abs(results["logits.logits.3"] - expected)[real].max() <= 1e-4


@pytest.mark.parametrize(("name", "signature"), [("t5", "translate"), ("pre-norm", "summarize")])
def test_an_encoder_decoder_writes_what_its_scores_say(tensorflow: Any, served: Served, name: str, signature: str) -> None:
    path, results = served[name]
    run, given = read_run(path, "latest"), rows_for(path)
    written = results[f"{signature}.tokens.3"]
    assert written.shape == (3, 7)
    from trainer.models import encoder_decoder

    weights, model_config = constants(tensorflow, run.weights), run.config.model
    source, segments = tensorflow.constant(given["tokens"]), tensorflow.constant(segments_of(given))
    encoded = encoder_decoder.encode(model_config, weights, source, segments)
    targets = tensorflow.constant(given["targets"][:, :7])
    ones = tensorflow.ones_like(targets)
    expected = encoder_decoder.logits(model_config, weights, targets, ones, encoded, segments).numpy()
    assert np.abs(results["logits.logits.3"] - expected).max() <= 1e-4
    begin = run.tokenizer.specials.padding if name == "t5" else run.tokenizer.end_of_text
    inputs = np.concatenate([np.full((3, 1), begin), written[:, :-1]], 1).astype(np.int32)
    scores = encoder_decoder.logits(model_config, weights, tensorflow.constant(inputs), ones, encoded, segments).numpy()
    for row in range(3):
        for place, token in enumerate(written[row]):
            assert scores[row, place].max() - scores[row, place, token] < 1e-4
            if token == run.tokenizer.end_of_text:
                break


def test_answer(tensorflow: Any, served: Served) -> None:
    from trainer.models import bert, blocks

    path, results = served["questions"]
    run, given = read_run(path, "latest"), rows_for(path)
    weights, segments = constants(tensorflow, run.weights), tensorflow.constant(segments_of(given))
    tokens, types = (tensorflow.constant(given[name]) for name in ("tokens", "types"))
    hidden = bert.hidden_states(run.config.model, weights, tokens, segments, types)
    expected = blocks.linear(run.config.model, weights, "span", hidden).numpy()
    assert np.abs(results["answer.start_logits.3"] - expected[..., 0])[segments.numpy() > 0].max() <= 1e-4
    spans = results["answer.span.3"]
    assert (spans[:, 0] <= spans[:, 1]).all() and (spans[:, 1] < given["lengths"] - 1).all() and (spans[:, 0] >= 4).all()


@pytest.mark.parametrize("name", RUNS)
def test_a_row_does_not_depend_on_its_batch(served: Served, name: str) -> None:
    _, results = served[name]
    for output, value in results.items():
        if output.endswith(".1"):
            assert np.allclose(value, results[f"{output[:-2]}.3"][:1], atol=1e-4), output


def test_the_tokenizer_lies_in_assets_extra(served: Served) -> None:
    path, _ = served["bag"]
    written = (path / "served/assets.extra/tokenizer.json").read_text()
    assert json.loads(written) == json.loads((path / "tokenizer.json").read_text())


def test_saved_model_cli_runs_it(served: Served, tmp_path: Path) -> None:
    path, results = served["bag"]
    command = [str(Path(sys.executable).parent / "saved_model_cli"), "run", "--dir", str(path / "served")]
    command += ["--tag_set", "serve", "--signature_def", "classify", "--outdir", str(tmp_path)]
    command += ["--inputs", f"tokens={path}/given.npz[tokens];lengths={path}/given.npz[lengths]"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert np.allclose(np.load(tmp_path / "scores.npy"), results["classify.scores.3"], atol=1e-6)
