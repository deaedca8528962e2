"""How replicas work together: one small protocol, a class for each backend, and one explicit choice between them.

Nothing outside this package imports `horovod.tensorflow` or names `tf.distribute`.
"""

from trainer.distribution.choice import connect
from trainer.distribution.devices import make_deterministic
from trainer.distribution.protocol import Distribution, any_process, chiefs, chiefs_bytes, gather, on_chief

__all__ = ["Distribution", "any_process", "chiefs", "chiefs_bytes", "connect", "gather", "make_deterministic", "on_chief"]
