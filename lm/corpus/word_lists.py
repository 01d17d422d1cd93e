"""Finds the words of lists in texts; the lists are files of one entry a line.

An entry is one word or several in a row, in any case. A Chinese character is a
word, so that an entry of Chinese is found within a sentence; and since
punctuation is no word, it is found with marks between its characters, by which
people evade such lists. Lines that begin with # are comments.
"""

from collections.abc import Mapping
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm.corpus import texts


class Found(NamedTuple):
  """Where the entries of one list are in a text.

  Attributes:
    at: places of their first words, ascending.
    lengths: the words of each; no two have a word in common.
  """

  at: list[int]
  lengths: list[int]


class Lists:
  """Lists of words by name.

  Attributes:
    digests: sha256 of each file, by name of the list.
  """

  def __init__(self, paths: Mapping[str, str]):
    """Reads the lists.

    Args:
      paths: of the files, by name of the list.

    Raises:
      ValueError: for a file that is no UTF-8, has no entry, or has one without
        a word.
      FileNotFoundError: if one is missing.
    """
    self.digests: dict[str, str] = {}
    # What follows a first word, by its hash: (hashes of the rest, list).
    self._rest: dict[int, list[tuple[list[int], str]]] = {}
    for name in sorted(paths):
      raw = Path(paths[name]).read_bytes()
      self.digests[name] = hashlib.sha256(raw).hexdigest()
      for first, *rest in _entries(paths[name], raw):
        self._rest.setdefault(first, []).append((rest, name))
    for found in self._rest.values():
      found.sort(key=lambda x: -len(x[0]))  # the longest entry counts
    self._first = np.array(sorted(self._rest), np.uint64)

  def find(self, text: texts.Text) -> dict[str, Found]:
    """Finds the entries of each list, from left to right."""
    found = {name: Found([], []) for name in self.digests}
    hashes = text.hashes
    if not len(self._first):
      return found
    nearest = np.searchsorted(self._first, hashes)
    nearest[nearest == len(self._first)] = 0
    ends = dict.fromkeys(self.digests, 0)
    for i in (self._first[nearest] == hashes).nonzero()[0].tolist():
      for rest, name in self._rest[int(hashes[i])]:
        end = i + 1 + len(rest)
        if i >= ends[name] and hashes[i + 1 : end].tolist() == rest:
          found[name].at.append(i)
          found[name].lengths.append(end - i)
          ends[name] = end
    return found


def _entries(path: str, raw: bytes) -> list[list[int]]:
  """Reads the hashes of the words of each entry."""
  try:
    lines = raw.decode('utf-8-sig').splitlines()
  except UnicodeDecodeError as error:
    raise ValueError(f'{path}: is no UTF-8; convert it') from error
  entries = []
  for number, line in enumerate(lines, 1):
    if not line.strip() or line.startswith('#'):
      continue
    entry = texts.Text(line).hashes.tolist()
    if not entry:
      raise ValueError(f'{path}: line {number} has no word; take it out')
    entries.append(entry)
  if not entries:
    raise ValueError(f'{path}: has no entry; write one a line')
  return entries
