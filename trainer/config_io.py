"""From YAML and overrides to a `Config` and back, with the file and line, or the override, in every complaint."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from pydantic import ValidationError

from trainer.config import Config, ModelConfig, SearchConfig, Section
from trainer.config_complaints import Place, dotted, explain, show
from trainer.errors import ConfigError
from trainer.pretrained.settings import CONFIG_FILE, FREE_KEYS, OWN_KEYS, read_settings

# What a YAML file can hold, once read.
Value: typing.TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"

AnySection = typing.TypeVar("AnySection", bound=Section)

# Plain scalars as in YAML 1.2 (yaml.org/spec/1.2.2, section 10.3.2), which unlike PyYAML's 1.1 reads `3e-4` as a number
# and `no` as a word. In order: the first that matches names the type.
_SCALARS = (
    ("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|)$"), ["~", "n", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf")),
    ("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"),
        list("-+.0123456789"),
    ),
    ("tag:yaml.org,2002:float", re.compile(r"^(?:[-+]?\.inf|\.nan)$"), list("-+.")),
)


class _Loader(yaml.SafeLoader):
    """Reads plain scalars by `_SCALARS` alone."""


_Loader.yaml_implicit_resolvers = {}


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would take for something other than text."""


for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a configuration; an override, `section.key=value`, wins over the file. With `model.initialize_from` the keys of
    `model` that neither has are those of that folder's config.json, and the tokenizer is the folder's.

    Raises ConfigError with all complaints at once, in the order of the file's lines and then of the overrides.
    """
    source = _Source.of(path, overrides)
    source.fill_from_pretrained()
    return source.validated(Config)


def load_search(path: Path, overrides: Sequence[str] = ()) -> SearchConfig:
    """Reads the file of a search, as `load_config` reads that of a run."""
    return _Source.of(path, overrides).validated(SearchConfig)


def dump_config(config: Section) -> str:
    """YAML that `load_config`, or `load_search`, reads back as an equal configuration."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def config_schema() -> dict[str, typing.Any]:
    """The JSON Schema of a configuration file, for editors."""
    return Config.model_json_schema()


@dataclass(frozen=True, order=True)
class _Origin:
    """Where a value was written; in the order in which complaints are told."""

    number: int  # of the override, from 1; 0 for the file
    line: int
    name: str

    def __str__(self) -> str:
        return f"{self.name}:{self.line}: " if self.line else f"{self.name}: "


@dataclass(frozen=True)
class _Complaint:
    where: _Origin
    key: str
    text: str

    def __str__(self) -> str:
        # An override already begins with the key.
        named = self.where.number and self.where.name.partition("=")[0] == self.key
        return f"{self.where}{self.text}" if named or not self.key else f"{self.where}{self.key}: {self.text}"


