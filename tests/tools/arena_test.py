"""tools.arena admits, runs and decides proposals, and keeps a sound ledger."""

from concurrent import futures
import contextlib
import json
from pathlib import Path
import shutil
import subprocess
import threading

import numpy as np
import pytest

from lm import config, errors
from lm.data import writer
from lm.data.tokenizers import utf8_bytes
from lm.runtime import code_state
from lm.training import setup
from tests import programs
from tools.arena import __main__ as arena
from tools.arena import (
  admission,
  ledger,
  procedure,
  proposals,
  running,
  runs,
)
from tools.arena import board as board_lib

CONFIG = f'{programs.ROOT}/tests/tiny_config.py'


class Fake:
  """Stands for training and evaluation: losses follow from config and seed.

  Attributes:
    trained: the folders of runs, in their order.
    fails: folders whose run is not finite.
    stop_at: number of the run at which the process dies; None for none.
  """

  def __init__(self):
    self.trained: list[str] = []
    self.fails: set[str] = set()
    self.stop_at: int | None = None
    self.opened: list[str] = []

  def train(self, root, config_file, workdir, trusted):
    """Remembers a run."""
    del root, trusted
    if len(self.trained) == self.stop_at:
      self.stop_at = None
      raise KeyboardInterrupt
    self.trained.append(f'{workdir.parent.name}/{workdir.name}')
    workdir.mkdir(exist_ok=True)
    (workdir / 'config.json').write_text(config_file.read_text())
    return self.trained[-1] not in self.fails

  def ask(self, what, request, root, trusted):
    """Answers as measure.py does."""
    del root, trusted
    if what == 'describe':
      c = setup.fill(
        config.load(request['config'], request['overrides'], request['data'])
      )
      tokens = c.steps * c.batch_size * c.data.length
      return {
        'config': config.to_json(c),
        'tokens': tokens,
        'flops': tokens * c.model.width,
      }
    evals = config.from_json(request['evals']).evals
    if what == 'task':
      return {name: spec.path for name, spec in evals.items()}
    c = config.from_json((Path(request['workdir']) / 'config.json').read_text())
    self.opened += [x for x in evals if x == 'sealed']
    rng = np.random.default_rng(c.seed)
    loss = 2.0 - 5 * c.optim.peak
    return {
      'step': c.steps,
      'evals': {
        name: {'value': loss + 0.007 * rng.normal(), 'task': spec.path}
        for name, spec in evals.items()
      },
    }


def replaced(monkeypatch):
  """Replaces the processes of runs."""
  made = Fake()
  monkeypatch.setattr(runs, 'train', made.train)
  monkeypatch.setattr(runs, 'ask', made.ask)
  # A test runs while others edit the code; whose it is does not matter here.
  monkeypatch.setattr(code_state, 'package_digest', lambda: '0' * 64)
  state = code_state.CodeState('.', '1' * 40, '', ())
  monkeypatch.setattr(code_state, 'of_package', lambda: state)
  return made


@pytest.fixture
def fake(monkeypatch):
  """Stands for the processes of runs."""
  return replaced(monkeypatch)


def new(tmp_path, *words):
  """Makes a board in a folder."""
  sealed = tmp_path / 'sealed'
  sealed.mkdir(exist_ok=True)
  arena.main(
    [
      'new',
      str(tmp_path / 'board'),
      f'--config={CONFIG}:{tmp_path}/data',
      f'--sealed={sealed}',
      '--task=tiny',
      '--tuned=not at all',
      *words,
    ]
  )
  return tmp_path / 'board'


def decision_of(board, name):
  decision = board_lib.Board(board).find(name).decision
  assert decision is not None
  return decision


def propose(board, name, *words, effect=0.01):
  """Proposes something."""
  arena.main(['propose', str(board), name, f'--effect={effect}', *words])


@pytest.fixture(scope='module')
def baseline(tmp_path_factory):
  """A board whose baseline has run; do not change it."""
  folder = tmp_path_factory.mktemp('arena')
  with pytest.MonkeyPatch.context() as monkeypatch:
    made = replaced(monkeypatch)
    board = new(folder)
    arena.main(['run', str(board)])
    assert len(made.trained) == procedure.DEFAULT.baseline_runs
  return board


