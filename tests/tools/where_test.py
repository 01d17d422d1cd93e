"""Where a text lies, and which steps read it: as brute force finds them."""

import itertools
import json
from pathlib import Path
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from lm import config, train
from lm.config import untrusted
from lm.corpus import build as factory
from lm.corpus import provenance
from lm.data import locate, shards
from lm.data.tokenizers import utf8_bytes
from lm.reporting import metrics_log
from lm.training import setup
from tests import builds, programs
from tools.where import __main__ as where
from tools.where import answers, runs

CANARY = 'canary 4711 sings'
STEPS = 30


def documents() -> list[builds.Document]:
  """Sixty documents of two sources, with canaries and drops among them."""
  rng = np.random.default_rng(0)
  words = ['quick', 'brown', 'foxes', 'jump', 'over', 'a', 'lazy', 'dog']
  found = []
  for n in range(60):
    source = 'web' if n < 40 else 'wiki'
    text = ' '.join(rng.choice(words, 3 + n % 9))
    if n in (5, 30, 50):
      text = f'{text} {CANARY} {text}'
    found.append(builds.Document(source, text))
  twin = found[30].text
  found[33] = builds.Document('web', twin, 'near.duplicate', 30, 0.875)
  found[34] = builds.Document('web', f'Canary\n 4711\u3000SINGS {twin[:9]}')
  found[35] = builds.Document('web', f'{CANARY}!', 'quality.words', None, 3)
  found[36] = builds.Document('web', twin, 'exact.document', 33)
  return found


