"""Runs lm.train on TPU slices of a GKE cluster, as a JobSet.

  python -m tools.launch.gke --name=a --type=v5p-512 --image=REGISTRY/lm:1 \\
    --mount=bucket:/data all -- --config=configs/gpt/llama_1b.py \\
    --workdir=/data/a

  apply    makes the JobSet: --slices jobs, a pod a host
  wait     until all pods run; at most --queue_hours
  logs     prints what the first pod prints, until the run ends
  delete   ends the run, or removes what is left of it
  all      apply, wait and logs

`--data` copies prepared data to a disk of each pod first: from a bucket, or
from a folder of the pods, such as one of `--mount`.

kubectl's present cluster must have node pools of these slices and the JobSet
controller. The image holds this repository, as tools/launch/Dockerfile makes
it. When a pod ends badly or its node is taken away, all start again and
lm.train goes on from its workdir; but exit codes 2, 4, 5 and 6 end the run.

Ends with the exit code of lm.train, where that ended.
"""

import argparse
from collections.abc import Sequence
import json
import sys
import time
from typing import Any

from lm import config
from tools.launch import arguments, commands, slices

COMMANDS = ('apply', 'wait', 'logs', 'delete', 'all')
_SET = 'jobset.sigs.k8s.io/jobset-name'
_JOB = 'jobset.sigs.k8s.io/job-index'
_POD = 'batch.kubernetes.io/job-completion-index'
# A registry, folders in small letters, a tag, a digest: the grammar of
# https://github.com/distribution/reference.
_IMAGE = (
  r'([A-Za-z0-9][-A-Za-z0-9.]*(:\d+)?/)?'
  r'[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*'
  r'(:\w[-\w.]{0,127})?(@[a-z0-9]+:[0-9a-f]{32,128})?'
)
# A disk of each pod's own.
_SCRATCH = '/scratch'
_DATA = f'{_SCRATCH}/data'
# Pods are called NAME-slice-JOB-POD-xxxxx, in at most 63 characters.
_LONGEST = 40


def manifest(
  flags: argparse.Namespace,
  slice_: slices.Slice,
  training: arguments.Training,
  secret: str,
) -> dict[str, Any]:
  """Describes the JobSet and, for several hosts, the secret that they share."""
  hosts = slice_.hosts * flags.slices
  env = arguments.environment(flags.env, hosts)
  selector = {
    'cloud.google.com/gke-tpu-accelerator': slice_.accelerator,
    'cloud.google.com/gke-tpu-topology': slice_.topology,
  }
  if flags.spot:
    selector['cloud.google.com/gke-spot'] = 'true'
  chips = {'google.com/tpu': slice_.chips // slice_.hosts}
  asked = {
    'cpu': str(flags.cpus or slice_.cpus),
    'memory': f'{flags.memory_gb or slice_.memory_gb}G',
  }
  python = ['python', '-u', '-m']
  words = [*python, 'lm.train', *training.words]
  if flags.data:
    words.append(f'--data={_DATA}')
  shared = {
    'name': arguments.SECRET,
    'valueFrom': {'secretKeyRef': {'name': flags.name, 'key': 'secret'}},
  }
  pod: dict[str, Any] = {
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': 60,  # lm.train saves within 30
    'nodeSelector': selector,
    'containers': [
      {
        'name': 'train',
        'image': flags.image,
        'command': _literal(words),
        'env': [
          {'name': k, 'value': v.replace('$', '$$')}
          for k, _, v in (pair.partition('=') for pair in env)
        ]
        + ([shared] if hosts > 1 else []),
        # Of libtpu between hosts, of jax and of several slices.
        'ports': [{'containerPort': x} for x in (8471, 8482, 8080)],
        'resources': {'requests': {**chips, **asked}, 'limits': chips},
      }
    ],
  }
  for i, mount in enumerate(flags.mount):
    bucket, _, path = mount.partition(':')
    pod.setdefault('volumes', []).append(
      {
        'name': f'bucket-{i}',
        'csi': {
          'driver': 'gcsfuse.csi.storage.gke.io',
          'volumeAttributes': {'bucketName': bucket},
        },
      }
    )
    pod['containers'][0].setdefault('volumeMounts', []).append(
      {'name': f'bucket-{i}', 'mountPath': path}
    )
  if flags.data:
    pod.setdefault('volumes', []).append({'name': 'scratch', 'emptyDir': {}})
    train = pod['containers'][0]
    train.setdefault('volumeMounts', []).append(
      {'name': 'scratch', 'mountPath': _SCRATCH}
    )
    pod['initContainers'] = [
      {
        'name': 'stage',
        'image': flags.image,
        'command': _literal([*python, 'tools.launch.stage', flags.data, _DATA]),
        'volumeMounts': train['volumeMounts'],
      }
    ]
  if flags.service_account:
    pod['serviceAccountName'] = flags.service_account
  job = {
    'parallelism': slice_.hosts,
    'completions': slice_.hosts,
    'completionMode': 'Indexed',
    'backoffLimit': 0,  # a slice runs as a whole or not at all
    'podFailurePolicy': {
      'rules': [
        {
          'action': 'FailJob',
          'onExitCodes': {
            'containerName': name,
            'operator': 'In',
            'values': list(commands.FINAL),
          },
        }
        for name in ('train', *(['stage'] if flags.data else []))
      ]
    },
    'template': {
      'metadata': {
        'annotations': {'gke-gcsfuse/volumes': 'true'} if flags.mount else {}
      },
      'spec': pod,
    },
  }
  jobset = {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': {
      'name': flags.name,
      'annotations': {
        # A slice's pods lie in one node pool, and no others do.
        'alpha.jobset.sigs.k8s.io/exclusive-topology': (
          'cloud.google.com/gke-nodepool'
        )
      },
    },
    'spec': {
      'failurePolicy': {
        'maxRestarts': flags.restarts,
        'rules': [
          {
            'name': 'final',
            'action': 'FailJobSet',
            'onJobFailureReasons': ['PodFailurePolicy'],
          }
        ],
      },
      'replicatedJobs': [
        {
          'name': 'slice',
          'replicas': flags.slices,
          'template': {'spec': job},
        }
      ],
    },
  }
  if hosts == 1:
    return jobset
  kept = {
    'apiVersion': 'v1',
    'kind': 'Secret',
    'metadata': {'name': flags.name},
    'stringData': {'secret': secret},
  }
  return {'apiVersion': 'v1', 'kind': 'List', 'items': [kept, jobset]}


