"""Sets Drumline up on a machine: system packages, the pinned environment, and a Horovod that works with its TensorFlow.

Not part of the installed distribution; the Makefile runs it from a clone.
"""
