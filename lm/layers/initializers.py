"""Initializers of Linen parameters, which draw on the host.

Modules use them in place of `nn.initializers`. Each says how its parameter is
distributed and computes nothing; `parameters` reads that off a module whose
shapes alone are traced, and `lm.initial` draws.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from lm import initial, tree, types


class Boxed(struct.PyTreeNode, nn.meta.AxisMetadata):
  """A parameter of zeros, with the distribution that it is drawn from."""

  value: Any
  distribution: initial.Distribution = struct.field(pytree_node=False)

  def unbox(self) -> Any:
    """Returns the zeros."""
    return self.value

  def replace_boxed(self, val: Any) -> 'Boxed':
    """Puts another value in the box."""
    return self.replace(value=val)

  def add_axis(self, index: int, params: dict[Any, Any]) -> 'Boxed':
    """Leaves the distribution as it is."""
    del index, params
    return self

  def remove_axis(self, index: int, params: dict[Any, Any]) -> 'Boxed':
    """Leaves the distribution as it is."""
    del index, params
    return self


@dataclasses.dataclass(frozen=True)
class Initializer:
  """Describes a parameter where Linen asks for its initial value."""

  distribution: initial.Distribution

  def __call__(
    self, rng: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32
  ) -> Any:  # Linen's types take a box for the array itself
    """Returns zeros in a box, see `Boxed`."""
    del rng
    return Boxed(jnp.zeros(shape, dtype), self.distribution)


def normal(std: float) -> Initializer:
  """Draws normal values with mean 0."""
  return Initializer(initial.Normal(std))


def uniform(
  low: float,
  high: float,
  function: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Initializer:
  """Draws functions of uniform values, see `initial.Uniform`."""
  return Initializer(initial.Uniform(low, high, function))


def constant(value: float) -> Initializer:
  """Fills with one value."""
  return Initializer(initial.Constant(value))


ZEROS, ONES = constant(0.0), constant(1.0)


def parameters(
  module: nn.Module, *inputs: Any, scope: str = ''
) -> types.Params:
  """Describes the parameters of a module: a tree of `initial.Parameter`.

  Args:
    module: any.
    inputs: what it is called with, arrays or their shapes.
    scope: before the paths that values are drawn by, such as 'task/'.

  Raises:
    ValueError: a parameter has another initializer than those of this file.
  """

  def read(path, box):
    if not isinstance(box, Boxed):
      raise ValueError(
        f'parameter {path}: its initializer draws on a device: use one of '
        'lm.layers.initializers'
      )
    return initial.Parameter(scope + path, box.value.shape, box.distribution)

  variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
  return tree.map_paths(
    read, variables['params'], is_leaf=lambda x: isinstance(x, Boxed)
  )
