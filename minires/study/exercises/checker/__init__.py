"""What the exercises share: how one is described, found, measured, diagnosed and reported."""
