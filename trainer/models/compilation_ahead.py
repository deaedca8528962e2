"""Compiling by XLA what a graph is going to call, in a thread, while the graph is still being traced.

The graph compiles a function when it first comes to it: one after another, on one core. XLA keeps what it compiled by the name
of the function and the shapes of its arguments, for all graphs of the process; but not for functions that are called without
a graph around them, which it keeps apart.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tensorflow as tf

THREAD = ThreadPoolExecutor(1, thread_name_prefix="compilation-ahead")


def compiled_by_xla(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` (tensors and numbers) -> tensors as XLA compiles it: each trace of it, ahead of the graph that calls it."""
    compiled = tf.function(function, jit_compile=True, autograph=False)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        num_traces = compiled.experimental_get_tracing_count()
        result = compiled(*arguments)
        if not tf.executing_eagerly() and compiled.experimental_get_tracing_count() > num_traces:
            # What fails there fails again where the graph calls it, and is told there.
            THREAD.submit(_call_in_graph, compiled.get_concrete_function(*arguments))
        return result

    return call


def _call_in_graph(trace: Any) -> None:
    """Calls it with zeros in a graph of its own, once: that compiles it."""
    specifications = [each for each in tf.nest.flatten(trace.structured_input_signature) if isinstance(each, tf.TensorSpec)]
    if all(each.shape.is_fully_defined() for each in specifications):
        # Not a call of the `tf.function`: TensorFlow would count it, and warn of one that is traced with each call.
        graph = tf.function(lambda *arguments: trace(*arguments), autograph=False).get_concrete_function(*specifications)
        graph(*(tf.zeros(each.shape, each.dtype) for each in specifications))
