"""Another version of an outside package works again, and nothing else does.

A failure means that an upgrade mixes what two versions give.
"""

from importlib import metadata
from pathlib import Path

import pytest

from lm.corpus import build, maps, parts
from lm.data.tokenizers import auto, sentencepiece
from tests.corpus import build_test

corpus = build_test.corpus
PAGE = b'<html><body><main><p>A page of the web, which is read.</p></main>'


def archive(path: Path) -> None:
  """Writes a web archive of a page, whose name does not say so."""
  answer = b'HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n' + PAGE
  path.write_bytes(
    b'WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.b/\r\n'
    b'WARC-Record-ID: <urn:uuid:0>\r\nWARC-Date: 2026-01-01T00:00:00Z\r\n'
    b'Content-Type: application/http; msgtype=response\r\n'
    b'Content-Length: %d\r\n\r\n%s\r\n\r\n' % (len(answer), answer)
  )


def made() -> set[str]:
  return {x.name for x in Path('out').glob('[pt]a*/*')}


@pytest.fixture
def built(corpus, monkeypatch):
  """Builds with all that outside packages do; gives the config."""
  for name in ('fastwarc', 'resiliparse', 'rensa', 'ftfy', 'py3langid'):
    pytest.importorskip(name)
  archive(corpus / 'c.txt')
  texts = [build_test.text(n) for n in range(99)]
  sentencepiece.train(texts, 'words.model', vocab=300)
  c = build_test.load(corpus, tokenizer_file='words.model').unlock()
  c.stages.normalise = {'fn': 'lm.corpus.normalise:make'}
  c.stages.language = {'fn': 'lm.corpus.language:make', 'least': 0.0}
  c.order = ('normalise', 'language', 'exact', 'near')
  build.run(c, 'out')
  assert 'c' in {x['source'] for x in build_test.rows('out')}
  return c


@pytest.mark.parametrize(
  'package, share',
  (
    # Of one source in three, and of parts that have texts and parts of tokens.
    ('fastwarc', (0.0, 0.4)),
    ('resiliparse', (0.0, 0.4)),
    ('sentencepiece', (0.1, 0.4)),
    ('ftfy', (0.4, 1.0)),
    ('py3langid', (0.4, 1.0)),
    ('rensa', (0.4, 1.0)),
    ('jieba', (0.0, 0.0)),  # which no part is made with
  ),
)
def test_what_a_package_made_is_made_again(built, monkeypatch, package, share):
  before = made()
  real = metadata.version
  monkeypatch.setattr(
    metadata, 'version', lambda x: '99.9' if x == package else real(x)
  )
  maps.forget_stages()
  build.run(built, 'out')
  share_of_new = len(made() - before) / len(before)
  least, most = share
  assert least <= share_of_new <= most and bool(share_of_new) == bool(most)


def test_a_package_that_is_missing_has_no_version():
  assert parts.versions('no-such-package') == {'no-such-package': None}


def test_a_tokenizer_names_the_package_that_encodes(tmp_path):
  hugging, own = tmp_path / 'a.json', tmp_path / 'b.json'
  hugging.write_text('{"model": {}}')
  own.write_text('{}')
  assert auto.packages(str(hugging)) == ('tokenizers',)
  assert auto.packages(str(own)) == auto.packages('bytes') == ()
