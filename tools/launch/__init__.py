"""Launchers: a run of lm.train on TPU VMs, a SLURM cluster or GKE.

tpu_vm.py, slurm.py and gke.py are programs; `--dry_run` prints every command
that they would run. commands.py and arguments.py are what they share, slices.py
knows TPUs by name, tpu_machine.py is one of them, and worker.py is the part
that runs on it.
"""
