"""Whole runs: kill them anywhere, move them anywhere, get the same numbers."""

import json
import random
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest

from lm import checkpoint, config, train, tree
from lm.checkpoint import lease, manifest
from lm.reporting import metrics_log
from lm.runtime import signals
from lm.training import compiled
from tests import programs

STEPS = 36


def bits(workdir, step=STEPS):
  """The hash over parameters, optimizer state, step and place in the data."""
  return checkpoint.digest(workdir, step)


def check_same(workdir, reference):
  """Checks final bits, every loss on the way and that all is on disk."""
  checkpoint.verify(workdir, STEPS)
  assert bits(workdir) == bits(reference)
  assert programs.losses(workdir) == programs.losses(reference)
  assert manifest.leftovers(workdir) == []


@pytest.mark.slow
def test_a_run_compiles_its_step_once(data, tmp_path, caplog, request):
  c = programs.on_eight(data, steps=4, save_every=2)
  request.addfinalizer(lambda: jax.config.update('jax_log_compiles', False))
  jax.config.update('jax_log_compiles', True)  # in every thread
  for how in ('fresh', 'resumed'):
    caplog.clear()
    compiled.forget()  # or the resumed run would have that of the fresh one
    train.train(c, tmp_path)
    found = [x for x in caplog.messages if 'Compiling jit(update)' in x]
    assert len(found) == 1, (how, found)
    shutil.rmtree(manifest.directory(tmp_path, 4))


@pytest.mark.slow
def test_ten_kills_leave_the_same_bits(data, alone, start, tmp_path):
  workdir = tmp_path / 'run'
  # Batches come slowly, so that kills land between saves as well as in them.
  arguments = programs.flags(data, workdir, save_every=2, data__seconds=0.1)
  dice = random.Random(7)
  ways = ['line'] * 5 + ['save'] * 3 + ['clock'] * 2  # when to kill
  dice.shuffle(ways)
  begins, told = [], []
  for way in ways:
    begin = max(checkpoint.steps(workdir), default=0)
    begins.append(begin)
    if begin > STEPS - 12:
      way = 'save'  # or the run would end before it has been killed ten times
    # Far enough for one save: that of step 4 waited for that of step 2.
    want = begin + dice.randint(5, 7)
    process = start('train', arguments)
    if way == 'clock':  # a quick machine would be near the end by then
      moment = time.monotonic() + dice.uniform(0, 4)
      process.wait_for(
        lambda t=moment, n=want: (
          time.monotonic() > t or len(programs.losses(workdir)) >= n
        )
      )
    else:
      # By now it has cleared away what the one before it left.
      ready = f'step {begin} of'
      process.wait_for(lambda p=process, text=ready: text in p.text())
    if way == 'line':
      process.wait_for(lambda n=want: len(programs.losses(workdir)) >= n)
      time.sleep(dice.uniform(0, 0.05))
    elif way == 'save':
      process.wait_for(
        lambda: any('tmp.save' in x for x in manifest.leftovers(workdir))
      )
      time.sleep(dice.uniform(0, 0.2))
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.text()
    steps = checkpoint.steps(workdir)
    told.append(
      f'{way}: began at {begin}, logged {len(programs.losses(workdir))},'
      f' saved {steps[-1] if steps else 0}, left '
      + (' '.join(manifest.leftovers(workdir)) or 'nothing')
    )
  process = start('train', arguments)
  assert process.wait() == 0, process.text()
  print('\n'.join(told))
  assert begins == sorted(begins)
  assert len(set(begins)) >= 5, 'the kills did not land all over the run'
  check_same(workdir, alone)
  steps = [step for step, _ in programs.losses(workdir)]
  assert steps == list(range(1, STEPS + 1))


def test_sigterm_saves_and_the_stored_config_goes_on(
  data, alone, start, tmp_path
):
  workdir = tmp_path / 'run'
  process = start('train', programs.flags(data, workdir, data__seconds=0.04))
  want = random.Random(3).randint(7, 25)
  process.wait_for(lambda: len(programs.losses(workdir)) >= want)
  process.send(signal.SIGTERM)
  error = process.error(143)
  step = checkpoint.steps(workdir)[-1]
  assert want <= step < STEPS
  assert error == (
    f'{workdir}: by a signal at step {step}, which is saved; the same'
    ' command goes on from there'
  )
  assert [n for n, _ in programs.losses(workdir)] == list(range(1, step + 1))
  again = start(
    'train', [f'--config={workdir}/config.json', f'--workdir={workdir}']
  )
  assert again.wait() == 0, again.text()
  assert f'step {step} of {STEPS}' in again.text()
  check_same(workdir, alone)


