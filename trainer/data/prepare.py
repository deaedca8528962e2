"""Turns the text that a configuration names into a token store.

Parts are made by all cores, or by several machines; whatever is whole already is left as it is, so an interrupted run
goes on where it stopped. All input is read once before anything is written: a fault in the last file is known within
minutes, and leaves no trace. The manifest comes last and makes the store whole.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from trainer.config import Config, SecurityConfig
from trainer.data.checks import check_inputs
from trainer.data.columns import token_dtype
from trainer.data.duplicates import Duplicates, find_equal, find_similar, list_duplicates
from trainer.data.manifest import (
    MANIFEST_NAME,
    STORE_VERSION,
    Dataset,
    RowsFile,
    StoreManifest,
    read_manifest,
    store_settings,
    write_manifest,
)
from trainer.data.parts import PartPlan, PartRecord, record_path, signatures_of_part, whole_part, write_part
from trainer.data.prepared_tokenizer import current_tokenizer, new_tokenizer
from trainer.data.records import RecordTable
from trainer.data.reports import OVERLAP_NAME, PERSONAL_DATA_NAME, report_overlap, report_personal_data
from trainer.data.rows import rows_origin, write_rows
from trainer.data.store import open_parts, store_tokenizer, token_stream
from trainer.data.store_plan import (
    StorePlan,
    duplicates_source,
    known_labels,
    plan_store,
    without_duplicates,
    write_labels,
)
from trainer.data.tokenizer import Tokenizer
from trainer.data.workers import num_cores, run_all, worker_pool
from trainer.encryption.files import Encryption
from trainer.errors import DataError
from trainer.files import json_bytes, make_folder, write_atomically

logger = logging.getLogger(__name__)

# Which training texts are left out, since they are there before already.
DUPLICATES_NAME = "duplicates.json"

PROGRESS_SECONDS = 5.0

# Encoding so much takes about as long as starting a process.
SMALL_BYTES = 2 * 2**20


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
    store = Path(config.data.store)
    Encryption.of(config.security)  # a key that cannot be had is told before hours are spent
    plan = plan_store(config)
    duplicates = _find_duplicates(store, config, plan, num_processes)
    if duplicates is not None:
        plan = without_duplicates(plan, duplicates)
    labels = known_labels(store, config, plan)
    plan = plan.with_labels(labels or ())
    if shard is None and merge:
        _merge(store, config, plan)
        return
    what = f"{store}" if shard is None else f"{store}: shard {shard[0]}/{shard[1]}"
    tokenizer = current_tokenizer(store, config, plan)
    chosen = plan.chosen(shard)
    records = _whole_parts(store, chosen, tokenizer) if labels is not None else {}
    if tokenizer and len(records) == len(chosen) and (shard or _is_finished(store, config, plan, records, tokenizer)):
        logger.info("%s: is whole already, %d parts: nothing to do", what, len(chosen))
        if merge:
            _merge_if_last(store, config, plan)
        return
    with worker_pool(_num_workers(chosen, num_processes)) as pool:
        plan = plan.with_labels(check_inputs(config, plan, chosen, records, labels, pool))
        try:
            if duplicates is not None:
                _write_duplicates(store, config, duplicates)
            tokenizer, records = _make_parts(store, config, plan, plan.chosen(shard), tokenizer, pool)
        except OSError as error:
            raise DataError(f"{store}: cannot be written ({error}); free the place or set data.store to another") from error
    if shard is None:
        _remove_unfinished(store)
        _finish(store, config, plan, records, tokenizer)
    elif merge:
        _merge_if_last(store, config, plan)
    else:
        logger.info("%s: is whole; when all shards are: drumline prepare CONFIG --merge", what)


def _find_duplicates(store: Path, config: Config, plan: StorePlan, num_processes: int | None) -> Duplicates | None:
    """Which training texts are there before already: as was found before in the same inputs, or by reading all of them. The
    same on each machine, whichever shard it makes."""
    chosen = config.data.duplicates
    if chosen is None:
        return None
    source, parts = duplicates_source(config, plan), plan.train_parts
    known = Duplicates.read(store / DUPLICATES_NAME)
    if known is not None and known.source == source:
        return known
    read = functools.partial(signatures_of_part, is_near=chosen.kind == "near")
    with worker_pool(_num_workers(parts, num_processes)) as pool:
        signatures = {part.file: each for part, each in run_all(pool, read, parts)}
    in_order = [signatures[part.file] for part in parts]
    pairs = find_equal(in_order) if chosen.kind == "exact" else find_similar(in_order, chosen.similarity)
    found = list_duplicates(source, pairs)
    logger.info("%s: %s training texts are there before already and left out", store, f"{found.num_texts:,}")
    return found


def _write_duplicates(store: Path, config: Config, duplicates: Duplicates) -> None:
    """The examples, which are texts, are left out where texts are encrypted."""
    make_folder(store)
    shown = replace(duplicates, examples=()) if config.security.encrypt else duplicates
    write_atomically(store / DUPLICATES_NAME, json_bytes(shown.to_json()))


def _whole_parts(store: Path, parts: Sequence[PartPlan], tokenizer: Tokenizer | None) -> dict[str, PartRecord]:
    """The records of those parts that need not be made again, by file."""
    if tokenizer is None:
        return {}
    found = ((part.file, whole_part(store, part, tokenizer.fingerprint)) for part in parts)
    return {file: record for file, record in found if record is not None}


def _make_parts(
    store: Path,
    config: Config,
    plan: StorePlan,
    chosen: Sequence[PartPlan],
    tokenizer: Tokenizer | None,
    pool: ProcessPoolExecutor | None,
) -> tuple[Tokenizer, dict[str, PartRecord]]:
    """Makes those of the chosen parts that are not whole, and first the tokenizer where there is none; returns all."""
    store.mkdir(parents=True, exist_ok=True)
    # From here on until all parts are there the store is not whole, and must not look so.
    (store / MANIFEST_NAME).unlink(missing_ok=True)
    if config.task == "classification":
        write_labels(store, plan, plan.train_parts[0].labels)
    tokenizer = tokenizer or new_tokenizer(store, config, plan)
    records = _whole_parts(store, chosen, tokenizer)
    missing = [part for part in chosen if part.file not in records]
    if records and missing:
        logger.info("%s: %d of %d parts are whole already; making the others", store, len(records), len(chosen))
    if outdated := sum(record_path(store, part).exists() for part in missing):
        logger.info("%s: %d parts came from other inputs, settings or tokens; making them again", store, outdated)
    return tokenizer, records | _write_parts(store, missing, tokenizer, config.security, pool)


def _write_parts(
    store: Path,
    parts: Sequence[PartPlan],
    tokenizer: Tokenizer,
    security: SecurityConfig,
    pool: ProcessPoolExecutor | None,
) -> dict[str, PartRecord]:
    write = functools.partial(write_part, store, tokenizer_fingerprint=tokenizer.fingerprint, security=security)
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


def _merge(store: Path, config: Config, plan: StorePlan) -> None:
    """Makes a store of the parts that the shards wrote, which all must be there."""
    tokenizer, records, missing = _find_parts(store, config, plan)
    if missing:
        named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"{store}: {len(missing)} of {len(plan.parts)} parts are missing or made from other inputs: {named}; "
            "run their shards again, or drumline prepare CONFIG for all that is missing"
        )
    _remove_unfinished(store)
    _finish(store, config, plan, records, tokenizer)


def _merge_if_last(store: Path, config: Config, plan: StorePlan) -> None:
    """Of several shards that end at the same time more than one may do it: what they write is the same."""
    tokenizer, records, missing = _find_parts(store, config, plan)
    if missing:
        logger.info(
            "%s: %d of %d parts are not there yet: the last shard makes the store", store, len(missing), len(plan.parts)
        )
    elif not _is_finished(store, config, plan, records, tokenizer):
        _finish(store, config, plan, records, tokenizer)


def _find_parts(store: Path, config: Config, plan: StorePlan) -> tuple[Tokenizer, dict[str, PartRecord], list[str]]:
    """The store's tokenizer, the records of the parts that are whole, and the files of those that are not."""
    tokenizer = store_tokenizer(config)
    records = _whole_parts(store, plan.parts, tokenizer)
    return tokenizer, records, [part.file for part in plan.parts if part.file not in records]


