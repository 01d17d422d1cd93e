"""Runs become one page that works offline, on a phone, in light and in dark."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

from lm import checkpoint, config, errors, sharding
from lm.evals import context as context_lib
from lm.evals import scoring
from lm.evals.reports import comparison, curves, stored
from lm.reporting import charts
from tests import report_runs
from tools import report

HOSTILE = (
  '</script><script>alert(1)</script><img src=x onerror=alert(2)>\'"&\u2028'
)
PEAKS = (1e-4, 1e-3, 1e-2)
SEEDS = range(2)


def data_of(page):
  (text,) = re.findall(
    rf'<script type="application/json" id="{charts.DATA}">(.*?)</script>', page
  )
  return json.loads(text)


@pytest.fixture(scope='module')
def sweep(tmp_path_factory):
  """The folder of a sweep over the learning rate, with its page."""
  folder = tmp_path_factory.mktemp('sweep')
  for peak in PEAKS:
    for seed in SEEDS:
      name = f'peak-{peak:g}-{seed}'
      report_runs.write(folder / name, seed=seed, peak=peak)
  report.main([str(folder), f'--output={folder / "page.html"}'])
  return folder


@pytest.fixture(scope='module')
def page(sweep):
  return (sweep / 'page.html').read_text()


# --- what a program reads


def test_recipes_come_in_the_order_of_their_results(page):
  data = data_of(page)
  assert data['sorted_by'] == 'valid/bits_per_byte'
  rates = [x['settings'] for x in data['recipes']]
  assert rates == [{'optim.peak': peak} for peak in (1e-3, 1e-2, 1e-4)]
  found = [x['estimates']['valid']['bits_per_byte'] for x in data['recipes']]
  assert [x['value'] for x in found] == sorted(x['value'] for x in found)
  assert all(x['seeds'] == 2 and len(x['interval']) == 2 for x in found)
  kinds = [(x['kind'], x.get('key')) for x in data['charts']]
  assert kinds[:2] == [('results', None), ('swept', 'optim.peak')]


def test_the_axes_of_a_curve(page):
  data = data_of(page)
  run = data['runs'][0]
  tokens = 16 * 256 * 10
  assert run['clock']['step'][:3] == [0, 10, 20]
  assert run['clock']['tokens'][:3] == [0, tokens, 2 * tokens]
  assert run['clock']['seconds'][1] == pytest.approx(tokens / 1e5)
  assert run['flops_per_token'] > 1e6
  mean = data['recipes'][0]['means']['loss_nats']
  ours = [x for x in data['runs'] if x['recipe'] == 0]
  assert (
    len(ours) == 2 and mean['step'] == ours[0]['curves']['loss_nats']['step']
  )
  pair = zip(*(x['curves']['loss_nats']['y'] for x in ours), strict=True)
  assert mean['y'] == pytest.approx([sum(x) / 2 for x in pair], rel=1e-4)


def test_it_says_what_is_better(sweep, page):
  found = data_of(page)['comparisons']
  assert (found['a'], found['chosen'], found['pairs']) == ('A', True, 3)
  worst = found['rows'][1]
  assert (worst['b'], worst['task'], worst['metric']) == ('C', 'valid', 'nats')
  assert worst['decision'] == 'B is worse' and 0 < worst['p'] < 0.05
  assert 'C is worse than A' in page
  # A baseline that was named before leaves fewer comparisons to correct for.
  other, base = sweep / 'other.html', f'{sweep}/peak-0.0001-0/'
  report.main([str(sweep), f'--output={other}', f'--baseline={base}'])
  named = data_of(other.read_text())['comparisons']
  assert (named['a'], named['chosen'], named['pairs']) == ('C', False, 2)
  assert named['rows'][0]['p'] < worst['p']
  assert 'A is better than C' in other.read_text()
  with pytest.raises(config.ConfigError, match='--baseline: x is none of the'):
    report.main([str(sweep), f'--output={other}', '--baseline=x'])
  with pytest.raises(config.ConfigError, match='--by: no result valid/nats'):
    report.main([str(sweep), f'--output={other}', '--by=valid/nats'])


def test_what_cannot_be_compared_is_said(sweep):
  out = sweep / 'some.html'
  runs = [str(sweep / f'peak-{x}') for x in ('0.001-0', '0.001-1', '0.01-0')]
  report.main([*runs, f'--output={out}'])
  found = data_of(out.read_text())['comparisons']
  assert found['rows'] == []
  (note,) = found['notes']
  assert note == (
    'B: not compared: 2 against 1 runs: give each side one, or two and more'
  )
  assert note in out.read_text()


def test_a_best_one_that_was_chosen_costs_more(sweep):
  """Comparing with the best of K is as good as comparing all pairs."""
  sides = {
    x: [str(sweep / f'peak-{x:g}-{seed}') for seed in SEEDS] for x in PEAKS
  }
  first, *others = PEAKS

  def p(chosen):
    found = comparison.compare_with(
      sides[first],
      {f'{x}': sides[x] for x in others},
      headlines={},
      chosen=chosen,
    )
    return sorted(row['p'] for row in found['rows'])

  alone = [
    comparison.compare(sides[first], sides[x])['rows'][0]['p'] for x in others
  ]
  assert p(False)[0] == pytest.approx(2 * min(alone))
  assert p(True)[0] == pytest.approx(3 * min(alone))


def test_runs_that_were_not_evaluated_have_their_training_loss(tmp_path):
  for seed in SEEDS:
    folder = tmp_path / f'a-{seed}'
    report_runs.write(folder, seed=seed, evaluated=False)
  report_runs.write(tmp_path / 'b', peak=1e-2, evaluated=False)
  # The evaluators of the config ran in training, in one of them.
  with (tmp_path / 'b' / 'metrics.jsonl').open('a') as file:
    file.write(report_runs.line({'step': 600, 'nobody/x': 0.5}))
  out = tmp_path / 'page.html'
  report.main([str(tmp_path), f'--output={out}'])
  data = data_of(out.read_text())
  assert data['sorted_by'] == 'training/loss_nats'
  assert data['comparisons'] is None
  assert 'has not evaluated these runs' in out.read_text()
  with (tmp_path / 'b' / 'metrics.jsonl').open('a') as file:
    file.write(report_runs.line({'step': 600, 'valid/loss_nats': 0.5}))
  report.main([str(tmp_path), f'--output={out}'])
  data = data_of(out.read_text())
  assert data['sorted_by'] == 'valid/loss_nats'
  assert [x['label'] for x in data['recipes']] == ['b', 'a']


def test_a_best_one_that_was_evaluated_in_training_alone(tmp_path):
  """A failure means that the page leaves the question out in silence."""
  report_runs.write(tmp_path / 'a')
  report_runs.write(tmp_path / 'b', peak=1e-2, evaluated=False)
  with (tmp_path / 'b' / 'metrics.jsonl').open('a') as file:
    file.write(report_runs.line({'step': 600, 'valid/bits_per_byte': 0.1}))
  out = tmp_path / 'page.html'
  report.main([str(tmp_path), f'--output={out}'])
  found = data_of(out.read_text())['comparisons']
  assert found['a'] == 'A' and found['rows'] == []
  (note,) = found['notes']
  assert note.startswith('A was evaluated only while it trained, which stores')
  assert 'Is it better?' in out.read_text() and note in out.read_text()


def test_folders_without_a_run(tmp_path):
  report_runs.write(tmp_path / 'runs' / 'a', lines=3)
  (tmp_path / 'none').mkdir()
  found, notes = stored.find([tmp_path / 'runs', tmp_path / 'none'])
  assert found == [tmp_path / 'runs' / 'a']
  assert notes == [
    f'{tmp_path / "none"}: left out: no folder of a run: no config.json'
  ]
  where = f'--output={tmp_path / "page.html"}'
  with pytest.raises(config.ConfigError, match='no folder of a run: no config'):
    report.main([str(tmp_path / 'none'), where])
  with pytest.raises(config.ConfigError, match=r'--output: .*no such folder'):
    report.main([str(tmp_path / 'runs'), f'--output={tmp_path}/x/page.html'])
  with pytest.raises(errors.Storage, match=r'--output: .*give another file'):
    report.main([str(tmp_path / 'runs'), f'--output={tmp_path / "none"}'])


# --- curves


def test_a_thinned_curve_keeps_what_stands_out():
  curve = dict.fromkeys(range(10_000), 1.0)
  curve |= {17: 50.0, 5_003: -7.0, 7_001: float('nan'), 9_999: 3.0}
  found = curves.thinned(curve, 100)
  assert len(found['step']) <= 100 + 1
  shown = dict(zip(found['step'], found['y'], strict=True))
  assert (shown[17], shown[5_003], shown[7_001]) == (50.0, -7.0, None)
  assert shown[0] == 1.0 and shown[9_999] == 3.0
  assert len(found['means']['y']) == 49
  assert found['means']['y'][0] == pytest.approx(1 + 49 / 205, rel=1e-2)
  assert 'means' not in curves.thinned({1: 0.5, 2: 0.25}, 100)


def test_a_mean_has_the_steps_of_all_seeds(tmp_path):
  """Where a seed has ended early, a mean of the others would be a jump."""
  runs = [
    report_runs.write(tmp_path / f'{seed}', seed=seed, lines=lines)
    for seed, lines in enumerate((60, 30))
  ]
  report.main([*map(str, runs), f'--output={tmp_path / "page.html"}'])
  data = data_of((tmp_path / 'page.html').read_text())
  means = data['recipes'][0]['means']
  assert means['loss_nats']['step'][-1] == 300
  # lm.evaluate was at 300 and 600 of one, and at 150 and 300 of the other.
  assert means['valid/loss_nats']['step'] == [300]


def test_a_clock_takes_what_a_run_says(tmp_path):
  lines = [
    {'step': n, 'tokens': 100 * n, 'flops': 7e9 * n, 'seconds': 2.0 * n}
    for n in (1, 2, 3)
  ]
  lines[1]['loss_nats'] = 10**400  # no float can hold it
  lines[2] |= {'loss_nats': 1.5, 'time': 1e9, 'name': 'x', 'flag': True}
  text = ''.join(map(report_runs.line, lines))
  (tmp_path / 'metrics.jsonl').write_text(text)
  found = curves.read(tmp_path)
  assert found.clock == {
    'step': [0, 1, 2, 3],
    'tokens': [0, 100, 200, 300],
    'flops': [0, 7e9, 14e9, 21e9],
    'seconds': [0, 2.0, 4.0, 6.0],
  }
  assert found.curves == {'loss_nats': {3: 1.5}}
  assert found.flops_per_token is None
  # A line of an earlier version has no time.
  (tmp_path / 'metrics.jsonl').write_text(
    text + report_runs.line({'step': 4, 'tokens': 400})
  )
  assert curves.read(tmp_path).clock.keys() == {'step', 'tokens'}
  assert curves.read(tmp_path / 'none').clock == {}


@pytest.mark.slow
def test_fifty_runs_stay_small_and_are_drawn(tmp_path, opened):
  rng = np.random.default_rng(0)
  for n in range(50):
    folder = tmp_path / 'runs' / f'r{n // 2}-{n % 2}'
    report_runs.write(folder, seed=n % 2, peak=1e-4 * 1.2 ** (n // 2), lines=9)
    norms = rng.normal(1, 0.1, (1000, 45))
    lines = [
      {'step': 100 + k, **{f'norms/{i}': x for i, x in enumerate(row)}}
      for k, row in enumerate(norms.tolist())
    ]
    with (folder / 'metrics.jsonl').open('a') as file:
      file.writelines(map(report_runs.line, lines))
  out = tmp_path / 'page.html'
  report.main([str(tmp_path / 'runs'), f'--output={out}'])
  assert out.stat().st_size < 10e6
  data = data_of(out.read_text())
  assert 'norms/44' in data['notes'][-1]
  page = opened(out)
  # The means alone: single seeds would hide each other.
  assert len(lines_of(page, 'loss_nats')) == 25


# --- looking into checkpoints

TEXT = 'the quick brown fox'


@pytest.fixture(scope='module')
def inspected(trained, tmp_path_factory):
  """A page with samples, losses and attention of a run, and of one without."""
  folder = tmp_path_factory.mktemp('inspected')
  report_runs.write(folder / 'bare', lines=3)
  file = folder / 'text.txt'
  file.write_text(TEXT)
  out = folder / 'page.html'
  report.main(
    [
      *(str(trained), str(folder / 'bare'), f'--output={out}'),
      *('--prompt=the ', f'--text={file}', '--text=soup'),
    ]
  )
  return out


def test_samples_losses_and_attention(trained, inspected):
  data = data_of(inspected.read_text())
  steps = [6, 18, 24, 36]  # of 6, 12 to 36
  assert [x['step'] for x in data['samples']] == steps
  assert all(x['text'] and x['prompt'] == 'the ' for x in data['samples'])
  found = [x for x in data['losses'] if x['text'] == TEXT]
  assert [x['step'] for x in found] == steps
  assert all(''.join(x['pieces']) == TEXT[:15] for x in found)
  _, tokenizer, model = checkpoint.restore_run(trained)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  score = scoring.make(
    context_lib.Context(model, tokenizer, mesh), batch_size=1, length=16
  )
  params = checkpoint.restore_params(trained, 36)
  (one,) = score(params, [('', TEXT[:15])])
  assert sum(found[-1]['nats']) == pytest.approx(one.nats, rel=1e-4)
  assert sum(found[-1]['nats']) < sum(found[0]['nats'])
  one = data['attention'][0]
  assert one['step'] == 36 and one['pieces'][:3] == ['<bos>', 't', 'h']
  assert [(x['layer'], x['head']) for x in one['maps']] == [(0, 0), (0, 1)]
  rows = one['maps'][1]['rows']
  assert len(rows) == 16 and rows[0][0] == 255 and rows[0][1:] == [0] * 15
  assert all(abs(sum(row) - 255) <= 8 for row in rows)
  bare = inspected.parent / 'bare'
  assert data['remarks'] == [f'{bare}: no checkpoint to look into']


def test_a_file_that_is_no_text(tmp_path):
  report_runs.write(tmp_path / 'a', lines=3)
  (tmp_path / 'x').write_bytes(b'\xff\xfe')
  with pytest.raises(
    config.ConfigError, match='is no UTF-8: give a file of te'
  ):
    report.main(
      [
        str(tmp_path / 'a'),
        f'--output={tmp_path / "page.html"}',
        f'--text={tmp_path / "x"}',
      ]
    )


# --- in a browser


@pytest.fixture(scope='module')
def browser():
  """A headless Chromium."""
  api = pytest.importorskip('playwright.sync_api', reason='no playwright')
  path = shutil.which('chromium') or shutil.which('chromium-browser')
  if path is None:
    pytest.skip('no chromium here: apt-get install chromium')
  with api.sync_playwright() as playwright:
    made = playwright.chromium.launch(
      executable_path=path, args=['--no-sandbox']
    )
    yield made
    made.close()


@pytest.fixture
def opened(browser):
  """Opens a file; the page asks for nothing else and complains of nothing."""
  said, asked, contexts = [], [], []

  def open_file(file, width=1200, **settings):
    context = browser.new_context(
      viewport={'width': width, 'height': 900}, **settings
    )
    contexts.append(context)
    context.set_default_timeout(120_000)
    context.on('console', lambda message: said.append(message.text))
    context.on('weberror', lambda error: said.append(str(error.error)))
    context.on('dialog', lambda dialog: said.append(dialog.message))
    context.on('request', lambda request: asked.append(request.url))
    page = context.new_page()
    page.goto(f'file://{file}')
    page.locator('.main-svg').first.wait_for()
    return page

  yield open_file
  for context in contexts:
    context.close()
  assert said == []
  assert all(url.startswith(('file://', 'data:', 'blob:')) for url in asked)


def lines_of(page, metric):
  """Lists the names of the lines in the chart of a metric, once drawn."""
  figure = page.locator('figure', has=page.get_by_text(metric, exact=True))
  figure.scroll_into_view_if_needed()
  figure.locator('.main-svg').first.wait_for()
  chart = figure.locator('.chart')
  return chart.evaluate('x => x.data.map(line => line.name)')


def told(page, metric, line):
  """Reads what the pointer tells of the first point of a line."""
  lines_of(page, metric)
  figure = page.locator('figure', has=page.get_by_text(metric, exact=True))
  chart = figure.locator('.chart')
  chart.evaluate(
    '(x, n) => Plotly.Fx.hover(x, [{curveNumber: n, pointNumber: 0}])', line
  )
  return chart.locator('.hoverlayer').text_content()


def test_a_point_tells_its_value(sweep, opened):
  page = opened(sweep / 'page.html')
  (one, *_) = data_of((sweep / 'page.html').read_text())['recipes']
  first = one['means']['loss_nats']['y'][0]
  text = told(page, 'loss_nats', 2)
  assert text == f'A peak-0.001, mean of 2{first:.5g}step 10'
  page.get_by_label('against').select_option('tokens')
  assert f'{first:.5g} at 40.96k tokensstep 10' in told(page, 'loss_nats', 2)


def test_curves_are_drawn_and_recipes_are_hidden(sweep, opened):
  page = opened(sweep / 'page.html')
  names = lines_of(page, 'loss_nats')
  assert len(names) == 9 and names[2] == 'A peak-0.001, mean of 2'
  page.get_by_role('button', name='A peak-0.001').click()
  names = lines_of(page, 'loss_nats')
  assert len(names) == 6 and {x[0] for x in names} == {'B', 'C'}
  page.get_by_role('button', name='A peak-0.001').click()
  assert len(lines_of(page, 'loss_nats')) == 9


def test_axes_scales_and_smoothing(sweep, opened):
  page = opened(sweep / 'page.html')
  lines_of(page, 'loss_nats')
  figure = page.locator('figure', has=page.get_by_text('loss_nats', exact=True))
  chart = figure.locator('.chart')
  before = chart.evaluate('x => [x.data[2].x[0], x.data[2].y]')
  assert before[0] == 10
  ends = {'tokens': 40_960, 'seconds': 0.4096}
  for axis, first in ends.items():
    page.get_by_label('against').select_option(axis)
    assert chart.evaluate('x => x.data[2].x[0]') == pytest.approx(first)
  page.get_by_label('against').select_option('flops')
  run = data_of((sweep / 'page.html').read_text())['runs'][0]
  flops = chart.evaluate('x => x.data[2].x[0]')
  assert flops == pytest.approx(40_960 * run['flops_per_token'])
  page.get_by_label('log x').check()
  page.get_by_label('log y').check()
  kinds = chart.evaluate('x => [x.layout.xaxis.type, x.layout.yaxis.type]')
  assert kinds == ['log', 'log']
  page.get_by_label('smoothing').fill('0.9')
  after = chart.evaluate('x => x.data[2].y')
  assert after[0] == pytest.approx(before[1][0])
  # The mean of what came before, without a bias at the start.
  assert after[1] == pytest.approx(
    (0.9 * before[1][0] + before[1][1]) / 1.9, rel=1e-6
  )


def test_the_swept_key_is_a_logarithmic_axis(sweep, opened):
  page = opened(sweep / 'page.html')
  figure = page.locator('figure', has_text='by optim.peak')
  figure.scroll_into_view_if_needed()
  figure.locator('.main-svg').first.wait_for()
  kind, at = figure.locator('.chart').evaluate(
    'x => [x.layout.xaxis.type, x.data[0].x]'
  )
  assert kind == 'log' and at == list(PEAKS)


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_a_phone(sweep, opened, scheme):
  page = opened(
    sweep / 'page.html', width=360, color_scheme=scheme, has_touch=True
  )
  for figure in page.locator('figure:visible').all():
    figure.scroll_into_view_if_needed()
    figure.locator('.main-svg').first.wait_for()
  wide = page.evaluate('document.documentElement.scrollWidth')
  assert wide == 360
  # Tables scroll in their own boxes.
  assert (
    page.locator('.wide').first.evaluate('x => getComputedStyle(x).overflowX')
    == 'auto'
  )
  colors = page.evaluate("""() => {
    const ink = document.querySelector('.xtick text').style.fill;
    return [ink, getComputedStyle(document.body).backgroundColor].map(
      color => color.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0));
  }""")
  assert (colors[0] > colors[1]) == (scheme == 'dark')


def test_charts_follow_the_scheme(sweep, opened):
  page = opened(sweep / 'page.html', color_scheme='light')
  text = page.locator('.xtick text').first
  light = text.evaluate('x => x.style.fill')
  page.emulate_media(color_scheme='dark')
  page.wait_for_function(
    "light => document.querySelector('.xtick text').style.fill !== light",
    arg=light,
  )


def test_tokens_have_their_losses_and_maps_are_drawn(inspected, opened):
  page = opened(inspected)
  box = page.locator('#tokens')
  assert box.text_content() == TEXT[:15]
  page.locator('#losses').get_by_label('step').select_option('6')
  box.locator('span').nth(4).hover()
  told = page.locator('#token')
  told.get_by_text('"q": ').wait_for()
  (one,) = [
    x
    for x in data_of(inspected.read_text())['losses']
    if x['step'] == 6 and x['text'] == TEXT
  ]
  assert f'{one["nats"][4]:.3f} nats, probability' in told.text_content()
  page.locator('#losses').get_by_label('text').select_option('soup')
  assert box.text_content() == 'soup'
  attention = page.locator('#map')
  assert attention.evaluate('x => x.data[0].z.length') == 16
  page.locator('#attention').get_by_label('head').select_option('1')
  page.locator('#attention').get_by_label('text').select_option('soup')
  assert attention.evaluate('x => x.data[0].z.length') == 5


def test_a_fold_of_a_stranger_is_text(tmp_path):
  folder = report_runs.write(tmp_path / 'a', evaluated=False)
  c = json.loads((folder / 'config.json').read_text())
  c['data']['held_out'] = '<img src=x>'
  (folder / 'config.json').write_text(json.dumps(c))
  report.main([str(folder), f'--output={tmp_path / "page.html"}'])
  page = (tmp_path / 'page.html').read_text()
  assert '<img' not in page and 'fold &lt;img' in page


def test_names_of_strangers_are_text(tmp_path, opened):
  """Names are text wherever they stand: in tables, data and hovers."""
  hostile = HOSTILE.replace('/', '\u2215')  # no folder has a slash
  for seed in SEEDS:
    report_runs.write(tmp_path / f'{hostile}-{seed}', seed=seed, lines=9)
  report_runs.write(tmp_path / 'b', lines=9, init_from=HOSTILE)
  with (tmp_path / 'b' / 'metrics.jsonl').open('a') as file:
    file.write(report_runs.line({'step': 90, HOSTILE: 0.5}))
    # Every object of JavaScript has something of this name.
    file.write(report_runs.line({'step': 90, 'constructor': 0.5}))
  out = tmp_path / 'page.html'
  report.main([str(tmp_path), f'--output={out}'])
  page = opened(out, width=360)
  page.locator('summary').click()
  figures = page.locator('figure')
  for n in range(figures.count()):
    figures.nth(n).scroll_into_view_if_needed()
    figures.nth(n).locator('.main-svg').first.wait_for()
  # Long names of folders wrap, also where they are not in a table.
  assert page.evaluate('document.documentElement.scrollWidth') == 360
  page.locator('#controls').get_by_label('against').select_option('tokens')
  shown = [told(page, 'loss_nats', n) for n in range(4)]
  assert sum('<script>' in x for x in shown) == 3, shown
  assert page.locator('img').count() == 0
  data = json.loads(page.locator('#data').text_content())
  found = {x['label']: x['settings'] for x in data['recipes']}
  assert found == {
    hostile: {'init_from': None},
    'b': {'init_from': HOSTILE},
  }


def test_numbers_that_are_too_large_to_draw(tmp_path, opened):
  report_runs.write(tmp_path / 'a', lines=9)
  with (tmp_path / 'a' / 'metrics.jsonl').open('a') as file:
    for step, value in ((600, 1e308), (610, -1e308), (620, 2.0)):
      file.write(report_runs.line({'step': step, 'loss_nats': value}))
  out = tmp_path / 'page.html'
  report.main([str(tmp_path / 'a'), f'--output={out}'])
  assert lines_of(opened(out), 'loss_nats')
