"""The page of runs in one file: results, charts, comparisons and cards.

lm.evaluate and tools.report write it.
"""

from collections.abc import Iterable, Mapping, Sequence
import datetime
from typing import Any, NamedTuple

from lm import config
from lm.evals.reports import (
  comparison,
  curves,
  page_data,
  recipes,
  stored,
  tables,
)
from lm.reporting import charts, html

_MOST_DECISIONS = 200

_ABOUT_RESULTS = """<p class="soft">Best first, by {by}. Each cell: the mean
over seeds and its 95 % interval, at the newest step that most seeds of the
recipe have. An interval is that of its cell alone; it takes a paired test to
say that one recipe is better than another.</p>"""
_ABOUT_RECIPES = """<p class="soft">Runs whose configs are the same but for the
seed, or the fold that is held out, are one recipe. The folds of a seed are
shown together, as soon as no seed has more of them. Values that most recipes do
not have are marked.</p>"""
_ABOUT_CURVES = """<p class="soft">Lines are means over seeds. Where there are
two or more, each is a thin line, unless more than eight recipes are shown. Drag
to zoom, and click twice to go back. A recipe’s name hides and shows it. Means
over seeds are drawn at the tokens and seconds of the first seed.</p>"""
_ABOUT_METRICS = """<p class="soft">Interval over <i>items</i>: of the mean over
the questions of a task, where a group of questions counts as one piece of
evidence: Wilson’s for right or wrong answers of one run, otherwise Student’s.
Over <i>items and seeds</i>: by the variances of both, with Satterthwaite’s
degrees of freedom, as in min F′. Over <i>seeds</i>: Student’s, where a metric
is not the mean of stored items. There is none with one seed and no such items.
SD is over seeds. Categories are in the CSV.</p>"""


class Asked(NamedTuple):
  """Says what a reader asks of a page, beside the runs.

  Attributes:
    baseline: the name of a run: other recipes are compared with its recipe;
      None compares with the best one.
    by: 'EVALUATOR/METRIC' that recipes are ordered by; None takes the main
      metric of the evaluator 'valid', or else of the first one.
    inspected: samples, losses and attention, see `lm.evals.reports.inspection`.
  """

  baseline: str | None = None
  by: str | None = None
  inspected: Mapping[str, Any] | None = None


def render(
  runs: Sequence[recipes.Run],
  *,
  notes: Iterable[str] = (),
  commit: str = '',
  time: datetime.datetime | None = None,
  asked: Asked | None = None,
) -> str:
  """Lays runs out as a page of HTML.

  Args:
    runs: one or more, as `recipes.part` gives them.
    notes: a line for everything that was left out.
    commit: of the code that evaluates; '' if it is unknown.
    time: of the report; None: now.
    asked: None: the defaults.

  Raises:
    config.ConfigError: `asked` names a run or a metric that is not there.
  """
  asked = asked or Asked()
  time = time or datetime.datetime.now(datetime.UTC)
  histories = {run.name: curves.read(run.folder) for run in runs}
  runs = stored.with_training(runs, [histories[run.name] for run in runs])
  heads = dict(sorted(recipes.headlines(runs).items()))
  groups, notes = recipes.by_recipe(runs), [*notes]
  estimates: dict[str, dict[str, dict[str, recipes.Estimate]]] = {}
  for name, group in groups.items():
    estimates[name] = {}
    for evaluator in heads:
      found, problems = recipes.estimates(group, evaluator)
      estimates[name][evaluator] = found
      notes += problems
  by = _ordered_by(asked.by, heads, estimates)
  shown = page_data.ordered(groups, estimates, by)
  compared = _compared(shown, heads, asked.baseline)
  drawn = page_data.build(shown, histories, heads, compared)
  if drawn.left_out:
    notes.append(f'metrics without a chart: {", ".join(drawn.left_out)}')
  evaluations: dict[str, list[recipes.Evaluation]] = {x: [] for x in heads}
  for run in runs:
    for (_, evaluator), evaluation in run.evaluations.items():
      evaluations[evaluator].append(evaluation)
  title = (
    f'{html.count(len(heads), "task")}, {html.count(len(shown), "recipe")}'
  )
  facts = tables.facts(runs, evaluations, commit, time)
  parts = [
    f'<h1>Runs: {title}</h1>\n<p class="soft">{facts}</p>',
    *_results(shown, heads, by, drawn),
    *_comparisons(shown, compared),
    f'<h2>Curves</h2>\n{_ABOUT_CURVES}\n{_CONTROLS}',
    _chips(shown),
    _grid(drawn, ('main',), shown),
    _more(drawn, shown),
    *_inspected(asked.inspected),
    f'<h2>Recipes</h2>\n{_ABOUT_RECIPES}\n{tables.recipes(shown)}',
    *_metrics(shown, heads),
    *_evaluated(runs, evaluations, notes),
  ]
  data = {
    'title': title,
    'time': time.isoformat(timespec='seconds'),
    'commit': commit,
    'sorted_by': by and '/'.join(by),
    **drawn.data,
    **(asked.inspected or {}),
    'notes': notes,
  }
  return charts.page(f'Runs: {title}', '\n'.join(filter(None, parts)), data)