def test_a_finished_run_is_left_alone(data, trained, tmp_path):
  workdir = shutil.copytree(trained, tmp_path / 'run')
  before = (workdir / 'metrics.jsonl').read_bytes()
  state = train.train(programs.on_eight(data), workdir)
  assert int(state.step) == STEPS
  assert (workdir / 'metrics.jsonl').read_bytes() == before
  assert checkpoint.steps(workdir) == [6, 12, 18, 24, 30, 36]


@pytest.mark.slow
def test_resumed_again_and_again_with_other_threads(
  data, trained, tmp_path, monkeypatch
):
  """Neither who reads ahead nor where a line is cut changes a number."""
  whole = tmp_path / 'whole'
  train.train(programs.on_eight(data, log_every=5), whole)
  assert bits(whole) == bits(trained)
  workdir = tmp_path / 'run'
  for at, threads, prefetch in ((7, 0, 0), (13, 4, 8), (14, 1, 1)):
    monkeypatch.setattr(signals, 'Stop', lambda _, at=at: _StopAt(workdir, at))
    with pytest.raises(signals.Stopped, match=f'at step {at}, which is saved'):
      train.train(
        programs.on_eight(
          data, log_every=5, threads=threads, prefetch=prefetch
        ),
        workdir,
      )
  monkeypatch.undo()
  train.train(programs.on_eight(data, log_every=5), workdir)
  assert bits(workdir) == bits(whole)
  assert programs.losses(workdir) == programs.losses(whole)


@pytest.mark.slow
def test_a_run_resumed_where_rows_grow_counts_every_token(
  data, tmp_path, monkeypatch
):
  c = programs.on_eight(
    data, data__lengths=((0, 4), (6, 16)), steps=8, save_every=8
  )
  train.train(c, tmp_path / 'whole')
  monkeypatch.setattr(signals, 'Stop', lambda _: _StopAt(tmp_path / 'run', 6))
  with pytest.raises(signals.Stopped, match='at step 6, which is saved'):
    train.train(c, tmp_path / 'run')
  monkeypatch.undo()
  train.train(c, tmp_path / 'run')
  assert bits(tmp_path / 'run', 8) == bits(tmp_path / 'whole', 8)
  for name in ('whole', 'run'):
    found = metrics_log.read(tmp_path / name / 'metrics.jsonl')
    assert [r['tokens'] for r in found] == [64 * n for n in range(1, 9)]
    assert checkpoint.read_meta(tmp_path / name, 8)['data']['tokens'] == 512


class _StopAt:
  """A `stop.Stop` whose signal comes while update `at` is computed."""

  def __init__(self, workdir, at):
    self._updates = at - max(checkpoint.steps(workdir), default=0)

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    pass

  @property
  def requested(self):
    self._updates -= 1
    return self._updates <= 0


def test_another_mesh_gives_the_same_losses(data, alone, tmp_path):
  workdir = programs.rewind(alone, tmp_path / 'run', 12)
  train.train(programs.on_eight(data), workdir)
  have, want = programs.losses(workdir), programs.losses(alone)
  assert have[:12] == want[:12]
  np.testing.assert_allclose(have, want, rtol=1e-5)


@pytest.mark.slow
def test_a_run_keeps_its_whole_config(data, trained, tmp_path):
  stored = config.load(trained / 'config.json')
  c = config.fill(
    programs.on_eight(data), given={'data': ('position', 'steps')}
  )
  assert config.diff(stored, c) == []
  assert config.to_json(stored) == config.to_json(c)
  meta = checkpoint.read_meta(trained, 6)
  assert config.diff(config.from_json(meta['config']), c) == []
  # and that is all that another run of the same bits needs
  train.train(config.load(trained / 'config.json'), tmp_path / 'run')
  assert bits(tmp_path / 'run') == bits(trained)


def test_parameters_are_plain_numpy(trained):
  params = checkpoint.restore_params(trained)

  def leaves(tree):
    for value in tree.values():
      yield from leaves(value) if type(value) is dict else [value]

  assert type(params) is dict
  found = list(leaves(params))
  assert all(type(x) is np.ndarray and x.dtype == np.float32 for x in found)
  assert sum(x.size for x in found) == 7712
  assert params['embed']['table'].shape == (259, 16)


def test_metrics_count_tokens_and_learn(data, trained):
  records = metrics_log.read(trained / 'metrics.jsonl')
  assert [r['step'] for r in records] == list(range(1, STEPS + 1))
  assert [r['tokens'] for r in records] == [64 * r['step'] for r in records]
  assert records[0]['loss_nats'] == pytest.approx(np.log(259), rel=0.01)
  assert records[-1]['loss_nats'] < 0.9 * records[0]['loss_nats']
  assert {r['skipped'] for r in records} == {0.0}
  rates = [r['learning_rate'] for r in records]
  assert max(rates) == pytest.approx(1e-2) and rates.index(max(rates)) == 4


