"""Starts the training program somewhere: on this machine, or on others through Horovod. Never imports TensorFlow."""
