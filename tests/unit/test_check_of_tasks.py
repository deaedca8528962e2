"""What `drumline check` says of tasks and families other than language models."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.check import Memory, estimate_memory, report
from trainer.config import Config, plan_batches
from trainer.config_io import load_config
from trainer.data.manifest import Dataset, Part, RowsFile, StoreManifest, store_settings, write_manifest
from trainer.errors import ConfigError
from trainer.sizes import Sizes
from trainer.tasks.parameters import run_parameters

SOURCES = "data.train=[{path: a.jsonl}]"
CLASSIFICATION = ["task=classification", "data.format=jsonl", "data.labels=[no, yes]", SOURCES]
BERT = [*CLASSIFICATION, "model={family: bert, num_layers: 2, num_heads: 2, width: 8}"]
BAG = [*CLASSIFICATION, "model={family: bag_of_embeddings, width: 8}"]
PAIR = "model={family: encoder_decoder, num_layers: 2, num_decoder_layers: 3, num_heads: 2, width: 8}"
TRANSLATION = ["task=translation", "data.format=jsonl", "data.target_length=12", SOURCES, PAIR]


def memory(config: Config) -> Memory:
    return estimate_memory(config, plan_batches(config.train, 1), run_parameters(config, Sizes(300, 2)), 300)


def prepare(config: Config, num_records: int, rows: RowsFile | None = None) -> None:
    """A store's manifest, as `prepare` would write it."""
    store = Path(config.data.store)
    part = Part("train-0.arrow", num_documents=num_records, num_tokens=40 * num_records, num_bytes=1, sha256="")
    dataset = Dataset("a.jsonl", None, (part,), (), rows)
    store.mkdir()
    labels = ("no", "yes") if config.task == "classification" else ()
    write_manifest(StoreManifest(1, store_settings(config), "", 300, 0, "uint16", (dataset,), (), labels), store)


def test_a_classifier_reports_samples_and_epochs_of_them(small_config: Path) -> None:
    config = load_config(small_config, BERT)
    prepare(config, 80)
    printed = report(config, 1)
    assert "80 samples (3,200 tokens) to train on, 0 samples (0 tokens) to validate" in printed
    assert "2.00 in the run; one takes 10.0 steps" in printed
    assert "128 an update, 2,560 in the run, padding included" in printed


def test_what_lies_in_packed_rows_counts_once(small_config: Path) -> None:
    config = load_config(small_config, TRANSLATION)
    rows = RowsFile("rows.arrow", 40, 80, num_real_tokens=1_085, num_places=1_120, num_bytes=1, sha256="", origin="")
    prepare(config, 80, rows)
    printed = report(config, 1)
    assert "40 sequences, of whose tokens 96.9% are real" in printed
    assert "4.00 in the run; one takes 5.0 steps" in printed
    assert "8 sequences of 16 and 12 tokens = 1 replica" in printed
    assert "224 an update" in printed


def test_windows_of_contexts_are_known_only_in_training(small_config: Path) -> None:
    overrides = ["task=question_answering", "data.format=jsonl", SOURCES, BERT[-1], "data.window_overlap=4"]
    config = load_config(small_config, overrides)
    prepare(config, 80)
    assert "depend on the length of each context" in report(config, 1)


@pytest.mark.parametrize("overrides", [BERT, BAG, TRANSLATION], ids=["bert", "bag", "translation"])
def test_each_family_is_reported_before_its_data_are_prepared(small_config: Path, overrides: list[str]) -> None:
    printed = report(load_config(small_config, overrides), 2)
    assert "is not prepared yet" in printed and "FLOPs a token" in printed and "memory" in printed


def test_memory_of_a_pair_adds_up_by_hand(small_config: Path) -> None:
    """Rows of 16 and 12 tokens, 8 at once; 2 heads of 4, 2 and 3 layers."""
    config = load_config(small_config, TRANSLATION)
    encoder_layer = 4 * 8 + 24 + 2 * 16 + 8 + 32 + 32
    decoder_layer = 4 * 8 + 24 + 2 * 12 + 8 + 32 + 32 + (2 * 8 + 2 * 8 + 2 * 16)
    row = 16 * (2 * encoder_layer + 16 + 3 * 2 * 8) + 12 * (3 * decoder_layer + 16)
    assert memory(config).activations == 8 * (4 * row + 12 * 8 * 300)


def test_blocks_computed_again_keep_their_inputs_and_one_layer(small_config: Path) -> None:
    a_layer = 4 * 8 + 24 + 2 * 16 + 8 + 32 + 32
    decoder = load_config(small_config, ["model.recompute=blocks"])
    assert memory(decoder).activations == 8 * (4 * 16 * (2 * 8 + 16 + a_layer) + 4 * 2 * 300 * 16)
    pair = load_config(small_config, [*TRANSLATION, "model.recompute=blocks"])
    decoder_layer = 12 * (4 * 8 + 24 + 2 * 12 + 8 + 32 + 32 + (2 * 8 + 2 * 8 + 2 * 16)) + 16 * 2 * 8
    row = 16 * (2 * 8 + 16) + 12 * (3 * 8 + 16) + max(16 * a_layer, decoder_layer)
    assert memory(pair).activations == 8 * (4 * row + 12 * 8 * 300)


def test_a_loss_in_chunks_has_the_logits_of_one(small_config: Path) -> None:
    whole, chunks = (load_config(small_config, [f"train.loss_chunk_tokens={each}"]) for each in ("null", 20))
    assert memory(whole).activations - memory(chunks).activations == 4 * 2 * 300 * (8 * 16 - 20)


def test_a_classifier_has_no_loss_to_divide(small_config: Path) -> None:
    with pytest.raises(ConfigError, match="got 20, expected nothing: classification has no scores over a vocabulary"):
        load_config(small_config, [*BERT, "train.loss_chunk_tokens=20"])


def test_a_classifier_scores_no_vocabulary_and_mixup_computes_two_rows_for_one(small_config: Path) -> None:
    a_layer = 4 * 8 + 24 + 2 * 16 + 8 + 32 + 32
    once = memory(load_config(small_config, BERT)).activations
    assert once == 8 * 4 * 16 * (2 * a_layer + 16)
    assert memory(load_config(small_config, [*BERT, "data.augmentation.mixup=0.2"])).activations == 2 * once


def test_only_weights_that_are_trained_have_gradients_and_moments(small_config: Path) -> None:
    adapted = load_config(small_config, ["model.lora={rank: 2, targets: [attention]}"])
    # Pairs beside two layers' matrices of 8 by 24 and 8 by 8.
    trained = 2 * 2 * ((8 + 24) + (8 + 8))
    assert memory(adapted).gradients == 4 * trained
    assert memory(adapted).moments == 8 * trained
    assert memory(adapted).weights == memory(load_config(small_config)).weights + 4 * trained
    assert f"{trained} are trained" in report(adapted, 1)


def test_a_folder_with_a_vocabulary_says_how_many_tokens_it_has(small_config: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\na\n")
    overrides = [f"data.tokenizer={{kind: pretrained, path: {tmp_path}}}"]
    assert "3 tokens, as" in report(load_config(small_config, overrides), 1)
