"""The `gdmix` commands as a program for `spark-submit`.

    spark-submit --master spark://HOST:7077 submit.py train run.yaml --engine spark
    spark-submit --master yarn --deploy-mode client --archives environment.tar.gz#environment \
        submit.py train run.yaml --engine spark

The master and Spark's settings are those that `spark-submit` is given.
"""

from gdmix.cli import main

if __name__ == "__main__":
    main()
