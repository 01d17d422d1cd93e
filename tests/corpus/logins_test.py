"""A login is in no file of a build, and in no error."""

from collections.abc import Iterator
import functools
from http import server
import json
from pathlib import Path
import threading

import pytest

from lm import config
from lm.corpus import build, reading
from lm.data import documents
from tools import factory

pytest.importorskip('aiohttp')


@pytest.fixture
def site(tmp_path) -> Iterator[str]:
  """Gives the host of a site with two files, whatever login is given."""
  folder = tmp_path / 'site'
  folder.mkdir()
  for n, name in enumerate(('a.jsonl', 'b.jsonl')):
    lines = [json.dumps({'text': f'text {n} {m} of a site'}) for m in range(9)]
    (folder / name).write_text('\n'.join(lines))

  class Handler(server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
      pass

  handler = functools.partial(Handler, directory=str(folder))
  with server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as service:
    threading.Thread(target=service.serve_forever, daemon=True).start()
    yield f'127.0.0.1:{service.server_port}'
    service.shutdown()


def settings(site: str, one: str, other: str) -> config.Config:
  """Makes the config of a source whose files need a login."""
  c = config.load('configs/data/base.py', required=()).unlock()
  inputs = [
    f'http://{one}@{site}/a.jsonl?x=1&token={other}',
    f'http://{other}@{site}/b.jsonl?X-Amz-Signature={one}',
  ]
  c.sources = {
    'web': {
      'inputs': inputs,
      'rank': 0,
      'about': f'from {inputs[0]}',
      'licence': f'see {inputs[1]}',
    }
  }
  c.tokenizer_file, c.split_valid = 'bytes', 0.0
  return c.lock()


def test_no_file_of_a_build_has_a_login(site, tmp_path):
  folder = tmp_path / 'build'
  result = build.run(settings(site, 'me:pw4711', 'key4712'), folder)
  assert result.datasets['train'].documents == 18
  files = [x for x in folder.rglob('*') if x.is_file()]
  assert {'config.json', 'card.md', 'audit.json', 'audit.html'} <= {
    x.name for x in files
  }
  for path in files:
    content = path.read_bytes() + str(path).encode()
    assert b'pw4711' not in content and b'key4712' not in content, path
  c = config.from_json((folder / 'config.json').read_text())
  assert c.sources.web.inputs == [
    f'http://{site}/a.jsonl?x=1&token=***',
    f'http://{site}/b.jsonl?X-Amz-Signature=***',
  ]
  assert f'from http://{site}/a.jsonl' in (folder / 'card.md').read_text()


def test_another_login_makes_nothing_anew(site, tmp_path):
  folder = tmp_path / 'build'
  first = build.run(settings(site, 'me:zz', 'aa'), folder)

  def made() -> dict[Path, int]:
    found = (folder / 'parts').iterdir()
    return {x: x.stat().st_mtime_ns for x in found}

  parts = made()
  assert parts
  again = build.run(settings(site, 'you:aa', 'zz'), folder)
  assert made() == parts
  assert again.datasets == first.datasets


def test_errors_do_not_show_logins(site, tmp_path, capsys):
  address = f'http://me:pw4711@{site}/none.jsonl?token=key4712'
  source = '--config.sources.web'
  for words in (
    [f"{source}={{'inputs': '{address}', 'rank': 0}}"],
    [f"{source}={{'inputs': '{address}', 'ranks': 0}}"],
    [f'--config.split_valid={address}'],
    [f'--inputs={address}'],
  ):
    with pytest.raises(SystemExit) as stopped:
      config.main(
        lambda _, words=words: factory.main(
          [
            '--config=configs/data/base.py',
            f'--output={tmp_path / "build"}',
            *words,
          ]
        )
      )
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said and 'pw4711' not in said and 'key4712' not in said, said


def test_files_that_changed_are_named_without_a_login(site, tmp_path):
  address = f'http://me:pw4711@{site}/a.jsonl?token=key4712'
  (task,) = reading.tasks(
    'web',
    [reading.File(address, 99, '0' * 64)],
    documents.Settings(),
    4000,
    tmp_path,
  )
  with pytest.raises(ValueError, match='was changed while') as error:
    reading.read(task)
  assert 'pw4711' not in str(error.value) and 'key4712' not in str(error.value)
