"""How well questions are answered, as SQuAD's own program has it (Rajpurkar et al. 2016 and 2018). No TensorFlow."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Prediction:
    """The best answer to a question, whether it is likelier that there is none, and the right ones (none: unanswerable)."""

    text: str
    is_none_likelier: bool
    answers: Sequence[str]


def answer_metrics(predictions: Sequence[Prediction]) -> dict[str, float]:
    """`exact_match` and `f1`, the means in percent; of several right answers that counts which agrees best.

    Only where there are questions without an answer (SQuAD 2.0) may one be left unanswered.
    """
    may_be_none = any(not each.answers for each in predictions)
    exact = overlap = 0.0
    for each in predictions:
        text = "" if may_be_none and each.is_none_likelier else each.text
        # Answers of punctuation and articles alone are none.
        answers = [answer for answer in each.answers if normalized(answer)] or [""]
        exact += max(normalized(text) == normalized(answer) for answer in answers)
        overlap += max(f1(text, answer) for answer in answers)
    count = max(1, len(predictions))
    return {"exact_match": 100.0 * exact / count, "f1": 100.0 * overlap / count}


def normalized(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def f1(text: str, answer: str) -> float:
    """The harmonic mean of the shares of words that agree, in either; where either has no words, whether both have none."""
    words, expected = normalized(text).split(), normalized(answer).split()
    if not words or not expected:
        return float(words == expected)
    common = (Counter(words) & Counter(expected)).total()
    return 2 * common / (len(words) + len(expected))
