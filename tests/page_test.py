"""Runs become recipes, recipes get intervals, and all of it one safe page."""

import datetime
from html import parser
import math
import os

import numpy as np
import pytest
from scipy import stats as scipy_stats

from configs import base
from lm import config, errors, train
from lm.evals import items, page, recipes, stats
from tests import programs

CODE, TASK = 'c' * 64, 'a' * 64
CARD = {
  'name': 'blimp',
  'source': 'alexwarstadt/blimp',
  'licence': 'CC BY 4.0',
  'metric': 'accuracy',
  'sha256': 'f' * 64,
}
HOSTILE = '<script src="//x.y/z">alert(1)</script>&"\'$\\frac{\x07\u202e'
NOW = datetime.datetime(2026, 11, 27, tzinfo=datetime.UTC)


def meta(**changes):
  """What a checkpoint says of its run; keys as of `programs.settings`."""
  prints = changes.pop('prints', {'train': '1' * 64})
  tokenizer = changes.pop('tokenizer', '2' * 64)
  c = base.get_config().lock()
  for key, value in programs.settings(**changes).items():
    config.override(c, key, value)
  return {
    'config': config.to_json(c),
    'data': {'datasets': prints},
    'tokenizer': tokenizer,
  }


def line(step, metrics, *, state='0', evaluator='blimp', task=TASK, **more):
  return {
    'step': step,
    'checkpoint': (state * 64)[:64],
    'evaluator': evaluator,
    'task': task,
    'code': CODE,
    'metrics': {f'{evaluator}/{k}': v for k, v in metrics.items()},
    **more,
  }


def make(folder, name, lines, *, steps=(), **changes):
  return recipes.run(name, folder / name, meta(**changes), steps, lines)


def ask(folder, name, outcomes, *, seed=0, group=None, metrics=None, step=9):
  """Makes a run with items on disk; the metrics are their means."""
  about = line(step, {}, state=f'{seed}')
  del about['metrics']
  rows = [
    {'id': f'blimp/{n}', **dict(zip(outcomes, row, strict=True))}
    for n, row in enumerate(zip(*outcomes.values(), strict=True))
  ]
  for n, row in enumerate(rows):
    row |= {} if group is None else {'group': f'g{n // group}'}
  items.write(folder / name, about, rows)
  means = {k: float(np.mean(v)) for k, v in outcomes.items()}
  lines = [line(step, {**means, **(metrics or {})}, state=f'{seed}')]
  return make(folder, name, lines, seed=seed)


# --- recipes


def test_runs_that_differ_in_their_seed_are_one_recipe(tmp_path):
  def recipe(**changes):
    return make(tmp_path, 'x', [], **changes).recipe

  one = recipe()
  same = {
    'seed': 7,
    'data__sources__train__path': 'elsewhere',
    'evals__valid__batch_size': 2,
    'mesh__fsdp': 2,
    'keep': 9,
  }
  for key, value in same.items():
    assert recipe(**{key: value}) == one, key
  others = {
    'model__width': 64,
    'batch_size': 8,
    'init_from': 'runs/a',
    'prints': {'train': '3' * 64},
    'tokenizer': '3' * 64,
  }
  found = [recipe(**{key: value}) for key, value in others.items()]
  assert len({one, *found}) == len(found) + 1
  assert make(tmp_path, 'x', [], seed=7).seed == 7
  unknown = recipes.run('x', tmp_path, None, [], [])
  assert unknown.seed is None and unknown.recipe != one


def test_what_is_set_apart_is_what_may_differ_in_a_run():
  assert {*recipes.APART} == {*train.FREE, 'seed', 'sweep'}


def test_one_seed_with_two_states_is_two_recipes(tmp_path):
  def run(name, states, seed=0):
    lines = [line(step, {'x': 1.0}, state=s) for step, s in states.items()]
    return make(tmp_path, name, lines, seed=seed)

  parted = recipes.part(
    [
      run('a', {3: '1', 6: '2'}),
      run('seed', {3: '9'}, seed=1),
      run('copy', {6: '2'}),
      run('other', {6: '3'}),
      run('third', {6: '4'}),
      run('later', {9: '5'}),  # may be the first one, further on
    ]
  )
  ends = [run.recipe.partition('.')[2] for run in parted]
  assert ends == ['', '', '', '2', '3', '']
  first = recipes.by_recipe(parted)[parted[0].recipe]
  assert [run.name for run in first] == ['a', 'seed', 'copy', 'later']
  # A copy is no second draw.
  assert recipes.seeds(first, 'blimp', 'x') == {
    3: [1.0, 1.0],
    6: [1.0],
    9: [1.0],
  }


