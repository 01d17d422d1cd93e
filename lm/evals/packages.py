"""Imports the packages of metrics, which need not be installed.

The imports themselves are statements in the functions that need them, so that
`fingerprint` sees which packages stand behind an evaluator.
"""

from collections.abc import Iterator
import contextlib

from lm import errors


@contextlib.contextmanager
def required(name: str) -> Iterator[None]:
  """Turns a failed import into one line that says how to install a package.

  Args:
    name: of the package.

  Raises:
    ValueError: the package is missing.
  """
  try:
    yield
  except ImportError as error:
    raise ValueError(
      f'this evaluator needs {name}: {errors.install("tasks")}'
    ) from error
