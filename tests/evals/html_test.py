"""Runs become recipes with intervals, and a report shows them safely."""

import datetime
from html import parser
import json
import math
import os
import re

import numpy as np
import pytest
from scipy import stats as scipy_stats

from configs import base
from lm import config, errors
from lm.evals import items
from lm.evals.reports import html as report
from lm.evals.reports import recipes, stats
from lm.evals.reports import table as table_lib
from lm.reporting import html
from tests import programs

CODE, TASK = 'c' * 64, 'a' * 64
CARD = {'source': 'nyu/blimp', 'metric': 'accuracy', 'sha256': 'f' * 64}
HOSTILE = '<script src="//x.y/z">alert(1)</script>&"\'$\\frac{\x07\u202e'
NOW = datetime.datetime(2026, 11, 27, tzinfo=datetime.UTC)


def make(folder, name, lines=(), *, steps=(), data=None, tokenizer='', **keys):
  """Describes a run by its checkpoint; keys are as in `programs.settings`."""
  c = base.get_config().lock()
  for key, value in programs.settings(**keys).items():
    config.override(c, key, value)
  data = data or {'datasets': {'train': '1' * 64}}
  meta = {'config': config.to_json(c), 'data': data, 'tokenizer': tokenizer}
  return recipes.run(name, folder / name, meta, steps, lines)


def line(step, metrics, *, state='0', evaluator='blimp', task=TASK, **card):
  metrics = {f'{evaluator}/{k}': v for k, v in metrics.items()}
  about = {'step': step, 'checkpoint': (state * 64)[:64], 'code': CODE, **card}
  return {**about, 'evaluator': evaluator, 'task': task, 'metrics': metrics}


def ask(folder, name, outcomes, *, seed=0, fold=None, group=None, **metrics):
  """Makes a run with items on disk; further metrics are no means of theirs."""
  rows = []
  for n, row in enumerate(zip(*outcomes.values(), strict=True)):
    label = {} if group is None else {'group': f'g{n // group}'}
    found = zip(outcomes, row, strict=True)
    rows.append({'id': f'blimp/{fold or 0}-{n}', **dict(found), **label})
  means = {k: float(np.mean(v)) for k, v in outcomes.items()}
  if fold is None:
    about = line(9, {**means, **metrics}, state=f'{seed}')
    run = make(folder, name, [about], seed=seed)
  else:
    task = f'{fold}' * 64  # as a fold has one of its own
    about = line(9, {**means, **metrics}, state=f'{seed}{fold}', task=task)
    run = cut(folder, name, [about], seed, fold)
  header = {key: about[key] for key in about if key != 'metrics'}
  items.write(folder / name, header, rows)
  return run


def cut(folder, name, lines, seed, fold):
  """Describes a run that did not train on a fold."""
  c = base.get_config()
  c.seed = seed
  c.data = {'fn': 'lm.data.finetuning.tasks:make', 'folds': 5, 'held_out': fold}
  meta = {'config': config.to_json(c.lock()), 'tokenizer': '', 'data': {}}
  return recipes.run(name, folder / name, meta, (), lines)


# --- recipes


def test_runs_that_differ_in_their_seed_are_one_recipe(tmp_path):
  def recipe(**changes):
    return make(tmp_path, 'x', **changes).recipe

  one = recipe()
  assert recipe(seed=7, mesh__fsdp=2, evals__valid__batch_size=2) == one
  assert recipe(data__sources__train__path='elsewhere') == one
  others = [
    {'model__width': 64},
    {'batch_size': 8},
    {'init_from': 'runs/a'},
    {'data': {'datasets': {'train': '3' * 64}}},
    {'data': {'fingerprint': '3' * 64}},
    {'data': {'step': 1}},  # imported
    {'tokenizer': '3' * 64},
  ]
  found = [recipe(**changes) for changes in others]
  assert len({one, *found}) == len(found) + 1
  assert make(tmp_path, 'x', seed=7).seed == 7
  unknown = recipes.run('x', tmp_path, None, [], [])
  assert unknown.seed is None and unknown.recipe != one


