"""A report of evaluated runs in one file: tables, curves and cards."""

from collections.abc import Iterable, Mapping, Sequence
import datetime

from lm.evals import contamination
from lm.evals.reports import figures, recipes
from lm.reporting import html

_MOST_SETTINGS = 12  # that a recipe shows
_MOST_STEPS = 8  # that are named in a row

_ABOUT_RESULTS = """<p class="soft">Each cell: the mean over seeds and its 95 %
interval, at the newest step that most seeds of the recipe have. An interval is
that of its cell alone; it takes a paired test to say that one recipe is better
than another (<code>tools.compare</code>).</p>"""
_ABOUT_RECIPES = """<p class="soft">Runs whose configs are the same but for the
seed, or the fold that is held out, are one recipe. The folds of a seed are
shown together, as soon as no seed has more of them.</p>"""
_ABOUT_FIGURES = """<p class="soft">Lines are means over seeds. Where there are
two or more, each is a thin line, and the band is one standard deviation either
way. Bars are the 95 % intervals of the table, cut off where they are long: two
seeds say little about a mean. With one step only, marks are the means, and pale
ones the seeds.</p>"""
_ABOUT_METRICS = """<p class="soft">Interval over <i>items</i>: of the mean over
the questions of a task, where a group of questions counts as one piece of
evidence: Wilson’s for right or wrong answers of one run, otherwise Student’s.
Over <i>items and seeds</i>: by the variances of both, with Satterthwaite’s
degrees of freedom, as in min F′. Over <i>seeds</i>: Student’s, where a metric
is not the mean of stored items. There is none with one seed and no such items.
SD is over seeds. Categories are in the CSV.</p>"""


def render(
  runs: Sequence[recipes.Run],
  *,
  notes: Iterable[str] = (),
  commit: str = '',
  time: datetime.datetime | None = None,
) -> str:
  """Lays runs out as a page of HTML.

  Args:
    runs: one or more that have results, as `recipes.part` gives them.
    notes: a line for everything that was left out.
    commit: of the code that evaluates; '' if it is unknown.
    time: of the report; None: now.
  """
  time = time or datetime.datetime.now(datetime.UTC)
  heads = dict(sorted(recipes.headlines(runs).items()))
  notes, shown = [*notes], []
  for n, (name, group) in enumerate(recipes.by_recipe(runs).items()):
    estimates = {}
    for evaluator in heads:
      estimates[evaluator], problems = recipes.estimates(group, evaluator)
      notes += problems
    shown.append(figures.Recipe(n, name, group, estimates))
  evaluations: dict[str, list[recipes.Evaluation]] = {x: [] for x in heads}
  for run in runs:
    for (_, evaluator), evaluation in run.evaluations.items():
      evaluations[evaluator].append(evaluation)
  metrics = [
    (evaluator, metric)
    for evaluator in heads
    for metric in dict.fromkeys(
      x for r in shown for x in r.estimates[evaluator]
    )
  ]
  others = [
    (evaluator, metric)
    for evaluator, metric in metrics
    if metric != heads[evaluator]
    and not _is_constant(evaluations[evaluator], metric)
  ]
  title = (
    f'{html.count(len(heads), "task")}, {html.count(len(shown), "recipe")}'
  )
  body = f"""<h1>Evaluation: {title}</h1>
<p class="soft">{_facts(runs, evaluations, commit, time)}</p>
<h2>Results</h2>
{_summary(shown, heads)}
{_ABOUT_RESULTS}
{_contamination(runs)}
<h2>Recipes</h2>
{_ABOUT_RECIPES}
{_recipes(shown)}
<h2>Curves</h2>
{_ABOUT_FIGURES}
{figures.figures('h', heads.items(), shown)}
{'<h2>Other metrics</h2>' if others else ''}
{figures.figures('o', others, shown)}
<h2>Every metric</h2>
{_all_metrics(shown, metrics)}
{_ABOUT_METRICS}
<h2>Not evaluated</h2>
{_missing(runs, heads, notes)}
<h2>Task cards</h2>
{_cards(evaluations)}"""
  return html.page(f'Evaluation: {title}', body)


def _facts(
  runs: Sequence[recipes.Run],
  evaluations: Mapping[str, Sequence[recipes.Evaluation]],
  commit: str,
  time: datetime.datetime,
) -> str:
  """Gives the line below the title: when, what, and by which code."""
  steps = {step for run in runs for step, _ in run.evaluations}
  codes = {x.code for each in evaluations.values() for x in each}
  facts = [
    f'{time:%Y-%m-%d %H:%M} UTC',
    f'{html.count(len(runs), "run")}, {html.count(len(steps), "step")}',
    *([f'commit {html.code(commit)}'] if commit else []),
    f'evaluated by code {" ".join(map(html.digest, sorted(codes)))}',
  ]
  return ' · '.join(facts)


def _range(one: recipes.Estimate) -> str:
  return ' – '.join(map(html.number, one.interval or ())) or 'no interval'


def _summary(shown: Sequence[figures.Recipe], heads: Mapping[str, str]) -> str:
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


def _contamination(runs: Sequence[recipes.Run]) -> str:
  """Shows how far the items of each task were in the data of each run."""
  lines = map(html.text, contamination.lines(runs))
  return f'<ul class="soft"><li>{"</li><li>".join(lines)}</li></ul>'


def _is_constant(
  evaluations: Iterable[recipes.Evaluation], metric: str
) -> bool:
  """Tells whether it is one whole number everywhere, such as a count."""
  values = {x.metrics.get(metric, 0.5) for x in evaluations}
  return len(values) == 1 and float(*values).is_integer()


def _recipes(shown: Sequence[figures.Recipe]) -> str:
  """Shows the runs of each recipe, and the settings that recipes differ in."""
  settings = [recipe.runs[0].settings for recipe in shown]
  differ = [
    key
    for key in sorted({key for each in settings for key in each})
    if len({repr(each.get(key, ...)) for each in settings}) > 1
  ]
  rows = []
  for recipe, own in zip(shown, settings, strict=True):
    words = [f'{key}={own[key]!r}' for key in differ if key in own]
    words = html.few([*map(html.code, words)], _MOST_SETTINGS)
    if settings.count(own) > 1:
      words.append('its weights, under one seed')
    runs = [
      f'{html.code(run.name)} <span class="soft">seed '
      f'{"—" if run.seed is None else run.seed}'
      f'{"" if run.fold is None else f", fold {run.fold}"}</span>'
      for run in recipe.runs
    ]
    each = '<br>'.join(runs), '<br>'.join(words) or '—'
    rows.append([recipe.title, html.digest(recipe.name), *each])
  return html.table(['recipe', 'hash', 'runs', 'differs in'], rows)


def _all_metrics(
  shown: Sequence[figures.Recipe], metrics: Sequence[tuple[str, str]]
) -> str:
  """Shows the estimate of each metric of each recipe."""
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


def _missing(
  runs: Iterable[recipes.Run], evaluators: Iterable[str], notes: Sequence[str]
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


def _cards(evaluations: Mapping[str, Sequence[recipes.Evaluation]]) -> str:
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
