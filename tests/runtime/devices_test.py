"""Programs say what they compute on, and when a GPU is left unused."""

import shutil

import jax
import pytest

from lm.runtime import devices


def test_the_devices_are_one_line(capsys, monkeypatch):
  monkeypatch.setattr(shutil, 'which', lambda name: None)
  devices.announce()
  captured = capsys.readouterr()
  kind = jax.devices()[0].device_kind
  assert captured.err == f'device: {jax.device_count()} x {kind}\n'
  assert captured.out == ''
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  assert devices.describe().endswith(f' x {kind} in 2 processes')


@pytest.mark.parametrize(
  ('tool', 'wanted', 'backend', 'warns'),
  [
    ('/usr/bin/nvidia-smi', None, 'cpu', True),
    ('/usr/bin/nvidia-smi', 'cuda,cpu', 'cpu', True),
    ('/usr/bin/nvidia-smi', 'cpu', 'cpu', False),  # it was asked for
    ('/usr/bin/nvidia-smi', None, 'gpu', False),
    (None, None, 'cpu', False),
  ],
)
def test_a_gpu_that_jax_does_not_see_is_a_warning(
  monkeypatch, capsys, tool, wanted, backend, warns
):
  monkeypatch.setattr(shutil, 'which', lambda name: tool)
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  if wanted is not None:
    monkeypatch.setenv('JAX_PLATFORMS', wanted)
  devices.announce()
  assert capsys.readouterr().err.splitlines()[1:] == warns * [
    'warning: nvidia-smi is here, but jax sees no GPU and computes on the CPU: '
    "pip install -e '.[cuda]'"
  ]