def test_the_later_line_counts_and_older_forms_are_read(tmp_path):
  old = {'step': 3, 'checkpoint': '0' * 64, 'metrics': {'a/x': 1, 'b/y': 2}}
  rewound = line(6, {'x': 5.0}, state='1', evaluator='a')
  lines = [
    old,
    line(6, {'x': 3.0}, evaluator='a'),
    line(6, {'x': 3.0}, evaluator='b'),
    rewound,
    line(3, {'x': 4.0}, evaluator='a', card=CARD),
  ]
  run = make(tmp_path, 'x', lines)
  assert {key: dict(cell.metrics) for key, cell in run.cells.items()} == {
    (3, 'a'): {'x': 4.0},
    (3, 'b'): {'y': 2},
    (6, 'a'): {'x': 5.0},
  }
  assert run.cells[3, 'a'].card == CARD and run.cells[3, 'b'].task == ''


# --- intervals


def estimate(runs, metric='accuracy'):
  found, wrong = recipes.estimates(runs, 'blimp')
  assert wrong == []
  return found[metric]


def test_answers_of_one_run_have_wilsons_interval(tmp_path):
  x = [1] * 30 + [0] * 10
  found = estimate([ask(tmp_path, 'a', {'accuracy': x})])
  assert found.interval == stats.proportion(30, 40)
  assert found[:5] == (9, 0.75, None, 1, 40) and found.basis == 'items'
  # None is beyond 1, and where all are right there still is an interval.
  found = estimate([ask(tmp_path, 'b', {'accuracy': [1] * 40})])
  assert found.interval == stats.proportion(40, 40)


def test_other_items_of_one_run_have_students(tmp_path):
  x = np.random.default_rng(0).normal(size=50)
  found = estimate([ask(tmp_path, 'a', {'margin': x})], 'margin')
  want = scipy_stats.t.interval(0.95, 49, x.mean(), x.std(ddof=1) / 50**0.5)
  assert found.interval == pytest.approx(want)
  # Groups of five that agree are ten pieces of evidence.
  y = np.repeat(x[:10], 5)
  found = estimate([ask(tmp_path, 'b', {'margin': y}, group=5)], 'margin')
  want = scipy_stats.t.interval(0.95, 9, y.mean(), x[:10].std(ddof=1) / 10**0.5)
  assert found.interval == pytest.approx(want)
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
  want = scipy_stats.t.interval(
    0.95, freedom, x_KN.mean(), (seeds + over) ** 0.5
  )
  assert found.interval == pytest.approx(want)
  assert found.deviation == pytest.approx(x_KN.mean(axis=1).std(ddof=1))
  # Answers stay between 0 and 1.
  x_KN = np.array([[1] * 9 + [0], [1] * 10, [0] * 10])
  runs = [
    ask(tmp_path, f'b{k}', {'accuracy': x.tolist()}, seed=k)
    for k, x in enumerate(x_KN)
  ]
  found = estimate(runs)
  assert found.interval == (0.0, 1.0)
  assert estimate(runs[1:2]).interval == stats.proportion(10, 10)


def test_a_metric_that_is_no_mean_of_items_has_its_seeds(tmp_path):
  values = [1.0, 2.0, 4.0]
  runs = [
    ask(tmp_path, f'{k}', {'x': [1, 0, 1]}, seed=k, metrics={'ratio': v})
    for k, v in enumerate(values)
  ]
  # An item's value of the same name is none of it, if it is not its mean.
  runs += [
    ask(tmp_path, '3', {'ratio': [1, 0, 1]}, seed=3, metrics={'ratio': 5.0})
  ]
  found = estimate(runs[:3], 'ratio')
  want = scipy_stats.t.interval(0.95, 2, 7 / 3, np.std(values, ddof=1) / 3**0.5)
  assert found.interval == pytest.approx(want)
  assert found.basis == 'seeds' and found.items == 0
  assert estimate(runs[:1], 'ratio')[-2:] == (None, '')
  assert estimate(runs[3:], 'ratio')[-2:] == (None, '')


