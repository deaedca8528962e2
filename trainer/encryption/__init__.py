"""Encryption of what is written: stores, checkpoints, exports. AES-256-GCM of the package `cryptography`; no TensorFlow.

`keys` has the master key, `encrypted_file` the format, `files` how the rest of the program opens what may be encrypted, and
`folders` what the verb `keys` does with whole folders.
"""
