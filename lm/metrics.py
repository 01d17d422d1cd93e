"""Arithmetic of metrics: a metric is a sum with a weight; merging adds both."""

from collections.abc import Mapping
import math

import jax
import jax.numpy as jnp

from lm import types


def merge(a: types.Metric, b: types.Metric) -> types.Metric:
  """Merges two metrics by adding totals and weights."""
  return types.Metric(a.total + b.total, a.weight + b.weight)


def join(
  a: Mapping[str, types.Metric], b: Mapping[str, types.Metric]
) -> dict[str, types.Metric]:
  """Merges metrics by name; a name that only one side has is kept."""
  return {**a, **{k: merge(a[k], m) if k in a else m for k, m in b.items()}}


def join_layers(
  a: Mapping[str, types.Metric], b: Mapping[str, types.Metric]
) -> dict[str, types.Metric]:
  """Merges what two groups of layers measure of the same text.

  The value of a loss, whose name ends in '_loss', is the sum over layers: its
  weight counts once. Other metrics are those of an average layer.
  """
  joined = join(a, b)
  for name in a.keys() & b.keys():
    if name.endswith('_loss'):
      joined[name] = joined[name]._replace(weight=a[name].weight)
  return joined


def merge_layers(
  stacked: Mapping[str, types.Metric],
) -> dict[str, types.Metric]:
  """Does what `join_layers` does, along the first dimension of arrays."""
  merged = {}
  for name, metric in stacked.items():
    total, weight = (jnp.sum(x, axis=0) for x in metric)
    if name.endswith('_loss'):
      weight = jnp.asarray(metric.weight)[0]
    merged[name] = types.Metric(total, weight)
  return merged


def value(metric: types.Metric) -> float:
  """Divides on the host; a metric of weight 0 is nan, not an error."""
  weight = float(metric.weight)
  return float(metric.total) / weight if weight else math.nan


def values(metrics: Mapping[str, types.Metric]) -> dict[str, float]:
  """Fetches all metrics from the device at once, and divides each."""
  return {k: value(m) for k, m in jax.device_get(dict(metrics)).items()}


def bits_per_byte(total_nats: float, text_bytes: int) -> float:
  """Turns the summed loss of a text into bits per UTF-8 byte.

  Unlike a loss a token, this can be compared between models with different
  tokenizers, and with file compressors.
  """
  return total_nats / math.log(2) / text_bytes


def tree_norm(tree) -> jax.Array:
  """Computes the l2 norm of all leaves together, in float32."""
  # A sum of squares in bfloat16 does not overflow, but loses the small leaves.
  squares = [
    jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)
  ]
  return jnp.sqrt(sum(squares))


def all_finite(tree) -> jax.Array:
  """Tells whether no leaf holds nan or an infinite number."""
  return jnp.all(
    jnp.stack(
      [
        jnp.all(jnp.isfinite(leaf))
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
      ]
    )
  )