def _literal(words: Sequence[str]) -> list[str]:
  """Spells words of which Kubernetes replaces nothing: $$ stands for $."""
  return [x.replace('$', '$$') for x in words]


class Cluster:
  """A JobSet and the run in it."""

  def __init__(self, flags: argparse.Namespace):
    """Takes checked flags."""
    self.shell = commands.Shell(
      dry_run=flags.dry_run, pause_seconds=flags.poll_seconds
    )
    self._flags = flags

  def apply(self, made: dict[str, Any]) -> None:
    """Makes the JobSet."""
    text = json.dumps(made, indent=2)
    out = self.shell.run(self._kubectl('apply', '--filename=-'), stdin=text)
    if out:
      commands.say(out.rstrip())

  def wait(self) -> None:
    """Waits until all pods run, or have run.

    Raises:
      commands.Unreachable: there is no JobSet, or the deadline passed.
    """

    def look() -> bool | None:
      status = self.status('until all slices are ready')
      jobs = status.get('replicatedJobsStatus') or [{}]
      ready = jobs[0].get('ready', 0) + jobs[0].get('succeeded', 0)
      done = ready >= self._flags.slices or status.get('terminalState')
      return True if done else None

    seconds = 3600 * self._flags.queue_hours
    what = f'{self._flags.name}: its pods did not come'
    fix = 'wait again, or delete it'
    self.shell.wait(what, look, seconds=seconds, fix=fix)

  def status(self, comment: str = '') -> dict[str, Any]:
    """Asks for the status of the JobSet, empty when it is new."""
    words = self._kubectl('get', 'jobset', self._flags.name, '--output=json')
    out = self.shell.run(words, seconds=300, comment=comment)
    if self.shell.dry_run:
      return {'terminalState': 'Completed'}
    return commands.load_json(out, commands.title(words)).get('status') or {}

  def logs(self) -> int:
    """Prints the log of the first pod until the run ends; returns its code.

    Raises:
      commands.Unreachable: the deadline passed.
    """
    begun = time.monotonic()
    deadline = begun + 3600 * self._flags.hours
    first = f'{_SET}={self._flags.name},{_JOB}=0,{_POD}=0'
    since = '--tail=1000'
    while time.monotonic() < deadline:
      left = deadline - time.monotonic()
      result = self.shell.stream(
        self._kubectl('logs', '--follow', f'--selector={first}', since),
        _print,
        seconds=max(1.0, left),
        comment='again when pods were restarted, until the run ends',
      )
      since = '--since=10s'
      if result.code:
        commands.say(f'{self._flags.name}: {commands.reason(result)}')
      state = self._end()
      if state == 'Completed':
        return 0
      if state:
        return self.code()
      self.shell.rest()
    raise commands.Unreachable(
      f'{self._flags.name}: the run has not ended within '
      f'{commands.duration(3600 * self._flags.hours)} and goes on: see logs'
    )

  def code(self) -> int:
    """Asks the pods for the exit code of a run that failed; 1 if none knows."""
    selector = f'--selector={_SET}={self._flags.name}'
    words = self._kubectl('get', 'pods', selector, '--output=json')
    found = commands.load_json(self.shell.run(words), commands.title(words))
    codes = [
      status['state']['terminated']['exitCode']
      for pod in found.get('items', [])
      for kind in ('initContainerStatuses', 'containerStatuses')
      for status in pod.get('status', {}).get(kind, [])
      if 'terminated' in status.get('state', {})
    ]
    return commands.outcome(codes) or 1

  def delete(self) -> None:
    """Ends the run; one that is gone is fine."""
    self.shell.run(
      self._kubectl(
        'delete',
        'jobset,secret',
        self._flags.name,
        '--ignore-not-found',
        '--wait',
      )
    )

  def _end(self) -> str:
    """How the JobSet ended; '' while it runs or nobody answers."""
    try:
      return self.status().get('terminalState', '')
    except commands.Unreachable as error:
      commands.say(f'{error}')
      return ''

  def _kubectl(self, *words: str) -> list[str]:
    flags = self._flags
    return [
      'kubectl',
      *words,
      *([f'--context={flags.context}'] if flags.context else []),
      *([f'--namespace={flags.namespace}'] if flags.namespace else []),
    ]


