"""Samples of the tasks `translation` and `summarization`: a source, and what is to be written.

B: samples of a batch, T: sequence length, U: target length.
"""

from __future__ import annotations

import numpy as np

from trainer.data.assembly import Tokens, decoder_lengths, first_target_token, read_prompt
from trainer.data.samples.layout import Contents, Layout, Rooms, joined, lengths_of
from trainer.data.samples.records import Records
from trainer.data.windows import NOT_COUNTED, Arrays, Feature, Features, Int32Array, Int64Array


class _Pairs:
    """The records of both kinds of models: source and target, the source changed where there is an augmentation."""

    def __init__(self, records: Records) -> None:
        self.config, self.table, self.packed = records.config, records.table, records.packed
        self.specials = records.tokenizer.specials
        self.prompt = read_prompt(records.config, records.tokenizer)
        self.end = np.array([self.specials.end_of_text], np.int32)
        self.num_samples = records.num_samples
        self._augmentation = records.augmentation
        self._planned_lengths = records.planned_lengths()

    def rooms(self, contents: Contents) -> Rooms:
        return Rooms(self.config.data.sequence_length, contents, self._planned_lengths)

    def sources(self, contents: Contents, draws: Int64Array) -> list[Tokens]:
        records = contents.pieces.tolist()
        if self._augmentation is None:
            return [self.table.tokens("source", record) for record in records]
        generators = [self._augmentation.generator(draw) for draw in draws.tolist()]
        has_back = self.table.has("back_translation")
        return [
            self._augmentation.change(
                self.table.tokens("source", record),
                generators[row],
                self.table.tokens("back_translation", record) if has_back else None,
            )
            for record, row in zip(records, contents.rows.tolist(), strict=True)
        ]


class EncoderDecoderSamples:
    """The source in one row and the target in another; the decoder reads the target one token late, after the token that
    begins it: padding for T5, otherwise the end of text."""

    def __init__(self, records: Records) -> None:
        """Raises ConfigError where `data.prompt` leaves no room."""
        self._pairs = _Pairs(records)
        self._first = first_target_token(records.config, self._pairs.specials)
        self.num_samples = self._pairs.num_samples

    def groups(self) -> Int64Array | None:
        """The group of each sample [num_samples]; None where records have none."""
        return self._pairs.table.groups()

    @property
    def features(self) -> Features:
        config = self._pairs.config
        source, target = Feature((config.data.sequence_length,)), Feature((config.target_length,))
        features = dict.fromkeys(("source", "source_segments"), source)
        features |= dict.fromkeys(("inputs", "targets", "target_segments"), target)
        if self._pairs.packed is not None:
            features |= {"source_positions": source, "target_positions": target}
        return features

    def gather(self, indices: Int64Array, draws: Int64Array) -> Arrays:
        pairs, config = self._pairs, self._pairs.config
        contents = Contents(indices, pairs.packed)
        rooms = pairs.rooms(contents)
        sources: list[Tokens] = []
        targets: list[Tokens] = []
        for number, source in enumerate(pairs.sources(contents, draws)):
            tokens = pairs.prompt.around(source, rooms.of(number))
            rooms.take(number, len(tokens))
            sources.append(tokens)
        for record in contents.pieces.tolist():
            targets.append(pairs.table.tokens("target", record)[: config.target_length - 1])
            targets.append(pairs.end)
        target_lengths = lengths_of(targets[::2]) + 1
        source_layout = Layout(contents, lengths_of(sources), config.data.sequence_length)
        target_layout = Layout(contents, target_lengths, config.target_length)
        all_targets = joined(targets)
        inputs = np.roll(all_targets, 1)
        inputs[np.cumsum(target_lengths) - target_lengths] = self._first
        arrays: Arrays = {
            "source": source_layout.fill(joined(sources), pairs.specials.padding),
            "source_segments": source_layout.segments(),
            "inputs": target_layout.fill(inputs, pairs.specials.padding),
            "targets": target_layout.fill(all_targets, NOT_COUNTED),
            "target_segments": target_layout.segments(),
        }
        if pairs.packed is None:
            return arrays
        return arrays | {"source_positions": source_layout.positions(), "target_positions": target_layout.positions()}


class DecoderSamples:
    """Prompt, target and end of text in one sequence, of which each token is an input and the next its target; only what is
    to be written counts."""

    def __init__(self, records: Records) -> None:
        """Raises ConfigError where `data.prompt` leaves no room."""
        self._pairs = _Pairs(records)
        _, self._target_lengths = decoder_lengths(records.config, self._pairs.prompt, records.table)
        self.num_samples = self._pairs.num_samples

    def groups(self) -> Int64Array | None:
        """The group of each sample [num_samples]; None where records have none."""
        return self._pairs.table.groups()

    @property
    def features(self) -> Features:
        names = ["inputs", "targets", "segments"] + (["positions"] if self._pairs.packed is not None else [])
        return dict.fromkeys(names, Feature((self._pairs.config.data.sequence_length,)))

    def gather(self, indices: Int64Array, draws: Int64Array) -> Arrays:
        pairs = self._pairs
        contents = Contents(indices, pairs.packed)
        rooms = pairs.rooms(contents)
        inputs: list[Int32Array] = []
        targets: list[Int32Array] = []
        for number, source in enumerate(pairs.sources(contents, draws)):
            room = rooms.of(number)
            record = int(contents.pieces[number])
            target = pairs.table.tokens("target", record)[: self._target_lengths[record]]
            prompt = pairs.prompt.around(source, room - len(target))
            tokens = np.concatenate([prompt, target, pairs.end], dtype=np.int32)
            expected = tokens[1:].copy()
            expected[: len(prompt) - 1] = NOT_COUNTED
            inputs.append(tokens[:-1])
            targets.append(expected)
            rooms.take(number, len(expected))
        layout = Layout(contents, lengths_of(inputs), pairs.config.data.sequence_length)
        arrays: Arrays = {
            "inputs": layout.fill(joined(inputs), pairs.specials.padding),
            "targets": layout.fill(joined(targets), NOT_COUNTED),
            "segments": layout.segments(),
        }
        return arrays if pairs.packed is None else arrays | {"positions": layout.positions()}