def test_items_that_do_not_fit_or_are_damaged_are_not_used(tmp_path):
  run = ask(tmp_path, 'a', {'accuracy': [1, 0, 1]})
  cell = run.cells[9, 'blimp']
  for change in ({'task': 'b' * 64}, {'checkpoint': 'b' * 64}):
    other = run._replace(cells={(9, 'blimp'): cell._replace(**change)})
    assert estimate([other]).basis == ''
  path = items.find(tmp_path / 'a')['blimp']
  programs.flip(path)
  found, wrong = recipes.estimates([run], 'blimp')
  assert found['accuracy'].basis == ''
  (told,) = wrong
  assert told.startswith('a: ') and 'no sound file of items' in told
  assert 'no sound file of items' in page.render([run])
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


# --- the page


class Seen(parser.HTMLParser):
  """Collects what a browser would, and checks that tags are closed."""

  ALONE = ('meta', 'br')

  def __init__(self, text):
    super().__init__()
    self.tags, self.ids, self.refers, self.words = [], [], [], []
    self._open = []
    self.feed(text)
    assert self._open == []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    for key, value in attrs:
      assert not key.startswith(('on', 'src', 'xmlns', 'action')), key
      value = value or ''
      if key == 'id':
        self.ids.append(value)
      elif key == 'aria-labelledby':
        self.refers += value.split()
      elif key == 'href':
        assert value.startswith('#')
        self.refers.append(value[1:])
      if 'url(' in value:
        assert value.startswith('url(#')
        self.refers.append(value[5:-1])
    if tag not in self.ALONE:
      self._open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in self.ALONE:
      self._open.pop()

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    self.words.append(data)

  @property
  def text(self):
    return ' '.join(' '.join(self.words).split())


def seen(runs, **more):
  """Renders runs, and checks what is true of every page."""
  text = page.render(runs, made=NOW, **more)
  assert text == page.render(runs, made=NOW, **more)
  found = Seen(text)
  assert len(found.ids) == len(set(found.ids))
  assert {*found.refers} <= {*found.ids}
  assert '://' not in text and 'http:' not in text
  assert "default-src 'none'" in text and '@import' not in text
  assert not {'script', 'link', 'img', 'iframe', 'object'} & {*found.tags}
  assert found.tags.count('svg') == found.tags.count('desc')
  # of each picture, and of the page
  assert found.tags.count('svg') == found.tags.count('title') - 1
  return found


def ladder(folder, *, steps=(3, 6), seeds=3, name='base'):
  return [
    make(
      folder,
      f'{name}-{seed}',
      [
        line(
          step,
          {'accuracy': (step + seed) / 10, 'brier': 1 / step, 'n': 30},
          state=f'{seed}',
          card=CARD,
        )
        for step in steps
      ],
      seed=seed,
      model__width=8 if name == 'base' else 16,
    )
    for seed in range(seeds)
  ]


def test_a_page_has_tables_curves_and_cards(tmp_path):
  runs = ladder(tmp_path) + ladder(tmp_path, name='wide', seeds=1)
  found = seen(runs, notes=['base-9: left out: damaged'], commit='afac2c7')
  text = found.text
  assert 'Evaluation: 1 task, 2 recipes' in text
  assert '2026-11-27 00:00 UTC' in text and 'commit afac2c7' in text
  assert CODE[:12] in text and CODE[:13] not in text
  for word in ('alexwarstadt/blimp', 'CC BY 4.0', 'f' * 64, TASK[:12]):
    assert word in text
  assert 'model.width=8' in text and 'model.width=16' in text
  # Seeds 0, 1 and 2 at step 6, and Student's interval over them.
  assert '6 0.7 0.4516 – 0.9484' in text.replace('A base 3 ', '')
  assert 'B wide-0 1 6 0.6 no interval' in text
  assert 'A: 0.4 at step 3, 0.7 at step 6' in text
  assert 'base-9: left out: damaged' in text
  # Three metrics, of which one is the same number everywhere.
  assert found.tags.count('svg') == 2 and 'blimp / n ' in text


