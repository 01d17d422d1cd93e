"""Starts the processes of one run: they meet, and become a process group.

    LM_DISTRIBUTED=auto                      what jax detects: TPU, SLURM, GKE
    LM_DISTRIBUTED=HOST:PORT,PROCESS,COUNT   by hand; HOST is that of process 0
    ...,SECONDS                              another silence, see `start`
    LM_LISTEN=ADDRESS|private                where process 0 listens
    LM_SECRET=TEXT                           admits the processes of this run

jax moves arrays between processes, and the group (`process_group`) carries
everything else, over connections of its own. Process 0 listens on one address
and never on all: on LM_LISTEN; else on HOST; else on loopback, which is right
for processes of one machine. `private` stands for the machine's own address in
the network of its cluster, and the launchers set it.

Process 0 admits a peer to the group by the secret of the run. Without one it
draws a token, which all processes receive through jax. jax's own coordinator
admits everybody who reaches its port: PORT, or for `auto` 8482, on SLURM 61440
to 65535. A firewall must keep that port from others.
"""

from collections.abc import Iterator
import contextlib
import ctypes
import ipaddress
import json
import os
import re
import secrets
import signal
import socket
import threading

import jax
from jax.experimental import multihost_utils
import numpy as np

from lm import config
from lm.runtime import admission, ending, process_group

VARIABLE = 'LM_DISTRIBUTED'
LISTEN = 'LM_LISTEN'
SECRET = 'LM_SECRET'
_LOOPBACK = ('localhost', '127.0.0.1', '::1')
_BROADCAST_BYTES = 1 << 10


def start(
  spec: str | None = None, *, wait_seconds: float = 300.0
) -> process_group.ProcessGroup:
  """Meets the other processes of this run; call it before jax is used.

  If they do not come in time, the process ends with one line and exit code 7.

  Args:
    spec: a value of LM_DISTRIBUTED; None reads that environment variable, and
      '' stands for a process alone. Its last part SECONDS changes the silence
      after which a process counts as lost, which is 20 s by default.
    wait_seconds: how long to wait for all processes.

  Raises:
    config.ConfigError: the variable is malformed, or nothing was detected.
  """
  spec = os.environ.get(VARIABLE, '') if spec is None else spec
  if not spec:
    return process_group.alone()
  address, index, count, silence_seconds = _parse(spec)
  secret = _secret()
  address, own = _listen(address, index)
  _delay_aborts()
  where = address or 'what jax detects'
  fix = 'start them all, and check address and firewall'
  if spec.startswith('auto') and address:
    fix = f'start them all, and on several hosts set {LISTEN}=private'
  late = (
    f'{VARIABLE}={spec}: processes did not meet at {where} in'
    f' {wait_seconds:g} s: {fix}'
  )
  # jax may wait in C++ code that no exception can leave: so a timer decides.
  with _deadline(wait_seconds, late):
    # jax would handle SIGTERM itself, which is the task of lm.runtime.signals.
    jax.config.update('jax_enable_preemption_service', False)
    try:
      if index == 0:
        _check_free(_bind_address(own, address))
      jax.distributed.initialize(
        address or None,
        count,
        index,
        coordinator_bind_address=_bind_address(own, address),
        # Our own deadlines are shorter, and end the process with one line.
        initialization_timeout=round(wait_seconds) + 60,
        heartbeat_timeout_seconds=100,
        shutdown_timeout_seconds=15,
      )
    except (OSError, ValueError, RuntimeError) as error:
      raise config.ConfigError(
        f'{VARIABLE}={spec}: {error}: give HOST:PORT,PROCESS,COUNT with a free'
        f' port of process 0, which may need {LISTEN} behind another address'
      ) from error
    if jax.process_count() == 1:
      return process_group.alone()
    try:
      peers, names = _connect(address, own, secret)
    except process_group.Lost as lost:
      # At Python's exit jax would wait for the others, and then abort.
      ending.exit_with(str(lost), lost.exit_code)
  return process_group.ProcessGroup(
    jax.process_index(), peers, names, silence_seconds=silence_seconds
  )


