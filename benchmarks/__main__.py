"""`python -m benchmarks`: measures ours beside the peers, prints and writes the table."""

import argparse
from pathlib import Path

import torch

from benchmarks import pruning, repair, service, store, tower
from benchmarks.report import Row, publish

GROUPS = {
    "pruning": pruning.rows,
    "tower": tower.rows,
    "repair": repair.rows,
    "service": service.rows,
    "store": store.rows,
}


def main() -> None:
    """Runs the groups asked for, one thread each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=GROUPS, help="run one group; rows of others stay")
    for peer, home in (
        ("wanda", "locuslab/wanda"),
        ("sparsegpt", "IST-DASLab/sparsegpt"),
        ("dsnot", "zyxxmu/DSnoT"),
    ):
        parser.add_argument(f"--{peer}", type=Path, metavar="DIR", help=f"a checkout of {home}")
    parser.add_argument(
        "--repaired", type=int, default=36, help="trials of the grid with repair (service)"
    )
    parser.add_argument(
        "--smallest", type=int, default=1000, help="trials that do next to nothing (service)"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    measured: dict[str, list[Row]] = {}
    try:
        for group in [given.only] if given.only else GROUPS:
            measured[group] = []
            with torch.set_grad_enabled(group == "repair"):
                for row in GROUPS[group](given):
                    measured[group].append(row)
                    print(f"{row.name} {row.shape}, {row.peer_name}: {row.ratio:.2f}×", flush=True)
    finally:  # also what Ctrl-C leaves of a long run
        publish(measured)


if __name__ == "__main__":
    main()
