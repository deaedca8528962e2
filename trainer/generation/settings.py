"""What of a request to generate follows from the task, and what cannot be had together. No TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.config import ENCODER_DECODERS, Config, GenerationConfig
from trainer.data.tokenizer import Tokenizer
from trainer.errors import UserError

DEFAULT_MAX_TOKENS = 100  # of a language model, whose texts need not end


def settle(config: Config, generation: GenerationConfig) -> GenerationConfig:
    """The request with its temperature and its number of tokens.

    A decoder that translates or summarizes keeps a quarter of `data.sequence_length` for what it writes, unless a number is
    given. Raises UserError where options contradict each other.
    """
    is_language_model = config.task == "language_modeling"
    num_tokens, temperature = generation.max_tokens, generation.temperature
    if config.model.family in ENCODER_DECODERS:
        num_tokens = num_tokens or config.target_length
        _refuse_positions_that_were_not_learned(config, num_tokens)
    elif num_tokens is None:
        num_tokens = DEFAULT_MAX_TOKENS if is_language_model else config.data.sequence_length // 4
    if generation.num_beams > 1:
        if temperature:
            raise UserError(f"--temperature: got {temperature:g} and --num-beams; beams take no chances: leave one out")
        if generation.samples > 1:
            raise UserError(f"--samples: got {generation.samples} and --num-beams, which find one text; leave one out")
    elif "length_penalty" in generation.model_fields_set:
        raise UserError(f"--length-penalty: got {generation.length_penalty:g} without --num-beams, whose texts it compares")
    if temperature is None:
        temperature = 1.0 if is_language_model and generation.num_beams == 1 else 0.0
        for option, value in (("--top-k", generation.top_k), ("--top-p", generation.top_p)):
            if value is not None and temperature == 0.0:
                raise UserError(f"{option}: got {value} and the likeliest text is looked for; give --temperature too")
    return generation.model_copy(update={"max_tokens": num_tokens, "temperature": temperature})


def stop_tokens(tokenizer: Tokenizer, stops: Sequence[str]) -> tuple[int, ...]:
    """Tokens that end a text: the end of text, and those that are one of `stops`. A stop that takes several tokens is not
    among them: it is found in the text afterwards."""
    encoded = {stop: tokenizer.encode(stop) for stop in stops}
    single = [tokens[0] for stop, tokens in encoded.items() if len(tokens) == 1 and tokenizer.decode(tokens) == stop]
    return tuple(dict.fromkeys([tokenizer.end_of_text, *single]))


def _refuse_positions_that_were_not_learned(config: Config, num_tokens: int) -> None:
    learned = config.model.max_positions or max(config.data.sequence_length, config.target_length)
    if config.model.positions == "learned" and num_tokens > learned:
        raise UserError(f"--max-tokens: got {num_tokens}, expected at most {learned}: there the model's positions end")
