"""Writes a trained model as a folder in Hugging Face's format, which `transformers` loads. No TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import processors

from trainer.config import Config
from trainer.data.tokenizer import SpecialTokens, Tokenizer
from trainer.encryption.files import PLAIN, Encryption
from trainer.errors import UserError
from trainer.files import json_bytes
from trainer.pretrained import names
from trainer.pretrained.settings import CONFIG_FILE, Format
from trainer.pretrained.tensor_files import TENSORS_FILE
from trainer.pretrained.trained import TrainedRun
from trainer.pretrained.written_settings import format_of, theirs_of
from trainer.safetensors_file import write_tensors

_ARCHITECTURES: dict[tuple[Format, str], str] = {
    **{("gpt2", task): "GPT2LMHeadModel" for task in ("language_modeling", "translation", "summarization")},
    **{("llama", task): "LlamaForCausalLM" for task in ("language_modeling", "translation", "summarization")},
    **{("t5", task): "T5ForConditionalGeneration" for task in ("translation", "summarization")},
    ("bert", "masked_language_modeling"): "BertForMaskedLM",
    ("bert", "classification"): "BertForSequenceClassification",
    ("bert", "question_answering"): "BertForQuestionAnswering",
}


def check_format(config: Config) -> Format:
    """Which of their formats a run's model is written in. Raises UserError where it has none."""
    model = config.model
    known, misfits = format_of(model)
    if model.pooling != "first":  # their classifiers read [CLS]
        known, misfits = None, [*misfits, "pooling"]
    if known is None:
        got = ", ".join(f"model.{key}: {json.dumps(getattr(model, key))}" for key in misfits)
        raise UserError(f"--format huggingface: got {got}, which no model of transformers has; take --format savedmodel")
    if (known, config.task) not in _ARCHITECTURES:
        raise UserError(
            f"--format huggingface: got task: {config.task} with model.family: {model.family}; the classifiers that "
            "transformers puts on decoders have no bias, and decide at another token; take --format savedmodel"
        )
    return known


def write_huggingface(run: TrainedRun, folder: Path, encryption: Encryption = PLAIN) -> None:
    """Fills a folder, with encrypted files where `encryption` is on: config.json, model.safetensors (float32), tokenizer.json,
    tokenizer_config.json, and where it writes texts generation_config.json. Raises UserError where transformers has no such
    model."""
    config, known = run.config, check_format(run.config)
    rows = len(run.weights["token_embedding"])
    specials = _special_numbers(known, run.tokenizer.specials)
    content = {
        "architectures": [_ARCHITECTURES[known, config.task]],
        **theirs_of(config, rows),
        **specials,
        **_labels(run),
        "dtype": "float32",
        "torch_dtype": "float32",  # its name before version 5
    }

    def write(name: str, content: bytes) -> None:
        encryption.write_file(folder / name, content, name)

    write(CONFIG_FILE, json_bytes(content))
    with encryption.new_file(folder / TENSORS_FILE, TENSORS_FILE) as file:
        write_tensors(file, _tensors(known, run), metadata={"format": "pt"})
    write("tokenizer.json", _tokenizer_json(known, run.tokenizer).encode())
    write("tokenizer_config.json", json_bytes(_tokenizer_settings(known, run)))
    if _writes_texts(config):
        write("generation_config.json", json_bytes(specials))


def _tensors(known: Format, run: TrainedRun) -> dict[str, np.ndarray]:
    """Their tensors by name; those that are tied are there once, as transformers itself writes them."""
    origins = names.origins(known, run.config.model, run.weights)
    missing = [name for name in run.weights if name not in origins]
    assert not missing, missing
    return {
        names.full_name(origin, name, names.PREFIXES[known]): np.asarray(tensor, np.float32)
        for ours, origin in origins.items()
        for name, tensor in origin.split(run.weights[ours]).items()
    }


def _writes_texts(config: Config) -> bool:
    return config.task in ("language_modeling", "translation", "summarization")


def _special_numbers(known: Format, specials: SpecialTokens) -> dict[str, int]:
    numbers = {"pad_token_id": specials.padding, "eos_token_id": specials.end_of_text}
    if known == "t5":
        return numbers | {"decoder_start_token_id": specials.padding}
    return numbers | {"bos_token_id": specials.begin}


def _labels(run: TrainedRun) -> dict[str, Any]:
    config = run.config
    if config.task != "classification":
        return {}
    labels = run.labels or tuple(f"LABEL_{number}" for number in range(run.weights["classifier.bias"].shape[0]))
    kind = "multi_label_classification" if config.data.multi_label else "single_label_classification"
    return {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        "problem_type": kind,
    }


def _tokenizer_json(known: Format, tokenizer: Tokenizer) -> str:
    """The run's tokenizer, which also puts the tokens around a text that the model was trained with."""
    model = tokenizers.Tokenizer.from_str(tokenizer.json_text)
    model.no_truncation()
    model.no_padding()
    if known == "bert" and not _adds_tokens(model):
        specials = tokenizer.specials
        begin, separator = (str(model.id_to_token(number)) for number in (specials.begin, specials.separator))
        model.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A {separator}",
            pair=f"{begin} $A {separator} $B:1 {separator}:1",
            special_tokens=[(begin, specials.begin), (separator, specials.separator)],
        )
    return str(model.to_str(pretty=True))


def _adds_tokens(model: tokenizers.Tokenizer) -> bool:
    return model.num_special_tokens_to_add(is_pair=False) > 0


def _tokenizer_settings(known: Format, run: TrainedRun) -> Mapping[str, Any]:
    specials = run.tokenizer.specials
    model = tokenizers.Tokenizer.from_str(run.tokenizer.json_text)
    numbers = {"eos_token": specials.end_of_text, "pad_token": specials.padding, "unk_token": specials.unknown}
    if known == "bert":
        numbers |= {"cls_token": specials.begin, "sep_token": specials.separator, "mask_token": specials.mask}
    elif known != "t5":
        numbers |= {"bos_token": specials.begin}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": run.config.model.max_positions or run.config.data.sequence_length,
        # As it is here: what `decode` gives is the text, without the spaces tidied up.
        "clean_up_tokenization_spaces": False,
        **{name: model.id_to_token(number) for name, number in numbers.items() if number is not None},
    }
