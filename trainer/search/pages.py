"""What came of the trials, to look at: TensorBoard's HParams page, and an HTML page with Optuna's plots."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

from trainer.config import SearchConfig
from trainer.files import write_atomically
from trainer.monitor.event_file import EventFile
from trainer.search.results import by_score
from trainer.search.trials import SPREAD, folder_name, index_of

_LEAST_TRIALS = 2  # for a plot


def write_hparams(search: SearchConfig, trials: Sequence[FrozenTrial], index: int, folder: Path) -> None:
    """A session of the HParams page for this trial, where it is done (tensorboard/plugins/hparams/api.proto)."""
    trial = next((trial for trial in trials if index_of(trial) == index), None)
    if trial is None or not trial.state.is_finished():
        return
    start = plugin_data_pb2.SessionStartInfo(group_name=folder_name(index), start_time_secs=_seconds(trial.datetime_start))
    for name, value in trial.params.items():
        _set(start, name, value)
    status = api_pb2.STATUS_FAILURE if trial.state == TrialState.FAIL else api_pb2.STATUS_SUCCESS
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=_seconds(trial.datetime_complete))
    events = EventFile(folder / "tensorboard" / folder_name(index))
    try:
        events.add(_data(metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=start)))
        if trial.state == TrialState.COMPLETE:
            values = {search.metric: float(trial.value or 0.0), SPREAD: float(trial.user_attrs[SPREAD])}
            summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
            events.add(Event(step=0, wall_time=time.time(), summary=summary))
        events.add(_data(metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=end)))
    finally:
        events.close()


def write_page(study: optuna.Study, search: SearchConfig, folder: Path) -> None:
    """`results.html`, complete in itself: which settings mattered, and how the trials went through them."""
    content = "\n".join(_sections(study, search))
    page = f"<!doctype html><meta charset=utf-8><title>{html.escape(search.name)}</title>\n{content}\n"
    write_atomically(folder / "results.html", page.encode())


def _sections(study: optuna.Study, search: SearchConfig) -> Iterator[str]:
    yield f"<h1>Search {html.escape(search.name)}: {html.escape(search.metric)}</h1>"
    # An attempt stands for its trial alone; those that were interrupted failed, and are in no plot.
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < _LEAST_TRIALS:
        yield f"<p>{len(done)} trials are done: plots need {_LEAST_TRIALS}.</p>"
        return
    best = by_score(search, done)[0]
    yield f"<p>{len(done)} trials are done; the best is trial {index_of(best)} with {best.value:.4f}.</p>"
    plots = [optuna.visualization.plot_parallel_coordinate(study, target_name=search.metric)]
    if len({tuple(trial.params.items()) for trial in done}) >= _LEAST_TRIALS and len({trial.value for trial in done}) > 1:
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        plots.insert(0, optuna.visualization.plot_param_importances(study, evaluator=evaluator, target_name=search.metric))
    for number, plot in enumerate(plots):
        yield plot.to_html(full_html=False, include_plotlyjs=number == 0)


def _data(tag: str, data: plugin_data_pb2.HParamsPluginData) -> Event:
    summary = Summary(value=[Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data))])
    return Event(step=0, wall_time=time.time(), summary=summary)


def _set(start: plugin_data_pb2.SessionStartInfo, name: str, value: object) -> None:
    match value:
        case bool():
            start.hparams[name].bool_value = value
        case int() | float():
            start.hparams[name].number_value = float(value)
        case _:
            start.hparams[name].string_value = str(value)


def _seconds(moment: datetime | None) -> float:
    return time.time() if moment is None else moment.timestamp()