@pytest.fixture(scope='module')
def build(tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp('factory') / 'build'
  builds.write(folder, documents())
  return folder


def settings(build: Path, **changes) -> config.Config:
  """Makes the config of a tiny run on a build."""
  c = programs.make(build, **changes).copy_and_resolve_references().unlock()
  del c.data['seconds'], c.data['hang_at']
  c.evals = {}
  c.data.fn = 'lm.data.stream:make'
  c.data.sources = {
    'web': {'path': str(build / 'train/web'), 'weight': 2.0},
    'wiki': {'path': str(build / 'train/wiki'), 'weight': 1.0},
  }
  return c.lock()


@pytest.fixture(scope='module')
def run(build, tmp_path_factory) -> Path:
  """A run that changed batch size and weights on its way; do not change it."""
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv(untrusted.VARIABLE, '/,tests')
    first = {'steps': 6, 'save_every': 3, 'optim__warmup': 1}
    train.train(settings(build, **first, batch_size=8), workdir)
    c = settings(build, **{**first, 'steps': 12}, batch_size=16).unlock()
    c.allow = ('batch_size', 'steps', 'data.changes')
    c.data.changes = ((8, {'web': 1.0, 'wiki': 3.0}),)
    train.train(c.lock(), workdir)
    # Now it is to go on, but has not yet.
    text = (workdir / 'config.json').read_text()
    text, count = re.subn('"steps": 12', f'"steps": {STEPS}', text)
    assert count == 1
    (workdir / 'config.json').write_text(text)
  return workdir


def output(capsys, *flags: str) -> list[str]:
  where.main(flags)
  return capsys.readouterr().out.splitlines()


def test_a_text_is_found_with_its_fate(build, capsys):
  lines = output(capsys, CANARY, f'--build={build}')
  assert lines[0] == (
    'documents with the text: 6 (3 kept, 1 dropped by exact.document, 1 '
    'dropped by near.duplicate, 1 dropped by quality.words)'
  )
  heads = [line for line in lines if line.startswith('document ')]
  assert heads == [
    'document 5: web, raw/web.jsonl, line 6',
    'document 30: web, raw/web.jsonl, line 31',
    'document 33: web, raw/web.jsonl, line 34',
    'document 35: web, raw/web.jsonl, line 36',
    'document 36: web, raw/web.jsonl, line 37',
    'document 50: wiki, raw/wiki.jsonl, line 51',
  ]
  drops = [line for line in lines if 'dropped: ' in line]
  assert drops == [
    '  dropped: near.duplicate, value 0.875, for document 30: web, '
    'raw/web.jsonl, line 31',
    '  dropped: quality.words, value 3',
    '  dropped: exact.document, for document 33: web, raw/web.jsonl, line 34, '
    'itself dropped by near.duplicate',
  ]
  assert sum(CANARY in line for line in lines) == 6  # the previews


def test_a_document_that_was_cut_may_hold_the_text_in_its_end(tmp_path, capsys):
  text = '\n'.join(f'line {n} of one text' for n in range(200))
  (tmp_path / 'one.txt').write_text(text)
  c = config.load('configs/data/base.py', required=()).unlock()
  c.sources = {'one': {'inputs': str(tmp_path / 'one.txt'), 'rank': 0}}
  c.tokenizer_file, c.split_valid = 'bytes', 0.3
  factory.run(c.lock(), tmp_path / 'build')
  lines = output(capsys, 'line 199 of', f'--build={tmp_path / "build"}')
  assert any('may lie in its end, which is for validation' in x for x in lines)


def test_a_place_in_a_shard_holds_the_text(build, capsys):
  pattern = (
    r'  in (\S+): shard (\S+), document (\d+) of it \((\d+) of the dataset\), '
    r'its tokens (\d+) to (\d+)'
  )
  found = 0
  for line in output(capsys, CANARY, f'--build={build}'):
    if not (match := re.fullmatch(pattern, line)):
      continue
    name, shard, inside, number, start, stop = match.groups()
    found += 1
    tokens = np.fromfile(build / name / f'{shard}.bin', '<u2')
    offsets = np.fromfile(build / name / f'{shard}.idx', '<i8')
    assert offsets[int(inside)] == int(start)
    assert offsets[int(inside) + 1] == int(stop) + 1
    ids = tokens[int(start) : int(stop) + 1].tolist()
    assert CANARY in utf8_bytes.make().decode(ids)
    assert shards.load(build / name).document(int(number)).tolist() == ids
  assert found == 3


def test_case_and_white_space_can_be_ignored(build, capsys):
  words = '  canary 4711\tSings'
  assert 'text: 0' in output(capsys, words, f'--build={build}')[0]
  lines = output(capsys, words, '--loose', f'--build={build}')
  assert 'text: 7 (4 kept' in lines[0]
  assert any('34: web' in line for line in lines)
  # What has a meaning in a regular expression is itself.
  assert 'text: 0' in output(capsys, '.*', '--loose', f'--build={build}')[0]


def test_what_is_shown_is_limited_and_counted(build, capsys):
  lines = output(capsys, 'o', f'--build={build}', '--limit=2')
  assert sum(line.startswith('document ') for line in lines) == 2
  count = int(re.findall(r'text: (\d+)', lines[0])[0])
  assert lines[-1] == f'{count - 2} more: give a larger --limit'
  assert count == sum('o' in x.text for x in documents())


def test_personal_data_are_masked_in_what_is_shown(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setenv(untrusted.VARIABLE, '/,tests')
  filler = 'of the long report '
  texts = [
    f'kept: write to anna@example.com about the {CANARY}',
    f'{filler}dropped: {"o" * 40} call 212-555-1234, {CANARY}, {filler}',
  ]
  found = [
    builds.Document('web', texts[0]),
    builds.Document('web', texts[1], 'quality.words'),
    *(builds.Document('wiki', f'{filler * 9} {n}') for n in range(9)),
  ]
  builds.write(tmp_path / 'build', found)
  flag = f'--build={tmp_path / "build"}'
  for words, shown in (
    ([], ['kept: write to <EMAIL> about', 'call <PHONE>, canary']),
    (['--raw'], ['to anna@example.com about', 'call 212-555-1234, canary']),
  ):
    lines = output(capsys, CANARY, flag, *words)
    for line in shown:
      assert sum(line in x for x in lines) == 1, lines
  # What is looked for is masked too, and what a preview cuts.
  for text in ('555-12', 'anna@ex', f'{"o" * 30} call 2'):
    lines = output(capsys, text, flag)
    assert 'text: 1' in lines[0]
    assert not any('555' in x or 'anna' in x or '@' in x for x in lines)
  # A run that has not begun yet.
  workdir = tmp_path / 'run'
  workdir.mkdir()
  c = settings(tmp_path / 'build', steps=STEPS)
  config.store(setup.fill(c), workdir / 'config.json')
  flags = [f'--workdir={workdir}', flag]
  steps = {
    x.split()[1].strip(',')
    for x in output(capsys, 'anna@', *flags)
    if x.startswith('    step')
  }
  # Its windows are so short that some cut the address.
  for step in steps:
    said = '\n'.join(output(capsys, f'--step={step}', *flags))
    assert not re.search('anna|@|ample', said)
    assert '<EMAIL>' in said
  told = [output(capsys, f'--step={x}', '--raw', *flags) for x in steps]
  assert any('anna@' in line for lines in told for line in lines)
  # The shards of the run alone.
  lines = output(capsys, CANARY, flags[0])
  assert any('<EMAIL>' in x for x in lines)
  assert not any('anna@' in x for x in lines)


def test_a_refused_start_does_not_hide_a_run(run, build, tmp_path, monkeypatch):
  monkeypatch.setenv(untrusted.VARIABLE, '/,tests')
  workdir = shutil.copytree(run, tmp_path / 'run')
  c = config.load(workdir / 'config.json', [('steps', STEPS + 1)]).unlock()
  other = tmp_path / 'other'
  builds.write(other, documents()[::-1])
  c.data.sources.web.path = str(other / 'train/web')
  with pytest.raises(config.ConfigError, match='restore it or start a new run'):
    train.train(c.lock(), workdir)
  have = runs.open_run(workdir, None, None)
  assert (have.step, have.last) == (12, STEPS)


def opened(run: Path, build: Path) -> runs.Run:
  return runs.open_run(run, build, None)


def test_canaries_are_seen_at_exact_steps(run, build):
  """The tokens that a run reads, decoded, say the same."""
  have = opened(run, build)
  assert (have.step, have.last) == (12, STEPS)
  want, found = set(), set()
  bytes_ = utf8_bytes.make()
  for era in locate.eras(have.samples):
    stop = STEPS if era.stop is None else era.stop
    for step in range(era.start, stop):
      count = era.samples.batch_size
      numbers = era.samples.before(step) + np.arange(count)
      rows, sizes, _ = era.samples.read(numbers)
      for row, (ids, size) in enumerate(zip(rows, sizes, strict=True)):
        text = bytes_.decode(ids[1 : size + 1].tolist())
        want |= {(step, row) for _ in re.finditer('4711', text)}
  for record in provenance.find(
    build, provenance.Query(CANARY, loose=True), 99
  ).records:
    if record.number is None:
      continue
    source = have.samples.cuts[record.source].source
    place = source.place(record.number)
    text = provenance.text(build, record)
    first = len(text[: text.index('4711')].encode())
    for visit in locate.visits(
      have.samples, record.source, (place.start, place.stop), (0, STEPS)
    ):
      if visit.start <= first and first + 4 <= visit.stop:
        found.add((visit.step, visit.row))
  assert want == found
  steps = {step for step, _ in want}
  assert min(steps) < 6 <= max(steps) and len(steps) > 6


def test_seen_and_to_come_are_told_apart(run, build, capsys):
  flags = [f'--build={build}', f'--workdir={run}', '--limit=500']
  lines = output(capsys, CANARY, *flags)
  state, steps = '', {'seen': [], 'will be seen': []}
  for line in lines:
    if match := re.fullmatch(r'  (seen|will be seen) as \w+', line):
      state = match[1]
    if match := re.match(r'    step (\d+), row', line):
      steps[state].append(int(match[1]))
  assert max(steps['seen']) < 12 <= min(steps['will be seen'])
  assert max(steps['will be seen']) < STEPS
  short = output(capsys, CANARY, *flags[:2], '--limit=1')
  assert '    and more up to step 11' in short


def test_the_batch_of_a_step(run, build, capsys):
  have = opened(run, build)
  for step, rows in ((2, 8), (7, 16), (20, 16)):
    lines = output(
      capsys, f'--step={step}', f'--workdir={run}', f'--build={build}'
    )
    state = 'seen' if step < 12 else 'will be seen'
    assert lines[0] == f'step {step}: {state}'
    assert [x for x in lines if x.startswith('row ')] == [
      f'row {n}' for n in range(rows)
    ]
    pieces = locate.pieces(have.samples, step)
    told = [x for x in lines if ', document ' in x]
    assert len(told) == len(pieces)
    texts = documents()
    previews = [x for x in lines if x.startswith('    ')]
    for piece, line, preview in zip(pieces, told, previews, strict=True):
      match = re.search(r'; document (\d+): (\w+), raw', line)
      assert match is not None and match[2] == piece.source
      text = texts[int(match[1])].text
      part = text.encode()[piece.start : piece.stop].decode()
      assert preview == '    ' + ' '.join(part.split())[:100]


def test_without_a_build_shards_are_searched(run, build, capsys, monkeypatch):
  monkeypatch.setenv(untrusted.VARIABLE, f'{build}/')
  lines = output(capsys, CANARY, f'--workdir={run}')
  assert (
    lines[-1] == 'documents with the text: 3, as the tokenizer decodes them'
  )
  heads = [x for x in lines if x.startswith('document ')]
  web, wiki = build / 'train/web', build / 'train/wiki'
  assert heads == [f'document {n} of {web}' for n in (5, 30)] + [
    f'document 10 of {wiki}'
  ]
  told = output(capsys, CANARY, f'--workdir={run}', f'--build={build}')
  steps = [[x for x in y if x.startswith('    step')] for y in (lines, told)]
  assert steps[0] == steps[1] and steps[0]
  loose = output(capsys, CANARY, '--loose', f'--workdir={run}', '--limit=1')
  assert loose[-2].startswith('documents with the text: 4,')
  assert loose[-1] == '3 more: give a larger --limit'
  lines = output(capsys, f'--step={STEPS - 1}', f'--workdir={run}')
  assert lines[0] == f'step {STEPS - 1}: will be seen'
  assert not any('raw/' in x for x in lines)


def test_data_that_moved_are_found_in_the_build(run, build, tmp_path, capsys):
  moved = tmp_path / 'moved'
  shutil.copytree(build, moved)
  want = output(capsys, CANARY, f'--workdir={run}', f'--build={build}')
  have = output(capsys, CANARY, f'--workdir={run}', f'--build={moved}')
  assert have == want


def test_what_was_read_of_each_source(run, build, capsys):
  """Over a change of batch size and one of weights, as visits count it."""
  have = opened(run, build)
  flags = ['--mixture', f'--workdir={run}', f'--build={build}']
  whole = output(capsys, *flags)
  assert [x for x in whole if not x.startswith('  ')] == [
    'before step 12 of 30',
    'before step 30 of 30',
  ]
  for step, weights in ((4, (2, 1)), (7, (2, 1)), (12, (1, 3))):
    lines = output(capsys, *flags, f'--step={step}')
    assert lines[0] == f'before step {step} of 30'
    assert lines[1].split() == [
      'source', 'tokens', 'weight', 'share', 'read', 'epochs'
    ]  # fmt: skip
    rows = [line.replace(',', '').split() for line in lines[2:]]
    for row, name, weight in zip(rows, ('web', 'wiki'), weights, strict=True):
      tokens = have.samples.cuts[name].source.manifest.tokens
      read = sum(
        x.stop - x.start
        for x in locate.visits(have.samples, name, (0, tokens), (0, step))
      )
      assert row[:3] == [name, str(tokens), str(weight)]
      # The last window of an epoch is padded.
      assert read <= int(row[4]) <= read + 16 * (read // tokens + 1)
      assert float(row[5]) == pytest.approx(int(row[4]) / tokens, abs=0.02)
    assert sum(float(row[3].strip('%')) for row in rows) == pytest.approx(100)
  assert lines[1:] == whole[1:4]


@pytest.mark.process
@pytest.mark.parametrize('reads', [None, 40])
def test_a_program_starts_it_and_reads(run, build, reads):
  """Stdout has one value of JSON, which need not be read to its end."""
  many = '--limit=60'
  words = ['a', f'--workdir={run}', f'--build={build}', '--json', many]
  trusted = [f'--trust={build}/', '--trust=tests']
  with subprocess.Popen(
    [sys.executable, '-m', 'tools.where', *words, *trusted],
    cwd=programs.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    bufsize=1,
  ) as process:
    assert process.stdout is not None and process.stderr is not None
    text = process.stdout.read(reads)
    process.stdout.close()
    error = process.stderr.read()
  assert (process.returncode, error) == (0, '')
  if reads is None:
    assert json.loads(text)['count'] > 10
    assert len(text) > 90_000, 'more than a pipe holds, with a reader'
  else:
    assert text.startswith('{')


def test_a_program_reads_the_answers(run, build, capsys):
  """They say what the lines say."""
  flags = [f'--workdir={run}', f'--build={build}', '--json']

  def parsed(*words: str):
    return json.loads('\n'.join(output(capsys, *words, *flags)))

  found = parsed(CANARY)
  assert found['count'] == 6 and found['notes'] == []
  assert found['reasons'] == {
    '': 3,
    'exact.document': 1,
    'near.duplicate': 1,
    'quality.words': 1,
  }
  kept = [x for x in found['documents'] if 'dropped' not in x]
  assert len(kept) == 3 and all(CANARY in x['text'] for x in kept)
  samples = opened(run, build).samples
  for document in kept:
    (name,) = document['steps']['sources']
    seen = document['steps']['sources'][name]['seen']
    assert seen['visits'] and seen['more_up_to'] is None
    for visit in seen['visits']:
      pieces = locate.pieces(samples, visit['step'])
      assert (visit['row'], name, document['number']) in [
        (x.row, x.source, x.document) for x in pieces
      ]
  dropped = {
    x['dropped']['reason']: x['dropped']
    for x in found['documents']
    if 'dropped' in x
  }
  assert dropped['near.duplicate']['value'] == 0.875
  assert dropped['near.duplicate']['witness']['source'] == 'web'
  found = parsed('--step=3')
  assert found['step'] == 3 and found['when'] == 'seen'
  pieces = [piece for row in found['rows'] for piece in row['pieces']]
  assert [(x['source'], x['number'], x['tokens']) for x in pieces] == [
    (x.source, x.document, [x.start, x.stop]) for x in locate.pieces(samples, 3)
  ]
  found = parsed('--mixture', '--step=6')
  (before,) = found['before']
  assert before['step'] == 6 and found['last'] == STEPS
  assert {x['source'] for x in before['sources']} == {'web', 'wiki'}
  assert sum(x['share'] for x in before['sources']) == pytest.approx(1)


def test_a_run_says_at_its_start_what_it_will_read(build):
  c = settings(build, steps=9999, batch_size=8)
  summary = setup.assemble(setup.fill(c)).summary().splitlines()
  assert summary[1].split()[0] == 'source' and len(summary) == 4
  assert [line.split()[0] for line in summary[2:]] == ['web', 'wiki']
  assert summary[2].split()[3].startswith('66.')


def test_a_rollback_leaves_steps_out(build, tmp_path, capsys, monkeypatch):
  monkeypatch.setenv(untrusted.VARIABLE, '/,tests')
  monkeypatch.setenv('FAULT', 'nan_grad@4-7')
  c = settings(build, steps=12, save_every=3, max_skipped=3, batch_size=8)
  train.train(c, tmp_path)
  have = runs.open_run(tmp_path, build, None)
  # It went back from step 8 to step 3, and the updates between are not in it.
  out = [n for n in range(12) if have.when(n) != 'seen']
  assert out == [3, 4, 5, 6, 7]
  flags = [f'--workdir={tmp_path}', f'--build={build}', '--limit=9999']
  assert output(capsys, '--step=3', *flags)[0] == (
    'step 3: left out by a rollback'
  )
  told = [x for x in output(capsys, 'o', *flags) if x.startswith('    step')]
  numbers = {int(x.split()[1].strip(',')): 'left out' in x for x in told}
  assert numbers == {n: n in out for n in range(12)}


def test_a_run_that_stopped_early_sees_no_more(run, build, tmp_path):
  """It has ended with its best checkpoint, and takes no further step."""
  workdir = programs.rewind(run, tmp_path / 'run', 3)
  assert opened(workdir, build).last == STEPS
  c = config.load(workdir / 'config.json', [('early.patience', 1)], build)
  with c.unlocked():
    c.early.metric = 'valid/loss_nats'
  config.store(c, workdir / 'config.json')
  log = metrics_log.Log(workdir, 0, lambda: None)
  for step, loss in ((3, 1.0), (6, 2.0)):
    log.now(step, {'valid/loss_nats': loss})
  log.close()
  have = opened(workdir, build)
  assert (have.step, have.last) == (3, 3)
  assert have.when(2) == 'seen'
  with pytest.raises(ValueError, match='before it; its last step is 2'):
    answers.batch(have, 3, build, False)


def test_what_an_objective_reads_is_said(build, tmp_path, capsys, monkeypatch):
  """A run that has no checkpoint yet is told from its config."""
  c = settings(build, steps=STEPS).unlock()
  c.tokenizer.reserved = 1
  c.data.objective = {'fn': 'lm.data.masking:masked'}
  c.data.lengths = ((3, 8),)
  workdir = tmp_path / 'run'
  workdir.mkdir()
  config.store(setup.fill(c.lock()), workdir / 'config.json')
  flags = [f'--workdir={workdir}', f'--build={build}']
  lines = output(capsys, CANARY, *flags)
  assert lines[0] == (
    'lm.data.masking:masked chooses what it predicts in these windows: a step '
    'reads the tokens, and not each is a target'
  )
  assert not any(x.startswith('  seen') for x in lines)
  assert any(x.startswith('  will be seen as web') for x in lines)
  lines = output(capsys, '--step=3', *flags)
  rows = [x for x in lines if x.startswith('row')]
  assert rows == ['row 0 to 1', 'row 2 to 3', 'row 4 to 5', 'row 6 to 7']


@pytest.mark.parametrize(
  ('flags', 'say'),
  [
    (['--build={build}'], 'give a text to look for, or --step'),
    (['--mixture', '--build={build}'], '--step and --mixture need'),
    (['x', '--mixture', '--workdir={run}'], 'give a text to look for, or'),
    (['x', '--step=3', '--workdir={run}'], 'give a text to look for, or'),
    (['  ', '--build={build}'], 'the text is empty: give what to look for'),
    (['x'], 'give --build, --workdir or both'),
    (['--step=3', '--build={build}'], '--step and --mixture need --workdir'),
    (['--step=-1', '--workdir={run}'], '--step=-1: give one from 0 on'),
    (
      ['--step=30', '--build={build}', '--workdir={run}'],
      '--step=30: the run ends before it; its last step is 29',
    ),
    (
      ['--mixture', '--step=31', '--build={build}', '--workdir={run}'],
      '--step=31: the run ends before it; give one up to 30',
    ),
    (['x', '--build={build}', '--limit=0'], '--limit=0: give one from 1'),
    (['x', '--build={none}'], 'holds no documents.parquet: give the folder'),
    (['x', '--workdir={none}'], 'holds no run: give the folder of one'),
    (['x', '--workdir={run}'], 'lies outside of'),
    (['x', '--build={torn}'], 'cannot be read (FileNotFoundError)'),
    (['x', '--build={bad}'], 'cannot be read (ArrowInvalid)'),
  ],
)
def test_wrong_input_is_one_line(
  run, build, tmp_path, capsys, monkeypatch, flags, say
):
  monkeypatch.delenv(untrusted.VARIABLE, raising=False)
  folders = {'run': run, 'build': build, 'none': tmp_path / 'none'}
  for name in ('torn', 'bad'):
    folders[name] = tmp_path / name
    shutil.copytree(build, folders[name])
  (tmp_path / 'torn/parts/0003/documents.parquet').unlink()
  (tmp_path / 'bad/documents.parquet').write_bytes(b'PAR1 no PAR1')
  with pytest.raises(SystemExit) as stopped:
    config.main(lambda _: where.main([x.format(**folders) for x in flags]))
  assert stopped.value.code == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ') and error.count('\n') == 1
  assert say in error and len(error) <= 208


@pytest.mark.process
def test_the_program(build, start):
  process = start('tools.where', [CANARY, f'--build={build}'])
  assert process.wait() == 0, process.text()
  assert 'documents with the text: 6 (3 kept' in process.text()
  assert start('tools.where', ['x']).error(2).startswith('give --build')


def test_other_data_than_a_stream_are_refused(build, tmp_path):
  c = settings(build, steps=STEPS).unlock()
  c.fit = {'fn': 'lm.models.ngram:fit'}
  config.store(setup.fill(c.lock()), tmp_path / 'config.json')
  with pytest.raises(config.ConfigError, match='does not train on windows of'):
    runs.open_run(tmp_path, build, None)


@pytest.mark.slow
def test_fifty_megabytes_are_searched_as_by_brute_force(tmp_path):
  rng = np.random.default_rng(0)
  words = np.array([f'{x:x}' for x in rng.integers(0, 1 << 20, 5000)])
  texts = [
    ' \n'.join(rng.choice(words, n)) for n in rng.integers(1, 3000, 6500)
  ]
  assert sum(map(len, texts)) > 50e6
  drops = rng.random(len(texts)) < 0.3
  found = [
    builds.Document('web', text, 'quality.words' if is_out else '')
    for text, is_out in zip(texts, drops, strict=True)
  ]
  builds.write(tmp_path / 'build', found, part_rows=900, shards=False)
  rare = f'{words[7]} \n{words[8]}'
  views = {False: texts, True: [x.lower().replace(' \n', ' ') for x in texts]}
  wanted = (words[3], rare, 'e \n', '0', words[4].upper(), f'{words[5]}\n5')
  for text, loose in itertools.product(wanted, (False, True)):
    query = provenance.Query(text, loose)
    have = provenance.find(tmp_path / 'build', query, 10**6)
    part = ' '.join(text.lower().split()) if loose else text
    want = [n for n, x in enumerate(views[loose]) if part in x]
    assert [x.id for x in have.records] == want, text
    assert sum(have.reasons.values()) == len(want)
    assert have.reasons.get('', 0) == sum(not drops[n] for n in want)
