"""Checks of a build's config and sources, each an error of one line."""

from collections import Counter
from collections.abc import Mapping, Sequence
import re

from lm import config
from lm.corpus import encode
from lm.data import names


def check_names(c: config.Config) -> None:
  """Checks the names of stages, sources and sides in a config.

  Raises:
    ValueError: one is unknown, or cannot be used.
  """
  for name in c.order:
    if name not in c.stages:
      raise ValueError(
        f'order: {name} is no stage of this config; give some of '
        f'{", ".join(sorted(c.stages))[:120]}'
      )
  for name, source in c.sources.items():
    if not re.fullmatch(r'\w[\w-]*', name):
      raise ValueError(
        f'sources.{names.short(name)}: is the name of a folder, too: use '
        'letters, digits, _ and -'
      )
    if source.get('side') not in (None, *encode.SIDES):
      raise ValueError(
        f'sources.{name}.side={source.side}: unknown; give one of '
        f'{", ".join(encode.SIDES)}, or None'
      )


def check_files(source: str, found: Sequence[str]) -> None:
  """Checks that the index can name the files of a source.

  Raises:
    ValueError: the name of one is not UTF-8.
  """
  for file in found:
    try:
      file.encode()
    except UnicodeEncodeError as e:
      raise ValueError(
        f'sources.{source}: file {names.short(file)}: its name is not UTF-8; '
        'rename it'
      ) from e


def nothing_read(counts: Mapping[str, Counter[str]]) -> str:
  """Says why sources have no documents, by what was counted of each."""
  total: Counter[str] = Counter()
  for x in counts.values():
    total.update(x)
  why = ', '.join(f'{n} {word}' for word, n in total.items())
  return f'input: no documents ({why[:120]}); check it and the field'
