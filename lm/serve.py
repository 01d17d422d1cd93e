"""A run as an OpenAI-compatible completion service, for this machine.

  python -m lm.serve --workdir=runs/a --port=8000

It prints the address of a page to try prompts on, with its token. Programs send
`Authorization: Bearer TOKEN` to /v1/completions and /v1/models; /healthz asks
for none. LM_TOKEN in the environment sets the token. Texts are drawn one
request at a time; a client that leaves ends its text at the next token.
"""

import argparse
import base64
from collections.abc import Iterator
import contextlib
import hashlib
import ipaddress
import os
from pathlib import Path
import re
import secrets
import threading
import time
from typing import Any, NamedTuple

from lm import config
from lm.inference import engine, http_server, openai_api
from lm.runtime import devices, memory, signals

HOST = '127.0.0.1'
_LIMITS = openai_api.Limits()


class Service:
  """Answers requests about one run."""

  def __init__(self, run: engine.Run, name: str, limits: openai_api.Limits):
    """Finds how many positions the model has, and draws a first token.

    Raises:
      ValueError: the model generates nothing.
    """
    self._run, self._name, self._limits = run, name, limits
    self._created = int(time.time())
    most = limits.prompt_tokens + limits.max_tokens + engine.SMALLEST
    self._room = engine.room(run, most)
    self._device = threading.Lock()  # one text at a time
    self._places = threading.BoundedSemaphore(1 + limits.waiting)
    list(engine.parts(run, [[]], engine.Settings(length=1), most=self._room))

  def routes(self) -> dict[str, http_server.Route]:
    """Lists what it answers."""
    return {
      '/': http_server.Route(
        'GET', _page(), open=True
      ),  # says nothing of the run
      '/healthz': http_server.Route(
        'GET', lambda exchange: exchange.json({'status': 'ok'}), open=True
      ),
      '/v1/models': http_server.Route('GET', self._models),
      '/v1/completions': http_server.Route('POST', self._complete),
    }

  def _models(self, exchange: http_server.Exchange) -> None:
    model = {
      'id': self._name,
      'object': 'model',
      'created': self._created,
      'owned_by': 'lm',
      'max_model_len': self._room,
    }
    exchange.json({'object': 'list', 'data': [model]})

  def _complete(self, exchange: http_server.Exchange) -> None:
    asked = openai_api.parse(
      exchange.body(), model=self._name, run=self._run, limits=self._limits
    )
    read = self._run.prompt([ids for _, ids in asked.prompt]).tokens.shape[1]
    if read + asked.max_tokens > self._room:
      raise http_server.Refused(
        f'max_tokens: {read} positions of the prompt and {asked.max_tokens} '
        f'new ones are more than the {self._room} of the model: ask for fewer',
        code='context_length_exceeded',
      )
    if not self._places.acquire(blocking=False):
      raise http_server.Refused(
        f'{self._limits.waiting} requests wait already: try again later',
        429,
        'busy',
      )
    try:
      while not self._device.acquire(timeout=0.1):
        exchange.check()
      try:
        self._tell(exchange, asked)
      finally:
        self._device.release()
    except ValueError as e:  # of a model, for so large a batch
      raise http_server.Refused(f'prompt: {e}') from e
    finally:
      self._places.release()

  def _tell(
    self, exchange: http_server.Exchange, asked: openai_api.Request
  ) -> None:
    answer = {
      'id': f'cmpl-{secrets.token_hex(12)}',
      'object': 'text_completion',
      'created': int(time.time()),
      'model': asked.model,
    }
    usage = {
      'prompt_tokens': sum(len(ids) for _, ids in asked.prompt),
      'completion_tokens': 0,
    }
    rows: list[list[_Piece]] = [[] for _ in asked.prompt * asked.n]
    for piece in self._pieces(exchange, asked, usage):
      rows[piece.row].append(piece)
      if asked.stream:
        exchange.event(answer | {'choices': [_choice(asked, [piece])]})
    usage['total_tokens'] = sum(usage.values())
    if not asked.stream:
      choices = [_choice(asked, row) for row in rows]
      exchange.json(answer | {'choices': choices, 'usage': usage})
      return
    if asked.stream_options:
      exchange.event(answer | {'choices': [], 'usage': usage})
    exchange.event(None)

  def _pieces(
    self,
    exchange: http_server.Exchange,
    asked: openai_api.Request,
    usage: dict[str, int],
  ) -> Iterator['_Piece']:
    """Yields what becomes sure, and counts in `usage` what was drawn."""
    prompts = [ids for _, ids in asked.prompt]
    texts = [text for text, _ in asked.prompt for _ in range(asked.n)]
    exchange.check()
    finish = None if asked.max_tokens else 'length'
    if asked.echo or finish:
      costs: list[list[engine.Token]] = [[] for _ in prompts]
      if asked.echo and asked.logprobs is not None:
        costs = engine.costs(self._run, prompts, asked.logprobs)
      for b, text in enumerate(texts):
        shown = text if asked.echo else ''
        yield _Piece(b, shown, costs[b // asked.n], 0, finish)
    if finish:
      return
    drawn = engine.parts(
      self._run,
      [ids for ids in prompts for _ in range(asked.n)],
      engine.Settings(
        length=asked.max_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        stop=asked.stop,
        seed=asked.seed,
        told=asked.logprobs,
      ),
      most=self._room,
      wait=exchange.check,
    )
    left = len(texts)
    for step in drawn:
      usage['completion_tokens'] += left
      read, wrote = usage.values()
      exchange.note = f', {read} + {wrote} tokens'
      for row, tokens, finish in step:
        left -= finish is not None
        text = ''.join(token.text for token in tokens)
        yield _Piece(row, text, tokens, len(texts[row]), finish)


class _Piece(NamedTuple):
  """What is told of a row at once.

  Attributes:
    row: which one.
    text: new text.
    tokens: new tokens.
    offset: where the text that they belong to begins.
    finish: as of `completion.Part`.
  """

  row: int
  text: str
  tokens: list[engine.Token]
  offset: int
  finish: str | None


def _choice(asked: openai_api.Request, pieces: list[_Piece]) -> dict[str, Any]:
  tokens = [(p.offset, token) for p in pieces for token in p.tokens]
  told = {
    'tokens': [token.name for _, token in tokens],
    'token_logprobs': [token.logprob for _, token in tokens],
    'top_logprobs': [token.best or None for _, token in tokens],
    'text_offset': [offset + token.offset for offset, token in tokens],
  }
  return {
    'index': pieces[-1].row,
    'text': ''.join(piece.text for piece in pieces),
    'logprobs': None if asked.logprobs is None else told,
    'finish_reason': pieces[-1].finish,
  }


def _page():
  """Reads the page, and allows it nothing but its own script and style."""
  page = (Path(http_server.__file__).parent / 'serve.html').read_bytes()

  def allowed(tag: bytes) -> str:
    found = re.search(b'<%b>(.*?)</%b>' % (tag, tag), page, re.DOTALL)
    assert found is not None
    return base64.b64encode(hashlib.sha256(found[1]).digest()).decode()

  policy = (
    f"default-src 'none'; script-src 'sha256-{allowed(b'script')}'; "
    f"style-src 'sha256-{allowed(b'style')}'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
  )
  more = ('Content-Security-Policy', policy)
  return lambda exchange: exchange.send(page, 'text/html; charset=utf-8', more)


@contextlib.contextmanager
def serving(
  workdir: str | Path,
  *,
  host: str = HOST,
  port: int = 0,
  token: str | None = None,
  step: int | None = None,
  limits: openai_api.Limits = _LIMITS,
) -> Iterator[http_server.Server]:
  """Serves a run while inside `with`.

  Args:
    workdir: of the run; its last part is the model's name.
    host: an address of this machine.
    port: 0 takes a free one.
    token: that clients show; None makes one.
    step: of the checkpoint; None is the newest.
    limits: of what a request may ask for.

  Raises:
    config.ConfigError: of `completion.restore`; the token is short, or the
      address taken; or the model generates nothing.
    errors.Failure: there is no sound checkpoint.
  """
  token = secrets.token_urlsafe(24) if token is None else token
  if not re.fullmatch('[A-Za-z0-9._~-]{16,}', token):
    raise config.ConfigError(
      'LM_TOKEN: must be at least 16 letters, digits, ".", "_", "~" or "-", or '
      'left unset'
    )
  limits.check()
  run = engine.restore(workdir, step)
  with config.refusals():
    service = Service(run, Path(workdir).name, limits)
  try:
    made = http_server.Server(
      service.routes(),
      token=token,
      host=host,
      port=port,
      seconds=limits.seconds,
    )
  except (OSError, OverflowError) as e:
    raise config.ConfigError(
      f'--host={host} --port={port}: {e}; choose another'
    ) from e
  thread = threading.Thread(
    target=made.serve_forever, kwargs={'poll_interval': 0.1}, daemon=True
  )
  thread.start()
  try:
    yield made
  finally:
    made.end()


def _is_loopback(host: str) -> bool:
  with contextlib.suppress(ValueError):
    return ipaddress.ip_address(host).is_loopback
  return host == 'localhost'


def main(argv: list[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  parser = argparse.ArgumentParser(
    prog='python -m lm.serve',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add('--workdir', required=True)
  add('--step', type=int)
  add('--host', default=HOST)
  add('--port', type=int, default=8000, help='0: a free one')
  add(
    '--expose',
    action='store_true',
    help='allow a --host that other machines reach; they send all in the clear',
  )
  helps = (
    'new ones of a text',
    'of a prompt',
    'prompts times n',
    'requests; one more is told to come again (429)',
    'for an answer, waiting and compiling included',
  )
  for (name, value), say in zip(_LIMITS._asdict().items(), helps, strict=True):
    add(f'--{name}', type=type(value), default=value, help=f'{say}; {value}')
  args = vars(parser.parse_args(argv))
  limits = openai_api.Limits(*(args.pop(name) for name in _LIMITS._fields))
  if not args.pop('expose') and not _is_loopback(args['host']):
    raise config.ConfigError(
      f'--host={args["host"]}: other machines could reach it, and the token '
      'travels in the clear: use ssh -L to 127.0.0.1, or add --expose'
    )
  memory.prepare()
  devices.announce()
  given = os.environ.get('LM_TOKEN')
  token = secrets.token_urlsafe(24) if given is None else given
  with (
    signals.Stop(2 * http_server.GRACE_SECONDS) as stop,
    serving(**args, token=token, limits=limits) as made,
  ):
    # A token that was given is known to who gave it.
    secret = f'#token={token}' if given is None else ''
    print(f'{made.address}{secret}', flush=True)
    while not stop.requested:
      time.sleep(0.1)
  raise signals.Stopped(f'{args["workdir"]}: no longer served: a signal came')


if __name__ == '__main__':
  config.main(main)
