"""The bench: its arithmetic, tables, refusals, and each measurement, tiny.

No time is asserted beyond being positive and finite.
"""

import json
import math
import sys

import jax
import numpy as np
import pytest

from lm import tree
from tools.bench import __main__ as bench
from tools.bench import (
  flax_peer,
  measure,
  ours,
  peers,
  protocol,
  table,
  workers,
)
from tools.bench import spec as specs

TINY = specs.Spec('tiny', 64, 32, 2, 2, 128, 16, 8)
BLOCK = 12 * 32 * 32 + 13 * 32  # GPT-2's, with biases and two layer norms
PARAMETERS = 64 * 32 + 16 * 32 + 2 * BLOCK + 2 * 32

# A worker that needs no time: it answers what it was asked, in its own seconds.
ECHO = """
import json, sys
seconds = float(sys.argv[1])
print(json.dumps({'tokens': 100}), flush=True)
for line in sys.stdin:
  command, *rest = line.split()
  if command == 'step' and seconds < 0:
    sys.exit('Sorry: out of memory')
  answer = {'seconds': [seconds] * int(rest[0])} if rest else {}
  print(json.dumps(answer), flush=True)
"""
RUN = measure.Run(2, 0.01, None, False, None)

pytestmark = pytest.mark.process


def echo(seconds: float) -> measure.Entry:
  return measure.Entry(
    f'echo {seconds}', [sys.executable, '-c', ECHO, str(seconds)], 'echo', {}
  )


def check(workload: protocol.Workload) -> dict[str, list[float]]:
  try:
    workload.step()
    lists = protocol.timed(workload, 2)
    peaks = workload.peak() if workload.peak else {}
  finally:
    workload.close()
  for values in [*lists.values(), peaks.values()]:
    assert all(math.isfinite(x) and x > 0 for x in values), (lists, peaks)
  assert {len(values) for values in lists.values()} == {2}
  json.dumps(workload.facts)
  return lists


def test_specs_are_those_of_the_published_tables():
  assert specs.SPECS['S'][1:] == (8192, 256, 4, 4, 1024, 256, 16)
  assert specs.SPECS['M'][1:] == (16384, 512, 8, 8, 2048, 512, 8)
  assert 'width 256' in str(specs.SPECS['S'])
  # As OpenAI's, but for a vocabulary of 50,304 in place of 50,257.
  published = (124_439_808, 354_823_168, 774_030_080, 1_557_611_200)
  for name, parameters in zip(specs.LARGE, published, strict=True):
    _, V, D, depth, heads, F, L, _ = specs.SPECS[name]
    block = 4 * (D + 1) * D + 4 * D + (D + 1) * F + (F + 1) * D
    assert (V - 47 + L + 2) * D + depth * block == parameters
    assert 64 * heads == D


@pytest.mark.parametrize('precision', specs.PRECISIONS)
def test_training_lowers_the_loss(precision, monkeypatch):
  small = ours.matmul_peaks(64)
  monkeypatch.setattr(ours, 'matmul_peaks', lambda: small)
  workload = ours.training(list(TINY), precision)
  assert workload.tokens == 8 * 16
  assert workload.facts['parameters'] == PARAMETERS
  # 6 N + 12 layers length width, where N leaves out learned positions
  multiplied = PARAMETERS - 16 * 32
  assert workload.facts['flops_per_token'] == (
    6 * multiplied + 12 * 2 * 16 * 32
  )
  first, second = check(workload)['loss_nats']
  assert second < first < math.log(64) * 1.05


def test_linen_peer_is_the_same_model(monkeypatch):
  with jax.numpy_rank_promotion('allow'):
    workload = flax_peer.training(list(TINY), 'fp32')
    losses = check(workload)['loss_nats']
  assert workload.tokens == 8 * 16
  assert workload.facts['parameters'] == PARAMETERS
  assert losses[1] < losses[0] < math.log(64) * 1.05


def test_matmul_peak_multiplies_what_it_says(monkeypatch):
  """Time stands still but for one second a call: the count is what is left."""
  seconds = iter(range(1000))
  monkeypatch.setattr(ours.time, 'perf_counter', lambda: next(seconds))
  assert ours.matmul_peaks(32)() == dict.fromkeys(
    specs.PRECISIONS, 2 * 32**3 * 4
  )


