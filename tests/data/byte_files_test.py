"""Files of strangers are read by what they hold, whatever their names say."""

import bz2
import gzip
import io
import lzma
import os
from pathlib import Path
import random
import tracemalloc
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import zstandard

from lm.data import byte_files, names

TEXT = 'Äpfel, 你好 \U0001f600\r\nและ\u2028\0 end\n'
NOISE = random.Random(0).randbytes(4096)
PACKS = {
  'gz': gzip.compress,
  'bz2': bz2.compress,
  'xz': lzma.compress,
  'zst': zstandard.compress,
}
MARKS = {
  'utf-8-sig': b'',
  'utf-16-le': b'\xff\xfe',
  'utf-16-be': b'\xfe\xff',
  'utf-32-le': b'\xff\xfe\0\0',
  'utf-32-be': b'\0\0\xfe\xff',
}


def put(tmp_path: Path, data: bytes, name: str = 'a.txt') -> str:
  (tmp_path / name).write_bytes(data)
  return str(tmp_path / name)


def fails(path: str) -> str:
  with pytest.raises(ValueError) as e:
    byte_files.text(path, 'input')
  line = str(e.value)
  assert line.startswith(f'input {names.short(path)}: ')
  assert '\n' not in line and len(line) <= 200
  return line


@pytest.mark.parametrize('pack', (None, *PACKS))
@pytest.mark.parametrize('encoding', (None, *MARKS))
def test_packing_and_encoding_are_known_by_content(tmp_path, pack, encoding):
  data = TEXT.encode()
  if encoding:
    data = MARKS[encoding] + TEXT.encode(encoding)
  if pack:
    data = PACKS[pack](data)
  for name in ('a.txt', f'b.TXT.{pack}'):
    path = put(tmp_path, data, name)
    assert byte_files.text(path, 'input') == TEXT
    assert byte_files.suffix(path) == '.txt' or not pack


@pytest.mark.parametrize('pack', PACKS)
def test_members_follow_one_another(tmp_path, pack):
  members = [PACKS[pack](TEXT.encode()) for _ in range(3)]
  members.insert(1, PACKS[pack](b''))
  assert byte_files.text(put(tmp_path, b''.join(members)), 'x') == TEXT * 3


@pytest.mark.parametrize('pack', PACKS)
def test_every_cut_of_a_packed_file_is_refused(tmp_path, pack):
  whole = PACKS[pack](TEXT.encode())
  for length in range(16, len(whole)):
    message = fails(put(tmp_path, whole[:length]))
    assert 'damaged (' in message and message.endswith('; fetch it again')
  for more in (b'garbage!', b'x', whole[:20]):
    assert 'damaged (' in fails(put(tmp_path, whole + more))


def test_padding_and_frames_to_skip_are_no_damage(tmp_path):
  for pack in ('gz', 'bz2', 'xz'):
    path = put(tmp_path, PACKS[pack](b'abc') + bytes(512))
    assert byte_files.text(path, 'x') == 'abc'
  skip = b'\x50\x2a\x4d\x18\4\0\0\0skip'
  data = skip + zstandard.compress(b'abc') + skip + zstandard.compress(b'd')
  assert byte_files.text(put(tmp_path, data), 'x') == 'abcd'


def test_long_windows_are_read_and_longer_ones_are_no_damage(tmp_path):
  parameters = zstandard.ZstdCompressionParameters(window_log=28)
  packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
  path = put(tmp_path, packer.compress(b'abc' * 1000) + packer.flush())
  assert byte_files.text(path, 'x') == 'abc' * 1000

  def repeated(window_log):  # a frame of 100 times 'a'
    block = (100 << 3 | 0b011).to_bytes(3, 'little') + b'a'
    return b'\x28\xb5\x2f\xfd\0' + bytes([window_log - 10 << 3]) + block

  assert byte_files.text(put(tmp_path, repeated(31)), 'x') == 'a' * 100
  assert 'pack it again without --long' in fails(put(tmp_path, repeated(32)))