def _parse(spec: str) -> tuple[str, int | None, int | None, float]:
  """Reads LM_DISTRIBUTED: address ('': detect), process, count, silence."""
  first, *rest = spec.split(',')
  numbers = [] if first == 'auto' else rest[:2]
  seconds = rest[len(numbers) :]
  try:
    index, count = map(int, numbers) if first != 'auto' else (None, None)
    silence_seconds = float(seconds.pop(0)) if seconds else 20.0
    if first != 'auto':
      host, _, port = first.rpartition(':')
      assert host and 0 < int(port) < 1 << 16
      assert index is not None and count is not None and 0 <= index < count
    assert not seconds and 1 <= silence_seconds <= 3600
  except (ValueError, AssertionError):
    raise config.ConfigError(
      f'{VARIABLE}={spec}: want auto or HOST:PORT,PROCESS,COUNT, and perhaps'
      ' ,SECONDS of silence from 1 to 3600'
    ) from None
  return '' if first == 'auto' else first, index, count, silence_seconds


def _listen(address: str, index: int | None) -> tuple[str, str]:
  """Chooses where process 0 meets the others.

  Args:
    address: HOST:PORT of process 0; '' if jax is to detect it.
    index: of this process; None if jax is to detect it.

  Returns:
    HOST:PORT of process 0 for jax, '' if it is to detect that; and the address
    of this machine that process 0 listens on.

  Raises:
    config.ConfigError: there is no such address.
  """
  own = os.environ.get(LISTEN, '')
  if own == 'private':
    own = _private_address()
  elif own:
    _check_address(own)
  if not address:
    # jax derives another port from each cluster and tells it too late, so it is
    # told one. As with jax, the jobs that share a SLURM node have their own.
    job = os.environ.get('SLURM_JOB_ID')
    port = 61440 + int(job) % 4096 if job else 8482
    os.environ.setdefault('JAX_COORDINATOR_PORT', str(port))
    port = os.environ['JAX_COORDINATOR_PORT']
    return ('', own) if own else (f'localhost:{port}', 'localhost')
  host = address.rpartition(':')[0].strip('[]')
  if not own and index == 0 and host not in _LOOPBACK:
    found = {ipaddress.ip_address(x) for x in _resolve(host)}
    if found and all(x.is_loopback for x in found):
      raise config.ConfigError(
        f'{VARIABLE}={address}: {host} is a name for loopback here, where no'
        f' other host comes in: give its address, or {LISTEN}=private'
      )
  return address, own or host


def _check_address(own: str) -> None:
  """Refuses to listen on all addresses, or on none."""
  try:
    wide = ipaddress.ip_address(own).is_unspecified
  except ValueError:
    wide = not _resolve(own)
  if wide:
    raise config.ConfigError(
      f"{LISTEN}={own[:60]}: give one address of this machine, or 'private'"
    )


def _private_address() -> str:
  """Finds the address of this machine in the network of its cluster.

  Raises:
    config.ConfigError: it has none, or only public ones.
  """
  found = _resolve(socket.gethostname())
  with (
    contextlib.suppress(OSError),
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe,
  ):
    probe.connect(('192.0.2.1', 9))  # sends nothing: only picks the interface
    found.append(probe.getsockname()[0])
  for text in found:
    address = ipaddress.ip_address(text)
    if not (address.is_global or address.is_loopback or address.is_link_local):
      return text
  raise config.ConfigError(
    f'{LISTEN}=private: this machine has no private address: give one on which'
    ' only the hosts of this run can reach it'
  )


def _resolve(host: str) -> list[str]:
  """Lists the addresses of a host; none if it is not known."""
  try:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
  except OSError:
    return []
  return [str(where[0]).partition('%')[0] for *_, where in found]


