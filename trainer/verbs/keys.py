"""`drumline keys`: make a key, give encrypted files another one, decrypt them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.arguments import Parser, Verbs
from trainer.errors import SecurityError

if TYPE_CHECKING:
    from trainer.encryption.keys import MasterKey


def add_keys(verbs: Verbs, common: Parser) -> None:
    keys = verbs.add_parser("keys", help="keys for `security.encrypt`: create, rotate; and decrypt", parents=[common])
    actions = keys.add_subparsers(metavar="ACTION", required=True)

    create = actions.add_parser("create", help="write a new key to a new file", parents=[common])
    create.add_argument("file", metavar="FILE", type=Path, help="that its owner alone may read")
    create.set_defaults(handler=_create, parser=create)

    rotate = actions.add_parser("rotate", help="give encrypted files another key, in place", parents=[common])
    _add_key(rotate, "", "that opens them now")
    _add_key(rotate, "new-", "that opens them from now on")
    rotate.add_argument("folders", metavar="FOLDER", nargs="+", help="a store, run or export, or a URL of checkpoints")
    rotate.set_defaults(handler=_rotate, parser=rotate)

    decrypt = actions.add_parser("decrypt", help="copy a folder, decrypted", parents=[common])
    _add_key(decrypt, "", "that opens them")
    decrypt.add_argument("folder", metavar="FOLDER", help="a store, run or export, or a URL of checkpoints")
    decrypt.add_argument("--output", required=True, type=Path, metavar="DIR", help="the folder to write; a new or empty one")
    decrypt.set_defaults(handler=_decrypt, parser=decrypt)


def _add_key(parser: argparse.ArgumentParser, prefix: str, what: str) -> None:
    """A key is a file or in a variable: no command line has it, since all users of a machine can see those."""
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument(f"--{prefix}key-file", metavar="FILE", help=f"the key {what}")
    one.add_argument(f"--{prefix}key-environment", metavar="NAME", help="the environment variable that has it")


def _create(arguments: argparse.Namespace) -> int:
    from trainer.encryption.keys import create_key

    key = create_key(arguments.file)
    print(f"{arguments.file}: key {key.identifier.hex()}; keep a copy: what is encrypted with it cannot be read without")
    return 0


def _rotate(arguments: argparse.Namespace) -> int:
    from trainer.encryption.folders import rotate
    from trainer.location import open_location

    key = _key(arguments.key_file, arguments.key_environment, "--key")
    new_key = _key(arguments.new_key_file, arguments.new_key_environment, "--new-key")
    if key.identifier == new_key.identifier:
        raise SecurityError(f"--new-key: got the key {key.identifier.hex()} twice, expected another one")
    for folder in arguments.folders:
        num_rotated, num_before = rotate(open_location(folder), key, new_key)
        before = f", {num_before} had it already" if num_before else ""
        print(f"{folder}: {num_rotated} files have the key {new_key.identifier.hex()} now{before}")
    return 0


def _decrypt(arguments: argparse.Namespace) -> int:
    from trainer.encryption.folders import decrypt
    from trainer.location import open_location

    key = _key(arguments.key_file, arguments.key_environment, "--key")
    num_decrypted = decrypt(open_location(arguments.folder), arguments.output, key)
    print(f"{arguments.output}: {num_decrypted} files, decrypted")
    return 0


def _key(file: str | None, environment: str | None, option: str) -> MasterKey:
    """Raises SecurityError where it cannot be had."""
    from trainer.encryption.keys import key_from

    key = key_from(file, environment, f"{option}-file", f"{option}-environment")
    assert key is not None, "the parser demands one"
    return key
