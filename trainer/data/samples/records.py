"""What samples of records are made of: a data set's records, and how they lie in rows and change. No TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config import Config
from trainer.data.assembly import piece_lengths
from trainer.data.augmentation import TextAugmentation
from trainer.data.records import PackedRows, RecordTable
from trainer.data.tokenizer import Tokenizer
from trainer.data.windows import Int64Array


@dataclass(frozen=True)
class Records:
    """The records of one data set, `packed` into rows or (None) each in a row of its own; without `augmentation` their texts
    come as they are."""

    config: Config
    table: RecordTable
    packed: PackedRows | None
    tokenizer: Tokenizer
    augmentation: TextAugmentation | None

    @property
    def num_samples(self) -> int:
        return self.table.num_records if self.packed is None else self.packed.num_rows

    def planned_lengths(self) -> Int64Array | None:
        """What texts that change were packed with, by number of the record (those of a source, where there is a target);
        None where none change or are packed. Reads the lengths of all records."""
        if self.augmentation is None or self.packed is None:
            return None
        return piece_lengths(self.config, self.tokenizer, self.table)[:, 0]
