"""Every function is traced once, whatever a run does: tracing takes seconds, and a second time it would hide in the steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.training import training_config, write_texts
from trainer.data.prepare import prepare


def test_every_function_is_traced_once(tensorflow: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run with calls of one and of several steps, two evaluations, a checkpoint between them, and one at the end."""
    from trainer.loop import train

    made: list[Any] = []
    function: Callable[..., Any] = tensorflow.function

    def recorded(python_function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if python_function is None:
            return lambda decorated: recorded(decorated, **options)
        made.append(function(python_function, **options))
        return made[-1]

    monkeypatch.setattr(tensorflow, "function", recorded)
    write_texts(tmp_path)
    config = training_config(tmp_path, "traced")
    prepare(config)
    train(config)
    counts = [(each.python_function.__name__, each.experimental_get_tracing_count()) for each in made]
    assert {"differentiate", "train_steps", "micro_batch", "evaluate"} <= {name for name, _ in counts}
    assert [each for each in counts if each[1] != 1] == []
