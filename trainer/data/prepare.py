"""Turns the text that a configuration names into a token store.

Parts are made by all cores, or by several machines; whatever is whole already is left as it is, so an interrupted run
goes on where it stopped. All input is read once before anything is written: a fault in the last file is known within
minutes, and leaves no trace. The manifest comes last and makes the store whole.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.config import Config, DataConfig
from trainer.data.manifest import (
    MANIFEST_NAME,
    STORE_VERSION,
    TOKENIZER_NAME,
    Dataset,
    Split,
    StoreManifest,
    read_manifest,
    store_settings,
    write_manifest,
)
from trainer.data.parts import PartPlan, PartRecord, num_documents_of, record_path, token_dtype, whole_part, write_part
from trainer.data.readers import read_pieces
from trainer.data.sources import plan_units
from trainer.data.tokenizer import Tokenizer
from trainer.data.workers import num_cores, run_all, worker_pool
from trainer.errors import DataError
from trainer.files import json_bytes, write_atomically

logger = logging.getLogger(__name__)

# BPE and WordPiece learn from at most so many characters, taken from the beginnings of all units alike: more text
# hardly changes which words are frequent. A character tokenizer sees all of the text.
TRAINING_CHARACTERS = 256 * 2**20

# Says what the tokenizer in the store was trained on.
TOKENIZER_SOURCE_NAME = "tokenizer-source.json"

PROGRESS_SECONDS = 5.0

# Encoding so much takes about as long as starting a process.
SMALL_BYTES = 2 * 2**20


@dataclass(frozen=True)
class StorePlan:
    """The parts of the store in order: by split, source, and unit."""

    train: tuple[tuple[PartPlan, ...], ...]
    validation: tuple[tuple[PartPlan, ...], ...]

    @property
    def train_parts(self) -> list[PartPlan]:
        return [part for dataset in self.train for part in dataset]

    @property
    def parts(self) -> list[PartPlan]:
        return self.train_parts + [part for dataset in self.validation for part in dataset]


def prepare(
    config: Config, *, shard: tuple[int, int] | None = None, merge: bool = False, num_processes: int | None = None
) -> None:
    """Makes the token store of `config`, or what is missing of it.

    `shard` (k, n) makes only every n-th part, from the k-th on (from 1), and no manifest: n machines that share the
    store's folder can do one each. `merge` then checks that all parts are there and writes the manifest; together with
    `shard` it does so where this shard was the last that was missing.
    Raises DataError for input that cannot be used; nothing is written then.
    """
    assert shard is None or 1 <= shard[0] <= shard[1]
    data, store = config.data, Path(config.data.store)
    plan = plan_store(data)
    if shard is None and merge:
        _merge(store, data, plan)
        return
    chosen = plan.parts if shard is None else plan.parts[shard[0] - 1 :: shard[1]]
    what = f"{store}" if shard is None else f"{store}: shard {shard[0]}/{shard[1]}"
    tokenizer = _current_tokenizer(store, data, plan)
    records = _whole_parts(store, chosen, tokenizer)
    if tokenizer and len(records) == len(chosen) and (shard or _is_finished(store, data, plan, records, tokenizer)):
        logger.info("%s: is whole already, %d parts: nothing to do", what, len(chosen))
        if merge:
            _merge_if_last(store, data, plan)
        return
    with worker_pool(_num_workers(chosen, num_processes)) as pool:
        _check_inputs(data, plan, chosen, records, pool)
        try:
            tokenizer, records = _make_parts(store, data, plan, chosen, tokenizer, pool)
        except OSError as error:
            raise DataError(f"{store}: cannot be written ({error}); free the place or set data.store to another") from error
    if shard is None:
        _remove_unfinished(store)
        _finish(store, data, plan, records, tokenizer)
    elif merge:
        _merge_if_last(store, data, plan)
    else:
        logger.info("%s: is whole; when all shards are: drumline prepare CONFIG --merge", what)


def plan_store(data: DataConfig) -> StorePlan:
    """Divides all sources; raises DataError for files that are missing or empty."""

    def plan_split(split: Split) -> Iterator[tuple[PartPlan, ...]]:
        for number, source in enumerate(data.train if split == "train" else data.validation):
            units = plan_units(source, data.format, f"data.{split}[{number}]")
            if not units:
                raise _empty(split, number, source.path)
            yield tuple(
                PartPlan(f"{split}/{number}/part-{index:05d}.arrow", unit, data.format, data.fields.text)
                for index, unit in enumerate(units)
            )

    return StorePlan(tuple(plan_split("train")), tuple(plan_split("validation")))


def _empty(split: Split, number: int, path: str) -> DataError:
    return DataError(f"data.{split}[{number}].path: {path} holds no text; check the path, data.format, and data.fields")


def _whole_parts(store: Path, parts: Sequence[PartPlan], tokenizer: Tokenizer | None) -> dict[str, PartRecord]:
    """The records of those parts that need not be made again, by file."""
    if tokenizer is None:
        return {}
    found = ((part.file, whole_part(store, part, tokenizer.fingerprint)) for part in parts)
    return {file: record for file, record in found if record is not None}


def _check_inputs(
    data: DataConfig,
    plan: StorePlan,
    chosen: Sequence[PartPlan],
    records: dict[str, PartRecord],
    pool: ProcessPoolExecutor | None,
) -> None:
    """Reads the inputs of all parts that are to be made; raises DataError for the first fault, or without any text."""
    parts = [part for part in chosen if part.file not in records]
    num_documents = {file: record.part.num_documents for file, record in records.items()}
    started = time.monotonic()
    for part, count in run_all(pool, num_documents_of, parts):
        num_documents[part.file] = count
    if parts:
        logger.info("read the inputs of %d parts in %.1f s: all sound", len(parts), time.monotonic() - started)
    splits: tuple[tuple[Split, tuple[tuple[PartPlan, ...], ...]], ...] = (
        ("train", plan.train),
        ("validation", plan.validation),
    )
    for split, datasets in splits:
        for number, dataset in enumerate(datasets):
            # A shard that has read only some of a source cannot know.
            if all(num_documents.get(part.file) == 0 for part in dataset):
                raise _empty(split, number, (data.train if split == "train" else data.validation)[number].path)


@dataclass(frozen=True)
class TrainingTexts:
    """The texts a tokenizer learns from; can be gone through again."""

    parts: Sequence[PartPlan]
    characters_per_part: int | None

    def __iter__(self) -> Iterator[str]:
        for part in self.parts:
            num_left = self.characters_per_part
            for span in part.unit.spans:
                for piece in read_pieces(span, part.format, part.text_field):
                    yield piece.text if num_left is None else piece.text[:num_left]
                    if num_left is not None and (num_left := num_left - len(piece.text)) <= 0:
                        break
                if num_left is not None and num_left <= 0:
                    break


def _tokenizer_source(data: DataConfig, plan: StorePlan) -> str:
    """A hash of all that the tokenizer follows from; for the inputs, size and time stand for the contents."""
    spans = [asdict(span) for part in plan.train_parts for span in part.unit.spans]
    content = [data.tokenizer.model_dump(), data.format, data.fields.text, spans, TRAINING_CHARACTERS]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _current_tokenizer(store: Path, data: DataConfig, plan: StorePlan) -> Tokenizer | None:
    """The store's tokenizer if it is the one that the configuration asks for, or would train from the inputs now."""
    path = store / TOKENIZER_NAME
    if data.tokenizer.path is not None:
        wanted = Tokenizer.load(Path(data.tokenizer.path))
        return wanted if path.exists() and Tokenizer.load(path).fingerprint == wanted.fingerprint else None
    try:
        source = json.loads((store / TOKENIZER_SOURCE_NAME).read_bytes())
        return Tokenizer.load(path) if source == {"sha256": _tokenizer_source(data, plan)} else None
    except (OSError, ValueError, DataError):
        return None