def test_one_seed_with_two_states_is_two_recipes(tmp_path):
  def run(name, states, seed=0):
    lines = [line(step, {'x': 1.0}, state=s) for step, s in states.items()]
    return make(tmp_path, name, lines, seed=seed)

  runs = [run('a', {3: '1', 6: '2'}), run('seed', {3: '9'}, seed=1)]
  runs += [
    run('copy', {6: '2'}),
    run('other', {6: '3'}),
    run('third', {6: '4'}),
  ]
  runs.append(run('later', {9: '5'}))  # may be the first one, further on
  parted = recipes.part(runs)
  ends = [run.recipe.partition('.')[2] for run in parted]
  assert ends == ['', '', '', '2', '3', '']
  first = recipes.by_recipe(parted)[parted[0].recipe]
  assert [run.name for run in first] == ['a', 'seed', 'copy', 'later']
  # A copy is no second draw.
  found = recipes.seeds(first, 'blimp', 'x')
  assert found == {3: [1.0, 1.0], 6: [1.0], 9: [1.0]}


def test_the_later_line_counts(tmp_path):
  lines = [line(6, {'x': 3.0}, evaluator=name) for name in ('a', 'b')]
  rewound = line(6, {'x': 5.0}, evaluator='a', state='1')
  old, new = (line(3, {'x': x}, evaluator='a', card=CARD) for x in (1.0, 4.0))
  run = make(tmp_path, 'x', [old, new, *lines, rewound])
  metrics = {key: x.metrics for key, x in run.evaluations.items()}
  assert metrics == {(3, 'a'): {'x': 4.0}, (6, 'a'): {'x': 5.0}}
  assert run.evaluations[3, 'a'].card == CARD
  assert run.evaluations[3, 'a'].task == TASK


# --- intervals


def estimate(runs, metric='accuracy'):
  found, wrong = recipes.estimates(runs, 'blimp')
  assert wrong == []
  return found[metric]


def students(mean, error, freedom):
  return pytest.approx(scipy_stats.t.interval(0.95, freedom, mean, error))


def test_answers_of_one_run_have_wilsons_interval(tmp_path):
  x = [1] * 30 + [0] * 10
  found = estimate([ask(tmp_path, 'a', {'accuracy': x})])
  assert found == (9, 0.75, None, 1, 40, stats.proportion(30, 40), 'items')
  # None is beyond 1, and where all are right there still is an interval.
  found = estimate([ask(tmp_path, 'b', {'accuracy': [1] * 40}, group=4)])
  assert found.interval == stats.proportion(10, 10)


def test_other_items_of_one_run_have_students(tmp_path):
  x = np.random.default_rng(0).normal(size=50)
  found = estimate([ask(tmp_path, 'a', {'margin': x})], 'margin')
  assert found.interval == students(x.mean(), x.std(ddof=1) / 50**0.5, 49)
  # Groups of five that agree are ten pieces of evidence.
  y = np.repeat(x[:10], 5)
  found = estimate([ask(tmp_path, 'b', {'margin': y}, group=5)], 'margin')
  error = x[:10].std(ddof=1) / 10**0.5
  assert found.interval == students(y.mean(), error, 9)
  # One group says nothing of another.
  found = estimate([ask(tmp_path, 'c', {'margin': x}, group=99)], 'margin')
  assert found[-2:] == (None, '')


def test_seeds_add_their_variance_to_that_of_items(tmp_path):
  rng = np.random.default_rng(0)
  x_KN = rng.normal(size=(3, 50)) + rng.normal(size=(3, 1))
  runs = [
    ask(tmp_path, f'{k}', {'margin': x}, seed=k) for k, x in enumerate(x_KN)
  ]
  found = estimate(runs, 'margin')
  assert found.basis == 'items and seeds' and found.seeds == 3
  seeds = x_KN.mean(axis=1).var(ddof=1) / 3
  over = x_KN.mean(axis=0).var(ddof=1) / 50
  freedom = (seeds + over) ** 2 / (seeds**2 / 2 + over**2 / 49)
  error = (seeds + over) ** 0.5
  assert found.interval == students(x_KN.mean(), error, freedom)
  assert found.deviation == pytest.approx(x_KN.mean(axis=1).std(ddof=1))
  # Answers stay between 0 and 1.
  answers = enumerate(([1] * 9 + [0], [1] * 10, [0] * 10))
  runs = [ask(tmp_path, f'b{k}', {'accuracy': x}, seed=k) for k, x in answers]
  assert estimate(runs).interval == (0.0, 1.0)


