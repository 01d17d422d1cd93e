"""The algebra of metrics: sums with weights, merged by adding."""

from collections.abc import Mapping
import math

import jax
import jax.numpy as jnp

from lm import types


def merge(a: types.Metric, b: types.Metric) -> types.Metric:
  """Adds totals and weights."""
  return types.Metric(a.total + b.total, a.weight + b.weight)


def join(
  a: Mapping[str, types.Metric], b: Mapping[str, types.Metric]
) -> dict[str, types.Metric]:
  """Merges by name; a name that only one of them has is kept."""
  return {**a, **{k: merge(a[k], m) if k in a else m for k, m in b.items()}}


def value(metric: types.Metric) -> float:
  """Divides on the host; a metric that weighs nothing is nan, not an error."""
  weight = float(metric.weight)
  return float(metric.total) / weight if weight else math.nan


def values(metrics: Mapping[str, types.Metric]) -> dict[str, float]:
  """Fetches a whole dict from the device at once, then divides."""
  return {k: value(m) for k, m in jax.device_get(dict(metrics)).items()}


def bits_per_byte(total_nats: float, text_bytes: int) -> float:
  """Turns the summed loss of a text into bits per UTF-8 byte.

  Comparable between any two models and with a file compressor, whatever the
  tokenizers.
  """
  return total_nats / math.log(2) / text_bytes


def tree_norm(tree) -> jax.Array:
  """Takes the l2 norm of all leaves together, in float32."""
  # Squares of bfloat16 gradients overflow nothing but lose the small leaves.
  squares = [
    jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)
  ]
  return jnp.sqrt(sum(squares))
