"""Serves a run as an OpenAI-compatible completion service, on this machine.

  python -m lm.serve --workdir=runs/a --port=8000

It prints the address of a page to try prompts on, with its token. Programs send
`Authorization: Bearer TOKEN` to /v1/completions and /v1/models; /healthz needs
no token. The environment variable LM_TOKEN sets the token. One request is
answered at a time, and the text of a client that leaves ends at the next token.
"""

import argparse
import contextlib
import ipaddress
import os
import secrets
import time

from lm import config
from lm.inference import http_server, openai_api, service
from lm.runtime import compilation_cache, devices, memory, signals

_LIMITS = openai_api.Limits()
_HELP = {
  'max_tokens': 'new tokens of a text',
  'prompt_tokens': 'tokens of a prompt',
  'rows': 'prompts times n',
  'waiting': 'requests that wait; the next one is refused (429)',
  'seconds': 'for an answer, with waiting and compiling',
}


def _flags(argv: list[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='python -m lm.serve',
    description=__doc__,
    epilog=config.exit_code_help('lm.serve'),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  config.trust_flag(parser)
  add('--workdir', required=True)
  add('--step', type=int)
  add('--host', default=service.HOST)
  add('--port', type=int, default=8000, help='0 takes a free one')
  add(
    '--expose',
    action='store_true',
    help='allow a --host that other machines reach; nothing is encrypted',
  )
  add(
    '--special',
    action='store_true',
    help='take prompts as written: special tokens by name, and no form',
  )
  for name, value in _LIMITS._asdict().items():
    text = f'{_HELP[name]}; {value}'
    add(f'--{name}', type=type(value), default=value, help=text)
  return parser.parse_args(argv)


def _is_loopback(host: str) -> bool:
  with contextlib.suppress(ValueError):
    return ipaddress.ip_address(host).is_loopback
  return host == 'localhost'


def main(argv: list[str]) -> None:
  """Runs the program; `config.main` turns errors into exit codes."""
  flags = _flags(argv)
  limits = openai_api.Limits(*(getattr(flags, x) for x in _LIMITS._fields))
  if not flags.expose and not _is_loopback(flags.host):
    raise config.ConfigError(
      f'--host={flags.host}: other machines could reach it, and the token '
      'travels in the clear: use ssh -L to 127.0.0.1, or add --expose'
    )
  memory.prepare()
  compilation_cache.prepare()
  devices.announce()
  given = os.environ.get('LM_TOKEN')
  token = secrets.token_urlsafe(24) if given is None else given
  with (
    signals.Stop(2 * http_server.GRACE_SECONDS) as stop,
    service.serving(
      flags.workdir,
      host=flags.host,
      port=flags.port,
      token=token,
      step=flags.step,
      special=flags.special,
      limits=limits,
    ) as server,
  ):
    # Whoever set the token knows it, so it stays out of the output.
    secret = f'#token={token}' if given is None else ''
    print(f'{server.address}{secret}', flush=True)
    while not stop.requested:
      time.sleep(0.1)
  raise signals.Stopped(f'{flags.workdir}: no longer served, by a signal')


if __name__ == '__main__':
  config.main(main)
