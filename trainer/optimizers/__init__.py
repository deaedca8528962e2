"""From gradients to weights: schedules of the learning rate, the optimizers, a file each, and the average of the weights.

`slots.py` says without TensorFlow what each optimizer keeps of a weight; `choice.py` has the one choice between them.
"""