def _finish(store: Path, config: Config, plan: StorePlan, records: dict[str, PartRecord], tokenizer: Tokenizer) -> None:
    _remove_stale(store, config, plan)
    manifest = _manifest(config, plan, records, tokenizer, _made_rows(store, config, plan, records, tokenizer))
    write_manifest(manifest, store)
    if plan.reading.personal_data is not None:
        report_personal_data(store, plan, records)
    if plan.reading.overlap is not None:
        report_overlap(store, plan, records)
    unit = "documents" if plan.reading.is_of_documents else "records"
    for split in ("train", "validation"):
        documents, tokens = manifest.num_documents(split), manifest.num_tokens(split)
        logger.info("%s: %s has %s %s, %s tokens", store, split, f"{documents:,}", unit, f"{tokens:,}")
        if rows := [dataset.rows for dataset in manifest.datasets(split) if dataset.rows]:
            pieces, num_rows = sum(each.num_pieces for each in rows), sum(each.num_rows for each in rows)
            share = sum(each.num_real_tokens for each in rows) / sum(each.num_places for each in rows)
            logger.info(
                "%s: %s: %s samples in %s rows, %.1f%% real tokens", store, split, f"{pieces:,}", f"{num_rows:,}", 100 * share
            )


def _made_rows(
    store: Path, config: Config, plan: StorePlan, records: dict[str, PartRecord], tokenizer: Tokenizer
) -> dict[str, RowsFile]:
    """The rows of all data sets by their files, where samples are packed by best fit."""
    if config.packing != "best_fit":
        return {}
    made = {}
    dtype = token_dtype(tokenizer.vocabulary_size).__name__
    for dataset in (each for _, datasets in plan.splits for each in datasets):
        parts = [records[part.file].part for part in dataset]
        file, batches = _rows_file(dataset), open_parts(store, parts, dtype, Encryption.of(config.security))
        name = f"{store}: {Path(file).parent}"
        is_stream = plan.reading.is_of_documents
        data = token_stream(name, batches, tokenizer.end_of_text) if is_stream else RecordTable(name, batches)
        made[file] = write_rows(store, file, config, tokenizer, data, rows_origin(config, tokenizer, parts))
    return made


