"""Arguments of specs, checked against the annotations of their function."""

import functools
import typing
from typing import Any

from lm.config import hints as hints_lib
from lm.config import messages
from lm.config.messages import ConfigError


def check(name: str, hints: dict[str, Any], arguments: dict[str, Any]) -> None:
  """Checks the values that a spec gives to a function.

  Args:
    name: of the function, for the error.
    hints: the types of its parameters, by name; others take any value.
    arguments: by parameter; a config's values.

  Raises:
    ConfigError: naming the first value of a wrong type, and the right one.
  """
  for key, value in arguments.items():
    hint = hints.get(key, Any)
    if not hints_lib.fits(value, hint):
      raise ConfigError(
        f'{name}: {key}={messages.show(value)} is wrong; must be '
        f'{hints_lib.say(hint)}'
      )


@functools.cache
def hints(fn: Any) -> dict[str, Any]:
  """Finds the types of a function's parameters; {} where nothing names them."""
  try:
    return typing.get_type_hints(fn)
  except (NameError, TypeError):
    # Names that only a type checker sees, or a callable without annotations.
    return {}
