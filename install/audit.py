"""Under what licences the locked dependencies are, and what is known to be wrong with them.

    python -m install.audit [LOCK ...] [--index URL]

Licences are what the installed packages state of themselves (Core Metadata: License-Expression, else License or classifiers).
Known vulnerabilities are asked of the package index, for the very version of each package, by PyPI's JSON API
(https://docs.pypi.org/api/json), which has those of the Python Packaging Advisory Database.

Exit codes: 0 all is well; 1 something was found; 75 nothing was found, but the index did not answer for all packages: it is out
of reach, or no such index. Then it says that vulnerabilities were not looked for.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.metadata
import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

LOCKS = tuple(Path(__file__).with_name(name) for name in ("requirements.lock", "requirements-gpu.lock"))
INDEX = "https://pypi.org/pypi"
FOUND, OUT_OF_REACH = 1, 75

# By SPDX identifier (https://spdx.org/licenses). MPL-2.0 asks for changes to its own files alone.
PERMISSIVE = {
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "CNRI-Python", "HPND", "ISC", "MIT", "MIT-0"),
    *("MIT-CMU", "MPL-2.0", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib"),
}
# What was written before there were expressions.
SPDX_OF_NAMES = {
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "3-Clause BSD License": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
# Of packages that state nothing themselves: what the file LICENSE of their source says.
STATED_ELSEWHERE = {"namex": "Apache-2.0"}  # https://github.com/fchollet/namex

_SECONDS = 20.0
_CALLS_AT_ONCE = 8
_LONGEST_ANSWER = 64 * 2**20


@dataclass(frozen=True, order=True)
class Package:
    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Answer:
    """What the index says of a package; why it said nothing, where it did not."""

    vulnerabilities: tuple[str, ...] = ()
    silence: str | None = None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("locks", metavar="LOCK", type=Path, nargs="*", default=LOCKS, help="requirements with exact versions")
    parser.add_argument("--index", metavar="URL", default=INDEX, help=f"the package index's JSON API (default: {INDEX})")
    arguments = parser.parse_args(argv)
    packages = sorted({package for lock in arguments.locks for package in read_lock(lock)})
    licences_found = audit_licences(packages)
    vulnerabilities_found, is_complete = audit_vulnerabilities(packages, arguments.index)
    if licences_found or vulnerabilities_found:
        return FOUND
    return 0 if is_complete else OUT_OF_REACH


def read_lock(path: Path) -> list[Package]:
    """The packages of a lock file whose markers hold on this machine."""
    lines = path.read_text().replace("\\\n", " ").splitlines()
    packages = []
    for line in lines:
        text = re.sub(r"\s--hash=\S+", "", line.partition(" #")[0]).strip()
        if text and not text.startswith(("#", "-")):
            requirement = Requirement(text)
            (version,) = (each.version for each in requirement.specifier)
            if requirement.marker is None or requirement.marker.evaluate():
                packages.append(Package(requirement.name, version))
    return packages


def audit_licences(packages: Iterable[Package]) -> int:
    """Prints what is not permissive, and what cannot be told; how many are not."""
    num_found, num_right, absent = 0, 0, []
    for package in packages:
        try:
            stated = licence_of(package.name)
        except importlib.metadata.PackageNotFoundError:
            absent.append(package.name)
            continue
        if is_permissive(stated):
            num_right += 1
        else:
            num_found += 1
            print(f"licence: {package}: got {stated or 'none'}, expected one of install/audit.py's PERMISSIVE")
    print(f"licences: {num_right} packages are under permissive licences, {num_found} are not")
    if absent:
        print(f"licences: not looked at, since they are not installed here: {', '.join(absent)}")
    return num_found


def licence_of(name: str) -> str:
    """An SPDX expression of what an installed package states, as far as its words are known; "" where it states nothing."""
    metadata = importlib.metadata.metadata(name)
    if "License-Expression" in metadata:
        return metadata["License-Expression"]
    classifiers = [each.split(" :: ")[-1] for each in metadata.get_all("Classifier") or [] if each.startswith("License ::")]
    named = [each for each in classifiers if each != "OSI Approved"]
    if not named and "License" in metadata:
        named = metadata["License"].strip().splitlines()[:1]
    if not named:
        return STATED_ELSEWHERE.get(name, "")
    # Some name several of which one may choose; whoever needs all of them to be permissive is on the safe side.
    return " AND ".join(SPDX_OF_NAMES.get(each, each) for each in named)


def is_permissive(expression: str) -> bool:
    """Whether it lets one choose licences that are all permissive. Expressions with parentheses are for a person to read."""
    return any(all(part.strip() in PERMISSIVE for part in way.split(" AND ")) for way in expression.split(" OR "))


def audit_vulnerabilities(packages: Sequence[Package], index: str) -> tuple[int, bool]:
    """Prints what the index knows against the packages; how much that is, and whether it was asked of all."""
    with ThreadPoolExecutor(_CALLS_AT_ONCE) as pool:
        answers = list(pool.map(lambda package: ask(package, index), packages))
    found = [(package, each) for package, answer in zip(packages, answers, strict=True) for each in answer.vulnerabilities]
    for package, vulnerability in found:
        print(f"vulnerability: {package}: {vulnerability}")
    silent = [(package, answer.silence) for package, answer in zip(packages, answers, strict=True) if answer.silence]
    num_asked = len(packages) - len(silent)
    print(f"vulnerabilities: {len(found)} are known of {num_asked} packages, by {index}")
    if silent:
        package, silence = silent[0]
        print(f"vulnerabilities: NOT LOOKED FOR in {len(silent)} packages, such as {package}: {silence}")
    return len(found), not silent


def ask(package: Package, index: str) -> Answer:
    """What the index says of the very version."""
    try:
        with urllib.request.urlopen(f"{index}/{package.name}/{package.version}/json", timeout=_SECONDS) as response:
            told = json.loads(response.read(_LONGEST_ANSWER))
        known = [each for each in told["vulnerabilities"] if not each.get("withdrawn")]
        return Answer(tuple(_described(each["id"], each.get("fixed_in") or [], each.get("summary")) for each in known))
    except urllib.error.HTTPError as error:
        return Answer(silence=f"{index} answers {error.code} {error.reason}")
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return Answer(silence=f"{index} is out of reach ({reason})")
    except (ValueError, KeyError, TypeError) as error:
        return Answer(silence=f"what {index} answers is not PyPI's JSON API ({type(error).__name__})")


def _described(number: str, fixed_in: Sequence[str], summary: str | None) -> str:
    fix = f"mended in {', '.join(fixed_in)}" if fixed_in else "not mended yet"
    return f"{number}, {fix}" + (f": {summary}" if summary else "")


if __name__ == "__main__":
    sys.exit(main())
