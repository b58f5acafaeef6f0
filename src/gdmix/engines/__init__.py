"""Where a configuration runs: the same descent on one machine or, later, on a cluster."""