def _new_tokenizer(store: Path, data: DataConfig, plan: StorePlan) -> Tokenizer:
    """Trains the tokenizer, or takes the one the configuration names, and puts it into the store."""
    path = store / TOKENIZER_NAME
    before = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
    started = time.monotonic()
    if data.tokenizer.path is not None:
        tokenizer = Tokenizer.load(Path(data.tokenizer.path))
    else:
        parts = plan.train_parts
        limit = None if data.tokenizer.kind == "character" else max(1, TRAINING_CHARACTERS // len(parts))
        logger.info("training a %s tokenizer on %s", data.tokenizer.kind, _training_extent(limit, len(parts)))
        tokenizer = Tokenizer.train(data.tokenizer, TrainingTexts(parts, limit))
    # The tokenizer first: were it interrupted in between, the next run would train it again.
    tokenizer.save(path)
    write_atomically(store / TOKENIZER_SOURCE_NAME, json_bytes({"sha256": _tokenizer_source(data, plan)}))
    seconds = time.monotonic() - started
    logger.info(
        "tokenizer of %d tokens, fingerprint %s, in %.1f s",
        tokenizer.vocabulary_size,
        tokenizer.fingerprint[:12],
        seconds,
    )
    if before is not None and hashlib.sha256(path.read_bytes()).hexdigest() != before:
        logger.info("%s: the tokenizer is another one than before, so all parts are made again", store)
    return tokenizer


def _training_extent(limit: int | None, num_parts: int) -> str:
    return (
        "all training text" if limit is None else f"up to {limit:,} characters from each of {num_parts} units of training text"
    )


def _make_parts(
    store: Path,
    data: DataConfig,
    plan: StorePlan,
    chosen: Sequence[PartPlan],
    tokenizer: Tokenizer | None,
    pool: ProcessPoolExecutor | None,
) -> tuple[Tokenizer, dict[str, PartRecord]]:
    """Makes those of the chosen parts that are not whole, and first the tokenizer where there is none; returns all."""
    store.mkdir(parents=True, exist_ok=True)
    # From here on until all parts are there the store is not whole, and must not look so.
    (store / MANIFEST_NAME).unlink(missing_ok=True)
    tokenizer = tokenizer or _new_tokenizer(store, data, plan)
    records = _whole_parts(store, chosen, tokenizer)
    missing = [part for part in chosen if part.file not in records]
    if records and missing:
        logger.info("%s: %d of %d parts are whole already; making the others", store, len(records), len(chosen))
    if outdated := sum(record_path(store, part).exists() for part in missing):
        logger.info("%s: %d parts came from other inputs, settings or tokens; making them again", store, outdated)
    return tokenizer, records | _write_parts(store, missing, tokenizer, pool)


def _write_parts(
    store: Path, parts: Sequence[PartPlan], tokenizer: Tokenizer, pool: ProcessPoolExecutor | None
) -> dict[str, PartRecord]:
    write = functools.partial(write_part, store, tokenizer_fingerprint=tokenizer.fingerprint)
    records: dict[str, PartRecord] = {}
    num_tokens = 0
    started = told = time.monotonic()
    for part, record in run_all(pool, write, parts):
        records[part.file] = record
        num_tokens += record.part.num_tokens
        now = time.monotonic()
        if now - told >= PROGRESS_SECONDS or len(records) == len(parts):
            told = now
            rate = num_tokens / (now - started)
            logger.info("%d of %d parts, %s tokens, %s tokens/s", len(records), len(parts), f"{num_tokens:,}", f"{rate:,.0f}")
    return records


def _merge(store: Path, data: DataConfig, plan: StorePlan) -> None:
    """Makes a store of the parts that the shards wrote, which all must be there."""
    tokenizer, records, missing = _find_parts(store, plan)
    if missing:
        named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"{store}: {len(missing)} of {len(plan.parts)} parts are missing or made from other inputs: {named}; "
            "run their shards again, or drumline prepare CONFIG for all that is missing"
        )
    _remove_unfinished(store)
    _finish(store, data, plan, records, tokenizer)