@pytest.mark.parametrize('batch', [1, 3])
def test_generation(batch):
  workload = ours.generation(list(TINY), batch, new=5)
  assert workload.tokens == batch * 5
  check(workload)


@pytest.mark.parametrize('threads', [0, 2])
def test_loader(threads):
  workload = ours.loader(threads, tokens=20_000, batch=2, length=64, steps=3)
  assert workload.tokens == 2 * 64 * 3
  check(workload)


def test_checkpoint():
  workload = ours.checkpoints(list(TINY))
  lists = check(workload)
  # Adam's two moments, and four-byte counters.
  assert 0 < workload.facts['bytes'] - 12 * PARAMETERS <= 16
  for total, blocked in zip(
    lists['save_seconds'], lists['blocking_seconds'], strict=True
  ):
    assert blocked < total


def test_checkpoint_spec_has_505_megabytes():
  length = specs.CHECKPOINT.length
  model = ours._model(specs.CHECKPOINT, 'fp32', length)
  shapes = tree.shapes(model.parameters(ours.linen.example_batch(1, length)))
  size = 12 * tree.count(shapes)
  assert round(size / 1e6) == 505


def test_probe_knows_this_machine():
  facts = ours.probe().facts
  assert facts['platform'] == jax.default_backend()
  assert facts['devices'] == jax.device_count()
  assert facts['versions']['jax'] == jax.__version__


def test_a_real_worker_answers(tmp_path):
  settings = {'threads': 1, 'tokens': 9_000, 'batch': 2, 'length': 64}
  command = [*workers.ours(), 'loader', json.dumps({**settings, 'steps': 2})]
  with workers.Worker('loader', command, {}) as worker:
    assert worker.facts['tokens'] == 2 * 64 * 2
    assert worker.facts['first_step_seconds'] > 0
    assert worker.facts['start_seconds'] > worker.facts['first_step_seconds']
    assert len(worker.ask('step 3')['seconds']) == 3
    assert worker.ask('peak') == {}


def test_workers_take_turns_and_are_compared():
  fast, slow = measure.compare(RUN, [echo(0.001), echo(0.002)])
  assert fast['best_tokens_per_second'] == pytest.approx(100 / 0.001)
  assert slow['median_tokens_per_second'] == pytest.approx(100 / 0.002)
  # Blocks of 0.01 s: ten steps of the fast one, five of the slow one.
  assert (fast['steps'], slow['steps']) == (20, 10)
  assert 'ratio' not in fast
  assert slow['ratio'] == slow['best_ratio'] == pytest.approx(2)


def test_a_worker_that_fails_is_a_line_in_the_table():
  good, bad = measure.compare(
    RUN, [echo(0.001), measure.Entry('no', [sys.executable, '-c', ''], 'x', {})]
  )
  assert bad['failed'] == 'no: ended: '
  assert good['steps'] == 20
  rows = measure.compare(RUN, [echo(-1)])
  assert rows[0]['failed'] == 'echo -1: ended: Sorry: out of memory'
  assert 'failed: echo -1: ended: Sorry' in table.throughput(rows)


def test_workers_find_nothing_compiled_before():
  script = """
import json, os
kept = {k: v for k, v in os.environ.items() if 'CACHE' in k and 'JAX' in k}
print(json.dumps({'tokens': 1, 'kept': kept}))
"""
  with workers.Worker('w', [sys.executable, '-c', script], {}) as worker:
    kept = worker.facts['kept']
  assert kept['JAX_ENABLE_COMPILATION_CACHE'] == 'false'
  assert 'JAX_COMPILATION_CACHE_DIR' not in kept


def test_ratios_are_paired():
  """The machine halves its speed in round 2; pairs do not see it."""
  ours_ = [{'seconds': [1.0, 1.2, 5.0]}, {'seconds': [2.0, 2.4, 9.0]}]
  theirs = [{'seconds': [2.0, 2.4, 3.0]}, {'seconds': [3.0, 3.6, 9.0]}]
  assert table.paired(ours_, theirs) == {
    'ratio': pytest.approx((2.0 + 1.5) / 2),
    'least_ratio': pytest.approx(1.5),
    'greatest_ratio': pytest.approx(2.0),
    'best_ratio': pytest.approx(2.0),
  }
  assert table.rates(ours_, 12) == {
    'best_tokens_per_second': 12.0,
    'median_tokens_per_second': pytest.approx(12 / 2.2),
    'steps': 6,
  }