def test_a_metric_that_is_no_mean_of_items_has_its_seeds(tmp_path):
  values = [1.0, 2.0, 4.0]
  runs = [
    ask(tmp_path, f'{k}', {'x': [1, 0, 1]}, seed=k, ratio=v)
    for k, v in enumerate(values)
  ]
  found = estimate(runs, 'ratio')
  error = np.std(values, ddof=1) / 3**0.5
  assert found.interval == students(7 / 3, error, 2)
  assert found.basis == 'seeds' and found.items == 0
  assert estimate(runs[:1], 'ratio')[-2:] == (None, '')
  # An item's value of the same name is none of it, if it is not its mean.
  run = ask(tmp_path, '3', {'ratio': [1, 0, 1]}, ratio=5.0)
  assert estimate([run], 'ratio')[-2:] == (None, '')


def test_items_that_do_not_fit_or_are_damaged_are_not_used(tmp_path):
  run = ask(tmp_path, 'a', {'accuracy': [1, 0, 1]})
  assert estimate([run]).basis == 'items'
  key, evaluation = (9, 'blimp'), run.evaluations[9, 'blimp']
  for change in ({'task': 'b' * 64}, {'checkpoint': 'b' * 64}):
    other = run._replace(evaluations={key: evaluation._replace(**change)})
    assert estimate([other]).basis == ''
  path = items.find(tmp_path / 'a')['blimp']
  programs.flip(path)
  found, (problem,) = recipes.estimates([run], 'blimp')
  assert found['accuracy'].basis == ''
  assert problem.startswith('a: ') and 'no sound file of items' in problem
  assert 'no sound file of items' in seen([run]).text
  path.unlink()
  assert estimate([run]).basis == ''


def test_the_step_is_the_newest_that_most_seeds_have(tmp_path):
  def run(seed, steps):
    lines = [line(step, {'accuracy': step + seed / 8}) for step in steps]
    return make(tmp_path, f'{seed}', lines, seed=seed)

  runs = [run(0, [3, 6]), run(1, [3, 6, 9]), run(2, [3])]
  found = estimate(runs)
  assert (found.step, found.seeds, found.value) == (3, 3, 3.125)
  assert estimate(runs[:2]).step == 6


# --- folds


def test_folds_of_a_seed_are_one_draw(tmp_path):
  def asked(seed, fold, right):
    x = [1.0] * right + [0.0] * (4 - right)
    name, f1 = f'{seed}{fold}', 0.5 + seed / 8 + fold / 16
    return ask(tmp_path, name, {'accuracy': x}, seed=seed, fold=fold, f1=f1)

  one = [asked(0, 0, 4), asked(0, 1, 2)]
  assert len({run.recipe for run in one}) == 1
  assert cut(tmp_path, 'x', [], 0, None).recipe != one[0].recipe
  assert estimate(one) == (9, 0.75, None, 1, 8, stats.proportion(6, 8), 'items')
  assert estimate(one, 'f1')[:5] == (9, 0.53125, None, 1, 0)
  assert recipes.seeds(one, 'blimp', 'f1') == {9: [0.53125]}
  # A seed that lacks a fold would be asked something else, and waits.
  assert estimate([*one, asked(1, 1, 0)]) == estimate(one)
  two = [*one, asked(1, 1, 0), asked(1, 0, 2)]
  found = estimate(two)
  assert (found.value, found.seeds, found.items) == (0.5, 2, 8)
  assert found.deviation == pytest.approx(0.5 / 2**0.5)
  assert found.basis == 'items and seeds'
  # Items of one fold pair with those of the same fold.
  whole = np.array([[1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]])
  low = stats.difference(np.zeros((2, 8)), whole).low
  assert found.interval == pytest.approx((max(low, 0), 1 - max(low, 0)))


