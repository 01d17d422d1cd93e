"""Which parameters an optimizer treats how, decided by their paths."""

from collections.abc import Callable, Iterable, Sequence
import re
from typing import Any

from lm import tree, types

# All but norm scales and biases: those have no scale-free direction to lose,
# and pulling them to zero only fights the data.
DECAYED = r'^(?!.*(scale|bias)$)'

# Biases of routers, which follow loads and not the loss: `layers.moe`.
BALANCING = r'(^|/)router_bias$'

# (path regex, reduction dimensions, output dimensions), first match wins: how
# many of the last dimensions are summed over in a product, and how many after
# them come out. Whatever leads (scanned layers, experts) is a batch of
# independent matrices.
MATRICES = (
  (r'attention/[qkv]$', 1, 2),
  (r'attention/o$', 2, 1),
  (r'(mlp|experts|shared)/(up|gate|down)$', 1, 1),
)

Matrices = Iterable[tuple[str, int, int]]


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


def is_balancing(path: str) -> bool:
  """Tells whether a leaf is a bias that balances the loads of experts."""
  return bool(re.search(BALANCING, path))


def is_stacked(path: str) -> bool:
  """Tells whether a leaf leads with the depth dimension of scanned layers."""
  return 'layers' in path.split('/')


def blocks(path: str, shape: Sequence[int]) -> range:
  """Numbers the blocks that a leaf is of: one, all of a stack, or none."""
  found = re.search(r'(^|/)layers(_(\d+))?/', path)
  if found is None:
    return range(0)
  if found[3] is None:
    return range(shape[0])
  return range(int(found[3]), int(found[3]) + 1)


def is_embedding(path: str) -> bool:
  """Tells whether a leaf is of what feeds the first block, or all alike."""
  return bool(re.search(r'(^|/)(embed|embed_norm|relative)/', path))
