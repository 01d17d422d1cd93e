"""Counts words of lists, two stages of the data factory.

They say what is in a corpus. A list knows no context: the one that C4 was
filtered by dropped texts by and about minorities more often than others (Dodge
et al. 2021, arXiv:2104.08758). So documents are dropped only where the config
gives a bound.

  {'fn': 'lm.corpus.toxicity:make',
   'lists': {'insults': 'configs/data/words/insults_en.txt'},
   'most': {'insults': 0.05}}
"""

from collections.abc import Mapping, Sequence
import re

import numpy as np

from lm.corpus import stages, texts, word_lists


def make(
  lists: Mapping[str, str], most: Mapping[str, float] | None = None
) -> stages.Stage:
  """Makes a stage that counts the words of lists, as 'toxicity.<list>'.

  Args:
    lists: paths of files by name of the list, see `lm.corpus.word_lists`.
    most: the largest share of a text's words, or of its characters if it is
      Chinese, that may be in a list, by name. A text above it is dropped with
      'toxicity.<list>'. Lists that are not named here drop nothing.

  Raises:
    ValueError: for a list that cannot be read, a bad name, or a bound of a list
      that is not there.
  """
  most = dict(most or {})
  _check_names('lists', lists)
  for name, share in most.items():
    if name not in lists:
      raise ValueError(f'most: {name!r} is none of lists: {sorted(lists)}')
    if not 0 <= share <= 1:
      raise ValueError(f'most: {name}={share} must be a share, 0 to 1')
  words = word_lists.Lists(lists)

  def count(x: stages.Document) -> stages.Document:
    view = texts.view(x.text)
    found = words.find(view)
    counts = [(f'toxicity.{k}', len(v.at)) for k, v in found.items() if v.at]
    x = x._replace(counts=(*x.counts, *counts))
    for name in sorted(most):
      share = sum(found[name].lengths) / max(len(view.hashes), 1)
      if share > most[name]:
        return x._replace(reason=f'toxicity.{name}', value=share)
    return x

  return stages.Stage(
    'toxicity',
    1,
    {'lists': words.digests, 'most': most},
    map=stages.each(count),
    data=_files(lists),
    loses=bool(most),
  )


def bias(
  groups: Mapping[str, str], traits: Mapping[str, str], window: int = 10
) -> stages.Stage:
  """Makes a stage that counts which traits stand near the words for groups.

  It counts each list as 'bias.<list>', and as 'bias.<group>.<trait>' the pairs
  of their words that have at most `window - 1` words between them. It drops
  nothing. Bordia and Bowman 2019 (arXiv:1904.03035) make their bias score of
  such counts, in a window of 10 words too.

  Args:
    groups: paths of lists by name, such as 'women' and 'men'.
    traits: the same, such as 'career' and 'family'.
    window: the largest distance in words, or in Chinese characters.

  Raises:
    ValueError: for a list that cannot be read, a bad name, one name for a group
      and a trait, or a window of no words.
  """
  _check_names('groups', groups)
  _check_names('traits', traits)
  if both := sorted(set(groups) & set(traits)):
    raise ValueError(f'{both[0]!r} is in groups and in traits; rename one')
  if window < 1:
    raise ValueError(f'window={window} must be at least 1')
  lists = word_lists.Lists({**groups, **traits})

  def count(x: stages.Document) -> stages.Document:
    found = lists.find(texts.view(x.text))
    counts = [(f'bias.{k}', len(v.at)) for k, v in found.items() if v.at]
    for group in sorted(groups):
      for trait in sorted(traits):
        pairs = _near(found[group].at, found[trait].at, window)
        if pairs:
          counts.append((f'bias.{group}.{trait}', pairs))
    return x._replace(counts=(*x.counts, *counts))

  return stages.Stage(
    'bias',
    1,
    {
      'lists': lists.digests,
      'groups': sorted(groups),
      'traits': sorted(traits),
      'window': window,
    },
    map=stages.each(count),
    data=_files(groups) + _files(traits),
    loses=False,
  )


def _near(a: Sequence[int], b: Sequence[int], window: int) -> int:
  """Counts the pairs of places, of two ascending lists, that are near."""
  if not a or not b:
    return 0
  places = np.array(b)
  first = np.searchsorted(a, places - window, 'left')
  last = np.searchsorted(a, places + window, 'right')
  return int((last - first).sum())


def _check_names(key: str, lists: Mapping[str, str]) -> None:
  if not lists:
    raise ValueError(f'{key}: names no list')
  for name in lists:
    if not re.fullmatch(r'[a-z0-9_]+', name):
      raise ValueError(
        f'{key}: the name {name!r} must be of small letters, digits and _'
      )


def _files(lists: Mapping[str, str]) -> tuple[str, ...]:
  return tuple(lists[name] for name in sorted(lists))
