"""Samples of the task `classification`: one or two texts, and which class or classes they have.

B: samples of a batch, T: sequence length, K: texts that a row may hold, C: classes.
"""

from __future__ import annotations

import numpy as np

from trainer.data.assembly import Tokens, classification_sequence
from trainer.data.samples.layout import Contents, Layout, Rooms, joined, lengths_of
from trainer.data.samples.records import Records
from trainer.data.windows import NOT_COUNTED, Arrays, Feature, Features, Int32Array, Int64Array


class ClassificationSamples:
    """A record a row, or several side by side. A text's vector is read at its place: at [CLS], or a decoder's last token."""

    def __init__(self, records: Records, num_labels: int, num_places: int) -> None:
        """`num_places` is K, the same for all data sets."""
        config, augmentation = records.config, records.augmentation
        self._config, self._table, self._packed = config, records.table, records.packed
        self._specials = records.tokenizer.specials
        self._num_labels, self._num_places, self._augmentation = num_labels, num_places, augmentation
        self._has_pairs = config.data.fields.text_b is not None
        self._has_types = self._has_pairs and config.model.family == "bert"
        self._mixes = augmentation is not None and augmentation.mixup > 0.0
        self._planned_lengths = records.planned_lengths()
        self.num_samples = records.num_samples

    @property
    def features(self) -> Features:
        row = Feature((self._config.data.sequence_length,))
        features = {"inputs": row, "segments": row}
        if self._has_types:
            features["types"] = row
        if self._packed is not None:
            features["positions"] = row
        features["places"] = Feature((self._num_places,))
        is_set = self._config.data.multi_label
        features["labels"] = Feature((self._num_places, self._num_labels) if is_set else (self._num_places,))
        if not self._mixes:
            return features
        return features | {f"{name}_b": each for name, each in features.items()} | {"mix": Feature((1,), np.float32)}

    def gather(self, indices: Int64Array, draws: Int64Array) -> Arrays:
        if not self._mixes:
            return self._gather(indices, self._generators(draws))
        assert self._augmentation is not None
        generators = self._generators(draws)
        partners, shares = self._augmentation.mix(draws, self.num_samples)
        first = self._gather(indices, generators)
        second = self._gather(np.where(indices < 0, indices, partners), generators)
        renamed = {f"{name}_b": array for name, array in second.items()}
        return first | renamed | {"mix": shares.astype(np.float32)[:, None]}

    def classes(self) -> Int64Array | None:
        """The class of each sample [num_samples], of several the first, -1 where it has none; None where a row holds several
        texts."""
        return self._table.firsts("labels") if self._packed is None else None

    def groups(self) -> Int64Array | None:
        """The group of each sample [num_samples]; None where records have none."""
        return self._table.groups()

    def _generators(self, draws: Int64Array) -> list[np.random.Philox] | None:
        if self._augmentation is None:
            return None
        return [self._augmentation.generator(draw) for draw in draws.tolist()]

    def _gather(self, indices: Int64Array, generators: list[np.random.Philox] | None) -> Arrays:
        contents = Contents(indices, self._packed)
        length = self._config.data.sequence_length
        sequences, types = self._sequences(contents, generators)
        lengths = lengths_of(sequences)
        layout = Layout(contents, lengths, length)
        arrays: Arrays = {
            "inputs": layout.fill(joined(sequences), self._specials.padding),
            "segments": layout.segments(),
        }
        if self._has_types:
            arrays["types"] = layout.fill(joined(types), 0)
        if self._packed is not None:
            arrays["positions"] = layout.positions()
        where = contents.rows, contents.numbers
        places = np.zeros((len(indices), self._num_places), np.int32)
        places[where] = layout.begins if self._config.model.family == "bert" else np.maximum(0, layout.begins + lengths - 1)
        arrays["places"] = places
        arrays["labels"] = self._labels(contents)
        return arrays

    def _sequences(
        self, contents: Contents, generators: list[np.random.Philox] | None
    ) -> tuple[list[Int32Array], list[Int32Array]]:
        table, sequences, types = self._table, [], []
        rooms = Rooms(self._config.data.sequence_length, contents, self._planned_lengths)
        for number, (record, row) in enumerate(zip(contents.pieces.tolist(), contents.rows.tolist(), strict=True)):
            text: Tokens = table.tokens("text", record)
            text_b: Tokens | None = table.tokens("text_b", record) if self._has_pairs else None
            if self._augmentation is not None and generators is not None:
                back = table.tokens("back_translation", record) if table.has("back_translation") else None
                text = self._augmentation.change(text, generators[row], back)
                text_b = None if text_b is None else self._augmentation.change(text_b, generators[row])
            tokens, types_of = classification_sequence(self._config, self._specials, text, text_b, rooms.of(number))
            rooms.take(number, len(tokens))
            sequences.append(tokens)
            types.append(types_of)
        return sequences, types

    def _labels(self, contents: Contents) -> Int32Array:
        labels = [self._table.integers("labels", record) for record in contents.pieces.tolist()]
        shape = (contents.num_rows, self._num_places)
        if not self._config.data.multi_label:
            result = np.full(shape, NOT_COUNTED, np.int32)
            result[contents.rows, contents.numbers] = [each[0] for each in labels]
            return result
        result = np.full((*shape, self._num_labels), NOT_COUNTED, np.int32)
        for row, number, classes in zip(contents.rows.tolist(), contents.numbers.tolist(), labels, strict=True):
            result[row, number] = 0
            result[row, number, classes] = 1
        return result
