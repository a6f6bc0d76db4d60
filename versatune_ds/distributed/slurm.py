"""Read Slurm's variables: whether this process is a task, how many share its node, and where rank 0 is.

Every task of a step sees the same node list and the same ids, so all of them derive the same address and port without
communication. Only the environment is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_FIRST_RESERVED_STEP = 0xFFFFFFF0
"""Step ids from here on are not steps of tasks: batch script, extern, interactive shell, pending."""

_FIRST_PORT, _NUM_PORTS = 16384, 16384
"""Ports below 32768, where Linux starts to assign ports to outgoing connections."""


def is_slurm_task(environ: Mapping[str, str]) -> bool:
    """Return whether srun started this process as a task, rather than as a batch script or an interactive shell."""
    step_id = environ.get("SLURM_STEP_ID", "")
    return step_id.isdigit() and int(step_id) < _FIRST_RESERVED_STEP


def num_tasks_on_this_node(environ: Mapping[str, str]) -> int | None:
    """Return how many tasks of the step share this node; None outside a task or without Slurm's counts."""
    counts, node = environ.get("SLURM_STEP_TASKS_PER_NODE"), environ.get("SLURM_NODEID", "")
    if not is_slurm_task(environ) or not counts or not node.isdigit():
        return None
    num_tasks_by_node = expand_counts(counts)
    return num_tasks_by_node[int(node)] if int(node) < len(num_tasks_by_node) else None


def expand_counts(text: str) -> list[int]:
    """Return Slurm's short form of counts in full: `2(x3),1` is [2, 2, 2, 1].

    Raises:
        ValueError: If the text is not of that form.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE={text!r}: expected counts such as 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def first_host(node_list: str) -> str:
    """Return the first host of Slurm's short form of a node list: `node[01-03,7],gpu1` begins with node01."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", node_list).split(",")[0]


def slurm_rendezvous(environ: Mapping[str, str]) -> tuple[str, str]:
    """Return address and port of rank 0, the same on every task of the step.

    Slurm gives rank 0 to the first node of the step's list, unless the user requested an arbitrary order. A step on
    one node meets on the loopback address, since a node's name need not resolve there.

    Raises:
        ValueError: If Slurm's variables lack the step's nodes.
    """
    node_list = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    job_id = environ.get("SLURM_JOB_ID", "")
    if not node_list or not job_id.isdigit():
        raise ValueError(
            f"SLURM_STEP_NODELIST={node_list!r}, SLURM_JOB_ID={job_id!r}: cannot tell where rank 0 is; "
            "export MASTER_ADDR and MASTER_PORT before srun"
        )
    host = first_host(node_list)
    # An odd factor: jobs fewer than 16384 apart have different ports, and so have the steps of one job.
    port = _FIRST_PORT + (int(job_id) * 7919 + int(environ["SLURM_STEP_ID"])) % _NUM_PORTS
    return ("127.0.0.1" if host == node_list else host), str(port)
