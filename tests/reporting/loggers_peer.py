"""Reads what the real TensorBoard, W&B and trackio have of a run, as JSON.

  python -m tests.reporting.loggers_peer train FLAGS
  python -m tests.reporting.loggers_peer read WORKDIR NAME

The first of them is lm.train, in a network that may be empty. NAME is that of a
logger, or `synced`: what a server has of W&B's offline run after `wandb sync`.

It runs in an environment of its own, see loggers_test.py.
"""

import fcntl
import importlib
import json
import os
from pathlib import Path
import runpy
import socket
import struct
import subprocess
import sys
from typing import Any

from lm.reporting import to_wandb
from tests.reporting import wandb_server


def loopback() -> None:
  """Switches on the loopback device, if it is all there is: a new network."""
  if socket.if_nameindex() != [(1, 'lo')]:
    return
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    request = struct.pack('16sH14x', b'lo', 0x49)  # IFF_UP, RUNNING, LOOPBACK
    fcntl.ioctl(s, 0x8914, request)  # SIOCSIFFLAGS


def tensorboard(workdir: Path, _: str) -> dict[str, Any]:
  """Reads scalars and the config of all event files."""
  module: Any = importlib.import_module(
    'tensorboard.backend.event_processing.event_accumulator'
  )
  events = module.EventAccumulator(
    str(workdir / 'tensorboard'), size_guidance={'scalars': 0}
  )
  events.Reload()
  points = [
    (e.step, name, e.value)
    for name in events.Tags()['scalars']
    for e in events.Scalars(name)
  ]
  text = events.Tensors('config/text_summary')[0].tensor_proto.string_val[0]
  return {'points': points, 'config': '"optim.peak": 0.01' in text.decode()}


def wandb(workdir: Path, _: str) -> dict[str, Any]:
  """Reads the records of all offline runs, in their order."""
  pb: Any = importlib.import_module('wandb.proto.wandb_internal_pb2')
  points, ids, config = [], set(), {}
  for path in sorted((workdir / 'wandb').glob('offline-run-*/*.wandb')):
    for data in to_wandb.records(path):
      record = pb.Record()
      record.ParseFromString(data[0])
      if record.run.run_id:
        ids.add(
          (record.run.project, record.run.display_name, record.run.run_id)
        )
        config |= {x.key: x.value_json for x in record.run.config.update}
      values = {
        '/'.join(x.nested_key) or x.key: json.loads(x.value_json)
        for x in record.history.item
      }
      points += [
        (values['step'], name, value)
        for name, value in values.items()
        if name != 'step' and not name.startswith('_')
      ]
  return {
    'points': points,
    'ids': sorted(ids),
    'config': config.get('optim.peak') == '0.01',
  }


def synced(workdir: Path, _: str) -> dict[str, Any]:
  """Reads what a server has after `wandb sync` of all offline runs."""
  loopback()
  files = sorted(map(str, (workdir / 'wandb').glob('offline-run-*')))
  with wandb_server.serving() as server:
    done = subprocess.run(
      [sys.executable, '-m', 'wandb', 'sync', *files],
      env={
        **os.environ,
        'WANDB_API_KEY': 'a' * 40,
        'WANDB_BASE_URL': server.url,
        'WANDB_ERROR_REPORTING': 'false',
        'NO_PROXY': '127.0.0.1',
      },
      capture_output=True,
      text=True,
      timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return {'lines': [json.loads(x) for x in server.lines], 'files': files}


def trackio(_: Path, name: str) -> dict[str, Any]:
  """Reads the runs of the project from trackio's own database."""
  storage: Any = importlib.import_module('trackio.sqlite_storage')
  storage = storage.SQLiteStorage
  points, runs = [], storage.get_runs('birds')
  for run in runs:
    for row in storage.get_logs('birds', run):
      points += [
        (row['step'], key, value)
        for key, value in row.items()
        if key not in ('step', 'timestamp')
      ]
  config = storage.get_run_config('birds', runs[0])
  return {
    'points': points,
    'ids': runs,
    'config': config['optim.peak'] == 0.01,
  }


def main(command: str, *words: str) -> None:
  """Runs a command, see above."""
  if command == 'train':
    loopback()
    sys.argv = ['lm.train', *words]
    runpy.run_module('lm.train', run_name='__main__', alter_sys=True)
    return
  workdir, name = words
  read = {x.__name__: x for x in (tensorboard, wandb, trackio, synced)}
  print(json.dumps(read[name](Path(workdir), name)))


if __name__ == '__main__':
  main(*sys.argv[1:])