def test_shares_and_quantities():
  blocks = [{'peak': {'bf16': 1e9}}, {'peak': {'bf16': 4e9}}, {'peak': {}}]
  assert table.peak(blocks, 'bf16') == 4e9
  assert table.peak([{'peak': {}}], 'bf16') is None
  assert table.share(1000, 2e6, 4e9) == 0.5
  texts = [table.quantity(x) for x in (None, 3.14159, 999.7, 12_345, 2.5e9)]
  assert texts == ['-', '3.14', '1k', '12.3k', '2.5G']
  assert table.percent(0.414) == '41 %' and table.percent(None) == '-'


def _training_rows() -> list[table.Row]:
  row = {
    'who': 'lm',
    'precision': 'bf16',
    'best_tokens_per_second': 12_345.0,
    'median_tokens_per_second': 9_000.0,
    'gemm_flops': 4e11,
    'gemm_share': 0.43,
    'mfu': 0.5,
    'first_step_seconds': 2.0,
    'start_seconds': 4.0,
    'memory_bytes': 24.7e9,
  }
  peer = {'ratio': 1.5, 'least_ratio': 1.2, 'greatest_ratio': 2.0}
  return [
    row,
    {**row, 'who': 'torch', **peer, 'best_ratio': 1.4},
    {'who': 'broken', 'precision': 'bf16', 'failed': 'no a|b'},
  ]


@pytest.mark.parametrize('accelerator', [False, True])
def test_tables_are_markdown(accelerator):
  text = table.training(_training_rows(), accelerator)
  lines = text.splitlines()
  assert len(lines) == 5 and len({line.count('|') for line in lines}) == 1
  assert len({len(line) for line in lines}) == 1
  assert set(lines[1]) == {'|', ' ', '-'}
  assert '12.3k' in lines[2] and '43 %' in lines[2]
  assert ('50 %' in lines[2]) == ('24.7G' in lines[2]) == accelerator
  assert '1.50 (1.20-2.00) | 1.40' in ' '.join(lines[3].split())
  assert 'failed: no a/b' in lines[4]
  times = {
    name: [0.2, 0.1, 0.3]
    for name in ('blocking_seconds', 'save_seconds', 'restore_seconds')
  }
  text = table.checkpoint([{'who': 'lm', 'bytes': 505e6, **times}])
  assert text.count('| 0.100   | 0.200  |') == 3 and '505M' in text


def test_unknown_chips_are_refused():
  facts = {
    'platform': 'gpu',
    'device': 'Fancy 1',
    'devices': 2,
    'peak': None,
    'unknown': "device 'Fancy 1': peak FLOP/s unknown",
  }
  with pytest.raises(
    ValueError, match=r"device 'Fancy 1': .*unknown, or give --no-mfu"
  ):
    bench.chip_peak(facts, True)
  assert bench.chip_peak(facts, False) is None
  assert bench.chip_peak({**facts, 'peak': 1e15}, True) == 2e15
  assert bench.chip_peak({**facts, 'platform': 'cpu'}, True) is None


def test_an_unknown_chip_ends_the_program_with_2(monkeypatch, capsys):
  facts = {
    'platform': 'gpu',
    'device': 'Fancy 1',
    'devices': 1,
    'peak': None,
    'unknown': 'peak FLOP/s unknown',
    'tokens': 0,
  }
  script = f'print({json.dumps(json.dumps(facts))})'
  monkeypatch.setattr(workers, 'ours', lambda: [sys.executable, '-c', script])
  assert bench.main(['--only=training']) == 2
  error = capsys.readouterr().err
  assert error == 'error: peak FLOP/s unknown, or give --no-mfu\n'


def test_specs_are_chosen_by_machine():
  def names(text, accelerator):
    return [s.name for s in bench.choose_specs(text, accelerator)]

  assert names(None, False) == ['S', 'M']
  assert names(None, True) == list(specs.SPECS)
  assert names('M,S', False) == ['M', 'S']
  with pytest.raises(ValueError, match='--spec=gpt2 needs an accelerator'):
    names('gpt2', False)
  with pytest.raises(ValueError, match="--spec: unknown 'X'; choose from S"):
    names('S,X', False)


