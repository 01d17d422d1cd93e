"""Changes evaluation items as the web does, to measure how well they are found.

Each perturbation makes a text of an item; `inject` puts that into another text.
"""

from collections.abc import Callable, Mapping, Sequence
import re
import textwrap
from types import MappingProxyType

import numpy as np

from lm.corpus import evaluation_items, item_grams

_COLUMNS = 40  # of re-wrapped text
_CHINESE_LINE = re.compile(r'([\u3400-\u9fff]{17})')
_HOST, _LONG_HOST = 2_000, 20_000  # characters around an item


def _verbatim(item: evaluation_items.Item, rng: np.random.Generator) -> str:
  return '\n'.join(item.texts + item.options)


def _rewrapped(item: evaluation_items.Item, rng: np.random.Generator) -> str:
  lines = textwrap.wrap(_verbatim(item, rng), _COLUMNS)
  return '\n'.join(_CHINESE_LINE.sub(r'\1\n', line) for line in lines)


def _lower_case(item: evaluation_items.Item, rng: np.random.Generator) -> str:
  return _verbatim(item, rng).lower()


def _upper_case(item: evaluation_items.Item, rng: np.random.Generator) -> str:
  return _verbatim(item, rng).upper()


def _without_punctuation(
  item: evaluation_items.Item, rng: np.random.Generator
) -> str:
  return item_grams.without_punctuation(_verbatim(item, rng))


def _shuffled_options(
  item: evaluation_items.Item, rng: np.random.Generator
) -> str:
  options = [item.options[n] for n in rng.permutation(len(item.options))]
  return '\n'.join([*item.texts, *options])


PERTURBATIONS: Mapping[
  str, Callable[[evaluation_items.Item, np.random.Generator], str]
] = MappingProxyType(
  {
    'verbatim': _verbatim,
    'rewrapped': _rewrapped,
    'lower_case': _lower_case,
    'upper_case': _upper_case,
    'without_punctuation': _without_punctuation,
    'shuffled_options': _shuffled_options,
    'diluted': _verbatim,
  }
)


def applies(name: str, options: int) -> bool:
  """Tells whether a perturbation changes an item with so many options."""
  return name != 'shuffled_options' or options > 1


def inject(
  name: str,
  item: evaluation_items.Item,
  hosts: Sequence[str],
  rng: np.random.Generator,
) -> str:
  """Puts a perturbed item into the middle of other text.

  Args:
    name: of the perturbation; 'diluted' is an item that is left as it is in
      20,000 characters. Other texts have 2,000.
    item: to be put there.
    hosts: texts around it, which are joined until there is enough.
    rng: draws what is random.
  """
  size = _LONG_HOST if name == 'diluted' else _HOST
  first, around = int(rng.integers(len(hosts))), ''
  for n in range(len(hosts)):
    if len(around) >= size:
      break
    around += f'{hosts[(first + n) % len(hosts)]}\n'
  around = around[:size]
  half = len(around) // 2
  text = PERTURBATIONS[name](item, rng)
  return f'{around[:half]}\n{text}\n{around[half:]}'
