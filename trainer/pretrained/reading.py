"""A run's weights as a folder in Hugging Face's format has them: what fits is read one tensor at a time, and what does not is
named, all at once. No TensorFlow."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from trainer.config import Config
from trainer.errors import CheckpointError, ConfigError
from trainer.models.parameters import Parameter
from trainer.pretrained import names
from trainer.pretrained.names import Origin
from trainer.pretrained.settings import CONFIG_FILE, FREE_KEYS, OWN_KEYS, Format, read_settings
from trainer.pretrained.tensor_files import TensorFiles
from trainer.pretrained.written_settings import format_of

logger = logging.getLogger(__name__)


class PretrainedWeights(Mapping[str, np.ndarray]):
    """The weights of a run that begin as a folder has them. Each is read, as float32, when it is asked for, and not kept."""

    def __init__(self, files: TensorFiles, sources: Mapping[str, tuple[Origin, list[str]]], random: list[str]) -> None:
        self._files, self._sources = files, sources
        self.random = random  # of the task's head: those that the folder does not have

    def __getitem__(self, name: str) -> np.ndarray:
        origin, tensors = self._sources[name]
        return origin.join([self._files.floats(tensor) for tensor in tensors])

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def open_pretrained(config: Config, parameters: Mapping[str, Parameter]) -> PretrainedWeights:
    """What of a run's `parameters` begins as `model.initialize_from` has it.

    Raises ConfigError where the folder's config.json is of another model, CheckpointError, which names every tensor that is
    missing, unexpected or of another shape, where its weights are, or are damaged.
    """
    assert config.model.initialize_from is not None
    folder = Path(config.model.initialize_from)
    _compare_settings(config, folder)
    known, misfits = format_of(config.model)
    if known is None:
        raise ConfigError(f"model: got {', '.join(misfits)} that {folder} cannot have; leave them to its {CONFIG_FILE}")
    files = TensorFiles(folder)
    found = _Search(config, known, files)
    sources, random = found.sources(parameters)
    if found.problems:
        shown = "; ".join(found.problems[:16]) + (f"; and {len(found.problems) - 16} more" if found.problems[16:] else "")
        raise CheckpointError(f"{folder}: its weights are not those of its {CONFIG_FILE}: {shown}")
    heads = [name for name in sources if names.is_head(name)]
    logger.info("weights begin as %s has them%s", folder, f", with its head {', '.join(heads)}" if heads else "")
    if random:
        logger.info("of the task's head it has no such weights, and they begin random: %s", ", ".join(random))
    return PretrainedWeights(files, sources, random)


class _Search:
    """Finds each weight's tensors, and collects what is wrong."""

    def __init__(self, config: Config, known: Format, files: TensorFiles) -> None:
        self._config, self._known, self._files = config, known, files
        prefix = names.PREFIXES[known]
        self._prefix = prefix if any(name.startswith(prefix) for name in files.names) else ""
        self.problems: list[str] = []

    def sources(self, parameters: Mapping[str, Parameter]) -> tuple[dict[str, tuple[Origin, list[str]]], list[str]]:
        """By our names where they come from; and those of the head that are not there."""
        known, model = self._known, self._config.model
        origins = names.origins(known, model, parameters)
        sources: dict[str, tuple[Origin, list[str]]] = {}
        random = [name for name in parameters if names.is_head(name) and name not in origins]
        for name, origin in origins.items():
            tensors = [self._find(origin, each) for each in origin.names]
            if name == "output" and known == "t5" and tensors == [None]:
                # Version 1.1 scores by a table of its own, and where a file has none, by the embeddings, but unscaled.
                tensors = [self._find(origins["token_embedding"], each) for each in origins["token_embedding"].names]
            there = [tensor for tensor in tensors if tensor is not None]
            if len(there) < len(tensors):
                missing = [each for each, tensor in zip(origin.names, tensors, strict=True) if tensor is None]
                if names.is_head(name):
                    random.append(name)
                else:
                    self.problems += [f"{each} is missing ({name})" for each in missing]
            elif self._fits(name, origin, there, parameters[name].shape):
                sources[name] = (origin, there)
            else:
                random.append(name)
        self._unexpected({tensor for _, tensors in sources.values() for tensor in tensors}, origins)
        if model.tied_output and "token_embedding" in sources:
            self._compare_tied(*sources["token_embedding"])
        return sources, random

    def _find(self, origin: Origin, name: str) -> str | None:
        for each in (name, *names.other_names(name)):
            full = names.full_name(origin, each, self._prefix)
            if full in self._files.names:
                return full
        return None

    def _fits(self, name: str, origin: Origin, tensors: list[str], shape: tuple[int, ...]) -> bool:
        """Whether tensors make up a weight; where they do not, and it is not of a head, that is a problem."""
        shapes = [self._files.shape(tensor) for tensor in tensors]
        joined = origin.shape_of_join(shapes)
        floats = all(self._files.has_floats(tensor) for tensor in tensors)
        if joined == shape and floats:
            return True
        if names.is_head(name) and floats:
            return False
        if not floats:
            types = ", ".join(dict.fromkeys(self._files.dtype(tensor) for tensor in tensors))
            self.problems.append(f"{', '.join(tensors)} ({name}) is of type {types} instead of F32, F16 or BF16")
        else:
            got = ", ".join(f"{tensor} {each}" for tensor, each in zip(tensors, shapes, strict=True))
            more = name == "token_embedding" and shape[0] > shapes[0][0]
            hint = ": the tokenizer has more tokens than the weights, take the folder's own" if more else ""
            self.problems.append(f"{got} does not make up {name} {shape}{hint}")
        return False

    def _unexpected(self, used: set[str], origins: Mapping[str, Origin]) -> None:
        wanted = {each for origin in origins.values() for each in origin.names}
        for name in self._files.names:
            bare = name.removeprefix(self._prefix)
            if name not in used and bare not in wanted and not names.is_left_out(self._known, bare):
                self.problems.append(f"{name} is unexpected")

    def _compare_tied(self, origin: Origin, tensors: list[str]) -> None:
        """A copy of the embeddings must be one: else a model with `tied_output` would compute something else."""
        copy = names.TIED_OUTPUTS[self._known]
        for name in (copy, f"{self._prefix}{copy}"):
            if name not in self._files.names or name in tensors or not self._files.has_floats(name):
                continue
            if not np.array_equal(self._files.floats(name), origin.join([self._files.floats(each) for each in tensors])):
                self.problems.append(f"{name} is not {tensors[0]}, although {CONFIG_FILE} says that they are tied")
            return


def _compare_settings(config: Config, folder: Path) -> None:
    """A run's settings were the folder's when the run was configured; the folder may have been replaced."""
    theirs = read_settings(folder, given=FREE_KEYS)
    differing = list(_differences(config, theirs))
    if differing:
        raise ConfigError(f"{folder / CONFIG_FILE}: is of another model than the run: {'; '.join(differing)}")


def _differences(config: Config, theirs: Mapping[str, object]) -> Iterator[str]:
    for key, value in theirs.items():
        ours = getattr(config.model, key)
        if key not in FREE_KEYS | OWN_KEYS and ours != value:
            yield f"{key} is {value}, and model.{key} {ours}"
