"""minires beside PyTorch: `minires bench --vs torch` with its results in benchmarks/results/vs_torch.json.

All options of `minires bench` work here. A quick run (--quick) writes nothing unless --json says where.
"""
import sys

from benchmarks import RESULTS
from minires.cli import main

if __name__ == "__main__":
    options = sys.argv[1:]
    if not any(option.split("=")[0] in ("--json", "--quick", "--help") for option in options):
        RESULTS.mkdir(exist_ok=True)
        options += ["--json", str(RESULTS / "vs_torch.json")]
    main(["bench", "--vs", "torch", *options])
