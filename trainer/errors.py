"""The errors that end a run, each with the exit code that launchers and Kubernetes manifests act on.

    DrumlineError               1   a fault of ours
    ├── UserError               2   the user's mistake: one line on stderr, no traceback
    │   ├── ConfigError             the YAML file or an override
    │   ├── DataError               an input file, a tokenizer, a token store
    │   ├── CheckpointError         a run directory or a checkpoint in it
    │   ├── SecurityError           a key, or a file that is encrypted
    │   └── BackendError       this machine lacks what the config asks for
    ├── Diverged                3   the loss leads nowhere, and going back did not help
    ├── HangDetected            70  a rank made no progress, or was lost
    └── Stopped                 75  stopped on request: start it again and it goes on

A message says what, where, what was got, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class DrumlineError(Exception):
    """The root of all errors that Drumline raises on purpose."""

    exit_code: ClassVar[int] = 1


class UserError(DrumlineError):
    """Something that the user can put right; told in one line."""

    exit_code: ClassVar[int] = 2


class ConfigError(UserError):
    """The configuration is wrong. `complaints` has one line for each thing that is."""

    def __init__(self, complaints: str | Sequence[str]) -> None:
        self.complaints = (complaints,) if isinstance(complaints, str) else tuple(complaints)
        super().__init__("\n".join(self.complaints))


class DataError(UserError):
    """An input file, a tokenizer or a token store is missing, damaged, or not the one that is needed."""


class CheckpointError(UserError):
    """A run directory or a checkpoint is missing, damaged, or belongs to another configuration."""


class SecurityError(UserError):
    """A key is missing or not the right one, or an encrypted file is not what was written."""


class BackendError(UserError):
    """This machine lacks something that the configuration asks for: a package, a device, a launcher's variables."""


class Diverged(DrumlineError):
    """The loss or a gradient is no longer finite, and going on would only waste time."""

    exit_code: ClassVar[int] = 3


class HangDetected(DrumlineError):
    """A rank made no progress within the limit, or another rank was lost."""

    exit_code: ClassVar[int] = 70


class Stopped(DrumlineError):
    """The run was asked to stop, and saved what it had."""

    exit_code: ClassVar[int] = 75
