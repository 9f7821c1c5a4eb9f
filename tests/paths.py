"""Where things of the project lie, so that a test may move from room to room."""
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
EXAMPLES = ROOT / "examples"
DATA = ROOT.parent / "shared" / "data"  # published weights and lossless images, where somebody has laid them
