"""Makes the names inside errors short and printable, whatever the path is."""

import os

from lm.runtime import logins

_WIDTH = 60  # leaves room for a cause and a fix within 200 characters


def short(name: str | os.PathLike[str]) -> str:
  """Shortens a name from the left, because the end of a path says the most.

  A login in an address is left out.
  """
  text = ''.join(c if c.isprintable() else '?' for c in os.fspath(name))
  text = logins.hidden(text)
  return text if len(text) <= _WIDTH else f'...{text[3 - _WIDTH :]}'