def _print(chunk: bytes) -> None:
  sys.stdout.buffer.write(chunk)
  sys.stdout.buffer.flush()


def _flags(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  parser = arguments.make_parser('tools.launch.gke', __doc__, COMMANDS)
  parser.add_argument('--type', required=True, help='such as v5p-512')
  parser.add_argument('--slices', type=int, default=1)
  parser.add_argument('--image', default='', help='for apply and all')
  parser.add_argument('--spot', action='store_true', help='cheap, preemptible')
  parser.add_argument('--context', default='', help="kubectl's, if missing")
  parser.add_argument('--namespace', default='')
  parser.add_argument(
    '--service_account', default='', help="the run's, to reach its bucket"
  )
  parser.add_argument(
    '--cpus', type=int, default=0, help='that a pod asks for; half of its host'
  )
  parser.add_argument(
    '--memory_gb', type=int, default=0, help='the same; half of its host'
  )
  parser.add_argument(
    '--mount',
    action='append',
    default=[],
    metavar='BUCKET:/FOLDER',
    help='a bucket as a folder of the pods; may be repeated',
  )
  parser.add_argument(
    '--queue_hours',
    type=arguments.positive,
    default=24.0,
    help='deadline of waiting for the pods: 24',
  )
  parser.add_argument(
    '--restarts', type=int, default=100, help='of all pods, at most: 100'
  )
  flags, words = arguments.parse(parser, argv)
  arguments.name(flags.name, _LONGEST)
  arguments.environment(flags.env, 1)
  arguments.check_flag('slices', str(flags.slices), r'[1-9]\d*', 'give 1 up')
  arguments.check_flag('restarts', str(flags.restarts), r'\d+', 'give 0 up')
  rule = 'not as Kubernetes spells it'
  for name in ('namespace', 'service_account'):
    arguments.check_flag(
      name, getattr(flags, name), r'([a-z0-9][-a-z0-9]*)?', rule
    )
  for mount in flags.mount:
    pattern = r'[a-z0-9][-a-z0-9_.]{1,61}[a-z0-9]:/[-\w./]+'
    arguments.check_flag('mount', mount, pattern, 'give BUCKET:/FOLDER')
  arguments.check_data(flags.data, is_here=False)
  arguments.check_flag('context', flags.context, r'(\w[-\w.:@/]*)?', rule)
  arguments.check_flag('image', flags.image, f'({_IMAGE})?', rule)
  for name in ('cpus', 'memory_gb'):
    arguments.check_flag(name, str(getattr(flags, name)), r'\d+', 'give 0 up')
  return flags, words


def main(argv: Sequence[str]) -> int:
  """Runs the program; `config.main` turns errors into exit codes."""
  flags, words = _flags(argv)
  slice_ = slices.find(flags.type)
  cluster = Cluster(flags)
  made = None
  if flags.command in ('apply', 'all'):
    training = arguments.training(words, flags.data)
    training.sent()
    training.shared('a pod leaves nothing behind', slice_.hosts * flags.slices)
    if not flags.image:
      raise config.ConfigError(
        '--image is missing: build one with tools/launch/Dockerfile'
      )
    secret = arguments.secret(cluster.shell)
    made = manifest(flags, slice_, training, secret)
  elif words:
    raise config.ConfigError(f'{flags.command}: takes nothing after --')
  try:
    if made is not None:
      place = f'gke.{flags.namespace or "default"}.{flags.name}'
      with commands.alone(place, cluster.shell):
        cluster.apply(made)
    if flags.command in ('wait', 'all'):
      cluster.wait()
    if flags.command in ('logs', 'all'):
      return cluster.logs()
    if flags.command == 'delete':
      cluster.delete()
  except KeyboardInterrupt:
    commands.say(f'{flags.name}: what runs there goes on; delete ends it')
    return 130
  return 0


if __name__ == '__main__':
  config.main(main)
