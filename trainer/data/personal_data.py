"""Finds personal data in text, by patterns and, where a kind has one, its check digit: to be masked, or their text dropped.

What has no form of its own is not found, but for names and places, where `trainer.data.named_entities` can be asked.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from trainer.data.named_entities import find_named

EXAMPLES_OF_A_KIND = 3
_CONTEXT_CHARACTERS = 30


@dataclass(frozen=True)
class PersonalDataRule:
    """What is looked for, and what becomes of it: `mask` puts the kind in its place, `drop` leaves out the whole text."""

    action: str
    kinds: tuple[str, ...]
    language_model: str | None = None


class Finding(NamedTuple):
    """Characters `begin` to `end` of a text are personal data of a kind."""

    begin: int
    end: int
    kind: str


@dataclass
class PersonalDataReport:
    """What was found in the texts of a part: how many items of each kind, in how many texts, and how some of them looked once
    they were masked."""

    num_items: dict[str, int] = field(default_factory=dict)
    num_texts: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, text: str, findings: Sequence[Finding]) -> None:
        if not findings:
            return
        self.num_texts += 1
        for number, finding in enumerate(findings):
            self.num_items[finding.kind] = self.num_items.get(finding.kind, 0) + 1
            examples = self.examples.setdefault(finding.kind, [])
            if len(examples) < EXAMPLES_OF_A_KIND:
                examples.append(_example(text, findings, number))

    def merge(self, other: PersonalDataReport) -> None:
        self.num_texts += other.num_texts
        for kind, number in other.num_items.items():
            self.num_items[kind] = self.num_items.get(kind, 0) + number
            examples = [*self.examples.get(kind, []), *other.examples.get(kind, [])]
            self.examples[kind] = examples[:EXAMPLES_OF_A_KIND]


def find_personal_data(text: str, kinds: Sequence[str], language_model: str | None = None) -> list[Finding]:
    """All that is found, in order; of two that overlap the one whose kind comes first in `PATTERNS`, names and places last."""
    found: list[Finding] = []
    taken = bytearray(len(text))
    for candidate in _candidates(text, kinds, language_model):
        begin, end, _ = candidate
        if not any(taken[begin:end]):
            taken[begin:end] = b"\1" * (end - begin)
            found.append(candidate)
    return sorted(found)


def _candidates(text: str, kinds: Sequence[str], language_model: str | None) -> Iterator[Finding]:
    for kind, patterns in PATTERNS.items():
        if kind in kinds:
            yield from (each for pattern in patterns for each in pattern.find(text, kind))
    if language_model is not None:
        yield from (Finding(*each) for each in find_named(text, kinds, language_model))


def clean(texts: Sequence[str], rule: PersonalDataRule, report: PersonalDataReport | None) -> tuple[str, ...] | None:
    """The texts of one record with what was found masked; None where the record is to be dropped."""
    found = [find_personal_data(text, rule.kinds, rule.language_model) for text in texts]
    if report is not None:
        for text, findings in zip(texts, found, strict=True):
            report.add(text, findings)
    if rule.action == "drop":
        return None if any(found) else tuple(texts)
    return tuple(masked(text, findings) for text, findings in zip(texts, found, strict=True))


def masked(text: str, findings: Sequence[Finding]) -> str:
    """The text with `<email>` in the place of an e-mail address, and so on."""
    pieces, end = [], 0
    for finding in findings:
        pieces += [text[end : finding.begin], f"<{finding.kind}>"]
        end = finding.end
    return "".join([*pieces, text[end:]])


def _example(text: str, findings: Sequence[Finding], number: int) -> str:
    """An item with what is around it, all personal data in it masked, in one line."""
    begin, end, kind = findings[number]
    before = masked(text[:begin], findings[:number])
    after = masked(text[end:], [Finding(each.begin - end, each.end - end, each.kind) for each in findings[number + 1 :]])
    return " ".join(f"{before[-_CONTEXT_CHARACTERS:]}<{kind}>{after[:_CONTEXT_CHARACTERS]}".split())


@dataclass(frozen=True)
class _Pattern:
    """A form that items of a kind have, and what else must be true of the characters."""

    form: re.Pattern[str]
    is_valid: Callable[[str], bool] = lambda _: True

    def find(self, text: str, kind: str) -> Iterator[Finding]:
        return (Finding(*match.span(), kind) for match in self.form.finditer(text) if self.is_valid(match.group()))


def _has_luhn_digit(text: str) -> bool:
    """ISO/IEC 7812-1: every second digit from the right is doubled, and the digits add up to a multiple of 10."""
    digits = [int(each) for each in text if each.isdigit()][::-1]
    total = sum(sum(divmod(digit * (1 + place % 2), 10)) for place, digit in enumerate(digits))
    return 13 <= len(digits) <= 19 and total % 10 == 0


def _has_iban_digits(text: str) -> bool:
    """ISO 13616: the first four moved to the end, letters as numbers from 10, the rest modulo 97 is 1."""
    plain = text.replace(" ", "")
    return int("".join(str(int(each, 36)) for each in plain[4:] + plain[:4])) % 97 == 1


def _is_ipv6(text: str) -> bool:
    if not any(each.isdigit() for each in text):
        return False  # `ab::cd` is as likely a name in a program
    try:
        return not ipaddress.IPv6Address(text).is_loopback
    except ValueError:
        return False


def _has_digits(least: int, most: int) -> Callable[[str], bool]:
    return lambda text: least <= sum(each.isdigit() for each in text) <= most


def _is_us_number(text: str) -> bool:
    """Social Security numbers that are given out (ssa.gov/employer/randomization.html)."""
    area, group, serial = text.split("-")
    return area not in ("000", "666") and area[0] != "9" and group != "00" and serial != "0000"


def _is_spanish_number(text: str) -> bool:
    """DNI and NIE: the letter is the number modulo 23."""
    plain = text.replace("-", "")
    number = int(plain[:-1].translate(str.maketrans("XYZ", "012")))
    return plain[-1] == "TRWAGMYFPDXBNJZSQVHLCKE"[number % 23]


def _is_french_number(text: str) -> bool:
    """NIR: the last two digits are 97 less the other 13 modulo 97."""
    plain = text.replace(" ", "")
    return int(plain[13:]) == 97 - int(plain[:13]) % 97


def _is_brazilian_number(text: str) -> bool:
    """CPF: two check digits modulo 11."""
    digits = [int(each) for each in text if each.isdigit()]

    def check(place: int) -> int:
        rest = sum(digit * (place + 1 - number) for number, digit in enumerate(digits[:place])) * 10 % 11
        return rest % 10

    return len(set(digits)) > 1 and digits[9] == check(9) and digits[10] == check(10)


# By country: how many characters an IBAN has (swift.com, IBAN Registry).
_IBAN_LENGTHS = {
    **{"AT": 20, "BE": 16, "BG": 22, "CH": 21, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "EE": 20, "ES": 24, "FI": 18, "FR": 27},
    **{"GB": 22, "GR": 27, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IS": 26, "IT": 27, "LI": 21, "LT": 20, "LU": 20, "LV": 21},
    **{"MC": 27, "MT": 31, "NL": 18, "NO": 15, "PL": 28, "PT": 25, "RO": 24, "SA": 24, "SE": 24, "SI": 19, "SK": 24, "TR": 26},
}
_IBAN = "|".join(rf"{country}\d\d(?: ?[A-Z0-9]){{{length - 4}}}" for country, length in _IBAN_LENGTHS.items())
_BYTE = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"

# In this order, which decides what is found where two overlap.
PATTERNS: dict[str, tuple[_Pattern, ...]] = {
    "email": (_Pattern(re.compile(r"(?<![\w.+%-])\w[\w.+%-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}(?!\w)")),),
    "iban": (_Pattern(re.compile(rf"(?<!\w)(?:{_IBAN})(?!\w)"), _has_iban_digits),),
    "card": (
        _Pattern(re.compile(r"(?<![\w.-])[2-6]\d{3}(?:[ -]?\d{4}){2}[ -]?\d{1,4}(?:[ -]?\d{1,3})?(?![\w-])"), _has_luhn_digit),
        _Pattern(re.compile(r"(?<![\w.-])3[47]\d\d[ -]?\d{6}[ -]?\d{5}(?![\w-])"), _has_luhn_digit),
    ),
    "national_id": (
        _Pattern(re.compile(r"(?<![\w.-])\d{3}-\d{2}-\d{4}(?![\w-])"), _is_us_number),
        # United Kingdom, National Insurance number (HMRC, NIM39110).
        _Pattern(re.compile(r"(?<!\w)(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z](?: ?\d\d){3} ?[A-D](?!\w)")),
        _Pattern(re.compile(r"(?<![\w.-])(?:\d{8}|[XYZ]-?\d{7})-?[A-Z](?!\w)"), _is_spanish_number),
        _Pattern(re.compile(r"(?<![\w.-])[12] ?\d\d ?\d\d ?\d\d ?\d{3} ?\d{3} ?\d\d(?![\w-])"), _is_french_number),
        # Italy, codice fiscale.
        _Pattern(re.compile(r"(?<!\w)[A-Z]{6}\d\d[A-EHLMPRST]\d\d[A-Z]\d{3}[A-Z](?!\w)")),
        _Pattern(re.compile(r"(?<![\w.-])\d{3}\.\d{3}\.\d{3}-\d\d(?!\w)"), _is_brazilian_number),
    ),
    "ip": (
        _Pattern(re.compile(rf"(?<![\w.])(?:{_BYTE}\.){{3}}{_BYTE}(?!\w|\.\d)")),
        _Pattern(re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])"), _is_ipv6),
    ),
    "phone": (
        # With the country's code (ITU-T E.164 has at most 15 digits), in North America, and with a 0 before the area's code.
        _Pattern(re.compile(r"(?<![\w+])\+\d{1,3}(?:[ .\-/]?\(\d{1,5}\))?(?:[ .\-/]?\d{1,8}){1,7}(?!\w)"), _has_digits(8, 15)),
        _Pattern(re.compile(r"(?<![\w.\-/])(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{4}(?![\w-])")),
        _Pattern(
            re.compile(r"(?<![\w.\-/])(?:\(0\d{2,5}\)|0\d{2,5})[ \-/]{1,2}\d{3,8}(?:[ -]\d{2,5}){0,3}(?![\w-])"),
            _has_digits(9, 12),
        ),
        _Pattern(re.compile(r"(?<![\w.\-/])0\d(?:[ .-]\d\d){4}(?![\w-])")),
    ),
}