def test_folds_that_share_items_have_none(tmp_path):
  runs = [
    ask(tmp_path, f'{fold}', {'accuracy': [1.0, 0.0]}, fold=fold)
    for fold in (0, 1)
  ]
  rows = [{'id': 'blimp/0-0', 'accuracy': 1.0}, {'id': 'x', 'accuracy': 0.0}]
  ((step, name),) = runs[1].evaluations
  header = {'evaluator': name, 'step': step, 'task': '1' * 64, 'code': CODE}
  header['checkpoint'] = runs[1].evaluations[step, name].checkpoint
  items.write(tmp_path / '1', header, rows)
  assert estimate(runs) == (9, 0.5, None, 1, 0, None, '')


def test_folds_asked_the_same_are_draws(tmp_path):
  lines = [[line(9, {'x': x}, state=f'{int(x)}')] for x in (1.0, 3.0)]
  runs = [cut(tmp_path, f'{k}', lines[k], 0, k) for k in (0, 1)]
  assert estimate(runs, 'x')[:5] == pytest.approx((9, 2.0, 2**0.5, 2, 0))


def test_folds_are_shown_together(tmp_path):
  runs = [
    ask(tmp_path, f'{fold}', {'accuracy': [1.0, fold]}, fold=fold)
    for fold in (0, 1)
  ]
  text = seen(runs).text
  assert '1 task, 1 recipe' in text and 'seed 0, fold 1' in text
  assert '0.75 0.3006 – 0.9544' in text and '†' not in text
  table = table_lib.rows(runs)
  assert [row.get('fold') for row in table] == [0, 1, None]
  assert table[-1]['run'] == 'mean of folds'
  assert table[-1]['metrics'] == {'blimp/accuracy': 0.75}


# --- the report


class Seen(parser.HTMLParser):
  """Collects what a reader finds, and checks what is true of every page."""

  def __init__(self, text):
    super().__init__()
    self.charts, self._words, self._open = 0, [], []
    self.data = {}
    self._ids, self._refers = [], []
    self.feed(text)
    self.text = ' '.join(' '.join(self._words).split())
    assert self._open == []
    assert len(self._ids) == len(set(self._ids))
    assert {*self._refers} <= {f'#{name}' for name in self._ids}
    before, _, rest = text.partition('<script>')  # plotly has addresses in it
    assert '://' not in before and 'http:' not in before
    assert '@import' not in before and rest.count('</script>') == 2
    assert "default-src 'none'" in before and "form-action 'none'" in before

  def handle_starttag(self, tag, attrs):
    assert tag not in {'link', 'img', 'iframe', 'object', 'svg'}
    self.charts += 'data-chart' in dict(attrs)
    for key, value in ((key, value or '') for key, value in attrs):
      assert not key.startswith(('on', 'src', 'xmlns', 'action')), key
      self._ids += [value] if key == 'id' else []
      self._words += [value] if key == 'aria-label' else []
      self._refers += [value] if key == 'href' else []
      self._refers += re.findall(r'url\((.*?)\)', value)
    if tag not in ('meta', 'br', 'input'):
      self._open.append(tag)

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    if self._open[-1:] != ['script']:
      self._words.append(data)
    elif data.startswith('{'):
      self.data = json.loads(data)


def seen(runs, **more):
  return Seen(report.render(runs, time=NOW, **more))


def ladder(folder, name='base', *, seeds=3, **keys):
  """Makes the seeds of a recipe, with three metrics and a category."""

  def lines(seed):
    for step in (3, 6):
      found = {'accuracy': (step + seed) / 10, 'brier': 1 / step, 'n': 30}
      found['accuracy/part'] = 0.5
      yield line(step, found, state=f'{seed}', card=CARD)

  return [
    make(folder, f'{name}-{seed}', lines(seed), seed=seed, **keys)
    for seed in range(seeds)
  ]


