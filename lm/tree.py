"""Trees of arrays as paths, for regular expressions and readable messages."""

from collections.abc import Callable
from typing import Any

import jax


def path_string(path: tuple[Any, ...]) -> str:
  """Joins a jax key path with slashes: `params/layers_0/attention/q`."""
  return '/'.join(
    str(getattr(k, 'name', getattr(k, 'key', getattr(k, 'idx', k))))
    for k in path
  )


def paths(tree: Any) -> list[tuple[str, Any]]:
  """Lists `(path, leaf)` for all leaves, in the order of jax."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return [(path_string(path), leaf) for path, leaf in leaves]


def map_paths(
  fn: Callable[..., Any],
  tree: Any,
  *rest: Any,
  is_leaf: Callable[[Any], bool] | None = None,
) -> Any:
  """Maps `fn(path, leaf, *other_leaves)` over a tree."""
  return jax.tree_util.tree_map_with_path(
    lambda path, *leaves: fn(path_string(path), *leaves),
    tree,
    *rest,
    is_leaf=is_leaf,
  )


def shapes(tree: Any) -> Any:
  """Returns the shape and dtype of each leaf, without its value."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def count(tree: Any) -> int:
  """Counts the elements of all leaves."""
  return sum(leaf.size for _, leaf in paths(tree))


def diff(have: Any, want: Any) -> list[str]:
  """Lists the differences between two trees, one line for each leaf.

  It compares paths, shapes and dtypes, not values.

  Args:
    have: a tree of arrays or shapes.
    want: the tree that is expected.
  """
  a, b = dict(paths(have)), dict(paths(want))
  lines = [f'{path}: missing' for path in b if path not in a]
  lines += [f'{path}: not expected' for path in a if path not in b]
  for path in a.keys() & b.keys():
    x, y = a[path], b[path]
    if x.shape != y.shape or x.dtype != y.dtype:
      lines.append(f'{path}: {x.dtype}{x.shape}, expected {y.dtype}{y.shape}')
  return sorted(lines)
