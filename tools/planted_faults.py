"""Makes junk, canaries, and texts of the items of evaluation sets."""

from collections.abc import Iterator
import json
from pathlib import Path
from random import Random
from typing import Any

from tools import planted_texts

EVAL_FORMS = ('verbatim', 'upper', 'unpunctuated', 'wrapped', 'shuffled')
JUNK_FORMS = (
  'short',
  'symbols',
  'repeated',
  'numbers',
  'letters',
  'menu',
  'ellipses',
)


def read_items(path: Path) -> Iterator[dict[str, Any]]:
  """Yields the items of an evaluation set.

  Raises:
    ValueError: a line is no JSON object.
  """
  with planted_texts.open_text(path) as file:
    for row, line in enumerate(file):
      try:
        fields = {k: v for k, v in json.loads(line).items() if k != 'id'}
      except (ValueError, AttributeError) as e:
        raise ValueError(
          f'{path}, line {row + 1}: --evals takes JSON lines, one object a line'
        ) from e
      choices = fields.pop('choices', [])
      found = [x for x in fields.values() if isinstance(x, str)]
      # A subject or a tag is no part of the item.
      found = [x for x in found if len(x) > 20] or found
      yield {
        'file': str(path),
        'row': row,
        'texts': found,
        'choices': [str(x) for x in choices],
      }


def secret(random: Random) -> str:
  """Draws a sentence that occurs nowhere else."""

  def word() -> str:
    return ''.join(
      random.choice('bdfgklmnprstvz') + random.choice('aeiou')
      for _ in range(random.choice((2, 3)))
    )

  name = f'{word().capitalize()} {word().capitalize()}'
  return f'The secret words of {name} are {" ".join(word() for _ in range(6))}.'


def junk(form: str, text: str, random: Random) -> str:
  """Makes a document that no one wants to train on.

  Args:
    form: of `JUNK_FORMS`.
    text: that some forms take pieces of.
    random: what is drawn from.
  """

  def letters() -> str:
    return ''.join(
      random.choices('abcdefghijklmnopqrstuvwxyz', k=random.randrange(2, 18))
    )

  size = random.randrange(40, 120)
  words = text.split()
  if form == 'short':
    is_spaced = len(words) > 30
    return (
      ' '.join(words[: random.randrange(1, 30)]) if is_spaced else text[:30]
    )
  if form == 'symbols':
    return '# ... ' * size + text[:300]
  if form == 'repeated':
    return '\n'.join([text[:80].replace('\n', ' ')] * size)
  if form == 'numbers':
    return '\n'.join(
      '\t'.join(str(random.randrange(10**5)) for _ in range(8))
      for _ in range(size)
    )
  if form == 'letters':
    return ' '.join(letters() for _ in range(4 * size))
  if form == 'menu':
    return '\n'.join(
      random.choice(('Home', 'Log in', 'Share this', 'Next >', 'Terms'))
      for _ in range(size)
    )
  assert form == 'ellipses', form
  return '\n'.join(f'{x[:40]}...' for x in text.split('\n') for _ in range(3))


def rendered(item: dict[str, Any], form: str, random: Random) -> str:
  """Writes an item of an evaluation set as text.

  Args:
    item: {'texts', 'choices'}.
    form: of `EVAL_FORMS`.
    random: what is drawn from.
  """
  choices = list(item['choices'])
  if form == 'shuffled':
    random.shuffle(choices)
  text = '\n'.join([*item['texts'], *choices])
  if form == 'upper':
    return text.upper()
  if form == 'unpunctuated':
    return ''.join(x for x in text if x.isalnum() or x.isspace())
  if form == 'wrapped':
    return planted_texts.wrap(text, 40)
  return text
