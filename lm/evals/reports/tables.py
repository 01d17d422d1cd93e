"""The tables of the page: results, recipes, metrics, gaps and cards."""

from collections.abc import Iterable, Mapping, Sequence
import datetime
from typing import Any

from lm.evals import contamination as contamination_lib
from lm.evals.reports import page_data
from lm.evals.reports import recipes as recipes_lib
from lm.reporting import html

_MOST_SETTINGS = 12  # that a recipe shows
_MOST_STEPS = 8  # that are named in a row


def facts(
  runs: Sequence[recipes_lib.Run],
  evaluations: Mapping[str, Sequence[recipes_lib.Evaluation]],
  commit: str,
  time: datetime.datetime,
) -> str:
  """Gives the line below the title: when, what, and by which code."""
  steps = {step for run in runs for step, _ in run.evaluations}
  codes = {x.code for each in evaluations.values() for x in each} - {''}
  facts = [
    f'{time:%Y-%m-%d %H:%M} UTC',
    f'{html.count(len(runs), "run")}, {html.count(len(steps), "step")}',
    *([f'commit {html.code(commit)}'] if commit else []),
    *(
      [f'evaluated by code {" ".join(map(html.digest, sorted(codes)))}']
      if codes
      else []
    ),
  ]
  return ' · '.join(facts)


def _range(one: recipes_lib.Estimate) -> str:
  return ' – '.join(map(html.number, one.interval or ())) or 'no interval'


def summary(shown: Sequence[page_data.Recipe], heads: Mapping[str, str]) -> str:
  """Shows the main metric of each evaluator, with a row for each recipe."""
  tasks: dict[tuple[str, int | None], set[str]] = {}
  for run in (run for recipe in shown for run in recipe.runs):
    for (_, evaluator), evaluation in run.evaluations.items():
      tasks.setdefault((evaluator, run.fold), set()).add(evaluation.task)
  mixed = [evaluator for (evaluator, _), x in tasks.items() if len(x) > 1]
  head, rows = ['recipe', 'seeds', 'step'], []
  for x, metric in heads.items():
    sign = '†' if x in mixed else ''
    head.append(f'{html.text(x)}{sign}<small>{html.text(metric)}</small>')
  for recipe in shown:
    seeds = len({run.seed for run in recipe.runs})
    found = [recipe.estimates[x] for x in heads]
    have = [x.get(heads[e]) for e, x in zip(heads, found, strict=True)]
    newest = max((one.step for one in have if one), default=None)
    row = [recipe.title, html.number(seeds), html.number(newest)]
    for one, others in zip(have, found, strict=True):
      if one is None:
        # Bits per byte are left out where a tokenizer loses text.
        row.append('left out' if others else 'not evaluated')
        continue
      small = [_range(one)]
      if one.step != newest:
        small.append(f'step {html.number(one.step)}')
      if one.seeds != seeds:
        small.append(html.count(one.seeds, 'seed'))
      row.append(f'{html.number(one.value)}<small>{"<br>".join(small)}</small>')
    rows.append(row)
  warning = (
    '<p>† Evaluated with other versions of the task in some runs or steps:'
    ' these numbers do not compare. See the cards.</p>'
  )
  return html.table(head, rows, 'numbers') + (warning if mixed else '')


def contamination(runs: Sequence[recipes_lib.Run]) -> str:
  """Shows how far the items of each task were in the data of each run."""
  evaluated = [run for run in runs if _evaluated(run)]
  lines = [*map(html.text, contamination_lib.lines(evaluated))]
  return f'<ul class="soft"><li>{"</li><li>".join(lines)}</li></ul>' * bool(
    lines
  )


def _evaluated(run: recipes_lib.Run) -> bool:
  """Tells whether lm.evaluate has a result of it."""
  return any(x.checkpoint for x in run.evaluations.values())