def _merge_if_last(store: Path, data: DataConfig, plan: StorePlan) -> None:
    """Of several shards that end at the same time more than one may do it: what they write is the same."""
    tokenizer, records, missing = _find_parts(store, plan)
    if missing:
        logger.info(
            "%s: %d of %d parts are not there yet: the last shard makes the store", store, len(missing), len(plan.parts)
        )
    elif not _is_finished(store, data, plan, records, tokenizer):
        _finish(store, data, plan, records, tokenizer)


def _find_parts(store: Path, plan: StorePlan) -> tuple[Tokenizer, dict[str, PartRecord], list[str]]:
    """The store's tokenizer, the records of the parts that are whole, and the files of those that are not."""
    tokenizer = Tokenizer.load(store / TOKENIZER_NAME)
    records = _whole_parts(store, plan.parts, tokenizer)
    return tokenizer, records, [part.file for part in plan.parts if part.file not in records]


def _finish(store: Path, data: DataConfig, plan: StorePlan, records: dict[str, PartRecord], tokenizer: Tokenizer) -> None:
    _remove_stale(store, plan)
    manifest = _manifest(data, plan, records, tokenizer)
    write_manifest(manifest, store)
    for split in ("train", "validation"):
        documents, tokens = manifest.num_documents(split), manifest.num_tokens(split)
        logger.info("%s: %s has %s documents, %s tokens", store, split, f"{documents:,}", f"{tokens:,}")


