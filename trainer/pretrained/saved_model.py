"""Writes a trained model as TensorFlow's SavedModel, which runs without Drumline. Axes as in `models.blocks`; G tokens that
are written, C classes.

Every signature has a batch of any size, rows of a fixed number of tokens (`saved_model_cli show` tells it), and int32
`lengths` [B], how many of a row's tokens are real. Rows are padded behind, with any token; only where a decoder goes on with
them, they are padded in front. The tokens are those of assets.extra/tokenizer.json, with the special tokens that the task
puts around a text. All is computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from trainer.config import ENCODER_DECODERS, Config, GenerationConfig
from trainer.data.assembly import first_target_token
from trainer.encryption.files import PLAIN, Encryption
from trainer.generation import generate, settle
from trainer.models import bag_of_embeddings, bert, blocks, encoder_decoder, gpt
from trainer.models.blocks import Weights
from trainer.pretrained.trained import TrainedRun
from trainer.tasks.classification import Classification
from trainer.tasks.question_answering import QuestionAnswering

Signature = Callable[..., dict[str, tf.Tensor]]

_TOKENIZER = "assets.extra/tokenizer.json"
_IN_MEMORY = "ram://drumline-saved-model"  # a file system of TensorFlow's
_PIECE_BYTES = 2**20

DEFAULT_SIGNATURE = "serving_default"  # what TensorFlow Serving runs where no other is asked for


def write_saved_model(run: TrainedRun, folder: Path, encryption: Encryption = PLAIN) -> None:
    """Fills a folder, with encrypted files where `encryption` is on: a SavedModel with the signatures of the run's task, and
    the tokenizer in assets.extra. What is to be encrypted is never on a disk as it is: TensorFlow writes it to memory."""
    module = tf.Module()
    module.weights = {name: tf.Variable(weight, trainable=False, name=name) for name, weight in run.weights.items()}
    weights = dict(module.weights)
    signatures = {}
    for name, (function, specification) in _signatures(run, weights).items():
        signatures[name] = tf.function(function, input_signature=specification, autograph=False)
    # The first is what the task is about.
    signatures = {DEFAULT_SIGNATURE: next(iter(signatures.values())), **signatures}
    if encryption.is_on:
        tf.saved_model.save(module, _IN_MEMORY, signatures=signatures)
        _move_encrypted(folder, encryption)
    else:
        tf.saved_model.save(module, str(folder), signatures=signatures)
    (folder / "assets.extra").mkdir()
    encryption.write_file(folder / _TOKENIZER, run.tokenizer.json_text.encode(), _TOKENIZER)


def _move_encrypted(folder: Path, encryption: Encryption) -> None:
    """What TensorFlow wrote to memory."""
    for found, _, names in tf.io.gfile.walk(_IN_MEMORY):
        for file_name in names:
            name = f"{found.removeprefix(_IN_MEMORY)}/{file_name}".strip("/")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with tf.io.gfile.GFile(f"{_IN_MEMORY}/{name}", "rb") as file, encryption.new_file(folder / name, name) as output:
                while piece := file.read(_PIECE_BYTES):
                    output.write(piece)
    tf.io.gfile.rmtree(_IN_MEMORY)


def _signatures(run: TrainedRun, weights: Weights) -> dict[str, tuple[Signature, list[tf.TensorSpec]]]:
    """By name a function and what it is given."""
    config, length = run.config, run.config.data.sequence_length
    tokens = tf.TensorSpec((None, length), tf.int32, "tokens")
    lengths = tf.TensorSpec((None,), tf.int32, "lengths")
    types = tf.TensorSpec((None, length), tf.int32, "types")
    is_pair = config.model.family == "bert" and config.data.fields.text_b is not None
    embed = {"embed": (_embed(config, weights), [tokens, lengths])}
    match config.task:
        case "classification":
            specification = [tokens, lengths, types] if is_pair else [tokens, lengths]
            return {"classify": (_classify(config, weights, is_pair), specification), **embed}
        case "question_answering":
            return {"answer": (_answer(config, weights), [tokens, lengths, types]), **embed}
        case "masked_language_modeling":
            return {**embed, "logits": (_logits(config, weights), [tokens, lengths])}
        case "translation" | "summarization" if config.model.family in ENCODER_DECODERS:
            name = "translate" if config.task == "translation" else "summarize"
            return {name: _write(run, weights), "logits": _target_logits(config, weights)}
        case _:
            return {"generate": _write(run, weights), **embed, "logits": (_logits(config, weights), [tokens, lengths])}


def _classify(config: Config, weights: Weights, is_pair: bool) -> Signature:
    """`scores` float32 [B, C]: the classes' probabilities, which add up to 1 unless a text may have several."""
    task = Classification(config)

    def scores(tokens: tf.Tensor, lengths: tf.Tensor, types: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        # BERT decides at [CLS], a decoder at the end of the text.
        places_B1 = (lengths - 1 if config.model.family == "gpt" else tf.zeros_like(lengths))[:, None]
        features = {"inputs": tokens, "segments": _segments(tokens, lengths), "places": places_B1}
        if types is not None:
            features["types"] = types
        return {"scores": task.scores(weights, features)[:, 0]}

    if is_pair:
        return scores
    return lambda tokens, lengths: scores(tokens, lengths)


def _answer(config: Config, weights: Weights) -> Signature:
    """`span` int32 [B, 2]: first and last place of the likeliest answer in the row, which is [CLS] question [SEP] context
    [SEP] with `types` 0 and, from the context on, 1; `score`, and `null_score`, that of no answer, float32 [B]; and what they
    follow from, `start_logits` and `end_logits` [B, T]."""
    task = QuestionAnswering(config)

    def answer(tokens: tf.Tensor, lengths: tf.Tensor, types: tf.Tensor) -> dict[str, tf.Tensor]:
        segments = _segments(tokens, lengths)
        is_context = (types > 0) & (tf.range(tokens.shape[1])[None] < lengths[:, None] - 1)
        features = {"inputs": tokens, "segments": segments, "types": types, "context_mask": tf.cast(is_context, tf.int32)}
        x_BTD = bert.hidden_states(config.model, weights, tokens, segments, types)
        logits_BT2 = blocks.linear(config.model, weights, "span", x_BTD)
        return {
            **task.best_spans(weights, features),
            "start_logits": logits_BT2[..., 0],
            "end_logits": logits_BT2[..., 1],
        }

    return answer


def _embed(config: Config, weights: Weights) -> Signature:
    """`embedding` float32 [B, D]: the mean of what the last layer leaves of a row's real tokens."""

    def embed(tokens: tf.Tensor, lengths: tf.Tensor) -> dict[str, tf.Tensor]:
        segments = _segments(tokens, lengths)
        if config.model.family == "bag_of_embeddings":
            return {"embedding": bag_of_embeddings.averages(config.model, weights, tokens, segments, 1)[:, 0]}
        if config.model.family == "bert":
            x_BTD = bert.hidden_states(config.model, weights, tokens, segments)
        else:
            x_BTD = gpt.hidden_states(config.model, weights, tokens, segments_BT=segments)
            x_BTD = blocks.normalize(config.model, weights, "final_norm", x_BTD)
        return {"embedding": blocks.segment_means(x_BTD, segments, 1)[:, 0]}

    return embed


def _logits(config: Config, weights: Weights) -> Signature:
    """`logits` float32 [B, T, V]: of the token after each, or of a masked language model of the token at each."""

    def logits(tokens: tf.Tensor, lengths: tf.Tensor) -> dict[str, tf.Tensor]:
        segments = _segments(tokens, lengths)
        if config.model.family == "bert":
            x_BTD = bert.hidden_states(config.model, weights, tokens, segments)
            return {"logits": bert.token_logits(config.model, weights, x_BTD)}
        return {"logits": gpt.logits(config.model, weights, tokens, segments_BT=segments)}

    return logits


def _target_logits(config: Config, weights: Weights) -> tuple[Signature, list[tf.TensorSpec]]:
    """`logits` float32 [B, T, V]: of the target's token after each of `targets`, which are what was written so far."""

    def logits(tokens: tf.Tensor, lengths: tf.Tensor, targets: tf.Tensor) -> dict[str, tf.Tensor]:
        segments_BS, model = _segments(tokens, lengths), config.model
        encoded_BSD = encoder_decoder.encode(model, weights, tokens, segments_BS)
        # Padding comes after what is real, so that none of that sees it.
        segments_BT = tf.ones_like(targets)
        return {"logits": encoder_decoder.logits(model, weights, targets, segments_BT, encoded_BSD, segments_BS)}

    tokens = tf.TensorSpec((None, config.data.sequence_length), tf.int32, "tokens")
    lengths = tf.TensorSpec((None,), tf.int32, "lengths")
    return logits, [tokens, lengths, tf.TensorSpec((None, config.target_length), tf.int32, "targets")]


def _write(run: TrainedRun, weights: Weights) -> tuple[Signature, list[tf.TensorSpec]]:
    """`tokens` int32 [B, G]: the likeliest text, token by token, after a prompt, or of a source; what follows the end of text
    is the end of text. A decoder's prompt and what is written fit into `data.sequence_length` together."""
    config, specials = run.config, run.tokenizer.specials
    greedy = settle(config, GenerationConfig(temperature=0.0))
    num_tokens, length = greedy.max_tokens or 1, config.data.sequence_length
    if config.model.family not in ENCODER_DECODERS:
        num_tokens = min(num_tokens, length // 2)
        length -= num_tokens

    def write(tokens: tf.Tensor, lengths: tf.Tensor) -> dict[str, tf.Tensor]:
        limits_B = tf.fill(tf.shape(lengths), num_tokens)
        uniform_BG = tf.zeros((tf.shape(lengths)[0], num_tokens))
        written = generate(
            config.model,
            weights,
            tf.float32,
            greedy.model_copy(update={"max_tokens": num_tokens}),
            first_target_token(config, specials),
            (specials.end_of_text,),
            tokens,
            lengths,
            limits_B,
            uniform_BG,
        )
        return {"tokens": written}

    return write, [tf.TensorSpec((None, length), tf.int32, "tokens"), tf.TensorSpec((None,), tf.int32, "lengths")]


def _segments(tokens_BT: tf.Tensor, lengths_B: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.range(tokens_BT.shape[1])[None] < lengths_B[:, None], tf.int32)