@pytest.mark.slow
def test_fine_tuning_starts_from_the_parameters_alone(data, trained, tmp_path):
  workdir = tmp_path / 'run'
  c = programs.on_eight(data, init_from=trained, steps=6, seed=5, eval_every=6)
  state = train.train(c, workdir)
  assert int(state.step) == 6
  first = programs.losses(workdir)[0][1]
  assert first == pytest.approx(programs.losses(trained)[-1][1], rel=0.1)
  # what was found by the way stands beside the metrics, once
  (record,) = [
    r
    for r in metrics_log.read(workdir / 'metrics.jsonl')
    if 'valid/loss_nats' in r
  ]
  assert record['step'] == 6
  # and the source is not needed any more to go on
  c = programs.on_eight(data, init_from=trained, steps=6, seed=5)
  gone = config.from_json(config.to_json(c))
  with gone.unlocked():
    gone.init_from = str(tmp_path / 'gone')
    gone.allow = ('init_from',)
  assert int(train.train(gone.lock(), workdir).step) == 6


def headed(data, **changes):
  """Two steps of a tagger with the tiny model as its body."""
  settings = {'steps': 2, 'save_every': 1, 'seed': 5, 'optim__warmup': 0}
  c = programs.on_eight(data, **settings, **changes).unlock()
  c.model = {
    'fn': 'lm.models.heads:tag',
    'classes': 259,
    'body': c.model.to_dict(),
  }
  return c.lock()


@pytest.mark.slow
def test_a_run_starts_from_parts_of_another(
  data, trained, tmp_path, monkeypatch
):
  # The first update is dropped: step 1 has the parameters of the start.
  monkeypatch.setenv('FAULT', 'nan_grad@0')

  def run(name, **changes):
    train.train(headed(data, **changes), tmp_path / name)
    return dict(tree.paths(checkpoint.restore_params(tmp_path / name, 1)))

  theirs = dict(tree.paths(checkpoint.restore_params(trained)))
  fresh = run('fresh')
  source = shutil.copytree(trained, tmp_path / 'source')
  body = run('body', init_from=source, init_paths='=body')
  table = run(
    'table', init_from=source, init_paths='embed/table=body/embed/table'
  )
  assert body.keys() == table.keys() == fresh.keys() > {'task/scores/kernel'}
  for path, leaf in fresh.items():
    inner = theirs.get(path.removeprefix('body/'))
    want = leaf if inner is None else inner
    np.testing.assert_array_equal(body[path], want, err_msg=path)
    want = inner if path == 'body/embed/table' else leaf
    np.testing.assert_array_equal(table[path], want, err_msg=path)
  assert (fresh['body/embed/table'] != theirs['embed/table']).any()
  # A run that goes on does not look at its source again.
  digest = bits(tmp_path / 'table', 2)
  shutil.rmtree(manifest.directory(tmp_path / 'table', 2))
  shutil.rmtree(source)
  run('table', init_from=source, init_paths='embed/table=body/embed/table')
  assert bits(tmp_path / 'table', 2) == digest


@pytest.mark.parametrize(
  ('paths', 'say'),
  [
    ('embed/tabel', 'it has no parameters at embed/tabel; did you mean embed/'),
    ('emb=body/embed', 'it has no parameters at emb; '),
    (
      'embed=boddy/embed',
      'the model has no parameters at boddy/embed; did you',
    ),
    (
      'embed=body',
      'does not fit the model: body/embed/positions: missing; ',
    ),
    (
      'embed/table=body/embed/positions',
      'does not fit the model: body/embed/positions: float32(259, 16),'
      ' expected float32(16, 16)',
    ),
    ('=body,embed=body/embed', 'body/embed/positions is set twice: remove'),
  ],
)
def test_parts_that_do_not_fit_are_one_line_before_any_work(
  data, trained, tmp_path, monkeypatch, paths, say
):
  monkeypatch.setattr(
    'lm.training.program.start', lambda *_: pytest.fail('too late')
  )
  monkeypatch.chdir(trained.parent)
  c = headed(data, init_from='run', init_paths=paths)
  with pytest.raises(config.ConfigError) as caught:
    train.train(c, tmp_path / 'other')
  text = str(caught.value)
  first = paths.split(',')[-1] if 'twice' in say else paths
  assert text.startswith(f'init_paths={first}: run'), text
  assert say in text and len(text) <= 200


