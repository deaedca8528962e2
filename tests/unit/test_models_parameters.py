"""What each family is made of and costs, against published counts and sums by hand."""

from __future__ import annotations

import pytest

from trainer.config import ModelConfig
from trainer.models.parameters import Parameter, flops_per_token, linear, matrix_deviation, parameters

BERT = ModelConfig(family="bert", num_layers=12, num_heads=12, width=768)
T5_SMALL = ModelConfig(family="t5", num_layers=6, num_heads=8, width=512)
SMALL_PAIR = ModelConfig(
    family="encoder_decoder", num_layers=2, num_decoder_layers=3, num_heads=2, width=8, width_per_head=6, biases=False
)


def count(weights: dict[str, Parameter]) -> int:
    return sum(weight.num_elements for weight in weights.values())


def test_bert_has_as_many_parameters_as_published() -> None:
    """BERT base, uncased, with its pooler."""
    pooler = linear("pooler", 768, 768, matrix_deviation(768))
    assert count(parameters(BERT, 30_522, 512) | pooler) == 109_482_240


def test_t5_has_as_many_parameters_as_published() -> None:
    assert count(parameters(T5_SMALL, 32_128, 512)) == 60_506_624
    gated = {"activation": "gated_gelu", "tied_output": False, "num_layers": 8, "num_heads": 6, "width_per_head": 64}
    version_1_1 = T5_SMALL.model_copy(update={**gated, "feed_forward_width": 1024})
    assert count(parameters(version_1_1, 32_128, 512)) == 76_961_152


def test_a_bag_of_embeddings_is_its_table() -> None:
    weights = parameters(ModelConfig(family="bag_of_embeddings", width=128), 10_000, 100)
    assert {name: weight.shape for name, weight in weights.items()} == {"token_embedding": (10_000, 128)}


def test_tables_have_the_rows_that_are_asked_for_where_these_are_more() -> None:
    wide = BERT.model_copy(update={"vocabulary_size": 40_000, "max_positions": 1024})
    assert parameters(wide, 30_522, 512)["token_embedding"].shape == (40_000, 768)
    assert parameters(wide, 50_000, 512)["token_embedding"].shape == (50_000, 768)
    assert parameters(wide, 30_522, 512)["position_embedding"].shape == (1024, 768)


def test_both_sides_of_a_pair_share_positions_as_many_as_the_longer_needs() -> None:
    assert parameters(SMALL_PAIR, 20, 10, 17)["position_embedding"].shape == (17, 8)
    assert parameters(SMALL_PAIR, 20, 10, 4)["position_embedding"].shape == (10, 8)


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_positions_that_are_computed_have_no_weights(positions: str) -> None:
    model = SMALL_PAIR.model_copy(update={"positions": positions})
    assert not any("position" in name for name in parameters(model, 20, 10))


def test_heads_may_be_wider_than_the_model() -> None:
    weights = parameters(SMALL_PAIR, 20, 10)
    assert weights["encoder.blocks.0.attention.query_key_value.kernel"].shape == (8, 3 * 12)
    assert weights["decoder.blocks.2.attention.output.kernel"].shape == (12, 8)
    assert weights["decoder.blocks.0.cross_attention.query.kernel"].shape == (8, 12)
    assert weights["decoder.blocks.0.cross_attention.key_value.kernel"].shape == (8, 24)


def test_projections_into_the_residual_stream_begin_narrower_the_more_there_are() -> None:
    weights = parameters(SMALL_PAIR, 20, 10)
    wide = matrix_deviation(8)
    assert weights["encoder.blocks.0.feed_forward.up.kernel"].standard_deviation == pytest.approx(wide)
    for name, num_projections in (("encoder.blocks.0", 2 * 2), ("decoder.blocks.0", 3 * 3)):
        for matrix in ("attention.output", "feed_forward.down"):
            begins = weights[f"{name}.{matrix}.kernel"].standard_deviation
            assert begins == pytest.approx(wide / num_projections**0.5)


def test_t5_begins_with_scores_and_outputs_of_the_order_of_one() -> None:
    """Of unscaled scores of normalized vectors: W products of two sums over D of variance D s^2 each."""
    weights = parameters(T5_SMALL, 32_128, 512)
    squared = {name: weight.standard_deviation**2 for name, weight in weights.items()}
    attention = "encoder.blocks.0.attention"
    variance = 512 * squared[f"{attention}.query_key_value.kernel"]
    assert 64 * variance**2 == pytest.approx(1.0)
    assert variance * 512 * squared[f"{attention}.output.kernel"] == pytest.approx(1.0)
    assert squared["token_embedding"] == 1.0


def test_operations_of_bert_are_six_a_weight_and_attention() -> None:
    """Base by hand: 12 blocks of 12 * 768^2, attention, and, where tokens are scored, the head's matrix and the table."""
    trunk = 6 * 12 * 12 * 768**2 + 12 * 12 * 768 * 512
    assert flops_per_token(BERT, 30_522, 512, scores_tokens=False) == trunk
    assert flops_per_token(BERT, 30_522, 512) == trunk + 6 * (768**2 + 30_522 * 768)


def test_operations_of_a_pair_are_those_of_a_row_spread_over_its_tokens() -> None:
    """By hand, of a row of 10 source and 4 target tokens, with 12 numbers in all heads and 32 in the feed-forward layer."""
    layer, cross = 8 * 36 + 12 * 8 + 2 * 8 * 32, 8 * 12 + 12 * 8
    encoder = 2 * (6 * 10 * layer + 12 * 12 * 10 * 10)
    decoder = 3 * (6 * 4 * (layer + cross) + 6 * 10 * 8 * 24 + 12 * 12 * 4 * (4 + 10))
    assert flops_per_token(SMALL_PAIR, 20, 10, 4) == round((encoder + decoder + 6 * 4 * 20 * 8) / 14)


def test_the_output_costs_the_same_tied_or_not() -> None:
    untied = SMALL_PAIR.model_copy(update={"tied_output": False})
    assert flops_per_token(untied, 20, 10, 4) == flops_per_token(SMALL_PAIR, 20, 10, 4)


GATED = {"activation": "swiglu", "biases": False, "num_heads": 4, "num_key_value_heads": 2, "width": 16, "num_layers": 1}


def test_hidden_matrices_are_those_of_the_layers_and_say_what_they_are_made_of() -> None:
    weights = parameters(ModelConfig(family="gpt", tied_output=False, **GATED), 50, 8)
    hidden = {name: each.hidden_columns for name, each in weights.items() if each.is_hidden_matrix}
    assert hidden == {
        "blocks.0.attention.query_key_value.kernel": (16, 8, 8),  # 4 heads of queries, 2 of keys and of values, of width 4
        "blocks.0.attention.output.kernel": (16,),
        "blocks.0.feed_forward.up.kernel": (64, 64),  # the gate, and what it multiplies
        "blocks.0.feed_forward.down.kernel": (16,),
    }
    pair = parameters(SMALL_PAIR, 50, 8)
    assert pair["decoder.blocks.2.cross_attention.key_value.kernel"].hidden_columns == (12, 12)
    for each in [*weights.values(), *pair.values()]:
        assert not each.is_hidden_matrix or sum(each.hidden_columns) == each.shape[1]
