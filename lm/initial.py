"""Initial values of parameters, drawn on the host and addressed by their place.

A value is a pure function of the seed, the path of its parameter and its index
in that parameter. So a process draws only the parts that its devices hold, no
mesh changes a value, and nothing has to be compiled.

A model describes its parameters as a tree of `Parameter`, `Stacked` or `Given`.
Each has a shape, a dtype and `draw(seed, part)`.

The values are those of any machine but for a last bit once in some 10^8 values,
where two libraries round a logarithm differently.

Reference: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"
(counter-based generators). The mixing function is the finalizer of SplitMix64,
Steele et al. 2014, "Fast splittable pseudorandom number generators", figure 16.

This file must not import jax at run time, as `lm.types` must not.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import hashlib
import math
from typing import Any, Protocol

import numpy as np

from lm import splitmix

Part = Sequence[slice] | None  # of an array, a slice a dimension; None is all

_AT_ONCE = 1 << 16  # values that fit a core's cache with all that they need


class Distribution(Protocol):
  """Draws values of a key, see `Parameter`."""

  def draw(self, key: int, shape: Sequence[int], part: Part) -> np.ndarray:
    """Draws a part of an array of a shape: float32."""
    ...


@dataclasses.dataclass(frozen=True)
class Normal:
  """Normal values with mean 0.

  Attributes:
    std: standard deviation.
  """

  std: float

  def draw(self, key: int, shape: Sequence[int], part: Part) -> np.ndarray:
    """Draws by Box and Muller's transform."""
    index = _indices(shape, part)
    out = np.empty(index.shape, np.float32)
    flat, into = index.reshape(-1), out.reshape(-1)
    for n in range(0, flat.size, _AT_ONCE):
      bits = _mix(flat[n : n + _AT_ONCE], key)
      # One half of the 64 bits makes a radius, the other an angle.
      high = (bits >> np.uint64(32)).astype(np.uint32)
      low = bits.astype(np.uint32).view(np.int32)
      # Never the logarithm of 0.
      radius = np.sqrt(-2 * np.log((high.astype(np.float64) + 1) * 2.0**-32))
      into[n : n + _AT_ONCE] = self.std * radius * _sine(low * 2.0**-32)
    return out


@dataclasses.dataclass(frozen=True)
class Uniform:
  """Functions of values that are uniform in [low, high).

  Attributes:
    low, high: the bounds.
    function: of all values, elementwise; None leaves them as they are.
  """

  low: float
  high: float
  function: Callable[[np.ndarray], np.ndarray] | None = None

  def draw(self, key: int, shape: Sequence[int], part: Part) -> np.ndarray:
    """Draws in steps of 2^-24 of the range."""
    bits = _mix(_indices(shape, part), key) >> np.uint64(40)
    fraction = bits.astype(np.float64) * 2.0**-24
    values = self.low + (self.high - self.low) * fraction
    if self.function is not None:
      values = self.function(values)
    return values.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Constant:
  """One value everywhere."""

  value: float

  def draw(self, key: int, shape: Sequence[int], part: Part) -> np.ndarray:
    """Fills an array."""
    del key
    part = [slice(None)] * len(shape) if part is None else part
    sizes = (
      len(range(*x.indices(n))) for n, x in zip(shape, part, strict=True)
    )
    return np.full(tuple(sizes), self.value, np.float32)


@dataclasses.dataclass(frozen=True)
class Parameter:
  """One parameter of a model: float32.

  Attributes:
    path: the name that its values are drawn by. Where it lies in the tree of
      parameters is free: the body of a fine-tuned model draws what the bare
      model draws.
    shape: of the whole.
    distribution: of its values.
  """

  path: str
  shape: tuple[int, ...]
  distribution: Distribution
  dtype = np.dtype('float32')

  def draw(self, seed: int, part: Part = None) -> np.ndarray:
    """Draws a part of the parameter."""
    digest = hashlib.sha256(f'{seed}/{self.path}'.encode()).digest()
    key = int.from_bytes(digest[:8], 'little')
    return self.distribution.draw(key, self.shape, part)


@dataclasses.dataclass(frozen=True)
class Stacked:
  """Parameters of one shape, stacked along a new first dimension.

  Scanned layers hold them, and draw what the same layers draw unrolled.

  Attributes:
    parameters: in their order.
  """

  parameters: tuple[Parameter, ...]
  dtype = np.dtype('float32')

  @property
  def shape(self) -> tuple[int, ...]:
    """Returns the shape of the stack."""
    return len(self.parameters), *self.parameters[0].shape

  def draw(self, seed: int, part: Part = None) -> np.ndarray:
    """Draws a part of the stack."""
    if part is None:
      return np.stack([x.draw(seed) for x in self.parameters])
    chosen = self.parameters[part[0]]
    return np.stack([x.draw(seed, part[1:]) for x in chosen])


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
  """A parameter whose initial values are known.

  Attributes:
    value: all of them.
  """

  value: np.ndarray

  @property
  def shape(self) -> tuple[int, ...]:
    """Returns the shape of the value."""
    return self.value.shape

  @property
  def dtype(self) -> np.dtype:
    """Returns the type of the value."""
    return self.value.dtype

  def draw(self, seed: int, part: Part = None) -> np.ndarray:
    """Returns a part of the value."""
    del seed
    return self.value if part is None else self.value[tuple(part)]


def draw(parameters: Any, seed: int) -> Any:
  """Draws whole parameters: a nested dict of arrays of the host."""
  if isinstance(parameters, Mapping):
    return {name: draw(x, seed) for name, x in parameters.items()}
  return parameters.draw(seed)


def _sine(turns: np.ndarray) -> np.ndarray:
  """Computes sin(2 pi turns) for turns in [-1/2, 1/2], to 1e-11.

  By Taylor's series: sums and products round alike on every machine, and the
  sine of numpy takes five times as long.
  """
  folded = np.abs(turns)
  folded = 2 * np.pi * np.minimum(folded, 0.5 - folded)  # in [0, pi / 2]
  square, series = folded * folded, np.zeros_like(folded)
  for n in range(15, 0, -2):
    series = series * square + (-1) ** (n // 2) / math.factorial(n)
  return np.copysign(series * folded, turns)


def _indices(shape: Sequence[int], part: Part) -> np.ndarray:
  """Numbers the values of a part by their place in the whole: uint64."""
  part = [slice(None)] * len(shape) if part is None else part
  index = np.zeros((), np.uint64)
  for size, cut in zip(shape, part, strict=True):
    along = np.arange(*cut.indices(size), dtype=np.uint64)
    index = index[..., None] * np.uint64(size) + along
  return index


def _mix(index: np.ndarray, key: int) -> np.ndarray:
  """Turns places into bits that look random: uint64, in the same shape."""
  with np.errstate(over='ignore'):  # arithmetic modulo 2^64 is what is meant
    # Weyl's sequence: neighbours are far apart before they are mixed.
    z = (index + np.uint64(1)) * np.uint64(splitmix.STEP) + np.uint64(key)
    return splitmix.mix(z)
