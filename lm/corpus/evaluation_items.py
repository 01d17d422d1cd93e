"""Reads the items of evaluation sets, whose texts training must not see.

An item has the id that its evaluator gives it (`lm.evals`), so that a score can
leave out the items that were found in a corpus.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import re
from typing import Any, NamedTuple
import unicodedata

from lm.data import byte_files, names
from lm.data.finetuning import fields, record_files, squad_files
from lm.data.finetuning import records as record_lib

_KEYS = ('path', 'reader', 'fields', 'options', 'id')
_PLACE = re.compile(r'\{([^{}]*)\}')


class Item(NamedTuple):
  """An item of an evaluation set.

  Attributes:
    id: the same as that of the evaluator's item.
    texts: what is asked, such as a passage and a question.
    options: texts of which one is chosen.
  """

  id: str
  texts: tuple[str, ...]
  options: tuple[str, ...] = ()


class File(NamedTuple):
  """The items of a file.

  Attributes:
    path: of the file.
    sha256: of its bytes, packed as they are.
    items: in its order.
  """

  path: str
  sha256: str
  items: tuple[Item, ...]


class _Form(NamedTuple):
  """Where the parts of an item stand in a row.

  Attributes:
    texts: names of fields, see `Item`.
    options: names of fields, each of which holds a text or a list of texts.
    id: with names of fields in braces; {n} is the number of the row, from 0 on.
  """

  texts: tuple[str, ...]
  options: tuple[str, ...] = ()
  id: str = ''


_QUESTION = _Form(('question',), ('choices',), '{id}')
_SENTENCES = ('stereotype', 'anti_stereotype', 'unrelated')
_FORMS = {
  'arc_easy': _QUESTION,
  'arc_challenge': _QUESTION,
  'basic_arithmetic': _Form(('question',), ('choices.text',), '{id}'),
  'bbq': _Form(
    ('context', 'question'),
    ('ans0', 'ans1', 'ans2'),
    '{category}/{example_id}',
  ),
  'blimp': _Form((), ('sentence_good', 'sentence_bad'), '{UID}/{pairID}'),
  'boolq': _Form(('passage', 'question')),
  'cmmlu': _QUESTION._replace(id='{subject}/{n}'),
  'commonsense_qa': _QUESTION,
  'copa': _Form(('premise',), ('choice1', 'choice2'), '{idx}'),
  'crows_pairs': _Form((), ('sent_more', 'sent_less'), '{}'),
  'gsm8k': _Form(('question',)),
  'hellaswag': _QUESTION._replace(texts=('context',)),
  'lambada_openai': _Form(('text',)),
  'mmlu': _QUESTION._replace(id='{subject}/{n}'),
  'nq_open': _Form(('question',)),
  'openbookqa': _QUESTION,
  'piqa': _QUESTION,
  'sciq': _QUESTION._replace(texts=('support', 'question')),
  'stereoset': _Form((), _SENTENCES, '{id}'),
  'truthfulqa': _Form(('Question',)),
}
_PASSAGES = ('squad', 'cmrc2018', 'drcd')


def check(name: str, settings: Mapping[str, Any]) -> None:
  """Checks the settings of a set, and that its first item can be read.

  Args:
    name: of the set.
    settings: see `read`.

  Raises:
    ValueError: a setting is wrong, or there is no file or no item of the set.
  """
  where = f'sets.{name}'
  if not re.fullmatch(r'[a-z][a-z0-9_]*', name):
    raise ValueError(f'{where}: use small letters, digits and _ for a name')
  if unknown := sorted({*settings} - {*_KEYS}):
    raise ValueError(
      f'{where}.{unknown[0]}: no such setting; use {", ".join(_KEYS)}'
    )
  if not isinstance(settings.get('path'), str):
    raise ValueError(f'{where}.path: name the file of the set, or a pattern')
  known = (*_FORMS, 'winogrande', *_PASSAGES)
  if 'fields' not in settings and settings.get('reader', name) not in known:
    raise ValueError(
      f'{where}: its fields are unknown; give fields, or as reader the name of '
      'a set that lm.corpus.evaluation_items knows, such as arc_easy'
    )
  if next(_items(name, settings, paths(settings)[0], 0), None) is None:
    raise ValueError(f'{where}: {names.short(settings["path"])} has no item')


def paths(settings: Mapping[str, Any]) -> list[str]:
  """Lists the files of a set, sorted.

  Raises:
    ValueError: there is none.
  """
  found = byte_files.matching(settings['path'])
  if not found:
    raise ValueError(
      f'task {names.short(settings["path"])}: no such file; check the path'
    )
  return found


def read(name: str, settings: Mapping[str, Any]) -> list[File]:
  """Reads the files of a set.

  Args:
    name: of the set.
    settings: 'path' of a file, or a pattern; and 'reader', the name of a set
      that this module knows, by default `name`; or else 'fields', the names of
      the fields with the texts, 'options', those with choices, and 'id', such
      as 'mine/{id}', by default the name of the set and the number of the row.

  Raises:
    ValueError: a file is missing, damaged or of another set.
  """
  files, count = [], 0
  for path in paths(settings):
    items = tuple(_items(name, settings, path, count))
    sha256 = record_files.sha256_of([path])
    files.append(File(path, sha256, items))
    count += len(items)
  return files


def _items(
  name: str, settings: Mapping[str, Any], path: str, first: int
) -> Iterator[Item]:
  """Yields the items of a file; `first` is the number of its first row."""
  reader = settings.get('reader', name)
  if 'fields' not in settings and reader in _PASSAGES:
    yield from _passages(reader, path)
    return
  for n, row in enumerate(record_lib.rows(path, reader), first):
    with record_lib.checked(path, reader, row.number):
      yield _reader(name, settings)(row.value, n)


def _reader(
  name: str, settings: Mapping[str, Any]
) -> Callable[[Any, int], Item]:
  """Makes the function that makes an item of (row, number)."""
  reader = settings.get('reader', name)
  if 'fields' in settings:
    form = _Form(
      tuple(settings['fields']),
      tuple(settings.get('options', ())),
      settings.get('id', f'{name}/{{n}}'),
    )
  elif reader == 'winogrande':
    return _winogrande
  else:
    form = _FORMS[reader]
    form = form._replace(id=f'{reader}/{form.id or "{n}"}')
  return lambda row, n: Item(
    _PLACE.sub(lambda x: _label(row, x[1], n), form.id),
    _texts(row, form.texts),
    _texts(row, form.options),
  )


def _label(row: Any, key: str, n: int) -> str:
  return str(n) if key == 'n' else fields.label(row, key)


def _texts(row: Any, keys: Sequence[str]) -> tuple[str, ...]:
  """Reads the texts of fields, in the Unicode form of a cleaned corpus."""
  return tuple(
    unicodedata.normalize('NFC', text)
    for key in keys
    for text in fields.texts(row, key)
    if text
  )


def _winogrande(row: Any, n: int) -> Item:
  """Fills the gap of a sentence, since no text has the gap itself."""
  (sentence,) = _texts(row, ('sentence',))
  filled = (sentence.replace('_', x) for x in _texts(row, ('choices',)))
  return Item(f'winogrande/{fields.label(row, "id")}', (), tuple(filled))


def _passages(name: str, path: str) -> Iterator[Item]:
  """Yields questions about passages, each with its passage."""
  data = record_files.json_value(path, name)
  with record_lib.checked(path, name):
    for row in squad_files.nested(data):
      yield Item(
        f'{name}/{fields.label(row.question, "id")}',
        _texts(row.passage, ('context',)) + _texts(row.question, ('question',)),
      )
