"""How far a call of TensorFlow has come: a variable that the graph assigns, and that another thread may read meanwhile."""

from __future__ import annotations

import tensorflow as tf

from trainer.monitor.roll_call import STAGES

WAITING_FOR_BATCH, COMPUTING, REDUCING, UPDATING = range(len(STAGES))


class GraphPosition:
    """Made outside of a distribution's scope: there is one in a process, however many replicas it has."""

    def __init__(self) -> None:
        with tf.device("CPU:0"):
            self._variable = tf.Variable(0, dtype=tf.int64, trainable=False, name="position")

    def mark(self, step: tf.Tensor, stage: int) -> tf.Operation:
        """In a graph: from here on update number `step` (from 0) is at `stage`."""
        with tf.device("CPU:0"):
            return self._variable.assign(step * len(STAGES) + stage, read_value=False)

    def read(self) -> tuple[int, str]:
        """The number of the update that is being made, from 1, and its stage."""
        step, stage = divmod(int(self._variable.numpy()), len(STAGES))
        return step + 1, STAGES[stage]
