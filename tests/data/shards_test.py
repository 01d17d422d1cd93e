"""Datasets on disk: written whole, read exactly, damage never silent."""

import errno
import hashlib
import json
import os
from pathlib import Path
import random
import shutil

import numpy as np
import pytest

from lm.data import manifest as manifests
from lm.data import shards, writer
from lm.data.tokenizers import auto, characters, utf8_bytes

WORDS = utf8_bytes.make()
TEXTS = [f'document {n} ' + 'tail ' * (n % 7) for n in range(60)] + ['你好\0']


@pytest.fixture
def dataset(tmp_path) -> Path:
  writer.write(tmp_path / 'set', TEXTS, WORDS, shard_tokens=500)
  return tmp_path / 'set'


def stream_of(texts) -> np.ndarray:
  return np.concatenate([[*WORDS.encode(t), WORDS.eos] for t in texts if t])


def read_all(directory: Path) -> None:
  """Reads all that training and evaluation would: tokens and documents."""
  source = shards.load(directory, WORDS)
  source.read(0, source.manifest.tokens)
  for n in range(source.manifest.documents):
    source.document(n)


def one_line(e: pytest.ExceptionInfo) -> str:
  text = str(e.value)
  assert '\n' not in text and len(text) <= 200, text
  return text


def test_reads_back_what_was_written(dataset):
  source = shards.load(dataset, WORDS)
  expected = stream_of(TEXTS)
  m = source.manifest
  assert len(m.shards) > 3
  assert (m.tokens, m.documents) == (len(expected), len(TEXTS))
  assert m.text_bytes == sum(len(t.encode()) for t in TEXTS)
  np.testing.assert_array_equal(source.read(0, m.tokens), expected)
  rng = np.random.default_rng(0)
  starts = rng.integers(0, m.tokens, 50)
  rows = source.rows(starts, 700)  # across shards, and round the end
  index = (starts[:, None] + np.arange(700)) % m.tokens
  np.testing.assert_array_equal(rows, expected[index])
  for n, text in enumerate(TEXTS):
    *ids, last = source.document(n).tolist()
    assert WORDS.decode(ids) == text and last == WORDS.eos
  assert source.read(3, 3).size == 0
  source.verify()


def test_more_ids_than_uint16_holds(tmp_path):
  wide = WORDS._replace(
    size=70_000, encode_batch=lambda ts: [[69_999, 3] for _ in ts]
  )
  writer.write(tmp_path / 'wide', ['a', 'b'], wide)
  source = shards.load(tmp_path / 'wide', wide)
  assert source.manifest.dtype == np.dtype('<u4')
  assert source.read(0, 6).tolist() == [69_999, 3, 1] * 2
  with pytest.raises(AssertionError, match='forged'):
    forged = WORDS._replace(encode_batch=lambda ts: [[5, 1, 5] for _ in ts])
    writer.write(tmp_path / 'forged', ['a'], forged)
  assert [p.name for p in tmp_path.iterdir()] == ['wide']


def test_files_of_many_blocks_are_checked_block_by_block(tmp_path):
  text = 'x' * (5 << 19)  # 2.5 blocks of uint16
  writer.write(tmp_path / 'big', [text, 'end'], WORDS)
  file = tmp_path / 'big' / '00000.bin'
  source = shards.load(tmp_path / 'big')
  source.verify()
  assert len(source.manifest.shards[0].files['.bin'].crc32) == 6
  data = bytearray(file.read_bytes())
  data[3 << 20] ^= 1
  file.write_bytes(data)
  damaged = shards.load(tmp_path / 'big')
  assert damaged.read(0, 3 << 19).size == 3 << 19  # blocks 0 to 2 are good
  with pytest.raises(ValueError, match=r'00000\.bin: block 3 of 6 is damaged'):
    damaged.read((3 << 19) + 100, (3 << 19) + 101)
  with pytest.raises(ValueError, match='block 3'):
    damaged.read(0, source.manifest.tokens)