def test_a_report_has_tables_curves_and_cards(tmp_path):
  runs = ladder(tmp_path) + ladder(tmp_path, 'wide', seeds=1, model__width=16)
  found = seen(runs, notes=['base-9: left out: damaged'], commit='afac2c7')
  text = found.text
  assert 'Runs: 1 task, 2 recipes' in text
  assert '2026-11-27 00:00 UTC' in text and 'commit afac2c7' in text
  assert CODE[:12] in text and CODE[:13] not in text
  for word in ('nyu/blimp', 'f' * 64, TASK[:12]):
    assert word in text
  assert 'model.width ● A base' in text and 'base-2 seed 2 256 ■ B' in text
  assert 'wide-0 seed 0 16 Every' in text
  # Seeds 0, 1 and 2 at step 6, and Student's interval over them.
  assert '● A base 3 6 0.7 0.4516 – 0.9484' in text
  assert '■ B wide-0 1 6 0.6 no interval' in text
  assert 'blimp / accuracy: A: 0.7 at step 6; B: 0.6 at step 6 ' in text
  assert 'base-9: left out: damaged' in text
  # Three metrics, of which one is the same number everywhere.
  # A result, a sweep and a curve of the first; a curve of the second.
  assert found.charts == 4 and 'blimp / n ● A 6 30' in text
  assert 'part' not in text and '†' not in text
  metrics = [x['metric'] for x in found.data['charts']]
  assert metrics == ['accuracy', 'accuracy', 'blimp/accuracy', 'blimp/brier']
  # Equal runs give equal bytes.
  assert report.render(runs, time=NOW) == report.render(runs, time=NOW)


@pytest.mark.parametrize('first', (0, 1))
def test_a_run_without_the_main_metric_does_not_replace_it(tmp_path, first):
  """A tokenizer that loses text has a loss a token alone."""
  pair = [
    make(tmp_path, 'kept', [line(3, {'loss_nats': 1.5, 'bits_per_byte': 2.5})]),
    make(tmp_path, 'lost', [line(3, {'loss_nats': 0.125})], model__width=16),
  ]
  runs = [pair[first], pair[1 - first]]
  assert recipes.headlines(runs) == {'blimp': 'bits_per_byte'}
  text = seen(runs).text
  assert 'lost 1 — left out' in text


def test_names_cannot_break_out(tmp_path):
  (run,) = ladder(tmp_path, seeds=1)
  card = dict.fromkeys((*CARD, HOSTILE), HOSTILE)
  one = recipes.Evaluation(
    '', HOSTILE, HOSTILE, card, {HOSTILE: 0.5, 'x': 0.25}
  )
  run = run._replace(
    name=f'runs/{HOSTILE}\udcff',
    evaluations={(step, HOSTILE): one for step in (3, 6)},
  )
  others = ladder(tmp_path, 'wide', seeds=1, init_from=HOSTILE)
  found = seen([run, *others], notes=[HOSTILE], commit=HOSTILE)
  assert '<script src="//x.y/z">' in found.text  # as text
  assert '\x07' not in found.text
  html.write(tmp_path / 'all.html', report.render([run]))
  Seen((tmp_path / 'all.html').read_text())


def test_the_settings_that_recipes_differ_in_are_shown(tmp_path):
  runs = [
    make(tmp_path, 'news-1', [line(3, {'x': 1.0})], seed=12345),
    make(tmp_path, 'news-2', [line(3, {'x': 1.0})]),
    make(tmp_path, 'other', [line(3, {'x': 1.0}, state='1')]),
    make(tmp_path, 'long', [line(3, {'x': 1.0})], init_from='x' * 99),
  ]
  # One that is older than two keys; the second is None in others.
  known = runs[3].settings.items()
  known = {k: v for k, v in known if k not in ('optim.clip', 'model.remat')}
  runs[3] = runs[3]._replace(settings=known)
  page = report.render(recipes.part(runs), time=NOW)
  text = Seen(page).text
  # What most of the recipes have is not marked.
  assert (
    page.count('<mark>') == 1 + 2 and f'<mark><code>&#x27;{"x" * 99}' in page
  )
  assert '● A news ' in text and 'news-1 seed 12345 news-2 seed 0 ' in text
  assert 'recipe hash runs init_from model.remat optim.clip' in text
  assert text.count("None 'none' 1.0") == 2 and 'other weights' in text
  assert f"long seed 0 '{'x' * 99}' — — Every" in text


