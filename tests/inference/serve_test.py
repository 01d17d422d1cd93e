"""The service: what clients get, and what abuse leads to."""

import contextlib
import http.client
import json
import os
import signal
import socket
import threading
import time

import pytest

from lm import config, serve
from lm.data import objectives
from lm.inference import (
  detokenizer,
  engine,
  http_server,
  openai_api,
  sampling,
)
from lm.inference import service as service_lib
from tests import programs

TOKEN = 'a-token-of-the-tests'
BEARER = f'Authorization: Bearer {TOKEN}'


@pytest.fixture(scope='module')
def service(trained):
  with service_lib.serving(trained, token=TOKEN) as made:
    yield made


@pytest.fixture
def alive(service):
  """The service, which must still answer after the test."""
  yield service
  assert ask(service, prompt='the ', max_tokens=2)[0] == 200


def call(service, method, path, body=None, **headers):
  connection = http.client.HTTPConnection(
    *service.server_address, timeout=programs.PATIENCE_SECONDS
  )
  given = {'Authorization': f'Bearer {TOKEN}', **headers}
  with contextlib.closing(connection):
    connection.request(
      method, path, body, {k: v for k, v in given.items() if v is not None}
    )
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read().decode()


def ask(service, **fields):
  status, _, text = call(service, 'POST', '/v1/completions', json.dumps(fields))
  return status, json.loads(text)


def streamed(service, **fields):
  status, headers, text = call(
    service, 'POST', '/v1/completions', json.dumps({**fields, 'stream': True})
  )
  assert status == 200 and headers['Content-Type'] == 'text/event-stream'
  *events, last, rest = text.split('\n\n')
  assert (last, rest) == ('data: [DONE]', '')
  return [json.loads(event.removeprefix('data: ')) for event in events]


def dial(service, sent=b''):
  client = socket.create_connection(service.server_address)
  client.settimeout(programs.PATIENCE_SECONDS)
  client.sendall(sent)
  return client


def read(client):
  found = b''
  while part := client.recv(1 << 16):
    found += part
  return found


def raw(service, sent, *, more=True):
  """Sends bytes as they are; returns status and the error's code."""
  with dial(service, sent) as client:
    if not more:
      client.shutdown(socket.SHUT_WR)
    head, _, body = read(client).partition(b'\r\n\r\n')
  return int(head.split()[1]), json.loads(body)['error']['code']


def head(*lines, method='POST /v1/completions', host='127.0.0.1'):
  lines = (f'{method} HTTP/1.1', f'Host: {host}', *lines, '', '')
  return '\r\n'.join(lines).encode('latin-1')


def whole(stream, **fields):
  """The bytes of a sound request."""
  fields = {'prompt': 'the ', 'max_tokens': 10, 'stream': stream, **fields}
  body = json.dumps({'temperature': 0, **fields}).encode()
  return head(BEARER, f'Content-Length: {len(body)}') + body


@pytest.mark.parametrize('temperature', [0, 0.7])
@pytest.mark.parametrize('top_p', [0.8, 1])
def test_texts_are_those_of_sample(service, trained, temperature, top_p):
  how = {'temperature': temperature, 'top_p': top_p, 'seed': 3}
  want = sampling.texts(
    trained, 'the ', sampling.Settings(count=2, length=8, **how)
  )
  status, answer = ask(
    service, prompt='the ', n=2, max_tokens=8, logprobs=2, **how
  )
  assert status == 200 and answer['object'] == 'text_completion'
  assert [c['index'] for c in answer['choices']] == [0, 1]
  for choice, text in zip(answer['choices'], want, strict=True):
    assert 'the ' + choice['text'] == text.text
    told = choice['logprobs']
    drawn = len(text.pieces)
    assert told['tokens'][:drawn] == text.pieces
    assert told['token_logprobs'][:drawn] == pytest.approx(
      [-cost for cost in text.nats], rel=1e-4
    )
    # what `texts` leaves out
    assert told['tokens'][drawn:] in ([], ['<eos>'])
    assert told['text_offset'] == [4 + n for n in range(len(told['tokens']))]
    for name, score, best in zip(
      told['tokens'], told['token_logprobs'], told['top_logprobs'], strict=True
    ):
      assert 1 <= len(best) <= 3 and best[name] == pytest.approx(score)
    ended = 'stop' if len(told['tokens']) > drawn else 'length'
    assert choice['finish_reason'] == ended
  count = sum(len(c['logprobs']['tokens']) for c in answer['choices'])
  assert answer['usage'] == {
    'prompt_tokens': 4,
    'completion_tokens': count,
    'total_tokens': 4 + count,
  }