def test_words_of_another_tokenizer_are_no_start(trained, monkeypatch):
  monkeypatch.chdir(trained.parent)  # a short name, that a line has room for
  like = checkpoint.restore_params(trained)
  words = checkpoint.restore_run(trained).tokenizer
  other = words._replace(sha256='0' * 64)
  with pytest.raises(config.ConfigError) as caught:
    checkpoint.initial_params(trained.name, (), like, other)
  assert str(caught.value) == (
    f'init_from={trained.name}: its embed/table was trained with tokenizer '
    f'{words.sha256[:12]}, and this one is 000000000000: use that, or leave '
    'the table out of init_paths'
  )
  found = checkpoint.initial_params(trained.name, ('layers_0',), like, other)
  assert found and not any('embed' in path for path in found)


def test_paths_of_no_run_are_refused(data, tmp_path):
  with pytest.raises(
    config.ConfigError,
    match=r"init_paths: \('embed',\) without init_from: say of which run",
  ):
    train.train(headed(data, init_paths='embed'), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_another_batch_size_keeps_the_place_in_the_data(
  data, trained, tmp_path
):
  workdir = programs.rewind(trained, tmp_path / 'run', 12)
  c = programs.on_eight(data, batch_size=8, allow='batch_size')
  train.train(c, workdir)
  position = checkpoint.read_meta(workdir, STEPS)['data']
  assert position['tokens'] == 12 * 64 + 24 * 128
  assert position['anchor']['tokens'] == 12 * 64
  tokens = [r['tokens'] for r in metrics_log.read(workdir / 'metrics.jsonl')]
  assert tokens[11:14] == [12 * 64, 12 * 64 + 128, 12 * 64 + 256]
  # the rows that would have been steps 13 and 14 are step 13 now
  np.testing.assert_array_equal(
    _targets(data, position=position, batch_size=8, steps=(12,)),
    _targets(data, position=None, batch_size=4, steps=(12, 13)),
  )


def _targets(data, *, position, batch_size, steps):
  c = programs.make(data)
  opened = config.build(
    c.data,
    tokenizer=config.build(c.tokenizer),
    seed=c.seed,
    batch_size=batch_size,
    position=position,
  )
  return np.concatenate([opened.batch(step).targets for step in steps])


@pytest.mark.slow
def test_one_bad_gradient_is_skipped_and_counted(
  data, trained, tmp_path, monkeypatch
):
  monkeypatch.setenv('FAULT', 'nan_grad@3')
  workdir = tmp_path / 'run'
  state = train.train(
    programs.on_eight(data, steps=6, save_every=1, allow='steps'), workdir
  )
  assert int(state.extra['skipped']) == 1
  records = metrics_log.read(workdir / 'metrics.jsonl')
  assert [r['skipped'] for r in records] == [0, 0, 0, 1, 0, 0]
  assert np.isfinite([r['loss_nats'] for r in records]).all()
  params = {
    step: jax.tree.leaves(checkpoint.restore_params(workdir, step))
    for step in range(1, 7)
  }
  for step, leaves in params.items():
    assert all(np.isfinite(x).all() for x in leaves), step
  same = [
    all(map(np.array_equal, params[step], params[step + 1]))
    for step in range(1, 6)
  ]
  assert same == [False, False, True, False, False]


def test_a_stop_is_heard_in_the_main_thread_alone():
  """A notebook may train in a thread, where Python takes no signals."""
  found = []

  def run():
    with signals.Stop(25.0) as stop:
      found.append(stop.requested)

  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert found == [False]
  before = signal.getsignal(signal.SIGTERM)
  with signals.Stop(25.0) as stop:
    signal.raise_signal(signal.SIGTERM)
    deadline = time.monotonic() + programs.PATIENCE_SECONDS
    while not stop.requested:
      assert time.monotonic() < deadline
      time.sleep(0.01)
  assert signal.getsignal(signal.SIGTERM) is before
  assert signal.set_wakeup_fd(-1) == -1


def test_a_deadline_of_years_is_kept(monkeypatch):
  found = []
  monkeypatch.setattr(threading, 'excepthook', found.append)
  with signals.Stop(1e12) as stop:
    signal.raise_signal(signal.SIGTERM)
    deadline = time.monotonic() + programs.PATIENCE_SECONDS
    while not stop.requested:
      assert time.monotonic() < deadline
      time.sleep(0.01)
    signal.raise_signal(signal.SIGTERM)
    time.sleep(0.1)
  assert not found


def test_the_folder_of_a_run(trained):
  names = {path.name for path in trained.iterdir()}
  assert names >= {'config.json', 'checkpoints', 'metrics.jsonl', 'lease'}
  assert not [name for name in names if name.endswith('.part')]
  assert lease.holder(trained) is None
  for line in (trained / 'metrics.jsonl').read_text().splitlines():
    assert json.loads(line)['step']