def test_what_was_not_evaluated_is_shown(tmp_path):
  (run,) = ladder(tmp_path, seeds=1)
  # There may be other checkpoints, as with --last.
  words = 'Nothing: every task evaluated every checkpoint that was asked for.'
  assert words in seen([run]).text
  lines = [line(3, {'x': 1.0}), line(6, {'x': 1.5}, evaluator='piqa')]
  run = make(tmp_path, 'half', lines, steps=[3, 9])
  other = make(tmp_path, 'none', [line(3, {'x': 1.0})], steps=[3], seed=1)
  text = seen([run, other]).text
  assert 'half blimp 6, 9 half piqa 3, 9 none piqa all' in text
  assert 'half 2 6 1 no interval step 3 1.5 no interval 1 seed Best' in text
  many = make(tmp_path, 'many', [line(3, {'x': 1.0})], steps=range(3, 30))
  assert '4, 5, 6, 7, 8, 9, 10, 11, and 18 more' in seen([many]).text


def test_other_versions_of_a_task_are_marked(tmp_path):
  runs = [
    make(tmp_path, f'{k}', [line(3, {'x': 1.0}, task=task)], seed=k)
    for k, task in enumerate((TASK, 'b' * 64))
  ]
  text = seen(runs).text
  assert '† Evaluated with other versions of the task' in text
  assert 'step blimp† x' in text and 'b' * 12 in text


@pytest.mark.parametrize('steps', [(3, 6), (3,)])
def test_any_number_is_laid_out(tmp_path, steps):
  values = [0.5, 0.0, 1e200, math.nan, math.inf, -math.inf]
  runs = []
  for k in range(2):
    found = {f'm{n}': x for n, x in enumerate(values)}
    found |= {f'mixed{n}': x + k for n, x in enumerate(values)}
    found |= {f'one{n}': [x, 0.25][k] for n, x in enumerate(values)}
    lines = [line(step, found) for step in steps]
    runs.append(make(tmp_path, f'{k}', lines, seed=k))
  found = seen(runs)
  assert found.charts == 9
  for told in (
    'm2 ● A 3 1e+200 no interval none 0 2',
    'm3 ● A 3 nan no interval none nan 2',
    # Its variance is no float.
    'one2 ● A 3 5e+199 −5.853e+200 – 6.853e+200 seeds 7.071e+199 2',
  ):
    assert told.replace('A 3', f'A {max(steps)}') in found.text


def test_more_recipes_than_colours_at_one_step(tmp_path):
  runs = [
    make(tmp_path, f'r{k}', [line(3, {'x': k / 9})], model__width=8 + k)
    for k in range(27)
  ]
  found = seen(runs)
  assert 'x: A: 2.889 at step 3; B: 2.778 at step 3; ' in found.text
  for sign in ('● A r26', '●╌ G r20', '▲ A1 r0'):
    assert sign in found.text
  # A result, a sweep and a curve.
  assert found.charts == 3


def test_a_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  file = tmp_path / 'all.html'
  html.write(file, 'old')

  def full(fd):
    raise OSError(28, 'No space left on device', str(fd))

  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', full)
    with pytest.raises(errors.Storage, match=r'--html: .*No space.*give anoth'):
      html.write(file, 'new')
  assert file.read_text() == 'old'
  assert [path.name for path in tmp_path.iterdir()] == ['all.html']
  with file.open() as reader:  # it has the whole of one or of the other
    html.write(file, 'new')
    assert reader.read() == 'old' and file.read_text() == 'new'
  with pytest.raises(errors.Storage, match=r'--html: .*No such file.*another'):
    html.write(tmp_path / 'none' / 'all.html', 'new')
