"""Drops documents that break rules of quality, a stage of the data factory.

  {'fn': 'lm.corpus.quality:make', 'rules': {
     'words': {'fn': 'lm.corpus.rules.gopher:words', 'least': 50},
     'mine': {'fn': 'my_package.rules:mine'},
  }}

configs/data/rules.py writes the rules of papers for English, and a set for
Chinese. See `lm.corpus.rules` for what a rule is.
"""

from collections.abc import Mapping
import re
from typing import Any

from lm import config
from lm.corpus import stages, texts


def make(
  rules: Mapping[str, Any],
  languages: tuple[str, ...] = (),
  longest: int | None = 2_000_000,
) -> stages.Stage:
  """Makes the stage. It drops by the first rule, by name, that a text breaks.

  Args:
    rules: specs of rules by the name that the reason code ends with: the rule
      'words' drops with 'quality.words'.
    languages: ISO 639-1 codes of the texts that are looked at; () looks at all.
      A text of unknown language is 'zh' if it looks Chinese, and else ''.
    longest: characters of a text, before its words are counted; above it the
      text is dropped with 'quality.longest'. None sets no bound; words take
      some twenty times the memory of their text.

  Raises:
    ValueError: for a name that is no word, or a spec that is wrong.
  """
  for name in rules:
    if not re.fullmatch(r'[a-z0-9_]+', name) or name == 'longest':
      raise ValueError(
        f'rules: the name {name!r} must be of small letters, digits and _, and '
        "not 'longest', which names the bound"
      )
  full = config.plain(config.fill(rules))
  # By name, so that a config that went through a sorted file gives the same.
  built = [(name, config.build(full[name])) for name in sorted(full)]

  def drop(x: stages.Document) -> stages.Document:
    view = texts.view(x.text)
    if languages and view.language(x.language) not in languages:
      return x
    if longest is not None and len(x.text) > longest:
      value = float(len(x.text))
      return x._replace(reason='quality.longest', value=value)
    for name, rule in built:
      value = rule(view)
      if value is not None:
        return x._replace(reason=f'quality.{name}', value=value)
    return x

  return stages.Stage(
    'quality',
    1,
    {'rules': full, 'languages': list(languages), 'longest': longest},
    map=stages.each(drop),
  )
