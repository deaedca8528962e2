"""How much TensorFlow does for one update: counts, which unlike seconds are the same on every machine.

A figure here that grows is a step that has become slower. One that falls is a bound to be lowered.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import tensorflow as tf

from tests.unit.toy_training import VOCABULARY_SIZE, config, dataset, matrices_compiled
from trainer.config import plan_batches
from trainer.distribution import connect
from trainer.position import GraphPosition
from trainer.sizes import Sizes
from trainer.step import Compiler, compile_training
from trainer.training_state import create_state

pytestmark = pytest.mark.usefixtures("tensorflow")

KERNEL = re.compile(
    r"while/[^ :]+:(?P<operation>\w+)"
)  # as the profiler names an operation of the loop over updates: path:type
COMPILED = "CpuExecutable::ExecuteAsyncOnStream"  # and a call of what XLA has compiled
PRODUCTS = ("_MklMatMul", "MatMul", "_MklNativeFusedMatMul", "_FusedMatMul", "_MklBatchMatMulV2", "BatchMatMulV2")


class Counts(NamedTuple):
    graph_nodes: int
    kernels: Counter[str]  # of one update, by the type of the operation


@cache
def counts(compiler: Compiler, num_layers: int, profile_directory: Path) -> Counts:
    settings = config(model={"num_layers": num_layers})
    distribution = connect(settings.distribution)
    plan = plan_batches(settings.train, 1)
    state = create_state(settings, Sizes(VOCABULARY_SIZE))
    train_steps = compile_training(settings, state, distribution, plan, compiler, GraphPosition())
    batches = distribution.iterate(dataset(plan, distribution.replicas, unequal=False).repeat())
    first_step = tf.constant(0, tf.int64)

    def run(num_steps: int) -> None:
        train_steps(batches, first_step, tf.constant(num_steps))["loss"].numpy()

    with matrices_compiled():
        run(1)
    one, three = (kernels_of(run, number, profile_directory / f"{compiler}-{num_layers}-{number}") for number in (1, 3))
    # What is done once a call is in both.
    per_update = Counter({name: (three[name] - one[name]) // 2 for name in three})
    graph = train_steps.get_concrete_function(batches, first_step, tf.constant(1)).graph.as_graph_def()
    num_nodes = len(graph.node) + sum(len(function.node_def) for function in graph.library.function)
    return Counts(num_nodes, per_update)


def kernels_of(run: Callable[[int], None], num_steps: int, directory: Path) -> Counter[str]:
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    tf.profiler.experimental.start(str(directory))
    run(num_steps)
    tf.profiler.experimental.stop()
    (path,) = directory.rglob("*.xplane.pb")
    space = xplane_pb2.XSpace.FromString(path.read_bytes())
    found: Counter[str] = Counter()
    for plane in space.planes:
        for event in (event for line in plane.lines for event in line.events):
            name = plane.event_metadata[event.metadata_id].name
            kernel = KERNEL.fullmatch(name)
            if kernel:
                found[kernel["operation"]] += 1
            elif name.startswith(COMPILED):
                found[COMPILED] += 1
    return found


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles")


def of_a_layer(compiler: Compiler, directory: Path) -> Counts:
    one, two = (counts(compiler, num_layers, directory) for num_layers in (1, 2))
    return Counts(two.graph_nodes - one.graph_nodes, two.kernels - one.kernels)


@pytest.mark.parametrize("compiler", ["elementwise", "graph"])
def test_a_layer_takes_no_matrix_product_more_than_its_arithmetic(compiler: Compiler, directory: Path) -> None:
    kernels = of_a_layer(compiler, directory).kernels
    # Four weights and two products of attention, each once forward and twice backward.
    assert sum(kernels[product] for product in PRODUCTS) == 18


@pytest.mark.parametrize(("compiler", "most"), [("elementwise", 84), ("graph", 165)])
def test_an_update_launches_no_more_kernels_for_a_layer_than_it_did(compiler: Compiler, most: int, directory: Path) -> None:
    kernels = of_a_layer(compiler, directory).kernels
    assert 0 < kernels.total() <= most, kernels.most_common()


def test_compiled_apart_chains_are_one_launch_each(directory: Path) -> None:
    kernels = of_a_layer("elementwise", directory).kernels
    # Two norms, an activation, a softmax: forward and backward. And the updates of four matrices.
    assert kernels[COMPILED] == 12, kernels.most_common()


def test_what_does_not_grow_with_the_layers_launches_no_more_kernels_than_it_did(directory: Path) -> None:
    whole, layer = counts("elementwise", 1, directory).kernels, of_a_layer("elementwise", directory).kernels
    assert whole.total() - layer.total() <= 104, (whole - layer).most_common()


@pytest.mark.parametrize(("compiler", "most"), [("xla", 349), ("elementwise", 111)])
def test_the_graph_has_no_more_nodes_for_a_layer_than_it_had(compiler: Compiler, most: int, directory: Path) -> None:
    assert 0 < of_a_layer(compiler, directory).graph_nodes <= most
