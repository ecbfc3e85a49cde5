"""Options of commands that several processes run together."""

from __future__ import annotations

import argparse


def add_several(parser: argparse.ArgumentParser) -> None:
    """The options that say which processes there are."""
    several = parser.add_argument_group("several processes, one on each host of a TPU pod, say")
    several.add_argument(
        "--distributed",
        action="store_true",
        help="find the others by jax's detection: TPU pods, GKE, Slurm, Open MPI",
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="or say where process 0 is,")
    several.add_argument("--num-processes", type=int, help="how many there are,")
    several.add_argument("--process-id", type=int, help="and which this is, from 0")
    several.add_argument(
        "--peer-timeout-s",
        type=int,
        default=100,
        help="a process that is silent for so long ends the job (%(default)s)",
    )


def connect(parsed: argparse.Namespace) -> None:
    """Connect with the other processes, if the options name any."""
    from cipo_jax.mesh import processes

    others = (parsed.coordinator, parsed.num_processes, parsed.process_id)
    if parsed.distributed or any(x is not None for x in others):
        processes.connect(*others, peer_timeout_s=parsed.peer_timeout_s)