@pytest.mark.parametrize('echo', [False, True])
def test_a_stream_has_the_same_text_in_pieces(service, echo):
  how = {'prompt': ['the ', 'a'], 'max_tokens': 8, 'temperature': 0}
  how |= {'logprobs': 1, 'echo': echo}
  _, answer = ask(service, **how)
  *chunks, last = streamed(
    service, stream_options={'include_usage': True}, **how
  )
  assert len(chunks) > 8
  for choice in answer['choices']:
    mine = [c for chunk in chunks for c in chunk['choices'] if same(c, choice)]
    assert ''.join(c['text'] for c in mine) == choice['text']
    for key, want in choice['logprobs'].items():
      assert [x for c in mine for x in c['logprobs'][key]] == want
    assert [c['finish_reason'] for c in mine] == [
      *[None] * (len(mine) - 1),
      choice['finish_reason'],
    ]
  assert (last['choices'], last['usage']) == ([], answer['usage'])
  assert answer['usage']['prompt_tokens'] == 5


def same(one, other):
  return one['index'] == other['index']


def test_a_prompt_can_be_ids_and_be_told_what_it_costs(service):
  ids = [3 + byte for byte in b'the ']
  how = {'echo': True, 'logprobs': 1, 'max_tokens': 3, 'temperature': 0}
  answers = [
    ask(service, prompt=prompt, **how)[1]['choices']
    for prompt in ('the ', ['the '], ids, [ids])
  ]
  assert all(answer == answers[0] for answer in answers)
  (choice,) = answers[0]
  told = choice['logprobs']
  assert ''.join(told['tokens'][:4]) == 'the ' == choice['text'][:4]
  assert len(told['tokens']) == len(told['token_logprobs']) == 7
  assert told['text_offset'] == [*range(7)]
  # the new tokens are greedy ones, the prompt's first is not
  assert max(told['top_logprobs'][5].values()) == told['token_logprobs'][5]
  assert max(told['top_logprobs'][0].values()) > told['token_logprobs'][0]
  # nothing but the costs of a prompt
  _, answer = ask(service, prompt=ids, **how | {'max_tokens': 0})
  (alone,) = answer['choices']
  assert (alone['text'], alone['finish_reason']) == ('the ', 'length')
  assert alone['logprobs']['token_logprobs'] == told['token_logprobs'][:4]
  assert answer['usage']['completion_tokens'] == 0


def test_a_stop_string_is_never_told(service):
  how = {'prompt': 'the ', 'max_tokens': 10, 'temperature': 0}
  _, answer = ask(service, **how)
  text = answer['choices'][0]['text']
  how['stop'] = ['@@', text[3:6]]
  _, cut = ask(service, logprobs=0, **how)
  (choice,) = cut['choices']
  want = text[: text.index(text[3:6])]
  assert (choice['text'], choice['finish_reason']) == (want, 'stop')
  assert ''.join(choice['logprobs']['tokens']) == want
  assert cut['usage']['completion_tokens'] == len(want) + 3
  chunks = streamed(service, **how)
  assert ''.join(c['choices'][0]['text'] for c in chunks) == want
  # half a stop string that comes to nothing is told after all
  how['stop'] = text[3:5] + '@'
  assert ask(service, **how)[1]['choices'][0]['text'] == text


def test_rows_count_until_they_end(service, monkeypatch):
  token = detokenizer.Token('a', 0, 'a', -1.0, {})

  def stream(*arguments, **settings):
    one, other = (engine.Delta(row, [token], None) for row in (0, 1))
    yield [one._replace(finish_reason='stop'), other]
    yield [other]
    yield [other._replace(finish_reason='length')]

  monkeypatch.setattr(engine, 'stream', stream)
  _, answer = ask(service, prompt='the ', n=2, max_tokens=3)
  assert answer['usage']['completion_tokens'] == 4
  assert [choice['text'] for choice in answer['choices']] == ['a', 'aaa']


