"""The section `security`: whether what is written is encrypted, and where the key comes from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from trainer.config.section import Section, complaint


class SecurityConfig(Section):
    """With `encrypt` the store, checkpoints and exports are encrypted (`trainer/encryption/`), and what is not is refused. The
    key is read from a file that `drumline keys create` wrote, or is in an environment variable of that name."""

    encrypt: bool = False
    key_file: Annotated[str, Field(min_length=1)] | None = None
    key_environment: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None

    @model_validator(mode="after")
    def _one_key(self) -> SecurityConfig:
        if self.key_file is not None and self.key_environment is not None:
            raise complaint("key_environment", self.key_environment, "nothing beside `key_file`: there is one key")
        if self.encrypt and self.key_file is None and self.key_environment is None:
            raise complaint("encrypt", "true", "`key_file` or `key_environment` beside it: the key to encrypt with")
        return self