def recipes(shown: Sequence[page_data.Recipe]) -> str:
  """Shows the runs of each recipe, and the settings that recipes differ in."""
  settings = [recipe.runs[0].settings for recipe in shown]
  differ = page_data.differing(shown)
  columns = differ[:_MOST_SETTINGS]
  usual = {key: _usual([x.get(key, ...) for x in settings]) for key in columns}
  rows = []
  for recipe, own in zip(shown, settings, strict=True):
    runs = [
      f'<span class="runs">{html.code(run.name)} <span class="soft">seed '
      f'{"—" if run.seed is None else html.text(run.seed)}'
      f'{"" if run.fold is None else f", fold {html.text(run.fold)}"}'
      '</span></span>'
      for run in recipe.runs
    ]
    # Its weights are what differs, as with models that were imported.
    same = ' <small>other weights</small>' * (settings.count(own) > 1)
    cells = []
    for key in columns:
      cell = html.code(repr(own[key])) if key in own else '—'
      is_rare = usual[key] not in (None, repr(own.get(key, ...)))
      cells.append(f'<mark>{cell}</mark>' if is_rare else cell)
    name = f'{html.digest(recipe.name)}{same}'
    rows.append([recipe.title, name, '<br>'.join(runs), *cells])
  head = ['recipe', 'hash', 'runs', *map(html.code, columns)]
  rest = len(differ) - len(columns)
  more = f'<p class="soft">and {rest} more keys, in the data</p>' * (rest > 0)
  return html.table(head, rows) + more


def _usual(values: Sequence[Any]) -> str | None:
  """Finds the value that most recipes have; None if most differ."""
  words = [*map(repr, values)]
  most = max(words, key=words.count)
  return most if 2 * words.count(most) > len(words) else None


def all_metrics(
  shown: Sequence[page_data.Recipe], evaluators: Iterable[str]
) -> str:
  """Shows the estimate of each metric of each recipe."""
  metrics = [
    (evaluator, metric)
    for evaluator in evaluators
    for metric in dict.fromkeys(
      x for recipe in shown for x in recipe.estimates[evaluator]
    )
  ]
  rows = [
    [
      f'{html.text(evaluator)} / {html.text(metric)}',
      recipe.sign,
      *map(html.number, (one.step, one.value)),
      _range(one),
      one.basis or 'none',
      *map(html.number, (one.deviation, one.seeds, one.items or None)),
    ]
    for evaluator, metric in metrics
    for recipe in shown
    if (one := recipe.estimates[evaluator].get(metric))
  ]
  head = ['task / metric', 'recipe', 'step', 'value', '95 % interval', 'over']
  return html.table([*head, 'SD', 'seeds', 'items'], rows, 'numbers')


def missing(
  runs: Iterable[recipes_lib.Run],
  evaluators: Iterable[str],
  notes: Sequence[str],
) -> str:
  """Shows which steps of which runs lack which evaluators, and the notes."""
  rows = []
  for run in runs:
    steps = sorted({*run.steps, *(step for step, _ in run.evaluations)})
    gaps: dict[tuple[int, ...], list[str]] = {}
    for evaluator in evaluators:
      gap = tuple(x for x in steps if (x, evaluator) not in run.evaluations)
      gaps.setdefault(gap, []).append(evaluator)
    gaps.pop((), None)
    for gap, names in gaps.items():
      which = ['all']
      if len(gap) < len(steps):
        which = html.few([*map(html.number, gap)], _MOST_STEPS)
      rows.append(
        [html.code(run.name), html.text(', '.join(names)), ', '.join(which)]
      )
  parts = ''
  if rows:
    parts = html.table(['run', 'tasks', 'steps'], rows) + (
      '<p class="soft">A task that is added after a checkpoint was deleted'
      ' cannot evaluate it.</p>'
    )
  if notes:
    parts += f'<ul><li>{"</li><li>".join(map(html.code, notes))}</li></ul>'
  return parts or (
    '<p>Nothing: every task evaluated every checkpoint that was asked for.</p>'
  )


def cards(evaluations: Mapping[str, Sequence[recipes_lib.Evaluation]]) -> str:
  """Shows the card of each task, and the hashes of its versions."""
  fields = dict.fromkeys(
    key for each in evaluations.values() for x in each for key in x.card
  )
  rows = []
  for evaluator, each in evaluations.items():
    card = {key: value for x in each for key, value in x.card.items()}
    row = [html.text(evaluator)]
    for key in fields:
      show = html.code if key == 'sha256' else html.text
      row.append(show(card.get(key, '—')))
    for values in ({x.task for x in each}, {x.code for x in each}):
      row.append('<br>'.join(map(html.digest, sorted(values))))
    rows.append(row)
  return html.table(
    ['task', *map(html.text, fields), 'task hash', 'code hash'], rows
  )