@pytest.mark.parametrize(
  'data, words',
  (
    (b'PK\x03\x04' + bytes(60), 'is a zip archive and no text; unpack'),
    (b'%PDF-1.7\nfollowed by text', 'is PDF and no text'),
    (b'\x89PNG\r\n\x1a\n' + bytes(40), 'is no text in UTF-8, but binary'),
    (NOISE, 'is no text in UTF-8, but binary'),
    (gzip.compress(gzip.compress(NOISE)), 'is no text in UTF-8'),
    ('without a mark'.encode('utf-16-le'), 'or in another encoding'),
    ('ещё один текст без метки'.encode('cp1251'), 'or in another encoding'),
    (('没有标记的文本' * 4).encode('gb18030'), 'or in another encoding'),
    (b'\xff\xfea\0b\0c\0d', 'damaged ('),
    (b'\xff\xfe\0\0a\0\0\0b\0\0\0c\0\0\0d\0\0\xff', 'damaged ('),
    (
      'one\ncafé au lait'.encode('latin1'),
      'line 2: byte 0xe9 is not UTF-8 (latin1?); convert the file to UTF-8',
    ),
  ),
)
def test_what_is_no_text_is_refused_in_one_line(tmp_path, data, words):
  assert words in fails(put(tmp_path, data))


def test_what_cannot_be_opened_is_refused_in_one_line(tmp_path):
  assert 'no such file; check the path' in fails(str(tmp_path / 'absent.txt'))
  assert 'is no file; check the path' in fails(str(tmp_path))
  for name in ('a\0b', 'a\ud800'):
    with pytest.raises(ValueError, match=r'^input a\?b?: is no path \(.*check'):
      byte_files.text(name, 'input')
  os.mkfifo(tmp_path / 'pipe.txt')
  assert 'is no file' in fails(str(tmp_path / 'pipe.txt'))
  named = put(tmp_path, b'plain', 'plain.txt.gz')
  assert 'damaged (named .gz, but not packed)' in fails(named)
  denied = put(tmp_path, b'x')
  with mock.patch('builtins.open', side_effect=PermissionError(13, 'denied')):
    assert 'cannot be read (denied); check it' in fails(denied)


def test_a_half_of_a_pair_is_met_like_other_bad_bytes(tmp_path):
  path = put(tmp_path, b'\xff\xfea\0\x3d\xd8b\0')
  with byte_files.opened(path, 'input') as stream:
    assert stream.read() == b'a\xed\xa0\xbdb'
  assert 'byte 0xed is not UTF-8' in fails(path)


@pytest.mark.parametrize('pack', PACKS)
def test_memory_stays_bounded(tmp_path, pack):
  # 64 MiB that pack to some kilobytes.
  path = put(tmp_path, PACKS[pack](b'0123456\n' * (1 << 19)) * 16)
  tracemalloc.start()
  with byte_files.opened(path, 'input') as stream:
    lines = sum(1 for _ in iter(lambda: stream.read(1 << 16), b''))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert lines >= 1024 and peak < 24 << 20


def test_a_name_is_itself_before_it_is_a_pattern(tmp_path):
  odd, plain = (put(tmp_path, b'', name) for name in ('a[1].txt', 'a1.txt'))
  assert byte_files.matching(odd) == [odd]
  assert byte_files.matching(str(tmp_path / 'a?.txt')) == [plain]
  assert byte_files.matching(str(tmp_path / '*')) == sorted([plain, odd])
  assert byte_files.matching(str(tmp_path)) == []


@settings(deadline=None, max_examples=60)
@given(
  st.text(st.characters(exclude_categories=('Cs',)), min_size=1, max_size=99),
  st.sampled_from([None, *PACKS]),
  st.sampled_from(list(MARKS)),
)
def test_any_text_is_read_as_it_was_written(tmp_path_factory, text, pack, mark):
  # Neither a second mark of byte order nor a text that is mostly controls.
  text = 'It says: ' * 40 + text
  data = MARKS[mark] + text.encode(mark)
  data = PACKS[pack](data) if pack else data
  path = put(tmp_path_factory.mktemp('any'), data)
  assert byte_files.text(path, 'input') == text
  with byte_files.opened(path, 'input') as stream:
    assert io.TextIOWrapper(stream, 'utf-8', newline='').read() == text
