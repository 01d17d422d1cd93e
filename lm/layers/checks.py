"""Checks of settings that parts and models share."""

from collections.abc import Iterable

DTYPES = ('float32', 'bfloat16')


def check_choices(**choices: tuple[str, Iterable[str]]) -> None:
  """Checks `name=(value, known values)`.

  Raises:
    ValueError: for a value that is not known.
  """
  for name, (value, known) in choices.items():
    if value not in known:
      raise ValueError(f'{name}={value!r} is not one of {", ".join(known)}')


def check_counts(**counts: int) -> None:
  """Checks that counts and sizes are at least 1.

  Raises:
    ValueError: for one that is not.
  """
  for name, value in counts.items():
    if value < 1:
      raise ValueError(f'{name}={value} must be at least 1')


def check_above_zero(**numbers: float | None) -> None:
  """Checks factors, bounds and divisors, of which 0 leaves nothing.

  Args:
    **numbers: by the setting's name; None says that there is none.

  Raises:
    ValueError: for one that is not above 0.
  """
  for name, value in numbers.items():
    if value is not None and not value > 0:
      raise ValueError(f'{name}={value} must be above 0')


def check_rates(**rates: float) -> None:
  """Checks that rates lie in [0, 1).

  Raises:
    ValueError: for one that does not.
  """
  for name, value in rates.items():
    if not 0 <= value < 1:
      raise ValueError(f'{name}={value} must be below 1')


def head_width(width: int, heads: int, given: int | None) -> int:
  """Returns H: what is given, or D / N.

  Raises:
    ValueError: D is not a multiple of N.
  """
  if given is None and width % heads:
    raise ValueError(
      f'width={width} is not a multiple of heads={heads}: set head_width'
    )
  return given or width // heads