def _evaluated(
  runs: Sequence[recipes.Run],
  evaluations: Mapping[str, Sequence[recipes.Evaluation]],
  notes: Sequence[str],
) -> list[str]:
  """Shows what lm.evaluate found out of, and what it has not evaluated."""
  tasks = {
    evaluator: stored
    for evaluator, each in evaluations.items()
    if (stored := [x for x in each if x.checkpoint])
  }
  if not tasks:
    lines = ['lm.evaluate has not evaluated these runs', *notes]
    return [f'<h2>Not evaluated</h2>\n{_list(lines)}']
  return [
    tables.contamination(runs),
    f'<h2>Not evaluated</h2>\n{tables.missing(runs, tasks, notes)}',
    f'<h2>Task cards</h2>\n{tables.cards(tasks)}',
  ]


def _ordered_by(
  name: str | None,
  heads: Mapping[str, str],
  estimates: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> tuple[str, str] | None:
  """Chooses the evaluator and metric that recipes are ordered by."""
  if name is None:
    first = 'valid' if 'valid' in heads else next(iter(heads), None)
    return None if first is None else (first, heads[first])
  evaluator, _, metric = name.partition('/')
  known = {
    f'{one}/{metric}'
    for each in estimates.values()
    for one, found in each.items()
    for metric in found
  }
  if name not in known:
    raise config.ConfigError(
      f'--by: no result {name}{config.did_you_mean(name, sorted(known))}'
    )
  return evaluator, metric


def _compared(
  shown: Sequence[page_data.Recipe],
  heads: Mapping[str, str],
  baseline: str | None,
) -> dict[str, Any] | None:
  """Compares recipes with the baseline's, or with the best one."""
  reference = shown[0]
  if baseline is not None:
    places = {run.name: recipe for recipe in shown for run in recipe.runs}
    if baseline not in places:
      raise config.ConfigError(
        f'--baseline: {baseline} is none of the runs'
        f'{config.did_you_mean(baseline, sorted(places))}'
      )
    reference = places[baseline]
  others = [recipe for recipe in shown if recipe is not reference]
  if not others or not any(map(_has_items, shown)):
    return None
  about = {'a': reference.letter, 'chosen': baseline is None}
  if not _has_items(reference):
    note = (
      f'{reference.letter} was evaluated only while it trained, which stores '
      'no items: run python -m lm.evaluate on its runs'
    )
    return {**about, 'level': 0.05, 'pairs': 0, 'rows': [], 'notes': [note]}

  def folders(recipe: page_data.Recipe) -> list[str]:
    return [str(run.folder) for run in recipe.runs]

  found = comparison.compare_with(
    folders(reference),
    {recipe.letter: folders(recipe) for recipe in others},
    headlines=heads,
    chosen=baseline is None,
  )
  return {**about, **found}


def _has_items(recipe: page_data.Recipe) -> bool:
  """Tells whether a run was evaluated after training, which stores items."""
  return any(
    x.checkpoint for run in recipe.runs for x in run.evaluations.values()
  )


def _results(
  shown: Sequence[page_data.Recipe],
  heads: Mapping[str, str],
  by: tuple[str, str] | None,
  drawn: page_data.Charts,
) -> list[str]:
  if by is None:
    return []
  about = _ABOUT_RESULTS.format(by=html.code('/'.join(by)))
  return [
    '<h2>Results</h2>',
    _grid(drawn, ('results', 'swept'), shown),
    f'{tables.summary(shown, heads)}\n{about}',
  ]


def _comparisons(
  shown: Sequence[page_data.Recipe], compared: Mapping[str, Any] | None
) -> list[str]:
  """Says in words which recipes are better, as tools.compare does."""
  if compared is None:
    return []
  titles = {recipe.letter: recipe.title for recipe in shown}
  rows = [
    [
      titles[row['b']],
      f'{html.text(row["task"])} / {html.text(row["metric"])}',
      html.text(_words(row, compared['a'])),
      _signed(row['difference']),
      ' – '.join(map(_signed, (row['low'], row['high']))),
      f'{row["p"]:.2g}',
    ]
    for row in compared['rows'][:_MOST_DECISIONS]
  ]
  why = (
    'the best one, which the results chose'
    if compared['chosen']
    else ('the baseline')
  )
  about = (
    f'<p class="soft">Each recipe against {titles[compared["a"]]}, {why}. Items'
    ' are paired, as by <code>tools.compare</code>. p, and so the decision, is'
    f' corrected for {html.count(compared["pairs"], "pair")} of recipes and all'
    f' tasks (Holm): a false decision anywhere has a probability of'
    f' {compared["level"]:.0%}. An interval is that of its row alone.</p>'
  )
  table = ''
  if rows:
    head = ['recipe', 'task / metric', 'decision', 'difference']
    table = html.table([*head, '95 % interval', 'p'], rows)
  left = len(compared['rows']) - len(rows)
  lines = [*compared['notes'], *([f'and {left} more rows'] if left else [])]
  return [f'<h2>Is it better?</h2>\n{about}\n{table}\n{_list(lines)}']


def _words(row: Mapping[str, Any], reference: str) -> str:
  """Says a decision of `comparison` with the letters of the recipes."""
  decision = row['decision']
  if decision.startswith('B is '):
    return f'{row["b"]} is {decision[5:]} than {reference}'
  return f'{row["b"]} and {reference}: {decision}'


def _signed(value: float) -> str:
  return f'{value:+.3g}'.replace('-', '−')


def _list(lines: Sequence[str]) -> str:
  if not lines:
    return ''
  return f'<ul><li>{"</li><li>".join(map(html.code, lines))}</li></ul>'


_CONTROLS = """<form id="controls" class="controls">
<label>against <select name="x"><option value="step">steps</option>
<option value="tokens">tokens</option><option value="flops">FLOPs</option>
<option value="seconds">seconds</option></select></label>
<label><input type="checkbox" name="logx"> log x</label>
<label><input type="checkbox" name="logy"> log y</label>
<label>smoothing <input type="range" name="smooth" min="0" max="0.98"
step="0.02" value="0"></label></form>"""


def _chips(shown: Sequence[page_data.Recipe]) -> str:
  """Makes a button for each recipe, which hides and shows it."""
  buttons = ''.join(
    f'<button type="button" data-recipe="{recipe.n}" aria-pressed="true">'
    f'{recipe.title}</button>'
    for recipe in shown
  )
  return f'<div class="chips" role="group" aria-label="recipes">{buttons}</div>'


def _grid(
  drawn: page_data.Charts,
  sections: Sequence[str],
  shown: Sequence[page_data.Recipe],
) -> str:
  """Makes the places of the charts of sections."""
  figures = [
    _figure(n, drawn.data['charts'][n], shown)
    for section in sections
    for n in drawn.sections[section]
  ]
  return f'<div class="charts">{"".join(figures)}</div>' if figures else ''


def _figure(
  n: int, chart: Mapping[str, Any], shown: Sequence[page_data.Recipe]
) -> str:
  """Makes the place of a chart, and says in words what it shows."""
  name = chart['metric']
  if 'evaluator' in chart:
    name = f'{chart["evaluator"]} / {name}'
  if 'key' in chart:
    name += f' by {chart["key"]}'
  evaluator, _, metric = chart['metric'].partition('/')
  labels = []
  for recipe in shown:
    if one := recipe.estimates.get(chart.get('evaluator', evaluator), {}).get(
      metric or chart['metric']
    ):
      step = html.number(one.step)
      labels.append(f'{recipe.letter}: {html.number(one.value)} at step {step}')
  title = html.text(name)
  label = html.text(f'{name}: {"; ".join(labels)}' if labels else name)
  return (
    f'<figure><figcaption>{title}</figcaption><div class="chart"'
    f' data-chart="{n}" role="img" aria-label="{label}"></div></figure>'
  )


def _more(drawn: page_data.Charts, shown: Sequence[page_data.Recipe]) -> str:
  count = len(drawn.sections['other'])
  if not count:
    return ''
  return (
    f'<details><summary>{html.count(count, "other metric")}</summary>'
    f'{_grid(drawn, ("other",), shown)}</details>'
  )


def _metrics(
  shown: Sequence[page_data.Recipe], heads: Mapping[str, str]
) -> list[str]:
  if not heads:
    return []
  table = tables.all_metrics(shown, heads)
  return [f'<h2>Every metric</h2>\n{table}\n{_ABOUT_METRICS}']


def _lines(text: str) -> str:
  """Escapes a text, whose lines stay."""
  return '\n'.join(map(html.text, text.split('\n')))


def _inspected(found: Mapping[str, Any] | None) -> list[str]:
  """Makes the places of samples, losses and attention."""
  if not found:
    return []
  parts = []
  if found['samples']:
    rows = [
      [
        html.code(one['run']),
        html.number(one['step']),
        html.code(one['prompt']),
        f'<div class="sample">{_lines(one["text"])}</div>',
      ]
      for one in found['samples']
    ]
    head = ['run', 'step', 'prompt', 'text']
    parts.append(f'<h2>Samples</h2>\n{html.table(head, rows)}')
  if found['losses']:
    parts.append(
      '<h2>Loss of each token</h2>\n<p class="soft">Darker tokens cost more'
      ' nats. Point at one, or touch it, for its loss.</p>'
      '<form id="losses" class="controls"></form>'
      '<p id="token" class="soft" aria-live="polite">&nbsp;</p>'
      '<div id="tokens" class="sample"></div>'
    )
  if found['attention']:
    parts.append(
      '<h2>Attention</h2>\n<p class="soft">How much each token (a row) looks at'
      ' each other one (a column).</p>'
      '<form id="attention" class="controls"></form>'
      '<figure><div class="chart square" id="map" role="img"'
      ' aria-label="attention weights"></div></figure>'
    )
  return [*parts, _list(found['remarks'])]
