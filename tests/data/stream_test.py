"""The batch at a step: the same on any hosts, threads, prefetch and restart."""

import hashlib
import itertools
import json
import random
import threading
import tracemalloc

import numpy as np
import pytest

from lm import types
from lm.data import prefetch, shards, stream, windows, writer
from lm.data.tokenizers import utf8_bytes

WORDS = utf8_bytes.make()
NAMES = ('code', 'news', 'web')
STEPS = 24
CHANGES = (
  (7, {'code': 1.0, 'news': 1.0, 'web': 1.0}),
  (15, {'code': 5.0, 'news': 0.0, 'web': 2.0}),
)
# The first batch of the corpus below. It changes only if the order of data,
# the packing or the byte tokenizer change.
GOLDEN = '9ea61bec22bd5c855bb2129ae83a7d54fd61ca4b9dce4f42ae9f1b8edddbf177'


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp('data')
  for n, name in enumerate(NAMES):
    texts = [f'{name} {i} ' + 'word ' * (i * (n + 3) % 11) for i in range(70)]
    writer.write(root / name, texts, WORDS, shard_tokens=900)
  return root


@pytest.fixture
def make(root):
  def make(**kw) -> stream.Data:
    weights = dict(zip(NAMES, (3.0, 1.0, 0.0), strict=True))
    sources = {
      name: {'path': str(root / name), 'weight': weights[name]}
      for name in NAMES
    }
    defaults = {
      'sources': sources,
      'tokenizer': WORDS,
      'seed': 5,
      'batch_size': 8,
      'length': 32,
      'changes': CHANGES,
    }
    return stream.make(**{**defaults, **kw})

  return make


def digest(batch: types.Batch) -> str:
  sha = hashlib.sha256()
  for field in batch[:5]:
    sha.update(np.ascontiguousarray(field).tobytes())
  return sha.hexdigest()


def join(parts: list[types.Batch]) -> types.Batch:
  columns = zip(*[part[:5] for part in parts], strict=True)
  return types.Batch(*[np.concatenate(column) for column in columns])


def test_golden_batch(make):
  assert digest(make().batch(3)) == GOLDEN, (
    'The data of every run has changed: no checkpoint resumes on the same '
    'tokens. If that is meant, say so in the notes of the release and put the '
    'new hash here; if not, find which of locate, pack, hashed, permuted, '
    'mixture.make or the byte tokenizer changed.'
  )


@pytest.mark.slow
def test_same_tokens_for_any_hosts_threads_prefetch_kills_and_changes(make):
  whole = make()
  expected = [digest(whole.batch(n)) for n in range(STEPS)]
  assert len(set(expected)) == STEPS
  rng = random.Random(0)
  for _ in range(100):
    step, position, done = 0, None, []
    while step < STEPS:
      # A run that does not know the later changes yet reads the same.
      known = [c for c in CHANGES if c[0] <= step or rng.random() < 0.5]
      data = make(position=position, changes=known)
      limit = min([c[0] for c in CHANGES if c not in known], default=STEPS)
      stop = min(rng.randint(step + 1, STEPS), limit)
      hosts = rng.choice((1, 2, 4))
      readers = [
        prefetch.batches(
          data,
          step,
          STEPS,
          threads=rng.randint(0, 3),
          prefetch=rng.randint(0, 5),
          host=host,
          hosts=hosts,
        )
        for host in range(hosts)
      ]
      for parts in itertools.islice(zip(*readers, strict=True), stop - step):
        assert {n for n, _ in parts} == {step}
        done.append(digest(join([batch for _, batch in parts])))
        step += 1
      for reader in readers:
        reader.close()
      position = json.loads(json.dumps(data.state(step)))
    assert done == expected


LENGTHS = ((0, 8), (5, 16), (9, 32), (14, 4))


