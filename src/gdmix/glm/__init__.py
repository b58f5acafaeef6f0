"""Generalized linear models on arrays: numpy and numba only, no files, frames or configs.

Read in this order: `losses`, `objective` and `penalty` (the formula), `matrix` (what a design is),
`line_search`, `primal_newton` and `dual_newton` (one small problem), `dual_newton_simd` (four of
them at a time), `proximal_newton` (one with L1 or bounds), `entities` (millions of them), `newton`
(the loop for one large problem) and its designs: `large` (a sparse matrix), `block_map` (a random
effect), `joint` (several side by side); `proximal` and `quadratic_model` (a large one with L1 or
bounds); `group` and `distributed` (rows and coefficients divided among processes); then `scoring`,
`variance` (how well coefficients are determined), `posterior` (how surely they score), `laplace`
(the posterior of all coordinates together), and `factors` (products of two entities' factors).
"""