def test_the_openai_form_of_a_neutral_wish_is_taken(service):
  fields = {'best_of': 1, 'suffix': None, 'logit_bias': {}, 'user': None}
  fields |= {'frequency_penalty': 0, 'presence_penalty': 0.0}
  how = {'prompt': 'the ', 'max_tokens': 3, 'temperature': 0}
  status, plain = ask(service, **how)
  assert status == 200
  for more in (
    fields,
    {'user': 'a-user', 'metadata': {'run': '1'}, 'store': True},
    {'service_tier': 'auto', 'safety_identifier': 'x', 'prompt_cache_key': 'y'},
    {'n': 1, 'best_of': 1, 'stream_options': {'include_obfuscation': False}},
  ):
    status, answer = ask(service, **how, **more)
    assert status == 200 and answer['choices'] == plain['choices']
  assert ask(service, **how, n=2, best_of=2)[0] == 200
  status, answer = ask(service, **how, best_of=3)
  assert (status, answer['error']['message']) == (
    400,
    'best_of: must be 1 or n: texts are not ranked',
  )
  status, answer = ask(service, prompt='the ', frequency_penalty=0.5)
  assert status == 400
  assert answer['error']['message'].startswith('frequency_penalty: not known')


@pytest.mark.parametrize(
  ('fields', 'say'),
  [
    (
      {'prompt': None},
      "prompt: must be a string, ids, or a list of either; ''",
    ),
    ({'prompt': 1}, 'prompt: must be a string, ids, or a list of either'),
    ({'prompt': []}, 'prompt: must be a string, ids, or a list of either'),
    ({'prompt': ['a', 1]}, 'prompt: must be a string, ids, or a list of'),
    ({'prompt': [259]}, 'prompt: ids must be from 0 to 258'),
    ({'prompt': [[-1]]}, 'prompt: ids must be from 0 to 258'),
    ({'prompt': [[True]]}, 'prompt: ids must be from 0 to 258'),
    ({'prompt': [[[1]]]}, 'prompt: ids must be from 0 to 258'),
    ({'prompt': '\ud800'}, 'prompt: text has a lone surrogate at character 0'),
    ({'prompt': 'a' * 8193}, 'prompt: more than 8192 tokens; shorten it'),
    ({'prompt': ['a'] * 9, 'n': 2}, 'n: prompts times n must be at most 16'),
    ({'prompt': ['a'] * 17}, 'n: prompts times n must be at most 16'),
    ({'n': 17}, 'n: must be a whole number from 1 to 16'),
    ({'n': 0}, 'n: must be a whole number from 1 to 16'),
    ({'n': True}, 'n: must be a whole number from 1 to 16'),
    ({'max_tokens': -1}, 'max_tokens: must be a whole number from 0 to 4096'),
    ({'max_tokens': 1.0}, 'max_tokens: must be a whole number from 0 to 4096'),
    ({'max_tokens': 10**30}, 'max_tokens: must be a whole number from 0 to'),
    (
      {'max_tokens': 12},
      'max_tokens: 5 positions of the prompt and 12 new ones are more than the '
      '16 of the model: ask for fewer',
    ),
    ({'temperature': float('nan')}, 'body: not JSON; send one object'),
    ({'temperature': '1'}, 'temperature: must be a number from 0 to 100'),
    ({'temperature': 1e300}, 'temperature: must be a number from 0 to 100'),
    ({'temperature': -0.1}, 'temperature: must be a number from 0 to 100'),
    ({'top_p': 1.1}, 'top_p: must be a number from 0 to 1'),
    ({'stop': ['']}, 'stop: must be at most 4 strings of 1 to 256 characters'),
    ({'stop': ['a'] * 5}, 'stop: must be at most 4 strings of 1 to 256'),
    ({'stop': 'a' * 257}, 'stop: must be at most 4 strings of 1 to 256'),
    ({'stop': {'a': 1}}, 'stop: must be at most 4 strings of 1 to 256'),
    ({'seed': 2**32}, 'seed: must be a whole number from 0 to 4294967295'),
    ({'stream': 1}, 'stream: must be true or false'),
    ({'stream_options': {'a': 1}}, 'stream_options: must be an object with'),
    ({'stream_options': {'include_usage': 1}}, 'include_usage: must be true'),
    ({'logprobs': 6}, 'logprobs: must be a whole number from 0 to 5'),
    ({'echo': 'yes'}, 'echo: must be true or false'),
    ({'prompts': 'a'}, 'prompts: not known here; known: model, prompt, max_to'),
  ],
)
def test_a_field_out_of_range_is_one_line(alive, fields, say):
  status, answer = ask(alive, **{'prompt': 'the ', **fields})
  assert status == 400
  message = answer['error']['message']
  assert message.startswith(say) and len(message) <= 200
  assert answer['error']['type'] == 'invalid_request_error'


