"""The process that Python workers are forked from: PySpark's own, with this package loaded.

So a worker begins with all modules, which cost it a second each time; and what they consist of is
left out of the garbage collection that follows every task, and takes longer than many a task.
"""

import gc

from pyspark.daemon import manager

import gdmix.engines.spark.workspace  # noqa: F401

if __name__ == "__main__":
    gc.collect()
    gc.freeze()
    manager()
