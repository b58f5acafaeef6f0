"""The same descent on Spark: rows, scores and models in partitions (extra ``spark``)."""
