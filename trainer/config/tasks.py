"""What a run can be trained for, and what of the other sections belongs to which task."""

from __future__ import annotations

from typing import Literal

Task = Literal[
    "language_modeling",
    "masked_language_modeling",
    "classification",
    "translation",
    "summarization",
    "question_answering",
]
Family = Literal["gpt", "bert", "t5", "encoder_decoder", "bag_of_embeddings"]

# The fields of a record, by task; one that is in brackets need not be there.
FIELDS: dict[Task, tuple[str, ...]] = {
    "language_modeling": ("text",),
    "masked_language_modeling": ("text",),
    "classification": ("text", "text_b", "label", "group"),
    "translation": ("source", "target", "group"),
    "summarization": ("document", "summary", "group"),
    "question_answering": ("context", "question", "answers"),
}

FAMILIES: dict[Task, tuple[Family, ...]] = {
    "language_modeling": ("gpt",),
    "masked_language_modeling": ("bert",),
    "classification": ("bag_of_embeddings", "bert", "gpt"),
    "translation": ("encoder_decoder", "t5", "gpt"),
    "summarization": ("encoder_decoder", "t5", "gpt"),
    "question_answering": ("bert",),
}

ENCODER_DECODERS: tuple[Family, ...] = ("t5", "encoder_decoder")

# What an evaluation computes, by task.
METRICS: dict[Task, tuple[str, ...]] = {
    "language_modeling": ("loss", "perplexity"),
    "masked_language_modeling": ("loss", "perplexity", "accuracy"),
    "classification": ("loss", "accuracy", "macro_f1", "auc"),
    "translation": ("loss", "perplexity", "accuracy", "bleu", "chrf"),
    "summarization": ("loss", "perplexity", "accuracy", "rouge1", "rouge2", "rougeL"),
    "question_answering": ("loss", "exact_match", "f1"),
}

# Of these less is better, of all others more.
METRICS_TO_MINIMIZE = ("loss", "perplexity")

# Those of them that texts must be generated for: `evaluation.generate`.
METRICS_OF_TEXTS = ("bleu", "chrf", "rouge1", "rouge2", "rougeL")
