"""The devices that a program computes on, said before it begins."""

import os
import shutil
import sys

import jax

from lm import errors


def describe() -> str:
  """Describes the devices of all processes together, such as '8 x TPU v5p'.

  This opens them, so it comes after `memory.prepare` and `processes.start`.
  """
  devices, processes = jax.devices(), jax.process_count()
  text = f'{len(devices)} x {devices[0].device_kind}'
  return text if processes == 1 else f'{text} in {processes} processes'


def machine() -> str:
  """Describes what decides over the last bits of numbers, beside the code."""
  return f'{describe()}, jax {jax.__version__}'


def warning() -> str | None:
  """Says that jax does not use a GPU which this machine seems to have.

  It is None where jax uses an accelerator, where JAX_PLATFORMS asks for none,
  and where there is no `nvidia-smi`.
  """
  wanted = os.environ.get('JAX_PLATFORMS') or 'cuda'
  if (
    jax.default_backend() != 'cpu'
    or not {'cuda', 'gpu'} & {*wanted.split(',')}
    or shutil.which('nvidia-smi') is None
  ):
    return None
  return (
    'nvidia-smi is here, but jax sees no GPU and computes on the CPU: '
    f'{errors.install("cuda")}'
  )


def announce() -> None:
  """Prints the devices on stderr, and a warning if a GPU is left unused.

  Not on stdout: the output of some programs is read by others.
  """
  print(f'device: {describe()}', file=sys.stderr, flush=True)
  if (text := warning()) is not None:
    print(f'warning: {text}', file=sys.stderr, flush=True)
