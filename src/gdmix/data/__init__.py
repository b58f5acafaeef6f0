"""From rows to arrays: read, check, index features, build designs, group by entity.

Read in this order: `schema` (which columns), `read` (files and frames to Arrow),
`feature_index` and `design` (bags to sparse matrices), `validate` (bad input), `dataset`
(all of it for one source), `entity_blocks` (rows grouped by entity).
"""
