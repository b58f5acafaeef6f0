"""Train on rows of a Spark data frame, in a session of your own.

python train_frame.py MOVIELENS_FOLDER      # of `gdmix example movielens`
"""

import sys

from pyspark.sql import SparkSession

from gdmix import FixedEffect, MixedModel, RandomEffect
from gdmix.engines.spark.engine import SparkEngine


def main(folder: str) -> None:
    """Train on the ratings of the old, judge by those of the young: any query will do."""
    session = SparkSession.builder.master("local[*]").getOrCreate()
    rows = session.read.parquet(f"{folder}/train.parquet")
    model = MixedModel(
        [
            FixedEffect("global", features=["user", "movie"]),
            RandomEffect("per-user", entity="user_id", features=["movie"]),
            RandomEffect("per-movie", entity="movie_id", features=["user"]),
        ],
        features={"user": ["age", "gender", "occupation"], "movie": ["genres", "release_date"]},
        columns={"uid": "uid", "response": "response", "weight": "weight"},
        metrics=["auc", "logloss"],
        passes=2,
        engine=SparkEngine(session),
    )
    model.fit(rows.where("age >= 25"), validation=rows.where("age < 25"))
    for step in model.history_:
        print(step.pass_number, step.coordinate, step.metrics)
    model.save(f"{folder}/model-of-spark")
    session.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
