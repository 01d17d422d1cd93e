"""Serves one run over HTTP: OpenAI's completions, and a page to try prompts on.

The device continues the texts of one request at a time. Others wait in a short
queue, and the work for a client that leaves ends at the next token.
"""

import base64
from collections.abc import Callable, Iterator
import contextlib
import hashlib
from pathlib import Path
import re
import secrets
import threading
import time

from lm import config
from lm.inference import (
  chat_api,
  classifier,
  classify_service,
  device_queue,
  engine,
  http_server,
  openai_api,
)
from lm.inference import prompts as prompts_lib

HOST = '127.0.0.1'
_LIMITS = openai_api.Limits()


class Service:
  """Answers requests about one run."""

  def __init__(self, run: engine.Run, name: str, limits: openai_api.Limits):
    """Finds how many positions the model has, and draws a first token.

    Raises:
      ValueError: the model cannot continue texts.
    """
    self._run, self._name, self._limits = run, name, limits
    most = limits.prompt_tokens + limits.max_tokens + engine.SMALLEST
    self._capacity = engine.capacity(run, most)
    self._queue = device_queue.DeviceQueue(limits.waiting)
    # Compiles now, and finds out now whether the model can draw at all.
    first = engine.Settings(length=1)
    list(engine.stream(run, [[]], first, capacity=self._capacity))

  def routes(self) -> dict[str, http_server.Route]:
    """Lists the paths that are served, and what answers them."""
    chat = {}
    if self._run.form is not None:
      chat['/v1/chat/completions'] = http_server.Route('POST', self._chat)
    return {
      # The page is public: it says nothing of the run.
      '/': http_server.Route('GET', _page(), public=True),
      **openai_api.model_routes(self._name, max_model_len=self._capacity),
      '/v1/completions': http_server.Route('POST', self._continue),
      **chat,
    }

  def _continue(self, exchange: http_server.Exchange) -> None:
    request = openai_api.parse(
      exchange.body(), model=self._name, run=self._run, limits=self._limits
    )
    self._complete(exchange, request, openai_api.SPELLING)

  def _chat(self, exchange: http_server.Exchange) -> None:
    request = chat_api.parse(
      exchange.body(),
      model=self._name,
      run=self._run,
      limits=self._limits,
      capacity=self._capacity,
    )
    self._complete(exchange, request, chat_api.SPELLING)

  def _complete(
    self,
    exchange: http_server.Exchange,
    request: openai_api.Request,
    spelling: openai_api.Spelling,
  ) -> None:
    """Waits for the device, and answers a request."""
    try:
      batch = self._run.prompt([ids for _, ids in request.prompt])
    except prompts_lib.TooLong as e:
      raise openai_api.unreadable('prompt', e) from e
    positions = batch.tokens.shape[1]
    if positions + request.max_tokens > self._capacity:
      raise http_server.Refused(
        f'max_tokens: {positions} positions of the prompt and '
        f'{request.max_tokens} new ones are more than the {self._capacity} of '
        'the model: ask for fewer',
        code='context_length_exceeded',
      )
    try:
      with self._queue.turn(exchange):
        self._answer(exchange, request, spelling)
    except ValueError as e:  # a model may refuse so large a batch
      raise http_server.Refused(f'prompt: {e}') from e

  def _answer(
    self,
    exchange: http_server.Exchange,
    request: openai_api.Request,
    spelling: openai_api.Spelling,
  ) -> None:
    """Sends the choices at once, or piece by piece as events."""
    answer = {
      'id': f'{spelling.prefix}-{secrets.token_hex(12)}',
      'object': spelling.part if request.stream else spelling.whole,
      'created': int(time.time()),
      'model': request.model,
    }
    usage = {
      'prompt_tokens': sum(len(ids) for _, ids in request.prompt),
      'completion_tokens': 0,
    }
    rows: list[list[openai_api.Piece]] = [
      [] for _ in request.prompt * request.n
    ]
    for piece in self._pieces(exchange, request, usage):
      row = rows[piece.row]
      row.append(piece)
      if request.stream:
        choice = spelling.choice(request, len(row) - 1, [piece])
        exchange.event(answer | {'choices': [choice]})
    usage['total_tokens'] = sum(usage.values())
    if not request.stream:
      choices = [spelling.choice(request, None, row) for row in rows]
      exchange.json(answer | {'choices': choices, 'usage': usage})
      return
    if request.stream_options:
      exchange.event(answer | {'choices': [], 'usage': usage})
    exchange.event(None)

  def _pieces(
    self,
    exchange: http_server.Exchange,
    request: openai_api.Request,
    usage: dict[str, int],
  ) -> Iterator[openai_api.Piece]:
    """Yields pieces that are certain, and counts drawn tokens in `usage`."""
    prompts = [ids for _, ids in request.prompt]
    texts = [text for text, _ in request.prompt for _ in range(request.n)]
    exchange.check()
    finish_reason = None if request.max_tokens else 'length'
    if request.echo or finish_reason:
      scores = [[] for _ in prompts]
      if request.echo and request.logprobs is not None:
        scores = engine.prompt_logprobs(
          self._run, prompts, request.logprobs, exchange.check
        )
      for b, text in enumerate(texts):
        yield openai_api.Piece(
          b,
          text if request.echo else '',
          scores[b // request.n],
          0,
          finish_reason,
        )
    if finish_reason:
      return
    deltas = engine.stream(
      self._run,
      [ids for ids in prompts for _ in range(request.n)],
      engine.Settings(
        length=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        stop=request.stop,
        seed=request.seed,
        logprobs=request.logprobs,
      ),
      capacity=self._capacity,
      check=exchange.check,
    )
    unfinished = len(texts)
    for step in deltas:
      usage['completion_tokens'] += unfinished
      read, written = usage.values()
      exchange.note = f', {read} + {written} tokens'
      for row, tokens, finish_reason in step:
        unfinished -= finish_reason is not None
        text = ''.join(token.text for token in tokens)
        yield openai_api.Piece(
          row, text, tokens, len(texts[row]), finish_reason
        )


def _page() -> Callable[[http_server.Exchange], None]:
  """Reads the page; a browser will run and load nothing but what is in it."""
  page = Path(__file__).with_name('serve.html').read_bytes()

  def sha256(tag: bytes) -> str:
    element = re.search(b'<%b>(.*?)</%b>' % (tag, tag), page, re.DOTALL)
    assert element is not None
    return base64.b64encode(hashlib.sha256(element[1]).digest()).decode()

  policy = (
    f"default-src 'none'; script-src 'sha256-{sha256(b'script')}'; "
    f"style-src 'sha256-{sha256(b'style')}'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
  )
  header = ('Content-Security-Policy', policy)
  return lambda exchange: exchange.send(
    page, 'text/html; charset=utf-8', header
  )


@contextlib.contextmanager
def serving(
  workdir: str | Path,
  *,
  host: str = HOST,
  port: int = 0,
  token: str | None = None,
  step: int | None = None,
  special: bool = False,
  limits: openai_api.Limits = _LIMITS,
) -> Iterator[http_server.Server]:
  """Serves a run while inside `with`.

  Args:
    workdir: of the run; its last part is the model's name.
    host: an address of this machine.
    port: 0 takes a free one.
    token: what clients must send; None draws one.
    step: of the checkpoint; None is the newest.
    special: see `engine.restore`.
    limits: see `openai_api.Limits`.

  Raises:
    config.ConfigError: the run neither continues nor classifies texts, see
      `engine.restore` and `classifier.restore`; the token is short; or the
      address is taken.
    errors.Failure: there is no sound checkpoint.
  """
  token = secrets.token_urlsafe(24) if token is None else token
  if not re.fullmatch('[A-Za-z0-9._~-]{16,}', token):
    raise config.ConfigError(
      'LM_TOKEN: must be at least 16 letters, digits, ".", "_", "~" or "-", or '
      'left unset'
    )
  limits.check()
  name = Path(workdir).name or Path(workdir).resolve().name
  if classifier.is_one(workdir, step):
    known = classifier.restore(workdir, step)
    service = classify_service.ClassifyService(known, name, limits)
  else:
    run = engine.restore(workdir, step, special=special)
    with config.user_errors():
      service = Service(run, name, limits)
  try:
    server = http_server.Server(
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
    target=server.serve_forever, kwargs={'poll_interval': 0.1}, daemon=True
  )
  thread.start()
  try:
    yield server
  finally:
    server.stop()