def _manifest(data: DataConfig, plan: StorePlan, records: dict[str, PartRecord], tokenizer: Tokenizer) -> StoreManifest:
    def dataset(path: str, weight: float | None, parts: Sequence[PartPlan]) -> Dataset:
        made = [records[part.file] for part in parts]
        inputs = tuple(each for record in made for each in record.inputs)
        return Dataset(path, weight, tuple(record.part for record in made), inputs)

    return StoreManifest(
        version=STORE_VERSION,
        settings=store_settings(data),
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocabulary_size=tokenizer.vocabulary_size,
        end_of_text=tokenizer.end_of_text,
        token_dtype=token_dtype(tokenizer.vocabulary_size).__name__,
        train=tuple(dataset(s.path, s.weight, parts) for s, parts in zip(data.train, plan.train, strict=True)),
        validation=tuple(dataset(s.path, s.weight, parts) for s, parts in zip(data.validation, plan.validation, strict=True)),
    )


def _is_finished(store: Path, data: DataConfig, plan: StorePlan, records: dict[str, PartRecord], tokenizer: Tokenizer) -> bool:
    try:
        return read_manifest(store) == _manifest(data, plan, records, tokenizer)
    except DataError:
        return False


def _num_workers(parts: Sequence[PartPlan], num_processes: int | None) -> int:
    """As many as there are cores, but none besides this process for so little text that starting them takes longer."""
    num_bytes = sum(span.end - span.begin for part in parts for span in part.unit.spans)
    is_small = num_bytes < SMALL_BYTES and parts[0].format != "parquet" if parts else True
    return 1 if is_small else min(num_processes or num_cores(), len(parts))


def _remove_stale(store: Path, plan: StorePlan) -> None:
    """Removes parts of an earlier configuration."""
    wanted = {store / part.file for part in plan.parts}
    wanted |= {path.with_suffix(".json") for path in wanted}
    stale = [path for split in ("train", "validation") for path in store.glob(f"{split}/*/part-*") if path not in wanted]
    _remove(store, stale)


def _remove_unfinished(store: Path) -> None:
    """Removes what an interrupted run left half written. Not while other shards may be at work: it could be theirs."""
    _remove(store, list(store.glob("*.json.*.tmp")))


def _remove(store: Path, stale: Sequence[Path]) -> None:
    for path in stale:
        path.unlink(missing_ok=True)
    if stale:
        logger.info("%s: removed %d files that do not belong to it", store, len(stale))