@pytest.mark.parametrize(
  'flag', ['--only=speed', '--rounds=0', '--rounds=x', '--torch=no/python']
)
def test_wrong_flags_end_with_2(flag, capsys):
  with pytest.raises(SystemExit) as ended:
    bench.main([flag])
  assert ended.value.code == 2
  assert flag.partition('=')[0] in capsys.readouterr().err


def test_the_whole_program_prints_and_writes(monkeypatch, tmp_path, capsys):
  def compare(run, entries, *, versus=True):
    rows = []
    for entry in entries:
      blocks = [{'seconds': [0.5, 1.0], 'peak': {'fp32': 2e9, 'bf16': 4e9}}]
      facts = {
        'parameters': 7,
        'flops_per_token': 1e6,
        'devices': 1,
        'bytes': 5e6,
        'first_step_seconds': 1.0,
        'start_seconds': 2.0,
        'memory_bytes': None,
      }
      for name in ('blocking_seconds', 'save_seconds', 'restore_seconds'):
        blocks[0][name] = [0.5, 1.0]
      rows.append(
        {'who': entry.who, 'facts': facts, 'blocks': blocks}
        | table.rates(blocks, 100)
      )
    return rows

  monkeypatch.setattr(measure, 'compare', compare)
  script = f'print({json.dumps(json.dumps(_plain(ours.probe())))})'
  monkeypatch.setattr(workers, 'ours', lambda: [sys.executable, '-c', script])
  path = tmp_path / 'bench.json'
  assert bench.main(['--spec=S', f'--json={path}', '--no-mfu']) == 0
  text = capsys.readouterr().out
  for part in ('### Training, S', '### Loader', '### Gen', '### Checkpoint'):
    assert part in text
  assert f'jax {jax.__version__}' in text
  # 200 tokens/s at 1e6 FLOP a token, of 2e9 and of 4e9
  assert '| 10 % ' in text and '| 5 % ' in text
  found = json.loads(path.read_text())
  shares = [row['gemm_share'] for row in found['results']['training']]
  np.testing.assert_allclose(shares, [0.1, 0.05])
  assert found['commit'] and found['date'] and found['chip']


def _plain(workload: protocol.Workload) -> dict[str, object]:
  return {'tokens': 0, **workload.facts}


@pytest.mark.skipif(
  not (peers.FOLDER / 'requirements').exists(),
  reason='needs .cache/bench-peers: python -m tools.bench --peers',
)
@pytest.mark.parametrize('workload', ['training', 'generation'])
def test_torch_peer_is_the_same_model(workload):
  settings = {
    'training': {'spec': TINY, 'precision': 'bf16'},
    'generation': {'spec': TINY, 'batch': 2, 'new': 3},
  }[workload]
  command = [*peers.torch(peers.environment()), workload, json.dumps(settings)]
  # Compiling takes a minute; the model is the same without.
  more = {'TORCHDYNAMO_DISABLE': '1'}
  with workers.Worker('torch', command, more) as worker:
    answer = worker.ask('step 2')
    assert all(x > 0 for x in answer['seconds'])
    if workload == 'training':
      assert worker.facts['parameters'] == PARAMETERS
      first, second = answer['loss_nats']
      assert second < first < math.log(64) * 1.05
    else:
      assert worker.facts['tokens'] == 6


def test_peers_that_cannot_be_installed_are_one_line(monkeypatch, tmp_path):
  monkeypatch.setattr(peers, '_interpreter', lambda: sys.executable)
  monkeypatch.setattr(peers, 'REQUIREMENTS', ('no such requirement',))
  monkeypatch.setattr(
    peers.subprocess,
    'run',
    lambda command, **kw: peers.subprocess.CompletedProcess(
      command, 1, '', 'Looking\nERROR: nothing found\n'
    ),
  )
  with pytest.raises(workers.Failed) as failed:
    peers.environment(tmp_path / 'peers')
  text = str(failed.value)
  assert 'ERROR: nothing found; check the network' in text
  assert len(text.splitlines()) == 1 and not (tmp_path / 'peers').exists()
