"""Errors that end a run with a documented exit code, in one line each."""

import os
import re

_LONGEST = 200
_FRONT = 125


class Failure(RuntimeError):
  """An error whose text is one line that names the place, cause and fix.

  Attributes:
    exit_code: that of a program which ends because of the error.
  """

  exit_code = 1

  def __init__(self, text: str):
    """Makes one line of at most 200 characters of the text.

    Blanks are joined, long paths lose their beginning, and a text that is still
    too long loses its middle.
    """
    text = ' '.join(text.split())
    if len(text) > _LONGEST:  # the last parts of a path tell enough
      text = re.sub(r'/\S{12,}((?:/[^\s/]+){3})', r'...\1', text)
    if len(text) > _LONGEST:
      # The place is at the beginning of a line, and the fix at its end.
      text = f'{text[:_FRONT]} ... {text[_FRONT + 5 - _LONGEST :]}'
    super().__init__(text)


class Missing(Failure):
  """There is no checkpoint where one was asked for."""

  exit_code = 2


class Remote(Failure):
  """A work directory is an address, or a path that cannot be used."""

  exit_code = 2


class Mismatch(Failure):
  """A checkpoint is sound but is not what this configuration describes.

  Attributes:
    lines: every difference, one leaf a line.
  """

  exit_code = 2

  def __init__(self, text: str, lines: list[str]):
    """Takes the text, which has room for a few of the differences."""
    super().__init__(text)
    self.lines = lines


class Locked(Failure):
  """Another process holds this work directory, or has taken it over."""

  exit_code = 3


class Damaged(Failure):
  """A checkpoint's bytes are not those that were written."""

  exit_code = 4


class Gone(Failure):
  """A checkpoint was deleted by its owner while a reader looked at it."""

  exit_code = 4


class Storage(Failure):
  """The disk is full, too small, read only or does not answer."""

  exit_code = 5


class NotFinite(Failure):
  """Numbers are nan or infinite, and nothing can be gained by going on."""

  exit_code = 6


def install(extra: str) -> str:
  """Spells the command that installs what an extra of this package needs.

  It is run in the checkout and not by a name from the package index, where `lm`
  is the name of another package.

  Args:
    extra: a key of `project.optional-dependencies` in pyproject.toml.
  """
  return f"pip install -e '.[{extra}]'"


def refusal(error: BaseException) -> str | None:
  """Says what the operating system has refused; None if it refused nothing."""
  if isinstance(error, OSError):
    return (
      f'{error.filename}: {error.strerror}' if error.filename else str(error)
    )
  # Orbax's tensor store reports the system's errors in the text of another.
  if match := re.search(r"os_error_code='(\d+)'", str(error)):
    return os.strerror(int(match[1]))
  return None