@pytest.fixture
def ready(baseline, fake, tmp_path):
  """A board of this test's own, whose baseline has run."""
  del fake
  return shutil.copytree(baseline, tmp_path / 'board')


def test_a_board_finds_the_gain_and_not_the_nulls(ready, fake, capsys):
  for n in range(3):  # the loss does not depend on it
    propose(ready, f'null-{n}', f'--config.optim.rule.eps={n + 2}e-8')
  propose(ready, 'better', '--config.optim.peak=0.02')
  capsys.readouterr()
  before = len(fake.opened)
  arena.main(['run', str(ready), '--json'])
  status = json.loads(capsys.readouterr().out)
  states = {x['name']: x['state'] for x in status['proposals']}
  assert states.pop('better') == 'accepted'
  assert set(states.values()) == {'rejected'}
  assert status['baseline']['name'] == 'better'
  row = status['proposals'][-1]
  assert row['interval'][0] < 0.05 < row['interval'][1]
  # The next baseline has runs that no choice was made by.
  assert row['runs']['confirming'] == procedure.DEFAULT.baseline_runs
  assert status['baseline']['runs'] == procedure.DEFAULT.baseline_runs
  (event,) = [
    x
    for x in ledger.read(ready)
    if x['event'] == 'decision' and x['is_accepted']
  ]
  assert event['bounds'][0] > 0 and event['log_evidence'] > event['log_needed']
  # Screening does not open the sealed split.
  tested = sum(sum(list(x['runs'].values())[1:]) for x in status['proposals'])
  assert len(fake.opened) - before == tested
  # A later proposal starts from the new baseline.
  propose(ready, 'worse', '--config.optim.peak=0.01')
  arena.main(['run', str(ready)])
  c = config.from_json(board_lib.Board(ready).find('worse').config)
  assert c.optim.peak == 0.01
  assert decision_of(ready, 'worse')['stage'] == 'screening'


def test_a_killed_board_goes_on_with_the_same_runs(fake, tmp_path, capsys):
  """Wherever it is stopped, no run is done twice or left out."""
  board = new(tmp_path)
  turns = 0
  for turn in range(200):
    fake.stop_at = len(fake.trained) + 1 + turn % 3
    try:
      arena.main(['resume', str(board)])
    except KeyboardInterrupt:
      turns += 1
      continue
    if not board_lib.Board(board).proposals:
      fake.stop_at = None
      propose(board, 'better', '--config.optim.peak=0.02')
      continue
    break
  assert turns > 10
  events = ledger.read(board)
  seeds = [x['seed'] for x in events if x['event'] == 'run']
  assert len(seeds) == len(set(seeds)) == len(fake.trained)
  assert events[-1]['event'] == 'decision' and events[-1]['is_accepted']
  assert 'accepted' in capsys.readouterr().out