def test_other_lengths_read_the_same_tokens_in_the_same_steps(make):
  whole, short = make(), make(lengths=LENGTHS)
  assert [x.tokens.shape for x in short.examples] == [
    (8, 32),
    (16, 16),
    (32, 8),
    (64, 4),
  ]
  assert short.example.tokens.shape == (8, 32)
  assert short.step_tokens == whole.step_tokens
  padded = 0
  for step in range(STEPS):
    length = [n for first, n in LENGTHS if first <= step][-1]
    a, b = whole.batch(step), short.batch(step)
    assert b.tokens.shape == (8 * 32 // length, length)
    for name in ('targets', 'weights'):
      np.testing.assert_array_equal(
        getattr(a, name), getattr(b, name).reshape(8, 32)
      )
    # Each row starts anew: its first token is the one before its targets.
    live = b.segments[:, 0] > 0
    assert (b.positions[:, 0] == 0).all() and (b.segments[live, 0] == 1).all()
    np.testing.assert_array_equal(
      a.tokens.reshape(b.tokens.shape)[live], b.tokens[live]
    )
    padded += int((b.weights == 0).sum())
    assert short.state(step) == whole.state(step)
  assert padded
  assert digest(short.batch(9)) == digest(whole.batch(9))


def test_lengths_on_any_hosts_and_after_any_stop(make):
  whole, position = make(lengths=LENGTHS), make().state(4)
  for step in range(4, 15):
    data = make(lengths=LENGTHS, position=position)
    for hosts in (1, 4):
      parts = [data.batch(step, host, hosts) for host in range(hosts)]
      assert digest(join(parts)) == digest(whole.batch(step))
    position = json.loads(json.dumps(data.state(step + 1)))
    assert position['tokens'] == (step + 1) * 8 * 32
  # Lengths are no part of the place: a run that goes on may have others.
  other = make(lengths=((20, 16),), position=make().state(10))
  assert digest(other.batch(12)) == digest(make().batch(12))
  assert other.batch(20).tokens.shape == (16, 16)
  assert other.state(22) == make().state(22)


def test_each_part_of_a_row_draws_for_itself(make):
  prefix = {'fn': 'lm.data.objectives:prefix_lm'}
  data = make(objective=prefix, lengths=((0, 16),))
  again = make(objective=prefix, lengths=((3, 16),))
  assert digest(data.batch(4)) == digest(again.batch(4))
  batch = data.batch(0)
  assert batch.prefix is not None
  lengths = batch.prefix.sum(axis=1).reshape(8, 2)
  assert (lengths[:, 0] != lengths[:, 1]).any()


def test_every_token_once_an_epoch_through_the_whole_pipe(make, root):
  source = {'path': str(root / 'web'), 'weight': 1.0}
  data = make(sources={'web': source}, changes=(), batch_size=1, length=100)
  manifest = shards.load(root / 'web').manifest
  count = -(-manifest.tokens // 100)
  corpus = shards.load(root / 'web').read(0, manifest.tokens)
  for epoch in range(2):
    batches = [data.batch(epoch * count + n) for n in range(count)]
    targets = np.concatenate([b.targets[b.weights > 0] for b in batches])
    np.testing.assert_array_equal(np.sort(targets), np.sort(corpus))


def test_seed_and_source_names_change_the_order(make, root):
  one = digest(make().batch(0))
  assert digest(make().batch(0)) == one
  assert digest(make(seed=6).batch(0)) != one
  source = {'path': str(root / 'web'), 'weight': 1.0}
  a, b = (make(sources={n: source}, changes=()).batch(0) for n in 'ab')
  assert digest(a) != digest(b)


def test_step_a_billion_costs_what_step_one_costs(make, monkeypatch):
  data = make()
  work = []
  mix = windows._mix
  monkeypatch.setattr(windows, '_mix', lambda x: work.append(x.size) or mix(x))

  def cost(step: int) -> tuple[int, int]:
    work.clear()
    tracemalloc.start()
    data.batch(step)
    data.state(step)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return sum(work), peak

  cost(0)
  near, far = cost(1), cost(10**9)
  assert far[0] <= 2 * near[0]  # hashes
  # `state` tallies the part of one period that is done, at most 64 Ki slots
  assert far[1] <= near[1] + (1 << 21)
  assert data.state(10**9)['samples'] == 8 * 10**9


def test_mixture_follows_the_weights(make):
  data = make(length=8)
  assert data.state(7)['counts'] == {'code': 42, 'news': 14, 'web': 0}
  later = data.state(15)['counts']
  assert {k: later[k] - v for k, v in data.state(7)['counts'].items()} == {
    'code': pytest.approx(64 / 3, abs=2),
    'news': pytest.approx(64 / 3, abs=2),
    'web': pytest.approx(64 / 3, abs=2),
  }
  assert data.state(1000)['counts']['news'] == later['news']


def test_position_survives_another_batch_size_and_length(make):
  first = make()
  position = first.state(10)
  # 320 samples of 32 tokens were seen
  other = make(batch_size=4, length=16, position=position)
  state = other.state(10)
  assert state['counts'] == {k: 2 * n for k, n in position['counts'].items()}
  assert state['tokens'] == position['tokens'] == 10 * 8 * 32
  assert other.state(12)['tokens'] == position['tokens'] + 2 * 4 * 16
  assert other.batch(10).tokens.shape == (4, 16)
  with pytest.raises(ValueError, match='step 9 lies before step 10, where'):
    other.batch(9)
  # and a run resumed from there goes on bit for bit, changes included
  again = make(batch_size=4, length=16, position=other.state(13))
  for step in (13, 14, 15, 16, 30):
    assert digest(again.batch(step)) == digest(other.batch(step))
  assert again.state(20) == other.state(20)
  back = make(position=other.state(12))
  assert back.state(12)['tokens'] == other.state(12)['tokens']


def test_state_is_plain_json(make):
  state = make().state(9)
  assert json.loads(json.dumps(state)) == state
  assert state['step'] == 9 and state['samples'] == 72
  assert state['fingerprint'] == make().fingerprint


def test_position_of_other_data_or_weights_is_refused(make, root, tmp_path):
  position = make().state(10)
  writer.write(tmp_path / 'new', ['other text'], WORDS)
  sources = {
    name: {'path': str(root / name), 'weight': w}
    for name, w in zip(NAMES, (3.0, 1.0, 0.0), strict=True)
  }
  swapped = {**sources, 'news': {'path': str(tmp_path / 'new'), 'weight': 1.0}}
  with pytest.raises(ValueError, match=r'dataset news: is .* trained on') as e:
    make(sources=swapped, position=position)
  assert len(str(e.value)) <= 200
  added = {**sources, 'zoo': {'path': str(root / 'web'), 'weight': 0.0}}
  changes = [(s, {**share, 'zoo': 0.0}) for s, share in CHANGES]
  with pytest.raises(ValueError, match=r'dataset zoo: is .* on missing'):
    make(sources=added, changes=changes, position=position)
  with pytest.raises(ValueError, match='weights before step 10 differ'):
    make(changes=CHANGES[1:], position=position)
  torn = {**position['anchor'], 'past': [{'step': 0}]}
  for bad in (
    {},
    {'step': 1},
    {**position, 'anchor': None, 'counts': 3},
    {**position, 'anchor': torn},
  ):
    with pytest.raises(ValueError, match='position is not one that'):
      make(position=bad)


def test_bad_settings_are_one_line(make, root):
  good = {'path': str(root / 'web'), 'weight': 1.0}
  share = {'code': 1.0, 'news': 1.0, 'web': 1.0}
  for kw, message in (
    ({'batch_size': 0}, 'batch_size: 0 is not a positive integer'),
    ({'length': 2.5}, r'data\.length: 2\.5 is not'),
    ({'sources': {}}, r'data\.sources: empty'),
    ({'sources': {'a': {'path': 'x'}}}, r'sources\.a: has keys .*path and'),
    ({'sources': {'a': {**good, 'wieght': 1}}}, 'give path and weight'),
    ({'sources': {'a': {**good, 'weight': 0}}, 'changes': ()}, 'not all 0'),
    (
      {'sources': {'a': {**good, 'weight': float('nan')}}, 'changes': ()},
      'give 0 or numbers',
    ),
    ({'changes': ((5, share), (5, share))}, 'step 5 is not after'),
    ({'changes': ((5, {'web': 1.0}),)}, r"step 5 has weights of \['web'\]"),
    ({'changes': ((5, {**share, 'web': 1e-9}),)}, 'at least 1/65536'),
    ({'changes': ((5, {**share, 'web': -1}),)}, 'give 0 or numbers'),
    ({'lengths': ((5, 8), (5, 16))}, r'lengths: step 5 is not after'),
    ({'lengths': ((0, 12),)}, r'12 at step 0 does not divide data\.length=32'),
    (
      {
        'tokenizer': utf8_bytes.make(reserved=9),
        'lengths': ((0, 16),),
        'objective': {'fn': 'lm.data.corruption:span_corruption', 'source': 24},
      },
      r'lengths: with rows of 16 .*; it has one length',
    ),
    ({'sources': {'a': {**good, 'path': 'nowhere'}}, 'changes': ()}, 'nowhere'),
  ):
    with pytest.raises(ValueError, match=message) as e:
      make(**kw)
    assert '\n' not in str(e.value) and len(str(e.value)) <= 200
  with pytest.raises(ValueError, match='8 does not divide over 3 hosts'):
    make().batch(0, host=0, hosts=3)


def test_example_has_the_shapes_of_a_batch(make):
  data = make()
  for a, b in zip(data.example[:5], data.batch(0)[:5], strict=True):
    assert a.shape == b.shape and a.dtype == b.dtype


def test_bytes_per_token_is_weighted(make, root):
  def ratio(name):
    m = shards.load(root / name).manifest
    return m.text_bytes / m.tokens

  expected = 0.75 * ratio('code') + 0.25 * ratio('news')
  assert make().bytes_per_token == pytest.approx(expected)


def test_text_that_ids_do_not_give_back_has_no_bytes_per_token(tmp_path, root):
  lossy = WORDS._replace(
    lossless=False,
    encode_batch=lambda texts: [WORDS.encode(text.lower()) for text in texts],
  )
  writer.write(tmp_path / 'lost', ['Some Words ' * 9] * 9, lossy)
  writer.write(tmp_path / 'kept', ['some words ' * 9] * 9, lossy)
  old = root / NAMES[0]  # nothing was measured, as in older versions

  def mixed(*paths, tokenizer=lossy) -> stream.Data:
    sources = {
      f'{n}': {'path': str(path), 'weight': 1.0} for n, path in enumerate(paths)
    }
    return stream.make(
      sources, tokenizer=tokenizer, seed=0, batch_size=2, length=8
    )

  lost, kept = tmp_path / 'lost', tmp_path / 'kept'
  for paths, known in (
    ((kept,), True),
    ((lost,), False),
    ((kept, lost), False),
    ((old,), False),
    ((kept, old), False),
  ):
    found = [mixed(*paths)]
    if len(paths) == 1:
      path = str(paths[0])
      found.append(stream.once(path, tokenizer=lossy, batch_size=2, length=8))
    for data in found:
      assert (data.bytes_per_token is not None) == known, paths
      assert data.likelihood
  assert mixed(old, tokenizer=WORDS).bytes_per_token is not None


@pytest.mark.parametrize('threads', (0, 2))
def test_damage_surfaces_before_its_bytes_are_used(tmp_path, threads):
  writer.write(tmp_path / 's', ['text ' * 400], WORDS)
  file = tmp_path / 's' / '00000.bin'
  data = bytearray(file.read_bytes())
  data[1000] ^= 4
  file.write_bytes(data)
  data = stream.once(
    str(tmp_path / 's'), tokenizer=WORDS, batch_size=2, length=8
  )
  with pytest.raises(ValueError, match=r'00000\.bin: block 0 of 1 is damaged'):
    next(prefetch.batches(data, 0, 5, threads=threads))


@pytest.mark.parametrize('threads', (0, 2))
def test_a_reader_that_hangs_is_named(make, monkeypatch, threads):
  release = threading.Event()
  read = shards._Blocks.read

  def hang(self, start, count):
    if stalled and self.path.endswith(stalled):
      release.wait(3)  # longer than the deadline, and no longer
    return read(self, start, count)

  stalled = ''
  monkeypatch.setattr(shards._Blocks, 'read', hang)
  data = make()
  batches = prefetch.batches(
    data, 0, 50, threads=threads, prefetch=2, deadline_seconds=0.2
  )
  try:
    next(batches)
    stalled = 'code/00000.bin'
    reader = 'grain-prefetch_' if threads else 'lm-data_0'
    with pytest.raises(
      prefetch.Stalled, match=rf'code/00000\.bin \({reader}'
    ) as e:
      for _ in batches:
        pass
    assert 'no batch for step' in str(e.value) and '\n' not in str(e.value)
    assert e.value.exit_code == 5
  finally:
    release.set()


def test_an_empty_range_gives_nothing(make):
  assert list(prefetch.batches(make(), 7, 7)) == []
