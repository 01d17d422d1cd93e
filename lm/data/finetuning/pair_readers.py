"""Readers of data sets from which a model learns to write, or to prefer.

They read pairs, conversations and preferences. See `lm.data.finetuning.readers`
for what a reader is.
"""

from collections.abc import Sequence

from lm.data import names
from lm.data.finetuning import record_files
from lm.data.finetuning import records as record_lib


def parallel(
  *, path: str, target_path: str, name: str = 'parallel'
) -> record_lib.Records:
  """Reads pairs from two files, whose lines correspond.

  Args:
    path: of the sources, packed by gzip where its name ends in '.gz'.
    target_path: of their targets.
    name: of the data set, for its card.

  Raises:
    ValueError: a file is missing or damaged, or one is longer.
  """
  both = [
    record_files.text(file).rstrip('\n').split('\n')
    for file in (path, target_path)
  ]
  if len(both[0]) != len(both[1]):
    raise ValueError(
      f'task {names.short(path)}: {len(both[0])} lines, and '
      f'{names.short(target_path)} has {len(both[1])}: give files whose lines '
      'correspond'
    )

  def record(row, n):
    return record_lib.Pair(f'{name}/{n}', row[0].strip(), (row[1].strip(),))

  rows = list(zip(*both, strict=True))
  result = record_lib.collect(name, path, 'bleu', rows, record)
  sha256 = record_files.sha256_of([path, target_path])
  return result._replace(card=result.card._replace(sha256=sha256))


def multi30k(*, path: str, target_path: str) -> record_lib.Records:
  """Reads captions in two languages; Elliott et al. 2016, arXiv 1605.00459.

  See `parallel`.
  """
  return parallel(path=path, target_path=target_path, name='multi30k')


def tatoeba(*, path: str) -> record_lib.Records:
  """Reads sentences and their translations: the first two columns of a table.

  Raises:
    ValueError: the file is missing or damaged, or a line has only one column.
  """
  rows = [
    line.split('\t')
    for line in record_files.text(path).split('\n')
    if line.strip()
  ]

  def record(row, n):
    return record_lib.Pair(f'tatoeba/{n}', row[0], (row[1],))

  return record_lib.collect('tatoeba', path, 'chrf', rows, record)


def pairs(
  *, path: str, source: str, target: str, name: str = 'pairs'
) -> record_lib.Records:
  """Reads pairs from any JSON lines.

  Args:
    path: of a file, packed by gzip where its name ends in '.gz', or a pattern.
    source: the field of the source: a string, or a list of strings, which are
      joined by spaces.
    target: the field of the target: a string, or a list of strings, of which
      each is right.
    name: of the data set, for its card.

  Raises:
    ValueError: the file is missing or damaged, or lacks a field.
  """

  def record(row, n):
    text, targets = row[source], row[target]
    if isinstance(targets, str):
      targets = [targets]
    if not targets or not all(isinstance(x, str) for x in targets):
      raise ValueError(f'{target} is no text')
    text = text if isinstance(text, str) else ' '.join(text)
    return record_lib.Pair(f'{name}/{n}', text, tuple(targets))

  return record_lib.collect(
    name, path, 'rougeL', record_files.json_lines(path), record
  )


def scitldr(*, path: str) -> record_lib.Records:
  """Reads abstracts and their summaries; Cachola et al. 2020.

  Reference: arXiv 2004.15011. See `pairs`.
  """
  return pairs(path=path, source='source', target='target', name='scitldr')


def dialogsum(*, path: str) -> record_lib.Records:
  """Reads conversations and their summaries, three each in the test file.

  Reference: Chen et al. 2021, arXiv 2105.06762. See `texts`.
  """

  def record(row, n):
    summaries = [row[key] for key in sorted(row) if key.startswith('summary')]
    return record_lib.Pair(
      f'dialogsum/{row["fname"]}', row['dialogue'], tuple(summaries)
    )

  return record_lib.collect(
    'dialogsum', path, 'rougeL', record_files.json_lines(path), record
  )


def alpaca(*, path: str, limit: int | None = None) -> record_lib.Records:
  """Reads instructions and answers; an empty line parts instruction and input.

  Args:
    path: of a file, packed by gzip where its name ends in '.gz', or a pattern.
    limit: number of records, from the first on; below 0, all but the last ones.
      None reads all.

  Reference: Taori et al. 2023, Stanford Alpaca. See `pairs`.
  """

  def record(row, n):
    source = '\n\n'.join(x for x in (row['instruction'], row['input']) if x)
    return record_lib.Pair(f'alpaca/{n}', source, (row['output'],))

  return record_lib.collect(
    'alpaca', path, 'rougeL', record_files.json_lines(path)[:limit], record
  )


def preferences(*, path: str) -> record_lib.Records:
  """Reads questions with a better and a worse answer.

  The form is that of LLaMA-Factory's demo data. Earlier turns of a conversation
  are a part of the question, joined by empty lines. See `texts`.
  """

  def record(row, n):
    question = '\n\n'.join(x['value'] for x in row['conversations'])
    answers = row['chosen']['value'], row['rejected']['value']
    return record_lib.Preference(f'preferences/{n}', question, *answers)

  return record_lib.collect(
    'preferences',
    path,
    'accuracy',
    record_files.json_value(path, 'preferences'),
    record,
  )


def kdconv(*, path: str) -> record_lib.Records:
  """Reads Chinese conversations about films, music and travel.

  Two speakers take turns, and the second one is the assistant. See `texts`.

  Reference: Zhou et al. 2020, arXiv 2004.04100.
  """

  def record(row, n):
    return _chat(f'kdconv/{n}', [x['message'] for x in row['messages']])

  return record_lib.collect(
    'kdconv', path, 'chrf', record_files.json_value(path, 'kdconv'), record
  )


def crosswoz(*, path: str) -> record_lib.Records:
  """Reads Chinese conversations that book a trip. See `kdconv`.

  Reference: Zhu et al. 2020, arXiv 2002.11893.
  """

  def record(row, n):
    messages = [x['content'] for x in row['messages']]
    return _chat(f'crosswoz/{row["id"]}', messages)

  return record_lib.collect(
    'crosswoz', path, 'chrf', record_files.json_lines(path), record
  )


def _chat(name: str, messages: Sequence[str]) -> record_lib.Chat:
  """Gives messages to user and assistant in turn, up to an assistant's last."""
  messages = messages[: len(messages) // 2 * 2]
  if not messages:
    raise ValueError('there is no answer')
  roles = ('user', 'assistant') * (len(messages) // 2)
  return record_lib.Chat(name, tuple(zip(roles, messages, strict=True)))
