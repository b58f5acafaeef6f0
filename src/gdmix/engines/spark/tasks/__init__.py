"""What is done with a partition: functions of its pieces, which know nothing of Spark.

A *home* partition has the rows whose uid hashes to it; scores, labels and metrics live there. A
coordinate's own partitions have the rows that are fitted together: of a random effect all rows of
its entities. Both are `Dataset`s, and what fits and scores them is what does so on one machine.
"""
