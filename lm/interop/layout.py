"""Where each of our parameters lies in the files of another house.

A table maps our paths, with `layers_{i}` for a block, to places: names of
tensors, and how they are laid out there. It is read in both directions, so that
what is exported after an import is the same in every byte.
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
  """A tensor of theirs that holds a parameter of ours, or a part of it.

  Attributes:
    name: of the tensor, with `{i}` for the number of the block.
    inputs: leading dimensions of ours that a product sums over. They are one
      dimension of theirs, and the others are another; 0: ours is no matrix of
      a product and lies there as it is, or flat where it is a bias.
    turned: theirs is [outputs, inputs], as torch's Linear has it.
    part: `(n, of)`, ours is the n-th of so many along their last dimension.
    flat: theirs has one dimension.
  """

  name: str
  inputs: int = 0
  turned: bool = False
  part: tuple[int, int] = (0, 1)
  flat: bool = False


Table = Mapping[str, Place]


class Row(NamedTuple):
  """A parameter of a model at hand.

  Attributes:
    path: ours.
    shape: ours.
    place: theirs, with the name of the block's own tensor.
    stored: shape of the whole tensor there.
  """

  path: str
  shape: tuple[int, ...]
  place: Place
  stored: tuple[int, ...]


def linear(name: str, inputs: int = 1) -> Place:
  """Makes the place of a kernel of torch's Linear, [outputs, inputs]."""
  return Place(name, inputs, turned=True)


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
    like: parameters, or their shapes; blocks are not stacked by `scan`.

  Raises:
    ValueError: for a parameter that has no place there.
  """
  found = []
  for path, leaf in tree.paths(like):
    block = _BLOCK.search(path)
    place = table.get(_BLOCK.sub('layers_{i}', path))
    if place is None:
      raise ValueError(f'the parameter {path} has no place there')
    place = place._replace(name=place.name.format(i=block and block[1]))
    found.append(Row(path, leaf.shape, place, _stored(leaf.shape, place)))
  return found


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
  if place.turned:
    stored.reverse()
  stored[-1] *= place.part[1]
  return tuple(stored)


def check(found: Iterable[Row], shapes: Mapping[str, tuple[int, ...]]) -> None:
  """Checks that there is a tensor for each row, and nothing else.

  Raises:
    ValueError: one line for the first that is missing, extra or of another
      shape, and how many there are.
  """
  want = {row.place.name: row.stored for row in found}
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


def take(
  found: Iterable[Row], read: Callable[[str], np.ndarray]
) -> types.Params:
  """Reads tensors, each once, as our parameters: a nested dict of float32."""
  params: dict[str, Any] = {}
  by_name = operator.attrgetter('place.name')
  for name, parts in itertools.groupby(sorted(found, key=by_name), by_name):
    whole = read(name)
    for row in parts:
      n, of = row.place.part
      x = np.split(whole, of, axis=-1)[n]
      x = (x.T if row.place.turned else x).reshape(row.shape)
      *folders, leaf = row.path.split('/')
      here = params
      for folder in folders:
        here = here.setdefault(folder, {})
      here[leaf] = np.ascontiguousarray(x, np.float32)
  return params


def give(found: Iterable[Row], params: types.Params) -> dict[str, np.ndarray]:
  """Lays parameters out as their tensors, in float32."""
  leaves = dict(tree.paths(params))
  parts: dict[str, list[np.ndarray]] = {}
  for row in sorted(found, key=lambda row: row.place.part):
    stored = list(row.stored)
    stored[-1] //= row.place.part[1]
    if row.place.turned:
      stored.reverse()
    x = np.asarray(leaves[row.path], np.float32).reshape(stored)
    parts.setdefault(row.place.name, []).append(x.T if row.place.turned else x)
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