def test_one_step_is_drawn_as_rows(tmp_path):
  runs = ladder(tmp_path, steps=(6,)) + ladder(tmp_path, steps=(6,), name='b')
  found = seen(runs)
  assert 'A: 0.7 at step 6; B: 0.7 at step 6' in found.text
  assert found.tags.count('svg') == 2


def test_names_cannot_break_out(tmp_path):
  (run,) = ladder(tmp_path, seeds=1)
  cells = {
    (step, HOSTILE): cell._replace(
      card=dict.fromkeys((*CARD, HOSTILE), HOSTILE),
      metrics={HOSTILE: 0.5, 'x': 0.25},
      task=HOSTILE,
      code=HOSTILE,
    )
    for (step, _), cell in run.cells.items()
  }
  run = run._replace(name=f'runs/{HOSTILE}\udcff', cells=cells)
  others = ladder(tmp_path, name='wide', seeds=1)
  found = seen([run, *others], notes=[HOSTILE], commit=HOSTILE)
  assert '<script src="//x.y/z">' in found.text  # as text
  assert '\x07' not in found.text
  page.write(tmp_path / 'all.html', page.render([run]))
  Seen((tmp_path / 'all.html').read_text())


def test_chance_is_drawn_where_the_card_has_it(tmp_path):
  runs = ladder(tmp_path, seeds=1)
  assert 'chance:' not in seen(runs).text
  for step in ((3, 6), (6,)):
    runs = ladder(tmp_path, seeds=1, steps=step)
    cells = {
      key: cell._replace(card={**CARD, 'chance': 0.5})
      for key, cell in runs[0].cells.items()
    }
    text = seen([runs[0]._replace(cells=cells)]).text
    assert text.count('; chance: 0.5') == 1  # of accuracy, not of brier
    assert 'accuracy chance 0.5' in text


def test_what_was_not_judged_is_told(tmp_path):
  (run,) = ladder(tmp_path, seeds=1)
  assert 'every task judged every checkpoint' in seen([run]).text
  run = make(
    tmp_path,
    'half',
    [line(3, {'x': 1.0}), line(6, {'x': 1.5}, evaluator='piqa')],
    steps=[3, 9],
  )
  other = make(tmp_path, 'none', [line(3, {'x': 1.0})], steps=[3], seed=1)
  text = seen([run, other]).text
  assert 'half blimp 6, 9 half piqa 3, 9 none piqa all' in text
  many = make(tmp_path, 'many', [line(3, {'x': 1.0})], steps=range(3, 30))
  assert '4, 5, 6, 7, 8, 9, 10, 11 and 18 more' in seen([many]).text


def test_other_versions_of_a_task_are_told(tmp_path):
  runs = [
    make(tmp_path, f'{k}', [line(3, {'x': 1.0}, task=task)], seed=k)
    for k, task in enumerate((TASK, 'b' * 64))
  ]
  text = seen(runs).text
  assert '† Judged with other versions of the task' in text
  assert 'blimp†' in text.replace(' ', '') and 'b' * 12 in text


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf, 0.0, 1e300])
def test_any_number_is_laid_out(tmp_path, value):
  for steps in ((3, 6), (3,)):
    runs = [
      make(
        tmp_path,
        f'{k}',
        [line(step, {'x': value, 'y': 1.0 + k}) for step in steps],
        seed=k,
      )
      for k in range(2)
    ]
    seen(runs)


def test_more_recipes_than_colours(tmp_path):
  runs = [
    make(tmp_path, f'r{k}', [line(3, {'x': k / 9})], model__width=8 + k)
    for k in range(30)
  ]
  text = seen(runs).text
  assert '◆ B1 r27' in text and '● A r0' in text


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  file = tmp_path / 'all.html'
  page.write(file, 'old')

  def full(fd):
    raise OSError(28, 'No space left on device', str(fd))

  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', full)
    with pytest.raises(errors.Storage, match=r'--html: .*No space.*give anoth'):
      page.write(file, 'new')
  assert file.read_text() == 'old'
  assert [path.name for path in tmp_path.iterdir()] == ['all.html']
  with file.open() as reader:  # it has the whole of one or of the other
    page.write(file, 'new')
    assert reader.read() == 'old' and file.read_text() == 'new'
  with pytest.raises(errors.Storage, match=r'--html: .*No such file.*another'):
    page.write(tmp_path / 'none' / 'all.html', 'new')
