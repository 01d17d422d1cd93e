"""Which parameters an optimizer treats how, decided by their paths."""

from collections.abc import Callable, Iterable
import itertools
import re
from typing import Any

from lm import tree, types

# All but norm scales and biases: those have no scale-free direction to lose,
# and pulling them to zero only fights the data.
DECAYED = r'^(?!.*(scale|bias)$)'

# Biases of routers, which follow loads and not the loss: `layers.moe`.
BALANCING = r'(^|/)router_bias$'

# (path regex, reduction dimensions, output dimensions), first match wins: the
# hidden ones of `Model.matrices`. Whatever leads (scanned layers, experts) is a
# batch of independent matrices.
Matrices = Iterable[tuple[str, int, int]]

_BLOCK = re.compile(r'^(.*/)?layers(?:_(\d+)|/(\d+))/')


def compile_regex(key: str, regex: str) -> re.Pattern[str]:
  """Compiles a regex of a config.

  Raises:
    ValueError: it is not a regular expression.
  """
  try:
    return re.compile(regex)
  except re.error as e:
    raise ValueError(f'optim.{key}={regex!r}: not a regex: {e}') from None


def matching(key: str, regex: str) -> Callable[[types.Params], Any]:
  """Makes `params -> tree of bool`: whether `regex` is found in the path.

  Args:
    key: the config key that an error names.
    regex: searched in paths like `layers_0/attention/q`.

  Raises:
    ValueError: a bad regex; or, when called, one that matches no parameter.
  """
  pattern = compile_regex(key, regex)

  def mask(params: types.Params) -> Any:
    chosen = tree.map_paths(lambda path, _: bool(pattern.search(path)), params)
    if not any(leaf for _, leaf in tree.paths(chosen)):
      raise ValueError(f'optim.{key}={regex!r}: matches no parameter, fix it')
    return chosen

  return mask


def dimensions(
  path: str, matrices: Matrices
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
  """Finds (reduction, output) dimensions of a matrix; None for other leaves.

  They are negative: counted from the right.
  """
  for regex, reduction, output in matrices:
    if re.search(regex, path):
      last = -reduction - output
      return tuple(range(last, -output)), tuple(range(-output, 0))
  return None


def multiplied(updates: Any, factor: Callable[[str], float]) -> Any:
  """Multiplies updates by factors of their paths."""

  def one(path: str, update: Any) -> Any:
    by = factor(path)
    return update if by == 1 else update * by

  return tree.map_paths(one, updates)


def is_balancing(path: str) -> bool:
  """Tells whether a leaf is a bias that balances the loads of experts."""
  return bool(re.search(BALANCING, path))


def is_stacked(path: str) -> bool:
  """Tells whether a leaf leads with the depth dimension of scanned layers."""
  return 'layers' in path.split('/')


def blocks(params: types.Params) -> dict[str, range]:
  """Numbers the blocks of every leaf, by path: one, those of a stack, or none.

  A stack holds the repetitions of a pattern, and comes after the unrolled
  blocks whose numbers begin with 0: see `layers.stack.layout`.
  """
  leaves = tree.paths(params)
  found = {path: _BLOCK.search(path) for path, _ in leaves}
  # What is where a stack is: numbers of unrolled blocks, places in the pattern.
  alone: dict[str, set[int]] = {}
  places: dict[str, set[int]] = {}
  for match in found.values():
    if match is not None:
      scope = match[1] or ''
      where = alone if match[2] else places
      where.setdefault(scope, set()).add(int(match[2] or match[3]))
  numbers = {}
  for path, leaf in leaves:
    match = found[path]
    if match is None:
      numbers[path] = range(0)
    elif match[2]:
      numbers[path] = range(int(match[2]), int(match[2]) + 1)
    else:
      scope = match[1] or ''
      before, period = alone.get(scope, ()), len(places[scope])
      first = next(n for n in itertools.count() if n not in before)
      start = first + int(match[3])
      numbers[path] = range(start, start + leaf.shape[0] * period, period)
  return numbers


def is_block(path: str) -> bool:
  """Tells whether a leaf is in a block, of a stack or alone."""
  return bool(_BLOCK.search(path))


def is_embedding(path: str) -> bool:
  """Tells whether a leaf is of what feeds the first block, or all alike."""
  return bool(
    re.search(r'(^|/)(embed|embed_norm|relative|value_embed_\w+)/', path)
  )
