"""Metrics of texts against references, as the packages compute them that others report: sacrebleu and rouge-score.

Both are imported when they are needed, since they take a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal


def score_texts(
    task: Literal["translation", "summarization"], texts: Sequence[str], references: Sequence[str]
) -> dict[str, float]:
    """By the names of `config.METRICS_OF_TEXTS`, each from 0 to 100. There must be as many references as texts, and any.

    Translations: BLEU (Papineni et al. 2002) and chrF (Popovic 2015) of the whole corpus, with sacrebleu's defaults (Post
    2018, arXiv:1804.08771). Summaries: the mean F1 of ROUGE-1, -2 and -L (Lin 2004) with Porter's stemmer; rouge-score looks at
    Latin letters and digits alone.
    """
    assert len(texts) == len(references) > 0
    if task == "translation":
        from sacrebleu.metrics import BLEU, CHRF

        return {
            "bleu": BLEU().corpus_score(texts, [references]).score,
            "chrf": CHRF().corpus_score(texts, [references]).score,
        }
    from rouge_score.rouge_scorer import RougeScorer

    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(names, use_stemmer=True)
    scores = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
    return {name: 100.0 * sum(each[name].fmeasure for each in scores) / len(scores) for name in names}