def test_a_flip_of_any_bit_is_never_silent(dataset, tmp_path):
  rng = random.Random(0)
  files = sorted(dataset.iterdir())
  trials = 0
  for file in files:
    whole = file.read_bytes()
    for _ in range(12):
      data = bytearray(whole)
      data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
      file.write_bytes(data)
      with pytest.raises(ValueError) as e:
        read_all(dataset)
      text = one_line(e)
      assert file.name in text, text
      if file.name != 'manifest.json':
        assert 'block 0 of 1 is damaged (crc32); restore it' in text
      trials += 1
    file.write_bytes(whole)
  assert trials > 100
  read_all(dataset)


def test_truncated_emptied_or_grown_files_are_refused_by_name(dataset):
  for file in sorted(dataset.iterdir()):
    whole = file.read_bytes()
    for data in (b'', whole[:-1], whole[: len(whole) // 2], whole + b'\0'):
      file.write_bytes(data)
      with pytest.raises(ValueError) as e:
        shards.load(dataset, WORDS)
      text = one_line(e)
      assert file.name in text, text
      if file.suffix != '.json':
        assert f'has {len(data)} bytes, not {len(whole)}' in text
    file.write_bytes(whole)


def test_dropped_added_and_swapped_shards_are_refused_by_name(dataset):
  file = dataset / '00002.bin'
  whole = file.read_bytes()
  file.unlink()
  with pytest.raises(ValueError, match=r'00002\.bin: cannot be read \(No such'):
    shards.load(dataset)
  file.mkdir()
  with pytest.raises(ValueError, match=r'00002\.bin: not a file'):
    shards.load(dataset)
  file.rmdir()
  file.write_bytes(whole)
  (dataset / '00077.idx').write_bytes(b'1')
  with pytest.raises(ValueError, match=r'00077\.idx: not in the manifest'):
    shards.load(dataset)
  (dataset / '00077.idx').unlink()
  (dataset / 'notes.txt').write_text('may lie here')
  read_all(dataset)

  pad = TEXTS[0].ljust(40)
  writer.write(
    dataset.parent / 'even',
    [pad.replace('0', str(n)) for n in range(4)],
    WORDS,
    shard_tokens=1,
  )
  even = dataset.parent / 'even'
  first, second = even / '00000.bin', even / '00001.bin'
  a, b = first.read_bytes(), second.read_bytes()
  assert len(a) == len(b) and a != b
  first.write_bytes(b)
  second.write_bytes(a)
  with pytest.raises(ValueError, match=r'00000\.bin: block 0 of 1 is damaged'):
    read_all(even)


def test_reordered_or_edited_manifests_are_refused(dataset):
  file = dataset / 'manifest.json'
  for edit in (
    lambda body: body['shards'].reverse(),
    lambda body: body['shards'].pop(),
    lambda body: body['settings'].update(a=1),
    lambda body: body.update(sha256='0' * 64),
    lambda body: body.update(more=1),
  ):
    body = json.loads(file.read_bytes())
    whole = file.read_bytes()
    edit(body)
    file.write_text(json.dumps(body, indent=1, sort_keys=True) + '\n')
    with pytest.raises(ValueError, match='differs from its own sha256'):
      shards.load(dataset)
    file.write_bytes(whole)


@pytest.mark.parametrize('name', ('../set/0', '/etc/passwd', '', 'a/b', '.'))
def test_names_cannot_leave_the_directory(dataset, name):
  forge(dataset, lambda s: s._replace(name=name))
  with pytest.raises(ValueError, match=r'manifest\.json: bad name'):
    shards.load(dataset)


def forge(dataset: Path, change) -> None:
  """Writes a manifest whose own hash is right, as a stranger would."""
  m = manifests.load(dataset)
  first = change(m.shards[0])
  m = m._replace(shards=(first, *m.shards[1:]))
  (dataset / 'manifest.json').write_bytes(manifests.dump(m))


def test_a_manifest_that_contradicts_itself_is_refused(dataset):
  whole = (dataset / 'manifest.json').read_bytes()
  for change, message in (
    (lambda s: s._replace(name='00001'), 'a shard twice'),
    (lambda s: s._replace(tokens=s.tokens + 1), 'wrong token count'),
    (lambda s: s._replace(documents=1), 'wrong document count'),
    (lambda s: s._replace(files={}), 'files of shard 00000'),
    (
      lambda s: s._replace(
        files={**s.files, '.bin': s.files['.bin']._replace(bytes=2)}
      ),
      r'size of shard 00000\.bin',
    ),
  ):
    forge(dataset, change)
    with pytest.raises(ValueError, match=message) as e:
      shards.load(dataset)
    one_line(e)
    (dataset / 'manifest.json').write_bytes(whole)


def test_no_manifest_and_no_json_and_another_format(dataset, tmp_path):
  with pytest.raises(ValueError, match=r'^dataset \?: .* cannot be read'):
    shards.load('\0')
  with pytest.raises(ValueError, match=r'nowhere: .* cannot be read'):
    shards.load(tmp_path / 'nowhere')
  file = dataset / 'manifest.json'
  for body in ('', '[]', '{', '[' * 99_999, '\udcff', '{"format": 1}'):
    file.write_bytes(body.encode('utf-8', 'surrogateescape'))
    with pytest.raises(ValueError, match=r'is not a manifest|is malformed'):
      shards.load(dataset)
  file.write_text('{"format": 99}')
  with pytest.raises(ValueError, match='has format 99, not 1; prepare'):
    shards.load(dataset)


def test_another_tokenizer_is_refused_by_hash(dataset, tmp_path):
  characters.train(TEXTS, str(tmp_path / 'c.json'))
  other = auto.load(str(tmp_path / 'c.json'))
  with pytest.raises(ValueError, match='give that one or prepare') as e:
    shards.load(dataset, other)
  text = one_line(e)
  assert WORDS.sha256[:12] in text and other.sha256[:12] in text


def test_more_lost_bytes_than_text_are_refused(dataset):
  m = manifests.load(dataset)
  m = m._replace(lost_bytes=m.text_bytes + 1)
  (dataset / 'manifest.json').write_bytes(manifests.dump(m))
  with pytest.raises(ValueError, match='lost more bytes than it has') as e:
    shards.load(dataset)
  one_line(e)


def test_another_end_of_documents_is_refused(dataset):
  with pytest.raises(ValueError) as caught:
    shards.load(dataset, WORDS._replace(eos=2))
  assert str(caught.value).endswith(
    ': its documents end in id 1, and eos is 2 now; prepare the data again'
  )


def test_ids_outside_the_vocabulary_are_refused_by_shard(dataset):
  m = manifests.load(dataset)
  (dataset / 'manifest.json').write_bytes(manifests.dump(m._replace(vocab=100)))
  source = shards.load(dataset)
  with pytest.raises(ValueError, match='outside the range of 100') as e:
    source.read(0, 10)
  assert '00000.bin: block 0 holds' in one_line(e)


def test_verify_finds_what_only_sha256_and_offsets_show(dataset):
  m = manifests.load(dataset)
  bad = m.shards[0].files['.bin']._replace(sha256='0' * 64)
  forge(dataset, lambda s: s._replace(files={**s.files, '.bin': bad}))
  with pytest.raises(ValueError, match=r'00000\.bin: wrong sha256'):
    shards.load(dataset).verify()
  (dataset / 'manifest.json').write_bytes(manifests.dump(m))

  index = np.fromfile(dataset / '00000.idx', '<i8')
  index[1] += 1
  data = index.tobytes()
  (dataset / '00000.idx').write_bytes(data)
  with writer._Writer(dataset.parent / 'again') as out:
    out.add(data)
  forge(dataset, lambda s: s._replace(files={**s.files, '.idx': out.file()}))
  with pytest.raises(ValueError, match=r'00000\.idx: offsets do not match'):
    shards.load(dataset).verify()


def test_writing_is_all_or_nothing_and_never_over_another(dataset, tmp_path):
  def failing():
    yield from TEXTS[:30]
    raise RuntimeError('the disk is gone')

  with pytest.raises(RuntimeError, match='the disk is gone'):
    writer.write(tmp_path / 'new', failing(), WORDS)
  assert [p.name for p in tmp_path.iterdir()] == ['set']
  before = {p.name: p.read_bytes() for p in dataset.iterdir()}

  # the same again is no error, and another dataset is
  writer.write(dataset, [*TEXTS, ''], WORDS, shard_tokens=500)
  for texts, how in ((TEXTS[1:], {}), (TEXTS, {'settings': {'a': 1}})):
    with pytest.raises(ValueError, match='holds another dataset; remove it'):
      writer.write(dataset, texts, WORDS, shard_tokens=500, **how)
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'precious').touch()
  with pytest.raises(ValueError, match=r'other: manifest\.json cannot be read'):
    writer.write(tmp_path / 'other', TEXTS, WORDS)
  assert before == {p.name: p.read_bytes() for p in dataset.iterdir()}
  assert sorted(p.name for p in tmp_path.iterdir()) == ['other', 'set']

  (tmp_path / 'empty').mkdir()
  settings = {'tuple': (1, 2)}
  for _ in range(2):
    writer.write(tmp_path / 'empty', TEXTS, WORDS, settings=settings)
  shards.load(tmp_path / 'empty', WORDS).verify()


@pytest.mark.parametrize('texts', ([], ['', '']))
def test_no_documents_is_an_error(tmp_path, texts):
  with pytest.raises(ValueError, match='no documents to write: the input is'):
    writer.write(tmp_path / 'new', texts, WORDS)
  assert not list(tmp_path.iterdir())


def test_documents_are_streamed(tmp_path):
  alive = 0
  most = 0

  class Text(str):
    def __new__(cls, text):
      nonlocal alive, most
      alive += 1
      most = max(most, alive)
      return super().__new__(cls, text)

    def __del__(self):
      nonlocal alive
      alive -= 1

  texts = (Text('a' * 50_000) for _ in range(300))
  writer.write(tmp_path / 'set', texts, WORDS, shard_tokens=10**6)
  assert most < 60  # of 300: the rest was written and let go


# The fingerprint of 'a b c' as bytes since format 1. If it changes, no run that
# was begun before finds its data.
OLD = '8e23a3de8fcc56f0614da8a770f7788f7428c0fa07b419b27c3a30ea48a0dcdf'
LOWER = WORDS._replace(
  lossless=False,
  encode_batch=lambda texts: [WORDS.encode(text.lower()) for text in texts],
)


def test_what_a_tokenizer_loses_is_measured(tmp_path):
  texts = ['As It Was', 'as it was', 'ÀB']
  for name, words, kept, lost in (
    ('lossy', LOWER, texts, 3 + 3),
    ('lucky', LOWER, texts[1:2], 0),
    ('lossless', WORDS, texts, None),
  ):
    written = writer.write(tmp_path / name, kept, words)
    assert written.lost_bytes == lost
    assert shards.load(tmp_path / name, words).manifest == written


def test_a_manifest_without_losses_is_that_of_older_versions(tmp_path):
  """Its fingerprint stays, by which runs know their data."""
  for words, has in ((WORDS, False), (LOWER, True)):
    path = tmp_path / str(has)
    writer.write(path, ['a b c'], words)
    body = json.loads((path / 'manifest.json').read_bytes())
    assert ('lost_bytes' in body) == has
  assert shards.load(tmp_path / 'False').fingerprint == OLD


def test_fingerprint_names_the_content(dataset, tmp_path):
  again = tmp_path / 'copy'
  shutil.copytree(dataset, again)
  one, two = shards.load(dataset), shards.load(again)
  assert one.fingerprint == two.fingerprint
  body = json.loads((dataset / 'manifest.json').read_bytes())
  assert body['sha256'] == one.fingerprint
  file = body['shards'][0]['files']['.bin']
  data = (dataset / '00000.bin').read_bytes()
  assert file['sha256'] == hashlib.sha256(data).hexdigest()
  other = writer.write(tmp_path / 'other', TEXTS, WORDS, shard_tokens=300)
  assert other.fingerprint != one.fingerprint


def test_too_few_memory_maps_are_told_apart_from_damage(dataset, monkeypatch):
  def refuse(*unused, **kw):
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

  monkeypatch.setattr(np, 'memmap', refuse)
  with pytest.raises(ValueError, match='no more memory maps'):
    shards.load(dataset)