@dataclass
class _Source:
    """The tree of values that file and overrides make up, and where each was written."""

    path: Path
    text: str
    tree: Value = None
    origins: dict[Place, _Origin] = field(default_factory=dict)
    complaints: list[_Complaint] = field(default_factory=list)
    unreadable: set[Place] = field(default_factory=set)  # complained of already, and None in the tree
    num_overrides: int = 0

    @classmethod
    def of(cls, path: Path, overrides: Sequence[str]) -> _Source:
        source = cls(path, _read(path))
        for override in overrides:
            source.override(override)
        return source

    def __post_init__(self) -> None:
        node = _compose(self.text, str(self.path))
        if node is None:
            raise ConfigError(f"{self.path}: the file is empty, expected a configuration")
        if not isinstance(node, yaml.MappingNode):
            line = node.start_mark.line + 1
            raise ConfigError(f"{self.path}:{line}: got {show(_shallow(node))}, expected sections such as `model:`")
        self.tree = self._construct(node, (), node, None, ())

    def override(self, text: str) -> None:
        """Puts the value of `section.key=value` into the tree."""
        self.num_overrides += 1
        origin = _Origin(self.num_overrides, 0, text)
        key, equals, written = text.partition("=")
        if not equals or not all(key.split(".")):
            self.complaints.append(_Complaint(origin, "", "expected section.key=value"))
            return
        place = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
        try:
            node = _compose(written, "")
        except ConfigError as error:
            self.complaints.append(_Complaint(origin, "", str(error)))
            return
        if not self._make_room(place, origin):
            return
        for stale in [other for other in self.origins if other[: len(place)] == place]:
            del self.origins[stale]
        value = None if node is None else self._construct(node, place, node, origin, ())
        parent = self._at(place[:-1])
        if isinstance(parent, list) and place[-1] == len(parent):
            parent.append(value)
        else:
            typing.cast("dict[str | int, Value]", parent)[place[-1]] = value
        self.origins[place] = origin

    def validated(self, root: type[AnySection]) -> AnySection:
        """The tree as this section. Raises ConfigError with all complaints."""
        try:
            section = root.model_validate(self.tree)
        except ValidationError as error:
            for place, text in explain(error.errors(include_url=False), root):
                if place not in self.unreadable:
                    self.complaints.append(_Complaint(self.origin(place), dotted(place), text))
        if self.complaints:
            raise ConfigError([str(complaint) for complaint in sorted(self.complaints, key=lambda complaint: complaint.where)])
        return section

    def fill_from_pretrained(self) -> None:
        """What is missing of `model`, and the tokenizer, as the folder `model.initialize_from` has them; complains of what
        is given and contradicts it.

        A whole section, such as a run has in its own folder, stands for itself: the weights may have gone since.
        """
        model, data = self._at(("model",)), self._at(("data",))
        folder = model.get("initialize_from") if isinstance(model, dict) else None
        if not isinstance(model, dict) or not isinstance(folder, str) or not folder:
            return
        if isinstance(data, dict) and data.get("tokenizer") is None:
            data["tokenizer"] = {"kind": "pretrained", "path": folder}
        if set(ModelConfig.model_fields) - OWN_KEYS <= set(model):
            return
        given = {key for key, value in model.items() if value is not None}
        try:
            settings = read_settings(Path(folder), given)
        except ConfigError as error:
            place = ("model", "initialize_from")
            self.complaints += [_Complaint(self.origin(place), dotted(place), text) for text in error.complaints]
            # What could not be filled in is not missing: it is the folder that is to be mended.
            self.unreadable |= {("model", key) for key in ModelConfig.model_fields if key not in given}
            return
        origin = _Origin(0, 0, str(Path(folder) / CONFIG_FILE))
        for key, value in settings.items():
            place = ("model", key)
            if key not in given:
                model[key] = value
                self.origins[place] = origin
            elif model[key] != value and key not in FREE_KEYS:
                text = f"got {show(model[key])}, expected {show(value)}, as {origin.name} has it; leave the key out"
                self._refuse(place, self.origin(place), text)

    def _make_room(self, place: Place, origin: _Origin) -> bool:
        """Sees to it that the container of an overridden value exists; complains where something else is there."""
        for depth in range(len(place)):
            parent, key = self._at(place[:depth]), place[depth]
            name = dotted(place[:depth])
            if isinstance(parent, list) and isinstance(key, int) and key <= len(parent):
                missing = key == len(parent)
            elif isinstance(parent, dict) and isinstance(key, str):
                missing = parent.get(key) is None
            else:
                got = f"a list of {len(parent)}" if isinstance(parent, list) else show(parent)
                self.complaints.append(_Complaint(origin, "", f"`{name}` is {got}: it has no `{key}`"))
                return False
            if missing and depth + 1 < len(place):
                room: Value = [] if isinstance(place[depth + 1], int) else {}
                if isinstance(parent, list):
                    parent.append(room)
                else:
                    parent[str(key)] = room
                self.origins[place[: depth + 1]] = origin
        return True

    def _construct(
        self, node: yaml.Node, place: Place, key: yaml.Node, origin: _Origin | None, above: tuple[yaml.Node, ...]
    ) -> Value:
        """The value of a node, which `key` introduces in the file; or in the override `origin`."""
        here = origin or _Origin(0, key.start_mark.line + 1, str(self.path))
        self.origins[place] = here
        if node in above:
            self._refuse(place, here, "got an alias to a section around it, expected a value")
            return None
        above = (*above, node)
        if isinstance(node, yaml.SequenceNode):
            return [self._construct(item, (*place, index), item, origin, above) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place, origin, above)
        try:
            return _scalar(node)
        except ValueError as error:
            self._refuse(place, here, str(error))
            return None

    def _mapping(
        self, node: yaml.MappingNode, place: Place, origin: _Origin | None, above: tuple[yaml.Node, ...]
    ) -> dict[str, Value]:
        mapping: dict[str, Value] = {}
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            if name in mapping:
                here = origin or _Origin(0, key.start_mark.line + 1, str(self.path))
                first = self.origins[*place, name].line
                text = "the key is given twice" + (f"; first in line {first}" if first else "")
                self.complaints.append(_Complaint(here, dotted((*place, name)), text))
            else:
                mapping[name] = self._construct(value, (*place, name), key, origin, above)
        return mapping

    def _refuse(self, place: Place, here: _Origin, text: str) -> None:
        self.complaints.append(_Complaint(here, dotted(place), text))
        self.unreadable.add(place)

    def _at(self, place: Place) -> Value:
        value = self.tree
        for key in place:
            if isinstance(value, dict):
                value = value.get(str(key))
            elif isinstance(value, list) and isinstance(key, int) and key < len(value):
                value = value[key]
            else:
                return None
        return value

    def origin(self, place: Place) -> _Origin:
        """Where a value was written, or, if it was not, the innermost section around it."""
        while place not in self.origins:
            place = place[:-1]
        return self.origins[place]


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, _siblings(path), n=1)
        hint = f"; did you mean {path.with_name(near[0])}?" if near else ""
        raise ConfigError(f"{path}: no such file{hint}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: got a directory, expected a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: got the byte 0x{content[error.start]:02x}, expected text in UTF-8") from None


def _siblings(path: Path) -> list[str]:
    return [other.name for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []


def _compose(text: str, name: str) -> yaml.Node | None:
    """The nodes of a YAML text; its syntax errors as one line."""
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        line, problem = text.count("\n", 0, error.position) + 1, f"the character {error.character!r} is not allowed"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, problem = (mark.line + 1 if mark else 1), (error.problem or error.context or "")
    except RecursionError:
        line, problem = 1, "sections are nested too deeply"
    raise ConfigError(f"{name}:{line}: not valid YAML: {problem}" if name else f"not valid YAML: {problem}")


def _scalar(node: yaml.Node) -> Value:
    text = str(node.value)
    match node.tag.removeprefix("tag:yaml.org,2002:"):
        case "null":
            return None
        case "bool":
            return text == "true"
        case "int":
            # Python refuses integers of more than 4300 digits, with a ValueError of its own.
            return int(text)
        case "float":
            number = float(text.replace(".inf", "inf").replace(".nan", "nan"))
            # `1e3` counts steps as well as 1000 does. Beyond 2**53 not every integer has a float.
            return int(number) if "." not in text and number.is_integer() and abs(number) < 2**53 else number
        case "str":
            return text
        case tag:
            raise ValueError(f"got the YAML tag {tag}, expected a plain value")


def _shallow(node: yaml.Node) -> Value:
    return [] if isinstance(node, yaml.SequenceNode) else str(node.value)
