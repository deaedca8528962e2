"""`python -m launch local ...`: the same verbs as `drumline launch local ...`.

The command line is assembled in `trainer.cli`, which this package must not import; so this process becomes that one.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    os.execv(sys.executable, [sys.executable, "-m", "trainer", "launch", *sys.argv[1:]])