@pytest.mark.parametrize(
  'body',
  ['', '{', '[]', '[' * 100_000, '{"n": 1e999}', '\x00', '9' * 5000, b'\xff'],
)
def test_a_body_that_is_no_object_is_one_line(alive, body):
  status, _, text = call(alive, 'POST', '/v1/completions', body)
  assert status == 400 and json.loads(text)['error']['code'] == 'bad_request'


@pytest.mark.slow
def test_the_ends_of_ranges_are_served(service):
  for fields in (
    {'temperature': 100, 'top_p': 0},
    {'temperature': 1e-300, 'top_p': 1e-300},
    {'seed': 2**32 - 1, 'stop': None, 'logprobs': None, 'max_tokens': 11},
    {'n': 16, 'max_tokens': 2},
  ):
    fields = {'prompt': 'the ', 'max_tokens': 8, 'seed': 1} | fields
    status, answer = ask(service, **fields)
    assert status == 200
    if fields.get('top_p', 1) == 0 or fields.get('temperature') == 1e-300:
      _, greedy = ask(service, **fields | {'temperature': 0})
      assert greedy['choices'] == answer['choices']


def test_models_and_health(service):
  status, _, text = call(service, 'GET', '/v1/models')
  assert status == 200
  (model,) = json.loads(text)['data']
  assert (model['id'], model['max_model_len']) == ('run', 16)
  assert call(service, 'GET', '/v1/models/run')[2] == json.dumps(model)
  assert call(service, 'GET', '/v1/models/r%75n')[0] == 200
  assert call(service, 'GET', '/v1/models/gpt')[0] == 404
  assert call(service, 'GET', '/v1/models/run', Authorization=None)[0] == 401
  status, headers, _ = call(service, 'GET', '/healthz', Authorization=None)
  assert status == 200
  assert 'Access-Control-Allow-Origin' not in headers
  status, answer = ask(service, prompt='the ', model='gpt', max_tokens=1)
  assert (status, answer['error']['code']) == (404, 'model_not_found')
  assert ask(service, prompt='the ', model='run', max_tokens=1)[0] == 200


def test_head_is_get_without_a_body(service):
  for path in ('/', '/healthz', '/v1/models', '/v1/models/run', '/no'):
    status, headers, text = call(service, 'GET', path)
    found = call(service, 'HEAD', path)
    assert (found[0], found[2]) == (status, '')
    assert found[1]['Content-Length'] == str(len(text.encode()))
    assert found[1]['Content-Type'] == headers['Content-Type']
  assert call(service, 'HEAD', '/v1/models', Authorization=None)[0] == 401


@pytest.mark.parametrize('method', ['OPTIONS', 'PUT', 'DELETE', 'TRACE', 'ODD'])
def test_other_methods_are_told_which_ones_there_are(service, method):
  for path, allowed in (
    ('/v1/completions', 'POST'),
    ('/v1/models', 'GET, HEAD'),
    ('/', 'GET, HEAD'),
  ):
    status, headers, text = call(service, method, path)
    assert (status, headers['Allow']) == (405, allowed)
    assert json.loads(text)['error']['message'] == f'{path}: use {allowed}'
    assert 'Access-Control-Allow-Origin' not in headers
  assert call(service, method, '/no')[0] == 404
  status, headers, _ = call(service, 'HEAD', '/v1/completions')
  assert (status, headers['Allow']) == (405, 'POST')


@pytest.mark.parametrize(
  'host', ['127.0.0.1:1', 'localhost', '[::1]:80', '10.0.0.7', 'LocalHost:9']
)
def test_numbers_and_localhost_are_names_of_it(service, host):
  sent = head(BEARER, method='GET /v1/models', host=host)
  with dial(service, sent) as client:
    assert read(client).startswith(b'HTTP/1.1 200 OK\r\n')