def _rows_file(dataset: Sequence[PartPlan]) -> str:
    return str(Path(dataset[0].file).with_name("rows.arrow"))


def _manifest(
    config: Config, plan: StorePlan, records: dict[str, PartRecord], tokenizer: Tokenizer, rows: dict[str, RowsFile]
) -> StoreManifest:
    def dataset(path: str, weight: float | None, parts: Sequence[PartPlan]) -> Dataset:
        made = [records[part.file] for part in parts]
        inputs = tuple(each for record in made for each in record.inputs)
        return Dataset(path, weight, tuple(record.part for record in made), inputs, rows.get(_rows_file(parts)))

    data = config.data
    return StoreManifest(
        version=STORE_VERSION,
        settings=store_settings(config),
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocabulary_size=tokenizer.vocabulary_size,
        end_of_text=tokenizer.end_of_text,
        token_dtype=token_dtype(tokenizer.vocabulary_size).__name__,
        train=tuple(dataset(s.path, s.weight, parts) for s, parts in zip(data.train, plan.train, strict=True)),
        validation=tuple(dataset(s.path, s.weight, parts) for s, parts in zip(data.validation, plan.validation, strict=True)),
        labels=plan.parts[0].labels,
    )


def _is_finished(store: Path, config: Config, plan: StorePlan, records: dict[str, PartRecord], tokenizer: Tokenizer) -> bool:
    try:
        manifest = read_manifest(store)
    except DataError:
        return False
    rows = {}
    if config.packing == "best_fit":
        for dataset in manifest.train + manifest.validation:
            # Those of other parts or settings do not count, nor do those that are gone.
            if dataset.rows is None or dataset.rows.origin != rows_origin(config, tokenizer, dataset.parts):
                return False
            path = store / dataset.rows.file
            if not path.exists() or path.stat().st_size != dataset.rows.num_bytes:
                return False
            rows[dataset.rows.file] = dataset.rows
    return manifest == _manifest(config, plan, records, tokenizer, rows)


def _num_workers(parts: Sequence[PartPlan], num_processes: int | None) -> int:
    """As many as there are cores, but none besides this process for so little text that starting them takes longer."""
    num_bytes = sum(span.num_bytes for part in parts for span in part.unit.spans)
    is_small = num_bytes < SMALL_BYTES and parts[0].reading.format != "parquet" if parts else True
    return 1 if is_small else min(num_processes or num_cores(), len(parts))


def _remove_stale(store: Path, config: Config, plan: StorePlan) -> None:
    """Removes parts and rows of an earlier configuration."""
    wanted = {store / part.file for part in plan.parts}
    wanted |= {path.with_suffix(".json") for path in wanted}
    if config.packing == "best_fit":
        wanted |= {store / _rows_file(dataset) for _, datasets in plan.splits for dataset in datasets}
    names = [f"{split}/*/{name}" for split in ("train", "validation") for name in ("part-*", "rows.arrow")]
    if plan.reading.personal_data is None:
        names.append(PERSONAL_DATA_NAME)
    if plan.reading.overlap is None:
        names.append(OVERLAP_NAME)
    if config.data.duplicates is None:
        names.append(DUPLICATES_NAME)
    _remove(store, [path for name in names for path in store.glob(name) if path not in wanted])


def _remove_unfinished(store: Path) -> None:
    """Removes what an interrupted run left half written. Not while other shards may be at work: it could be theirs."""
    _remove(store, [*store.glob("*.json.*.tmp"), *store.glob("*/*/rows.arrow.*.tmp")])


def _remove(store: Path, stale: Sequence[Path]) -> None:
    for path in stale:
        path.unlink(missing_ok=True)
    if stale:
        logger.info("%s: removed %d files that do not belong to it", store, len(stale))
