"""A file of events, as TensorBoard reads them."""

from __future__ import annotations

import itertools
import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter


class EventFile:
    """A file that TensorBoard reads. Its package has one, too, which writes through TensorFlow and from a thread: there a full
    disk is now one error, now another, now none until later. Here it is an OSError of the call that met it.

    Named as TensorFlow does (tensorflow/core/util/events_writer.cc): TensorBoard reads the files of a folder in that order.
    """

    _numbers = itertools.count()

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(self._numbers)}"
        self._file = (directory / name).open("wb")
        self._records = RecordWriter(self._file)
        self.add(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        self._file.close()
