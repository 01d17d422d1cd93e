"""A build gives the same bytes, whoever works on it and however often it dies.

A failure means that a corpus cannot be made again, or that a document was lost
without a word.
"""

from collections.abc import Sequence
from concurrent.futures import process
import hashlib
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import tempfile
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lm import config, errors
from lm.corpus import (
  build,
  certificate,
  evaluation_items,
  index,
  item_matches,
  maps,
  parts,
  passes,
  provenance,
  stages,
)
from lm.data import shards, writer
from tools import factory

SAID = ('audit.json', 'audit.html', 'contamination.json', index.NAME)
WORDS = ['the', 'of', 'river', 'stone', 'bird', 'house', 'water', 'tree']


def text(seed: int, length: int = 40) -> str:
  """Makes a text of words, another one for every seed."""
  draws = hashlib.sha256(str(seed).encode()).digest() * (length // 32 + 1)
  return ' '.join(
    f'{WORDS[x % len(WORDS)]}{seed * 7 + n * x}'
    for n, x in enumerate(draws[:length])
  )


def write(path: Path, texts: list[str]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('w', encoding='utf-8') as out:
    for x in texts:
      out.write(json.dumps({'text': x}, ensure_ascii=False) + '\n')


def load(folder: Path, **changes):
  """Makes a config of the sources in a folder, a file each."""
  c = config.load('configs/data/base.py', required=()).unlock()
  c.sources = {
    x.stem: {'inputs': str(x), 'rank': 0} for x in sorted(folder.iterdir())
  }
  c.stages = {
    'exact': {'fn': 'lm.corpus.exact:make'},
    'near': {'fn': 'lm.corpus.near:make'},
  }
  c.order = ('exact', 'near')
  c.tokenizer_file = 'bytes'
  c.engine.part_bytes = 4000  # so that there are many parts
  c.split_valid = 0.1
  for key, value in changes.items():
    c[key] = value
  return c.lock()


def shard_bytes(output: Path) -> dict[str, str]:
  """Hashes the files of the datasets of a build."""
  files = [*output.glob('train/**/*'), *output.glob('valid/**/*')]
  return {
    str(x.relative_to(output)): hashlib.sha256(x.read_bytes()).hexdigest()
    for x in sorted(files)
    if x.is_file()
  }


@pytest.fixture
def corpus(tmp_path, monkeypatch):
  """Two sources with exact and near copies, in a folder of their own."""
  monkeypatch.chdir(tmp_path)
  first = [text(n) for n in range(60)]
  near = [x.replace('river', 'stream', 1) + ' more' for x in first[:10]]
  write(tmp_path / 'raw/a.jsonl', first)
  write(
    tmp_path / 'raw/b.jsonl',
    [text(n) for n in range(100, 160)] + first[20:25] + near,
  )
  return tmp_path / 'raw'


def rows(output: str | Path) -> list[dict]:
  file = Path(output) / index.NAME
  return pq.ParquetFile(file).read().to_pylist()


def test_every_document_is_kept_or_has_a_reason(corpus):
  result = build.run(load(corpus), 'out')
  listed = rows('out')
  assert len(listed) == 135
  reasons = [x['reason'] for x in listed]
  assert reasons.count('exact') == 5 and reasons.count('near') == 10
  for x in listed:
    dropped = bool(x['reason'])
    assert (x['number'] is None) == dropped == (x['dataset'] == '')
    if dropped:
      witness = listed[[y['id'] for y in listed].index(x['witness'])]
      assert witness['id'] < x['id'] and witness['source'] == 'a'
  near = [x['value'] for x in listed if x['reason'] == 'near']
  assert min(near) >= 0.7 and max(near) < 1
  kept = sum(x.documents for x in result.datasets.values())
  assert kept == reasons.count('') == 120


def test_the_index_leads_to_every_text(corpus):
  result = build.run(load(corpus), 'out')
  opened = {
    name: shards.load(f'out/{name}', result.tokenizer)
    for name in result.datasets
  }
  for x in rows('out'):
    path = Path('out/parts') / x['part'] / parts.DOCUMENTS
    (found,) = maps.text_rows(path, [x['row']])
    line = int(x['place'].removeprefix('line ')) - 1
    given = Path(x['file']).read_text().splitlines()[line]
    assert json.loads(given)['text'] == found
    if not x['reason']:
      ids = opened[x['dataset']].document(x['number']).tolist()
      assert result.tokenizer.decode(ids) == found


def test_the_audit_counts_what_the_index_lists(corpus):
  build.run(load(corpus), 'out')
  audit = json.loads(Path('out/audit.json').read_text())
  listed = rows('out')
  for source, about in audit['sources'].items():
    mine = [x for x in listed if x['source'] == source]
    assert about['documents'] == len(mine)
    assert about['kept']['documents'] == sum(not x['reason'] for x in mine)
    for reason, sums in about['dropped'].items():
      assert sums['documents'] == sum(x['reason'] == reason for x in mine)
    assert (
      sum(about['tokens'].values())
      == about['kept']['bytes'] + (about['kept']['documents'])
    )
  assert len(audit['examples']['near']) == 10
  page = Path('out/audit.html').read_text()
  assert 'near' in page and 'Examples' in page
  assert '| a | not stated |' in Path('out/card.md').read_text()
  stored = json.loads(Path('out/config.json').read_text())
  # The default of its function, in case that another version has another one.
  assert stored['stages']['near']['threshold'] == 0.7


@pytest.mark.process  # a pool has a process that counts its semaphores
def test_building_again_makes_nothing_and_changes_nothing(corpus, monkeypatch):
  c = with_evaluation_set(load(corpus))
  build.run(c, 'out')
  before = shard_bytes(Path('out'))
  said = [Path('out', x).read_bytes() for x in SAID]

  def refuse(*unused, **also_unused):
    raise AssertionError('made again')

  monkeypatch.setattr(parts, 'making', refuse)
  monkeypatch.setattr(writer, 'assemble', refuse)
  monkeypatch.setattr(evaluation_items, 'read', refuse)
  monkeypatch.setattr(process.ProcessPoolExecutor, 'submit', refuse)
  build.run(c, 'out', workers=2)
  assert shard_bytes(Path('out')) == before
  assert [Path('out', x).read_bytes() for x in SAID] == said


def with_evaluation_set(c):
  """Adds an evaluation set of three items, of which the corpus has one."""
  rows = [{'question': text(n), 'id': str(n)} for n in (3, 1000, 1001)]
  lines = ''.join(f'{json.dumps(row)}\n' for row in rows)
  Path('set.jsonl').write_text(lines)
  with c.unlocked():
    c.stages.contamination = {
      'fn': 'lm.corpus.contamination:make',
      'sets': {'quiz': {'path': 'set.jsonl', 'fields': ('question',)}},
    }
    c.order = (*c.order, 'contamination')
  return c


def test_of_a_source_added_later_only_its_own_is_made(corpus):
  def folders(name: str) -> set[Path]:
    return {*Path('out', name).iterdir()}

  build.run(with_evaluation_set(load(corpus)), 'out')
  before = {x: folders(x) for x in ('parts', 'tables')}
  write(corpus / 'c.jsonl', [text(n) for n in range(200, 206)])
  build.run(with_evaluation_set(load(corpus)), 'out')
  # What was read, its texts and keys, and its tokens.
  assert len(folders('parts') - before['parts']) == 3
  # Evaluation sets are not read again, and their items not sought again.
  names = (item_matches.ITEMS, certificate.FOUND)
  found = {x for x in folders('tables') if any((x / y).exists() for y in names)}
  assert len(found) == 2
  assert found <= before['tables']


def test_a_source_added_later_gives_what_a_build_from_scratch_gives(
  corpus, monkeypatch
):
  build.run(load(corpus), 'grown')
  write(corpus / 'c.jsonl', [text(n) for n in range(55, 65)] + [text(100)])
  made = []
  real = maps._write
  monkeypatch.setattr(
    maps, '_write', lambda task, x: made.append(task) or real(task, x)
  )
  build.run(load(corpus), 'grown')
  few = len(made)
  build.run(load(corpus), 'scratch')
  assert shard_bytes(Path('grown')) == shard_bytes(Path('scratch'))
  assert rows('grown') == rows('scratch')
  assert 4 * few < len(made) - few
  # Nothing stays of what the last build does not need.
  for name in ('parts', 'tables'):
    kept = sorted(x.name for x in Path('grown', name).iterdir())
    assert kept == sorted(x.name for x in Path('scratch', name).iterdir())


def test_paragraphs_that_came_before_are_cut(corpus):
  shared = 'This paragraph stands in several documents and is cut from all.'
  write(
    corpus / 'a.jsonl',
    [f'{text(1)}\n\n{shared}\n\n{text(2)}', shared, text(3)],
  )
  write(corpus / 'b.jsonl', [f'{text(4)}\n\n{shared.upper()}', text(1)])
  c = load(
    corpus,
    stages={
      'paragraphs': {
        'fn': 'lm.corpus.exact:make',
        'unit': 'paragraph',
        'least_words': 5,
      },
      'exact': {'fn': 'lm.corpus.exact:make'},
    },
    order=('paragraphs', 'exact'),
    split_valid=0.0,
  )
  result = build.run(c, 'out')
  opened = shards.load('out/train', result.tokenizer)
  found = [
    result.tokenizer.decode(opened.document(n).tolist())
    for n in range(opened.manifest.documents)
  ]
  assert found[0].count(shared) == 1 and shared.upper() not in ''.join(found)
  reasons = {x['place'] + x['source']: x['reason'] for x in rows('out')}
  assert reasons['line 2a'] == 'exact_paragraph.all'
  assert reasons['line 2b'] == 'exact_paragraph.all'
  changes = json.loads(Path('out/audit.json').read_text())['sources']['b']
  assert changes['changes']['exact_paragraph.cut']['documents'] == 2


def test_a_stage_that_cuts_too_early_is_warned_of(corpus, capsys):
  first, copy, rest = text(1), text(2), text(3)
  write(corpus / 'a.jsonl', [f'{copy}\n\n{rest} bad@example.com'])
  write(corpus / 'b.jsonl', [f'{first}\n\n{copy}'])
  c = load(corpus, split_valid=0.0).unlock()
  c.stages.paragraphs = {'fn': 'lm.corpus.exact:make', 'unit': 'paragraph'}
  c.stages.personal = {'fn': 'lm.corpus.personal:make', 'most': 0}
  c.stages.masked = {'fn': 'lm.corpus.personal:make'}

  def built(*order: str) -> tuple[bool, str]:
    c.order = order
    result = build.run(c, 'out')
    opened = shards.load('out/train', result.tokenizer)
    texts = [
      result.tokenizer.decode(opened.document(n).tolist())
      for n in range(opened.manifest.documents)
    ]
    return copy in ''.join(texts), capsys.readouterr().err

  is_there, err = built('paragraphs', 'personal')
  assert not is_there and err == (
    'warning: order: paragraphs cuts what an earlier document has, and '
    'personal may drop that one; put paragraphs behind it\n'
  )
  assert built('personal', 'paragraphs') == (True, '')
  # Neither loses a word.
  assert built('paragraphs', 'masked', 'exact')[1] == ''


def test_a_cut_that_needs_no_other_document_is_not_warned_of():
  cuts = stages.Stage('contamination', 1, {}, edit=lambda batch, _: batch)
  both, order = [cuts, stages.Stage('personal', 1, {})], ('cuts', 'personal')
  assert [*passes.losses(both, order)] == []
  both[0] = cuts._replace(loses=False)
  assert len([*passes.losses(both, order)]) == 1


def test_each_source_can_be_a_dataset_of_its_own(corpus):
  result = build.run(load(corpus, by_source=True, split_valid=0.0), 'out')
  assert sorted(result.datasets) == ['train/a', 'train/b']
  assert {x['dataset'] for x in rows('out')} == {'', 'train/a', 'train/b'}


def test_a_build_leaves_nothing_of_an_earlier_one(corpus):
  def files() -> set[str]:
    found = Path('out').rglob('*')
    names = {x.relative_to('out').as_posix() for x in found if x.is_file()}
    return {x for x in names if not x.startswith(('parts/', 'tables/'))}

  build.run(load(corpus, by_source=True, split_valid=0.3), 'out')
  Path('out/contamination.json').write_text('{}')
  assert len([x for x in files() if 'manifest' in x]) > 2
  sources = [x for x in files() if x.startswith('train/')]
  fewer = load(corpus, by_source=True, split_valid=0.0)
  name = sorted(fewer.sources)[0]
  with fewer.unlocked():
    del fewer.sources[name]
  assert any(x.startswith(f'train/{name}/') for x in sources)
  build.run(fewer, 'out')
  left = files()
  assert not any(x.startswith(('valid', f'train/{name}/')) for x in left)
  assert 'contamination.json' not in left
  for by_source in (False, True):
    result = build.run(load(corpus, by_source=by_source), 'out')
    found = {x for x in files() if x.endswith('manifest.json')}
    assert found == {f'{x}/manifest.json' for x in result.datasets}


def test_a_rule_that_was_changed_works_again(corpus, monkeypatch):
  monkeypatch.syspath_prepend('.')
  rule = 'def short(most):\n  return lambda x: len(x.text) < most or None\n'
  Path('own_rules.py').write_text(rule)
  c = load(corpus).unlock()
  c.stages.quality = {
    'fn': 'lm.corpus.quality:make',
    'rules': {'short': {'fn': 'own_rules:short', 'most': 1}},
  }
  c.order = ('quality', *c.order)
  build.run(c, 'out')
  assert not any(x['reason'] == 'quality.short' for x in rows('out'))
  Path('own_rules.py').write_text(rule.replace('<', '>='))
  monkeypatch.delitem(sys.modules, 'own_rules')  # as in another process
  maps._built.cache_clear()
  with pytest.raises(ValueError, match='every one was dropped'):
    build.run(c, 'out')


def test_of_duplicates_the_one_of_the_first_rank_stays(corpus):
  c = load(corpus).unlock()
  c.sources.a.rank = 1
  build.run(c.lock(), 'out')
  dropped = {x['source'] for x in rows('out') if x['reason']}
  assert dropped == {'a'}


def test_one_file_in_two_sources_is_read_as_two(corpus):
  (corpus / 'c.jsonl').write_bytes((corpus / 'a.jsonl').read_bytes())
  build.run(load(corpus), 'out')
  copies = [x for x in rows('out') if x['source'] == 'c']
  assert {x['reason'] for x in copies} == {'exact'}


def test_a_second_build_of_a_folder_is_refused(corpus):
  Path('out').mkdir()
  with (
    build.regular_files.exclusive(Path('out/lock'), 0.0, ValueError()),
    pytest.raises(errors.Locked, match='another process builds here') as e,
  ):
    build.run(load(corpus), 'out')
  assert e.value.exit_code == 3


def test_bad_settings_are_one_line(corpus, capsys):
  def error(*flags: str) -> str:
    with pytest.raises(SystemExit) as e:
      config.main(
        lambda _: factory.main(
          ['--config=configs/data/base.py', '--output=out', *flags]
        )
      )
    assert e.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]

  assert 'input: no documents' in error('--workers=1')
  assert 'split_valid=1.0 must be' in error('--config.split_valid=1.0')
  assert 'workers=0 must be 1' in error('--workers=0')
  assert 'order: x is no stage of this config' in error("--config.order=('x',)")
  assert 'unknown argument --confg.x=1' in error('--confg.x=1')
  assert '--spark needs --engine=spark' in error('--spark=local')


def test_names_that_a_config_does_not_have_are_one_line(corpus):
  c = load(corpus, order=('exakt',))
  with pytest.raises(
    ValueError, match='order: exakt is no stage of this config'
  ):
    build.run(c, 'out')
  c = load(corpus).unlock()
  c.sources.b.side = 'validation'
  with pytest.raises(ValueError, match='side=validation: unknown'):
    build.run(c.lock(), 'out')


def test_a_source_without_documents_is_in_the_audit(corpus):
  (corpus / 'c.jsonl').write_text('{"body": "of another field"}\n' * 3)
  build.run(load(corpus), 'out')
  audit = json.loads(Path('out/audit.json').read_text())
  assert audit['sources']['c']['documents'] == 0
  read = audit['sources']['c']['read']
  assert read['records without the field, left out'] == 3
  assert '\n| c |' in Path('out/card.md').read_text()


def test_names_are_quoted_in_the_card(corpus):
  c = load(corpus).unlock()
  c.sources.a.licence = 'a|b\n<c>'
  build.run(c.lock(), 'out')
  card = Path('out/card.md').read_text()
  assert '\n| a | a\\|b &lt;c> |' in card


@pytest.mark.parametrize('name', ['id=3', 'part=7'])
def test_the_name_of_the_folder_adds_no_column(corpus, name):
  build.run(load(corpus), f'{name}/out')
  build.run(load(corpus), 'out')
  assert rows(f'{name}/out') == rows('out')
  audits = [Path(x, 'out/audit.json').read_bytes() for x in (name, '.')]
  assert audits[0] == audits[1]


def test_a_build_does_not_read_its_own_parts(corpus):
  c = load(corpus).unlock()
  c.sources = {'all': {'inputs': str(corpus), 'rank': 0}}
  output = corpus / 'out'
  build.run(c, output)
  (output / index.NAME).unlink()  # as after a kill, when parts are there
  with pytest.raises(ValueError, match='the folder of the build is in them'):
    build.run(c, output)


def test_what_else_is_in_the_folder_stays(corpus):
  build.run(load(corpus), 'out')
  kept = [Path('out', x, 'mine/notes') for x in ('parts', 'tables', 'spill')]
  for file in kept:
    file.parent.mkdir(parents=True)
    file.touch()
  Path('out/parts/file').touch()
  build.run(load(corpus), 'out')
  assert all(x.exists() for x in [*kept, Path('out/parts/file')])


def test_datasets_that_a_killed_build_was_writing_are_removed(corpus):
  build.run(load(corpus, by_source=True), 'out')
  left = [
    Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
    for prefix, folder in (('.train.', 'out'), ('.a.', 'out/train'))
  ]
  (left[0] / '00000.bin').touch()
  build.run(load(corpus, by_source=True), 'out')
  assert not any(x.exists() for x in left)


def marked(file: str) -> stages.Stage:
  """Makes a stage that drops texts with the word that a file holds."""
  word = Path(file).read_text()

  def drop(x: stages.Document) -> stages.Document:
    return x._replace(reason='marked') if word in x.text.split() else x

  return stages.Stage('marked', 1, {}, map=stages.each(drop), data=(file,))


def test_a_file_of_a_stage_that_changes_is_read_again(corpus):
  c = load(corpus, order=('marked',)).unlock()
  c.stages.marked = {
    'fn': 'tests.corpus.build_test:marked',
    'file': 'word',
  }
  for word, reasons in (('none', {''}), (text(3).split()[0], {'', 'marked'})):
    Path('word').write_text(word)
    build.run(c, 'out')
    assert {x['reason'] for x in rows('out')} == reasons


def flagged() -> stages.Stage:
  """Makes a stage that drops texts with an address."""

  def drop(x: stages.Document) -> stages.Document:
    return x._replace(reason='flagged') if '@' in x.text else x

  return stages.Stage('flagged', 1, {}, map=stages.each(drop))


def test_the_audit_masks_personal_data(corpus):
  address = 'john.smith@example.com'
  write(corpus / 'c.jsonl', [f'{address} {text(1)}', f'{"y" * 287} {address}'])
  c = load(corpus, order=('flagged',)).unlock()
  c.stages.flagged = {'fn': 'tests.corpus.build_test:flagged'}
  build.run(c, 'out')
  for name in ('audit.json', 'audit.html'):
    said = Path('out', name).read_text()
    assert 'flagged' in said and 'john.smi' not in said


def test_a_map_that_fails_leaves_no_part(tmp_path):
  with pytest.raises(RuntimeError), parts.making(tmp_path / 'x') as part:
    (part / 'half').write_text('half')
    raise RuntimeError
  assert not any(tmp_path.iterdir())


def test_batches_of_documents_keep_all_they_say():
  document = stages.Document(
    'text', 'en', 'rule', 0.5, (('change', 2),), (('seen', 1),)
  )
  batch = stages.batch(pa.array(['line 1']), [document])
  assert stages.documents(batch) == [document]


def start(
  corpus: Path,
  output: str,
  *flags: str,
  before: Sequence[str] = (),
) -> subprocess.Popen[str]:
  """Starts the factory as a program, on the sources of a folder.

  Args:
    corpus: the folder.
    output: of the build.
    *flags: more of the program's.
    before: a command that runs the program.
  """
  root = Path(__file__).resolve().parents[2]
  return subprocess.Popen(
    [
      *before,
      sys.executable,
      '-m',
      'tools.factory',
      f'--config={root}/tests/corpus/sources_config.py:{corpus}',
      f'--output={output}',
      *flags,
    ],
    env={**os.environ, 'PYTHONPATH': str(root)},
    stderr=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )


@pytest.mark.process
def test_workers_and_engines_give_the_same_bytes(corpus):
  build.run(load(corpus), 'one')
  expected = shard_bytes(Path('one'))
  for name, flags in (
    ('two', ['--workers=2']),
    ('five', ['--workers=5']),
    ('sail', ['--workers=2', '--engine=spark']),
  ):
    child = start(corpus, name, *flags)
    _, err = child.communicate(timeout=300)
    assert child.returncode == 0, err
    assert shard_bytes(Path(name)) == expected, name
    assert rows(name) == rows('one'), name
    audits = [Path(x, 'audit.json').read_bytes() for x in (name, 'one')]
    assert audits[0] == audits[1], name


@pytest.mark.slow
@pytest.mark.process
def test_ten_kills_change_nothing(corpus):
  write(corpus / 'c.jsonl', [text(n) for n in range(1000, 1200)])
  build.run(load(corpus), 'whole')

  def made(output: str) -> int:
    """Counts the parts and tables that are whole."""
    return sum(
      not x.name.startswith('.') for x in Path(output).glob('[pt]a*/*')
    )

  # Each attempt may add a share of the work before it is killed. A machine that
  # is quick ends before ten kills, and does the same in another folder.
  share = max(1, made('whole') // 30)
  kills = folders = 0
  while kills < 10:
    output, before = f'killed{folders}', kills
    while True:
      goal = made(output) + share
      child = start(corpus, output, '--workers=2')
      while child.poll() is None and (kills >= 10 or made(output) < goal):
        time.sleep(0.001)
      if child.poll() is not None:
        break
      child.send_signal(signal.SIGKILL)
      child.communicate()
      kills += 1
    _, err = child.communicate()
    assert child.returncode == 0 and kills > before, err
    assert shard_bytes(Path(output)) == shard_bytes(Path('whole'))
    assert rows(output) == rows('whole')
    assert not any(x.name[0] == '.' for x in Path(output).rglob('*'))
    folders += 1


def test_a_source_can_be_wholly_for_one_side(corpus):
  c = load(corpus, split_valid=0.0).unlock()
  c.sources.a.side, c.sources.b.side = 'train', 'valid'
  result = build.run(c.lock(), 'out')
  assert sorted(result.datasets) == ['train', 'valid']
  sides = {(x['source'], x['dataset']) for x in rows('out')}
  assert sides == {('a', 'train'), ('b', 'valid'), ('b', '')}


def test_a_source_of_which_nothing_is_kept_is_on_no_side(corpus):
  write(corpus / 'c.jsonl', [text(n) for n in range(10)])
  c = load(corpus).unlock()
  c.sources.a.side, c.sources.b.side = 'train', 'valid'
  result = build.run(c.lock(), 'out')
  assert sorted(result.datasets) == ['train', 'valid']


def test_a_source_can_skip_stages(corpus):
  c = load(corpus).unlock()
  c.sources.b.skip = ('near',)
  build.run(c.lock(), 'out')
  assert {x['reason'] for x in rows('out')} == {'', 'exact'}
  c.unlock().sources.b.skip = ('nearly',)
  with pytest.raises(ValueError, match='skip: nearly is no stage of this'):
    build.run(c.lock(), 'out')


def test_only_a_build_that_was_searched_has_a_certificate(corpus):
  (corpus.parent / 'quiz.jsonl').write_text(
    json.dumps({'question': text(40)}) + '\n'
  )
  fields = {'path': 'quiz.jsonl', 'fields': ('question',)}
  c = load(corpus).unlock()
  c.stages.contamination = {
    'fn': 'lm.corpus.contamination:make',
    'sets': {'quiz': fields},
  }
  c.order = ('contamination', 'exact')
  path = Path('out/contamination.json')

  def flagged() -> int | None:
    build.run(c, 'out')
    if not path.exists():
      return None
    (found,) = json.loads(path.read_text())['files'].values()
    return len(found['flagged'])

  assert flagged() == 1
  c.sources.a.skip = ('contamination',)  # which has the item
  assert flagged() is None
  c.sources.a.side = 'valid'
  assert flagged() == 0
  c.sources.a.skip, c.order = (), ('exact',)
  assert flagged() is None


def test_an_item_is_cut_out_of_a_long_document_for_good(corpus):
  asked = [text(n, 30) for n in (1000, 1001)]
  Path('quiz.jsonl').write_text(
    ''.join(json.dumps({'question': x}) + '\n' for x in asked)
  )
  long = [f'{text(n, 90)} {asked[n % 2]} {text(n + 9, 90)}' for n in (500, 701)]
  write(corpus / 'c.jsonl', [*long, f'{asked[1]} and no more'])
  c = load(corpus, split_valid=0.0).unlock()
  c.stages.contamination = {
    'fn': 'lm.corpus.contamination:make',
    'sets': {'quiz': {'path': 'quiz.jsonl', 'fields': ('question',)}},
  }
  c.order = (*c.order, 'contamination')

  def flagged(output: str) -> dict[str, int]:
    report = json.loads(Path(output, 'contamination.json').read_text())
    return next(iter(report['files'].values()))['flagged']

  result = build.run(c.lock(), 'out')
  # An item counts whether it was cut out of its document or this was dropped.
  assert flagged('out') == {'quiz/0': 1, 'quiz/1': 2}
  audit = json.loads(Path('out/audit.json').read_text())['sources']['c']
  assert audit['dropped'].keys() == {'contamination.quiz'}
  assert audit['dropped']['contamination.quiz']['documents'] == 1
  assert audit['changes'] == {
    'contamination.passages': {'documents': 2, 'times': 2},
    'contamination.quiz': {'documents': 2, 'times': 2},
  }
  page = Path('out/audit.html').read_text()
  # What was read stands beside what was kept, so that one sees the cut.
  assert audit['read']['bytes'] > audit['bytes'] > audit['kept']['bytes']
  for size in (audit['read']['bytes'], audit['kept']['bytes']):
    assert f'{size:,}' in page
  listed = [x for x in rows('out') if x['source'] == 'c']
  assert [x['reason'] for x in listed] == ['', '', 'contamination.quiz']
  assert [x['value'] for x in listed] == [None, None, 1.0]
  # Documents are where the index says, without the passage.
  opened = shards.load('out/train', result.tokenizer)
  kept = []
  for x in rows('out'):
    if not x['reason']:
      kept.append(
        result.tokenizer.decode(opened.document(x['number']).tolist())
      )
      record = provenance.Record(**x)
      assert provenance.text(Path('out'), record) == kept[-1]
  for whole, left in zip(long, kept[-2:], strict=True):
    before, after = left.split('\n\n')
    assert whole.startswith(before) and whole.endswith(after)
    found = provenance.find(Path('out'), provenance.Query(after[-50:]), 9)
    assert [x.id for x in found.records] == [
      x['id'] for x in listed if x['number'] == kept.index(left)
    ]
  # What is left is searched again.
  for file in corpus.iterdir():
    file.unlink()
  write(corpus / 'left.jsonl', kept)
  c = load(corpus, split_valid=0.0, stages=c.stages, order=c.order)
  build.run(c, 'again')
  assert flagged('again') == {}
  again = [x['reason'] for x in rows('again')]
  assert again == [''] * len(kept)


def test_parts_without_anything_to_cut_stay_as_they_are(corpus):
  short = [text(n, 20) for n in range(1000, 1007)]
  write(corpus / 'c.jsonl', [*short, text(3)])
  c = load(corpus).unlock()
  c.stages.lines = {'fn': 'lm.corpus.exact:make', 'unit': 'line'}
  c.stages.quality = {
    'fn': 'lm.corpus.quality:make',
    'rules': {'words': {'fn': 'lm.corpus.rules.gopher:words', 'least': 30}},
    'languages': ('',),
  }
  c.order = ('quality', 'lines')
  counts, said = {}, {}

  def say(step, count, done, words, is_over):
    if is_over:
      counts[step], said[step] = count, words

  build.run(c.lock(), 'out', say=say)
  first, second = 'quality, lines', 'lines: cut'
  assert 0 < counts[second] < counts[first]
  # Each pass says what it drops itself.
  assert 'quality.words 7' in said[first]
  assert 'exact_line.all 6' in said[second]
  assert not any('quality' in x for x in said[second])


def test_a_vocabulary_that_does_not_fit_is_named_by_its_key(corpus):
  c = load(corpus).unlock()
  c.tokenizer_file = None
  c.train_tokenizer.vocab = 100_000
  with pytest.raises(ValueError) as caught:
    build.run(c.lock(), 'out')
  assert str(caught.value).startswith(
    'train_tokenizer.vocab: vocabulary 100000 does not fit this text: '
  )


def test_examples_show_no_personal_data(corpus):
  # The excerpt ends within the first address, and a rule drops both documents
  # before a stage masks them.
  mine = [f'{"x " * 145}jane.doe@corp.org', 'mail jane.doe@corp.org']
  write(corpus / 'b.jsonl', [*mine, text(1)])
  c = load(corpus).unlock()
  c.stages.quality = {
    'fn': 'lm.corpus.quality:make',
    'rules': {
      'length': {'fn': 'lm.corpus.rules.gopher:word_length', 'least': 6.0}
    },
    'languages': ('',),
  }
  c.order = ('quality', 'exact')
  build.run(c, 'out')
  examples = json.loads(Path('out/audit.json').read_text())['examples']
  assert len(examples['quality.length']) == 2
  for name in ('audit.json', 'audit.html'):
    assert 'jane' not in Path('out', name).read_text(), name


@pytest.mark.parametrize('kind', ['bpe', 'characters', 'words'])
def test_a_tokenizer_is_trained_on_a_sample(corpus, kind):
  c = load(corpus, tokenizer_file=None).unlock()
  c.train_tokenizer.update(kind=kind, vocab=300, sample_bytes=20_000)
  result = build.run(c.lock(), 'out')
  (file,) = Path('out').glob('tokenizer.*')
  opened = shards.load('out/train', result.tokenizer)
  assert opened.manifest.tokenizer == result.tokenizer.sha256
  first = file.read_bytes()
  build.run(c, 'again')
  assert Path('again', file.name).read_bytes() == first


def test_held_out_texts_are_not_in_the_sample(corpus):
  write(corpus / 'b.jsonl', ['\u4e16\u754c' * 20] * 3)
  c = load(corpus, tokenizer_file=None, split_valid=0.0).unlock()
  c.sources.a.side, c.sources.b.side = 'train', 'valid'
  c.train_tokenizer.update(kind='characters', sample_bytes=10**9)
  result = build.run(c.lock(), 'out')
  assert '\u4e16' not in Path('out/tokenizer.json').read_text()
  assert result.datasets['valid'].documents == 1


def test_the_name_of_a_source_is_the_name_of_a_folder(corpus):
  (corpus / 'b.jsonl').rename(corpus / 'b c.jsonl')
  with pytest.raises(ValueError, match=r'sources\.b c: is the name of'):
    build.run(load(corpus), 'out')


def test_the_witness_is_the_earliest_document_that_is_like_it(corpus):
  words = [f'word{n}' for n in range(140)]
  # The last is like both of the others, which are not like each other.
  first, second, between = (' '.join(words[n : n + 100]) for n in (0, 20, 10))
  write(corpus / 'a.jsonl', [first, second, between])
  (corpus / 'b.jsonl').unlink()
  build.run(load(corpus, split_valid=0.0), 'out')
  listed = rows('out')
  assert [x['reason'] for x in listed] == ['', '', 'near']
  assert listed[2]['witness'] == listed[0]['id']
  assert listed[2]['value'] == pytest.approx(86 / 106)