def _check_free(address: str) -> None:
  """Checks that process 0 can listen: where it cannot, jax may crash.

  Raises:
    OSError: it cannot, because the address is not this machine's, or the port
      is taken.
  """
  host, _, port = address.rpartition(':')
  family = socket.AF_INET6 if host.startswith('[') else socket.AF_INET
  socket.create_server((host.strip('[]'), int(port)), family=family).close()


def _bind_address(own: str, address: str) -> str:
  """Spells HOST:PORT for jax's coordinator."""
  port = address.rpartition(':')[2] or os.environ['JAX_COORDINATOR_PORT']
  return f'[{own}]:{port}' if ':' in own else f'{own}:{port}'


def _secret() -> str:
  """Reads the secret of the run from the environment; '' if there is none."""
  secret = os.environ.get(SECRET, '')
  if secret and not re.fullmatch('[!-~]{16,256}', secret):
    raise config.ConfigError(
      f'{SECRET}: give 16 to 256 letters, digits and signs without blanks, the'
      ' same to all processes of a run'
    )
  return secret


def _connect(
  address: str, own: str, secret: str
) -> tuple[dict[int, socket.socket], list[str]]:
  """Connects all processes with process 0, whose port jax broadcasts.

  Args:
    address: HOST:PORT by which the others know process 0; '' if jax detected
      it.
    own: the address that process 0 listens on.
    secret: of the run; '' lets process 0 draw one, which jax broadcasts.

  Returns:
    The connections by process, and the names of all processes.
  """
  index, count = jax.process_index(), jax.process_count()
  name = process_group.describe(index)
  if index:
    place = json.loads(_broadcast(''))
    hosts, port = place['hosts'], place['port']
    token = secret or place['token']
    try:
      peer, names = admission.join(hosts, port, token, index, name)
    except OSError as error:
      raise process_group.Lost(
        f'process 0 cannot be reached at {", ".join(hosts)}, port {port}: let'
        ' the hosts of a run connect to each other at any port'
      ) from error
    except admission.Refused as error:
      raise process_group.Lost(
        f'process 0 at {", ".join(hosts)} does not know this process: give all'
        f' processes of a run the same {SECRET}, and each its own number'
      ) from error
    return {0: peer}, names
  token = secret or secrets.token_hex(16)
  family = socket.AF_INET6 if ':' in own else socket.AF_INET
  with socket.create_server((own, 0), family=family) as server:
    hosts = [own]
    if address:
      hosts.insert(0, address.rpartition(':')[0].strip('[]'))
    place = {'hosts': hosts, 'port': server.getsockname()[1]}
    _broadcast(json.dumps(place | ({} if secret else {'token': token})))
    return admission.admit(server, token, count, name)


def _broadcast(text: str) -> str:
  """Sends the text of process 0 to all processes, through jax."""
  # jax broadcasts arrays of one shape: the text is padded to a fixed size.
  sent = np.frombuffer(text.encode().ljust(_BROADCAST_BYTES), np.uint8)
  received = multihost_utils.broadcast_one_to_all(sent)
  return np.asarray(received, np.uint8).tobytes().decode().rstrip()


@contextlib.contextmanager
def _deadline(seconds: float, text: str) -> Iterator[None]:
  """Ends the process with one line when the body of `with` takes too long."""
  timer = threading.Timer(
    seconds,
    ending.exit_with,
    (str(process_group.Lost(text)), process_group.Lost.exit_code),
  )
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _delay_aborts() -> None:
  """Gives the group six seconds to say why before jax's client aborts.

  jax ends a process by SIGABRT in the moment that process 0 dies, before any
  Python code can run. So the C function `sleep` becomes the signal's handler:
  it is called with the number of the signal, waits for that many seconds (6),
  and returns to `abort`, which then ends the process.
  """
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
  libc.signal.restype = ctypes.c_void_p
  libc.signal(int(signal.SIGABRT), ctypes.cast(libc.sleep, ctypes.c_void_p))
