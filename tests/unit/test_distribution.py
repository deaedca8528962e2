"""The protocol of the backends in one process, and how one is chosen."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from trainer.config import DistributionConfig
from trainer.distribution import Distribution, any_process, chiefs, connect, gather
from trainer.distribution.devices import require_one_kind
from trainer.errors import BackendError

pytestmark = pytest.mark.usefixtures("tensorflow", "no_launcher")

BACKENDS: Mapping[str, Mapping[str, Any]] = {
    "single": {"backend": "single"},
    "mirrored on one": {"backend": "mirrored", "num_replicas": 1},
    "mirrored on two": {"backend": "mirrored", "num_replicas": 2},
}


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "TF_CONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=BACKENDS.values(), ids=BACKENDS.keys())
def distribution(request: pytest.FixtureRequest) -> Distribution:
    return connect(DistributionConfig.model_validate(request.param))


def test_a_process_alone_is_chief_and_holds_all_replicas(distribution: Distribution) -> None:
    assert (distribution.rank, distribution.num_processes, distribution.is_chief) == (0, 1, True)
    assert list(distribution.replicas) == list(range(distribution.num_replicas))


@pytest.mark.parametrize("dtype", [tf.float32, tf.float16])
def test_sums_are_over_all_replicas(distribution: Distribution, dtype: tf.DType) -> None:
    elements = [np.full(3, 10.0**number, np.float32) for number in range(distribution.num_replicas)]
    batches = distribution.iterate(tf.data.Dataset.from_tensor_slices(np.stack(elements)))

    def replica(values: tf.Tensor) -> list[tf.Tensor]:
        values = tf.cast(values, dtype)
        return distribution.all_reduce([values, tf.reduce_sum(values), values[:2] + 1])

    @tf.function(autograph=False)
    def summed() -> list[tuple[tf.Tensor, ...]]:
        results = distribution.run(replica, (next(batches),))
        return [distribution.local(result) for result in results]

    total = float(sum(10.0**number for number in range(distribution.num_replicas)))
    values, scalar, more = summed()
    for number in range(distribution.num_replicas):
        assert values[number].dtype == dtype
        np.testing.assert_array_equal(values[number], np.full(3, total))
        assert float(scalar[number]) == 3 * total
        np.testing.assert_array_equal(more[number], np.full(2, total + distribution.num_replicas))


def test_an_update_changes_the_variable_of_every_replica(distribution: Distribution) -> None:
    with distribution.scope():
        variables = [tf.Variable(1.0), tf.Variable(2.0)]

    def replica() -> tf.Tensor:
        (one,) = distribution.all_reduce([tf.constant(1.0)])
        distribution.update(
            lambda variable, change: variable.assign_add(change), [(each, one) for each in variables], only_if=tf.constant(True)
        )
        return one

    tf.function(lambda: distribution.run(replica, ()), autograph=False)()
    for variable, before in zip(variables, (1.0, 2.0), strict=True):
        copies = [float(copy.numpy()) for copy in distribution.local(variable)]
        assert copies == [before + distribution.num_replicas] * distribution.num_replicas


def test_a_process_alone_agrees_with_itself(distribution: Distribution) -> None:
    assert any_process(distribution, True) is True
    assert any_process(distribution, False) is False
    assert chiefs(distribution, 41) == 41
    np.testing.assert_array_equal(gather(distribution, np.arange(6).reshape(2, 3)), np.arange(6).reshape(1, 2, 3))
    distribution.broadcast([tf.Variable(1.0)])
    distribution.close()


def test_auto_is_single_where_nothing_calls_for_more(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert connect(DistributionConfig()).name == "single"
    assert "auto chose single, because" in caplog.text


@pytest.mark.parametrize("description", [None, "{", "{}", '{"cluster": {"worker": ["a:1"]}}', "[]"])
def test_a_cluster_that_is_not_described_is_one_line(monkeypatch: pytest.MonkeyPatch, description: str | None) -> None:
    if description is not None:
        monkeypatch.setenv("TF_CONFIG", description)
    with pytest.raises(BackendError, match="TF_CONFIG") as error:
        connect(DistributionConfig(backend="multiworker"))
    assert "\n" not in str(error.value)


def test_auto_follows_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """That it went to `multiworker` shows in what that one complains of."""
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {}}))
    with pytest.raises(BackendError, match="backend multiworker"):
        connect(DistributionConfig())


def test_more_cpu_replicas_than_tensorflow_has_started_with_is_one_line() -> None:
    tf.config.list_logical_devices("CPU")
    with pytest.raises(BackendError, match="64 CPU replicas"):
        connect(DistributionConfig(backend="mirrored", num_replicas=64))


def test_horovod_that_is_not_installed_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "horovod"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "horovod", None)  # what Python itself takes for "cannot be imported"
    with pytest.raises(BackendError, match="make horovod"):
        connect(DistributionConfig(backend="horovod"))


def test_ranks_of_which_some_have_no_gpu_are_named() -> None:
    for have_gpu in ([], [False], [True, True], [False, False]):
        require_one_kind(have_gpu)
    with pytest.raises(BackendError, match=r"of 3 ranks rank 1 sees no GPU"):
        require_one_kind([True, False, True])
    with pytest.raises(BackendError, match=r"of 3 ranks ranks 0, 2 see no GPU.*CUDA_VISIBLE_DEVICES"):
        require_one_kind([False, True, False])
