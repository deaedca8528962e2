"""A run that was exported computes in `transformers` what it computes here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pretrained_folders import largest_difference, our_logits, some_lengths, their_logits
from trained_runs import BAG, BERT, GPT2, LLAMA, PRE_NORM, T5, T5_1_1, trained_run

from trainer.errors import UserError
from trainer.pretrained.huggingface import write_huggingface
from trainer.pretrained.trained import read_run

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

MODELS = {
    "gpt2": ("language_modeling", GPT2),
    "gpt2 with an output of its own": ("language_modeling", {**GPT2, "tied_output": False, "activation": "gelu_erf"}),
    "llama": ("language_modeling", LLAMA),
    "llama with biases and an output of its own": ("summarization", {**LLAMA, "biases": True, "tied_output": False}),
    "llama with wide heads": ("language_modeling", {**LLAMA, "width_per_head": 12, "rotary_base": 500.0}),
    "bert": ("masked_language_modeling", BERT),
    "t5": ("translation", T5),
    "t5 1.1": ("summarization", T5_1_1),
}


def exported(run: Path) -> Path:
    folder = run.parent / "exported"
    folder.mkdir()
    write_huggingface(read_run(run, "latest"), folder)
    return folder


def loaded(folder: Path) -> Any:
    """By the class that its config.json names; whatever is missing or unexpected is an error."""
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, report = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def tokens_of(run: Path, seed: int = 0, length: int = 12) -> np.ndarray:
    size = read_run(run, "latest").tokenizer.vocabulary_size
    return np.random.default_rng(seed).integers(1, size, (3, length)).astype(np.int32)


@pytest.mark.parametrize("name", MODELS)
def test_transformers_computes_the_same_logits(tensorflow: Any, tmp_path: Path, name: str) -> None:
    task, model = MODELS[name]
    path = trained_run(tmp_path, task, model)
    run, tokens, lengths = read_run(path, "latest"), tokens_of(path), some_lengths()
    targets = tokens_of(path, 1, 7) if model["family"] == "t5" else None
    theirs = their_logits(loaded(exported(path)), tokens, lengths, targets)
    ours = our_logits(tensorflow, run.config, run.weights, tokens, lengths, targets)
    assert largest_difference(ours, theirs, lengths if targets is None else None) <= 1e-4


@pytest.mark.parametrize("is_set", [False, True])
def test_a_classifier_keeps_its_classes_and_their_scores(tensorflow: Any, tmp_path: Path, is_set: bool) -> None:
    from trainer.tasks.classification import Classification

    path = trained_run(tmp_path, "classification", BERT, ("bad", "fair", "good"), multi_label=is_set)
    run, tokens, lengths = read_run(path, "latest"), tokens_of(path), some_lengths()
    theirs = loaded(exported(path))
    assert theirs.config.id2label == {0: "bad", 1: "fair", 2: "good"}
    logits = torch.tensor(their_logits(theirs, tokens, lengths))
    segments = (np.arange(12)[None] < lengths[:, None]).astype(np.int32)
    features = {"inputs": tokens, "segments": segments, "places": np.zeros((3, 1), np.int32)}
    constants = {name: tensorflow.constant(value) for name, value in features.items()}
    weights = {name: tensorflow.constant(weight) for name, weight in run.weights.items()}
    ours = Classification(run.config).scores(weights, constants)[:, 0].numpy()
    expected = logits.sigmoid() if is_set else logits.softmax(-1)
    assert np.abs(ours - expected.numpy()).max() <= 1e-5


def test_an_answer_has_the_same_places(tensorflow: Any, tmp_path: Path) -> None:
    from trainer.models import bert, blocks

    path = trained_run(tmp_path, "question_answering", BERT, window_overlap=4)
    run, tokens, lengths = read_run(path, "latest"), tokens_of(path), some_lengths()
    types = (np.arange(12)[None] >= 4).astype(np.int32).repeat(3, 0)
    mask = np.arange(12)[None] < lengths[:, None]
    theirs = loaded(exported(path))
    with torch.no_grad():
        given = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": types}
        answered = theirs(**{name: torch.tensor(value).long() for name, value in given.items()})
    weights = {name: tensorflow.constant(weight) for name, weight in run.weights.items()}
    inputs = [tensorflow.constant(value) for value in (tokens, mask.astype(np.int32), types)]
    x = bert.hidden_states(run.config.model, weights, *inputs)
    ours = blocks.linear(run.config.model, weights, "span", x).numpy()
    for number, each in enumerate((answered.start_logits, answered.end_logits)):
        assert np.abs(ours[..., number] - each.numpy())[mask].max() <= 1e-4


def test_low_rank_pairs_are_merged(tensorflow: Any, tmp_path: Path) -> None:
    path = trained_run(tmp_path, "language_modeling", {**LLAMA, "lora": {"rank": 2, "alpha": 3.0}})
    from trainer.checkpoint import choose_checkpoint, read_weights
    from trainer.run_directory import open_run

    opened, config = open_run(path)
    weights = read_weights(choose_checkpoint(opened.checkpoints, "latest"))
    tokens, lengths = tokens_of(path), some_lengths()
    ours = our_logits(tensorflow, config, weights, tokens, lengths)
    plain = {name: weight for name, weight in weights.items() if ".lora_" not in name}
    assert largest_difference(ours, our_logits(tensorflow, config, plain, tokens, lengths), lengths) > 0.01
    theirs = their_logits(loaded(exported(path)), tokens, lengths)
    assert largest_difference(ours, theirs, lengths) <= 1e-4


@pytest.mark.parametrize(
    ("task", "model", "said"),
    [
        ("classification", BAG, 'model.family: "bag_of_embeddings"'),
        ("translation", PRE_NORM, 'model.family: "encoder_decoder"'),
        ("language_modeling", {**GPT2, "biases": False}, "model.biases: false"),
        ("language_modeling", {**GPT2, "num_key_value_heads": 2}, "model.num_key_value_heads: 2"),
        ("language_modeling", {**LLAMA, "normalization": "layer_norm"}, 'model.normalization: "layer_norm"'),
        ("language_modeling", {**LLAMA, "activation": "relu"}, 'model.activation: "relu"'),
        ("masked_language_modeling", {**BERT, "token_types": 0}, "model.token_types: 0"),
        ("translation", {**T5, "activation": "gelu"}, 'model.activation: "gelu"'),
        ("classification", {**BERT, "pooling": "mean"}, 'model.pooling: "mean"'),
        ("classification", GPT2, "task: classification with model.family: gpt"),
    ],
)
def test_what_transformers_lacks_is_refused_by_name(tmp_path: Path, task: str, model: dict[str, Any], said: str) -> None:
    run = read_run(trained_run(tmp_path, task, model, ("bad", "good")), "latest")
    (tmp_path / "exported").mkdir()
    with pytest.raises(UserError) as error:
        write_huggingface(run, tmp_path / "exported")
    assert said in str(error.value) and "take --format savedmodel" in str(error.value)
    assert not list((tmp_path / "exported").iterdir())


@pytest.mark.parametrize(("task", "model"), [("language_modeling", GPT2), ("masked_language_modeling", BERT)])
def test_the_tokenizer_goes_along(tmp_path: Path, task: str, model: dict[str, Any]) -> None:
    path = trained_run(tmp_path, task, model)
    ours = read_run(path, "latest").tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(exported(path))
    text = "the lazy fox jumps"
    expected = ours.encode(text)
    if model is BERT:
        expected = [ours.specials.begin, *expected, ours.specials.separator]
        assert theirs.mask_token_id == ours.specials.mask
    assert theirs(text)["input_ids"] == expected
    assert (theirs.eos_token_id, theirs.pad_token_id) == (ours.specials.end_of_text, ours.specials.padding)


def test_transformers_goes_on_as_the_run_does(tensorflow: Any, tmp_path: Path) -> None:
    """Greedy, so that the end of text and the first token of a target are what they were."""
    path = trained_run(tmp_path, "translation", T5)
    run, model = read_run(path, "latest"), loaded(exported(path))
    assert model.generation_config.decoder_start_token_id == run.tokenizer.specials.padding
    tokens = tokens_of(path)
    with torch.no_grad():
        written = model.generate(torch.tensor(tokens).long(), max_new_tokens=5, do_sample=False)
    assert written.shape[1] <= 6
    assert (written[:, 0] == run.tokenizer.specials.padding).all()


def test_an_exported_folder_can_be_begun_from(tmp_path: Path) -> None:
    from trainer.pretrained.settings import read_settings

    for number, (task, model) in enumerate(MODELS.values()):
        path = trained_run(tmp_path / str(number), task, model)
        config = read_run(path, "latest").config
        settings = read_settings(exported(path))
        for key in (
            "family",
            "num_layers",
            "num_heads",
            "width",
            "positions",
            "activation",
            "tied_output",
            "biases",
            "rotary_base",
        ):
            assert settings[key] == getattr(config.model, key), (task, key)
