"""Writes texts: greedy, sampled, or by beam search; in batches, with a key/value cache, the whole loop in one graph."""

from trainer.generation.compiled import compile_generation, generate
from trainer.generation.settings import settle, stop_tokens
from trainer.generation.writer import Writer, Written, padded_length

__all__ = ["Writer", "Written", "compile_generation", "generate", "padded_length", "settle", "stop_tokens"]
