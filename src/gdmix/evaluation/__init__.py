"""Exact weighted metrics of scored rows, over all rows and by group."""
