"""Generalized linear models on arrays: numpy and numba only, no files, frames or configs.

Read in this order: `losses` and `objective` (the formula), `matrix` (what a design is),
`primal_newton` and `dual_newton` (one small problem), `entities` (millions of them),
`large` (one big problem, parallel over rows), `scoring`.
"""