def test_strangers_are_refused(alive):
  length = 'Content-Length: 2'
  models = {'method': 'GET /v1/models'}
  for lines, how, want in (
    ((length,), {}, (401, 'wrong_token')),
    ((length, f'{BEARER}x'), {}, (401, 'wrong_token')),
    ((length, BEARER[:-1]), {}, (401, 'wrong_token')),
    ((length, 'Authorization: Bearer \xff'), {}, (401, 'wrong_token')),
    ((), models, (401, 'wrong_token')),
    ((), {'method': f'GET /v1/models?token={TOKEN}'}, (401, 'wrong_token')),
    ((length, BEARER), {'host': 'evil.example'}, (403, 'wrong_host')),
    ((BEARER,), {**models, 'host': '127.0.0.1.evil.example'}, (403,)),
    ((BEARER,), {**models, 'host': ''}, (403, 'wrong_host')),
    ((BEARER,), {**models, 'host': '[::1]:80x'}, (403, 'wrong_host')),
    (('Host: b',), {'method': 'GET /healthz'}, (403, 'wrong_host')),
    ((BEARER,), {'method': 'GET /../etc/passwd'}, (404, 'not_found')),
    ((BEARER,), {'method': 'GET http://127.0.0.1/healthz'}, (404,)),
    ((BEARER,), {'method': 'GET /v1/completions'}, (405, 'wrong_method')),
    ((BEARER,), {'method': 'POST /healthz'}, (405, 'wrong_method')),
    ((BEARER,), {'method': 'OPTIONS /v1/models'}, (405, 'wrong_method')),
  ):
    found = raw(alive, head(*lines, **how))
    assert found[: len(want)] == want, (lines, how)
  assert raw(alive, b'GET /healthz HTTP/1.1\r\n\r\n') == (403, 'wrong_host')


def test_bad_lengths_and_garbage_are_refused(alive):
  for lines, want in (
    ((), (411, 'no_length')),
    (('Content-Length: -1',), (400, 'bad_request')),
    (('Content-Length: 1e3',), (400, 'bad_request')),
    (('Content-Length: \xb2',), (400, 'bad_request')),
    (('Content-Length: ' + '9' * 5000,), (400, 'bad_request')),
    (('Content-Length: 2', 'Content-Length: 3'), (400, 'bad_request')),
    (('Content-Length: 2', 'Transfer-Encoding: chunked'), (411, 'no_length')),
    ((f'Content-Length: {http_server.BODY_BYTES + 1}',), (413, 'too_large')),
    (('X: ' + 'y' * 70_000,), (431, 'bad_request')),
    (tuple(f'X{i}: y' for i in range(200)), (431, 'bad_request')),
  ):
    assert raw(alive, head(BEARER, *lines)) == want, lines[:1]
  assert raw(alive, b'\x16\x03\x01 \xff \x00 a\r\n\r\n')[0] == 400
  assert raw(alive, b'garbage\r\n\r\n')[0] == 400
  assert raw(alive, b'GET / HTTP/9.9\r\n\r\n')[0] == 505
  assert raw(alive, b'GET ' + b'/' * 70_000 + b' HTTP/1.1\r\n\r\n')[0] == 414
  # who is still sending must not lose the answer
  body = b' ' * (http_server.BODY_BYTES + 1)
  with dial(alive) as client:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 12)
    client.sendall(head(BEARER, f'Content-Length: {len(body)}') + body)
    assert read(client).startswith(b'HTTP/1.1 413')
  sent = head(BEARER, 'Content-Length: 9')
  assert raw(alive, sent + b'{}', more=False) == (408, 'too_slow')


def test_what_is_sent_behind_a_request_is_no_request(alive):
  garbage = b'\x00\xff' * 5000 + head(BEARER, method='GET /v1/models')
  with dial(alive, whole(False) + garbage) as client:
    found = read(client)
  assert found.startswith(b'HTTP/1.1 200') and found.count(b'HTTP/1.1') == 1


def test_slow_clients_are_cut_off(alive, monkeypatch):
  monkeypatch.setattr(http_server, 'READ_SECONDS', 0.5)
  sent = head(BEARER, 'Content-Length: 9')
  assert raw(alive, sent + b'{}') == (408, 'too_slow')
  # a byte at a time does not keep it open
  with dial(alive) as client, contextlib.suppress(OSError):
    deadline = time.monotonic() + programs.PATIENCE_SECONDS
    client.settimeout(0.02)
    while time.monotonic() < deadline:
      client.sendall(b'X')
      with contextlib.suppress(TimeoutError):
        assert client.recv(1) == b''
        break
  assert time.monotonic() < deadline


