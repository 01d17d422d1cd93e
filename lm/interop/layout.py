"""Maps our parameters to the tensors of other libraries, in both directions.

A table has a place for each of our paths, with `layers_{i}` for a block: the
name of a tensor, and how it is laid out there. Import and export read the same
table, so that an import that is exported again has the same bytes.
"""

from collections.abc import Callable, Iterable, Mapping
import itertools
import math
import operator
import re
from typing import Any, NamedTuple

import numpy as np

from lm import tree, types
from lm.layers import stack

_BLOCK = re.compile(r'(?<![^/])layers_(\d+)(?![^/])')


class Place(NamedTuple):
  """The tensor in a file that holds a parameter, alone or with others.

  Attributes:
    name: of the tensor, with `{i}` for the number of the block.
    inputs: how many leading dimensions of our parameter a product sums over.
      The tensor has one dimension for them, and one for all others. 0 means
      that the parameter is no matrix: the tensor is flat or has its shape.
    transposed: whether the tensor is [outputs, inputs], as in torch's Linear.
    part: `(n, of)`: the parameter is part n of so many parts of the tensor,
      along its last dimension.
    flat: whether the tensor has one dimension.
  """

  name: str
  inputs: int = 0
  transposed: bool = False
  part: tuple[int, int] = (0, 1)
  flat: bool = False


Table = Mapping[str, Place]


class Row(NamedTuple):
  """A parameter of one model, and its place.

  Attributes:
    path: of the parameter.
    shape: of the parameter.
    place: its place; the name has the number of the block.
    stored: the shape of the whole tensor.
  """

  path: str
  shape: tuple[int, ...]
  place: Place
  stored: tuple[int, ...]


def linear(name: str, inputs: int = 1) -> Place:
  """Makes the place of a kernel of torch's Linear, [outputs, inputs]."""
  return Place(name, inputs, transposed=True)


def conv(name: str, inputs: int = 1, part: tuple[int, int] = (0, 1)) -> Place:
  """Makes the place of a kernel of GPT-2's Conv1D, [inputs, outputs]."""
  return Place(name, inputs, part=part)


def vector(name: str, part: tuple[int, int] = (0, 1)) -> Place:
  """Makes the place of a bias or a scale."""
  return Place(name, part=part, flat=True)


def norm(path: str, name: str) -> dict[str, Place]:
  """Makes the places of a norm's scale and bias."""
  return {
    f'{path}/scale': vector(f'{name}.weight'),
    f'{path}/bias': vector(f'{name}.bias'),
  }


def rows(table: Table, like: types.Params) -> list[Row]:
  """Finds the place of every parameter.

  Args:
    table: of an architecture.
    like: parameters or their shapes, with blocks that are not stacked.

  Raises:
    ValueError: a parameter has no place.
  """
  result = []
  for path, leaf in tree.paths(like):
    block = _BLOCK.search(path)
    place = table.get(_BLOCK.sub('layers_{i}', path))
    if place is None:
      raise ValueError(f'transformers has no tensor for {path}')
    place = place._replace(name=place.name.format(i=block and block[1]))
    result.append(Row(path, leaf.shape, place, _stored(leaf.shape, place)))
  return result


def _stored(shape: tuple[int, ...], place: Place) -> tuple[int, ...]:
  if place.flat:
    stored = [math.prod(shape)]
  elif place.inputs:
    stored = [
      math.prod(shape[: place.inputs]),
      math.prod(shape[place.inputs :]),
    ]
  else:
    stored = list(shape)
  if place.transposed:
    stored.reverse()
  stored[-1] *= place.part[1]
  return tuple(stored)


def check(rows: Iterable[Row], shapes: Mapping[str, tuple[int, ...]]) -> None:
  """Checks that there is a tensor for each row, and nothing else.

  Raises:
    ValueError: tensors are missing, unexpected or of another shape. One line
      names the first and says how many there are.
  """
  want = {row.place.name: row.stored for row in rows}
  wrong = [f'{n} is missing' for n in want if n not in shapes]
  wrong += [f'{n} is not expected' for n in shapes if n not in want]
  wrong += [
    f'{n} is {list(shapes[n])}, where the config says {list(want[n])}'
    for n in want
    if n in shapes and shapes[n] != want[n]
  ]
  if wrong:
    more = f' (and {len(wrong) - 1} more)' if len(wrong) > 1 else ''
    raise ValueError(f'tensor {wrong[0]}{more}')


def read_params(
  rows: Iterable[Row], read: Callable[[str], np.ndarray]
) -> types.Params:
  """Reads each tensor once, and returns our parameters in float32."""
  params: dict[str, Any] = {}
  by_name = operator.attrgetter('place.name')
  for name, parts in itertools.groupby(sorted(rows, key=by_name), by_name):
    whole = read(name)
    for row in parts:
      n, of = row.place.part
      x = np.split(whole, of, axis=-1)[n]
      x = (x.T if row.place.transposed else x).reshape(row.shape)
      *folders, leaf = row.path.split('/')
      here = params
      for folder in folders:
        here = here.setdefault(folder, {})
      here[leaf] = np.ascontiguousarray(x, np.float32)
  return params


def to_tensors(
  rows: Iterable[Row], params: types.Params
) -> dict[str, np.ndarray]:
  """Returns the tensors that hold our parameters, by name, in float32."""
  leaves = dict(tree.paths(params))
  parts: dict[str, list[np.ndarray]] = {}
  for row in sorted(rows, key=lambda row: row.place.part):
    stored = list(row.stored)
    stored[-1] //= row.place.part[1]
    if row.place.transposed:
      stored.reverse()
    x = np.asarray(leaves[row.path], np.float32).reshape(stored)
    parts.setdefault(row.place.name, []).append(
      x.T if row.place.transposed else x
    )
  return {
    name: np.ascontiguousarray(
      those[0] if len(those) == 1 else np.concatenate(those, axis=-1)
    )
    for name, those in parts.items()
  }


def unstacked(params: types.Params) -> types.Params:
  """Takes blocks apart that `scan` has stacked, on both sides of a model."""
  params = stack.unstack_params(params)
  return {
    key: unstacked(value) if isinstance(value, dict) else value
    for key, value in params.items()
  }
