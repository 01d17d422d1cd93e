"""Logins and secrets in addresses are not shown."""

import time

import pytest

from lm import config
from lm.config import messages
from lm.data import names
from lm.runtime import logins


@pytest.mark.parametrize(
  ('address', 'shown'),
  [
    ('https://me:secret@host/a/b.txt', 'https://host/a/b.txt'),
    ('https://secret@host/a/b.txt', 'https://host/a/b.txt'),
    ('https://me:se@cret@host/a', 'https://host/a'),
    ('https://me:se/cret@host/a', 'https://host/a'),
    ('https://me:12/secret@host/a', 'https://me:12/secret@host/a'),  # a port
    ('https://host:8080/@scope/a', 'https://host:8080/@scope/a'),
    (
      'zip://a.txt::https://me:secret@host/a.zip',
      'zip://a.txt::https://host/a.zip',
    ),
    ('https://host/a?token=secret', 'https://host/a?token=***'),
    (
      'gs://b/a?x=1&access_token=secret&y=2',
      'gs://b/a?x=1&access_token=***&y=2',
    ),
    (
      'https://host/a?X-Amz-Signature=5ecre7',
      'https://host/a?X-Amz-Signature=***',
    ),
    ('https://h/a?sv=2&sig=s%2Be=&se=1', 'https://h/a?sv=2&sig=***&se=1'),
    ('https://h/a?API_KEY=s#auth=t', 'https://h/a?API_KEY=***#auth=***'),
    ('/data/a?b.txt', '/data/a?b.txt'),
    ('mail me@host, x=1; token = 3', 'mail me@host, x=1; token = 3'),
  ],
)
def test_what_is_hidden(address, shown):
  assert logins.hidden(address) == shown
  assert logins.hidden(shown) == shown
  assert logins.hidden({'a': [address, 1, (address,)], 'b': None}) == {
    'a': [shown, 1, (shown,)],
    'b': None,
  }


def test_errors_hide_them_before_they_are_cut():
  address = f'https://me:{"secret" * 20}@host/file?token={"secret" * 50}'
  for text in (
    messages.show(address),
    messages.show([address, address]),
    names.short(address),
    str(config.ConfigError(f'input {address}: no such file')),
  ):
    assert 'secret' not in text and 'https://' in text


@pytest.mark.parametrize('piece', ['://a:', '://', '?a', '?token', '@', 'a:/@'])
def test_a_long_text_takes_no_longer_than_its_length(piece):
  start = time.process_time()
  logins.hidden(f'={piece * 50_000}')
  assert time.process_time() - start < 10