def test_many_connections_do_not_keep_others_out(alive):
  with contextlib.ExitStack() as stack:
    clients = [
      stack.enter_context(dial(alive, b'POST /v1/completions HTTP/1.1\r\n'))
      for _ in range(2 * http_server.CONNECTIONS)
    ]
    # while all of them stay as they are
    assert ask(alive, prompt='the ', max_tokens=1)[0] == 200
    assert read(clients[0]) == b''
    assert threading.active_count() < 2 * http_server.CONNECTIONS


@pytest.fixture
def gate(monkeypatch):
  """Holds each token after the second until it is let through."""
  advance, passes, counts = engine._advance, threading.Semaphore(1), []

  def slow(*arguments, **settings):
    assert passes.acquire(timeout=programs.PATIENCE_SECONDS)
    counts.append(1)
    return advance(*arguments, **settings)

  monkeypatch.setattr(engine, '_advance', slow)
  yield passes, counts
  passes.release(1000)


def until(condition):
  deadline = time.monotonic() + programs.PATIENCE_SECONDS
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.005)


@pytest.mark.parametrize('stream', [True, False])
def test_a_client_that_leaves_ends_its_text(alive, gate, stream, capfd):
  passes, counts = gate
  client = dial(alive, whole(stream))
  until(lambda: counts)
  client.close()
  passes.release()
  # all that is left are threads that end
  until(lambda: not alive._receiving)
  assert len(counts) <= 2  # one was on its way
  assert ', client left\n' in capfd.readouterr().err


def test_a_client_that_leaves_the_queue_is_not_served(alive, gate):
  passes, counts = gate
  first = dial(alive, whole(False))
  until(lambda: counts)
  second = dial(alive, whole(False, n=16))
  until(
    lambda: len(alive._receiving) == 2 and not any(alive._receiving.values())
  )
  second.close()
  until(lambda: len(alive._receiving) == 1)
  passes.release(1000)
  with first:
    assert read(first).startswith(b'HTTP/1.1 200')
  assert len(counts) <= 9


def test_a_full_queue_is_told(alive, gate):
  passes, counts = gate
  clients = [dial(alive, whole(False)) for _ in range(9)]
  until(lambda: counts and len(alive._receiving) == 9)
  until(lambda: not any(alive._receiving.values()))
  body = json.dumps({'prompt': 'the ', 'max_tokens': 1})
  status, headers, text = call(alive, 'POST', '/v1/completions', body)
  assert (status, headers['Retry-After']) == (429, '1')
  assert json.loads(text)['error'] == {
    'message': '8 requests wait already: try again later',
    'type': 'invalid_request_error',
    'code': 'busy',
  }
  assert call(alive, 'GET', '/healthz')[0] == 200
  passes.release(1000)
  for client in clients:
    with client:
      assert read(client).startswith(b'HTTP/1.1 200')


@pytest.mark.parametrize('stream', [True, False])
def test_time_is_limited(alive, gate, monkeypatch, stream):
  passes, counts = gate
  with dial(alive, whole(stream)) as client:
    until(lambda: counts)
    monkeypatch.setattr(alive, 'seconds', 0.0)
    passes.release()
    found = read(client)
  assert found.startswith(b'HTTP/1.1 200' if stream else b'HTTP/1.1 504')
  assert b'"code": "deadline"' in found and b'[DONE]' not in found


@pytest.mark.slow
def test_its_end_ends_texts_on_their_way(trained, gate, monkeypatch):
  monkeypatch.setattr(http_server, 'GRACE_SECONDS', 0.1)
  passes, counts = gate
  with contextlib.ExitStack() as stack:
    with service_lib.serving(trained, token=TOKEN) as made:
      idle = stack.enter_context(dial(made, b'GET / HT'))
      client = stack.enter_context(dial(made, whole(True)))
      until(lambda: counts)
      threading.Timer(0.3, passes.release, (1000,)).start()
    assert b'"code": "stopping"' in read(client)
    assert read(idle) == b''
    with pytest.raises(ConnectionError):
      dial(made)


def test_a_bug_is_told_without_its_insides(alive, monkeypatch, capfd):
  def broken(*arguments, **settings):
    raise RuntimeError('a secret')

  monkeypatch.setattr(engine, 'stream', broken)
  status, answer = ask(alive, prompt='the ', max_tokens=2)
  assert status == 500
  assert answer['error'] == {
    'message': 'internal error: see the log of the server',
    'type': 'server_error',
    'code': 'internal',
  }
  assert 'a secret' in capfd.readouterr().err
  monkeypatch.undo()


