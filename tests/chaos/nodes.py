"""A Ray cluster of two nodes on this machine, in a process of its own: `ray.cluster_utils.Cluster` on a string.

Says, as a line of JSON, the address and the pid of the second node's raylet; for each line "add" on stdin it adds a
node and says its raylet's pid. It ends with its stdin.
"""

from __future__ import annotations

import json
import sys
from typing import Any

HEAD_CPUS = 1
"""Too few for the encoder: it must be on the node that dies."""
NODE_CPUS = 3


def main() -> None:
    """Start, say so, and add a node a line."""
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(
        initialize_head=True, head_node_args={"num_cpus": HEAD_CPUS, "include_dashboard": False}, connect=False
    )
    node = cluster.add_node(num_cpus=NODE_CPUS)
    _say(address=cluster.address, raylet=_raylet_of(node))
    for line in sys.stdin:
        if line.strip() == "add":
            cluster.remove_node(node, allow_graceful=False)
            node = cluster.add_node(num_cpus=NODE_CPUS, wait=False)
            _say(raylet=_raylet_of(node))


def _raylet_of(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _say(**values: object) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
