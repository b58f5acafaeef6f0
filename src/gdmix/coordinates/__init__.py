"""Runtime coordinates: what block coordinate descent fits and scores."""