def test_a_line_a_request_without_text_or_token(service, capfd):
  ask(service, prompt='secret', max_tokens=2, temperature=0)
  call(service, 'GET', f'/secret?token={TOKEN}')
  call(service, 'GET', f'/?token={TOKEN}')
  call(service, f'{TOKEN}', '/')
  text = ''

  def four():
    nonlocal text
    text += capfd.readouterr().err
    return text.count('\n') == 4

  until(four)
  found = sorted(line.split(' ', 2)[2] for line in text.splitlines())
  assert found[0].startswith('- / 405 ')
  assert found[1].startswith('- 404 ')
  assert found[2].startswith('GET / 200 ')
  assert found[3].startswith('POST /v1/completions 200 ')
  assert found[3].endswith(' s, 6 + 2 tokens')
  assert 'secret' not in text and TOKEN not in text


def refused(workdir, **settings):
  with (
    pytest.raises(config.ConfigError) as caught,
    service_lib.serving(workdir, **settings),
  ):
    pass
  assert caught.value.exit_code == 2
  return str(caught.value)


@pytest.mark.parametrize('token', ['', 'short', 'with a blank inside it'])
def test_a_weak_token_is_refused(tmp_path, token):
  say = refused(tmp_path, token=token)
  assert say.startswith('LM_TOKEN: must be at least 16 letters, digits, ')


def test_a_taken_port_is_one_line(service, trained):
  port = service.server_address[1]
  say = refused(trained, port=port)
  assert say.startswith(f'--host=127.0.0.1 --port={port}: ')
  assert say.endswith('choose another')
  assert 'choose another' in refused(trained, port=70000)


def test_a_run_that_cannot_continue_a_text_is_refused(trained, monkeypatch):
  causal = objectives.causal

  def masked(*, tokenizer, length):
    return causal(tokenizer=tokenizer, length=length)._replace(prompt=None)

  monkeypatch.setattr(objectives, 'causal', masked)
  assert 'which cannot continue a text' in refused(trained)


@pytest.mark.parametrize(
  ('flags', 'say'),
  [
    (
      ['--host=0.0.0.0'],
      '--host=0.0.0.0: other machines could reach it, and the token travels in '
      'the clear: use ssh -L to 127.0.0.1, or add --expose',
    ),
    (['--host=example.org'], '--host=example.org: other machines could reach'),
    (['--rows=0'], '--rows=0: must be 1 or more'),
    (['--seconds=nan'], '--seconds=nan: must be 1 or more'),
    (['--waiting=33'], '--waiting=33: at most 32, half of the connections'),
  ],
)
def test_flags_out_of_range_are_one_line(tmp_path, flags, say):
  with pytest.raises(config.ConfigError) as caught:
    serve.main([f'--workdir={tmp_path}', *flags])
  assert str(caught.value).startswith(say)


def test_limits_hold(trained):
  limits = openai_api.Limits(max_tokens=3, prompt_tokens=4, rows=1)
  with service_lib.serving(
    trained, token=TOKEN, host='localhost', limits=limits
  ) as made:
    for fields, status in (
      ({'max_tokens': 3}, 200),
      ({'max_tokens': 4}, 400),
      ({'prompt': 'the q', 'max_tokens': 1}, 400),
      ({'n': 2, 'max_tokens': 1}, 400),
    ):
      assert ask(made, **{'prompt': 'the ', **fields})[0] == status


def test_the_program_ends_on_sigterm(trained, start):
  assert 'LM_TOKEN' not in os.environ
  process = start('serve', [f'--workdir={trained}', '--port=0'])
  process.wait_for(lambda: '#token=' in process.text())
  (line,) = process.printed().splitlines()
  address, token = line.split('/#token=')
  made = http.client.HTTPConnection(address.removeprefix('http://'))
  with contextlib.closing(made):
    made.request('GET', '/v1/models', headers={'Authorization': 'Bearer '})
    assert made.getresponse().status == 401
  with contextlib.closing(made):
    given = {'Authorization': f'Bearer {token}'}
    made.request('GET', '/v1/models', headers=given)
    assert made.getresponse().status == 200
  process.send(signal.SIGTERM)
  assert process.error(143).endswith('no longer served, by a signal')
  assert process.text().count(token) == 1