def test_a_kill_between_a_run_and_its_line_repeats_the_run(
  ready, fake, monkeypatch
):
  propose(ready, 'worse', '--config.optim.peak=0.001')
  append = ledger.append

  def die(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(ledger, 'append', die)
  with pytest.raises(KeyboardInterrupt):
    arena.main(['run', str(ready)])
  monkeypatch.setattr(ledger, 'append', append)
  arena.main(['run', str(ready)])
  assert fake.trained[-2:] == ['worse/screening-0'] * 2
  assert decision_of(ready, 'worse') is not None


def test_half_a_line_is_left_out(ready):
  path = ready / ledger.NAME
  before = path.read_bytes()
  path.write_bytes(before + b'{"number": 99, "prev')
  assert len(ledger.read(ready)) == before.count(b'\n')
  propose(ready, 'better', '--config.optim.peak=0.02')
  assert path.read_bytes().startswith(before + b'{"number": 33,')


@pytest.mark.parametrize(
  'edit',
  [
    lambda lines: lines[3].replace(b'"sealed": 1', b'"sealed": 2', 1),
    lambda lines: b'',
    lambda lines: lines[4] + lines[3],
    lambda lines: b'{}\n',
  ],
)
def test_a_changed_ledger_is_found(ready, edit, capsys):
  path = ready / ledger.NAME
  lines = path.read_bytes().splitlines(keepends=True)
  changed = edit(lines)
  assert changed != lines[3]
  path.write_bytes(b''.join([*lines[:3], changed, *lines[4:]]))
  for words in (['verify'], ['status'], ['run'], ['ledger']):
    with pytest.raises(errors.Damaged, match=':4: was changed after it was'):
      arena.main([*words, str(ready)])
  assert capsys.readouterr().out.count('head') == 0


def test_a_ledger_that_was_cut_lacks_the_noted_hash(ready, capsys):
  arena.main(['verify', str(ready), '--json'])
  found = json.loads(capsys.readouterr().out)
  assert found['lines'] == 33
  path = ready / ledger.NAME
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(b''.join(lines[:-1]))
  arena.main(['verify', str(ready)])
  with pytest.raises(config.ConfigError, match='no line of this ledger has'):
    arena.main(['verify', str(ready), f'--head={found["head"]}'])


REFUSED = [
  (['--config.seed=7'], 'is no change: seeds, names and paths do not count'),
  (['--config.threads=1', '--config.log_every=7'], 'is no change'),
  (['--config.evals.valid.path=elsewhere'], 'is no change'),
  (['--config.data.length=8'], 'data.length: is fixed on this board: a prop'),
  (['--config.evals.valid.length=8'], 'evals.valid.length: is fixed on this'),
  (['--config.steps=37'], 'it takes 2,368 tokens, and this board grants 2,304'),
  (['--config.batch_size=8'], 'it takes 4,608 tokens'),
]


@pytest.mark.parametrize(('words', 'say'), REFUSED)
def test_what_a_board_does_not_admit_is_one_line(ready, words, say):
  with pytest.raises(proposals.Refused, match=say) as caught:
    propose(ready, 'x', *words)
  assert caught.value.exit_code == 9
  assert ledger.read(ready)[-1]['event'] == 'run'


def test_the_same_is_not_tested_twice(ready):
  propose(ready, 'a', '--config.optim.peak=0.02')
  with pytest.raises(proposals.Refused, match='a proposal of that name'):
    propose(ready, 'a', '--config.optim.peak=0.03')
  with pytest.raises(proposals.Refused, match='b: changes the same as a'):
    propose(ready, 'b', '--config.optim.peak=0.02', '--config.seed=3')


def test_an_effect_that_no_runs_could_show_is_refused(ready):
  with pytest.raises(proposals.Refused, match='state at least 0'):
    propose(ready, 'a', '--config.optim.peak=0.02', effect=0.001)
  with pytest.raises(config.ConfigError, match='give a part of the loss'):
    propose(ready, 'a', '--config.optim.peak=0.02', effect=2)


def test_flops_can_be_what_is_granted(fake, tmp_path):
  board = new(tmp_path, '--budget=flops')
  arena.main(['run', str(board)])
  propose(board, 'narrow', '--config.model.width=8', '--config.steps=72')
  with pytest.raises(proposals.Refused, match='flops, and this board grants'):
    propose(board, 'wide', '--config.model.width=32')


def test_runs_that_diverge_count_as_the_worst(ready, fake):
  propose(ready, 'hot', '--config.optim.peak=0.02')
  fake.fails.add('hot/screening-0')
  arena.main(['run', str(ready)])
  decision = decision_of(ready, 'hot')
  assert not decision['is_accepted'] and decision['stage'] == 'screening'


def test_a_seed_that_is_not_used_is_found(ready, fake, monkeypatch):
  propose(ready, 'fixed', '--config.optim.peak=0.02')
  ask = runs.ask

  def lucky(what, *rest):
    answer = ask(what, *rest)
    for found in answer.get('evals', {}).values():
      found['value'] = 1.7
    return answer

  monkeypatch.setattr(runs, 'ask', lucky)
  arena.main(['run', str(ready)])
  decision = decision_of(ready, 'fixed')
  assert decision['reason'].endswith('the seed is not used')


def test_a_proposal_can_be_withdrawn(ready, fake):
  propose(ready, 'a', '--config.optim.peak=0.02')
  arena.main(['run', str(ready), '--runs=3'])
  arena.main(['withdraw', str(ready), 'a'])
  count = len(fake.trained)
  arena.main(['run', str(ready)])
  assert len(fake.trained) == count
  board = board_lib.Board(ready)
  assert decision_of(ready, 'a')['stage'] == 'withdrawn'
  assert board.baseline.tests == 1, 'what its test has spent stays spent'
  level = board.find('a').level
  assert level is not None and board.status()['spent'] == level
  assert level > board.next_level
  with pytest.raises(config.ConfigError, match='is decided already'):
    arena.main(['withdraw', str(ready), 'a'])


def test_one_process_runs_a_board(ready):
  with (
    admission.running(ready),
    pytest.raises(errors.Locked, match='another process runs this board'),
  ):
    arena.main(['run', str(ready)])


def test_two_processes_that_race_count_each_run_once(
  ready, fake, tmp_path, monkeypatch
):
  """Where locks do not hold between machines, two may do the same runs."""
  monkeypatch.setattr(admission, 'running', lambda _: contextlib.nullcontext())
  for n in range(2):
    propose(ready, f'null-{n}', f'--config.optim.rule.eps={n + 2}e-8')
  propose(ready, 'better', '--config.optim.peak=0.02')
  raced = shutil.copytree(ready, tmp_path / 'raced')
  arena.main(['run', str(ready)])
  alone = len(fake.trained)
  # Both have read the board before either adds to it, at every run.
  both, train = threading.Barrier(2), fake.train

  def together(*arguments):
    with contextlib.suppress(threading.BrokenBarrierError):
      both.wait(20.0)
    is_finite = train(*arguments)
    with contextlib.suppress(threading.BrokenBarrierError):
      both.wait(20.0)
    return is_finite

  monkeypatch.setattr(runs, 'train', together)
  said: list[str] = []

  def run():
    running.run(raced, say=said.append)
    both.abort()  # the other one may wait for a run that is not to come

  with futures.ThreadPoolExecutor(2) as pool:
    for each in [pool.submit(run) for _ in range(2)]:
      each.result()
  assert len(fake.trained) == 3 * alone
  assert sum(x.endswith('so it is left out') for x in said) == alone
  noise = ('time', 'previous', 'hash')
  lines = [
    [{k: v for k, v in x.items() if k not in noise} for x in ledger.read(board)]
    for board in (ready, raced)
  ]
  assert lines[0] == lines[1], 'as if one process had done it alone'


def test_a_board_that_runs_takes_proposals(ready, fake, monkeypatch):
  propose(ready, 'first', '--config.optim.peak=0.02')
  propose(ready, 'second', '--config.optim.peak=0.025')
  train, calls = fake.train, []

  def meanwhile(*arguments):
    calls.append(arguments)
    if len(calls) == 1:
      propose(ready, 'third', '--config.optim.peak=0.03')
      arena.main(['withdraw', str(ready), 'first'])
    return train(*arguments)

  monkeypatch.setattr(runs, 'train', meanwhile)
  arena.main(['run', str(ready)])
  board = board_lib.Board(ready)
  assert board.pending() is None
  assert [x.name for x in board.proposals] == ['first', 'second', 'third']
  # The run that was under way is not written down any more.
  assert decision_of(ready, 'first')['stage'] == 'withdrawn'
  assert not board.find('first').trial.screening


def test_what_is_proposed_as_the_baseline_changes_is_made_for_the_new_one(
  ready, fake, monkeypatch
):
  propose(ready, 'better', '--config.optim.peak=0.02')
  ask = fake.ask

  def meanwhile(what, *rest):
    if what == 'describe':
      monkeypatch.setattr(runs, 'ask', ask)
      arena.main(['run', str(ready)])
    return ask(what, *rest)

  monkeypatch.setattr(runs, 'ask', meanwhile)
  propose(ready, 'more', '--config.optim.peak=0.03')
  board = board_lib.Board(ready)
  assert decision_of(ready, 'better')['is_accepted']
  assert board.find('more').base == 1
  assert board.find('more').changed == {'optim.peak': [0.02, 0.03]}


def test_a_proposal_waits_for_the_baseline(fake, tmp_path):
  board = new(tmp_path)
  with pytest.raises(config.ConfigError, match='the baseline has not run'):
    propose(board, 'a', '--config.optim.peak=0.02')


@pytest.mark.parametrize(
  ('words', 'say'),
  [
    (['--allow=data'], 'no board lets it change: data and evaluation'),
    (['--allow=evals.valid'], 'no board lets it change'),
    (['--allow-path=lm/'], 'no board lets it change: it holds data'),
    (['--allow-path=lm/evals/likelihood.py'], 'no board lets it change'),
    (['--evaluator=other'], 'the config has none of that name'),
    (['--level=1.5'], 'give a number between 0 and 1'),
    (['--baseline-runs=4', '--most-runs=2'], 'can show nothing at level'),
  ],
)
def test_a_board_that_cannot_be_is_one_line(fake, tmp_path, words, say):
  with pytest.raises(config.ConfigError, match=say):
    new(tmp_path, *words)
  assert not (tmp_path / 'board' / ledger.NAME).exists()


def test_the_sealed_split_is_not_where_runs_read(fake, tmp_path):
  valid = tmp_path / 'data' / 'valid'
  valid.mkdir(parents=True)
  (tmp_path / 'sealed').symlink_to(valid)
  with pytest.raises(proposals.Refused, match='holds the sealed split'):
    new(tmp_path)


def test_names_of_blocks_are_no_change():
  base = config.load(f'{CONFIG}:data')
  other = config.load(f'{CONFIG}:data')
  with other.unlocked():
    other.model.blocks.renamed = other.model.blocks.main
    del other.model.blocks['main']
    other.model.pattern = ('renamed',)
  assert proposals.changes(base, other) == {}
  with other.unlocked():
    other.model.blocks.renamed.mixer.heads = 1
  changed = proposals.changes(base, other)
  assert changed == {'model.blocks.0.mixer.heads': [2, 1]}
  merged = proposals.merge(base, other, base)
  assert merged.model.pattern == ('renamed',) and 'main' not in merged.model


def test_a_proposal_is_carried_to_a_later_baseline():
  base, other, now = (config.load(f'{CONFIG}:data') for _ in range(3))
  with other.unlocked(), now.unlocked():
    other.optim.peak, other.seed = 0.5, 9
    now.optim.decay, now.optim.peak = 0.25, 0.125
  merged = proposals.merge(base, other, now)
  assert (merged.optim.peak, merged.optim.decay, merged.seed) == (0.5, 0.25, 0)


PATCH = """diff --git a/{0} b/{0}
--- a/{0}
+++ b/{0}
@@ -1,3 +1,4 @@
 {1}
+# A patch.
 {2}
 {3}
"""


@pytest.mark.process
@pytest.mark.parametrize(
  ('name', 'say'),
  [
    ('lm/data/windows.py', 'may touch data, evaluation, tools or tests'),
    ('lm/evals/likelihood.py', 'may touch data, evaluation, tools or tests'),
    ('lm/loss.py', 'may touch data, evaluation, tools or tests'),
    ('tests/conftest.py', 'may touch data, evaluation, tools or tests'),
    ('tools/rerun.py', 'may touch data, evaluation, tools or tests'),
    ('lm/tree.py', 'is fixed on this board: a patch may touch'),
    ('lm/layers/norms.py', None),
  ],
)
def test_what_a_patch_may_touch(name, say):
  state = code_state.of(programs.ROOT)
  if state is None:
    pytest.skip('needs the repository of lm')
  shown = subprocess.run(
    ['git', 'show', f'{state.commit}:{name}'],
    cwd=programs.ROOT,
    capture_output=True,
    check=True,
    text=True,
  )
  patch = PATCH.format(name, *shown.stdout.splitlines()[:3])
  arguments = state.root, state.commit, [patch], proposals.PATHS
  if say is None:
    assert proposals.check_patch(*arguments)[0] == [name]
    return
  with pytest.raises(proposals.Refused, match=say):
    proposals.check_patch(*arguments)


LINK = """diff --git a/lm/layers/link b/lm/layers/link
new file mode 120000
--- /dev/null
+++ b/lm/layers/link
@@ -0,0 +1 @@
+../evals
\\ No newline at end of file
"""


@pytest.mark.process
def test_how_a_patch_is_written_does_not_count():
  """But a comment does: the proposal is new, and is tested at its own level."""
  state = code_state.of(programs.ROOT)
  if state is None:
    pytest.skip('needs the repository of lm')
  name = 'lm/layers/norms.py'
  lines = runs.checkout.git(
    state.root, 'show', f'{state.commit}:{name}'
  ).splitlines()
  short = PATCH.format(name, *lines[:3])
  more = ''.join(f' {line}\n' for line in lines[3:6])
  long = short.replace('-1,3 +1,4', '-1,6 +1,7') + more
  digests = set()
  for patch in (short, long):
    arguments = state.root, state.commit, [patch], proposals.PATHS
    digests.add(proposals.digest('', {}, proposals.check_patch(*arguments)[1]))
  assert len(digests) == 1
  other = short.replace('# A patch.', '# The patch.')
  arguments = state.root, state.commit, [other], proposals.PATHS
  tree = proposals.check_patch(*arguments)[1]
  assert proposals.digest('', {}, tree) not in digests
  with pytest.raises(proposals.Refused, match='no patch may make a link'):
    proposals.check_patch(state.root, state.commit, [LINK], proposals.PATHS)


@pytest.mark.slow
@pytest.mark.process
def test_a_board_of_real_runs(data, tmp_path, start):
  """A gain and a patch that changes nothing, with a kill in between."""
  state = code_state.of(programs.ROOT)
  if state is None:
    pytest.skip('needs the repository of lm')
  documents = [programs.TEXT[i % 17 :][: 20 + 7 * i % 60] for i in range(12)]
  writer.write(tmp_path / 'sealed/test', documents, utf8_bytes.make())
  board = tmp_path / 'board'

  def program(*words):
    process = start('tools.arena', [words[0], str(board), *words[1:]])
    assert process.wait() == 0, process.text()
    return process.text()

  changes = {'steps': 12, 'save_every': 12, 'optim__peak': 1e-4}
  flags = programs.flags(data, board, **changes)
  program(
    'new',
    *(x for x in flags if not x.startswith('--workdir')),
    f'--sealed={tmp_path}/sealed/test',
    '--task=tiny',
    '--tuned=no',
    *('--level=0.3', '--baseline-runs=4', '--most-runs=6'),
  )
  killed = start('tools.arena', ['run', str(board)])
  killed.wait_for(lambda: len(ledger.read(board)) > 2)
  killed.send(9)
  killed.wait()
  program('resume')
  shown = (programs.ROOT / 'lm/layers/norms.py').read_text().splitlines()[:3]
  patch = tmp_path / 'comment.patch'
  patch.write_text(PATCH.format('lm/layers/norms.py', *shown))
  program('propose', 'comment', '--effect=0.05', f'--patch={patch}')
  program('propose', 'peak', '--effect=0.05', '--config.optim.peak=0.01')
  program('run')
  status = json.loads(program('status', '--json'))
  states = {x['name']: x['state'] for x in status['proposals']}
  assert states == {'comment': 'rejected', 'peak': 'accepted'}
  runs_ = [x for x in ledger.read(board) if x['event'] == 'run']
  assert len({x['seed'] for x in runs_}) == len(runs_)
  # What is sealed is in no folder of a run.
  for path in (board / 'runs').rglob('*'):
    if path.is_file():
      assert b'sealed' not in path.read_bytes(), path
  assert status['head'] in program('verify')
