"""How `drumline predict` generates text; given on its command line, not in the YAML."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.config.section import Count, Section


class GenerationConfig(Section):
    """What is generated, and how it is chosen.

    The likelier `top_k` tokens, and of these the fewest that together reach the probability `top_p`, are drawn from
    at `temperature`; 0 takes the likeliest each time. With more than one beam the likeliest of so many texts is looked for,
    their log-probabilities divided by ((5 + length) / 6) to the power of `length_penalty` (Wu et al. 2016,
    arXiv:1609.08144, equation 14). A text ends before the first of `stop` that it comes to. `temperature` is 1 for
    a language model's texts and 0 for those that translate or summarize, unless given.
    """

    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0.0)] | None = None
    top_k: Count | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    num_beams: Count = 1
    length_penalty: Annotated[float, Field(ge=0.0)] = 0.6
    stop: Annotated[tuple[str, ...], Field(strict=False)] = ()
    samples: Count = 1
    seed: Annotated[int, Field(ge=0)] = 1
    batch_size: Count = 8
